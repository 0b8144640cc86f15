"""`compare`: two small finished runs, made without training; paired where the prompts are the same, and errors."""

import json
from dataclasses import replace

import pytest
from toy_runs import prompts_of, toy_run, write_run

from rlhf_lab.__main__ import main
from rlhf_lab.demo.card import commit_of, repeated
from rlhf_lab.demo.compare import CompareError, as_interval, compare_runs, flat, read_run, run_changes
from rlhf_lab.evaluation.changes import unpaired_change
from rlhf_lab.maths.intervals import paired_difference


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same prompts in another order; other prompts; the first without replies."""
    folder = tmp_path_factory.mktemp("runs")
    same = toy_run(prompts_of(24), worth=0.0, config={"seed": 0, "sft": {"steps": 100}})
    other = toy_run(prompts_of(24)[::-1], worth=0.5, config={"seed": 1, "sft": {"steps": 100}})
    apart = toy_run(prompts_of(24, start=100), worth=0.5, config={"seed": 0, "sft": {"steps": 50}})
    found = {name: write_run(folder / name, run) for name, run in {"a": same, "b": other, "c": apart}.items()}
    found["old"] = write_run(folder / "old", same)
    (folder / "old" / "replies.jsonl").unlink()
    return {name: (path, read_run(path)) for name, path in found.items()}


def rows(first, second, model=None):
    changes, notes = run_changes(first, second, model)
    return {(c.quantity, c.skill): c for c in changes}, notes


def test_the_same_prompts_are_paired_whatever_their_order(runs):
    first, second = runs["a"][1], runs["b"][1]
    found, notes = rows(first, second)
    assert notes[0] == "paired: the same 24 prompts, row by row"
    truth = first.evidence.values["rlhf"]["true_reward"]
    expected = paired_difference([x + 0.5 for x in truth], truth)
    row = found["true_reward", ""]
    assert row.paired
    assert row.interval.mean == pytest.approx(expected.mean) == pytest.approx(0.5)
    assert row.interval.high - row.interval.low < 1e-9  # every pair differs by the same
    assert row.verdict == "better"
    assert found["perplexity", ""].paired  # the same documents in the same tokens
    assert not found["kl", ""].paired
    assert "not paired: KL to the reference" in notes
    assert ("reward_score", "") not in found
    assert any("reward model of its own" in note for note in notes)


def test_other_prompts_and_runs_without_replies_are_not_paired(runs):
    for name, how in (("c", "other prompts"), ("old", "no replies.jsonl")):
        found, notes = rows(runs["a"][1], runs[name][1])
        assert notes[0].startswith("not paired")
        assert how in notes[0]
        assert not any(row.paired for row in found.values())
    found, _ = rows(runs["a"][1], runs["c"][1])
    reports = [runs[name][1].metrics["models"]["rlhf"]["length"] for name in "ac"]
    intervals = [as_interval(report) for report in reports]
    expected = unpaired_change("length", intervals[1], intervals[0]).interval
    assert found["length", ""].interval == expected
    assert ("true_reward", "ask") in found


def test_other_tokens_leave_perplexities_out(runs, tmp_path):
    run = toy_run(prompts_of(24), worth=0.0)
    documents = run.evidence.documents["perplexity"]
    more = replace(documents, tokens=[count + 1 for count in documents.tokens])
    run = replace(run, evidence=replace(run.evidence, documents={"perplexity": more}))
    found, notes = rows(runs["a"][1], read_run(write_run(tmp_path / "run", run)))
    assert not [quantity for quantity, _ in found if quantity.startswith("perplexity")]
    assert any("other tokens" in note for note in notes)


def test_a_run_against_itself_differs_in_nothing(runs):
    found, _ = rows(runs["a"][1], runs["a"][1])
    assert {row.verdict for row in found.values()} == {"INCONCLUSIVE"}
    assert {row.interval.mean for row in found.values() if row.paired} == {0.0, 1.0}
    text = compare_runs([runs["a"][0], runs["a"][0]])
    assert text.endswith("The choices are the same.")


def test_the_command_prints_a_table(runs, capsys):
    assert main(["compare", str(runs["a"][0]), str(runs["b"][0]), str(runs["c"][0] / "metrics.json")]) == 0
    text = capsys.readouterr().out
    lines = text.splitlines()
    header = next(line for line in lines if line.split() == ["a", "rlhf", "b", "rlhf"])
    row = next(line for line in lines if line.startswith("true reward, -3 to 3"))
    assert row.endswith("better (Holm)")
    assert "+0.500 [0.500, 0.500]" in row
    assert len(header) <= row.index("+0.500")
    assert "  seed: 0 -> 1" in lines
    assert "  sft.steps: 100 -> 50" in lines
    assert text.count(" against ") == 2  # each further run against the first
    assert "one seed" in text


def test_a_model_is_chosen(runs, capsys):
    found, _ = rows(runs["a"][1], runs["b"][1], "base")
    assert found["true_reward", ""].interval.mean == pytest.approx(0.0)
    assert main(["compare", str(runs["a"][0]), str(runs["b"][0]), "--model", "dpo"]) == 1
    assert "has no model 'dpo'; there are base, rlhf" in capsys.readouterr().err


def test_choices_are_flat():
    assert flat({"a": {"b": {"c": 1}}, "d": [1]}) == {"a.b.c": 1, "d": [1]}


# ---- errors ------------------------------------------------------------------------------------------------


def change(path, edit):
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))


DAMAGE = {
    "another schema": (lambda data: data.update(schema=3), "is of schema 3; this version reads 2"),
    "the first schema": (lambda data: data.pop("schema"), "is of schema 1; this version reads 2"),
    "no models": (lambda data: data.pop("models"), "is damaged: KeyError 'models'"),
    "a model without a quantity": (lambda data: data["models"]["rlhf"].pop("kl"), "is damaged: KeyError 'kl'"),
    "a text for a number": (lambda data: data["models"]["rlhf"]["kl"].update(mean="x"), "is damaged"),
    "no config": (lambda data: data.update(config=None), "is damaged: config"),
    "no model at all": (lambda data: data.update(models={}), "is damaged: no model"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_file_that_cannot_be_used_says_why(name, runs, tmp_path):
    edit, words = DAMAGE[name]
    folder = write_run(tmp_path / "run", toy_run(prompts_of(8)), marked=False)
    change(folder / "metrics.json", edit)
    with pytest.raises(CompareError, match=words):
        compare_runs([folder, runs["a"][0]])


def test_broken_changed_and_missing_files(runs, tmp_path, capsys):
    folder = write_run(tmp_path / "run", toy_run(prompts_of(8)))
    whole = (folder / "metrics.json").read_text()
    (folder / "metrics.json").write_text(whole[: len(whole) // 2])
    with pytest.raises(CompareError, match=r"metrics\.json is damaged, or was changed since it was saved"):
        read_run(folder)
    (folder / "rlhf_lab.json").unlink()
    with pytest.raises(CompareError, match=r"metrics\.json cannot be read"):
        read_run(folder)
    (folder / "metrics.json").write_text(whole)
    (folder / "replies.jsonl").write_text("{}\n")
    with pytest.raises(CompareError, match=r"replies\.jsonl, line 1"):
        read_run(folder)
    assert main(["compare", str(runs["a"][0]), str(tmp_path / "none")]) == 1
    error = capsys.readouterr().err.strip()
    assert "there is no finished run in" in error
    assert "\n" not in error
    assert main(["compare", str(runs["a"][0])]) == 1
    assert "at least two" in capsys.readouterr().err


# ---- the run card ------------------------------------------------------------------------------------------


def test_the_commit_is_read_from_the_files_of_a_checkout(tmp_path):
    one, two = "a1" * 20, "b2" * 20
    assert commit_of(tmp_path) is None
    git = tmp_path / ".git"
    git.mkdir()
    assert commit_of(tmp_path) is None
    (git / "HEAD").write_text("ref: refs/heads/main\n")
    assert commit_of(tmp_path) is None
    (git / "packed-refs").write_text(f"# pack-refs with: peeled\n{two} refs/heads/other\n{one} refs/heads/main\n")
    assert commit_of(tmp_path) == one
    (git / "refs" / "heads").mkdir(parents=True)
    (git / "refs" / "heads" / "main").write_text(two + "\n")  # newer than the packed one
    assert commit_of(tmp_path) == two
    (git / "HEAD").write_text(one + "\n")
    assert commit_of(tmp_path) == one
    (git / "HEAD").write_text("nonsense")
    assert commit_of(tmp_path) is None
    tree = git / "worktrees" / "wt"
    tree.mkdir(parents=True)
    (tree / "HEAD").write_text("ref: refs/heads/main\n")
    (tree / "commondir").write_text("../..\n")
    (tmp_path / "wt").mkdir()
    (tmp_path / "wt" / ".git").write_text(f"gitdir: {tree}\n")
    assert commit_of(tmp_path / "wt") == two


def test_the_command_that_repeats_a_run_has_what_was_given_and_no_more():
    defaults = {"seed": 0, "out": None, "resume": False, "feedback": None, "skip_bad": False, "labels": 600}
    given = defaults | {"out": "x", "resume": True, "feedback": "my file.jsonl", "skip_bad": True, "labels": 60}
    expected = 'python run.py demo --feedback "my file.jsonl" --skip-bad --labels 60'
    assert repeated("demo", given, defaults) == expected
    assert repeated("demo", defaults, defaults) == "python run.py demo"
