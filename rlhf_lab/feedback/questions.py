"""What a person can be asked about replies: seven forms, each with the answers that it takes and the record it makes.

A question knows nothing of screens: its answers count the replies in its own order. Chapter 08.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from numbers import Integral, Real
from typing import Any, ClassVar

from rlhf_lab.feedback.lines import MAX_LINE_BYTES, short
from rlhf_lab.records import (
    Choice,
    Comment,
    Conversation,
    Edit,
    Mark,
    Ranking,
    Rating,
    Record,
    Segment,
    SegmentChoice,
    Skip,
    as_conversation,
)

Answer = Any  # of a form: tiers, a score, a text, spans, an outcome, or None where nothing was answered
BYTES_A_CHARACTER = 12  # at most, in a line of the log: "\ud83d\ude00"
BYTES_AROUND = 2**14  # of a line of the log beside the texts: field names, numbers, study and rater


def _keep(question: object, **fields: object) -> None:
    """Keep fields of a frozen question in the form in which they are documented."""
    for name, value in fields.items():
        object.__setattr__(question, name, value)


def _texts(name: str, values: object) -> tuple[str, ...]:
    if isinstance(values, str) or not isinstance(values, Sequence):
        kind = "a text" if isinstance(values, str) else type(values).__name__
        raise ValueError(f"{name} is {kind}; expected several texts, as a list or a tuple")
    for value in values:
        if not isinstance(value, str):
            raise ValueError(f"{name} holds {short(value)}; expected texts")
    return tuple(values)


def _text(name: str, value: object) -> str:
    return _texts(name, (value,))[0]


def _outcome(answer: Answer) -> int | None:
    if answer is not None and (isinstance(answer, bool) or answer not in (-1, 0, 1)):
        raise ValueError(f"outcome is {short(answer)}; expected 1 (left is better), 0 (a tie) or -1 (right is better)")
    return None if answer is None else int(answer)


def _words_written(name: str, answer: Answer, remedy: str) -> str | None:
    if answer is None:
        return None
    if not _text(name, answer).strip():
        raise ValueError(f"{name} is empty; expected words. {remedy}, or skip the question")
    return answer


class _Form:
    """What the forms share: a prompt, and that it can be skipped.

    Attributes:
        form: its name.
        ask: one sentence that asks for the answer.
        nothing: the answer of who has not answered yet.
    """

    form: ClassVar[str]
    ask: ClassVar[str]
    nothing: ClassVar[Answer] = None
    prompt: Conversation

    def __post_init__(self) -> None:
        _keep(self, prompt=as_conversation(self.prompt))

    @property
    def places(self) -> int:
        """How many things are shown side by side, so that their order on the screen matters."""
        return 1

    def skipped(self, rater: str) -> Record:
        """The record that says: seen, and no judgement passed."""
        return Skip(self.prompt, self.form, getattr(self, "replies", ()), rater)

    def all_bad(self, rater: str) -> Record:
        """The record that says that no reply is acceptable, which only a ranking can.

        Raises:
            ValueError: another form.
        """
        raise ValueError(f"all bad: this question asks for another form; expected rank, got {self.form}")


class _OneReply(_Form):
    """What the forms share that ask about one reply."""

    reply: str

    def __post_init__(self) -> None:
        super().__post_init__()
        _text("reply", self.reply)

    @property
    def replies(self) -> tuple[str, ...]:
        """The reply, as a tuple of one."""
        return (self.reply,)


class _TwoThings(_Form):
    """What the forms share that compare two."""

    @property
    def places(self) -> int:
        """Two."""
        return 2

    def check(self, answer: Answer) -> int | None:
        """The outcome, 1, 0 or -1, of left and right as the question names them.

        Raises:
            ValueError: another answer.
        """
        return _outcome(answer)

    def answer(self, record: Record | None) -> int | None:
        """The answer of which `record` tells; None where it was skipped."""
        return record.outcome if isinstance(record, Choice | SegmentChoice) else None


@dataclass(frozen=True)
class Rank(_Form):
    """Put K replies in order.

    An answer is tiers: tuples of indices into `replies`, the best tier first; a tier of several is a tie. As long as
    a reply has no place the answer is partial and makes no record.

    Raises:
        ValueError: fewer than two replies, or something that is no prompt or no text.

    Example:
        >>> question = Rank("Where is the zoo?", ("In Mill Street.", "Go away."))
        >>> question.record(((0,), (1,)), "you").tiers, question.record(((0,),), "you")
        (((0,), (1,)), None)

    Chapter 08.
    """

    prompt: Conversation
    replies: tuple[str, ...]
    form: ClassVar[str] = "rank"
    ask: ClassVar[str] = "Put the replies in order, the best first."
    nothing: ClassVar[Answer] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        _keep(self, replies=_texts("replies", self.replies))
        if len(self.replies) < 2:
            raise ValueError(f"replies holds {len(self.replies)}; expected at least 2 to rank")

    @property
    def places(self) -> int:
        """How many replies there are."""
        return len(self.replies)

    def check(self, answer: Answer) -> tuple[tuple[int, ...], ...]:
        """The tiers as tuples, each in the order of the indices.

        Raises:
            ValueError: an index that is no reply's, one given twice, or an empty tier.
        """
        listed = isinstance(answer, Sequence) and not isinstance(answer, str)
        if not listed or not all(isinstance(tier, Sequence) and len(tier) for tier in answer):
            raise ValueError(f"tiers is {short(answer)}; expected a tuple of indices for each rank, none of them empty")
        indices = [index for tier in answer for index in tier]
        if not all(isinstance(i, Integral) and not isinstance(i, bool) and i in range(self.places) for i in indices):
            raise ValueError(f"tiers is {short(answer)}; expected indices of replies, 0 to {self.places - 1}")
        if len(set(indices)) < len(indices):
            raise ValueError(f"tiers is {short(answer)}; expected each reply at most once")
        return tuple(tuple(sorted(map(int, tier))) for tier in answer)

    def record(self, answer: Answer, rater: str) -> Ranking | None:
        """The ranking, None as long as a reply has no place."""
        tiers = self.check(answer)
        whole = sum(map(len, tiers)) == self.places
        return Ranking(self.prompt, self.replies, tiers, "done", rater) if whole else None

    def skipped(self, rater: str) -> Ranking:
        """A ranking that says that it was skipped."""
        return Ranking(self.prompt, self.replies, (), "skipped", rater)

    def all_bad(self, rater: str) -> Ranking:
        """A ranking that says that none of the replies is acceptable."""
        return Ranking(self.prompt, self.replies, (), "all_bad", rater)

    def answer(self, record: Record | None) -> tuple[tuple[int, ...], ...]:
        """The tiers of which `record` tells."""
        return record.tiers if isinstance(record, Ranking) else ()


@dataclass(frozen=True)
class Rate(_OneReply):
    """Give one reply a number from 1 to `high`; an answer is a whole number.

    Raises:
        ValueError: a scale that does not end at 2 to 10, or something that is no prompt or no text.

    Example:
        >>> Rate("Where is the zoo?", "In Mill Street.").record(4, "you").score
        4.0

    Chapter 08.
    """

    prompt: Conversation
    reply: str
    high: int = 5
    form: ClassVar[str] = "rate"
    ask: ClassVar[str] = "How good is the reply?"

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.high, bool) or not isinstance(self.high, int) or not 2 <= self.high <= 10:
            raise ValueError(f"high is {short(self.high)}; expected a whole number from 2 to 10, the best score")

    def check(self, answer: Answer) -> int | None:
        """The score as a whole number.

        Raises:
            ValueError: no whole number of the scale.
        """
        if answer is None:
            return None
        number = isinstance(answer, Real) and not isinstance(answer, bool)
        if not (number and answer in range(1, self.high + 1)):
            raise ValueError(f"score is {short(answer)}; expected a whole number from 1 to {self.high}")
        return int(answer)

    def record(self, answer: Answer, rater: str) -> Rating | None:
        """The rating, None without a score."""
        score = self.check(answer)
        return None if score is None else Rating(self.prompt, self.reply, score, 1, self.high, rater)

    def answer(self, record: Record | None) -> int | None:
        """The score of which `record` tells."""
        return self.check(record.score) if isinstance(record, Rating) else None


@dataclass(frozen=True)
class EditReply(_OneReply):
    """Write a reply as it should have been; an answer is the whole text. The reply's own text says: nothing to change.

    Example:
        >>> EditReply("Where is the zoo?", "In Mill St.").record("In Mill Street.", "you").edited
        'In Mill Street.'

    Chapter 08.
    """

    prompt: Conversation
    reply: str
    form: ClassVar[str] = "edit"
    ask: ClassVar[str] = "Change the reply into a better one."

    def check(self, answer: Answer) -> str | None:
        """The text as it is.

        Raises:
            ValueError: no text, or one without words.
        """
        return _words_written("the edited reply", answer, "Write how you would reply")

    def record(self, answer: Answer, rater: str) -> Edit | None:
        """The edit, None without a text."""
        text = self.check(answer)
        return None if text is None else Edit(self.prompt, self.reply, text, rater)

    def answer(self, record: Record | None) -> str | None:
        """The text of which `record` tells."""
        return record.edited if isinstance(record, Edit) else None


@dataclass(frozen=True)
class MarkWords(_OneReply):
    """Mark the wrong words of a reply; an answer is spans (start, end) in characters. None of them: nothing is wrong.

    Example:
        >>> MarkWords("Where is the zoo?", "In Mill Street.").record([(3, 7)], "you").spans
        ((3, 7),)

    Chapter 08.
    """

    prompt: Conversation
    reply: str
    form: ClassVar[str] = "mark"
    ask: ClassVar[str] = "Mark the words that are wrong."

    def check(self, answer: Answer) -> tuple[tuple[int, int], ...] | None:
        """The spans in order; those that overlap become one.

        Raises:
            ValueError: spans that are empty, turned around or outside of the reply.
        """
        if answer is None:
            return None
        expected = f"expected (start, end) in characters, within 0 to {len(self.reply)}, start before end"
        if not isinstance(answer, Sequence) or not all(isinstance(s, Sequence) and len(s) == 2 for s in answer):
            raise ValueError(f"spans is {short(answer)}; {expected}")
        if not all(isinstance(end, Integral) and not isinstance(end, bool) for span in answer for end in span):
            raise ValueError(f"spans is {short(answer)}; {expected}")
        if not all(0 <= start < end <= len(self.reply) for start, end in answer):
            raise ValueError(f"spans is {short(answer)}; {expected}")
        spans: list[tuple[int, int]] = []
        for start, end in sorted((int(start), int(end)) for start, end in answer):
            if spans and start < spans[-1][1]:
                spans[-1] = (spans[-1][0], max(end, spans[-1][1]))
            else:
                spans.append((start, end))
        return tuple(spans)

    def record(self, answer: Answer, rater: str) -> Mark | None:
        """The marks, None without an answer."""
        spans = self.check(answer)
        return None if spans is None else Mark(self.prompt, self.reply, spans, rater)

    def answer(self, record: Record | None) -> tuple[tuple[int, int], ...] | None:
        """The spans of which `record` tells."""
        return record.spans if isinstance(record, Mark) else None


@dataclass(frozen=True)
class CommentOn(_OneReply):
    """Say in words what is good or bad about a reply; an answer is a text.

    Example:
        >>> CommentOn("Where is the zoo?", "Go away.").record("Not polite.", "you").text
        'Not polite.'

    Chapter 08.
    """

    prompt: Conversation
    reply: str
    form: ClassVar[str] = "comment"
    ask: ClassVar[str] = "Say what is good or bad about the reply."

    def check(self, answer: Answer) -> str | None:
        """The text as it is.

        Raises:
            ValueError: no text, or one without words.
        """
        return _words_written("the comment", answer, "Write one")

    def record(self, answer: Answer, rater: str) -> Comment | None:
        """The comment, None without a text."""
        text = self.check(answer)
        return None if text is None else Comment(self.prompt, self.reply, text, rater)

    def answer(self, record: Record | None) -> str | None:
        """The text of which `record` tells."""
        return record.text if isinstance(record, Comment) else None


@dataclass(frozen=True)
class Compare(_TwoThings):
    """Which of two replies is better, blind; an answer is 1 (left), 0 (a tie) or -1 (right).

    Attributes:
        left_source, right_source: who wrote them; it goes into the record and is never shown.

    Example:
        >>> Compare("Where is the zoo?", "In Mill Street.", "Go away.", "sft", "base").record(1, "you").left_source
        'sft'

    Chapter 08.
    """

    prompt: Conversation
    left: str
    right: str
    left_source: str = ""
    right_source: str = ""
    form: ClassVar[str] = "compare"
    ask: ClassVar[str] = "Which reply is better?"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("left", "right", "left_source", "right_source"):
            _text(name, getattr(self, name))

    @property
    def replies(self) -> tuple[str, ...]:
        """Left and right."""
        return (self.left, self.right)

    def record(self, answer: Answer, rater: str) -> Choice | None:
        """The choice, None without an outcome."""
        outcome = self.check(answer)
        sources = (self.left_source, self.right_source)
        return None if outcome is None else Choice(self.prompt, self.left, self.right, outcome, *sources, rater)


@dataclass(frozen=True)
class CompareSegments(_TwoThings):
    """Which of two pieces of behaviour is better; an answer is 1 (left), 0 (a tie) or -1 (right).

    Example:
        >>> short = Segment("CartPole-v1", ((0.0,), (0.1,)), ((1,),))
        >>> CompareSegments("Which one balances?", short, short).record(0, "you").outcome
        0

    Chapter 08.
    """

    prompt: Conversation
    left: Segment
    right: Segment
    form: ClassVar[str] = "segments"
    ask: ClassVar[str] = "Which of the two is better?"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("left", "right"):
            if not isinstance(getattr(self, name), Segment):
                raise ValueError(f"{name} is {short(getattr(self, name))}; expected a Segment")

    @property
    def replies(self) -> tuple[str, ...]:
        """None: segments are no texts."""
        return ()

    def record(self, answer: Answer, rater: str) -> SegmentChoice | None:
        """The choice, None without an outcome."""
        outcome = self.check(answer)
        return None if outcome is None else SegmentChoice(self.prompt, self.left, self.right, outcome, rater)


Question = Rank | Rate | EditReply | MarkWords | CommentOn | Compare | CompareSegments


def as_question(item: object) -> Question:
    """A question as it is; a pair (prompt, replies) as a `Rank`.

    Raises:
        ValueError: something else, or a question whose judgement would be too long for a line of the event log.

    Example:
        >>> as_question(("Where is the zoo?", ["In Mill Street.", "Go away."])).form
        'rank'
    """
    if not isinstance(item, Question):
        if isinstance(item, str) or not isinstance(item, Sequence) or len(item) != 2:
            raise ValueError(f"got {short(item)}; expected a question such as Rank(prompt, replies), or that pair")
        item = Rank(*item)
    refuse_too_long(item)
    return item


def refuse_too_long(question: Question, answer: str = "") -> None:
    """Refuse what would not fit into one line of the event log.

    Raises:
        ValueError: the texts take too many bytes.
    """
    texts = [answer, *(message.content for message in question.prompt), *question.replies]
    if isinstance(question, Compare):
        texts += [question.left_source, question.right_source]
    if isinstance(question, CompareSegments):
        rows = [(piece.environment, piece.observations, piece.actions) for piece in (question.left, question.right)]
        size = len(json.dumps(rows)) + sum(len(json.dumps(text)) for text in texts)
    elif sum(map(len, texts)) * BYTES_A_CHARACTER + BYTES_AROUND < MAX_LINE_BYTES:
        return
    else:
        size = sum(len(json.dumps(text)) for text in texts)
    if size + BYTES_AROUND >= MAX_LINE_BYTES:
        raise ValueError(f"a judgement of it takes {size} bytes; a line may have {MAX_LINE_BYTES}. Shorten the texts")


def question_ids(questions: Sequence[Question]) -> list[str]:
    """An id for each question: a hash of form, prompt and what is judged, and how many equal ones stand before it.

    Equal questions get different ids, the same in each process.

    Example:
        >>> ids = question_ids([Rate("Hi", "Hello!"), Rate("Hi", "Hello!"), CommentOn("Hi", "Hello!")])
        >>> [name[-2:] for name in ids], ids[0][:-2] == ids[1][:-2] != ids[2][:-2]
        (['-1', '-2', '-1'], True)
    """
    ids: list[str] = []
    met: dict[str, int] = {}
    for question in questions:
        stem = question_stem(question)
        met[stem] = met.get(stem, 0) + 1
        ids.append(f"{stem}-{met[stem]}")
    return ids


def _content(question: Question) -> tuple[Any, ...]:
    """What makes two questions equal: who wrote two replies does not, for it is not shown."""
    things: object = question.replies
    if isinstance(question, CompareSegments):
        things = (question.left, question.right)
    return question.form, question.prompt, things, question.high if isinstance(question, Rate) else 0


def question_stem(question: Question) -> str:
    """The part of the id that equal questions share."""
    form, prompt, things, high = _content(question)
    if isinstance(question, CompareSegments):
        things = [asdict(question.left), asdict(question.right)]
    text = json.dumps([form, [(message.role, message.content) for message in prompt], things, high])
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:16]


def answers(record: Record | None, question: Question) -> bool:
    """Whether a record is an answer to a question, or says that it was skipped.

    Example:
        >>> answers(Comment(as_conversation("Hi"), "Hello!", "Short."), CommentOn("Hi", "Hello!"))
        True
    """
    if isinstance(record, Skip):
        return (record.form, record.prompt, record.replies) == (question.form, question.prompt, question.replies)
    other = asked(record)
    return other is not None and _content(other) == _content(question)


def asked(record: Record | None) -> Question | None:
    """The question to which a record is an answer; None where no form asks for it.

    Example:
        >>> asked(Rating(as_conversation("Hi"), "Hello!", 4)).form
        'rate'
    """
    match record:
        case Ranking():
            return Rank(record.prompt, record.replies)
        case Rating():
            on_scale = record.low == 1 and record.high in range(2, 11)
            return Rate(record.prompt, record.reply, int(record.high)) if on_scale else None
        case Edit():
            return EditReply(record.prompt, record.reply)
        case Mark():
            return MarkWords(record.prompt, record.reply)
        case Comment():
            return CommentOn(record.prompt, record.reply)
        case Choice():
            sources = (record.left_source, record.right_source)
            return Compare(record.prompt, record.left, record.right, *sources)
        case SegmentChoice():
            return CompareSegments(record.prompt, record.left, record.right)
        case Skip():
            return _skipped_question(record)
    return None


def _skipped_question(record: Skip) -> Question | None:
    one = {form.form: form for form in (EditReply, MarkWords, CommentOn, Rate)}
    if record.form in one and len(record.replies) == 1:
        return one[record.form](record.prompt, *record.replies)
    return Compare(record.prompt, *record.replies) if record.form == "compare" and len(record.replies) == 2 else None
