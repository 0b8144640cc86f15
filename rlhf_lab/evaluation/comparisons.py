"""Blind comparison of two models: who wins, with an interval, and who would win at equal length.

Judgements become outcomes of one model against another, a row a prompt: 1 it won, 1/2 a tie, 0 it lost. Several
judgements of a prompt share the prompt and are averaged first, so that rows are independent. The length-controlled win
rate asks what is left of the preference where both replies are equally long. Left out: more than two models at once,
which Bradley-Terry (`maths.preferences`, `feedback.aggregation`) puts on one scale.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, ndtri

from rlhf_lab.maths.intervals import Interval, Numbers, Share, check_level, finite, mean_interval, outcome_interval
from rlhf_lab.maths.power import detectable_win_rate
from rlhf_lab.records import Choice
from rlhf_lab.training.configs import require

Length = Callable[[str], float]
FEWEST = 10  # rows for a regression; its interval is checked at 50 and 400
NARROWEST = 0.01  # span of tanh(difference / scale), which lies in [-1, 1]; less has no slope to speak of
STEPS = 100  # of Newton; some eight are used


@dataclass(frozen=True, eq=False)
class Outcomes:
    """How one model did against another, a row a prompt.

    Attributes:
        outcomes: [P] in [0, 1], 1 where the model won, 1/2 a tie, 0 where it lost; the mean over the prompt's
            judgements.
        lengths: [P] length of its reply less that of the other's, averaged likewise.
        judgements: from how many.
    """

    outcomes: np.ndarray
    lengths: np.ndarray
    judgements: int


@dataclass(frozen=True)
class LengthFit:
    """How the outcome depends on the difference of lengths; `win_rate_at(0)` is the length-controlled win rate.

    Attributes:
        intercept: logit of the win rate at equal length.
        slope: by how much the logit grows per unit of tanh(difference / scale); above 0 where length helps.
        scale: standard deviation of the differences, in their unit.
        covariance: [2][2] of intercept and slope.
        count: rows.
    """

    intercept: float
    slope: float
    scale: float
    covariance: tuple[tuple[float, float], tuple[float, float]]
    count: int

    def win_rate_at(self, difference: float = 0.0, level: float = 0.95) -> Interval:
        """Win rate where the model's replies are longer by `difference`, by the delta method on the logit."""
        check_level(level)
        direction = np.array([1.0, math.tanh(difference / self.scale)])
        logit = self.intercept + self.slope * direction[1]
        half = float(ndtri((1 + level) / 2)) * math.sqrt(direction @ np.array(self.covariance) @ direction)
        mean, low, high = (float(expit(x)) for x in (logit, logit - half, logit + half))
        return Share(mean, low, high, self.count)


@dataclass(frozen=True)
class WinRateReport:
    """What a blind comparison found.

    Attributes:
        win_rate: of the first model, a tie counted half.
        length_controlled: the same at equal length; None where it cannot be estimated.
        reason: why not; "" where it can.
        extrapolated: True where all differences of length have one sign, so that no reply was seen near equal length
            and the number rests on the form of the curve.
        wins, ties, losses: prompts with an outcome above, at and below one half.
        length: mean length of the model's reply less that of the other's.
        detectable: the win rate that as many prompts with as many ties find with probability 80 %; infinity where none.
        judgements: from how many.
    """

    win_rate: Interval
    length_controlled: Interval | None
    reason: str
    extrapolated: bool
    wins: int
    ties: int
    losses: int
    length: Interval
    detectable: float
    judgements: int


