"""What one person's rankings do to a model: the recipe for few labels, seed by seed, beside PPO on the true reward.

    python run.py bench few_labels                 every run that data/results/few_labels.csv does not hold yet
    python run.py bench few_labels --seeds 0 1     those seeds
    python run.py bench few_labels --print         the verdicts of the rows that are there

Question: how much of the way from the SFT model to PPO on the true reward do 20, 60 and 200 usable rankings of four go,
and does it ever make the model worse?

The plan, written down before the first row: seeds 0 to 19. The recipe (features, grid of ridges, 9 iterations, leash of
0.2 log-odds a nat) was chosen on seeds 100 to 103 and looks at judgements alone. A seed is a replicate: its own
demonstrations, SFT model, prompts, replies, simulated careful rater, PPO run and held-out questions; the base model is
the shipped one. The oracle is PPO with its defaults on the true reward, standardised on the same replies, with the same
prompts; `late` is the gain of its score in the last fifth of the iterations over the fifth before, near 0 on a plateau.

    ratio = mean over seeds of (RLHF - SFT) / mean over seeds of (oracle - SFT),    seeds resampled jointly

`changed` is the share of held-out replies that differ from the SFT model's under the same random numbers. `best_4` and
`best_16` are the gain of the true reward where the reward picks the best of so many SFT replies, `most_4` and `most_16`
where the truth does.

"60 bald" asks the first ten of the same prompts and then, ten at a time, those of the 260 that BALD takes, the reward
fitted again before each ten; beside 60, which takes them as they come, it says whether choosing moves the policy. One
core, some seven minutes a seed.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache

os.environ.setdefault("TQDM_DISABLE", "1")

import numpy as np
import torch
from rows import RESULTS as FOLDER, Arm, compute, options, read_rows
from study import standardised_truth

from rlhf_lab.demo.first_words import opening
from rlhf_lab.evaluation.policies import true_rewards
from rlhf_lab.experience.collect import rank_replies
from rlhf_lab.experience.rollouts import sample_responses
from rlhf_lab.feedback.choice import choose, question_pool
from rlhf_lab.maths.intervals import mean_interval, paired_difference, ratio_of_means_bootstrap
from rlhf_lab.maths.power import detectable_difference
from rlhf_lab.models.language_model import LanguageModel, load_language_model
from rlhf_lab.models.linear_reward import LinearReward, mean_states
from rlhf_lab.models.tokens import Rollout
from rlhf_lab.recipes.few_labels import cautious, train_linear_reward
from rlhf_lab.recipes.rlhf import RLHFConfig, train_rlhf
from rlhf_lab.recipes.sft import SFTConfig, train_sft
from rlhf_lab.records import Conversation, Ranking
from rlhf_lab.training.randomness import generator_for
from rlhf_lab.worlds import town

RESULTS = FOLDER / "few_labels.csv"
LABELS, ORACLE = (60, 20, 200), "oracle"
CHOSEN, BATCH = "60 bald", 10
SEEDS = range(20)


@dataclass(frozen=True)
class Setting:
    """Every choice of the study but the number of labels; demonstrations, prompts and questions are counts."""

    demonstrations: int = 4000
    prompts: int = 1000
    ranked: int = 260  # of the prompts: enough for 200 rankings of replies that differ
    questions: int = 480
    picked: int = 160  # of the questions, on which best-of-n is tried
    sft: SFTConfig = field(default_factory=SFTConfig)
    rlhf: RLHFConfig = field(default_factory=lambda: RLHFConfig(evaluate_every=60))


FULL = Setting()
SHORT = Setting(  # of the probe
    demonstrations=16, prompts=40, ranked=30, questions=6, picked=4, sft=SFTConfig(steps=2, demonstrations_per_step=8),
    rlhf=RLHFConfig(iterations=2, prompts_per_iteration=8, minibatch_rows=4, max_new_tokens=24, evaluate_every=2),
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Stage:
    """What the arms of a seed share."""

    sft: LanguageModel
    rankings: list[Ranking]
    prompts: list[Conversation]
    questions: list[Conversation]
    before: Rollout  # the SFT model's replies to the questions
    states: torch.Tensor  # [16, picked, d] mean states of more of its replies to the first of them
    worth: torch.Tensor  # [16, picked] their true rewards


@cache
def stage(seed: int, setting: Setting) -> Stage:
    """The SFT model, the rankings of its replies, and its replies to the held-out questions."""
    demonstrations = town.demonstrations(setting.demonstrations, seed)
    sft = train_sft(load_language_model("tiny"), demonstrations, replace(setting.sft, seed=seed)).model
    prompts = [prompt.conversation for prompt in town.prompts("train", setting.prompts, seed)]
    rankings = rank_replies(sft, prompts[: setting.ranked], 4, generator_for(seed, "rankings"))
    questions = town.distinct_prompts("held_out", setting.questions, seed)
    before = replies(sft, questions, seed, setting)
    more = sample_responses(
        sft, questions[: setting.picked] * 16, generator=generator_for(seed, "best of n"), **setting.rlhf.sampling
    )
    worth = torch.tensor(true_rewards(more)).view(16, -1)
    return Stage(
        sft, rankings, prompts, questions, before, mean_states(sft, more.batch).view(16, len(worth[0]), -1), worth
    )


def replies(lm: LanguageModel, questions: list[Conversation], seed: int, setting: Setting) -> Rollout:
    """A reply to each question; the same random numbers for every model of a seed."""
    return sample_responses(lm, questions, generator=generator_for(seed, "evaluation"), **setting.rlhf.sampling)


def judged(labels: str, at: Stage) -> list[Ranking]:
    """So many rankings as they come, or those that a rule asks for, ten at a time."""
    count, _, rule = labels.partition(" ")
    if not rule:
        return at.rankings[: int(count)]
    taken, generator = list(range(BATCH)), generator_for(0, "choice")
    while len(taken) < int(count):
        reward = train_linear_reward(at.sft, [at.rankings[i] for i in taken]).model
        pool = question_pool(reward, *zip(*((ranking.prompt, ranking.replies) for ranking in at.rankings), strict=True))
        taken += choose(rule, pool, min(BATCH, int(count) - len(taken)), taken, generator)
    return [at.rankings[i] for i in taken]


def run(labels: str, seed: int, setting: Setting = FULL) -> list[dict[str, float]]:
    """PPO on the reward of so many labels, or on the truth: what it gains on the held-out questions."""
    at = stage(seed, setting)
    numbers: dict[str, float] = {}
    if labels == ORACLE:
        reward, config = standardised_truth(at.rankings), replace(setting.rlhf, seed=seed)
    else:
        rankings = judged(labels, at)
        result = train_linear_reward(at.sft, rankings)
        reward, held_out = result.model, result.held_out_accuracy
        config = replace(cautious(setting.rlhf, reward), seed=seed)
        first = opening(len(rankings), True, held_out)
        numbers = {"accuracy": held_out.mean, "accuracy_low": held_out.low, "score_std": reward.score_std}
        numbers |= {"warned": float(first.startswith("Warning")), "said_better": float("became better" in first)}
        numbers |= best_of_n(reward, at)
    policy = train_rlhf(at.sft, at.prompts, reward, config)
    after = replies(policy.model, at.questions, seed, setting)
    changed = [a != b for a, b in zip(after.texts, at.before.texts, strict=True)]
    before, now = (sum(true_rewards(rollout)) / len(at.questions) for rollout in (at.before, after))
    scores = policy.history.column("score")[1]
    fifth = max(1, len(scores) // 5)
    late = float(scores[-fifth:].mean() - scores[-2 * fifth : -fifth].mean())
    names = ("accuracy", "accuracy_low", "score_std", "warned", "said_better", "best_4", "best_16", "most_4", "most_16")
    blank = dict.fromkeys(names, float("nan"))
    row = {"sft": before, "true": now, "gain": now - before, "changed": sum(changed) / len(changed)}
    return [row | {"kl": policy.history.last("kl"), "kl_coef": config.kl_coef, "late": late} | blank | numbers]


def best_of_n(reward: LinearReward, at: Stage) -> dict[str, float]:
    """The gain of the true reward over one reply where the best of n is taken, by the reward and by the truth."""
    scores = ((at.states - reward.centre) / reward.scale) @ reward.weights
    found = {}
    for count in (4, 16):
        groups, worth = scores.view(16 // count, count, -1), at.worth.view(16 // count, count, -1)
        picked = worth.gather(1, groups.argmax(1, keepdim=True)).mean()
        found[f"best_{count}"] = float(picked - at.worth.mean())
        found[f"most_{count}"] = float(worth.max(1).values.mean() - at.worth.mean())
    return found


@cache
def probe(labels: str) -> Mapping[str, float]:
    """Two iterations of the same function, small."""
    row = run(labels, 0, SHORT)[0]
    return {name: number for name, number in row.items() if number == number}


def arm(labels: str) -> Arm:
    """So many labels, or the truth."""
    settings = {"setting": FULL, "labels": labels}
    short = {ORACLE: ORACLE, CHOSEN: "12 bald"}.get(labels, "20")
    return Arm({"labels": labels}, settings, SEEDS, lambda seed: run(labels, seed), lambda: probe(short))


def arms() -> list[Arm]:
    """20, 60 and 200 labels, 60 chosen by BALD, and PPO on the true reward."""
    return [*(arm(str(count)) for count in LABELS), arm(CHOSEN), arm(ORACLE)]


def verdicts() -> list[str]:
    """One line of each number of labels: the gain, the worst seed, what changed, the ratio; and what choosing does."""
    rows = read_rows(RESULTS)
    of = {
        name: {int(row["seed"]): row for row in rows if row["labels"] == name} for name in {r["labels"] for r in rows}
    }
    lines = []
    for count in map(str, sorted(LABELS)):
        seeds = sorted(of.get(count, {}).keys())
        gains = [float(of[count][seed]["gain"]) for seed in seeds]
        both = sorted(set(seeds) & of.get(ORACLE, {}).keys())
        if len(seeds) < 2:
            continue
        gain, worse = mean_interval(gains), sum(g < 0 for g in gains)
        changed = sum(float(of[count][seed]["changed"]) for seed in seeds) / len(seeds)
        line = (
            f"{count:>3} rankings, {len(seeds)} seeds: true reward {gain.mean:+.2f} [{gain.low:+.2f}, {gain.high:+.2f}]"
        )
        line += f", worst {min(gains):+.2f}, worse in {worse}; {changed:.0%} of the replies changed"
        if len(both) > 1:
            top = [float(of[count][seed]["gain"]) for seed in both]
            ratio = ratio_of_means_bootstrap(top, [float(of[ORACLE][seed]["gain"]) for seed in both])
            line += f"; {ratio.mean:.2f} [{ratio.low:.2f}, {ratio.high:.2f}] of the way, {ratio.count} seeds"
        lines.append(line)
    if len(both := sorted(of.get(CHOSEN, {}).keys() & of.get("60", {}).keys())) > 1:
        chosen, drawn = ([float(of[name][seed]["gain"]) for seed in both] for name in (CHOSEN, "60"))
        less, spread = paired_difference(chosen, drawn), float(np.std(np.subtract(chosen, drawn), ddof=1))
        lines.append(
            f"{CHOSEN} less 60 as they come, {len(both)} seeds: {less.mean:+.2f} [{less.low:+.2f}, {less.high:+.2f}], "
            f"{less.verdict}; detectable {detectable_difference(spread, less.count):.2f}"
        )
    return lines


def arguments(parser) -> None:
    parser.add_argument("--print", action="store_true", help="the verdicts of the rows that are there")


if __name__ == "__main__":
    chosen = options(__doc__, arguments)
    torch.set_num_threads(1)
    if chosen.print:
        print("\n".join(verdicts()))
    else:
        for seed in chosen.seeds or SEEDS:  # seed by seed: its arms share what it has made
            compute(RESULTS, arms(), [seed], chosen.dry_run)
