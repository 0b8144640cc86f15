"""The figures of report.html, each with the sentence that reads it, computed from the same numbers by a stated rule."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from rlhf_lab.classroom.summary import ROWS, Contrast, RunSummary, change_words, format_number
from rlhf_lab.classroom.svg import BY_MODEL, Figure, Plane, padded
from rlhf_lab.evaluation.changes import Change
from rlhf_lab.evaluation.policies import ORACLE_PARTS
from rlhf_lab.evaluation.reward_models import RewardModelReport
from rlhf_lab.maths.intervals import proportion_interval
from rlhf_lab.maths.preferences import reliability_bins
from rlhf_lab.training.history import History

CURVES = {  # column of a training history -> title, unit, factor, digits
    "kl": ("KL to the reference", "nats a reply", 1, 2),
    "entropy": ("Entropy", "nats a token", 1, 2),
    "clip_fraction": ("Clip fraction", "% of tokens", 100, 1),
    "length": ("Length of a reply", "tokens", 1, 1),
}
VERDICT_KEYS = (("better", "circle", "better"), ("worse", "diamond", "worse"), ("unclear", "square", "not decided"))
ROW_HEIGHT = 21


# -- changes --------------------------------------------------------------------------------------------------------
def change_figures(contrast: Contrast) -> list[Figure]:
    """Intervals of the differences, one unit a figure: shares in points, the true reward overall and by skill."""
    shares, rewards = [], []
    for change in contrast.changes:
        if ROWS[change.quantity][1] in ("%", "0 to 1"):
            shares.append((ROWS[change.quantity][0], change))
        elif change.quantity == "true_reward":
            rewards.append((change.skill or "all prompts", change))
    return [
        _forest(title, unit, factor, rows)
        for title, unit, factor, rows in (
            ("Shares and parts of the verdict", "difference in points of 100", 100, shares),
            ("True reward, skill by skill", "difference in true reward", 1, rewards),
        )
        if len(rows) > 1
    ]


def _forest(title: str, unit: str, factor: float, rows: Sequence[tuple[str, Change]]) -> Figure:
    known = [factor * end for _, c in rows for end in (c.interval.low, c.interval.high) if np.isfinite(end)]
    plane = Plane(
        padded([0, *known, *(factor * c.interval.mean for _, c in rows)]),
        (len(rows) - 0.5, -0.5),
        left=172,
        top=8,
        height=len(rows) * ROW_HEIGHT + 46,
    )
    plane.axes(unit, y_ticks=False)
    plane.line("zero", [0, 0], [-0.5, len(rows) - 0.5])
    for row, (label, change) in enumerate(rows):
        look, shape, _ = next((key for key in VERDICT_KEYS if key[0] == change.verdict), VERDICT_KEYS[2])
        plane.text(plane.left - 8, plane.y(row) + 4, label, "end")
        plane.across(look, row, factor * change.interval.low, factor * change.interval.high)
        plane.point(look, factor * change.interval.mean, row, shape=shape)
    plane.rows([f"{words} ({bounds})" for words, bounds in (change_words(change) for _, change in rows)])
    return Figure(title, _forest_reading(rows, factor), plane.marks, plane.height, VERDICT_KEYS)


def _forest_reading(rows: Sequence[tuple[str, Change]], factor: float) -> str:
    """How many intervals leave 0 out, on which side, and the largest of each; by the means."""
    sides = {side: [row for row in rows if row[1].verdict == side] for side in ("better", "worse")}
    counts = ", ".join(f"{len(found)} {side}" for side, found in sides.items())
    sentence = f"Of {len(rows)} intervals {sum(map(len, sides.values()))} leave 0 out: {counts}."
    for side, words in (("better", "largest gain"), ("worse", "largest loss")):
        if sides[side]:
            label, change = max(sides[side], key=lambda row: abs(row[1].interval.mean))
            mean = factor * change.interval.mean
            sentence += f" The {words}: {label} ({mean:+.{1 if factor == 100 else 2}f})."
    return sentence


# -- models ---------------------------------------------------------------------------------------------------------
def _model_keys(summary: RunSummary, models: Sequence[str]) -> list[tuple[str, str, str]]:
    order = list(summary.reports) or list(models)
    places = [order.index(model) if model in order else len(order) for model in models]
    return [(f"m{i % 6}", BY_MODEL[i % 6], summary.name(model)) for i, model in zip(places, models, strict=True)]


def parts_figure(summary: RunSummary) -> Figure | None:
    """The oracle's parts by model with their intervals; None where nothing is known."""
    models = [name for name, report in summary.reports.items() if report.helpful]
    if not models:
        return None
    keys = _model_keys(summary, models)
    known = {m: {p: bar for p in ORACLE_PARTS if (bar := getattr(summary.reports[m], p))} for m in models}
    lowest = min(bar.low for parts in known.values() for bar in parts.values())
    spread = 0.7 / max(len(models), 2)
    height = len(ORACLE_PARTS) * (14 + 13 * len(models)) + 46
    plane = Plane((min(0.9, lowest - 0.03), 1.02), (len(ORACLE_PARTS) - 0.5, -0.5), left=86, top=8, height=height)
    plane.axes("mean over held-out prompts, 0 to 1", y_ticks=False)
    titles = []
    for row, part in enumerate(ORACLE_PARTS):
        plane.text(plane.left - 8, plane.y(row) + 4, part, "end")
        texts = []
        for place, (model, (look, shape, name)) in enumerate(zip(models, keys, strict=True)):
            if bar := known[model].get(part):
                at = row + (place - (len(models) - 1) / 2) * spread
                plane.across(look, at, bar.low, bar.high)
                plane.point(look, bar.mean, at, shape=shape)
                texts.append(f"{name} {bar.mean:.3f} [{bar.low:.3f}, {bar.high:.3f}]")
        titles.append(f"{part}: " + ", ".join(texts))
    plane.rows(titles)
    best = {p: max((known[m][p].mean, m) for m in models if p in known[m]) for p in ORACLE_PARTS}
    reading = "Highest mean: " + ", ".join(f"{p} {summary.name(m)} ({mean:.2f})" for p, (mean, m) in best.items())
    reading += ". Which differences are more than chance is said above."
    return Figure("What the town's oracle says", reading, plane.marks, height, keys)


