"""The resume matrix: a run goes on with the inputs it began with, and each other input is refused by its name."""

import copy
from dataclasses import replace

import pytest
import torch
from toy_models import PROMPTS, word_model

from rlhf_lab.models.language_model import LanguageModel
from rlhf_lab.models.reward_model import RewardModel
from rlhf_lab.recipes.direct import DPOConfig, train_dpo
from rlhf_lab.recipes.group import GroupConfig, train_group
from rlhf_lab.recipes.pretrain import PretrainConfig, train_base_model, train_tokenizer
from rlhf_lab.recipes.reward import RewardConfig, train_reward_model
from rlhf_lab.recipes.rlhf import RLHFConfig, train_rlhf
from rlhf_lab.recipes.sft import SFTConfig, train_sft
from rlhf_lab.records import Comparison, Demonstration
from rlhf_lab.training.files import CheckpointError

DEMONSTRATIONS = [Demonstration(prompt, "c c") for prompt in PROMPTS]
COMPARISONS = [Comparison(prompt, "c c", "a") for prompt in PROMPTS]
DOCUMENTS = ["the zoo opens at nine", "the shop closes at six"] * 4
OTHER_WORDS = ("<|pad|>", "<|end|>", "b", "a", "c", "d")


def other_weights(lm):
    lm = lm.copy()
    with torch.no_grad():
        next(lm.model.parameters())[2, 0] += 1e-3
    return lm


def other_tokenizer(lm):
    return LanguageModel(lm.model, word_model(words=OTHER_WORDS).tokenizer, lm.end_id, lm.pad_id)


def in_bfloat16(lm):
    return replace(lm, precision=torch.bfloat16)


def reward_model(seed=3, std=2.0):
    model = RewardModel.from_language_model(word_model(), torch.Generator().manual_seed(seed))
    model.score_std = std
    return model


def count_c(rollout):
    return torch.tensor([text.count("c") for text in rollout.texts], dtype=torch.float32)


def pretrain(documents=DOCUMENTS, config=None, checkpoint=None, **changed):
    shape = PretrainConfig(steps=1, documents_per_step=2, context=32, vocab_size=270)
    options = {"tokenizer": train_tokenizer(DOCUMENTS, 270)} | changed
    return train_base_model(documents, replace(shape, **config or {}), checkpoint=checkpoint, **options)


def sft(lm=None, demonstrations=DEMONSTRATIONS, config=None, checkpoint=None):
    shape = SFTConfig(steps=1, demonstrations_per_step=2, max_new_tokens=8)
    return train_sft(lm or word_model(), demonstrations, replace(shape, **config or {}), checkpoint=checkpoint)


def reward(lm=None, feedback=COMPARISONS[:4], config=None, checkpoint=None, **changed):
    shape, options = RewardConfig(epochs=1, max_new_tokens=8), {"held_out": COMPARISONS[4:]} | changed
    lm = lm or word_model()
    return train_reward_model(lm, feedback, replace(shape, **config or {}), checkpoint=checkpoint, **options)


def rlhf(lm=None, prompts=PROMPTS, score=count_c, config=None, checkpoint=None, **changed):
    shape = RLHFConfig(iterations=1, prompts_per_iteration=6, minibatch_rows=6, max_new_tokens=4, lm_coef=0.1)
    options = {"lm_texts": ["a b", "c d"], "value_init": reward_model(5)} | changed
    lm = lm or word_model()
    return train_rlhf(lm, prompts, score, replace(shape, **config or {}), checkpoint=checkpoint, **options)


def dpo(lm=None, feedback=COMPARISONS, config=None, checkpoint=None, **changed):
    shape = DPOConfig(max_new_tokens=8)
    return train_dpo(lm or word_model(), feedback, replace(shape, **config or {}), checkpoint=checkpoint, **changed)


def of_groups(lm=None, prompts=PROMPTS, score=count_c, config=None, checkpoint=None, **changed):
    shape = GroupConfig(iterations=1, prompts_per_iteration=6, minibatch_rows=24, max_new_tokens=4)
    lm = lm or word_model()
    return train_group(lm, prompts, score, replace(shape, **config or {}), checkpoint=checkpoint, **changed)


