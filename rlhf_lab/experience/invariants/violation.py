"""What a check raises, and how far apart rounding alone may bring two numbers."""

import torch
from torch import Tensor

from rlhf_lab.maths.tensors import masked_mean


class InvariantViolation(RuntimeError):
    """A fact of every correct run does not hold; `name` says which, the message why and what to do."""

    def __init__(self, name: str, got: str, expected: str, cause: str, remedy: str, chapter: str):
        self.name = name
        super().__init__(
            f"{name}: got {got}; expected {expected}.\n  Cause: {cause}\n  Remedy: {remedy}\n  See chapter {chapter}."
        )


def tolerance_for(dtype: torch.dtype) -> float:
    """Mean difference in nats that rounding alone explains; the worst token may be ten times it.

    float32 passes of different shape agree to 1e-6 on a small model and 1e-5 on a large one. bfloat16 keeps 8 bits
    of each number, and differences of 0.03 nats are common.

    Example:
        >>> tolerance_for(torch.float32)
        0.0001
    """
    tolerances = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.05}
    if dtype not in tolerances:
        raise ValueError(f"dtype must be one of {list(tolerances)}, got {dtype}")
    return tolerances[dtype]


def check_finite(name: str, tensor: Tensor, step: int) -> None:
    """Raise FloatingPointError, with the step and the quantity, if anything is NaN or infinite.

    Example:
        >>> check_finite("scores", torch.tensor([0.0, 1.0]), step=3)
    """
    bad = ~torch.isfinite(tensor.detach())
    if bad.any():
        raise FloatingPointError(
            f"{name} at step {step}: {int(bad.sum())} of {bad.numel()} numbers are NaN or infinite (first at "
            f"{bad.nonzero()[0].tolist()}); lower the learning rate, or look at what computes {name}"
        )


def difference(a: Tensor, b: Tensor, mask: Tensor) -> tuple[float, float]:
    """Mean and largest absolute difference over the mask."""
    apart = torch.where(mask, (a.detach() - b.detach()).abs(), 0.0)
    return float(masked_mean(apart, mask)), float(apart.max())


def too_far(mean: float, worst: float, tolerance: float) -> bool:
    """Whether a mean and a largest difference are more than rounding; NaN is."""
    return not (mean <= tolerance and worst <= 10 * tolerance)


def unlike(a: Tensor, b: Tensor, tolerance: float) -> Tensor:
    """[...] bool, where two tensors differ by more than tolerance * (1 + |b|); NaN differs from everything.

    Example:
        >>> unlike(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.1]), 1e-3).tolist()
        [False, True]
    """
    return ~((a.detach() - b.detach()).abs() <= tolerance * (1 + b.detach().abs()))
