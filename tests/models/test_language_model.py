"""Language models come back as they were saved, and what cannot be loaded is refused in one line."""

import copy
import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from four_replies import PROMPTS, batch_of
from transformers import BertConfig, BertForMaskedLM, GPT2Model

from conftest import CHAT_TEMPLATE, save_gpt2, with_format
from rlhf_lab.experience.rollouts import sample_responses
from rlhf_lab.models import language_model
from rlhf_lab.models.language_model import ModelError, find_model, load_language_model, wrap_model
from rlhf_lab.models.scoring import forward
from rlhf_lab.models.tokens import encode_prompts, encode_responses
from rlhf_lab.records import as_conversation
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


def settings(**change):
    def write(folder):
        data = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(data | change))

    return write


def lora_only(folder):
    for path in folder.iterdir():
        path.unlink()
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (folder / "adapter_model.safetensors").write_bytes(b"")


def lora_beside_config(folder):
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text("{}")


def large_template(folder):
    (folder / "chat_template.jinja").write_text("{{ messages }}" + " " * 1_100_000)


DAMAGE = {
    "LoRA weights": (lora_only, "holds LoRA weights only; merge them into the model first"),
    "LoRA weights beside a config": (lora_beside_config, "holds LoRA weights only"),
    "config of a list": (lambda f: (f / "config.json").write_text("[1]"), r"config\.json .*holds a list; expected"),
    "config of a number": (lambda f: (f / "config.json").write_text("7"), r"config\.json .*holds a int; expected"),
    "layers in words": (settings(n_layer="two"), r"config\.json .*'n_layer' expected int, got str"),
    "layers below none": (settings(n_layer=-1), r"config\.json .*n_layer is -1; expected 0 to 1000"),
    "too many layers": (settings(n_layer=1001), r"n_layer is 1001; expected 0 to 1000"),
    "too many labels": (settings(num_labels=10_000), r"num_labels is 10000; expected 0 to 1000"),
    "architectures in one text": (settings(architectures="GPT2LMHeadModel"), "expected a list of names"),
    "architectures of a number": (settings(architectures=5), "architectures is 5; expected a list of names"),
    "more weights than the files hold": (
        settings(vocab_size=10**6),
        r"config\.json asks for 32,0\d\d,\d\d\d numbers, the files have \d\d\d,\d\d\d bytes",
    ),
    "quantised weights": (settings(quantization_config={"quant_method": "awq"}), "holds quantised weights"),
    "a template of a megabyte": (large_template, "chat_template.jinja has 1,100,014 bytes; expected at most 1,000,000"),
    "what steers a terminal": (settings(model_type="\x1b[31mred"), "'model_type' holds control characters"),
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
    assert str(error.value).isprintable()


@pytest.mark.parametrize("source", ["./none", "none/of/them", "/none", "~none", "", "tests/none", "a b"])
def test_unknown_folders_do_not_ask_the_hub(source, monkeypatch):
    monkeypatch.setattr(language_model, "snapshot_download", lambda *a, **k: pytest.fail("asked the hub"))
    monkeypatch.chdir(Path(__file__).parents[2])
    with pytest.raises(ModelError, match=r"there is no folder .*; give a model folder|has no config.json"):
        load_language_model(source)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", "there is no folder ''; give"),
        (None, "the model is None; expected a folder"),
        (b"tiny", "the model is b'tiny'; expected"),
        ("a" * 5000, "cannot read a.*give another folder"),
        (__file__, "is a file; give the folder"),
    ],
)
def test_what_is_no_name(source, message):
    with pytest.raises(ModelError, match=message):
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
    with pytest.raises(ModelError, match="cannot use the device"):
        load_language_model(folder, device=1.5)
    for precision in (torch.float16, "float32"):
        with pytest.raises(ModelError, match="precision is " + re.escape(repr(precision))):
            load_language_model(folder, precision=precision)


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


