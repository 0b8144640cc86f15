"""The session of feedback: operations, undo, what is in the store and when, resuming, and what goes wrong."""

import contextlib
import json
import random
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings, strategies as st

import rlhf_lab
from rlhf_lab.classroom.widgets.ordering import asking_order, near_identical
from rlhf_lab.classroom.widgets.session import FeedbackSession
from rlhf_lab.feedback.events import new_event, write_events
from rlhf_lab.feedback.lines import FeedbackError
from rlhf_lab.feedback.questions import (
    CommentOn,
    Compare,
    CompareSegments,
    EditReply,
    MarkWords,
    Rank,
    Rate,
    question_ids,
)
from rlhf_lab.feedback.store import NotSaved, Store
from rlhf_lab.records import Comment, Edit, Event, Ranking, Rating, Segment, Skip, as_conversation

ITEMS = [("Where is the zoo?", ["a b c", "d e f", "g h i"]), ("When?", ["j k l", "m n o"]), ("Why?", list("pqrs"))]
ITEMS[2] = ("Why?", [f"{name} 1 {name} 2 {name} 3" for name in "pqrs"])
PIECES = [Segment("CartPole-v1", ((0.0,), (x,)), ((1,),)) for x in (0.5, 1.5)]
FORMS = [
    Rank(*ITEMS[0]),
    Rate("Hi", "Hello there!"),
    EditReply("Hi", "Hello there!"),
    MarkWords("Hi", "Hello there!"),
    CommentOn("Hi", "Hello there!"),
    Compare("Hi", "Hello there, you!", "Go away, I say!", "sft", "base"),
    CompareSegments("Which one balances?", *PIECES),
    Rank(*ITEMS[1]),
    Rank(*ITEMS[1]),
]
RANK, RATE, EDIT, MARK, COMMENT, COMPARE, SEGMENTS = range(7)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "feedback.db"


@pytest.fixture
def opened(path):
    """Make a session on a store of its own at `path`, as another kernel would; all are closed at the end."""
    with contextlib.ExitStack() as stack:
        yield lambda questions=ITEMS, **options: FeedbackSession(
            questions, stack.enter_context(Store(path)), **{"study": "s"} | options
        )


def stored(path, study=None):
    """The judgements that another program finds in the store."""
    with Store(path) as store:
        return store.standing(study)


def told(records):
    """What rankings say: (first reply, tiers as the first letters of texts, status)."""
    return [(r.replies[0][0], ["".join(r.replies[i][0] for i in tier) for tier in r.tiers], r.status) for r in records]


def judged(session, index, *order):
    """Place the replies of a question in the given order of first letters."""
    session.go(index)
    for first in order:
        session.place([reply[0] for reply in session.replies].index(first))


def answer_all(session):
    """Answer each question that is asked in `FORMS`, in its own form."""
    for index, question in enumerate(session.questions):
        session.go(index)
        answer = {
            "rank": lambda: session.rank([[i] for i in range(len(session.replies))]),
            "rate": lambda: session.rate(4),
            "edit": lambda: session.edit("Hello!"),
            "mark": lambda: session.mark([[0, 5]]),
            "comment": lambda: session.comment("Kind."),
            "compare": lambda: session.compare(1),
            "segments": lambda: session.compare(-1),
        }
        answer[question.form]()


# ---- ranking -----------------------------------------------------------------------------------------------


def test_placing_in_order_ranks():
    session = FeedbackSession(ITEMS)
    judged(session, 0, "d", "g")
    assert (session.status, session.unsent, told(session.rankings())) == ("open", True, [])
    session.place([reply[0] for reply in session.replies].index("a"))
    assert (session.status, session.unsent) == ("done", False)
    assert told(session.rankings()) == [("a", ["d", "g", "a"], "done")]
    [event] = session.events()
    assert event.record == Ranking(as_conversation(ITEMS[0][0]), tuple(ITEMS[0][1]), ((1,), (2,), (0,)), "done", "you")
    assert [event.record.replies[i] for i in event.shown] == session.replies
    assert (event.question, event.study, event.target) == (session.names[0], "", "")


def test_a_ranking_of_four_takes_four_operations():
    session = FeedbackSession(ITEMS[2:])
    for position in range(4):
        session.place(position)
    assert session.status == "done"


def test_ties_share_a_rank():
    session = FeedbackSession(ITEMS)
    session.go(2)
    session.place(2)
    session.tie(0)
    session.place(3)
    session.tie(1)
    assert session.ranks == [1, 2, 1, 2]
    assert session.answer == ((0, 2), (1, 3))
    with pytest.raises(ValueError, match="tie: no other reply has a rank yet"):
        FeedbackSession(ITEMS).tie(0)


def test_moving_inserting_and_removing():
    session = FeedbackSession(ITEMS)
    session.rank([[0], [1], [2]])
    session.move(2, 0)
    assert session.ranks == [2, 3, 1]
    session.move(2, 1)  # between the two others
    assert session.ranks == [1, 3, 2]
    session.move(2, 2)
    assert session.ranks == [1, 2, 3]
    session.remove(1)
    assert (session.ranks, session.status) == ([1, None, 2], "open")
    session.place(0)  # already placed: goes to the end
    assert session.ranks == [2, None, 1]
    session.rank([[1, 2], [0]])
    assert session.ranks == [2, 1, 1]


@pytest.mark.parametrize("status", ["skipped", "all_bad"])
def test_skipping_and_all_bad(status):
    session = FeedbackSession(ITEMS)
    session.place(0)
    session.skip() if status == "skipped" else session.all_bad()
    assert (session.status, session.ranks, told(session.rankings())) == (status, [None] * 3, [("a", [], status)])
    progress = session.progress
    assert (progress.judged, progress.skipped) == ((0, 1) if status == "skipped" else (1, 0))
    session.place(1)  # on second thoughts
    assert (session.status, told(session.rankings())) == ("open", [])


# ---- the other forms ---------------------------------------------------------------------------------------


def test_every_form_reaches_the_store(opened, path):
    session = opened(FORMS)
    answer_all(session)
    assert session.finished
    assert session.saved
    events = stored(path, "s")
    assert [type(event.record).__name__ for event in events] == (
        ["Ranking", "Rating", "Edit", "Mark", "Comment", "Choice", "SegmentChoice", "Ranking", "Ranking"]
    )
    assert [event.question for event in events] == session.names
    assert {event.record.rater for event in events} == {"you"}
    again = opened(FORMS)
    for index in range(len(FORMS)):
        session.go(index)
        again.go(index)
        assert (again.answer, again.status, again.replies) == (session.answer, "done", session.replies)


