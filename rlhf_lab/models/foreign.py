"""Files of strangers, looked at before they are used: what they may ask for, and how their texts are shown.

The limits, each far above what models in use need:

    MOST_BYTES        of one file that is read whole: 1 MB of a chat template, 10 MB of settings, 200 MB of a tokenizer
    MOST_PARTS        layers, experts of a layer, labels of a classifier
    MOST_TEMPLATE     characters of a chat template
    MOST_SECONDS      of computing for one conversation in a chat template
    MOST_CHARACTERS   that a chat template may make of one conversation

Left out: a template that fills the memory in one step (texts that double), a config whose own code computes for long,
and whether the weights are what their author says.
"""

import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

from jinja2 import Environment, TemplateSyntaxError
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from rlhf_lab.records import Message
from rlhf_lab.training.printing import printable

# For tokenizers that bring none. Line breaks are expressions, because the template engine drops a line break
# that follows a block.
PLAIN_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | capitalize + ':\n' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:\n' }}{% endif %}"
)
MOST_BYTES = {"*.jinja": 10**6, "*/*.jinja": 10**6, "*config*.json": 10**7} | dict.fromkeys(
    ("*.json", "*.txt", "*.model"), 2 * 10**8
)
MOST_PARTS = 1000
MOST_TEMPLATE = 200_000
MOST_SECONDS = 5.0
MOST_CHARACTERS = 10**7
_PARTS = re.compile(r"(\bn_layer|layers|experts|num_labels|attention_types)$")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tabs and line breaks
_TORCH_ATTENTION = (None, "eager", "sdpa")
_INDEX = "model.safetensors.index.json"


class ModelError(ValueError):
    """A model cannot be loaded or used; the message says why and what to do, in one line that is safe to print."""

    def __init__(self, message: str):
        super().__init__(printable(message))


def in_one_line(error: Exception) -> str:
    """What an error of another library says, cut to 200 characters, without line breaks."""
    return printable(" ".join(str(error).split()) or type(error).__name__)[:200]


# ---- the folder ----------------------------------------------------------------------------------------------


def check_files(folder: Path) -> None:
    """Refuse a folder that holds no model, or files too large to be read whole, or weights that lie elsewhere.

    Raises:
        ModelError: names the file.
    """
    weights = [path for path in folder.glob("*.safetensors") if not path.name.startswith("adapter")]
    if (folder / "adapter_config.json").is_file() and not weights:
        raise ModelError(f"{folder} holds LoRA weights only; merge them into the model first and save that")
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} has no config.json; expected a folder in the Hugging Face layout")
    for pattern, most in MOST_BYTES.items():
        for path in filter(Path.is_file, folder.glob(pattern)):
            if (size := path.stat().st_size) > most:
                raise ModelError(f"{path} has {size:,} bytes; expected at most {most:,}; use another copy of the model")
    for name in _shards(folder):
        if not isinstance(name, str) or not _lies_in(folder, name):
            raise ModelError(f"{folder / _INDEX} names {name!r}; expected a file in its own folder; copy it again")


