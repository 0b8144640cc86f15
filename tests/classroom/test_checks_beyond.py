"""Each check of chapter 15 takes right answers in any form and fails on realistic mistakes, naming the cause."""

import math
from dataclasses import replace
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
import torch
from answer_forms import FORMS
from torch.nn.functional import logsigmoid, softplus

from rlhf_lab.classroom.checks import beyond as checks
from rlhf_lab.classroom.checks.comparing import NotAttempted
from rlhf_lab.classroom.checks.group_loop import PROBES
from rlhf_lab.experience.rollouts import prompts_of, sample_responses
from rlhf_lab.maths.exact import TokenWorld
from rlhf_lab.maths.objectives import dpo_loss
from rlhf_lab.maths.returns import discounted_returns, group_advantages, leave_one_out_advantages
from rlhf_lab.models.scoring import forward, response_log_probs, token_log_probs
from rlhf_lab.recipes.group import GroupConfig, train_group
from rlhf_lab.training.randomness import generator_for
from rlhf_lab.worlds.token_probes import from_language_model


# ---- solutions -------------------------------------------------------------------------------------------------------
def best_of_n_law(ref_law, scores, n):
    up_to = (ref_law * (scores[None] <= scores[:, None])).sum(1)
    below = (ref_law * (scores[None] < scores[:, None])).sum(1)
    return (up_to**n - below**n) * ref_law / (up_to - below)


def leave_one_out(rewards):
    return rewards - (rewards.sum(1, keepdim=True) - rewards) / (rewards.shape[1] - 1)


def group_relative(rewards, epsilon=1e-4):
    return (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + epsilon)


def dpo_pair_loss(chosen, rejected, ref_chosen, ref_rejected, beta):
    return -logsigmoid(beta * ((chosen - ref_chosen) - (rejected - ref_rejected)))


def log_ratios(log_probs, other, mask):
    return torch.where(mask, log_probs - other, 0.0)


def sequence_leash(log_probs, ref_log_probs, mask):
    return log_ratios(log_probs, ref_log_probs, mask).sum(1).square().mean() / 2


def cost_to_go(log_probs, teacher_log_probs, mask):
    return log_ratios(log_probs, teacher_log_probs, mask).detach().flip(1).cumsum(1).flip(1) * mask


def pass_at_k(correct, n, k):
    return torch.tensor([1 - math.comb(n - c, k) / math.comb(n, k) for c in correct.tolist()])


RIGHT = {
    checks.check_best_of_n_law: best_of_n_law,
    checks.check_leave_one_out: leave_one_out,
    checks.check_group_relative: group_relative,
    checks.check_dpo_pair_loss: dpo_pair_loss,
    checks.check_sequence_leash: sequence_leash,
    checks.check_cost_to_go: cost_to_go,
    checks.check_pass_at_k: pass_at_k,
}
OF_NUMBERS = [checks.check_best_of_n_law, checks.check_leave_one_out, checks.check_pass_at_k]
name_of = {"ids": lambda check: getattr(check, "__name__", None)}


def as_floats(x):
    return x.float() if isinstance(x, torch.Tensor) and x.is_floating_point() else x


@pytest.mark.parametrize("check", RIGHT, **name_of)
def test_the_solution_passes(check, capsys):
    check(RIGHT[check])
    assert f"{RIGHT[check].__name__}: passed" in capsys.readouterr().out


@pytest.mark.parametrize("check", RIGHT, **name_of)
def test_float32_passes(check):
    check(lambda *given: as_floats(torch.as_tensor(RIGHT[check](*map(as_floats, given)))))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("check", [*OF_NUMBERS, checks.check_group_relative], **name_of)
def test_any_form_passes(check, form):
    check(lambda *given: form(RIGHT[check](*given)))


def unfinished(*given):
    raise NotImplementedError


def ellipsis(*given): ...


@pytest.mark.parametrize("empty", [unfinished, ellipsis])
@pytest.mark.parametrize("check", [*RIGHT, checks.check_group_loop], **name_of)
def test_an_empty_cell_gets_one_line(check, empty):
    with pytest.raises(NotAttempted, match="not attempted yet"):
        check(empty)


# ---- right answers of another kind -----------------------------------------------------------------------------------
def best_by_world(ref_law, scores, n):
    world = TokenWorld(len(ref_law), 1, scores[None]) if len(ref_law) > 1 else None
    return ref_law if world is None else world.best_of_n(ref_law[None], n)[0]


def best_by_levels(ref_law, scores, n):
    law, below = np.zeros(len(ref_law)), 0.0
    for score in sorted(set(scores.tolist())):
        at = (scores == score).numpy()
        level = ref_law.numpy()[at].sum()
        law[at] = ((below + level) ** n - below**n) * ref_law.numpy()[at] / level
        below += level
    return law.tolist()


