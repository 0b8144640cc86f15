"""Ranking replies by hand: what is shown, what was judged, and what is safely on the disk.

Pure Python, no widgets: a view calls these operations and shows these properties. A judgement is appended to
an event log and flushed to the disk before it is called saved, so a kill at any moment loses nothing that
was. What is taken back is not erased: a later line withdraws it.

Whether something is saved is not remembered but seen: the judgements of the session are compared with what stands in
the log. All that an operation changes is changed in one assignment. So the reader may interrupt at any point, and the
next operation goes on from there. Chapters 00 and 08.
"""

import os
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlhf_lab.feedback.events import Event, EventLog, NotSaved, Withdrawal, event_line, read_events
from rlhf_lab.feedback.lines import FeedbackError
from rlhf_lab.records import (
    Conversation,
    Ranking,
    as_conversation,
)

Item = tuple[Conversation, tuple[str, ...]]
Tiers = tuple[tuple[int, ...], ...]
BROKEN_OFF = "saving was broken off. Save again"


@dataclass(frozen=True)
class Entry:
    """A judgement of item `index`; None where it is of another rater or of an item that is not in this session."""

    index: int | None
    ranking: Ranking


@dataclass(frozen=True)
class Step:
    """What `undo` goes back to: item `index` with the tiers and the judgement it had before."""

    index: int
    tiers: Tiers
    judgement: Ranking | None


@dataclass(frozen=True)
class Work:
    """All that the operations change, except which item is on the screen.

    Attributes:
        tiers: for each item the ranks given so far.
        entries: the judgements in the order in which they were made.
        history: the steps that can be taken back.
    """

    tiers: tuple[Tiers, ...]
    entries: tuple[Entry, ...] = ()
    history: tuple[Step, ...] = ()

    def changed(self, step: Step, history: tuple[Step, ...]) -> "Work":
        """With the tiers and the judgement of `step` in place of those that its item has."""
        tiers = (*self.tiers[: step.index], step.tiers, *self.tiers[step.index + 1 :])
        others = tuple(entry for entry in self.entries if entry.index != step.index)
        new = () if step.judgement is None else (Entry(step.index, step.judgement),)
        return Work(tiers, others + new, history)


@dataclass(frozen=True)
class Progress:
    """How far the reader is: `judged` of `total` items; `unsaved` judgements are not on the disk."""

    judged: int
    total: int
    unsaved: int


