"""The whole story in one run: base model -> SFT -> rankings -> reward model -> PPO -> evaluation -> report.

`run_demo` is what `python run.py demo` calls. Each stage leaves its result in the output folder under its final name,
so a run that was stopped goes on with `--resume` and ends where an uninterrupted one would have ended.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import torch

from rlhf_lab.classroom.metrics import write_metrics
from rlhf_lab.classroom.report import write_report
from rlhf_lab.classroom.summary import RunSummary, choose_examples
from rlhf_lab.demo.first_words import opening
from rlhf_lab.demo.output import check_inputs, open_output, taken_back_if_it_fails
from rlhf_lab.demo.task import DemoConfig, Task, file_task, town_task
from rlhf_lab.evaluation.policies import ModelReport, evaluate_model, true_rewards
from rlhf_lab.evaluation.reward_models import RewardModelReport, reward_model_report
from rlhf_lab.experience.collect import rank_replies
from rlhf_lab.experience.rollouts import sample_responses
from rlhf_lab.feedback.events import read_records, write_events
from rlhf_lab.maths.intervals import paired_difference
from rlhf_lab.models.language_model import LanguageModel, load_language_model
from rlhf_lab.models.linear_reward import LinearReward, load_linear_reward
from rlhf_lab.models.reward_model import RewardModel, load_reward_model
from rlhf_lab.models.tokens import Rollout, encode_prompts
from rlhf_lab.recipes.few_labels import LinearRewardConfig, are_few, cautious, held_out_accuracy, train_linear_reward
from rlhf_lab.recipes.reward import train_reward_model
from rlhf_lab.recipes.rlhf import train_rlhf
from rlhf_lab.recipes.sft import train_sft
from rlhf_lab.records import Conversation
from rlhf_lab.training.files import write_text_atomic
from rlhf_lab.training.folders import RunFolder, read_mark
from rlhf_lab.training.history import History, Result
from rlhf_lab.training.printing import printable
from rlhf_lab.training.randomness import generator_for
from rlhf_lab.worlds import town

__all__ = ["DemoConfig", "Interrupted", "open_output", "run_demo"]
TRACKED_PROMPTS = 96  # held-out prompts that are looked at while PPO runs

Judge = RewardModel | LinearReward
Trained = TypeVar("Trained", LanguageModel, RewardModel, LinearReward)


class Interrupted(RuntimeError):
    """A stage was stopped by the user; what it did is kept and `--resume` goes on from there."""


# -- stages ---------------------------------------------------------------------------------------------------------
@dataclass
class Workshop:
    """The output folder and the clock. A stage that is done is loaded, one that was stopped goes on."""

    folder: RunFolder
    device: str
    precision: torch.dtype
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str, title: str) -> Iterator[None]:
        """Say what happens, and how long it took."""
        print(f"{printable(title)} ...", flush=True)
        start = time.perf_counter()
        try:
            yield
        except KeyboardInterrupt:  # between two loops, which stop on their own
            raise Interrupted(self._stopped(name)) from None
        self.seconds[name] = time.perf_counter() - start
        print(f"  {self.seconds[name]:.0f} s", flush=True)

    def _stopped(self, name: str) -> str:
        return f"stopped in the stage {name}; add --resume --out {self.folder.path} to go on from here"

    def trained(
        self,
        name: str,
        load: Callable[[Path, str, torch.dtype], Trained],
        train: Callable[[Path], Result[Trained]],
    ) -> tuple[Trained, History]:
        """The model `name` and its history: loaded if it is there, else trained with a checkpoint and saved."""
        folder, rows, checkpoint = self.folder, f"{name}_history.json", f"{name}.checkpoint"
        if not (folder.has(name) and folder.has(rows)):
            folder.claim(name)  # what is in the way is said before the work
            result = train(folder.claim(checkpoint))
            if result.interrupted:
                raise Interrupted(self._stopped(name))
            with folder.writing(rows) as path:
                write_text_atomic(path, json.dumps(result.history.to_list()))
            with folder.writing(name) as path:
                result.model.save(path)
            folder.drop(checkpoint)
        history = History.from_list(json.loads((folder.path / rows).read_text()))
        return load(folder.path / name, self.device, self.precision), history


def collect_feedback(
    sft: LanguageModel, task: Task, config: DemoConfig, folder: RunFolder
) -> tuple[Sequence, Sequence]:
    """(training, test) preferences: the file's, or rankings of sampled replies by the simulated rater."""
    if config.feedback is not None:
        return task.preferences, task.test_preferences
    files = {
        "rankings.jsonl": (task.prompts, config.labels),
        "test_rankings.jsonl": (task.test_prompts, config.test_labels),
    }
    for name, (prompts, count) in files.items():
        if not folder.has(name):
            generator = generator_for(config.seed, name)
            rankings = rank_replies(sft, prompts[:count], config.replies, generator, **config.rlhf.sampling)
            with folder.writing(name) as path:
                write_events(path, rankings)
    training, test = (read_records(folder.path / name) for name in files)
    return training, test


