"""Save and resume a run so that a kill at any moment loses nothing that was saved.

Files are written beside their final name, flushed to the disk and moved there in one step. Also here: what
every training loop needs besides its algorithm (history, interrupt, streams of randomness, optimiser).
Left out: several versions of a checkpoint and remote storage.
"""

import hashlib
import math
import operator
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
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
    except SaveError:
        raise
    except OSError as error:
        reason = error.strerror or (str(error).splitlines() or ["unknown reason"])[0]
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
            _flush(temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def write_text_atomic(path: str | Path, text: str) -> None:
    """Write `text` as UTF-8, line ends as they are; `path` holds all of it or what it held before.

    Raises:
        SaveError: as `write_atomic`.
    """
    write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8", newline=""))


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """A temporary folder that becomes `path` when the block ends well, replacing what was there.

    Folders cannot be swapped in one step everywhere. A kill between the two moves leaves the old folder,
    whole, as `.{name}.{process}.old` beside the final name; it never leaves a mixture.

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
            for file in filter(Path.is_file, temporary.rglob("*")):
                _flush(file)
            _swap_folders(temporary, path, old)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _swap_folders(new: Path, path: Path, old: Path) -> None:
    replaces = path.exists()
    if replaces:
        os.replace(path, old)
    try:
        os.replace(new, path)
    except BaseException:
        if replaces:
            os.replace(old, path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def save_checkpoint(path: str | Path, state: dict) -> None:
    """Save tensors, numbers, texts and containers of them in one step.

    Args:
        path: file; its folder is made if needed.
        state: what `load_checkpoint` shall give back.

    Raises:
        SaveError: as `write_atomic`.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_checkpoint(f"{folder}/run.pt", {"step": 3, "weights": torch.ones(2)})
        ...     load_checkpoint(f"{folder}/run.pt")
        {'step': 3, 'weights': tensor([1., 1.])}
    """
    write_atomic(path, lambda temporary: _torch_save(state, temporary))


def _torch_save(state: dict, path: Path) -> None:
    try:
        torch.save(state, path)
    except RuntimeError as error:  # what torch makes of a full disk, without the reason
        raise OSError("the disk is full, or its limit is reached") from error


def load_checkpoint(path: str | Path) -> dict:
    """Load what `save_checkpoint` saved to the CPU, without executing anything in it.

    Raises:
        CheckpointError: damaged, or not a checkpoint.
        OSError: missing or unreadable.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a damaged file raises whatever its reader raises
        # torch's own message advises to load without protection, so it is not repeated.
        raise CheckpointError(
            f"{path} is damaged, or is no checkpoint of this library; delete it to start again"
        ) from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} holds a {type(state).__name__}; expected a dict; give another file")
    return state


class History:
    """Numbers of a run, one row per step; a row need not have every column.

    Example:
        >>> history = History()
        >>> history.add(step=0, loss=2.0)
        >>> history.add(step=1, loss=1.5, accuracy=0.6)
        >>> history.column("loss")[1], history.last("accuracy")
        (array([2. , 1.5]), 0.6)
        >>> history
        step  loss  accuracy
           0     2         -
           1   1.5       0.6
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, float | None]] = []

    def add(self, step: int, *parts: Mapping[str, float | None], **numbers: float | None) -> None:
        """Append a row of all the parts; None stands for a number that does not exist at this step.

        Raises:
            FloatingPointError: a number is NaN or infinite; the message names it and the step.
            ValueError: two parts have a name in common, as where `evaluate` returns what a recipe logs itself.
        """
        row: dict[str, float | None] = {}
        for part in (*parts, numbers):
            if twice := row.keys() & part.keys():
                raise ValueError(f"{min(twice)!r} is there twice at step {step}; evaluate must give it another name")
            row |= {name: None if value is None else float(value) for name, value in part.items()}
        for name, value in row.items():
            if value is not None and not math.isfinite(value):
                raise FloatingPointError(f"{name} is {value} at step {step}")
        self.rows.append({"step": int(step)} | row)

    def column(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """(steps, values) of the rows that have `name`, as arrays.

        Raises:
            KeyError: no row has it; names those there are.
        """
        rows = [(row["step"], row[name]) for row in self.rows if row.get(name) is not None]
        if not rows:
            raise KeyError(f"no row has {name!r}; there are {self.names()}")
        steps, values = zip(*rows, strict=True)
        return np.array(steps), np.array(values)

    def names(self) -> list[str]:
        """Every column but step, in the order of appearance."""
        return list(dict.fromkeys(name for row in self.rows for name in row if name != "step"))

    def last(self, name: str) -> float:
        """The newest value of a column; KeyError as `column`."""
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
        if not self.rows:
            return "History without rows"
        names = ["step", *self.names()]
        shown = self.rows
        if len(self) > 8:
            shown = self.rows[:2] + [dict.fromkeys(names, "...")] + self.rows[-5:]
        table = [names] + [[_cell(row.get(name)) for name in names] for row in shown]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in table)


def _cell(value: float | str | None) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


@contextmanager
def graceful_interrupt() -> Iterator[SimpleNamespace]:
    """Turn the first Ctrl-C into `.requested`, so that a loop stops between two steps.

    The second one raises KeyboardInterrupt, and the handler of before is put back when the block ends.
    Outside the main thread, where signals cannot be caught, nothing changes.

    Example:
        >>> with graceful_interrupt() as interrupt:
        ...     signal.raise_signal(signal.SIGINT)
        ...     print(interrupt.requested)
        True
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
        signal.signal(signal.SIGINT, signal.SIG_DFL if previous is None else previous)


