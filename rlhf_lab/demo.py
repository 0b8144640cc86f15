"""The whole story in one run: base model -> SFT -> rankings -> reward model -> PPO -> evaluation -> report.

`run_demo` is what `python run.py demo` calls. Each stage leaves its result in the output folder under its final name,
so a run that was stopped goes on with `--resume` and ends where an uninterrupted one would have ended.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar

import torch

from rlhf_lab.classroom.metrics import write_metrics
from rlhf_lab.classroom.report import write_report
from rlhf_lab.classroom.summary import RunSummary, choose_examples
from rlhf_lab.evaluation.policies import ModelReport, evaluate_model, true_rewards
from rlhf_lab.evaluation.reward_models import RewardModelReport, reward_model_report
from rlhf_lab.experience.collect import rank_replies
from rlhf_lab.experience.rollouts import sample_responses
from rlhf_lab.feedback.events import read_events, write_events
from rlhf_lab.feedback.formats import read_preferences
from rlhf_lab.maths.intervals import paired_difference
from rlhf_lab.models.language_model import LanguageModel, load_language_model
from rlhf_lab.models.reward_model import RewardModel, load_reward_model
from rlhf_lab.models.tokens import Rollout, encode_prompts
from rlhf_lab.recipes.reward import RewardConfig, train_reward_model
from rlhf_lab.recipes.rlhf import RLHFConfig, train_rlhf
from rlhf_lab.recipes.sft import SFTConfig, train_sft
from rlhf_lab.records import Comparison, Conversation, Demonstration
from rlhf_lab.training.configs import require
from rlhf_lab.training.files import write_text_atomic
from rlhf_lab.training.history import History, Result
from rlhf_lab.training.randomness import generator_for
from rlhf_lab.worlds import town

HELD_OUT_SHARE = 0.1  # of the prompts in a feedback file: they test the reward model and the three models
TRACKED_PROMPTS = 96  # held-out prompts that are looked at while PPO runs

Trained = TypeVar("Trained", LanguageModel, RewardModel)


class Interrupted(RuntimeError):
    """A stage was stopped by the user; what it did is kept and `--resume` goes on from there."""


class OutputError(ValueError):
    """The output folder cannot be used; the message says why and what to do."""


@dataclass(frozen=True)
class DemoConfig:
    """Every choice of a demo run.

    Attributes:
        model: what `load_language_model` takes: "tiny", "small", "medium", a folder or a name on the hub.
        feedback: file of preferences (JSON Lines) instead of simulated raters, or None.
        labels: rankings by simulated raters, at least 20.
        test_labels: rankings of replies to held-out prompts that test the reward model, at least 1.
        replies: in a ranking, 2 to 8.
        demonstrations: for SFT, at least 1.
        evaluation_prompts: held-out prompts of the final evaluation, at least 8.
        texts: held-out documents for each perplexity, at least 1.
        seed: of everything; the recipes' own seeds are set to it.
        sft, reward, rlhf: the recipes' configs.
    """

    model: str = "tiny"
    feedback: str | None = None
    labels: int = 600
    test_labels: int = 150
    replies: int = 4
    demonstrations: int = 4000
    evaluation_prompts: int = 480
    texts: int = 300
    seed: int = 0
    sft: SFTConfig = field(default_factory=SFTConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    rlhf: RLHFConfig = field(default_factory=RLHFConfig)

    def __post_init__(self) -> None:
        low = {"labels": 20, "test_labels": 1, "demonstrations": 1, "evaluation_prompts": 8, "texts": 1}
        for name, least in low.items():
            require(getattr(self, name) >= least, name, getattr(self, name), f"at least {least}")
        require(2 <= self.replies <= 8, "replies", self.replies, "2 to 8")


@dataclass(frozen=True)
class Task:
    """What is learned from and tested on; nothing in a test comes from a prompt that was trained on.

    Attributes:
        demonstrations: what SFT imitates.
        prompts: what replies are sampled for, in feedback and in PPO.
        test_prompts: what the three models are compared on.
        preferences, test_preferences: from a file; empty where simulated raters are asked.
    """

    demonstrations: Sequence[Demonstration]
    prompts: Sequence[Conversation]
    test_prompts: Sequence[Conversation]
    preferences: Sequence[Comparison] = ()
    test_preferences: Sequence[Comparison] = ()


def town_task(config: DemoConfig) -> Task:
    """Pebble Town: prompts of the train split to learn from, of the held-out split to be tested on."""
    count = max(config.labels, config.rlhf.iterations * config.rlhf.prompts_per_iteration)
    return Task(
        town.demonstrations(config.demonstrations, config.seed),
        [prompt.conversation for prompt in town.prompts("train", count, config.seed)],
        town.distinct_prompts("held_out", config.evaluation_prompts, config.seed),
    )


def file_task(config: DemoConfig) -> Task:
    """The user's preferences, split by prompt. SFT imitates the town's demonstrators where every prompt is the town's,
    and the chosen replies otherwise."""
    if config.feedback is None:
        raise ValueError("feedback is None; expected a file of preferences in JSON Lines")
    preferences = read_preferences(config.feedback)
    prompts = list(dict.fromkeys(comparison.prompt for comparison in preferences))
    require(
        len(prompts) >= 2,
        "feedback",
        f"{len(prompts)} different prompt",
        "at least 2: one to learn from, one to test on",
    )
    order = torch.randperm(len(prompts), generator=generator_for(config.seed, "split")).tolist()
    held_out = {prompts[i] for i in order[: max(1, round(HELD_OUT_SHARE * len(prompts)))]}
    train = [c for c in preferences if c.prompt not in held_out]
    if all(town.recognise(prompt) for prompt in prompts):
        demonstrations = town.demonstrations(config.demonstrations, config.seed)
    else:
        demonstrations = [Demonstration(c.prompt, c.chosen) for c in train]
    test = [c for c in preferences if c.prompt in held_out]
    test_prompts = [prompt for prompt in prompts if prompt in held_out][: config.evaluation_prompts]
    return Task(demonstrations, [p for p in prompts if p not in held_out], test_prompts, train, test)


# -- stages ---------------------------------------------------------------------------------------------------------
@dataclass
class Workshop:
    """The output folder and the clock. A stage that is done is loaded, one that was stopped goes on."""

    out: Path
    device: str
    precision: torch.dtype
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str, title: str) -> Iterator[None]:
        """Say what happens, and how long it took."""
        print(f"{title} ...", flush=True)
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start
        print(f"  {self.seconds[name]:.0f} s", flush=True)

    def trained(
        self,
        name: str,
        load: Callable[[Path, str, torch.dtype], Trained],
        train: Callable[[Path], Result[Trained]],
    ) -> tuple[Trained, History]:
        """The model `name` and its history: loaded if it is there, else trained with a checkpoint and saved."""
        folder, rows, checkpoint = self.out / name, self.out / f"{name}_history.json", self.out / f"{name}.checkpoint"
        if not (folder / "config.json").is_file():
            result = train(checkpoint)
            if result.interrupted:
                raise Interrupted(f"stopped in the stage {name}; add --resume --out {self.out} to go on from here")
            write_text_atomic(rows, json.dumps(result.history.to_list()))
            result.model.save(folder)
            checkpoint.unlink(missing_ok=True)
        history = History.from_list(json.loads(rows.read_text()))
        return load(folder, self.device, self.precision), history


def collect_feedback(sft: LanguageModel, task: Task, config: DemoConfig, out: Path) -> tuple[Sequence, Sequence]:
    """(training, test) preferences: the file's, or rankings of sampled replies by the simulated rater."""
    if config.feedback:
        return task.preferences, task.test_preferences
    files = {
        "rankings.jsonl": (task.prompts, config.labels),
        "test_rankings.jsonl": (task.test_prompts, config.test_labels),
    }
    for name, (prompts, count) in files.items():
        if not (out / name).exists():
            generator = generator_for(config.seed, name)
            write_events(
                out / name, rank_replies(sft, prompts[:count], config.replies, generator, **config.rlhf.sampling)
            )
    training, test = (read_events(out / name) for name in files)
    return training, test


