"""What `bench recipes` times: each recipe on texts of the town, and the trainer of TRL that does the same.

A step of DPO is one update on so many pairs. A step of RLOO and GRPO samples so many replies, four to a prompt, and
makes four updates, two passes over two minibatches. The reward is free: what is timed is the recipe.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import pairwise
from typing import Any

import torch
from timing import Clock
from torch import Tensor
from transformers import AutoModelForCausalLM
from trl_steps import Taken, trl_steps

from rlhf_lab.models.language_model import LanguageModel
from rlhf_lab.models.tokens import Rollout
from rlhf_lab.recipes.direct import DPOConfig, train_dpo
from rlhf_lab.recipes.group import GRPO, RLOO, GroupConfig, train_group
from rlhf_lab.recipes.sft import SFTConfig, train_sft
from rlhf_lab.records import Comparison, Conversation, Demonstration
from rlhf_lab.worlds import town

RATE = 1e-7  # near 0: steps cost what they always cost, and replies keep their length
REPLY, K, UPDATES = 24, 4, 4  # tokens of a sampled reply, replies to a prompt, updates on them
Look = Callable[[LanguageModel], dict]


@dataclass(frozen=True)
class Case:
    """A recipe and its counterpart.

    Attributes:
        name: as an option. unit: of what a step takes so many. rows: how many by default.
        train: (model, steps, rows, look) trains here, with a look after every step.
        trl: (model, steps, rows, rows in a pass or None) trains there; None rows in a pass are all of an update.
        passes: rows of an update in a pass here.
    """

    name: str
    unit: str
    rows: int
    passes: int
    train: Callable[[LanguageModel, int, int, Look], object]
    trl: Callable[[LanguageModel, int, int, int | None], Taken]


def as_messages(conversation: Conversation) -> list[dict]:
    return [vars(message) for message in conversation]


def said(text: str) -> list[dict]:
    return [{"role": "assistant", "content": text}]


def trained(lm: LanguageModel) -> Any:
    """A copy for a trainer that changes what it is given."""
    return lm.copy().model.requires_grad_(True)


# -- SFT --------------------------------------------------------------------------------------------------------------
@cache
def demonstrations(count: int) -> list[Demonstration]:
    return town.demonstrations(count)


def sft_here(lm: LanguageModel, steps: int, rows: int, look: Look) -> object:
    """`train_sft` on some demonstrations, again and again."""
    config = SFTConfig(steps=steps, demonstrations_per_step=rows, learning_rate=RATE, weight_decay=0.0, warmup=0)
    return train_sft(lm, demonstrations(8 * rows), replace(config, evaluate_every=1), evaluate=look)


def sft_there(
    lm: LanguageModel, steps: int, rows: int, micro_batch: int | None, of: int | None = None, **options: Any
) -> Taken:
    """Prompts with completions in messages, as TRL's documentation has them; the loss is on the completion alone."""
    data = [{"prompt": as_messages(d.prompt), "completion": said(d.response)} for d in demonstrations(of or 8 * rows)]
    options |= {"max_length": lm.max_length, "processing_class": lm.tokenizer, "learning_rate": RATE}
    return trl_steps("SFT", trained(lm), data, steps, rows, micro_batch=micro_batch, **options)


# -- DPO --------------------------------------------------------------------------------------------------------------
@cache
def pairs(count: int) -> list[Comparison]:
    """A demonstration as the better reply, the next one's as the worse; none is cut."""
    found = [one for one in town.demonstrations(2 * count + 50) if len(one.response) < 120][: count + 1]
    return [
        Comparison(one.prompt, one.response, other.response)
        for one, other in pairwise(found)
        if one.response != other.response
    ]


