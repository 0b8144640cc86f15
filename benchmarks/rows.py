"""Results as rows of a CSV file: a run replaces its own rows and leaves all others, in one step."""

import csv
import hashlib
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from rlhf_lab.checkpoints import write_text_atomic

RESULTS = Path(__file__).resolve().parents[1] / "data" / "results"


def key_of(*parts: object) -> str:
    """What results depend on, as a short hash: files by their bytes, everything else by its repr."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.read_bytes() if isinstance(part, Path) else repr(part).encode())
    return digest.hexdigest()[:16]


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file; none where there is no file."""
    return list(csv.DictReader(io.StringIO(path.read_text()))) if path.exists() else []


def put_rows(path: Path, rows: Sequence[dict], same: Sequence[str]) -> None:
    """Put the rows of a run into the file, in the place of those with the same values of `same`; sorted by them."""
    new = [{n: f"{v:.6g}" if isinstance(v, float) else str(v) for n, v in row.items()} for row in rows]
    name = lambda row: tuple(int(row[n]) if row[n].isdigit() else row[n] for n in same)  # noqa: E731
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
