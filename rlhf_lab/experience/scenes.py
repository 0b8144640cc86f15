"""Segments as short animations and in words, for people to compare.

`frames` draws CartPole, FrozenLake, CliffWalking, MountainCar, Pendulum and Acrobot from their observations, and of any
other environment the numbers that were seen. The maps of FrozenLake are those of its ids. gymnasium's own renderers
are not used: they need pygame, and draw the state of an environment that is running. `describe` says it in words.
No reward is in either. Left out on purpose: forces, and what a wrapper has hidden.
"""

import math
import struct
import zlib
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np
from gymnasium.envs.toy_text.frozen_lake import MAPS

from rlhf_lab.records import Segment

WIDTH = 200  # pixels
MOST = 25  # frames
WHITE, GREY, INK = (1.0, 1.0, 1.0), (0.62, 0.62, 0.62), (0.1, 0.1, 0.1)
BLUE, ORANGE, ICE = (0.0, 0.45, 0.7), (0.9, 0.62, 0.0), (0.84, 0.92, 0.97)
CELLS = {"S": WHITE, "F": ICE, "H": INK, "G": ORANGE, ".": WHITE, "C": INK}
CLIFF = ("." * 12, "." * 12, "." * 12, "S" + "C" * 10 + "G")
LAKE_MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))  # of actions 0 to 3: (columns, rows)
CLIFF_MOVES = ((0, -1), (1, 0), (0, 1), (-1, 0))
WORDS = {(-1, 0): "left", (0, 1): "down", (1, 0): "right", (0, -1): "up", (0, 0): "stays"}
FALLEN = math.radians(12)  # CartPole ends beyond this angle, or 2.4 from the middle


def frames(segment: Segment) -> list[bytes]:
    """PNG images of the segment, one for each observation; of more than 25 evenly spaced ones, first and last kept.

    An orange bar at the bottom grows with time.

    Args:
        segment: of any environment.

    Returns:
        1 to 25 PNG files, 200 pixels wide, all of one size.

    Example:
        >>> pictures = frames(Segment("CartPole-v1", ((0.0, 0.0, 0.1, 0.0), (0.0, 0.2, 0.1, -0.3)), ((1.0,),)))
        >>> len(pictures), pictures[0][:4]
        (2, b'\\x89PNG')

    Chapter 08.
    """
    last = len(segment.actions)
    draw = _scene(segment).draw
    pictures = []
    for t in sorted({round(i) for i in np.linspace(0, last, min(last + 1, MOST))}):
        canvas = draw(segment, t)
        canvas.bar(t / last)
        pictures.append(canvas.png())
    return pictures


def describe(segment: Segment) -> str:
    """What happens in a segment, in one or two sentences, for a reader who does not see the frames.

    Example:
        >>> describe(Segment("FrozenLake-v1", ((0.0,), (4.0,), (5.0,)), ((1.0,), (2.0,))))
        '2 steps on the ice: starts at row 1, column 1; down, right. Ends in a hole.'

    Chapter 08.
    """
    return _scene(segment).tell(segment)


