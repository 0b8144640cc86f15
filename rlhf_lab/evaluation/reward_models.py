"""How good is a reward model? Accuracy beside what raters agree on and the best that anybody could do, and confidence.

What it likes beside the truth is in `reward_biases`. Left out: calibration with temperature or isotonic regression.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rlhf_lab.maths.intervals import (
    Interval,
    Share,
    finite,
    outcome_interval,
    proportion_interval,
    ratio_of_means_bootstrap,
)
from rlhf_lab.maths.preferences import best_possible_accuracy, expected_accuracy, rater_agreement, reliability_bins
from rlhf_lab.models.ensemble import RewardEnsemble
from rlhf_lab.models.linear_reward import LinearReward
from rlhf_lab.models.reward_model import RewardModel
from rlhf_lab.records import Comparison, Conversation, Ranking
from rlhf_lab.training.configs import require
from rlhf_lab.training.randomness import generator_for
from rlhf_lab.worlds.town.oracle import score_replies
from rlhf_lab.worlds.town.raters import CAREFUL


@dataclass(frozen=True)
class RewardModelReport:
    """How well a reward model predicts held-out preferences.

    Attributes:
        accuracy: share of labels it agrees with.
        expected_accuracy: E[p(rater agrees with its choice)], without the noise of the labels drawn; None if
            unknown.
        ceiling: E[max(p, 1 - p)], the best that any model can reach on these raters; None if unknown.
        confidence: [N] the probability it gives to its own choice, in [1/2, 1].
        agreed: [N] whether the label agreed with it.
        rater_agreement: E[p^2 + (1 - p)^2], how often two raters say the same; below the ceiling, because the second
            rater is as noisy as the first. None if unknown.
        differences: [N] score of the chosen reply less that of the rejected one, in the units of training.
    """

    accuracy: Interval
    expected_accuracy: float | None
    ceiling: float | None
    confidence: tuple[float, ...]
    agreed: tuple[float, ...]
    rater_agreement: float | None = None
    differences: tuple[float, ...] = ()

    def table(self) -> list[tuple[str, str]]:
        """Its numbers in words: what is measured, and beside it what could be reached at best."""
        bar = self.accuracy
        rows = [("agrees with the labels", f"{bar.mean:.1%} [{bar.low:.1%}, {bar.high:.1%}], {len(self.agreed)} pairs")]
        known = {
            "would agree with new labels": self.expected_accuracy,
            "two raters agree": self.rater_agreement,
            "best possible": self.ceiling,
        }
        return rows + [(name, f"{number:.1%}") for name, number in known.items() if number is not None]

    def __repr__(self) -> str:
        return "\n".join(f"{name:28}{number}" for name, number in self.table())


def evaluate_reward_model(
    chosen_scores: Sequence[float],
    rejected_scores: Sequence[float],
    *,
    groups: Sequence[int] | None = None,
    agreement: Sequence[float] | None = None,
) -> RewardModelReport:
    """Accuracy, ceiling and confidence on held-out pairs.

    Args:
        chosen_scores, rejected_scores: [N] scores in the units of training (`raw_scores`), so that
            sigmoid(chosen - rejected) is the model's probability. Equal scores count one half.
        groups: [N] the ranking a pair comes from. Pairs of one ranking are not independent: with groups the
            interval is from resampling rankings, without it is Wilson's.
        agreement: [N] p(rater prefers the chosen one), known for simulated raters.

    Raises:
        ValueError: lengths that differ, or no pairs.

    Example:
        >>> report = evaluate_reward_model([1.0, 0.0], [0.0, 2.0], agreement=[0.9, 0.4])
        >>> report.accuracy.mean, round(report.expected_accuracy, 2), round(report.ceiling, 2)
        (0.5, 0.75, 0.75)
        >>> round(report.rater_agreement, 2)
        0.67

    Source: accuracy beside labeller agreement as in Ouyang et al. 2022; the two bounds are in chapter 09.
    """
    chosen, rejected = finite(chosen_scores, "chosen_scores"), finite(rejected_scores, "rejected_scores")
    others = {"rejected_scores": rejected, "groups": groups, "agreement": agreement}
    for name, other in others.items():
        if other is not None and len(other) != len(chosen):
            raise ValueError(f"{name} must have one value a pair, {len(chosen)}, got {len(other)}")
    difference = chosen - rejected
    agreed = (np.sign(difference) + 1) / 2
    if groups is None:
        accuracy = proportion_interval(float(agreed.sum()), len(agreed))
    else:
        names = np.asarray(groups)
        known = names.ndim == 1 and names.dtype.kind in "iuU"
        require(known, "groups", f"{groups!r:.60}", "a whole number or a name for each pair")
        place = np.unique(names, return_inverse=True)[1]
        accuracy = _share_of_groups(np.bincount(place, agreed), np.bincount(place).astype(float))
    expected = ceiling = agreement_of_two = None
    if agreement is not None:
        p = torch.tensor(finite(agreement, "agreement"))
        expected = float(expected_accuracy(torch.tensor(difference), p))
        ceiling, agreement_of_two = float(best_possible_accuracy(p)), float(rater_agreement(p))
    confidence = tuple((1 / (1 + np.exp(-np.abs(difference)))).tolist())
    numbers = (tuple(agreed.tolist()), agreement_of_two, tuple(difference.tolist()))
    return RewardModelReport(accuracy, expected, ceiling, confidence, *numbers)


def _share_of_groups(right: np.ndarray, pairs: np.ndarray) -> Interval:
    """Share of all pairs, from resampled groups; where no resample could differ, or each pair is its own, by score."""
    if (pairs == 1).all() or right.sum() in (0, pairs.sum()):
        return outcome_interval(right / pairs)
    found = ratio_of_means_bootstrap(right, pairs)
    return Share(found.mean, found.low, found.high, found.count)


@dataclass(frozen=True)
class Calibration:
    """Predicted against observed, bin by bin; empty bins are left out.

    Attributes:
        predicted: [bins] mean P(left) that the model gives to the pairs of a bin.
        observed: [bins] share of them in which left was chosen, with Wilson's interval. It takes the pairs for
            independent; those of one ranking are not, so with rankings it is too narrow.
        error: mean of |predicted - observed|, weighted by counts. Never quite 0 on a sample.
    """

    predicted: tuple[float, ...]
    observed: tuple[Interval, ...]
    error: float


def calibration(
    differences: Sequence[float], *, agreement: Sequence[float] | None = None, bins: int = 10, seed: int = 0
) -> Calibration:
    """Is the model as sure as it should be? Of the pairs to which it gives P(left) = x, left should be chosen in x.

        P(left) = sigmoid(score(left) - score(right))

    Which reply is the left one is drawn for each pair. With the chosen one always on the left the outcome would be 1
    throughout and nothing could be seen; with the one that the model prefers, only confidences from 1/2 on.

    Args:
        differences: [N] score of the chosen reply less that of the rejected one, in the units of training, such as
            `RewardModelReport.differences` of a model trained by a loss of preferences.
        agreement: [N] p(rater prefers the chosen one) where it is known; the observed share is then of these, without
            the noise of the labels that were drawn.
        bins: of equal width between 0 and 1.
        seed: of the sides.

    Raises:
        ValueError: no numbers, an agreement that does not pair up, or bins below 1.

    Example:
        >>> table = calibration([2.0, -1.0, 0.5, 3.0], bins=2)
        >>> [share.count for share in table.observed]
        [1, 3]

    Source: Guo et al. 2017, On Calibration of Modern Neural Networks. Chapter 09.
    """
    difference = finite(differences, "differences")
    p = np.ones(len(difference)) if agreement is None else finite(agreement, "agreement")
    if len(p) != len(difference):
        raise ValueError(f"agreement must have one value a pair, {len(difference)}, got {len(p)}")
    left = torch.rand(len(p), generator=generator_for(seed, "sides")).numpy() < 0.5
    predicted = 1 / (1 + np.exp(-np.where(left, difference, -difference)))
    found = reliability_bins(torch.tensor(predicted), torch.tensor(np.where(left, p, 1 - p)), bins)
    rows = zip(found.counts.tolist(), found.predicted.tolist(), found.observed.tolist(), strict=True)
    kept = [(x, proportion_interval(min(share, 1.0) * count, count)) for count, x, share in rows if count]
    return Calibration(tuple(x for x, _ in kept), tuple(share for _, share in kept), found.calibration_error)


def reward_model_report(
    rm: RewardModel | RewardEnsemble | LinearReward,
    preferences: Sequence[Ranking | Comparison],
    max_new_tokens: int | None = None,
) -> RewardModelReport | None:
    """Accuracy on held-out pairs, beside the best possible where the rater is the simulated one; None without pairs.

    Longer replies than `max_new_tokens` are cut, as in training. Of an ensemble the differences are those of its score,
    in the raw units of its members on average.
    """
    pairs = [
        (row, record.prompt, *texts)
        for row, record in enumerate(preferences)
        for texts in (
            [(record.chosen, record.rejected)]
            if isinstance(record, Comparison)
            else [(record.replies[b], record.replies[w]) for b, w in record.pairs()]
        )
    ]
    if not pairs:
        return None
    groups, prompts, chosen, rejected = zip(*pairs, strict=True)
    scores = [rm.score(prompts, texts, max_new_tokens=max_new_tokens) * rm.score_std for texts in (chosen, rejected)]
    return evaluate_reward_model(
        scores[0].tolist(),
        scores[1].tolist(),
        groups=groups,
        agreement=_agreement(preferences, prompts, chosen, rejected),
    )


def _agreement(
    preferences: Sequence[Ranking | Comparison],
    prompts: Sequence[Conversation],
    chosen: Sequence[str],
    rejected: Sequence[str],
) -> list[float] | None:
    """p(the rater prefers chosen) for simulated rankings; None for anybody else's, because nobody knows it."""
    if not all(record.simulated and record.rater == CAREFUL.name for record in preferences):
        return None
    utilities = []
    for texts in (chosen, rejected):
        verdicts = zip(score_replies(prompts, texts), texts, strict=True)
        known = [CAREFUL.utility(verdict, text) for verdict, text in verdicts if verdict is not None]
        if len(known) < len(texts):  # a prompt that is not the town's has no true reward
            return None
        utilities.append(torch.tensor(known))
    return CAREFUL.prefers(utilities[0] - utilities[1]).tolist()
