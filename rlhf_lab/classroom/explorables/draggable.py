"""A figure with numbers that can be dragged: scene and dials in Python, drawn by SVG in a browser and by matplotlib.

A `Plan` says what an explorable is: a sentence in which numbers stand, a `Dial` for each number, and a function from
the numbers to a `Scene`. A scene is numbers and words only, so the moving picture (draggable.js) and the still one
(`still`) are drawn from the same numbers. Every change of a dial runs the function again; nothing is interpolated.

    browser:  a dial is dragged -> `positions` -> `Plan.scene(...)` -> `scene` -> redrawn
              (one request at a time: what is dragged meanwhile is merged into the next one)

Left out: axes that are not linear, more than two panels. The explorables themselves are in `control` and `laws`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anywidget
import matplotlib.pyplot as plt
import traitlets
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke

from rlhf_lab.classroom import plots

INK = "#333333"
GREY = "#666666"  # of words about what is drawn in the grey of the reference
POLICY, REFERENCE, REWARD, VALUE = (plots.COLOURS[name] for name in ("policy", "reference", "reward", "value"))
DASHED = (4, 2)
HALO = [withStroke(linewidth=3, foreground="white")]  # behind text, so that lines do not run through it


# -- what is drawn ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Axis:
    """Label, limits and ticks of an axis; `names` stand at the ticks in place of the numbers."""

    label: str
    low: float
    high: float
    ticks: Sequence[float]
    names: Sequence[str] = ()

    def tick_names(self) -> list[str]:
        """What stands at the ticks."""
        return list(self.names) or [f"{tick:g}".replace("-", "−") for tick in self.ticks]

    def data(self) -> dict[str, Any]:
        """The axis as JSON can hold it."""
        return vars(self) | {"names": self.tick_names()}


@dataclass(frozen=True)
class Line:
    """A line through points; `dash` holds lengths on and off, in line widths."""

    x: Sequence[float]
    y: Sequence[float]
    colour: str
    dash: Sequence[float] = ()
    width: float = 2.0
    kind: str = "line"


@dataclass(frozen=True)
class Bars:
    """Bars from 0 up, around x; an outline where not `filled`."""

    x: Sequence[float]
    y: Sequence[float]
    width: float
    colour: str
    filled: bool = True
    kind: str = "bars"


@dataclass(frozen=True)
class Points:
    """Dots of a radius in pixels; rings where not `filled`."""

    x: Sequence[float]
    y: Sequence[float]
    colour: str
    radius: float = 5.0
    filled: bool = True
    kind: str = "points"


@dataclass(frozen=True)
class Band:
    """A stretch of the x axis in a pale tint, from the bottom to the top of the panel."""

    low: float
    high: float
    colour: str
    kind: str = "band"


@dataclass(frozen=True)
class Text:
    """Words at a place of the data; `anchor` is start, middle or end, `up` pixels above the place."""

    x: float
    y: float
    text: str
    colour: str = INK
    anchor: str = "start"
    up: float = 0.0
    kind: str = "text"


Mark = Line | Bars | Points | Band | Text


@dataclass(frozen=True)
class Panel:
    """A title, two axes and what is drawn between them, in this order."""

    title: str
    x: Axis
    y: Axis
    marks: Sequence[Mark]


@dataclass(frozen=True)
class Scene:
    """Two panels and the sentence under them, which says the numbers that they show."""

    panels: Sequence[Panel]
    says: str

    def data(self) -> dict[str, Any]:
        """The scene as JSON can hold it."""
        panels = [
            {"title": p.title, "x": p.x.data(), "y": p.y.data(), "marks": [vars(mark) for mark in p.marks]}
            for p in self.panels
        ]
        return {"panels": panels, "says": self.says}


def key(x: float, y: float, width: float, words: str, colour: str, dash: Sequence[float] = ()) -> list[Mark]:
    """A row of a legend: a piece of the line, and what it is."""
    return [Line([x, x + width], [y, y], colour, dash), Text(x + 1.25 * width, y, words, colour, up=-4)]


def steps(low: float, high: float, step: float) -> list[float]:
    """From low to high, both included, without the digits of rounding.

    Example:
        >>> steps(0.1, 0.3, 0.1)
        [0.1, 0.2, 0.3]
    """
    return [round(low + i * step, 6) for i in range(round((high - low) / step) + 1)]


# -- what is dragged -------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Dial:
    """A number that can be dragged through a list of values.

    Attributes:
        name: argument of the plan's scene.
        label: what a screen reader calls it.
        values: ascending.
        start: where it stands first; one of the values.
        form: how a value is written, as in format().

    Raises:
        ValueError: start is none of the values, or the values do not ascend.
    """

    name: str
    label: str
    values: Sequence[float]
    start: float
    form: str = ".2f"

    def __post_init__(self) -> None:
        if list(self.values) != sorted(set(self.values)):
            raise ValueError(f"values of the dial {self.name!r} must ascend, got {list(self.values)}")
        if self.start not in self.values:
            raise ValueError(f"start of the dial {self.name!r} is {self.start}; expected one of its values")

    def text(self, value: float) -> str:
        """A value as it stands in the sentence."""
        return format(value, self.form)

    def data(self) -> dict[str, Any]:
        """What the browser needs of it."""
        values = [float(value) for value in self.values]
        return {"name": self.name, "label": self.label, "values": values, "texts": [*map(self.text, self.values)]}


@dataclass(frozen=True)
class Plan:
    """An explorable: topic, sentence, dials, scene, and the settings of the still figure.

    Attributes:
        topic: a few words; with it the stored notebook says what stood here.
        sentence: with {name} where the number of a dial stands.
        dials: in the order of the sentence.
        scene: called with the value of each dial by name.
        stills: settings of the still figure, one a row; a dial that is not named stands at its start.
        alt: alternative text of the still figure.
    """

    topic: str
    sentence: str
    dials: Sequence[Dial]
    scene: Callable[..., Scene]
    stills: Sequence[Mapping[str, float]] = field(default_factory=tuple)
    alt: str = ""

    def start(self) -> dict[str, float]:
        """The setting that is shown first."""
        return {dial.name: dial.start for dial in self.dials}


class Explorable(anywidget.AnyWidget):
    """The widget of a plan: shown as the last expression of a cell.

    Positions count from 0 through the values of a dial, so that the browser rounds nothing.

    Example:
        >>> dial = Dial("n", "number", [1, 2, 3], 1, "d")
        >>> shown = Explorable(Plan("squares", "n = {n}", [dial], lambda n: Scene([], f"n n = {n * n}")))
        >>> shown.set(n=3)
        >>> shown.scene["says"], shown.positions
        ('n n = 9', {'n': 2})
        >>> shown
        explorable: squares; drag the number, or see the figure below

    Chapters 01 to 15.
    """

    _esm = Path(__file__).with_name("draggable.js").read_text(encoding="utf-8")
    _css = Path(__file__).with_name("draggable.css").read_text(encoding="utf-8")
    sentence = traitlets.Unicode().tag(sync=True)
    topic = traitlets.Unicode().tag(sync=True)
    dials = traitlets.List(traitlets.Dict()).tag(sync=True)
    positions = traitlets.Dict().tag(sync=True)
    scene = traitlets.Dict().tag(sync=True)

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        positions = {dial.name: list(dial.values).index(dial.start) for dial in plan.dials}
        super().__init__(
            topic=plan.topic,
            sentence=plan.sentence,
            dials=[dial.data() for dial in plan.dials],
            positions=positions,
            scene=self._drawn(positions),
        )

    @property
    def setting(self) -> dict[str, float]:
        """The value of each dial."""
        return self._setting(self.positions)

    def set(self, **values: float) -> None:
        """Put dials on values, as a drag would.

        Raises:
            ValueError: no dial has that name, or the dial does not hold the value.
        """
        dials = {dial.name: list(dial.values) for dial in self.plan.dials}
        for name, value in values.items():
            if name not in dials:
                raise ValueError(f"there is no dial {name!r} here; expected one of {sorted(dials)}")
            if value not in dials[name]:
                near = min(dials[name], key=lambda known: abs(known - value))
                raise ValueError(f"{name} is {value}, which its dial does not hold; the nearest value is {near}")
        self.positions = self.positions | {name: dials[name].index(value) for name, value in values.items()}

    def _setting(self, positions: Mapping[str, Any]) -> dict[str, float]:
        """What comes from a browser is not trusted: it is rounded and held within the list."""
        found = {}
        for dial in self.plan.dials:
            at = int(positions.get(dial.name, 0))
            found[dial.name] = dial.values[min(max(at, 0), len(dial.values) - 1)]
        return found

    def _drawn(self, positions: Mapping[str, Any]) -> dict[str, Any]:
        """The scene, and for which positions it is: the browser knows by them that it was answered."""
        return self.plan.scene(**self._setting(positions)).data() | {"positions": dict(positions)}

    @traitlets.observe("positions")
    def _redraw(self, change: dict[str, Any]) -> None:
        self.scene = self._drawn(change["new"])

    def __repr__(self) -> str:
        numbers = "number" if len(self.plan.dials) == 1 else "numbers"
        return f"explorable: {self.plan.topic}; drag the {numbers}, or see the figure below"


# -- the still figure ------------------------------------------------------------------------------------------------
def still(plan: Plan) -> None:
    """Show the static figure of a plan: one row for each of its settings, drawn from the same scenes.

    Raises:
        ValueError: the plan has no stills or no alt text.
    """
    if not plan.stills:
        raise ValueError(f"the plan {plan.topic!r} has no stills; expected at least one setting")
    with plots.style():
        figure, axes = plt.subplots(len(plan.stills), 2, figsize=(6.8, 1.95 * len(plan.stills)), squeeze=False)
        for row, (setting, pair) in enumerate(zip(plan.stills, axes, strict=True)):
            scene = plan.scene(**{**plan.start(), **setting})
            for panel, ax in zip(scene.panels, pair, strict=True):
                draw(ax, panel, last=row == len(plan.stills) - 1)
            above = [f"{panel.title}\n" if row == 0 else "" for panel in scene.panels]  # a line for each column, once
            pair[0].set_title(above[0] + ", ".join(_named(plan, name, value) for name, value in setting.items()))
            pair[1].set_title(above[1])
        plots.show(plan.alt, figure)


def _named(plan: Plan, name: str, value: float) -> str:
    dial = next(dial for dial in plan.dials if dial.name == name)
    return f"{dial.label} = {dial.text(value)}"


def draw(ax: Axes, panel: Panel, last: bool = True) -> Axes:
    """One panel on matplotlib axes; the label of the x axis only on the `last` row of a figure."""
    for mark in panel.marks:
        _draw_mark(ax, mark)
    ax.set(title=panel.title, ylabel=panel.y.label, xlim=(panel.x.low, panel.x.high), ylim=(panel.y.low, panel.y.high))
    ax.set_xticks(panel.x.ticks, panel.x.tick_names(), fontsize=8)
    ax.set_yticks(panel.y.ticks, panel.y.tick_names(), fontsize=8)
    if last:
        ax.set_xlabel(panel.x.label)
    return ax


def _draw_mark(ax: Axes, mark: Mark) -> None:
    if isinstance(mark, Line):
        style = (0, tuple(mark.dash)) if mark.dash else "-"
        ax.plot(mark.x, mark.y, color=mark.colour, linestyle=style, linewidth=0.8 * mark.width)
    elif isinstance(mark, Bars):
        face = mark.colour if mark.filled else "none"
        ax.bar(mark.x, mark.y, mark.width, facecolor=face, edgecolor=mark.colour, linewidth=1)
    elif isinstance(mark, Points):
        face = mark.colour if mark.filled else "white"
        ax.plot(
            mark.x, mark.y, "o", color=mark.colour, markerfacecolor=face, markersize=1.5 * mark.radius, clip_on=False
        )
    elif isinstance(mark, Band):
        ax.axvspan(mark.low, mark.high, color=mark.colour, alpha=0.13, linewidth=0)
    else:
        side = {"start": "left", "middle": "center", "end": "right"}[mark.anchor]
        place: dict[str, Any] = {"xytext": (0, 0.75 * mark.up), "textcoords": "offset points", "ha": side}
        ax.annotate(
            mark.text, (mark.x, mark.y), va="baseline", color=mark.colour, fontsize=8, path_effects=HALO, **place
        )
