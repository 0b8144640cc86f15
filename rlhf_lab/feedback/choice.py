"""What to ask next: which of the prompts whose replies wait should be judged, and how long each form of question takes.

    random        any of them
    uncertainty   the reward is least sure which reply is better: the predicted p is nearest to one half
    variance      the members of an ensemble, or draws from the posterior, differ most in what they say of two replies
    bald          the answer is expected to tell most about the weights
    d_optimal     a batch of prompts whose answers together shrink the posterior's volume most (log-determinant)

Choosing by replies and by past answers leaves the likelihood of a correct Bradley-Terry model valid, so a reward model
may learn from the chosen prompts as if they had been drawn. Shares measured on them, such as its accuracy and how often
two raters agree, are those of the chosen prompts: lower than those of all under uncertainty, higher under variance;
`feedback.selection` shows both. Draw some prompts at random for such numbers. Left out: batches under BALD that heed
what their prompts have in common. Chapter 09.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from rlhf_lab.feedback.events import standing
from rlhf_lab.maths.acquisition import chance_of_error, greedy_design, members_information, mutual_information
from rlhf_lab.maths.intervals import check_level
from rlhf_lab.models.ensemble import RewardEnsemble
from rlhf_lab.models.linear_reward import LinearReward
from rlhf_lab.models.tokens import TokenBatch
from rlhf_lab.records import (
    Choice,
    Comment,
    Comparison,
    Edit,
    Event,
    Mark,
    PromptLike,
    Ranking,
    Rating,
    SegmentChoice,
    Skip,
)
from rlhf_lab.training.configs import require
from rlhf_lab.training.randomness import generator_for


# -- what a reward believes of replies that nobody has judged ---------------------------------------------------------
@dataclass(frozen=True, eq=False)
class QuestionPool:
    """Prompts that may be asked, and what a reward believes of each pair of their replies, in log-odds.

        D = means + roots . z,    z standard normal [r]

    For an ensemble of M members this is the normal law with their mean and covariance, and r = M: it can move only in
    the directions in which they differ.

    Attributes:
        means: [P, R] of the R pairs of each prompt, padded.
        roots: [P, R, r].
        choices: [P, R] how many independent choices a pair stands for: an order of K is K - 1 of them, which its
            K (K - 1) / 2 pairs share. 0 where there is no pair.
        members: [M, P, R] D of each member of an ensemble; None of a posterior.
    """

    means: Tensor
    roots: Tensor
    choices: Tensor
    members: Tensor | None = None

    def __len__(self) -> int:
        return len(self.means)

    @property
    def deviations(self) -> Tensor:
        """Standard deviations of D [P, R]."""
        return self.roots.square().sum(-1).sqrt()

    def mean_over_pairs(self, values: Tensor) -> Tensor:
        """[P, R] -> [P]; -infinity for a prompt without a pair."""
        there = self.choices > 0
        means = torch.where(there, values, 0).sum(1) / there.sum(1).clamp_min(1)
        return means.masked_fill(~there.any(1), -torch.inf)


def linear_pool(features: Sequence[Tensor], weights: Tensor, covariance: Tensor) -> QuestionPool:
    """The pool of a linear reward with a posterior.

    Args:
        features: of each prompt those of its replies [K, d]; K may differ, and below 2 there is nothing to ask.
        weights, covariance: [d] and [d, d] of the posterior.

    Example:
        >>> pool = linear_pool([torch.eye(2), torch.zeros(1, 2)], torch.tensor([1.0, -1.0]), torch.eye(2))
        >>> pool.means.tolist(), pool.deviations[0, 0].item() ** 2, pool.choices.tolist()
        ([[2.0], [0.0]], 2.0000000000000004, [[1.0], [0.0]])
    """
    x, choices = _differences([part.double() for part in features])
    return QuestionPool(x @ weights.double(), x @ torch.linalg.cholesky(covariance.double()), choices)


def ensemble_pool(scores: Sequence[Tensor]) -> QuestionPool:
    """The pool of an ensemble.

    Args:
        scores: of each prompt what the M members give its replies [K, M], in log-odds.

    Raises:
        ValueError: fewer than 2 members, which say nothing of what is not known.
    """
    x, choices = _differences([part.double() for part in scores])
    require(x.shape[-1] > 1, "members", f"{x.shape[-1]}", "at least 2; train_reward_ensemble trains several")
    mean = x.mean(-1)
    return QuestionPool(mean, (x - mean[..., None]) / (x.shape[-1] - 1) ** 0.5, choices, x.movedim(-1, 0))


def _differences(parts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """First minus second of all pairs of each part [K, d], padded with zeros [P, R, d]; and `choices` [P, R]."""
    require(len(parts) > 0, "replies", "no prompts", "at least one to choose from")
    size = max([2, *map(len, parts)])
    first, second = torch.tensor(list(combinations(range(size), 2))).mT
    counts = torch.tensor([len(part) for part in parts])[:, None]
    there = (second < counts) & (counts > 1)
    padded = torch.stack([torch.cat([part, part.new_zeros(size - len(part), part.shape[1])]) for part in parts])
    x = (padded[:, first] - padded[:, second]) * there[..., None]
    return x, there * 2.0 / counts.clamp_min(1).double()


def question_pool(
    reward: LinearReward | RewardEnsemble,
    prompts: Sequence[PromptLike],
    replies: Sequence[Sequence[str]],
    max_new_tokens: int | None = None,
) -> QuestionPool:
    """What a reward believes of prompts with several replies each.

    Args:
        reward: trained on the judgements so far; before there are any, see `choose`.
        prompts: that may be asked.
        replies: to each; a text that occurs twice counts once.
        max_new_tokens: longer replies are cut, as in training.

    Raises:
        ValueError: not as many lists of replies as prompts, or an ensemble of one.
    """
    require(len(replies) == len(prompts), "replies", f"{len(replies)} lists", f"one for each of {len(prompts)} prompts")
    different = [list(dict.fromkeys(texts)) for texts in replies]
    rows = [prompt for prompt, texts in zip(prompts, different, strict=True) for _ in texts]
    batch = reward.batch_of(rows, [text for texts in different for text in texts], max_new_tokens)
    sizes = [len(texts) for texts in different]
    if isinstance(reward, RewardEnsemble):
        return ensemble_pool(_member_log_odds(reward, batch).mT.split(sizes))
    return linear_pool(reward.features(batch).split(sizes), reward.weights, reward.covariance)


def _member_log_odds(ensemble: RewardEnsemble, batch: TokenBatch) -> Tensor:
    """[M, B]; every member has its own unit of the score."""
    units = torch.tensor([member.score_std for member in ensemble.members], dtype=torch.float64)
    return ensemble.member_scores(batch).double().cpu() * units[:, None]


# -- rules ------------------------------------------------------------------------------------------------------------
def _information(pool: QuestionPool) -> Tensor:
    if pool.members is None:
        return mutual_information(pool.means, pool.deviations)
    return members_information(pool.members)


def _highest(value: Callable[[QuestionPool], Tensor]) -> "Rule":
    """The rule that takes the prompts with the highest mean of a value [P, R] over their pairs."""

    def rule(pool: QuestionPool, count: int, free: Tensor) -> Tensor:
        values = pool.mean_over_pairs(value(pool))[free]
        return free[values.argsort(descending=True, stable=True)[:count]]

    return rule


def _d_optimal(pool: QuestionPool, count: int, free: Tensor) -> Tensor:
    """Greedy, with the Fisher information of a choice at the mean of the belief, v p (1 - p)."""
    p = torch.sigmoid(pool.means[free])
    rows = (pool.choices[free] * p * (1 - p)).sqrt()[..., None] * pool.roots[free]
    taken, _ = greedy_design(rows, torch.eye(rows.shape[-1], dtype=rows.dtype), count)
    return free[taken]


Rule = Callable[[QuestionPool, int, Tensor], Tensor]  # pool, count, indices to choose from -> indices
RULES: dict[str, Rule] = {
    "random": lambda pool, count, free: free[:count],
    "uncertainty": _highest(lambda pool: chance_of_error(pool.means)),
    "variance": _highest(lambda pool: pool.roots.square().sum(-1)),
    "bald": _highest(_information),
    "d_optimal": _d_optimal,
}


def choose(
    rule: str,
    pool: QuestionPool,
    count: int,
    already: Iterable[int] = (),
    generator: torch.Generator | None = None,
) -> list[int]:
    """The prompts to ask next.

    Uncertainty, variance and BALD take the mean over the pairs of a prompt, so that a prompt with more replies is not
    preferred; for BALD it is a lower bound of what the whole order tells, because the order tells each pair.
    D-optimality counts an order of K as K - 1 choices, on the last layer of a linear reward (Laplace's posterior), and
    on the directions in which the members differ for an ensemble.

    Args:
        rule: one of `RULES`.
        pool: what the present reward believes; make it anew after each training.
        count: prompts wanted.
        already: indices that are not asked again.
        generator: of the order in which prompts are looked at, which decides between equals, and of "random"; the
            stream "choice" of seed 0 if None.

    Returns:
        `count` different indices into the pool, the best first.

    Raises:
        ValueError: an unknown rule, an index that is no prompt's, or fewer prompts left than wanted.

    Example, from the first questions to the next ones of a session:
        >>> from rlhf_lab import FeedbackSession, Ranking, load_language_model
        >>> from rlhf_lab.recipes.few_labels import train_linear_reward
        >>> lm = load_language_model("tiny")
        >>> prompts = [f"Where is the {place}?" for place in "zoo bank park school museum library hotel pool".split()]
        >>> replies = [(f"It is on {street} Street.", "Go away.") for street in "Oak Mill Church Elm".split() * 2]
        >>> judged = [Ranking(p, r, ((0,), (1,))) for p, r in zip(prompts, replies, strict=True)]  # what you said
        >>> reward = train_linear_reward(lm, judged).model
        >>> waiting = [("When does the zoo open?", ["At nine.", "At ten."]), ("Why?", ["Go away.", "I do not know."])]
        >>> [next_one] = choose("bald", question_pool(reward, *zip(*waiting)), 1)
        >>> session = FeedbackSession([waiting[next_one]])

    Source: as the formulas of `maths.acquisition`. Chapter 09.
    """
    require(rule in RULES, "rule", rule, f"one of {sorted(RULES)}")
    gone = set(already)
    require(gone <= set(range(len(pool))), "already", sorted(gone)[:10], f"indices from 0 to {len(pool) - 1}")
    order = torch.randperm(len(pool), generator=generator or generator_for(0, "choice"))
    there = (pool.choices > 0).any(1)
    free = torch.tensor([i for i in order.tolist() if there[i] and i not in gone], dtype=torch.long)
    expected = f"1 to {len(free)}, the prompts that have two different replies and were not asked"
    require(1 <= count <= len(free), "count", count, expected)
    return RULES[rule](pool, count, free).tolist()


# -- which form -------------------------------------------------------------------------------------------------------
FORMS: dict[type, str] = {  # of a judgement: the form of the question
    Ranking: "rank",
    Rating: "rate",
    Comparison: "compare",
    Choice: "compare",
    SegmentChoice: "compare segments",
    Edit: "edit",
    Mark: "mark",
    Comment: "comment",
}


@dataclass(frozen=True)
class Seconds:
    """How long one judgement of a form took, from recorded times.

    Attributes:
        median: seconds; None where no time was recorded.
        low, high: ends of its interval, two of the durations; 0 and infinity where they are too few.
        count: judgements with a time.
    """

    median: float | None = None
    low: float = 0.0
    high: float = float("inf")
    count: int = 0

    def __str__(self) -> str:
        if self.median is None:
            return "not known"
        return f"{self.median:.1f} s [{self.low:.1f}, {self.high:.1f}] of {self.count}"


def seconds_per_label(events: Iterable[Event], level: float = 0.95) -> dict[str, Seconds]:
    """Seconds that a person took for one judgement of each form, by the recorded times alone.

    The median, because a break in the middle of a question makes a mean long. Its interval is between two order
    statistics, each end missed with a chance of at most (1 - level) / 2, whatever the law of the durations. What was
    taken back, skipped or not timed does not count, and neither do simulated people, whose times are invented.

    Args:
        events: of a log or a store.
        level: of the intervals.

    Returns:
        Of every form of question `Seconds`; "not known" where there are none.

    Example:
        >>> def event(i, seconds):
        ...     return Event(str(i), Rating("Hi", "Hello.", 4), duration=seconds)
        >>> found = seconds_per_label([event(i, 5.0 + i) for i in range(9)])
        >>> print(found["rate"], "|", found["edit"])
        9.0 s [6.0, 12.0] of 9 | not known

    Source: the interval of a quantile, David and Nagaraja 2003, Order Statistics, section 7.1. Chapter 09.
    """
    check_level(level)
    times: dict[str, list[float]] = {form: [] for form in FORMS.values()}
    for event in standing(events):
        skipped = isinstance(event.record, Skip) or getattr(event.record, "status", "done") == "skipped"
        form = FORMS.get(type(event.record))
        if form and event.duration > 0 and not skipped and not event.simulated:
            times[form].append(event.duration)
    return {form: _median(sorted(seconds), level) for form, seconds in times.items()}


def _median(ordered: Sequence[float], level: float) -> Seconds:
    """With its interval between the k-th smallest and the k-th largest, k as large as the level allows."""
    from scipy.stats import binom  # costs a second that only this needs

    count = len(ordered)
    if not count:
        return Seconds()
    outside = int(binom.ppf((1 - level) / 2, count, 0.5))  # P(fewer than that many lie below the median) <= (1-level)/2
    ends = (ordered[outside - 1], ordered[count - outside]) if outside else (0.0, float("inf"))
    return Seconds((ordered[(count - 1) // 2] + ordered[count // 2]) / 2, *ends, count)
