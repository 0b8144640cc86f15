"""Patients A to H, sick in what the update learns from: mask, rewards, ends and advantages."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from rlhf_lab.classroom.clinic.cases import Case
from rlhf_lab.classroom.clinic.faults import (
    FRAGMENT,
    capped_goes_on,
    full_buffer_is_an_end,
    live_baseline,
    mask_from_tokens,
    no_next_value,
    one_long_stream,
    score_everywhere,
    score_one_early,
)
from rlhf_lab.classroom.clinic.oracles import gradient_oracle, rows_oracle
from rlhf_lab.classroom.clinic.parts import (
    LAM,
    end_at_last_token,
    gae_of_rows,
    mask_from_lengths,
    score_at_last_token,
)
from rlhf_lab.classroom.clinic.songs import LENGTH
from rlhf_lab.maths.returns import td_errors
from rlhf_lab.maths.tensors import length_mask


def _place(column: Callable[[Tensor], Tensor]) -> Callable:
    """A reward part that writes the score at another column."""
    return lambda scores, penalty, mask: penalty + scores[:, None] * one_hot(column(mask), mask.shape[1])


def _advantages(errors: Callable, lam: float = LAM) -> Callable:
    """An advantage part with other TD errors or another lambda."""

    def part(rewards: Tensor, values: Tensor, discounts: Tensor, mask: Tensor) -> Tensor:
        surprise, running, columns = errors(rewards, values.detach(), discounts), torch.zeros(()), []
        for t in reversed(range(rewards.shape[1])):
            running = torch.where(mask[:, t], surprise[:, t] + lam * discounts[:, t] * running, 0.0)
            columns.append(running)
        return torch.stack(columns[::-1], dim=1)

    return part


def _td(rewards: Tensor, values: Tensor, discounts: Tensor) -> Tensor:
    return rewards + discounts * values[:, 1:] - values[:, :-1]


def _chain_across(rewards: Tensor, values: Tensor, discounts: Tensor, mask: Tensor) -> Tensor:
    """The TD errors know where a row ends; their sum does not."""
    surprise = td_errors(rewards, values, discounts, mask)[mask]
    running, stream = 0.0, []
    for error in reversed(surprise.tolist()):
        running = error + LAM * running
        stream.append(running)
    flat = torch.tensor(stream[::-1], dtype=torch.float64)
    return torch.zeros(mask.shape).double().masked_scatter(mask, flat)


MISPLACED = {
    "the score stands at every token, so a long song is paid several times": score_everywhere,
    "the score stands one token before the last, so the token that ends the song earns nothing": score_one_early,
    "the score stands in the last column, also where the song is over; there the mask removes it": _place(
        lambda mask: torch.full((len(mask),), LENGTH - 1)
    ),
    "the score stands at the first token, so all later tokens earn nothing": _place(
        lambda mask: torch.zeros(len(mask), dtype=torch.long)
    ),
    "the score is divided over the tokens; what is paid before a token does not count for it": lambda s, p, m: (
        p + s[:, None] * m / m.sum(1, keepdim=True)
    ),
    "the leash is gone: the penalty belongs to the reward of every token": lambda s, p, m: score_at_last_token(
        s, torch.zeros_like(p), m
    ),
}
ENDS = {
    "every discount is 1, so the last token bootstraps from a value beyond the song": lambda mask, ended: mask.double(),
    "every discount is 0, so no token hears of the score that comes later": lambda mask, ended: 0.0 * mask.double(),
    "a song that hit the limit goes on: its value counts as a second score": capped_goes_on,
    "a full buffer still counts as an end, so the first tokens never hear of the score": full_buffer_is_an_end,
}
GAE = {
    "the value of the next state is missing from the TD error": no_next_value,
    "the value of the state itself is missing from the TD error": _advantages(lambda r, v, d: r + d * v[:, 1:]),
    "the next value counts behind the end too: multiply it by the discount": _advantages(
        lambda r, v, d: r + v[:, 1:] - v[:, :-1]
    ),
    "the TD errors alone: nothing is accumulated": _advantages(_td, lam=0.0),
    "lambda is forgotten: the errors are added up in full": _advantages(_td, lam=1.0),
    "the sum still runs from one row into the next": one_long_stream,
    "the TD errors stop at the end of a row, their sum does not": _chain_across,
    "the sign: it is what came minus what was expected": lambda *inputs: -gae_of_rows(*inputs),
}
EXPERIENCE_CASES: dict[str, Case] = {
    "A": Case(
        suspect="pad is end",
        part="mask",
        faults={"mask": mask_from_tokens},
        cure=mask_from_lengths,
        oracle=gradient_oracle,
        means="every token that was sampled is trained, the end token too",
        hint="the mask is True on the first lengths[b] columns of row b, whatever the tokens are",
        mistakes={
            "the end token is still masked out: token 0 is also the padding": mask_from_tokens,
            "one token too few": lambda tokens, lengths: length_mask(lengths - 1, LENGTH),
            "one token too many: a column of padding counts": lambda tokens, lengths: length_mask(
                (lengths + 1).clamp(max=LENGTH), LENGTH
            ),
            "no mask at all: padding counts as tokens": lambda tokens, lengths: torch.ones_like(tokens).bool(),
        },
        sign="the score stalls at once and songs end no sooner: nobody teaches the end",
    ),
    "B": Case(
        suspect="paid per token",
        part="rewards",
        faults={"rewards": score_everywhere},
        cure=score_at_last_token,
        oracle=gradient_oracle,
        means="each song is paid once, after its last token",
        hint="penalty everywhere, plus the score in column mask.sum(1) - 1",
        mistakes=MISPLACED,
        sign="songs too long, values above any score: somebody is paid several times",
    ),
    "C": Case(
        suspect="paid early",
        part="rewards",
        faults={"rewards": score_one_early},
        cure=score_at_last_token,
        oracle=gradient_oracle,
        means="the last token earns what it brings",
        hint="penalty everywhere, plus the score in column mask.sum(1) - 1",
        mistakes=MISPLACED,
        sign="the score stalls as where nobody teaches the end: the token that ends a song earns nothing",
    ),
    "D": Case(
        suspect="capped",
        part="discounts",
        faults={"discounts": capped_goes_on},
        cure=end_at_last_token,
        oracle=gradient_oracle,
        means="the limit is an end like any other",
        hint="1 at every real token but the last, 0 at the last, whether or not the song ended itself",
        mistakes=ENDS,
        sign="the mean value climbs past any score there is, and songs get longer",
    ),
    "E": Case(
        suspect="next value",
        part="advantages",
        faults={"advantages": no_next_value},
        cure=gae_of_rows,
        oracle=rows_oracle,
        means="advantages are those of the definition, row by row, for any values",
        hint="TD error = reward + discount * next value - value; then add up, lam * discount a step",
        mistakes=GAE,
        sign="score, KL and entropy stall near their start: what the values call good is shunned",
    ),
    "F": Case(
        suspect="cut is end",
        part="discounts",
        faults={"discounts": full_buffer_is_an_end},
        cure=end_at_last_token,
        oracle=gradient_oracle,
        means="a cut bootstraps from the value of the state behind it",
        hint="0 only where the song is over; a cut goes on with discount 1 and the value bridges it",
        mistakes=ENDS,
        sign="half the way and no further: the last tokens learn, the first ones never do",
        setting={"fragment": FRAGMENT},
    ),
    "G": Case(
        suspect="neighbours",
        part="advantages",
        faults={"advantages": one_long_stream},
        cure=gae_of_rows,
        oracle=rows_oracle,
        means="a row has the advantages that it has alone",
        hint="the discount is 0 at the end of a row, and it multiplies the running sum as well",
        mistakes=GAE,
        sign="a mean value that first sinks and then runs away upwards, and a score that hardly minds",
    ),
    "H": Case(
        suspect="live value",
        part="advantages",
        faults={"advantages": live_baseline},
        cure=gae_of_rows,
        oracle=gradient_oracle,
        means="the policy's objective moves the policy and nothing else",
        hint="advantages are data: detach them, values included",
        mistakes={
            "the values still carry a gradient: the policy's loss trains the critic": live_baseline,
            "the sign: it is the return minus the value": lambda *inputs: -gae_of_rows(*inputs),
            "the value is missing as a baseline": _advantages(lambda r, v, d: r + d * v[:, 1:]),
        },
        sign="the mean value sinks far below the score although its own loss is healthy",
    ),
}
