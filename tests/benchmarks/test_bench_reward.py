"""The speed of the reward model: the bare passes are those of the step, and the comparison is on the same pairs."""

import statistics
from dataclasses import replace
from functools import partial

import pytest
import reward as bench
import timing
import torch

from rlhf_lab.records import Comparison, as_conversation

torch.set_num_threads(1)


def test_the_tape_plays_the_passes_of_each_step(tiny_gpt2, monkeypatch):
    played = []

    class Watched(timing.Tape):
        def play(self):
            played.append(list(self.passes))
            super().play()

    monkeypatch.setattr(timing, "Tape", Watched)
    feedback, config = bench.rankings(12), replace(bench.STILL, rankings_per_step=4, micro_batch=2)
    pairs = bench.against_bare_passes(partial(bench.train, tiny_gpt2, feedback, config))
    assert len(played) == 3
    assert len(pairs.library) == len(pairs.other) == 1  # the first two warm up
    for passes in played:
        *trained, last = passes
        assert last is None  # the optimiser's step
        assert [one.gradient for one in trained] == [True, True]  # micro-batches
        assert sum(one.shape[0] for one in trained) == 4 * 4  # every reply once, though there are 24 pairs


def test_trl_gets_every_pair_of_the_same_records():
    feedback = bench.rankings(3)
    rows = bench.trl_rows(feedback)
    assert len(rows) == 18
    assert rows[0]["prompt"] == [{"role": m.role, "content": m.content} for m in feedback[0].prompt]
    best = feedback[0].replies[feedback[0].tiers[0][0]]
    assert [row["chosen"][0]["content"] for row in rows[:3]] == [best] * 3
    [row] = bench.trl_rows([Comparison(as_conversation("Hi"), "a", "b")])
    assert (row["chosen"], row["rejected"]) == tuple([{"role": "assistant", "content": text}] for text in "ab")


def test_a_quick_run_prints_both_parts(capsys):
    assert bench.main(["--quick", "--steps", "1"]) == 0
    printed = capsys.readouterr().out
    for words in ("bare passes", "target: at most 1.25", "TRL", "rankings of 4"):
        assert words in printed


@pytest.mark.skipif(not bench.trl_is_there(), reason="trl and datasets are not installed (extra: bench)")
def test_trl_takes_its_steps(tiny_gpt2):
    clocks = bench.trl_reward_steps(tiny_gpt2, bench.rankings(8), steps=2, records_per_step=4).clocks
    assert len(clocks) == 2
    assert statistics.median(clock.wall for clock in clocks) > 0
