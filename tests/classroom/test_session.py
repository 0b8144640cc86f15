"""The ranking session: operations, what is on the disk and when, and the plain view through its traits."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from rlhf_lab.classroom.widgets.plain import MOST_LINES, RankingView
from rlhf_lab.classroom.widgets.session import Progress, RankingSession
from rlhf_lab.feedback import events
from rlhf_lab.feedback.events import NotSaved, read_events, write_events
from rlhf_lab.feedback.lines import FeedbackError
from rlhf_lab.records import Comment, Ranking, as_conversation

ITEMS = [("Where is the zoo?", ["a", "b", "c"]), ("When?", ["d", "e"]), ("Why?", ["f", "g", "h", "i"])]


def told(session):
    """What the rankings of a session say: (first reply, tiers as texts, status)."""
    rankings = session.rankings()
    return [(r.replies[0], [[r.replies[i] for i in tier] for tier in r.tiers], r.status) for r in rankings]


def judged(session, index, *order):
    """Place the replies of an item in the given order of texts."""
    session.index = index
    for text in order:
        session.place(session.replies.index(text))


# ---- operations --------------------------------------------------------------------------------------------


def test_placing_in_order_ranks():
    session = RankingSession(ITEMS)
    judged(session, 0, "b", "c")
    assert (session.status, told(session)) == ("open", [])
    session.place(session.replies.index("a"))
    assert (session.status, told(session)) == ("done", [("a", [["b"], ["c"], ["a"]], "done")])
    assert session.progress == Progress(judged=1, total=3, unsaved=1)
    [ranking] = session.rankings()
    assert ranking == Ranking(
        as_conversation(ITEMS[0][0]), ("a", "b", "c"), ((1,), (2,), (0,)), ranking.shown, "done", "you"
    )
    assert [ranking.replies[i] for i in ranking.shown] == session.replies


def test_ties_share_a_rank():
    session = RankingSession(ITEMS)
    session.index = 2
    first, second, third, fourth = range(4)
    session.place(third)
    session.tie(first)
    session.place(fourth)
    session.tie(second)
    assert session.ranks == [1, 2, 1, 2]
    with pytest.raises(ValueError, match="tie: no other reply has a rank yet"):
        RankingSession(ITEMS).tie(0)


def test_moving_and_removing():
    session = RankingSession(ITEMS)
    session.rank([[0], [1], [2]])
    session.move(2, 0)
    assert session.ranks == [2, 3, 1]
    session.move(2, 2)
    assert session.ranks == [1, 2, 3]
    session.remove(1)
    assert (session.ranks, session.status) == ([1, None, 2], "open")
    session.place(0)  # already placed: goes to the end
    assert session.ranks == [2, None, 1]
    session.rank([[1, 2], [0]])
    assert session.ranks == [2, 1, 1]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda s: s.place(3),
        lambda s: s.place(-1),
        lambda s: s.move(0, 1),
        lambda s: s.move(0, -1),
        lambda s: s.rank([[0], [1]]),
        lambda s: s.rank([[0], [1, 2], []]),
        lambda s: s.rank([[0], [1, 2, 2]]),
    ],
)
def test_impossible_operations_change_nothing(wrong):
    session = RankingSession(ITEMS)
    with pytest.raises(ValueError, match="expected"):
        wrong(session)
    assert (session.ranks, session.can_undo, session.saved) == ([None] * 3, False, True)


@pytest.mark.parametrize("status", ["skipped", "all_bad"])
def test_skipping_and_all_bad(status):
    session = RankingSession(ITEMS)
    session.place(0)
    session.skip() if status == "skipped" else session.all_bad()
    assert (session.status, session.ranks, told(session)) == (status, [None] * 3, [("a", [], status)])
    session.place(1)  # on second thoughts
    assert (session.status, told(session)) == ("open", [])


def test_going_to_and_fro_stays_inside():
    session = RankingSession(ITEMS)
    session.previous()
    assert session.index == 0
    for _ in range(5):
        session.next()
    assert session.index == 2


def test_undo_goes_back_over_items_and_judgements():
    session = RankingSession(ITEMS)
    states = []

    def remember():
        # The order of the judgements may change with undo, so that of the items is compared.
        states.append((session.index, session.ranks, sorted(told(session))))

    steps = [lambda: session.place(1), lambda: session.rank([[0], [1, 2]]), session.skip, session.skip]
    steps += [lambda: session.place(0), lambda: session.rank([[2], [0], [1]]), session.all_bad]
    for step in steps:
        remember()
        step()
    assert states[3] == (0, [None] * 3, [("a", [], "skipped")])
    del states[3]  # skipping what is skipped is no step
    for state in reversed(states):
        session.undo()
        assert (session.index, session.ranks, sorted(told(session))) == state
    session.undo()
    assert not session.can_undo


def test_undo_finds_the_item():
    session = RankingSession(ITEMS)
    session.skip()
    session.next()
    session.next()
    session.undo()
    assert (session.index, session.status) == (0, "open")


def test_the_order_on_the_screen_is_shuffled_by_the_seed():
    items = [("Hi", [f"reply {i}" for i in range(4)])] * 50
    orders = [[tuple(s._shown[i]) for i in range(50)] for s in (RankingSession(items, seed=seed) for seed in (1, 1, 2))]
    assert orders[0] == orders[1] != orders[2]
    assert len(set(orders[0])) > 12  # 24 orders; fewer than 13 of them in 50 draws: p < 1e-6
    assert RankingSession(ITEMS)._shown == [(1, 2, 0), (1, 0), (2, 3, 0, 1)]  # the same in every Python


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        ([], "items is empty"),
        ([("Hi", ["only one"])], "item 1: replies holds 1; expected at least 2"),
        ([*ITEMS, ("Hi", ["a", None])], "item 4: reply is NoneType; expected text"),
        ([("Hi", "ab")], "item 1: replies is a text; expected several"),
        ([([], ["a", "b"])], "item 1: prompt is"),
        ([("Hi", None)], "item 1: .*NoneType"),
        ([("Hi",)], "item 1: not enough values to unpack"),
        ([*ITEMS, None], "item 4: .*NoneType"),
    ],
)
def test_impossible_items(items, expected):
    with pytest.raises(ValueError, match=expected):
        RankingSession(items)


operations = st.tuples(
    st.sampled_from(["place", "tie", "move", "remove", "skip", "all_bad", "undo", "next", "previous", "save"]),
    st.integers(-1, 3),
    st.integers(0, 3),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(operations, max_size=25), st.integers(0, 25))
def test_the_log_holds_what_the_session_shows(tmp_path_factory, steps, reopened_at):
    path = tmp_path_factory.mktemp("any") / "log.jsonl"
    session = RankingSession(ITEMS, path)
    for number, (name, position, rank) in enumerate(steps):
        arguments = {"move": (position, rank)}.get(name, (position,) if name in ("place", "tie", "remove") else ())
        with contextlib.suppress(ValueError):
            getattr(session, name)(*arguments)
        if number == reopened_at:
            session = RankingSession(ITEMS, path)
        assert session.saved
        assert session.rankings() == (read_events(path) if path.exists() else [])
        assert session.progress.judged == len(session.rankings())


# ---- the log -----------------------------------------------------------------------------------------------


def test_a_session_goes_on_where_it_was(tmp_path):
    path = tmp_path / "new" / "folder" / "log.jsonl"
    session = RankingSession(ITEMS, path, seed=1)
    assert not path.parent.exists()  # looking writes nothing
    judged(session, 0, "c", "a", "b")
    session.next()
    session.skip()
    again = RankingSession(ITEMS, path, seed=4)
    assert again.rankings() == session.rankings()
    assert (again.index, again.progress) == (2, Progress(judged=2, total=3, unsaved=0))
    session.index = again.index = 0
    assert (again.replies, again.ranks) == (session.replies, session.ranks)
    assert RankingSession(ITEMS, seed=4).replies != session.replies  # so the log's order was taken over
    again.undo()
    assert (again.index, again.status) == (1, "open")
    again.undo()
    assert (again.index, again.status, read_events(path)) == (0, "open", [])
    assert len(path.read_text().splitlines()) == 4  # nothing is erased


def test_other_events_and_raters_in_the_log_are_kept_apart(tmp_path):
    path = tmp_path / "log.jsonl"
    prompt = as_conversation("When?")
    theirs = Ranking(prompt, ("d", "e"), ((1,), (0,)), (0, 1), rater="friend")
    write_events(path, [Comment(prompt, "d", "Short."), theirs])
    session = RankingSession(ITEMS, path)
    assert (session.progress.judged, session.rankings()) == (0, [theirs])
    judged(session, 1, "d", "e")
    assert [r.rater for r in session.rankings()] == ["friend", "you"]
    assert len(read_events(path)) == 3


def test_equal_items_are_judged_apart(tmp_path):
    session = RankingSession([ITEMS[1], ITEMS[1]], tmp_path / "log.jsonl")
    judged(session, 0, "d", "e")
    judged(session, 1, "e", "d")
    again = RankingSession([ITEMS[1], ITEMS[1]], tmp_path / "log.jsonl")
    assert again.progress.judged == 2
    assert again.rankings() == session.rankings()


@pytest.mark.parametrize("first", [0, 1])
def test_of_several_judgements_of_an_item_the_last_counts(first, tmp_path):
    path = tmp_path / "log.jsonl"
    rankings = [Ranking(as_conversation("When?"), ("d", "e"), tiers, (0, 1), rater="you") for tiers in TIERS]
    write_events(path, rankings)
    session = RankingSession([ITEMS[1]] * (first + 1), path)
    session.index = first
    assert session.ranks == [1, 1]
    assert session.rankings() == rankings
    session.skip()
    again = RankingSession([ITEMS[1]] * (first + 1), path)
    assert [r.tiers for r in again.rankings()] == [*TIERS[:2], ()]


TIERS = [((0,), (1,)), ((1,), (0,)), ((0, 1),)]


def test_one_judgement_of_equal_items_belongs_to_the_first(tmp_path):
    judged(RankingSession([ITEMS[1]] * 2, tmp_path / "log.jsonl"), 0, "d", "e")
    session = RankingSession([ITEMS[1]] * 2, tmp_path / "log.jsonl")
    assert session.index == 1
    session.index = 0
    assert session.status == "done"


@pytest.mark.parametrize("keep", [1, 12, 60, -2])
def test_a_torn_last_line_is_mended_at_the_next_write(keep, tmp_path):
    path = tmp_path / "log.jsonl"
    session = RankingSession(ITEMS, path)
    for index in range(3):
        session.index = index
        session.skip()
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2]) + lines[2][:keep])
    torn = path.read_bytes()
    again = RankingSession(ITEMS, path)
    assert (again.progress.judged, again.index, path.read_bytes()) == (2, 2, torn)
    again.all_bad()
    assert [r.status for r in read_events(path)] == ["skipped", "skipped", "all_bad"]


def test_a_missing_line_end_is_added(tmp_path):
    path = tmp_path / "log.jsonl"
    RankingSession(ITEMS, path).skip()
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    session = RankingSession(ITEMS, path)
    session.skip()
    session.undo()
    session.all_bad()
    assert [r.status for r in read_events(path)] == ["skipped", "all_bad"]


def test_a_damaged_or_foreign_file_is_refused_and_kept(tmp_path):
    path = tmp_path / "log.jsonl"
    for content in (
        b"my notes",
        b'{"type": "ranking"\n{}\n',
        b'{"prompt": "Hi", "chosen": "a", "rejected": "b"}\n',
    ):
        path.write_bytes(content)
        with pytest.raises(FeedbackError):
            RankingSession(ITEMS, path)
        assert path.read_bytes() == content
    write_events(
        tmp_path / "log.jsonl.gz",
        RankingSession(ITEMS).rankings() or [Comment(as_conversation("a"), "b", "c")],
    )
    with pytest.raises(FeedbackError, match=r"compressed; expected a plain event log. Unpack it"):
        RankingSession(ITEMS, tmp_path / "log.jsonl.gz")


# ---- when the disk does not do its part --------------------------------------------------------------------


def held(session, number=1):
    assert not session.saved
    assert session.progress.unsaved == number
    assert session.progress.judged == number == len(session.rankings())


@pytest.mark.parametrize("place", ["below_a_file", "folder"])
def test_an_impossible_path_keeps_the_judgement(place, tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    log = {"below_a_file": tmp_path / "file" / "log.jsonl", "folder": tmp_path / "folder"}[place]
    if place == "folder":
        with pytest.raises(FeedbackError, match="is a folder"):
            RankingSession(ITEMS, log)
        return
    session = RankingSession(ITEMS, log)
    with pytest.raises(NotSaved, match=r"cannot be written .*Free some space, or choose a file in a folder"):
        session.skip()
    held(session)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_keeps_the_judgement(tmp_path):
    tmp_path.chmod(0o500)
    session = RankingSession(ITEMS, tmp_path / "log.jsonl")
    with pytest.raises(NotSaved, match="Permission denied"):
        session.skip()
    held(session)


@pytest.mark.parametrize("step", ["open", "fsync"])
def test_refused_system_calls_keep_the_judgement(step, tmp_path, monkeypatch):
    session = RankingSession(ITEMS, tmp_path / "log.jsonl")
    session.skip()
    session.next()
    before = (tmp_path / "log.jsonl").read_bytes()

    def refuse(*args, **options):
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patch:
        if step == "open":
            patch.setattr(events, "open", refuse, raising=False)
        else:
            patch.setattr(os, "fsync", refuse)
        with pytest.raises(NotSaved, match="Read-only file system"):
            session.all_bad()
        assert "Read-only" in session.error
        assert (session.saved, session.progress.unsaved, session.status) == (False, 1, "all_bad")
        assert (tmp_path / "log.jsonl").read_bytes() == before  # what was half-way is cut off again
    session.save()
    assert (session.saved, session.error) == (True, "")
    assert [r.status for r in read_events(tmp_path / "log.jsonl")] == ["skipped", "all_bad"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files")
def test_a_full_disk_keeps_judgements_and_whole_lines(tmp_path):
    import resource

    path = tmp_path / "log.jsonl"
    session = RankingSession(ITEMS, path)
    session.skip()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 20, hard))  # the next line fits only in part
    try:
        session.next()
        with pytest.raises(NotSaved, match="File too large"):
            session.skip()
        session.next()
        with pytest.raises(NotSaved, match="File too large"):
            session.all_bad()
        assert len(read_events(path)) == 1
        assert session.progress == Progress(judged=3, total=3, unsaved=2)
        session.undo()  # of what was never saved: nothing to withdraw
        assert session.progress == Progress(judged=2, total=3, unsaved=1)
    except NotSaved:
        assert session.progress == Progress(judged=2, total=3, unsaved=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    session.index = 2
    session.all_bad()
    assert session.saved
    assert [r.status for r in read_events(path)] == ["skipped", "skipped", "all_bad"]


def test_two_sessions_on_one_file_are_noticed(tmp_path):
    path = tmp_path / "log.jsonl"
    first, second = RankingSession(ITEMS, path), RankingSession(ITEMS, path)
    first.skip()
    with pytest.raises(NotSaved, match=r"changed by another session .* make the session again"):
        second.all_bad()
    held(second)
    assert [r.status for r in read_events(path)] == ["skipped"]
    first.undo()  # the first is not disturbed
    assert read_events(path) == []
    third = RankingSession(ITEMS, path)
    third.all_bad()
    assert [r.status for r in read_events(path)] == ["all_bad"]


def test_a_log_that_vanished_is_noticed(tmp_path):
    session = RankingSession(ITEMS, tmp_path / "log.jsonl")
    session.skip()
    (tmp_path / "log.jsonl").unlink()
    session.next()
    with pytest.raises(NotSaved, match="was changed"):
        session.skip()


def test_a_locked_log_is_noticed(tmp_path):
    fcntl = pytest.importorskip("fcntl")
    session = RankingSession(ITEMS, tmp_path / "log.jsonl")
    session.skip()
    session.next()
    with open(tmp_path / "log.jsonl", "rb") as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        with pytest.raises(NotSaved, match=r"locked by another program. Close that and try again"):
            session.skip()
    session.save()
    assert (session.saved, len(read_events(tmp_path / "log.jsonl"))) == (True, 2)


def test_without_locks_the_size_still_tells(tmp_path, monkeypatch):
    monkeypatch.setattr(events, "fcntl", None)
    test_two_sessions_on_one_file_are_noticed(tmp_path)


CLICKING = """
import sys
from rlhf_lab.classroom.widgets.session import RankingSession
session = RankingSession([(f"prompt {i}", ["a", "b" * 3000]) for i in range(2000)], sys.argv[1])
for number in range(2000):
    session.place(number % 2)
    session.place(1 - number % 2)
    if number % 7 == 3:
        session.undo()
        session.skip()
    print(number, flush=True)
    session.next()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGKILL")
