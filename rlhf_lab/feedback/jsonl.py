"""Feedback in files: the field's preference format in and out, our own lossless event log, and a CSV export.

JSON Lines: one object a line, UTF-8, plain or gzipped (told by the content, not by the name). A byte order
mark, CRLF and blank lines are accepted. What we write is ASCII-escaped, so no tool can garble it, and appears
under its final name only when it is whole; a name that ends in .gz is compressed. Left out: content that is
not text, such as images. Chapter 08.
"""

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rlhf_lab.records import (
    Comment,
    Comparison,
    Conversation,
    Demonstration,
    Edit,
    Message,
    Ranking,
    Rating,
    as_conversation,
)
from rlhf_lab.training.checkpoints import write_atomic, write_text_atomic

MAX_LINE_BYTES = 2**24  # a longer line is no feedback, and a small compressed file can hold an endless one
SHOWN_PROBLEMS = 10
GZIP_MAGIC = b"\x1f\x8b"
FORMULA_STARTS = tuple("=+-@\t\r＝＋－＠")  # a spreadsheet runs a cell that starts so
TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")
SPEAKERS = {"Human": "user", "Assistant": "assistant"}

Event = Comment | Comparison | Demonstration | Edit | Ranking | Rating
EVENT_TYPES = {kind.__name__.lower(): kind for kind in Event.__args__}


class BadLine(ValueError):
    """What is wrong with one line.

    Attributes:
        field: the field concerned, or "line".
        problem: what was got and what was expected.
        remedy: what to do.
        number: of the line, from 1.
    """

    def __init__(self, field: str, problem: str, remedy: str, number: int = 0) -> None:
        super().__init__(field, problem, remedy, number)
        self.field, self.problem, self.remedy, self.number = field, problem, remedy, number

    def __str__(self) -> str:
        return f"line {self.number}, {self.field}: {self.problem}. {self.remedy}"


class FeedbackError(ValueError):
    """A file of feedback that cannot be used; the message names every problem up to ten, and counts the rest.

    Attributes:
        bad: one `BadLine` for each line that cannot be used; empty when the file as a whole cannot.
    """

    def __init__(self, path: str | Path, reason: str, bad: Sequence[BadLine] = ()) -> None:
        self.bad = tuple(bad)
        super().__init__(f"{Path(path).name}{reason}")


class Preferences(list):
    """A list of `Comparison`; `skipped` holds the `BadLine` of every line that was left out on request."""

    def __init__(self, comparisons: Sequence[Comparison] = (), skipped: Sequence[BadLine] = ()) -> None:
        super().__init__(comparisons)
        self.skipped = tuple(skipped)


@dataclass(frozen=True)
class Withdrawal:
    """The event of line `line` of the same log no longer counts: its author took it back."""

    line: int


# ---- lines and objects -------------------------------------------------------------------------------------


def _lines(path: Path) -> Iterator[tuple[int, bytes | BadLine]]:
    """(number from 1, the line with its end) for each line; damage comes as a last BadLine."""
    if path.is_dir():
        raise FeedbackError(path, ": is a folder; expected a file. Give the path of one .jsonl file")
    try:
        raw = path.open("rb")
    except OSError as error:
        reason = f": cannot be read ({error.strerror}). Check the path and your permissions"
        raise FeedbackError(path, reason) from error
    number = 0
    with raw:
        start = raw.peek(4)
        if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise FeedbackError(path, ": is UTF-16; expected UTF-8. Save it again with the encoding UTF-8")
        stream = gzip.GzipFile(fileobj=raw) if start[:2] == GZIP_MAGIC else raw
        try:
            while line := stream.readline(MAX_LINE_BYTES):
                number += 1
                yield number, line if len(line) < MAX_LINE_BYTES else _too_long(stream, line, number)
        except (EOFError, zlib.error, OSError) as error:
            problem = f"the file breaks off here ({error})"
            yield number + 1, BadLine("line", problem, "Copy or compress the file again", number + 1)


def _too_long(stream: io.BufferedIOBase, line: bytes, number: int) -> bytes | BadLine:
    """Read on to the end of an over-long line without keeping it."""
    while line and not line.endswith(b"\n"):
        line = stream.readline(MAX_LINE_BYTES)
    limit = f"the line is longer than {MAX_LINE_BYTES} bytes"
    return BadLine("line", limit, "Write one object a line, and shorten the text", number)


def _no_duplicates(pairs: list[tuple[str, object]]) -> dict:
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise BadLine(twice, "the field appears twice; expected once", "Remove one of the two")
    return record


def _no_constant(name: str) -> None:
    raise BadLine("line", f"{name} is not JSON; expected a finite number or null", "Write null instead")


