"""Records refuse what no trainer could use, and a ranking gives exactly the pairs its tiers mean."""

import contextlib
import dataclasses

import numpy as np
import pytest
from hypothesis import given, strategies as st

from rlhf_lab.records import (
    Choice,
    Comment,
    Comparison,
    Demonstration,
    Edit,
    Event,
    Mark,
    Message,
    Ranking,
    Rating,
    Segment,
    SegmentChoice,
    Skip,
    as_conversation,
)

HI = as_conversation("Hi")
HALF = "half \ud83d"  # of a surrogate pair: a keyboard or a model may have produced it
PIECE = Segment("CartPole-v1", ((0.0, 1.0), (0.5, 1.0), (1.0, 1.0)), ((0,), (1,)))


def ranking(**changes):
    return Ranking(**{"prompt": HI, "replies": ("a", "b", "c"), "tiers": ((1,), (0, 2))} | changes)


def mark(spans, reply="The zoo opens at six."):
    return Mark(HI, reply, spans)


def segment(**changes):
    fields = {"environment": "CartPole-v1", "observations": ((0, 1), (0, 1), (0, 2)), "actions": ((0,), (1,))}
    return Segment(**fields | changes)


def event(record=None, **changes):
    return Event(**{"id": "one", "record": ranking() if record is None else record} | changes)


