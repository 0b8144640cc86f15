"""Checks of the exercises of chapter 05.

Each compares a function with the definition: on a case small enough for paper, on random cases with junk at padding,
and on a property. When something differs, the usual mistakes are tried on the same inputs, and the message names the
one that gives the same. Those of the two clipped losses stand in `clipped_losses`.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from rlhf_lab.classroom.checks.clipped_losses import (
    EPSILON,
    RANDOM_CASES,
    check_clipped_surrogate,
    check_value_loss,
    compare_numbers,
    mean_over,
    random_tokens,
)
from rlhf_lab.classroom.checks.comparing import exercise, spoil
from rlhf_lab.maths.mdp import TabularMDP, expected_return, occupancy, policy_evaluation

__all__ = ["check_clipped_surrogate", "check_gauges", "check_performance_difference", "check_value_loss"]


# -- the two gauges ---------------------------------------------------------------------------------------------------
def _gauges(log_probs: Tensor, old_log_probs: Tensor, mask: Tensor, clip_epsilon: float) -> tuple[Tensor, Tensor]:
    change = log_probs - old_log_probs
    outside = ((change.exp() - 1).abs() > clip_epsilon).double()
    return mean_over(change.exp() - 1 - change, mask), mean_over(outside, mask)


@exercise
def check_gauges(function: Callable[..., tuple]) -> None:
    """Check `gauges(log_probs, old_log_probs, mask, clip_epsilon)` -> (approximate KL, clip fraction).

    The first is the mean over the mask of k3, which estimates KL(old || new) from samples of the old policy; the second
    the share of real tokens whose ratio is outside the band.

    Raises:
        AssertionError: with the first case that fails and what usually causes it.
    """
    hint = "with x = log new - log old: the mean of exp(x) - 1 - x, and the share with |exp(x) - 1| > epsilon"
    ratios = torch.tensor([[1.5, 1.5, 1.23, 1.21, 1.21, 0.5, 1.05, 0.95, 9.0]]).double()
    old, mask = torch.full_like(ratios, -2.0), ratios < 9
    label = ", ".join(f"{ratio:g}" for ratio in ratios[mask].tolist())
    cases = [(f"ratios {label} and a padded token", (old + ratios.log(), old, mask, EPSILON))]
    for seed in range(RANDOM_CASES):
        now, before, _, real = random_tokens(seed)
        cases.append((f"random tokens {seed}, junk at padding", (now, before, real, (EPSILON, 0.3)[seed % 2])))
    cases.append(("the same policy twice: both are 0", (old, old, mask, EPSILON)))
    for case, inputs in cases:
        expected, spoiled = torch.stack(_gauges(*inputs)), (*spoil(inputs[2], *inputs[:2]), *inputs[2:])
        for i, (part, table) in enumerate((("approximate KL", _KL_FAULTS), ("clip fraction", _FRACTION_FAULTS))):
            call = lambda *x, i=i: _pair(function(*x))[i]  # noqa: E731
            faults = {cause: partial(fault, *inputs) for cause, fault in table.items()}
            label = f"{case}, epsilon {inputs[-1]}"
            part = f"gauges, {part}"
            compare_numbers(part, label, call, expected[i], faults, hint, inputs=inputs, spoiled=spoiled)
    _check_exact_kl(function, hint)
    print(f"gauges: passed (2 cases by hand, {RANDOM_CASES} random ones, NaN at padding, the exact KL of two laws)")


def _pair(got: object) -> tuple[Tensor, Tensor]:
    got = list(got) if isinstance(got, Tensor | np.ndarray) and got.ndim else got
    if not isinstance(got, tuple | list) or len(got) != 2:
        raise TypeError("expected two numbers, the approximate KL and the clip fraction")
    kl, fraction = got
    return torch.as_tensor(kl), torch.as_tensor(fraction)


def _check_exact_kl(function: Callable, hint: str) -> None:
    """A batch in which every action comes as often as the old policy says: k3 has the exact KL as its mean."""
    old, new = torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([0.2, 0.3, 0.5]).double()
    actions = torch.tensor([[0, 0, 0, 0, 0, 1, 1, 1, 2, 2]])
    exact = (old * (old / new).log()).sum()
    call = lambda: _pair(function(new.log()[actions], old.log()[actions], actions >= 0, EPSILON))[0]  # noqa: E731
    faults = {"the other direction, KL(new || old)": lambda: (new * (new / old).log()).sum()}
    compare_numbers(
        "gauges, approximate KL", "laws (5, 3, 2) / 10 and (2, 3, 5) / 10, exact KL", call, exact, faults, hint
    )


_KL_FAULTS = {
    "the other way round: 1/ratio - 1 + log ratio would be right for samples of the new policy": lambda n, o, m, e: (
        mean_over((o - n).exp() - 1 - (o - n), m)
    ),
    "k1: unbiased too, but single batches come out negative; the exercise asks for k3": lambda n, o, m, e: mean_over(
        o - n, m
    ),
    "the sign: this is log new - log old, whose mean is minus the KL": lambda n, o, m, e: mean_over(n - o, m),
    "k2, half the squared log-ratio: biased; the exercise asks for k3": lambda n, o, m, e: mean_over(
        (n - o).square() / 2, m
    ),
    "- 1 is forgotten: at equal policies it must be 0": lambda n, o, m, e: mean_over((n - o).exp() - (n - o), m),
    "the mask is missing: padding counts": lambda n, o, m, e: _gauges(n, o, torch.ones_like(m), e)[0],
    "this is the sum; divide by the number of real tokens": lambda n, o, m, e: _gauges(n, o, m, e)[0] * m.sum(),
    "the two numbers are swapped": lambda n, o, m, e: _gauges(n, o, m, e)[1],
}
_FRACTION_FAULTS = {
    "the log-ratio is compared with epsilon; compare the ratio's distance from 1": lambda n, o, m, e: mean_over(
        ((n - o).abs() > e).double(), m
    ),
    "only ratios above the band are counted; below counts too": lambda n, o, m, e: mean_over(
        ((n - o).exp() > 1 + e).double(), m
    ),
    "only ratios below the band are counted; above counts too": lambda n, o, m, e: mean_over(
        ((n - o).exp() < 1 - e).double(), m
    ),
    "the share inside the band and not outside": lambda n, o, m, e: 1 - _gauges(n, o, m, e)[1],
    "the ratio is upside down: new over old": lambda n, o, m, e: mean_over((((o - n).exp() - 1).abs() > e).double(), m),
    "the mask is missing: padding counts": lambda n, o, m, e: _gauges(n, o, torch.ones_like(m), e)[1],
    "a share is between 0 and 1; this is in percent": lambda n, o, m, e: 100 * _gauges(n, o, m, e)[1],
    "a count and not a share": lambda n, o, m, e: _gauges(n, o, m, e)[1] * m.sum(),
}


# -- performance difference -------------------------------------------------------------------------------------------
def _process(seed: int, gamma: float, states: int = 4, actions: int = 3) -> tuple[TabularMDP, Tensor, Tensor]:
    """A random process that ends with probability 0.2 in every step, and two policies."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    moves = torch.zeros(states + 1, actions, states + 1, dtype=torch.float64)
    moves[:states, :, :states] = 0.8 * draw(states, actions, states).softmax(-1)
    moves[:states, :, -1], moves[-1, :, -1] = 0.2, 1
    rewards, start = draw(states + 1, actions), torch.ones(states + 1).double() / states
    rewards[-1] = start[-1] = 0
    policy, old_policy = (draw(states + 1, actions).softmax(-1) for _ in range(2))
    return TabularMDP(moves, rewards, start, gamma), policy, old_policy


