"""Facts about rewards, discounts and advantages: recomputed from what the run itself logged, by the definition."""

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from rlhf_lab.experience.invariants.violation import InvariantViolation, difference, unlike
from rlhf_lab.maths.tensors import check_shapes, masked_sum, masked_whiten


def check_score_counted_once(
    rewards: Tensor,
    scores: Tensor,
    kl_penalty: Tensor,
    mask: Tensor,
    tolerance: float,
) -> None:
    """The rewards of a reply add up to its score and its KL penalty.

        sum_t rewards[b, t] = scores[b] + sum_t kl_penalty[b, t]

    Args:
        rewards: [B, T] what the advantages are computed from.
        scores: [B] score of the reply, with the penalty for a missing end.
        kl_penalty: [B, T] -kl_coef * (log_probs - ref_log_probs), the KL part of the rewards.
        mask: [B, T] bool.
        tolerance: relative to 1 + |scores|.

    Raises:
        InvariantViolation: named "score_counted_once".

    Chapter 10.
    """
    check_shapes(rewards=rewards, kl_penalty=kl_penalty, mask=mask)
    counted = masked_sum(rewards - kl_penalty, mask, dim=1)
    wrong = (counted - scores).abs() > tolerance * (1 + scores.abs())
    if wrong.any():
        row = int(wrong.nonzero()[0])
        got, score = float(counted[row]), float(scores[row])
        times = round(got / score) if score else 0
        twice = times >= 2 and abs(got - times * score) <= tolerance * (1 + abs(score)) * times
        raise InvariantViolation(
            "score_counted_once",
            f"rewards of row {row} that add up to {got:.4g} (KL penalty apart) for a score of {score:.4g}",
            "the score once",
            f"the score was counted {times} times, in two places or at several tokens"
            if twice
            else "the score was written to padding, to several tokens, or lost under the mask",
            "write the score at the last real token, at column length - 1, and only there",
            "10",
        )


def check_score_place(rewards: Tensor, scores: Tensor, kl_penalty: Tensor, mask: Tensor, tolerance: float) -> None:
    """The score stands at the last real token of its reply and nowhere else.

        rewards[b, t] - kl_penalty[b, t] = scores[b] if t is the last real token, else 0

    Args:
        rewards, kl_penalty: [B, T]. scores: [B], with the penalty for a missing end. mask: [B, T] bool.
        tolerance: relative to 1 + |score|.

    Raises:
        InvariantViolation: named "score_place". The sum over a reply can be right and the place wrong.

    Example:
        >>> check_score_place(torch.tensor([[0.0, 2.0]]), torch.tensor([2.0]), torch.zeros(1, 2), torch.ones(1, 2) > 0,
        ...                   tolerance=1e-4)

    Chapters 06, 10.
    """
    check_shapes(rewards=rewards, kl_penalty=kl_penalty, mask=mask)
    last = (mask.sum(1) - 1).clamp(min=0)
    expected = scores[:, None] * one_hot(last, mask.shape[1])
    wrong = (unlike(rewards - kl_penalty, expected, tolerance) & mask).any(1)
    if wrong.any():
        row = int(wrong.nonzero()[0])
        parts = (rewards - kl_penalty)[row, : int(last[row]) + 1]
        at = int(parts.abs().argmax())
        early = int(last[row]) - at
        raise InvariantViolation(
            "score_place",
            f"row {row}: the largest reward, {float(parts[at]):.4g}, {early} tokens before the last real one",
            f"the score {float(scores[row]):.4g} at the last real token, 0 elsewhere (KL penalty apart)",
            "the score is written too early, so the tokens after it, the end token among them, earn nothing"
            if early
            else "part of the score is paid at other tokens; what is paid before a token does not count for it",
            "write the score at column length - 1 (`rewards.token_rewards`)",
            "06 or 10",
        )


