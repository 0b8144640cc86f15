"""The law that is sampled, the sampler and its probes: the definitions that the checks of chapter 07 compare with.

Each can be given a fault: a check names a mistake by the answer that it would give. *Probes* are made-up models of
which every reply is known: one counts, the law of one depends on the whole prefix, one never says a certain token.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from rlhf_lab.classroom.checks.transformer import Faults


# -- the law -----------------------------------------------------------------------------------------------------------
def _kept(law: Tensor, top_k: int = 0, top_p: float = 1.0, *, crossing: str = "stays", order: str = "best") -> Tensor:
    """The law cut to its likeliest tokens, not made to add up to 1 again."""
    ranks = law.argsort(descending=order == "best")
    among = torch.zeros_like(law, dtype=torch.bool)
    before = law[ranks].cumsum(0) - law[ranks]  # probability of what is likelier
    enough = {"stays": before < top_p, "goes": before + law[ranks] <= top_p}.get(crossing)
    if enough is None:  # one token more than is needed
        enough = torch.cat([torch.ones(1, dtype=torch.bool), before[:-1] < top_p])
    if top_k:
        enough = enough & (torch.arange(len(law)) < top_k)
    among[ranks[enough]] = True
    return law * among


def _whole(weights: Tensor) -> Tensor:
    return weights / weights.sum()


def cut_law(logits: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    law = _whole(_kept((logits / temperature).softmax(0), top_k))
    return _whole(_kept(law, 0, top_p))


LAW_FAULTS: Faults = {
    "the temperature comes after the cuts: it is first": lambda x, t, k, p: _whole(
        _whole(_kept(_whole(_kept(x.softmax(0), k)), 0, p)) ** (1 / t)
    ),
    "the logits are multiplied by the temperature": lambda x, t, k, p: cut_law(x, 1 / t, k, p),
    "the temperature is missing": lambda x, t, k, p: cut_law(x, 1.0, k, p),
    "the probabilities are divided by the temperature and not the logits": lambda x, t, k, p: cut_law(x, 1.0, k, p) / t,
    "top-p drops the token that crosses p: it stays, so that at least p is kept": lambda x, t, k, p: _whole(
        _kept(_whole(_kept((x / t).softmax(0), k)), 0, p, crossing="goes")
    ),
    "what is left does not add up to 1": lambda x, t, k, p: _kept(_whole(_kept((x / t).softmax(0), k)), 0, p),
    "top-p counts the probabilities before top-k: top-k comes first, and what it left has to add up to 1": (
        lambda x, t, k, p: _whole(_kept((x / t).softmax(0), k, p))
    ),
    "top-p keeps one token too many: the one that crosses p is the last": lambda x, t, k, p: _whole(
        _kept(_whole(_kept((x / t).softmax(0), k)), 0, p, crossing="one more")
    ),
    "top-p is left out where top-k cuts: both may": lambda x, t, k, p: cut_law(x, t, k, 1.0 if k else p),
    "top-k is missing": lambda x, t, k, p: cut_law(x, t, 0, p),
    "top-p is missing": lambda x, t, k, p: cut_law(x, t, k, 1.0),
    "top-k keeps one token too many": lambda x, t, k, p: cut_law(x, t, k + 1 if k else 0, p),
    "top-k keeps one token too few": lambda x, t, k, p: cut_law(x, t, k - 1 if k else 0, p),
    "the least likely tokens are kept": lambda x, t, k, p: _whole(
        _kept(_whole(_kept((x / t).softmax(0), k, order="worst")), 0, p, order="worst")
    ),
    "tokens of probability above p are kept: p is a sum, from the likeliest on": lambda x, t, k, p: _whole(
        (law := (x / t).softmax(0)) * (law >= p)
    ),
    "the law is sorted: probabilities stand in the order of the tokens": lambda x, t, k, p: (
        cut_law(x, t, k, p).sort(descending=True).values
    ),
    "ranked[order] sorts once more: entry i of the sorted law belongs to token order[i], so law[order] = ranked": (
        lambda x, t, k, p: cut_law(x, t, k, p).sort(descending=True).values[x.argsort(descending=True)]
    ),
    "the logarithm and not the probability": lambda x, t, k, p: cut_law(x, t, k, p).log(),
}


# -- probes and the sampler --------------------------------------------------------------------------------------------
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


def refusing(ids: Tensor) -> Tensor:
    """A probe [5] that never says token 0 and all others equally often: a sum of 0 is not above u = 0."""
    return torch.tensor([-math.inf, 0.0, 0.0, 0.0, 0.0], dtype=torch.float64)


def sampled(
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
        if fault == "an end before" and end in ids:
            break
        seen = {"prompt alone": prompt, "last alone": ids[-1:], "reply alone": ids[len(prompt) :]}.get(fault, ids)
        logits = next_logits(seen if len(seen) else prompt)
        heat = {"multiplied": 1 / temperature, "ignored": 1.0}.get(fault, temperature)
        law = (logits / heat).softmax(0)
        u = uniforms[0] if fault == "one number" else 1 - u if fault == "from above" else u
        token = _drawn(law, u, fault)
        tokens.append(token)
        log_probs.append(_scored(logits, law, token, fault))
        ids = torch.cat([ids, torch.tensor([token])])
        if (token == end and fault != "goes on") or (fault == "an end anywhere" and end in ids):
            break
    if fault == "end dropped" and tokens[-1] == end:
        tokens, log_probs = tokens[:-1], log_probs[:-1]
    with_prompt = [*prompt.tolist(), *tokens] if fault == "with prompt" else tokens
    scores = torch.tensor(log_probs).double()
    return [torch.tensor(with_prompt).double(), scores.cumsum(0) if fault == "running" else scores]


def _drawn(law: Tensor, u: Tensor, fault: str) -> int:
    if fault == "greedy":
        return int(law.argmax())
    below = law.cumsum(0) < u if fault == "equal" else law.cumsum(0) <= u
    return int(below.sum().clamp(max=len(law) - 1))


def _scored(logits: Tensor, law: Tensor, token: int, fault: str) -> Tensor:
    right = law[token].log()
    others = {
        "scored at 1": logits.log_softmax(0)[token],
        "not log": law[token],
        "minus": -right,
        "log2": law[token].log2(),
        "log10": law[token].log10(),
        "logit": logits[token],
    }
    return others.get(fault, right)


SAMPLER_FAULTS = {
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
    "a cumulative probability that equals u is enough: it is above u, or u = 0 draws a token of probability 0": "equal",
    "the likeliest token is taken: that is greedy": "greedy",
    "probabilities and not log-probs": "not log",
    "the sign: the logarithm of a probability is 0 or less": "minus",
    "the logarithm is to base 2: it is the natural one": "log2",
    "the logarithm is to base 10: it is the natural one": "log10",
    "the logit of the token and not its log-prob": "logit",
    "the log-probs are added up along the reply: each token has its own": "running",
    "an end token of the prompt stops the reply, after its first token: only one that is drawn does": "an end anywhere",
    "an end token of the prompt stops the reply before it begins: only one that is drawn does": "an end before",
    "the reply goes on after its end token": "goes on",
    "the end token is left out: it is an action too, and has a log-prob": "end dropped",
    "the prompt is returned as well": "with prompt",
}
