"""Checks of the two clipped losses of chapter 05: the surrogate of the policy, and the loss of the values.

As these functions are to be differentiated, their gradients are compared along with their value.
"""

from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rlhf_lab.classroom.checks.comparing import compare, exercise, odd_tensors, same_tensors, spoil
from rlhf_lab.maths.tensors import length_mask

RANDOM_CASES = 20
EPSILON = 0.2


_odd = partial(
    odd_tensors,
    shape="the shape: the answer is one number; sum or average over all axes",
    not_finite="a number that is not finite; is junk at padding multiplied by 0 and not left out?",
)
compare_numbers = partial(compare, same=same_tensors, odd=_odd)


def mean_over(x: Tensor, mask: Tensor) -> Tensor:
    return x[mask].mean()


def _with_gradients(function: Callable[..., Tensor], live: int) -> Callable[..., Tensor]:
    """A call that gives the value of `function` and its gradients by the first `live` inputs, in one tensor.

    The gradient by an input that is no number is 0. What is no tensor with one number is returned as it came, so that
    its shape or type can be named.
    """

    def call(*inputs: Any) -> Tensor:
        leaves = [x.requires_grad_(True) for x in inputs[:live]]
        value = function(*inputs)
        if not isinstance(value, Tensor) or value.dim():
            return value
        if not value.requires_grad:
            return value.detach()[None].expand(1 + sum(x.numel() for x in leaves)) * torch.nan
        gradients = torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True)
        known = [torch.where(x.isfinite(), g, 0) for x, g in zip(leaves, gradients, strict=True)]
        return torch.cat([value.detach()[None], *(g.flatten() for g in known)])

    return call


def _odd_gradient(got: object, expected: Tensor) -> str | None:
    if isinstance(got, Tensor) and got.shape == expected.shape and torch.isnan(got).all():
        return "nothing to differentiate: is the result detached?"
    if isinstance(got, Tensor) and got.dim() == 0:
        return "the shape"
    return _odd(got, expected)


def _compare_gradients(
    name: str,
    case: str,
    function: Callable[..., Tensor],
    definition: Callable[..., Tensor],
    faults: Mapping[str, Callable[..., Tensor]],
    hint: str,
    inputs: tuple,
) -> None:
    """Compare value and gradients by the first three inputs; the last input is epsilon."""
    run = lambda f: partial(_with_gradients(f, 3), *deepcopy(inputs))  # noqa: E731
    tried = {cause: run(fault) for cause, fault in faults.items()}
    case, call = f"value and gradients, {case}, epsilon {inputs[-1]}", _with_gradients(function, 3)
    spoiled = *spoil(inputs[3], *inputs[:3]), *inputs[3:]
    compare_gradients = partial(compare, same=same_tensors, odd=_odd_gradient)
    compare_gradients(name, case, call, run(definition)(), tried, hint, inputs=inputs, spoiled=spoiled)


# -- clipped surrogate ------------------------------------------------------------------------------------------------
def _surrogate(
    log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, mask: Tensor, clip_epsilon: float
) -> Tensor:
    ratio, advantages = (log_probs - old_log_probs.detach()).exp(), advantages.detach()
    near = ratio.clamp(1 - clip_epsilon, 1 + clip_epsilon)
    return mean_over(torch.minimum(ratio * advantages, near * advantages), mask)


