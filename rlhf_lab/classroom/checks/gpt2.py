"""A GPT-2 in plain functions of a dictionary of weights: the definition that the checks of chapter 07 compare with.

    w["tokens"] [V, d]   w["positions"] [L, d]   w["blocks"], one dictionary a block   w["norm"]
    a block: "norm_1", "qkv" [d, 3d], "out" [d, d], "norm_2", "up" [d, 4d], "down" [4d, d]

Every entry but the first two and the list of blocks is a pair (weight, bias). Some functions can be given a fault: a
check names a mistake by the answer that it would give.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

HEADS, WIDTH, VOCABULARY, CONTEXT = 3, 12, 7, 9  # of the random models
Pair = tuple[Tensor, Tensor]
Weights = dict[str, Any]


# -- weights -----------------------------------------------------------------------------------------------------------
def linear(x: Tensor, pair: Pair) -> Tensor:
    """x @ weight + bias, with weight [inputs, outputs] as GPT-2 stores it.

    Example:
        >>> linear(torch.ones(1, 2), (torch.eye(2), torch.tensor([0.0, 1.0])))
        tensor([[1., 2.]])
    """
    weight, bias = pair
    return x @ weight + bias


def norm(x: Tensor, pair: Pair) -> Tensor:
    """Layer norm over the last axis: each position shifted to mean 0 and scaled to variance 1, then weight and bias.

    Example:
        >>> norm(torch.tensor([1.0, 3.0]), (torch.ones(2), torch.zeros(2)))
        tensor([-1.0000,  1.0000])
    """
    return functional.layer_norm(x, x.shape[-1:], *pair)


def random_weights(seed: int = 0, blocks: int = 2) -> Weights:
    """A small random model, float64: `VOCABULARY` tokens, `CONTEXT` positions, width `WIDTH`, `HEADS` heads."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    pair = lambda *shape: (draw(*shape) / math.sqrt(shape[0]), 0.3 * draw(shape[-1]))  # noqa: E731
    scale = lambda: (1 + 0.3 * draw(WIDTH), 0.3 * draw(WIDTH))  # noqa: E731
    one = lambda: {  # noqa: E731
        "norm_1": scale(), "qkv": pair(WIDTH, 3 * WIDTH), "out": pair(WIDTH, WIDTH),
        "norm_2": scale(), "up": pair(WIDTH, 4 * WIDTH), "down": pair(4 * WIDTH, WIDTH),
    }  # fmt: skip
    tables = {"tokens": draw(VOCABULARY, WIDTH), "positions": draw(CONTEXT, WIDTH)}
    return {**tables, "blocks": [one() for _ in range(blocks)], "norm": scale()}


def random_tensor(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_ids(seed: int, *shape: int) -> Tensor:
    return torch.randint(VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


# -- the definition ----------------------------------------------------------------------------------------------------
def _visible(queries: int, keys: int, *, sees: str = "past") -> Tensor:
    """[queries, keys] bool: the queries are the last positions, and each sees itself and what is before it."""
    own = torch.arange(queries)[:, None] + (0 if sees == "aligned at the first key" else keys - queries)
    own = own + (sees == "one too late")
    keys_at = torch.arange(keys)
    tables = {"all": keys_at >= 0 * own, "future": keys_at >= own, "strictly past": keys_at < own}
    return tables.get(sees, keys_at <= own)


def attended(
    q: Tensor, k: Tensor, v: Tensor, *, sees: str = "past", scale: float | None = None, axis: int = -1, hide: str = ""
) -> Tensor:
    scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    visible = _visible(q.shape[-2], k.shape[-2], sees=sees)
    if hide == "after":
        return (scores.softmax(axis) * visible) @ v
    return scores.masked_fill(~visible, 0.0 if hide == "zero" else -math.inf).softmax(axis) @ v


def _in_heads(part: Tensor, heads: int, cut: str) -> Tensor:
    """[B, T, d] as [B, H, T, d / H], or as a mistake would cut it."""
    batch, length, width = part.shape
    if cut == "interleaved":
        return part.view(batch, length, width // heads, heads).permute(0, 3, 1, 2)
    if cut in ("no transpose", "never transposed"):
        return part.reshape(batch, heads, length, width // heads)
    rows = part.view(batch, length, heads, width // heads)
    return rows if cut == "over heads" else rows.transpose(1, 2)


def self_attended(
    b: Weights,
    x: Tensor,
    heads: int,
    *,
    order: tuple[int, int, int] = (0, 1, 2),
    cut: str = "",
    out: bool = True,
    attend: Callable[[Tensor, Tensor, Tensor], Tensor] = attended,
) -> Tensor:
    parts = linear(x, b["qkv"]).chunk(3, -1)
    if cut == "head by head":
        parts = tuple(part.flatten(2) for part in linear(x, b["qkv"]).unflatten(-1, (heads, -1)).chunk(3, -1))
    seen = attend(*(_in_heads(parts[i], heads, cut) for i in order))
    as_it_is = cut in ("not merged", "never transposed", "over heads")
    merged = (seen if as_it_is else seen.transpose(1, 2)).reshape(x.shape)
    return linear(merged, b["out"]) if out else merged


tanh_gelu = partial(functional.gelu, approximate="tanh")


def mlp(b: Weights, x: Tensor, act: Callable[[Tensor], Tensor] = tanh_gelu) -> Tensor:
    return linear(act(linear(x, b["up"])), b["down"])


def block_output(
    b: Weights, x: Tensor, heads: int, attend: Callable[[Tensor, Tensor, Tensor], Tensor] = attended
) -> Tensor:
    x = x + self_attended(b, norm(x, b["norm_1"]), heads, attend=attend)
    return x + mlp(b, norm(x, b["norm_2"]))


def embedded(w: Weights, ids: Tensor, positions: Tensor) -> Tensor:
    return w["tokens"][ids] + w["positions"][positions]


def states(w: Weights, ids: Tensor, positions: Tensor, heads: int, attend: Callable = attended) -> Tensor:
    x = embedded(w, ids, positions)
    for b in w["blocks"]:
        x = block_output(b, x, heads, attend)
    return x


def all_logits(w: Weights, ids: Tensor, positions: Tensor, heads: int, attend: Callable = attended) -> Tensor:
    return norm(states(w, ids, positions, heads, attend), w["norm"]) @ w["tokens"].T


def columns(ids: Tensor) -> Tensor:
    return torch.arange(ids.shape[1]).expand(ids.shape)
