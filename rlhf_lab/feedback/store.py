"""The store of feedback: an SQLite file of events that only grows. What `add` has returned from is on the disk.

Several people, sessions and programs may write to one store at the same time. Nothing in it is changed or erased: to
take something back is to add an event. Each event lies there as its line of the log, with a checksum. The place of a
reader in a session, with what he has not finished, is kept beside the log and is no part of it.
Left out: a server; deletion (make a new store from the lines that should stay). Chapter 08.
"""

import json
import os
import sqlite3
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from rlhf_lab.feedback.events import event_line, parse_event, standing
from rlhf_lab.feedback.lines import BadLine, FeedbackError
from rlhf_lab.records import Event

PLACE = "RLHF_LAB_STORE"  # the environment variable that names another store than the usual one
APPLICATION = 0x726C6866  # "rlhf", in the head of the file: it is one of ours
PATIENCE = 5.0  # seconds to wait for another writer
CHUNK = 500  # events read at a time: memory stays flat, and a slow reader keeps no writer waiting
# File systems on other machines, where several hosts cannot share the memory that a write-ahead log needs.
NETWORK = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre", "fuse.sshfs"}

# The n-th script brings a store of schema n to schema n + 1; a new file is of schema 0.
MIGRATIONS = (
    """
    CREATE TABLE events (
        number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, study TEXT NOT NULL,
        line TEXT NOT NULL, crc INTEGER NOT NULL
    );
    CREATE INDEX events_of_a_study ON events (study, number);
    CREATE TRIGGER no_change BEFORE UPDATE ON events BEGIN SELECT RAISE(ABORT, 'events are never changed'); END;
    CREATE TRIGGER no_removal BEFORE DELETE ON events BEGIN SELECT RAISE(ABORT, 'events are never erased'); END;
    CREATE TABLE places (study TEXT PRIMARY KEY, text TEXT NOT NULL);
    """,
)


class NotSaved(OSError):
    """A judgement is kept in memory but is not on the disk; the message says why and what to do."""


def default_path() -> Path:
    """Where the judgements of the reader of this machine are: the same for each chapter, its copies and later ones.

    The file that the environment variable RLHF_LAB_STORE names, or "rlhf_lab/feedback.db" in the home folder.
    """
    named = os.environ.get(PLACE, "")
    return Path(named).expanduser() if named.strip() else Path.home() / "rlhf_lab" / "feedback.db"


