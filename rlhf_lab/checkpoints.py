"""Save and resume a run so that a kill at any moment loses nothing that was saved.

Files are written beside their final name, flushed to the disk and moved there in one step. Left out: several
versions of a checkpoint and remote storage.
"""

import hashlib
import math
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch


class CheckpointError(ValueError):
    """A saved state cannot be used; the message says why and what to do."""


class SaveError(OSError):
    """A file could not be written; nothing is left under its final name."""


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise SaveError(
            f"cannot write {path}: {reason}. Free some space or choose a folder you may write to."
        ) from error


def write_atomic(path: str | Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, then move it to `path` in one step.

    Raises:
        SaveError: disk full, read-only folder, ...; `path` is then as it was.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with _explained(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write(temporary)
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def write_text_atomic(path: str | Path, text: str) -> None:
    """Write `text` as UTF-8; `path` holds either all of it or what it held before."""
    write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """A temporary folder that becomes `path` when the block ends well, replacing what was there.

    Raises:
        SaveError: as `write_atomic`.
    """
    path = Path(path)
    temporary, old = (path.with_name(f".{path.name}.{os.getpid()}.{end}") for end in ("tmp", "old"))
    with _explained(path):
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            yield temporary
            if path.exists():
                os.replace(path, old)
            os.replace(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)


def save_checkpoint(path: str | Path, state: dict) -> None:
    """Save tensors, numbers, texts and containers of them.

    Raises:
        SaveError: as `write_atomic`.
    """
    write_atomic(path, lambda temporary: _torch_save(state, temporary))


def _torch_save(state: dict, path: Path) -> None:
    try:
        torch.save(state, path)
    except RuntimeError as error:  # torch reports a full disk so
        raise OSError(str(error).splitlines()[0]) from error


def load_checkpoint(path: str | Path) -> dict:
    """Load what `save_checkpoint` saved, without executing anything in it.

    Raises:
        CheckpointError: damaged, or not a checkpoint.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:
        reason = str(error).splitlines()[0][:200]
        raise CheckpointError(
            f"{path} is damaged or is no checkpoint ({reason}). Delete it to start again."
        ) from error


class History:
    """Numbers of a run, one row per step.

    >>> history = History()
    >>> history.add(step=0, loss=2.0)
    >>> history.add(step=1, loss=1.5, accuracy=0.6)
    >>> history.column("loss")[1], history.last("accuracy")
    (array([2. , 1.5]), 0.6)
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, float | None]] = []

    def add(self, step: int, **numbers: float | None) -> None:
        """Append a row.

        Raises:
            FloatingPointError: a number is NaN or infinite; the message names it and the step.
        """
        row = {name: None if value is None else float(value) for name, value in numbers.items()}
        for name, value in row.items():
            if value is not None and not math.isfinite(value):
                raise FloatingPointError(f"{name} is {value} at step {step}")
        self.rows.append({"step": int(step)} | row)

    def column(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """(steps, values) of the rows that have `name`."""
        rows = [(row["step"], row[name]) for row in self.rows if row.get(name) is not None]
        if not rows:
            raise KeyError(f"no row has {name!r}; there are {self.names()}")
        steps, values = zip(*rows, strict=True)
        return np.array(steps), np.array(values)

    def names(self) -> list[str]:
        """Every column but step, in the order of appearance."""
        return list(dict.fromkeys(name for row in self.rows for name in row if name != "step"))

    def last(self, name: str) -> float:
        """The newest value of a column."""
        return float(self.column(name)[1][-1])

    def to_list(self) -> list[dict]:
        """The rows as plain dictionaries, for JSON and checkpoints."""
        return [dict(row) for row in self.rows]

    @classmethod
    def from_list(cls, rows: list[dict]) -> "History":
        """The inverse of `to_list`."""
        history = cls()
        history.rows = [dict(row) for row in rows]
        return history

    def to_csv(self, path: str | Path) -> None:
        """Write one line per row; an empty field where a row lacks a column."""
        names = ["step", *self.names()]
        lines = [",".join(names)]
        lines += [",".join("" if row.get(n) is None else repr(row[n]) for n in names) for row in self.rows]
        write_text_atomic(path, "\n".join(lines) + "\n")

    def __len__(self) -> int:
        return len(self.rows)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, History) and self.rows == other.rows

    def __repr__(self) -> str:
        shown = "; ".join(f"{name} {self.last(name):.4g}" for name in self.names())
        return f"History of {len(self)} rows, last values: {shown}" if self.rows else "History of 0 rows"


@contextmanager
def graceful_interrupt() -> Iterator[SimpleNamespace]:
    """Turn the first Ctrl-C into `.requested`, so that a loop stops between two steps; the second one interrupts.

    Outside the main thread, where signals cannot be caught, it changes nothing.
    """
    state = SimpleNamespace(requested=False)
    if threading.current_thread() is not threading.main_thread():
        yield state
        return

    def handle(number, frame):
        if state.requested:
            raise KeyboardInterrupt
        state.requested = True

    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield state
    finally:
        signal.signal(signal.SIGINT, previous)


def generator_for(seed: int, *stream: str | int) -> torch.Generator:
    """A CPU generator for one stream of randomness, so that stages and steps do not disturb each other.

    >>> a, b = generator_for(0, "sft", 3), generator_for(0, "sft", 3)
    >>> bool(torch.rand(1, generator=a) == torch.rand(1, generator=b))
    True
    """
    digest = hashlib.sha256(repr((seed, *stream)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
