"""The log as a file: lossless round trips, which judgements count, files of the first version, bad lines."""

import json
import random

import pytest
from feedback_files import GOOD, saved
from hypothesis import given, settings
from records_of_all_kinds import logs, records

from rlhf_lab.feedback import events as events_module
from rlhf_lab.feedback.events import event_line, new_event, read_events, read_records, standing, write_events
from rlhf_lab.feedback.lines import FeedbackError
from rlhf_lab.records import Comment, Event, Rating, as_conversation

COMMENT = Comment(as_conversation("Hi"), "Hello.", "Friendly.")
LINE = event_line(Event("1", COMMENT))


@settings(max_examples=80)
@given(logs())
def test_events_come_back_equal(tmp_path_factory, events):
    path = tmp_path_factory.getbasetemp() / "events.jsonl"
    write_events(path, events)
    assert read_events(path) == events
    assert path.read_bytes().isascii()


@settings(max_examples=40)
@given(records)
def test_bare_records_come_back_equal(tmp_path_factory, record):
    path = tmp_path_factory.getbasetemp() / "records.jsonl"
    write_events(path, [record, record])
    assert read_records(path) == [record, record]


# ---- which judgements count --------------------------------------------------------------------------------


def rated(name, score, target=""):
    return Event(name, Rating("Hi", "Hello.", score), target)


@pytest.mark.parametrize(
    ("events", "counting"),
    [
        ([rated("a", 1), rated("b", 2)], "ab"),
        ([rated("a", 1), Event("b", None, "a")], ""),
        ([rated("a", 1), rated("b", 2, "a")], "b"),
        ([rated("a", 1), rated("b", 2, "a"), Event("c", None, "b")], "a"),
        ([rated("a", 1), rated("b", 2, "a"), Event("c", None, "a")], "b"),
        ([rated("a", 1), rated("b", 2, "a"), rated("c", 3, "b"), Event("d", None, "c")], "b"),
        ([rated("a", 1), rated("b", 2, "a"), rated("c", 3, "a")], "bc"),  # two sessions at once: neither is lost
        ([rated("a", 1), Event("b", None, "a"), Event("c", None, "b")], ""),  # to take back is final
        ([rated("a", 1), Event("b", None, "elsewhere")], "a"),
    ],
)
def test_what_counts_does_not_depend_on_the_order(events, counting):
    for seed in range(6):
        random.Random(seed).shuffle(events)
        assert sorted(event.id for event in standing(events)) == list(counting)


def test_the_order_is_that_of_the_log():
    assert [event.id for event in standing([rated("b", 1), rated("a", 2), rated("c", 3)])] == ["b", "a", "c"]


def test_new_events_differ_and_know_the_time():
    first, second = new_event(COMMENT, duration=2.5, shown=[0]), new_event(COMMENT)
    assert first.id != second.id
    assert first.time <= second.time
    assert (first.duration, first.shown) == (2.5, (0,))


# ---- bad lines ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([GOOD], "type: got null; expected 'event'"),
        ([{"type": "order"}], "type: got 'order'"),
        ([{"type": ["ranking"]}], "type: got ['ranking']"),
        ([{"type": "event"}], "not an event"),
        ([{"type": "event", "id": "1"}], "needs the target that it takes back"),
        ([{"type": "event", "id": "", "target": "2"}], "expected a text that no other event has"),
        ([{"type": "event", "id": "1", "target": "1"}], "expected a text that no other event has"),
        ([{"type": "event", "id": 1, "target": "2"}], "id is int; expected text"),
        ([json.loads(LINE) | {"mood": 1}], "not an event"),
        ([json.loads(LINE) | {"time": "noon"}], "time is 'noon'; expected a number"),
        ([json.loads(LINE) | {"time": 10**400}], "expected a number, finite"),
        ([json.loads(LINE) | {"duration": -1}], "expected seconds, at least 0"),
        ([json.loads(LINE) | {"shown": [1]}], "shown is (1,); expected a permutation of [0]"),
        ([json.loads(LINE) | {"shown": 3}], "not an event"),
        ([json.loads(LINE) | {"record": 3}], "not an event"),
        ([json.loads(LINE) | {"record": {"type": "order"}}], "its record is of type 'order'"),
        ([json.loads(LINE) | {"record": {"type": "comment", "prompt": "Hi"}}], "missing 2 required"),
        ([json.loads(LINE) | {"record": {"type": "comment", "prompt": 3, "mood": 1}}], "a comment has no ['mood']"),
        ([{"type": "comment", "prompt": "Hi"}], "not a comment"),
        ([{"type": "ranking", "prompt": "Hi", "replies": 3, "tiers": [], "shown": []}], "not a ranking"),
        ([LINE, event_line(Event("1", COMMENT, time=1.0))], "line 2, id: '1' is that of an earlier, other event"),
        ([LINE, LINE[:30] + "\n" + LINE], "line 2, line: not JSON"),
    ],
)
def test_bad_lines_are_named(lines, expected, tmp_path):
    with pytest.raises(FeedbackError) as caught:
        read_events(saved(tmp_path, *lines))
    assert expected in str(caught.value)


