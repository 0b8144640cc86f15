"""The settings of a run that follow the size of the model: rates fall and batches shrink as it grows.

The rates of the shipped model throw a model of 135 million parameters off: 2.6 nats a token in its first iteration of
PPO. Chapter 16.
"""

import math
from dataclasses import dataclass

from rlhf_lab.recipes.reward import RewardConfig
from rlhf_lab.recipes.rlhf import RLHFConfig
from rlhf_lab.recipes.sft import SFTConfig
from rlhf_lab.training.optimisers import OptimiserConfig


@dataclass(frozen=True)
class Scale:
    """Rates and amounts of work for models of a size.

    Attributes:
        parameters: from so many on.
        sft_rate, reward_rate, policy_rate, value_rate: peak learning rates.
        sft_rows: demonstrations in a step. sft_epochs: most passes over the demonstrations; None: as the steps say.
        iterations: of PPO. replies: sampled in each. minibatch: replies in an update. epochs: over each rollout.
        micro_batch: most rows in one pass; changes memory, not the result.
        validation: share of the prompts on which the reward model stops early.
        source: of the rates.
    """

    parameters: int
    sft_rate: float
    reward_rate: float
    policy_rate: float
    value_rate: float
    sft_rows: int = 128
    sft_epochs: float | None = None
    iterations: int = 60
    replies: int = 96
    minibatch: int = 48
    epochs: int = 2
    micro_batch: int = 16
    validation: float = 0.0
    source: str = "chosen on this model"

    def __str__(self) -> str:
        return (
            f"learning rates {self.sft_rate:.2g} (SFT), {self.reward_rate:.2g} (reward model), {self.policy_rate:.2g} "
            f"and {self.value_rate:.2g} (policy and value); {self.source}"
        )


FIELD = (
    "SFT and reward model: defaults of TRL 1.16 (2e-5) and Ouyang 2022 (9e-6); policy: default of TRL 0.7 (1e-5); "
    "3 epochs of SFT as in transformers, one of PPO as in Ouyang 2022"
)
SCALES = (
    Scale(0, SFTConfig.learning_rate, RewardConfig.learning_rate, RLHFConfig.learning_rate, 1e-3),
    Scale(10_000_000, 1e-4, 1e-4, 1e-4 / 3, 1e-4, source="between those of smaller and of larger models, not tuned"),
    Scale(
        100_000_000, 2e-5, 9e-6, 1e-5, 1e-5, sft_rows=16, sft_epochs=3, iterations=20, replies=32, minibatch=16,
        epochs=1, micro_batch=4, validation=0.1, source=FIELD,
    ),
)  # fmt: skip
KL_LIMIT = 0.5  # nats a token in the first iterations: the run above had 2.6, with a policy rate of 1e-5 it had 0.1


def scale_for(parameters: int) -> Scale:
    """The settings for a model with so many numbers in its weights.

    Example:
        >>> scale_for(1_000_000).replies, scale_for(135_000_000).policy_rate
        (96, 1e-05)
    """
    return [scale for scale in SCALES if scale.parameters <= parameters][-1]


def recipes_for(
    scale: Scale, *, seed: int = 0, reply_tokens: int = 64, rates: float = 1.0
) -> tuple[SFTConfig, RewardConfig, RLHFConfig]:
    """The three recipes' configs at a scale.

    Args:
        rates: all learning rates are multiplied by it.

    Example:
        >>> sft, reward, rlhf = recipes_for(scale_for(135_000_000), rates=0.1)
        >>> f"{sft.learning_rate:.0e}, {rlhf.learning_rate:.0e}, {rlhf.prompts_per_iteration} replies"
        '2e-06, 1e-06, 32 replies'
    """
    sft = SFTConfig(
        seed=seed,
        max_new_tokens=reply_tokens,
        learning_rate=rates * scale.sft_rate,
        demonstrations_per_step=scale.sft_rows,
        micro_batch=scale.micro_batch,
    )
    reward = RewardConfig(
        seed=seed,
        max_new_tokens=reply_tokens,
        learning_rate=rates * scale.reward_rate,
        micro_batch=scale.micro_batch,
        validation_share=scale.validation,
    )
    rlhf = RLHFConfig(
        seed=seed,
        max_new_tokens=reply_tokens,
        iterations=scale.iterations,
        prompts_per_iteration=scale.replies,
        minibatch_rows=scale.minibatch,
        micro_batch=scale.micro_batch,
        epochs=scale.epochs,
        learning_rate=rates * scale.policy_rate,
        value_learning_rate=rates * scale.value_rate,
        optimiser=OptimiserConfig(kl_limit=KL_LIMIT),
    )
    return sft, reward, rlhf


def sft_steps(most: int, demonstrations: int, rows: int, epochs: float | None) -> int:
    """Steps of so many rows: `most`, or fewer where that would be more than so many passes over the demonstrations.

    Example:
        >>> sft_steps(100, 54, 16, 3), sft_steps(100, 54, 128, None)
        (11, 100)
    """
    return most if epochs is None else min(most, max(1, math.ceil(epochs * demonstrations / rows)))