def run_demo(
    config: DemoConfig, out: RunFolder | str | Path, device: str = "cpu", precision: torch.dtype = torch.float32
) -> RunSummary:
    """Run every stage that `out` does not hold yet, and write the report.

    Args:
        config: every choice.
        out: folder for models, rankings, metrics.json and report.html; opened by `open_output`, or here.
        device, precision: where and in what arithmetic the models run.

    Returns:
        What was measured, as it stands in metrics.json.

    Raises:
        Interrupted: after Ctrl-C, once what was done is saved.
        ValueError, OSError: bad input; one line with a remedy.
    """
    if not isinstance(out, RunFolder):
        out = open_output(out, config, resume=read_mark(Path(out)) is not None)
    shop = Workshop(out, device, precision)
    with taken_back_if_it_fails(shop.folder):
        base = load_language_model(config.model, device, precision)
        check_inputs(shop.folder, config, base)
        task = town_task(config) if config.feedback is None else file_task(config, base)
        encode_prompts(base, [*task.prompts, *task.test_prompts], config.rlhf.max_new_tokens)  # none is too long
    with shop.stage("sft", f"1/5 SFT: imitate {len(task.demonstrations):,} demonstrations"):
        sft, _ = shop.trained(
            "sft", load_language_model, lambda file: train_sft(base, task.demonstrations, config.sft, checkpoint=file)
        )
    with shop.stage("feedback", "2/5 Feedback: " + _feedback_title(config, task)):
        preferences, tests = collect_feedback(sft, task, config, shop.folder)
    with shop.stage("reward_model", f"3/5 Reward model: learn from {len(preferences):,} records"):
        few = are_few(preferences, config.few)
        rm, learned = train_judge(few, sft, preferences, tests, config, shop)
        quality = reward_model_report(rm, tests, config.reward.max_new_tokens)
        tested = None if quality is None else quality.accuracy
        first = opening(len(preferences), few, held_out_accuracy(learned) if few else tested)
        print(f"  {first}", flush=True)
    plan = cautious(config.rlhf, rm) if isinstance(rm, LinearReward) else config.rlhf
    with shop.stage("rlhf", f"4/5 PPO: {plan.iterations} iterations of {plan.prompts_per_iteration} replies"):
        track = _tracker(task.test_prompts[:TRACKED_PROMPTS], rm, config)
        rlhf, history = shop.trained(
            "rlhf",
            load_language_model,
            lambda file: train_rlhf(sft, task.prompts, rm, plan, evaluate=track, checkpoint=file),
        )
    with shop.stage("evaluation", f"5/5 Evaluation on {len(task.test_prompts)} held-out prompts"):
        reports, rollouts = evaluate_models({"base": base, "sft": sft, "rlhf": rlhf}, task, rm, config)
    summary = replace(summarise(config, reports, rollouts, rm, quality, history, shop.seconds), opening=first)
    for name, write in (("metrics.json", write_metrics), ("report.html", write_report)):
        with shop.folder.writing(name) as path:
            write(path, summary)
    return summary


