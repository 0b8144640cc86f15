"""The study behind the intervals of chapter 08: do they hold the truth if one stops as soon as 0 is excluded?

    python run.py bench consensus                  what data/results/consensus.csv does not hold yet
    python run.py bench consensus --print          what the stored rows say
    python run.py bench consensus --cost           seconds and memory of 10,000 judgements; nothing is stored

The plan, written down before the first row: 200 simulated studies an arm, each of one contrast, of the first two
replies. The pairs are compared in turn; after every label from the 5th on the 95 % interval is computed, and labelling
stops when it excludes 0, or at 100 labels. The true scores come from the prior N(0, 1) (two replies; three), or are
all equal. The same labels go to the posterior interval of the library, to the maximum of the likelihood with Wald's
interval, and to Wald's interval of the share of wins. The posterior interval is compared with one by plain quadrature
on a fine grid of all score differences, which shares no code with it. Expected of 200 at 95 % with truths from the
prior: 181 to 197 covered, and a mean width within 10 % of quadrature. A row is a study.
"""

import time
import tracemalloc

import numpy as np
from rows import RESULTS as FOLDER, Arm, compute, flatten, options, read_rows

from rlhf_lab.feedback.aggregation import consensus
from rlhf_lab.feedback.planning import INTERVALS, StopRule, stopping_studies
from rlhf_lab.maths.intervals import proportion_interval
from rlhf_lab.records import Message, Ranking

RESULTS = FOLDER / "consensus.csv"
RULE = StopRule(exclude_zero=True, minimum=5, maximum=100)
TRUTHS = {"prior": 1.0, "equal": 0.0}  # standard deviation of the true scores; the prior's is 1
STUDIES, LEVEL = 200, 0.95
SHORT = StopRule(exclude_zero=True, minimum=5, maximum=12)  # of the probe
EXPECTED = range(181, 198)  # covered of 200


def quadrature(wins: np.ndarray, replies: int) -> tuple[float, float]:
    """The interval of the first score minus the second from wins [pairs, 2], prior N(0, 1), by summing over a grid.

    The grid is of the differences to the first score, from -9 to 9.
    """
    points = np.linspace(-9, 9, 3601 if replies == 2 else 451)
    axes = np.meshgrid(*[points] * (replies - 1), indexing="ij")
    scores = np.stack([np.zeros_like(axes[0]), *(-axis for axis in axes)])  # [replies, ...], the first at 0
    log_density = -((scores**2).sum(0) - scores.sum(0) ** 2 / replies) / 2  # the level is integrated out
    pairs = [(a, b) for a in range(replies) for b in range(a + 1, replies)]
    for (a, b), (first, second) in zip(pairs, wins, strict=True):
        gap = scores[a] - scores[b]
        log_density = log_density - first * np.logaddexp(0, -gap) - second * np.logaddexp(0, gap)
    density = np.exp(log_density - log_density.max())
    mass = density.reshape(len(points), -1).sum(1)
    below = (np.cumsum(mass) - mass / 2) / mass.sum()
    low, high = np.interp([(1 - LEVEL) / 2, (1 + LEVEL) / 2], below, points)
    return float(low), float(high)


def study_rows(truth: str, replies: int, seed: int, studies: int = STUDIES, rule: StopRule = RULE) -> list[dict]:
    """A row for each study: its truth, and labels, ends and coverage of each interval."""
    kinds = {
        name: stopping_studies(
            rule, studies, replies=replies, interval=name, truth_std=TRUTHS[truth], level=LEVEL, seed=seed
        )
        for name in INTERVALS
    }
    posterior = kinds["posterior"]
    rows = []
    for i in range(studies):
        low, high = quadrature(posterior.wins[i], replies)
        row = {"study": i, "truth": float(posterior.truth[i]), "quadrature_low": low, "quadrature_high": high}
        for name, stopped in kinds.items():
            row |= {f"{name}_labels": int(stopped.labels[i]), f"{name}_low": float(stopped.low[i])}
            row |= {f"{name}_high": float(stopped.high[i]), f"{name}_covered": int(stopped.covered[i])}
        rows.append(row)
    return rows


