"""What the reader sees of a patient: curves at once; its code, its alarms and the answer behind a click each."""

import ast
import base64
import inspect
import struct
import textwrap
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from html import escape

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import display
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
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
        figure, grid = plt.subplots(2, 3, figsize=(7.5, 3.8), dpi=90, sharex=True, layout="none")
        figure.subplots_adjust(left=0.06, right=0.985, bottom=0.115, top=0.86, wspace=0.2, hspace=0.3)
        for ax, (column, (title, quantity)) in zip(grid.flat, VITALS.items(), strict=True):
            curves(ax, run, twin, column)
            ax.set_title(title, fontsize=9)
            ax.lines[1].set_color(plots.COLOURS[quantity])
        for ax in grid[1]:
            ax.set_xlabel("iteration", fontsize=9)
        dashes, line = grid[0, 1].lines
        labels = ("healthy twin, same seed", f"patient {name}")
        figure.legend((dashes, line), labels, loc="upper center", ncols=2, fontsize=9, frameon=False)
        show_small(in_words(name, run, twin), figure)
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


class Picture:
    """A figure as a PNG of at most 64 colours, a third of its usual size, with its alternative text."""

    def __init__(self, figure: Figure, alt: str):
        width, height = figure.get_size_inches() * figure.dpi
        self.png, self.alt, self.name = palette_png(drawn(figure)), alt, f"<Figure {width:.0f}x{height:.0f}>"

    def __repr__(self) -> str:
        return self.name

    def _repr_mimebundle_(self, **_: object) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
        shown = {"text/plain": self.name, "image/png": base64.b64encode(self.png).decode()}
        return shown, {"image/png": {"alt": self.alt}}


def show_small(alt: str, figure: Figure | None = None) -> None:
    """`plots.show` for chapters of many figures: few colours, so that all of them fit into one file."""
    figure = plt.gcf() if figure is None else figure
    display(Picture(figure, alt))
    plt.close(figure)


def drawn(figure: Figure) -> np.ndarray:
    """[height, width, 3] uint8 pixels of a figure."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def palette_png(pixels: np.ndarray, colours: int = 64) -> bytes:
    """[height, width, 3] uint8 as a PNG of the most frequent colours; each other one becomes the nearest of them.

    Example:
        >>> png = palette_png(np.zeros((2, 3, 3), dtype=np.uint8))
        >>> png[:4], struct.unpack(">II", png[16:24])
        (b'\\x89PNG', (3, 2))
    """
    height, width, _ = pixels.shape
    packed = pixels.reshape(-1, 3).astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], dtype=np.uint32)
    codes, where, counts = np.unique(packed, return_inverse=True, return_counts=True)
    found = np.stack([codes >> 16, codes >> 8 & 255, codes & 255], axis=1).astype(np.uint8)
    palette = found[np.argsort(-counts, kind="stable")[:colours]]
    apart = ((found[:, None].astype(int) - palette.astype(int)) ** 2).sum(-1)
    rows = apart.argmin(1).astype(np.uint8)[where.reshape(-1)].reshape(height, width)
    lines = np.concatenate([np.zeros((height, 1), np.uint8), rows], axis=1)  # a line begins with its filter, none
    chunks = {b"IHDR": struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0), b"PLTE": palette.tobytes()}
    chunks |= {b"IDAT": zlib.compress(lines.tobytes(), 9), b"IEND": b""}
    parts = [
        struct.pack(">I", len(x)) + kind + x + struct.pack(">I", zlib.crc32(kind + x)) for kind, x in chunks.items()
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


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
