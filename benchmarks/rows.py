"""Results as rows of a CSV file, each with the setup it comes from: its settings, and a probe that notices stale rows.

A file `x.csv` has `x.setups.json` beside it. A row's column `setup` names an entry there, which holds

    settings    every choice that the row depends on, its seed apart
    probe       the numbers of a run of the same function over two iterations

A row is fresh while its settings are the present ones and the present code gives the numbers of its probe within a
relative 1e-3 or an absolute 1e-6. So a change of what a function computes makes its rows stale, and moving or renaming
it does not. Runs replace their own rows and leave all others, each in one step, so a study goes on where it stopped.
"""

import argparse
import csv
import hashlib
import io
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path

from rlhf_lab.training.files import write_text_atomic
from rlhf_lab.training.history import History

RESULTS = Path(__file__).resolve().parents[1] / "data" / "results"
LOOK = "look_"  # before a look's columns in a history, which has a kl and a length of its own
RELATIVE, ABSOLUTE = 1e-3, 1e-6
TIMES = ("seconds", "minutes")  # columns that are never compared

Row = dict[str, float | int | str | None]


@dataclass(frozen=True)
class Arm:
    """One arm of a study.

    Attributes:
        names: the columns that name it, such as {"task": "CartPole-v1"}; with the seed they name a run.
        settings: every choice that its rows depend on, the seed apart; of JSON's types, or dataclasses.
        seeds: which are wanted.
        rows: seed -> the rows of a run, without `names`, seed and setup.
        probe: -> named numbers of a short run of the same function.
    """

    names: Mapping[str, str]
    settings: Mapping[str, object]
    seeds: Sequence[int]
    rows: Callable[[int], list[Row]]
    probe: Callable[[], Mapping[str, float]]


# -- setups -----------------------------------------------------------------------------------------------------------
def plain(value: object) -> object:
    """The same of JSON's types alone, with the infinite as text."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple | range):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def numbers_of(history: History) -> dict[str, float]:
    """All numbers of a history, as those of a probe."""
    rows = history.to_list()
    return {f"{name} {row['step']}": x for row in rows for name, x in row.items() if name != "step" and x is not None}


def looks(history: History) -> list[dict[str, float]]:
    """The looks of a run, a row each: `step`, and the columns behind `LOOK` without that prefix."""
    seen = [
        {name.removeprefix(LOOK): number for name, number in row.items() if name.startswith(LOOK)}
        for row in history.rows
    ]
    return [{"step": row["step"]} | look for row, look in zip(history.rows, seen, strict=True) if look]


def close(a: object, b: object) -> bool:
    """Whether two numbers are the same but for rounding that two machines may do differently; texts must be equal."""
    if not (isinstance(a, int | float) and isinstance(b, int | float)):
        return a == b
    return math.isclose(a, b, rel_tol=RELATIVE, abs_tol=ABSOLUTE)


def setups_path(path: Path) -> Path:
    return path.with_suffix(".setups.json")


def read_setups(path: Path) -> dict[str, dict]:
    """The setups of a results file by their names; none where there is no file."""
    file = setups_path(path)
    return json.loads(file.read_text()) if file.exists() else {}


def present_setup(arm: Arm) -> dict:
    """Settings and probe of the present code; runs the probe."""
    probe = {name: float(f"{value:.6g}") for name, value in arm.probe().items()}
    return {"settings": plain(arm.settings), "probe": plain(probe)}


def same_setup(stored: dict, present: dict) -> bool:
    """Whether rows of the one setup are rows of the other."""
    old, new = stored["probe"], present["probe"]
    alike = stored["settings"] == present["settings"] and old.keys() == new.keys()
    return alike and all(close(old[name], new[name]) for name in new)


def name_of_setup(path: Path, present: dict) -> str:
    """The entry of the file that the present setup equals, or the name of a new one."""
    found = (name for name, stored in read_setups(path).items() if same_setup(stored, present))
    text = json.dumps(present, sort_keys=True)
    return next(found, "s" + hashlib.sha256(text.encode()).hexdigest()[:8])


def stale(path: Path, arm: Arm) -> list[str]:
    """Which rows of an arm are missing, or are not what the present code computes; runs the probe once."""
    wanted = name_of_setup(path, present_setup(arm))
    runs = {row["seed"]: row["setup"] for row in read_rows(path) if arm.names.items() <= row.items()}
    where = " ".join([path.name, *arm.names.values()])
    missing = [f"{where}: seed {seed} is missing" for seed in arm.seeds if str(seed) not in runs]
    return missing + [f"{where}: seed {seed} is stale" for seed, name in runs.items() if name != wanted]


# -- the files --------------------------------------------------------------------------------------------------------
def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file; none where there is no file."""
    return list(csv.DictReader(io.StringIO(path.read_text()))) if path.exists() else []


