"""The recipes, one training loop each; they never import each other.

pretrain             documents -> base model
fine_tune            base model, demonstrations -> SFT model
train_reward_model   SFT model, rankings or comparisons -> reward model
train_rlhf           SFT model, prompts, reward model -> RLHF model
reinforce            environment -> policy, by REINFORCE or the actor-critic
ppo                  environment -> policy, by clipped steps
q_learning           environment with few states -> table of action values
dqn                  environment -> network of action values
"""

from rlhf_lab.recipes.dqn import DQNConfig, DQNResult, dqn
from rlhf_lab.recipes.ppo import PPOConfig, PPOResult, ppo
from rlhf_lab.recipes.pretrain import PretrainConfig, PretrainResult, pretrain
from rlhf_lab.recipes.q_learning import QLearningConfig, QLearningResult, q_learning
from rlhf_lab.recipes.reinforce import ReinforceConfig, ReinforceResult, reinforce
from rlhf_lab.recipes.reward import RewardConfig, RewardResult, train_reward_model
from rlhf_lab.recipes.rlhf import OptimiserConfig, RLHFConfig, RLHFResult, train_rlhf
from rlhf_lab.recipes.sft import SFTConfig, SFTResult, fine_tune

__all__ = [
    "DQNConfig", "DQNResult", "OptimiserConfig", "PPOConfig", "PPOResult", "PretrainConfig", "PretrainResult",
    "QLearningConfig", "QLearningResult", "RLHFConfig", "RLHFResult", "ReinforceConfig", "ReinforceResult",
    "RewardConfig", "RewardResult", "SFTConfig", "SFTResult", "dqn", "fine_tune", "ppo", "pretrain", "q_learning",
    "reinforce", "train_reward_model", "train_rlhf",
]  # fmt: skip
