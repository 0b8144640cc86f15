"""Folders that this program owns, known by a list of what it wrote there.

`rlhf_lab.json` in a folder holds the checksum of every file. What is not on the list, or was changed since, is never
replaced or removed, and never taken for what was saved.
Left out: locks. Two programs that write to one folder at once may list only what one of them wrote.
"""

import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path

from rlhf_lab.training.files import explained, flush, sweep, temporary_name, write_text_atomic

MARK = "rlhf_lab.json"


class OutputError(ValueError):
    """A folder cannot be used, or what is in it is not as it was left; the message says why and what to do."""


def checksum(path: Path) -> str:
    """SHA-256 of a file, or of the names and contents of all files in a folder."""
    if path.is_dir():
        parts = "".join(f"{checksum(path / name)} {name}\n" for name in contents(path))
        return hashlib.sha256(parts.encode()).hexdigest()
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def contents(folder: Path) -> list[str]:
    """Names of all files, links and empty folders below a folder, in order, without our list."""
    paths = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir() or not any(path.iterdir()))
    return sorted(name for name in (path.relative_to(folder).as_posix() for path in paths) if name != MARK)


def read_mark(folder: Path) -> dict | None:
    """What this program noted in a folder: its `kind`, and `files`, name -> checksum; None in a foreign folder.

    Raises:
        OutputError: our list is there and cannot be read.
    """
    try:
        mark = json.loads((folder / MARK).read_text(encoding="utf-8"))
        if isinstance(mark["kind"], str) and isinstance(mark["files"], dict):
            return mark
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise OutputError(f"{folder / MARK} is damaged; name another folder, or delete this one if nothing in it is needed")


def _own_mark(folder: Path, kind: str) -> dict | None:
    """Our list in a folder of this kind, None in an empty one; whatever else is there is refused."""
    if not folder.is_dir():
        raise OutputError(f"{folder} is there and is no folder; name another one")
    mark = read_mark(folder)
    if mark is None and (foreign := next(folder.iterdir(), None)):
        raise OutputError(
            f"{folder} holds {foreign.name}, which this program did not write; name an empty or new folder"
        )
    if mark is not None and mark["kind"] != kind:
        raise OutputError(f"{folder} holds a {mark['kind']}, and this would be a {kind}; name another folder")
    return mark


def changed_file(folder: Path, pattern: str = "*") -> str | None:
    """The first file on a folder's list that is not as it was saved; None if all that are there are, or without a list.

    Args:
        folder: any.
        pattern: of the names that are looked at.

    Raises:
        OutputError: as `read_mark`.
    """
    files = (read_mark(folder) or {"files": {}})["files"]
    looked_at = {name: noted for name, noted in files.items() if fnmatch(name, pattern)}
    return next((n for n, sum_ in looked_at.items() if not _is_as_noted(folder / n, sum_)), None)


def _is_as_noted(path: Path, noted: str) -> bool:
    return not path.is_file() or checksum(path) == noted


def check_replaceable(folder: Path, kind: str = "model") -> None:
    """Nothing, or a whole folder of this program's of the same kind with nothing else in it, may be replaced.

    Raises:
        OutputError: something else is there; names a file.
    """
    if not os.path.lexists(folder):
        return
    if Path.cwd().is_relative_to(folder.resolve()):
        raise OutputError(f"{folder} holds the working folder, so it cannot be replaced; name another one")
    files = (_own_mark(folder, kind) or {"files": {}})["files"]
    for name in contents(folder):
        if name not in files:
            raise OutputError(f"{folder} holds {name}, which this program did not write; name an empty or new folder")
        if checksum(folder / name) != files[name]:
            raise OutputError(f"{folder / name} was changed since it was saved; move it away, or name another folder")


@contextmanager
def new_folder(path: str | Path, kind: str = "model") -> Iterator[Path]:
    """A temporary folder that becomes `path` when the block ends well, replacing what this program wrote there.

    Folders cannot be swapped in one step everywhere. A kill between the two moves leaves the old folder, whole, beside
    the final name, and the next call puts it back; there is never a mixture. A link is followed.

    Raises:
        OutputError: as `check_replaceable`.
        SaveError: as `write_atomic`.
    """
    given, path = Path(path), Path(os.path.realpath(path))
    with explained(path):
        check_replaceable(given, kind)
        sweep(path)
        temporary, old = temporary_name(path), temporary_name(path, "old")
        try:
            temporary.mkdir(parents=True)
            yield temporary
            files = {name: checksum(temporary / name) for name in contents(temporary)}
            (temporary / MARK).write_text(json.dumps({"kind": kind, "files": files}, indent=1) + "\n", encoding="utf-8")
            for name in [*files, MARK]:
                flush(temporary / name)
            _swap(temporary, path, old)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _swap(new: Path, path: Path, old: Path) -> None:
    replaces = path.exists()
    if replaces:
        shutil.copymode(path, new)
        os.replace(path, old)
    try:
        os.replace(new, path)
    except BaseException:
        if replaces:
            os.replace(old, path)
        raise
    shutil.rmtree(old, ignore_errors=True)