def arm(truth: str, replies: int) -> Arm:
    settings = {"rule": RULE, "studies": STUDIES, "level": LEVEL, "truth_std": TRUTHS[truth]}
    return Arm(
        {"truths": truth, "replies": str(replies)}, settings, range(1),
        lambda seed: study_rows(truth, replies, seed),
        lambda: dict(flatten(study_rows(truth, replies, 0, 4, SHORT), "study")),
    )  # fmt: skip


def arms() -> list[Arm]:
    """Truths from the prior with two and with three replies, and two replies that are equally good."""
    return [arm("prior", 2), arm("prior", 3), arm("equal", 2)]


def print_results() -> None:
    """Coverage, labels and width of each arm and interval."""
    rows = read_rows(RESULTS)
    for truth, replies in dict.fromkeys((row["truths"], row["replies"]) for row in rows):
        mine = [row for row in rows if (row["truths"], row["replies"]) == (truth, replies)]
        column = lambda name: np.array([float(row[name]) for row in mine])  # noqa: B023, E731
        quad = column("quadrature_high") - column("quadrature_low")
        for name in INTERVALS:
            covered = int(column(f"{name}_covered").sum())
            share = proportion_interval(covered, len(mine))
            with np.errstate(invalid="ignore"):  # both ends are at infinity where all agree
                width = column(f"{name}_high") - column(f"{name}_low")
            wide = f"mean width {width.mean():.3f}" if np.isfinite(width).all() else "some of no finite width"
            reached = f"{covered} of {len(mine)} covered ({share.low:.1%} to {share.high:.1%})"
            labels = f"{column(f'{name}_labels').mean():.1f} labels"
            print(f"truths {truth}, {replies} replies, {name:9} {reached}, {labels}, {wide}")
        print(f"  quadrature on the posterior's labels: mean width {quad.mean():.3f}")


def print_cost(count: int = 10_000) -> None:
    """Processor seconds and memory of `consensus` on rankings of 4 replies, 4 rankings a prompt and 10 raters."""
    generator = np.random.default_rng(0)
    for ties in (False, True):
        rankings = []
        for i in range(count):
            seen = np.sin(np.arange(4) * (i // 4 + 1)) + generator.gumbel(size=4)
            seen = np.round(seen) if ties else seen
            tiers = tuple(tuple(np.flatnonzero(seen == value).tolist()) for value in sorted(set(seen), reverse=True))
            prompt, replies = (Message("user", f"prompt {i // 4}"),), tuple(f"reply {i // 4} {k}" for k in range(4))
            rankings.append(Ranking(prompt, replies, tiers, rater=f"rater {i % 10}", simulated=True))
        for reliability in (False, True):
            start = time.process_time()
            consensus(rankings, reliability=reliability)
            spent = time.process_time() - start
            tracemalloc.start()  # in a run of its own, which it slows down
            consensus(rankings, reliability=reliability)
            peak = tracemalloc.get_traced_memory()[1] / 2**20
            tracemalloc.stop()
            kind = f"{'with' if ties else 'without'} ties, {'one weight a rater' if reliability else 'equal raters'}"
            print(f"{count} rankings {kind}: {spent:.1f} s, {peak:.0f} MB at the peak beside the rankings")


def arguments(parser) -> None:
    parser.add_argument("--print", action="store_true", help="print what the stored rows say")
    parser.add_argument("--cost", action="store_true", help="print seconds and memory of 10,000 judgements")


if __name__ == "__main__":
    chosen = options(__doc__, arguments)
    if chosen.print:
        print_results()
    elif chosen.cost:
        print_cost()
    else:
        compute(RESULTS, arms(), chosen.seeds, chosen.dry_run)
