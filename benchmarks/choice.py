"""The study behind chapter 09: what to ask next, and in which form, by the accuracy of a reward from few labels.

    python run.py bench choice                  every run that data/results/choice.csv does not hold yet
    python run.py bench choice --seeds 0 1      those seeds
    python run.py bench choice --print          what the stored rows say, with intervals
    python run.py bench choice --print --events mine.jsonl    and what your own recorded times make of it

The plan, written down before the first row. Two questions. (1) Does a rule of `feedback.choice` need fewer rankings of
4 than drawing the prompts? Rankings by CAREFUL, in batches of 10; the first batch is drawn and the same for all rules
of a seed, then the linear reward (`recipes.few_labels`) is fitted again and the rule takes the next batch. (2) Which
form of question tells most? A ranking of 4, a comparison of two replies (ties are labels, and tell this reward
nothing), a rating from 1 to 5 of one reply (least squares), an edit of one reply (it is better than the reply), on the
same drawn prompts, by simulated people who are careful.

Measured is the expected accuracy on all pairs of the replies to held-out prompts, beside the best possible one, after
20, 40, 60 and 120 labels, on 20 seeds, paired by seed. The first outcome is that at 60 labels. The width of the prior
is chosen by cross-validation on the labels at 20, 40, 60 and 120 of them, for every rule and form alike (and at 10
where a rule asks the reward); nothing else is chosen. A seed has its own prompts, replies and answers; a prompt gets
the same answer whichever rule asks it. Four seeds share an SFT model, which takes longest. Replies are drawn at
temperature 1; prompts with fewer than 4 different ones are left out.

The columns asked_... tell of the selection: the accuracy that cross-validation reports on the asked prompts, what two
raters agree on there, and the best possible there. Intervals are of 95 %, not corrected: of the 16 that compare a rule
with drawing, 0.8 exclude 0 by chance where no rule differs. The minimum detectable effect is the true difference that
such an interval excludes 0 for in 80 % of studies like this one. One busy core, some twenty-five minutes.
"""

import os
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from itertools import combinations
from pathlib import Path

os.environ.setdefault("TQDM_DISABLE", "1")

import numpy as np
import torch
from rows import RESULTS as FOLDER, Arm, Row, compute, flatten, options, read_rows

from rlhf_lab.experience.collect import rank_replies
from rlhf_lab.feedback.choice import RULES, choose, linear_pool, seconds_per_label
from rlhf_lab.feedback.events import read_events
from rlhf_lab.maths.intervals import Interval, mean_interval, paired_difference
from rlhf_lab.maths.power import detectable_difference
from rlhf_lab.maths.preferences import best_possible_accuracy, expected_accuracy, rater_agreement
from rlhf_lab.models.language_model import LanguageModel, load_language_model
from rlhf_lab.models.linear_reward import mean_states
from rlhf_lab.models.tokens import encode_prompts, encode_responses, make_batch
from rlhf_lab.recipes.few_labels import Differences, LinearRewardConfig, best_row, cross_validate, posterior, typical
from rlhf_lab.recipes.sft import SFTConfig, train_sft
from rlhf_lab.records import Choice, Edit, Ranking, Rating
from rlhf_lab.training.randomness import generator_for
from rlhf_lab.worlds import town
from rlhf_lab.worlds.town.people import Comparer, ScaleRater
from rlhf_lab.worlds.town.writers import Editor

RESULTS = FOLDER / "choice.csv"
SEEDS, K, SHARED = range(20), 4, 4  # replies to a prompt; seeds that share an SFT model
FIRST = 60  # labels of the first outcome
PAIRS = list(combinations(range(K), 2))
Columns = dict[str, float | None]


@dataclass(frozen=True)
class Setting:
    """Every choice of the study but the rule and the form; prompts are counts, before those with equal replies go."""

    demonstrations: int = 4000
    prompts: int = 480
    held_out: int = 160
    temperature: float = 1.0
    labels: tuple[int, ...] = (20, 40, 60, 120)
    batch: int = 10
    sft: SFTConfig = field(default_factory=lambda: SFTConfig(steps=40, demonstrations_per_step=64))
    ridges: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0, 10.0)
    folds: int = 5

    @property
    def reward(self) -> LinearRewardConfig:
        return LinearRewardConfig(ridges=self.ridges, folds=self.folds)


FULL = Setting()
SHORT = Setting(
    demonstrations=16, prompts=60, held_out=12, labels=(12, 16), batch=4,
    sft=SFTConfig(steps=2, demonstrations_per_step=8),
)  # fmt: skip


