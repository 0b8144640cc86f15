"""Explorable of evaluation: the power of a blind comparison, from the probabilities of all counts that it may give.

The exact numbers as functions of the dials, the scene that shows them, and the plan of the explorable.
"""

import math
from functools import cache

import numpy as np
from scipy.special import bdtr, bdtrc, gammaln

from rlhf_lab.classroom.explorables.draggable import (
    DASHED,
    GREY,
    POLICY,
    REFERENCE,
    REWARD,
    Axis,
    Dial,
    Line,
    Panel,
    Plan,
    Points,
    Scene,
    Text,
    steps,
)  # fmt: skip

Z = 1.9599639845400545  # of a 95 % interval
WANTED = 0.8  # power
COUNTS = [10, 20, 30, 40, 50, 60, 80, 100, 120, 150, 200, 250, 300, 400]
CURVE = list(range(10, 401, 10))
DECIDED = steps(0.5, 0.9, 0.01)
TIES = steps(0.0, 0.8, 0.1)


@cache
def found_by(count: int, ties: float, decided: float) -> tuple[float, float]:
    """Probability that the 95 % interval of `win_rate` leaves out one half: above it, and below it.

        sum over T of P(T ties) P(|wins - losses| > z sqrt(n (1 - T / (n + 1))))

    which is where the score interval of n comparisons with T ties excludes one half. Nothing is simulated.

    Args:
        count: n comparisons.
        ties: probability of a tie.
        decided: probability of a win where there is no tie.

    Example:
        >>> above, below = found_by(100, 0.0, 0.6)
        >>> round(above, 3), round(below, 6)
        (0.543, 4.2e-05)
    """
    tied = np.arange(count + 1)
    open_ones = count - tied
    chances = np.exp(gammaln(count + 1) - gammaln(tied + 1) - gammaln(open_ones + 1) + _log_power(ties, tied))
    chances *= np.exp(_log_power(1 - ties, open_ones))
    least = Z * np.sqrt(count * (1 - tied / (count + 1)))  # that wins less losses have to exceed
    fewest = np.floor((open_ones + least) / 2)  # more wins than this
    possible = open_ones > least
    decidedly = np.maximum(open_ones, 1)
    above = np.where(possible, bdtrc(np.minimum(fewest, decidedly), decidedly, decided), 0.0)
    below = np.where(possible, bdtr(np.maximum(open_ones - fewest - 1, 0), decidedly, decided), 0.0)
    return float(chances @ above), float(chances @ below)


def _log_power(p: float, exponents: np.ndarray) -> np.ndarray:
    """Exponent times log p, 0 where the exponent is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(exponents == 0, 0.0, exponents * np.log(p))


@cache
def needed_share(count: int, ties: float) -> float:
    """The share of the decided comparisons from which on so many are found with probability `WANTED`; 1 if none is.

    Example:
        >>> round(needed_share(100, 0.0), 3), needed_share(10, 0.8)
        (0.635, 1.0)
    """
    low, high = 0.5, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (low, middle) if found_by.__wrapped__(count, ties, middle)[0] >= WANTED else (middle, high)
    return high


def power_scene(count: int, decided: float, ties: float) -> Scene:
    """How often a difference is found, against the number of comparisons and against its size."""
    above, below = found_by(count, ties, decided)
    least = needed_share(count, ties)
    shares = [*DECIDED, 0.95, 1.0]
    by_count = [found_by(n, ties, decided)[0] for n in CURVE]
    by_share = [found_by(count, ties, share)[0] for share in shares]
    scale = [0, 0.25, 0.5, 0.75, 1]
    numbers = Panel(
        "More comparisons",
        Axis("number of comparisons", 0, 410, [0, 100, 200, 300, 400]),
        Axis("power", 0, 1.05, scale),
        [
            Line([0, 410], [WANTED, WANTED], REFERENCE, DASHED, 1.2),
            Line(CURVE, by_count, POLICY),
            Points([count], [above], POLICY),
            Text(405, WANTED, "80 %", GREY, "end", 4),
        ],
    )
    sizes = Panel(
        "Larger differences",
        Axis("share of the decided ones that is won", 0.5, 1.01, [0.5, 0.6, 0.7, 0.8, 0.9, 1]),
        Axis("power", 0, 1.05, scale),
        [
            Line([0.5, 1.01], [WANTED, WANTED], REFERENCE, DASHED, 1.2),
            Line(shares, by_share, POLICY),
            Points([decided], [above], POLICY),
            *([Points([least], [WANTED], REWARD, filled=False)] if least < 1 else []),
            Text(0.99, 0.06, "ring: found in 80 %", REWARD, "end"),
        ],
    )
    return Scene([numbers, sizes], _words(count, ties, decided, (above, below), least))


def _words(count: int, ties: float, decided: float, found: tuple[float, float], least: float) -> str:
    above, below = found
    rate = ties / 2 + (1 - ties) * decided
    if math.isclose(decided, 0.5):
        first = f"There is no difference, and the interval leaves out one half in {100 * (above + below):.1f} %"
    else:
        first = (
            f"The win rate is {rate:.3f}, and the interval lies above one half in {100 * above:.0f} % of evaluations"
        )
    detectable = ties / 2 + (1 - ties) * least
    second = (
        f"found in 80 %: a win rate of {detectable:.3f}, that is {100 * least:.0f} % of the decided ones"
        if least < 1
        else "so few decided comparisons find nothing in 80 %"
    )
    return f"{first}; {second}."


POWER = Plan(
    "power of a comparison",
    "Of {count} blind comparisons a share {ties} are ties, and of the others one model wins {decided}",
    [
        Dial("count", "comparisons", COUNTS, 100, "d"),
        Dial("ties", "ties", TIES, 0.2, ".1f"),
        Dial("decided", "won of the decided", DECIDED, 0.6),
    ],
    power_scene,
    [{"count": 200, "ties": ties, "decided": decided} for ties, decided in ((0.2, 0.6), (0.2, 0.7), (0.6, 0.6))],
    "Left, the power of a blind comparison against the number of comparisons; right, against the share of the decided "
    "ones that is won. With 20 percent ties, 200 comparisons find 60 percent won of the rest in 72 percent of "
    "evaluations and 70 percent won nearly always; with 60 percent ties they find 60 percent in 43 percent.",
)
