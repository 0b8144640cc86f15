"""The study behind chapter 05: PPO on three leashes, three algorithms against a known optimum, and Acrobot.

    python run.py bench ppo_ablation                       every run that data/results/ppo_ablation.csv does not hold
    python run.py bench ppo_ablation --part tour           one part
    python run.py bench ppo_ablation --part leash --seeds 0 1

leash   a TokenWorld, PPO with a clip, with a KL penalty and with neither; score: exact shortfall from the best policy
tour    the same world, by REINFORCE, actor-critic and PPO; score as in `leash`
acrobot PPO on Acrobot-v1; score: greedy return, mean of 20 episodes
The parts `leash tuning` and `tour tuning` are the runs on seeds 100 to 102 by which the settings of the first two were
chosen, with as many candidates for every arm that has one to choose. One core, some ten minutes in all.
"""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace

os.environ.setdefault("TQDM_DISABLE", "1")

import numpy as np
import torch
from rows import RESULTS as FOLDER, Arm, compute, flatten, options

from rlhf_lab.experience.episodes import play
from rlhf_lab.maths.exact import TokenWorld
from rlhf_lab.models.policies import TabularPolicy, greedy
from rlhf_lab.recipes.ppo import PPOConfig, train_ppo
from rlhf_lab.recipes.reinforce import ReinforceConfig, train_reinforce
from rlhf_lab.training.randomness import generator_for
from rlhf_lab.worlds.envs import TabularEnv, token_world_mdp

RESULTS = FOLDER / "ppo_ablation.csv"
LOGGED = ("approx_kl", "entropy", "clip_fraction")

# -- acrobot ----------------------------------------------------------------------------------------------------------
ACROBOT = PPOConfig(total_steps=49_152, environments=16, learning_rate=3e-3, evaluate_every=6)


def control(env: str, config: PPOConfig) -> list[dict]:
    """PPO on a registered environment, looked at greedily: a row for every look."""
    act = lambda policy: {"score": float(np.mean(play(env, greedy(policy), episodes=20, seed=10_000 + config.seed)))}  # noqa: E731
    return looks(train_ppo(env, config, evaluate=act).history, 1)


# -- tour: a world of 625 replies -------------------------------------------------------------------------------------
KL_COEF, BATCH, ITERATIONS = 0.5, 64, 60  # reward per nat; replies of 4 tokens in an iteration; iterations
RATES = (0.003, 0.01, 0.03, 0.1, 0.3)  # of every algorithm, policy and value alike
RATE = {"REINFORCE": 0.1, "actor-critic": 0.1, "PPO": 0.01}  # the best of them on the tuning seeds


def world_and_reference() -> tuple[TokenWorld, TabularPolicy]:
    """Replies of 4 tokens out of 5 with standard normal scores, and a reference that prefers some."""
    generator = generator_for(0, "tour")
    world = TokenWorld(5, 4, torch.randn(625, generator=generator, dtype=torch.float64))
    reference = TabularPolicy(world.num_prefixes + 1, 5)  # the last state is the end
    reference.logits.data = 0.5 * torch.randn(reference.logits.shape, generator=generator)
    return world, reference.requires_grad_(False)


def law_of(world: TokenWorld, policy: TabularPolicy) -> torch.Tensor:
    """[1, N] probability of every reply."""
    return world.law(policy.logits.detach().double()[None, :-1])


def algorithm(name: str, rate: float) -> ReinforceConfig | PPOConfig:
    """The settings of an algorithm; every one sees the same number of replies."""
    if name == "PPO":
        return PPOConfig(
            total_steps=4 * BATCH * ITERATIONS, environments=BATCH, steps=4, epochs=4, minibatch=BATCH, gamma=1.0,
            learning_rate=rate, final_fraction=1.0, kl_coef=KL_COEF, evaluate_every=5,
        )  # fmt: skip
    critic = {"baseline": "value", "gae_lambda": 0.95} if name == "actor-critic" else {"baseline": "mean"}
    rates = {"learning_rate": rate, "value_learning_rate": rate}
    return ReinforceConfig(
        iterations=ITERATIONS, episodes=BATCH, gamma=1.0, kl_coef=KL_COEF, evaluate_every=5, **rates, **critic
    )


def leashed(**leash: float) -> PPOConfig:
    """PPO in a hurry, half the replies and ten epochs on each batch, so that something can go wrong."""
    return replace(algorithm("PPO", 0.03), total_steps=2 * BATCH * ITERATIONS, epochs=10, **leash)


