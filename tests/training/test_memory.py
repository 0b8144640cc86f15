"""The peak of memory: it sees what was there for a moment only, and forgets it when told to."""

import importlib.util
import math

import pytest
import torch

from rlhf_lab.training import memory


@pytest.mark.skipif(not memory.CLEAR.exists(), reason="only Linux can forget a peak")
def test_the_peak_is_seen_and_forgotten():
    memory.reset_peak()
    before = memory.peak_megabytes()
    torch.ones(50_000_000)  # 200 MB, gone at once
    assert 150 < memory.peak_megabytes() - before < 400
    memory.reset_peak()
    assert memory.peak_megabytes() < before + 100


def test_where_there_is_no_such_file(tmp_path, monkeypatch):
    known = memory.peak_megabytes()
    monkeypatch.setattr(memory, "STATUS", tmp_path / "status")
    monkeypatch.setattr(memory, "CLEAR", tmp_path / "none" / "clear")
    memory.reset_peak()
    other = memory.peak_megabytes()
    assert other > known / 2 if importlib.util.find_spec("resource") else math.isnan(other)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_it_is_what_tensors_take_there():
    memory.reset_peak("cuda")
    tensor = torch.ones(25_000_000, device="cuda")
    del tensor
    assert memory.peak_megabytes("cuda") >= 100
