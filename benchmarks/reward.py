"""How fast is `train_reward_model`?  `python run.py bench reward` answers in two parts, in one run on one machine.

1. An optimiser step on rankings of 4 against its bare passes: the forward and backward passes of the same model on the
   same shapes, with the optimiser's step and nothing around them. No reward model trained by these passes can be
   faster than ratio 1. So it is said that every reply is encoded once, however many pairs it is in.
2. The same against TRL's `RewardTrainer`, where `trl` and `datasets` are installed (the extra `bench`); else a line
   says that they are not. On comparisons both do the same passes; of a ranking of 4 TRL takes the six pairs.

Machines are noisy, so what is compared is timed in turn, and medians of ratios are printed. Learning rates are near 0.
"""

import argparse
import statistics
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from random import Random

import torch
from rows import at_least
from timing import (
    WARM_UP,
    Pairs,
    against_bare_passes,
    machine,
    print_ratios,
    print_seconds,
    shipped_model,
    size_of,
    timed,
)
from trl_steps import MISSING, Taken, against_trl, trl_is_there, trl_steps

from rlhf_lab.models.language_model import LanguageModel
from rlhf_lab.models.reward_model import RewardModel
from rlhf_lab.recipes.reward import RewardConfig, train_reward_model
from rlhf_lab.recipes.reward_data import prepare_feedback
from rlhf_lab.records import Comparison, Ranking
from rlhf_lab.training.randomness import generator_for
from rlhf_lab.worlds import town
from rlhf_lab.worlds.town.skills import write_reply

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


def train(lm: LanguageModel, feedback: list, config: RewardConfig, look: Callable) -> object:
    """Train with a look after every step."""
    return train_reward_model(lm, feedback, replace(config, evaluate_every=1), evaluate=look)


# -- part 2: TRL ----------------------------------------------------------------------------------------------------
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


def trl_reward_steps(lm: LanguageModel, feedback: list, steps: int, records_per_step: int) -> Taken:
    """What each step of TRL's trainer takes on the same model and as many records a step."""
    rows, rm = trl_rows(feedback), RewardModel.from_language_model(lm, torch.Generator().manual_seed(0))
    rm.model.requires_grad_(True)
    per_step = records_per_step * len(rows) // len(feedback)
    options = {"learning_rate": STILL.learning_rate, "max_length": lm.max_length, "processing_class": lm.tokenizer}
    return trl_steps("Reward", rm.model, rows, steps, per_step, **options)


def reward_against_trl(lm: LanguageModel, feedback: list, config: RewardConfig, rounds: int, steps: int) -> Pairs:
    """Some steps of the recipe, then as many of TRL's trainer, and again; median steps of each round."""
    some = feedback[: steps * config.rankings_per_step]
    return against_trl(
        lambda: timed(partial(train, lm, some, config), lambda rm: None)[0].library,
        lambda: trl_reward_steps(lm, some, steps, config.rankings_per_step),
        rounds,
    )


# -- what is printed ------------------------------------------------------------------------------------------------
def report_bare(steps: int, quick: bool) -> None:
    lm, name = shipped_model()
    config = replace(STILL, rankings_per_step=4) if quick else STILL
    feedback = rankings((steps + WARM_UP) * config.rankings_per_step)
    pairs = against_bare_passes(partial(train, lm, feedback, config))
    judged = prepare_feedback(lm, feedback, config.loss, config.max_new_tokens).judged
    lengths = [len(one.prompt) + len(reply) for one in judged for reply in one.replies]
    print(f"1. One step of the reward model on {name} ({size_of(lm.model):,} parameters), {machine()}")
    print(
        f"   {config.rankings_per_step} rankings of 4, rows of {statistics.mean(lengths):.1f} tokens with the prompt, "
        f"{config.micro_batch} rankings in a pass; median of {len(pairs.library)} steps"
    )
    print_seconds(pairs, "bare passes")
    print_ratios("library / bare passes", pairs, "target: at most 1.25")


def report_trl(steps: int, quick: bool) -> None:
    if not trl_is_there():
        print(f"2. Against TRL's RewardTrainer: {MISSING}")
        return
    import trl

    lm, _ = shipped_model()
    config, rounds = replace(STILL, rankings_per_step=4 if quick else 16), 1 if quick else 4
    ranked = rankings(steps * config.rankings_per_step)
    compared = [Comparison(r.prompt, r.replies[r.pairs()[0][0]], r.replies[r.pairs()[0][1]]) for r in ranked]
    print(f"2. A step against TRL {trl.__version__}'s RewardTrainer, {machine()}")
    for name, feedback in (("comparisons", compared), ("rankings of 4", ranked)):
        pairs = reward_against_trl(lm, feedback, config, rounds, steps)
        print(f"   {config.rankings_per_step} {name} a step:")
        print_seconds(pairs, "TRL")
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
