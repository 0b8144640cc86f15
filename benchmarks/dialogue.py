"""The study behind the end of chapter 06: a tutorial's dialogue agent with some of its repairs, seed by seed.

    python run.py bench dialogue                   every run that data/results/dialogue_agent.csv does not hold yet
    python run.py bench dialogue --seeds 0 1       those seeds

The agent as it is, with the first repair alone, with all six, and with all but one. One core, some 15 seconds a row.
"""

import torch
from rows import RESULTS as FOLDER, Arm, compute, numbers_of, options

from rlhf_lab.classroom import clinic

RESULTS = FOLDER / "dialogue_agent.csv"
SEEDS = 5
NAMES = tuple(clinic.REPAIRS)
RUNGS: dict[str, tuple[str, ...]] = {"none": (), f"{NAMES[0]} alone": NAMES[:1], "all six": NAMES}
RUNGS |= {f"without {left_out}": tuple(name for name in NAMES if name != left_out) for left_out in NAMES}
SETTING = clinic.DIALOGUE


def run(rung: str, seed: int) -> dict[str, float]:
    """One agent, trained and measured."""
    training = clinic.train_agent(clinic.with_repairs(*RUNGS[rung]), seed, **SETTING)
    row = {"share": training.share, "held_out": training.held_out}
    logged = ("entropy", "clip_fraction", "explained_variance", "advantage")
    return row | {name: training.history.last(name) for name in logged}


def probe(rung: str) -> dict[str, float]:
    """Two iterations and what they logged."""
    training = clinic.train_agent(
        clinic.with_repairs(*RUNGS[rung]), seed=0, **SETTING | {"iterations": 2, "visitors": 20}
    )
    return numbers_of(training.history) | {"share": training.share, "held_out": training.held_out}


def arm(rung: str) -> Arm:
    settings = {"setting": SETTING, "repairs": RUNGS[rung]}
    return Arm({"rung": rung}, settings, range(SEEDS), lambda seed: [run(rung, seed)], lambda: probe(rung))


if __name__ == "__main__":
    chosen = options(__doc__)
    torch.set_num_threads(1)
    compute(RESULTS, [arm(rung) for rung in RUNGS], chosen.seeds, chosen.dry_run)