def best_by_survival(ref_law, scores, n):
    """From above: 1 minus what lies higher."""
    higher = (ref_law * (scores[None] > scores[:, None])).sum(1)
    level = (ref_law * (scores[None] == scores[:, None])).sum(1)
    return ((1 - higher) ** n - (1 - higher - level).clamp(min=0) ** n) * (ref_law / level)


def best_by_sorting(ref_law, scores, n):
    """Sorted, cumulated and put back; equal scores are grouped by `unique`."""
    _, which = scores.unique(return_inverse=True)
    levels = torch.zeros(int(which.max()) + 1, dtype=ref_law.dtype).scatter_add(0, which, ref_law)
    up_to = levels.cumsum(0)
    return ((up_to**n - (up_to - levels) ** n) / levels)[which] * ref_law


def others_by_matrix(rewards):
    size = rewards.shape[1]
    return rewards @ (torch.eye(size) * size / (size - 1) - torch.ones(size, size) / (size - 1)).to(rewards)


def others_by_loop(rewards):
    rows = []
    for row in rewards.tolist():
        rows.append([x - sum(row[:k] + row[k + 1 :]) / (len(row) - 1) for k, x in enumerate(row)])
    return rows


def relative_by_hand(rewards, epsilon=1e-4):
    centred = rewards - rewards.mean(-1, keepdim=True)
    return centred / ((centred**2).sum(-1, keepdim=True) / (rewards.shape[1] - 1)).sqrt().add(epsilon)


def relative_in_numpy(rewards, epsilon=1e-4):
    rewards = rewards.numpy()
    return (rewards - rewards.mean(1)[:, None]) / (rewards.std(1, ddof=1, keepdims=True) + epsilon)


def dpo_by_softplus(chosen, rejected, ref_chosen, ref_rejected, beta):
    return softplus(beta * (rejected - ref_rejected) - beta * (chosen - ref_chosen))


def dpo_by_implicit_rewards(chosen, rejected, ref_chosen, ref_rejected, beta):
    better, worse = beta * (chosen - ref_chosen), beta * (rejected - ref_rejected)
    return torch.logaddexp(better, worse) - better


def leash_as_a_weighted_score(log_probs, ref_log_probs, mask):
    own = torch.where(mask, log_probs, 0.0).sum(1)
    return (log_ratios(log_probs, ref_log_probs, mask).sum(1).detach() * own).mean()


def leash_with_a_constant(log_probs, ref_log_probs, mask):
    """The derivative of p log(p/q) as it comes: (log-ratio + 1) times that of log p."""
    own = torch.where(mask, log_probs, 0.0).sum(1)
    return ((log_ratios(log_probs, ref_log_probs, mask).sum(1) + 1).detach() * own).mean()


def leash_left_one_out(log_probs, ref_log_probs, mask):
    """Less noisy: the mean log-ratio of the other replies of the batch is subtracted."""
    total = log_ratios(log_probs, ref_log_probs, mask).sum(1)
    own, weight = torch.where(mask, log_probs, 0.0).sum(1), total.detach()
    return ((weight - (weight.sum() - weight) / (len(weight) - 1)) * own).mean()


def leash_in_a_loop(log_probs, ref_log_probs, mask):
    replies = [(p[m] - q[m]).sum() ** 2 / 2 for p, q, m in zip(log_probs, ref_log_probs, mask, strict=True)]
    return sum(replies) / len(replies)


def leash_to_go(log_probs, ref_log_probs, mask):
    """What is left of the log-ratio from each token on is its weight."""
    weight = cost_to_go(log_probs, ref_log_probs, mask)
    return (weight * torch.where(mask, log_probs, 0.0)).sum() / len(mask)


def cost_backwards(log_probs, teacher_log_probs, mask):
    result, total = torch.zeros(mask.shape), torch.zeros(len(mask))
    for t in reversed(range(mask.shape[1])):
        total = total + log_ratios(log_probs, teacher_log_probs, mask)[:, t].detach()
        result[:, t] = torch.where(mask[:, t], total, 0.0)
    return result


def cost_by_difference(log_probs, teacher_log_probs, mask):
    ratio = log_ratios(log_probs, teacher_log_probs, mask).detach()
    return torch.where(mask, ratio.sum(1, keepdim=True) - ratio.cumsum(1) + ratio, 0.0)


def cost_by_returns(log_probs, teacher_log_probs, mask):
    ratio = log_ratios(log_probs, teacher_log_probs, mask).detach()
    return discounted_returns(ratio, mask.double().roll(-1, 1).index_fill(1, torch.tensor(mask.shape[1] - 1), 0), mask)


