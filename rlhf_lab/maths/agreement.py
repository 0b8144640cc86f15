"""How far raters agree beyond what chance would give: percent agreement, kappas and Krippendorff's alpha.

All coefficients are 1 for perfect agreement and about 0 for raters who answer at random with their usual shares. They
say nothing of who is right: two raters who share a mistake agree. Left out: standard errors, for which the items can be
resampled. Written by their definitions, for tens of raters and thousands of items.
"""

from collections.abc import Callable, Sequence

import numpy as np

Labels = Sequence | np.ndarray
LEVELS = ("nominal", "ordinal", "interval", "ratio")
WEIGHTS = (None, "linear", "quadratic")


def percent_agreement(first: Labels, second: Labels) -> float:
    """Share of the items to which two raters gave the same label.

    Not corrected for chance: of two raters who say "good" nine times in ten, whatever they see, 82 % agree.

    Args:
        first, second: [items] labels of any kind; None or NaN is missing, and an item counts when both labelled it.

    Raises:
        ValueError: lengths differ, or no item has both labels.

    Example:
        >>> percent_agreement(["good", "bad", "good", None], ["good", "good", "good", "bad"])
        0.6666666666666666

    Chapter 08.
    """
    a, b = _both(first, second)
    return float(np.mean([x == y for x, y in zip(a, b, strict=True)]))


def cohen_kappa(first: Labels, second: Labels, weights: str | None = None, categories: Sequence | None = None) -> float:
    """Agreement of two raters beyond chance, each with his own shares of the labels.

        kappa = 1 - sum_ij w_ij O_ij / sum_ij w_ij E_ij

    O_ij is the share of items that got i from the first and j from the second, and E_ij = O_i. O_.j what independent
    raters with the same shares would give. w_ij is the disagreement of i and j: 1 unless i = j (nominal), |i - j|
    (linear) or (i - j)^2 (quadratic), where i and j are places in `categories`.

    Args:
        first, second: [items] labels; None or NaN is missing, and an item counts when both labelled it.
        weights: None, "linear" or "quadratic"; the last two are for categories with an order.
        categories: all labels there are, in their order. None takes the sorted ones that occur: then a step over a
            label that nobody used counts as one step, so give them for a scale from 1 to 5.

    Returns:
        At most 1; NaN where both raters gave one and the same label throughout, as chance alone explains that.

    Raises:
        ValueError: lengths differ, no item has both labels, a label is not in `categories`, or unknown weights.

    Example:
        >>> round(cohen_kappa([1, 1, 0, 0, 1], [1, 0, 0, 0, 1]), 4)
        0.6154

    Source: Cohen 1960, A coefficient of agreement for nominal scales; Cohen 1968, Weighted kappa. Chapter 08.
    """
    if weights not in WEIGHTS:
        raise ValueError(f"weights is {weights!r}; expected one of {WEIGHTS}")
    a, b = _both(first, second)
    scale = sorted({*a, *b}) if categories is None else list(categories)
    place = {label: i for i, label in enumerate(scale)}
    unknown = [label for label in (*a, *b) if label not in place]
    if unknown:
        raise ValueError(f"the label {unknown[0]!r} is not in categories {scale!r:.80}; name all that may occur")
    observed = np.zeros((len(scale), len(scale)))
    for x, y in zip(a, b, strict=True):
        observed[place[x], place[y]] += 1 / len(a)
    chance = np.outer(observed.sum(1), observed.sum(0))
    steps = np.abs(np.subtract.outer(np.arange(len(scale)), np.arange(len(scale)))).astype(float)
    disagreement = {None: np.minimum(steps, 1), "linear": steps, "quadratic": steps**2}[weights]
    return _one_minus_ratio(float((disagreement * observed).sum()), float((disagreement * chance).sum()))


def fleiss_kappa(counts: np.ndarray) -> float:
    """Agreement of several raters beyond chance, where every item has the same number of labels.

        kappa = (P - C) / (1 - C),   P = mean over items of sum_c n_c (n_c - 1) / (n (n - 1)),   C = sum_c share_c^2

    n_c of the n labels of an item are c. P is the chance that two raters of an item agree, C that of two labels drawn
    from all. Unlike Cohen's, all raters are taken to have the same shares, and who gave which label does not matter.

    Args:
        counts: [items, categories] how many raters gave the item the label.

    Returns:
        At most 1; NaN where all labels are the same.

    Raises:
        ValueError: not such a table, items with different numbers of labels, or fewer than 2 labels an item.

    Example:
        >>> round(fleiss_kappa([[3, 0], [2, 1], [0, 3]]), 4)
        0.55

    Source: Fleiss 1971, Measuring nominal scale agreement among many raters. Chapter 08.
    """
    table = np.asarray(counts, dtype=float)
    if table.ndim != 2 or not table.size or (table < 0).any() or not np.array_equal(table, np.floor(table)):
        raise ValueError(f"counts has shape {list(table.shape)}; expected whole numbers [items, categories]")
    sizes = table.sum(1)
    n = sizes[0]
    if n < 2 or (sizes != n).any():
        got = sorted({int(size) for size in sizes})
        raise ValueError(f"items have {got} labels; expected one number >= 2. krippendorff_alpha takes what is missing")
    agreeing = (table * (table - 1)).sum(1) / (n * (n - 1))
    shares = table.sum(0) / table.sum()
    return _one_minus_ratio(float(1 - agreeing.mean()), float(1 - (shares**2).sum()))


