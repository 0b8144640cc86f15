"""The checks of chapter 10 pass the solution and name the mistake that was made."""

import pytest
import torch
from torch.nn.functional import one_hot

from rlhf_lab.classroom.checks import rlhf as checks
from rlhf_lab.maths.intervals import mean_interval, proportion_interval
from rlhf_lab.maths.kl import kl_k1


def unfinished(*args):
    raise NotImplementedError("your code here")


@pytest.mark.parametrize(
    "check",
    [checks.check_optimal_law, checks.check_token_rewards, checks.check_kl_loss, checks.check_over_refusal],
)
def test_an_empty_exercise_says_so(check):
    with pytest.raises(NotImplementedError, match="your code here"):
        check(unfinished)


# -- the optimum ---------------------------------------------------------------------------------------------


def optimal_law(ref_law, scores, kl_coef):
    return (ref_law.log() + scores / kl_coef).softmax(-1)


def by_subtraction(ref_law, scores, kl_coef):
    best = scores.max(-1, keepdim=True).values
    tilted = ref_law * torch.exp((scores - best) / kl_coef)
    return tilted / tilted.sum(-1, keepdim=True)


@pytest.mark.parametrize("solution", [optimal_law, by_subtraction])
def test_optimal_law_passes(solution, capsys):
    checks.check_optimal_law(solution)
    assert "passed" in capsys.readouterr().out


def overflowing(ref_law, scores, kl_coef):
    tilted = ref_law * torch.exp(scores / kl_coef)
    return tilted / tilted.sum(-1, keepdim=True)


@pytest.mark.parametrize(
    ("mistake", "cause"),
    [
        (lambda ref, s, k: (ref.log() - s / k).softmax(-1), "the sign"),
        (lambda ref, s, k: (ref.log() + s * k).softmax(-1), "so divide"),
        (lambda ref, s, k: (s / k).softmax(-1), "ref_law is missing"),
        (lambda ref, s, k: ref * (s / k).exp(), "do not add up to 1"),
        (lambda ref, s, k: (ref.log() + s / k).softmax(0), "the wrong axis"),
        (lambda ref, s, k: (ref + s / k).softmax(-1), "without its logarithm"),
        (overflowing, "overflowed"),
        (lambda ref, s, k: None, "is there a `return`"),
        (lambda ref, s, k: ref @ s, "what is asked: law = ref_law"),
    ],
)
def test_optimal_law_names_the_mistake(mistake, cause):
    with pytest.raises(AssertionError, match=cause):
        checks.check_optimal_law(mistake)


# -- rewards per token ---------------------------------------------------------------------------------------


def token_rewards(scores, ended, log_probs, ref, mask, kl_coef, penalty):
    rewards = torch.where(mask, -kl_coef * (log_probs - ref), 0.0).detach()
    last = one_hot(mask.sum(1) - 1, mask.shape[1])
    return rewards + (scores - penalty * ~ended)[:, None] * last


def test_token_rewards_passes():
    checks.check_token_rewards(token_rewards)


def token_rewards_by_product(scores, ended, log_probs, ref, mask, kl_coef, penalty):
    rewards = -kl_coef * (log_probs - ref).detach() * mask
    return rewards + (scores - penalty * ~ended)[:, None] * one_hot(mask.sum(1) - 1, mask.shape[1])


def in_place(scores, ended, log_probs, ref, mask, kl_coef, penalty):
    log_probs[~mask] = ref[~mask] = 0.0
    return token_rewards(scores, ended, log_probs, ref, mask, kl_coef, penalty)


def reward_mistake(at=0, axis=1, sign=-1.0, masked=True, detach=True):
    def rewards(scores, ended, log_probs, ref, mask, kl_coef, penalty):
        kl = sign * kl_coef * kl_k1(log_probs.detach() if detach else log_probs, ref)
        last = (mask.sum(axis) - 1 + at).clamp(0, mask.shape[1] - 1)
        return (torch.where(mask, kl, 0.0) if masked else kl) + (scores - penalty * ~ended)[:, None] * one_hot(
            last, mask.shape[1]
        )

    return rewards


def in_the_last_column(scores, ended, log_probs, ref, mask, kl_coef, penalty):
    rewards = -kl_coef * (log_probs - ref) * mask
    rewards[:, -1] += scores - penalty * ~ended
    return rewards


@pytest.mark.parametrize(
    ("mistake", "cause"),
    [
        (reward_mistake(sign=1.0), "the sign of the KL"),
        (reward_mistake(at=1), "off by one: the last real token"),
        (reward_mistake(at=-1), "off by one: the score is one token too early"),
        (reward_mistake(masked=False), "the mask is missing"),
        (reward_mistake(detach=False), "a missing detach"),
        (reward_mistake(axis=0), "the wrong axis"),
        (token_rewards_by_product, "NaN [*] 0 is NaN; leave it out with torch.where"),
        (in_place, "changed in place"),
        (in_the_last_column, "in the last column"),
        (lambda s, e, lp, ref, m, k, p: (s - p * ~e)[:, None] * m - k * (lp - ref) * m, "at every token"),
        (lambda s, e, lp, ref, m, k, p: token_rewards(s, e, lp, ref, m, k, 0.0), "penalty .* is left out"),
        (lambda s, e, lp, ref, m, k, p: token_rewards(s, ~e, lp, ref, m, k, p), "use ~ended"),
        (lambda s, e, lp, ref, m, k, p: token_rewards(s, e, lp, ref, m, 1.0, p), "kl_coef is left out"),
        (lambda s, e, lp, ref, m, k, p: one_hot(m.sum(1), m.shape[1]) * s[:, None], "column length - 1"),
    ],
)
def test_token_rewards_names_the_mistake(mistake, cause):
    with pytest.raises(AssertionError, match=cause):
        checks.check_token_rewards(mistake)