# -- a canvas ---------------------------------------------------------------------------------------------------------
class Canvas:
    """A white picture of a part of the plane; shapes are smooth, for a pixel takes the colour by its distance.

    Args:
        left, right, bottom, top: of the part, in units of the scene; a pixel is a square.
    """

    def __init__(self, left: float, right: float, bottom: float, top: float) -> None:
        self.unit = WIDTH / (right - left)  # pixels
        height = max(round((top - bottom) * self.unit), 1)
        self.pixels = np.ones((height, WIDTH, 3))
        self.x = left + (np.arange(WIDTH) + 0.5)[None, :] / self.unit
        self.y = top - (np.arange(height) + 0.5)[:, None] / self.unit

    def _near(self, left: float, right: float, bottom: float, top: float) -> tuple[slice, slice]:
        """Rows and columns of the pixels in or beside a rectangle: a small shape then takes little time."""
        columns = np.searchsorted(self.x[0], (left - 1 / self.unit, right + 1 / self.unit)).tolist()
        rows = np.searchsorted(-self.y[:, 0], (-top - 1 / self.unit, -bottom + 1 / self.unit)).tolist()
        return slice(*rows), slice(*columns)

    def _paint(self, near: tuple[slice, slice], distance: np.ndarray, colour: tuple[float, float, float]) -> None:
        """Colour where the distance to a shape is below 0, fading over one pixel."""
        cover = np.clip(0.5 - distance * self.unit, 0.0, 1.0)[..., None]
        self.pixels[near] += cover * (np.array(colour) - self.pixels[near])

    def disc(self, x: float, y: float, radius: float, colour: tuple[float, float, float]) -> None:
        """A filled circle."""
        near = self._near(x - radius, x + radius, y - radius, y + radius)
        self._paint(near, np.hypot(self.x[:, near[1]] - x, self.y[near[0]] - y) - radius, colour)

    def line(self, start: Sequence[float], end: Sequence[float], width: float, colour: tuple) -> None:
        """A line with round ends."""
        (ax, ay), (bx, by), half = start, end, width / 2
        near = self._near(min(ax, bx) - half, max(ax, bx) + half, min(ay, by) - half, max(ay, by) + half)
        x, y = self.x[:, near[1]] - ax, self.y[near[0]] - ay
        length = max((bx - ax) ** 2 + (by - ay) ** 2, 1e-12)
        along = np.clip((x * (bx - ax) + y * (by - ay)) / length, 0.0, 1.0)
        self._paint(near, np.hypot(x - along * (bx - ax), y - along * (by - ay)) - half, colour)

    def box(self, left: float, right: float, bottom: float, top: float, colour: tuple[float, float, float]) -> None:
        """A filled rectangle."""
        near = self._near(left, right, bottom, top)
        x, y = self.x[:, near[1]], self.y[near[0]]
        beside = np.maximum(left - x, x - right)
        self._paint(near, np.maximum(beside, np.maximum(bottom - y, y - top)), colour)

    def arrow(self, x: float, y: float, way: tuple[float, float], size: float) -> None:
        """A triangle that points from (x, y) into the direction `way`, of length 1."""
        near = self._near(x - size, x + size, y - size, y + size)
        right, up = self.x[:, near[1]] - x, self.y[near[0]] - y
        along, across = right * way[0] + up * way[1], np.abs(up * way[0] - right * way[1])
        self._paint(near, np.maximum(-along, across + along / 2 - size / 2), ORANGE)

    def copy(self) -> "Canvas":
        """One that can be drawn on without changing this one."""
        other = copy(self)
        other.pixels = self.pixels.copy()
        return other

    def bar(self, share: float) -> None:
        """How much of the time has passed, at the bottom."""
        self.pixels = np.concatenate([self.pixels, np.ones((6, WIDTH, 3))])
        self.pixels[-4:] = GREY
        self.pixels[-4:, : round(share * WIDTH)] = ORANGE

    def png(self) -> bytes:
        """The picture as a PNG file."""
        height = len(self.pixels)
        rows = np.zeros((height, 1 + 3 * WIDTH), dtype=np.uint8)  # each row begins with its filter, 0
        rows[:, 1:] = np.rint(255 * self.pixels.clip(0, 1)).astype(np.uint8).reshape(height, -1)
        head = struct.pack(">IIBBBBB", WIDTH, height, 8, 2, 0, 0, 0)  # 8 bits each of red, green and blue
        parts = ((b"IHDR", head), (b"IDAT", zlib.compress(rows.tobytes(), 9)), (b"IEND", b""))
        chunks = [struct.pack(">I", len(b)) + a + b + struct.pack(">I", zlib.crc32(a + b)) for a, b in parts]
        return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


