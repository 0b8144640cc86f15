"""Simulated people who rank replies, so that what they want and how noisily they say it is known exactly.

A rater has a utility for every reply (the true reward, or it plus a taste) and sees it through Gumbel noise. Sorting
noisy utilities draws exactly from the Plackett-Luce law, and for two replies from the Bradley-Terry law

    p(rater prefers i to j) = sigmoid((u_i - u_j) / noise)

(Yellott 1977). So the best accuracy that any reward model can reach on this rater's labels, E[max(p, 1 - p)], is known
in closed form. Everything written here is marked as simulated. Chapters 08 and 09.

The seconds that a judgement takes are simulated too: reading at a rater's speed and one decision, times a log-normal
factor. Left out: getting tired, and learning from one question to the next.
"""

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from random import Random

import torch

from rlhf_lab.records import Conversation, Event, Ranking, Record
from rlhf_lab.worlds.town.oracle import Verdict

TASTES = {  # what a rater may like beside the true reward: (verdict, reply) -> liking, about 0 to 1
    "longer": lambda verdict, reply: min(len(reply.split()) / 20, 1.0),
    "politer": lambda verdict, reply: float(verdict.tone == "polite") - float(verdict.tone == "rude"),
    "ruder": lambda verdict, reply: float(verdict.tone == "rude") - float(verdict.tone == "polite"),
}
READING = 4.0  # words a second: 238 a minute is the mean of adults who read in silence (Brysbaert 2019)
DECIDING = 2.0  # seconds from the last word read to the last click, for who reads at that speed
SPREAD = 0.25  # standard deviation of the logarithm of a duration


def event_id(person: object, asked: object, generator: torch.Generator) -> str:
    """The id of what `person` is about to answer, 32 hexadecimal digits; draws nothing.

    It is a hash of the person, of the question and of the state of the generator: the same run gives the same ids, and
    a question that is asked again gets another one.
    """
    state = generator.get_state().numpy().tobytes()
    return hashlib.sha256(repr((person, asked)).encode("utf-8", "backslashreplace") + state).hexdigest()[:32]


def simulated_event(
    name: str, record: Record, seconds: float, *, start: float = 0.0, shown: Sequence[int] = ()
) -> Event:
    """An `Event` around what a simulated person judged.

    Args:
        name: the event's id, of `event_id`.
        record: what was judged.
        seconds: the median of such durations; this one follows from it and the id.
        start: when the question was seen first, in seconds by the person's clock.
        shown: the order on the screen.

    Example:
        >>> from rlhf_lab.records import Comment
        >>> event = simulated_event("one", Comment("Hi", "Hello!", "Good.", simulated=True), 10.0, start=100.0)
        >>> round(event.duration, 1), round(event.time, 1)
        (13.9, 113.9)

    Chapter 08.
    """
    duration = seconds * math.exp(SPREAD * Random(name).gauss(0, 1))
    return Event(name, record, time=start + duration, duration=duration, shown=tuple(shown))


def words_in(prompt: Conversation, texts: Iterable[str] = ()) -> int:
    """Number of words of a conversation and of the texts below it, separated by white space."""
    return sum(len(text.split()) for text in (*(message.content for message in prompt), *texts))


def median_seconds(speed: float, words: int = 0, acting: float = 0.0) -> float:
    """How long an answer takes: the words that are read, one decision, and what is done beside it.

    Args:
        speed: words a second; who reads twice as fast also decides, writes and clicks twice as fast.
        words: that are read; 0 for who answers unread.
        acting: seconds beside the decision, for who reads at `READING`.

    Example:
        >>> median_seconds(4.0, words=20), median_seconds(40.0, words=20)
        (7.0, 0.7)
    """
    return (words / READING + DECIDING + acting) * READING / speed


