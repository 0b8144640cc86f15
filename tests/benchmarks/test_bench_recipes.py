"""The speed of recipes: bare passes are those of a step, and TRL is given the same rows and finds the same loss."""

from functools import partial

import pytest
import recipe_cases
import recipes as bench
import timing
import torch
from recipe_cases import CASES

torch.set_num_threads(1)
with_trl = pytest.mark.skipif(not bench.trl_is_there(), reason="trl and datasets are not installed (extra: bench)")
TRL_WARNS = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def played(monkeypatch):
    """The tape of every step, as it was played."""
    tapes = []

    class Watched(timing.Tape):
        def play(self):
            tapes.append(list(self.passes))
            super().play()

    monkeypatch.setattr(timing, "Tape", Watched)
    return tapes


@pytest.mark.parametrize(
    ("name", "expected"), [("sft", [(True, 4), None]), ("dpo", [(True, 8), None])]
)  # a pass of 4 demonstrations, of the 8 replies of 4 pairs; the reference of DPO has answered before
def test_the_tape_plays_the_passes_of_each_step(tiny_gpt2, played, name, expected):
    pairs = bench.against_bare(CASES[name], tiny_gpt2, 1, 4)
    assert len(played) == 3
    assert len(pairs.library) == len(pairs.other) == 1  # the first two warm up
    for passes in played[1:]:  # in the first step DPO is checked, by passes over a few rows
        assert [one and (one.gradient, one.shape[0]) for one in passes] == expected


def test_the_tape_of_a_group_holds_sampling_the_reference_and_four_updates(tiny_gpt2, played):
    bench.against_bare(CASES["grpo"], tiny_gpt2, 1, 8)
    passes = played[-1]
    assert passes.count(None) == recipe_cases.UPDATES
    sampled, scored, learned = (
        [p for p in passes if p and p.cached],
        [p for p in passes if p and not p.cached and not p.gradient],
        [p for p in passes if p and p.gradient],
    )
    assert sampled[0].shape[0] == 8
    assert len(sampled) <= recipe_cases.REPLY
    assert any(p.backbone is tiny_gpt2.model.base_model and p.shape[0] == 8 for p in scored)
    assert [p.shape[0] for p in learned] == [4, 4, 4, 4]


@TRL_WARNS
def test_a_quick_run_prints_all_parts(capsys):
    assert bench.main(["--quick", "--steps", "1", "--recipes", "sft", "dpo"]) == 0
    printed = capsys.readouterr().out
    for words in ("bare passes", "target: at most 1.25", "TRL", "grows as parameters to the power"):
        assert words in printed
    assert ("rows of an update in a pass:" in printed) == bench.trl_is_there()


@with_trl
@TRL_WARNS
@pytest.mark.parametrize("name", bench.SAME)
def test_both_find_the_same_loss(name, monkeypatch):
    lm, _ = bench.shipped_model()  # without dropout
    ours, theirs = bench.SAME[name](lm, 8)
    assert ours > 0.1
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert ours != pytest.approx(0.693147, abs=1e-4)  # the loss of DPO says something
    other = "imitation_gradient" if name == "SFT" else "train_dpo"
    changed = partial(getattr(bench, other))
    if name == "SFT":
        monkeypatch.setattr(bench, other, lambda lm, batch, size: changed(lm, batch.select(torch.arange(7)), size))
    else:
        monkeypatch.setattr(bench, other, lambda lm, some, config, **more: changed(lm, some[:7] * 2, config, **more))
    assert bench.SAME[name](lm, 8)[0] != pytest.approx(theirs, rel=1e-4)


@with_trl
@TRL_WARNS
@pytest.mark.parametrize("name", CASES)
def test_trl_takes_its_steps(tiny_gpt2, name):
    taken = CASES[name].trl(tiny_gpt2, 2, 8, None)
    assert len(taken.clocks) == 2
    assert all(clock.wall > 0 for clock in taken.clocks)
    assert taken.losses == []