def scores_figure(summary: RunSummary, bins: int = 30) -> Figure | None:
    """Histogram of the reward model's scores by model, in % of its replies; None without scores."""
    scores = {model: np.asarray(values, float) for model, values in summary.scores.items()}
    if not scores:
        return None
    edges = np.histogram_bin_edges(np.concatenate(list(scores.values())), bins)
    shares = {m: 100 * np.histogram(values, edges)[0] / len(values) for m, values in scores.items()}
    keys = _model_keys(summary, list(scores))
    plane = Plane((edges[0], edges[-1]), (0, 1.08 * max(share.max() for share in shares.values())))
    plane.axes("score", "% of replies")
    for (look, _, _), share in zip(keys, shares.values(), strict=True):
        plane.area(look, edges.tolist(), share.tolist())
    middles = ((edges[:-1] + edges[1:]) / 2).tolist()
    plane.strips(
        middles,
        lambda i: (
            f"score {edges[i]:.2f} to {edges[i + 1]:.2f}: "
            + ", ".join(f"{name} {share[i]:.1f} %" for (_, _, name), share in zip(keys, shares.values(), strict=True))
        ),
    )
    means = ", ".join(
        f"{name} {format_number(v.mean())}" for (_, _, name), v in zip(keys, scores.values(), strict=True)
    )
    reading, last = f"Mean scores: {means}.", list(scores)[-1]
    base = summary.reference if summary.reference in scores and summary.reference != last else next(iter(scores))
    if base != last:
        above = 100 * float((scores[last] > scores[base].mean()).mean())
        reading += f" {above:.0f} % of {summary.name(last)}'s replies score above the mean of {summary.name(base)}'s."
    title = "What the reward model thinks of the replies"
    return Figure(title, reading, plane.marks, keys=[(look, "line", name) for look, _, name in keys])


# -- training -------------------------------------------------------------------------------------------------------
def training_figures(history: History | None) -> list[Figure]:
    """Score, true reward and the columns of `CURVES`, as far as the history has them."""
    if history is None or not len(history):
        return []
    names = set(history.names())
    columns = {n: history.column(n) for n in names if any(row.get(n) is not None for row in history.rows)}
    score = {"own replies": columns.get("score"), "held-out prompts": _held_out(columns, "reward_score")}
    truth = {"held-out prompts": _held_out(columns, "true_reward")}
    figures = [
        _curves("Reward model's score", "in standard deviations of its scores", score, "reward", 2),
        _curves("True reward", "-3 to 3", truth, "true", 2),
    ]
    for column, (title, unit, factor, digits) in CURVES.items():
        series = {} if column not in columns else {"": (columns[column][0], factor * columns[column][1])}
        figures.append(_curves(title, unit, series, "policy", digits))
    return [figure for figure in figures if figure is not None]


def _held_out(columns: Mapping[str, tuple], name: str) -> tuple | None:
    return columns.get(f"held_out_{name}", columns.get(name))


def _curves(title: str, unit: str, series: Mapping[str, tuple | None], look: str, digits: int) -> Figure | None:
    """Lines over the iterations, the last of the series strong, the others faint."""
    known = {label: line for label, line in series.items() if line is not None}
    if not known:
        return None
    steps = sorted({float(step) for xs, _ in known.values() for step in xs})
    values = [float(value) for _, ys in known.values() for value in ys]
    plane = Plane((steps[0], max(steps[-1], steps[0] + 1)), padded(values))
    plane.axes("iteration", unit)
    keys = []
    for label, (xs, ys) in known.items():
        strong = label == list(known)[-1]
        plane.line(look if strong else f"{look} faint", xs.tolist(), ys.tolist())
        if strong and len(xs) <= 20:
            for x, y in zip(xs.tolist(), ys.tolist(), strict=True):
                plane.point(look, x, y)
        keys.append((look if strong else f"{look} faint", "line", label))
    at = {label: dict(zip(xs.tolist(), ys.tolist(), strict=True)) for label, (xs, ys) in known.items()}

    def title_of(index: int) -> str:
        here = [(label, line[steps[index]]) for label, line in at.items() if steps[index] in line]
        texts = [f"{label} {value:.{digits}f}".strip() for label, value in here]
        return f"iteration {steps[index]:g}: " + ", ".join(texts)

    plane.strips(steps, title_of)
    last = list(known)[-1]
    xs, ys = known[last]
    reading = _curve_reading(xs, ys, digits, last)
    return Figure(title, reading, plane.marks, keys=keys if len(keys) > 1 else ())


