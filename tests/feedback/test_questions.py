"""The forms of questions: which answers they take, which records they make, and which question a record answers."""

import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from records_of_all_kinds import any_text, prompts

from rlhf_lab.feedback import questions
from rlhf_lab.feedback.lines import MAX_LINE_BYTES
from rlhf_lab.feedback.questions import (
    CommentOn,
    Compare,
    CompareSegments,
    EditReply,
    MarkWords,
    Rank,
    Rate,
    answers,
    as_question,
    asked,
    question_ids,
)
from rlhf_lab.records import (
    Choice,
    Comment,
    Comparison,
    Edit,
    Mark,
    Ranking,
    Rating,
    Segment,
    SegmentChoice,
    Skip,
    as_conversation,
)

PROMPT = as_conversation("Where is the zoo?")
PIECE = Segment("CartPole-v1", ((0.0, 1.0), (0.5, 1.5)), ((1,),))
OTHER = Segment("CartPole-v1", ((0.0, 1.0), (0.5, 1.0)), ((0,),))
RANK, RATE = Rank("Where is the zoo?", ["a", "b", "c"]), Rate("Where is the zoo?", "a")
EDIT, MARK = EditReply("Where is the zoo?", "a b"), MarkWords("Where is the zoo?", "the zoo is far")
COMMENT = CommentOn("Where is the zoo?", "a")
COMPARE = Compare("Where is the zoo?", "a", "b", "sft", "base")
SEGMENTS = CompareSegments("Where is the zoo?", PIECE, OTHER)
ALL = [RANK, RATE, EDIT, MARK, COMMENT, COMPARE, SEGMENTS]
GIVEN = [  # a question, a whole answer, and the record of it
    (RANK, ((2,), (0, 1)), Ranking(PROMPT, ("a", "b", "c"), ((2,), (0, 1)), rater="Ann")),
    (RATE, 4, Rating(PROMPT, "a", 4, 1, 5, "Ann")),
    (Rate(PROMPT, "a", high=7), 7, Rating(PROMPT, "a", 7, 1, 7, "Ann")),
    (EDIT, " b\n", Edit(PROMPT, "a b", " b\n", "Ann")),
    (MARK, ((0, 3), (4, 7)), Mark(PROMPT, "the zoo is far", ((0, 3), (4, 7)), "Ann")),
    (MARK, (), Mark(PROMPT, "the zoo is far", (), "Ann")),
    (COMMENT, "\ud800 no", Comment(PROMPT, "a", "\ud800 no", "Ann")),
    (COMPARE, -1, Choice(PROMPT, "a", "b", -1, "sft", "base", "Ann")),
    (SEGMENTS, 0, SegmentChoice(PROMPT, PIECE, OTHER, 0, "Ann")),
]


@pytest.mark.parametrize(("question", "answer", "record"), GIVEN, ids=[record[0].form for record in GIVEN])
def test_a_whole_answer_makes_a_record_that_gives_it_back(question, answer, record):
    assert question.check(answer) == answer
    assert question.record(answer, "Ann") == record
    assert question.answer(record) == answer
    assert asked(record) == question
    assert answers(record, question)


@pytest.mark.parametrize("question", ALL, ids=lambda question: question.form)
def test_no_answer_and_a_skip(question):
    assert question.record(question.nothing, "Ann") is None
    skip = question.skipped("Ann")
    assert (skip.rater, question.answer(skip), question.answer(None)) == ("Ann", question.nothing, question.nothing)
    assert answers(skip, question)
    assert question.places == max(len(question.replies), 1 + (question is SEGMENTS))
    assert question.ask.endswith((".", "?"))
    if question is RANK:
        assert question.all_bad("Ann").status == "all_bad"
    else:
        with pytest.raises(ValueError, match=f"expected rank, got {question.form}"):
            question.all_bad("Ann")


def test_a_ranking_may_be_partial():
    assert RANK.check([[1]]) == ((1,),)
    assert RANK.record([[1], [0]], "Ann") is None
    assert RANK.check([[2, 0], [1]]) == ((0, 2), (1,))  # within a tier there is no order