def random_tokens(seed: int, rows: int = 4, width: int = 5) -> tuple[Tensor, ...]:
    """log_probs, old_log_probs and advantages [B, T] with ratios on both sides of the band, and a ragged mask."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, width + 1, (rows,), generator=generator)
    lengths[0], lengths[-1] = width, 2
    draw = lambda: torch.randn(rows, width, generator=generator, dtype=torch.float64)  # noqa: E731
    old = -1 - draw().abs()
    return old + 0.4 * draw(), old, draw(), length_mask(lengths, width)


def _hand_tokens() -> tuple[Tensor, ...]:
    """The four cases on one row, and a fifth token that is padding: ratios 1.5, 1.5, 0.5, 0.5."""
    old = torch.tensor([[0.5, 0.5, 0.5, 0.5, 0.5]]).double().log()
    new = torch.tensor([[0.75, 0.75, 0.25, 0.25, 0.01]]).double().log()
    advantages = torch.tensor([[1.0, -1.0, 2.0, -0.5, 50.0]]).double()
    return new, old, advantages, torch.tensor([[True, True, True, True, False]])


@exercise
def check_clipped_surrogate(function: Callable[..., Tensor]) -> None:
    """Check `clipped_surrogate(log_probs, old_log_probs, advantages, mask, clip_epsilon)` -> a number to maximise.

    [B, T] tensors in, the mean over the mask out; differentiable in log_probs and in nothing else.

    Raises:
        AssertionError: with the first case that fails and what usually causes it.
    """
    name, hint = "clipped_surrogate", "the mean over the mask of min(ratio A, clip(ratio, 1 - eps, 1 + eps) A)"
    cases = [("ratios 1.5, 1.5, 0.5, 0.5 with advantages 1, -1, 2, -0.5, and a padded token", _hand_tokens())]
    cases += [(f"random tokens {seed}, junk at padding", random_tokens(seed)) for seed in range(RANDOM_CASES)]
    for number, (case, data) in enumerate(cases):
        inputs = *data, (EPSILON, 0.3)[number % 2]
        _compare_gradients(name, case, function, _surrogate, _SURROGATE_FAULTS, hint, inputs)
    new, _, advantages, mask = random_tokens(0)
    fresh = _with_gradients(lambda x: function(x, new, advantages, mask, EPSILON), 1)
    expected = torch.cat([mean_over(advantages, mask)[None], (torch.where(mask, advantages, 0) / mask.sum()).flatten()])
    compare_numbers(name, "at ratio 1: the gradient of REINFORCE", fresh, expected, {}, hint, inputs=(new,))
    print(f"{name}: passed (a case by hand, {RANDOM_CASES} random ones, NaN at padding, REINFORCE at ratio 1)")


def _plain(combine: Callable[[Tensor, Tensor, float], Tensor]) -> Callable[..., Tensor]:
    """A faulty surrogate: `combine` turns ratio, advantages and epsilon into the numbers of each token."""

    def fault(
        log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, mask: Tensor, clip_epsilon: float
    ) -> Tensor:
        ratio = (log_probs - old_log_probs.detach()).exp()
        return mean_over(combine(ratio, advantages.detach(), clip_epsilon), mask)

    return fault


def _clip(ratio: Tensor, epsilon: float) -> Tensor:
    return ratio.clamp(1 - epsilon, 1 + epsilon)


def _live_old(
    log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, mask: Tensor, clip_epsilon: float
) -> Tensor:
    ratio, advantages = (log_probs - old_log_probs).exp(), advantages.detach()
    return mean_over(torch.minimum(ratio * advantages, _clip(ratio, clip_epsilon) * advantages), mask)


def _live_advantages(
    log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, mask: Tensor, clip_epsilon: float
) -> Tensor:
    ratio = (log_probs - old_log_probs.detach()).exp()
    return mean_over(torch.minimum(ratio * advantages, _clip(ratio, clip_epsilon) * advantages), mask)


def _all_live(
    log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, mask: Tensor, clip_epsilon: float
) -> Tensor:
    ratio = (log_probs - old_log_probs).exp()
    return mean_over(torch.minimum(ratio * advantages, _clip(ratio, clip_epsilon) * advantages), mask)


def _padded(log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, mask: Tensor, clip_epsilon: float) -> Tensor:
    return _surrogate(log_probs, old_log_probs, advantages, torch.ones_like(mask), clip_epsilon)


def _over_all(
    log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, mask: Tensor, clip_epsilon: float
) -> Tensor:
    return _surrogate(log_probs, old_log_probs, advantages, mask, clip_epsilon) * mask.double().mean()


def _whole_rows(
    log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, mask: Tensor, clip_epsilon: float
) -> Tensor:
    old = torch.where(mask, old_log_probs.detach(), 0)
    change = (torch.where(mask, log_probs, 0) - old).sum(1, keepdim=True).expand_as(log_probs)
    ratio, advantages = change.exp(), advantages.detach()
    return mean_over(torch.minimum(ratio * advantages, _clip(ratio, clip_epsilon) * advantages), mask)


def _plain_log_probs(term: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The mean over the mask of a term of log-probs, data detached."""
    return lambda new, old, a, mask, e: mean_over(term(new, old.detach(), a.detach(), e), mask)


