"""Sampling: the law is the exact softmax, and what was kept is what a scoring pass computes."""

import itertools

import pytest
import scipy.stats
import torch
from toy_models import PROMPTS, WORDS, sample, word_model

from rlhf_lab.experience.rollouts import _draw, prompts_of
from rlhf_lab.models.scoring import ValueHead, forward, response_log_probs
from rlhf_lab.models.tokens import make_batch

torch.set_num_threads(1)


@pytest.fixture(params=["gpt2", "llama"])
def lm(request):
    return word_model(request.param)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("batch_size", [1, 4, 128])
def test_sampled_log_probs_are_the_scored_ones(lm, temperature, batch_size):
    rollout = sample(lm, PROMPTS * 3, temperature=temperature, batch_size=batch_size)
    assert 0 < rollout.ended.float().mean() < 1
    assert len(set(rollout.batch.response_lengths.tolist())) > 2
    scored = response_log_probs(lm, rollout.batch, temperature)
    assert (rollout.log_probs - scored).abs().max() < 1e-4
    assert (rollout.log_probs[~rollout.batch.mask] == 0).all()
    # The law does depend on the temperature, so the agreement above is not empty.
    other = response_log_probs(lm, rollout.batch, 1.3 * temperature)
    assert (rollout.log_probs - other).abs().max() > 0.1


@pytest.mark.parametrize("fixture", ["tiny_gpt2", "tiny_llama"])
def test_sampled_log_probs_with_a_real_tokenizer(fixture, request):
    lm = request.getfixturevalue(fixture)
    prompts = ["When?", "Write a story about a fox and a lighthouse, please.", "Why is it so?"] * 3
    rollout = sample(lm, prompts, max_new_tokens=20, temperature=0.9)
    assert (rollout.log_probs - response_log_probs(lm, rollout.batch, 0.9)).abs().max() < 1e-4


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_law_of_the_replies_is_the_exact_softmax(temperature):
    """Chi-square over every reply of at most 3 tokens; false alarm 1e-4, but the seed is fixed."""
    lm, count, limit = word_model(), 6000, 3
    tokens = range(len(WORDS))
    replies = [r for n in (1, 2, 3) for r in itertools.product(tokens, repeat=n)]
    replies = [r for r in replies if 1 not in r[:-1] and (len(r) == limit or r[-1] == 1)]
    batch = make_batch([[2, 3]] * len(replies), [list(r) for r in replies], 0)
    law = response_log_probs(lm, batch, temperature).double().sum(1).exp()
    assert law.sum() == pytest.approx(1, abs=1e-5)
    rollout = sample(lm, ["a b"] * count, max_new_tokens=limit, temperature=temperature, batch_size=count)
    rows = [tuple(ids[mask].tolist()) for ids, mask in zip(rollout.batch.response_ids, rollout.batch.mask, strict=True)]
    seen = torch.tensor([rows.count(reply) for reply in replies], dtype=torch.double)
    rare = law * count < 5  # pooled, as the chi-square law asks for
    observed = torch.cat([seen[~rare], seen[rare].sum()[None]])
    expected = torch.cat([law[~rare], law[rare].sum()[None]]) * count
    assert len(expected) > 10
    statistic = ((observed - expected) ** 2 / expected).sum()
    assert scipy.stats.chi2.sf(float(statistic), len(expected) - 1) > 1e-4


def test_batch_size_and_company_do_not_change_a_reply(lm):
    whole = sample(lm, max_new_tokens=16)
    for batch_size in (1, 2, 5):
        parts = sample(lm, max_new_tokens=16, batch_size=batch_size)
        assert torch.equal(parts.batch.response_ids, whole.batch.response_ids)
        assert torch.equal(parts.ended, whole.ended)
        assert (parts.log_probs - whole.log_probs).abs().max() < 1e-5
    # Row 0 beside other prompts: the same uniforms, so the same reply.
    others = sample(lm, [PROMPTS[0], *reversed(PROMPTS[1:])], max_new_tokens=16)
    assert others.texts[0] == whole.texts[0]


def test_same_seed_same_tokens_other_seed_other_tokens(lm):
    assert sample(lm).texts == sample(lm).texts != sample(lm, seed=1).texts


