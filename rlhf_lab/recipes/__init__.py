"""The recipes, one training loop each; they never import each other.

pretrain             documents -> base model
fine_tune            base model, demonstrations -> SFT model
train_reward_model   SFT model, rankings or comparisons -> reward model
train_rlhf           SFT model, prompts, reward model -> RLHF model
"""

from rlhf_lab.recipes.pretrain import PretrainConfig, PretrainResult, pretrain
from rlhf_lab.recipes.reward import RewardConfig, RewardResult, train_reward_model
from rlhf_lab.recipes.rlhf import OptimiserConfig, RLHFConfig, RLHFResult, train_rlhf
from rlhf_lab.recipes.sft import SFTConfig, SFTResult, fine_tune

__all__ = [
    "OptimiserConfig", "PretrainConfig", "PretrainResult", "RLHFConfig", "RLHFResult", "RewardConfig", "RewardResult",
    "SFTConfig", "SFTResult", "fine_tune", "pretrain", "train_reward_model", "train_rlhf",
]  # fmt: skip
