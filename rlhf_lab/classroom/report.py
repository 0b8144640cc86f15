"""report.html in one file: this module prepares what it says, report.html.j2 how, report.css how it looks.

The page loads nothing and runs nothing: figures are inline SVG, there is no script, the only links lead to the page
itself and to files that lie beside it, and every text of a model or a person is escaped by the template engine.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2

from rlhf_lab.classroom.explorer import reply_explorer
from rlhf_lab.classroom.figures import (
    change_figures,
    parts_figure,
    reliability_figure,
    scores_figure,
    training_figures,
    training_reading,
)
from rlhf_lab.classroom.metrics import plain
from rlhf_lab.classroom.summary import (
    EXAMPLE_RULE,
    ROWS,
    SYMMETRIC,
    Contrast,
    RunCard,
    RunSummary,
    change_words,
    format_interval,
    quantity_rows,
)
from rlhf_lab.classroom.svg import SHAPES, WIDTH
from rlhf_lab.evaluation.changes import FEWEST_DIFFERENT, Change, by_verdict, expected_by_chance
from rlhf_lab.evaluation.reward_models import RewardModelReport
from rlhf_lab.maths.intervals import Interval
from rlhf_lab.training.files import write_text_atomic

TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,  # whatever the name of the file ends in
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def write_report(path: str | Path, summary: RunSummary) -> None:
    """report.html at `path`, atomically: one file, its figures inside, no script, nothing loaded.

    Files of `summary.files` that lie beside it are linked. Half of a surrogate pair, which cannot be written, becomes a
    question mark.
    """
    text = TEMPLATES.get_template("report.html.j2").render(page(summary, Path(path).parent))
    write_text_atomic(path, text.encode("utf-8", "replace").decode("utf-8"))


def page(summary: RunSummary, folder: Path | None = None) -> dict[str, Any]:
    """What report.html.j2 shows, in its order: texts, tables of texts, figures; empty where a section is left out.

    Args:
        summary: what was found.
        folder: where the page will lie; files in it are linked.
    """
    changes = [_contrast(summary, contrast) for contrast in summary.contrasts if contrast.changes]
    shown = {
        "title": summary.title,
        "facts": _facts(summary.card),
        "opening": summary.opening,
        "changes": changes,
        "fewest": FEWEST_DIFFERENT,
        "notes": summary.notes,
        "models": _table(summary, quantity_rows(summary)),
        "model_figures": [f for f in (parts_figure(summary), scores_figure(summary)) if f is not None],
        "skills": _skills(summary),
        "over_refusal": _over_refusal(summary),
        "training": training_figures(summary.history),
        "training_reading": training_reading(summary.history),
        "reward_model": _reward_model(summary.reward_model),
        "example_rule": EXAMPLE_RULE,
        "explorer": reply_explorer(summary),
        "card": _card(summary.card),
        "files": _files(summary.files, folder),
        "stages": _stages(summary),
        "config": json.dumps(plain(summary.config), indent=2, ensure_ascii=False, allow_nan=False),
        "shapes": SHAPES,
        "width": WIDTH,
    }
    return shown | {"contents": _contents(shown)}


def _contents(shown: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(anchor, words) of the sections that are there."""
    sections = {
        "changes": ("Better and worse", shown["changes"]),
        "models": ("Models", shown["models"]["rows"]),
        "refusals": ("Refusals", shown["over_refusal"]),
        "training": ("Training", shown["training"]),
        "reward-model": ("Reward model", shown["reward_model"]),
        "replies": ("Replies", shown["explorer"].rows),
        "run": ("The run", True),
    }
    return [(anchor, words) for anchor, (words, there) in sections.items() if there]


# -- what changed ---------------------------------------------------------------------------------------------------
def _contrast(summary: RunSummary, contrast: Contrast) -> dict[str, Any]:
    rows = contrast.changes
    lists = {v: [_line(change) for change in by_verdict(rows, v)] for v in ("better", "worse", "changed")}
    return lists | {
        "after": summary.name(contrast.after),
        "before": summary.name(contrast.before),
        "undecided": [_line(change) for change in by_verdict(rows, "INCONCLUSIVE")],
        "judged": any(change.quantity == "true_reward" for change in rows),
        "rows": len(rows),
        "by_chance": f"{expected_by_chance(rows):.1f}",
        "stand": sum(change.stands for change in rows),
        "figures": change_figures(contrast),
    }


