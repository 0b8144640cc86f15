"""Checks of three exercises of chapter 07: decoding with a cache, the law that is sampled, and the sampler.

Each compares a function with the definition in float64. The sampler is tried on *probes*, made-up models of which every
reply is known: one that counts, one whose law depends on the whole prefix. When something differs, the usual mistakes
are tried on the same inputs, and the message names the one that gives the same. Answers may be lists, arrays or tensors
of any precision.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlhf_lab.classroom.checks.comparing import ASKED, NO_RETURN, compare, exercise, fail, odd_tensors, same_tensors
from rlhf_lab.classroom.checks.transformer import (
    HEADS,
    WIDTH,
    Faults,
    Pair,
    Weights,
    all_logits,
    attended,
    block_output,
    columns,
    compare_tensors,
    embedded,
    norm,
    random_ids,
    random_tensor,
    random_weights,
)


# -- the cache ---------------------------------------------------------------------------------------------------------
def _cached(w: Weights, chunks: Sequence[Tensor], heads: int, *, fault: str = "") -> Tensor:
    """Logits of all chunks in a row, decoded with a cache that has a fault."""
    past: list[Pair] = []  # keys and values of each block
    found, seen = [], 0
    for ids in chunks:
        held = past[0][0].shape[2] if past else 0
        start = {"positions": 0, "position 1": min(seen, 1), "never grows": held}.get(fault, seen)
        x = embedded(w, ids, start + columns(ids))
        kept: list[Pair] = []
        for i, b in enumerate(w["blocks"]):
            before = past[0 if fault == "first block" else i] if past and fault != "forgets" else None
            sees = "aligned at the first key" if fault == "aligned" else "past"
            x = block_output(b, x, heads, partial(_attention_after, before, kept, sees))
        past = past if fault == "never grows" and past else kept
        seen += ids.shape[1]
        found.append(norm(x, w["norm"]) @ w["tokens"].T)
    return torch.cat(found, dim=1)


def _attention_after(before: Pair | None, kept: list[Pair], sees: str, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention to what a cache holds and to k and v; both together go to `kept`."""
    if before is not None:
        k, v = (torch.cat([old, new], dim=2) for old, new in zip(before, (k, v), strict=True))
    kept.append((k, v))
    return attended(q, k, v, sees=sees)


_CACHE_FAULTS = {
    "the positions start at 0 at each call: they go on where the cache ends": "positions",
    "the position does not grow with the cache: it is the number of tokens that were read": "position 1",
    "the cache is not read: keys and values of earlier tokens come first": "forgets",
    "the cache does not grow: return it with the new keys and values": "never grows",
    "every block reads the cache of the first one": "first block",
    "of several new tokens the first sees too little: the queries are the last positions": "aligned",
}
ALL_AGAIN = (
    "the earlier tokens are read again: their positions hold NaN here, and a cached step looks up those of the new "
    "tokens alone"
)


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
    again = w | {"positions": torch.cat([torch.full((5, WIDTH), math.nan).double(), w["positions"][5:]])}
    got = _chained(function, w, [ids[:, :5], ids[:, 5:]], HEADS, again)
    if not same_tensors(got[:, 5:], expected[:, 5:]):
        fail("cached_step", "one new token after five", got[:, 5:], expected[:, 5:], ALL_AGAIN)
    print(f"cached_step: passed ({len(splits)} ways to read six tokens, and no earlier token is read again)")


# -- the law that is sampled -------------------------------------------------------------------------------------------
def _kept(law: Tensor, top_k: int = 0, top_p: float = 1.0, *, crossing: bool = True, order: str = "best") -> Tensor:
    """The law cut to its likeliest tokens, not made to add up to 1 again."""
    ranks = law.argsort(descending=order == "best")
    among = torch.zeros_like(law, dtype=torch.bool)
    before = law[ranks].cumsum(0) - law[ranks]  # probability of what is likelier
    enough = before < top_p if crossing else before + law[ranks] <= top_p
    if top_k:
        enough = enough & (torch.arange(len(law)) < top_k)
    among[ranks[enough]] = True
    return law * among


def _whole(weights: Tensor) -> Tensor:
    return weights / weights.sum()