def check_discounts(discounts: Tensor, mask: Tensor, terminal: Tensor | None = None, gamma: float = 1.0) -> None:
    """The discount is gamma at every real step, and 0 at the last one of a row that ended there.

    Args:
        discounts: [B, T]. mask: [B, T] bool.
        terminal: [B] bool, rows whose last step ends the episode; all if None: a reply that hit the limit is over too.
        gamma: in [0, 1].

    Raises:
        InvariantViolation: named "discounts".

    Example:
        >>> check_discounts(torch.tensor([[1.0, 0.0]]), torch.ones(1, 2, dtype=torch.bool))

    Chapters 04, 06, 10.
    """
    check_shapes(discounts=discounts, mask=mask)
    rows, last = torch.arange(len(mask), device=mask.device), (mask.sum(1) - 1).clamp(min=0)
    ends = torch.ones_like(last, dtype=torch.bool) if terminal is None else terminal
    expected = torch.full_like(discounts, gamma)
    expected[rows, last] = torch.where(ends, 0.0, gamma).to(discounts)
    wrong = unlike(discounts, expected, 1e-6) & mask
    if not wrong.any():
        return
    row, column = (int(i) for i in wrong.nonzero()[0])
    got, at_end = float(discounts[row, column]), column == int(last[row])
    if at_end and bool(ends[row]):
        cause = "a reply that hit the limit bootstraps from the value, which is a second copy of the score"
    elif at_end:
        cause = "a row that was cut counts as one that ended, so its bootstrap is lost"
    elif got == 0:
        cause = "an end in the middle of a row: a full buffer or a cut counts as the end, and what comes later is lost"
    else:
        cause = "another gamma than the declared one"
    raise InvariantViolation(
        "discounts",
        f"a discount of {got:g} at column {column} of row {row}, {'its last step' if at_end else 'not its last step'}",
        f"{float(expected[row, column]):g}",
        cause,
        "0 exactly where the episode is over (in RLHF the last real token, ended or not), gamma everywhere else",
        "04 or 10",
    )


def check_leash(
    kl_penalty: Tensor, log_probs: Tensor, ref_log_probs: Tensor, mask: Tensor, kl_coef: float, tolerance: float
) -> None:
    """The KL part of the rewards is -kl_coef times the log-ratio of policy to reference, token by token.

        kl_penalty[b, t] = -kl_coef (log pi(a) - log pi_ref(a))

    Args:
        kl_penalty: [B, T] reward units, as the rewards hold it.
        log_probs, ref_log_probs: [B, T] nats, of the sampled tokens.
        mask: [B, T] bool. kl_coef: declared, >= 0. tolerance: nats.

    Raises:
        InvariantViolation: named "leash": it is absent though its coefficient is not and the policy has moved, it has
            the other sign, another coefficient, or it is another estimate.

    Example:
        >>> log_probs, ref = torch.tensor([[-1.0]]), torch.tensor([[-1.5]])
        >>> check_leash(torch.tensor([[-0.05]]), log_probs, ref, torch.tensor([[True]]), kl_coef=0.1, tolerance=1e-4)

    Chapters 06, 10.
    """
    check_shapes(kl_penalty=kl_penalty, log_probs=log_probs, ref_log_probs=ref_log_probs, mask=mask)
    log_ratio = torch.where(mask, log_probs.detach() - ref_log_probs.detach(), 0.0)
    expected, scale = -kl_coef * log_ratio, max(kl_coef, 1e-12)
    got = torch.where(mask, kl_penalty.detach(), 0.0)
    if not unlike(got / scale, expected / scale, 10 * tolerance).any():
        return
    moved = float(log_ratio.abs().max())
    fitted = float((got * expected).sum() / expected.square().sum().clamp(min=1e-30))
    if kl_coef > 0 and not got.any():
        cause = "the leash is absent: its coefficient is not 0, the policy has moved, and no reward pays for it"
    elif not unlike(got / scale, -expected / scale, 10 * tolerance).any():
        cause = "the log-ratio is the wrong way round (reference minus policy), so distance is paid for"
    elif not unlike(got / scale, fitted * expected / scale, 10 * tolerance).any():
        cause = f"the coefficient is {fitted * kl_coef:.3g}, {kl_coef:g} was declared"
    else:
        cause = "it is another estimate than k1, of other tokens, or of stale log-probs; only k1 in the reward is exact"
    raise InvariantViolation(
        "leash",
        f"a KL penalty from {float(got.min()):.3g} to {float(got.max()):.3g} where log-ratios reach {moved:.3g} nats",
        f"-{kl_coef:g} times the log-ratio of policy to reference at every token",
        cause,
        "rewards = -kl_coef * kl_k1(log_probs, ref_log_probs), plus the score at the last token",
        "10",
    )