def _line(change: Change) -> dict[str, Any]:
    words, bounds = change_words(change)
    return {"words": words[0].upper() + words[1:], "bounds": bounds, "stands": change.stands}


# -- the models side by side ----------------------------------------------------------------------------------------
def _table(summary: RunSummary, rows: Iterable[tuple[str, Sequence[str]]]) -> dict[str, list]:
    """The models' names and the rows (label, [(mean, what stands in small print) of each model])."""
    cells = [(label, [text.partition(" ")[::2] for text in texts]) for label, texts in rows]
    return {"models": [summary.name(name) for name in summary.reports], "rows": cells}


def _skills(summary: RunSummary) -> dict[str, list] | None:
    """True reward and share of well-formed replies, skill by skill."""
    reports = summary.reports.values()
    skills = sorted({skill for report in reports for skill in report.by_skill})
    rows = []
    for quantity in ("true_reward", "well_formed"):
        label, unit, factor, digits = ROWS[quantity]
        for skill in skills:
            intervals = [report.by_skill.get(skill, {}).get(quantity) for report in reports]
            texts = [format_interval(x, digits, factor, quantity in SYMMETRIC) for x in intervals]
            rows.append((f"{skill}: {label}, {unit}", texts))
    return _table(summary, rows) if skills else None


def _percent(share: Interval) -> str:
    mean, _, rest = format_interval(share, 1, 100).partition(" ")
    return f"{mean} % {rest}".rstrip()


def _over_refusal(summary: RunSummary) -> str:
    known = {name: report.over_refusal for name, report in summary.reports.items() if report.over_refusal}
    return ", ".join(f"{summary.name(name)} {_percent(share)}" for name, share in known.items())


# -- the reward model -----------------------------------------------------------------------------------------------
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
    return {"found": found, "bound": bound, "figure": reliability_figure(quality)}


# -- the run --------------------------------------------------------------------------------------------------------
def _facts(card: RunCard | None) -> list[str]:
    """The line under the title."""
    if card is None:
        return []
    commit = f", commit {card.commit[:10]}" if card.commit else ""
    return [
        card.date[:10],
        f"seed {card.seed}",
        f"{card.labels:,} judgements",
        f"{card.prompts:,} held-out prompts",
        f"rlhf_lab {card.version}{commit}",
    ]


def _card(card: RunCard | None) -> list[tuple[str, str]]:
    if card is None:
        return []
    commit = "not known: the program was not in a checkout"
    if card.commit:
        commit = f"{card.commit} (what was not committed is not seen)"
    return [
        ("ended", card.date),
        ("rlhf_lab", card.version),
        ("commit", commit),
        ("software", card.software),
        ("device", card.device),
        ("seed", str(card.seed)),
        ("first model", card.model),
        ("judgements learned from", f"{card.labels:,}"),
        ("held-out prompts", f"{card.prompts:,}"),
        ("to repeat it", card.command or "started from Python; every choice stands below"),
    ]


def _files(files: Mapping[str, str], folder: Path | None) -> list[tuple[str, str, str]]:
    """(address, name, what it holds) of the files that are there; "./" keeps an address from being anything else."""
    return [
        (f"./{quote(name)}", name, holds)
        for name, holds in files.items()
        if folder is not None and (folder / name).exists()
    ]


def _stages(summary: RunSummary) -> list[tuple[str, str, str]]:
    """(stage, seconds, peak memory in MB or ""), and all together."""
    known = {name: peak for name, peak in summary.megabytes.items() if isfinite(peak)}
    rows = [(name, seconds, known.get(name)) for name, seconds in summary.seconds.items()]
    rows.append(("together", sum(summary.seconds.values()), max(known.values(), default=None)))
    return [(name, f"{seconds:.1f}", "" if peak is None else f"{peak:,.0f}") for name, seconds, peak in rows]
