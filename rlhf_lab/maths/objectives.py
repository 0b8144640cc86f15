"""What the optimiser is given: objectives (maximise), losses (minimise) and the numbers beside them.

Everything comes per token, [B, T]; the reduction is a separate call of `masked_mean` or `masked_sum`, because
a token mean, a sequence mean and a constant are different objectives. What is data must not require grad.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlhf_lab.maths.tensors import check_data, check_shapes, masked_mean, masked_var


def _check_epsilon(clip_epsilon: float) -> None:
    if not clip_epsilon > 0:
        raise ValueError(f"clip_epsilon must be positive, got {clip_epsilon}; infinity turns clipping off")


def reinforce_objective(log_probs: Tensor, advantages: Tensor) -> Tensor:
    """The REINFORCE objective, per token: its gradient is the policy gradient, its value means nothing.

    log pi(a_t | s_t) A_t

    Valid on-policy: for data of the current policy. Unbiased if A_t is the reward to go minus a baseline that
    does not depend on a_t.

    Args:
        log_probs: [B, T] nats, of the current policy.
        advantages: [B, T] data.

    Returns:
        [B, T]; reduce with the mask.

    Raises:
        ValueError: shapes differ, or advantages requires grad.

    Example:
        >>> log_probs = torch.tensor([[-1.0, -2.0]], requires_grad=True)
        >>> reinforce_objective(log_probs, torch.tensor([[3.0, 0.5]])).tolist()
        [[-3.0, -1.0]]

    Source: Williams 1992; Sutton et al. 2000. Chapter 02.
    """
    check_shapes(log_probs=log_probs, advantages=advantages)
    check_data(advantages=advantages)
    return log_probs * advantages


def clipped_surrogate_objective(
    log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, clip_epsilon: float
) -> Tensor:
    """The clipped surrogate of PPO, per token.

    min(ratio A, clip(ratio, 1 - eps, 1 + eps) A),   ratio = exp(log_probs - old_log_probs)

    The gradient vanishes once the ratio has left the band in the direction that A rewards: no incentive to go
    further, and no guarantee of anything. At ratio 1 the gradient is that of REINFORCE.

    Args:
        log_probs: [B, T] nats, of the current policy.
        old_log_probs: [B, T] data; of the policy that sampled, at the same temperature.
        advantages: [B, T] data.
        clip_epsilon: half width of the band, > 0; usually 0.2.

    Returns:
        [B, T]; reduce with the mask.

    Raises:
        ValueError: shapes differ, old_log_probs or advantages requires grad, or clip_epsilon <= 0.

    Example:
        >>> new, old = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.25]]).log()    # ratio 2
        >>> clipped_surrogate_objective(new, old, torch.tensor([[1.0, -1.0]]), clip_epsilon=0.2)
        tensor([[ 1.2000, -2.0000]])

    Source: Schulman et al. 2017, Proximal Policy Optimization Algorithms, equation 7. Chapter 05.
    """
    check_shapes(log_probs=log_probs, old_log_probs=old_log_probs, advantages=advantages)
    check_data(old_log_probs=old_log_probs, advantages=advantages)
    _check_epsilon(clip_epsilon)
    ratio = torch.exp(log_probs - old_log_probs)
    return torch.minimum(ratio * advantages, ratio.clamp(1 - clip_epsilon, 1 + clip_epsilon) * advantages)


def clipped_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip_epsilon: float) -> Tensor:
    """Squared error of the values, with steps away from the old values clipped, per token.

    1/2 max((V - R)^2, (V_old + clip(V - V_old, -eps, eps) - R)^2)

    The larger error counts, so clipping never makes the loss smaller: it takes the gradient away once a value
    has moved by more than eps towards its target.

    Args:
        values: [B, T] of the current value model (without the bootstrap column).
        old_values: [B, T] data; kept from sampling.
        returns: [B, T] data; targets.
        clip_epsilon: in units of the reward, > 0; infinity gives the plain half squared error.

    Returns:
        [B, T]; reduce with the mask.

    Raises:
        ValueError: shapes differ, old_values or returns requires grad, or clip_epsilon <= 0.

    Example:
        >>> values, old_values, returns = torch.tensor([[1.0]]), torch.tensor([[0.0]]), torch.tensor([[2.0]])
        >>> clipped_value_loss(values, old_values, returns, clip_epsilon=0.5).tolist()    # (0.5 - 2)^2 / 2
        [[1.125]]

    Source: not in the PPO paper; from its first implementation, see Huang et al. 2022, The 37 Implementation
    Details of Proximal Policy Optimization. Chapter 05.
    """
    check_shapes(values=values, old_values=old_values, returns=returns)
    check_data(old_values=old_values, returns=returns)
    _check_epsilon(clip_epsilon)
    clipped = old_values + (values - old_values).clamp(-clip_epsilon, clip_epsilon)
    return torch.maximum((values - returns).square(), (clipped - returns).square()) / 2


def entropy(logits: Tensor) -> Tensor:
    """Entropy of categorical distributions.

    H = - sum_a p(a) log p(a),   p = softmax(logits); a token with logit -inf contributes 0

    Args:
        logits: [..., V]; divide by the temperature first if sampling did.

    Returns:
        [...] nats, between 0 and log V.

    Example:
        >>> round(entropy(torch.zeros(4)).item(), 4)    # log 4
        1.3863

    Source: Shannon 1948; as a bonus: Williams and Peng 1991. Chapter 05.
    """
    log_p = logits.log_softmax(-1)
    p = log_p.exp()
    return -(p * torch.where(p > 0, log_p, 0)).sum(-1)


@torch.no_grad()
def clip_fraction(log_probs: Tensor, old_log_probs: Tensor, clip_epsilon: float, mask: Tensor) -> Tensor:
    """Share of real tokens whose ratio is outside the band, whatever the sign of their advantage.

    mean over mask of 1[|ratio - 1| > eps],   ratio = exp(log_probs - old_log_probs)

    It is exactly 0 on the first minibatch of a PPO iteration; otherwise sampling and scoring disagree.

    Args:
        log_probs: [B, T] nats, of the current policy.
        old_log_probs: [B, T] nats, of the policy that sampled.
        clip_epsilon: half width of the band, > 0.
        mask: [B, T] bool.

    Returns:
        A scalar in [0, 1], detached.

    Raises:
        ValueError: shapes differ, mask has no True entry, or clip_epsilon <= 0.

    Example:
        >>> new, old = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.48]]).log()
        >>> clip_fraction(new, old, 0.2, torch.tensor([[True, True]])).item()
        0.5

    Source: Huang et al. 2022, The 37 Implementation Details of Proximal Policy Optimization. Chapter 05.
    """
    check_shapes(log_probs=log_probs, old_log_probs=old_log_probs, mask=mask)
    _check_epsilon(clip_epsilon)
    ratio = torch.exp(log_probs - old_log_probs)
    return masked_mean(((ratio - 1).abs() > clip_epsilon).to(log_probs.dtype), mask)


@torch.no_grad()
def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """How much of the returns' variance the values predict.

    1 - Var(returns - values) / Var(returns)      over the real tokens

    1 is perfect, 0 no better than a constant, below 0 worse than a constant. A constant offset is not seen.
    Constant returns have no variance to explain: then 1 if the values are constant too, else 0.

    Args:
        values: [B, T] as predicted before the update.
        returns: [B, T].
        mask: [B, T] bool.

    Returns:
        A scalar, at most 1, detached.

    Raises:
        ValueError: shapes differ, or fewer than 2 real tokens.

    Example:
        >>> values, returns = torch.tensor([1.0, 1.0, 3.0]), torch.tensor([0.0, 2.0, 4.0])
        >>> explained_variance(values, returns, torch.tensor([True, True, True])).item()
        0.67

    Chapter 04.
    """
    check_shapes(values=values, returns=returns, mask=mask)
    total, residual = masked_var(returns, mask), masked_var(returns - values, mask)
    if total == 0:
        return (residual == 0).to(values.dtype)
    return 1 - residual / total


def dpo_loss(
    chosen_log_probs: Tensor,
    rejected_log_probs: Tensor,
    ref_chosen_log_probs: Tensor,
    ref_rejected_log_probs: Tensor,
    beta: float,
) -> Tensor:
    """Direct preference optimisation: Bradley-Terry on the rewards that the policy itself implies.

    -log sigmoid(beta ((log p(chosen) - log q(chosen)) - (log p(rejected) - log q(rejected))))

    p is the policy, q the reference. With pairs drawn from the reference and Bradley-Terry raters its minimum
    is the optimum of reward - beta KL(policy || reference).

    Args:
        chosen_log_probs, rejected_log_probs: [N] nats, summed over the response, of the policy.
        ref_chosen_log_probs, ref_rejected_log_probs: [N] data; the same of the reference.
        beta: the KL coefficient that the loss stands for, > 0.

    Returns:
        [N]; log 2 where policy and reference agree.

    Raises:
        ValueError: shapes differ, a reference log-prob requires grad, or beta <= 0.

    Example:
        >>> chosen, rejected, reference = torch.tensor([-2.0]), torch.tensor([-4.0]), torch.tensor([-3.0])
        >>> round(dpo_loss(chosen, rejected, reference, reference, beta=0.5).item(), 4)    # log(1 + exp(-1))
        0.3133

    Source: Rafailov et al. 2023, Direct Preference Optimization, equation 7. Chapter 15.
    """
    check_shapes(
        chosen_log_probs=chosen_log_probs,
        rejected_log_probs=rejected_log_probs,
        ref_chosen_log_probs=ref_chosen_log_probs,
        ref_rejected_log_probs=ref_rejected_log_probs,
    )
    check_data(ref_chosen_log_probs=ref_chosen_log_probs, ref_rejected_log_probs=ref_rejected_log_probs)
    if not beta > 0:
        raise ValueError(f"beta must be positive, got {beta}")
    chosen_reward = chosen_log_probs - ref_chosen_log_probs
    rejected_reward = rejected_log_probs - ref_rejected_log_probs
    return -logsigmoid(beta * (chosen_reward - rejected_reward))
