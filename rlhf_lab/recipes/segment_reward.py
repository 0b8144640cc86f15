"""A reward for a control task, learned from which of two pieces of behaviour is better; and an agent paid by it.

    choices = simulate_choices(pair_segments(...), returns, noise=1.0, generator=...)    # or those of people
    reward = train_segment_reward(choices, actions=5).model
    policy = train_ppo(lambda: LearnedReward(gymnasium.make("rlhf_lab/Puck-v0"), reward)).model

The pieces have one length. Left out: choosing the pairs by what they would teach, and new pairs while the agent learns.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Discrete
from torch import Tensor, nn
from torch.nn.functional import one_hot

from rlhf_lab.maths.preferences import accuracy, bradley_terry_loss, davidson_loss, expected_accuracy
from rlhf_lab.models.policies import perceptron
from rlhf_lab.records import PromptLike, Segment, SegmentChoice, as_conversation
from rlhf_lab.training.configs import above_zero, at_least_one, from_zero, require, whole, whole_number
from rlhf_lab.training.history import Result
from rlhf_lab.training.optimisers import clipped_step, make_optimiser
from rlhf_lab.training.randomness import generator_for
from rlhf_lab.training.steps import Steps

TIES = ("half", "davidson")


@dataclass(frozen=True)
class SegmentRewardConfig:
    """Every choice of a run. Defaults are the best of eight settings for rlhf_lab/Puck-v0, see `bench segment_labels`.

    Attributes:
        steps: gradients, >= 1.
        batch: pairs in one gradient, >= 1.
        learning_rate: AdamW's, > 0.
        weight_decay: on matrices, >= 0.
        hidden: widths of the network's layers.
        members: networks whose rewards are averaged, >= 1; with several each learns from a bootstrap sample of the
            pairs.
        ties: "half": a tie is half a choice of either; "davidson": a tie is an answer of its own, as likely as
            `log_nu` says, which is learned. Without ties both are Bradley-Terry, but for log_nu.
        max_grad_norm: > 0.
        evaluate_every: steps between looks at `held_out` and calls of `evaluate`.
        seed: of weights, batches and bootstrap.
    """

    steps: int = 100
    batch: int = 64
    learning_rate: float = 3e-3
    weight_decay: float = 0.3
    hidden: Sequence[int] = (64, 64)
    members: int = 3
    ties: str = "half"
    max_grad_norm: float = 1.0
    evaluate_every: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        at_least_one(self, "steps", "batch", "members", "evaluate_every")
        above_zero(self, "learning_rate", "max_grad_norm")
        from_zero(self, "weight_decay")
        whole(self, "seed", least=0)
        require(self.ties in TIES, "ties", self.ties, f"one of {TIES}")
        require(isinstance(self.hidden, Sequence), "hidden", self.hidden, "a list of widths")
        for width in self.hidden:
            whole_number("a width in hidden", width, least=1)


class SegmentReward(nn.Module):
    """r(observation, action): the mean of perceptrons, each with mean 0 and standard deviation 1 on what was compared.

    Args:
        observations, actions: numbers in one of each.
        discrete: actions are integers below `actions`, and enter as indicators; else they are vectors.
        config: its `hidden` and `members`; None: the defaults.

    Attributes:
        seen_mean, seen_std: [D] of the observations, learned from what was compared.
        shift, scale: [M] of each member's raw rewards.
        log_nu: of Davidson's loss, the sum over a segment being the score; None where ties are halves.
    """

    seen_mean: Tensor
    seen_std: Tensor
    shift: Tensor
    scale: Tensor

    def __init__(
        self, observations: int, actions: int, discrete: bool = True, config: SegmentRewardConfig | None = None
    ):
        super().__init__()
        config = config or SegmentRewardConfig()
        self.actions, self.discrete = actions, discrete
        size = observations + actions
        self.networks = nn.ModuleList(perceptron(size, 1, config.hidden, last_gain=0.1) for _ in range(config.members))
        self.log_nu = nn.Parameter(torch.zeros(())) if config.ties == "davidson" else None
        self.register_buffer("seen_mean", torch.zeros(observations))
        self.register_buffer("seen_std", torch.ones(observations))
        self.register_buffer("shift", torch.zeros(config.members))
        self.register_buffer("scale", torch.ones(config.members))

    def raw(self, observations: Tensor, actions: Tensor) -> Tensor:
        """[..., M], every member's reward as trained: sums of it over two segments are log-odds of a choice."""
        done = one_hot(actions.long(), self.actions) if self.discrete else actions
        inputs = torch.cat([(observations - self.seen_mean) / self.seen_std, done.to(observations)], dim=-1)
        return torch.cat([network(inputs) for network in self.networks], dim=-1)

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        """[...], the mean over members of their standardised rewards.

        Args:
            observations: [..., D].
            actions: [...] integers, or [..., A].
        """
        return ((self.raw(observations, actions) - self.shift) / self.scale).mean(-1)

    @torch.no_grad()
    def standardise(self, observations: Tensor, actions: Tensor) -> None:
        """Give every member's reward mean 0 and standard deviation 1 over these steps, [..., D] and [...]."""
        raw = self.raw(observations, actions).flatten(0, -2)  # [steps, M]
        self.shift, self.scale = raw.mean(0), raw.std(0, correction=0).clamp(min=1e-6)

    @torch.no_grad()
    def returns(self, segments: Sequence[Segment]) -> Tensor:
        """[N], the sum of the reward over the steps of each segment."""
        steps = [step_tensors([segment], self.actions if self.discrete else None) for segment in segments]
        return torch.stack([self(seen, done).sum() for seen, done in steps])


