"""Files of preferences: the field's format in and out, unpaired rows, and a CSV export.

Left out: content that is not text, such as images. Chapter 08.
"""

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

from rlhf_lab.feedback.lines import BadLine, FeedbackError, complain, read_records, short, write_lines
from rlhf_lab.records import (
    Comparison,
    Conversation,
    Demonstration,
    Message,
    Ranking,
    as_conversation,
)
from rlhf_lab.training.files import write_text_atomic

FORMULA_STARTS = tuple("=+-@\t\r＝＋－＠")  # a spreadsheet runs a cell that starts so
TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")
Record = TypeVar("Record")
SPEAKERS = {"Human": "user", "Assistant": "assistant"}


class Preferences(list[Comparison]):
    """A list of `Comparison`; `skipped` holds the `BadLine` of every line that was left out on request."""

    def __init__(self, comparisons: Iterable[Comparison] = (), skipped: Sequence[BadLine] = ()) -> None:
        super().__init__(comparisons)
        self.skipped = tuple(skipped)


def _shared(first: Sequence, second: Sequence) -> int:
    """How many items both begin with."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))


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
    good, bad, _ = read_records(path, _comparison)
    if bad and not (skip_bad and good):
        complain(path, bad, len(good) + len(bad))
    if not good:
        fields = '{"prompt": ..., "chosen": ..., "rejected": ...}'
        raise FeedbackError(path, f": holds no line of feedback. Write one object a line: {fields}")
    return Preferences(good.values(), bad)


def as_preferences(rows: Sequence[Ranking | Comparison | Mapping]) -> list[Ranking | Comparison]:
    """Records as they are, and rows of the field's preference format as a `Comparison`; see `read_preferences`.

    Raises:
        ValueError: names the row, its field and what to do.

    Example:
        >>> as_preferences([{"prompt": "Hi", "chosen": "Hello.", "rejected": "Go away."}])[0].chosen
        'Hello.'

    Chapter 08.
    """
    return [_taken(i, row, _comparison) if isinstance(row, Mapping) else row for i, row in enumerate(rows)]


def as_demonstrations(rows: Sequence[Demonstration | Mapping]) -> list[Demonstration]:
    """Records as they are, and rows with `prompt` and `completion`, or with `messages`, as a `Demonstration`.

    Raises:
        ValueError: names the row, its field and what to do.

    Example:
        >>> as_demonstrations([{"prompt": "Hi", "completion": "Hello."}])[0].response
        'Hello.'

    Chapter 07.
    """
    return [_taken(i, row, _demonstration) if isinstance(row, Mapping) else row for i, row in enumerate(rows)]


def _taken(number: int, row: Mapping, parse: Callable[[dict], Record]) -> Record:
    try:
        return parse(dict(row))
    except BadLine as error:
        raise ValueError(f"row {number}, {error.field}: {error.problem}. {error.remedy}") from None


def _demonstration(record: dict) -> Demonstration:
    if "messages" in record:
        messages = _messages("messages", record["messages"])
        return Demonstration(_prompt(messages[:-1]), _reply("messages", messages[-1:]))
    for field in ("prompt", "completion"):
        if field not in record:
            remedy = "Each row needs prompt and completion, or messages"
            raise BadLine(field, f"the field is missing; found {short(sorted(record))}", remedy)
    given, completion = record["prompt"], record["completion"]
    prompt = (Message("user", given),) if isinstance(given, str) else _prompt(_messages("prompt", given))
    if not isinstance(completion, str):
        completion = _reply("completion", _messages("completion", completion))
    return Demonstration(prompt, completion)


def _comparison(record: dict) -> Comparison:
    for field in ("chosen", "rejected"):
        if field not in record:
            found = f"found {short(sorted(record))}" if record else "the object is empty"
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
    return BadLine("rejected", f"the same as chosen: {short(reply)}", remedy)


def _explicit(record: dict) -> tuple[Conversation, str, str]:
    given, marked = record["prompt"], False
    if isinstance(given, str):
        turns = _turns(given)
        marked = bool(turns) and turns[-1] == Message("assistant", "")
        messages = turns[:-1] if marked else (Message("user", given),)
    else:
        messages = _messages("prompt", given)
    prompt = _prompt(messages)
    replies = []
    for field in ("chosen", "rejected"):
        value = record[field]
        if not isinstance(value, str):
            value = _messages(field, value)
            value = _reply(field, value[len(prompt) :] if value[: len(prompt)] == prompt else value)
        replies.append(value.strip() if marked else value)
    chosen, rejected = replies
    return prompt, chosen, rejected


def _implicit(record: dict) -> tuple[Conversation, str, str]:
    chosen, rejected = record["chosen"], record["rejected"]
    if isinstance(chosen, str) and isinstance(rejected, str):
        turns = _turns(chosen), _turns(rejected)
        if not all(turns):
            return _cut(chosen.strip(), rejected.strip())
        chosen, rejected = turns
    else:
        chosen, rejected = _messages("chosen", chosen), _messages("rejected", rejected)
    if chosen == rejected:
        raise _equal(chosen[-1].content)
    prompt = _prompt(chosen[: _shared(chosen, rejected)])
    return prompt, _reply("chosen", chosen[len(prompt) :]), _reply("rejected", rejected[len(prompt) :])


def _turns(text: str) -> tuple[Message, ...]:
    """The messages of a text "Human: ... Assistant: ..."; none if it has no such form."""
    before, *parts = TURN.split(text.strip())
    if before or not parts or parts[0] != "Human" or "Assistant" not in parts[::2]:
        return ()
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return tuple(Message(SPEAKERS[speaker], content.strip()) for speaker, content in pairs)


def _cut(chosen: str, rejected: str) -> tuple[Conversation, str, str]:
    if chosen == rejected:
        raise _equal(chosen)
    words = re.match(r"(.*\S)\s", chosen[: _shared(chosen, rejected)], re.DOTALL)
    if not words:
        problem = f"the field is missing, and {short(chosen)} and {short(rejected)} share no first word"
        raise BadLine("prompt", problem, "Add a prompt, or let chosen and rejected begin with it")
    prompt, end = words[1], words.end()
    return as_conversation(prompt), chosen[end:].lstrip(), rejected[end:].lstrip()


def _messages(field: str, value: object) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        problem = f"got {short(value)}; expected text or a list of messages"
        raise BadLine(field, problem, "Without a prompt, chosen and rejected must be of the same form")
    remedy = 'Write {"role": "system", "user" or "assistant", "content": "text"}'
    messages = []
    for item in value:
        if not isinstance(item, Mapping) or not {"role", "content"} <= item.keys():
            raise BadLine(field, f"got {short(item)}; expected a message", remedy)
        try:
            messages.append(Message(item["role"], item["content"]))
        except ValueError as error:
            raise BadLine(field, str(error), remedy) from None
    return tuple(messages)


def _prompt(messages: tuple[Message, ...]) -> Conversation:
    if not messages or not messages[-1].content.strip() or messages[-1].role != "user":
        got = f"ends with {short(messages[-1].content)} of {messages[-1].role}" if messages else "is empty"
        problem = f"the prompt {got}; expected the user's last message at its end"
        raise BadLine("prompt", problem, "Add it, or let chosen and rejected begin with it")
    return messages


def _reply(field: str, messages: tuple[Message, ...]) -> str:
    if len(messages) != 1 or messages[0].role != "assistant":
        roles = [message.role for message in messages]
        problem = f"after the prompt come messages of {roles}; expected one of the assistant"
        raise BadLine(field, problem, "Put all earlier turns into the prompt, the same for both replies")
    return messages[0].content


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
    write_lines(path, map(json.dumps, rows))


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
    write_lines(path, map(json.dumps, rows.values()))


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