def test_spans_are_put_in_order_and_those_that_overlap_are_one():
    assert MARK.check([[4, 7], [0, 3]]) == ((0, 3), (4, 7))
    assert MARK.check([[0, 5], [4, 7], [5, 6]]) == ((0, 7),)
    assert MARK.check([[0, 3], [3, 7]]) == ((0, 3), (3, 7))
    assert MARK.record([[4, 9], [0, 5]], "Ann").spans == ((0, 9),)


WRONG = [
    (RANK, "ab", "expected a tuple of indices"),
    (RANK, [[0], []], "none of them empty"),
    (RANK, [0, 1], "expected a tuple of indices"),
    (RANK, [[0], [3]], "indices of replies, 0 to 2"),
    (RANK, [[-1]], "indices of replies, 0 to 2"),
    (RANK, [[True]], "indices of replies, 0 to 2"),
    (RANK, [[1.0]], "indices of replies, 0 to 2"),
    (RANK, ["01"], "indices of replies, 0 to 2"),
    (RANK, [[0], [0]], "each reply at most once"),
    (RANK, None, "expected a tuple of indices"),
    (RATE, 0, "whole number from 1 to 5"),
    (RATE, 6, "whole number from 1 to 5"),
    (RATE, 2.5, "whole number from 1 to 5"),
    (RATE, True, "whole number from 1 to 5"),
    (RATE, "4", "whole number from 1 to 5"),
    (RATE, float("nan"), "whole number from 1 to 5"),
    (RATE, float("inf"), "whole number from 1 to 5"),
    (EDIT, " \n", "the edited reply is empty; .* or skip the question"),
    (EDIT, 3, "holds 3; expected texts"),
    (COMMENT, "", "the comment is empty; .*Write one, or skip the question"),
    (COMMENT, b"x", "expected texts"),
    (MARK, [[0, 0]], "within 0 to 14, start before end"),
    (MARK, [[3, 1]], "within 0 to 14, start before end"),
    (MARK, [[0, 15]], "within 0 to 14, start before end"),
    (MARK, [[-1, 2]], "within 0 to 14, start before end"),
    (MARK, [[0, 1, 2]], "within 0 to 14, start before end"),
    (MARK, [[0, 1.0]], "within 0 to 14, start before end"),
    (MARK, [[False, 1]], "within 0 to 14, start before end"),
    (MARK, 3, "within 0 to 14, start before end"),
    (COMPARE, 2, "expected 1 .*0 .*-1"),
    (COMPARE, True, "expected 1 .*0 .*-1"),
    (COMPARE, "1", "expected 1 .*0 .*-1"),
    (SEGMENTS, 0.5, "expected 1 .*0 .*-1"),
]


@pytest.mark.parametrize(("question", "answer", "expected"), WRONG)
def test_wrong_answers_are_refused(question, answer, expected):
    for take in (question.check, lambda given: question.record(given, "Ann")):
        with pytest.raises(ValueError, match=expected):
            take(answer)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: Rank("Hi", ("a",)), "replies holds 1; expected at least 2"),
        (lambda: Rank("Hi", "ab"), "replies is a text; expected several"),
        (lambda: Rank("Hi", None), "replies is NoneType"),
        (lambda: Rank("Hi", ("a", None)), "replies holds null; expected texts"),
        (lambda: Rank([], ("a", "b")), "prompt is"),
        (lambda: Rate("Hi", "a", high=1), "high is 1; expected a whole number from 2 to 10"),
        (lambda: Rate("Hi", "a", high=11), "from 2 to 10"),
        (lambda: Rate("Hi", "a", high=True), "from 2 to 10"),
        (lambda: Rate("Hi", "a", high=5.0), "from 2 to 10"),
        (lambda: EditReply("Hi", 3), "reply holds 3; expected texts"),
        (lambda: Compare("Hi", "a", "b", left_source=None), "left_source holds null"),
        (lambda: CompareSegments("Hi", PIECE, "b"), "right is 'b'; expected a Segment"),
        (lambda: as_question(3), r"got 3; expected a question such as Rank\(prompt, replies\), or that pair"),
        (lambda: as_question("ab"), "got 'ab'; expected a question"),
        (lambda: as_question(("Hi",)), "expected a question"),
    ],
)
def test_impossible_questions_are_refused(make, expected):
    with pytest.raises(ValueError, match=expected):
        make()


