"""The whole story in one run: base model -> SFT -> rankings -> reward model -> PPO -> evaluation -> report.

`run_demo` is what `python run.py demo` calls. Each stage leaves its result in the output folder under its final name,
so a run that was stopped goes on with `--resume` and ends where an uninterrupted one would have ended.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from math import isfinite
from pathlib import Path
from typing import TypeVar

import torch

from rlhf_lab.classroom.metrics import write_metrics
from rlhf_lab.classroom.report import write_report
from rlhf_lab.classroom.summary import Contrast, RunSummary, choose_examples
from rlhf_lab.demo.card import run_card
from rlhf_lab.demo.first_words import opening
from rlhf_lab.demo.output import check_inputs, open_output, taken_back_if_it_fails
from rlhf_lab.demo.settings import sft_steps
from rlhf_lab.demo.task import DemoConfig, Task, file_task, town_task
from rlhf_lab.evaluation.changes import paired_changes
from rlhf_lab.evaluation.evidence import Documents, Evidence, collect_evidence, write_documents, write_replies
from rlhf_lab.evaluation.policies import ModelReport, evaluate_model, true_rewards
from rlhf_lab.evaluation.reward_models import RewardModelReport, reward_model_report
from rlhf_lab.evaluation.text import document_nll, document_perplexity, reply_nll
from rlhf_lab.experience.collect import rank_replies
from rlhf_lab.experience.rollouts import sample_responses
from rlhf_lab.feedback.events import read_records, write_events
from rlhf_lab.maths.intervals import Interval
from rlhf_lab.models.language_model import LanguageModel, load_language_model
from rlhf_lab.models.linear_reward import LinearReward, load_linear_reward
from rlhf_lab.models.reward_model import RewardModel, load_reward_model
from rlhf_lab.models.tokens import Rollout, encode_prompts
from rlhf_lab.recipes.few_labels import (
    LinearRewardConfig,
    are_few,
    best_row,
    cautious,
    held_out_accuracy,
    train_linear_reward,
)
from rlhf_lab.recipes.reward import train_reward_model
from rlhf_lab.recipes.rlhf import train_rlhf
from rlhf_lab.recipes.sft import train_sft
from rlhf_lab.records import Conversation
from rlhf_lab.training.files import write_text_atomic
from rlhf_lab.training.folders import RunFolder, read_mark
from rlhf_lab.training.history import History, Result
from rlhf_lab.training.memory import peak_megabytes, reset_peak
from rlhf_lab.training.printing import printable
from rlhf_lab.training.randomness import generator_for
from rlhf_lab.worlds import town

__all__ = ["DemoConfig", "Interrupted", "open_output", "run_demo"]
TRACKED_PROMPTS = 96  # held-out prompts that are looked at while PPO runs
NAMES = {"base": "base", "sft": "SFT", "rlhf": "RLHF"}
CONTRASTS = (("rlhf", "sft"), ("sft", "base"), ("rlhf", "base"))  # after, before; the report opens with the first
FILES = {  # what the report links to
    "metrics.json": "every number, with its schema in rlhf_lab.classroom.metrics",
    "replies.jsonl": "every held-out prompt with every reply and what it is worth",
    "documents.jsonl": "the documents of the perplexities and how likely each model finds them",
    "rankings.jsonl": "the rankings that were learned from, one event a line",
    "test_rankings.jsonl": "the rankings that the reward model was tested on",
    "sft": "the SFT model in the Hugging Face layout",
    "reward_model": "the reward model",
    "rlhf": "the RLHF model in the Hugging Face layout",
    "config.json": "every choice",
}

Judge = RewardModel | LinearReward
Trained = TypeVar("Trained", LanguageModel, RewardModel, LinearReward)


class Interrupted(RuntimeError):
    """A stage was stopped by the user; what it did is kept and `--resume` goes on from there."""


# -- stages ---------------------------------------------------------------------------------------------------------
@dataclass
class Workshop:
    """The output folder and the clock. A stage that is done is loaded, one that was stopped goes on."""

    folder: RunFolder
    device: str
    precision: torch.dtype
    seconds: dict[str, float] = field(default_factory=dict)
    megabytes: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str, title: str) -> Iterator[None]:
        """Say what happens, and how long it took and how much memory."""
        print(f"{printable(title)} ...", flush=True)
        reset_peak(self.device)
        start = time.perf_counter()
        try:
            yield
        except KeyboardInterrupt:  # between two loops, which stop on their own
            raise Interrupted(self._stopped(name)) from None
        self.seconds[name], self.megabytes[name] = time.perf_counter() - start, peak_megabytes(self.device)
        memory = f", {self.megabytes[name] / 1000:.1f} GB of memory at most" if isfinite(self.megabytes[name]) else ""
        print(f"  {self.seconds[name]:.0f} s{memory}", flush=True)

    def _stopped(self, name: str) -> str:
        return f"stopped in the stage {name}; add --resume --out {self.folder.path} to go on from here"

    def trained(
        self,
        name: str,
        load: Callable[[Path, str, torch.dtype], Trained],
        train: Callable[[Path], Result[Trained]],
    ) -> tuple[Trained, History]:
        """The model `name` and its history: loaded if it is there, else trained with a checkpoint and saved."""
        folder, rows, checkpoint = self.folder, f"{name}_history.json", f"{name}.checkpoint"
        if not (folder.has(name) and folder.has(rows)):
            folder.claim(name)  # what is in the way is said before the work
            result = train(folder.claim(checkpoint))
            if result.interrupted:
                raise Interrupted(self._stopped(name))
            with folder.writing(rows) as path:
                write_text_atomic(path, json.dumps(result.history.to_list()))
            with folder.writing(name) as path:
                result.model.save(path)
            folder.drop(checkpoint)
        history = History.from_list(json.loads((folder.path / rows).read_text()))
        return load(folder.path / name, self.device, self.precision), history


def collect_feedback(
    sft: LanguageModel, task: Task, config: DemoConfig, folder: RunFolder
) -> tuple[Sequence, Sequence]:
    """(training, test) preferences: the file's, or rankings of sampled replies by the simulated rater."""
    if config.feedback is not None:
        return task.preferences, task.test_preferences
    files = {
        "rankings.jsonl": (task.prompts, config.labels),
        "test_rankings.jsonl": (task.test_prompts, config.test_labels),
    }
    for name, (prompts, count) in files.items():
        if not folder.has(name):
            generator = generator_for(config.seed, name)
            rankings = rank_replies(sft, prompts[:count], config.replies, generator, **config.rlhf.sampling)
            with folder.writing(name) as path:
                write_events(path, rankings)
    training, test = (read_records(folder.path / name) for name in files)
    return training, test


