"""Optimisers, learning rates, and the step that refuses what is not finite."""

import itertools

import pytest
import torch

from rlhf_lab.training.optimisers import clipped_step, cosine_rate, make_optimiser, scale_rates

torch.set_num_threads(1)


def layer_and_optimiser():
    layer = torch.nn.Linear(3, 1)
    return layer, make_optimiser(layer, 0.1, 0.1)


def test_only_matrices_decay():
    groups = layer_and_optimiser()[1].param_groups
    assert {p.dim(): group["weight_decay"] for group in groups for p in group["params"]} == {2: 0.1, 1: 0.0}


def test_rates_are_a_share_of_their_peaks():
    _, optimiser = layer_and_optimiser()
    optimiser.param_groups[1]["lr"] = 1.0
    assert scale_rates(optimiser, 0.5) == 0.05
    assert [group["lr"] for group in optimiser.param_groups] == [0.05, 0.5]


def test_cosine_rate():
    rates = [cosine_rate(step, 100, 10, floor=0.1) for step in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates[10] == 1.0
    assert rates[55] == pytest.approx(0.55)  # halfway down to 0.1
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))
    assert cosine_rate(100, 100, 10, floor=0.1) == pytest.approx(0.1)


def test_gradients_are_clipped_model_by_model():
    layers = [torch.nn.Linear(1, 1, bias=False) for _ in range(3)]
    optimiser = torch.optim.SGD([p for layer in layers for p in layer.parameters()], lr=1.0)
    before = [layer.weight.item() for layer in layers]
    for layer, gradient in zip(layers, (3.0, -0.5, 0.25), strict=True):
        layer.weight.grad = torch.tensor([[gradient]])
    assert clipped_step(optimiser, 1.0, 1, layers[0], layers[1]) == (3.0, 0.5)
    moved = [b - layer.weight.item() for b, layer in zip(before, layers, strict=True)]
    assert moved == pytest.approx([1.0, -0.5, 0.25], rel=1e-5)  # the third was not asked to be clipped


def test_a_gradient_that_is_not_finite_is_refused_and_nothing_moves():
    layer, optimiser = layer_and_optimiser()
    other = torch.nn.Linear(1, 1)
    other.weight.grad = torch.ones(1, 1)
    before = layer.weight.clone()
    layer(torch.full((1, 3), float("inf"))).sum().backward()
    with pytest.raises(FloatingPointError, match=r"gradient norm is \[1.0, .*\] at step 7"):
        clipped_step(optimiser, 1.0, 7, other, layer)
    assert torch.equal(layer.weight, before)
