"""Ten more slips in PPO and RLHF by a third author: five in the clinic's parts and five in `train_rlhf`."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from new_faults import NewFault, Patch
from torch import Tensor
from torch.nn.functional import one_hot
from transformers import PreTrainedModel

from rlhf_lab.classroom.clinic.parts import CLIP, ENTROPY_COEF, KL_COEF, Parts
from rlhf_lab.experience.updates import Experience
from rlhf_lab.models.language_model import LanguageModel
from rlhf_lab.models.tokens import Rollout, TokenBatch
from rlhf_lab.recipes import rlhf


# -- in the clinic's parts --------------------------------------------------------------------------------------------
def every_token_pays_for_all_before(log_ratio: Tensor) -> Tensor:
    return -KL_COEF * log_ratio.cumsum(1)


def score_before_the_first_padding(scores: Tensor, penalty: Tensor, mask: Tensor) -> Tensor:
    last = (mask.int().argmin(1) - 1).clamp(min=0)  # a row without padding: argmin is 0, and so is this
    return penalty + scores[:, None] * one_hot(last, mask.shape[1])


def end_one_step_early(mask: Tensor, ended: Tensor) -> Tensor:
    later = torch.zeros_like(mask)
    later[:, :-2] = mask[:, 2:]  # the flag of the next token stands at this one
    return later.double()


def band_around_zero(ratio: Tensor, advantages: Tensor) -> Tensor:
    return torch.minimum(ratio * advantages, ratio.clamp(-CLIP, CLIP) * advantages)


def entropy_over_time(logits: Tensor) -> Tensor:
    log_law = logits.log_softmax(1)  # axis 1 of [B, T, V] is time
    return -ENTROPY_COEF * (log_law.exp() * log_law).sum(-1)


# -- in train_rlhf ----------------------------------------------------------------------------------------------------
_healthy_kl, _healthy_prompts_of, _healthy_sample = rlhf.kl_k1, rlhf.prompts_of, rlhf.sample_responses


def mean_kl_for_every_token(log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
    return _healthy_kl(log_probs, ref_log_probs).mean().expand_as(log_probs)


def always_the_first_prompts(prompts: Sequence, count: int, step: int, seed: int = 0) -> list:
    return _healthy_prompts_of(prompts, count, 0, seed)


class AdvantagesInOrder(Experience):
    def select(self, rows: Tensor) -> Experience:
        """The given rows, but the advantages of these rows in the order in which they were sampled."""
        part = super().select(rows)
        return replace(part, advantages=self.advantages[rows.sort().values, : part.batch.mask.shape[1]])


def end_in_the_last_column(lm: LanguageModel, conversations: Sequence, **settings: Any) -> Rollout:
    rollout = _healthy_sample(lm, conversations, **settings)
    ids, real = rollout.batch.response_ids[:, -1], rollout.batch.mask[:, -1]
    return replace(rollout, ended=(ids == lm.end_id) & real)


def padding_read_as_prompt(model: PreTrainedModel, batch: TokenBatch) -> tuple[dict[str, Tensor | bool], Tensor]:
    ids = torch.cat([batch.prompt_ids, batch.response_ids], dim=1)  # left padding stays, and no mask hides it
    states = batch.prompt_ids.shape[1] - 1 + torch.arange(batch.mask.shape[1] + 1, device=ids.device)
    return {"inputs_embeds": model.get_input_embeddings()(ids), "use_cache": False}, states.expand(len(ids), -1)


def _in(module: str, name: str, function: Callable) -> tuple[Patch, ...]:
    return ((f"rlhf_lab.{module}", name, function),)


FAULTS = (
    NewFault(
        "running KL",
        "Every token is charged the log-ratio summed up to it, so the first tokens are charged again at each later "
        "one; seen where the KL of the sequence so far is computed once and used as the price of a token.",
        parts=Parts(penalty=every_token_pays_for_all_before),
    ),
    NewFault(
        "no padding found",
        "The last token is the one before the first padding (argmin of the mask), so a reply that fills its row, where "
        "there is none, is paid at its first token; seen where lengths are read off the mask or the pad id.",
        parts=Parts(rewards=score_before_the_first_padding),
    ),
    NewFault(
        "done too soon",
        "The end flag of the next step is used for this one, so the chain breaks before the last token and no earlier "
        "one hears of the score; the usual slip of done and next_done.",
        parts=Parts(discounts=end_one_step_early),
    ),
    NewFault(
        "band around 0",
        "The ratio is clamped to [-e, e] and not to [1 - e, 1 + e]: good tokens have no gradient, and only bad ones "
        "teach; seen where the 1 is lost from the clamp.",
        parts=Parts(surrogate=band_around_zero),
    ),
    NewFault(
        "entropy over time",
        "The softmax in the entropy runs over dim=1, which is time and not the vocabulary once rows are batched, so "
        "the bonus evens out each token's logit along the reply; seen where a [N, V] function is given [B, T, V].",
        parts=Parts(bonus=entropy_over_time),
    ),
    NewFault(
        "mean KL",
        "The KL is averaged over the batch, as it is logged, and this one number is charged to every token: a price on "
        "length, and no token is held to the reference.",
        patches=_in("recipes.rlhf", "kl_k1", mean_kl_for_every_token),
        config={"kl_coef": 0.5},
    ),
    NewFault(
        "first prompts",
        "The iterator over prompts is made anew in each iteration, so all of them ask the first few prompts and the "
        "others are never seen; seen as next(iter(loader)) in the loop.",
        patches=_in("recipes.rlhf", "prompts_of", always_the_first_prompts),
        config={"prompts_per_iteration": 4, "minibatch_rows": 4},
    ),
    NewFault(
        "advantages unshuffled",
        "Minibatch rows are shuffled for tokens, log-probs, values and returns, but the advantages stay in order, so a "
        "reply learns from another's; seen where a buffer permutes its tensors one by one and one is forgotten.",
        patches=_in("recipes.rlhf", "Experience", AdvantagesInOrder),
    ),
    NewFault(
        "end in last column",
        "A reply has ended if the last column of the padded batch is the end token, so all that ended sooner pay the "
        "penalty for a missing end; seen as responses[:, -1] == eos.",
        patches=_in("recipes.rlhf", "sample_responses", end_in_the_last_column),
        config={"max_new_tokens": 24},  # so that many replies end by themselves
    ),
    NewFault(
        "padding as prompt",
        "In scoring and training, though not in sampling, left padding is neither cut off nor masked: it is read as "
        "text and shifts positions, by an amount that depends on the micro-batch; a forgotten attention_mask.",
        patches=_in("models.scoring", "packed_inputs", padding_read_as_prompt),
    ),
)
