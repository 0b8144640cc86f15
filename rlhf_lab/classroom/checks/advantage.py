"""Checks of the exercises of chapter 04.

Each compares a function with the definition: on two rows small enough for paper, on random ragged rows with junk at
padding, finite numbers first, then NaN and infinity, and on values that require grad. When something differs, the usual
mistakes are tried on the same inputs, and the message names the one that gives the same numbers.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rlhf_lab.classroom.checks.comparing import compare, exercise, expect_data, odd_tensors, same_tensors, spoil
from rlhf_lab.maths.tensors import length_mask

GAMMA = 0.9  # of the random rows


SHAPE = "the shape: one number for every step, [B, T], where values have one column more"
_compare = partial(compare, same=same_tensors, odd=partial(odd_tensors, shape=SHAPE))


# -- rows -------------------------------------------------------------------------------------------------------------
def _hand_case() -> tuple[Tensor, ...]:
    """A row of three steps that ends, and one that was cut after its only step; 7 and 9 are junk."""
    rewards = torch.tensor([[0.0, 1.0, 2.0], [1.0, 9.0, 9.0]])
    values = torch.tensor([[2.0, 1.0, 3.0, 7.0], [1.0, 4.0, 9.0, 9.0]])
    discounts = torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.5, 0.5]])
    return rewards, values, discounts, length_mask(torch.tensor([3, 1]), 3)


def _random_case(seed: int) -> tuple[Tensor, ...]:
    """Ragged rows, every other one cut before its end, the first one with two episodes in it; junk at padding.

    Some batches have one row alone.
    """
    rows, width = [(4, 5), (4, 5), (4, 5), (1, 4), (2, 3)][seed % 5]
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, width + 1, (rows,), generator=generator)
    lengths[0], lengths[1:2] = width, width - 2
    rewards, values = (torch.randn(rows, width + more, generator=generator) for more in (0, 1))
    discounts, ended = torch.full((rows, width), GAMMA), torch.arange(rows) % 2 == 0
    discounts[ended, lengths[ended] - 1] = 0
    discounts[0, 1] = 0
    return rewards, values, discounts, length_mask(lengths, width)


def _cases() -> Iterator[tuple[str, tuple[Tensor, ...]]]:
    yield "a row that ends after 3 steps and one cut after 1, gamma 1/2", _hand_case()
    for seed in range(20):
        yield f"random rows {seed}, two episodes in the first one, gamma {GAMMA}, junk at padding", _random_case(seed)


def _check(
    name: str,
    function: Callable[..., Tensor],
    definition: Callable[..., Tensor],
    faults: Mapping[str, Callable[..., Tensor]],
    hint: str,
    settings: tuple = ((),),
) -> None:
    """Compare a function with its definition on every case and setting, then see that it returns data."""
    for case, data in _cases():
        for more in settings:
            inputs = *data, *more
            tried = {cause: partial(fault, *inputs) for cause, fault in faults.items()}
            label = case + "".join(f", {'n' if isinstance(x, int) else 'lam'} {x}" for x in more)
            _compare(name, label, function, definition(*inputs), tried, hint, inputs=inputs)
    rewards, values, *others = _random_case(99)
    cause = "a missing detach: these are data; with a gradient in them the policy's loss trains the critic"
    live = rewards, values.requires_grad_(True), *others, *settings[0]
    expect_data(name, "values that require grad", function, live, cause)
    for seed in range(2):
        rewards, values, discounts, mask = _random_case(seed)
        inputs = rewards, values, discounts, mask, *settings[0]
        spoiled = *spoil(mask, rewards, values), discounts, mask, *settings[0]
        _compare(name, f"random rows {seed}", function, definition(*inputs), {}, hint, inputs=inputs, spoiled=spoiled)


def _passed(name: str, more: str = "") -> None:
    print(f"{name}: passed (two rows by hand, 20 random batches with junk at padding, NaN there, no gradient{more})")


# -- the definitions, with places to go wrong -------------------------------------------------------------------------
def _td_errors(
    rewards: Tensor,
    values: Tensor,
    discounts: Tensor,
    mask: Tensor,
    *,
    pay: float = 1.0,
    after: float = 1.0,
    now: float = 1.0,
    masked: bool = True,
    swap: bool = False,
) -> Tensor:
    ahead, here = (values[:, :-1], values[:, 1:]) if swap else (values[:, 1:], values[:, :-1])
    errors = pay * rewards + after * discounts * ahead - now * here
    return torch.where(mask, errors, 0) if masked else errors


def _always(discounts: Tensor, mask: Tensor | None = None) -> Tensor:
    """Discounts of somebody who knows no terminal step."""
    return torch.full_like(discounts, float(discounts.max()))


def _undiscounted(discounts: Tensor, mask: Tensor | None = None) -> Tensor:
    return (discounts > 0).to(discounts)


def _last(mask: Tensor) -> Tensor:
    return mask & ~torch.nn.functional.pad(mask[:, 1:], (0, 1))


# What somebody may take the discounts for, from the discounts and the mask.
ENDS = {
    "bootstrap at a terminal step: use the discounts as they are given, 0 where the episode ended": _always,
    "a row that was cut counts as ended: where its last discount is not 0, the value in the next column follows": (
        lambda discounts, mask: torch.where(_last(mask), 0, discounts)
    ),
    "the end of an episode inside a row is passed over: use the discounts as they are given": (
        lambda discounts, mask: torch.where(_last(mask), discounts, _always(discounts))
    ),
}


def _scan(errors: Tensor, decay: Tensor, mask: Tensor, *, dim: int = 1, ahead: bool = True) -> Tensor:
    """A_t = errors_t + decay_t A_{t + 1} along `dim`; with ahead=False the sum runs over the past."""
    running, result = errors.new_zeros(()), torch.zeros_like(errors)
    steps = range(errors.shape[dim])
    for t in reversed(steps) if ahead else steps:
        here = errors.select(dim, t) + decay.select(dim, t) * running
        running = torch.where(mask.select(dim, t), here, running)
        result.select(dim, t).copy_(running)
    return torch.where(mask, result, 0)


def _gae(
    rewards: Tensor,
    values: Tensor,
    discounts: Tensor,
    mask: Tensor,
    lam: float,
    *,
    seen: Callable[[Tensor, float], Tensor] | None = None,
    decay: Callable[[Tensor, float], Tensor] | None = None,
    masked: bool = True,
    dim: int = 1,
    ahead: bool = True,
    **options: Any,
) -> Tensor:
    """The definition. seen: discounts of the TD errors; decay: (discounts, lam) -> decay of the sum."""
    real = mask if masked else torch.ones_like(mask)
    errors = _td_errors(rewards, values, discounts if seen is None else seen(discounts, lam), real, **options)
    decays = lam * discounts if decay is None else decay(discounts, lam)
    return torch.where(mask, _scan(errors, decays, real, dim=dim, ahead=ahead), 0)


def _n_step(
    rewards: Tensor,
    values: Tensor,
    discounts: Tensor,
    mask: Tensor,
    n: int,
    *,
    pay: int = 0,
    bootstrap: bool = True,
    minus: bool = True,
    last: bool = True,
    power: bool = True,
) -> Tensor:
    """The definition, row by row. pay: rewards too many; last: whether a row ends at its last real step."""
    result = torch.zeros_like(rewards)
    for row, steps in enumerate(mask.sum(1).tolist() if last else [mask.shape[1]] * len(mask)):
        for t in range(steps):
            total, weight, stop = rewards.new_zeros(()), rewards.new_ones(()), min(t + n, steps)
            for k in range(t, min(stop + pay, steps)):
                total = total + weight * rewards[row, k]
                weight = weight * (discounts[row, k] if k < stop else 1.0)
            alive = weight if power else float(weight > 0)
            result[row, t] = total + bootstrap * alive * values[row, stop] - minus * values[row, t]
    return torch.where(mask, result, 0)


# -- the checks -------------------------------------------------------------------------------------------------------
@exercise
def check_td_errors(function: Callable[..., Tensor]) -> None:
    """Check `td_errors(rewards, values, discounts, mask)` -> [B, T]: r_t + discount_t V_{t + 1} - V_t.

    Raises:
        AssertionError: with the first case that fails and what usually causes it.
    """
    altered = lambda change: lambda r, v, d, m: _td_errors(r, v, change(d, m), m)  # noqa: E731
    faults: dict[str, Callable[..., Tensor]] = {
        "the mask is missing: padding has no TD error, so put 0 there": partial(_td_errors, masked=False),
        "gamma is forgotten: the value ahead counts discount_t": altered(_undiscounted),
        "the sign: the value ahead is added and the value now subtracted": partial(_td_errors, after=-1.0, now=-1.0),
        "off by one: values[:, 1:] is ahead and values[:, :-1] is now": partial(_td_errors, swap=True),
        "the value ahead is missing: this is reward minus value": partial(_td_errors, after=0.0),
        "the value now is not subtracted": partial(_td_errors, now=0.0),
        "the reward is missing": partial(_td_errors, pay=0.0),
    }
    faults |= {cause: altered(change) for cause, change in ENDS.items()}
    hint = "time is the second axis: rewards + discounts * values[:, 1:] - values[:, :-1], 0 where mask is False"
    _check("td_errors", function, _td_errors, faults, hint)
    _passed("td_errors")


def _gae_faults() -> dict[str, Callable[..., Tensor]]:
    """Cause -> GAE with this fault."""
    plain = lambda d, lam: _undiscounted(d)  # noqa: E731
    altered = lambda change: lambda r, v, d, m, lam: _gae(r, v, change(d, m), m, lam)  # noqa: E731
    ends = {cause: altered(change) for cause, change in ENDS.items()}
    return ends | {
        "the mask is missing: what stands at padding leaks backwards into real steps": partial(_gae, masked=False),
        "an end is crossed: the sum must stop at a terminal step, so its decay is discount_t * lam": partial(
            _gae, decay=lambda d, lam: lam * _always(d)
        ),
        "gamma is forgotten in the TD errors: the value ahead counts discount_t": partial(_gae, seen=plain),
        "gamma is forgotten in the decay: what comes later counts discount_t * lam, not lam": partial(
            _gae, decay=lambda d, lam: lam * _undiscounted(d)
        ),
        "gamma is forgotten, in the TD errors and in the decay": partial(
            _gae, seen=plain, decay=lambda d, lam: lam * _undiscounted(d)
        ),
        "lam is forgotten in the decay: this is GAE with lam 1": partial(_gae, decay=lambda d, lam: d),
        "gamma and gamma * lam are swapped: the value ahead counts discount_t, later TD errors discount_t * lam": (
            partial(_gae, seen=lambda d, lam: lam * d, decay=lambda d, lam: d)
        ),
        "lam is in the TD errors too: it belongs to the decay of the sum only": partial(
            _gae, seen=lambda d, lam: lam * d
        ),
        "nothing is summed: these are the TD errors alone": partial(_gae, decay=lambda d, lam: 0 * d),
        "the sign: the value ahead is added and the value now subtracted": partial(_gae, after=-1.0, now=-1.0),
        "off by one: values[:, 1:] is ahead and values[:, :-1] is now": partial(_gae, swap=True),
        "the sum runs over the past: start at the last step and walk back": partial(_gae, ahead=False),
        "the wrong axis: the sum runs over the rows; time is the second axis": partial(_gae, dim=0),
        "the value now is not subtracted: these are targets for the value, not advantages": partial(
            lambda r, v, d, m, lam: torch.where(m, _gae(r, v, d, m, lam) + v[:, :-1], 0)
        ),
    }


@exercise
def check_gae(function: Callable[..., Tensor]) -> None:
    """Check `gae(rewards, values, discounts, mask, lam)` -> [B, T]: A_t = delta_t + discount_t lam A_{t + 1}.

    Raises:
        AssertionError: with the first case that fails and what usually causes it.
    """
    hint = "from the last step back: A = delta + discount * lam * A where mask is True; elsewhere A stays as it was"
    _check("gae", function, _gae, _gae_faults(), hint, settings=((0.25,), (0.0,), (0.9,), (1.0,)))
    _passed("gae")


@exercise
def check_n_step_advantage(function: Callable[..., Tensor]) -> None:
    """Check `n_step_advantage(rewards, values, discounts, mask, n)` -> [B, T].

    n rewards, discounted, then the value of the state that is reached, minus the value now. A row that has fewer than
    n steps left uses those it has, and then the value in the column after its last real step.

    Raises:
        AssertionError: with the first case that fails and what usually causes it.
    """
    altered = lambda change: lambda r, v, d, m, n: _n_step(r, v, change(d, m), m, n)  # noqa: E731
    faults = {cause: altered(change) for cause, change in ENDS.items()} | {
        "the mask is missing: a shorter row ends at its last real step and bootstraps there": partial(
            _n_step, last=False
        ),
        "gamma is forgotten: step k counts the product of the discounts before it": altered(_undiscounted),
        "gamma is forgotten in the bootstrap: the value counts the product of all n discounts": partial(
            _n_step, power=False
        ),
        "off by one: n rewards, not n + 1, and then the value": partial(_n_step, pay=1),
        "these are n + 1 steps: off by one, or n is ignored and this looks to the end": (
            lambda r, v, d, m, n: _n_step(r, v, d, m, n + 1)
        ),
        "these are n - 1 steps: off by one, or n is ignored and these are one-step TD errors": (
            lambda r, v, d, m, n: _n_step(r, v, d, m, n - 1)
        ),
        "the bootstrap is missing: after n rewards comes the value of the state reached": partial(
            _n_step, bootstrap=False
        ),
        "the value now is not subtracted: this is a return, not an advantage": partial(_n_step, minus=False),
        "the sign: return minus value, not value minus return": lambda *data: -_n_step(*data),
    }
    hint = "n TD errors, each weighted by the product of the discounts before it, as far as the row goes"
    _check("n_step_advantage", function, _n_step, faults, hint, settings=((2,), (1,), (3,), (9,)))
    _passed("n_step_advantage")


def _targets(rewards: Tensor, values: Tensor, discounts: Tensor, mask: Tensor, lam: float) -> Tensor:
    return torch.where(mask, _gae(rewards, values, discounts, mask, lam) + values[:, :-1], 0)


@exercise
def check_value_targets(function: Callable[..., Tensor]) -> None:
    """Check `value_targets(rewards, values, discounts, mask, lam)` -> [B, T]: the lambda returns, by their recursion.

    The recursion never reads the value of a row's first state; advantage plus value reads it twice, so an infinite
    number there tells the two apart.

    Raises:
        AssertionError: with the first case that fails and what usually causes it.
    """
    added = lambda fault: lambda r, v, d, m, lam: torch.where(m, fault(r, v, d, m, lam) + v[:, :-1], 0)  # noqa: E731
    faults: dict[str, Callable[..., Tensor]] = {
        "the values are not added: these are advantages, and a critic that learns them is always wrong": _gae,
        "off by one: the advantage of step t goes with the value of step t, values[:, :-1]": lambda r, v, d, m, lam: (
            torch.where(m, _gae(r, v, d, m, lam) + v[:, 1:], 0)
        ),
        "the sign: target = value + advantage": lambda r, v, d, m, lam: torch.where(
            m, v[:, :-1] - _gae(r, v, d, m, lam), 0
        ),
        "the mask is missing: at padding the target is 0": lambda r, v, d, m, lam: _gae(r, v, d, m, lam) + v[:, :-1],
        "lam is the wrong way round: (1 - lam) goes to the value, lam to what follows": lambda r, v, d, m, lam: (
            _targets(r, v, d, m, 1 - lam)
        ),
    }
    faults |= {cause: added(fault) for cause, fault in list(_gae_faults().items())[:-1]}
    hint = "G_t = r_t + discount_t ((1 - lam) V_{t+1} + lam G_{t+1}), which is the advantage plus values[:, :-1]"
    _check("value_targets", function, _targets, faults, hint, settings=((0.25,), (0.0,), (0.9,), (1.0,)))
    _check_recursion(function)
    _passed("value_targets", ", the recursion")


def _check_recursion(function: Callable[..., Tensor]) -> None:
    """The lambda returns do not depend on the value of a row's first state: it is infinite here."""
    rewards, values, discounts, mask = _hand_case()
    expected = _targets(rewards, values, discounts, mask, 0.25)
    inputs = rewards, values.index_fill(1, torch.tensor(0), math.inf), discounts, mask, 0.25
    hint = "G_t = r_t + discount_t ((1 - lam) V_{t+1} + lam G_{t+1}), from the last step back"
    by_gae = f"this is GAE plus the value, which subtracts the first value and adds it again; the recursion: {hint}"
    odd = partial(odd_tensors, shape=SHAPE, not_finite=by_gae)
    label = "the two rows by hand, an infinite value at their first states"
    compare("value_targets", label, function, expected, {}, hint, same=same_tensors, odd=odd, inputs=inputs)
