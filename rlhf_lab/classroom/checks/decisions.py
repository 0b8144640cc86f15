"""Checks of the exercises of chapter 01.

Each compares a function with the definition: on a case small enough for paper, on random cases, and on a property.
When something differs, the usual mistakes are tried on the same inputs, and the message names the one that gives the
same answer.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from random import Random

import torch
from torch import Tensor

from rlhf_lab.classroom.checks.comparing import (
    as_tensor,
    compare,
    exercise,
    fail,
    numbers,
    odd_tensors,
    same_tensors,
)
from rlhf_lab.maths.mdp import TabularMDP, chain, policy_evaluation, value_iteration

RANDOM_CASES = 30
STATES, ACTIONS = 4, 3
BACKWARDS = "the wrong axis of transitions: it sums over the states one comes from"


_odd = partial(odd_tensors, shape="the shape: over which axis is the sum?")
_compare = partial(compare, same=same_tensors, odd=_odd)


def _random_process(seed: int) -> TabularMDP:
    """4 states and 3 actions; every step may lead into the last state, which is the end."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.rand(shape, generator=generator, dtype=torch.float64)  # noqa: E731
    moves, rewards = draw(STATES, ACTIONS, STATES), 2 * draw(STATES, ACTIONS) - 1
    moves[-1], rewards[-1] = torch.eye(STATES)[-1], 0.0
    start = torch.full((STATES,), 1 / STATES)
    return TabularMDP(moves / moves.sum(2, keepdim=True), rewards, start, 0.5 + 0.45 * float(draw(1)))


def _random_table(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + 1000), dtype=torch.float64)


# -- by hand ----------------------------------------------------------------------------------------------------------
BY_HAND = 2e-3  # three decimals are enough
Pair = Callable[[], tuple[float, float]]


ROUNDED = "too few digits: give three decimals, or fractions"


@exercise
def check_chain_values(function: Pair) -> None:
    """Check `chain_values()`: V(0) and V(1) of a chain of two cells, gamma 1/2, right with probability 3/4.

    They are put into Bellman's equations of the two cells; the right answer is not shown.

    Raises:
        AssertionError: with the first equation that they do not solve, and the mistake that gives the same numbers.
    """
    name, got = "chain_values", numbers("chain_values", function(), 2, "V(0), V(1)")
    process, policy = chain(2, gamma=0.5), torch.tensor([[0.25, 0.75]] * 3)
    sides = (policy * process.q_values(torch.tensor([*got, 0.0]).double())).sum(dim=1).tolist()
    cause = "write one equation a cell: what the step pays, and 1/2 times what the next cell is worth"
    solved = lambda p, gamma: policy_evaluation(chain(2, gamma=gamma), torch.tensor([p] * 3)).tolist()[:2]  # noqa: E731
    faults = {
        "the two values are swapped: cell 1 is nearer to the end": solved([0.25, 0.75], 0.5)[::-1],
        "gamma is forgotten": solved([0.25, 0.75], 1.0),
        "left and right have the same probability here; the policy goes right with 3/4": solved([0.5, 0.5], 0.5),
        "left has 3/4 here; the policy goes right with 3/4": solved([0.75, 0.25], 0.5),
    }
    near = math.dist(got, solved([0.25, 0.75], 0.5)) < 10 * BY_HAND
    cause = next((c for c, pair in faults.items() if math.dist(got, pair) < BY_HAND), ROUNDED if near else cause)
    for cell, (left, right) in enumerate(zip(got, sides[:2], strict=True)):
        if not abs(left - right) < BY_HAND:
            sides_differ = f"{right:.4f}, the right side of its equation with your two values"
            fail(name, f"the equation of cell {cell}", f"V({cell}) = {left:.4f}", sides_differ, cause)
    print(f"{name}: passed (both equations hold)")


def _first_replies(buyers: float, price: float, wrong: float) -> list[float]:
    """Value of bookshop, library, asking and not knowing as the first reply."""
    return [buyers - wrong * (1 - buyers), (1 - buyers) - wrong * buyers, 1 - price, 0.0]


