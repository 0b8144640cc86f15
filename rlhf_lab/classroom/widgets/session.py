"""Ranking replies by hand: what is shown, what was judged, and what is safely on the disk.

Pure Python, no widgets: a view calls these operations and shows these properties. A judgement is appended to
an event log and flushed to the disk before it is called saved, so a kill at any moment loses nothing that
was. What is taken back is not erased: a later line withdraws it. Chapters 00 and 08.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlhf_lab.feedback.events import Event, EventLog, NotSaved, Withdrawal, read_events
from rlhf_lab.feedback.lines import FeedbackError
from rlhf_lab.records import (
    Conversation,
    Ranking,
    as_conversation,
)

Item = tuple[Conversation, tuple[str, ...]]
Tiers = tuple[tuple[int, ...], ...]


@dataclass(eq=False)
class Entry:
    """A judgement of this session and the line of the log that holds it, None while it is in memory only."""

    ranking: Ranking
    line: int | None = None


@dataclass(frozen=True)
class Step:
    """What `undo` goes back to: item `index` with the tiers and the judgement it had before."""

    index: int
    tiers: Tiers
    judgement: Ranking | None


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
    It can be changed at any time; the log then holds the new one, and that the old one was withdrawn.

    Args:
        items: pairs (prompt, replies), with at least two replies each.
        log: file for the judgements; what is in it already is resumed. None keeps them in memory.
        seed: of the shuffled order.
        rater: who judges.
        recorded: rankings of others, for example simulated ones, that `rankings` returns before the reader's.

    Raises:
        ValueError: no items, or an item that is not a prompt with replies.
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
        self.items = [_item(number, *pair) for number, pair in enumerate(items, start=1)]
        if not self.items:
            raise ValueError("items is empty; expected pairs (prompt, replies). Give at least one")
        self.rater, self.recorded = rater, tuple(recorded)
        self.log = None if log is None else EventLog(log)
        self.error = ""
        sizes = [len(replies) for _, replies in self.items]
        self._shown = [tuple(random.Random(f"{seed}/{i}").sample(range(k), k)) for i, k in enumerate(sizes)]
        self._tiers: list[Tiers] = [()] * len(sizes)
        self._judged: dict[int, Entry] = {}
        self._entries: list[Entry] = []
        self._pending: list[Entry | Withdrawal] = []
        self._history: list[Step] = []
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
        if log.resolve() == recorded.resolve():
            raise ValueError(f"log is the recorded file {log}; expected another file for your judgements")
        items = dict.fromkeys((ranking.prompt, ranking.replies) for ranking in rankings)
        return cls(list(items), log, seed=seed, rater=rater, recorded=rankings)

    def _resume(self, standing: Mapping[int, Event]) -> None:
        """Take over the judgements in the log; undo takes them back from the last on."""
        for line, event in standing.items():
            if not isinstance(event, Ranking):
                continue
            entry = Entry(event, line)
            self._entries.append(entry)
            own = enumerate(self.items) if event.rater == self.rater else ()
            same = (i for i, item in own if item == (event.prompt, event.replies) and i not in self._judged)
            if (index := next(same, None)) is not None:
                self._judged[index], self._tiers[index] = entry, event.tiers
                self._shown[index] = event.shown
                self._history.append(Step(index, (), None))
        self.index = next((i for i in range(len(self.items)) if i not in self._judged), 0)

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
        rank = {reply: r for r, tier in enumerate(self._tiers[self.index], start=1) for reply in tier}
        return [rank.get(reply) for reply in self._shown[self.index]]

    @property
    def status(self) -> str:
        """Of the current item: "open", "done", "skipped" or "all_bad"."""
        entry = self._judged.get(self.index)
        return entry.ranking.status if entry else "open"

    @property
    def progress(self) -> Progress:
        """Of the whole session."""
        unsaved = sum(isinstance(event, Entry) for event in self._pending)
        return Progress(len(self._judged), len(self.items), unsaved)

    @property
    def saved(self) -> bool:
        """True when the disk holds all that was judged and taken back."""
        return not self._pending

    @property
    def can_undo(self) -> bool:
        """True when there is a step to take back."""
        return bool(self._history)

    def rankings(self) -> list[Ranking]:
        """The recorded rankings, then this log's in the order in which they were judged, saved or not."""
        return [*self.recorded, *(entry.ranking for entry in self._entries)]

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
        if self._history:
            step = self._history.pop()
            self.index, self._tiers[step.index] = step.index, step.tiers
            self._judge(step.judgement)

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
        self.error = ""
        while self.log is not None and self._pending:
            event = self._pending[0]
            try:
                line = self.log.append(event.ranking if isinstance(event, Entry) else event)
            except NotSaved as error:
                self.error = str(error)
                raise
            if isinstance(event, Entry):
                event.line = line
            self._pending.pop(0)

    def _reply(self, position: int) -> int:
        if not 0 <= position < len(self._shown[self.index]):
            raise ValueError(f"position is {position}; expected 0 to {len(self._shown[self.index]) - 1}")
        return self._shown[self.index][position]

    def _without(self, position: int) -> Tiers:
        reply = self._reply(position)
        left = (tuple(other for other in tier if other != reply) for tier in self._tiers[self.index])
        return tuple(tier for tier in left if tier)

    def _set(self, tiers: Tiers, status: str = "done") -> None:
        (prompt, replies), shown = self.items[self.index], self._shown[self.index]
        tiers = tuple(tuple(sorted(tier)) for tier in tiers)
        entry, ranking = self._judged.get(self.index), None
        if status != "done" or sum(map(len, tiers)) == len(replies):
            ranking = Ranking(prompt, replies, tiers, shown, status, self.rater)
        before = Step(self.index, self._tiers[self.index], entry.ranking if entry else None)
        if before != Step(self.index, tiers, ranking):
            self._history.append(before)
            self._tiers[self.index] = tiers
            self._judge(ranking)

    def _judge(self, ranking: Ranking | None) -> None:
        """Let `ranking` be the judgement of the current item, in place of the one it has."""
        former = self._judged.pop(self.index, None)
        if former:
            self._entries.remove(former)
            if former.line is None:
                self._pending.remove(former)
            else:
                self._pending.append(Withdrawal(former.line))
        if ranking:
            self._judged[self.index] = entry = Entry(ranking)
            self._entries.append(entry)
            self._pending.append(entry)
        self.save()


def _item(number: int, prompt: str | Sequence, replies: Sequence[str]) -> Item:
    try:
        if isinstance(replies, str):
            raise ValueError("replies is a text; expected several")
        skipped = Ranking(as_conversation(prompt), tuple(replies), (), tuple(range(len(replies))), "skipped")
    except ValueError as error:
        raise ValueError(f"item {number}: {error}") from None
    return skipped.prompt, skipped.replies
