"""From rewards to returns and advantages.

Rows are episodes or replies, padded on the right; `mask` is True where steps exist. Termination is a
discount: `discounts[b, t]` is gamma while the episode goes on and 0 at a terminal step, so no formula needs a
`done` flag. `values[b]` has one column more than the row has steps: for a row with n real steps, column n is
the value of the state after the last of them. A row cut off in the middle ends with discount gamma and
bootstraps from there.

What these functions return is data: detached from every graph, and 0 where mask is False.
"""

import torch
from torch import Tensor

from rlhf_lab.maths.tensors import check_mask, check_shapes


def _check_rows(rewards: Tensor, discounts: Tensor, mask: Tensor) -> None:
    if rewards.dim() != 2:
        raise ValueError(f"rewards must be [B, T], got shape {list(rewards.shape)}; add a row axis")
    check_shapes(rewards=rewards, discounts=discounts, mask=mask)
    check_mask(rewards, mask)
    _check_finite(rewards[mask])
    if (mask[:, 1:] & ~mask[:, :-1]).any():
        raise ValueError("mask must be right-padded, got a True after a False; build it with length_mask")


def _check_finite(rewards: Tensor) -> None:
    if not rewards.isfinite().all():
        raise ValueError("rewards holds NaN or infinity, expected finite numbers; look at what pays them")


def _discounted(discounts: Tensor, later: Tensor) -> Tensor:
    """discounts * later, and 0 where the discount is 0, whatever stands there: nothing follows an end."""
    return torch.where(discounts == 0, 0, discounts * later)


def _reverse_scan(x: Tensor, decay: Tensor, mask: Tensor, last: Tensor) -> Tensor:
    """y[b, t] = x[b, t] + decay[b, t] * y[b, t + 1], with y = last after the last real step; 0 at padding."""
    running, columns = last, []
    for t in reversed(range(x.shape[1])):
        # Padding leaves `running` untouched, so that `last` arrives at the last real step and not beyond it.
        running = torch.where(mask[:, t], x[:, t] + _discounted(decay[:, t], running), running)
        columns.append(running)
    scanned = torch.stack(columns[::-1], dim=1) if columns else x
    return torch.where(mask, scanned, 0)


@torch.no_grad()
def discounted_returns(rewards: Tensor, discounts: Tensor, mask: Tensor, bootstrap: Tensor | None = None) -> Tensor:
    """Reward to go.

    G_t = r_t + discount_t G_{t+1},    G_n = bootstrap after the n real steps of a row

    Args:
        rewards: [B, T].
        discounts: [B, T]; gamma, or 0 at a terminal step.
        mask: [B, T] bool, right-padded. A row without a True gives zeros.
        bootstrap: [B] value of the state after the last real step; None is 0. It enters only where the last
            discount is not 0.

    Returns:
        [B, T], detached.

    Raises:
        ValueError: shapes differ, mask is not right-padded, or a reward at a real step is not finite.

    Example:
        >>> rewards, going_on = torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[0.5, 0.5, 0.5]])
        >>> mask = torch.ones(1, 3, dtype=torch.bool)
        >>> discounted_returns(rewards, going_on, mask, bootstrap=torch.tensor([8.0])).tolist()
        [[4.0, 6.0, 8.0]]

    Source: Sutton and Barto 2018, section 3.3. Chapter 02.
    """
    _check_rows(rewards, discounts, mask)
    last = rewards.new_zeros(len(rewards)) if bootstrap is None else bootstrap
    if last.shape != rewards.shape[:1]:
        raise ValueError(f"bootstrap has shape {list(last.shape)}, expected [{len(rewards)}]: one a row")
    return _reverse_scan(rewards, discounts, mask, last)


@torch.no_grad()
def td_errors(rewards: Tensor, values: Tensor, discounts: Tensor, mask: Tensor) -> Tensor:
    """One-step surprise of a value function.

    delta_t = r_t + discount_t V_{t+1} - V_t

    Args:
        rewards: [B, T].
        values: [B, T + 1]; column n of a row with n real steps is the bootstrap.
        discounts: [B, T]; gamma, or 0 at a terminal step.
        mask: [B, T] bool, right-padded. A row without a True gives zeros.

    Returns:
        [B, T], detached.

    Raises:
        ValueError: shapes differ, mask is not right-padded, or a reward at a real step is not finite.

    Example:
        >>> rewards, values = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0, 100.0]])
        >>> mask = torch.ones(1, 2, dtype=torch.bool)
        >>> td_errors(rewards, values, torch.tensor([[1.0, 0.0]]), mask).tolist()
        [[2.0, -2.0]]

    Source: Sutton and Barto 2018, equation 6.5. Chapter 04.
    """
    _check_rows(rewards, discounts, mask)
    rows, steps = rewards.shape
    if values.shape != (rows, steps + 1):
        raise ValueError(
            f"values has shape {list(values.shape)}, expected {[rows, steps + 1]}: one column more than "
            "rewards, for the state after the last step"
        )
    return torch.where(mask, rewards + _discounted(discounts, values[:, 1:]) - values[:, :-1], 0)


