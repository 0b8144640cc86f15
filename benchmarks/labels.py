"""The study behind section 9 of chapter 10: which labels, and how stiff a leash, seed by seed.

    python run.py bench labels                 every run that data/results/labels.csv does not hold yet
    python run.py bench labels --seeds 0 1     those seeds

Question: a reward model from 20 rankings of harmful requests alone and a run without a leash end in refusals of
everything. Is it the labels (20 of harmful requests and not 20 of all skills) or the leash (kl_coef 0, 0.05 or 0.5)?

The plan, written down before the first row: the six arms on seeds 0 to 4, with the same settings, nothing tuned for any
arm (the chapter's live runs are shorter). Reported are the share of harmless requests refused and the true reward of
the final policy, and the paired differences of the labels at each leash, and of the leash with either labels. An
interval that holds 0 is called INCONCLUSIVE. A seed is a replicate: its own demonstrations, SFT model, replies,
simulated rankings, reward models, PPO run and questions; the base model is the shipped one.

Rows are looks at a model before the first iteration (step 0) and after the last, all on the seed's held-out questions
with the same random numbers. `kl` is in nats per reply against the SFT model. One core, some twenty minutes.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import product

os.environ.setdefault("TQDM_DISABLE", "1")

import torch
from leash import Stage
from rows import LOOK, RESULTS as FOLDER, Arm, compute, flatten, looks, options

from rlhf_lab.evaluation.policies import evaluate_model
from rlhf_lab.experience.collect import rank_replies
from rlhf_lab.models.language_model import LanguageModel, load_language_model
from rlhf_lab.recipes.reward import RewardConfig, train_reward_model
from rlhf_lab.recipes.rlhf import RLHFConfig, train_rlhf
from rlhf_lab.recipes.sft import SFTConfig, train_sft
from rlhf_lab.records import Ranking
from rlhf_lab.training.randomness import generator_for
from rlhf_lab.worlds import town

RESULTS = FOLDER / "labels.csv"
LABELS, LEASHES, SEEDS = ("harmful", "all"), (0.0, 0.05, 0.5), range(5)


@dataclass(frozen=True)
class Setting:
    """Every choice of the study but labels and leash; demonstrations, prompts and questions are counts."""

    demonstrations: int = 4000
    prompts: int = 960
    ranked: int = 300  # of the prompts
    rankings: int = 20  # that a reward model learns from
    questions: int = 120
    sft: SFTConfig = field(default_factory=lambda: SFTConfig(steps=40, demonstrations_per_step=64))
    reward: RewardConfig = field(default_factory=lambda: RewardConfig(epochs=8))
    rlhf: RLHFConfig = field(
        default_factory=lambda: RLHFConfig(
            iterations=8, prompts_per_iteration=64, minibatch_rows=32, learning_rate=6e-4, evaluate_every=8
        )
    )


FULL = Setting()
SHORT = Setting(  # of the probe
    demonstrations=16, prompts=60, ranked=60, rankings=4, questions=6,
    sft=SFTConfig(steps=2, demonstrations_per_step=8), reward=RewardConfig(epochs=2),
    rlhf=RLHFConfig(iterations=2, prompts_per_iteration=8, minibatch_rows=4, max_new_tokens=24, evaluate_every=2),
)  # fmt: skip


def about_harm(ranking: Ranking) -> bool:
    """Whether the prompt asks for something harmful."""
    return town.recognise(ranking.prompt).skill == "unsafe"


@cache
def stage(seed: int, setting: Setting) -> Stage:
    """The SFT model, a reward model for each kind of labels, and the questions of a seed."""
    demonstrations = town.demonstrations(setting.demonstrations, seed)
    sft = train_sft(load_language_model("tiny"), demonstrations, replace(setting.sft, seed=seed)).model
    prompts = [prompt.conversation for prompt in town.prompts("train", setting.prompts, seed)]
    rankings = rank_replies(sft, prompts[: setting.ranked], 4, generator_for(seed, "rankings"))
    chosen = {"harmful": list(filter(about_harm, rankings)), "all": rankings}
    config = replace(setting.reward, seed=seed)
    judges = {name: train_reward_model(sft, some[: setting.rankings], config).model for name, some in chosen.items()}
    return Stage(sft, judges, prompts, town.distinct_prompts("held_out", setting.questions, seed))


def run(labels: str, leash: float, seed: int, setting: Setting = FULL) -> list[dict[str, float]]:
    """PPO with one kind of labels and one leash: a row before the first iteration, and one after the last."""
    at = stage(seed, setting)
    config = replace(setting.rlhf, kl_coef=leash, seed=seed)

    def look(lm: LanguageModel) -> dict[str, float]:
        report, _ = evaluate_model(
            lm, at.questions, generator=generator_for(seed, "look"), reference=at.sft,
            reward_model=at.judges[labels], **config.sampling,
        )  # fmt: skip
        row = {"true": report.true_reward, "score": report.reward_score, "kl": report.kl}
        row |= {"over_refusal": report.over_refusal, "harmless": report.harmless, "helpful": report.helpful}
        return {LOOK + name: interval.mean for name, interval in row.items()}

    history = train_rlhf(at.sft, at.prompts, at.judges[labels], config, evaluate=look).history
    return looks(history)


@cache
def probe(labels: str, leash: float) -> Mapping[str, float]:
    """Two iterations of the same function, small."""
    return dict(flatten(run(labels, leash, 0, SHORT), "step"))


def arm(labels: str, leash: float) -> Arm:
    """One kind of labels, one leash."""
    names, settings = {"labels": labels, "kl_coef": f"{leash:.2f}"}, {"setting": FULL, "kl_coef": leash}
    return Arm(names, settings, SEEDS, lambda seed: run(labels, leash, seed), lambda: probe(labels, leash))


def arms() -> list[Arm]:
    """The six arms."""
    return [arm(*names) for names in product(LABELS, LEASHES)]


if __name__ == "__main__":
    chosen = options(__doc__)
    torch.set_num_threads(1)
    for seed in chosen.seeds or SEEDS:  # seed by seed: its arms share what it has made
        compute(RESULTS, arms(), [seed], chosen.dry_run)
