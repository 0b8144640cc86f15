"""The lossless log of feedback as a file: one event a line, JSON Lines in ASCII.

Nothing in a log is changed or erased: an event takes another back or replaces it. Which judgements count follows from
the set of events, in whatever order they stand, so the logs of a class can be put together and read once. Files of the
first version, whose lines were bare records that named each other by line number, are read as well. Chapter 08.
"""

import hashlib
import json
import time
import uuid
from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, get_args

from rlhf_lab.feedback.lines import MAX_LINE_BYTES, BadLine, complain, read_objects, short, write_lines
from rlhf_lab.records import Event, Record, Segment, as_conversation

KINDS: dict[str, type] = {kind.__name__.lower(): kind for kind in get_args(Record)}
MEND_IT = "Mend the line, or take the file from a backup"


def new_event(
    record: Record | None = None,
    *,
    target: str = "",
    duration: float = 0.0,
    shown: Iterable[int] = (),
    study: str = "",
    question: str = "",
    widget: str = "",
) -> Event:
    """An `Event` of this moment with an id of its own; the arguments are its attributes.

    >>> new_event(target="a").record is None
    True
    """
    return Event(uuid.uuid4().hex, record, target, time.time(), duration, tuple(shown), study, question, widget)


def standing(events: Iterable[Event]) -> list[Event]:
    """The judgements that count, in the order given.

    An event does not count that was taken back, or was replaced by one that was not taken back itself: to take a
    replacement back is to have the replaced one again. What is not among the events can be taken back too, which then
    does nothing. To take back is final.

    >>> first = Event("a", as_record({"type": "rating", "prompt": "Hi", "reply": "Hello.", "score": 2}))
    >>> second = Event("b", as_record({"type": "rating", "prompt": "Hi", "reply": "Hello.", "score": 4}), target="a")
    >>> [event.id for event in standing([first, second])]
    ['b']
    >>> [event.id for event in standing([first, second, Event("c", None, target="b")])]
    ['a']
    """
    events = list(events)
    undone = {event.target for event in events if event.record is None}
    replaced = {event.target for event in events if event.record is not None and event.id not in undone}
    gone = undone | replaced
    return [event for event in events if event.record is not None and event.id not in gone]


# ---- lines -----------------------------------------------------------------------------------------------------


def event_line(event: Event) -> str:
    """One line of a log, ASCII, without its line end; what is empty is left out.

    Raises:
        ValueError: the line would be too long to be read again.

    >>> event_line(Event("b", None, target="a"))
    '{"type": "event", "id": "b", "target": "a"}'
    """
    values = {field.name: getattr(event, field.name) for field in fields(event) if field.name != "record"}
    line: dict[str, Any] = {"type": "event"} | {name: value for name, value in values.items() if value}
    if event.record is not None:
        line["record"] = {"type": type(event.record).__name__.lower()} | _filled(event.record)
    text = json.dumps(line, allow_nan=False)
    if len(text) + len("\n") >= MAX_LINE_BYTES:
        raise ValueError(f"the event takes {len(text)} bytes; a line may have {MAX_LINE_BYTES}. Shorten the texts")
    return text


def _filled(record: Record) -> dict[str, Any]:
    """The fields of a record, without those that are empty by default."""
    empty = {field.name for field in fields(record) if field.default in ("", False)}
    return {name: value for name, value in asdict(record).items() if value or name not in empty}


def parse_event(line: dict[str, Any]) -> Event:
    """The event of a line that `event_line` wrote.

    Raises:
        BadLine: it is none.
    """
    kind = line.get("type")
    if kind != "event":
        remedy = "Is this an event log, and of this version? read_preferences reads files of preferences"
        raise BadLine("type", f"got {short(kind)}; expected 'event' or one of {sorted(KINDS)}", remedy)
    given = {name: value for name, value in line.items() if name != "type"}
    try:
        record = given.pop("record", None)
        shown = tuple(given.pop("shown", ()))
        return Event(record=None if record is None else as_record(record), shown=shown, **given)
    except (TypeError, ValueError, OverflowError, AttributeError) as error:
        raise BadLine("line", f"not an event ({error})", MEND_IT) from None