def train_judge(
    few: bool, sft: LanguageModel, preferences: Sequence, tests: Sequence, config: DemoConfig, shop: Workshop
) -> tuple[Judge, History]:
    """The reward model and its history: linear in the SFT model's states where labels are few, else a whole network."""
    if few:
        print("  few labels: a linear reward, a short PPO run and a stiff leash (chapter 09 says why)", flush=True)
        settings = LinearRewardConfig(max_new_tokens=config.reward.max_new_tokens, seed=config.reward.seed)
        return shop.trained(
            "reward_model", load_linear_reward, lambda _: train_linear_reward(sft, preferences, settings)
        )
    return shop.trained(
        "reward_model",
        load_reward_model,
        lambda file: train_reward_model(sft, preferences, config.reward, held_out=tests, checkpoint=file),
    )


def _feedback_title(config: DemoConfig, task: Task) -> str:
    if config.feedback is not None:
        return f"{len(task.preferences):,} comparisons from {config.feedback}"
    return f"a simulated rater ranks {config.replies} replies to each of {config.labels:,} prompts"


def _tracker(prompts: Sequence[Conversation], rm: Judge, config: DemoConfig) -> Callable[[LanguageModel], dict]:
    """What is looked at while PPO runs: true reward (where it is known) and proxy on the same held-out replies."""

    def track(lm: LanguageModel) -> dict[str, float]:
        generator = generator_for(config.seed, "track")
        rollout = sample_responses(lm, prompts, generator=generator, **config.rlhf.sampling)
        rewards = [reward for reward in true_rewards(rollout) if reward is not None]
        proxy = {"reward_score": float(rm.score_batch(rollout.batch).mean())}
        return proxy | ({"true_reward": sum(rewards) / len(rewards)} if rewards else {})

    return track


def evaluate_models(
    models: dict[str, LanguageModel], task: Task, rm: Judge, config: DemoConfig
) -> tuple[dict[str, ModelReport], dict[str, Rollout]]:
    """(reports, rollouts) of all models on the same prompts with the same random numbers."""
    good, bad = (town.documents(config.texts, config.seed + 77_000, author) for author in (town.GOOD, town.BAD))
    pairs = {
        name: evaluate_model(
            lm,
            task.test_prompts,
            generator=generator_for(config.seed, "evaluation"),
            reference=models["sft"],
            reward_model=rm,
            good_texts=good,
            bad_texts=bad,
            **config.rlhf.sampling,
        )
        for name, lm in models.items()
    }
    return {name: pair[0] for name, pair in pairs.items()}, {name: pair[1] for name, pair in pairs.items()}


def summarise(
    config: DemoConfig,
    reports: dict[str, ModelReport],
    rollouts: dict[str, Rollout],
    rm: Judge,
    quality: RewardModelReport | None,
    history: History,
    seconds: dict[str, float],
) -> RunSummary:
    """Everything that the table, metrics.json and report.html show."""
    rewards = {name: true_rewards(rollout) for name, rollout in rollouts.items()}
    steps = {"SFT - base": ("sft", "base"), "RLHF - SFT": ("rlhf", "sft")}
    if reports["sft"].true_reward is None:
        steps = {}
    differences = {label: paired_difference(rewards[a], rewards[b]) for label, (a, b) in steps.items()}
    notes = ["The rankings are by a simulated rater, whose utility is the true reward plus noise."]
    notes += ["The prompts hold phrasings, names or place-question pairs that were never trained on."]
    if config.feedback is not None:
        notes = [f"The preferences are from {Path(config.feedback).name}, split by prompt."]
    return RunSummary(
        reports=reports,
        config=asdict(config),
        seconds=seconds,
        reward_model=quality,
        differences=differences,
        history=history,
        scores={name: rm.score_batch(rollout.batch).tolist() for name, rollout in rollouts.items()},
        examples=choose_examples(rollouts),
        notes=notes,
    )
