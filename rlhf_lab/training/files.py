"""Save so that a kill at any moment loses nothing that was saved.

Files are written beside their final name, flushed to the disk and moved there in one step.
Left out: several versions of a checkpoint and remote storage.
"""

import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

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


def write_atomic(path: str | Path, write: Callable[[Path], object]) -> None:
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


def fingerprint(part: object) -> int:
    """A number that changes with what a run was made from: weights bit by bit, everything else by its repr.

    Args:
        part: a module, a tensor, or records, texts, numbers and containers of them.

    Example:
        >>> fingerprint(torch.nn.Linear(1, 1)) == fingerprint("another input")
        False
    """
    tensors = part.state_dict().values() if isinstance(part, torch.nn.Module) else [part]
    digest = 0
    for item in tensors:
        if isinstance(item, torch.Tensor):  # as bytes, which also tells apart what prints alike
            data = item.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        else:
            data = repr(item).encode()
        digest = zlib.crc32(data, digest)
    return digest
