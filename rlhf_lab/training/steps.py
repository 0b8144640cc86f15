"""The steps of a run, the same for every recipe: a bar, a clean stop, evaluations, saving, and going on from a file.

    file = Checkpoint(path, every, "sft", config, {"demonstrations": demonstrations}, model, optimiser)
    with Steps("SFT", config.steps, evaluate=..., evaluate_every=50, checkpoint=file) as steps:
        for step in steps:              # 0, 1, ...; after a resume from where the run stopped
            loss = ...
            steps.log(loss=loss)        # joins the row of the history that ends this step
    return SFTResult(model, steps.history, steps.interrupted)

Left out: several checkpoints of one run, and the state of environments, which cannot be saved.
"""

import copy
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from tqdm.auto import tqdm

from rlhf_lab.training.files import CheckpointError, fingerprint, load_checkpoint, save_checkpoint
from rlhf_lab.training.history import History

Numbers = Mapping[str, float | None]


class Checkpoint:
    """The file from which a run goes on bit-identically: weights, optimiser, step, history, and what it was made from.

    Randomness needs no state of its own: every step draws from `generator_for(seed, ..., step)`.

    Args:
        path: of the file; None keeps nothing.
        every: steps between savings; saved also at the end, at an interrupt, and when something is not finite.
        recipe, config: a run with others is refused.
        inputs: name -> what the run learns from (records, texts, modules); a run with others is refused.
        model, optimiser: whose state is kept.
        extra: what else the recipe needs to go on; numbers, tensors and containers of them.
        several_updates: a step of the run takes several of the optimiser's, so that a failure may come between them;
            then the state at the end of each step is kept in memory, and that is what is saved after a failure.
    """

    def __init__(
        self,
        path: str | Path | None,
        every: int,
        recipe: str,
        config: Any,
        inputs: Mapping[str, object],
        model: torch.nn.Module,
        optimiser: torch.optim.Optimizer,
        extra: dict[str, Any] | None = None,
        several_updates: bool = False,
    ):
        self.path, self.every = None if path is None else Path(path), every
        self.model, self.optimiser, self.several_updates = model, optimiser, several_updates
        self.extra = {} if extra is None else extra
        self.run = {"recipe": recipe} | asdict(config)
        if self.path is not None:
            self.run |= {f"the input {name}": fingerprint(part) for name, part in inputs.items()}
        self._good: dict[str, Any] = {}

    def restore(self) -> tuple[int, History]:
        """The step to go on from and the history up to it; 0 and an empty one where there is no file.

        Raises:
            CheckpointError: it is damaged, or of another recipe, config, input or model.
        """
        if self.path is None or not self.path.exists():
            return 0, History()
        state = load_checkpoint(self.path)
        saved = state.get("run") or {}
        if different := next((key for key in self.run | saved if saved.get(key) != self.run.get(key)), None):
            there, here = saved.get(different), self.run.get(different)
            values = "" if different.startswith("the input") else f": {there!r} there, {here!r} here"
            raise CheckpointError(
                f"{self.path} is of another run ({different} differs{values}); give what it was made with, "
                "or another file"
            )
        try:
            self.model.load_state_dict(state["model"])
            self.optimiser.load_state_dict(state["optimiser"])
        except (RuntimeError, ValueError) as error:
            raise CheckpointError(
                f"{self.path} is of another model; give the one it was made with, or another file"
            ) from error
        self.extra.update(state["extra"])
        return state["step"], History.from_list(state["history"])

    def save(self, step: int, history: History) -> None:
        """Write the state as it is now; nothing is done without a path."""
        if self.path is not None:
            save_checkpoint(self.path, self._state(step, history))

    def mark(self, step: int, history: History) -> None:
        """The state is good as it is now; a copy is kept where a failure could come between two updates."""
        if self.path is not None and self.several_updates:
            self._good = {}  # the state itself is good now, and two copies would need as much memory again
            self._good = copy.deepcopy(self._state(step, history))

    def save_good(self, step: int, history: History) -> int:
        """After a failure: write the state that was good last, and return the step it is of."""
        good = self._good or self._state(step, history)
        if self.path is not None:
            save_checkpoint(self.path, good)
        return good["step"]

    def _state(self, step: int, history: History) -> dict[str, Any]:
        state = {"model": self.model.state_dict(), "optimiser": self.optimiser.state_dict(), "extra": self.extra}
        return state | {"run": self.run, "step": step, "history": history.to_list()}


