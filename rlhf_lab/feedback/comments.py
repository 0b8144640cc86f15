"""Comments to numbers: a model from words to scores that says how well it predicts, and topics.

Both count words, weighed by how rare they are (TF-IDF). The model is a ridge regression, the topics are a non-negative
matrix factorisation, all by scikit-learn; both give the same answer every time. Left out: meaning. A word that was
never seen says nothing, and irony says the opposite.
"""

import itertools
import re
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.decomposition import NMF
from sklearn.dummy import DummyRegressor
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import Pipeline, make_pipeline

from rlhf_lab.feedback.targets import ReplyTo
from rlhf_lab.maths.intervals import Interval, Numbers, finite, mean_interval
from rlhf_lab.records import Comment

WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)?")
MOST_TERMS = 1000  # the commonest, so that a fit of ten thousand comments stays fast
RIDGES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
STARTS = 4  # of a factorisation, whose error has several minima; the best is taken
SWEEPS = 10_000  # at most, of each start; some hundreds are enough
# Words that say nothing of a topic. The model keeps them: "not" and "too" tell much of a judgement.
FILLERS = frozenset(
    WORD.findall(
        "a an and are as at be but by for from has have i in is it its of on or so that the their there they this to "
        "was we were what when where which who will with you your"
    )
)


# ---- words to numbers ----------------------------------------------------------------------------------------


def terms(text: str) -> list[str]:
    """The words of a text in lower case, and every two neighbours, so that "not good" is not only "good".

    Example:
        >>> terms("Not good.")
        ['not', 'good', 'not good']

    Chapter 08.
    """
    words = WORD.findall(text.casefold())
    return words + [" ".join(pair) for pair in itertools.pairwise(words)]


def _content_words(text: str) -> list[str]:
    return [word for word in WORD.findall(text.casefold()) if word not in FILLERS]


def _shared(texts: Sequence[str], split: Callable[[str], list[str]]) -> int:
    """How many terms two or more of the texts hold; a vectorizer refuses texts that share none."""
    counts = Counter(term for text in texts for term in set(split(text)))
    return sum(count >= 2 for count in counts.values())


def _tfidf(split: Callable[[str], list[str]]) -> TfidfVectorizer:
    """Of texts: count of a term times 1 + log((1 + texts) / (1 + texts with the term)), each row of length 1."""
    return TfidfVectorizer(analyzer=split, min_df=2, max_features=MOST_TERMS)