def _gae(rewards: Tensor, values: Tensor, discounts: Tensor, mask: Tensor, lam: float) -> Tensor:
    """GAE from its definition, in float64: A_t = delta_t + lam discount_t A_{t+1}, and 0 behind the end of the row."""
    rewards, values, discounts = (x.detach().double() for x in (rewards, values, discounts))
    ahead, columns = rewards.new_zeros(len(rewards)), []
    for t in reversed(range(rewards.shape[1])):
        error = rewards[:, t] + discounts[:, t] * values[:, t + 1] - values[:, t]
        ahead = torch.where(mask[:, t], error + lam * discounts[:, t] * ahead, 0.0)
        columns.append(ahead)
    return torch.stack(columns[::-1], dim=1)


def check_advantages(
    advantages: Tensor, rewards: Tensor, values: Tensor, discounts: Tensor, mask: Tensor, lam: float, tolerance: float
) -> None:
    """Advantages computed again from the logged rows, row by row, are the ones in use.

        A_t = delta_t + lam discount_t A_{t+1},   delta_t = r_t + discount_t V_{t+1} - V_t

    Args:
        advantages: [B, T] before any whitening. rewards, discounts: [B, T]. values: [B, T + 1], those of sampling.
        mask: [B, T] bool. lam: declared. tolerance: relative to 1 + |advantage|.

    Raises:
        InvariantViolation: named "advantages", with the usual slip that reproduces the numbers where one does.

    Chapters 04, 06.
    """
    check_shapes(advantages=advantages, rewards=rewards, discounts=discounts, mask=mask, values=values[:, :-1])
    expected = _gae(rewards, values, discounts, mask, lam)
    wrong = unlike(advantages.double(), expected, 10 * tolerance) & mask
    if not wrong.any():
        return
    nothing = torch.zeros_like(values)
    slips = {
        "the sign: it is what came minus what was expected": -expected,
        "lambda is forgotten: the errors are added up in full": _gae(rewards, values, discounts, mask, 1.0),
        "the TD errors alone: nothing is accumulated": _gae(rewards, values, discounts, mask, 0.0),
        "no value is subtracted: these are returns": _gae(rewards, nothing, discounts, mask, lam),
        "they are whitened already": masked_whiten(expected, mask) if mask.sum() > 1 else expected,
    }
    fits = (cause for cause, slip in slips.items() if not (unlike(advantages.double(), slip, 1e-3) & mask).any())
    row, column = (int(i) for i in wrong.nonzero()[0])
    raise InvariantViolation(
        "advantages",
        f"{float(advantages[row, column]):.4g} at step {column} of row {row}",
        f"{float(expected[row, column]):.4g}, from the rewards, values and discounts of that row",
        next(
            fits, "the next value is missing from the TD error, the sum runs on into another row, or values are stale"
        ),
        "`returns.gae(rewards, values, discounts, mask, lam)`, with the values of sampling",
        "04 or 06",
    )


def check_baseline(advantages: Tensor, totals: Tensor, tolerance: float) -> None:
    """Advantages of a group are each total minus the mean of the *other* totals.

    Args:
        advantages, totals: [G, K], K replies to each of G prompts. tolerance: relative to 1 + |advantage|.

    Raises:
        InvariantViolation: named "advantages". GRPO means to subtract the mean of all: do not declare this check there.

    Example:
        >>> check_baseline(torch.tensor([[-2.0, 2.0]]), torch.tensor([[1.0, 3.0]]), 1e-4)

    Chapters 06, 15.
    """
    check_shapes(advantages=advantages, totals=totals)
    count = totals.shape[1]
    others = (totals.sum(1, keepdim=True) - totals) / (count - 1)
    wrong = unlike(advantages, totals - others, 10 * tolerance)
    if wrong.any():
        own = not unlike(advantages, totals - totals.mean(1, keepdim=True), 1e-3).any()
        group = int(wrong.any(1).nonzero()[0])
        raise InvariantViolation(
            "advantages",
            f"advantages {_short(advantages[group])} for totals {_short(totals[group])}",
            "each total minus the mean of the others",
            f"the mean includes the reply itself, which shrinks every step to {count - 1}/{count} of its length"
            if own
            else "another baseline, a division by the standard deviation, or a mean over another axis",
            "`returns.leave_one_out_advantages`",
            "06",
        )


