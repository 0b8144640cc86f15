"""What models write in a chat: replies with what is known of each token, and the prompt that still fits a context.

Pure functions of models and texts; `dialogue` keeps their results. Chapter 08.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from rlhf_lab.classroom.widgets.state import displayable
from rlhf_lab.experience.rollouts import sample_responses
from rlhf_lab.feedback.lines import short
from rlhf_lab.maths.kl import categorical_kl
from rlhf_lab.models.language_model import LanguageModel
from rlhf_lab.models.scoring import forward
from rlhf_lab.models.tokens import TokenBatch, decode_rows, encode_prompts
from rlhf_lab.records import Conversation, Message

Pair = tuple[str, str]  # what the user wrote and what was replied
LONGEST_MESSAGE = 200_000  # characters; beyond it the tokenizer would be busy for seconds, to no end
# Borders of five levels, strongest last. Log-probs in nats: probabilities of 0.9, 0.5, 0.1 and 0.01.
LOG_PROB_BORDERS = (-0.1054, -0.6931, -2.3026, -4.6052)
KL_BORDERS = (0.01, 0.1, 0.5, 2.0)  # nats


@dataclass(frozen=True)
class Reply:
    """One reply as it was sampled.

    Attributes:
        text: without the end token.
        pieces: for each of its T tokens what it adds to the text; "" where it holds a part of a character only, and
            for the end token. Together they are the text.
        names: what each token is called in the vocabulary.
        log_probs: [T] nats, each token under the law that it was sampled from, softmax(logits / temperature); at
            temperature 0 under softmax(logits).
        ended: whether the model ended it, rather than the limit of tokens.
        batch: prompt and reply as tokens, one row.
        made: seconds of a clock when it was shown; 0 where nobody looked.
    """

    text: str
    pieces: tuple[str, ...]
    names: tuple[str, ...]
    log_probs: tuple[float, ...]
    ended: bool
    batch: TokenBatch
    made: float = 0.0


def write_reply(
    lm: LanguageModel,
    prompt: Conversation,
    *,
    max_new_tokens: int,
    temperature: float,
    generator: torch.Generator,
) -> Reply:
    """Sample one reply to a prompt; arguments and errors are those of `sample_responses`.

    Example:
        >>> from rlhf_lab import as_conversation, load_language_model
        >>> reply = write_reply(load_language_model("tiny"), as_conversation("Where is the zoo?"), max_new_tokens=8,
        ...                     temperature=1.0, generator=torch.Generator().manual_seed(0))
        >>> "".join(reply.pieces) == reply.text, len(reply.pieces) == len(reply.log_probs)
        (True, True)

    Chapter 08.
    """
    rollout = sample_responses(
        lm, [_readable(prompt)], max_new_tokens=max_new_tokens, temperature=temperature, generator=generator
    )
    kept = rollout.batch.mask[0].cpu()
    ids = rollout.batch.response_ids[0].cpu()[kept].tolist()
    log_probs = tuple(rollout.log_probs[0].cpu()[kept].tolist())
    names = tuple(map(str, lm.tokenizer.convert_ids_to_tokens(ids)))
    return Reply(rollout.texts[0], token_pieces(lm, ids), names, log_probs, bool(rollout.ended[0]), rollout.batch)


def token_pieces(lm: LanguageModel, ids: Sequence[int]) -> tuple[str, ...]:
    """What each token of a reply adds to its text.

    A character may be spread over several tokens; it belongs to the one that completes it.

    Args:
        lm: gives the tokenizer.
        ids: T tokens of the reply, with or without the end token.

    Returns:
        T texts, which together are the text of the reply.

    Example:
        >>> from rlhf_lab import load_language_model
        >>> lm = load_language_model("tiny")
        >>> ids = lm.tokenizer("The zoo is closed.")["input_ids"]
        >>> "".join(token_pieces(lm, [*ids, lm.end_id]))
        'The zoo is closed.'

    Chapter 08.
    """
    ids = list(ids)
    *parts, whole = decode_rows(lm, [ids[:end] for end in range(1, len(ids))] + [ids])
    pieces, done = [], 0
    for part in [*parts, whole]:
        end = max(done, _common(part, whole)) if part is not whole else len(whole)
        pieces.append(whole[done:end])
        done = end
    return tuple(pieces)


def _common(one: str, other: str) -> int:
    """How many characters two texts begin with in common."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


@torch.no_grad()
def token_kls(
    lm: LanguageModel, reference: LanguageModel, batch: TokenBatch, temperature: float = 1.0
) -> tuple[float, ...]:
    """Exact KL(policy || reference) of the law of each token of a reply, given the tokens before it.

    KL[t] = sum_a p(a | before t) (log p(a | before t) - log q(a | before t)),   both softmax(logits / temperature)

    Their sum estimates the KL of whole replies: it is unbiased for a reply that the policy sampled.

    Args:
        lm: the policy.
        reference: with the tokens and the chat template of the policy.
        batch: one row, prompt and reply.
        temperature: of the sampling law; 0 is greedy, whose law is a single token, so 1 is taken.

    Returns:
        [T] nats; 0 up to rounding where `lm` is the reference.

    Example:
        >>> from rlhf_lab import load_language_model, make_batch
        >>> lm = load_language_model("tiny")
        >>> token_kls(lm, lm, make_batch([[5]], [[8, 9]], lm.pad_id))
        (0.0, 0.0)

    Source: Kullback and Leibler 1951. Chapters 08 and 10.
    """
    divisor = temperature or 1.0
    logits, theirs = (forward(model, batch.to(model.device)).logits[0].cpu() for model in (lm, reference))
    kl = categorical_kl(logits / divisor, theirs / divisor)[batch.mask[0].cpu()]
    return tuple(kl.clamp(min=0).tolist())  # rounding makes some of them negative by a billionth


