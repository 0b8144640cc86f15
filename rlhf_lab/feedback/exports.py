"""Records of feedback as the files that other trainers read. Each says what it leaves out: only the log keeps all.

    events        the log itself, lossless
    preferences   prompt / chosen / rejected, each a list of messages
    unpaired      prompt / completion / label
    prompts       prompt alone
    csv           a table for spreadsheets, in which no cell runs as a formula

Chapter 08.
"""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from rlhf_lab.feedback.events import standing, write_events
from rlhf_lab.feedback.formats import write_csv, write_preferences, write_unpaired
from rlhf_lab.feedback.lines import write_lines
from rlhf_lab.feedback.targets import to_comparisons
from rlhf_lab.records import Choice, Comparison, Conversation, Edit, Event, Ranking, Record

WRITERS = {"preferences": write_preferences, "unpaired": write_unpaired, "csv": write_csv}
ORDERING = (Ranking, Choice, Comparison, Edit)  # records that say which of two texts is better
FORMS = ("events", *WRITERS, "prompts")


@dataclass(frozen=True)
class Exported:
    """What a file holds and what it does not.

    Attributes:
        rows: lines that were written.
        left_out: {what: how many}.
    """

    rows: int
    left_out: dict[str, int]

    def __str__(self) -> str:
        rest = ", ".join(f"{count} {what}" for what, count in self.left_out.items())
        return f"{self.rows} rows" + (f"; left out: {rest}" if rest else "; nothing is left out")


def export(path: str | Path, events: Iterable[Event], form: str = "events") -> Exported:
    """Write the judgements of a log in one of `FORMS`; "events" also keeps what was taken back.

    Raises:
        ValueError: an unknown form, or nothing that it could hold; no file is written.
        SaveError: the file cannot be written.

    Example:
        >>> import tempfile
        >>> ranking = Ranking("Hi", ("Hello.", "Go away.", "Ho."), ((0,), (1, 2)))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     print(export(Path(folder) / "mine.jsonl", [Event("1", ranking)], "preferences"))
        2 rows; left out: 1 ties
    """
    events = list(events)
    if form not in FORMS:
        raise ValueError(f"form is {form!r}; expected one of {FORMS}")
    if form == "events":
        write_events(path, events)
        return Exported(len(events), {})
    records = [event.record for event in standing(events) if event.record is not None]
    left_out = Counter({"events that do not count": len(events) - len(records)})
    if form == "prompts":
        prompts: dict[Conversation, None] = dict.fromkeys(record.prompt for record in records)
        write_lines(path, [json.dumps({"prompt": [asdict(turn) for turn in prompt]}) for prompt in prompts])
        left_out["judgements of them"] += len(records)
        return Exported(len(prompts), dict(+left_out))
    comparisons: list[Comparison] = []
    for record in records:
        pairs = to_comparisons(record) if isinstance(record, ORDERING) else []
        comparisons += pairs
        left_out[_what_is_missing(record)] += _missing(record, len(pairs))
    if not comparisons:
        raise ValueError(f"there is no preference to write as {form}; left out: {dict(+left_out)}. Use the form events")
    WRITERS[form](path, comparisons)
    return Exported(len(comparisons), dict(+left_out))


def _what_is_missing(record: Record) -> str:
    if isinstance(record, Ranking) and record.status != "done":
        return f"rankings that are {record.status.replace('_', ' ')}"
    if isinstance(record, Ranking | Choice):
        return "ties"
    return f"records of the kind {type(record).__name__.lower()}"


def _missing(record: Record, pairs: int) -> int:
    """How many opinions of a record are in no pair; a ranking that passes no judgement counts as one."""
    if isinstance(record, Ranking) and record.status == "done":
        return len(record.replies) * (len(record.replies) - 1) // 2 - pairs
    return int(not pairs)
