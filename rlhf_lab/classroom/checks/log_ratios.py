"""Checks of the exercises of chapter 15 that compare log-probs with a reference's or a teacher's.

Two of the functions are to be differentiated. For DPO the gradient of every pair is compared; for the leash the exact
expectation of the gradient, so that every estimator that is right on average is right here.
"""

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlhf_lab.classroom.checks.comparing import (
    AT_PADDING,
    PADDING,
    changed,
    compare,
    exercise,
    expect_data,
    odd_tensors,
    same_tensors,
    spoil,
)
from rlhf_lab.classroom.checks.dawid_skene import RANDOM_CASES
from rlhf_lab.maths.exact import TokenWorld
from rlhf_lab.maths.tensors import length_mask

Function = Callable[..., Tensor]
_compare = partial(compare, same=same_tensors, odd=odd_tensors)


# -- DPO ---------------------------------------------------------------------------------------------------------------
def _margin(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float) -> Tensor:
    return beta * ((chosen - ref_chosen) - (rejected - ref_rejected))


def _dpo(*pairs: Any) -> Tensor:
    return -logsigmoid(_margin(*pairs))


_DPO_FAULTS: dict[str, Function] = {
    "the sign: the chosen reply has to gain on the rejected one, so the margin is chosen minus rejected": (
        lambda c, r, qc, qr, b: -logsigmoid(-_margin(c, r, qc, qr, b))
    ),
    "the sign in front: the loss is minus the log of the sigmoid": lambda *x: logsigmoid(_margin(*x)),
    "the reference is missing": lambda c, r, qc, qr, b: _dpo(c, r, 0 * qc, 0 * qr, b),
    "the reference of the rejected reply is missing": lambda c, r, qc, qr, b: _dpo(c, r, qc, 0 * qr, b),
    "the reference of the chosen reply is missing": lambda c, r, qc, qr, b: _dpo(c, r, 0 * qc, qr, b),
    "the sign of the reference: its log-probs are subtracted, and each reply has its own": lambda c, r, qc, qr, b: _dpo(
        c, r, -qc, -qr, b
    ),
    "beta is missing": lambda c, r, qc, qr, b: _dpo(c, r, qc, qr, 1.0),
    "divided by beta: the margin is beta times the difference": lambda c, r, qc, qr, b: _dpo(c, r, qc, qr, 1 / b),
    "beta on the chosen reply alone: it multiplies both log-ratios": lambda c, r, qc, qr, b: (
        -logsigmoid(b * (c - qc) - (r - qr))
    ),
    "beta on the rejected reply alone: it multiplies both log-ratios": lambda c, r, qc, qr, b: (
        -logsigmoid((c - qc) - b * (r - qr))
    ),
    "beta on the policy alone: it multiplies the reference's log-probs too": lambda c, r, qc, qr, b: (
        -logsigmoid(b * (c - r) - (qc - qr))
    ),
    "beta on the reference alone: it multiplies the policy's log-probs too": lambda c, r, qc, qr, b: (
        -logsigmoid((c - r) - b * (qc - qr))
    ),
    "beta outside of the logarithm: it belongs inside of the sigmoid": lambda c, r, qc, qr, b: (
        b * _dpo(c, r, qc, qr, 1.0)
    ),
    "the two log-ratios are added": lambda c, r, qc, qr, b: -logsigmoid(b * ((c - qc) + (r - qr))),
    "the logarithm is missing: minus the sigmoid": lambda *x: -_margin(*x).sigmoid(),
    "the sigmoid is missing: minus the margin": lambda *x: -_margin(*x),
    "1 - sigmoid: that is the chance of the other preference and no loss of maximum likelihood": lambda *x: (
        1 - _margin(*x).sigmoid()
    ),
    "log(sigmoid(x)) is minus infinity where the sigmoid rounds to 0, and log(1 + exp(-x)) overflows there; "
    "torch.nn.functional.logsigmoid and softplus do not": lambda *x: -_margin(*x).sigmoid().log(),
    "the mean over the pairs: one loss for each pair is asked": lambda *x: _dpo(*x).mean(),
    "the sum over the pairs: one loss for each pair is asked": lambda *x: _dpo(*x).sum(),
}
_DPO_GRADIENT_FAULTS: dict[str, Function] = {
    "the chosen log-probs are detached": lambda c, r, *x: _dpo(c.detach(), r, *x),
    "the rejected log-probs are detached": lambda c, r, *x: _dpo(c, r.detach(), *x),
}


