"""How often the live checks err in healthy runs, and what they cost.

    python run.py bench live_checks                 every run that data/results/live_checks.csv does not hold yet
    python run.py bench live_checks --cost          seconds of the checks, as a share of those of a run

Healthy runs of every recipe that samples, 800 in small worlds and 12 in the town, each with a seed of its own. The
bound is alpha = 1e-3 a run over all statistical checks together (`rlhf_lab.experience.invariants.sampled_law`), so 800
runs raise 0.8 alarms in the mean at most. An alarm of any other check is a fault of that check: they are identities. A
row holds 1 and the name where a check raised an alarm, else 0. One core, half an hour.

The cost is measured inside of a run, where the checks take their own time, and from outside: the same run with and
without them, in turn, and the median of the paired ratios.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from functools import cache, partial

import torch
from rows import RESULTS as FOLDER, Arm, Row, at_least, compute, numbers_of, options

from rlhf_lab.classroom.clinic.parts import Parts
from rlhf_lab.classroom.clinic.runs import train
from rlhf_lab.classroom.clinic.songs import world
from rlhf_lab.evaluation.policies import true_rewards
from rlhf_lab.experience.invariants import InvariantViolation
from rlhf_lab.models.language_model import LanguageModel, load_language_model
from rlhf_lab.models.tokens import Rollout
from rlhf_lab.recipes.ppo import PPOConfig, train_ppo
from rlhf_lab.recipes.reinforce import ReinforceConfig, train_reinforce
from rlhf_lab.recipes.rlhf import RLHFConfig, train_rlhf
from rlhf_lab.training.history import History
from rlhf_lab.worlds import town
from rlhf_lab.worlds.envs import TabularEnv, token_world_mdp

RESULTS = FOLDER / "live_checks.csv"
SHORT = 2  # iterations of a probe


@cache
def model(precision: torch.dtype) -> LanguageModel:
    return load_language_model("tiny", precision=precision)


def songs() -> TabularEnv:
    """The clinic's world, as an environment."""
    return TabularEnv(token_world_mdp(world()))


def true_reward(rollout: Rollout) -> torch.Tensor:
    return torch.tensor([float(reward or 0.0) for reward in true_rewards(rollout)])


def by_clinic(seed: int, iterations: int = 30) -> tuple[History, list[str]]:
    run = train(Parts(), seed, iterations)
    return run.history, list(run.fired)


def by_reinforce(seed: int, iterations: int = 20) -> tuple[History, list[str]]:
    config = ReinforceConfig(iterations=iterations, episodes=32, entropy_coef=0.02, learning_rate=0.1, seed=seed)
    return train_reinforce(songs, config).history, []


def by_ppo(seed: int, iterations: int = 10) -> tuple[History, list[str]]:
    size = {"environments": 8, "steps": 32, "minibatch": 64, "epochs": 4}
    config = PPOConfig(total_steps=256 * iterations, learning_rate=0.1, entropy_coef=0.02, seed=seed, **size)
    return train_ppo(songs, config).history, []


def by_rlhf(seed: int, iterations: int = 6) -> tuple[History, list[str]]:
    size = {"prompts_per_iteration": 12, "minibatch_rows": 12, "max_new_tokens": 8, "epochs": 2}
    config = RLHFConfig(iterations=iterations, learning_rate=1e-3, value="policy_head", seed=seed, **size)
    prompts = [prompt.conversation for prompt in town.prompts("train", 100)]
    return train_rlhf(model(torch.float32), prompts, true_reward, config).history, []


def in_town(precision: torch.dtype, seed: int, iterations: int = 15) -> tuple[History, list[str]]:
    config = RLHFConfig(iterations=iterations, prompts_per_iteration=24, minibatch_rows=24, epochs=2, seed=seed)
    prompts = [prompt.conversation for prompt in town.prompts("train", 600)]
    return train_rlhf(model(precision), prompts, true_reward, config).history, []


def alarms(run: Callable[..., tuple[History, list[str]]], seed: int) -> list[Row]:
    """A row: whether a check raised an alarm in a healthy run, and which."""
    try:
        names = run(seed)[1]
    except InvariantViolation as violation:
        names = [violation.name]
    return [{"alarm": int(bool(names)), "names": " ".join(names)}]


def arm(name: str, run: Callable[..., tuple[History, list[str]]], seeds: int) -> Arm:
    def probe() -> Mapping[str, float]:
        return numbers_of(run(0, SHORT)[0])

    return Arm({"run": name}, {}, range(seeds), partial(alarms, run), probe)


ARMS = [
    arm("clinic", by_clinic, 400),
    arm("reinforce", by_reinforce, 150),
    arm("ppo", by_ppo, 150),
    arm("rlhf", by_rlhf, 100),
    arm("town", partial(in_town, torch.float32), 10),
    arm("town bf16", partial(in_town, torch.bfloat16), 2),
]


# -- cost -------------------------------------------------------------------------------------------------------------
def cost(rounds: int) -> None:
    """Print the share of a run that its checks take, from inside and from outside."""
    size = {"iterations": 20, "prompts_per_iteration": 96, "minibatch_rows": 96, "learning_rate": 1e-7}
    prompts = [prompt.conversation for prompt in town.prompts("train", 600)]
    shares, ratios = [], []
    for seed in range(rounds):
        seconds = {}
        for on in (True, False) if seed % 2 else (False, True):
            config = RLHFConfig(**size, value_learning_rate=1e-7, seed=seed, check_invariants=on)
            start = time.perf_counter()
            result = train_rlhf(model(torch.float32), prompts, true_reward, config)
            seconds[on] = time.perf_counter() - start
            if on:
                shares.append(result.check_cost)
        ratios.append(seconds[True] / seconds[False])
    print(f"share of the time, measured inside: {', '.join(f'{share:.2%}' for share in shares)}")
    print(f"with checks / without: median {statistics.median(ratios):.3f} of {', '.join(f'{r:.3f}' for r in ratios)}")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cost", action="store_true", help="measure the cost in place of the alarms")
    parser.add_argument("--rounds", type=at_least(1), default=5, help="pairs of runs for the cost")


if __name__ == "__main__":
    chosen = options(__doc__, add_options)
    torch.set_num_threads(1)
    if chosen.cost:
        cost(chosen.rounds)
    else:
        compute(RESULTS, ARMS, chosen.seeds, chosen.dry_run)
