"""What each method buys: PPO, RLOO, GRPO, DPO, distillation and best of n from the same labels, seed by seed.

    python run.py bench methods                  every run that data/results/methods.csv does not hold yet
    python run.py bench methods --seeds 0 1      those seeds
    python run.py bench methods --part rates     the runs that chose the learning rates

Question: at equal labels and equal samples, how much true reward does each method have at how much KL from SFT?

The plan, written down before the first row of `crossed`. A seed is a replicate: its own demonstrations, SFT model,
1000 rankings of 4 of its replies by a careful simulated rater, reward model, and held-out questions; the base model is
the shipped one. The reward model is shared by all methods that need one, DPO learns from the rankings themselves. PPO,
RLOO, GRPO and distillation sample 30 x 96 replies; DPO passes over the rankings twice and samples nothing; best of n
samples n replies a question when it is asked. Distillation has PPO's model of the same seed (kl_coef 0.1, the
middle rate) as its teacher, whose samples come on top.

rates      every method that trains at three learning rates, at the first of its leashes, on seed 100; the best true
           reward there is the method's rate (`RATES`).
crossed    every method at two or three leashes (n = 2, 4, 16 for best of n), seeds 0 to 4. Reported are paired
           differences from PPO at the same kl_coef, or of the first leash where units differ, and each curve.
verifiable GRPO without a leash from the base model: a program says 1 where a reply has full marks, and else 0.

A row is a look at a model on held-out questions, every model with the same random numbers, at the temperature that
trained: `kl` in nats a reply (for best of n the bound that chapter 15 derives), `distinct` how many of 16 replies to a
question differ, `pass_1`, `pass_4`, `pass_16` the chance that one of so many has full marks.
One core, some twenty minutes a seed.
"""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from math import comb

os.environ.setdefault("TQDM_DISABLE", "1")

import torch
from rows import RESULTS as FOLDER, Arm, compute, options

from rlhf_lab.evaluation.policies import evaluate_rollout, rollout_verdicts
from rlhf_lab.experience.collect import rank_replies
from rlhf_lab.experience.inputs import Sampling
from rlhf_lab.experience.rollouts import sample_responses
from rlhf_lab.models.language_model import LanguageModel, load_language_model
from rlhf_lab.models.reward_model import RewardModel
from rlhf_lab.models.tokens import Rollout
from rlhf_lab.recipes.best_of_n import best_of_n_kl, choose_best
from rlhf_lab.recipes.direct import DPOConfig, train_dpo
from rlhf_lab.recipes.distil import DistilConfig, train_distilled
from rlhf_lab.recipes.group import GRPO, RLOO, GroupConfig, train_group
from rlhf_lab.recipes.reward import RewardConfig, train_reward_model
from rlhf_lab.recipes.rlhf import RLHFConfig, train_rlhf
from rlhf_lab.recipes.sft import SFTConfig, train_sft
from rlhf_lab.records import Conversation, Ranking
from rlhf_lab.training.randomness import generator_for
from rlhf_lab.worlds import town

RESULTS = FOLDER / "methods.csv"
SEEDS, TUNING = range(5), range(100, 101)
FULL_MARKS, PASSES = 3.0, (1, 4, 16)
LEASHES: dict[str, tuple[float, ...]] = {  # the first number is in reward units a nat, but for GRPO: see `GroupConfig`
    "ppo": (0.1, 0.3),
    "rloo": (0.1, 0.3),
    "grpo": (0.04, 0.16),
    "dpo": (0.15, 0.05, 0.5),
    "distil": (0.1,),
    "best_of_n": (4, 2, 16),
}
TRIED = {
    "ppo": (1.5e-4, 3e-4, 6e-4),
    "rloo": (1.5e-4, 3e-4, 6e-4),
    "grpo": (1.5e-4, 3e-4, 6e-4),
    "dpo": (5e-5, 1e-4, 2e-4),
    "distil": (1.5e-4, 3e-4, 6e-4),
}
RATES = {"ppo": 3e-4, "rloo": 6e-4, "grpo": 3e-4, "dpo": 1e-4, "distil": 6e-4}


