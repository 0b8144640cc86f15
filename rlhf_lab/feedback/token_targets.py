"""Marked words to rewards of tokens, so that the sum is stated whatever the tokenizer makes of the text.

Left out: credit for words that are right, which nobody marked.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from rlhf_lab.maths.tensors import length_mask
from rlhf_lab.models.language_model import LanguageModel
from rlhf_lab.models.tokens import encode_responses
from rlhf_lab.records import Mark

HALF_CHARACTERS = dict.fromkeys(range(0xD800, 0xE000), "\N{REPLACEMENT CHARACTER}")  # no tokenizer takes them


def marks_to_token_rewards(
    lm: LanguageModel, marks: Sequence[Mark], total: float | Sequence[float] = -1.0
) -> tuple[Tensor, Tensor]:
    """Rewards of the tokens of marked replies: `total` for each reply, spread evenly over its marked characters.

        reward of a token = total * (marked characters that are its own) / (marked characters of the reply)

    A character that several tokens share, as an emoji of several bytes, is split evenly among them. So the rewards of a
    reply sum to `total`, and those of each marked word to its share, for any tokenizer. A marked character that is in
    no token, such as a space that the tokenizer drops, counts for the next token. A reply without a mark has zeros: the
    rater found nothing wrong.

    Args:
        lm: gives the tokenizer, which must be a fast one: only those know which characters a token stands for.
        marks: B marked replies.
        total: of each reply that has a mark, one number or B; for example minus the number of its spans.

    Returns:
        rewards [B, T] and mask [B, T], True on real tokens, the end token included, in the columns of
        `encode_responses`.

    Raises:
        ValueError: no marks, another number of totals, one that is not finite, or a tokenizer that is not fast.

    Example:
        >>> from rlhf_lab import load_language_model
        >>> marks = [Mark("Hi", "By the river.", ((7, 12),))]
        >>> rewards, mask = marks_to_token_rewards(load_language_model("tiny"), marks)
        >>> round(float(rewards.sum()), 6), rewards.shape == mask.shape
        (-1.0, True)

    Chapter 08.
    """
    totals = [float(t) for t in total] if isinstance(total, Sequence) else [float(total)] * len(marks)
    if not marks or len(totals) != len(marks) or not np.isfinite(totals).all():
        raise ValueError(f"got {len(marks)} marks and the totals {totals[:5]}; expected as many, finite, at least 1")
    if not lm.tokenizer.is_fast:
        kind = type(lm.tokenizer).__name__
        raise ValueError(f"the tokenizer is a {kind}, which cannot say where a token stands; expected a fast one")
    texts = [mark.reply.translate(HALF_CHARACTERS) for mark in marks]
    rows = encode_responses(lm, texts)
    mask = length_mask(torch.tensor([len(row) for row in rows]), max(map(len, rows)))
    rewards = torch.zeros(mask.shape)
    for b, (mark, text, row) in enumerate(zip(marks, texts, rows, strict=True)):
        if mark.spans:
            weights = _weights(mark, _offsets(lm, text, row))
            rewards[b, : len(row)] = torch.tensor(totals[b] * weights / weights.sum())
    return rewards, mask


def _offsets(lm: LanguageModel, text: str, row: Sequence[int]) -> list[tuple[int, int]]:
    """(start, end) in characters of each token of the row but the end token.

    The row may lack an end token that was written out in the text: then its offsets are the first ones.
    """
    encoded = lm.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return [(int(start), int(end)) for start, end in encoded["offset_mapping"]][: len(row) - 1]


def _weights(mark: Mark, offsets: Sequence[tuple[int, int]]) -> np.ndarray:
    """[tokens, the end included]: how many marked characters are each token's own."""
    marked = np.zeros(len(mark.reply))
    for start, end in mark.spans:
        marked[start:end] = 1
    sharing = np.zeros(len(mark.reply))  # how many tokens hold each character
    for start, end in offsets:
        sharing[start:end] += 1
    each = np.divide(marked, sharing, out=np.zeros_like(marked), where=sharing > 0)
    weights = np.array([*(each[start:end].sum() for start, end in offsets), 0.0])
    for place in np.flatnonzero((marked > 0) & (sharing == 0)):
        weights[next((t for t, (start, _) in enumerate(offsets) if start >= place), len(offsets))] += 1
    return weights
