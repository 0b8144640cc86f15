"""The study behind chapter 05: what limits PPO's step, three algorithms against a known optimum, and Acrobot.

    python run.py bench ppo_ablation                       every run that data/results/ppo_ablation.csv does not hold
    python run.py bench ppo_ablation --part tour           one part
    python run.py bench ppo_ablation --part tour --seeds 0 1

limit    a TokenWorld, PPO with a clip, with a KL penalty and with neither, each at eight learning rates; score: exact
         shortfall from the best policy
epochs   the same world with fewer batches, 4 or 20 epochs on each, with a clip of 0.2 and without; score as above
momentum as `limit`, with a clip of 0.2 and without, Adam with beta1 0.9 and with 0; score as above
tour     the same world, by REINFORCE, actor-critic and PPO; score as above
acrobot  PPO on Acrobot-v1; score: greedy return, mean of 20 episodes

The parts `... tuning` are the runs on seeds from 100 on by which settings were chosen; in each of them every arm has as
many runs as the others. The first three parts are computed side by side, all arms and seeds at once, and only the
end of each run is stored: a test holds them to `train_ppo`. One core, some ten minutes in all.
"""

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

os.environ.setdefault("TQDM_DISABLE", "1")

import numpy as np
import torch
from rows import RESULTS as FOLDER, Arm, compute, flatten, options
from torch import Tensor

from rlhf_lab.experience.episodes import play
from rlhf_lab.maths.exact import TokenWorld
from rlhf_lab.maths.kl import kl_k1, kl_k3
from rlhf_lab.maths.returns import gae
from rlhf_lab.models.policies import TabularPolicy, greedy
from rlhf_lab.recipes.ppo import PPOConfig, train_ppo
from rlhf_lab.recipes.reinforce import ReinforceConfig, train_reinforce
from rlhf_lab.training.history import History
from rlhf_lab.training.randomness import generator_for, minibatches
from rlhf_lab.worlds.envs import TabularEnv, token_world_mdp

RESULTS = FOLDER / "ppo_ablation.csv"
LOGGED = ("approx_kl", "entropy", "clip_fraction")

# -- acrobot ----------------------------------------------------------------------------------------------------------
ACROBOT = PPOConfig(total_steps=49_152, environments=16, learning_rate=3e-3, evaluate_every=6)


def control(env: str, config: PPOConfig) -> list[dict]:
    """PPO on a registered environment, looked at greedily: a row for every look."""
    act = lambda policy: {"score": float(np.mean(play(env, greedy(policy), episodes=20, seed=10_000 + config.seed)))}  # noqa: E731
    return looks(train_ppo(env, config, evaluate=act).history, 1)


# -- a world of 625 replies -------------------------------------------------------------------------------------------
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


def law_of(world: TokenWorld, logits: Tensor) -> Tensor:
    """[1, N] probability of every reply, from the logits of all states."""
    return world.law(logits.detach().double()[None, :-1])


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


def tour(config: ReinforceConfig | PPOConfig) -> list[dict]:
    """The exact shortfall from the best policy under the leash: kl_coef KL(policy || best)."""
    world, reference = world_and_reference()
    best = world.optimum(law_of(world, reference.logits), KL_COEF)
    process, policy = token_world_mdp(world), TabularPolicy(world.num_prefixes + 1, 5)
    policy.logits.data = reference.logits.clone()
    short = lambda policy: {"score": KL_COEF * float(world.kl(law_of(world, policy.logits), best))}  # noqa: E731
    learn, scale = (train_ppo, 1) if isinstance(config, PPOConfig) else (train_reinforce, 4 * BATCH)
    run = learn(lambda: TabularEnv(process), config, policy=policy, reference=reference, evaluate=short)
    return looks(run.history, scale)


def looks(history: History, scale: int) -> list[dict]:
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


# -- many runs of PPO side by side ------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Run:
    """PPO in the world of 625 replies; beta1 is the decay of Adam's first moment, which train_ppo leaves at 0.9."""

    config: PPOConfig
    beta1: float = 0.9


