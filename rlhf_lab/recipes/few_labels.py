"""A reward model from few labels: a linear function of the SFT model's hidden states, fitted to its optimum.

With some tens of rankings a reward model whose every weight is trained can learn the labels by heart, and gets surer of
what it got wrong (chapter 09 shows it). This one has d weights, a prior whose width is chosen by judgements that the
fit has not seen, and no learning rate. Left out: ties, ratings, and weights of raters; `train_reward_model` takes
them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from rlhf_lab.maths.acquisition import preference_posterior
from rlhf_lab.maths.intervals import Share, mean_interval, outcome_interval
from rlhf_lab.models.language_model import LanguageModel
from rlhf_lab.models.linear_reward import LinearReward, mean_states
from rlhf_lab.models.tokens import make_batch
from rlhf_lab.recipes.reward_data import Feedback, Judged, prepare_feedback
from rlhf_lab.recipes.rlhf import RLHFConfig
from rlhf_lab.records import Choice, Comparison, Ranking, Record
from rlhf_lab.training.configs import at_least_one, require, whole
from rlhf_lab.training.history import History, Result
from rlhf_lab.training.randomness import generator_for

FEW = 600  # choices, as in 200 rankings of four: up to there this recipe was measured
ITERATIONS, LEASH = 9, 0.2  # of `cautious`: PPO iterations, and log-odds of a preference per nat of KL
LEAST_PROMPTS = 8  # with a pair; below, cross-validation leaves next to nothing to learn from


@dataclass(frozen=True)
class LinearRewardConfig:
    """Every choice of the fit.

    Attributes:
        ridges: precisions of the prior on the weights, above 0; the one with the lowest loss on held-out prompts is
            taken.
        folds: parts into which the prompts are dealt, at least 2.
        max_new_tokens: longer replies are cut.
        seed: of the deal.
    """

    ridges: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0, 10.0)
    folds: int = 10
    max_new_tokens: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        at_least_one(self, "max_new_tokens")
        whole(self, "folds", least=2)
        whole(self, "seed")
        fits = len(self.ridges) > 0 and all(np.isfinite(ridge) and ridge > 0 for ridge in self.ridges)
        require(fits, "ridges", self.ridges, "finite numbers above 0, at least one")


@dataclass(frozen=True, eq=False, repr=False)
class LinearRewardResult(Result[LinearReward]):
    """The reward, and how well such rewards predict judgements that they have not seen.

    Attributes:
        model: fitted on all feedback with the chosen ridge; scores are standardised on the replies of the feedback.
        history: a row a ridge: held_out_loss in nats per choice, and held_out_accuracy with its interval, mean over
            prompts of the share of a prompt's pairs that come out right, each judged by a fit on other prompts.
        used: records that hold a pair. unused: those that hold none.
    """

    used: int
    unused: int

    @property
    def ridge(self) -> float:
        """The chosen one, with the lowest loss on held-out prompts."""
        return best_row(self.history)["ridge"]

    @property
    def held_out_accuracy(self) -> Share:
        """With the chosen ridge; being the best of a few on the same prompts flatters it a little."""
        return held_out_accuracy(self.history)


def best_row(history: History) -> dict[str, float]:
    """The row of the chosen ridge."""
    best = history.rows[int(np.argmin(history.column("held_out_loss")[1]))]
    return {name: number for name, number in best.items() if number is not None}


def held_out_accuracy(history: History) -> Share:
    """The interval that a `LinearRewardResult` keeps in its history, which outlives the run."""
    row = best_row(history)
    mean, low, high = (row[f"held_out_accuracy{end}"] for end in ("", "_low", "_high"))
    return Share(mean, max(0.0, low), min(1.0, high), int(row["prompts"]))


@dataclass(frozen=True)
class Differences:
    """Pairs as differences of features: the only thing that a linear Bradley-Terry model sees of them.

    Attributes:
        x: [N, d] better minus worse.
        weights: [N] how much each counts.
        prompts: [N] the number of its prompt.
    """

    x: np.ndarray
    weights: np.ndarray
    prompts: np.ndarray


def train_linear_reward(
    lm: LanguageModel, feedback: Feedback, config: LinearRewardConfig | None = None
) -> LinearRewardResult:
    """Fit a linear reward to preferences.

        minimise  sum over pairs of  v log(1 + exp(-w . (x_better - x_worse)))  +  ridge / 2 |w|^2

    v = (tiers - 1) / pairs of the record: an order of four is three choices, the best of four, of three, of two, and
    not six independent comparisons. x is the mean hidden state of a reply over its tokens, centred and divided by how
    far replies to one prompt are apart, so one ridge means the same for every model. Where the loss is smallest stands
    the posterior's mean; its covariance is the inverse of the loss's second derivative there (Laplace).

    Args:
        lm: usually the SFT model; read, never changed.
        feedback: rankings, comparisons, choices, or rows with `prompt`, `chosen` and `rejected`.
        config: see LinearRewardConfig.

    Returns:
        LinearRewardResult.

    Raises:
        ValueError: a pair on fewer than eight prompts.

    Source: MacKay 1992, The Evidence Framework Applied to Classification Networks; Alain and Bengio 2016, Understanding
        intermediate layers using linear classifier probes. Chapter 09.
    """
    config = config or LinearRewardConfig()
    data = prepare_feedback(lm, feedback, "bradley_terry", config.max_new_tokens)
    prompts = len({tuple(one.prompt) for one in data.judged})
    remedy = f"at least {LEAST_PROMPTS} prompts with a preference; collect more"
    require(prompts >= LEAST_PROMPTS, "feedback", f"preferences on {prompts} prompts", remedy)
    states = reply_states(lm, data.judged)
    centre, scale = typical(states)
    features = [(h - centre) / scale for h in states]
    pairs = differences(features, data.judged)
    history = cross_validate(pairs, config)
    ridge = best_row(history)["ridge"]
    weights, covariance = posterior(pairs, ridge)
    t = torch.from_numpy
    reward = LinearReward(lm, t(centre), t(scale), t(weights), t(covariance))
    reward = reward.normalised(t(np.concatenate(features) @ weights))
    return LinearRewardResult(reward, history, False, len(data.judged), sum(data.reasons.values()))


def reply_states(lm: LanguageModel, judged: Sequence[Judged]) -> list[np.ndarray]:
    """Mean states [K, d] of the replies of each record."""
    rows = [(one.prompt, reply) for one in judged for reply in one.replies]
    batch = make_batch([prompt for prompt, _ in rows], [reply for _, reply in rows], lm.pad_id, lm.device)
    return np.split(mean_states(lm, batch).numpy(), np.cumsum([len(one.replies) for one in judged])[:-1])


def typical(states: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(centre, scale) [d]: the mean state, and sqrt(2 d) times how far replies to one prompt are apart.

    Then the difference of two replies to one prompt has a squared length of 1 on average.
    """
    everything = np.concatenate(states)
    around = np.concatenate([h - h.mean(0) for h in states])
    freedom = len(around) - len(states)
    spread = np.sqrt((around**2).sum(0) / freedom)
    floor = 1e-6 * max(float(spread.max()), 1e-12)  # of a coordinate that never moves
    return everything.mean(0), np.maximum(spread, floor) * np.sqrt(2 * everything.shape[1])


