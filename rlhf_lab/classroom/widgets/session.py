"""Judging replies by hand: what is shown, and what the reader does.

Pure Python, no widgets: a view calls these operations and shows these properties. A judgement is an event in a store,
and is called saved when the store has it on the disk. What cannot be saved is kept in memory and is offered again.
All that an operation changes is changed in one assignment, so the reader may interrupt at any point. Chapters 00, 08.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlhf_lab.classroom.widgets.judgements import Step, status_of
from rlhf_lab.classroom.widgets.ordering import letter
from rlhf_lab.classroom.widgets.saving import TYPED, Saving, StoreLike
from rlhf_lab.feedback.events import new_event, read_records, standing
from rlhf_lab.feedback.lines import FeedbackError, short
from rlhf_lab.feedback.questions import Answer, Question, asked, refuse_too_long
from rlhf_lab.records import Conversation, Event, Ranking, Record

ENOUGH, RECENT = 3, 10  # durations that an estimate of the time left rests on: at least, and at most
OUTCOMES = {1: "left is better", 0: "a tie", -1: "right is better"}
Tiers = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Progress:
    """How far the reader is.

    Attributes:
        judged, skipped: questions; what is skipped is not judged.
        total: all questions.
        goal: how many are to be judged.
        unsaved: events that are not on the disk.
        seconds_left: to the goal, at the pace of the last judgements; None where too few were timed.
    """

    judged: int
    skipped: int
    total: int
    goal: int
    unsaved: int
    seconds_left: float | None

    @property
    def finished(self) -> bool:
        """True when the goal is reached or no question is open."""
        return self.judged >= self.goal or self.judged + self.skipped == self.total


class FeedbackSession(Saving):
    """A reader answers one question after the other: ranks, rates, edits, marks, comments, compares.

    Replies are addressed by their position on the screen, from 0; each question shows them in a shuffled order of its
    own. An answer is saved as soon as it is whole, and at `skip` and `all_bad`. It can be changed at any time: one
    event then replaces the one before. What is half done and the place are kept beside the log, for the next time.

    Args:
        questions: each a question of `rlhf_lab.feedback.questions`, or a pair (prompt, replies) to rank. Those whose
            replies are nearly the same are asked last.
        store: where the judgements go: a `Store`, the path of one, or True for the reader's own. None keeps them in
            memory. What is in it of this study and rater is resumed; the rest is left alone.
        study: the name under which the session is resumed.
        rater: who judges.
        seed: of the shuffled orders.
        recorded: records of others, for example simulated ones, that `records` returns before the reader's.
        goal: how many questions are to be judged; all if None.
        auto_advance: go to the next open question as soon as one is answered.
        markdown: show prompts and replies with their Markdown.

    Raises:
        ValueError: no questions, something that is no question, or a name that is none.

    Example:
        >>> session = FeedbackSession([("Where is the zoo?", ["In Mill Street.", "Go away."])])
        >>> session.place(0)
        >>> session.place(1)
        >>> [session.ranks, session.status, session.progress.judged]
        [[1, 2], 'done', 1]

    Chapters 00, 08.
    """

    def __init__(
        self,
        questions: Sequence[Question | tuple],
        store: StoreLike = None,
        *,
        study: str = "",
        rater: str = "you",
        seed: int = 0,
        recorded: Sequence[Record] = (),
        goal: int | None = None,
        auto_advance: bool = False,
        markdown: bool = False,
    ) -> None:
        if goal is not None and (isinstance(goal, bool) or not isinstance(goal, int) or goal < 1):
            raise ValueError(f"goal is {short(goal)}; expected how many questions to judge, at least 1, or None")
        super().__init__(questions, store, study, rater, seed)
        self.recorded, self.goal = tuple(recorded), min(goal or len(self.questions), len(self.questions))
        self.auto_advance, self.markdown = auto_advance, markdown

    @classmethod
    def from_recorded(
        cls,
        path: str | Path,
        store: StoreLike = True,
        *,
        study: str | None = None,
        forms: Sequence[str] = ("rank",),
        **options: Any,
    ) -> "FeedbackSession":
        """Start from the judgements in an event log, so that there is something to learn from before any click.

        What was asked there is asked again, unjudged. The recorded file is only read.

        Args:
            path: of the event log.
            store: where the reader's own judgements go; by default to his own store.
            study: by default the name of the file without its endings.
            forms: which questions to ask again.
            options: the other arguments of the class.

        Raises:
            FeedbackError: the file cannot be read or holds no judgement of these forms.
        """
        path = Path(path)
        recorded = read_records(path)
        found = [question for record in recorded if (question := asked(record)) and question.form in forms]
        if not found:
            kind = "ranking" if tuple(forms) == ("rank",) else f"judgement of the forms {', '.join(forms)}"
            raise FeedbackError(path, f": holds no {kind}. Give the log of a session that has some")
        study = path.name.split(".")[0] if study is None else study
        return cls(list(dict.fromkeys(found)), store, study=study, recorded=recorded, **options)

    # ---- what a view shows ---------------------------------------------------------------------------------

    @property
    def prompt(self) -> Conversation:
        """The conversation of the question on the screen."""
        return self.question.prompt

    @property
    def shown(self) -> tuple[int, ...]:
        """For each position on the screen, which of the question's replies, or of left and right, stands there."""
        return self._work.shown[self.index]

    @property
    def replies(self) -> list[str]:
        """The replies in the order on the screen; none for segments."""
        return [self.question.replies[i] for i in self.shown] if self.question.replies else []

    @property
    def answer(self) -> Answer:
        """What was answered, finished or not, as on the screen: tiers of positions, 1 where the left one is better."""
        answer = self._work.drafts[self.index]
        if self.question.form == "rank":
            return tuple(tuple(sorted(self.shown.index(i) for i in tier)) for tier in answer)
        return self._turned(answer)

    @property
    def ranks(self) -> list[int | None]:
        """For each reply on the screen its rank: 1 is best, equal ranks are ties, None has no place yet."""
        tiers = self.answer if self.question.form == "rank" else ()
        rank = {position: r for r, tier in enumerate(tiers, start=1) for position in tier}
        return [rank.get(position) for position in range(len(self.replies))]

    @property
    def status(self) -> str:
        """Of the question on the screen: "open", "done", "skipped" or "all_bad"."""
        return self.status_at(self.index)

    def status_at(self, index: int) -> str:
        """The status of any question."""
        return status_of(self._work.top(index))

    @property
    def judgement(self) -> Record | None:
        """The record of the question on the screen; None while it is open."""
        top = self._work.top(self.index)
        return top.record if top else None

    @property
    def unsent(self) -> bool:
        """True where the answer on the screen is not handed in: half a ranking, or a text that is being typed."""
        return self.index in self._work.unsent

    @property
    def progress(self) -> Progress:
        """Of the whole session."""
        work, total = self._work, len(self.questions)
        seen = [status_of(work.top(i)) for i, stack in enumerate(work.stacks) if stack]
        skipped = seen.count("skipped")
        judged = len(seen) - skipped
        times = [e.duration for e in work.log if e.duration and not e.target and status_of(e) != "skipped"]
        left = min(max(self.goal - judged, 0), total - judged - skipped)
        pace = statistics.median(times[-RECENT:]) if len(times) >= ENOUGH else None
        return Progress(judged, skipped, total, self.goal, len(work.pending), None if pace is None else pace * left)

    @property
    def finished(self) -> bool:
        """True when the goal is reached or no question is open."""
        return self.progress.finished

    @property
    def says(self) -> str:
        """What happened last, in a sentence."""
        work = self._work
        if not work.judged:
            return work.says
        if self.store is None:
            return f"{work.says} Kept in memory only."
        return f"{work.says} {'Saved' if self.saved else 'NOT saved'} in {self.store.path.name}."

    @property
    def can_undo(self) -> bool:
        """True when there is a step to take back."""
        return bool(self._work.steps)

    @property
    def undo_asks(self) -> str:
        """What to ask before `undo` reaches into another question or an earlier session; "" where it does not."""
        if not self._work.steps:
            return ""
        step = self._work.steps[-1]
        if step.earlier:
            where = f"of question {step.index + 1}, from an earlier session or another window"
            return f"Undo takes back {step.what} {where}. Take it back?"
        return "" if step.index == self.index else f"Undo takes back {step.what} of question {step.index + 1}. Do it?"

    def events(self) -> list[Event]:
        """This reader's own standing events of the study, in the order in which they were judged, saved or not."""
        return standing(self._work.log)

    def records(self) -> list[Record]:
        """What was recorded, then this reader's own."""
        return [*self.recorded, *(event.record for event in self.events() if event.record is not None)]

    def rankings(self) -> list[Ranking]:
        """The rankings among `records`."""
        return [record for record in self.records() if isinstance(record, Ranking)]

    # ---- what the reader does: ranking ---------------------------------------------------------------------

    def place(self, position: int) -> None:
        """Give the reply the next rank, after all that have one."""
        self.move(position, len(self._without(position)))

    def tie(self, position: int) -> None:
        """Give the reply the same rank as the last placed."""
        tiers = self._without(position)
        if not tiers:
            raise ValueError("tie: no other reply has a rank yet; place one first")
        self._put(position, (*tiers[:-1], (*tiers[-1], self.shown[position])))

    def move(self, position: int, rank: int) -> None:
        """Put the reply at `rank` (0 is best) among the others' ranks; those from there on go one down."""
        tiers = self._without(position)
        if isinstance(rank, bool) or not isinstance(rank, int) or not 0 <= rank <= len(tiers):
            raise ValueError(f"rank is {short(rank)}; expected 0 to {len(tiers)}")
        self._put(position, (*tiers[:rank], (self.shown[position],), *tiers[rank:]))

    def remove(self, position: int) -> None:
        """Take the reply's rank away."""
        self._set(self._without(position), f"Reply {letter(position)}, no rank")

    def toggle(self, position: int) -> None:
        """Give the reply the next rank; where it has one, take that away."""
        placed = self.question.form == "rank" and any(position in tier for tier in self.answer)
        (self.remove if placed else self.place)(position)

    def arrange(self, tiers: Sequence[Sequence[int]]) -> None:
        """Give the replies these ranks: positions on the screen, best tier first; some may have none."""
        checked = self._checked("rank", tiers)
        whole = sum(map(len, checked)) == self.question.places
        self._set(self._from_screen(checked), "the ranking" if whole else "another order")

    def rank(self, tiers: Sequence[Sequence[int]]) -> None:
        """Rank all at once: positions on the screen, best tier first, each position once."""
        checked = self._checked("rank", tiers)
        if sum(map(len, checked)) < self.question.places:
            raise ValueError(f"tiers is {short(tiers)}; expected each position of 0 to {self.question.places - 1} once")
        self._set(self._from_screen(checked), "the ranking")

    def all_bad(self) -> None:
        """Judge that none of the replies is acceptable."""
        self._set((), "all bad", self.question.all_bad(self.rater))

    # ---- what the reader does: the other forms -------------------------------------------------------------

    def rate(self, score: int) -> None:
        """Give the reply a score of the scale."""
        score = self._checked("rate", score)
        self._set(score, f"score {score}")

    def edit(self, text: str) -> None:
        """Hand in the reply as it should have been."""
        self._set(self._checked("edit", text), "the edit")

    def mark(self, spans: Sequence[Sequence[int]]) -> None:
        """Hand in the wrong words as (start, end) in characters of the reply; none says that nothing is wrong."""
        spans = self._checked("mark", spans)
        self._set(spans, f"{len(spans)} mark{'' if len(spans) == 1 else 's'}" if spans else "nothing marked")

    def comment(self, text: str) -> None:
        """Hand in a comment."""
        self._set(self._checked("comment", text), "the comment")

    def compare(self, outcome: int) -> None:
        """Say which is better, as on the screen: 1 the left one, -1 the right one, 0 a tie."""
        outcome = self._checked("segments" if self.question.form == "segments" else "compare", outcome)
        self._set(self._turned(outcome), OUTCOMES[outcome])

    def skip(self) -> None:
        """Pass no judgement on this question."""
        self._set(self.question.nothing, "skipped", self.question.skipped(self.rater))

    def draft(self, answer: Answer) -> None:
        """Keep what is typed or marked so far without handing it in; None forgets it."""
        question, top = self.question, self._work.top(self.index)
        if question.form not in (*TYPED, "mark"):
            raise ValueError(f"draft: question {self.index + 1} takes no text and no marks; expected {question.form}")
        if question.form in TYPED and not isinstance(answer, str | None):
            raise ValueError(f"text is {short(answer)}; expected text")
        answer = answer if question.form in TYPED else question.check(answer)
        if isinstance(answer, str):
            refuse_too_long(question, answer)
        handed_in = question.nothing if top is None else question.answer(top.record)
        unchanged = question.replies[0] if question.form == "edit" and handed_in is None else handed_in
        new = handed_in if answer in (None, unchanged) else answer
        self._work = self._work.with_answer(self.index, new, new != handed_in)
        self._remember()

    # ---- to and fro ----------------------------------------------------------------------------------------

    def undo(self, confirmed: bool = False) -> None:
        """Take back the last step. Where `undo_asks` has a question, nothing happens until it is confirmed."""
        if self.undo_asks and not confirmed:
            self._work = replace(self._work, says=self.undo_asks, judged=False)
        elif self._work.steps:
            self._work = self._work.undone(self.questions[self._work.steps[-1].index])
            self.save()
            self._remember()

    def next(self) -> None:
        """Go to the next question; at the last one, stay."""
        self.go(min(self.index + 1, len(self.questions) - 1))

    def previous(self) -> None:
        """Go to the question before; at the first one, stay."""
        self.go(max(self.index - 1, 0))

    def go(self, index: int) -> None:
        """Go to a question, counted from 0. What another window judged meanwhile appears."""
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(self.questions):
            raise ValueError(f"index is {short(index)}; expected 0 to {len(self.questions) - 1}")
        self._refresh_if_grown()
        status = self.status_at(index).replace("_", " ")
        says = f"Question {index + 1} of {len(self.questions)}, {status}."
        self._work = replace(self._work, index=index, says=says, judged=False)
        self._remember()

    # ---- one step ------------------------------------------------------------------------------------------

    def _need(self, form: str) -> None:
        if self.question.form != form:
            problem = f"question {self.index + 1} is of another form"
            raise ValueError(f"{form}: {problem}; expected an answer to {self.question.form}")

    def _checked(self, form: str, answer: Answer) -> Answer:
        self._need(form)
        if answer is None:
            raise ValueError(f"{form}: got None; expected an answer. Skip the question to pass no judgement")
        return self.question.check(answer)

    def _turned(self, outcome: Answer) -> Answer:
        """An outcome of two as on the screen, or back again; other answers as they are."""
        turned = self.question.form in ("compare", "segments") and self.shown[0] == 1
        return -outcome if turned and outcome is not None else outcome

    def _from_screen(self, tiers: Sequence[Sequence[int]]) -> Tiers:
        """Tiers of positions on the screen as tiers of the question's replies."""
        return tuple(tuple(self.shown[position] for position in tier) for tier in tiers)

    def _without(self, position: int) -> Tiers:
        self._need("rank")
        if isinstance(position, bool) or not isinstance(position, int) or not 0 <= position < len(self.shown):
            raise ValueError(f"position is {short(position)}; expected 0 to {len(self.shown) - 1}")
        reply = self.shown[position]
        left = (tuple(other for other in tier if other != reply) for tier in self._work.drafts[self.index])
        return tuple(tier for tier in left if tier)

    def _put(self, position: int, tiers: Tiers) -> None:
        reply = self.shown[position]
        rank, tier = next((r, tier) for r, tier in enumerate(tiers, start=1) if reply in tier)
        self._set(tiers, f"Reply {letter(position)}, rank {rank}{'' if len(tier) == 1 else ', tied'}")

    def _set(self, answer: Answer, what: str, record: Record | None = None) -> None:
        """Another answer to the question on the screen; where it is whole, or `record` is given, it is a judgement."""
        work, index, question = self._work, self.index, self.question
        answer = question.check(answer)
        if isinstance(answer, str):
            refuse_too_long(question, answer)
        record = question.record(answer, self.rater) if record is None else record
        top = work.top(index)
        old = top.record if top else None
        if (answer, record) == (work.drafts[index], old):
            return self.save()
        added = () if record in (None, old) else (self._event(record, top),)
        gone = work.stacks[index] if record is None else ()
        step = Step(index, work.drafts[index], work.standing(index), added, what)
        after = work.with_answer(index, answer, record is None and answer != question.nothing)
        to = self._next_open() if self.auto_advance and added and top is None else index
        whole = " All have a rank." if added and question.form == "rank" and answer else ""
        self._work = replace(
            after.with_events(index, added, gone),
            index=to,
            steps=(*work.steps, step),
            says=f"{what[0].upper()}{what[1:]}.{whole}{'' if to == index else f' Now question {to + 1}.'}",
            judged=bool(added or gone),
        )
        self.save()
        if not added or self.names[self.index] != self._place:
            self._remember()
        return None

    def _event(self, record: Record, top: Event | None) -> Event:
        return new_event(
            record,
            target=top.id if top else "",
            duration=self._elapsed(),
            shown=() if self.question.places == 1 or getattr(record, "replies", True) == () else self.shown,
            study=self.study,
            question=self.names[self.index],
            widget=self.widget,
        )

    def _next_open(self) -> int:
        """The next question that has no judgement; this one where there is none after it."""
        after = range(self.index + 1, len(self.questions))
        return next((i for i in after if not self._work.stacks[i]), self.index)

    def __repr__(self) -> str:
        return f"FeedbackSession({len(self.questions)} questions)"
