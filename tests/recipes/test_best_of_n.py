"""Best of n: the chosen reply is the best of its own, and its law is the exact one."""

import math

import pytest
import torch
from toy_models import PROMPTS, WORDS, word_model

from rlhf_lab.maths.exact import TokenWorld
from rlhf_lab.models.scoring import forward
from rlhf_lab.models.tokens import encode_prompts, make_batch
from rlhf_lab.recipes.best_of_n import best_of_n_kl, choose_best

torch.set_num_threads(1)


def first_token(rollout):
    """Another score for each first token, apart from two that tie."""
    return torch.tensor([0.0, 3.0, 1.0, 2.0, 2.0, 0.5])[rollout.batch.response_ids[:, 0]]


def test_the_chosen_one_is_the_best_of_its_own():
    lm, seen = word_model(), []
    reward = lambda rollout: seen.append(rollout) or first_token(rollout)  # noqa: E731
    chosen = choose_best(lm, PROMPTS, reward, 3, generator=torch.Generator().manual_seed(1), max_new_tokens=4)
    [everything] = seen
    assert [len(everything), len(chosen.rollout)] == [3 * len(PROMPTS), len(PROMPTS)]
    assert chosen.rollout.conversations == everything.conversations[::3]
    for row in range(len(PROMPTS)):
        own = range(3 * row, 3 * row + 3)
        best = max(own, key=lambda i: chosen.scores.flatten()[i])
        assert chosen.rollout.texts[row] == everything.texts[best]
        length = int(chosen.rollout.batch.response_lengths[row])
        assert torch.equal(chosen.rollout.log_probs[row, :length], everything.log_probs[best, :length])
        assert bool(chosen.rollout.ended[row]) == bool(everything.ended[best])
    assert torch.equal(first_token(chosen.rollout), chosen.scores.max(1).values)


@pytest.mark.parametrize("n", [1, 2, 8])
def test_its_law_is_the_exact_one(n):
    """4,000 draws of a single token; chi-square at one in 10^5."""
    lm, draws = word_model(), 4000
    [prompt] = encode_prompts(lm, PROMPTS[:1])
    logits = forward(lm, make_batch([prompt], [[0]], lm.pad_id)).logits[0, 0].detach().double() / 0.7
    world = TokenWorld(len(WORDS), 1, torch.tensor([0.0, 3.0, 1.0, 2.0, 2.0, 0.5], dtype=torch.float64))
    law = world.best_of_n(logits.softmax(-1)[None], n)[0]
    generator = torch.Generator().manual_seed(n)
    chosen = choose_best(lm, PROMPTS[:1] * draws, first_token, n, generator=generator, max_new_tokens=1)
    seen = torch.bincount(chosen.rollout.batch.response_ids[:, 0], minlength=len(WORDS)).double()
    known = law * draws > 5
    chi_square = float(((seen - law * draws).square() / (law * draws))[known].sum())
    assert known.sum() >= 2
    assert chi_square < 35


def test_the_bound_holds_and_is_reached_without_ties():
    law = torch.full((1, 6), 1 / 6, dtype=torch.float64)
    for n in (1, 2, 4, 16):
        tied = TokenWorld(6, 1, torch.tensor([0.0, 0, 0, 1, 1, 1]))
        assert float(tied.kl(tied.best_of_n(law, n), law)) <= best_of_n_kl(n) + 1e-12
    many = 2000
    fine = TokenWorld(many, 1, torch.arange(float(many)))
    law = torch.full((1, many), 1 / many, dtype=torch.float64)
    assert float(fine.kl(fine.best_of_n(law, 8), law)) == pytest.approx(best_of_n_kl(8), abs=5e-3)
    assert best_of_n_kl(8) == pytest.approx(math.log(8) - 7 / 8)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="n"):
        choose_best(word_model(), PROMPTS, first_token, 0, generator=torch.Generator())
    with pytest.raises(ValueError, match="prompts"):
        choose_best(word_model(), [], first_token, 2, generator=torch.Generator())
