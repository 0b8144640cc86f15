"""The study behind chapter 09: what an agent earns whose reward was learned from preferences, by the number of labels.

    python run.py bench segment_labels              every run that data/results/segment_labels.csv does not hold
    python run.py bench segment_labels --seeds 0 1  those seeds
    python run.py bench segment_labels --tune       the reward models on seeds 100 to 102 behind REWARD; stores nothing

The task is rlhf_lab/Puck-v0, whose episodes all have 50 steps. 60 episodes of random actions are cut into 300 segments
of 10 steps, pairs of them are drawn and labelled by a simulated person who sees returns through logistic noise, so that
the accuracy which the best of all models would have is known. A reward model learns from them, and PPO from the reward
model; judged is the true return of the greedy policy. Two other arms have the same PPO: one is paid by a network that
was never trained ("0 labels"), one by the true reward.

Settings were chosen on other seeds, and are the same for every number of labels: those of PPO by the true return of the
arm that is paid the true reward (three were tried, on seed 100), those of the reward model by its expected accuracy on
held-out pairs, never by what its policy earns. One core, some twelve minutes.
"""

import os
from dataclasses import replace
from itertools import product

os.environ.setdefault("TQDM_DISABLE", "1")

import numpy as np
import torch
from rows import RESULTS as FOLDER, Arm, Row, compute, numbers_of, options

from rlhf_lab.experience.episodes import Episodes, collect_episodes, open_envs, play
from rlhf_lab.experience.segments import cut_segments, pair_segments
from rlhf_lab.maths.preferences import best_possible_accuracy, expected_accuracy
from rlhf_lab.models.policies import greedy
from rlhf_lab.recipes.ppo import PPOConfig, PPOResult, train_ppo
from rlhf_lab.recipes.segment_reward import (
    LearnedReward,
    SegmentReward,
    SegmentRewardConfig,
    choice_probabilities,
    simulate_choices,
    step_tensors,
    train_segment_reward,
)
from rlhf_lab.training.randomness import generator_for
from rlhf_lab.worlds.puck import PUSHES, PuckEnv

RESULTS = FOLDER / "segment_labels.csv"
LABELS, TRUE, SEEDS, TUNING = (0, 20, 80, 320, 1280), "true reward", range(6), range(100, 103)
TASK, ACTIONS, EPISODES, STEPS, HELD_OUT, NOISE = "rlhf_lab/Puck-v0", len(PUSHES), 60, 10, 1000, 1.0
JUDGED, FRESH = 100, 10_000  # greedy episodes in which a policy is judged, and where their seeds begin
PPO = PPOConfig(
    total_steps=24_000, environments=16, steps=50, epochs=6, minibatch=200, learning_rate=5e-3, gamma=0.9
)  # fmt: skip
REWARD = SegmentRewardConfig(steps=100, members=3, weight_decay=0.3)  # the best of CANDIDATES, by tenths of a point
CANDIDATES = [
    SegmentRewardConfig(steps=steps, members=members, weight_decay=decay)
    for steps, members, decay in product((100, 300), (1, 3), (0.01, 0.3))
]


# -- labels -----------------------------------------------------------------------------------------------------------
def random_episodes(seed: int) -> Episodes:
    """Whole episodes of actions drawn evenly."""
    generator = generator_for(seed, "random actions")
    with open_envs(PuckEnv, EPISODES, seed) as envs:
        return collect_episodes(envs, lambda seen: torch.randint(ACTIONS, (len(seen),), generator=generator), gamma=1.0)


def learned_reward(labels: int, seed: int, config: SegmentRewardConfig = REWARD) -> tuple[SegmentReward, Row]:
    """A reward from so many labels, 0 leaving the network as it came; its expected accuracy and the best possible."""
    returns = cut_segments(random_episodes(seed), TASK, STEPS)
    pairs = pair_segments(list(returns), HELD_OUT + labels, generator_for(seed, "pairs of segments"))
    tests, asked, config = pairs[:HELD_OUT], pairs[HELD_OUT:], replace(config, seed=seed)
    if labels:
        choices = simulate_choices(asked, returns, NOISE, generator_for(seed, "labels"))
        reward = train_segment_reward(choices, config, actions=ACTIONS).model
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            reward = SegmentReward(4, ACTIONS, config=config).requires_grad_(False)
        reward.standardise(*step_tensors(list(returns), ACTIONS))
    found = dict(zip(returns, reward.returns(list(returns)).tolist(), strict=True))
    leads, chances = (
        torch.tensor([found[one] - found[two] for one, two in tests]),
        choice_probabilities(tests, returns, NOISE),
    )
    quality = {"accuracy": expected_accuracy(leads, chances), "best_accuracy": best_possible_accuracy(chances)}
    return reward, {name: float(number) for name, number in quality.items()}


# -- runs -------------------------------------------------------------------------------------------------------------
def learn(reward_name: str, seed: int, config: PPOConfig = PPO) -> tuple[PPOResult, Row]:
    """A policy paid by a reward from so many labels, and how good that reward is."""
    config = replace(config, seed=seed)
    if reward_name == TRUE:
        return train_ppo(PuckEnv, config), {"accuracy": None, "best_accuracy": None}
    reward, quality = learned_reward(int(reward_name.split()[0]), seed)
    return train_ppo(lambda: LearnedReward(PuckEnv(), reward), config), quality


def true_return(result: PPOResult, seed: int, episodes: int = JUDGED) -> float:
    return float(np.mean(play(PuckEnv, greedy(result.model), episodes, FRESH + seed)))


def run_rows(reward_name: str, seed: int) -> list[Row]:
    """One row: the true return of the policy, beside that of random actions."""
    result, quality = learn(reward_name, seed)
    return [{"mean_return": true_return(result, seed), "random_return": random_episodes(seed).mean_return} | quality]


def probe(reward_name: str) -> dict[str, float]:
    """Two iterations of PPO, what they logged and what their policy earns."""
    result, quality = learn(reward_name, 0, replace(PPO, total_steps=2 * PPO.environments * PPO.steps))
    known = {name: float(number) for name, number in quality.items() if number is not None}
    return numbers_of(result.history) | known | {"mean_return": true_return(result, 0, 2)}


def study_arm(reward_name: str) -> Arm:
    settings = {
        "ppo": PPO, "reward": REWARD, "episodes": EPISODES, "steps": STEPS, "held_out": HELD_OUT, "noise": NOISE,
        "judged": JUDGED, "fresh": FRESH,
    }  # fmt: skip
    names = {"reward": reward_name}
    return Arm(names, settings, SEEDS, lambda seed: run_rows(reward_name, seed), lambda: probe(reward_name))


def arms() -> list[Arm]:
    return [study_arm(name) for name in (*(f"{labels} labels" for labels in LABELS), TRUE)]


def tune() -> None:
    """Print the expected accuracy of every candidate, mean over seeds and numbers of labels."""
    for config in CANDIDATES:
        found = [[learned_reward(labels, seed, config)[1]["accuracy"] for seed in TUNING] for labels in LABELS[1:]]
        setting = f"steps {config.steps}, members {config.members}, weight decay {config.weight_decay}"
        print(f"{setting}: {np.mean(found, axis=1).round(3)}, mean {np.mean(found):.4f}", flush=True)


if __name__ == "__main__":
    chosen = options(__doc__, lambda parser: parser.add_argument("--tune", action="store_true"))
    torch.set_num_threads(1)
    if chosen.tune:
        tune()
    else:
        compute(RESULTS, arms(), chosen.seeds, chosen.dry_run)
