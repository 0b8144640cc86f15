"""The checks of chapter 04 pass the solution and name the mistake that was made; its stored results are not stale."""

import gae as study
import pytest
import torch
from rows import read_rows

from rlhf_lab.classroom.checks import advantage as checks
from rlhf_lab.maths import returns

CHECKS = [checks.check_td_errors, checks.check_gae, checks.check_n_step_advantage, checks.check_value_targets]


def unfinished(*args):
    raise NotImplementedError("your code here")


@pytest.mark.parametrize("check", CHECKS)
def test_an_empty_exercise_says_so(check):
    with pytest.raises(NotImplementedError, match="your code here"):
        check(unfinished)


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize(
    ("mistake", "cause"),
    [
        (lambda *data: None, "is there a `return`"),
        (lambda rewards, values, *rest: values, "one number for every step"),
        (lambda rewards, values, *rest: rewards @ values, "RuntimeError"),
        (lambda rewards, *rest: torch.full_like(rewards, torch.nan), "what is asked"),
        (lambda rewards, *rest: torch.zeros_like(rewards), "what is asked"),
    ],
)
def test_what_is_no_answer_is_refused(check, mistake, cause):
    with pytest.raises(AssertionError, match=cause):
        check(mistake)


# -- TD errors --------------------------------------------------------------------------------------------------------
def td_errors(rewards, values, discounts, mask):
    errors = rewards + discounts * values[:, 1:].detach() - values[:, :-1].detach()
    return torch.where(mask, errors, 0)


def last(mask):
    return mask & (mask.cumsum(1) == mask.sum(1, keepdim=True))


def ends_last(discounts, mask):
    """Discounts of somebody who expects the end of an episode at the end of a row only."""
    return torch.where(last(mask), discounts, discounts.max())


def cut_is_end(discounts, mask):
    return torch.where(last(mask), 0, discounts)


@pytest.mark.parametrize("solution", [td_errors, returns.td_errors])
def test_td_errors_passes(solution, capsys):
    checks.check_td_errors(solution)
    assert "passed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("mistake", "cause"),
    [
        (lambda r, v, d, m: r + d * v[:, 1:] - v[:, :-1], "the mask is missing"),
        (lambda r, v, d, m: (r + d.max() * v[:, 1:] - v[:, :-1]) * m, "bootstrap at a terminal step"),
        (lambda r, v, d, m: (r + (d > 0) * v[:, 1:] - v[:, :-1]) * m, "gamma is forgotten"),
        (lambda r, v, d, m: (r - d * v[:, 1:] + v[:, :-1]) * m, "the sign"),
        (lambda r, v, d, m: (r + d * v[:, :-1] - v[:, 1:]) * m, "off by one"),
        (lambda r, v, d, m: (r - v[:, :-1]) * m, "the value ahead is missing"),
        (lambda r, v, d, m: (r + d * v[:, 1:]) * m, "the value now is not subtracted"),
        (lambda r, v, d, m: (d * v[:, 1:] - v[:, :-1]) * m, "the reward is missing"),
        (lambda r, v, d, m: (r + d * v[1:] - v[:-1]) * m, "RuntimeError[^$]*time is the second axis"),
        (lambda r, v, d, m: (r + d * v[:, 1:] - v[:, :-1]) * m, "a missing detach"),
        (lambda r, v, d, m: td_errors(r, v, ends_last(d, m), m), "inside a row is passed over"),
        (lambda r, v, d, m: td_errors(r, v, cut_is_end(d, m), m), "a row that was cut counts as ended"),
        (lambda r, v, d, m: td_errors(r.mul_(m), v, d, m), "in place"),
        (lambda r, v, d, m: (r + d * v[:, 1:].detach() - v[:, :-1].detach()) * m, "padding counts"),
    ],
)
def test_td_errors_names_the_mistake(mistake, cause):
    with pytest.raises(AssertionError, match=cause):
        checks.check_td_errors(mistake)


# -- GAE --------------------------------------------------------------------------------------------------------------
def gae(rewards, values, discounts, mask, lam):
    advantage, columns = torch.zeros(len(rewards)), []
    errors = td_errors(rewards, values, discounts, mask)
    for t in reversed(range(rewards.shape[1])):
        advantage = torch.where(mask[:, t], errors[:, t] + discounts[:, t] * lam * advantage, advantage)
        columns.insert(0, advantage * mask[:, t])
    return torch.stack(columns, dim=1)