def _pairs(seed: int, scale: float = 2.0) -> tuple[Tensor, Tensor, Tensor, Tensor, float]:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda: -scale * torch.rand((4, 1, 6)[seed % 3], generator=generator, dtype=torch.float64) - 0.1  # noqa: E731
    return draw(), draw(), draw(), draw(), (0.1, 0.5, 2.0)[seed % 3]


def _by_pair(function: Function, *pairs: Any) -> Any:
    """[2, N] gradients of every pair's loss by its own chosen and rejected log-prob; NaN where there is none."""
    chosen, rejected, *rest = pairs
    leaves = [chosen.requires_grad_(True), rejected.requires_grad_(True)]
    losses = function(*leaves, *rest)
    if not isinstance(losses, Tensor) or not losses.requires_grad:
        return torch.full((2, len(chosen)), torch.nan)
    return torch.stack(torch.autograd.grad(losses.sum(), leaves, allow_unused=True, materialize_grads=True))


@exercise
def check_dpo_pair_loss(function: Function) -> None:
    """Check `dpo_pair_loss(chosen, rejected, ref_chosen, ref_rejected, beta)`, [N] each -> [N], and its gradient.

    Raises:
        AssertionError: with the first case that fails and what usually causes it.
    """
    name = "dpo_pair_loss"
    hint = (
        "a tensor [N]: -logsigmoid(beta ((chosen - ref_chosen) - (rejected - ref_rejected))); "
        "a sigmoid that is 0 or 1 after rounding, or an exponential that overflows, has lost it"
    )
    draw = lambda *rows: tuple(torch.tensor(row).double() for row in rows)  # noqa: E731
    same = draw([-3.0, -8.0], [-5.0, -1.0])
    far = draw([-1e4, -1.0, -2e4], [-1.0, -1e4, -1.0], [-1.0, -1.0, -5.0], [-1.0, -1.0, -3.0])
    cases = [("two pairs, margins 1 and 0", (*draw([-2.0, -3.0], [-4.0, -5.0], [-3.0, -1.0], [-3.0, -3.0]), 0.5))]
    cases += [(f"random pairs {seed}", _pairs(seed)) for seed in range(RANDOM_CASES)]
    cases.append(("the policy is the reference: log 2", (*same, *(x.clone() for x in same), 0.3)))
    cases.append(("log-ratios of thousands of nats", (*far, 1.0)))
    for case, pairs in cases:
        label = f"{case}, beta {pairs[-1]:g}"
        faults = {cause: partial(fault, *pairs) for cause, fault in _DPO_FAULTS.items()}
        _compare(name, label, function, _dpo(*pairs), faults, hint, inputs=pairs)
    for case, pairs in cases:
        run = lambda f, pairs=pairs: _by_pair(f, *(x.clone() for x in pairs[:4]), pairs[4])  # noqa: E731
        faults = {cause: partial(run, fault) for cause, fault in _DPO_GRADIENT_FAULTS.items()}
        odd = partial(odd_tensors, not_finite="a gradient is missing or no number: is the result detached or rebuilt?")
        label, call = f"gradients by chosen and rejected, {case}, beta {pairs[-1]:g}", partial(_by_pair, function)
        compare(name, label, call, run(_dpo), faults, hint, same=same_tensors, odd=odd, inputs=pairs)
    print(f"{name}: passed (pairs by hand, {RANDOM_CASES} random cases, log 2, far pairs; values and gradients)")