class RunFolder:
    """A folder whose files come one after the other, each listed before it is written and again when it is whole.

    Args:
        path: a folder with our list of this kind, an empty folder, or none yet, which is then made.
        kind: what is in it.

    Attributes:
        made: whether this call made the list, so that nothing was there before.
        files: name -> checksum, or None while something is being written.

    Raises:
        OutputError: it is a file, holds what this program did not write, or something of another kind.
        SaveError: it cannot be written.
    """

    def __init__(self, path: str | Path, kind: str) -> None:
        self.path, self.kind = Path(path), kind
        self.files: dict[str, str | None] = {}
        with explained(self.path):
            self.made_folder = not os.path.lexists(self.path)
            if self.made_folder:
                self.path.mkdir(parents=True, exist_ok=True)
            mark = _own_mark(self.path, kind)
            self.made = mark is None
            if mark is None:
                self._begin()
            else:
                self.files = mark["files"]

    def _begin(self) -> None:
        try:
            with open(self.path / MARK, "x", encoding="utf-8") as file:  # of two programs, one makes it
                file.write(self._mark())
        except FileExistsError:
            raise OutputError(f"{self.path} is in use by another program; name another folder") from None

    def has(self, name: str, remedy: str = "delete it to make it again") -> bool:
        """Whether `name` is there and as it was written; False where it was not finished or was deleted.

        Raises:
            OutputError: it is another now.
        """
        path, noted = self.path / name, self.files.get(name)
        if noted is None or not path.exists():
            return False
        if checksum(path) != noted:
            raise OutputError(f"{path} is damaged, or was changed since it was saved; {remedy}")
        return True

    def claim(self, name: str) -> Path:
        """The path of `name`, which is on the list from now on.

        Raises:
            OutputError: something is there that this program did not write.
        """
        path = self.path / name
        if os.path.lexists(path) and name not in self.files:
            raise OutputError(
                f"{path} is there, and this program did not write it; move it away, or name another folder"
            )
        self._note(name, None)
        return path

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """The path of `name` for the block to write, in one step.

        Raises:
            OutputError: something is there that this program did not write, or that was changed since.
        """
        self.has(name)
        yield self.claim(name)
        self._note(name, checksum(self.path / name))

    def drop(self, name: str) -> None:
        """Delete a file of ours, if it is there."""
        if name in self.files:
            (self.path / name).unlink(missing_ok=True)
            del self.files[name]
            self._save()

    def take_back(self) -> None:
        """Delete what is on the list, and the folder if it was made for it."""
        for name in [*self.files, MARK]:
            (self.path / name).unlink(missing_ok=True)
        if self.made_folder:
            self.path.rmdir()

    def _note(self, name: str, noted: str | None) -> None:
        self.files[name] = noted
        self._save()

    def _save(self) -> None:
        write_text_atomic(self.path / MARK, self._mark())

    def _mark(self) -> str:
        return json.dumps({"kind": self.kind, "files": self.files}, indent=1) + "\n"


def _numbers(kind: str) -> list[int]:
    names = (path.name.removeprefix(f"{kind}-") for path in Path("runs").glob(f"{kind}-*"))
    return sorted(int(name) for name in names if name.isascii() and name.isdigit())


def newest_folder(kind: str) -> Path:
    """The one of runs/KIND-1, runs/KIND-2, ... with the highest number.

    Raises:
        OutputError: there is none.
    """
    if not (numbers := _numbers(kind)):
        raise OutputError("runs holds no run to resume; leave out --resume, or name the folder with --out")
    return Path("runs") / f"{kind}-{numbers[-1]}"


def next_folder(kind: str) -> RunFolder:
    """The next free one of runs/KIND-1, runs/KIND-2, ...; of two programs each gets its own."""
    for number in itertools.count(max(_numbers(kind), default=0) + 1):
        with suppress(OutputError):  # another program was faster
            folder = RunFolder(Path("runs") / f"{kind}-{number}", kind)
            if folder.made:
                return folder
    raise AssertionError("there is always a next number")
