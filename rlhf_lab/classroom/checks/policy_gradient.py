"""Checks of the exercises of chapter 02.

Each compares a function with the definition: on a case small enough for paper, on random cases, and on a
property that every right answer has. When something differs, the usual mistakes are tried on the same inputs,
and the message names the one that gives the same numbers.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from rlhf_lab.classroom.checks import comparing
from rlhf_lab.classroom.checks.comparing import compare, exercise, expect_data, odd_tensors, same_tensors, spoil
from rlhf_lab.maths.exact import TokenWorld
from rlhf_lab.maths.tensors import length_mask

Faults = dict[str, Callable[[], Tensor]]


OVERFLOW = "a number overflowed or became 0; sum logarithms first and take the exponential last"
DIVIDED = "gamma is 0 here, so gamma ** t is 0 after the first step and a division by it gives NaN; work backwards"
_compare = partial(compare, same=same_tensors, odd=odd_tensors)


def _rows(seed: int) -> tuple[torch.Generator, Tensor]:
    """A generator and the mask of ragged rows, one of them full and one short; some batches have one row alone."""
    rows, width = [(4, 5), (4, 5), (1, 5), (3, 4), (2, 1)][seed % 5]
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, width + 1, (rows,), generator=generator)
    lengths[0], lengths[-1] = width, min(2, width)
    return generator, length_mask(lengths, width)


# -- by hand ----------------------------------------------------------------------------------------------------------
BY_HAND = 5e-3  # two decimals and a half are enough
TWO_REPLIES = (
    "the gradient by the first logit, the variance without a baseline, the variance with the mean rating, "
    "the best constant, the variance with the best constant"
)


@exercise
def check_two_replies(function: Callable[[], tuple[float, ...]]) -> None:
    """Check `two_replies()`: the numbers of `TWO_REPLIES`, for probabilities 0.8 and 0.2 and ratings 1 and 3.

    The numbers come from the definition, both replies listed; the right ones are not shown.

    Raises:
        AssertionError: with the first number that is another one, and the mistake that gives it.
    """
    name, got = "two_replies", comparing.numbers("two_replies", function(), 5, TWO_REPLIES)
    law, ratings = torch.tensor([0.8, 0.2]).double(), torch.tensor([1.0, 3.0]).double()
    grads = torch.eye(2).double() - law
    truth, lengths = law @ (grads * ratings[:, None]), grads.square().sum(1)
    squared, variance = float(truth.square().sum()), lambda b: float(law @ (lengths * (ratings - b).square()))
    mean, best = float(law @ ratings), float((law * lengths) @ ratings / (law @ lengths))
    expected = [float(truth[0]), *(variance(b) - squared for b in (0, mean)), best, variance(best) - squared]
    faults = {
        "the sign: the first reply is below the mean rating": [-x for x in expected],
        "the squared length of the gradient is not taken off": [x + squared for x in expected],
        "this is one logit of two": [x / 2 for x in expected],
        "this is the mean rating": [mean] * 5,
    }
    for at, (what, number, right) in enumerate(zip(TWO_REPLIES.split(", "), got, expected, strict=True)):
        if not abs(number - right) < BY_HAND:
            cause = next((c for c, wrong in faults.items() if abs(number - wrong[at]) < BY_HAND), "see the hints")
            comparing.fail(name, what, number, "another number", cause)
    print(f"{name}: passed (all five numbers agree with the definition)")


# -- the score function ----------------------------------------------------------------------------------------------
@exercise
def check_score_function(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Check `score_function(logits, actions)`, [B, A] and [B] -> [B, A]: gradient of log pi(action) by the logits.

    Raises:
        AssertionError: with the first case that fails and what usually causes it.
    """
    name, hint = "score_function", "one at the chosen action, minus the probabilities of all actions of that row"
    hand = torch.tensor([[2.0, 1.0, 1.0]]).double().log(), torch.tensor([1])
    cases = [("three actions with probabilities 1/2, 1/4, 1/4, the second one chosen", *hand)]
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        logits = 2 * torch.randn(3, 4, generator=generator, dtype=torch.float64)
        cases.append((f"random case {seed}, 3 rows of 4 actions", logits, torch.randint(4, (3,), generator=generator)))
    for case, logits, actions in cases:
        live = logits.clone().requires_grad_(True)
        (grad_log,) = torch.autograd.grad(live.log_softmax(-1).gather(1, actions[:, None]).sum(), live)
        faults = _score_faults(logits, actions)
        _compare(name, case, function, grad_log, faults, hint, inputs=(logits, actions))
        mean, hint_mean = partial(_mean_grad_log, function), "its mean over the policy's own actions must be 0"
        _compare(name, f"{case}, mean", mean, torch.zeros_like(logits), {}, hint_mean, inputs=(logits, actions))
    print(f"{name}: passed (a case by hand, 20 against autograd, mean 0 under the policy)")