class SideBySide:
    """`tour` of R runs at once: the arithmetic of train_ppo, with an axis of runs in front.

    The runs may differ in seed, learning rate, clip, KL penalty and beta1. Each draws from a generator of its own what
    it would draw alone, so that it is the same run up to rounding.
    """

    def __init__(self, runs: Sequence[Run]):
        self.runs, self.config = runs, runs[0].config
        column = lambda name: torch.tensor([getattr(run.config, name) for run in runs])[:, None]  # noqa: E731
        self.rate, self.clip, self.penalty = map(column, ("learning_rate", "clip_epsilon", "kl_penalty"))
        self.beta1 = torch.tensor([run.beta1 for run in runs])[:, None]
        self.generators = [generator_for(run.config.seed, "ppo") for run in runs]
        self.world, reference = world_and_reference()
        self.best = self.world.optimum(law_of(self.world, reference.logits), KL_COEF)
        process = token_world_mdp(self.world)
        self.after, self.rewards = process.transitions.argmax(-1), process.rewards.float()  # a token leads to one state
        self.reference = reference.logits.detach().log_softmax(-1)
        self.logits = reference.logits.detach().repeat(len(runs), 1, 1).requires_grad_()  # [R, S, A]
        self.values = torch.zeros(self.logits.shape[:2], requires_grad=True)  # [R, S]
        self.moments = [(torch.zeros_like(x), torch.zeros_like(x)) for x in (self.logits, self.values)]
        self.row, self.steps = torch.arange(len(runs))[:, None], 0

    def histories(self) -> list[list[dict]]:
        """The looks of every run."""
        config, histories = self.config, [History() for _ in self.runs]
        size = config.environments * config.steps
        iterations = -(-config.total_steps // size)
        self._look(histories, 0, {})
        for iteration in range(1, iterations + 1):
            batch, logged = self._batch(), []
            orders = [minibatches(size, config.minibatch, config.epochs, generator) for generator in self.generators]
            for rows in zip(*orders, strict=True):
                logged.append(self._update([column.gather(1, torch.stack(rows)) for column in batch]))
            means = dict(zip(LOGGED, torch.stack(logged).mean(0).T.tolist(), strict=True))  # [R] of each
            looked = iteration % config.evaluate_every == 0 or iteration == iterations
            self._look(histories, iteration * size, means, looked)
        return [looks(history, 1) for history in histories]

    def _look(self, histories: list[History], step: int, means: dict, looked: bool = True) -> None:
        for i, history in enumerate(histories):
            row = {name: numbers[i] for name, numbers in means.items()}
            if looked:
                row["score"] = KL_COEF * float(self.world.kl(law_of(self.world, self.logits[i]), self.best))
            history.add(step=step, **row)

    @torch.no_grad()
    def _batch(self) -> list[Tensor]:
        """States, actions, old log-probs, advantages and returns of each run's replies, [R, N]."""
        states, actions = [torch.zeros(len(self.runs), self.config.environments, dtype=torch.long)], []
        laws = self.logits.log_softmax(-1)
        for _ in range(self.config.steps):
            probs = laws[self.row, states[-1]].softmax(-1)  # [R, B, A], as Categorical has them
            drawn = [torch.multinomial(p, 1, generator=g) for p, g in zip(probs, self.generators, strict=True)]
            actions.append(torch.cat(drawn, dim=1).T)
            states.append(self.after[states[-1], actions[-1]])
        seen, taken = torch.stack(states, dim=-1), torch.stack(actions, dim=-1)  # [R, B, T + 1] and [R, B, T]
        run, here = self.row[..., None], seen[..., :-1]
        old, values = laws[run, here, taken], self.values[run, seen]
        paid = self.rewards[here, taken] - KL_COEF * kl_k1(old, self.reference[here, taken])
        goes_on = torch.ones_like(old[0]).index_fill(1, torch.tensor(self.config.steps - 1), 0).repeat(len(old), 1)
        rows = paid.flatten(0, 1), values.flatten(0, 1), goes_on, torch.ones_like(goes_on, dtype=torch.bool)
        advantages = gae(*rows, self.config.gae_lambda).view_as(old)
        columns = here, taken, old, advantages, advantages + values[..., :-1]
        return [column.flatten(1) for column in columns]

    def _update(self, batch: list[Tensor]) -> Tensor:
        """One step on a minibatch of every run; [R, 3] of what is logged."""
        states, actions, old, advantages, returns = batch
        laws = self.logits.log_softmax(-1)[self.row, states]  # [R, N, A]
        now = laws.gather(-1, actions[..., None]).squeeze(-1)
        ratio, divergence = (now - old).exp(), kl_k3(old, now)
        white = (advantages - advantages.mean(1, keepdim=True)) / (advantages.var(1, keepdim=True) + 1e-8).sqrt()
        near = ratio.clamp(1 - self.clip, 1 + self.clip)
        gain = torch.minimum(ratio * white, near * white) - self.penalty * divergence
        errors = (self.values[self.row, states] - returns).square() / 2
        loss = self.config.value_coef * errors.mean(1) - gain.mean(1)
        self._step(torch.autograd.grad(loss.sum(), [self.logits, self.values]))
        outside = ((ratio - 1).abs() > self.clip).float()
        entropy = -(laws.exp() * laws).sum(-1)
        return torch.stack([x.detach().mean(1) for x in (divergence, entropy, outside)], dim=1)

    @torch.no_grad()
    def _step(self, gradients: Sequence[Tensor]) -> None:
        """Adam, on gradients that are cut to a length for each run."""
        self.steps += 1
        length = torch.cat([g.flatten(1) for g in gradients], dim=1).norm(dim=1, keepdim=True)
        scale = (self.config.max_grad_norm / (length + 1e-6)).clamp(max=1)
        for weights, gradient, (first, second) in zip((self.logits, self.values), gradients, self.moments, strict=True):
            gradient, shape = gradient.flatten(1) * scale, weights.shape
            mean, square = first.view(len(length), -1), second.view(len(length), -1)
            mean.mul_(self.beta1).add_((1 - self.beta1) * gradient)
            square.mul_(0.999).add_(0.001 * gradient.square())
            root = (square / (1 - 0.999**self.steps)).sqrt() + self.config.adam_epsilon
            weights -= (self.rate * mean / (1 - self.beta1**self.steps) / root).view(shape)


# -- the parts --------------------------------------------------------------------------------------------------------
MEASURING, TUNING, SHORT_TUNING = range(20), range(100, 120), range(100, 105)  # seeds


def in_a_hurry(rate: float, beta1: float = 0.9, **limit: float) -> Run:
    """Half the replies of the tour and ten epochs on each batch, so that something can go wrong."""
    settings = {"total_steps": 2 * BATCH * ITERATIONS, "epochs": 10, "evaluate_every": ITERATIONS}
    return Run(replace(algorithm("PPO", rate), **settings, **limit), beta1)


def short_of_data(rate: float, epochs: int, clip_epsilon: float) -> Run:
    """Twelve batches, and a number of epochs on each."""
    settings = {"total_steps": 4 * BATCH * 12, "epochs": epochs, "evaluate_every": 12, "clip_epsilon": clip_epsilon}
    return Run(replace(algorithm("PPO", rate), **settings))


STEP_RATES = (0.003, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1)
WIDTHS, WEIGHTS = (0.03, 0.05, 0.1, 0.2), (0.3, 1.0, 3.0, 10.0)  # candidates at each rate
CLIP = (0.2, 0.2, 0.2, 0.2, 0.03, 0.03, 0.03, 0.1)  # the best of the tuning seeds at each rate
PENALTY = (0.3, 3.0, 1.0, 3.0, 3.0, 3.0, 10.0, 10.0)
CLIPPED = {f"clip {e:g}, rate {r:g}": in_a_hurry(r, clip_epsilon=e) for r in STEP_RATES for e in WIDTHS}
PENALISED = {
    f"KL penalty {w:g}, rate {r:g}": in_a_hurry(r, clip_epsilon=math.inf, kl_penalty=w)
    for r in STEP_RATES
    for w in WEIGHTS
}
FREE = {f"neither, rate {r:g}": in_a_hurry(r, clip_epsilon=math.inf) for r in STEP_RATES}
CHOSEN = [f"clip {e:g}, rate {r:g}" for e, r in zip(CLIP, STEP_RATES, strict=True)]
CHOSEN += [f"KL penalty {w:g}, rate {r:g}" for w, r in zip(PENALTY, STEP_RATES, strict=True)]
LIMITS = {name: run for name, run in (CLIPPED | PENALISED).items() if name in CHOSEN} | FREE
CLIP_OR_NOT = {"clip 0.2": 0.2, "no clip": math.inf}
EPOCHS = {
    f"{epochs} epochs, {name}, rate {r:g}": short_of_data(r, epochs, clip)
    for epochs in (4, 20)
    for name, clip in CLIP_OR_NOT.items()
    for r in STEP_RATES
}
MOMENTUM = {
    f"beta1 {beta1:g}, {name}, rate {r:g}": in_a_hurry(r, beta1, clip_epsilon=clip)
    for beta1 in (0.9, 0.0)
    for name, clip in CLIP_OR_NOT.items()
    for r in STEP_RATES
}
TOURS = {name: algorithm(name, rate) for name, rate in RATE.items()}
TOUR_CANDIDATES = {f"{name} {rate:g}": algorithm(name, rate) for name in RATE for rate in RATES}
TOGETHER = {  # part -> arms and seeds of what is computed side by side
    "limit tuning": [(CLIPPED | PENALISED, SHORT_TUNING), (FREE, TUNING)],  # `neither` has four times the seeds
    "epochs tuning": [(EPOCHS, SHORT_TUNING)],
    "limit": [(LIMITS, MEASURING)],
    "epochs": [(EPOCHS, range(10))],
    "momentum": [(MOMENTUM, range(10))],
}
ALONE = {  # part -> arms, seeds, and what makes the rows of a run from its arm and its settings
    "tour tuning": (TOUR_CANDIDATES, range(100, 103), lambda arm, config: tour(config)),
    "tour": (TOURS, range(10), lambda arm, config: tour(config)),
    "acrobot": ({"Acrobot-v1": ACROBOT}, range(5), control),
}
PARTS = (*TOGETHER, *ALONE)


def grouped(runs: dict[tuple[str, int], Run]) -> dict[tuple[str, int], list[dict]]:
    """The looks of every run; those with as many batches and epochs are computed side by side."""
    shape = lambda run: (run.config.total_steps, run.config.epochs)  # noqa: E731
    found = {}
    for wanted in {shape(run) for run in runs.values()}:
        names = [name for name, run in runs.items() if shape(run) == wanted]
        found |= dict(zip(names, SideBySide([runs[name] for name in names]).histories(), strict=True))
    return found


@cache
def together(part: str) -> dict[tuple[str, int], list[dict]]:
    """(arm, seed) -> rows, for all of a part."""
    return grouped(
        {
            (name, seed): replace(run, config=replace(run.config, seed=seed))
            for runs, seeds in TOGETHER[part]
            for name, run in runs.items()
            for seed in seeds
        }
    )


@cache
def probes(part: str) -> dict[tuple[str, int], list[dict]]:
    """(arm, 0) -> rows of two iterations of two epochs at most, each looked at, for all of a part."""
    size = 4 * BATCH
    short = lambda config: replace(config, total_steps=2 * size, evaluate_every=1, epochs=min(2, config.epochs))  # noqa: E731
    runs = {name: run for runs, _ in TOGETHER[part] for name, run in runs.items()}
    return grouped({(name, 0): replace(run, config=short(run.config)) for name, run in runs.items()})


def probe_alone(part: str, arm: str) -> dict[str, float]:
    """Two iterations, each looked at."""
    runs, _, run = ALONE[part]
    config = runs[arm]
    if isinstance(config, PPOConfig):
        short = replace(config, total_steps=2 * config.environments * config.steps, evaluate_every=1)
    else:
        short = replace(config, iterations=2, evaluate_every=1)
    return dict(flatten(run(arm, short), "step"))


def arms(parts: Sequence[str]) -> list[Arm]:
    """What the parts compute."""
    return [arm for part in parts for arm in (arms_together(part) if part in TOGETHER else arms_alone(part))]


def arms_together(part: str) -> Iterator[Arm]:
    for runs, seeds in TOGETHER[part]:
        for name, run in runs.items():
            rows = lambda seed, name=name: together(part)[name, seed][-1:]  # noqa: E731
            probe = lambda name=name: dict(flatten(probes(part)[name, 0], "step"))  # noqa: E731
            yield Arm({"part": part, "arm": name}, {"run": run, "world's kl_coef": KL_COEF}, seeds, rows, probe)


def arms_alone(part: str) -> Iterator[Arm]:
    runs, seeds, run = ALONE[part]
    for name, config in runs.items():
        rows = lambda seed, name=name, config=config: run(name, replace(config, seed=seed))  # noqa: E731
        settings = {"config": config, "world's kl_coef": KL_COEF}
        yield Arm({"part": part, "arm": name}, settings, seeds, rows, lambda name=name: probe_alone(part, name))


if __name__ == "__main__":
    chosen = options(__doc__, lambda parser: parser.add_argument("--part", choices=PARTS))
    torch.set_num_threads(1)
    compute(RESULTS, arms([chosen.part] if chosen.part else PARTS), chosen.seeds, chosen.dry_run)
