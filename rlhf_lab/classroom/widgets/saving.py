"""The part of a session of feedback that outlives it: judgements in a store, and the reader's place beside them.

Whether something is saved is known from one rule: an event is pending until the store's `add` has returned. To add it
again does no harm, so after an interrupt or a failure the next attempt starts from the same list. Chapter 08.
"""

import json
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlhf_lab.classroom.widgets.judgements import Work
from rlhf_lab.classroom.widgets.ordering import asking_order, screen_order
from rlhf_lab.feedback.lines import short
from rlhf_lab.feedback.questions import Answer, Question, as_question, question_ids
from rlhf_lab.feedback.store import NotSaved, Store
from rlhf_lab.records import Event

StoreLike = Store | str | Path | bool | None
BROKEN_OFF = "saving was broken off. Save again"
LONGEST_NAME = 200  # characters of the name of a rater or a study
TYPED = ("edit", "comment")  # the forms whose answer is a text


class Saving:
    """Questions, what was answered, and the store that holds it.

    Attributes:
        questions: in the order in which they are asked.
        names: their ids, the same after a restart.
        study, rater, store: whose judgements these are and where they go; None for memory alone.
        widget: what shows the session; it goes into each event.
    """

    def __init__(
        self, questions: Sequence[Question | tuple], store: StoreLike, study: str, rater: str, seed: int
    ) -> None:
        self.study, self.rater, self.widget = _name("study", study), _name("rater", rater), ""
        if not rater:
            raise ValueError("rater is empty; expected a name. Give one, for example 'you'")
        given = [_question(number, item) for number, item in enumerate(questions, start=1)]
        if not given:
            raise ValueError("questions is empty; expected questions, or pairs (prompt, replies). Give at least one")
        names, order = question_ids(given), asking_order(given)
        self.questions, self.names = [given[i] for i in order], [names[i] for i in order]
        self.store = _store(store)
        self._reason, self._unread, self._kept, self._place = "", "", "", ""
        self._known = 0  # events of the study that the store is known to hold
        self._since: dict[int, float] = {}  # when each question was first seen, on a clock that never goes back
        shown = tuple(screen_order(q, name, seed) for q, name in zip(self.questions, self.names, strict=True))
        self._work = Work(0, shown, tuple(q.nothing for q in self.questions), ((),) * len(given))
        self.refresh()
        self._resume()

    @property
    def index(self) -> int:
        """Of the question on the screen, from 0."""
        return self._work.index

    @property
    def question(self) -> Question:
        """The question on the screen."""
        return self.questions[self.index]

    @property
    def pending(self) -> tuple[Event, ...]:
        """The events that are not known to be on the disk."""
        return self._work.pending

    @property
    def saved(self) -> bool:
        """True when the disk holds all that was judged and taken back."""
        return not self._work.pending

    @property
    def error(self) -> str:
        """Why the store does not hold what was judged, or cannot be read, and what to do; else empty."""
        if self.store is None:
            return ""
        return (self._reason or BROKEN_OFF) if self._work.pending else self._unread

    @property
    def notice(self) -> str:
        """Which questions have several judgements of this reader, and which of them is shown; else empty."""
        twice = [str(i + 1) for i in range(len(self.questions)) if len(self._work.standing(i)) > 1]
        if not twice:
            return ""
        where = f"Question {', '.join(twice)} was judged more than once, as from two windows"
        return f"{where}: all of it is in the store, the last is shown, and undo takes that back first."

    # ---- the store -----------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write what is not on the disk yet. Every judgement does this; call it to try again.

        Raises:
            NotSaved: the judgements are kept in memory; the message says why and what to do.
        """
        if self.store is None:
            return
        self._reason = ""
        pending = self._work.pending
        try:
            if pending:
                self.store.add(*pending)
                self._work = replace(self._work, pending=self._work.pending[len(pending) :])
                self._known += len(pending)
        except (OSError, ValueError) as error:
            self._reason = str(error)
            if isinstance(error, NotSaved):
                raise
            raise NotSaved(f"{error}. The judgement is kept in memory") from error
        if self._unread:
            self.refresh()

    def refresh(self) -> None:
        """Read the store again: what another window or program wrote meanwhile is taken over, and nothing is lost.

        A store that cannot be read raises nothing, for no notebook shall stop at it: `error` says why.
        """
        if self.store is None:
            return
        try:
            there = list(self.store.events(self.study))
        except (OSError, ValueError) as error:
            self._unread = f"The judgements in the store cannot be read: {error}"
            return
        self._work = self._work.merged(there, self.rater, self.names, self.questions)
        self._known, self._unread = len(there), ""

    def _refresh_if_grown(self) -> None:
        """Read the store where it has other events than this session knows of."""
        if self.store is not None and not self._unread:
            with suppress(OSError, ValueError):
                if self.store.count(self.study) != self._known:
                    self.refresh()

    # ---- the place -----------------------------------------------------------------------------------------

    def viewed(self) -> None:
        """The question is on the screen now: from its first view on the time is measured."""
        if self.index not in self._since:
            top = self._work.top(self.index)
            self._since[self.index] = time.monotonic() - (top.duration if top else 0.0)

    def _elapsed(self) -> float:
        """Seconds since the first view of the question on the screen; 0 where nobody has seen it."""
        since = self._since.get(self.index)
        return 0.0 if since is None else max(time.monotonic() - since, 0.0)

    def _remember(self) -> None:
        """Keep the place, what is half done and the time of view for the next kernel; not where saving fails.

        After a judgement at the place that is kept nothing needs to be noted: it makes what was half done stale.
        """
        if self.store is None or self._reason:
            return
        work, now = self._work, time.monotonic()
        half = {self.names[i]: [work.drafts[i], work.shown[i], self._judged(i)] for i in sorted(work.unsent)}
        seconds = {self.names[i]: round(now - at, 3) for i, at in self._since.items() if not work.stacks[i]}
        text = json.dumps({"place": self.names[work.index], "half": half, "seconds": seconds})
        if text != self._kept:
            self.store.keep(self._key, text)
            self._kept, self._place = text, self.names[work.index]

    def _judged(self, index: int) -> str:
        """Which judgement of a question an answer would change; what was half done before another one is stale."""
        top = self._work.top(index)
        return top.id if top else ""

    @property
    def _key(self) -> str:
        """The study and the rater as one text, which that of no other pair equals."""
        return json.dumps([self.study, self.rater])

    def _resume(self) -> None:
        """Go on at the place that was kept, with what was half done; else at the first question that is open."""
        kept = _object(self.store.kept(self._key)) if self.store is not None else {}
        places = {name: i for i, name in enumerate(self.names)}
        for name, half in _entries(kept, "half", places):
            with suppress(ValueError, TypeError):
                self._take_half(places[name], *half)
        for name, seconds in _entries(kept, "seconds", places):
            timed = isinstance(seconds, int | float) and 0 <= seconds < float("inf")
            if timed and not self._work.stacks[places[name]]:
                self._since[places[name]] = time.monotonic() - seconds
        place = kept.get("place")
        at = places.get(place, 0) if isinstance(place, str) else 0
        ahead = [*range(at, len(places)), *range(at)]
        index = next((i for i in ahead if not self._work.stacks[i] or i in self._work.unsent), at)
        self._work = replace(self._work, index=index)

    def _take_half(self, index: int, answer: Answer, shown: Sequence[int], judged: str) -> None:
        """Take over what was half done, if it is an answer to the question and no judgement came after it."""
        question, top = self.questions[index], self._work.top(index)
        order = tuple(int(i) for i in shown)
        typed = question.form in TYPED
        stale = judged != self._judged(index) or sorted(order) != list(range(question.places))
        if stale or (typed and not isinstance(answer, str)):
            return
        answer = answer if typed else question.check(answer)
        if answer != (question.nothing if top is None else question.answer(top.record)):
            orders = (*self._work.shown[:index], order, *self._work.shown[index + 1 :])
            self._work = replace(self._work.with_answer(index, answer, True), shown=orders)


def _object(text: str) -> dict[str, Any]:
    """A JSON object; what is none is empty."""
    with suppress(ValueError, RecursionError):
        value = json.loads(text)
        return value if isinstance(value, dict) else {}
    return {}


def _entries(kept: dict[str, Any], field: str, names: dict[str, int]) -> list[tuple[str, Any]]:
    entries = kept.get(field)
    return [item for item in entries.items() if item[0] in names] if isinstance(entries, dict) else []


def _store(place: StoreLike) -> Store | None:
    if isinstance(place, bool):
        return Store() if place else None
    if isinstance(place, str | Path):
        return Store(place)
    if place is not None and not hasattr(place, "add"):
        raise ValueError(f"store is {short(place)}; expected a Store, the path of one, True for your own, or None")
    return place


def _name(what: str, name: str) -> str:
    if not isinstance(name, str):
        raise ValueError(f"{what} is {short(name)}; expected text. Give a name")
    if len(name) > LONGEST_NAME:
        raise ValueError(f"{what} has {len(name)} characters; expected at most {LONGEST_NAME}. Give a shorter name")
    return name


def _question(number: int, item: object) -> Question:
    try:
        return as_question(item)
    except (TypeError, ValueError) as error:
        raise ValueError(f"question {number}: {error}") from None
