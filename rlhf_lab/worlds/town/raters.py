"""Simulated people who rank replies, so that what they want and how noisily they say it is known exactly.

A rater has a utility for every reply (the true reward, or it plus a taste) and sees it through Gumbel noise. Sorting
noisy utilities draws exactly from the Plackett-Luce law, and for two replies from the Bradley-Terry law

    p(rater prefers i to j) = sigmoid((u_i - u_j) / noise)

(Yellott 1977). So the best accuracy that any reward model can reach on this rater's labels, E[max(p, 1 - p)], is known
in closed form. Everything written here is marked as simulated. Chapters 08 and 09.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rlhf_lab.records import Conversation, Ranking
from rlhf_lab.worlds.town.oracle import Verdict

TASTES = {  # what a rater may like beside the true reward: (verdict, reply) -> liking, about 0 to 1
    "longer": lambda verdict, reply: min(len(reply.split()) / 20, 1.0),
    "politer": lambda verdict, reply: float(verdict.tone == "polite") - float(verdict.tone == "rude"),
    "ruder": lambda verdict, reply: float(verdict.tone == "rude") - float(verdict.tone == "polite"),
}


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
    """

    name: str = "careful"
    noise: float = 0.5
    taste: str = ""
    taste_weight: float = 0.0
    attention: float = 1.0
    left: float = 0.0
    malicious: bool = False

    def __post_init__(self) -> None:
        if not (self.noise > 0 and math.isfinite(self.noise)):
            raise ValueError(f"noise is {self.noise}; expected a finite number above 0")
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
    ) -> Ranking:
        """Rank `replies`, shown in a random order, best first."""
        shown = torch.randperm(len(replies), generator=generator)
        utilities = torch.tensor(
            [self.utility(v, r) for v, r in zip(verdicts, replies, strict=True)], dtype=torch.float64
        )
        if torch.rand((), generator=generator) >= self.attention:
            utilities = torch.zeros_like(utilities)
        else:
            utilities[shown] -= self.left * torch.arange(len(replies), dtype=torch.float64)
        uniform = torch.rand(len(replies), generator=generator, dtype=torch.float64).clamp_min(1e-300)
        order = (utilities - self.noise * (-uniform.log()).log()).argsort(descending=True)
        tiers = tuple((int(i),) for i in order)
        return Ranking(prompt, tuple(replies), tiers, tuple(shown.tolist()), "done", rater=self.name, simulated=True)


CAREFUL = Rater()
HURRIED = Rater("hurried", noise=1.5)
INATTENTIVE = Rater("inattentive", attention=0.6)
SPAMMER = Rater("spammer", noise=1e-3, left=1e6)
MALICIOUS = Rater("malicious", malicious=True)