class Steps:
    """A context manager that yields the steps of a run; see the module.

    Args:
        title: of the bar.
        total: steps in all.
        evaluate: called without arguments at step 0, after every `evaluate_every` steps and at the end; its numbers
            join the history. After an interrupt only where no checkpoint lets the run go on.
        evaluate_every: in steps.
        checkpoint: the file of the run, if it can be resumed.
        number: steps done -> the number of their row in the history, where that counts something else.

    Attributes:
        history: a row a step.
        timings: part -> seconds, one number for each step that this process did; see `timed`.
    """

    def __init__(
        self,
        title: str,
        total: int,
        evaluate: Callable[[], Numbers] | None = None,
        evaluate_every: int = 1,
        checkpoint: Checkpoint | None = None,
        number: Callable[[int], int] = int,
    ):
        self.title, self.total, self.number = title, total, number
        self.evaluate, self.evaluate_every, self.checkpoint = evaluate, evaluate_every, checkpoint
        self.done, self.history = checkpoint.restore() if checkpoint else (0, History())
        self.timings: dict[str, list[float]] = {}
        self._row: list[Numbers] = []

    @property
    def interrupted(self) -> bool:
        """Whether the run ended early."""
        return self.done < self.total

    def log(self, *parts: Numbers, **numbers: float | None) -> None:
        """Add numbers to the row of this step."""
        self._row += [*parts, numbers]

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Note the seconds of a block; they are not in the history, which is bit-identical from run to run."""
        start = time.perf_counter()
        yield
        self.timings.setdefault(part, []).append(time.perf_counter() - start)

    def __enter__(self) -> "Steps":
        self._stop = graceful_interrupt()
        self._interrupt = self._stop.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._stop.__exit__(None, None, None)
        if isinstance(error, FloatingPointError) and self.checkpoint and self.checkpoint.path is not None:
            step = self.checkpoint.save_good(self.done, self.history)
            error.add_note(f"The last good state, after step {step}, is in {self.checkpoint.path}.")

    def __iter__(self) -> Iterator[int]:
        if self.evaluate and not len(self.history):
            self.history.add(self.number(0), self.evaluate())
        if self.checkpoint:
            self.checkpoint.mark(self.done, self.history)
        for step in self._bar():
            self._row = []
            yield step
            self.done = step + 1
            last = self.done == self.total
            self._end_row(over=last or (self._interrupt.requested and self.checkpoint is None))
            stop = self._interrupt.requested  # also where it came during an evaluation
            if self.checkpoint and (last or stop or self.done % self.checkpoint.every == 0):
                self.checkpoint.save(self.done, self.history)
            if stop:
                break

    def _bar(self) -> Iterator[int]:
        steps, off = range(self.done, self.total), bars_off()
        return iter(tqdm(steps, desc=self.title, initial=self.done, total=self.total, leave=False, disable=off))

    def _end_row(self, over: bool) -> None:
        """Evaluate if it is time, and end the row of the step."""
        due = over or self.done % self.evaluate_every == 0
        seen = self.evaluate() if self.evaluate and due else {}
        self.history.add(self.number(self.done), *self._row, seen)
        if self.checkpoint:
            self.checkpoint.mark(self.done, self.history)


def bars_off() -> bool:
    """Whether TQDM_DISABLE asks for no progress bars; in a notebook tqdm itself does not look at it."""
    return os.environ.get("TQDM_DISABLE", "0") not in ("", "0")


@contextmanager
def graceful_interrupt() -> Iterator[SimpleNamespace]:
    """Turn the first Ctrl-C into `.requested`, so that a loop stops between two steps.

    The second one raises KeyboardInterrupt, and the handler of before is put back when the block ends.
    Outside the main thread, where signals cannot be caught, nothing changes.

    Example:
        >>> with graceful_interrupt() as interrupt:
        ...     signal.raise_signal(signal.SIGINT)
        ...     print(interrupt.requested)
        True
    """
    state = SimpleNamespace(requested=False)
    if threading.current_thread() is not threading.main_thread():
        yield state
        return

    def handle(number: int, frame: object) -> None:
        if state.requested:
            raise KeyboardInterrupt
        state.requested = True

    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield state
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL if previous is None else previous)
