"""Each check of chapter 05 passes the solution and names realistic mistakes; the stored results are not stale."""

import math
from dataclasses import replace

import pytest
import torch
from rows import read_rows

from rlhf_lab.classroom.checks import ppo as checks
from rlhf_lab.maths import mdp
from rlhf_lab.maths.kl import kl_k3
from rlhf_lab.maths.objectives import clip_fraction, clipped_surrogate_objective, clipped_value_loss
from rlhf_lab.maths.tensors import masked_mean
from rlhf_lab.training.history import History

CHECKS = [
    checks.check_clipped_surrogate,
    checks.check_value_loss,
    checks.check_gauges,
    checks.check_performance_difference,
]


@pytest.mark.parametrize("check", CHECKS)
def test_unfinished_exercise_says_so(check):
    def unfinished(*inputs):
        raise NotImplementedError("your turn")

    with pytest.raises(NotImplementedError, match="your turn"):
        check(unfinished)


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize(("answer", "cause"), [(None, "returned None|TypeError"), ("three", "str|TypeError")])
def test_no_number_is_no_answer(check, answer, cause):
    with pytest.raises(AssertionError, match=cause):
        check(lambda *inputs: answer)


# -- solutions --------------------------------------------------------------------------------------------------------
def clipped_surrogate(log_probs, old_log_probs, advantages, mask, clip_epsilon):
    ratio, advantages = (log_probs - old_log_probs.detach()).exp(), advantages.detach()
    gain = torch.minimum(ratio * advantages, ratio.clamp(1 - clip_epsilon, 1 + clip_epsilon) * advantages)
    return gain[mask].mean()


def by_the_library(log_probs, old_log_probs, advantages, mask, clip_epsilon):
    data = (old_log_probs.detach(), advantages.detach())
    return masked_mean(clipped_surrogate_objective(log_probs, *data, clip_epsilon), mask)


def by_cases(log_probs, old_log_probs, advantages, mask, clip_epsilon):
    """Where the advantage is positive the ratio is capped above, else below."""
    ratio, advantages = (log_probs - old_log_probs.detach()).exp(), advantages.detach()
    capped = torch.where(advantages > 0, ratio.clamp(max=1 + clip_epsilon), ratio.clamp(min=1 - clip_epsilon))
    return torch.where(mask, capped * advantages, 0).sum() / mask.sum()


def value_loss(values, old_values, returns, mask, clip_epsilon):
    old_values, returns = old_values.detach(), returns.detach()
    near = old_values + (values - old_values).clamp(-clip_epsilon, clip_epsilon)
    return (torch.maximum((values - returns) ** 2, (near - returns) ** 2) / 2)[mask].mean()


def value_loss_by_the_library(values, old_values, returns, mask, clip_epsilon):
    return masked_mean(clipped_value_loss(values, old_values.detach(), returns.detach(), clip_epsilon), mask)


def gauges(log_probs, old_log_probs, mask, clip_epsilon):
    change = (log_probs - old_log_probs)[mask]
    return (change.exp() - 1 - change).mean(), ((change.exp() - 1).abs() > clip_epsilon).double().mean()


def gauges_by_the_library(log_probs, old_log_probs, mask, clip_epsilon):
    kl = masked_mean(kl_k3(old_log_probs, log_probs), mask)
    return float(kl), float(clip_fraction(log_probs, old_log_probs, clip_epsilon, mask))


def performance_difference(process, policy, old_policy):
    values = mdp.policy_evaluation(process, old_policy)
    advantages = process.q_values(values) - values[:, None]
    return (mdp.occupancy(process, policy)[:, None] * policy * advantages).sum()


SOLUTIONS = [
    (checks.check_gauges, lambda *inputs: torch.stack(gauges(*inputs))),
    (checks.check_performance_difference, lambda *inputs: float(performance_difference(*inputs))),
    (checks.check_clipped_surrogate, lambda n, o, a, m, e: clipped_surrogate(n.float(), o.float(), a.float(), m, e)),
    (checks.check_clipped_surrogate, clipped_surrogate),
    (checks.check_clipped_surrogate, by_the_library),
    (checks.check_clipped_surrogate, by_cases),
    (checks.check_value_loss, value_loss),
    (checks.check_value_loss, value_loss_by_the_library),
    (checks.check_gauges, gauges),
    (checks.check_gauges, gauges_by_the_library),
    (checks.check_performance_difference, performance_difference),
]


