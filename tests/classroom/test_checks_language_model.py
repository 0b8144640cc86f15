"""Each check of chapter 07 takes right answers in any form and fails on realistic mistakes, naming the cause."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from rlhf_lab.classroom.checks.batches import check_left_padded, check_reply_loss
from rlhf_lab.classroom.checks.comparing import NotAttempted
from rlhf_lab.classroom.checks.decoding import (
    check_cached_step,
    check_sample,
    check_sampling_law,
    counting,
    remembering,
)
from rlhf_lab.classroom.checks.transformer import (
    HEADS,
    all_logits,
    check_attention,
    check_block,
    check_embed,
    check_self_attention,
    check_transformer,
    columns,
    gpt2_weights,
    linear,
    norm,
    random_ids,
    random_weights,
)
from rlhf_lab.experience.invariants.sampled_law import Alternative


# ---- solutions -----------------------------------------------------------------------------------------------
def embed(w, ids, positions):
    return w["tokens"][ids] + w["positions"][positions]


def attention(q, k, v, *, mask=True, scale=None, axis=-1, late=False, offset=True, strict=0):
    scores = q @ k.transpose(-1, -2) * (scale or q.shape[-1] ** -0.5)
    late_keys = torch.ones(scores.shape[-2:]).triu(1 - strict + (scores.shape[-1] - scores.shape[-2]) * offset).bool()
    if late:
        return scores.softmax(axis).masked_fill(late_keys, 0) @ v
    return (scores.masked_fill(late_keys, -math.inf) if mask else scores).softmax(axis) @ v


def self_attention(b, x, heads, attend=attention):
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in linear(x, b["qkv"]).chunk(3, -1))
    return linear(attend(q, k, v).transpose(1, 2).flatten(2), b["out"])


def mlp(b, x, approximate="tanh"):
    return linear(F.gelu(linear(x, b["up"]), approximate=approximate), b["down"])


def block(b, x, heads, attend=attention):
    x = x + self_attention(b, norm(x, b["norm_1"]), heads, attend)
    return x + mlp(b, norm(x, b["norm_2"]))


def transformer(w, ids, positions, heads, attend=attention):
    x = embed(w, ids, positions)
    for b in w["blocks"]:
        x = block(b, x, heads, attend)
    return norm(x, w["norm"]) @ w["tokens"].T


def cached_step(w, ids, cache, heads, *, start=None, attend=attention):
    cache = cache or [None] * len(w["blocks"])
    seen = 0 if cache[0] is None else cache[0][0].shape[2]
    x, grown = embed(w, ids, (seen if start is None else start) + columns(ids)), []
    for b, past in zip(w["blocks"], cache, strict=True):

        def after(q, k, v, past=past):
            if past is not None:
                k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
            grown.append((k, v))
            return attend(q, k, v)

        x = block(b, x, heads, after)
    return norm(x, w["norm"]) @ w["tokens"].T, grown


def sampling_law(logits, temperature, top_k, top_p):
    law = (logits / temperature).softmax(0)
    ranked, order = law.sort(descending=True)
    if top_k:
        ranked[top_k:] = 0
    ranked = ranked / ranked.sum()
    ranked = ranked.where(ranked.cumsum(0) - ranked < top_p, 0)
    return torch.zeros_like(law).scatter(0, order, ranked / ranked.sum())


def sample(next_logits, prompt, uniforms, temperature, end):
    ids, tokens, log_probs = prompt, [], []
    for u in uniforms:
        law = (next_logits(ids) / temperature).softmax(0)
        tokens.append(int((law.cumsum(0) > u).int().argmax()))
        log_probs.append(law[tokens[-1]].log().item())
        ids = torch.cat([ids, torch.tensor(tokens[-1:])])
        if tokens[-1] == end:
            break
    return tokens, log_probs


def left_padded(rows, pad):
    gaps = [max(map(len, rows)) - len(row) for row in rows]
    ids = torch.tensor([[pad] * gap + list(row) for gap, row in zip(gaps, rows, strict=True)])
    mask = torch.tensor([[False] * gap + [True] * len(row) for gap, row in zip(gaps, rows, strict=True)])
    return ids, mask, (mask.cumsum(1) - 1).clamp(min=0)


def reply_loss(logits, ids, reply):
    chosen = logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
    return -chosen[reply[:, 1:]].mean()


RIGHT = {
    check_embed: embed,
    check_attention: attention,
    check_self_attention: self_attention,
    check_block: block,
    check_transformer: transformer,
    check_cached_step: cached_step,
    check_sampling_law: sampling_law,
    check_sample: sample,
    check_left_padded: left_padded,
    check_reply_loss: reply_loss,
}


# ---- right answers of another kind ---------------------------------------------------------------------------
def attention_in_loops(q, k, v):
    """Row by row, head by head, in Python numbers where that is possible."""
    found = torch.zeros(*q.shape)
    for at in np.ndindex(*q.shape[:3]):
        keys = k[at[:2]][: k.shape[2] - q.shape[2] + at[2] + 1]
        weights = [math.exp(sum(a * b for a, b in zip(q[at].tolist(), key.tolist(), strict=True)) / math.sqrt(len(key)))
                   for key in keys]  # fmt: skip
        for weight, value in zip(weights, v[at[:2]], strict=False):
            found[at] += weight / sum(weights) * value
    return found


def attention_by_torch(q, k, v):
    seen = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(k.shape[2] - q.shape[2])
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen)


def attention_by_einsum(q, k, v):
    scores = torch.einsum("bhtd,bhsd->bhts", q, k) / q.shape[-1] ** 0.5
    weights = scores.exp().tril(k.shape[2] - q.shape[2])
    return torch.einsum("bhts,bhsd->bhtd", weights / weights.sum(-1, keepdim=True), v)


def masked_late_and_made_whole(q, k, v):
    weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1).tril(k.shape[2] - q.shape[2])
    return weights / weights.sum(-1, keepdim=True) @ v


def one_head_after_the_other(b, x, heads):
    (weight, bias), width = b["qkv"], x.shape[-1]
    found = []
    for head in range(heads):
        pieces = [
            slice(part * width + head * width // heads, part * width + (head + 1) * width // heads) for part in range(3)
        ]
        q, k, v = (x @ weight[:, piece] + bias[piece] for piece in pieces)
        found.append(attention(q[:, None], k[:, None], v[:, None])[:, 0])
    return linear(torch.cat(found, -1), b["out"])


def row_by_row(w, ids, positions, heads):
    return np.stack([transformer(w, ids[i : i + 1], positions[i : i + 1], heads)[0].numpy() for i in range(len(ids))])


def model_in_float32(w, ids, positions, heads):
    def single(x):
        if isinstance(x, dict):
            return {key: single(value) for key, value in x.items()}
        return type(x)(map(single, x)) if isinstance(x, list | tuple) else x.float()

    return transformer(single(w), ids, positions, heads)


def model_of_transformers(w, ids, positions, heads):
    model = gpt2_of(w, heads)
    return model(ids, position_ids=positions).logits.detach()


def cache_in_a_dict(w, ids, cache, heads):
    logits, grown = cached_step(w, ids, None if cache is None else cache["pairs"], heads)
    return [logits, {"pairs": grown, "length": len(grown)}]


def law_by_a_loop(logits, temperature, top_k, top_p):
    law = np.exp(logits.numpy() / temperature)
    law /= law.sum()
    ranked = sorted(range(len(law)), key=lambda token: -law[token])[: top_k or None]
    whole, kept = sum(law[token] for token in ranked), []
    for token in ranked:
        if kept and sum(law[t] for t in kept) / whole >= top_p:
            break
        kept.append(token)
    return [law[t] / sum(law[k] for k in kept) if t in kept else 0.0 for t in range(len(law))]


def law_of_the_invariants(logits, temperature, top_k, top_p):
    alternative = Alternative(temperature=temperature, top_k=top_k, top_p=top_p)
    return alternative.log_law(logits[None], torch.zeros(1, len(logits), dtype=torch.bool), None)[0].exp()


def sample_by_search(next_logits, prompt, uniforms, temperature, end):
    ids, log_probs = prompt.tolist(), []
    for u in uniforms.tolist():
        log_law = (next_logits(torch.tensor(ids)) / temperature).log_softmax(0)
        token = int(np.searchsorted(np.cumsum(np.exp(log_law.numpy())), u, side="right"))
        ids, log_probs = [*ids, token], [*log_probs, log_law[token]]
        if token == end:
            break
    return torch.tensor(ids[len(prompt) :]), torch.stack(log_probs)


def padded_in_numpy(rows, pad):
    width = max(len(row) for row in rows)
    ids, mask = np.full((len(rows), width), pad), np.zeros((len(rows), width), int)
    for i, row in enumerate(rows):
        ids[i, width - len(row) :] = row
        mask[i, width - len(row) :] = 1
    return ids, mask, np.where(mask, mask.cumsum(1) - 1, 77)  # anything at padding


def loss_by_cross_entropy(logits, ids, reply):
    return F.cross_entropy(logits[:, :-1][reply[:, 1:]], ids[:, 1:][reply[:, 1:]])


def loss_with_ignored_labels(logits, ids, reply):
    labels = ids.where(reply, -100)[:, 1:]
    return F.cross_entropy(logits[:, :-1].transpose(1, 2), labels, ignore_index=-100)


def loss_in_a_loop(logits, ids, reply):
    losses = [-logits[row, t - 1].log_softmax(-1)[ids[row, t]].item() for row, t in np.argwhere(reply.numpy()) if t > 0]
    return sum(losses) / len(losses)


UNUSUAL = {
    "attention in loops": (check_attention, attention_in_loops),
    "attention of torch": (check_attention, attention_by_torch),
    "attention by einsum": (check_attention, attention_by_einsum),
    "masked after the softmax and made whole": (check_attention, masked_late_and_made_whole),
    "an array": (check_attention, lambda q, k, v: attention(q, k, v).numpy()),
    "with a gradient": (check_attention, lambda q, k, v: attention(q, k, v).requires_grad_()),
    "head after head": (check_self_attention, one_head_after_the_other),
    "row by row": (check_transformer, row_by_row),
    "in float32": (check_transformer, model_in_float32),
    "the model of transformers": (check_transformer, model_of_transformers),
    "a cache in a dictionary": (check_cached_step, cache_in_a_dict),
    "law by a loop": (check_sampling_law, law_by_a_loop),
    "law of the invariants": (check_sampling_law, law_of_the_invariants),
    "sample by search": (check_sample, sample_by_search),
    "padded in numpy": (check_left_padded, padded_in_numpy),
    "padded in lists": (check_left_padded, lambda rows, pad: [x.tolist() for x in left_padded(rows, pad)]),
    "cross entropy": (check_reply_loss, loss_by_cross_entropy),
    "ignored labels": (check_reply_loss, loss_with_ignored_labels),
    "loss in a loop": (check_reply_loss, loss_in_a_loop),
    "loss with a gradient": (check_reply_loss, lambda x, i, r: reply_loss(x.clone().requires_grad_(), i, r)),
}


@pytest.mark.parametrize("check", RIGHT, ids=lambda check: check.__name__)
def test_the_solution_passes(check, capsys):
    check(RIGHT[check])
    assert "passed" in capsys.readouterr().out


@pytest.mark.parametrize("name", UNUSUAL)
def test_an_unusual_right_answer_passes(name, capsys):
    check, solution = UNUSUAL[name]
    check(solution)
    assert "passed" in capsys.readouterr().out


# ---- the definitions themselves ------------------------------------------------------------------------------
def gpt2_of(w, heads):
    """A GPT-2 of transformers with these weights, float64."""
    config = GPT2Config(
        vocab_size=len(w["tokens"]), n_positions=len(w["positions"]), n_embd=w["tokens"].shape[1], n_head=heads,
        n_layer=len(w["blocks"]), activation_function="gelu_pytorch_tanh", resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
        bos_token_id=None, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).double().eval()
    theirs = gpt2_weights(model)
    with torch.no_grad():
        for name in ("tokens", "positions"):
            theirs[name].copy_(w[name])
        pairs = [(theirs["norm"], w["norm"])]
        pairs += [(b[part], a[part]) for a, b in zip(w["blocks"], theirs["blocks"], strict=True) for part in a]
        for to, of in pairs:
            for mine, given in zip(to, of, strict=True):
                mine.copy_(given)
    return model


def test_the_definition_is_gpt2_of_transformers():
    w, ids = random_weights(1, 3), random_ids(1, 2, 6)
    theirs = gpt2_of(w, HEADS)(ids).logits
    torch.testing.assert_close(all_logits(w, ids, columns(ids), HEADS), theirs, rtol=1e-9, atol=1e-9)


def test_the_shipped_model_is_read(tiny_gpt2):
    with torch.no_grad():
        ids = torch.arange(10)[None]
        theirs = tiny_gpt2.model(ids).logits
    heads = tiny_gpt2.model.config.n_head
    w = gpt2_weights(tiny_gpt2.model)
    torch.testing.assert_close(transformer(w, ids, columns(ids), heads), theirs, rtol=1e-4, atol=1e-4)


def test_another_architecture_is_refused(tiny_llama):
    with pytest.raises(ValueError, match="llama; expected a gpt2"):
        gpt2_weights(tiny_llama.model)


def test_the_probes_do_what_they_say():
    assert [int(counting(torch.tensor([n])).argmax()) for n in range(6)] == [1, 2, 3, 4, 5, 0]
    laws = [remembering(torch.tensor(ids)) for ids in ([0], [0, 0], [1, 0], [0, 1])]
    assert all((a - b).abs().max() > 0.1 for i, a in enumerate(laws) for b in laws[:i])


# ---- mistakes ------------------------------------------------------------------------------------------------
def wrong_attention(**fault):
    return lambda q, k, v: attention(q, k, v, **fault)


def wrong_block(kind):
    def mine(b, x, heads):
        if kind == "post":
            x = norm(x + self_attention(b, x, heads), b["norm_1"])
            return norm(x + mlp(b, x), b["norm_2"])
        if kind == "parallel":
            return x + self_attention(b, norm(x, b["norm_1"]), heads) + mlp(b, norm(x, b["norm_2"]))
        if kind == "no residual":
            x = self_attention(b, norm(x, b["norm_1"]), heads)
            return x + mlp(b, norm(x, b["norm_2"]))
        if kind == "exact gelu":
            x = x + self_attention(b, norm(x, b["norm_1"]), heads)
            return x + mlp(b, norm(x, b["norm_2"]), "none")
        x = x + self_attention(b, norm(x, b["norm_1"]), heads)
        return x + mlp(b, norm(x, b["norm_1"]))

    return mine


def states(w, ids, positions, heads, last=True):
    x = embed(w, ids, positions)
    for b in w["blocks"]:
        x = block(b, x, heads)
    return norm(x, w["norm"]) if last else x


def read_all_again(w, ids, cache, heads):
    ids = ids if cache is None else torch.cat([cache, ids], 1)
    start = 0 if cache is None else cache.shape[1]
    return transformer(w, ids, columns(ids), heads)[:, start:], ids


def without_growth(w, ids, cache, heads):
    logits, grown = cached_step(w, ids, cache, heads)
    return logits, cache or grown


def wrong_sample(**fault):
    def mine(next_logits, prompt, uniforms, temperature, end):
        if fault.get("shift"):
            uniforms = torch.cat([uniforms[:1], uniforms[:-1]])
        if fault.get("alone"):
            return sample(lambda ids: next_logits(prompt), prompt, uniforms, temperature, end)
        if fault.get("hot"):
            return sample(next_logits, prompt, uniforms, 1 / temperature, end)
        tokens, log_probs = sample(next_logits, prompt, uniforms, temperature, -1 if fault.get("goes on") else end)
        if fault.get("scored"):
            ids = [torch.cat([prompt, torch.tensor(tokens[:t], dtype=torch.long)]) for t in range(len(tokens))]
            log_probs = [next_logits(i).log_softmax(0)[token].item() for i, token in zip(ids, tokens, strict=True)]
        if fault.get("dropped") and tokens[-1] == end:
            tokens, log_probs = tokens[:-1], log_probs[:-1]
        return tokens, log_probs

    return mine


def law_without_the_crossing_token(logits, temperature, top_k, top_p):
    law = (logits / temperature).softmax(0)
    ranked, order = law.sort(descending=True)
    if top_k:
        ranked[top_k:] = 0
    ranked = ranked / ranked.sum()
    if top_p < 1:
        ranked = ranked.where(ranked.cumsum(0) <= top_p, 0)
    return torch.zeros_like(law).scatter(0, order, ranked / ranked.sum())


def law_with_the_temperature_last(logits, temperature, top_k, top_p):
    law = sampling_law(logits, 1.0, top_k, top_p) ** (1 / temperature)
    return law / law.sum()


def law_not_whole(logits, temperature, top_k, top_p):
    law = (logits / temperature).softmax(0)
    return law * (sampling_law(logits, temperature, top_k, top_p) > 0)


def padded_right(rows, pad):
    ids, mask, positions = left_padded([row[::-1] for row in rows], pad)
    return ids.flip(1), mask.flip(1), positions.flip(1)


def mask_of_ids(rows, pad):
    ids, _, _ = left_padded(rows, pad)
    return ids, ids != pad, ((ids != pad).cumsum(1) - 1).clamp(min=0)


def changed_labels(change):
    return lambda logits, ids, reply: change(logits, ids, reply)


def not_shifted(logits, ids, reply):
    return F.cross_entropy(logits[reply], ids[reply])


def mask_not_shifted(logits, ids, reply):
    chosen = logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
    return -chosen[reply[:, :-1]].mean()


def with_prompt(logits, ids, reply):
    last = reply.int().cumsum(1).argmax(1, keepdim=True)
    return reply_loss(logits, ids, (torch.arange(reply.shape[1]) <= last) & (torch.arange(reply.shape[1]) > 0))


def mean_of_rows(logits, ids, reply):
    return torch.stack(
        [reply_loss(x[None], i[None], r[None]) for x, i, r in zip(logits, ids, reply, strict=True)]
    ).mean()


def times_the_mask(logits, ids, reply):
    losses = F.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
    return (losses * reply[:, 1:]).sum() / reply[:, 1:].sum()


MISTAKES = {
    "positions from 0": (check_embed, lambda w, i, p: embed(w, i, columns(i)), "counted from 0 in each row"),
    "no positions": (check_embed, lambda w, i, p: w["tokens"][i], "bag of tokens"),
    "no mask": (check_attention, wrong_attention(mask=False), "causal mask is missing"),
    "mask after": (check_attention, wrong_attention(late=True), "mask comes after the softmax"),
    "no scale": (check_attention, wrong_attention(scale=1.0), r"1 / sqrt\(D\) is missing"),
    "wrong axis": (check_attention, wrong_attention(axis=-2), "softmax is over the queries|see"),
    "blind to itself": (check_attention, wrong_attention(strict=1), "every position sees itself|does not see itself"),
    "aligned at the first key": (check_attention, wrong_attention(offset=False), "aligned at the first key"),
    "torch's is_causal": (
        check_attention,
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        "aligned at the first key",
    ),
    "one head": (check_self_attention, lambda b, x, h: self_attention(b, x, 1), "one head of width d"),
    "view without transpose": (
        check_self_attention,
        lambda b, x, h: linear(
            attention(*(p.reshape(len(x), h, x.shape[1], -1) for p in linear(x, b["qkv"]).chunk(3, -1)))
            .transpose(1, 2)
            .flatten(2),
            b["out"],
        ),
        "mixes positions",
    ),
    "no output": (
        check_self_attention,
        lambda b, x, h: self_attention(b | {"out": (torch.eye(x.shape[-1]).double(), 0 * b["out"][1])}, x, h),
        "last projection, out, is missing",
    ),
    "scale of the width": (
        check_self_attention,
        lambda b, x, h: self_attention(b, x, h, wrong_attention(scale=x.shape[-1] ** -0.5)),
        "it is the width of a head",
    ),
    "post-norm": (check_block, wrong_block("post"), "GPT-2 is pre-norm"),
    "parallel": (check_block, wrong_block("parallel"), "from before the attention"),
    "no residual": (check_block, wrong_block("no residual"), "nothing is added to x after the attention"),
    "exact gelu": (check_block, wrong_block("exact gelu"), "approximation by tanh"),
    "norm_1 twice": (check_block, wrong_block("twice"), "norm_1 is used twice"),
    "no head": (check_transformer, lambda *given: states(*given), "tied"),
    "columns": (check_transformer, lambda w, i, p, h: transformer(w, i, columns(i), h), "counted in columns"),
    "log-probs": (
        check_transformer,
        lambda *given: transformer(*given).log_softmax(-1),
        "log-probs and not the logits",
    ),
    "no mask in the model": (
        check_transformer,
        lambda *given: transformer(*given, wrong_attention(mask=False)),
        "causal mask is missing",
    ),
    "no last norm": (
        check_transformer,
        lambda w, i, p, h: states(w, i, p, h, last=False) @ w["tokens"].T,
        "last norm is missing",
    ),
    "one block": (
        check_transformer,
        lambda w, i, p, h: transformer(w | {"blocks": w["blocks"][:1]}, i, p, h),
        "one block alone",
    ),
    "positions forgotten": (check_cached_step, lambda w, i, c, h: cached_step(w, i, c, h, start=0), "start at 0"),
    "cache not read": (
        check_cached_step,
        lambda w, i, c, h: (cached_step(w, i, None, h, start=c or 0)[0], (c or 0) + i.shape[1]),
        "cache is not read",
    ),
    "cache does not grow": (check_cached_step, without_growth, "does not grow"),
    "all again": (check_cached_step, read_all_again, "read again"),
    "several new tokens": (
        check_cached_step,
        lambda *given: cached_step(*given, attend=wrong_attention(offset=False)),
        "sees too little",
    ),
    "logits alone": (check_cached_step, lambda *given: cached_step(*given)[0], "return logits, cache"),
    "crossing token dropped": (check_sampling_law, law_without_the_crossing_token, "drops the token that crosses p"),
    "temperature last": (check_sampling_law, law_with_the_temperature_last, "temperature comes after the cuts"),
    "not whole": (check_sampling_law, law_not_whole, "does not add up to 1"),
    "multiplied": (check_sampling_law, lambda x, t, k, p: sampling_law(x, 1 / t, k, p), "multiplied"),
    "sorted": (check_sampling_law, lambda *g: sampling_law(*g).sort(descending=True).values, "the law is sorted"),
    "no top-k": (check_sampling_law, lambda x, t, k, p: sampling_law(x, t, 0, p), "top-k is missing"),
    "prompt alone": (check_sample, wrong_sample(alone=True), "prompt alone"),
    "scored at 1": (check_sample, wrong_sample(scored=True), "sampled with the temperature and scored without"),
    "hot": (check_sample, wrong_sample(hot=True), "multiplied by the temperature"),
    "goes on": (check_sample, wrong_sample(**{"goes on": True}), "goes on after its end"),
    "end dropped": (check_sample, wrong_sample(dropped=True), "the end token is left out"),
    "another number": (check_sample, wrong_sample(shift=True), "what is asked|usual cause"),
    "right": (check_left_padded, padded_right, "padding is on the right"),
    "mask of ids": (check_left_padded, mask_of_ids, "mask is taken from the ids"),
    "positions are columns": (
        check_left_padded,
        lambda rows, pad: (*left_padded(rows, pad)[:2], torch.arange(max(map(len, rows))).expand(len(rows), -1)),
        "positions are columns",
    ),
    "two parts": (check_left_padded, lambda rows, pad: left_padded(rows, pad)[:2], "return ids, mask, positions"),
    "not shifted": (check_reply_loss, not_shifted, "labels are not shifted"),
    "mask not shifted": (check_reply_loss, mask_not_shifted, "mask is not shifted along"),
    "with the prompt": (check_reply_loss, with_prompt, "prompt counts too"),
    "mean of rows": (check_reply_loss, mean_of_rows, "mean of the rows' means"),
    "times the mask": (check_reply_loss, times_the_mask, r"NaN \* 0 is NaN"),
    "the sign": (check_reply_loss, lambda *given: -reply_loss(*given), "the sign"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_refused_and_named(name):
    check, mistake, cause = MISTAKES[name]
    with pytest.raises(AssertionError, match=cause):
        check(mistake)


def unwritten(*given):
    raise NotImplementedError("your code here")


@pytest.mark.parametrize("check", RIGHT, ids=lambda check: check.__name__)
def test_an_exercise_that_was_not_begun_gets_one_line(check):
    with pytest.raises(NotAttempted, match="not attempted yet"):
        check(unwritten)
