"""Stored rows are what the present code computes: their settings, and the numbers of their probes.

A failure names the rows; compute them again with `python run.py bench NAME`, or take back the change of meaning.
Those of the study, which take longest, are in test_study_probes.py.
"""

import control
import pytest
from probing import OF_THE_STUDY, STUDIES, arms, check_that_a_changed_sign_is_noticed
from rows import RESULTS, stale

WITHOUT_PROBE = {"mutation.csv", "mutation_survivors.csv", "rlhf_cost.csv", "store.csv", "threads.csv"}  # of a machine


def test_every_file_of_rows_has_a_study():
    assert {path.name for path in STUDIES} | WITHOUT_PROBE == {path.name for path in RESULTS.glob("*.csv")}


@pytest.mark.parametrize(("path", "arm"), arms(path for path in STUDIES if path not in OF_THE_STUDY))
def test_rows_are_those_of_the_present_code(path, arm):
    assert stale(path, arm) == []


def test_a_moved_function_changes_nothing_and_a_changed_sign_is_noticed(monkeypatch):
    signs = "loss = -gain.mean()", "loss = gain.mean()"
    arm = control.arm("CartPole-v1")
    check_that_a_changed_sign_is_noticed(monkeypatch, control.PATH, arm, control, "train_ppo", *signs)
