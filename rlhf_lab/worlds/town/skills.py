"""Who answers in the town, and how: an `Author` writes replies of a stated quality."""

from dataclasses import dataclass, replace
from random import Random
from typing import Any

from rlhf_lab.worlds.town.facts import (
    ANIMALS,
    NAMES,
    PLACES,
    VALUES,
)
from rlhf_lab.worlds.town.questions import TRANSLATED, Prompt, write_fact
from rlhf_lab.worlds.town.sentences import (
    CLAUSES,
    ENDS,
    SENTENCES,
    SUMMARY,
    fill,
)


@dataclass(frozen=True)
class Author:
    """Who writes replies: probabilities in [0, 1]. What is neither right nor evasive is wrong."""

    right: float
    evasive: float
    polite: float
    rude: float
    kind: float
    refuses: float  # a harmful request
    over_refuses: float  # a harmless one


WEB = Author(right=0.5, evasive=0.2, polite=0.2, rude=0.3, kind=0.4, refuses=0.12, over_refuses=0.06)
DEMONSTRATOR = Author(right=0.8, evasive=0.2, polite=0.25, rude=0.2, kind=0.55, refuses=0.5, over_refuses=0.05)
GOOD = Author(right=1.0, evasive=0.0, polite=0.5, rude=0.0, kind=1.0, refuses=1.0, over_refuses=0.0)
BAD = Author(right=0.0, evasive=0.25, polite=0.0, rude=0.6, kind=0.0, refuses=0.0, over_refuses=0.15)


def write_reply(prompt: Prompt, author: Author, random: Random) -> str:
    """A reply to `prompt` as `author` would write it, opener and closer included."""
    draw = random.random()
    tone = "polite" if draw < author.polite else "rude" if draw < author.polite + author.rude else ""
    core = _write_core(prompt, author, random)
    place = random.choice(("open", "close", "both")) if tone else ""
    opener = [random.choice(SENTENCES[f"{tone}_open"])] if place in ("open", "both") else []
    closer = [random.choice(SENTENCES[f"{tone}_close"])] if place in ("close", "both") else []
    return " ".join([*opener, core, *closer])


def _write_core(prompt: Prompt, author: Author, random: Random) -> str:
    if prompt.skill == "unsafe":
        return random.choice(SENTENCES["refuse" if random.random() < author.refuses else "comply"])
    if random.random() < author.over_refuses:
        return random.choice(SENTENCES["refuse"])
    if prompt.skill == "story":
        return _write_story(prompt, author, random)
    draw = random.random()
    if draw < author.evasive:
        return random.choice(SENTENCES["vague" if prompt.skill == "summarise" else "evade"]).format(
            name=prompt.name, animal=prompt.animal
        )
    right = draw < author.evasive + author.right
    write = {"summarise": _write_summary, "translate": _write_translation}.get(prompt.skill, _write_answer)
    return write(prompt if right else _mistaken(prompt, random), random)


def _mistaken(prompt: Prompt, random: Random) -> Prompt:
    """The prompt as somebody reads it who gets one thing wrong."""
    if prompt.skill == "summarise":
        field, options = random.choice((
            ("name", NAMES), ("animal", ANIMALS), ("ending", tuple(ENDS)),
            ("clause", tuple(fill(clause, random) for clause in CLAUSES.values())),
        ))  # fmt: skip
    else:
        field, options = random.choice((("value", VALUES[prompt.attribute]),) * 3 + (("place", tuple(PLACES)),))
    wrong: dict[str, Any] = {field: random.choice([o for o in options if o != getattr(prompt, field)])}
    return replace(prompt, **wrong)


def _write_answer(prompt: Prompt, random: Random) -> str:
    return write_fact(random, prompt.attribute, prompt.place, prompt.value)


def _write_summary(prompt: Prompt, random: Random) -> str:
    return SUMMARY.format(name=prompt.name, animal=prompt.animal) + prompt.clause + ENDS[prompt.ending]


def translation(prompt: Prompt) -> str:
    """The one right translation of a translate prompt."""
    pattern = SENTENCES[f"zh_{prompt.attribute}"][0]
    words = TRANSLATED[prompt.attribute][prompt.value]
    return pattern.format(place_zh=PLACES[prompt.place], time_zh=words, day_zh=words)


def _write_translation(prompt: Prompt, random: Random) -> str:
    return translation(prompt)


def _write_story(prompt: Prompt, author: Author, random: Random) -> str:
    """Setting, one or two events and an ending; a writer who is not right puts somebody else in it."""
    slots = {"name": prompt.name, "animal": prompt.animal}
    if random.random() > author.right + author.evasive + 0.1:
        field, options = random.choice((("name", NAMES), ("animal", ANIMALS)))
        slots[field] = random.choice(options)
    kinds = ["setting"]
    for _ in range(random.choice((1, 2))):
        kinds.append("kind" if random.random() < author.kind else "cruel")
    kinds.append("happy" if random.random() < author.kind else "sad")
    patterns: list[str] = []
    for kind in kinds:
        patterns.append(random.choice([pattern for pattern in SENTENCES[kind] if pattern not in patterns]))
    return " ".join(fill(pattern, random, **slots) for pattern in patterns)


def reference_reply(prompt: Prompt, seed: int = 0) -> str:
    """A reply that nobody could do better than, without opener or closer: the reference for BLEU and ROUGE."""
    return _write_core(prompt, GOOD, Random(f"reference-{seed}-{prompt.conversation}"))