@pytest.mark.parametrize(("check", "solution"), SOLUTIONS)
def test_solution_passes(check, solution, capsys):
    check(solution)
    assert "passed" in capsys.readouterr().out


# -- mistakes ---------------------------------------------------------------------------------------------------------
def surrogate_mistake(combine, reduce=lambda gain, mask: gain[mask].mean(), detach=True):
    def function(log_probs, old_log_probs, advantages, mask, clip_epsilon):
        if detach:
            old_log_probs, advantages = old_log_probs.detach(), advantages.detach()
        ratio = torch.exp(log_probs - old_log_probs)
        return reduce(combine(ratio, advantages, clip_epsilon), mask)

    return function


def right(ratio, advantages, epsilon):
    return torch.minimum(ratio * advantages, ratio.clamp(1 - epsilon, 1 + epsilon) * advantages)


def ratio_of_itself(log_probs, old_log_probs, advantages, mask, clip_epsilon):
    return by_the_library(log_probs, log_probs.detach(), advantages, mask, clip_epsilon)


def row_means(gain, mask):
    return torch.stack([row[real].mean() for row, real in zip(gain, mask, strict=True)]).mean()


def per_row(log_probs, old_log_probs, advantages, mask, clip_epsilon):
    change = torch.where(mask, log_probs - old_log_probs.detach(), 0).sum(1, keepdim=True)
    ratio = change.exp().expand_as(mask)
    return right(ratio, advantages.detach(), clip_epsilon)[mask].mean()


def data_overwritten(log_probs, old_log_probs, advantages, mask, clip_epsilon):
    advantages.detach()[~mask] = 0
    return clipped_surrogate(log_probs, old_log_probs, advantages, mask, clip_epsilon)


def leaf_overwritten(log_probs, old_log_probs, advantages, mask, clip_epsilon):
    advantages[~mask] = 0
    return clipped_surrogate(log_probs, old_log_probs, advantages, mask, clip_epsilon)


def smaller_mean(n, o, a, m, e):
    ratio, a = (n - o.detach()).exp(), a.detach()
    return torch.minimum((ratio * a)[m].mean(), (ratio.clamp(1 - e, 1 + e) * a)[m].mean())