def test_every_form_can_be_skipped_and_taken_back(opened, path):
    session = opened(FORMS)
    for index in range(len(FORMS)):
        session.go(index)
        session.skip()
        assert session.status == "skipped"
    assert (session.progress.judged, session.progress.skipped, session.finished) == (0, len(FORMS), True)
    assert [getattr(event.record, "form", "rank") for event in stored(path)] == [q.form for q in session.questions]
    again = opened(FORMS)
    for index in reversed(range(len(FORMS))):
        again.undo(confirmed=True)
        assert (again.index, again.status) == (index, "open")
    assert stored(path) == []


@pytest.mark.parametrize("index", [COMPARE, SEGMENTS])
def test_left_and_right_are_those_of_the_screen(index):
    found = set()
    for seed in range(20):
        session = FeedbackSession(FORMS, seed=seed)
        session.go(index)
        session.compare(1)
        assert session.answer == 1
        [event] = session.events()
        assert event.record.outcome == (1 if event.shown == (0, 1) else -1)
        if index == COMPARE:
            assert session.replies == [(event.record.left, event.record.right)[i] for i in event.shown]
            assert (event.record.left_source, event.record.right_source) == ("sft", "base")
        found.add(event.shown)
    assert found == {(0, 1), (1, 0)}


def test_a_text_that_is_typed_is_no_judgement():
    session = FeedbackSession(FORMS)
    for index, hand_in in ((EDIT, session.edit), (COMMENT, session.comment)):
        session.go(index)
        session.draft(" ")
        assert (session.answer, session.unsent, session.status) == (" ", True, "open")
        hand_in("Better.")
        assert (session.answer, session.unsent, session.status) == ("Better.", False, "done")
        session.draft("Better. And")
        assert (session.unsent, session.status, session.judgement.rater) == (True, "done", "you")
        session.draft(None)
        assert (session.answer, session.unsent) == ("Better.", False)
    assert len(session.events()) == 2
    session.go(EDIT)
    session.undo(confirmed=True)
    session.undo(confirmed=True)
    session.go(EDIT)
    session.draft("Hello there!")  # the reply as it is: nothing was written yet
    assert session.unsent is False
    session.go(MARK)
    session.draft([[0, 2]])
    assert (session.answer, session.unsent, session.status) == (((0, 2),), True, "open")


WRONG = [
    (RANK, lambda s: s.place(3), "position is 3; expected 0 to 2"),
    (RANK, lambda s: s.place(-1), "position is -1; expected 0 to 2"),
    (RANK, lambda s: s.place(True), "position is True; expected 0 to 2"),
    (RANK, lambda s: s.place("0"), "position is '0'; expected 0 to 2"),
    (RANK, lambda s: s.tie(0), "tie: no other reply has a rank yet; place one first"),
    (RANK, lambda s: s.move(0, 1), "rank is 1; expected 0 to 0"),
    (RANK, lambda s: s.move(0, -1), "rank is -1; expected 0 to 0"),
    (RANK, lambda s: s.move(0, 0.0), "rank is 0.0; expected 0 to 0"),
    (RANK, lambda s: s.rank([[0], [1]]), "expected each position of 0 to 2 once"),
    (RANK, lambda s: s.rank([[0], [1, 2], []]), "none of them empty"),
    (RANK, lambda s: s.rank([[0], [1, 2, 2]]), "each reply at most once"),
    (RANK, lambda s: s.rank(None), "rank: got None; expected an answer"),
    (RANK, lambda s: s.rate(3), "rate: question 1 is of another form; expected an answer to rank"),
    (RANK, lambda s: s.compare(1), "compare: question 1 is of another form"),
    (RANK, lambda s: s.draft("x"), "draft: question 1 takes no text and no marks; expected rank"),
    (RATE, lambda s: s.place(0), "rank: question 2 is of another form; expected an answer to rate"),
    (RATE, lambda s: s.all_bad(), "all bad: .*expected rank, got rate"),
    (RATE, lambda s: s.rate(6), "score is 6; expected a whole number from 1 to 5"),
    (RATE, lambda s: s.rate(None), "rate: got None; expected an answer. Skip the question to pass no judgement"),
    (EDIT, lambda s: s.edit(""), "the edited reply is empty"),
    (EDIT, lambda s: s.edit("\0" * 2**22), r"takes \d+ bytes; a line may have"),
    (EDIT, lambda s: s.draft(3), "text is 3; expected text"),
    (EDIT, lambda s: s.draft("\0" * 2**22), r"takes \d+ bytes; a line may have"),
    (MARK, lambda s: s.mark([[0, 99]]), "within 0 to 12"),
    (MARK, lambda s: s.draft([[0, 99]]), "within 0 to 12"),
    (COMMENT, lambda s: s.comment(" "), "the comment is empty"),
    (COMPARE, lambda s: s.compare(2), "outcome is 2; expected 1"),
    (SEGMENTS, lambda s: s.compare("1"), "outcome is '1'; expected 1"),
    (RANK, lambda s: s.go(9), "index is 9; expected 0 to 8"),
    (RANK, lambda s: s.go(-1), "index is -1; expected 0 to 8"),
    (RANK, lambda s: s.go(1.0), "index is 1.0; expected 0 to 8"),
]


@pytest.mark.parametrize(("index", "wrong", "expected"), WRONG)
def test_impossible_operations_say_why_and_change_nothing(index, wrong, expected):
    session = FeedbackSession(FORMS)
    session.go(index)
    before = session._work
    with pytest.raises(ValueError, match=expected):
        wrong(session)
    assert session._work is before


