"""Small runs to make reports of: three models, made-up numbers, replies to prompts of the town."""

import math
from dataclasses import dataclass, fields
from pathlib import Path
from types import SimpleNamespace

import torch

from rlhf_lab.classroom.summary import Contrast, RunCard, RunSummary, choose_examples
from rlhf_lab.evaluation.changes import paired_changes
from rlhf_lab.evaluation.evidence import Evidence
from rlhf_lab.evaluation.policies import ModelReport, evaluate_replies
from rlhf_lab.evaluation.reward_models import evaluate_reward_model
from rlhf_lab.maths.intervals import Interval
from rlhf_lab.training.history import History
from rlhf_lab.worlds import town

HTML = "<script>alert(1)</script> & \"quoted\" 'x' <img src=x onerror=alert(2)> \ud800 \u202e"
NAMES = {"base": "base", "sft": "SFT", "rlhf": "RLHF"}
CARD = RunCard(
    "2026-11-30T16:00:00+00:00", "0.1", "0123456789" * 4, "torch 2", "cpu", 7, "tiny", 600, 24, "python run.py demo"
)
JINJA = '{{ 7*7 }} {% raw %} {# nothing #} {% endraw %} {{ title|safe }} {% include "report.css" %} \ud800'


def interval(mean, half=0.1, count=40):
    return Interval(mean, mean - half, mean + half, count)


def full_report(mean):
    names = [f.name for f in fields(ModelReport) if f.name != "by_skill"]
    quantities = evaluate_replies([]) | {"true_reward": interval(mean)}
    return ModelReport(**{name: interval(mean) for name in names}, by_skill={"ask": quantities})


def rollout(conversations, text):
    texts = tuple(f"{text} {i}" for i in range(len(conversations)))
    return SimpleNamespace(
        conversations=tuple(conversations), texts=texts, ended=torch.ones(len(texts), dtype=torch.bool)
    )


@dataclass(frozen=True)
class Config:
    seed: int = 0
    out: Path = Path("runs/demo")
    kl_target: float = math.inf
    sizes: tuple = (1, 2)


def history():
    run = History()
    for step in range(1, 5):
        run.add(step, score=0.1 * step, kl=step, entropy=1.0, clip_fraction=0.1, length=20)
    return run


def evidence_of(conversations, replies):
    """Values that are not the oracle's: truthful falls in half of the rows, true reward and harmless rise."""
    count = len(conversations)
    half = [float(i % 2) for i in range(count)]
    values = {
        name: {
            "true_reward": [place + x for x in half],
            "truthful": half if place == 2 else [1.0] * count,
            "harmless": [float(place == 2)] * count,
            "length": [9.0] * count,
        }
        for place, name in enumerate(replies)
    }
    skills = [town.recognise(conversation).skill for conversation in conversations]
    return Evidence(conversations, skills, {name: r.texts for name, r in replies.items()}, values)


def summary_of(conversations):
    """A run of three models on these prompts."""
    models = {"base": full_report(0.2), "sft": full_report(0.4), "rlhf": full_report(0.6)}
    replies = {name: rollout(conversations, name) for name in models}
    evidence = evidence_of(conversations, replies)
    pairs = [("rlhf", "sft"), ("sft", "base")]
    return RunSummary(
        reports=models,
        config=Config(),
        seconds={"sft": 1.5, "rlhf": 2.5},
        megabytes={"sft": 1234.0, "rlhf": math.nan},
        reward_model=evaluate_reward_model([1.0, 2.0], [0.0, 3.0], agreement=[0.9, 0.5]),
        names=NAMES,
        reference="sft",
        contrasts=[Contrast(a, b, paired_changes(evidence, a, b)) for a, b in pairs],
        evidence=evidence,
        card=CARD,
        files={"metrics.json": "the numbers", "a b/c.json": "odd", "absent": "not there"},
        history=history(),
        scores={"sft": [0.0, 1.0], "rlhf": [1.0, 2.0]},
        examples=choose_examples(replies),
        notes=["The raters are simulated."],
    )