def outcome(act):
    """What a call returns, or what it raises."""
    try:
        return act()
    except Exception as error:
        return error


@pytest.mark.parametrize("name", ["attn_implementation", "_attn_implementation", "experts_implementation"])
def test_a_config_names_no_code_that_is_fetched(folder, name):
    settings(**{name: "some/kernel"})(folder)
    found = outcome(lambda: load_language_model(folder).model.config)
    assert (getattr(found, "_attn_implementation", found)) == "sdpa"
    assert found._experts_implementation != "some/kernel"


def test_trained_sizes_do_not_depend_on_the_working_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    expected = Path(__file__).parents[2] / "runs" / "model-small"
    assert language_model.MODEL_FOLDERS["small"][-1] == expected
    assert language_model.trained_folder("small") == expected


# ---- weights in several files ----------------------------------------------------------------------------------


@pytest.fixture
def sharded(folder):
    lm = load_language_model(folder)
    (folder / "model.safetensors").unlink()
    lm.model.save_pretrained(folder, max_shard_size="80KB")
    return folder


def outside(folder):
    name = sorted(path.name for path in folder.glob("*.safetensors"))[0]
    (folder / name).rename(folder.parent / name)
    return name


def rename_in_index(folder, old, new):
    index = folder / "model.safetensors.index.json"
    index.write_text(index.read_text().replace(f'"{old}"', json.dumps(new)))


@pytest.mark.parametrize("place", ["..", "{parent}", "link"])
def test_shards_lie_in_their_folder(sharded, place):
    assert load_language_model(sharded).max_length == 256
    name = outside(sharded)
    if place == "link":
        (sharded / name).symlink_to(sharded.parent / name)
    else:
        rename_in_index(sharded, name, place.format(parent=sharded.parent) + "/" + name)
    with pytest.raises(ModelError, match=r"index\.json names '.*; expected a file in its own folder"):
        load_language_model(sharded)


def test_shards_of_the_hubs_cache_lie_behind_links(sharded, tmp_path):
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "abc"
    shutil.copytree(sharded, blobs)
    snapshot.mkdir(parents=True)
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    assert load_language_model(snapshot).max_length == 256
    (snapshot / outside(snapshot)).symlink_to("../../../model")
    with pytest.raises(ModelError, match="expected a file in its own folder"):
        load_language_model(snapshot)


# ---- the chat format -------------------------------------------------------------------------------------------


def chat(end):
    return "{% for m in messages %}<|user|>{{ m['content'] }}" + end + "{% endfor %}"


ENDS = {
    "eos": (chat("{{ eos_token }}"), "<|pad|>"),
    "another token": (CHAT_TEMPLATE, "<|end|>"),
    "text before it": (chat(" so.\n<|end|>\n"), "<|end|>"),
    "eos after it": (chat("<|end|>\n{{ eos_token }}"), "<|end|>"),
    "text": (chat("\n\n"), "<|pad|>"),
    "nothing": (chat(""), "<|pad|>"),
    "no such turn": ("{{ raise_exception('no') if messages | length > 1 }}{{ messages[0]['content'] }}", "<|pad|>"),
}


@pytest.mark.parametrize("case", ENDS)
def test_a_reply_ends_as_the_template_ends_a_turn(tiny_gpt2, case):
    template, end = ENDS[case]
    lm = with_format(tiny_gpt2, template, eos_token="<|pad|>")
    assert lm.tokenizer.decode([lm.end_id]) == end
    assert encode_responses(lm, ["At six."])[0][-1] == lm.end_id


def test_replies_of_a_model_with_another_eos_end(tiny_gpt2):
    lm = with_format(tiny_gpt2.copy(), eos_token="<|pad|>")
    end = lm.tokenizer.convert_tokens_to_ids("<|end|>")

    def prefer_the_end(model, given, output):
        output.logits[..., end] += 8
        return output

    with lm.model.register_forward_hook(prefer_the_end):
        rollout = sample_responses(lm, ["Hi", "Go"], max_new_tokens=24, generator=torch.Generator().manual_seed(0))
    assert rollout.ended.all()
    assert not any("<|end|>" in text for text in rollout.texts)


