"""A reward model scores what the same checkpoint scores in transformers, wherever the padding is."""

import copy
import json

import pytest
import torch
from transformers import AutoModelForSequenceClassification, GPT2Config, GPT2ForSequenceClassification

from rlhf_lab.models.language_model import ModelError
from rlhf_lab.models.reward_model import RewardModel, load_reward_model
from rlhf_lab.models.scoring import forward
from rlhf_lab.models.tokens import TokenBatch, encode_prompts, encode_responses, make_batch
from rlhf_lab.records import Message, as_conversation

torch.set_num_threads(1)
TURNS = (Message("user", "Where is the zoo?"), Message("assistant", "By the river."), Message("user", "Thanks."))
PROMPTS = [as_conversation("Hi"), TURNS, as_conversation("When does the library close?"), as_conversation("Go")]
REPLIES = ["At six.", "You are very kind, thank you!", "", "Away"]


def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def rm(tiny_lm):
    return RewardModel.from_language_model(tiny_lm, generator())


def rows_of(rm):
    """Token ids; the second reply hit the limit and has no end token."""
    responses = encode_responses(rm.lm, REPLIES)
    responses[1].pop()
    return encode_prompts(rm.lm, PROMPTS), responses


def batch_of(rm):
    return make_batch(*rows_of(rm), rm.pad_id)


# ---- the score -----------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("half", [False, True])
def test_equals_the_checkpoint_in_transformers(rm, tmp_path, half):
    rm.save(tmp_path / "reward", half=half)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward", dtype=torch.float32).eval()
    ours = load_reward_model(tmp_path / "reward")
    scores = ours.raw_scores(batch_of(rm))
    prompts, responses = rows_of(rm)
    pad = theirs.config.pad_token_id
    rows = [p + r for p, r in zip(prompts, responses, strict=True)]
    width = max(map(len, rows))
    for row, score in zip(rows, scores, strict=True):
        torch.testing.assert_close(theirs(torch.tensor([row])).logits[0, 0], score, atol=1e-5, rtol=0)
    padded = [row + [pad] * (width - len(row)) for row in rows]
    attention = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    together = theirs(torch.tensor(padded), attention_mask=attention).logits[:, 0]
    torch.testing.assert_close(together, scores, atol=1e-5, rtol=0)


def test_the_end_token_is_never_the_padding(rm):
    assert rm.model.config.pad_token_id != rm.lm.end_id
    assert rm.model.config.pad_token_id is not None