def test_the_same_event_twice_is_one(tmp_path):
    assert len(read_events(saved(tmp_path, LINE, LINE))) == 1


def test_a_line_that_could_not_be_read_again_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(events_module, "MAX_LINE_BYTES", 1000)
    with pytest.raises(ValueError, match=r"the event takes \d+ bytes; a line may have 1000. Shorten the texts"):
        write_events(tmp_path / "log.jsonl", [Comment("Hi", "a", "b" * 900)])
    assert list(tmp_path.iterdir()) == []


def test_an_empty_log_has_no_events(tmp_path):
    assert read_events(saved(tmp_path)) == []


# ---- files of the first version ----------------------------------------------------------------------------


def first(score, **more):
    return {"type": "rating", "prompt": "Hi", "reply": "Hello.", "score": score, "low": 1.0, "high": 5.0} | more


def withdrawn(line):
    return {"type": "withdrawal", "line": line}


@pytest.mark.parametrize(
    ("lines", "scores"),
    [
        ([first(1), first(2)], [1, 2]),
        ([first(1), first(2), withdrawn(1)], [2]),
        ([first(1), first(2, replaces=1)], [2]),
        ([first(1), first(2, replaces=1), withdrawn(2)], []),  # there a withdrawal did not bring the first one back
        ([first(1), first(2, replaces=1), first(1, replaces=2), withdrawn(3), first(4)], [4]),
    ],
)
def test_the_first_version_is_read(lines, scores, tmp_path):
    path = saved(tmp_path, *lines)
    assert [record.score for record in read_records(path)] == scores
    assert read_events(path) == read_events(path)  # with the same ids


def test_the_order_shown_moves_into_the_event(tmp_path):
    old = {"type": "ranking", "prompt": "Hi", "replies": ["a", "b"], "tiers": [[1], [0]], "shown": [1, 0]}
    [event] = read_events(saved(tmp_path, old))
    assert (event.shown, event.record.tiers) == ((1, 0), ((1,), (0,)))


def test_two_files_of_the_first_version_have_different_ids(tmp_path):
    one, two = (read_events(saved(tmp_path, first(1), name=name)) for name in ("one.jsonl", "two.jsonl"))
    assert one[0].id != two[0].id


@pytest.mark.parametrize("wrong", [withdrawn(2), withdrawn(0), withdrawn(None), first(1, replaces=7), withdrawn([1])])
def test_in_the_first_version_only_what_stands_can_be_withdrawn(wrong, tmp_path):
    with pytest.raises(FeedbackError, match=r"line 2, line: withdraws line .*, where no event stands"):
        read_events(saved(tmp_path, first(1), wrong))


@pytest.mark.parametrize("length", [1, 9, 40])
def test_a_torn_end_is_passed_over_on_request_only(length, tmp_path):
    path = saved(tmp_path, first(1), json.dumps(first(2))[:length].encode())
    with pytest.raises(FeedbackError, match="line 2"):
        read_events(path)
    assert len(read_events(path, skip_torn=True)) == 1
    whole = saved(tmp_path, first(1), json.dumps(first(2))[:length], first(3))
    with pytest.raises(FeedbackError, match="line 2"):  # in the middle nothing is torn
        read_events(whole, skip_torn=True)
