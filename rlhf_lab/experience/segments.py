"""Short pieces of episodes, for people to compare: cut, with what they earned kept apart, and in pairs.

A `Segment` holds what was seen and done and no reward, since those who compare must not read it off. How it is shown
stands in `scenes`. Left out on purpose: choosing pairs by how much they would teach.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from rlhf_lab.experience.episodes import Episodes
from rlhf_lab.records import Segment
from rlhf_lab.training.configs import require, whole_number


def cut_segments(episodes: Episodes, environment: str, steps: int, short_ends: bool = False) -> dict[Segment, float]:
    """Pieces of `steps` steps, one after the other from the beginning of each row.

    In a task that pays the same for each step, such as CartPole, pieces of one length all earn the same. What tells
    them apart is where an episode was over: with `short_ends` the piece that holds its last steps is kept, too.

    Args:
        episodes: of `collect_episodes` or `Runner.collect`, with a discount above 0.
        environment: id of where they come from.
        steps: of each piece, at least 1.
        short_ends: also keep what is left of a row that ended in a terminal state, from 1 step on. What is left of a
            row that was cut is dropped: nothing ended there.

    Returns:
        {segment: its undiscounted return}, in the order of the rows; of equal segments the first.

    Raises:
        ValueError: an argument that cannot be, or no piece that is long enough.

    Example:
        >>> from rlhf_lab.experience.episodes import collect_episodes, open_envs, policy_for
        >>> from rlhf_lab.models.policies import sampling
        >>> with open_envs("CartPole-v1", 3, seed=0) as envs:
        ...     act = sampling(policy_for(envs[0]), torch.Generator().manual_seed(0))
        ...     episodes = collect_episodes(envs, act, gamma=0.99)
        >>> returns = cut_segments(episodes, "CartPole-v1", steps=5)
        >>> {len(segment.actions) for segment in returns}, set(returns.values())
        ({5}, {5.0})

    Chapter 08.
    """
    whole_number("steps", steps, least=1)
    found: dict[Segment, float] = {}
    for row, start, stop in _pieces(episodes, steps, short_ends):
        seen = _vectors(episodes.observations[row, start : stop + 1])
        segment = Segment(environment, seen, _vectors(episodes.actions[row, start:stop]))
        found.setdefault(segment, float(episodes.rewards[row, start:stop].double().sum()))
    longest = int(episodes.mask.sum(1).max())
    require(bool(found), "steps", steps, f"at most {longest}, the length of the longest row")
    return found


def _pieces(episodes: Episodes, steps: int, short_ends: bool) -> Iterator[tuple[int, int, int]]:
    """(row, first step, step after the last one)."""
    for row, length in enumerate(episodes.mask.sum(1).tolist()):
        for start in range(0, length, steps):
            stop = min(start + steps, length)
            over = short_ends and float(episodes.discounts[row, length - 1]) == 0.0
            if stop - start == steps or over:
                yield row, start, stop


def _vectors(rows: Tensor) -> tuple[tuple[float, ...], ...]:
    """[T, ...] as T tuples of numbers."""
    return tuple(map(tuple, rows.reshape(len(rows), -1).tolist()))


def pair_segments(segments: Sequence[Segment], count: int, generator: torch.Generator) -> list[tuple[Segment, Segment]]:
    """`count` pairs of different segments, drawn without replacement from all pairs; the sides are drawn too.

    Args:
        segments: different ones, for example the keys of `cut_segments`.
        count: how many pairs, at least 1.
        generator: of the draw.

    Raises:
        ValueError: there are not so many pairs.

    Example:
        >>> some = [Segment("Toy", ((0.0,), (x,)), ((0,),)) for x in (1.0, 2.0, 3.0)]
        >>> pairs = pair_segments(some, 3, torch.Generator().manual_seed(0))
        >>> len({frozenset(pair) for pair in pairs})
        3

    Chapter 08.
    """
    whole_number("count", count, least=1)
    different = list(dict.fromkeys(segments))
    most = len(different) * (len(different) - 1) // 2
    require(count <= most, "count", count, f"at most {most}, the number of pairs of {len(different)} segments")
    drawn = torch.randperm(most, generator=generator)[:count]
    first, second = torch.triu_indices(len(different), len(different), 1)[:, drawn].tolist()
    sides = (torch.rand(count, generator=generator) < 0.5).tolist()
    pairs = [(different[i], different[j]) for i, j in zip(first, second, strict=True)]
    return [pair if same else pair[::-1] for pair, same in zip(pairs, sides, strict=True)]
