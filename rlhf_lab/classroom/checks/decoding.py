"""Checks of three exercises of chapter 07: decoding with a cache, the law that is sampled, and the sampler.

Each compares a function with the definition in float64. The sampler is tried on *probes*, made-up models of which every
reply is known: one counts, the law of one depends on the whole prefix, one never says a certain token. When something
differs, the usual mistakes are tried on the same inputs, and the message names the one that gives the same. Answers may
be lists, arrays or tensors, float32 or float64; logits are tensors or arrays.
"""

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
from rlhf_lab.classroom.checks.gpt2 import (
    HEADS,
    Pair,
    Weights,
    all_logits,
    attended,
    block_output,
    columns,
    embedded,
    norm,
    random_ids,
    random_tensor,
    random_weights,
)
from rlhf_lab.classroom.checks.sampling import (
    LAW_FAULTS,
    SAMPLER_FAULTS,
    counting,
    cut_law,
    refusing,
    remembering,
    sampled,
)
from rlhf_lab.classroom.checks.transformer import Faults, compare_tensors


# -- the cache ---------------------------------------------------------------------------------------------------------
def _cached(
    w: Weights, chunks: Sequence[Tensor], heads: int, last: Weights | None = None, *, fault: str = ""
) -> Tensor:
    """Logits of all chunks in a row, decoded with a cache that has a fault; the last with other weights where given."""
    past: list[Pair] = []  # keys and values of each block
    found, seen = [], 0
    for number, ids in enumerate(chunks):
        w = last if last and number == len(chunks) - 1 else w
        held = past[0][0].shape[2] if past else 0
        x = embedded(w, ids, _places(ids, seen, held, fault))
        kept: list[Pair] = []
        for i, b in enumerate(w["blocks"]):
            from_block = {"first block": 0, "last block": -1}.get(fault, i)
            before = past[from_block] if past and fault != "forgets" else None
            x = block_output(b, x, heads, partial(_attention_after, before, kept, fault))
        past = past if fault == "never grows" and past else kept
        seen += ids.shape[1]
        found.append(norm(x, w["norm"]) @ w["tokens"].T)
    return torch.cat(found, dim=1)


def _places(ids: Tensor, seen: int, held: int, fault: str) -> Tensor:
    """The positions of the new tokens after `seen` others, `held` of them in the cache."""
    starts = {"positions": 0, "position 1": min(seen, 1), "never grows": held, "new alone": held}
    starts |= {"one less": max(seen - 1, 0), "one more": seen + (seen > 0), "from 1": seen + 1}
    along = columns(ids)
    if fault in ("all at the first", "all at the last"):
        along = torch.zeros_like(along) + (ids.shape[1] - 1) * (fault == "all at the last")
    return starts.get(fault, seen) + along