def _short(numbers: Tensor) -> list[float]:
    return [round(float(number), 4) for number in numbers]


def check_whitened(whitened: Tensor, advantages: Tensor, mask: Tensor, tolerance: float) -> None:
    """What the loss takes are the advantages, shifted and scaled to mean 0 and variance 1 over the real tokens.

    Args:
        whitened, advantages: [B, T]. mask: [B, T] bool, True at 2 tokens at least. tolerance: relative.

    Raises:
        InvariantViolation: named "whitening".

    Chapters 05, 10.
    """
    expected = masked_whiten(advantages.detach().double(), mask)
    if (unlike(whitened.double(), expected, 100 * tolerance) & mask).any():
        real = whitened[mask].double()
        raise InvariantViolation(
            "whitening",
            f"advantages of mean {float(real.mean()):.3g} and deviation {float(real.std()):.3g} under the mask",
            "the advantages with mean 0 and (standard) deviation 1",
            "mean and variance are taken over padding too, over each row, or the advantages were changed before",
            "`tensors.masked_whiten(advantages, mask)`, once a batch",
            "05",
        )


def check_returns(returns: Tensor, advantages: Tensor, values: Tensor, mask: Tensor, tolerance: float) -> None:
    """What the value function learns is advantage plus value, before any whitening.

        returns[b, t] = advantages[b, t] + values[b, t]

    Args:
        returns, advantages: [B, T], not whitened. values: [B, T + 1]. mask: [B, T] bool. tolerance: relative.

    Raises:
        InvariantViolation: named "returns".

    Chapters 04, 10.
    """
    expected = advantages + values[:, :-1]
    if (unlike(returns, expected, 10 * tolerance) & mask).any():
        mean, worst = difference(returns, expected, mask)
        raise InvariantViolation(
            "returns",
            f"targets of the value that are {mean:.3g} off on average and {worst:.3g} at worst",
            "advantage plus the value of sampling",
            "the targets are made from whitened advantages, from other values, or lack the value",
            "returns = advantages + values[:, :-1], before whitening",
            "04",
        )


def check_groups(prompts: Tensor, advantages: Tensor, mask: Tensor, rewards: Tensor, tolerance: float) -> None:
    """The replies of a group are to one prompt, each has one advantage, and a group's advantages sum to 0.

    Args:
        prompts: [G K, P] token ids, padding as one number. advantages: [G K, T]. mask: [G K, T] bool.
        rewards: [G, K] of whole replies. tolerance: relative to 1 + |advantages|.

    Raises:
        InvariantViolation: named "groups".

    Chapter 15.
    """
    count, size = rewards.shape
    alike = (prompts.view(count, size, -1) == prompts.view(count, size, -1)[:, :1]).all(2)
    if not alike.all():
        row, place = (int(i) for i in (~alike).nonzero()[0])
        raise InvariantViolation(
            "groups",
            f"reply {place} of group {row} is to another prompt than reply 0",
            f"{size} replies to one prompt, one after the other",
            "the prompts were repeated in turn (a, b, a, b) and the rewards cut into rows (a, a, b, b), or the reverse",
            "[prompt for prompt in prompts for _ in range(replies)], then rewards.view(-1, replies)",
            "15",
        )
    one = advantages[:, :1]  # the first token is real in every reply
    spread = unlike(advantages, one.expand_as(advantages), 10 * tolerance) & mask
    total = one.view(count, size).sum(1)
    biased = total.abs() > 10 * tolerance * (1 + one.view(count, size).abs().sum(1))
    if spread.any() or biased.any():
        worst = float(total.abs().max())
        raise InvariantViolation(
            "groups",
            "tokens of one reply with several advantages" if spread.any() else f"advantages that sum to {worst:.3g}",
            "one advantage a reply, which sum to 0 in each group",
            "the mean was taken over the whole batch or along the other axis, or one number a token was expected",
            "leave_one_out_advantages(rewards.view(-1, replies)) or group_advantages of the same",
            "15",
        )
