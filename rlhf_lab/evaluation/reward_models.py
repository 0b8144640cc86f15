"""How good is a reward model? Accuracy beside the best that anybody could do, and confidence."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rlhf_lab.maths.intervals import Interval, Share, finite, proportion_interval, ratio_of_means_bootstrap
from rlhf_lab.maths.preferences import best_possible_accuracy, expected_accuracy
from rlhf_lab.models.reward_model import RewardModel
from rlhf_lab.records import Comparison, Conversation, Ranking
from rlhf_lab.training.configs import require
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
    """

    accuracy: Interval
    expected_accuracy: float | None
    ceiling: float | None
    confidence: tuple[float, ...]
    agreed: tuple[float, ...]


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
        of_groups = ratio_of_means_bootstrap(np.bincount(place, agreed), np.bincount(place).astype(float))
        accuracy = Share(of_groups.mean, of_groups.low, of_groups.high, of_groups.count)
    expected = ceiling = None
    if agreement is not None:
        p = torch.tensor(finite(agreement, "agreement"))
        expected = float(expected_accuracy(torch.tensor(difference), p))
        ceiling = float(best_possible_accuracy(p))
    confidence = 1 / (1 + np.exp(-np.abs(difference)))
    return RewardModelReport(accuracy, expected, ceiling, tuple(confidence.tolist()), tuple(agreed.tolist()))


def reward_model_report(
    rm: RewardModel, preferences: Sequence[Ranking | Comparison], max_new_tokens: int | None = None
) -> RewardModelReport | None:
    """Accuracy on held-out pairs, beside the best possible where the rater is the simulated one; None without pairs.

    Longer replies than `max_new_tokens` are cut, as in training.
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
