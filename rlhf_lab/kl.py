"""KL(policy || reference), exact and from samples of the policy."""

import torch
from torch import Tensor

from rlhf_lab.tensors import check_shapes


def categorical_kl(logits: Tensor, ref_logits: Tensor) -> Tensor:
    """Exact KL(policy || reference) = sum_a p(a) (log p(a) - log q(a)), [..., V] -> [...] in nats."""
    check_shapes(logits=logits, ref_logits=ref_logits)
    log_p, log_q = torch.log_softmax(logits, -1), torch.log_softmax(ref_logits, -1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def kl_k1(log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
    """k1 = log p - log q on samples of p: unbiased, of either sign."""
    check_shapes(log_probs=log_probs, ref_log_probs=ref_log_probs)
    return log_probs - ref_log_probs


def kl_k2(log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
    """k2 = (log p - log q)^2 / 2 on samples of p: biased, never negative."""
    return kl_k1(log_probs, ref_log_probs) ** 2 / 2


def kl_k3(log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
    """k3 = q/p - 1 - log(q/p) on samples of p: unbiased, never negative."""
    log_ratio = -kl_k1(log_probs, ref_log_probs)
    return torch.expm1(log_ratio) - log_ratio