# -- judgements to outcomes -------------------------------------------------------------------------------------------
def outcomes_of_choices(choices: Sequence[Choice], model: str, against: str, length: Length = len) -> Outcomes:
    """Outcomes of `model` against another from blind judgements, as the compare widget stores them.

    A choice names the sources of its left and right reply. Which of them stood on the left of the screen is drawn at
    random by the widget and does not matter here. All judgements of a prompt, by whomever, are averaged.

    Args:
        choices: of any pairs of models; those of another pair, or without sources, are of another comparison and do not
            count.
        model, against: names of the two sources.
        length: of a reply; its characters unless said otherwise.

    Raises:
        ValueError: no choice is between the two, or they are the same.

    Example:
        >>> first = Choice("Hi", "Hello!", "Yo.", 1, "rlhf", "sft")
        >>> again = Choice("Hi", "Yo.", "Hello!", 0, "sft", "rlhf")    # a tie, by somebody else
        >>> found = outcomes_of_choices([first, again], "rlhf", "sft")
        >>> found.outcomes.tolist(), found.lengths.tolist(), found.judgements
        ([0.75], [3.0], 2)

    Chapter 11.
    """
    require(model != against, "against", against, "another model than `model`")
    mine = [one for one in choices if (one.left_source, one.right_source) in ((model, against), (against, model))]
    if not mine:
        seen = sorted({(one.left_source, one.right_source) for one in choices})
        raise ValueError(f"choices has none between {model!r} and {against!r}; the sources are {seen!r:.200}")
    signs = [1 if one.left_source == model else -1 for one in mine]
    return _by_prompt(
        [one.prompt for one in mine],
        [(1 + sign * one.outcome) / 2 for sign, one in zip(signs, mine, strict=True)],
        [sign * (length(one.left) - length(one.right)) for sign, one in zip(signs, mine, strict=True)],
    )


def outcomes_of_scores(
    scores: Sequence[float | None],
    other_scores: Sequence[float | None],
    replies: Sequence[str],
    other_replies: Sequence[str],
    *,
    prompts: Sequence | None = None,
    tie: float = 0.0,
    length: Length = len,
) -> Outcomes:
    """Outcomes of one model against another from scores of their replies to the same prompts, row by row.

    Args:
        scores, other_scores: [N] of any judge of single replies, such as `true_rewards` or a reward model. A row with
            None on either side was not judged and is left out.
        replies, other_replies: [N] texts.
        prompts: [N], hashable; rows with the same one are averaged. None takes every row for a prompt of its own.
        tie: scores that differ by no more than this tie, at least 0.
        length: of a reply; its characters unless said otherwise.

    Raises:
        ValueError: lists of different lengths, a score that is not finite, or no row with both scores.

    Example:
        >>> found = outcomes_of_scores([2.0, 1.0, None], [1.0, 1.0, 0.0], ["ab", "c", "d"], ["a", "c", "d"])
        >>> found.outcomes.tolist(), found.lengths.tolist()
        ([1.0, 0.5], [1.0, 0.0])

    Chapter 11.
    """
    asked = range(len(scores)) if prompts is None else prompts
    sizes = [len(column) for column in (scores, other_scores, replies, other_replies, asked)]
    require(len(set(sizes)) == 1, "the number of scores, replies and prompts", sizes, "one number, a row each")
    require(0 <= tie < math.inf, "tie", tie, "a difference of scores, at least 0")
    rows = [
        (prompt, a - b, length(reply) - length(other))
        for a, b, reply, other, prompt in zip(scores, other_scores, replies, other_replies, asked, strict=True)
        if a is not None and b is not None
    ]
    finite([margin for _, margin, _ in rows], "scores less other_scores, where both are known,")
    return _by_prompt(
        [prompt for prompt, _, _ in rows],
        [0.5 if abs(margin) <= tie else float(margin > 0) for _, margin, _ in rows],
        [longer for _, _, longer in rows],
    )


def _by_prompt(prompts: Sequence, outcomes: Sequence[float], lengths: Sequence[float]) -> Outcomes:
    """Means of the rows of each prompt, prompts in the order of their first row."""
    rows = defaultdict(list)
    for prompt, outcome, longer in zip(prompts, outcomes, lengths, strict=True):
        rows[prompt].append((outcome, longer))
    means = np.array([np.mean(some, axis=0) for some in rows.values()], dtype=float)  # [P, 2]
    return Outcomes(means[:, 0], means[:, 1], len(outcomes))


