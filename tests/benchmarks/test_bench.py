"""The speed benchmark: what it compares with is the same computation, and it prints and saves what it says."""

import csv
import math
from dataclasses import replace

import pytest
import rlhf as bench
import torch

from rlhf_lab.experience.rollouts import sample_responses
from rlhf_lab.recipes.rlhf import RLHFConfig, train_rlhf

torch.set_num_threads(1)
PROMPTS = ["When?", "Write a story about Mia and a fox, please.", "Why is it so?", "Go away!"] * 2
SMALL = RLHFConfig(
    iterations=2, prompts_per_iteration=8, minibatch_rows=3, micro_batch=2, max_new_tokens=6, epochs=2,
    learning_rate=3e-3, value_learning_rate=3e-3,
)  # fmt: skip


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_plain_loop_gives_the_losses_of_the_library(tiny_lm, temperature):
    config = replace(SMALL, temperature=temperature)
    library, plain, apart = bench.losses_on_one_rollout(tiny_lm, PROMPTS, config)
    assert plain == pytest.approx(library, rel=1e-4, abs=1e-6)
    assert apart < 5e-4  # of weights that have moved by 1e-2; Adam makes much of rounding where a gradient is near 0


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_lean_loop_gives_the_losses_of_the_library(tiny_lm, temperature):
    config = replace(SMALL, temperature=temperature, value="policy_head")
    library, lean, apart = bench.losses_on_one_rollout(tiny_lm, PROMPTS, config)
    assert lean == pytest.approx(library, rel=1e-4, abs=1e-6)  # a loss is a small difference of large sums
    assert apart < 5e-4


@pytest.mark.parametrize(
    "change", [{"gae_lambda": 0.5}, {"kl_coef": 1.0, "temperature": 0.5}, {"missing_end_penalty": 0.0}, {"epochs": 1}]
)
def test_the_comparison_of_losses_can_fail(tiny_gpt2, monkeypatch, change):
    class Wrong(bench.PlainLoop):
        def __init__(self, lm, reward, config):
            super().__init__(lm, reward, replace(config, **change))

    monkeypatch.setattr(bench, "PlainLoop", Wrong)
    library, plain, apart = bench.losses_on_one_rollout(tiny_gpt2, PROMPTS, SMALL)
    assert plain != pytest.approx(library, rel=1e-4)
    assert apart > 1e-4


def test_plain_loop_samples_up_to_the_end_token(tiny_gpt2):
    lm = tiny_gpt2.copy()
    plain = bench.PlainLoop(lm, bench.reward_of(lm), replace(SMALL, max_new_tokens=40))
    rollout = sample_responses(lm, PROMPTS, max_new_tokens=1, generator=torch.Generator().manual_seed(0))
    ids, mask = rollout.batch.prompt_ids, rollout.batch.prompt_mask
    tokens, kept = plain.sample(ids.repeat(8, 1), mask.repeat(8, 1), torch.Generator().manual_seed(0))
    assert kept[:, 0].all()
    for row, real in zip(tokens, kept, strict=True):
        reply = row[real].tolist()
        assert lm.end_id not in reply[:-1]
        assert len(reply) == tokens.shape[1] or reply[-1] == lm.end_id
    assert not kept.all()


def test_tape_plays_the_passes_of_the_iteration_and_leaves_the_run_alone(tiny_gpt2):
    reward = bench.reward_of(tiny_gpt2)
    alone = train_rlhf(tiny_gpt2, PROMPTS, reward, SMALL)
    played = []

    class Watched(bench.Tape):
        def play(self):
            played.append(list(self.passes))
            super().play()

    bench_tape, bench.Tape = bench.Tape, Watched
    try:
        pairs, result, parts = bench.against_bare_passes(tiny_gpt2, PROMPTS, SMALL)
    finally:
        bench.Tape = bench_tape
    for a, b in zip(alone.model.model.parameters(), result.model.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert len(played) == 2
    assert len(pairs.library) == len(pairs.other) == 1  # the first warmed up
    assert all(len(seconds) == 2 and min(seconds) > 0 for seconds in parts.values())
    for passes in played:
        seen = [p for p in passes if p is not None]
        assert len(passes) - len(seen) == 2 * 3  # epochs times minibatches of 3, 3 and 2
        decoded = [p for p in seen if p.cached]
        assert [p.first for p in decoded[:2]] == [True, False]
        assert all(p.shape[1] == 1 and p.kept == 1 for p in decoded[1:])
        trained = [p for p in seen if p.gradient]
        assert sum(p.shape[0] for p in trained) == 2 * 2 * len(PROMPTS)  # epochs, policy and value, all rows
        assert all(p.kept >= 1 for p in seen)


def test_growth_is_the_power_of_the_size():
    rows = [{"varied": "prompts", "prompts": n, "seconds": 3 * n**1.5} for n in (4, 8, 32)]
    assert bench.growth(rows, "prompts") == pytest.approx(1.5)
    assert math.isnan(bench.growth(rows[:1], "prompts"))


def test_quick_run_prints_all_parts_and_saves_the_cost(capsys, tmp_path):
    assert bench.main(["--quick", "--pairs", "1", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    for words in ("bare passes", "plain hand-written loop", "How the cost grows", "load average", "tokens per second"):
        assert words in printed
    with open(tmp_path / "rlhf_cost.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(bench.SMALL_SETTINGS)
    assert all(float(row["seconds"]) > 0 for row in rows)
    assert (tmp_path / "rlhf_cost.png").read_bytes()[:4] == b"\x89PNG"
