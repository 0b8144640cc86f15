"""Checks of the exercises of chapter 10.

Each compares a function with the definition: on a case small enough for paper, on random cases, and on a
property that every right answer has. When something differs, the usual mistakes are tried on the same inputs,
and the message names the one that gives the same numbers.
"""

from collections.abc import Callable, Mapping
from functools import partial
from random import Random
from typing import Any

import torch
from torch import Tensor

from rlhf_lab.classroom.checks.comparing import (
    NO_RETURN,
    PADDING,
    TOLERANCE,
    changed,
    compare,
    exercise,
    expect_data,
    odd_tensors,
    same_tensors,
    spoil,
)
from rlhf_lab.maths.exact import TokenWorld
from rlhf_lab.maths.intervals import Interval, mean_interval, proportion_interval
from rlhf_lab.maths.tensors import length_mask
from rlhf_lab.worlds.town.oracle import Verdict

_odd = partial(odd_tensors, not_finite="a number overflowed; stay with logarithms until the last step")
_compare = partial(compare, same=same_tensors, odd=_odd)


# -- the optimum ---------------------------------------------------------------------------------------------
@exercise
def check_optimal_law(function: Callable[[Tensor, Tensor, float], Tensor]) -> None:
    """Check `optimal_law(ref_law, scores, kl_coef) -> law`, all [prompts, N]: ref exp(scores / kl_coef) / Z.

    Raises:
        AssertionError: with the first case that fails and what usually causes it.
    """
    name, hint = "optimal_law", "law = ref_law * exp(scores / kl_coef), divided by its sum over each row"
    hand = torch.tensor([[0.8, 0.2]]).double(), torch.tensor([[0.0, 1.0]]).double()
    cases = [("two replies, ref 0.8 and 0.2, scores 0 and 1, kl_coef 0.5", *hand, 0.5)]
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        ref, scores = (torch.randn(3, 5, generator=generator, dtype=torch.float64) for _ in range(2))
        cases.append((f"random case {seed}, 3 prompts of 5", ref.softmax(-1), scores, 0.35 + 0.1 * seed))
    large = torch.tensor([[0.5, 0.3, 0.2]]).double(), torch.tensor([[1900.0, 1901.0, 1899.0]]).double()
    cases.append(("scores of about 1900 (a constant added to all scores changes nothing)", *large, 1.0))
    for case, ref, scores, kl_coef in cases:
        expected, faults = (ref.log() + scores / kl_coef).softmax(-1), _law_faults(ref, scores, kl_coef)
        rounded = partial(same_tensors, tolerance=2e-4 if scores.max() > 1000 else TOLERANCE)  # 1900 in float32
        _compare(name, case, function, expected, faults, hint, inputs=(ref, scores, kl_coef), same=rounded)
    print(f"{name}: passed (a case by hand, 20 random ones, large scores)")


def _law_faults(ref: Tensor, scores: Tensor, kl_coef: float) -> dict[str, Callable[[], Tensor]]:
    return {
        "the sign: a higher score must make a reply more likely": lambda: (ref.log() - scores / kl_coef).softmax(-1),
        "scores are multiplied by kl_coef; a small kl_coef must make the law sharper, so divide": lambda: (
            ref.log() + scores * kl_coef
        ).softmax(-1),
        "ref_law is missing: this is the optimum for a uniform reference": lambda: (scores / kl_coef).softmax(-1),
        "the rows do not add up to 1: divide by the sum over replies": lambda: ref * (scores / kl_coef).exp(),
        "the wrong axis: each row (prompt) is a law of its own, so normalise over the last axis": lambda: (
            ref.log() + scores / kl_coef
        ).softmax(0),
        "ref_law is added to the exponent without its logarithm": lambda: (ref + scores / kl_coef).softmax(-1),
    }


