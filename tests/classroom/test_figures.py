"""The figures of the report: where marks lie, and what the sentence below them says, by hand."""

import math
import re

import numpy as np
import pytest

from rlhf_lab.classroom.figures import (
    change_figures,
    confidence_reading,
    parts_figure,
    reliability_figure,
    scores_figure,
    training_figures,
    training_reading,
)
from rlhf_lab.classroom.summary import Contrast, RunSummary
from rlhf_lab.classroom.svg import Plane, padded, ticks
from rlhf_lab.evaluation.changes import Change
from rlhf_lab.evaluation.policies import ModelReport
from rlhf_lab.evaluation.reward_models import evaluate_reward_model
from rlhf_lab.maths.intervals import Interval, Share
from rlhf_lab.training.history import History


def titles(figure):
    return [mark.title for mark in figure.marks if mark.title]


def bar(mean, half=0.05):
    return Interval(mean, mean - half, mean + half, 100)


# ---- the plane ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3, 3), (0, 1e-4), (-1e6, 1e7), (2.2, 2.201), (-0.013, 0.4)])
def test_ticks_are_round_few_and_inside(low, high):
    found = ticks(low, high)
    assert 2 <= len(found) <= 11
    assert all(low - 1e-9 <= value <= high * (1 + 1e-12) + 1e-12 for value in found)
    steps = np.diff(found)
    assert np.allclose(steps, steps[0])
    digits = f"{steps[0]:.0e}"[0]
    assert digits in "125"


def test_a_plane_turns_data_into_places():
    plane = Plane((0, 10), (0, 2), left=50, right=20, top=10, bottom=40, height=250)
    assert (plane.x(0), plane.x(10), plane.x(5)) == (50, 380, 215)
    assert (plane.y(0), plane.y(2), plane.y(1)) == (210, 10, 110)
    plane.line("policy", [0, 10], [0, 2])
    assert plane.marks[-1].attributes == {"class": "line policy", "d": "M50 210L380 10"}
    plane.strips([0, 5, 10], lambda i: f"at {i}")
    strips = [mark.attributes for mark in plane.marks if mark.tag == "rect"]
    assert [(s["x"], s["width"]) for s in strips] == [(50, 82.5), (132.5, 165), (297.5, 82.5)]
    plane.across("better", 1, -5, math.inf)
    assert plane.marks[-1].attributes["d"] == "M50 110L380 110"  # cut at the edges


def test_a_range_is_never_empty():
    for values in ([2.0], [0.0, 0.0], [-1.0, 1.0]):
        low, high = padded(values)
        assert low < min(values) <= max(values) < high


# ---- changes -----------------------------------------------------------------------------------------------


def test_the_forest_reads_counts_and_the_largest():
    rows = [
        Change("helpful", "", 0.5, 0.7, bar(0.2)),
        Change("harmless", "", 0.5, 0.8, bar(0.3)),
        Change("truthful", "", 0.9, 0.8, bar(-0.1)),
        Change("rude", "", 0.2, 0.2, bar(0.0)),
        Change("length", "", 9, 8, bar(-1.0)),
    ]
    (figure,) = change_figures(Contrast("a", "b", rows))
    assert figure.reading == (
        "Of 4 intervals 3 leave 0 out: 2 better, 1 worse. The largest gain: harmless (+30.0). "
        "The largest loss: truthful (-10.0)."
    )
    assert titles(figure)[2] == "truthful fell from 0.90 to 0.80 (-0.100 [-0.150, -0.050])"
    looks = [m.attributes["class"] for m in figure.marks if m.attributes["class"].startswith("point")]
    assert looks == ["point better", "point better", "point worse", "point unclear"]
    assert change_figures(Contrast("a", "b", rows[4:])) == []


def test_a_forest_bears_intervals_without_ends():
    rows = [Change("helpful", "", 0, 1, Interval(1, -math.inf, math.inf, 1))] * 2
    (figure,) = change_figures(Contrast("a", "b", rows))
    assert "nan" not in str(figure.marks)
    assert "inf" not in "".join(str(m.attributes) for m in figure.marks)


# ---- models ------------------------------------------------------------------------------------------------


