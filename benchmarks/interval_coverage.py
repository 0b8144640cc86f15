"""The study behind the intervals of chapter 11: does a 95 % interval of a comparison hold the truth in 95 % of cases?

    python run.py bench interval_coverage             what data/results/interval_coverage.csv does not hold yet
    python run.py bench interval_coverage --print     what the stored rows say

The plan, written down before the first row: evaluations of n = 50 and 400 comparisons, of which a share 0, 0.2 or 0.5
are ties and of the others a share 0.5 or 0.8 is won. Wanted: 93 to 97 % covered in every cell. The arms:

    win rate               `win_rate`, over all counts of wins, ties and losses
    half ties              `proportion_interval` of wins and half the ties: the variance of yes or no, for comparison
    pass or fail           `paired_difference` of 1 or 0 for each model on each prompt, over all counts
    scores                 `paired_difference` of scores: 0 in a tie, else of exponential size
    equal length           `length_controlled_win_rate`, where the logit grows with tanh(difference of lengths)
    equal length (linear)  the same where it grows with the difference itself, a form that the regression lacks

The first three are exact: the probabilities of all counts are added up (those below 1e-9 count as not covered), and
`low` = `high` = `coverage`. The others are simulated 2,000 times a cell, with a 95 % interval of the coverage. Of
lengths, differences are normal(0.5, 1), the logit grows by 0.8 a unit, and ties are as many as said at equal length.
Cells in which a regression could not be fitted count as not covered. One core, about two minutes.
"""

from collections.abc import Callable, Iterator
from itertools import product

import numpy as np
from rows import RESULTS as FOLDER, Arm, compute, flatten, options, read_rows
from scipy.special import expit, gammaln, logit

from rlhf_lab.evaluation.comparisons import length_controlled_win_rate
from rlhf_lab.maths.intervals import Interval, paired_difference, proportion_interval, win_rate

RESULTS = FOLDER / "interval_coverage.csv"
COUNTS, DECIDED, TIES, SIMULATIONS = (50, 400), (0.5, 0.8), (0.0, 0.2, 0.5), 2000
LEVEL, RARE = 0.95, 1e-9
SHIFT, SLOPE = 0.5, 0.8  # mean of the differences of length; logit a unit of their tanh, or of themselves
Law = tuple[float, float, float]  # of a win, a tie and a loss


def law(decided: float, ties: float) -> Law:
    """Probabilities of a win, a tie and a loss."""
    return (1 - ties) * decided, ties, (1 - ties) * (1 - decided)


# -- exact ------------------------------------------------------------------------------------------------------------
def all_counts(count: int) -> np.ndarray:
    """[M, 3] wins, ties, losses: all that add up to `count`."""
    return np.array([(w, count - w - lost, lost) for w in range(count + 1) for lost in range(count + 1 - w)])


def probabilities(counts: np.ndarray, chances: Law) -> np.ndarray:
    """[M] multinomial probabilities of counts [M, 3]."""
    with np.errstate(divide="ignore", invalid="ignore"):
        powers = np.where(counts == 0, 0.0, counts * np.log(chances))  # 0 log 0 = 0
    return np.exp(gammaln(counts.sum(1) + 1) - gammaln(counts + 1).sum(1) + powers.sum(1))


def half_ties(wins: int, ties: int, losses: int, level: float = LEVEL) -> Interval:
    return proportion_interval(wins + ties / 2, wins + ties + losses, level)


def pass_or_fail(wins: int, ties: int, losses: int, level: float = LEVEL) -> Interval:
    """Difference of the pass rates of two models, of which the first alone passed so many prompts."""
    alone = [1.0] * wins + [0.0] * (ties + losses), [0.0] * (wins + ties) + [1.0] * losses
    return paired_difference(*alone, level)


def exact_coverage(
    interval: Callable[..., Interval], truth: Callable[[Law], float], count: int, laws: list[Law]
) -> list[float]:
    """The coverage under each law; an interval is computed once for all of them."""
    counts = all_counts(count)
    chances = np.stack([probabilities(counts, one) for one in laws])  # [laws, M]
    likely = chances.max(0) > RARE
    intervals = [interval(*map(int, row), LEVEL) for row in counts[likely]]
    low, high = (np.array([getattr(one, end) for one in intervals]) for end in ("low", "high"))
    held = [(low <= truth(one) + 1e-12) & (truth(one) - 1e-12 <= high) for one in laws]  # ends may be the truth
    return [float(p[likely] @ covered) for p, covered in zip(chances, held, strict=True)]


# -- simulated --------------------------------------------------------------------------------------------------------
def score_interval(rng: np.random.Generator, count: int, chances: Law, truth: float) -> Interval:
    """Paired difference of scores; that of the means is the truth, as an exponential size has mean 1."""
    signs = rng.choice([1.0, 0.0, -1.0], count, p=chances)
    before = rng.normal(size=count)
    return paired_difference((before + signs * rng.exponential(size=count)).tolist(), before.tolist(), LEVEL)