# -- at equal length --------------------------------------------------------------------------------------------------
def fit_length_effect(outcomes: Numbers, lengths: Numbers) -> LengthFit:
    """Logistic regression of the outcome on the difference of lengths, with a robust (sandwich) covariance.

        E[y] = expit(a + b x),    x = tanh(difference / s),    s the standard deviation of the differences
        sum_i (y_i - p_i) (1, x_i) = 0,    cov(a, b) = n / (n - 2) H^-1 (sum_i (y_i - p_i)^2 (1, x_i)(1, x_i)^T) H^-1

    with p_i = expit(a + b x_i) and H = sum_i p_i (1 - p_i) (1, x_i)(1, x_i)^T. A tie, and an average over judges, is
    an outcome between 0 and 1; the equations need only the mean of y, and the sandwich takes the variance that the
    outcomes have in place of p (1 - p), which is too large with ties. The tanh keeps a few very long replies from
    deciding the fit. Valid for some tens of independent rows.

    Args:
        outcomes: [P] in [0, 1].
        lengths: [P] differences of length, the model's less the other's, in any unit.

    Raises:
        ValueError: other sizes, outcomes outside [0, 1], fewer than 10 rows, differences that are all alike, or
            separated outcomes: where one difference of length parts all losses from all wins (or there are only wins,
            or only losses), no finite a and b fit best.

    Example:
        >>> fit = fit_length_effect([1, 1, 0, 1, 0.5, 0, 1, 0, 0, 0.5], [9, 7, -1, 2, 0, -6, -2, 3, -8, 1])
        >>> fit.slope > 0, round(fit.win_rate_at(0).mean, 2)
        (True, 0.46)

    Source: Dubois et al. 2024, Length-Controlled AlpacaEval: A Simple Way to Debias Automatic Evaluators. White 1980
    for the sandwich; Albert and Anderson 1984 for separation. Chapter 11.
    """
    y, differences = finite(outcomes, "outcomes"), finite(lengths, "lengths")
    require(len(y) == len(differences), "the number of outcomes and lengths", (len(y), len(differences)), "one number")
    require(bool(y.min() >= 0 and y.max() <= 1), "outcomes", (y.min(), y.max()), "numbers in [0, 1]")
    if len(y) < FEWEST:
        raise ValueError(f"outcomes has {len(y)} rows; expected at least {FEWEST} for a regression on length")
    scale = float(differences.std(ddof=1))
    x = np.tanh(differences / scale) if scale > 0 else np.zeros(len(y))
    _check_overlap(y, x)
    design = np.stack([np.ones(len(y)), x], axis=1)  # [P, 2]
    found = _newton(design, y)
    p = expit(design @ found)
    inverse = np.linalg.inv((design * (p * (1 - p))[:, None]).T @ design)
    scores = design * (y - p)[:, None]
    sandwich = len(y) / (len(y) - 2) * inverse @ scores.T @ scores @ inverse
    (aa, ab), (_, bb) = sandwich.tolist()
    return LengthFit(float(found[0]), float(found[1]), scale, ((aa, ab), (ab, bb)), len(y))