def run_demo(
    config: DemoConfig,
    out: RunFolder | str | Path,
    device: str = "cpu",
    precision: torch.dtype = torch.float32,
    command: str = "",
) -> RunSummary:
    """Run every stage that `out` does not hold yet, and write the report.

    Args:
        config: every choice.
        out: folder for models, rankings, metrics.json and report.html; opened by `open_output`, or here.
        device, precision: where and in what arithmetic the models run.
        command: that repeats the run, for the report.

    Returns:
        What was measured, as it stands in metrics.json.

    Raises:
        Interrupted: after Ctrl-C, once what was done is saved.
        ValueError, OSError: bad input; one line with a remedy.
    """
    if not isinstance(out, RunFolder):
        out = open_output(out, config, resume=read_mark(Path(out)) is not None)
    shop = Workshop(out, device, precision)
    with taken_back_if_it_fails(shop.folder):
        base = load_language_model(config.model, device, precision)
        check_inputs(shop.folder, config, base)
        task = town_task(config) if config.feedback is None else file_task(config, base)
        encode_prompts(base, [*task.prompts, *task.test_prompts], config.rlhf.max_new_tokens)  # none is too long
    steps = sft_steps(config.sft.steps, len(task.demonstrations), config.sft.demonstrations_per_step, config.sft_epochs)
    imitation = replace(config.sft, steps=steps)
    with shop.stage("sft", f"1/5 SFT: imitate {len(task.demonstrations):,} demonstrations"):
        sft, _ = shop.trained(
            "sft", load_language_model, lambda file: train_sft(base, task.demonstrations, imitation, checkpoint=file)
        )
    with shop.stage("feedback", "2/5 Feedback: " + _feedback_title(config, task)):
        preferences, tests = collect_feedback(sft, task, config, shop.folder)
    with shop.stage("reward_model", f"3/5 Reward model: learn from {len(preferences):,} records"):
        few = are_few(preferences, config.few)
        rm, learned = train_judge(few, sft, preferences, tests, config, shop)
        quality = reward_model_report(rm, tests, config.reward.max_new_tokens)
        tested = None if quality is None else quality.accuracy
        accuracy, loss = judged_by_others(learned, few, tested)
        first = opening(len(preferences), few, accuracy, loss)
        print(f"  {first}", flush=True)
    plan = cautious(config.rlhf, rm) if isinstance(rm, LinearReward) else config.rlhf
    with shop.stage("rlhf", f"4/5 PPO: {plan.iterations} iterations of {plan.prompts_per_iteration} replies"):
        track = _tracker(task.test_prompts[:TRACKED_PROMPTS], rm, config)
        rlhf, history = shop.trained(
            "rlhf",
            load_language_model,
            lambda file: train_rlhf(sft, task.prompts, rm, plan, evaluate=track, checkpoint=file),
        )
    with shop.stage("evaluation", f"5/5 Evaluation on {len(task.test_prompts)} held-out prompts"):
        reports, rollouts, evidence = evaluate_models({"base": base, "sft": sft, "rlhf": rlhf}, task, rm, config)
    card = run_card(config, len(preferences), len(task.test_prompts), device, precision, command)
    summary = summarise(config, reports, rollouts, evidence, quality, history, shop.seconds)
    summary = replace(summary, opening=first, card=card, megabytes=shop.megabytes)
    write_results(shop.folder, summary, evidence)
    return summary


