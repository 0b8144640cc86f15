"""What the tests of stored rows share: the arms behind every file, and a function in another place or with an edit."""

import contextlib
import importlib.util
import inspect
import sys

import choice
import consensus
import control
import dialogue
import dqn
import evaluation_seeds
import few_labels
import gae
import interval_coverage
import labels
import leash
import live_checks
import methods
import methods_world
import ppo_ablation
import probes
import pytest
import segment_labels
import start_behaviour
import study
from rows import same_setup, stale

from rlhf_lab.experience.invariants import InvariantViolation
from rlhf_lab.recipes import reward_losses
from rlhf_lab.training import optimisers

STUDIES = {
    choice.RESULTS: choice.arms(),
    consensus.RESULTS: consensus.arms(),
    control.PATH: [control.arm(task) for task in control.TASKS],
    dialogue.RESULTS: [dialogue.arm(rung) for rung in dialogue.RUNGS],
    dqn.RESULTS: [dqn.arm(variant) for variant in dqn.VARIANTS],
    evaluation_seeds.RESULTS: [evaluation_seeds.ARM],
    few_labels.RESULTS: few_labels.arms(),
    gae.RESULTS: [gae.ARM],
    interval_coverage.RESULTS: interval_coverage.arms(),
    labels.RESULTS: labels.arms(),
    leash.RESULTS: leash.arms(),
    live_checks.RESULTS: live_checks.ARMS,
    methods.RESULTS: [arm for part in methods.PARTS for arm in methods.arms(part)],
    methods_world.RESULTS: [arm for part in methods_world.PARTS for arm in methods_world.arms(part)],
    ppo_ablation.RESULTS: ppo_ablation.arms(list(ppo_ablation.PARTS)),
    probes.RESULTS: [probes.arm(fault) for fault in probes.EVERY],
    segment_labels.RESULTS: segment_labels.arms(),
    start_behaviour.RESULTS: start_behaviour.arms(),
    study.SEEDS: [study.ARM],
    study.TONE: [study.tone_arm(taste) for taste in study.TASTES],
}
OF_THE_STUDY = (study.SEEDS, study.TONE)  # in a file of their own, so that two processes share the probes


def arms(paths):
    """Parameters (path, arm) of a test, for every arm of the files."""
    pairs = [(path, arm) for path in paths for arm in STUDIES[path]]
    return [pytest.param(path, arm, id=" ".join([path.stem, *arm.names.values()])) for path, arm in pairs]


def elsewhere(function, edit=lambda source: source):
    """The function from a copy of its module under another name and in another place, edited on the way."""
    source = inspect.getsource(sys.modules[function.__module__])
    edited = edit(source)
    spec = importlib.util.spec_from_loader("moved_" + function.__name__, loader=None)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    exec(compile("# moved\n\n" + edited, spec.name, "exec"), module.__dict__)
    return getattr(module, function.__name__), edited != source


def check_that_the_probe_sees_the_chain(monkeypatch, study, *names):
    """That the probe of an arm is another one after a change of PPO's schedule or of the reward model's loss."""

    def probe():
        study.stage.cache_clear()
        study.probe.cache_clear()
        return {"settings": {}, "probe": study.probe(*names)}

    before = probe()
    changes = {
        "linear": (optimisers, lambda first, last, share: first),  # the live checks stop most other changes of PPO
        "bradley_terry_loss": (reward_losses, lambda better, worse, margin: (better - worse).exp()),
    }
    for name, (module, changed) in changes.items():
        with monkeypatch.context() as patch:
            patch.setattr(module, name, changed)
            assert not same_setup(before, probe())
    assert same_setup(before, probe())


def check_that_a_changed_sign_is_noticed(monkeypatch, path, arm, caller, name, right, wrong):
    """That rows stay fresh when the function which `caller` calls moves, and are stale when it gets another sign."""
    function = getattr(caller, name)
    moved, changed = elsewhere(function)
    assert not changed
    monkeypatch.setattr(caller, name, moved)
    assert stale(path, arm) == []
    flipped, changed = elsewhere(function, lambda source: source.replace(right, wrong))
    assert changed
    monkeypatch.setattr(caller, name, flipped)
    with contextlib.suppress(InvariantViolation):  # a live check noticed it first
        assert len(stale(path, arm)) == len(arm.seeds)
