"""What a run leaves for its reader: a table for the terminal, metrics.json, and report.html in one file.

All three are made from one `RunSummary`. The page loads nothing and runs nothing: pictures are inside, there
is no script, and every text of a model or a person is escaped.
"""

import base64
import dataclasses
import html
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlhf_lab.classroom import plots
from rlhf_lab.evaluation.policies import ModelReport, evaluate_replies, rollout_verdicts
from rlhf_lab.evaluation.reward_models import RewardModelReport
from rlhf_lab.maths.intervals import Interval
from rlhf_lab.models.tokens import Rollout
from rlhf_lab.records import Conversation
from rlhf_lab.training.files import write_text_atomic
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
    verdicts = {name: rollout_verdicts(rollout) for name, rollout in rollouts.items()}
    return [
        Example(
            conversations[row],
            skill,
            {name: rollouts[name].texts[row] for name in names},
            {name: verdicts[name][row] and verdicts[name][row].reward for name in names},
        )
        for skill, row in picked
    ]


def _name(model: str) -> str:
    return MODEL_NAMES.get(model, model)


# -- terminal ------------------------------------------------------------------------------------------------
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


def _cells(reports):
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
    rows = [("", [_name(name) for name in reports]), *_cells(reports)]
    first = max(len(label) for label, _ in rows)
    widths = [max(len(texts[i]) for _, texts in rows) for i in range(len(reports))]
    lines = [
        label.ljust(first) + "".join("   " + text.rjust(width) for text, width in zip(texts, widths, strict=True))
        for label, texts in rows
    ]
    return "\n".join(lines)


# -- metrics.json --------------------------------------------------------------------------------------------
def _object(description, properties):
    """Schema of an object that holds all of `properties` and nothing else."""
    schema = {"type": "object", "description": description, "properties": properties}
    return schema | {"required": list(properties), "additionalProperties": False}


def _or_null(schema):
    return {"anyOf": [schema, {"type": "null"}]}


NUMBER = {"type": "number"}
NUMBER_OR_NULL = {"type": ["number", "null"]}
COUNT = {"type": "integer", "minimum": 1}
INTERVAL = {"$ref": "#/$defs/interval"}
QUANTITIES = {
    name: _or_null(INTERVAL) | {"description": f"{label}; unit: {'share in [0, 1]' if unit == '%' else unit or 1}"}
    for name, (label, unit, _, _) in ROWS.items()
}
ORACLE = tuple(evaluate_replies([]))
SKILL = _object("one skill", {name: QUANTITIES[name] for name in ORACLE})
MODEL = QUANTITIES | {"by_skill": {"type": "object", "additionalProperties": SKILL}}
REWARD_MODEL = {
    "accuracy": NUMBER | {"description": "share of held-out labels it agrees with"},
    "accuracy_interval": INTERVAL,
    "expected_accuracy": NUMBER_OR_NULL | {"description": "E[p(rater agrees with its choice)]"},
    "ceiling": NUMBER_OR_NULL | {"description": "E[max(p, 1 - p)]; null where the raters' p is unknown"},
    "pairs": COUNT,
}
RUN = {
    "models": _object("by stage", {name: {"$ref": "#/$defs/model"} for name in MODEL_NAMES}),
    "differences": {
        "type": "object",
        "description": "paired differences of true rewards, row by row on the same prompts",
        "additionalProperties": INTERVAL,
    },
    "reward_model": _or_null(_object("on held-out pairs", REWARD_MODEL)),
    "config": {"type": "object", "description": "every choice of the run"},
    "seconds": {"type": "object", "description": "stage -> seconds", "additionalProperties": NUMBER},
}
METRICS_SCHEMA = _object("What a run of python run.py demo measured.", RUN) | {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "$defs": {
        "interval": _object(
            "95 % interval; low and high are null where the data say nothing about the spread",
            {"mean": NUMBER, "low": NUMBER_OR_NULL, "high": NUMBER_OR_NULL, "count": COUNT},
        ),
        "model": _object("one model on held-out prompts; null: not known (no town prompt, no text)", MODEL),
    },
}
"""JSON Schema (draft 2020-12) of metrics.json: models, differences, reward_model, config, seconds.

Every quantity of a model is an interval `{"mean", "low", "high", "count"}` or null; shares are in [0, 1],
lengths in tokens, KL in nats per reply. Each field carries its description.
"""


def metrics_dict(summary: RunSummary) -> dict:
    """The run as strict JSON data, as `METRICS_SCHEMA` says: what is not finite or not known is None."""
    quality = summary.reward_model
    numbers = quality and {
        "accuracy": quality.accuracy.mean,
        "accuracy_interval": quality.accuracy,
        "expected_accuracy": quality.expected_accuracy,
        "ceiling": quality.ceiling,
        "pairs": len(quality.agreed),
    }
    models = {name: summary.reports.get(name, ModelReport()) for name in MODEL_NAMES}
    run = {"models": models, "differences": summary.differences, "reward_model": numbers}
    return _plain(run | {"config": summary.config, "seconds": summary.seconds})


