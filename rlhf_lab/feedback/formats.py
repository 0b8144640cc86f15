"""Files of preferences: the field's format in and out, unpaired rows, and a CSV export.

Left out: content that is not text, such as images. Chapter 08.
"""

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

from rlhf_lab.feedback.dialogue import begins_dialogue, turns
from rlhf_lab.feedback.fields import (
    after_system,
    given,
    refuse_another_prompt,
    refuse_unread,
)
from rlhf_lab.feedback.lines import BadLine, FeedbackError, complain, read_objects, short, write_lines
from rlhf_lab.records import (
    Comparison,
    Conversation,
    Demonstration,
    Message,
    Ranking,
    as_conversation,
    as_message,
)
from rlhf_lab.training.files import write_text_atomic

FORMULA_STARTS = tuple("=+-@\t\r＝＋－＠")  # a spreadsheet runs a cell that starts so
Record = TypeVar("Record")


class Preferences(list[Comparison]):
    """A list of `Comparison`, and where in the file each comes from.

    Attributes:
        skipped: the `BadLine` of every line that was left out on request.
        lines: the number of each comparison's line in the file, from 1, in the same order.
    """

    def __init__(
        self, comparisons: Iterable[Comparison] = (), skipped: Sequence[BadLine] = (), lines: Iterable[int] = ()
    ) -> None:
        super().__init__(comparisons)
        self.skipped, self.lines = tuple(skipped), tuple(lines)


