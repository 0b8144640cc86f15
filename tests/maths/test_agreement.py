"""Agreement of raters: published tables, other libraries, the definitions in slow words, and what must not matter."""

import itertools
import math

import krippendorff
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from statsmodels.stats import inter_rater

from rlhf_lab.maths.agreement import (
    LEVELS,
    agreement_by_pair,
    cohen_kappa,
    fleiss_kappa,
    krippendorff_alpha,
    percent_agreement,
)

NAN = math.nan
# Four observers and twelve units of Krippendorff 2011, Computing Krippendorff's Alpha-Reliability.
PUBLISHED = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, NAN, NAN, NAN],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NAN, 3],
        [NAN, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NAN],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NAN],
    ]
)
PUBLISHED_ALPHA = {"nominal": 0.743, "ordinal": 0.815, "interval": 0.849, "ratio": 0.797}
# Ten subjects that fourteen raters put into five categories: the table on which kappa is 0.210.
FLEISS = [
    [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
    [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
]  # fmt: skip


def random_table(seed, raters=4, items=30, values=5, missing=0.3):
    generator = np.random.default_rng(seed)
    truth = generator.integers(values, size=items)
    noise = generator.integers(values, size=(raters, items))
    table = np.where(generator.random((raters, items)) < 0.5, truth, noise).astype(float)
    table[generator.random(table.shape) < missing] = NAN
    return table


# -- published numbers and other libraries ----------------------------------------------------------------------------
@pytest.mark.parametrize("level", LEVELS)
def test_alpha_of_the_published_table(level):
    assert round(krippendorff_alpha(PUBLISHED, level), 3) == PUBLISHED_ALPHA[level]


def test_fleiss_kappa_of_the_published_table():
    assert round(fleiss_kappa(FLEISS), 3) == 0.210


def test_cohen_kappa_of_a_table_by_hand():
    # 20 both yes, 5 and 10 split, 15 both no: 0.7 agree, chance 0.5 * 0.6 + 0.5 * 0.4 = 0.5
    first = [1] * 25 + [0] * 25
    second = [1] * 20 + [0] * 5 + [1] * 10 + [0] * 15
    assert percent_agreement(first, second) == pytest.approx(0.7)
    assert cohen_kappa(first, second) == pytest.approx(0.4)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("seed", range(5))
def test_alpha_equals_the_library_krippendorff(level, seed):
    table = random_table(seed) + 1
    expected = krippendorff.alpha(reliability_data=table, level_of_measurement=level)
    assert krippendorff_alpha(table, level) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("weights", [None, "linear", "quadratic"])
@pytest.mark.parametrize("seed", range(5))
def test_cohen_kappa_equals_statsmodels(weights, seed):
    first, second = random_table(seed, raters=2, missing=0).astype(int)
    table = np.zeros((7, 7))
    np.add.at(table, (first, second), 1)
    expected = inter_rater.cohens_kappa(table, wt=weights, return_results=False)
    assert cohen_kappa(first, second, weights, list(range(7))) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_fleiss_kappa_equals_statsmodels(seed):
    counts = np.random.default_rng(seed).multinomial(6, [0.5, 0.3, 0.2], size=20)
    assert fleiss_kappa(counts) == pytest.approx(inter_rater.fleiss_kappa(counts), abs=1e-12)


# -- the definition, pair by pair -------------------------------------------------------------------------------------
def slow_alpha(table, distance):
    """1 - D_o / D_e with loops over every pair of values."""
    units = [[x for x in column if not math.isnan(x)] for column in table.T]
    units = [unit for unit in units if len(unit) > 1]
    every = [x for unit in units for x in unit]
    observed = sum(
        distance(a, b, every) / (len(unit) - 1) for unit in units for a, b in itertools.permutations(unit, 2)
    ) / len(every)
    expected = sum(distance(a, b, every) for a, b in itertools.permutations(every, 2))
    return 1 - observed / (expected / (len(every) * (len(every) - 1)))


def ordinal(a, b, every):
    low, high = sorted((a, b))
    between = sum(low <= x <= high for x in every)
    return (between - (every.count(a) + every.count(b)) / 2) ** 2


DISTANCES = {
    "nominal": lambda a, b, every: float(a != b),
    "ordinal": ordinal,
    "interval": lambda a, b, every: (a - b) ** 2,
    "ratio": lambda a, b, every: 0.0 if a == b else ((a - b) / (a + b)) ** 2,
}


@pytest.mark.parametrize("level", LEVELS)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_alpha_is_its_definition(level, seed):
    table = random_table(seed, raters=3, items=8)
    assert krippendorff_alpha(table, level) == pytest.approx(slow_alpha(table, DISTANCES[level]), abs=1e-12)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), weights=st.sampled_from([None, "linear", "quadratic"]))
def test_cohen_kappa_is_its_definition(seed, weights):
    first, second = random_table(seed, raters=2, missing=0)
    distance = {None: lambda a, b: a != b, "linear": lambda a, b: abs(a - b), "quadratic": lambda a, b: (a - b) ** 2}
    observed = np.mean([distance[weights](a, b) for a, b in zip(first, second, strict=True)])
    chance = np.mean([distance[weights](a, b) for a in first for b in second])
    assert cohen_kappa(first, second, weights, range(5)) == pytest.approx(1 - observed / chance, abs=1e-12)


