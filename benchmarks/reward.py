"""How fast is `train_reward_model`?  `python run.py bench reward` answers in two parts, in one run on one machine.

1. An optimiser step on rankings of 4 against its bare passes: the forward and backward passes of the same model on the
   same shapes, with the optimiser's step and nothing around them. No reward model trained by these passes can be
   faster than ratio 1. So it is said that every reply is encoded once, however many pairs it is in.
2. The same against TRL's `RewardTrainer`, where `trl` and `datasets` are installed (the extra `bench`); else a line
   says that they are not. On comparisons both do the same passes; of a ranking of 4 TRL takes the six pairs.

Machines are noisy, so what is compared is timed in turn, and medians of ratios are printed. Learning rates are near 0.
"""

import argparse
import importlib.util
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import replace
from random import Random

import torch
from rlhf import WARM_UP, Clock, Pairs, Tape, machine, print_ratios, shipped_model, size_of
from rows import at_least

from rlhf_lab.models.language_model import LanguageModel
from rlhf_lab.models.reward_model import RewardModel
from rlhf_lab.recipes.reward import RewardConfig, train_reward_model
from rlhf_lab.recipes.reward_data import prepare_feedback
from rlhf_lab.records import Comparison, Ranking
from rlhf_lab.training.randomness import generator_for
from rlhf_lab.worlds import town
from rlhf_lab.worlds.town.skills import write_reply

CHECKPOINTING = ("gradient_checkpointing", "activation_checkpointing")  # an option under its old name and its new one
STILL = RewardConfig(epochs=1, learning_rate=1e-7, weight_decay=0.0, warmup=0)


def rankings(count: int, replies: int = 4) -> list[Ranking]:
    """Rankings of the town by the careful rater, of so many different replies as its web writes them."""
    random, generator, found = Random("bench"), generator_for(0, "bench"), []
    for prompt in town.prompts("train", 20 * count, seed=0):
        texts = list(dict.fromkeys(write_reply(prompt, town.WEB, random) for _ in range(4 * replies)))[:replies]
        if len(texts) == replies and len(found) < count:
            verdicts = [town.score(prompt, text) for text in texts]
            found.append(town.CAREFUL.rank(prompt.conversation, texts, verdicts, generator).record)
    return found


def timed(lm: LanguageModel, feedback: list, config: RewardConfig, other: Callable[[RewardModel], object]) -> Pairs:
    """Train, and after every step run and time `other`; the first steps warm up and are not counted."""
    pairs, started = Pairs([], []), []

    def evaluate(rm: RewardModel) -> dict:
        now = Clock.now()
        if started:  # a whole step lies behind, with all that the recipe does in it
            pairs.library.append(now - started[-1])
        before = Clock.now()
        other(rm)
        if started:
            pairs.other.append(Clock.now() - before)
        started.append(Clock.now())
        return {}

    train_reward_model(lm, feedback, replace(config, evaluate_every=1), evaluate=evaluate)
    counted = slice(min(WARM_UP, len(pairs.library) - 1), None)
    return Pairs(pairs.library[counted], pairs.other[counted])


# -- part 1: the bare passes ----------------------------------------------------------------------------------------
def against_bare_passes(lm: LanguageModel, feedback: list, config: RewardConfig) -> Pairs:
    """A step of the recipe and its bare passes in turn."""
    tapes: list[Tape] = []

    def play(rm: RewardModel) -> None:
        if not tapes:  # before the first step: from now on its passes are written down
            tapes.append(Tape(rm.model))
            return
        if not tapes[0].twins:
            tapes[0].prepare()
        tapes[0].play()

    try:
        return timed(lm, feedback, config, play)
    finally:
        for tape in tapes:
            tape.close()


# -- part 2: TRL ----------------------------------------------------------------------------------------------------
def trl_is_there() -> bool:
    return all(importlib.util.find_spec(name) for name in ("trl", "datasets"))


def trl_rows(feedback: list[Ranking | Comparison]) -> list[dict]:
    """Every pair as a row with a prompt, in messages, as TRL's documentation has them."""
    rows = []
    for record in feedback:
        prompt = [vars(message) for message in record.prompt]
        texts = [(record.chosen, record.rejected)] if isinstance(record, Comparison) else [
            (record.replies[b], record.replies[w]) for b, w in record.pairs()
        ]  # fmt: skip
        for chosen, rejected in texts:
            sides = {"chosen": chosen, "rejected": rejected}
            rows.append({"prompt": prompt} | {n: [{"role": "assistant", "content": t}] for n, t in sides.items()})
    return rows


