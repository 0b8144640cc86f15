"""Maps whose every cell is a state that pays by its kind, so that a reward of states alone can say what is good.

In `mdp.gridworld` the goal is an end, and what is paid for entering it belongs to the step before. Here one walks on
for ever, and the same map with a closed cell, a turned compass or more slip is the same task under other dynamics.
"""

from collections.abc import Collection, Mapping, Sequence

import torch

from rlhf_lab.maths.mdp import TabularMDP

STEPS = ((-1, 0), (0, 1), (1, 0), (0, -1))  # north, east, south, west: rows down, columns to the right


def terrain(
    rows: Sequence[str],
    pays: Mapping[str, float],
    gamma: float = 0.9,
    slip: float = 0.0,
    closed: Collection[str] = (),
    turned: int = 0,
    horizon: int | None = None,
) -> TabularMDP:
    """A map walked north, east, south and west; every step pays what its cell pays, whatever is done there.

    Walking into a wall, over the edge or into a closed cell stays. With probability `slip` the step goes to one of the
    two sides instead.

    Args:
        rows: of letters: # is a wall and no state, S a start (several are equally likely), any other a kind of floor.
        pays: kind -> reward of a step taken there; 0 for the others.
        gamma, horizon: of the process.
        slip: in [0, 1].
        closed: names "row,column" of cells that cannot be entered any more; they stay states, so that rewards and
            policies of the open map fit.
        turned: quarter turns of the compass: with 1 what is called north leads east.

    Raises:
        ValueError: rows of unlike lengths, no start, a slip outside [0, 1], or a closed cell that is no floor.

    Example:
        >>> field = terrain(["S.G"], {"G": 1.0})
        >>> field.states, field.rewards[:, 0].tolist()
        (('0,0', '0,1', '0,2'), [0.0, 0.0, 1.0])

    Chapter 09.
    """
    cells = {f"{y},{x}": letter for y, row in enumerate(rows) for x, letter in enumerate(row) if letter != "#"}
    _check(rows, slip, closed, cells)
    names = list(cells)
    moves = torch.zeros(len(names), 4, len(names), dtype=torch.float64)
    for state, name in enumerate(names):
        y, x = map(int, name.split(","))
        for action in range(4):
            for turn, probability in ((0, 1 - slip), (1, slip / 2), (-1, slip / 2)):
                south, east = STEPS[(action + turned + turn) % 4]
                there = f"{y + south},{x + east}"
                free = there in cells and there not in closed
                moves[state, action, names.index(there) if free else state] += probability
    start = torch.tensor([float(letter == "S") for letter in cells.values()], dtype=torch.float64)
    paid = torch.tensor([[pays.get(letter, 0.0)] * 4 for letter in cells.values()], dtype=torch.float64)
    return TabularMDP(
        moves, paid, start / start.sum(), gamma, horizon, tuple(names), ("north", "east", "south", "west")
    )


def _check(rows: Sequence[str], slip: float, closed: Collection[str], cells: Mapping[str, str]) -> None:
    if len(set(map(len, rows))) != 1:
        raise ValueError(f"rows has {len(rows)} rows of lengths {[*map(len, rows)]}; expected rows of the same length")
    if "S" not in cells.values():
        raise ValueError("rows has no start; expected at least one S")
    if not 0 <= slip <= 1:
        raise ValueError(f"slip is {slip}; expected a probability, in [0, 1]")
    if missing := set(closed) - cells.keys():
        raise ValueError(f"closed holds {min(missing)!r}; expected names of cells such as {next(iter(cells))!r}")
