"""The study behind chapters 00 and 10: RLHF against SFT and against PPO on the true reward, seed by seed.

    python run.py bench study                 every seed that data/results/ does not hold yet
    python run.py bench study --seeds 0 1     those seeds
    python run.py bench study --part tone     learning from a file of preferences for ruder or politer replies

A seed is a replicate: its own demonstrations, SFT, rankings, reward model, PPO and held-out prompts; the base model is
the shipped one. Each row carries a key of this script, the configs and the base model, and a row with another key is
computed again. Learning rates were chosen on seeds 100 and above.
"""

import argparse
import csv
import hashlib
import io
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch

from rlhf_lab import demo, evaluation, town
from rlhf_lab.checkpoints import generator_for, write_text_atomic
from rlhf_lab.feedback.jsonl import write_preferences
from rlhf_lab.feedback.records import Comparison
from rlhf_lab.language_model import load_language_model
from rlhf_lab.recipes import RewardConfig, RLHFConfig, SFTConfig, fine_tune, train_reward_model, train_rlhf

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "data" / "results"
LABELS, REPLIES, TEST_PROMPTS, EVALUATION_PROMPTS, TEXTS = 2500, 4, 950, 960, 400
SFT, REWARD, RLHF = SFTConfig(), RewardConfig(), RLHFConfig()
PTX_COEF = 1.0
TONE_LABELS = 600
PARTS = ("helpful", "truthful", "harmless", "form", "well_formed", "over_refusal", "rude", "polite", "length")


def key() -> str:
    """What the results depend on, as a short hash."""
    digest = hashlib.sha256(Path(__file__).read_bytes())
    digest.update(repr([asdict(config) for config in (SFT, REWARD, RLHF, demo.DemoConfig())]).encode())
    digest.update((ROOT / "data" / "model" / "model.safetensors").read_bytes())
    return digest.hexdigest()[:16]


def seed_row(seed: int) -> dict[str, float]:
    """Everything measured on one seed."""
    start = time.perf_counter()
    base = load_language_model("tiny")
    sft = fine_tune(base, town.demonstrations(demo.DemoConfig.demonstrations, seed), replace(SFT, seed=seed)).model
    prompts = [prompt.conversation for prompt in town.prompts("train", LABELS, seed)]
    rankings = demo.rank_replies(sft, prompts, REPLIES, generator_for(seed, "rankings"))
    rm = train_reward_model(sft, rankings, replace(REWARD, seed=seed)).model
    config = replace(RLHF, seed=seed)
    truth = standardised_truth(rankings)
    good = town.documents(2000, seed=seed + 50_000, author=town.GOOD)
    runs = {
        "rlhf": train_rlhf(sft, prompts, rm, config),
        "oracle": train_rlhf(sft, prompts, truth, config, value_init=rm),
        "ptx": train_rlhf(sft, prompts, rm, replace(config, lm_coef=PTX_COEF), lm_texts=good),
    }
    models = {"base": base, "sft": sft} | {name: run.model for name, run in runs.items()}
    row = {"seed": seed, "rankings": len(rankings)}
    fresh = [p for p in demo.distinct_prompts("train", 3 * TEST_PROMPTS, seed + 1000) if p not in set(prompts)]
    tests = {"rm": fresh[:TEST_PROMPTS], "rm_held_out": demo.distinct_prompts("held_out", TEST_PROMPTS, seed)}
    for name, unseen in tests.items():
        row |= reward_model_quality(name, rm, sft, unseen, seed)
    for name, lm in models.items():
        row |= measure(name, lm, sft, rm, seed)
    for name in ("rlhf", "oracle"):  # is the run on its plateau? the last fifth against the fifth before
        scores = runs[name].history.column("score")[1]
        fifth = len(scores) // 5
        row[f"late_gain_{name}"] = float(scores[-fifth:].mean() - scores[-2 * fifth : -fifth].mean())
    row["minutes"] = (time.perf_counter() - start) / 60
    return row


def reward_model_quality(name, rm, sft, unseen, seed) -> dict[str, float]:
    """Accuracy of the reward model on replies to prompts that it has not seen, and the best that anybody could do."""
    quality = demo.reward_model_report(rm, demo.rank_replies(sft, unseen, REPLIES, generator_for(seed, name)))
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
    return lambda rollout: (torch.tensor(evaluation.true_rewards(rollout)) - mean) / std


