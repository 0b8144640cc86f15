"""Runs for several test files: training that stops and goes on, and finished demo runs that nobody trained."""

import signal

from rlhf_lab.classroom.metrics import write_metrics
from rlhf_lab.classroom.summary import Contrast, RunCard, RunSummary
from rlhf_lab.evaluation.changes import paired_changes
from rlhf_lab.evaluation.evidence import Documents, Evidence, write_documents, write_replies
from rlhf_lab.evaluation.policies import ModelReport
from rlhf_lab.evaluation.text import document_perplexity
from rlhf_lab.maths.intervals import mean_interval
from rlhf_lab.records import as_conversation
from rlhf_lab.training.folders import RunFolder

CARD = RunCard("2026-11-30T16:00:00+00:00", "0.1", None, "torch 2", "cpu", 0, "tiny", 600, 24)


def looking(stop_after=None):
    """An `evaluate` that gives the norm of the weights; at that look, counted from 0, it interrupts the run."""
    looks = []

    def evaluate(lm):
        looks.append(lm)
        if len(looks) - 1 == stop_after:
            signal.raise_signal(signal.SIGINT)
        return {"norm": float(sum(p.detach().norm() for p in lm.model.parameters()))}

    return evaluate


def check_it_goes_on(train, path, stop_after=2):
    """A run that was stopped and went on has the history of one that was not; `train` takes evaluate and checkpoint."""
    whole = train(evaluate=looking(), checkpoint=None)
    assert train(evaluate=looking(stop_after), checkpoint=path).interrupted
    assert train(evaluate=looking(), checkpoint=path).history == whole.history


def prompts_of(count, start=0):
    return [as_conversation(f"Question {i}?") for i in range(start, start + count)]


def toy_run(prompts, worth=0.0, config=None):
    """Two models, base and rlhf; of the second every true reward is `worth` higher than the rule says."""
    numbers = [int(prompt[-1].content.split()[1].rstrip("?")) for prompt in prompts]
    values = {
        "base": {"true_reward": [float(n % 3) for n in numbers], "length": [9.0 + n % 2 for n in numbers]},
        "rlhf": {"true_reward": [n % 3 + worth for n in numbers], "length": [8.0 + n % 4 for n in numbers]},
    }
    for of in values.values():
        of["reward_score"] = list(of["true_reward"])
    texts, tokens = [f"document {i}" for i in range(12)], list(range(10, 22))
    nats = {"base": [0.5 * count for count in tokens], "rlhf": [0.6 * count for count in tokens]}
    documents = {"perplexity": Documents(texts, tokens, nats)}
    skills = ["ask" if n % 2 else "chat" for n in numbers]
    replies = {name: [f"{name} {n}" for n in numbers] for name in values}
    evidence = Evidence(prompts, skills, replies, values, documents)
    reports = {}
    for name, of in values.items():
        means = {quantity: mean_interval(column) for quantity, column in of.items()}
        skill = {"true_reward": means["true_reward"]}
        by_skill = {"ask": skill, "chat": skill}
        perplexity = document_perplexity(nats[name], tokens)
        reports[name] = ModelReport(**means, kl=mean_interval([0.0, 1.0]), perplexity=perplexity, by_skill=by_skill)
    contrast = Contrast("rlhf", "base", paired_changes(evidence, "rlhf", "base"))
    return RunSummary(reports, config or {}, {"sft": 1.0}, contrasts=[contrast], evidence=evidence, card=CARD)


def write_run(path, run, marked=True):
    """The folder of the run; without a mark nobody knows what the files were."""
    folder = RunFolder(path, "demo")
    with folder.writing("metrics.json") as file:
        write_metrics(file, run)
    with folder.writing("replies.jsonl") as file:
        write_replies(file, run.evidence)
    with folder.writing("documents.jsonl") as file:
        write_documents(file, run.evidence)
    if not marked:
        (path / "rlhf_lab.json").unlink()
    return path
