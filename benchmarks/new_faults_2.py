"""Ten more slips in PPO and RLHF by another author: four in the clinic's parts and six in `train_rlhf`."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from new_faults import NewFault, Patch
from torch import Tensor
from torch.nn.functional import one_hot
from transformers import PreTrainedTokenizerBase

from rlhf_lab.classroom.clinic.parts import CLIP, ENTROPY_COEF, LAM, Parts
from rlhf_lab.experience.updates import Critic, Experience, Losses
from rlhf_lab.maths.returns import td_errors
from rlhf_lab.models import tokens
from rlhf_lab.models.language_model import LanguageModel
from rlhf_lab.models.tokens import Rollout, TokenBatch
from rlhf_lab.recipes import rlhf
from rlhf_lab.records import Message


# -- in the clinic's parts --------------------------------------------------------------------------------------------
def score_written_over_the_penalty(scores: Tensor, penalty: Tensor, mask: Tensor) -> Tensor:
    last = one_hot((mask.sum(1) - 1).clamp(min=0), mask.shape[1]).bool()
    return torch.where(last, scores[:, None], penalty)


def never_turned_round(rewards: Tensor, values: Tensor, discounts: Tensor, mask: Tensor) -> Tensor:
    errors = td_errors(rewards, values.detach(), discounts, mask)
    running, columns = torch.zeros_like(errors[:, 0]), []
    for t in reversed(range(errors.shape[1])):
        running = torch.where(mask[:, t], errors[:, t] + LAM * discounts[:, t] * running, 0)
        columns.append(running)
    return torch.where(mask, torch.stack(columns, dim=1), 0)  # the last token's advantage stands first


def minimum_of_the_ratios(ratio: Tensor, advantages: Tensor) -> Tensor:
    return torch.minimum(ratio, ratio.clamp(1 - CLIP, 1 + CLIP)) * advantages


def entropy_of_detached_weights(logits: Tensor) -> Tensor:
    log_law = logits.log_softmax(-1)
    return -ENTROPY_COEF * (log_law.exp().detach() * log_law).sum(-1)


# -- in train_rlhf ----------------------------------------------------------------------------------------------------
_healthy_response_log_probs, _healthy_scores_of = rlhf.response_log_probs, rlhf.scores_of
_healthy_losses, _healthy_render = rlhf.clipped_losses, tokens.render_chat


def reference_without_temperature(
    lm: LanguageModel, batch: TokenBatch, temperature: float = 1.0, micro_batch: int = 64
) -> Tensor:
    return _healthy_response_log_probs(lm, batch, micro_batch=micro_batch)


def whitened_along_the_reply(advantages: Tensor, mask: Tensor) -> Tensor:
    count = mask.sum(1, keepdim=True)
    centred = torch.where(mask, advantages - torch.where(mask, advantages, 0).sum(1, keepdim=True) / count, 0)
    return centred * torch.rsqrt(centred.square().sum(1, keepdim=True) / count + 1e-8)


def judged_with_the_padding(reward: Callable[[Rollout], Tensor], rollout: Rollout) -> Tensor:
    padded = replace(rollout.batch, mask=torch.ones_like(rollout.batch.mask))
    return _healthy_scores_of(reward, replace(rollout, batch=padded))


def zeroed_before_every_micro_batch(
    policy: LanguageModel, critic: Critic, part: Experience, count: Tensor, **settings: Any
) -> Losses:
    policy.model.zero_grad()
    critic.network.zero_grad()
    return _healthy_losses(policy, critic, part, count, **settings)


def every_value_against_every_return(values: Tensor, old_values: Tensor, returns: Tensor, clip: float) -> Tensor:
    column, old, row = values.reshape(-1, 1), old_values.reshape(-1, 1), returns.reshape(-1)
    clipped = old + (column - old).clamp(-clip, clip)
    errors = torch.maximum((column - row).square(), (clipped - row).square()) / 2  # [N, N] and not [N]
    return errors.mean(1).view_as(values)


def prompt_without_its_header(tokenizer: PreTrainedTokenizerBase, conversation: list[Message]) -> str:
    return _healthy_render(tokenizer, conversation, add_generation_prompt=False)


def _in(module: str, name: str, function: Callable) -> tuple[Patch, ...]:
    return ((f"rlhf_lab.{module}", name, function),)


FAULTS = (
    NewFault(
        "score over penalty",
        "The score is assigned to the last token where it should be added, so the KL penalty of that token is lost and "
        "nothing holds the probability of ending; seen where `=` stands for `+=` in the reward tensor.",
        parts=Parts(rewards=score_written_over_the_penalty),
    ),
    NewFault(
        "never turned round",
        "The list that the backward loop of GAE fills is stacked as it is, so the advantages stand in the wrong order "
        "in time and the first tokens of short replies get none; policy and value targets both learn from them.",
        parts=Parts(advantages=never_turned_round),
    ),
    NewFault(
        "minimum of the ratios",
        "The minimum is taken of ratio and clipped ratio, before the advantage multiplies it: bad tokens that fell "
        "below the band are pushed down further, and those that rose above it are no longer pulled back.",
        parts=Parts(surrogate=minimum_of_the_ratios),
    ),
    NewFault(
        "entropy without gradient",
        "The probabilities in the entropy are detached: its value is right and its gradient exactly 0, so that the "
        "bonus does nothing; seen where the law is computed once, under no_grad, and used again.",
        parts=Parts(bonus=entropy_of_detached_weights),
    ),
    NewFault(
        "reference at 1",
        "The temperature divides the policy's logits and not the reference's, so the leash pulls to a flatter law "
        "than the policy started from; seen where the reference is scored by a worker that has no such setting.",
        patches=_in("recipes.rlhf", "response_log_probs", reference_without_temperature),
    ),
    NewFault(
        "whitened by row",
        "Mean and deviation are taken along each reply (dim=-1) and not over the batch: what tells a good reply from "
        "a bad one is subtracted, and only the course within a reply is left to learn from.",
        patches=_in("recipes.rlhf", "masked_whiten", whitened_along_the_reply),
    ),
    NewFault(
        "judged with padding",
        "The judge gets the padded rows without their mask, so it reads padding as part of a reply and pays as if "
        "all were of one length; seen where a reward model is called without the attention mask.",
        patches=_in("recipes.rlhf", "scores_of", judged_with_the_padding),
    ),
    NewFault(
        "zeroed in the loop",
        "Gradients are set to 0 before every micro-batch, so of each minibatch only the last one is learned from, and "
        "as rows are sorted by length that is always the longest replies.",
        patches=_in("recipes.rlhf", "clipped_losses", zeroed_before_every_micro_batch),
        config={"micro_batch": 4},
    ),
    NewFault(
        "broadcast values",
        "Values of shape [N, 1] meet returns of shape [N], so every value is compared with every return of the "
        "micro-batch, and the critic learns one mean for all states; a warning in many frameworks, and ignored.",
        patches=_in("experience.updates", "clipped_value_loss", every_value_against_every_return),
    ),
    NewFault(
        "no header",
        "Prompts are rendered without the generation prompt, so in training replies follow the user's last word and "
        "not the assistant's header, and what is learned belongs to contexts that nobody uses later.",
        patches=_in("models.tokens", "render_chat", prompt_without_its_header),
    ),
)