def _mean_grad_log(function: Callable, logits: Tensor, actions: Tensor) -> Tensor:
    grad_logs = [torch.as_tensor(function(logits, torch.full_like(actions, a))) for a in range(logits.shape[1])]
    return sum(p[:, None] * grad_log for p, grad_log in zip(logits.softmax(1).T, grad_logs, strict=True))


def _score_faults(logits: Tensor, actions: Tensor) -> Faults:
    law, chosen = logits.softmax(-1), one_hot(actions, logits.shape[1]).double()
    return {
        "the sign: the chosen action goes up, the others down": lambda: law - chosen,
        "the 1 at the chosen action is missing": lambda: -law,
        "the other actions are missing: raising one logit lowers all other probabilities": lambda: chosen * (1 - law),
        "this is the gradient of pi itself; divide by pi(action) for that of its logarithm": lambda: (
            law.gather(1, actions[:, None]) * (chosen - law)
        ),
        "the wrong axis: each row is a law of its own, so take the softmax over the last axis": lambda: (
            chosen - logits.softmax(0)
        ),
        "the logits are subtracted, not the probabilities": lambda: chosen - logits,
        "log-probabilities are subtracted, not probabilities": lambda: chosen - logits.log_softmax(-1),
    }


# -- reward to go ----------------------------------------------------------------------------------------------------
def _to_go(rewards: Tensor, gamma: float, mask: Tensor, *, masked: bool = True, own: int = 1, axis: int = 1) -> Tensor:
    """The definition as a sum over pairs of steps, with places to go wrong."""
    rewards = torch.where(mask, rewards, 0.0) if masked else rewards
    if axis == 0:
        return torch.where(mask, _to_go(rewards.T, gamma, mask.T, masked=False).T, 0.0)
    now = torch.arange(rewards.shape[1])
    later = now[None, :] - now[:, None]  # [step, later step]
    weights = torch.where(later >= 1 - own, float(gamma) ** later.clamp(min=0), 0.0).to(rewards)
    return torch.where(mask, rewards @ weights.T, 0.0)


@exercise
def check_reward_to_go(function: Callable[[Tensor, float, Tensor], Tensor]) -> None:
    """Check `reward_to_go(rewards, gamma, mask)`, [B, T]: what a step and those after it earn, discounted to the step.

    Raises:
        AssertionError: with the first case that fails and what usually causes it.
    """
    name, hint = "reward_to_go", "from the last step to the first: G_t = r_t + gamma G_{t+1}, and 0 at padding"
    hand = torch.tensor([[1.0, 2.0, 4.0], [3.0, 2.0, 9.0]]).double(), 0.5, length_mask(torch.tensor([3, 2]), 3)
    cases = [("rewards 1, 2, 4 and 3, 2 with junk behind them, gamma 0.5", *hand)]
    gammas = 0.0, 0.5, 0.9, 1.0
    for seed in range(20):
        generator, mask = _rows(seed)
        rewards = torch.randn(mask.shape, generator=generator, dtype=torch.float64)
        cases.append(
            (f"random case {seed}, gamma {gammas[seed % 4]}, junk at padding", rewards, gammas[seed % 4], mask)
        )
    for case, rewards, gamma, mask in cases:
        expected = _to_go(rewards, gamma, mask)
        inputs = rewards, gamma, mask
        odd = partial(odd_tensors, not_finite="" if gamma else DIVIDED)
        spoiled = *spoil(mask, rewards), gamma, mask
        faults = _to_go_faults(*inputs)
        _compare(name, case, function, expected, faults, hint, inputs=inputs, odd=odd, spoiled=spoiled)
    print(f"{name}: passed (a case by hand, 20 random ones with gamma 0 to 1, and NaN at padding)")