@exercise
def check_asking_range(function: Pair) -> None:
    """Check `asking_range()`: between which shares of buyers asking is best, if it costs 0.5 and the wrong place 2.

    Both ends are tried from both sides; the right answer is not shown.

    Raises:
        AssertionError: with the share where the range is wrong and what the first replies are worth there.
    """
    name, ends = "asking_range", numbers("asking_range", function(), 2, "the lower end, the upper end")
    ask = lambda b, price=0.5, wrong=2.0: max(_first_replies(b, price, wrong)) == 1 - price  # noqa: E731
    others = {
        "these are the prices of section 6": (0.2, 1.0),
        "the dearer question is forgotten: asking costs 0.5 here": (0.2, 2.0),
        "the dearer mistake is forgotten: the wrong place costs 2 here": (0.5, 1.0),
    }
    steps = [i / 1000 for i in range(1001)]
    cause = "the range ends where asking is worth as much as the better of the two guesses"
    for fault, prices in others.items():
        asked = [b for b in steps if ask(b, *prices)]
        cause = fault if math.dist(ends, (asked[0], asked[-1])) < 2 * BY_HAND else cause
    cause = "the lower end comes first" if ends[0] > ends[1] else cause
    asked = [b for b in steps if ask(b)]
    cause = ROUNDED if math.dist(ends, (asked[0], asked[-1])) < 10 * BY_HAND else cause
    for share in (end + side for end in ends for side in (-BY_HAND, BY_HAND)):
        inside, worth = ends[0] < share < ends[1], [f"{value:+.3f}" for value in _first_replies(share, 0.5, 2.0)]
        if inside != ask(share) or not 0 <= ends[0] < ends[1] <= 1:
            right = f"bookshop {worth[0]}, library {worth[1]}, ask {worth[2]}, do not know {worth[3]}"
            case = f"a share of {share:.3f} buyers"
            fail(name, case, "ask" if inside else "do not ask", right, cause)
    print(f"{name}: passed (both ends, from both sides)")


# -- discounted return ------------------------------------------------------------------------------------------------
def _discounted(rewards: Sequence[float], gamma: float, first: int = 0) -> float:
    return sum(gamma ** (t + first) * reward for t, reward in enumerate(rewards))


@exercise
def check_discounted_return(function: Callable[[Sequence[float], float], float]) -> None:
    """Check `discounted_return(rewards, gamma)`: the sum over t of gamma^t times the t-th reward, t from 0.

    Raises:
        AssertionError: with the first case that fails and what usually causes it.
    """
    name, hint = "discounted_return", "the t-th reward counts gamma to the power t, and the first one has t = 0"
    random = Random(0)
    cases = [([2.0, 4.0, 16.0], 0.25), ([-0.2, 1.0, 0.0], 1.0), ([3.0, 5.0], 0.0)]
    for _ in range(RANDOM_CASES):
        rewards = [round(random.uniform(-2, 2), 2) for _ in range(random.randint(1, 6))]
        cases.append((rewards, round(random.uniform(0.1, 0.99), 2)))
    for rewards, gamma in cases:
        case, expected = f"rewards {rewards}, gamma {gamma}", _discounted(rewards, gamma)
        faults = _return_faults(rewards, gamma)
        _compare(name, case, function, expected, faults, hint, inputs=(rewards, gamma))
    print(f"{name}: passed (3 cases by hand, {RANDOM_CASES} random ones)")


def _return_faults(rewards: Sequence[float], gamma: float) -> dict[str, Callable[[], float]]:
    later = "gamma is applied once to everything that follows; every further step counts gamma again"
    return {
        "off by one: this is gamma^(t+1); the first reward has t = 0, so it counts gamma^0 = 1": lambda: _discounted(
            rewards, gamma, 1
        ),
        "gamma is forgotten: it is the plain sum": lambda: sum(rewards),
        "the order: the last reward is discounted most, not least": lambda: _discounted(rewards[::-1], gamma),
        later: lambda: rewards[0] + gamma * sum(rewards[1:]),
        "gamma times t and not gamma to the power t": lambda: (
            rewards[0] + sum(gamma * t * reward for t, reward in enumerate(rewards))
        ),
        "the mean and not the sum": lambda: _discounted(rewards, gamma) / len(rewards),
    }


# -- effective horizon ------------------------------------------------------------------------------------------------
def _steps(gamma: float, share: float) -> int:
    steps, weight = 0, 1.0
    while weight > share * (1 + 1e-12):  # a power that should hit the share may miss it by rounding
        steps, weight = steps + 1, weight * gamma
    return steps


