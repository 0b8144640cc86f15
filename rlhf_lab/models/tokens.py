"""Text to tokens and back: prompts, responses, and batches of both.

Prompts are padded on the left and responses on the right, so that every response begins in the same column. Masks come
from lengths, and prompt and response are tokenised apart.

Special tokens in a text, one rule: written out they are those tokens, and decoding shows them all but one. The token
that ends a reply belongs to the tokens and not to the text: decoding takes it off, encoding puts it on, and a reply or
an assistant's turn that is written with it, as some files have it, gets no second one.

Half of a surrogate pair, which a keyboard or a cut text may leave, is no character that a tokenizer can read: it is
replaced by U+FFFD, and a warning counts them. What is stored keeps it.
"""

import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_lab.maths.tensors import length_mask
from rlhf_lab.models.foreign import ModelError, in_one_line, render_chat
from rlhf_lab.models.language_model import LanguageModel
from rlhf_lab.records import Conversation, Message, PromptLike, as_conversation

HALF = re.compile("[\ud800-\udfff]")


def encode_prompts(
    lm: LanguageModel, conversations: Sequence[PromptLike], max_new_tokens: int | None = 0
) -> list[list[int]]:
    """Token ids of each prompt through the chat template, up to where the assistant begins to write.

    Special tokens written out in a message become those tokens: whoever takes text from strangers must strip
    them.

    Args:
        lm: gives tokenizer, template and context.
        conversations: B prompts, texts or messages that end with the user's.
        max_new_tokens: room that each prompt must leave for its reply; None lets prompts be of any length.

    Returns:
        B lists of token ids.

    Raises:
        ValueError: `max_new_tokens` that no prompt leaves room for, a prompt that leaves too little, or one that the
            template does not allow; names the row and the lengths.
        ModelError: a chat template that cannot be used.

    Chapter 07.
    """
    texts = readable([_apply_template(lm, row, as_conversation(prompt)) for row, prompt in enumerate(conversations)])
    rows = lm.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    if max_new_tokens is None:
        return rows
    room = lm.max_length - max_new_tokens
    if room < 1:
        raise ValueError(
            f"max_new_tokens is {max_new_tokens}; expected less than the model's context of {lm.max_length} tokens, "
            "which holds the prompt too"
        )
    for i, row in enumerate(rows):
        if len(row) > room:
            raise ValueError(
                f"prompt {i} has {len(row)} tokens; expected at most {room} (context {lm.max_length} less "
                f"{max_new_tokens} for the reply). Shorten or leave out the prompt: {texts[i]!r:.60}..."
            )
    return rows


def _apply_template(lm: LanguageModel, row: int, conversation: Conversation) -> str:
    said = [Message(m.role, _without_end(lm, m.content)) if m.role == "assistant" else m for m in conversation]
    try:
        return render_chat(lm.tokenizer, said)
    except ModelError:
        raise
    except Exception as error:  # templates raise what they like, for example on a system message
        raise ValueError(
            f"prompt {row} does not fit the chat template ({in_one_line(error)}); change its messages"
        ) from error


def _without_end(lm: LanguageModel, text: str) -> str:
    """The text without the end token that a file may have written out at its end."""
    end, bare = str(lm.tokenizer.decode([lm.end_id])), text.rstrip()
    return bare.removesuffix(end) if bare.endswith(end) else text


def readable(texts: Sequence[str]) -> Sequence[str]:
    """The texts with each half of a surrogate pair replaced by U+FFFD, and a warning that counts them.

    >>> readable(["whole"])
    ['whole']
    """
    count = sum(len(HALF.findall(text)) for text in texts)
    if count:
        message = f"replaced {count} halves of surrogate pairs by U+FFFD: no tokenizer can read them"
        warnings.warn(message, UserWarning, stacklevel=3)
    return [HALF.sub("\ufffd", text) for text in texts] if count else texts


def encode_responses(lm: LanguageModel, texts: Sequence[str], max_tokens: int | None = None) -> list[list[int]]:
    """Token ids of each response, tokenised apart from its prompt, with one end token at its end.

    Tokenised together with the prompt, letters of both could merge into one token, which sampling never
    produces.

    Args:
        lm: gives the tokenizer.
        texts: B responses, with or without the end token written out at the end.
        max_tokens: rows are cut there, the end token included; a cut row has no end token.

    Returns:
        B lists of token ids.

    Chapter 07.
    """
    bare = readable([_without_end(lm, text) for text in texts])
    rows = lm.tokenizer(bare, add_special_tokens=False)["input_ids"] if bare else []
    return [(row + [lm.end_id])[:max_tokens] for row in rows]


def count_cut(lm: LanguageModel, rows: Iterable[Sequence[int]]) -> int:
    """How many rows of `encode_responses` were cut: they have no end token."""
    return sum(row[-1] != lm.end_id for row in rows)


def decode_responses(lm: LanguageModel, response_ids: Tensor, mask: Tensor) -> list[str]:
    """The text of each response [B, T] without its end token; other special tokens stay visible."""
    return decode_rows(lm, [ids[keep].tolist() for ids, keep in zip(response_ids.cpu(), mask.cpu(), strict=True)])


def decode_rows(lm: LanguageModel, rows: Sequence[list[int]]) -> list[str]:
    """The text of each reply, given as its token ids, without its end token; other special tokens stay visible."""
    bare = [row[:-1] if row and row[-1] == lm.end_id else row for row in rows]
    return lm.tokenizer.batch_decode(bare, skip_special_tokens=False, clean_up_tokenization_spaces=False)


