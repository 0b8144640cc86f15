"""Attacks on the place where judgements are kept: kills, interrupts, full disks, torn ends, paths that are no files.

What every such place must hold: what is called saved is on the disk, an old judgement goes only when the new one is
there, nothing is written twice, and no attack locks the reader out. The tests reach the place through the functions at
the top only.
"""

import gc
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_lab.classroom.widgets import plain, session as sessions
from rlhf_lab.classroom.widgets.session import RankingSession
from rlhf_lab.feedback import events
from rlhf_lab.feedback.events import NotSaved
from rlhf_lab.feedback.lines import FeedbackError

ATTACKED = {module.__file__ for module in (events, sessions)}
BEST = ["In Mill Street.", "Go away.", "I do not know."]
POSIX = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX")


def opened(path):
    """A reader's session; what the place holds already is taken over."""
    return RankingSession([("Where is the zoo?", BEST)], path)


def judge(session, best):
    """Judge that `best` is better than all others, in place of what was judged before."""
    place = session.replies.index(best)
    session.rank([[place], [other for other in range(len(BEST)) if other != place]])


def standing(session):
    """The best replies of all judgements that count, for the session."""
    return [ranking.replies[ranking.tiers[0][0]] for ranking in session.rankings()]


def on_disk(path):
    """The best replies of all judgements that count, for one who comes later."""
    return standing(opened(path))


def told(session):
    """What the reader is told of the place."""
    return getattr(session, "notice", "")


def changing(path):
    """A session with one judgement saved, and what to do to change it."""
    session = opened(path)
    judge(session, BEST[0])
    return session, lambda: judge(session, BEST[1])


# ---- kills -------------------------------------------------------------------------------------------------


def test_a_kill_at_any_byte_of_a_change_leaves_the_old_or_the_new(tmp_path):
    path = tmp_path / "log.jsonl"
    _, change = changing(path)
    start = path.stat().st_size
    change()
    whole = path.read_bytes()
    left = []
    for size in range(start, len(whole) + 1):
        path.write_bytes(whole[:size])
        left.append(on_disk(path))
    assert [judgement for i, judgement in enumerate(left) if judgement != left[i - 1]] == [[BEST[1]], [BEST[0]]][::-1]


CHANGING = """
import itertools, sys
from rlhf_lab.classroom.widgets.session import RankingSession
session = RankingSession([("Hi", ["a", "b" * 3000])], sys.argv[1])
for number in itertools.count():
    session.rank([[number % 2], [1 - number % 2]])
    print(number, flush=True)
"""


@POSIX
def test_kill_9_while_changing_leaves_one_judgement(tmp_path):
    command = [sys.executable, "-c", CHANGING, tmp_path / "log.jsonl"]
    root = Path(__file__).resolve().parents[2]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as child:
        for _ in range(20):
            child.stdout.readline()
        child.kill()
    assert len(RankingSession([("Hi", ["a", "b" * 3000])], tmp_path / "log.jsonl").rankings()) == 1


# ---- interrupts --------------------------------------------------------------------------------------------


def interrupted(work, at, files=ATTACKED):
    """Interrupt `work` before its `at`-th instruction in `files`; the interrupt, or None where it did not come to it.

    Notebooks keep the last exception, and with it the functions that it left: so must a test.
    """
    left = at

    def trace(frame, event, _):
        nonlocal left
        if frame.f_code.co_filename not in files:
            return None
        frame.f_trace_opcodes = True
        left -= event == "opcode"
        if event == "opcode" and left == 0:
            raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    except KeyboardInterrupt as interrupt:
        return interrupt
    finally:
        sys.settrace(before)
    return None


STRIDE = 13  # instructions between the interrupts; 1 tries all, in minutes


def first(path):
    session = opened(path)
    return session, lambda: judge(session, BEST[0])


def undoing(path):
    session, change = changing(path)
    change()
    return session, session.undo


def changing_after_a_kill(path):
    changing(path)
    with open(path, "ab") as file:
        file.write(b'{"type": "rank')
    session = opened(path)
    return session, lambda: judge(session, BEST[1])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a file that was not yet held