def test_conversation_from_text_mappings_and_messages():
    turns = [Message("user", "Hi"), {"role": "assistant", "content": "Hello"}, {"role": "user", "content": "Bye"}]
    assert as_conversation("Hi") == (Message("user", "Hi"),)
    assert as_conversation(turns) == tuple(Message(*turn) for turn in [
        ("user", "Hi"), ("assistant", "Hello"), ("user", "Bye")])  # fmt: skip
    assert as_conversation(as_conversation(turns)) == as_conversation(turns)
    assert hash(as_conversation(turns)) == hash(as_conversation(turns))


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "non-empty"),
        (None, "non-empty"),
        ({"role": "user", "content": "Hi"}, "non-empty"),
        (["Hi"], "'role' and 'content'"),
        ([{"role": "user"}], "'role' and 'content'"),
        ([{"role": "robot", "content": "Hi"}], "robot"),
        ([{"role": "user", "content": None}], "content is NoneType"),
        ([{"role": "assistant", "content": "Hi"}], "'assistant'"),
    ],
)
def test_what_is_no_conversation(prompt, message):
    with pytest.raises(ValueError, match=message) as error:
        as_conversation(prompt)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tiers": ((1,), (0,))}, r"\[0, 1, 2\] once each"),  # one is missing
        ({"tiers": ((1,), (0, 2, 1))}, "once each"),  # one is twice
        ({"tiers": ((1,), (), (0, 2))}, "no empty tier"),
        ({"tiers": ((0, 1, 2),), "status": "skipped"}, r"\[\] once each when skipped"),
        ({"tiers": ((3,), (0, 1))}, "once each"),
        ({"status": "bad"}, "all_bad"),
        ({"replies": ("a",), "tiers": ((0,),)}, "at least 2"),
        ({"replies": ["a", "b", "c"]}, "replies is list"),
        ({"replies": ("a", "b", 3)}, "reply is int"),
        ({"prompt": ()}, "non-empty list of messages"),
        ({"tiers": ((1.0,), (0, 2))}, "tiers holds .*1.0.*; expected indices"),
        ({"tiers": ((True,), (0, 2))}, "tiers holds .*True.*; expected indices"),
        ({"tiers": (1, (0, 2))}, "tiers holds 1; expected indices"),
        ({"tiers": (None, (0, 1, 2))}, "tiers holds None; expected indices"),
        ({"rater": None}, "rater is None; expected text"),
        ({"rater": 3}, "rater is 3; expected text"),
        ({"simulated": "false"}, "simulated is 'false'; expected True or False"),
    ],
)
def test_what_is_no_ranking(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        ranking(**changes)
    assert "\n" not in str(error.value)


def test_whole_numbers_of_numpy_are_indices():
    best_first = np.argsort([1.0, 0.0, 2.0])
    one = event(ranking(tiers=tuple((i,) for i in best_first)), shown=tuple(best_first))
    assert (one.record.tiers, one.shown) == (((1,), (0,), (2,)), (1, 0, 2))
    marked = mark(((np.int64(4), np.uint8(7)),))
    choice = Choice(HI, "a", "b", np.int64(-1))
    assert (marked, choice) == (mark(((4, 7),)), Choice(HI, "a", "b", -1))
    numbers = [*one.shown, *marked.spans[0], choice.outcome, *(index for tier in one.record.tiers for index in tier)]
    assert {type(number) for number in numbers} == {int}  # what JSON can hold
    assert hash(ranking(tiers=([1], [0, 2]))) == hash(ranking())
    assert hash(mark([[4, 7]])) == hash(mark(((4, 7),)))


@given(st.permutations(range(5)), st.lists(st.booleans(), min_size=4, max_size=4))
def test_pairs_are_those_in_different_tiers(order, breaks):
    tiers = [[order[0]]]
    for index, new_tier in zip(order[1:], breaks, strict=True):
        tiers.append([index]) if new_tier else tiers[-1].append(index)
    one = ranking(replies=tuple("abcde"), tiers=tuple(map(tuple, tiers)))
    level = {index: depth for depth, tier in enumerate(tiers) for index in tier}
    assert sorted(one.pairs()) == sorted((i, j) for i in range(5) for j in range(5) if level[i] < level[j])


def test_two_equal_replies_form_no_pair():
    one = ranking(replies=("a", "b", "a"), tiers=((0,), (1,), (2,)))
    assert one.pairs() == [(0, 1), (1, 2)]
    assert ranking(replies=("a", "a"), tiers=((1,), (0,))).pairs() == []


@pytest.mark.parametrize("status", ["skipped", "all_bad"])
def test_no_pairs_without_a_judgement(status):
    assert ranking(tiers=(), status=status).pairs() == []


def test_other_records_refuse_the_impossible():
    with pytest.raises(ValueError, match="two different replies"):
        Comparison(HI, "a", "a")
    for bad in ({"score": 6}, {"score": float("nan")}, {"score": 1, "low": 1, "high": 1}):
        with pytest.raises(ValueError, match=r"scale|expected a number"):
            Rating(HI, "a", **bad)
    for bad in ({"score": True}, {"score": "3"}, {"score": 10**400}, {"score": None}, {"score": 3, "low": "1"}):
        with pytest.raises(ValueError, match=r"expected a number, finite"):
            Rating(HI, "a", **bad)
    for make in (lambda: Edit(HI, "a", 1), lambda: Comment(HI, 1, "b"), lambda: Demonstration(HI, None)):
        with pytest.raises(ValueError, match="expected text"):
            make()


@pytest.mark.parametrize(
    "record",
    [
        Demonstration(HI, "a"),
        Comparison(HI, "a", "b"),
        ranking(),
        Rating(HI, "a", 3),
        Edit(HI, "a", "b"),
        Comment(HI, "a", "b"),
        mark(((0, 3),)),
        Choice(HI, "a", "b", 0),
        SegmentChoice(HI, PIECE, PIECE, 1),
        Skip(HI, "rate", ("a",)),
    ],
    ids=lambda record: type(record).__name__,
)
def test_records_are_frozen_values(record):
    assert hash(record) == hash(dataclasses.replace(record))
    with pytest.raises(dataclasses.FrozenInstanceError):
        record.prompt = HI
    assert not getattr(record, "simulated", False)
    around = event(record, id="two")
    assert (hash(around), around.simulated) == (hash(dataclasses.replace(around)), False)
    with pytest.raises(dataclasses.FrozenInstanceError):
        around.record = None


@pytest.mark.parametrize("rater", [None, 3, b"me", ["me"]])
def test_who_judged_is_a_text_in_every_record(rater):
    fields = [(Comparison, "ab"), (Rating, ("a", 3)), (Edit, "ab"), (Comment, "ab"), (Mark, ("a", ()))]
    fields += [(Choice, ("a", "b", 1)), (SegmentChoice, (PIECE, PIECE, 1)), (Skip, ("rate",))]
    for kind, values in fields:
        with pytest.raises(ValueError, match=r"rater is .*; expected text\. Give the name"):
            kind(HI, *values, rater=rater)
        with pytest.raises(ValueError, match="simulated is 1; expected True or False"):
            kind(HI, *values, simulated=1)


def test_a_score_of_numpy_is_a_number():
    score = Rating(HI, "a", np.float32(2.5), low=0, high=np.int64(5)).score
    assert (type(score), score) == (float, 2.5)


PARTS = [{"type": "text", "text": "Where is "}, {"type": "text", "text": "the zoo?", "image_url": None}]


def test_the_text_parts_of_a_content_are_joined():
    read = None
    with contextlib.suppress(ValueError):
        read = as_conversation([{"role": "user", "content": PARTS}])
    assert read == as_conversation("Where is the zoo?")


def test_what_says_nothing_may_stand_beside_a_message():
    notes = {"name": "Ann", "id": "7", "weight": 1, "tool_calls": None, "images": [], "refusal": "", "flagged": False}
    assert as_conversation([{"role": "user", "content": "Hi"} | notes]) == HI


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"tool_calls": [{"id": "1"}]}, "a message holds tool_calls: .* Write it into the content, or remove it"),
        ({"function_call": {"name": "f"}}, "function_call"),
        ({"reasoning_content": "I think"}, "reasoning_content"),
        ({"audio": {"id": "1"}}, "audio"),
        ({"content": [*PARTS, {"type": "image", "image": "zoo.png"}]}, "content holds .*image.*; expected text, or"),
        ({"content": [*PARTS, "Hi"]}, "content holds 'Hi'; expected text, or parts"),
        ({"content": [{"type": "text", "text": None}]}, "expected text, or parts"),
        ({"content": [{"type": "text", "text": "Hi", "image_url": "zoo.png"}]}, "a message holds image_url"),
        ({"content": []}, "content is list; expected text"),
    ],
)
def test_a_message_that_holds_more_than_text_is_refused(more, message):
    with pytest.raises(ValueError, match=message) as error:
        as_conversation([{"role": "user", "content": "Hi"} | more])
    assert "\n" not in str(error.value)


