"""Each identity fires on the slip that it is for, with its name and cause, and on nothing that is right."""

import math

import pytest
import torch

from rlhf_lab.experience import invariants as live
from rlhf_lab.maths.kl import kl_k1
from rlhf_lab.maths.objectives import clipped_surrogate_objective, clipped_value_loss, entropy
from rlhf_lab.maths.returns import gae, leave_one_out_advantages
from rlhf_lab.maths.tensors import masked_mean, masked_whiten

torch.set_num_threads(1)
MASK = torch.tensor([[True, True, True, False], [True, False, False, False], [True] * 4])
JUNK = torch.tensor(math.nan)
TIGHT = 1e-6


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def caught(name, check, *arguments):
    """The message of the violation, which must have this name."""
    with pytest.raises(live.InvariantViolation) as violation:
        check(*arguments)
    assert violation.value.name == name
    assert all(part in str(violation.value) for part in ("Cause:", "Remedy:", "chapter"))
    return str(violation.value)


# ---- rewards -------------------------------------------------------------------------------------------------------
LAST = torch.tensor([[0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])
SCORES, PENALTY = torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64), 0.1 * draw(3, 4) * MASK


def placed(columns):
    return PENALTY + SCORES[:, None] * columns


def test_score_place_accepts_the_last_token_and_looks_at_real_ones_only():
    live.check_score_place(placed(LAST), SCORES, PENALTY, MASK, TIGHT)
    live.check_score_place(torch.where(MASK, placed(LAST), JUNK), SCORES, PENALTY, MASK, TIGHT)
    live.check_score_place(placed(LAST).float(), SCORES.float(), PENALTY.float(), MASK, 1e-4)


@pytest.mark.parametrize(
    ("columns", "cause"),
    [
        (torch.tensor([[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]]), "too early"),
        (torch.tensor([[1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]]), "too early"),
        (torch.tensor([[0, 0.4, 0.6, 0], [1, 0, 0, 0], [0, 0, 0, 1]]), "other tokens"),
    ],
    ids=["one early", "at the first", "divided"],
)
def test_score_place_names_the_place(columns, cause):
    message = caught("score_place", live.check_score_place, placed(columns), SCORES, PENALTY, MASK, TIGHT)
    assert cause in message
    live.check_score_counted_once(placed(columns), SCORES, PENALTY, MASK, TIGHT)  # the sum alone does not see it


def discounts(gamma=1.0, ends=(True, True, True)):
    goes_on = torch.full((3, 4), gamma)
    for row, (column, end) in enumerate(zip((2, 0, 3), ends, strict=True)):
        goes_on[row, column] = 0.0 if end else gamma
    return goes_on


@pytest.mark.parametrize("gamma", [1.0, 0.9, 0.0])
@pytest.mark.parametrize("ends", [(True, True, True), (True, False, True), (False, False, False)])
def test_discounts_accept_ends_and_cuts(gamma, ends):
    live.check_discounts(torch.where(MASK, discounts(gamma, ends), JUNK), MASK, torch.tensor(ends), gamma)


def test_discounts_name_what_is_wrong():
    middle, wrong = discounts(), discounts(0.9)
    middle[2, 1] = 0.0
    cut = torch.tensor([True, True, False])
    for given, terminal, cause in (
        (discounts(ends=(True, True, False)), None, "second copy of the score"),
        (discounts(), cut, "its bootstrap is lost"),
        (middle, None, "an end in the middle"),
        (wrong, None, "another gamma"),
    ):
        message = caught("discounts", live.check_discounts, given, MASK, terminal)
        assert cause in message


LOG_PROBS, REF = draw(3, 4, seed=1) * MASK, draw(3, 4, seed=2) * MASK


def test_leash_accepts_k1_in_the_reward_and_nothing_before_the_policy_moves():
    live.check_leash(-0.2 * kl_k1(LOG_PROBS, REF), LOG_PROBS, REF, MASK, 0.2, TIGHT)
    live.check_leash(torch.zeros(3, 4), LOG_PROBS, REF, MASK, 0.0, TIGHT)
    live.check_leash(torch.zeros(3, 4), LOG_PROBS, LOG_PROBS, MASK, 0.2, TIGHT)
    small = 1e-3 * (-kl_k1(LOG_PROBS, REF)).float()
    live.check_leash(small, LOG_PROBS.float(), REF.float(), MASK, 1e-3, 1e-4)