def length_interval(bend: Callable[[np.ndarray], np.ndarray]) -> Callable[..., Interval]:
    """Length-controlled win rate where the logit is that of the truth plus SLOPE times `bend(difference)`."""

    def interval(rng: np.random.Generator, count: int, chances: Law, truth: float) -> Interval:
        lengths = rng.normal(SHIFT, 1, count)
        mean = expit(logit(truth) + SLOPE * bend(lengths))
        # As many ties as said at equal length, fewer where one side is sure to win; the mean stays what it is.
        ties = np.minimum(chances[1] * mean * (1 - mean) / (truth * (1 - truth)), 2 * np.minimum(mean, 1 - mean))
        drawn = rng.random(count)
        outcomes = ((drawn < mean - ties / 2).astype(float) + (drawn < mean + ties / 2)) / 2
        return length_controlled_win_rate(outcomes, lengths, LEVEL)

    return interval


def simulated_coverage(
    interval: Callable[..., Interval], truth: float, count: int, chances: Law, simulations: int, seed: int
) -> Interval:
    rng, covered = np.random.default_rng(seed), 0
    for _ in range(simulations):
        try:
            found = interval(rng, count, chances, truth)
        except ValueError:  # separated: an evaluation without an interval
            continue
        covered += found.low <= truth <= found.high
    return proportion_interval(covered, simulations, LEVEL)


# -- the arms ---------------------------------------------------------------------------------------------------------
def mean_outcome(chances: Law) -> float:
    return chances[0] + chances[1] / 2


def mean_sign(chances: Law) -> float:
    return chances[0] - chances[2]


EXACT = {
    "win rate": (win_rate, mean_outcome),
    "half ties": (half_ties, mean_outcome),
    "pass or fail": (pass_or_fail, mean_sign),
}
SIMULATED = {
    "scores": (score_interval, mean_sign),
    "equal length": (length_interval(np.tanh), mean_outcome),
    "equal length (linear)": (length_interval(lambda lengths: lengths), mean_outcome),
}


def cells(name: str, count: int, simulations: int, seed: int = 0) -> Iterator[tuple[float, float, float]]:
    """Coverage of each share of wins and ties, with its interval."""
    laws = [law(*cell) for cell in product(DECIDED, TIES)]
    if name in EXACT:
        yield from ((share, share, share) for share in exact_coverage(*EXACT[name], count, laws))
        return
    interval, truth = SIMULATED[name]
    for number, one in enumerate(laws):
        found = simulated_coverage(interval, truth(one), count, one, simulations, 1000 * seed + 10 * number + count)
        yield found.mean, found.low, found.high


def rows(name: str, counts: tuple[int, ...] = COUNTS, simulations: int = SIMULATIONS) -> list[dict]:
    """A row for each cell; `simulated` is 0 where the coverage is exact."""
    return [
        {"count": count, "decided": decided, "ties": ties, "simulated": 0 if name in EXACT else simulations}
        | dict(zip(("coverage", "low", "high"), found, strict=True))
        for count in counts
        for (decided, ties), found in zip(product(DECIDED, TIES), cells(name, count, simulations), strict=True)
    ]


def probe(name: str) -> dict[str, float]:
    """The same of 20 comparisons; of a simulation 50 of them, and one interval to the digit."""
    numbers = dict(flatten(rows(name, (20,), 50), "count", "decided", "ties"))
    if name in SIMULATED:
        found = SIMULATED[name][0](np.random.default_rng(0), 60, law(0.8, 0.2), 0.74)
        numbers |= {"low of one": found.low, "high of one": found.high}
    return numbers


def arm(name: str) -> Arm:
    settings = {
        "counts": COUNTS, "decided": DECIDED, "ties": TIES, "level": LEVEL,
        "simulations": SIMULATIONS if name in SIMULATED else 0,
    }  # fmt: skip
    return Arm({"interval": name}, settings, range(1), lambda _: rows(name), lambda: probe(name))


def arms() -> list[Arm]:
    """Three exact ones and three that are simulated."""
    return [arm(name) for name in (*EXACT, *SIMULATED)]


def print_results() -> None:
    """A line for each interval and number of comparisons: the smallest and the largest coverage."""
    stored = read_rows(RESULTS)
    for name, count in product((*EXACT, *SIMULATED), COUNTS):
        mine = [row for row in stored if (row["interval"], row["count"]) == (name, str(count))]
        shares = [float(row["coverage"]) for row in mine]
        kind = "exact" if name in EXACT else f"{mine[0]['simulated']} simulated a cell"
        print(f"{name:22}n = {count:4}  {min(shares):.1%} to {max(shares):.1%}  ({kind})")


if __name__ == "__main__":
    chosen = options(
        __doc__, lambda parser: parser.add_argument("--print", action="store_true", help="print what the rows say")
    )
    if chosen.print:
        print_results()
    else:
        compute(RESULTS, arms(), chosen.seeds, chosen.dry_run)
