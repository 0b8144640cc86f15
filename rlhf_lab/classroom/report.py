"""report.html in one file: this module prepares what it says, report.html.j2 how, report.css how it looks.

The page loads nothing and runs nothing: pictures are inside, there is no script, and every text of a model or
a person is escaped by the template engine.
"""

import base64
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlhf_lab.classroom import plots
from rlhf_lab.classroom.metrics import plain
from rlhf_lab.classroom.summary import (
    EXAMPLE_RULE,
    ROWS,
    SYMMETRIC,
    Example,
    RunSummary,
    format_interval,
    format_number,
    model_name,
    quantity_rows,
)
from rlhf_lab.evaluation.policies import ModelReport
from rlhf_lab.evaluation.reward_models import RewardModelReport
from rlhf_lab.maths.intervals import Interval
from rlhf_lab.training.files import write_text_atomic
from rlhf_lab.training.history import History

TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,  # whatever the name of the file ends in
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def write_report(path: str | Path, summary: RunSummary) -> None:
    """report.html at `path`, atomically: one file, its pictures inside, no script, nothing loaded.

    Half of a surrogate pair, which cannot be written, becomes a question mark.
    """
    text = TEMPLATES.get_template("report.html.j2").render(page(summary))
    write_text_atomic(path, text.encode("utf-8", "replace").decode("utf-8"))


def page(summary: RunSummary) -> dict[str, Any]:
    """What report.html.j2 shows, in its order: texts, tables of texts, pictures; None where a section is left out."""
    return {
        "title": summary.title,
        "opening": summary.opening,
        "differences": [_change(label, change) for label, change in summary.differences.items()],
        "notes": summary.notes,
        "models": _table(summary.reports, quantity_rows(summary.reports)),
        "model_pictures": _model_pictures(summary),
        "skills": _skills(summary.reports),
        "over_refusal": _over_refusal(summary.reports),
        "curves": _curves(summary.history),
        "reward_model": _reward_model(summary.reward_model),
        "example_rule": EXAMPLE_RULE,
        "examples": [_example(example) for example in summary.examples],
        "seconds": _seconds(summary.seconds),
        "config": json.dumps(plain(summary.config), indent=2, ensure_ascii=False, allow_nan=False),
    }


def _change(label: str, change: Interval) -> dict[str, str]:
    return {
        "label": label,
        "mean": f"{change.mean:+.2f}",
        "low": format_number(change.low),
        "high": format_number(change.high),
        "verdict": change.verdict,
    }


# -- the models side by side ---------------------------------------------------------------------------------
def _table(reports: Mapping[str, ModelReport], rows: Iterable[tuple[str, Sequence[str]]]) -> dict[str, list]:
    """The models' names and the rows (label, [(mean, what stands in small print) of each model])."""
    cells = [(label, [text.partition(" ")[::2] for text in texts]) for label, texts in rows]
    return {"models": [model_name(name) for name in reports], "rows": cells}


def _model_pictures(summary: RunSummary) -> list["Picture"]:
    reports, pictures = summary.reports, []
    if any(report.helpful for report in reports.values()):
        message = "The oracle's rows of the table above, as bars."
        pictures.append(_picture(lambda ax: plots.parts_chart(ax, reports), message))
    if summary.scores:
        means = ", ".join(f"{model_name(key)} {sum(v) / len(v):.2f}" for key, v in summary.scores.items())
        message = f"Histogram of the reward model's scores; means: {means}."
        pictures.append(_picture(lambda ax: plots.score_histogram(ax, summary.scores), message))
    return pictures


def _skills(reports: Mapping[str, ModelReport]) -> dict[str, list] | None:
    """True reward and share of well-formed replies, skill by skill."""
    skills = sorted({skill for report in reports.values() for skill in report.by_skill})
    rows = []
    for quantity in ("true_reward", "well_formed"):
        label, unit, factor, digits = ROWS[quantity]
        for skill in skills:
            intervals = [report.by_skill.get(skill, {}).get(quantity) for report in reports.values()]
            texts = [format_interval(x, digits, factor, quantity in SYMMETRIC) for x in intervals]
            rows.append((f"{skill}: {label}, {unit}", texts))
    return _table(reports, rows) if skills else None


def _percent(share: Interval) -> str:
    mean, _, rest = format_interval(share, 1, 100).partition(" ")
    return f"{mean} % {rest}".rstrip()


def _over_refusal(reports: Mapping[str, ModelReport]) -> str:
    known = {name: report.over_refusal for name, report in reports.items() if report.over_refusal}
    return ", ".join(f"{model_name(name)} {_percent(share)}" for name, share in known.items())


# -- training ------------------------------------------------------------------------------------------------
def _curves(history: History | None) -> list["Picture"] | None:
    if history is None or not len(history):
        return None
    pictures = []
    names = {name for row in history.to_list() for name, value in row.items() if value is not None}
    if names & {"score", "reward_score", "true_reward", "held_out_reward_score", "held_out_true_reward"}:
        message = "The reward model's score and the true reward over the iterations of PPO."
        pictures.append(_picture(lambda ax: plots.reward_curves(ax, history), message))
    for column in ("kl", "entropy", "clip_fraction", "length"):
        if column in names:
            title, unit, _ = plots.CURVES[column]
            message = f"{title} ({unit}) over the iterations of PPO; at the end {history.last(column):.3g}."
            pictures.append(_picture(partial(plots.history_curve, history=history, column=column), message))
    return pictures


def _reward_model(quality: RewardModelReport | None) -> dict[str, Any] | None:
    if quality is None:
        return None
    found = f"It agrees with {_percent(quality.accuracy)} of {len(quality.agreed)} held-out labels."
    bound = "How noisy the raters are is not known here, so neither is the best possible accuracy."
    if quality.ceiling is not None:
        bound = "The raters are noisy: "
        if quality.rater_agreement is not None:
            bound += f"two of them agree on {100 * quality.rater_agreement:.1f} %, and "
        bound += f"the best any model could expect is {100 * quality.ceiling:.1f} %"
        expected = quality.expected_accuracy
        bound += "." if expected is None else f"; this one can expect {100 * expected:.1f} %."
    picture = _picture(lambda ax: plots.reliability_diagram(ax, quality.confidence, quality.agreed), found)
    return {"found": found, "bound": bound, "picture": picture}


# -- examples and the run ------------------------------------------------------------------------------------
def _example(example: Example) -> dict[str, Any]:
    replies = []
    for model, text in example.replies.items():
        reward = example.rewards.get(model)
        known = "" if reward is None else format_number(reward, 1)
        replies.append({"model": model, "name": model_name(model), "reward": known, "text": text})
    return {"skill": example.skill, "turns": example.conversation, "replies": replies}


def _seconds(seconds: Mapping[str, float]) -> list[tuple[str, str]]:
    together = ("together", sum(seconds.values()))
    return [(stage, f"{count:.1f}") for stage, count in [*seconds.items(), together]]


# -- pictures ------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Picture:
    """A picture and the sentence that it shows, which is also its text for readers without the picture.

    Attributes:
        message: the sentence.
        uri: the PNG itself, as a data URI.
    """

    message: str
    uri: str


def _picture(draw: Callable[[Axes], Any], message: str) -> Picture:
    with plots.style():
        figure = Figure(figsize=(5.2, 3.1), layout="constrained")
        draw(figure.subplots())
        png = io.BytesIO()
        figure.savefig(png, format="png", metadata={"Software": None})
    return Picture(message, "data:image/png;base64," + base64.b64encode(png.getvalue()).decode("ascii"))
