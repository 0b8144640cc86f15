"""doctor: it tells of the faults behind which everything loads and the wrong thing runs."""

import sys
from pathlib import Path

import pytest

from rlhf_lab import doctor

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def problem(monkeypatch):
    """The one problem that the findings name, or none."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))

    def told(word):
        lines = [line for line in doctor.findings() if line.startswith("problem: ") and word in line]
        assert len(lines) <= 1
        return lines[0] if lines else ""

    return told


def test_findings_say_what_runs_and_from_where():
    text = "\n".join(doctor.findings())
    for part in ("rlhf_lab 0", "Python 3", "torch 2", "thread", str(ROOT / "rlhf_lab"), sys.prefix, "loads"):
        assert part in text


def test_another_checkout_is_named(problem, monkeypatch, tmp_path):
    assert problem("notebooks") == ""
    (tmp_path / "rlhf_lab").mkdir()
    (tmp_path / "rlhf_lab" / "__init__.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    said = problem("notebooks")
    assert f"find the rlhf_lab of {tmp_path / 'rlhf_lab'}" in said
    assert f"pip install -e {ROOT}" in said


@pytest.mark.parametrize("head", ["#!{}/python\n", '#!/bin/sh\n\'\'\'exec\' "{}/python3.11" "$0" "$@"\n'])
def test_a_moved_environment_is_named(problem, monkeypatch, tmp_path, head):
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path / "bin"))
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "jupyter-lab"
    script.write_text(head.format(tmp_path / "bin"), encoding="utf-8")
    assert problem("moved or copied") == ""
    script.write_text(head.format("/the old/place/bin"), encoding="utf-8")
    assert "jupyter-lab runs /the old/place/bin/python" in problem("moved or copied")
