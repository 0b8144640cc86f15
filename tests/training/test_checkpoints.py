"""What was saved survives a kill at any moment, and a resumed run goes on bit-identically."""

import dataclasses
import itertools
import os
import pickle
import signal
import threading

import numpy as np
import pytest
import torch

from rlhf_lab.training import files as checkpoints
from rlhf_lab.training.files import (
    CheckpointError,
    SaveError,
    load_checkpoint,
    new_folder,
    save_checkpoint,
    write_text_atomic,
)
from rlhf_lab.training.history import History
from rlhf_lab.training.optimisers import clipped_step, cosine_rate, make_optimiser
from rlhf_lab.training.randomness import generator_for
from rlhf_lab.training.steps import RunState, bars_off, graceful_interrupt

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


# ---- history -------------------------------------------------------------------------------------------------


def example():
    history = History()
    history.add(0, loss=torch.tensor(2.0), accuracy=None)
    history.add(step=1, loss=np.float32(1.5))
    history.add(2, loss=1, accuracy=0.625)
    return history


def test_history_columns():
    history = example()
    steps, values = history.column("accuracy")
    assert (steps.tolist(), values.tolist()) == ([2], [0.625])
    assert history.column("loss")[1].tolist() == [2.0, 1.5, 1.0]
    assert (len(history), history.last("loss"), history.names()) == (3, 1.0, ["loss", "accuracy"])
    with pytest.raises(KeyError, match=r"kl.*loss"):
        history.column("kl")


def test_a_row_of_parts_has_each_name_once():
    history = History()
    history.add(3, {"loss": 1.0}, {}, {"score": 2.0}, more=None)
    assert history.to_list() == [{"step": 3, "loss": 1.0, "score": 2.0, "more": None}]
    with pytest.raises(ValueError, match="'loss' is there twice at step 4; evaluate must give it another name"):
        history.add(4, {"loss": 1.0}, {"loss": 2.0})
    assert len(history) == 1


def test_history_survives_a_checkpoint_and_json(tmp_path):
    save_checkpoint(tmp_path / "run.pt", {"history": example().to_list()})
    assert History.from_list(load_checkpoint(tmp_path / "run.pt")["history"]) == example()
    copied = example()
    copied.to_list()[0]["loss"] = 9.0
    assert copied == example()


def test_history_csv(tmp_path):
    example().to_csv(tmp_path / "history.csv")
    assert (tmp_path / "history.csv").read_text().splitlines() == [
        "step,loss,accuracy", "0,2.0,", "1,1.5,", "2,1.0,0.625"]  # fmt: skip


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_history_takes_finite_numbers_only(number):
    history = example()
    with pytest.raises(FloatingPointError, match=r"kl is .* at step 3"):
        history.add(3, loss=1.0, kl=number)
    assert history == example()


def test_history_as_a_table():
    lines = repr(example()).splitlines()
    assert lines[0].split() == ["step", "loss", "accuracy"]
    assert lines[3].split() == ["2", "1", "0.625"]
    assert len({len(line) for line in lines}) == 1
    for step in (3, 8, 9, 10_001):
        example_ = History.from_list([{"step": s, "loss": 0.5} for s in range(step)])
        assert len(repr(example_).splitlines()) <= 9
    assert repr(example_).splitlines()[-1].split() == [str(step - 1), "0.5"]
    assert repr(History()) == "History without rows"


# ---- interrupts ----------------------------------------------------------------------------------------------


def test_two_interrupts():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), graceful_interrupt() as interrupt:  # noqa: PT012
        assert not interrupt.requested
        os.kill(os.getpid(), signal.SIGINT) if os.name == "posix" else signal.raise_signal(signal.SIGINT)
        assert interrupt.requested
        signal.raise_signal(signal.SIGINT)
        pytest.fail("the second interrupt must raise")
    assert signal.getsignal(signal.SIGINT) is before


def test_interrupts_nest():
    with graceful_interrupt() as outer:
        with graceful_interrupt() as inner:
            signal.raise_signal(signal.SIGINT)
        assert (outer.requested, inner.requested) == (False, True)
        signal.raise_signal(signal.SIGINT)
        assert outer.requested


def test_outside_the_main_thread():
    before, seen = signal.getsignal(signal.SIGINT), []

    def work():
        with graceful_interrupt() as interrupt:
            seen.append((interrupt.requested, signal.getsignal(signal.SIGINT) is before))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, True)]


