"""A causal language model as a policy: load it, encode prompts, score responses.

Prompts are padded on the left and responses on the right, so that every response begins in the same column. Positions
come from the mask, masks from lengths, dropout is off in every pass, and prompt and response are tokenised apart.
Left out: quantised weights, several devices, anything that runs code from a checkpoint.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import transformers
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rlhf_lab.checkpoints import new_folder
from rlhf_lab.feedback.records import Conversation
from rlhf_lab.tensors import length_mask

PLAIN_CHAT_TEMPLATE = (  # for tokenizers that bring none
    "{% for message in messages %}{{ message['role'] | capitalize }}:\n{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}\n\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:\n{% endif %}"
)
SIZES = ("tiny", "small", "medium")
MODEL_FOLDERS = {  # where the sizes live, best place first
    size: [root / ("model" if size == "tiny" else f"model-{size}") for root in (
        Path(__file__).parents[1] / "data", Path(__file__).parent / "data", Path("runs"))]
    for size in SIZES
}  # fmt: skip


class ModelError(ValueError):
    """A model cannot be loaded or used; the message says why and what to do."""


@dataclass
class LanguageModel:
    """A causal language model with its tokenizer.

    Attributes:
        model: in eval mode; its weights are float32.
        tokenizer: with a chat template.
        end_id: token that ends a reply.
        pad_id: token under the mask; any valid id serves.
        precision: torch.float32, or torch.bfloat16 for the forward passes (weights and log-probs stay float32).
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    end_id: int
    pad_id: int
    precision: torch.dtype = torch.float32

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    @property
    def max_length(self) -> int:
        """Context in tokens, prompt and response together."""
        return int(getattr(self.model.config, "max_position_embeddings", None) or 10**6)

    def copy(self) -> "LanguageModel":
        """An independent copy of the weights; the tokenizer is shared."""
        return LanguageModel(
            copy.deepcopy(self.model), self.tokenizer, self.end_id, self.pad_id, self.precision
        )

    def save(self, folder: str | Path, half: bool = False) -> None:
        """Write weights (safetensors) and tokenizer in the Hugging Face layout, all or nothing.

        Args:
            folder: its final name; what was there is replaced.
            half: store float16, half the size; loading gives float32 again.

        Raises:
            SaveError: disk full, read-only folder, ...
        """
        save_model(self.model, self.tokenizer, folder, half)

    def autocast(self):
        """Context of the forward passes: bfloat16 arithmetic if `precision` says so."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == torch.bfloat16)


def save_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: str | Path, half: bool = False
) -> None:
    """Save any model of the house with its tokenizer; see `LanguageModel.save`."""
    if half:
        model = copy.deepcopy(model).half()
    with new_folder(folder) as temporary, _no_progress_bar():
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Loading takes less than a second; a bar would only fill notebooks."""
    shown = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers.utils.logging.enable_progress_bar()


def wrap_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, precision: torch.dtype = torch.float32
) -> LanguageModel:
    """Make a LanguageModel of a model and a tokenizer in memory: sets a template and the ids that are missing.

    Raises:
        ModelError: the tokenizer has no token that ends a text.
    """
    if tokenizer.eos_token_id is None:
        raise ModelError(
            "the tokenizer has no eos token, so a reply could never end; set tokenizer.eos_token"
        )
    if not tokenizer.chat_template:
        tokenizer.chat_template = PLAIN_CHAT_TEMPLATE
    pad_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return LanguageModel(model.eval(), tokenizer, tokenizer.eos_token_id, pad_id, precision)


def load_language_model(
    source: str | Path = "tiny", device: str | torch.device = "cpu", precision: torch.dtype = torch.float32
) -> LanguageModel:
    """Load a causal language model in the Hugging Face layout.

    Args:
        source: "tiny" (shipped), "small" or "medium" (made by `python -m rlhf_lab pretrain`), a folder, or a name on
            the hub.
        device: "cpu", "cuda", ...
        precision: of the forward passes, float32 or bfloat16.

    Raises:
        ModelError: one line with the reason and a remedy.

    >>> lm = load_language_model("tiny")
    >>> lm.tokenizer.decode([lm.end_id])
    '<|end|>'
    """
    folder = _find(source)
    model = load_model(folder, AutoModelForCausalLM, device)
    return wrap_model(model, load_tokenizer(folder), precision)


def _find(source: str | Path) -> str:
    if str(source) in SIZES:
        for folder in MODEL_FOLDERS[str(source)]:
            if (folder / "config.json").is_file():
                return str(folder)
        raise ModelError(
            f"there is no {source} checkpoint yet; make it with: python -m rlhf_lab pretrain --size {source}"
        )
    if Path(source).exists() and not (Path(source) / "config.json").is_file():
        raise ModelError(f"{source} holds no config.json; expected a folder in the Hugging Face layout")
    return str(source)


