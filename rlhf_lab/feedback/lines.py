"""JSON Lines, the form in which feedback comes: one object a line, UTF-8, plain or gzipped.

What is gzipped is told by the content, not by the name. A byte order mark, CRLF and blank lines are accepted. What we
write is ASCII-escaped, so no tool can garble it, and appears under its final name only when it is whole; a name that
ends in .gz is compressed.
"""

import gzip
import io
import json
import stat
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from rlhf_lab.training.files import write_atomic, write_text_atomic

MAX_LINE_BYTES = 2**24  # a longer line is no feedback, and a small compressed file can hold an endless one
SHOWN_PROBLEMS = 10
GZIP_MAGIC = b"\x1f\x8b"
MAGICS = {  # how files of other kinds begin
    b"PAR1": "Parquet",
    b"ARROW1": "Arrow",
    b"FEA1": "Feather",
    b"\xff\xff\xff\xff": "Arrow",
    b"Obj\x01": "Avro",
    b"SQLite format 3": "SQLite",
    b"\x89HDF": "HDF5",
    b"\x93NUMPY": "NumPy",
    b"\x80\x04\x95": "pickle",
    b"\x80\x05\x95": "pickle",
    b"%PDF": "PDF",
    b"PK\x03\x04": "a zip archive (also .xlsx, .npz and .pt)",
    b"\x28\xb5\x2f\xfd": "compressed with zstd",
    b"\xfd7zXZ": "compressed with xz",
    b"BZh": "compressed with bzip2",
    b"7z\xbc\xaf": "a 7z archive",
    GZIP_MAGIC: "gzipped twice",
}

Parsed = TypeVar("Parsed")


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


def _opened(path: Path) -> io.BufferedReader:
    try:
        mode = path.stat().st_mode
        raw = path.open("rb") if stat.S_ISREG(mode) else None  # opening a pipe waits for somebody to write into it
    except (OSError, ValueError) as error:  # ValueError: a path with a null byte
        reason = getattr(error, "strerror", None) or error
        raise FeedbackError(path, f": cannot be read ({reason}). Check the path and your permissions") from error
    if raw is None:
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
        raise FeedbackError(path, f": is {kind}; expected a file. Give the path of one .jsonl file")
    return raw


def _lines(path: Path) -> Iterator[tuple[int, bytes | BadLine]]:
    """(number from 1, the line with its end) for each line; damage comes as a last BadLine."""
    raw = _opened(path)
    number = 0
    with raw:
        stream = gzip.GzipFile(fileobj=raw) if raw.peek(2)[:2] == GZIP_MAGIC else raw
        try:
            _refuse_other_kinds(path, stream.peek(16))
            while line := stream.readline(MAX_LINE_BYTES):
                number += 1
                yield number, line if len(line) < MAX_LINE_BYTES else _too_long(stream, line, number)
        except (EOFError, zlib.error, OSError) as error:
            problem = f"the file breaks off here ({error})"
            yield number + 1, BadLine("line", problem, "Copy or compress the file again", number + 1)


def _refuse_other_kinds(path: Path, start: bytes) -> None:
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise FeedbackError(path, ": is UTF-16; expected UTF-8. Save it again with the encoding UTF-8")
    is_binary = "a binary file" if b"\0" in start[:2] else None
    kind = next((name for magic, name in MAGICS.items() if start.startswith(magic)), is_binary)
    if kind:
        raise FeedbackError(path, f": is {kind}; expected text. Write it as JSON Lines in UTF-8, plain or gzipped")


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
        raise BadLine("line", f"not JSON ({reason}), got {short(text)}", remedy) from None
    if not isinstance(record, dict):
        problem = f"got {short(record)}; expected an object"
        raise BadLine("line", problem, "Write one object a line, {...}, not one list around all")
    return record


def _refuse_json_over_lines(path: Path, line: bytes) -> None:
    """Refuse a file whose first line begins a list or an object that goes on in the next."""
    text = line.decode("utf-8-sig", "replace").rstrip()
    try:
        json.loads(text) if line.endswith(b"\n") else None
    except json.JSONDecodeError as error:
        if error.pos == len(text) and text.lstrip()[0] in "[{":
            kind = "one JSON list" if text.lstrip()[0] == "[" else "JSON over several lines"
            remedy = "Write each object on one line of its own, with no list and no commas around them"
            raise FeedbackError(path, f": is {kind}; expected JSON Lines. {remedy}") from None
    except (ValueError, RecursionError):  # said of the line itself
        pass


def read_objects(path: Path, parse: Callable[[dict], Parsed]) -> tuple[dict[int, Parsed], list[BadLine], bool]:
    """{line number: parsed object}, the bad lines, and whether the last line has no line end.

    Blank lines hold nothing and are passed over.
    """
    good: dict[int, Parsed] = {}
    bad: list[BadLine] = []
    open_end = False
    for number, line in _lines(path):
        try:
            if isinstance(line, BadLine):
                raise line
            open_end = not line.endswith(b"\n")
            if line.strip(b" \t\r\n\xef\xbb\xbf"):
                if not good and not bad:
                    _refuse_json_over_lines(path, line)
                good[number] = parse(_object(line))
        except BadLine as problem:
            problem.number = number
            bad.append(problem)
    return good, bad, open_end


def complain(path: Path, bad: Sequence[BadLine], count: int) -> None:
    if len(bad) == 1:
        raise FeedbackError(path, f", {bad[0]}", bad)
    if len(bad) == count and all(problem.problem.startswith("not JSON") for problem in bad):
        first = f"The first is {bad[0]}"
        raise FeedbackError(path, f": none of its {count} lines is JSON; expected JSON Lines. {first}", bad)
    shown = [f"\n  {problem}" for problem in bad[:SHOWN_PROBLEMS]]
    rest = [f"\n  and {len(bad) - SHOWN_PROBLEMS} more"] if len(bad) > SHOWN_PROBLEMS else []
    raise FeedbackError(path, f": {len(bad)} of {count} lines cannot be used" + "".join(shown + rest), bad)


def short(value: object) -> str:
    """A value for a message: one line, at most 60 characters, nothing invisible."""
    text = "null" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def write_lines(path: str | Path, lines: Iterable[str]) -> None:
    text = "".join(line + "\n" for line in lines)
    if Path(path).suffix != ".gz":
        return write_text_atomic(path, text)
    packed = gzip.compress(text.encode("ascii"), mtime=0)
    return write_atomic(path, lambda temporary: temporary.write_bytes(packed))