@torch.no_grad()
def gae(rewards: Tensor, values: Tensor, discounts: Tensor, mask: Tensor, lam: float) -> Tensor:
    """Generalised advantage estimation.

    A_t = delta_t + discount_t lam A_{t+1},   delta_t = r_t + discount_t V_{t+1} - V_t

    It is an estimate of the advantage, not its definition. lam 1 gives the return minus V_t, unbiased as a
    direction whatever V is; lam 0 gives delta_t, unbiased only if V is exact. On-policy data.

    Args:
        rewards: [B, T].
        values: [B, T + 1]; column n of a row with n real steps is the bootstrap. What follows it never
            counts.
        discounts: [B, T]; gamma, or 0 at a terminal step.
        mask: [B, T] bool, right-padded. A row without a True gives zeros.
        lam: in [0, 1].

    Returns:
        [B, T], detached. Add values[:, :-1] for the returns that the value function learns
        (`lambda_returns`).

    Raises:
        ValueError: shapes differ, mask is not right-padded, a reward at a real step is not finite, or lam is outside
            [0, 1].

    Example:
        >>> rewards, values = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0, 100.0]])
        >>> mask = torch.ones(1, 2, dtype=torch.bool)
        >>> gae(rewards, values, torch.tensor([[1.0, 0.0]]), mask, lam=0.5).tolist()
        [[1.0, -2.0]]

    Source: Schulman et al. 2016, High-Dimensional Continuous Control Using Generalized Advantage Estimation;
    the paper has one constant gamma. Chapter 04.
    """
    if not 0 <= lam <= 1:
        raise ValueError(f"lam must be in [0, 1], got {lam}")
    errors = td_errors(rewards, values, discounts, mask)
    return _reverse_scan(errors, lam * discounts, mask, errors.new_zeros(len(errors)))


@torch.no_grad()
def lambda_returns(rewards: Tensor, values: Tensor, discounts: Tensor, mask: Tensor, lam: float) -> Tensor:
    """Targets for the value function that fit `gae`: advantage plus value.

    G_t = r_t + discount_t ((1 - lam) V_{t+1} + lam G_{t+1}),    G_n = V_n

    Args, Raises: as in `gae`.

    Returns:
        [B, T], detached; gae(...) + values[:, :-1] at real steps.

    Example:
        >>> rewards, values = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0, 100.0]])
        >>> mask = torch.ones(1, 2, dtype=torch.bool)
        >>> lambda_returns(rewards, values, torch.tensor([[1.0, 0.0]]), mask, lam=0.5).tolist()
        [[4.0, 2.0]]

    Source: Sutton and Barto 2018, section 12.1. Chapter 04.
    """
    return torch.where(mask, gae(rewards, values, discounts, mask, lam) + values[:, :-1], 0)


def _centred(rewards: Tensor) -> Tensor:
    if rewards.dim() != 2 or rewards.shape[1] < 2 or not rewards.is_floating_point():
        raise ValueError(
            "rewards must be floats [G, K] with K >= 2 responses to each prompt, got "
            f"{rewards.dtype} of shape {list(rewards.shape)}; sample at least 2 responses a prompt"
        )
    _check_finite(rewards)
    shifted = rewards - rewards[:, :1]  # so that rounding keeps a constant group at exactly 0
    return shifted - shifted.mean(dim=1, keepdim=True)


@torch.no_grad()
def leave_one_out_advantages(rewards: Tensor) -> Tensor:
    """Reward minus the mean reward of the *other* responses to the same prompt (RLOO).

    A_k = r_k - 1/(K-1) sum_{j != k} r_j = K/(K-1) (r_k - mean)

    The baseline is independent of response k, so the policy gradient stays unbiased.

    Args:
        rewards: [G, K], K >= 2 independent responses to each of G prompts.

    Returns:
        [G, K], detached; each row sums to 0.

    Raises:
        ValueError: rewards is not [G, K] with K >= 2, or holds NaN or infinity.

    Example:
        >>> leave_one_out_advantages(torch.tensor([[1.0, 2.0, 6.0]])).tolist()
        [[-3.0, -1.5, 4.5]]

    Source: Ahmadian et al. 2024, Back to Basics; Kool et al. 2019. Chapter 15.
    """
    centred, size = _centred(rewards), rewards.shape[1]
    return centred * (size / (size - 1))


@torch.no_grad()
def group_advantages(rewards: Tensor, scale: bool = True, epsilon: float = 1e-4) -> Tensor:
    """Reward minus the mean of its whole group, divided by the group's standard deviation (GRPO).

    A_k = (r_k - mean) / (std + epsilon)      std unbiased; without the division if not scale

    The mean includes response k, which shrinks the expected gradient by exactly (K - 1)/K. The division
    weights prompts by 1/std: it is not the gradient of the mean reward any more.

    Args:
        rewards: [G, K], K >= 2 independent responses to each of G prompts.
        scale: False leaves out the division.
        epsilon: > 0, added to the standard deviation; a constant group gives 0.

    Returns:
        [G, K], detached; each row sums to 0.

    Raises:
        ValueError: rewards is not [G, K] with K >= 2, or holds NaN or infinity, or epsilon is not positive.

    Example:
        >>> group_advantages(torch.tensor([[1.0, 2.0, 6.0], [5.0, 5.0, 5.0]]), scale=False).tolist()
        [[-2.0, -1.0, 3.0], [0.0, 0.0, 0.0]]

    Source: Shao et al. 2024, DeepSeekMath. Chapter 15.
    """
    if not epsilon > 0:
        raise ValueError(f"epsilon must be positive, got {epsilon}; it keeps a constant group at 0")
    centred = _centred(rewards)
    if not scale:
        return centred
    return centred / (centred.std(dim=1, keepdim=True) + epsilon)
