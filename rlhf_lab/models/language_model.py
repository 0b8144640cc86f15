"""A causal language model as a policy: load it, encode prompts, score responses.

Prompts are padded on the left and responses on the right, so that every response begins in the same column; a
scoring pass closes the gaps. Positions count real tokens, masks come from lengths, dropout is off in every pass
(models stay in eval mode, also while they learn), and prompt and response are tokenised apart.
Left out: quantised weights, several devices, encoder-decoders, anything that runs code from a checkpoint.
"""

import copy
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import transformers
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rlhf_lab.maths.tensors import check_shapes, length_mask
from rlhf_lab.records import Conversation
from rlhf_lab.training.checkpoints import new_folder

# For tokenizers that bring none. Line breaks are expressions, because the template engine drops a line break
# that follows a block.
PLAIN_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | capitalize + ':\n' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:\n' }}{% endif %}"
)
SIZES = ("tiny", "small", "medium")
# Where the sizes live, best place first: a checkout, a wheel, what `pretrain` writes.
_ROOTS = (Path(__file__).parents[2] / "data", Path(__file__).parents[1] / "data", Path("runs"))
MODEL_FOLDERS = {size: [root / ("model" if size == "tiny" else f"model-{size}") for root in _ROOTS] for size in SIZES}
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_NO_PICKLE = "pickled weights are refused, because loading them can run code"


class ModelError(ValueError):
    """A model cannot be loaded or used; the message says why and what to do."""


