"""Shapes and masks: every mean says over what. True in a mask means that data exist there."""

import torch
from torch import Tensor


def check_shapes(**tensors: Tensor) -> torch.Size:
    """Raise ValueError unless all tensors have one shape, and return it.

    >>> check_shapes(a=torch.zeros(2, 3), b=torch.ones(2, 3))
    torch.Size([2, 3])
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"shapes differ: {shapes}; expected one shape for all")
    return next(iter(tensors.values())).shape


def check_data(**tensors: Tensor) -> None:
    """Raise ValueError if a tensor that is data (advantages, old log-probs, ...) requires grad."""
    for name, tensor in tensors.items():
        if tensor.requires_grad:
            raise ValueError(f"{name} requires grad; expected data: detach it, or its gradient leaks into this loss")


def length_mask(lengths: Tensor, max_length: int) -> Tensor:
    """mask[b, t] = t < lengths[b], as [B, T] bool.

    >>> length_mask(torch.tensor([1, 3]), 3).tolist()
    [[True, False, False], [True, True, True]]
    """
    return torch.arange(max_length, device=lengths.device) < lengths[:, None]


def masked_sum(x: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Sum of x where mask is True; what stands elsewhere, NaN included, does not matter."""
    kept = x.where(mask, torch.zeros((), dtype=x.dtype, device=x.device))
    return kept.sum() if dim is None else kept.sum(dim)


def masked_mean(x: Tensor, mask: Tensor, dim: int | None = None, count: Tensor | int | None = None) -> Tensor:
    """Mean of x where mask is True.

    Args:
        count: divide by this instead of the mask's own count, so that micro-batches add up to the mean of their batch.

    Raises:
        ValueError: an empty mask without `count`.
    """
    if count is None:
        count = mask.sum() if dim is None else mask.sum(dim)
        if not (count > 0).all():
            raise ValueError("mask has no True entry to take a mean over; leave such rows out")
    return masked_sum(x, mask, dim) / count


def masked_var(x: Tensor, mask: Tensor) -> Tensor:
    """Unbiased variance of x where mask is True; ValueError with fewer than two entries."""
    count = mask.sum()
    if count < 2:
        raise ValueError(f"mask has {int(count)} True entries; a variance needs at least 2")
    return masked_sum((x - masked_mean(x, mask)) ** 2, mask) / (count - 1)


def masked_whiten(x: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
    """(x - mean) / std over the mask, 0 outside; with `shift_mean=False` the mean stays."""
    mean = masked_mean(x, mask)
    white = (x - mean) * torch.rsqrt(masked_var(x, mask) + 1e-8)
    return (white if shift_mean else white + mean).where(mask, torch.zeros((), dtype=x.dtype, device=x.device))