def cost_in_numpy(log_probs, teacher_log_probs, mask):
    ratio = np.where(mask, (log_probs - teacher_log_probs).detach().numpy(), 0.0)
    return np.where(mask, ratio[:, ::-1].cumsum(1)[:, ::-1], 0.0)


def pass_by_product(correct, n, k):
    return [1.0 if n - c < k else 1 - math.prod(1 - k / i for i in range(n - c + 1, n + 1)) for c in correct.tolist()]


def pass_by_arange(correct, n, k):
    every = (1.0 - k / np.arange(n - c + 1, n + 1) for c in correct.numpy())
    return np.array([1.0 - np.prod(factors) for factors in every])


def pass_by_lgamma(correct, n, k):
    wrong = (n - correct).double()
    log = lambda x: torch.lgamma(torch.as_tensor(x).double() + 1)  # noqa: E731
    missed = log(wrong) - log((wrong - k).clamp(min=0)) - log(n) + log(n - k)
    return torch.where(wrong < k, 1.0, 1 - missed.exp())


def pass_by_fractions(correct, n, k):
    return (float(1 - Fraction(math.comb(n - int(c), k), math.comb(n, k))) for c in correct)


UNUSUAL = [
    (checks.check_best_of_n_law, best_by_world),
    (checks.check_best_of_n_law, best_by_levels),
    (checks.check_best_of_n_law, best_by_survival),
    (checks.check_best_of_n_law, best_by_sorting),
    (checks.check_leave_one_out, leave_one_out_advantages),
    (checks.check_leave_one_out, others_by_matrix),
    (checks.check_leave_one_out, others_by_loop),
    (checks.check_group_relative, relative_by_hand),
    (checks.check_group_relative, relative_in_numpy),
    (checks.check_group_relative, lambda rewards, epsilon=1e-4: group_advantages(rewards, epsilon=epsilon)),
    (checks.check_dpo_pair_loss, dpo_loss),
    (checks.check_dpo_pair_loss, dpo_by_softplus),
    (checks.check_dpo_pair_loss, dpo_by_implicit_rewards),
    (checks.check_sequence_leash, leash_as_a_weighted_score),
    (checks.check_sequence_leash, leash_with_a_constant),
    (checks.check_sequence_leash, leash_left_one_out),
    (checks.check_sequence_leash, leash_in_a_loop),
    (checks.check_sequence_leash, leash_to_go),
    (checks.check_sequence_leash, lambda p, q, m: sequence_leash(p, q.detach(), m)),
    (checks.check_cost_to_go, cost_backwards),
    (checks.check_cost_to_go, cost_by_difference),
    (checks.check_cost_to_go, cost_by_returns),
    (checks.check_cost_to_go, cost_in_numpy),
    (checks.check_pass_at_k, pass_by_product),
    (checks.check_pass_at_k, pass_by_arange),
    (checks.check_pass_at_k, pass_by_lgamma),
    (checks.check_pass_at_k, pass_by_fractions),
]


@pytest.mark.parametrize(("check", "answer"), UNUSUAL, **name_of)
def test_a_right_answer_of_another_kind_passes(check, answer):
    check(answer)


# ---- realistic mistakes ----------------------------------------------------------------------------------------------
def refused(check, mistake, cause):
    with pytest.raises(AssertionError, match=cause) as caught:
        check(mistake)
    return str(caught.value)


def ties_equally(ref_law, scores, n):
    law = torch.zeros_like(ref_law)
    for score in scores.unique():
        at = scores == score
        law[at] = (ref_law[scores <= score].sum() ** n - ref_law[scores < score].sum() ** n) / at.sum()
    return law


def by_cumsum(ref_law, scores, n):
    """The usual first try: no thought of ties."""
    order = scores.argsort(stable=True)
    up_to = ref_law[order].cumsum(0)
    return torch.zeros_like(ref_law).scatter(0, order, up_to**n - (up_to - ref_law[order]) ** n)


def left_sorted(ref_law, scores, n):
    order = scores.argsort(stable=True)
    return best_of_n_law(ref_law, scores, n)[order]


def up_to(ref_law, scores):
    return (ref_law * (scores[None] <= scores[:, None])).sum(1)


def in_place_sort(ref_law, scores, n):
    law = best_of_n_law(ref_law, scores, n)
    scores.copy_(scores.sort().values)
    return law


def by_drawing(ref_law, scores, n):
    generator = torch.Generator().manual_seed(0)
    draws = torch.multinomial(ref_law, 4000 * n, replacement=True, generator=generator).view(4000, n)
    best = draws.gather(1, scores[draws].argmax(1, keepdim=True))[:, 0]
    return torch.bincount(best, minlength=len(ref_law)) / 4000