def write_results(folder: RunFolder, summary: RunSummary, evidence: Evidence) -> None:
    """metrics.json, what it was computed from, and the report, which links to what is there by then."""
    steps: dict[str, Callable[[Path], None]] = {
        "metrics.json": lambda path: write_metrics(path, summary),
        "replies.jsonl": lambda path: write_replies(path, evidence),
        "documents.jsonl": lambda path: write_documents(path, evidence),
        "report.html": lambda path: write_report(path, summary),
    }
    for name, write in steps.items():
        with folder.writing(name) as path:
            write(path)


def train_judge(
    few: bool, sft: LanguageModel, preferences: Sequence, tests: Sequence, config: DemoConfig, shop: Workshop
) -> tuple[Judge, History]:
    """The reward model and its history: linear in the SFT model's states where labels are few, else a whole network."""
    if few:
        print("  few labels: a linear reward, a short PPO run and a stiff leash (chapter 09 says why)", flush=True)
        settings = LinearRewardConfig(max_new_tokens=config.reward.max_new_tokens, seed=config.reward.seed)
        return shop.trained(
            "reward_model", load_linear_reward, lambda _: train_linear_reward(sft, preferences, settings)
        )
    return shop.trained(
        "reward_model",
        load_reward_model,
        lambda file: train_reward_model(sft, preferences, config.reward, held_out=tests, checkpoint=file),
    )


def judged_by_others(learned: History, few: bool, tested: Interval | None) -> tuple[Interval | None, float | None]:
    """Accuracy and loss of the reward model on judgements that it did not learn from."""
    if few:
        return held_out_accuracy(learned), best_row(learned)["held_out_loss"]
    known = any(row.get("held_out_loss") is not None for row in learned.rows)
    return tested, learned.last("held_out_loss") if known else None


def _feedback_title(config: DemoConfig, task: Task) -> str:
    if config.feedback is not None:
        return f"{len(task.preferences):,} comparisons from {config.feedback}"
    return f"a simulated rater ranks {config.replies} replies to each of {config.labels:,} prompts"


