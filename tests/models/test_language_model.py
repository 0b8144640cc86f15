"""Every pass equals the definition, one row at a time without padding, in two architectures."""

import copy
import json
import os
import shutil
import types

import pytest
import torch
from conftest import save_gpt2
from transformers import BertConfig, BertForMaskedLM, GPT2Model, GraniteConfig, GraniteForCausalLM

from rlhf_lab.models import language_model
from rlhf_lab.models.language_model import LanguageModel, ModelError, load_language_model, wrap_model
from rlhf_lab.models.scoring import ValueHead, forward, response_log_probs, token_log_probs
from rlhf_lab.models.tokens import decode_responses, encode_prompts, encode_responses, length_groups, make_batch
from rlhf_lab.records import Message, as_conversation
from rlhf_lab.training.files import SaveError, load_checkpoint, save_checkpoint

torch.set_num_threads(1)
TURNS = (Message("user", "Where is the zoo?"), Message("assistant", "By the river."), Message("user", "Thanks."))
PROMPTS = [as_conversation("Hi"), TURNS, as_conversation("When does the library close?"), as_conversation("Go")]
REPLIES = ["At six.", "You are very kind, thank you!", "", "Away"]


def rows_of(lm):
    """Token ids of prompts and responses of different lengths; the second response has no end token."""
    return encode_prompts(lm, PROMPTS), [row[: None if i != 1 else -1] for i, row in enumerate(
        encode_responses(lm, REPLIES))]  # fmt: skip


def batch_of(lm, rows=range(4)):
    prompts, responses = rows_of(lm)
    return make_batch([prompts[i] for i in rows], [responses[i] for i in rows], lm.pad_id)


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
    wide = language_model.TokenBatch(
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


# ---- batches -------------------------------------------------------------------------------------------------


def test_masks_come_from_lengths_and_not_from_ids():
    batch = make_batch([[0, 5], [7]], [[0, 0], [0]], pad_id=0)  # a real token may have the id of the padding
    assert batch.prompt_mask.tolist() == [[True, True], [False, True]]
    assert batch.mask.tolist() == [[True, True], [True, False]]
    assert (batch.prompt_lengths.tolist(), batch.response_lengths.tolist()) == ([2, 1], [2, 1])
    empty = make_batch([[5], [6]], [[], []], pad_id=0)
    assert (empty.response_ids.shape, empty.response_ids.dtype, empty.mask.dtype) == ((2, 0), torch.long, torch.bool)


@pytest.mark.parametrize("rows", [([], []), ([[1]], [[1], [2]]), ([[1], []], [[1], [1]])])
def test_what_is_no_batch(rows):
    with pytest.raises(ValueError, match="expected"):
        make_batch(*rows, pad_id=0)


def test_select_trims():
    batch = make_batch([[1], [1, 2, 3], [1, 2]], [[4, 5, 6, 7], [4], [4, 5]], pad_id=0)
    part = batch.select(torch.tensor([2, 1]))
    expected = make_batch([[1, 2], [1, 2, 3]], [[4, 5], [4]], pad_id=0)
    for name in ("prompt_ids", "prompt_mask", "response_ids", "mask"):
        assert torch.equal(getattr(part, name), getattr(expected, name))
    assert len(part) == 2


def test_length_groups_hold_every_row_once():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 30, (2, 50), generator=generator).tolist()
    batch = make_batch([[1] * n for n in lengths[0]], [[1] * n for n in lengths[1]], pad_id=0)
    groups = length_groups(batch, 8)
    assert max(map(len, groups)) == 8
    assert sorted(torch.cat(groups).tolist()) == list(range(50))
    total = batch.prompt_lengths + batch.response_lengths
    assert sum(len(rows) * int(total[rows].max()) for rows in groups) < 1.15 * total.sum()


# ---- text ----------------------------------------------------------------------------------------------------


def test_chat_format(tiny_gpt2, tiny_llama):
    decode = [lm.tokenizer.decode(encode_prompts(lm, [TURNS])[0]) for lm in (tiny_gpt2, tiny_llama)]
    assert decode == [
        "<|user|>Where is the zoo?<|assistant|>By the river.<|end|><|user|>Thanks.<|assistant|>",
        "User:\nWhere is the zoo?\n\nAssistant:\nBy the river.</s>\n\nUser:\nThanks.\n\nAssistant:\n",
    ]
    system = (Message("system", "Be kind."), Message("user", "Hi"))
    assert tiny_gpt2.tokenizer.decode(encode_prompts(tiny_gpt2, [system])[0]) == "Be kind.<|user|>Hi<|assistant|>"
    assert encode_prompts(tiny_gpt2, []) == encode_responses(tiny_gpt2, []) == []