BEST = [
    (lambda q, s, n: best_of_n_law(q, s, n - 1), "n - 1 replies are drawn"),
    (lambda q, s, n: best_of_n_law(q, s, n + 1), "n [+] 1 replies are drawn"),
    (lambda q, s, n: up_to(q, s) ** n, "subtract that of all lower scores"),
    (lambda q, s, n: (up_to(q, s) ** n) / (up_to(q, s) ** n).sum(), "F.n, made to add up"),
    (ties_equally, "equally good replies share equally"),
    (by_cumsum, "comes later wins"),
    (lambda q, s, n: best_of_n_law(q, -s, n), "the worst of n"),
    (left_sorted, "each reply keeps its place"),
    (lambda q, s, n: n * q * up_to(q, s) ** (n - 1), "density of a continuous score"),
    (lambda q, s, n: (w := q * up_to(q, s) ** (n - 1)) / w.sum(), "for a continuous score"),
    (lambda q, s, n: best_of_n_law(q, s, n) * q, "not made to add up to 1"),
    (lambda q, s, n: q, "whatever n is"),
    (lambda q, s, n: 1 - (1 - q) ** n, "best or not"),
    (lambda q, s, n: best_of_n_law(torch.ones_like(q) / len(q), s, n), "ref is missing"),
    (lambda q, s, n: (q * s.exp()) / (q * s.exp()).sum(), "the optimum of the leash"),
    (lambda q, s, n: best_of_n_law(q, s, n)[None], "the shape"),
    (lambda q, s, n: best_of_n_law(q, s, n).squeeze(), "an axis of length 1 is gone"),
    (in_place_sort, "changed in place"),
    (by_drawing, "what is asked"),
    (lambda q, s, n: None, "is there a `return`"),
]


@pytest.mark.parametrize(("mistake", "cause"), BEST)
def test_best_of_n_law_names_the_mistake(mistake, cause):
    refused(checks.check_best_of_n_law, mistake, cause)


OTHERS = [
    (lambda r: r - r.mean(1, keepdim=True), "the mean of the whole group"),
    (lambda r: r - (r.sum(1, keepdim=True) - r) / r.shape[1], "divided by K: there are K - 1"),
    (lambda r: r - r.sum(1, keepdim=True) / (r.shape[1] - 1), "own reward is in the sum"),
    (lambda r: r - (r.sum(0) - r) / max(len(r) - 1, 1), "the wrong axis"),
    (lambda r: leave_one_out(r.T).T, "the wrong axis"),
    (lambda r: r - (r.sum() - r) / (r.numel() - 1), "all other replies of the batch"),
    (lambda r: r - r.mean(), "the mean of the whole batch"),
    (lambda r: (r.sum(1, keepdim=True) - r) / (r.shape[1] - 1), "the baseline alone"),
    (lambda r: -leave_one_out(r), "the sign"),
    (lambda r: r, "the rewards alone"),
    (lambda r: r.sub_(r.mean(1, keepdim=True)).mul_(r.shape[1] / (r.shape[1] - 1)), "changed in place"),
    (lambda r: r - (r.sum(1) - r) / (r.shape[1] - 1), "your function raised this"),
    (lambda r: leave_one_out(r).squeeze(), "an axis of length 1"),
    (lambda r: leave_one_out(r) / r.std(1, keepdim=True), "GRPO's choice"),
    (lambda r: leave_one_out(r).flatten(), "the shape"),
]


@pytest.mark.parametrize(("mistake", "cause"), OTHERS)
def test_leave_one_out_names_the_mistake(mistake, cause):
    refused(checks.check_leave_one_out, mistake, cause)


def centred(rewards):
    return rewards - rewards.mean(1, keepdim=True)


