"""Streams of randomness that have a name, so that stages and steps do not disturb each other."""

import hashlib
import operator

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
