"""The bets on the sampling law: fair to the last digit under the right law, and won soon under a wrong one."""

import itertools
import math
import re

import pytest
import torch

from rlhf_lab.experience.invariants import ALPHA, GRID, Alternative, InvariantViolation, KLSum, SampledLaw, log_price
from rlhf_lab.experience.invariants.sampled_law import log_stakes

torch.set_num_threads(1)
V = 6


def random_logits(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("law", GRID, ids=str)
def test_each_alternative_is_a_law_so_a_bet_at_the_odds_of_q_is_fair(law):
    logits = 2 * random_logits(5, 120)
    seen = torch.rand(5, 120, generator=torch.Generator().manual_seed(1)) < 0.3
    chances = law.log_law(logits, seen, end_id=3).exp()
    assert torch.allclose(chances.sum(-1), torch.ones(5, dtype=torch.float64))
    if law.top_k:
        assert ((chances > 0).sum(-1) <= law.top_k).all()
    if law.without_end:
        assert not chances[:, 3].any()


def test_alternatives_are_what_samplers_do():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]], dtype=torch.float64)
    nothing = torch.zeros(1, 4, dtype=torch.bool)
    p = logits.softmax(-1)  # 0.64, 0.24, 0.09, 0.03
    cooler = Alternative(temperature=0.5).log_law(logits, nothing, None).exp()
    assert torch.allclose(cooler, (logits / 0.5).softmax(-1))
    two = Alternative(top_k=2).log_law(logits, nothing, None).exp()
    assert torch.allclose(two, torch.tensor([[*(p[0, :2] / p[0, :2].sum()), 0, 0]], dtype=torch.float64))
    for mass, count in ((0.6, 1), (0.65, 2), (0.87, 2), (0.9, 3)):  # the token that crosses the mass stays
        assert int((Alternative(top_p=mass).log_law(logits, nothing, None) > -math.inf).sum()) == count
    seen = torch.tensor([[True, False, False, True]])
    repeated = Alternative(repetition_penalty=2.0).log_law(logits, seen, None).exp()
    assert torch.allclose(repeated, torch.tensor([[1.0, 1.0, 0.0, -2.0]], dtype=torch.float64).softmax(-1))
    explored = Alternative(uniform=0.1).log_law(logits, nothing, None).exp()
    assert torch.allclose(explored, 0.9 * p + 0.025)


def test_the_stake_is_a_martingale():
    """E[M_n] = 1 under the scored law after every round, over all ways that three rounds of tokens can go."""
    rows = 1.5 * random_logits(3, V)
    means = [0.0, 0.0, 0.0]
    for tokens in itertools.product(range(V), repeat=3):
        law, chance = SampledLaw(alpha=1e-300), 1.0
        for n, token in enumerate(tokens):
            law.update(rows[n][None, None], torch.tensor([[token]]), torch.ones(1, 1, dtype=torch.bool))
            chance *= float(rows[n].softmax(-1)[token])
            means[n] += chance * math.exp(law.log_wealth) * V ** (n - 2)  # each beginning is met V^(2 - n) times
    assert means == pytest.approx([1.0, 1.0, 1.0], abs=1e-9)


def test_a_row_of_several_tokens_is_the_product():
    logits, tokens = random_logits(4, V), torch.tensor([0, 2, 1, 5])
    seen = torch.zeros(4, V, dtype=torch.bool)
    grid = [law for law in GRID if law.top_k < V]
    parts = [log_stakes(logits[t : t + 1], tokens[t : t + 1], seen[:1], None, grid) for t in range(4)]
    assert torch.allclose(log_stakes(logits, tokens, seen, None, grid), torch.stack(parts).sum(0))


def test_forced_and_padded_tokens_are_left_out():
    logits, mask = random_logits(1, 3, V), torch.tensor([[True, True, False]])
    wild = torch.tensor([[1, 5, 3]])
    bets = []
    for forced, tokens in ((None, [[1]]), (torch.tensor([[False, True, False]]), wild.tolist())):
        law, width = SampledLaw(), len(tokens[0])
        law.update(logits[:, :width], torch.tensor(tokens), mask[:, :width], forced)
        bets.append(law.log_wealth)
    assert bets[0] == pytest.approx(bets[1])
    law.update(logits, wild, torch.zeros_like(mask))
    assert law.book["rounds"] == 1  # a round without tokens is none


