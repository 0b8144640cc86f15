"""Every form of feedback to numbers that a model can learn from: ratings, rankings, edits, several raters.

Marks are in `token_targets`, comments in `comments`, rewards of a dialogue in `turn_rewards`. Each function turns one
form into one kind of number and says in which unit. Left out: who is right where raters disagree; `aggregation` weighs
them.
"""

import itertools
import math
import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

import numpy as np
import torch
from scipy.special import bdtr, ndtr, stdtrit
from torch import Tensor

from rlhf_lab.maths.intervals import Interval, Numbers, check_level, finite, mean_interval
from rlhf_lab.maths.preferences import bradley_terry_loss, plackett_luce_loss
from rlhf_lab.records import Choice, Comparison, Conversation, Demonstration, Edit, Mark, Ranking, Rating

ReplyTo = tuple[Conversation, str]  # a prompt and one reply to it
Normalise = Callable[[np.ndarray], np.ndarray]  # what one rater gave [n] -> the same on a scale that raters share
LONGEST_DIFF = 3000  # words between the first and the last change; comparing more takes minutes
MOST_ORDERS = math.factorial(8)  # that fit a ranking with ties


# ---- ratings -------------------------------------------------------------------------------------------------


def rating_to_unit(rating: Rating) -> float:
    """(score - low) / (high - low), in [0, 1].

    Example:
        >>> rating_to_unit(Rating("Hi", "Hello.", score=4, low=1, high=5))
        0.75

    Chapter 08.
    """
    return (rating.score - rating.low) / (rating.high - rating.low)


def z_scores(values: Numbers) -> np.ndarray:
    """(value - mean) / standard deviation (that of the values, not an estimate); 0 where all are equal.

    Example:
        >>> z_scores([1.0, 2.0, 3.0]).round(2).tolist()
        [-1.22, 0.0, 1.22]

    Chapter 08.
    """
    array = finite(values, "values")
    # Compared, not subtracted: the mean of equal numbers can miss them by a rounding error.
    return np.zeros(len(array)) if (array == array[0]).all() else (array - array.mean()) / array.std()


def ratings_to_unit(ratings: Sequence[Rating], normalise: Normalise | None = None) -> np.ndarray:
    """Ratings as numbers in [0, 1], by the scale alone or relative to what the rater usually gives.

        with normalise    Phi(normalise(ratings of the rater)),    Phi the normal distribution function

    What is relative to the rater removes that one is mild and another stern, and with it the difference between raters
    who happened to see better and worse replies: use it where they saw similar ones.

    Args:
        ratings: N of them, scales may differ.
        normalise: what one rater gave, on [0, 1] -> standard units, as `z_scores` does; None: by the scale alone.

    Returns:
        [N], in the order given.

    Example:
        >>> given = [Rating("Hi", str(s), s, rater=r) for r, s in (("ann", 4), ("ann", 5), ("bob", 1), ("bob", 2))]
        >>> ratings_to_unit(given).tolist(), ratings_to_unit(given, z_scores).round(2).tolist()
        ([0.75, 1.0, 0.0, 0.25], [0.16, 0.84, 0.16, 0.84])

    Chapter 08.
    """
    units = np.array([rating_to_unit(rating) for rating in ratings], dtype=float)
    if normalise is None:
        return units
    for rater in {(rating.rater, rating.simulated) for rating in ratings}:
        own = [i for i, rating in enumerate(ratings) if (rating.rater, rating.simulated) == rater]
        units[own] = ndtr(normalise(units[own]))
    return units


# ---- rankings ------------------------------------------------------------------------------------------------


def to_comparisons(record: Ranking | Choice | Comparison | Edit) -> list[Comparison]:
    """The pairs (chosen, rejected) that a judgement says; none of a tie, of a skip, or of an edit that left the reply.

    Example:
        >>> pairs = to_comparisons(Ranking("Hi", ("a", "b", "c"), ((2,), (0, 1))))
        >>> [(pair.chosen, pair.rejected) for pair in pairs]
        [('c', 'a'), ('c', 'b')]

    Chapter 08.
    """
    if isinstance(record, Comparison):
        return [record]
    if isinstance(record, Ranking):
        pairs = [(record.replies[better], record.replies[worse]) for better, worse in record.pairs()]
    elif isinstance(record, Edit):
        pairs = [(record.edited, record.reply)]
    else:
        pairs = {1: [(record.left, record.right)], 0: [], -1: [(record.right, record.left)]}[record.outcome]
    return [Comparison(record.prompt, *pair, record.rater, record.simulated) for pair in pairs if pair[0] != pair[1]]


