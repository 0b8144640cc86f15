"""Stored results are not stale: each row carries the key of the script, configs and model that made it."""

import csv
from pathlib import Path
from statistics import median

import control
import pytest
import study

from rlhf_lab import evaluation

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", ["rlhf_seeds.csv", "feedback_tone.csv"])
def test_stored_results_belong_to_this_script_config_and_model(name):
    for row in study.read_rows(ROOT / "data" / "results" / name):
        assert row["key"] == study.key(), f"{name}: compute seed {row['seed']} again with: python run.py bench study"


def column(rows, name):
    return [float(row[name]) for row in rows]


def test_the_study_shows_what_the_chapters_say():
    rows = study.read_rows(study.RESULTS / "rlhf_seeds.csv")
    base, sft, rlhf, oracle = (column(rows, f"reward_{model}") for model in ("base", "sft", "rlhf", "oracle"))
    assert len(rows) >= 10
    assert evaluation.paired_difference(sft, base).low > 0
    won, possible = ([x - y for x, y in zip(model, sft, strict=True)] for model in (rlhf, oracle))
    assert evaluation.mean_interval(won).low > 0
    assert evaluation.ratio_of_means_bootstrap(won, possible).low > 0.75
    plateau = evaluation.mean_interval(column(rows, "late_gain_oracle"))
    assert plateau.low < 0.02
    assert min(column(rows, "rm_held_out_pairs")) >= 3000
    short = [
        c - a
        for c, a in zip(*(column(rows, f"rm_held_out_{n}") for n in ("ceiling", "expected_accuracy")), strict=True)
    ]
    assert max(short) < 0.03


def test_preferences_for_a_tone_change_the_tone():
    rows = study.read_rows(study.RESULTS / "feedback_tone.csv")
    assert {(row["seed"], row["taste"]) for row in rows} >= {(s, t) for s in "012" for t in ("ruder", "politer")}
    for taste, holds in (("ruder", lambda after, before: after >= 2 * before), ("politer", lambda a, b: a <= b / 2)):
        mine = [row for row in rows if row["taste"] == taste]
        before, after = (sum(column(mine, f"rude_{model}")) for model in ("sft", "rlhf"))
        assert before > 0  # one of three small samples had no rude reply to begin with
        assert holds(after, before)


def test_final_policies_solve_the_control_tasks():
    rows = control.read_rows(control.PATH)
    returns = {task: column([row for row in rows if row["task"] == task], "mean_return") for task in control.TASKS}
    assert all(row["key"] == control.key(row["task"]) for row in rows)
    assert {task: len(each) for task, each in returns.items()} == {t: n for t, (_, n) in control.TASKS.items()}
    assert sum(each >= 475 for each in returns["CartPole-v1"]) >= 9
    assert median(returns["Acrobot-v1"]) >= -100
    assert median(returns["Pendulum-v1"]) >= -300


def test_rows_of_a_run_replace_their_own(tmp_path):
    path = tmp_path / "rows.csv"
    for value, seeds in ((0.5, (2, 10)), (0.25, (2,))):
        control.put_rows(path, [{"seed": seed, "value": value} for seed in seeds], ["seed"])
    assert control.read_rows(path) == [{"seed": "2", "value": "0.25"}, {"seed": "10", "value": "0.5"}]
    assert control.key_of(path, 1) != control.key_of(path, 2)


def test_the_key_changes_with_the_config_and_the_script(monkeypatch, tmp_path):
    before = study.key()
    monkeypatch.setattr(study, "RLHF", study.RLHFConfig(iterations=101))
    assert study.key() != before
    monkeypatch.undo()
    other = tmp_path / "study.py"
    other.write_text("# another script")
    monkeypatch.setattr(study, "__file__", str(other))
    assert study.key() != before


def test_a_row_replaces_the_one_of_its_seed_and_keeps_the_others(tmp_path):
    path = tmp_path / "rows.csv"
    for seed, value in ((2, 0.5), (0, 0.25), (2, 0.75)):
        study.add_row(path, {"key": "k", "seed": seed, "value": value}, ("seed",))
    with open(path) as file:
        rows = list(csv.DictReader(file))
    assert [(row["seed"], row["value"]) for row in rows] == [("0", "0.25"), ("2", "0.75")]


def test_the_truth_is_in_the_scale_of_the_rankings():
    """Mean 0 and standard deviation 1 on the replies that were ranked."""
    import torch

    from rlhf_lab import town
    from rlhf_lab.town.skills import write_reply

    prompts = town.prompts("train", 40, seed=1)
    random = __import__("random").Random(0)
    rankings = []
    for prompt in prompts:
        replies = tuple(dict.fromkeys(write_reply(prompt, town.WEB, random) for _ in range(4)))
        if len(replies) > 1:
            verdicts = town.score_replies([prompt.conversation] * len(replies), replies)
            rankings.append(town.CAREFUL.rank(prompt.conversation, replies, verdicts, torch.Generator().manual_seed(0)))
    rollout = type("Rollout", (), {})()
    rollout.conversations = [r.prompt for r in rankings for _ in r.replies]
    rollout.texts = [reply for r in rankings for reply in r.replies]
    rollout.ended = torch.ones(len(rollout.texts), dtype=torch.bool)
    scores = study.standardised_truth(rankings)(rollout)
    assert abs(float(scores.mean())) < 1e-5
    assert abs(float(scores.std()) - 1) < 1e-5
