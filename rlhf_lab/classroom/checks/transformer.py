"""Checks of the first exercise of chapter 07: a causal transformer from empty cells, piece by piece.

The weights are a plain dictionary (`gpt2_weights` makes it of a GPT-2, `random_weights` of nothing), a piece is a
function of weights and tensors. Each check compares it with the definition in float64, on random weights and inputs.
When something differs, the usual mistakes are tried on the same inputs, and the message names the one that gives the
same. Answers may be tensors or arrays, float32 or float64, and computed in any way.
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
from rlhf_lab.classroom.checks.gpt2 import (
    CONTEXT,
    HEADS,
    VOCABULARY,
    WIDTH,
    Weights,
    all_logits,
    attended,
    block_output,
    columns,
    embedded,
    linear,
    mlp,
    norm,
    random_ids,
    random_tensor,
    random_weights,
    self_attended,
    states,
    tanh_gelu,
)

RANDOM_CASES = 6
Faults = Mapping[str, Callable[..., Tensor]]
NOT_FINITE = (
    "a row of the softmax may have nothing left to see: every position sees itself. A log_softmax in its place gives "
    "infinity too"
)
HALF = "numbers of 16 bits are too coarse for this check, which compares five digits: float32 or float64"


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


# -- comparing ---------------------------------------------------------------------------------------------------------
def compare_tensors(
    name: str,
    case: str,
    function: Callable,
    expected: Tensor,
    faults: Faults,
    hint: str,
    inputs: tuple,
    *,
    not_finite: str = "",
) -> Any:
    """`compare` for tensors; each fault gets the inputs. `not_finite` is the cause where NaN or infinity comes out."""
    wrong = {cause: partial(fault, *inputs) for cause, fault in faults.items()}
    odd = partial(_odd, not_finite=not_finite)
    return compare(name, case, function, expected, wrong, hint, same=same_tensors, odd=odd, inputs=inputs)


def _odd(got: object, expected: Tensor, not_finite: str) -> str | None:
    if isinstance(got, Tensor) and got.dtype in (torch.bfloat16, torch.float16):
        return HALF
    return odd_tensors(got, expected, not_finite=not_finite)


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
    hint = "the row of each token plus the row of its given position"
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
    "one later position is seen too: the mask begins one column too late": partial(attended, sees="one too late"),
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
        compare_tensors(
            "attention", case, function, attended(*inputs), _ATTENTION_FAULTS, hint, inputs, not_finite=NOT_FINITE
        )
    print(f"attention: passed (a case by hand, {RANDOM_CASES} random ones, also with fewer queries than keys)")


_HEAD_FAULTS: Faults = {
    "one head of width d: cut the width into heads first": lambda b, x, h: self_attended(b, x, 1),
    "a head takes every H-th number of the width: it is d / H numbers in a row": partial(
        self_attended, cut="interleaved"
    ),
    "d / H heads of width H: it is H heads, unflatten(-1, (heads, -1))": lambda b, x, h: self_attended(
        b, x, x.shape[-1] // h
    ),
    "reshaped to [B, H, T, D] and back to [B, T, d], both without transpose(1, 2): that mixes positions": partial(
        self_attended, cut="never transposed"
    ),
    "attention over the heads: it reads the last two axes, so [B, T, H, D] needs transpose(1, 2)": partial(
        self_attended, cut="over heads"
    ),
    "cut into heads first and into q, k, v inside each: the three parts of width d come first": partial(
        self_attended, cut="head by head"
    ),
    "cut by view(B, H, T, D), which mixes positions: view(B, T, H, D), then transpose(1, 2)": partial(
        self_attended, cut="no transpose"
    ),
    "merged without transpose(1, 2): [B, H, T, D] back to [B, T, H, D] first": partial(self_attended, cut="not merged"),
    "the last projection, out, is missing": partial(self_attended, out=False),
    "queries and keys are exchanged: the three parts of qkv are queries, keys, values": partial(
        self_attended, order=(1, 0, 2)
    ),
    "the parts are taken as keys, values, queries": partial(self_attended, order=(2, 0, 1)),
    "the parts are taken as values, keys, queries": partial(self_attended, order=(2, 1, 0)),
    "the bias of qkv is missing": lambda b, x, h: self_attended(b | {"qkv": (b["qkv"][0], 0 * b["qkv"][1])}, x, h),
    "the bias of out is missing": lambda b, x, h: self_attended(b | {"out": (b["out"][0], 0 * b["out"][1])}, x, h),
    "the causal mask is missing": partial(self_attended, attend=partial(attended, sees="all")),
    "the scores are divided by sqrt(d): it is the width of a head": lambda b, x, h: self_attended(
        b, x, h, attend=partial(attended, scale=x.shape[-1] ** -0.5)
    ),
    "norm_1 is applied here too: that is the block's work": lambda b, x, h: self_attended(b, norm(x, b["norm_1"]), h),
    "x is added here too: that is the block's work": lambda b, x, h: x + self_attended(b, x, h),
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
        compare_tensors(
            "self_attention", case, function, self_attended(*inputs), _HEAD_FAULTS, hint, inputs, not_finite=NOT_FINITE
        )
    print(f"self_attention: passed ({RANDOM_CASES} random ones with 1 to {HEADS} heads)")


def _with_mlp(part: Callable[[Weights, Tensor], Tensor]) -> Callable[[Weights, Tensor, int], Tensor]:
    """A block with another part in the place of the MLP."""

    def block(b: Weights, x: Tensor, heads: int) -> Tensor:
        x = x + self_attended(b, norm(x, b["norm_1"]), heads)
        return x + part(b, norm(x, b["norm_2"]))

    return block


_BLOCK_FAULTS: Faults = {
    "the norms come after the parts and not before: GPT-2 is pre-norm, x + f(norm(x))": lambda b, x, h: norm(
        (y := norm(x + self_attended(b, x, h), b["norm_1"])) + mlp(b, y), b["norm_2"]
    ),
    "nothing is added to x, neither after the attention nor after the MLP": lambda b, x, h: mlp(
        b, norm(self_attended(b, norm(x, b["norm_1"]), h), b["norm_2"])
    ),
    "nothing is added to x after the attention": lambda b, x, h: (
        (y := self_attended(b, norm(x, b["norm_1"]), h)) + mlp(b, norm(y, b["norm_2"]))
    ),
    "nothing is added after the MLP": lambda b, x, h: mlp(
        b, norm(x + self_attended(b, norm(x, b["norm_1"]), h), b["norm_2"])
    ),
    "the MLP reads x from before the attention": lambda b, x, h: (
        x + self_attended(b, norm(x, b["norm_1"]), h) + mlp(b, norm(x, b["norm_2"]))
    ),
    "the normed x is what the attention is added to": lambda b, x, h: (
        (y := norm(x, b["norm_1"]) + self_attended(b, norm(x, b["norm_1"]), h)) + mlp(b, norm(y, b["norm_2"]))
    ),
    "the norms are missing": lambda b, x, h: (y := x + self_attended(b, x, h)) + mlp(b, y),
    "the first norm is missing": lambda b, x, h: (y := x + self_attended(b, x, h)) + mlp(b, norm(y, b["norm_2"])),
    "the second norm is missing": lambda b, x, h: (y := x + self_attended(b, norm(x, b["norm_1"]), h)) + mlp(b, y),
    "norm_1 is used twice": lambda b, x, h: block_output(b | {"norm_2": b["norm_1"]}, x, h),
    "norm_1 and norm_2 are exchanged": lambda b, x, h: block_output(
        b | {"norm_1": b["norm_2"], "norm_2": b["norm_1"]}, x, h
    ),
    "the MLP is missing": lambda b, x, h: x + self_attended(b, norm(x, b["norm_1"]), h),
    "relu in the place of GELU": _with_mlp(partial(mlp, act=torch.relu)),
    "SiLU in the place of GELU": _with_mlp(partial(mlp, act=functional.silu)),
    "the exact GELU: GPT-2 has its approximation by tanh": _with_mlp(partial(mlp, act=functional.gelu)),
    "no function between up and down": _with_mlp(partial(mlp, act=lambda z: z)),
    "the GELU comes before up: it is between up and down": _with_mlp(
        lambda b, x: linear(linear(tanh_gelu(x), b["up"]), b["down"])
    ),
    "the GELU comes after down: it is between up and down": _with_mlp(
        lambda b, x: tanh_gelu(mlp(b, x, act=lambda z: z))
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


def _through(
    w: Weights, x: Tensor, heads: int, *, before: Tensor | float = 0.0, after: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """x through all blocks, with something added before each and something done after each."""
    for b in w["blocks"]:
        x = block_output(b, x + before, heads)
        x = after(x) if after else x
    return x


def _head(w: Weights, x: Tensor) -> Tensor:
    return norm(x, w["norm"]) @ w["tokens"].T


_MODEL_FAULTS: Faults = {
    "the last norm is missing": lambda w, i, p, h: states(w, i, p, h) @ w["tokens"].T,
    "the head is missing: GPT-2's is tied, the states times the transposed token table": lambda w, i, p, h: norm(
        states(w, i, p, h), w["norm"]
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
    "the positions are added before every block: once is enough, in embed": lambda w, i, p, h: _head(
        w, _through(w, w["tokens"][i], h, before=w["positions"][p])
    ),
    "the positions are added in embed and again before every block": lambda w, i, p, h: _head(
        w, _through(w, embedded(w, i, p), h, before=w["positions"][p])
    ),
    "the last norm is applied after every block: it comes once, after the last": lambda w, i, p, h: (
        _through(w, embedded(w, i, p), h, after=lambda x: norm(x, w["norm"])) @ w["tokens"].T
    ),
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