def test_kill_9_loses_nothing_that_was_saved(tmp_path):
    items = [(f"prompt {i}", ["a", "b" * 3000]) for i in range(2000)]
    path = tmp_path / "log.jsonl"
    root = Path(__file__).resolve().parents[2]
    with subprocess.Popen([sys.executable, "-c", CLICKING, path], stdout=subprocess.PIPE, text=True, cwd=root) as child:
        for _ in range(30):
            child.stdout.readline()
        child.kill()
        said = 29 + len(child.stdout.read().split("\n")) - 1
    session = RankingSession(items, path)
    assert session.progress.judged >= said >= 29
    session.index = session.progress.judged
    session.all_bad()  # also where the kill tore the last line
    assert read_events(path) == session.rankings()


# ---- starting from a recorded session ----------------------------------------------------------------------


@pytest.fixture
def recorded(tmp_path):
    path = tmp_path / "recorded.jsonl"
    prompt = as_conversation("Where is the zoo?")
    rankings = [
        Ranking(prompt, ("a", "b"), ((0,), (1,)), (1, 0), rater="careful", simulated=True),
        Ranking(prompt, ("a", "b"), ((1,), (0,)), (0, 1), rater="hurried", simulated=True),
        Ranking(as_conversation("When?"), ("c", "d"), ((1, 0),), (0, 1), rater="careful", simulated=True),
    ]
    write_events(path, rankings)
    return path