def test_dropping_finished_rows_changes_nothing(lm, monkeypatch):
    dropped = sample(lm, max_new_tokens=24)
    monkeypatch.setattr("rlhf_lab.experience.rollouts.COMPACT_BELOW", 0.0)
    kept = sample(lm, max_new_tokens=24)
    assert torch.equal(dropped.batch.response_ids, kept.batch.response_ids)
    assert torch.equal(dropped.batch.mask, kept.batch.mask)
    assert (dropped.log_probs - kept.log_probs).abs().max() < 1e-5


def test_greedy_takes_the_likeliest_token(lm):
    rollout = sample(lm, temperature=0)
    logits = forward(lm, rollout.batch).logits
    mask = rollout.batch.mask
    assert torch.equal(logits.argmax(-1)[mask], rollout.batch.response_ids[mask])
    assert (rollout.log_probs - response_log_probs(lm, rollout.batch, 1.0)).abs().max() < 1e-4
    assert rollout.texts == sample(lm, temperature=0, seed=5).texts


def test_ended_and_truncated_replies(lm):
    rollout = sample(lm, PROMPTS * 8, max_new_tokens=5)
    ids, lengths = rollout.batch.response_ids, rollout.batch.response_lengths
    assert set(rollout.ended.tolist()) == {True, False}
    for row in range(len(rollout)):
        reply = ids[row, : lengths[row]].tolist()
        assert (reply[-1] == lm.end_id) == bool(rollout.ended[row])
        assert lm.end_id not in reply[:-1]
        assert len(reply) == 5 or rollout.ended[row]
        assert "<|end|>" not in rollout.texts[row]
    assert rollout.texts[0].split() == [WORDS[i] for i in ids[0, : lengths[0]] if i != 1]


def test_a_reply_that_ends_at_the_limit_has_ended(lm):
    lm.model.get_output_embeddings().weight.data[1] = 0  # then the end token gets logit 0 everywhere
    lm.model.get_output_embeddings().weight.data[[0, 2, 3, 4, 5]] *= 1e-6
    rollout = sample(lm, PROMPTS * 8, max_new_tokens=1)
    assert rollout.batch.response_ids.shape[1] == 1
    assert torch.equal(rollout.ended, rollout.batch.response_ids[:, 0] == 1)
    assert rollout.ended.any()


def test_values_kept_from_sampling(lm):
    head = ValueHead(16)
    torch.nn.init.normal_(next(head.parameters()))
    rollout = sample(lm, value_head=head)
    scored = head(forward(lm, rollout.batch).hidden)[:, :-1].detach()
    mask = rollout.batch.mask
    assert rollout.values.shape == (len(PROMPTS), mask.shape[1] + 1)
    assert (rollout.values[:, :-1] - scored)[mask].abs().max() < 1e-4
    assert (rollout.values[:, 1:][~mask] == 0).all()
    assert scored[mask].std() > 0.1
    assert not rollout.values.requires_grad
    assert sample(lm).values is None


def test_draw_inverts_the_cumulative_law():
    law = torch.tensor([[0.0, 0.25, 0.0, 0.75, 0.0]])
    for uniform, token in ((0.0, 1), (0.2499, 1), (0.2501, 3), (1 - 2**-53, 3)):
        drawn, log_prob = _draw(law.log(), torch.tensor([uniform], dtype=torch.float64), 1.0)
        assert drawn.item() == token
        assert log_prob.item() == pytest.approx(law[0, token].log().item(), abs=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompts": []}, "non-empty"),
        ({"prompts": "a b"}, "non-empty"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"batch_size": 0}, "batch_size"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"prompts": ["a " * 60]}, "row 0|prompt 0|60|61"),
    ],
)
def test_bad_requests(change, message):
    with pytest.raises(ValueError, match=message):
        sample(word_model(), **change)


def test_every_prompt_is_used_once_a_lap():
    prompts = list("abcdefg")
    used = [p for i in range(7) for p in prompts_of(prompts, 6, i)]
    assert all(sorted(used[lap : lap + 7]) == prompts for lap in range(0, 42, 7))
    assert used[:7] != used[7:14]
