"""The memory of a session of feedback: what was answered, which events say so, and how to take a step back.

Everything is frozen. An operation makes a new `Work` and puts it in place of the old one in one assignment, so an
interrupt finds the one or the other and nothing between. Chapter 08.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from rlhf_lab.feedback.events import new_event, standing
from rlhf_lab.feedback.questions import Answer, Question, answers, asked, question_stem
from rlhf_lab.records import Event, Ranking, Rating, Record, Skip

Order = tuple[int, ...]


@dataclass(frozen=True)
class Step:
    """What `undo` takes back.

    Attributes:
        index: of the question.
        draft: its answer before.
        before: the judgements of the question that stood before.
        added: the judgement that the step wrote, if any.
        what: in words, for example "Reply B, rank 2".
        earlier: whether it is from an earlier session, or from another window.
    """

    index: int
    draft: Answer
    before: tuple[Event, ...] = ()
    added: tuple[Event, ...] = ()
    what: str = ""
    earlier: bool = False

    def renamed(self, names: dict[str, Event]) -> "Step":
        """The same step where other events stand in the place of those that were taken back."""
        before = tuple(names.get(event.id, event) for event in self.before)
        return replace(self, before=before, added=tuple(names.get(event.id, event) for event in self.added))


@dataclass(frozen=True)
class Work:
    """All that the operations of a session change.

    Attributes:
        index: of the question on the screen.
        shown: for each question the order on the screen.
        drafts: for each question its answer, finished or not.
        stacks: for each question the reader's own judgements that were not taken back, the latest last; an earlier
            one may be replaced by a later one.
        unsent: the questions whose answer is not part of a judgement.
        log: all own judgements of the study that were not taken back, in order, also of questions that are not here.
        steps: what can be taken back.
        pending: events that are not known to be on the disk.
        says: what happened last.
        judged: whether that was a judgement, so that it matters whether it is saved.
    """

    index: int
    shown: tuple[Order, ...]
    drafts: tuple[Answer, ...]
    stacks: tuple[tuple[Event, ...], ...]
    unsent: frozenset[int] = frozenset()
    log: tuple[Event, ...] = ()
    steps: tuple[Step, ...] = ()
    pending: tuple[Event, ...] = ()
    says: str = ""
    judged: bool = False

    def standing(self, index: int) -> tuple[Event, ...]:
        """The judgements of a question that count: one, or several from several windows."""
        stack = self.stacks[index]
        return stack if len(stack) < 2 else tuple(standing(stack))

    def top(self, index: int) -> Event | None:
        """The judgement of a question that is shown: of several that count, the latest."""
        stack = self.standing(index)
        return stack[-1] if stack else None

    def with_answer(self, index: int, answer: Answer, unsent: bool) -> "Work":
        """With another answer to a question, and whether that is part of no judgement."""
        waiting = self.unsent | {index} if unsent else self.unsent - {index}
        return replace(self, drafts=_with(self.drafts, index, answer), unsent=waiting)

    def with_events(self, index: int, added: Sequence[Event], gone: Sequence[Event]) -> "Work":
        """With judgements of a question added and others taken back."""
        names = {event.id for event in gone}
        stack = tuple(event for event in self.stacks[index] if event.id not in names)
        log = tuple(event for event in self.log if event.id not in names) if names else self.log
        pending = (*self.pending, *map(_taking_back, gone), *added)
        stacks = _with(self.stacks, index, (*stack, *added))
        return replace(self, stacks=stacks, log=(*log, *added), pending=pending)

    def undone(self, question: Question) -> "Work":
        """Without the last step, whose question is `question`."""
        *steps, step = self.steps
        there = {event.id for event in self.stacks[step.index]}
        gone = [event for event in step.added if event.id in there]
        back = {event.id: _again(event) for event in step.before if event.id not in there}
        work = self.with_events(step.index, tuple(back.values()), gone)
        top = work.top(step.index)
        draft = question.answer(top.record) if top is not None and (gone or back) else step.draft
        unsent = draft != (question.nothing if top is None else question.answer(top.record))
        work = work.with_answer(step.index, draft, unsent)
        where = "" if step.index == self.index else f"Question {step.index + 1}. "
        return replace(
            work,
            index=step.index,
            steps=tuple(other.renamed(back) for other in steps) if back else tuple(steps),
            says=f"{where}Took back: {step.what}.",
            judged=bool(gone or back),
        )

    def merged(self, there: Sequence[Event], rater: str, names: Sequence[str], questions: Sequence[Question]) -> "Work":
        """With the events of a store; what this session judged and the store has lost is pending again."""
        known = {event.id for event in [*there, *self.pending]}
        pending = (*(event for event in self.log if event.id not in known), *self.pending)
        stored = {event.id for event in there}
        log = own_events([*there, *(event for event in pending if event.id not in stored)], rater)
        places = places_of(log, names, questions)
        stacks: list[list[Event]] = [[] for _ in questions]
        for event in log:
            if event.id in places:
                stacks[places[event.id]].append(event)
        work = replace(self, stacks=tuple(map(tuple, stacks)), log=log, pending=pending)
        changed = [i for i, stack in enumerate(work.stacks) if stack != self.stacks[i] and i not in self.unsent]
        return replace(work._shown_again(changed, questions), steps=work._known_steps(places, questions))

    def _shown_again(self, changed: Sequence[int], questions: Sequence[Question]) -> "Work":
        """With the answers, and the orders on the screen, of which the judgements of the questions `changed` tell."""
        drafts, shown = list(self.drafts), list(self.shown)
        for i in changed:
            top = self.top(i)
            drafts[i] = questions[i].nothing if top is None else questions[i].answer(top.record)
            if top is not None and questions[i].replies:
                shown[i] = top.shown or tuple(range(questions[i].places))
        return replace(self, drafts=tuple(drafts), shown=tuple(shown))

    def _known_steps(self, places: dict[str, int], questions: Sequence[Question]) -> tuple[Step, ...]:
        """A step for each judgement that this session did not make, and then its own."""
        mine = [step for step in self.steps if not step.earlier]
        by_me = {event.id for step in mine for event in step.added}
        log = {event.id: event for event in self.log}
        theirs = [(places[event.id], event) for event in self.log if event.id in places]
        earlier = [
            Step(i, questions[i].nothing, _found(log, event.target), (event,), described(event.record), True)
            for i, event in theirs
            if event.id not in by_me
        ]
        return (*earlier, *mine)


def _found(log: dict[str, Event], name: str) -> tuple[Event, ...]:
    return (log[name],) if name in log else ()


def _with(values: tuple, index: int, value: object) -> tuple:
    return (*values[:index], value, *values[index + 1 :])


def _taking_back(event: Event) -> Event:
    return new_event(target=event.id, study=event.study, question=event.question, widget=event.widget)


def _again(event: Event) -> Event:
    """The judgement of an event that was taken back, as a new event: to take back is final."""
    around = ("duration", "shown", "study", "question", "widget")
    return new_event(event.record, **{name: getattr(event, name) for name in around})


def status_of(event: Event | None) -> str:
    """What an event says of its question: "open" without one, "done", "skipped" or "all_bad".

    >>> status_of(None)
    'open'
    """
    if event is None:
        return "open"
    if isinstance(event.record, Ranking):
        return event.record.status
    return "skipped" if isinstance(event.record, Skip) else "done"


def described(record: Record | None) -> str:
    """A judgement in a few words, for what undo says.

    >>> described(Skip("Hi", "rate", ("Hello!",)))
    'the skip'
    """
    match record:
        case Ranking(status="done"):
            return "the ranking"
        case Ranking(status="all_bad"):
            return "all bad"
        case Ranking() | Skip():
            return "the skip"
        case Rating():
            return f"score {record.score:g}"
    return {"Edit": "the edit", "Mark": "the marks", "Comment": "the comment"}.get(type(record).__name__, "the choice")


def own_events(events: Sequence[Event], rater: str) -> tuple[Event, ...]:
    """The reader's own judgements that nobody took back, also those that he replaced himself.

    Those of other raters and simulated ones are left out.

    >>> events = [Event(rater, Skip("Hi", "rate", rater=rater)) for rater in ("you", "me")]
    >>> [event.id for event in own_events(events, "me")]
    ['me']
    """
    undone = {event.target for event in events if event.record is None}
    there = [event for event in events if event.record is not None and event.id not in undone]
    own = [event for event in there if event.rater == rater and not event.simulated]
    names = {event.id for event in own}
    theirs = {event.target for event in there if event.id not in names}
    return tuple(event for event in own if event.id not in theirs)


def places_of(events: Iterable[Event], names: Sequence[str], questions: Sequence[Question]) -> dict[str, int]:
    """{id of an event: index of its question}, for those whose question is here.

    Of the events that name no question, as those of the first version, the n-th belongs to the n-th equal question.
    """
    index = {name: i for i, name in enumerate(names)}
    met: dict[str, int] = {}
    found: dict[str, int] = {}
    for event in events:
        place = index.get(event.question) if event.question else found.get(event.target)
        question = asked(event.record) if place is None and not event.question else None
        if question is not None:
            stem = question_stem(question)
            met[stem] = met.get(stem, 0) + 1
            place = index.get(f"{stem}-{met[stem]}")
        if place is not None and answers(event.record, questions[place]):
            found[event.id] = place
    return found