RELATIVE = [
    (lambda r, e=1e-4: centred(r) / (r.std(1, correction=0, keepdim=True) + e), "biased standard deviation"),
    (lambda r, e=1e-4: (r.numpy() - r.numpy().mean(1)[:, None]) / (r.numpy().std(1)[:, None] + e), "biased standard"),
    (lambda r, e=1e-4: centred(r) / (r.var(1, keepdim=True) + e).sqrt(), "epsilon is under the root"),
    (lambda r, e=1e-4: centred(r) / (r.var(1, correction=0, keepdim=True) + e).sqrt(), "biased variance, and epsilon"),
    (lambda r, e=1e-4: centred(r) / r.std(1, keepdim=True), "epsilon is missing"),
    (lambda r, e=1e-4: torch.nan_to_num(centred(r) / r.std(1, keepdim=True)), "epsilon is missing"),
    (lambda r, e=1e-4: centred(r) / r.std(1, keepdim=True).clamp(min=e), "the larger of"),
    (lambda r, e=1e-4: (r - r.mean()) / (r.std() + e), "mean and standard deviation of the whole batch"),
    (lambda r, e=1e-4: centred(r) / (r.std() + e), "the standard deviation of the whole batch"),
    (lambda r, e=1e-4: (r - r.mean(0)) / (r.std(0) + e), "the wrong axis"),
    (lambda r, e=1e-4: group_relative(r.T, e).T, "the wrong axis"),
    (lambda r, e=1e-4: centred(r) / (r.std(1) + e), "your function raised this"),
    (lambda r, e=1e-4: leave_one_out(r) / (r.std(1, keepdim=True) + e), "the mean of the others"),
    (lambda r, e=1e-4: centred(r) / (r.var(1, keepdim=True) + e), "divided by the variance"),
    (lambda r, e=1e-4: centred(r), "not divided"),
    (lambda r, e=1e-4: group_relative(r, 1e-4), "epsilon has a fixed size"),
    (lambda r, e=1e-8: group_relative(r, e), "the default of epsilon is not 1e-4 but 1e-08"),
    (lambda r, e: group_relative(r, e), "missing 1 required positional argument"),
    (lambda r, e=1e-4: -group_relative(r, e), "the sign"),
    (lambda r, e=1e-4: group_relative(r, e).squeeze(), "an axis of length 1"),
]


@pytest.mark.parametrize(("mistake", "cause"), RELATIVE)
def test_group_relative_names_the_mistake(mistake, cause):
    refused(checks.check_group_relative, mistake, cause)


def margin(c, r, qc, qr, b):
    return b * ((c - qc) - (r - qr))


def with_a_floor(*pairs):
    return -margin(*pairs).sigmoid().clamp(min=1e-12).log()


DPO = [
    (lambda c, r, qc, qr, b: -logsigmoid(-margin(c, r, qc, qr, b)), "the sign: the chosen"),
    (lambda *x: logsigmoid(margin(*x)), "the sign in front"),
    (lambda c, r, qc, qr, b: -logsigmoid(b * (c - r)), "the reference is missing"),
    (lambda c, r, qc, qr, b: -logsigmoid(b * (c - r - qc)), "the reference of the rejected"),
    (lambda c, r, qc, qr, b: -logsigmoid(b * (c - r + qr)), "the reference of the chosen"),
    (lambda c, r, qc, qr, b: -logsigmoid(b * ((c + qc) - (r + qr))), "the sign of the reference"),
    (lambda c, r, qc, qr, b: dpo_pair_loss(c, r, qr, qc, b), "the sign of the reference"),
    (lambda c, r, qc, qr, b: -logsigmoid(b * (c - qc) - (r - qr)), "beta on the chosen"),
    (lambda c, r, qc, qr, b: -logsigmoid((c - qc) - b * (r - qr)), "beta on the rejected"),
    (lambda c, r, qc, qr, b: -logsigmoid(b * (c - r) - (qc - qr)), "beta on the policy alone"),
    (lambda c, r, qc, qr, b: -logsigmoid((c - r) - b * (qc - qr)), "beta on the reference alone"),
    (lambda c, r, qc, qr, b: dpo_pair_loss(c, r, qc, qr, 1.0), "beta is missing"),
    (lambda c, r, qc, qr, b: b * dpo_pair_loss(c, r, qc, qr, 1.0), "beta outside"),
    (lambda *x: -margin(*x).sigmoid().log(), "minus infinity where the sigmoid"),
    (lambda *x: (1 + (-margin(*x)).exp()).log(), "minus infinity where the sigmoid"),
    (with_a_floor, "what is asked"),
    (lambda *x: -margin(*x).sigmoid(), "the logarithm is missing"),
    (lambda *x: 1 - margin(*x).sigmoid(), "1 - sigmoid"),
    (lambda *x: -margin(*x), "the sigmoid is missing"),
    (lambda *x: dpo_pair_loss(*x).mean(), "the mean over the pairs"),
    (lambda *x: dpo_pair_loss(*x).sum(), "the sum over the pairs"),
    (lambda *x: dpo_pair_loss(*x).detach(), "detached or rebuilt"),
    (lambda *x: torch.tensor(dpo_pair_loss(*x).tolist()), "detached or rebuilt"),
    (lambda c, r, *x: dpo_pair_loss(c.detach(), r, *x), "chosen log-probs are detached"),
    (lambda c, r, *x: dpo_pair_loss(c, r.detach(), *x), "rejected log-probs are detached"),
    (lambda c, r, qc, qr, b: -logsigmoid(b * ((c - qc) + (r - qr))), "the two log-ratios are added"),
    (lambda *x: (margin(*x) - 0.5) ** 2, "what is asked"),
    (lambda *x: torch.relu(1 - margin(*x)), "what is asked"),
    (lambda *x: None, "is there a `return`"),
]


