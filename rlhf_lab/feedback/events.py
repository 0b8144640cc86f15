"""The lossless log of feedback: one event a line, flushed to the disk before it counts as saved.

What is taken back is not erased: a later line withdraws it. One line both adds an event and withdraws the one that it
replaces, so that no kill can come between the two. Chapter 08.
"""

import json
import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from io import FileIO
from itertools import count
from pathlib import Path

from rlhf_lab.feedback.lines import (
    MAX_LINE_BYTES,
    BadLine,
    FeedbackError,
    complain,
    read_records,
    short,
    write_lines,
)
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
START = b'{"type": "'  # of every line that we write
# What the JSON decoder leaves of a line that was cut off; within a string it says so itself.
CUT = re.compile(r"|t|tr|tru|f|fa|fal|fals|-|\.|[eE][-+]?|u[0-9a-f]{0,4}")
EMPTY_IT = "Mend the line, or empty it but keep its line end: events are referred to by their line numbers"


@dataclass(frozen=True)
class Withdrawal:
    """The event of line `line` of the same log no longer counts: its author took it back."""

    line: int

    def __post_init__(self) -> None:
        if type(self.line) is not int:
            raise ValueError(f"it names line {short(self.line)}; expected the number of a line")


def event_line(event: Event | Withdrawal, replaces: int | None = None) -> str:
    """One line of an event log, ASCII, without its line end.

    Args:
        event: what the line holds.
        replaces: number of the line whose event it withdraws at the same time.

    Raises:
        ValueError: the line would be too long to be read again.

    >>> event_line(Withdrawal(3))
    '{"type": "withdrawal", "line": 3}'
    """
    fields = {"type": type(event).__name__.lower(), **asdict(event)}
    line = json.dumps(fields if replaces is None else fields | {"replaces": replaces}, allow_nan=False)
    if len(line) + len("\n") >= MAX_LINE_BYTES:
        raise ValueError(f"the event takes {len(line)} bytes; a line may have {MAX_LINE_BYTES}. Shorten the texts")
    return line


@dataclass(frozen=True)
class _Line:
    """What one line says: a new event, the number of a line it withdraws, or both."""

    event: Event | None
    withdraws: int | None


def _parsed(record: dict) -> _Line:
    fields = dict(record)
    kind = ({"withdrawal": Withdrawal} | EVENT_TYPES).get(str(fields.pop("type", None)))
    if kind is None:
        problem = f"got {short(record.get('type'))}; expected one of {sorted(EVENT_TYPES)}"
        remedy = "Is this an event log, and of this version? read_preferences reads files of preferences"
        raise BadLine("type", problem, remedy)
    try:
        replaces = fields.pop("replaces", None)
        replaced = None if replaces is None else Withdrawal(replaces).line
        for name in ("replies", "shown", "tiers"):
            if name in fields:
                fields[name] = tuple(tuple(x) if isinstance(x, list) else x for x in fields[name])
        if "prompt" in fields:
            fields["prompt"] = as_conversation(fields["prompt"])
        event = kind(**fields)
    except (TypeError, ValueError, OverflowError) as error:
        raise BadLine("line", f"not a {kind.__name__} ({error})", EMPTY_IT) from None
    return _Line(None, event.line) if isinstance(event, Withdrawal) else _Line(event, replaced)


def _count(standing: dict[int, Event], number: int, line: _Line) -> None:
    """Let line `number` of a log take effect on the events that stand before it."""
    if line.withdraws is not None and standing.pop(line.withdraws, None) is None:
        raise BadLine("line", f"withdraws line {line.withdraws}, where no event stands", EMPTY_IT, number)
    if line.event is not None:
        standing[number] = line.event


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


def _is_cut_off(line: bytes) -> bool:
    """Whether an event breaks off at the end of the line; a mistake before that is none that a kill makes."""
    line = line.rstrip(b"\0")  # some file systems fill up with zeros what they had no time to write
    if not line.isascii() or not (START.startswith(line) or line.startswith(START)):
        return False
    try:
        json.loads(line)
    except json.JSONDecodeError as error:
        return error.msg.startswith("Unterminated string") or bool(CUT.fullmatch(error.doc[error.pos :]))
    except (ValueError, RecursionError):
        pass
    return False