@pytest.mark.parametrize(
    ("penalty", "cause"),
    [
        (lambda k: 0 * k, "absent"),
        (lambda k: 0.2 * k, "wrong way round"),
        (lambda k: -0.1 * k, "coefficient is 0.1"),
        (lambda k: -0.2 * k.square() / 2, "another estimate"),
        (lambda k: -0.2 * k.abs(), "another estimate"),
    ],
    ids=["absent", "sign", "half", "k2", "absolute"],
)
def test_leash_names_what_is_wrong(penalty, cause):
    message = caught("leash", live.check_leash, penalty(LOG_PROBS - REF), LOG_PROBS, REF, MASK, 0.2, TIGHT)
    assert cause in message


def test_a_leash_that_nobody_declared():
    caught("leash", live.check_leash, 0.1 * (REF - LOG_PROBS), LOG_PROBS, REF, MASK, 0.0, TIGHT)


# ---- advantages ------------------------------------------------------------------------------------------------------
REWARDS, VALUES, ENDS = draw(3, 4, seed=3), draw(3, 5, seed=4), discounts().double()


def test_advantages_accept_gae_on_ragged_rows():
    for lam in (0.0, 0.95, 1.0):
        right = gae(REWARDS, VALUES, ENDS, MASK, lam)
        rows = (torch.where(MASK, REWARDS, JUNK), VALUES, ENDS, MASK)
        live.check_advantages(right, *rows, lam, TIGHT)
        live.check_advantages(right.float(), *(x.float() for x in rows[:3]), MASK, lam, 1e-4)


@pytest.mark.parametrize(
    ("slip", "cause"),
    [
        (lambda: -gae(REWARDS, VALUES, ENDS, MASK, 0.9), "the sign"),
        (lambda: gae(REWARDS, VALUES, ENDS, MASK, 1.0), "lambda is forgotten"),
        (lambda: gae(REWARDS, VALUES, ENDS, MASK, 0.0), "nothing is accumulated"),
        (lambda: gae(REWARDS, 0 * VALUES, ENDS, MASK, 0.9), "these are returns"),
        (lambda: masked_whiten(gae(REWARDS, VALUES, ENDS, MASK, 0.9), MASK), "whitened already"),
        (lambda: gae(REWARDS, VALUES, ENDS, torch.ones_like(MASK), 0.9) + 0.1, "another row"),
    ],
    ids=["sign", "lambda 1", "lambda 0", "returns", "white", "something"],
)
def test_advantages_name_the_slip(slip, cause):
    message = caught("advantages", live.check_advantages, slip(), REWARDS, VALUES, ENDS, MASK, 0.9, TIGHT)
    assert cause in message


def test_baseline():
    totals = draw(5, 4, seed=5)
    live.check_baseline(leave_one_out_advantages(totals), totals, TIGHT)
    message = caught("advantages", live.check_baseline, totals - totals.mean(1, keepdim=True), totals, TIGHT)
    assert "3/4 of its length" in message
    for wrong in (totals, totals - totals.mean(0), -leave_one_out_advantages(totals)):
        assert "another baseline" in caught("advantages", live.check_baseline, wrong, totals, TIGHT)


def test_whitening_is_over_real_tokens_once():
    right = masked_whiten(REWARDS, MASK)
    live.check_whitened(torch.where(MASK, right, JUNK), torch.where(MASK, REWARDS, 0), MASK, TIGHT)
    padded = (REWARDS - REWARDS.mean()) / REWARDS.std()
    for wrong in (padded, REWARDS, -right, right * 2):
        caught("whitening", live.check_whitened, wrong, REWARDS, MASK, TIGHT)