# -- a KL of whole replies in the loss ---------------------------------------------------------------------------------
def _leash(
    log_probs: Tensor,
    ref: Tensor,
    mask: Tensor,
    *,
    kind: str = "k2",
    each: str = "reply",
    over: str = "replies",
    factor: float = 1.0,
    masked: bool = True,
) -> Tensor:
    """The definition, and the ways to get it wrong."""
    ratio = log_probs - ref
    ratio = torch.where(mask, ratio, 0.0) if masked else ratio
    count = mask.sum(1)
    parts = {
        "reply": ratio.sum(1),
        "token": ratio,
        "column": ratio.sum(0),
        "mean": ratio.sum(1) / count,
        "width": ratio.mean(1),
        "last": ratio.gather(1, count[:, None] - 1)[:, 0],
        "first": ratio[:, 0],
        "batch": ratio.sum(1).mean()[None],
        "all": ratio.sum()[None],
    }[each]
    estimators = {
        "k1": lambda x: x,
        "k2": lambda x: x.square() / 2,
        "k3": lambda x: torch.expm1(-x) + x,
        "|k1|": torch.abs,
        "dead": lambda x: x.detach() * x.detach() / 2 + 0 * x,
        "half dead": lambda x: x.detach() * x / 2,
    }
    values = factor * estimators[kind](parts)
    if values.dim() == 2:
        values = values * mask
        per_reply = {"tokens": lambda: values.sum() / count.sum(), "own": lambda: (values.sum(1) / count).mean()}
        return per_reply[over]() if over in per_reply else values.sum(1).mean()
    return {"sum": values.sum, "tokens": lambda: values.sum() / count.sum()}.get(over, values.mean)()


_LEASH_FAULTS: dict[str, dict[str, Any]] = {  # cause -> options of `_leash`
    "per-token k2, summed: the square comes after the sum over the reply, or no token answers for later ones": {
        "each": "token"
    },
    "per-token k2, and the mean over all tokens": {"each": "token", "over": "tokens"},
    "per-token k2, and the mean over each reply's tokens": {"each": "token", "over": "own"},
    "k1 in the loss: its expected gradient is 0": {"kind": "k1"},
    "k1 of the tokens, the mean over tokens: short replies count more, and it is not the gradient of the KL": {
        "kind": "k1",
        "each": "token",
        "over": "own",
    },
    "k1 over the batch's number of tokens": {"kind": "k1", "each": "token", "over": "tokens"},
    "k3 of the whole reply: it has the gradient of the other KL, KL(reference || policy)": {"kind": "k3"},
    "per-token k3, summed": {"kind": "k3", "each": "token"},
    "per-token k3, and the mean over all tokens": {"kind": "k3", "each": "token", "over": "tokens"},
    "per-token k3, and the mean over each reply's tokens": {"kind": "k3", "each": "token", "over": "own"},
    "the factor 1/2 is missing: the gradient is doubled": {"factor": 2.0},
    "half the gradient: is one of the two factors of the square detached, with the 1/2 still there?": {
        "kind": "half dead"
    },
    "the sign: a loss is minimised, so the leash enters with a plus": {"factor": -1.0},
    "the mean of the log-ratio over a reply's tokens: the KL of a reply is a sum": {"each": "mean"},
    "the mean of the log-ratio over all columns, padding among them": {"each": "width"},
    "the sum over replies: the mean is asked": {"over": "sum"},
    "divided by the number of tokens: the mean over replies is asked": {"over": "tokens"},
    "the log-ratio of the last token alone": {"each": "last"},
    "the log-ratio of the first token alone": {"each": "first"},
    "the wrong axis: sum over the tokens of a reply, dim 1": {"each": "column"},
    "the square of the mean over replies: each reply has its own square": {"each": "batch"},
    "the square of the sum over the whole batch: each reply has its own square": {"each": "all"},
    "the absolute value of the log-ratio, not half its square": {"kind": "|k1|"},
    "the mask is missing: junk at padding is in the sum": {"masked": False},
    "the gradient is 0: is the policy's log-ratio detached?": {"kind": "dead"},
}


