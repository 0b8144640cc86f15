"""The fields of one row of preferences or demonstrations: which are read, and which may be passed over.

Nothing that was asked is dropped in silence: a field that a reply may depend on is read, repeats what is read, or is
refused. Chapter 08.
"""

import re
from collections.abc import Mapping, Sequence

from rlhf_lab.feedback.lines import BadLine, short
from rlhf_lab.records import Conversation, Message, says_nothing

PROMPTS = ("prompt", "question", "query", "instruction", "input")  # the first that is there holds the prompt
SYSTEMS = ("system", "system_prompt", "system_message")
ONE_NAME = re.compile(r"[\w.,:/+@#-]*", re.ASCII)  # a name, a number, an address: this asks nothing


def _words(name: object) -> set[str]:
    return {word.lower() for word in re.findall("[A-Z]?[a-z]+|[A-Z]+", str(name))}


# Words in the names of fields. A reply may depend on what is in the context: it is never passed over. Notes, which are,
# say where a line comes from or what somebody thought of it.
CONTEXT = _words(
    "message messages conversation conversations conv dialog dialogs dialogue dialogues chat history context contexts "
    "turn turns trajectory thread shot shots examples passage passages document documents article articles post body "
    "paragraph paragraphs abstract story premise hypothesis choices options knowledge evidence facts background "
    "tool tools function functions prompt prompts question query instruction instructions input system developer "
    "persona"
)
MEDIA = _words("image images picture pictures video videos audio audios")  # also the address of one
NOTES = _words(
    "id uuid source origin dataset subset split model score rating rationale reason margin label lang language url "
    "date time timestamp created type category tag tags author annotator comment note notes license meta metadata "
    "version chosen rejected hash title name template index rank level difficulty quality domain task length count"
)


def given(record: dict) -> tuple[str, object]:
    """The field with the prompt and what it holds; an input follows its instruction. "prompt", None without any."""
    found = (name for name in PROMPTS if record.get(name) is not None or (name == "prompt" and name in record))
    field = next(found, "prompt")
    prompt, more = record.get(field), record.get("input")
    if field == "instruction" and isinstance(prompt, str) and isinstance(more, str) and more.strip():
        prompt = f"{prompt}\n\n{more}"
    return field, prompt


def after_system(record: dict, prompt: Conversation) -> Conversation:
    """The prompt, after the system message of another field."""
    for field in SYSTEMS:
        text = record.get(field)
        if says_nothing(text):
            continue
        if not isinstance(text, str):
            raise BadLine(field, f"got {short(text)}; expected text", "Write the system message as text, or remove it")
        if prompt[0].role != "system":
            prompt = (Message("system", text), *prompt)
        elif prompt[0].content.strip() != text.strip():
            problem = f"got {short(text)}, but the prompt has the system message {short(prompt[0].content)}"
            raise BadLine(field, problem, "Remove one of the two")
    return prompt


def refuse_unread(record: dict, used: Sequence[str], prompt: Conversation, replies: Sequence[str]) -> None:
    """Refuse a field that a reply may depend on, unless it repeats what is in the prompt, or messages that were read.

    What stands in a reply alone is no repetition: the context that a reply quotes is not in the prompt.
    """
    asked = [message.content for message in prompt]
    for name, value in record.items():
        if name in used or says_nothing(value) or not _carries_meaning(name):
            continue
        said_once_more = isinstance(value, str) and (
            any(value.strip() in text for text in asked) or (name == "completion" and value in replies)
        )
        if not said_once_more and not _repeats(value, {*asked, *replies}, [record.get(field) for field in used]):
            remedy = "Write it into the prompt, or remove it if no reply depends on it"
            raise BadLine(str(name), f"got {short(value)}, which would not be read", remedy)


def _repeats(value: object, texts: set[str], fields: Sequence[object]) -> bool:
    """Whether a list is that of a field that was used, or holds messages of texts that were read and nothing else."""
    if not isinstance(value, list):
        return False
    messages = [item.get("content") for item in value if isinstance(item, Mapping) and {*item} == {"role", "content"}]
    return value in fields or (len(messages) == len(value) and all(text in texts for text in messages))


def refuse_another_prompt(record: dict) -> None:
    """Before a prompt is cut out of plain texts: no other field may look like it."""
    for name, value in record.items():
        if name in ("chosen", "rejected", "rater", "simulated", *SYSTEMS) or says_nothing(value):
            continue
        if _carries_meaning(name) or not (NOTES & _words(name) or _names_only(value)):
            remedy = "Rename it to prompt if it is the prompt, or remove it"
            raise BadLine(str(name), f"got {short(value)}, which would not be read", remedy)


def _carries_meaning(name: object) -> bool:
    words = _words(name)
    named = str(name).lower() in (*PROMPTS, *SYSTEMS, "completion")
    return named or bool(MEDIA & words or (CONTEXT & words and not NOTES & words))


def _names_only(value: object) -> bool:
    """Whether no text in the value, at any depth, is more than a name or a number."""
    rest = [value]
    while rest:
        item = rest.pop()
        if isinstance(item, str) and not ONE_NAME.fullmatch(item.strip()):
            return False
        rest += item.values() if isinstance(item, Mapping) else item if isinstance(item, list) else ()
    return True
