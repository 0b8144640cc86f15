"""A reward model: a language model's backbone with a head that gives one number, read at the last real token.

It is saved as a sequence classifier with one label, so `AutoModelForSequenceClassification` loads it and
gives the same scores. Where transformers has no classifier of an architecture (Granite, Cohere, ...) it does so
only after `load_reward_model` has made one in the process. Only differences of Bradley-Terry scores mean anything,
so `normalise` fixes mean and scale. Left out: heads of several layers, rewards for single tokens.
"""

import copy
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from rlhf_lab.models.architectures import ensure_classifier, reward_head
from rlhf_lab.models.language_model import (
    LanguageModel,
    ModelError,
    autocast,
    check_precision,
    find_model,
    load_model,
    load_tokenizer,
    save_model,
    wrap_model,
)
from rlhf_lab.models.scoring import response_states
from rlhf_lab.models.tokens import Rollout, TokenBatch, encode_prompts, encode_responses, length_groups, make_batch
from rlhf_lab.records import PromptLike


class TextScores:
    """What every judge of texts does once it can score tokens; it takes the place of a reward function of a policy.

    A subclass gives `score_batch` and `reader`.
    """

    def score_batch(self, batch: TokenBatch, micro_batch: int = 64) -> Tensor:
        """Scores [B] of tokens, without gradient; at most `micro_batch` rows in one pass."""
        raise NotImplementedError

    def reader(self) -> tuple[LanguageModel, int]:
        """Whose tokenizer reads the texts, on its device, and the token under the mask."""
        raise NotImplementedError

    def __call__(self, rollout: Rollout) -> Tensor:
        """Scores [B] of sampled replies, as the reward of a policy, without gradient."""
        return self.score_batch(rollout.batch)

    def batch_of(
        self, conversations: Sequence[PromptLike], texts: Sequence[str], max_new_tokens: int | None = None
    ) -> TokenBatch:
        """Prompts and replies as tokens; arguments and errors as `score`."""
        lm, pad_id = self.reader()
        prompts = encode_prompts(lm, conversations)
        return make_batch(prompts, encode_responses(lm, texts, max_new_tokens), pad_id, lm.device)

    def score(
        self,
        conversations: Sequence[PromptLike],
        texts: Sequence[str],
        micro_batch: int = 64,
        max_new_tokens: int | None = None,
    ) -> Tensor:
        """Scores [N] of texts, without gradient; each is scored as a reply that ended.

        Args:
            conversations: N prompts.
            texts: N replies, one to each prompt.
            micro_batch: most rows in one pass.
            max_new_tokens: longer replies are cut, as in training, and then they have not ended.

        Raises:
            ValueError: not as many texts as prompts, or a row longer than the context.
        """
        return self.score_batch(self.batch_of(conversations, texts, max_new_tokens), micro_batch)


