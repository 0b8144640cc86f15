"""What a rule of cleaning is, and the rules about single judgements: too fast, given twice, contradicting itself.

A rule takes judgements and returns those that it keeps and those that it drops, each with the reason in a sentence that
holds the numbers. It gets the judgements that stand (`feedback.events.standing`), and never changes one. Left out: any
repair of a judgement, and rules that look at whether a rater agrees with the others, which punishes minorities.
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from rlhf_lab.feedback.lines import short
from rlhf_lab.records import (
    Choice,
    Comment,
    Comparison,
    Conversation,
    Edit,
    Event,
    Mark,
    Ranking,
    Rating,
    Record,
    SegmentChoice,
)

Dropped = tuple[Event, str]
Person = tuple[str, bool]  # a rater's name, and whether it is simulated: a person may have the name of a program
MOST_WORDS = 300  # nobody reads more of one question before he judges, so no floor rests on more


@dataclass(frozen=True)
class Cleaned:
    """What a rule makes of judgements: `kept` and `dropped` together are all of them, each in the order given.

    Attributes:
        kept: the events that go on.
        dropped: (event, reason) of the others.
        note: what the rule could not test, and why; "" where there is nothing to say.

    Chapter 08.
    """

    kept: tuple[Event, ...]
    dropped: tuple[Dropped, ...]
    note: str = ""


Rule = Callable[[Sequence[Event]], Cleaned]


def divided(events: Sequence[Event], reasons: Mapping[int, str], note: str = "") -> Cleaned:
    """Events with a reason {place in `events`: sentence} are dropped, the others kept."""
    kept = tuple(event for place, event in enumerate(events) if place not in reasons)
    return Cleaned(kept, tuple((events[place], reasons[place]) for place in sorted(reasons)), note)


def check_standing(events: Sequence[Event]) -> list[Event]:
    """The events as a list, if each is a judgement that counts.

    Raises:
        ValueError: one holds no record, or replaces another one of them.
    """
    events = list(events)
    ids = {event.id for event in events}
    for event in events:
        if event.record is None or event.target in ids:
            what = "takes another one back" if event.record is None else f"replaces {short(event.target)}"
            raise ValueError(
                f"events holds {short(event.id)}, which {what}; expected judgements that stand. Pass them through "
                "rlhf_lab.feedback.events.standing first"
            )
    return events


def by_person(events: Sequence[Event]) -> dict[Person, list[int]]:
    """{(rater, simulated): places of his judgements in `events`}, without those that name no rater."""
    places = defaultdict(list)
    for place, event in enumerate(events):
        if event.rater:
            places[event.rater, event.simulated].append(place)
    return dict(places)


def nameless(events: Sequence[Event]) -> str:
    """A note on the judgements that no rater can answer for."""
    count = sum(not event.rater for event in events)
    return f"{count} judgements name no rater and were kept untested" if count else ""


def ordering(record: Record | None) -> tuple[tuple[Hashable, ...], tuple[tuple[int, ...], ...]] | None:
    """(what was ordered, tiers of indices into it) of a judgement that orders; None of every other record.

    Example:
        >>> ordering(Choice("Hi", "Hello.", "Go.", outcome=-1))
        (('Hello.', 'Go.'), ((1,), (0,)))
    """
    if isinstance(record, Ranking) and record.status == "done":
        return record.replies, record.tiers
    if isinstance(record, Comparison):
        return (record.chosen, record.rejected), ((0,), (1,))
    if isinstance(record, Choice | SegmentChoice):
        tiers = {1: ((0,), (1,)), 0: ((0, 1),), -1: ((1,), (0,))}[record.outcome]
        return (record.left, record.right), tiers
    return None


# ---- too fast ------------------------------------------------------------------------------------------------


def words_shown(record: Record | None) -> int:
    """Words of the replies that a judgement is about, split at white space; 0 where there is no text to read.

    The prompt is not counted, because the rater may have read it before, for another of its replies.

    Example:
        >>> words_shown(Choice("Where is the zoo?", "By the river.", "I do not know.", outcome=1))
        7
    """
    things = ordering(record)
    if things is not None:
        return sum(len(text.split()) for text in things[0] if isinstance(text, str))
    if isinstance(record, Ranking) and record.status == "all_bad":
        return sum(len(reply.split()) for reply in record.replies)
    return len(record.reply.split()) if isinstance(record, Rating | Edit | Comment | Mark) else 0


def too_fast(events: Sequence[Event], words_per_minute: float = 700.0, at_least: float = 0.3) -> Cleaned:
    """Drop *judgements* that were given before the replies can have been read.

        floor = at_least + 60 * words shown / words_per_minute     in seconds

    Silent readers of English manage 238 words a minute on average (Brysbaert 2019); 700 is about three times that. At
    most 300 words of a question count. Where a language is written without spaces, words are too few and the floor too
    low, so more is kept. What was skipped needs no reading and is kept, and so is a duration of 0, which says that
    nothing was measured. It is the judgement that is dropped, not the rater: he may have read the others.

    Args:
        events: judgements that stand.
        words_per_minute: faster is too fast; positive.
        at_least: seconds to see and press, at least 0.

    Raises:
        ValueError: an impossible speed or time, or events that do not stand.

    Example:
        >>> quick = Event("a", Choice("Hi", "Hello to you.", "Go away from me.", 1), duration=0.5)
        >>> too_fast([quick]).dropped[0][1]
        'judged in 0.5 s, but 7 words were shown: at 700 words a minute reading takes 0.9 s'

    Source: Brysbaert 2019, How many words do we read per minute? for the average; the floor is ours. Chapter 08.
    """
    if not words_per_minute > 0 or not at_least >= 0:
        raise ValueError(f"words_per_minute is {words_per_minute}, at_least {at_least}; expected > 0 and >= 0")
    events = check_standing(events)
    reasons = {}
    for place, event in enumerate(events):
        words = min(words_shown(event.record), MOST_WORDS)
        floor = at_least + 60 * words / words_per_minute
        if words and 0 < event.duration < floor:
            reasons[place] = (
                f"judged in {event.duration:.2g} s, but {words} words were shown: "
                f"at {words_per_minute:.4g} words a minute reading takes {floor:.2g} s"
            )
    unmeasured = sum(event.duration == 0 for event in events)
    note = f"{unmeasured} judgements have no measured time and were kept" if unmeasured else ""
    return divided(events, reasons, note)


# ---- duplicates ----------------------------------------------------------------------------------------------


def duplicates(events: Sequence[Event]) -> Cleaned:
    """Drop *judgements* that repeat an earlier one: same rater, study, question and judgement.

    A question that was planned twice has two `question` ids; its second answer is not a duplicate but what
    self-agreement is measured on. Where the ids are empty, equal judgements cannot be told from a repetition that was
    planned, and the later one is dropped. The first in the order given is kept.

    Example:
        >>> judged = Choice("Hi", "Hello.", "Go.", 1, rater="ann")
        >>> again = [Event(i, judged, study="s", question=q) for i, q in (("a", "q1"), ("b", "q1"), ("c", "q2"))]
        >>> [event.id for event in duplicates(again).kept]
        ['a', 'c']

    Chapter 08.
    """
    events = check_standing(events)
    first: dict[Hashable, Event] = {}
    reasons = {}
    for place, event in enumerate(events):
        earlier = first.setdefault((event.study, event.question, event.record), event)
        if earlier is not event:
            asked = f"question {short(event.question)}" if event.question else "a question without an id"
            reasons[place] = f"the same judgement of {asked} was already given, in event {short(earlier.id)}"
    return divided(events, reasons)


# ---- contradictions ------------------------------------------------------------------------------------------


def contradictions(events: Sequence[Event], gap: float = 0.5) -> Cleaned:
    """Drop *judgements* that others of the same rater contradict: all sides, for none is known to be the right one.

    Of two replies: put one way and the other way round, or on a circle (A over B, B over C, C over A). A ranking of
    several: more than half of the pairs that it orders stand the other way round elsewhere. Ratings of one reply: they
    differ by more than `gap` of their scale. A tie contradicts nothing.

    An honest rater who picks the better of a close pair with probability p judges a repetition the other way round with
    probability 2 p (1 - p), so this drops close pairs more often than clear ones: a study of noise wants them kept.

    Args:
        events: judgements that stand.
        gap: share of the scale, in [0, 1].

    Raises:
        ValueError: an impossible gap, or events that do not stand.

    Example:
        >>> both = [Choice("Hi", "Hello.", "Go.", outcome, rater="ann") for outcome in (1, -1)]
        >>> contradictions([Event(f"e{i}", c, question=f"q{i}") for i, c in enumerate(both)]).dropped[0][1]
        'the same rater put this pair the other way round in 1 other judgement'

    Chapter 08.
    """
    if not 0 <= gap <= 1:
        raise ValueError(f"gap is {gap}; expected a share of the scale, in [0, 1]")
    events = check_standing(events)
    reasons: dict[int, str] = {}
    for places in by_person(events).values():
        of_prompt: dict[Conversation, list[int]] = defaultdict(list)
        for place in places:
            of_prompt[events[place].record.prompt].append(place)  # type: ignore[union-attr]  # it stands
        for asked in of_prompt.values():
            reasons |= _contradicted_orders(events, asked) | _contradicted_ratings(events, asked, gap)
    return divided(events, reasons, nameless(events))


def _contradicted_orders(events: Sequence[Event], places: Sequence[int]) -> dict[int, str]:
    """Reasons for the judgements of one rater on one prompt that order something."""
    pairs = {place: _pairs(events[place].record) for place in places}
    supporters: dict[tuple[Hashable, Hashable], int] = defaultdict(int)
    for edges in pairs.values():
        for edge in edges:
            supporters[edge] += 1
    circle = _circles(list(supporters))
    reasons = {}
    for place, edges in pairs.items():
        against = [supporters.get((worse, better), 0) for better, worse in edges]
        if len(edges) == 1 and against[0]:
            others = f"{against[0]} other judgement" + "s" * (against[0] > 1)
            reasons[place] = f"the same rater put this pair the other way round in {others}"
        elif len(edges) == 1 and (size := circle.get(edges[0], 0)):
            reasons[place] = f"it closes a circle: this rater prefers each of {size} replies to the next, and the last"
            reasons[place] += " to the first"
        elif edges and sum(map(bool, against)) > len(edges) / 2:
            turned = sum(map(bool, against))
            reasons[place] = f"{turned} of the {len(edges)} pairs that it orders this rater put the other way round"
            reasons[place] += " elsewhere"
    return reasons


def _pairs(record: Record | None) -> list[tuple[Hashable, Hashable]]:
    """Different (better, worse) pairs of a judgement."""
    ordered = ordering(record)
    if ordered is None:
        return []
    things, tiers = ordered
    found = [
        (things[i], things[j])
        for n, tier in enumerate(tiers)
        for lower in tiers[n + 1 :]
        for i in tier
        for j in lower
        if things[i] != things[j]
    ]
    return list(dict.fromkeys(found))


def _circles(edges: Sequence[tuple[Hashable, Hashable]]) -> dict[tuple[Hashable, Hashable], int]:
    """{edge that lies on a circle: size of its strongly connected component}."""
    if len(edges) < 2:
        return {}
    number = {thing: i for i, thing in enumerate(dict.fromkeys(thing for edge in edges for thing in edge))}
    ends = np.array([[number[better], number[worse]] for better, worse in edges]).T
    graph = coo_matrix((np.ones(len(edges)), ends), shape=(len(number), len(number)))
    _, component = connected_components(graph, directed=True, connection="strong")
    sizes = np.bincount(component)
    same = component[ends[0]] == component[ends[1]]
    return {edge: int(sizes[component[number[edge[0]]]]) for edge, inside in zip(edges, same, strict=True) if inside}


def _contradicted_ratings(events: Sequence[Event], places: Sequence[int], gap: float) -> dict[int, str]:
    """Reasons for the ratings of one rater on one prompt."""
    of_reply = defaultdict(list)
    for place in places:
        record = events[place].record
        if isinstance(record, Rating):
            of_reply[record.reply].append((place, (record.score - record.low) / (record.high - record.low)))
    reasons: dict[int, str] = {}
    for rated in of_reply.values():
        low, high = (end(share for _, share in rated) for end in (min, max))
        if high - low > gap:
            text = f"the same rater rated this reply {len(rated)} times, from {low:.0%} to {high:.0%} of the scale"
            reasons |= {place: text for place, _ in rated}
    return reasons
