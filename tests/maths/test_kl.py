"""KL estimators against sums over all tokens, and what each of them does as a term of the loss."""

import math

import pytest
import torch
from hypothesis import given, settings, strategies as st

from rlhf_lab.maths.exact import TokenWorld
from rlhf_lab.maths.kl import categorical_kl, kl_k1, kl_k2, kl_k3

torch.set_num_threads(1)
few = settings(max_examples=40, deadline=None)
PAIRS = st.tuples(st.integers(0, 2**31), st.integers(2, 6), st.sampled_from([0.1, 1.0, 4.0]))
# A 3-action categorical with KL(p || q) = 0.373.
P = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
Q = torch.tensor([0.3, 0.3, 0.4], dtype=torch.float64)


def random_logits(seed, size, scale):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 3, size, generator=generator, dtype=torch.float64).mul(scale).unbind(0)


@few
@given(PAIRS)
def test_exact_kl_is_the_sum_over_tokens(case):
    logits, ref_logits = random_logits(*case)
    kl = categorical_kl(logits, ref_logits)
    for row in range(3):
        weights, ref_weights = logits[row].exp().tolist(), ref_logits[row].exp().tolist()
        p, q = ([w / sum(ws) for w in ws] for ws in (weights, ref_weights))
        assert float(kl[row]) == pytest.approx(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
    torch.testing.assert_close(categorical_kl(logits + 3, ref_logits - 5), kl)
    assert (kl >= 0).all()


@few
@given(PAIRS)
def test_k1_and_k3_are_unbiased_and_k2_is_half_the_squared_log_ratio(case):
    logits, ref_logits = random_logits(*case)
    log_p, log_q = logits.log_softmax(-1), ref_logits.log_softmax(-1)
    exact = categorical_kl(logits, ref_logits)
    for estimator in (kl_k1, kl_k3):
        torch.testing.assert_close((log_p.exp() * estimator(log_p, log_q)).sum(-1), exact)
    assert (kl_k3(log_p, log_q) >= 0).all()
    torch.testing.assert_close(kl_k2(log_p, log_q), 0.5 * (log_p - log_q) ** 2)


def test_known_values_and_the_estimators_turned_round():
    """Turned round, k1 and k3 are plainly wrong on samples of p; k2 does not notice."""
    log_p, log_q = P.log(), Q.log()

    def expected(estimator, *arguments):
        return float((P * estimator(*arguments)).sum())

    exact = 0.7 * math.log(7 / 3) + 0.2 * math.log(2 / 3) + 0.1 * math.log(1 / 4)
    assert exact == pytest.approx(0.373, abs=5e-4)
    assert float(categorical_kl(log_p, log_q)) == pytest.approx(exact)
    assert expected(kl_k1, log_p, log_q) == pytest.approx(exact)
    assert expected(kl_k3, log_p, log_q) == pytest.approx(exact)
    assert expected(kl_k1, log_q, log_p) == pytest.approx(-exact)
    assert expected(kl_k3, log_q, log_p) == pytest.approx(0.418, abs=5e-4)
    assert expected(kl_k2, log_q, log_p) == expected(kl_k2, log_p, log_q)


def test_small_ratios_keep_their_digits():
    log_ratio = torch.tensor([1e-9, -1e-9], dtype=torch.float64)
    torch.testing.assert_close(kl_k2(log_ratio, torch.zeros(2).double()), log_ratio**2 / 2)
    assert (kl_k3(torch.tensor([1e-4]), torch.tensor([0.0])) >= 0).all()


def test_tokens_of_probability_zero():
    never = torch.tensor([0.0, 0.0, -math.inf], dtype=torch.float64, requires_grad=True)
    uniform = torch.zeros(3, dtype=torch.float64)
    kl = categorical_kl(never, uniform)
    assert kl.item() == pytest.approx(math.log(1.5))
    (gradient,) = torch.autograd.grad(kl, never)
    assert gradient.tolist() == pytest.approx([0.0, 0.0, 0.0])
    assert categorical_kl(never, never).item() == 0
    assert categorical_kl(uniform, never).item() == math.inf


def test_gradients_by_finite_differences():
    logits, ref_logits = (x.requires_grad_() for x in random_logits(0, 4, 1.0))
    for function in (categorical_kl, kl_k1, kl_k2, kl_k3):
        assert torch.autograd.gradcheck(function, (logits, ref_logits))


@pytest.mark.parametrize("estimator", [kl_k1, kl_k2, kl_k3])
def test_shapes_must_agree(estimator):
    with pytest.raises(ValueError, match=r"ref_log_probs has shape \[2\], expected \[3\] like log_probs"):
        estimator(torch.zeros(3), torch.zeros(2))
    with pytest.raises(ValueError, match="ref_logits has shape"):
        categorical_kl(torch.zeros(1, 3), torch.zeros(3))


# ---- KL in the loss and in the reward: four identities, exact and on-policy --------------------------------


@pytest.fixture(scope="module")
def case():
    """A world with sequences of different lengths; logits of a policy and a reference."""
    world = TokenWorld(3, 3, lambda p, s: float(len(s)), eos=0)
    generator = torch.Generator().manual_seed(4)
    shape = (2, 1, world.num_prefixes, 3)
    policy, reference = torch.randn(shape, generator=generator, dtype=torch.float64).unbind(0)
    return world, policy, reference


def loss_gradient(case, loss):
    """Gradient of E[loss(sequence)] with the sampling law held fixed: what an optimiser sees on-policy."""
    world, policy, reference = case
    logits = policy.clone().requires_grad_()
    log_probs, ref_log_probs = world.token_log_probs(logits), world.token_log_probs(reference)
    expectation = (world.law(policy) * loss(log_probs, ref_log_probs)).sum()
    return torch.autograd.grad(expectation, logits)[0]


def cosine(a, b):
    return float(torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0))