# ---- making a session --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("items", "options", "expected"),
    [
        ([], {}, "questions is empty; expected questions, or pairs"),
        ([("Hi", ["only one"])], {}, "question 1: replies holds 1; expected at least 2"),
        ([*ITEMS, ("Hi", ["a", None])], {}, "question 4: replies holds null; expected texts"),
        ([("Hi", "ab")], {}, "question 1: replies is a text; expected several"),
        ([([], ["a", "b"])], {}, "question 1: prompt is"),
        ([("Hi",)], {}, "question 1: got .*; expected a question such as Rank"),
        ([*ITEMS, None], {}, "question 4: got null"),
        ([*ITEMS, ("Hi", ["\0" * 2**22, "b"])], {}, r"question 4: a judgement of it takes \d+ bytes"),
        (ITEMS, {"rater": ""}, "rater is empty; expected a name"),
        (ITEMS, {"rater": None}, "rater is null; expected text. Give a name"),
        (ITEMS, {"rater": b"Ann"}, "rater is b'Ann'; expected text"),
        (ITEMS, {"rater": "x" * 2**20}, "rater has 1048576 characters; expected at most 200. Give a shorter name"),
        (ITEMS, {"study": 3}, "study is 3; expected text"),
        (ITEMS, {"study": "x" * 201}, "study has 201 characters; expected at most 200"),
        (ITEMS, {"goal": 0}, "goal is 0; expected how many questions to judge, at least 1, or None"),
        (ITEMS, {"goal": True}, "goal is True"),
        (ITEMS, {"goal": 2.0}, "goal is 2.0"),
        (ITEMS, {"store": 3}, "store is 3; expected a Store, the path of one, True for your own, or None"),
    ],
)
def test_impossible_sessions(items, options, expected):
    with pytest.raises(ValueError, match=expected):
        FeedbackSession(items, **options)


ODD_NAMES = [
    "",
    " ",
    "../../etc/passwd",
    "a\0b",
    "\ud800",
    "'; DROP TABLE events; --",
    "\u202e\x1b[31m",
    "ü" * 199,
    "%s{}",
]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names_are_accepted_whole_and_are_no_paths(name, opened, path, tmp_path):
    rater = name or "you"
    session = opened(study=name, rater=rater)
    session.all_bad()
    session.next()
    session.place(0)
    [event] = stored(path, name)
    assert (event.study, event.rater) == (name, rater)
    again = opened(study=name, rater=rater)
    assert (again.status_at(0), again.index, again.ranks) == ("all_bad", 1, session.ranks)
    assert {file.name.partition("-")[0] for file in tmp_path.iterdir()} == {"feedback.db"}
    other = opened(study=name, rater=rater + "x")
    assert (other.status_at(0), other.index, other.unsent) == ("open", 0, False)


def test_near_identical_replies_are_not_asked_first():
    near = ("Where?", ["The zoo is in Mill Street.", "The zoo is in Church Street.", "The zoo in Mill Street."])
    far = ("Where?", ["The zoo is in Mill Street.", "I do not know where it is."])
    given = [near, far, Rate("Hi", "Hello!"), ("Hi", ["a", "a"]), far]
    session = FeedbackSession(given)
    assert [near_identical(question) for question in session.questions] == [False, False, False, True, True]
    assert [q.replies[0] for q in session.questions] == ["The zoo is in Mill Street.", "Hello!"] + [
        "The zoo is in Mill Street."
    ] * 2 + ["a"]
    assert asking_order(session.questions) == [0, 1, 2, 3, 4]
    assert session.names[0] == question_ids(FeedbackSession([far]).questions)[0]  # sorting changes no name


def test_the_order_on_the_screen_is_shuffled_by_the_seed():
    items = [("Hi", [f"reply {i}" for i in range(4)])] * 50
    orders = []
    for seed in (1, 1, 2):
        session = FeedbackSession(items, seed=seed)
        orders.append([session._work.shown[i] for i in range(50)])
    assert orders[0] == orders[1] != orders[2]
    assert len(set(orders[0])) > 12  # 24 orders; fewer than 13 of them in 50 draws: p < 1e-6
    assert FeedbackSession(ITEMS)._work.shown == ((0, 2, 1), (0, 1), (0, 3, 2, 1))  # the same in every Python


def test_one_megabyte_texts(opened, path):
    session = opened([Rank("p" * 2**20, ["x" * 2**20, "y " * 2**19]), EditReply("Hi", "z")])
    session.rank([[1], [0]])
    session.next()
    session.edit("e" * 2**20)
    again = opened([Rank("p" * 2**20, ["x" * 2**20, "y " * 2**19]), EditReply("Hi", "z")])
    assert again.records() == session.records()


# ---- progress ----------------------------------------------------------------------------------------------


def test_progress_counts_what_is_judged_and_not_what_is_skipped():
    session = FeedbackSession(FORMS, goal=2)
    assert session.progress == rlhf_lab.classroom.widgets.session.Progress(0, 0, 9, 2, 0, None)
    session.skip()
    assert (session.progress.judged, session.progress.skipped, session.finished) == (0, 1, False)
    session.next()
    session.rate(3)
    session.next()
    assert not session.finished
    session.edit("Better.")
    assert (session.progress.judged, session.finished) == (2, True)
    assert session.progress.unsaved == 3
    assert FeedbackSession(ITEMS, goal=99).progress.goal == 3