def test_responses_end_and_come_back(tiny_lm):
    rows = encode_responses(tiny_lm, REPLIES)
    assert all(row[-1] == tiny_lm.end_id and row.count(tiny_lm.end_id) == 1 for row in rows)
    assert rows[2] == [tiny_lm.end_id]
    assert tiny_lm.tokenizer.bos_token_id is None or all(tiny_lm.tokenizer.bos_token_id not in row for row in rows)
    batch = make_batch([[1]] * 4, rows, tiny_lm.pad_id)
    assert decode_responses(tiny_lm, batch.response_ids, batch.mask) == REPLIES
    cut = encode_responses(tiny_lm, REPLIES, max_tokens=3)
    assert cut == [row[:3] for row in rows]


def test_only_the_end_is_hidden_from_the_text(tiny_gpt2):
    pad, end = tiny_gpt2.pad_id, tiny_gpt2.end_id
    hi = tiny_gpt2.tokenizer("hi")["input_ids"]
    batch = make_batch([[1]] * 3, [[*hi, pad, end], [end, *hi], [*hi, end, end]], pad)
    assert decode_responses(tiny_gpt2, batch.response_ids, batch.mask) == ["hi<|pad|>", "<|end|>hi", "hi<|end|>"]


def test_prompts_that_do_not_fit(tiny_lm):
    length = len(encode_prompts(tiny_lm, [TURNS])[0])
    room = tiny_lm.max_length - length
    assert encode_prompts(tiny_lm, [TURNS], room)
    with pytest.raises(ValueError, match=rf"prompt 1 has {length} tokens; expected at most {length - 1} ") as error:
        encode_prompts(tiny_lm, [as_conversation("Hi"), TURNS], room + 1)
    assert "\n" not in str(error.value)


def test_a_template_that_refuses(tiny_gpt2):
    lm = copy.copy(tiny_gpt2)
    lm.tokenizer = copy.deepcopy(lm.tokenizer)
    lm.tokenizer.chat_template = "{{ raise_exception('no system message') }}"
    with pytest.raises(ValueError, match=r"prompt 0 does not fit the chat template \(no system message\)"):
        encode_prompts(lm, [as_conversation("Hi")])


# ---- load, save, copy ----------------------------------------------------------------------------------------


def weights_of(lm):
    return lm.model.state_dict()


def assert_same_weights(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_round_trip_is_exact(tiny_lm, tmp_path):
    tiny_lm.save(tmp_path / "model")
    back = load_language_model(tmp_path / "model")
    assert_same_weights(weights_of(back), weights_of(tiny_lm))
    assert (back.end_id, back.pad_id, back.max_length) == (tiny_lm.end_id, tiny_lm.pad_id, tiny_lm.max_length)
    assert encode_prompts(back, PROMPTS) == encode_prompts(tiny_lm, PROMPTS)
    batch = batch_of(back)
    assert torch.equal(forward(back, batch).logits, forward(tiny_lm, batch).logits)
    assert not list((tmp_path / "model").glob("*.bin"))


def test_half_precision_on_disk(tiny_lm, tmp_path):
    tiny_lm.save(tmp_path / "whole")
    tiny_lm.save(tmp_path / "half", half=True)
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("half", "whole")]
    assert sizes[0] < 0.6 * sizes[1]
    back = load_language_model(str(tmp_path / "half"))
    expected = {name: w.half().float() for name, w in weights_of(tiny_lm).items()}
    assert_same_weights(weights_of(back), expected)
    assert {w.dtype for w in weights_of(tiny_lm).values()} == {torch.float32}


def test_a_copy_is_independent(tiny_lm):
    other, before = tiny_lm.copy(), copy.deepcopy(weights_of(tiny_lm))
    assert_same_weights(weights_of(other), before)
    with torch.no_grad():
        for parameter in other.model.parameters():
            parameter.add_(1.0)
    assert_same_weights(weights_of(tiny_lm), before)
    assert other.model.get_output_embeddings().weight.data_ptr() != (
        tiny_lm.model.get_output_embeddings().weight.data_ptr()
    )


def test_shipped_model_and_sizes():
    assert load_language_model("tiny").tokenizer.eos_token == "<|end|>"


def test_a_size_that_was_not_made(monkeypatch, tmp_path):
    monkeypatch.setitem(language_model.MODEL_FOLDERS, "small", [tmp_path / "model-small"])
    with pytest.raises(ModelError, match=r"python run\.py pretrain --size small"):
        load_language_model("small")
    save_gpt2(tmp_path / "model-small")
    assert load_language_model("small").max_length == 256


@pytest.fixture
def folder(tmp_path, tiny_gpt2):
    tiny_gpt2.save(tmp_path / "model")
    return tmp_path / "model"


