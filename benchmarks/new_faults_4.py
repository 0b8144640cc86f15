"""Ten more slips in PPO and RLHF by a fourth author: five in the clinic's parts and five in `train_rlhf`.

    OMP_NUM_THREADS=1 python benchmarks/new_faults_4.py      some minutes on one core; nothing is stored

Measured as in `new_faults.py`.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from new_faults import NewFault, Patch, final_score, of_parts, of_run
from torch import Tensor

from rlhf_lab.classroom.clinic.oracles import cosine, gradient_oracle
from rlhf_lab.classroom.clinic.parts import CLIP, LAM, Parts
from rlhf_lab.experience import rollouts
from rlhf_lab.experience.updates import Experience
from rlhf_lab.maths.returns import gae
from rlhf_lab.models.language_model import LanguageModel, load_language_model
from rlhf_lab.models.reward_model import RewardModel
from rlhf_lab.models.tokens import Rollout, TokenBatch
from rlhf_lab.recipes import rlhf


# -- in the clinic's parts --------------------------------------------------------------------------------------------
def scores_as_in_games(judge: Callable[[Tensor], Tensor], lengths: Tensor) -> Tensor:
    return judge(torch.arange(len(lengths))).sign()


def kl_div_of_the_sampled(log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
    return torch.nn.functional.kl_div(ref_log_probs, log_probs, reduction="none", log_target=True)


def over_the_whole_width(rewards: Tensor, values: Tensor, discounts: Tensor, mask: Tensor) -> Tensor:
    everywhere = torch.ones_like(mask)  # no end and no padding, until the width of the batch
    return torch.where(mask, gae(rewards, values.detach(), everywhere.double(), everywhere, LAM), 0)


def ratio_of_the_sums(log_probs: Tensor, old_log_probs: Tensor) -> Tensor:
    return torch.exp((log_probs - old_log_probs).sum(1, keepdim=True)).expand_as(log_probs)


def maximum_as_for_losses(ratio: Tensor, advantages: Tensor) -> Tensor:
    return torch.maximum(ratio * advantages, ratio.clamp(1 - CLIP, 1 + CLIP) * advantages)


# -- in train_rlhf ----------------------------------------------------------------------------------------------------
_healthy_draw, _healthy_sample, _healthy_critic = rollouts._draw, rlhf.sample_responses, rlhf.new_critic


def log_prob_before_the_temperature(logits: Tensor, uniform: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    token, _ = _healthy_draw(logits, uniform, temperature)
    return token, logits.log_softmax(-1).gather(-1, token[:, None]).squeeze(1)


def left_in_order_of_length(lm: LanguageModel, conversations: Sequence, **settings: Any) -> Rollout:
    rollout = _healthy_sample(lm, conversations, **settings)
    place = rollout.batch.prompt_lengths.argsort(stable=True).argsort()  # where each prompt's reply was decoded
    prompts = {"prompt_ids": rollout.batch.prompt_ids[place], "prompt_mask": rollout.batch.prompt_mask[place]}
    conversations = tuple(rollout.conversations[i] for i in place.tolist())
    return replace(rollout, conversations=conversations, batch=replace(rollout.batch, **prompts))


def engine_of_the_first_day(lm: LanguageModel, conversations: Sequence, **settings: Any) -> Rollout:
    if "engine" not in vars(lm):
        vars(lm)["engine"] = lm.copy()  # loaded once, and no new weights are sent there
    return _healthy_sample(vars(lm)["engine"], conversations, **settings)


class CutFromTheEnd(Experience):
    def select(self, rows: Tensor) -> Experience:
        """The given rows; of all but the tokens the last columns, as if replies were padded on the left."""
        batch = self.batch.select(rows)
        names = ("old_log_probs", "advantages", "old_values", "returns")
        return CutFromTheEnd(batch, *(getattr(self, name)[rows, -batch.mask.shape[1] :] for name in names))


class OneValueForARow(RewardModel):
    def values(self, batch: TokenBatch, hidden: Tensor | None = None) -> Tensor:
        """The score of the finished reply in all columns: [B, 1] stretched to [B, T + 1]."""
        score = (self.raw_scores(batch) - self.score_mean) / self.score_std
        return score[:, None].expand(-1, batch.mask.shape[1] + 1)


def classifier_as_critic(*inputs: Any) -> RewardModel:
    return OneValueForARow(**vars(_healthy_critic(*inputs)))


def _in(module: str, name: str, function: Callable) -> tuple[Patch, ...]:
    return ((f"rlhf_lab.{module}", name, function),)


FAULTS = (
    NewFault(
        "sign of the score",
        "Only the sign of a score is kept, so a reply that is a little good is worth as much as the best; seen where "
        "an environment wrapper that clips the rewards of games to -1, 0 and 1 stays on.",
        parts=Parts(scores=scores_as_in_games),
    ),
    NewFault(
        "kl_div of samples",
        "The KL of a token is F.kl_div with log_target, p (log p - log q), which is a term of a sum over the "
        "vocabulary; but it is given the sampled token only, so p counts twice and rare tokens go nearly free.",
        parts=Parts(log_ratio=kl_div_of_the_sampled),
    ),
    NewFault(
        "GAE over padding",
        "Advantages are computed over the whole width of the batch, and mask and end are forgotten: a short reply "
        "goes on through its padding, and what a value head says there is its future.",
        parts=Parts(advantages=over_the_whole_width),
    ),
    NewFault(
        "ratio of the reply",
        "Log-ratios are summed over the reply before exp, as in DPO, and the one ratio stands at all tokens: each "
        "advantage pushes every token of its reply, and the band is left T times as soon.",
        parts=Parts(ratio=ratio_of_the_sums),
    ),
    NewFault(
        "maximum",
        "The larger of the two surrogates is taken, as is right for losses, where both have a minus: nothing stops a "
        "token that has left the band, and inside the wrong side of it good tokens are given up.",
        parts=Parts(surrogate=maximum_as_for_losses),
    ),
    NewFault(
        "raw log-probs",
        "The sampler returns log-probs from before the temperature, and they are kept as those of the law that "
        "sampled; the default of a serving engine, whose users divide by the temperature in training.",
        patches=_in("experience.rollouts", "_draw", log_prob_before_the_temperature),
    ),
    NewFault(
        "order of length",
        "Prompts are sorted by length to be decoded, and the replies are not put back, so that many stand behind "
        "another's prompt when they are scored and learned from.",
        patches=_in("recipes.rlhf", "sample_responses", left_in_order_of_length),
    ),
    NewFault(
        "never synced",
        "The sampler is a copy made at the start, and the new weights are never sent to it: all replies come from the "
        "first policy; seen where generation runs in an engine of its own.",
        patches=_in("recipes.rlhf", "sample_responses", engine_of_the_first_day),
    ),
    NewFault(
        "cut from the end",
        "Log-probs, advantages, values and returns of a minibatch are cut to its width as [:, -width:], but replies "
        "are padded on the right: wherever the longest reply is elsewhere, they belong to later tokens.",
        patches=_in("recipes.rlhf", "Experience", CutFromTheEnd),
        config={"max_new_tokens": 24, "micro_batch": 4},  # so that lengths differ between micro-batches
    ),
    NewFault(
        "one value a row",
        "The critic is called as the classifier that it was made from: it gives one number for the finished reply, "
        "which broadcasts over all states, and so the baseline has read what it is to judge.",
        patches=_in("recipes.rlhf", "new_critic", classifier_as_critic),
    ),
)


def pull_of_the_leash(parts: Parts) -> str:
    """Cosine and length of what the leash adds to the first step, against that of healthy parts."""
    free = gradient_oracle(Parts(penalty=torch.zeros_like))
    sick, well = gradient_oracle(parts) - free, gradient_oracle(None) - free
    return f"; pull of the leash cosine {cosine(sick, well):.3f} length {float(sick.norm() / well.norm()):.2f}"


def main(iterations: int = 20, seeds: range = range(10, 12)) -> None:
    """Print what each fault does, and what healthy runs do in the same settings."""
    start = sum(final_score(load_language_model("tiny"), seed) for seed in seeds) / len(seeds)
    print(f"score before training {start:.2f}; scores below are means of {len(seeds)} runs of {iterations} iterations")
    for settings in ({}, FAULTS[-2].config):
        print(f"{'none, other seed':22} {dict(settings) or ''} {of_run(None, settings, iterations, seeds)}", flush=True)
    for fault in FAULTS:
        text = of_parts(fault) if fault.parts else of_run(fault, fault.config, iterations, seeds)
        if fault.parts and fault.parts.log_ratio is not Parts().log_ratio:
            text += pull_of_the_leash(fault.parts)
        print(f"{fault.name:22} {text}", flush=True)


if __name__ == "__main__":
    main()
