"""Two finished runs side by side: `python run.py compare RUN RUN`.

Where both were evaluated on the same prompts their replies are compared row by row, otherwise their intervals are, and
the table says which. What cannot be compared is left out and named: each run has a reward model of its own, and
perplexities need the same tokens.
Left out: more runs than one seed each. Two runs are two seeds, and the study in `benchmarks` repeats a run over ten.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlhf_lab.classroom.metrics import VERSION
from rlhf_lab.classroom.summary import ROWS, difference_words, format_number
from rlhf_lab.evaluation.changes import Change, expected_by_chance, paired_changes, standing, unpaired_change
from rlhf_lab.evaluation.evidence import Evidence, EvidenceError, read_evidence
from rlhf_lab.maths.intervals import Interval
from rlhf_lab.records import Conversation
from rlhf_lab.training.folders import changed_file
from rlhf_lab.training.printing import printable

OWN = ("reward_score",)  # in units of each run's own reward model
READ = ("metrics.json", "replies.jsonl", "documents.jsonl")
CAUTION = "The intervals are over prompts. Each run is one seed, and what another seed would give they do not say."


class CompareError(ValueError):
    """Two runs cannot be compared; the message says why and what to do."""


@dataclass(frozen=True)
class StoredRun:
    """What a finished run left.

    Attributes:
        path: its folder.
        metrics: of metrics.json.
        evidence: of replies.jsonl and documents.jsonl; None where they are not there.
    """

    path: Path
    metrics: Mapping[str, Any]
    evidence: Evidence | None


# -- reading --------------------------------------------------------------------------------------------------------
def read_run(path: str | Path) -> StoredRun:
    """The run in a folder (or whose metrics.json is named).

    Raises:
        CompareError: there is none, it is of another version, or a file is damaged or was changed since.
    """
    folder = Path(path)
    folder = folder.parent if folder.name == "metrics.json" else folder
    file = folder / "metrics.json"
    if not file.is_file():
        raise CompareError(
            f"there is no finished run in {folder}: it has no metrics.json; name the folder of a demo run"
        )
    for name in READ:
        if changed_file(folder, name):
            raise CompareError(f"{folder / name} is damaged, or was changed since it was saved; run the demo again")
    try:
        metrics = json.loads(file.read_text(encoding="utf-8"))
        found = metrics.get("schema", 1)
    except (OSError, ValueError, AttributeError) as error:
        raise CompareError(f"{file} cannot be read ({error}); run the demo again") from error
    if found != VERSION:
        raise CompareError(f"{file} is of schema {found!r:.20}; this version reads {VERSION}. Run the demo again")
    if damage := _damage(metrics):
        raise CompareError(f"{file} is damaged: {damage}; run the demo again")
    replies, documents = folder / "replies.jsonl", folder / "documents.jsonl"
    if not replies.is_file():
        return StoredRun(folder, metrics, None)
    try:
        return StoredRun(folder, metrics, read_evidence(replies, documents if documents.is_file() else None))
    except EvidenceError as error:
        raise CompareError(str(error)) from error


def _damage(metrics: Mapping[str, Any]) -> str:
    """What is missing, or is no number, of what is compared; '' if nothing."""
    try:
        for name, model in metrics["models"].items():
            for quantity in ROWS:
                if model[quantity] is not None:
                    as_interval(model[quantity])
            for skill, known in model["by_skill"].items():
                if known["true_reward"] is not None:
                    as_interval(known["true_reward"])
                if not isinstance(skill, str):
                    return f"a skill of {name}"
        if not metrics["models"]:
            return "no model"
        if not isinstance(metrics["config"], dict) or not isinstance(metrics["run"], dict | None):
            return "config or run"
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        return f"{type(error).__name__} {error}"
    return ""


def as_interval(stored: Mapping[str, Any]) -> Interval:
    """An interval of metrics.json; null ends are infinite."""
    low, high = stored["low"], stored["high"]
    ends = -math.inf if low is None else float(low), math.inf if high is None else float(high)
    return Interval(float(stored["mean"]), *ends, int(stored["count"]))


# -- comparing ------------------------------------------------------------------------------------------------------
def chosen_model(run: StoredRun, model: str | None) -> str:
    """The model of a run that is compared: the one named, else the last that the run made."""
    models = list(run.metrics["models"])
    if model is not None and model not in models:
        raise CompareError(f"{run.path} has no model {model!r}; there are {', '.join(models)}")
    return models[-1] if model is None else model


def run_changes(first: StoredRun, second: StoredRun, model: str | None = None) -> tuple[list[Change], list[str]]:
    """Every quantity that can be compared, second against first, and in words how it was done.

    Args:
        first, second: two runs.
        model: which model of each; the last one of each if None.
    """
    names = [chosen_model(run, model) for run in (first, second)]
    joined, how = None, "not paired: a run has no replies.jsonl"
    if first.evidence is not None and second.evidence is not None:
        joined = _joined(first.evidence, names[0], second.evidence, names[1])
        how = "not paired: the runs were evaluated on other prompts"
    rows = [] if joined is None else [c for c in paired_changes(joined, "second", "first") if c.quantity not in OWN]
    if joined is not None:
        how = f"paired: the same {len(joined.prompts):,} prompts, row by row"
    notes = [how, "the reward model's score is left out: each run has a reward model of its own"]
    apart = _other_tokens(first.evidence, second.evidence)
    if apart:
        notes.append("perplexities are left out: the models cut the same texts into other tokens")
    known = {(change.quantity, change.skill) for change in rows}
    both = [run.metrics["models"][name] for run, name in zip((first, second), names, strict=True)]
    for key, old, new in _intervals(*both):
        if key not in known and not (apart and key[0].startswith("perplexity")):
            rows.append(unpaired_change(key[0], new, old, key[1]))
    if joined is not None and (left := [row for row in rows if not row.paired]):
        notes.append(f"not paired: {', '.join(_label(row) for row in left)}")
    order = list(ROWS)
    return standing(sorted(rows, key=lambda row: (bool(row.skill), order.index(row.quantity), row.skill))), notes


def _joined(first: Evidence, old: str, second: Evidence, new: str) -> Evidence | None:
    """Both models as one evidence on the prompts of the first; None where the prompts are not the same."""
    places: dict[Conversation, int] = {prompt: row for row, prompt in enumerate(second.prompts)}
    same = len(places) == len(second.prompts) == len(first.prompts) and set(places) == set(first.prompts)
    if not same or old not in first.replies or new not in second.replies:
        return None
    order = [places[prompt] for prompt in first.prompts]
    moved = {quantity: [column[row] for row in order] for quantity, column in second.values[new].items()}
    documents = {
        kind: replace(here, nats={"first": here.nats[old], "second": there.nats[new]})
        for kind, here in first.documents.items()
        if (there := second.documents.get(kind)) and list(here.texts) == list(there.texts)
        if list(here.tokens) == list(there.tokens) and old in here.nats and new in there.nats
    }
    replies = {"first": first.replies[old], "second": [second.replies[new][row] for row in order]}
    return Evidence(first.prompts, first.skills, replies, {"first": first.values[old], "second": moved}, documents)


def _other_tokens(first: Evidence | None, second: Evidence | None) -> bool:
    """Whether the same document is known to have another number of tokens in the two runs."""
    if first is None or second is None:
        return False
    counts = [
        {
            text: count
            for some in evidence.documents.values()
            for text, count in zip(some.texts, some.tokens, strict=True)
        }
        for evidence in (first, second)
    ]
    return any(counts[1].get(text, count) != count for text, count in counts[0].items())


def _intervals(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[tuple[tuple[str, str], Interval, Interval]]:
    """((quantity, skill), interval in the first run, in the second) of what both have."""
    pairs = {(quantity, ""): (old[quantity], new[quantity]) for quantity in ROWS if quantity not in OWN}
    for skill in old["by_skill"].keys() & new["by_skill"].keys():
        pairs["true_reward", skill] = tuple(model["by_skill"][skill]["true_reward"] for model in (old, new))
    for key, (a, b) in pairs.items():
        if a is not None and b is not None:
            yield key, as_interval(a), as_interval(b)


def flat(config: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Nested choices by dotted name.

    >>> flat({"seed": 0, "sft": {"steps": 100}})
    {'seed': 0, 'sft.steps': 100}
    """
    found: dict[str, Any] = {}
    for name, value in config.items():
        found |= flat(value, f"{before}{name}.") if isinstance(value, Mapping) else {before + name: value}
    return found


