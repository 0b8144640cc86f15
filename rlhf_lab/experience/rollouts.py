"""Experience of a language model: replies sampled with a key-value cache, and what was known while sampling.

The sampling law is the scored law: the temperature divides the logits and nothing else touches them (no top-k, no
top-p, no repetition penalty), so the log-probs kept here are those of `language_model.response_log_probs`.
Left out: beam search, stop strings and every other feature of a serving engine.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DynamicCache

from rlhf_lab.models.architectures import before_head, next_logits
from rlhf_lab.models.language_model import LanguageModel
from rlhf_lab.models.scoring import ValueHead
from rlhf_lab.models.tokens import Rollout, decode_responses, encode_prompts, make_batch
from rlhf_lab.records import as_conversation
from rlhf_lab.training.randomness import generator_for

# Removing the rows that have ended copies the cache once; below this share of live rows the copy pays.
COMPACT_BELOW = 0.8
# Of the town's policies, in feedback, training and evaluation alike: at 1 the small model leaves the grammar too often.
TEMPERATURE = 0.7


def sample_responses(
    lm: LanguageModel,
    conversations: Sequence,
    *,
    max_new_tokens: int = 64,
    temperature: float = 1.0,
    generator: torch.Generator,
    value_head: ValueHead | None = None,
    batch_size: int = 128,
    keep_logits: int = 0,
) -> Rollout:
    """Sample one reply to each prompt from softmax(logits / temperature), token by token.

        token[b, t] = smallest k with  cdf[b, t, k] > u[b, t],   u uniform on [0, 1)

    All uniforms are drawn first, one per row and step in the order of `conversations`, so a reply depends on the
    seed, its row and its prompt, and not on `batch_size` or on the other prompts (up to a rounding error that falls
    exactly on the border between two tokens).

    Args:
        conversations: B prompts, each a str or messages that end with the user's.
        max_new_tokens: limit of a reply in tokens, the end token included; at least 1.
        temperature: divides the logits; 0 is greedy, and then `log_probs` are those at temperature 1, so greedy
            rollouts are for showing and evaluating, never for training.
        generator: a CPU generator; B x max_new_tokens numbers are taken from it.
        value_head: also keep its values of the states passed through.
        batch_size: most rows decoded at once.
        keep_logits: also keep the logits of the first so many replies, for a check of the sampling law.

    Returns:
        A Rollout in the order of `conversations`.

    Raises:
        ValueError: no prompts, an impossible limit or temperature, or a prompt longer than the context allows.

    Example:
        >>> import torch
        >>> from rlhf_lab.models.language_model import load_language_model
        >>> lm = load_language_model("tiny")
        >>> rollout = sample_responses(lm, ["When does the library close?"] * 2, max_new_tokens=8,
        ...                            generator=torch.Generator().manual_seed(0))
        >>> len(rollout.texts), bool((rollout.batch.response_lengths <= 8).all())
        (2, True)

    Source: inverse-transform sampling, any textbook. Chapter 07.
    """
    _check_request(conversations, max_new_tokens, temperature, batch_size)
    conversations = tuple(as_conversation(prompt) for prompt in conversations)
    prompts = encode_prompts(lm, conversations, max_new_tokens)
    uniforms = torch.rand(len(prompts), max_new_tokens, generator=generator, dtype=torch.float64)
    # Prompts of one length share a batch, so that little of it is padding.
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    tokens = torch.full((len(prompts), max_new_tokens), lm.pad_id)
    log_probs, values = torch.zeros(tokens.shape), torch.zeros(len(prompts), max_new_tokens + 1)
    lengths, ended = torch.zeros(len(prompts), dtype=torch.long), torch.zeros(len(prompts), dtype=torch.bool)
    logits: dict[tuple[int, int], Tensor] = {}  # (row, step) -> [V]
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        keep = {place: row for place, row in enumerate(rows) if row < keep_logits}
        decoded = _decode(lm, [prompts[row] for row in rows], uniforms[rows], temperature, value_head, keep, logits)
        for whole, part in zip((tokens, log_probs, values, lengths, ended), decoded, strict=True):
            whole[rows] = part.cpu()
    replies = [row[:n] for row, n in zip(tokens.tolist(), lengths.tolist(), strict=True)]
    batch = make_batch(prompts, replies, lm.pad_id, lm.device)
    width = batch.mask.shape[1]
    return Rollout(
        conversations,
        tuple(decode_responses(lm, batch.response_ids, batch.mask)),
        batch,
        log_probs[:, :width].to(lm.device),
        None if value_head is None else values[:, : width + 1].to(lm.device),
        ended.to(lm.device),
        _kept(logits, min(keep_logits, len(prompts)), width),
    )


def _kept(logits: dict[tuple[int, int], Tensor], rows: int, width: int) -> Tensor | None:
    """[rows, width, V], 0 where nothing was drawn; None without any."""
    if not rows:
        return None
    some = next(iter(logits.values()))
    kept = some.new_zeros(rows, width, len(some))
    for place, row in logits.items():
        kept[place] = row
    return kept


def _check_request(conversations: Sequence, max_new_tokens: int, temperature: float, batch_size: int) -> None:
    if isinstance(conversations, str) or not len(conversations):
        raise ValueError(f"conversations must be a non-empty list of prompts, got {conversations!r}")
    if max_new_tokens < 1 or batch_size < 1:
        raise ValueError(f"max_new_tokens and batch_size must be at least 1, got {max_new_tokens} and {batch_size}")
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature must be a number >= 0 (0 is greedy), got {temperature}")


@torch.no_grad()
def _decode(
    lm: LanguageModel,
    prompts: list[list[int]],
    uniforms: Tensor,
    temperature: float,
    value_head: ValueHead | None,
    keep: dict[int, int],
    kept: dict[tuple[int, int], Tensor],
) -> tuple[Tensor, ...]:
    """Decode one batch: tokens [b, T], log_probs [b, T], values [b, T + 1], lengths [b], ended [b].

    The logits of the rows in `keep` (place in this batch -> row of the rollout) go into `kept`.
    """
    start = make_batch(prompts, [[lm.end_id]] * len(prompts), lm.pad_id, lm.device)
    inputs, mask, uniforms = start.prompt_ids, start.prompt_mask, uniforms.to(lm.device)
    positions = (mask.long().cumsum(1) - 1).clamp(min=0)
    tokens = torch.full(uniforms.shape, lm.pad_id, device=lm.device)
    log_probs = torch.zeros(uniforms.shape, device=lm.device)
    values = torch.zeros(len(prompts), uniforms.shape[1] + 1, device=lm.device)
    cache = DynamicCache(config=lm.model.config)
    rows = torch.arange(len(prompts), device=lm.device)  # the rows that are still in the batch
    alive = torch.ones_like(rows, dtype=torch.bool)  # which of them have not ended
    lengths, ended = torch.zeros_like(rows), torch.zeros_like(alive)
    for step in range(uniforms.shape[1]):
        logits, hidden = _next_token(lm, inputs, mask, positions, cache)
        token, log_prob = _draw(logits, uniforms[rows, step], temperature)
        for place, row in enumerate(rows.tolist() if keep else ()):
            if row in keep and alive[place]:
                kept[keep[row], step] = logits[place].clone()
        tokens[rows, step] = token.where(alive, lm.pad_id)
        log_probs[rows, step] = log_prob * alive
        if value_head is not None:
            values[rows, step] = value_head(hidden).float() * alive
        lengths[rows] += alive
        ended[rows] |= token == lm.end_id
        alive = alive & (token != lm.end_id)
        count = int(alive.sum())
        if count == 0:
            break
        inputs, positions = token[:, None], positions[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        if count < COMPACT_BELOW * len(rows):
            cache.batch_select_indices(alive.nonzero().squeeze(1))
            rows, inputs, positions, mask, alive = (x[alive] for x in (rows, inputs, positions, mask, alive))
    return tokens, log_probs, values, lengths, ended


def _next_token(
    lm: LanguageModel, inputs: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache
) -> tuple[Tensor, Tensor]:
    """Logits [b, V] and last hidden state [b, d] of the newest position; the cache grows."""
    last: list[Tensor] = []

    def keep(states: Tensor) -> Tensor:
        last.append(states[:, -1])
        return states

    with lm.autocast(), before_head(lm.model, keep):
        logits = next_logits(lm.model, inputs, mask, positions, cache)
    return logits.float(), last[0]


def _draw(logits: Tensor, uniform: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Token [b] by the inverse of the cumulative law and its log-prob [b]."""
    log_law = torch.log_softmax(logits / (temperature or 1.0), dim=-1)
    if temperature == 0:
        token = log_law.argmax(-1)
    else:
        # In float64: a float32 sum over a vocabulary of 50,000 would move the law of the rare tokens.
        cumulative = log_law.exp().double().cumsum(-1)
        target = uniform[:, None] * cumulative[:, -1:]
        # The first k with cdf[k] > target never has probability 0.
        token = torch.searchsorted(cumulative, target, right=True).squeeze(1).clamp(max=logits.shape[-1] - 1)
    return token, log_law.gather(-1, token[:, None]).squeeze(1)


def prompts_of(prompts: Sequence, count: int, step: int, seed: int = 0) -> list:
    """The `count` prompts of one iteration; all are used, in an order that changes every lap, before one comes again.

    Example:
        >>> sorted(prompts_of("abc", 2, step=0) + prompts_of("abc", 1, step=2))
        ['a', 'b', 'c']

    Chapter 10.
    """
    picked: list = []
    order: list[int] = []
    for position in range(step * count, (step + 1) * count):
        lap, place = divmod(position, len(prompts))
        if not order or place == 0:
            shuffle = generator_for(seed, "prompts", lap)
            order = torch.randperm(len(prompts), generator=shuffle).tolist()
        picked.append(prompts[order[place]])
    return picked
