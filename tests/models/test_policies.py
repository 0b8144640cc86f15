"""Policies and values: laws against closed forms, draws against their law, GRUs against rows alone."""

import math

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.distributions import Bernoulli, Categorical, Laplace

from rlhf_lab.models.policies import (
    CategoricalPolicy,
    GaussianPolicy,
    GRUEncoder,
    TabularPolicy,
    TabularValue,
    Value,
    draw,
    greedy,
    gru_agent,
    orthogonal,
    perceptron,
    sampling,
)

torch.set_num_threads(1)
few = settings(max_examples=30, deadline=None)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def table(seed=0, states=3, actions=4):
    policy = TabularPolicy(states, actions)
    nn.init.normal_(policy.logits, generator=generator(seed))
    return policy


def gaussian(dimensions=2):
    policy = GaussianPolicy(nn.Linear(3, dimensions), dimensions)
    nn.init.normal_(policy.body.weight, generator=generator(1))
    nn.init.normal_(policy.log_std, generator=generator(2))
    return policy


# -- draws ------------------------------------------------------------------------------------------------------------
def test_draws_of_a_categorical_follow_it():
    """Chi-square of 4 actions: above 30.7 once in a million sound samplers."""
    probs, n = torch.tensor([0.5, 0.3, 0.15, 0.05]), 20_000
    counts = draw(Categorical(probs.expand(n, 4)), generator()).bincount(minlength=4)
    assert float(((counts - n * probs) ** 2 / (n * probs)).sum()) < 30.7


@pytest.mark.parametrize("law", [Bernoulli(torch.tensor([0.5])), Laplace(torch.zeros(2), torch.ones(2))])
def test_a_law_of_another_kind_is_not_drawn_as_a_normal(law):
    with pytest.raises(ValueError, match=f"policy gave a {type(law).__name__}; expected"):
        draw(law, generator())


@pytest.mark.parametrize("policy", [CategoricalPolicy(nn.Identity()), GaussianPolicy(nn.Identity(), 2)])
def test_a_law_that_is_not_finite_is_not_drawn_from(policy):
    with pytest.raises(FloatingPointError, match="policy gave a law with NaN or infinite parameters"):
        sampling(policy, generator())(torch.tensor([[0.0, 1.0], [math.nan, 0.0]]))


def test_draws_of_normals_follow_them():
    """Means and variances within 5 standard errors: a false alarm at 4 numbers in 400,000 sound samplers."""
    policy, n = gaussian(), 20_000
    law = policy(torch.tensor([0.3, -1.0, 2.0]).expand(n, 3))
    actions = draw(law, generator())
    scaled = ((actions - law.mean[0]) / policy.log_std.exp()).detach()
    assert (scaled.mean(0).abs() < 5 / math.sqrt(n)).all()
    assert ((scaled.var(0) - 1).abs() < 5 * math.sqrt(2 / n)).all()
    assert abs(float(torch.corrcoef(scaled.T)[0, 1])) < 5 / math.sqrt(n)


@pytest.mark.parametrize(
    ("policy", "observations"), [(table(), torch.arange(3).repeat(9)), (gaussian(), torch.ones(27, 3))]
)
def test_a_draw_depends_on_the_generator_alone(policy, observations):
    before = torch.get_rng_state()
    first, second, other = (sampling(policy, generator(seed))(observations) for seed in (5, 5, 6))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_each_row_is_drawn_from_its_own_law():
    policy = TabularPolicy(3, 3)
    policy.logits.data = torch.eye(3)[[2, 0, 1]] * 1e4
    assert sampling(policy, generator())(torch.tensor([0, 1, 2, 1])).tolist() == [2, 0, 1, 0]


def test_greedy_gives_the_mode():
    policy, normals = table(), gaussian()
    states, observations = torch.arange(3), torch.randn(5, 3, generator=generator())
    assert torch.equal(greedy(policy)(states), policy.logits.argmax(-1))
    assert torch.equal(greedy(normals)(observations), normals.body(observations))


# -- laws -------------------------------------------------------------------------------------------------------------
@few
@given(st.integers(0, 10**6))
def test_the_log_prob_of_normals_is_the_closed_form(seed):
    policy = gaussian()
    observations, actions = torch.randn(4, 3, generator=generator(seed)), torch.randn(4, 2, generator=generator(seed))
    mean, std = policy.body(observations), policy.log_std.exp()
    terms = -(((actions - mean) / std) ** 2) / 2 - std.log() - math.log(2 * math.pi) / 2
    law = policy(observations)
    torch.testing.assert_close(law.log_prob(actions), terms.sum(-1))
    entropy = (std.log() + (1 + math.log(2 * math.pi)) / 2).sum()
    torch.testing.assert_close(law.entropy(), entropy.expand(4))


