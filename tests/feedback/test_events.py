"""Event logs: lossless round trips, what was withdrawn, bad events, and a torn end told from damage."""

import json

import pytest
from feedback_files import GOOD, any_text, conversations, saved
from hypothesis import given, settings, strategies as st

from rlhf_lab.feedback import events as events_module
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


@settings(max_examples=60)
@given(events, st.data())
def test_a_kill_tears_an_event_anywhere(tmp_path_factory, event, data):
    line = event_line(event).encode()
    length = data.draw(st.integers(1, len(line) - 1))
    log = read_event_lines(saved(tmp_path_factory.getbasetemp(), LINE, line[:length]))
    assert (log.lines, log.torn) == (1, length)


def test_one_line_replaces_another(tmp_path):
    line = event_line(COMMENT)[:-1]
    path = saved(tmp_path, LINE, line + ', "replaces": 1}', line + ', "replaces": 2}')
    assert list(read_event_lines(path).standing) == [3]
    assert read_events(path) == [COMMENT]


@pytest.mark.parametrize(
    ("replaced", "expected"),
    [
        (2, "line 2, line: withdraws line 2, where no event stands"),
        (0, "withdraws line 0, where no event stands"),
        ("1", "not a Comment (it names line '1'; expected the number of a line)"),
        ([1], "it names line [1]"),
        (True, "it names line True"),
        (1.0, "it names line 1.0"),
    ],
)
def test_what_is_replaced_must_stand(replaced, expected, tmp_path):
    path = saved(tmp_path, LINE, json.loads(LINE) | {"replaces": replaced})
    with pytest.raises(FeedbackError, match="line 2, ") as caught:
        read_events(path)
    assert expected in str(caught.value)


@pytest.mark.parametrize("wrong", [{"type": "withdrawal", "line": "1"}, {"type": "withdrawal", "line": None}])
def test_a_withdrawal_names_the_number_of_a_line(wrong, tmp_path):
    with pytest.raises(FeedbackError, match=r"line 2, line: not a Withdrawal \(it names line"):
        read_events(saved(tmp_path, LINE, wrong))


def test_a_huge_number_is_named(tmp_path):
    line = {"type": "rating", "prompt": "Hi", "reply": "Hello.", "score": 10**400}
    with pytest.raises(FeedbackError, match="line 1, line: not a Rating"):
        read_events(saved(tmp_path, line))


def test_the_remedy_keeps_the_line_numbers(tmp_path):
    path = saved(tmp_path, "broken by hand", LINE, LINE, event_line(Withdrawal(2)), {"type": "comment"})
    with pytest.raises(FeedbackError, match="empty it but keep its line end"):
        read_events(path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([b"\n", *lines[1:4], b"\n"]))
    assert list(read_event_lines(path).standing) == [3]


def test_only_what_stands_can_be_withdrawn(tmp_path):
    log = events_module.EventLog(tmp_path / "log.jsonl")
    for withdraw in (lambda: log.append(Withdrawal(1)), lambda: log.append(COMMENT, replaces=1)):
        with pytest.raises(ValueError, match="withdraws line 1, where no event stands"):
            withdraw()
    assert log.append(COMMENT) == 1
    assert log.append(COMMENT, replaces=1) == 2
    assert list(log.standing) == list(read_event_lines(log.path).standing) == [2]


def test_a_file_that_an_interrupt_left_open_locks_nobody_out(tmp_path):
    fcntl = pytest.importorskip("fcntl")
    log = events_module.EventLog(tmp_path / "log.jsonl")
    log.append(COMMENT)
    with open(log.path, "rb") as left:
        fcntl.flock(left, fcntl.LOCK_EX)
        log._file = left
        assert log.append(COMMENT) == 2


def test_an_event_without_line_end_is_whole(tmp_path):
    log = read_event_lines(saved(tmp_path, LINE.encode()))
    assert (len(log.standing), log.lines, log.size, log.torn) == (1, 1, len(LINE), 0)


def test_a_file_of_another_kind_is_not_torn(tmp_path):
    with pytest.raises(FeedbackError, match="not JSON"):
        read_event_lines(saved(tmp_path, b"my notes"))


def test_an_empty_log_has_no_events(tmp_path):
    assert read_events(saved(tmp_path)) == []
