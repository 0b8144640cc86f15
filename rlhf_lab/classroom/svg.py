"""A small writer of figures as SVG: a plane with axes, and lines, bars, steps, points and intervals on it.

A figure is a list of marks, which report.html.j2 writes; so every text goes through its escaping. Colours are classes
of report.css, whose variables follow the theme. A mark may have a title, which a browser shows while the pointer is
over it; for lines there are invisible strips, one a step, so that nobody has to hit a line.
Left out: logarithmic axes, several panels, animation. `plots` draws for notebooks, with matplotlib.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

WIDTH, HEIGHT = 400, 250  # user units; the text is 12 of them, readable from a width of 280 pixels on
SHAPES = {  # paths around (0, 0)
    "circle": "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0",
    "square": "M-3.6 -3.6h7.2v7.2h-7.2z",
    "diamond": "M0 -5l5 5l-5 5l-5 -5z",
    "up": "M0 -5l5 9h-10z",
    "down": "M0 5l5 -9h-10z",
    "cross": "M-4 -4l8 8m0 -8l-8 8",
}
BY_MODEL = ("circle", "square", "diamond", "up", "down", "cross")


@dataclass(frozen=True)
class Mark:
    """One element: its tag, its attributes, its title and, of a text, what it says."""

    tag: str
    attributes: Mapping[str, str | float]
    title: str = ""
    text: str = ""


@dataclass(frozen=True)
class Figure:
    """A figure and the sentence that reads it.

    Attributes:
        title: what is drawn.
        reading: what there is to see, computed from the numbers.
        marks: from back to front.
        height: in user units; the width is `WIDTH`.
        keys: (class, shape, label) of each series.
    """

    title: str
    reading: str
    marks: Sequence[Mark]
    height: float = HEIGHT
    keys: Sequence[tuple[str, str, str]] = field(default=())


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers in [low, high], about `count` of them.

    Example:
        >>> ticks(0, 60), ticks(-0.13, 0.21)
        ([0.0, 20.0, 40.0, 60.0], [-0.1, 0.0, 0.1, 0.2])
    """
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(step for m in (1, 2, 5, 10) if (step := m * power) >= rough * 0.999)
    digits = max(0, -math.floor(math.log10(step)))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, digits) + 0.0 for i in range(first, last + 1)]


def padded(values: Sequence[float], share: float = 0.06) -> tuple[float, float]:
    """The range of the values and a little more; never empty."""
    low, high = min(values), max(values)
    room = share * (high - low) or max(abs(low) * share, 0.5)
    return low - room, high + room


class Plane:
    """Marks on axes. Methods that draw take data coordinates and return nothing; `marks` grows.

    Args:
        x, y: (low, high) of the axes.
        left, right, top, bottom: margins in user units.
        height: in user units.
    """

    def __init__(
        self,
        x: tuple[float, float],
        y: tuple[float, float],
        *,
        left: float = 46,
        right: float = 12,
        top: float = 22,
        bottom: float = 38,
        height: float = HEIGHT,
    ) -> None:
        self.x_range, self.y_range, self.height = x, y, height
        self.left, self.right, self.top, self.bottom = left, WIDTH - right, top, height - bottom
        self.marks: list[Mark] = []

    def x(self, value: float) -> float:
        """Where a value is, in user units from the left."""
        low, high = self.x_range
        return round(self.left + (value - low) / (high - low) * (self.right - self.left), 1)

    def y(self, value: float) -> float:
        """Where a value is, in user units from the top."""
        low, high = self.y_range
        return round(self.bottom - (value - low) / (high - low) * (self.bottom - self.top), 1)

    # -- axes --
    def axes(self, x_label: str, y_label: str = "", y_ticks: bool = True) -> None:
        """Grid, ticks and labels; that of the y axis stands above it, where it is read without turning the head."""
        for value in ticks(*self.x_range):
            self.text(self.x(value), self.bottom + 15, f"{value:g}", "middle")
        for value in ticks(*self.y_range) if y_ticks else ():
            self._stroke("grid", [(self.left, self.y(value)), (self.right, self.y(value))])
            self.text(self.left - 6, self.y(value) + 4, f"{value:g}", "end")
        self._stroke("axis", [(self.left, self.bottom), (self.right, self.bottom)])
        self.text((self.left + self.right) / 2, self.height - 5, x_label, "middle")
        self.text(4, 12, y_label, "start")

    def text(self, x: float, y: float, text: str, anchor: str, look: str = "label") -> None:
        """A text in user units; the anchor is start, middle or end."""
        if text:
            self.marks.append(Mark("text", {"class": look, "x": x, "y": y, "text-anchor": anchor}, text=text))

    # -- data --
    def line(self, look: str, xs: Sequence[float], ys: Sequence[float]) -> None:
        """A line through points."""
        self._stroke(f"line {look}", [(self.x(x), self.y(y)) for x, y in zip(xs, ys, strict=True)])

    def area(self, look: str, edges: Sequence[float], heights: Sequence[float]) -> None:
        """A histogram as one filled outline with steps; there is one edge more than there are heights."""
        places = [(edges[0], 0.0)]
        for low, high, up in zip(edges[:-1], edges[1:], heights, strict=True):
            places += [(low, up), (high, up)]
        self._stroke(f"line area {look}", [(self.x(x), self.y(y)) for x, y in [*places, (edges[-1], 0.0)]])

    def point(self, look: str, x: float, y: float, title: str = "", shape: str = "circle") -> None:
        """A point in one of `SHAPES`."""
        where = f"translate({self.x(x)} {self.y(y)})"
        self.marks.append(Mark("path", {"class": f"point {look}", "d": SHAPES[shape], "transform": where}, title))

    def across(self, look: str, y: float, low: float, high: float) -> None:
        """An interval along x, cut at the edges of the plane."""
        ends = [min(max(end, self.x_range[0]), self.x_range[1]) for end in (low, high)]
        self._stroke(f"whisker {look}", [(self.x(end), self.y(y)) for end in ends])

    def upright(self, look: str, x: float, low: float, high: float) -> None:
        """An interval along y."""
        self._stroke(f"whisker {look}", [(self.x(x), self.y(low)), (self.x(x), self.y(high))])

    def strips(self, xs: Sequence[float], title: Callable[[int], str]) -> None:
        """An invisible strip around each x, as high as the plane, with the title of its index."""
        edges = [self.left, *(self.x((a + b) / 2) for a, b in pairwise(xs)), self.right]
        for index, (low, high) in enumerate(pairwise(edges)):
            box = {"x": low, "y": self.top, "width": round(max(high - low, 0), 1), "height": self.bottom - self.top}
            self.marks.append(Mark("rect", {"class": "strip", **box}, title(index)))

    def rows(self, titles: Sequence[str]) -> None:
        """An invisible strip along each row y = 0, 1, 2, ..., as wide as the figure, with its title."""
        for row, title in enumerate(titles):
            top, bottom = self.y(row - 0.5), self.y(row + 0.5)
            box = {"x": 0, "y": min(top, bottom), "width": WIDTH, "height": round(abs(bottom - top), 1)}
            self.marks.append(Mark("rect", {"class": "strip", **box}, title))

    def _stroke(self, look: str, places: Sequence[tuple[float, float]]) -> None:
        path = "M" + "L".join(f"{x:g} {y:g}" for x, y in places)
        self.marks.append(Mark("path", {"class": look, "d": path}))
