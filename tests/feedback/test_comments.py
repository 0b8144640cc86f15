"""Comments to numbers: the counting against its definition, the regression against brute force, planted topics.

The statistical tests simulate with fixed seeds; how often they would fail for another seed, with the code as it is,
stands beside each.
"""

import math
from collections import Counter

import numpy as np
import pytest

from rlhf_lab.feedback.comments import RIDGES, comment_topics, comments_to_model, fit_comment_model, terms
from rlhf_lab.records import Comment, as_conversation

HI = as_conversation("Hi")
GOOD, BAD = ("clear", "helpful", "right", "kind"), ("wrong", "rude", "vague", "false")
NEUTRAL = ("the", "reply", "names", "a", "place", "and", "says", "something", "about", "it", "today", "for", "visitor")


def remarks(rng, count, told):
    """Comments with a word that tells the score in a share `told` of them, and the scores."""
    scores, texts = rng.random(count), []
    for score in scores:
        words = rng.choice(NEUTRAL, 6).tolist()
        if rng.random() < told:
            words.append(str(rng.choice(GOOD if score > 0.5 else BAD)))
        rng.shuffle(words)
        texts.append(" ".join(words))
    return texts, scores


def tfidf(texts, known, weighed_by):
    """[N, V] by definition: counts times 1 + log((1 + n) / (1 + n with the term)), each row of length 1."""
    split = [terms(text) for text in weighed_by]
    weights = [1 + math.log((1 + len(split)) / (1 + sum(term in words for words in split))) for term in known]
    table = np.array([[terms(text).count(term) for term in known] for text in texts]) * weights
    lengths = np.linalg.norm(table, axis=1, keepdims=True)
    return table / np.where(lengths > 0, lengths, 1)


def test_terms_are_words_and_neighbours():
    assert terms("It's WRONG, wrong!") == ["it's", "wrong", "wrong", "it's wrong", "wrong wrong"]
    assert terms("snake_case 7 Straße") == ["snake", "case", "7", "strasse", "snake case", "case 7", "7 strasse"]
    assert terms("...") == []


@pytest.mark.parametrize(("count", "told", "ridge_expected"), [(24, 0.0, 10.0), (24, 0.8, 3.0), (60, 1.0, 0.03)])
def test_ridge_is_the_regression_with_the_smallest_error_of_leaving_one_out(count, told, ridge_expected):
    """Both by brute force: normal equations with an unpunished offset, and N fits without one comment each."""
    texts, scores = remarks(np.random.default_rng(7), count, told)
    holders = Counter(term for text in texts for term in set(terms(text)))
    known = [term for term, count in holders.items() if count >= 2]
    table = tfidf(texts, known, texts)

    def fit(rows, targets, ridge):
        design = np.c_[rows, np.ones(len(rows))]
        penalty = np.diag([ridge] * rows.shape[1] + [0.0])
        return np.linalg.solve(design.T @ design + penalty, design.T @ targets)

    def left_out(ridge):
        error = 0.0
        for i in range(len(table)):
            keep = np.arange(len(table)) != i
            solution = fit(table[keep], scores[keep], ridge)
            error += (scores[i] - table[i] @ solution[:-1] - solution[-1]) ** 2
        return error

    best = min(RIDGES, key=left_out)
    assert best == ridge_expected  # the three cases need ridges far apart
    *coefficients, offset = fit(table, scores, best)
    model = fit_comment_model(texts, scores)
    assert model.coefficients == pytest.approx(dict(zip(known, coefficients, strict=True)), abs=1e-9)
    assert model.offset == pytest.approx(offset)
    new = ["clear clear reply", "wrong about it", "nothing known: xyzzy plugh"]
    assert model(new) == pytest.approx(tfidf(new, known, texts) @ coefficients + offset)
    assert model([]).shape == (0,)


def test_a_comment_model_finds_what_comments_tell():
    texts, scores = remarks(np.random.default_rng(8), 200, told=0.9)
    model = fit_comment_model(texts, scores)
    assert model.gain.verdict == "above 0"
    assert 0.3 < model.explained < 0.75  # which side of 1/2 a score is on explains 3/4 of its variance
    assert model.gain.count == 200
    raises, lowers = model.telling(4)
    assert set(raises) == set(GOOD)
    assert set(lowers) == set(BAD)
    assert "the comments predict the score" in repr(model)
    high, low, unknown = model(["clear and kind", "wrong, rude", "xyzzy"])
    assert high > 0.6 > 0.4 > low
    assert unknown == pytest.approx(model.offset)


