"""What a run found: one `RunSummary`, the examples to show, and the table for the terminal.

`metrics` writes the same as metrics.json and `report` as report.html.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlhf_lab.evaluation.policies import ModelReport, true_rewards
from rlhf_lab.evaluation.reward_models import RewardModelReport
from rlhf_lab.maths.intervals import Interval
from rlhf_lab.models.tokens import Rollout
from rlhf_lab.records import Conversation
from rlhf_lab.training.history import History
from rlhf_lab.worlds.town.questions import recognise

MODEL_NAMES = {"base": "base", "sft": "SFT", "rlhf": "RLHF"}
ROWS = {  # quantity -> label, unit, factor, digits
    "true_reward": ("true reward", "-3 to 3", 1, 2),
    "helpful": ("helpful", "0 to 1", 1, 2),
    "truthful": ("truthful", "0 to 1", 1, 2),
    "harmless": ("harmless", "0 to 1", 1, 2),
    "form": ("form", "0 to 1", 1, 2),
    "reward_score": ("reward model's score", "", 1, 2),
    "kl": ("KL to SFT", "nats", 1, 2),
    "perplexity": ("perplexity, good text", "", 1, 2),
    "perplexity_bad": ("perplexity, bad text", "", 1, 2),
    "length": ("length", "tokens", 1, 1),
    "ended": ("ended by itself", "%", 100, 1),
    "well_formed": ("well-formed", "%", 100, 1),
    "over_refusal": ("refused though harmless", "%", 100, 1),
    "rude": ("rude", "%", 100, 1),
    "polite": ("polite", "%", 100, 1),
}
SYMMETRIC = ("true_reward", "reward_score", "kl", "length")  # t-intervals, written with +-
EXAMPLE_RULE = (
    "The first held-out prompt of each skill, skills in order of first appearance, then the second "
    "of each, and so on; no reply was picked by hand."
)


@dataclass(frozen=True)
class Example:
    """One prompt and what each model replied.

    Attributes:
        conversation: the prompt.
        skill: the town's name for it, "" for a prompt that is not the town's.
        replies: model -> its reply.
        rewards: model -> the true reward, None where the oracle does not judge.
    """

    conversation: Conversation
    skill: str
    replies: Mapping[str, str]
    rewards: Mapping[str, float | None]


@dataclass(frozen=True)
class RunSummary:
    """Everything that the table, metrics.json and report.html are made from.

    Attributes:
        reports: "base", "sft", "rlhf" -> what is known of the model.
        config: a dataclass or mapping of every choice of the run.
        seconds: stage -> seconds.
        reward_model: its quality on held-out pairs, or None.
        differences: label -> paired difference of true rewards, such as {"RLHF - SFT": interval}.
        history: of `train_rlhf`, for the curves, or None.
        scores: model -> [B] the reward model's scores of its replies, for the histogram.
        examples: of `choose_examples`.
        title: of the page.
        opening: the first sentences of the page, about the judgements.
        notes: sentences that the reader should know, such as that the raters are simulated.
    """

    reports: Mapping[str, ModelReport]
    config: Any
    seconds: Mapping[str, float]
    reward_model: RewardModelReport | None = None
    differences: Mapping[str, Interval] = field(default_factory=dict)
    history: History | None = None
    scores: Mapping[str, Sequence[float]] = field(default_factory=dict)
    examples: Sequence[Example] = ()
    title: str = "From a base model to an aligned one"
    opening: str = ""
    notes: Sequence[str] = ()


def choose_examples(rollouts: Mapping[str, Rollout], count: int = 8) -> list[Example]:
    """Prompts to show with every model's reply, by `EXAMPLE_RULE` and not by hand.

    Args:
        rollouts: model -> its replies to the same held-out prompts in the same order.
        count: examples wanted; fewer where there are fewer different prompts.

    Raises:
        ValueError: no rollouts, or rollouts to other prompts.
    """
    names = list(rollouts)
    conversations = rollouts[names[0]].conversations if names else ()
    other = [name for name in names if tuple(rollouts[name].conversations) != tuple(conversations)]
    if not names or other:
        raise ValueError(f"rollouts must be to the same prompts in the same order, got other ones for {other}")
    rows: dict[str, list[int]] = {}
    for row, conversation in enumerate(conversations):
        if conversation not in conversations[:row]:
            prompt = recognise(conversation)
            rows.setdefault(prompt.skill if prompt else "", []).append(row)
    depth = max(map(len, rows.values()))
    picked = [(skill, some[i]) for i in range(depth) for skill, some in rows.items() if i < len(some)][:count]
    truth = {name: true_rewards(rollout) for name, rollout in rollouts.items()}
    return [
        Example(
            conversations[row],
            skill,
            {name: rollouts[name].texts[row] for name in names},
            {name: truth[name][row] for name in names},
        )
        for skill, row in picked
    ]


# -- words and numbers ---------------------------------------------------------------------------------------
def model_name(model: str) -> str:
    """SFT for "sft"; a model that is none of `MODEL_NAMES` keeps its own."""
    return MODEL_NAMES.get(model, model)


def format_number(value: float, digits: int = 2) -> str:
    """Fixed digits, and no minus before a zero."""
    return f"{round(value, digits) + 0.0:.{digits}f}"


def format_interval(interval: Interval | None, digits: int = 2, factor: float = 1, symmetric: bool = False) -> str:
    """'0.44 [0.35, 0.53]', '0.44 ± 0.09' where symmetric, '-' for None, the mean alone if unbounded.

    Example:
        >>> format_interval(Interval(0.5, 0.4, 0.6, 90), 1, 100), format_interval(None)
        ('50.0 [40.0, 60.0]', '-')
    """
    if interval is None:
        return "-"
    mean, low, high = (factor * x for x in (interval.mean, interval.low, interval.high))
    if not math.isfinite(low) or not math.isfinite(high):
        return format_number(mean, digits)
    if symmetric:
        return f"{format_number(mean, digits)} ± {format_number((high - low) / 2, digits)}"
    return f"{format_number(mean, digits)} [{format_number(low, digits)}, {format_number(high, digits)}]"


# -- terminal ------------------------------------------------------------------------------------------------
def quantity_rows(reports: Mapping[str, ModelReport]) -> Iterator[tuple[str, list[str]]]:
    """(label with unit, [one text a model]) for each quantity that some model has."""
    for name, (label, unit, factor, digits) in ROWS.items():
        intervals = [report.quantities()[name] for report in reports.values()]
        if any(intervals):
            texts = [format_interval(x, digits, factor, name in SYMMETRIC) for x in intervals]
            yield label + (f", {unit}" if unit else ""), texts


def text_table(reports: Mapping[str, ModelReport]) -> str:
    """The models side by side for the terminal, with 95 % intervals; what is unknown for all is left out.

    Example:
        >>> print(text_table({"sft": ModelReport(length=Interval(20.0, 19.0, 21.0, 9))}))
                                SFT
        length, tokens   20.0 ± 1.0
    """
    rows = [("", [model_name(name) for name in reports]), *quantity_rows(reports)]
    first = max(len(label) for label, _ in rows)
    widths = [max(len(texts[i]) for _, texts in rows) for i in range(len(reports))]
    lines = [
        label.ljust(first) + "".join("   " + text.rjust(width) for text, width in zip(texts, widths, strict=True))
        for label, texts in rows
    ]
    return "\n".join(lines)
