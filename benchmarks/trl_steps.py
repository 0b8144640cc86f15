"""What a step of TRL's trainers takes, for the benchmarks that compare with them (the extra `bench`)."""

import importlib.util
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from timing import WARM_UP, Clock, Pairs

CHECKPOINTING = ("gradient_checkpointing", "activation_checkpointing")  # an option under its old name and its new one
QUIET = {"report_to": "none", "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True}
MISSING = "left out, trl and datasets are not installed: pip install '.[bench]'\n"


def trl_is_there() -> bool:
    return all(importlib.util.find_spec(name) for name in ("trl", "datasets"))


@dataclass(frozen=True)
class Taken:
    """What each step took, and its loss where TRL was told to log."""

    clocks: list[Clock]
    losses: list[float]


def trl_steps(
    name: str,
    model: Any,
    rows: list[dict],
    steps: int,
    rows_per_step: int,
    *,
    micro_batch: int | None = None,
    **options: Any,
) -> Taken:
    """Steps of TRL's trainer on a model, which it trains.

    Args:
        name: such as "Reward": then it is RewardTrainer with a RewardConfig.
        rows: of its data set; each step takes `rows_per_step`.
        micro_batch: rows in a pass; None: all of a step.
        options: more of the trainer's arguments; those that are fields of its config go there.
    """
    import trl
    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback

    class Watch(TrainerCallback):
        def __init__(self):
            self.clocks = []

        def on_step_begin(self, args, state, control, **_):
            self.started = Clock.now()

        def on_step_end(self, args, state, control, **_):
            self.clocks.append(Clock.now() - self.started)

    micro_batch, config, watch = micro_batch or rows_per_step, getattr(trl, f"{name}Config"), Watch()
    known = config.__dataclass_fields__
    plain = {option: False for option in CHECKPOINTING if option in known}
    with tempfile.TemporaryDirectory() as folder:
        args = config(
            output_dir=folder, max_steps=steps, per_device_train_batch_size=micro_batch,
            gradient_accumulation_steps=rows_per_step // micro_batch, use_cpu=True, bf16=False,
            **QUIET | plain | {key: value for key, value in options.items() if key in known},
        )  # fmt: skip
        trainer = getattr(trl, f"{name}Trainer")(
            model=model, args=args, train_dataset=Dataset.from_list(rows), callbacks=[watch],
            **{key: value for key, value in options.items() if key not in known},
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return Taken(watch.clocks, [log["loss"] for log in trainer.state.log_history if "loss" in log])


def against_trl(ours: Callable[[], list[Clock]], theirs: Callable[[], Taken], rounds: int) -> Pairs:
    """Some steps of the recipe, then as many of TRL's trainer, and again; median steps of each round."""
    pairs = Pairs([], [])
    for _ in range(rounds):
        pairs.library.append(median_clock(ours()))
        taken = theirs().clocks
        pairs.other.append(median_clock(taken[min(WARM_UP, len(taken) - 1) :]))
    return pairs


def median_clock(clocks: list[Clock]) -> Clock:
    return Clock(*(statistics.median(getattr(clock, name) for clock in clocks) for name in ("wall", "cpu")))
