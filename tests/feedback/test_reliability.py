"""Labels side by side, Dawid and Skene's model against planted raters, and the scales of raters."""

import itertools

import numpy as np
import pytest
from judged import VICES, judged

from rlhf_lab.feedback.reliability import dawid_skene, normalise_ratings, pair_labels, rating_labels
from rlhf_lab.maths.agreement import agreement_by_pair, cohen_kappa
from rlhf_lab.maths.intervals import mean_interval
from rlhf_lab.records import Choice, Comparison, Ranking, Rating

NAN = float("nan")
RIGHT = {"careful": 0.95, "noisy": 0.6, "spammer": None, "malicious": 0.05}  # P(right) in three categories


def labels(seed, items=150, categories=3, missing=0.2):
    """Labels [raters, items] and the truth; the spammer says 0 four times in five, the malicious one is never right."""
    generator = np.random.default_rng(seed)
    truth = generator.choice(categories, p=[0.5, 0.3, 0.2], size=items)
    rows = []
    for right in RIGHT.values():
        wrong = (truth + generator.integers(1, categories, size=items)) % categories
        if right is None:
            row = np.where(generator.random(items) < 0.8, 0, generator.integers(categories, size=items))
        else:
            row = np.where(generator.random(items) < right, truth, wrong)
        rows.append(row.astype(float))
    table = np.array(rows)
    holes = generator.random(table.shape) < missing
    holes[0] = False  # every item has a label
    table[holes] = NAN
    return table, truth


def majority(table):
    return np.array([np.bincount(column[~np.isnan(column)].astype(int)).argmax() for column in table.T])


# -- tables of labels -------------------------------------------------------------------------------------------------
def test_pairs_are_the_same_item_in_whatever_order_they_were_shown():
    judgements = [
        Ranking("Hi", ("a", "b", "c"), ((0,), (1, 2)), rater="me"),
        Choice("Hi", "c", "a", 1, rater="you"),
        Comparison("Hi", "b", "c", rater="you"),
        Ranking("Hi", ("c", "b", "a"), (), "skipped", rater="nobody"),
    ]
    table = pair_labels(judgements)
    assert table.raters == ("me", "you")
    found = {}
    for (_, first, second), column in zip(table.items, table.values.T, strict=True):
        sign = 1 if first < second else -1
        found[min(first, second) + max(first, second)] = (sign * column).tolist()
    assert found.keys() == {"ab", "ac", "bc"}
    assert found["ac"] == [1, -1]
    assert found["bc"] == [0, 1]
    assert found["ab"][0] == 1
    assert np.isnan(found["ab"][1])


def test_which_reply_of_a_pair_is_the_first_depends_on_no_answer():
    """One rater alone gives both labels: of 180 pairs at 1/2, 60 to 120, 4.5 sd."""
    table = pair_labels([record for record in judged(0)[0] if record.rater == "careful"])
    assert 60 < (table.values == 1).sum() < 120
    turned = pair_labels([record for record in judged(0)[0] if record.rater == "malicious"])
    assert set(table.items) == set(turned.items)


def test_the_last_judgement_of_a_pair_counts():
    once = pair_labels([Choice("Hi", "b", "a", 1)]).values.tolist()
    assert pair_labels([Choice("Hi", "a", "b", 1), Choice("Hi", "b", "a", 1)]).values.tolist() == once
    assert rating_labels([Rating("Hi", "a", 2), Rating("Hi", "a", 5)]).values.tolist() == [[5.0]]


def test_agreement_of_simulated_raters_shows_the_malicious_one():
    table = pair_labels(judged(0)[0])
    matrix = agreement_by_pair(table.values, cohen_kappa)
    place = {name: i for i, name in enumerate(table.raters)}
    assert matrix[place["careful"], place["malicious"]] < -0.2
    assert abs(matrix[place["careful"], place["spammer"]]) < 0.3  # 4 sd of 1 / sqrt(180) is 0.3


# -- Dawid and Skene --------------------------------------------------------------------------------------------------
def test_planted_raters_are_found():
    """Over 10 seeds in each: the order, and who is about 0. The skills differ by 4 standard deviations or more."""
    for seed in range(10):
        table, _ = labels(seed)
        skill = dict(zip(RIGHT, dawid_skene(table).skill, strict=True))
        assert skill["careful"] > skill["noisy"] > skill["spammer"] > skill["malicious"]
        assert abs(skill["spammer"]) < 0.25
        assert skill["malicious"] < -0.2


def test_its_labels_are_better_than_the_majority():
    """The mean gain in accuracy over 10 seeds is above 0 at 99.9 %."""
    gains = []
    for seed in range(10):
        table, truth = labels(seed)
        gains.append(float((dawid_skene(table).labels == truth).mean() - (majority(table) == truth).mean()))
    assert mean_interval(gains, 0.999).verdict == "above 0"


def test_confusion_matrices_are_recovered():
    """From 3000 items within 0.1; the standard deviation of an entry is below 0.02."""
    table, truth = labels(0, items=3000, missing=0)
    model = dawid_skene(table)
    for row, confusion in zip(table, model.confusion, strict=True):
        true = np.array(
            [[((row == said) & (truth == c)).sum() / (truth == c).sum() for said in range(3)] for c in range(3)]
        )
        assert confusion == pytest.approx(true, abs=0.1)
    assert model.shares == pytest.approx([0.5, 0.3, 0.2], abs=0.08)


