"""Objectives and losses against their definitions, at ratio 1, at the edges of the band, and by gradcheck."""

import math

import pytest
import torch
from hypothesis import given, settings, strategies as st

from rlhf_lab.maths.exact import TokenWorld
from rlhf_lab.maths.objectives import (
    clip_fraction,
    clipped_surrogate_objective,
    clipped_value_loss,
    dpo_loss,
    entropy,
    explained_variance,
    reinforce_objective,
)
from rlhf_lab.maths.tensors import length_mask, masked_sum

torch.set_num_threads(1)
few = settings(max_examples=40, deadline=None)
SEEDS, EPSILONS = st.integers(0, 2**31), st.sampled_from([0.05, 0.2, 0.5])


def draw(seed, count, shape=(2, 3), scale=0.5):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, *shape, generator=generator, dtype=torch.float64).mul(scale).unbind(0)


def pairs(*tensors):
    return zip(*(tensor.flatten().tolist() for tensor in tensors), strict=True)


@few
@given(SEEDS, EPSILONS)
def test_clipped_surrogate_against_the_definition(seed, epsilon):
    new, old, advantages = draw(seed, 3)
    objective = clipped_surrogate_objective(new, old, advantages, epsilon)
    expected = []
    for a, b, advantage in pairs(new, old, advantages):
        ratio = math.exp(a - b)
        clipped = min(max(ratio, 1 - epsilon), 1 + epsilon)
        expected.append(min(ratio * advantage, clipped * advantage))
    assert objective.flatten().tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("ratio", "advantage", "value", "slope"),
    [
        (1.0, 2.0, 2.0, 2.0),  # inside: the gradient of ratio * advantage
        (1.1, -2.0, -2.2, -2.2),
        (1.5, 2.0, 2.4, 0.0),  # above the band and rewarded: no incentive to go on
        (0.5, -2.0, -1.6, 0.0),  # below the band and punished: the same
        (1.5, -2.0, -3.0, -3.0),  # above the band but punished: pulled back
        (0.5, 2.0, 1.0, 1.0),  # below the band but rewarded: pulled back
    ],
)
def test_the_surrogate_stops_where_the_band_is_left_in_the_rewarded_direction(ratio, advantage, value, slope):
    log_probs = torch.tensor([[math.log(ratio)]], dtype=torch.float64, requires_grad=True)
    old, advantages = torch.zeros(1, 1).double(), torch.tensor([[advantage]]).double()
    objective = clipped_surrogate_objective(log_probs, old, advantages, 0.2)
    assert objective.item() == pytest.approx(value)
    assert torch.autograd.grad(objective.sum(), log_probs)[0].item() == pytest.approx(slope)


def test_at_ratio_1_the_surrogate_has_the_gradient_of_reinforce():
    log_probs, advantages = draw(0, 2)
    log_probs.requires_grad_()
    surrogate = clipped_surrogate_objective(log_probs, log_probs.detach(), advantages, 0.2)
    torch.testing.assert_close(surrogate, advantages)
    reinforce = reinforce_objective(log_probs, advantages)
    torch.testing.assert_close(
        *(torch.autograd.grad(objective.sum(), log_probs)[0] for objective in (surrogate, reinforce))
    )


def test_reinforce_is_the_policy_gradient_with_or_without_a_baseline():
    """Exact, in a world with sequences of several lengths and two prompts."""
    world = TokenWorld(3, 3, lambda p, s: math.cos(p + len(s) + s[0]), prompts=2, eos=0)
    (logits,) = draw(1, 1, (2, world.num_prefixes, 3))
    law, mask = world.law(logits), world.mask.expand(2, -1, -1)
    for baseline in (0.0, 3.0):
        leaf = logits.clone().requires_grad_()
        advantages = (world.scores - baseline).unsqueeze(-1).expand(mask.shape)
        objective = reinforce_objective(world.token_log_probs(leaf), advantages)
        expectation = (law * masked_sum(objective, mask, dim=-1)).sum()
        gradient = torch.autograd.grad(expectation, leaf)[0]
        torch.testing.assert_close(gradient, world.reward_gradient(logits))


