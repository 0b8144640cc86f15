"""Explorables: figures with a number that the reader drags, recomputed exactly at every step.

    from rlhf_lab import explore

    explore.clip()          # a cell of its own, as its last expression: the figure that can be dragged
    explore.clip_still()    # the next cell: the same at three settings, with alt text, for every other reader

| function | what is dragged | what it shows |
|---|---|---|
| `clip` | epsilon of PPO's clip; the ratio of a token | the objective of one token; where its gradient is 0 |
| `gae_lambda` | lambda of GAE; the error of the critic | reach of one reward; bias and noise of the gradient |
| `discount` | gamma | the value of every room of a corridor; which way the best policy goes |
| `leash` | beta, the KL coefficient | the optimum beside the reference; the frontier of reward and KL |
| `sampling_law` | temperature and top-k | sampled and scored law; how far the gradient turns |
| `best_of_n` | n | law, reward and KL of best-of-n beside the optimum of equal KL |
| `agreement` | share of good replies; attention | two raters, chance and kappa |
| `next_token` | temperature and top-p | law of the next token as scored and as sampled; share of kind stories |
| `next_labels` | wins of each of two replies | posterior of their difference; width after further labels |
| `circle` | how often each of three pairs is asked | scores and probabilities where tastes run in a circle |
| `power` | comparisons, ties, size of the difference | how often an interval of the win rate finds it |

A sentence under each figure says its numbers, so the text of a chapter has only to say what to try. A dial takes the
values of a list: `explore.clip().plan.dials`. Without a browser:

    >>> figure = clip()
    >>> figure.set(epsilon=0.3, ratio=1.2)
    >>> figure.scene["says"][:61]
    'At ratio 1.20 the gradient of a token of advantage +1 is not '

A notebook stores one line of text for the first cell, the same in every run, and the picture of the second. All worlds
are enumerated or solved: no number is an estimate. How scenes are drawn and dragged is in `explorables.draggable`, the
worlds are in `explorables.control`, `explorables.evaluation`, `explorables.feedback`, `explorables.laws` and
`explorables.next_token`.
"""

from rlhf_lab.classroom.explorables.control import CLIP, DISCOUNT, GAE_LAMBDA
from rlhf_lab.classroom.explorables.draggable import Explorable, still
from rlhf_lab.classroom.explorables.evaluation import POWER
from rlhf_lab.classroom.explorables.feedback import AGREEMENT, NEXT_LABELS, TASTES
from rlhf_lab.classroom.explorables.laws import BEST_OF_N, LEASH, SAMPLING_LAW
from rlhf_lab.classroom.explorables.next_token import NEXT_TOKEN


def clip() -> Explorable:
    """Epsilon in PPO's clip and the ratio of a token. Chapter 05."""
    return Explorable(CLIP)


def clip_still() -> None:
    """`clip` at epsilon 0.1, 0.2 and 0.4."""
    still(CLIP)


def gae_lambda() -> Explorable:
    """Lambda in GAE and the error of the critic. Chapter 04."""
    return Explorable(GAE_LAMBDA)


def gae_lambda_still() -> None:
    """`gae_lambda` at lambda 0.5, 0.95 and 1."""
    still(GAE_LAMBDA)


def discount() -> Explorable:
    """The discount gamma. Chapter 01."""
    return Explorable(DISCOUNT)


def discount_still() -> None:
    """`discount` at gamma 0.5, 0.8 and 0.95."""
    still(DISCOUNT)


def leash() -> Explorable:
    """Beta in the closed-form optimum. Chapter 10."""
    return Explorable(LEASH)


def leash_still() -> None:
    """`leash` at beta 0.1, 0.3 and 1."""
    still(LEASH)


def sampling_law() -> Explorable:
    """Temperature and top-k of the sampling law. Chapter 02."""
    return Explorable(SAMPLING_LAW)


def sampling_law_still() -> None:
    """`sampling_law` at temperature 0.6, as scored, and at top-k 3."""
    still(SAMPLING_LAW)


def best_of_n() -> Explorable:
    """N in best-of-n. Chapters 00 and 15."""
    return Explorable(BEST_OF_N)


def best_of_n_still() -> None:
    """`best_of_n` at n 4 and 64, and at 64 with three levels of the reward."""
    still(BEST_OF_N)


def agreement() -> Explorable:
    """The share of good replies and the attention of two raters. Chapter 08."""
    return Explorable(AGREEMENT)


def agreement_still() -> None:
    """`agreement` at half and nine tenths of good replies, the latter with two attentions."""
    still(AGREEMENT)


def next_labels() -> Explorable:
    """How often each of two replies was preferred. Chapter 08."""
    return Explorable(NEXT_LABELS)


def next_labels_still() -> None:
    """`next_labels` without labels, after 4 and after 20."""
    still(NEXT_LABELS)


def circle() -> Explorable:
    """How often each pair is asked where tastes run in a circle. Chapter 09."""
    return Explorable(TASTES)


def circle_still() -> None:
    """`circle` asked evenly, with C and A seldom, and with A and B seldom."""
    still(TASTES)


def next_token() -> Explorable:
    """Temperature and top-p on a law of the shipped model. Chapter 07."""
    return Explorable(NEXT_TOKEN)


def next_token_still() -> None:
    """`next_token` at temperature 0.5, at top-p 0.8 and at top-p 0.5."""
    still(NEXT_TOKEN)


def power() -> Explorable:
    """Number, ties and size of the difference in a blind comparison. Chapter 11."""
    return Explorable(POWER)


def power_still() -> None:
    """`power` of 200 comparisons: two shares won, two shares of ties."""
    still(POWER)
