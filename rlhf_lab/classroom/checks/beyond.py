"""Checks of the exercises of chapter 15; here those of the two baselines of a group.

Each compares a function with the definition: on cases small enough for paper, on random ones, and on properties. When
something differs, the usual mistakes are tried on the same inputs, and the message names the one that gives the same.
Answers may be lists, arrays or tensors of any precision. Best of n and pass@k stand in `draws`, what compares
log-probs in `log_ratios`, the whole loop in `group_loop`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rlhf_lab.classroom.checks.comparing import exercise
from rlhf_lab.classroom.checks.dawid_skene import RANDOM_CASES, Faults
from rlhf_lab.classroom.checks.draws import check_best_of_n_law, check_pass_at_k
from rlhf_lab.classroom.checks.group_loop import check_group_loop
from rlhf_lab.classroom.checks.judging import compare_answers
from rlhf_lab.classroom.checks.log_ratios import check_cost_to_go, check_dpo_pair_loss, check_sequence_leash

__all__ = [
    "check_best_of_n_law",
    "check_cost_to_go",
    "check_dpo_pair_loss",
    "check_group_loop",
    "check_group_relative",
    "check_leave_one_out",
    "check_pass_at_k",
    "check_sequence_leash",
]


# -- the baselines of a group ------------------------------------------------------------------------------------------
def _others(rewards: Tensor) -> Tensor:
    return torch.stack(
        [rewards[:, k] - rewards[:, torch.arange(rewards.shape[1]) != k].mean(1) for k in range(rewards.shape[1])], 1
    )


_OTHERS_FAULTS: Faults = {
    "the mean of the whole group: a reply's own reward is left out of its baseline": lambda r: (
        r - r.mean(1, keepdim=True)
    ),
    "the others are divided by K: there are K - 1 of them": lambda r: r - (r.sum(1, keepdim=True) - r) / r.shape[1],
    "a reply's own reward is in the sum that is divided by K - 1: subtract it first": lambda r: (
        r - r.sum(1, keepdim=True) / (r.shape[1] - 1)
    ),
    "the others' sum and not their mean": lambda r: r - (r.sum(1, keepdim=True) - r),
    "the wrong axis: a group is a row": lambda r: _others(r.T).T,
    "the mean of the whole batch: each group has its own baseline": lambda r: r - r.mean(),
    "all other replies of the batch: only those to the same prompt count": lambda r: (
        r - (r.sum() - r) / (r.numel() - 1)
    ),
    "the baseline alone: it is subtracted from the reward": lambda r: r - _others(r),
    "the rewards alone: no baseline is subtracted": lambda r: r,
    "the sign: the reward minus the baseline": lambda r: -_others(r),
    "the factor is upside down: (K - 1) / K in the place of K / (K - 1)": lambda r: (
        (r - r.mean(1, keepdim=True)) * (r.shape[1] - 1) / r.shape[1]
    ),
    "divided by the group's spread: that is GRPO's choice": lambda r: _others(r) / r.std(1, keepdim=True),
    "the neighbour's reward is the baseline: it is the mean of all others": lambda r: r - r.roll(1, 1),
    "the median of the others: their mean is asked": lambda r: torch.stack(
        [r[:, k] - r[:, torch.arange(r.shape[1]) != k].quantile(0.5, 1) for k in range(r.shape[1])], 1
    ),
    "the best of the others: their mean is asked": lambda r: torch.stack(
        [r[:, k] - r[:, torch.arange(r.shape[1]) != k].max(1).values for k in range(r.shape[1])], 1
    ),
}


def _rewards(rows: list[list[float]]) -> tuple[str, Tensor]:
    return f"rewards {rows}", torch.tensor(rows).double()


def _random_rewards() -> list[tuple[str, Tensor]]:
    """As many groups as replies among them, so that the wrong axis raises nothing; and single groups."""
    cases = []
    for seed in range(RANDOM_CASES):
        groups, size = [(3, 3), (1, 4), (4, 2), (2, 2), (5, 5)][seed % 5]
        generator = torch.Generator().manual_seed(seed)
        level = 3 * torch.randn(groups, 1, generator=generator, dtype=torch.float64)
        noise = torch.randn(groups, size, generator=generator, dtype=torch.float64)
        cases.append((f"random case {seed}, {groups} groups of {size}", level + noise))
    return cases


@exercise
def check_leave_one_out(function: Callable[..., Any]) -> None:
    """Check `leave_one_out(rewards)`, [G, K] -> [G, K]: reward minus the mean of the others of its row.

    Raises:
        AssertionError: with the first case that fails and what usually causes it.
    """
    name, hint = "leave_one_out", "each reward minus the mean of the K - 1 others of its row: (sum - own) / (K - 1)"
    hand = [
        _rewards([[1.0, 2.0, 6.0], [3.0, 3.0, 0.0]]),
        _rewards([[1.0, 0.0], [5.0, 7.0]]),
        _rewards([[2.0, 2.0, 2.0]]),
    ]
    for case, rewards in [*hand, *_random_rewards()]:
        compare_answers(name, case, function, _others(rewards), _OTHERS_FAULTS, hint, (rewards,))
    print(f"{name}: passed ({len(hand)} cases by hand, {RANDOM_CASES} random ones)")


def _relative(rewards: Tensor, epsilon: float) -> Tensor:
    return _centred(rewards) / (rewards.std(1, keepdim=True) + epsilon)


def _centred(rewards: Tensor) -> Tensor:
    return rewards - rewards.mean(1, keepdim=True)


_RELATIVE_FAULTS: Faults = {
    "the biased standard deviation, divided by K: the unbiased one is divided by K - 1": lambda r, e: (
        _centred(r) / (r.std(1, keepdim=True, correction=0) + e)
    ),
    "epsilon is under the root: it is added to the standard deviation": lambda r, e: (
        _centred(r) / (r.var(1, keepdim=True) + e).sqrt()
    ),
    "the biased variance, and epsilon under the root: the unbiased standard deviation plus epsilon is asked": (
        lambda r, e: _centred(r) / (r.var(1, keepdim=True, correction=0) + e).sqrt()
    ),
    "epsilon squared is under the root: it is added to the standard deviation": lambda r, e: (
        _centred(r) / (r.var(1, keepdim=True) + e**2).sqrt()
    ),
    "epsilon is missing: in a constant group this is 0 / 0": lambda r, e: _centred(r) / r.std(1, keepdim=True),
    "epsilon is missing, and the standard deviation is biased": lambda r, e: (
        _centred(r) / r.std(1, keepdim=True, correction=0)
    ),
    "the larger of standard deviation and epsilon: they are added": lambda r, e: (
        _centred(r) / r.std(1, keepdim=True).clamp(min=e)
    ),
    "epsilon has a fixed size: it is the second argument": lambda r, e: _relative(r, 1e-4 if e != 1e-4 else 1e-8),
    "mean and standard deviation of the whole batch: each group has its own": lambda r, e: (
        (r - r.mean()) / (r.std() + e)
    ),
    "the standard deviation of the whole batch: each group has its own": lambda r, e: _centred(r) / (r.std() + e),
    "the mean of the whole batch: each group has its own": lambda r, e: (r - r.mean()) / (r.std(1, keepdim=True) + e),
    "the wrong axis: a group is a row": lambda r, e: _relative(r.T, e).T if len(r) > 1 else r * torch.nan,
    "the standard deviations lie along the wrong axis; keepdim=True keeps one for each row": lambda r, e: (
        _centred(r) / (r.std(1) + e) if len(r) == r.shape[1] else r * torch.nan
    ),
    "divided by the variance": lambda r, e: _centred(r) / (r.var(1, keepdim=True) + e),
    "not divided by the standard deviation": lambda r, e: _centred(r),
    "multiplied by the standard deviation": lambda r, e: _centred(r) * (r.std(1, keepdim=True) + e),
    "the mean is missing: only divided": lambda r, e: r / (r.std(1, keepdim=True) + e),
    "the mean of the others is subtracted: GRPO's mean includes the reply itself": lambda r, e: (
        _others(r) / (r.std(1, keepdim=True) + e)
    ),
    "the sign: the reward minus the mean": lambda r, e: -_relative(r, e),
    "the mean is added": lambda r, e: (r + r.mean(1, keepdim=True)) / (r.std(1, keepdim=True) + e),
    "only the mean is divided: brackets around reward minus mean": lambda r, e: (
        r - r.mean(1, keepdim=True) / (r.std(1, keepdim=True) + e)
    ),
    "epsilon is added after the division: brackets around the standard deviation plus epsilon": lambda r, e: (
        _centred(r) / r.std(1, keepdim=True) + e
    ),
}


@exercise
def check_group_relative(function: Callable[..., Any]) -> None:
    """Check `group_relative(rewards, epsilon=1e-4)`, [G, K] -> [G, K]: (reward - mean) / (std + epsilon) of its row.

    Raises:
        AssertionError: with the first case that fails and what usually causes it.
    """
    name = "group_relative"
    hint = "(reward - mean) / (std + epsilon) with mean and unbiased std (divided by K - 1) of the row; epsilon is 1e-4"
    hand = [_rewards([[1.0, 2.0, 6.0], [3.0, 4.0, 0.0]]), _rewards([[1.0, 0.0], [5.0, 9.0]])]
    hand.append(_rewards([[1.0, 0.0, 0.0, 0.0]]))
    constant = _rewards([[5.0, 5.0, 5.0, 5.0], [1.0, 2.0, 3.0, 4.0]])
    for case, rewards in [*hand, *_random_rewards(), constant]:
        for epsilon in (0.1, 1e-4):
            label, inputs = f"{case}, epsilon {epsilon:g}", (rewards, epsilon)
            compare_answers(name, label, function, _relative(*inputs), _RELATIVE_FAULTS, hint, inputs)
    for case, rewards in hand:
        call = lambda given: function(given)  # noqa: E731
        faults = {cause: partial(_at_default, fault) for cause, fault in _RELATIVE_FAULTS.items()}
        faults |= {f"the default of epsilon is not 1e-4 but {e:g}": partial(_relative, epsilon=e) for e in _OTHER}
        label = f"{case}, without the second argument"
        compare_answers(name, label, call, _relative(rewards, 1e-4), faults, hint, (rewards,))
    print(f"{name}: passed ({len(hand)} cases by hand, {RANDOM_CASES} random ones, a constant group, the default)")


_OTHER = (0.1, 0.01, 1e-3, 1e-5, 1e-6, 1e-8)


def _at_default(fault: Callable[..., Any], rewards: Tensor) -> Any:
    return fault(rewards, 1e-4)
