"""How near each method comes to the best law there is, in a world where that law is known, seed by seed.

    python run.py bench methods_world                  every run that data/results/methods_world.csv does not hold yet
    python run.py bench methods_world --part rates     the runs that chose the learning rates

Question: at equal labels and equal samples, how far is each method from pi_ref exp(r / kl_coef), and is that the
reward's fault or the method's?

The plan, written down before the first row of `crossed`. A seed is a replicate: a score of words and of pairs of words
(mean 0 and standard deviation 1 under the reference), a GPT-2 of one layer that learned to speak from sentences of its
own, and 500 comparisons of its replies by Bradley-Terry raters of noise 1. Replies have at most 4 tokens, so the law of
a trained model over all of them is computed, not sampled. The recipes are the library's.

reward     "truth": the method is paid the true score. "labels": it learns from the comparisons, DPO directly, the
           others by a reward model that `train_reward_model` makes of them.
rates      every method with every reward at three learning rates, at its middle leash, on seed 100; the one with the
           largest true - 0.5 kl there is its rate (`RATES`).
crossed    every method at three leashes, seeds 0 to 7. Reported are paired differences of the gap from PPO's.
pieces     of GRPO, one at a time on RLOO with the true score: advantages divided by the group's spread, a mean over
           each reply's own length, k3 in the loss. A gap grows with the KL, so gaps are compared along it.

Distillation has PPO's model at the middle rate and the same leash as its teacher.

A row: `true`, the expected true score; `kl`, KL(policy || reference) in nats a reply; `frontier`, the largest expected
true score of any law with that KL; `gap`, what is missing to it; `shortfall`, what true - kl_coef KL is below its
maximum, where the leash is in units of the true score. Best of n is exact and has no training. One core, some minutes a
seed.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import pairwise
from random import Random

os.environ.setdefault("TQDM_DISABLE", "1")

import torch
from rows import RESULTS as FOLDER, Arm, compute, options
from torch import Tensor

from rlhf_lab.maths.exact import TokenWorld
from rlhf_lab.models.language_model import LanguageModel
from rlhf_lab.models.reward_model import RewardModel
from rlhf_lab.models.scoring import response_log_probs
from rlhf_lab.models.tokens import Rollout, encode_prompts, make_batch
from rlhf_lab.recipes.direct import DPOConfig, train_dpo
from rlhf_lab.recipes.distil import DistilConfig, train_distilled
from rlhf_lab.recipes.group import DR_GRPO, GRPO, RLOO, GroupConfig, train_group
from rlhf_lab.recipes.reward import RewardConfig, train_reward_model
from rlhf_lab.recipes.rlhf import RLHFConfig, train_rlhf
from rlhf_lab.recipes.sft import SFTConfig, train_sft
from rlhf_lab.records import Comparison, Demonstration
from rlhf_lab.training.randomness import generator_for
from rlhf_lab.worlds.token_probes import END, PAD, WORDS, word_model

RESULTS = FOLDER / "methods_world.csv"
SEEDS, TUNING = range(8), range(100, 101)
PROMPTS = ("a", "b")
LENGTH = 4
REWARDS = ("truth", "labels")
LEASHES: dict[str, tuple[float, ...]] = {
    "ppo": (0.5, 0.2, 1.0),
    "rloo": (0.5, 0.2, 1.0),
    "grpo": (0.2, 0.05, 0.8),
    "dr_grpo": (0.2, 0.05, 0.8),
    "dpo": (0.5, 0.2, 1.0),
    "distil": (0.5,),
    "best_of_n": (4, 2, 16),
    "rloo_scaled": (0.5, 0.2, 1.0),
    "rloo_replies": (0.5, 0.2, 1.0),
    "rloo_k3": (0.5, 0.2, 1.0),
}
GROUPS: dict[str, GroupConfig] = {
    "rloo": RLOO,
    "grpo": GRPO,
    "dr_grpo": DR_GRPO,
    "rloo_scaled": replace(RLOO, baseline="group", scale=True),
    "rloo_replies": replace(RLOO, mean="replies"),
    "rloo_k3": replace(RLOO, leash="k3"),
}
PIECES = ("rloo_scaled", "rloo_replies", "rloo_k3")
IN_UNITS = ("ppo", "rloo", "dpo", *PIECES)  # their leash is in true scores a nat where the truth pays
TRIED = (1e-3, 3e-3, 1e-2)
RATES = {
    ("distil", "labels"): 0.001,
    ("distil", "truth"): 0.01,
    ("dpo", "labels"): 0.003,
    ("dr_grpo", "labels"): 0.001,
    ("dr_grpo", "truth"): 0.01,
    ("grpo", "labels"): 0.001,
    ("grpo", "truth"): 0.001,
    ("ppo", "labels"): 0.001,
    ("ppo", "truth"): 0.003,
    ("rloo", "labels"): 0.003,
    ("rloo", "truth"): 0.003,
    ("rloo_k3", "truth"): 0.003,
    ("rloo_replies", "truth"): 0.01,
    ("rloo_scaled", "truth"): 0.003,
}


@dataclass(frozen=True)
class Setting:
    """Every choice of the study but method, reward, leash and rate."""

    sentences: int = 2000
    labels: int = 500
    sft: SFTConfig = field(
        default_factory=lambda: SFTConfig(
            steps=150, demonstrations_per_step=64, learning_rate=3e-3, micro_batch=64, max_new_tokens=LENGTH
        )
    )
    reward: RewardConfig = field(
        default_factory=lambda: RewardConfig(epochs=4, learning_rate=3e-3, max_new_tokens=LENGTH)
    )
    iterations: int = 40
    samples: int = 96  # in an iteration
    replies: int = 4  # to a prompt, for the methods with groups
    epochs: int = 8  # of DPO


FULL = Setting()
SHORT = Setting(
    sentences=40, labels=20, sft=SFTConfig(steps=2, demonstrations_per_step=8, max_new_tokens=LENGTH),
    reward=RewardConfig(epochs=1, max_new_tokens=LENGTH), iterations=2, samples=16, epochs=1,
)  # fmt: skip


# -- the world --------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class Stage:
    """What the methods of a seed share; laws and scores are [prompts, N]."""

    seed: int
    setting: Setting
    reference: LanguageModel
    world: TokenWorld
    law: Tensor
    labels: list[Comparison]
    learned: RewardModel

    def scores(self, rollout: Rollout) -> Tensor:
        """The true scores of replies."""
        batch = rollout.batch
        asked = [PROMPTS.index(conversation[-1].content) for conversation in rollout.conversations]
        rows = [tuple(ids[keep].tolist()) for ids, keep in zip(batch.response_ids, batch.mask, strict=True)]
        return torch.stack(
            [self.world.scores[p, self.world.sequence_id(row)] for p, row in zip(asked, rows, strict=True)]
        )


@cache
def stage(seed: int, setting: Setting) -> Stage:
    """A model that speaks, what its replies are worth, and what raters say of some."""
    reference = train_sft(word_model(seed), sentences(setting.sentences, seed), replace(setting.sft, seed=seed)).model
    plain = TokenWorld(len(WORDS), LENGTH, rough_scores(seed), prompts=len(PROMPTS), eos=END)
    law = exact_law(reference, plain)
    mean = plain.expected_reward(law).mean()
    spread = plain.expected_reward(law, (plain.scores - mean) ** 2).mean().sqrt()
    world = TokenWorld(len(WORDS), LENGTH, (plain.scores - mean) / spread, prompts=len(PROMPTS), eos=END)
    labels = comparisons(reference, world, setting.labels, seed)
    learned = train_reward_model(reference, labels, replace(setting.reward, seed=seed)).model
    return Stage(seed, setting, reference, world, law, labels, learned)


def sentences(count: int, seed: int) -> list[Demonstration]:
    """What the reference learns to speak: words of a chain of its own, of 0 to 3 words, and an end."""
    random, words = Random(f"sentences {seed}"), WORDS[2:]
    chain = {word: [random.uniform(0.2, 2) for _ in range(len(words) + 1)] for word in ("", *words)}
    found = []
    for _ in range(count):
        said, last = [], ""
        while len(said) < LENGTH - 1 and (last := random.choices([*words, ""], chain[last])[0]):
            said.append(last)
        found.append(Demonstration(random.choice(PROMPTS), " ".join(said)))
    return found


def rough_scores(seed: int):
    """(prompt, tokens) -> a score in which words count by their place, and pairs of neighbours."""
    generator = generator_for(seed, "scores")
    words = torch.randn(len(PROMPTS), LENGTH, len(WORDS), generator=generator)
    pairs = torch.randn(len(WORDS), len(WORDS), generator=generator)

    def score(prompt: int, tokens: tuple[int, ...]) -> float:
        alone = sum(float(words[prompt, t, token]) for t, token in enumerate(tokens))
        return alone + sum(float(pairs[a, b]) for a, b in pairwise(tokens))

    return score


def exact_law(lm: LanguageModel, world: TokenWorld) -> Tensor:
    """[prompts, N] probability of every reply."""
    replies = [list(world.tokens(n)) for n in range(world.num_sequences)]
    rows = [row for row in encode_prompts(lm, list(PROMPTS)) for _ in replies]
    log_probs = response_log_probs(lm, make_batch(rows, replies * len(PROMPTS), lm.pad_id), micro_batch=1024)
    return log_probs.sum(1).double().view(len(PROMPTS), -1).softmax(1)  # the sum is 1 up to rounding


def comparisons(lm: LanguageModel, world: TokenWorld, count: int, seed: int) -> list[Comparison]:
    """Pairs of different replies to one prompt, without padding in them, and which one a rater of noise 1 prefers."""
    generator, found = generator_for(seed, "labels"), []
    law, scores = exact_law(lm, world), world.scores
    clean = torch.tensor([PAD not in world.tokens(n) for n in range(world.num_sequences)])
    while len(found) < count:
        prompt = len(found) % len(PROMPTS)
        a, b = torch.multinomial(law[prompt] * clean, 2, generator=generator).tolist()
        if torch.rand((), generator=generator) >= torch.sigmoid(scores[prompt, a] - scores[prompt, b]):
            a, b = b, a
        found.append(Comparison(PROMPTS[prompt], text_of(world, a), text_of(world, b)))
    return found


def text_of(world: TokenWorld, number: int) -> str:
    return " ".join(WORDS[token] for token in world.tokens(number) if token != END)


# -- the methods ------------------------------------------------------------------------------------------------------
def trained(method: str, at: Stage, reward: str, leash: float, rate: float) -> LanguageModel:
    """The model that a recipe makes of the reference."""
    setting, seed = at.setting, at.seed
    paid = at.scores if reward == "truth" else at.learned
    law = {"temperature": 1.0, "max_new_tokens": LENGTH, "learning_rate": rate, "seed": seed}
    shared = law | {"iterations": setting.iterations, "minibatch_rows": setting.samples // 2, "micro_batch": 96}
    online = {"missing_end_penalty": 0.0, "evaluate_every": setting.iterations, "kl_coef": leash}
    if method == "dpo":
        config = DPOConfig(epochs=setting.epochs, beta=leash, records_per_step=32, micro_batch=32, **law)
        return train_dpo(at.reference, at.labels, config).model
    if method == "distil":
        teacher = trained("ppo", at, reward, leash, TRIED[1])
        config = DistilConfig(prompts_per_iteration=setting.samples, **shared)
        return train_distilled(at.reference, teacher, PROMPTS, config).model
    if method == "ppo":
        config = RLHFConfig(prompts_per_iteration=setting.samples, value_learning_rate=rate, **shared, **online)
        return train_rlhf(at.reference, PROMPTS, paid, config).model
    groups = {"prompts_per_iteration": setting.samples // setting.replies, "replies": setting.replies}
    return train_group(at.reference, PROMPTS, paid, replace(GROUPS[method], **groups, **shared, **online)).model


def law_of(method: str, at: Stage, reward: str, leash: float, rate: float) -> Tensor:
    """The law that a method ends at."""
    if method != "best_of_n":
        return exact_law(trained(method, at, reward, leash, rate), at.world)
    return at.world.best_of_n(at.law, int(leash), at.world.scores if reward == "truth" else learned_scores(at))


def learned_scores(at: Stage) -> Tensor:
    """[prompts, N] what the reward model gives for every reply."""
    world, lm = at.world, at.reference
    replies = [list(world.tokens(n)) for n in range(world.num_sequences)]
    rows = [row for row in encode_prompts(lm, list(PROMPTS)) for _ in replies]
    return at.learned.score_batch(make_batch(rows, replies * len(PROMPTS), lm.pad_id)).double().view(len(PROMPTS), -1)


def measured(at: Stage, law: Tensor, leash: float | None) -> dict[str, float]:
    """Where a law stands, means over the prompts; with a leash in units of the score also its shortfall."""
    true, kl = at.world.expected_reward(law), at.world.kl(law, at.law)
    best = frontier(at, float(kl.mean()))
    row = {"true": float(true.mean()), "kl": float(kl.mean()), "frontier": best, "gap": best - float(true.mean())}
    short = float("nan") if leash is None else float(at.world.shortfall(law, at.law, leash).mean())
    return row | {"shortfall": short}


def frontier(at: Stage, kl: float) -> float:
    """The largest mean true score of laws whose mean KL is `kl`: that of the optimum whose KL it is, by bisection."""
    low, high = 1e-4, 1e4  # kl_coef; the KL falls with it
    for _ in range(60):
        middle = (low * high) ** 0.5
        best = at.world.optimum(at.law, middle)
        low, high = (middle, high) if float(at.world.kl(best, at.law).mean()) > kl else (low, middle)
    return float(at.world.expected_reward(at.world.optimum(at.law, high)).mean())


def run(method: str, reward: str, leash: float, rate: float, seed: int, setting: Setting = FULL) -> list[dict]:
    """One method on one reward with one leash at one rate."""
    at = stage(seed, setting)
    law = at.law if method == "sft" else law_of(method, at, reward, leash, rate)
    row = measured(at, law, leash if method in IN_UNITS else None)
    sampled = setting.iterations * setting.samples if method not in ("sft", "dpo", "best_of_n") else 0
    return [row | {"sampled": sampled, "labels": len(at.labels) if reward == "labels" and method != "sft" else 0}]


@cache
def probe(method: str, reward: str, leash: float) -> Mapping[str, float]:
    """Two iterations of the same function, small."""
    row = run(method, reward, leash, TRIED[1], 0, SHORT)[0]
    return {name: number for name, number in row.items() if number == number}


def arm(part: str, method: str, reward: str, leash: float, rate: float) -> Arm:
    """One method on one reward with one leash at one rate."""
    names = {"part": part, "method": method, "reward": reward, "leash": f"{leash:g}", "rate": f"{rate:g}"}
    seeds = TUNING if part == "rates" else SEEDS
    settings = {"setting": FULL, "leash": leash, "rate": rate}
    first = LEASHES.get(method, (leash,))[0]
    return Arm(
        names,
        settings,
        seeds,
        lambda seed: run(method, reward, leash, rate, seed),
        lambda: probe(method, reward, first),
    )


def possible(method: str, reward: str) -> bool:
    """DPO has labels alone, and GRPO is taken to pieces where nothing but the method can be wrong."""
    return reward == ("labels" if method == "dpo" else "truth" if method in PIECES else reward)


def arms(part: str) -> list[Arm]:
    """What a part computes."""
    pairs = [(name, reward) for name in LEASHES for reward in REWARDS if possible(name, reward)]
    if part == "rates":
        return [
            arm(part, *pair, LEASHES[pair[0]][0], rate) for pair in pairs if pair[0] != "best_of_n" for rate in TRIED
        ]
    every = [(*pair, leash, RATES.get(pair, 0.0)) for pair in pairs for leash in LEASHES[pair[0]]]
    return [arm(part, "sft", "truth", 0.0, 0.0), *(arm(part, *one) for one in every)]


PARTS = ("rates", "crossed")

if __name__ == "__main__":
    chosen = options(__doc__, lambda parser: parser.add_argument("--part", choices=PARTS))
    torch.set_num_threads(1)
    for seed in chosen.seeds or [*TUNING, *SEEDS]:  # seed by seed: its arms share what it has made
        for part in [chosen.part] if chosen.part else PARTS:
            if (seed in TUNING) == (part == "rates"):
                compute(RESULTS, arms(part), [seed], chosen.dry_run)
