"""What an answer that is not there yet would tell: formulas for choosing the next question.

A belief about a comparison is a law of its log-odds D = s_left - s_right: normal, from a posterior over the weights of
a linear reward, or that of M members of an ensemble, each with chance 1/M. The answer is left with probability
sigmoid(D). Information is in nats. Left out: answers that may be ties, and what several answers tell together under
BALD (BatchBALD). Chapter 09.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid  # softplus is cut off at 20, an error of 2e-9

from rlhf_lab.maths.tensors import check_shapes

REACH, POINTS = 9.0, 301  # of the quadrature: standard deviations to either side, and how many points
PART = 4096  # comparisons in one pass, so that the memory stays below 10 MB each array


def chance_of_error(differences: Tensor) -> Tensor:
    """Probability that a reward which believes its own scores is contradicted, sigmoid(-|D|).

    It is min(p, 1 - p), largest where the predicted p is nearest to one half; how sure the scores are does not enter.

    Args:
        differences: [...] score of left minus score of right, in log-odds.

    Returns:
        [...] in (0, 1/2].

    Example:
        >>> [round(chance, 3) for chance in chance_of_error(torch.tensor([0.0, 2.0, -2.0])).tolist()]
        [0.5, 0.119, 0.119]

    Source: uncertainty sampling, Lewis and Gale 1994, A Sequential Algorithm for Training Text Classifiers. Chapter 09.
    """
    return torch.sigmoid(-differences.abs())


def binary_entropy(p: Tensor) -> Tensor:
    """Entropy of a yes-or-no answer, -p log p - (1 - p) log(1 - p), in nats; 0 at p = 0 and 1.

    >>> [round(nats, 4) for nats in binary_entropy(torch.tensor([0.5, 0.9])).tolist()]    # the first is log 2
    [0.6931, 0.3251]
    """
    return -torch.special.xlogy(p, p) - torch.special.xlogy(1 - p, 1 - p)


def _over_the_belief(means: Tensor, deviations: Tensor) -> tuple[Tensor, Tensor]:
    """E[p] and E[H(p)] under normal beliefs [N], by the trapezoidal rule.

    The rule is far better here than Gauss and Hermite's: its error falls like exp(-2 pi^2 / (step * deviation)), as the
    nearest poles of a sigmoid lie pi / deviation away from the line.
    """
    z = torch.linspace(-REACH, REACH, POINTS, dtype=torch.float64)
    weights = torch.softmax(-z.square() / 2, 0)
    logits = means[:, None] + deviations[:, None] * z
    p = torch.sigmoid(logits)
    entropies = logits * (1 - p) - logsigmoid(logits)  # H of sigmoid(x), finite for every x
    return p @ weights, entropies @ weights


def _beliefs(means: Tensor, deviations: Tensor) -> tuple[Tensor, Tensor]:
    check_shapes(means=means, deviations=deviations)
    if not (deviations >= 0).all() or not means.isfinite().all() or not deviations.isfinite().all():
        raise ValueError("means and deviations must be finite and deviations at least 0; check the posterior")
    flat = zip(means.double().flatten().split(PART), deviations.double().flatten().split(PART), strict=True)
    parts = [_over_the_belief(mean, deviation) for mean, deviation in flat]
    expected, entropies = (torch.cat(part) if parts else torch.empty(0) for part in zip(*parts, strict=True))
    return expected.reshape(means.shape), entropies.reshape(means.shape)


def answer_probability(means: Tensor, deviations: Tensor) -> Tensor:
    """Probability of the answer left where the log-odds are uncertain: E[sigmoid(D)], D ~ normal(mean, deviation^2).

    Args:
        means, deviations: [...] of the log-odds; deviations at least 0. The error of the quadrature is below 1e-9 for
            deviations up to 10.

    Returns:
        [...] in (0, 1), nearer to one half than sigmoid(mean).

    Raises:
        ValueError: shapes differ, or a number that cannot be.

    Example:
        >>> means, deviations = torch.tensor([2.0, 2.0]), torch.tensor([0.0, 3.0])
        >>> [round(p, 4) for p in answer_probability(means, deviations).tolist()]
        [0.8808, 0.7174]

    Source: MacKay 1992, The Evidence Framework Applied to Classification Networks. Chapter 09.
    """
    return _beliefs(means, deviations)[0]


def mutual_information(means: Tensor, deviations: Tensor) -> Tensor:
    """BALD: what the answer to a comparison is expected to tell about the weights, in nats.

        I(answer; weights) = H(E[p]) - E[H(p)],    p = sigmoid(D),    D ~ normal(mean, deviation^2)

    The answer depends on the weights through D alone, so the integral over the weights is one over D. High where the
    answer is open because the weights are; 0 where only the rater's noise leaves it open.

    Args:
        means, deviations: as in `answer_probability`.

    Returns:
        [...] in [0, log 2).

    Raises:
        ValueError: as `answer_probability`.

    Example:
        >>> means, deviations = torch.tensor([0.0, 0.0, 3.0]), torch.tensor([0.0, 1.0, 1.0])
        >>> [round(gain, 4) for gain in mutual_information(means, deviations).tolist()]
        [0.0, 0.0937, 0.0287]

    Source: Houlsby et al. 2011, Bayesian Active Learning for Classification and Preference Learning, equation 2. The
    integral is computed here, where they approximate it. Chapter 09.
    """
    expected, entropies = _beliefs(means, deviations)
    return (binary_entropy(expected) - entropies).clamp_min(0)


def members_information(differences: Tensor) -> Tensor:
    """BALD for an ensemble: what the answer is expected to tell about which of its members is right, in nats.

        H(1/M sum_m p_m) - 1/M sum_m H(p_m),    p_m = sigmoid(D_m)

    Args:
        differences: [M, ...] of each member, in log-odds.

    Returns:
        [...] in [0, min(log 2, log M)].

    Example:
        >>> agree, differ = torch.tensor([[0.0], [0.0]]), torch.tensor([[20.0], [-20.0]])
        >>> members_information(agree).item(), round(members_information(differ).item(), 4)
        (0.0, 0.6931)

    Source: Houlsby et al. 2011; with members, Gal et al. 2017, Deep Bayesian Active Learning with Image Data. Chapter
    09.
    """
    p = torch.sigmoid(differences.double())
    return (binary_entropy(p.mean(0)) - binary_entropy(p).mean(0)).clamp_min(0)


def design_gain(rows: Tensor, covariance: Tensor) -> Tensor:
    """How much information the answers to a prompt add: log det(I + A C A'), the growth of log det of the precision.

    With the precision C^-1 of normal weights, R answers whose Fisher information is A' A make it C^-1 + A' A, and by
    the determinant lemma

        log det(C^-1 + A' A) - log det C^-1 = log det(I + A C A')

    which takes a determinant of size R and not of size d. In a logistic model a row is sqrt(v p (1 - p)) x.

    Args:
        rows: [..., R, d] A of each prompt; rows of zeros add nothing.
        covariance: [d, d] C.

    Returns:
        [...] at least 0.

    Example:
        >>> round(design_gain(torch.tensor([[2.0, 0.0]]), torch.eye(2)).item(), 4)    # log(1 + 4)
        1.6094

    Source: Chaloner and Verdinelli 1995, Bayesian Experimental Design: A Review. Chapter 09.
    """
    inner = rows @ covariance @ rows.mT
    return torch.logdet(torch.eye(rows.shape[-2], dtype=rows.dtype) + inner)


def greedy_design(rows: Tensor, covariance: Tensor, count: int) -> tuple[list[int], list[float]]:
    """A batch of prompts that together add much information: one after the other, the one with the largest gain.

    After each the covariance becomes that after its answers (C - C A' (I + A C A')^-1 A C), so a prompt like one
    that was taken is worth less. The log-determinant is monotone and submodular in the set of prompts; hence this is at
    least 1 - 1/e = 63 % of what the best batch of that size has.

    Args:
        rows: [P, R, d] A of each prompt, see `design_gain`.
        covariance: [d, d] before.
        count: prompts, 1 to P.

    Returns:
        Their indices in the order taken, the first of equals, and the gain of each; the gains add up to that of all.

    Raises:
        ValueError: count is not from 1 to P.

    Example:
        >>> rows = torch.tensor([[[3.0, 0.0]], [[2.9, 0.0]], [[0.0, 1.0]]])
        >>> taken, gains = greedy_design(rows, torch.eye(2), 2)
        >>> taken, [round(gain, 3) for gain in gains]    # the second is nearly the first again
        ([0, 2], [2.303, 0.693])

    Source: Nemhauser, Wolsey and Fisher 1978, An analysis of approximations for maximizing submodular set functions.
    Chapter 09.
    """
    if not 1 <= count <= len(rows):
        raise ValueError(f"count is {count}; expected 1 to {len(rows)}, the number of prompts")
    identity = torch.eye(rows.shape[1], dtype=rows.dtype)
    taken, gains, free = [], [], torch.ones(len(rows), dtype=torch.bool)
    for _ in range(count):
        inner = identity + rows @ covariance @ rows.mT
        gain = torch.logdet(inner).masked_fill(~free, -math.inf)
        best = int(gain.argmax())
        taken.append(best)
        gains.append(float(gain[best]))
        free[best] = False
        moved = rows[best] @ covariance
        covariance = covariance - moved.mT @ torch.linalg.solve(inner[best], moved)
    return taken, gains


def preference_curvature(x: Tensor, mean: Tensor, ridge: float, counts: Tensor) -> Tensor:
    """Second derivative [d, d] of the loss of `preference_posterior` at weights `mean` [d].

    ridge I + sum_n v_n p_n (1 - p_n) x_n x_n',    p_n = sigmoid(w . x_n)
    """
    p = torch.sigmoid(x @ mean)
    return (x * (counts * p * (1 - p))[:, None]).mT @ x + ridge * torch.eye(x.shape[1], dtype=x.dtype)


def preference_posterior(x: Tensor, ridge: float, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Weights of a linear Bradley-Terry model and their covariance, by Newton's method and Laplace's approximation.

        minimise  sum_n v_n log(1 + exp(-w . x_n)) + ridge / 2 |w|^2,    covariance = inverse of its second derivative

    Args:
        x: [N, d] features of the better reply minus those of the worse; N may be 0.
        ridge: precision of the prior normal(0, 1 / ridge), above 0.
        weights: [N] v, how much each counts; 1 if None.

    Returns:
        (mean [d], covariance [d, d]).

    Raises:
        ValueError: ridge is not above 0, or shapes do not fit.

    Example:
        >>> mean, covariance = preference_posterior(torch.tensor([[1.0], [1.0], [-1.0]]), ridge=1.0)
        >>> round(mean.item(), 4), round(covariance.item(), 4)
        (0.2865, 0.5764)

    Source: MacKay 1992, as in `answer_probability`. Chapter 09.
    """
    if not ridge > 0:
        raise ValueError(f"ridge is {ridge}; expected the precision of a prior, above 0")
    x = x.double()
    counts = torch.ones(len(x), dtype=torch.float64) if weights is None else weights.double()
    check_shapes(**{"rows of x": x[:, 0], "weights": counts})
    mean = torch.zeros(x.shape[1], dtype=torch.float64)

    def loss(w: Tensor) -> float:
        return float(-(counts * logsigmoid(x @ w)).sum() + ridge / 2 * (w @ w))

    for _ in range(100):
        curvature = preference_curvature(x, mean, ridge, counts)
        step = torch.linalg.solve(curvature, (counts * torch.sigmoid(-x @ mean)) @ x - ridge * mean)
        size = 1.0
        while loss(mean + size * step) > loss(mean) + 1e-12 and size > 1e-6:
            size /= 2  # a full step may overshoot where the labels are separated
        mean = mean + size * step
        if float(step.abs().max()) < 1e-10:
            break
    return mean, torch.linalg.inv(curvature)