def put_rows(path: Path, rows: Sequence[Row], same: Sequence[str]) -> None:
    """Put the rows of a run into the file, in the place of those with the same values of `same`; sorted by them."""
    new = [{n: f"{v:.6g}" if isinstance(v, float) else str(v) for n, v in row.items()} for row in rows]
    name = lambda row: tuple((int(row[n]), "") if row[n].isdigit() else (-1, row[n]) for n in same)  # noqa: E731
    replaced = {name(row) for row in new}
    kept = [row for row in read_rows(path) if row.keys() == new[0].keys() and name(row) not in replaced]
    write_rows(path, list(new[0]), sorted([*kept, *new], key=name))


def write_rows(path: Path, columns: Sequence[str], rows: Iterable[dict[str, str]]) -> None:
    """Make rows the whole of a CSV file, in one step."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text_atomic(path, text.getvalue())


def put_run(path: Path, arm: Arm, seed: int, setup: tuple[str, dict], rows: Sequence[Row]) -> None:
    """Store the rows of a run with its setup; setups that no row names any more go."""
    name, present = setup
    columns = {"setup": name, **arm.names, "seed": seed}
    write_setups(path, {name: present} | read_setups(path))
    put_rows(path, [columns | row for row in rows], (*arm.names, "seed"))
    used = {row["setup"] for row in read_rows(path)}
    write_setups(path, {name: stored for name, stored in read_setups(path).items() if name in used})


def write_setups(path: Path, setups: Mapping[str, dict]) -> None:
    write_text_atomic(setups_path(path), json.dumps(setups, indent=1, sort_keys=True) + "\n")


# -- computing --------------------------------------------------------------------------------------------------------
def compute(path: Path, arms: Sequence[Arm], seeds: Sequence[int] | None = None, dry_run: bool = False) -> None:
    """Compute the runs that the file lacks, or that are stale, one after the other."""
    for arm in arms:
        present = present_setup(arm)
        name = name_of_setup(path, present)
        for seed in seeds or arm.seeds:
            run = " ".join([*arm.names.values(), f"seed {seed}"])
            if is_there(path, arm, seed, name):
                print(f"{run}: there already", file=sys.stderr)
            elif dry_run:
                print(f"{run}: to compute")
            else:
                rows = arm.rows(seed)
                put_run(path, arm, seed, (name, present), rows)
                print(run, {n: round(v, 3) if isinstance(v, float) else v for n, v in rows[-1].items()}, flush=True)


def is_there(path: Path, arm: Arm, seed: int, setup: str) -> bool:
    wanted = {**arm.names, "seed": str(seed), "setup": setup}
    return any(wanted.items() <= row.items() for row in read_rows(path))


def at_least(least: int) -> Callable[[str], int]:
    """What reads a whole number of an option; argparse makes a line of the error."""

    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number of at least {least}")
        return int(text)

    return number


def options(description: str, add: Callable[[argparse.ArgumentParser], object] | None = None) -> argparse.Namespace:
    """What every study can be told: --seeds, --dry-run, and what `add` adds."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--seeds", type=at_least(0), nargs="+")
    parser.add_argument("--dry-run", action="store_true", help="say what would be computed, and compute nothing")
    if add is not None:
        add(parser)
    return parser.parse_args()


def flatten(rows: Iterable[Row], *names: str) -> Iterator[tuple[str, float]]:
    """Numbers of rows for a probe, each named after its column and the row's values of `names`; no times."""
    for row in rows:
        place = " ".join(str(row[name]) for name in names)
        for column, value in row.items():
            if column not in (*names, *TIMES) and isinstance(value, int | float):
                yield f"{column} {place}".strip(), value