def _exists(path: Path) -> bool:
    """Whether there is something to read, be it what the reader then refuses."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError):
        pass
    return True


def read_event_lines(path: str | Path) -> EventLines:
    """Read an event log with its line numbers; an incomplete last line is reported, not an error.

    Raises:
        FeedbackError: the file cannot be read, or another line is bad.
    """
    path = Path(path)
    good, bad, (size, last, end) = read_records(path, _parsed)
    broken = bool(bad) and bad[-1].number == last and not end.endswith(b"\n")
    torn = broken and _is_cut_off(end)
    bad = bad[: len(bad) - torn]
    standing: dict[int, Event] = {}
    for number, line in good.items():
        try:
            _count(standing, number, line)
        except BadLine as problem:
            bad.append(problem)
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
    """Write an event log; `read_events` gives back equal records, whatever characters they hold.

    Raises:
        ValueError: an event is too long for a line; nothing is written.
        SaveError: the file cannot be written.
    """
    write_lines(path, map(event_line, events))


class NotSaved(OSError):
    """A judgement is kept in memory but is not on the disk; the message says why and what to do."""


class EventLog:
    """An event log that grows one flushed line at a time; the file is made, for its owner only, at the first append.

    An incomplete last line, left by a writer that died, is put into a file beside the log before the next one is
    written. The file is open, and locked, only while a line is written; that its size is the expected one shows that
    nobody else wrote to it since. All that an append changes here is changed in one assignment, after the flush: it
    may be interrupted anywhere, and the next one first clears away what was left.

    Attributes:
        path: of the log.
        kept: the file that holds the incomplete last line, once it was put there.

    Raises:
        FeedbackError: there is a file, but no event log that can be added to.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.kept: Path | None = None
        self._now = EventLines({}, 0, 0, 0)
        if _exists(self.path):
            self._now = read_event_lines(self.path)
            if self.path.stat().st_size != self._now.size + self._now.torn:
                raise FeedbackError(self.path, ": is compressed; expected a plain event log. Unpack it first")
        self._attempt = (self._now, b"")  # what was to be written last, and after what
        self._file: FileIO | None = None

    @property
    def standing(self) -> dict[int, Event]:
        """{line number: event} of what is known to be on the disk, without what was withdrawn."""
        return self._now.standing

    @property
    def torn(self) -> int:
        """Bytes of an incomplete last line that is still in the file."""
        return self._now.torn

    @property
    def unsettled(self) -> bool:
        """Whether an append was broken off, so that the file may hold its line, or a part of it."""
        before, data = self._attempt
        return before is self._now and bool(data)

    def append(self, event: Event | Withdrawal, replaces: int | None = None) -> int:
        """Write one line, flush it to the disk, and return its number.

        Args:
            event: what the line holds.
            replaces: number of the line whose event is withdrawn by the same line.

        Raises:
            NotSaved: nothing was added; the message holds the reason and a remedy.
            ValueError: the line is too long, or withdraws an event that does not stand; nothing was added.
        """
        data = event_line(event, replaces).encode("ascii") + b"\n"
        number, standing = self._now.lines + 1, dict(self._now.standing)
        line = _Line(None, event.line) if isinstance(event, Withdrawal) else _Line(event, replaces)
        _count(standing, number, line)
        written = self._in_file(lambda file: self._write(file, data))
        self._now = EventLines(standing, number, self._now.size + written, 0)
        return number

    def settle(self) -> None:
        """Clear away what a broken-off append left in the file.

        Raises:
            NotSaved: it cannot be cleared away; the message holds the reason and a remedy.
        """
        self._in_file(lambda file: 0)

    def _in_file(self, work: Callable[[FileIO], int]) -> int:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self._file:  # an interrupt may have left it open, and so locked
                self._file.close()
            with open(self.path, "ab+", buffering=0, opener=_private) as file:
                self._file = file
                _lock(file)
                self._settle(file)
                return work(file)
        except NotSaved:
            raise
        except OSError as error:
            remedy = "Free some space, or choose a file in a folder you may write to"
            raise NotSaved(f"{self.path} cannot be written ({error.strerror or error}). {remedy}") from error

    def _settle(self, file: FileIO) -> None:
        """Cut off what stands after the known lines: what our own last attempt left, or what a dead writer did."""
        size, (_, data) = self._now.size, self._attempt
        shorter = os.fstat(file.fileno()).st_size < size
        file.seek(size)
        tail = file.read()
        ours = self.unsettled and data.startswith(tail)
        if shorter or (tail and not ours and len(tail) != self._now.torn):
            problem = f"{self.path} was changed by another session or program since this session read it"
            raise NotSaved(f"{problem}. Close one of the two and make the session again")
        if tail and not ours and self.kept is None:
            self._keep(tail)
        if tail or ours:
            file.truncate(size)
            os.fsync(file.fileno())
            self._now = replace(self._now, torn=0)  # another state than the attempt's: it is settled

    def _keep(self, tail: bytes) -> None:
        names = (self.path.with_name(f"{self.path.name}.torn-{number}") for number in count(1))
        beside = next(name for name in names if not os.path.lexists(name))
        try:
            with open(beside, "xb", buffering=0, opener=_private) as file:
                _write_all(file, tail)
        except BaseException:  # the log still holds it
            with suppress(OSError):
                beside.unlink()
            raise
        self.kept = beside

    def _write(self, file: FileIO, data: bytes) -> int:
        if self._now.size and file.seek(self._now.size - 1) >= 0 and file.read(1) != b"\n":
            data = b"\n" + data
        self._attempt = (self._now, data)
        try:
            _write_all(file, data)
            if not self._now.lines:
                _flush_folder(self.path.parent)
        except BaseException:  # also when the reader interrupts
            with suppress(OSError):
                file.truncate(self._now.size)
            raise
        return len(data)


def _private(path: str, flags: int) -> int:
    """Open a file; where it is new, nobody else may read it."""
    return os.open(path, flags, 0o600)


def _write_all(file: FileIO, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]
    os.fsync(file.fileno())


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