def test_parts_name_the_highest_and_take_any_number_of_models():
    reports = {f"m{i}": ModelReport(helpful=Share(i / 10, i / 10 - 0.01, i / 10 + 0.01, 50)) for i in range(9)}
    known = {"helpful", "truthful", "harmless", "form"}
    full = {n: ModelReport(**dict.fromkeys(known, r.helpful)) for n, r in reports.items()}
    figure = parts_figure(RunSummary(full, {}, {}, names={"m8": "the last"}))
    assert "helpful the last (0.80)" in figure.reading
    assert len(figure.keys) == 9
    assert "m3 0.300 [0.290, 0.310]" in titles(figure)[0]
    assert parts_figure(RunSummary({"x": ModelReport()}, {}, {})) is None


def test_scores_are_shares_and_read_against_the_reference():
    reports = dict.fromkeys(("base", "sft", "rlhf"), ModelReport())
    scores = {"base": [-1.0, -1.0], "sft": [0.0, 1.0], "rlhf": [0.0, 2.0, 2.0, 2.0]}
    figure = scores_figure(RunSummary(reports, {}, {}, reference="sft", scores=scores))
    assert figure.reading == (
        "Mean scores: base -1.00, sft 0.50, rlhf 1.50. 75 % of rlhf's replies score above the mean of sft's."
    )
    shares = [float(x) for title in titles(figure) for x in re.findall(r"rlhf ([\d.]+) %", title)]
    assert sum(shares) == pytest.approx(100)
    alone = scores_figure(RunSummary({}, {}, {}, scores={"a": [1.0, 1.0]}))
    assert alone.reading == "Mean scores: a 1.00."


# ---- training ----------------------------------------------------------------------------------------------


def run(scores, truths):
    history = History()
    for step, (score, truth) in enumerate(zip(scores, truths, strict=True)):
        history.add(step, reward_score=score, true_reward=truth, kl=float(step), clip_fraction=0.25)
    return history


def test_curves_say_from_where_to_where():
    figures = {figure.title: figure for figure in training_figures(run([0.0, 1.0, 2.0], [1.0, 3.0, 2.0]))}
    assert list(figures) == ["Reward model's score", "True reward", "KL to the reference", "Clip fraction"]
    assert figures["True reward"].reading == (
        "On held-out prompts it rises from 1.00 to 2.00 (iterations 0 to 2); highest 3.00 at iteration 1."
    )
    assert figures["Clip fraction"].reading == "It begins and ends at 25.0 (iterations 0 to 2)."
    assert titles(figures["KL to the reference"])[1] == "iteration 1: 1.00"
    assert training_figures(None) == training_figures(History()) == []


@pytest.mark.parametrize(
    ("scores", "truths", "words"),
    [
        ([0, 1, 2], [1, 2, 3], "did not part: the true reward is highest at the last point"),
        (
            [0, 1, 2],
            [1, 3, 2],
            "From iteration 1, .* fell by 1.00 and the score rose by 1.00. That is the pattern of",
        ),
        ([0, 2, 1], [1, 3, 2], "fell by 1.00 and the score fell by 1.00. They fell together"),
    ],
)
def test_whether_score_and_truth_parted(scores, truths, words):
    assert re.search(words, training_reading(run(scores, truths)))


def test_nothing_is_said_of_what_is_not_known():
    history = History()
    history.add(0, score=1.0)
    assert training_reading(history) == training_reading(None) == ""
    assert [figure.title for figure in training_figures(history)] == ["Reward model's score"]


# ---- reward model ------------------------------------------------------------------------------------------


def quality(difference, right, count=400):
    """Pairs that a model is equally sure of, of which it has a share right."""
    chosen = [difference if i < right * count else 0.0 for i in range(count)]
    rejected = [0.0 if i < right * count else difference for i in range(count)]
    return evaluate_reward_model(chosen, rejected)


@pytest.mark.parametrize(
    ("says", "right", "words"),
    [
        (0.9, 0.74, r"is over-confident: on average it says 90 % and is right in 74 % \[69, 78\] of 400"),
        (0.6, 0.74, r"is under-confident: on average it says 60 % and is right in 74 %"),
        (0.75, 0.74, r"As sure as it should be, as far as 400 held-out pairs tell: on average it says 75 %"),
    ],
)
def test_confidence_is_read_by_the_stated_rule(says, right, words):
    found = quality(math.log(says / (1 - says)), right)
    assert re.search(words, confidence_reading(found))
    figure = reliability_figure(found)
    assert titles(figure) == [f"says {100 * says:.0f} %, is right in 74 % [69, 78] of 400 pairs"]