@exercise
def check_effective_horizon(function: Callable[[float, float], int]) -> None:
    """Check `effective_horizon(gamma, share)`: the smallest whole n with gamma^n <= share, both in (0, 1).

    Raises:
        AssertionError: with the first case that fails and what usually causes it.
    """
    name, hint = "effective_horizon", "gamma^n <= share means n >= log(share) / log(gamma), rounded up"
    random = Random(1)
    cases = [(0.9, 0.2), (0.5, 0.25), (0.99, 0.01)]
    cases += [(round(random.uniform(0.3, 0.995), 3), round(random.uniform(0.01, 0.6), 3)) for _ in range(RANDOM_CASES)]
    for gamma, share in cases:
        faults = _horizon_faults(gamma, share)
        case, expected = f"gamma {gamma}, share {share}", _steps(gamma, share)
        _compare(name, case, function, expected, faults, hint, inputs=(gamma, share))
    print(f"{name}: passed (3 cases by hand, {RANDOM_CASES} random ones)")


def _horizon_faults(gamma: float, share: float) -> dict[str, Callable[[], float]]:
    exact, steps = math.log(share) / math.log(gamma), _steps(gamma, share)
    return {
        "one too few: gamma^n is still above the share": lambda: steps - 1,
        "one too many: is the loop counting once more after it is done?": lambda: steps + 1,
        "a power that hits the share is enough, as gamma^n <= share: round up, and add nothing": lambda: (
            math.floor(exact + 1e-9) + 1
        ),
        "rounded to the nearest whole number: round up, or gamma^n may still be above the share": lambda: round(exact),
        "not rounded up: steps are whole numbers": lambda: exact,
        "the rule of thumb 1 / (1 - gamma), which knows nothing of the share": lambda: 1 / (1 - gamma),
        "1 / (1 - gamma) rounded, which knows nothing of the share": lambda: round(1 / (1 - gamma)),
        "gamma loses a constant amount a step here; it loses a constant factor": lambda: math.ceil(
            (1 - share) / (1 - gamma)
        ),
        "the sign: both logarithms are negative, so their quotient is positive": lambda: -math.ceil(exact),
        "the quotient is upside down": lambda: math.ceil(1 / exact),
    }


# -- one step of Bellman's equation -----------------------------------------------------------------------------------
@exercise
def check_bellman_backup(function: Callable[[Tensor, Tensor, float, Tensor, Tensor], Tensor]) -> None:
    """Check `bellman_backup(transitions [S, A, S], rewards [S, A], gamma, policy [S, A], values [S])` -> [S].

    Raises:
        AssertionError: with the first case that fails and what usually causes it.
    """
    name, hint = "bellman_backup", "the mean over actions, by the policy, of reward + gamma * mean of the next values"
    moves = torch.zeros(2, 2, 2, dtype=torch.float64)
    moves[0, 0, 0] = moves[0, 1, 1] = moves[1, :, 1] = 1
    rewards, values = torch.tensor([[0.0, 2.0], [0.0, 0.0]]).double(), torch.tensor([6.0, 2.0]).double()
    policy = torch.tensor([[0.75, 0.25], [0.5, 0.5]]).double()
    cases = [("stay for 0 or leave for 2, gamma 0.5, values 6 and 2", (moves, rewards, 0.5, policy, values))]
    for seed in range(RANDOM_CASES):
        mdp, policy = _random_process(seed), _random_table(seed, STATES, ACTIONS).softmax(dim=1)
        now = (mdp.transitions, mdp.rewards, mdp.gamma, policy)
        cases.append((f"random process {seed}, random values", (*now, _random_table(-seed, STATES))))
        cases.append(
            (f"random process {seed}, its true values, which must come back", (*now, policy_evaluation(mdp, policy)))
        )
    for case, inputs in cases:
        transitions, rewards, gamma, policy, values = inputs
        expected = (policy * _q(transitions, rewards, gamma, values)).sum(dim=1)
        _compare(name, case, function, expected, _backup_faults(*inputs), hint, inputs=inputs)
    print(f"{name}: passed (a case by hand, {RANDOM_CASES} random ones, the true values are its fixed point)")


def _q(transitions: Tensor, rewards: Tensor, gamma: float, values: Tensor) -> Tensor:
    return rewards + gamma * torch.einsum("sat,t->sa", transitions, values)