@exercise
def check_performance_difference(function: Callable[[TabularMDP, Tensor, Tensor], Tensor]) -> None:
    """Check `performance_difference(process, policy, old_policy)` -> J(policy) - J(old_policy), by the lemma.

    The last case tells the lemma from a difference of two returns: the first step pays 1e15 whatever one does. That
    drops out of the advantages, and in the difference it swallows the digits that count.

    Raises:
        AssertionError: with the first case that fails and what usually causes it.
    """
    name = "performance_difference"
    hint = "the sum over states and actions of new visits * new policy * old advantages"
    hand = TabularMDP(*_two_cells(), gamma=0.5)
    often, right = torch.tensor([[0.25, 0.75]] * 3).double(), torch.tensor([[0.0, 1.0]] * 3).double()
    cases = [("two cells, gamma 1/2, from going right with probability 3/4 to always right", (hand, right, often))]
    for gamma in (0.9, 1.0):
        cases += [(f"random process {seed}, gamma {gamma}", _process(seed, gamma)) for seed in range(RANDOM_CASES)]
    for case, inputs in cases:
        expected = _difference(*inputs)
        faults = {cause: partial(fault, *inputs) for cause, fault in _DIFFERENCE_FAULTS.items()}
        compare_numbers(name, case, function, expected, faults, hint, inputs=inputs)
    process, policy, _ = _process(0, 0.9)
    compare_numbers(name, "the same policy twice", function, 0.0, {}, hint, inputs=(process, policy, policy))
    rich = TabularMDP(*_two_cells(entrance=1e15), gamma=0.5)
    often, right = (torch.cat([torch.full((1, 2), 0.5).double(), law]) for law in (often, right))
    inputs = rich, right, often
    by_lemma = f"{hint}, Q minus V in each state first; two returns of 1e15 have no digits left for their difference"
    compare_numbers(name, "an entrance that pays 1e15 to all", function, _lemma(*inputs), {}, by_lemma, inputs=inputs)
    print(f"{name}: passed (a case by hand, {2 * RANDOM_CASES} random ones, 0 for the same policy, a rich entrance)")


