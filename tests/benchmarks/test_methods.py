"""What the studies of methods store is what chapter 15 says of it, and their probes see the whole chain."""

import methods
import methods_world as world
import pytest
import torch
from probing import check_that_the_probe_sees_the_chain
from rows import read_rows

from rlhf_lab.maths.intervals import mean_interval, paired_difference

torch.set_num_threads(1)


def column(path, name, **wanted):
    rows = [row for row in read_rows(path) if wanted.items() <= row.items()]
    return [float(row[name]) for row in sorted(rows, key=lambda row: int(row["seed"]))]


def gap(method, leash, reward="truth"):
    return column(world.RESULTS, "gap", part="crossed", method=method, reward=reward, leash=leash)


def test_every_arm_of_the_grid_has_every_seed():
    for study in (methods, world):
        for one in study.arms("crossed"):
            seeds = column(study.RESULTS, "seed", **one.names)
            assert seeds == list(study.SEEDS), one.names


def test_the_rate_of_a_method_is_its_best_of_three():
    for pair, rate in world.RATES.items():
        tried = {}
        for other in world.TRIED:
            names = {"part": "rates", "method": pair[0], "reward": pair[1], "rate": f"{other:g}"}
            [true], [kl] = (column(world.RESULTS, name, **names) for name in ("true", "kl"))
            tried[other] = true - 0.5 * kl
        assert max(tried, key=tried.__getitem__) == rate, pair


def test_the_rate_in_the_town_is_the_best_of_three_by_true_reward():
    for method, rate in methods.RATES.items():
        names = {"part": "rates", "method": method}
        tried = {x: column(methods.RESULTS, "true", rate=f"{x:g}", **names)[0] for x in methods.TRIED[method]}
        assert max(tried, key=tried.__getitem__) == rate, method


def test_paid_the_truth_ppo_and_rloo_are_near_the_frontier_and_grpo_is_not():
    for leash in ("0.2", "0.5", "1"):
        assert mean_interval(gap("ppo", leash)).high < 0.06
        assert mean_interval(gap("rloo", leash)).mean < 0.07
    assert paired_difference(gap("grpo", "0.2"), gap("ppo", "0.2")).low > 0.2


def test_of_grpo_s_choices_the_place_of_the_kl_costs_most():
    cost = {name: paired_difference(gap(name, "0.5"), gap("rloo", "0.5")) for name in world.PIECES}
    assert cost["rloo_k3"].low > 0
    assert cost["rloo_replies"].low > 0
    assert cost["rloo_scaled"].low < 0 < cost["rloo_scaled"].high < 0.01
    assert cost["rloo_k3"].mean > 2 * cost["rloo_replies"].mean


def test_with_labels_every_gap_is_many_times_as_large():
    for method in ("ppo", "rloo", "distil"):
        truth, labels = gap(method, "0.5"), gap(method, "0.5", "labels")
        assert sum(labels) > 5 * sum(truth)


def test_every_method_gains_in_the_town():
    sft = column(methods.RESULTS, "true", method="sft")
    for name, leashes in methods.LEASHES.items():
        for leash in leashes:
            after = column(methods.RESULTS, "true", part="crossed", method=name, leash=f"{leash:g}")
            assert paired_difference(after, sft).low > 0.2, (name, leash)


def test_a_verifiable_reward_raises_pass_at_1_and_at_16():
    for name, least in (("pass_1", 0.3), ("pass_16", 0.0)):
        after, before = (column(methods.RESULTS, name, method=method) for method in ("verifiable", "base"))
        assert paired_difference(after, before).low > least


# -- the measures themselves ------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def small():
    return world.stage(0, world.SHORT)


def test_the_scores_of_a_world_have_mean_0_and_variance_1_under_its_reference(small):
    mean = small.world.expected_reward(small.law).mean()
    square = small.world.expected_reward(small.law, small.world.scores**2).mean()
    assert abs(float(mean)) < 1e-9
    assert float(square) == pytest.approx(1, abs=1e-9)


def test_the_frontier_goes_through_the_optima_and_nothing_is_above_it(small):
    for coefficient in (0.3, 1.0, 3.0):
        best = small.world.optimum(small.law, coefficient)
        row = world.measured(small, best, coefficient)
        assert abs(row["gap"]) < 1e-9
        assert abs(row["shortfall"]) < 1e-12
        assert row["kl"] > 0.01
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        noise = torch.randn(small.law.shape, generator=generator, dtype=torch.float64)
        law = (small.law.log() + 0.5 * noise + 0.3 * small.world.scores).softmax(1)
        assert world.measured(small, law, None)["gap"] > 0


def test_the_exact_law_is_that_of_sampled_replies(small):
    from rlhf_lab.experience.rollouts import sample_responses

    law = world.exact_law(small.reference, small.world)
    torch.testing.assert_close(law.sum(1), torch.ones(2, dtype=torch.float64))
    generator = torch.Generator().manual_seed(0)
    drawn = sample_responses(
        small.reference, ["b"] * 4000, generator=generator, max_new_tokens=world.LENGTH, temperature=1.0
    )
    scores = small.scores(drawn)
    expected = float(small.world.expected_reward(law)[1])
    error = 4 * float(scores.std()) / len(scores) ** 0.5  # a false alarm once in 16,000
    assert abs(float(scores.mean()) - expected) < error


def test_pass_at_k_is_the_chance_of_draws_without_putting_back(monkeypatch):
    """2 of 16 right: 1 - C(14, 4) / C(16, 4) = 1 - 1001 / 1820 = 0.45."""
    at = methods.stage(0, methods.SHORT)
    monkeypatch.setattr(methods, "right", lambda replies: ([1.0] * 2 + [0.0] * 14) * at.setting.repeated)
    row = methods.variety(at.sft, at)
    assert row["pass_1"] == pytest.approx(1 / 8)
    assert row["pass_4"] == pytest.approx(0.45)
    assert row["pass_16"] == 1
    assert 1 <= row["distinct"] <= 16


@pytest.mark.parametrize(("study", "names"), [(methods, ("ppo", 0.1)), (world, ("ppo", "labels", 0.5))])
def test_the_probe_sees_a_change_of_ppo_and_of_the_reward_model(monkeypatch, study, names):
    check_that_the_probe_sees_the_chain(monkeypatch, study, *names)