SURROGATE_MISTAKES = {
    "times the mask": (
        surrogate_mistake(right, lambda gain, mask: (gain * mask).sum() / mask.sum()),
        "padding counts",
    ),
    "always 0.2": (lambda *x: clipped_surrogate(*x[:4], 0.2), r"epsilon 0.3:[^$]*the band is fixed at 0.2"),
    "quotient": (
        lambda n, o, a, m, e: right(n / o.detach(), a.detach(), e)[m].mean(),
        "the log-probs are divided",
    ),
    "in place": (data_overwritten, "argument 3 after the call"),
    "leaf in place": (leaf_overwritten, "in-place operation[^$]*an argument is changed in place"),
    "above only": (surrogate_mistake(lambda r, a, e: torch.minimum(r * a, r.clamp(max=1 + e) * a)), "above only"),
    "below only": (surrogate_mistake(lambda r, a, e: torch.minimum(r * a, r.clamp(min=1 - e) * a)), "below only"),
    "smaller ratio": (surrogate_mistake(lambda r, a, e: r.clamp(max=1 + e) * a), "the smaller ratio is taken|above"),
    "smaller mean": (smaller_mean, "the smaller of two means"),
    "exchanged": (lambda n, o, *x: clipped_surrogate(o, n, *x), "log-probs are exchanged"),
    "sign": (lambda *x: -clipped_surrogate(*x), "the sign"),
    "max": (
        surrogate_mistake(lambda r, a, e: torch.maximum(r * a, r.clamp(1 - e, 1 + e) * a)),
        "this is the maximum; take the minimum",
    ),
    "clip alone": (surrogate_mistake(lambda r, a, e: r.clamp(1 - e, 1 + e) * a), "the clipped term alone"),
    "no clip": (surrogate_mistake(lambda r, a, e: r * a), "nothing is clipped"),
    "inverted": (surrogate_mistake(lambda r, a, e: right(1 / r, a, e)), "upside down"),
    "itself": (ratio_of_itself, "the ratio is always 1"),
    "no exp": (
        surrogate_mistake(lambda r, a, e: torch.minimum(r.log() * a, r.log().clamp(1 - e, 1 + e) * a)),
        "not yet the ratio",
    ),
    "band": (surrogate_mistake(lambda r, a, e: torch.minimum(r * a, r.clamp(-e, e) * a)), "the band"),
    "product": (
        surrogate_mistake(lambda r, a, e: torch.minimum(r * a, (r * a).clamp(1 - e, 1 + e))),
        "the product is clipped",
    ),
    "live": (surrogate_mistake(right, detach=False), "a missing detach: advantages and old log-probs"),
    "live old": (
        lambda n, o, a, m, e: right((n - o).exp(), a.detach(), e)[m].mean(),
        "a missing detach: old log-probs",
    ),
    "live advantages": (
        lambda n, o, a, m, e: right((n - o.detach()).exp(), a, e)[m].mean(),
        "a missing detach: advantages are",
    ),
    "no mask": (surrogate_mistake(right, lambda gain, mask: gain.mean()), "the mask is missing"),
    "over padding": (surrogate_mistake(right, lambda gain, mask: (gain * mask).mean()), "divide by the number"),
    "sum": (surrogate_mistake(right, lambda gain, mask: gain[mask].sum()), "this is the sum; divide"),
    "rows": (surrogate_mistake(right, row_means), "means of the rows|mean of the rows"),
    "per row": (per_row, "the ratio of whole rows"),
    "tokens": (surrogate_mistake(right, lambda gain, mask: gain), "the shape"),
    "detached": (lambda *x: clipped_surrogate(*x).detach(), "detached"),
    "zero": (lambda n, o, a, m, e: (0 * n).sum(), r"min\(ratio A"),
    "raises": (lambda n, o, a, m, e: n[99], "IndexError"),
}


@pytest.mark.parametrize("name", SURROGATE_MISTAKES)
def test_clipped_surrogate_names_the_mistake(name):
    mistake, cause = SURROGATE_MISTAKES[name]
    with pytest.raises(AssertionError, match=cause):
        checks.check_clipped_surrogate(mistake)


def value_mistake(combine, reduce=lambda loss, mask: loss[mask].mean(), detach=True):
    def function(values, old_values, returns, mask, clip_epsilon):
        if detach:
            old_values, returns = old_values.detach(), returns.detach()
        return reduce(combine(values, old_values, returns, clip_epsilon), mask)

    return function


def near(values, old_values, epsilon):
    return old_values + (values - old_values).clamp(-epsilon, epsilon)


def right_value(values, old_values, returns, epsilon):
    return torch.maximum((values - returns) ** 2, (near(values, old_values, epsilon) - returns) ** 2) / 2


def larger(close):
    return lambda v, o, r, e: torch.maximum((v - r) ** 2, (close(v, o, r, e) - r) ** 2) / 2


def returns_overwritten(values, old_values, returns, mask, clip_epsilon):
    returns.detach()[~mask] = 0
    return value_loss(values, old_values, returns, mask, clip_epsilon)