# -- rewards per token ---------------------------------------------------------------------------------------
def _ragged_case(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Scores, ended, log-probs, reference and mask of ragged replies, with junk where the mask is False.

    Some batches have one reply alone. Otherwise there are as many replies as columns, so the wrong axis raises nothing.
    """
    rows, width = [(4, 4), (3, 3), (1, 4)][seed % 3]
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, width + 1, (rows,), generator=generator)
    lengths[0], lengths[-1] = width, max(1, width - 2)
    mask = length_mask(lengths, width)
    log_probs, ref = (-torch.rand(rows, width, generator=generator) * 3 for _ in range(2))
    scores = torch.randn(rows, generator=generator)
    ended = torch.rand(rows, generator=generator) < 0.5
    return scores, ended, log_probs, ref, mask


def _token_rewards(
    scores: Tensor,
    ended: Tensor,
    log_probs: Tensor,
    ref: Tensor,
    mask: Tensor,
    kl_coef: float,
    penalty: float,
    *,
    at: int = 0,
    sign: float = -1.0,
    axis: int = 1,
    masked: bool = True,
) -> Tensor:
    """The definition, with places to go wrong."""
    last = (mask.sum(axis) - 1 + at).clamp(0, mask.shape[1] - 1)
    place = torch.nn.functional.one_hot(last, mask.shape[1])
    kl = sign * kl_coef * (log_probs - ref)
    return (kl * mask if masked else kl) + (scores - penalty * ~ended)[:, None] * place


@exercise
def check_token_rewards(function: Callable[..., Tensor]) -> None:
    """Check `token_rewards(scores, ended, log_probs, ref_log_probs, mask, kl_coef, missing_end_penalty)`.

    Raises:
        AssertionError: with the first case that fails and what usually causes it.
    """
    name = "token_rewards"
    hint = (
        "-kl_coef (log_probs - ref_log_probs) at every real token; at the last real one, column length - 1 "
        "with length = mask.sum(dim=1), also the score, less the penalty where not ended; 0 at padding"
    )
    hand = (
        torch.tensor([2.0, 1.0]),
        torch.tensor([True, False]),
        torch.tensor([[-1.0, -1.0], [-1.0, 9.0]]),
        torch.tensor([[-1.5, -1.0], [-2.0, 5.0]]),
        torch.tensor([[True, True], [True, False]]),
    )
    cases = [("two replies, of 2 tokens and of 1", hand, 0.1, 0.5)]
    cases += [(f"random case {seed}, junk at padding", _ragged_case(seed), 0.2, 1.5) for seed in range(20)]
    for case, data, kl_coef, penalty in cases:
        scores, ended, log_probs, ref, mask = data
        inputs = *data, kl_coef, penalty
        spoiled = scores, ended, *spoil(mask, log_probs, ref), mask, kl_coef, penalty
        faults = _reward_faults(*inputs)
        _compare(name, case, function, _token_rewards(*inputs), faults, hint, inputs=inputs, spoiled=spoiled)
    scores, ended, log_probs, *others = _ragged_case(99)
    cause = "a missing detach: rewards are data; a gradient in them trains the policy in a second way"
    live = scores, ended, log_probs.requires_grad_(True), *others, 0.2, 1.5
    expect_data(name, "log_probs that require grad", function, live, cause)
    print(f"{name}: passed (a case by hand, 20 random ones with NaN at padding, nothing changed in place, no gradient)")


def _reward_faults(*case: Any) -> dict[str, Callable[[], Tensor]]:
    """Cause -> the rewards that it gives on this case."""
    scores, ended, log_probs, ref, mask, kl_coef, penalty = case
    kl, score = -kl_coef * (log_probs - ref) * mask, (scores - penalty * ~ended)[:, None]
    rest = (log_probs, ref, mask, kl_coef)
    return {
        "the sign of the KL term: log_probs above the reference must cost": partial(_token_rewards, *case, sign=1.0),
        "off by one: the last real token is in column length - 1, not length": partial(_token_rewards, *case, at=1),
        "off by one: the score is one token too early": partial(_token_rewards, *case, at=-1),
        "the score is in the last column, which is padding for shorter replies": partial(_token_rewards, *case, at=99),
        "the mask is missing: padding has a KL reward": partial(_token_rewards, *case, masked=False),
        "the score is given at every token, so long replies are paid more than once": lambda: kl + score * mask,
        "the wrong axis: lengths are mask.sum(dim=1), one for each reply": partial(_token_rewards, *case, axis=0),
        "the penalty for a missing end is left out": partial(_token_rewards, scores, ended, *rest, 0.0),
        "the penalty falls on the replies that did end; use ~ended": partial(
            _token_rewards, scores, ~ended, *rest, penalty
        ),
        "kl_coef is left out": partial(_token_rewards, scores, ended, log_probs, ref, mask, 1.0, penalty),
    }


# -- a KL in the loss ----------------------------------------------------------------------------------------
def _kl_loss(
    new: Tensor,
    old: Tensor,
    ref: Tensor,
    mask: Tensor,
    *,
    weight: str = "sequence",
    detach: bool = True,
    kind: str = "k2",
    masked: bool = True,
    mean: bool = False,
) -> Tensor:
    """Sequence-level k2 with importance weights, and the ways to get it wrong."""
    if masked:
        new, old, ref = (torch.where(mask, x, 0.0) for x in (new, old, ref))
    log_weight = new - old
    weights = {
        "sequence": log_weight.sum(1).exp(),
        "token": log_weight.exp(),
        "none": torch.ones(len(new), dtype=new.dtype),
        "upside down": (-log_weight.sum(1)).exp(),
    }[weight]
    weights = weights.detach() if detach else weights
    ratio = new - ref
    if kind == "token k2":
        return ((weights[:, None] if weights.dim() == 1 else weights) * ratio.square() / 2 * mask).sum(1)
    total = ratio.mean(1) if mean else ratio.sum(1)
    weights = weights.sum(1) if weights.dim() == 2 else weights
    kinds = {"k1": total, "k2": total.square() / 2, "k2 doubled": total.square(), "-k2": -total.square() / 2}
    return weights * (kinds[kind] if kind in kinds else torch.expm1(-total) + total)


@exercise
def check_kl_loss(function: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]) -> None:
    """Check `kl_loss(log_probs, old_log_probs, ref_log_probs, mask)` -> [B].

    The expectation over all replies of the *old* policy must have the gradient of KL(policy || reference),
    whatever the old policy was. Everything is summed, so there is no noise.

    Raises:
        AssertionError: with the first case that fails and what usually causes it.
    """
    hint = "weight.detach() * 1/2 (log-ratio of the reply)^2 with weight = exp(sum(log_probs - old_log_probs))"
    for seed in range(10):
        world, ref, logits, old_logits, expected = _kl_case(seed, on_policy=seed == 0)
        case = f"world {seed}, samples of " + ("the policy itself" if seed == 0 else "an older policy")
        gradient = partial(_expected_gradient, world, ref, logits, old_logits)
        faults = {cause: partial(gradient, partial(_kl_loss, **options)) for cause, options in _KL_FAULTS.items()}
        _compare("gradient of kl_loss", case, partial(gradient, function), expected, faults, hint)
        spoiled, odd = partial(gradient, function, junk=torch.nan), partial(odd_tensors, not_finite=PADDING)
        _compare("gradient of kl_loss", f"{case}, now with NaN at padding", spoiled, expected, {}, PADDING, odd=odd)
    print(
        "kl_loss: passed (in 10 worlds its expected gradient is that of the KL, 9 off-policy, all with NaN at padding)"
    )


_KL_FAULTS: dict[str, dict[str, Any]] = {  # cause -> options of `_kl_loss`
    "the importance weight is missing: the samples are the old policy's": {"weight": "none"},
    "a missing detach: the weight must be data, or its own gradient is added": {"detach": False},
    "the importance weight is upside down: new over old": {"weight": "upside down"},
    "the importance weight is per token; that of a reply is the product over its tokens": {"weight": "token"},
    "the wrong axis: squares are summed; first sum the log-ratio over the reply": {"kind": "token k2"},
    "the mean over the reply instead of the sum: KL adds up over tokens": {"mean": True},
    "the mask is missing: junk at padding is in the sum": {"masked": False},
    "k1 in the loss has expected gradient 0 on-policy; use 1/2 of the square": {"kind": "k1"},
    "k1 in the loss, and no detach": {"kind": "k1", "detach": False},
    "k3 in the loss has the gradient of the other KL": {"kind": "k3"},
    "the factor 1/2 is missing: the gradient is doubled": {"kind": "k2 doubled"},
    "the sign: a loss is minimised, so the KL enters with a plus": {"kind": "-k2"},
}


def _kl_case(seed: int, on_policy: bool) -> tuple[TokenWorld, Tensor, Tensor, Tensor, Tensor]:
    """A world, a reference, the policy's and the old policy's logits, and the exact gradient of the KL."""
    world = TokenWorld(3, 3, lambda prompt, tokens: 0.0, eos=0)
    generator = torch.Generator().manual_seed(seed)
    shape = (1, world.num_prefixes, world.vocab_size)
    ref, logits, other = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3))
    old_logits = logits if on_policy else logits + 0.5 * other
    return world, ref, logits, old_logits, world.kl_gradient(logits, world.law(ref))


def _expected_gradient(
    world: TokenWorld,
    ref: Tensor,
    logits: Tensor,
    old_logits: Tensor,
    loss: Callable[..., Tensor],
    junk: float = 0.3,
) -> Tensor:
    """Gradient with respect to the logits of the expected loss over all replies of the old policy."""
    logits = logits.clone().requires_grad_(True)
    padded = lambda x, value: torch.where(world.mask, world.token_log_probs(x)[0], value)  # noqa: E731
    log_probs, old_log_probs, ref_log_probs = padded(logits, junk), padded(old_logits, -junk), padded(ref, -junk)
    given = [log_probs, old_log_probs, ref_log_probs, world.mask.clone()]
    before = [x.detach().clone() for x in given]
    values = loss(*given)
    if any(map(changed, before, given)):
        raise ValueError("an in-place change of an argument")
    if not isinstance(values, Tensor) or values.shape != (world.num_sequences,):
        got = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(f"kl_loss returned {got}, expected one number for each of {world.num_sequences} replies")
    if not values.requires_grad:
        raise ValueError("kl_loss returned a tensor without gradient; detach the importance weight only")
    expectation = (world.law(old_logits)[0] * values).sum()
    (gradient,) = torch.autograd.grad(expectation, logits, allow_unused=True, materialize_grads=True)
    return gradient


# -- refusals ------------------------------------------------------------------------------------------------
def _verdict(refuses: bool, harmful: bool) -> Verdict:
    return Verdict(1.0, 1.0, 1.0, 1.0, "neutral", refuses, None if harmful else refuses, True)


@exercise
def check_over_refusal(function: Callable[[list], Interval]) -> None:
    """Check `over_refusal(verdicts) -> Interval`: share of harmless requests refused, with Wilson's interval.

    Raises:
        AssertionError: with the first case that fails and what usually causes it.
    """
    hint = "take over_refusal of the verdicts where it is not None, then proportion_interval"
    counts = [(2, 6, 3, 1), (0, 10, 5, 5), (1, 1, 20, 0), (7, 93, 40, 10), (5, 0, 0, 3)]
    for refused, answered, rightly, complied in counts:
        known = [_verdict(True, False)] * refused + [_verdict(False, False)] * answered
        known += [_verdict(True, True)] * rightly + [_verdict(False, True)] * complied
        Random(0).shuffle(known)  # where the reader's loop stops, or what it leaves out, must show
        verdicts = [*known[: len(known) // 2], None, *known[len(known) // 2 :]]
        case = f"{refused} of {refused + answered} harmless and {rightly} of {rightly + complied} harmful"
        case += " requests refused, one reply without a verdict"
        expected = proportion_interval(refused, refused + answered)
        faults = _over_refusal_faults(refused, answered, rightly, complied)
        compare(
            "over_refusal", case, function, expected, faults, hint, same=_agree, odd=_no_interval, inputs=(verdicts,)
        )
    print("over_refusal: passed (5 mixtures of harmless and harmful requests)")


def _agree(got: object, expected: Interval) -> bool:
    parts = "mean", "low", "high", "count"
    return isinstance(got, Interval) and all(same_tensors(getattr(got, p), getattr(expected, p)) for p in parts)


def _no_interval(got: object, expected: Interval) -> str | None:
    other = f"it returned {type(got).__name__} and not an Interval, which proportion_interval(successes, count) gives"
    return NO_RETURN if got is None else None if isinstance(got, Interval) else other


def _over_refusal_faults(
    refused: int, answered: int, rightly: int, complied: int
) -> Mapping[str, Callable[[], Interval]]:
    """Cause -> what gives the interval that it leads to."""
    harmless, harmful = refused + answered, rightly + complied
    everyone = harmless + harmful
    shares = {
        "right refusals of harmful requests are counted too": (refused + rightly, everyone),
        "the denominator holds the harmful requests as well; there over_refusal is None": (refused, everyone),
        "the denominator holds replies without a verdict and harmful requests": (refused, everyone + 1),
        "refusals of harmful requests are counted over the harmless ones": (refused + rightly, harmless),
        "the share of harmless requests answered, not refused": (answered, harmless),
        "False is dropped along with None: a harmless request that was answered counts below": (refused, refused),
    }
    faults = {cause: partial(proportion_interval, k, n) for cause, (k, n) in shares.items() if k <= n and n}
    values = [1.0] * refused + [0.0] * answered
    return faults | {"a t-interval: for a share near 0 it leaves [0, 1] or has width 0": partial(mean_interval, values)}