def choices_that_differ(first: StoredRun, second: StoredRun) -> list[tuple[str, str, str]]:
    """(name, in the first run, in the second) of every choice, and of version, commit, software and device."""
    both = []
    for run in (first, second):
        card = run.metrics["run"] or {}
        both.append({n: card.get(n) for n in ("version", "commit", "software", "device")} | flat(run.metrics["config"]))
    names = dict.fromkeys([*both[0], *both[1]])
    pairs = [(name, *(json.dumps(known.get(name)) for known in both)) for name in names]
    return [(name, a, b) for name, a, b in pairs if a != b]


# -- words ----------------------------------------------------------------------------------------------------------
def _label(change: Change) -> str:
    return f"{ROWS[change.quantity][0]} in {change.skill}" if change.skill else ROWS[change.quantity][0]


def comparison_text(first: StoredRun, second: StoredRun, model: str | None = None) -> str:
    """The comparison for the terminal: a row a quantity, then what differs in the choices."""
    changes, notes = run_changes(first, second, model)
    names = [chosen_model(run, model) for run in (first, second)]
    rows = [("", *(f"{run.path.name} {name}" for run, name in zip((first, second), names, strict=True)), "", "")]
    for change in changes:
        _, unit, factor, digits = ROWS[change.quantity]
        ends = [format_number(factor * x, digits) for x in (change.before, change.after)]
        label = _label(change) + (f", {unit}" if unit else "")
        rows.append((label, *ends, difference_words(change), change.verdict + (" (Holm)" if change.stands else "")))
    widths = [max(len(printable(row[i])) for row in rows) for i in range(4)]
    lines = [f"{second.path} against {first.path}", *(f"  {note}" for note in notes), ""]
    for label, a, b, difference, verdict in ((*map(printable, row),) for row in rows):
        cells = [label.ljust(widths[0]), a.rjust(widths[1]), b.rjust(widths[2]), difference.ljust(widths[3]), verdict]
        lines.append("   ".join(cells).rstrip())
    lines += [
        "",
        f"Of {len(changes)} rows about {expected_by_chance(changes):.1f} would leave no difference out by chance.",
    ]
    lines += ["Those marked Holm stand when all are looked at together.", CAUTION, ""]
    differ = choices_that_differ(first, second)
    lines += ["What differs in the choices:" if differ else "The choices are the same."]
    return "\n".join([*lines, *(printable(f"  {name}: {a} -> {b}") for name, a, b in differ)])


def compare_runs(paths: Sequence[str | Path], model: str | None = None) -> str:
    """Every further run against the first one, as text.

    Raises:
        CompareError: fewer than two runs, or one that cannot be read.
    """
    if len(paths) < 2:
        raise CompareError(f"{len(paths)} run is named; expected at least two: python run.py compare RUN RUN")
    first, *others = map(read_run, paths)
    return "\n\n\n".join(comparison_text(first, other, model) for other in others)
