"""The study behind chapter 11: what PPO changes in the replies, over seeds of training, where the chapter has one run.

    python run.py bench evaluation_seeds              what data/results/evaluation_seeds.csv does not hold yet
    python run.py bench evaluation_seeds --seeds 0 1  those seeds

The chain is the chapter's: the base model, a short SFT, a linear reward from rankings by a simulated person who likes
long replies, PPO. SFT and reward are one model each; a seed is that of PPO and of the sampling of the evaluation, and
seed 0 is the run of the chapter. Both models answer the same 240 held-out prompts with the same random numbers, at the
temperature of training. A row is the paired difference RLHF - SFT of one quantity on one part of the prompts, with its
interval over prompts:

    true reward             all prompts, each skill, harmless requests, harmful requests
    helpful                 all prompts, harmless requests, harmful requests
    truthful                all prompts, and those where both replies are well-formed (the oracle reads no other)
    the other quantities    all prompts that they are about

An interval over seeds speaks of other runs of PPO on this SFT model, this reward and these prompts. One core, some
twenty seconds a seed.
"""

import os
from collections.abc import Callable
from dataclasses import replace
from functools import cache

os.environ.setdefault("TQDM_DISABLE", "1")

import torch
from rows import RESULTS as FOLDER, Arm, Row, compute, flatten, options

from rlhf_lab.evaluation.evidence import Evidence, collect_evidence
from rlhf_lab.experience.rollouts import sample_responses
from rlhf_lab.feedback.events import read_records
from rlhf_lab.maths.intervals import paired_difference
from rlhf_lab.models.language_model import LanguageModel, load_language_model
from rlhf_lab.models.linear_reward import LinearReward
from rlhf_lab.recipes.few_labels import train_linear_reward
from rlhf_lab.recipes.rlhf import RLHFConfig, train_rlhf
from rlhf_lab.recipes.sft import SFTConfig, train_sft
from rlhf_lab.training.randomness import generator_for
from rlhf_lab.worlds import town
from rlhf_lab.worlds.town.raters import Rater

RESULTS = FOLDER / "evaluation_seeds.csv"
RANKINGS = FOLDER.parent / "sessions" / "whole_story.jsonl"
SEEDS, PROMPTS, TRAINING_PROMPTS, RANKED = range(8), 240, 384, 100
TASTE, WEIGHT, LEASH = "longer", 4.0, 0.06  # of the rater; of the KL, in standard deviations of the learned score
SFT = SFTConfig(steps=40, demonstrations_per_step=32, learning_rate=5e-4)
DEMONSTRATIONS, LOOK = 1024, 48  # prompts of a probe
PPO = RLHFConfig(
    iterations=8, prompts_per_iteration=48, minibatch_rows=24, epochs=1, learning_rate=1e-3, value_learning_rate=2e-3
)
Part = Callable[[int], bool]


# -- the chain of the chapter -----------------------------------------------------------------------------------------
@cache
def models_before() -> tuple[LanguageModel, LinearReward]:
    """The SFT model, and the reward of somebody who likes long replies."""
    sft = train_sft(load_language_model("tiny"), town.demonstrations(DEMONSTRATIONS, seed=0), SFT).model
    lover, stream = Rater("length-lover", taste=TASTE, taste_weight=WEIGHT), generator_for(0, "length-lover")
    ranked = [
        lover.rank(r.prompt, r.replies, town.score_replies([r.prompt] * len(r.replies), r.replies), stream).record
        for r in read_records(RANKINGS)[:RANKED]
    ]
    return sft, train_linear_reward(sft, ranked).model


def trained(seed: int, iterations: int) -> LanguageModel:
    """The SFT model after PPO."""
    sft, reward = models_before()
    config = replace(PPO, kl_coef=LEASH / reward.score_std, seed=seed, iterations=iterations)
    prompts = [question.conversation for question in town.prompts("train", TRAINING_PROMPTS, seed=0)]
    return train_rlhf(sft, prompts, reward, config).model


# -- what is measured -------------------------------------------------------------------------------------------------
def parts_of(evidence: Evidence) -> list[tuple[str, str, Part]]:
    """Quantity, the name of a part of the prompts ("" for all), which rows are in it."""
    before, after = (evidence.values[name] for name in ("SFT", "RLHF"))
    harmful = lambda row: evidence.skills[row] == "unsafe"  # noqa: E731
    requests = [("harmless requests", lambda row: not harmful(row)), ("harmful requests", harmful)]
    both = lambda row: before["well_formed"][row] == after["well_formed"][row] == 1  # noqa: E731
    parts = [(quantity, "", lambda row: True) for quantity in after]
    parts += [("true_reward", s, lambda row, s=s: evidence.skills[row] == s) for s in sorted(set(evidence.skills))]
    parts += [(quantity, name, part) for quantity in ("true_reward", "helpful") for name, part in requests]
    return [*parts, ("truthful", "both well-formed", both)]


def seed_rows(seed: int, iterations: int = PPO.iterations, count: int = PROMPTS) -> list[Row]:
    """A row for each quantity and part of the prompts of which there are two."""
    sft, reward = models_before()
    prompts = town.distinct_prompts("held_out", count, seed=0)
    models = {"SFT": sft, "RLHF": trained(seed, iterations)}
    replies = {
        name: sample_responses(lm, prompts, temperature=PPO.temperature, generator=generator_for(seed, "evaluation"))
        for name, lm in models.items()
    }
    evidence = collect_evidence(replies, {name: reward(rollout).tolist() for name, rollout in replies.items()})
    rows: list[Row] = []
    for quantity, split, part in parts_of(evidence):
        after, before = (
            [value if part(row) else None for row, value in enumerate(evidence.values[name][quantity])]
            for name in ("RLHF", "SFT")
        )
        if sum(None not in pair for pair in zip(after, before, strict=True)) > 1:
            found = paired_difference(after, before)
            numbers = {"mean": found.mean, "low": found.low, "high": found.high, "count": found.count}
            rows.append({"quantity": quantity, "split": split} | numbers)
    return rows


SETTINGS = {
    "sft": SFT, "ppo": PPO, "leash": LEASH, "taste": TASTE, "taste_weight": WEIGHT, "rankings": RANKED,
    "demonstrations": DEMONSTRATIONS, "training_prompts": TRAINING_PROMPTS, "prompts": PROMPTS,
}  # fmt: skip
ARM = Arm({}, SETTINGS, SEEDS, seed_rows, lambda: dict(flatten(seed_rows(0, 2, LOOK), "quantity", "split")))

if __name__ == "__main__":
    chosen = options(__doc__)
    torch.set_num_threads(1)
    compute(RESULTS, [ARM], chosen.seeds, chosen.dry_run)
