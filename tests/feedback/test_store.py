"""The store: events come back whole and in order, several writers, damage named, schemas, files that are no store."""

import json
import multiprocessing
import os
import sqlite3
import stat
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from records_of_all_kinds import any_text, logs

from rlhf_lab.feedback import store as stores
from rlhf_lab.feedback.events import new_event, standing
from rlhf_lab.feedback.lines import FeedbackError
from rlhf_lab.feedback.store import NotSaved, Store, default_path
from rlhf_lab.records import Comment, Event, Rating

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX")


def rated(name, score=3, **more):
    return Event(name, Rating("Hi", "Hello.", score), **more)


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "feedback.db") as opened:
        yield opened


def ids(store, **of):
    return [event.id for event in Store(store.path).events(**of)]


# ---- what is added is there ---------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(logs(), any_text)
def test_events_come_back_equal(tmp_path_factory, events, study):
    path = tmp_path_factory.mktemp("store") / "feedback.db"
    with Store(path) as store:
        store.add(*events)
        store.keep(study, study)
    with Store(path) as store:
        assert list(store.events()) == events
        assert store.standing() == standing(events)
        assert store.kept(study) == study
        for one in {event.study for event in events}:
            assert list(store.events(one)) == [event for event in events if event.study == one]
            assert store.count(one) == sum(event.study == one for event in events)
        assert (store.check(), store.count()) == (len(events), len(events))


def test_more_events_than_are_read_at_a_time(store, monkeypatch):
    monkeypatch.setattr(stores, "CHUNK", 3)
    store.add(*(rated(str(i), study="ab"[i % 2]) for i in range(10)))
    assert ids(store) == list("0123456789")
    assert ids(store, study="b") == list("13579")


def test_the_same_event_again_is_no_error_and_another_of_its_id_is(store):
    store.add(rated("a"))
    store.add(rated("a"))
    with pytest.raises(ValueError, match=r"is that of another event in feedback.db"):
        store.add(rated("b"), rated("a", 4))
    assert ids(store) == ["a"]  # all or nothing


def test_reading_makes_no_file(tmp_path):
    store = Store(tmp_path / "deep" / "feedback.db")
    assert (list(store.events()), store.count(), store.kept("a"), store.check()) == ([], 0, "", 0)
    assert list(tmp_path.iterdir()) == []
    store.add(rated("a"))
    assert ids(store) == ["a"]
    store.close()


def test_nothing_in_it_can_be_changed_or_erased(store):
    store.add(rated("a"))
    with sqlite3.connect(store.path) as db:
        for change in ("UPDATE events SET line = ''", "DELETE FROM events"):
            with pytest.raises(sqlite3.IntegrityError, match="never"):
                db.execute(change)


def test_the_usual_place(monkeypatch, tmp_path):
    monkeypatch.setenv("RLHF_LAB_STORE", str(tmp_path / "mine.db"))
    assert Store().path == default_path() == tmp_path / "mine.db"
    monkeypatch.setenv("RLHF_LAB_STORE", " ")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert default_path() == tmp_path / "rlhf_lab" / "feedback.db"


@pytest.mark.parametrize("path", ["a\0b", 3, b"a", ""])
def test_a_path_that_is_none(path):
    with pytest.raises(ValueError, match="expected the name of a file"):
        Store(path)


@POSIX
def test_nobody_else_may_read_what_was_judged(store):
    before = os.umask(0)
    try:
        store.add(rated("a"))
        files = {file.name: stat.S_IMODE(file.stat().st_mode) for file in store.path.parent.iterdir()}
    finally:
        os.umask(before)
    assert set(files.values()) == {0o600}, files


# ---- several writers ----------------------------------------------------------------------------------------


