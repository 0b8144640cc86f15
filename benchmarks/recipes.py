"""How fast are SFT, DPO, RLOO and GRPO?  `python run.py bench recipes` answers in three parts, on one machine.

1. A step on the shipped model against its bare passes: the forward and backward passes of the same models on the same
   shapes, with the optimiser's steps and nothing around them. No recipe with these passes can be faster than ratio 1.
2. The same against TRL's trainers, where `trl` and `datasets` are installed (the extra `bench`), on a GPT-2 of two
   layers of 64; SFT on the shipped model. A loss of both on the same rows stands beside the times where one can be had.
3. How a step grows with its rows and with the model.

What is compared is timed in turn, and medians of ratios are printed. Learning rates are near 0.
"""

import argparse
import math
import statistics
from functools import partial

import torch
from recipe_cases import CASES, RATE, Case, demonstrations, dpo_there, pairs, sft_there
from rows import at_least
from timing import (
    WARM_UP,
    Pairs,
    against_bare_passes,
    machine,
    print_ratios,
    print_seconds,
    random_model,
    shipped_model,
    size_of,
    timed,
)
from trl_steps import MISSING, against_trl, trl_is_there

from rlhf_lab.experience.updates import imitation_gradient
from rlhf_lab.models.language_model import LanguageModel
from rlhf_lab.models.tokens import encode_prompts, encode_responses, make_batch
from rlhf_lab.recipes.direct import DPOConfig, train_dpo

GROWTH = {"rows": (16, 32, 64, 128), "width": (64, 128, 256)}
LOGGED = {"logging_strategy": "steps", "logging_steps": 1}


def against_bare(case: Case, lm: LanguageModel, steps: int, rows: int) -> Pairs:
    """A step and its bare passes in turn; the reference of RLOO and GRPO is the model given."""
    return against_bare_passes(partial(case.train, lm, steps + WARM_UP, rows), lm.model)


# -- the same loss ----------------------------------------------------------------------------------------------------
def losses_of_sft(lm: LanguageModel, rows: int) -> tuple[float, float]:
    """Nats per reply token on the same demonstrations, here and by TRL."""
    some = demonstrations(rows)
    prompts, replies = (
        encode_prompts(lm, [d.prompt for d in some]),
        encode_responses(lm, [d.response for d in some], 64),
    )
    model = lm.copy()
    model.model.requires_grad_(True)
    ours = imitation_gradient(model, make_batch(prompts, replies, lm.pad_id), 16)
    return ours, sft_there(lm, 1, rows, None, of=rows, **LOGGED).losses[0]


def losses_of_dpo(lm: LanguageModel, rows: int) -> tuple[float, float]:
    """Nats per pair on the same pairs, here and by TRL, with a reference that is another model."""
    other = moved(lm)
    config = DPOConfig(records_per_step=rows, micro_batch=16, learning_rate=RATE, warmup=0, temperature=1.0)
    ours = train_dpo(lm, pairs(rows)[:rows], config, reference=other).history.column("loss")[1][0]
    theirs = dpo_there(lm, 1, rows, None, ref_model=other.model, precompute_ref_log_probs=False, **LOGGED)
    return float(ours), theirs.losses[0]


def moved(lm: LanguageModel) -> LanguageModel:
    """A copy with every weight a little elsewhere."""
    lm, generator = lm.copy(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in lm.model.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    return lm


SAME = {"SFT": losses_of_sft, "DPO": losses_of_dpo}


# -- what is printed --------------------------------------------------------------------------------------------------
def report_bare(case: Case, lm: LanguageModel, steps: int, rows: int) -> None:
    pairs_of = against_bare(case, lm, steps, rows)
    print(
        f"   {case.name}: {rows} {case.unit} a step, {case.passes} in a pass; median of {len(pairs_of.library)} steps"
    )
    print_seconds(pairs_of, "bare passes")
    print_ratios("library / bare passes", pairs_of, "target: at most 1.25")


def report_trl(case: Case, lm: LanguageModel, steps: int, rows: int, rounds: int) -> None:
    if case.name in SAME:
        ours, theirs = SAME[case.name](lm, 16)
        print(
            f"   {case.name}: loss on the same rows {ours:.6f} nats, TRL {theirs:.6f}, {abs(ours - theirs):.1g} apart"
        )
    for micro_batch in dict.fromkeys((min(case.passes, rows // 2), None)):
        pairs_of = against_trl(
            lambda: timed(partial(case.train, lm, steps + WARM_UP, rows), lambda lm: None)[0].library,
            lambda m=micro_batch: case.trl(lm, steps + WARM_UP, rows, m),
            rounds,
        )
        print(
            f"   {case.name}: {rows} {case.unit} a step, TRL with {micro_batch or 'all'} rows of an update in a pass:"
        )
        print_seconds(pairs_of, "TRL")
        print_ratios(f"library / TRL, rounds of {steps} steps", pairs_of, "target: below 1")


def report_growth(case: Case, steps: int, quick: bool) -> None:
    tokenizer = shipped_model()[0].tokenizer
    print(f"   {case.name}, GPT-2 of 2 layers, seconds a step (ratio to the bare passes)")
    for name, sizes in GROWTH.items():
        points = []
        for size in sizes[:2] if quick else sizes:
            lm = random_model(tokenizer, 2, size if name == "width" else 64)
            taken = against_bare(case, lm, steps, size if name == "rows" else 32)
            seconds = statistics.median(clock.wall for clock in taken.library)
            points.append((size, size_of(lm.model), seconds, statistics.median(taken.ratios("wall"))))
        by = [(math.log(p[1 if name == "width" else 0]), math.log(p[2])) for p in points]
        slope = statistics.linear_regression(*zip(*by, strict=True)).slope
        what = "parameters" if name == "width" else "rows"
        said = ", ".join(f"{name} {size}: {seconds:.3f} ({ratio:.2f})" for size, _, seconds, ratio in points)
        print(f"      {said}; grows as {what} to the power {slope:.2f}", flush=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="run.py bench recipes", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, a few steps: shows that it works")
    parser.add_argument("--steps", type=at_least(1), default=None, help="steps that are timed (20; quick: 3)")
    parser.add_argument("--rounds", type=at_least(1), default=None, help="rounds against TRL (6; quick: 1)")
    parser.add_argument("--threads", type=at_least(1), default=1, help="threads of torch (1)")
    parser.add_argument("--parts", type=int, nargs="+", default=[1, 2, 3], choices=[1, 2, 3])
    parser.add_argument("--recipes", nargs="+", default=list(CASES), choices=list(CASES))
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    steps = options.steps or (3 if options.quick else 20)
    lm, name = shipped_model()
    small = random_model(lm.tokenizer, 2, 64)
    cases = [(CASES[recipe], 8 if options.quick else CASES[recipe].rows) for recipe in options.recipes]
    if 1 in options.parts:
        print(f"1. A step on {name} ({size_of(lm.model):,} parameters), {machine()}")
        for case, rows in cases:
            report_bare(case, lm, steps, rows)
    if 2 in options.parts and not trl_is_there():
        print(f"2. Against TRL's trainers: {MISSING}")
    elif 2 in options.parts:
        import trl

        print(f"2. A step against TRL {trl.__version__}'s trainers, {machine()}")
        for case, rows in cases:
            model = lm if case.name == "SFT" else small
            report_trl(case, model, steps, rows, options.rounds or (1 if options.quick else 6))
    if 3 in options.parts:
        print(f"3. How a step grows, {machine()}")
        for case, _ in cases:
            report_growth(case, max(1, steps // 4), options.quick)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
