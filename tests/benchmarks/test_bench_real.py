"""The runs on a public model: what a run leaves is what is stored, and the stored runs keep what the demo promises."""

import math

import pytest
import real as bench

QUICK = ("--sft-steps", "2", "--iterations", "1", "--prompts", "8", "--reply-tokens", "8")
STORED = bench.read_records(bench.RESULTS)
DEFAULT = [pytest.param(one, id=f"seed {one['seed']}") for one in STORED if one["arm"] == "default"]
STAGES = {"sft", "feedback", "reward_model", "rlhf", "evaluation"}


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    """A run of the default arm on a few of the preferences, with the shipped model."""
    few = tmp_path_factory.mktemp("few") / "few.jsonl"
    few.write_text("".join(bench.FEEDBACK.read_text().splitlines(keepends=True)[:30]))
    return bench.run_arm("default", 3, "tiny", few, QUICK)


def test_a_run_is_told_in_one_record(record, tmp_path):
    assert (record["arm"], record["seed"], record["exit"]) == ("default", 3, 0)
    assert record["options"] == ["--seed", "3", *QUICK]
    assert [row["step"] for row in record["rlhf"] if "approx_kl" in row] == [1]
    assert set(record["seconds"]) == set(record["megabytes"]) == STAGES
    assert record["replies"]
    assert all(set(row) == {"prompt", "base", "sft", "rlhf"} for row in record["replies"])
    assert bench.judged_loss(record) == min(row["held_out_loss"] for row in record["reward_model"])
    path = tmp_path / "real.jsonl"
    for one in (record, record | {"seed": 0}, record | {"exit": 1}):
        bench.put_record(path, one)
    assert [(one["seed"], one["exit"]) for one in bench.read_records(path)] == [(0, 0), (3, 1)]


def test_the_verdicts_say_what_was_promised(record):
    text = "\n".join(bench.verdicts(record))
    assert "a coin's is 0.693" in text
    far = [row | {"approx_kl": 0.06} for row in record["rlhf"][-1:]]
    assert "(not below 0.05)" in "\n".join(bench.verdicts(record | {"rlhf": far}))
    stopped = {"arm": "rates 30", "seed": 0, "exit": 1, "said": ["too far"]}
    assert bench.verdicts(stopped) == ["rates 30, seed 0", "  stopped: too far"]


def test_a_run_that_fails_says_why(tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text("nothing\n")
    record = bench.run_arm("default", 0, "tiny", bad, QUICK)
    assert record["exit"] != 0
    assert "bad.jsonl" in record["said"][0]


def test_without_the_model_it_says_how_to_get_it(tmp_path, capsys):
    with pytest.raises(SystemExit):
        bench.main(["--model", str(tmp_path / "none")])
    assert "python run.py real" in capsys.readouterr().err


def test_every_run_that_is_wanted_is_stored():
    assert {(one["arm"], one["seed"]) for one in STORED} == {(a, s) for a, seeds in bench.SEEDS.items() for s in seeds}


@pytest.mark.parametrize("record", DEFAULT)
def test_the_stored_default_runs_stay_near_and_their_reward_model_has_learned(record):
    assert record["exit"] == 0
    assert max(row["approx_kl"] for row in record["rlhf"] if "approx_kl" in row) < 0.05
    assert bench.judged_loss(record) < math.log(2) or "no better" in record["opening"]
