"""What the stored results say, and the setups by which stale ones are found."""

from dataclasses import replace
from statistics import median

import control
import study
from rows import Arm, compute, put_rows, read_rows, read_setups, stale

from rlhf_lab.maths.intervals import mean_interval, paired_difference, ratio_of_means_bootstrap


def column(rows, name):
    return [float(row[name]) for row in rows]


def test_the_study_shows_what_the_chapters_say():
    rows = read_rows(study.SEEDS)
    base, sft, rlhf, oracle = (column(rows, f"reward_{model}") for model in ("base", "sft", "rlhf", "oracle"))
    assert len(rows) >= 10
    assert paired_difference(sft, base).low > 0
    won, possible = ([x - y for x, y in zip(model, sft, strict=True)] for model in (rlhf, oracle))
    assert mean_interval(won).low > 0
    assert ratio_of_means_bootstrap(won, possible).low > 0.75
    plateau = mean_interval(column(rows, "late_gain_oracle"))
    assert plateau.low < 0.02
    assert min(column(rows, "rm_held_out_pairs")) >= 3000
    short = [
        c - a
        for c, a in zip(*(column(rows, f"rm_held_out_{n}") for n in ("ceiling", "expected_accuracy")), strict=True)
    ]
    assert max(short) < 0.03


def test_preferences_for_a_tone_change_the_tone():
    rows = read_rows(study.TONE)
    assert {(row["seed"], row["taste"]) for row in rows} >= {(s, t) for s in "012" for t in ("ruder", "politer")}
    for taste, holds in (("ruder", lambda after, before: after >= 2 * before), ("politer", lambda a, b: a <= b / 2)):
        mine = [row for row in rows if row["taste"] == taste]
        before, after = (sum(column(mine, f"rude_{model}")) for model in ("sft", "rlhf"))
        assert before > 0  # one of three small samples had no rude reply to begin with
        assert holds(after, before)


def test_final_policies_solve_the_control_tasks():
    rows = read_rows(control.PATH)
    returns = {task: column([row for row in rows if row["task"] == task], "mean_return") for task in control.TASKS}
    assert {task: len(each) for task, each in returns.items()} == {t: n for t, (_, n) in control.TASKS.items()}
    assert sum(each >= 475 for each in returns["CartPole-v1"]) >= 9
    assert median(returns["Acrobot-v1"]) >= -100
    assert median(returns["Pendulum-v1"]) >= -300


def test_the_truth_is_in_the_scale_of_the_rankings():
    """Mean 0 and standard deviation 1 on the replies that were ranked."""
    import torch

    from rlhf_lab.worlds import town
    from rlhf_lab.worlds.town.skills import write_reply

    prompts = town.prompts("train", 40, seed=1)
    random = __import__("random").Random(0)
    rankings = []
    for prompt in prompts:
        replies = tuple(dict.fromkeys(write_reply(prompt, town.WEB, random) for _ in range(4)))
        if len(replies) > 1:
            verdicts = town.score_replies([prompt.conversation] * len(replies), replies)
            noise = torch.Generator().manual_seed(0)
            rankings.append(town.CAREFUL.rank(prompt.conversation, replies, verdicts, noise).record)
    rollout = type("Rollout", (), {})()
    rollout.conversations = [r.prompt for r in rankings for _ in r.replies]
    rollout.texts = [reply for r in rankings for reply in r.replies]
    rollout.ended = torch.ones(len(rollout.texts), dtype=torch.bool)
    scores = study.standardised_truth(rankings)(rollout)
    assert abs(float(scores.mean())) < 1e-5
    assert abs(float(scores.std()) - 1) < 1e-5


# -- stale rows -------------------------------------------------------------------------------------------------------
def arm(config=3, slope=2.0, seeds=range(2), done=None):
    """A study of a line; `done` collects the seeds that are computed."""
    return Arm(
        {"task": "line"}, {"config": config}, seeds,
        lambda seed: (done.append(seed) if done is not None else None) or [{"step": 0, "y": slope * seed}],
        lambda: {"y": slope},
    )  # fmt: skip


def test_a_study_computes_what_is_missing_or_stale_and_nothing_else(tmp_path):
    path, done = tmp_path / "x.csv", []
    compute(path, [arm(done=done)], dry_run=True)
    assert not path.exists()
    assert done == []
    assert len(stale(path, arm())) == 2
    compute(path, [arm(done=done)], seeds=[1])
    compute(path, [arm(done=done)])
    assert done == [1, 0]
    assert [(row["task"], row["seed"], row["y"]) for row in read_rows(path)] == [("line", "0", "0"), ("line", "1", "2")]
    assert stale(path, arm()) == []
    assert stale(path, arm(slope=2.0 * (1 + 5e-4))) == []  # rounding of another machine
    assert len(stale(path, arm(config=4))) == len(stale(path, arm(slope=2.01))) == 2
    compute(path, [arm(slope=2.01, done=done)], seeds=[0])
    assert len(read_setups(path)) == 2
    assert len(stale(path, arm())) == 1  # seed 0 is of the new code now
    assert stale(path, arm(slope=2.01)) == ["x.csv line: seed 1 is stale"]
    compute(path, [arm(slope=2.01, done=done)])
    assert done == [1, 0, 0, 1]
    assert len(read_setups(path)) == 1


def test_a_probe_that_gained_a_number_or_is_not_a_number_is_compared(tmp_path):
    path, nan = tmp_path / "x.csv", float("nan")
    numbers = {"a": nan}
    one = replace(arm(seeds=[0]), probe=lambda: numbers)
    compute(path, [one])
    assert stale(path, one) == []
    numbers["a"] = 0.0
    assert len(stale(path, one)) == 1
    numbers |= {"a": nan, "b": 1.0}
    assert len(stale(path, one)) == 1


def test_rows_of_a_run_replace_their_own(tmp_path):
    path = tmp_path / "rows.csv"
    for value, seeds in ((0.5, (2, 10)), (0.25, (2,))):
        put_rows(path, [{"seed": seed, "value": value} for seed in seeds], ["seed"])
    assert read_rows(path) == [{"seed": "2", "value": "0.25"}, {"seed": "10", "value": "0.5"}]
