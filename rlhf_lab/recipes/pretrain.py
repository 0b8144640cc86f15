"""Pretraining: a base model that writes like its documents, from nothing.

The tokenizer is byte-level BPE, so any text encodes. One document is one row, rows of similar length share a step, and
the loss is over real tokens. Left out: packing several documents into a row, several processes.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypedDict

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from rlhf_lab.models.language_model import LanguageModel, wrap_model
from rlhf_lab.training.configs import above_zero, at_least_one, from_zero, require, whole
from rlhf_lab.training.history import Result
from rlhf_lab.training.optimisers import clipped_step, cosine_rate, make_optimiser, scale_rates
from rlhf_lab.training.randomness import generator_for
from rlhf_lab.training.steps import Checkpoint, Steps

SPECIAL_TOKENS = ("<|user|>", "<|assistant|>", "<|end|>", "<|pad|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{ message['content'] }}"
    "{% else %}<|{{ message['role'] }}|>{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}<|end|>{% endif %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


class Shape(TypedDict):
    """Layers, width and heads, as `GPT2Config` calls them."""

    n_layer: int
    n_embd: int
    n_head: int


SIZES: dict[str, Shape] = {  # about 1 M, 26 M and 121 M parameters with the town's 1,024 tokens
    "tiny": {"n_layer": 4, "n_embd": 128, "n_head": 4},
    "small": {"n_layer": 8, "n_embd": 512, "n_head": 8},
    "medium": {"n_layer": 17, "n_embd": 768, "n_head": 12},
}
WINDOW = 16  # steps whose documents are sorted by length together


@dataclass(frozen=True)
class PretrainConfig:
    """Every choice of a pretraining run; defaults for the shipped model.

    Attributes:
        size: one of `SIZES`.
        context: positions of the model, in tokens.
        vocab_size: entries of the tokenizer, the 4 special ones included; at least 260.
        steps: optimiser steps, at least 1.
        documents_per_step: at least 1.
        micro_batch: most documents in one pass; changes memory, not the result.
        learning_rate: peak, above 0 (3e-3 suits about 1 M parameters; 6e-4 is usual at 100 M).
        weight_decay: on matrices, at least 0 (GPT-3: 0.1).
        warmup: steps of linear warm-up.
        max_grad_norm: above 0 (GPT-3: 1.0).
        evaluate_every, checkpoint_every: in steps.
        seed: of weights and order.
    """

    size: str = "tiny"
    context: int = 192
    vocab_size: int = 1024
    steps: int = 3500
    documents_per_step: int = 64
    micro_batch: int = 64
    learning_rate: float = 3e-3
    weight_decay: float = 0.1
    warmup: int = 100
    max_grad_norm: float = 1.0
    evaluate_every: int = 500
    checkpoint_every: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.size in SIZES, "size", self.size, f"one of {list(SIZES)}")
        whole(self, "vocab_size", least=260)  # 256 bytes and 4 special tokens
        whole(self, "context", least=2)
        at_least_one(self, "steps", "documents_per_step", "micro_batch", "evaluate_every", "checkpoint_every")
        above_zero(self, "learning_rate", "max_grad_norm")
        from_zero(self, "weight_decay")
        whole(self, "warmup", least=0)
        whole(self, "seed")


@dataclass(frozen=True, eq=False, repr=False)
class PretrainResult(Result[LanguageModel]):
    """The base model and its history: loss in nats per token, grad_norm before clipping, learning_rate."""


def train_tokenizer(texts: Sequence[str], vocab_size: int = 1024) -> PreTrainedTokenizerFast:
    """Byte-level BPE with the chat tokens and template of the town; end and pad are different tokens.

    >>> tokenizer = train_tokenizer(["The library closes at six."] * 10, 300)
    >>> tokenizer.decode(tokenizer("Any string: 博物馆 🙂")["input_ids"])
    'Any string: 博物馆 🙂'
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words = (part for text in texts for part in re.split(r"<\|\w+\|>", text))  # what is one token takes no merges
    tokenizer.train_from_iterator(words, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|pad|>",
        additional_special_tokens=["<|user|>", "<|assistant|>"],
    )  # fmt: skip
    fast.chat_template = CHAT_TEMPLATE
    return fast