LOOP = "{% for a in range(100000) %}{% for b in range(20) %}{% endfor %}{% endfor %}"
BAD_TEMPLATES = {
    "loops": (LOOP, r"computes for more than 0\.2 seconds"),
    "loops over text": (LOOP.replace("range(100000)", "'12345678' * 12500"), r"computes for more than 0\.2 seconds"),
    "long": (CHAT_TEMPLATE + " " * 200_000, r"has 200,\d\d\d characters; expected at most 200,000"),
    "writes much": (
        "{% for i in range(100) %}{{ 'a' * 110000 }}{% endfor %}",
        "writes 11,000,000 characters; expected at most 10,000,000",
    ),
    "powers": ("{{ 2 ** 9 }}", "computes powers or numbers above a million"),
    "large numbers": ("{{ 'a' * 1000000 }}", "computes powers or numbers above a million"),
    "unreadable": ("{% for", "cannot be read"),
    "unfinished": ("{% for m in messages %}", "cannot be read"),
    "a number": (5, "is 5; expected a text"),
    "names without a default": (
        {"tool": "{{ 1 }}"},
        "is {'tool': '{{ 1 }}'}; expected a text, or texts of which one is named 'default'",
    ),
}


@pytest.mark.parametrize("case", BAD_TEMPLATES)
def test_templates_that_cannot_be_used(tiny_gpt2, monkeypatch, case):
    template, message = BAD_TEMPLATES[case]
    monkeypatch.setattr(sys.modules[ModelError.__module__], "MOST_SECONDS", 0.2, raising=False)
    watched = sys.gettrace()
    with pytest.raises(ModelError, match=rf"the chat template {message}.*set tokenizer.chat_template to another"):
        with_format(tiny_gpt2, template)
    assert sys.gettrace() is watched


def test_arguments_that_a_template_passes_on_are_no_powers(tiny_gpt2):
    template = "{% set a = {'b': 1} %}{{ dict(**a) and dict(c=1, **a) and '**' }}{# 2 ** 9 #}"
    assert encode_prompts(with_format(tiny_gpt2, template), [as_conversation("Hi")])


def test_a_loop_that_needs_a_long_conversation_is_stopped_too(tiny_gpt2, monkeypatch):
    monkeypatch.setattr(sys.modules[ModelError.__module__], "MOST_SECONDS", 0.2, raising=False)
    lm = with_format(tiny_gpt2, "{% if messages | length > 2 %}" + LOOP + "{% endif %}Hi")
    assert encode_prompts(lm, PROMPTS[:1])
    with pytest.raises(ModelError, match="computes for more than"):
        encode_prompts(lm, PROMPTS[:2])


def test_what_strangers_wrote_steers_no_terminal(tmp_path, tiny_gpt2):
    (tmp_path / "\x1b[31mred").mkdir()
    with pytest.raises(ModelError, match=r"\\x1b\[31mred has no config\.json") as error:
        load_language_model(tmp_path / "\x1b[31mred")
    assert str(error.value).isprintable()
    lm = with_format(tiny_gpt2, "{{ raise_exception('\x1b[2J\n\x9b1m') }}")
    with pytest.raises(ValueError, match="does not fit the chat template") as error:
        encode_prompts(lm, PROMPTS[:1])
    assert str(error.value).isprintable()


# ---- models that must read the same tokens ------------------------------------------------------------------------


OTHER_FORMATS = {
    "template": ({"template": chat("<|end|>")}, "m has another chat template than the policy"),
    "a system's turn": ({"template": CHAT_TEMPLATE.replace("{{ m['content'] }}{% endif", "{% endif")}, "chat template"),
    "end": ({"template": CHAT_TEMPLATE, "eos_token": "<|user|>"}, None),
}


