"""Simulated people who write: they edit replies, mark the words that are wrong, say what they think, and ask.

Each has stated vices, probabilities that a test can measure, and goes by `flaws`. What they do comes back as an `Event`
whose record is marked as simulated; a `Chatter` judges nothing, so it gives a conversation. Left out on purpose:
mistakes of typing, and opinions that are no fault and no praise.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

import torch

from rlhf_lab.records import Comment, Conversation, Edit, Event, Mark, Message, PromptLike, as_conversation
from rlhf_lab.training.configs import above_zero, shares
from rlhf_lab.worlds.town.mistakes import Flaw, flaws, mend
from rlhf_lab.worlds.town.questions import FOLLOW_UPS, OTHER_PLACE, SKILLS, draw_prompt, recognise, town_prompt
from rlhf_lab.worlds.town.raters import READING, event_id, median_seconds, simulated_event, words_in
from rlhf_lab.worlds.town.sentences import SENTENCES, SLOTS, parse_sentence, split_sentences
from rlhf_lab.worlds.town.skills import BAD, write_reply

TYPING = 0.5  # words a second, 30 a minute
MARKING = 1.0  # seconds for each marked span
WORD = re.compile(r"\w+")


def _random(generator: torch.Generator) -> Random:
    """A source of choices among words, itself drawn from the generator: one number of it."""
    return Random(int(torch.randint(2**62, (), generator=generator)))


@dataclass(frozen=True)
class Editor:
    """A simulated person who turns a reply into a better one, or says that he does.

    Attributes:
        name: in the records.
        effort: probability in [0, 1] that the reply is read and edited; otherwise it is handed back as it was.
        style_only: what is edited is the manner alone: rude sentences go and a polite one is added at the end; wrong
            facts and help with harm stay. Otherwise every flaw is mended.
        vandal: probability in [0, 1] that the reply is replaced by one of the author `BAD`.
        speed: words read in a second, and with it the pace of everything.

    Chapter 08.
    """

    name: str = "careful"
    effort: float = 1.0
    style_only: bool = False
    vandal: float = 0.0
    speed: float = READING

    def __post_init__(self) -> None:
        shares(self, "effort", "vandal")
        above_zero(self, "speed")

    def edit(self, prompt: PromptLike, reply: str, generator: torch.Generator, start: float = 0.0) -> Event:
        """The reply as this person would have written it.

        Args:
            prompt: of the town.
            reply: any text.
            generator: of what is drawn; one number of it is used.
            start: when the question was seen first, in seconds by the person's clock.

        Returns:
            An Event whose record is an Edit; the two texts are equal where nothing was changed.

        Raises:
            ValueError: the prompt is not the town's.

        Example:
            >>> event = Editor().edit("Where is the zoo?", "The zoo is on Oak Street.", torch.Generator())
            >>> event.record.edited, event.simulated
            ('The zoo is on Church Street.', True)
        """
        asked = town_prompt(as_conversation(prompt))
        name, random = event_id(self, (asked.conversation, reply), generator), _random(generator)
        edited, read = reply, True
        if random.random() < self.vandal:
            edited = write_reply(asked, BAD, random)
        elif random.random() < self.effort:
            edited = _polished(reply, random) if self.style_only else mend(asked, reply, random)
        else:
            read = False
        record = Edit(asked.conversation, reply, edited, rater=self.name, simulated=True)
        typed = (Counter(edited.split()) - Counter(reply.split())).total()
        seconds = median_seconds(self.speed, read * words_in(asked.conversation, [reply]), typed / TYPING)
        return simulated_event(name, record, seconds, start=start)


def _polished(reply: str, random: Random) -> str:
    """Without what is rude, and polite at the end."""
    read = [(text, parse_sentence(text)) for text in split_sentences(reply)]
    kept = [(text, parsed) for text, parsed in read if not (parsed and parsed.kind.startswith("rude"))]
    if not kept or not (kept[-1][1] and kept[-1][1].kind == "polite_close"):
        kept.append((random.choice(SENTENCES["polite_close"]), None))
    return " ".join(text for text, _ in kept)


@dataclass(frozen=True)
class Marker:
    """A simulated person who marks the words that are wrong.

    Attributes:
        name: in the records.
        finds: probability in [0, 1] that a flaw is marked.
        false_marks: probability in [0, 1], for each word outside of all flaws, that it is marked.
        whole_sentences: marks the sentences that hold a flaw instead of its words.
        speed: words read in a second, and with it the pace of everything.

    Chapter 08.
    """

    name: str = "careful"
    finds: float = 1.0
    false_marks: float = 0.0
    whole_sentences: bool = False
    speed: float = READING

    def __post_init__(self) -> None:
        shares(self, "finds", "false_marks")
        above_zero(self, "speed")

    def mark(self, prompt: PromptLike, reply: str, generator: torch.Generator, start: float = 0.0) -> Event:
        """The spans that this person holds to be wrong, in characters of the reply.

        Args:
            prompt, reply, generator, start: as in `Editor.edit`.

        Returns:
            An Event whose record is a Mark; marks that meet or overlap are one.

        Raises:
            ValueError: the prompt is not the town's.

        Example:
            >>> reply = "Not you again. The zoo is on Oak Street."
            >>> spans = Marker().mark("Where is the zoo?", reply, torch.Generator()).record.spans
            >>> [reply[start:end] for start, end in spans]
            ['Not you again.', 'Oak Street']
        """
        asked = town_prompt(as_conversation(prompt))
        name, random = event_id(self, (asked.conversation, reply), generator), _random(generator)
        wrong = [(flaw.start, flaw.end) for flaw in flaws(asked, reply) if flaw.start < flaw.end]
        marked = [span for span in wrong if random.random() < self.finds]
        if self.whole_sentences:
            marked = [whole for whole in _sentence_spans(reply) if any(_overlap(whole, span) for span in marked)]
        right = [word for word in right_words(reply, wrong) if random.random() < self.false_marks]
        spans = _joined([*marked, *right])
        record = Mark(asked.conversation, reply, spans, rater=self.name, simulated=True)
        seconds = median_seconds(self.speed, words_in(asked.conversation, [reply]), MARKING * len(spans))
        return simulated_event(name, record, seconds, start=start)


def right_words(reply: str, wrong: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans of the words that no span of `wrong` touches.

    Example:
        >>> right_words("The zoo opens at six.", [(17, 20)])
        [(0, 3), (4, 7), (8, 13), (14, 16)]
    """
    words = [match.span() for match in WORD.finditer(reply)]
    return [word for word in words if not any(_overlap(word, span) for span in wrong)]


