"""The stored study of what to ask next: whole, paired, printed as it is, with a probe that sees the rules."""

import choice
import numpy as np
import pytest
import torch
from rows import read_rows, same_setup

from rlhf_lab.feedback import choice as rules
from rlhf_lab.maths.intervals import mean_interval, paired_difference
from rlhf_lab.recipes.few_labels import LinearRewardConfig

torch.set_num_threads(1)
RANKED = [("rank", rule) for rule in rules.RULES]


def test_every_arm_has_every_seed_and_is_measured_on_the_same_pairs():
    rows = read_rows(choice.RESULTS)
    runs = {(row["form"], row["rule"], row["seed"], row["labels"]) for row in rows}
    assert len(rows) == len(runs) == len(choice.ARMS) * len(choice.SEEDS) * len(choice.FULL.labels)
    best = {tuple(choice.column(*names, labels, "best_accuracy")) for names in choice.ARMS for labels in (20, 120)}
    assert len(best) == 1
    for names in choice.ARMS:
        for labels in choice.FULL.labels:
            accuracy = np.array(choice.column(*names, labels))
            assert (accuracy < np.array(next(iter(best)))).all()
            assert accuracy.mean() > 0.5


def test_more_labels_are_better_and_the_detectable_effect_is_a_few_points():
    for names in choice.ARMS:
        assert paired_difference(choice.column(*names, 120), choice.column(*names, 20)).low > 0
    for names in RANKED[1:]:
        found, least = choice.against(*names, choice.FIRST)
        assert found.count == 20
        assert least == pytest.approx(2.8 / 2.093 * (found.high - found.mean), rel=1e-3)  # both are of the same spread
        assert 0.002 < least < 0.04


def test_no_rule_was_seen_to_beat_drawing_and_other_forms_tell_less_than_a_ranking():
    for labels in choice.FULL.labels:
        assert {choice.against(*names, labels)[0].verdict for names in RANKED[1:]} == {"INCONCLUSIVE"}
        assert {choice.against(form, "random", labels)[0].verdict for form in ("compare", "rate")} == {"below 0"}


def test_shares_of_the_asked_prompts_are_biased():
    """Agreement of two raters on what was asked, less that on drawn prompts: below for open questions, else above."""
    bias = {rule: choice.against("rank", rule, choice.FIRST, "asked_agreement")[0] for rule in list(rules.RULES)[1:]}
    assert bias["uncertainty"].verdict == "below 0"
    assert {bias[rule].verdict for rule in ("variance", "bald", "d_optimal")} == {"above 0"}
    assert choice.against("rank", "variance", choice.FIRST, "asked_accuracy")[0].verdict == "above 0"


def test_what_is_printed_names_the_detectable_effect_and_unknown_times(capsys):
    choice.print_results()
    printed = capsys.readouterr().out
    assert "60 labels, the first outcome: rankings of drawn prompts 0." in printed
    assert printed.count("detectable") == (len(choice.ARMS) - 1) * len(choice.FULL.labels)
    for form, rule in choice.ARMS[1:]:
        mine = [line for line in printed.splitlines() if line.startswith(f"  {form:8}{rule:12}")]
        verdicts = [line.rpartition(": ")[2] for line in mine]
        assert verdicts == [choice.against(form, rule, labels)[0].verdict for labels in choice.FULL.labels]
    assert all(f"  {form:8}not known\n" in printed for form in choice.LEARN)


def test_minutes_buy_labels_at_the_recorded_times():
    assert choice.reached("rank", None) == ""
    middle = mean_interval(choice.column("rank", "random", 60)).mean
    assert choice.reached("rank", 10.0) == f"; 10 minutes are 60 labels, accuracy {middle:.3f}"
    assert "outside of what was measured" in choice.reached("rank", 100.0)


def test_least_squares_is_the_minimum_and_ratings_learn_from_it():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 4)) + 3, rng.normal(size=30)
    weights, offset = choice.least_squares(x, y, 0.7)
    error = y - offset - x @ weights
    assert error.sum() == pytest.approx(0, abs=1e-10)
    assert x.T @ error == pytest.approx(0.7 * weights)


def test_pairs_leave_out_what_is_none():
    x = np.array([[[1.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]], [[0.0, 2.0], [1.0, 1.0]]])
    pairs = choice.pairs_of(x, 1)
    assert pairs.x.tolist() == [[1, 0], [0, 2], [1, 1]]
    assert pairs.prompts.tolist() == [0, 1, 1]
    assert pairs.weights.tolist() == [0.5] * 3
    assert choice.fit_pairs(pairs, LinearRewardConfig(folds=2), 1.0).weights[1] > 0


def test_the_probe_sees_a_change_of_a_rule_and_of_the_fit(monkeypatch):
    def probe():
        choice.probe.cache_clear()
        return {"settings": {}, "probe": dict(choice.probe("rank", "bald"))}

    before = probe()
    with monkeypatch.context() as patch:
        patch.setattr(rules, "mutual_information", lambda means, deviations: -deviations)
        assert not same_setup(before, probe())
    with monkeypatch.context() as patch:
        right = choice.posterior
        patch.setattr(choice, "posterior", lambda pairs, ridge: (right(pairs, ridge)[0], np.eye(pairs.x.shape[1])))
        assert not same_setup(before, probe())
    assert same_setup(before, probe())
