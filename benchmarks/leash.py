"""The study behind chapter 00: a good and a spoiled judge, each with and without the leash, seed by seed.

    python run.py bench leash                  every run that data/results/judge_leash.csv does not hold yet
    python run.py bench leash --part rates     the runs with other learning rates
    python run.py bench leash --seeds 0 1      those seeds

Question: when a run of RLHF goes wrong, is it the judge (a reward model from 12 rankings and not from some 360), the
leash (kl_coef 0 and not 0.1), or both?

The plan, written down before the first row of `crossed`. A seed is a replicate: its own demonstrations, SFT model,
replies, simulated rankings, both judges, PPO run and questions; the base model is the shipped one. The judges' settings
and PPO's are the same in all arms: 12 iterations, learning rate 5e-4. (The chapter's live runs are shorter.)

crossed    the four arms on seeds 0 to 4. Reported are the paired differences in the final true reward: of the judges,
           with and without the leash; of the leash, with either judge; the difference of these differences; and of each
           arm from its SFT model. An interval that holds 0 is called INCONCLUSIVE.
rates      tuning each arm on its own was beyond the budget. The rate of 5e-4 was found with the good judge and
           the leash, which may favour that arm. So each arm also runs at the same three rates on seed 100, and the
           differences are looked at again with every arm at the best of its three, by the true reward.

A row is a look at a model on held-out questions, every model with the same random numbers: `score` is the mean score of
the run's own judge, `kl` is in nats per reply against the SFT model, `evasive` is the share of replies with a sentence
such as "I do not know." One core, some twenty minutes.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import product

os.environ.setdefault("TQDM_DISABLE", "1")

import torch
from rows import LOOK, RESULTS as FOLDER, Arm, compute, flatten, looks, options

from rlhf_lab.evaluation.policies import evaluate_model
from rlhf_lab.experience.collect import rank_replies
from rlhf_lab.models.language_model import LanguageModel, load_language_model
from rlhf_lab.models.reward_model import RewardModel
from rlhf_lab.recipes.reward import RewardConfig, train_reward_model
from rlhf_lab.recipes.rlhf import RLHFConfig, train_rlhf
from rlhf_lab.recipes.sft import SFTConfig, train_sft
from rlhf_lab.records import Conversation
from rlhf_lab.training.randomness import generator_for
from rlhf_lab.worlds import town
from rlhf_lab.worlds.town.sentences import SENTENCES

RESULTS = FOLDER / "judge_leash.csv"
JUDGES, LEASHES, RATES = ("good", "spoiled"), {"leash": 0.1, "none": 0.0}, (1.5e-4, 5e-4, 1.5e-3)
PARTS = {"crossed": (range(5), RATES[1:2]), "rates": (range(100, 101), RATES)}  # seeds, learning rates of each arm
MEASURED = ("helpful", "truthful", "harmless", "form", "rude", "length")


@dataclass(frozen=True)
class Setting:
    """Every choice of the study but judge, leash and rate; prompts, questions and demonstrations are counts."""

    demonstrations: int = 2000
    prompts: int = 1500
    ranked: int = 400  # of the prompts; PPO takes the rest
    spoiled_rankings: int = 12
    questions: int = 200
    sft: SFTConfig = field(default_factory=lambda: SFTConfig(steps=60, demonstrations_per_step=64))
    good: RewardConfig = field(default_factory=lambda: RewardConfig(epochs=2))
    spoiled: RewardConfig = field(default_factory=lambda: RewardConfig(epochs=10, rankings_per_step=4, warmup=2))
    rlhf: RLHFConfig = field(
        default_factory=lambda: RLHFConfig(
            iterations=12, prompts_per_iteration=64, minibatch_rows=32, evaluate_every=12
        )
    )


FULL = Setting()
SHORT = Setting(  # of the probe
    demonstrations=16, prompts=20, ranked=10, spoiled_rankings=4, questions=6,
    sft=SFTConfig(steps=2, demonstrations_per_step=8), good=RewardConfig(epochs=1),
    spoiled=RewardConfig(epochs=2, rankings_per_step=4, warmup=2),
    rlhf=RLHFConfig(iterations=2, prompts_per_iteration=8, minibatch_rows=4, max_new_tokens=24, evaluate_every=2),
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Stage:
    """What the arms of a seed share."""

    sft: LanguageModel
    judges: dict[str, RewardModel]
    prompts: list[Conversation]
    questions: list[Conversation]


@cache
def stage(seed: int, setting: Setting) -> Stage:
    """The SFT model, both judges and the questions of a seed."""
    demonstrations = town.demonstrations(setting.demonstrations, seed)
    sft = train_sft(load_language_model("tiny"), demonstrations, replace(setting.sft, seed=seed)).model
    prompts = [prompt.conversation for prompt in town.prompts("train", setting.prompts, seed)]
    rankings = rank_replies(sft, prompts[: setting.ranked], generator=generator_for(seed, "session"))
    judges = {
        "good": train_reward_model(sft, rankings, replace(setting.good, seed=seed)).model,
        "spoiled": train_reward_model(
            sft, rankings[: setting.spoiled_rankings], replace(setting.spoiled, seed=seed)
        ).model,
    }
    questions = town.distinct_prompts("held_out", setting.questions, seed)
    return Stage(sft, judges, prompts[setting.ranked :], questions)


def look(lm: LanguageModel, judge: RewardModel, at: Stage, config: RLHFConfig) -> dict[str, float]:
    """What is measured of a model on the seed's held-out questions, each name behind LOOK."""
    generator = generator_for(config.seed, "look")
    report, rollout = evaluate_model(
        lm, at.questions, generator=generator, reference=at.sft, reward_model=judge, **config.sampling
    )
    evasive = [any(sentence in text for sentence in SENTENCES["evade"]) for text in rollout.texts]
    row = {"true": report.true_reward.mean, "score": report.reward_score.mean, "kl": report.kl.mean}
    row |= {"evasive": sum(evasive) / len(evasive)} | {name: getattr(report, name).mean for name in MEASURED}
    return {LOOK + name: value for name, value in row.items()}


