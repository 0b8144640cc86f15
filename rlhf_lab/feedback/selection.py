"""What choosing the questions does to what one learns from the answers: nothing to the weights, much to the shares.

A question is chosen by what is known before its answer. So the chance of the choice cancels in the likelihood, and in
the posterior: the selection is ignorable (Rubin 1976). Shares are another matter. They are means over the questions
that were asked, and a rule may ask hard ones (uncertainty) or easy ones (variance). Chapter 09.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlhf_lab.feedback.choice import choose, linear_pool
from rlhf_lab.maths.acquisition import preference_posterior
from rlhf_lab.maths.intervals import Interval, mean_interval, paired_difference, proportion_interval
from rlhf_lab.maths.preferences import expected_accuracy, rater_agreement

DRAWS, WIDER = 2000, 1.2  # from the posterior; and how much wider the law is that they are drawn from


@dataclass(frozen=True, eq=False)
class SelectionStudies:
    """Simulated studies in which a rule chose the questions; S of them.

    Attributes:
        truth: [S, d] the weights by which the person judged, each drawn from the prior.
        weights: [S, d] means of the posteriors that take the chosen questions as if they had been drawn.
        covered: [S] whether the 95 % interval of the log-odds of a fresh comparison holds the true ones.
        chosen_accuracy: [S] expected accuracy of the reward on the questions of the next batch, before their answers.
        pool_accuracy: [S] that of the same rewards on all questions of the pool.
        chosen_agreement, pool_agreement: [S] how often two raters would say the same.
    """

    truth: Tensor
    weights: Tensor
    covered: Tensor
    chosen_accuracy: Tensor
    pool_accuracy: Tensor
    chosen_agreement: Tensor
    pool_agreement: Tensor

    @property
    def slope(self) -> Interval:
        """Of the truth on the estimate, E[truth . weights] / E[|weights|^2]: 1 where posteriors are right.

        Above 1 the estimates are too small, below 1 too large. By linearisation: mean of
        1 + (truth - weights) . weights / E[|weights|^2].
        """
        size = self.weights.square().sum(1)
        return mean_interval((1 + ((self.truth - self.weights) * self.weights).sum(1) / size.mean()).tolist())

    @property
    def error(self) -> Interval:
        """Distance of the estimate from the truth, as a share of the truth's length in the prior, sqrt(d)."""
        return mean_interval(((self.weights - self.truth).norm(dim=1) / self.truth.shape[1] ** 0.5).tolist())

    @property
    def coverage(self) -> Interval:
        """Share of the intervals that hold the truth; 0.95 where posteriors are right."""
        return proportion_interval(int(self.covered.sum()), len(self.covered))

    @property
    def accuracy_bias(self) -> Interval:
        """Accuracy on the chosen questions minus accuracy on the pool."""
        return paired_difference(self.chosen_accuracy.tolist(), self.pool_accuracy.tolist())

    @property
    def agreement_bias(self) -> Interval:
        """Agreement of two raters on the chosen questions minus that on the pool."""
        return paired_difference(self.chosen_agreement.tolist(), self.pool_agreement.tolist())


def selection_studies(
    rule: str, studies: int = 100, labels: int = 60, *, pool: int = 200, width: int = 5, batch: int = 10, seed: int = 0
) -> SelectionStudies:
    """Let a rule choose comparisons, learn from the answers, and compare with what is true.

    True weights are drawn from normal(0, 1), the features of a comparison from normal(0, 2 / width); answers follow
    Bradley-Terry. The first batch is drawn, each further one chosen by the posterior of the answers before it.

    Args:
        rule: one of `feedback.choice.RULES`.
        studies: how many, each with a pool and a person of its own; the same for every rule.
        labels: answers in each, a multiple of batch.
        pool: comparisons that may be asked.
        width: features d.
        batch: comparisons between two fits.
        seed: of everything that is drawn.

    Example:
        >>> found = selection_studies("uncertainty", studies=20, labels=30, batch=15)
        >>> found.coverage.low < 0.95, found.accuracy_bias.verdict, found.agreement_bias.verdict
        (True, 'below 0', 'below 0')

    Source: Rubin 1976, Inference and Missing Data; for samples chosen by the model, MacKay 1992, Information-Based
    Objective Functions for Active Data Selection, section 1. Chapter 09.
    """
    if labels % batch or not batch <= labels <= pool:
        raise ValueError(f"labels is {labels}; expected a multiple of batch ({batch}), at most pool ({pool})")
    generator = torch.Generator().manual_seed(seed)
    rows = [_study(rule, labels, pool, width, batch, generator) for _ in range(studies)]
    columns = [torch.stack([torch.as_tensor(row[i], dtype=torch.float64) for row in rows]) for i in range(len(rows[0]))]
    truth, weights, covered, *shares = columns
    return SelectionStudies(truth, weights, covered > 0, *shares)


def _study(rule: str, labels: int, size: int, width: int, batch: int, generator: torch.Generator) -> Sequence:
    """The values of one study, in the order of the attributes of `SelectionStudies`."""
    draw = torch.randn(2 + size, width, generator=generator, dtype=torch.float64)
    truth, fresh, x = draw[0], draw[1], draw[2:] * (2 / width) ** 0.5
    p = torch.sigmoid(x @ truth)
    answers = torch.rand(size, generator=generator, dtype=torch.float64) < p  # the answer to each question, if asked
    better = x * torch.where(answers, 1.0, -1.0)[:, None]
    rules = torch.Generator().manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
    asked: list[int] = []
    accuracies: list[Tensor] = []
    mean, covariance = preference_posterior(x[:0], 1.0)
    while len(asked) < labels:
        features = torch.stack([x, torch.zeros_like(x)], 1).unbind()  # the difference of two replies is x
        drawn = choose(rule if asked else "random", linear_pool(features, mean, covariance), batch, asked, rules)
        if asked:
            margins = x @ mean
            accuracies += [expected_accuracy(margins[drawn], p[drawn]), expected_accuracy(margins, p)]
        asked += drawn
        mean, covariance = preference_posterior(better[asked], 1.0)
    draws, weights = _posterior_draws(better[asked], mean, covariance, rules)
    below = float(weights @ (draws @ fresh < truth @ fresh).double())  # the truth's place among the draws
    shares = torch.stack(accuracies).reshape(-1, 2).mean(0)
    chosen = p[asked[batch:]]  # without the first batch, which was drawn
    return truth, weights @ draws, 0.025 <= below <= 0.975, *shares, rater_agreement(chosen), rater_agreement(p)


def _posterior_draws(
    better: Tensor, mean: Tensor, covariance: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draws [n, d] and weights [n] of the posterior itself, prior normal(0, 1), from the normal law near its mode.

    Its mode lies nearer to 0 than its mean, by about 8 % here, whatever the rule, which would look like a bias.
    """
    z = WIDER * torch.randn(DRAWS, len(mean), generator=generator, dtype=torch.float64)
    draws = mean + z @ torch.linalg.cholesky(covariance).mT
    log_posterior = logsigmoid(draws @ better.mT).sum(1) - draws.square().sum(1) / 2
    return draws, torch.softmax(log_posterior + (z / WIDER).square().sum(1) / 2, 0)