def pairwise_ranking_loss(scores: Tensor, ranking: Ranking) -> Tensor:
    """Negative log-likelihood of the pairs of a ranking under Bradley-Terry, mean over the pairs, nats.

        mean over pairs (i above j) of  -log sigmoid(s_i - s_j)

    Args:
        scores: [K], those of `ranking.replies`.
        ranking: a tie forms no pair.

    Returns:
        A scalar; 0 where there is no pair.

    Example:
        >>> loss = pairwise_ranking_loss(torch.zeros(3), Ranking("Hi", ("a", "b", "c"), ((0,), (1,), (2,))))
        >>> round(loss.item(), 4)    # log 2
        0.6931

    Source: Ouyang et al. 2022, equation 1. Chapter 08.
    """
    _check_scores(scores, ranking)
    if not (pairs := ranking.pairs()):
        return scores.sum() * 0  # keeps the graph
    better, worse = torch.tensor(pairs, device=scores.device).T
    return bradley_terry_loss(scores[better], scores[worse]).mean()


def listwise_ranking_loss(scores: Tensor, ranking: Ranking) -> Tensor:
    """Negative log-likelihood of a ranking under Plackett-Luce: a softmax choice of the best among what is left, nats.

    A tie says that its order is not known: the mean over all orders that fit, so that tied replies are drawn together.

    Args:
        scores: [K], those of `ranking.replies`.
        ranking: done; at most 40,320 orders may fit it.

    Returns:
        A scalar; 0 where nothing was ranked.

    Raises:
        ValueError: scores of another shape, or too many ties.

    Example:
        >>> loss = listwise_ranking_loss(torch.zeros(3), Ranking("Hi", ("a", "b", "c"), ((0,), (1,), (2,))))
        >>> round(loss.item(), 4)    # log 3!
        1.7918

    Source: Xia et al. 2008, Listwise Approach to Learning to Rank (ListMLE); the mean over orders is ours. Chapter 08.
    """
    _check_scores(scores, ranking)
    orders = _orders(ranking)
    if not orders:
        return scores.sum() * 0
    ordered = scores[torch.tensor(orders, device=scores.device)]  # [orders, K], best first
    return plackett_luce_loss(ordered, torch.ones_like(ordered, dtype=torch.bool)).mean()


def _check_scores(scores: Tensor, ranking: Ranking) -> None:
    if list(scores.shape) != [len(ranking.replies)]:
        raise ValueError(f"scores has shape {list(scores.shape)}; expected [{len(ranking.replies)}], one a reply")


def _orders(ranking: Ranking) -> list[tuple[int, ...]]:
    """All orders that fit a ranking; none where nothing was ranked."""
    count = math.prod(math.factorial(len(tier)) for tier in ranking.tiers)
    if count > MOST_ORDERS:
        raise ValueError(f"ranking has ties that {count} orders fit; expected {MOST_ORDERS} or fewer. Use the pairs")
    tiers = [itertools.permutations(tier) for tier in ranking.tiers]
    return [tuple(itertools.chain(*order)) for order in itertools.product(*tiers)] if tiers else []


def rankings_to_scores(
    rankings: Sequence[Ranking], loss: str = "listwise", ridge: float = 0.01
) -> dict[ReplyTo, float]:
    """A score for every reply that was ranked, by learning to rank without a model: a table of scores.

        minimise  sum over rankings of loss(scores)  +  ridge * sum of scores^2

    The scores of one prompt sum to 0; those of different prompts cannot be compared. Without a ridge a reply that
    always wins would have an infinite score. For error bars see `aggregation`.

    Args:
        rankings: of any prompts; those that ranked nothing say nothing.
        loss: "pairwise" (`pairwise_ranking_loss`) or "listwise" (`listwise_ranking_loss`).
        ridge: positive.

    Returns:
        {(prompt, reply): score in nats}.

    Raises:
        ValueError: another loss, or a ridge that is not positive.

    Example:
        >>> scores = rankings_to_scores([Ranking("Hi", ("a", "b"), ((1,), (0,)))])
        >>> {reply: round(score, 2) for (_, reply), score in scores.items()}
        {'a': -1.68, 'b': 1.68}

    Chapter 08.
    """
    losses = {"pairwise": pairwise_ranking_loss, "listwise": listwise_ranking_loss}
    if loss not in losses or not ridge > 0:
        raise ValueError(f"loss is {loss!r}, ridge {ridge}; expected one of {sorted(losses)} and a positive ridge")
    prompts: dict[Conversation, list[Ranking]] = defaultdict(list)
    for ranking in rankings:
        prompts[ranking.prompt].append(ranking)
    found: dict[ReplyTo, float] = {}
    for prompt, own in prompts.items():
        replies = list(dict.fromkeys(reply for ranking in own for reply in ranking.replies))
        scores = _fitted(own, {reply: i for i, reply in enumerate(replies)}, losses[loss], ridge)
        found |= {(prompt, reply): score for reply, score in zip(replies, scores.tolist(), strict=True)}
    return found


