"""PPO on control tasks: what it reaches, and how fast it is beside a well-kept library.

    python run.py bench control                       every task and seed that data/results/control.csv lacks
    python run.py bench control --tasks CartPole-v1 --seeds 0 1
    python run.py bench control --speed               steps per second and seconds to 475 against stable-baselines3

A run is judged by its final policy: 100 fresh greedy episodes, never the best of its past. Settings were chosen on
seeds 100 and above. The comparison gives both sides the same network, settings, environment and one thread, pairs the
runs (ours, theirs, ours, ...), and prints ratios, because the machine is noisy.
"""

import time
from dataclasses import replace

import numpy as np
import torch
from rows import RESULTS, Arm, at_least, compute, numbers_of, options

from rlhf_lab.experience.episodes import play
from rlhf_lab.models.policies import greedy
from rlhf_lab.recipes.ppo import PPOConfig, train_ppo

PATH = RESULTS / "control.csv"
TASKS = {  # environment -> settings, number of seeds
    "CartPole-v1": (PPOConfig(total_steps=100_000), 10),
    "Acrobot-v1": (PPOConfig(total_steps=200_000, environments=16, epochs=4, entropy_coef=0.01), 5),
    "Pendulum-v1": (
        PPOConfig(total_steps=200_000, environments=8, steps=256, minibatch=128, gamma=0.9, learning_rate=1e-3),
        5,
    ),
}
EPISODES, FRESH, SOLVED = 100, 10_000, 475.0
SPEED = PPOConfig(total_steps=100_000, environments=8, steps=128, minibatch=256, epochs=10, final_fraction=1.0)


def run(task: str, seed: int) -> dict:
    """One training run and what its final policy earns."""
    start = time.perf_counter()
    policy = train_ppo(task, replace(TASKS[task][0], seed=seed)).model
    return judged(task, policy, EPISODES, seed) | {"seconds": time.perf_counter() - start}


def judged(task: str, policy, episodes: int, seed: int) -> dict[str, float]:
    """What a policy earns, greedily, in fresh episodes."""
    returns = play(task, greedy(policy), episodes, FRESH + seed)
    return {"mean_return": float(np.mean(returns)), "worst_return": float(np.min(returns))}


def probe(task: str) -> dict[str, float]:
    """Two iterations and what they logged."""
    config = TASKS[task][0]
    result = train_ppo(task, replace(config, total_steps=2 * config.environments * config.steps))
    return numbers_of(result.history) | judged(task, result.model, 2, 0)


def arm(task: str) -> Arm:
    config, count = TASKS[task]
    settings = {"config": config, "episodes": EPISODES, "fresh": FRESH}
    return Arm({"task": task}, settings, range(count), lambda seed: [run(task, seed)], lambda: probe(task))


# -- speed ------------------------------------------------------------------------------------------------------------
def seconds_to(returns: list[float | None], seconds: list[float]) -> float:
    """When the mean return of an iteration's episodes first reached SOLVED; NaN if it never did."""
    return next((s for s, r in zip(seconds, returns, strict=True) if r is not None and r >= SOLVED), float("nan"))


def our_speed(seed: int) -> tuple[float, float]:
    """(steps per second, seconds to SOLVED) of rlhf_lab."""
    ticks: list[float] = []
    config = replace(SPEED, seed=seed, evaluate_every=1)
    start = time.perf_counter()
    result = train_ppo("CartPole-v1", config, evaluate=lambda policy: ticks.append(time.perf_counter() - start) or {})
    rows = result.history.to_list()[1:]  # the first row is from before the first step
    total = rows[-1]["step"] / ticks[-1]
    return total, seconds_to([r["return"] for r in rows], ticks[1:])


def their_speed(seed: int) -> tuple[float, float]:
    """The same of stable-baselines3, with its own logging and evaluation switched off."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env

    class Watch(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            done = [info["r"] for info in self.model.ep_info_buffer]
            returns.append(float(np.mean(done[-8:])) if done else None)
            seconds.append(time.perf_counter() - start)

    returns, seconds = [], []
    model = PPO(
        "MlpPolicy",
        make_vec_env("CartPole-v1", n_envs=SPEED.environments, seed=seed),
        learning_rate=SPEED.learning_rate,
        n_steps=SPEED.steps,
        batch_size=SPEED.minibatch,
        n_epochs=SPEED.epochs,
        gamma=SPEED.gamma,
        gae_lambda=SPEED.gae_lambda,
        clip_range=SPEED.clip_epsilon,
        ent_coef=SPEED.entropy_coef,
        vf_coef=SPEED.value_coef,
        max_grad_norm=SPEED.max_grad_norm,
        seed=seed,
        device="cpu",
    )
    start = time.perf_counter()
    model.learn(SPEED.total_steps, callback=Watch())
    return model.num_timesteps / (time.perf_counter() - start), seconds_to(returns, seconds)


def compare(pairs: int) -> None:
    """Paired runs of both, and the ratio ours / theirs."""
    ratios = []
    for seed in range(pairs):
        ours, theirs = our_speed(seed), their_speed(seed)
        ratios.append(ours[0] / theirs[0])
        for name, (rate, solved) in (("rlhf_lab", ours), ("stable-baselines3", theirs)):
            print(f"seed {seed}  {name:18} {rate:7,.0f} steps/s   {solved:6.1f} s to a mean return of {SOLVED:.0f}")
    low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
    print(f"steps per second, ours / theirs: median {middle:.2f}, quartiles {low:.2f} to {high:.2f}, {pairs} pairs")


def arguments(parser) -> None:
    parser.add_argument("--tasks", choices=list(TASKS), nargs="+", default=list(TASKS))
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--pairs", type=at_least(1), default=5)


if __name__ == "__main__":
    chosen = options(__doc__, arguments)
    torch.set_num_threads(1)
    if chosen.speed:
        compare(chosen.pairs)
    else:
        compute(PATH, [arm(task) for task in chosen.tasks], chosen.seeds, chosen.dry_run)