# -- scenes: how observation t of a segment looks, and what happens in it ---------------------------------------------
def _draw_cart(segment: Segment, t: int) -> Canvas:
    x, _, angle, _ = segment.observations[t]
    canvas = Canvas(-2.6, 2.6, -0.5, 1.4)
    canvas.line((-2.4, 0.0), (2.4, 0.0), 0.03, GREY)
    for side in (-2.4, 2.4):
        canvas.line((side, -0.15), (side, 0.15), 0.05, GREY)
    canvas.box(x - 0.3, x + 0.3, -0.12, 0.14, INK)
    canvas.line((x, 0.1), (x + math.sin(angle), 0.1 + math.cos(angle)), 0.09, BLUE)
    if t < len(segment.actions):
        way = 1.0 if segment.actions[t][0] > 0 else -1.0
        canvas.arrow(x + 0.35 * way, -0.3, (way, 0.0), 0.3)
    return canvas


def _tell_cart(segment: Segment) -> str:
    lean = [math.degrees(row[2]) for row in segment.observations]
    start, end = segment.observations[0], segment.observations[-1]
    over = "The pole has fallen" if abs(end[2]) > FALLEN else "The pole is still up"
    over = "The cart has left the track" if abs(end[0]) > 2.4 else over
    places = f"The cart goes from {_side(start[0])} to {_side(end[0])}"
    return f"{_steps(segment)}. {places}; the pole leans by {max(map(abs, lean)):.0f} degrees at most. {over}."


def _side(x: float) -> str:
    return "the middle" if abs(x) < 0.05 else f"{abs(x):.1f} {'left' if x < 0 else 'right'} of the middle"


def _lake(segment: Segment) -> tuple[str, ...]:
    return tuple(MAPS["8x8" if segment.environment.startswith("FrozenLake8x8") else "4x4"])


def _draw_grid(segment: Segment, t: int, rows: tuple[str, ...], moves: Sequence[tuple[int, int]]) -> Canvas:
    canvas = _board(rows).copy()
    r, c = divmod(int(segment.observations[t][0]), len(rows[0]))
    canvas.disc(c + 0.5, -r - 0.5, 0.34, WHITE)
    canvas.disc(c + 0.5, -r - 0.5, 0.28, BLUE)
    if t < len(segment.actions):
        across, down = moves[int(segment.actions[t][0])]
        canvas.arrow(c + 0.5 + 0.15 * across, -r - 0.5 - 0.15 * down, (across, -down), 0.3)
    return canvas


@cache
def _board(rows: tuple[str, ...]) -> Canvas:
    """Cell (column c, row r) covers c to c + 1 and -r - 1 to -r."""
    canvas = Canvas(0, len(rows[0]), -len(rows), 0)
    for r, row in enumerate(rows):
        for c, letter in enumerate(row):
            canvas.box(c, c + 1, -r - 1, -r, GREY)
            canvas.box(c + 0.03, c + 0.97, -r - 0.97, -r - 0.03, CELLS[letter])
    return canvas


def _tell_grid(segment: Segment, columns: int) -> tuple[list[tuple[int, int]], str]:
    """((columns, rows) moved at each step, where it starts)."""
    cells = [divmod(int(row[0]), columns) for row in segment.observations]
    moved = [(b[1] - a[1], b[0] - a[0]) for a, b in pairwise(cells)]
    return moved, f"starts at row {cells[0][0] + 1}, column {cells[0][1] + 1}; "


def _runs(words: Sequence[str]) -> str:
    """right, right, down -> "2 x right, down"."""
    runs: list[tuple[str, int]] = []
    for word in words:
        runs = [*runs[:-1], (word, runs[-1][1] + 1)] if runs and runs[-1][0] == word else [*runs, (word, 1)]
    return ", ".join(word if count == 1 else f"{count} x {word}" for word, count in runs)


def _tell_lake(segment: Segment) -> str:
    rows = _lake(segment)
    moved, start = _tell_grid(segment, len(rows))
    letter = "".join(rows)[int(segment.observations[-1][0])]
    end = {"H": "Ends in a hole", "G": "Ends at the goal"}.get(letter, "Ends on the ice")
    return f"{_steps(segment)} on the ice: {start}{_runs([WORDS[move] for move in moved])}. {end}."