def draw(law, logits, generator):
    chances = law.log_law(logits, torch.zeros_like(logits, dtype=torch.bool), 0).exp()
    return torch.multinomial(chances, 1, generator=generator).squeeze(-1)


def play(law, logits_scale=1.5, rounds=40, tokens=60, seed=0, vocabulary=200):
    """Rounds until an alarm, or None; and the violation."""
    generator, bet = torch.Generator().manual_seed(seed), SampledLaw(end_id=0)
    for n in range(1, rounds + 1):
        logits = logits_scale * torch.randn(tokens, vocabulary, generator=generator, dtype=torch.float64)
        try:
            bet.update(logits[None], draw(law, logits, generator)[None], torch.ones(1, tokens, dtype=torch.bool))
        except InvariantViolation as violation:
            return n, str(violation)
    return None, ""


@pytest.mark.parametrize(
    ("law", "named"),
    [
        (Alternative(temperature=0.6), r"temperature 0\.[57]"),
        (Alternative(temperature=1.4), r"temperature 1\.(2|5)"),
        (Alternative(top_k=50), "top-k 50"),
        (Alternative(top_k=40), "top-k 50"),  # not in the grid: the next larger one
        (Alternative(top_p=0.9), r"top-p 0\.9"),
        (Alternative(temperature=1.25, top_k=5), r"(temperature 1\.25 and )?top-k 5"),
        (Alternative(without_end=True), "no end token"),
        (Alternative(uniform=0.2), "10% uniform"),
    ],
    ids=str,
)
def test_a_wrong_sampler_is_found_and_named(law, named):
    rounds, message = play(law)
    assert rounds is not None
    assert re.search(f"tried ones {named}( draws)? explains", message), message


def test_the_right_sampler_is_left_alone():
    """60 runs of 20 rounds; each alarms with probability at most 5e-4."""
    assert [play(Alternative(), rounds=20, tokens=20, seed=seed)[0] for seed in range(60)] == [None] * 60


def test_a_fault_that_begins_late_is_found():
    """20 rounds of the right law cost the later bets no more than their share of the stake."""
    generator, bet = torch.Generator().manual_seed(3), SampledLaw()

    def one_round(law):
        logits = 1.5 * torch.randn(40, 50, generator=generator, dtype=torch.float64)
        bet.update(logits[None], draw(law, logits, generator)[None], torch.ones(1, 40, dtype=torch.bool))

    for _ in range(20):
        one_round(Alternative())
    with pytest.raises(InvariantViolation, match=r"top-k 5 "):
        [one_round(Alternative(top_k=5)) for _ in range(4)]


def test_the_simple_z_is_blind_where_the_bet_is_not():
    """T = 1.25 with a top-k can leave the mean of log q(a) + H(q) where it was: one truncation lowers the entropy by as
    much as the temperature raises it."""
    logits = 1.5 * random_logits(400, 60, seed=5)
    log_q = logits.log_softmax(-1)
    surprise = log_q - (log_q.exp() * log_q).sum(-1, keepdim=True)  # log q + H
    nothing = torch.zeros_like(logits, dtype=torch.bool)

    def mean(k):
        law = Alternative(temperature=1.25, top_k=k).log_law(logits, nothing, None).exp()
        return float((law * surprise).sum(-1).mean())

    blind = min(range(2, 60), key=lambda k: abs(mean(k)))
    spread = float((log_q.exp() * surprise.square()).sum(-1).mean().sqrt())
    assert abs(mean(blind)) < 0.05 * spread  # a z of less than 1 after 400 tokens
    drawn = draw(Alternative(temperature=1.25, top_k=blind), logits, torch.Generator().manual_seed(0))
    with pytest.raises(InvariantViolation, match="sampled_law"):
        SampledLaw().update(logits[None], drawn[None], torch.ones(1, 400, dtype=torch.bool))


def test_an_impossible_token_is_named_at_once():
    logits = torch.tensor([[[0.0, -math.inf, 0.0]]])
    with pytest.raises(InvariantViolation, match="probability 0"):
        SampledLaw().update(logits, torch.tensor([[1]]), torch.ones(1, 1, dtype=torch.bool))