def _attention_after(before: Pair | None, kept: list[Pair], fault: str, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention to what a cache holds and to k and v; both together go to `kept`."""
    new = (k, v)
    if before is not None:
        old = before[::-1] if fault == "exchanged" else before
        pairs = zip(new, old, strict=True) if fault == "new first" else zip(old, new, strict=True)
        k, v = (torch.cat(pair, dim=2) for pair in pairs)
    kept.append(new if fault == "new alone" else (k, v))
    return attended(q, k, v, sees={"aligned": "aligned at the first key", "unmasked": "all"}.get(fault, "past"))


_CACHE_FAULTS = {
    "the positions start at 0 at each call: they go on where the cache ends": "positions",
    "the position does not grow with the cache: it is the number of tokens that were read": "position 1",
    "positions begin at 1: the first token has 0": "from 1",
    "the positions after the first call are one too large: count what the cache holds": "one more",
    "the positions after the first call are one too small: count what the cache holds": "one less",
    "all new tokens get the position of the first of them: they count on from there": "all at the first",
    "all new tokens get the position of the last of them: they count up to there": "all at the last",
    "the cache is not read: keys and values of earlier tokens come first": "forgets",
    "the cache does not grow: return it with the new keys and values": "never grows",
    "the cache that is returned holds the new keys and values alone: join them to the old ones, then keep": "new alone",
    "the new keys come before those of the cache: earlier tokens come first": "new first",
    "keys and values are exchanged in the cache": "exchanged",
    "every block reads the cache of the first one": "first block",
    "every block reads the cache of the last one": "last block",
    "of several new tokens each sees the later ones: the causal mask is missing": "unmasked",
    "of several new tokens the first sees too little: the queries are the last positions": "aligned",
}
_AGAIN_FAULTS: Faults = {
    "the earlier tokens are read again, from their embedding on: a cached step embeds the new ones alone": (
        lambda w, chunks, heads, last: _read_again(w, chunks, heads, last, last)
    ),
    "earlier positions go through the blocks again: only the new ones may": lambda w, chunks, heads, last: _read_again(
        w, chunks, heads, last, w
    ),
}


def _read_again(w: Weights, chunks: Sequence[Tensor], heads: int, last: Weights, embeds: Weights) -> Tensor:
    """Logits of two chunks where the second call goes through all positions, the earlier ones embedded by `embeds`."""
    places = columns(torch.cat(list(chunks), dim=1)).split([chunk.shape[1] for chunk in chunks], dim=1)
    x = torch.cat([embedded(embeds, chunks[0], places[0]), embedded(last, chunks[1], places[1])], dim=1)
    for b in last["blocks"]:
        x = block_output(b, x, heads)
    again = norm(x, last["norm"]) @ last["tokens"].T
    return torch.cat([all_logits(w, chunks[0], places[0], heads), again[:, chunks[0].shape[1] :]], dim=1)


def _another(w: Weights) -> Weights:
    """Weights that differ in the MLPs and in the table of positions: what was read with the others shows."""
    blocks = [b | {"up": (-b["up"][0], b["up"][1])} for b in w["blocks"]]
    return w | {"positions": -w["positions"], "blocks": blocks}


def _tensors(kept: Any) -> Any:
    """A cache in which arrays are tensors again, in whatever form the reader keeps it."""
    if isinstance(kept, dict):
        return {key: _tensors(value) for key, value in kept.items()}
    if type(kept) in (list, tuple):
        return type(kept)(map(_tensors, kept))
    return torch.as_tensor(kept) if isinstance(kept, np.ndarray) else kept


def _chained(function: Callable, w: Weights, chunks: Sequence[Tensor], heads: int, last: Weights | None = None) -> Any:
    """Logits of all chunks, with the reader's own cache in between; the last chunk with other weights where given."""
    found, cache = [], None
    for number, ids in enumerate(chunks):
        got = function(last if last and number == len(chunks) - 1 else w, ids, cache, heads)
        if not isinstance(got, tuple | list) or len(got) != 2:
            cause = "return logits, cache" if got is not None else NO_RETURN
            fail("cached_step, what it returned", f"call {number + 1}", got, "two things", cause, ASKED)
        logits, cache = got[0], _tensors(got[1])
        found.append(torch.as_tensor(logits))
    return torch.cat(found, dim=1)


@exercise
def check_cached_step(function: Callable[[Weights, Tensor, Any, int], tuple[Tensor, Any]]) -> None:
    """Check `cached_step(w, ids, cache, heads)` -> (logits [B, n, V] of the new tokens, the cache for the next call).

    The cache is None at first; its form is the reader's own. Read in pieces, a row must get the logits of one pass.

    Raises:
        AssertionError: with the first case that fails and what usually causes it.
    """
    hint = "as transformer, but k and v of each block are joined to those of the cache, and positions go on from there"
    splits = ((6,), (3, 1, 1, 1), (2, 2, 2), (1, 1, 1, 1, 1, 1), (1, 3, 2))
    for seed, split in enumerate(splits):
        w, ids = random_weights(seed, 2), random_ids(seed, 2, 6)
        chunks = ids.split(split, dim=1)
        faults = {cause: partial(_cached, fault=fault) for cause, fault in _CACHE_FAULTS.items()}
        call = partial(_chained, function)
        expected = all_logits(w, ids, columns(ids), HEADS)
        case = f"random weights {seed}, read in pieces of {', '.join(map(str, split))}"
        compare_tensors("cached_step", case, call, expected, faults, hint, (w, chunks, HEADS))
    read_once = (w, ids.split((5, 1), dim=1), HEADS, _another(w))
    case = "one new token after five, and the last call gets other weights: what was kept of the five tokens stays"
    compare_tensors(
        "cached_step", case, partial(_chained, function), _cached(*read_once), _AGAIN_FAULTS, hint, read_once
    )
    print(f"cached_step: passed ({len(splits)} ways to read six tokens, and no earlier token is read again)")


# -- the law that is sampled -------------------------------------------------------------------------------------------
def _in_a_row(got: Any) -> Any:
    """A list of numbers as a tensor; anything else as it came."""
    return torch.as_tensor([float(x) for x in got], dtype=torch.float64) if isinstance(got, list | tuple) else got


@exercise
def check_sampling_law(function: Callable[[Tensor, float, int, float], Tensor]) -> None:
    """Check `sampling_law(logits, temperature, top_k, top_p)` -> probabilities [V]; top_k 0 and top_p 1 cut nothing.

    Raises:
        AssertionError: with the first case that fails and what usually causes it.
    """
    hint = "softmax(logits / temperature); the top_k likeliest, to 1; of these the fewest that reach top_p, to 1"
    law = torch.tensor([0.2, 0.5, 0.05, 0.25], dtype=torch.float64)
    settings = [(1.0, 0, 0.6), (1.0, 2, 1.0), (0.5, 0, 1.0), (1.0, 3, 0.8), (2.0, 0, 0.7), (0.5, 3, 0.9), (1.0, 1, 0.3)]
    cases = [("law 0.2, 0.5, 0.05, 0.25", law.log(), setting) for setting in settings]
    for seed in range(20):
        setting = ((0.6, 1.0, 1.7)[seed % 3], (0, 2, 4)[seed % 4 % 3], (1.0, 0.5, 0.85, 0.95)[seed % 4])
        cases.append((f"random logits {seed}", 1.5 * random_tensor(seed, 6), setting))
    for case, logits, (temperature, top_k, top_p) in cases:
        inputs = (logits, temperature, top_k, top_p)
        label = f"{case}, temperature {temperature:g}, top_k {top_k}, top_p {top_p:g}"
        call = lambda *given: _in_a_row(function(*given))  # noqa: E731
        compare_tensors("sampling_law", label, call, cut_law(*inputs), LAW_FAULTS, hint, inputs)
    print(f"sampling_law: passed ({len(settings)} cases by hand, {len(cases) - len(settings)} random ones)")


# -- the sampler -------------------------------------------------------------------------------------------------------
PARTS = {
    "tokens": "the first token with a cumulative probability above uniforms[t]; until `end` or the last number is used",
    "log_probs": "the natural logarithm of each drawn token's probability, under the law it was drawn from",
}
ONE_NUMBER = "one number for the whole reply: a list is asked, with one for each token"


def _reply(function: Callable, *given: Any) -> list[Any]:
    got = function(*given)
    if not isinstance(got, tuple | list) or len(got) != 2:
        cause = "return tokens, log_probs" if got is not None else NO_RETURN
        fail("sample, what it returned", "a reply", got, "two lists", cause, ASKED)
    return [as_tensor(_in_a_row(part)) for part in got]


def _odd_part(got: object, expected: Tensor) -> str | None:
    return ONE_NUMBER if isinstance(got, Tensor) and not got.dim() else odd_tensors(got, expected)


def _replies() -> list[tuple[str, tuple]]:
    """Cases of the sampler: what is said of each, and (next_logits, prompt, uniforms, temperature, end)."""
    probes = [(f"the counting probe, end {end}", counting, [0, 2], 6, 1.0, end) for end in (5, 9)]
    prompts = ([5, 2], [2, 5])
    probes += [(f"the counting probe, prompt {p} with the end token 5 in it", counting, p, 8, 1.0, 5) for p in prompts]
    for seed in range(20):
        prompt = [seed % 3, (seed + 1) % 3][: 1 + seed % 2]
        case = f"the remembering probe, prompt {prompt}, random numbers {seed}"
        probes.append((case, remembering, prompt, 5, (1.0, 0.6, 1.6)[seed % 3], 3))
    cases = []
    for number, (case, probe, prompt, steps, temperature, end) in enumerate(probes):
        uniforms = torch.rand(steps, generator=torch.Generator().manual_seed(number), dtype=torch.float64)
        label = f"{case}, temperature {temperature:g}"
        cases.append((label, (probe, torch.tensor(prompt), uniforms, temperature, end)))
    uniforms = torch.tensor([0.0, 0.3, 0.6, 0.9], dtype=torch.float64)
    label = "law 0, 1/4, 1/4, 1/4, 1/4 at every step, random numbers 0, 0.3, 0.6, 0.9"
    return [*cases, (label, (refusing, torch.tensor([1]), uniforms, 1.0, 9))]


@exercise
def check_sample(function: Callable[..., tuple]) -> None:
    """Check `sample(next_logits, prompt, uniforms, temperature, end)` -> (tokens, log_probs) of one reply, on probes.

    Raises:
        AssertionError: with the first case that fails and what usually causes it.
    """
    for label, inputs in _replies():
        expected = sampled(*inputs)
        for part, (name, hint) in enumerate(PARTS.items()):
            faults = {
                cause: lambda fault=fault, part=part, inputs=inputs: sampled(*inputs, fault=fault)[part]
                for cause, fault in SAMPLER_FAULTS.items()
            }
            call = lambda *given, part=part: _reply(function, *given)[part]  # noqa: E731
            compare(
                f"sample, {name}", label, call, expected[part], faults, hint,
                same=same_tensors, odd=_odd_part, inputs=inputs,
            )  # fmt: skip
    print(
        "sample: passed (a probe that counts, and 20 replies of one that remembers its prefix, at three temperatures)"
    )
