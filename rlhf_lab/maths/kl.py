"""Kullback-Leibler divergence of the policy from the reference, exact and estimated, in nats.

The direction is always KL(policy || reference) = E over the policy's samples of log policy - log reference.
The estimators take the log-probs of tokens that the *policy* sampled; on samples of the reference, or with
the arguments the wrong way round, they estimate something else without any warning.
"""

import torch
from torch import Tensor

from rlhf_lab.maths.tensors import check_shapes


def categorical_kl(logits: Tensor, ref_logits: Tensor) -> Tensor:
    """Exact KL(policy || reference) of categorical distributions.

    KL = sum_a p(a) (log p(a) - log q(a)),   p = softmax(logits), q = softmax(ref_logits)

    A token with p = 0 contributes 0 (logit -inf); p > 0 where q = 0 gives infinity.

    Args:
        logits: [..., V] of the policy.
        ref_logits: [..., V] of the reference.

    Returns:
        [...] nats, >= 0 up to rounding. Differentiable in both.

    Raises:
        ValueError: shapes differ.

    Example:
        >>> p, q = torch.tensor([0.5, 0.5]), torch.tensor([0.25, 0.75])
        >>> round(categorical_kl(p.log(), q.log()).item(), 4)       # 1/2 log 2 + 1/2 log 2/3
        0.1438

    Source: Kullback and Leibler 1951. Chapter 10.
    """
    check_shapes(logits=logits, ref_logits=ref_logits)
    log_p, log_q = logits.log_softmax(-1), ref_logits.log_softmax(-1)
    p = log_p.exp()
    # Two steps, so that p = 0 gives neither 0 * inf in the value nor NaN in the gradient.
    log_ratio = torch.where(p > 0, log_p - log_q, 0)
    return (p * log_ratio).sum(-1)


def kl_k1(log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
    """k1 = log p - log q: the log-ratio of tokens that the policy sampled.

    Unbiased for KL(policy || reference). Single values are often negative; only the mean is not. As a term of
    the *loss* its expected gradient is exactly 0; as a *reward* (-kl_coef k1 with full reward to go,
    on-policy, gamma 1) it gives exactly the gradient of the KL.

    Args:
        log_probs: [...] of the policy, at tokens sampled from it.
        ref_log_probs: [...] of the reference at the same tokens.

    Returns:
        [...] nats.

    Raises:
        ValueError: shapes differ.

    Example:
        >>> kl_k1(torch.tensor([-1.0, -3.0]), torch.tensor([-1.5, -2.0])).tolist()
        [0.5, -1.0]

    Source: Schulman 2020, Approximating KL Divergence. Chapter 10.
    """
    check_shapes(log_probs=log_probs, ref_log_probs=ref_log_probs)
    return log_probs - ref_log_probs


def kl_k2(log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
    """k2 = 1/2 (log p - log q)^2, at tokens that the policy sampled.

    Biased as a value, never negative, small variance where the two laws are close. Blind to the direction of
    the log-ratio. As a term of the loss, on-policy, its expected gradient is that of KL(policy || reference),
    if the log-probs are those of whole sequences; per token it misses what a token does to later ones.

    Args, Returns, Raises: as in `kl_k1`.

    Example:
        >>> kl_k2(torch.tensor([-1.0, -3.0]), torch.tensor([-1.5, -2.0])).tolist()
        [0.125, 0.5]

    Source: Schulman 2020, Approximating KL Divergence. Chapter 10.
    """
    return kl_k1(log_probs, ref_log_probs).square() / 2


def kl_k3(log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
    """k3 = q/p - 1 - log(q/p), at tokens that the policy sampled.

    Unbiased for KL(policy || reference) as long as q = 0 wherever p = 0; never negative. As a term of the
    loss, on-policy and for whole sequences, its expected gradient is that of the *other* KL(reference ||
    policy).

    Args, Returns, Raises: as in `kl_k1`.

    Example:
        >>> [round(k, 4) for k in kl_k3(torch.tensor([-1.0, -3.0]), torch.tensor([-1.5, -2.0])).tolist()]
        [0.1065, 0.7183]

    Source: Schulman 2020, Approximating KL Divergence. Chapter 10.
    """
    log_ratio = kl_k1(log_probs, ref_log_probs)
    return torch.expm1(-log_ratio) + log_ratio
