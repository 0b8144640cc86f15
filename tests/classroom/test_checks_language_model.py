"""Each check of chapter 07 takes right answers in any form and fails on realistic mistakes, naming the cause."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from rlhf_lab.classroom.checks.batches import check_left_padded, check_reply_loss
from rlhf_lab.classroom.checks.comparing import NotAttempted, changed, changes
from rlhf_lab.classroom.checks.decoding import check_cached_step, check_sample, check_sampling_law
from rlhf_lab.classroom.checks.gpt2 import HEADS, all_logits, columns, linear, norm, random_ids, random_weights
from rlhf_lab.classroom.checks.sampling import counting, refusing, remembering
from rlhf_lab.classroom.checks.transformer import (
    check_attention,
    check_block,
    check_embed,
    check_self_attention,
    check_transformer,
    gpt2_weights,
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


def in_heads(part, heads):
    return part.unflatten(-1, (heads, -1)).transpose(1, 2)


def side_by_side(seen):
    return seen.transpose(1, 2).flatten(2)


def self_attention(b, x, heads, attend=attention, *, cut=in_heads, merge=side_by_side):
    q, k, v = (cut(part, heads) for part in linear(x, b["qkv"]).chunk(3, -1))
    return linear(merge(attend(q, k, v)), b["out"])


def gelu(x):
    return F.gelu(x, approximate="tanh")


def mlp(b, x, act=gelu):
    return linear(act(linear(x, b["up"])), b["down"])


def block(b, x, heads, attend=attention, part=mlp):
    x = x + self_attention(b, norm(x, b["norm_1"]), heads, attend)
    return x + part(b, norm(x, b["norm_2"]))


def transformer(w, ids, positions, heads, attend=attention):
    x = embed(w, ids, positions)
    for b in w["blocks"]:
        x = block(b, x, heads, attend)
    return norm(x, w["norm"]) @ w["tokens"].T


def cached_step(w, ids, cache, heads, *, start=None, attend=attention, embeds=embed, fault=""):
    cache = cache or [None] * len(w["blocks"])
    seen = 0 if cache[0] is None else cache[0][0].shape[2]
    seen += {"one more": seen > 0, "one less": -(seen > 0)}.get(fault, 0)
    steps = {"all at the first": 0 * ids, "all at the last": 0 * ids + ids.shape[1] - 1}.get(fault, columns(ids))
    x, grown = embeds(w, ids, (seen if start is None else start) + steps), []
    for b, own in zip(w["blocks"], cache, strict=True):
        past = {"first block": cache[0], "last block": cache[-1]}.get(fault, own)

        def after(q, k, v, past=past):
            new = (k, v)
            if past is not None:
                old = past[::-1] if fault == "exchanged" else past
                pairs = zip(new, old, strict=True) if fault == "new first" else zip(old, new, strict=True)
                k, v = (torch.cat(pair, 2) for pair in pairs)
            grown.append(new if fault == "new alone" else (k, v))
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


def ends(ids, end):
    return ids[-1] == end


def sample(next_logits, prompt, uniforms, temperature, end, *, above=torch.gt, stops=ends):
    ids, tokens, log_probs = prompt, [], []
    for u in uniforms:
        law = (next_logits(ids) / temperature).softmax(0)
        tokens.append(int(above(law.cumsum(0), u).int().argmax()))
        log_probs.append(law[tokens[-1]].log().item())
        ids = torch.cat([ids, torch.tensor(tokens[-1:])])
        if stops(ids, end):
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


def one_hot_embed(w, ids, positions):
    tables = ((w["tokens"], ids), (w["positions"], positions))
    return sum(F.one_hot(rows, len(table)).double() @ table for table, rows in tables)


def cache_of_layer_inputs(w, ids, cache, heads):
    """The normed input of each block is kept, and its keys and values are made again of that."""
    seen, kept = 0 if cache is None else cache[0].shape[1], []
    x = embed(w, ids, seen + columns(ids))
    for i, b in enumerate(w["blocks"]):
        new = norm(x, b["norm_1"])
        kept.append(new if cache is None else torch.cat([cache[i], new], 1))
        q, k, v = (in_heads(part, heads) for part in linear(kept[i], b["qkv"]).chunk(3, -1))
        x = x + linear(side_by_side(attention(q[:, :, -ids.shape[1] :], k, v)), b["out"])
        x = x + mlp(b, norm(x, b["norm_2"]))
    return norm(x, w["norm"]) @ w["tokens"].T, kept


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
    "a cache of the blocks' inputs": (check_cached_step, cache_of_layer_inputs),
    "positions by a product with one-hot rows": (
        check_cached_step,
        lambda *given: cached_step(*given, embeds=one_hot_embed),
    ),
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
    assert refusing(torch.tensor([1])).softmax(0).tolist() == [0, 0.25, 0.25, 0.25, 0.25]


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
            return x + mlp(b, norm(x, b["norm_2"]), F.gelu)
        x = x + self_attention(b, norm(x, b["norm_1"]), heads)
        return x + mlp(b, norm(x, b["norm_1"]))

    return mine


def states(w, ids, positions, heads, last=True):
    x = embed(w, ids, positions)
    for b in w["blocks"]:
        x = block(b, x, heads)
    return norm(x, w["norm"]) if last else x


def never_transposed(b, x, heads):
    def cut(part, heads):
        return part.reshape(len(part), heads, part.shape[1], -1)

    return self_attention(b, x, heads, cut=cut, merge=lambda seen: seen.reshape(x.shape))


def over_the_heads(b, x, heads):
    def cut(part, heads):
        return part.unflatten(-1, (heads, -1))

    return self_attention(b, x, heads, cut=cut, merge=lambda seen: seen.flatten(2))


def head_by_head(b, x, heads):
    q, k, v = in_heads(linear(x, b["qkv"]), heads).chunk(3, -1)
    return linear(side_by_side(attention(q, k, v)), b["out"])


def every_third_number(part, heads):
    return part.unflatten(-1, (-1, heads)).permute(0, 3, 1, 2)


def heads_for_width(part, heads):
    return part.unflatten(-1, (-1, heads)).transpose(1, 2)


def attention_with_log_softmax(q, k, v):
    scores = q @ k.mT / q.shape[-1] ** 0.5
    later = torch.ones(scores.shape[-2:]).triu(k.shape[2] - q.shape[2] + 1).bool()
    return scores.masked_fill(later, -math.inf).log_softmax(-1) @ v


def nothing_added(b, x, heads):
    return mlp(b, norm(self_attention(b, norm(x, b["norm_1"]), heads), b["norm_2"]))


def gelu_before_up(b, x):
    return linear(linear(gelu(x), b["up"]), b["down"])


def gelu_after_down(b, x):
    return gelu(linear(linear(x, b["up"]), b["down"]))


def with_positions_in_each_block(w, ids, positions, heads, *, also_before):
    x = embed(w, ids, positions) if also_before else w["tokens"][ids]
    for b in w["blocks"]:
        x = block(b, x + w["positions"][positions], heads)
    return norm(x, w["norm"]) @ w["tokens"].T


def with_the_norm_in_each_block(w, ids, positions, heads):
    x = embed(w, ids, positions)
    for b in w["blocks"]:
        x = norm(block(b, x, heads), w["norm"])
    return x @ w["tokens"].T


def read_all_again(w, ids, cache, heads):
    ids = ids if cache is None else torch.cat([cache, ids], 1)
    start = 0 if cache is None else cache.shape[1]
    return transformer(w, ids, columns(ids), heads)[:, start:], ids


def embeddings_kept(w, ids, cache, heads):
    """Only the embeddings are kept: all positions go through all blocks again."""
    new = embed(w, ids, (0 if cache is None else cache.shape[1]) + columns(ids))
    x = kept = new if cache is None else torch.cat([cache, new], 1)
    for b in w["blocks"]:
        x = block(b, x, heads)
    return (norm(x, w["norm"]) @ w["tokens"].T)[:, -ids.shape[1] :], kept


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


def wrong_scores(change):
    """The right tokens, their log-probs changed."""

    def mine(*given):
        tokens, log_probs = sample(*given)
        return tokens, change(torch.tensor(log_probs).double())

    return mine


def logits_for_log_probs(next_logits, prompt, uniforms, temperature, end):
    tokens, _ = sample(next_logits, prompt, uniforms, temperature, end)
    ids = torch.cat([prompt, torch.tensor(tokens)])
    return tokens, [next_logits(ids[: len(prompt) + t])[token].item() for t, token in enumerate(tokens)]


def an_end_anywhere(ids, end):
    return end in ids


def stops_before_the_first_token(next_logits, prompt, uniforms, temperature, end):
    """`while end not in ids`, before a token is drawn."""
    return ([], []) if end in prompt else sample(next_logits, prompt, uniforms, temperature, end)


def law_with_one_token_more(logits, temperature, top_k, top_p):
    law = sampling_law(logits, temperature, top_k, 1.0)
    ranked, order = law.sort(descending=True)
    before = ranked.cumsum(0) - ranked
    kept = torch.cat([torch.tensor([True]), before[:-1] < top_p])
    return torch.zeros_like(law).scatter(0, order, ranked * kept / (ranked * kept).sum())


def law_with_top_p_before_top_k(logits, temperature, top_k, top_p):
    law = sampling_law(logits, temperature, 0, 1.0)
    ranked, order = sampling_law(logits, temperature, 0, top_p).sort(descending=True)
    ranked[top_k or len(law) :] = 0
    return torch.zeros_like(law).scatter(0, order, ranked / ranked.sum())


def sorted_once_more(*given):
    return sampling_law(*given).sort(descending=True).values[given[0].argsort(descending=True)]


def law_of_nan(*given):
    return math.nan * sampling_law(*given)


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


def token_losses(logits, ids, axis=-1):
    return -logits[:, :-1].log_softmax(axis).gather(-1, ids[:, 1:, None]).squeeze(-1)


def without_the_end(logits, ids, reply):
    goes_on = torch.cat([reply[:, 1:], torch.zeros_like(reply[:, :1])], 1)
    return reply_loss(logits, ids, reply & goes_on)


def without_the_first(logits, ids, reply):
    return token_losses(logits, ids)[reply[:, 1:] & reply[:, :-1]].mean()


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


def with_norms_exchanged(b, x, heads):
    return block(b | {"norm_1": b["norm_2"], "norm_2": b["norm_1"]}, x, heads)


ALONE = {
    check_attention: {
        "one later position is seen too": wrong_attention(strict=-1),
        "a row of the softmax may have nothing left to see": attention_with_log_softmax,
    },
    check_self_attention: {
        "reshaped to": never_transposed,
        "attention over the heads": over_the_heads,
        "d / H heads of width H": lambda *given: self_attention(*given, cut=heads_for_width),
        "a head takes every H-th number": lambda *given: self_attention(*given, cut=every_third_number),
        "cut into heads first and into q, k, v inside each": head_by_head,
    },
    check_block: {
        "norm_1 and norm_2 are exchanged": with_norms_exchanged,
        "nothing is added to x, neither": nothing_added,
        "the GELU comes before up": lambda *given: block(*given, part=gelu_before_up),
        "the GELU comes after down": lambda *given: block(*given, part=gelu_after_down),
        "SiLU in the place": lambda *given: block(*given, part=lambda b, x: mlp(b, x, F.silu)),
        "relu in the place": lambda *given: block(*given, part=lambda b, x: mlp(b, x, torch.relu)),
        "no function between": lambda *given: block(*given, part=lambda b, x: mlp(b, x, lambda z: z)),
    },
    check_transformer: {
        "the positions are added before every block": lambda *given: with_positions_in_each_block(
            *given, also_before=False
        ),
        "the positions are added in embed and again": lambda *given: with_positions_in_each_block(
            *given, also_before=True
        ),
        "the last norm is applied after every block": with_the_norm_in_each_block,
    },
    check_cached_step: {
        "earlier positions go through the blocks again": embeddings_kept,
        "the earlier tokens are read again": read_all_again,
        "positions begin at 1": lambda w, i, c, h: cached_step(w, i, c, h, start=(c[0][0].shape[2] if c else 0) + 1),
        "of several new tokens each sees the later ones": lambda *given: cached_step(
            *given, attend=wrong_attention(mask=False)
        ),
        **{
            said: lambda *given, fault=fault: cached_step(*given, fault=fault)
            for said, fault in {
                "the cache that is returned holds the new keys": "new alone",
                "the positions after the first call are one too large": "one more",
                "the positions after the first call are one too small": "one less",
                "all new tokens get the position of the first": "all at the first",
                "all new tokens get the position of the last": "all at the last",
                "the new keys come before those of the cache": "new first",
                "keys and values are exchanged in the cache": "exchanged",
                "every block reads the cache of the first one": "first block",
                "every block reads the cache of the last one": "last block",
            }.items()
        },
    },
    check_sampling_law: {
        "ranked\\[order\\] sorts once more": sorted_once_more,
        "top-p keeps one token too many": law_with_one_token_more,
        "top-p counts the probabilities before top-k": law_with_top_p_before_top_k,
        "top-k keeps one token too many": lambda x, t, k, p: sampling_law(x, t, k + 1 if k else 0, p),
        "top-k keeps one token too few": lambda x, t, k, p: sampling_law(x, t, k - 1 if k > 1 else k, p),
        "top-p is left out where top-k cuts": lambda x, t, k, p: sampling_law(x, t, k, 1.0 if k else p),
        "the logarithm and not the probability": lambda *given: sampling_law(*given).log(),
    },
    check_sample: {
        "a cumulative probability that equals u": lambda *given: sample(*given, above=torch.ge),
        "an end token of the prompt stops the reply, after": lambda *given: sample(*given, stops=an_end_anywhere),
        "an end token of the prompt stops the reply before": stops_before_the_first_token,
        "the sign": wrong_scores(lambda found: -found),
        "the logarithm is to base 2": wrong_scores(lambda found: found / math.log(2)),
        "the logarithm is to base 10": wrong_scores(lambda found: found / math.log(10)),
        "the log-probs are added up": wrong_scores(lambda found: found.cumsum(0)),
        "probabilities and not log-probs": wrong_scores(torch.exp),
        "the logit of the token": logits_for_log_probs,
        "one number for the whole reply": wrong_scores(torch.sum),
    },
    check_reply_loss: {
        "the end token is left out": without_the_end,
        "the first token of the reply is left out": without_the_first,
        "the logarithm is to base 2": lambda *given: reply_loss(*given) / math.log(2),
        "the log_softmax is over the columns": lambda x, i, m: token_losses(x, i, axis=1)[m[:, 1:]].mean(),
        "the log_softmax is over the rows": lambda x, i, m: token_losses(x, i, axis=0)[m[:, 1:]].mean(),
        "the logarithm of the mean probability": lambda x, i, m: -(-token_losses(x, i)).exp()[m[:, 1:]].mean().log(),
        "the probabilities and not their": lambda x, i, m: -(-token_losses(x, i)).exp()[m[:, 1:]].mean(),
        "the sum": lambda x, i, m: token_losses(x, i)[m[:, 1:]].sum(),
        "divided by the number of rows": lambda x, i, m: token_losses(x, i)[m[:, 1:]].sum() / len(i),
        "logits are read that predict no token": times_the_mask,
    },
}


@pytest.mark.parametrize(("check", "cause"), [(check, cause) for check, found in ALONE.items() for cause in found])
def test_a_mistake_is_the_only_one_that_is_named(check, cause):
    with pytest.raises(AssertionError, match=f"\n  usual cause: {cause}[^\n]*$"):
        check(ALONE[check][cause])


def test_no_number_in_a_law_is_no_fault_of_the_attention():
    with pytest.raises(AssertionError, match="what is asked: softmax"):
        check_sampling_law(law_of_nan)


def test_of_log_probs_the_logarithm_is_asked():
    with pytest.raises(AssertionError, match="what is asked: the natural logarithm of each drawn token's probability"):
        check_sample(wrong_scores(lambda found: found * 1.1))


def test_the_answer_does_not_stand_in_the_message():
    with pytest.raises(AssertionError, match="the row of each token plus the row of its given position"):
        check_embed(lambda w, ids, positions: 2 * embed(w, ids, positions))


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_numbers_of_16_bits_are_told_that_they_are_too_coarse(kind):
    with pytest.raises(AssertionError, match="usual cause: numbers of 16 bits are too coarse"):
        check_embed(lambda *given: embed(*given).to(kind))


def test_a_long_list_is_cut_short_in_the_message():
    with pytest.raises(AssertionError, match="it returned list and not a tensor") as caught:
        check_embed(lambda *given: embed(*given).tolist())
    assert len(str(caught.value)) < 1000


# ---- what is given comes back unchanged ----------------------------------------------------------------------
def doubling(answer, part, *, first=False):
    """The answer, with a part of the first argument doubled in place, before or after."""

    def mine(*given):
        if first:
            part(given[0]).mul_(2)
        result = answer(*given)
        if not first:
            part(given[0]).mul_(2)
        return result

    return mine


IN_PLACE = {
    r"\['tokens'\]": (check_embed, embed, lambda w: w["tokens"]),
    r"\['qkv'\]\[0\]": (check_self_attention, self_attention, lambda b: b["qkv"][0]),
    r"\['norm_2'\]\[1\]": (check_block, block, lambda b: b["norm_2"][1]),
    r"\['blocks'\]\[2\]\['up'\]\[0\]": (check_transformer, transformer, lambda w: w["blocks"][2]["up"][0]),
    r"\['norm'\]\[0\]": (check_cached_step, cached_step, lambda w: w["norm"][0]),
}


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("place", IN_PLACE)
def test_weights_that_are_changed_in_place_are_refused_and_named(place, first):
    check, answer, part = IN_PLACE[place]
    with pytest.raises(AssertionError, match=f"argument 1{place} after the call") as caught:
        check(doubling(answer, part, first=first))
    assert "usual cause: an argument is changed in place" in str(caught.value)


def test_changes_go_down_to_what_differs():
    nan, one = torch.tensor([math.nan]), torch.ones(1)
    assert not changed({"a": (nan, [1, 2])}, {"a": (nan.clone(), [1, 2])})
    assert not changed({"a": 1, "b": len}, {"a": 1, "b": len})
    assert [place for place, *_ in changes({"a": (one, [1, 2])}, {"a": (one, [1, 3])})] == ["['a'][1]"]
    assert [place for place, *_ in changes([[5], [6]], [[0, 5], [6]])] == ["[0]"]
    assert list(changes({"a": one}, {"a": None})) == [("['a']", one, None)]
    assert list(changes({"a": one}, {"b": one})) == [("", {"a": one}, {"b": one})]
    assert list(changes([one], [one, one])) == [("", [one], [one, one])]


def unwritten(*given):
    raise NotImplementedError("your code here")


@pytest.mark.parametrize("check", RIGHT, ids=lambda check: check.__name__)
def test_an_exercise_that_was_not_begun_gets_one_line(check):
    with pytest.raises(NotAttempted, match="not attempted yet"):
        check(unwritten)