VALUE_MISTAKES = {
    "times the mask": (
        value_mistake(right_value, lambda loss, mask: (loss * mask).sum() / mask.sum()),
        "padding counts",
    ),
    "larger mean": (
        lambda v, o, r, m, e: torch.maximum(
            ((v - r.detach()) ** 2)[m].mean() / 2, ((near(v, o.detach(), e) - r.detach()) ** 2)[m].mean() / 2
        ),
        "the larger of two means",
    ),
    "in place": (returns_overwritten, "argument 3 after the call"),
    "live old values": (
        lambda v, o, r, m, e: right_value(v, o, r.detach(), e)[m].mean(),
        "a missing detach: old values are",
    ),
    "live returns": (lambda v, o, r, m, e: right_value(v, o.detach(), r, e)[m].mean(), "a missing detach: returns are"),
    "sign": (lambda *x: -value_loss(*x), "the sign"),
    "no half": (lambda *x: 2 * value_loss(*x), "the half is missing"),
    "min": (
        value_mistake(lambda v, o, r, e: torch.minimum((v - r) ** 2, (near(v, o, e) - r) ** 2) / 2),
        "the minimum",
    ),
    "clip alone": (value_mistake(lambda v, o, r, e: (near(v, o, e) - r) ** 2 / 2), "the clipped value alone"),
    "no clip": (value_mistake(lambda v, o, r, e: (v - r) ** 2 / 2), "nothing is clipped"),
    "around the return": (
        value_mistake(larger(lambda v, o, r, e: near(v, r, e))),
        "around the return|nothing is clipped",
    ),
    "not added": (value_mistake(larger(lambda v, o, r, e: (v - o).clamp(-e, e))), "not added back|itself is clipped"),
    "itself": (value_mistake(larger(lambda v, o, r, e: v.clamp(-e, e))), "itself is clipped|not added back"),
    "like a ratio": (
        value_mistake(larger(lambda v, o, r, e: o * (v / o).clamp(1 - e, 1 + e))),
        "like a ratio|larger of two",
    ),
    "live": (value_mistake(right_value, detach=False), "a missing detach"),
    "no mask": (value_mistake(right_value, lambda loss, mask: loss.mean()), "the mask is missing"),
    "over padding": (value_mistake(right_value, lambda loss, mask: (loss * mask).mean()), "divide by the number"),
    "sum": (value_mistake(right_value, lambda loss, mask: loss[mask].sum()), "the sum"),
    "steps": (value_mistake(right_value, lambda loss, mask: loss), "the shape"),
    "detached": (lambda *x: value_loss(*x).detach(), "detached"),
    "zero": (lambda v, o, r, m, e: (0 * v).sum(), "larger of two squared errors"),
}


@pytest.mark.parametrize("name", VALUE_MISTAKES)
def test_value_loss_names_the_mistake(name):
    mistake, cause = VALUE_MISTAKES[name]
    with pytest.raises(AssertionError, match=cause):
        checks.check_value_loss(mistake)


def with_kl(kl):
    return lambda n, o, m, e: (kl(n, o, m), gauges(n, o, m, e)[1])


def with_fraction(fraction):
    return lambda n, o, m, e: (gauges(n, o, m, e)[0], fraction(n, o, m, e))


def times_mask(n, o, m, e):
    change = n - o
    outside = ((change.exp() - 1).abs() > e).double()
    return ((change.exp() - 1 - change) * m).sum() / m.sum(), (outside * m).sum() / m.sum()


GAUGE_MISTAKES = {
    "times the mask": (times_mask, "padding counts"),
    "always 0.2": (lambda n, o, m, e: gauges(n, o, m, 0.2), "epsilon 0.3"),
    "percent": (lambda n, o, m, e: (gauges(n, o, m, e)[0], 100 * gauges(n, o, m, e)[1]), "this is in percent"),
    "in place": (lambda n, o, m, e: gauges(n.sub_(o), 0 * o, m, e), "argument 1 after the call"),
    "other way": (with_kl(lambda n, o, m: kl_k3(n, o)[m].mean()), "the other way round"),
    "k1": (with_kl(lambda n, o, m: (o - n)[m].mean()), "k1"),
    "sign": (with_kl(lambda n, o, m: (n - o)[m].mean()), "the sign"),
    "k2": (with_kl(lambda n, o, m: ((n - o) ** 2 / 2)[m].mean()), "k2"),
    "no -1": (with_kl(lambda n, o, m: ((n - o).exp() - (n - o))[m].mean()), "- 1 is forgotten"),
    "kl, no mask": (with_kl(lambda n, o, m: kl_k3(o, n).mean()), "the mask is missing"),
    "kl, sum": (with_kl(lambda n, o, m: kl_k3(o, n)[m].sum()), "the sum"),
    "swapped": (lambda n, o, m, e: gauges(n, o, m, e)[::-1], "swapped"),
    "log-ratio": (with_fraction(lambda n, o, m, e: ((n - o).abs() > e)[m].double().mean()), "log-ratio is compared"),
    "above": (with_fraction(lambda n, o, m, e: ((n - o).exp() > 1 + e)[m].double().mean()), "only ratios above"),
    "below": (with_fraction(lambda n, o, m, e: ((n - o).exp() < 1 - e)[m].double().mean()), "only ratios below"),
    "inside": (with_fraction(lambda n, o, m, e: 1 - gauges(n, o, m, e)[1]), "the share inside"),
    "inverted": (with_fraction(lambda n, o, m, e: gauges(o, n, m, e)[1]), "upside down"),
    "fraction, no mask": (with_fraction(lambda n, o, m, e: gauges(n, o, m | True, e)[1]), "the mask is missing"),
    "count": (with_fraction(lambda n, o, m, e: gauges(n, o, m, e)[1] * m.sum()), "a count"),
    "one number": (lambda n, o, m, e: gauges(n, o, m, e)[0], "expected two numbers"),
    "zeros": (lambda n, o, m, e: (torch.zeros(()).double(),) * 2, r"exp\(x\) - 1 - x"),
}