def measure(name, lm, sft, rm, seed) -> dict[str, float]:
    """What the table of the demo shows, on this seed's held-out prompts; every model gets the same random numbers."""
    report, _ = evaluation.evaluate_model(
        lm,
        demo.distinct_prompts("held_out", EVALUATION_PROMPTS, seed),
        generator=generator_for(seed, "evaluation"),
        reference=sft,
        reward_model=rm,
        good_texts=town.documents(TEXTS, seed=seed + 77_000, author=town.GOOD),
        bad_texts=town.documents(TEXTS, seed=seed + 77_000, author=town.BAD),
        **demo.sampling_law(RLHF),
    )
    row = {
        f"reward_{name}": report.true_reward.mean,
        f"score_{name}": report.reward_score.mean,
        f"kl_{name}": report.kl.mean,
    }
    row |= {f"{part}_{name}": getattr(report, part).mean for part in PARTS}
    row |= {f"perplexity_good_{name}": report.perplexity.mean, f"perplexity_bad_{name}": report.perplexity_bad.mean}
    return row | {f"reward_{skill}_{name}": parts["true_reward"].mean for skill, parts in report.by_skill.items()}


def tone_row(seed: int, taste: str) -> dict[str, float]:
    """The demo on a file of preferences with a taste: shares of rude and polite replies before and after."""
    rater = town.Rater(taste, noise=1.0, taste=taste, taste_weight=4.0)
    base = load_language_model("tiny")
    prompts = [prompt.conversation for prompt in town.prompts("train", TONE_LABELS, seed + 900)]
    generator = generator_for(seed, "tone", taste)
    comparisons = []
    for ranking in demo.rank_replies(base, prompts, 2, generator):
        verdicts = town.score_replies([ranking.prompt] * 2, ranking.replies)
        best, worst = (tier[0] for tier in rater.rank(ranking.prompt, ranking.replies, verdicts, generator).tiers)
        comparisons.append(Comparison(ranking.prompt, ranking.replies[best], ranking.replies[worst]))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{taste}.jsonl"
        write_preferences(file, comparisons)
        config = demo.DemoConfig(
            feedback=str(file), seed=seed, sft=replace(SFT, seed=seed), reward=replace(REWARD, seed=seed),
            rlhf=RLHFConfig(seed=seed),
        )  # fmt: skip
        summary = demo.run_demo(config, demo.open_output(Path(folder) / "out", config, resume=False))
    shares = {
        f"{tone}_{name}": getattr(summary.reports[name], tone).mean
        for tone in ("rude", "polite")
        for name in ("sft", "rlhf")
    }
    return {"seed": seed, "taste": taste, "comparisons": len(comparisons)} | shares


# -- the files ------------------------------------------------------------------------------------------------------
def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file; none where there is no file."""
    return list(csv.DictReader(io.StringIO(path.read_text()))) if path.exists() else []


def add_row(path: Path, row: dict, same: tuple[str, ...]) -> None:
    """Put `row` into the file, in the place of one with the same values of `same`; sorted, atomically."""
    row = {name: f"{value:.6g}" if isinstance(value, float) else str(value) for name, value in row.items()}
    kept = [old for old in read_rows(path) if any(old[name] != row[name] for name in same) and old.keys() == row.keys()]
    rows = sorted([*kept, row], key=lambda r: [r[name].zfill(9) for name in same])
    text = io.StringIO()
    writer = csv.DictWriter(text, list(row), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text_atomic(path, text.getvalue())


def main() -> None:
    """Compute what is missing, one seed after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=("seeds", "tone"), default="seeds")
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    tone = options.part == "tone"
    path = RESULTS / ("feedback_tone.csv" if tone else "rlhf_seeds.csv")
    same = ("seed", "taste") if tone else ("seed",)
    for seed in options.seeds or range(3 if tone else 10):
        for taste in ("ruder", "politer") if tone else ("",):
            wanted = {"seed": str(seed), "taste": taste, "key": key()}
            if any(all(row.get(n) == wanted[n] for n in (*same, "key")) for row in read_rows(path)):
                print(f"seed {seed} {taste}: there already", file=sys.stderr)
                continue
            row = tone_row(seed, taste) if tone else seed_row(seed)
            add_row(path, {"key": key()} | row, same)
            print({name: round(v, 3) if isinstance(v, float) else v for name, v in row.items()}, flush=True)


if __name__ == "__main__":
    main()
