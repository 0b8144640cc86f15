"""The numbers of a run, one row a step, and the result in which they end."""

import html
import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from rlhf_lab.training.files import write_text_atomic

Model = TypeVar("Model")


class History:
    """Numbers of a run, one row per step; a row need not have every column.

    Example:
        >>> history = History()
        >>> history.add(step=0, loss=2.0)
        >>> history.add(step=1, loss=1.5, accuracy=0.6)
        >>> history.column("loss")[1], history.last("accuracy")
        (array([2. , 1.5]), 0.6)
        >>> history
        step  loss  accuracy
           0     2         -
           1   1.5       0.6
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, float | None]] = []

    def add(self, step: int, *parts: Mapping[str, float | None], **numbers: float | None) -> None:
        """Append a row of all the parts; None stands for a number that does not exist at this step.

        Raises:
            FloatingPointError: a number is NaN or infinite; the message names it and the step.
            ValueError: a part is no dictionary of names and numbers, or two have a name in common, as where
                `evaluate` returns what a recipe logs itself; `step` is taken.
        """
        row: dict[str, float | None] = {"step": int(step)}
        for part in (*parts, numbers):
            expected = "evaluate must give a dictionary of names and numbers"
            if not isinstance(part, Mapping) or not all(isinstance(name, str) for name in part):
                raise ValueError(f"there is {part!r:.80} at step {step}; {expected}")
            if twice := row.keys() & part.keys():
                raise ValueError(f"{min(twice)!r} is there twice at step {step}; evaluate must give it another name")
            for name, value in part.items():
                row[name] = number = None if value is None else _number(value)
                if number is None is not value:
                    raise ValueError(f"{name} is {value!r:.80} at step {step}; {expected}")
        for name, value in row.items():
            if value is not None and not math.isfinite(value):
                raise FloatingPointError(f"{name} is {value} at step {step}")
        self.rows.append(row)

    def column(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """(steps, values) of the rows that have `name`, as arrays.

        Raises:
            KeyError: no row has it; names those there are.
        """
        rows = [(row["step"], row[name]) for row in self.rows if row.get(name) is not None]
        if not rows:
            raise KeyError(f"no row has {name!r}; there are {self.names()}")
        steps, values = zip(*rows, strict=True)
        return np.array(steps), np.array(values)

    def names(self) -> list[str]:
        """Every column but step, in the order of appearance."""
        return list(dict.fromkeys(name for row in self.rows for name in row if name != "step"))

    def last(self, name: str) -> float:
        """The newest value of a column; KeyError as `column`."""
        return float(self.column(name)[1][-1])

    def to_list(self) -> list[dict]:
        """The rows as plain dictionaries, for JSON and checkpoints."""
        return [dict(row) for row in self.rows]

    @classmethod
    def from_list(cls, rows: list[dict]) -> "History":
        """The inverse of `to_list`."""
        history = cls()
        history.rows = [dict(row) for row in rows]
        return history

    def to_csv(self, path: str | Path) -> None:
        """Write one line per row; an empty field where a row lacks a column."""
        names = ["step", *self.names()]
        lines = [",".join(names)]
        lines += [",".join("" if row.get(n) is None else repr(row[n]) for n in names) for row in self.rows]
        write_text_atomic(path, "\n".join(lines) + "\n")

    def __len__(self) -> int:
        return len(self.rows)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, History) and self.rows == other.rows

    def _table(self) -> list[list[str]]:
        """Names and cells; of a long history the first and the last rows."""
        names = ["step", *self.names()]
        rows = [[_cell(row.get(name)) for name in names] for row in self.rows]
        if len(rows) > 8:
            rows = [*rows[:2], ["..."] * len(names), *rows[-5:]]
        return [names, *rows]

    def _repr_html_(self) -> str:
        """The table of a notebook; names come from functions of the user, so they are escaped."""
        line = lambda cells, tag: "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells)  # noqa: E731
        names, *rows = self._table()
        body = "".join(f"<tr>{line(row, 'td')}</tr>" for row in rows)
        return f"<table><thead><tr>{line(names, 'th')}</tr></thead><tbody>{body}</tbody></table>"

    def __repr__(self) -> str:
        if not self.rows:
            return "History without rows"
        table = self._table()
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in table)


@dataclass(frozen=True, eq=False, repr=False)
class Result(Generic[Model]):
    """What every recipe returns; each adds what it alone has.

    Attributes:
        model: trained.
        history: a row a step.
        interrupted: True where an interrupt ended the run early; then `model` and `history` hold what was done.
    """

    model: Model
    history: History
    interrupted: bool

    def __repr__(self) -> str:
        end = "stopped early" if self.interrupted else "done"
        return f"{type(self).__name__}, {end}, {len(self.history)} rows of history\n{self.history}"

    def _repr_html_(self) -> str:
        """The same for a notebook."""
        end = "stopped early" if self.interrupted else "done"
        return f"<p><b>{type(self).__name__}</b>, {end}; <code>.model</code> and</p>{self.history._repr_html_()}"


def _number(value: Any) -> float | None:
    """One number of any library as a float; None of what is no number."""
    try:
        one = value.item() if hasattr(value, "item") else value
        return float(one) if isinstance(one, Real) else None
    except (RuntimeError, ValueError):  # several numbers
        return None


def _cell(value: float | str | None) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def mean_rows(rows: list[dict[str, float]]) -> dict[str, float]:
    """Column means of rows with the same columns; nothing of no rows.

    >>> mean_rows([{"loss": 1.0}, {"loss": 2.0}])
    {'loss': 1.5}
    """
    return {name: sum(row[name] for row in rows) / len(rows) for name in (rows[0] if rows else ())}