def test_a_recorded_session_is_added_to_and_never_changed(recorded, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = recorded.read_bytes()
    session = RankingSession.from_recorded(recorded)
    assert (len(session.items), session.progress.judged, len(session.rankings())) == (2, 0, 3)
    assert not Path("runs").exists()
    session.rank([[0], [1]])
    assert [(r.simulated, r.rater) for r in session.rankings()][2:] == [(True, "careful"), (False, "you")]
    assert recorded.read_bytes() == before
    assert read_events(Path("runs") / "recorded.yours.jsonl") == session.rankings()[3:]
    again = RankingSession.from_recorded(recorded)
    assert (again.rankings(), again.index) == (session.rankings(), 1)


def test_a_recorded_session_needs_rankings_and_another_log(recorded, tmp_path):
    with pytest.raises(ValueError, match="log is the recorded file"):
        RankingSession.from_recorded(recorded, recorded)
    write_events(tmp_path / "other.jsonl", [Comment(as_conversation("a"), "b", "c")])
    with pytest.raises(FeedbackError, match=r"holds no ranking\. Give the log of a ranking session"):
        RankingSession.from_recorded(tmp_path / "other.jsonl")


# ---- the plain view ----------------------------------------------------------------------------------------

HOSTILE = [
    "<script>alert(1)</script><img src=x onerror=alert(2)>",
    "$x^2$ \u202eevil\u202c",
    "long " * 900,
]


def labels(buttons):
    return [button.description for button in buttons]


def test_clicking_ranks_and_saves(tmp_path):
    session = RankingSession(ITEMS, tmp_path / "log.jsonl")
    view = RankingView(session)
    assert view.title.value == "1 of 3   ·   0 judged"
    assert labels(view.place[:3]) == ["Rank 1"] * 3
    assert [tie.layout.visibility for tie in view.tie[:3]] == ["hidden"] * 3
    assert view.status.value == "Not judged"
    view.place[2].click()
    assert labels(view.place[:3]) == ["Rank 2", "Rank 2", "✓ Rank 1"]
    assert view.status.value == "1 of 3 replies ranked; saved when all are"
    view.tie[0].click()
    view.place[1].click()
    assert labels(view.place[:3]) == ["✓ Rank 1", "✓ Rank 2", "✓ Rank 1"]
    assert (session.ranks, view.status.value, view.title.value) == (
        [1, 2, 1],
        "Saved: ranked",
        "1 of 3   ·   1 judged",
    )
    assert read_events(tmp_path / "log.jsonl") == session.rankings()
    view.place[0].click()  # take a rank back
    assert (session.ranks, read_events(tmp_path / "log.jsonl")) == ([None, 2, 1], [])


def test_the_other_buttons(tmp_path):
    session = RankingSession(ITEMS, tmp_path / "log.jsonl")
    view = RankingView(session)
    assert (view.undo.disabled, view.previous.disabled, view.next.disabled) == (True, True, False)
    view.skip.click()
    assert view.status.value == "Saved: skipped"
    view.undo.click()
    assert view.status.value == "Not judged"
    view.next.click()
    assert [row.layout.display for row in view.rows] == [None, None, "none", "none"]
    view.all_bad.click()
    assert view.status.value == "Saved: all bad"
    view.next.click()
    assert (view.title.value, view.next.disabled) == ("3 of 3   ·   1 judged", True)
    view.previous.click()
    assert view.status.value == "Saved: all bad"


def test_the_status_line_says_what_is_not_saved(tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    session = RankingSession(ITEMS, tmp_path / "file" / "log.jsonl")
    view = RankingView(session)
    view.skip.click()
    assert view.status.value.startswith("NOT SAVED, kept in memory: ")
    assert (view.again.layout.display, session.progress.judged) == (None, 1)
    (tmp_path / "file").unlink()
    view.again.click()
    assert (view.status.value, view.again.layout.display) == ("Saved: skipped", "none")
    view.next.click()
    view._do(lambda: session.tie(0))
    assert view.status.value.startswith("tie: no other reply has a rank yet")
    assert capsys.readouterr() == ("", "")


def test_a_refused_click_does_not_hide_that_something_is_not_saved(tmp_path):
    (tmp_path / "file").write_text("x")
    session = RankingSession(ITEMS, tmp_path / "file" / "log.jsonl")
    view = RankingView(session)
    view.skip.click()
    view.next.click()
    view._do(lambda: session.tie(0))
    assert view.status.value.startswith("NOT SAVED, kept in memory: ")


def test_a_click_that_changes_nothing_tries_to_save_again(tmp_path, monkeypatch):
    session = RankingSession(ITEMS, tmp_path / "log.jsonl")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(5, "Input/output error")))
        with pytest.raises(NotSaved, match="Input/output error"):
            session.skip()
    session.skip()
    assert session.saved