_DECODER = json.JSONDecoder(object_pairs_hook=_no_duplicates, parse_constant=_no_constant)


def _object(line: bytes) -> dict:
    """The JSON object of one line; BadLine says why there is none."""
    try:
        text = line.decode("utf-8-sig").strip()
        record = _DECODER.decode(text)
    except BadLine:
        raise
    except UnicodeDecodeError as error:
        problem = f"byte {error.start + 1} (0x{line[error.start]:02x}) is not UTF-8"
        raise BadLine("line", problem, "Save the file again with the encoding UTF-8") from None
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        remedy = "Write one complete object a line, {...}, with double quotes"
        raise BadLine("line", f"not JSON ({reason}), got {_short(text)}", remedy) from None
    if not isinstance(record, dict):
        problem = f"got {_short(record)}; expected an object"
        raise BadLine("line", problem, "Write one object a line, {...}, not one list around all")
    return record


def _read(path: Path, parse: Callable[[dict], object]) -> tuple[dict, list[BadLine], tuple[int, int, bytes]]:
    """{line number: parsed object}, the bad lines, and (bytes read, last line's number, last line).

    Blank lines hold nothing and are passed over.
    """
    good, bad, end = {}, [], (0, 0, b"\n")
    for number, line in _lines(path):
        try:
            if isinstance(line, BadLine):
                raise line
            end = (end[0] + len(line), number, line)
            if line.strip(b" \t\r\n\xef\xbb\xbf"):
                good[number] = parse(_object(line))
        except BadLine as problem:
            problem.number = number
            bad.append(problem)
    return good, bad, end


def _complain(path: Path, bad: Sequence[BadLine], count: int) -> None:
    if len(bad) == 1:
        raise FeedbackError(path, f", {bad[0]}", bad)
    shown = [f"\n  {problem}" for problem in bad[:SHOWN_PROBLEMS]]
    rest = [f"\n  and {len(bad) - SHOWN_PROBLEMS} more"] if len(bad) > SHOWN_PROBLEMS else []
    raise FeedbackError(path, f": {len(bad)} of {count} lines cannot be used" + "".join(shown + rest), bad)


def _shared(first: Sequence, second: Sequence) -> Sequence:
    """What both begin with."""
    pairs = enumerate(zip(first, second, strict=False))
    return first[: next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))]


def _short(value: object) -> str:
    """A value for a message: one line, at most 60 characters, nothing invisible."""
    text = "null" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


# ---- preferences in ----------------------------------------------------------------------------------------


def read_preferences(path: str | Path, *, skip_bad: bool = False) -> Preferences:
    r"""Read `prompt` / `chosen` / `rejected` lines, in each of the forms in which the field writes them.

    `prompt` is a text (one user message) or a list of messages `{"role", "content"}`, the user's last.
    `chosen` and `rejected` are each a text, kept as it stands, or a list that holds one assistant message
    (the prompt's messages may stand before it once more). A text prompt that begins with "Human:" and ends
    with "Assistant:" is taken apart into messages as below, and text replies to it are stripped.

    Without `prompt`, the prompt is what `chosen` and `rejected` share at their beginning:

    - two lists: the leading messages that are equal; one assistant message each must be left.
    - two texts that begin with "Human:" and have an "Assistant:": taken apart at "\n\nHuman:" and
      "\n\nAssistant:", each turn stripped, then as two lists.
    - two other texts: both are stripped and cut at the last whitespace of their common beginning, so that no
      word is split. What stands before it is the prompt, what stands after it are the replies; whitespace at
      the cut belongs to neither.

    Other fields are ignored, except our own `rater` and `simulated`. Blank lines are passed over.

    Args:
        path: JSON Lines, UTF-8, plain or gzipped.
        skip_bad: leave bad lines out; `.skipped` of the result then says which and why.

    Returns:
        A list of `Comparison`, in the order of the file, with the attribute `skipped`.

    Raises:
        FeedbackError: the file cannot be read, has no usable line, or has bad lines and `skip_bad` is False.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "mine.jsonl"
        >>> _ = path.write_text('{"chosen": "The sky is blue.", "rejected": "The sky is green."}')
        >>> read_preferences(path)[0].chosen
        'blue.'

    Source: the preference formats in the documentation of the TRL library; the turn markers are those of
        the HH data of Bai et al. 2022 (arXiv:2204.05862). The cut at a whitespace, never in a word, is ours.

    Chapter: 08.
    """
    path = Path(path)
    good, bad, _ = _read(path, _comparison)
    if bad and not (skip_bad and good):
        _complain(path, bad, len(good) + len(bad))
    if not good:
        fields = '{"prompt": ..., "chosen": ..., "rejected": ...}'
        raise FeedbackError(path, f": holds no line of feedback. Write one object a line: {fields}")
    return Preferences(good.values(), bad)