def _tracker(prompts: Sequence[Conversation], rm: Judge, config: DemoConfig) -> Callable[[LanguageModel], dict]:
    """What is looked at while PPO runs: true reward (where it is known) and proxy on the same held-out replies."""

    def track(lm: LanguageModel) -> dict[str, float]:
        generator = generator_for(config.seed, "track")
        rollout = sample_responses(lm, prompts, generator=generator, **config.rlhf.sampling)
        rewards = [reward for reward in true_rewards(rollout) if reward is not None]
        proxy = {"reward_score": float(rm.score_batch(rollout.batch).mean())}
        return proxy | ({"true_reward": sum(rewards) / len(rewards)} if rewards else {})

    return track


def evaluate_models(
    models: dict[str, LanguageModel], task: Task, rm: Judge, config: DemoConfig
) -> tuple[dict[str, ModelReport], dict[str, Rollout], Evidence]:
    """(reports, rollouts, evidence) of all models on the same prompts with the same random numbers."""
    texts = perplexity_texts(task, config)
    reports: dict[str, ModelReport] = {}
    rollouts: dict[str, Rollout] = {}
    nats: dict[str, dict[str, list[float]]] = {kind: {} for kind in texts}
    tokens: dict[str, list[int]] = {}
    for name, lm in models.items():
        report, rollouts[name] = evaluate_model(
            lm,
            task.test_prompts,
            generator=generator_for(config.seed, "evaluation"),
            reference=models["sft"],
            reward_model=rm,
            **config.rlhf.sampling,
        )
        for kind, some in texts.items():
            prompts = [comparison.prompt for comparison in task.test_preferences]
            measured = reply_nll(lm, prompts, some, config.rlhf.max_new_tokens) if prompts else document_nll(lm, some)
            nats[kind][name], tokens[kind] = (column.tolist() for column in measured)
            report = replace(report, **{kind: document_perplexity(nats[kind][name], tokens[kind])})  # type: ignore[arg-type]
        reports[name] = report
    scores = {name: rm.score_batch(rollout.batch).tolist() for name, rollout in rollouts.items()}
    documents = {kind: Documents(some, tokens[kind], nats[kind]) for kind, some in texts.items()}
    return reports, rollouts, collect_evidence(rollouts, scores, documents)


def perplexity_texts(task: Task, config: DemoConfig) -> dict[str, list[str]]:
    """Documents of the town, good and bad; of a file the held-out replies, chosen and rejected."""
    if tests := task.test_preferences:
        return {"perplexity": [c.chosen for c in tests], "perplexity_bad": [c.rejected for c in tests]}
    authors = {"perplexity": town.GOOD, "perplexity_bad": town.BAD}
    return {kind: town.documents(config.texts, config.seed + 77_000, author) for kind, author in authors.items()}


def summarise(
    config: DemoConfig,
    reports: dict[str, ModelReport],
    rollouts: dict[str, Rollout],
    evidence: Evidence,
    quality: RewardModelReport | None,
    history: History,
    seconds: dict[str, float],
) -> RunSummary:
    """Everything that the table, metrics.json and report.html show."""
    notes = ["The rankings are by a simulated rater, whose utility is the true reward plus noise."]
    notes += ["The prompts hold phrasings, names or place-question pairs that were never trained on."]
    if config.feedback is not None:
        notes = [f"The preferences are from {Path(config.feedback).name}, split by prompt."]
        notes += [
            "Perplexity is that of its held-out replies to their prompts: good text is chosen, bad text rejected."
        ]
    return RunSummary(
        reports=reports,
        config=asdict(config),
        seconds=seconds,
        names=NAMES,
        reference="sft",
        contrasts=[Contrast(after, before, paired_changes(evidence, after, before)) for after, before in CONTRASTS],
        evidence=evidence,
        reward_model=quality,
        history=history,
        scores={name: [x for x in of["reward_score"] if x is not None] for name, of in evidence.values.items()},
        examples=choose_examples(rollouts),
        files=FILES,
        notes=notes,
    )
