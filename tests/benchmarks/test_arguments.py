"""What a benchmark says of options that make no sense, before it computes anything."""

import sys
from pathlib import Path

import picture
import pytest
import rlhf as bench
import rows


def refused(capsys, function, *arguments):
    with pytest.raises(SystemExit) as ended:
        function(*arguments)
    assert ended.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("seeds", ["x", "-1", "1.5"])
def test_seeds_are_whole_numbers(monkeypatch, capsys, seeds):
    monkeypatch.setattr(sys, "argv", ["gae.py", "--seeds", "0", seeds])
    assert f"--seeds: got '{seeds}', expected a whole number of at least 0" in refused(capsys, rows.options, "A study.")


@pytest.mark.parametrize("option", ["--pairs", "--rounds", "--threads"])
def test_counts_are_at_least_one(monkeypatch, capsys, option):
    monkeypatch.setattr(bench, "report_bare", lambda *_: pytest.fail("it computes"))
    said = refused(capsys, bench.main, ["--quick", "--parts", "1", option, "0"])
    assert f"{option}: got '0', expected a whole number of at least 1" in said


def test_a_file_is_no_folder_for_results(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(bench, "report_bare", lambda *_: pytest.fail("it computes"))
    (tmp_path / "taken").touch()
    said = refused(capsys, bench.main, ["--quick", "--parts", "1", "--out", str(tmp_path / "taken")])
    assert "taken is there and is no folder" in said


def test_results_of_others_are_not_replaced(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(bench, "report_cost", lambda *_: pytest.fail("it computes"))
    (tmp_path / "rlhf_cost.csv").write_text("years of work")
    said = refused(capsys, bench.main, ["--quick", "--parts", "3", "--out", str(tmp_path)])
    assert "rlhf_cost.csv, which this program did not write" in said
    assert [path.name for path in tmp_path.iterdir()] == ["rlhf_cost.csv"]


@pytest.mark.parametrize("text", [None, "{", "3"])
def test_the_picture_needs_a_finished_demo(monkeypatch, capsys, tmp_path, text):
    if text is not None:
        Path(tmp_path / "rlhf_history.json").write_text(text, encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["picture.py", str(tmp_path)])
    assert f"{tmp_path} is no output folder of a finished demo" in refused(capsys, picture.main)