def write_metrics(path: str | Path, summary: RunSummary) -> None:
    """metrics.json at `path`, atomically."""
    write_text_atomic(path, json.dumps(metrics_dict(summary), indent=2, allow_nan=False) + "\n")


def _plain(value):
    """The same with nothing but JSON's types."""
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return str(value)


# -- report.html ---------------------------------------------------------------------------------------------
CSS = Path(__file__).with_suffix(".css").read_text(encoding="utf-8")
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{css}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""


def write_report(path: str | Path, summary: RunSummary) -> None:
    """report.html at `path`, atomically: one file, its pictures inside, no script, nothing loaded."""
    sections = [
        _heading(summary), _models_section(summary), _refusal_section(summary.reports),
        _curves_section(summary), _reward_model_section(summary.reward_model),
        _examples_section(summary.examples), _run_section(summary),
    ]  # fmt: skip
    write_text_atomic(path, PAGE.format(title=_text(summary.title), css=CSS, body="\n".join(sections)))


def _text(value) -> str:
    """Any text as HTML text; half of a surrogate pair, which cannot be written, becomes a question mark."""
    return html.escape(str(value).encode("utf-8", "replace").decode("utf-8"))


def _figure(draw: Callable[[Axes], Any], message: str, width: float = 5.2, height: float = 3.1) -> str:
    """A picture and the sentence that it shows, which is also its text for readers without the picture."""
    with plots.style():
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure.subplots())
        png = io.BytesIO()
        figure.savefig(png, format="png", metadata={"Software": None})
    data = base64.b64encode(png.getvalue()).decode("ascii")
    return f'<figure><img alt="{_text(message)}" src="data:image/png;base64,{data}"></figure>'


def _heading(summary) -> str:
    parts = [f"<h1>{_text(summary.title)}</h1>"]
    for label, change in summary.differences.items():
        bounds = f"{format_number(change.low)} to {format_number(change.high)}"
        parts.append(
            f'<p class="lead"><b>{_text(label)}:</b> the true reward changes by {change.mean:+.2f} '
            f'<span class="soft">(95 % interval {bounds}: {change.verdict})</span></p>'
        )
    return "\n".join(parts + [f'<p class="note">{_text(note)}</p>' for note in summary.notes])


def _models_section(summary) -> str:
    reports = summary.reports
    pictures = []
    if any(report.helpful for report in reports.values()):
        pictures.append(
            _figure(lambda ax: plots.parts_chart(ax, reports), "The oracle's rows of the table above, as bars.")
        )
    if summary.scores:
        means = ", ".join(f"{_name(key)} {sum(v) / len(v):.2f}" for key, v in summary.scores.items())
        message = f"Histogram of the reward model's scores; means: {means}."
        pictures.append(_figure(lambda ax: plots.score_histogram(ax, summary.scores), message))
    return (
        "<h2>The models side by side</h2>\n"
        '<p class="soft">One sampled reply to each held-out prompt. In small print the 95 % interval over '
        "prompts (over documents for perplexity). A dash: not known, and not guessed.</p>\n"
        f'{_table(reports, _cells(reports))}<div class="figures">{"".join(pictures)}</div>{_skills(reports)}'
    )


def _table(reports, rows) -> str:
    head = "".join(f"<th scope=col>{_text(_name(name))}<small></small></th>" for name in reports)
    body = "\n".join(f"<tr><th scope=row>{_text(label)}</th>{''.join(map(_cell, texts))}</tr>" for label, texts in rows)
    return (
        f'<div class="scroll"><table class="models"><thead><tr><th></th>{head}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>\n"
    )


def _skills(reports) -> str:
    """True reward and share of well-formed replies, skill by skill, folded away."""
    skills = sorted({skill for report in reports.values() for skill in report.by_skill})
    if not skills:
        return ""
    rows = []
    for quantity in ("true_reward", "well_formed"):
        label, unit, factor, digits = ROWS[quantity]
        for skill in skills:
            intervals = [report.by_skill.get(skill, {}).get(quantity) for report in reports.values()]
            texts = [format_interval(x, digits, factor, quantity in SYMMETRIC) for x in intervals]
            rows.append((f"{skill}: {label}, {unit}", texts))
    return f"<details><summary>Skill by skill</summary>{_table(reports, rows)}</details>"


def _cell(text: str) -> str:
    """The mean in full size, its interval small."""
    mean, _, rest = text.partition(" ")
    return f"<td>{_text(mean)}<small>{_text(rest)}</small></td>"


