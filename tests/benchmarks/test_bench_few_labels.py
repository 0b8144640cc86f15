"""What the study of few labels stores keeps the promises of the recipe, as far as it is computed."""

import few_labels
import pytest
from rows import read_rows

from rlhf_lab.maths.intervals import mean_interval, paired_difference, ratio_of_means_bootstrap


def column(labels, name):
    return [float(row[name]) for row in read_rows(few_labels.RESULTS) if row["labels"] == labels]


@pytest.mark.parametrize("count", [str(count) for count in few_labels.LABELS])
def test_every_seed_is_there_and_the_model_gets_better(count):
    gains = column(count, "gain")
    assert len(gains) == len(few_labels.SEEDS)
    assert mean_interval(gains).low > 0
    assert min(gains) > 0
    assert mean_interval(column(count, "changed")).mean > 0.4


def test_sixty_rankings_go_much_of_the_way_to_the_true_reward():
    gains, oracle = column("60", "gain"), column(few_labels.ORACLE, "gain")
    ratio = ratio_of_means_bootstrap(gains, oracle)
    assert ratio.count == 20
    assert (ratio.mean >= 0.4, ratio.low >= 0.25) == (True, True)
    late = mean_interval(column(few_labels.ORACLE, "late"))
    assert max(abs(late.low), abs(late.high)) < 0.02  # the oracle is on its plateau


def test_what_choosing_does_to_the_policy_is_said():
    *_, said = few_labels.verdicts()
    assert said.startswith("60 bald less 60 as they come, 20 seeds")
    assert paired_difference(column("60 bald", "gain"), column("60", "gain")).verdict in said


@pytest.mark.parametrize("count", [str(count) for count in few_labels.LABELS])
def test_a_report_warns_first_and_never_says_better(count):
    assert set(column(count, "said_better")) == {0.0}
    for gain, warned in zip(column(count, "gain"), column(count, "warned"), strict=True):
        assert warned == 1.0 or gain >= 0


def test_arms_of_a_seed_start_from_the_same_model():
    starts = [column(str(count), "sft") for count in few_labels.LABELS]
    assert starts[0] == starts[1] == starts[2]


def test_the_probe_sees_the_fit_and_the_run(monkeypatch):
    few_labels.stage.cache_clear(), few_labels.probe.cache_clear()
    before = few_labels.probe("20")
    few_labels.probe.cache_clear()
    monkeypatch.setattr(few_labels, "cautious", lambda config, reward: config)
    assert few_labels.probe("20") != before
    few_labels.probe.cache_clear()