def test_unclipped_importance_weights_are_exact_off_policy():
    world = TokenWorld(2, 3, lambda p, s: math.sin(sum((i + 1) * a for i, a in enumerate(s))))
    logits, old_logits = draw(2, 2, (1, world.num_prefixes, 2))
    logits.requires_grad_()
    new, old = (world.token_log_probs(x).sum(-1) for x in (logits, old_logits))
    objective = clipped_surrogate_objective(new, old, world.scores, math.inf)
    gradient = torch.autograd.grad((world.law(old_logits) * objective).sum(), logits)[0]
    torch.testing.assert_close(gradient, world.reward_gradient(logits))


@few
@given(SEEDS, EPSILONS)
def test_clipped_value_loss_against_the_definition(seed, epsilon):
    values, old_values, returns = draw(seed, 3)
    loss = clipped_value_loss(values, old_values, returns, epsilon)
    expected = []
    for v, old, target in pairs(values, old_values, returns):
        clipped = old + min(max(v - old, -epsilon), epsilon)
        expected.append(0.5 * max((v - target) ** 2, (clipped - target) ** 2))
    assert loss.flatten().tolist() == pytest.approx(expected)
    plain = clipped_value_loss(values, old_values, returns, math.inf)
    torch.testing.assert_close(plain, 0.5 * (values - returns) ** 2)
    assert (loss >= plain - 1e-12).all()


@pytest.mark.parametrize(
    ("value", "target", "slope"),
    [(0.1, 1.0, -0.9), (0.5, 1.0, 0.0), (0.5, -1.0, 1.5), (1.5, 1.0, 0.0)],
)
def test_the_value_stops_after_a_step_of_epsilon_towards_its_target(value, target, slope):
    values = torch.tensor([[value]], dtype=torch.float64, requires_grad=True)
    loss = clipped_value_loss(values, torch.zeros(1, 1).double(), torch.full((1, 1), target).double(), 0.2)
    assert torch.autograd.grad(loss.sum(), values)[0].item() == pytest.approx(slope)


@few
@given(SEEDS, st.sampled_from([0.1, 1.0, 20.0]))
def test_entropy_is_the_expected_surprise(seed, scale):
    (logits,) = draw(seed, 1, (2, 3, 4), scale)
    expected = []
    for row in logits.flatten(0, 1).tolist():
        total = sum(math.exp(x - max(row)) for x in row)
        p = [math.exp(x - max(row)) / total for x in row]
        expected.append(-sum(x * math.log(x) for x in p if x > 0))
    assert entropy(logits).flatten().tolist() == pytest.approx(expected)


def test_entropy_at_its_ends():
    assert entropy(torch.zeros(2, 5)).tolist() == pytest.approx([math.log(5)] * 2)
    logits = torch.tensor([0.0, 0.0, -math.inf], requires_grad=True)
    assert entropy(logits).item() == pytest.approx(math.log(2))
    assert torch.autograd.grad(entropy(logits), logits)[0].isfinite().all()


@few
@given(SEEDS, EPSILONS, st.lists(st.integers(0, 4), min_size=2, max_size=3))
def test_clip_fraction_counts_real_tokens_outside_the_band(seed, epsilon, lengths):
    lengths = [max(lengths[0], 1), *lengths[1:]]
    mask = length_mask(torch.tensor(lengths), 4)
    new, old = draw(seed, 2, mask.shape)
    ratios = [math.exp(a - b) for a, b, real in pairs(new, old, mask) if real]
    expected = sum(not 1 - epsilon <= ratio <= 1 + epsilon for ratio in ratios) / len(ratios)
    dirty = new.masked_fill(~mask, math.nan)
    assert clip_fraction(dirty, old, epsilon, mask).item() == pytest.approx(expected)


def test_clip_fraction_sees_both_sides_and_is_0_at_ratio_1():
    old, mask = torch.zeros(1, 4), torch.ones(1, 4).bool()
    new = torch.tensor([[0.7, 1.0, 1.1, 1.3]]).log()
    assert clip_fraction(new, old, 0.2, mask).item() == 0.5
    assert clip_fraction(old.requires_grad_(), old, 0.2, mask).item() == 0


