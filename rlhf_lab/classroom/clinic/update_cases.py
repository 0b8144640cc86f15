"""Patients 0 and I to P, sick in how songs are sampled, leashed or compared, or in the loss of the update."""

import torch

from rlhf_lab.classroom.clinic.cases import Case
from rlhf_lab.classroom.clinic.faults import (
    cooler,
    descend,
    entropy_with_a_minus,
    k1_in_the_loss,
    mean_of_micro_batches,
    minus_the_group_mean,
    nothing_in_the_reward,
    only_the_top_two,
    ratio_to_itself,
    reference_over_policy,
    score_again,
)
from rlhf_lab.classroom.clinic.oracles import gradient_oracle, moved_oracle, pairs_oracle, reduction_oracle
from rlhf_lab.classroom.clinic.parts import (
    CLIP,
    ENTROPY_COEF,
    KL_COEF,
    clipped,
    entropy_bonus,
    leash,
    policy_over_reference,
    ratio_to_sampler,
    same_law,
    token_mean,
)
from rlhf_lab.maths.kl import kl_k3
from rlhf_lab.maths.objectives import entropy
from rlhf_lab.maths.returns import leave_one_out_advantages
from rlhf_lab.maths.tensors import masked_sum

UPDATE_CASES: dict[str, Case] = {
    "0": Case(
        suspect="uphill",
        part="surrogate",
        faults={"surrogate": descend},
        cure=clipped,
        oracle=moved_oracle,
        means="the objective that is maximised is the lower of the plain and the clipped product",
        hint="min(ratio A, clip(ratio, 1 - CLIP, 1 + CLIP) A), to be maximised",
        mistakes={
            "the sign: this part is maximised, the loop puts the minus": descend,
            "the higher of the two products; the clipped surrogate is the lower one": lambda r, a: torch.maximum(
                r * a, r.clamp(1 - CLIP, 1 + CLIP) * a
            ),
            "nothing is clipped": lambda r, a: r * a,
            "the clipped product alone; where the ratio went the wrong way it must still pull back": lambda r, a: (
                r.clamp(1 - CLIP, 1 + CLIP) * a
            ),
        },
        sign="the score falls from the first iteration on, and everything else looks alive",
    ),
    "I": Case(
        suspect="temperature",
        part="sampling",
        faults={"sampling": cooler},
        cure=same_law,
        oracle=gradient_oracle,
        means="the law that sampled is the law that is scored",
        hint="one temperature for sampling, old, new and reference log-probs; here it is 1",
        mistakes={
            "songs are still sampled cooler than they are scored": cooler,
            "multiplied in place of divided: now sampling is hotter than scoring": lambda logits: logits * 0.6,
            "a little cooler is still another law": lambda logits: logits / 0.9,
        },
        sign="a clip fraction that starts high and comes back; a score that is not the policy's",
    ),
    "J": Case(
        suspect="top-k",
        part="sampling",
        faults={"sampling": only_the_top_two},
        cure=same_law,
        oracle=gradient_oracle,
        means="every song that the policy can sing can be sampled",
        hint="no top-k and no top-p in the rollouts of a training run",
        mistakes={
            "two of four tokens are never sampled": only_the_top_two,
            "still a top-k: the least likely token is never sampled": lambda logits: torch.where(
                logits > logits.min(-1, keepdim=True).values, logits, -torch.inf
            ),
        },
        sign="first songs that nearly all run to the limit, then a score better than health",
        setting={"old_log_probs": score_again},
    ),
    "K": Case(
        suspect="self-comparison",
        part="ratio",
        faults={"ratio": ratio_to_itself},
        cure=ratio_to_sampler,
        oracle=moved_oracle,
        means="once the policy has moved, the surrogate knows by how much",
        hint="exp(log_probs - old_log_probs), the old ones being those of the law that sampled",
        mistakes={
            "the ratio is taken to the policy itself and is always 1": ratio_to_itself,
            "upside down: new over old": lambda new, old: torch.exp(old - new),
            "the exponential is missing": lambda new, old: 1 + new - old,
            "the gradient is cut: the new log-probs must stay attached": lambda new, old: torch.exp(new.detach() - old),
        },
        sign="a clip fraction of exactly 0 in every iteration, also where others are clipped",
    ),
    "L": Case(
        suspect="entropy",
        part="bonus",
        faults={"bonus": entropy_with_a_minus},
        cure=entropy_bonus,
        oracle=gradient_oracle,
        means="the bonus climbs the entropy of the prefixes that are visited",
        hint="ENTROPY_COEF times the entropy, added to what is maximised",
        mistakes={
            "the sign: a bonus is added to what is maximised": entropy_with_a_minus,
            "the coefficient is forgotten": entropy,
            "log-probabilities are not weighted by the probabilities": lambda logits: (
                -ENTROPY_COEF * logits.log_softmax(-1).mean(-1)
            ),
        },
        sign="entropy a little below that of a healthy run, and nothing else",
    ),
    "M": Case(
        suspect="KL in the loss",
        part="penalty",
        faults={"penalty": nothing_in_the_reward, "kl_loss": k1_in_the_loss},
        cure=leash,
        oracle=gradient_oracle,
        means="the leash pulls with exactly the gradient of the KL",
        hint="a reward of minus KL_COEF times the log-ratio at every token",
        mistakes={
            "there is no leash in the reward": nothing_in_the_reward,
            "the sign: distance is a cost, and this pays for it": lambda k: KL_COEF * k,
            "the coefficient is forgotten": lambda k: -k,
            "the square of the log-ratio is another penalty": lambda k: -KL_COEF * k.square() / 2,
            "the absolute value is another penalty: single log-ratios may be negative": lambda k: -KL_COEF * k.abs(),
        },
        sign="a score better than health, paid for with a KL that no leash holds",
    ),
    "N": Case(
        suspect="minus the KL",
        part="log_ratio",
        faults={"log_ratio": reference_over_policy},
        cure=policy_over_reference,
        oracle=gradient_oracle,
        means="the leash pulls towards the reference, with exactly the gradient of the KL",
        hint="policy minus reference, at tokens that the policy sampled",
        mistakes={
            "reference minus policy: the leash pays for distance": reference_over_policy,
            "the absolute value is another penalty: single log-ratios may be negative": lambda p, q: (p - q).abs(),
            "k2 is never negative, but in the reward it is another penalty": lambda p, q: (p - q).square() / 2,
            "k3 estimates the value well; in the reward its gradient is another one": kl_k3,
            "a ratio and not its logarithm": lambda p, q: (p - q).exp(),
        },
        sign="a KL that is negative and falls",
    ),
    "O": Case(
        suspect="group mean",
        part="baseline",
        faults={"baseline": minus_the_group_mean},
        cure=leave_one_out_advantages,
        oracle=pairs_oracle,
        means="a song's baseline does not depend on the song",
        hint="the mean of the other K - 1 totals of the group, [G, K] in and out",
        mistakes={
            "the mean includes the song itself, which shrinks every step by (K - 1) / K": minus_the_group_mean,
            "divided by the group's standard deviation, which weights easy and hard prompts anew": lambda x: (
                (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-4)
            ),
            "the wrong axis: songs of one group belong to one prompt": lambda x: x - x.mean(0, keepdim=True),
            "there is no baseline: the mean step is right, and noisier than it need be": lambda x: x,
            "the sign: a total above the others' mean is good": lambda x: -leave_one_out_advantages(x),
        },
        sign="none: with Adam a step that is shorter by a constant factor is the same step",
    ),
    "P": Case(
        suspect="micro-batch",
        part="reduction",
        faults={"reduction": mean_of_micro_batches},
        cure=token_mean,
        oracle=reduction_oracle,
        means="every token of the batch has the same weight, however the batch is cut",
        hint="the sum over the micro-batches, divided by the number of tokens of the whole batch",
        mistakes={
            "each micro-batch has a denominator of its own": mean_of_micro_batches,
            "a mean of rows, so that tokens of short songs count for more": lambda x, m: (
                masked_sum(x, m, dim=1) / m.sum(1)
            ).mean(),
            "a sum: the step now grows with the batch": lambda x, m: masked_sum(x, m),
            "padding is in the denominator": lambda x, m: torch.where(m, x, 0.0).mean(),
        },
        sign="next to none: tokens of short songs count for more",
    ),
}