def differences(features: Sequence[np.ndarray], judged: Sequence[Judged]) -> Differences:
    """All pairs of all records."""
    numbers = {prompt: i for i, prompt in enumerate(dict.fromkeys(tuple(one.prompt) for one in judged))}
    x, weights, prompts = [], [], []
    for h, one in zip(features, judged, strict=True):
        choices = max(one.said.leads)  # between the best tier and the worst
        for better, worse in one.said.pairs:
            x.append(h[better] - h[worse])
            weights.append(one.weight * choices / len(one.said.pairs))
            prompts.append(numbers[tuple(one.prompt)])
    return Differences(np.array(x), np.array(weights), np.array(prompts))


def posterior(pairs: Differences, ridge: float) -> tuple[np.ndarray, np.ndarray]:
    """Weights [d] where the loss of `train_linear_reward` is smallest, and their covariance [d, d]."""
    x, counts = torch.from_numpy(pairs.x), torch.from_numpy(pairs.weights)
    weights, covariance = preference_posterior(x, ridge, counts)
    return weights.numpy(), covariance.numpy()


def fit_weights(pairs: Differences, ridge: float) -> np.ndarray:
    """The weights [d] of `posterior`."""
    return posterior(pairs, ridge)[0]


def cross_validate(pairs: Differences, config: LinearRewardConfig) -> History:
    """Of each ridge a row with the loss and the accuracy on prompts that were left out of the fit."""
    count = int(pairs.prompts.max()) + 1
    order = torch.randperm(count, generator=generator_for(config.seed, "linear reward folds")).numpy()
    fold = (order % min(config.folds, count))[pairs.prompts]
    history = History()
    for step, ridge in enumerate(config.ridges):
        margin = np.empty(len(pairs.x))
        for part in np.unique(fold):
            inside = fold != part
            known = Differences(pairs.x[inside], pairs.weights[inside], pairs.prompts[inside])
            margin[~inside] = pairs.x[~inside] @ fit_weights(known, ridge)
        right = (margin > 0) + 0.5 * (margin == 0)
        total, sums = (np.bincount(pairs.prompts, pairs.weights * x) for x in (np.ones(len(right)), right))
        share = sums / total
        accuracy = mean_interval(share) if 0 < share.mean() < 1 else outcome_interval(share)  # all right is not certain
        numbers = {"held_out_accuracy": accuracy.mean, "held_out_accuracy_low": accuracy.low}
        numbers |= {"held_out_accuracy_high": accuracy.high, "prompts": float(count)}
        loss = float(np.average(np.logaddexp(0, -margin), weights=pairs.weights))
        history.add(step, ridge=ridge, held_out_loss=loss, **numbers)
    return history