def _backup_faults(
    transitions: Tensor, rewards: Tensor, gamma: float, policy: Tensor, values: Tensor
) -> dict[str, Callable[[], Tensor]]:
    q_values, backwards = _q(transitions, rewards, gamma, values), torch.einsum("tas,t->sa", transitions, values)
    reward, after = (policy * rewards).sum(1), torch.einsum("sa,sat,t->s", policy, transitions, values)
    return {
        "gamma is forgotten: what comes later counts less": lambda: reward + after,
        "the maximum over actions; that is the best policy's equation, here the policy chooses": lambda: q_values.amax(
            dim=1
        ),
        "every action has the same weight: the policy's probabilities are forgotten": lambda: q_values.mean(dim=1),
        "the sum over actions without the policy's probabilities": lambda: q_values.sum(dim=1),
        "the reward is discounted too; it is paid now": lambda: gamma * (reward + after),
        "the reward is missing": lambda: gamma * after,
        "the next values are missing: it is the reward alone": lambda: reward,
        "the sign: the next values are subtracted": lambda: reward - gamma * after,
        BACKWARDS: lambda: (policy * (rewards + gamma * backwards)).sum(dim=1),
        "the value of the state itself and not of the next one": lambda: reward + gamma * values,
    }


# -- greedy improvement -----------------------------------------------------------------------------------------------
@exercise
def check_greedy_policy(function: Callable[[Tensor, Tensor, float, Tensor], Tensor]) -> None:
    """Check `greedy_policy(transitions [S, A, S], rewards [S, A], gamma, values [S])` -> [S, A], 1 at the best action.

    Raises:
        AssertionError: with the first case that fails and what usually causes it.
    """
    name, hint = "greedy_policy", "one look ahead, reward + gamma * mean of the next values; then 1 at its largest"
    moves = torch.zeros(3, 2, 3, dtype=torch.float64)
    moves[0, 0, 1] = moves[0, 1, 2] = moves[1, :, 2] = moves[2, :, 2] = 1
    rewards = torch.tensor([[0.0, 1.0], [0.5, 3.0], [0.1, 0.0]]).double()
    cases = [
        ("wait for 3 or take 1, gamma 0.5", (moves, rewards, 0.5, torch.tensor([1.5, 3.0, 0.0]).double())),
        ("wait for 3 or take 1, gamma 0.2", (moves, rewards, 0.2, torch.tensor([1.0, 3.0, 0.0]).double())),
    ]
    for seed in range(RANDOM_CASES):
        mdp = _random_process(seed)
        values, rewards = 3 * _random_table(seed, STATES), _random_table(-seed, STATES, ACTIONS)
        rewards[-1] = 0
        case = f"random process {seed}, equally good actions in its last state"
        cases.append((case, (mdp.transitions, rewards, mdp.gamma, values)))
    for case, inputs in cases:
        q_values = _q(*inputs)
        same, odd = partial(_same_policy, q_values), partial(_odd_policy, q_values)
        faults = _greedy_faults(*inputs)
        compare(name, case, function, _one_hot(q_values), faults, hint, same=same, odd=odd, inputs=inputs)
    print(f"{name}: passed (2 cases by hand, {RANDOM_CASES} random ones)")


def _greedy_faults(
    transitions: Tensor, rewards: Tensor, gamma: float, values: Tensor
) -> dict[str, Callable[[], Tensor]]:
    q_values, backwards = _q(transitions, rewards, gamma, values), torch.einsum("tas,t->sa", transitions, values)
    best = q_values.amax(dim=1, keepdim=True)
    return {
        "the worst action: argmax, not argmin": lambda: _one_hot(-q_values),
        "the rewards alone: it is short-sighted, what follows is missing": lambda: _one_hot(rewards),
        "the next values alone: the reward is missing": lambda: _one_hot(q_values - rewards),
        "gamma is forgotten: what comes later counts less": lambda: _one_hot(rewards + transitions @ values),
        BACKWARDS: lambda: _one_hot(rewards + gamma * backwards),
        "a softmax: a greedy policy puts everything on one action": lambda: q_values.softmax(dim=1),
        "the largest values and not a law with 1 at their place": lambda: q_values * (q_values == best),
        "equally good actions get 1 each, and their row is no law: 1 for one of them, or an equal share": lambda: (
            q_values == best
        ),
        "the best state of each action: the maximum runs over the wrong axis": lambda: (
            q_values == q_values.amax(dim=0)
        ).double(),
    }


