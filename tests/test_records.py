"""Records refuse what no trainer could use, and a ranking gives exactly the pairs its tiers mean."""

import contextlib
import dataclasses

import numpy as np
import pytest
from hypothesis import given, strategies as st

from rlhf_lab.records import Comment, Comparison, Demonstration, Edit, Message, Ranking, Rating, as_conversation

HI = as_conversation("Hi")


def ranking(**changes):
    return Ranking(**{"prompt": HI, "replies": ("a", "b", "c"), "tiers": ((1,), (0, 2)), "shown": (2, 0, 1)} | changes)


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
        ("half \ud83d", "surrogate"),
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
        ({"shown": (0, 1, 1)}, "permutation"),
        ({"status": "bad"}, "all_bad"),
        ({"replies": ("a",), "tiers": ((0,),), "shown": (0,)}, "at least 2"),
        ({"replies": ["a", "b", "c"]}, "replies is list"),
        ({"replies": ("a", "b", 3)}, "reply is int"),
        ({"prompt": ()}, "non-empty list of messages"),
        ({"tiers": ((1.0,), (0, 2))}, "tiers holds .*1.0.*; expected indices"),
        ({"tiers": ((True,), (0, 2))}, "tiers holds .*True.*; expected indices"),
        ({"tiers": (1, (0, 2))}, "tiers holds 1; expected indices"),
        ({"tiers": (None, (0, 1, 2))}, "tiers holds None; expected indices"),
        ({"shown": (2, False, 1)}, "shown holds .*False.*; expected indices"),
        ({"shown": (2, 0.0, 1)}, "shown holds .*0.0.*; expected indices"),
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
    one = ranking(tiers=tuple((i,) for i in best_first), shown=tuple(best_first))
    assert (one.tiers, one.shown) == (((1,), (0,), (2,)), (1, 0, 2))
    assert {type(index) for tier in (*one.tiers, one.shown) for index in tier} == {int}  # what JSON can hold
    assert hash(ranking(tiers=([1], [0, 2]))) == hash(ranking())


@given(st.permutations(range(5)), st.lists(st.booleans(), min_size=4, max_size=4))
def test_pairs_are_those_in_different_tiers(order, breaks):
    tiers = [[order[0]]]
    for index, new_tier in zip(order[1:], breaks, strict=True):
        tiers.append([index]) if new_tier else tiers[-1].append(index)
    one = ranking(replies=tuple("abcde"), tiers=tuple(map(tuple, tiers)), shown=tuple(range(5)))
    level = {index: depth for depth, tier in enumerate(tiers) for index in tier}
    assert sorted(one.pairs()) == sorted((i, j) for i in range(5) for j in range(5) if level[i] < level[j])


def test_two_equal_replies_form_no_pair():
    one = ranking(replies=("a", "b", "a"), tiers=((0,), (1,), (2,)))
    assert one.pairs() == [(0, 1), (1, 2)]
    assert ranking(replies=("a", "a"), tiers=((1,), (0,)), shown=(0, 1)).pairs() == []


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
    ],
    ids=lambda record: type(record).__name__,
)
def test_records_are_frozen_values(record):
    assert hash(record) == hash(dataclasses.replace(record))
    with pytest.raises(dataclasses.FrozenInstanceError):
        record.prompt = HI
    assert not getattr(record, "simulated", False)


@pytest.mark.parametrize("rater", [None, 3, b"me", ["me"]])
def test_who_judged_is_a_text_in_every_record(rater):
    for kind, values in ((Comparison, "ab"), (Rating, ("a", 3)), (Edit, "ab"), (Comment, "ab")):
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
    assert Rating([{"role": "user", "content": "Hi"}], "a", 1.0) == Rating(HI, "a", 1.0)
    assert ranking(prompt="Hi") == ranking(prompt=HI)
