"""Patients Q to V, sick in who scores what: the rows that score a token, old policy, reference, sampler and judge."""

import torch

from rlhf_lab.classroom.clinic.cases import Case
from rlhf_lab.classroom.clinic.faults import (
    drop,
    hotter_top_k,
    judge_by_length,
    one_iteration_behind,
    one_iteration_late,
    score_again,
    the_row_before,
)
from rlhf_lab.classroom.clinic.oracles import gradient_oracle, scores_oracle
from rlhf_lab.classroom.clinic.parts import evaluate, judge_in_order, keep_sampled, own_rows, same_law, stay

SCORING_CASES: dict[str, Case] = {
    "Q": Case(
        suspect="off by one",
        part="scoring",
        faults={"scoring": the_row_before},
        cure=own_rows,
        oracle=gradient_oracle,
        means="each token is scored by the logits from which it was drawn",
        hint="row t already holds the logits before token t",
        mistakes={
            "a token is scored by the logits that stood before the token before it": the_row_before,
            "a token is scored by the logits that come after it": lambda rows: torch.cat(
                [rows[:, 1:], rows[:, -1:]], dim=1
            ),
            "probabilities where logits are asked for: a softmax of a softmax": lambda rows: rows.softmax(-1),
        },
        sign="a KL that starts above 0, before the policy has moved, and a large clip fraction in every iteration",
    ),
    "R": Case(
        suspect="stale",
        part="old_log_probs",
        faults={"old_log_probs": one_iteration_late},
        cure=keep_sampled,
        oracle=gradient_oracle,
        means="the ratio starts at 1 in every iteration",
        hint="what the sampler said of its own tokens is the first argument",
        mistakes={
            "the log-probs are those of the policy of one iteration ago": one_iteration_late,
            "half of a stale log-prob is still stale": lambda sampled, rescored, earlier: (sampled + earlier) / 2,
            "zeros are the log-probs of something certain": lambda sampled, rescored, earlier: torch.zeros_like(
                sampled
            ),
        },
        sign="a clip fraction that never settles: what was learned last time is clipped this time",
    ),
    "S": Case(
        suspect="follower",
        part="reference",
        faults={"reference": one_iteration_behind},
        cure=stay,
        oracle=gradient_oracle,
        means="the leash is tied to a policy that stays where it was",
        hint="the reference is the first policy, for the whole run",
        mistakes={
            "the reference follows the policy, one iteration behind": one_iteration_behind,
            "an average of old and new moves too, only slower": lambda first, earlier: (first + earlier) / 2,
            "uniform logits are another reference: the leash then holds every entropy up": (
                lambda first, earlier: torch.zeros_like(first)
            ),
        },
        sign="a KL that stays near 0 while entropy falls to 0 and the score passes that of health",
    ),
    "T": Case(
        suspect="two wrongs",
        part="sampling",
        faults={"sampling": hotter_top_k},
        cure=same_law,
        oracle=gradient_oracle,
        means="the law that sampled is the law that is scored, in both respects",
        hint="no temperature but the one that scoring knows, and no top-k",
        mistakes={
            "hotter than it is scored, and the least likely token is never sampled": hotter_top_k,
            "still hotter than it is scored": lambda logits: logits / 1.25,
            "still a top-k: the least likely token is never sampled": lambda logits: torch.where(
                logits >= logits.topk(3).values[..., -1:], logits, -torch.inf
            ),
        },
        sign="none: score, KL, entropy and length run beside those of health",
        setting={"old_log_probs": score_again},
    ),
    "U": Case(
        suspect="shuffled",
        part="scores",
        faults={"scores": judge_by_length},
        cure=judge_in_order,
        oracle=scores_oracle,
        means="every song has its own score, however they were sent to the judge",
        hint="judge(torch.arange(len(lengths))), or put the scores back: scores[order] = judged",
        mistakes={
            "scores come back sorted by length and are never put back": judge_by_length,
            "put back with the order itself; it has to be undone: scores[order] = judged": lambda judge, lengths: judge(
                lengths.argsort(stable=True)
            )[lengths.argsort(stable=True)],
            "the other way round": lambda judge, lengths: judge(torch.arange(len(lengths)).flip(0)),
            "all songs have one score": lambda judge, lengths: (
                judge(torch.arange(len(lengths))).mean().expand(len(lengths))
            ),
        },
        sign="a score that hardly rises and a critic that explains nothing, while all else is busy",
    ),
    "V": Case(
        suspect="dropout",
        part="reference_pass",
        faults={"reference_pass": drop},
        cure=evaluate,
        oracle=gradient_oracle,
        means="asked twice, the reference says the same",
        hint="a reference is in evaluation mode: its logits as they are",
        mistakes={
            "one logit in ten is dropped, at random and anew in each pass": drop,
            "dropped without scaling up the others, and dropped all the same": lambda logits, generator: (
                logits * (torch.rand(logits.shape, generator=generator) >= 0.1)
            ),
            "a mean of two passes is still random": lambda logits, generator: (
                (drop(logits, generator) + drop(logits, generator)) / 2
            ),
        },
        sign="a KL that is not 0 in the first iteration, and trembles from then on",
    ),
}
