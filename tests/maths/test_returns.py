"""Returns and advantages: definitions, closed forms, masks and (with TokenWorld) exact expectations."""

import math

import pytest
import torch
from hypothesis import given, settings, strategies as st

from rlhf_lab.maths.exact import TokenWorld
from rlhf_lab.maths.returns import (
    discounted_returns,
    gae,
    group_advantages,
    lambda_returns,
    leave_one_out_advantages,
    td_errors,
)
from rlhf_lab.maths.tensors import length_mask

torch.set_num_threads(1)
few = settings(max_examples=40, deadline=None)
LAMBDA = st.sampled_from([0.0, 0.3, 0.95, 1.0])


def random_rows(seed, lengths, terminal, gamma=0.9, dirt=math.nan):
    """Rewards, values, discounts, mask in float64; row b ends if terminal[b]; dirt under the padding."""
    generator = torch.Generator().manual_seed(seed)
    rows, steps = len(lengths), max(*lengths, 1)
    mask = length_mask(torch.tensor(lengths), steps)
    rewards = torch.randn(rows, steps, generator=generator, dtype=torch.float64)
    values = torch.randn(rows, steps + 1, generator=generator, dtype=torch.float64)
    discounts = torch.full((rows, steps), gamma, dtype=torch.float64)
    for row, (length, ends) in enumerate(zip(lengths, terminal, strict=True)):
        if ends and length:
            discounts[row, length - 1] = 0
        values[row, length + 1 :] = dirt
    return rewards.where(mask, dirt), values, discounts.where(mask, dirt), mask


@st.composite
def ragged(draw):
    lengths = draw(st.lists(st.integers(0, 6), min_size=2, max_size=4))
    terminal = draw(st.lists(st.booleans(), min_size=len(lengths), max_size=len(lengths)))
    seed, gamma = draw(st.integers(0, 2**31)), draw(st.sampled_from([0.5, 0.9, 1.0]))
    return lengths, random_rows(seed, lengths, terminal, gamma)


def product(numbers):
    return math.prod(float(number) for number in numbers)


@few
@given(ragged())
def test_discounted_returns_are_the_discounted_sum(case):
    lengths, (rewards, values, discounts, mask) = case
    bootstrap = torch.stack([values[row, length] for row, length in enumerate(lengths)])
    returns = discounted_returns(rewards, discounts, mask, bootstrap)
    for row, length in enumerate(lengths):
        for t in range(length):
            expected = sum(product(discounts[row, t:k]) * float(rewards[row, k]) for k in range(t, length)) + product(
                discounts[row, t:length]
            ) * float(bootstrap[row])
            assert float(returns[row, t]) == pytest.approx(expected)
    assert returns[~mask].eq(0).all()


@few
@given(ragged(), LAMBDA)
def test_gae_is_the_weighted_sum_of_td_errors(case, lam):
    lengths, (rewards, values, discounts, mask) = case
    errors, advantages = (
        td_errors(rewards, values, discounts, mask),
        gae(rewards, values, discounts, mask, lam),
    )
    for row, length in enumerate(lengths):
        delta = [
            float(rewards[row, t] + discounts[row, t] * values[row, t + 1] - values[row, t]) for t in range(length)
        ]
        assert errors[row, :length].tolist() == pytest.approx(delta)
        for t in range(length):
            expected = sum(lam ** (k - t) * product(discounts[row, t:k]) * delta[k] for k in range(t, length))
            assert float(advantages[row, t]) == pytest.approx(expected)
    assert errors[~mask].eq(0).all()
    assert advantages[~mask].eq(0).all()


@few
@given(ragged(), LAMBDA)
def test_lambda_returns_average_the_n_step_returns(case, lam):
    """G_t = (1 - lam) sum_n lam^(n-1) G_t^(n), the rest of the weight on the longest one."""
    lengths, (rewards, values, discounts, mask) = case
    targets = lambda_returns(rewards, values, discounts, mask, lam)
    for row, length in enumerate(lengths):
        for t in range(length):
            n_step = [
                sum(product(discounts[row, t:k]) * float(rewards[row, k]) for k in range(t, end))
                + product(discounts[row, t:end]) * float(values[row, end])
                for end in range(t + 1, length + 1)
            ]
            weights = [(1 - lam) * lam**n for n in range(len(n_step) - 1)] + [lam ** (len(n_step) - 1)]
            expected = sum(w * g for w, g in zip(weights, n_step, strict=True))
            assert float(targets[row, t]) == pytest.approx(expected)
    assert targets[~mask].eq(0).all()


