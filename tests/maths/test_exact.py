"""TokenWorld against slow sums in the words of the definitions, autograd, and enumerated draws."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings, strategies as st

from rlhf_lab.maths.exact import TokenWorld, enumerate_sequences
from rlhf_lab.maths.kl import categorical_kl
from rlhf_lab.maths.objectives import dpo_loss

torch.set_num_threads(1)
few = settings(max_examples=25, deadline=None)
WORLDS = st.tuples(
    st.integers(2, 3),
    st.integers(1, 3),
    st.integers(1, 2),
    st.sampled_from([None, 0, 1]),
    st.integers(0, 2**31),
)


def rough(prompt, tokens):
    """A score without structure, different for every prompt and sequence."""
    return math.sin(5 * prompt + sum((i + 1) ** 2 * (a + 1) for i, a in enumerate(tokens)))


def levels(prompt, tokens):
    """A score with many ties: 0, 1 or 2."""
    return float((sum(tokens) + prompt) % 3)


def make(case, scores=rough, count=1):
    """A world and `count` tables of logits."""
    vocab_size, length, prompts, eos, seed = case
    world = TokenWorld(vocab_size, length, scores, prompts, eos)
    shape = (count, prompts, world.num_prefixes, vocab_size)
    tables = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return world, *tables.unbind(0)


def slow_law(world, logits, prompt):
    """Probability of every sequence, token by token; the prefixes are looked up by their tokens."""
    law = {}
    for number in range(world.num_sequences):
        tokens, probability = world.tokens(number), 1.0
        for t, token in enumerate(tokens):
            weights = logits[prompt, world.prefix_id(tokens[:t])].exp().tolist()
            probability *= weights[token] / sum(weights)
        law[tokens] = probability
    return law


# ---- the numbering -----------------------------------------------------------------------------------------


def test_the_world_of_the_docstring():
    world = TokenWorld(3, 2, lambda prompt, tokens: float(sum(tokens)), eos=0)
    sequences = [(0,), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2)]
    assert [world.tokens(number) for number in range(7)] == sequences
    assert [world.sequence_id(tokens) for tokens in sequences] == list(range(7))
    assert [world.prefix_id(tokens) for tokens in ((), (1,), (2,))] == [0, 1, 2]
    assert (world.num_sequences, world.num_prefixes) == (7, 3)
    assert world.lengths.tolist() == [1, 2, 2, 2, 2, 2, 2]
    assert world.ended.tolist() == [True, True, False, False, True, False, False]
    assert world.sequences[:3].tolist() == [[0, 0], [1, 0], [1, 1]]
    assert world.mask[:3].tolist() == [[True, False], [True, True], [True, True]]
    assert world.prefix_ids.tolist() == [[0, 0], *[[0, 1]] * 3, *[[0, 2]] * 3]
    assert world.scores.tolist() == [[0.0, 1.0, 2.0, 3.0, 2.0, 3.0, 4.0]]
    for lookup, missing in ((world.sequence_id, (0, 1)), (world.prefix_id, (0,))):
        with pytest.raises(KeyError):
            lookup(missing)


def test_without_eos_the_numbers_are_written_in_base_v():
    world = TokenWorld(3, 3, rough)
    for tokens in itertools.product(range(3), repeat=3):
        assert world.sequence_id(tokens) == 9 * tokens[0] + 3 * tokens[1] + tokens[2]
        assert world.prefix_id(tokens[:2]) == 1 + 3 + 3 * tokens[0] + tokens[1]
    assert not world.ended.any()
    assert world.mask.all()


@pytest.mark.parametrize("case", [(2, 3, 1), (3, 3, 0), (4, 2, None), (2, 5, 0)])
def test_sequences_are_what_remains_of_all_strings_cut_at_the_first_eos(case):
    vocab_size, length, eos = case
    strings = itertools.product(range(vocab_size), repeat=length)
    cut = {s[: s.index(eos) + 1] if eos in s else s for s in strings}
    assert enumerate_sequences(vocab_size, length, eos) == sorted(cut)


def test_scores_in_every_form():
    world = TokenWorld(2, 2, levels, prompts=2)
    assert world.scores.tolist() == [[0.0, 1.0, 1.0, 2.0], [1.0, 2.0, 2.0, 0.0]]
    torch.testing.assert_close(TokenWorld(2, 2, world.scores, prompts=2).scores, world.scores)
    assert TokenWorld(2, 2, torch.arange(4), prompts=2).scores.tolist() == [[0.0, 1.0, 2.0, 3.0]] * 2
    assert TokenWorld(2, 1, rough).scores.tolist() == [[rough(0, (0,)), rough(0, (1,))]]  # every digit


# ---- laws --------------------------------------------------------------------------------------------------


@few
@given(WORLDS)
def test_law_and_expected_reward_against_slow_products(case):
    world, logits = make(case)
    law = world.law(logits)
    for prompt in range(world.prompts):
        slow = slow_law(world, logits, prompt)
        assert law[prompt].tolist() == pytest.approx(list(slow.values()))
        assert law[prompt].sum().item() == pytest.approx(1)
        expected = sum(p * rough(prompt, tokens) for tokens, p in slow.items())
        assert world.expected_reward(law)[prompt].item() == pytest.approx(expected)
        proxy = sum(p * levels(prompt, tokens) for tokens, p in slow.items())
        assert world.expected_reward(law, levels)[prompt].item() == pytest.approx(proxy)
        for prefix in {tokens[:t] for tokens in slow for t in range(len(tokens))}:
            through = {tokens: p for tokens, p in slow.items() if tokens[: len(prefix)] == prefix}
            for scores, other in ((rough, None), (levels, levels)):
                value = sum(p * scores(prompt, tokens) for tokens, p in through.items()) / sum(through.values())
                assert world.values(law, other)[prompt, world.prefix_id(prefix)].item() == pytest.approx(value)


@few
@given(WORLDS)
def test_every_law_is_the_law_of_its_logits(case):
    world, logits = make(case)
    law = world.law(logits)
    torch.testing.assert_close(world.law(world.logits(law)), law)
    torch.testing.assert_close(world.logits(law).log_softmax(-1), logits.log_softmax(-1))
    greedy = torch.nn.functional.one_hot(law.argmax(-1), world.num_sequences).double()
    torch.testing.assert_close(world.law(world.logits(greedy)), greedy)


def test_token_log_probs_are_0_at_padding():
    world, logits = make((3, 3, 2, 0, 0))
    log_probs = world.token_log_probs(logits)
    assert log_probs.shape == (2, world.num_sequences, 3)
    assert log_probs[:, ~world.mask].eq(0).all()
    assert (log_probs[:, world.mask] < 0).all()


def test_results_have_the_precision_of_the_policy():
    world, logits = make((3, 2, 1, 0, 0))
    logits = logits.float()
    law = world.law(logits)
    results = [law, world.expected_reward(law), world.values(law), world.logits(law), world.reward_gradient(logits)]
    results += [world.optimum(law, 1.0), world.best_of_n(law, 2), world.kl(law, law), world.kl_gradient(logits, law)]
    assert {result.dtype for result in results} == {torch.float32}


# ---- gradients ---------------------------------------------------------------------------------------------


@few
@given(WORLDS)
def test_gradients_against_autograd_through_the_sums(case):
    world, logits, ref_logits = make(case, count=2)
    ref_law, leaf = world.law(ref_logits), logits.clone().requires_grad_()
    law = world.law(leaf)
    expectations = {
        "reward": (world.expected_reward(law), world.reward_gradient(logits)),
        "proxy": (world.expected_reward(law, levels), world.reward_gradient(logits, levels)),
        "kl": (world.kl(law, ref_law), world.kl_gradient(logits, ref_law)),
        "other kl": (world.kl(ref_law, law), world.score_gradient(logits, -ref_law)),
    }
    for name, (expectation, gradient) in expectations.items():
        (expected,) = torch.autograd.grad(expectation.sum(), leaf, retain_graph=True)
        torch.testing.assert_close(gradient, expected, msg=name)
        assert not gradient.requires_grad


def test_reward_gradient_by_finite_differences():
    world, logits = make((2, 2, 1, 0, 7))
    gradient, step = world.reward_gradient(logits), 1e-6
    for index in itertools.product(*map(range, logits.shape)):
        up, down = logits.clone(), logits.clone()
        up[index] += step
        down[index] -= step
        slope = (world.expected_reward(world.law(up)) - world.expected_reward(world.law(down))) / (2 * step)
        assert gradient[index].item() == pytest.approx(slope.item(), abs=1e-8)


def test_reinforce_is_unbiased_on_the_enumerated_samples():
    """E[R grad log pi] sequence by sequence, each gradient by autograd, equals the gradient of J."""
    world, logits = make((3, 2, 1, 1, 1))
    total = torch.zeros_like(logits)
    for number, probability in enumerate(world.law(logits)[0].tolist()):
        leaf = logits.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(world.token_log_probs(leaf)[0, number].sum(), leaf)
        total += probability * world.scores[0, number] * gradient
    torch.testing.assert_close(total, world.reward_gradient(logits))


# ---- KL and the optimum ------------------------------------------------------------------------------------


@few
@given(WORLDS)
def test_kl_is_the_sum_over_sequences_and_the_expected_sum_over_tokens(case):
    world, logits, ref_logits = make(case, count=2)
    law, ref_law = world.law(logits), world.law(ref_logits)
    kl = world.kl(law, ref_law)
    for prompt in range(world.prompts):
        slow, ref = slow_law(world, logits, prompt), slow_law(world, ref_logits, prompt)
        expected = sum(p * math.log(p / ref[tokens]) for tokens, p in slow.items())
        assert kl[prompt].item() == pytest.approx(expected)
    at_prefix = categorical_kl(logits, ref_logits)[:, world.prefix_ids]
    chain_rule = (law * torch.where(world.mask, at_prefix, 0).sum(-1)).sum(-1)
    torch.testing.assert_close(kl, chain_rule)


def test_kl_where_laws_have_zeros():
    world = TokenWorld(2, 1, torch.zeros(2))
    certain, even = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.5, 0.5]])
    assert world.kl(certain, even).item() == pytest.approx(math.log(2))
    assert world.kl(even, certain).item() == math.inf
    assert world.kl(certain, certain).item() == 0
    never = torch.tensor([[[0.0, -math.inf]]])
    assert world.kl_gradient(never, even).isfinite().all()
    assert world.values(certain).tolist() == [[0.0]]


@few
@given(WORLDS, st.sampled_from([0.2, 1.0, 5.0]))
def test_any_law_falls_short_of_the_optimum_by_its_kl_to_it(case, kl_coef):
    world, logits, ref_logits = make(case, count=2)
    law, ref_law = world.law(logits), world.law(ref_logits)
    for scores in (None, levels):
        best = world.optimum(ref_law, kl_coef, scores)

        def objective(some_law, scores=scores):
            return world.expected_reward(some_law, scores) - kl_coef * world.kl(some_law, ref_law)

        torch.testing.assert_close(objective(best) - objective(law), kl_coef * world.kl(law, best))
        torch.testing.assert_close(world.shortfall(law, ref_law, kl_coef, scores), objective(best) - objective(law))
        weights = ref_law * (world._as_scores(scores) / kl_coef).exp()
        torch.testing.assert_close(best, weights / weights.sum(-1, keepdim=True))
        torch.testing.assert_close(objective(best), kl_coef * weights.sum(-1).log())


def test_at_the_optimum_the_two_gradients_balance():
    world, ref_logits = make((3, 2, 2, 0, 5))
    ref_law = world.law(ref_logits)
    optimal = world.logits(world.optimum(ref_law, 0.5))
    torch.testing.assert_close(world.reward_gradient(optimal), 0.5 * world.kl_gradient(optimal, ref_law))


# ---- best of n ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scores", [rough, levels])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_best_of_n_against_every_draw_of_n(scores, n):
    """All n-tuples of samples; the best is drawn uniformly among the samples with the highest score."""
    world, logits = make((2, 2, 2, 1, 0), scores)
    ref_law = world.law(logits)
    expected = torch.zeros_like(ref_law)
    for prompt, draws in itertools.product(range(2), itertools.product(range(world.num_sequences), repeat=n)):
        probability = math.prod(ref_law[prompt, number].item() for number in draws)
        best = max(world.scores[prompt, number].item() for number in draws)
        winners = [number for number in draws if world.scores[prompt, number].item() == best]
        for number in winners:
            expected[prompt, number] += probability / len(winners)
    torch.testing.assert_close(world.best_of_n(ref_law, n), expected)


@few
@given(WORLDS, st.integers(1, 300))
def test_the_kl_of_best_of_n_is_below_its_bound(case, n):
    bound = math.log(n) - (n - 1) / n
    for scores in (rough, levels):
        world, logits = make(case, scores)
        ref_law = world.law(logits)
        law = world.best_of_n(ref_law, n)
        torch.testing.assert_close(law.sum(-1), torch.ones(world.prompts).double())
        assert (world.kl(law, ref_law) <= bound + 1e-9).all()
        assert (world.expected_reward(law) >= world.expected_reward(ref_law) - 1e-12).all()


def test_the_bound_is_nearly_reached_without_ties_and_far_off_with_them():
    """4,096 equally likely sequences: without ties the formula; with 5 levels at most log 5."""
    uniform = torch.full((1, 4**6), 4.0**-6, dtype=torch.float64)
    world = TokenWorld(4, 6, torch.arange(4**6))
    n = 256
    bound = math.log(n) - (n - 1) / n
    assert bound == pytest.approx(4.55, abs=5e-3)
    assert world.kl(world.best_of_n(uniform, 8), uniform).item() == pytest.approx(math.log(8) - 7 / 8, abs=1e-3)
    assert world.kl(world.best_of_n(uniform, n), uniform).item() == pytest.approx(bound, abs=0.01)
    even = torch.full((1, 5), 0.2, dtype=torch.float64)
    five = TokenWorld(5, 1, torch.arange(5))
    assert five.kl(five.best_of_n(even, n), even).item() == pytest.approx(math.log(5), abs=1e-6)
    assert five.kl(five.best_of_n(even, n), even).item() <= math.log(5)


def test_best_of_n_by_a_proxy_and_with_impossible_sequences():
    world = TokenWorld(2, 1, torch.tensor([0.0, 1.0]))
    even = torch.tensor([[0.5, 0.5]], dtype=torch.float64)
    assert world.best_of_n(even, 2, scores=torch.tensor([1.0, 0.0])).tolist() == [[0.75, 0.25]]
    assert world.best_of_n(even, 2, scores=torch.zeros(2)).tolist() == [[0.5, 0.5]]
    assert world.best_of_n(torch.tensor([[1.0, 0.0]]), 9).tolist() == [[1.0, 0.0]]
    assert world.best_of_n(torch.tensor([[0.0, 1.0]]), 9).tolist() == [[0.0, 1.0]]


def test_a_rare_best_sequence_keeps_its_digits():
    """With probability 1e-20 the best of 1000 finds it with probability 1e-17, not 0."""
    world = TokenWorld(2, 1, torch.tensor([0.0, 1.0]))
    rare = torch.tensor([[1.0, 1e-20]], dtype=torch.float64)
    assert world.best_of_n(rare, 1000)[0, 1].item() == pytest.approx(1e-17, rel=1e-6, abs=0)


# ---- bad arguments -----------------------------------------------------------------------------------------

WORLD = TokenWorld(2, 2, torch.zeros(4))
LAW = torch.full((1, 4), 0.25)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: TokenWorld(1, 2, rough), "vocab_size must be >= 2.* got 1, 2 and 1"),
        (lambda: TokenWorld(2, 0, rough), "got 2, 0 and 1"),
        (lambda: TokenWorld(2, 1, rough, prompts=0), "got 2, 1 and 0"),
        (lambda: TokenWorld(2, 1, rough, eos=2), r"eos must be a token in \[0, 2\), got 2"),
        (lambda: TokenWorld(10, 9, rough), "1000000000 sequences; choose a smaller world"),
        (lambda: TokenWorld(3, 20, rough, eos=0), "2097151 sequences; choose a smaller world"),
        (lambda: TokenWorld(2, 1, torch.tensor([0.0, math.nan])), "scores holds NaN or infinity"),
        (lambda: TokenWorld(2, 2, torch.zeros(3)), r"scores has shape \[3\], expected \[1, 4\] or \[4\]"),
        (lambda: WORLD.law(torch.zeros(1, 2, 2)), r"logits has shape \[1, 2, 2\], expected \[1, 3, 2\]"),
        (lambda: WORLD.score_gradient(torch.zeros(3, 2), LAW), "logits has shape"),
        (lambda: WORLD.score_gradient(torch.zeros(1, 3, 2), LAW[0]), "weights has shape"),
        (lambda: WORLD.expected_reward(LAW[0]), r"law has shape \[4\], expected \[1, 4\]"),
        (lambda: WORLD.expected_reward(LAW, torch.zeros(2, 4)), "scores has shape"),
        (lambda: WORLD.values(LAW[:, :3]), "law has shape"),
        (lambda: WORLD.logits(LAW[:, :3]), "law has shape"),
        (lambda: WORLD.kl(LAW, LAW[0]), "ref_law has shape"),
        (lambda: WORLD.kl(LAW[0], LAW), "^law has shape"),
        (lambda: WORLD.kl_gradient(torch.zeros(1, 3, 2), LAW[0]), "ref_law has shape"),
        (lambda: WORLD.optimum(LAW, 0.0), "kl_coef must be positive, got 0.0"),
        (lambda: WORLD.optimum(LAW[0], 1.0), "ref_law has shape"),
        (lambda: WORLD.best_of_n(LAW, 0), "n must be at least 1, got 0"),
        (lambda: WORLD.best_of_n(LAW[0], 2), "ref_law has shape"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_limit_counts_exactly():
    assert TokenWorld(2, 100, lambda p, s: 0.0, eos=0).num_sequences == 101
    assert TokenWorld(3, 4, lambda p, s: 0.0, eos=2).num_sequences == 31


@pytest.mark.parametrize(("noise", "beta"), [(1.0, 0.5), (0.5, 2.0), (2.0, 0.25)])
def test_the_minimum_of_dpo_is_the_optimum_that_its_raters_utility_has(noise, beta):
    """Over all pairs with Bradley-Terry raters of that noise, from the reference on: pi_ref exp(u / (noise beta))."""
    generator = torch.Generator().manual_seed(3)
    world = TokenWorld(3, 2, torch.randn(7, generator=generator, dtype=torch.float64), eos=0)
    reference = torch.randn(1, world.num_prefixes, 3, generator=generator, dtype=torch.float64)
    ref_law, utility = world.law(reference), world.scores[0]
    first, second = torch.tensor(list(itertools.combinations(range(world.num_sequences), 2))).T
    prefers = torch.sigmoid((utility[first] - utility[second]) / noise)
    logits = reference.clone().requires_grad_(True)
    optimiser = torch.optim.LBFGS(
        [logits], max_iter=500, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def loss():
        optimiser.zero_grad()
        p, q = world.law(logits).log()[0], ref_law.log()[0]
        one = dpo_loss(p[first], p[second], q[first], q[second], beta)
        other = dpo_loss(p[second], p[first], q[second], q[first], beta)
        total = (prefers * one + (1 - prefers) * other).mean()
        total.backward()
        return total

    started = float(loss().detach())
    optimiser.step(loss)
    best = world.optimum(ref_law, noise * beta)
    assert float(loss().detach()) < started - 0.01
    assert (ref_law - best).abs().sum() / 2 > 0.1
    assert (world.law(logits.detach()) - best).abs().sum() / 2 < 1e-6
