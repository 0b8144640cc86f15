r"""Dialogues written as one text, "\n\nHuman: ...\n\nAssistant: ...", taken apart into messages.

A text that looks like a dialogue and cannot be taken apart is refused: as a plain text, its speakers would be read as
words of one user. Left out: the marks of other formats ("User:", "<|im_start|>"), which are refused too. Chapter 08.
"""

import re

from rlhf_lab.feedback.lines import BadLine, short
from rlhf_lab.records import Message

SPEAKERS = {"Human": "user", "Assistant": "assistant"}
LINE_END = r"(?:\r\n|\r(?!\n)|\n)"
TURN = re.compile(rf"(?:\A|{LINE_END}[ \t]*{LINE_END})[ \t]*(Human|Assistant):")  # at the start or after an empty line
LABEL = re.compile(rf"(?:\A|{LINE_END})[ \t]*(Human|Assistant):")  # at the start of any line
# How texts of other formats begin: with a speaker who is answered, a mark of a chat template, or a list in JSON.
ASKING = re.compile(r"\W{0,8}(?:human|user|prompter|instruct|instruction)\W{0,4}:", re.IGNORECASE)
ANSWERING = re.compile(r"\b(?:assistant|ai|bot|chatbot|gpt|chatgpt|response|output)\W{0,4}:", re.IGNORECASE)
LATER = re.compile(
    rf"(?:{LINE_END}\W{{0,8}}(?:User|Human|Instruction):.*{LINE_END}\W{{0,8}}(?:Assistant|Response):|\bUSER:.*\bASSISTANT:)",
    re.DOTALL,
)
MARKS = re.compile(r"<[|｜](?:im_start|start_header_id|START_OF_TURN_TOKEN)[|｜]>|\[INST\]|<start_of_turn>")
LETTERS = re.compile(rf"H:.*{LINE_END}A:", re.DOTALL)
TEMPLATE = re.compile(r"(?:<s>|<bos>)?\s*(?:<[|｜][^\s>]+[|｜]>|\[INST\]|<<SYS>>|<start_of_turn>)")
LIST = re.compile(r"""\[\s*\{\s*['"](?:role|content|from|value)['"]\s*:""")


def turns(field: str, text: str) -> tuple[Message, ...]:
    r"""The messages of a dialogue text, each stripped; none if the text is no dialogue.

    A turn begins with "Human:" or "Assistant:", at the start of the text or after an empty line; the line ends may be
    LF, CRLF or CR. A text before the first turn is a system message.

    Args:
        field: where the text stands, for the message.
        text: as it was written.

    Raises:
        BadLine: the text looks like a dialogue, but its turns are not marked like this.

    Example:
        >>> [message.role for message in turns("prompt", "Be brief.\n\nHuman: Hi\n\nAssistant:")]
        ['system', 'user', 'assistant']

    Source: the marks are those of the HH data of Bai et al. 2022 (arXiv:2204.05862).
    """
    text = text.strip()
    before, *parts = TURN.split(text)
    speakers = set(parts[::2])
    if not SPEAKERS.keys() <= speakers and _is_other_dialogue(text):
        problem = f"looks like a dialogue that cannot be taken apart, {short(text)}"
        remedy = 'Put an empty line before each "Human:" and "Assistant:", or write a list of messages'
        raise BadLine(field, problem, remedy)
    if not speakers or (before and "Human" not in speakers):
        return ()
    pairs = zip(parts[::2], parts[1::2], strict=True)
    messages = tuple(Message(SPEAKERS[speaker], content.strip()) for speaker, content in pairs)
    return (Message("system", before.strip()), *messages) if before.strip() else messages


def begins_dialogue(text: str) -> bool:
    """Whether a reply is no plain text: it begins like a dialogue, or like another format's."""
    text = text.lstrip()
    both = text.startswith("Human:") and "Assistant:" in text
    return both or any(start.match(text) for start in (TEMPLATE, LIST))


def _is_other_dialogue(text: str) -> bool:
    both = SPEAKERS.keys() <= set(LABEL.findall(text)) or (ASKING.match(text) and ANSWERING.search(text))
    return bool(both or LETTERS.match(text) or LATER.search(text) or MARKS.search(text) or begins_dialogue(text))