class RankingSession:
    """A reader ranks the replies to one prompt after the other.

    Replies are addressed by their position on the screen, from 0; each item shows them in its own shuffled
    order. The judgement of an item is saved as soon as every reply has its place, or at `skip` and `all_bad`.
    It can be changed at any time; one line of the log then holds the new one, and that the old one was withdrawn.

    Args:
        items: pairs (prompt, replies), with at least two replies each.
        log: file for the judgements; what is in it already is resumed. None keeps them in memory.
        seed: of the shuffled order.
        rater: who judges.
        recorded: rankings of others, for example simulated ones, that `rankings` returns before the reader's.

    Raises:
        ValueError: no items, an item that is not a prompt with replies, or a rater that is no text.
        FeedbackError: the log cannot be read.

    Example:
        >>> session = RankingSession([("Where is the zoo?", ["In Mill Street.", "Go away."])])
        >>> session.place(0)
        >>> session.place(1)
        >>> [session.ranks, session.status, session.progress.judged]
        [[1, 2], 'done', 1]
    """

    def __init__(
        self,
        items: Sequence[tuple[str | Sequence, Sequence[str]]],
        log: str | Path | None = None,
        *,
        seed: int = 0,
        rater: str = "you",
        recorded: Sequence[Ranking] = (),
    ) -> None:
        if not isinstance(rater, str):
            raise ValueError(f"rater is {rater!r:.60}; expected a text. Give a name, for example 'you'")
        self.items = [_item(number, item, rater) for number, item in enumerate(items, start=1)]
        if not self.items:
            raise ValueError("items is empty; expected pairs (prompt, replies). Give at least one")
        self.rater, self.recorded = rater, tuple(recorded)
        self.log = None if log is None else EventLog(log)
        sizes = [len(replies) for _, replies in self.items]
        self._shown = [tuple(random.Random(f"{seed}/{i}").sample(range(k), k)) for i, k in enumerate(sizes)]
        self._work = Work(((),) * len(sizes))
        self._reason = ""
        self.index = 0
        if self.log is not None:
            self._resume(self.log.standing)

    @classmethod
    def from_recorded(
        cls, recorded: str | Path, log: str | Path | None = None, *, seed: int = 0, rater: str = "you"
    ) -> "RankingSession":
        """Start from the rankings in an event log, so that there is something to learn from before any click.

        Its prompts and replies are shown again, unjudged. The recorded file is only read: what the reader
        judges goes to `log`, by default "runs/<name of the recorded file>.yours.jsonl" in the working folder,
        which is made at the first judgement. The other arguments are those of the class.

        Raises:
            FeedbackError: the recorded file cannot be read or holds no ranking.
            ValueError: `log` is the recorded file.
        """
        recorded = Path(recorded)
        rankings = [event for event in read_events(recorded) if isinstance(event, Ranking)]
        if not rankings:
            raise FeedbackError(recorded, ": holds no ranking. Give the log of a ranking session")
        log = Path("runs") / f"{recorded.name.split('.')[0]}.yours.jsonl" if log is None else Path(log)
        if os.path.exists(log) and os.path.samefile(log, recorded):
            raise ValueError(f"log is the recorded file {log}; expected another file for your judgements")
        items = dict.fromkeys((ranking.prompt, ranking.replies) for ranking in rankings)
        return cls(list(items), log, seed=seed, rater=rater, recorded=rankings)

    def _resume(self, standing: Mapping[int, Event]) -> None:
        """Take over the judgements in the log; undo takes them back from the last on.

        Where an item has several, the last counts; of items that are equal, each has its own.
        """
        rankings = [event for event in standing.values() if isinstance(event, Ranking)]
        places, own = defaultdict(list), defaultdict(list)
        for place, item in enumerate(self.items):
            places[item].append(place)
        for ranking in rankings:
            if ranking.rater == self.rater:
                own[ranking.prompt, ranking.replies].append(ranking)
        pairs = [pair for item in places for pair in zip(places[item], own[item][-len(places[item]) :], strict=False)]
        index = {id(ranking): place for place, ranking in pairs}
        entries = tuple(Entry(index.get(id(ranking)), ranking) for ranking in rankings)
        tiers = list(self._work.tiers)
        for place, ranking in pairs:
            tiers[place], self._shown[place] = ranking.tiers, ranking.shown
        history = tuple(Step(entry.index, (), None) for entry in entries if entry.index is not None)
        self._work = Work(tuple(tiers), entries, history)
        self.index = min(set(range(len(self.items))) - {entry.index for entry in entries}, default=0)

    # ---- what a view shows ---------------------------------------------------------------------------------

    @property
    def prompt(self) -> Conversation:
        """The conversation of the current item."""
        return self.items[self.index][0]

    @property
    def replies(self) -> list[str]:
        """The replies of the current item in the order on the screen."""
        return [self.items[self.index][1][i] for i in self._shown[self.index]]

    @property
    def ranks(self) -> list[int | None]:
        """For each reply on the screen its rank: 1 is best, equal ranks are ties, None has no place yet."""
        rank = {reply: r for r, tier in enumerate(self._work.tiers[self.index], start=1) for reply in tier}
        return [rank.get(reply) for reply in self._shown[self.index]]

    @property
    def status(self) -> str:
        """Of the current item: "open", "done", "skipped" or "all_bad"."""
        ranking = self._judgement()
        return ranking.status if ranking else "open"

    @property
    def progress(self) -> Progress:
        """Of the whole session."""
        judged = sum(entry.index is not None for entry in self._work.entries)
        return Progress(judged, len(self.items), len(self._differences()[0]))

    @property
    def saved(self) -> bool:
        """True when the disk holds all that was judged and taken back."""
        return not any(self._differences()) and not (self.log and self.log.unsettled)

    @property
    def error(self) -> str:
        """Why the log does not hold what was judged, and what to do; empty when it does, or when there is none."""
        return "" if self.log is None or self.saved else self._reason or BROKEN_OFF

    @property
    def notice(self) -> str:
        """What the reader should know of the log: that its last line was incomplete, and where that is kept."""
        if self.log is None or not (self.log.torn or self.log.kept):
            return ""
        where = f"is kept in {self.log.kept}" if self.log.kept else "will be kept in a file beside it"
        return f"The last line of {self.log.path.name} was incomplete, as after a crash: it does not count, and {where}"

    @property
    def can_undo(self) -> bool:
        """True when there is a step to take back."""
        return bool(self._work.history)

    def rankings(self) -> list[Ranking]:
        """The recorded rankings, then this log's in the order in which they were judged, saved or not."""
        return [*self.recorded, *(entry.ranking for entry in self._work.entries)]

    # ---- what the reader does ------------------------------------------------------------------------------

    def place(self, position: int) -> None:
        """Give the reply the next rank, after all that have one."""
        self.move(position, len(self._without(position)))

    def tie(self, position: int) -> None:
        """Give the reply the same rank as the last placed."""
        tiers = self._without(position)
        if not tiers:
            raise ValueError("tie: no other reply has a rank yet; place one first")
        self._set((*tiers[:-1], (*tiers[-1], self._reply(position))))

    def move(self, position: int, rank: int) -> None:
        """Put the reply at `rank` (0 is best) among the others' ranks; those from there on go one down."""
        tiers = self._without(position)
        if not 0 <= rank <= len(tiers):
            raise ValueError(f"rank is {rank}; expected 0 to {len(tiers)}")
        self._set((*tiers[:rank], (self._reply(position),), *tiers[rank:]))

    def remove(self, position: int) -> None:
        """Take the reply's rank away."""
        self._set(self._without(position))

    def rank(self, tiers: Sequence[Sequence[int]]) -> None:
        """Rank all at once: positions on the screen, best tier first, each position once."""
        everyone = list(range(len(self.replies)))
        if sorted(position for tier in tiers for position in tier) != everyone or not all(tiers):
            raise ValueError(f"tiers is {tiers}; expected each position of {everyone} once, no empty tier")
        self._set(tuple(tuple(self._reply(position) for position in tier) for tier in tiers))

    def skip(self) -> None:
        """Pass no judgement on this item."""
        self._set((), "skipped")

    def all_bad(self) -> None:
        """Judge that none of the replies is acceptable."""
        self._set((), "all_bad")

    def undo(self) -> None:
        """Take back the last step, on whichever item it was; without one, nothing happens."""
        if self._work.history:
            *history, step = self._work.history
            self.index = step.index
            self._work = self._work.changed(step, tuple(history))
            self.save()

    def next(self) -> None:
        """Go to the next item; at the last one, stay."""
        self.index = min(self.index + 1, len(self.items) - 1)

    def previous(self) -> None:
        """Go to the item before; at the first one, stay."""
        self.index = max(self.index - 1, 0)

    def save(self) -> None:
        """Write what is not on the disk yet. Every operation does this; call it to try again.

        Raises:
            NotSaved: the judgements are kept in memory; the message says why and what to do.
        """
        self._reason = ""
        try:
            while self.log is not None and not self.saved:
                new, old = self._differences()
                if new:
                    item = (new[0].prompt, new[0].replies)
                    same = (line for line, ranking in old.items() if (ranking.prompt, ranking.replies) == item)
                    self.log.append(new[0], replaces=next(same, None))
                elif old:
                    self.log.append(Withdrawal(next(iter(old))))
                else:
                    self.log.settle()
        except NotSaved as error:
            self._reason = str(error)
            raise

    def _differences(self) -> tuple[list[Ranking], dict[int, Ranking]]:
        """The judgements that are not on the disk, and {line: ranking} of what stands there and was taken back.

        Objects are compared, not contents, because two items may be equal.
        """
        standing = {} if self.log is None else self.log.standing
        rankings = {line: event for line, event in standing.items() if isinstance(event, Ranking)}
        there = {id(ranking) for ranking in rankings.values()}
        wanted = {id(entry.ranking) for entry in self._work.entries}
        new = [entry.ranking for entry in self._work.entries if id(entry.ranking) not in there]
        return new, {line: ranking for line, ranking in rankings.items() if id(ranking) not in wanted}

    def _judgement(self) -> Ranking | None:
        """The judgement of the current item."""
        return next((entry.ranking for entry in self._work.entries if entry.index == self.index), None)

    def _reply(self, position: int) -> int:
        if not 0 <= position < len(self._shown[self.index]):
            raise ValueError(f"position is {position}; expected 0 to {len(self._shown[self.index]) - 1}")
        return self._shown[self.index][position]

    def _without(self, position: int) -> Tiers:
        reply = self._reply(position)
        left = (tuple(other for other in tier if other != reply) for tier in self._work.tiers[self.index])
        return tuple(tier for tier in left if tier)

    def _set(self, tiers: Tiers, status: str = "done") -> None:
        (prompt, replies), shown = self.items[self.index], self._shown[self.index]
        tiers = tuple(tuple(sorted(tier)) for tier in tiers)
        ranking = None
        if status != "done" or sum(map(len, tiers)) == len(replies):
            ranking = Ranking(prompt, replies, tiers, shown, status, self.rater)
        before = Step(self.index, self._work.tiers[self.index], self._judgement())
        after = Step(self.index, tiers, ranking)
        if before != after:
            self._work = self._work.changed(after, (*self._work.history, before))
        self.save()


def _item(number: int, item: tuple[str | Sequence, Sequence[str]], rater: str) -> Item:
    try:
        prompt, replies = item
        if isinstance(replies, str):
            raise ValueError("replies is a text; expected several")
        everyone = tuple(range(len(replies)))
        # The longest judgement there can be: it must fit in a line of the log.
        ranked = Ranking(as_conversation(prompt), tuple(replies), tuple((i,) for i in everyone), everyone, rater=rater)
        event_line(ranked, replaces=10**12)
    except (TypeError, ValueError) as error:
        raise ValueError(f"item {number}: {error}") from None
    return ranked.prompt, ranked.replies
