"""Masked arithmetic: every mean says over what.

A mask is a boolean tensor of the shape of its data, True where data exist. What lies under False never
matters, not even if it is NaN or infinite.
"""

import torch
from torch import Tensor


def check_shapes(**tensors: Tensor) -> None:
    """Check that all tensors have the shape of the first one; the argument names go into the message.

    Raises:
        ValueError: a shape differs from the first; the message names both arguments and both shapes.

    Example:
        >>> check_shapes(rewards=torch.ones(2, 3), mask=torch.ones(2, 3, dtype=torch.bool))
        >>> check_shapes(rewards=torch.ones(2, 3), mask=torch.ones(3))
        Traceback (most recent call last):
        ValueError: mask has shape [3], expected [2, 3] like rewards; nothing is broadcast here
    """
    (first, reference), *others = tensors.items()
    for name, tensor in others:
        if tensor.shape != reference.shape:
            raise ValueError(
                f"{name} has shape {list(tensor.shape)}, expected {list(reference.shape)} like {first}; "
                "nothing is broadcast here"
            )


def check_data(**tensors: Tensor) -> None:
    """Check that no tensor requires grad: data still attached would train the network they came from.

    Raises:
        ValueError: a tensor requires grad; the message names the argument.

    Example:
        >>> check_data(advantages=torch.ones(2))
        >>> check_data(advantages=torch.ones(2, requires_grad=True))
        Traceback (most recent call last):
        ValueError: advantages must be data, got a tensor that requires grad; pass advantages.detach()
    """
    for name, tensor in tensors.items():
        if tensor.requires_grad:
            raise ValueError(f"{name} must be data, got a tensor that requires grad; pass {name}.detach()")


def check_mask(x: Tensor, mask: Tensor) -> None:
    """Check that mask is boolean and has the shape of x.

    Raises:
        ValueError: wrong shape or dtype.

    Example:
        >>> check_mask(torch.ones(2), torch.ones(2))
        Traceback (most recent call last):
        ValueError: mask must be torch.bool, got torch.float32; use length_mask or mask.bool()
    """
    check_shapes(x=x, mask=mask)
    if mask.dtype != torch.bool:
        raise ValueError(f"mask must be torch.bool, got {mask.dtype}; use length_mask or mask.bool()")


def length_mask(lengths: Tensor, max_length: int) -> Tensor:
    """Mask of right-padded rows from their lengths: mask[b, t] = t < lengths[b].

    Masks come from lengths, never from comparing token ids with a pad id: where pad and end are one id, that
    comparison removes the true end of every row.

    Args:
        lengths: [B] integers in [0, max_length].
        max_length: T, the width of the mask.

    Returns:
        [B, T] bool.

    Raises:
        ValueError: lengths is not a vector of integers, or one is outside [0, max_length].

    Example:
        >>> length_mask(torch.tensor([1, 3]), 3).tolist()
        [[True, False, False], [True, True, True]]

    Chapter 07.
    """
    if lengths.dim() != 1 or lengths.is_floating_point() or lengths.dtype == torch.bool:
        raise ValueError(f"lengths must be integers [B], got {lengths.dtype} of shape {list(lengths.shape)}")
    if ((lengths < 0) | (lengths > max_length)).any():
        raise ValueError(f"lengths must be in [0, {max_length}], got {lengths.tolist()}; raise max_length")
    return torch.arange(max_length, device=lengths.device) < lengths.unsqueeze(1)