# -- what a seed has --------------------------------------------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class Stage:
    """What all runs of a seed share.

    Attributes:
        x: [P, 4, d] features of the replies that may be judged.
        p: [P, 6] how likely CAREFUL prefers the first of each pair of them.
        tests: [T, d] features of the first less the second reply of held-out pairs.
        test_p: [T] as p.
        signs: [P, 6] +1 where his ranking has the first above the second, -1 where below.
        compared: [P] what he said of the first two replies, 1, 0 or -1.
        ratings: [P] of the first reply, 1 to 5.
        edits: [P, d] features of the edited first reply less those of the reply; 0 where he left it.
    """

    x: np.ndarray
    p: torch.Tensor
    tests: np.ndarray
    test_p: torch.Tensor
    signs: np.ndarray
    compared: np.ndarray
    ratings: np.ndarray
    edits: np.ndarray


@lru_cache(maxsize=2)
def sft_model(group: int, setting: Setting) -> LanguageModel:
    demonstrations = town.demonstrations(setting.demonstrations, group)
    return train_sft(load_language_model("tiny"), demonstrations, replace(setting.sft, seed=group)).model


def states(lm: LanguageModel, prompts: Sequence, texts: Sequence[str]) -> np.ndarray:
    batch = make_batch(encode_prompts(lm, prompts), encode_responses(lm, texts, 64), lm.pad_id, lm.device)
    return mean_states(lm, batch).numpy()


def states_and_chances(lm: LanguageModel, rankings: Sequence[Ranking]) -> tuple[np.ndarray, torch.Tensor]:
    """[P, 4, d] states of the replies, and [P, 6] how likely the first of each pair is preferred."""
    prompts = [ranking.prompt for ranking in rankings for _ in ranking.replies]
    texts = [reply for ranking in rankings for reply in ranking.replies]
    verdicts = town.score_replies(prompts, texts)
    worth = torch.tensor([town.CAREFUL.utility(*one) for one in zip(verdicts, texts, strict=True)], dtype=torch.float64)
    first, second = torch.tensor(PAIRS).mT
    worth = worth.reshape(-1, K)
    return states(lm, prompts, texts).reshape(len(rankings), K, -1), town.CAREFUL.prefers(
        worth[:, first] - worth[:, second]
    )


def four_replies(lm: LanguageModel, split: str, count: int, seed: int, setting: Setting) -> list[Ranking]:
    """Rankings of the prompts that have so many different replies."""
    prompts, generator = town.distinct_prompts(split, count, seed), generator_for(seed, split)
    ranked = rank_replies(lm, prompts, K, generator, temperature=setting.temperature)
    return [ranking for ranking in ranked if len(ranking.replies) == K]