@dataclass(frozen=True)
class Setting:
    """Every choice of the study but method, leash and rate; what is not a recipe's is a count."""

    demonstrations: int = 4000
    labels: int = 1000
    questions: int = 480
    repeated: int = 96  # of the questions, each asked `times` times
    times: int = 16
    sft: SFTConfig = field(default_factory=SFTConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    ppo: RLHFConfig = field(default_factory=lambda: RLHFConfig(iterations=30, evaluate_every=30))
    rloo: GroupConfig = field(default_factory=lambda: replace(RLOO, iterations=30, evaluate_every=30))
    grpo: GroupConfig = field(default_factory=lambda: replace(GRPO, iterations=30, evaluate_every=30))
    dpo: DPOConfig = field(default_factory=lambda: DPOConfig(epochs=2))
    distil: DistilConfig = field(default_factory=lambda: DistilConfig(iterations=30))


FULL = Setting()
FEW = {"iterations": 2, "max_new_tokens": 24, "minibatch_rows": 8, "evaluate_every": 2}
SHORT = Setting(  # of the probe
    demonstrations=16, labels=12, questions=6, repeated=4, times=16,
    sft=SFTConfig(steps=2, demonstrations_per_step=8), reward=RewardConfig(epochs=1),
    ppo=RLHFConfig(prompts_per_iteration=8, **FEW), rloo=replace(RLOO, prompts_per_iteration=2, **FEW),
    grpo=replace(GRPO, prompts_per_iteration=2, **FEW), dpo=DPOConfig(epochs=1, records_per_step=6),
    distil=DistilConfig(prompts_per_iteration=8, **FEW),
)  # fmt: skip


@cache
def base() -> LanguageModel:
    """The shipped model."""
    return load_language_model("tiny")


@dataclass(frozen=True, eq=False)
class Stage:
    """What the methods of a seed share."""

    seed: int
    setting: Setting
    sft: LanguageModel
    rankings: list[Ranking]
    reward: RewardModel
    prompts: list[Conversation]
    questions: list[Conversation]

    @property
    def law(self) -> Sampling:
        return self.setting.ppo.sampling


@cache
def stage(seed: int, setting: Setting) -> Stage:
    """The SFT model, the rankings of its replies, and the reward model that they make."""
    demonstrations = town.demonstrations(setting.demonstrations, seed)
    sft = train_sft(base(), demonstrations, replace(setting.sft, seed=seed)).model
    prompts = [prompt.conversation for prompt in town.prompts("train", setting.labels, seed)]
    rankings = rank_replies(sft, prompts, 4, generator_for(seed, "rankings"))
    reward = train_reward_model(sft, rankings, replace(setting.reward, seed=seed)).model
    return Stage(
        seed, setting, sft, rankings, reward, prompts, town.distinct_prompts("held_out", setting.questions, seed)
    )


# -- the methods ------------------------------------------------------------------------------------------------------
@cache
def ppo(at: Stage, leash: float, rate: float) -> LanguageModel:
    """PPO on the reward model."""
    config = replace(at.setting.ppo, kl_coef=leash, learning_rate=rate, seed=at.seed)
    return train_rlhf(at.sft, at.prompts, at.reward, config).model


def rloo(at: Stage, leash: float, rate: float) -> LanguageModel:
    """RLOO on the reward model."""
    config = replace(at.setting.rloo, kl_coef=leash, learning_rate=rate, seed=at.seed)
    return train_group(at.sft, at.prompts, at.reward, config).model


def grpo(at: Stage, leash: float, rate: float) -> LanguageModel:
    """GRPO on the reward model."""
    config = replace(at.setting.grpo, kl_coef=leash, learning_rate=rate, seed=at.seed)
    return train_group(at.sft, at.prompts, at.reward, config).model


def dpo(at: Stage, leash: float, rate: float) -> LanguageModel:
    """DPO on the rankings."""
    return train_dpo(at.sft, at.rankings, replace(at.setting.dpo, beta=leash, learning_rate=rate, seed=at.seed)).model


def distil(at: Stage, leash: float, rate: float) -> LanguageModel:
    """Distillation of PPO's model with that leash."""
    teacher = ppo(at, leash, TRIED["ppo"][1])
    return train_distilled(
        at.sft, teacher, at.prompts, replace(at.setting.distil, learning_rate=rate, seed=at.seed)
    ).model


def verifiable(at: Stage, leash: float, rate: float) -> LanguageModel:
    """GRPO on right or wrong, from the base model."""
    config = replace(at.setting.grpo, kl_coef=leash, learning_rate=rate, missing_end_penalty=0.0, seed=at.seed)
    return train_group(base(), at.prompts, lambda rollout: torch.tensor(right(rollout)), config).model


METHODS: dict[str, Callable[[Stage, float, float], LanguageModel]] = {
    "ppo": ppo, "rloo": rloo, "grpo": grpo, "dpo": dpo, "distil": distil, "verifiable": verifiable,
}  # fmt: skip


# -- what is measured -------------------------------------------------------------------------------------------------
def right(rollout: Rollout) -> list[float]:
    """1 for each reply with full marks, else 0."""
    return [float(one is not None and one.reward == FULL_MARKS) for one in rollout_verdicts(rollout)]


def look(lm: LanguageModel, at: Stage, replies: Rollout, start: LanguageModel) -> dict[str, float]:
    """What is known of replies to the held-out questions, `lm` being the policy that they come from."""
    report = evaluate_rollout(lm, replies, reference=start, reward_model=at.reward, temperature=at.law["temperature"])
    row = {"true": report.true_reward.mean, "score": report.reward_score.mean, "kl": report.kl.mean}
    names = ("length", "ended", "helpful", "truthful", "harmless", "form", "over_refusal")
    return row | {name: value.mean for name in names if (value := getattr(report, name)) is not None}


def variety(lm: LanguageModel, at: Stage) -> dict[str, float]:
    """How different the replies to one question are, and the chance that one of k has full marks."""
    asked, times = at.questions[: at.setting.repeated], at.setting.times
    many = [question for question in asked for _ in range(times)]
    replies = sample_responses(lm, many, generator=generator_for(at.seed, "variety"), **at.law)
    groups = [replies.texts[i : i + times] for i in range(0, len(many), times)]
    counts = torch.tensor(right(replies)).view(-1, times).sum(1).long().tolist()
    row = {"distinct": sum(len(set(group)) for group in groups) / len(groups)}
    passed = {k: [1 - comb(times - c, k) / comb(times, k) for c in counts] for k in PASSES}
    return row | {f"pass_{k}": sum(chances) / len(chances) for k, chances in passed.items()}


def run(method: str, leash: float, rate: float, seed: int, setting: Setting = FULL) -> list[dict[str, float]]:
    """One method with one leash at one rate."""
    at = stage(seed, setting)
    begun = time.perf_counter()
    generator = generator_for(seed, "evaluation")
    start = base() if method in ("base", "verifiable") else at.sft
    if method == "best_of_n":
        n = int(leash)
        chosen = choose_best(at.sft, at.questions, at.reward, n, generator=generator, **at.law)
        blank = dict.fromkeys(("distinct", *(f"pass_{k}" for k in PASSES)), float("nan"))
        row, sampled = look(at.sft, at, chosen.rollout, start) | {"kl": best_of_n_kl(n)} | blank, n * len(at.questions)
    else:
        lm = METHODS[method](at, leash, rate) if method in METHODS else start
        replies = sample_responses(lm, at.questions, generator=generator, **at.law)
        row = look(lm, at, replies, start) | variety(lm, at)
        online = method in METHODS and method != "dpo"
        sampled = setting.ppo.iterations * setting.ppo.prompts_per_iteration if online else 0
    labels = 0 if method in ("base", "sft", "verifiable") else len(at.rankings)
    return [row | {"sampled": sampled, "labels": labels, "seconds": time.perf_counter() - begun}]


@cache
def probe(method: str, leash: float) -> Mapping[str, float]:
    """Two iterations of the same function, small."""
    row = run(method, leash, RATES.get(method, RATES["grpo"]), 0, SHORT)[0]
    return {name: number for name, number in row.items() if number == number and name != "seconds"}


def arm(part: str, method: str, leash: float, rate: float) -> Arm:
    """One method with one leash at one rate."""
    seeds = TUNING if part == "rates" else SEEDS
    return Arm(
        {"part": part, "method": method, "leash": f"{leash:g}", "rate": f"{rate:g}"},
        {"setting": FULL, "leash": leash, "rate": rate},
        seeds,
        lambda seed: run(method, leash, rate, seed),
        lambda: probe(method, LEASHES.get(method, (leash,))[0]),
    )


def arms(part: str) -> list[Arm]:
    """What a part computes."""
    if part == "rates":
        return [arm(part, name, LEASHES[name][0], rate) for name, rates in TRIED.items() for rate in rates]
    if part == "verifiable":
        return [arm(part, "base", 0.0, 0.0), arm(part, part, 0.0, RATES["grpo"])]
    crossed = [(name, leash, RATES.get(name, 0.0)) for name, leashes in LEASHES.items() for leash in leashes]
    return [arm(part, *choice) for choice in [("sft", 0.0, 0.0), *crossed]]


PARTS = ("rates", "crossed", "verifiable")

if __name__ == "__main__":
    chosen = options(__doc__, lambda parser: parser.add_argument("--part", choices=PARTS))
    torch.set_num_threads(1)
    for seed in chosen.seeds or [*TUNING, *SEEDS]:  # seed by seed: its arms share what it has made
        for part in [chosen.part] if chosen.part else PARTS:
            if (seed in TUNING) == (part == "rates"):
                compute(RESULTS, arms(part), [seed], chosen.dry_run)