@pytest.mark.parametrize(("mistake", "cause"), DPO)
def test_dpo_pair_loss_names_the_mistake(mistake, cause):
    refused(checks.check_dpo_pair_loss, mistake, cause)


def k3(x):
    return torch.expm1(-x) + x


def token_mean(values, mask):
    return (values * mask).sum() / mask.sum()


LEASH = [
    (lambda p, q, m: log_ratios(p, q, m).square().sum(1).mean() / 2, "per-token k2, summed"),
    (lambda p, q, m: token_mean(log_ratios(p, q, m).square() / 2, m), "per-token k2, and the mean over all"),
    (lambda p, q, m: (log_ratios(p, q, m).square() / 2).sum(1).div(m.sum(1)).mean(), "over each reply's tokens"),
    (lambda p, q, m: log_ratios(p, q, m).sum(1).mean(), "k1 in the loss"),
    (lambda p, q, m: token_mean(log_ratios(p, q, m), m), "number of tokens"),
    (lambda p, q, m: k3(log_ratios(p, q, m).sum(1)).mean(), "k3 of the whole reply"),
    (lambda p, q, m: k3(log_ratios(p, q, m)).sum(1).mean(), "per-token k3, summed"),
    (lambda p, q, m: token_mean(k3(log_ratios(p, q, m)), m), "per-token k3, and the mean over all"),
    (lambda p, q, m: 2 * sequence_leash(p, q, m), "the factor 1/2 is missing"),
    (lambda p, q, m: -sequence_leash(p, q, m), "the sign"),
    (lambda p, q, m: sequence_leash(p, q, m) * len(m), "usual cause: the sum over replies"),
    (lambda p, q, m: sequence_leash(p, q, m) * len(m) / m.sum(), "divided by the number of tokens"),
    (lambda p, q, m: (log_ratios(p, q, m).sum(1) / m.sum(1)).square().mean() / 2, "the KL of a reply is a sum"),
    (lambda p, q, m: log_ratios(p, q, m).sum(0).square().mean() / 2, "the wrong axis"),
    (lambda p, q, m: log_ratios(p, q, m).sum(1).mean().square() / 2, "the square of the mean"),
    (lambda p, q, m: log_ratios(p, q, m).sum().square() / 2, "the square of the sum"),
    (lambda p, q, m: (p - q).sum(1).square().mean() / 2, "the mask is missing"),
    (lambda p, q, m: ((p - q) * m).sum(1).square().mean() / 2, "NaN [*] 0 is NaN"),
    (lambda p, q, m: sequence_leash(p.detach(), q, m), "without gradient"),
    (lambda p, q, m: log_ratios(p, q, m).sum(1).square() / 2, "one number"),
    (lambda p, q, m: sequence_leash(p, q, m).item(), "one number"),
    (lambda p, q, m: log_ratios(p, q, m).sum(1).abs().mean(), "the absolute value"),
    (lambda p, q, m: (p.sub_(q) * 1 + 0 * p).sum(), "changed in place"),
    (lambda p, q, m: None, "one number"),
    (lambda p, q, m: (log_ratios(p, q, m).detach() * torch.where(m, p, 0.0)).sum(1).mean(), "per-token k2, summed"),
    (lambda p, q, m: (k := log_ratios(p, q, m).sum(1)).mul(k.detach()).mean() / 2, "half the gradient"),
]


@pytest.mark.parametrize(("mistake", "cause"), LEASH)
def test_sequence_leash_names_the_mistake(mistake, cause):
    refused(checks.check_sequence_leash, mistake, cause)


def cost(p, q, m):
    return log_ratios(p, q, m).detach()


