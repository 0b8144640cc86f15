"""The steps of a run: what shows them, stops them, saves them and goes on from where they stopped."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import torch

from rlhf_lab.training.files import CheckpointError, load_checkpoint, save_checkpoint
from rlhf_lab.training.history import History


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

    def handle(number, frame):
        if state.requested:
            raise KeyboardInterrupt
        state.requested = True

    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield state
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL if previous is None else previous)


class RunState:
    """What a training loop must keep to go on bit-identically: weights, optimiser, step, history.

    Randomness needs no state of its own: every step draws from `generator_for(seed, ..., step)`.
    """

    def __init__(self, recipe: str, config: object, model: torch.nn.Module, optimiser: torch.optim.Optimizer):
        self.recipe, self.config, self.model, self.optimiser = recipe, asdict(config), model, optimiser
        self.step, self.history, self.extra = 0, History(), {}

    def save(self, path: str | Path | None) -> None:
        """Write everything to `path`; nothing is done without one."""
        if path is not None:
            state = {"recipe": self.recipe, "config": self.config, "step": self.step, "extra": self.extra}
            state |= {"model": self.model.state_dict(), "optimiser": self.optimiser.state_dict()}
            save_checkpoint(path, state | {"history": self.history.to_list()})

    def restore(self, path: str | Path | None) -> None:
        """Go on from `path` if it exists.

        Raises:
            CheckpointError: it is damaged, or of another recipe, config or model.
        """
        if path is None or not Path(path).exists():
            return
        state = load_checkpoint(path)
        saved = {"recipe": state.get("recipe")} | (state.get("config") or {})
        wanted = {"recipe": self.recipe} | self.config
        if saved != wanted:
            name = next(key for key in wanted | saved if saved.get(key) != wanted.get(key))
            raise CheckpointError(
                f"{path} is of another run ({name} is {saved.get(name)!r} there, {wanted.get(name)!r} here); "
                "use the configuration it was made with, or another file"
            )
        try:
            self.model.load_state_dict(state["model"])
            self.optimiser.load_state_dict(state["optimiser"])
        except (RuntimeError, ValueError) as error:
            raise CheckpointError(
                f"{path} is of another model; give the one it was made with, or another file"
            ) from error
        self.step, self.extra = state["step"], state["extra"]
        self.history = History.from_list(state["history"])


def bars_off() -> bool:
    """Whether TQDM_DISABLE asks for no progress bars; in a notebook tqdm itself does not look at it."""
    return os.environ.get("TQDM_DISABLE", "0") not in ("", "0")
