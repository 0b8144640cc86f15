"""What an on-policy run of a language model is given, looked at before the first step."""

from collections.abc import Sequence
from typing import TypedDict

from rlhf_lab.experience.rewards import Reward
from rlhf_lab.models.ensemble import reward_model_of
from rlhf_lab.models.language_model import LanguageModel, check_same_tokens
from rlhf_lab.models.reward_model import RewardModel
from rlhf_lab.models.tokens import encode_prompts
from rlhf_lab.records import Conversation, PromptLike, as_conversation
from rlhf_lab.training.configs import require

SCORE_TEXTS = (
    "give a function that scores texts: lambda rollout: reward_model.score(rollout.conversations, rollout.texts)"
)


class Sampling(TypedDict):
    """How replies are drawn: what `sample_responses` and its like take."""

    temperature: float
    max_new_tokens: int


def checked_inputs(
    policy: LanguageModel,
    prompts: Sequence[PromptLike],
    reward: Reward,
    max_new_tokens: int,
    **others: LanguageModel | RewardModel | None,
) -> tuple[tuple[Conversation, ...], list[list[int]]]:
    """The prompts as conversations and as token rows, or a ValueError that names what is wrong.

    Args:
        others: by name, more models that must read the policy's tokens as it does.
    """
    conversations, rows = checked_prompts(policy, prompts, max_new_tokens)
    require(callable(reward), "reward", reward, "a RewardModel or a function of a Rollout")
    if (judge := reward_model_of(reward)) is not None:
        check_same_tokens(policy.tokenizer, judge.tokenizer, "the reward model", SCORE_TEXTS)
    for name, other in others.items():
        if other is not None:
            check_same_tokens(policy.tokenizer, other.tokenizer, name)
    return conversations, rows


def checked_prompts(
    policy: LanguageModel, prompts: Sequence[PromptLike], max_new_tokens: int
) -> tuple[tuple[Conversation, ...], list[list[int]]]:
    """The prompts as conversations and as token rows, or a ValueError."""
    some = not isinstance(prompts, str) and len(prompts) > 0
    require(some, "prompts", prompts, "a non-empty list of conversations")
    conversations = tuple(as_conversation(prompt) for prompt in prompts)
    return conversations, encode_prompts(policy, conversations, max_new_tokens)
