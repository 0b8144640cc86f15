"""What was saved survives a kill at any moment."""

import hashlib
import os
import pickle
import shutil
import subprocess
import sys

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from rlhf_lab.training.files import (
    CheckpointError,
    SaveError,
    fingerprint,
    load_checkpoint,
    save_checkpoint,
    write_text_atomic,
)

torch.set_num_threads(1)


def save_folder(path, text):
    from rlhf_lab.training.folders import new_folder

    with new_folder(path) as folder:
        (folder / "part").mkdir()
        (folder / "part" / "file").write_bytes(text.encode())


def write_file(path, text):
    write_text_atomic(path, text)


SAVERS = {
    "text": (write_file, lambda path: path.read_bytes().decode()),
    "checkpoint": (
        lambda path, text: save_checkpoint(path, {"text": text}),
        lambda path: load_checkpoint(path)["text"],
    ),
    "folder": (save_folder, lambda path: (path / "part" / "file").read_bytes().decode()),
}


@pytest.fixture(params=SAVERS)
def saver(request):
    return SAVERS[request.param]


# ---- all or nothing ------------------------------------------------------------------------------------------


def test_saved_and_replaced(saver, tmp_path):
    save, load = saver
    for text in ("one", "two\r\nlines"):
        save(tmp_path / "new" / "place", text)
        assert load(tmp_path / "new" / "place") == text
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["place"]


class Killed(BaseException):
    """As a kill, nothing may catch it."""


@pytest.mark.parametrize("fault", [Killed(), OSError(28, "No space left on device"), PermissionError(13, "denied")])
@pytest.mark.parametrize("moment", [1, 2])
def test_a_failed_save_keeps_what_was_there(saver, tmp_path, monkeypatch, fault, moment):
    save, load = saver
    save(tmp_path / "place", "before")
    real, calls = os.replace, []

    def replace(source, target):
        calls.append(target)
        if len(calls) == moment:
            raise fault
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    if saver is not SAVERS["folder"] and moment == 2:
        save(tmp_path / "place", "after")  # a file is moved once
        assert load(tmp_path / "place") == "after"
        return
    with pytest.raises(Killed if isinstance(fault, Killed) else SaveError) as error:
        save(tmp_path / "place", "after")
    if not isinstance(fault, Killed):
        assert "place" in str(error.value)
        assert fault.strerror in str(error.value)
        assert "\n" not in str(error.value)
    assert load(tmp_path / "place") == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["place"]