def _to_go_faults(rewards: Tensor, gamma: float, mask: Tensor) -> Faults:
    whole = _to_go(rewards, gamma, mask)
    real, steps = torch.where(mask, rewards, 0.0), torch.arange(rewards.shape[1])
    return {
        "gamma is forgotten: a reward k steps later counts gamma to the power k": lambda: _to_go(rewards, 1.0, mask),
        "the past instead of the future: the sum must run over this step and those after it": lambda: torch.where(
            mask, _to_go(real.flip(1), gamma, mask.flip(1)).flip(1), 0.0
        ),
        "the return of the whole episode at every step: rewards before the step must not count": lambda: torch.where(
            mask, whole[:, :1], 0.0
        ),
        "one discount too many: the step's own reward counts gamma to the power 0": lambda: gamma * whole,
        "off by one: the step's own reward is missing": lambda: _to_go(rewards, gamma, mask, own=0),
        "off by one: this is the return of the next step": lambda: torch.nn.functional.pad(whole[:, 1:], (0, 1)),
        "discounted to the start of the episode and not to the step: count gamma from the step on": lambda: (
            gamma**steps * whole
        ),
        "the mask is missing: junk at padding is counted as reward": lambda: _to_go(rewards, gamma, mask, masked=False),
        "the mask is missing: junk at padding is counted, and there must be 0 there": lambda: _to_go(
            rewards, gamma, torch.ones_like(mask)
        ),
        "the wrong axis: time is axis 1, rows are different episodes": lambda: _to_go(rewards, gamma, mask, axis=0),
        "one sum a row: every step has its own reward to go": lambda: whole[:, 0],
    }


