"""Scoring responses: one pass over prompts and responses, log-probs of the response tokens, values.

A pass closes the gaps that padding leaves, positions count real tokens, and dropout is off (models stay in eval mode,
also while they learn).
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf_lab.maths.tensors import check_shapes
from rlhf_lab.models.architectures import before_head
from rlhf_lab.models.language_model import LanguageModel, max_length
from rlhf_lab.models.tokens import TokenBatch, length_groups


class ResponseForward(NamedTuple):
    """What one pass over prompts and responses gives.

    Attributes:
        logits: [B, T, V] float32; logits[b, t] predict response token t.
        hidden: [B, T + 1, d], what the head reads, in the precision of the pass; hidden[b, t] is the state before
            response token t, and hidden[b, n] of a row of n tokens the state after its last. Later ones mean nothing.
    """

    logits: Tensor
    hidden: Tensor


def packed_inputs(model: PreTrainedModel, batch: TokenBatch) -> tuple[dict[str, Tensor | bool], Tensor]:
    """The arguments of a pass over rows of prompt and response without a gap, [B, W], and where the states are.

    All padding stands on the right, where the causal mask hides it: no attention mask, positions from 0 on, and
    W is the longest row. A batch padded on both sides would be wider by half, and attention slower.

    Returns:
        The arguments, and the columns [B, T + 1] of the states before each response token and after the last.

    Raises:
        ValueError: a row is longer than the context; names it and the lengths.
    """
    before, lengths = batch.prompt_lengths, batch.prompt_lengths + batch.response_lengths
    width = int(lengths.max())
    if width > max_length(model):
        raise ValueError(_too_long(model, batch))
    ids = torch.cat([batch.prompt_ids, batch.response_ids], dim=1)
    gaps = batch.prompt_ids.shape[1] - before
    columns = gaps[:, None] + torch.arange(width, device=ids.device)
    ids = ids.gather(1, columns.clamp(max=ids.shape[1] - 1))
    states = before[:, None] - 1 + torch.arange(batch.mask.shape[1] + 1, device=ids.device)
    # Embeddings instead of ids, because with ids transformers warns of padding that the causal mask hides.
    return {"inputs_embeds": model.get_input_embeddings()(ids), "use_cache": False}, states.clamp(max=width - 1)


def _too_long(model: PreTrainedModel, batch: TokenBatch) -> str:
    row = int((batch.prompt_lengths + batch.response_lengths).argmax())
    return (
        f"row {row} has {int(batch.prompt_lengths[row])} prompt and {int(batch.response_lengths[row])} response "
        f"tokens; expected at most {max_length(model)} together; shorten it or leave it out"
    )


def _pick(states: Tensor, columns: Tensor) -> Tensor:
    """states[b, columns[b, t]] as [B, T + 1, d]."""
    return states.gather(1, columns[..., None].expand(-1, -1, states.shape[-1]))


def response_states(model: PreTrainedModel, batch: TokenBatch) -> Tensor:
    """Hidden states [B, T + 1, d] of the backbone from the last prompt token on; see `ResponseForward`."""
    inputs, columns = packed_inputs(model, batch)
    return _pick(model.base_model(**inputs).last_hidden_state, columns)


def forward(lm: LanguageModel, batch: TokenBatch) -> ResponseForward:
    """One pass over prompts and responses, with logits at the response positions only; gradient flows.

    Args:
        lm: any causal language model.
        batch: on the device of `lm`.

    Returns:
        ResponseForward. Neither padding nor the other rows change a real position, up to rounding.

    Raises:
        ValueError: a row is longer than the context; names it and the lengths.

    Example:
        >>> from rlhf_lab import load_language_model, make_batch
        >>> lm = load_language_model("tiny")
        >>> output = forward(lm, make_batch([[5], [6, 7]], [[8, 9, 10], [9]], lm.pad_id))
        >>> output.logits.shape == (2, 3, len(lm.tokenizer)), list(output.hidden.shape)[:2]
        (True, [2, 4])

    Chapter 07.
    """
    inputs, columns = packed_inputs(lm.model, batch)
    picked: list[Tensor] = []

    def pick_responses(states: Tensor) -> Tensor:
        picked.append(_pick(states, columns))
        return picked[0][:, :-1]

    # The model's own head makes the logits, because some architectures scale or cap them after the
    # projection; so the states are picked on their way there.
    with lm.autocast(), before_head(lm.model, pick_responses):
        logits = lm.model(**inputs).logits
    return ResponseForward(logits.float(), picked[0])


def token_log_probs(logits: Tensor, response_ids: Tensor, mask: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probs of the response tokens under softmax(logits / temperature).

        log_probs[b, t] = log softmax(logits[b, t] / temperature)[response_ids[b, t]]

    Args:
        logits: [B, T, V] float32.
        response_ids: [B, T], any valid ids under the mask.
        mask: [B, T] bool.
        temperature: of the sampling law, above 0.

    Returns:
        [B, T] nats; exactly 0 outside the mask.

    Raises:
        ValueError: shapes differ, or temperature is not above 0.

    Example:
        >>> logits, ids = torch.tensor([[[0.0, 0.0], [9.0, 0.0]]]), torch.tensor([[1, 0]])
        >>> token_log_probs(logits, ids, torch.tensor([[True, False]]))
        tensor([[-0.6931,  0.0000]])

    Chapter 07.
    """
    check_shapes(response_ids=response_ids, mask=mask, logits=logits[..., 0])
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; expected a number above 0 (greedy has no log-probs)")
    if temperature != 1.0:
        logits = logits / temperature
    # log_softmax and gather take half the time of logsumexp, forward and backward together.
    log_probs = torch.log_softmax(logits, dim=-1).gather(-1, response_ids[..., None]).squeeze(-1)
    return log_probs.masked_fill(~mask, 0.0)