def _expected_gradient(
    world: TokenWorld, logits: Tensor, ref: Tensor, function: Function, junk: Tensor, batch: int
) -> Tensor:
    """Gradient by the logits of the mean of `function` over all batches of so many replies of the policy."""
    logits = logits.clone().requires_grad_(True)
    table, ref_table = (
        torch.where(world.mask, world.token_log_probs(x)[0], other) for x, other in ((logits, junk), (ref, -junk))
    )
    law, total = world.law(logits.detach())[0], torch.zeros((), dtype=torch.float64)
    for numbers in product(range(world.num_sequences), repeat=batch):
        rows = torch.tensor(numbers)
        given = [table[rows], ref_table[rows], world.mask[rows]]
        before = [x.detach().clone() for x in given]
        value = function(*given)
        if any(map(changed, before, given)):
            raise ValueError("an in-place change of an argument")
        if not isinstance(value, Tensor) or value.dim():
            got = f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"sequence_leash returned {got}; one number, a tensor of no axes, is asked")
        if not value.requires_grad:
            raise ValueError("sequence_leash returned a number without gradient; the policy's log_probs must keep it")
        total = total + law[rows].prod() * value
    (gradient,) = torch.autograd.grad(total, logits, allow_unused=True, materialize_grads=True)
    return gradient


def _leash_case(vocab_size: int, length: int, seed: int) -> tuple[TokenWorld, Tensor, Tensor]:
    world = TokenWorld(vocab_size, length, lambda prompt, tokens: 0.0, eos=0)
    generator = torch.Generator().manual_seed(seed)
    shape = (1, world.num_prefixes, vocab_size)
    logits, ref = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return world, logits, ref


@exercise
def check_sequence_leash(function: Function) -> None:
    """Check `sequence_leash(log_probs, ref_log_probs, mask)`: a number whose gradient is on average that of the KL.

    The average is exact: over all batches of two or three replies that the policy may give, by their probabilities. It
    has to be the gradient of KL(policy || reference) of whole replies.

    Raises:
        AssertionError: with the first case that fails and what usually causes it.
    """
    name, hint = "sequence_leash", "1/2 (sum over the reply's tokens of log_probs - ref_log_probs)^2, mean over replies"
    coin = TokenWorld(2, 1, lambda prompt, tokens: 0.0), torch.zeros(1, 1, 2).double(), torch.tensor([[[0.8, 0.2]]])
    cases = [("two replies of a token, policy 1/2 and 1/2, reference 0.8 and 0.2", (*coin[:2], coin[2].double().log()))]
    shapes = [(2, 3), (3, 2), (2, 3)]
    cases += [(f"random world {seed}, junk at padding", _leash_case(*shape, seed)) for seed, shape in enumerate(shapes)]
    for case, (world, logits, ref) in cases:
        label = f"expected gradient by the logits, {case}"
        run = partial(_expected_gradient, world, logits, ref, batch=world.length if world.length > 1 else 2)
        mild = torch.full(world.mask.shape, 0.3, dtype=torch.float64)
        worst = torch.tensor([torch.nan, torch.inf]).double().repeat(world.mask.numel())[: world.mask.numel()]
        expected = world.kl_gradient(logits, world.law(ref))
        faults = {cause: partial(run, partial(_leash, **options), mild) for cause, options in _LEASH_FAULTS.items()}
        _compare(name, label, partial(run, function, mild), expected, faults, hint)
        odd = partial(odd_tensors, not_finite=PADDING)
        spoiled = partial(run, function, worst.view(world.mask.shape))
        compare(name, f"{label}, {AT_PADDING}", spoiled, expected, {}, PADDING, same=same_tensors, odd=odd)
    print(f"{name}: passed (a case by hand and {len(shapes)} random worlds, batches of 2 or 3 replies, NaN at padding)")


# -- the cost to go ----------------------------------------------------------------------------------------------------
def _to_go(
    log_probs: Tensor, teacher: Tensor, mask: Tensor, *, which: str = "from", sign: float = 1.0, masked: bool = True
) -> Tensor:
    """The definition, and the ways to get it wrong."""
    cost = sign * (log_probs - teacher)
    cost = torch.where(mask, cost, 0.0) if masked else cost
    total, up_to = cost.sum(1, keepdim=True), cost.cumsum(1)
    onwards = total - up_to + cost
    left = mask.flip(1).cumsum(1).flip(1).clamp(min=1)
    found = {
        "from": onwards,
        "up to": up_to,
        "before": up_to - cost,
        "whole": total.expand_as(cost),
        "after": total - up_to,
        "own": cost,
        "mean": onwards / left,
        "whole mean": (total / mask.sum(1, keepdim=True)).expand_as(cost),
        "axis": cost.flip(0).cumsum(0).flip(0),
        "backwards": onwards.flip(1),
        "sampled": (log_probs.exp() * cost).flip(1).cumsum(1).flip(1),
        "at padding": onwards,
    }[which]
    return found if which == "at padding" or not masked else torch.where(mask, found, 0.0)