def _tell_cliff(segment: Segment) -> str:
    """Whoever falls is back at the start, which is below its only neighbour that is not the cliff."""
    start, above, right = 36.0, 24.0, 1
    moved, place = _tell_grid(segment, 12)
    words = []
    for t, move in enumerate(moved):
        (before,), (after,), action = segment.observations[t], segment.observations[t + 1], segment.actions[t][0]
        back = after == start and before != above and (before != start or action == right)
        words.append("falls off the cliff, back at the start" if back else WORDS[move])
    end = "Ends at the goal" if segment.observations[-1][0] == 47.0 else "Is still on its way"
    return f"{_steps(segment)} along the cliff: {place}{_runs(words)}. {end}."


def _height(x: float) -> float:
    return 0.45 * math.sin(3 * x) + 0.55


@cache
def _valley() -> Canvas:
    canvas = Canvas(-1.25, 0.65, -0.05, 1.2)
    for start, end in pairwise((x, _height(x)) for x in np.linspace(-1.2, 0.6, 40).tolist()):
        canvas.line(start, end, 0.02, GREY)
    canvas.line((0.5, _height(0.5)), (0.5, _height(0.5) + 0.17), 0.02, ORANGE)
    return canvas


def _draw_mountain(segment: Segment, t: int) -> Canvas:
    canvas, x = _valley().copy(), segment.observations[t][0]
    canvas.disc(x, _height(x) + 0.04, 0.045, BLUE)
    return canvas


def _tell_mountain(segment: Segment) -> str:
    places = [row[0] for row in segment.observations]
    highest = max(places)
    flag = "It reaches the flag" if highest >= 0.45 else f"It gets as far as {highest:.2f}, and the flag is at 0.5"
    return f"{_steps(segment)}. The car goes from {places[0]:.2f} to {places[-1]:.2f}; the valley is at -0.52. {flag}."


def _draw_pendulum(segment: Segment, t: int) -> Canvas:
    up, side, _ = segment.observations[t]
    canvas = Canvas(-1.6, 1.6, -1.2, 1.2)
    canvas.line((0.0, 0.0), (-side, up), 0.16, BLUE)
    canvas.disc(0.0, 0.0, 0.07, INK)
    return canvas


def _tell_pendulum(segment: Segment) -> str:
    lean = [math.degrees(math.atan2(row[1], row[0])) for row in segment.observations]
    upright = sum(abs(angle) < 30 for angle in lean)
    places = f"{abs(lean[0]):.0f} to {abs(lean[-1]):.0f} degrees from upright"
    share = f"in {upright} of {len(lean)} views it is within 30 degrees"
    return f"{_steps(segment)}. The pendulum goes from {places}; {share}."


def _joints(observation: Sequence[float]) -> tuple[tuple[float, float], tuple[float, float]]:
    """Where the elbow and the tip of an Acrobot are; it hangs from (0, 0), and each of its parts has length 1."""
    one = math.atan2(observation[1], observation[0])
    both = one + math.atan2(observation[3], observation[2])
    elbow = (math.sin(one), -math.cos(one))
    return elbow, (elbow[0] + math.sin(both), elbow[1] - math.cos(both))


def _draw_acrobot(segment: Segment, t: int) -> Canvas:
    elbow, tip = _joints(segment.observations[t])
    canvas = Canvas(-2.8, 2.8, -2.1, 2.1)
    canvas.line((-2.8, 1.0), (2.8, 1.0), 0.04, ORANGE)
    canvas.line((0.0, 0.0), elbow, 0.18, BLUE)
    canvas.line(elbow, tip, 0.18, BLUE)
    canvas.disc(0.0, 0.0, 0.1, INK)
    canvas.disc(*elbow, 0.1, INK)
    return canvas


