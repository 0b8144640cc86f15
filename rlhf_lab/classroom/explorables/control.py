"""Explorables of the tools of control: epsilon in PPO's clip, lambda in GAE, the discount gamma.

For each: the exact numbers as functions of the dials, the scene that shows them, and the plan of the explorable.
"""

from collections.abc import Sequence
from functools import cache

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
    Band,
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
from rlhf_lab.maths.mdp import TabularMDP, value_iteration
from rlhf_lab.maths.objectives import clipped_surrogate_objective
from rlhf_lab.maths.returns import gae


def _doubles(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


# -- epsilon in PPO's clip -------------------------------------------------------------------------------------------
def clip_curve(ratios: Tensor, advantage: float, epsilon: float) -> tuple[Tensor, Tensor]:
    """Objective of one token at each ratio [N], and its slope in the ratio, from autograd.

    Example:
        >>> value, slope = clip_curve(torch.tensor([0.5, 1.0, 1.5]), 1.0, epsilon=0.2)
        >>> value.tolist(), slope.tolist()
        ([0.5, 1.0, 1.2], [1.0, 1.0, 0.0])
    """
    log_probs = ratios.log().requires_grad_(True)  # of a token that had probability 1; only the ratio counts
    rows = (log_probs[None], torch.zeros(1, len(ratios)).to(ratios), torch.full((1, len(ratios)), advantage).to(ratios))
    value = clipped_surrogate_objective(*rows, epsilon)[0]
    (by_log,) = torch.autograd.grad(value.sum(), log_probs)
    return value.detach(), by_log / ratios  # d/d ratio = d/d log ratio divided by the ratio


def _clip_panel(advantage: float, epsilon: float, ratio: float) -> tuple[Panel, float]:
    ratios = torch.linspace(0.01, 2, 50, dtype=torch.float64)
    edge = 1 + epsilon if advantage > 0 else 1 - epsilon
    ratios = torch.cat([ratios, _doubles(edge)]).sort().values
    value, _ = clip_curve(ratios, advantage, epsilon)
    (at,), (slope,) = (found.tolist() for found in clip_curve(_doubles(ratio), advantage, epsilon))
    flat = ratios >= edge if advantage > 0 else ratios <= edge
    x, y = ratios.tolist(), value.tolist()
    level = edge * advantage
    low = -0.1 if advantage > 0 else -2.1
    marks: list[Mark] = [
        Band(1 - epsilon, 1 + epsilon, POLICY),
        Line(x, [r * advantage for r in x], REFERENCE, DASHED, 1.6),
        Line(x, y, POLICY, width=2.6),
        Line(ratios[flat].tolist(), value[flat].tolist(), REWARD, width=4.5),
        Points([ratio], [at], REWARD if slope == 0 else POLICY, 6),
        Text(1.97 if advantage > 0 else 0.04, level, "gradient 0", REWARD, "end" if advantage > 0 else "start", -16),
        Text(
            *((1.7, 1.82) if advantage > 0 else (0.3, -0.22)),
            "without the clip",
            GREY,
            "end" if advantage > 0 else "start",
        ),
        Text(1, low, "1 ± ε", POLICY, "middle", 6),
    ]
    ticks = [0, 0.5, 1, 1.5, 2] if advantage > 0 else [-2, -1.5, -1, -0.5, 0]
    axes = (
        Axis("ratio ρ of new to old probability", 0, 2, [0, 0.5, 1, 1.5, 2]),
        Axis("objective", low, low + 2.2, ticks),
    )
    return Panel(f"Advantage {'+' if advantage > 0 else '−'}1", *axes, marks), slope


def clip_scene(epsilon: float, ratio: float) -> Scene:
    """Objective of one token for advantage +1 and -1, and the slope at one ratio."""
    (up, slope_up), (down, slope_down) = (_clip_panel(sign, epsilon, ratio) for sign in (1.0, -1.0))
    gradient_up, gradient_down = ("0" if slope == 0 else "not clipped" for slope in (slope_up, slope_down))
    says = (
        f"At ratio {ratio:.2f} the gradient of a token of advantage +1 is {gradient_up}, that of a token of advantage "
        f"−1 is {gradient_down}. The band is {1 - epsilon:.2f} to {1 + epsilon:.2f}."
    )
    return Scene([up, down], says)


CLIP = Plan(
    "epsilon in PPO's clip",
    "L = min( ρ A, clip(ρ, 1 − {epsilon}, 1 + {epsilon}) A )   at ratio ρ = {ratio}",
    [
        Dial("epsilon", "epsilon", steps(0.05, 0.6, 0.01), 0.2),
        Dial("ratio", "ratio", steps(0.02, 1.98, 0.02), 1.3),
    ],
    clip_scene,
    [{"epsilon": 0.1}, {"epsilon": 0.2}, {"epsilon": 0.4}],
    "Clipped objective of one token against the ratio for epsilon 0.1, 0.2 and 0.4. For advantage +1 it is flat above "
    "1 + epsilon, for advantage −1 below 1 − epsilon; on the other side of the band the gradient stays.",
)


# -- lambda in GAE ---------------------------------------------------------------------------------------------------
REPLY = 24  # tokens of the reply whose last one is paid
LAMBDAS = [*steps(0, 0.95, 0.05), 0.96, 0.97, 0.98, 0.99, 1.0]
BATCH = 32  # replies of a gradient estimate


def reward_reach(lam: float) -> list[float]:
    """Advantage of each of 24 tokens when the last is paid 1 and the critic says 0 everywhere, gamma 1.

    Example:
        >>> reward_reach(0.5)[-3:]
        [0.25, 0.5, 1.0]
    """
    discounts = torch.ones(1, REPLY, dtype=torch.float64)
    discounts[0, -1] = 0
    rewards = 1 - discounts
    values, mask = torch.zeros(1, REPLY + 1, dtype=torch.float64), torch.ones(1, REPLY, dtype=torch.bool)
    return gae(rewards, values, discounts, mask, lam)[0].tolist()


@cache
def _gae_world() -> tuple[TokenWorld, Tensor]:
    """64 replies of six tokens, paid at the end, and the logits of a policy."""
    number = torch.arange(64, dtype=torch.float64)
    ones = torch.tensor([[n >> t & 1 for t in range(6)] for n in range(64)]).sum(1)
    world = TokenWorld(2, 6, ones / 3 + 0.6 * (number * number).sin())
    return world, 0.5 * torch.arange(world.num_prefixes * 2, dtype=torch.float64).cos().view(1, -1, 2)


@cache
def gae_errors(critic_error: float) -> dict[str, list[float]]:
    """Bias, noise and their root mean square, for lambda from 0 to 1, in % of the length of the true gradient.

    The estimate is the mean over 32 replies of the sum of advantage times score function. Its mean and its variance
    are sums over all 64 replies. The critic is the exact value plus a fixed pattern of the given size.

    Example:
        >>> errors = gae_errors(0.0)
        >>> max(errors["bias"]) < 1e-9, errors["error"][0] < errors["error"][-1]    # exact critic: lambda 0 is best
        (True, True)
    """
    world, logits = _gae_world()
    law, truth = world.law(logits), world.reward_gradient(logits).flatten()
    pattern = (3.0 * torch.arange(world.num_prefixes, dtype=torch.float64)).sin() * 2**0.5
    critic = world.values(law)[0] + critic_error * pattern
    values = torch.cat([critic[world.prefix_ids], torch.zeros(64, 1)], 1)  # [64, 7]
    discounts = torch.ones(64, 6, dtype=torch.float64)
    discounts[:, -1] = 0
    rewards = (1 - discounts) * world.scores[0][:, None]
    # The score function of every token of every reply: onehot(a) - pi(. | prefix) in the row of the prefix.
    score = torch.nn.functional.one_hot(world.sequences, 2) - logits.softmax(-1)[0, world.prefix_ids]  # [64, 6, 2]
    found: dict[str, list[float]] = {"bias": [], "noise": [], "error": []}
    for lam in LAMBDAS:
        advantages = gae(rewards, values, discounts, world.mask, lam)
        parts = advantages[..., None] * score
        mean = torch.zeros(world.num_prefixes, 2, dtype=torch.float64)
        mean.index_add_(0, world.prefix_ids.flatten(), (law[0, :, None, None] * parts).flatten(0, 1))
        bias = (mean.flatten() - truth).square().sum()
        # The tokens of a reply lie in different rows of the table, so the squares of their parts add up.
        variance = (law[0] @ parts.square().sum((1, 2)) - mean.square().sum()) / BATCH
        for name, square in (("bias", bias), ("noise", variance), ("error", bias + variance)):
            found[name].append(100 * float(square.sqrt() / truth.norm()))
    return found


def gae_lambda_scene(lam: float, critic_error: float) -> Scene:
    """How far back one reward reaches, and bias and noise of the gradient, against lambda."""
    tokens, reach, errors = list(range(1, REPLY + 1)), reward_reach(lam), gae_errors(critic_error)
    marks: list[Mark] = [
        Bars(tokens, [1.0] * REPLY, 0.8, REFERENCE, filled=False),
        Bars(tokens, reach, 0.8, POLICY),
        Text(1, 1.06, "only the last is paid; outline: λ = 1", GREY),
    ]
    left = Panel(
        "Advantage of each token",
        Axis("token of the reply", 0.3, REPLY + 0.7, [1, 6, 12, 18, 24]),
        Axis("advantage", 0, 1.25, [0, 0.25, 0.5, 0.75, 1]),
        marks,
    )
    looks = [("error", POLICY, ()), ("bias", REWARD, DASHED), ("noise", VALUE, (5, 1, 1, 1))]
    keys = [mark for i, look in enumerate(looks) for mark in key(0.26 + 0.25 * i, 175, 0.08, *look)]
    lines = [Line(LAMBDAS, errors[name], colour, dash, 2.2) for name, colour, dash in looks]
    at, best = LAMBDAS.index(lam), errors["error"].index(min(errors["error"]))
    sizes = {"error": 6.5, "bias": 3.5, "noise": 3.5}  # where two meet, both are seen
    dots = [Points([lam], [errors[name][at]], colour, sizes[name]) for name, colour, _ in looks]
    right = Panel(
        f"Error of the gradient of {BATCH} replies",
        Axis("λ", 0, 1, [0, 0.25, 0.5, 0.75, 1]),
        Axis("% of its length", 0, 190, [0, 50, 100, 150]),
        [*lines, *dots, *keys],
    )
    says = (
        f"The first of {REPLY} tokens gets {reach[0]:.2f} of the reward. In the small world on the right the error "
        f"is {errors['error'][at]:.0f} % (bias {errors['bias'][at]:.0f} %, noise {errors['noise'][at]:.0f} %); the "
        f"lowest is {errors['error'][best]:.0f} %, at λ = {LAMBDAS[best]:.2f}."
    )
    return Scene([left, right], says)


GAE_LAMBDA = Plan(
    "lambda in GAE",
    "Â = δ₁ + λ δ₂ + λ² δ₃ + …   with λ = {lam}  and a critic that errs by {critic_error}",
    [
        Dial("lam", "lambda", LAMBDAS, 0.95),
        Dial("critic_error", "error of the critic", steps(0, 0.5, 0.05), 0.3),
    ],
    gae_lambda_scene,
    [{"lam": 0.5}, {"lam": 0.95}, {"lam": 1.0}],
    "Advantages of 24 tokens of which only the last is paid, and the error of a gradient estimate against lambda."
    " At lambda 0.5 the reward reaches some five tokens back, at 0.95 the first token gets 0.31 of it, at 1 all "
    "of it. The bias falls to 0 as lambda grows, the noise rises, and the error is lowest at 0.75.",
)


# -- gamma -----------------------------------------------------------------------------------------------------------
ROOMS, NEAR, FAR = 9, 1.0, 3.0


@cache
def corridor(gamma: float) -> tuple[list[float], list[bool]]:
    """Values of nine rooms in a row under the best policy, and where it goes right; solved by value iteration.

    The door at the left end pays 1, the one at the right end 3, and both end the episode.

    Example:
        >>> values, right = corridor(0.5)
        >>> values[0], right.index(True)    # room 1 has the near door; from room 5 on the far one is worth the walk
        (1.0, 4)
    """
    moves, rewards = torch.zeros(ROOMS + 1, 2, ROOMS + 1), torch.zeros(ROOMS + 1, 2)
    for room in range(ROOMS):
        moves[room, 0, room - 1 if room else ROOMS] = 1
        moves[room, 1, room + 1] = 1  # from the last room into the end, which has the next number
    moves[ROOMS, :, ROOMS] = 1
    rewards[0, 0], rewards[ROOMS - 1, 1] = NEAR, FAR
    start = torch.nn.functional.one_hot(torch.tensor(0), ROOMS + 1)
    values, policy = value_iteration(TabularMDP(moves, rewards, start, gamma))
    return values[:ROOMS].tolist(), [bool(goes) for goes in policy[:ROOMS, 1]]


def _corridor_panel(values: Sequence[float], right: Sequence[bool]) -> Panel:
    rooms = list(range(1, ROOMS + 1))
    marks: list[Mark] = []
    for colour, way, arrow in ((REWARD, False, "←"), (POLICY, True, "→")):
        chosen = [(room, value) for room, value, goes in zip(rooms, values, right, strict=True) if goes == way]
        marks.append(Bars([room for room, _ in chosen], [value for _, value in chosen], 0.8, colour))
        marks += [Text(room, value, arrow, colour, "middle", 5) for room, value in chosen]
    names = ["1\npays 1", *map(str, rooms[1:-1]), f"{ROOMS}\npays 3"]
    x = Axis("room", 0.4, ROOMS + 0.6, rooms, names)
    return Panel("Value of a room, best way out", x, Axis("value", 0, 3.5, [0, 1, 2, 3]), marks)


def _weight_panel(gamma: float, horizon: float) -> Panel:
    ahead = list(range(31))
    weights = [gamma**k for k in ahead]
    marks: list[Mark] = [Line(ahead, weights, POLICY), Points(ahead, weights, POLICY, 2.2)]
    if horizon <= 30:
        anchor = "start" if horizon < 4 else "end" if horizon > 25 else "middle"
        marks += [
            Line([horizon, horizon], [0, 1.05], REFERENCE, DASHED, 1.6),
            Text(horizon, 1.1, f"1/(1 − γ) = {horizon:.1f}", GREY, anchor),
        ]
    x, y = Axis("k", 0, 30, [0, 5, 10, 15, 20, 25, 30]), Axis("γ to the power k", 0, 1.25, [0, 0.25, 0.5, 0.75, 1])
    return Panel("Weight of a reward in k steps", x, y, marks)


def discount_scene(gamma: float) -> Scene:
    """The best way through the corridor, and the weights of later rewards."""
    values, right = corridor(gamma)
    horizon = 1 / (1 - gamma) if gamma < 1 else float("inf")
    says = (
        f"From {sum(right)} of {ROOMS} rooms the best policy goes right, to the larger reward. In room 1 the far door "
        f"is worth {FAR * gamma ** (ROOMS - 1):.2f} and the near one {NEAR:.2f}. The effective horizon 1/(1 − γ) is "
        f"{f'{horizon:.1f} steps' if gamma < 1 else 'infinite'}."
    )
    return Scene([_corridor_panel(values, right), _weight_panel(gamma, horizon)], says)


DISCOUNT = Plan(
    "the discount gamma",
    "G = r₀ + γ r₁ + γ² r₂ + …   with γ = {gamma}",
    [Dial("gamma", "gamma", steps(0, 1, 0.01), 0.8)],
    discount_scene,
    [{"gamma": 0.5}, {"gamma": 0.8}, {"gamma": 0.95}],
    "Values of nine rooms between a near door that pays 1 and a far one that pays 3, and the weight of later "
    "rewards. At gamma 0.5 four rooms go to the near door, at 0.8 two, at 0.95 none.",
)
