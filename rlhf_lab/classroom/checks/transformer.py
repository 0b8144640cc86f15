"""Checks of the first exercise of chapter 07: a causal transformer from empty cells, piece by piece.

The weights are a plain dictionary (`gpt2_weights` makes it of a GPT-2, `random_weights` of nothing), a piece is a
function of weights and tensors. Each check compares it with the definition in float64, on random weights and inputs.
When something differs, the usual mistakes are tried on the same inputs, and the message names the one that gives the
same. Answers may be tensors or arrays of any precision, and computed in any way.

    w["tokens"] [V, d]   w["positions"] [L, d]   w["blocks"], one dictionary a block   w["norm"]
    a block: "norm_1", "qkv" [d, 3d], "out" [d, d], "norm_2", "up" [d, 4d], "down" [4d, d]

Every entry but the first two and the list of blocks is a pair (weight, bias).
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from rlhf_lab.classroom.checks.comparing import (
    compare,
    exercise,
    fail,
    odd_tensors,
    same_tensors,
)

RANDOM_CASES = 6
HEADS, WIDTH, VOCABULARY, CONTEXT = 3, 12, 7, 9  # of the random models
Pair = tuple[Tensor, Tensor]
Weights = dict[str, Any]
Faults = Mapping[str, Callable[..., Tensor]]
NOT_FINITE = "a row of the softmax may have nothing left to see: every position sees itself"


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


def gpt2_weights(model: PreTrainedModel) -> Weights:
    """The weights of a GPT-2 as the dictionary of this module; tensors are shared, and without gradients.

    Raises:
        ValueError: the model is no GPT-2.

    Chapter 07.
    """
    if model.config.model_type != "gpt2":
        raise ValueError(f"model is a {model.config.model_type}; expected a gpt2, whose parts have these names")
    state = {name: tensor.detach() for name, tensor in model.base_model.state_dict().items()}
    pair = lambda name: (state[f"{name}.weight"], state[f"{name}.bias"])  # noqa: E731
    parts = {"norm_1": "ln_1", "qkv": "attn.c_attn", "out": "attn.c_proj", "norm_2": "ln_2"}
    parts |= {"up": "mlp.c_fc", "down": "mlp.c_proj"}
    blocks = [{ours: pair(f"h.{i}.{theirs}") for ours, theirs in parts.items()} for i in range(model.config.n_layer)]
    return {
        "tokens": state["wte.weight"],
        "positions": state["wpe.weight"],
        "blocks": blocks,
        "norm": pair("ln_f"),
    }


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


# -- the definition ----------------------------------------------------------------------------------------------------
def _visible(queries: int, keys: int, *, sees: str = "past") -> Tensor:
    """[queries, keys] bool: the queries are the last positions, and each sees itself and what is before it."""
    own = torch.arange(queries)[:, None] + (0 if sees == "aligned at the first key" else keys - queries)
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


def _self_attention(
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
    batch, length, width = x.shape

    def split(part: Tensor) -> Tensor:
        if cut == "interleaved":
            return part.view(batch, length, width // heads, heads).permute(0, 3, 1, 2)
        if cut == "no transpose":
            return part.reshape(batch, heads, length, width // heads)
        return part.view(batch, length, heads, width // heads).transpose(1, 2)

    seen = attend(*(split(parts[i]) for i in order))
    merged = seen.reshape(x.shape) if cut == "not merged" else seen.transpose(1, 2).reshape(x.shape)
    return linear(merged, b["out"]) if out else merged


def _mlp(b: Weights, x: Tensor, act: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    act = act or partial(functional.gelu, approximate="tanh")
    return linear(act(linear(x, b["up"])), b["down"])


def block_output(
    b: Weights, x: Tensor, heads: int, attend: Callable[[Tensor, Tensor, Tensor], Tensor] = attended
) -> Tensor:
    x = x + _self_attention(b, norm(x, b["norm_1"]), heads, attend=attend)
    return x + _mlp(b, norm(x, b["norm_2"]))


def embedded(w: Weights, ids: Tensor, positions: Tensor) -> Tensor:
    return w["tokens"][ids] + w["positions"][positions]


def _states(w: Weights, ids: Tensor, positions: Tensor, heads: int, attend: Callable = attended) -> Tensor:
    x = embedded(w, ids, positions)
    for b in w["blocks"]:
        x = block_output(b, x, heads, attend)
    return x


def all_logits(w: Weights, ids: Tensor, positions: Tensor, heads: int, attend: Callable = attended) -> Tensor:
    return norm(_states(w, ids, positions, heads, attend), w["norm"]) @ w["tokens"].T


def columns(ids: Tensor) -> Tensor:
    return torch.arange(ids.shape[1]).expand(ids.shape)


# -- comparing ---------------------------------------------------------------------------------------------------------
def compare_tensors(
    name: str, case: str, function: Callable, expected: Tensor, faults: Faults, hint: str, inputs: tuple
) -> Any:
    """`compare` for tensors; each fault gets the inputs."""
    wrong = {cause: partial(fault, *inputs) for cause, fault in faults.items()}
    odd = lambda got, right: odd_tensors(got, right, not_finite=NOT_FINITE)  # noqa: E731
    return compare(name, case, function, expected, wrong, hint, same=same_tensors, odd=odd, inputs=inputs)


def random_tensor(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_ids(seed: int, *shape: int) -> Tensor:
    return torch.randint(VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


# -- the checks --------------------------------------------------------------------------------------------------------
_EMBED_FAULTS: Faults = {
    "the positions are counted from 0 in each row: look up the ones that are given": lambda w, i, p: embedded(
        w, i, columns(i)
    ),
    "the positions are missing: a transformer without them reads a bag of tokens": lambda w, i, p: w["tokens"][i],
    "the tokens are missing": lambda w, i, p: w["positions"][p],
    "product in the place of sum": lambda w, i, p: w["tokens"][i] * w["positions"][p],
    "the two are exchanged: ids are looked up in tokens": lambda w, i, p: (
        w["tokens"][p.clamp(max=VOCABULARY - 1)] + w["positions"][i]
    ),
    "positions begin at 1 and not at 0": lambda w, i, p: embedded(w, i, (p + 1).clamp(max=CONTEXT - 1)),
}


@exercise
def check_embed(function: Callable[[Weights, Tensor, Tensor], Tensor]) -> None:
    """Check `embed(w, ids, positions)` -> [B, T, d]: the row of each token plus the row of its position.

    Raises:
        AssertionError: with the first case that fails and what usually causes it.
    """
    hint = 'w["tokens"][ids] + w["positions"][positions]'
    cases = [("a row that begins behind two columns of padding", random_ids(0, 1, 4), torch.tensor([[0, 0, 0, 1]]))]
    cases += [
        (f"random ids and positions {seed}", random_ids(seed, 2, 5), random_ids(seed + 50, 2, 5)) for seed in range(3)
    ]
    for case, ids, positions in cases:
        inputs = (random_weights(), ids, positions)
        compare_tensors(
            "embed", f"{case}, positions {positions.tolist()}", function, embedded(*inputs), _EMBED_FAULTS, hint, inputs
        )
    print(f"embed: passed ({len(cases)} cases, positions of any kind)")


_ATTENTION_FAULTS: Faults = {
    "the causal mask is missing: later positions are seen": partial(attended, sees="all"),
    "the mask is the other way round: later positions are seen and earlier ones hidden": partial(
        attended, sees="future"
    ),
    "a position does not see itself": partial(attended, sees="strictly past"),
    "the mask is aligned at the first key: the queries are the last positions, so query i sees keys up to i + S - T": (
        partial(attended, sees="aligned at the first key")
    ),
    "the mask comes after the softmax, so rows do not add up to 1: put -inf before it": partial(attended, hide="after"),
    "hidden scores are 0 and not -inf: exp(0) is 1": partial(attended, hide="zero"),
    "1 / sqrt(D) is missing": partial(attended, scale=1.0),
    "the scores are divided by D and not by its root": lambda q, k, v: attended(q, k, v, scale=1 / q.shape[-1]),
    "the scores are multiplied by sqrt(D)": lambda q, k, v: attended(q, k, v, scale=q.shape[-1] ** 0.5),
    "the scores are divided by the root of the number of keys": lambda q, k, v: attended(
        q, k, v, scale=k.shape[-2] ** -0.5
    ),
    "the softmax is over the queries: it is over the keys, the last axis": partial(attended, axis=-2),
    "the softmax is over the heads: it is over the keys, the last axis": partial(attended, axis=1),
    "keys are averaged in the place of values": lambda q, k, v: attended(q, k, k),
    "keys and values are exchanged": lambda q, k, v: attended(q, v, k),
}


def _attention_case(seed: int) -> tuple[str, tuple[Tensor, Tensor, Tensor]]:
    queries, keys, width = ((4, 4, 5), (5, 5, 4), (1, 6, 3), (2, 5, 4), (3, 3, 2), (1, 1, 2))[seed % 6]
    draw = lambda part, length: 1.5 * random_tensor(10 * seed + part, 2, HEADS, length, width)  # noqa: E731
    return f"T {queries}, S {keys}, D {width}, random {seed}", (draw(0, queries), draw(1, keys), draw(2, keys))


@exercise
def check_attention(function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """Check `attention(q, k, v)` -> [B, H, T, D], for T queries that are the last of S positions.

    Raises:
        AssertionError: with the first case that fails and what usually causes it.
    """
    hint = "softmax over the keys of q k / sqrt(D), -inf where the key is later than the query, times the values"
    log_3 = 2 * math.log(3)
    hand = [torch.tensor(x, dtype=torch.float64).reshape(1, 1, 2, 4) for x in (
        [[1.0, 0, 0, 0], [0, log_3, 0, 0]], [[5.0, 0, 0, 0], [0, 1, 0, 0]], [[4.0, 0, 0, 8], [0, 4, 0, 0]],
    )]  # fmt: skip
    cases = [("by hand: the second position has weights 1/4 and 3/4", tuple(hand))]
    cases += [_attention_case(seed) for seed in range(RANDOM_CASES)]
    for case, inputs in cases:
        compare_tensors("attention", case, function, attended(*inputs), _ATTENTION_FAULTS, hint, inputs)
    print(f"attention: passed (a case by hand, {RANDOM_CASES} random ones, also with fewer queries than keys)")


_HEAD_FAULTS: Faults = {
    "one head of width d: cut the width into heads first": lambda b, x, h: _self_attention(b, x, 1),
    "heads are cut as [d / H, H] and not as [H, d / H]": partial(_self_attention, cut="interleaved"),
    "cut by view(B, H, T, D), which mixes positions: view(B, T, H, D), then transpose(1, 2)": partial(
        _self_attention, cut="no transpose"
    ),
    "merged without transpose(1, 2): [B, H, T, D] back to [B, T, H, D] first": partial(
        _self_attention, cut="not merged"
    ),
    "the last projection, out, is missing": partial(_self_attention, out=False),
    "queries and keys are exchanged: the three parts of qkv are queries, keys, values": partial(
        _self_attention, order=(1, 0, 2)
    ),
    "the parts are taken as keys, values, queries": partial(_self_attention, order=(2, 0, 1)),
    "the parts are taken as values, keys, queries": partial(_self_attention, order=(2, 1, 0)),
    "the bias of qkv is missing": lambda b, x, h: _self_attention(b | {"qkv": (b["qkv"][0], 0 * b["qkv"][1])}, x, h),
    "the bias of out is missing": lambda b, x, h: _self_attention(b | {"out": (b["out"][0], 0 * b["out"][1])}, x, h),
    "the causal mask is missing": partial(_self_attention, attend=partial(attended, sees="all")),
    "the scores are divided by sqrt(d): it is the width of a head": lambda b, x, h: _self_attention(
        b, x, h, attend=partial(attended, scale=x.shape[-1] ** -0.5)
    ),
    "norm_1 is applied here too: that is the block's work": lambda b, x, h: _self_attention(b, norm(x, b["norm_1"]), h),
    "x is added here too: that is the block's work": lambda b, x, h: x + _self_attention(b, x, h),
}


@exercise
def check_self_attention(function: Callable[[Weights, Tensor, int], Tensor]) -> None:
    """Check `self_attention(b, x, heads)` -> [B, T, d]: projections, heads, attention, and back.

    Raises:
        AssertionError: with the first case that fails and what usually causes it.
    """
    hint = 'linear(x, b["qkv"]) in three, each [B, H, T, d / H]; attention; back to [B, T, d]; linear with b["out"]'
    for seed in range(RANDOM_CASES):
        b, x, heads = random_weights(seed, 1)["blocks"][0], random_tensor(seed, 2, 4, WIDTH), (HEADS, 2, 1)[seed % 3]
        case = f"random weights {seed}, {heads} head{'s' if heads > 1 else ''} of width {WIDTH // heads}"
        inputs = (b, x, heads)
        compare_tensors("self_attention", case, function, _self_attention(*inputs), _HEAD_FAULTS, hint, inputs)
    print(f"self_attention: passed ({RANDOM_CASES} random ones with 1 to {HEADS} heads)")


_BLOCK_FAULTS: Faults = {
    "the norms come after the parts and not before: GPT-2 is pre-norm, x + f(norm(x))": lambda b, x, h: norm(
        (y := norm(x + _self_attention(b, x, h), b["norm_1"])) + _mlp(b, y), b["norm_2"]
    ),
    "nothing is added to x after the attention": lambda b, x, h: (
        (y := _self_attention(b, norm(x, b["norm_1"]), h)) + _mlp(b, norm(y, b["norm_2"]))
    ),
    "nothing is added after the MLP": lambda b, x, h: _mlp(
        b, norm(x + _self_attention(b, norm(x, b["norm_1"]), h), b["norm_2"])
    ),
    "the MLP reads x from before the attention": lambda b, x, h: (
        x + _self_attention(b, norm(x, b["norm_1"]), h) + _mlp(b, norm(x, b["norm_2"]))
    ),
    "the normed x is what the attention is added to": lambda b, x, h: (
        (y := norm(x, b["norm_1"]) + _self_attention(b, norm(x, b["norm_1"]), h)) + _mlp(b, norm(y, b["norm_2"]))
    ),
    "the norms are missing": lambda b, x, h: (y := x + _self_attention(b, x, h)) + _mlp(b, y),
    "the first norm is missing": lambda b, x, h: (y := x + _self_attention(b, x, h)) + _mlp(b, norm(y, b["norm_2"])),
    "the second norm is missing": lambda b, x, h: (y := x + _self_attention(b, norm(x, b["norm_1"]), h)) + _mlp(b, y),
    "norm_1 is used twice": lambda b, x, h: block_output(b | {"norm_2": b["norm_1"]}, x, h),
    "the MLP is missing": lambda b, x, h: x + _self_attention(b, norm(x, b["norm_1"]), h),
    "relu in the place of GELU": lambda b, x, h: (
        (y := x + _self_attention(b, norm(x, b["norm_1"]), h)) + _mlp(b, norm(y, b["norm_2"]), torch.relu)
    ),
    "the exact GELU: GPT-2 has its approximation by tanh": lambda b, x, h: (
        (y := x + _self_attention(b, norm(x, b["norm_1"]), h)) + _mlp(b, norm(y, b["norm_2"]), functional.gelu)
    ),
    "no function between up and down": lambda b, x, h: (
        (y := x + _self_attention(b, norm(x, b["norm_1"]), h)) + _mlp(b, norm(y, b["norm_2"]), lambda z: z)
    ),
}


@exercise
def check_block(function: Callable[[Weights, Tensor, int], Tensor]) -> None:
    """Check `block(b, x, heads)` -> [B, T, d]: attention and MLP, each on a normed copy and added to x.

    Raises:
        AssertionError: with the first case that fails and what usually causes it.
    """
    hint = "x = x + self_attention(b, norm(x, norm_1), heads), then x + down(gelu(up(norm(x, norm_2))))"
    for seed in range(RANDOM_CASES):
        inputs = (random_weights(seed, 1)["blocks"][0], 2 * random_tensor(seed, 2, 4, WIDTH) + 0.5, HEADS)
        compare_tensors("block", f"random weights {seed}", function, block_output(*inputs), _BLOCK_FAULTS, hint, inputs)
    print(f"block: passed ({RANDOM_CASES} random ones)")


_MODEL_FAULTS: Faults = {
    "the last norm is missing": lambda w, i, p, h: _states(w, i, p, h) @ w["tokens"].T,
    "the head is missing: GPT-2's is tied, the states times the transposed token table": lambda w, i, p, h: norm(
        _states(w, i, p, h), w["norm"]
    ),
    "the log-probs and not the logits": lambda w, i, p, h: all_logits(w, i, p, h).log_softmax(-1),
    "the probabilities and not the logits": lambda w, i, p, h: all_logits(w, i, p, h).softmax(-1),
    "the positions are counted in columns: use the ones that are given": lambda w, i, p, h: all_logits(
        w, i, columns(i), h
    ),
    "one block alone: go through all of them": lambda w, i, p, h: all_logits(w | {"blocks": w["blocks"][:1]}, i, p, h),
    "the last block alone: does each block get what the one before has made?": lambda w, i, p, h: all_logits(
        w | {"blocks": w["blocks"][-1:]}, i, p, h
    ),
    "the blocks are gone through backwards": lambda w, i, p, h: all_logits(w | {"blocks": w["blocks"][::-1]}, i, p, h),
    "no block at all": lambda w, i, p, h: all_logits(w | {"blocks": []}, i, p, h),
    "the last position alone: logits of every position are asked": lambda w, i, p, h: all_logits(w, i, p, h)[:, -1],
    "the causal mask is missing": lambda w, i, p, h: all_logits(w, i, p, h, partial(attended, sees="all")),
}


@exercise
def check_transformer(function: Callable[[Weights, Tensor, Tensor, int], Tensor]) -> None:
    """Check `transformer(w, ids, positions, heads)` -> logits [B, T, V].

    Raises:
        AssertionError: with the first case that fails and what usually causes it.
    """
    hint = 'embed; every block in turn; norm with w["norm"]; times w["tokens"].T'
    for seed in range(RANDOM_CASES):
        ids = random_ids(seed, 2, 6)
        positions = columns(ids) if seed % 2 else torch.tensor([[0, 0, 0, 1, 2, 3], [1, 2, 3, 4, 5, 6]])
        inputs = (random_weights(seed, 3), ids, positions, HEADS)
        case = f"random weights {seed}, positions {positions.tolist()}"
        compare_tensors("transformer", case, function, all_logits(*inputs), _MODEL_FAULTS, hint, inputs)
    w, ids = random_weights(0, 3), random_ids(0, 1, 6)
    got = [
        torch.as_tensor(function(w, row, columns(row), HEADS)) for row in (ids, torch.cat([ids[:, :5], ids[:, :1]], 1))
    ]
    moved = (got[0] - got[1])[:, :5].abs().max().item()
    if moved > 1e-6:
        fail(
            "transformer", "another last token", f"earlier logits moved by {moved:.2g}", 0.0, "the model is not causal"
        )
    print(f"transformer: passed ({RANDOM_CASES} random models of 3 blocks, positions of any kind, causality)")
