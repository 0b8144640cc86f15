"""How many labels: what the next ones are worth, when to stop, and how many a difference takes.

All of it is about one contrast, the difference of two replies to one prompt, in the logits of a rater. Chapter 08.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from scipy.special import bdtr, expit, logit, ndtri, softmax

from rlhf_lab.feedback.aggregation import Consensus, Item
from rlhf_lab.maths.choices import Blocks, ChoiceModel, Parameters, TierChoices
from rlhf_lab.maths.intervals import Interval, check_level, mean_interval, proportion_interval
from rlhf_lab.maths.posterior import contrast_ends, copies
from rlhf_lab.records import PromptLike

FLAT = 100.0  # standard deviation of a score where the prior is to say nothing
Pair = tuple[Item | int, Item | int]


@dataclass(frozen=True)
class Narrowing:
    """What labels that are not there yet can be expected to do to an interval.

    Attributes:
        labels: how many would be asked for.
        width: of the interval now.
        expected_width: afterwards, with the interval of the mean over the draws.
        wider: chance that the interval is wider afterwards than now; the new labels may contradict the old ones.
    """

    labels: int
    width: float
    expected_width: Interval
    wider: Interval

    @property
    def narrower_by(self) -> float:
        """The expected narrowing; a part of `width`."""
        return self.width - self.expected_width.mean

    def __str__(self) -> str:
        change = (
            f"{self.labels} more labels narrow the interval from {self.width:.2f} to {self.expected_width.mean:.2f}"
        )
        return f"{change} on average; with a chance of {self.wider.mean:.0%} they widen it"


def next_labels(
    found: Consensus,
    a: Item | int,
    b: Item | int,
    design: Sequence[Pair] | None = None,
    *,
    prompt: PromptLike | int | None = None,
    level: float = 0.95,
    draws: int = 200,
    seed: int = 0,
) -> Narrowing:
    """The expected width of the interval of a contrast after more comparisons, under the posterior predictive.

    Scores are drawn from the posterior, answers to the design from the scores, and the interval is computed again with
    them; no answer is assumed. More labels need not narrow it: where ties are common, an answer against the earlier
    ones moves the difference to where answers say less. `wider` is the chance of that. What prompts share (how easily
    ties are called, raters) is held where it is.

    Args:
        found: what the labels so far say.
        a, b: the contrast, `found.contrast(a, b, prompt)`.
        design: the pairs that will be asked, one an answer, by a rater of inverse temperature 1; ten times (a, b) if
            None. A tie may be answered where ties were seen.
        level: of the interval.
        draws: of scores and answers, at least 2.
        seed: of the draws.

    Raises:
        ValueError: no such prompt or reply, an empty design, or fewer than 2 draws.

    Example:
        >>> from rlhf_lab.feedback.aggregation import consensus
        >>> from rlhf_lab.records import Choice
        >>> found = consensus([Choice("Hi", "Hello!", "Go away", 1)] * 4)
        >>> ahead = next_labels(found, "Hello!", "Go away")
        >>> ahead.expected_width.high < ahead.width, ahead.wider.mean < 0.5
        (True, True)

    Source: preposterior analysis, Raiffa and Schlaifer 1961, Applied Statistical Decision Theory. Chapter 08.
    """
    check_level(level)
    group = found.place(prompt)
    along = found.weights(a, b, group)
    pairs = [(a, b)] * 10 if design is None else list(design)
    if not pairs or draws < 2:
        raise ValueError(f"the design has {len(pairs)} pairs and there are {draws} draws; expected at least 1 and 2")
    asked = np.array([np.argsort(-found.weights(x, y, group), kind="stable")[[0, -1]] for x, y in pairs])
    model, at = found.model_of(group)
    at = replace(at, temperatures=np.append(at.temperatures, 1.0))  # the rater who will be asked
    generator = np.random.default_rng(seed)
    scores = _posterior_draws(model, at, found.covariances[group], draws, generator)
    new = _answered(model, at, asked, scores, generator)
    mode, _ = new.mode(replace(at, scores=np.tile(at.scores, draws)))
    wider = found.widening(group, along)
    now = wider * float(_widths(model, at, along, level)[0])
    after = wider * _widths(new, mode, np.tile(along, draws), level)
    return Narrowing(len(pairs), now, mean_interval(after), proportion_interval(int((after > now).sum()), draws))


def _widths(model: ChoiceModel, at: Parameters, along: np.ndarray, level: float) -> np.ndarray:
    low, high = contrast_ends(model, at, along, level)
    return high - low


def _posterior_draws(
    model: ChoiceModel, at: Parameters, covariance: np.ndarray, draws: int, generator: np.random.Generator
) -> np.ndarray:
    """[draws, replies] scores from the posterior: from a normal law around its mode, chosen again by their weights."""
    root, size = np.linalg.cholesky(covariance), len(covariance)
    normal = 1.2 * generator.standard_normal((20 * draws, size))  # a little wide, as the posterior has longer tails
    scores = at.scores + normal @ root.T
    many = copies(model, len(scores))
    weights = many.system(replace(at, scores=scores.ravel())).values + ((normal / 1.2) ** 2).sum(1) / 2
    chosen = generator.choice(len(scores), size=draws, p=softmax(weights))
    return scores[chosen]


def _answered(
    model: ChoiceModel, at: Parameters, asked: np.ndarray, scores: np.ndarray, generator: np.random.Generator
) -> ChoiceModel:
    """A copy of the model for each draw of scores [draws, replies], with answers to the pairs [n, 2] drawn from it."""
    left, right = scores[:, asked[:, 0]], scores[:, asked[:, 1]]  # [draws, n]
    weights = np.stack([left, right, (left + right) / 2 + at.log_nu])
    answers = (weights + generator.gumbel(size=weights.shape)).argmax(0)
    members = asked + model.blocks.items * np.arange(len(scores))[:, None, None]  # [draws, n, 2]
    members = np.where((answers == 1)[..., None], members[..., ::-1], members)
    many, largest, rater = copies(model, len(scores)), 2 if at.log_nu > -math.inf else 1, len(at.temperatures) - 1
    parts = []
    for tie, chosen in ((0, answers < 2), (1, answers == 2)):
        rows, counts = np.unique(members[chosen], axis=0, return_counts=True)
        parts.append(TierChoices(rows, 1 + tie, largest, counts.astype(float), np.full(len(rows), rater)))
    parts = [part for part in parts if len(part.members)]
    return replace(many, choices=[*many.choices, *parts])


# -- when to stop -----------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class StopRule:
    """When to stop labelling: as soon as one of these is true of the interval of a contrast.

    Attributes:
        width: it is narrower than this; None leaves that out.
        exclude_zero: it lies on one side of 0.
        maximum: so many labels were given.
        minimum: before that many nobody looks.
    """

    width: float | None = None
    exclude_zero: bool = False
    maximum: int = 100
    minimum: int = 1

    def __post_init__(self) -> None:
        if (self.width is not None and not self.width > 0) or not 1 <= self.minimum <= self.maximum:
            got = f"width {self.width}, minimum {self.minimum} and maximum {self.maximum}"
            raise ValueError(f"got {got}; expected a width above 0 and 1 <= minimum <= maximum")

    def reason(self, interval: Interval) -> str:
        """Why to stop, or "" to go on.

        Example:
            >>> StopRule(exclude_zero=True).reason(Interval(1.0, 0.2, 1.8, count=12))
            'the interval excludes 0'
        """
        if interval.count < self.minimum:
            return ""
        if self.exclude_zero and not interval.low <= 0 <= interval.high:
            return "the interval excludes 0"
        if self.width is not None and interval.high - interval.low < self.width:
            return f"the interval is narrower than {self.width:g}"
        return f"{interval.count} labels were given" if interval.count >= self.maximum else ""


@dataclass(frozen=True, eq=False)
class StoppedStudies:
    """Studies that were stopped by a rule, all [studies].

    Attributes:
        truth: the contrast that each was about.
        labels: given until it stopped.
        low, high: the interval at that time.
        wins: of each pair (a, b), a < b, how often the one and the other won [studies, pairs, 2].
    """

    truth: np.ndarray
    labels: np.ndarray
    low: np.ndarray
    high: np.ndarray
    wins: np.ndarray

    @property
    def covered(self) -> np.ndarray:
        """Whether each interval holds its truth."""
        return (self.low <= self.truth) & (self.truth <= self.high)


def stopping_studies(
    rule: StopRule,
    studies: int = 200,
    *,
    replies: int = 2,
    interval: str = "posterior",
    truth_std: float = 1.0,
    prior_std: float = 1.0,
    level: float = 0.95,
    seed: int = 0,
) -> StoppedStudies:
    """What a stop rule does to intervals: simulated studies of the contrast of the first two replies.

    In each the true scores are drawn, and the pairs of replies are compared in turn, without ties, by a rater of
    inverse temperature 1. After every label the interval is computed and the rule asked. A posterior interval keeps its
    level on average over truths from its own prior, whatever the rule; at a single truth, such as no difference, none
    of these does.

    Args:
        rule: when to stop.
        studies: how many.
        replies: of a study, at least 2.
        interval: "posterior"; "logit", the maximum of the likelihood with Wald's interval, infinite while all answers
            agree; or "share", Wald's interval of the share of wins in the pair itself, as a difference of scores.
        truth_std: standard deviation of the true scores; 0 for no difference.
        prior_std: of the prior that the posterior interval takes, above 0.
        level: of the intervals.
        seed: of scores and labels; the same labels for all kinds of interval, as far as they go.

    Raises:
        ValueError: an unknown interval.

    Example:
        >>> stopped = stopping_studies(StopRule(exclude_zero=True, maximum=20), studies=4)
        >>> stopped.labels.tolist(), stopped.covered.tolist()
        ([20, 20, 5, 14], [True, True, True, True])

    Source: on optional stopping, Wald 1947, Sequential Analysis; Berger and Wolpert 1988, The Likelihood Principle.
    Chapter 08.
    """
    if interval not in INTERVALS:
        raise ValueError(f"interval is {interval!r}; expected one of {sorted(INTERVALS)}")
    generator = np.random.default_rng(seed)
    scores = truth_std * generator.standard_normal((studies, replies))
    pairs = list(combinations(range(replies), 2))
    wins = np.zeros((studies, len(pairs), 2))
    labels, low, high = np.zeros(studies, dtype=int), np.zeros(studies), np.zeros(studies)
    going = np.ones(studies, dtype=bool)
    for label in range(1, rule.maximum + 1):
        place = (label - 1) % len(pairs)
        a, b = pairs[place]
        first = generator.random(studies) < expit(scores[:, a] - scores[:, b])
        wins[going, place, np.where(first, 0, 1)[going]] += 1
        now = np.flatnonzero(going)
        if label < rule.minimum or not len(now):
            continue
        labels[now] = label
        low[now], high[now] = INTERVALS[interval](wins[now], replies, prior_std, level)
        for study in now:
            going[study] = not rule.reason(Interval(0.0, low[study], high[study], label))
    return StoppedStudies(scores[:, 0] - scores[:, 1], labels, low, high, wins)


def _pair_model(wins: np.ndarray, replies: int, prior_std: float) -> tuple[ChoiceModel, Parameters, np.ndarray]:
    """The model of wins [studies, pairs, 2], a group each study, its mode, and the contrast of the first two."""
    studies = len(wins)
    starts = replies * np.arange(studies)[:, None]
    choices = [
        TierChoices(starts + np.array(order), 1, 1, wins[:, place, side], np.zeros(studies, dtype=int))
        for place, pair in enumerate(combinations(range(replies), 2))
        for side, order in enumerate((pair, pair[::-1]))
    ]
    model = ChoiceModel(choices, Blocks([replies] * studies), prior_std)
    at, _ = model.mode(Parameters(np.zeros(studies * replies), -math.inf, np.ones(1)))
    return model, at, np.tile(np.eye(replies)[0] - np.eye(replies)[1], studies)


def _posterior_ends(wins: np.ndarray, replies: int, prior_std: float, level: float) -> tuple[np.ndarray, np.ndarray]:
    return contrast_ends(*_pair_model(wins, replies, prior_std), level)


def _logit_ends(wins: np.ndarray, replies: int, prior_std: float, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Mode and normal interval with a prior that is as good as flat."""
    model, at, along = _pair_model(wins, replies, FLAT)
    solved = model.blocks.solve(model.system(at).information, along[:, None])[:, 0]
    half = float(ndtri((1 + level) / 2)) * np.sqrt(model.blocks.sums(along * solved))
    middle = model.blocks.sums(along * at.scores)
    return middle - half, middle + half