def _one_hot(q_values: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(q_values.argmax(dim=1), q_values.shape[1]).double()


def _same_policy(q_values: Tensor, got: object, expected: Tensor) -> bool:
    """Where actions are equally good, the probability may lie on any of them."""
    best = q_values == q_values.amax(dim=1, keepdim=True)
    gathered = lambda p: torch.cat([p * ~best, (p * best).sum(dim=1, keepdim=True)], dim=1)  # noqa: E731
    got = as_tensor(got)
    shaped = isinstance(got, Tensor) and got.shape == q_values.shape
    return shaped and same_tensors(gathered(got), gathered(expected))


def _odd_policy(q_values: Tensor, got: object, expected: Tensor) -> str | None:
    numbers = as_tensor(got)
    if isinstance(numbers, Tensor) and numbers.shape == q_values.shape[:1]:
        return "one number a state; a policy is a law, [S, A], with a row of probabilities for each state"
    return _odd(got, expected)


# -- shaping ----------------------------------------------------------------------------------------------------------
@exercise
def check_shaped_rewards(function: Callable[[Tensor, Tensor, float, Tensor], Tensor]) -> None:
    """Check `shaped_rewards(transitions [S, A, S], rewards [S, A], gamma, potential [S])` -> [S, A].

    Raises:
        AssertionError: with the first case that fails and what usually causes it.
    """
    name, hint = "shaped_rewards", "rewards + gamma * mean potential of the next state - potential of this state"
    moves = torch.zeros(3, 2, 3, dtype=torch.float64)
    moves[0, 0, 0] = moves[0, 1, 1] = moves[1, 0, 0] = moves[1, 1, 2] = moves[2, :, 2] = 1
    rewards, potential = torch.zeros(3, 2).double(), torch.tensor([1.0, 2.0, 0.0]).double()
    rewards[1, 1] = 1
    cases = [("a chain of 2 with gamma 0.5 and potential 1, 2, 0", (moves, rewards, 0.5, potential))]
    for seed in range(RANDOM_CASES):
        mdp, potential = _random_process(seed), _random_table(seed, STATES)
        potential[-1] = 0
        cases.append((f"random process {seed}", (mdp.transitions, mdp.rewards, mdp.gamma, potential)))
    for case, inputs in cases:
        transitions, rewards, gamma, potential = inputs
        expected = rewards + gamma * transitions @ potential - potential[:, None]
        _compare(name, case, function, expected, _shaping_faults(*inputs), hint, inputs=inputs)
    for seed in range(RANDOM_CASES):
        _check_same_best_policy(name, function, seed, hint)
    print(f"{name}: passed (a case by hand, {RANDOM_CASES} random ones, the same best policy in all of them)")


def _shaping_faults(
    transitions: Tensor, rewards: Tensor, gamma: float, potential: Tensor
) -> dict[str, Callable[[], Tensor]]:
    after, here = transitions @ potential, potential[:, None].expand_as(rewards)
    backwards = torch.einsum("tas,t->sa", transitions, potential)
    return {
        "the sign: what is gained is the next potential minus this one": lambda: rewards + here - gamma * after,
        "gamma is forgotten: it belongs to the next potential": lambda: rewards + after - here,
        "gamma multiplies both potentials; it belongs to the next one alone": lambda: rewards + gamma * (after - here),
        "this state's potential is not paid back, so going in a circle pays": lambda: rewards + gamma * after,
        "this state's potential is paid and nothing is paid back": lambda: rewards + here,
        BACKWARDS: lambda: rewards + gamma * backwards - here,
        "the rewards themselves are missing": lambda: gamma * after - here,
    }


def _check_same_best_policy(name: str, function: Callable, seed: int, hint: str) -> None:
    """The best values move by the potential and the best actions stay."""
    mdp, potential = _random_process(seed), _random_table(seed, STATES)
    potential[-1] = 0

    def solved() -> Tensor:
        shaped = torch.as_tensor(function(mdp.transitions, mdp.rewards, mdp.gamma, potential)).double()
        values, policy = value_iteration(TabularMDP(mdp.transitions, shaped, mdp.start, mdp.gamma))
        return torch.cat([(values + potential)[:, None], policy], dim=1)[:-1]

    values, policy = value_iteration(mdp)
    expected = torch.cat([values[:, None], policy], dim=1)[:-1]
    _compare(name, f"best values + potential, and best policy, of random process {seed}", solved, expected, {}, hint)
