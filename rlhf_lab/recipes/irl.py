"""Inverse reinforcement learning: from what was done to a reward under which it was worth doing.

`train_irl` is for tables: the demonstrators are taken for soft-optimal, and the reward is the most likely
one. `discriminator_reward` is the same idea for text, where nobody can enumerate: what tells demonstrations from
samples of a reference says what to reward. Left out: reward networks, adversarial training in turns, unknown dynamics.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_lab.experience.episodes import Episodes
from rlhf_lab.maths.mdp import TabularMDP
from rlhf_lab.maths.soft import soft_value_iteration, state_action_visits
from rlhf_lab.maths.tensors import check_shapes
from rlhf_lab.records import Demonstration, Rating
from rlhf_lab.training.configs import above_zero, at_least_one, from_zero, require
from rlhf_lab.training.history import Result
from rlhf_lab.training.steps import Steps

CUT = 0.01  # the discount from which on the rest of a demonstration may be missing


@dataclass(frozen=True)
class IRLConfig:
    """Every choice of a run of inverse reinforcement learning.

    Attributes:
        temperature: > 0, reward units per nat: how soft the demonstrators are said to be. It sets the scale of the
            learned reward, which behaviour alone leaves open.
        l2: >= 0, nats per squared weight: the prior of the weights is normal with variance 1 / l2. Where demonstrators
            never do something, the likelihood alone has no maximum at finite weights.
        iterations: most steps of L-BFGS, >= 1.
        tolerance: > 0, in expected discounted visits per nat: it is converged once the gradient's largest entry is
            below.
    """

    temperature: float = 1.0
    l2: float = 1e-3
    iterations: int = 200
    tolerance: float = 1e-6

    def __post_init__(self) -> None:
        above_zero(self, "temperature", "tolerance")
        from_zero(self, "l2")
        at_least_one(self, "iterations")


@dataclass(frozen=True, eq=False, repr=False)
class IRLResult(Result[Tensor]):
    """What was learned.

    Attributes:
        model: [S, A], the reward; 0 at absorbing states.
        weights: [K] of the features.
        policy: [S, A], soft-optimal for it; [H, S, A] with a horizon.
        history: a row a step of L-BFGS, the first from before it. log_likelihood: nats a demonstration, without the
            prior. gradient: its largest entry, prior included. feature_gap: largest difference between the features
            of the demonstrators and those of the policy.
        converged: whether the gradient met the tolerance.
    """

    weights: Tensor
    policy: Tensor
    converged: bool

    @property
    def reward(self) -> Tensor:
        """`model` under the name of what it is."""
        return self.model


def state_features(mdp: TabularMDP) -> Tensor:
    """[S, A, S] an indicator for every state: the reward depends on the state alone.

    Such a reward says what is good about where one is, and keeps its meaning where actions lead elsewhere.
    """
    states, actions = mdp.rewards.shape
    return torch.eye(states, dtype=torch.float64)[:, None].expand(states, actions, states)


def state_action_features(mdp: TabularMDP) -> Tensor:
    """[S, A, S * A] an indicator for every action in every state: any reward can be written.

    Among them is log pi(a | s), which explains the demonstrators without saying what they wanted.
    """
    size = mdp.rewards.numel()
    return torch.eye(size, dtype=torch.float64).view(*mdp.rewards.shape, size)


def demonstrated_visits(mdp: TabularMDP, demonstrations: Episodes) -> Tensor:
    """[S, A], the mean over demonstrations of sum over t of gamma^t [s_t = s, a_t = a]; 0 at absorbing states.

    Args:
        mdp: whose states and actions they are of.
        demonstrations: of `collect_episodes` from a `TabularEnv`: whole, or so long that gamma^T is at most 0.01.

    Raises:
        ValueError: states or actions that the process does not have, or demonstrations that are cut too early.

    Chapter 09.
    """
    mask, lengths = demonstrations.mask, demonstrations.mask.sum(1)
    states, actions = demonstrations.observations[:, :-1][mask], demonstrations.actions[mask]
    for name, numbers, size in (("states", states, mdp.rewards.shape[0]), ("actions", actions, mdp.rewards.shape[1])):
        fits = not numbers.is_floating_point() and bool(((numbers >= 0) & (numbers < size)).all())
        require(fits, f"{name} of demonstrations", numbers.flatten()[:5].tolist(), f"integers from 0 to {size - 1}")
    last = demonstrations.discounts.gather(1, lengths[:, None] - 1).squeeze(1)
    missing = float(torch.where(last > 0, mdp.gamma**lengths, 0.0).max())
    require(missing <= CUT, "demonstrations", f"cut at a discount of {missing:.2g}", f"whole ones, or below {CUT}")
    weights = (mdp.gamma ** torch.arange(mask.shape[1], dtype=torch.float64)).expand(mask.shape)[mask]
    cells = states * mdp.rewards.shape[1] + actions
    visits = torch.zeros(mdp.rewards.numel(), dtype=torch.float64).index_add(0, cells, weights) / len(mask)
    return visits.view(mdp.rewards.shape) * (~mdp.absorbing).double()[:, None]


def train_irl(
    mdp: TabularMDP,
    demonstrations: Episodes | Tensor,
    features: Tensor | None = None,
    config: IRLConfig | None = None,
) -> IRLResult:
    """The reward under which soft-optimal demonstrators most likely do what they did.

        r(s, a) = sum over k of weights_k features_k(s, a)
        log-likelihood = (E_demonstrators[sum gamma^t r] - E_start[V(s_0)]) / temperature,    V the soft values of r
        its gradient   = (features of the demonstrators - features of the soft-optimal policy) / temperature

    and -l2 / 2 |weights|^2 for the prior. It is concave, so there is one maximum; without a prior it matches the
    features of the demonstrators. It is the discounted sum of log pi(a_t | s_t) wherever the visits obey the dynamics:
    for exact visits, and for samples from deterministic dynamics and one start. In a sample from random dynamics it
    counts what the dynamics did as their expectation.

    Args:
        mdp: dynamics, start and discount or horizon; its rewards do not count, only which states are absorbing.
        demonstrations: episodes (see `demonstrated_visits`), or visits [S, A] as `state_action_visits` gives them.
        features: [S, A, K]; `state_features(mdp)` if None. At absorbing states they do not count.
        config: IRLConfig() if None.

    Returns:
        IRLResult. Rewards are known up to what behaviour leaves open: a potential, where the features allow one.

    Raises:
        ValueError: shapes or numbers that do not fit, or no convergence of the soft values.
        FloatingPointError: the likelihood or its gradient is NaN or infinite.

    Example:
        >>> from rlhf_lab.maths.mdp import chain
        >>> mdp = chain(1, gamma=0.5)
        >>> visits = state_action_visits(mdp, torch.tensor([[0.25, 0.75], [0.5, 0.5]]))
        >>> result = train_irl(mdp, visits, state_action_features(mdp), IRLConfig(l2=0.0))
        >>> result.policy[0].tolist()
        [0.25, 0.75]

    Source: Ziebart 2010, Modeling Purposeful Adaptive Behavior with the Principle of Maximum Causal Entropy; Ziebart,
    Bagnell and Dey 2010. Chapter 09.
    """
    config, features = config or IRLConfig(), state_features(mdp) if features is None else features.double()
    require(features.dim() == 3 and features.shape[:2] == mdp.rewards.shape, "features", tuple(features.shape),
            f"shape {(*mdp.rewards.shape, 'K')}")  # fmt: skip
    visits = demonstrated_visits(mdp, demonstrations) if isinstance(demonstrations, Episodes) else demonstrations
    require(visits.shape == mdp.rewards.shape, "demonstrations", tuple(visits.shape), f"{tuple(mdp.rewards.shape)}")
    require(bool((visits >= 0).all()) and float(visits.sum()) > 0, "demonstrations", visits, "visits, some above 0")
    features = features * (~mdp.absorbing).double()[:, None, None]
    problem = _Likelihood(mdp, features, visits.double(), config)
    optimiser = torch.optim.LBFGS(
        [problem.weights], max_iter=1, max_eval=25, history_size=100, line_search_fn="strong_wolfe",
        tolerance_grad=0.0, tolerance_change=0.0,
    )  # fmt: skip
    with Steps("inverse RL", config.iterations, problem.numbers) as steps:
        for _ in steps:
            if steps.history.last("gradient") <= config.tolerance:
                break
            optimiser.step(problem.closure)
    converged = steps.history.last("gradient") <= config.tolerance
    weights = problem.weights.detach()
    stopped = steps.interrupted and not converged
    return IRLResult(features @ weights, steps.history, stopped, weights, problem.policy, converged)


class _Likelihood:
    """Minus the log-posterior of the weights, and its gradient, for an optimiser that takes closures."""

    def __init__(self, mdp: TabularMDP, features: Tensor, visits: Tensor, config: IRLConfig):
        self.mdp, self.features, self.config = mdp, features, config
        self.demonstrated = torch.tensordot(visits, features, 2)  # [K]
        self.weights = torch.zeros(features.shape[-1], dtype=torch.float64, requires_grad=True)
        self.values: Tensor | None = None

    @torch.no_grad()
    def closure(self) -> Tensor:
        mdp, weights, config = self.mdp, self.weights, self.config
        start = self.values if mdp.horizon is None else None  # the last values are close to the new ones
        self.values, self.policy = soft_value_iteration(mdp, config.temperature, self.features @ weights, values=start)
        first = self.values if mdp.horizon is None else self.values[0]
        self.gap = self.demonstrated - torch.tensordot(state_action_visits(mdp, self.policy), self.features, 2)
        self.log_likelihood = (weights @ self.demonstrated - mdp.start @ first) / config.temperature
        weights.grad = config.l2 * weights - self.gap / config.temperature
        return config.l2 / 2 * weights.square().sum() - self.log_likelihood

    def numbers(self) -> dict[str, float]:
        self.closure()
        grad = self.weights.grad
        assert grad is not None
        parts = {
            "log_likelihood": self.log_likelihood,
            "gradient": grad.abs().max(),
            "feature_gap": self.gap.abs().max(),
        }
        return {name: float(number) for name, number in parts.items()}


# -- text -------------------------------------------------------------------------------------------------------------
def discriminator_reward(log_probs_demo: Tensor, log_probs_ref: Tensor, prior: float = 0.5) -> Tensor:
    """The log-odds of the best possible discriminator between demonstrations and samples of a reference.

        D = prior p_demo / (prior p_demo + (1 - prior) p_ref),    log D - log(1 - D) = log p_demo - log p_ref + log odds

    With it as the reward the best policy on a leash, ref exp(reward / kl_coef) / Z, is the demonstrators' law if
    kl_coef is 1 and the reference writes whatever they write. With kl_coef 0.1 it is p_demo^10 / ref^9 up to a
    constant. A prior other than 1/2 adds the same number to every reply: that moves the score at which a reply is as
    likely from either, and not the best policy.

    Args:
        log_probs_demo: nats, log-probs of whole replies under the demonstrators' law; -inf where they never write it.
        log_probs_ref: the same shape, of the reference.
        prior: in (0, 1), share of demonstrations in what the discriminator sees.

    Returns:
        The same shape, nats; -inf where the demonstrators never write a reply.

    Raises:
        ValueError: shapes differ, a prior outside (0, 1), or a reply that the reference never writes.

    Example:
        >>> discriminator_reward(torch.tensor([0.9, 0.1]).log(), torch.tensor([0.5, 0.5]).log()).exp().tolist()
        [1.8, 0.2]

    Source: Goodfellow et al. 2014 for the best discriminator; as a reward: Ho and Ermon 2016; Fu, Luo and Levine 2018.
    Chapter 09.
    """
    check_shapes(log_probs_demo=log_probs_demo, log_probs_ref=log_probs_ref)
    require(0 < prior < 1, "prior", prior, "a share between 0 and 1")
    never = torch.isneginf(log_probs_ref)
    require(not never.any(), "log_probs_ref", f"-inf for {int(never.sum())} replies",
            "finite numbers: no policy on a leash writes what the reference never writes")  # fmt: skip
    odds = torch.tensor(prior / (1 - prior)).log().to(log_probs_demo)
    return log_probs_demo - log_probs_ref + odds


def discriminator_labels(demonstrations: Sequence[Demonstration], samples: Sequence[Demonstration]) -> list[Rating]:
    """Labels for `train_reward_model` with loss="classification": demonstrations are good, the reference's samples bad.

    The trained model's log-odds, its `raw_scores`, estimate `discriminator_reward` with the share of demonstrations as
    the prior. What it calls a score is (raw_scores - score_mean) / score_std, so the leash at which the demonstrators'
    law is recovered is kl_coef = 1 / score_std.

    Args:
        demonstrations: what people wrote.
        samples: what the reference answers, best to the same prompts: else the prompt alone tells the two apart.

    Raises:
        ValueError: one of the two is empty.

    Chapter 09.
    """
    require(bool(demonstrations and samples), "demonstrations and samples", (len(demonstrations), len(samples)),
            "at least one of each")  # fmt: skip
    labelled = [(one, 1.0) for one in demonstrations] + [(one, 0.0) for one in samples]
    return [Rating(one.prompt, one.response, label, 0.0, 1.0) for one, label in labelled]
