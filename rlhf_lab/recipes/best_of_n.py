"""Best of n: no training at all, n replies to each prompt, and the one that the reward likes best.

The law of the chosen reply is known (`TokenWorld.best_of_n`), and so is the most that it can be away from the policy.
Left out: training on the chosen replies, which is `train_sft` on them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_lab.experience.inputs import checked_inputs
from rlhf_lab.experience.rewards import Reward, scores_of
from rlhf_lab.experience.rollouts import TEMPERATURE, sample_responses
from rlhf_lab.models.language_model import LanguageModel
from rlhf_lab.models.tokens import Rollout
from rlhf_lab.records import PromptLike
from rlhf_lab.training.configs import whole_number


@dataclass(frozen=True)
class Chosen:
    """The chosen replies and the scores of all.

    Attributes:
        rollout: one reply to each of the B prompts.
        scores: [B, n] of all replies; the chosen one has the largest of its row.
    """

    rollout: Rollout
    scores: Tensor


def choose_best(
    policy: LanguageModel,
    prompts: Sequence[PromptLike],
    reward: Reward,
    n: int,
    *,
    generator: torch.Generator,
    temperature: float = TEMPERATURE,
    max_new_tokens: int = 64,
) -> Chosen:
    """Sample n replies to each prompt and keep the best; among equally good ones the first, which is a uniform draw.

    Args:
        policy: that replies.
        prompts: B >= 1 conversations.
        reward: a RewardModel or a function of a Rollout; it sees all B n replies, those to one prompt together.
        n: >= 1.
        generator: a CPU generator; B n max_new_tokens numbers are taken from it.
        temperature, max_new_tokens: of the sampling.

    Returns:
        Chosen.

    Raises:
        ValueError: an argument that cannot be.

    Example:
        >>> from rlhf_lab.models.language_model import load_language_model
        >>> shortest = lambda rollout: -rollout.batch.response_lengths.float()
        >>> lm, generator = load_language_model("tiny"), torch.Generator().manual_seed(0)
        >>> chosen = choose_best(lm, ["Hi"], shortest, 4, generator=generator)
        >>> len(chosen.rollout), tuple(chosen.scores.shape)
        (1, (1, 4))

    Source: Stiennon et al. 2020, Learning to summarize from human feedback, figure 5. Chapters 12 and 15.
    """
    whole_number("n", n, least=1)
    conversations, _ = checked_inputs(policy, prompts, reward, max_new_tokens)
    asked = [prompt for prompt in conversations for _ in range(n)]
    rollout = sample_responses(
        policy, asked, generator=generator, temperature=temperature, max_new_tokens=max_new_tokens
    )
    scores = scores_of(reward, rollout).view(-1, n)
    best = torch.arange(len(scores), device=scores.device) * n + scores.argmax(1)
    return Chosen(rollout.select(best.cpu()), scores)


def best_of_n_kl(n: int) -> float:
    """The most that the law of the best of n can be away from the policy's, nats a reply; reached where no scores tie.

        KL(best of n || policy) <= log n - (n - 1) / n

    Example:
        >>> best_of_n_kl(1), round(best_of_n_kl(16), 3)
        (0.0, 1.835)

    Source: Stiennon et al. 2020 for the formula; Beirami et al. 2024, Theoretical guarantees on the best-of-n alignment
    policy, for the bound. Chapters 12 and 15.
    """
    whole_number("n", n, least=1)
    return math.log(n) - (n - 1) / n
