"""A causal language model with its tokenizer: load it, wrap it, save it, in the Hugging Face layout.

Left out: quantised weights, several devices, encoder-decoders, anything that runs code from a checkpoint.
"""

import copy
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rlhf_lab.training.files import new_folder

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
AutoModelKind = type[AutoModelForCausalLM] | type[AutoModelForSequenceClassification]


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

    def autocast(self) -> torch.autocast:
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
    rows = len(model.get_input_embeddings().get_parameter("weight"))
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
            f"{name} is no local folder and cannot be had from the hub ({first_line(error)}); "
            "check the name and the network, or give a folder"
        ) from error
    return Path(folder)


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def load_model(folder: Path, kind: AutoModelKind, device: str | torch.device) -> PreTrainedModel:
    """Load weights of `kind`, an Auto class of transformers, as float32 and in eval mode.

    Raises:
        ModelError: config or weights that are missing, damaged, pickled or of another kind; no such device.
    """
    config = _load_config(folder, kind)
    if not any(folder.glob("*.safetensors")):
        raise ModelError(f"{folder} has no *.safetensors ({_NO_PICKLE}); save the model with save_pretrained")
    try:
        with _no_progress_bar():
            loaded: Any = kind.from_pretrained(  # a pair, which the declared type does not know
                folder, config=config, dtype=torch.float32, use_safetensors=True, output_loading_info=True
            )
            model, info = loaded
    except Exception as error:  # a damaged file raises whatever its reader raises
        raise ModelError(
            f"cannot load the weights in {folder} ({first_line(error)}); copy or make them again"
        ) from error
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise ModelError(f"{folder} lacks {len(missing)} weights ({missing[0]}, ...); copy or make it again")
    try:
        return model.to(device).eval()
    except (AssertionError, RuntimeError) as error:  # a torch without this backend asserts
        raise ModelError(f"cannot use the device {device} ({first_line(error)}); use the device cpu") from error


def _load_config(folder: Path, kind: AutoModelKind) -> PreTrainedConfig:
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:
        raise ModelError(
            f"cannot use the config.json in {folder} ({first_line(error)}); copy or make it again"
        ) from error
    classes: Any = kind._model_mapping
    wanted = classes[type(config)].__name__ if type(config) in classes else None
    found = config.architectures or [wanted or config.model_type]
    if wanted not in found:
        task = "a causal language model" if kind is AutoModelForCausalLM else "a sequence classifier"
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
        raise ModelError(f"cannot load the tokenizer in {folder} ({first_line(error)}); copy it again") from error