@dataclass
class LanguageModel:
    """A causal language model with its tokenizer.

    Attributes:
        model: in eval mode; its weights are float32.
        tokenizer: with a chat template.
        end_id: token that ends a reply.
        pad_id: token under the mask; any valid id serves, and without a pad token it is the end.
        precision: torch.float32, or torch.bfloat16 for the forward passes (weights and log-probs stay
            float32).

    Chapter 07.
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
        """Context in tokens, prompt and response together; a million for a model without a limit."""
        return max_length(self.model)

    def copy(self) -> "LanguageModel":
        """An independent copy of the weights; the tokenizer is shared."""
        return LanguageModel(copy.deepcopy(self.model), self.tokenizer, self.end_id, self.pad_id, self.precision)

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
        return autocast(self.model, self.precision)


def autocast(model: PreTrainedModel, precision: torch.dtype) -> torch.autocast:
    """Context that runs the matrix products of a pass in `precision`; see `LanguageModel.autocast`."""
    return torch.autocast(model.device.type, torch.bfloat16, enabled=precision == torch.bfloat16)


def max_length(model: PreTrainedModel) -> int:
    """Context of a model in tokens; see `LanguageModel.max_length`."""
    return int(getattr(model.config.get_text_config(), "max_position_embeddings", None) or 10**6)


def save_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: str | Path, half: bool = False
) -> None:
    """Save any model of the house with its tokenizer; see `LanguageModel.save`."""
    if half:
        model = copy.deepcopy(model).half()
    with new_folder(folder) as temporary, _no_progress_bar():
        try:
            model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
        except SafetensorError as error:  # what a full disk becomes; new_folder explains OSErrors
            raise OSError(str(error)) from error


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
    """Make a LanguageModel of a model and a tokenizer in memory: sets a template and the ids that are
    missing.

    Raises:
        ModelError: the tokenizer has no token that ends a text or more tokens than the model; unknown
            precision.
    """
    if precision not in (torch.float32, torch.bfloat16):
        raise ModelError(f"precision is {precision}; expected torch.float32 or torch.bfloat16")
    rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        raise ModelError(f"the tokenizer has {len(tokenizer)} tokens, the model {rows}; use the one it was made with")
    if tokenizer.eos_token_id is None:
        raise ModelError("the tokenizer has no eos token, so a reply could never end; set tokenizer.eos_token")
    if not tokenizer.chat_template:
        tokenizer.chat_template = PLAIN_CHAT_TEMPLATE
    pad_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return LanguageModel(model.eval(), tokenizer, tokenizer.eos_token_id, pad_id, precision)


def load_language_model(
    source: str | Path = "tiny", device: str | torch.device = "cpu", precision: torch.dtype = torch.float32
) -> LanguageModel:
    """Load a causal language model in the Hugging Face layout.

    Args:
        source: "tiny" (shipped), "small" or "medium" (made by `python -m rlhf_lab pretrain`), a folder, or a
            name on the hub.
        device: "cpu", "cuda", ...
        precision: of the forward passes, torch.float32 or torch.bfloat16; the weights are float32 always.

    Raises:
        ModelError: one line with the reason and a remedy.

    Example:
        >>> lm = load_language_model("tiny")
        >>> lm.tokenizer.decode([lm.end_id])
        '<|end|>'

    Chapter 07.
    """
    folder = find_model(source)
    model = load_model(folder, AutoModelForCausalLM, device)
    return wrap_model(model, load_tokenizer(folder), precision)


def find_model(source: str | Path) -> Path:
    """The local folder of a size, a folder or a name on the hub, which is downloaded on first use.

    Raises:
        ModelError: there is none; says how to make or get it.
    """
    if str(source) in SIZES:
        found = [folder for folder in MODEL_FOLDERS[str(source)] if (folder / "config.json").is_file()]
        if not found:
            raise ModelError(
                f"there is no {source} checkpoint yet; make it with: python run.py pretrain --size {source}"
            )
        return found[0]
    folder = Path(os.path.expanduser(source))  # unlike Path.expanduser it lets a strange ~name be
    if (folder / "config.json").is_file():
        return folder
    if folder.exists():
        raise ModelError(f"{source} has no config.json; expected a folder in the Hugging Face layout")
    nested = folder.parent != Path(".") and folder.parent.exists()  # then a path was meant, not a name
    if isinstance(source, Path) or nested or not _HUB_NAME.fullmatch(source):
        raise ModelError(f"there is no folder {source}; give a model folder, a name on the hub, or one of {SIZES}")
    return _from_hub(source)


def _from_hub(name: str) -> Path:
    wanted = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
    try:
        # The patterns skip copies of the weights in other formats, most of them in subfolders.
        folder = snapshot_download(name, allow_patterns=wanted, ignore_patterns=["*/*", "consolidated*"])
    except Exception as error:  # network, hub, authorisation, disk: each client version has its own types
        raise ModelError(
            f"{name} is no local folder and cannot be had from the hub ({_first_line(error)}); "
            "check the name and the network, or give a folder"
        ) from error
    return Path(folder)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def load_model(folder: Path, kind: type, device: str | torch.device) -> PreTrainedModel:
    """Load weights of `kind`, an Auto class of transformers, as float32 and in eval mode.

    Raises:
        ModelError: config or weights that are missing, damaged, pickled or of another kind; no such device.
    """
    config = _load_config(folder, kind)
    if not any(folder.glob("*.safetensors")):
        raise ModelError(f"{folder} has no *.safetensors ({_NO_PICKLE}); save the model with save_pretrained")
    try:
        with _no_progress_bar():
            model, info = kind.from_pretrained(
                folder, config=config, dtype=torch.float32, use_safetensors=True, output_loading_info=True
            )
    except Exception as error:  # a damaged file raises whatever its reader raises
        raise ModelError(
            f"cannot load the weights in {folder} ({_first_line(error)}); copy or make them again"
        ) from error
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise ModelError(f"{folder} lacks {len(missing)} weights ({missing[0]}, ...); copy or make it again")
    try:
        return model.to(device).eval()
    except (AssertionError, RuntimeError) as error:  # a torch without this backend asserts
        raise ModelError(f"cannot use the device {device} ({_first_line(error)}); use the device cpu") from error


def _load_config(folder: Path, kind: type) -> PreTrainedConfig:
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:
        raise ModelError(
            f"cannot use the config.json in {folder} ({_first_line(error)}); copy or make it again"
        ) from error
    wanted = kind._model_mapping[type(config)].__name__ if type(config) in kind._model_mapping else None
    found = config.architectures or [wanted or config.model_type]
    if wanted not in found:
        task = {AutoModelForCausalLM: "a causal language model"}.get(kind, "a sequence classifier")
        raise ModelError(f"{folder} is a {found[0]}; expected {task}{f', {wanted}' if wanted else ''}")
    return config


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a model's folder.

    Raises:
        ModelError: missing or damaged.
    """
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")):
        raise ModelError(f"{folder} has no tokenizer; save one there with tokenizer.save_pretrained")
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:
        raise ModelError(f"cannot load the tokenizer in {folder} ({_first_line(error)}); copy it again") from error