@few
@given(ragged())
def test_closed_forms_at_lambda_0_and_1(case):
    lengths, (rewards, values, discounts, mask) = case
    bootstrap = torch.stack([values[row, length] for row, length in enumerate(lengths)])
    returns = discounted_returns(rewards, discounts, mask, bootstrap)
    at_one = gae(rewards, values, discounts, mask, 1.0)
    torch.testing.assert_close(at_one[mask], (returns - values[:, :-1])[mask])
    torch.testing.assert_close(gae(rewards, values, discounts, mask, 0.0), td_errors(rewards, values, discounts, mask))
    torch.testing.assert_close(lambda_returns(rewards, values, discounts, mask, 1.0), returns)


@few
@given(ragged(), LAMBDA)
def test_rows_do_not_know_of_each_other_nor_of_padding(case, lam):
    lengths, rows = case
    together = gae(*rows, lam)
    for row, length in enumerate(lengths):
        rewards, values, discounts, mask = (x[row : row + 1] for x in rows)
        short = (rewards[:, :length], values[:, : length + 1], discounts[:, :length], mask[:, :length])
        torch.testing.assert_close(gae(*short, lam), together[row : row + 1, :length])
    order = torch.arange(len(lengths)).flip(0)
    torch.testing.assert_close(gae(*(x[order] for x in rows), lam), together[order], equal_nan=True)


def test_a_truncated_row_bootstraps_and_a_terminal_one_does_not():
    rewards, mask = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), length_mask(torch.tensor([1, 1]), 2)
    values = torch.tensor([[0.0, 10.0, 99.0], [0.0, 10.0, 99.0]])
    discounts = torch.tensor([[0.5, 0.5], [0.0, 0.5]])  # the first is cut, the second ends
    assert gae(rewards, values, discounts, mask, 1.0).tolist() == [[6.0, 0.0], [1.0, 0.0]]


def test_after_an_end_nothing_counts_not_even_what_is_no_number():
    rewards, values = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0, math.nan]])
    mask, discounts = torch.ones(1, 2).bool(), torch.tensor([[0.5, 0.0]])
    assert td_errors(rewards, values, discounts, mask).tolist() == [[0.0, -2.0]]
    assert discounted_returns(rewards, discounts, mask, torch.tensor([math.inf])).tolist() == [[2.0, 2.0]]


def test_without_a_bootstrap_nothing_follows():
    rewards, _, discounts, mask = random_rows(0, [3, 1], [False, False])
    returns = discounted_returns(rewards, discounts, mask)
    torch.testing.assert_close(returns, discounted_returns(rewards, discounts, mask, torch.zeros(2).double()))


def test_results_are_detached():
    rewards, values = torch.ones(1, 2, requires_grad=True), torch.ones(1, 3, requires_grad=True)
    discounts, mask = torch.ones(1, 2), torch.ones(1, 2).bool()
    results = [
        discounted_returns(rewards, discounts, mask, values[:, 2]),
        td_errors(rewards, values, discounts, mask),
        gae(rewards, values, discounts, mask, 0.9),
        lambda_returns(rewards, values, discounts, mask, 0.9),
        leave_one_out_advantages(rewards),
        group_advantages(rewards),
    ]
    assert not any(result.requires_grad for result in results)


def test_rows_without_steps_give_zeros():
    empty = torch.zeros(2, 0)
    assert gae(empty, torch.zeros(2, 1), empty, empty.bool(), 0.9).shape == (2, 0)
    nothing = torch.zeros(2, 3).bool()
    dirt = torch.full((2, 3), math.nan)
    assert gae(dirt, torch.full((2, 4), math.nan), dirt, nothing, 0.9).eq(0).all()
    assert discounted_returns(dirt, dirt, nothing, torch.ones(2)).eq(0).all()


# ---- several responses to one prompt -----------------------------------------------------------------------