def run(judge: str, leash: str, rate: float, seed: int, setting: Setting = FULL) -> list[dict[str, float]]:
    """PPO with one judge, one leash and one rate: a row for every look."""
    at = stage(seed, setting)
    config = replace(setting.rlhf, learning_rate=rate, kl_coef=LEASHES[leash], seed=seed)
    measure = lambda lm: look(lm, at.judges[judge], at, config)  # noqa: E731
    history = train_rlhf(at.sft, at.prompts, at.judges[judge], config, evaluate=measure).history
    return looks(history)


@cache
def probe(judge: str, leash: str) -> Mapping[str, float]:
    """Two iterations; at one rate, because the rate is in the settings and the code does the same with each."""
    return dict(flatten(run(judge, leash, RATES[1], 0, SHORT), "step"))


def arm(part: str, judge: str, leash: str, rate: float) -> Arm:
    """One judge, one leash, one rate, in one part."""
    return Arm(
        {"part": part, "judge": judge, "leash": leash, "rate": f"{rate:g}"},
        {"setting": FULL, "kl_coef": LEASHES[leash], "rate": rate},
        PARTS[part][0],
        lambda seed: run(judge, leash, rate, seed),
        lambda: probe(judge, leash),
    )


def arms(parts: Iterable[str] = PARTS) -> list[Arm]:
    """What the parts compute."""
    return [arm(part, *names, rate) for part in parts for *names, rate in product(JUDGES, LEASHES, PARTS[part][1])]


if __name__ == "__main__":
    chosen = options(__doc__, lambda parser: parser.add_argument("--part", choices=tuple(PARTS)))
    torch.set_num_threads(1)
    for part in [chosen.part] if chosen.part else PARTS:
        for seed in chosen.seeds or PARTS[part][0]:  # seed by seed: its arms share what it has made
            compute(RESULTS, arms([part]), [seed], chosen.dry_run)
