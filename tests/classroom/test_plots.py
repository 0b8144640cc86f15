"""What is drawn is what was given: lines, bars, bins, labels, intervals; every figure renders."""

import io
from types import SimpleNamespace

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure

from rlhf_lab.classroom import plots
from rlhf_lab.evaluation.policies import ModelReport
from rlhf_lab.evaluation.reward_models import Calibration, evaluate_reward_model
from rlhf_lab.maths.intervals import Interval, mean_interval, proportion_interval
from rlhf_lab.training.history import History


def history(steps=20, held_out=True):
    run = History()
    for step in range(steps + 1):
        row = {}
        if step:
            row = {"score": 0.1 * step, "kl": 0.5 * step, "entropy": 1 - 0.01 * step, "clip_fraction": 0.2}
            row |= {"length": 20 + step, "loss": 2 / step}
        if held_out and step % 5 == 0:
            row |= {"held_out_reward_score": 0.1 * step, "held_out_true_reward": 1.0, "held_out_loss": 1.0}
        run.add(step, **row)
    return run


@pytest.fixture
def ax():
    """Axes on a figure that is rendered at the end, so that a layout that does not fit fails the test."""
    with plots.style():
        figure = Figure(layout="constrained")
        axes = figure.subplots()
        yield axes
        figure.savefig(io.BytesIO(), format="png")


def texts(ax):
    return {text.get_text() for text in ax.texts}


def test_reward_curves_show_three_different_things(ax):
    assert plots.reward_curves(ax, history()) is ax
    training, proxy, true = (line.get_xydata() for line in ax.lines)
    assert training.tolist() == [[s, pytest.approx(0.1 * s)] for s in range(1, 21)]
    assert proxy.tolist() == [[s, pytest.approx(0.1 * s)] for s in (0, 5, 10, 15, 20)]
    assert true.tolist() == [[s, 1.0] for s in (0, 5, 10, 15, 20)]
    styles = {line.get_linestyle() for line in ax.lines[1:]}
    assert len(styles) == 2  # colour is not the only cue
    assert texts(ax) == {"reward model's score", "true reward"}


def test_reward_curves_without_an_oracle(ax):
    plots.reward_curves(ax, history(held_out=False))
    assert len(ax.lines) == 1
    assert texts(ax) == {"reward model's score"}
    with pytest.raises(ValueError, match="none of the columns"):
        plots.reward_curves(ax, History())


def test_reward_curves_take_columns_without_the_prefix(ax):
    run = History()
    for step in range(3):
        run.add(step, score=step, true_reward=2 * step)
    plots.reward_curves(ax, run)
    assert [line.get_ydata().tolist() for line in ax.lines] == [[0, 1, 2], [0, 2, 4]]
    assert texts(ax) == {"reward model's score, training prompts", "true reward"}


def test_history_curve_has_unit_and_target(ax):
    plots.history_curve(ax, history(), "kl", target=6.0)
    assert ax.get_ylabel() == "nats per reply"
    assert ax.lines[0].get_ydata()[-1] == 10
    assert set(ax.lines[1].get_ydata()) == {6.0}
    assert "target" in texts(ax)
    with pytest.raises(ValueError, match="no column 'unknown'"):
        plots.history_curve(ax, history(), "unknown")


def test_a_share_is_drawn_in_per_cent(ax):
    plots.history_curve(ax, history(), "clip_fraction")
    assert set(ax.lines[0].get_ydata()) == {20.0}
    assert ax.get_ylabel() == "% of tokens"


def test_an_unnamed_column_keeps_its_name(ax):
    run = History()
    run.add(1, margin_mean=0.5)
    plots.history_curve(ax, run, "margin_mean")
    assert ax.get_title(loc="left") == "margin mean"


