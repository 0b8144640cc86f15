"""From preferences to scores: likelihoods of choices, ties and rankings, and how good the predictions are.

All losses are negative log-likelihoods in nats, one per comparison. Only differences of scores are
identified: a constant added to all scores of a prompt changes nothing.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from rlhf_lab.maths.tensors import check_data, check_shapes


def bradley_terry_loss(chosen_scores: Tensor, rejected_scores: Tensor, margin: float | Tensor = 0.0) -> Tensor:
    """Negative log-likelihood of a choice between two responses.

    -log sigmoid(chosen - rejected - margin)

    Args:
        chosen_scores, rejected_scores: [N].
        margin: the lead that the chosen one should have; a number, or data [N]. 0 is the Bradley-Terry model.

    Returns:
        [N]; log 2 where the scores are equal and the margin is 0.

    Raises:
        ValueError: shapes differ.

    Example:
        >>> round(bradley_terry_loss(torch.tensor([2.0]), torch.tensor([1.0])).item(), 4)  # log(1 + exp(-1))
        0.3133

    Source: Bradley and Terry 1952; Ouyang et al. 2022, equation 1; the margin: Touvron et al. 2023. Chapter
    09.
    """
    check_shapes(chosen_scores=chosen_scores, rejected_scores=rejected_scores)
    if isinstance(margin, Tensor) and margin.dim():
        check_shapes(chosen_scores=chosen_scores, margin=margin)
    return softplus(rejected_scores - chosen_scores + margin)


def davidson_loss(left_scores: Tensor, right_scores: Tensor, outcome: Tensor, log_nu: float | Tensor) -> Tensor:
    """Negative log-likelihood of a choice that may be a tie.

    P(left) : P(tie) : P(right) = exp(left) : nu exp((left + right)/2) : exp(right)

    Given that it is no tie, the choice follows Bradley-Terry; nu -> 0 is Bradley-Terry. Ties are likeliest
    between equal scores, where P(tie) = nu / (nu + 2).

    Args:
        left_scores, right_scores: [N].
        outcome: [N] integers: 1 left was better, 0 tie, -1 right was better.
        log_nu: how easily raters call a tie, learned with the scores; a number or a scalar tensor.

    Returns:
        [N].

    Raises:
        ValueError: shapes differ, or an outcome is not -1, 0 or 1.

    Example:
        >>> left, right = torch.zeros(1), torch.zeros(1)
        >>> round(davidson_loss(left, right, torch.tensor([0]), log_nu=0.0).item(), 4)    # log 3
        1.0986

    Source: Davidson 1970, On Extending the Bradley-Terry Model to Accommodate Ties. Chapter 09.
    """
    check_shapes(left_scores=left_scores, right_scores=right_scores, outcome=outcome)
    if not ((outcome == 1) | (outcome == 0) | (outcome == -1)).all():
        raise ValueError(f"outcome must be 1 (left), 0 (tie) or -1 (right), got {outcome.unique().tolist()}")
    half = (left_scores - right_scores) / 2
    log_nu = torch.as_tensor(log_nu, dtype=half.dtype, device=half.device).expand_as(half)
    log_weights = torch.stack([-half, log_nu, half], dim=-1)  # [N, 3]: right, tie, left
    return -log_weights.log_softmax(-1).gather(-1, (outcome.long() + 1).unsqueeze(-1)).squeeze(-1)


def _places_to_rank(scores: Tensor, present: Tensor, num_ranked: int | Tensor | None) -> Tensor:
    """num_ranked as [N], checked together with the arguments it counts in."""
    check_shapes(scores=scores, present=present)
    if scores.dim() != 2 or present.dtype != torch.bool:
        raise ValueError(
            f"scores and present must be [N, K] and present bool, got {list(scores.shape)} and {present.dtype}"
        )
    sizes = present.sum(1)
    if (sizes < 2).any():
        raise ValueError(f"present must hold at least 2 responses a row, got {sizes.tolist()}; drop such rows")
    if not isinstance(num_ranked, Tensor):
        num_ranked = sizes if num_ranked is None else sizes.clamp(max=num_ranked)
    check_shapes(**{"the rows of scores": sizes, "num_ranked": num_ranked})
    if ((num_ranked < 1) | (num_ranked > sizes)).any():
        raise ValueError(
            f"num_ranked must be between 1 and the number present {sizes.tolist()}, got {num_ranked.tolist()}"
        )
    return num_ranked


def plackett_luce_loss(scores: Tensor, present: Tensor, num_ranked: int | Tensor | None = None) -> Tensor:
    """Negative log-likelihood of a ranking, as choices of the best among what is left.

    sum over the ranked i of  log sum_{j at or below i} exp(s_j) - s_i

    With two responses it is Bradley-Terry.

    Args:
        scores: [N, K], best first. What lies under present = False never counts.
        present: [N, K] bool; at least 2 True a row, anywhere in the row.
        num_ranked: only the first num_ranked present responses are ordered, the others are all below them in
            no order. None: all are ordered; a number: so many in every row, or all where there are fewer; or
            [N] integers between 1 and the number present.

    Returns:
        [N].

    Raises:
        ValueError: shapes differ, fewer than 2 responses in a row, or num_ranked does not fit.

    Example:
        >>> scores, present = torch.zeros(1, 3), torch.ones(1, 3, dtype=torch.bool)
        >>> round(plackett_luce_loss(scores, present).item(), 4)    # log 3!
        1.7918
        >>> round(plackett_luce_loss(scores, present, num_ranked=1).item(), 4)    # log 3
        1.0986

    Source: Plackett 1975, The Analysis of Permutations; Luce 1959. Chapter 09.
    """
    num_ranked = _places_to_rank(scores, present, num_ranked)
    scores = torch.where(present, scores, 0)
    size = scores.shape[1]
    below = torch.ones(size, size, dtype=torch.bool, device=scores.device).triu()  # [i, j]: j at or below i
    # Absent i keep themselves as a candidate: a finite term that is then left out of the sum.
    candidates = below & (present.unsqueeze(1) | torch.eye(size, dtype=torch.bool, device=scores.device))
    log_sums = scores.unsqueeze(1).masked_fill(~candidates, -torch.inf).logsumexp(-1)  # [N, K]
    chosen = present & (present.cumsum(-1) <= num_ranked.unsqueeze(-1))
    return torch.where(chosen, log_sums - scores, 0).sum(-1)


def rating_loss(scores: Tensor, ratings: Tensor) -> Tensor:
    """Half the squared error of a score that should predict a rating.

    1/2 (score - rating)^2

    The Gaussian likelihood up to constants; its minimum is the mean rating. Unlike choices, ratings identify
    the
    offset, and every rater uses the scale in his own way: standardise per rater first.

    Args:
        scores: [N].
        ratings: [N] data, in the units of the score.

    Returns:
        [N].

    Raises:
        ValueError: shapes differ, or ratings requires grad.

    Example:
        >>> rating_loss(torch.tensor([1.0]), torch.tensor([3.0])).tolist()
        [2.0]

    Chapter 09.
    """
    check_shapes(scores=scores, ratings=ratings)
    check_data(ratings=ratings)
    return (scores - ratings).square() / 2


def accuracy(chosen_scores: Tensor, rejected_scores: Tensor) -> Tensor:
    """Share of labelled pairs in which the chosen response has the higher score; a tie counts 1/2.

    Labels are noisy: the ceiling is not 1 but `best_possible_accuracy`.

    Args:
        chosen_scores, rejected_scores: [N].

    Returns:
        A scalar in [0, 1].

    Raises:
        ValueError: shapes differ, or there are no pairs.

    Example:
        >>> accuracy(torch.tensor([2.0, 1.0, 0.0]), torch.tensor([1.0, 1.0, 1.0])).item()
        0.5

    Chapter 09.
    """
    check_shapes(chosen_scores=chosen_scores, rejected_scores=rejected_scores)
    differences = chosen_scores - rejected_scores
    return expected_accuracy(differences, torch.ones_like(differences))


def _check_probabilities(name: str, p: Tensor) -> None:
    if not p.numel() or not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"{name} must be a non-empty tensor of probabilities in [0, 1], got {p}")


def expected_accuracy(score_differences: Tensor, p: Tensor) -> Tensor:
    """Probability that a rater agrees with the model's choice, averaged over pairs.

    mean of  p where the model prefers left, 1 - p where it prefers right, 1/2 where it does not care

    Free of the noise of the labels that happened to be drawn: `accuracy` is an estimate of this.

    Args:
        score_differences: [N] score of left minus score of right.
        p: [N] probability that a rater prefers left.

    Returns:
        A scalar in [0, 1], at most `best_possible_accuracy(p)`.

    Raises:
        ValueError: shapes differ, there are no pairs, or p is outside [0, 1].

    Example:
        >>> round(expected_accuracy(torch.tensor([1.0, -2.0, 0.0]), torch.tensor([0.9, 0.6, 0.9])).item(), 4)
        0.6

    Chapter 09.
    """
    check_shapes(score_differences=score_differences, p=p)
    _check_probabilities("p", p)
    return (0.5 + score_differences.sign() * (p - 0.5)).mean()


def best_possible_accuracy(p: Tensor) -> Tensor:
    """The highest accuracy that any model can have on labels of these raters: E[max(p, 1 - p)].

    Args:
        p: [N] probability that a rater prefers left, one per pair.

    Returns:
        A scalar in [1/2, 1]; never below `rater_agreement`.

    Raises:
        ValueError: there are no pairs, or p is outside [0, 1].

    Example:
        >>> round(best_possible_accuracy(torch.tensor([0.9, 0.3])).item(), 4)
        0.8

    Chapter 09.
    """
    _check_probabilities("p", p)
    return torch.maximum(p, 1 - p).mean()


def rater_agreement(p: Tensor) -> Tensor:
    """How often two independent raters give the same answer: E[p^2 + (1 - p)^2].

    Often taken for the ceiling of a reward model's accuracy. It is lower than the ceiling, because the second
    rater is as noisy as the first.

    Args:
        p: [N] probability that a rater prefers left, one per pair.

    Returns:
        A scalar in [1/2, 1].

    Raises:
        ValueError: there are no pairs, or p is outside [0, 1].

    Example:
        >>> round(rater_agreement(torch.tensor([0.9, 0.3])).item(), 4)
        0.7

    Chapter 09.
    """
    _check_probabilities("p", p)
    return (p.square() + (1 - p).square()).mean()


@dataclass(frozen=True)
class ReliabilityBins:
    """Predicted against observed, bin by bin; what a reliability diagram draws.

    Attributes:
        edges: [bins + 1] from 0 to 1; a bin holds its left edge, the last one also 1.
        counts: [bins] predictions in each bin.
        predicted: [bins] mean predicted probability; NaN in an empty bin.
        observed: [bins] mean outcome; NaN in an empty bin.
        calibration_error: mean of |predicted - observed| weighted by counts. Never quite 0 on a sample, and
            larger with more bins, even for a perfect model.
    """

    edges: Tensor
    counts: Tensor
    predicted: Tensor
    observed: Tensor
    calibration_error: float


def reliability_bins(probabilities: Tensor, outcomes: Tensor, bins: int = 10) -> ReliabilityBins:
    """Group predictions by their probability and compare with what happened.

    A model is calibrated if, among the pairs to which it gives probability x, a share x comes true.

    Args:
        probabilities: [N] predicted, in [0, 1].
        outcomes: [N] 1 where it came true, else 0; or its true probability, to leave out the noise of the
            labels.
        bins: number of bins of equal width.

    Returns:
        ReliabilityBins.

    Raises:
        ValueError: shapes differ, no predictions, a value outside [0, 1], or bins < 1.

    Example:
        >>> table = reliability_bins(torch.tensor([0.1, 0.2, 0.9]), torch.tensor([0.0, 1.0, 1.0]), bins=2)
        >>> table.counts.tolist(), table.observed.tolist(), round(table.calibration_error, 4)
        ([2, 1], [0.5, 1.0], 0.2667)

    Source: Guo et al. 2017, On Calibration of Modern Neural Networks. Chapter 09.
    """
    check_shapes(probabilities=probabilities, outcomes=outcomes)
    _check_probabilities("probabilities", probabilities)
    _check_probabilities("outcomes", outcomes)
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    probabilities, outcomes = probabilities.detach().double().flatten(), outcomes.detach().double().flatten()
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64, device=probabilities.device)
    place = torch.bucketize(probabilities, edges[1:-1], right=True)
    counts = torch.bincount(place, minlength=bins)
    predicted = torch.bincount(place, probabilities, minlength=bins) / counts
    observed = torch.bincount(place, outcomes, minlength=bins) / counts
    gaps = (predicted - observed).abs().nan_to_num() * counts
    return ReliabilityBins(edges, counts, predicted, observed, float(gaps.sum() / counts.sum()))