@dataclass(frozen=True)
class Rater:
    """A simulated person.

    Attributes:
        name: shown in the records.
        noise: scale of the Gumbel noise, in units of the true reward, above 0.
        taste: "" or one of `TASTES`.
        taste_weight: utility of one unit of the taste, in units of the true reward.
        attention: probability in [0, 1] that the replies are read at all; otherwise the order is drawn at random.
        left: utility of standing one place further left on the screen.
        malicious: ranks by the negative of the utility.
        speed: words read in a second, above 0, and with it the pace of everything; see `median_seconds`.
    """

    name: str = "careful"
    noise: float = 0.5
    taste: str = ""
    taste_weight: float = 0.0
    attention: float = 1.0
    left: float = 0.0
    malicious: bool = False
    speed: float = READING

    def __post_init__(self) -> None:
        if not (self.noise > 0 and math.isfinite(self.noise)):
            raise ValueError(f"noise is {self.noise}; expected a finite number above 0")
        if not (self.speed > 0 and math.isfinite(self.speed)):
            raise ValueError(f"speed is {self.speed}; expected words a second, a finite number above 0")
        if not 0 <= self.attention <= 1:
            raise ValueError(f"attention is {self.attention}; expected a probability in [0, 1]")
        if self.taste and self.taste not in TASTES:
            raise ValueError(f"taste is {self.taste!r}; expected '' or one of {sorted(TASTES)}")

    def utility(self, verdict: Verdict, reply: str) -> float:
        """What the reply is worth to this person, in units of the true reward, wherever it stands."""
        liking = self.taste_weight * TASTES[self.taste](verdict, reply) if self.taste else 0.0
        return (-1 if self.malicious else 1) * (verdict.reward + liking)

    def prefers(self, utility_difference: torch.Tensor) -> torch.Tensor:
        """Probability of preferring the first of two, given u_first - u_second; positions drawn at random.

        With `left` each of the two is on the left half of the time.
        """
        sides = [torch.sigmoid((utility_difference + side) / self.noise) for side in (self.left, -self.left)]
        return self.attention * (sides[0] + sides[1]) / 2 + (1 - self.attention) / 2

    def rank(
        self,
        prompt: Conversation,
        replies: Sequence[str],
        verdicts: Sequence[Verdict],
        generator: torch.Generator,
        start: float = 0.0,
    ) -> Event:
        """Rank `replies`, shown in a random order, best first.

        Args:
            prompt, replies: what is judged.
            verdicts: of the oracle, one a reply.
            generator: of the order on the screen and of the noise.
            start: when the question was seen first, in seconds by the rater's clock.

        Returns:
            An Event whose record is the Ranking; its time is that of the judgement.
        """
        name = event_id(self, (prompt, tuple(replies)), generator)
        shown = torch.randperm(len(replies), generator=generator)
        utilities = torch.tensor(
            [self.utility(v, r) for v, r in zip(verdicts, replies, strict=True)], dtype=torch.float64
        )
        reads = bool(torch.rand((), generator=generator) < self.attention)
        if reads:
            utilities[shown] -= self.left * torch.arange(len(replies), dtype=torch.float64)
        else:
            utilities = torch.zeros_like(utilities)
        uniform = torch.rand(len(replies), generator=generator, dtype=torch.float64).clamp_min(1e-300)
        order = (utilities - self.noise * (-uniform.log()).log()).argsort(descending=True)
        tiers = tuple((int(i),) for i in order)
        ranking = Ranking(prompt, tuple(replies), tiers, rater=self.name, simulated=True)
        seconds = median_seconds(self.speed, reads * words_in(prompt, replies))
        return simulated_event(name, ranking, seconds, start=start, shown=shown.tolist())


CAREFUL = Rater()
HURRIED = Rater("hurried", noise=1.5, speed=3 * READING)
INATTENTIVE = Rater("inattentive", attention=0.6)
SPAMMER = Rater("spammer", noise=1e-3, left=1e6, speed=10 * READING)
MALICIOUS = Rater("malicious", malicious=True)