def test_repetition_looks_at_prompt_and_reply():
    generator, vocabulary, bet = torch.Generator().manual_seed(0), 30, SampledLaw()

    def one_round():
        prompts = torch.randint(vocabulary, (4, 10), generator=generator)
        prompts[0, :3] = -1  # padding
        logits = 2 + torch.randn(4, 12, vocabulary, generator=generator, dtype=torch.float64)
        seen = torch.stack([(prompts == v).any(1) for v in range(vocabulary)], dim=1)
        tokens = torch.zeros(4, 12, dtype=torch.long)
        for t in range(12):
            law = Alternative(repetition_penalty=1.3).log_law(logits[:, t], seen, None).exp()
            tokens[:, t] = torch.multinomial(law, 1, generator=generator).squeeze(-1)
            seen = seen.scatter(1, tokens[:, t : t + 1], True)
        bet.update(logits, tokens, torch.ones(4, 12, dtype=torch.bool), prompts=prompts)

    with pytest.raises(InvariantViolation, match=r"repetition penalty 1\.3"):
        [one_round() for _ in range(80)]


# ---- sampled against exact KL -------------------------------------------------------------------------------------


def kl_of(q, r, token):
    return q.log_softmax(-1)[token] - r.log_softmax(-1)[token]


def test_both_kl_bets_are_martingales():
    """E[stake] = 1 over all ways that two tokens can go, and each side alone."""
    qs, rs = 1.5 * random_logits(2, V), 1.5 * random_logits(2, V, seed=1)
    mean, low, high = 0.0, 0.0, 0.0
    for tokens in itertools.product(range(V), repeat=2):
        bet, chance = KLSum(alpha=1e-300), 1.0
        ratio = torch.stack([kl_of(qs[t], rs[t], tokens[t]) for t in range(2)])[None]
        bet.update(ratio, torch.ones(1, 2, dtype=torch.bool), log_price(qs, rs)[None])
        for t in range(2):
            chance *= float(qs[t].softmax(-1)[tokens[t]])
        mean += chance * math.exp(bet.log_wealth)
        low, high = low + chance * math.exp(bet.book["low"]), high + chance * math.exp(bet.book["high"])
    assert (mean, low, high) == pytest.approx((1.0, 1.0, 1.0), abs=1e-9)


def play_kl(fault, rounds=40):
    generator, bet = torch.Generator().manual_seed(1), KLSum()
    for _ in range(rounds):
        q, r = (torch.randn(50, V, generator=generator, dtype=torch.float64) for _ in range(2))
        law = {"cooler": (q / 0.5).softmax(-1), "other tokens": r.softmax(-1)}.get(fault, q.softmax(-1))
        tokens = torch.multinomial(law, 1, generator=generator).squeeze(-1)
        ratio = torch.stack([kl_of(q[i], r[i], tokens[i]) for i in range(50)])[None]
        ratio = -ratio if fault == "the wrong way round" else ratio
        bet.update(ratio, torch.ones(1, 50, dtype=torch.bool), log_price(q, r)[None])


@pytest.mark.parametrize("fault", ["the wrong way round", "cooler", "other tokens"])
def test_a_kl_that_is_not_that_of_the_laws_is_found(fault):
    with pytest.raises(InvariantViolation, match="kl_sum"):
        play_kl(fault)


def test_the_right_kl_is_left_alone():
    play_kl("healthy")


def test_without_prices_only_the_sum_is_bet_on():
    bet, mask = KLSum(), torch.ones(1, 1, dtype=torch.bool)
    bet.update(torch.tensor([[-8.2]]), mask)  # log(2 / 5e-4) = 8.29
    with pytest.raises(InvariantViolation, match=r"a sum of sampled k1 of -8\.4"):
        bet.update(torch.tensor([[-0.2]]), mask)


def test_the_alarms_share_one_alpha():
    assert SampledLaw().alpha + KLSum().alpha == ALPHA == 1e-3


def test_slack_lowers_both_bets_by_the_token():
    bet = KLSum(slack=0.01)
    bet.update(torch.zeros(1, 3), torch.tensor([[True, True, False]]), torch.zeros(1, 3))
    assert (bet.book["low"], bet.book["high"]) == pytest.approx((-0.02, -0.02))
