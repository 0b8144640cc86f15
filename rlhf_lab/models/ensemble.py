"""Several reward models that judge together: their mean, how far they are apart, and a mean that fears disagreement.

Each member is a reward model of its own, with its own backbone. Left out: members that share a backbone, and weights.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from rlhf_lab.models.language_model import LanguageModel, ModelError, check_same_tokens
from rlhf_lab.models.reward_model import RewardModel, TextScores, load_reward_model
from rlhf_lab.models.tokens import TokenBatch
from rlhf_lab.training.configs import from_zero, require
from rlhf_lab.training.folders import changed_file, new_folder

KIND, NOTE = "reward ensemble", "ensemble.json"


@dataclass(frozen=True, eq=False)
class RewardEnsemble(TextScores):
    """Reward models that judge the same replies.

        score = mean over members - pessimism * standard deviation over members,    of their standardised scores

    With pessimism 0 it is the mean; the larger it is, the less a reply is worth on which the members disagree, such as
    one unlike any that people judged. It takes the place of a RewardModel as the reward of a policy.

    Attributes:
        members: M reward models with the same tokens, at least 1.
        pessimism: at least 0, in standard deviations over the members.

    Example:
        >>> from rlhf_lab.models.language_model import load_language_model
        >>> lm = load_language_model("tiny")
        >>> seeds = [torch.Generator().manual_seed(i) for i in range(3)]
        >>> ensemble = RewardEnsemble(tuple(RewardModel.from_language_model(lm, seed) for seed in seeds), pessimism=1.0)
        >>> batch = ensemble.batch_of(["Where is the zoo?"] * 2, ["By the river.", "Go away!"])
        >>> ensemble.member_scores(batch).shape, ensemble.score_batch(batch).shape
        (torch.Size([3, 2]), torch.Size([2]))

    Source: Coste et al. 2023, Reward Model Ensembles Help Mitigate Overoptimization (their uncertainty-weighted
    optimisation takes the variance where this takes the standard deviation). Chapters 09, 12.
    """

    members: tuple[RewardModel, ...]
    pessimism: float = 0.0

    def __post_init__(self) -> None:
        fits = isinstance(self.members, tuple) and all(isinstance(member, RewardModel) for member in self.members)
        require(fits and len(self.members) > 0, "members", self.members, "a tuple of reward models, at least one")
        from_zero(self, "pessimism")
        for i, member in enumerate(self.members[1:], 1):
            check_same_tokens(self.tokenizer, member.tokenizer, f"members[{i}]")

    def __len__(self) -> int:
        return len(self.members)

    @property
    def model(self) -> nn.ModuleList:
        """The networks of all members, by which a checkpoint knows the ensemble."""
        return nn.ModuleList(member.model for member in self.members)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Of all members."""
        return self.members[0].tokenizer

    @property
    def precision(self) -> torch.dtype:
        """Of the forward passes of the first member."""
        return self.members[0].precision

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.members[0].device

    @property
    def score_std(self) -> float:
        """Raw units in one unit of the score, mean over the members: it turns differences of scores into log-odds."""
        return sum(member.score_std for member in self.members) / len(self.members)

    def copy(self) -> "RewardEnsemble":
        """An independent copy of all weights."""
        return RewardEnsemble(tuple(member.copy() for member in self.members), self.pessimism)

    def reader(self) -> tuple[LanguageModel, int]:
        """That of the first member."""
        return self.members[0].reader()

    def member_scores(self, batch: TokenBatch, micro_batch: int = 64) -> Tensor:
        """Standardised scores [M, B] of each member, without gradient."""
        return torch.stack([member.score_batch(batch, micro_batch) for member in self.members])

    def spread(self, batch: TokenBatch, micro_batch: int = 64) -> Tensor:
        """How far the members are apart: unbiased standard deviation [B] of their scores; 0 with one member."""
        return spread_of(self.member_scores(batch, micro_batch))

    def score_batch(self, batch: TokenBatch, micro_batch: int = 64) -> Tensor:
        """Scores [B] of tokens, without gradient."""
        scores = self.member_scores(batch, micro_batch)
        mean = scores.mean(0)
        return mean - self.pessimism * spread_of(scores) if self.pessimism else mean

    def save(self, folder: str | Path, half: bool = False) -> None:
        """Write each member in the Hugging Face layout into a folder of its own, all or nothing.

        Args:
            folder: its final name; an ensemble that was saved there by this library is replaced, and nothing else.
            half: store float16, half the size; loading gives float32 again.

        Raises:
            SaveError: disk full, read-only folder, ...; OutputError: something else is there.
        """
        with new_folder(folder, KIND) as temporary:
            for i, member in enumerate(self.members):
                member.save(temporary / f"member_{i}", half)
            note = {"members": len(self.members), "pessimism": self.pessimism}
            (temporary / NOTE).write_text(json.dumps(note, indent=1) + "\n", encoding="utf-8")


def spread_of(member_scores: Tensor) -> Tensor:
    """Unbiased standard deviation over the members [M, B] -> [B]; 0 with one member.

    >>> spread_of(torch.tensor([[1.0, 0.0], [3.0, 0.0]]))
    tensor([1.4142, 0.0000])
    """
    return member_scores.std(0) if len(member_scores) > 1 else torch.zeros_like(member_scores[0])


def load_reward_ensemble(
    folder: str | Path, device: str | torch.device = "cpu", precision: torch.dtype = torch.float32
) -> RewardEnsemble:
    """Load what `RewardEnsemble.save` wrote.

    Args:
        folder: of the ensemble.
        device: "cpu", "cuda", ...
        precision: of the forward passes, torch.float32 or torch.bfloat16.

    Raises:
        ModelError: one line with the reason and a remedy.

    Chapter 09.
    """
    path = Path(folder)
    try:
        note = json.loads((path / NOTE).read_text(encoding="utf-8"))
        count, pessimism = int(note["members"]), float(note["pessimism"])
    except OSError:
        remedy = "give a folder that RewardEnsemble.save wrote; load_reward_model loads a single reward model"
        raise ModelError(f"{path} holds no {NOTE}; {remedy}") from None
    except (KeyError, TypeError, ValueError):
        count, pessimism = 0, 0.0
    if count < 1 or changed_file(path, NOTE):
        raise ModelError(f"{path / NOTE} is damaged; copy or make the ensemble again")
    members = tuple(load_reward_model(path / f"member_{i}", device, precision) for i in range(count))
    return RewardEnsemble(members, pessimism)


def reward_model_of(reward: object) -> RewardModel | None:
    """The reward model from which a value model may start: the reward itself, or the first member; else None."""
    first = reward.members[0] if isinstance(reward, RewardEnsemble) else reward
    return first if isinstance(first, RewardModel) else None
