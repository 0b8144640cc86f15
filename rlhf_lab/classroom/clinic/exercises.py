"""Checks of the chapter's two other exercises: whitening over the real tokens, and an alarm for a dead clip."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from rlhf_lab.classroom.checks.comparing import compare, exercise, odd_tensors, same_tensors
from rlhf_lab.maths.tensors import length_mask, masked_sum, masked_whiten
from rlhf_lab.training.randomness import generator_for


@exercise
def check_whiten(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Check `whiten(advantages [B, T], mask [B, T])`: mean 0 and variance 1 over the real tokens, 0 at padding.

    Raises:
        AssertionError: with the first case that fails and what usually causes it.
    """
    hint = "(x - mean) / sqrt(var + 1e-8), both over the real tokens alone; 0 at padding"
    hand = torch.tensor([[1.0, 3.0, 9.0], [5.0, 7.0, 9.0]], dtype=torch.float64)
    mask = length_mask(torch.tensor([2, 1]), 3)
    cases = [("[[1, 3, -], [5, -, -]] with junk in place of -", hand, mask)]
    cases.append(("[[1, 3, -], [5, -, -]] / 10000, where 1e-8 counts", hand / 10_000, mask))
    for seed in range(10):
        generator = generator_for(seed, "whiten")
        rows, shortest = (1, 2) if seed % 5 == 4 else (4, 1)  # a batch of one keeps its axis
        x = torch.randn(rows, 5, generator=generator, dtype=torch.float64) + 2
        mask = length_mask(torch.randint(shortest, 6, (rows,), generator=generator), 5)
        junk = torch.nan if seed % 2 else 50.0
        cases.append((f"random rows {seed}, {junk} at padding", torch.where(mask, x, junk), mask))
    not_finite = "not a number: NaN times 0 is NaN, so leave padding out of every sum, and put 0 there with torch.where"
    odd = partial(odd_tensors, not_finite=not_finite)
    for case, x, mask in cases:
        expected, inputs = masked_whiten(x, mask), (x, mask)
        faults = {cause: partial(fault, *inputs) for cause, fault in WHITEN_FAULTS.items()}
        compare("whiten", case, function, expected, faults, hint, same=same_tensors, odd=odd, inputs=inputs)
    print("whiten: passed (a case by hand, 10 random ones with junk or NaN at padding)")


def _by_row(x: Tensor, mask: Tensor) -> Tensor:
    mean = masked_sum(x, mask, dim=1)[:, None] / mask.sum(1, keepdim=True)
    return torch.where(mask, (x - mean) / (masked_sum((x - mean).square(), mask) / (mask.sum() - 1) + 1e-8).sqrt(), 0)


WHITEN_FAULTS: dict[str, Callable] = {
    "padding is counted in mean and variance": lambda x, m: torch.where(m, (x - x.mean()) / (x.var() + 1e-8).sqrt(), 0),
    "padding is zeroed and then counted": lambda x, m: torch.where(
        m, (x - torch.where(m, x, 0).mean()) / (torch.where(m, x, 0).var() + 1e-8).sqrt(), 0
    ),
    "what stands at padding comes out again: it has to be 0": lambda x, m: (
        (x - x[m].mean()) / (x[m].var() + 1e-8).sqrt()
    ),
    "the mean is not subtracted": lambda x, m: torch.where(m, x / (x[m].var() + 1e-8).sqrt(), 0),
    "1e-8 is missing: it is added to the variance, under the root": lambda x, m: torch.where(
        m, (x - x[m].mean()) / x[m].std(), 0
    ),
    "1e-8 is added to the standard deviation; it is added to the variance, under the root": lambda x, m: torch.where(
        m, (x - x[m].mean()) / (x[m].std() + 1e-8), 0
    ),
    "divided by the variance, not by its root": lambda x, m: torch.where(m, (x - x[m].mean()) / x[m].var(), 0),
    "only the mean is subtracted": lambda x, m: torch.where(m, x - x[m].mean(), 0),
    "the biased variance: divide by n - 1": lambda x, m: torch.where(
        m, (x - x[m].mean()) / (x[m].var(unbiased=False) + 1e-8).sqrt(), 0
    ),
    "each row is centred on its own": _by_row,
}


@exercise
def check_clip_is_alive(function: Callable[[list[float], list[float]], bool]) -> None:
    """Check `clip_is_alive(clip_fractions, step_kls)`: False if the policy moved (> 0.01) and nothing was ever clipped.

    Raises:
        AssertionError: with the first case that fails and what usually causes it.
    """
    cases = {
        "an empty run": ([], []),
        "moved and rarely clipped": ([0.001, 0.0], [0.05, 0.02]),
        "moved and never clipped": ([0.0, 0.0], [0.012, 0.001]),
        "hardly moved, never clipped": ([0.0, 0.0], [0.01, 0.005]),
        "clipped once, much later": ([0.0, 0.0, 0.0, 0.2], [0.05, 0.05, 0.05, 0.05]),
        "moved late, never clipped": ([0.0, 0.0, 0.0], [0.0, 0.001, 0.3]),
    }
    hint = "False only where max(step_kls) > 0.01 and no clip fraction is above 0"
    pattern = lambda f: [bool(f(list(c), list(k))) for c, k in cases.values()]  # noqa: E731
    for case, inputs in cases.items():
        label = f"{case}, clip fractions {inputs[0]}, step KLs {inputs[1]}"
        truth = _alive(*inputs)  # a fault explains the answer if it is wrong in the same runs as the function
        faults = {
            cause: lambda f=fault, t=truth: (not t) if pattern(f) == pattern(function) else t
            for cause, fault in ALIVE_FAULTS.items()
        }
        compare("clip_is_alive", label, function, truth, faults, hint, same=_same_truth, odd=_no_truth, inputs=inputs)
    print(f"clip_is_alive: passed ({len(cases)} runs)")


def _alive(clip_fractions: list[float], step_kls: list[float]) -> bool:
    return any(x > 0 for x in clip_fractions) or max(step_kls, default=0.0) <= 0.01


ALIVE_FAULTS: dict[str, Callable] = {
    "the answer is the wrong way round: True means alive": lambda c, k: not _alive(c, k),
    "a run that stands still is no alarm": lambda c, k: any(x > 0 for x in c),
    "a single clipped iteration is enough to be alive": lambda c, k: all(x > 0 for x in c) or max(k, default=0) <= 0.01,
    "only the last iteration is looked at": lambda c, k: not c or c[-1] > 0 or k[-1] <= 0.01,
    "only the first iteration is looked at": lambda c, k: not c or c[0] > 0 or k[0] <= 0.01,
    "both conditions need not hold in one iteration": lambda c, k: (
        not any(x == 0 and y > 0.01 for x, y in zip(c, k, strict=True))
    ),
    "the largest step KL counts, against 0.01; the mean is small in a long run": lambda c, k: (
        any(x > 0 for x in c) or sum(k) / max(len(k), 1) <= 0.01
    ),
    "the largest step KL counts; the sum grows with the run": lambda c, k: any(x > 0 for x in c) or sum(k) <= 0.01,
    "the alarm needs a step KL above 0.01; 0.01 itself is none": lambda c, k: (
        any(x > 0 for x in c) or max(k, default=0) < 0.01
    ),
}


def _same_truth(got: object, expected: bool) -> bool:
    return not _no_truth(got, expected) and bool(got) == expected


def _no_truth(got: object, expected: bool) -> str | None:
    odd = isinstance(got, str | list | tuple | None) or getattr(got, "ndim", 0) > 0
    return f"it returned {type(got).__name__} and not True or False; is there a `return`?" if odd else None
