"""Policies and value functions of the control chapters: what an agent sees goes in, a law over its actions comes out.

    law = policy(observations)        a torch.distributions object
    values = value(observations)      one number an observation
    actions = draw(law, generator)    randomness comes from the generator, never from torch's global state

Tables take states as integers, perceptrons take vectors, GRUs take token ids. Dropout and normalisation layers are
left out: the law that acted must be the law that is scored.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, Independent, Normal


def draw(law: Distribution, generator: torch.Generator) -> Tensor:
    """Sample actions: [B] integers of a Categorical, [B, D] of independent normals.

    Raises:
        ValueError: a law of another kind, which would be sampled as what it is not.
        FloatingPointError: the law has parameters that are NaN or infinite.
    """
    if isinstance(law, Categorical):
        _check_finite(law.probs)
        return torch.multinomial(law.probs, 1, generator=generator).squeeze(-1)
    if not isinstance(getattr(law, "base_dist", law), Normal):
        raise ValueError(f"policy gave a {type(law).__name__}; expected a Categorical, or independent Normals")
    actions = law.mean + law.stddev * torch.randn(law.mean.shape, generator=generator)
    _check_finite(actions)
    return actions


def _check_finite(numbers: Tensor) -> None:
    if not numbers.isfinite().all():
        raise FloatingPointError("policy gave a law with NaN or infinite parameters; check its weights and its input")


def sampling(policy: nn.Module, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    """Observations -> actions drawn from the policy, as training needs them."""
    return lambda observations: draw(policy(observations), generator)


def greedy(policy: nn.Module) -> Callable[[Tensor], Tensor]:
    """Observations -> the policy's most likely actions, for showing what was learned; never for training."""
    return lambda observations: policy(observations).mode


def orthogonal(layer: nn.Linear, gain: float) -> nn.Linear:
    """The layer with orthogonal weights times `gain`, and no bias.

    Source: Saxe et al. 2014; in PPO: Huang et al. 2022, The 37 Implementation Details of Proximal Policy Optimization.
    """
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


class ToFloat(nn.Module):
    """Numbers of any type -> float32, so that a vector of integers can enter a perceptron."""

    def forward(self, x: Tensor) -> Tensor:
        return x.float()


def perceptron(inputs: int, outputs: int, hidden: Sequence[int] = (64, 64), last_gain: float = 1.0) -> nn.Sequential:
    """Linear layers with tanh between them, orthogonal weights of gain sqrt 2, the last of gain `last_gain`."""
    layers: list[nn.Module] = [ToFloat()]
    sizes = [inputs, *hidden]
    for size, after in zip(sizes, hidden, strict=False):
        layers += [orthogonal(nn.Linear(size, after), math.sqrt(2)), nn.Tanh()]
    return nn.Sequential(*layers, orthogonal(nn.Linear(sizes[-1], outputs), last_gain))


class TabularPolicy(nn.Module):
    """Softmax over a row of logits for each state, uniform at first: states [...] -> Categorical over actions.

    Args:
        states, actions: sizes of the table.

    Example:
        >>> TabularPolicy(3, 2)(torch.tensor([0, 2])).probs.tolist()
        [[0.5, 0.5], [0.5, 0.5]]

    Chapter 02.
    """

    def __init__(self, states: int, actions: int):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(states, actions))

    def forward(self, states: Tensor) -> Categorical:
        return Categorical(logits=self.logits[states], validate_args=False)


class TabularValue(nn.Module):
    """A number for each state, 0 at first: states [...] -> [...]. Chapter 04."""

    def __init__(self, states: int):
        super().__init__()
        self.values = nn.Parameter(torch.zeros(states))

    def forward(self, states: Tensor) -> Tensor:
        return self.values[states]


class CategoricalPolicy(nn.Module):
    """A law over `actions` from the features of a body: observations [...] -> Categorical.

    Args:
        body: a module that ends in `actions` numbers, the logits.

    Chapters 02 and 05.
    """

    def __init__(self, body: nn.Module):
        super().__init__()
        self.body = body

    def forward(self, observations: Tensor) -> Categorical:
        return Categorical(logits=self.body(observations), validate_args=False)


class GaussianPolicy(nn.Module):
    """Independent normals, their means from a body, their standard deviations free parameters, exp(0) at first.

    Args:
        body: a module that ends in `dimensions` numbers, the means.
        dimensions: D of an action [..., D].

    Source: Schulman et al. 2017, Proximal Policy Optimization Algorithms, section 6.1. Chapter 05.
    """

    def __init__(self, body: nn.Module, dimensions: int):
        super().__init__()
        self.body, self.log_std = body, nn.Parameter(torch.zeros(dimensions))

    def forward(self, observations: Tensor) -> Independent:
        mean = self.body(observations)
        return Independent(Normal(mean, self.log_std.exp().expand_as(mean), validate_args=False), 1)


class Value(nn.Module):
    """A number from the features of a body that ends in one: observations [...] -> [...]. Chapter 04."""

    def __init__(self, body: nn.Module):
        super().__init__()
        self.body = body

    def forward(self, observations: Tensor) -> Tensor:
        return self.body(observations).squeeze(-1)


class GRUEncoder(nn.Module):
    """Reads token ids, [..., L] right-padded with 0, and gives the state [..., D] after the last real one.

    Args:
        vocabulary: number of token ids; 0 is padding.
        width: D.

    Source: Cho et al. 2014. Chapter 06.
    """

    def __init__(self, vocabulary: int, width: int = 64):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width, padding_idx=0)
        self.gru = nn.GRU(width, width, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        rows = tokens.reshape(-1, tokens.shape[-1])  # [..., L] -> [N, L]
        lengths = (rows != 0).sum(1).clamp(min=1)
        states, _ = self.gru(self.embedding(rows[:, : int(lengths.max())]))
        last = states[torch.arange(len(rows)), lengths - 1]
        return last.reshape(*tokens.shape[:-1], -1)


def gru_agent(vocabulary: int, actions: int, width: int = 64) -> tuple[CategoricalPolicy, Value]:
    """A policy over `actions` replies and a value head on the same GRU, for dialogues as token ids. Chapter 06."""
    encoder = GRUEncoder(vocabulary, width)
    policy = CategoricalPolicy(nn.Sequential(encoder, orthogonal(nn.Linear(width, actions), 0.01)))
    return policy, Value(nn.Sequential(encoder, orthogonal(nn.Linear(width, 1), 1.0)))