def length_controlled_win_rate(outcomes: Numbers, lengths: Numbers, level: float = 0.95) -> Interval:
    """Win rate predicted at equal length, with an interval: `fit_length_effect(...).win_rate_at(0)`.

        expit(a +- z sqrt(var a))

    A judge who likes long replies, whatever they say, raises the plain win rate of the model that writes more. At equal
    length this taste is gone. What else goes with length is gone too: where longer replies are better because they say
    more, this number is lower than the model deserves.

    As published it is the win rate that a logistic regression predicts at a difference of 0, with the same tanh. Ours
    is of two models alone: without the term for the difficulty of an instruction, which is learned from many models,
    without regularisation, with the standard deviation of these rows, and with an interval. Where the curve is not of
    this form, it is the value at 0 of the curve that fits best.

    The 95 % interval holds the truth in 93 to 97 % of 2,000 simulated evaluations at n = 50 and 400, with 0 to 50 %
    ties (data/results/interval_coverage.csv).

    Args:
        outcomes, lengths: as in `fit_length_effect`, whose errors it raises; `win_rate_report` gives None instead.

    Example:
        >>> y = [1, 1, 1, 0.5, 1, 0, 0, 0.5, 0, 1, 1, 0]
        >>> lengths = [20, 15, 12, 9, 8, 7, 1, 0, -3, -1, 6, 10]    # it wins, and it writes more
        >>> sum(y) / 12, round(length_controlled_win_rate(y, lengths).mean, 2)
        (0.5833333333333334, 0.4)

    Source: Dubois et al. 2024, Length-Controlled AlpacaEval. Chapter 11.
    """
    return fit_length_effect(outcomes, lengths).win_rate_at(0.0, level)


def win_rate_report(found: Outcomes, level: float = 0.95) -> WinRateReport:
    """Win rate, length-controlled win rate, and the win rate that could have been found.

    Args:
        found: of `outcomes_of_choices` or `outcomes_of_scores`.
        level: of the intervals.

    Example:
        >>> rows = [Choice(f"Say {i}", "Yes!", "No.", i % 3 - 1, "rlhf", "sft") for i in range(9)]
        >>> report = win_rate_report(outcomes_of_choices(rows, "rlhf", "sft"))
        >>> report.win_rate.verdict, report.length_controlled, report.reason
        ('INCONCLUSIVE', None, 'outcomes has 9 rows; expected at least 10 for a regression on length')

    Chapter 11.
    """
    y, lengths = finite(found.outcomes, "outcomes"), finite(found.lengths, "lengths")
    controlled, reason = None, ""
    try:
        controlled = length_controlled_win_rate(y, lengths, level)
    except ValueError as error:
        reason = str(error)
    ties = 4 * float((y * (1 - y)).mean())  # the share of ties that leaves as much variance
    return WinRateReport(
        win_rate=outcome_interval(y, level),
        length_controlled=controlled,
        reason=reason,
        extrapolated=bool(lengths.min() > 0 or lengths.max() < 0),
        wins=int((y > 0.5).sum()),
        ties=int((y == 0.5).sum()),
        losses=int((y < 0.5).sum()),
        length=mean_interval(lengths, level),
        detectable=detectable_win_rate(len(y), ties, level=level) if len(y) > 1 and ties < 1 else math.inf,
        judgements=found.judgements,
    )


def _check_overlap(y: np.ndarray, x: np.ndarray) -> None:
    """Refuse what has no finite best fit. A tie is half a win and half a loss, so it stands on both sides."""
    if x.max() - x.min() < NARROWEST:
        raise ValueError(
            f"lengths give tanh(difference / standard deviation) from {x.min():.4g} to {x.max():.4g}; expected some "
            "near 0, some not. Where one model is always longer by about as much, nothing tells length from the model"
        )
    wins, losses = x[y > 0], x[y < 1]
    if not len(wins) or not len(losses) or losses.max() <= wins.min() or wins.max() <= losses.min():
        raise ValueError(
            f"outcomes are separated: {len(wins)} rows not lost and {len(losses)} not won, parted by their length or "
            "one side empty; expected wins and losses that overlap in length. Judge more, or take the plain win rate"
        )


def _newton(design: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The [2] coefficients of largest likelihood; it is concave, so a step that is halved until it climbs arrives."""
    found, climbs = np.zeros(2), lambda at: float(y @ (design @ at) - np.logaddexp(0, design @ at).sum())
    for _ in range(STEPS):
        p = expit(design @ found)
        slope = design.T @ (y - p)
        step = np.linalg.solve((design * (p * (1 - p))[:, None]).T @ design, slope)
        if slope @ step < 1e-18 * len(y):
            return found
        while climbs(found + step) < climbs(found) and np.abs(step).max() > 1e-12:
            step = step / 2
        found = found + step
    return found
