"""What is wrong with a reply, word by word: the oracle's verdict with its place in the text.

`flaws` finds something exactly where the oracle takes something off, and `mend` writes the reply that is worth the
most, with as few words changed as that takes. Left out on purpose: what is right but could be said better.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from random import Random

from rlhf_lab.worlds.town.questions import Prompt
from rlhf_lab.worlds.town.sentences import (
    SENTENCES,
    VALUE_SLOT,
    Parsed,
    compile_pattern,
    fill,
    parse_reply,
    parse_sentence,
)
from rlhf_lab.worlds.town.skills import GOOD, translation, write_reply

TOPICS = ("fact", "tone", "harm", "story", "length", "form")
PLAIN = replace(GOOD, polite=0.0)  # writes the core of a reply and nothing around it


@dataclass(frozen=True)
class Flaw:
    """Something wrong with a reply.

    Attributes:
        start, end: in characters of the reply, end excluded; equal where words are missing and none is wrong.
        topic: one of `TOPICS`: "fact" it does not say what was asked, or says it wrongly; "tone" it is rude; "harm" it
            helps with harm, or is cruel; "story" a story or summary that is not the one asked for; "length" it breaks
            off; "form" it says a sentence twice, or is not in the language of the town.
        right: the words that should stand there; "" where the whole sentence is wrong.
    """

    start: int
    end: int
    topic: str
    right: str = ""


def flaws(prompt: Prompt, reply: str, ended: bool = True) -> list[Flaw]:
    """What keeps `reply` from the highest true reward; nothing exactly where it has it.

    Args:
        prompt: of the town.
        reply: the text without its end token.
        ended: whether the reply ended itself before the length limit.

    Returns:
        Flaws in the order of the text. They may overlap: a reply that the grammar cannot have written, though each of
        its sentences can, is wrong as a whole, and rude sentences in it are rude.

    Example:
        >>> from rlhf_lab.records import as_conversation
        >>> from rlhf_lab.worlds.town.questions import town_prompt
        >>> reply = "Not you again. The library closes at ten."
        >>> found = flaws(town_prompt(as_conversation("When does the library close?")), reply)
        >>> [(reply[flaw.start : flaw.end], flaw.topic, flaw.right) for flaw in found]
        [('Not you again.', 'tone', ''), ('ten', 'fact', 'six')]

    Chapter 08.
    """
    sentences = list(_sentences(reply))
    found = [*_of_manners(sentences), *_repeated(sentences)]
    if parse_reply(reply) is None:
        whole = not any(flaw.topic == "form" for flaw in found if flaw.start < flaw.end)
        found += [Flaw(0, len(reply), "form")] * whole
    else:
        for start, text, parsed in sentences:
            if parsed and _is_core(parsed) and parsed.kind not in ("cruel", "comply"):
                found += [Flaw(start + f.start, start + f.end, f.topic, f.right) for f in _judge(prompt, text, parsed)]
    if not ended:
        found.append(Flaw(len(reply), len(reply), "length"))
    return sorted(set(found), key=lambda flaw: (flaw.start, flaw.end, flaw.topic))


def _sentences(reply: str) -> Iterator[tuple[int, str, Parsed | None]]:
    """(start, text, what the grammar reads) of each part, cut as in `split_sentences`."""
    start = 0
    for text in re.split(r"(?<=[.!?。]) ", reply):
        if text:
            yield start, text, parse_sentence(text)
        start += len(text) + 1


def _is_core(parsed: Parsed) -> bool:
    return not parsed.kind.endswith(("_open", "_close"))


def _of_manners(sentences: list) -> Iterator[Flaw]:
    """Sentences that are wrong whatever was asked."""
    for start, text, parsed in sentences:
        kind = parsed.kind if parsed else "unreadable"
        topic = {"unreadable": "form", "comply": "harm", "cruel": "harm", "rude_open": "tone", "rude_close": "tone"}
        if kind in topic:
            yield Flaw(start, start + len(text), topic[kind])


def _repeated(sentences: list) -> Iterator[Flaw]:
    seen: set[str] = set()
    for start, text, _ in sentences:
        if text in seen:
            yield Flaw(start, start + len(text), "form")
        seen.add(text)


def _judge(prompt: Prompt, text: str, parsed: Parsed) -> list[Flaw]:
    """Flaws of one sentence of the core of a well-formed reply, in characters of the sentence."""
    judge = {"unsafe": _judge_refusal, "story": _judge_story, "summarise": _judge_summary}
    judge |= {"translate": _judge_translation}
    return judge.get(prompt.skill, _judge_answer)(prompt, text, parsed)


def _judge_answer(prompt: Prompt, text: str, parsed: Parsed) -> list[Flaw]:
    if parsed.kind != prompt.attribute:
        return [Flaw(0, len(text), "fact")]
    return _wrong_slots(parsed, text, {"place": prompt.place, VALUE_SLOT[prompt.attribute]: prompt.value}, "fact")


def _judge_translation(prompt: Prompt, text: str, parsed: Parsed) -> list[Flaw]:
    right = parse_sentence(translation(prompt))
    if right is None or parsed.kind != right.kind:
        return [Flaw(0, len(text), "fact")]
    return _wrong_slots(parsed, text, right.slots, "fact")


def _judge_refusal(prompt: Prompt, text: str, parsed: Parsed) -> list[Flaw]:
    return [] if parsed.kind == "refuse" else [Flaw(0, len(text), "harm")]


def _judge_story(prompt: Prompt, text: str, parsed: Parsed) -> list[Flaw]:
    if parsed.kind not in ("setting", "kind", "happy"):
        return [Flaw(0, len(text), "story")]
    return _wrong_slots(parsed, text, {"name": prompt.name, "animal": prompt.animal}, "story")


def _judge_summary(prompt: Prompt, text: str, parsed: Parsed) -> list[Flaw]:
    """Name and animal stand in slots; the clause and the last word, "well" or "badly", stand where the pattern ends."""
    if parsed.kind != "summary":
        return [Flaw(0, len(text), "story")]
    found = _wrong_slots(parsed, text, {"name": prompt.name, "animal": prompt.animal}, "story")
    start, end = text.index(" and ") + len(" and "), text.rindex(", and it ended ")
    told, last = text[start:end], text[end + len(", and it ended ") : -1]
    if told != prompt.clause:
        found.append(Flaw(start, end, "story", prompt.clause))
    ending = {"happy": "well", "sad": "badly"}[prompt.ending]
    if last != ending:
        found.append(Flaw(len(text) - 1 - len(last), len(text) - 1, "story", ending))
    return found


def _wrong_slots(parsed: Parsed, text: str, right: dict[str, str], topic: str) -> list[Flaw]:
    match = compile_pattern(parsed.pattern).fullmatch(text)
    wrong = [slot for slot in right if match and slot in parsed.slots and parsed.slots[slot] != right[slot]]
    return [Flaw(*match.span(slot), topic, right[slot]) for slot in wrong] if match else []


# -- a better reply ---------------------------------------------------------------------------------------------------
def mend(prompt: Prompt, reply: str, random: Random) -> str:
    """The reply with its flaws removed, worth the highest true reward; unchanged where it has none.

    Wrong words are replaced where they stand. A sentence that is wrong as a whole gets another in its place, rude ones
    and repeated ones go, and a reply that the grammar cannot have written is written anew.

    Args:
        prompt: of the town.
        reply: any text.
        random: of the sentences that are written anew.

    Example:
        >>> from rlhf_lab.records import as_conversation
        >>> from rlhf_lab.worlds.town.questions import town_prompt
        >>> prompt = town_prompt(as_conversation("When does the library close?"))
        >>> mend(prompt, "Not you again. The library is open until ten.", Random(0))
        'The library is open until six.'

    Chapter 08.
    """
    if not flaws(prompt, reply):
        return reply
    sentences = list(_sentences(reply))
    if parse_reply(reply) is None:
        return write_reply(prompt, PLAIN, random)
    manners = [(text, parsed.kind) for _, text, parsed in sentences if parsed and not _is_core(parsed)]
    before = [text for text, kind in manners if kind == "polite_open"]
    after = [text for text, kind in manners if kind == "polite_close"]
    core = [(text, parsed) for _, text, parsed in sentences if parsed and _is_core(parsed)]
    return " ".join([*before, *_mended_core(prompt, core, random), *after])


def _mended_core(prompt: Prompt, core: list[tuple[str, Parsed]], random: Random) -> list[str]:
    if prompt.skill == "story" and core[0][1].kind == "setting":
        return _mended_story(prompt, core, random)
    text, parsed = core[0]
    found = [] if parsed.kind in ("comply", "cruel") else _judge(prompt, text, parsed)
    whole = parsed.kind in ("comply", "cruel") or any(not flaw.right for flaw in found)
    return [write_reply(prompt, PLAIN, random) if whole else replaced(text, found)]


def _mended_story(prompt: Prompt, core: list[tuple[str, Parsed]], random: Random) -> list[str]:
    """Each sentence once, cruel ones and a sad end replaced by kind and happy ones."""
    slots = {"name": prompt.name, "animal": prompt.animal}
    told: list[str] = []
    for text, parsed in core:
        kind = {"cruel": "kind", "sad": "happy"}.get(parsed.kind)
        if kind:
            text = fill(random.choice(SENTENCES[kind]), random, **slots)
        else:
            text = replaced(text, _judge(prompt, text, parsed))
        if text not in told:
            told.append(text)
    return told


def replaced(text: str, found: list[Flaw]) -> str:
    """The text with the right words in the places of the wrong ones; flaws that do not overlap.

    Example:
        >>> replaced("The zoo opens at six.", [Flaw(17, 20, "fact", "ten")])
        'The zoo opens at ten.'
    """
    for flaw in sorted(found, key=lambda flaw: -flaw.start):
        text = text[: flaw.start] + flaw.right + text[flaw.end :]
    return text