@lru_cache(maxsize=2)
def stage(seed: int, setting: Setting) -> Stage:
    """Prompts, replies, features, and what people say of them in every form."""
    lm = sft_model(seed // SHARED, setting)
    asked, held_out = (
        four_replies(lm, split, count, seed, setting)
        for split, count in (("train", setting.prompts), ("held_out", setting.held_out))
    )
    h, p = states_and_chances(lm, asked)
    tests, test_p = states_and_chances(lm, held_out)
    centre, scale = typical(list(h))
    place = [{reply: rank for rank, (reply,) in enumerate(ranking.tiers)} for ranking in asked]
    signs = np.array([[1.0 if at[a] < at[b] else -1.0 for a, b in PAIRS] for at in place])
    generator = generator_for(seed, "other forms")
    ask = lambda answer, *which: [  # noqa: E731
        answer(ranking.prompt, *(ranking.replies[i] for i in which), generator).record for ranking in asked
    ]
    compared = [record.outcome for record in ask(Comparer().compare, 0, 1) if isinstance(record, Choice)]
    ratings = [record.score for record in ask(ScaleRater().rate, 0) if isinstance(record, Rating)]
    edited = [record.edited for record in ask(Editor().edit, 0) if isinstance(record, Edit)]
    changed = np.array([text != ranking.replies[0] for text, ranking in zip(edited, asked, strict=True)])
    moved = (states(lm, [ranking.prompt for ranking in asked], edited) - h[:, 0]) * changed[:, None]
    first, second = np.array(PAIRS).T
    return Stage(
        (h - centre) / scale, p, ((tests[:, first] - tests[:, second]) / scale).reshape(-1, h.shape[-1]),
        test_p.flatten(), signs, np.array(compared), np.array(ratings), moved / scale,
    )  # fmt: skip


# -- learning from labels ---------------------------------------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class Fit:
    """Weights, the ridge that they were fitted with, the posterior's covariance, and the accuracy that is reported."""

    weights: np.ndarray
    ridge: float
    covariance: np.ndarray | None = None
    reported: float | None = None


def pairs_of(x: np.ndarray, choices: float) -> Differences:
    """Differences [n, R, d], better minus worse, of n prompts; rows of zeros are no pair."""
    rows, prompts = x.reshape(-1, x.shape[-1]), np.repeat(np.arange(len(x)), x.shape[1])
    there = np.abs(rows).max(1) > 0
    numbers = np.unique(prompts[there], return_inverse=True)[1]
    return Differences(rows[there], np.full(there.sum(), choices / x.shape[1]), numbers)


def fit_pairs(pairs: Differences, config: LinearRewardConfig, ridge: float | None) -> Fit:
    """With a ridge that is known, or with the one of the lowest held-out loss."""
    reported = None
    if ridge is None:
        best = best_row(cross_validate(pairs, config))
        ridge, reported = best["ridge"], best["held_out_accuracy"]
    weights, covariance = posterior(pairs, ridge)
    return Fit(weights, ridge, covariance, reported)


def rankings(at: Stage, asked: Sequence[int], config: LinearRewardConfig, ridge: float | None) -> Fit:
    first, second = np.array(PAIRS).T
    better = (at.x[asked][:, first] - at.x[asked][:, second]) * at.signs[asked][..., None]
    return fit_pairs(pairs_of(better, K - 1), config, ridge)


def comparisons(at: Stage, asked: Sequence[int], config: LinearRewardConfig, ridge: float | None) -> Fit:
    better = (at.x[asked, 0] - at.x[asked, 1]) * at.compared[asked, None]
    return fit_pairs(pairs_of(better[:, None], 1), config, ridge)


def edits(at: Stage, asked: Sequence[int], config: LinearRewardConfig, ridge: float | None) -> Fit:
    return fit_pairs(pairs_of(at.edits[asked][:, None], 1), config, ridge)


def least_squares(x: np.ndarray, y: np.ndarray, ridge: float) -> tuple[np.ndarray, float]:
    """Weights and offset."""
    middle = x.mean(0)
    inner = (x - middle).T @ (x - middle) + ridge * np.eye(x.shape[1])
    weights = np.linalg.solve(inner, (x - middle).T @ (y - y.mean()))
    return weights, float(y.mean() - middle @ weights)


def ratings(at: Stage, asked: Sequence[int], config: LinearRewardConfig, ridge: float | None) -> Fit:
    """Standardised ratings by least squares, the ridge by cross-validation over the same values and folds."""
    x, y = at.x[asked, 0], at.ratings[asked]
    y = (y - y.mean()) / max(float(y.std()), 1e-9)
    order = torch.randperm(len(x), generator=generator_for(config.seed, "linear reward folds")).numpy()
    fold = order % min(config.folds, len(x))
    if ridge is None:
        errors = []
        for tried in config.ridges:
            parts = [(least_squares(x[fold != k], y[fold != k], tried), fold == k) for k in np.unique(fold)]
            errors.append(sum(((x[out] @ w + b - y[out]) ** 2).sum() for (w, b), out in parts))
        ridge = config.ridges[int(np.argmin(errors))]
    return Fit(least_squares(x, y, ridge)[0], ridge)


LEARN: dict[str, Callable[..., Fit]] = {"rank": rankings, "compare": comparisons, "rate": ratings, "edit": edits}
ARMS = [("rank", rule) for rule in RULES] + [(form, "random") for form in LEARN if form != "rank"]


def run(form: str, rule: str, seed: int, setting: Setting = FULL) -> list[Row]:
    """Ask, learn and measure: a row for each number of labels."""
    at, asked, rows = stage(seed, setting), [], []
    generator, fit = generator_for(seed, "choice"), Fit(np.zeros(0), 1.0)
    features = [torch.from_numpy(x) for x in at.x]
    while len(asked) < max(setting.labels):
        now = "random" if not asked else rule
        covariance = np.eye(at.x.shape[-1]) if fit.covariance is None else fit.covariance
        weights = fit.weights if fit.covariance is not None else np.zeros(len(covariance))
        pool = linear_pool(features, torch.from_numpy(weights), torch.from_numpy(covariance))
        asked += choose(now, pool, setting.batch, asked, generator)
        measures, tunes = len(asked) in setting.labels, len(asked) in (setting.batch, *setting.labels)
        if measures or rule != "random":  # which needs no reward before it chooses
            fit = LEARN[form](at, asked, setting.reward, None if tunes else fit.ridge)
        if measures:
            rows.append({"labels": len(asked)} | measured(at, asked, fit))
    return rows


def measured(at: Stage, asked: Sequence[int], fit: Fit) -> Columns:
    margins, p = torch.from_numpy(at.tests @ fit.weights), at.p[asked].flatten()
    return {
        "accuracy": float(expected_accuracy(margins, at.test_p)),
        "best_accuracy": float(best_possible_accuracy(at.test_p)),
        "asked_accuracy": fit.reported,
        "asked_agreement": float(rater_agreement(p)),
        "asked_best_accuracy": float(best_possible_accuracy(p)),
        "ridge": fit.ridge,
    }


# -- rows -------------------------------------------------------------------------------------------------------------
@cache
def probe(form: str, rule: str) -> dict[str, float]:
    """The same function, small."""
    return dict(flatten(run(form, rule, 0, SHORT), "labels"))


def arm(form: str, rule: str) -> Arm:
    settings = {"setting": FULL, "replies": K, "shared": SHARED}
    return Arm(
        {"form": form, "rule": rule}, settings, SEEDS,
        lambda seed: run(form, rule, seed), lambda: probe(form, rule),
    )  # fmt: skip


def arms() -> list[Arm]:
    """Five rules that choose rankings, and three other forms on drawn prompts."""
    return [arm(*names) for names in ARMS]


# -- what the rows say ------------------------------------------------------------------------------------------------
def column(form: str, rule: str, labels: int, name: str = "accuracy") -> list[float]:
    """A column of the stored rows by seed."""
    wanted = {"form": form, "rule": rule, "labels": str(labels)}
    mine = [row for row in read_rows(RESULTS) if wanted.items() <= row.items()]
    return [float(row[name]) for row in sorted(mine, key=lambda row: int(row["seed"]))]


def against(form: str, rule: str, labels: int, name: str = "accuracy") -> tuple[Interval, float]:
    """Paired difference to rankings of drawn prompts, and what could be detected."""
    mine, drawn = column(form, rule, labels, name), column("rank", "random", labels, name)
    difference = paired_difference(mine, drawn)
    return difference, detectable_difference(float(np.std(np.subtract(mine, drawn), ddof=1)), len(mine))


def print_results(events: Path | None = None) -> None:
    for labels in FULL.labels:
        drawn, best = (mean_interval(column("rank", "random", labels, name)) for name in ("accuracy", "best_accuracy"))
        first = ", the first outcome" if labels == FIRST else ""
        bar = f"{drawn.mean:.3f} [{drawn.low:.3f}, {drawn.high:.3f}]"
        print(f"\n{labels} labels{first}: rankings of drawn prompts {bar}, best possible {best.mean:.3f}")
        for form, rule in ARMS[1:]:
            found, least = against(form, rule, labels)
            change = f"{100 * found.mean:+.1f} points [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"
            print(f"  {form:8}{rule:12}{change}, detectable {100 * least:.1f}: {found.verdict}")
            if form == "rank":
                for name in ("asked_accuracy", "asked_agreement"):
                    bias, _ = against(form, rule, labels, name)
                    print(f"      {name} {100 * bias.mean:+.1f} [{100 * bias.low:+.1f}, {100 * bias.high:+.1f}]")
    print("\nSeconds a label, from recorded times of people:")
    known = seconds_per_label(read_events(events) if events else [])
    for form in LEARN:
        print(f"  {form:8}{known[form]}{reached(form, known[form].median)}")


def reached(form: str, seconds: float | None, minutes: int = 10) -> str:
    """The accuracy that so many minutes of this form buy, between the stored numbers of labels."""
    if seconds is None:
        return ""
    labels = 60 * minutes / seconds
    if not min(FULL.labels) <= labels <= max(FULL.labels):
        return f"; {minutes} minutes are {labels:.0f} labels, outside of what was measured"
    means = [np.mean(column(form, "random", count)) for count in FULL.labels]
    return f"; {minutes} minutes are {labels:.0f} labels, accuracy {np.interp(labels, FULL.labels, means):.3f}"


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--print", action="store_true", help="print what the stored rows say")
    parser.add_argument("--events", type=Path, help="a log of your own judgements, for seconds per label")


if __name__ == "__main__":
    chosen = options(__doc__, arguments)
    torch.set_num_threads(1)
    if chosen.print:
        print_results(chosen.events)
    else:
        for seed in chosen.seeds or SEEDS:  # seed by seed: its arms share what it has made
            compute(RESULTS, arms(), [seed], chosen.dry_run)