def sum_of_powers(rewards, values, discounts, mask, lam):
    """(gamma lam)^k with one gamma for all steps, as in the formula for a single episode."""
    errors, steps = td_errors(rewards, values, discounts, mask), torch.arange(rewards.shape[1])
    ahead = steps[None, :] - steps[:, None]
    weights = torch.where(ahead >= 0, (discounts.max() * lam) ** ahead.clamp(min=0), 0)
    return errors @ weights.T * mask


def gae_of_scaled_discounts(rewards, values, discounts, mask, lam):
    errors = td_errors(rewards, values, discounts, mask)
    discounts *= lam
    for t in reversed(range(rewards.shape[1] - 1)):
        errors[:, t] += discounts[:, t] * errors[:, t + 1]
    return errors


@pytest.mark.parametrize("solution", [gae, returns.gae])
def test_gae_passes(solution):
    checks.check_gae(solution)


def gae_mistake(
    ahead=lambda d, lam: d, decay=lambda d, lam: d * lam, masked=True, now=1.0, sign=1.0, shift=0, detach=True,
    plus_value=False,
):  # fmt: skip
    """A loop as readers write it, over the rows, with one thing changed."""

    def advantages(rewards, values, discounts, mask, lam):
        values = values.detach() if detach else values
        rows = []
        for r, v, d, m in zip(rewards, values, discounts, mask, strict=True):
            total, row = torch.zeros(()), []
            for t in reversed(range(len(r))):
                here, later = (v[t + 1], v[t]) if shift else (v[t], v[t + 1])
                if not masked or m[t]:
                    total = r[t] + sign * (ahead(d, lam)[t] * later - now * here) + decay(d, lam)[t] * total
                row.insert(0, (total + plus_value * v[t]) * m[t])
            rows.append(torch.stack(row))
        return torch.stack(rows)

    return advantages


def forwards(rewards, values, discounts, mask, lam):
    total, columns = 0.0, []
    for t in range(rewards.shape[1]):
        total = td_errors(rewards, values, discounts, mask)[:, t] + discounts[:, t] * lam * total
        columns.append(total)
    return torch.stack(columns, 1) * mask


def over_rows(rewards, values, discounts, mask, lam):
    errors, total, rows = td_errors(rewards, values, discounts, mask), 0.0, []
    for b in reversed(range(len(rewards))):
        total = torch.where(mask[b], errors[b] + discounts[b] * lam * total, total)
        rows.insert(0, total)
    return torch.stack(rows) * mask


def multiplied_by_the_mask(rewards, values, discounts, mask, lam):
    """Right wherever padding holds finite numbers."""
    rows, ahead = (rewards + discounts * values[:, 1:] - values[:, :-1]).detach() * mask, mask[:, 1:] * 1.0
    for t in reversed(range(mask.shape[1] - 1)):
        rows[:, t] += discounts[:, t] * lam * ahead[:, t] * rows[:, t + 1]
    return rows


@pytest.mark.parametrize(
    ("mistake", "cause"),
    [
        (gae_mistake(masked=False), "the mask is missing"),
        (lambda r, v, d, m, lam: gae(r, v, torch.full_like(d, d.max()), m, lam), "bootstrap at a terminal step"),
        (gae_mistake(ahead=lambda d, lam: (d > 0).float()), "gamma is forgotten in the TD errors"),
        (gae_mistake(decay=lambda d, lam: (d > 0) * lam), "gamma is forgotten in the decay"),
        (lambda r, v, d, m, lam: gae(r, v, (d > 0).float(), m, lam), "gamma is forgotten, in the TD errors and"),
        (gae_mistake(decay=lambda d, lam: d), "lam is forgotten"),
        (gae_mistake(ahead=lambda d, lam: d * lam, decay=lambda d, lam: d), "are swapped"),
        (gae_mistake(ahead=lambda d, lam: d * lam), "lam is in the TD errors too"),
        (gae_mistake(decay=lambda d, lam: 0 * d), "nothing is summed"),
        (gae_mistake(sign=-1.0), "the sign"),
        (gae_mistake(shift=1), "off by one"),
        (forwards, "the sum runs over the past"),
        (over_rows, "the wrong axis"),
        (gae_mistake(plus_value=True), "these are targets"),
        (gae_mistake(detach=False), "a missing detach"),
        (sum_of_powers, "an end is crossed"),
        (lambda r, v, d, m, lam: gae(r, v, ends_last(d, m), m, lam), "inside a row is passed over"),
        (lambda r, v, d, m, lam: gae(r, v, cut_is_end(d, m), m, lam), "a row that was cut counts as ended"),
        (gae_of_scaled_discounts, "argument 3 after the call"),
        (multiplied_by_the_mask, "padding counts"),
    ],
)
def test_gae_names_the_mistake(mistake, cause):
    with pytest.raises(AssertionError, match=cause):
        checks.check_gae(mistake)