def test_the_time_left_is_the_median_of_the_last_durations_times_what_is_left(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    session = FeedbackSession([("Hi", [f"a {i} b", f"c {i} {i + 99}"]) for i in range(20)], goal=15)
    for number, seconds in enumerate((50.0, 2.0, 4.0, 2.0)):
        assert session.progress.seconds_left == {3: 12 * 4.0}.get(number)
        session.viewed()
        session.viewed()  # the first view counts
        now[0] += seconds
        session.all_bad()
        session.next()
    assert session.progress.seconds_left == 11 * 3.0
    assert [event.duration for event in session.events()] == [50.0, 2.0, 4.0, 2.0]
    session.viewed()
    now[0] += 1000
    session.skip()  # says nothing of how long judging takes
    assert session.progress.seconds_left == 11 * 3.0
    for _ in range(10):  # only the last ten count
        session.next()
        session.viewed()
        now[0] += 1.0
        session.all_bad()
    assert session.progress.seconds_left == 1 * 1.0
    session.next()
    session.all_bad()  # nobody saw it: no time was measured
    assert session.events()[-1].duration == 0
    assert session.progress.seconds_left == 0


def test_the_estimate_stops_at_what_can_be_judged(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    session = FeedbackSession([("Hi", [f"a {i} b", f"c {i} {i + 99}"]) for i in range(5)])
    for _ in range(3):
        session.viewed()
        now[0] += 10
        session.all_bad()
        session.next()
    assert session.progress.seconds_left == 20
    session.skip()
    assert session.progress.seconds_left == 10


def test_a_change_is_timed_from_the_first_view(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    session = FeedbackSession(ITEMS)
    session.viewed()
    now[0] = 5
    session.all_bad()
    now[0] = 9
    session.rank([[0], [1], [2]])
    assert [event.duration for event in session.events()] == [9]


def test_auto_advance_goes_to_the_next_open_question():
    session = FeedbackSession(FORMS, auto_advance=True)
    session.go(1)
    session.skip()
    assert session.index == 2
    session.edit("Better.")
    assert (session.index, session.says) == (3, "The edit. Now question 4. Kept in memory only.")
    session.go(0)
    session.rank([[0], [1], [2]])
    assert session.index == 3  # past those that are answered
    session.go(0)
    session.move(0, 2)  # to change an answer is to stay
    assert session.index == 0
    session.go(8)
    session.all_bad()
    assert session.index == 8


def test_going_to_and_fro_stays_inside():
    session = FeedbackSession(ITEMS)
    session.previous()
    assert session.index == 0
    for _ in range(5):
        session.next()
    assert (session.index, session.says) == (2, "Question 3 of 3, open.")


# ---- what is said, and undo --------------------------------------------------------------------------------


def test_it_says_what_happened(opened):
    session = opened(FORMS)
    said = []
    for work in (
        lambda: session.place(1),
        lambda: session.tie(0),
        lambda: session.remove(0),
        lambda: session.place(0),
        lambda: session.place(2),
        session.undo,
        session.skip,
        session.undo,
        session.all_bad,
        session.next,
        lambda: session.rate(4),
    ):
        work()
        said.append(session.says)
    saved = "Saved in feedback.db."
    assert said == [
        "Reply B, rank 1.",
        "Reply A, rank 1, tied.",
        "Reply A, no rank.",
        "Reply A, rank 2.",
        f"Reply C, rank 3. All have a rank. {saved}",
        f"Took back: Reply C, rank 3. {saved}",
        f"Skipped. {saved}",
        f"Took back: skipped. {saved}",
        f"All bad. {saved}",
        "Question 2 of 9, open.",
        f"Score 4. {saved}",
    ]
    for index, work, what in (
        (EDIT, lambda: session.edit("x"), "The edit."),
        (MARK, lambda: session.mark([[0, 1], [2, 3]]), "2 marks."),
        (MARK, lambda: session.mark([]), "Nothing marked."),
        (COMMENT, lambda: session.comment("x"), "The comment."),
        (COMPARE, lambda: session.compare(0), "A tie."),
        (SEGMENTS, lambda: session.compare(-1), "Right is better."),
    ):
        session.go(index)
        work()
        assert session.says == f"{what} {saved}"


def test_undo_goes_back_over_questions_and_judgements():
    session = FeedbackSession(FORMS)
    states = []

    def remember():
        judged_ = {event.question: event.record for event in session.events()}
        states.append((session.index, session.answer, session.status, judged_))

    def step(work):
        remember()
        work()

    for work in (
        lambda: session.place(1),
        lambda: session.rank([[0], [1, 2]]),
        lambda: session.move(2, 0),  # a change
        lambda: session.move(2, 1),  # and another
        lambda: session.remove(0),  # which takes back three events
        lambda: session.place(0),
        session.skip,
        session.all_bad,
    ):
        step(work)
    session.go(COMPARE)
    for work in (lambda: session.compare(1), lambda: session.compare(0), session.skip):
        step(work)
    for state in reversed(states):
        session.undo(confirmed=True)
        judged_ = {event.question: event.record for event in session.events()}
        assert (session.index, session.answer, session.status, judged_) == state
    assert (session.can_undo, session.undo_asks) == (False, "")
    session.undo()
    assert session.says == "Question 1. Took back: Reply B, rank 2." or session.says.startswith("Took back")


def test_what_changes_nothing_is_no_step():
    session = FeedbackSession(FORMS)
    session.skip()
    session.skip()
    session.next()
    session.rate(4)
    session.rate(4.0)
    assert len(session._work.steps) == 2


def test_undo_asks_before_it_reaches_into_another_question():
    session = FeedbackSession(ITEMS)
    session.skip()
    assert session.undo_asks == ""
    session.next()
    session.next()
    assert session.undo_asks == "Undo takes back skipped of question 1. Do it?"
    session.undo()
    assert (session.index, session.status_at(0), session.says) == (2, "skipped", session.undo_asks)
    session.undo(confirmed=True)
    assert (session.index, session.status) == (0, "open")
    assert session.says == "Question 1. Took back: skipped. Kept in memory only."


def test_undo_asks_before_it_reaches_into_an_earlier_session(opened, path):
    session = opened()
    judged(session, 0, "g", "a", "d")
    again = opened()
    again.go(0)
    assert again.undo_asks == (
        "Undo takes back the ranking of question 1, from an earlier session or another window. Take it back?"
    )
    again.undo()
    assert (again.status, len(stored(path))) == ("done", 1)
    again.undo(confirmed=True)
    assert (again.status, again.ranks, stored(path)) == ("open", [None] * 3, [])
    assert again.says == "Took back: the ranking. Saved in feedback.db."


def test_a_change_and_an_undo_are_one_event_each(opened, path):
    session = opened()
    session.rank([[0], [1], [2]])
    session.move(0, 2)
    session.undo()
    with Store(path) as store:
        first, change, undo = store.events("s")
    assert (first.target, change.target, undo.target) == ("", first.id, change.id)
    assert (undo.record, change.record.status, change.question) == (None, "done", first.question)
    assert undo.question == first.question
    assert stored(path) == [first] == session.events()
    assert session.ranks == [1, 2, 3]


def test_changes_can_be_taken_back_after_a_restart(opened, path):
    session = opened(FORMS)
    session.go(RATE)
    for score in (1, 2, 3):
        session.rate(score)
    again = opened(FORMS)
    for score in (2, 1, None):
        again.undo(confirmed=True)
        assert (again.index, again.answer) == (RATE, score)
        assert [event.record.score for event in stored(path)] == ([score] if score else [])
    assert not again.can_undo


def test_a_removal_in_an_earlier_judgement_can_be_undone_to_the_end(opened, path):
    session = opened()
    session.rank([[0], [1], [2]])
    session.move(0, 2)
    again = opened()
    again.go(0)
    again.remove(1)
    assert stored(path) == []
    for ranks in ([3, 1, 2], [1, 2, 3], [None] * 3):
        again.undo(confirmed=True)
        assert again.ranks == ranks
        assert len(stored(path)) == (ranks[0] is not None)
    assert not again.can_undo


# ---- a random reader and a simple reference -----------------------------------------------------------------


class Reference:
    """What a session should be, the simple way: answers, statuses, and copies of them to go back to."""

    def __init__(self, session):
        self.index, self.size = session.index, len(session.questions)
        self.forms = [question.form for question in session.questions]
        self.state = [((), "open") if form == "rank" else (None, "open") for form in self.forms]
        self.history = []

    def set(self, answer, status):
        if self.state[self.index] != (answer, status):
            self.history.append((self.index, self.state[self.index]))
            self.state[self.index] = answer, status

    def undo(self):
        self.index, old = self.history.pop()
        self.state[self.index] = old

    def without(self, position):
        tiers = (tuple(p for p in tier if p != position) for tier in self.state[self.index][0])
        return tuple(tier for tier in tiers if tier)

    def ranked(self, tiers, count):
        tiers = tuple(tuple(sorted(tier)) for tier in tiers)
        self.set(tiers, "done" if sum(map(len, tiers)) == count else "open")

    def restart(self):
        """Where a killed session goes on: at its place, unless that is answered and another is not."""
        ahead = [*range(self.index, self.size), *range(self.index)]
        self.index = next((i for i in ahead if self.state[i][1] == "open"), self.index)
        self.history = []


def random_step(draw, session, reference):
    """One operation on both, drawn at random; those that the form does not know go to another question."""
    index, form, count = reference.index, reference.forms[reference.index], len(session.replies)
    kind = draw(["answer", "answer", "answer", "skip", "undo", "next", "previous", "go"])
    if kind == "undo" and reference.history:
        session.undo(confirmed=True)
        reference.undo()
    elif kind == "skip":
        session.skip()
        reference.set(() if form == "rank" else None, "skipped")
    elif kind in ("next", "previous", "go"):
        to = {"next": min(index + 1, reference.size - 1), "previous": max(index - 1, 0)}
        to = to.get(kind, draw(range(reference.size)))
        session.go(to) if kind == "go" else getattr(session, kind)()
        reference.index = to
    elif form == "rank":
        random_ranking(draw, session, reference, count)
    elif kind == "answer":
        operation, answers = {
            "rate": (session.rate, [1, 2, 5]),
            "edit": (session.edit, ["x", "Hello there!", "\ud800"]),
            "mark": (session.mark, [(), ((0, 3),), ((0, 3), (5, 7))]),
            "comment": (session.comment, ["x", "y"]),
            "compare": (session.compare, [1, 0, -1]),
            "segments": (session.compare, [1, 0, -1]),
        }[form]
        answer = draw(answers)
        operation(answer)
        reference.set(answer, "done")


def random_ranking(draw, session, reference, count):
    kind, position = draw(["place", "place", "place", "tie", "move", "remove", "all_bad"]), draw(range(count))
    tiers = reference.without(position)
    if kind == "place":
        session.place(position)
        reference.ranked((*tiers, (position,)), count)
    elif kind == "tie" and tiers:
        session.tie(position)
        reference.ranked((*tiers[:-1], (*tiers[-1], position)), count)
    elif kind == "move":
        rank = draw(range(len(tiers) + 1))
        session.move(position, rank)
        reference.ranked((*tiers[:rank], (position,), *tiers[rank:]), count)
    elif kind == "remove":
        session.remove(position)
        reference.ranked(tiers, count)
    elif kind == "all_bad":
        session.all_bad()
        reference.set((), "all_bad")


def compare_with(reference, session, path):
    """The session shows what the reference says, and the store that another program opens holds each judgement."""
    assert session.index == reference.index
    for index, (answer, status) in enumerate(reference.state):
        assert session.status_at(index) == status
        if index == session.index:
            assert session.answer == answer
    assert session.saved
    events = {event.question: event for event in stored(path, "s")}
    held = [i for i, (_, status) in enumerate(reference.state) if status != "open"]
    assert sorted(events) == sorted(session.names[i] for i in held)
    assert len(stored(path, "s")) == len(held)
    for i in held:
        question, event = session.questions[i], events[session.names[i]]
        assert (getattr(event.record, "status", "done") in ("done", reference.state[i][1])) is True
        assert isinstance(event.record, Skip) == (reference.state[i][1] == "skipped" and question.form != "rank")
        if i == session.index and reference.state[i][1] == "done":
            order = session.shown
            shown = (
                tuple(tuple(sorted(order[p] for p in tier)) for tier in session.answer)
                if question.form == "rank"
                else 0
            )
            assert question.form != "rank" or event.record.tiers == shown


@settings(max_examples=30, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(st.integers(0, 10**9), st.integers(5, 40))
def test_a_random_reader_who_is_killed_at_any_time_loses_nothing(tmp_path_factory, seed, steps):
    chance = random.Random(seed)
    path = tmp_path_factory.mktemp("any") / "feedback.db"
    with contextlib.ExitStack() as stack:
        session = FeedbackSession(FORMS, stack.enter_context(Store(path)), study="s", seed=3)
        reference = Reference(session)
        for _ in range(steps):
            if chance.random() < 0.15:  # the kernel is killed, and the cell is run again
                session = FeedbackSession(FORMS, stack.enter_context(Store(path)), study="s", seed=3)
                reference.restart()
            random_step(lambda values: chance.choice(list(values)), session, reference)
            compare_with(reference, session, path)
        again = FeedbackSession(FORMS, stack.enter_context(Store(path)), study="s", seed=3)
        reference.restart()
        compare_with(reference, again, path)
        for index in range(len(FORMS)):  # half answers too
            again.go(index)
            assert again.answer == reference.state[index][0]


# ---- resuming ----------------------------------------------------------------------------------------------


def test_a_session_goes_on_where_it_was(opened, path):
    session = opened(seed=1)
    assert not path.exists()  # looking writes nothing
    judged(session, 0, "g", "a", "d")
    session.next()
    session.skip()
    again = opened(seed=4)
    assert again.records() == session.records()
    assert (again.index, again.progress.judged, again.progress.skipped, again.saved) == (2, 1, 1, True)
    session.go(0)
    again.go(0)
    assert (again.replies, again.ranks) == (session.replies, session.ranks)
    assert FeedbackSession(ITEMS, seed=4).replies != session.replies  # so the order of the event was taken over
    assert path.stat().st_mode & 0o077 == 0


def test_half_a_ranking_the_place_and_the_time_survive(opened, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    session = opened(FORMS, seed=1)
    session.go(EDIT)
    session.draft("Half a sen")
    session.go(0)
    session.viewed()
    now[0] = 7.0
    session.place(2)
    now[0] = 1000.0  # the kernel was dead for long: that is no time of view
    again = opened(FORMS, seed=5)
    assert (again.index, again.ranks, again.replies) == (0, [None, None, 1], session.replies)
    assert again.unsent
    now[0] = 1003.0
    again.place(0)
    again.place(1)
    assert again.events()[0].duration == 10.0
    again.go(EDIT)
    assert (again.answer, again.unsent) == ("Half a sen", True)
    again.edit("Half a sentence")
    assert opened(FORMS).progress.judged == 2


def test_an_edit_of_what_was_handed_in_survives_too(opened):
    session = opened(FORMS)
    session.go(COMMENT)
    session.comment("Kind.")
    session.draft("Kind, but")
    again = opened(FORMS)
    assert (again.index, again.answer, again.unsent, again.status) == (COMMENT, "Kind, but", True, "done")
    assert again.judgement == session.judgement


def test_questions_may_be_added_and_reordered_between_sessions(opened):
    session = opened()
    judged(session, 1, "m", "j")
    session.go(2)
    session.place(1)
    again = opened([*FORMS, *reversed(ITEMS)])
    assert again.question.prompt == as_conversation("Why?")
    assert again.ranks == session.ranks
    assert again.progress.judged == 1
    few = opened(ITEMS[:1])
    assert (few.progress.judged, len(few.events()), few.progress.total) == (0, 1, 1)  # still the reader's own


KEPT = ["", "null", "[]", "3", "{", '{"place": 3}', '{"place": ["x"], "half": 3, "seconds": []}', "[" * 10**5]


@pytest.mark.parametrize("text", KEPT)
def test_a_place_that_makes_no_sense_is_forgotten(text, opened, path):
    with Store(path) as store:
        store.keep(json.dumps(["s", "you"]), text)
    assert (opened().index, opened().unsent) == (0, False)


@pytest.mark.parametrize(
    "half",
    [
        3,
        [],
        [[[0]], [0, 1, 2]],
        [[[9]], [0, 1, 2], ""],
        [[[0]], [0, 1], ""],
        [[[0]], [0, 1, 2], "id"],
        ["x", [0, 1, 2], ""],
        [[[0]], [None] * 3, ""],
        [[], [], ""],
    ],
)
def test_half_an_answer_that_makes_no_sense_is_forgotten(half, opened, path):
    name = FeedbackSession(ITEMS).names[0]
    with Store(path) as store:
        kept = {"place": name, "half": {name: half, "gone": [[], []]}, "seconds": {name: "x", "gone": 3}}
        store.keep(json.dumps(["s", "you"]), json.dumps(kept))
    session = opened()
    assert (session.ranks, session.unsent, session._since) == ([None] * 3, False, {})


def test_other_raters_studies_and_simulated_people_are_left_alone(opened, path):
    name = FeedbackSession(ITEMS).names[1]
    mine = Ranking(as_conversation("When?"), ("j k l", "m n o"), ((1,), (0,)), rater="friend")
    copy = Ranking(as_conversation("When?"), ("j k l", "m n o"), ((1,), (0,)), rater="you", simulated=True)
    others = [
        new_event(mine, study="s", question=name),
        new_event(copy, study="s", question=name),
        new_event(Comment(as_conversation("When?"), "j k l", "Short.", rater="you"), study="other"),
        new_event(Skip(as_conversation("When?"), "rate", rater="friend"), study="s"),
    ]
    with Store(path) as store:
        store.add(*others)
    session = opened()
    assert (session.progress.judged, session.records(), session.can_undo) == (0, [], False)
    judged(session, 1, "j", "m")
    session.move(0, 0)
    session.undo()
    session.undo()
    judged(session, 1, "j", "m")
    assert [event for event in stored(path) if event.rater != "you" or event not in session.events()] == others
    friend = opened(rater="friend")
    assert (friend.progress.judged, friend.status_at(1)) == (1, "done")


def test_an_answer_that_fits_no_question_is_kept_and_not_shown(opened, path):
    name = FeedbackSession(ITEMS).names[0]
    with Store(path) as store:
        store.add(new_event(Rating("Hi", "x", 3, rater="you"), study="s", question=name))
    session = opened()
    assert (session.status, len(session.records()), session.progress.judged) == ("open", 1, 0)
    session.all_bad()
    assert len(stored(path)) == 2


def test_equal_questions_are_judged_apart(opened):
    items = [ITEMS[1], ITEMS[1]]
    session = opened(items)
    judged(session, 0, "j", "m")
    judged(session, 1, "m", "j")
    again = opened(items)
    assert again.progress.judged == 2
    assert told(again.rankings()) == [("j", ["j", "m"], "done"), ("j", ["m", "j"], "done")]
    again.go(1)
    again.skip()
    assert told(opened(items).rankings()) == [("j", ["j", "m"], "done"), ("j", [], "skipped")]


def test_events_of_the_first_version_belong_to_equal_questions_in_turn(opened, path):
    tiers = [((0,), (1,)), ((1,), (0,)), ((0, 1),)]
    with Store(path) as store:
        for number, tier in enumerate(tiers):
            record = Ranking(as_conversation("When?"), ("j k l", "m n o"), tier, rater="you")
            store.add(Event(f"old-{number}", record, study="s"))
        change = Ranking(as_conversation("When?"), ("j k l", "m n o"), (), "all_bad", "you")
        store.add(Event("old-3", change, "old-0", study="s"))
    session = opened([ITEMS[1]] * 2)
    assert [session.status_at(0), session.status_at(1)] == ["all_bad", "done"]
    session.go(1)
    assert (session.shown, session.answer) == ((0, 1), ((1,), (0,)))
    assert len(session.records()) == 3


# ---- two windows -------------------------------------------------------------------------------------------


def test_what_another_window_judged_appears_when_one_goes_on(opened, path):
    first, second = opened(), opened()
    first.all_bad()
    assert second.status_at(0) == "open"
    second.next()
    assert second.status_at(0) == "all_bad"
    second.skip()
    first.next()
    assert first.status == "skipped"
    assert (first.notice, second.notice) == ("", "")
    first.undo(confirmed=True)  # its own step comes first
    assert (first.index, first.status, stored(path)[0].record.status) == (0, "open", "skipped")
    assert first.undo_asks.startswith("Undo takes back the skip of question 2, from an earlier session")
    first.undo(confirmed=True)
    assert (stored(path), first.can_undo) == ([], False)  # each judgement was one step


def test_two_windows_that_judge_one_question_lose_neither(opened, path):
    first, second = opened(FORMS), opened(FORMS)
    first.go(RATE)
    second.go(RATE)
    first.rate(2)
    second.rate(5)
    assert [event.record.score for event in stored(path)] == [2, 5]
    first.next()
    assert first.notice == (
        "Question 2 was judged more than once, as from two windows: all of it is in the store, the last is shown, "
        "and undo takes that back first."
    )
    first.previous()
    assert (first.answer, first.progress.judged, len(first.events())) == (5, 1, 2)
    first.rate(1)  # replaces what is shown
    assert [event.record.score for event in stored(path)] == [2, 1]


def test_two_windows_that_change_one_judgement_lose_neither(opened, path):
    opened(FORMS).go(0)
    start = opened(FORMS)
    start.go(RATE)
    start.rate(1)
    first, second = opened(FORMS), opened(FORMS)
    for session in (first, second):
        session.go(RATE)
    first.rate(2)
    second.rate(5)
    assert [event.record.score for event in stored(path)] == [2, 5]
    second.next()
    assert "Question 2 was judged more than once" in second.notice
    second.undo(confirmed=True)
    assert [event.record.score for event in stored(path)] == [2]
    assert second.answer == 2
    first.next()
    assert first.notice == ""


def test_to_take_back_what_another_window_changed_leaves_the_change(opened, path):
    first, second = opened(FORMS), opened(FORMS)
    first.go(RATE)
    first.rate(1)
    second.go(RATE)
    second.rate(4)
    first.undo()
    assert [event.record.score for event in stored(path)] == [4]
    first.next()
    first.previous()
    assert first.answer == 4


def test_half_an_answer_is_not_overwritten_by_another_window(opened):
    first, second = opened(), opened()
    first.place(1)
    second.all_bad()
    first.next()
    first.previous()
    assert (first.ranks, first.unsent, first.status) == ([None, 1, None], True, "all_bad")


# ---- when the disk does not do its part --------------------------------------------------------------------


def test_a_refused_save_keeps_the_judgement_and_is_tried_again(opened, path, monkeypatch):
    session = opened()
    session.skip()
    session.next()
    with monkeypatch.context() as patch:
        patch.setattr(Store, "add", lambda *_: (_ for _ in ()).throw(NotSaved("x.db cannot be written (full). Free")))
        with pytest.raises(NotSaved, match="full"):
            session.all_bad()
        assert session.error == "x.db cannot be written (full). Free"
        assert session.says == "All bad. NOT saved in feedback.db."
        with pytest.raises(NotSaved, match="full"):
            session.rank([[0], [1]])
        assert (session.saved, session.progress.unsaved, session.status) == (False, 2, "done")
        with pytest.raises(NotSaved, match="full"):
            session.save()
    assert len(stored(path)) == 1
    session.save()
    assert (session.saved, session.error, session.says) == (
        True,
        "",
        "The ranking. All have a rank. Saved in feedback.db.",
    )
    assert [event.record.status for event in stored(path)] == ["skipped", "done"]


def test_what_changes_nothing_tries_to_save_again(opened, path, monkeypatch):
    session = opened()
    with monkeypatch.context() as patch:
        patch.setattr(Store, "add", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(NotSaved, match=r"No space left on device\. The judgement is kept in memory"):
            session.skip()
    session.skip()
    assert (session.saved, len(stored(path))) == (True, 1)


@pytest.mark.parametrize("place", ["below_a_file", "folder", "text", "other", "future"])
def test_a_store_that_cannot_be_is_no_obstacle_and_is_said(place, tmp_path):
    (tmp_path / "file").write_text("my notes " * 1000)
    path = {"below_a_file": tmp_path / "file" / "x.db", "folder": tmp_path, "text": tmp_path / "file"}.get(place)
    if path is None:
        path = tmp_path / "other.db"
        with contextlib.closing(sqlite3.connect(path)) as db:
            db.execute("CREATE TABLE notes (text)")
            if place == "future":
                db.execute("PRAGMA user_version = 99")
                db.execute(f"PRAGMA application_id = {0x726C6866}")
            db.commit()
    before = path.read_bytes() if path.is_file() else None
    with Store(path) as store:
        session = FeedbackSession(ITEMS, store)
        assert place == "below_a_file" or session.error.startswith("The judgements in the store cannot be read: ")
        with pytest.raises(NotSaved):
            session.all_bad()
        assert (session.saved, session.status, session.progress.unsaved) == (False, "all_bad", 1)
        assert len(session.error) > 30
        with contextlib.suppress(NotSaved):
            session.next()
        with pytest.raises(NotSaved):
            session.place(0)
    assert (path.read_bytes() if path.is_file() else None) == before


def test_a_locked_store_is_said_and_the_judgement_is_saved_later(opened, path, monkeypatch):
    monkeypatch.setattr("rlhf_lab.feedback.store.PATIENCE", 0.05)
    session = opened()
    session.skip()
    session.next()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(NotSaved, match=r"locked.*save again"):
            session.skip()
        other.execute("ROLLBACK")
    session.save()
    assert (session.saved, len(stored(path))) == (True, 2)


def test_a_store_that_could_not_be_read_is_read_when_it_can(opened, path, monkeypatch):
    opened().all_bad()
    with monkeypatch.context() as patch:
        patch.setattr(Store, "events", lambda *_: (_ for _ in ()).throw(FeedbackError(path, ": cannot be read")))
        session = opened()
        assert session.error == "The judgements in the store cannot be read: feedback.db: cannot be read"
        assert (session.saved, session.status) == (True, "open")
        session.next()
        session.skip()  # saved all the same
    assert len(stored(path)) == 2
    session.save()
    assert (session.error, session.status_at(0)) == ("", "all_bad")


def test_a_store_that_lost_everything_gets_it_again(opened, path):
    session = opened()
    session.all_bad()
    session.next()
    session.rank([[0], [1]])
    session.move(0, 1)
    session.store.close()
    for file in path.parent.glob("feedback.db*"):
        file.unlink()
    session.next()
    assert (session.saved, session.progress.unsaved, session.progress.judged) == (False, 3, 2)
    session.save()
    assert stored(path) == session.events()


@pytest.mark.parametrize("clock", [0.0, -1e9, 1e18])
def test_a_wrong_clock_changes_no_order(clock, opened, monkeypatch):
    session = opened(FORMS)
    session.go(RATE)
    session.rate(1)
    monkeypatch.setattr(time, "time", lambda: clock)
    session.rate(2)
    session.next()
    session.edit("x")
    again = opened(FORMS)
    assert [getattr(r, "score", r) for r in again.records()] == [2.0, Edit("Hi", "Hello there!", "x", "you")]


# ---- interrupts --------------------------------------------------------------------------------------------

OPERATIONS = {
    "the last place": (lambda s: judged(s, 0, "a", "d"), lambda s: s.place([r[0] for r in s.replies].index("g"))),
    "a change": (lambda s: judged(s, 0, "a", "d", "g"), lambda s: s.move(0, 1)),
    "a removal": (lambda s: judged(s, 0, "a", "d", "g"), lambda s: s.remove(1)),
    "an undo": (lambda s: judged(s, 0, "a", "d", "g"), lambda s: s.undo()),
    "an undone removal": (lambda s: (judged(s, 0, "a", "d", "g"), s.remove(1)), lambda s: s.undo()),
    "a score": (lambda s: s.go(RATE), lambda s: s.rate(4)),
    "going on": (lambda s: judged(s, 0, "a", "d"), lambda s: s.next()),
    "a skip": (lambda s: s.go(SEGMENTS), lambda s: s.skip()),
}


def interrupted_at(number, work, session):
    """Whether KeyboardInterrupt was raised at the number-th line of ours that runs while working."""
    package, left = str(Path(rlhf_lab.__file__).parent), [number]

    def trace(frame, event, argument):
        if not frame.f_code.co_filename.startswith(package):
            return None
        if event == "line":
            left[0] -= 1
            if left[0] == 0:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work(session)
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


def shown(session):
    return session.index, session.answer, tuple(session.status_at(i) for i in range(len(session.questions)))


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_interrupt_at_any_line_loses_nothing(name, tmp_path):
    prepare, work = OPERATIONS[name]
    number, cuts, outcomes = 0, 0, set()
    while True:
        number += 1
        path = tmp_path / f"{number}.db"
        with Store(path) as store:
            store._connection().execute("PRAGMA synchronous = OFF")  # the disk itself is not what is tried here
            session = FeedbackSession(FORMS, store, study="s")
            prepare(session)
            before, old = shown(session), [event.record for event in session.events()]
            if not interrupted_at(number, work, session):
                break
            cuts += 1
            after = shown(session)
            outcomes.add(after)
            session.save()
            assert (session.saved, session.error) == (True, "")
            assert shown(session) == after  # to save changes nothing that is shown
            assert stored(path) == session.events()
            if after == before:
                assert [event.record for event in session.events()] == old
            with Store(path) as other:
                again = FeedbackSession(FORMS, other, study="s")
                assert shown(again)[2] == after[2]
        for file in tmp_path.glob(f"{number}.db*"):
            file.unlink()
    assert cuts > 30
    assert outcomes == {before, shown(session)}  # the state before or that after, and no other


CLICKING = """
import sys
from rlhf_lab.classroom.widgets.session import FeedbackSession
items = [(f"prompt {i}", ["a b c d", "e" * 3000]) for i in range(600)]
session = FeedbackSession(items, sys.argv[1], study="s")
for number in range(600):
    session.place(number % 2)
    session.place(1 - number % 2)
    if number % 7 == 3:
        session.undo()
        session.skip()
    print(number, flush=True)
    session.next()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGKILL")
def test_kill_9_loses_nothing_that_was_saved(path, opened):
    root = Path(__file__).resolve().parents[2]
    with subprocess.Popen([sys.executable, "-c", CLICKING, path], stdout=subprocess.PIPE, text=True, cwd=root) as child:
        for _ in range(40):
            child.stdout.readline()
        child.kill()
        said = 40 + child.stdout.read().count("\n")
    session = opened([(f"prompt {i}", ["a b c d", "e" * 3000]) for i in range(600)])
    done = session.progress.judged + session.progress.skipped
    assert said <= done <= said + 1
    assert session.index == done


# ---- starting from a recorded session ----------------------------------------------------------------------


@pytest.fixture
def recorded(tmp_path):
    path = tmp_path / "recorded.some.jsonl"
    prompt = as_conversation("Where is the zoo?")
    records = [
        Ranking(prompt, ("a", "b"), ((0,), (1,)), rater="careful", simulated=True),
        Ranking(prompt, ("a", "b"), ((1,), (0,)), rater="hurried", simulated=True),
        Ranking(as_conversation("When?"), ("c", "d"), ((1, 0),), rater="careful", simulated=True),
        Rating(prompt, "a", 4, rater="careful", simulated=True),
    ]
    write_events(path, records)
    return path


def test_a_recorded_session_is_added_to_and_never_changed(recorded, path, monkeypatch):
    monkeypatch.setenv("RLHF_LAB_STORE", str(path))
    before = recorded.read_bytes()
    session = FeedbackSession.from_recorded(recorded)
    assert (len(session.questions), session.progress.judged, len(session.rankings())) == (2, 0, 3)
    assert not path.exists()
    session.rank([[0], [1]])
    assert [(r.simulated, r.rater) for r in session.rankings()][2:] == [(True, "careful"), (False, "you")]
    assert recorded.read_bytes() == before
    assert stored(path, "recorded") == session.events()
    again = FeedbackSession.from_recorded(recorded)
    assert (again.records(), again.index) == (session.records(), 1)
    for made in (session, again):
        made.store.close()


def test_a_recorded_session_in_other_forms(recorded):
    session = FeedbackSession.from_recorded(recorded, None, forms=("rate",), study="x", goal=1, rater="Ann")
    assert [question.form for question in session.questions] == ["rate"]
    assert (session.study, session.rater, len(session.records())) == ("x", "Ann", 4)
    with pytest.raises(FeedbackError, match=r"holds no judgement of the forms edit\. Give the log of a session"):
        FeedbackSession.from_recorded(recorded, None, forms=("edit",))


def test_a_recorded_session_needs_rankings(tmp_path):
    write_events(tmp_path / "other.jsonl", [Comment(as_conversation("a"), "b", "c")])
    with pytest.raises(FeedbackError, match=r"holds no ranking\. Give the log of a session that has some"):
        FeedbackSession.from_recorded(tmp_path / "other.jsonl", None)
    with pytest.raises(FeedbackError, match="cannot be read"):
        FeedbackSession.from_recorded(tmp_path / "none.jsonl", None)


# ---- figures -----------------------------------------------------------------------------------------------


def test_a_session_of_ten_thousand_is_quick(opened):
    items = [(f"prompt {i}", [f"{i} {j} {i * j + 1} {j} b" for j in range(4)]) for i in range(10_000)]
    session = opened(items)
    times = []
    for position in range(4):
        start = time.perf_counter()
        session.place(position)
        times.append(time.perf_counter() - start)
    assert max(times) < 0.25  # tens of times what it takes: 2 to 8 ms here
