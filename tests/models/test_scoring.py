"""Every pass equals the definition, one row at a time without padding, in two architectures."""

import types

import pytest
import torch
from four_replies import batch_of, rows_of
from transformers import GraniteConfig, GraniteForCausalLM

from rlhf_lab.models.language_model import LanguageModel, wrap_model
from rlhf_lab.models.scoring import ValueHead, forward, response_log_probs, token_log_probs
from rlhf_lab.models.tokens import TokenBatch, make_batch
from rlhf_lab.training.files import load_checkpoint, save_checkpoint

torch.set_num_threads(1)


@torch.no_grad()
def specified_log_probs(lm, prompt, response, temperature):
    """By the definition: the row alone, without padding, one token after the other."""
    result = []
    for t, token in enumerate(response):
        logits = lm.model(input_ids=torch.tensor([prompt + response[:t]])).logits[0, -1].double() / temperature
        result.append(float(logits[token] - logits.exp().sum().log()))
    return result


# ---- scoring -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_by_the_definition(tiny_lm, temperature):
    prompts, responses = rows_of(tiny_lm)
    batch = batch_of(tiny_lm)
    got = response_log_probs(tiny_lm, batch, temperature)
    assert batch.prompt_mask.sum(1).unique().numel() > 1  # there is padding on both sides
    assert got.shape == batch.mask.shape
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        expected = specified_log_probs(tiny_lm, prompt, response, temperature)
        torch.testing.assert_close(
            got[row, : len(response)].double(), torch.tensor(expected).double(), atol=1e-5, rtol=0
        )
        assert (got[row, len(response) :] == 0).all()


@pytest.mark.parametrize("micro_batch", [1, 2, 3, 64])
def test_micro_batches_change_nothing(tiny_lm, micro_batch):
    batch = batch_of(tiny_lm)
    whole = token_log_probs(forward(tiny_lm, batch).logits, batch.response_ids, batch.mask)
    torch.testing.assert_close(
        response_log_probs(tiny_lm, batch, micro_batch=micro_batch), whole.detach(), atol=1e-5, rtol=0
    )


def assert_same_pass(got, expected, mask):
    states = torch.cat([torch.ones_like(mask[:, :1]), mask], dim=1)
    torch.testing.assert_close(got.logits[mask], expected.logits[mask], atol=1e-5, rtol=0)
    torch.testing.assert_close(got.hidden[states], expected.hidden[states], atol=1e-5, rtol=0)


def test_order_of_rows_changes_nothing(tiny_lm):
    batch, order = batch_of(tiny_lm), torch.tensor([2, 0, 3, 1])
    straight, mixed = forward(tiny_lm, batch), forward(tiny_lm, batch.select(order))
    assert_same_pass(mixed, type(straight)(straight.logits[order], straight.hidden[order]), batch.mask[order])


def test_rows_alone_are_the_rows_of_a_batch(tiny_lm):
    batch = batch_of(tiny_lm)
    together = forward(tiny_lm, batch)
    for row in range(len(batch)):
        one = batch.select(torch.tensor([row]))
        count = one.mask.shape[1]
        alone = forward(tiny_lm, one)
        assert_same_pass(
            alone,
            type(alone)(together.logits[row : row + 1, :count], together.hidden[row : row + 1, : count + 1]),
            one.mask,
        )


@pytest.mark.parametrize("content", ["pad", "end", "random"])
def test_what_lies_under_the_mask_changes_nothing(tiny_lm, content):
    batch = batch_of(tiny_lm)
    wide = make_batch(*map(list, rows_of(tiny_lm)), tiny_lm.pad_id)
    pad = torch.nn.functional.pad
    fill = {"pad": tiny_lm.pad_id, "end": tiny_lm.end_id, "random": 17}[content]
    wide = TokenBatch(
        pad(wide.prompt_ids.where(wide.prompt_mask, fill), (7, 0), value=fill), pad(wide.prompt_mask, (7, 0)),
        pad(wide.response_ids.where(wide.mask, fill), (0, 5), value=fill), pad(wide.mask, (0, 5)),
    )  # fmt: skip
    got, expected, count = forward(tiny_lm, wide), forward(tiny_lm, batch), batch.mask.shape[1]
    assert_same_pass(type(got)(got.logits[:, :count], got.hidden[:, : count + 1]), expected, batch.mask)


def test_hidden_states_are_those_before_each_token(tiny_lm):
    prompts, responses = rows_of(tiny_lm)
    output = forward(tiny_lm, batch_of(tiny_lm))
    head = tiny_lm.model.get_output_embeddings()
    torch.testing.assert_close(head(output.hidden[:, :-1]), output.logits)
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        states = tiny_lm.model.base_model(input_ids=torch.tensor([prompt + response])).last_hidden_state[0]
        expected = states[len(prompt) - 1 :]
        torch.testing.assert_close(output.hidden[row, : len(response) + 1], expected, atol=1e-5, rtol=0)


