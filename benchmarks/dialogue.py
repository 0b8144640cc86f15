"""The study behind the end of chapter 06: a tutorial's dialogue agent, repaired line by line, seed by seed.

    python run.py bench dialogue                   every run that data/results/dialogue_agent.csv does not hold yet
    python run.py bench dialogue --seeds 0 1       those seeds

A rung of the ladder has one repair more than the rung below it; rung 0 is the agent as it is, the last one has all six.
On top of it come six rungs with all repairs but one. Each row carries a key of this script and of the agent's code; a
row with another key is computed again. One core, some ten seconds a row.
"""

import argparse
import csv
import hashlib
import inspect
import io
import sys
from pathlib import Path

import torch

from rlhf_lab.checkpoints import write_text_atomic
from rlhf_lab.checks import bug_clinic as clinic

RESULTS = Path(__file__).resolve().parents[1] / "data" / "results" / "dialogue_agent.csv"
SEEDS = 5
NAMES = tuple(clinic.REPAIRS)
RUNGS = {f"first {n}": NAMES[:n] for n in range(len(NAMES) + 1)}
RUNGS |= {f"without {left_out}": tuple(name for name in NAMES if name != left_out) for left_out in NAMES}
SETTING = clinic.DIALOGUE


def key() -> str:
    """What the results depend on, as a short hash."""
    digest = hashlib.sha256(Path(__file__).read_bytes())
    methods = [method for repair in clinic.REPAIRS.values() for method in repair.values()]
    for code in (clinic.TutorialPPO, clinic.train_agent, clinic.share_of_optimum, *methods):
        digest.update(inspect.getsource(code).encode())
    digest.update(repr((SETTING, RUNGS)).encode())
    return digest.hexdigest()[:16]


def run(rung: str, seed: int) -> dict[str, float | str]:
    """One agent, trained and measured."""
    training = clinic.train_agent(clinic.with_repairs(*RUNGS[rung]), seed, **SETTING)
    row = {"rung": rung, "seed": seed, "share": training.share, "held_out": training.held_out}
    return row | {name: training.history.last(name) for name in ("entropy", "clip_fraction", "explained_variance")}


# -- the file ---------------------------------------------------------------------------------------------------------
def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file; none where there is no file."""
    return list(csv.DictReader(io.StringIO(path.read_text()))) if path.exists() else []


def add_row(path: Path, row: dict) -> None:
    """Put a row into the file, in the place of an old one of its rung and seed; sorted, atomically."""
    new = {"key": key()} | {n: f"{v:.4f}" if isinstance(v, float) else str(v) for n, v in row.items()}
    kept = [r for r in read_rows(path) if (r["rung"], r["seed"]) != (new["rung"], new["seed"]) and r["key"] == key()]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(new), lineterminator="\n")
    writer.writeheader()
    writer.writerows(sorted([*kept, new], key=lambda r: (list(RUNGS).index(r["rung"]), int(r["seed"]))))
    write_text_atomic(path, text.getvalue())


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
            add_row(RESULTS, row := run(rung, seed))
            print(row, flush=True)


if __name__ == "__main__":
    main()
