"""A causal language model with its tokenizer: load it, wrap it, save it, in the Hugging Face layout.

Left out: quantised weights, several devices, encoder-decoders, anything that runs code from a checkpoint.
"""

import copy
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
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

from rlhf_lab.models.architectures import unfit
from rlhf_lab.models.foreign import (
    ModelError as ModelError,  # users know it from here
    check_files,
    check_settings,
    config_error,
    in_one_line,
    plain_chat_template,
    render_chat,
    use_own_attention,
)
from rlhf_lab.records import Conversation, Message
from rlhf_lab.training.folders import MARK, changed_file, new_folder

SIZES = ("tiny", "small", "medium")
# Where the sizes live, best place first: a checkout, a wheel, what `pretrain` writes. That is the checkout's own folder
# wherever a notebook or a script runs; without a checkout it is one in the working folder.
_CHECKOUT = Path(__file__).parents[2]
RUNS = (_CHECKOUT if (_CHECKOUT / "pyproject.toml").is_file() else Path()) / "runs"
_ROOTS = (_CHECKOUT / "data", Path(__file__).parents[1] / "data", RUNS)
MODEL_FOLDERS = {size: [root / ("model" if size == "tiny" else f"model-{size}") for root in _ROOTS] for size in SIZES}
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_NO_PICKLE = "pickled weights are refused, because loading them can run code"
AutoModelKind = type[AutoModelForCausalLM] | type[AutoModelForSequenceClassification]


@dataclass
class LanguageModel:
    """A causal language model with its tokenizer.

    Attributes:
        model: in eval mode; its weights are float32.
        tokenizer: with a chat template.
        end_id: token that ends a reply, as the chat template ends an assistant's turn; see `end_of_turn`.
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
            folder: its final name; a model that was saved there by this library is replaced, and nothing else.
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
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    half: bool = False,
    texts: Mapping[str, str] | None = None,
) -> None:
    """Save any model of the house with its tokenizer, see `LanguageModel.save`; `texts` are further files by name."""
    if half:
        model = copy.deepcopy(model).half()
    with new_folder(folder) as temporary, no_progress_bar():
        try:
            model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
            for name, text in (texts or {}).items():
                (temporary / name).write_text(text, encoding="utf-8")
        except SafetensorError as error:  # what a full disk becomes; new_folder explains OSErrors
            raise OSError(str(error)) from error


@contextmanager
def no_progress_bar() -> Iterator[None]:
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
        ModelError: the tokenizer has no token that ends a text or more tokens than the model; a chat template that
            cannot be used; no context; unknown precision.
    """
    check_precision(precision)
    rows = len(model.get_input_embeddings().get_parameter("weight"))
    tokens = max(tokenizer.get_vocab().values(), default=-1) + 1
    if tokens > rows:
        raise ModelError(f"the tokenizer has {tokens} tokens, the model {rows}; use the one it was made with")
    if max_length(model) < 1:
        raise ModelError(
            f"the model's context is {max_length(model)} tokens; mend max_position_embeddings in its config"
        )
    if tokenizer.eos_token_id is None:
        raise ModelError("the tokenizer has no eos token, so a reply could never end; set tokenizer.eos_token")
    if reason := unfit(model):
        raise ModelError(reason)
    if not tokenizer.chat_template:
        tokenizer.chat_template = plain_chat_template(tokenizer)
    pad_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return LanguageModel(model.eval(), tokenizer, end_of_turn(tokenizer), pad_id, precision)


def check_precision(precision: torch.dtype) -> None:
    """Refuse a precision that the house does not compute in."""
    if precision not in (torch.float32, torch.bfloat16):
        raise ModelError(f"precision is {precision!r}; expected torch.float32 or torch.bfloat16")


# ---- the chat format -----------------------------------------------------------------------------------------

