"""The study behind the end of chapter 06: a tutorial's dialogue agent, repaired line by line, seed by seed.

    python run.py bench dialogue                   every run that data/results/dialogue_agent.csv does not hold yet
    python run.py bench dialogue --seeds 0 1       those seeds

A rung of the ladder has one repair more than the rung below it; rung 0 is the agent as it is, the last one has all six.
On top of it come six rungs with all repairs but one. Each row carries a key of this script and of the agent's code; a
row with another key is computed again. One core, some ten seconds a row.
"""

import argparse
import inspect
import sys
from pathlib import Path

import torch
from rows import RESULTS as FOLDER, key_of, put_rows, read_rows

from rlhf_lab.checks import bug_clinic as clinic

RESULTS = FOLDER / "dialogue_agent.csv"
SEEDS = 5
NAMES = tuple(clinic.REPAIRS)
RUNGS = {f"first {n}": NAMES[:n] for n in range(len(NAMES) + 1)}
RUNGS |= {f"without {left_out}": tuple(name for name in NAMES if name != left_out) for left_out in NAMES}
SETTING = clinic.DIALOGUE


def key() -> str:
    """What the results depend on, as a short hash."""
    methods = [method for repair in clinic.REPAIRS.values() for method in repair.values()]
    code = (clinic.TutorialPPO, clinic.train_agent, clinic.share_of_optimum, *methods)
    return key_of(Path(__file__), [inspect.getsource(each) for each in code], SETTING, RUNGS)


def run(rung: str, seed: int) -> dict[str, float | str]:
    """One agent, trained and measured."""
    training = clinic.train_agent(clinic.with_repairs(*RUNGS[rung]), seed, **SETTING)
    row = {"rung": rung, "seed": seed, "share": training.share, "held_out": training.held_out}
    return row | {name: training.history.last(name) for name in ("entropy", "clip_fraction", "explained_variance")}


def main() -> None:
    """Compute what is missing, one rung after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for rung in RUNGS:
        for seed in options.seeds or range(SEEDS):
            if any((r["rung"], r["seed"], r["key"]) == (rung, str(seed), key()) for r in read_rows(RESULTS)):
                print(f"{rung}, seed {seed}: there already", file=sys.stderr)
                continue
            row = run(rung, seed)
            put_rows(RESULTS, [{"key": key()} | row], ("rung", "seed"))
            print(row, flush=True)


if __name__ == "__main__":
    main()
