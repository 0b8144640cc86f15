"""The bird's world: two listeners, 364 songs each, so that a policy is a table and every expectation a sum."""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from rlhf_lab.maths.exact import TokenWorld
from rlhf_lab.training.randomness import generator_for

WORDS = (".", "la", "li", "lo")  # token 0 ends a song
PROMPTS = ("short, please", "a long one")
WANTED = ((1, 2, 0), (3, 2, 1, 0))
EOS, LENGTH = 0, 5


def score(prompt: int, tokens: tuple[int, ...]) -> float:
    """The true reward: half a point for each right token in its place, minus a quarter for each token too many or too
    few, minus one for a song without an end."""
    wanted = WANTED[prompt]
    right = sum(a == b for a, b in zip(tokens, wanted, strict=False))
    return right / 2 - abs(len(tokens) - len(wanted)) / 4 - (tokens[-1] != EOS)


@cache
def world() -> TokenWorld:
    """Two prompts, 364 songs of at most five tokens, 121 prefixes."""
    return TokenWorld(len(WORDS), LENGTH, score, prompts=len(PROMPTS), eos=EOS)


@cache
def reference_logits() -> Tensor:
    """[2, 121, 4] the singer before training: it knows no tune, and it rarely ends a song."""
    shape = (len(PROMPTS), world().num_prefixes, len(WORDS))
    noise = torch.randn(shape, generator=generator_for(0, "singer"), dtype=torch.float64)
    return 0.5 * noise - torch.tensor([0.5, 0.0, 0.0, 0.0], dtype=torch.float64)


def song(tokens: tuple[int, ...]) -> str:
    """The words of a song, for people."""
    return " ".join(WORDS[token] for token in tokens)


@dataclass(frozen=True)
class Replies:
    """B sampled songs.

    Attributes:
        prompts, numbers: [B] which prompt, and which of the world's sequences.
        tokens: [B, T], 0 at padding (and 0 is also the end: only the lengths tell them apart).
        lengths: [B] as the sampler counted them. ended: [B] bool. scores: [B]. prefixes: [B, T].
        log_probs: [B, T] nats, of the law that sampled; 0 at padding.
    """

    prompts: Tensor
    numbers: Tensor
    tokens: Tensor
    lengths: Tensor
    ended: Tensor
    scores: Tensor
    prefixes: Tensor
    log_probs: Tensor


def replies_of(prompts: Tensor, numbers: Tensor, logits: Tensor) -> Replies:
    """Look up everything about songs with these numbers; `logits` [2, 121, 4] are those of the sampling law."""
    w = world()
    tokens, prefixes = w.sequences[numbers], w.prefix_ids[numbers]
    found = w.lengths[numbers], w.ended[numbers], w.scores[prompts, numbers], prefixes
    return Replies(prompts, numbers, tokens, *found, score_tokens(logits, prompts, prefixes, tokens, w.mask[numbers]))


def sample(logits: Tensor, count: int, generator: torch.Generator) -> Replies:
    """`count` songs for each prompt from the law of these logits."""
    law = world().law(logits.detach())
    numbers = torch.multinomial(law, count, replacement=True, generator=generator).flatten()
    return replies_of(torch.arange(len(law)).repeat_interleave(count), numbers, logits.detach())


def every_reply(logits: Tensor) -> tuple[Replies, Tensor]:
    """All songs for all prompts, and the probability of each under these logits."""
    law = world().law(logits)
    prompts = torch.arange(len(law)).repeat_interleave(law.shape[1])
    return replies_of(prompts, torch.arange(law.shape[1]).repeat(len(law)), logits), law.flatten()


def score_tokens(logits: Tensor, prompts: Tensor, prefixes: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    """[B, T] log-probs of tokens; 0 where mask is False. Differentiable."""
    rows = logits[prompts[:, None], prefixes].log_softmax(-1)  # [B, T, V]
    return torch.where(mask, rows.gather(-1, tokens[..., None]).squeeze(-1), 0)
