"""What a reader learns after he has judged: what others said, and how reliable he is himself.

Before a question is judged nothing is told of it, for what others said would be copied. Chapter 08.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import NamedTuple

from rlhf_lab.classroom.widgets.ordering import letter
from rlhf_lab.classroom.widgets.session import FeedbackSession
from rlhf_lab.feedback.questions import answers
from rlhf_lab.maths.intervals import outcome_interval
from rlhf_lab.records import Choice, Comment, Edit, Event, Mark, Ranking, Rating, Record, SegmentChoice

MOST_OTHERS = 5  # raters of whom is told
LONGEST_QUOTE = 200  # characters
ENOUGH = 5  # judgements before anything is said of a position bias
MOST_KNOWN = 100_000  # events of which the facts are kept


def afterwards(session: FeedbackSession) -> list[str]:
    """Sentences about the question on the screen and about the reader; none before it is judged.

    Example:
        >>> question, theirs = ("Hi", ("Hello!", "Go.")), Ranking("Hi", ("Hello!", "Go."), ((0,), (1,)), rater="Ann")
        >>> session = FeedbackSession([question], recorded=[theirs])
        >>> afterwards(session)
        []
        >>> session.rank([[0], [1]])
        >>> afterwards(session)
        ['Ann put them in another order: B, then A. You agree on 0 of 1 pair.']
    """
    if session.status not in ("done", "all_bad"):
        return []
    own = session.events()
    return [*_others(session), *own_agreement(own), *position_bias(own)]


# ---- what others said --------------------------------------------------------------------------------------


def _others(session: FeedbackSession) -> list[str]:
    mine = session.judgement
    found = [record for record in session.recorded if answers(record, session.question)]
    told = [sentence for record in found[:MOST_OTHERS] if (sentence := _told(record, mine, session.shown))]
    more = len(found) - MOST_OTHERS
    return [*told, f"{more} more judged it."] if more > 0 else told


def _told(record: Record, mine: Record | None, shown: Sequence[int]) -> str:
    """What somebody else said of the question, in the names that things have on the screen."""
    who = getattr(record, "rater", "") or "The recorded rater"
    who += " (simulated)" if getattr(record, "simulated", False) else ""
    match record:
        case Ranking():
            return f"{who} {_ranking(record, mine, shown)}"
        case Rating():
            return f"{who} gave {record.score:g} of {record.high:g}."
        case Edit():
            return (
                f"{who} left it as it is." if record.edited == record.reply else f"{who} wrote: {_quote(record.edited)}"
            )
        case Comment():
            return f"{who} said: {_quote(record.text)}"
        case Mark():
            words = ", ".join(_quote(record.reply[start:end]) for start, end in record.spans)
            return f"{who} marked {words or 'nothing'}."
        case Choice() | SegmentChoice():
            outcome = -record.outcome if tuple(shown) == (1, 0) else record.outcome
            return f"{who} found {('them equal', 'the left one better', 'the right one better')[outcome]}."
    return ""


def _ranking(record: Ranking, mine: Record | None, shown: Sequence[int]) -> str:
    if record.status != "done":
        return "skipped it." if record.status == "skipped" else "found all of them bad."
    names = {reply: letter(position) for position, reply in enumerate(shown)}
    order = ", then ".join(" = ".join(sorted(names[i] for i in tier)) for tier in record.tiers)
    if not isinstance(mine, Ranking) or mine.status != "done":
        return f"put them in this order: {order}."
    same, count = agreeing_pairs(_verdicts(mine), _verdicts(record))
    which = "the same" if mine.tiers == record.tiers else "another"
    return f"put them in {which} order: {order}. You agree on {same} of {count} pair{'' if count == 1 else 's'}."


def _quote(text: str) -> str:
    words = " ".join(text.split())
    return f"“{words if len(words) <= LONGEST_QUOTE else words[: LONGEST_QUOTE - 1] + '…'}”"


# ---- how reliable the reader is ----------------------------------------------------------------------------

Verdicts = dict[tuple[object, object], int]  # for two things: 1 the first is better, 0 a tie, -1 the second


def _verdicts(record: Record) -> Verdicts:
    """What a record says of every two different things that it compares; a rating has itself for a verdict."""
    if isinstance(record, Ranking):
        ranks = {i: rank for rank, tier in enumerate(record.tiers) for i in tier}
        return {
            (record.replies[i], record.replies[j]): _sign(ranks[j] - ranks[i])
            for i in ranks
            for j in ranks
            if record.replies[i] != record.replies[j]
        }
    if isinstance(record, Choice | SegmentChoice) and record.left != record.right:
        return {(record.left, record.right): record.outcome, (record.right, record.left): -record.outcome}
    return {(record.reply, "score"): int(record.score)} if isinstance(record, Rating) else {}


def _sign(number: int) -> int:
    return (number > 0) - (number < 0)


def agreeing_pairs(one: Verdicts, other: Verdicts) -> tuple[int, int]:
    """(on how many two agree, how many both judged); each two things count once.

    >>> agreeing_pairs({("a", "b"): 1, ("b", "a"): -1}, {("a", "b"): 0, ("b", "a"): 0})
    (0, 1)
    """
    both = {frozenset(pair): pair for pair in one if pair in other}.values()
    return sum(one[pair] == other[pair] for pair in both), len(both)


def own_agreement(events: Iterable[Event]) -> list[str]:
    """How often a reader who was asked the same again said the same, with the things in the same order and in another.

    Args:
        events: standing judgements of one reader.
    """
    groups: dict[int, list[Event]] = defaultdict(list)
    for event in events:
        if (same_things := _facts(event).things) is not None:
            groups[same_things].append(event)
    counts = {True: [0, 0], False: [0, 0]}
    for group in groups.values():
        for one, other in combinations(group, 2):
            if one.question != other.question or not one.question:
                same, count = agreeing_pairs(_verdicts(one.record), _verdicts(other.record))  # type: ignore[arg-type]
                as_before = _on_screen(one) == _on_screen(other)
                counts[as_before] = [counts[as_before][0] + same, counts[as_before][1] + count]
    told = [
        f"{same} of {count} alike in {which} order"
        for which, (same, count) in (("the same", counts[True]), ("another", counts[False]))
        if count
    ]
    return [f"Asked again, you decided {' and '.join(told)}."] if told else []


class _Facts(NamedTuple):
    """What is told of a judgement again and again: which things it is about, as a hash, and `first_wins`."""

    things: int | None
    first_wins: float | None


_KNOWN: dict[str, _Facts] = {}  # by the id of an event, which no other has: a view asks after each click


def _facts(event: Event) -> _Facts:
    if event.id not in _KNOWN:
        if len(_KNOWN) > MOST_KNOWN:
            _KNOWN.clear()
        things, prompt = _things(event.record), getattr(event.record, "prompt", None)
        same = hash((type(event.record), prompt, frozenset(things))) if things else None
        _KNOWN[event.id] = _Facts(same, first_wins(event))
    return _KNOWN[event.id]


def _things(record: Record | None) -> tuple[object, ...]:
    """What a record compares or rates."""
    match record:
        case Ranking(status="done"):
            return record.replies
        case Choice() | SegmentChoice():
            return (record.left, record.right)
        case Rating():
            return (record.reply, record.high)
    return ()


def _on_screen(event: Event) -> tuple[object, ...]:
    things = _things(event.record)
    return tuple(things[i] for i in event.shown) if len(event.shown) == len(things) else things


def position_bias(events: Iterable[Event]) -> list[str]:
    """How often the reader preferred what stood first on the screen, with an interval; chance is one half.

        share = mean over judgements of the mean over pairs of [first one better] + [a tie] / 2

    Judgements are independent, pairs of one ranking are not: so the interval is of judgements, by their own variance.

    Args:
        events: standing judgements of one reader, of things that were shown in a random order.
    """
    shares = [share for event in events if (share := _facts(event).first_wins) is not None]
    if len(shares) < ENOUGH:
        return []
    found = outcome_interval(shares)
    where = (
        f"{found.mean:.0%} of the pairs in {found.count} judgements (95 % interval {found.low:.0%} to {found.high:.0%})"
    )
    verdict = {
        "above 0.5": "a bias to what stands first",
        "below 0.5": "a bias to what stands last",
        "INCONCLUSIVE": "no position bias is shown",
    }[found.verdict]
    return [f"You preferred what stood first in {where}: {verdict}."]


def first_wins(event: Event) -> float | None:
    """Of the pairs in a judgement, the share in which what stood first was preferred, a tie counted half."""
    verdicts = _verdicts(event.record) if event.record is not None else {}
    pairs = [pair for pair in combinations(_on_screen(event), 2) if pair in verdicts]
    wins = [(verdicts[pair] + 1) / 2 for pair in pairs]
    return sum(wins) / len(wins) if wins else None