def _fitted(
    rankings: Sequence[Ranking], number: Mapping[str, int], loss: Callable[[Tensor, Ranking], Tensor], ridge: float
) -> Tensor:
    """[R] scores of one prompt; the objective is convex, so its minimum does not depend on the start."""
    scores = torch.zeros(len(number), dtype=torch.float64, requires_grad=True)
    counts: dict[Ranking, int] = defaultdict(int)
    for ranking in rankings:  # what several people said is computed once
        counts[Ranking(ranking.prompt, ranking.replies, ranking.tiers, ranking.status)] += 1
    places = {ranking: torch.tensor([number[reply] for reply in ranking.replies]) for ranking in counts}
    optimiser = torch.optim.LBFGS([scores], max_iter=300, line_search_fn="strong_wolfe",
                                  tolerance_grad=1e-9, tolerance_change=1e-14)  # fmt: skip

    def objective() -> Tensor:
        optimiser.zero_grad()
        total = ridge * scores.square().sum()
        for ranking, count in counts.items():
            total = total + count * loss(scores[places[ranking]], ranking)
        total.backward()
        return total

    optimiser.step(objective)
    return scores.detach()


# ---- edits ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EditChanges:
    """What an edit did to a reply, word by word; a word is what stands between white space.

    Attributes:
        kept: share of the reply's words that stand in the edited text in the same order, in [0, 1]; 1 for no words.
        similarity: 2 * words in common / words of both, in [0, 1]; 1 for an edit that changed no word.
        changes: (start, end, text) in characters of the reply: what stood there became `text`, in words.
    """

    kept: float
    similarity: float
    changes: tuple[tuple[int, int, str], ...]


def edit_changes(edit: Edit) -> EditChanges:
    """Compare a reply with its edited text, by the longest matching blocks of words.

    Where more than 3,000 words lie between the first change and the last, they count as one change.

    Example:
        >>> changes = edit_changes(Edit("Where is the zoo?", "The zoo is in town.", "The zoo is by the river."))
        >>> changes.kept, round(changes.similarity, 3), changes.changes
        (0.6, 0.545, ((11, 19, 'by the river.'),))

    Source: Ratcliff and Metzener 1988, Pattern Matching: the Gestalt Approach, as in Python's difflib. Chapter 08.
    """
    words = [(found.start(), found.end()) for found in re.finditer(r"\S+", edit.reply)]
    old, new = [edit.reply[start:end] for start, end in words], edit.edited.split()
    common, changes = 0, []
    for same, first, last, new_first, new_last in _blocks(old, new):
        if same:
            common += last - first
            continue
        begin = words[first][0] if first < len(words) else len(edit.reply)
        end = words[last - 1][1] if last > first else begin
        changes.append((begin, end, " ".join(new[new_first:new_last])))
    total = len(old) + len(new)
    return EditChanges(common / len(old) if old else 1.0, 2 * common / total if total else 1.0, tuple(changes))


def _blocks(old: Sequence[str], new: Sequence[str]) -> list[tuple[bool, int, int, int, int]]:
    """(equal, start and end in `old`, start and end in `new`) of the blocks in their order."""
    shorter = min(len(old), len(new))
    head = next((i for i in range(shorter) if old[i] != new[i]), shorter)
    tail = next((i for i in range(shorter - head) if old[-1 - i] != new[-1 - i]), shorter - head)
    middle = old[head : len(old) - tail], new[head : len(new) - tail]
    if max(map(len, middle)) > LONGEST_DIFF:
        inside = [("replace", 0, len(middle[0]), 0, len(middle[1]))]
    else:
        inside = list(SequenceMatcher(None, *middle, autojunk=False).get_opcodes())
    shifted = [(kind == "equal", i + head, j + head, k + head, m + head) for kind, i, j, k, m in inside]
    ends = (len(old) - tail, len(old), len(new) - tail, len(new))
    return [(True, 0, head, 0, head), *shifted, (True, *ends)]


def edit_to_unit(edit: Edit) -> float:
    """A score of the *reply* in [0, 1]: the similarity to what the rater made of it, 1 where nothing had to change.

    Example:
        >>> edit_to_unit(Edit("Hi", "Hello.", "Hello."))
        1.0

    Chapter 08.
    """
    return edit_changes(edit).similarity


def edit_to_demonstration(edit: Edit) -> Demonstration:
    """The edited text as a reply to imitate; a person approved of it, also where he changed nothing.

    Example:
        >>> edit_to_demonstration(Edit("Hi", "Go.", "Hello.")).response
        'Hello.'

    Chapter 08.
    """
    return Demonstration(edit.prompt, edit.edited)


