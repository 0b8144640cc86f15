"""Exports: what each form holds, what it says that it leaves out, and that hostile texts come back whole."""

import csv
import json

import pytest
from hypothesis import given, settings
from records_of_all_kinds import logs

from rlhf_lab.feedback.events import read_events, standing
from rlhf_lab.feedback.exports import FORMS, ORDERING, export
from rlhf_lab.feedback.formats import read_preferences
from rlhf_lab.feedback.targets import to_comparisons
from rlhf_lab.records import Choice, Comment, Edit, Event, Mark, Ranking, Rating, Skip

HOSTILE = "=cmd|' /C calc'!A0 <script>alert(1)</script></td> \0 \u202eevil\u202c \ud800 \x1b[31m \r\n 'x"
RANKING = Ranking("Hi", ("a", "b", "c", "d"), ((2,), (0, 3), (1,)), rater="ann")
LOG = [
    Event("1", RANKING, shown=(3, 2, 1, 0)),
    Event("2", Ranking("Hi", ("a", "b"), (), "skipped")),
    Event("3", Ranking("Hi", ("a", "b"), (), "all_bad")),
    Event("4", Choice("Ho", "a", "b", 0)),
    Event("5", Choice("Ho", "a", HOSTILE, -1, rater=HOSTILE)),
    Event("6", Edit("Ho", "a", "better", simulated=True)),
    Event("7", Edit("Ho", "a", "a")),
    Event("8", Comment("Ho", "a", HOSTILE)),
    Event("9", Rating("Ho", "a", 3), target="8"),
    Event("10", Mark("Ho", "a", ((0, 1),))),
    Event("11", Skip("Ho", "rate", ("a",))),
]
PAIRS = [("c", "a"), ("c", "d"), ("c", "b"), ("a", "b"), ("d", "b"), (HOSTILE, "a"), ("better", "a")]


def pairs_of(record):
    return to_comparisons(record) if isinstance(record, ORDERING) else []


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_preferences_come_back_and_the_rest_is_counted(tmp_path):
    done = export(tmp_path / "mine.jsonl", LOG, "preferences")
    assert [(c.chosen, c.rejected) for c in read_preferences(tmp_path / "mine.jsonl")] == PAIRS
    assert str(done) == (
        "7 rows; left out: 1 events that do not count, 2 ties, 1 rankings that are skipped, 1 rankings that are all "
        "bad, 1 records of the kind edit, 1 records of the kind rating, 1 records of the kind mark, 1 records of the "
        "kind skip"
    )


@pytest.mark.parametrize("form", ["preferences", "unpaired", "prompts"])
def test_files_are_ascii_and_hold_hostile_texts_whole(form, tmp_path):
    path = tmp_path / "mine.jsonl"
    export(path, LOG, form)
    assert path.read_bytes().isascii()
    assert path.read_bytes().count(b"\n") == len(rows(path))
    texts = {turn["content"] for row in rows(path) for part in row.values() if isinstance(part, list) for turn in part}
    assert (HOSTILE in texts) == (form != "prompts")


def test_unpaired_and_prompts(tmp_path):
    export(tmp_path / "mine.jsonl", LOG, "unpaired")
    labels = {(row["completion"][0]["content"], row["label"]) for row in rows(tmp_path / "mine.jsonl")}
    assert {("c", True), ("b", False), ("better", True)} <= labels
    done = export(tmp_path / "mine.jsonl", LOG, "prompts")
    assert [row["prompt"][-1]["content"] for row in rows(tmp_path / "mine.jsonl")] == ["Hi", "Ho"]
    assert str(done) == "2 rows; left out: 1 events that do not count, 10 judgements of them"


def test_a_spreadsheet_runs_nothing(tmp_path):
    export(tmp_path / "mine.csv", LOG, "csv")
    with open(tmp_path / "mine.csv", newline="", encoding="utf-8-sig") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert any("cmd|" in cell for cell in cells)
    assert not any(cell.lstrip().startswith(tuple("=+-@")) for cell in cells)


@settings(max_examples=30)
@given(logs())
def test_the_log_is_lossless_and_no_form_loses_a_pair(tmp_path_factory, events):
    path = tmp_path_factory.getbasetemp() / "log.jsonl"
    export(path, events)
    assert read_events(path) == events
    pairs = [pair for event in standing(events) for pair in pairs_of(event.record)]
    if pairs and all(pair.prompt[-1].content.strip() for pair in pairs):
        assert export(path, events, "preferences").rows == len(pairs)


def test_what_cannot_be_exported(tmp_path):
    with pytest.raises(ValueError, match="form is 'xml'; expected one of"):
        export(tmp_path / "mine", LOG, "xml")
    for form in set(FORMS) - {"events", "prompts"}:
        with pytest.raises(ValueError, match=r"there is no preference to write as .* Use the form events"):
            export(tmp_path / "mine", LOG[6:], form)
    assert list(tmp_path.iterdir()) == []