@dataclass(frozen=True)
class TokenBatch:
    """B prompts and responses as tokens, on one device; `make_batch` makes it.

    Attributes:
        prompt_ids: [B, P], padded on the left.
        prompt_mask: [B, P] bool, True on real tokens.
        response_ids: [B, T], padded on the right.
        mask: [B, T] bool, True on real tokens, the end token included.

    Chapter 07.
    """

    prompt_ids: Tensor
    prompt_mask: Tensor
    response_ids: Tensor
    mask: Tensor

    def __len__(self) -> int:
        return len(self.mask)

    @property
    def prompt_lengths(self) -> Tensor:
        """[B] real tokens of each prompt."""
        return self.prompt_mask.sum(1)

    @property
    def response_lengths(self) -> Tensor:
        """[B] real tokens of each response."""
        return self.mask.sum(1)

    def select(self, rows: Tensor) -> "TokenBatch":
        """The given rows, trimmed to the longest prompt and response among them."""
        prompt, response = int(self.prompt_lengths[rows].max()), int(self.response_lengths[rows].max())
        start = self.prompt_ids.shape[1] - prompt
        return TokenBatch(
            self.prompt_ids[rows, start:], self.prompt_mask[rows, start:],
            self.response_ids[rows, :response], self.mask[rows, :response],
        )  # fmt: skip

    def to(self, device: str | torch.device) -> "TokenBatch":
        """The same batch on another device."""
        return TokenBatch(*(x.to(device) for x in (self.prompt_ids, self.prompt_mask, self.response_ids, self.mask)))


def make_batch(
    prompt_rows: Sequence[Sequence[int]],
    response_rows: Sequence[Sequence[int]],
    pad_id: int,
    device: str | torch.device = "cpu",
) -> TokenBatch:
    """Pad prompts on the left and responses on the right; the masks come from the lengths.

    Args:
        prompt_rows: B lists of at least one token id.
        response_rows: B lists of token ids; an empty one is a row without real tokens.
        pad_id: what stands under the masks.
        device: where the tensors go.

    Raises:
        ValueError: not as many prompts as responses, none at all, or a prompt without tokens.

    Example:
        >>> batch = make_batch([[5], [6, 7]], [[8, 9], [9]], pad_id=0)
        >>> batch.prompt_ids.tolist(), batch.response_ids.tolist(), batch.mask.tolist()
        ([[0, 5], [6, 7]], [[8, 9], [9, 0]], [[True, True], [True, False]])

    Chapter 07.
    """
    if not len(prompt_rows) or len(prompt_rows) != len(response_rows):
        raise ValueError(
            f"got {len(prompt_rows)} prompts and {len(response_rows)} responses; expected as many, at least 1"
        )
    if not all(map(len, prompt_rows)):
        raise ValueError(
            "a prompt has no tokens; expected at least one, from which the first response token is predicted"
        )
    prompt_lengths, response_lengths = (
        torch.tensor([len(row) for row in rows]) for rows in (prompt_rows, response_rows)
    )
    width, length = int(prompt_lengths.max()), int(response_lengths.max())
    prompt_ids = torch.tensor([[pad_id] * (width - len(row)) + list(row) for row in prompt_rows])
    response_ids = torch.tensor([list(row) + [pad_id] * (length - len(row)) for row in response_rows], dtype=torch.long)
    return TokenBatch(
        prompt_ids,
        length_mask(prompt_lengths, width).flip(1),
        response_ids,
        length_mask(response_lengths, length),
    ).to(device)


def length_groups(batch: TokenBatch, size: int) -> tuple[Tensor, ...]:
    """Row indices in even groups of at most `size`, rows of similar length (prompt and response) together."""
    order = (batch.prompt_lengths + batch.response_lengths).argsort(stable=True)
    return order.tensor_split(-(-len(order) // size))


@dataclass(frozen=True)
class Rollout:
    """Replies to a batch of prompts, with the numbers kept from sampling. Row b is one prompt and its reply.

    Attributes:
        conversations: the B prompts.
        texts: the B replies as text, without the end token.
        batch: the tokens; the end token is part of a reply that ended.
        log_probs: [B, T] nats, log-prob of each sampled token under the sampling law; 0 outside the mask.
        values: [B, T + 1] value of the state before each token, 0 after the last one; None without a value head.
        ended: [B] bool, True where the reply produced the end token, False where it hit the length limit.
        logits: [R, T, V] from which the first R replies were sampled, before the temperature; None unless asked for.
    """

    conversations: tuple[Conversation, ...]
    texts: tuple[str, ...]
    batch: TokenBatch
    log_probs: Tensor
    values: Tensor | None
    ended: Tensor
    logits: Tensor | None = None

    def __len__(self) -> int:
        return len(self.texts)

    def select(self, rows: Tensor) -> "Rollout":
        """The given rows, trimmed to the longest prompt and reply among them; without the logits."""
        batch, places = self.batch.select(rows), rows.tolist()
        width = batch.mask.shape[1]
        return Rollout(
            tuple(self.conversations[row] for row in places),
            tuple(self.texts[row] for row in places),
            batch,
            self.log_probs[rows, :width],
            None if self.values is None else self.values[rows, : width + 1],
            self.ended[rows],
        )
