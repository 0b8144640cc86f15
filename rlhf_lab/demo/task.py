"""What the demo learns from and is tested on: Pebble Town, or the user's own preferences."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from rlhf_lab.feedback.fitting import fit_prompts
from rlhf_lab.feedback.formats import read_preferences
from rlhf_lab.feedback.lines import complain
from rlhf_lab.models.language_model import LanguageModel
from rlhf_lab.recipes.few_labels import FEW
from rlhf_lab.recipes.reward import RewardConfig
from rlhf_lab.recipes.rlhf import RLHFConfig
from rlhf_lab.recipes.sft import SFTConfig
from rlhf_lab.records import Comparison, Conversation, Demonstration
from rlhf_lab.training.configs import above_zero, at_least_one, require, whole
from rlhf_lab.training.randomness import generator_for
from rlhf_lab.worlds import town

HELD_OUT_SHARE = 0.1  # of the prompts in a feedback file: they test the reward model and the three models


@dataclass(frozen=True)
class DemoConfig:
    """Every choice of a demo run.

    Attributes:
        model: what `load_language_model` takes: "tiny", "small", "medium", a folder or a name on the hub.
        feedback: file of preferences (JSON Lines) instead of simulated raters, or None.
        prompt_tokens: longest prompt in that file, in tokens; None: what the context leaves beside a reply.
        last_turns: of a longer prompt the last turns are kept that fit.
        skip_bad: lines that cannot be used, or whose prompt is still too long, are left out and counted.
        labels: rankings by simulated raters, at least 20.
        test_labels: rankings of replies to held-out prompts that test the reward model, at least 1.
        replies: in a ranking, 2 to 8.
        few: preferences with fewer choices than this take the recipe for few labels; 0: never.
        demonstrations: for SFT, at least 1.
        sft_epochs: most passes of SFT over the demonstrations; None: as many as its steps make.
        evaluation_prompts: held-out prompts of the final evaluation, at least 8.
        texts: held-out documents for each perplexity, at least 1.
        seed: of everything; the recipes' own seeds are set to it.
        sft, reward, rlhf: the recipes' configs.
    """

    model: str = "tiny"
    feedback: str | None = None
    prompt_tokens: int | None = None
    last_turns: bool = False
    skip_bad: bool = False
    labels: int = 600
    test_labels: int = 150
    replies: int = 4
    few: int = FEW
    demonstrations: int = 4000
    sft_epochs: float | None = None
    evaluation_prompts: int = 480
    texts: int = 300
    seed: int = 0
    sft: SFTConfig = field(default_factory=SFTConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    rlhf: RLHFConfig = field(default_factory=RLHFConfig)

    def __post_init__(self) -> None:
        low = {"labels": 20, "test_labels": 1, "demonstrations": 1, "evaluation_prompts": 8, "texts": 1}
        for name, least in low.items():
            whole(self, name, least=least)
        whole(self, "replies", least=2)
        whole(self, "few", least=0)
        require(self.replies <= 8, "replies", self.replies, "2 to 8")
        if self.prompt_tokens is not None:
            at_least_one(self, "prompt_tokens")
        if self.sft_epochs is not None:
            above_zero(self, "sft_epochs")
        whole(self, "seed")


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


def preferences_of(config: DemoConfig, lm: LanguageModel) -> list[Comparison]:
    """The preferences in the user's file that the model can read; what is left out or shortened is said.

    Raises:
        FeedbackError: there are other lines, and the config does not say to skip them; names them all.
    """
    if config.feedback is None:
        raise ValueError("feedback is None; expected a file of preferences in JSON Lines")
    path = Path(config.feedback)
    read = read_preferences(path, skip_bad=True)
    room = lm.max_length - config.rlhf.max_new_tokens
    kept, long, shortened = fit_prompts(lm, read, min(room, config.prompt_tokens or room), config.last_turns)
    bad = sorted([*read.skipped, *long], key=lambda line: line.number)
    if bad and not config.skip_bad:
        with advised("--skip-bad leaves such lines out, --last-turns shortens long prompts"):
            complain(path, bad, len(read) + len(read.skipped))
    if bad or shortened:
        print(f"  {len(bad)} lines left out, {shortened} prompts shortened to their last turns", flush=True)
    return kept


def file_task(config: DemoConfig, lm: LanguageModel) -> Task:
    """The user's preferences, split by prompt. SFT imitates the town's demonstrators where every prompt is the town's,
    and the chosen replies otherwise."""
    preferences = preferences_of(config, lm)
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


@contextmanager
def advised(advice: str) -> Iterator[None]:
    """Add an advice to whatever is raised."""
    try:
        yield
    except Exception as error:
        error.add_note(f"({advice}.)")
        raise