_ASK, _REPLY = Message("user", "Where is the zoo?"), Message("assistant", "By the river.")
_SYSTEM = Message("system", "Be kind.")
# Some templates want a system's message, and some show the end of a turn only where another follows.
_ANSWERED = ((_ASK, _REPLY), (_SYSTEM, _ASK, _REPLY), (_ASK, _REPLY, _ASK))
_CHATS = ((_ASK,), (_ASK, _REPLY), (_ASK, _REPLY, _ASK), (_SYSTEM, _ASK))


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token with which the chat template ends an assistant's turn: the first special one after its text.

    It is the eos token where the template writes none there. Models for chats often
    have another eos, with which whole documents ended.

    Raises:
        ModelError: a chat template that cannot be used.
    """
    added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special or token.content.strip()}
    never = {tokenizer.bos_token_id, tokenizer.unk_token_id} - {tokenizer.eos_token_id}
    ends = (added | set(tokenizer.all_special_ids)) - never
    for chat in _ANSWERED:
        with nullcontext() if chat is _ANSWERED[0] else suppress(ModelError):
            written = _written(tokenizer, chat, add_generation_prompt=False) or ""
        opening, found, rest = written.partition(_REPLY.content)
        between, asked_again, _ = rest.partition(_ASK.content)
        begins = opening.partition(_ASK.content)[0].strip()
        if not found or (asked_again and begins.endswith(between.strip())):
            continue  # refused; or what follows the reply is how the user's turn begins, and no end
        ids = tokenizer(between, add_special_tokens=False)["input_ids"]
        if end := [i for i in ids if i in ends]:
            return end[0]
    return tokenizer.eos_token_id


def _written(tokenizer: PreTrainedTokenizerBase, chat: Conversation, add_generation_prompt: bool = True) -> str | None:
    """What the chat template makes of a conversation; None where it refuses it."""
    try:
        return render_chat(tokenizer, chat, add_generation_prompt)
    except ModelError:
        raise
    except Exception:  # templates raise what they like
        return None


def check_same_tokens(
    policy: PreTrainedTokenizerBase,
    other: PreTrainedTokenizerBase,
    name: str,
    remedy: str = "give a model with the policy's tokenizer and chat template",
) -> None:
    """Refuse a model that would read the policy's tokens as something else: another vocabulary, or another chat format.

    Templates are compared by what they make of a few conversations. The pad token may differ, it stands under the mask.

    Args:
        policy, other: the tokenizers.
        name: what the other model is to the caller, such as "reference".
        remedy: what to do instead.

    Raises:
        ValueError: names `name` and the difference.
    """
    if other is policy:
        return
    ours, theirs = policy.get_vocab(), other.get_vocab()
    if ours != theirs:
        example = min(set(ours.items()) ^ set(theirs.items()), key=lambda item: item[::-1])[0]
        raise ValueError(
            f"{name} has another vocabulary than the policy ({len(theirs)} and {len(ours)} tokens, "
            f"{example!r:.40} is not the same); {remedy}"
        )
    for chat in _CHATS:
        texts = [_written(tokenizer, chat) for tokenizer in (other, policy)]
        if texts[0] != texts[1]:
            raise ValueError(
                f"{name} has another chat template than the policy ({texts[0]!r:.80} and {texts[1]!r:.80}); {remedy}"
            )
        rows = [tokenizer(texts[0] or "", add_special_tokens=False)["input_ids"] for tokenizer in (other, policy)]
        if rows[0] != rows[1]:
            raise ValueError(f"{name} cuts {texts[0]!r:.80} into other tokens than the policy; {remedy}")
    ends = [tokenizer.convert_ids_to_tokens(end_of_turn(tokenizer)) for tokenizer in (other, policy)]
    if ends[0] != ends[1]:
        raise ValueError(f"{name} ends a reply with {ends[0]!r}, the policy with {ends[1]!r}; {remedy}")


# ---- loading -------------------------------------------------------------------------------------------------


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
    check_precision(precision)
    folder = find_model(source)
    model = load_model(folder, AutoModelForCausalLM, device)
    return wrap_model(model, load_tokenizer(folder), precision)


def trained_folder(size: str) -> Path:
    """Where `pretrain` writes a model of a size and `find_model` looks for it: `runs` of the checkout, else of the
    working folder."""
    return MODEL_FOLDERS[size][-1].absolute()


def find_model(source: str | Path) -> Path:
    """The local folder of a size, a folder or a name on the hub, which is downloaded on first use.

    Raises:
        ModelError: there is none, or it holds no model; says how to make or get it.
    """
    if not isinstance(source, str | Path):
        raise ModelError(f"the model is {source!r:.80}; expected a folder, a name on the hub, or one of {SIZES}")
    if str(source) in SIZES:
        found = [folder for folder in MODEL_FOLDERS[str(source)] if (folder / "config.json").is_file()]
        if not found:
            raise ModelError(
                f"there is no {source} checkpoint yet; make it with: python run.py pretrain --size {source}"
            )
        return found[0]
    try:
        folder = _local_folder(source) or _from_hub(str(source))
        check_files(folder)
    except OSError as error:  # a name that is too long, a folder that may not be read
        raise ModelError(f"cannot read {source!s:.200} ({error.strerror}); give another folder") from error
    return folder


def _local_folder(source: str | Path) -> Path | None:
    """The folder that is meant, or None where it is a name on the hub."""
    folder = Path(os.path.expanduser(source))  # unlike Path.expanduser it lets a strange ~name be
    if source != "" and folder.is_dir():
        return folder
    if folder.is_file():
        raise ModelError(f"{source} is a file; give the folder of the model that it belongs to")
    nested = folder.parent != Path(".") and folder.parent.exists()  # then a path was meant, not a name
    if isinstance(source, Path) or nested or not _HUB_NAME.fullmatch(source):
        name = str(source) if str(source).strip() else repr(source)
        raise ModelError(f"there is no folder {name}; give a model folder, a name on the hub, or one of {SIZES}")
    return None


def _from_hub(name: str) -> Path:
    wanted = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
    try:
        # The patterns skip copies of the weights in other formats, most of them in subfolders.
        folder = snapshot_download(name, allow_patterns=wanted, ignore_patterns=["*/*", "consolidated*"])
    except Exception as error:  # network, hub, authorisation, disk: each client version has its own types
        raise ModelError(
            f"{name} is no local folder and cannot be had from the hub ({in_one_line(error)}); "
            "check the name and the network, or give a folder"
        ) from error
    return Path(folder)


def load_model(folder: Path, kind: AutoModelKind, device: str | torch.device) -> PreTrainedModel:
    """Load weights of `kind`, an Auto class of transformers, as float32 and in eval mode.

    Raises:
        ModelError: config or weights that are missing, damaged, pickled or of another kind; no such device.
    """
    config = _load_config(folder, kind)
    if not any(folder.glob("*.safetensors")):
        raise ModelError(f"{folder} has no *.safetensors ({_NO_PICKLE}); save the model with save_pretrained")
    _check_size(folder, config, kind)
    try:
        with no_progress_bar():
            loaded: Any = kind.from_pretrained(  # a pair, which the declared type does not know
                folder, config=config, dtype=torch.float32, use_safetensors=True, output_loading_info=True
            )
            model, info = loaded
    except Exception as error:  # a damaged file raises whatever its reader raises
        raise ModelError(
            f"cannot load the weights in {folder} ({in_one_line(error)}); copy or make them again"
        ) from error
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise ModelError(f"{folder} lacks {len(missing)} weights ({missing[0]}, ...); copy or make it again")
    if changed := changed_file(folder, "*.safetensors"):
        problem = f"{folder / changed} is damaged, or was changed since it was saved"
        raise ModelError(f"{problem}; copy or make the model again, or delete {MARK} there if you changed it yourself")
    try:
        return model.to(torch.device(device)).eval()
    except (AssertionError, RuntimeError, TypeError) as error:  # a torch without this backend asserts
        raise ModelError(f"cannot use the device {device} ({in_one_line(error)}); use the device cpu") from error


def _load_config(folder: Path, kind: AutoModelKind) -> PreTrainedConfig:
    check_settings(folder)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:
        raise config_error(folder, in_one_line(error)) from error
    use_own_attention(config)
    config.return_dict = True  # outputs have names here
    classes: Any = kind._model_mapping
    wanted = classes[type(config)].__name__ if type(config) in classes else None
    found = config.architectures or [wanted or config.model_type]
    if wanted not in found:
        task = "a causal language model" if kind is AutoModelForCausalLM else "a sequence classifier"
        raise ModelError(f"{folder} is a {found[0]}; expected {task}{f', {wanted}' if wanted else ''}")
    return config


def _check_size(folder: Path, config: PreTrainedConfig, kind: AutoModelKind) -> None:
    """Refuse a config that asks for more weights than the files have bytes, before memory is taken for them."""
    asked = _parameters(folder, config, kind)
    held = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    if asked > held:
        raise ModelError(
            f"cannot load the weights in {folder} (config.json asks for {asked:,} numbers, the files have {held:,} "
            "bytes); copy or make them again"
        )


def _parameters(folder: Path, config: PreTrainedConfig, kind: AutoModelKind) -> int:
    """Numbers that a model of this config has, without taking memory for them."""
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            model: Any = kind.from_config(copy.deepcopy(config), dtype=torch.float32)
    except Exception as error:
        raise config_error(folder, in_one_line(error)) from error
    return sum(parameter.numel() for parameter in model.parameters())


def count_parameters(source: str | Path) -> int:
    """Numbers in a model's weights, by its config alone.

    Args:
        source: as `load_language_model` takes it.

    Raises:
        ModelError: as `load_language_model`.

    Example:
        >>> count_parameters("tiny") == sum(p.numel() for p in load_language_model("tiny").model.parameters())
        True
    """
    folder = find_model(source)
    return _parameters(folder, _load_config(folder, AutoModelForCausalLM), AutoModelForCausalLM)


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
        raise ModelError(f"cannot load the tokenizer in {folder} ({in_one_line(error)}); copy it again") from error