@torch.no_grad()
def response_log_probs(lm: LanguageModel, batch: TokenBatch, temperature: float = 1.0, micro_batch: int = 64) -> Tensor:
    """Log-probs of the responses without gradient, in micro-batches of rows of similar length.

    Args:
        lm: any causal language model.
        batch: on the device of `lm`.
        temperature: of the sampling law, above 0.
        micro_batch: most rows in one pass.

    Returns:
        [B, T] nats; exactly 0 outside the mask.

    Raises:
        ValueError: as `forward` and `token_log_probs`.

    Example:
        >>> from rlhf_lab import load_language_model, make_batch
        >>> lm = load_language_model("tiny")
        >>> response_log_probs(lm, make_batch([[5], [6, 7]], [[8, 9], [9]], lm.pad_id))[1, 1]
        tensor(0.)

    Chapter 07.
    """
    result = torch.zeros(batch.mask.shape, device=batch.mask.device)
    for rows in length_groups(batch, micro_batch):
        part = batch.select(rows)
        log_probs = token_log_probs(forward(lm, part).logits, part.response_ids, part.mask, temperature)
        result[rows, : log_probs.shape[1]] = log_probs
    return result


class ValueHead(nn.Linear):
    """Value of each state from the policy's hidden states: values[...] = weight . hidden[..., :] + bias.

    Weight and bias are 0 at the start, so the first advantages are the returns.

    Example:
        >>> ValueHead(4)(torch.ones(2, 3, 4)).shape
        torch.Size([2, 3])

    Chapter 10.
    """

    def __init__(self, hidden_size: int):
        super().__init__(hidden_size, 1)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """Values in the reward's units, float32."""
        return super().forward(hidden.float()).squeeze(-1)

    @property
    def network(self) -> nn.Module:
        """What an optimiser trains."""
        return self

    def values(self, batch: TokenBatch, hidden: Tensor | None) -> Tensor:
        """Values [B, T + 1] of the policy's hidden states; only these are looked at.

        Raises:
            ValueError: no hidden states were given.
        """
        if hidden is None:
            raise ValueError("hidden is None; expected the policy's hidden states, which a head on the policy reads")
        return self(hidden)
