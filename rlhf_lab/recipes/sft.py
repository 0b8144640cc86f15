"""Supervised fine-tuning: the model imitates replies that people wrote.

The loss is over the reply, its end token included; the prompt is given and not learned. Left out: packing,
several epochs by name (steps say how long), low-rank adapters.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from tqdm.auto import tqdm

from rlhf_lab.experience.updates import imitation_gradient
from rlhf_lab.feedback.formats import as_demonstrations
from rlhf_lab.models.language_model import LanguageModel
from rlhf_lab.models.tokens import count_cut, encode_prompts, encode_responses, make_batch
from rlhf_lab.records import Demonstration
from rlhf_lab.training.configs import above_zero, at_least_one, from_zero, require, whole
from rlhf_lab.training.history import Result
from rlhf_lab.training.optimisers import clipped_step, cosine_rate, make_optimiser, scale_rates
from rlhf_lab.training.randomness import generator_for
from rlhf_lab.training.steps import Checkpoint, Steps


@dataclass(frozen=True)
class SFTConfig:
    """Every choice of a fine-tuning run; defaults for the shipped model.

    Attributes:
        steps: optimiser steps, at least 1.
        demonstrations_per_step: at least 1.
        micro_batch: most rows in one pass; changes memory, not the result.
        learning_rate: peak, above 0; falls to 0 along a cosine.
        weight_decay: on matrices, at least 0.
        warmup: steps of linear warm-up.
        max_grad_norm: above 0.
        max_new_tokens: longer replies are cut, and then they do not end; `SFTResult.cut` counts them.
        evaluate_every, checkpoint_every: in steps.
        seed: of the order.
    """

    steps: int = 100
    demonstrations_per_step: int = 128
    micro_batch: int = 16  # faster than 32 on a CPU: less padding
    learning_rate: float = 3e-4
    weight_decay: float = 0.01
    warmup: int = 10
    max_grad_norm: float = 1.0
    max_new_tokens: int = 64
    evaluate_every: int = 50
    checkpoint_every: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        at_least_one(self, "steps", "demonstrations_per_step", "micro_batch", "max_new_tokens")
        at_least_one(self, "evaluate_every", "checkpoint_every")
        above_zero(self, "learning_rate", "max_grad_norm")
        from_zero(self, "weight_decay")
        whole(self, "warmup", least=0)
        whole(self, "seed")


@dataclass(frozen=True, eq=False, repr=False)
class SFTResult(Result[LanguageModel]):
    """The tuned model and how it came about.

    Attributes:
        history: loss in nats per reply token, grad_norm before clipping, learning_rate, and what `evaluate` gave.
        cut: replies longer than `max_new_tokens`.
    """

    cut: int


def train_sft(
    lm: LanguageModel,
    demonstrations: Sequence[Demonstration | Mapping],
    config: SFTConfig | None = None,
    *,
    evaluate: Callable[[LanguageModel], dict[str, float]] | None = None,
    checkpoint: str | Path | None = None,
) -> SFTResult:
    """Train a copy of `lm` on replies.

        loss = -1/N sum over reply tokens of log p(token | prompt, reply so far)

    Args:
        lm: where to start; it is not changed.
        demonstrations: prompts with replies; records, or rows with `prompt` and `completion` or with `messages`.
        config: see SFTConfig.
        evaluate: called with the model at step 0, every `evaluate_every` steps and at the end; its numbers join the
            history.
        checkpoint: file to save to and to resume from.

    Returns:
        SFTResult. After an interrupt it holds what was done.

    Raises:
        ValueError: no demonstrations, or a prompt longer than the context.
        CheckpointError: `checkpoint` is damaged, or of other demonstrations or another config.
        FloatingPointError: the gradient is not finite; the last good state is in `checkpoint`.

    Source: Ouyang et al. 2022, Training language models to follow instructions, section 3.5. Chapter 07.
    """
    config = config or SFTConfig()
    require(len(demonstrations) > 0, "demonstrations", "empty", "at least one prompt with a reply")
    records = as_demonstrations(demonstrations)
    prompts = encode_prompts(lm, [record.prompt for record in records], config.max_new_tokens)
    replies = encode_responses(lm, [record.response for record in records], config.max_new_tokens)
    if cut := count_cut(lm, replies):
        tqdm.write(
            f"{cut} of {len(replies)} replies are longer than max_new_tokens = {config.max_new_tokens} and were cut"
        )
    start, lm = lm, lm.copy()
    lm.model.requires_grad_(True)
    optimiser = make_optimiser(lm.model, config.learning_rate, config.weight_decay)
    inputs = {"model": start.model, "precision": str(lm.precision), "demonstrations": (prompts, replies)}
    file = Checkpoint(checkpoint, config.checkpoint_every, "sft", config, inputs, lm.model, optimiser)
    look = None if evaluate is None else partial(evaluate, lm)
    with Steps("SFT", config.steps, look, config.evaluate_every, file) as steps:
        for step in steps:
            generator = generator_for(config.seed, "sft", step)
            rows = torch.randint(len(prompts), (config.demonstrations_per_step,), generator=generator).tolist()
            batch = make_batch([prompts[i] for i in rows], [replies[i] for i in rows], lm.pad_id, lm.device)
            rate = scale_rates(optimiser, cosine_rate(step, config.steps, config.warmup))
            optimiser.zero_grad()
            loss = imitation_gradient(lm, batch, config.micro_batch)
            (norm,) = clipped_step(optimiser, config.max_grad_norm, step + 1, lm.model)
            steps.log(loss=loss, grad_norm=norm, learning_rate=rate)
    return SFTResult(lm, steps.history, steps.interrupted, cut)