# ---- randomness ----------------------------------------------------------------------------------------------


def draw(*name):
    return torch.rand(4, generator=generator_for(*name)).tolist()


def test_streams_are_stable_and_apart():
    assert draw(0, "sft", 3) == draw(0, "sft", 3) == draw(np.int64(0), "sft", torch.tensor(3))
    assert generator_for(0, "sft", 3).initial_seed() == 8910626388193366761  # in every process, on every machine
    names = [(0,), (1,), (0, "sft"), (0, "rlhf"), (0, "sft", 1), (0, "sft", 11), (0, "sft", "1"), (0, "sft", 1, 1)]
    assert len({tuple(draw(*name)) for name in names}) == len(names)
    with pytest.raises(TypeError):
        generator_for(0, 0.5)


# ---- a run and its resumption --------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Config:
    learning_rate: float = 0.1
    betas: tuple = (0.9, 0.95)


def start(config=Config(), width=3):
    model = torch.nn.Linear(width, 1)
    torch.nn.init.ones_(model.weight)
    torch.nn.init.zeros_(model.bias)
    return RunState("test", config, model, make_optimiser(model, config.learning_rate, 0.1))


def advance(run, until):
    while run.step < until:
        x = torch.randn(8, 3, generator=generator_for(0, "data", run.step))
        loss = (run.model(x) - x.sum(1, keepdim=True) * 2).square().mean()
        loss.backward()
        rate = 0.1 * cosine_rate(run.step, 6, 2)
        run.step += 1
        run.history.add(run.step, loss=loss.detach(), norm=clipped_step(run.model, run.optimiser, rate, 1.0, run.step))
    return run


def test_resumed_run_is_the_run(tmp_path):
    whole = advance(start(), 6)
    first = advance(start(), 2)
    first.extra = {"kl_coef": 0.3}
    first.save(tmp_path / "run.pt")
    second = start()
    second.restore(tmp_path / "run.pt")
    assert (second.step, second.extra) == (2, {"kl_coef": 0.3})
    advance(second, 6)
    assert second.history == whole.history
    assert all(torch.equal(a, b) for a, b in zip(second.model.parameters(), whole.model.parameters(), strict=True))


def test_without_a_checkpoint(tmp_path):
    run = start()
    run.save(None)
    run.restore(None)
    run.restore(tmp_path / "none.pt")
    assert (run.step, list(tmp_path.iterdir())) == (0, [])


def test_a_checkpoint_of_another_run(tmp_path):
    advance(start(), 1).save(tmp_path / "run.pt")
    for other, message in [
        (start(Config(learning_rate=0.2)), "learning_rate is 0.1 there, 0.2 here"),
        (start(width=4), "another model"),
        (RunState("sft", Config(), start().model, start().optimiser), "recipe is 'test' there"),
    ]:
        with pytest.raises(CheckpointError, match=message) as error:
            other.restore(tmp_path / "run.pt")
        assert "\n" not in str(error.value)


def test_optimiser_decays_matrices_only():
    decay = {p.dim(): group["weight_decay"] for group in start().optimiser.param_groups for p in group["params"]}
    assert decay == {2: 0.1, 1: 0.0}


def test_cosine_rate():
    rates = [cosine_rate(step, 100, 10, floor=0.1) for step in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates[10] == 1.0
    assert rates[55] == pytest.approx(0.55)  # halfway down to 0.1
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))
    assert cosine_rate(100, 100, 10, floor=0.1) == pytest.approx(0.1)


def test_clipped_step_refuses_a_gradient_that_is_not_finite():
    run = start()
    before = run.model.weight.clone()
    (run.model(torch.full((1, 3), float("inf")))).sum().backward()
    with pytest.raises(FloatingPointError, match=r"gradient norm is .* at step 7"):
        clipped_step(run.model, run.optimiser, 0.1, 1.0, 7)
    assert torch.equal(run.model.weight, before)


def test_require():
    checkpoints.require(True, "x", 1, "2")
    with pytest.raises(ValueError, match="x is 1; expected 2"):
        checkpoints.require(False, "x", 1, "2")


@pytest.mark.parametrize(("value", "off"), [(None, False), ("", False), ("0", False), ("1", True)])
def test_bars_can_be_turned_off(monkeypatch, value, off):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    if value is not None:
        monkeypatch.setenv("TQDM_DISABLE", value)
    assert bars_off() == off