def _comparison(record: dict) -> Comparison:
    for field in ("chosen", "rejected"):
        if field not in record:
            found = f"found {_short(sorted(record))}" if record else "the object is empty"
            raise BadLine(field, f"the field is missing; {found}", "Each line needs chosen and rejected")
    for field in ("prompt", "chosen", "rejected"):
        try:
            str(record.get(field, "")).encode()
        except UnicodeEncodeError:
            problem = "holds half of a surrogate pair, which is no character"
            raise BadLine(field, problem, "Write the character anew, or remove it") from None
    prompt, chosen, rejected = _explicit(record) if "prompt" in record else _implicit(record)
    if chosen == rejected:
        raise _equal(chosen)
    rater = "" if record.get("rater") is None else str(record["rater"])
    return Comparison(prompt, chosen, rejected, rater, record.get("simulated") is True)


def _equal(reply: object) -> BadLine:
    remedy = "Remove the line: two equal replies say nothing of a preference"
    return BadLine("rejected", f"the same as chosen: {_short(reply)}", remedy)


def _explicit(record: dict) -> tuple[Conversation, str, str]:
    prompt, marked = record["prompt"], False
    if isinstance(prompt, str):
        turns = _turns(prompt)
        marked = bool(turns) and turns[-1] == Message("assistant", "")
        messages = turns[:-1] if marked else (Message("user", prompt),)
    else:
        messages = _messages("prompt", prompt)
    prompt = _prompt(messages)
    replies = []
    for field in ("chosen", "rejected"):
        value = record[field]
        if not isinstance(value, str):
            value = _messages(field, value)
            value = _reply(field, value[len(prompt) :] if value[: len(prompt)] == prompt else value)
        replies.append(value.strip() if marked else value)
    return prompt, *replies


def _implicit(record: dict) -> tuple[Conversation, str, str]:
    chosen, rejected = record["chosen"], record["rejected"]
    if isinstance(chosen, str) and isinstance(rejected, str):
        turns = _turns(chosen), _turns(rejected)
        if not all(turns):
            return _cut(chosen.strip(), rejected.strip())
        chosen, rejected = turns
    else:
        chosen, rejected = _messages("chosen", chosen), _messages("rejected", rejected)
    shared = _shared(chosen, rejected)
    if chosen == rejected:
        raise _equal(chosen[-1].content)
    prompt = _prompt(shared)
    return prompt, _reply("chosen", chosen[len(prompt) :]), _reply("rejected", rejected[len(prompt) :])


def _turns(text: str) -> tuple[Message, ...]:
    """The messages of a text "Human: ... Assistant: ..."; none if it has no such form."""
    before, *parts = TURN.split(text.strip())
    if before or not parts or parts[0] != "Human" or "Assistant" not in parts[::2]:
        return ()
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return tuple(Message(SPEAKERS[speaker], content.strip()) for speaker, content in pairs)


def _cut(chosen: str, rejected: str) -> tuple[Conversation, str, str]:
    shared = _shared(chosen, rejected)
    if chosen == rejected:
        raise _equal(chosen)
    words = re.match(r"(.*\S)\s", shared, re.DOTALL)
    if not words:
        problem = f"the field is missing, and {_short(chosen)} and {_short(rejected)} share no first word"
        raise BadLine("prompt", problem, "Add a prompt, or let chosen and rejected begin with it")
    prompt, end = words[1], words.end()
    return as_conversation(prompt), chosen[end:].lstrip(), rejected[end:].lstrip()


def _messages(field: str, value: object) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        problem = f"got {_short(value)}; expected text or a list of messages"
        raise BadLine(field, problem, "Without a prompt, chosen and rejected must be of the same form")
    remedy = 'Write {"role": "system", "user" or "assistant", "content": "text"}'
    messages = []
    for item in value:
        if not isinstance(item, Mapping) or not {"role", "content"} <= item.keys():
            raise BadLine(field, f"got {_short(item)}; expected a message", remedy)
        try:
            messages.append(Message(item["role"], item["content"]))
        except ValueError as error:
            raise BadLine(field, str(error), remedy) from None
    return tuple(messages)


def _prompt(messages: tuple[Message, ...]) -> Conversation:
    if not messages or not messages[-1].content.strip() or messages[-1].role != "user":
        got = f"ends with {_short(messages[-1].content)} of {messages[-1].role}" if messages else "is empty"
        problem = f"the prompt {got}; expected the user's last message at its end"
        raise BadLine("prompt", problem, "Add it, or let chosen and rejected begin with it")
    return messages


