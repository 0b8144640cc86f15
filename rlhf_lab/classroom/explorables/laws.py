"""Explorables of laws over replies: beta in the optimum, temperature and top-k in sampling, n in best-of-n.

For each: the exact numbers as functions of the dials, the scene that shows them, and the plan of the explorable.
"""

from collections.abc import Callable
from functools import cache
from math import log

import numpy as np
import torch
from torch import Tensor

from rlhf_lab.classroom.explorables.draggable import (
    DASHED,
    GREY,
    POLICY,
    REFERENCE,
    REWARD,
    VALUE,
    Axis,
    Bars,
    Dial,
    Line,
    Mark,
    Panel,
    Plan,
    Points,
    Scene,
    Text,
    key,
    steps,
)  # fmt: skip
from rlhf_lab.maths.exact import TokenWorld

World = tuple[TokenWorld, Tensor]  # and the law or the logits of a policy


def _doubles(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def _pairs(reference: Tensor, law: Tensor) -> list[Mark]:
    """Two bars side by side at 1, 2, ...: the reference as an outline, the other one filled."""
    number = range(1, len(law) + 1)
    return [
        Bars([n - 0.2 for n in number], reference.tolist(), 0.38, REFERENCE, filled=False),
        Bars([n + 0.2 for n in number], law.tolist(), 0.38, POLICY),
    ]


# -- beta in the optimum ---------------------------------------------------------------------------------------------
BETAS = [
    0.05,
    0.06,
    0.07,
    0.08,
    0.1,
    0.12,
    0.15,
    0.18,
    0.2,
    0.25,
    0.3,
    0.35,
    0.4,
    0.5,
    0.6,
    0.7,
    0.8,
    1.0,
    1.2,
    1.5,
    2.0,
    3.0,
    5.0,
]


@cache
def _leash_world() -> World:
    """Eight replies of three tokens, and the reference's law, which likes the poor ones."""
    world = TokenWorld(2, 3, _doubles(0.0, 0.2, 0.3, 0.5, 0.6, 0.8, 0.9, 1.0))
    return world, _doubles(0.26, 0.14, 0.20, 0.12, 0.10, 0.09, 0.06, 0.03)[None]


def _reward_and_kl(world: TokenWorld, law: Tensor, ref_law: Tensor) -> tuple[float, float]:
    return world.expected_reward(law).item(), world.kl(law, ref_law).item()


@cache
def _frontier(make_world: Callable[..., World], *size: int) -> tuple[list[float], list[float]]:
    """KL and expected reward of the optimum for beta from large to small."""
    world, ref_law = make_world(*size)
    points = [_reward_and_kl(world, world.optimum(ref_law, beta), ref_law) for beta in np.geomspace(30, 0.004, 160)]
    return [kl for _, kl in points], [reward for reward, _ in points]


def leash_scene(beta: float) -> Scene:
    """The law of the optimum beside the reference, and its place on the frontier, where beta is the slope."""
    world, ref_law = _leash_world()
    law = world.optimum(ref_law, beta)
    reward, kl = _reward_and_kl(world, law, ref_law)
    ref_reward = world.expected_reward(ref_law).item()
    number = list(range(1, world.num_sequences + 1))
    bars = Panel(
        "Probability of each reply",
        Axis("reply, by its reward", 0.4, 8.6, number, [f"{score:.1f}" for score in world.scores[0].tolist()]),
        Axis("probability", 0, 0.85, [0, 0.2, 0.4, 0.6, 0.8]),
        [
            *_pairs(ref_law[0], law[0]),
            Text(0.6, 0.79, "□ reference", GREY),
            Text(0.6, 0.72, "■ optimum", POLICY),
        ],
    )
    kls, rewards = _frontier(_leash_world)
    top = min(3.6, kl + (1.07 - reward) / beta)  # where the tangent leaves the panel
    frontier = Panel(
        "The most reward for every KL",
        Axis("KL to the reference, nats", 0, 3.6, [0, 1, 2, 3]),
        Axis("expected reward", 0.3, 1.1, [0.4, 0.6, 0.8, 1.0]),
        [
            Line(kls, rewards, POLICY),
            Line([0.0, top], [reward - beta * kl, reward + beta * (top - kl)], REFERENCE, DASHED, 1.6),
            Points([0.0], [ref_reward], REFERENCE, 5),
            Points([kl], [reward], POLICY, 6),
            Text(0.12, ref_reward, "reference", GREY, up=-6),
            Text(3.5, 0.42, "optimum for every β", POLICY, "end"),
            Text(3.5, 0.35, "dashed: slope β", GREY, "end"),
        ],
    )
    value = reward - beta * kl
    says = (
        f"Expected reward {reward:.3f} (reference {ref_reward:.3f}), KL {kl:.3f} nats. Reward − β KL = {reward:.3f} − "
        f"{beta * kl:.3f} = {value:.3f} = β log Z, where the dashed line of slope β meets the axis."
    )
    return Scene([bars, frontier], says)


LEASH = Plan(
    "beta in the optimum",
    "π*(y) = π₀(y) exp( r(y) / {beta} ) / Z   with β = {beta}",
    [Dial("beta", "beta", BETAS, 0.3)],
    leash_scene,
    [{"beta": 0.1}, {"beta": 0.3}, {"beta": 1.0}],
    "Probabilities of eight replies under the reference and under the optimum, and the frontier of expected "
    "reward and KL. At beta 1 the optimum is close to the reference, at 0.1 most of it lies on the three best "
    "replies; at each point the slope of the frontier is beta.",
)


# -- temperature and top-k -------------------------------------------------------------------------------------------
TEMPERATURES = steps(0.2, 2.0, 0.05)
VOCABULARY = 6


@cache
def _sampling_world() -> World:
    """216 replies of three tokens out of six, and the logits of a policy."""
    number = torch.arange(VOCABULARY**3, dtype=torch.float64)
    world = TokenWorld(VOCABULARY, 3, (number * number).sin())
    logits = 1.2 * (2.3 * torch.arange(world.num_prefixes * VOCABULARY, dtype=torch.float64)).cos()
    logits = logits.view(1, -1, VOCABULARY)
    logits[0, 0] = _doubles(1.6, 1.1, 0.6, 0.1, -0.5, -1.2)
    return world, logits


def sampled_logits(logits: Tensor, temperature: float, top_k: int) -> Tensor:
    """Logits divided by the temperature, with all but the k largest of each row at minus infinity.

    Example:
        >>> sampled_logits(torch.tensor([2.0, 1.0, 0.0]), temperature=0.5, top_k=2).tolist()
        [4.0, 2.0, -inf]
    """
    least = logits.topk(top_k).values[..., -1:]
    return torch.where(logits >= least, logits / temperature, -torch.inf)


@cache
def gradient_cosines(top_k: int) -> dict[str, list[float]]:
    """Cosine of the used gradient with the true one for each temperature, as used and with the weights that repair it.

    Used: replies come from the sampled law, the score function from the scored one. Repaired: each reply is weighted
    with scored / sampled probability, which cannot bring back what top-k never draws.

    Example:
        >>> gradient_cosines(6)["used"][TEMPERATURES.index(1.0)]    # sampled as scored
        1.0
    """
    world, logits = _sampling_world()
    law, truth, scores = world.law(logits), world.reward_gradient(logits).flatten(), world.scores
    found: dict[str, list[float]] = {"used": [], "repaired": []}
    for temperature in TEMPERATURES:
        sampled = world.law(sampled_logits(logits, temperature, top_k))
        for name, weights in (("used", sampled), ("repaired", torch.where(sampled > 0, law, 0))):
            gradient = world.score_gradient(logits, weights * scores).flatten()
            found[name].append(torch.cosine_similarity(gradient, truth, dim=0).item())
    return found


def sampling_law_scene(temperature: float, top_k: float) -> Scene:
    """Next-token law as sampled and as scored, and the cosine of the gradient with the true one."""
    world, logits = _sampling_world()
    top_k = int(top_k)
    drawn = sampled_logits(logits, temperature, top_k)
    kl = world.kl(world.law(drawn), world.law(logits)).item()
    cosines, at = gradient_cosines(top_k), TEMPERATURES.index(temperature)
    number = list(range(1, VOCABULARY + 1))
    bars = Panel(
        "Probability of the first token",
        Axis("token", 0.4, VOCABULARY + 0.6, number, list("abcdef")),
        Axis("probability", 0, 1.0, [0, 0.25, 0.5, 0.75, 1]),
        [
            *_pairs(logits[0, 0].softmax(0), drawn[0, 0].softmax(0)),
            Text(1.9, 0.92, "□ scored: temperature 1, all tokens", GREY),
            Text(1.9, 0.83, "■ sampled", POLICY),
        ],
    )
    turns = Panel(
        "Cosine with the true gradient",
        Axis("temperature", 0.2, 2.0, [0.2, 0.5, 1, 1.5, 2]),
        Axis("cosine", 0, 1.12, [0, 0.25, 0.5, 0.75, 1]),
        [
            Line(TEMPERATURES, cosines["repaired"], VALUE, DASHED),
            Line(TEMPERATURES, cosines["used"], POLICY),
            Points([temperature], [cosines["repaired"][at]], VALUE, 5, filled=False),
            Points([temperature], [cosines["used"][at]], POLICY, 6),
            *key(0.6, 0.34, 0.16, "as used", POLICY),
            *key(0.6, 0.22, 0.16, "weighted by scored / sampled", VALUE, DASHED),
        ],
    )
    says = (
        f"KL of the sampled to the scored law of whole replies: {kl:.3f} nats. Cosine of the gradient with the true "
        f"one: {cosines['used'][at]:.3f}; with each reply weighted by scored / sampled probability "
        f"{cosines['repaired'][at]:.3f}."
    )
    return Scene([bars, turns], says)


SAMPLING_LAW = Plan(
    "temperature and top-k in the sampling law",
    "Sample from softmax(logits / {temperature}), top {top_k} of 6; score with softmax(logits)",
    [
        Dial("temperature", "temperature", TEMPERATURES, 1.0),
        Dial("top_k", "top-k", list(range(1, VOCABULARY + 1)), 6, "d"),
    ],
    sampling_law_scene,
    [{"temperature": 0.6}, {"temperature": 1.0}, {"temperature": 1.0, "top_k": 3}],
    "Probabilities of the first token as sampled and as scored, and the cosine of the gradient with the true one."
    " It is 1 only at temperature 1 without a cut; weights repair the temperature 0.6, and not the cut to three "
    "tokens.",
)


# -- n in best-of-n --------------------------------------------------------------------------------------------------
COUNTS = [*range(1, 17), 20, 24, 32, 48, 64, 96, 128]
REPLIES = 27


@cache
def _best_world(levels: int) -> World:
    """27 replies, the better the rarer, whose rewards from 0 to 1 take so many different values."""
    number = torch.arange(REPLIES)
    grades = (number * levels // REPLIES).double() / (levels - 1)
    return TokenWorld(3, 3, grades), (-0.08 * number.double()).softmax(0)[None]


@cache
def best_of_n_reward_and_kl(n: int, levels: int) -> tuple[float, float]:
    """Exact expected reward of best-of-n, and its exact KL to the reference.

    Example:
        >>> best_of_n_reward_and_kl(4, levels=2)    # good or bad: ties keep the KL far below log 4 - 3/4 = 0.636
        (0.664, 0.404)
    """
    world, ref_law = _best_world(levels)
    return _reward_and_kl(world, world.best_of_n(ref_law, n), ref_law)


def reward_at_kl(kl: float, levels: int) -> float:
    """Expected reward of the optimum that has this KL to the reference: the most that any policy can have there."""
    world, ref_law = _best_world(levels)
    low, high = 1e-3, 1e6  # the KL of the optimum falls as beta grows: halve the interval of log beta
    for _ in range(50):
        middle = (low * high) ** 0.5
        larger = world.kl(world.optimum(ref_law, middle), ref_law).item() > kl
        low, high = (middle, high) if larger else (low, middle)
    return world.expected_reward(world.optimum(ref_law, high)).item()


def best_of_n_scene(n: float, levels: float) -> Scene:
    """The law of best-of-n beside the reference, and its place under the frontier."""
    n, levels = int(n), int(levels)
    world, ref_law = _best_world(levels)
    law, (reward, kl) = world.best_of_n(ref_law, n), best_of_n_reward_and_kl(n, levels)
    formula = log(n) - (n - 1) / n
    number = list(range(1, REPLIES + 1))
    bars = Panel(
        "Probability of each reply",
        Axis("reply, from the worst to the best", 0.2, REPLIES + 0.8, [1, 9, 18, 27]),
        Axis("probability", 0, 0.8, [0, 0.2, 0.4, 0.6, 0.8]),
        [
            Bars(number, law[0].tolist(), 0.8, POLICY),
            Line(number, ref_law[0].tolist(), REFERENCE, DASHED),
            Text(1, 0.74, f"■ best of {n}", POLICY),
            *key(1, 0.69, 2, "reference", REFERENCE, DASHED),
        ],
    )
    kls, rewards = _frontier(_best_world, levels)
    others = [best_of_n_reward_and_kl(count, levels) for count in COUNTS]
    frontier = Panel(
        "Reward against KL",
        Axis("KL to the reference, nats", 0, 4.2, [0, 1, 2, 3, 4]),
        Axis("expected reward", 0.2, 1.08, [0.2, 0.4, 0.6, 0.8, 1.0]),
        [
            Line(kls, rewards, REFERENCE, DASHED, 1.8),
            Points([k for _, k in others], [r for r, _ in others], POLICY, 2.4),
            Line([kl, formula], [reward] * 2, REWARD, (), 1.4),
            Points([formula], [reward], REWARD, 5, filled=False),
            Points([kl], [reward], POLICY, 6),
            Text(2.05, 0.45, "●  best of n", POLICY),
            Text(2.05, 0.36, "○  at the KL of the formula", REWARD),
            *key(1.8, 0.29, 0.35, "optimum for every β", REFERENCE, DASHED),
        ],
    )
    says = (
        f"Best of {n}: expected reward {reward:.3f} at KL {kl:.3f} nats; the formula log n − (n − 1)/n "
        f"says {formula:.3f}. The optimum with the same KL has reward {reward_at_kl(kl, levels):.3f}."
    )
    return Scene([bars, frontier], says)


BEST_OF_N = Plan(
    "n in best-of-n",
    "Draw n = {n} replies, keep the best by a reward with {levels} levels",
    [Dial("n", "n", COUNTS, 4, "d"), Dial("levels", "levels of the reward", [2, 3, 5, 9, 27], 27, "d")],
    best_of_n_scene,
    [{"n": 4}, {"n": 64}, {"n": 64, "levels": 3}],
    "Probabilities of 27 replies under best-of-n, and expected reward against KL. With 27 levels of reward the "
    "exact KL is nearly that of the formula; at n 64 with three levels it is 1.98 nats where the formula says "
    "3.17. Best-of-n lies close under the optimum.",
)
