"""What a model must be for the house, found out before anything is trained, and how its parts are reached.

Wanted is a causal decoder whose memory is its key-value cache. Padding on the left and rows that end early would change
the state of a recurrent or hybrid model, so these are left out, and so are sparse attention, models without a cache,
encoders and encoder-decoders.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForSequenceClassification, DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.modeling_layers import GenericForSequenceClassification

# Their cache layers hold keys and values of each position or, where layers share them, nothing.
_CACHE_LAYERS = {"DynamicLayer", "DynamicSlidingWindowLayer", "DummyLayer"}
# transformers has a classifier for it, but with more than one linear layer between backbone and score.
_DEEP_HEADS = {"modernbert-decoder"}
_ADVICE = "use a decoder with a key-value cache, such as GPT-2, Llama or Qwen2"


@cache
def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    return list(inspect.signature(function).parameters.values())


def forward_names(model: PreTrainedModel) -> set[str]:
    """Names of the arguments of `forward`, those of the parents too if the rest goes to them; other names may be
    refused, or ignored in silence.
    """
    names: set[str] = set()
    for kind in type(model).__mro__:
        if "forward" in vars(kind):
            parameters = _parameters(vars(kind)["forward"])
            names |= {parameter.name for parameter in parameters}
            if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters):
                break
    return names


@contextmanager
def before_head(model: PreTrainedModel, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside of it `change` sees the states [B, L, d] on their way into the head that makes logits; the head gets
    what it returns. What an architecture does before (projections, scales) and after it (scales, caps) stays as it is.
    """

    def hook(head: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        return (change(given[0]), *given[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(hook, prepend=True)
    try:
        yield
    finally:
        handle.remove()


def state_width(model: PreTrainedModel) -> int:
    """d of the states that a head reads, for most architectures `config.hidden_size`."""
    return int(model.get_output_embeddings().get_parameter("weight").shape[1])


# ---- which models fit ----------------------------------------------------------------------------------------


def unfit(model: PreTrainedModel) -> str | None:
    """Why a model cannot be used, in one line with its type and a remedy; None if it can, or if it is a classifier.

    What its properties cannot tell is tried: a few tokens, decoded in a padded batch with a cache, must get the
    log-probs of one pass over the row alone. That takes four passes over at most 8 tokens.
    """
    if type(model).__name__.endswith("ForSequenceClassification"):
        return None
    try:
        reason = _other_kind(model.eval()) or _failed_trial(model)
    except Exception as error:  # an architecture fails in its own way
        reason = f"cannot decode a padded batch ({type(error).__name__}: {' '.join(str(error).split())[:100]})"
    return None if reason is None else f"a model of type {model.config.model_type} {reason}; {_ADVICE}"


def _other_kind(model: PreTrainedModel) -> str | None:
    if getattr(model.config, "is_encoder_decoder", False):
        return "is an encoder-decoder, which has no prompt and reply in one row"
    if model.get_output_embeddings() is None:
        return "as given here has no head that makes logits"
    if getattr(model, "_is_stateful", False):
        return "is recurrent or hybrid: padding and rows that end early would change its state"
    if "past_key_values" not in forward_names(model):
        return "has no key-value cache, so it would sample without what it has read"
    layers = {type(layer).__name__ for layer in DynamicCache(config=model.config).layers} - _CACHE_LAYERS
    if layers:
        return f"is hybrid or sparse: its cache holds more than keys and values ({', '.join(sorted(layers))})"
    backbone = AutoModel._model_mapping.get(type(model.config), None)
    if backbone is not type(model.base_model) or model.config.model_type in _DEEP_HEADS:
        return "has no way to a reward model, which is its backbone under one linear layer"
    return None


@torch.no_grad()
def _failed_trial(model: PreTrainedModel) -> str | None:
    vocabulary = len(model.get_input_embeddings().get_parameter("weight"))
    # Prompts of 1 and 4 tokens, each with a reply of 2; the first stands behind 3 columns of padding.
    ids = torch.arange(12, device=model.device).view(2, 6) % vocabulary
    (alone, other), decoded = _scored(model, ids[0, 3:]), _decoded(model, ids)
    spread = float(alone.max() - alone.min())
    if not torch.allclose(alone[:-1], other[:-1], rtol=0, atol=1e-4 * spread, equal_nan=True):
        return "reads later tokens, so it is no causal decoder"
    # Far above rounding, on a GPU too, and far below the effect of a wrong position or of padding that is read.
    tolerance = (0.005 if alone.dtype == torch.float32 else 0.05) * spread
    if not torch.allclose(decoded, alone, rtol=0, atol=tolerance, equal_nan=True):
        return "gives other log-probs with padding and a cache than in one pass, so sampling and scoring would differ"
    return None


def _scored(model: PreTrainedModel, row: Tensor) -> Tensor:
    """Logits [2, 3, V] in one pass over the row [3], and over it with another last token."""
    widths: list[int] = []

    def look(states: Tensor) -> Tensor:
        widths.append(states.shape[-1])
        return states

    rows = torch.stack([row, torch.cat([row[:-1], row[:1]])])
    with before_head(model, look):
        logits = model(inputs_embeds=model.get_input_embeddings()(rows), use_cache=False).logits
    if widths != [state_width(model)]:
        raise ValueError("its head does not make the logits from the states")
    return logits


def _decoded(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Logits [3, V] after the tokens of the first row, decoded beside the second, which ends before its last token."""
    mask, memory, steps = torch.ones_like(ids), DynamicCache(config=model.config), []
    mask[0, :3] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    for start, end, rows in ((0, 4, 2), (4, 5, 2), (5, 6, 1)):
        if rows == 1:
            memory.batch_select_indices(torch.tensor([0], device=model.device))
        part = ids[:rows, start:end], mask[:rows, :end], positions[:rows, start:end]
        steps.append(next_logits(model, *part, memory)[0])
    return torch.stack(steps)


def next_logits(model: PreTrainedModel, ids: Tensor, mask: Tensor, positions: Tensor, memory: DynamicCache) -> Tensor:
    """Logits [B, V] after the newest token.

    Args:
        ids: [B, L], what the cache does not hold yet.
        mask: [B, W] of all columns so far, False or 0 on padding.
        positions: [B, L] of `ids`; models that count them from the mask are not given any.
        memory: the cache, which grows.
    """
    options = {"position_ids": positions, "logits_to_keep": 1}
    known = {name: value for name, value in options.items() if name in forward_names(model)}
    output = model(ids, attention_mask=mask, past_key_values=memory, use_cache=True, **known)
    return output.logits[:, -1]


# ---- reward heads --------------------------------------------------------------------------------------------


def ensure_classifier(config: PreTrainedConfig) -> None:
    """Let `AutoModelForSequenceClassification` know a classifier for an architecture that transformers has none for:
    its backbone under one linear layer, `score`. It is known as long as the process lives.
    """
    known: Any = AutoModelForSequenceClassification._model_mapping
    backbones: Any = AutoModel._model_mapping
    if type(config) in known or type(config) not in backbones:
        return
    backbone = backbones[type(config)]
    name = backbone.__name__.removesuffix("Model") + "ForSequenceClassification"
    # The module is that of the backbone because transformers looks there for what an architecture can do.
    body = {
        "__module__": backbone.__module__,
        "config_class": type(config),
        "base_model_prefix": backbone.base_model_prefix,
    }
    kind = type(name, (GenericForSequenceClassification, backbone.__bases__[0]), body)
    AutoModelForSequenceClassification.register(type(config), kind, exist_ok=True)


def reward_head(model: PreTrainedModel) -> nn.Linear | None:
    """The linear layer with one output that stands alone on the backbone of a classifier."""
    heads = [part for part in model.children() if part is not model.base_model]
    if len(heads) == 1 and isinstance(heads[0], nn.Linear) and heads[0].out_features == 1:
        return heads[0]
    return None