def generator_for(seed: int, *stream: str | int) -> torch.Generator:
    """A CPU generator for one stream of randomness, so that stages and steps do not disturb each other.

    The seed of a stream is a hash of its name, the same in every process and on every machine.

    Args:
        seed: of the run, any integer.
        stream: texts and integers that name the stream, for example "sft", step.

    Raises:
        TypeError: a part of the name is neither.

    Example:
        >>> a, b = generator_for(0, "sft", 3), generator_for(0, "sft", 3)
        >>> bool(torch.rand(1, generator=a) == torch.rand(1, generator=b))
        True
    """
    # operator.index: an integer of numpy or torch names the same stream as Python's.
    name = tuple(part if isinstance(part, str) else operator.index(part) for part in (seed, *stream))
    digest = hashlib.sha256(repr(name).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


class RunState:
    """What a training loop must keep to go on bit-identically: weights, optimiser, step, history.

    Randomness needs no state of its own: every step draws from `generator_for(seed, ..., step)`.
    """

    def __init__(self, recipe: str, config: object, model: torch.nn.Module, optimiser: torch.optim.Optimizer):
        self.recipe, self.config, self.model, self.optimiser = recipe, asdict(config), model, optimiser
        self.step, self.history, self.extra = 0, History(), {}

    def save(self, path: str | Path | None) -> None:
        """Write everything to `path`; nothing is done without one."""
        if path is not None:
            state = {"recipe": self.recipe, "config": self.config, "step": self.step, "extra": self.extra}
            state |= {"model": self.model.state_dict(), "optimiser": self.optimiser.state_dict()}
            save_checkpoint(path, state | {"history": self.history.to_list()})

    def restore(self, path: str | Path | None) -> None:
        """Go on from `path` if it exists.

        Raises:
            CheckpointError: it is damaged, or of another recipe, config or model.
        """
        if path is None or not Path(path).exists():
            return
        state = load_checkpoint(path)
        saved = {"recipe": state.get("recipe")} | (state.get("config") or {})
        wanted = {"recipe": self.recipe} | self.config
        if saved != wanted:
            name = next(key for key in wanted | saved if saved.get(key) != wanted.get(key))
            raise CheckpointError(
                f"{path} is of another run ({name} is {saved.get(name)!r} there, {wanted.get(name)!r} here); "
                "use the configuration it was made with, or another file"
            )
        try:
            self.model.load_state_dict(state["model"])
            self.optimiser.load_state_dict(state["optimiser"])
        except (RuntimeError, ValueError) as error:
            raise CheckpointError(
                f"{path} is of another model; give the one it was made with, or another file"
            ) from error
        self.step, self.extra = state["step"], state["extra"]
        self.history = History.from_list(state["history"])


def make_optimiser(
    model: torch.nn.Module,
    learning_rate: float,
    weight_decay: float,
    betas: tuple[float, float] = (0.9, 0.95),
) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only, as nearly every language-model recipe has it."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=True)


def cosine_rate(step: int, steps: int, warmup: int, floor: float = 0.0) -> float:
    """Factor of the peak learning rate: linear warm-up, then a half cosine down to `floor`.

    >>> [round(cosine_rate(step, 10, 2), 2) for step in (0, 1, 2, 9)]
    [0.5, 1.0, 1.0, 0.04]
    """
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done))


def linear(first: float, last: float, done: float) -> float:
    """A number on its way from `first` to `last`, of which the share `done` is behind.

    >>> linear(1.0, 0.1, 0.5)
    0.55
    """
    return first + (last - first) * done


def clipped_step(
    model: torch.nn.Module, optimiser: torch.optim.Optimizer, rate: float, max_norm: float, step: int
) -> float:
    """Clip the gradient, step with learning rate `rate`, clear it; returns the norm before clipping.

    Raises:
        FloatingPointError: the gradient is not finite; the weights are as they were.
    """
    norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm))
    if not math.isfinite(norm):
        raise FloatingPointError(f"the gradient norm is {norm} at step {step}; lower the learning rate, check the data")
    for group in optimiser.param_groups:
        group["lr"] = rate
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return norm


def bars_off() -> bool:
    """Whether TQDM_DISABLE asks for no progress bars; in a notebook tqdm itself does not look at it."""
    return os.environ.get("TQDM_DISABLE", "0") not in ("", "0")


def mean_rows(rows: list[dict[str, float]]) -> dict[str, float]:
    """Column means of rows with the same columns; nothing of no rows.

    >>> mean_rows([{"loss": 1.0}, {"loss": 2.0}])
    {'loss': 1.5}
    """
    return {name: sum(row[name] for row in rows) / len(rows) for name in (rows[0] if rows else ())}


def require(condition: bool, name: str, got: object, expected: str) -> None:
    """Raise the house's ValueError unless `condition`."""
    if not condition:
        raise ValueError(f"{name} is {got!r}; expected {expected}")