COST = [
    (lambda p, q, m: cost(p, q, m).cumsum(1) * m, "the sum up to t"),
    (lambda p, q, m: (cost(p, q, m).cumsum(1) - cost(p, q, m)) * m, "the sum before t"),
    (lambda p, q, m: cost(p, q, m).sum(1, keepdim=True) * m, "the whole sum"),
    (lambda p, q, m: cost_to_go(p, q, m) - cost(p, q, m), "t itself is left out"),
    (lambda p, q, m: -cost_to_go(p, q, m), "the sign"),
    (lambda p, q, m: cost_to_go(q, p, m), "the sign"),
    (lambda p, q, m: cost(p, q, m), "each token's own"),
    (lambda p, q, m: cost(p, q, m).flip(0).cumsum(0).flip(0) * m, "the wrong axis"),
    (lambda p, q, m: cost(p, q, m).flip(1).cumsum(1) * m, "the order: a second flip"),
    (lambda p, q, m: (p - q).detach().flip(1).cumsum(1).flip(1), "the mask is missing"),
    (lambda p, q, m: (p - q).detach().flip(1).cumsum(1).flip(1) * m, "though the answer is 0"),
    (lambda p, q, m: ((p - q) * m).detach().flip(1).cumsum(1).flip(1) * m, "NaN [*] 0 is NaN"),
    (lambda p, q, m: log_ratios(p, q, m).flip(1).cumsum(1).flip(1) * m, "a missing detach"),
    (lambda p, q, m: cost_to_go(p, q, m) / m.sum(1, keepdim=True), "what is asked"),
    (lambda p, q, m: cost_to_go(p, q, m).squeeze(), "an axis of length 1"),
    (lambda p, q, m: cost_to_go(p, q, m)[m], "the shape"),
    (lambda p, q, m: p.copy_(cost_to_go(p, q, m)), "changed in place"),
]


@pytest.mark.parametrize(("mistake", "cause"), COST)
def test_cost_to_go_names_the_mistake(mistake, cause):
    refused(checks.check_cost_to_go, mistake, cause)


def choose(n, k):
    return torch.lgamma(torch.tensor(n + 1.0)).exp() / (
        torch.lgamma(torch.tensor(k + 1.0)).exp() * torch.lgamma(torch.tensor(n - k + 1.0)).exp()
    )


def pass_in_floats(correct, n, k):
    return [1.0 if n - c < k else float(1 - choose(n - c, k) / choose(n, k)) for c in correct.tolist()]


PASS = [
    (lambda c, n, k: 1 - (1 - c / n) ** k, "draws with replacement"),
    (lambda c, n, k: c / n, "c/n is pass@1"),
    (lambda c, n, k: (k * c / n).clamp(max=1), "cut at 1"),
    (lambda c, n, k: (c / n) ** k, "all k right, with replacement"),
    (lambda c, n, k: [math.comb(x, k) / math.comb(n, k) for x in c.tolist()], "all k are right"),
    (lambda c, n, k: [1 - math.comb(x, k) / math.comb(n, k) for x in c.tolist()], "the wrong samples, n - c"),
    (lambda c, n, k: 1 - pass_at_k(c, n, k), "all k are wrong"),
    (lambda c, n, k: pass_at_k(c, n, k).mean(), "one number"),
    (lambda c, n, k: (c > 0).float(), "any sample at all"),
    (lambda c, n, k: [1 - math.prod(1 - k / i for i in range(n - x + 1, n)) for x in c.tolist()], "ends one factor"),
    (lambda c, n, k: [1 - math.prod(1 - k / i for i in range(n - x, n) if i) for x in c.tolist()], "one factor off"),
    (lambda c, n, k: [0.0 if n - x < k else y for x, y in zip(c, pass_at_k(c, n, k), strict=True)], "1 and not 0"),
    (
        lambda c, n, k: [1.0 if n - x < k else float(1 - choose(n - x, k) / choose(n, k)) for x in c.tolist()],
        "too large",
    ),
    (lambda c, n, k: pass_at_k(c, n, k - 1), "k - 1"),
    (lambda c, n, k: pass_at_k(c[:1], n, k), "the shape"),
]


@pytest.mark.parametrize(("mistake", "cause"), PASS)
def test_pass_at_k_names_the_mistake(mistake, cause):
    refused(checks.check_pass_at_k, mistake, cause)


# ---- the loop --------------------------------------------------------------------------------------------------------
BY_NAME = {probe.name: probe for probe in PROBES}


def by_recipe(probe, seed, **settings):
    config = GroupConfig(
        iterations=probe.iterations, prompts_per_iteration=probe.replies // 4, replies=4, minibatch_rows=probe.replies,
        micro_batch=64, epochs=1, max_new_tokens=probe.max_tokens, temperature=1.0, learning_rate=probe.learning_rate,
        kl_coef=probe.kl_coef, missing_end_penalty=0.0, check_invariants=False, seed=seed, **settings,
    )  # fmt: skip
    reference = probe.reference() if probe.displaced else None
    return from_language_model(
        train_group(probe.start(), probe.prompts, probe.reward, config, reference=reference).model
    )


KL = {
    "": lambda gap, mask: gap.sum(1),
    "none": lambda gap, mask: 0 * gap.sum(1),
    "the sign": lambda gap, mask: -gap.sum(1),
    "last token": lambda gap, mask: gap.gather(1, mask.sum(1, keepdim=True) - 1)[:, 0],
}
BASELINE = {
    "": lambda groups: groups.mean(1, keepdim=True),
    "batch": lambda groups: groups.mean(),
    "none": lambda groups: 0 * groups,
}