def _percent(share: Interval) -> str:
    mean, _, rest = format_interval(share, 1, 100).partition(" ")
    return f"{mean} % {rest}".rstrip()


def _refusal_section(reports) -> str:
    known = {name: report.over_refusal for name, report in reports.items() if report.over_refusal}
    if not known:
        return ""
    shares = ", ".join(f"{_name(name)} {_percent(share)}" for name, share in known.items())
    return (
        "<h2>Refusing what is harmless</h2>\n"
        f"<p>Share of harmless requests that were refused: {_text(shares)}. Preferences for refusing harmful "
        "requests can teach a model to refuse harmless ones too, and a mean reward hides it. So it is "
        "counted apart.</p>"
    )


def _curves_section(summary) -> str:
    history = summary.history
    if history is None or not len(history):
        return ""
    names = {name for row in history.to_list() for name, value in row.items() if value is not None}
    pictures = []
    if names & {"score", "reward_score", "true_reward", "held_out_reward_score", "held_out_true_reward"}:
        message = "The reward model's score and the true reward over the iterations of PPO."
        pictures.append(_figure(lambda ax: plots.reward_curves(ax, history), message))
    for column in ("kl", "entropy", "clip_fraction", "length"):
        if column in names:
            title, unit, _ = plots.CURVES[column]
            message = f"{title} ({unit}) over the iterations of PPO; at the end {history.last(column):.3g}."
            pictures.append(_figure(lambda ax, c=column: plots.history_curve(ax, history, c), message))
    return (
        "<h2>Training with PPO</h2>\n"
        "<p>Reward is what training is after; KL is the price paid in distance from the SFT model. Where the "
        "reward model's score goes on rising and the true reward does not, the policy has begun to please "
        "the model rather than the people. Points are held-out prompts; the faint line is the score of each "
        f'iteration\'s own replies.</p>\n<div class="figures">{"".join(pictures)}</div>'
    )


def _reward_model_section(quality: RewardModelReport | None) -> str:
    if quality is None:
        return ""
    found = f"It agrees with {_percent(quality.accuracy)} of {len(quality.agreed)} held-out labels."
    bound = "How noisy the raters are is not known here, so neither is the best possible accuracy."
    if quality.ceiling is not None:
        bound = f"The raters are noisy: the best any model could expect is {100 * quality.ceiling:.1f} %"
        expected = quality.expected_accuracy
        bound += "." if expected is None else f"; this one can expect {100 * expected:.1f} %."
    picture = _figure(lambda ax: plots.reliability_diagram(ax, quality.confidence, quality.agreed), found)
    return (
        f'<h2>The reward model</h2>\n<div class="figures"><div><p>{_text(found)} {_text(bound)}</p>\n'
        "<p>Each point gathers held-out pairs by how sure the model is of its choice. The number below it "
        "says how many pairs, the bar is a 95 % interval. On the dashed line, the model is right as often as "
        f"it thinks.</p></div>{picture}</div>"
    )


def _examples_section(examples: Sequence[Example]) -> str:
    if not examples:
        return ""
    cards = "\n".join(_example_card(example) for example in examples)
    return f'<h2>Before and after</h2>\n<p class="soft">{EXAMPLE_RULE}</p>\n{cards}'


def _example_card(example: Example) -> str:
    tag = f'<div class="tag">{_text(example.skill)}</div>' if example.skill else ""
    turns = "".join(f'<p class="{_text(turn.role)}">{_text(turn.content)}</p>' for turn in example.conversation)
    replies = ""
    for name, reply in example.replies.items():
        reward = example.rewards.get(name)
        worth = "" if reward is None else f'<span class="soft">true reward {format_number(reward, 1)}</span>'
        label = _text(_name(name))
        replies += f'<div class="{_text(name)}"><h3>{label} {worth}</h3><p>{_text(reply) or "(nothing)"}</p></div>'
    return f'<div class="example">{tag}{turns}<div class="replies">{replies}</div></div>'


def _run_section(summary) -> str:
    rows = "".join(
        f"<tr><th scope=row>{_text(stage)}</th><td>{seconds:.1f}</td></tr>"
        for stage, seconds in summary.seconds.items()
    )
    total = f"<tr><th scope=row>together</th><td>{sum(summary.seconds.values()):.1f}</td></tr>"
    config = json.dumps(_plain(summary.config), indent=2, ensure_ascii=False, allow_nan=False)
    return (
        "<h2>What was run</h2>\n"
        f'<div class="scroll"><table class="seconds"><thead><tr><th>stage</th><th>seconds</th></tr></thead>'
        f"<tbody>{rows}{total}</tbody></table></div>\n"
        f"<details><summary>Every choice of the run</summary><pre>{_text(config)}</pre></details>"
    )