@few
@given(SEEDS)
def test_explained_variance_against_the_definition(seed):
    values, returns = draw(seed, 2, (3, 4))
    mask = length_mask(torch.tensor([4, 1, 2]), 4)
    real = [(v, r) for v, r, kept in pairs(values, returns, mask) if kept]

    def variance(numbers):
        mean = sum(numbers) / len(numbers)
        return sum((x - mean) ** 2 for x in numbers)

    expected = 1 - variance([r - v for v, r in real]) / variance([r for _, r in real])
    dirty = returns.masked_fill(~mask, math.nan)
    assert explained_variance(values, dirty, mask).item() == pytest.approx(expected)
    assert explained_variance(dirty + 3, dirty, mask).item() == pytest.approx(1)
    assert explained_variance(torch.zeros_like(values), dirty, mask).item() == pytest.approx(0)


def test_on_the_edge_of_the_band_nothing_is_clipped_and_the_precision_stays():
    twice, mask = torch.tensor([[2.0, 3.0]]).double().log(), torch.ones(1, 2).bool()
    assert twice.exp()[0, 0] == 2
    fraction = clip_fraction(twice, torch.zeros(1, 2).double(), 1.0, mask)
    assert (fraction.item(), fraction.dtype) == (0.5, torch.float64)


def test_explained_variance_of_constant_returns():
    mask, ones = torch.ones(1, 3).bool(), torch.ones(1, 3, dtype=torch.float64)
    for values, share in ((2 * ones, 1), (torch.arange(3.0).double().unsqueeze(0), 0)):
        explained = explained_variance(values, 0.1 * ones, mask)
        assert (explained.item(), explained.dtype) == (share, torch.float64)


@few
@given(SEEDS, st.sampled_from([0.1, 1.0]))
def test_dpo_loss_against_the_definition(seed, beta):
    arguments = draw(seed, 4, (5,), 3.0)
    expected = [
        -math.log(1 / (1 + math.exp(-beta * ((c - ref_c) - (r - ref_r))))) for c, r, ref_c, ref_r in pairs(*arguments)
    ]
    assert dpo_loss(*arguments, beta).tolist() == pytest.approx(expected)
    chosen, rejected, *_ = arguments
    assert dpo_loss(chosen, rejected, chosen, rejected, beta).tolist() == pytest.approx([math.log(2)] * 5)


def test_dpo_on_all_pairs_is_stationary_at_the_known_optimum():
    """Raters follow Bradley-Terry on the score; the policy that has the optimal law is a critical point."""
    world, beta = TokenWorld(2, 2, lambda p, s: s[0] - 0.5 * s[1]), 0.7
    (ref_logits,) = draw(3, 1, (1, world.num_prefixes, 2))
    ref_law = world.law(ref_logits)[0]
    left, right = torch.cartesian_prod(torch.arange(4), torch.arange(4)).T
    weight = ref_law[left] * ref_law[right] * torch.sigmoid(world.scores[0, left] - world.scores[0, right])
    ref = world.token_log_probs(ref_logits).sum(-1)[0]

    def gradient(logits):
        logits = logits.clone().requires_grad_()
        new = world.token_log_probs(logits).sum(-1)[0]
        loss = (weight * dpo_loss(new[left], new[right], ref[left], ref[right], beta)).sum()
        return torch.autograd.grad(loss, logits)[0].abs().max()

    assert gradient(world.logits(world.optimum(ref_law.unsqueeze(0), beta))) < 1e-12
    assert gradient(ref_logits) > 1e-3


def test_gradients_by_finite_differences():
    """Random arguments in float64; the seed keeps them away from the kinks."""
    new, old, other, more = draw(5, 4)
    new.requires_grad_()
    check = torch.autograd.gradcheck
    assert check(lambda x: reinforce_objective(x, other), new)
    assert check(lambda x: clipped_surrogate_objective(x, old, other, 0.2), new)
    assert check(lambda x: clipped_value_loss(x, old, other, 0.2), new)
    assert check(entropy, new)
    assert check(lambda x, y: dpo_loss(x, y, old, more, 0.3), (new, other.clone().requires_grad_()))


