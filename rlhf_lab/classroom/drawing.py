"""The board that schematic drawings are made on: boxes, arrows, words.

A drawing is 750 pixels wide, coordinates are pixels and y points down. Colours are those of `plots.COLOURS`; networks
have round corners and data sharp ones, gradients are dashed, so that colour is never the only cue. Chapters use it
through `diagrams`.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from rlhf_lab.classroom import plots

WIDTH, INCH = 750, 110  # pixels of the drawing; letters keep their size relative to it
DPI = 106.8  # a notebook adds 0.1 inch on each side when it shows a figure: 750 pixels in all
INK, FAINT = "#333333", "#9A9A9A"
TEXT, SMALL = 9.5, 8.5  # points
LINE = 16  # pixels from one line of text to the next
DASHES = (0, (4, 2.5))
Point = tuple[float, float]  # pixels from the left and from the top


@dataclass
class Board:
    """An empty figure of 750 by `height` pixels, with the margin that a notebook adds, and where its boxes are.

    Attributes:
        boxes: name -> (x, y, half width, half height), pixels.
    """

    height: float
    boxes: dict[str, tuple[float, float, float, float]] = field(default_factory=dict)
    figure: Figure = field(init=False)
    ax: Axes = field(init=False)

    def __post_init__(self) -> None:
        with plots.style():
            size = (WIDTH / INCH, self.height / INCH)
            self.figure = plt.figure(figsize=size, dpi=DPI, layout="none")
        self.ax = self.figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(self.height, 0))
        self.ax.axis("off")

    def write(self, x: float, y: float, text: str, **look: Any) -> None:
        """Text around a place; lines of it are LINE apart."""
        usual: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": TEXT, "color": INK, "linespacing": 1.12}
        self.ax.text(x, y, text, **usual | look)

    def box(self, name: str, x: float, y: float, size: tuple[float, float], text: str, colour: str = "") -> None:
        """A box of size (width, height) around (x, y): a network where it has a colour of its own, data where not."""
        width, height = size
        self.boxes[name] = (x, y, width / 2, height / 2)
        edge = plots.COLOURS[colour] if colour else FAINT
        shape = "round,pad=0,rounding_size=9" if colour else "square,pad=0"
        corner = (x - width / 2, y - height / 2)
        face, wide = (tint(edge, 0.14), 1.6) if colour else ("white", 1.0)
        self.ax.add_patch(
            FancyBboxPatch(corner, *size, shape, facecolor=face, edgecolor=edge, linewidth=wide, zorder=2)
        )
        title, *rest = text.split("\n")
        top = y - LINE * len(rest) / 2
        self.write(x, top, title, weight="bold" if rest else "normal", zorder=3)
        if rest:
            self.write(x, top + LINE * (len(rest) + 1) / 2, "\n".join(rest), fontsize=SMALL, zorder=3)

    def spot(self, name: str, right: float = 0.0, down: float = 0.0) -> Point:
        """A place on or near a box: -1 is its left or upper edge, 1 its right or lower one."""
        x, y, wide, high = self.boxes[name]
        return x + right * wide, y + down * high

    def arrow(
        self, *points: Point, x: float | None = None, y: float | None = None, colour: str = INK, dashed: bool = False
    ) -> None:
        """An arrow through points; of two, by way of a vertical at x or a horizontal at y where one is given."""
        start, end = points[0], points[-1]
        if x is not None:
            points = (start, (x, start[1]), (x, end[1]), end)
        if y is not None:
            points = (start, (start[0], y), (end[0], y), end)
        style = DASHES if dashed else "-"
        self.ax.plot(*zip(*points, strict=True), gid="arrow", linestyle=style, linewidth=1.3, color=colour, zorder=1)
        last = next(point for point in reversed(points) if point != end)
        length = math.dist(last, end)
        tail = (end[0] - (end[0] - last[0]) / length, end[1] - (end[1] - last[1]) / length)
        look: dict[str, Any] = {
            "arrowstyle": "-|>",
            "mutation_scale": 11,
            "shrinkA": 0,
            "shrinkB": 0,
            "linewidth": 0.8,
            "zorder": 2,
        }
        self.ax.add_patch(FancyArrowPatch(tail, end, color=colour, **look))

    def join(self, left: str, right: str, **look: Any) -> None:
        """An arrow from the right side of a box to the left side of another."""
        self.arrow(self.spot(left, 1), self.spot(right, -1), **look)

    def gradient(self, *points: Point, colour: str, **look: Any) -> None:
        """A dashed arrow, from a loss to what it trains."""
        self.arrow(*points, colour=plots.COLOURS[colour], dashed=True, **look)


def tint(colour: str, strength: float) -> tuple[float, ...]:
    """The colour on white paper, thinned."""
    return tuple(1 - strength * (1 - part) for part in to_rgb(colour))


def pick(what: str, name: str | None, known: Iterable[str]) -> None:
    """Raises ValueError where the name is not a known one."""
    known = list(known)
    if name not in known:
        raise ValueError(f"{what} is {name!r}; expected one of {known}")
