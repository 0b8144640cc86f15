"""How much memory a piece of work took at most: of the GPU where it runs on one, else of this process."""

import contextlib
import math
import sys
from pathlib import Path

import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")  # of Linux


def reset_peak(device: str = "cpu") -> None:
    """Forget the peak so far. Where the system cannot (no Linux), later peaks are those since the process began."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):
        CLEAR.write_text("5")


def peak_megabytes(device: str = "cpu") -> float:
    """Peak in MB (10^6 bytes): on a GPU of what torch's tensors took there, else of this process with its libraries.

    Returns:
        nan where the system does not tell.

    Example:
        >>> reset_peak()
        >>> not peak_megabytes() < 100
        True
    """
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    with contextlib.suppress(OSError, IndexError):
        return int(STATUS.read_text().split("VmHWM:")[1].split()[0]) * 1024 / 1e6
    try:
        import resource
    except ImportError:
        return math.nan
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e6