def _shards(folder: Path) -> set:
    """What the index of the weights names; nothing where it is damaged, which loading reports."""
    try:
        return set(json.loads((folder / _INDEX).read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return set()


def _lies_in(folder: Path, name: str) -> bool:
    """Whether a name is that of a file in the folder; the hub's cache keeps it beside the folder, behind a link."""
    if re.search(r"[/\\:\0]", name) or name in ("", ".", ".."):
        return False
    home = folder.resolve()
    homes = (home, home.parent.parent / "blobs") if home.parent.name == "snapshots" else (home,)
    return any((home / name).resolve().is_relative_to(place) for place in homes)


def check_settings(folder: Path) -> None:
    """Refuse a config.json that is none, or that asks for impossibly many parts.

    Raises:
        ModelError: says what it holds.
    """
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        pairs = list(_pairs(settings))
    except (OSError, ValueError, RecursionError) as error:
        raise config_error(folder, in_one_line(error)) from error
    if not isinstance(settings, dict):
        raise config_error(folder, f"it holds a {type(settings).__name__}; expected an object of settings")
    names = settings.get("architectures") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise config_error(folder, f"architectures is {names!r:.80}; expected a list of names")
    if settings.get("quantization_config"):
        raise ModelError(f"{folder} holds quantised weights, which cannot be trained here; get the model in float16")
    for name, value in pairs:
        if _CONTROL.search(f"{name}{value}"):  # other libraries would print it as it is
            raise config_error(folder, f"{name!r:.40} holds control characters")
        if isinstance(value, int) and _PARTS.search(name) and not 0 <= value <= MOST_PARTS:
            raise config_error(folder, f"{name} is {value!r:.40}; expected 0 to {MOST_PARTS}")


def config_error(folder: Path, reason: str) -> ModelError:
    """The error for a config.json that cannot be used."""
    return ModelError(f"cannot use the config.json in {folder} ({reason}); copy or make it again")


def _pairs(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """(name, value) of every setting at any depth."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _pairs(item, key)
    elif isinstance(value, list):
        for item in value:
            yield from _pairs(item, name)
    else:
        yield name, value


def use_own_attention(config: PreTrainedConfig) -> None:
    """Let attention be computed by torch: a config may name other code, which would be fetched from the hub and run."""
    parts = [config, *(getattr(config, name, None) for name in config.sub_configs)]
    if any(part is not None and part._attn_implementation not in _TORCH_ATTENTION for part in parts):
        config._attn_implementation = None  # then transformers chooses among torch's
    config._experts_implementation = None


# ---- the chat template ---------------------------------------------------------------------------------------


def plain_chat_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """The template for a tokenizer that brings none; begins with bos where the tokenizer puts that before a text."""
    begins = tokenizer.bos_token_id is not None and tokenizer("x")["input_ids"][:1] == [tokenizer.bos_token_id]
    return ("{{ bos_token }}" if begins else "") + PLAIN_CHAT_TEMPLATE


def render_chat(
    tokenizer: PreTrainedTokenizerBase, conversation: Sequence[Message], add_generation_prompt: bool = True
) -> str:
    """The text that the chat template makes of a conversation, within the limits of this module.

    Raises:
        ModelError: a template beyond the limits, or one that is none.
        Exception: templates raise what they like, for example on a system message.
    """
    template = _template_of(tokenizer)
    _check_template(template)
    messages = [{"role": m.role, "content": m.content} for m in conversation]
    with _limited_time(), _readable():
        # str changes nothing: with tokenize=False it is a text, but the declared type also holds token ids.
        text = str(
            tokenizer.apply_chat_template(
                messages, chat_template=template, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        )
    if len(text) > MOST_CHARACTERS:
        raise _template_error(f"writes {len(text):,} characters; expected at most {MOST_CHARACTERS:,}")
    return text


def _template_error(reason: str) -> ModelError:
    return ModelError(f"the chat template {reason}; set tokenizer.chat_template to another, or repair the model's file")


def _template_of(tokenizer: PreTrainedTokenizerBase) -> str:
    given = tokenizer.chat_template or plain_chat_template(tokenizer)
    template = given.get("default") if isinstance(given, dict) else given
    if not isinstance(template, str):
        raise _template_error(f"is {given!r:.60}; expected a text, or texts of which one is named 'default'")
    return template


@lru_cache
def _check_template(template: str) -> None:
    """Refuse a template that is too long, cannot be read, or computes numbers that could only be meant to do harm."""
    if len(template) > MOST_TEMPLATE:
        raise _template_error(f"has {len(template):,} characters; expected at most {MOST_TEMPLATE:,}")
    with _readable():
        tokens = [(kind, text) for _, kind, text in Environment().lex(template) if kind not in ("data", "whitespace")]
    for (_, before), (kind, text) in pairwise([("", ""), *tokens]):
        power = (kind, text) == ("operator", "**") and before not in ("(", ",")  # there it passes arguments on
        if power or (kind == "integer" and len(text) > 6):
            raise _template_error("computes powers or numbers above a million, which could take for ever")


@contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except TemplateSyntaxError as error:
        raise _template_error(f"cannot be read ({in_one_line(error)})") from error


@contextmanager
def _limited_time() -> Iterator[None]:
    """Stop a template that computes for more than MOST_SECONDS, loop by loop; one long step is not stopped."""
    end = time.thread_time() + MOST_SECONDS

    def watch(frame: FrameType, event: str, argument: Any) -> Callable | None:
        if time.thread_time() > end:
            raise _template_error(f"computes for more than {MOST_SECONDS:g} seconds")
        return watch if frame.f_code.co_filename == "<template>" else None  # what loops is the template alone

    before = sys.gettrace()
    sys.settrace(watch)
    try:
        yield
    finally:
        sys.settrace(before)
