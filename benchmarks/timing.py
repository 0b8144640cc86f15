"""Timing in turn, for the benchmarks of speed: the steps of a recipe, and after each another thing on the same machine.

Machines are noisy, so what is compared is timed in turn, and the medians of the paired ratios are printed. The other
thing is often a step's bare passes: the same forward and backward passes of the same models on the same shapes, with
the optimiser's steps and nothing around them. No recipe with these passes can be faster than ratio 1.
"""

import copy
import math
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import torch
import transformers
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel

from rlhf_lab.models.language_model import LanguageModel, ModelError, load_language_model, wrap_model
from rlhf_lab.recipes.pretrain import train_tokenizer
from rlhf_lab.worlds import town

WARM_UP = 2  # steps that are run and not counted


# -- models and the machine -----------------------------------------------------------------------------------------
def random_model(tokenizer, layers: int, width: int, context: int = 192) -> LanguageModel:
    """A GPT-2 with random weights. It hardly ever ends a reply, so replies are as long as they may be."""
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=context, n_layer=layers, n_embd=width, n_head=max(2, width // 32),
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return wrap_model(GPT2LMHeadModel(config), tokenizer)


def shipped_model() -> tuple[LanguageModel, str]:
    """The model of data/, or where there is none yet a random one of its shape; and which it is."""
    try:
        return load_language_model("tiny"), "the shipped model"
    except ModelError:
        return random_model(train_tokenizer(town.documents(300, 0)), 4, 128), "random weights, 4 layers, d = 128"


def size_of(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def machine() -> str:
    load = f"load average {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "load unknown"
    return (
        f"torch {torch.__version__}, transformers {transformers.__version__}, "
        f"{torch.get_num_threads()} thread(s) of {os.cpu_count()} cores, {load}"
    )


# -- timing in turn -------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Clock:
    """Seconds on the wall and of the processor; the second is steadier where other programs want the cores too."""

    wall: float
    cpu: float

    @classmethod
    def now(cls) -> "Clock":
        return cls(time.perf_counter(), time.process_time())

    def __sub__(self, other: "Clock") -> "Clock":
        return Clock(self.wall - other.wall, self.cpu - other.cpu)


@dataclass
class Pairs:
    """What was timed in turn: an iteration of the library, then the other thing."""

    library: list[Clock]
    other: list[Clock]

    def ratios(self, clock: str) -> list[float]:
        pairs = zip(self.library, self.other, strict=True)
        return [getattr(a, clock) / getattr(b, clock) for a, b in pairs]


def timed(train: Callable[[Callable], object], other: Callable[[object], object]) -> tuple[Pairs, object]:
    """Train, and after every step run and time `other`; the first steps warm up and are not counted.

    Args:
        train: gets what the recipe takes as `evaluate`, called after every step with the model.
        other: gets the model; called once before the first step too.

    Returns:
        The pairs, and what `train` gave.
    """
    pairs, started = Pairs([], []), []

    def evaluate(model) -> dict:
        now = Clock.now()
        if started:  # a whole step lies behind, with all that the recipe does in it
            pairs.library.append(now - started[-1])
        before = Clock.now()
        other(model)
        if started:
            pairs.other.append(Clock.now() - before)
        started.append(Clock.now())
        return {}

    result = train(evaluate)
    counted = slice(min(WARM_UP, len(pairs.library) - 1), None)
    return Pairs(pairs.library[counted], pairs.other[counted]), result


# -- the bare passes -----------------------------------------------------------------------------------------------
@dataclass
class Pass:
    """One forward pass as it was seen: which backbone, what shapes, with gradient or not."""

    backbone: torch.nn.Module
    shape: tuple[int, int]
    mask: Tensor | None
    positions: Tensor | None
    cached: bool
    first: bool  # of a cache
    gradient: bool
    kept: int = 0  # positions that went through the head


class Tape:
    """Writes down the passes and optimiser steps of an iteration, and plays them again with nothing around them."""

    def __init__(self, *models):
        self.passes: list[Pass | None] = []  # None: an optimiser step
        self.heads, self.twins, self.parts = {}, {}, defaultdict(list)

        # Functions, not methods: train_rlhf copies the models with their hooks, and would copy a method's tape too.
        def see_backbone(module, args, kwargs):
            embedded, cache = kwargs.get("inputs_embeds"), kwargs.get("past_key_values")
            inputs = kwargs.get("input_ids", *args[:1]) if embedded is None else embedded
            self.passes.append(
                Pass(
                    module,
                    inputs.shape[:2],
                    kwargs.get("attention_mask"),
                    kwargs.get("position_ids"),
                    cached=cache is not None,
                    first=cache is not None and cache.get_seq_length() == 0,
                    gradient=torch.is_grad_enabled(),
                )
            )

        def see_head(module, args):
            self.passes[-1].kept = args[0].shape[1]
            self.heads[id(self.passes[-1].backbone)] = module

        for model in models:
            model.base_model.register_forward_pre_hook(see_backbone, with_kwargs=True)
            (model.get_output_embeddings() or model.score).register_forward_pre_hook(see_head)
        self.handle = register_optimizer_step_post_hook(lambda *_: self.passes.append(None))

    def prepare(self) -> None:
        """Copies of the models that took part, with an optimiser, so that playing does not touch the run."""
        for seen in filter(None, self.passes):
            if id(seen.backbone) not in self.twins:
                # Copied together, because a language model's head may share its embedding's weights.
                twin = copy.deepcopy((seen.backbone, self.heads[id(seen.backbone)]))
                for module in twin:
                    module._forward_pre_hooks.clear()
                self.twins[id(seen.backbone)] = twin
        trained = {id(seen.backbone) for seen in filter(None, self.passes) if seen.gradient}
        modules = torch.nn.ModuleList(module for key in trained for module in self.twins[key])
        self.optimiser = torch.optim.AdamW(modules.parameters(), lr=1e-7, weight_decay=0.0, fused=True)

    def play(self) -> None:
        """All passes and steps again, on random tokens of the same shapes; then the tape is empty."""
        passes, self.passes = self.passes, []
        ids = torch.randint(10, 200, (max(math.prod(p.shape) for p in passes if p),))
        start, part = Clock.now(), "sample"
        seconds = dict.fromkeys(("sample", "score", "optimise"), 0.0)
        cache = None
        for seen in passes:
            kind = "optimise" if seen is None or seen.gradient else "sample" if seen.cached else "score"
            if kind != part:
                now = Clock.now()
                seconds[part] += (now - start).wall
                start, part = now, kind
            if seen is None:
                self.optimiser.step()
                self.optimiser.zero_grad(set_to_none=True)
                continue
            cache = DynamicCache() if seen.first else cache
            self._pass(seen, ids[: math.prod(seen.shape)].view(seen.shape), cache)
        seconds[part] += (Clock.now() - start).wall
        for name, value in seconds.items():
            self.parts[name].append(value)
        self.passes = []  # the optimiser's own hook has written on it

    def _pass(self, seen: Pass, ids: Tensor, cache) -> None:
        backbone, head = self.twins[id(seen.backbone)]
        if seen.cached and not seen.first and cache.layers[0].keys.shape[0] != len(ids):
            cache.batch_select_indices(torch.arange(len(ids)))  # rows that ended have left
        with torch.set_grad_enabled(seen.gradient):
            states = backbone(
                ids, attention_mask=seen.mask, position_ids=seen.positions,
                past_key_values=cache if seen.cached else None, use_cache=seen.cached,
            ).last_hidden_state  # fmt: skip
            output = head(states[:, -seen.kept :])
        if seen.gradient:
            output.backward(torch.ones_like(output))

    def close(self) -> None:
        self.handle.remove()


def against_bare_passes(train: Callable[[Callable], object], *others: torch.nn.Module) -> Pairs:
    """A step of a recipe that trains one model and its bare passes in turn; `train` as for `timed`.

    Args:
        others: models whose passes count too, such as the reference.
    """
    tapes: list[Tape] = []

    def play(trained) -> None:
        if not tapes:  # before the first step: from now on its passes are written down
            tapes.append(Tape(trained.model, *others))
            return
        if not tapes[0].twins:
            tapes[0].prepare()
        tapes[0].play()

    try:
        return timed(train, play)[0]
    finally:
        for tape in tapes:
            tape.close()


# -- what is printed ------------------------------------------------------------------------------------------------
def median_and_spread(numbers: list[float]) -> str:
    if len(numbers) < 3:
        return f"{statistics.median(numbers):.3f}"
    low, middle, high = statistics.quantiles(numbers, n=4)
    return f"{middle:.3f} [{low:.3f}, {high:.3f}]"


def print_ratios(name: str, pairs: Pairs, target: str) -> None:
    wall, cpu = (median_and_spread(pairs.ratios(clock)) for clock in ("wall", "cpu"))
    print(f"   {name}, {len(pairs.library)} pairs, median [quartiles]: {wall} ({target})")
    print(f"   the same in processor time: {cpu}\n", flush=True)


def print_seconds(pairs: Pairs, other: str) -> None:
    ours, theirs = (statistics.median(clock.wall for clock in side) for side in (pairs.library, pairs.other))
    print(f"   library {ours:.3f} s, {other} {theirs:.3f} s")