def _ratio_one(
    log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, mask: Tensor, clip_epsilon: float
) -> Tensor:
    return _surrogate(log_probs, log_probs, advantages, mask, clip_epsilon)


_DATA = "a missing detach: {} are data, and the policy's loss must not reach what made them"
_SURROGATE_FAULTS: dict[str, Callable[..., Tensor]] = {
    "the sign: an objective is maximised; this is the loss": lambda *x: -_surrogate(*x),
    "this is the maximum; take the minimum": _plain(lambda r, a, e: torch.maximum(r * a, _clip(r, e) * a)),
    "the clipped term alone; without the minimum a token that moved the wrong way has no gradient to come back": _plain(
        lambda r, a, e: _clip(r, e) * a
    ),
    "nothing is clipped": _plain(lambda r, a, e: r * a),
    "the ratio is clipped above only": _plain(lambda r, a, e: torch.minimum(r * a, r.clamp(max=1 + e) * a)),
    "the ratio is clipped below only": _plain(lambda r, a, e: torch.minimum(r * a, r.clamp(min=1 - e) * a)),
    "the smaller ratio is taken; take the smaller product, since the advantage may be negative": _plain(
        lambda r, a, e: torch.minimum(r, _clip(r, e)) * a
    ),
    "the smaller of two means; take the smaller product of each token, then the mean": (
        lambda new, old, a, m, e: torch.minimum(
            *(_plain(term)(new, old, a, m, e) for term in (lambda r, a, e: r * a, lambda r, a, e: _clip(r, e) * a))
        )
    ),
    "the ratio is upside down: new over old": _plain(lambda r, a, e: torch.minimum(1 / r * a, _clip(1 / r, e) * a)),
    "old and new log-probs are exchanged: the new ones are above, and have the gradient": lambda new, old, *more: (
        _surrogate(old, new, *more)
    ),
    "the log-probs are divided; the ratio is exp of their difference": _plain_log_probs(
        lambda new, old, a, e: torch.minimum(new / old * a, _clip(new / old, e) * a)
    ),
    "the band is fixed at 0.2; use clip_epsilon": lambda new, old, a, mask, e: _surrogate(new, old, a, mask, 0.2),
    "the ratio is always 1: the old log-probs are those kept from sampling, not log_probs.detach()": _ratio_one,
    "the difference of the log-probs is not yet the ratio; take its exponential": _plain(
        lambda r, a, e: torch.minimum(r.log() * a, _clip(r.log(), e) * a)
    ),
    "the band: clip to 1 - epsilon and 1 + epsilon, not to -epsilon and epsilon": _plain(
        lambda r, a, e: torch.minimum(r * a, r.clamp(-e, e) * a)
    ),
    "the product is clipped; clip the ratio, then multiply by the advantage": _plain(
        lambda r, a, e: torch.minimum(r * a, (r * a).clamp(1 - e, 1 + e))
    ),
    _DATA.format("advantages and old log-probs"): _all_live,
    _DATA.format("old log-probs"): _live_old,
    _DATA.format("advantages"): _live_advantages,
    "the mask is missing: padding counts": _padded,
    "the mean runs over padding too: divide by the number of real tokens": _over_all,
    "this is the sum; divide by the number of real tokens": lambda new, old, a, mask, e: (
        _surrogate(new, old, a, mask, e) * mask.sum()
    ),
    "the ratio of whole rows: here every token has its own": _whole_rows,
    "the mean of the rows' means: a token of a short row would count more": lambda new, old, a, mask, e: torch.stack(
        [_surrogate(new[i], old[i], a[i], mask[i], e) for i in range(len(mask))]
    ).mean(),
}


# -- clipped value loss -----------------------------------------------------------------------------------------------
def _value_loss(values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip_epsilon: float) -> Tensor:
    old_values, returns = old_values.detach(), returns.detach()
    near = old_values + (values - old_values).clamp(-clip_epsilon, clip_epsilon)
    return mean_over(torch.maximum((values - returns).square(), (near - returns).square()) / 2, mask)


def _values(seed: int) -> tuple[Tensor, ...]:
    new, old, returns, mask = random_tokens(seed + 500)
    return old + 2 * (new - old), old, old + returns, mask