def tour(config: ReinforceConfig | PPOConfig) -> list[dict]:
    """The exact shortfall from the best policy under the leash: kl_coef KL(policy || best)."""
    world, reference = world_and_reference()
    best = world.optimum(law_of(world, reference), KL_COEF)
    process, policy = token_world_mdp(world), TabularPolicy(world.num_prefixes + 1, 5)
    policy.logits.data = reference.logits.clone()
    short = lambda policy: {"score": KL_COEF * float(world.kl(law_of(world, policy), best))}  # noqa: E731
    learn, scale = (train_ppo, 1) if isinstance(config, PPOConfig) else (train_reinforce, 4 * BATCH)
    run = learn(lambda: TabularEnv(process), config, policy=policy, reference=reference, evaluate=short)
    return looks(run.history, scale)


def looks(history, scale: int) -> list[dict]:
    """A row for every evaluation, with the means of what was logged since the one before; steps times `scale`."""
    rows, since = [], []
    for row in history.rows:
        since.append(row)
        if row.get("score") is not None:
            means = {name: [r[name] for r in since if r.get(name) is not None] for name in LOGGED}
            numbers = {name: sum(x) / len(x) if x else math.nan for name, x in means.items()}
            rows.append({"step": row["step"] * scale, "score": row["score"]} | numbers)
            since = []
    return rows


# -- the parts --------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Part:
    """Arms with their settings, the seeds, and what makes the rows of a run from its settings."""

    arms: dict[str, ReinforceConfig | PPOConfig]
    seeds: range
    run: Callable[[str, ReinforceConfig | PPOConfig], list[dict]]


def in_world(arm: str, config: ReinforceConfig | PPOConfig) -> list[dict]:
    return tour(config)


CLIPS, PENALTIES = (0.05, 0.1, 0.2, 0.3), (0.3, 1.0, 3.0, 10.0)  # candidates for the world
CLIP, PENALTY = 0.05, 3.0  # the best of them on the tuning seeds
CANDIDATES = {f"clip {e:g}": leashed(clip_epsilon=e) for e in CLIPS}
CANDIDATES |= {f"KL penalty {w:g}": leashed(clip_epsilon=math.inf, kl_penalty=w) for w in PENALTIES}
LEASHES = {
    "clip": leashed(clip_epsilon=CLIP),
    "KL penalty": leashed(clip_epsilon=math.inf, kl_penalty=PENALTY),
    "neither": leashed(clip_epsilon=math.inf),
}
TOURS = {name: algorithm(name, rate) for name, rate in RATE.items()}
TOUR_CANDIDATES = {f"{name} {rate:g}": algorithm(name, rate) for name in RATE for rate in RATES}
PARTS = {
    "leash tuning": Part(CANDIDATES, range(100, 103), in_world),
    "tour tuning": Part(TOUR_CANDIDATES, range(100, 103), in_world),
    "leash": Part(LEASHES, range(10), in_world),
    "tour": Part(TOURS, range(10), in_world),
    "acrobot": Part({"Acrobot-v1": ACROBOT}, range(5), control),
}


def probe(part: Part, arm: str) -> dict[str, float]:
    """Two iterations, each looked at."""
    config = part.arms[arm]
    if isinstance(config, PPOConfig):
        short = replace(config, total_steps=2 * config.environments * config.steps, evaluate_every=1)
    else:
        short = replace(config, iterations=2, evaluate_every=1)
    return dict(flatten(part.run(arm, short), "step"))


def arms(parts: list[str]) -> list[Arm]:
    """What the parts compute."""
    return [
        Arm(
            {"part": name, "arm": arm},
            {"config": config, "world's kl_coef": KL_COEF},
            PARTS[name].seeds,
            lambda seed, part=PARTS[name], arm=arm, config=config: part.run(arm, replace(config, seed=seed)),
            lambda part=PARTS[name], arm=arm: probe(part, arm),
        )
        for name in parts
        for arm, config in PARTS[name].arms.items()
    ]


if __name__ == "__main__":
    chosen = options(__doc__, lambda parser: parser.add_argument("--part", choices=tuple(PARTS)))
    torch.set_num_threads(1)
    compute(RESULTS, arms([chosen.part] if chosen.part else list(PARTS)), chosen.seeds, chosen.dry_run)
