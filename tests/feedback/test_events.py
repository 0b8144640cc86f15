"""Event logs: lossless round trips, what was withdrawn, bad events, and a torn end told from damage."""

import json

import pytest
from feedback_files import GOOD, any_text, conversations, saved
from hypothesis import given, settings, strategies as st

from rlhf_lab.feedback.events import Withdrawal, event_line, read_event_lines, read_events, write_events
from rlhf_lab.feedback.lines import FeedbackError
from rlhf_lab.records import Comment, Comparison, Demonstration, Edit, Ranking, Rating, as_conversation

# ---- round trips -------------------------------------------------------------------------------------------

raters = {"rater": st.text(st.characters(exclude_categories=()), max_size=9), "simulated": st.booleans()}


@st.composite
def rankings(draw):
    replies = tuple(draw(st.lists(any_text, min_size=2, max_size=5)))
    order, shown = (draw(st.permutations(range(len(replies)))) for _ in range(2))
    status = draw(st.sampled_from(["done", "skipped", "all_bad"]))
    cuts = sorted(draw(st.sets(st.integers(1, len(replies) - 1))))
    tiers = tuple(tuple(order[a:b]) for a, b in zip([0, *cuts], [*cuts, len(replies)], strict=True))
    tiers = tiers if status == "done" else ()
    rater, simulated = draw(any_text), draw(st.booleans())
    return Ranking(draw(conversations(any_text)), replies, tiers, tuple(shown), status, rater, simulated)


prompts, finite = conversations(any_text), st.floats(0, 10)
events = st.one_of(
    rankings(),
    st.builds(Rating, prompts, any_text, finite, st.just(0.0), st.just(10.0), **raters),
    st.builds(Edit, prompts, any_text, any_text, **raters),
    st.builds(Comment, prompts, any_text, any_text, **raters),
    st.builds(Demonstration, prompts, any_text),
    st.builds(Comparison, prompts, any_text.map("a{}".format), any_text.map("b{}".format), **raters),
)


@settings(max_examples=60)
@given(st.lists(events, max_size=4))
def test_events_come_back_equal(tmp_path_factory, records):
    path = tmp_path_factory.getbasetemp() / "events.jsonl"
    write_events(path, records)
    assert read_events(path) == records
    assert path.read_bytes().isascii()


# ---- event logs --------------------------------------------------------------------------------------------

COMMENT = Comment(as_conversation("Hi"), "Hello.", "Friendly.")
LINE = event_line(COMMENT)


def test_withdrawn_events_do_not_count(tmp_path):
    path = saved(tmp_path, LINE, event_line(Demonstration(as_conversation("Hi"), "Ho")), event_line(Withdrawal(1)))
    assert read_events(path) == [Demonstration(as_conversation("Hi"), "Ho")]
    assert list(read_event_lines(path).standing) == [2]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([GOOD], "type: got null; expected one of"),
        ([{"type": "order"}], "type: got 'order'"),
        ([{"type": ["ranking"]}], "type: got ['ranking']"),
        ([{"type": "comment", "prompt": "Hi"}], "not a Comment"),
        ([json.loads(LINE) | {"text": None}], "not a Comment (text is NoneType; expected text)"),
        ([json.loads(LINE) | {"mood": 1}], "not a Comment"),
        ([json.loads(LINE) | {"prompt": 3}], "not a Comment (prompt is 3"),
        ([{"type": "ranking", "prompt": "Hi", "replies": 3, "tiers": [], "shown": []}], "not a Ranking"),
        ([LINE, event_line(Withdrawal(2))], "withdraws line 2, where no event stands"),
        ([LINE, event_line(Withdrawal(1)), event_line(Withdrawal(1))], "line 3, line: withdraws line 1"),
        ([LINE, event_line(Withdrawal(-1))], "withdraws line -1"),
        ([LINE, LINE[:30] + "\n" + LINE], "line 2, line: not JSON"),
    ],
)
def test_bad_events_are_named(lines, expected, tmp_path):
    with pytest.raises(FeedbackError) as caught:
        read_events(saved(tmp_path, *lines))
    assert expected in str(caught.value)


@pytest.mark.parametrize("length", [1, 9, 12, 40, len(LINE) - 1])
def test_a_torn_end_is_told_from_damage(length, tmp_path):
    path = saved(tmp_path, LINE, LINE[:length].encode())
    log = read_event_lines(path)
    assert (list(log.standing.values()), log.lines, log.size, log.torn) == (
        [COMMENT],
        1,
        len(LINE) + 1,
        length,
    )
    with pytest.raises(FeedbackError, match=r"line 2, line: the line is incomplete\. Open the log with RankingSession"):
        read_events(path)


def test_an_event_without_line_end_is_whole(tmp_path):
    log = read_event_lines(saved(tmp_path, LINE.encode()))
    assert (len(log.standing), log.lines, log.size, log.torn) == (1, 1, len(LINE), 0)


def test_a_file_of_another_kind_is_not_torn(tmp_path):
    with pytest.raises(FeedbackError, match="not JSON"):
        read_event_lines(saved(tmp_path, b"my notes"))


def test_an_empty_log_has_no_events(tmp_path):
    assert read_events(saved(tmp_path)) == []