@dataclass
class RewardModel(TextScores):
    """Scores of replies to prompts.

    Attributes:
        model: a sequence classifier with one label; its weights are float32.
        tokenizer: of the language model it came from.
        precision: of the forward passes, as in LanguageModel.
        score_mean, score_std: what `score` subtracts and divides by, in raw units.
        log_nu: how easily its raters call a tie, in Davidson's model of raw scores; None where it was not learned.

    Example:
        >>> from rlhf_lab.records import as_conversation
        >>> from rlhf_lab.models.language_model import load_language_model
        >>> lm = load_language_model("tiny")
        >>> rm = RewardModel.from_language_model(lm, torch.Generator().manual_seed(0))
        >>> rm.score([as_conversation("Where is the zoo?")] * 2, ["By the river.", "Go away!"]).shape
        torch.Size([2])

    Chapter 09.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    precision: torch.dtype = torch.float32
    score_mean: float = 0.0
    score_std: float = 1.0
    log_nu: float | None = None

    @classmethod
    def from_language_model(cls, lm: LanguageModel, generator: torch.Generator) -> "RewardModel":
        """The backbone of `lm`, copied, under a new head.

            score weights ~ normal(0, 1 / (d + 1)),   d the width of the backbone

        Args:
            lm: the model to start from, in RLHF the one after SFT.
            generator: of the head, on the CPU.

        Raises:
            ModelError: the architecture has no sequence classifier that is one linear layer on the backbone.

        Source: Stiennon et al. 2020, Learning to Summarize from Human Feedback. Chapter 09.
        """
        config = copy.deepcopy(lm.model.config)
        config.num_labels, config.get_text_config().pad_token_id = 1, _classifier_pad(lm)
        ensure_classifier(config)
        try:
            with torch.random.fork_rng(devices=[]):
                model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
        except ValueError as error:
            raise ModelError(
                f"transformers has no sequence classifier for {config.model_type}; use another architecture"
            ) from error
        weight = _head(model, config.model_type).weight
        model.base_model.load_state_dict(lm.model.base_model.state_dict())
        with torch.no_grad():
            weight.copy_(torch.randn(weight.shape, generator=generator) / (weight.shape[1] + 1) ** 0.5)
        return cls(model.to(lm.device).eval(), lm.tokenizer, lm.precision)

    @property
    def lm(self) -> LanguageModel:
        """The classifier with the tokenizer's ids, for the functions that encode text; it has no logits."""
        return wrap_model(self.model, self.tokenizer, self.precision)

    @property
    def network(self) -> PreTrainedModel:
        """What an optimiser trains."""
        return self.model

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    @property
    def pad_id(self) -> int:
        """Token under the mask."""
        pad_id = self.model.config.get_text_config().pad_token_id
        return 0 if pad_id is None else pad_id

    def reader(self) -> tuple[LanguageModel, int]:
        """See `TextScores`."""
        return self.lm, self.pad_id

    def copy(self) -> "RewardModel":
        """An independent copy of the weights."""
        scale = self.score_mean, self.score_std, self.log_nu
        return RewardModel(copy.deepcopy(self.model), self.tokenizer, self.precision, *scale)

    def save(self, folder: str | Path, half: bool = False) -> None:
        """Write in the Hugging Face layout, all or nothing; mean and scale of the scores go into config.json.

        Args:
            folder: its final name; a model that was saved there by this library is replaced, and nothing else.
            half: store float16, half the size; loading gives float32 again.

        Raises:
            SaveError: disk full, read-only folder, ...
        """
        self.model.config.rlhf_lab_score_mean = self.score_mean
        self.model.config.rlhf_lab_score_std = self.score_std
        if self.log_nu is not None:
            self.model.config.rlhf_lab_log_nu = self.log_nu
        save_model(self.model, self.tokenizer, folder, half)

    def token_scores(self, batch: TokenBatch) -> Tensor:
        """Raw output of the head at each state, [B, T + 1] float32; gradient flows.

        Column t belongs to the state before response token t, as in `language_model.ResponseForward`; column
        n of a row of n tokens is its raw score, and later ones mean nothing. A value model started from the
        reward model reads all columns.
        """
        with autocast(self.model, self.precision):
            head = _head(self.model, "the reward model")
            return head(response_states(self.model, batch)).squeeze(-1).float()

    def raw_scores(self, batch: TokenBatch) -> Tensor:
        """Raw score [B] at the last real token, the end token included; gradient flows.

        The position comes from the lengths. Only differences between replies to one prompt mean anything.
        """
        return self.token_scores(batch).gather(1, batch.response_lengths[:, None]).squeeze(1)

    def values(self, batch: TokenBatch, hidden: Tensor | None = None) -> Tensor:
        """Standardised value [B, T + 1] of the state before each token, as the critic of a policy; gradient flows.

        A value model started from the reward model reads its own backbone, so `hidden` is not looked at.
        """
        return (self.token_scores(batch) - self.score_mean) / self.score_std

    @torch.no_grad()
    def score_batch(self, batch: TokenBatch, micro_batch: int = 64) -> Tensor:
        """Standardised scores [B] of tokens, (raw - score_mean) / score_std, without gradient."""
        scores = torch.zeros(len(batch), device=batch.mask.device)
        for rows in length_groups(batch, micro_batch):
            scores[rows] = self.raw_scores(batch.select(rows))
        return (scores - self.score_mean) / self.score_std

    def normalise(self, raw_scores: Tensor) -> None:
        """Choose mean and scale so that these raw scores [N] get mean 0 and (unbiased) standard deviation 1.

        Raises:
            ValueError: fewer than 2 scores, one that is not finite, or all of them equal.
        """
        self.score_mean, self.score_std = mean_and_std(raw_scores)


def mean_and_std(raw_scores: Tensor) -> tuple[float, float]:
    """Mean and unbiased standard deviation of raw scores [N].

    Raises:
        ValueError: fewer than 2 scores, one that is not finite, or all of them equal.
    """
    mean, std = float(raw_scores.mean()), float(raw_scores.std()) if raw_scores.numel() > 1 else 0.0
    if not (math.isfinite(mean) and std > 0):
        raise ValueError(
            f"raw_scores holds {raw_scores.numel()} numbers with mean {mean} and standard deviation {std}; expected at "
            "least 2 finite ones that differ"
        )
    return mean, std


def _classifier_pad(lm: LanguageModel) -> int:
    """The id for config.pad_token_id, never the end: `AutoModelForSequenceClassification` reads the score at
    the last token that is not padding, and that must be the end token of a reply that ended."""
    candidates = (lm.pad_id, lm.tokenizer.bos_token_id, lm.tokenizer.unk_token_id, 0, 1)
    return next(id_ for id_ in candidates if id_ is not None and id_ != lm.end_id)


def _head(model: PreTrainedModel, where: str) -> nn.Linear:
    head = reward_head(model)
    if head is None:
        raise ModelError(
            f"{where} has no linear head named score with one output; use a decoder such as GPT-2 or Llama"
        )
    return head


def load_reward_model(
    folder: str | Path, device: str | torch.device = "cpu", precision: torch.dtype = torch.float32
) -> RewardModel:
    """Load what `RewardModel.save` wrote, or any sequence classifier that is one linear layer on a decoder.

    Args:
        folder: in the Hugging Face layout, or a name on the hub.
        device: "cpu", "cuda", ...
        precision: of the forward passes, torch.float32 or torch.bfloat16.

    Raises:
        ModelError: one line with the reason and a remedy.

    Chapter 09.
    """
    check_precision(precision)
    folder = find_model(folder)
    with suppress(Exception):  # load_model says what is wrong with a config
        ensure_classifier(AutoConfig.from_pretrained(folder, trust_remote_code=False))
    model = load_model(folder, AutoModelForSequenceClassification, device)
    _head(model, str(folder))
    mean, std = (
        getattr(model.config, f"rlhf_lab_score_{name}", default) for name, default in (("mean", 0.0), ("std", 1.0))
    )
    log_nu = getattr(model.config, "rlhf_lab_log_nu", None)
    return RewardModel(model, load_tokenizer(folder), precision, mean, std, log_nu)