RECIPES = {"pretrain": pretrain, "sft": sft, "dpo": dpo, "group": of_groups, "reward": reward, "rlhf": rlhf}
TOY = word_model()
CHANGES = [  # recipe, what is named, the changed input
    ("pretrain", "seed", {"config": {"seed": 1}}),
    ("pretrain", "documents", {"documents": DOCUMENTS[::-1]}),
    ("pretrain", "documents", {"tokenizer": train_tokenizer(DOCUMENTS, 265)}),
    ("pretrain", "precision", {"precision": torch.bfloat16}),
    ("sft", "learning_rate", {"config": {"learning_rate": 1e-3}}),
    ("sft", "model", {"lm": other_weights(TOY)}),
    ("sft", "demonstrations", {"demonstrations": DEMONSTRATIONS[::-1]}),
    ("sft", "demonstrations", {"lm": other_tokenizer(TOY)}),
    ("sft", "precision", {"lm": in_bfloat16(TOY)}),
    ("dpo", "beta", {"config": {"beta": 0.2}}),
    ("dpo", "model", {"lm": other_weights(TOY), "reference": TOY}),
    ("dpo", "feedback", {"feedback": COMPARISONS[::-1]}),
    ("dpo", "feedback", {"weights": [1.0] * (len(COMPARISONS) - 1) + [2.0]}),
    ("dpo", "feedback", {"lm": other_tokenizer(TOY)}),
    ("dpo", "reference", {"reference": other_weights(TOY)}),
    ("dpo", "precision", {"lm": in_bfloat16(TOY)}),
    ("group", "leash", {"config": {"leash": "k3"}}),
    ("group", "policy", {"lm": other_weights(TOY), "reference": TOY}),
    ("group", "precision", {"lm": in_bfloat16(TOY)}),
    ("group", "prompts", {"prompts": PROMPTS[::-1]}),
    ("group", "reference", {"reference": other_weights(TOY)}),
    ("group", "reward", {"score": lambda rollout: -count_c(rollout)}),
    ("group", "reward", {"score": reward_model(3)}),
    ("reward", "loss", {"config": {"loss": "plackett_luce"}}),
    ("reward", "model", {"lm": other_weights(TOY)}),
    ("reward", "feedback", {"feedback": COMPARISONS[:3]}),
    ("reward", "feedback", {"lm": other_tokenizer(TOY)}),
    ("reward", "held_out", {"held_out": COMPARISONS[5:]}),
    ("reward", "held_out", {"agreement": [0.9, 0.8]}),
    ("reward", "precision", {"lm": in_bfloat16(TOY)}),
    ("rlhf", "kl_coef", {"config": {"kl_coef": 0.3}}),
    ("rlhf", "policy", {"lm": other_weights(TOY)}),
    ("rlhf", "precision", {"lm": in_bfloat16(TOY)}),
    ("rlhf", "prompts", {"prompts": PROMPTS[::-1]}),
    ("rlhf", "prompts", {"lm": other_tokenizer(TOY), "value_init": None}),
    ("rlhf", "lm_texts", {"lm_texts": ["a b", "c c"]}),
    ("rlhf", "reference", {"reference": other_weights(TOY)}),
    ("rlhf", "value_init", {"value_init": reward_model(6)}),
    ("rlhf", "value_init", {"value_init": reward_model(5, std=3.0)}),
    ("rlhf", "reward", {"score": lambda rollout: -count_c(rollout)}),
    ("rlhf", "reward", {"score": reward_model(3)}),
]


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """recipe -> the checkpoint of a finished run and its weights."""
    folder, runs = tmp_path_factory.mktemp("runs"), {}
    for name, recipe in RECIPES.items():
        result = recipe(checkpoint=folder / name)
        runs[name] = (folder / name, copy.deepcopy(result.model.model.state_dict()))
    return runs


@pytest.mark.parametrize("name", RECIPES)
def test_the_same_inputs_are_gone_on_with(name, begun):
    path, weights = begun[name]
    again = RECIPES[name](checkpoint=path).model.model.state_dict()
    assert all(torch.equal(weights[key], again[key]) for key in weights)


@pytest.mark.parametrize(("name", "part", "changed"), CHANGES)
def test_another_input_is_refused_by_its_name(name, part, changed, begun):
    path, _ = begun[name]
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match=rf"another run.*{part}.*differs") as error:
        RECIPES[name](checkpoint=path, **changed)
    assert "\n" not in str(error.value)
    assert path.read_bytes() == before


def test_a_reward_is_known_by_the_scores_of_whole_first_replies(tmp_path):
    """A reward may look at the whole batch, at tokens, and at who ended."""

    def ranked(rollout):
        assert rollout.batch.mask.shape == rollout.log_probs.shape
        order = (count_c(rollout) - (~rollout.ended).float()).argsort().argsort()
        return order.float()

    first = rlhf(score=ranked, checkpoint=tmp_path / "run", config={"value": "policy_head"})
    again = rlhf(score=ranked, checkpoint=tmp_path / "run", config={"value": "policy_head"})
    assert first.history.rows == again.history.rows
