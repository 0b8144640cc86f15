"""What the study of few labels stores keeps the promises of the recipe, as far as it is computed."""

import few_labels
import pytest
from rows import read_rows

from rlhf_lab.maths.intervals import mean_interval


def column(labels, name):
    return [float(row[name]) for row in read_rows(few_labels.RESULTS) if row["labels"] == labels]


@pytest.mark.parametrize("count", [str(count) for count in few_labels.LABELS])
def test_every_seed_is_there_and_the_model_gets_better(count):
    gains = column(count, "gain")
    assert len(gains) == len(few_labels.SEEDS)
    assert mean_interval(gains).mean > 0.1
    assert mean_interval(column(count, "changed")).mean > 0.3


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
