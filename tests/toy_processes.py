"""A small decision process with random moves and rewards, for several test files.

tests/maths/test_mdp.py has its own: the mutation benchmark copies that file alone.
"""

import torch

from rlhf_lab.maths.mdp import TabularMDP


def random_mdp(seed, gamma=0.9, horizon=None, ends=False):
    """3 states and 2 actions, and a fourth state that may be an end, into which every step may lead."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.rand(shape, generator=generator, dtype=torch.float64)  # noqa: E731
    moves, rewards, start = draw(4, 2, 4), 2 * draw(4, 2) - 1, draw(4)
    if ends:
        moves[3], rewards[3] = torch.eye(4)[3], 0.0
    return TabularMDP(moves / moves.sum(2, keepdim=True), rewards, start / start.sum(), gamma, horizon)


def normals(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