@pytest.mark.parametrize("prepare", [first, changing, undoing, changing_after_a_kill])
@pytest.mark.parametrize("then", ["again", "undo", "another"])
def test_an_interrupt_at_any_instruction_loses_and_doubles_nothing(prepare, then, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # the order of what is done is attacked, not the disk
    at, hit = 1, KeyboardInterrupt()
    while hit:
        path = tmp_path / f"{at}.jsonl"
        session, work = prepare(path)
        before = standing(session)
        hit = interrupted(work, at)
        assert on_disk(path) in ([standing(session)] if session.saved else [before, standing(session)]), at
        assert session.saved == (session.error == ""), at
        if then == "undo":
            session.undo()
        else:
            judge(session, BEST[2] if then == "another" else BEST[1])
        session.save()
        assert session.saved, at
        assert on_disk(path) == standing(session), at
        assert len(standing(session)) <= 1, at
        at += STRIDE
    gc.collect()
    assert at > 300  # it was interrupted in many places


def test_an_interrupted_view_does_not_say_saved(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    at, hit = 1, KeyboardInterrupt()
    while hit:
        session, _ = changing(tmp_path / f"{at}.jsonl")
        view = plain.RankingView(session)
        hit = interrupted(view.place[session.ranks.index(1)].click, at, ATTACKED | {plain.__file__})
        assert session.saved or not view.status.value.startswith("Saved"), at
        at += 61
    assert at > 600


def test_what_is_interrupted_in_the_disk_is_not_called_saved(tmp_path, monkeypatch):
    session, change = changing(tmp_path / "log.jsonl")

    def interrupt(handle):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            change()
    assert not session.saved
    assert session.error == "saving was broken off. Save again"
    assert on_disk(tmp_path / "log.jsonl") == [BEST[0]]
    session.save()
    assert (session.saved, session.error, on_disk(tmp_path / "log.jsonl")) == (True, "", [BEST[1]])


def test_an_interrupt_does_not_excuse_what_another_session_wrote(tmp_path, monkeypatch):
    path = tmp_path / "log.jsonl"
    session, change = changing(path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            change()
    judge(opened(path), BEST[2])
    with pytest.raises(NotSaved, match="was changed by another session"):
        session.save()
    assert (session.saved, on_disk(path)) == (False, [BEST[2]])


# ---- full disks --------------------------------------------------------------------------------------------


@POSIX
@pytest.mark.parametrize("room", [0, 1, 100, 250])
def test_a_full_disk_keeps_the_old_judgement_until_the_new_one_fits(room, tmp_path):
    import resource

    path = tmp_path / "log.jsonl"
    session, change = changing(path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + room, hard))
    try:
        with pytest.raises(NotSaved, match="File too large"):
            change()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (session.saved, on_disk(path)) == (False, [BEST[0]])
    session.save()
    assert (session.saved, on_disk(path)) == (True, [BEST[1]])


@POSIX
def test_a_torn_end_stays_where_it_is_until_it_is_safe_beside_the_log(tmp_path):
    import resource

    path = tmp_path / "log.jsonl"
    session, change = changing_after_a_kill(path)
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5, hard))
    try:
        with pytest.raises(NotSaved, match="File too large"):
            change()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (path.read_bytes(), [file.name for file in tmp_path.iterdir()]) == (before, ["log.jsonl"])
    session.save()
    assert on_disk(path) == [BEST[1]]
    assert (tmp_path / "log.jsonl.torn-1").read_bytes() == b'{"type": "rank'


# ---- torn ends and hand-made ones --------------------------------------------------------------------------


def test_what_is_cut_off_is_kept_beside_the_log_and_told(tmp_path):
    path = tmp_path / "log.jsonl"
    for number, torn in enumerate([b"{", b'{"type": "ranking", "prompt": [{"role": "user"', b'{"type": "\0\0\0'], 1):
        with open(path, "ab") as file:
            file.write(torn)
        session = opened(path)
        assert told(session).startswith("The last line of log.jsonl was incomplete")
        view = plain.RankingView(session)
        assert view.notice.value == told(session)
        view.skip.click()
        assert (tmp_path / f"log.jsonl.torn-{number}").read_bytes() == torn
        assert view.notice.value.endswith(f"is kept in {path}.torn-{number}")
        session.undo()
    assert told(opened(path)) == ""


def in_a_hand_made_form(line):
    """A complete log as editors and people may leave it."""
    return {
        "no line end": line.rstrip(b"\n"),
        "CR at the end": line.rstrip(b"\n") + b"\r",
        "CRLF": line.replace(b"\n", b"\r\n"),
        "blanks at the end": line + b"\n  ",
        "BOM": b"\xef\xbb\xbf" + line,
    }


@pytest.mark.parametrize("form", in_a_hand_made_form(b""))
def test_a_complete_log_in_another_form_is_gone_on_with(form, tmp_path):
    path = tmp_path / "log.jsonl"
    changing(path)
    path.write_bytes(before := in_a_hand_made_form(path.read_bytes())[form])
    session = opened(path)
    assert (standing(session), told(session)) == ([BEST[0]], "")
    judge(session, BEST[1])
    assert path.read_bytes().startswith(before)
    assert on_disk(path) == [BEST[1]]


