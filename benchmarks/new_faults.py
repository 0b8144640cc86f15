"""Ten slips in PPO and RLHF, five in the clinic's parts and five in `train_rlhf`, and what each does to learning.

    OMP_NUM_THREADS=2 python benchmarks/new_faults.py      some minutes on two cores; nothing is stored

A fault in the parts is measured by the mean step that it makes, against that of healthy parts. A fault in `train_rlhf`
is measured by how far two iterations move the weights, and where to, against the same seed without it; two healthy
runs with different seeds are printed as the scale, and so is the score after a longer run.
"""

import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from rlhf_lab.classroom.clinic.oracles import cosine, gradient_oracle, moved_oracle
from rlhf_lab.classroom.clinic.parts import CLIP, KL_COEF, LAM, Parts
from rlhf_lab.classroom.clinic.ward import sampled_step
from rlhf_lab.experience import rollouts
from rlhf_lab.experience.rollouts import sample_responses
from rlhf_lab.maths.returns import gae
from rlhf_lab.maths.tensors import masked_mean, masked_whiten
from rlhf_lab.models.language_model import LanguageModel, load_language_model
from rlhf_lab.models.tokens import Rollout
from rlhf_lab.recipes import rlhf
from rlhf_lab.recipes.rlhf import RLHFConfig, RLHFResult, train_rlhf
from rlhf_lab.training.optimisers import OptimiserConfig
from rlhf_lab.training.randomness import generator_for

Patch = tuple[str, str, Callable]  # module, attribute, what stands there instead


@dataclass(frozen=True)
class NewFault:
    """A slip, in one of two places.

    Attributes:
        name: short. says: what the code does, and where such code is seen.
        parts: the clinic's parts with the fault in them; None where it is in `train_rlhf`.
        patches: what to replace in `train_rlhf` and what it uses.
        config: settings of `RLHFConfig` in which the fault matters.
    """

    name: str
    says: str
    parts: Parts | None = None
    patches: tuple[Patch, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)


@contextmanager
def applied(patches: tuple[Patch, ...]) -> Iterator[None]:
    """Inside, the faulty functions stand where the healthy ones stood."""
    modules = [(importlib.import_module(module), name, function) for module, name, function in patches]
    healthy = [getattr(module, name) for module, name, _ in modules]
    try:
        for module, name, function in modules:
            setattr(module, name, function)
        yield
    finally:
        for (module, name, _), function in zip(modules, healthy, strict=True):
            setattr(module, name, function)


# -- in the clinic's parts --------------------------------------------------------------------------------------------
def scores_in_an_integer_buffer(judge: Callable[[Tensor], Tensor], lengths: Tensor) -> Tensor:
    scores = torch.zeros_like(lengths)
    scores[:] = judge(torch.arange(len(lengths)))  # writing into integers drops what stands behind the point
    return scores.double()


def no_negative_kl(log_ratio: Tensor) -> Tensor:
    return -KL_COEF * log_ratio.clamp(min=0)


def clamp_around_the_product(ratio: Tensor, advantages: Tensor) -> Tensor:
    return torch.minimum(ratio * advantages, torch.clamp(ratio * advantages, 1 - CLIP, 1 + CLIP))


def labels_shifted_again(loss: Tensor, mask: Tensor) -> Tensor:
    return masked_mean(loss[:, 1:], mask[:, 1:], count=mask[:, 1:].sum().clamp(min=1))


def values_one_state_late(rewards: Tensor, values: Tensor, discounts: Tensor, mask: Tensor) -> Tensor:
    late = torch.cat([values[:, 1:], values[:, -1:]], dim=1)
    return gae(rewards, late.detach(), discounts, mask, LAM)


# -- in train_rlhf ----------------------------------------------------------------------------------------------------
_healthy_decode, _healthy_next_token = rollouts._decode, rollouts._next_token
_healthy_optimiser = rlhf.new_optimiser


def whitened_before_the_targets(rewards: Tensor, values: Tensor, discounts: Tensor, mask: Tensor, lam: float) -> Tensor:
    return masked_whiten(gae(rewards, values, discounts, mask, lam), mask)