def encode_prompts(
    lm: LanguageModel, conversations: Sequence[Conversation], max_new_tokens: int = 0
) -> list[list[int]]:
    """Token ids of each prompt through the chat template, up to where the assistant begins to write.

    Special tokens written out in a message become those tokens: whoever takes text from strangers must strip
        them.

    Args:
        lm: gives tokenizer, template and context.
        conversations: B prompts.
        max_new_tokens: room that each prompt must leave for its reply.

    Returns:
        B lists of token ids.

    Raises:
        ValueError: a prompt that leaves no room for `max_new_tokens`, or that the template does not allow;
            names the row and the lengths.

    Chapter 07.
    """
    texts = [_apply_template(lm, row, conversation) for row, conversation in enumerate(conversations)]
    rows = lm.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    room = lm.max_length - max_new_tokens
    for i, row in enumerate(rows):
        if len(row) > room:
            raise ValueError(
                f"prompt {i} has {len(row)} tokens; expected at most {room} (context {lm.max_length} less "
                f"{max_new_tokens} for the reply). Shorten or leave out the prompt: {texts[i]!r:.60}..."
            )
    return rows


def _apply_template(lm: LanguageModel, row: int, conversation: Conversation) -> str:
    messages = [{"role": m.role, "content": m.content} for m in conversation]
    try:
        return lm.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # templates raise what they like, for example on a system message
        raise ValueError(
            f"prompt {row} does not fit the chat template ({_first_line(error)}); change its messages"
        ) from error


def encode_responses(lm: LanguageModel, texts: Sequence[str], max_tokens: int | None = None) -> list[list[int]]:
    """Token ids of each response, tokenised apart from its prompt, with the end token appended.

    Tokenised together with the prompt, letters of both could merge into one token, which sampling never
    produces.

    Args:
        lm: gives the tokenizer.
        texts: B responses.
        max_tokens: rows are cut there, the end token included; a cut row has no end token.

    Returns:
        B lists of token ids.

    Chapter 07.
    """
    rows = lm.tokenizer(list(texts), add_special_tokens=False)["input_ids"] if len(texts) else []
    return [(row + [lm.end_id])[:max_tokens] for row in rows]


def decode_responses(lm: LanguageModel, response_ids: Tensor, mask: Tensor) -> list[str]:
    """The text of each response [B, T] without its end token; other special tokens stay visible."""
    rows = [ids[keep].tolist() for ids, keep in zip(response_ids.cpu(), mask.cpu(), strict=True)]
    rows = [row[:-1] if row and row[-1] == lm.end_id else row for row in rows]
    return lm.tokenizer.batch_decode(rows, skip_special_tokens=False, clean_up_tokenization_spaces=False)


@dataclass(frozen=True)
class TokenBatch:
    """B prompts and responses as tokens, on one device; `make_batch` makes it.

    Attributes:
        prompt_ids: [B, P], padded on the left.
        prompt_mask: [B, P] bool, True on real tokens.
        response_ids: [B, T], padded on the right.
        mask: [B, T] bool, True on real tokens, the end token included.

    Chapter 07.
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
        return TokenBatch(*(x.to(device) for x in (self.prompt_ids, self.prompt_mask, self.response_ids, self.mask)))


def make_batch(
    prompt_rows: Sequence[Sequence[int]],
    response_rows: Sequence[Sequence[int]],
    pad_id: int,
    device: str | torch.device = "cpu",
) -> TokenBatch:
    """Pad prompts on the left and responses on the right; the masks come from the lengths.

    Args:
        prompt_rows: B lists of at least one token id.
        response_rows: B lists of token ids; an empty one is a row without real tokens.
        pad_id: what stands under the masks.
        device: where the tensors go.

    Raises:
        ValueError: not as many prompts as responses, none at all, or a prompt without tokens.

    Example:
        >>> batch = make_batch([[5], [6, 7]], [[8, 9], [9]], pad_id=0)
        >>> batch.prompt_ids.tolist(), batch.response_ids.tolist(), batch.mask.tolist()
        ([[0, 5], [6, 7]], [[8, 9], [9, 0]], [[True, True], [True, False]])

    Chapter 07.
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
    response_ids = torch.tensor([list(row) + [pad_id] * (length - len(row)) for row in response_rows], dtype=torch.long)
    return TokenBatch(
        prompt_ids,
        length_mask(prompt_lengths, width).flip(1),
        response_ids,
        length_mask(response_lengths, length),
    ).to(device)