@dataclass(frozen=True, eq=False, repr=False)
class SegmentRewardResult(Result[SegmentReward]):
    """What was learned.

    Attributes:
        model: the reward.
        history: a row a gradient. loss: nats a pair, mean over members; grad_norm; held_out_loss, accuracy and
            expected_accuracy on `held_out`, of the members' mean.
    """


def train_segment_reward(
    choices: Sequence[SegmentChoice],
    config: SegmentRewardConfig | None = None,
    *,
    actions: int | None = None,
    held_out: Sequence[SegmentChoice] = (),
    agreement: Sequence[float] | None = None,
    evaluate: Callable[[SegmentReward], dict[str, float]] | None = None,
) -> SegmentRewardResult:
    """Learn a reward of single steps from choices between whole segments.

        P(left better) = sigmoid(sum over left of r(s, a) - sum over right of r(s, a))

    Only what tells segments of one length apart is learned: a constant added to every step changes no choice, and with
    a fixed horizon no policy either. Where episodes may end early it decides whether to live on, so the scale and the
    offset (mean 0, standard deviation 1 on the compared steps) are ours and not the people's.

    Args:
        choices: of segments of the same environment, all of the same number of steps.
        config: SegmentRewardConfig() if None.
        actions: how many there are, for discrete ones; None: actions are vectors.
        held_out: choices on other pairs, for the history.
        agreement: p(left is called better) of every held-out pair, where it is known.
        evaluate: called with the reward before the first step, every `evaluate_every` and after the last.

    Returns:
        SegmentRewardResult.

    Raises:
        ValueError: no choice that is no tie, segments of several lengths or shapes, or an argument that does not fit.
        FloatingPointError: a gradient is NaN or infinite.

    Example:
        >>> far, near = (Segment("Toy", ((x,), (x,)), ((0,),)) for x in (1.0, 0.0))
        >>> choice = SegmentChoice(as_conversation("Which is nearer?"), near, far, 1)
        >>> reward = train_segment_reward([choice], SegmentRewardConfig(steps=20), actions=2).model
        >>> bool(reward(torch.zeros(1), torch.tensor(0)) > reward(torch.ones(1), torch.tensor(0)))
        True

    Source: Christiano et al. 2017, Deep Reinforcement Learning from Human Preferences, section 2.2. Chapter 09.
    """
    config = config or SegmentRewardConfig()
    require(any(choice.outcome for choice in choices), "choices", f"{len(choices)} without a preference", "some")
    pairs, tests = _Pairs.of(choices, actions), _Pairs.of(held_out, actions) if held_out else None
    size = pairs.observations.shape[-1]
    require(tests is None or tests.observations.shape[2:] == pairs.observations.shape[2:], "held_out",
            tests and tuple(tests.observations.shape[2:]), "segments as those of choices")  # fmt: skip
    require(agreement is None or len(agreement) == len(held_out), "agreement", agreement, "a number for each held-out")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = SegmentReward(size, actions or pairs.actions.shape[-1], actions is not None, config)
    seen = pairs.observations.flatten(0, -2)
    model.seen_mean, model.seen_std = seen.mean(0), seen.std(0, correction=0).clamp(min=1e-3)
    weights = bootstrap_weights(len(choices), config.members, generator_for(config.seed, "bootstrap"))
    optimiser = make_optimiser(model, config.learning_rate, config.weight_decay)
    generator = generator_for(config.seed, "pairs")

    def look() -> dict[str, float]:
        numbers = {} if tests is None else held_out_choices(model, tests, agreement)
        return numbers | (evaluate(model) if evaluate else {})

    looked = look if tests is not None or evaluate else None
    with Steps("segment reward", config.steps, looked, config.evaluate_every) as steps:
        for step in steps:
            rows = torch.randperm(len(choices), generator=generator)[: config.batch]
            loss = (weights[rows] * choice_losses(model, pairs.select(rows))).mean()
            optimiser.zero_grad()
            loss.backward()
            (norm,) = clipped_step(optimiser, config.max_grad_norm, step + 1, model)
            steps.log(loss=float(loss.detach()), grad_norm=norm)
    model.standardise(pairs.observations, pairs.actions)
    return SegmentRewardResult(model.requires_grad_(False), steps.history, steps.interrupted)