def test_threads_and_stores_share_a_file(store):
    def write(name):
        own = Store(store.path) if name % 2 else store
        for i in range(20):
            own.add(rated(f"{name}-{i}"))

    threads = [threading.Thread(target=write, args=[name]) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(ids(store)) == sorted(f"{name}-{i}" for name in range(4) for i in range(20))


@POSIX
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_opens_the_file_anew(store):
    store.add(rated("parent"))
    child = os.fork()
    if not child:
        try:
            store.add(rated("child"))
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    store.add(rated("later"))
    assert ids(store) == ["parent", "child", "later"]


def test_a_locked_store_is_named_and_nothing_is_lost(store, monkeypatch):
    monkeypatch.setattr(stores, "PATIENCE", 0.05)
    store.add(rated("a"))
    store.close()
    with sqlite3.connect(store.path, isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(NotSaved, match=r"feedback.db cannot be written \(database is locked\). Another program"):
            store.add(rated("b"))
        store.keep("a", "forgotten without a word")
        assert list(store.events()) == [rated("a")]  # to read it needs no lock
        other.execute("ROLLBACK")
    store.add(rated("b"))
    assert ids(store) == ["a", "b"]


# ---- what goes wrong ----------------------------------------------------------------------------------------


@POSIX
def test_a_full_disk_keeps_what_was_there(store):
    import resource

    store.add(rated("a"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    room = max(file.stat().st_size for file in store.path.parent.iterdir())
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    big = Event("b", Comment("Hi", "Hello.", "x" * 50_000))
    try:
        with pytest.raises(NotSaved, match=r"cannot be written \(.*\). Free some space"):
            store.add(big)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert ids(store) == ["a"]
    store.add(big)
    assert ids(store) == ["a", "b"]


def test_a_full_database_keeps_what_was_there(store):
    store.add(rated("a"))
    store._connection().execute("PRAGMA max_page_count = 8")
    with pytest.raises(NotSaved, match=r"database or disk is full\). Free some space"):
        store.add(Event("b", Comment("Hi", "Hello.", "x" * 50_000)))
    assert ids(store) == ["a"]


def interrupted(work, at):
    """Interrupt `work` before its `at`-th instruction in the store; whether it came to it."""
    left = at

    def trace(frame, event, _):
        nonlocal left
        if frame.f_code.co_filename != stores.__file__:
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
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_at_any_instruction_leaves_all_or_nothing(tmp_path):
    """And adding the same again afterwards makes it all, once."""
    at, seen = 1, set()
    while True:
        store = Store(tmp_path / f"{at}.db")
        was_interrupted = interrupted(lambda store=store: store.add(rated("a"), rated("b")), at)
        there = ids(store)
        assert there in ([], ["a", "b"])
        seen.add(len(there))
        store.add(rated("a"), rated("b"))
        assert ids(store) == ["a", "b"]
        store.close()
        if not was_interrupted:
            break
        at += 7
    assert seen == {0, 2}


@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_a_file_that_went_away_is_not_written_to_unseen(store, how, tmp_path):
    store.add(rated("a"))
    opened = store._connection
    taken = []

    def taken_away():
        db = opened()
        if not taken:
            taken.append(store.path.rename(tmp_path / "moved.db"))
            if how == "replaced":
                store.path.write_bytes(b"")
        return db

    store._connection = taken_away
    with pytest.raises(NotSaved, match="was moved or removed while it was in use"):
        store.add(rated("b"))


def test_a_file_that_was_put_in_its_place_is_used(store, tmp_path):
    store.add(rated("a"))
    store.path.rename(tmp_path / "moved.db")
    for end in ("-wal", "-shm"):
        Path(f"{store.path}{end}").rename(tmp_path / f"moved.db{end}")
    store.add(rated("b"))
    assert (ids(store), ids(Store(tmp_path / "moved.db"))) == (["b"], ["a"])


def damaged(store, how):
    data = bytearray(store.path.read_bytes())
    if how == "cut":
        del data[len(data) // 2 :]
    elif how == "no database":
        data[:16] = b"not a database!!"
    elif how == "text":
        data = bytearray(b"my notes\n" * 100)
    elif how == "a page of zeros":
        data[4096:8192] = bytes(4096)
    store.path.write_bytes(data)


@pytest.mark.parametrize("how", ["cut", "no database", "text", "a page of zeros"])
def test_a_damaged_file_is_named_and_left_alone(store, how):
    store.add(*(rated(str(i)) for i in range(200)))
    store.close()
    damaged(store, how)
    before = store.path.read_bytes()
    with pytest.raises(FeedbackError, match=r"feedback.db: .* Keep the file, and take a backup or begin a new store"):
        list(store.events())
    with pytest.raises(NotSaved, match=r"feedback.db: .* Keep the file"):
        store.add(rated("new"))
    with pytest.raises(FeedbackError):
        store.check()
    assert (store.path.read_bytes(), store.kept("a")) == (before, "")


def test_one_flipped_letter_is_found(store):
    store.add(*(rated(str(i)) for i in range(5)))
    store.close()
    data = store.path.read_bytes()
    assert data.count(b'"id": \\"3\\"') + data.count(b'"id": "3"') == 1
    store.path.write_bytes(data.replace(b'"id": "3"', b'"id": "9"'))
    with pytest.raises(FeedbackError, match="event 4 is damaged"):
        list(store.events())
    with pytest.raises(FeedbackError, match="event 4 is damaged"):
        store.check()


# ---- schemas and files that are no store --------------------------------------------------------------------


def pragma(store, name, value):
    store.close()
    with sqlite3.connect(store.path) as db:
        db.execute(f"PRAGMA {name} = {value}")


def test_a_schema_from_the_future_is_left_alone(store):
    store.add(rated("a"))
    pragma(store, "user_version", 99)
    with pytest.raises(FeedbackError, match=r"is of schema 99, and this version of rlhf_lab knows 1. Install a newer"):
        list(store.events())
    with pytest.raises(NotSaved, match="is of schema 99"):
        store.add(rated("b"))


def test_an_older_schema_is_brought_up_after_a_copy(store, monkeypatch):
    store.add(rated("a"))
    store.close()
    more = "ALTER TABLE events ADD COLUMN note TEXT; CREATE TABLE later (a)"
    monkeypatch.setattr(stores, "MIGRATIONS", (*stores.MIGRATIONS, more))
    assert ids(store) == ["a"]
    with sqlite3.connect(store.path) as db:
        assert db.execute("SELECT note FROM events").fetchall() == [(None,)]
    [copy] = store.path.parent.glob("feedback.db.schema-1-*")
    monkeypatch.undo()
    assert [event.id for event in Store(copy).events()] == ["a"]


def test_a_migration_that_fails_changes_nothing(store, monkeypatch):
    store.add(rated("a"))
    store.close()
    monkeypatch.setattr(stores, "MIGRATIONS", (*stores.MIGRATIONS, "CREATE TABLE later (a); CREATE TABLE later (a)"))
    with pytest.raises(NotSaved, match="already exists"):
        store.add(rated("b"))
    monkeypatch.undo()
    assert ids(store) == ["a"]


def test_a_database_of_another_program_is_left_alone(tmp_path):
    with sqlite3.connect(tmp_path / "other.db") as db:
        db.execute("CREATE TABLE addresses (name)")
    with pytest.raises(NotSaved, match=r"is a database of another program. Name another file"):
        Store(tmp_path / "other.db").add(rated("a"))


@POSIX
@pytest.mark.parametrize("kind", ["folder", "pipe", "loop", "device", "long name", "file for a folder"])
def test_what_is_no_file_is_refused_at_once(kind, tmp_path):
    path = tmp_path / "feedback.db"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "device":
        path = Path("/dev/null")
    elif kind == "long name":
        path = tmp_path / ("long" * 100)
    else:
        path.write_text("")
        path = path / "feedback.db"
    with pytest.raises(
        NotSaved, match=r"is no file|cannot be written \((File name too long|Not a directory|File exists)"
    ):
        Store(path).add(rated("a"))


# ---- places, networks, backups ------------------------------------------------------------------------------


def test_where_a_write_ahead_log_cannot_be(store, monkeypatch):
    monkeypatch.setattr(stores, "_on_network", lambda path: True)
    store.add(rated("a"))
    assert [file.name for file in store.path.parent.iterdir()] == ["feedback.db"]
    db = store._connection()
    assert [db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")] == ["delete", 3]
    store.close()
    monkeypatch.undo()
    store.add(rated("b"))
    db = store._connection()
    assert [db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")] == ["wal", 2]
    assert ids(store) == ["a", "b"]


@pytest.mark.parametrize(("path", "far"), [("/net/ann/a.db", True), ("/net/ann2/a.db", False), ("/home/a.db", False)])
def test_the_list_of_mounts_is_read(path, far, monkeypatch):
    mounts = "/dev/vda / ext4 rw 0 0\nserver:/ann /net/ann nfs4 rw 0 0\nproc /proc proc rw 0 0\n"
    monkeypatch.setattr(Path, "read_text", lambda self, encoding: mounts)
    assert stores._on_network(Path(path)) == far


@POSIX
def test_a_store_that_may_only_be_read_is_read(store, monkeypatch):
    """A folder in which nothing can be written; for root, who may write anywhere, SQLite is told so."""
    store.add(rated("a"))
    twin = Store(store.path)  # while the log beside the file still holds the event

    def refuse(self):
        raise sqlite3.OperationalError("attempt to write a readonly database")

    monkeypatch.setattr(Store, "_connected", refuse)
    assert [event.id for event in twin.events()] == ["a"]
    with pytest.raises(NotSaved, match=r"readonly database\). Free some space, or name a file in a folder you may"):
        twin.add(rated("b"))


def test_a_backup_is_whole_and_replaces_nothing(store, tmp_path):
    store.add(rated("a"))
    store.backup(tmp_path / "copy.db")
    store.add(rated("b"))
    assert ids(Store(tmp_path / "copy.db")) == ["a"]
    with pytest.raises(FileExistsError, match="give the backup another name"):
        store.backup(tmp_path / "copy.db")
    with pytest.raises(NotSaved, match="cannot be copied"):
        store.backup(tmp_path / "none" / "copy.db")


def test_the_place_is_replaced_and_is_no_part_of_the_log(store):
    store.keep("a", json.dumps({"index": 1}))
    store.keep("a", json.dumps({"index": 2}))
    store.keep("\ud800", "b")
    assert (json.loads(store.kept("a")), store.kept("\ud800"), store.kept("c")) == ({"index": 2}, "b", "")
    assert store.count() == 0


def test_a_clock_that_goes_backwards_changes_no_order(store, monkeypatch):
    times = iter([100.0, 50.0, 0.0])
    monkeypatch.setattr("rlhf_lab.feedback.events.time.time", lambda: next(times))
    events = [new_event(Rating("Hi", "Hello.", score)) for score in (1, 2, 3)]
    store.add(*events)
    assert [event.record.score for event in store.standing()] == [1, 2, 3]


def add_one(path, name):
    Store(path).add(rated(name))


@POSIX
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_programs_that_make_the_same_file_at_once(tmp_path):
    """In 20 new files; reading its head and its tables at two moments failed in about one of 500."""
    fork = multiprocessing.get_context("fork")
    for i in range(20):
        writers = [fork.Process(target=add_one, args=(tmp_path / f"{i}.db", name)) for name in "abcd"]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        assert [writer.exitcode for writer in writers] == [0] * 4
        assert sorted(event.id for event in Store(tmp_path / f"{i}.db").events()) == list("abcd")
