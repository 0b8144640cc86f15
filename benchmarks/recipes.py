"""How fast is `train_sft`?  `python run.py bench recipes` answers in two parts, in one run on one machine.

1. An optimiser step on the town's demonstrations against its bare passes: the forward and backward passes of the same
   model on the same shapes, with the optimiser's step and nothing around them. No fine-tuning with these passes can be
   faster than ratio 1.
2. The same against TRL's `SFTTrainer`, where `trl` and `datasets` are installed (the extra `bench`): with as many rows
   in a pass as here, and with all rows of a step in one. The loss of both on the same rows stands beside the times.

What is compared is timed in turn, and medians of ratios are printed. Learning rates are near 0.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from rows import at_least
from timing import (
    WARM_UP,
    against_bare_passes,
    machine,
    print_ratios,
    print_seconds,
    shipped_model,
    size_of,
    timed,
)
from trl_steps import MISSING, Taken, against_trl, trl_is_there, trl_steps

from rlhf_lab.experience.updates import imitation_gradient
from rlhf_lab.models.language_model import LanguageModel
from rlhf_lab.models.tokens import encode_prompts, encode_responses, make_batch
from rlhf_lab.recipes.sft import SFTConfig, train_sft
from rlhf_lab.records import Demonstration
from rlhf_lab.worlds import town

STILL = SFTConfig(learning_rate=1e-7, weight_decay=0.0, warmup=0)


def train(lm: LanguageModel, demonstrations: Sequence[Demonstration], config: SFTConfig, look: Callable) -> object:
    """Train with a look after every step."""
    return train_sft(lm, demonstrations, replace(config, evaluate_every=1), evaluate=look)


# -- TRL --------------------------------------------------------------------------------------------------------------
def trl_rows(demonstrations: Sequence[Demonstration]) -> list[dict]:
    """Prompts with completions in messages, as TRL's documentation has them; the loss is on the completion alone."""
    rows = []
    for one in demonstrations:
        completion = [{"role": "assistant", "content": one.response}]
        rows.append({"prompt": [vars(message) for message in one.prompt], "completion": completion})
    return rows


def trl_sft_steps(
    lm: LanguageModel, demonstrations: Sequence[Demonstration], config: SFTConfig, micro_batch: int, **options
) -> Taken:
    """Steps of TRL's trainer on a copy of the model."""
    model = lm.copy().model.requires_grad_(True)
    options |= {"learning_rate": config.learning_rate, "max_length": lm.max_length, "processing_class": lm.tokenizer}
    rows, per_step = trl_rows(demonstrations), config.demonstrations_per_step
    return trl_steps("SFT", model, rows, config.steps, per_step, micro_batch=micro_batch, **options)


def losses_on_the_same_rows(lm: LanguageModel, demonstrations: Sequence[Demonstration]) -> tuple[float, float]:
    """Loss in nats per reply token, here and by TRL."""
    config = replace(STILL, steps=1, demonstrations_per_step=len(demonstrations))
    prompts = encode_prompts(lm, [one.prompt for one in demonstrations])
    replies = encode_responses(lm, [one.response for one in demonstrations], config.max_new_tokens)
    model = lm.copy()
    model.model.requires_grad_(True)
    ours = imitation_gradient(model, make_batch(prompts, replies, lm.pad_id), config.micro_batch)
    logged = {"logging_strategy": "steps", "logging_steps": 1}
    return ours, trl_sft_steps(lm, demonstrations, config, len(demonstrations), **logged).losses[0]


# -- what is printed --------------------------------------------------------------------------------------------------
def report_bare(lm: LanguageModel, demonstrations: Sequence[Demonstration], config: SFTConfig) -> None:
    pairs = against_bare_passes(partial(train, lm, demonstrations, config))
    print(
        f"   {config.demonstrations_per_step} demonstrations a step, {config.micro_batch} rows in a pass; "
        f"median of {len(pairs.library)} steps"
    )
    print_seconds(pairs, "bare passes")
    print_ratios("library / bare passes", pairs, "target: at most 1.25")


def report_trl(lm: LanguageModel, demonstrations: Sequence[Demonstration], config: SFTConfig, rounds: int) -> None:
    ours, theirs = losses_on_the_same_rows(lm, demonstrations[: config.demonstrations_per_step])
    print(f"   loss on the same rows: {ours:.6f} nats a reply token, TRL {theirs:.6f}, {abs(ours - theirs):.1g} apart")
    for rows in (config.micro_batch, config.demonstrations_per_step):
        pairs = against_trl(
            lambda: timed(partial(train, lm, demonstrations, config), lambda lm: None)[0].library,
            partial(trl_sft_steps, lm, demonstrations, config, rows),
            rounds,
        )
        print(f"   {config.demonstrations_per_step} demonstrations a step, TRL with {rows} rows in a pass:")
        print_seconds(pairs, "TRL")
        print_ratios(f"library / TRL, rounds of {config.steps} steps", pairs, "target: below 1")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="run.py bench recipes", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, a few steps: shows that it works")
    parser.add_argument("--steps", type=at_least(1), default=None, help="steps that are timed (20; quick: 3)")
    parser.add_argument("--rounds", type=at_least(1), default=None, help="rounds against TRL (6; quick: 1)")
    parser.add_argument("--threads", type=at_least(1), default=1, help="threads of torch (1)")
    parser.add_argument("--parts", type=int, nargs="+", default=[1, 2], choices=[1, 2])
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    steps = options.steps or (3 if options.quick else 20)
    lm, name = shipped_model()
    config = replace(STILL, steps=steps + WARM_UP)
    if options.quick:
        config = replace(config, demonstrations_per_step=8, micro_batch=4)
    demonstrations = town.demonstrations(8 * config.demonstrations_per_step)
    if 1 in options.parts:
        print(f"1. A step of SFT on {name} ({size_of(lm.model):,} parameters), {machine()}")
        report_bare(lm, demonstrations, config)
    if 2 in options.parts and not trl_is_there():
        print(f"2. Against TRL's SFTTrainer: {MISSING}")
    elif 2 in options.parts:
        import trl

        print(f"2. A step of SFT against TRL {trl.__version__}'s SFTTrainer, {machine()}")
        report_trl(lm, demonstrations, config, options.rounds or (1 if options.quick else 6))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
