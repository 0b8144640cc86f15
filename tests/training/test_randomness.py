"""Streams of randomness are stable and apart."""

import numpy as np
import pytest
import torch

from rlhf_lab.training.randomness import generator_for

torch.set_num_threads(1)


def draw(*name):
    return torch.rand(4, generator=generator_for(*name)).tolist()


def test_streams_are_stable_and_apart():
    assert draw(0, "sft", 3) == draw(0, "sft", 3) == draw(np.int64(0), "sft", torch.tensor(3))
    assert generator_for(0, "sft", 3).initial_seed() == 8910626388193366761  # in every process, on every machine
    names = [(0,), (1,), (0, "sft"), (0, "rlhf"), (0, "sft", 1), (0, "sft", 11), (0, "sft", "1"), (0, "sft", 1, 1)]
    assert len({tuple(draw(*name)) for name in names}) == len(names)
    with pytest.raises(TypeError):
        generator_for(0, 0.5)