def step_tensors(segments: Sequence[Segment], actions: int | None) -> tuple[Tensor, Tensor]:
    """What was seen before each action [N, T, D], and the actions, [N, T] integers or [N, T, A].

    Args:
        segments: of one environment and one length.
        actions: how many there are, for discrete ones; None: vectors.

    Raises:
        ValueError: segments of several lengths or shapes, or an action that there is not.
    """
    lengths = sorted({len(segment.actions) for segment in segments})
    require(len(lengths) == 1, "choices", f"segments of {lengths} steps", "one length: what is compared is a sum")
    shapes = sorted({(s.environment, len(s.observations[0]), len(s.actions[0])) for s in segments})
    require(len(shapes) == 1, "choices", shapes, "one environment, and vectors of one size")
    seen = torch.tensor([segment.observations[:-1] for segment in segments])  # nothing is done in the last one
    done = torch.tensor([segment.actions for segment in segments])
    if actions is None:
        return seen.float(), done.float()
    fits = done.shape[-1] == 1 and bool(((done == done.long()) & (done >= 0) & (done < actions)).all())
    require(fits, "actions", actions, f"None for vectors, or above the largest action, {float(done.max()):g}")
    return seen.float(), done.squeeze(-1).long()


@dataclass(frozen=True)
class _Pairs:
    """N choices as tensors: observations [N, 2, T, D], actions [N, 2, T] or [N, 2, T, A], outcome [N]."""

    observations: Tensor
    actions: Tensor
    outcome: Tensor

    @classmethod
    def of(cls, choices: Sequence[SegmentChoice], actions: int | None) -> "_Pairs":
        seen, done = step_tensors([side for choice in choices for side in (choice.left, choice.right)], actions)
        outcome = torch.tensor([choice.outcome for choice in choices])
        return cls(seen.unflatten(0, (-1, 2)), done.unflatten(0, (-1, 2)), outcome)

    def select(self, rows: Tensor) -> "_Pairs":
        return _Pairs(self.observations[rows], self.actions[rows], self.outcome[rows])


def bootstrap_weights(count: int, members: int, generator: torch.Generator) -> Tensor:
    """[N, M], how often each member's sample holds a pair; 1 everywhere for a single member."""
    if members == 1:
        return torch.ones(count, 1)
    drawn = torch.randint(count, (count, members), generator=generator)
    return torch.zeros(count, members).scatter_add(0, drawn, torch.ones(count, members))


