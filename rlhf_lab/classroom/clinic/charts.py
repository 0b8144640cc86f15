"""What the reader sees of a patient: curves at once; its code, its alarms and the answer behind a click each."""

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from html import escape

import matplotlib.pyplot as plt
from IPython.display import display
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from rlhf_lab.classroom import plots
from rlhf_lab.classroom.clinic.cases import SUSPECTS
from rlhf_lab.classroom.clinic.parts import Parts
from rlhf_lab.classroom.clinic.runs import Run
from rlhf_lab.classroom.clinic.ward import CASES, healthy, run_case

VITALS = {  # column -> title with unit, quantity
    "score": ("score, points", "reward"),
    "kl": ("KL to the reference, nats a song", "policy"),
    "entropy": ("entropy, nats a token", "policy"),
    "length": ("length, tokens", "policy"),
    "clip_fraction": ("clip fraction, %", "policy"),
    "value": ("mean value, points", "value"),
}


class Folded:
    """A text that opens with a click on its title; as plain text, both."""

    def __init__(self, title: str, text: str):
        self.title, self.text = title, text

    def __repr__(self) -> str:
        return f"{self.title}\n{textwrap.indent(self.text, '  ')}"

    def _repr_html_(self) -> str:
        return f"<details><summary>{escape(self.title)}</summary><pre>{escape(self.text)}</pre></details>"


# -- curves -----------------------------------------------------------------------------------------------------------
def visit(names: Iterable[str]) -> None:
    """For each patient a figure of its six curves beside those of its healthy twin, and two of its last songs."""
    for name in names:
        run, twin = run_case(name), healthy(name)
        figure, grid = plt.subplots(2, 3, figsize=(7.5, 3.7), dpi=100, sharex=True, layout="constrained")
        for ax, (column, (title, quantity)) in zip(grid.flat, VITALS.items(), strict=True):
            curves(ax, run, twin, column)
            ax.set_title(title, fontsize=9)
            ax.lines[1].set_color(plots.COLOURS[quantity])
        for ax in grid[1]:
            ax.set_xlabel("iteration", fontsize=9)
        dashes, line = grid[0, 1].lines
        labels = ("healthy twin, same seed", f"patient {name}")
        figure.legend((dashes, line), labels, loc="outside upper center", ncols=2, fontsize=9, frameon=False)
        plots.show(in_words(name, run, twin), figure)
        print(f"patient {name} sings: {run.samples[0]}; {run.samples[3]}")


def curves(ax: Axes, run: Run, twin: Run, column: str) -> None:
    """One vital sign of both; shares in %, on a scale that is linear below 1 % and logarithmic above."""
    share = 100 if column in plots.SHARES else 1
    for history, look in ((twin.history, (plots.COLOURS["reference"], "--", 1.3)), (run.history, ("black", "-", 1.5))):
        steps, numbers = history.column(column)
        ax.plot(steps, [share * x for x in numbers], color=look[0], linestyle=look[1], linewidth=look[2])
    ax.tick_params(labelsize=8)
    if share == 1:
        ax.locator_params(axis="y", nbins=4)
        return
    ax.set_yscale("symlog", linthresh=1.0)
    ax.set_ylim(-0.3, 100)
    ax.set_yticks((0, 1, 10, 100))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))


def in_words(name: str, run: Run, twin: Run) -> str:
    """The figure for readers without the picture: first, middle and last number of each curve."""
    sentences = []
    for column, (title, _) in VITALS.items():
        share = 100 if column in plots.SHARES else 1
        mine, other = (
            [share * float(r.history.column(column)[1][at]) for at in (0, len(r.history.column(column)[1]) // 2, -1)]
            for r in (run, twin)
        )
        points = [" to ".join(f"{x:.2f}" for x in numbers) for numbers in (mine, other)]
        sentences.append(f"{title}: {points[0]}, healthy {points[1]}")
    return f"Patient {name} and its healthy twin at the first, middle and last iteration. " + "; ".join(sentences) + "."


# -- behind a click ---------------------------------------------------------------------------------------------------
def show_code(names: Iterable[str]) -> None:
    """The parts in which patients of this ward may be sick, as each of them has them; nothing is marked."""
    names = tuple(names)
    replaced = {part for name in names for part, value in _replaced(name).items() if callable(value)}
    order = [field.name for field in fields(Parts) if field.name in replaced]
    for name in names:
        parts = CASES[name].parts()
        code = [plain_source(getattr(parts, part), part) for part in order if getattr(parts, part) is not None]
        display(Folded(f"patient {name}: the code, unmarked", "\n\n".join(code)))


def _replaced(name: str) -> Mapping[str, object]:
    return {**CASES[name].setting, **CASES[name].faults}


def plain_source(function: Callable, name: str) -> str:
    """The code of a part under another name, without types, docstring and comments, which could give a fault away."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    made = tree.body[0]
    if not isinstance(made, ast.FunctionDef):
        raise ValueError(f"function must be written with def, got {type(made).__name__} for {name}")
    made.name, made.returns = name, None
    for argument in made.args.args:
        argument.annotation = None
    if ast.get_docstring(made) is not None:
        made.body = made.body[1:]
    return ast.unparse(tree)


def show_alarms(names: Iterable[str]) -> None:
    """What the live checks of the library said of each run."""
    for name in names:
        fired = run_case(name).fired.items()
        said = [f"{check}, {count} times; first: {message}" for check, (count, message) in fired]
        display(Folded(f"patient {name}: live checks", "\n\n".join(said) or "none was violated"))


def diagnose(guesses: Mapping[str, str]) -> None:
    """Compare guesses (patient -> suspect, or "" for none yet) with the truth, and show the faulty lines on a click.

    Raises:
        ValueError: a guess that is no key of `SUSPECTS`.
    """
    for name, guess in guesses.items():
        if guess and guess not in SUSPECTS:
            raise ValueError(f"{guess!r} for patient {name} is no suspect; expected one of {sorted(SUSPECTS)}")
    made = {name: guess for name, guess in guesses.items() if guess}
    right = sum(guess == CASES[name].suspect for name, guess in made.items())
    print(f"{right} of {len(made)} guesses are right; {len(guesses) - len(made)} still to make")
    for name, guess in guesses.items():
        verdict = "right" if guess == CASES[name].suspect else f"you said {guess}" if guess else "no guess yet"
        display(Folded(f"patient {name}: the answer ({verdict})", answer(name)))


def answer(name: str) -> str:
    """Suspect, sign and faulty lines of a patient."""
    case = CASES[name]
    lines = [f"# part `{part}`\n{inspect.getsource(fault).strip()}" for part, fault in case.faults.items()]
    return "\n".join([f"{case.suspect}: {SUSPECTS[case.suspect]}", f"sign: {case.sign}", *lines])