_COST_FAULTS: dict[str, dict[str, Any]] = {  # cause -> options of `_to_go`
    "the sum up to t: a token answers for what comes from it on": {"which": "up to"},
    "the sum before t: a token answers for what comes from it on": {"which": "before"},
    "the whole sum at every token: what came before t is not its doing": {"which": "whole"},
    "t itself is left out: its own log-ratio belongs to the sum": {"which": "after"},
    "each token's own log-ratio: the sum from it on is missing": {"which": "own"},
    "the mean from t on and not the sum": {"which": "mean"},
    "the mean over the whole reply": {"which": "whole mean"},
    "the sign: log student minus log teacher is the cost": {"sign": -1.0},
    "the sign, and the sum up to t": {"sign": -1.0, "which": "up to"},
    "the wrong axis: sum along a reply, dim 1": {"which": "axis"},
    "the order: a second flip puts the sums back": {"which": "backwards"},
    "weighed by the student's probability: the tokens are samples of it already": {"which": "sampled"},
    "the mask is missing: padding is in the sums": {"masked": False},
    "the mask is missing: padding is in the sums, though the answer is 0 at padding": {"masked": False, "which": "cut"},
}


def _faulty_cost(log_probs: Tensor, teacher: Tensor, mask: Tensor, options: dict[str, Any]) -> Tensor:
    if options.get("which") == "cut":
        return _to_go(log_probs, teacher, mask, masked=False) * mask
    return _to_go(log_probs, teacher, mask, **options)


def _ragged(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Some batches hold one reply. Otherwise there are as many replies as columns: the wrong axis raises nothing."""
    rows, width = [(4, 4), (1, 4), (3, 3)][seed % 3]
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, width + 1, (rows,), generator=generator)
    lengths[0], lengths[-1] = width, max(1, width - 2)
    log_probs, teacher = (-3 * torch.rand(rows, width, generator=generator, dtype=torch.float64) for _ in range(2))
    return log_probs, teacher, length_mask(lengths, width)


@exercise
def check_cost_to_go(function: Function) -> None:
    """Check `cost_to_go(log_probs, teacher_log_probs, mask)`, [B, T] each -> [B, T] data, 0 at padding.

    Raises:
        AssertionError: with the first case that fails and what usually causes it.
    """
    name, hint = "cost_to_go", "at t the sum of log_probs - teacher_log_probs over the real tokens from t on; 0 after"
    log_probs = torch.tensor([[-1.0, -1.0, -1.0], [-2.0, -1.0, 9.0]]).double()
    teacher = torch.tensor([[-2.0, -1.5, -0.5], [-1.0, -3.0, 5.0]]).double()
    hand = log_probs, teacher, torch.tensor([[True, True, True], [True, True, False]])
    cases = [("two replies, of 3 tokens and of 2", hand)]
    cases += [(f"random case {seed}, junk at padding", _ragged(seed)) for seed in range(RANDOM_CASES)]
    for case, inputs in cases:
        spoiled = *spoil(inputs[2], *inputs[:2]), inputs[2]
        faults = {cause: partial(_faulty_cost, *inputs, options) for cause, options in _COST_FAULTS.items()}
        _compare(name, case, function, _to_go(*inputs), faults, hint, inputs=inputs, spoiled=spoiled)
    log_probs, *rest = _ragged(99)
    cause = "a missing detach: the cost is data, a weight of the gradient of log_probs, and has no gradient of its own"
    expect_data(name, "log_probs that require grad", function, (log_probs.requires_grad_(True), *rest), cause)
    print(f"{name}: passed (a case by hand, {RANDOM_CASES} random ones with NaN at padding, no gradient)")