def krippendorff_alpha(ratings: np.ndarray, level: str = "nominal") -> float:
    """Agreement of any number of raters with any values missing, on four kinds of scale.

        alpha = 1 - D_o / D_e

    D_o is the mean of delta^2(c, k) over the pairs of values of the same item, where an item with m values has weight
    1/(m - 1), so that every value counts once; D_e is the mean over all pairs of values of whatever items. With n_g
    values equal to g,

        nominal   1 unless c = k                  interval   (c - k)^2
        ordinal   (sum_{g = c..k} n_g - (n_c + n_k) / 2)^2      ratio   ((c - k) / (c + k))^2

    Args:
        ratings: [raters, items] numbers; NaN is missing. Items with one value pair with nothing and do not count.
        level: "nominal", "ordinal", "interval" or "ratio" (of values >= 0).

    Returns:
        At most 1; below 0 where raters disagree more than by chance. NaN where all values that count are the same.

    Raises:
        ValueError: not such a table, an infinite value, an unknown level, a negative value on a ratio scale, or no
            item with two values.

    Example:
        >>> nan = float("nan")
        >>> round(krippendorff_alpha([[1, 2, 3, nan], [1, 2, 4, 4], [nan, 2, 3, 4]], "interval"), 4)
        0.9274

    Source: Krippendorff 2011, Computing Krippendorff's Alpha-Reliability. Chapter 08.
    """
    table = _table(ratings)
    if level not in LEVELS:
        raise ValueError(f"level is {level!r}; expected one of {LEVELS}")
    sizes = (~np.isnan(table)).sum(0)
    table = table[:, sizes >= 2]
    if not table.size:
        raise ValueError("no item has two values, so there is nothing to compare; let two raters judge the same items")
    values, places = np.unique(table[~np.isnan(table)], return_inverse=True)
    if level == "ratio" and values[0] < 0:
        raise ValueError(f"ratings holds {values[0]}; a ratio scale starts at 0. Take level='interval'")
    counts = np.zeros((table.shape[1], len(values)))  # [items, values]
    np.add.at(counts, (np.nonzero(~np.isnan(table))[1], places), 1)
    weighted = counts / (counts.sum(1, keepdims=True) - 1)
    coincidences = weighted.T @ counts - np.diag(weighted.sum(0))  # [values, values], without a value and itself
    totals = counts.sum(0)
    expected = (np.outer(totals, totals) - np.diag(totals)) / (totals.sum() - 1)
    distances = _squared_distances(values, totals, level)
    return _one_minus_ratio(float((coincidences * distances).sum()), float((expected * distances).sum()))


def _squared_distances(values: np.ndarray, totals: np.ndarray, level: str) -> np.ndarray:
    """delta^2 of every two values, [values, values]."""
    if level == "nominal":
        return 1 - np.eye(len(values))
    if level == "ordinal":
        values = np.cumsum(totals) - totals / 2  # mean ranks: their difference is the sum that defines delta
    differences = np.subtract.outer(values, values)
    if level != "ratio":
        return differences**2
    sums = np.add.outer(values, values)
    return (differences / np.where(sums == 0, 1, sums)) ** 2


def agreement_by_pair(
    ratings: np.ndarray, measure: Callable[[np.ndarray, np.ndarray], float] = percent_agreement
) -> np.ndarray:
    """A measure of agreement for every two raters, on the items that both labelled.

    Args:
        ratings: [raters, items] numbers; NaN is missing.
        measure: of two rows: `percent_agreement`, `cohen_kappa`, or a function of your own.

    Returns:
        [raters, raters], symmetric for a symmetric measure; NaN on the diagonal and for two who share no item.

    Raises:
        ValueError: not such a table.

    Example:
        >>> agreement_by_pair([[1, 0, 1], [1, 1, 1], [1, 1, float("nan")]]).round(2).tolist()
        [[nan, 0.67, 0.5], [0.67, nan, 1.0], [0.5, 1.0, nan]]

    Chapter 08.
    """
    table = _table(ratings)
    there = ~np.isnan(table)
    result = np.full((len(table), len(table)), np.nan)
    for i in range(len(table)):
        for j in range(len(table)):
            both = there[i] & there[j]
            if i != j and both.any():
                result[i, j] = measure(table[i, both], table[j, both])
    return result


def _table(ratings: np.ndarray) -> np.ndarray:
    table = np.asarray(ratings, dtype=float)
    if table.ndim != 2 or np.isinf(table).any():
        raise ValueError(f"ratings has shape {list(table.shape)}; expected finite numbers or NaN, [raters, items]")
    return table


def _both(first: Labels, second: Labels) -> tuple[list, list]:
    """The labels of the items that both raters labelled."""
    if len(first) != len(second):
        raise ValueError(f"first has {len(first)} labels and second {len(second)}; expected one an item from each")
    pairs = [(a, b) for a, b in zip(first, second, strict=True) if not (_is_missing(a) or _is_missing(b))]
    if not pairs:
        raise ValueError("no item has a label of both raters; let them judge the same items")
    return [a for a, _ in pairs], [b for _, b in pairs]


def _is_missing(label: object) -> bool:
    return label is None or label != label  # NaN alone differs from itself


def _one_minus_ratio(observed: float, expected: float) -> float:
    """1 - observed / expected; NaN where chance leaves no disagreement, so that nothing can be said."""
    return 1 - observed / expected if expected > 0 else float("nan")