def test_a_pair_is_a_ranking():
    assert as_question(("Where is the zoo?", ["a", "b", "c"])) == RANK
    assert as_question(RATE) is RATE


def test_what_fits_no_line_of_the_log_is_refused():
    megabyte = "x" * 2**20
    as_question(Rank("Hi", [megabyte, megabyte + "y", "\0" * 2**20]))  # 8 MB in the log
    with pytest.raises(ValueError, match=rf"takes \d+ bytes; a line may have {MAX_LINE_BYTES}. Shorten the texts"):
        as_question(Rank("Hi", ["\0" * (3 * 2**20), "y"]))
    questions.refuse_too_long(EDIT, megabyte)
    with pytest.raises(ValueError, match="Shorten the texts"):
        questions.refuse_too_long(EDIT, "\0" * (3 * 2**20))


def test_segments_that_fit_no_line_of_the_log_are_refused(monkeypatch):
    monkeypatch.setattr(questions, "MAX_LINE_BYTES", 2**15)
    as_question(SEGMENTS)
    rows = tuple((0.1234567890123456,) for _ in range(1000))
    for longest in (Segment("x", rows, rows[1:]), Segment("x" * 2**15, *[PIECE.observations, PIECE.actions])):
        with pytest.raises(ValueError, match="Shorten the texts"):
            as_question(CompareSegments("Hi", PIECE, longest))


# ---- ids ---------------------------------------------------------------------------------------------------


def test_ids_tell_questions_apart_and_equal_ones_by_their_number():
    ids = question_ids(
        [*ALL, *ALL, Rate(PROMPT, "a", high=7), Rank(PROMPT, ["b", "a", "c"]), Compare(PROMPT, "a", "b")]
    )
    assert len(set(ids)) == len(ids)
    stems = [name.rpartition("-")[0] for name in ids]
    assert stems[:7] == stems[7:14]
    assert [name[-2:] for name in ids[:14]] == ["-1"] * 7 + ["-2"] * 7
    assert stems[16] == stems[5]  # who wrote a reply is not shown, so it makes no other question
    assert len(set(stems)) == 9


def test_ids_are_the_same_in_another_process():
    program = "from rlhf_lab.feedback.questions import *; print(question_ids([Rank('Hi\\ud800', ['a', 'b'])])[0])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == question_ids([Rank("Hi\ud800", ["a", "b"])])[0]


@settings(max_examples=60, deadline=None)
@given(prompts, any_text, any_text)
def test_any_text_is_asked_about(prompt, one, other):
    made = [Rank(prompt, (one, other)), Rate(prompt, one), EditReply(prompt, one), Compare(prompt, one, other)]
    for question, name in zip(made, question_ids(made), strict=True):
        assert as_question(question) is question
        assert json.loads(json.dumps(name)) == name
        assert answers(question.skipped("Ann"), question)


def test_records_that_answer_no_form():
    assert asked(Comparison(PROMPT, "a", "b")) is None
    assert asked(Rating(PROMPT, "a", 0.5, 0, 1)) is None
    assert asked(Rating(PROMPT, "a", 2, 1, 2.5)) is None
    assert asked(None) is None
    assert asked(Skip(PROMPT, "dance")) is None
    assert asked(Skip(PROMPT, "compare", ("a", "b"))) == Compare(PROMPT, "a", "b")
    assert asked(Skip(PROMPT, "rate", ("a",))) == RATE
    assert not answers(None, RATE)
    assert not answers(Rating(PROMPT, "a", 2, 1, 7), RATE)
    assert not answers(Skip(PROMPT, "edit", ("a",)), RATE)
    assert not answers(Comment(PROMPT, "b", "c"), COMMENT)
    assert answers(Choice(PROMPT, "a", "b", 1, "other", "names"), COMPARE)
    assert not answers(Choice(PROMPT, "b", "a", 1), COMPARE)
