"""Which raters can be relied on: labels of several raters side by side, Dawid and Skene's model, scales of ratings.

Rankings are weighed by `aggregation.consensus(reliability=True)`; here are labels in categories and ratings on a scale.
Left out: items that are harder than others, and raters who change while they work. Chapter 08.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from rlhf_lab.feedback.aggregation import Item, records_of, tiers_of
from rlhf_lab.records import Event, Rating, Record


@dataclass(frozen=True, eq=False)
class LabelTable:
    """Labels of several raters.

    Attributes:
        raters: their names.
        items: what was labelled: (prompt, reply) of a rating, (prompt, reply, another reply) of an order.
        values: [raters, items] the score of a reply, or 1, 0, -1 where the first of two replies was placed above, with
            or below the other; NaN where a rater gave none. As `maths.agreement` takes them.
    """

    raters: tuple[str, ...]
    items: tuple[tuple, ...]
    values: np.ndarray


def pair_labels(judgements: Iterable[Event | Record]) -> LabelTable:
    """What each rater said of every two replies that somebody compared or ranked.

    The same two replies are one item in whatever order they were shown or placed. Which of them is the first is drawn
    from the texts: were it the one placed first by the first rater, that rater would have given one label throughout.
    Of a pair that a rater judged more than once the last judgement counts.

    Example:
        >>> from rlhf_lab.records import Choice
        >>> pair_labels([Choice("Hi", "a", "b", 1, rater="me"), Choice("Hi", "b", "a", 0, rater="you")]).values.tolist()
        [[-1.0], [0.0]]
    """
    given: dict[str, dict[tuple, float]] = defaultdict(dict)
    for record in records_of(judgements):
        places = [(item, place) for place, tier in enumerate(tiers_of(record)) for item in tier]
        places.sort(key=lambda one: _lot(one[0]))
        for i, (first, above) in enumerate(places):
            for second, below in places[i + 1 :]:
                outcome = float(np.sign(below - above))
                given[record.rater][record.prompt, first, second] = outcome  # type: ignore[union-attr]
    return _table(given)


@lru_cache(maxsize=100_000)
def _lot(item: Item) -> bytes:
    """What puts replies into an order that says nothing of them."""
    text = item if isinstance(item, str) else repr(item)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def rating_labels(judgements: Iterable[Event | Record]) -> LabelTable:
    """The score that each rater gave each reply; the last where there are several.

    Example:
        >>> rating_labels([Rating("Hi", "a", 4, rater="me"), Rating("Hi", "b", 2, rater="you")]).values.tolist()
        [[4.0, nan], [nan, 2.0]]
    """
    given: dict[str, dict[tuple, float]] = defaultdict(dict)
    for record in records_of(judgements):
        if isinstance(record, Rating):
            given[record.rater][record.prompt, record.reply] = record.score
    return _table(given)


def _table(given: dict[str, dict[tuple, float]]) -> LabelTable:
    places: dict[tuple, int] = {}
    for labels in given.values():
        for item in labels:
            places.setdefault(item, len(places))
    values = np.full((len(given), len(places)), np.nan)
    for row, labels in enumerate(given.values()):
        values[row, [places[item] for item in labels]] = list(labels.values())
    return LabelTable(tuple(given), tuple(places), values)


@dataclass(frozen=True, eq=False)
class DawidSkene:
    """What Dawid and Skene's model says of items and raters.

    Attributes:
        categories: [C] the labels that occur, sorted.
        probabilities: [items, C] of the true category of each item.
        shares: [C] of the categories among the items.
        confusion: [raters, C, C] probability that a rater says the second where the first is true.
        log_posteriors: of each iteration; never falls.
    """

    categories: np.ndarray
    probabilities: np.ndarray
    shares: np.ndarray
    confusion: np.ndarray
    log_posteriors: tuple[float, ...]

    @property
    def skill(self) -> np.ndarray:
        """[raters] mean of P(right | true category) over the categories, from chance to 1 put on 0 to 1.

        0 for one who answers without looking, whatever his favourite; negative for one who answers wrong on purpose.
        """
        size = len(self.categories)
        right = np.trace(self.confusion, axis1=1, axis2=2) / size
        return (right - 1 / size) / (1 - 1 / size)

    @property
    def labels(self) -> np.ndarray:
        """[items] the likeliest category."""
        return self.categories[self.probabilities.argmax(1)]


def dawid_skene(values: np.ndarray, *, smoothing: float = 1.0, steps: int = 500) -> DawidSkene:
    """True categories and the confusion matrix of each rater, by expectation maximisation.

        P(true = c | labels) ~ share_c * prod_r confusion_r[c, label_r]

    It starts from the shares of the labels that an item got, so it believes the majority of raters at first. Where most
    are malicious it learns the world upside down, and labels of one rater alone tell nothing of him.

    Args:
        values: [raters, items] labels, numbers; NaN is missing. As in `LabelTable`.
        smoothing: labels that count for a rater before he gave any, in each true category; half are right, and the rest
            is spread evenly. Above 0, so that a rater with a few labels is not thought perfect.
        steps: at most so many.

    Raises:
        ValueError: not such a table, an item without label, fewer than 2 categories, or smoothing not above 0.

    Example:
        >>> model = dawid_skene([[1, 0, 1, 1, 0, 0], [1, 0, 1, 1, 0, 0], [0, 1, 0, 0, 1, 1]])
        >>> model.labels.tolist(), model.skill.round(1).tolist()
        ([1.0, 0.0, 1.0, 1.0, 0.0, 0.0], [0.7, 0.7, -0.7])

    Source: Dawid and Skene 1979, Maximum likelihood estimation of observer error-rates. Chapter 08.
    """
    table = np.asarray(values, dtype=float)
    if table.ndim != 2 or not table.size or np.isnan(table).all(0).any():
        raise ValueError(f"values has shape {list(table.shape)}; expected [raters, items], a label for every item")
    if not smoothing > 0:
        raise ValueError(f"smoothing is {smoothing}; expected a number above 0")
    categories = np.unique(table[~np.isnan(table)])
    size = len(categories)
    if size < 2:
        raise ValueError(f"all labels are {categories[0]:g}; who is right shows only where raters differ")
    said = (table[:, :, None] == categories).astype(float)  # [R, I, C]; a row of zeros where there is no label
    prior = smoothing * (np.eye(size) / 2 + (1 - np.eye(size)) / (2 * (size - 1)))
    truth, history = said.sum(0) / said.sum((0, 2))[:, None], []
    for _ in range(steps):
        shares = truth.mean(0)
        counts = prior + truth.T @ said  # [R, C, C]
        confusion = counts / counts.sum(2, keepdims=True)
        log_joint = np.log(np.maximum(shares, 1e-300)) + (said @ np.log(confusion).transpose(0, 2, 1)).sum(0)
        log_sums = np.logaddexp.reduce(log_joint, 1)
        truth = np.exp(log_joint - log_sums[:, None])
        history.append(float(log_sums.sum() + (prior * np.log(confusion)).sum()))
        if len(history) > 1 and history[-1] - history[-2] < 1e-9 * abs(history[-1]):
            break
    return DawidSkene(categories, truth, shares, confusion, tuple(history))


@dataclass(frozen=True)
class RaterScale:
    """How a rater uses a scale from 0 to 1: mean and standard deviation as partial pooling sees them."""

    mean: float
    std: float
    count: int


@dataclass(frozen=True, eq=False)
class NormalisedRatings:
    """Ratings in standard deviations of their rater's scale.

    Attributes:
        values: [ratings] in the order of the ratings given.
        raters: {name: scale}.
    """

    values: np.ndarray
    raters: dict[str, RaterScale]


def normalise_ratings(judgements: Iterable[Event | Record], *, pooling: float = 5.0) -> NormalisedRatings:
    """Ratings with the mean and the spread of each rater taken out, both drawn towards those of all raters.

        z = (x - m_r) / s_r,   m_r = (sum_r x + k m) / (n_r + k),   s_r^2 = (sum_r (x - m_r)^2 + k s^2) / (n_r + k)

    x is on [0, 1] by the ends of its scale, m is the mean of all ratings and s^2 their variance around the mean of
    their rater, of raters with several. So two ratings hardly move a rater's scale, and one who always says 4 has a
    spread above 0 and values near 0: his ratings say little. Right where all raters saw replies of about the same
    quality: one who was given the good ones seems lenient.

    Args:
        judgements: events or records; those that are no ratings are passed over.
        pooling: k, the ratings that the other raters count for, above 0.

    Raises:
        ValueError: pooling is not above 0, or there are no ratings.

    Example:
        >>> ratings = [Rating("Hi", text, score, rater="me") for text, score in (("a", 4), ("b", 2), ("c", 5))]
        >>> normalise_ratings(ratings).values.round(2).tolist()
        [0.23, -1.17, 0.93]

    Source: partial pooling as in Gelman and Hill 2007, Data Analysis Using Regression and Multilevel Models,
    chapter 12, with a weight that is given. Chapter 08.
    """
    ratings = [record for record in records_of(judgements) if isinstance(record, Rating)]
    if not ratings or not pooling > 0:
        raise ValueError(f"got {len(ratings)} ratings and pooling {pooling}; expected at least 1, and a number above 0")
    scores = np.array([(rating.score - rating.low) / (rating.high - rating.low) for rating in ratings])
    names: dict[str, int] = {}
    rows = np.array([names.setdefault(rating.rater, len(names)) for rating in ratings])
    counts = np.bincount(rows)
    means = np.bincount(rows, scores) / counts
    free = len(scores) - len(names)  # each rater's own mean costs one
    within = float(((scores - means[rows]) ** 2).sum() / free) if free else 0.0
    within = within or float(scores.var()) or 1.0  # no rater has two different ratings: take what there is
    pooled = (counts * means + pooling * scores.mean()) / (counts + pooling)
    squares = np.bincount(rows, (scores - pooled[rows]) ** 2)
    stds = np.sqrt((squares + pooling * within) / (counts + pooling))
    scales = zip(pooled.tolist(), stds.tolist(), counts.tolist(), strict=True)
    raters = {name: RaterScale(*scale) for name, scale in zip(names, scales, strict=True)}
    return NormalisedRatings((scores - pooled[rows]) / stds[rows], raters)
