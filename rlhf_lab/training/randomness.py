"""Streams of randomness that have a name, so that stages and steps do not disturb each other."""

import hashlib
import operator
from collections.abc import Iterator

import torch


def generator_for(seed: int, *stream: str | int) -> torch.Generator:
    """A CPU generator for one stream of randomness, so that stages and steps do not disturb each other.

    The seed of a stream is a hash of its name, the same in every process and on every machine.

    Args:
        seed: of the run, any integer.
        stream: texts and integers that name the stream, for example "sft", step.

    Raises:
        TypeError: a part of the name is neither.

    Example:
        >>> a, b = generator_for(0, "sft", 3), generator_for(0, "sft", 3)
        >>> bool(torch.rand(1, generator=a) == torch.rand(1, generator=b))
        True
    """
    # operator.index: an integer of numpy or torch names the same stream as Python's.
    name = tuple(part if isinstance(part, str) else operator.index(part) for part in (seed, *stream))
    digest = hashlib.sha256(repr(name).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def minibatches(count: int, most: int, epochs: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Row indices of each minibatch, `epochs` times over all rows in an order of its own; cut evenly, so none is tiny.

    >>> rows = list(minibatches(5, 3, 1, torch.Generator().manual_seed(0)))
    >>> [len(some) for some in rows], sorted(torch.cat(rows).tolist())
    ([3, 2], [0, 1, 2, 3, 4])
    """
    for _ in range(epochs):
        yield from torch.randperm(count, generator=generator).tensor_split(-(-count // most))
