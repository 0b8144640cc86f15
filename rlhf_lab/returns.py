"""Returns and advantages of right-padded rows; an end is a discount of 0."""

import torch
from torch import Tensor

from rlhf_lab.tensors import check_shapes


def gae(rewards: Tensor, values: Tensor, discounts: Tensor, mask: Tensor, lam: float) -> Tensor:
    """Generalised advantage estimates [B, T]: A_t = delta_t + discount_t lam A_{t+1}, 0 outside the mask."""
    check_shapes(rewards=rewards, discounts=discounts, mask=mask)
    values = values.detach()
    deltas = rewards + discounts * values[:, 1:] - values[:, :-1]
    advantages, running = torch.zeros_like(deltas), torch.zeros_like(deltas[:, 0])
    for t in reversed(range(deltas.shape[1])):
        running = (deltas[:, t] + discounts[:, t] * lam * running).where(mask[:, t], torch.zeros_like(running))
        advantages[:, t] = running
    return advantages.detach()
