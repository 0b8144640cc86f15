"""A reward model: a language model's backbone with a head that gives one number, read at the last real token.

It is saved as a sequence classifier with one label, so `AutoModelForSequenceClassification` loads it and gives the
same scores. Only differences of Bradley-Terry scores mean anything, so `normalise` fixes mean and scale.
Left out: heads of several layers, rewards for single tokens.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from rlhf_lab.feedback.records import Conversation
from rlhf_lab.language_model import (
    LanguageModel,
    TokenBatch,
    encode_prompts,
    encode_responses,
    length_groups,
    load_model,
    load_tokenizer,
    make_batch,
    response_states,
    save_model,
    wrap_model,
)  # fmt: skip


@dataclass
class RewardModel:
    """Scores of replies to prompts.

    Attributes:
        model: a sequence classifier with one label; its weights are float32.
        tokenizer: of the language model it came from.
        precision: of the forward passes, as in LanguageModel.
        score_mean, score_std: what `score` subtracts and divides by, in raw units.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    precision: torch.dtype = torch.float32
    score_mean: float = 0.0
    score_std: float = 1.0

    @classmethod
    def from_language_model(cls, lm: LanguageModel, generator: torch.Generator) -> "RewardModel":
        """The backbone of `lm` (copied) under a new head, normal with variance 1 / (d + 1) (Stiennon 2020)."""
        config = copy.deepcopy(lm.model.config)
        config.num_labels, config.pad_token_id = 1, lm.pad_id
        with torch.random.fork_rng(devices=[]):
            model = AutoModelForSequenceClassification.from_config(config)
        model.base_model.load_state_dict(lm.model.base_model.state_dict())
        weight = model.score.weight
        with torch.no_grad():
            weight.copy_(torch.randn(weight.shape, generator=generator) / (weight.shape[1] + 1) ** 0.5)
        return cls(model.to(lm.device).eval(), lm.tokenizer, lm.precision)

    @property
    def lm(self) -> LanguageModel:
        """A view with the tokenizer's ids, for the functions that encode text."""
        return wrap_model(self.model, self.tokenizer, self.precision)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    @property
    def pad_id(self) -> int:
        """Token under the mask."""
        return self.model.config.pad_token_id

    def copy(self) -> "RewardModel":
        """An independent copy of the weights."""
        return RewardModel(
            copy.deepcopy(self.model), self.tokenizer, self.precision, self.score_mean, self.score_std
        )

    def save(self, folder: str | Path, half: bool = False) -> None:
        """Write in the Hugging Face layout, mean and scale of the scores in config.json; all or nothing."""
        self.model.config.rlhf_lab_score_mean = self.score_mean
        self.model.config.rlhf_lab_score_std = self.score_std
        save_model(self.model, self.tokenizer, folder, half)

    def token_scores(self, batch: TokenBatch) -> Tensor:
        """Raw head output [B, T + 1] at each state, in the order of `language_model.forward`'s hidden states."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == torch.bfloat16):
            return self.model.score(response_states(self.model, batch)).squeeze(-1).float()

    def raw_scores(self, batch: TokenBatch) -> Tensor:
        """Raw score [B] at the last real token, the end token included; the position comes from the lengths."""
        return self.token_scores(batch).gather(1, batch.response_lengths[:, None]).squeeze(1)

    @torch.no_grad()
    def score_batch(self, batch: TokenBatch, micro_batch: int = 64) -> Tensor:
        """Standardised scores [B] of tokens, without gradient."""
        scores = torch.zeros(len(batch), device=batch.mask.device)
        for rows in length_groups(batch, micro_batch):
            scores[rows] = self.raw_scores(batch.select(rows))
        return (scores - self.score_mean) / self.score_std

    def score(
        self, conversations: Sequence[Conversation], texts: Sequence[str], micro_batch: int = 64
    ) -> Tensor:
        """Standardised scores [N] of texts that ended, without gradient."""
        prompts, responses = encode_prompts(self.lm, conversations), encode_responses(self.lm, texts)
        return self.score_batch(make_batch(prompts, responses, self.pad_id, self.device), micro_batch)

    def normalise(self, raw_scores: Tensor) -> None:
        """Choose mean and scale so that these raw scores become 0 on average with standard deviation 1."""
        self.score_mean, self.score_std = float(raw_scores.mean()), max(float(raw_scores.std()), 1e-6)


def load_reward_model(
    folder: str | Path, device: str | torch.device = "cpu", precision: torch.dtype = torch.float32
) -> RewardModel:
    """Load what `RewardModel.save` wrote, or any sequence classifier with one label and a linear head named `score`.

    Raises:
        ModelError: one line with the reason and a remedy.
    """
    model = load_model(str(folder), AutoModelForSequenceClassification, device)
    mean, std = (
        getattr(model.config, f"rlhf_lab_score_{name}", default)
        for name, default in (("mean", 0.0), ("std", 1.0))
    )
    return RewardModel(model, load_tokenizer(str(folder)), precision, mean, std)