def test_a_comment_model_says_that_it_predicts_nothing():
    """On scores that have nothing to do with the comments, 0 of 80 are called predictive: at 2.5 % 2 are allowed.

    More than 6 would be a chance of 0.4 % at 2.5 %.
    """
    rng = np.random.default_rng(9)
    verdicts = []
    for _ in range(80):
        texts, _ = remarks(rng, 40, told=0.9)
        verdicts.append(fit_comment_model(texts, rng.random(40)).gain.verdict)
    assert verdicts.count("above 0") <= 6, verdicts.count("above 0")
    texts, _ = remarks(rng, 40, told=0.9)
    said = {repr(fit_comment_model(texts, rng.random(40))).rpartition(": ")[2] for _ in range(20)}
    assert "INCONCLUSIVE" in said
    assert "the comments predict the score" not in said


def test_comments_on_one_reply_stay_together():
    """A name that stands in all comments on one reply tells its score only to a model that saw that reply."""
    rng = np.random.default_rng(10)
    about = [i for i in range(40) for _ in range(5)]
    score = rng.random(40)
    texts = [f"{' '.join(rng.choice(NEUTRAL, 3))} name{i}" for i in about]
    apart = fit_comment_model(texts, score[about])
    together = fit_comment_model(texts, score[about], groups=about)
    assert apart.gain.verdict == "above 0"
    assert together.gain.verdict != "above 0"
    assert together.gain.count == 40
    comments = [Comment("Hi", f"reply {i}", text) for i, text in zip(about, texts, strict=True)]
    scores = {(HI, f"reply {i}"): float(s) for i, s in enumerate(score)}
    joined = comments_to_model([*comments, Comment("Hi", "unscored", "text")], scores)
    assert joined.gain == together.gain
    with pytest.raises(ValueError, match="none of 1 comments is on a reply with a score"):
        comments_to_model(comments[:1], {})


def test_too_few_comments():
    with pytest.raises(ValueError, match=r"comments on 4 replies .* expected at least 10 replies"):
        fit_comment_model(["a"] * 4, [1, 2, 3, 4])
    with pytest.raises(ValueError, match="1 different scores"):
        fit_comment_model(["a"] * 20, [1.0] * 20)
    with pytest.raises(ValueError, match="got 2 texts, 3 scores"):
        fit_comment_model(["a"] * 2, [1, 2, 3])
    assert fit_comment_model([""] * 12, np.arange(12.0), folds=2).gain.verdict != "above 0"  # no words at all


TOPICS = (
    ("closing", "hours", "late", "monday"),
    ("tone", "rude", "polite", "cold"),
    ("address", "street", "map", "far"),
)


def test_topics_are_the_planted_ones():
    rng = np.random.default_rng(11)
    planted = [int(t) for t in rng.choice(3, 90, p=[0.5, 0.3, 0.2])]
    others = [f"word{i}" for i in range(60)]
    texts = [" ".join([*rng.choice(TOPICS[t], 3), "is", "the", *rng.choice(others, 2)]) for t in planted]
    found = comment_topics(texts, count=3, words=4)
    assert {frozenset(topic.words) for topic in found} == set(map(frozenset, TOPICS))
    for topic in found:
        (t,) = (t for t, names in enumerate(TOPICS) if set(names) == set(topic.words))
        assert {planted[i] for i in topic.comments} == {t}
        assert topic.share == planted.count(t) / 90
    assert [topic.share for topic in found] == sorted((topic.share for topic in found), reverse=True)
    assert sum(topic.share for topic in found) == pytest.approx(1)
    assert comment_topics(texts, count=3) == comment_topics(texts, count=3)
    for count in (0, 99):
        with pytest.raises(ValueError, match="expected at least 1 topic"):
            comment_topics(["a b", "c d"], count)


def test_a_long_list_of_terms_is_cut_to_the_commonest(monkeypatch):
    monkeypatch.setattr("rlhf_lab.feedback.comments.MOST_TERMS", 2)
    texts = ["so good", "good and so", "good, rare", "rare so good", "good", "bad", "bad", "bad", "bad", "so so so"]
    model = fit_comment_model(texts, np.arange(10.0))
    assert set(model.coefficients) == {"so", "good"}


def test_odd_texts():
    """Lone surrogates, NUL, other scripts and comments without a word are texts as any other."""
    odd = ["\ud800 gut", "gut\0 schlecht", "\0", "", "schlecht", "😀 gut", "很好 gut", "schlecht \udfff"] * 3
    model = fit_comment_model(odd, ["gut" in text for text in odd], folds=2)
    assert model.gain.verdict == "above 0"
    assert model(["\ud800", "\0"]) == pytest.approx([model.offset] * 2)
    topics = comment_topics(odd, count=2, words=1)  # "gut schlecht" is about the rarer of the two
    assert [(topic.words, topic.share) for topic in topics] == [(("gut",), 3 / 8), (("schlecht",), 3 / 8)]


def test_what_is_fitted_says_nothing_on_the_side(recwarn, capfd):
    rng = np.random.default_rng(13)
    for count in (3, 12):
        texts, scores = remarks(rng, 12, told=0.5)
        fit_comment_model(texts, scores, folds=2)
        comment_topics(texts, count=min(count, 6))
    assert not recwarn.list
    assert capfd.readouterr() == ("", "")
