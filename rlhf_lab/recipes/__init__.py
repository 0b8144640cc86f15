"""The recipes: each file is its config, its loop and its result, and they never import each other.

`reward_data` and `reward_losses` are parts of `reward`, and `reward_ensemble` trains several of its models.

pretrain      train_base_model     documents -> base model
sft           train_sft            base model, demonstrations -> SFT model
reward        train_reward_model   SFT model, rankings, ratings, ... -> reward model
              train_reward_ensemble   the same -> several reward models, each from its own sample of the prompts
rlhf          train_rlhf           SFT model, prompts, reward -> RLHF model, by PPO on a KL leash
reinforce     train_reinforce      environment -> policy, by REINFORCE or the actor-critic
ppo           train_ppo            environment -> policy, by clipped steps
q_learning    train_q_learning     environment with few states -> table of action values
dqn           train_dqn            environment -> network of action values
irl           train_irl            process that can be solved, demonstrations -> reward
segment_reward   train_segment_reward  choices between pieces of behaviour -> reward of an environment
"""