def _two_cells(entrance: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """The chain of two cells and its end; an entrance that pays comes before the first cell."""
    moves, rewards = torch.zeros(3, 2, 3).double(), torch.zeros(3, 2).double()
    moves[0, 0, 0] = moves[0, 1, 1] = moves[1, 0, 0] = moves[1, 1, 2] = moves[2, :, 2] = 1
    rewards[1, 1] = 1
    if entrance:
        moves = torch.nn.functional.pad(moves, (1, 0, 0, 0, 1, 0))
        rewards = torch.nn.functional.pad(rewards, (0, 0, 1, 0))
        moves[0, :, 1], rewards[0] = 1, entrance
    return moves, rewards, torch.eye(len(rewards))[0]


def _advantages(process: TabularMDP, policy: Tensor) -> Tensor:
    values = policy_evaluation(process, policy)
    return process.q_values(values) - values[:, None]


def _lemma(process: TabularMDP, policy: Tensor, old_policy: Tensor) -> Tensor:
    return _weighted(process, policy, policy, _advantages(process, old_policy))


def _difference(process: TabularMDP, policy: Tensor, old_policy: Tensor) -> Tensor:
    return expected_return(process, policy) - expected_return(process, old_policy)


def _weighted(process: TabularMDP, visitor: Tensor, chooser: Tensor, numbers: Tensor) -> Tensor:
    return (occupancy(process, visitor)[:, None] * chooser * numbers).sum()


_DIFFERENCE_FAULTS = {
    "the visits of the old policy: that is the surrogate, and only close": lambda m, p, o: _weighted(
        m, o, p, _advantages(m, o)
    ),
    "the sign: it is the new return minus the old one": lambda m, p, o: expected_return(m, o) - expected_return(m, p),
    "the old policy's actions: its advantages have mean 0 under itself": lambda m, p, o: _weighted(
        m, p, o, _advantages(m, o)
    ),
    "the advantages of the new policy: their mean under it is 0": lambda m, p, o: _weighted(m, p, p, _advantages(m, p)),
    "Q-values and not advantages: the values have to be subtracted": lambda m, p, o: _weighted(
        m, p, p, m.q_values(policy_evaluation(m, o))
    ),
    "the new policy's probabilities are missing: it is a mean over actions": lambda m, p, o: _weighted(
        m, p, torch.ones_like(p), _advantages(m, o)
    ),
    "the visits are missing: every state counts the same": lambda m, p, o: (p * _advantages(m, o)).sum(),
    "the start's law in the place of the visits: only the first step counts": lambda m, p, o: (
        m.start[:, None] * p * _advantages(m, o)
    ).sum(),
    "visits that add up to 1: the lemma has plain visits, their sum is the length of an episode": lambda m, p, o: (
        _weighted(m, p, p, _advantages(m, o)) / occupancy(m, p).sum()
    ),
}