@torch.no_grad()
def test_the_score_is_read_at_the_last_real_token(rm):
    prompts, responses = rows_of(rm)
    batch = batch_of(rm)
    tokens = rm.token_scores(batch)
    assert tokens.shape == (4, batch.mask.shape[1] + 1)
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        states = rm.model.base_model(input_ids=torch.tensor([prompt + response])).last_hidden_state[0]
        expected = (states @ rm.model.score.weight[0])[len(prompt) - 1 :]
        torch.testing.assert_close(tokens[row, : len(response) + 1], expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(rm.raw_scores(batch)[row], expected[-1], atol=1e-5, rtol=0)


@torch.no_grad()
def test_columns_are_those_of_the_language_model(rm, tiny_lm):
    batch = batch_of(rm)
    states = torch.cat([torch.ones(4, 1, dtype=torch.bool), batch.mask], dim=1)
    expected = rm.model.score(forward(tiny_lm, batch).hidden).squeeze(-1)
    torch.testing.assert_close(rm.token_scores(batch)[states], expected[states], atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("fill", ["pad", "end", "random"])
def test_padding_changes_nothing(rm, fill):
    batch, pad = batch_of(rm), torch.nn.functional.pad
    value = {"pad": rm.pad_id, "end": rm.lm.end_id, "random": 17}[fill]
    wide = TokenBatch(
        pad(batch.prompt_ids.where(batch.prompt_mask, value), (6, 0), value=value), pad(batch.prompt_mask, (6, 0)),
        pad(batch.response_ids.where(batch.mask, value), (0, 4), value=value), pad(batch.mask, (0, 4)),
    )  # fmt: skip
    torch.testing.assert_close(rm.raw_scores(wide), rm.raw_scores(batch), atol=1e-5, rtol=0)


@pytest.mark.parametrize("micro_batch", [1, 3, 64])
def test_order_and_size_of_batches_change_nothing(rm, micro_batch):
    rm.score_mean, rm.score_std = 0.5, 2.0
    batch, order = batch_of(rm), torch.tensor([2, 0, 3, 1])
    expected = (rm.raw_scores(batch).detach() - 0.5) / 2.0
    torch.testing.assert_close(rm.score_batch(batch, micro_batch), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(rm.score_batch(batch.select(order), micro_batch), expected[order], atol=1e-5, rtol=0)


def test_score_of_texts(rm):
    rm.score_mean, rm.score_std = -1.0, 3.0
    rows = encode_prompts(rm.lm, PROMPTS), encode_responses(rm.lm, REPLIES)
    expected = rm.score_batch(make_batch(*rows, rm.pad_id))
    scores = rm.score(PROMPTS, REPLIES, micro_batch=2)
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=0)
    assert not scores.requires_grad
    with pytest.raises(ValueError, match="4 prompts and 3 responses"):
        rm.score(PROMPTS, REPLIES[:3])


def test_gradient_reaches_head_and_backbone(rm):
    rm.raw_scores(batch_of(rm)).sum().backward()
    assert rm.model.score.weight.grad.abs().sum() > 0
    assert rm.model.get_input_embeddings().weight.grad.abs().sum() > 0
    assert not rm.model.training


def test_bfloat16_passes(rm):
    exact = rm.raw_scores(batch_of(rm)).detach()
    rm.precision = torch.bfloat16
    rough = rm.raw_scores(batch_of(rm)).detach()
    assert rough.dtype == torch.float32
    # 8 bits of each product; the words of the random tokenizer, and so the scores, differ a little from run to run
    assert 0 < (rough - exact).abs().max() < 0.1 * exact.abs().max()
    assert {p.dtype for p in rm.model.parameters()} == {torch.float32}


# ---- where it comes from -------------------------------------------------------------------------------------


def test_backbone_is_a_copy_of_the_language_model(rm, tiny_lm):
    ours, theirs = rm.model.base_model.state_dict(), tiny_lm.model.base_model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert all(ours[name].data_ptr() != theirs[name].data_ptr() for name in ours)
    assert tiny_lm.model.config.num_labels != 1 or not hasattr(tiny_lm.model, "score")
    assert tiny_lm.model.config.pad_token_id == (tiny_lm.pad_id if tiny_lm.tokenizer.pad_token else None)


def test_head_is_drawn_from_the_generator(tiny_lm):
    state = torch.get_rng_state()
    weights = [
        RewardModel.from_language_model(tiny_lm, torch.Generator().manual_seed(seed)).model.score.weight.flatten()
        for seed in (0, 0, *range(1, 60))
    ]
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(weights[0], weights[1])
    drawn = torch.cat(weights[1:]).detach()  # 60 heads of 32 weights; false alarm below 1e-4 each
    assert drawn.std() == pytest.approx(33**-0.5, rel=4 / (2 * drawn.numel()) ** 0.5)
    assert drawn.mean() == pytest.approx(0.0, abs=4 / (33 * drawn.numel()) ** 0.5)


def test_a_copy_is_independent(rm):
    rm.score_mean = 0.3
    other, before = rm.copy(), copy.deepcopy(rm.model.state_dict())
    with torch.no_grad():
        for parameter in other.model.parameters():
            parameter.add_(1.0)
    other.normalise(torch.tensor([1.0, 2.0]))
    assert rm.score_mean == 0.3
    assert all(torch.equal(rm.model.state_dict()[name], before[name]) for name in before)


# ---- scale ---------------------------------------------------------------------------------------------------


def test_normalised_scores_have_mean_0_and_deviation_1(rm):
    rm.normalise(rm.raw_scores(batch_of(rm)).detach())
    scores = rm.score_batch(batch_of(rm))
    assert scores.mean().item() == pytest.approx(0.0, abs=1e-5)
    assert scores.std().item() == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("scores", [[], [1.0], [2.0, 2.0], [1.0, float("nan")], [1.0, float("inf")]])
def test_scores_without_a_scale(rm, scores):
    with pytest.raises(ValueError, match="at least 2 finite ones that differ"):
        rm.normalise(torch.tensor(scores))
    assert (rm.score_mean, rm.score_std) == (0.0, 1.0)


# ---- load and save -------------------------------------------------------------------------------------------


def test_round_trip_is_exact(rm, tmp_path):
    rm.score_mean, rm.score_std = 0.1, 1.7
    rm.save(tmp_path / "reward")
    back = load_reward_model(tmp_path / "reward")
    assert not back.model.training
    assert all(torch.equal(back.model.state_dict()[name], w) for name, w in rm.model.state_dict().items())
    assert (back.score_mean, back.score_std) == (0.1, 1.7)
    assert torch.equal(back.score(PROMPTS, REPLIES), rm.score(PROMPTS, REPLIES))
    config = json.loads((tmp_path / "reward" / "config.json").read_text())
    assert (config["rlhf_lab_score_mean"], config["rlhf_lab_score_std"]) == (0.1, 1.7)
    assert not list((tmp_path / "reward").glob("*.bin"))


def test_a_language_model_is_no_reward_model(tiny_gpt2, tmp_path):
    tiny_gpt2.save(tmp_path / "model")
    with pytest.raises(ModelError, match="is a GPT2LMHeadModel; expected a sequence classifier, GPT2For"):
        load_reward_model(tmp_path / "model")


def test_a_classifier_with_several_labels(tiny_gpt2, tmp_path):
    config = GPT2Config(vocab_size=384, n_embd=8, n_layer=1, n_head=1, num_labels=3)
    GPT2ForSequenceClassification(config).save_pretrained(tmp_path)
    tiny_gpt2.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="no linear head named score with one output"):
        load_reward_model(tmp_path)


def test_no_reward_model_there():
    with pytest.raises(ModelError, match="there is no folder"):
        load_reward_model("./none")
