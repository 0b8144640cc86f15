"""Replies for people and simulated raters to judge."""

from collections.abc import Sequence

import torch

from rlhf_lab.experience.rollouts import TEMPERATURE, sample_responses
from rlhf_lab.models.language_model import LanguageModel
from rlhf_lab.records import Event, PromptLike, Ranking, as_conversation
from rlhf_lab.training.configs import require
from rlhf_lab.training.randomness import generator_for
from rlhf_lab.worlds.town.oracle import score
from rlhf_lab.worlds.town.questions import town_prompt
from rlhf_lab.worlds.town.raters import CAREFUL, Rater


def rank_replies(
    lm: LanguageModel,
    prompts: Sequence[PromptLike],
    replies: int = 4,
    generator: torch.Generator | None = None,
    *,
    rater: Rater = CAREFUL,
    temperature: float = TEMPERATURE,
    max_new_tokens: int = 64,
) -> list[Ranking]:
    """Sample replies to prompts of the town and let a simulated rater rank those that differ.

    Args:
        lm: who replies.
        prompts: of the town, each once or more often.
        replies: sampled for each prompt, 2 to 8.
        generator: of replies and of the rater's noise; the stream "rankings" of seed 0 if None.
        rater: who ranks.
        temperature, max_new_tokens: how replies are drawn; the defaults are those of `RLHFConfig`.

    Returns:
        A Ranking of each prompt with at least two different replies, in the order of the prompts.

    Raises:
        ValueError: a prompt that is not the town's, so that nobody knows what a reply to it is worth, or a number of
            replies outside 2 to 8.

    Chapters 00, 08, 10.
    """
    events = rank_events(
        lm, prompts, replies, generator, rater=rater, temperature=temperature, max_new_tokens=max_new_tokens
    )
    return [event.record for event in events if isinstance(event.record, Ranking)]


def rank_events(
    lm: LanguageModel,
    prompts: Sequence[PromptLike],
    replies: int = 4,
    generator: torch.Generator | None = None,
    *,
    rater: Rater = CAREFUL,
    temperature: float = TEMPERATURE,
    max_new_tokens: int = 64,
    start: float = 0.0,
) -> list[Event]:
    """`rank_replies` with what stands around each ranking: when, how long, and in which order on the screen.

    Args:
        lm, prompts, replies, generator, rater, temperature, max_new_tokens: as in `rank_replies`.
        start: when the first question is seen, in seconds by the rater's clock; each further one is seen at once after
            the one before it.

    Returns:
        An Event of each Ranking that `rank_replies` returns, in the same order.

    Raises:
        ValueError: as `rank_replies`.

    Chapter 08.
    """
    generator = generator or generator_for(0, "rankings")
    require(isinstance(replies, int) and 2 <= replies <= 8, "replies", replies, "2 to 8")
    asked = [town_prompt(as_conversation(prompt)) for prompt in prompts]
    rows = [prompt.conversation for prompt in asked for _ in range(replies)]
    rollout = sample_responses(lm, rows, temperature=temperature, max_new_tokens=max_new_tokens, generator=generator)
    events: list[Event] = []
    for i, prompt in enumerate(asked):
        texts = list(dict.fromkeys(rollout.texts[i * replies : (i + 1) * replies]))
        if len(texts) > 1:
            verdicts = [score(prompt, text) for text in texts]
            now = events[-1].time if events else start
            events.append(rater.rank(prompt.conversation, texts, verdicts, generator, now))
    return events