# -- n steps ----------------------------------------------------------------------------------------------------------
def by_rows(rewards, values, discounts, mask, n):
    """Straight from the definition."""
    result, values = torch.zeros_like(rewards), values.detach()
    for b, length in enumerate(mask.sum(1).tolist()):
        for t in range(length):
            stop = min(t + n, length)
            total = values[b, stop]
            for k in reversed(range(t, stop)):
                total = rewards[b, k] + discounts[b, k] * total
            result[b, t] = total - values[b, t]
    return result


def test_n_step_advantage_passes():
    checks.check_n_step_advantage(by_rows)


def n_step_mistake(length=None, change=lambda d: d, more=0, bootstrap=1.0, now=1.0, extra=0, detach=True, bare=False):
    def advantages(rewards, values, discounts, mask, n):
        result, discounts = [], change(discounts)
        values = values.detach() if detach else values
        for b, steps in enumerate(mask.sum(1).tolist()):
            steps, row = length or steps, []
            for t in range(rewards.shape[1]):
                stop, total, weight = min(t + n + more, steps), 0.0, 1.0
                for k in range(t, min(stop + extra, steps)):
                    total, weight = total + weight * rewards[b, k], weight * (discounts[b, k] if k < stop else 1)
                weight = float(weight > 0) if bare else weight
                reached = bootstrap * weight * values[b, stop] - now * values[b, t]
                row.append((total + reached) * mask[b, t])
            result.append(torch.stack(row))
        return torch.stack(result)

    return advantages


def without_mask(rewards, values, discounts, mask, n):
    return by_rows(rewards, values, discounts, torch.ones_like(mask), n) * mask


@pytest.mark.parametrize(
    ("mistake", "cause"),
    [
        (without_mask, "the mask is missing"),
        (n_step_mistake(change=lambda d: torch.full_like(d, d.max())), "bootstrap at a terminal step"),
        (n_step_mistake(change=lambda d: (d > 0).float()), "gamma is forgotten: step k"),
        (n_step_mistake(bare=True), "gamma is forgotten in the bootstrap"),
        (n_step_mistake(extra=1), "off by one: n rewards"),
        (n_step_mistake(more=1), "these are n \\+ 1 steps"),
        (n_step_mistake(more=-1), "these are n - 1 steps"),
        (n_step_mistake(bootstrap=0.0), "the bootstrap is missing"),
        (n_step_mistake(now=0.0), "the value now is not subtracted"),
        (lambda *data: -by_rows(*data), "the sign"),
        (lambda r, v, d, m, n: td_errors(r, v, d, m), "these are one-step TD errors"),
        (lambda r, v, d, m, n: gae(r, v, d, m, 1.0), "looks to the end"),
        (n_step_mistake(detach=False), "a missing detach"),
        (lambda r, v, d, m, n: by_rows(r, v, ends_last(d, m), m, n), "inside a row is passed over"),
        (lambda r, v, d, m, n: by_rows(r, v, cut_is_end(d, m), m, n), "a row that was cut counts as ended"),
        (lambda r, v, d, m, n: by_rows(r.mul_(m), v, d, m, n), "in place"),
    ],
)
def test_n_step_advantage_names_the_mistake(mistake, cause):
    with pytest.raises(AssertionError, match=cause):
        checks.check_n_step_advantage(mistake)


# -- targets ----------------------------------------------------------------------------------------------------------
def value_targets(rewards, values, discounts, mask, lam):
    values = values.detach()
    lengths = mask.sum(1, keepdim=True)
    following, columns = values.gather(1, lengths).squeeze(1), []
    for t in reversed(range(rewards.shape[1])):
        mixed = (1 - lam) * values[:, t + 1] + lam * following
        following = torch.where(mask[:, t], rewards[:, t] + discounts[:, t] * mixed, following)
        columns.insert(0, following * mask[:, t])
    return torch.stack(columns, 1)