def test_a_text_is_accepted_wherever_a_conversation_is():
    for record in (Demonstration("Hi", "a"), Comparison("Hi", "a", "b"), Edit("Hi", "a", "b"), Comment("Hi", "a", "b")):
        assert record.prompt == HI
    for record in (mark(()), Choice("Hi", "a", "b", 1), SegmentChoice("Hi", PIECE, PIECE, 0), Skip("Hi", "mark")):
        assert record.prompt == HI
    assert Rating([{"role": "user", "content": "Hi"}], "a", 1.0) == Rating(HI, "a", 1.0)
    assert ranking(prompt="Hi") == ranking(prompt=HI)


def test_half_of_a_surrogate_pair_is_a_text_in_every_record():
    prompt = as_conversation(HALF)
    assert prompt[0].content == HALF
    for record in (
        Demonstration(prompt, HALF),
        Comparison(prompt, HALF, "b", rater=HALF),
        Ranking(prompt, (HALF, "b"), ((0,), (1,)), rater=HALF),
        Rating(prompt, HALF, 3),
        Edit(prompt, HALF, HALF),
        Comment(prompt, HALF, HALF),
        Mark(prompt, HALF, ((5, 6),)),
        Choice(prompt, HALF, HALF, 0, HALF, HALF),
        SegmentChoice(prompt, segment(environment=HALF), PIECE, 0),
        Skip(prompt, HALF, (HALF,)),
    ):
        assert event(record, id=HALF, study=HALF, question=HALF, widget=HALF).record == record