def test_a_law_is_the_softmax_of_its_row():
    policy, states = table(), torch.tensor([[2, 0], [1, 1]])
    expected = policy.logits[states].log_softmax(-1)
    torch.testing.assert_close(policy(states).logits, expected)
    body = nn.Linear(3, 4)
    observations = torch.randn(2, 5, 3, generator=generator())
    torch.testing.assert_close(CategoricalPolicy(body)(observations).logits, body(observations).log_softmax(-1))


def test_values_lose_the_last_axis():
    value = TabularValue(3)
    value.values.data = torch.tensor([1.0, 2.0, 3.0])
    assert value(torch.tensor([[2, 0]])).tolist() == [[3.0, 1.0]]
    body = nn.Linear(3, 1)
    observations = torch.randn(2, 1, 3, generator=generator())
    assert torch.equal(Value(body)(observations), body(observations)[..., 0])


def test_a_new_policy_is_uniform_or_nearly_so():
    assert TabularPolicy(2, 5)(torch.tensor(1)).probs.tolist() == pytest.approx([0.2] * 5)
    policy = CategoricalPolicy(perceptron(4, 3, last_gain=0.01))
    probs = policy(torch.randn(50, 4, generator=generator())).probs
    assert (probs - 1 / 3).abs().max() < 0.02
    assert gaussian().log_std.shape == (2,)
    assert GaussianPolicy(nn.Linear(3, 2), 2)(torch.zeros(1, 3)).stddev.tolist() == [[1.0, 1.0]]


# -- weights ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("inputs", "outputs"), [(3, 7), (7, 3), (4, 4)])
def test_orthogonal_weights_are_orthogonal(inputs, outputs):
    layer = orthogonal(nn.Linear(inputs, outputs), gain=1.7)
    weight = layer.weight if outputs <= inputs else layer.weight.T
    torch.testing.assert_close(weight @ weight.T, 1.7**2 * torch.eye(len(weight)), atol=1e-5, rtol=0)
    assert not layer.bias.any()


def test_a_perceptron_has_the_gains_it_was_given():
    layers = perceptron(3, 2, hidden=(8, 5), last_gain=0.1)
    linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
    assert [tuple(layer.weight.shape) for layer in linear] == [(8, 3), (5, 8), (2, 5)]
    for layer, gain in zip(linear, (math.sqrt(2), math.sqrt(2), 0.1), strict=True):
        singular = torch.linalg.svdvals(layer.weight)
        torch.testing.assert_close(singular, torch.full_like(singular, gain))
    x = torch.randn(4, 3, generator=generator())
    by_hand = linear[2](torch.tanh(linear[1](torch.tanh(linear[0](x)))))
    torch.testing.assert_close(layers(x), by_hand)


# -- GRUs -------------------------------------------------------------------------------------------------------------
ROWS = ([3, 1, 4], [1], [5, 2, 6, 5, 3], [2, 2])


def padded(rows, width):
    return torch.tensor([row + [0] * (width - len(row)) for row in rows])


def encoder():
    torch.manual_seed(0)
    return GRUEncoder(vocabulary=7, width=8)


@pytest.mark.parametrize("width", [5, 9])
def test_a_gru_sees_neither_padding_nor_its_batch_mates(width):
    model = encoder()
    together = model(padded(ROWS, width))
    for row, state in zip(ROWS, together, strict=True):
        _, last = model.gru(model.embedding(torch.tensor([row])))
        torch.testing.assert_close(state, last[0, 0])
    torch.testing.assert_close(model(padded(ROWS[::-1], width)), together.flip(0))


def test_a_gru_trains_no_padding():
    model = encoder()
    model(padded(ROWS, 7)).sum().backward()
    assert not model.embedding.weight.grad[0].any()
    assert model.embedding.weight.grad[1:].any(dim=1).all()


def test_a_gru_keeps_the_leading_axes_and_takes_an_empty_row():
    model, tokens = encoder(), padded(ROWS, 5)
    torch.testing.assert_close(model(tokens.reshape(2, 2, 5)), model(tokens).reshape(2, 2, 8))
    torch.testing.assert_close(model(tokens[0]), model(tokens)[0])
    assert model(torch.zeros(2, 4, dtype=torch.long)).isfinite().all()


def test_policy_and_value_of_an_agent_share_one_encoder():
    policy, value = gru_agent(vocabulary=7, actions=3, width=8)
    assert policy.body[0] is value.body[0]
    alone, heads = sum(p.numel() for p in policy.body[0].parameters()), 8 * 3 + 3 + 8 + 1
    assert sum(p.numel() for p in nn.ModuleList([policy, value]).parameters()) == alone + heads
    tokens = padded(ROWS, 5)
    assert policy(tokens).probs.shape == (4, 3)
    assert value(tokens).shape == (4,)
    assert (policy(tokens).probs - 1 / 3).abs().max() < 0.02
