"""The steps of a run: rows, evaluations, stops, and a resumed run that is the run itself."""

import copy
import dataclasses
import os
import signal
import threading
from types import SimpleNamespace

import pytest
import torch

from rlhf_lab.training.files import CheckpointError, load_checkpoint
from rlhf_lab.training.history import History
from rlhf_lab.training.optimisers import clipped_step, cosine_rate, make_optimiser, scale_rates
from rlhf_lab.training.randomness import generator_for
from rlhf_lab.training.steps import Checkpoint, Steps, bars_off, graceful_interrupt

torch.set_num_threads(1)


@dataclasses.dataclass(frozen=True)
class Config:
    learning_rate: float = 0.1
    betas: tuple = (0.9, 0.95)


def run(
    path=None,
    total=6,
    config=Config(),
    recipe="test",
    data="data",
    width=3,
    act=lambda step: None,
    evaluate=None,
    **options,
):
    """A run of a linear model; `act` does something in the middle of a step. Returns its steps, model and file."""
    model = torch.nn.Linear(width, 1)
    torch.nn.init.ones_(model.weight)
    torch.nn.init.zeros_(model.bias)
    optimiser = make_optimiser(model, config.learning_rate, 0.1)
    file = Checkpoint(path, 2, recipe, config, {"data": data}, model, optimiser, {"sum": 0.0}, **options)
    evaluate = evaluate or (lambda: {"norm": float(model.weight.detach().norm())})
    with Steps("test", total, evaluate, 3, file if path or options else None) as steps:
        for step in steps:
            scale_rates(optimiser, cosine_rate(step, 6, 2))
            for part in range(2):
                x = torch.randn(8, width, generator=generator_for(0, "data", step, part))
                loss = (model(x) - x.sum(1, keepdim=True) * 2).square().mean()
                optimiser.zero_grad()
                loss.backward()
                if part:
                    act(step)
                clipped_step(optimiser, 1.0, step + 1, model)
            file.extra["sum"] += float(loss.detach())
            steps.log(loss=loss.detach())
            steps.log({"sum": file.extra["sum"]})
    return steps, model, file


def same(a, b):
    return a[0].history == b[0].history and all(map(torch.equal, a[1].parameters(), b[1].parameters()))


def interrupt_at(moment):
    return lambda step: signal.raise_signal(signal.SIGINT) if step == moment else None


def test_rows_are_numbered_by_steps_done_and_evaluated_by_schedule():
    steps, _, _ = run()
    assert steps.history.column("loss")[0].tolist() == [1, 2, 3, 4, 5, 6]
    assert steps.history.column("norm")[0].tolist() == [0, 3, 6]
    assert not steps.interrupted
    with Steps("test", 5, lambda: {"x": 1.0}, 2, number=lambda done: 10 * done) as steps:
        for _ in steps:
            steps.log(y=0.0)
    assert steps.history.column("x")[0].tolist() == [0, 20, 40, 50]
    assert steps.history.column("y")[0].tolist() == [10, 20, 30, 40, 50]


def test_without_evaluation_there_is_no_row_at_the_start():
    with Steps("test", 2) as steps:
        for step in steps:
            steps.log(step_=step)
    assert [row["step"] for row in steps.history.rows] == [1, 2]


def test_a_run_that_cannot_be_resumed_is_evaluated_where_it_stops():
    steps, _, _ = run(act=interrupt_at(3))
    assert steps.interrupted
    assert steps.history.column("loss")[0].tolist() == [1, 2, 3, 4]
    assert steps.history.column("norm")[0].tolist() == [0, 3, 4]


@pytest.mark.parametrize("moment", [0, 2, 3, 5])
def test_a_resumed_run_is_the_run(moment, tmp_path):
    whole, path = run(), tmp_path / "run.pt"
    half = run(path, act=interrupt_at(moment))
    assert half[0].interrupted == (moment < 5)
    assert len(half[0].history.column("loss")[0]) == moment + 1
    rest = run(path)
    assert not rest[0].interrupted
    assert same(rest, whole)
    assert same(run(path), whole)  # a finished run is not trained further