def test_returns_are_made_before_whitening():
    advantages = gae(REWARDS, VALUES, ENDS, MASK, 0.9)
    live.check_returns(advantages + VALUES[:, :-1], advantages, VALUES, MASK, TIGHT)
    for wrong in (advantages, masked_whiten(advantages, MASK) + VALUES[:, :-1], advantages + VALUES[:, 1:]):
        caught("returns", live.check_returns, wrong, advantages, VALUES, MASK, TIGHT)


# ---- the loss --------------------------------------------------------------------------------------------------------
V, CLIP, COEF = 5, 0.2, 0.3
TOKENS = torch.tensor([[0, 1, 2, 0], [4, 0, 0, 0], [3, 3, 1, 2]])
ADVANTAGES = draw(3, 4, seed=6) * MASK


def log_probs_of(logits):
    return torch.where(MASK, logits.log_softmax(-1).gather(-1, TOKENS[..., None]).squeeze(-1), 0)


def step(gain=clipped_surrogate_objective, bonus=entropy, reduce=masked_mean, moved=0.0, dtype=torch.float64):
    """A policy loss with a slip in it, taken after the policy has moved; what the checks are given of it."""
    before = draw(3, 4, V, seed=7)
    logits = (before + moved * draw(3, 4, V, seed=8)).to(dtype).requires_grad_(True)
    old, log_probs = log_probs_of(before).to(dtype), log_probs_of(logits)
    loss = -reduce(gain(log_probs, old, ADVANTAGES.to(dtype), CLIP) + COEF * bonus(logits), MASK)
    slope, by_logit = live.derivatives(loss, log_probs, logits)
    return slope, by_logit, log_probs.detach(), old, logits


def check_surrogate(slope, by_logit, log_probs, old, logits, tolerance=TIGHT):
    live.check_surrogate(slope, log_probs, old, ADVANTAGES, MASK, MASK.sum(), CLIP, tolerance)


def check_bonus(slope, by_logit, log_probs, old, logits, tolerance=TIGHT):
    live.check_bonus(by_logit, slope, logits, TOKENS, MASK, MASK.sum(), COEF, tolerance)


@pytest.mark.parametrize("moved", [0.0, 0.3, 2.0])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, TIGHT), (torch.float32, 1e-4)])
def test_the_declared_loss_passes_at_every_step(moved, dtype, tolerance):
    seen = step(moved=moved, dtype=dtype)
    check_surrogate(*seen, tolerance)
    check_bonus(*seen, tolerance)


def rows_mean(x, mask):
    return (torch.where(mask, x, 0).sum(1) / mask.sum(1)).mean()


def upper(log_probs, old, advantages, epsilon):
    ratio = (log_probs - old).exp()
    return torch.maximum(ratio * advantages, ratio.clamp(1 - epsilon, 1 + epsilon) * advantages)


SLIPS = {
    "sign": (0.0, {"gain": lambda *a: -clipped_surrogate_objective(*a)}, "the sign"),
    "detached": (0.0, {"gain": lambda p, *a: clipped_surrogate_objective(p.detach(), *a)}, "cut off"),
    "a sum": (0.0, {"reduce": lambda x, m: torch.where(m, x, 0).sum()}, "a constant factor"),
    "padding counts": (0.0, {"reduce": lambda x, m: x.mean()}, "a constant factor"),
    "a mean of rows": (0.0, {"reduce": rows_mean}, "weigh differently"),
    "k1 in the loss": (0.0, {"gain": lambda p, *a: clipped_surrogate_objective(p, *a) - 0.1 * p}, ""),
    "other advantages": (0.0, {"gain": lambda p, o, a, e: clipped_surrogate_objective(p, o, a + 1, e)}, ""),
    "to itself": (0.3, {"gain": lambda p, o, a, e: (p - p.detach()).exp() * a}, "the clip is another"),
    "upside down": (0.3, {"gain": lambda p, o, a, e: clipped_surrogate_objective(2 * o - p, o, a, e)}, ""),
    "the higher one": (2.0, {"gain": upper}, "the clip is another"),
    "no clip": (2.0, {"gain": lambda p, o, a, e: (p - o).exp() * a}, "the clip is another"),
}


@pytest.mark.parametrize("slip", SLIPS)
def test_surrogate_names_the_slip(slip):
    moved, parts, cause = SLIPS[slip]
    message = caught("surrogate", check_surrogate, *step(moved=moved, **parts))
    assert cause.replace(" ", "") in message.replace(" ", "")