class Store:
    """An SQLite file of events. It is made when something is first added, and opened when it is first used.

    Args:
        path: of the file; `default_path()` if None. A new one is for its owner only.

    Attributes:
        path: of the file, absolute.

    Raises:
        ValueError: the path is no name of a file.

    Example:
        >>> folder = tempfile.TemporaryDirectory()
        >>> store = Store(Path(folder.name) / "mine.db")
        >>> store.add(Event("a", None, target="b"), Event("a", None, target="b"))  # the same event again is no error
        >>> [event.id for event in store.events()], store.standing()
        (['a'], [])
        >>> store.close(), folder.cleanup()
        (None, None)

    Chapter 08.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        path = default_path() if path is None else path
        if not isinstance(path, str | Path) or "\0" in str(path) or not str(path):
            raise ValueError(f"path is {path!r:.60}; expected the name of a file")
        self.path = Path(os.path.abspath(path))
        self._lock = threading.RLock()
        self._db: sqlite3.Connection | None = None
        self._opened: tuple[int, tuple[int, int]] = (0, (0, 0))  # the process and the file of the connection

    # ---- writing -----------------------------------------------------------------------------------------------

    def add(self, *events: Event) -> None:
        """Put events on the disk: all of them, or none. One that is there already stays as it is.

        Raises:
            NotSaved: nothing was added; the message says why and what to do.
            ValueError: an event is too long, or its id is that of another event; nothing was added.
        """
        rows = [(json.dumps(event.id), json.dumps(event.study), event_line(event)) for event in events]
        with self._saying_why("cannot be written"), self._transaction() as db:
            for id_, study, line in rows:
                given = (id_, study, line, zlib.crc32(line.encode()))
                added = db.execute("INSERT OR IGNORE INTO events (id, study, line, crc) VALUES (?, ?, ?, ?)", given)
                if not added.rowcount:
                    [there] = db.execute("SELECT line FROM events WHERE id = ?", [id_]).fetchone()
                    if there != line:
                        raise ValueError(
                            f"the id {id_:.60} is that of another event in {self.path.name}; give a new one"
                        )

    def keep(self, study: str, text: str) -> None:
        """Remember the reader's place in a study in place of the one before; where that fails, it is forgotten."""
        with suppress(OSError, ValueError), self._saying_why("cannot be written"), self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO places VALUES (?, ?)", [json.dumps(study), json.dumps(text)])

    # ---- reading -----------------------------------------------------------------------------------------------

    def events(self, study: str | None = None) -> Iterator[Event]:
        """All events in the order in which they were added, those that were taken back too.

        Args:
            study: only of this one.

        Raises:
            FeedbackError: the file is damaged, or no store that this version can read.
        """
        last = 0
        where, names = ("", []) if study is None else ("AND study = ?", [json.dumps(study)])
        query = f"SELECT number, line, crc FROM events WHERE number > ? {where} ORDER BY number LIMIT {CHUNK}"
        while rows := self._read(query, [last, *names]):
            for last, line, checksum in rows:
                yield self._event(last, line, checksum)

    def standing(self, study: str | None = None) -> list[Event]:
        """The judgements that count, as `feedback.events.standing`."""
        return standing(self.events(study))

    def count(self, study: str | None = None) -> int:
        """Events in the store, those that were taken back too."""
        where, names = ("", []) if study is None else (" WHERE study = ?", [json.dumps(study)])
        rows = self._read(f"SELECT COUNT(*) FROM events{where}", names)
        return int(rows[0][0]) if rows else 0

    def kept(self, study: str) -> str:
        """What `keep` remembered of a study; "" if there is nothing, or it cannot be read."""
        with suppress(FeedbackError, OSError):
            rows = self._read("SELECT text FROM places WHERE study = ?", [json.dumps(study)])
            return json.loads(rows[0][0]) if rows else ""
        return ""

    def check(self) -> int:
        """Read every page and every event; returns how many events there are. Opening makes the quick check only.

        Raises:
            FeedbackError: the first damage that is found.
        """
        problems = [row[0] for row in self._read("PRAGMA integrity_check(3)", [])]
        if problems not in ([], ["ok"]):
            raise FeedbackError(self.path, f": is damaged ({' '.join(' '.join(problems).split())}). {self._rescue()}")
        return sum(1 for _ in self.events())

    def backup(self, path: str | Path) -> None:
        """Write a copy that is whole, whoever writes to the store meanwhile.

        Raises:
            FileExistsError: there is a file of this name already.
            NotSaved: the copy cannot be written.
        """
        path = Path(path)
        if os.path.lexists(path):
            raise FileExistsError(f"there is a file {path} already; give the backup another name")
        with self._lock, self._saying_why("cannot be copied"):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            try:
                with closing(sqlite3.connect(path)) as copy:
                    self._connection().backup(copy)
            except BaseException:
                path.unlink()
                raise

    def close(self) -> None:
        """Close the file; it is opened again at the next use."""
        with self._lock:
            if self._db is not None and self._opened[0] == os.getpid():
                self._db.close()
            self._db = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Store({str(self.path)!r})"

    # ---- the file ----------------------------------------------------------------------------------------------

    def _event(self, number: int, line: str, checksum: int) -> Event:
        try:
            if not isinstance(line, str) or zlib.crc32(line.encode("utf-8", "surrogatepass")) != checksum:
                raise BadLine("line", "its checksum is wrong", "")
            return parse_event(json.loads(line))
        except (BadLine, ValueError) as error:
            problem = error.problem if isinstance(error, BadLine) else error
            raise FeedbackError(self.path, f": event {number} is damaged ({problem}). {self._rescue()}") from None

    def _rescue(self) -> str:
        return f"Keep the file, and take a backup or begin a new store: set {PLACE} to another name"

    def _read(self, query: str, values: list[Any]) -> list[tuple]:
        """The rows of a query; none where there is no file, which reading does not make."""
        with self._lock:
            if not os.path.lexists(self.path):
                self.close()
                return []
            try:
                return self._rows(query, values)
            except sqlite3.Error as error:
                self.close()
                raise FeedbackError(self.path, f": cannot be read ({error}). {self._rescue()}") from error

    def _rows(self, query: str, values: list[Any]) -> list[tuple]:
        try:
            return self._connection().execute(query, values).fetchall()
        except sqlite3.OperationalError as error:
            self.close()
            if "readonly" not in str(error) and "unable to open" not in str(error):
                raise
        with self._copy() as db:
            return db.execute(query, values).fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing, flushed to the disk at its end; an interrupt anywhere within it leaves nothing."""
        with self._lock:
            db = self._connection()
            try:
                if db.in_transaction:  # a second interrupt kept the one before from being rolled back
                    db.execute("ROLLBACK")
                db.execute("BEGIN IMMEDIATE")
                yield db
                db.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    if db.in_transaction:
                        db.execute("ROLLBACK")
                raise
            if _identity(self.path) != self._opened[1]:
                self.close()
                raise NotSaved(
                    f"{self.path} was moved or removed while it was in use. Put it back, or run the cell again"
                )

    @contextmanager
    def _saying_why(self, what: str) -> Iterator[None]:
        """Let whatever keeps an event from the disk end as NotSaved, with a remedy."""
        try:
            yield
        except NotSaved:
            raise
        except FeedbackError as error:
            raise NotSaved(str(error)) from error
        except (OSError, sqlite3.Error) as error:
            reason = getattr(error, "strerror", None) or str(error)
            remedy = f"Free some space, or name a file in a folder you may write to: set {PLACE}"
            if "locked" in reason or "busy" in reason:
                remedy = "Another program is writing to it; wait for it or close it, and save again"
            raise NotSaved(f"{self.path} {what} ({reason}). {remedy}") from error

    def _connection(self) -> sqlite3.Connection:
        """The open file. After a fork, and where the file is another one than it was, it is opened anew."""
        if self._db is not None and self._opened != (os.getpid(), _identity(self.path)):
            self.close()
        if self._db is None:
            _make(self.path)
            opened = os.getpid(), _identity(self.path)
            self._db, self._opened = self._connected(), opened
        return self._db

    def _connected(self) -> sqlite3.Connection:
        if not self.path.is_file():
            raise FeedbackError(self.path, f": is no file. Name another one: set {PLACE}")
        db = sqlite3.connect(self.path, timeout=PATIENCE, isolation_level=None, check_same_thread=False)
        try:
            self._prepare(db)
        except BaseException as error:
            db.close()
            if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError):
                raise FeedbackError(self.path, f": is no store, or damaged ({error}). {self._rescue()}") from error
            raise
        return db

    def _prepare(self, db: sqlite3.Connection) -> None:
        """Check what the file is, bring it to the present schema, and choose how it is flushed."""
        db.execute("BEGIN")  # all three at one moment: another program may be making the tables
        [version], [application] = (db.execute(f"PRAGMA {x}").fetchone() for x in ("user_version", "application_id"))
        [tables] = db.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
        db.execute("COMMIT")
        if application != APPLICATION and (tables or version):
            raise FeedbackError(self.path, f": is a database of another program. Name another file: set {PLACE}")
        if version > len(MIGRATIONS):
            problem = f": is of schema {version}, and this version of rlhf_lab knows {len(MIGRATIONS)}"
            raise FeedbackError(self.path, f"{problem}. Install a newer rlhf_lab, or set {PLACE} to another file")
        problem = db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if problem != "ok":
            raise FeedbackError(self.path, f": is damaged ({' '.join(problem.split())}). {self._rescue()}")
        mode = _journal(db, "DELETE" if _on_network(self.path) else "WAL")
        if mode not in ("wal", "delete"):  # the file system cannot have the first
            mode = _journal(db, "DELETE")
        db.execute(f"PRAGMA synchronous = {'FULL' if mode == 'wal' else 'EXTRA'}")
        if version < len(MIGRATIONS):
            self._migrate(db, version)

    def _migrate(self, db: sqlite3.Connection, version: int) -> None:
        if version:
            with closing(sqlite3.connect(self._beside(f"schema-{version}"))) as copy:
                db.backup(copy)
        db.execute("BEGIN IMMEDIATE")
        try:
            [now] = db.execute("PRAGMA user_version").fetchone()  # another program may have been faster
            for script in MIGRATIONS[now:]:
                for statement in _statements(script):
                    db.execute(statement)
            db.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
            db.execute(f"PRAGMA application_id = {APPLICATION}")
            db.execute("COMMIT")
        except BaseException:
            db.execute("ROLLBACK")
            raise

    def _beside(self, ending: str) -> Path:
        """A new file beside the store, for its owner only."""
        handle, name = tempfile.mkstemp(prefix=f"{self.path.name}.{ending}-", dir=self.path.parent)
        os.close(handle)
        return Path(name)

    @contextmanager
    def _copy(self) -> Iterator[sqlite3.Connection]:
        """A copy to read, for a folder that may only be read: SQLite writes beside a file even to read it."""
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "copy.db"
            for end in ("", "-wal"):
                if (source := Path(f"{self.path}{end}")).exists():
                    Path(f"{copy}{end}").write_bytes(source.read_bytes())
            with closing(sqlite3.connect(copy, isolation_level=None)) as db:
                self._prepare(db)
                yield db


def _make(path: Path) -> None:
    """Make an empty file for its owner only, if there is none, and make its name as safe as its content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        return
    if os.name == "posix":
        handle = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _identity(path: Path) -> tuple[int, int]:
    """Which file a name stands for; (0, 0) for none."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return (0, 0)
    return (found.st_dev, found.st_ino)


def _journal(db: sqlite3.Connection, mode: str) -> str:
    """The journal mode after asking for one; a write-ahead log is more than some file systems can do.

    SQLite does not wait for others who use the file while the mode is changed, so we do.
    """
    end = time.monotonic() + PATIENCE
    while True:
        try:
            if db.execute("PRAGMA journal_mode").fetchone()[0] != mode.lower():
                db.execute(f"PRAGMA journal_mode = {mode}")
            now = str(db.execute("PRAGMA journal_mode").fetchone()[0])
            db.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()  # where shared memory fails, it fails here
            return now
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                if mode == "DELETE" or "readonly" in str(error):
                    raise
                return ""
            if time.monotonic() > end:
                raise
            time.sleep(0.01)


def _on_network(path: Path) -> bool:
    """Whether the file lies on another machine, as far as the list of mounts says."""
    try:
        mounts = [line.split() for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError):  # another system than Linux
        return False
    above = [(len(where), kind) for _, where, kind, *_ in mounts if path.is_relative_to(where)]
    return max(above)[1] in NETWORK if above else False


def _statements(script: str) -> Iterator[str]:
    """The statements of a script; a trigger holds a semicolon of its own."""
    statement = ""
    for part in script.split(";"):
        statement += part + ";"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
