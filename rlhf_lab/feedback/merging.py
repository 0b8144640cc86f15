"""The stores of a class put together, and who agrees with whom in the result.

Which judgements count does not depend on the order of the events, so stores can be merged in any order and again: what
is there already is passed over. Readers who gave no name are all called "you"; in the merged store each has the name of
his file. Chapter 08.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np

from rlhf_lab.feedback.events import read_events
from rlhf_lab.feedback.lines import FeedbackError
from rlhf_lab.feedback.store import Store
from rlhf_lab.feedback.targets import to_comparisons
from rlhf_lab.maths.agreement import cohen_kappa
from rlhf_lab.maths.intervals import Interval, proportion_interval
from rlhf_lab.records import Choice, Comparison, Conversation, Event, Judgement, Ranking, Rating, Record

NAMELESS = ("", "you")
Pair = tuple[Conversation, str, str]  # a prompt and two replies to it, in the order of their texts


@dataclass(frozen=True)
class Merged:
    """What one file gave: its events, how many of them were new, and the raters in it by their names in the result."""

    path: Path
    events: int
    new: int
    raters: tuple[str, ...]


def merge(into: Store, paths: Sequence[str | Path], keep_names: bool = False) -> list[Merged]:
    """Put the events of stores and logs into one store: all of them, or none.

    Args:
        into: the store; its own events stay.
        paths: stores, or logs in JSON Lines.
        keep_names: leave "you" as it is.

    Raises:
        FeedbackError: a file cannot be read, or is the store itself.
        ValueError: an event has the id of another one; nothing was added.
        NotSaved: the store cannot be written; nothing was added.
    """
    files = [Path(path) for path in paths]
    names = dict(zip(files, distinct_names(files), strict=True))
    given = {path: _named(events_of(path), None if keep_names else names[path]) for path in files}
    known = {event.id for event in into.events()}
    into.add(*(event for events in given.values() for event in events))
    done = []
    for path, events in given.items():
        ids = {event.id for event in events}
        done.append(
            Merged(path, len(events), len(ids - known), tuple(dict.fromkeys(e.rater for e in events if e.record)))
        )
        known |= ids
    return done


def events_of(path: str | Path) -> list[Event]:
    """The events of a store, or of a log; which of the two it is, its first bytes say.

    Raises:
        FeedbackError: the file cannot be read.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            is_store = file.read(6) == b"SQLite"
    except OSError as error:
        raise FeedbackError(
            path, f": cannot be read ({error.strerror}). Check the path and your permissions"
        ) from error
    if not is_store:
        return read_events(path, skip_torn=True)
    with Store(path) as store:
        return list(store.events())


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """A name for each file: its own without the ending, and as many folders before it as make the names different.

    >>> distinct_names([Path("class/ann/feedback.db"), Path("class/ben/feedback.db")])
    ['ann/feedback', 'ben/feedback']
    """
    whole = [path.resolve().with_suffix("").parts for path in paths]
    for depth in range(1, max(map(len, whole), default=1) + 1):
        names = ["/".join(parts[-depth:]) for parts in whole]
        if len(set(names)) == len(set(whole)):
            break
    return names if whole else []


def _named(events: Iterable[Event], name: str | None) -> list[Event]:
    """The events with a name in place of "you"."""
    return [
        event
        if name is None or event.rater not in NAMELESS or not isinstance(event.record, Judgement)
        else replace(event, record=replace(event.record, rater=name))
        for event in events
    ]


# ---- agreement -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Agreement:
    """How often two raters judged the same pairs of replies alike.

    Attributes:
        raters: the two.
        share: of the pairs that both ordered, with Wilson's interval; None where there are none.
        kappa: the same beyond what chance would give, Cohen's; None where there are none.
    """

    raters: tuple[str, str]
    share: Interval | None
    kappa: float | None


def opinions(events: Iterable[Event]) -> tuple[list[str], list[Pair], np.ndarray]:
    """What each rater thinks of each pair of replies to one prompt.

    A pair comes from a ranking, a comparison, a choice, or two ratings by one rater. A tie is no opinion; of several
    opinions the last counts.

    Returns:
        The raters in the order of their names, the pairs, and [raters, pairs]: 1 where the first reply of the pair is
        better, 0 where the second is, NaN where the rater says nothing.
    """
    found: dict[str, dict[Pair, bool]] = defaultdict(dict)
    scores: dict[str, dict[Conversation, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for event in events:
        if isinstance(event.record, Rating):
            scores[event.rater][event.record.prompt][event.record.reply] = event.record.score
        else:
            found[event.rater] |= _ordered(event.record)
    for rater, prompts in scores.items():
        for prompt, rated in prompts.items():
            for (one, score), (other, its) in combinations(sorted(rated.items()), 2):
                if score != its:
                    found[rater][prompt, one, other] = score > its
    raters, pairs = sorted(found), list(dict.fromkeys(pair for own in found.values() for pair in own))
    table = [[float(found[rater].get(pair, math.nan)) for pair in pairs] for rater in raters]
    return raters, pairs, np.array(table).reshape(len(raters), len(pairs))


def agreement_of_raters(events: Iterable[Event]) -> list[Agreement]:
    """For every two raters how they agree on the pairs of replies that both ordered.

    The pairs of one ranking are not independent, so with few rankings the interval is too narrow.

    >>> one, other = (Comparison("Hi", "x", "y", rater=who) for who in "ab")
    >>> [found] = agreement_of_raters([Event("1", one), Event("2", other)])
    >>> found.raters, found.share.mean
    (('a', 'b'), 1.0)
    """
    raters, _, table = opinions(events)
    found = []
    for i, j in combinations(range(len(raters)), 2):
        both = ~np.isnan(table[i]) & ~np.isnan(table[j])
        count, same = int(both.sum()), int((table[i, both] == table[j, both]).sum())
        kappa = cohen_kappa(table[i, both], table[j, both]) if count else None
        share = proportion_interval(same, count) if count else None
        found.append(Agreement((raters[i], raters[j]), share, kappa))
    return found


def _ordered(record: Record | None) -> dict[Pair, bool]:
    """{(prompt, first reply, second reply): the first is better} for all that a record orders."""
    if not isinstance(record, Ranking | Comparison | Choice):
        return {}
    orders = [(pair.chosen, pair.rejected) for pair in to_comparisons(record)]
    return {(record.prompt, min(order), max(order)): order[0] < order[1] for order in orders}