def choice_losses(model: SegmentReward, pairs: _Pairs) -> Tensor:
    """[N, M] nats, minus the log-likelihood of every choice for every member."""
    sums = model.raw(pairs.observations, pairs.actions).sum(2)  # [N, 2, M]
    left, right = (side.flatten() for side in sums.unbind(1))
    outcome = pairs.outcome[:, None].expand(len(pairs.outcome), len(model.networks)).flatten()
    if model.log_nu is not None:
        losses = davidson_loss(left, right, outcome, model.log_nu)
    else:
        share = (outcome + 1) / 2
        losses = share * bradley_terry_loss(left, right) + (1 - share) * bradley_terry_loss(right, left)
    return losses.view(len(pairs.outcome), -1)


@torch.no_grad()
def held_out_choices(model: SegmentReward, pairs: _Pairs, agreement: Sequence[float] | None) -> dict[str, float]:
    """Loss, and the accuracy of the mean over members on choices that are no ties."""
    sums = model.raw(pairs.observations, pairs.actions).sum(2).mean(-1)  # [N, 2]
    numbers = {"held_out_loss": float(choice_losses(model, pairs).mean())}
    told = pairs.outcome != 0
    if told.any():
        lead = (sums[:, 0] - sums[:, 1])[told] * pairs.outcome[told]
        numbers["accuracy"] = float(accuracy(lead, torch.zeros_like(lead)))
    if agreement is not None:
        numbers["expected_accuracy"] = float(expected_accuracy(sums[:, 0] - sums[:, 1], torch.tensor(agreement)))
    return numbers


def simulate_choices(
    pairs: Sequence[tuple[Segment, Segment]],
    returns: Mapping[Segment, float],
    noise: float,
    generator: torch.Generator,
    prompt: PromptLike = "Which one is better?",
) -> list[SegmentChoice]:
    """What a simulated person says who sees returns through noise, so that Bradley-Terry is exact.

        P(left) = sigmoid((return(left) - return(right)) / noise)

    Args:
        pairs: of `pair_segments`.
        returns: of each segment, of `cut_segments`.
        noise: > 0, in units of the return.
        generator: of the noise.
        prompt: what was asked.

    Raises:
        ValueError: noise is not above 0.

    Chapter 09.
    """
    chances = choice_probabilities(pairs, returns, noise)
    drawn = (torch.rand(len(pairs), generator=generator, dtype=torch.float64) < chances).tolist()
    asked = as_conversation(prompt)
    return [
        SegmentChoice(asked, left, right, 1 if first else -1, "simulated", True)
        for (left, right), first in zip(pairs, drawn, strict=True)
    ]


def choice_probabilities(
    pairs: Sequence[tuple[Segment, Segment]], returns: Mapping[Segment, float], noise: float
) -> Tensor:
    """[N] float64, P(left) of `simulate_choices`. Chapter 09."""
    require(noise > 0, "noise", noise, "a number above 0")
    gaps = torch.tensor([returns[left] - returns[right] for left, right in pairs], dtype=torch.float64)
    return (gaps / noise).sigmoid()


class LearnedReward(gymnasium.Wrapper):
    """An environment that pays what a model says of observation and action; the true reward goes into the info.

    Args:
        env: whose rewards are replaced.
        model: observations [1, D] and actions [1] or [1, A] -> [1].

    Raises:
        ValueError: the model is for another number of actions.

    Chapter 09.
    """

    def __init__(self, env: gymnasium.Env, model: SegmentReward):
        super().__init__(env)
        space = env.action_space
        size = int(space.n) if isinstance(space, Discrete) else int(np.prod(space.shape or (1,)))
        fits = (size, isinstance(space, Discrete)) == (model.actions, model.discrete)
        require(fits, "model", f"for {model.actions} actions", f"one for {space}")
        self.model, self._first = model, int(space.start) if isinstance(space, Discrete) else 0

    def reset(self, **options: object) -> tuple[np.ndarray, dict]:
        self._seen, info = self.env.reset(**options)  # type: ignore[arg-type]
        return self._seen, info

    @torch.no_grad()
    def step(self, action: object) -> tuple[np.ndarray, float, bool, bool, dict]:
        before = torch.as_tensor(self._seen, dtype=torch.float32).reshape(1, -1)
        given = torch.as_tensor(action)
        done = given.reshape(1) - self._first if self.model.discrete else given.reshape(1, -1)
        self._seen, earned, terminated, truncated, info = self.env.step(action)
        reward = float(self.model(before, done))
        return self._seen, reward, terminated, truncated, {**info, "true_reward": float(earned)}
