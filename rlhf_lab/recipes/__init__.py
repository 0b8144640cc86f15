"""The recipes, one training loop each; they never import each other.

pretrain             documents -> base model
fine_tune            base model, demonstrations -> SFT model
train_reward_model   SFT model, rankings or comparisons -> reward model
train_rlhf           SFT model, prompts, reward model -> RLHF model
"""

from rlhf_lab.recipes.rlhf import OptimiserConfig, RLHFConfig, RLHFResult, train_rlhf

__all__ = ["OptimiserConfig", "RLHFConfig", "RLHFResult", "train_rlhf"]