@pytest.mark.parametrize("case", OTHER_FORMATS)
def test_another_chat_format_is_refused(tiny_gpt2, case):
    change, message = OTHER_FORMATS[case]
    other = with_format(tiny_gpt2, **change).tokenizer
    if message is None:  # an eos that neither template nor replies use
        assert outcome(lambda: language_model.check_same_tokens(tiny_gpt2.tokenizer, other, "m")) is None
    else:
        with pytest.raises(ValueError, match=message):
            language_model.check_same_tokens(tiny_gpt2.tokenizer, other, "m")


def test_the_end_of_a_reply_must_be_the_same(tiny_gpt2):
    silent = [with_format(tiny_gpt2, chat("\n"), eos_token=eos).tokenizer for eos in ("<|end|>", "<|user|>")]
    with pytest.raises(ValueError, match=r"m ends a reply with '<\|user\|>', the policy with '<\|end\|>'"):
        language_model.check_same_tokens(*silent, "m")


def test_another_vocabulary_is_refused(tiny_gpt2, tiny_llama):
    with pytest.raises(ValueError, match=r"value_init has another vocabulary .*; score texts") as error:
        language_model.check_same_tokens(tiny_gpt2.tokenizer, tiny_llama.tokenizer, "value_init", "score texts")
    assert "\n" not in str(error.value)


def test_the_same_tokens_of_another_copy(tiny_lm, tmp_path):
    tiny_lm.save(tmp_path / "model")
    back = load_language_model(tmp_path / "model").tokenizer
    assert outcome(lambda: language_model.check_same_tokens(tiny_lm.tokenizer, back, "m")) is None


def test_a_changed_bit_in_the_shipped_model_is_found(tmp_path):
    shutil.copytree(find_model("tiny"), tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ModelError, match=r"model\.safetensors is damaged, or was changed since it was saved"):
        load_language_model(tmp_path / "model")
    (tmp_path / "model" / "rlhf_lab.json").unlink(missing_ok=True)
    assert load_language_model(tmp_path / "model")  # who changes a model on purpose says so


CHATML = "{{ '<|im_start|>' + m.role + '\\n' + m.content }}"
OPEN_ENDS = {  # each ends an assistant's turn with <|im_end|>, and none shows it after a question and a reply alone
    "wants a system's message": "{% if messages[0].role != 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{% for m in messages %}" + CHATML + "{{ '<|im_end|>\\n' }}{% endfor %}",
    "ends with the user's": "{% if messages[-1].role != 'user' %}{{ raise_exception('not the user') }}{% endif %}"
    "{% for m in messages %}" + CHATML + "{{ '<|im_end|>\\n' }}{% endfor %}",
    "the last turn is open": "{% for m in messages %}" + CHATML
    + "{% if not loop.last %}{{ '<|im_end|>\\n' }}{% endif %}{% endfor %}",
}  # fmt: skip


@pytest.mark.parametrize("kind", OPEN_ENDS)
def test_an_end_that_some_conversations_do_not_show_is_found(kind, tmp_path):
    save_gpt2(tmp_path)
    lm = load_language_model(tmp_path)
    lm.tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    lm.model.resize_token_embeddings(len(lm.tokenizer))
    lm.tokenizer.chat_template = OPEN_ENDS[kind]
    assert lm.tokenizer.convert_ids_to_tokens(wrap_model(lm.model, lm.tokenizer).end_id) == "<|im_end|>"


def test_how_the_next_turn_begins_is_no_end(tmp_path):
    save_gpt2(tmp_path)
    lm = load_language_model(tmp_path)
    lm.tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    lm.model.resize_token_embeddings(len(lm.tokenizer))
    lm.tokenizer.chat_template = "{% for m in messages %}" + CHATML + "{% endfor %}"
    assert wrap_model(lm.model, lm.tokenizer).end_id == lm.tokenizer.eos_token_id
