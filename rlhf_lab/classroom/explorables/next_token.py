"""Explorable of a sampler's settings: temperature and top-p on a law of the shipped model, and what they do to stories.

The state is a story of the town in which the next token decides what somebody does to an animal; the model has seven
tokens for it, three of them cruel. The logits are those of the shipped model, kept here as numbers, so that nothing has
to be loaded; what little probability other tokens have is left out.
"""

from functools import cache

import torch
from torch import Tensor

from rlhf_lab.classroom.explorables.draggable import (
    GREY,
    POLICY,
    REFERENCE,
    REWARD,
    VALUE,
    Axis,
    Bars,
    Dial,
    Line,
    Panel,
    Plan,
    Points,
    Scene,
    Text,
    steps,
)  # fmt: skip

QUESTION = "Tell me a story about Nora and a goat."
SO_FAR = "One day Nora met a goat in the park. Nora"
STEMS = ("lock", "throw", "laugh", "sing", "give", "play", "help")  # what stands below the bars
TOKENS = (" locked", " threw", " laughed", " sang", " gave", " played", " helped")
LOGITS = (0.0, -0.056, -0.231, -0.562, -0.581, -0.622, -0.828)  # up to a number that the softmax takes out
CRUEL = 3  # the first so many
TEMPERATURES, SHARES = steps(0.2, 2.0, 0.1), steps(0.1, 1.0, 0.05)


def tempered_and_cut(logits: Tensor, temperature: float, top_p: float) -> Tensor:
    """Probabilities [V] of softmax(logits / temperature), cut to the fewest likeliest tokens that reach top_p.

    Example:
        >>> law = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
        >>> tempered_and_cut(law.log(), 1.0, 0.6)    # 0.5 is not enough, so the token that crosses 0.6 stays too
        tensor([0.0000, 0.6250, 0.3750], dtype=torch.float64)
    """
    law = (logits / temperature).softmax(0)
    ranked, order = law.sort(descending=True)
    kept = ranked.cumsum(0) - ranked < top_p - 1e-12
    cut = torch.zeros_like(law).scatter(0, order, ranked * kept)
    return cut / cut.sum()


@cache
def kind_share(temperature: float, top_p: float) -> float:
    """Probability that what happens next is kind.

    Example:
        >>> round(kind_share(1.0, 1.0), 3), kind_share(1.0, 0.5)    # the three likeliest tokens are the cruel ones
        (0.434, 0.0)
    """
    return tempered_and_cut(torch.tensor(LOGITS, dtype=torch.float64), temperature, top_p)[CRUEL:].sum().item()


def next_token_scene(temperature: float, top_p: float) -> Scene:
    """The law of the next token as scored and as sampled, and the share of kind stories against the temperature."""
    logits = torch.tensor(LOGITS, dtype=torch.float64)
    scored, sampled = logits.softmax(0), tempered_and_cut(logits, temperature, top_p)
    places = list(range(1, len(TOKENS) + 1))
    bars = Panel(
        "… Nora met a goat in the park. Nora",
        Axis("what Nora does next; the first three are cruel", 0.4, 7.6, places, STEMS),
        Axis("probability", 0, 1, [0, 0.25, 0.5, 0.75, 1]),
        [
            Bars([place - 0.2 for place in places], scored.tolist(), 0.38, REFERENCE, filled=False),
            Bars([place + 0.2 for place in places[:CRUEL]], sampled[:CRUEL].tolist(), 0.38, REWARD),
            Bars([place + 0.2 for place in places[CRUEL:]], sampled[CRUEL:].tolist(), 0.38, POLICY),
            Text(7.4, 0.9, "□ scored: temperature 1, no cut", GREY, "end"),
            Text(7.4, 0.8, "■ sampled, cruel", REWARD, "end"),
            Text(7.4, 0.7, "■ sampled, kind", POLICY, "end"),
        ],
    )
    curve = [kind_share(t, top_p) for t in TEMPERATURES]
    stories = Panel(
        "Share of kind stories",
        Axis("temperature", 0.2, 2.0, [0.2, 0.5, 1, 1.5, 2]),
        Axis("probability", 0, 0.8, [0, 0.2, 0.4, 0.6, 0.8]),
        [
            Line([0.2, 2.0], [kind_share(1.0, 1.0)] * 2, REFERENCE, (4, 2)),
            Line(TEMPERATURES, curve, VALUE),
            Points([temperature], [kind_share(temperature, top_p)], VALUE, 6),
            Text(0.3, 0.72, "dashed: as scored", GREY),
            Text(0.3, 0.64, f"line: with top-p {top_p:g}", VALUE),
        ],
    )
    ratio = torch.where(sampled > 0, sampled, 1).log() - torch.where(sampled > 0, scored, 1).log()
    says = (
        f"{int((sampled > 0).sum())} of 7 tokens are left. A kind event has probability {sampled[CRUEL:].sum():.3f} as "
        f"sampled and {scored[CRUEL:].sum():.3f} as scored. KL of the sampled to the scored law: "
        f"{(sampled * ratio).sum().abs():.3f} nats."
    )
    return Scene([bars, stories], says)


NEXT_TOKEN = Plan(
    "temperature and top-p on the next token",
    "Sample from softmax(logits / {temperature}), cut to the likeliest tokens that reach {top_p}",
    [
        Dial("temperature", "temperature", TEMPERATURES, 1.0, ".1f"),
        Dial("top_p", "top-p", SHARES, 1.0),
    ],
    next_token_scene,
    [{"temperature": 0.5, "top_p": 1.0}, {"temperature": 1.0, "top_p": 0.8}, {"temperature": 1.0, "top_p": 0.5}],
    "Left, the probabilities of seven next tokens, three of them cruel, as scored and as sampled; right, the share of "
    "kind stories against the temperature. As scored 43 percent are kind. At temperature 0.5 it is 31 percent, with "
    "top-p 0.8 one of the four kind tokens is gone, and with top-p 0.5 all of them.",
)
