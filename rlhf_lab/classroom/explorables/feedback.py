"""Explorables of human feedback: agreement beyond chance, what some labels and the next ones tell of two replies, and
tastes that run in a circle.

For each: the exact numbers as functions of the dials, the scene that shows them, and the plan of the explorable.
"""

import itertools
from functools import cache

import numpy as np
from scipy.special import expit, gammaln

from rlhf_lab.classroom.explorables.draggable import (
    DASHED,
    GREY,
    INK,
    POLICY,
    REFERENCE,
    REWARD,
    VALUE,
    Axis,
    Band,
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

# -- agreement beyond chance -----------------------------------------------------------------------------------------
SHARES = steps(0.05, 0.95, 0.05)


def two_raters(good: float, attention: float) -> tuple[list[float], list[float]]:
    """Probabilities of (both good, only the first, only the second, both bad) for two raters of the same kind.

    A share `good` of the replies is good. Each rater sees which with probability `attention`; otherwise he says "good"
    with probability `good`, whatever the reply is like. So both say it of a share `good`, and kappa is attention^2.

    Returns:
        as observed, and by chance with the same shares.

    Example:
        >>> observed, chance = two_raters(0.9, 0.5)
        >>> round(observed[0] + observed[3], 3), round(chance[0] + chance[3], 3)
        (0.865, 0.82)
    """
    chance = [good * good, good * (1 - good), (1 - good) * good, (1 - good) ** 2]
    both = attention**2
    observed = [both * aligned + (1 - both) * p for aligned, p in zip((good, 0, 0, 1 - good), chance, strict=True)]
    return observed, chance


def agreement_scene(good: float, attention: float) -> Scene:
    """The table of two raters beside what chance gives, and three measures against the share of good replies."""
    observed, chance = two_raters(good, attention)
    agreed, by_chance = observed[0] + observed[3], chance[0] + chance[3]
    kappa = (agreed - by_chance) / (1 - by_chance)
    places = [1, 2, 3, 4]
    table = Panel(
        "What two raters say of a reply",
        Axis("first and second rater, + good, − bad", 0.4, 4.6, places, ["+ +", "+ −", "− +", "− −"]),
        Axis("probability", 0, 1, [0, 0.25, 0.5, 0.75, 1]),
        [
            Bars([place - 0.2 for place in places], chance, 0.38, REFERENCE, filled=False),
            Bars([place + 0.2 for place in places], observed, 0.38, POLICY),
            Text(4.5, 0.92, "□ by chance", GREY, "end"),
            Text(4.5, 0.82, "■ observed", POLICY, "end"),
        ],
    )
    curves = [two_raters(share, attention) for share in SHARES]
    lines = [[table[0] + table[3] for table in kind] for kind in zip(*curves, strict=True)]
    measures = Panel(
        "The same two raters, other replies",
        Axis("share of good replies", 0, 1, [0, 0.25, 0.5, 0.75, 1]),
        Axis("agreement", 0, 1.12, [0, 0.25, 0.5, 0.75, 1]),
        [
            Line(SHARES, lines[0], POLICY),
            Line(SHARES, lines[1], REFERENCE, DASHED),
            Line([SHARES[0], SHARES[-1]], [kappa, kappa], REWARD, (1, 1.5)),
            Points([good], [agreed], POLICY),
            Points([good], [by_chance], REFERENCE),
            Points([good], [kappa], REWARD),
            Text(0.5, lines[0][9], "share that agrees", POLICY, "middle", 7),
            Text(0.5, lines[1][9], "by chance", GREY, "middle", -14),
            Text(0.06, kappa, "kappa", REWARD, "start", 5),
        ],
    )
    says = (
        f"They agree on {100 * agreed:.1f} % of the replies; by chance it would be {100 * by_chance:.1f} %. "
        f"Kappa = ({agreed:.3f} − {by_chance:.3f}) / (1 − {by_chance:.3f}) = {kappa:.3f}."
    )
    return Scene([table, measures], says)


AGREEMENT = Plan(
    "agreement and chance",
    "A share {good} of the replies is good, and each rater looks with probability {attention}",
    [
        Dial("good", "share of good replies", SHARES, 0.9),
        Dial("attention", "attention", steps(0.0, 1.0, 0.05), 0.5),
    ],
    agreement_scene,
    [{"good": 0.5, "attention": 0.5}, {"good": 0.9, "attention": 0.5}, {"good": 0.9, "attention": 0.9}],
    "Left, the table of two raters beside chance; right, share that agrees, chance and kappa against the share of good "
    "replies. With attention 0.5 the share that agrees rises from 62 to 87 percent as good replies become nine in ten, "
    "while kappa stays at 0.25; with attention 0.9 kappa is 0.81.",
)

# -- what the next labels tell ---------------------------------------------------------------------------------------
MOST = 20
AHEAD = [0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20]
GRID = np.linspace(-7.0, 7.0, 701)
LOG_PRIOR = -(GRID**2) / 4  # of a difference of two scores, each of standard deviation 1
LOG_WIN, LOG_LOSS = -np.logaddexp(0, -GRID), -np.logaddexp(0, GRID)


@cache
def difference_after(wins: int, losses: int) -> tuple[np.ndarray, float, float, float]:
    """Posterior of the difference of two scores under Bradley-Terry, each score with the prior N(0, 1).

    Returns:
        probabilities on `GRID`, mean, and the ends of the equal-tailed 95 % interval.

    Example:
        >>> _, mean, low, high = difference_after(3, 1)
        >>> round(mean, 2), round(low, 2), round(high, 2)
        (0.75, -0.93, 2.57)
    """
    log_density = LOG_PRIOR + wins * LOG_WIN + losses * LOG_LOSS
    law = np.exp(log_density - log_density.max())
    law /= law.sum()
    low, high = np.interp([0.025, 0.975], np.cumsum(law) - law / 2, GRID)
    return law, float(law @ GRID), float(low), float(high)


@cache
def widths_ahead(wins: int, losses: int) -> dict[int, tuple[float, float, float]]:
    """{further labels: expected width of the 95 % interval, smallest and largest that can come}.

    The expectation is over the posterior predictive law of the further labels: what they will say is not known either.

    Example:
        >>> expected, smallest, largest = widths_ahead(3, 1)[10]
        >>> smallest < expected < largest < widths_ahead(3, 1)[0][0]
        True
    """
    law = difference_after(wins, losses)[0]
    found = {}
    for more in AHEAD:
        won = np.arange(more + 1)
        ways = np.exp(gammaln(more + 1) - gammaln(won + 1) - gammaln(more - won + 1))
        chances = ways * (np.exp(won[:, None] * LOG_WIN + (more - won[:, None]) * LOG_LOSS) @ law)
        widths = [(lambda d: d[3] - d[2])(difference_after(wins + k, losses + more - k)) for k in won.tolist()]
        found[more] = float(chances @ widths), min(widths), max(widths)
    return found


def next_labels_scene(wins: int, losses: int) -> Scene:
    """The posterior of the difference after some labels, and how wide its interval will be after more of them."""
    law, mean, low, high = difference_after(wins, losses)
    prior = np.exp(LOG_PRIOR)
    inside = np.abs(GRID) <= 4.5
    spacing = GRID[1] - GRID[0]
    x = GRID[inside][::4].tolist()
    posterior = Panel(
        "What the labels say of A − B",
        Axis("score of A minus score of B, logits", -4.5, 4.5, [-4, -2, 0, 2, 4]),
        Axis("density", 0, 1.4, [0, 0.5, 1]),
        [
            Band(max(low, -4.5), min(high, 4.5), POLICY),
            Line(x, (prior / prior.sum() / spacing)[inside][::4].tolist(), REFERENCE, DASHED),
            Line(x, (law / spacing)[inside][::4].tolist(), POLICY),
            Line([0, 0], [0, 1.4], REFERENCE, (1, 2), 1),
            Text(-4.3, 1.26, "dashed: prior", GREY),
            Text(-4.3, 1.12, "band: 95 % interval", POLICY),
        ],
    )
    ahead = widths_ahead(wins, losses)
    columns = [[ahead[more][i] for more in AHEAD] for i in range(3)]
    future = Panel(
        "How wide will the interval be?",
        Axis("further labels", 0, 21, [0, 5, 10, 15, 20]),
        Axis("width, logits", 0, 6, [0, 2, 4, 6]),
        [
            Line(AHEAD, columns[2], VALUE, (1, 1.5), 1.6),
            Line(AHEAD, columns[1], VALUE, (1, 1.5), 1.6),
            Line(AHEAD, columns[0], VALUE),
            Points([10], [ahead[10][0]], VALUE),
            Text(20.5, 5.4, "line: expected", VALUE, "end"),
            Text(20.5, 4.8, "dots: least and most", VALUE, "end"),
        ],
    )
    says = (
        f"{wins} wins of A and {losses} of B: A − B is {mean:.2f} [{low:.2f}, {high:.2f}]. Ten more labels will bring "
        f"the width from {high - low:.2f} to {ahead[10][0]:.2f} on average, and to between {ahead[10][1]:.2f} and "
        f"{ahead[10][2]:.2f}, depending on what they say."
    ).replace("-", "−")
    return Scene([posterior, future], says)


NEXT_LABELS = Plan(
    "the next labels",
    "A was preferred {wins} times and B {losses} times",
    [
        Dial("wins", "wins of A", list(range(MOST + 1)), 3, "d"),
        Dial("losses", "wins of B", list(range(MOST + 1)), 1, "d"),
    ],
    next_labels_scene,
    [{"wins": 0, "losses": 0}, {"wins": 3, "losses": 1}, {"wins": 15, "losses": 5}],
    "Left, the posterior of the difference of two scores; right, the expected width of its 95 percent interval after "
    "further labels. Without labels the width is 5.5 logits, and ten labels are expected to halve it to 2.7; after 15 "
    "wins and 5 losses it is 1.9, and ten labels are expected to bring it to 1.6.",
)

# -- tastes that run in a circle -------------------------------------------------------------------------------------
NAMES = ("A", "B", "C")
CIRCLE = np.array([[1, -1, 0], [0, 1, -1], [-1, 0, 1]])  # A over B, B over C, C over A
MAJORITY = 0.8  # of the people prefer the first of each of these pairs
COUNTS = list(range(1, 21))


@cache
def circle_scores(ab: int, bc: int, ca: int) -> tuple[float, float, float]:
    """Scores of A, B and C where the Bradley-Terry loss is smallest, with mean 0, by Newton's method.

    Each pair was asked so many times, and a share of 0.8 of the answers went around the circle A > B > C > A. So

        sum_j n_ij sigmoid(u_i - u_j) = sum_j n_ij P(i preferred to j)    for every reply i

    Example:
        >>> [round(abs(score), 6) for score in circle_scores(5, 5, 5)]
        [0.0, 0.0, 0.0]
        >>> [round(score, 2) for score in circle_scores(10, 5, 2)]
        [0.64, -0.16, -0.48]
    """
    asked, scores = np.array([ab, bc, ca], dtype=float), np.zeros(3)
    for _ in range(50):
        p = expit(CIRCLE @ scores)
        curvature = CIRCLE.T @ ((asked * p * (1 - p))[:, None] * CIRCLE)
        step = np.linalg.solve(curvature + 1, CIRCLE.T @ (asked * (MAJORITY - p)))  # + 1: the mean stays at 0
        scores = scores + step
        if np.abs(step).max() < 1e-13:
            break
    a, b, c = scores.tolist()
    return a, b, c


def circle_order(scores: tuple[float, float, float]) -> str:
    """The replies from the highest score to the lowest.

    >>> circle_order((0.0, 1.0, 0.0))
    'B > A = C'
    """
    ranked = sorted(zip(scores, NAMES, strict=True), key=lambda pair: (-round(pair[0], 9), pair[1]))
    words = ranked[0][1]
    for (above, _), (below, name) in itertools.pairwise(ranked):
        words += f" {'=' if above - below < 1e-9 else '>'} {name}"
    return words


def circle_scene(ab: int, bc: int, ca: int) -> Scene:
    """Scores of three replies beside what the model says of each pair, and what the people say."""
    scores = circle_scores(ab, bc, ca)
    model = expit(CIRCLE @ np.array(scores)).tolist()
    places, pairs = [1, 2, 3], ["A over B", "B over C", "C over A"]
    left = Panel(
        "Scores at the optimum",
        Axis("reply", 0.4, 3.6, places, NAMES),
        Axis("score, logits", -1.6, 1.6, [-1, 0, 1]),
        [
            Line([0.4, 3.6], [0, 0], REFERENCE, (), 1),
            Bars(places, scores, 0.5, REWARD),
            Text(3.5, 1.25, circle_order(scores), REWARD, "end"),
        ],
    )
    right = Panel(
        "How often the first is preferred",
        Axis("pair", 0.4, 3.6, places, pairs),
        Axis("probability", 0, 1.25, [0, 0.25, 0.5, 0.75, 1]),
        [
            Line([0.4, 3.6], [0.5, 0.5], REFERENCE, (1, 2), 1),
            Bars([place - 0.2 for place in places], [MAJORITY] * 3, 0.38, INK, filled=False),
            Bars([place + 0.2 for place in places], model, 0.38, REWARD),
            Text(0.5, 1.08, "□ people", INK),
            Text(3.5, 1.08, "■ reward model", REWARD, "end"),
        ],
    )
    worst = int(np.argmin(np.round(model, 9)))
    says = (
        f"By score {circle_order(scores)}. The model gives {pairs[worst]} a probability of {model[worst]:.2f}; "
        f"of the people {MAJORITY:.2f} say so. It is farthest from them on this pair."
    )
    return Scene([left, right], says)


TASTES = Plan(
    "tastes in a circle",
    "A and B are compared {ab} times, B and C {bc} times, C and A {ca} times",
    [
        Dial("ab", "A and B", COUNTS, 10, "d"),
        Dial("bc", "B and C", COUNTS, 10, "d"),
        Dial("ca", "C and A", COUNTS, 3, "d"),
    ],
    circle_scene,
    [{"ab": 10, "bc": 10, "ca": 10}, {"ab": 10, "bc": 10, "ca": 3}, {"ab": 3, "bc": 10, "ca": 10}],
    "Left, the Bradley-Terry scores of three replies; right, what the model and the people say of each pair. Where all "
    "pairs are asked ten times the three scores are equal. Where C and A are compared three times only, A is best and "
    "C is worst; where A and B are, B is best and A is worst. The people say the same throughout, 0.8 around the "
    "circle.",
)