def _share_ends(wins: np.ndarray, replies: int, prior_std: float, level: float) -> tuple[np.ndarray, np.ndarray]:
    """p +- z sqrt(p (1 - p) / n), as logits; without an answer of the pair everything is possible."""
    count = wins[:, 0].sum(1)
    share = np.where(count > 0, wins[:, 0, 0] / np.maximum(count, 1), 0.5)
    half = float(ndtri((1 + level) / 2)) * np.sqrt(share * (1 - share) / np.maximum(count, 1))
    half[count == 0] = 0.5
    return logit(np.maximum(share - half, 0)), logit(np.minimum(share + half, 1))


INTERVALS = {"posterior": _posterior_ends, "logit": _logit_ends, "share": _share_ends}


# -- how many ---------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class LabelPlan:
    """How many comparisons of two replies it takes to see their difference.

    Attributes:
        labels: comparisons, ties among them.
        power: chance that the interval then excludes 0 on the right side.
        difference: of the scores.
        win_probability: of the better one, where no tie is called.
    """

    labels: int
    power: float
    difference: float
    win_probability: float


def labels_needed(
    difference: float | None = None,
    *,
    win_probability: float | None = None,
    power: float = 0.8,
    level: float = 0.95,
    prior_std: float = 1.0,
    log_nu: float = -math.inf,
) -> LabelPlan:
    """Comparisons of two replies after which the interval of `consensus` excludes 0 with a given chance.

    The number is fixed beforehand; all of them are asked. Computed exactly from the binomial law of the wins. As their
    number is whole, the chance has teeth: it is at least `power` at the answer and at all numbers tried above it.

    Args:
        difference: true difference of the scores, not 0; or
        win_probability: of one of the two, sigmoid(difference), neither 0, 1/2 nor 1.
        power: chance to see it, in (0, 1).
        level: of the interval.
        prior_std: of a score, as in `consensus`.
        log_nu: as in `Consensus`; where ties are called the comparisons without one have to be enough, which leaves out
            that a tie too speaks for a small difference.

    Raises:
        ValueError: both or none of the two are given, they are not in these ranges, or it takes more than a million.

    Example:
        >>> labels_needed(1.0).labels, labels_needed(win_probability=0.6).labels
        (36, 198)

    Source: Cohen 1988, Statistical Power Analysis for the Behavioral Sciences, on planning. Chapter 08.
    """
    check_level(level)
    if not 0 < power < 1:
        raise ValueError(f"power must be a chance between 0 and 1, got {power}")
    if (difference is None) == (win_probability is None):
        raise ValueError("give either a difference or a win_probability")
    gap = float(difference if win_probability is None else logit(win_probability))  # type: ignore[arg-type]
    if not 0 < abs(gap) < math.inf:
        raise ValueError(f"the difference is {gap}; expected a finite number other than 0")
    gap, share = abs(gap), float(expit(abs(gap)))
    guess = ((ndtri((1 + level) / 2) / 2 + ndtri(power) * math.sqrt(share * (1 - share))) / (share - 0.5)) ** 2
    if guess > 1e6:
        raise ValueError(f"a difference of {gap:g} takes about {guess:.2g} labels; plan for a larger one")
    coarse = np.unique(np.geomspace(max(1, guess / 3), 3 * guess + 30, 40).astype(int))
    centre = int(coarse[_power(coarse, share, prior_std, level) >= power][0])
    reach = 5 + int(2 * math.sqrt(centre))
    tried = np.unique(np.linspace(max(1, centre - 3 * reach), centre + reach, 4 * reach + 1).astype(int))
    chances = _power(tried, share, prior_std, level)
    enough = int(np.flatnonzero(chances < power)[-1]) + 1 if (chances < power).any() else 0
    ties = 1 / (1 + 2 * math.cosh(gap / 2) * math.exp(-log_nu)) if log_nu > -math.inf else 0.0
    return LabelPlan(math.ceil(tried[enough] / (1 - ties)), float(chances[enough]), gap, share)


def _power(counts: np.ndarray, share: float, prior_std: float, level: float) -> np.ndarray:
    """[n] chance that the interval lies above 0 after `counts` [n] labels, each a win with probability `share`."""
    below, above = np.floor(counts / 2), counts + 1.0  # of the fewest wins that are enough: not so many, so many
    while (above - below > 1).any():
        wins = np.minimum(np.floor((below + above) / 2), counts)
        table = np.stack([wins, counts - wins], 1)[:, None]
        low, _ = _posterior_ends(table, 2, prior_std, level)
        below, above = np.where(low > 0, below, wins), np.where(low > 0, wins, above)
    return np.where(above > counts, 0.0, 1 - bdtr(above - 1, counts, share))
