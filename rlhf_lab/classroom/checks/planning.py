"""Check of the build exercise of chapter 01: policy iteration, written from an empty cell.

It goes through small processes that isolate one part each, then through random ones. The values are compared with
those of value iteration, and the policy by what it earns, so that any choice among equally good actions is right.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from rlhf_lab.classroom.checks.comparing import as_tensor, compare, exercise, fail, odd_tensors, same_tensors
from rlhf_lab.maths.mdp import TabularMDP, policy_evaluation, value_iteration

RANDOM_CASES = 20
TOLERANCE = 1e-4  # of the values: an evaluation by sweeps may stop early
Solve = Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]


def _now_or_later(gamma: float) -> TabularMDP:
    """Take 1 at once, or walk two steps for 3."""
    moves, rewards = torch.zeros(4, 2, 4).double(), torch.zeros(4, 2).double()
    moves[0, 0, 3] = moves[0, 1, 1] = moves[1, :, 2] = moves[2:, :, 3] = 1
    rewards[0, 0], rewards[2] = 1.0, 3.0
    return TabularMDP(moves, rewards, torch.eye(4)[0], gamma)


def _one_more_cell_a_round(cells: int = 20) -> TabularMDP:
    """Stop for 1, or go on to the prize of 2. Each greedy step adds the one cell before those that go on."""
    moves, rewards = torch.zeros(cells + 1, 2, cells + 1).double(), torch.zeros(cells + 1, 2).double()
    moves[:, 0, -1] = moves[-1, 1, -1] = 1
    moves[range(cells), 1, range(1, cells + 1)] = 1
    rewards[:-1, 0], rewards[-2, 1] = 1.0, 2.0
    return TabularMDP(moves, rewards, torch.eye(cells + 1)[0], 0.99)


def _random(seed: int) -> TabularMDP:
    """Five states and three actions; every step may lead anywhere."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.rand(shape, generator=generator, dtype=torch.float64)  # noqa: E731
    moves, gamma = draw(5, 3, 5) ** 3, 0.5 + 0.45 * float(draw(1))
    return TabularMDP(moves / moves.sum(2, keepdim=True), 2 * draw(5, 3) - 1, torch.full((5,), 0.2), gamma)


def _cases() -> dict[str, TabularMDP]:
    end = torch.tensor([[[0.0, 1], [0, 1]], [[0, 1], [0, 1]]])
    once = TabularMDP(end, torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([1.0, 0.0]), 0.9)
    named = {
        "one choice, 1 or 2, then the end": once,
        "take 1 now or 3 two steps later, gamma 0.5": _now_or_later(0.5),
        "take 1 now or 3 two steps later, gamma 0.9": _now_or_later(0.9),
        "a chain of 20 cells, stop for 1 or go on to 2 at its end, gamma 0.99": _one_more_cell_a_round(),
    }
    return named | {f"random process {seed}": _random(seed) for seed in range(RANDOM_CASES)}


@exercise
def check_policy_iteration(function: Solve) -> None:
    """Check `solve(transitions [S, A, S], rewards [S, A], gamma)` -> (best values [S], a best policy [S, A]).

    Values may be off by 1e-4. gamma is below 1.

    Raises:
        AssertionError: with the first process that is not solved and what usually causes it.
    """
    name, hint = "solve", "evaluate the policy, take the greedy step, and repeat until no value grows"
    for case, mdp in _cases().items():
        inputs, (best, _) = (mdp.transitions, mdp.rewards, mdp.gamma), value_iteration(mdp)
        values = lambda *given: _pair(name, case, function(*given))[0]  # noqa: B023, E731
        odd = partial(odd_tensors, shape="the shape: the values are [S], one number a state")
        same = partial(same_tensors, tolerance=TOLERANCE)
        compare(f"{name}, values", case, values, best, _faults(mdp), hint, same=same, odd=odd, inputs=inputs)
        policy = as_tensor(_pair(name, case, function(*inputs))[1])
        earned = _value_of(mdp, policy)
        if earned is None:
            cause = "each row is a law, with probabilities that sum to 1: [S, A]"
            fail(f"{name}, policy", case, policy, f"a policy [{len(best)}, {mdp.rewards.shape[1]}]", cause)
        if not same(earned, best):
            cause = "the values are right and the policy is not theirs: is it the one of the round before?"
            fail(f"{name}, policy", f"{case}, what it earns", earned, best, cause)
    print(f"{name}: passed (4 processes by hand, {RANDOM_CASES} random ones; values and policies)")


def _pair(name: str, case: str, got: object) -> tuple[object, object]:
    if not isinstance(got, tuple | list) or len(got) != 2:
        fail(name, case, got, "the values and the policy", "return values, policy", "what is asked")
    return got[0], got[1]


def _value_of(mdp: TabularMDP, policy: object) -> Tensor | None:
    """What a policy earns from every state; None where it is none."""
    if not isinstance(policy, Tensor) or policy.shape != mdp.rewards.shape:
        return None
    law = policy.detach().double()
    proper = (law > -1e-6).all() and ((law.sum(1) - 1).abs() < 1e-5).all()
    return policy_evaluation(mdp, law.clamp(min=0) / law.sum(1, keepdim=True)) if proper else None


def _faults(mdp: TabularMDP) -> dict[str, Callable[[], Tensor]]:
    value = partial(policy_evaluation, mdp)
    uniform = torch.full_like(mdp.rewards, 1 / mdp.rewards.shape[1])
    greedy = lambda q: torch.nn.functional.one_hot(q.argmax(1), q.shape[1]).double()  # noqa: E731
    once = lambda: greedy(mdp.q_values(value(uniform)))  # noqa: E731
    worst = TabularMDP(mdp.transitions, -mdp.rewards, mdp.start, mdp.gamma)
    return {
        "the values of the policy it began with: no greedy step was taken": lambda: value(uniform),
        "one round only: evaluate, improve, and repeat both until no value grows": lambda: value(once()),
        "one look ahead and no evaluation after it": lambda: mdp.q_values(value(uniform)).amax(1),
        "it chooses by the rewards of the step alone": lambda: value(greedy(mdp.rewards)),
        "the largest rewards: nothing that follows counts": lambda: mdp.rewards.amax(1),
        "it looks for the worst policy: argmax, not argmin": lambda: -value_iteration(worst)[0],
    }
