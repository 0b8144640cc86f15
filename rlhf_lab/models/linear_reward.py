"""A reward model with few parameters: a linear function of what a language model already knows of a reply.

The language model stays as it is. A reply is the mean of its hidden states, and the score is linear in it, so there is
one weight for each of the d coordinates, a posterior over the weights in closed form, and no learning rate. It is made
for few labels; `python run.py bench few_labels` measures what a policy makes of it.
Left out: several layers, states of single tokens, a scale of its own for every prompt.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rlhf_lab.maths.tensors import length_mask, masked_mean
from rlhf_lab.models.language_model import LanguageModel, ModelError, load_language_model
from rlhf_lab.models.reward_model import TextScores, mean_and_std
from rlhf_lab.models.scoring import response_states
from rlhf_lab.models.tokens import TokenBatch, length_groups
from rlhf_lab.training.folders import changed_file, new_folder

KIND, NOTE, TENSORS = "linear reward", "linear_reward.json", "linear_reward.safetensors"
PARTS = ("centre", "scale", "weights", "covariance")


@torch.no_grad()
def mean_states(lm: LanguageModel, batch: TokenBatch, micro_batch: int = 64) -> Tensor:
    """Mean over a reply's tokens, the end token included, of the last hidden states; [B, d] float64, on the CPU.

        h(prompt, reply) = 1/T sum_t state after token t of the reply

    Args:
        lm: whose states; it has read the prompt when it comes to the reply.
        batch: prompts and replies.
        micro_batch: most rows in one pass.

    Source: mean pooling, as in Reimers and Gurevych 2019, Sentence-BERT. Chapter 09.
    """
    parts: list[Tensor] = [torch.empty(0)] * len(batch)
    for rows in length_groups(batch, micro_batch):
        part = batch.select(rows)
        states = response_states(lm.model, part)[:, 1:].double()
        mask = length_mask(part.response_lengths, states.shape[1])[..., None].expand_as(states)
        for row, mean in zip(rows.tolist(), masked_mean(states, mask, dim=1).cpu(), strict=True):
            parts[row] = mean
    return torch.stack(parts)


@dataclass(frozen=True, eq=False)
class LinearReward(TextScores):
    """Scores of replies that are linear in the states of a language model, with a posterior.

        raw score = w . x,    x = (h - centre) / scale,    w ~ normal(weights, covariance)

    It takes the place of a RewardModel as the reward of a policy.

    Attributes:
        lm: whose hidden states are read; never trained.
        centre, scale: [d] float64; scale is of such a size that x of two replies to one prompt differ by a vector of
            length 1 or so.
        weights: [d] mean of the posterior; differences of w . x are log-odds of a preference.
        covariance: [d, d] of the posterior.
        score_mean, score_std: what `score` subtracts and divides by, in raw units.

    Chapter 09.
    """

    lm: LanguageModel
    centre: Tensor
    scale: Tensor
    weights: Tensor
    covariance: Tensor
    score_mean: float = 0.0
    score_std: float = 1.0

    def features(self, batch: TokenBatch, micro_batch: int = 64) -> Tensor:
        """x [B, d] of replies, float64."""
        return (mean_states(self.lm, batch, micro_batch) - self.centre) / self.scale

    def reader(self) -> tuple[LanguageModel, int]:
        """The language model itself."""
        return self.lm, self.lm.pad_id

    def normalised(self, raw_scores: Tensor) -> "LinearReward":
        """The same with mean and scale such that these raw scores [N] get mean 0 and standard deviation 1.

        Raises:
            ValueError: fewer than 2 scores, one that is not finite, or all of them equal.
        """
        mean, std = mean_and_std(raw_scores)
        return replace(self, score_mean=mean, score_std=std)

    def score_batch(self, batch: TokenBatch, micro_batch: int = 64) -> Tensor:
        """Standardised scores [B] of tokens, (raw - score_mean) / score_std, float32."""
        raw = self.features(batch, micro_batch) @ self.weights
        return ((raw - self.score_mean) / self.score_std).float().to(batch.mask.device)

    def save(self, folder: str | Path) -> None:
        """Write the language model in the Hugging Face layout and the linear part beside it, all or nothing.

        Raises:
            SaveError: disk full, read-only folder, ...; OutputError: something else is there.
        """
        with new_folder(folder, KIND) as temporary:
            self.lm.save(temporary / "language_model")
            save_file({name: getattr(self, name).contiguous() for name in PARTS}, temporary / TENSORS)
            note = {"score_mean": self.score_mean, "score_std": self.score_std}
            (temporary / NOTE).write_text(json.dumps(note, indent=1) + "\n", encoding="utf-8")


def load_linear_reward(
    folder: str | Path, device: str | torch.device = "cpu", precision: torch.dtype = torch.float32
) -> LinearReward:
    """Load what `LinearReward.save` wrote.

    Raises:
        ModelError: one line with the reason and a remedy.

    Chapter 09.
    """
    path = Path(folder)
    try:
        note, tensors = json.loads((path / NOTE).read_text(encoding="utf-8")), load_file(path / TENSORS)
    except OSError:
        remedy = "give a folder that LinearReward.save wrote; load_reward_model loads other reward models"
        raise ModelError(f"{path} holds no {NOTE} and {TENSORS}; {remedy}") from None
    except Exception as error:  # safetensors has an error of its own for every kind of damage
        raise ModelError(f"{path} is damaged ({type(error).__name__}); copy or train it again") from None
    if changed_file(path, NOTE) or changed_file(path, TENSORS):
        raise ModelError(f"{path} is damaged: a file is not what was saved; copy or train it again")
    lm = load_language_model(path / "language_model", device, precision)
    centre, scale, weights, covariance = (tensors[name] for name in PARTS)
    return LinearReward(lm, centre, scale, weights, covariance, note["score_mean"], note["score_std"])