def test_pairs_of_rankings_can_be_given_to_it():
    table = pair_labels(judged(0, prompts=60)[0])
    skill = dict(zip(table.raters, dawid_skene(table.values).skill, strict=True))
    assert skill["careful"] == max(skill.values())
    assert skill["malicious"] == min(skill.values())
    assert set(skill) == set(VICES)


def test_the_posterior_never_falls_and_the_probabilities_are_bayes_rule():
    table, _ = labels(3, items=40)
    model = dawid_skene(table)
    assert np.diff(model.log_posteriors).min() > -1e-9
    for i in range(40):
        joint = model.shares.copy()
        for rater, label in enumerate(table[:, i]):
            if not np.isnan(label):
                joint = joint * model.confusion[rater][:, int(label)]
        assert model.probabilities[i] == pytest.approx(joint / joint.sum(), abs=1e-4)


def test_the_order_of_raters_and_items_does_not_matter():
    table, _ = labels(4, items=60)
    one, other = dawid_skene(table), dawid_skene(table[::-1, ::-1])
    assert other.skill[::-1] == pytest.approx(one.skill, abs=1e-4)
    assert other.probabilities[::-1] == pytest.approx(one.probabilities, abs=1e-4)


def test_a_rater_with_two_labels_is_not_thought_perfect():
    table, _ = labels(5, items=100, missing=0)
    newcomer = np.full(100, NAN)
    newcomer[:2] = dawid_skene(table).labels[:2]
    skill = dawid_skene(np.vstack([table, newcomer])).skill
    assert skill[-1] < skill[0] - 0.1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dawid_skene([[1, NAN], [0, NAN]]), "a label for every item"),
        (lambda: dawid_skene([1, 2]), r"expected \[raters, items\]"),
        (lambda: dawid_skene([[1, 1], [1, 1]]), "all labels are 1"),
        (lambda: dawid_skene([[1, 0]], smoothing=0), "smoothing is 0"),
        (lambda: normalise_ratings([Choice("Hi", "a", "b", 1)]), "got 0 ratings"),
        (lambda: normalise_ratings([Rating("Hi", "a", 1)], pooling=0), "pooling 0"),
    ],
)
def test_what_cannot_be_estimated_says_so(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# -- scales of raters -------------------------------------------------------------------------------------------------
def ratings(**scores):
    return [
        Rating("Hi", f"reply {k}", score, rater=rater) for rater, row in scores.items() for k, score in enumerate(row)
    ]


def test_a_severe_and_a_mild_rater_come_to_the_same():
    given = ratings(severe=[1, 2, 3] * 40, mild=[3, 4, 5] * 40)
    values = normalise_ratings(given).values.reshape(2, 120)
    assert values[0] == pytest.approx(values[1], abs=0.2)
    raw = np.array([rating.score for rating in given]).reshape(2, 120)
    assert np.abs(raw[0] - raw[1]).min() == 2


def test_with_many_ratings_it_is_the_plain_standard_score():
    scores = np.random.default_rng(0).integers(1, 6, size=4000).astype(float)
    values = normalise_ratings(ratings(me=scores)).values
    assert values == pytest.approx((scores - scores.mean()) / scores.std(), abs=1e-3)


def test_a_rater_with_two_ratings_is_not_blown_up():
    """His own standard deviation is 0.005 on a scale to 1: two standard scores of +-1 for nothing."""
    crowd = {f"rater {i}": [1, 2, 3, 4, 5, 3] for i in range(5)}
    given = ratings(**crowd, new=[3, 3.02])
    values = normalise_ratings(given).values[-2:]
    assert np.abs(values).max() < 0.1
    alone = normalise_ratings(given, pooling=1e-9).values[-2:]
    assert np.abs(alone).max() > 0.9


def test_a_constant_rater_says_little():
    crowd = {f"rater {i}": [1, 2, 3, 4, 5] * 4 for i in range(5)}
    found = normalise_ratings(ratings(**crowd, constant=[5] * 20))
    assert np.isfinite(found.values).all()
    assert np.abs(found.values[-20:]).max() < 1 < np.abs(found.values).max()
    assert 0 < found.raters["constant"].std < found.raters["rater 0"].std
    few = normalise_ratings(ratings(**crowd, constant=[5] * 4)).values[-1]
    assert few > found.values[-1] > 0  # the more he says the same, the less it says


def test_all_raters_constant_or_single():
    assert normalise_ratings(ratings(a=[3, 3], b=[3])).values == pytest.approx([0, 0, 0])
    assert np.isfinite(normalise_ratings(ratings(a=[1], b=[5])).values).all()


def test_the_ends_of_the_scale_do_not_matter():
    five = [Rating("Hi", str(k), score, 1, 5, rater=r) for r, k, score in itertools.product("ab", range(3), (1, 3, 5))]
    seven = [Rating("Hi", str(k), score, 1, 7, rater=r) for r, k, score in itertools.product("ab", range(3), (1, 4, 7))]
    mixed = [*five[:9], *seven[9:]]  # one rater had another scale
    expected = normalise_ratings(five).values
    assert normalise_ratings(seven).values == pytest.approx(expected)
    assert normalise_ratings(mixed).values == pytest.approx(expected)


def test_names_that_differ_in_a_trailing_nul_are_two_raters():
    assert len(normalise_ratings([Rating("Hi", "a", 3, rater="x"), Rating("Hi", "a", 3, rater="x\0")]).raters) == 2
