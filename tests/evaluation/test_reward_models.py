"""The report of a reward model against its definition, and what is not known of it."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from rlhf_lab.evaluation.reward_models import calibration, evaluate_reward_model, reward_model_report
from rlhf_lab.maths.intervals import proportion_interval
from rlhf_lab.models.reward_model import RewardModel
from rlhf_lab.records import Ranking, as_conversation

torch.set_num_threads(1)


@settings(max_examples=30)
@given(st.integers(1, 40), st.integers(0, 10_000))
def test_reward_model_report_is_the_definition(count, seed):
    rng = np.random.default_rng(seed)
    chosen, rejected, p = rng.integers(0, 4, count), rng.integers(0, 4, count), rng.random(count)
    report = evaluate_reward_model(chosen, rejected, agreement=p)
    right = expected = 0.0
    for c, r, agree in zip(chosen, rejected, p, strict=True):
        right += 1.0 if c > r else 0.5 if c == r else 0.0
        expected += agree if c > r else 0.5 if c == r else 1 - agree
    assert report.accuracy == proportion_interval(right, count)
    assert report.expected_accuracy == pytest.approx(expected / count)
    assert report.ceiling == pytest.approx(np.mean([max(x, 1 - x) for x in p]))
    assert report.expected_accuracy <= report.ceiling + 1e-12
    assert report.rater_agreement == pytest.approx(np.mean([x * x + (1 - x) * (1 - x) for x in p]))
    assert report.rater_agreement <= report.ceiling + 1e-12
    assert report.differences == pytest.approx((chosen - rejected).tolist())
    assert report.confidence == pytest.approx([1 / (1 + math.exp(-abs(d))) for d in chosen - rejected])


def test_pairs_of_one_ranking_widen_the_interval():
    # 40 rankings of 6 pairs that are right or wrong together: as good as 40 pairs, not as 240.
    right = np.repeat(np.random.default_rng(0).random(40) < 0.75, 6)
    scores = np.where(right, 1.0, -1.0)
    groups = np.repeat(np.arange(40), 6)
    alone, grouped = (evaluate_reward_model(scores, np.zeros(240), groups=g).accuracy for g in (None, groups))
    forty = proportion_interval(right.sum() / 6, 40)
    assert alone.mean == grouped.mean
    assert grouped.high - grouped.low == pytest.approx(forty.high - forty.low, rel=0.1)
    assert grouped.high - grouped.low > 2 * (alone.high - alone.low)


@pytest.mark.parametrize("groups", [range(7), [0, 0, 0, 1, 1, 2, 3]])
def test_all_right_is_not_certainly_right(groups):
    report = evaluate_reward_model(np.ones(7), np.zeros(7), groups=list(groups))
    assert report.accuracy == proportion_interval(len(set(groups)), len(set(groups)))
    assert report.accuracy.low < 0.65


@pytest.mark.parametrize("name", ["rejected_scores", "groups", "agreement"])
def test_reward_model_report_refuses_other_lengths(name):
    given_ = {"chosen_scores": [1.0, 2.0], "rejected_scores": [0.0, 0.0], name: [0.5]}
    with pytest.raises(ValueError, match=name):
        evaluate_reward_model(**given_)


def ranked(question, rater="careful"):
    return Ranking(
        as_conversation(question), ("At six.", "The library closes at six."), ((1,), (0,)), "done", rater, True
    )


def test_the_best_possible_is_known_only_of_the_towns_prompts_and_its_rater(tiny_gpt2):
    rm = RewardModel.from_language_model(tiny_gpt2, torch.Generator().manual_seed(0))
    town, elsewhere = ranked("When does the library close?"), ranked("What is love?")
    known = reward_model_report(rm, [town])
    assert 0.5 <= known.ceiling <= 1
    assert known.expected_accuracy <= known.ceiling
    for others in ([elsewhere], [town, elsewhere], [ranked("When does the library close?", rater="hurried")]):
        report = reward_model_report(rm, others)
        assert (report.expected_accuracy, report.ceiling, report.rater_agreement) == (None, None, None)
        assert len(report.agreed) == len(others)


@pytest.mark.parametrize("groups", [[math.nan, 1.0], [None, 1], [[0, 1], [1, 0]]])
def test_groups_that_name_no_ranking_are_refused(groups):
    with pytest.raises(ValueError, match=r"groups is .*; expected a whole number or a name for each pair"):
        evaluate_reward_model([1.0, 2.0], [0.0, 0.0], groups=groups)


@pytest.mark.parametrize("groups", [None, range(40)])
def test_an_accuracy_is_compared_with_one_half(groups):
    wrong = evaluate_reward_model([0.0] * 35 + [2.0] * 5, [1.0] * 40, groups=groups)
    assert wrong.accuracy.verdict == "below 0.5"


@pytest.mark.parametrize("scores", [["a"], torch.ones(1, requires_grad=True)])
def test_scores_that_are_no_numbers_are_named(scores):
    with pytest.raises(ValueError, match="chosen_scores must be one or more finite numbers"):
        evaluate_reward_model(scores, [0.0])


def test_the_report_shows_accuracy_beside_agreement_and_the_best_possible():
    report = evaluate_reward_model([1.0, 0.0], [0.0, 2.0], agreement=[0.9, 0.4])
    lines = dict(report.table())
    assert lines["would agree with new labels"] == "75.0%"
    assert lines["two raters agree"] == "67.0%"  # (0.82 + 0.52) / 2
    assert lines["best possible"] == "75.0%"
    assert all(name in repr(report) and number in repr(report) for name, number in lines.items())
    assert list(dict(evaluate_reward_model([1.0], [0.0]).table())) == ["agrees with the labels"]


# -- calibration ------------------------------------------------------------------------------------------------------


def labels_of(scale, count, seed=0):
    """Differences (chosen less rejected) of a model whose log-odds are `scale` times the true ones, and the truth."""
    rng = np.random.default_rng(seed)
    true = rng.normal(0, 1.5, count)
    p = 1 / (1 + np.exp(-true))
    left_chosen = rng.random(count) < p
    return np.where(left_chosen, scale * true, -scale * true), np.where(left_chosen, p, 1 - p)


def test_calibration_covers_all_probabilities_and_is_the_definition():
    differences, _ = labels_of(1.0, 400)
    table = calibration(differences, seed=3)
    assert table.predicted[0] < 0.1 < 0.9 < table.predicted[-1]
    assert sum(share.count for share in table.observed) == 400
    one_bin = calibration(differences, bins=1, seed=3)
    # Sides are drawn: left is the chosen one in about half of all pairs (5 standard deviations of 0.025).
    assert one_bin.observed[0].mean == pytest.approx(0.5, abs=0.125)
    gaps = [abs(x - share.mean) * share.count for x, share in zip(table.predicted, table.observed, strict=True)]
    assert table.error == pytest.approx(sum(gaps) / 400)
    assert calibration(differences, seed=3) == table != calibration(differences, seed=4)


def test_a_model_that_is_too_sure_is_found_and_one_that_is_right_is_not():
    """Of 10 intervals at 95 % a right model is outside of 4 or more in 1 of 1,000 runs."""
    for scale, most, least in ((1.0, 3, 0), (3.0, 10, 5)):
        differences, _ = labels_of(scale, 2000)
        table = calibration(differences)
        outside = [not s.low <= x <= s.high for x, s in zip(table.predicted, table.observed, strict=True)]
        assert least <= sum(outside) <= most


def test_known_agreement_takes_the_noise_of_the_labels_away():
    differences, agreement = labels_of(1.0, 500)
    exact = calibration(differences, agreement=agreement)
    assert exact.error < 1e-6 < 0.01 < calibration(differences).error


@pytest.mark.parametrize(("arguments", "words"), [(([],), "differences"), (([1.0],), "agreement must have one")])
def test_calibration_refuses_what_does_not_pair_up(arguments, words):
    with pytest.raises(ValueError, match=words):
        calibration(*arguments, agreement=[0.5, 0.5])
