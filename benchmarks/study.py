"""The study behind chapters 00 and 10: RLHF against SFT and against PPO on the true reward, seed by seed.

    python run.py bench study                 every seed that data/results/ does not hold yet
    python run.py bench study --seeds 0 1     those seeds
    python run.py bench study --part tone     learning from a file of preferences for ruder or politer replies

A seed is a replicate: its own demonstrations, SFT, rankings, reward model, PPO and held-out prompts; the base model is
the shipped one. Learning rates were chosen on seeds 100 and above. A seed takes 10 to 20 minutes on one core.
"""

import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from rows import RESULTS, Arm, at_least, compute, flatten, options

from rlhf_lab import demo
from rlhf_lab.evaluation.policies import evaluate_model, true_rewards
from rlhf_lab.evaluation.reward_models import reward_model_report
from rlhf_lab.experience.collect import rank_replies
from rlhf_lab.feedback.formats import write_preferences
from rlhf_lab.models.language_model import load_language_model
from rlhf_lab.recipes.reward import RewardConfig, train_reward_model
from rlhf_lab.recipes.rlhf import RLHFConfig, train_rlhf
from rlhf_lab.recipes.sft import SFTConfig, train_sft
from rlhf_lab.records import Comparison
from rlhf_lab.training.randomness import generator_for
from rlhf_lab.worlds import town

SEEDS, TONE = RESULTS / "rlhf_seeds.csv", RESULTS / "feedback_tone.csv"
PARTS = ("helpful", "truthful", "harmless", "form", "well_formed", "over_refusal", "rude", "polite", "length")
TASTES = ("ruder", "politer")