@few
@given(SEEDS)
def test_a_batch_is_its_rows(seed):
    new, old, other = draw(seed, 3, (3, 4))
    for function in (
        lambda *x: reinforce_objective(*x[::2]),
        lambda *x: clipped_surrogate_objective(*x, 0.2),
        lambda *x: clipped_value_loss(*x, 0.2),
        lambda *x: entropy(x[0]),
    ):
        rows = [function(*(x[b : b + 1] for x in (new, old, other))) for b in (2, 0, 1)]
        torch.testing.assert_close(torch.cat(rows), function(new, old, other)[[2, 0, 1]])


NAMES = {
    reinforce_objective: ("log_probs", "advantages"),
    clipped_surrogate_objective: ("log_probs", "old_log_probs", "advantages"),
    clipped_value_loss: ("values", "old_values", "returns"),
    clip_fraction: ("log_probs", "old_log_probs", "mask"),
    explained_variance: ("values", "returns", "mask"),
    dpo_loss: ("chosen_log_probs", "rejected_log_probs", "ref_chosen_log_probs", "ref_rejected_log_probs"),
}


@pytest.mark.parametrize(("function", "name"), [(f, name) for f, names in NAMES.items() for name in names])
def test_nothing_is_broadcast(function, name):
    given = {n: torch.zeros(2, 3).to(torch.bool if n == "mask" else torch.float32) for n in NAMES[function]}
    more = {"beta": 0.1} if function is dpo_loss else {"clip_epsilon": 0.2} if "clip" in function.__name__ else {}
    with pytest.raises(ValueError, match=f"has shape .* expected .* like {NAMES[function][0]}"):
        function(**given | {name: given[name][:, :1]}, **more)


X = torch.zeros(1, 2)
LIVE = torch.zeros(1, 2, requires_grad=True)
SURROGATE, VALUE = clipped_surrogate_objective, clipped_value_loss


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: reinforce_objective(X, LIVE), r"advantages must be data, .* advantages\.detach\(\)"),
        (lambda: SURROGATE(X, X, LIVE, 0.2), "advantages must be data"),
        (lambda: SURROGATE(X, LIVE, X, 0.2), "old_log_probs must be data"),
        (lambda: VALUE(X, LIVE, X, 0.2), "old_values must be data"),
        (lambda: VALUE(X, X, LIVE, 0.2), "returns must be data"),
        (lambda: dpo_loss(X[0], X[0], LIVE[0], X[0], 0.1), "ref_chosen_log_probs must be data"),
        (lambda: dpo_loss(X[0], X[0], X[0], LIVE[0], 0.1), "ref_rejected_log_probs must be data"),
        (lambda: dpo_loss(X[0], X[0], X[0], X[0], 0.0), "beta must be positive, got 0.0"),
        (lambda: dpo_loss(X[0], X, X[0], X[0], 0.1), "rejected_log_probs has shape"),
        (
            lambda: reinforce_objective(X, X[0]),
            r"advantages has shape \[2\], expected \[1, 2\] like log_probs",
        ),
        (lambda: SURROGATE(X, X[0], X, 0.2), "old_log_probs has shape"),
        (lambda: SURROGATE(X, X, X, 0.0), "clip_epsilon must be positive, got 0.0"),
        (lambda: VALUE(torch.zeros(1, 3), X, X, 0.2), "old_values has shape"),
        (lambda: VALUE(X, X, X, math.nan), "clip_epsilon must be positive, got nan"),
        (lambda: clip_fraction(X, X, 0.2, torch.zeros(1, 2).bool()), "mask has no True entry"),
        (lambda: clip_fraction(X, X, 0.2, torch.zeros(2).bool()), "mask has shape"),
        (lambda: explained_variance(X, X, X), "mask must be torch.bool"),
        (lambda: explained_variance(X, X, torch.tensor([[True, False]])), "at least 2 True"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