def test_a_run_that_was_killed_goes_on_from_its_last_saving(tmp_path):
    path = tmp_path / "run.pt"

    def die(step):
        if step == 3:
            raise KeyboardInterrupt  # nothing is saved on the way out, as by a kill

    with pytest.raises(KeyboardInterrupt):
        run(path, act=die)
    assert load_checkpoint(path)["step"] == 2
    assert same(run(path), run())


@pytest.mark.parametrize("several_updates", [False, True])
def test_after_a_failure_the_last_good_state_is_kept(several_updates, tmp_path):
    """It fails at the second of two updates: only with several_updates is the state that of the step before."""
    path = tmp_path / "run.pt"

    def fail(step):
        if step == 3:
            raise FloatingPointError("loss is nan")

    with pytest.raises(FloatingPointError) as error:
        run(path, act=fail, several_updates=several_updates)
    assert error.value.__notes__ == [f"The last good state, after step 3, is in {path}."]
    assert load_checkpoint(path)["step"] == 3
    assert same(run(path), run()) == several_updates


def test_an_evaluation_that_fails_after_an_update_leaves_weights_and_step_together(tmp_path):
    """The update is done: going on must not make it again, so every weight is that of the whole run."""
    path, looks = tmp_path / "run.pt", []

    def evaluate():
        looks.append(1)
        if len(looks) == 2:
            raise FloatingPointError("perplexity is nan")
        return {}

    with pytest.raises(FloatingPointError, match="perplexity"):
        run(path, evaluate=evaluate)
    assert load_checkpoint(path)["step"] == 3
    assert all(map(torch.equal, run(path)[1].parameters(), run()[1].parameters()))


def test_nothing_is_kept_without_a_path(tmp_path):
    assert same(run(several_updates=True), run())
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    path = tmp_path / "run.pt"
    run(path, total=1)
    for change, message in [
        ({"config": Config(learning_rate=0.2)}, r"learning_rate differs: 0\.1 there, 0\.2 here"),
        ({"recipe": "sft"}, "recipe differs: 'test' there, 'sft' here"),
        ({"data": ["other"]}, "the input data differs"),
        ({"width": 4}, "another model"),
    ]:
        with pytest.raises(CheckpointError, match=message) as error:
            run(path, **change)
        assert "\n" not in str(error.value)


def test_seconds_are_noted_part_by_part():
    with Steps("test", 3) as steps:
        for _ in steps:
            with steps.timed("a"), steps.timed("b"):
                pass
    assert {part: len(seconds) for part, seconds in steps.timings.items()} == {"a": 3, "b": 3}
    assert all(second >= 0 for second in steps.timings["a"])


def test_the_same_name_twice_is_refused():
    def log_what_is_evaluated():
        with Steps("test", 1, lambda: {"x": 1.0}) as steps:
            for _ in steps:
                steps.log(x=0.0)

    with pytest.raises(ValueError, match="'x' is there twice at step 1"):
        log_what_is_evaluated()


# -- interrupts -------------------------------------------------------------------------------------------------------
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


@pytest.mark.parametrize(("value", "off"), [(None, False), ("", False), ("0", False), ("1", True)])
def test_bars_can_be_turned_off(monkeypatch, value, off):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    if value is not None:
        monkeypatch.setenv("TQDM_DISABLE", value)
    assert bars_off() == off


def test_of_the_last_good_state_there_is_never_more_than_one_copy(tmp_path, monkeypatch):
    """Two would take twice the memory; a copy that fails leaves the state itself, which is good."""
    network = torch.nn.Linear(2, 2)
    optimiser = torch.optim.AdamW(network.parameters())
    file = Checkpoint(tmp_path / "run.pt", 1, "toy", Config(), {}, network, optimiser, several_updates=True)
    file.mark(1, History())
    copies = []

    def watched(state):
        copies.append(file._good)
        if len(copies) == 2:
            raise RuntimeError("no memory")
        return copy.deepcopy(state)

    monkeypatch.setattr("rlhf_lab.training.steps.copy", SimpleNamespace(deepcopy=watched))
    file.mark(2, History())
    with pytest.raises(RuntimeError):
        file.mark(3, History())
    assert copies == [{}, {}]
    assert file.save_good(3, History()) == 3
    assert load_checkpoint(tmp_path / "run.pt")["step"] == 3
