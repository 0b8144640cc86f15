"""What a reader judged in a conversation: stored at once, replaced when he changes his mind, taken back on request.

Chapter 08.
"""

from collections.abc import Hashable
from dataclasses import dataclass, replace
from pathlib import Path

from rlhf_lab.classroom.widgets.judgements import own_events
from rlhf_lab.feedback.events import event_line, new_event, standing
from rlhf_lab.feedback.store import NotSaved, Store
from rlhf_lab.records import Event, Record


@dataclass(frozen=True)
class _Step:
    """One judgement: what it is about, its event, and what it is called."""

    topic: Hashable
    event: Event
    what: str


@dataclass(frozen=True)
class _Log:
    """All judgements, in one value: an interrupt finds the old one or the new one."""

    events: tuple[Event, ...] = ()
    pending: tuple[Event, ...] = ()
    steps: tuple[_Step, ...] = ()


class Opinions:
    """Judgements, each about a topic; a second one about the same topic replaces the first.

    A judgement that cannot be stored is kept, `error` says why, and `save` tries again.

    Args:
        store: where they go; None for memory only.
        study: its name in the events.
        widget: the version of what shows them, in the events.
        rater: whose they are; what the store holds of him and the study already is counted and left alone.

    Attributes:
        error: why some are not on the disk; "" if all are.
        earlier: how many judgements that count were in the store before; None where it cannot be read.
        unread: why it cannot be read; else "".

    Example:
        >>> from rlhf_lab.records import Rating
        >>> opinions = Opinions()
        >>> opinions.add(Rating("Hi", "Hello.", 2), "A", "2 of 5", question="chat/sft/1")
        >>> opinions.add(Rating("Hi", "Hello.", 4), "A", "4 of 5", question="chat/sft/1")
        >>> [event.record.score for event in opinions.standing()]
        [4.0]
        >>> opinions.undo(), opinions.latest("A").score
        ('4 of 5', 2.0)

    Chapter 08.
    """

    def __init__(self, store: Store | None = None, study: str = "", widget: str = "", rater: str = "you") -> None:
        self.store, self.study, self.widget, self.error = store, study, widget, ""
        self._log, self.unread = _Log(), ""
        self.earlier: int | None = 0
        try:  # no notebook shall stop at a store that cannot be read
            self.earlier = 0 if store is None else len(standing(own_events(list(store.events(study)), rater)))
        except (OSError, ValueError) as error:
            self.earlier, self.unread = None, f"The judgements in the store cannot be read: {error}"

    def add(
        self,
        record: Record,
        topic: Hashable,
        what: str,
        *,
        question: str,
        duration: float = 0.0,
        shown: range = range(0),
        note: str = "",
    ) -> None:
        """Take a judgement, and store it.

        Args:
            record: the judgement.
            topic: what it is about.
            what: it is called so when it is taken back.
            question, duration, shown: of the event.
            note: goes to the version of the widget in the event.

        Raises:
            ValueError: it is too long for a store; nothing was taken.
        """
        before = self._step(topic)
        target = before.event.id if before else ""
        widget = f"{self.widget} {note}".strip()
        event = new_event(
            record, target=target, duration=duration, shown=shown, study=self.study, question=question, widget=widget
        )
        event_line(event)  # what is too long is refused now; kept, it would hold up all that come after it
        log = self._log
        self._log = _Log((*log.events, event), (*log.pending, event), (*log.steps, _Step(topic, event, what)))
        self.save()

    def undo(self) -> str:
        """Take the last judgement back; what it had replaced counts again. Returns what it was called.

        Raises:
            ValueError: there is none.
        """
        log = self._log
        if not log.steps:
            raise ValueError("there is nothing to take back in this conversation")
        *steps, last = log.steps
        event = new_event(target=last.event.id, study=self.study, question=last.event.question, widget=self.widget)
        self._log = _Log((*log.events, event), (*log.pending, event), tuple(steps))
        self.save()
        return last.what

    def settle(self) -> None:
        """Let all judgements so far stand: `undo` no longer reaches them, and topics are new ones."""
        self._log = replace(self._log, steps=())

    def save(self) -> None:
        """Store what is not on the disk yet; `error` says why it cannot be."""
        if self.store is not None and self._log.pending:
            try:
                self.store.add(*self._log.pending)
            except NotSaved as error:
                self.error = str(error)
                return
        self._log, self.error = replace(self._log, pending=()), ""

    def latest(self, topic: Hashable) -> Record | None:
        """The judgement about a topic that counts."""
        step = self._step(topic)
        return step.event.record if step else None

    def standing(self) -> list[Event]:
        """The judgements that count."""
        return standing(self._log.events)

    @property
    def undoes(self) -> str:
        """What `undo` would take back; "" for nothing."""
        return self._log.steps[-1].what if self._log.steps else ""

    @property
    def stored(self) -> int:
        """How many judgements that count are on the disk, those from before included."""
        pending = {event.id for event in self._log.pending}
        mine = sum(event.id not in pending for event in self.standing())
        return 0 if self.store is None else mine + (self.earlier or 0)

    @property
    def unsaved(self) -> int:
        """How many events are not on the disk."""
        return len(self._log.pending)

    def _step(self, topic: Hashable) -> _Step | None:
        return next((step for step in reversed(self._log.steps) if step.topic == topic), None)


def open_store(store: Store | str | Path | bool | None) -> Store | None:
    """A store as it may be given: a Store, the path of one, True for the reader's own, None for memory only.

    >>> open_store(None) is None, open_store("mine.db").path.name
    (True, 'mine.db')
    """
    if store is None or store is False:
        return None
    return store if isinstance(store, Store) else Store(None if store is True else store)