def dpo_here(lm: LanguageModel, steps: int, rows: int, look: Look, **changed: Any) -> object:
    """`train_dpo` on as many pairs as the steps need; the reference has seen them before the first."""
    config = DPOConfig(records_per_step=rows, micro_batch=16, learning_rate=RATE, warmup=0, evaluate_every=1)
    return train_dpo(lm, pairs(steps * rows)[: steps * rows], config, evaluate=look, **changed)


def dpo_there(lm: LanguageModel, steps: int, rows: int, micro_batch: int | None, **options: Any) -> Taken:
    """The same pairs, in the same order where they are one step; the reference has seen them before the first."""
    data = [
        {"prompt": as_messages(pair.prompt), "chosen": said(pair.chosen), "rejected": said(pair.rejected)}
        for pair in pairs(steps * rows)[: steps * rows]
    ]
    known = {"precompute_ref_log_probs": True, "precompute_ref_batch_size": 64, "beta": DPOConfig().beta}
    known |= {"max_length": lm.max_length, "processing_class": lm.tokenizer, "learning_rate": RATE}
    return trl_steps("DPO", trained(lm), data, steps, rows, micro_batch=micro_batch, **known | options)


# -- RLOO and GRPO ----------------------------------------------------------------------------------------------------
def by_length(rollout: Rollout) -> Tensor:
    """A reward that costs nothing and differs from reply to reply."""
    return torch.tensor([float(sum(ids) % 7) for ids in rollout.batch.response_ids.tolist()])


def by_length_there(completion_ids: list[list[int]], **_: Any) -> list[float]:
    return [float(sum(ids) % 7) for ids in completion_ids]


def asked(count: int) -> list[Conversation]:
    return [prompt.conversation for prompt in town.prompts("train", count, seed=0)]


def group_here(base: GroupConfig, lm: LanguageModel, steps: int, rows: int, look: Look) -> object:
    """`train_group`, four replies to a prompt."""
    config = replace(base, iterations=steps, prompts_per_iteration=rows // K, replies=K, minibatch_rows=rows // 2)
    config = replace(config, micro_batch=32, max_new_tokens=REPLY, learning_rate=RATE, evaluate_every=1)
    return train_group(lm, asked(8 * rows), by_length, config, evaluate=look)


def group_there(name: str, lm: LanguageModel, steps: int, rows: int, micro_batch: int | None, **options: Any) -> Taken:
    """Four of TRL's steps are one of ours: it counts updates."""
    data = [{"prompt": as_messages(prompt)} for prompt in asked(8 * rows)]
    sizes = {"num_generations": K, "max_completion_length": REPLY, "temperature": RLOO.temperature}
    sizes |= {"num_iterations": 2, "steps_per_generation": 2, "beta": GRPO.kl_coef if name == "GRPO" else RLOO.kl_coef}
    sizes |= {"loss_type": "grpo", "use_bias_correction_kl": False} if name == "GRPO" else {}
    sizes |= {"reward_funcs": [by_length_there], "processing_class": lm.tokenizer, "learning_rate": RATE}
    with tempfile.TemporaryDirectory() as folder:
        lm.save(folder)  # there the reference is loaded from where the model came from
        model = AutoModelForCausalLM.from_pretrained(folder)
        taken = trl_steps(name, model, data, UPDATES * steps, rows // 2, micro_batch=micro_batch, **sizes | options)
    parts = [taken.clocks[i : i + UPDATES] for i in range(0, len(taken.clocks), UPDATES)]
    return Taken([Clock(sum(c.wall for c in part), sum(c.cpu for c in part)) for part in parts], taken.losses)


CASES = {
    "sft": Case("SFT", "demonstrations", 128, 16, sft_here, sft_there),
    "dpo": Case("DPO", "pairs", 64, 16, dpo_here, dpo_there),
    "rloo": Case("RLOO", "replies", 64, 32, partial(group_here, RLOO), partial(group_there, "RLOO")),
    "grpo": Case("GRPO", "replies", 64, 32, partial(group_here, GRPO), partial(group_there, "GRPO")),
}