def trl_steps(lm: LanguageModel, feedback: list, steps: int, records_per_step: int) -> list[Clock]:
    """What each step of TRL's trainer takes on the same model and as many records a step."""
    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback
    from trl import RewardConfig as TRLConfig, RewardTrainer

    class Watch(TrainerCallback):
        def __init__(self):
            self.taken = []

        def on_step_begin(self, args, state, control, **_):
            self.started = Clock.now()

        def on_step_end(self, args, state, control, **_):
            self.taken.append(Clock.now() - self.started)

    rows, watch = trl_rows(feedback), Watch()
    per_step = records_per_step * len(rows) // len(feedback)
    rm = RewardModel.from_language_model(lm, torch.Generator().manual_seed(0))
    rm.model.requires_grad_(True)
    with tempfile.TemporaryDirectory() as folder:
        quiet = {"report_to": "none", "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True}
        plain = {name: False for name in CHECKPOINTING if name in TRLConfig.__dataclass_fields__}
        args = TRLConfig(
            output_dir=folder, max_steps=steps, per_device_train_batch_size=per_step, use_cpu=True, bf16=False,
            learning_rate=STILL.learning_rate, max_length=lm.max_length, **quiet, **plain,
        )  # fmt: skip
        trainer = RewardTrainer(
            model=rm.model, args=args, processing_class=lm.tokenizer, train_dataset=Dataset.from_list(rows),
            callbacks=[watch],
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return watch.taken


def against_trl(lm: LanguageModel, feedback: list, config: RewardConfig, rounds: int, steps: int) -> Pairs:
    """Some steps of the recipe, then as many of TRL's trainer, and again; median steps of each round."""
    pairs, some = Pairs([], []), feedback[: steps * config.rankings_per_step]
    for _ in range(rounds):
        ours = timed(lm, some, config, lambda rm: None).library
        theirs = trl_steps(lm, some, steps, config.rankings_per_step)[min(WARM_UP, steps - 1) :]
        for side, clocks in ((pairs.library, ours), (pairs.other, theirs)):
            side.append(Clock(*(statistics.median(getattr(c, name) for c in clocks) for name in ("wall", "cpu"))))
    return pairs


# -- what is printed ------------------------------------------------------------------------------------------------
def report_bare(steps: int, quick: bool) -> None:
    lm, name = shipped_model()
    config = replace(STILL, rankings_per_step=4) if quick else STILL
    feedback = rankings((steps + WARM_UP) * config.rankings_per_step)
    pairs = against_bare_passes(lm, feedback, config)
    judged = prepare_feedback(lm, feedback, config.loss, config.max_new_tokens).judged
    lengths = [len(one.prompt) + len(reply) for one in judged for reply in one.replies]
    print(f"1. One step of the reward model on {name} ({size_of(lm.model):,} parameters), {machine()}")
    print(
        f"   {config.rankings_per_step} rankings of 4, rows of {statistics.mean(lengths):.1f} tokens with the prompt, "
        f"{config.micro_batch} rankings in a pass; median of {len(pairs.library)} steps"
    )
    ours, bare = (statistics.median(clock.wall for clock in side) for side in (pairs.library, pairs.other))
    print(f"   library {ours:.3f} s, bare passes {bare:.3f} s")
    print_ratios("library / bare passes", pairs, "target: at most 1.25")


def report_trl(steps: int, quick: bool) -> None:
    if not trl_is_there():
        print("2. Against TRL's RewardTrainer: left out, trl and datasets are not installed: pip install '.[bench]'\n")
        return
    import trl

    lm, _ = shipped_model()
    config, rounds = replace(STILL, rankings_per_step=4 if quick else 16), 1 if quick else 4
    ranked = rankings(steps * config.rankings_per_step)
    compared = [Comparison(r.prompt, r.replies[r.pairs()[0][0]], r.replies[r.pairs()[0][1]]) for r in ranked]
    print(f"2. A step against TRL {trl.__version__}'s RewardTrainer, {machine()}")
    for name, feedback in (("comparisons", compared), ("rankings of 4", ranked)):
        pairs = against_trl(lm, feedback, config, rounds, steps)
        ours, theirs = (statistics.median(clock.wall for clock in side) for side in (pairs.library, pairs.other))
        print(f"   {config.rankings_per_step} {name} a step: library {ours:.3f} s, TRL {theirs:.3f} s")
        print_ratios(f"library / TRL, rounds of {steps} steps", pairs, "target: below 1")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="run.py bench reward", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, a few steps: shows that it works")
    parser.add_argument("--steps", type=at_least(1), default=None, help="steps that are timed (20; quick: 3)")
    parser.add_argument("--threads", type=at_least(1), default=1, help="threads of torch (1)")
    parser.add_argument("--parts", type=int, nargs="+", default=[1, 2], choices=[1, 2])
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    steps = options.steps or (3 if options.quick else 20)
    if 1 in options.parts:
        report_bare(steps, options.quick)
    if 2 in options.parts:
        report_trl(max(steps, 2) if options.quick else steps, options.quick)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