def _curve_reading(steps: np.ndarray, values: np.ndarray, digits: int, label: str) -> str:
    """From where to where, and the highest and the lowest value where they are neither end."""
    first, last = (format_number(float(value), digits) for value in (values[0], values[-1]))
    words = {True: "rises", False: "falls"}[bool(values[-1] > values[0])] if first != last else "stays"
    moved = f"{words} from {first} to {last}" if first != last else f"begins and ends at {first}"
    sentence = f"{f'On {label} it' if label else 'It'} {moved} (iterations {steps[0]:g} to {steps[-1]:g})"
    extremes = []
    for name, row in (("highest", int(values.argmax())), ("lowest", int(values.argmin()))):
        if row not in (0, len(values) - 1) and format_number(float(values[row]), digits) not in (first, last):
            extremes.append(f"{name} {format_number(float(values[row]), digits)} at iteration {steps[row]:g}")
    return "; ".join([sentence, *extremes]) + "."


def training_reading(history: History | None) -> str:
    """Did score and true reward part? By the held-out points: from the best true reward on to the end."""
    if history is None or not {"reward_score", "true_reward"} <= set(history.names()):
        return ""
    (_, score), (steps, truth) = history.column("reward_score"), history.column("true_reward")
    best = int(truth.argmax())
    if len(score) != len(truth):
        return ""
    if best == len(truth) - 1:
        return "Score and true reward did not part: the true reward is highest at the last point."
    lost, gained = truth[best] - truth[-1], score[-1] - score[best]
    moved = f"the true reward fell by {lost:.2f} and the score {'rose' if gained > 0 else 'fell'} by {abs(gained):.2f}"
    parted = "That is the pattern of over-optimisation" if gained > 0 else "They fell together"
    caution = "if it is more than noise: a point is one sample of replies and has no interval"
    return f"From iteration {steps[best]:g}, where the true reward is highest, to the end {moved}. {parted}, {caution}."


# -- reward model ---------------------------------------------------------------------------------------------------
def reliability_figure(quality: RewardModelReport, bins: int = 8) -> Figure:
    """How often raters agree with the reward model, by how sure it is; on the diagonal it is calibrated.

    Source: Guo et al. 2017, On Calibration of Modern Neural Networks. Chapter 09.
    """
    table = reliability_bins(torch.tensor(quality.confidence), torch.tensor(quality.agreed), 2 * bins)
    rows = zip(table.counts.tolist(), table.predicted.tolist(), table.observed.tolist(), strict=True)
    shares = [(100 * x, proportion_interval(min(y, 1.0) * count, count)) for count, x, y in rows if count]
    plane = Plane((48, 102), (min(40, *(100 * share.low - 4 for _, share in shares)), 104))
    plane.axes("the model's confidence in its choice, %", "raters who agree, %")
    plane.line("zero", [50, 100], [50, 100])
    plane.line("reward", [x for x, _ in shares], [100 * share.mean for _, share in shares])
    for x, share in shares:
        plane.upright("reward", x, 100 * share.low, 100 * share.high)
        plane.point("reward", x, 100 * share.mean)
    plane.strips(
        [x for x, _ in shares],
        lambda i: (
            f"says {shares[i][0]:.0f} %, is right in {100 * shares[i][1].mean:.0f} % "
            f"[{100 * shares[i][1].low:.0f}, {100 * shares[i][1].high:.0f}] of {shares[i][1].count} pairs"
        ),
    )
    keys = [("reward", "circle", "held-out pairs, with 95 % intervals"), ("zero", "line", "calibrated")]
    title = "Is the reward model as sure as it should be?"
    return Figure(title, confidence_reading(quality), plane.marks, keys=keys)


def confidence_reading(quality: RewardModelReport) -> str:
    """Over-confident where the mean confidence lies above the 95 % interval of the share of labels it agrees with,
    under-confident where it lies below, and neither where it lies inside."""
    says, right = sum(quality.confidence) / len(quality.confidence), quality.accuracy
    found = f"on average it says {100 * says:.0f} % and is right in {100 * right.mean:.0f} %"
    bounds = f"[{100 * right.low:.0f}, {100 * right.high:.0f}]"
    if says > right.high:
        return f"The reward model is over-confident: {found} {bounds} of {len(quality.agreed)} held-out pairs."
    if says < right.low:
        return f"The reward model is under-confident: {found} {bounds} of {len(quality.agreed)} held-out pairs."
    return f"As sure as it should be, as far as {len(quality.agreed)} held-out pairs tell: {found} {bounds}."
