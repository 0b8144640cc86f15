"""Stores of a class put together, how raters agree, and the command that does both."""

import math

import pytest

from rlhf_lab.__main__ import main
from rlhf_lab.feedback.events import write_events
from rlhf_lab.feedback.lines import FeedbackError
from rlhf_lab.feedback.merging import agreement_of_raters, distinct_names, merge, opinions
from rlhf_lab.feedback.store import Store
from rlhf_lab.records import Choice, Comparison, Event, Ranking, Rating, as_conversation

BEST_FIRST, WORST_FIRST = ((0,), (1,), (2,)), ((2,), (1,), (0,))


def ranked(name, tiers=BEST_FIRST, rater="you", **more):
    return Event(name, Ranking("Hi", ("a", "b", "c"), tiers, rater=rater), **more)


@pytest.fixture
def stores(tmp_path):
    """Three students, each with a folder of his own and no name."""
    paths = []
    for student, tiers in (("ann", BEST_FIRST), ("ben", BEST_FIRST), ("cem", WORST_FIRST)):
        with Store(tmp_path / student / "feedback.db") as store:
            store.add(ranked(f"{student}-1", tiers), ranked(f"{student}-2", tiers, target=f"{student}-1"))
        paths.append(store.path)
    return paths


def test_a_class_becomes_one_store(stores, tmp_path):
    with Store(tmp_path / "class.db") as into:
        done = merge(into, stores)
        assert [(m.events, m.new, m.raters) for m in done] == [
            (2, 2, (f"{name}/feedback",)) for name in ("ann", "ben", "cem")
        ]
        assert [event.rater for event in into.standing()] == ["ann/feedback", "ben/feedback", "cem/feedback"]
        assert [m.new for m in merge(into, stores[::-1])] == [0, 0, 0]  # again and in another order
        assert into.count() == 6


def test_named_raters_keep_their_names_and_undone_judgements_stay_undone(tmp_path):
    log = tmp_path / "log.jsonl"
    write_events(log, [ranked("1", rater="ann"), ranked("2"), Event("3", None, "2")])
    with Store(tmp_path / "class.db") as into:
        merge(into, [log])
        assert [event.rater for event in into.events()] == ["ann", "log", ""]
        assert [event.id for event in into.standing()] == ["1"]


def test_nothing_is_added_when_one_file_is_bad(stores, tmp_path):
    (tmp_path / "bad.jsonl").write_text("my notes\n")
    into = Store(tmp_path / "class.db")
    for bad, error in [("bad.jsonl", FeedbackError), ("none.db", FeedbackError)]:
        with pytest.raises(error, match=bad.partition(".")[0]):
            merge(into, [*stores, tmp_path / bad])
    write_events(tmp_path / "clash.jsonl", [ranked("ann-1", WORST_FIRST)])
    with pytest.raises(ValueError, match='"ann-1" is that of another event'):
        merge(into, [*stores, tmp_path / "clash.jsonl"])
    assert into.count() == 0


def test_names_of_files(tmp_path):
    folders = [tmp_path / "one" / "b" / "x.db", tmp_path / "two" / "b" / "x.db", tmp_path / "y.jsonl"]
    assert distinct_names(folders)[:2] == ["one/b/x", "two/b/x"]
    assert distinct_names([tmp_path / "x.db", tmp_path / "y.db"]) == ["x", "y"]
    assert distinct_names([]) == []


def test_opinions_of_each_kind():
    events = [
        ranked("1", ((2,), (0, 1)), rater="ann"),
        Event("2", Comparison("Hi", "b", "a", rater="ben")),
        Event("3", Choice("Hi", "a", "c", -1, rater="ben")),
        Event("4", Choice("Hi", "b", "c", 0, rater="ben")),
        *(
            Event(f"r{reply}", Rating("Hi", reply, score, rater="cem"))
            for reply, score in (("a", 4), ("b", 2), ("c", 2))
        ),
    ]
    raters, pairs, table = opinions(events)
    prompt = as_conversation("Hi")
    found = {
        (rater, *pair[1:]): table[i, j]
        for i, rater in enumerate(raters)
        for j, pair in enumerate(pairs)
        if not math.isnan(table[i, j])
    }
    assert {pair[0] for pair in pairs} == {prompt}
    assert found == {
        ("ann", "a", "c"): 0, ("ann", "b", "c"): 0,
        ("ben", "a", "b"): 0, ("ben", "a", "c"): 0,
        ("cem", "a", "b"): 1, ("cem", "a", "c"): 1,
    }  # fmt: skip


def test_agreement_by_pair_of_raters(stores, tmp_path):
    into = Store(tmp_path / "class.db")
    merge(into, stores)
    found = {agreement.raters: agreement for agreement in agreement_of_raters(into.standing())}
    shares = {tuple(name[:3] for name in names): a.share.mean for names, a in found.items()}
    assert shares == {("ann", "ben"): 1.0, ("ann", "cem"): 0.0, ("ben", "cem"): 0.0}
    assert all(a.share.count == 3 for a in found.values())
    stranger = Event("s", Rating("Ho", "x", 3, rater="dan"))
    alone = agreement_of_raters([*into.standing(), stranger, Event("t", Rating("Ho", "y", 4, rater="dan"))])[-1]
    assert (alone.share, alone.kappa) == (None, None)


# ---- the command --------------------------------------------------------------------------------------------


def said(capsys, *arguments, code=0):
    assert main(["feedback", *map(str, arguments)]) == code
    out = capsys.readouterr()
    return out.err if code else out.out


def test_the_command_merges_shows_exports_checks_and_copies(stores, tmp_path, capsys, monkeypatch):
    store, log = tmp_path / "class.db", tmp_path / "class.jsonl"
    assert "2 of 2 events are new; judged by ann/feedback" in said(capsys, "merge", store, *stores)
    shown = said(capsys, "show", store)
    assert "6 events, 3 judgements that count" in shown
    assert "ann/feedback and ben/feedback agree on 1.00 [0.44, 1.00] of 3 pairs, kappa" in shown
    assert "6 rows; nothing is left out" in said(capsys, "export", log, "--store", store)
    assert "9 rows; left out: 3 events" in said(
        capsys, "export", tmp_path / "p.jsonl", "--store", store, "--form", "preferences"
    )
    assert "all 6 events are whole" in said(capsys, "check", store)
    said(capsys, "backup", tmp_path / "copy.db", "--store", store)
    assert Store(tmp_path / "copy.db").count() == 6
    monkeypatch.setenv("RLHF_LAB_STORE", str(tmp_path / "mine.db"))
    assert "6 of 6 events are new" in said(capsys, "import", log)
    assert "6 events, 3 judgements" in said(capsys, "show")


def test_the_command_says_what_is_wrong(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("RLHF_LAB_STORE", str(tmp_path / "mine.db"))
    assert "there is no store" in said(capsys, "show", code=1)
    assert "none.jsonl: cannot be read" in said(capsys, "import", tmp_path / "none.jsonl", code=1)
    (tmp_path / "mine.db").write_text("my notes" * 100)
    assert "is no store, or damaged" in said(capsys, "check", code=1)