def by_rows_of_targets(rewards, values, discounts, mask, lam):
    """The same recursion, written over the rows."""
    result = torch.zeros_like(rewards)
    for b, steps in enumerate(mask.sum(1).tolist()):
        ahead = values[b, steps].detach()
        for t in reversed(range(steps)):
            ahead = rewards[b, t] + discounts[b, t] * ((1 - lam) * values[b, t + 1].detach() + lam * ahead)
            result[b, t] = ahead
    return result


@pytest.mark.parametrize("solution", [value_targets, by_rows_of_targets])
def test_value_targets_passes(solution):
    checks.check_value_targets(solution)


def gae_plus_value(rewards, values, discounts, mask, lam):
    return torch.where(mask, returns.gae(rewards, values, discounts, mask, lam) + values[:, :-1].detach(), 0)


@pytest.mark.parametrize("short_cut", [returns.lambda_returns, gae_plus_value])
def test_value_targets_by_gae_are_no_recursion(short_cut):
    with pytest.raises(AssertionError, match="this is GAE plus the value"):
        checks.check_value_targets(short_cut)


def target_mistake(**options):
    advantages = gae_mistake(**options)
    return lambda r, v, d, m, lam: advantages(r, v, d, m, lam) + v[:, :-1].detach() * m


@pytest.mark.parametrize(
    ("mistake", "cause"),
    [
        (gae, "the values are not added"),
        (lambda r, v, d, m, lam: (gae(r, v, d, m, lam) + v[:, 1:]) * m, "off by one: the advantage"),
        (lambda r, v, d, m, lam: (v[:, :-1] - gae(r, v, d, m, lam)) * m, "the sign: target"),
        (lambda r, v, d, m, lam: gae(r, v, d, m, lam) + v[:, :-1], "the mask is missing: at padding"),
        (lambda r, v, d, m, lam: value_targets(r, v, d, m, 1 - lam), "lam is the wrong way round"),
        (target_mistake(masked=False), "the mask is missing: what stands at padding"),
        (target_mistake(decay=lambda d, lam: d), "lam is forgotten"),
        (target_mistake(decay=lambda d, lam: (d > 0) * lam), "gamma is forgotten in the decay"),
        (target_mistake(ahead=lambda d, lam: (d > 0).float()), "gamma is forgotten in the TD errors"),
        (
            lambda r, v, d, m, lam: value_targets(r, v, torch.full_like(d, d.max()), m, lam),
            "bootstrap at a terminal step",
        ),
        (lambda r, v, d, m, lam: (over_rows(r, v, d, m, lam) + v[:, :-1]) * m, "the wrong axis"),
        (lambda r, v, d, m, lam: (gae(r, v, d, m, lam) + v[:, :-1]) * m, "a missing detach"),
        (lambda r, v, d, m, lam: value_targets(r, v, ends_last(d, m), m, lam), "inside a row is passed over"),
        (lambda r, v, d, m, lam: value_targets(r.mul_(m), v, d, m, lam), "in place"),
    ],
)
def test_value_targets_names_the_mistake(mistake, cause):
    with pytest.raises(AssertionError, match=cause):
        checks.check_value_targets(mistake)


# -- the stored results -----------------------------------------------------------------------------------------------


def test_a_stored_row_is_computed_again():
    """The library may change without the script: two rows are measured anew."""
    rows = {(row["seed"], float(row["sigma"]), float(row["lam"])): row for row in read_rows(study.RESULTS)}
    mdp, logits, error = study.tower(study.FLOORS, study.ROOMS, 4)
    exact = study.policy_evaluation(mdp, logits.softmax(-1))
    for lam in (0.3, 1.0):
        found = study.measure(mdp, logits, exact + error, study.FLOORS, lam)
        for name, value in found.items():
            assert value == pytest.approx(float(rows["4", 1.0, lam][name]), rel=1e-4, abs=1e-9)


def test_every_episode_is_listed_once():
    mdp, logits, _ = study.tower(3, 2, 0)
    states, actions, weights = study.all_episodes(mdp, logits.softmax(-1), 3)
    assert len({tuple(row) for row in torch.cat([states, actions], 1).tolist()}) == len(weights) == 4**2 * 2
    assert weights.sum().item() == pytest.approx(1)
    assert (states[:, -1] == len(mdp.start) - 1).all()