def one_seed_for_every_request(lm: LanguageModel, prompts: list, uniforms: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    requests = [torch.rand(uniforms.shape[1], generator=generator_for(0), dtype=uniforms.dtype) for _ in prompts]
    return _healthy_decode(lm, prompts, torch.stack(requests), *rest)


def positions_of_this_call(
    lm: LanguageModel, inputs: Tensor, mask: Tensor, positions: Tensor, cache: Any
) -> tuple[Tensor, Tensor]:
    columns = torch.arange(inputs.shape[1], device=inputs.device).expand_as(inputs)
    return _healthy_next_token(lm, inputs, mask, columns, cache)


def score_kept_by_prompt(scores: Tensor, rollout: Rollout, state: dict[str, Any]) -> Tensor:
    known = state.setdefault("scores", {})
    prompts = [" ".join(message.content for message in prompt) for prompt in rollout.conversations]
    return torch.stack([known.setdefault(prompt, score) for prompt, score in zip(prompts, scores, strict=True)])


class NeverZeroed(torch.optim.AdamW):
    def zero_grad(self, set_to_none: bool = True) -> None:
        pass


def optimiser_never_zeroed(networks: torch.nn.ModuleDict, config: RLHFConfig) -> torch.optim.AdamW:
    optimiser = _healthy_optimiser(networks, config)
    optimiser.__class__ = NeverZeroed
    return optimiser


RECIPE, ROLLOUTS = "rlhf_lab.recipes.rlhf", "rlhf_lab.experience.rollouts"
FAULTS = (
    NewFault(
        "integer scores",
        "Scores are written into a buffer made like the lengths, so 0.75 is stored as 0; seen where rewards from "
        "rules or graders are collected in a tensor made like the token ids.",
        parts=Parts(scores=scores_in_an_integer_buffer),
    ),
    NewFault(
        "KL not below 0",
        "The log-ratio of every token is clamped at 0 before it becomes the penalty; a frequent answer to a logged KL "
        "that is negative.",
        parts=Parts(penalty=no_negative_kl),
    ),
    NewFault(
        "clamp of the product",
        "The parenthesis of the clamp closes too late: ratio times advantage is clamped and not the ratio; seen in "
        "PPO loops written by hand.",
        parts=Parts(surrogate=clamp_around_the_product),
    ),
    NewFault(
        "shifted twice",
        "Loss and mask are cut by one column as for labels, though they have been shifted before: no first token of "
        "a reply is trained; seen where the loss of supervised tuning is reused.",
        parts=Parts(reduction=labels_shifted_again),
    ),
    NewFault(
        "value after the token",
        "The values are cut out of the sequence one column late, so the baseline of a token has seen the token; seen "
        "where values of prompt and reply are sliced by hand.",
        parts=Parts(advantages=values_one_state_late),
    ),
    NewFault(
        "whitened targets",
        "Advantages are whitened before the values are added, so the value learns targets on another scale; seen "
        "where whitening is moved into the function that computes advantages.",
        patches=((RECIPE, "gae", whitened_before_the_targets),),
    ),
    NewFault(
        "one seed",
        "Every request to the sampler carries the same seed: all rows, in all iterations, are drawn with the same "
        "random numbers; seen where a serving engine is given a seed for each request, for reproducibility.",
        patches=((ROLLOUTS, "_decode", one_seed_for_every_request),),
    ),
    NewFault(
        "positions of the call",
        "Position ids count the columns of this call: left padding shifts the prompt, and with a cache every new "
        "token stands at position 0; seen in generation loops written by hand, and in exported models.",
        patches=((ROLLOUTS, "_next_token", positions_of_this_call),),
    ),
    NewFault(
        "cached by prompt",
        "Scores are cached under the prompt without the reply, so a prompt that comes again is paid what its first "
        "reply was worth; seen where a slow grader is put behind a cache.",
        patches=((RECIPE, "remembered", score_kept_by_prompt),),
    ),
    NewFault(
        "never zeroed",
        "Gradients are not set to 0 before a minibatch, so each step repeats all earlier ones; seen where the call is "
        "lost, or made on an optimiser that was wrapped or replaced since.",
        patches=((RECIPE, "new_optimiser", optimiser_never_zeroed),),
        config={"minibatch_rows": 4, "epochs": 2},
    ),
)


# -- what they do -----------------------------------------------------------------------------------------------------
PLACES = ("library", "old mill", "bank", "zoo")
PROMPTS = [f"{ask} the {place}?" for ask in ("Where is", "When opens") for place in PLACES]
TINY = {
    "prompts_per_iteration": 8,
    "minibatch_rows": 8,
    "max_new_tokens": 8,
    "optimiser": OptimiserConfig(final_fraction=1.0),  # else the second of two iterations hardly moves anything
    "check_invariants": False,
}


def wanted(rollout: Rollout) -> Tensor:
    """Score of a reply: four times the share of its tokens with an even id, less a quarter for each token over six."""
    even = (rollout.batch.response_ids % 2 == 0) & rollout.batch.mask
    lengths = rollout.batch.response_lengths
    return 4 * even.sum(1) / lengths - (lengths - 6).clamp(min=0) / 4


def run(fault: NewFault | None, settings: Mapping[str, Any], iterations: int, seed: int) -> RLHFResult:
    """A small run with or without a fault; the settings that go with a fault are used in both."""
    config = RLHFConfig(iterations=iterations, seed=seed, **TINY | dict(settings))
    with applied(fault.patches if fault else ()):
        return train_rlhf(load_language_model("tiny"), PROMPTS, wanted, config)


def weights(module: torch.nn.Module) -> Tensor:
    """All weights in one row."""
    return torch.cat([weight.detach().flatten() for weight in module.parameters()]).double()


def moves(result: RLHFResult) -> tuple[Tensor, Tensor]:
    """How far a run moved the policy and the value model from where they started."""
    policy = weights(load_language_model("tiny").model)
    value = torch.cat([policy[: len(weights(result.value.network)) - result.value.network.score.weight.numel()],
                       torch.zeros(result.value.network.score.weight.numel()).double()])  # fmt: skip
    return weights(result.model.model) - policy, weights(result.value.network) - value


def final_score(lm: LanguageModel, seed: int) -> float:
    """Mean score of 256 fresh replies."""
    replies = sample_responses(
        lm, PROMPTS * 32, max_new_tokens=8, temperature=0.7, generator=generator_for(seed, "fresh")
    )
    return float(wanted(replies).mean())


def of_parts(fault: NewFault) -> str:
    """Cosine and length of the mean step: of the first one of an iteration, of a later one, and of the reduced loss.

    The first two are exact and stop before the reduction; the third is a mean over sampled batches, the same for both.
    """
    assert fault.parts is not None
    pairs = {
        "first step": (gradient_oracle(fault.parts), gradient_oracle(None)),
        "later step": (moved_oracle(fault.parts), moved_oracle(None)),
        "sampled": (sampled_step(fault.parts), sampled_step(Parts())),
    }
    if fault.parts.penalty is not Parts().penalty:
        free = gradient_oracle(Parts(penalty=torch.zeros_like))
        pairs["pull of the leash"] = tuple(step - free for step in pairs["first step"])
    return "; ".join(
        f"{name} cosine {cosine(step, truth):.3f} length {float(step.norm() / truth.norm()):.2f}"
        for name, (step, truth) in pairs.items()
    )


def of_run(fault: NewFault | None, settings: Mapping[str, Any], iterations: int, seeds: range) -> str:
    """Cosine and length of what two iterations move, and the mean score after a longer run."""
    sick, well = run(fault, settings, 2, 0 if fault else 1), run(None, settings, 2, 0)
    text = "; ".join(
        f"{name} cosine {cosine(a, b):.3f} length {float(a.norm() / b.norm()):.2f}"
        for name, a, b in zip(("policy", "value"), moves(sick), moves(well), strict=True)
    )
    scores = [final_score(run(fault, settings, iterations, seed).model, seed) for seed in seeds]
    return f"{text}; score {fmean(scores):.2f} [{min(scores):.2f}, {max(scores):.2f}]"


def main(iterations: int = 20, seeds: range = range(10, 12)) -> None:
    """Print what each fault does."""
    start = fmean(final_score(load_language_model("tiny"), seed) for seed in seeds)
    print(f"score before training {start:.2f}; scores below are means of {len(seeds)} runs of {iterations} iterations")
    for settings in ({}, FAULTS[-1].config):
        print(f"{'none, other seed':22} {dict(settings) or ''} {of_run(None, settings, iterations, seeds)}")
    for fault in FAULTS:
        text = of_parts(fault) if fault.parts else of_run(fault, fault.config, iterations, seeds)
        print(f"{fault.name:22} {text}", flush=True)


if __name__ == "__main__":
    main()
