"""Stored rows of the study are what the present code computes; see test_probes.py."""

import pytest
import study
from probing import OF_THE_STUDY, arms, check_that_a_changed_sign_is_noticed
from rows import stale

from rlhf_lab.recipes import rlhf


@pytest.mark.parametrize(("path", "arm"), arms(OF_THE_STUDY))
def test_rows_are_those_of_the_present_code(path, arm):
    assert stale(path, arm) == []


def test_a_moved_function_changes_nothing_and_a_changed_sign_is_noticed(monkeypatch):
    signs = "policy_loss = -masked_mean(gain", "policy_loss = masked_mean(gain"
    check_that_a_changed_sign_is_noticed(monkeypatch, study.SEEDS, study.ARM, rlhf, "clipped_losses", *signs)