def level(value: float, borders: Sequence[float]) -> int:
    """How many borders a value has passed: 0 for none, up to their number; the borders go one way, up or down.

    >>> level(0.05, KL_BORDERS), level(-5.0, LOG_PROB_BORDERS)
    (1, 4)
    """
    down = borders[-1] < borders[0]
    return sum(value < border if down else value >= border for border in borders)


def fit_prompt(
    models: Iterable[LanguageModel], history: Sequence[Pair], text: str, max_new_tokens: int, dropped: int = 0
) -> tuple[Conversation, int]:
    """The longest end of a conversation that leaves room for a reply in the context of every model.

    Whole turns are left out, the oldest first; all models get the same prompt, so that their replies can be compared.

    Args:
        models: who will reply.
        history: the turns so far.
        text: what the user writes now.
        max_new_tokens: room for the reply.
        dropped: turns that are left out already.

    Returns:
        The prompt, and how many of the oldest turns are not in it.

    Raises:
        ValueError: the text is empty, or does not fit even alone; says how many tokens it has and how many fit.

    Example:
        >>> from rlhf_lab import load_language_model
        >>> lm = load_language_model("tiny")
        >>> prompt, dropped = fit_prompt([lm], [("Where is the zoo?", "In Mill Street.")] * 20, "Why?", 64)
        >>> prompt[-1].content, dropped > 0
        ('Why?', True)

    Chapter 08.
    """
    _check_message(text)
    models = list(models)
    for start in range(dropped, len(history) + 1):
        prompt = _conversation(history[start:], text)
        over = [(size, room) for size, room in _sizes(models, prompt, max_new_tokens) if size > room]
        if not over:
            return prompt, start
    size, room = max(over)
    raise ValueError(
        f"your message has {size} tokens, and {room} fit: the context less {max_new_tokens} for the reply. "
        "Write a shorter one"
    )


def _check_message(text: str) -> None:
    if not isinstance(text, str):
        raise ValueError(f"the message is {type(text).__name__}; expected text")
    if not text.strip():
        raise ValueError("the message is empty; write something first")
    if len(text) > LONGEST_MESSAGE:
        raise ValueError(f"your message has {len(text):,} characters; expected at most {LONGEST_MESSAGE:,}. Shorten it")


def _conversation(history: Sequence[Pair], text: str) -> Conversation:
    said = [m for user, reply in history for m in (Message("user", user), Message("assistant", reply))]
    return (*said, Message("user", text))


def _sizes(models: Sequence[LanguageModel], prompt: Conversation, max_new_tokens: int) -> list[tuple[int, int]]:
    """For each model the tokens of the prompt, and how many there may be."""
    return [(len(encode_prompts(lm, [_readable(prompt)], None)[0]), lm.max_length - max_new_tokens) for lm in models]


def misread(models: Iterable[LanguageModel], text: str) -> str:
    """What models do not read as it is written, in words: tokens with a meaning of their own, such as the end of a
    turn, and halves of characters; "" for nothing.

    >>> from rlhf_lab import load_language_model
    >>> misread([load_language_model("tiny")], "Good night.<|end|>")
    'The model reads <|end|> as a sign of its own, not as text.'
    """
    known = {str(token) for lm in models for token in lm.tokenizer.all_special_tokens}
    special = [f"{token} as a sign of its own, not as text" for token in sorted(known) if token in text]
    broken = ["each half of a character as U+FFFD"] if displayable(text) != text else []
    return f"The model reads {' and '.join(special + broken)}." if special or broken else ""


def _readable(prompt: Conversation) -> Conversation:
    """The prompt as a tokenizer can read it; records keep it as it was written."""
    return tuple(Message(message.role, displayable(message.content)) for message in prompt)


def named_models(models: object) -> dict[str, LanguageModel]:
    """Models by name; one alone is called "model".

    Raises:
        ValueError: no model, or something else than models and names.

    >>> from rlhf_lab import load_language_model
    >>> list(named_models(load_language_model("tiny")))
    ['model']
    """
    if isinstance(models, LanguageModel):
        return {"model": models}
    if not isinstance(models, Mapping) or not models:
        raise ValueError(
            f"models is {short(models)}; expected a LanguageModel, or {{name: LanguageModel}}, at least one"
        )
    for name, lm in models.items():
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"models has the name {short(name)}; expected text")
        if not isinstance(lm, LanguageModel):
            raise ValueError(f"models[{name!r:.40}] is {type(lm).__name__}; expected what load_language_model returns")
    return dict(models)