def _reply(field: str, messages: tuple[Message, ...]) -> str:
    if len(messages) != 1 or messages[0].role != "assistant":
        roles = [message.role for message in messages]
        problem = f"after the prompt come messages of {roles}; expected one of the assistant"
        raise BadLine(field, problem, "Put all earlier turns into the prompt, the same for both replies")
    return messages[0].content


# ---- preferences out ---------------------------------------------------------------------------------------


def _write(path: str | Path, lines: Iterable[str]) -> None:
    text = "".join(line + "\n" for line in lines)
    if Path(path).suffix != ".gz":
        return write_text_atomic(path, text)
    packed = gzip.compress(text.encode("ascii"), mtime=0)
    return write_atomic(path, lambda temporary: temporary.write_bytes(packed))


def _origin(comparison: Comparison) -> dict:
    rater = {"rater": comparison.rater} if comparison.rater else {}
    return rater | ({"simulated": True} if comparison.simulated else {})


def _as_lists(prompt: Conversation) -> list[dict]:
    return [asdict(message) for message in prompt]


def write_preferences(path: str | Path, comparisons: Sequence[Comparison]) -> None:
    """Write `prompt` / `chosen` / `rejected` as message lists, `rater` and `simulated` where they are set.

    `read_preferences` gives back the same comparisons.
    """
    rows = []
    for comparison in comparisons:
        replies = {f: [asdict(Message("assistant", getattr(comparison, f)))] for f in ("chosen", "rejected")}
        rows.append({"prompt": _as_lists(comparison.prompt)} | replies | _origin(comparison))
    _write(path, map(json.dumps, rows))


def write_unpaired(path: str | Path, comparisons: Sequence[Comparison]) -> None:
    """Write `prompt` / `completion` / `label`: a chosen reply is true, a rejected one false; equal rows once.

    A reply that wins one comparison and loses another appears with both labels: the form cannot say more.
    """
    rows = {}
    for comparison in comparisons:
        for field, label in (("chosen", True), ("rejected", False)):
            completion = [asdict(Message("assistant", getattr(comparison, field)))]
            row = {"prompt": _as_lists(comparison.prompt), "completion": completion, "label": label}
            rows[json.dumps(row)] = row | _origin(comparison)
    _write(path, map(json.dumps, rows.values()))


def write_csv(path: str | Path, comparisons: Sequence[Comparison]) -> None:
    """Write a table for spreadsheets: prompt, chosen, rejected, rater, simulated. It is not read back.

    A spreadsheet runs a cell that begins with one of = + - @ as a formula, also when a model wrote it: such
    cells get an apostrophe before them. Turns of a longer prompt stand under each other with their role.
    """
    buffer = io.StringIO()
    table = csv.writer(buffer, quoting=csv.QUOTE_ALL, lineterminator="\n")
    table.writerow(["prompt", "chosen", "rejected", "rater", "simulated"])
    for c in comparisons:
        turns = [f"{m.role}: {m.content}" for m in c.prompt] if len(c.prompt) > 1 else [c.prompt[0].content]
        cells = ["\n\n".join(turns), c.chosen, c.rejected, c.rater]
        table.writerow([*map(_defused, cells), str(c.simulated).lower()])
    # The mark tells a spreadsheet that this is UTF-8, in which a lone surrogate can only be an escape.
    text = "\ufeff" + buffer.getvalue()
    write_text_atomic(path, text.encode("utf-8", "backslashreplace").decode("utf-8"))


def _defused(cell: str) -> str:
    return f"'{cell}" if cell.startswith(FORMULA_STARTS) or cell.lstrip().startswith(FORMULA_STARTS) else cell


# ---- events ------------------------------------------------------------------------------------------------


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
        problem = f"got {_short(record.get('type'))}; expected one of {sorted(EVENT_TYPES)}"
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
    good, bad, (size, last, end) = _read(path, _event)
    # Only what looks like the beginning of an event counts as torn, lest a file of another kind is cut.
    broken = bool(bad) and bad[-1].number == last and not end.endswith(b"\n")
    torn = broken and (b'{"type": "'.startswith(end[:10]) or end[:10] == b'{"type": "')
    bad, standing = bad[: len(bad) - torn], dict(good)
    for number, event in list(standing.items()):
        if isinstance(event, Withdrawal):
            del standing[number]
            if event.line >= number or standing.pop(event.line, None) is None:
                problem = f"withdraws line {event.line}, where no event stands"
                bad.append(BadLine("line", problem, "Remove the line if the log was edited by hand", number))
    if bad:
        _complain(path, bad, last)
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
        _complain(Path(path), [BadLine("line", "the line is incomplete", remedy, number)], number)
    return list(log.standing.values())


def write_events(path: str | Path, events: Sequence[Event]) -> None:
    """Write an event log; `read_events` gives back equal records, whatever characters they hold."""
    _write(path, map(event_line, events))
