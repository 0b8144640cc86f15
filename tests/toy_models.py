"""Random language models over a handful of words, for several test files."""

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rlhf_lab.experience.rollouts import sample_responses
from rlhf_lab.models.language_model import LanguageModel
from rlhf_lab.models.reward_model import RewardModel

WORDS = ("<|pad|>", "<|end|>", "a", "b", "c", "d")
PROMPTS = ["a", "b c d a b c", "c c", "d a", "b b b b b b b b b", "a b c"]  # ragged, so padded on the left


def word_model(architecture="gpt2", words=WORDS, seed=0, spread=0.6):
    """A random model over a handful of words, with enough spread that its law is far from uniform."""
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="a"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|end|>")
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    torch.manual_seed(seed)
    ids = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1, "vocab_size": len(words)}
    size = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
    }
    if architecture == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(**ids, **size, initializer_range=spread))
    else:
        config = LlamaConfig(**ids, **size, intermediate_size=32, num_key_value_heads=1, initializer_range=spread)
        model = LlamaForCausalLM(config)
    return LanguageModel(model.eval(), tokenizer, end_id=1, pad_id=0)


def score_model(lm, seed=3):
    """A random reward model on the same backbone, with a scale of its own."""
    model = RewardModel.from_language_model(lm, torch.Generator().manual_seed(seed))
    model.score_mean, model.score_std = 0.4, 2.0
    return model


def sample(lm, prompts=PROMPTS, seed=0, **options):
    options = {"max_new_tokens": 12} | options
    return sample_responses(lm, prompts, generator=torch.Generator().manual_seed(seed), **options)
