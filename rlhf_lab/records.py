"""Records of feedback: frozen, validated, and the same whether a person or a simulated rater gave it.

A prompt is a `Conversation`: messages that end with the user's. What is simulated says so. A record says what was
judged; when, in what order it was shown and how long it took stand in the `Event` around it.
"""

import math
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass
from numbers import Integral, Real

ROLES = ("system", "user", "assistant")
STATUSES = ("done", "skipped", "all_bad")
# Texts beside a message that say where it comes from, and nothing that a model should read.
MESSAGE_NOTES = {"id", "message_id", "name", "model", "date", "timestamp", "created_at", "lang", "language", "source"}


@dataclass(frozen=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: "system", "user" or "assistant".
        content: the text as written.
    """

    role: str
    content: str

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ValueError(f"role is {self.role!r:.60}; expected one of {ROLES}")
        _check_text("content", self.content)


Conversation = tuple[Message, ...]
PromptLike = str | Sequence[Message | Mapping]  # what `as_conversation` takes: a text is one user message


def as_conversation(prompt: str | Sequence[Message | Mapping]) -> Conversation:
    """A prompt as messages that end with the user's.

    Args:
        prompt: a text, which is one user message, or messages, each as in `as_message`.

    Raises:
        ValueError: no messages, something that is not a message, or a last message that is not the user's.

    Example:
        >>> as_conversation("Where is the zoo?")
        (Message(role='user', content='Where is the zoo?'),)

    Chapter 08.
    """
    if isinstance(prompt, str):
        return (Message("user", prompt),)
    if not isinstance(prompt, Sequence) or not prompt:
        raise ValueError(f"prompt is {prompt!r:.80}; expected a text or a non-empty list of messages")
    messages = tuple(map(as_message, prompt))
    if messages[-1].role != "user":
        raise ValueError(f"prompt ends with a message of {messages[-1].role!r}; expected the user's last")
    return messages


def as_message(item: object) -> Message:
    """A `Message`, or a mapping with "role" and "content", as a `Message`.

    The content is a text, or a list of parts {"type": "text", "text": ...}; their texts are joined with nothing
    between them. Numbers, true, false, null, empty values and the fields of `MESSAGE_NOTES` may stand beside it.

    Raises:
        ValueError: no message, or one that holds more than text, such as a tool call or an image.

    Example:
        >>> as_message({"role": "user", "content": [{"type": "text", "text": "Where is the zoo?"}]})
        Message(role='user', content='Where is the zoo?')

    Chapter 08.
    """
    if isinstance(item, Message):
        return item
    if not isinstance(item, Mapping) or not {"role", "content"} <= item.keys():
        raise ValueError(f"message is {item!r:.80}; expected an object with 'role' and 'content'")
    _refuse_more_than(item, {"role", "content"} | MESSAGE_NOTES)
    content = item["content"]
    return Message(item["role"], "".join(map(_part, content)) if isinstance(content, list) and content else content)


def _part(part: object) -> str:
    """The text of one part of a message."""
    if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
        raise ValueError(f"content holds {part!r:.80}; expected text, or parts {{'type': 'text', 'text': ...}}")
    _refuse_more_than(part, {"type", "text"})
    return part["text"]


def _refuse_more_than(item: Mapping, read: set[str]) -> None:
    for name, value in item.items():
        if name not in read and not says_nothing(value):
            problem = f"a message holds {name}: {value!r:.60}; expected its role and a text alone"
            raise ValueError(f"{problem}. Write it into the content, or remove it")


def says_nothing(value: object) -> bool:
    """Whether a field may be passed over unread: null, a number, true or false, or empty."""
    blank = isinstance(value, str) and value.strip() in ("", "[]", "{}", "null", "None")
    return blank or value is None or isinstance(value, Real) or (isinstance(value, Sized) and not len(value))


def _check_text(name: str, value: str) -> None:
    """Any text will do, also one with half of a surrogate pair: a model or a keyboard may have produced it."""
    if not isinstance(value, str):
        raise ValueError(f"{name} is {type(value).__name__}; expected text")


def _number(name: str, value: float) -> float:
    try:
        if isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    except OverflowError:  # a whole number beyond all floats
        pass
    raise ValueError(f"{name} is {value!r:.60}; expected a number, finite")


def _indices(name: str, values: Sequence[int]) -> tuple[int, ...]:
    """Indices as int; those of numpy are whole numbers too, but true and 1.0 are not."""
    if not isinstance(values, Sequence) or not all(isinstance(i, Integral) and not isinstance(i, bool) for i in values):
        raise ValueError(f"{name} holds {values!r:.60}; expected indices, which are whole numbers")
    return tuple(map(int, values))


def _set(record: object, **fields: object) -> None:
    """Keep fields of a frozen record in the form in which they are documented."""
    for name, value in fields.items():
        object.__setattr__(record, name, value)


def _order(name: str, values: Sequence[int], count: int) -> tuple[int, ...]:
    order = _indices(name, values)
    if sorted(order) != list(range(count)):
        raise ValueError(f"{name} is {order}; expected a permutation of {list(range(count))}")
    return order


def _check_outcome(outcome: int) -> int:
    if isinstance(outcome, bool) or not isinstance(outcome, Integral) or outcome not in (-1, 0, 1):
        raise ValueError(f"outcome is {outcome!r:.60}; expected 1 (left is better), 0 (a tie) or -1 (right is better)")
    return int(outcome)


def _check_common(record: "Record") -> None:
    """A text is accepted wherever a conversation is; who judged is a text, for an event log holds nothing else."""
    _set(record, prompt=as_conversation(record.prompt))
    rater, simulated = getattr(record, "rater", ""), getattr(record, "simulated", False)
    if not isinstance(rater, str):
        raise ValueError(f"rater is {rater!r:.60}; expected text. Give the name of who judged, or leave rater out")
    if not isinstance(simulated, bool):
        raise ValueError(f"simulated is {simulated!r:.60}; expected True or False")


@dataclass(frozen=True)
class Demonstration:
    """A prompt and a reply to imitate."""

    prompt: Conversation
    response: str

    def __post_init__(self) -> None:
        _check_common(self)
        _check_text("response", self.response)


@dataclass(frozen=True)
class Comparison:
    """Of two replies to one prompt, `chosen` was preferred to `rejected`."""

    prompt: Conversation
    chosen: str
    rejected: str
    rater: str = ""
    simulated: bool = False

    def __post_init__(self) -> None:
        _check_common(self)
        _check_text("chosen", self.chosen)
        _check_text("rejected", self.rejected)
        if self.chosen == self.rejected:
            raise ValueError(
                f"chosen and rejected are both {self.chosen!r:.60}; a comparison needs two different replies"
            )


@dataclass(frozen=True)
class Ranking:
    """K replies to one prompt in the order of a rater.

    Attributes:
        prompt: the conversation.
        replies: K texts, at least 2; equal ones form no pair.
        tiers: indices into `replies`, best tier first; a tier of several is a tie. Every reply once when
            done, none when skipped or all bad.
        status: "done", "skipped" or "all_bad".
        rater: who.
        simulated: True where no person was asked.

    Raises:
        ValueError: a field that does not fit this description.

    Chapter 08.
    """

    prompt: Conversation
    replies: tuple[str, ...]
    tiers: tuple[tuple[int, ...], ...]
    status: str = "done"
    rater: str = ""
    simulated: bool = False

    def __post_init__(self) -> None:
        _check_common(self)
        for name in ("replies", "tiers"):
            if not isinstance(getattr(self, name), tuple):
                raise ValueError(f"{name} is {type(getattr(self, name)).__name__}; expected a tuple")
        for reply in self.replies:
            _check_text("reply", reply)
        if len(self.replies) < 2:
            raise ValueError(f"replies holds {len(self.replies)}; expected at least 2 to rank")
        if self.status not in STATUSES:
            raise ValueError(f"status is {self.status!r}; expected one of {STATUSES}")
        _set(self, tiers=tuple(_indices("tiers", tier) for tier in self.tiers))
        everyone = list(range(len(self.replies)))
        ranked = sorted(index for tier in self.tiers for index in tier)
        expected = everyone if self.status == "done" else []
        if ranked != expected or not all(self.tiers):
            raise ValueError(f"tiers is {self.tiers}; expected {expected} once each when {self.status}, no empty tier")

    def pairs(self) -> list[tuple[int, int]]:
        """(better, worse) for every two different replies in different tiers, as indices into `replies`.

        Two replies with the same text form no pair: to prefer one of them to the other means nothing.

        Example:
            >>> Ranking(as_conversation("Hi"), ("a", "b", "c"), ((2,), (0, 1))).pairs()
            [(2, 0), (2, 1)]
        """
        return [
            (better, worse)
            for i, tier in enumerate(self.tiers)
            for lower in self.tiers[i + 1 :]
            for better in tier
            for worse in lower
            if self.replies[better] != self.replies[worse]
        ]


@dataclass(frozen=True)
class Rating:
    """A number for one reply, on a scale from `low` to `high`."""

    prompt: Conversation
    reply: str
    score: float
    low: float = 1.0
    high: float = 5.0
    rater: str = ""
    simulated: bool = False

    def __post_init__(self) -> None:
        _check_common(self)
        _check_text("reply", self.reply)
        _set(self, **{name: _number(name, getattr(self, name)) for name in ("score", "low", "high")})
        if not (self.low < self.high and math.isfinite(self.high - self.low)):
            raise ValueError(f"the scale goes from {self.low} to {self.high}; expected low < high, both finite")
        if not self.low <= self.score <= self.high:
            raise ValueError(f"score is {self.score}; expected a number from {self.low} to {self.high}")


@dataclass(frozen=True)
class Edit:
    """A reply and how a rater would have written it."""

    prompt: Conversation
    reply: str
    edited: str
    rater: str = ""
    simulated: bool = False

    def __post_init__(self) -> None:
        _check_common(self)
        _check_text("reply", self.reply)
        _check_text("edited", self.edited)


@dataclass(frozen=True)
class Comment:
    """What a rater says of a reply in words."""

    prompt: Conversation
    reply: str
    text: str
    rater: str = ""
    simulated: bool = False

    def __post_init__(self) -> None:
        _check_common(self)
        _check_text("reply", self.reply)
        _check_text("text", self.text)


@dataclass(frozen=True)
class Mark:
    """The words of a reply that are wrong.

    Attributes:
        spans: (start, end) in characters of the reply, end excluded; in order, apart from each other. None of them
            says that the rater found nothing wrong.
    """

    prompt: Conversation
    reply: str
    spans: tuple[tuple[int, int], ...]
    rater: str = ""
    simulated: bool = False

    def __post_init__(self) -> None:
        _check_common(self)
        _check_text("reply", self.reply)
        if not isinstance(self.spans, Sequence) or not all(isinstance(s, Sequence) and len(s) == 2 for s in self.spans):
            raise ValueError(f"spans is {self.spans!r:.60}; expected pairs (start, end)")
        _set(self, spans=tuple(_indices("spans", span) for span in self.spans))
        ends = [end for span in self.spans for end in span]
        inside = all(0 <= end <= len(self.reply) for end in ends)
        if not inside or ends != sorted(ends) or any(start == end for start, end in self.spans):
            size = len(self.reply)
            raise ValueError(f"spans is {self.spans!r:.60}; expected non-empty ones in order within 0 to {size}")


@dataclass(frozen=True)
class Choice:
    """Which of two replies is better, with ties; of two models compared blind, it says afterwards who wrote what.

    Attributes:
        outcome: 1 left is better, 0 a tie, -1 right is better. Left and right are those of the record; what stood on
            the left of the screen is in `Event.shown`.
        left_source, right_source: who wrote the replies; not shown to the rater.
    """

    prompt: Conversation
    left: str
    right: str
    outcome: int
    left_source: str = ""
    right_source: str = ""
    rater: str = ""
    simulated: bool = False

    def __post_init__(self) -> None:
        _check_common(self)
        for name in ("left", "right", "left_source", "right_source"):
            _check_text(name, getattr(self, name))
        _set(self, outcome=_check_outcome(self.outcome))


@dataclass(frozen=True)
class Segment:
    """A short piece of an episode of a control task, without its rewards.

    Attributes:
        environment: id of the gymnasium environment.
        observations: T + 1 vectors, each a tuple of numbers; the last is what was seen after the last action.
        actions: T vectors, each a tuple of numbers; a discrete action is a tuple of one.
    """

    environment: str
    observations: tuple[tuple[float, ...], ...]
    actions: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        _check_text("environment", self.environment)
        for name in ("observations", "actions"):
            rows = getattr(self, name)
            if (
                not isinstance(rows, Sequence)
                or isinstance(rows, str)
                or not all(isinstance(r, Sequence) for r in rows)
            ):
                raise ValueError(f"{name} is {rows!r:.60}; expected vectors, each a tuple of numbers")
            _set(self, **{name: tuple(tuple(_number(name, x) for x in row) for row in rows)})
            if len(set(map(len, getattr(self, name)))) > 1:
                raise ValueError(f"{name} holds vectors of different lengths; expected one length")
        if len(self.actions) < 1 or len(self.observations) != len(self.actions) + 1:
            got = f"{len(self.observations)} observations and {len(self.actions)} actions"
            raise ValueError(f"got {got}; expected one observation more than actions, and at least one action")


@dataclass(frozen=True)
class SegmentChoice:
    """Which of two pieces of behaviour is better. The prompt is what was asked, for example "Which one balances?"."""

    prompt: Conversation
    left: Segment
    right: Segment
    outcome: int
    rater: str = ""
    simulated: bool = False

    def __post_init__(self) -> None:
        _check_common(self)
        for name in ("left", "right"):
            if not isinstance(getattr(self, name), Segment):
                raise ValueError(f"{name} is {getattr(self, name)!r:.60}; expected a Segment")
        _set(self, outcome=_check_outcome(self.outcome))


@dataclass(frozen=True)
class Skip:
    """A question that was shown and on which no judgement was passed; a skipped ranking is a `Ranking` that says so.

    Attributes:
        form: what was asked for: "rate", "edit", "mark", "comment", "compare" or "segments".
        replies: those that were shown; none for segments.
    """

    prompt: Conversation
    form: str
    replies: tuple[str, ...] = ()
    rater: str = ""
    simulated: bool = False

    def __post_init__(self) -> None:
        _check_common(self)
        _check_text("form", self.form)
        if not isinstance(self.replies, Sequence) or isinstance(self.replies, str):
            raise ValueError(f"replies is {self.replies!r:.60}; expected a tuple of texts")
        _set(self, replies=tuple(self.replies))
        for reply in self.replies:
            _check_text("reply", reply)


Judgement = Choice | Comment | Comparison | Edit | Mark | Ranking | Rating | SegmentChoice | Skip
Record = Judgement | Demonstration


@dataclass(frozen=True)
class Event:
    """One line of the log of feedback: somebody judged, or took a judgement back.

    Nothing in a log is changed or erased. An event with a record and a `target` replaces the event `target`; one
    without a record takes it back. Which judgements count follows from the set of events alone, not from their order
    (`feedback.events.standing`), so logs of several people can be put together.

    Attributes:
        id: its own, different from all others.
        record: what was judged; None where `target` is taken back.
        target: id of the event that is replaced or taken back; "" where there is none.
        time: seconds since 1970 by the rater's clock, which may be wrong; the log keeps its own order.
        duration: seconds from the first view of the question to the judgement; 0 where it was not measured.
        shown: the order on the screen as indices into the replies (0 left, 1 right for two); () where it is the
            record's own.
        study: of which session it is a part.
        question: its question in the study, the same when it is asked again after a restart.
        widget: the version of what showed it; "" where it was no widget.

    Chapter 08.
    """

    id: str
    record: Record | None
    target: str = ""
    time: float = 0.0
    duration: float = 0.0
    shown: tuple[int, ...] = ()
    study: str = ""
    question: str = ""
    widget: str = ""

    def __post_init__(self) -> None:
        for name in ("id", "target", "study", "question", "widget"):
            _check_text(name, getattr(self, name))
        if not self.id or self.id == self.target:
            raise ValueError(f"id is {self.id!r:.60}; expected a text that no other event has")
        if not isinstance(self.record, Record | None):
            raise ValueError(f"record is {self.record!r:.60}; expected a record, or None to take `target` back")
        if self.record is None and not self.target:
            raise ValueError("an event without a record needs the target that it takes back")
        _set(self, time=_number("time", self.time), duration=_number("duration", self.duration))
        if self.duration < 0:
            raise ValueError(f"duration is {self.duration}; expected seconds, at least 0")
        nothing = isinstance(self.shown, Sequence) and not len(self.shown)
        _set(self, shown=() if nothing else _order("shown", self.shown, _places(self.record)))

    @property
    def rater(self) -> str:
        """Who judged; "" where the record does not say, and where there is none."""
        return getattr(self.record, "rater", "")

    @property
    def simulated(self) -> bool:
        """Whether the record says that no person was asked."""
        return getattr(self.record, "simulated", False)


def _places(record: Record | None) -> int:
    """How many things a record shows side by side, so that their order matters."""
    if isinstance(record, Ranking | Skip):
        return len(record.replies)
    return 2 if isinstance(record, Choice | Comparison | SegmentChoice) else 1