@dataclass(frozen=True)
class Setting:
    """Every choice of the study; replies in a ranking, prompts and texts are counts."""

    demonstrations: int = 4000
    labels: int = 2500
    replies: int = 4
    test_prompts: int = 950
    evaluation_prompts: int = 960
    texts: int = 400
    ptx_texts: int = 2000
    ptx_coef: float = 1.0
    sft: SFTConfig = field(default_factory=SFTConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    rlhf: RLHFConfig = field(default_factory=RLHFConfig)


FULL = Setting()
SHORT = Setting(  # of the probe
    demonstrations=64, labels=12, test_prompts=4, evaluation_prompts=8, texts=4, ptx_texts=16,
    sft=SFTConfig(steps=2, demonstrations_per_step=16), reward=RewardConfig(epochs=2, rankings_per_step=12),
    rlhf=RLHFConfig(iterations=2, prompts_per_iteration=8, minibatch_rows=8),
)  # fmt: skip


def seed_row(seed: int, setting: Setting = FULL) -> dict[str, float]:
    """Everything measured on one seed."""
    start = time.perf_counter()
    base = load_language_model("tiny")
    sft = train_sft(base, town.demonstrations(setting.demonstrations, seed), replace(setting.sft, seed=seed)).model
    prompts = [prompt.conversation for prompt in town.prompts("train", setting.labels, seed)]
    rankings = rank_replies(sft, prompts, setting.replies, generator_for(seed, "rankings"))
    rm = train_reward_model(sft, rankings, replace(setting.reward, seed=seed)).model
    config = replace(setting.rlhf, seed=seed)
    truth = standardised_truth(rankings)
    good = town.documents(setting.ptx_texts, seed=seed + 50_000, author=town.GOOD)
    runs = {
        "rlhf": train_rlhf(sft, prompts, rm, config),
        "oracle": train_rlhf(sft, prompts, truth, config, value_init=rm),
        "ptx": train_rlhf(sft, prompts, rm, replace(config, lm_coef=setting.ptx_coef), lm_texts=good),
    }
    models = {"base": base, "sft": sft} | {name: run.model for name, run in runs.items()}
    row = {"rankings": len(rankings)}
    count = setting.test_prompts
    fresh = [p for p in town.distinct_prompts("train", 3 * count, seed + 1000) if p not in set(prompts)]
    tests = {"rm": fresh[:count], "rm_held_out": town.distinct_prompts("held_out", count, seed)}
    for name, unseen in tests.items():
        row |= reward_model_quality(name, rm, sft, unseen, seed, setting.replies)
    for name, lm in models.items():
        row |= measure(name, lm, sft, rm, seed, setting)
    for name in ("rlhf", "oracle"):  # is the run on its plateau? the last fifth against the fifth before
        scores = runs[name].history.column("score")[1]
        fifth = max(1, len(scores) // 5)
        row[f"late_gain_{name}"] = float(scores[-fifth:].mean() - scores[-2 * fifth : -fifth].mean())
    row["minutes"] = (time.perf_counter() - start) / 60
    return row


def reward_model_quality(name, rm, sft, unseen, seed, replies) -> dict[str, float]:
    """Accuracy of the reward model on replies to prompts that it has not seen, and the best that anybody could do."""
    quality = reward_model_report(rm, rank_replies(sft, unseen, replies, generator_for(seed, name)))
    return {
        f"{name}_pairs": len(quality.agreed),
        f"{name}_accuracy": quality.accuracy.mean,
        f"{name}_expected_accuracy": quality.expected_accuracy,
        f"{name}_ceiling": quality.ceiling,
    }


def standardised_truth(rankings):
    """The true reward as PPO's reward, in the scale of a reward model: mean 0 and standard deviation 1 on the rankings'
    replies, so that one KL coefficient means the same in both runs."""
    verdicts = [v for r in rankings for v in town.score_replies([r.prompt] * len(r.replies), r.replies)]
    rewards = torch.tensor([verdict.reward for verdict in verdicts])
    mean, std = rewards.mean(), rewards.std()
    return lambda rollout: (torch.tensor(true_rewards(rollout)) - mean) / std


def measure(name, lm, sft, rm, seed, setting) -> dict[str, float]:
    """What the table of the demo shows, on this seed's held-out prompts; every model gets the same random numbers."""
    report, _ = evaluate_model(
        lm,
        town.distinct_prompts("held_out", setting.evaluation_prompts, seed),
        generator=generator_for(seed, "evaluation"),
        reference=sft,
        reward_model=rm,
        good_texts=town.documents(setting.texts, seed=seed + 77_000, author=town.GOOD),
        bad_texts=town.documents(setting.texts, seed=seed + 77_000, author=town.BAD),
        **setting.rlhf.sampling,
    )
    row = {
        f"reward_{name}": report.true_reward.mean,
        f"score_{name}": report.reward_score.mean,
        f"kl_{name}": report.kl.mean,
    }
    row |= {f"{part}_{name}": getattr(report, part).mean for part in PARTS}
    row |= {f"perplexity_good_{name}": report.perplexity.mean, f"perplexity_bad_{name}": report.perplexity_bad.mean}
    return row | {f"reward_{skill}_{name}": parts["true_reward"].mean for skill, parts in report.by_skill.items()}


@dataclass(frozen=True)
class ToneSetting:
    """Every choice of the runs on a taste."""

    labels: int = 600
    taste_weight: float = 4.0
    demonstrations: int = 4000
    evaluation_prompts: int = 480
    texts: int = 300
    sft: SFTConfig = field(default_factory=SFTConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    rlhf: RLHFConfig = field(default_factory=RLHFConfig)


FULL_TONE = ToneSetting()
SHORT_TONE = ToneSetting(labels=60, demonstrations=64, texts=4, sft=SHORT.sft, reward=SHORT.reward, rlhf=SHORT.rlhf)


def tone_run(seed: int, taste: str, setting: ToneSetting = FULL_TONE) -> tuple[int, demo.RunSummary]:
    """The demo on a file of preferences with a taste: how many there are, and what came out."""
    rater = town.Rater(taste, noise=1.0, taste=taste, taste_weight=setting.taste_weight)
    base = load_language_model("tiny")
    prompts = [prompt.conversation for prompt in town.prompts("train", setting.labels, seed + 900)]
    generator = generator_for(seed, "tone", taste)
    comparisons = []
    for ranking in rank_replies(base, prompts, 2, generator):
        verdicts = town.score_replies([ranking.prompt] * 2, ranking.replies)
        judged = rater.rank(ranking.prompt, ranking.replies, verdicts, generator).record
        best, worst = (tier[0] for tier in judged.tiers)
        comparisons.append(Comparison(ranking.prompt, ranking.replies[best], ranking.replies[worst]))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{taste}.jsonl"
        write_preferences(file, comparisons)
        recipes = {name: replace(getattr(setting, name), seed=seed) for name in ("sft", "reward", "rlhf")}
        config = demo.DemoConfig(
            feedback=str(file), seed=seed, few=0, demonstrations=setting.demonstrations,
            evaluation_prompts=setting.evaluation_prompts, texts=setting.texts, **recipes,
        )  # fmt: skip
        return len(comparisons), demo.run_demo(config, demo.open_output(Path(folder) / "out", config, resume=False))


def tone_row(seed: int, taste: str) -> dict[str, float]:
    """Shares of rude and polite replies before and after."""
    count, summary = tone_run(seed, taste)
    shares = {
        f"{tone}_{name}": getattr(summary.reports[name], tone).mean
        for tone in ("rude", "polite")
        for name in ("sft", "rlhf")
    }
    return {"comparisons": count} | shares


def tone_probe(taste: str) -> dict[str, float]:
    """The same run, short; shares of so few replies say little, so what else is known of them is kept too.

    Without the perplexities, which no row holds: those of a file are of its few held-out replies.
    """
    count, summary = tone_run(0, taste, SHORT_TONE)
    means = {
        f"{name} {model}": x
        for model, report in summary.reports.items()
        for name, x in report.means("").items()
        if x is not None and not name.startswith("perplexity")
    }
    return {"comparisons": count} | means


ARM = Arm({}, {"setting": FULL}, range(10), lambda seed: [seed_row(seed)], lambda: dict(flatten([seed_row(0, SHORT)])))


def tone_arm(taste: str) -> Arm:
    settings = {"setting": FULL_TONE}
    return Arm({"taste": taste}, settings, range(3), lambda seed: [tone_row(seed, taste)], lambda: tone_probe(taste))


def arguments(parser) -> None:
    parser.add_argument("--part", choices=("seeds", "tone"), default="seeds")
    parser.add_argument("--threads", type=at_least(1), default=2)


if __name__ == "__main__":
    chosen = options(__doc__, arguments)
    torch.set_num_threads(chosen.threads)
    if chosen.part == "tone":
        compute(TONE, [tone_arm(taste) for taste in TASTES], chosen.seeds, chosen.dry_run)
    else:
        compute(SEEDS, [ARM], chosen.seeds, chosen.dry_run)