def _law(logits: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    law = _whole(_kept((logits / temperature).softmax(0), top_k))
    return _whole(_kept(law, 0, top_p))


_LAW_FAULTS: Faults = {
    "the temperature comes after the cuts: it is first": lambda x, t, k, p: _whole(
        _whole(_kept(_whole(_kept(x.softmax(0), k)), 0, p)) ** (1 / t)
    ),
    "the logits are multiplied by the temperature": lambda x, t, k, p: _law(x, 1 / t, k, p),
    "the temperature is missing": lambda x, t, k, p: _law(x, 1.0, k, p),
    "the probabilities are divided by the temperature and not the logits": lambda x, t, k, p: _law(x, 1.0, k, p) / t,
    "top-p drops the token that crosses p: it stays, so that at least p is kept": lambda x, t, k, p: _whole(
        _kept(_whole(_kept((x / t).softmax(0), k)), 0, p, crossing=False)
    ),
    "what is left does not add up to 1": lambda x, t, k, p: _kept(_whole(_kept((x / t).softmax(0), k)), 0, p),
    "top-p counts the probabilities before top-k: what top-k left has to add up to 1 first": lambda x, t, k, p: _whole(
        _kept((x / t).softmax(0), k, p)
    ),
    "top-p comes before top-k": lambda x, t, k, p: _whole(_kept(_whole(_kept((x / t).softmax(0), 0, p)), k)),
    "top-k is missing": lambda x, t, k, p: _law(x, t, 0, p),
    "top-p is missing": lambda x, t, k, p: _law(x, t, k, 1.0),
    "top-k keeps one token too many": lambda x, t, k, p: _law(x, t, k + 1 if k else 0, p),
    "the least likely tokens are kept": lambda x, t, k, p: _whole(
        _kept(_whole(_kept((x / t).softmax(0), k, order="worst")), 0, p, order="worst")
    ),
    "tokens of probability above p are kept: p is a sum, from the likeliest on": lambda x, t, k, p: _whole(
        (law := (x / t).softmax(0)) * (law >= p)
    ),
    "the law is sorted: probabilities stand in the order of the tokens": lambda x, t, k, p: (
        _law(x, t, k, p).sort(descending=True).values
    ),
    "the logarithm and not the probability": lambda x, t, k, p: _law(x, t, k, p).log(),
}


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
        compare_tensors("sampling_law", label, call, _law(*inputs), _LAW_FAULTS, hint, inputs)
    print(f"sampling_law: passed ({len(settings)} cases by hand, {len(cases) - len(settings)} random ones)")


# -- the sampler -------------------------------------------------------------------------------------------------------
NextLogits = Callable[[Tensor], Tensor]


def counting(ids: Tensor) -> Tensor:
    """A probe [6] that says the number after the last one it read, and after 5 begins with 0 again.

    Example:
        >>> int(counting(torch.tensor([0, 3])).argmax())
        4
    """
    return 50.0 * torch.eye(6, dtype=torch.float64)[(int(ids[-1]) + 1) % 6]


def remembering(ids: Tensor) -> Tensor:
    """A probe [4] whose law depends on every token before and on its place; token 3 is a likely end.

    Example:
        >>> bool((remembering(torch.tensor([0, 1])) != remembering(torch.tensor([1, 0]))).any())
        True
    """
    ids = torch.as_tensor(ids)
    code = (ids.double() + 1) @ torch.arange(1, len(ids) + 1, dtype=torch.float64).sqrt()
    return 1.2 * (code * torch.tensor([1.0, 2.0, 3.0, 5.0], dtype=torch.float64)).sin() + torch.tensor([0, 0, 0, 0.3])


def _sampled(
    next_logits: NextLogits,
    prompt: Tensor,
    uniforms: Tensor,
    temperature: float,
    end: int,
    *,
    fault: str = "",
) -> list[Tensor]:
    """[tokens, log-probs] of a reply, drawn with a fault."""
    ids, tokens, log_probs = prompt, [], []
    for u in uniforms:
        seen = {"prompt alone": prompt, "last alone": ids[-1:], "reply alone": ids[len(prompt) :]}.get(fault, ids)
        logits = next_logits(seen if len(seen) else prompt)
        heat = {"multiplied": 1 / temperature, "ignored": 1.0}.get(fault, temperature)
        law = (logits / heat).softmax(0)
        u = uniforms[0] if fault == "one number" else 1 - u if fault == "from above" else u
        token = int(law.argmax()) if fault == "greedy" else int((law.cumsum(0) <= u).sum().clamp(max=len(law) - 1))
        scored = logits.softmax(0) if fault == "scored at 1" else law
        tokens.append(token)
        log_probs.append(scored[token] if fault == "not log" else scored[token].log())
        ids = torch.cat([ids, torch.tensor([token])])
        if token == end and fault != "goes on":
            break
    if fault == "end dropped" and tokens[-1] == end:
        tokens, log_probs = tokens[:-1], log_probs[:-1]
    with_prompt = [*prompt.tolist(), *tokens] if fault == "with prompt" else tokens
    return [torch.tensor(with_prompt).double(), torch.tensor(log_probs).double()]


_SAMPLER_FAULTS = {
    "the model is asked for the prompt alone, at every step: the reply so far belongs to it": "prompt alone",
    "the model is asked for the last token alone: it needs all of them": "last alone",
    "the model is asked for the reply without its prompt": "reply alone",
    "the logits are multiplied by the temperature": "multiplied",
    "the temperature is missing": "ignored",
    "sampled with the temperature and scored without: the log-probs are those of the law that is drawn from": (
        "scored at 1"
    ),
    "the same random number at every step: step t has uniforms[t]": "one number",
    "the cumulative law is read from above: take the first token whose cumulative probability is above u": "from above",
    "the likeliest token is taken: that is greedy": "greedy",
    "probabilities and not log-probs": "not log",
    "the reply goes on after its end token": "goes on",
    "the end token is left out: it is an action too, and has a log-prob": "end dropped",
    "the prompt is returned as well": "with prompt",
}


def _reply(function: Callable, *given: Any) -> list[Tensor]:
    got = function(*given)
    if not isinstance(got, tuple | list) or len(got) != 2:
        cause = "return tokens, log_probs" if got is not None else NO_RETURN
        fail("sample, what it returned", "a reply", got, "two lists", cause, ASKED)
    return [_in_a_row(list(part)) for part in got]


@exercise
def check_sample(function: Callable[..., tuple]) -> None:
    """Check `sample(next_logits, prompt, uniforms, temperature, end)` -> (tokens, log_probs) of one reply, on probes.

    Raises:
        AssertionError: with the first case that fails and what usually causes it.
    """
    hint = "the first token with a cumulative probability above uniforms[t]; until `end` or the last number is used"
    cases = [(f"the counting probe, end {end}", counting, [0, 2], 6, 1.0, end) for end in (5, 9)]
    for seed in range(20):
        prompt = [seed % 3, (seed + 1) % 3][: 1 + seed % 2]
        case = f"the remembering probe, prompt {prompt}, random numbers {seed}"
        cases.append((case, remembering, prompt, 5, (1.0, 0.6, 1.6)[seed % 3], 3))
    for number, (case, probe, prompt, steps, temperature, end) in enumerate(cases):
        uniforms = torch.rand(steps, generator=torch.Generator().manual_seed(number), dtype=torch.float64)
        inputs = (probe, torch.tensor(prompt), uniforms, temperature, end)
        expected = _sampled(*inputs)
        for part, name in enumerate(("tokens", "log_probs")):
            faults = {
                cause: lambda fault=fault, part=part, inputs=inputs: _sampled(*inputs, fault=fault)[part]
                for cause, fault in _SAMPLER_FAULTS.items()
            }
            call = lambda *given, part=part: _reply(function, *given)[part]  # noqa: E731
            label = f"{case}, temperature {temperature:g}"
            compare(
                f"sample, {name}", label, call, expected[part], faults, hint,
                same=same_tensors, odd=odd_tensors, inputs=inputs,
            )  # fmt: skip
    print(
        "sample: passed (a probe that counts, and 20 replies of one that remembers its prefix, at three temperatures)"
    )