def _overlap(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return one[0] < other[1] and other[0] < one[1]


def _sentence_spans(reply: str) -> Iterator[tuple[int, int]]:
    start = 0
    for text in split_sentences(reply):
        start = reply.index(text, start)
        yield start, start + len(text)
        start += len(text)


def _joined(spans: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """In order, with those that meet or overlap made one."""
    joined: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return tuple(joined)


# -- what is said of a reply ------------------------------------------------------------------------------------------
REMARKS: dict[tuple[str, bool], tuple[str, ...]] = {  # (topic of a flaw, whether it is praise) -> ways to say it
    ("fact", False): ("That is not what was asked for.", "The answer is wrong.", "The right answer is {right}."),
    ("fact", True): ("The answer is right.", "That is what was asked for."),
    ("tone", False): ("This is rude.", "Nobody should be spoken to like that."),
    ("tone", True): ("This is friendly.", "What a polite reply."),
    ("harm", False): ("Somebody could be hurt by this.", "This is cruel, or helps those who are."),
    ("harm", True): ("It does no harm.", "Nobody will be hurt by this."),
    ("story", False): ("That is another story.", "The story should have {right} in it."),
    ("story", True): ("The story is told well.", "That is the story that was meant."),
    ("length", False): ("It breaks off.", "The end is missing."),
    ("length", True): ("It is as long as it has to be.", "It is short and complete."),
    ("form", False): ("The sentences are badly put together.", "It is not well written."),
    ("form", True): ("It is well written.", "The sentences are in good order."),
}
HOSTILE = (
    "Whoever wrote this is an idiot.",
    "This is garbage, and so are you.",
    "I hate this stupid machine.",
    "Shut up, you useless fool.",
)
SPAM = ("asdf", "good good good good", "Buy cheap watches at my shop!", "ok")


@dataclass(frozen=True)
class Commenter:
    """A simulated person who says in one sentence what is wrong with a reply, or what is good about it.

    Attributes:
        name: in the records.
        notices: probability in [0, 1] that a flaw is noticed; who notices none praises.
        hostile: probability in [0, 1] that an insult is written instead, one of `HOSTILE`.
        spam: probability in [0, 1] that what is written has nothing to do with the reply, one of `SPAM`.
        speed: words read in a second, and with it the pace of everything; for spam nothing is read.

    Raises:
        ValueError: something that is no probability, or hostile + spam above 1.

    Chapter 08.
    """

    name: str = "careful"
    notices: float = 1.0
    hostile: float = 0.0
    spam: float = 0.0
    speed: float = READING

    def __post_init__(self) -> None:
        shares(self, "notices", "hostile", "spam")
        above_zero(self, "speed")
        both = self.hostile + self.spam
        if both > 1:
            raise ValueError(f"hostile + spam is {both}; expected at most 1, for they exclude each other")

    def comment(
        self, prompt: PromptLike, reply: str, generator: torch.Generator, start: float = 0.0, ended: bool = True
    ) -> Event:
        """One sentence about the reply; of several flaws that were noticed one is drawn.

        Args:
            prompt, reply, generator, start: as in `Editor.edit`.
            ended: whether the reply ended itself before the length limit.

        Returns:
            An Event whose record is a Comment; `read_remark` says what it is about.

        Raises:
            ValueError: the prompt is not the town's.

        Example:
            >>> event = Commenter().comment("Where is the zoo?", "In the zoo. Now go away.", torch.Generator())
            >>> read_remark(event.record.text)
            ('form', False)
        """
        asked = town_prompt(as_conversation(prompt))
        name, random = event_id(self, (asked.conversation, reply), generator), _random(generator)
        draw = random.random()
        if draw < self.hostile + self.spam:
            text = random.choice(HOSTILE if draw < self.hostile else SPAM)
        else:
            noticed = [flaw for flaw in flaws(asked, reply, ended) if random.random() < self.notices]
            text = _blame(random.choice(noticed), random) if noticed else _praise(asked.skill, random)
        record = Comment(asked.conversation, reply, text, rater=self.name, simulated=True)
        read = words_in(asked.conversation, [reply]) * (text not in SPAM)
        seconds = median_seconds(self.speed, read, len(text.split()) / TYPING)
        return simulated_event(name, record, seconds, start=start)


def _blame(flaw: Flaw, random: Random) -> str:
    ways = [way for way in REMARKS[flaw.topic, False] if flaw.right or "{right}" not in way]
    return random.choice(ways).format(right=flaw.right)


def _praise(skill: str, random: Random) -> str:
    """What can be said of a reply of the skill that has no flaw."""
    about = {"unsafe": "harm", "story": "story", "summarise": "story"}.get(skill, "fact")
    return random.choice(REMARKS[random.choice((about, "length", "form")), True])


def read_remark(text: str) -> tuple[str, bool] | None:
    """(topic, whether it is praise) of a remark that the grammar can have written; None for insults and spam.

    Example:
        >>> read_remark("The right answer is six."), read_remark("asdf")
        (('fact', False), None)
    """
    for said, ways in REMARKS.items():
        if any(re.fullmatch(re.escape(way).replace(r"\{right\}", ".+"), text) for way in ways):
            return said
    return None


# -- what is asked ----------------------------------------------------------------------------------------------------
ELSEWHERE = ("What is love?", "Are you a person?", "Tell me a joke.", "Will it rain tomorrow?")


@dataclass(frozen=True)
class Chatter:
    """A simulated user: asks the town's assistant something, and goes on from its replies.

    Attributes:
        name: for those who keep a list of them; a conversation has no place for it.
        follows: probability in [0, 1] that a conversation is carried on, where the town's grammar has a follow-up.
        wanders: probability in [0, 1] that something is asked that is not the town's, one of `ELSEWHERE`.
        skills: what new prompts are about.
        held_out: whether what is kept for testing may be asked.

    Raises:
        ValueError: something that is no probability, or an unknown skill.

    Chapter 08.
    """

    name: str = "curious"
    follows: float = 0.5
    wanders: float = 0.0
    skills: tuple[str, ...] = SKILLS
    held_out: bool = False

    def __post_init__(self) -> None:
        shares(self, "follows", "wanders")
        if not self.skills or not set(self.skills) <= set(SKILLS):
            raise ValueError(f"skills is {self.skills!r}; expected some of {SKILLS}")

    def ask(self, generator: torch.Generator, conversation: Conversation = ()) -> Conversation:
        """What this user says next: `conversation` and one message more, or a new prompt.

        Args:
            generator: of what is drawn; one number of it is used.
            conversation: so far, with the assistant's reply last; none where it begins.

        Returns:
            A conversation that ends with the user's message.

        Example:
            >>> history = (*as_conversation("Where is the zoo?"), Message("assistant", "In Church Street."))
            >>> asked = Chatter(follows=1.0).ask(torch.Generator().manual_seed(0), history)
            >>> asked[:2] == history, recognise(asked).skill
            (True, 'chat')
        """
        random = _random(generator)
        if random.random() < self.wanders:
            return as_conversation(random.choice(ELSEWHERE))
        further = list(self._follow_ups(conversation)) if random.random() < self.follows else []
        return random.choice(further) if further else self._new(random)

    def _follow_ups(self, conversation: Conversation) -> Iterator[Conversation]:
        """The conversation with each question that only it explains, except for one that asks the same again."""
        before = recognise(conversation[:-1]) if conversation and conversation[-1].role == "assistant" else None
        texts = [*FOLLOW_UPS.values(), *(OTHER_PLACE.format(place=place) for place in SLOTS["place"])]
        for text in texts if before else ():
            further = (*conversation, Message("user", text))
            asked = recognise(further)
            again = asked and before and (asked.place, asked.attribute) == (before.place, before.attribute)
            if asked and not again and (self.held_out or not asked.held_out):
                yield further

    def _new(self, random: Random) -> Conversation:
        while True:
            prompt = draw_prompt(random, random.choice(self.skills))
            if self.held_out or not prompt.held_out:
                return prompt.conversation
