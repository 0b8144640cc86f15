"""One function a figure: arrays or a History and an Axes go in, the Axes comes out.

Colours are from the Okabe-Ito palette, one per quantity through the whole series, always with a line style or
a hatch beside it, so that colour is never the only cue. Lines are labelled where they end, not in a legend.

    plots.use_style()                 once, in a notebook's set-up cell
    fig, ax = plt.subplots()
    plots.reward_curves(ax, result.history)
    plots.show("score and true reward over 30 iterations; both rise")
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.style import context as style_context
from matplotlib.ticker import MaxNLocator
from matplotlib.typing import LineStyleType

from rlhf_lab.evaluation.policies import ORACLE_PARTS, ModelReport
from rlhf_lab.evaluation.reward_models import Calibration
from rlhf_lab.maths.intervals import mean_interval, proportion_interval
from rlhf_lab.maths.preferences import reliability_bins
from rlhf_lab.training.history import History

STYLE = Path(__file__).with_name("rlhf_lab.mplstyle")
COLOURS = {  # Okabe-Ito
    "policy": "#0072B2",
    "reference": "#7F7F7F",
    "reward": "#D55E00",
    "value": "#009E73",
    "true": "#000000",
    "other": "#CC79A7",
}
LINES: dict[str, LineStyleType] = {
    "policy": "-",
    "reference": (0, (4, 2)),
    "reward": "-",
    "value": (0, (5, 1, 1, 1)),
    "true": (0, (6, 1.5)),
}
Look = tuple[str, str, str, str, LineStyleType]  # label, face of a bar, hatch, line colour, line style
MODELS: dict[str, Look] = {  # key of a report -> how it is drawn
    "base": ("base", "#FFFFFF", "////", "#A0A0A0", ":"),
    "sft": ("SFT", "#B5B5B5", "", "#6E6E6E", (0, (4, 2))),
    "rlhf": ("RLHF", "#0072B2", "", "#0072B2", "-"),
}
OTHER_MODEL = ("#CC79A7", "..", "#CC79A7", (0, (5, 1, 1, 1)))
CURVES = {  # column of a training history -> title, label of the y axis, quantity
    "kl": ("KL to the reference", "nats per reply", "policy"),
    "entropy": ("Entropy", "nats per token", "policy"),
    "clip_fraction": ("Clip fraction", "% of tokens", "policy"),
    "length": ("Length of a reply", "tokens", "policy"),
    "loss": ("Loss", "nats per token", "policy"),
    "explained_variance": ("Explained variance of the values", "share", "value"),
    "kl_coef": ("KL coefficient", "reward per nat", "reference"),
}
PAPER = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.8}  # behind text
SHARES = ("clip_fraction",)  # columns drawn in %


def use_style() -> None:
    """Set the style of the series for everything drawn from here on."""
    matplotlib.style.use(STYLE)


def style() -> AbstractContextManager[None]:
    """The same style inside a `with` block."""
    return style_context(STYLE)


def show(alt: str, figure: Figure | None = None) -> None:
    """Show a figure in a notebook with a text for readers without the picture, and close it.

    Args:
        alt: what there is to see, in a sentence or two; becomes the image's alternative text.
        figure: the current one if None.

    Raises:
        ValueError: alt is empty.
    """
    if not alt.strip():
        raise ValueError("alt is empty; expected a sentence that carries the message of the figure")
    figure = plt.gcf() if figure is None else figure
    display(figure, metadata={"image/png": {"alt": alt}})
    plt.close(figure)


# -- curves of a run -----------------------------------------------------------------------------------------
def reward_curves(ax: Axes, history: History) -> Axes:
    """Score of the reward model and true reward: when they part, the measure has become the target.

    Points are held-out prompts: columns held_out_reward_score and held_out_true_reward (as in
    `ModelReport.means`) or reward_score and true_reward. The column score, of each iteration's own replies, is
    drawn faint beside points. What the history lacks is left out: there is no oracle for foreign prompts.

    Raises:
        ValueError: none of the columns is there.
    """
    proxy, true = _first(history, "reward_score"), _first(history, "true_reward")
    lines = []
    if _has(history, "score"):
        alpha, width = (0.35, 1.1) if proxy else (1.0, 1.5)
        ax.plot(*history.column("score"), color=COLOURS["reward"], alpha=alpha, linewidth=width)
        if not proxy:
            label = "reward model's score" + (", training prompts" if true else "")
            lines.append((*history.column("score"), label, COLOURS["reward"]))
    rows = [(proxy, "reward model's score", "reward", "o"), (true, "true reward", "true", "s")]
    for column, label, quantity, marker in rows:
        if column:
            steps, values = history.column(column)
            ax.plot(steps, values, color=COLOURS[quantity], linestyle=LINES[quantity], marker=marker, markersize=4)
            lines.append((steps, values, label, COLOURS[quantity]))
    if not lines:
        raise ValueError("history has none of the columns score, reward_score and true_reward")
    _label_ends(ax, lines)
    ax.set(title="Reward, measured and true", xlabel="iteration", ylabel="reward, each in its own unit")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return ax


def history_curve(ax: Axes, history: History, column: str, target: float | None = None) -> Axes:
    """One column of a history over its steps, with title and unit from `CURVES`.

    Args:
        target: draws a level, such as the KL that the controller aims at.
    """
    if not _has(history, column):
        raise ValueError(f"history has no column {column!r} to draw")
    title, unit, quantity = CURVES.get(column, (column.replace("_", " "), "", "policy"))
    steps, values = history.column(column)
    values = np.asarray(values) * (100 if column in SHARES else 1)
    ax.plot(steps, values, color=COLOURS[quantity], linestyle=LINES[quantity])
    if target is not None:
        ax.axhline(target, color=COLOURS["reference"], linestyle=LINES["reference"], linewidth=1.2)
        _write(ax, "target", (steps[0], target), 3, ha="left", va="bottom", color="#666666")
    if column in ("kl", "length", *SHARES):
        ax.set_ylim(bottom=min(0, *values))
    ax.set(title=title, xlabel="iteration", ylabel=unit)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return ax


def training_curves(axes: Sequence[Axes], history: History, kl_target: float | None = None) -> Sequence[Axes]:
    """Five panels: reward (measured and true), KL, entropy, clip fraction, length."""
    reward_curves(axes[0], history)
    for ax, column in zip(axes[1:], ("kl", "entropy", "clip_fraction", "length"), strict=True):
        history_curve(ax, history, column, kl_target if column == "kl" else None)
    return axes


def loss_curve(
    ax: Axes, history: History, column: str = "loss", held_out: str = "held_out_loss", smooth: int = 15
) -> Axes:
    """A loss over steps: each step faint, the mean of the last `smooth` strong, held-out points on top."""
    steps, values = history.column(column)
    ax.plot(steps, values, color=COLOURS["policy"], alpha=0.3, linewidth=0.9)
    width = min(smooth, len(values))
    means = np.convolve(values, np.full(width, 1 / width), mode="valid")
    ax.plot(steps[width - 1 :], means, color=COLOURS["policy"])
    lines = [(steps[width - 1 :], means, "training", COLOURS["policy"])]
    if _has(history, held_out):
        points = history.column(held_out)
        ax.plot(*points, color=COLOURS["true"], linestyle=LINES["true"], marker="s", markersize=4)
        lines.append((*points, "held out", COLOURS["true"]))
    _label_ends(ax, lines)
    ax.set(title="Loss", xlabel="step", ylabel="nats per token")
    return ax


# -- reward model --------------------------------------------------------------------------------------------
def reliability_diagram(ax: Axes, confidence: Sequence[float], agreed: Sequence[float], bins: int = 8) -> Axes:
    """How often raters agree with the reward model, by how sure it is; on the diagonal it is calibrated.

    Args:
        confidence: [N] probability that the model gives to its own choice, in [1/2, 1].
        agreed: [N] 1 where the label agreed with it, 0 where not.
        bins: of equal width between 1/2 and 1; the number under each point is how many pairs are in it, the
            bar its 95 % interval.

    Source: Guo et al. 2017, On Calibration of Modern Neural Networks. Chapter 09.
    """
    sure, right = np.asarray(confidence, float), np.asarray(agreed, float)
    if sure.shape != right.shape or sure.ndim != 1 or not len(sure):
        raise ValueError(f"confidence and agreed must pair up, got {sure.shape} and {right.shape}")
    if not ((sure >= 0.5) & (sure <= 1)).all():
        raise ValueError("confidence must be in [1/2, 1]: the probability of the choice that the model makes")
    table = reliability_bins(torch.tensor(sure), torch.tensor(right), 2 * bins)
    ax.plot([50, 100], [50, 100], color=COLOURS["reference"], linestyle=LINES["reference"], linewidth=1.2)
    ax.text(92, 98, "calibrated", ha="right", color="#666666")
    rows = zip(table.counts.tolist(), table.predicted.tolist(), table.observed.tolist(), strict=True)
    shares = [(x, proportion_interval(y * count, count)) for count, x, y in rows if count]
    for x, share in shares:
        at = (100 * x, 100 * share.low)
        _write(ax, f"{share.count}", at, -3, va="top", fontsize=8, color="#666666")
    x, y, low, high = 100 * np.array([(x, share.mean, share.low, share.high) for x, share in shares]).T
    ax.errorbar(x, y, [y - low, high - y], color=COLOURS["reward"], marker="o", markersize=5, elinewidth=1.1)
    ax.set(xlim=(48, 102), ylim=(min(40, *(low - 8)), 104), title="Is the reward model as sure as it should be?")
    ax.set(xlabel="the model's confidence in its choice, %", ylabel="raters who agree, %")
    return ax


def score_histogram(ax: Axes, scores: Mapping[str, Sequence[float]], bins: int = 30) -> Axes:
    """Scores of the replies of several models (keys as in `MODELS`) on one axis, with their means."""
    edges = np.histogram_bin_edges(np.concatenate([np.asarray(s, float) for s in scores.values()]), bins).tolist()
    weights = {key: np.full(len(values), 100 / len(values)) for key, values in scores.items()}
    top = max(np.histogram(values, edges, weights=weights[key])[0].max() for key, values in scores.items())
    for row, (key, values) in enumerate(scores.items()):
        label, _, _, colour, line = _model(key)
        share = weights[key]
        ax.hist(values, edges, weights=share, histtype="stepfilled", color=colour, alpha=0.13)
        ax.hist(values, edges, weights=share, histtype="step", color=colour, linestyle=line, linewidth=1.6)
        mean, height = float(np.mean(values)), top * (1.06 + 0.1 * row)  # a row each: labels never meet
        ax.plot([mean, mean], [0, height], color=colour, linestyle=line, linewidth=0.9)
        _write(ax, f"{label}, mean {mean:.2f}", (mean, height), 1, va="bottom", color=colour)
    ax.set_ylim(0, top * (1.12 + 0.1 * len(scores)))
    ax.set(title="What the reward model thinks of the replies", xlabel="score", ylabel="% of replies")
    return ax


# -- comparisons ---------------------------------------------------------------------------------------------
def parts_chart(ax: Axes, reports: Mapping[str, ModelReport], parts: Sequence[str] = ORACLE_PARTS) -> Axes:
    """Parts of the true reward by model, 0 to 1, as bars with 95 % intervals; the unknown is left out."""
    width = 0.8 / len(reports)
    for i, (key, report) in enumerate(reports.items()):
        label, face, hatch, _, _ = _model(key)
        shift = (i - (len(reports) - 1) / 2) * width
        known = [(p + shift, getattr(report, part)) for p, part in enumerate(parts) if getattr(report, part)]
        for x, share in known:
            errors = [[share.mean - share.low], [share.high - share.mean]]
            ax.bar(x, share.mean, width * 0.9, color=face, hatch=hatch, edgecolor="#666666", linewidth=0.8)
            ax.errorbar(x, share.mean, errors, ecolor="#222222", elinewidth=1.1, capsize=2)
        for x, share in known[:1]:
            _write(ax, label, (x, share.high), 3, va="bottom", fontsize=8.5)
    ax.set_xticks(range(len(parts)), parts)
    ax.tick_params(axis="x", length=0)
    ax.set(title="What the town's oracle says", ylabel="mean over held-out prompts", ylim=(0, 1.12))
    ax.set_yticks(np.linspace(0, 1, 6))
    return ax


def paired_differences(ax: Axes, differences: Mapping[str, Sequence[float]], unit: str = "true reward") -> Axes:
    """Differences by seed as dots, their mean and 95 % t-interval below them, and the line of no difference.

    Args:
        differences: label -> [n] differences, one a seed (each already paired).
    """
    ax.axvline(0, color=COLOURS["reference"], linestyle=LINES["reference"], linewidth=1.2)
    for row, values in enumerate(differences.values()):
        interval = mean_interval(values)
        spread = row - 0.16 + 0.1 * np.linspace(-1, 1, len(values))
        ax.plot(values, spread, "o", color=COLOURS["policy"], alpha=0.55, markersize=5, markeredgewidth=0)
        if interval.count > 1:
            ax.plot([interval.low, interval.high], [row + 0.12] * 2, color=COLOURS["true"])
        ax.plot(interval.mean, row + 0.12, "D", color=COLOURS["true"], markersize=5)
        text = f"{interval.mean:+.2f} [{interval.low:.2f}, {interval.high:.2f}], {interval.verdict}"
        _write(ax, text, (interval.mean, row + 0.12), -6, va="top", fontsize=8.5, color="#444444")
    ax.set_yticks(range(len(differences)), list(differences))
    ax.set(title="Difference by seed", xlabel=f"difference in {unit}", ylim=(len(differences) - 0.35, -0.55))
    ax.margins(x=0.12)
    ax.grid(axis="y", visible=False)
    return ax


def number_table(ax: Axes, table: np.ndarray, names: Sequence[str], low: float = 0.0, high: float = 1.0) -> Axes:
    """A square table of numbers, such as the agreement of every two raters: written out, over a shade of grey.

    Args:
        table: [n, n]; NaN stays blank.
        names: of rows and columns, n of them.
        low, high: the numbers of the lightest and the darkest shade.
    """
    ax.imshow(table, cmap="Greys", vmin=low, vmax=high + 0.7 * (high - low))  # dark text reads on every shade
    for row, column in zip(*np.nonzero(~np.isnan(table)), strict=True):
        text = f"{table[row, column]:.2f}".replace("-0.00", "0.00").replace("-", "\N{MINUS SIGN}")
        ax.text(column, row, text, ha="center", va="center", fontsize=8, color=COLOURS["true"])
    ax.set_xticks(range(len(names)), names, rotation=45, ha="right")
    ax.set_yticks(range(len(names)), names)
    ax.tick_params(length=0)
    ax.grid(visible=False)
    return ax


def calibration_diagram(ax: Axes, table: Calibration) -> Axes:
    """Of the pairs to which a model gives P(left) = x, the share in which left is preferred, with 95 % intervals.

    On the diagonal it is calibrated; `reliability_diagram` draws the confidence in the model's own choice instead.
    Chapter 09.
    """
    x, y = 100 * np.array(table.predicted), 100 * np.array([share.mean for share in table.observed])
    low, high = (100 * np.array([getattr(share, end) for share in table.observed]) for end in ("low", "high"))
    ax.plot([0, 100], [0, 100], color=COLOURS["reference"], linestyle=LINES["reference"], linewidth=1.2)
    ax.text(97, 4, "dashed: calibrated", ha="right", va="bottom", color="#666666")
    ax.errorbar(x, y, [y - low, high - y], color=COLOURS["reward"], marker="o", markersize=5, elinewidth=1.1)
    ax.set(xlabel="P(left is preferred) by the model, %", ylabel="left is preferred, %", xlim=(0, 100), ylim=(0, 100))
    return ax


def accuracy_curve(
    ax: Axes, counts: Sequence[float], runs: Sequence[Sequence[float]], levels: Mapping[str, float], label: str
) -> Axes:
    """Accuracy against steps or labels: a dot a run, their mean, the 95 % band of the mean; levels to compare with.

    Args:
        counts: [n] along the x axis.
        runs: [seeds][n] accuracies in [0, 1]; of a single run there is no band.
        levels: name -> accuracy, each a dashed line with its name.
        label: of the curve.

    Chapter 09.
    """
    table = 100 * np.array(runs, float)
    bars = [mean_interval(column) for column in table.T]
    if len(table) > 1:
        low, high = [i.low for i in bars], [i.high for i in bars]
        ax.fill_between(counts, low, high, color=COLOURS["reward"], alpha=0.15, lw=0)
        for row in table:
            ax.plot(counts, row, ".", color=COLOURS["reward"], alpha=0.5)
    middle = [i.mean for i in bars]
    ax.plot(counts, middle, color=COLOURS["reward"], marker="o", markersize=4)
    lowest = float(table[:, -2:].min())  # the label stands below the last two columns
    _write(ax, label, (counts[-1], lowest), -8, ha="right", va="top", color=COLOURS["reward"])
    for name, level in levels.items():
        ax.axhline(100 * level, color=COLOURS["reference"], linestyle=LINES["reference"], linewidth=1.2)
        _write(ax, name, (counts[-1], 100 * level), 3, ha="right", va="bottom", color="#666666")
    ax.set_ylabel("% of pairs")
    return ax


def number_map(ax: Axes, table: np.ndarray | torch.Tensor) -> Axes:
    """Numbers on a map of cells [rows, columns], written out over a shade of grey.

    Chapter 09.
    """
    grid = np.asarray(table, float)
    ax.imshow(grid, cmap="Greys", vmin=grid.min(), vmax=grid.max() + 1.2 * max(float(np.ptp(grid)), 1e-9))
    for (row, column), number in np.ndenumerate(grid):
        text = f"{number:.1f}".replace("-0.0", "0.0").replace("-", "\N{MINUS SIGN}")
        ax.text(column, row, text, ha="center", va="center", fontsize=8.5, color=COLOURS["true"])
    ax.set(xticks=[], yticks=[])
    ax.grid(visible=False)
    return ax


# -- helpers -------------------------------------------------------------------------------------------------
def _has(history: History, column: str) -> bool:
    return any(row.get(column) is not None for row in history.to_list())


def _first(history: History, name: str) -> str | None:
    """The column of held-out prompts of that name, with or without the prefix."""
    return next((column for column in ("held_out_" + name, name) if _has(history, column)), None)


def _model(key: str) -> Look:
    """(label, face, hatch, line colour, line style) of a model."""
    return MODELS.get(key) or (key, *OTHER_MODEL)


def _write(ax: Axes, text: str, at: tuple[float, float], up: float, **look: Any) -> None:
    """Text `up` points above a place of the data, centred, on paper so that lines do not run through it."""
    look = {"ha": "center", "bbox": PAPER} | look
    ax.annotate(text, at, xytext=(0, up), textcoords="offset points", **look)


def _label_ends(ax: Axes, lines: Sequence[tuple[np.ndarray, np.ndarray, str, str]]) -> None:
    """Write each label inside the axes at its line's end: above it, below it for the lowest of several."""
    ax.margins(y=0.14)
    lines = sorted(lines, key=lambda line: line[1][-1], reverse=True)
    for place, (steps, values, label, colour) in enumerate(lines):
        below = place > 0 and place == len(lines) - 1
        look = {"ha": "right", "va": "top" if below else "bottom", "color": colour}
        _write(ax, label, (steps[-1], values[-1]), -8 if below else 8, **look)