@pytest.mark.parametrize("name", GAUGE_MISTAKES)
def test_gauges_name_the_mistake(name):
    mistake, cause = GAUGE_MISTAKES[name]
    with pytest.raises(AssertionError, match=cause):
        checks.check_gauges(mistake)


def weighted(process, visitor, chooser, critic, baseline=True):
    values = mdp.policy_evaluation(process, critic)
    numbers = process.q_values(values) - (values[:, None] if baseline else 0)
    return (mdp.occupancy(process, visitor)[:, None] * chooser * numbers).sum()


def policy_overwritten(process, policy, old_policy):
    values = mdp.policy_evaluation(process, old_policy)
    policy *= mdp.occupancy(process, policy)[:, None]
    return (policy * (process.q_values(values) - values[:, None])).sum()


def start_values(process, policy, old_policy):
    new, old = (mdp.policy_evaluation(process, law) for law in (policy, old_policy))
    return (process.start * (new - old)).sum()


DIFFERENCE_MISTAKES = {
    "two returns": (
        lambda m, p, o: mdp.expected_return(m, p) - mdp.expected_return(m, o),
        "pays 1e15 to all[^$]*two returns of 1e15",
    ),
    "two values": (start_values, "two returns of 1e15"),
    "in place": (policy_overwritten, "argument 2 after the call"),
    "old visits": (lambda m, p, o: weighted(m, o, p, o), "visits of the old policy"),
    "sign": (lambda m, p, o: performance_difference(m, o, p), "the sign"),
    "old actions": (lambda m, p, o: weighted(m, p, o, o), "the old policy's actions"),
    "new advantages": (lambda m, p, o: weighted(m, p, p, p), "advantages of the new policy|old policy's actions"),
    "Q": (lambda m, p, o: weighted(m, p, p, o, baseline=False), "Q-values"),
    "no policy": (lambda m, p, o: weighted(m, p, torch.ones_like(p), o), "probabilities are missing"),
    "no visits": (lambda m, p, o: (p * checks._advantages(m, o)).sum(), "the visits are missing"),
    "first step": (lambda m, p, o: (m.start[:, None] * p * checks._advantages(m, o)).sum(), "the start's law"),
    "normed": (lambda m, p, o: performance_difference(m, p, o) / mdp.occupancy(m, p).sum(), "add up to 1"),
    "zero": (lambda m, p, o: torch.zeros(()).double(), "mean 0 under itself|new visits"),
    "a state": (lambda m, p, o: mdp.occupancy(m, p), "the shape"),
}


@pytest.mark.parametrize("name", DIFFERENCE_MISTAKES)
def test_performance_difference_names_the_mistake(name):
    mistake, cause = DIFFERENCE_MISTAKES[name]
    with pytest.raises(AssertionError, match=cause):
        checks.check_performance_difference(mistake)


# -- the stored results -----------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def study():
    import ppo_ablation  # here, because it turns progress bars off

    return ppo_ablation


def final_scores(study, part):
    """Arm -> seed -> score at the last step."""
    scores = {}
    for row in read_rows(study.RESULTS):  # sorted by step
        if row["part"] == part:
            scores.setdefault(row["arm"], {})[int(row["seed"])] = float(row["score"])
    return scores


