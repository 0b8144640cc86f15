"""Per-token objectives of policy-gradient methods; the reduction is a visible call elsewhere."""

import torch

from rlhf_lab.tensors import check_data, check_shapes, masked_mean, masked_var


def clipped_surrogate_objective(log_probs, old_log_probs, advantages, clip_epsilon):
    """min(ratio A, clip(ratio, 1 - eps, 1 + eps) A), [B, T]; maximised."""
    check_shapes(log_probs=log_probs, old_log_probs=old_log_probs, advantages=advantages)
    check_data(old_log_probs=old_log_probs, advantages=advantages)
    ratio = (log_probs - old_log_probs).exp()
    return torch.minimum(ratio * advantages, ratio.clamp(1 - clip_epsilon, 1 + clip_epsilon) * advantages)


def clipped_value_loss(values, old_values, returns, clip_epsilon):
    """1/2 max of the squared errors of the value and of the value clipped around the old one."""
    check_shapes(values=values, old_values=old_values, returns=returns)
    check_data(old_values=old_values, returns=returns)
    clipped = old_values + (values - old_values).clamp(-clip_epsilon, clip_epsilon)
    return 0.5 * torch.maximum((values - returns) ** 2, (clipped - returns) ** 2)


def entropy(logits):
    """Entropy in nats, [..., V] -> [...]."""
    log_p = torch.log_softmax(logits, -1)
    return -(log_p.exp() * log_p).sum(-1)


def clip_fraction(log_probs, old_log_probs, clip_epsilon, mask):
    """Share of ratios outside the band."""
    ratio = (log_probs - old_log_probs).exp()
    return masked_mean(((ratio - 1).abs() > clip_epsilon).float(), mask)


def explained_variance(values, returns, mask):
    """1 - Var(returns - values) / Var(returns)."""
    return 1 - masked_var(returns - values, mask) / masked_var(returns, mask)