def test_training_curves_fill_five_panels():
    with plots.style():
        figure = Figure(layout="constrained")
        axes = figure.subplots(1, 5)
        plots.training_curves(axes, history(), kl_target=3.0)
        titles = [ax.get_title(loc="left") for ax in axes]
        figure.savefig(io.BytesIO(), format="png")
    assert titles == [
        "Reward, measured and true",
        "KL to the reference",
        "Entropy",
        "Clip fraction",
        "Length of a reply",
    ]


def test_loss_curve_is_the_running_mean(ax):
    plots.loss_curve(ax, history(), smooth=4)
    losses = [2 / step for step in range(1, 21)]
    expected = [[step, np.mean(losses[step - 4 : step])] for step in range(4, 21)]
    assert ax.lines[1].get_xydata() == pytest.approx(np.array(expected))
    assert texts(ax) == {"training", "held out"}


def test_loss_curve_of_a_short_run(ax):
    plots.loss_curve(ax, history(3, held_out=False), smooth=50)
    assert ax.lines[1].get_ydata() == pytest.approx([np.mean([2, 1, 2 / 3])])


def test_reliability_diagram_by_hand(ax):
    confidence = [0.5, 0.6, 0.7, 0.95, 1.0]
    agreed = [1.0, 0.0, 0.0, 1.0, 1.0]
    plots.reliability_diagram(ax, confidence, agreed, bins=2)
    diagonal, points = ax.lines[0].get_xydata(), ax.lines[1].get_xydata()
    assert (diagonal[:, 0] == diagonal[:, 1]).all()
    assert points == pytest.approx(np.array([[60, 100 / 3], [97.5, 100]]))
    assert texts(ax) == {"calibrated", "3", "2"}


def test_reliability_diagram_takes_a_report_with_ties_and_empty_bins(ax):
    report = evaluate_reward_model([0.0, 9.0, 1.0], [0.0, 0.0, 2.0])
    plots.reliability_diagram(ax, report.confidence, report.agreed)
    assert len(ax.lines[1].get_xydata()) == 3


@pytest.mark.parametrize(
    ("confidence", "agreed", "match"),
    [([0.4], [1], "in \\[1/2, 1\\]"), ([0.6, 0.7], [1], "pair up"), ([], [], "pair up")],
)
def test_reliability_diagram_refuses(ax, confidence, agreed, match):
    with pytest.raises(ValueError, match=match):
        plots.reliability_diagram(ax, confidence, agreed)


def test_calibration_diagram_by_hand(ax):
    observed = (proportion_interval(1, 10), proportion_interval(8, 10))
    plots.calibration_diagram(ax, Calibration((0.2, 0.7), observed, 0.1))
    diagonal, points = ax.lines[0].get_xydata(), ax.lines[1].get_xydata()
    assert (diagonal[:, 0] == diagonal[:, 1]).all()
    assert points == pytest.approx(np.array([[20, 10], [70, 80]]))
    [bars] = ax.containers
    ends = np.array([segment[:, 1] for segment in bars.lines[2][0].get_segments()])
    assert ends == pytest.approx(100 * np.array([[share.low, share.high] for share in observed]))


@pytest.mark.parametrize("runs", [[[0.6, 0.7], [0.8, 0.7]], [[0.6, 0.7]]])
def test_accuracy_curve_draws_runs_mean_band_and_levels(ax, runs):
    plots.accuracy_curve(ax, [10, 20], runs, {"best possible": 0.9}, "linear")
    *_, middle, level = [line.get_ydata() for line in ax.lines]
    assert middle == pytest.approx(100 * np.mean(runs, axis=0))
    assert set(level) == {90.0}
    assert len(ax.lines) == 2 + (len(runs) if len(runs) > 1 else 0)
    assert texts(ax) == {"linear", "best possible"}
    if len(runs) > 1:
        [band] = ax.collections
        first = mean_interval([60.0, 80.0])
        assert {first.low, first.high} <= set(band.get_paths()[0].vertices[:, 1].tolist())