# -- marks ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("spans", "message"),
    [
        (((7, 4),), "non-empty ones in order within 0 to 21"),
        (((4, 4),), "non-empty"),
        (((-1, 4),), "within 0 to 21"),
        (((4, 22),), "within 0 to 21"),
        (((10, 12), (4, 7)), "in order"),
        (((4, 10), (7, 12)), "in order"),  # they overlap
        (((4, 7), (4, 7)), "in order"),
        (((4, 7, 9),), r"expected pairs \(start, end\)"),
        ((4, 7), r"expected pairs \(start, end\)"),
        (None, r"expected pairs \(start, end\)"),
        ("ab", r"expected pairs|expected indices"),
        (((True, 4),), "spans holds .*True.*; expected indices"),
        (((0.0, 4.0),), "spans holds .*0.0.*; expected indices"),
        (("ab",), "spans holds 'ab'; expected indices"),
    ],
)
def test_what_are_no_spans(spans, message):
    with pytest.raises(ValueError, match=message) as error:
        mark(spans)
    assert "\n" not in str(error.value)


@given(st.lists(st.integers(0, 12), min_size=0, max_size=8), st.text(min_size=12, max_size=12))
def test_spans_are_kept_exactly_where_they_are_in_order_and_apart(numbers, reply):
    """The slow spec: every character of the reply is within one span at most, and each span comes after the last."""
    spans = tuple(zip(numbers[::2], numbers[1::2], strict=False))
    covered = [i for start, end in spans for i in range(start, end)]
    fits = covered == sorted(set(covered)) and all(start < end for start, end in spans)
    if fits:
        assert Mark(HI, reply, spans).spans == spans
    else:
        with pytest.raises(ValueError, match="non-empty ones in order within 0 to 12"):
            Mark(HI, reply, spans)


def test_spans_may_touch_and_there_may_be_none():
    assert mark(((0, 3), (3, 7), (20, 21))).spans == ((0, 3), (3, 7), (20, 21))
    assert (mark(()).spans, mark((), reply="").spans) == ((), ())
    assert Mark(HI, "a\U0001f40eb", ((1, 2),)).spans == ((1, 2),)  # one character, though two units in UTF-16


# -- choices and segments ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("outcome", [2, -2, True, False, 0.0, 1.0, "1", None, np.float32(1)])
def test_what_is_no_outcome(outcome):
    for make in (lambda: Choice(HI, "a", "b", outcome), lambda: SegmentChoice(HI, PIECE, PIECE, outcome)):
        with pytest.raises(ValueError, match=r"outcome is .*; expected 1 \(left is better\), 0 \(a tie\) or -1"):
            make()