def tuned(study, part):
    """Arm -> its mean score on the tuning seeds."""
    return {arm: sum(seeds.values()) / len(seeds) for arm, seeds in final_scores(study, part).items()}


def test_settings_are_the_best_of_the_tuning_seeds(study):
    limit, tour = tuned(study, "limit tuning"), tuned(study, "tour tuning")
    for rate, width, weight in zip(study.STEP_RATES, study.CLIP, study.PENALTY, strict=True):
        assert min(study.WIDTHS, key=lambda e: limit[f"clip {e:g}, rate {rate:g}"]) == width
        assert min(study.WEIGHTS, key=lambda w: limit[f"KL penalty {w:g}, rate {rate:g}"]) == weight
    for name, rate in study.RATE.items():
        assert min(study.RATES, key=lambda r: tour[f"{name} {r:g}"]) == rate


def test_every_arm_had_as_many_tuning_runs_as_the_others_on_other_seeds(study):
    runs = {"clip": 0, "KL penalty": 0, "neither": 0}
    for arm, seeds in final_scores(study, "limit tuning").items():
        runs[next(name for name in runs if arm.startswith(name))] += len(seeds)
    assert set(runs.values()) == {len(study.STEP_RATES) * len(study.WIDTHS) * len(study.SHORT_TUNING)}
    for part in ("limit", "epochs", "tour"):
        parts = (final_scores(study, name) for name in (part, part + " tuning"))
        measured, chosen = ({seed for seeds in scores.values() for seed in seeds} for scores in parts)
        assert not measured & chosen
        assert len(measured) >= 10


def test_runs_side_by_side_are_those_of_the_library(study):
    """Clip, penalty and neither, three seeds, three rates, three iterations each, beside train_ppo."""
    free, clipped = study.in_a_hurry(0.02, clip_epsilon=math.inf), study.in_a_hurry(0.03, clip_epsilon=0.1)
    runs = [clipped, study.in_a_hurry(0.01, clip_epsilon=math.inf, kl_penalty=3.0), free]
    short = {"total_steps": 3 * 4 * study.BATCH, "evaluate_every": 1, "max_grad_norm": 0.02}  # so that it is cut
    runs = [replace(run, config=replace(run.config, seed=seed, **short)) for seed, run in enumerate(runs)]
    together = study.SideBySide(runs).histories()
    for rows, run in zip(together, runs, strict=True):
        alone = study.tour(run.config)
        assert [row["step"] for row in rows] == [0, 256, 512, 768]
        for row, expected in zip(rows, alone, strict=True):
            assert row == pytest.approx(expected, rel=1e-4, abs=1e-6, nan_ok=True)
    other = study.SideBySide([replace(run, beta1=0.0) for run in runs]).histories()
    assert all(a[-1]["score"] != pytest.approx(b[-1]["score"], rel=1e-3) for a, b in zip(together, other, strict=True))


def test_a_stored_run_starts_where_the_code_starts(study):
    """The library may change without the script: the exact shortfall of the reference, and the optimum's of 0."""
    world, reference = study.world_and_reference()
    best = world.optimum(study.law_of(world, reference.logits), study.KL_COEF)
    start = study.KL_COEF * float(world.kl(study.law_of(world, reference.logits), best))
    stored = [float(r["score"]) for r in read_rows(study.RESULTS) if r["part"] == "tour" and r["step"] == "0"]
    assert stored == pytest.approx([start] * 30, rel=1e-5)
    assert float(world.kl(best, best)) == pytest.approx(0, abs=1e-12)


def test_every_algorithm_sees_as_many_replies(study):
    steps = {r["arm"]: int(r["step"]) for r in read_rows(study.RESULTS) if r["part"] == "tour"}
    assert set(steps.values()) == {4 * study.BATCH * study.ITERATIONS}


def test_looks_average_what_was_logged_between_them(study):
    history = History()
    history.add(step=0, score=3.0)
    history.add(step=1, entropy=1.0)
    history.add(step=2, entropy=2.0, score=1.0)
    first, second = study.looks(history, scale=10)
    assert (first["step"], first["score"], second["step"], second["score"], second["entropy"]) == (0, 3.0, 20, 1.0, 1.5)
    assert math.isnan(first["entropy"])