def test_a_failed_first_save_leaves_nothing(saver, tmp_path, monkeypatch):
    save, _ = saver
    monkeypatch.setattr(os, "fsync", lambda file: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(SaveError, match=r"No space left on device\. Free some space"):
        save(tmp_path / "place", "new")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be(saver, tmp_path):
    save, _ = saver
    (tmp_path / "file").write_text("I am no folder")
    with pytest.raises(SaveError, match="cannot write"):
        save(tmp_path / "file" / "place", "new")
    assert (tmp_path / "file").read_text() == "I am no folder"


def test_read_only_folder(saver, tmp_path):
    save, _ = saver
    tmp_path.chmod(0o500)
    try:
        if os.access(tmp_path, os.W_OK):
            pytest.skip("this user may write everywhere")
        with pytest.raises(SaveError, match="choose a folder you may write to"):
            save(tmp_path / "place", "new")
    finally:
        tmp_path.chmod(0o700)


@pytest.fixture
def full_disk():
    """Writing beyond 20 kB fails, as on a full disk, from Python and from compiled code alike."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_full_disk(saver, tmp_path, full_disk):
    save, load = saver
    save(tmp_path / "place", "before")
    with pytest.raises(SaveError, match="cannot write"):
        save(tmp_path / "place", "x" * 100_000)
    assert load(tmp_path / "place") == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["place"]


# ---- damaged files -------------------------------------------------------------------------------------------


def test_truncated_at_any_length(tmp_path):
    path = tmp_path / "run.pt"
    save_checkpoint(path, {"weights": torch.randn(50), "step": 3})
    data = path.read_bytes()
    for length in range(0, len(data) - 1, 97):
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match=r"run\.pt is damaged.*delete it") as error:
            load_checkpoint(path)
        assert "\n" not in str(error.value)


def test_a_changed_bit_is_found_wherever_it_is(tmp_path):
    path = tmp_path / "run.pt"
    save_checkpoint(path, {"weights": torch.zeros(50), "step": 3, "text": "b"})
    data = path.read_bytes()
    for place in range(0, len(data), 13):
        path.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        with pytest.raises(CheckpointError, match=r"run\.pt is damaged"):
            load_checkpoint(path)


def test_a_folder_or_a_pipe_is_no_checkpoint_and_none_is_waited_for(tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("folder", "pipe"):
        with pytest.raises(CheckpointError, match="is no file"):
            load_checkpoint(tmp_path / name)


def seal_as_ours(path):
    """A forger can compute a checksum too."""
    data = path.read_bytes()
    path.write_bytes(data + b"\nrlhf_lab sha256 " + hashlib.sha256(data).hexdigest().encode() + b"\n")


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harm_was_done",)


@pytest.mark.parametrize("save", [torch.save, lambda x, path: path.write_bytes(pickle.dumps(x))])
def test_nothing_in_a_checkpoint_is_executed(tmp_path, monkeypatch, save):
    monkeypatch.chdir(tmp_path)
    save({"state": Harmful()}, tmp_path / "run.pt")
    seal_as_ours(tmp_path / "run.pt")
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(tmp_path / "run.pt")
    assert "weights_only" not in str(error.value)  # torch's advice would lead around the protection
    assert not (tmp_path / "harm_was_done").exists()


def test_other_content_and_no_file(tmp_path):
    torch.save(torch.ones(3), tmp_path / "run.pt")
    seal_as_ours(tmp_path / "run.pt")
    with pytest.raises(CheckpointError, match="holds a Tensor"):
        load_checkpoint(tmp_path / "run.pt")
    with pytest.raises(FileNotFoundError):
        load_checkpoint(tmp_path / "none.pt")


def test_a_fingerprint_tells_apart_what_a_run_is_made_from():
    layer = torch.nn.Linear(3, 1)
    before = fingerprint(layer)
    with torch.no_grad():
        layer.weight[0, 2] = torch.nextafter(layer.weight[0, 2], torch.tensor(9.0))
    parts = [layer, None, "a", ["a"], ("a",), torch.zeros(2), torch.zeros(2, dtype=torch.float64), torch.tensor(0.0)]
    assert len({before, *map(fingerprint, parts)}) == len(parts) + 1
    assert fingerprint(layer) == fingerprint(torch.nn.ModuleDict({"a": layer})["a"])
    assert fingerprint(torch.ones(2, dtype=torch.bfloat16)) != fingerprint(torch.zeros(2, dtype=torch.bfloat16))


def test_a_fingerprint_knows_what_a_model_computes_besides_its_weights():
    """A scale of attention, say, is in the config and in no weight."""
    configs = [
        GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=9, scale_attn_weights=scale) for scale in (True, False)
    ]
    models = [GPT2LMHeadModel(config) for config in configs]
    models[1].load_state_dict(models[0].state_dict())
    assert fingerprint(models[0]) != fingerprint(models[1])
    models[1].config.scale_attn_weights, models[1].config._name_or_path = True, "elsewhere"
    assert fingerprint(models[0]) == fingerprint(models[1])


def test_what_a_killed_program_left_is_cleared_away(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    for writer in (write_file, save_folder):
        (tmp_path / f".place.{child.pid}.rlhf_lab.tmp").mkdir()
        writer(tmp_path / "place", "new")
        assert [path.name for path in tmp_path.iterdir()] == ["place"]
        shutil.rmtree(tmp_path / "place", ignore_errors=True)
        (tmp_path / "place").unlink(missing_ok=True)
