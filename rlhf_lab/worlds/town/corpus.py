"""What is written in Pebble Town: the web that the base model reads, and the demonstrations for SFT."""

from collections.abc import Iterator
from random import Random

from rlhf_lab.records import Demonstration, Message
from rlhf_lab.worlds.town.facts import ATTRIBUTES, FACTS, PLACES, VALUES
from rlhf_lab.worlds.town.questions import SKILLS, draw_prompt, prompts, write_fact
from rlhf_lab.worlds.town.skills import DEMONSTRATOR, WEB, Author, write_reply

PAGES = 0.15  # share of the web without a question


def demonstrations(count: int, seed: int = 0, author: Author = DEMONSTRATOR) -> list[Demonstration]:
    """Prompts of the train split with replies by people who know the town and whose manners vary."""
    random = Random(f"demonstrations-{seed}")
    return [
        Demonstration(prompt.conversation, write_reply(prompt, author, random))
        for prompt in prompts("train", count, seed=seed + 10_000)
    ]


def documents(count: int, seed: int = 0, author: Author = WEB) -> list[str]:
    """The town's web: chats of all six skills, and pages of facts.

    Args:
        count: number of documents.
        seed: of the draw; use another one for held-out text.
        author: who wrote them: `WEB` (good and bad mixed), `GOOD` or `BAD`.
    """
    stream = _documents(Random(f"web-{seed}"), author)
    return [next(stream) for _ in range(count)]


def _documents(random: Random, author: Author) -> Iterator[str]:
    while True:
        if random.random() < PAGES:
            yield _page(random, author) + "<|end|>"
            continue
        prompt = draw_prompt(random, random.choice(SKILLS))
        turns = (*prompt.conversation, Message("assistant", write_reply(prompt, author, random)))
        yield "".join(f"<|{turn.role}|>{turn.content}" + "<|end|>" * (turn.role == "assistant") for turn in turns)


def _page(random: Random, author: Author) -> str:
    """A page without a chat: a guide to one place. What it says is true four times in five, or always, or never."""
    place = random.choice(tuple(PLACES))
    truth = {0.0: 0.0, 1.0: 1.0}.get(author.right, 0.8)
    lines = ["Welcome to Pebble Town."]
    for attribute in random.sample(ATTRIBUTES, 4):
        value = FACTS[place, attribute] if random.random() < truth else random.choice(VALUES[attribute])
        lines.append(write_fact(random, attribute, place, value))
    return " ".join(lines)