def _shared(first: Sequence, second: Sequence) -> int:
    """How many items both begin with."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))


def read_preferences(path: str | Path, *, skip_bad: bool = False) -> Preferences:
    r"""Read lines of `chosen` and `rejected`, in each of the forms in which the field writes them.

    The prompt is what the first of these fields holds that is there: `prompt`, `question`, `query`, `instruction` (an
    `input` beside it follows after an empty line), `input`. A `system`, `system_prompt` or `system_message` becomes the
    system message before it. Without any of these fields, the prompt is what `chosen` and `rejected` begin with.

    ============  ==========================  ===================================================================
    prompt        chosen and rejected         what is read
    ============  ==========================  ===================================================================
    plain text    plain text                  one user message; all three are kept as they stand
    dialogue      plain text                  the turns of the dialogue; replies are stripped, a leading
                                              "Assistant:" is taken away
    messages      plain text                  the messages; replies are kept as they stand
    any           messages, dialogue          one assistant message each; the prompt may stand before it once more
    none          messages, dialogue          the turns that are equal; one assistant message each must be left
    none          plain text                  both are stripped and cut at the last whitespace of their common
                                              beginning, so that no word is split: the prompt stands before it,
                                              the replies after it, whitespace at the cut belongs to neither
    ============  ==========================  ===================================================================

    - messages: a list of `{"role": "system", "user" or "assistant", "content": ...}`. The content is a text or a list
      of parts `{"type": "text", "text": ...}`, joined with nothing between them. Of a prompt the user's is the last.
    - dialogue: a text with turns that begin with "Human:" or "Assistant:", at its start or after an empty line; an
      empty "Assistant:" may end a prompt. Each turn is stripped, what stands before the first is a system message. As
      `chosen` or `rejected` beside a prompt that is no dialogue, it begins with "Human:" and holds "Assistant:".

    Refused, by line and field, is what would be lost or misread: a message with a tool call, an image or other text
    beside its content; texts with other marks of speakers, such as "User:" or "<|im_start|>"; fields that a reply may
    depend on, such as `messages`, `history`, `context`, `images` or a second prompt, unless they are empty or repeat
    what is read; and with no prompt beside plain texts, every field with more than a name or a number in it, unless
    it is called a note, such as `source`, `chosen_model` or `rating`. All other fields are ignored, except our own
    `rater` (text or a whole number) and `simulated` (true or false). Blank lines are passed over.

    Args:
        path: JSON Lines, UTF-8, plain or gzipped.
        skip_bad: leave bad lines out; `.skipped` of the result then says which and why.

    Returns:
        A list of `Comparison`, in the order of the file, with the attributes `skipped` and `lines`.

    Raises:
        FeedbackError: the file cannot be read, has no usable line, or has bad lines and `skip_bad` is False.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "mine.jsonl"
        >>> _ = path.write_text('{"chosen": "The sky is blue.", "rejected": "The sky is green."}')
        >>> read_preferences(path)[0].chosen
        'blue.'

    Source: the preference formats in the documentation of the TRL library; the turn markers are those of
        the HH data of Bai et al. 2022 (arXiv:2204.05862), instruction and input those of the Alpaca data.
        The cut at a whitespace, never in a word, is ours.

    Chapter: 08.
    """
    path = Path(path)
    good, bad, _ = read_objects(path, _comparison)
    if bad and not (skip_bad and good):
        complain(path, bad, len(good) + len(bad))
    if not good:
        fields = '{"prompt": ..., "chosen": ..., "rejected": ...}'
        raise FeedbackError(path, f": holds no line of feedback. Write one object a line: {fields}")
    return Preferences(good.values(), bad, good)


def as_preferences(rows: Sequence[Ranking | Comparison | Mapping]) -> list[Ranking | Comparison]:
    """Records as they are, and rows of the field's preference format as a `Comparison`; see `read_preferences`.

    Raises:
        ValueError: names the row, its field and what to do.

    Example:
        >>> as_preferences([{"prompt": "Hi", "chosen": "Hello.", "rejected": "Go away."}])[0].chosen
        'Hello.'

    Chapter 08.
    """
    return [row if isinstance(row, Ranking | Comparison) else _taken(i, row, _comparison) for i, row in enumerate(rows)]


def as_demonstrations(rows: Sequence[Demonstration | Mapping]) -> list[Demonstration]:
    """Records as they are, and rows with a prompt and `completion`, or with `messages`, as a `Demonstration`.

    The prompt, the completion and each message have the forms of a prompt and a reply in `read_preferences`. Of
    `messages` the last is learned, which is the assistant's; numbers beside a message, such as weights, do not count.

    Raises:
        ValueError: names the row, its field and what to do.

    Example:
        >>> as_demonstrations([{"prompt": "Hi", "completion": "Hello."}])[0].response
        'Hello.'

    Chapter 07.
    """
    return [row if isinstance(row, Demonstration) else _taken(i, row, _demonstration) for i, row in enumerate(rows)]


def _taken(number: int, row: object, parse: Callable[[dict], Record]) -> Record:
    if not isinstance(row, Mapping):
        raise ValueError(f"row {number} is {short(row)}; expected a record, or an object with the fields of one")
    try:
        return parse(dict(row))
    except BadLine as error:
        raise ValueError(f"row {number}, {error.field}: {error.problem}. {error.remedy}") from None


# ---- rows ----------------------------------------------------------------------------------------------------


def _demonstration(record: dict) -> Demonstration:
    if record.get("messages") is not None:
        messages = _messages("messages", record["messages"])
        response, prompt = _reply("messages", messages[-1:]), _prompt("messages", messages[:-1])
        used = ["messages"]
    else:
        field, value = given(record)
        for name in (field, "completion"):
            if name not in record:
                remedy = "Each row needs prompt and completion, or messages"
                raise BadLine(name, f"the field is missing; found {short(list(record))}", remedy)
        prompt, in_turns = _stated(field, value)
        response = _answer("completion", record["completion"], prompt, in_turns)
        used = [field, "completion"]
    prompt = after_system(record, prompt)
    refuse_unread(record, used, prompt, (response,))
    return Demonstration(prompt, response)


def _comparison(record: dict) -> Comparison:
    for field in ("chosen", "rejected"):
        if field not in record:
            found = f"found {short(list(record))}" if record else "the object is empty"
            raise BadLine(field, f"the field is missing; {found}", "Each line needs chosen and rejected")
    field, value = given(record)
    if field in record:
        prompt, in_turns = _stated(field, value)
        chosen, rejected = (_answer(name, record[name], prompt, in_turns) for name in ("chosen", "rejected"))
    else:
        prompt, chosen, rejected = _implicit(record)
    if chosen == rejected:
        raise _equal(chosen)
    prompt = after_system(record, prompt)
    refuse_unread(record, [field, "chosen", "rejected"], prompt, (chosen, rejected))
    return Comparison(prompt, chosen, rejected, *_judge(record))


def _judge(record: dict) -> tuple[str, bool]:
    """Who judged, and whether it was simulated; null is the same as no field."""
    rater, simulated = record.get("rater"), record.get("simulated")
    if isinstance(rater, bool) or not (rater is None or isinstance(rater, str | int)):
        raise BadLine("rater", f"got {short(rater)}; expected text or a whole number", "Write who judged, or remove it")
    if not (simulated is None or isinstance(simulated, bool)):
        raise BadLine("simulated", f"got {short(simulated)}; expected true or false", "Write it without quotes")
    return "" if rater is None else str(rater), bool(simulated)


def _equal(reply: object) -> BadLine:
    remedy = "Remove the line: two equal replies say nothing of a preference"
    return BadLine("rejected", f"the same as chosen: {short(reply)}", remedy)


# ---- the prompt and the replies --------------------------------------------------------------------------------


def _stated(field: str, given: object) -> tuple[Conversation, bool]:
    """The prompt of a field, and whether it was a dialogue text."""
    if not isinstance(given, str):
        return _prompt(field, _messages(field, given)), False
    messages = turns(field, given)
    if not messages:
        return _prompt(field, (Message("user", given),)), False
    is_open = messages[-1] == Message("assistant", "")
    return _prompt(field, messages[:-1] if is_open else messages), True


def _answer(field: str, value: object, prompt: Conversation, in_turns: bool) -> str:
    """The reply to a prompt; `in_turns`: the prompt was a dialogue text, so a text is its last turn."""
    if not isinstance(value, str):
        messages = _messages(field, value)
    elif begins_dialogue(value):
        messages = turns(field, value)
    elif in_turns:
        messages = turns(field, f"Human:\n\nAssistant:{value.strip().removeprefix('Assistant:')}")[1:]
    else:
        return value
    return _reply(field, messages[len(prompt) :] if messages[: len(prompt)] == prompt else messages)


def _implicit(record: dict) -> tuple[Conversation, str, str]:
    fields = ("chosen", "rejected")
    texts = {field: record[field] for field in fields if isinstance(record[field], str)}
    read = {f: turns(f, texts[f]) if f in texts else _messages(f, record[f]) for f in fields}
    chosen, rejected = read.values()
    if not chosen and not rejected:
        refuse_another_prompt(record)
        return _cut(*(text.strip() for text in texts.values()))
    for field, messages in read.items():
        if not messages:
            problem = f"got {short(record[field])}, a plain text; the other is a dialogue"
            raise BadLine(field, problem, "Without a prompt, chosen and rejected must be of the same form")
    if chosen == rejected:
        raise _equal(chosen[-1].content)
    prompt = _prompt("prompt", chosen[: _shared(chosen, rejected)])
    return prompt, _reply("chosen", chosen[len(prompt) :]), _reply("rejected", rejected[len(prompt) :])


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
    form = '{"role": "system", "user" or "assistant", "content": "text"}; human is user, gpt is assistant'
    if isinstance(value, Mapping):
        raise BadLine(field, f"got {short(value)}; expected a list", "Put the message into a list: [{...}]")
    if not isinstance(value, list) or not value:
        can_leave = field == "prompt" and value is None
        remedy = "Leave prompt out if chosen and rejected begin with it" if can_leave else f"A message is {form}"
        raise BadLine(field, f"got {short(value)}; expected text or a list of messages", remedy)
    messages = []
    for item in value:
        if not isinstance(item, Mapping) or not {"role", "content"} <= item.keys():
            raise BadLine(field, f"got {short(item)}; expected a message", f"Write {form}")
        try:
            messages.append(as_message(item))
        except ValueError as error:
            raise BadLine(field, str(error), f"A message is {form}") from None
    return tuple(messages)


def _prompt(field: str, messages: tuple[Message, ...]) -> Conversation:
    if not messages or not messages[-1].content.strip() or messages[-1].role != "user":
        got = f"ends with {short(messages[-1].content)} of {messages[-1].role}" if messages else "is empty"
        problem = f"the prompt {got}; expected the user's last message at its end"
        raise BadLine(field, problem, "Add it, or let chosen and rejected begin with it")
    return messages


def _reply(field: str, messages: tuple[Message, ...]) -> str:
    if len(messages) != 1 or messages[0].role != "assistant":
        roles = [message.role for message in messages]
        problem = f"after the prompt come messages of {short(roles)}; expected one of the assistant"
        raise BadLine(field, problem, "Put all earlier turns into the prompt, the same for both, or leave the line out")
    return messages[0].content


# ---- writing -------------------------------------------------------------------------------------------------


def _checked(comparisons: Iterable[Comparison]) -> Iterator[Comparison]:
    """The comparisons, if they can be written and read again."""
    for i, comparison in enumerate(comparisons):
        if not isinstance(comparison, Comparison):
            raise ValueError(f"row {i} is {short(comparison)}; expected a Comparison. write_events keeps other records")
        if not comparison.prompt[-1].content.strip():
            raise ValueError(f"row {i} has an empty prompt; expected a question or request. Leave the row out")
        yield comparison


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
    for comparison in _checked(comparisons):
        replies = {f: [asdict(Message("assistant", getattr(comparison, f)))] for f in ("chosen", "rejected")}
        rows.append({"prompt": _as_lists(comparison.prompt)} | replies | _origin(comparison))
    write_lines(path, map(json.dumps, rows))


def write_unpaired(path: str | Path, comparisons: Sequence[Comparison]) -> None:
    """Write `prompt` / `completion` / `label`: a chosen reply is true, a rejected one false; equal rows once.

    A reply that wins one comparison and loses another appears with both labels: the form cannot say more.
    """
    rows = {}
    for comparison in _checked(comparisons):
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
    for c in _checked(comparisons):
        prompt = [f"{m.role}: {m.content}" for m in c.prompt] if len(c.prompt) > 1 else [c.prompt[0].content]
        cells = ["\n\n".join(prompt), c.chosen, c.rejected, c.rater]
        table.writerow([*map(_defused, cells), str(c.simulated).lower()])
    # The mark tells a spreadsheet that this is UTF-8, in which a lone surrogate can only be an escape.
    text = "\ufeff" + buffer.getvalue()
    write_text_atomic(path, text.encode("utf-8", "backslashreplace").decode("utf-8"))


def _defused(cell: str) -> str:
    return f"'{cell}" if cell.startswith(FORMULA_STARTS) or cell.lstrip().startswith(FORMULA_STARTS) else cell