def _hand_values() -> tuple[Tensor, ...]:
    """From 2, with target 4: moved by 1 towards it, by 1 away, by 0.1 towards it; and a padded one."""
    values = torch.tensor([[3.0, 1.0, 2.1, 30.0]]).double()
    return (
        values,
        torch.full((1, 4), 2.0).double(),
        torch.full((1, 4), 4.0).double(),
        torch.tensor([[True, True, True, False]]),
    )


@exercise
def check_value_loss(function: Callable[..., Tensor]) -> None:
    """Check `value_loss(values, old_values, returns, mask, clip_epsilon)` -> a number to minimise, mean over the mask.

    Raises:
        AssertionError: with the first case that fails and what usually causes it.
    """
    name = "value_loss"
    hint = "half the larger of two squared errors: of the value, and of the old value plus the clipped change"
    cases = [("from 2 with target 4 to 3, to 1 and to 2.1, and a padded step", _hand_values(), 0.4)]
    cases += [(f"random steps {seed}, junk at padding", _values(seed), EPSILON) for seed in range(RANDOM_CASES)]
    for case, data, epsilon in cases:
        _compare_gradients(name, case, function, _value_loss, _VALUE_FAULTS, hint, (*data, epsilon))
    print(f"{name}: passed (a case by hand, {RANDOM_CASES} random ones, NaN at padding)")


def _faulty_value(combine: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A faulty value loss: `combine` turns values, old values, returns and epsilon into the loss of each step."""

    def fault(values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip_epsilon: float) -> Tensor:
        return mean_over(combine(values, old_values.detach(), returns.detach(), clip_epsilon), mask)

    return fault


def _moved(values: Tensor, old_values: Tensor, epsilon: float) -> Tensor:
    return old_values + (values - old_values).clamp(-epsilon, epsilon)


def _live_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip_epsilon: float) -> Tensor:
    near = _moved(values, old_values, clip_epsilon)
    return mean_over(torch.maximum((values - returns).square(), (near - returns).square()) / 2, mask)


_VALUE_FAULTS: dict[str, Callable[..., Tensor]] = {
    "the sign: a loss is minimised": lambda *x: -_value_loss(*x),
    "the half is missing": lambda *x: 2 * _value_loss(*x),
    "this is the minimum; take the maximum, so that the larger error counts": _faulty_value(
        lambda v, o, r, e: torch.minimum((v - r).square(), (_moved(v, o, e) - r).square()) / 2
    ),
    "the clipped value alone: a value that moved away has no gradient to come back": _faulty_value(
        lambda v, o, r, e: (_moved(v, o, e) - r).square() / 2
    ),
    "nothing is clipped, or the band is around the return; it is around the old value": _faulty_value(
        lambda v, o, r, e: (v - r).square() / 2
    ),
    "the larger of two means; take the larger error of each step, then the mean": lambda v, o, r, m, e: torch.maximum(
        mean_over((v - r.detach()).square() / 2, m),
        mean_over((_moved(v, o.detach(), e) - r.detach()).square() / 2, m),
    ),
    "the old value is not added back to the clipped change": _faulty_value(
        lambda v, o, r, e: torch.maximum((v - r).square(), ((v - o).clamp(-e, e) - r).square()) / 2
    ),
    "the value itself is clipped; clip how far it moved": _faulty_value(
        lambda v, o, r, e: torch.maximum((v - r).square(), (v.clamp(-e, e) - r).square()) / 2
    ),
    "clipped like a ratio, to 1 - epsilon and 1 + epsilon; a value moves by at most epsilon": _faulty_value(
        lambda v, o, r, e: torch.maximum((v - r).square(), (o * (v / o).clamp(1 - e, 1 + e) - r).square()) / 2
    ),
    "a missing detach: old values and returns are data": _live_value_loss,
    "a missing detach: old values are data": lambda v, o, r, m, e: _live_value_loss(v, o, r.detach(), m, e),
    "a missing detach: returns are data": lambda v, o, r, m, e: _live_value_loss(v, o.detach(), r, m, e),
    "the mask is missing: padding counts": lambda v, o, r, m, e: _value_loss(v, o, r, torch.ones_like(m), e),
    "the mean runs over padding too: divide by the number of real steps": lambda v, o, r, m, e: (
        _value_loss(v, o, r, m, e) * m.double().mean()
    ),
    "this is the sum; divide by the number of real tokens": lambda v, o, r, m, e: _value_loss(v, o, r, m, e) * m.sum(),
}
