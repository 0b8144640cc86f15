"""Checks of the exercises of chapter 03.

Each compares a function with the definition: on a case small enough for paper, on random cases, and on a property.
When something differs, the usual mistakes are tried on the same inputs, and the message names the one that gives the
same answer.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from rlhf_lab.classroom.checks.comparing import (
    compare,
    exercise,
    expect_data,
    fail,
    numbers,
    odd_tensors,
    same_tensors,
)

RANDOM_CASES = 30
STATES, ACTIONS = 5, 3


_odd = partial(odd_tensors, shape="the shape: over which axis is the maximum or the sum?")
_compare = partial(compare, same=same_tensors, odd=_odd)


def _normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _whole(seed: int, count: int, below: int) -> list[int]:
    return torch.randint(below, (count,), generator=torch.Generator().manual_seed(seed + 500)).tolist()


# -- by hand ----------------------------------------------------------------------------------------------------------
BY_HAND = 2e-3  # three decimals are enough
THREE_TARGETS = ("Q-learning", "SARSA", "expected SARSA")


@exercise
def check_three_targets(function: Callable[[], tuple[float, float, float]]) -> None:
    """Check `three_targets()`: the new Q(s0, 0) with Q-learning, with SARSA and with expected SARSA.

    gamma, rate and epsilon 1/2, Q(s1, .) = (2, 4), paid 1, next action 0. The right numbers are not shown.

    Raises:
        AssertionError: with the first number that is another one, and the mistake that gives it.
    """
    name = "three_targets"
    got, values = numbers(name, function(), 3, ", ".join(THREE_TARGETS)), torch.tensor([2.0, 4.0]).double()
    later = [float(values.max()), float(values[0]), float(_law(values, 0.5) @ values)]
    moved = lambda x, rate=0.5, gamma=0.5, paid=1.0: rate * (paid + gamma * x)  # noqa: E731
    for what, number, x in zip(THREE_TARGETS, got, later, strict=True):
        wrong = {
            "the rate is forgotten: the value moves half of the way": moved(x, rate=1.0),
            "gamma is forgotten: what comes later counts half": moved(x, gamma=1.0),
            "the reward is missing": moved(x, paid=0.0),
            "epsilon is shared by the other actions alone; a random draw may hit the best one too": moved(3.0),
        } | {f"this is the target of {other}": moved(y) for other, y in zip(THREE_TARGETS, later, strict=True)}
        if not abs(number - moved(x)) < BY_HAND:
            cause = next(
                (c for c, value in wrong.items() if abs(number - value) < BY_HAND), "only the last part differs"
            )
            fail(name, what, number, "another number", cause)
    print(f"{name}: passed (all three agree with their targets)")


@exercise
def check_coins(function: Callable[[int], tuple[float, float]]) -> None:
    """Check `coins(m)`: mean of the largest of m fair coins of +1 and -1, and mean of the double estimator.

    Raises:
        AssertionError: with the first m for which all coins, listed, say something else.
    """
    name = "coins"
    for m in (1, 2, 3, 6):
        got = numbers(name, function(m), 2, "mean of the largest, mean of the double estimator")
        coins = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * m).reshape(-1, m)
        largest = float(coins.amax(1).mean())
        for what, number, right in zip(("largest", "double estimator"), got, (largest, 0.0), strict=True):
            if not abs(number - right) < BY_HAND:
                wrong = {
                    "the probability that some coin shows +1; where none does the largest is -1": (1 + largest) / 2,
                    "one coin too many or too few: all m show -1 with probability 2 to the power -m": 1 - 2.0**-m,
                    "the two numbers are swapped: the largest comes first": 0.0 if what == "largest" else largest,
                }
                cause = next((c for c, x in wrong.items() if abs(number - x) < BY_HAND), "list all coins for m = 2")
                fail(name, f"{m} replies, the {what}", number, "another number", cause)
    print(f"{name}: passed (all coins listed, for m of 1, 2, 3 and 6)")


# -- one update of Q-learning -----------------------------------------------------------------------------------------
def _with(q: Tensor, s: int, a: int, value: Tensor | float) -> Tensor:
    new = q.clone()
    new[s, a] = value
    return new


@exercise
def check_q_update(function: Callable[..., Tensor]) -> None:
    """Check `q_update(q [S, A], s, a, r, s_next, terminated, rate, gamma)` -> a new table [S, A].

    Raises:
        AssertionError: with the first case that fails and what usually causes it.
    """
    name, hint = "q_update", "Q(s, a) moves by rate times (r + gamma * the largest Q of s_next - Q(s, a)), others stay"
    small = torch.tensor([[1.5, 0.5], [4.0, 3.0], [2.0, 2.0]]).double()
    cases = [
        ("from state 0 by action 1 to state 1, for 3, rate 1/2, gamma 1/2", (small, 0, 1, 3.0, 1, False, 0.5, 0.5)),
        ("from state 1 by action 1, for 1, terminated, rate 1/2, gamma 1/2", (small, 1, 1, 1.0, 2, True, 0.5, 0.5)),
    ]
    for seed in range(RANDOM_CASES):
        (s, s_next), (a,), (rate, gamma) = _whole(seed, 2, STATES), _whole(seed + 99, 1, ACTIONS), (0.3, 0.8)
        q, r, over = _normal(seed, STATES, ACTIONS), float(_normal(seed + 99, 1)), seed % 3 == 0
        end = ", terminated" if over else ""
        cases.append((f"random table {seed}{end}, rate 0.3, gamma 0.8", (q, s, a, r, s_next, over, rate, gamma)))
    for case, inputs in cases:
        q, s, a, r, s_next, over, rate, gamma = inputs
        expected = _with(q, s, a, q[s, a] + rate * (r + gamma * q[s_next].max() * (not over) - q[s, a]))
        _compare(name, case, function, expected, _update_faults(*inputs), hint, inputs=inputs)
    print(f"{name}: passed (2 cases by hand, {RANDOM_CASES} random ones, the table given is left alone)")


def _update_faults(
    q: Tensor, s: int, a: int, r: float, s_next: int, over: bool, rate: float, gamma: float
) -> dict[str, Callable[[], Tensor]]:
    going_on, old = float(not over), q[s, a]
    put = lambda later, by=rate: _with(q, s, a, old + by * (r + later - old))  # noqa: E731
    return {
        "what comes after the end is counted: after a terminal step nothing follows": lambda: put(
            gamma * q[s_next].max()
        ),
        "gamma is forgotten: what comes later counts less": lambda: put(going_on * q[s_next].max()),
        "what follows is missing although the episode goes on; is `terminated` the wrong way round?": lambda: put(
            gamma * q[s_next].max() * (1 - going_on)
        ),
        "the next state's value is missing: it is the reward alone": lambda: put(0.0),
        "the same action in the next state and not the best one": lambda: put(gamma * going_on * q[s_next, a]),
        "the mean over the next actions and not the largest": lambda: put(gamma * going_on * q[s_next].mean()),
        "the largest value of the state that was left, and not of the next one": lambda: put(
            gamma * going_on * q[s].max()
        ),
        "the reward is discounted too; it is paid now": lambda: _with(
            q, s, a, old + rate * (gamma * (r + going_on * q[s_next].max()) - old)
        ),
        "the reward is missing": lambda: put(gamma * going_on * q[s_next].max() - r),
        "the rate is forgotten: the target replaces the old value": lambda: put(gamma * going_on * q[s_next].max(), 1),
        "the sign: the value moves away from its target": lambda: put(gamma * going_on * q[s_next].max(), -rate),
        "the old value is not taken off: rate times the target is added": lambda: _with(
            q, s, a, old + rate * (r + gamma * going_on * q[s_next].max())
        ),
        "the old value is not kept: it is rate times the TD error alone": lambda: _with(
            q, s, a, rate * (r + gamma * going_on * q[s_next].max() - old)
        ),
        "the whole row of the state moves; only the action that was taken does": lambda: torch.where(
            torch.arange(len(q))[:, None] == s, q + rate * (r + gamma * going_on * q[s_next].max() - q), q
        ),
        "rate and gamma are exchanged": lambda: _with(
            q, s, a, old + gamma * (r + rate * going_on * q[s_next].max() - old)
        ),
    }


# -- epsilon-greedy as a law ------------------------------------------------------------------------------------------
def _law(q: Tensor, epsilon: float) -> Tensor:
    best = (q == q.max()).double()
    return (1 - epsilon) * best / best.sum() + epsilon / len(q)


@exercise
def check_epsilon_greedy(function: Callable[[Tensor, float], Tensor]) -> None:
    """Check `epsilon_greedy(q_values [A], epsilon)` -> [A]: probability of every action, equally good ones alike.

    Raises:
        AssertionError: with the first case that fails and what usually causes it.
    """
    name, hint = "epsilon_greedy", "(1 - epsilon) is shared by the best actions, epsilon by all of them"
    cases = [
        (torch.tensor([1.0, 3.0, 2.0]).double(), 0.3),
        (torch.tensor([3.0, 1.0, 3.0, 0.0]).double(), 0.2),
        (torch.tensor([-1.0, -4.0]).double(), 0.0),
    ]
    for seed in range(RANDOM_CASES):
        q = _normal(seed, ACTIONS + seed % 3)
        q = q.round() if seed % 2 else q  # rounded ones are often equal
        cases.append((q, [0.05, 0.3, 0.5, 1.0][seed % 4]))
    for q, epsilon in cases:
        case = f"values {[round(x, 3) for x in q.tolist()]}, epsilon {epsilon}"
        faults = _greedy_faults(q, epsilon)
        _compare(name, case, function, _law(q, epsilon), faults, hint, inputs=(q, epsilon))
    print(f"{name}: passed (3 cases by hand, {RANDOM_CASES} random ones, some of them with ties)")


def _greedy_faults(q: Tensor, epsilon: float) -> dict[str, Callable[[], Tensor]]:
    first, best, size = one_hot(q.argmax(), len(q)).double(), (q == q.max()).double(), len(q)
    rest = lambda: (1 - best) * epsilon / (size - best.sum()).clamp(min=1)  # noqa: E731
    return {
        "the worst action: argmax, not argmin": lambda: _law(-q, epsilon),
        "ties: the first of equally good actions gets everything": lambda: (1 - epsilon) * first + epsilon / size,
        "the random share leaves out the best action; a random draw may hit it too": lambda: (
            (1 - epsilon) * best / best.sum() + rest()
        ),
        "the best action gets 1 - epsilon and the random draws cannot hit it": lambda: torch.where(
            best > 0, (1 - epsilon) / best.sum(), epsilon / size
        ),
        "epsilon and 1 - epsilon are exchanged": lambda: _law(q, 1 - epsilon),
        "equally good actions get 1 - epsilon each: the sum is above 1": lambda: (1 - epsilon) * best + epsilon / size,
        "no exploration: epsilon is forgotten": lambda: _law(q, 0.0),
        "epsilon is given to every action and not shared by them: the sum is above 1": lambda: (
            (1 - epsilon) * best / best.sum() + epsilon
        ),
        "a softmax: here only the best action is preferred": lambda: q.softmax(0),
    }


# -- double targets ---------------------------------------------------------------------------------------------------
@exercise
def check_double_target(function: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]) -> None:
    """Check `double_target(rewards [B], discounts [B], online [B, A], target [B, A])` -> [B], without gradient.

    `online` and `target` are the two networks' values of the next state; discounts are 0 after a terminal step.

    Raises:
        AssertionError: with the first case that fails and what usually causes it.
    """
    name, hint = "double_target", "the online values choose the action, the target values say what it is worth"
    numbers = lambda *rows: torch.tensor(rows).double()  # noqa: E731
    online = numbers([5.0, 1.0, 3.0], [1.0, 3.0, 2.0], [1.0, 3.0, 6.0])
    target = numbers([2.0, 8.0, 4.0], [6.0, 4.0, 5.0], [4.0, 2.0, 1.0])
    cases = [("three rows, the second one terminated", (numbers(1, 2, 2), numbers(0.5, 0, 0.5), online, target))]
    for seed in range(RANDOM_CASES):
        rows = 1 + seed % 5
        discounts = 0.9 * (_normal(seed + 3, rows) > -0.5).double()
        tables = _normal(seed + 1, rows, ACTIONS), _normal(seed + 2, rows, ACTIONS)
        cases.append((f"random values {seed}, batch of {rows}", (_normal(seed, rows), discounts, *tables)))
    for case, inputs in cases:
        rewards, discounts, online, target = inputs
        expected = rewards + discounts * _pick(target, online)
        live = rewards, discounts, online.clone().requires_grad_(), target.clone().requires_grad_()
        _compare(name, case, function, expected, _double_faults(*inputs), hint, inputs=live)
        cause = "the target carries a gradient; it is data, so detach it or compute it under torch.no_grad()"
        expect_data(name, case, function, live, cause)
    print(f"{name}: passed (a case by hand, {RANDOM_CASES} random ones, no gradient flows)")


def _pick(values: Tensor, by: Tensor) -> Tensor:
    """[B] the entry of each row of `values` where the row of `by` is largest."""
    return values.gather(1, by.argmax(1, keepdim=True)).squeeze(1)


def _double_faults(
    rewards: Tensor, discounts: Tensor, online: Tensor, target: Tensor
) -> dict[str, Callable[[], Tensor]]:
    later = _pick(target, online)
    return {
        "the target network chooses and values: these are single targets": lambda: rewards + discounts * target.amax(1),
        "the online network chooses and values: the target network is not used": lambda: (
            rewards + discounts * online.amax(1)
        ),
        "the roles are exchanged: the online network should choose": lambda: (
            rewards + discounts * _pick(online, target)
        ),
        "the discount is forgotten: what comes later counts less, and nothing after the end": lambda: rewards + later,
        "the reward is discounted too; it is paid now": lambda: discounts * (rewards + later),
        "the reward is missing": lambda: discounts * later,
        "the next state is missing: it is the reward alone": lambda: rewards,
        "the sign: what comes later is subtracted": lambda: rewards - discounts * later,
        "the mean of the two networks' largest values": lambda: (
            rewards + discounts * (online.amax(1) + target.amax(1)) / 2
        ),
        "the smaller of the two largest values: that is another method": lambda: (
            rewards + discounts * torch.minimum(online.amax(1), target.amax(1))
        ),
        "the wrong axis: every row chooses its own action": lambda: (
            rewards + discounts * target[:, int(online.sum(0).argmax())]
        ),
        "the action's number is used in place of its value": lambda: rewards + discounts * online.argmax(1),
    }


# -- soft values ------------------------------------------------------------------------------------------------------
def _soft(q: Tensor, ref: Tensor, beta: float) -> Tensor:
    return beta * (ref.log() + q / beta).logsumexp(1)


@exercise
def check_soft_value(function: Callable[[Tensor, Tensor, float], Tensor]) -> None:
    """Check `soft_value(q_values [S, A], ref_law [S, A], beta)` -> [S]: beta log sum over a of ref(a) exp(q(a) / beta).

    Raises:
        AssertionError: with the first case that fails and what usually causes it.
    """
    name, hint = "soft_value", "beta * log of the sum over actions of ref_law * exp(q_values / beta), a number a state"
    even = torch.full((1, 2), 0.5).double()
    log3 = torch.tensor(3.0).double().log()
    cases = [("values 0 and log 3, an even reference, beta 1", (torch.stack([0 * log3, log3])[None], even, 1.0))]
    for seed in range(RANDOM_CASES):
        ref = _normal(seed + 7, STATES, ACTIONS).softmax(1)
        cases.append(
            (f"random values {seed}, beta {(b := [0.3, 1.0, 4.0][seed % 3])}", (_normal(seed, STATES, ACTIONS), ref, b))
        )
    rare, tempting = torch.tensor([[0.25, 0.75, 0.0]]).double(), torch.tensor([[1.0, 0.0, 60.0]]).double()
    cases.append(("an action of value 60 that the reference never takes, beta 1", (tempting, rare, 1.0)))
    large = torch.tensor([[500.0, 499.0], [1.0, 0.0], [-500.0, -499.0]]).double()
    cases.append(("rows of values near 500, 0 and -500, beta 0.1", (large, even.expand(3, 2), 0.1)))
    for case, inputs in cases:
        q, ref, _ = inputs
        odd = partial(_odd_soft, q, ref)
        _compare(name, case, function, _soft(*inputs), _soft_faults(*inputs), hint, inputs=inputs, odd=odd)
    print(f"{name}: passed (a case by hand, {RANDOM_CASES} random ones, a forbidden action, large values)")


def _odd_soft(q: Tensor, ref: Tensor, got: object, expected: Tensor) -> str | None:
    if not isinstance(got, Tensor) or got.shape != expected.shape:
        return _odd(got, expected)
    if (ref == 0).any() and got.isfinite().all():
        return "an action with reference probability 0 counts; is a small number added before the logarithm?"
    if (ref == 0).any():
        return "not a number: 0 times infinity? An action with reference probability 0 adds nothing to the sum"
    if not got.isfinite().all():
        return "overflow or underflow in exp of a number far from 0; logsumexp takes the largest of each row out first"
    return None


def _soft_faults(q: Tensor, ref: Tensor, beta: float) -> dict[str, Callable[[], Tensor]]:
    log_ref = ref.log()
    return {
        "the maximum: that is the limit of beta to 0": lambda: q.amax(1),
        "the mean under the reference: that is the limit of a large beta": lambda: (ref * q).sum(1),
        "the reference is forgotten: every action counts alike": lambda: beta * (q / beta).logsumexp(1),
        "the factor beta in front is missing: it is in nats and not in reward units": lambda: (
            _soft(q, ref, beta) / beta
        ),
        "the values are multiplied by beta and not divided": lambda: beta * (log_ref + q * beta).logsumexp(1),
        "beta inside is missing": lambda: beta * (log_ref + q).logsumexp(1),
        "beta is upside down: log(...) / beta with q * beta inside": lambda: _soft(q, ref, 1 / beta),
        "the mean under the softmax policy without its KL": lambda: ((log_ref + q / beta).softmax(1) * q).sum(1),
        "the sign inside: q / beta, not -q / beta": lambda: beta * (log_ref - q / beta).logsumexp(1),
        "the reference itself is added and not its logarithm": lambda: beta * (ref + q / beta).logsumexp(1),
        "the sum of the exponentials without the logarithm": lambda: (ref * (q / beta).exp()).sum(1),
    }
