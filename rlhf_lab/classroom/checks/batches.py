"""Checks of two exercises of chapter 07: prompts padded on the left, and the loss of supervised fine-tuning.

Each compares a function with the definition: on cases small enough for paper and on random ones, with NaN where the
padding is. When something differs, the usual mistakes are tried on the same inputs, and the message names the one that
gives the same. Answers may be lists, arrays or tensors of any precision.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlhf_lab.classroom.checks.comparing import (
    ASKED,
    NO_RETURN,
    as_tensor,
    compare,
    exercise,
    fail,
    odd_tensors,
    same_tensors,
)

RANDOM_CASES = 20
Rows = Sequence[Sequence[int]]
PARTS = ("ids", "mask", "positions")


# -- padding on the left -----------------------------------------------------------------------------------------------
def _left_padded(rows: Rows, pad: int, *, fault: str = "") -> list[Tensor]:
    """[ids, mask, positions], each [B, P]; positions are 0 at padding."""
    width = max(map(len, rows))
    left = fault != "right"
    fill = [[pad] * (width - len(row)) for row in rows]
    ids = torch.tensor([[*gap, *row] if left else [*row, *gap] for gap, row in zip(fill, rows, strict=True)])
    real = [[False] * len(gap) + [True] * len(row) for gap, row in zip(fill, rows, strict=True)]
    mask = torch.tensor(real if left else [row[::-1] for row in real])
    if fault == "from ids":
        mask = ids != pad
    if fault == "inverted":
        mask = ~mask
    counted = mask.long().cumsum(1)
    positions = {"columns": torch.arange(width).expand(mask.shape), "from 1": counted, "backwards": counted.flip(1) - 1}
    return [ids, mask, positions.get(fault, counted - 1).clamp(min=0)]


_PADDING_FAULTS = {
    "the padding is on the right: then the replies do not begin in one column": "right",
    "the mask is taken from the ids: a prompt may hold the pad token itself, as it does where pad is the end token": (
        "from ids"
    ),
    "the mask is the other way round: True where a token is real": "inverted",
    "positions are columns: they count the real tokens of a row": "columns",
    "positions begin at 1: the first real token has 0": "from 1",
    "positions are counted from the end": "backwards",
}


def _batch(function: Callable, rows: Rows, pad: int) -> list[Any]:
    got = function(rows, pad)
    if not isinstance(got, tuple | list) or len(got) != len(PARTS):
        cause = NO_RETURN if got is None else f"return {', '.join(PARTS)}"
        fail("left_padded, what it returned", f"rows {rows}", got, "three tensors", cause, ASKED)
    return [_plain(part) for part in got]


def _plain(part: Any) -> Any:
    """Lists of numbers or of tensors, arrays and tensors as a tensor of numbers; anything else as it came."""
    if isinstance(part, list | tuple):
        part = np.array([np.asarray(as_tensor(row)) for row in part])
    part = as_tensor(np.asarray(part, float) if isinstance(part, np.ndarray) else part)
    return part.double() if isinstance(part, Tensor) else part


@exercise
def check_left_padded(function: Callable[[Rows, int], Any]) -> None:
    """Check `left_padded(rows, pad)` -> ids, mask and positions, each [B, P]; positions may be anything at padding.

    Raises:
        AssertionError: with the first case that fails and what usually causes it.
    """
    hint = "pad ids first, then the row; the mask from the lengths; positions 0, 1, ... along the real tokens"
    random = np.random.default_rng(0)
    cases: list[tuple[Rows, int]] = [([[5], [6, 7, 8]], 0), ([[1, 2, 1], [3]], 1), ([[4, 2], [2, 9]], 2)]
    for _ in range(RANDOM_CASES):
        lengths = random.integers(1, 6, random.integers(2, 5))
        cases.append(([random.integers(0, 6, n).tolist() for n in lengths], int(random.integers(0, 6))))
    for rows, pad in cases:
        expected = _left_padded(rows, pad)
        real = expected[1]
        for part, name in enumerate(PARTS):
            shown = partial(_shown, real, part)
            faults = {
                cause: lambda fault=fault, part=part, shown=shown, given=(rows, pad): shown(
                    _left_padded(*given, fault=fault)[part]
                )
                for cause, fault in _PADDING_FAULTS.items()
            }
            call = lambda *given, part=part, shown=shown: shown(_batch(function, *given)[part])  # noqa: E731
            compare(
                f"left_padded, {name}", f"rows {rows}, pad {pad}", call, shown(expected[part]), faults, hint,
                same=same_tensors, odd=odd_tensors, inputs=(rows, pad),
            )  # fmt: skip
    print(f"left_padded: passed (3 batches by hand, {RANDOM_CASES} random ones, with the pad token in prompts)")


def _shown(real: Tensor, part: int, got: Any) -> Any:
    """What counts of a part: of the positions those of real tokens."""
    if isinstance(got, Tensor) and PARTS[part] == "positions" and got.shape == real.shape:
        return got.double().masked_fill(~real, 0.0)
    return got.double() if isinstance(got, Tensor) else got


# -- the loss of SFT ---------------------------------------------------------------------------------------------------
def _token_losses(logits: Tensor, ids: Tensor, shift: int = 1) -> Tensor:
    """[B, T] minus the log-prob of each token under the logits `shift` columns before it; 0 where there are none."""
    return _picked(logits.log_softmax(-1), ids, shift)


def _picked(scores: Tensor, ids: Tensor, shift: int = 1) -> Tensor:
    """[B, T] minus the score of each token, of the scores `shift` columns before it; 0 where there are none."""
    losses = torch.zeros(ids.shape, dtype=torch.float64)
    for t in range(max(shift, 0), min(ids.shape[1], scores.shape[1] + shift)):
        losses[:, t] = -scores[:, t - shift].gather(1, ids[:, t : t + 1])[:, 0]
    return losses


def _mean(losses: Tensor, counts: Tensor) -> Tensor:
    return losses[counts].mean()


def _reply_loss(logits: Tensor, ids: Tensor, reply: Tensor, shift: int = 1) -> Tensor:
    return _mean(_token_losses(logits, ids, shift), reply)


def _by_row(logits: Tensor, ids: Tensor, reply: Tensor) -> Tensor:
    losses = _token_losses(logits, ids)
    return torch.stack([row[counts].mean() for row, counts in zip(losses, reply, strict=True)]).mean()


def _all_but_first(reply: Tensor) -> Tensor:
    return (torch.arange(reply.shape[1]) > 0).expand(reply.shape)


def _to_the_end(reply: Tensor) -> Tensor:
    """The whole row: prompt and reply, without the first token and without the padding after the reply."""
    last = reply.long().cumsum(1).argmax(1, keepdim=True)
    return _all_but_first(reply) & (torch.arange(reply.shape[1]) <= last)


def _cut(reply: Tensor, *, first: int = 0, last: int = 0) -> Tensor:
    """The reply without so many of its first and of its last tokens."""
    before, up_to = reply.long().cumsum(1), reply.long().flip(1).cumsum(1).flip(1)
    return reply & (before > first) & (up_to > last)


_LOSS_FAULTS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "the labels are not shifted: logits of column t predict the token of column t + 1": partial(_reply_loss, shift=0),
    "shifted the wrong way: logits of column t predict the token of column t + 1, not t - 1": partial(
        _reply_loss, shift=-1
    ),
    "shifted by two": partial(_reply_loss, shift=2),
    "the mask is not shifted along: mask and token belong together, the logits are one column before": (
        lambda x, i, m: _mean(_token_losses(x, i), torch.cat([torch.zeros_like(m[:, :1]), m[:, :-1]], 1))
    ),
    "the end token is left out: it belongs to the reply, and stopping is learned from it": lambda x, i, m: _mean(
        _token_losses(x, i), _cut(m, last=1)
    ),
    "the first token of the reply is left out: the logits of the prompt's last column predict it": lambda x, i, m: (
        _mean(_token_losses(x, i), _cut(m, first=1))
    ),
    "the prompt counts too: the mean is over the tokens of the reply": lambda x, i, m: _mean(
        _token_losses(x, i), _to_the_end(m)
    ),
    "everything counts, padding too: the mean is over the tokens of the reply": lambda x, i, m: _mean(
        _token_losses(x, i), _all_but_first(m)
    ),
    "the mean of the rows' means: every token counts the same": _by_row,
    "the sum: divide by the number of reply tokens": lambda x, i, m: _reply_loss(x, i, m) * m.sum(),
    "divided by the number of rows": lambda x, i, m: _reply_loss(x, i, m) * m.sum() / len(m),
    "divided by the number of all tokens": lambda x, i, m: _reply_loss(x, i, m) * m.sum() / (m.numel() - len(m)),
    "the sign: a loss is minimised, so it is minus the log-prob": lambda x, i, m: -_reply_loss(x, i, m),
    "the logits and not their log_softmax": lambda x, i, m: _mean(_picked(x, i), m),
    "the probabilities and not their logarithms": lambda x, i, m: _mean(_picked(x.softmax(-1), i), m),
    "one minus the probability": lambda x, i, m: _mean(1 - (-_token_losses(x, i)).exp(), m),
    "the logarithm of the mean probability: it is the mean of the logarithms": lambda x, i, m: (
        -(-_token_losses(x, i)).exp()[m].mean().log()
    ),
    "the logarithm is to base 2: nats are asked, the natural one": lambda x, i, m: _reply_loss(x, i, m) / math.log(2),
    "the log_softmax is over the columns: it is over the tokens, the last axis": lambda x, i, m: _mean(
        _picked(x[:, :-1].log_softmax(1), i), m
    ),
    "the log_softmax is over the rows: it is over the tokens, the last axis": lambda x, i, m: _mean(
        _picked(x.log_softmax(0), i), m
    ),
}
PADDING_READ = (
    "logits are read that predict no token of a reply; here they hold NaN, and NaN * 0 is NaN: pick with the mask, as "
    "in losses[mask]"
)


def _loss_case(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of prompt, reply and padding; each reply has at least one token, and each prompt."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, 7, 5, generator=generator, dtype=torch.float64)
    ids = torch.randint(5, (3, 7), generator=generator)
    first = torch.randint(1, 4, (3, 1), generator=generator)
    last = first + torch.randint(1, 4, (3, 1), generator=generator)
    columns = torch.arange(7)
    return logits, ids, (columns >= first) & (columns < last)


@exercise
def check_reply_loss(function: Callable[[Tensor, Tensor, Tensor], Any]) -> None:
    """Check `reply_loss(logits, ids, reply)`: minus the mean log-prob of the reply's tokens, nats; NaN at the others.

    Raises:
        AssertionError: with the first case that fails and what usually causes it.
    """
    hint = "the mean over reply[:, 1:] of minus log_softmax(logits[:, :-1]) at ids[:, 1:]"
    hand = torch.tensor([[[3.0, 1.0], [1.0, 3.0], [1.0, 1.0]]], dtype=torch.float64).log()
    reply = torch.tensor([[False, True, True]])
    cases = [("by hand: probabilities 1/4 and 3/4 of the reply's two tokens", (hand, torch.tensor([[0, 1, 1]]), reply))]
    cases += [(f"random rows {seed}", _loss_case(seed)) for seed in range(RANDOM_CASES)]
    for case, inputs in cases:
        logits, ids, reply = inputs
        faults = {cause: partial(fault, *inputs) for cause, fault in _LOSS_FAULTS.items()}
        label = f"{case}, reply {reply.int().tolist()}"
        expected = _reply_loss(*inputs)
        compare(
            "reply_loss", label, function, expected, faults, hint, same=same_tensors, odd=odd_tensors, inputs=inputs
        )
        predicts = torch.cat([reply[:, 1:], torch.zeros_like(reply[:, :1])], dim=1)
        junk = (torch.where(predicts[..., None], logits, torch.nan), ids, reply)
        compare(
            "reply_loss", f"{label}, NaN in the logits that predict no reply token", function, expected, {}, hint,
            same=same_tensors, odd=partial(odd_tensors, not_finite=PADDING_READ), inputs=junk,
        )  # fmt: skip
    print(f"reply_loss: passed (a case by hand, {RANDOM_CASES} random ones, with NaN in all other logits)")