class ResponseForward(NamedTuple):
    """What one pass over prompts and responses gives.

    Attributes:
        logits: [B, T, V] float32; logits[b, t] predict response token t.
        hidden: [B, T + 1, d], in the precision of the pass; hidden[b, t] is the state before response token
            t, and hidden[b, n] of a row of n tokens the state after its last. Later ones mean nothing.
    """

    logits: Tensor
    hidden: Tensor


def packed_inputs(model: PreTrainedModel, batch: TokenBatch) -> tuple[dict[str, Tensor | bool], Tensor]:
    """The arguments of a pass over rows of prompt and response without a gap, [B, W], and where the states are.

    All padding stands on the right, where the causal mask hides it: no attention mask, positions from 0 on, and
    W is the longest row. A batch padded on both sides would be wider by half, and attention slower.

    Returns:
        The arguments, and the columns [B, T + 1] of the states before each response token and after the last.

    Raises:
        ValueError: a row is longer than the context; names it and the lengths.
    """
    before, lengths = batch.prompt_lengths, batch.prompt_lengths + batch.response_lengths
    width = int(lengths.max())
    if width > max_length(model):
        raise ValueError(_too_long(model, batch))
    ids = torch.cat([batch.prompt_ids, batch.response_ids], dim=1)
    gaps = batch.prompt_ids.shape[1] - before
    columns = gaps[:, None] + torch.arange(width, device=ids.device)
    ids = ids.gather(1, columns.clamp(max=ids.shape[1] - 1))
    states = before[:, None] - 1 + torch.arange(batch.mask.shape[1] + 1, device=ids.device)
    # Embeddings instead of ids, because with ids transformers warns of padding that the causal mask hides.
    return {"inputs_embeds": model.get_input_embeddings()(ids), "use_cache": False}, states.clamp(max=width - 1)


def _too_long(model: PreTrainedModel, batch: TokenBatch) -> str:
    row = int((batch.prompt_lengths + batch.response_lengths).argmax())
    return (
        f"row {row} has {int(batch.prompt_lengths[row])} prompt and {int(batch.response_lengths[row])} response "
        f"tokens; expected at most {max_length(model)} together; shorten it or leave it out"
    )


def _pick(states: Tensor, columns: Tensor) -> Tensor:
    """states[b, columns[b, t]] as [B, T + 1, d]."""
    return states.gather(1, columns[..., None].expand(-1, -1, states.shape[-1]))


def response_states(model: PreTrainedModel, batch: TokenBatch) -> Tensor:
    """Hidden states [B, T + 1, d] of the backbone from the last prompt token on; see `ResponseForward`."""
    inputs, columns = packed_inputs(model, batch)
    return _pick(model.base_model(**inputs).last_hidden_state, columns)