def load_model(folder: str, kind: type, device: str | torch.device) -> PreTrainedModel:
    """Load weights of `kind` as float32 and in eval mode; the message of a ModelError says what was wrong."""
    local = Path(folder).is_dir()
    if local and not any(Path(folder).glob("*.safetensors")):
        found = [path.name for path in Path(folder).glob("*.bin")]
        reason = f"only {found[0]}, a pickle that could run code" if found else "no weights"
        raise ModelError(
            f"{folder} holds {reason}; expected model.safetensors (save it with safe_serialization)"
        )
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        if kind is AutoModelForCausalLM and type(config) not in AutoModelForCausalLM._model_mapping:
            raise ModelError(f"{folder} is a {config.model_type} model; expected a causal language model")
        with _no_progress_bar():
            model, info = kind.from_pretrained(
                folder,
                config=config,
                dtype=torch.float32,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except ModelError:
        raise
    except Exception as error:  # a damaged file raises whatever its reader raises
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        where = "copy or make it again" if local else "check the name, the network, or give a local folder"
        raise ModelError(f"cannot load a model from {folder}: {reason}; {where}") from error
    if info["missing_keys"]:
        raise ModelError(
            f"{folder} lacks weights ({sorted(info['missing_keys'])[0]}, ...); copy or make it again"
        )
    return model.to(device).eval()


def load_tokenizer(folder: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint.

    Raises:
        ModelError: missing or damaged.
    """
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:
        raise ModelError(
            f"cannot load a tokenizer from {folder}: {str(error).splitlines()[0][:200]}; save one beside the model"
        ) from error


# -- text to tokens and back ----------------------------------------------------------------------------------------
def encode_prompts(
    lm: LanguageModel, conversations: Sequence[Conversation], max_new_tokens: int = 0
) -> list[list[int]]:
    """Token ids of each prompt through the chat template, up to where the assistant begins to write.

    Raises:
        ValueError: a prompt that leaves no room for `max_new_tokens`; names the row and the lengths.
    """
    texts = [
        lm.tokenizer.apply_chat_template(
            [{"role": m.role, "content": m.content} for m in conversation],
            tokenize=False,
            add_generation_prompt=True,
        )
        for conversation in conversations
    ]
    rows = lm.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    room = lm.max_length - max_new_tokens
    for i, row in enumerate(rows):
        if len(row) > room:
            raise ValueError(
                f"prompt {i} has {len(row)} tokens; expected at most {room} (context {lm.max_length} less "
                f"{max_new_tokens} for the reply). Shorten or leave out the prompt: {texts[i]!r:.60}..."
            )
    return rows


def encode_responses(
    lm: LanguageModel, texts: Sequence[str], max_tokens: int | None = None
) -> list[list[int]]:
    """Token ids of each response, tokenised apart from its prompt, the end token appended; cut at `max_tokens`."""
    rows = lm.tokenizer(list(texts), add_special_tokens=False)["input_ids"] if len(texts) else []
    return [(row + [lm.end_id])[:max_tokens] for row in rows]


def decode_responses(lm: LanguageModel, response_ids: Tensor, mask: Tensor) -> list[str]:
    """The text of each response [B, T] without its end token; other special tokens stay visible."""
    rows = [ids[keep].tolist() for ids, keep in zip(response_ids.cpu(), mask.cpu(), strict=True)]
    rows = [row[:-1] if row and row[-1] == lm.end_id else row for row in rows]
    return lm.tokenizer.batch_decode(rows, skip_special_tokens=False, clean_up_tokenization_spaces=False)


@dataclass(frozen=True)
class TokenBatch:
    """B prompts and responses as tokens.

    Attributes:
        prompt_ids: [B, P], padded on the left.
        prompt_mask: [B, P] bool, True on real tokens.
        response_ids: [B, T], padded on the right.
        mask: [B, T] bool, True on real tokens, the end token included.
    """

    prompt_ids: Tensor
    prompt_mask: Tensor
    response_ids: Tensor
    mask: Tensor

    def __len__(self) -> int:
        return len(self.mask)

    @property
    def prompt_lengths(self) -> Tensor:
        """[B] real tokens of each prompt."""
        return self.prompt_mask.sum(1)

    @property
    def response_lengths(self) -> Tensor:
        """[B] real tokens of each response."""
        return self.mask.sum(1)

    def select(self, rows: Tensor) -> "TokenBatch":
        """The given rows, trimmed to the longest prompt and response among them."""
        prompt, response = int(self.prompt_lengths[rows].max()), int(self.response_lengths[rows].max())
        start = self.prompt_ids.shape[1] - prompt
        return TokenBatch(
            self.prompt_ids[rows, start:], self.prompt_mask[rows, start:],
            self.response_ids[rows, :response], self.mask[rows, :response],
        )  # fmt: skip

    def to(self, device: str | torch.device) -> "TokenBatch":
        """The same batch on another device."""
        return TokenBatch(
            *(x.to(device) for x in (self.prompt_ids, self.prompt_mask, self.response_ids, self.mask))
        )


def make_batch(
    prompt_rows: Sequence[Sequence[int]],
    response_rows: Sequence[Sequence[int]],
    pad_id: int,
    device: str | torch.device = "cpu",
) -> TokenBatch:
    """Pad prompts on the left and responses on the right; the masks come from the lengths.

    >>> batch = make_batch([[5], [6, 7]], [[8, 9], [9]], pad_id=0)
    >>> batch.prompt_ids.tolist(), batch.response_ids.tolist(), batch.mask.tolist()
    ([[0, 5], [6, 7]], [[8, 9], [9, 0]], [[True, True], [True, False]])
    """
    if not len(prompt_rows) or len(prompt_rows) != len(response_rows):
        raise ValueError(
            f"got {len(prompt_rows)} prompts and {len(response_rows)} responses; expected as many, at least 1"
        )
    if not all(map(len, prompt_rows)):
        raise ValueError(
            "a prompt has no tokens; expected at least one, from which the first response token is predicted"
        )
    prompt_lengths, response_lengths = (
        torch.tensor([len(row) for row in rows]) for rows in (prompt_rows, response_rows)
    )
    width, length = int(prompt_lengths.max()), int(response_lengths.max())
    prompt_ids = torch.tensor([[pad_id] * (width - len(row)) + list(row) for row in prompt_rows])
    response_ids = torch.tensor(
        [list(row) + [pad_id] * (length - len(row)) for row in response_rows], dtype=torch.long
    )
    return TokenBatch(
        prompt_ids,
        length_mask(prompt_lengths, width).flip(1),
        response_ids,
        length_mask(response_lengths, length),
    ).to(device)


# -- scoring --------------------------------------------------------------------------------------------------------
class ResponseForward(NamedTuple):
    """logits [B, T, V] float32 that predict each response token, and hidden [B, T + 1, d].

    hidden[b, t] is the state before token t; hidden[b, n] of a row of n tokens is the state after its last.
    """

    logits: Tensor
    hidden: Tensor


def response_states(model: PreTrainedModel, batch: TokenBatch) -> Tensor:
    """Hidden states [B, T + 1, d] of the backbone from the last prompt token on."""
    ids = torch.cat([batch.prompt_ids, batch.response_ids], dim=1)
    inputs = {}
    if not batch.prompt_mask.all():  # without left padding the causal mask hides the padding on the right
        mask = torch.cat([batch.prompt_mask, batch.mask], dim=1)
        inputs = {"attention_mask": mask, "position_ids": (mask.long().cumsum(1) - 1).clamp(min=0)}
    # Embeddings instead of ids, because with ids transformers warns of padding that the causal mask hides.
    embedded = model.get_input_embeddings()(ids)
    states = model.base_model(inputs_embeds=embedded, use_cache=False, **inputs).last_hidden_state
    return states[:, batch.prompt_ids.shape[1] - 1 :]


def forward(lm: LanguageModel, batch: TokenBatch) -> ResponseForward:
    """One pass over prompts and responses; logits at response positions only."""
    with lm.autocast():
        hidden = response_states(lm.model, batch)
        logits = lm.model.get_output_embeddings()(hidden[:, :-1])
    scale = getattr(lm.model.config, "logit_scale", None)
    cap = getattr(lm.model.config, "final_logit_softcapping", None)
    logits = logits.float() * scale if scale else logits.float()
    return ResponseForward(cap * torch.tanh(logits / cap) if cap else logits, hidden)


def token_log_probs(logits: Tensor, response_ids: Tensor, mask: Tensor, temperature: float = 1.0) -> Tensor:
    """log softmax(logits / temperature) of the response tokens, [B, T] in nats; exactly 0 outside the mask.

    Args:
        logits: [B, T, V] float32.
        response_ids: [B, T].
        mask: [B, T] bool.
        temperature: of the sampling law, above 0.
    """
    chosen = logits.gather(-1, response_ids[..., None]).squeeze(-1) / temperature
    return (chosen - torch.logsumexp(logits / temperature, dim=-1)).masked_fill(~mask, 0.0)


@torch.no_grad()
def response_log_probs(
    lm: LanguageModel, batch: TokenBatch, temperature: float = 1.0, micro_batch: int = 64
) -> Tensor:
    """Log-probs [B, T] of the responses, without gradient, in micro-batches of similar length."""
    result = torch.zeros(batch.mask.shape, device=batch.mask.device)
    for rows in length_groups(batch, micro_batch):
        part = batch.select(rows)
        log_probs = token_log_probs(forward(lm, part).logits, part.response_ids, part.mask, temperature)
        result[rows, : log_probs.shape[1]] = log_probs
    return result


def length_groups(batch: TokenBatch, size: int) -> tuple[Tensor, ...]:
    """Row indices in groups of at most `size`, rows of similar prompt and response length together."""
    order = (batch.prompt_lengths * (batch.mask.shape[1] + 1) + batch.response_lengths).argsort(stable=True)
    return order.split(size)


class ValueHead(nn.Linear):
    """Value of each state from the policy's hidden states: [..., d] -> [...], 0 at the start."""

    def __init__(self, hidden_size: int):
        super().__init__(hidden_size, 1)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """Values in the reward's units, float32."""
        return super().forward(hidden.float()).squeeze(-1)
