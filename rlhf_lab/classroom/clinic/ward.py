"""The ward: all patients, their runs, what they may have, and what a fault costs."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from rlhf_lab.classroom.clinic.cases import SUSPECTS, Case
from rlhf_lab.classroom.clinic.experience_cases import EXPERIENCE_CASES
from rlhf_lab.classroom.clinic.oracles import (
    cosine,
    exact_values,
    gradient_oracle,
    moved_oracle,
    pairs_oracle,
    probe_logits,
    used_gradient,
)
from rlhf_lab.classroom.clinic.parts import KL_COEF, Parts, forward, prepare
from rlhf_lab.classroom.clinic.runs import REPLIES, Run, train
from rlhf_lab.classroom.clinic.scoring_cases import SCORING_CASES
from rlhf_lab.classroom.clinic.songs import reference_logits, sample, world
from rlhf_lab.classroom.clinic.update_cases import UPDATE_CASES
from rlhf_lab.maths.intervals import Interval, mean_interval
from rlhf_lab.training.randomness import generator_for

CASES: dict[str, Case] = dict(sorted((EXPERIENCE_CASES | UPDATE_CASES | SCORING_CASES).items()))
SEEDS = range(5)


@cache
def _trained(parts: Parts, seed: int) -> Run:
    return train(parts, seed)


def run_case(name: str, repair: Callable | None = None, seed: int = 0) -> Run:
    """Train with the fault of a case, or with a repair in its place."""
    return _trained(CASES[name].parts(repair), seed)


def healthy(name: str, seed: int = 0) -> Run:
    """The same run with the healthy part."""
    return run_case(name, CASES[name].cure, seed)


@dataclass(frozen=True)
class Outcome:
    """What a fault costs.

    Attributes:
        cosine, length: of the step that it makes in the mean, against the exact one.
        sick, cured: [seeds] exact final objective, score - KL_COEF KL.
        difference: sick - cured by seed, with its 95 % t-interval.
        fired: names of the live checks that were violated.
    """

    cosine: float
    length: float
    sick: tuple[float, ...]
    cured: tuple[float, ...]
    difference: Interval
    fired: tuple[str, ...]


def outcome(name: str) -> Outcome:
    """Measure a fault: the angle of its step, and five seeds with and without it."""
    step, truth = step_of(name)
    sick = tuple(run_case(name, seed=seed).objective for seed in SEEDS)
    cured = tuple(healthy(name, seed).objective for seed in SEEDS)
    difference = mean_interval([a - b for a, b in zip(sick, cured, strict=True)])
    fired = tuple(sorted({check for seed in SEEDS for check in run_case(name, seed=seed).fired}))
    return Outcome(cosine(step, truth), float(step.norm() / truth.norm()), sick, cured, difference, fired)


def step_of(name: str) -> tuple[Tensor, Tensor]:
    """The mean step of a case and the exact one.

    What mixes songs of a batch is averaged over 200 sampled batches, what is random over 50 draws.
    """
    case = CASES[name]
    if case.oracle in (moved_oracle, pairs_oracle):
        return case.oracle(case.parts()), case.oracle(None)
    if name == "V":
        draws = [used_gradient(case.parts(), generator_for(seed, "passes")) for seed in range(50)]
        return torch.stack(draws).mean(0), gradient_oracle(None)
    if name in ("G", "P", "U"):
        return sampled_step(case.parts()), sampled_step(case.parts(case.cure))
    return gradient_oracle(case.parts()), gradient_oracle(None)


@cache
def sampled_step(parts: Parts, batches: int = 200) -> Tensor:
    """Mean gradient of the reduced loss over sampled batches of 64 songs; the same batches for all parts."""
    logits, table = probe_logits().clone().requires_grad_(True), exact_values(probe_logits())
    generator, total = generator_for(6, "batches"), torch.zeros_like(probe_logits())
    for _ in range(batches):
        replies = sample(logits, REPLIES, generator)
        data = prepare(parts, replies, logits, table)
        total -= torch.autograd.grad(forward(parts, replies, data, logits).policy_loss, logits)[0]
    return total / batches


def best_objective() -> float:
    """The most that score - KL_COEF KL can be, from the closed form of the optimum."""
    ref_law = world().law(reference_logits())
    law = world().optimum(ref_law, KL_COEF)
    return float((world().expected_reward(law) - KL_COEF * world().kl(law, ref_law)).mean())


def suspects(names: str, others: tuple[str, ...] = ()) -> None:
    """Print what the patients may have, in alphabetical order."""
    for suspect in sorted([CASES[name].suspect for name in names] + list(others)):
        print(f"{suspect:16} {SUSPECTS[suspect]}")