def train_base_model(
    documents: Sequence[str],
    config: PretrainConfig | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    device: str = "cpu",
    precision: torch.dtype = torch.float32,
    evaluate: Callable[[LanguageModel], dict[str, float]] | None = None,
    checkpoint: str | Path | None = None,
) -> PretrainResult:
    """Train a GPT-2 from nothing to predict the next token of `documents`.

        loss = -1/N sum over real tokens t >= 1 of log p(token t | tokens before t)

    Args:
        documents: texts, chat tokens and end token written out.
        config: see PretrainConfig.
        tokenizer: trained on the documents when None.
        device, precision: where, and float32 or bfloat16.
        evaluate: called with the model at step 0, every `evaluate_every` steps and at the end; its numbers join the
            history.
        checkpoint: file to save to and to resume from.

    Returns:
        PretrainResult. After an interrupt it holds what was done.

    Raises:
        ValueError: no documents, one without two tokens, or one longer than the context.
        CheckpointError: `checkpoint` is damaged, or of other documents or another config.
        FloatingPointError: the loss is not finite; the last good state is in `checkpoint`.

    Source: Radford et al. 2019, Language Models are Unsupervised Multitask Learners. Chapter 07.
    """
    config = config or PretrainConfig()
    require(len(documents) > 0, "documents", "empty", "at least one text")
    tokenizer = tokenizer or train_tokenizer(documents[:20_000], config.vocab_size)
    rows = _token_rows(documents, tokenizer, config.context)
    model = _new_model(config, tokenizer).to(device)  # type: ignore[arg-type]  # transformers wraps torch's `to`
    lm = wrap_model(model, tokenizer, precision)
    optimiser = make_optimiser(lm.model, config.learning_rate, config.weight_decay)
    inputs = {"documents": [row.tolist() for row in rows], "precision": str(precision)}
    file = Checkpoint(checkpoint, config.checkpoint_every, "pretrain", config, inputs, lm.model, optimiser)
    look = None if evaluate is None else partial(evaluate, lm)
    with Steps("pretraining", config.steps, look, config.evaluate_every, file) as steps:
        for step in steps:
            rate = scale_rates(optimiser, cosine_rate(step, config.steps, config.warmup))
            optimiser.zero_grad()
            loss = _backward(lm, [rows[i] for i in step_rows(rows, config, step)], config.micro_batch)
            (norm,) = clipped_step(optimiser, config.max_grad_norm, step + 1, lm.model)
            steps.log(loss=loss, grad_norm=norm, learning_rate=rate)
    return PretrainResult(lm, steps.history, steps.interrupted)


def _token_rows(documents: Sequence[str], tokenizer: PreTrainedTokenizerBase, context: int) -> list[Tensor]:
    rows = [torch.tensor(ids) for ids in tokenizer(list(documents), add_special_tokens=False)["input_ids"]]
    for i, row in enumerate(rows):
        expected = f"2 to {context}; split it or leave it out"
        require(2 <= len(row) <= context, f"documents[{i}]", f"{len(row)} tokens", expected)
    return rows


def _new_model(config: PretrainConfig, tokenizer: PreTrainedTokenizerBase) -> GPT2LMHeadModel:
    shape = GPT2Config(
        vocab_size=len(tokenizer), n_positions=config.context, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        activation_function="gelu_pytorch_tanh",  # GPT-2's own function in one kernel: a third faster on a CPU
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id,
        **SIZES[config.size],
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return GPT2LMHeadModel(shape)


def step_rows(rows: Sequence[Tensor], config: PretrainConfig, step: int) -> list[int]:
    """Indices of the documents of one step: within a window of steps drawn at random, those of similar length."""
    size, window, place = config.documents_per_step, *divmod(step, WINDOW)
    generator = generator_for(config.seed, "pretrain", window)
    drawn = torch.randint(len(rows), (size * WINDOW,), generator=generator).tolist()
    order = torch.randperm(WINDOW, generator=generator)
    start = int(order[place]) * size
    return sorted(drawn, key=lambda i: len(rows[i]))[start : start + size]


def _backward(lm: LanguageModel, rows: list[Tensor], micro_batch: int) -> float:
    """Add the gradient of the mean loss per token over all `rows`; returns the loss in nats."""
    count, total = sum(len(row) - 1 for row in rows), 0.0
    for start in range(0, len(rows), micro_batch):
        part = rows[start : start + micro_batch]
        # The causal mask hides the padding on the right, and a target of -100 is not counted.
        ids = torch.nn.utils.rnn.pad_sequence(part, batch_first=True, padding_value=lm.pad_id).to(lm.device)  # [b, T]
        targets = torch.nn.utils.rnn.pad_sequence(part, batch_first=True, padding_value=-100).to(lm.device)[:, 1:]
        real = targets != -100
        with lm.autocast():
            embedded = lm.model.get_input_embeddings()(ids[:, :-1])
            states = lm.model.base_model(inputs_embeds=embedded, use_cache=False).last_hidden_state
            logits = lm.model.get_output_embeddings()(states[real])  # [real tokens, V]
        loss = cross_entropy(logits.float(), targets[real], reduction="sum") / count
        loss.backward()
        total += float(loss.detach())
    return total