def masked_sum(x: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Sum of the entries where mask is True; 0 where there are none.

    Args:
        x: any shape.
        mask: bool, the shape of x.
        dim: axis to sum over; None sums over everything.

    Returns:
        A scalar, or the shape of x without dim.

    Raises:
        ValueError: mask has another shape or is not boolean.

    Example:
        >>> masked_sum(torch.tensor([1.0, 2.0, float("nan")]), torch.tensor([True, True, False])).item()
        3.0

    Chapter 02.
    """
    check_mask(x, mask)
    return torch.where(mask, x, 0).sum(dim)


def masked_mean(x: Tensor, mask: Tensor, dim: int | None = None, count: float | Tensor | None = None) -> Tensor:
    """Sum of the entries where mask is True, divided by their number or by count.

    mean = sum_i mask_i x_i / sum_i mask_i          (or / count)

    With `count` = the number of True entries in the whole minibatch, the means of its micro-batches add up to
    the mean of the minibatch. Without it each micro-batch has its own denominator, and short rows count for
    more.

    Args:
        x: any shape.
        mask: bool, the shape of x.
        dim: axis to average over; None averages over everything. (Mean over all tokens, and mean over rows of
            a mean over tokens, are different objectives.)
        count: positive denominator instead of the number of True entries.

    Returns:
        A scalar, or the shape of x without dim. With count, entries without data are 0.

    Raises:
        ValueError: there is nothing to average and no count, count is not positive, or mask does not fit x.

    Example:
        >>> x, mask = torch.tensor([[1.0, 2.0], [6.0, 0.0]]), torch.tensor([[True, True], [True, False]])
        >>> masked_mean(x, mask).item(), masked_mean(x, mask, dim=1).tolist()
        (3.0, [1.5, 6.0])
        >>> sum(masked_mean(x[b], mask[b], count=3).item() for b in range(2))
        3.0

    Chapter 05.
    """
    total = masked_sum(x, mask, dim)
    if count is None:
        count = mask.sum(dim)
        if (count == 0).any():
            raise ValueError("mask has no True entry to average over; drop empty rows or pass count")
    elif (torch.as_tensor(count) <= 0).any():
        raise ValueError(f"count must be positive, got {count}; pass the tokens of the whole minibatch")
    return total / count


def masked_var(x: Tensor, mask: Tensor) -> Tensor:
    """Unbiased variance of the entries where mask is True.

    var = sum_i mask_i (x_i - mean)^2 / (n - 1),   n = sum_i mask_i

    Args:
        x: any shape.
        mask: bool, the shape of x.

    Returns:
        A scalar.

    Raises:
        ValueError: fewer than 2 True entries, or mask does not fit x.

    Example:
        >>> masked_var(torch.tensor([1.0, 3.0, 9.0]), torch.tensor([True, True, False])).item()
        2.0

    Chapter 05.
    """
    return _variance(_deviations(x, mask), mask)


def _deviations(x: Tensor, mask: Tensor) -> Tensor:
    """x minus its mean, 0 where mask is False; measured from the first entry, so that a constant has exactly 0."""
    check_mask(x, mask)
    from_first = torch.where(mask, x - x[mask][:1].detach().sum(), 0)
    return torch.where(mask, from_first - from_first.sum() / mask.sum(), 0)


def _variance(deviations: Tensor, mask: Tensor, least: int = 2) -> Tensor:
    count = int(mask.sum())
    if count < least:
        raise ValueError(f"mask must have at least {least} True entries for a variance, got {count}")
    return deviations.square().sum() / max(count - 1, 1)


def masked_whiten(x: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
    """Scale the real entries to variance 1 and, if shift_mean, to mean 0.

    y = (x - mean) / sqrt(var + 1e-8)    (+ mean, if not shift_mean)

    Whiten a whole batch, before it is cut into minibatches. Constant entries become 0, and so does one entry alone,
    which has no variance. Whitened advantages no longer have the scale of the reward: the KL coefficient and the
    learning rate then act on another scale.

    Args:
        x: any shape.
        mask: bool, the shape of x.
        shift_mean: False keeps the mean (for rewards, whose sign means something).

    Returns:
        The shape of x; 0 where mask is False.

    Raises:
        ValueError: no True entry, or mask does not fit x.

    Example:
        >>> masked_whiten(torch.tensor([1.0, 3.0, 9.0]), torch.tensor([True, True, False]))
        tensor([-0.7071,  0.7071,  0.0000])

    Source: Huang et al. 2024, The N+ Implementation Details of RLHF with PPO. Chapter 05.
    """
    deviations = _deviations(x, mask)
    whitened = deviations * torch.rsqrt(_variance(deviations, mask, least=1) + 1e-8)
    return torch.where(mask, whitened if shift_mean else whitened + masked_mean(x, mask), 0)