# ---- a model from comments to scores -------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, repr=False)
class CommentModel:
    """Predicts a score from the words of a comment; call it with texts.

    Attributes:
        regression: from texts to scores; of one number, the mean, where no two comments it was fitted to share a word.
        gain: how much smaller the squared error is than that of always predicting the mean, on comments that the model
            was not trained on; mean over groups. Its verdict is "above 0" where the comments predict something.
        explained: gain as a share of the squared error of the mean, at most 1; negative where it predicts worse.

    Chapter 08.
    """

    regression: Pipeline | DummyRegressor
    gain: Interval
    explained: float

    @property
    def coefficients(self) -> dict[str, float]:
        """{term: what its TF-IDF is multiplied by}, in the unit of the score."""
        if isinstance(self.regression, DummyRegressor):
            return {}
        tfidf, ridge = self.regression
        return dict(zip(tfidf.get_feature_names_out(), ridge.coef_.tolist(), strict=True))

    @property
    def offset(self) -> float:
        """What it predicts for a text that it knows no word of."""
        return float(self([""])[0])

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Scores [N] of comments, in the unit of the targets; not cut to their range."""
        return self.regression.predict(texts) if len(texts) else np.zeros(0)

    def telling(self, count: int = 5) -> tuple[list[str], list[str]]:
        """The terms that raise the score most, and those that lower it most."""
        rising = sorted(self.coefficients.items(), key=lambda term: term[1])
        raises = [term for term, slope in reversed(rising) if slope > 0]
        lowers = [term for term, slope in rising if slope < 0]
        return raises[:count], lowers[:count]

    def __repr__(self) -> str:
        gain, verdict = self.gain, self.gain.verdict
        what = {"above 0": "the comments predict the score", "below 0": "the model is worse than the mean"}
        return (
            f"CommentModel of {len(self.coefficients)} terms: explains {self.explained:.0%} of the squared error on "
            f"comments held out; gain {gain.mean:.3g} [{gain.low:.3g}, {gain.high:.3g}], n = {gain.count}: "
            f"{what.get(verdict, 'INCONCLUSIVE')}"
        )


def fit_comment_model(
    texts: Sequence[str], scores: Numbers, groups: Sequence[Hashable] | None = None, folds: int = 5, seed: int = 0
) -> CommentModel:
    """Learn to predict scores from comments, and measure on comments held out whether that works.

        minimise  sum (score - offset - coefficients . tfidf(text))^2 + ridge |coefficients|^2

    The ridge is the one of `RIDGES` with the smallest error of leaving one out, among the comments of the training
    part. For the measure the groups are dealt into `folds` parts; each part is predicted by a model of the others. On
    scores that have nothing to do with the comments the gain is called above 0 in less than the 2.5 % of its interval
    (0 of 80 in our tests), because a fitted model then predicts worse than the mean.

    Args:
        texts: N comments.
        scores: [N], such as ratings in [0, 1], of what the comments are about; for yes or no take 1 and 0.
        groups: what comment i is about; comments on one reply share its score and stay in one part. None: all differ.
        folds: parts, at least 2.
        seed: of the deal.

    Raises:
        ValueError: different lengths, fewer than two groups a part, or scores that are all the same.

    Source: Hoerl and Kennard 1970, Ridge Regression; the leave-one-out error of a linear smoother: Allen 1974. Chapter
        08.
    """
    targets, texts = finite(scores, "scores"), list(texts)
    names = list(range(len(texts))) if groups is None else list(groups)
    if not len(texts) == len(targets) == len(names):
        raise ValueError(f"got {len(texts)} texts, {len(targets)} scores, {len(names)} groups; expected as many")
    number = {name: i for i, name in enumerate(dict.fromkeys(names))}
    if folds < 2 or len(number) < 2 * folds or (targets == targets[0]).all():
        raise ValueError(
            f"got comments on {len(number)} replies and {len(set(targets.tolist()))} different scores for {folds} "
            f"parts; expected at least {2 * max(folds, 2)} replies and 2 scores. Collect more, or take fewer parts"
        )
    group = np.array([number[name] for name in names])
    part = np.random.default_rng(seed).permutation(len(number))[group] % folds
    errors, base = np.empty(len(texts)), np.empty(len(texts))
    for held_out in (part == fold for fold in range(folds)):
        inside, outside = ([texts[i] for i in np.flatnonzero(where)] for where in (~held_out, held_out))
        errors[held_out] = (targets[held_out] - _regression(inside, targets[~held_out]).predict(outside)) ** 2
        base[held_out] = (targets[held_out] - targets[~held_out].mean()) ** 2
    counts = np.bincount(group)
    gains, bases = (np.bincount(group, x) / counts for x in (base - errors, base))
    return CommentModel(_regression(texts, targets), mean_interval(gains), float(gains.mean() / bases.mean()))


def _regression(texts: Sequence[str], scores: np.ndarray) -> Pipeline | DummyRegressor:
    """The ridge with the smallest leave-one-out error, or the mean where there is nothing to count."""
    if not _shared(texts, terms):
        return DummyRegressor().fit(texts, scores)
    return make_pipeline(_tfidf(terms), RidgeCV(RIDGES)).fit(texts, scores)


def comments_to_model(comments: Sequence[Comment], scores: Mapping[ReplyTo, float], folds: int = 5) -> CommentModel:
    """`fit_comment_model` on comments whose replies have a score, from other people's ratings for example.

    Args:
        comments: those on replies without a score are left out.
        scores: {(prompt, reply): score}.
        folds: see `fit_comment_model`.

    Raises:
        ValueError: as `fit_comment_model`.

    Chapter 08.
    """
    known = [comment for comment in comments if (comment.prompt, comment.reply) in scores]
    about = [(comment.prompt, comment.reply) for comment in known]
    if not known:
        raise ValueError(
            f"none of {len(comments)} comments is on a reply with a score; expected scores of their replies"
        )
    return fit_comment_model([comment.text for comment in known], [scores[reply] for reply in about], about, folds)


# ---- topics --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Topic:
    """What some comments have in common.

    Attributes:
        words: those that count most in it, the first most.
        share: of all comments, those that are mainly about it; what is missing to 1 holds no word of any topic.
        comments: places of the comments that hold more of it than of every other, most first.
    """

    words: tuple[str, ...]
    share: float
    comments: tuple[int, ...]


def comment_topics(texts: Sequence[str], count: int = 4, words: int = 5, seed: int = 0) -> list[Topic]:
    """Topics of comments, the commonest first, by non-negative matrix factorisation.

        tfidf [N, V] ~ amounts [N, count] x topics [count, V],    all >= 0, least squared error

    Args:
        texts: N comments.
        count: of topics; one that no comment is mainly about is left out.
        words: of each topic that are named.
        seed: of the starts; the error has several minima, and the smallest of four is taken.

    Raises:
        ValueError: a count below 1, or fewer words that two comments share than topics.

    Example:
        >>> said = ["too long", "much too long", "wrong place", "the wrong place", "too long", "wrong place again"]
        >>> [topic.words[:2] for topic in comment_topics(said, count=2)]
        [('long', 'too'), ('place', 'wrong')]

    Source: Lee and Seung 1999, Learning the parts of objects by non-negative matrix factorization; by coordinate
    descent as in Cichocki and Phan 2009, Fast local algorithms. Chapter 08.
    """
    shared = _shared(texts, _content_words)
    if not 1 <= count <= shared:
        raise ValueError(
            f"count is {count}, and {shared} words stand in two or more of {len(texts)} comments; "
            "expected at least 1 topic and as many such words. Ask for fewer topics, or collect more comments"
        )
    tfidf, starts = _tfidf(_content_words), np.random.RandomState(seed)
    table = tfidf.fit_transform(texts)
    fits = [NMF(count, init="random", random_state=starts, max_iter=SWEEPS).fit(table) for _ in range(STARTS)]
    best = min(fits, key=lambda fit: fit.reconstruction_err_)
    topics = best.components_
    amounts = best.transform(table) * np.linalg.norm(topics, axis=1)
    return _topics(amounts, topics, tfidf.get_feature_names_out().tolist(), words)


def _topics(amounts: np.ndarray, topics: np.ndarray, names: Sequence[str], words: int) -> list[Topic]:
    main = np.where(amounts.any(axis=1), amounts.argmax(axis=1), -1)
    found = []
    for number in range(len(topics)):
        named = [i for i in np.argsort(-topics[number], kind="stable")[:words] if topics[number, i] > 1e-6]
        own = [int(i) for i in np.argsort(-amounts[:, number], kind="stable") if main[i] == number]
        if own:
            found.append(Topic(tuple(names[i] for i in named), len(own) / len(amounts), tuple(own)))
    return sorted(found, key=lambda topic: (-topic.share, topic.words))
