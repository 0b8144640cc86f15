"""Schematic drawings of the series, one function each: it draws, and shows the drawing with its alternative text.

    diagrams.pipeline("sft")         the stages of RLHF, with "you are here"
    diagrams.agent_environment()     who sends what to whom in a Markov decision process
    diagrams.backup("q-learning")    which later values a value is computed from, after Sutton and Barto
    diagrams.data_flow("ppo")        from samples to gradients, algorithm by algorithm
    diagrams.batch_layout()          where prompts, replies, scores and values stand in a batch
    diagrams.token_cells(...)        rows of real tokens, one cell each: prompt, reply, padding

A drawing is 750 pixels wide, coordinates are pixels and y points down. Colours are those of `plots.COLOURS`; networks
have round corners and data sharp ones, gradients are dashed, so that colour is never the only cue.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import Circle, Rectangle

from rlhf_lab.classroom import plots
from rlhf_lab.classroom.drawing import FAINT, INK, SMALL, WIDTH, Board, Point, pick, tint
from rlhf_lab.classroom.flows import FLOWS

# -- pipeline ------------------------------------------------------------------------------------------------
STAGES = {  # name -> title and text, whose colour
    "base": ("base\npredicts the\nnext token", "policy"),
    "sft": ("SFT\nimitates\ndemonstrations", "policy"),
    "feedback": ("feedback\npeople compare\nits replies", ""),
    "reward model": ("reward model\nscores replies\nas people would", "reward"),
    "ppo": ("PPO\nlearns from\nthe scores", "policy"),
}


def pipeline(here: str | None = None) -> None:
    """The stages of RLHF from left to right, and a mark at the one that the reader is at.

    Args:
        here: "base", "sft", "feedback", "reward model" or "ppo"; None marks nothing.

    Raises:
        ValueError: another name.

    Example:
        >>> pipeline("sft")  # doctest: +ELLIPSIS
        Figure(728...)

    Source: after Ouyang et al. 2022, Training language models to follow instructions with human feedback, figure 2.
    Chapters 00 and 10.
    """
    figure, alt = _draw_pipeline(here)
    plots.show(alt, figure)


def _draw_pipeline(here: str | None = None) -> tuple[Figure, str]:
    if here is not None:
        pick("here", here, STAGES)
    board = Board(182)
    for place, (name, (text, colour)) in enumerate(STAGES.items()):
        x = 72 + 151.5 * place
        board.box(name, x, 74, (128, 72), text, colour)
        if name == here:
            mark = Rectangle((x - 68, 34), 136, 80, fill=False, edgecolor=INK, linewidth=2.4, zorder=4)
            board.ax.add_patch(mark)
            board.write(x, 18, "you are here", weight="bold")
    names = list(STAGES)
    for left, right in pairwise(names):
        board.arrow(board.spot(left, 1.08), board.spot(right, -1.08))
    board.arrow(board.spot("ppo", -0.3, 1.16), board.spot("feedback", 0, 1.16), y=136, colour=FAINT)
    board.arrow(board.spot("sft", 0, 1.16), board.spot("ppo", 0.3, 1.16), y=164)
    board.write(460, 153, "where PPO starts, and its reference", fontsize=SMALL)
    board.write(515, 126, "next round: replies of the new policy", fontsize=SMALL, color="#666666")
    return board.figure, (
        "Five stages in a row: base model, SFT, feedback, reward model, PPO. SFT is also where PPO starts and its "
        "reference. A light arrow leads from PPO back to feedback, for another round. "
        + ("No stage is marked." if here is None else f"You are here: {here}.")
    )


# -- agent and environment -----------------------------------------------------------------------------------
def agent_environment() -> None:
    """An agent acts, its environment answers with a state and a reward, and so on.

    Example:
        >>> agent_environment()  # doctest: +ELLIPSIS
        Figure(728...)

    Source: after Sutton and Barto 2018, Reinforcement Learning, figure 3.1. Chapter 01.
    """
    figure, alt = _draw_agent_environment()
    plots.show(alt, figure)


def _draw_agent_environment() -> tuple[Figure, str]:
    board = Board(226)
    board.box("agent", 375, 44, (264, 58), "agent\nchooses by its policy \u03c0(a | s)", "policy")
    board.box("environment", 375, 182, (264, 58), "environment\nanswers by P(s' | s, a) and r(s, a)", "reference")
    board.arrow(board.spot("agent", 1), board.spot("environment", 1), x=620)
    board.arrow(board.spot("environment", -1), board.spot("agent", -1), x=130)
    board.arrow(board.spot("environment", -0.5, -1), board.spot("agent", -0.5, 1), colour=plots.COLOURS["reward"])
    board.write(632, 113, "action $a_t$", ha="left")
    board.write(118, 113, "state $s_{t+1}$", ha="right")
    board.write(321, 113, "reward $r_t$", ha="left", color=plots.COLOURS["reward"])
    alt = (
        "A loop: the agent sends an action to the environment, the environment sends back a reward and the next state."
    )
    return board.figure, alt


# -- backup diagrams -----------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Backup:
    """What a value is computed from: a tree that begins with a state or an action, and a word to each of its steps."""

    title: str
    formula: str
    root: str
    widths: tuple[int, ...]
    notes: tuple[str, ...]
    maximum: int = -1  # the step at which the best branch is taken


NEXT_ACTION = "mean over actions, by \u03c0(a' | s')"
MEAN_ACTION, MEAN_STATE = "mean over actions, by \u03c0(a | s)", "mean over next states, by P(s' | s, a)"
ONE_ACTION, ONE_STATE, BEST = "one action, drawn from \u03c0", "one next state, as it came", "the best action"
BACKUPS = {
    "v": Backup(
        "Value of a policy", r"$V^\pi(s)=\sum_a \pi(a|s)\,[\,r(s,a)+\gamma\sum_{s'}P(s'|s,a)\,V^\pi(s')\,]$",
        "state", (3, 2), (MEAN_ACTION, MEAN_STATE),
    ),
    "q": Backup(
        "Action value of a policy", r"$Q^\pi(s,a)=r(s,a)+\gamma\sum_{s'}P(s'|s,a)\sum_{a'}\pi(a'|s')\,Q^\pi(s',a')$",
        "action", (3, 2), (MEAN_STATE, NEXT_ACTION),
    ),
    "v*": Backup(
        "Best value", r"$V^*(s)=\max_a\,[\,r(s,a)+\gamma\sum_{s'}P(s'|s,a)\,V^*(s')\,]$",
        "state", (3, 2), (BEST, MEAN_STATE), 0,
    ),
    "q*": Backup(
        "Best action value", r"$Q^*(s,a)=r(s,a)+\gamma\sum_{s'}P(s'|s,a)\,\max_{a'}Q^*(s',a')$",
        "action", (3, 2), (MEAN_STATE, BEST), 1,
    ),
    "td": Backup("TD(0)", r"target of $V(s)$:  $r+\gamma V(s')$", "state", (1, 1), (ONE_ACTION, ONE_STATE)),
    "sarsa": Backup(
        "SARSA", r"target of $Q(s,a)$:  $r+\gamma Q(s',a')$", "action", (1, 1), (ONE_STATE, ONE_ACTION)
    ),
    "expected sarsa": Backup(
        "Expected SARSA", r"target of $Q(s,a)$:  $r+\gamma\sum_{a'}\pi(a'|s')\,Q(s',a')$",
        "action", (1, 3), (ONE_STATE, NEXT_ACTION),
    ),
    "q-learning": Backup(
        "Q-learning", r"target of $Q(s,a)$:  $r+\gamma\max_{a'}Q(s',a')$",
        "action", (1, 3), (ONE_STATE, BEST), 1,
    ),
    "monte carlo": Backup(
        "Monte Carlo", r"target of $V(s)$:  $r_0+\gamma r_1+\gamma^2r_2+\dots$ to the end",
        "state", (1, 1, 1, 1), ("", "one whole episode, as it came", "", ""),
    ),
}  # fmt: skip


def backup(kind: str) -> None:
    """Backup diagram: the value at the top is computed from the values at the bottom.

    Open circles are states, filled ones actions; an arc over branches takes the maximum, branches without an arc are
    averaged.

    Args:
        kind: "v", "q" (of a policy), "v*", "q*" (the best), or the target of "td", "sarsa", "expected sarsa",
            "q-learning", "monte carlo".

    Raises:
        ValueError: another kind.

    Example:
        >>> backup("v*")  # doctest: +ELLIPSIS
        Figure(728...)

    Source: after Sutton and Barto 2018, Reinforcement Learning, chapters 3 and 6. Chapters 01 and 03.
    """
    figure, alt = _draw_backup(kind)
    plots.show(alt, figure)


def _draw_backup(kind: str) -> tuple[Figure, str]:
    pick("kind", kind, BACKUPS)
    look = BACKUPS[kind]
    depth = len(look.widths)
    step = 68 if depth == 2 else 46
    board = Board(122 + step * depth)
    board.write(20, 22, look.title, ha="left", weight="bold", fontsize=10.5)
    board.write(20, 54, look.formula, ha="left", fontsize=11)
    kinds = [("state", "action")[(level + (look.root == "action")) % 2] for level in range(depth + 1)]
    rows, spread = [[270.0]], 105.0
    for width in look.widths:
        shifts = [spread * (i - (width - 1) / 2) for i in range(width)]
        rows.append([x + shift for x in rows[-1] for shift in shifts])
        spread *= 0.47
    ends = kind == "monte carlo"
    for level, xs in enumerate(rows):
        y = 104 + step * level
        board.write(20, y, name_of(kinds, level, ends), ha="left")
        if level:
            note = look.notes[level - 1]
            strong = {"weight": "bold"} if note == BEST else {}
            board.write(440, y - step / 2, note, ha="left", fontsize=SMALL + 0.5, color="#555555", **strong)
            branches(
                board,
                rows[level - 1],
                xs,
                (y - step, y),
                arc=look.maximum == level - 1,
                open_end=ends and level == depth,
            )
        for x in xs:
            node(board, x, y, "end" if ends and level == depth else kinds[level])
    means = ", then ".join(dict.fromkeys(note for note in look.notes if note))
    top = "a state" if look.root == "state" else "an action"
    return board.figure, f"Backup diagram, {look.title}: {top} at the top, below it {means}."


def name_of(kinds: list[str], level: int, ends: bool) -> str:
    """What stands left of a row of nodes."""
    if ends and level == len(kinds) - 1:
        return "the end"
    letter, primes = kinds[level][0], "'" * ((level + (kinds[0] == "action")) // 2)
    return f"state {letter}{primes}" if kinds[level] == "state" else f"action a{primes}"


def node(board: Board, x: float, y: float, kind: str) -> None:
    """An open circle for a state, a filled one for an action, a grey square for the end."""
    look: dict[str, Any] = {"edgecolor": INK, "linewidth": 1.5, "zorder": 3}
    if kind == "end":
        board.ax.add_patch(Rectangle((x - 8, y - 8), 16, 16, facecolor="#BBBBBB", **look))
    else:
        radius, face = (9, "white") if kind == "state" else (6, INK)
        board.ax.add_patch(Circle((x, y), radius, facecolor=face, **look))


def branches(board: Board, above: list[float], below: list[float], y: Point, arc: bool, open_end: bool) -> None:
    """Lines from each node of a row to its share of the next row, with an arc over them where the best one counts."""
    share = len(below) // len(above)
    style = ":" if open_end else "-"
    for i, top in enumerate(above):
        mine = below[share * i : share * (i + 1)]
        for x in mine:
            board.ax.plot([top, x], y, color=INK, linewidth=1.3, linestyle=style, zorder=1)
        if arc:
            part = 0.44
            xs = [top + part * (x - top) for x in (mine[0], top, mine[-1])]
            ys = [y[0] + part * (y[1] - y[0]) + dip for dip in (0, 9, 0)]
            ts = [k / 20 for k in range(21)]
            curve = [[(1 - t) ** 2 * p[0] + 2 * t * (1 - t) * p[1] + t**2 * p[2] for t in ts] for p in (xs, ys)]
            board.ax.plot(*curve, color=plots.COLOURS["policy"], linewidth=2.6, zorder=2)


# -- data flow -----------------------------------------------------------------------------------------------
def data_flow(name: str) -> None:
    """What an algorithm computes from what, from samples to gradients.

    Args:
        name: "reinforce", "actor-critic", "ppo", "dqn", "rlhf" or "transformer".

    Raises:
        ValueError: another name.

    Example:
        >>> data_flow("ppo")  # doctest: +ELLIPSIS
        Figure(728...)

    Chapters 02 (reinforce), 03 (dqn), 04 (actor-critic), 05 (ppo), 07 (transformer) and 10 (rlhf).
    """
    figure, alt = _draw_data_flow(name)
    plots.show(alt, figure)


def _draw_data_flow(name: str) -> tuple[Figure, str]:
    pick("name", name, FLOWS)
    height, draw, alt = FLOWS[name]
    board = Board(height)
    draw(board)
    key = "round corners: a network    square: data or a number"
    key += "" if name == "transformer" else "    dashed: a gradient"  # the one without a loss
    board.write(20, height - 12, key, ha="left", fontsize=SMALL, color="#666666")
    return board.figure, alt


# -- batch layout --------------------------------------------------------------------------------------------
TOKENS = (  # three prompts of P = 4 columns and their replies of T = 5; "" is padding
    ("", "", "When", "?", "At", "nine", "today", "end", ""),
    ("", "Is", "it", "far", "No", "sorry", "end", "", ""),
    ("Where", "can", "I", "read", "Go", "to", "the", "old", "mill"),
)
KL, LOG_PROB = "\u2212\u03b2 kl", "log \u03c0"
DETAILS: dict[str, tuple[str, ...]] = {  # of the first row; the last four belong to the reply alone
    "mask": ("False", "False", "True", "True", "True", "True", "True", "True", "False"),
    "position": ("", "", "0", "1", "2", "3", "4", "5", ""),
    "log-prob": (LOG_PROB, LOG_PROB, LOG_PROB, LOG_PROB, ""),
    "reward": (KL, KL, KL, KL + "\n+ score", ""),
    "discount": ("1", "1", "1", "0", ""),
    "value": ("V", "V", "V", "V", "0", "0"),
}


def batch_layout() -> None:
    """Where things stand in a batch: tokens, mask, positions, log-probs, rewards, discounts and values.

    Example:
        >>> batch_layout()  # doctest: +ELLIPSIS
        Figure(728...)

    Chapters 00 and 10.
    """
    figure, alt = _draw_batch_layout()
    plots.show(alt, figure)


def _draw_batch_layout() -> tuple[Figure, str]:
    board, cell = Board(370), 62.0
    left = [118 + cell * column for column in range(11)]
    board.write((left[0] + left[4]) / 2, 14, "prompts [B, P], padded on the left", fontsize=SMALL)
    board.write((left[4] + left[9]) / 2, 14, "replies [B, T], padded on the right", fontsize=SMALL)
    for row, tokens in enumerate(TOKENS):
        board.write(108, 43 + 30 * row, f"row {row}", ha="right")
        draw_cells(board, left, (28 + 30 * row, 30), [token or "pad" for token in tokens], tokens)
    board.write(left[0], 142, "row 0 in detail", ha="left", weight="bold")
    y = 158.0
    for name, cells in DETAILS.items():
        height = 42 if name == "reward" else 30
        board.write(108, y + height / 2, name, ha="right")
        draw_cells(board, left, (y, height), cells, TOKENS[0])
        y += height
    board.write(left[9] + 31, y - 42, "[B, T + 1]", fontsize=SMALL)
    board.ax.plot([left[4]] * 2, [24, y + 4], color=INK, linewidth=2.0, zorder=4)
    return board.figure, (
        "A batch of three prompts, padded on the left, and their replies, padded on the right, so that all replies "
        "begin in one column. The mask is True on real tokens, positions count them. Every reply token has a log-prob "
        "and a KL penalty; the score is added at the last real one, where the discount is 0. Values have one column "
        "more, and are 0 after the last real token."
    )


def draw_cells(board: Board, left: list[float], rows: Point, cells: Sequence[str], tokens: tuple[str, ...]) -> None:
    """A row of cells from y = rows[0] on, rows[1] high: prompt grey, reply blue, pale where the token is padding.

    Fewer cells than there are tokens are those of the reply.
    """
    first = 0 if len(cells) == len(tokens) else 4
    for column, text in enumerate(cells, first):
        real = column < len(tokens) and bool(tokens[column])
        colour = plots.COLOURS["policy" if column >= 4 else "reference"]
        look: dict[str, Any] = {
            "facecolor": tint(colour, 0.16) if real else "#F5F5F5",
            "edgecolor": "white",
            "linewidth": 2,
        }
        board.ax.add_patch(Rectangle((left[column], rows[0]), left[1] - left[0], rows[1], **look))
        x, ink = (left[column] + left[column + 1]) / 2, "#777777" if text == "pad" else INK
        if text:
            board.write(x, rows[0] + rows[1] / 2, text, va="center_baseline", fontsize=SMALL, color=ink)


# -- rows of tokens ------------------------------------------------------------------------------------------
CELL = 26.0  # height of a row of cells


def token_cells(rows: Mapping[str, Sequence[str]], prompt: int, padding: Sequence[Sequence[bool]], alt: str) -> None:
    """Rows of one cell a token: the prompt's grey, the reply's blue, pale where there is padding.

    Args:
        rows: name of a row -> what stands in its cells, as many in each row; at most 17.
        prompt: so many columns belong to the prompt; a line is drawn behind them.
        padding: for each row, True where a cell is padding.
        alt: what there is to see.

    Raises:
        ValueError: rows of different lengths, or more columns than can be read.

    Example:
        >>> token_cells({"row 0": ["pad", "Hi", "No"]}, 2, [[True, False, False]], "a row of three tokens, one padding")
        ... # doctest: +ELLIPSIS
        Figure(728...)

    Chapter 07.
    """
    plots.show(alt, _draw_token_cells(rows, prompt, padding))


def _draw_token_cells(rows: Mapping[str, Sequence[str]], prompt: int, padding: Sequence[Sequence[bool]]) -> Figure:
    widths = {len(cells) for cells in (*rows.values(), *padding)}
    if len(widths) != 1 or not 1 <= (count := widths.pop()) <= 17 or len(padding) != len(rows):
        raise ValueError(f"rows have {[*map(len, rows.values())]} cells; expected as many in each row, at most 17")
    board, left = Board(34 + CELL * len(rows)), 74.0
    wide = (WIDTH - left - 8) / count
    for column, name, colour in ((prompt / 2, "prompt", "reference"), ((prompt + count) / 2, "reply", "policy")):
        if 0 < prompt < count:
            board.write(left + wide * column, 12, name, fontsize=SMALL, color=plots.COLOURS[colour])
    for i, ((name, cells), gaps) in enumerate(zip(rows.items(), padding, strict=True)):
        y = 26 + CELL * i
        board.write(left - 8, y + CELL / 2, name, ha="right", fontsize=SMALL)
        for column, (text, gap) in enumerate(zip(cells, gaps, strict=True)):
            colour = plots.COLOURS["policy" if column >= prompt else "reference"]
            face = "#F5F5F5" if gap else tint(colour, 0.16)
            corner = (left + wide * column, y)
            board.ax.add_patch(Rectangle(corner, wide, CELL, facecolor=face, edgecolor="white", linewidth=1.5))
            ink = "#777777" if gap else INK
            middle = left + wide * (column + 0.5), y + CELL / 2
            board.write(*middle, text, va="center_baseline", fontsize=SMALL, color=ink)
    if 0 < prompt < count:
        board.ax.plot([left + wide * prompt] * 2, [22, 28 + CELL * len(rows)], color=INK, linewidth=2.0, zorder=4)
    return board.figure
