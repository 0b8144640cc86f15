"""Optimisers, learning rates, and a step that never takes a gradient which is not finite."""

import math
from dataclasses import dataclass

import torch

from rlhf_lab.training.configs import above_zero, shares, whole


@dataclass(frozen=True)
class OptimiserConfig:
    """AdamW and its schedule, for policy and value alike.

    Attributes:
        adam_epsilon: > 0. 1e-5 as in the PPO code bases; torch's 1e-8 takes larger first steps.
        max_grad_norm: > 0; gradients of policy and of value model are clipped to this norm, each apart.
        warmup_iterations: the learning rate rises linearly over these first iterations.
        final_fraction: in [0, 1]; share of the rate left at the last iteration, a linear fall; 1 is constant.
        kl_limit: nats per token, > 0; an update in the first three iterations after which the approximate KL to the
            policy that sampled is higher stops the run, with the remedy. None: no limit.
    """

    adam_epsilon: float = 1e-5
    max_grad_norm: float = 1.0
    warmup_iterations: int = 0
    final_fraction: float = 0.1
    kl_limit: float | None = None

    def __post_init__(self) -> None:
        above_zero(self, "adam_epsilon")
        above_zero(self, "max_grad_norm", or_infinite=True)
        whole(self, "warmup_iterations", least=0)
        shares(self, "final_fraction")
        if self.kl_limit is not None:
            above_zero(self, "kl_limit")

    def adamw(self, groups: list[dict]) -> torch.optim.AdamW:
        """AdamW without weight decay on groups of `params` with a peak rate `lr` each."""
        return torch.optim.AdamW(groups, eps=self.adam_epsilon, weight_decay=0.0, fused=True)

    def factor(self, step: int, steps: int) -> float:
        """Factor of the peak rates: linear warm-up, times a linear fall to final_fraction at the last step."""
        warmup = min(1.0, (step + 1) / (self.warmup_iterations + 1))
        return warmup * linear(1.0, self.final_fraction, step / max(1, steps - 1))


def make_optimiser(
    model: torch.nn.Module,
    learning_rate: float,
    weight_decay: float,
    betas: tuple[float, float] = (0.9, 0.95),
) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only, as nearly every language-model recipe has it."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=True)


def cosine_rate(step: int, steps: int, warmup: int, floor: float = 0.0) -> float:
    """Factor of the peak learning rate: linear warm-up, then a half cosine down to `floor`.

    >>> [round(cosine_rate(step, 10, 2), 2) for step in (0, 1, 2, 9)]
    [0.5, 1.0, 1.0, 0.04]
    """
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done))


def linear(first: float, last: float, done: float) -> float:
    """A number on its way from `first` to `last`, of which the share `done` is behind.

    >>> linear(1.0, 0.1, 0.5)
    0.55
    """
    return first + (last - first) * done


def scale_rates(optimiser: torch.optim.Optimizer, factor: float) -> float:
    """Set the learning rate of every group to the one it was made with times `factor`; returns that of the first.

    The first rate is kept as `initial_lr`, the name that torch's schedulers use, and so in a checkpoint too.
    """
    for group in optimiser.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor
    return float(optimiser.param_groups[0]["lr"])


def clipped_step(
    optimiser: torch.optim.Optimizer, max_norm: float, step: int, *models: torch.nn.Module
) -> tuple[float, ...]:
    """Clip the gradient of each model apart and step; returns the norms before clipping.

    Args:
        optimiser: of the models.
        max_norm: each gradient is scaled down to it where it is longer.
        step: for the message.
        models: one or several, such as a policy and its critic.

    Raises:
        FloatingPointError: a gradient is not finite; the weights are as they were.
    """
    norms = torch.stack([torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm) for model in models])
    if not norms.isfinite().all():
        raise FloatingPointError(
            f"the gradient norm is {norms.tolist()} at step {step}; lower the learning rate, check the data"
        )
    optimiser.step()
    return tuple(norms.tolist())