def loop(
    probe, seed, *, kl="", baseline="", sign=1, heat=1.0, old_heat=1.0, masked=True, mixed=False, tied="", steps=True
):
    """The loop by hand, with faults."""
    policy = probe.start().copy()
    policy.model.requires_grad_(True)
    reference = probe.start() if tied else probe.reference()
    optimiser = torch.optim.AdamW(policy.model.parameters(), lr=probe.learning_rate, weight_decay=0.0)
    for step in range(probe.iterations):
        asked = [x for x in prompts_of(probe.prompts, probe.replies // 4, step, seed) for _ in range(4)]
        generator = generator_for(seed, "by hand", step)
        rollout = sample_responses(
            policy, asked, max_new_tokens=probe.max_tokens, temperature=heat, generator=generator
        )
        batch, mask = rollout.batch, rollout.batch.mask
        old, known = response_log_probs(policy, batch, old_heat), response_log_probs(reference, batch)
        scores = probe.reward(rollout) - probe.kl_coef * KL[kl](old - known, mask)
        groups = scores.view(4, -1).T if mixed else scores.view(-1, 4)
        gains = sign * (groups - BASELINE[baseline](groups))
        gains = gains.T.reshape(-1) if mixed else gains.reshape(-1)
        counted = mask if masked else torch.ones_like(mask)
        new = token_log_probs(forward(policy, batch).logits, batch.response_ids, counted)
        ratio = (new - old).exp()
        surrogate = torch.minimum(ratio * gains[:, None], ratio.clamp(0.8, 1.2) * gains[:, None])
        optimiser.zero_grad()
        (-(surrogate * counted).sum() / len(mask)).backward()
        torch.nn.utils.clip_grad_norm_(policy.model.parameters(), 1.0)
        if steps:
            optimiser.step()
    return from_language_model(policy)


def checked(train, *names):
    checks.check_group_loop(train, [BY_NAME[name] for name in names])


@pytest.mark.slow
@pytest.mark.parametrize("name", BY_NAME)
def test_the_recipe_passes_every_probe(name, capsys):
    checked(by_recipe, name)
    assert "train_group_by_hand: passed" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"baseline": "group"}, {"mean": "replies"}, {"mean": "tokens"}])
def test_what_the_probes_cannot_see_passes(settings, capsys):
    """A group's own mean shrinks the gradient, which Adam undoes; and what the loss is a mean over."""
    checked(partial(by_recipe, **settings), "law")
    assert "passed" in capsys.readouterr().out


@pytest.mark.slow
def test_the_loop_by_hand_passes(capsys):
    checked(loop, "law", "levels")
    assert "passed" in capsys.readouterr().out


LOOPS = {
    "the baseline of the batch": ({"baseline": "batch"}, ["levels"], "is not that of the reply's own prompt"),
    "no baseline": ({"baseline": "none"}, ["levels"], "is not that of the reply's own prompt"),
    "groups of different prompts": ({"mixed": True}, ["levels"], "levels: a reply is compared"),
    "no leash": ({"kl": "none"}, ["way back", "law"], "(?s)stayed where it began.*the leash is too weak, or missing"),
    "the sign of the leash": ({"kl": "the sign"}, ["way back"], "the sign of the leash"),
    "the last token's leash": ({"kl": "last token"}, ["way back"], "not the whole way, or another one"),
    "tied to the start": ({"tied": "start"}, ["way back"], "tied to probe.start"),
    "the sign of the loss": ({"sign": -1}, ["prompt"], "the sign of the advantages"),
    "old log-probs at another temperature": ({"old_heat": 0.7}, ["prompt"], "prompt: the policy reads"),
    "sampled at another temperature": ({"heat": 0.7}, ["prompt"], "replies are drawn at temperature 0.7"),
    "sampled at temperature 2": ({"heat": 2.0}, ["prompt"], "another model than probe.start"),
    "padding counts": ({"masked": False}, ["end"], "padding counts: is the mask"),
    "no step": ({"steps": False}, ["prompt"], "is step.. called"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LOOPS)
def test_the_loop_s_mistake_is_found(name):
    options, names, cause = LOOPS[name]
    with pytest.raises(AssertionError, match=cause):
        checked(partial(loop, **options), *names)


def test_a_loop_without_rewards_or_result_is_told():
    with pytest.raises(AssertionError, match="never asks for rewards"):
        checked(lambda probe, seed: from_language_model(probe.start()), "prompt")
    with pytest.raises(AssertionError, match="is there a `return`"):
        checked(lambda probe, seed: [loop(replace(probe, iterations=1), seed), None][1], "prompt")