def damaged_by_hand(line):
    """A log with a mistake that no kill makes, in its last line, which has no line end."""
    line = line.rstrip(b"\n")
    return {
        "CR only": line + b"\r" + line + b"\r",
        "comma": line.replace(b", ", b",, ", 1),
        "quote": line.replace(b'"rater": "you"', b'"rater": you"'),
        "False": line.replace(b"false", b"False"),
        "two lines in one": line + line,
        "surplus brace": line + b"}",
        "field": line.replace(b'"shown"', b'"shoes"'),
        "not ASCII": line.replace(b"Mill", "Müll".encode("latin-1")),
        "zeros": line + b"\0\0",
    }


@pytest.mark.parametrize("damage", damaged_by_hand(b""))
def test_a_mistake_by_hand_is_named_and_not_cut(damage, tmp_path):
    path = tmp_path / "log.jsonl"
    changing(path)
    path.write_bytes(before := damaged_by_hand(path.read_bytes())[damage])
    with pytest.raises(FeedbackError, match=r"log\.jsonl, line 1, "):
        judge(opened(path), BEST[1])
    assert path.read_bytes() == before


# ---- paths that are no files -------------------------------------------------------------------------------


@pytest.fixture
def patience():
    """Seconds are enough for what must not wait."""

    def give_up(*_):
        raise AssertionError("it hangs")

    former = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, 3)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, former)


def a_pipe(folder):
    os.mkfifo(folder / "log.jsonl")
    return folder / "log.jsonl", "is a pipe or a device"


def a_device(folder):
    return "/dev/null", "is a pipe or a device"


def a_loop(folder):
    (folder / "log.jsonl").symlink_to(folder / "log.jsonl")
    return folder / "log.jsonl", "Too many levels of symbolic links"


def a_folder(folder):
    return folder, "is a folder"


def a_name_that_is_too_long(folder):
    return folder / ("long" * 100), "File name too long"


def a_name_with_a_zero(folder):
    return str(folder / "log\0"), "null byte"


@POSIX
@pytest.mark.parametrize(
    "kind", [a_pipe, a_device, a_loop, a_folder, a_name_that_is_too_long, a_name_with_a_zero], ids=lambda f: f.__name__
)
def test_what_is_no_file_is_refused_at_once(kind, tmp_path, patience):
    path, expected = kind(tmp_path)
    with pytest.raises(FeedbackError, match=expected):
        opened(path)


@POSIX
def test_a_recorded_session_is_no_pipe_and_not_the_log_by_another_name(tmp_path, patience):
    with pytest.raises(FeedbackError, match="is a pipe"):
        RankingSession.from_recorded(a_pipe(tmp_path)[0], tmp_path / "other.jsonl")
    changing(tmp_path / "recorded.jsonl")
    os.link(tmp_path / "recorded.jsonl", tmp_path / "link.jsonl")
    with pytest.raises(ValueError, match="log is the recorded file"):
        RankingSession.from_recorded(tmp_path / "recorded.jsonl", tmp_path / "link.jsonl")
    (tmp_path / "loop.jsonl").symlink_to(tmp_path / "loop.jsonl")
    with pytest.raises(FeedbackError, match="Too many levels of symbolic links"):
        RankingSession.from_recorded(tmp_path / "recorded.jsonl", tmp_path / "loop.jsonl")


@POSIX
def test_nobody_else_may_read_what_was_judged(tmp_path):
    before = os.umask(0)
    try:
        _, change = changing_after_a_kill(tmp_path / "log.jsonl")
        change()
    finally:
        os.umask(before)
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()}
    assert modes == {"log.jsonl": 0o600, "log.jsonl.torn-1": 0o600}


# ---- what cannot be saved ----------------------------------------------------------------------------------


@pytest.mark.parametrize("rater", [None, 3, b"me", Path("me")])
def test_a_rater_that_is_no_text_is_refused_before_any_judgement(rater, tmp_path):
    with pytest.raises(ValueError, match=r"rater is .*; expected a text\. Give a name"):
        RankingSession([("Hi", BEST)], tmp_path / "log.jsonl", rater=rater)


def test_a_text_that_is_too_long_to_be_read_again_is_refused_before_any_judgement(tmp_path, monkeypatch):
    monkeypatch.setattr(events, "MAX_LINE_BYTES", 1000, raising=False)
    with pytest.raises(ValueError, match=r"item 1: the event takes \d+ bytes; a line may have 1000. Shorten the texts"):
        RankingSession([("Hi", ["a", "b" * 900])], tmp_path / "log.jsonl")


def test_a_failure_of_another_kind_is_not_called_saved(tmp_path, monkeypatch):
    session, _ = changing(tmp_path / "log.jsonl")
    view = plain.RankingView(session)

    def fail(handle):
        raise RuntimeError("no memory")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(RuntimeError):
        view._do(session.skip)
    assert view.status.value == "NOT SAVED, kept in memory: saving was broken off. Save again"
    assert view.again.layout.display is None
    monkeypatch.undo()
    view.again.click()
    assert view.status.value == "Saved: skipped"