# -- what goes with it ------------------------------------------------------------------------------------------------
def choices_in(feedback: Sequence[Record]) -> int:
    """How many choices are in preferences: tiers - 1 of a ranking, 1 of a comparison or of a choice that is no tie.

    Example:
        >>> best_of_three = Ranking("Hi", ("a", "b", "c"), ((1,), (0, 2)))
        >>> choices_in([best_of_three, Comparison("Hi", "a", "b"), Choice("Hi", "a", "b", outcome=0)])
        2

    Chapter 09.
    """
    rankings = sum(max(0, len(record.tiers) - 1) for record in feedback if isinstance(record, Ranking))
    choices = sum(record.outcome != 0 for record in feedback if isinstance(record, Choice))
    return rankings + choices + sum(isinstance(record, Comparison) for record in feedback)


def are_few(feedback: Sequence[Record], below: int = FEW) -> bool:
    """Whether this recipe is for them: fewer choices than `below`, on at least eight prompts."""
    prompts = {record.prompt for record in feedback if choices_in([record])}
    return len(prompts) >= LEAST_PROMPTS and choices_in(feedback) < below


def cautious(config: RLHFConfig, reward: LinearReward) -> RLHFConfig:
    """A short PPO run on a leash that is the stiffer the less the labels say.

        kl_coef = leash / score_std,    iterations at most 9

    score_std is how far the raw scores of the judged replies are apart, in log-odds of a preference. The prior draws
    scores together where labels are few or contradict each other, so the same leash of 0.2 log-odds a nat then becomes
    stiffer in the units of the standardised score. Nothing here looks at the truth, or at a policy.

    Chapter 09.
    """
    return replace(config, iterations=min(config.iterations, ITERATIONS), kl_coef=LEASH / reward.score_std)
