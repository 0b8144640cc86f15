"""Preferences that a model can read: prompts that leave room for a reply.

Left out: cutting inside a message, which would change what was said.
"""

from dataclasses import replace

from rlhf_lab.feedback.formats import Preferences
from rlhf_lab.feedback.lines import BadLine
from rlhf_lab.models.language_model import LanguageModel
from rlhf_lab.models.tokens import encode_prompts
from rlhf_lab.records import Comparison, Conversation


def fit_prompts(
    lm: LanguageModel, preferences: Preferences, limit: int, last_turns: bool = False
) -> tuple[list[Comparison], list[BadLine], int]:
    """The preferences whose prompts have at most `limit` tokens.

    Args:
        lm: gives tokenizer and chat template.
        preferences: from `read_preferences`.
        limit: tokens of a prompt, template included.
        last_turns: of a longer prompt keep as many of the last turns as fit, beginning with one of the user's, after
            the system's message if there is one.

    Returns:
        The preferences that fit, a `BadLine` for each that does not, and how many prompts were shortened.

    Example:
        >>> from rlhf_lab import load_language_model
        >>> turns = [{"role": r, "content": "Hello."} for r in ("user", "assistant", "user")]
        >>> long = Preferences([Comparison(turns, "Hi.", "Go away!")])
        >>> kept, bad, shortened = fit_prompts(load_language_model("tiny"), long, limit=8, last_turns=True)
        >>> len(kept[0].prompt), bad, shortened
        (1, [], 1)

    Chapter 08.
    """
    kept, bad, shortened = [], [], 0
    numbers = preferences.lines or range(1, len(preferences) + 1)
    for comparison, number in zip(preferences, numbers, strict=True):
        try:
            prompt, tokens = _fitted(lm, comparison.prompt, limit, last_turns)
        except ValueError as error:  # the chat template does not allow the prompt
            bad.append(BadLine("prompt", str(error), "Leave the line out", number))
            continue
        if tokens > limit:
            problem = f"the prompt has {tokens} tokens; expected at most {limit}"
            bad.append(BadLine("prompt", problem, "Shorten it, leave it out, or keep only its last turns", number))
            continue
        shortened += prompt != comparison.prompt
        kept.append(replace(comparison, prompt=prompt))
    return kept, bad, shortened


def _fitted(lm: LanguageModel, prompt: Conversation, limit: int, last_turns: bool) -> tuple[Conversation, int]:
    """The prompt, or the longest end of it that fits, and its tokens; where none fits, those of the whole."""
    first = 1 if prompt[0].role == "system" else 0
    ends = [i for i in range(first + 1, len(prompt)) if prompt[i].role == "user"] if last_turns else []
    whole = len(encode_prompts(lm, [prompt], None)[0])
    if whole > limit:
        for start in ends:
            shorter = prompt[:first] + prompt[start:]
            tokens = len(encode_prompts(lm, [shorter], None)[0])
            if tokens <= limit:
                return shorter, tokens
    return prompt, whole
