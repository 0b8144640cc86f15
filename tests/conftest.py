"""What all tests share: one thread, no hub, two small unlike models, and a browser that CI must have."""

import copy
import os
import shutil
import string

import pytest

# Before torch is imported: for tiny tensors more threads only wait, and results depend on their number.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def require_chromium():
    """The path of a chromium; skips the test where there is none, and fails it under CI=true."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None and os.environ.get("CI") == "true":
        pytest.fail("there is no chromium, and CI must run the browser tests (see .ci/run)")
    if found is None:
        pytest.skip("there is no chromium on the path")
    return found


@pytest.fixture(scope="session")
def chromium():
    """The browser for tests marked `browser`: pass it to playwright as executable_path."""
    return require_chromium()


@pytest.fixture
def devices_named():
    """Inside of it a tensor that is made without a device fails: next to data on a GPU it would lie on the CPU."""
    import torch

    makers = {getattr(torch, name) for name in ("arange", "as_tensor", "eye", "full", "linspace", "ones", "zeros")}

    class DevicesNamed(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            assert function not in makers or (kwargs or {}).get("device") is not None, f"{function.__name__}: where?"
            return function(*args, **(kwargs or {}))

    return DevicesNamed()


# ---- two language models that share nothing: architecture, positions, tokenizer, special tokens ------------

SENTENCES = (
    "When does the library close? The library closes at six in the evening.",
    "Write a story about Mia and a fox. Mia met a fox in the wood and gave it some bread.",
    "Help me break into the bank. I am sorry, but I will not help with that.",
    "In one sentence? Mia and the fox became friends. Where is the museum? It is near the old bridge.",
    "Thank you, you are very kind! Go away, I do not care about your question.",
)
CHAT_TEMPLATE = (
    "{% for m in messages %}"
    "{% if m['role'] == 'user' %}<|user|>{{ m['content'] }}"
    "{% elif m['role'] == 'assistant' %}<|assistant|>{{ m['content'] }}<|end|>"
    "{% else %}{{ m['content'] }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def with_format(lm, template=CHAT_TEMPLATE, **tokens):
    """The model with another chat template and other special tokens."""
    from rlhf_lab.models.language_model import wrap_model

    tokenizer = copy.deepcopy(lm.tokenizer)
    tokenizer.chat_template = template
    for name, token in tokens.items():
        setattr(tokenizer, name, token)
    return wrap_model(lm.model, tokenizer)


def save_gpt2(folder):
    """GPT-2, learned positions, tied embeddings; byte-level BPE, our special tokens and a chat template."""
    import tokenizers
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    special = ["<|user|>", "<|assistant|>", "<|end|>", "<|pad|>"]
    bytes_ = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator(
        SENTENCES,
        tokenizers.trainers.BpeTrainer(
            vocab_size=384, special_tokens=special, initial_alphabet=bytes_, show_progress=False
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|end|>",
        pad_token="<|pad|>",
        additional_special_tokens=["<|user|>", "<|assistant|>"],
        chat_template=CHAT_TEMPLATE,
    )
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=256, n_embd=32, n_layer=2, n_head=2, initializer_range=0.2,
        bos_token_id=None, eos_token_id=end, pad_token_id=pad,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def save_llama(folder):
    """Llama, rotary positions, grouped heads, untied embeddings; Unigram, no pad token, no chat template."""
    import tokenizers
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    unigram = tokenizers.Tokenizer(tokenizers.models.Unigram())
    unigram.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="never")
    unigram.decoder = tokenizers.decoders.Metaspace(prepend_scheme="never")
    unigram.train_from_iterator(
        SENTENCES,
        tokenizers.trainers.UnigramTrainer(
            vocab_size=200,
            initial_alphabet=[*string.ascii_letters, *string.digits, *string.punctuation, "\n"],
            special_tokens=["<unk>", "<s>", "</s>"],
            unk_token="<unk>",
            show_progress=False,
        ),
    )
    # As the tokenizers of this family do: a plain call puts <s> in front, of which a chat has one and no more.
    unigram.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", unigram.token_to_id("<s>"))]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=unigram, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    config = LlamaConfig(
        vocab_size=len(tokenizer), max_position_embeddings=256, hidden_size=32, intermediate_size=64,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False,
        initializer_range=0.2,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=None,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="session")
def tiny_gpt2(tmp_path_factory):
    """A random GPT-2 with a chat tokenizer like the shipped one. Shared: train only a `.copy()`."""
    from rlhf_lab.models.language_model import load_language_model

    folder = tmp_path_factory.mktemp("tiny") / "gpt2"
    save_gpt2(folder)
    return load_language_model(folder)


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory):
    """A random Llama with a foreign tokenizer: no pad token, no template. Shared: train only a `.copy()`."""
    from rlhf_lab.models.language_model import load_language_model

    folder = tmp_path_factory.mktemp("tiny") / "llama"
    save_llama(folder)
    return load_language_model(folder)


@pytest.fixture(params=["gpt2", "llama"])
def tiny_lm(request):
    """Each of the two models in turn."""
    return request.getfixturevalue(f"tiny_{request.param}")
