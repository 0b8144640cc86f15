"""Language models come back as they were saved, and what cannot be loaded is refused in one line."""

import copy
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from conftest import save_gpt2
from four_replies import PROMPTS, batch_of
from transformers import BertConfig, BertForMaskedLM, GPT2Model

from rlhf_lab.models import language_model
from rlhf_lab.models.language_model import ModelError, load_language_model
from rlhf_lab.models.scoring import forward
from rlhf_lab.models.tokens import encode_prompts
from rlhf_lab.training.files import SaveError

torch.set_num_threads(1)


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
    monkeypatch.chdir(Path(__file__).parents[2])
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