def _tell_acrobot(segment: Segment) -> str:
    highest = max(_joints(row)[1][1] for row in segment.observations)
    line = "above the line" if highest > 1 else "below the line"
    return f"{_steps(segment)}. The tip gets as high as {highest:.1f}, {line} at 1; hanging down it is at -2."


def _draw_numbers(segment: Segment, t: int) -> Canvas:
    """A bar for each number, between its least (left) and greatest (right) value in the segment; at most 12."""
    seen = np.array(segment.observations, dtype=float)[:, :12]
    low, high = seen.min(0), seen.max(0)
    with np.errstate(over="ignore"):  # of numbers near the largest float
        share = np.nan_to_num((seen[t] / 2 - low / 2) / np.maximum(high / 2 - low / 2, 1e-300))
    count = max(len(share), 1)
    canvas = Canvas(0, 12, -count, 0)
    for i, part in enumerate(share.tolist()):
        canvas.box(0.2, 11.8, -i - 0.8, -i - 0.2, ICE)
        canvas.box(0.2, 0.2 + 11.6 * part, -i - 0.8, -i - 0.2, BLUE)
    return canvas


def _tell_numbers(segment: Segment) -> str:
    pairs = zip(segment.observations[0][:12], segment.observations[-1][:12], strict=True)
    told = ", ".join(f"{a:.3g} to {b:.3g}" for a, b in pairs) or "nothing"
    return f"{_steps(segment)} of {segment.environment!r:.60}. What was seen, from first to last: {told}."


def _steps(segment: Segment) -> str:
    count = len(segment.actions)
    return f"{count} step{'s' * (count != 1)}"


@dataclass(frozen=True)
class Scene:
    """How an environment is drawn and told.

    Attributes:
        draw: (segment, t) -> canvas with observation t.
        tell: segment -> sentences.
        size: how many numbers an observation has.
        cells: of a grid, where the one number says in which cell; 0 elsewhere.
    """

    draw: Callable[[Segment, int], Canvas]
    tell: Callable[[Segment], str]
    size: int = 1
    cells: int = 0

    def fits(self, segment: Segment) -> bool:
        """Whether the numbers can be those of the environment; a record may hold any."""
        rows, actions = segment.observations, segment.actions
        if self.cells:
            whole = all(row[0].is_integer() for row in (*rows, *actions) if len(row) == 1)
            sizes = {len(row) for row in (*rows, *actions)} == {1}
            return sizes and whole and all(0 <= a[0] < 4 for a in actions) and all(0 <= r[0] < self.cells for r in rows)
        return len(rows[0]) == self.size and len(actions[0]) == 1 and all(abs(x) < 1e6 for row in rows for x in row)


NUMBERS = Scene(_draw_numbers, _tell_numbers)
MOUNTAIN = Scene(_draw_mountain, _tell_mountain, size=2)
SCENES = {  # id without its version -> scene
    "CartPole": Scene(_draw_cart, _tell_cart, size=4),
    "FrozenLake": Scene(lambda s, t: _draw_grid(s, t, _lake(s), LAKE_MOVES), _tell_lake, cells=16),
    "FrozenLake8x8": Scene(lambda s, t: _draw_grid(s, t, _lake(s), LAKE_MOVES), _tell_lake, cells=64),
    "CliffWalking": Scene(lambda s, t: _draw_grid(s, t, CLIFF, CLIFF_MOVES), _tell_cliff, cells=48),
    "MountainCar": MOUNTAIN,
    "MountainCarContinuous": MOUNTAIN,
    "Pendulum": Scene(_draw_pendulum, _tell_pendulum, size=3),
    "Acrobot": Scene(_draw_acrobot, _tell_acrobot, size=6),
}


def _scene(segment: Segment) -> Scene:
    """The plain numbers where the environment is another, or what was seen is not its own."""
    scene = SCENES.get(segment.environment.rpartition("-v")[0], NUMBERS)
    return scene if scene.fits(segment) else NUMBERS