# -- the loss --------------------------------------------------------------------------------------------------------
@exercise
def check_reinforce_loss(function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """Check `reinforce_loss(log_probs, returns, mask)`, all [B, T] -> scalar: -1/B sum over real steps of log pi G.

    Value and gradient are compared, and the gradient that reaches the returns must be none.

    Raises:
        AssertionError: with the first case that fails and what usually causes it.
    """
    name = "reinforce_loss"
    hint = "minus the sum over the real steps of log_probs * returns, divided by the number of episodes"
    hand = (
        torch.tensor([[-1.0, -2.0], [-0.5, 7.0]]).double(),
        torch.tensor([[3.0, 1.0], [2.0, 5.0]]).double(),
        length_mask(torch.tensor([2, 1]), 2),
    )
    cases = [("two episodes, of 2 steps and of 1", *hand)]
    for seed in range(20):
        generator, mask = _rows(seed)
        log_probs = -3 * torch.rand(mask.shape, generator=generator, dtype=torch.float64)
        returns = 1 + torch.randn(mask.shape, generator=generator, dtype=torch.float64)
        cases.append((f"random case {seed}, junk at padding", log_probs, returns, mask))
    for case, *inputs in cases:
        case = f"{case}: the loss, then its gradient by log_probs"
        faults = {cause: partial(_value_and_gradient, loss, *inputs) for cause, loss in _LOSS_FAULTS.items()}
        expected = _value_and_gradient(_loss, *inputs)
        call, spoiled = partial(_value_and_gradient, function), (*spoil(inputs[2], *inputs[:2]), inputs[2])
        _compare(name, case, call, expected, faults, hint, inputs=tuple(inputs), spoiled=spoiled)
    cause = "a missing detach: returns are data; through a live return the loss also trains whatever computed it"
    case, zero = "returns that require grad: the gradient that reaches them", torch.zeros_like(cases[1][2])
    _compare(name, case, partial(_gradient_of_returns, function), zero, {}, cause, inputs=cases[1][1:])
    print(f"{name}: passed (a case by hand, 20 random ones with NaN at padding, no gradient into the returns)")


def _loss(log_probs: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    return -torch.where(mask, log_probs * returns, 0.0).sum(1).mean()


_LOSS_FAULTS = {
    "the sign: optimisers minimise, and returns are to be maximised": lambda p, g, m: -_loss(p, g, m),
    "a mean over the steps: sum over the steps of an episode, then the mean over episodes": lambda p, g, m: (
        -(p * g)[m].mean()
    ),
    "each episode is divided by its own length, so that long ones count less a step": lambda p, g, m: (
        -((p * g * m).sum(1) / m.sum(1)).mean()
    ),
    "the mean over episodes is missing: the step would grow with the batch": lambda p, g, m: -(p * g)[m].sum(),
    "the mask is missing: junk at padding is in the sum": lambda p, g, m: -(p * g).sum(1).mean(),
    "the mask is missing, and the mean is over all cells": lambda p, g, m: -(p * g).mean(),
    "the wrong axis: the sum is over steps (axis 1), the mean over episodes": lambda p, g, m: (
        -(p * g * m).sum(0).mean()
    ),
    "the probabilities are weighted; it is the gradient of their logarithm that counts": lambda p, g, m: (
        -(p.exp() * g * m).sum(1).mean()
    ),
    "the first return of each episode is used at every step": lambda p, g, m: -(p * g[:, :1] * m).sum(1).mean(),
}


def _value_and_gradient(loss: Callable, log_probs: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """[1 + B T]: the loss and its gradient by the log-probs, 0 for a log-prob that is no number."""
    log_probs.requires_grad_(True)  # no copy, so that a change in place is seen
    value = loss(log_probs, returns, mask)
    if not isinstance(value, Tensor) or value.dim() != 0:
        got = f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"the loss is {got}, expected one number: a tensor without axes")
    if not value.requires_grad:
        raise ValueError("the loss has no gradient; log_probs must stay attached, the returns are the data")
    (gradient,) = torch.autograd.grad(value, log_probs)
    return torch.cat([value.detach()[None], torch.where(log_probs.isfinite(), gradient, 0).flatten()])


def _gradient_of_returns(loss: Callable, log_probs: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    log_probs, live = (x.clone().requires_grad_(True) for x in (log_probs, returns))
    loss(log_probs, live, mask).backward()
    return torch.zeros_like(returns) if live.grad is None else live.grad


# -- the best constant -----------------------------------------------------------------------------------------------
@exercise
def check_optimal_baseline(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Check `optimal_baseline(grad_logs, returns)`, [N, D], [N] -> scalar: E[|g|^2 G] / E[|g|^2] over N episodes.

    Raises:
        AssertionError: with the first case that fails and what usually causes it.
    """
    name = "optimal_baseline"
    hint = "a mean of the returns, in which each counts as much as the squared length of its grad log pi"
    hand = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 2.0]]).double(), torch.tensor([7.0, 0.0, 3.5]).double()
    cases = [("grad log pi (1, 0), (1, 1), (0, 2) and returns 7, 0, 3.5", *hand)]
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        grad_logs = torch.randn(6, 3, generator=generator, dtype=torch.float64)
        returns = 2 + torch.randn(6, generator=generator, dtype=torch.float64)
        cases.append((f"random case {seed}, 6 episodes, 3 parameters", grad_logs, returns))
    for case, grad_logs, returns in cases:
        lengths = grad_logs.square().sum(1)
        expected = (lengths * returns).sum() / lengths.sum()
        _compare(
            name, case, function, expected, _baseline_faults(grad_logs, returns), hint, inputs=(grad_logs, returns)
        )
        higher, moved = f"{case}, every return 10 higher", "it must move with the returns"
        _compare(name, higher, function, expected + 10, {}, moved, inputs=(grad_logs, returns + 10))
    print(f"{name}: passed (a case by hand, 20 random ones, moves with the returns)")


def _baseline_faults(grad_logs: Tensor, returns: Tensor) -> Faults:
    lengths = grad_logs.square().sum(1)
    weighted = lengths * returns
    return {
        "this is the mean return; weight each return by the squared length of its grad log pi": lambda: returns.mean(),
        "the lengths are not squared": lambda: (lengths.sqrt() * returns).sum() / lengths.sqrt().sum(),
        "the sign: a baseline is subtracted, so it is near the returns themselves": lambda: (
            -weighted.sum() / lengths.sum()
        ),
        "the division by E[|g|^2] is missing": lambda: weighted.mean(),
        "the division by E[|g|^2] is missing, and it is a sum and no mean": lambda: weighted.sum(),
        "upside down: the weighted sum of the returns goes above, the sum of the weights below": lambda: (
            lengths.sum() / weighted.sum()
        ),
        "one baseline for each parameter: also unbiased, but asked is one number for all": lambda: (
            (grad_logs.square() * returns[:, None]).sum(0) / grad_logs.square().sum(0)
        ),
        "the wrong axis: the squares are summed over parameters (axis 1)": lambda: (
            (grad_logs.square().sum(0).mean() * returns).sum() / grad_logs.square().sum()
        ),
        "the entries of grad log pi are summed before they are squared": lambda: (
            (grad_logs.sum(1).square() * returns).sum() / grad_logs.sum(1).square().sum()
        ),
        "the returns are squared, not the entries of grad log pi": lambda: returns.square().sum() / returns.sum(),
    }


# -- importance weights ----------------------------------------------------------------------------------------------
@exercise
def check_importance_weights(function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """Check `importance_weights(log_probs, old_log_probs, mask)`, [B, T] -> [B]: pi over pi_old, whole episodes, data.

    Raises:
        AssertionError: with the first case that fails and what usually causes it.
    """
    name = "importance_weights"
    hint = "sum log_probs - old_log_probs over the real steps of each row, then exp, then detach"
    hand = (
        torch.tensor([[0.5, 0.5], [0.2, 0.9]]).double().log(),
        torch.tensor([[0.25, 1.0], [0.4, 0.3]]).double().log(),
        length_mask(torch.tensor([2, 1]), 2),
    )
    cases = [("two episodes, of 2 steps and of 1", *hand)]
    for seed in range(20):
        generator, mask = _rows(seed)
        new, old = (-2 * torch.rand(mask.shape, generator=generator, dtype=torch.float64) for _ in range(2))
        cases.append((f"random case {seed}, junk at padding", new, old, mask))
    cases.append(("two episodes of 2000 steps", *_long_episodes()))
    odd = partial(odd_tensors, not_finite=OVERFLOW)
    for case, new, old, mask in cases:
        faults = _weight_faults(new, old, mask)
        inputs, spoiled = (new, old, mask), (*spoil(mask, new, old), mask)
        _compare(name, case, function, _weights(*inputs), faults, hint, inputs=inputs, odd=odd, spoiled=spoiled)
    new, old, mask = cases[1][1:]
    cause = "a missing detach: a weight says how often, and its own gradient would be added to the estimate"
    live = new.clone().requires_grad_(True), old, mask
    expect_data(name, "log_probs that require grad", function, live, cause)
    world, law, inputs = _enumerated()
    case, cause = f"all {world.num_sequences} replies of a world, mean", "their mean over the old policy is 1"
    mean = lambda *inputs: law @ torch.as_tensor(function(*inputs)).double()  # noqa: E731
    _compare(name, case, mean, 1.0, {}, cause, inputs=inputs)
    print(f"{name}: passed (a case by hand, 20 random ones with NaN at padding, mean 1 under the old policy)")


def _weights(new: Tensor, old: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, new - old, 0.0).sum(1).exp()


def _long_episodes() -> tuple[Tensor, Tensor, Tensor]:
    """Both policies give these episodes probabilities below the smallest number that float64 holds."""
    old = -1 - torch.rand(2, 2000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return old + torch.tensor([[0.003], [-0.002]]), old, torch.ones(2, 2000, dtype=torch.bool)


def _enumerated() -> tuple[TokenWorld, Tensor, tuple[Tensor, Tensor, Tensor]]:
    """A world, the old law of its replies, and what the weights are computed from."""
    world, generator = TokenWorld(3, 3, lambda prompt, tokens: 0.0, eos=0), torch.Generator().manual_seed(0)
    shape = (1, world.num_prefixes, world.vocab_size)
    new, old = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return world, world.law(old)[0], (world.token_log_probs(new)[0], world.token_log_probs(old)[0], world.mask)


def _weight_faults(new: Tensor, old: Tensor, mask: Tensor) -> Faults:
    ratio = torch.where(mask, new - old, 0.0)
    return {
        "upside down: the current policy is above, the one that sampled below": lambda: (-ratio.sum(1)).exp(),
        "the exponential is missing: this is the logarithm of the weight": lambda: ratio.sum(1),
        "one ratio a step; an episode's weight is the product over its steps": lambda: ratio.exp(),
        "the ratios of the steps are added; a product of ratios is the exp of a sum": lambda: (ratio.exp() * mask).sum(
            1
        ),
        "a mean over steps: the weight of an episode is the product of all its ratios": lambda: (
            ratio.sum(1) / mask.sum(1)
        ).exp(),
        "the mean of the steps' ratios; the weight of an episode is their product": lambda: (
            (ratio.exp() * mask).sum(1) / mask.sum(1)
        ),
        "the mask is missing: junk at padding is in the product": lambda: (new - old).sum(1).exp(),
        "the wrong axis: the product runs over the steps (axis 1) of each episode": lambda: ratio.sum(0).exp(),
        "the weights are divided by their sum: that is another, biased estimator": lambda: ratio.sum(1).softmax(0),
        "the weights are divided by their mean: that is another, biased estimator": lambda: (
            ratio.sum(1).softmax(0) * len(ratio)
        ),
        "the old policy is missing: this is the probability under the current one": lambda: (
            torch.where(mask, new, 0.0).sum(1).exp()
        ),
    }
