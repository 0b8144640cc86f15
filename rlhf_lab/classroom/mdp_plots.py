"""Drawings of a solved Markov decision process: a map with its best actions, a dialogue as a tree of histories."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Rectangle
from torch import Tensor

from rlhf_lab.classroom import plots
from rlhf_lab.classroom.drawing import DASHES, FAINT, SMALL, Board, Point
from rlhf_lab.maths.mdp import TabularMDP

SIGNS = {"G": ("goal", "white", "//"), "O": ("pit", "#BBBBBB", "xx"), "#": ("", "#444444", "")}
STEPS = {"north": (0, 0.17), "east": (0.17, 0), "south": (0, -0.17), "west": (-0.17, 0)}
COLUMNS = (112, 228, 352, 452, 600)  # pixels: states in the even ones, replies in the odd ones
ROW = 29  # pixels from leaf to leaf


def policy_map(ax: Axes, rows: Sequence[str], mdp: TabularMDP, values: Tensor, policy: Tensor) -> Axes:
    """A map of `mdp.gridworld`: in every cell the likeliest action as an arrow, its value as a number and in green.

    Args:
        rows: the map that the process was made from.
        values: [S] reward units.
        policy: [S, A] probabilities.

    Raises:
        ValueError: the map has none of the cells that are the states of the process.

    Example:
        >>> import matplotlib.pyplot as plt
        >>> from rlhf_lab.maths.mdp import gridworld, value_iteration
        >>> world = gridworld(["S.G"], gamma=0.9)
        >>> ax = policy_map(plt.figure(layout="none").add_subplot(), ["S.G"], world, *value_iteration(world))
        >>> [text.get_text() for text in ax.texts if text.get_text()]
        ['0.90', '1.00', 'goal']

    Chapter 01.
    """
    number = {name: state for state, name in enumerate(mdp.states)}
    cells = [(x, y, letter) for y, row in enumerate(rows) for x, letter in enumerate(row)]
    if not any(f"{y},{x}" in number for x, y, _ in cells):
        raise ValueError(f"rows has none of the cells {list(mdp.states)[:3]}...; expected the map of this process")
    for x, y, letter in cells:
        word, colour, hatch = SIGNS.get(letter, ("", "white", ""))
        ax.add_patch(Rectangle((x - 0.5, -y - 0.5), 1, 1, facecolor=colour, hatch=hatch, edgecolor="#AAAAAA"))
        if f"{y},{x}" in number:
            _cell(ax, (x, -y), number[f"{y},{x}"], mdp, values, policy)
        elif word:
            ax.text(x, -y, word, ha="center", va="center", bbox=plots.PAPER)
    ax.set(xlim=(-0.55, len(rows[0]) - 0.45), ylim=(0.45 - len(rows), 0.55), xticks=[], yticks=[], aspect="equal")
    ax.set_frame_on(False)
    ax.grid(False)
    return ax


def _cell(ax: Axes, place: tuple[int, int], state: int, mdp: TabularMDP, values: Tensor, policy: Tensor) -> None:
    """Shade, arrow and number of one cell."""
    (x, y), value = place, float(values[state])
    shade = max(value / max(float(values.max()), 1e-12), 0.0)
    ax.add_patch(Rectangle((x - 0.48, y - 0.48), 0.96, 0.96, color=plots.COLOURS["value"], alpha=0.4 * shade))
    dx, dy = STEPS[mdp.actions[int(policy[state].argmax())]]
    arrow = {"arrowstyle": "-|>", "color": plots.COLOURS["policy"], "linewidth": 1.8}
    ax.annotate("", (x + dx, y + 0.16 + dy), (x - dx, y + 0.16 - dy), arrowprops=arrow)
    ax.text(x, y - 0.33, f"{value:.2f}", ha="center", va="center", fontsize=9)


def history_tree(
    mdp: TabularMDP, values: Tensor, policy: Tensor, totals: Sequence[float], words: Mapping[str, str]
) -> Figure:
    """The histories of `mdp.dialogue` as a tree: the desk chooses at squares, the visitor answers at circles.

    The likeliest reply of each square is drawn thick, every answer carries its probability, and at the right end
    stands what the dialogue has earned in sum.

    Args:
        mdp: a process whose states are histories of at most two replies, and an end that is its last state.
        values: [S] reward units, written at the squares.
        policy: [S, A] probabilities.
        totals: [S] what a finished dialogue has earned, reward units.
        words: shorter forms of replies and answers.

    Example:
        >>> from rlhf_lab.maths.mdp import dialogue, value_iteration
        >>> desk = dialogue()
        >>> tree = history_tree(desk, *value_iteration(desk), dialogue("delayed").rewards[:, 0], words={})
        >>> [text.get_text() for text in tree.axes[0].texts][:3]
        ['Thank you!  +1.0', 'That is not what I wanted.  -1.0', '0.5']

    Chapter 01.
    """
    over = [bool(mdp.transitions[state, 0, -1] == 1) for state in range(len(mdp.states))]
    tree = _Tree(mdp, values, policy, totals, words, over, Board(22 + ROW * _leaves(mdp, over)))
    tree.grow(0, 0)
    key = "square: the desk chooses\ncircle: the visitor answers,\nwith this probability"
    tree.board.write(12, tree.board.height - 62, key, ha="left", fontsize=SMALL, color="#666666")
    return tree.board.figure


def _leaves(mdp: TabularMDP, over: Sequence[bool], state: int = 0) -> int:
    """How many finished dialogues follow a history."""
    if over[state]:
        return 1
    return sum(
        _leaves(mdp, over, after) for row in mdp.transitions[state] for after in row.nonzero().flatten().tolist()
    )


@dataclass
class _Tree:
    """A tree that is being drawn, leaf by leaf from the top; see `history_tree`."""

    mdp: TabularMDP
    values: Tensor
    policy: Tensor
    totals: Sequence[float]
    words: Mapping[str, str]
    over: Sequence[bool]
    board: Board
    leaves: int = 0  # drawn so far

    def said(self, text: str) -> str:
        return self.words.get(text, text)

    def grow(self, state: int, depth: int) -> float:
        """Draw a history and what can follow it; returns its height on the board."""
        words = self.said(self.mdp.states[state].split(" / ")[-1])
        if self.over[state]:
            self.leaves += 1
            y, x = 11 + ROW * (self.leaves - 0.5), COLUMNS[depth] + 8
            self.board.write(x, y, f"{words}  {float(self.totals[state]):+.1f}", ha="left", fontsize=SMALL)
            return y
        x = COLUMNS[depth]
        heights = [self.reply(state, action, depth) for action in range(len(self.mdp.actions))]
        y = sum(heights) / len(heights)
        for action, height in enumerate(heights):
            self.line((x, y), (COLUMNS[depth + 1], height), best=action == int(self.policy[state].argmax()))
            side = COLUMNS[depth + 1]
            place = (
                (side + 10, height - 9, "left") if depth else (side, height + (-15 if height <= y else 15), "center")
            )
            self.board.write(*place[:2], self.said(self.mdp.actions[action]), ha=place[2], fontsize=SMALL)
        self.board.ax.add_patch(Rectangle((x - 6, y - 6), 12, 12, color=plots.COLOURS["policy"], zorder=3))
        text = f"{words}\nworth {float(self.values[state]):.1f}"
        upper = self.leaves * ROW < self.board.height * 0.8
        place = (x - 20, y + (-25 if upper else 25), "center") if depth else (x - 12, y, "right")
        self.board.write(*place[:2], text, ha=place[2], fontsize=SMALL)
        return y

    def reply(self, state: int, action: int, depth: int) -> float:
        """Draw what the visitor may answer to a reply, each answer with its probability."""
        row, (x, far) = self.mdp.transitions[state, action], COLUMNS[depth + 1 : depth + 3]
        after = row.nonzero().flatten().tolist()
        ends = [self.grow(history, depth + 2) for history in after]
        y = sum(ends) / len(ends)
        for history, end in zip(after, ends, strict=True):
            self.board.ax.plot([x, far], [y, end], color=FAINT, linestyle=":", linewidth=1.2, zorder=1)
            share = 0.78 if depth else 0.64
            middle = (x + share * (far - x), y + share * (end - y))
            self.board.write(*middle, f"{float(row[history]):.2g}", fontsize=SMALL, color="#666666", bbox=plots.PAPER)
        self.board.ax.add_patch(Circle((x, y), 6, color=plots.COLOURS["other"], zorder=3))
        return y

    def line(self, start: Point, end: Point, best: bool) -> None:
        """From a square to one of its circles."""
        look: dict[str, Any] = {"color": FAINT, "linewidth": 1.0, "linestyle": DASHES}
        if best:
            look = {"color": plots.COLOURS["policy"], "linewidth": 2.8}
        self.board.ax.plot(*zip(start, end, strict=True), zorder=2 if best else 1, **look)