def test_logits_that_are_scaled_after_the_head(tiny_llama):
    config = GraniteConfig(
        vocab_size=len(tiny_llama.tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, logits_scaling=8.0, initializer_range=0.5,
        pad_token_id=None, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    lm = wrap_model(GraniteForCausalLM(config), tiny_llama.tokenizer)
    prompts, responses = rows_of(lm)
    expected = specified_log_probs(lm, prompts[0], responses[0], 1.0)
    got = response_log_probs(lm, batch_of(lm))[0, : len(expected)]
    torch.testing.assert_close(got, torch.tensor(expected), atol=1e-5, rtol=0)


def test_a_head_that_cannot_choose_positions(tiny_gpt2):
    lm = tiny_gpt2.copy()
    inner = lm.model.forward
    lm.model.forward = types.MethodType(
        lambda self, inputs_embeds, use_cache, attention_mask=None, position_ids=None: inner(
            inputs_embeds=inputs_embeds, use_cache=use_cache, attention_mask=attention_mask, position_ids=position_ids
        ),
        lm.model,
    )
    expected, got = forward(tiny_gpt2, batch_of(lm)), forward(lm, batch_of(lm))
    torch.testing.assert_close(got.logits, expected.logits)


def test_gradient_of_padded_rows_is_that_of_the_rows_alone(tiny_lm):
    def gradient(batches):
        lm = tiny_lm.copy()
        for batch in batches:
            token_log_probs(forward(lm, batch).logits, batch.response_ids, batch.mask).sum().backward()
        return torch.cat([p.grad.flatten() for p in lm.model.parameters()])

    alone = gradient([batch_of(tiny_lm, [row]) for row in range(4)])
    torch.testing.assert_close(gradient([batch_of(tiny_lm)]), alone, atol=1e-4, rtol=1e-4)


def test_no_gradient_and_no_dropout(tiny_gpt2):
    assert tiny_gpt2.model.config.resid_pdrop > 0
    assert not tiny_gpt2.model.training
    batch = batch_of(tiny_gpt2)
    assert not response_log_probs(tiny_gpt2, batch).requires_grad
    assert torch.equal(forward(tiny_gpt2, batch).logits, forward(tiny_gpt2, batch).logits)


def test_no_head_work_at_prompt_positions(tiny_lm):
    seen, batch = [], batch_of(tiny_lm)
    handle = tiny_lm.model.get_output_embeddings().register_forward_pre_hook(lambda _, x: seen.append(x[0].shape[1]))
    forward(tiny_lm, batch)
    handle.remove()
    assert seen == [batch.mask.shape[1]]
    assert not tiny_lm.model.base_model._forward_hooks


def test_a_pass_is_as_wide_as_its_longest_row(tiny_lm):
    seen, batch = [], make_batch([[5] * 9, [5]], [[6], [6] * 4], tiny_lm.pad_id)
    handle = tiny_lm.model.base_model.register_forward_hook(lambda _, __, x: seen.append(x.last_hidden_state.shape[1]))
    forward(tiny_lm, batch)
    handle.remove()
    assert seen == [10]


def test_bfloat16_passes_with_float32_weights(tiny_lm):
    lm = LanguageModel(tiny_lm.model, tiny_lm.tokenizer, tiny_lm.end_id, tiny_lm.pad_id, torch.bfloat16)
    batch = batch_of(lm)
    exact, rough = forward(tiny_lm, batch).logits[batch.mask], forward(lm, batch).logits[batch.mask]
    assert rough.dtype == torch.float32
    assert {p.dtype for p in lm.model.parameters()} == {torch.float32}
    assert 0 < (exact - rough).abs().max() < 0.05 * exact.abs().max()


def test_token_log_probs_of_a_known_law():
    law = torch.tensor([0.5, 0.25, 0.25])
    logits = (law.log() + 3.0).expand(1, 2, 3)
    ids, mask = torch.tensor([[0, 1]]), torch.tensor([[True, True]])
    torch.testing.assert_close(token_log_probs(logits, ids, mask), law[ids].log())
    cold = (law**2 / (law**2).sum())[ids].log()
    torch.testing.assert_close(token_log_probs(logits, ids, mask, temperature=0.5), cold)
    for arguments, message in [
        ((logits, ids[:, :1], mask), "mask has shape"),
        ((logits[:, :1], ids, mask), "logits has shape"),
        ((logits, ids, mask, 0.0), "temperature is 0.0"),
    ]:
        with pytest.raises(ValueError, match=message):
            token_log_probs(*arguments)


def test_rows_longer_than_the_context(tiny_lm):
    most = tiny_lm.max_length
    fits = make_batch([[5] * (most - 10), [5]], [[6] * 10, [6] * (most - 1)], tiny_lm.pad_id)
    assert response_log_probs(tiny_lm, fits).isfinite().all()  # wider than the context, but no row is
    batch = make_batch([[5], [5] * (most - 10)], [[6], [6] * 11], tiny_lm.pad_id)
    with pytest.raises(ValueError, match=rf"row 1 has {most - 10} prompt and 11 response tokens.*at most {most}"):
        forward(tiny_lm, batch)


# ---- value head ----------------------------------------------------------------------------------------------


def test_value_head():
    head = ValueHead(4)
    assert (head(torch.randn(2, 3, 4)) == 0).all()
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[1.0, 0.0, -1.0, 0.0]]))
        head.bias.fill_(0.5)
    assert head(torch.tensor([3.0, 9.0, 1.0, 9.0])).item() == 2.5
    assert head(torch.ones(2, 4, dtype=torch.bfloat16)).dtype == torch.float32


def test_value_head_keeps_its_bias(tmp_path):
    head, back = ValueHead(4), ValueHead(4)
    torch.nn.init.normal_(head.weight)
    torch.nn.init.constant_(head.bias, 0.25)
    save_checkpoint(tmp_path / "value.pt", head.state_dict())
    back.load_state_dict(load_checkpoint(tmp_path / "value.pt"))
    assert torch.equal(back.bias, head.bias)
    assert torch.equal(back.weight, head.weight)
