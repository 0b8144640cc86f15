"""Stored rows are what the present code computes: their settings, and the numbers of their probes.

A failure names the rows; compute them again with `python run.py bench NAME`, or take back the change of meaning.
"""

import importlib.util
import inspect
import sys

import control
import dialogue
import dqn
import gae
import ppo_ablation
import pytest
import study
from rows import RESULTS, stale

STUDIES = {
    control.PATH: [control.arm(task) for task in control.TASKS],
    dialogue.RESULTS: [dialogue.arm(rung) for rung in dialogue.RUNGS],
    dqn.RESULTS: [dqn.arm(variant) for variant in dqn.VARIANTS],
    gae.RESULTS: [gae.ARM],
    ppo_ablation.RESULTS: ppo_ablation.arms(list(ppo_ablation.PARTS)),
    study.SEEDS: [study.ARM],
    study.TONE: [study.tone_arm(taste) for taste in study.TASTES],
}
WITHOUT_PROBE = {"mutation.csv", "mutation_survivors.csv", "rlhf_cost.csv"}  # mutants and timings
ARMS = [(path, arm) for path, arms in STUDIES.items() for arm in arms]


def test_every_file_of_rows_has_a_study():
    assert {path.name for path in STUDIES} | WITHOUT_PROBE == {path.name for path in RESULTS.glob("*.csv")}


@pytest.mark.parametrize(("path", "arm"), ARMS, ids=[" ".join([p.stem, *a.names.values()]) for p, a in ARMS])
def test_rows_are_those_of_the_present_code(path, arm):
    assert stale(path, arm) == []


# -- a moved function changes nothing, a changed sign is noticed ------------------------------------------------------
def elsewhere(function, edit=lambda source: source):
    """The function from a copy of its module under another name and in another place, edited on the way."""
    source = inspect.getsource(sys.modules[function.__module__])
    edited = edit(source)
    spec = importlib.util.spec_from_loader("moved_" + function.__name__, loader=None)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    exec(compile("# moved\n\n" + edited, spec.name, "exec"), module.__dict__)
    return getattr(module, function.__name__), edited != source


EDITS = {  # study and its arm, where the function is called, what a changed sign is
    "ppo": (control.PATH, control.arm("CartPole-v1"), control, "ppo", "loss = -gain.mean()", "loss = gain.mean()"),
    "rlhf": (study.SEEDS, study.ARM, study, "train_rlhf", "return -masked_mean(gain", "return masked_mean(gain"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_a_moved_function_changes_nothing_and_a_changed_sign_is_noticed(edit, monkeypatch):
    path, arm, caller, name, right, wrong = EDITS[edit]
    function = getattr(caller, name)
    moved, changed = elsewhere(function)
    assert not changed
    monkeypatch.setattr(caller, name, moved)
    assert stale(path, arm) == []
    flipped, changed = elsewhere(function, lambda source: source.replace(right, wrong))
    assert changed
    monkeypatch.setattr(caller, name, flipped)
    assert len(stale(path, arm)) == len(arm.seeds)