def run_demo(
    config: DemoConfig, out: str | Path, device: str = "cpu", precision: torch.dtype = torch.float32
) -> RunSummary:
    """Run every stage that `out` does not hold yet, and write the report.

    Args:
        config: every choice.
        out: folder for models, rankings, metrics.json and report.html; made by `open_output`.
        device, precision: where and in what arithmetic the models run.

    Returns:
        What was measured, as it stands in metrics.json.

    Raises:
        Interrupted: after Ctrl-C, once what was done is saved.
        ValueError, OSError: bad input; one line with a remedy.
    """
    shop = Workshop(Path(out), device, precision)
    with taken_back_if_it_fails(shop.out):
        base = load_language_model(config.model, device, precision)
        task = file_task(config) if config.feedback else town_task(config)
        encode_prompts(
            base, [*task.prompts, *task.test_prompts], config.rlhf.max_new_tokens
        )  # too long a prompt fails here
    with shop.stage("sft", f"1/5 SFT: imitate {len(task.demonstrations):,} demonstrations"):
        sft, _ = shop.trained(
            "sft", load_language_model, lambda file: train_sft(base, task.demonstrations, config.sft, checkpoint=file)
        )
    with shop.stage("feedback", "2/5 Feedback: " + _feedback_title(config, task)):
        preferences, tests = collect_feedback(sft, task, config, shop.out)
    with shop.stage("reward_model", f"3/5 Reward model: learn from {len(preferences):,} records"):
        rm, _ = shop.trained(
            "reward_model",
            load_reward_model,
            lambda file: train_reward_model(sft, preferences, config.reward, held_out=tests, checkpoint=file),
        )
        quality = reward_model_report(rm, tests)
    with shop.stage(
        "rlhf", f"4/5 PPO: {config.rlhf.iterations} iterations of {config.rlhf.prompts_per_iteration} replies"
    ):
        track = _tracker(task.test_prompts[:TRACKED_PROMPTS], rm, config)
        rlhf, history = shop.trained(
            "rlhf",
            load_language_model,
            lambda file: train_rlhf(sft, task.prompts, rm, config.rlhf, evaluate=track, checkpoint=file),
        )
    with shop.stage("evaluation", f"5/5 Evaluation on {len(task.test_prompts)} held-out prompts"):
        reports, rollouts = evaluate_models({"base": base, "sft": sft, "rlhf": rlhf}, task, rm, config)
    summary = summarise(config, reports, rollouts, rm, quality, history, shop.seconds)
    write_metrics(shop.out / "metrics.json", summary)
    write_report(shop.out / "report.html", summary)
    return summary