def edit_to_mark(edit: Edit) -> Mark:
    """The words that were replaced or taken out, as marked; what was only put in marks nothing.

    Example:
        >>> edit_to_mark(Edit("Hi", "Go far away now.", "Go away now, please.")).spans
        ((3, 6), (12, 16))

    Chapter 08.
    """
    spans = tuple((start, end) for start, end, _ in edit_changes(edit).changes if end > start)
    return Mark(edit.prompt, edit.reply, spans, edit.rater, edit.simulated)


# ---- several raters ------------------------------------------------------------------------------------------


def pool_raters(
    scores: Numbers, how: str = "mean", reliability: Numbers | None = None, level: float = 0.95
) -> Interval:
    """One score of what several raters gave the same reply, with an interval and their number.

        mean        sum w x / sum w,   +- t(n - 1) sqrt( sum w (x - mean)^2 / ((n - 1) sum w) )
        median      between the order statistics k and n + 1 - k, the largest k with P(Bin(n, 1/2) < k) <= (1 - level)/2

    The interval of the mean is exact for normal errors with variances proportional to 1 / w; that of the median holds
    for every continuous law, at `level` or more, and is infinite for fewer than 6 raters at 95 %.

    Args:
        scores: [n], one a rater, in one unit.
        how: "mean" or "median".
        reliability: [n] weights w > 0, proportional to 1 / variance; None: all the same. Of the mean only.
        level: probability in (0, 1).

    Raises:
        ValueError: names the argument.

    Example:
        >>> pooled = pool_raters([0.5, 0.75, 1.0])
        >>> round(pooled.low, 3), pooled.mean, round(pooled.high, 3), pooled.count
        (0.129, 0.75, 1.371, 3)

    Source: the interval of the median is the sign test's, as in Conover 1999, Practical Nonparametric Statistics.
        Chapter 08.
    """
    values = finite(scores, "scores")
    check_level(level)
    if how not in ("mean", "median") or (how == "median" and reliability is not None):
        raise ValueError(f"how is {how!r}; expected 'mean', or 'median' without reliability")
    if how == "median":
        return _median_interval(values, level)
    if reliability is None:
        return mean_interval(values, level)
    weights = finite(reliability, "reliability")
    if len(weights) != len(values) or not (weights > 0).all():
        raise ValueError(f"reliability is {list(weights)}; expected {len(values)} positive weights, one a score")
    mean, count = float(weights @ values / weights.sum()), len(values)
    if count == 1:
        return Interval(mean, -math.inf, math.inf, 1)
    error = math.sqrt(weights @ (values - mean) ** 2 / (count - 1) / weights.sum())
    half = float(stdtrit(count - 1, (1 + level) / 2)) * error
    return Interval(mean, mean - half, mean + half, count)


def _median_interval(values: np.ndarray, level: float) -> Interval:
    ordered, count = np.sort(values), len(values)
    outside = [k for k in range(1, count // 2 + 1) if bdtr(k - 1, count, 0.5) <= (1 - level) / 2]
    low, high = (ordered[outside[-1] - 1], ordered[-outside[-1]]) if outside else (-math.inf, math.inf)
    return Interval(float(np.median(ordered)), float(low), float(high), count)


def ratings_to_scores(
    ratings: Sequence[Rating],
    how: str = "mean",
    reliability: Mapping[str, float] | None = None,
    normalise: Normalise | None = None,
) -> dict[ReplyTo, Interval]:
    """One score in [0, 1] for every reply that was rated, with an interval and the number of raters.

    A rater who rated a reply several times counts once, with his mean: what one person says is not independent.

    Args:
        ratings: of any prompts and raters.
        how: "mean" or "median", see `pool_raters`.
        reliability: {rater: weight}; None: all the same.
        normalise: see `ratings_to_unit`.

    Raises:
        ValueError: as `pool_raters`, or a rater without a weight.

    Example:
        >>> given = [Rating("Hi", "Hello.", score, rater=rater) for rater, score in (("ann", 4), ("bob", 5))]
        >>> [(reply, score.mean, score.count) for (_, reply), score in ratings_to_scores(given).items()]
        [('Hello.', 0.875, 2)]

    Chapter 08.
    """
    table: dict[ReplyTo, dict[Hashable, list[float]]] = defaultdict(lambda: defaultdict(list))
    for rating, unit in zip(ratings, ratings_to_unit(ratings, normalise), strict=True):
        table[rating.prompt, rating.reply][rating.rater, rating.simulated].append(unit)
    if reliability is not None and (unknown := {rating.rater for rating in ratings} - reliability.keys()):
        raise ValueError(f"reliability has no weight for {sorted(unknown)}; expected one for every rater")
    found = {}
    for reply, by_rater in table.items():
        means = [float(np.mean(own)) for own in by_rater.values()]
        weights = None if reliability is None else [reliability[rater[0]] for rater in by_rater]  # type: ignore[index]
        found[reply] = pool_raters(means, how, weights)
    return found
