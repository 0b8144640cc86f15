"""The speed of SFT: the bare passes are those of the step, and TRL is given the same rows and finds the same loss."""

from dataclasses import replace
from functools import partial

import pytest
import recipes as bench
import timing
import torch

from rlhf_lab.worlds import town

torch.set_num_threads(1)
with_trl = pytest.mark.skipif(not bench.trl_is_there(), reason="trl and datasets are not installed (extra: bench)")


@pytest.fixture(scope="module")
def demonstrations():
    return [one for one in town.demonstrations(60) if len(one.response) < 50][:8]  # none is cut


def test_the_tape_plays_the_passes_of_each_step(tiny_gpt2, demonstrations, monkeypatch):
    played = []

    class Watched(timing.Tape):
        def play(self):
            played.append(list(self.passes))
            super().play()

    monkeypatch.setattr(timing, "Tape", Watched)
    config = replace(bench.STILL, steps=3, demonstrations_per_step=4, micro_batch=2)
    pairs = bench.against_bare_passes(partial(bench.train, tiny_gpt2, demonstrations, config))
    assert len(played) == 3
    assert len(pairs.library) == len(pairs.other) == 1  # the first two warm up
    for passes in played:
        assert [one and (one.gradient, one.shape[0]) for one in passes] == [(True, 2), (True, 2), None]


def test_a_quick_run_prints_both_parts(capsys):
    assert bench.main(["--quick", "--steps", "1"]) == 0
    printed = capsys.readouterr().out
    for words in ("bare passes", "target: at most 1.25", "SFTTrainer"):
        assert words in printed
    assert ("rows in a pass:" in printed) == bench.trl_is_there()


@with_trl
def test_both_find_the_same_loss(demonstrations, monkeypatch):
    lm, _ = bench.shipped_model()  # without dropout
    ours, theirs = bench.losses_on_the_same_rows(lm, demonstrations)
    assert ours > 0.1
    assert ours == pytest.approx(theirs, rel=1e-5)
    monkeypatch.setattr(bench, "trl_rows", lambda rows, of=bench.trl_rows: of(rows[:-1] * 2))
    assert bench.losses_on_the_same_rows(lm, demonstrations)[1] != pytest.approx(ours, rel=1e-4)


@with_trl
def test_trl_takes_its_steps(tiny_gpt2, demonstrations):
    config = replace(bench.STILL, steps=2, demonstrations_per_step=4)
    taken = bench.trl_sft_steps(tiny_gpt2, demonstrations, config, micro_batch=2)
    assert len(taken.clocks) == 2
    assert all(clock.wall > 0 for clock in taken.clocks)
    assert taken.losses == []