def _feedback_title(config: DemoConfig, task: Task) -> str:
    if config.feedback:
        return f"{len(task.preferences):,} comparisons from {config.feedback}"
    return f"a simulated rater ranks {config.replies} replies to each of {config.labels:,} prompts"


def _tracker(prompts: Sequence[Conversation], rm: RewardModel, config: DemoConfig) -> Callable[[LanguageModel], dict]:
    """What is looked at while PPO runs: true reward (where it is known) and proxy on the same held-out replies."""

    def track(lm: LanguageModel) -> dict[str, float]:
        generator = generator_for(config.seed, "track")
        rollout = sample_responses(lm, prompts, generator=generator, **config.rlhf.sampling)
        rewards = [reward for reward in true_rewards(rollout) if reward is not None]
        proxy = {"reward_score": float(rm.score_batch(rollout.batch).mean())}
        return proxy | ({"true_reward": sum(rewards) / len(rewards)} if rewards else {})

    return track


def evaluate_models(
    models: dict[str, LanguageModel], task: Task, rm: RewardModel, config: DemoConfig
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
    rm: RewardModel,
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
    if config.feedback:
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


# -- the output folder ----------------------------------------------------------------------------------------------
def open_output(out: str | Path | None, config: DemoConfig, resume: bool) -> Path:
    """The folder of this run, with the config in it; nobody's earlier results are overwritten.

    Args:
        out: the folder; None takes the next free runs/demo-N, or with `resume` the newest one.
        config: kept as config.json; `--resume` refuses another one.
        resume: go on with what is there.

    Raises:
        OutputError: results of another run are there, or there is nothing to resume.
    """
    if out is None:
        taken = sorted(
            Path("runs").glob("demo-*"), key=lambda path: int(path.name[5:]) if path.name[5:].isdigit() else 0
        )
        number = int(taken[-1].name[5:]) + (not resume) if taken else 1
        out = Path("runs") / f"demo-{number}"
    file, text = Path(out) / "config.json", json.dumps(asdict(config), indent=2) + "\n"
    if resume and not file.is_file():
        raise OutputError(f"{out} holds no run to resume; leave out --resume, or name the folder with --out")
    if resume and file.read_text() != text:
        raise OutputError(f"{out} is a run with other options ({file}); give the same ones, or another --out")
    if not resume and file.is_file():
        raise OutputError(
            f"{out} holds an earlier run; add --resume to go on with it, or name another folder with --out"
        )
    write_text_atomic(file, text)
    return Path(out)


@contextmanager
def taken_back_if_it_fails(out: Path) -> Iterator[None]:
    """Remove a folder that holds nothing but config.json when the run fails before its first stage, so that a later
    `--resume` does not take it for a run."""
    try:
        yield
    except BaseException:
        if [path.name for path in out.glob("*")] == ["config.json"]:
            (out / "config.json").unlink()
            out.rmdir()
        raise