def test_number_map_writes_every_cell(ax):
    plots.number_map(ax, np.array([[0.0, -1.25, -0.01], [2.0, 10.04, -10.0]]))
    written = {tuple(int(x) for x in text.get_position()): text.get_text() for text in ax.texts}
    minus = "\N{MINUS SIGN}"
    assert written == {
        (0, 0): "0.0", (1, 0): f"{minus}1.2", (2, 0): "0.0", (0, 1): "2.0", (1, 1): "10.0", (2, 1): f"{minus}10.0",
    }  # fmt: skip


def test_number_map_of_equal_numbers(ax):
    plots.number_map(ax, np.zeros((2, 2)))
    assert texts(ax) == {"0.0"}


def test_score_histogram_states_the_means(ax):
    plots.score_histogram(ax, {"sft": [0.0, 1.0, 2.0], "rlhf": [2.0, 3.0, 4.0], "other run": [0.5]})
    assert texts(ax) == {"SFT, mean 1.00", "RLHF, mean 3.00", "other run, mean 0.50"}
    heights = [text.xy[1] for text in ax.texts]
    assert len(set(heights)) == 3  # labels never meet
    assert len({line.get_color() for line in ax.lines}) == 3


def share(mean):
    return Interval(mean, mean - 0.1, mean + 0.05, 50)


def test_parts_chart_draws_what_is_known(ax):
    reports = {
        "base": ModelReport(helpful=share(0.3)),
        "rlhf": ModelReport(helpful=share(0.8), form=share(0.9)),
    }
    plots.parts_chart(ax, reports)
    assert [bar.get_height() for bar in ax.patches] == [0.3, 0.8, 0.9]
    assert [bar.get_hatch() for bar in ax.patches] == ["////", "", ""]
    ends = [collection.get_segments()[0][:, 1].tolist() for collection in ax.collections]
    assert ends == [pytest.approx([y - 0.1, y + 0.05]) for y in (0.3, 0.8, 0.9)]
    assert texts(ax) == {"base", "RLHF"}


def test_paired_differences_show_every_seed_and_the_verdict(ax):
    up, unclear = [1.0, 1.2, 1.1, 0.9], [-0.5, 0.6, 0.0]
    plots.paired_differences(ax, {"up": up, "unclear": unclear, "one seed": [0.3]})
    dots = [line.get_xdata().tolist() for line in ax.lines if line.get_marker() == "o"]
    assert dots == [up, unclear, [0.3]]
    interval = mean_interval(up)
    bars = [list(line.get_xdata()) for line in ax.lines if line.get_marker() == "None"]
    assert bars[0] == [0, 0]
    assert bars[1] == [interval.low, interval.high]
    assert len(bars) == 3  # one seed has no interval
    verdicts = [text.get_text().rsplit(", ", 1)[1] for text in ax.texts]
    assert verdicts == ["above 0", "INCONCLUSIVE", "INCONCLUSIVE"]


def test_style_is_one_file_and_stays_inside_the_block():
    before = matplotlib.rcParams["axes.spines.top"]
    with plots.style():
        assert matplotlib.rcParams["axes.spines.top"] is False
    assert matplotlib.rcParams["axes.spines.top"] == before
    with matplotlib.rc_context():
        plots.use_style()
        assert matplotlib.rcParams["axes.grid"] is True


def test_quantities_differ_in_colour_and_in_line():
    assert len(set(plots.COLOURS.values())) == len(plots.COLOURS)
    looks = [SimpleNamespace(face=m[1], hatch=m[2], colour=m[3], line=str(m[4])) for m in plots.MODELS.values()]
    assert len({look.line for look in looks}) == len({look.colour for look in looks}) == len(looks)
    assert plots.COLOURS["policy"] == plots.MODELS["rlhf"][1] == plots.MODELS["rlhf"][3]


def test_a_figure_is_shown_with_its_words_and_closed():
    figure, ax = plt.subplots()
    ax.plot([0, 1])
    with pytest.raises(ValueError, match="alt is empty"):
        plots.show("  ")
    plots.show("a line that rises")
    assert figure.number not in plt.get_fignums()