def drop_weights(folder):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights.pop("transformer.h.1.mlp.c_fc.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def pickle_weights(folder):
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")


def pickle_beside_a_decoy(folder):
    weights = load_language_model(folder).model.state_dict()  # they fit, so that only the format can be refused
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    torch.save(weights, folder / "pytorch_model.bin")


def truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def other_kind(model):
    def write(folder):
        for path in [*folder.glob("*.safetensors"), folder / "config.json"]:
            path.unlink()
        model().save_pretrained(folder)

    return write


def bert():
    shape = {"vocab_size": 384, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    return BertForMaskedLM(BertConfig(**shape, intermediate_size=8))


def fewer_tokens(folder):
    shutil.copy(folder / "tokenizer.json", folder / "copy.json")
    data = json.loads((folder / "tokenizer.json").read_text())
    data["added_tokens"].append(data["added_tokens"][0] | {"id": 384, "content": "<|more|>"})
    (folder / "tokenizer.json").write_text(json.dumps(data))


def no_end_token(folder):
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).exists():
            data = json.loads((folder / name).read_text())
            data.pop("eos_token", None)
            (folder / name).write_text(json.dumps(data))


DAMAGE = {
    "truncated weights": (truncate, "cannot load the weights in .*copy or make them again"),
    "empty weights": (lambda f: (f / "model.safetensors").write_bytes(b""), "cannot load the weights"),
    "pickled weights": (pickle_weights, r"no \*\.safetensors \(pickled weights are refused"),
    "pickled weights beside a decoy": (pickle_beside_a_decoy, "cannot load the weights"),
    "a weight missing": (drop_weights, r"lacks 1 weights \(transformer\.h\.1\.mlp\.c_fc\.weight"),
    "no config": (lambda f: (f / "config.json").unlink(), r"has no config\.json"),
    "broken config": (lambda f: (f / "config.json").write_text("{"), r"cannot use the config\.json"),
    "config of nothing": (lambda f: (f / "config.json").write_text("{}"), r"cannot use the config\.json"),
    "a masked model": (other_kind(bert), "is a BertForMaskedLM; expected a causal language model"),
    "a backbone": (
        other_kind(lambda: GPT2Model(load_language_model("tiny").model.config)),
        "is a GPT2Model; expected a causal language model, GPT2LMHeadModel",
    ),
    "no tokenizer": (lambda f: [p.unlink() for p in f.glob("tokenizer*")], "has no tokenizer; save one"),
    "broken tokenizer": (lambda f: (f / "tokenizer.json").write_text("{"), "cannot load the tokenizer"),
    "too many tokens": (fewer_tokens, "the tokenizer has 385 tokens, the model 384"),
    "no end token": (no_end_token, "no eos token"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_models(folder, damage):
    harm, message = DAMAGE[damage]
    harm(folder)
    with pytest.raises(ModelError, match=message) as error:
        load_language_model(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("source", ["./none", "none/of/them", "/none", "~none", "", "tests/none", "a b"])
def test_unknown_folders_do_not_ask_the_hub(source, monkeypatch):
    monkeypatch.setattr(language_model, "snapshot_download", lambda *a, **k: pytest.fail("asked the hub"))
    monkeypatch.chdir(os.path.dirname(os.path.dirname(__file__)))
    with pytest.raises(ModelError, match=r"there is no folder .*; give a model folder|has no config.json"):
        load_language_model(source)


def test_names_on_the_hub(monkeypatch, folder):
    monkeypatch.setattr(language_model, "snapshot_download", lambda name, **k: {"some/model": str(folder)}[name])
    assert load_language_model("some/model").max_length == 256
    with pytest.raises(ModelError, match=r"some/other is no local folder and cannot be had from the hub"):
        load_language_model("some/other")


def test_the_hub_out_of_reach():
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    with pytest.raises(ModelError, match=r"nobody/none is no local folder.*check the name and the network") as error:
        load_language_model("nobody/none")
    assert "\n" not in str(error.value)


def test_devices_and_precisions_that_are_not_there(folder):
    with pytest.raises(ModelError, match="cannot use the device"):
        load_language_model(folder, device="warp")
    with pytest.raises(ModelError, match=r"precision is torch\.float16"):
        load_language_model(folder, precision=torch.float16)


def test_a_failed_save_keeps_the_model(tiny_gpt2, folder):
    resource = pytest.importorskip("resource")
    other, before = tiny_gpt2.copy(), resource.getrlimit(resource.RLIMIT_FSIZE)
    with torch.no_grad():
        other.model.transformer.wte.weight.zero_()
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))  # a full disk, for compiled code too
    try:
        with pytest.raises(SaveError, match=r"cannot write .*Free some space") as error:
            other.save(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(error.value)
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
    assert_same_weights(weights_of(load_language_model(folder)), weights_of(tiny_gpt2))


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