def test_what_a_choice_and_a_skip_refuse():
    for bad in ({"left": 1}, {"right": None}, {"left_source": None}, {"right_source": 3}):
        with pytest.raises(ValueError, match=f"{next(iter(bad))} is .*; expected text"):
            Choice(**{"prompt": HI, "left": "a", "right": "b", "outcome": 1} | bad)
    with pytest.raises(ValueError, match=r"left is .*; expected a Segment"):
        SegmentChoice(HI, "a", PIECE, 1)
    for bad, message in (("ab", "expected a tuple of texts"), (3, "expected a tuple of texts"), ((1,), "reply is int")):
        with pytest.raises(ValueError, match=message):
            Skip(HI, "rate", bad)
    with pytest.raises(ValueError, match="form is int"):
        Skip(HI, 3)
    assert Skip(HI, "rate", ["a"]).replies == ("a",)
    assert Choice(HI, "a", "a", 0).outcome == 0  # two models may say the same


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"environment": None}, "environment is NoneType"),
        ({"actions": ()}, "at least one action"),
        ({"actions": ((0,),)}, "got 3 observations and 1 actions; expected one observation more"),
        ({"observations": ((0, 1), (0,), (0, 1))}, "observations holds vectors of different lengths"),
        ({"actions": ((0,), (1, 2))}, "actions holds vectors of different lengths"),
        ({"actions": (0, 1)}, "actions is .*; expected vectors"),
        ({"observations": "abc"}, "observations is .*; expected vectors"),
        ({"observations": ((0, 1), (0, float("nan")), (0, 2))}, "observations is nan; expected a number, finite"),
        ({"observations": ((0, 1), (0, float("inf")), (0, 2))}, "observations is inf; expected a number, finite"),
        ({"actions": ((0,), (True,))}, "actions is True; expected a number, finite"),
        ({"actions": (("0",), ("1",))}, "actions is '0'; expected a number, finite"),
    ],
)
def test_what_is_no_segment(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        segment(**changes)
    assert "\n" not in str(error.value)


def test_a_segment_keeps_floats_of_its_own():
    rows = [[0, np.float32(0.5)], [0, 1], [0, 2]]
    one = segment(observations=rows, actions=[[np.int64(0)], [1]])
    rows[0][0] = 9
    assert one == segment(observations=((0.0, 0.5), (0, 1), (0, 2)))
    assert {type(x) for row in (*one.observations, *one.actions) for x in row} == {float}
    assert hash(one) == hash(segment(observations=((0.0, 0.5), (0, 1), (0, 2))))


# -- events -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": ""}, "id is ''; expected a text that no other event has"),
        ({"id": 3}, "id is int; expected text"),
        ({"target": "one"}, "id is 'one'; expected a text that no other"),
        ({"target": None}, "target is NoneType"),
        ({"study": None}, "study is NoneType"),
        ({"question": 1}, "question is int"),
        ({"widget": b"1"}, "widget is bytes"),
        ({"record": "Hi"}, "record is 'Hi'; expected a record, or None"),
        ({"record": PIECE}, "record is Segment.*; expected a record, or None"),
        ({"time": float("nan")}, "time is nan; expected a number, finite"),
        ({"time": "now"}, "time is 'now'; expected a number"),
        ({"time": True}, "time is True; expected a number"),
        ({"duration": -0.1}, "duration is -0.1; expected seconds, at least 0"),
        ({"duration": float("inf")}, "duration is inf; expected a number, finite"),
        ({"shown": (0, 1, 1)}, r"shown is \(0, 1, 1\); expected a permutation of \[0, 1, 2\]"),
        ({"shown": (0, 1)}, "permutation"),
        ({"shown": (1, 2, 3)}, "permutation"),
        ({"shown": (2, False, 1)}, "shown holds .*False.*; expected indices"),
        ({"shown": (2, 0.0, 1)}, "shown holds .*0.0.*; expected indices"),
        ({"shown": "201"}, "shown holds '201'; expected indices"),
    ],
)
def test_what_is_no_event(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        event(**changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("record", "places"),
    [
        (ranking(), 3),
        (Skip(HI, "rank", ("a", "b", "c", "d")), 4),
        (Choice(HI, "a", "b", 1), 2),
        (Comparison(HI, "a", "b"), 2),
        (SegmentChoice(HI, PIECE, PIECE, 0), 2),
        (Rating(HI, "a", 3), 1),
        (mark(()), 1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_was_shown_is_an_order_of_what_the_record_holds(record, places):
    assert event(record, shown=list(range(places))[::-1]).shown == tuple(range(places))[::-1]
    assert event(record, shown=np.arange(places).tolist()).shown == tuple(range(places))
    assert event(record).shown == ()
    for other in (places - 1, places + 1):
        if other:
            with pytest.raises(ValueError, match="expected a permutation"):
                event(record, shown=tuple(range(other)))


def test_an_event_without_a_record_takes_another_back():
    undo = Event("two", None, target="one", time=np.float64(5), duration=np.int64(2))
    assert (undo.rater, undo.simulated, undo.shown) == ("", False, ())
    assert (type(undo.time), type(undo.duration)) == (float, float)
    with pytest.raises(ValueError, match="needs the target"):
        Event("two", None)


def test_an_event_says_who_judged():
    one = event(Rating(HI, "a", 3, rater="Ann", simulated=True))
    assert (one.rater, one.simulated) == ("Ann", True)
    assert event(Demonstration(HI, "a")).rater == ""