def test_lines_of_text_are_not_typeset():
    view = RankingView(RankingSession(ITEMS, Path("$x^2$") / "log.jsonl"))
    for label in (view.title, view.status, *view.children[-1:]):
        assert {"mathjax_ignore", "tex2jax_ignore"} <= set(label._dom_classes)


def test_without_a_log_nothing_is_called_saved():
    view = RankingView(RankingSession(ITEMS))
    view.skip.click()
    assert view.status.value == "NOT SAVED, kept in memory: skipped. The session has no log file"


def test_texts_are_shown_as_they_are_and_cannot_be_changed():
    view = RankingView(
        RankingSession([([{"role": "system", "content": "<b>"}, {"role": "user", "content": "$1"}], HOSTILE)])
    )
    assert view.prompt.value == "System: <b>\n\nUser: $1"
    shown = [text.value for text in view.texts]
    assert sorted(shown) == sorted(HOSTILE)
    for text in view.texts:
        assert text.disabled == (len(text.value) < 1000)  # what scrolls can have the focus
        assert text.rows <= MOST_LINES
        text.value = "typed by the reader"
    assert [text.value for text in view.texts] == shown


def test_no_text_of_people_or_models_goes_into_html():
    view = RankingView(RankingSession([("PROMPT", ["REPLY", "ANSWER"])]))
    found = []

    def walk(widget):
        if type(widget).__name__ in ("HTML", "HTMLMath", "Label"):
            found.append(widget.value)
        for child in getattr(widget, "children", ()):
            walk(child)

    walk(view)
    assert found
    assert not any(word in text for text in found for word in ("PROMPT", "REPLY", "ANSWER"))
    assert repr(view) == "RankingView(1 items)"
    assert "rlhf-ranking" in view._dom_classes
