"""What was saved survives a kill at any moment."""

import os
import pickle

import pytest
import torch

from rlhf_lab.training.files import (
    CheckpointError,
    SaveError,
    fingerprint,
    load_checkpoint,
    new_folder,
    save_checkpoint,
    write_text_atomic,
)

torch.set_num_threads(1)


def save_folder(path, text):
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


def test_an_error_in_the_block_is_passed_on(tmp_path):
    with pytest.raises(ValueError, match="mine"), new_folder(tmp_path / "place"):
        raise ValueError("mine")
    assert list(tmp_path.iterdir()) == []


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


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harm_was_done",)


@pytest.mark.parametrize("save", [torch.save, lambda x, path: path.write_bytes(pickle.dumps(x))])
def test_nothing_in_a_checkpoint_is_executed(tmp_path, monkeypatch, save):
    monkeypatch.chdir(tmp_path)
    save({"state": Harmful()}, tmp_path / "run.pt")
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(tmp_path / "run.pt")
    assert "weights_only" not in str(error.value)  # torch's advice would lead around the protection
    assert not (tmp_path / "harm_was_done").exists()


def test_other_content_and_no_file(tmp_path):
    torch.save(torch.ones(3), tmp_path / "run.pt")
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