@few
@given(st.integers(0, 2**31), st.integers(2, 6))
def test_group_baselines_against_the_definition(seed, size):
    rewards = torch.randn(3, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    left_out, grouped = leave_one_out_advantages(rewards), group_advantages(rewards)
    centred = group_advantages(rewards, scale=False)
    for g, row in enumerate(rewards.tolist()):
        mean = sum(row) / size
        std = math.sqrt(sum((r - mean) ** 2 for r in row) / (size - 1))
        for k, reward in enumerate(row):
            others = (sum(row) - reward) / (size - 1)
            assert float(left_out[g, k]) == pytest.approx(reward - others)
            assert float(centred[g, k]) == pytest.approx(reward - mean)
            assert float(grouped[g, k]) == pytest.approx((reward - mean) / (std + 1e-4))
    torch.testing.assert_close(leave_one_out_advantages(rewards + 7), left_out)
    torch.testing.assert_close(group_advantages(rewards * 1000, epsilon=0.1), grouped)


@pytest.mark.parametrize("constant", [0.1, 1e6 / 3, -7.0])
def test_a_constant_group_gives_exactly_zero(constant):
    rewards = torch.full((2, 7), constant)
    assert group_advantages(rewards).eq(0).all()
    assert leave_one_out_advantages(rewards).eq(0).all()


def test_dividing_by_the_standard_deviation_reweights_prompts():
    """The factor on the gradient of one prompt, by its success rate and the size of the group."""

    def factor(rate, size):
        wins = [math.comb(size, k) * rate**k * (1 - rate) ** (size - k) for k in range(size + 1)]
        rewards = torch.tensor([[1.0] * k + [0.0] * (size - k) for k in range(size + 1)], dtype=torch.float64)
        scaled = (group_advantages(rewards, epsilon=1e-12) * rewards).sum(1)
        plain = (leave_one_out_advantages(rewards) * rewards).sum(1)
        law = torch.tensor(wins, dtype=torch.float64)
        return float((law * scaled).sum() / (law * plain).sum())

    assert factor(0.05, 4) == pytest.approx(1.48, abs=0.005)
    assert factor(0.5, 4) == pytest.approx(1.40, abs=0.005)
    assert factor(0.05, 64) == pytest.approx(4.3, abs=0.05)
    assert factor(0.5, 64) == pytest.approx(1.97, abs=0.02)


# ---- exact expectations in a world that can be enumerated --------------------------------------------------


def world_and_logits(vocab_size=3, length=3, prompts=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    world = TokenWorld(
        vocab_size,
        length,
        lambda p, s: math.sin(7 * p + sum((i + 2) ** 2 * a for i, a in enumerate(s))),
        prompts,
        0,
    )
    shape = (prompts, world.num_prefixes, vocab_size)
    return world, torch.randn(shape, generator=generator, dtype=torch.float64)


def enumerated_episodes(world, values):
    """Every sequence as a row: the score at its last token, discount 0 there, values of its prefixes."""
    last = (world.lengths - 1).unsqueeze(1)
    rewards = torch.zeros(world.num_sequences, world.length, dtype=torch.float64)
    rewards.scatter_(1, last, world.scores[0].unsqueeze(1))
    discounts = world.mask.double().scatter(1, last, 0)
    return rewards, values, discounts, world.mask


def token_gradient(world, logits, advantages):
    """Expectation over the law of sum_t A_t grad log pi(a_t), by autograd on the enumerated sequences."""
    logits = logits.clone().requires_grad_()
    log_probs = world.token_log_probs(logits)[0]
    law = world.law(logits.detach())[0]
    (gradient,) = torch.autograd.grad((law.unsqueeze(1) * log_probs * advantages).sum(), logits)
    return gradient


def test_gae_with_lambda_1_is_unbiased_for_any_values():
    world, logits = world_and_logits()
    any_values = torch.randn(1, world.num_prefixes, generator=torch.Generator().manual_seed(3)).double()
    values = torch.cat([any_values[0][world.prefix_ids], torch.full((world.num_sequences, 1), 5.0)], 1)
    advantages = gae(*enumerated_episodes(world, values), lam=1.0)
    torch.testing.assert_close(token_gradient(world, logits, advantages), world.reward_gradient(logits))


@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
def test_gae_is_unbiased_for_any_lambda_with_exact_values_only(lam):
    world, logits = world_and_logits()
    exact = world.values(world.law(logits))[0]
    values = torch.cat([exact[world.prefix_ids], torch.zeros(world.num_sequences, 1)], 1)
    advantages = gae(*enumerated_episodes(world, values), lam)
    torch.testing.assert_close(token_gradient(world, logits, advantages), world.reward_gradient(logits))
    # Another value of every state but the first, so that a wrong critic shows where lam < 1.
    wrong = token_gradient(world, logits, gae(*enumerated_episodes(world, values * 0.3), lam))
    assert torch.allclose(wrong, world.reward_gradient(logits)) == (lam == 1.0)


def group_gradient(world, logits, advantage_function, size):
    """E over all groups of K samples of 1/K sum_k A_k grad log pi(x_k), by enumerating the groups."""
    law, n = world.law(logits)[0], world.num_sequences
    groups = torch.cartesian_prod(*[torch.arange(n)] * size)  # [N^K, K]
    advantages = advantage_function(world.scores[0][groups])
    probability = law[groups].prod(1, keepdim=True)
    weights = torch.zeros(n, dtype=torch.float64)
    weights.index_add_(0, groups.flatten(), (probability * advantages / size).flatten())
    return world.score_gradient(logits, weights.unsqueeze(0))


@pytest.mark.parametrize("size", [2, 3])
def test_leave_one_out_is_unbiased_and_a_mean_with_oneself_shrinks(size):
    world, logits = world_and_logits(vocab_size=3, length=2)
    exact = world.reward_gradient(logits)
    torch.testing.assert_close(group_gradient(world, logits, leave_one_out_advantages, size), exact)
    with_oneself = group_gradient(world, logits, lambda r: group_advantages(r, scale=False), size)
    torch.testing.assert_close(with_oneself, exact * (size - 1) / size)


ROW, MASK = torch.ones(1, 3), torch.ones(1, 3).bool()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gae(ROW, torch.ones(1, 3), ROW, MASK, 0.9), r"values has shape \[1, 3\], expected \[1, 4\]"),
        (lambda: gae(ROW, torch.ones(1, 4), ROW, MASK, 1.1), r"lam must be in \[0, 1\], got 1.1"),
        (lambda: gae(ROW, torch.ones(1, 4), ROW, ROW, 0.9), "mask must be torch.bool"),
        (lambda: td_errors(ROW, torch.ones(1, 4), torch.ones(1, 2), MASK), "discounts has shape"),
        (
            lambda: lambda_returns(ROW, torch.ones(1, 4), ROW, torch.tensor([[False, True, True]]), 0.9),
            "mask must be right-padded",
        ),
        (lambda: gae(ROW, torch.ones(1, 4), ROW, torch.tensor([[True, False, True]]), 0.9), "must be right-padded"),
        (lambda: gae(ROW, torch.ones(1, 4), ROW, MASK[:, :1], 0.9), r"mask has shape \[1, 1\], .* like rewards"),
        (lambda: discounted_returns(ROW[0], ROW[0], MASK[0]), r"rewards must be \[B, T\], got shape \[3\]"),
        (
            lambda: discounted_returns(ROW, ROW, MASK, torch.ones(2)),
            r"bootstrap has shape \[2\], expected \[1\]",
        ),
        (lambda: discounted_returns(ROW * math.nan, ROW, MASK), "rewards holds NaN or infinity, expected finite"),
        (lambda: gae(ROW * math.inf, torch.ones(1, 4), ROW, MASK, 0.9), "rewards holds NaN or infinity"),
        (lambda: group_advantages(torch.tensor([[1.0, math.nan]])), "rewards holds NaN or infinity"),
        (lambda: group_advantages(torch.ones(3, 1)), r"K >= 2 .* of shape \[3, 1\]"),
        (lambda: leave_one_out_advantages(torch.tensor(1.0)), r"got torch.float32 of shape \[\]"),
        (lambda: group_advantages(torch.ones(2, 3, dtype=torch.long)), "must be floats .* got torch.int64"),
        (lambda: group_advantages(torch.ones(2, 3), epsilon=0.0), "epsilon must be positive, got 0.0"),
        (lambda: leave_one_out_advantages(torch.ones(3)), r"K >= 2 .* of shape \[3\]"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
