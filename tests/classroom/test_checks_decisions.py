"""Each check of chapter 01 passes the solution and fails on realistic mistakes, naming the cause."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import one_hot

from rlhf_lab.classroom.checks.decisions import (
    check_asking_range,
    check_bellman_backup,
    check_chain_values,
    check_discounted_return,
    check_effective_horizon,
    check_greedy_policy,
    check_shaped_rewards,
)


def discounted_return(rewards, gamma):
    total = 0.0
    for reward in reversed(rewards):
        total = reward + gamma * total
    return total


def effective_horizon(gamma, share):
    return math.ceil(math.log(share) / math.log(gamma))


def q_values(transitions, rewards, gamma, values):
    return rewards + gamma * transitions @ values


def bellman_backup(transitions, rewards, gamma, policy, values):
    return (policy * q_values(transitions, rewards, gamma, values)).sum(dim=1)


def greedy_policy(transitions, rewards, gamma, values):
    q = q_values(transitions, rewards, gamma, values)
    return one_hot(q.argmax(dim=1), q.shape[1]).double()


def shaped_rewards(transitions, rewards, gamma, potential):
    return rewards + gamma * transitions @ potential - potential[:, None]


def counted_down(gamma, share):
    steps, weight = 0, 1.0
    while weight > share:
        steps, weight = steps + 1, weight * gamma
    return steps


def backup_in_loops(transitions, rewards, gamma, policy, values):
    """Plain Python, and float32 at the end."""
    rows = zip(policy.tolist(), rewards.tolist(), transitions.tolist(), strict=True)
    later = lambda law: sum(p * value for p, value in zip(law, values.tolist(), strict=True))  # noqa: E731
    return torch.tensor(
        [sum(p * (r + gamma * later(law)) for p, r, law in zip(*row, strict=True)) for row in rows],
        dtype=torch.float32,
    )


def equal_share(*inputs):
    q = q_values(*inputs)
    best = (q == q.amax(dim=1, keepdim=True)).float()
    return best / best.sum(dim=1, keepdim=True)


def last_of_the_best(*inputs):
    q = q_values(*inputs).flip(1)
    return one_hot(q.argmax(dim=1), q.shape[1]).flip(1)


SOLUTIONS = [
    (check_chain_values, lambda: (18 / 53, 42 / 53)),
    (check_chain_values, lambda: torch.tensor([18, 42]).double().numpy() / 53),
    (check_chain_values, lambda: [0.340, 0.792]),  # three decimals
    (check_asking_range, lambda: (1 / 6, 5 / 6)),
    (check_asking_range, lambda: (0.167, np.float32(0.833))),
    (check_bellman_backup, lambda t, r, g, p, v: bellman_backup(t, r, g, p, v).numpy()),
    (check_greedy_policy, lambda *inputs: greedy_policy(*inputs).float().numpy()),
    (check_shaped_rewards, lambda *inputs: shaped_rewards(*inputs).numpy()),
    (check_discounted_return, discounted_return),
    (check_discounted_return, lambda rewards, gamma: torch.tensor(discounted_return(rewards, gamma))),
    (
        check_discounted_return,
        lambda rewards, gamma: (torch.tensor(rewards) * gamma ** torch.arange(len(rewards))).sum(),
    ),
    (check_effective_horizon, lambda g, s: torch.ceil(torch.tensor(s).double().log() / torch.tensor(g).double().log())),
    (check_bellman_backup, backup_in_loops),
    (check_greedy_policy, equal_share),
    (check_greedy_policy, last_of_the_best),
    (check_shaped_rewards, lambda t, r, g, f: shaped_rewards(t, r, g, f).float()),
    (check_discounted_return, lambda rewards, gamma: sum(gamma**t * r for t, r in enumerate(rewards))),
    (check_effective_horizon, effective_horizon),
    (check_effective_horizon, counted_down),
    (check_bellman_backup, bellman_backup),
    (check_greedy_policy, greedy_policy),
    (check_greedy_policy, lambda *inputs: greedy_policy(*inputs).int()),
    (check_shaped_rewards, shaped_rewards),
]


@pytest.mark.parametrize(("check", "solution"), SOLUTIONS)
def test_solution_passes(check, solution, capsys):
    check(solution)
    assert "passed" in capsys.readouterr().out


def from_behind(transitions, rewards, gamma, values):
    """The look ahead with the two axes of states confused."""
    return rewards + gamma * torch.einsum("tas,t->sa", transitions, values)


def emptied(rewards, gamma):
    total = 0.0
    while rewards:
        total = rewards.pop() + gamma * total
    return total


def backup_in_place(transitions, rewards, gamma, policy, values):
    rewards += gamma * transitions @ values
    return (policy * rewards).sum(dim=1)


def greedy_in_place(transitions, rewards, gamma, values):
    values *= gamma
    return greedy_policy(transitions, rewards, 1.0, values)


def shaped_in_place(transitions, rewards, gamma, potential):
    rewards += gamma * transitions @ potential - potential[:, None]
    return rewards


MISTAKES = {
    "chain, swapped": (check_chain_values, lambda: (42 / 53, 18 / 53), "swapped"),
    "chain, no gamma": (check_chain_values, lambda: (1.0, 1.0), "gamma is forgotten"),
    "chain, fair coin": (check_chain_values, lambda: (2 / 11, 6 / 11), "same probability"),
    "chain, left and right": (check_chain_values, lambda: (2 / 37, 10 / 37), "left has 3/4"),
    "chain, one of two": (check_chain_values, lambda: (18 / 53, 0.75), "equation of cell 0"),
    "chain, two decimals": (check_chain_values, lambda: (0.34, 0.79), "equation of cell 1"),
    "chain, one number": (check_chain_values, lambda: 0.34, "2 numbers"),
    "chain, nothing": (check_chain_values, lambda: None, "2 numbers"),
    "range, old prices": (check_asking_range, lambda: (0.1, 0.9), "prices of section 6"),
    "range, old question": (check_asking_range, lambda: (1 / 15, 14 / 15), "dearer question"),
    "range, old mistake": (check_asking_range, lambda: (0.25, 0.75), "dearer mistake"),
    "range, one end": (check_asking_range, lambda: (1 / 6, 0.8), "better of the two guesses"),
    "range, the wrong way round": (check_asking_range, lambda: (5 / 6, 1 / 6), "the lower end comes first"),
    "range, everywhere": (check_asking_range, lambda: (0, 1), "better of the two guesses"),
    "return, list emptied": (check_discounted_return, emptied, "in place"),
    "return, text": (check_discounted_return, lambda r, g: str(discounted_return(r, g)), "not a number"),
    "backup, in place": (check_bellman_backup, backup_in_place, "in place"),
    "backup, list": (check_bellman_backup, lambda *inputs: bellman_backup(*inputs).tolist(), "not a tensor"),
    "greedy, in place": (check_greedy_policy, greedy_in_place, "argument 4 .*\n.*\n.*\n.*in place"),
    "greedy, list": (check_greedy_policy, lambda *inputs: greedy_policy(*inputs).tolist(), "not a tensor"),
    "greedy, no law": (
        check_greedy_policy,
        lambda *inputs: (q_values(*inputs) == q_values(*inputs).amax(1, keepdim=True)).double(),
        "their row is no law",
    ),
    "shaping, in place": (check_shaped_rewards, shaped_in_place, "in place"),
    "return, first power": (
        check_discounted_return,
        lambda r, g: sum(g ** (t + 1) * x for t, x in enumerate(r)),
        "off by one",
    ),
    "return, no gamma": (check_discounted_return, lambda r, g: sum(r), "gamma is forgotten"),
    "return, wrong order": (check_discounted_return, lambda r, g: discounted_return(r[::-1], g), "the order"),
    "return, gamma once": (check_discounted_return, lambda r, g: r[0] + g * sum(r[1:]), "applied once"),
    "return, product": (
        check_discounted_return,
        lambda r, g: r[0] + sum(g * t * x for t, x in enumerate(r)),
        "and not gamma to the power",
    ),
    "return, mean": (check_discounted_return, lambda r, g: discounted_return(r, g) / len(r), "the mean"),
    "return, last one missing": (check_discounted_return, lambda r, g: discounted_return(r[:-1], g), "has t = 0"),
    "return, nothing": (check_discounted_return, lambda r, g: None, "is there a `return`"),
    "return, raises": (check_discounted_return, lambda r, g: r[9], "IndexError"),
    "horizon, floor": (check_effective_horizon, lambda g, s: math.floor(math.log(s) / math.log(g)), "one too few"),
    "horizon, rule of thumb": (
        check_effective_horizon,
        lambda g, s: round(1 / (1 - g)),
        "rule of thumb|rounded, which",
    ),
    "horizon, unrounded": (check_effective_horizon, lambda g, s: math.log(s) / math.log(g), "not rounded up"),
    "horizon, one more": (check_effective_horizon, lambda g, s: counted_down(g, s) + 1, "one too many"),
    "horizon, linear": (check_effective_horizon, lambda g, s: math.ceil((1 - s) / (1 - g)), "a constant factor"),
    "horizon, sign": (check_effective_horizon, lambda g, s: -effective_horizon(g, s), "the sign"),
    "horizon, upside down": (
        check_effective_horizon,
        lambda g, s: math.ceil(math.log(g) / math.log(s)),
        "upside down",
    ),
    "horizon, constant": (check_effective_horizon, lambda g, s: 7, "rounded up"),
    "backup, no gamma": (check_bellman_backup, lambda t, r, g, p, v: bellman_backup(t, r, 1.0, p, v), "forgotten"),
    "backup, maximum": (check_bellman_backup, lambda t, r, g, p, v: q_values(t, r, g, v).amax(1), "the maximum"),
    "backup, uniform": (check_bellman_backup, lambda t, r, g, p, v: q_values(t, r, g, v).mean(1), "same weight"),
    "backup, sum": (check_bellman_backup, lambda t, r, g, p, v: q_values(t, r, g, v).sum(1), "without the policy"),
    "backup, reward discounted": (
        check_bellman_backup,
        lambda t, r, g, p, v: g * bellman_backup(t, r, 1.0, p, v),
        "is discounted too",
    ),
    "backup, no reward": (check_bellman_backup, lambda t, r, g, p, v: bellman_backup(t, 0 * r, g, p, v), "is missing"),
    "backup, reward alone": (check_bellman_backup, lambda t, r, g, p, v: (p * r).sum(1), "reward alone"),
    "backup, sign": (check_bellman_backup, lambda t, r, g, p, v: bellman_backup(t, r, -g, p, v), "the sign"),
    "backup, axis": (check_bellman_backup, lambda t, r, g, p, v: (p * from_behind(t, r, g, v)).sum(1), "wrong axis"),
    "backup, same state": (check_bellman_backup, lambda t, r, g, p, v: (p * r).sum(1) + g * v, "of the state itself"),
    "backup, Q returned": (check_bellman_backup, lambda t, r, g, p, v: q_values(t, r, g, v), "the shape"),
    "backup, constant": (check_bellman_backup, lambda t, r, g, p, v: torch.zeros(len(v)), "mean over actions"),
    "greedy, worst": (check_greedy_policy, lambda t, r, g, v: greedy_policy(t, -r, g, -v), "the worst action"),
    "greedy, rewards alone": (check_greedy_policy, lambda t, r, g, v: greedy_policy(t, r, 0.0, v), "short-sighted"),
    "greedy, values alone": (
        check_greedy_policy,
        lambda t, r, g, v: greedy_policy(t, 0 * r, g, v),
        "reward is missing",
    ),
    "greedy, no gamma": (check_greedy_policy, lambda t, r, g, v: greedy_policy(t, r, 1.0, v), "gamma is forgotten"),
    "greedy, axis": (
        check_greedy_policy,
        lambda t, r, g, v: one_hot(from_behind(t, r, g, v).argmax(1), r.shape[1]).double(),
        "wrong axis",
    ),
    "greedy, softmax": (check_greedy_policy, lambda t, r, g, v: q_values(t, r, g, v).softmax(1), "a softmax"),
    "greedy, values kept": (
        check_greedy_policy,
        lambda t, r, g, v: greedy_policy(t, r, g, v) * q_values(t, r, g, v),
        "not a law",
    ),
    "greedy, over states": (
        check_greedy_policy,
        lambda t, r, g, v: one_hot(q_values(t, r, g, v).argmax(0), len(v)).T.double(),
        "best state of each action",
    ),
    "greedy, numbers": (check_greedy_policy, lambda t, r, g, v: q_values(t, r, g, v).argmax(1), "one number a state"),
    "greedy, uniform": (check_greedy_policy, lambda t, r, g, v: torch.full_like(r, 1 / r.shape[1]), "one look ahead"),
    "shaping, sign": (check_shaped_rewards, lambda t, r, g, f: 2 * r - shaped_rewards(t, r, g, f), "the sign"),
    "shaping, no gamma": (check_shaped_rewards, lambda t, r, g, f: shaped_rewards(t, r, 1.0, f), "gamma is forgotten"),
    "shaping, gamma on both": (
        check_shaped_rewards,
        lambda t, r, g, f: r + g * (t @ f - f[:, None]),
        "multiplies both",
    ),
    "shaping, not paid back": (check_shaped_rewards, lambda t, r, g, f: r + g * t @ f, "in a circle pays"),
    "shaping, bonus": (check_shaped_rewards, lambda t, r, g, f: r + f[:, None], "nothing is paid back"),
    "shaping, axis": (check_shaped_rewards, lambda t, r, g, f: from_behind(t, r, g, f) - f[:, None], "wrong axis"),
    "shaping, rewards missing": (check_shaped_rewards, lambda t, r, g, f: shaped_rewards(t, 0 * r, g, f), "themselves"),
    "shaping, one a state": (check_shaped_rewards, lambda t, r, g, f: f, "the shape"),
    "shaping, nothing done": (check_shaped_rewards, lambda t, r, g, f: r, "potential of this state"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_is_named(name):
    check, mistake, cause = MISTAKES[name]
    with pytest.raises(AssertionError, match=cause):
        check(mistake)


def test_unfinished_exercise_says_so():
    def unfinished(rewards, gamma):
        raise NotImplementedError("your turn")

    with pytest.raises(NotImplementedError, match="your turn"):
        check_discounted_return(unfinished)


@pytest.mark.parametrize("check", [check_chain_values, check_asking_range])
def test_answers_by_hand_are_not_given_away(check):
    with pytest.raises(AssertionError) as error:
        check(lambda: (0.4, 0.6))
    for digits in ("0.339", "0.340", "0.792", "0.166", "0.167", "0.833"):
        assert digits not in str(error.value)