def test_fleiss_kappa_is_its_definition():
    counts = np.random.default_rng(0).multinomial(5, [0.6, 0.3, 0.1], size=12)
    labels = [np.repeat(np.arange(3), row) for row in counts]
    agreeing = np.mean([np.mean([a == b for a, b in itertools.permutations(item, 2)]) for item in labels])
    every = np.concatenate(labels)
    chance = np.mean([a == b for a in every for b in every])
    assert fleiss_kappa(counts) == pytest.approx((agreeing - chance) / (1 - chance), abs=1e-12)


# -- what must not matter ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("level", LEVELS)
def test_alpha_ignores_order_and_units(level):
    table = random_table(3) + 1
    value = krippendorff_alpha(table, level)
    assert krippendorff_alpha(table[::-1, ::-1], level) == pytest.approx(value, abs=1e-12)
    if level != "nominal":
        assert krippendorff_alpha(7 * table, level) == pytest.approx(value, abs=1e-12)
    if level in ("ordinal", "nominal"):
        assert krippendorff_alpha(np.exp(table), level) == pytest.approx(value, abs=1e-12)
    alone = np.full((4, 1), NAN)
    alone[2] = 9.0  # an item with a single value pairs with nothing
    assert krippendorff_alpha(np.hstack([table, alone]), level) == pytest.approx(value, abs=1e-12)


def test_raters_who_draw_lots_agree_by_chance():
    """|kappa| and |alpha| below 4 of their standard deviations of about 1 / sqrt(items): a false alarm in 10,000."""
    table = np.random.default_rng(0).integers(2, size=(2, 4000)).astype(float)
    counts = np.stack([(table == c).sum(0) for c in (0, 1)], 1)
    for value in (cohen_kappa(*table), krippendorff_alpha(table), fleiss_kappa(counts)):
        assert abs(value) < 4 / math.sqrt(4000)
    assert percent_agreement(*table) == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(4000))


def test_a_category_that_nobody_used_counts_as_a_step():
    first, second = [1, 5, 1, 5, 2], [1, 5, 5, 5, 1]
    assert cohen_kappa(first, second, "linear") != pytest.approx(cohen_kappa(first, second, "linear", range(1, 6)))


def test_missing_labels_and_labels_of_any_kind():
    assert percent_agreement(["a", None, "b", "b"], ["a", "a", NAN, "c"]) == 0.5
    assert cohen_kappa(["a", "b", None, "a"], ["a", "b", "a", "a"]) == 1


# -- degenerate cases -------------------------------------------------------------------------------------------------
def test_where_all_labels_are_the_same_chance_explains_everything():
    assert math.isnan(cohen_kappa([1, 1, 1], [1, 1, 1]))
    assert math.isnan(fleiss_kappa([[3, 0], [3, 0]]))
    assert all(math.isnan(krippendorff_alpha([[2, 2, NAN], [2, 2, 3]], level)) for level in LEVELS)
    assert percent_agreement([1, 1], [1, 1]) == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: percent_agreement([1, None], [None, 1]), "no item has a label of both"),
        (lambda: cohen_kappa([1], [1, 2]), "first has 1 labels and second 2"),
        (lambda: cohen_kappa([1, 2], [1, 3], categories=[1, 2]), "the label 3 is not in categories"),
        (lambda: cohen_kappa([1, 2], [1, 3], "cubic"), "weights is 'cubic'"),
        (lambda: fleiss_kappa([[2, 1], [1, 1]]), r"items have \[2, 3\] labels"),
        (lambda: fleiss_kappa([[1, 0], [0, 1]]), "expected one number >= 2"),
        (lambda: fleiss_kappa([[0.5, 1.5]]), "expected whole numbers"),
        (lambda: krippendorff_alpha([[1, NAN], [NAN, 2]]), "no item has two values"),
        (lambda: krippendorff_alpha([[1, 2], [1, 3]], "nominal "), "level is 'nominal '"),
        (lambda: krippendorff_alpha([[-1, 2], [1, 3]], "ratio"), "a ratio scale starts at 0"),
        (lambda: krippendorff_alpha([1, 2, 3]), r"expected finite numbers or NaN, \[raters, items\]"),
        (lambda: krippendorff_alpha([[1, math.inf], [1, 2]]), "expected finite numbers or NaN"),
    ],
)
def test_what_cannot_be_measured_says_so(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_agreement_by_pair_takes_the_items_that_both_labelled():
    table = random_table(1, raters=3)
    table[2, ~np.isnan(table[0])] = NAN  # the first and the third share no item
    matrix = agreement_by_pair(table, cohen_kappa)
    assert np.isnan(np.diag(matrix)).all()
    assert np.isnan(matrix[0, 2])
    assert matrix[0, 1] == pytest.approx(cohen_kappa(table[0], table[1]))
    assert matrix[1, 0] == pytest.approx(matrix[0, 1])
    assert not np.isnan(matrix[1, 2])
