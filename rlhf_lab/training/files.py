"""Save so that a kill at any moment loses nothing that was saved.

Files are written beside their final name, flushed to the disk and moved there in one step.
Left out: several versions of a checkpoint and remote storage.
"""

import glob
import hashlib
import io
import os
import re
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
def explained(path: Path) -> Iterator[None]:
    """Turn what the system says of a failed write to `path` into a SaveError with a remedy."""
    try:
        yield
    except SaveError:
        raise
    except OSError as error:
        reason = error.strerror or (str(error).splitlines() or ["unknown reason"])[0]
        raise SaveError(
            f"cannot write {path}: {reason}. Free some space or choose a folder you may write to."
        ) from error


def temporary_name(path: Path, end: str = "tmp") -> Path:
    """A name beside `path` that tells whose it is: of this program, and of which process."""
    return path.with_name(f".{path.name}.{os.getpid()}.rlhf_lab.{end}")


def sweep(path: Path) -> None:
    """Clear away what killed processes left beside `path`; a folder that was moved aside comes back if `path` is gone.

    Whether a process lives can be asked on POSIX only; elsewhere everything stays.
    """
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.rlhf_lab.*") if os.name == "posix" else ():
        named = re.fullmatch(r"(\d+)\.rlhf_lab\.(tmp|old)", left.name[len(path.name) + 2 :])
        if named is None or int(named[1]) == os.getpid() or _lives(int(named[1])):
            continue
        end = named[2]
        if end == "old" and not path.exists():
            os.replace(left, path)
        elif left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def write_atomic(path: str | Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then move it to `path` in one step.

    Raises:
        SaveError: disk full, read-only folder, ...; `path` is then as it was.
    """
    path = Path(os.path.realpath(path))  # a link stays, and what it points to is written
    temporary = temporary_name(path)
    with explained(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            sweep(path)
            write(temporary)
            flush(temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Have the system write a file to the disk now."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def write_text_atomic(path: str | Path, text: str) -> None:
    """Write `text` as UTF-8, line ends as they are; `path` holds all of it or what it held before.

    Raises:
        SaveError: as `write_atomic`.
    """
    write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8", newline=""))


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
    data = path.read_bytes()
    with open(path, "ab") as file:
        file.write(_seal(data))


def _seal(data: bytes | memoryview) -> bytes:
    """What follows the data of a checkpoint: a checksum, because torch loads a file with changed bits."""
    return b"\nrlhf_lab sha256 " + hashlib.sha256(data).hexdigest().encode() + b"\n"


def load_checkpoint(path: str | Path) -> dict:
    """Load what `save_checkpoint` saved to the CPU, without executing anything in it.

    Raises:
        CheckpointError: damaged, or not a checkpoint.
        OSError: missing or unreadable.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise CheckpointError(f"{path} is no file; give the path of one, or of none yet")
    data = path.read_bytes()
    end = len(data) - len(_seal(b""))
    if end < 0 or data[end:] != _seal(memoryview(data)[:end]):
        raise CheckpointError(
            f"{path} is damaged, or is no checkpoint of this library; give another file, or delete it to start again"
        )
    try:
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # torch's own message advises to load without protection, so it is not repeated
        raise CheckpointError(f"{path} holds what is not loaded, because it could run code; delete it") from error
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
    digest = zlib.crc32(_shape_of_network(part).encode()) if isinstance(part, torch.nn.Module) else 0
    for item in tensors:
        if isinstance(item, torch.Tensor):  # as bytes, which also tells apart what prints alike
            data = item.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        else:
            data = repr(item).encode()
        digest = zlib.crc32(data, digest)
    return digest


def _shape_of_network(module: torch.nn.Module) -> str:
    """Its layers, and of a transformer the config: two models may share all weights and compute different things."""
    as_dict = getattr(getattr(module, "config", None), "to_dict", dict)
    changing = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures")
    return f"{module}{sorted((key, repr(value)) for key, value in as_dict().items() if key not in changing)}"