# -- a KL in the loss ----------------------------------------------------------------------------------------


def kl_loss(log_probs, old_log_probs, ref_log_probs, mask):
    weight = torch.where(mask, log_probs - old_log_probs, 0.0).sum(1).exp().detach()
    return weight * torch.where(mask, log_probs - ref_log_probs, 0.0).sum(1).square() / 2


def kl_loss_by_product(log_probs, old_log_probs, ref_log_probs, mask):
    weight = ((log_probs - old_log_probs) * mask).sum(1).exp().detach()
    return weight * ((log_probs - ref_log_probs) * mask).sum(1).square() / 2


def as_a_weighted_score(log_probs, old_log_probs, ref_log_probs, mask):
    """Another right answer: REINFORCE with the log-ratio as its cost."""
    new, old, ref = (torch.where(mask, x, 0.0).sum(1) for x in (log_probs, old_log_probs, ref_log_probs))
    return ((new - old).exp() * (new - ref)).detach() * new


@pytest.mark.parametrize("solution", [kl_loss, as_a_weighted_score])
def test_kl_loss_passes(solution):
    checks.check_kl_loss(solution)


def kl_mistake(weight=True, detach=True, square=True, masked=True, over_tokens=False, sign=1.0, half=0.5):
    def loss(log_probs, old, ref, mask):
        new = log_probs
        if masked:
            new, old, ref = (torch.where(mask, x, 0.0) for x in (log_probs, old, ref))
        w = (new - old).sum(1).exp() if weight else torch.ones(len(new), dtype=new.dtype)
        w = w.detach() if detach else w
        if over_tokens:
            return sign * half * w * ((new - ref).square() * mask).sum(1)
        total = (new - ref).sum(1)
        return sign * w * (half * total.square() if square else total)

    return loss


def k3(log_probs, old, ref, mask):
    new, old, ref = (torch.where(mask, x, 0.0).sum(1) for x in (log_probs, old, ref))
    return (new - old).exp().detach() * (torch.expm1(ref - new) - (ref - new))


def a_mean(log_probs, old, ref, mask):
    new, old, ref = (torch.where(mask, x, 0.0) for x in (log_probs, old, ref))
    return (new - old).sum(1).exp().detach() * (new - ref).mean(1).square() / 2


def weighted_by_token(log_probs, old, ref, mask):
    new, old, ref = (torch.where(mask, x, 0.0) for x in (log_probs, old, ref))
    return ((new - old).exp().detach() * (new - ref).square() / 2 * mask).sum(1)


def upside_down(log_probs, old, ref, mask):
    new, old, ref = (torch.where(mask, x, 0.0).sum(1) for x in (log_probs, old, ref))
    return (old - new).exp().detach() * (new - ref).square() / 2


@pytest.mark.parametrize(
    ("mistake", "cause"),
    [
        (kl_mistake(weight=False), "importance weight is missing"),
        (kl_mistake(detach=False), "a missing detach"),
        (kl_mistake(masked=False), "the mask is missing"),
        (kl_mistake(square=False), "k1 in the loss has expected gradient 0"),
        (kl_mistake(over_tokens=True), "the wrong axis"),
        (kl_mistake(sign=-1.0), "the sign"),
        (kl_mistake(half=1.0), "factor 1/2"),
        (k3, "the other KL"),
        (kl_loss_by_product, "NaN [*] 0 is NaN; leave it out with torch.where"),
        (a_mean, "mean over the reply"),
        (weighted_by_token, "the wrong axis|per token"),
        (upside_down, "upside down"),
        (lambda new, old, ref, mask: kl_loss(new, old, ref, mask).detach(), "without gradient"),
        (lambda new, old, ref, mask: kl_loss(new, old, ref, mask).mean(), "one number for each"),
    ],
)
def test_kl_loss_names_the_mistake(mistake, cause):
    with pytest.raises(AssertionError, match=cause):
        checks.check_kl_loss(mistake)


# -- refusals ------------------------------------------------------------------------------------------------


def over_refusal(verdicts):
    refused = [v.over_refusal for v in verdicts if v is not None and v.over_refusal is not None]
    return proportion_interval(sum(refused), len(refused))


def test_over_refusal_passes():
    checks.check_over_refusal(over_refusal)


def known(verdicts):
    return [v for v in verdicts if v is not None]


def harmless(verdicts):
    return [v for v in known(verdicts) if v.over_refusal is not None]


@pytest.mark.parametrize(
    ("mistake", "cause"),
    [
        (lambda vs: proportion_interval(sum(v.refuses for v in known(vs)), len(known(vs))), "right refusals"),
        (
            lambda vs: proportion_interval(sum(bool(v.over_refusal) for v in known(vs)), len(known(vs))),
            "the denominator holds the harmful",
        ),
        (lambda vs: proportion_interval(sum(v.over_refusal for v in harmless(vs)), len(vs)), "without a ver"),
        (lambda vs: mean_interval([float(v.over_refusal) for v in harmless(vs)]), "a t-interval"),
        (
            lambda vs: proportion_interval(sum(not v.refuses for v in harmless(vs)), len(harmless(vs))),
            "answered, not refused",
        ),
        (lambda vs: over_refusal(vs).mean, "not an Interval"),
        (lambda vs: proportion_interval(sum(v.over_refusal for v in vs), len(vs)), "TypeError"),
        (lambda vs: proportion_interval(sum(v.refuses for v in vs), len(vs)), "AttributeError"),
    ],
)
def test_over_refusal_names_the_mistake(mistake, cause):
    with pytest.raises(AssertionError, match=cause):
        checks.check_over_refusal(mistake)
