"""What a run found: one `RunSummary`, the examples to show, the table and the changes in words.

`metrics` writes the same as metrics.json and `report` as report.html. Which models there are, what they are called and
which of them are compared stands in the summary and nowhere else.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlhf_lab.evaluation.changes import Change, by_verdict
from rlhf_lab.evaluation.evidence import Evidence
from rlhf_lab.evaluation.policies import ModelReport, true_rewards
from rlhf_lab.evaluation.reward_models import RewardModelReport
from rlhf_lab.maths.intervals import Interval, Ratio
from rlhf_lab.models.tokens import Rollout
from rlhf_lab.records import Conversation
from rlhf_lab.training.history import History
from rlhf_lab.worlds.town.questions import recognise

ROWS = {  # quantity -> label, unit, factor, digits
    "true_reward": ("true reward", "-3 to 3", 1, 2),
    "helpful": ("helpful", "0 to 1", 1, 2),
    "truthful": ("truthful", "0 to 1", 1, 2),
    "harmless": ("harmless", "0 to 1", 1, 2),
    "form": ("form", "0 to 1", 1, 2),
    "reward_score": ("reward model's score", "", 1, 2),
    "kl": ("KL to the reference", "nats", 1, 2),
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
class RunCard:
    """What one must know to judge a run, and to repeat it.

    Attributes:
        date: when it ended, ISO 8601 with the offset from UTC.
        version: of rlhf_lab.
        commit: of the checkout that the program was in, or None; changes that were not committed are not seen.
        software: versions of what the numbers depend on, in words.
        device: where the models ran, in what precision and with how many threads, in words.
        seed: of everything.
        model: that the run began with.
        labels: records that the reward model learned from.
        prompts: held-out prompts that the models were compared on.
        command: that repeats the run, "" where it was started from Python.
    """

    date: str
    version: str
    commit: str | None
    software: str
    device: str
    seed: int
    model: str
    labels: int
    prompts: int
    command: str = ""


@dataclass(frozen=True)
class Contrast:
    """Two models that are compared, and every change between them.

    Attributes:
        after, before: the models.
        changes: of `paired_changes`.
    """

    after: str
    before: str
    changes: Sequence[Change]


@dataclass(frozen=True)
class RunSummary:
    """Everything that the table, metrics.json and report.html are made from.

    Attributes:
        reports: model -> what is known of it, in the order to be shown.
        config: a dataclass or mapping of every choice of the run.
        seconds: stage -> seconds. megabytes: stage -> peak memory in MB, where it is known.
        names: model -> what it is called; one that is missing keeps its own name.
        reference: the model to which the KL is measured, "" if not known.
        contrasts: which models are compared; the report opens with the first.
        evidence: every reply and what it is worth, or None.
        reward_model: its quality on held-out pairs, or None.
        history: of `train_rlhf`, for the curves, or None.
        scores: model -> [B] the reward model's scores of its replies, for the histogram.
        examples: of `choose_examples`.
        card: what one must know to judge the run, or None.
        files: name -> what it holds; those that lie beside the report are linked.
        title: of the page.
        opening: the first sentences of the page, about the judgements.
        notes: sentences that the reader should know, such as that the raters are simulated.
    """

    reports: Mapping[str, ModelReport]
    config: Any
    seconds: Mapping[str, float]
    megabytes: Mapping[str, float] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    reference: str = ""
    contrasts: Sequence[Contrast] = ()
    evidence: Evidence | None = None
    reward_model: RewardModelReport | None = None
    history: History | None = None
    scores: Mapping[str, Sequence[float]] = field(default_factory=dict)
    examples: Sequence[Example] = ()
    card: RunCard | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    title: str = "From a base model to an aligned one"
    opening: str = ""
    notes: Sequence[str] = ()

    def name(self, model: str) -> str:
        """What a model is called."""
        return self.names.get(model, model)

    def label(self, contrast: Contrast) -> str:
        """Such as "RLHF - SFT"."""
        return f"{self.name(contrast.after)} - {self.name(contrast.before)}"

    @property
    def differences(self) -> dict[str, Interval]:
        """Label of a contrast -> paired difference of the true rewards, where they are known."""
        return {
            self.label(contrast): change.interval
            for contrast in self.contrasts
            for change in contrast.changes
            if (change.quantity, change.skill) == ("true_reward", "")
        }


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


# -- changes in words ----------------------------------------------------------------------------------------
def change_words(change: Change) -> tuple[str, str]:
    """What changed, and in small print the interval.

    Example:
        >>> change = Change("rude", "", 0.08, 0.02, Interval(-0.06, -0.081, -0.039, 400))
        >>> change_words(change)
        ('rude fell from 8.0 to 2.0 %', '-6.0 points [-8.1, -3.9]')
    """
    label, unit, factor, digits = ROWS[change.quantity]
    verb = {"higher": "rose", "lower": "fell"}.get(change.direction, "went")
    about = f"{label} in {change.skill}" if change.skill else label
    ends = [format_number(factor * x, digits) for x in (change.before, change.after)]
    shown = f" {unit}" if unit in ("%", "tokens", "nats") else ""
    return f"{about} {verb} from {ends[0]} to {ends[1]}{shown}", difference_words(change)


def difference_words(change: Change) -> str:
    """The difference with its 95 % interval, one digit finer than the means: '+0.243 [0.151, 0.335]'."""
    _, unit, factor, digits = ROWS[change.quantity]
    x = change.interval
    if isinstance(x, Ratio):
        mean, low, high, unit, digits = *(100 * (end - 1) for end in (x.mean, x.low, x.high)), "%", 1
    else:
        mean, low, high = (factor * end for end in (x.mean, x.low, x.high))
        unit, digits = ("points", 1) if unit == "%" else ("", digits + 1)
    bounds = f" [{format_number(low, digits)}, {format_number(high, digits)}]"
    known = bounds if math.isfinite(low) and math.isfinite(high) else ", no interval"
    return f"{round(mean, digits) + 0.0:+.{digits}f}{f' {unit}' if unit else ''}{known}"


def change_lines(summary: RunSummary) -> Iterator[str]:
    """For the terminal: of each contrast what got better and what got worse, a line each."""
    for contrast in summary.contrasts:
        yield f"{summary.label(contrast)}, {len(contrast.changes)} quantities row by row, with 95 % intervals:"
        for verdict in ("better", "worse"):
            rows = [change_words(change) for change in by_verdict(contrast.changes, verdict)]
            yield from (f"  {verdict:6}  {words} ({bounds})" for words, bounds in rows)
            if not rows:
                yield f"  {verdict:6}  nothing, as far as these replies tell"


# -- terminal ------------------------------------------------------------------------------------------------
def quantity_rows(summary: RunSummary) -> Iterator[tuple[str, list[str]]]:
    """(label with unit, [one text a model]) for each quantity that some model has."""
    for name, (label, unit, factor, digits) in ROWS.items():
        intervals = [report.quantities()[name] for report in summary.reports.values()]
        if name == "kl" and summary.reference:
            label = f"KL to {summary.name(summary.reference)}"
        if any(intervals):
            texts = [format_interval(x, digits, factor, name in SYMMETRIC) for x in intervals]
            yield label + (f", {unit}" if unit else ""), texts


def text_table(summary: RunSummary) -> str:
    """The models side by side for the terminal, with 95 % intervals; what is unknown for all is left out.

    Example:
        >>> print(text_table(RunSummary({"sft": ModelReport(length=Interval(20.0, 19.0, 21.0, 9))}, {}, {})))
                                sft
        length, tokens   20.0 ± 1.0
    """
    rows = [("", [summary.name(model) for model in summary.reports]), *quantity_rows(summary)]
    first = max(len(label) for label, _ in rows)
    widths = [max(len(texts[i]) for _, texts in rows) for i in range(len(summary.reports))]
    lines = [
        label.ljust(first) + "".join("   " + text.rjust(width) for text, width in zip(texts, widths, strict=True))
        for label, texts in rows
    ]
    return "\n".join(lines)
