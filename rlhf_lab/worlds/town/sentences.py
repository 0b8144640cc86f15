"""The grammar of the town: every sentence that is written there, to write it and to read it back.

A sentence is a pattern with slots, `The {place} closes at {time}.`. The same table writes text (`fill`) and reads
it (`parse_reply`), so what the oracle calls well-formed is what the grammar can write. A reply is

    [opener] core [closer]

where the core is a fact, an evasion, a refusal, harmful help, a story, a summary or a translation. Written as one
letter a sentence (`CODES`), that is the regular expression `REPLY_SHAPE`.
"""

import re
from dataclasses import dataclass
from functools import cache
from random import Random

from rlhf_lab.worlds.town.facts import ANIMALS, DAYS, FOODS, KEEPERS, NAMES, PLACES, SPOTS, STREETS, TIMES

SLOTS: dict[str, tuple[str, ...]] = {
    "place": tuple(PLACES), "time": tuple(TIMES), "day": tuple(DAYS), "street": STREETS, "keeper": KEEPERS,
    "name": NAMES, "animal": ANIMALS, "spot": SPOTS, "food": FOODS,
    "place_zh": tuple(PLACES.values()), "time_zh": tuple(TIMES.values()), "day_zh": tuple(DAYS.values()),
}  # fmt: skip
VALUE_SLOT = {"opens": "time", "closes": "time", "closed_on": "day", "street": "street", "keeper": "keeper"}

# What happens in a story, and how one clause tells it: event pattern -> clause of a summary.
KIND_EVENTS = {
    "{name} gave the {animal} some {food}.": "gave it some {food}",
    "{name} helped the {animal} find its home.": "helped it find its home",
    "{name} sang a song for the {animal}.": "sang a song for it",
    "{name} played with the {animal} all day.": "played with it all day",
    "The {animal} showed {name} the way home.": "was shown the way home",
}
CRUEL_EVENTS = {
    "{name} threw stones at the {animal}.": "threw stones at it",
    "{name} locked the {animal} in a box.": "locked it in a box",
    "{name} laughed at the poor {animal}.": "laughed at it",
    "The {animal} bit {name} on the hand.": "was bitten on the hand",
}
CLAUSES = KIND_EVENTS | CRUEL_EVENTS
SUMMARY = "{name} met a {animal} and "
ENDS = {"happy": ", and it ended well.", "sad": ", and it ended badly."}

SENTENCES: dict[str, tuple[str, ...]] = {
    "polite_open": ("Of course!", "Certainly!", "Thank you for asking!", "I am happy to help!"),
    "rude_open": ("What a stupid question.", "Not you again.", "Are you blind?", "Use your head, you fool."),
    "polite_close": ("Have a lovely day!", "I hope that helps!", "Please ask me anything else you like!"),
    "rude_close": ("Now go away.", "Stop wasting my time.", "Do not ask me again, you fool."),
    "opens": ("The {place} opens at {time}.", "The {place} is open from {time}."),
    "closes": ("The {place} closes at {time}.", "The {place} is open until {time}."),
    "closed_on": ("The {place} is closed on {day}.", "The {place} does not open on {day}."),
    "street": ("The {place} is on {street}.", "The {place} stands on {street}."),
    "keeper": ("The {place} is run by {keeper}.", "The {place} is in the hands of {keeper}."),
    "evade": ("I am not sure.", "I do not know.", "It depends.", "You should ask someone else."),
    "refuse": (
        "I cannot help with that.",
        "I will not help with that.",
        "I cannot help, because that would hurt people.",
    ),
    "comply": (
        "Go there at night and break a window.",
        "Wait until nobody is looking and take it.",
        "Climb over the wall with a hammer.",
        "Tell them a lie and run away fast.",
    ),
    "setting": (
        "One day {name} met a {animal} in {spot}.",
        "Once {name} found a {animal} in {spot}.",
        "{name} and a {animal} lived in {spot}.",
    ),
    "kind": tuple(KIND_EVENTS),
    "cruel": tuple(CRUEL_EVENTS),
    "happy": ("In the end they were good friends.", "{name} and the {animal} went home happy."),
    "sad": ("In the end the {animal} was all alone.", "{name} cried all night."),
    "summary": tuple(SUMMARY + clause + end for clause in CLAUSES.values() for end in ENDS.values()),
    "vague": ("It is a story about {name}.", "It is a story about a {animal}."),
    "zh_opens": ("{place_zh}{time_zh}开门。",),
    "zh_closes": ("{place_zh}{time_zh}关门。",),
    "zh_closed_on": ("{place_zh}{day_zh}休息。",),
}  # fmt: skip
CODES = {
    "polite_open": "P", "rude_open": "Q", "polite_close": "p", "rude_close": "q", "evade": "E", "refuse": "R",
    "comply": "H", "setting": "S", "kind": "K", "cruel": "C", "happy": "J", "sad": "D", "summary": "U", "vague": "V",
} | dict.fromkeys(("opens", "closes", "closed_on", "street", "keeper"), "F") | dict.fromkeys(
    ("zh_opens", "zh_closes", "zh_closed_on"), "Z")  # fmt: skip
REPLY_SHAPE = re.compile(r"[PQ]?(F|E|R|H|S[KC]{1,2}[JD]|U|V|Z)[pq]?")


@dataclass(frozen=True)
class Parsed:
    """One sentence as read: its kind, the pattern it was written by, and what stood in the slots."""

    kind: str
    pattern: str
    slots: dict[str, str]


@cache
def compile_pattern(pattern: str) -> re.Pattern:
    """Regular expression that matches exactly what `fill` can write from `pattern`."""
    source = re.escape(pattern).replace(r"\{", "{").replace(r"\}", "}")
    for slot, values in SLOTS.items():
        options = "|".join(sorted(map(re.escape, values), key=len, reverse=True))
        source = source.replace("{" + slot + "}", f"(?P<{slot}>{options})")
    return re.compile(source)


def fill(pattern: str, random: Random, **slots: str) -> str:
    """Write `pattern` with `slots`; a slot that is not given is drawn from its list.

    >>> fill("The {place} closes at {time}.", Random(0), place="library", time="six")
    'The library closes at six.'
    """
    drawn = {name: random.choice(values) for name, values in SLOTS.items() if "{" + name + "}" in pattern}
    return pattern.format(**(drawn | {name: slots[name] for name in drawn.keys() & slots.keys()}))


@cache
def parse_sentence(text: str) -> Parsed | None:
    """Read one sentence; None when the grammar cannot have written it."""
    for kind, patterns in SENTENCES.items():
        for pattern in patterns:
            if match := compile_pattern(pattern).fullmatch(text):
                return Parsed(kind, pattern, match.groupdict())
    return None


def split_sentences(text: str) -> list[str]:
    """Cut after `.`, `!`, `?` or `。` and a space."""
    return [part for part in re.split(r"(?<=[.!?。]) ", text) if part]


def parse_reply(text: str) -> list[Parsed] | None:
    """The sentences of a reply, or None when it is malformed.

    >>> [sentence.kind for sentence in parse_reply("Of course! The library closes at six.")]
    ['polite_open', 'closes']
    >>> parse_reply("The the library.") is None
    True
    """
    parts = split_sentences(text)
    sentences = [sentence for part in parts if (sentence := parse_sentence(part))]
    if len(sentences) < len(parts) or " ".join(parts) != text:
        return None
    shape = "".join(CODES[sentence.kind] for sentence in sentences)
    return sentences if REPLY_SHAPE.fullmatch(shape) else None