def forward(lm: LanguageModel, batch: TokenBatch) -> ResponseForward:
    """One pass over prompts and responses, with logits at the response positions only; gradient flows.

    Args:
        lm: any causal language model.
        batch: on the device of `lm`.

    Returns:
        ResponseForward. Neither padding nor the other rows change a real position, up to rounding.

    Raises:
        ValueError: a row is longer than the context; names it and the lengths.

    Example:
        >>> lm = load_language_model("tiny")
        >>> output = forward(lm, make_batch([[5], [6, 7]], [[8, 9, 10], [9]], lm.pad_id))
        >>> output.logits.shape == (2, 3, len(lm.tokenizer)), list(output.hidden.shape)[:2]
        (True, [2, 4])

    Chapter 07.
    """
    inputs, columns = packed_inputs(lm.model, batch)
    picked = []

    def pick_responses(module, given, output):
        picked.append(_pick(output.last_hidden_state, columns))
        output.last_hidden_state = picked[0][:, :-1]
        return output

    # The model's own head makes the logits, because some architectures scale or cap them after the
    # projection; so the states are picked on their way there.
    hook = lm.model.base_model.register_forward_hook(pick_responses)
    try:
        with lm.autocast():
            logits = lm.model(**inputs).logits
    finally:
        hook.remove()
    return ResponseForward(logits.float(), picked[0])


def token_log_probs(logits: Tensor, response_ids: Tensor, mask: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probs of the response tokens under softmax(logits / temperature).

        log_probs[b, t] = log softmax(logits[b, t] / temperature)[response_ids[b, t]]

    Args:
        logits: [B, T, V] float32.
        response_ids: [B, T], any valid ids under the mask.
        mask: [B, T] bool.
        temperature: of the sampling law, above 0.

    Returns:
        [B, T] nats; exactly 0 outside the mask.

    Raises:
        ValueError: shapes differ, or temperature is not above 0.

    Example:
        >>> logits, ids = torch.tensor([[[0.0, 0.0], [9.0, 0.0]]]), torch.tensor([[1, 0]])
        >>> token_log_probs(logits, ids, torch.tensor([[True, False]]))
        tensor([[-0.6931,  0.0000]])

    Chapter 07.
    """
    check_shapes(response_ids=response_ids, mask=mask, logits=logits[..., 0])
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; expected a number above 0 (greedy has no log-probs)")
    if temperature != 1.0:
        logits = logits / temperature
    # log_softmax and gather take half the time of logsumexp, forward and backward together.
    log_probs = torch.log_softmax(logits, dim=-1).gather(-1, response_ids[..., None]).squeeze(-1)
    return log_probs.masked_fill(~mask, 0.0)


@torch.no_grad()
def response_log_probs(lm: LanguageModel, batch: TokenBatch, temperature: float = 1.0, micro_batch: int = 64) -> Tensor:
    """Log-probs of the responses without gradient, in micro-batches of rows of similar length.

    Args:
        lm: any causal language model.
        batch: on the device of `lm`.
        temperature: of the sampling law, above 0.
        micro_batch: most rows in one pass.

    Returns:
        [B, T] nats; exactly 0 outside the mask.

    Raises:
        ValueError: as `forward` and `token_log_probs`.

    Example:
        >>> lm = load_language_model("tiny")
        >>> response_log_probs(lm, make_batch([[5], [6, 7]], [[8, 9], [9]], lm.pad_id))[1, 1]
        tensor(0.)

    Chapter 07.
    """
    result = torch.zeros(batch.mask.shape, device=batch.mask.device)
    for rows in length_groups(batch, micro_batch):
        part = batch.select(rows)
        log_probs = token_log_probs(forward(lm, part).logits, part.response_ids, part.mask, temperature)
        result[rows, : log_probs.shape[1]] = log_probs
    return result


def length_groups(batch: TokenBatch, size: int) -> tuple[Tensor, ...]:
    """Row indices in even groups of at most `size`, rows of similar length (prompt and response) together."""
    order = (batch.prompt_lengths + batch.response_lengths).argsort(stable=True)
    return order.tensor_split(-(-len(order) // size))


class ValueHead(nn.Linear):
    """Value of each state from the policy's hidden states: values[...] = weight . hidden[..., :] + bias.

    Weight and bias are 0 at the start, so the first advantages are the returns.

    Example:
        >>> ValueHead(4)(torch.ones(2, 3, 4)).shape
        torch.Size([2, 3])

    Chapter 10.
    """

    def __init__(self, hidden_size: int):
        super().__init__(hidden_size, 1)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """Values in the reward's units, float32."""
        return super().forward(hidden.float()).squeeze(-1)