def test_k1_in_the_loss_has_no_expected_gradient(case):
    gradient = loss_gradient(case, lambda log_probs, ref: kl_k1(log_probs, ref).sum(-1))
    assert gradient.abs().max() < 1e-14


def test_sequence_k2_in_the_loss_has_the_gradient_of_the_kl(case):
    world, policy, reference = case
    gradient = loss_gradient(case, lambda log_probs, ref: kl_k2(log_probs.sum(-1), ref.sum(-1)))
    torch.testing.assert_close(gradient, world.kl_gradient(policy, world.law(reference)))


def test_sequence_k3_in_the_loss_has_the_gradient_of_the_other_kl(case):
    world, policy, reference = case
    gradient = loss_gradient(case, lambda log_probs, ref: kl_k3(log_probs.sum(-1), ref.sum(-1)))
    torch.testing.assert_close(gradient, world.score_gradient(policy, -world.law(reference)))
    assert cosine(gradient, world.kl_gradient(policy, world.law(reference))) < 0.999


def test_token_k2_is_the_exact_token_kl_in_the_loss_and_both_miss_the_reward_to_go(case):
    world, policy, reference = case
    per_token = loss_gradient(case, lambda log_probs, ref: kl_k2(log_probs, ref).sum(-1))
    logits = policy.clone().requires_grad_()
    at_prefix = categorical_kl(logits, reference)[:, world.prefix_ids]  # [1, N, T]
    exact_in_loss = (world.law(policy) * torch.where(world.mask, at_prefix, 0).sum(-1)).sum()
    torch.testing.assert_close(torch.autograd.grad(exact_in_loss, logits)[0], per_token)
    exact = world.kl_gradient(policy, world.law(reference))
    assert 0.5 < cosine(per_token, exact) < 0.999


def test_k1_in_the_reward_is_exact_with_full_reward_to_go(case):
    world, policy, reference = case
    k1 = kl_k1(world.token_log_probs(policy), world.token_log_probs(reference))
    to_go = k1.flip(-1).cumsum(-1).flip(-1)  # gamma 1
    gradient = loss_gradient(case, lambda log_probs, ref: (log_probs * to_go).sum(-1))
    torch.testing.assert_close(gradient, world.kl_gradient(policy, world.law(reference)))
    without = loss_gradient(case, lambda log_probs, ref: (log_probs * k1).sum(-1))  # as if lam were 0
    assert not torch.allclose(without, gradient)