def test_the_surrogate_does_not_look_at_the_bonus():
    check_surrogate(*step(bonus=lambda logits: -entropy(logits)))


@pytest.mark.parametrize(
    ("bonus", "cause"),
    [
        (lambda logits: -entropy(logits), "the sign"),
        (lambda logits: 0.5 * entropy(logits), "another coefficient"),
        (lambda logits: 0 * entropy(logits), "another coefficient"),
        (lambda logits: -logits.log_softmax(-1).mean(-1), "undeclared"),
        (lambda logits: entropy(logits) - (logits.softmax(-1) * draw(3, 4, V)).sum(-1), "undeclared"),
    ],
    ids=["sign", "half", "none", "not weighted", "a KL"],
)
def test_bonus_names_the_slip(bonus, cause):
    message = caught("bonus", check_bonus, *step(bonus=bonus))
    assert cause in message


def test_bonus_with_a_law_that_keeps_normalised_logits():
    logits = draw(3, 4, V, seed=7).requires_grad_(True)
    law = torch.distributions.Categorical(logits=logits)
    log_probs = torch.where(MASK, law.log_prob(TOKENS), 0)
    loss = -masked_mean(log_probs * ADVANTAGES + COEF * law.entropy(), MASK)
    slope, by_logit = live.derivatives(loss, log_probs, law.logits)
    check_bonus(slope, by_logit, None, None, law.logits)


@pytest.mark.parametrize("moved", [0.2, 1.0])
def test_ratio(moved):
    now, old = LOG_PROBS + moved * draw(3, 4, seed=9) * MASK, LOG_PROBS
    live.check_ratio((now - old).exp(), now, old, MASK, TIGHT)
    live.check_ratio(torch.where(MASK, torch.ones(3, 4), JUNK), old, old, MASK, TIGHT)
    for ratio, cause in (
        (torch.ones(3, 4), "policy itself"),
        ((old - now).exp(), "upside down"),
        ((now - old + 0.1).exp(), "another iteration"),
        (1 + now - old, "exp is missing"),
    ):
        message = caught("ratio", live.check_ratio, ratio, now, old, MASK, TIGHT)
        assert cause in message


@pytest.mark.parametrize(
    ("loss", "right"),
    [
        (lambda v, r: masked_mean(clipped_value_loss(v, v.detach(), r, 0.2), MASK), True),
        (lambda v, r: -masked_mean((v - r).square() / 2, MASK), False),
        (lambda v, r: masked_mean((v - r).square(), MASK), False),
        (lambda v, r: ((v - r).square() / 2).mean(), False),
        (lambda v, r: masked_mean((v - 2 * r).square() / 2, MASK), False),
    ],
    ids=["right", "sign", "twice", "padding", "targets"],
)
def test_value_loss(loss, right):
    values, returns = draw(3, 4).requires_grad_(True), draw(3, 4, seed=1)
    (slope,) = live.derivatives(loss(values, returns), values)
    told = (slope, values, returns, MASK, MASK.sum(), TIGHT)
    if right:
        live.check_value_loss(*told)
    else:
        caught("value_loss", live.check_value_loss, *told)


# ---- replies -------------------------------------------------------------------------------------------------------
def test_reference_still():
    live.check_reference_still(LOG_PROBS, LOG_PROBS + 1e-8, MASK, TIGHT)
    live.check_reference_still(torch.where(MASK, LOG_PROBS, 7.0), LOG_PROBS, MASK, TIGHT)
    message = caught("reference_still", live.check_reference_still, LOG_PROBS, LOG_PROBS + 1e-3, MASK, TIGHT)
    assert "dropout" in message


def test_scores_belong_to_their_replies():
    live.check_scores(SCORES, SCORES + 1e-8, TIGHT)
    message = caught("scores", live.check_scores, SCORES.roll(1), SCORES, TIGHT)
    assert "belong to other rows" in message
    assert "changed on their way" in caught("scores", live.check_scores, SCORES + 1, SCORES, TIGHT)