def as_record(given: dict[str, Any]) -> Record:
    """The record of a line.

    Raises:
        ValueError: it is none.
    """
    values = dict(given)
    kind = KINDS.get(str(values.pop("type", None)))
    if kind is None:
        raise ValueError(f"its record is of type {short(given.get('type'))}; expected one of {sorted(KINDS)}")
    known = {field.name for field in fields(kind)}
    if unknown := values.keys() - known:
        raise ValueError(f"a {kind.__name__.lower()} has no {sorted(unknown)}; expected {sorted(known)}")
    if "prompt" in values:
        values["prompt"] = as_conversation(values["prompt"])
    for name in ("left", "right"):
        if isinstance(values.get(name), dict):
            values[name] = Segment(**values[name])
    return kind(**{name: _tuples(value) for name, value in values.items()})


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


# ---- files -----------------------------------------------------------------------------------------------------


def read_events(path: str | Path, *, skip_torn: bool = False) -> list[Event]:
    """All events of a log in their order, those that were taken back too; an empty file has none.

    Args:
        path: JSON Lines, plain or gzipped.
        skip_torn: pass over a last line that breaks off, which in a file of the first version is what its writer left
            when it was killed.

    Raises:
        FeedbackError: the file cannot be read, a line is no event, or two events share an id.
    """
    path = Path(path)
    lines, bad, open_end = read_objects(path, dict)
    if skip_torn and open_end and bad and bad[-1].number > max(lines, default=0):
        bad = bad[:-1]
    first_version = _FirstVersion(path)
    events: dict[str, Event] = {}
    for number, line in lines.items():
        try:
            old = str(line.get("type")) in (*KINDS, "withdrawal")
            for event in first_version.events(number, line) if old else [parse_event(line)]:
                if events.setdefault(event.id, event) != event:
                    raise BadLine("id", f"{short(event.id)} is that of an earlier, other event", MEND_IT)
        except BadLine as problem:
            problem.number = number
            bad.append(problem)
    if bad:
        complain(path, sorted(bad, key=lambda problem: problem.number), len(lines) + len(bad))
    return list(events.values())


def read_records(path: str | Path) -> list[Record]:
    """The records of the judgements in a log that count.

    Raises:
        FeedbackError: as `read_events`.
    """
    return [event.record for event in standing(read_events(path)) if event.record is not None]


def write_events(path: str | Path, events: Iterable[Event | Record]) -> None:
    """Write a log; `read_events` gives back equal events, whatever characters they hold.

    A bare record becomes an event that knows nothing but the record; its id is its number in the file.

    Raises:
        ValueError: an event is too long for a line; nothing is written.
        SaveError: the file cannot be written.
    """
    numbered = enumerate(events, start=1)
    write_lines(path, [event_line(e if isinstance(e, Event) else Event(str(number), e)) for number, e in numbered])


class _FirstVersion:
    """Lines of the first version: bare records, withdrawals by line number, and the two in one.

    An id is made from the name of the file and the number of the line, so that a second import finds the first one.
    """

    def __init__(self, path: Path) -> None:
        self._name = hashlib.sha256(str(path.resolve()).encode("utf-8", "surrogatepass")).hexdigest()[:16]
        self._targets: dict[str, str] = {}  # of the events that stand: what each of them replaced

    def events(self, number: int, line: dict[str, Any]) -> list[Event]:
        """The event of a line, after those that it takes back."""
        given = dict(line)
        if given["type"] == "withdrawal":
            return self._withdrawn(number, self._standing(given.get("line")))
        replaces, shown = given.pop("replaces", None), given.pop("shown", ())
        target = "" if replaces is None else self._standing(replaces)
        try:
            event = Event(self._id(number), as_record(given), target, shown=tuple(shown))
        except (TypeError, ValueError, OverflowError) as error:
            raise BadLine("line", f"not a {given['type']} ({error})", MEND_IT) from None
        self._targets[event.id] = target
        return [event]

    def _id(self, number: object) -> str:
        return f"{self._name}-{number}"

    def _standing(self, number: object) -> str:
        if self._id(number) not in self._targets:
            raise BadLine("line", f"withdraws line {short(number)}, where no event stands", MEND_IT)
        return self._id(number)

    def _withdrawn(self, number: int, target: str) -> list[Event]:
        """In the first version a withdrawal did not bring back what the withdrawn line had replaced."""
        events: list[Event] = []
        while target:
            events.append(Event(f"{self._id(number)}.{len(events)}", None, target))
            target = self._targets.pop(target, "")
        return events
