"""The lossless log of feedback: one event a line, flushed to the disk before it counts as saved.

What is taken back is not erased: a later line withdraws it. Chapter 08.
"""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from io import FileIO
from pathlib import Path

from rlhf_lab.feedback.lines import BadLine, FeedbackError, complain, read_records, short, write_lines
from rlhf_lab.records import (
    Comment,
    Comparison,
    Demonstration,
    Edit,
    Ranking,
    Rating,
    as_conversation,
)

try:
    import fcntl
except ImportError:  # Windows: a second writer is then told by the size of the file alone
    fcntl = None  # type: ignore[assignment]  # a module has no type that says "or None"

Event = Comment | Comparison | Demonstration | Edit | Ranking | Rating
EVENT_TYPES = {kind.__name__.lower(): kind for kind in Event.__args__}


@dataclass(frozen=True)
class Withdrawal:
    """The event of line `line` of the same log no longer counts: its author took it back."""

    line: int


def event_line(event: Event | Withdrawal) -> str:
    """One line of an event log, ASCII, without its line end.

    >>> event_line(Withdrawal(3))
    '{"type": "withdrawal", "line": 3}'
    """
    return json.dumps({"type": type(event).__name__.lower(), **asdict(event)}, allow_nan=False)


def _event(record: dict) -> Event | Withdrawal:
    fields = dict(record)
    kind = ({"withdrawal": Withdrawal} | EVENT_TYPES).get(str(fields.pop("type", None)))
    if kind is None:
        problem = f"got {short(record.get('type'))}; expected one of {sorted(EVENT_TYPES)}"
        raise BadLine("type", problem, "Is this an event log? read_preferences reads files of preferences")
    try:
        for name in ("replies", "shown", "tiers"):
            if name in fields:
                fields[name] = tuple(tuple(x) if isinstance(x, list) else x for x in fields[name])
        if "prompt" in fields:
            fields["prompt"] = as_conversation(fields["prompt"])
        return kind(**fields)
    except (TypeError, ValueError) as error:
        problem = f"not a {kind.__name__} ({error})"
        raise BadLine("line", problem, "Remove the line if it was edited by hand") from None


@dataclass(frozen=True)
class EventLines:
    """What an event log holds.

    Attributes:
        standing: {line number: event} without what was withdrawn.
        lines: number of complete lines (the last may lack its line end).
        size: bytes of the complete lines.
        torn: bytes of an unfinished event after them: it was being written when its writer died.
    """

    standing: dict[int, Event]
    lines: int
    size: int
    torn: int


def read_event_lines(path: str | Path) -> EventLines:
    """Read an event log with its line numbers; an incomplete last line is reported, not an error.

    Raises:
        FeedbackError: the file cannot be read, or another line is bad.
    """
    path = Path(path)
    good, bad, (size, last, end) = read_records(path, _event)
    # Only what looks like the beginning of an event counts as torn, lest a file of another kind is cut.
    broken = bool(bad) and bad[-1].number == last and not end.endswith(b"\n")
    torn = broken and (b'{"type": "'.startswith(end[:10]) or end[:10] == b'{"type": "')
    bad = bad[: len(bad) - torn]
    standing: dict[int, Event] = {}
    for number, event in good.items():
        if not isinstance(event, Withdrawal):
            standing[number] = event
        elif event.line >= number or standing.pop(event.line, None) is None:
            problem = f"withdraws line {event.line}, where no event stands"
            bad.append(BadLine("line", problem, "Remove the line if the log was edited by hand", number))
    if bad:
        complain(path, bad, last)
    cut = len(end) if torn else 0
    return EventLines(standing, last - torn, size - cut, cut)


def read_events(path: str | Path) -> list[Event]:
    """The events of a log in their order, without those that were withdrawn; an empty log gives none.

    Raises:
        FeedbackError: the file cannot be read, or a line is bad or incomplete.
    """
    log = read_event_lines(path)
    if log.torn:
        number, remedy = log.lines + 1, "Open the log with RankingSession, which mends it"
        complain(Path(path), [BadLine("line", "the line is incomplete", remedy, number)], number)
    return list(log.standing.values())


def write_events(path: str | Path, events: Sequence[Event]) -> None:
    """Write an event log; `read_events` gives back equal records, whatever characters they hold."""
    write_lines(path, map(event_line, events))


class NotSaved(OSError):
    """A judgement is kept in memory but is not on the disk; the message says why and what to do."""


class EventLog:
    """An event log that grows one flushed line at a time; the file is made at the first append.

    An incomplete last line, left by a writer that died, is cut off before the next one is written. The file
    is open, and locked, only while a line is written; that its size is the expected one shows that nobody
    else wrote to it since.

    Attributes:
        standing: {line number: event} that was in the file when it was opened, without what was withdrawn.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lines = self._size = self._torn = 0
        self.standing = {}
        if self.path.exists():
            log = read_event_lines(self.path)
            self._lines, self._size, self._torn, self.standing = log.lines, log.size, log.torn, log.standing
            if self.path.stat().st_size != self._size + self._torn:
                raise FeedbackError(self.path, ": is compressed; expected a plain event log. Unpack it first")

    def append(self, event: Ranking | Withdrawal) -> int:
        """Write one line, flush it to the disk, and return its number.

        Raises:
            NotSaved: nothing was added; the message holds the reason and a remedy.
        """
        data = event_line(event).encode("ascii") + b"\n"
        try:
            with self._opened() as file:
                if self._size and file.seek(self._size - 1) >= 0 and file.read(1) != b"\n":
                    data = b"\n" + data
                self._write(file, data)
        except NotSaved:
            raise
        except OSError as error:
            remedy = "Free some space, or choose a file in a folder you may write to"
            raise NotSaved(f"{self.path} cannot be written ({error.strerror or error}). {remedy}") from error
        self._size, self._lines, self._torn = self._size + len(data), self._lines + 1, 0
        return self._lines

    @contextmanager
    def _opened(self) -> Iterator[FileIO]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab+", buffering=0) as file:
            _lock(file)
            if os.fstat(file.fileno()).st_size != self._size + self._torn:
                problem = f"{self.path} was changed by another session or program since this session read it"
                raise NotSaved(f"{problem}. Close one of the two and make the session again")
            if self._torn:
                file.truncate(self._size)
            yield file

    def _write(self, file: FileIO, data: bytes) -> None:
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
            if not self._lines:
                _flush_folder(self.path.parent)
        except BaseException:  # also when the reader interrupts
            with suppress(OSError):
                file.truncate(self._size)
            self._torn = os.fstat(file.fileno()).st_size - self._size
            raise


def _lock(file: FileIO) -> None:
    """Keep other sessions out until the file is closed, where the file system knows locks."""
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise NotSaved(f"{file.name} is locked by another program. Close that and try again") from None
    except OSError:  # some network file systems have no locks
        pass


def _flush_folder(folder: Path) -> None:
    """Make the name of a new file as safe as its content; only POSIX can and need do this."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
