"""What the live checks say to forty faults by four authors who had not read them, planted one at a time."""

import dataclasses

import new_faults
import new_faults_2
import new_faults_3
import new_faults_4
import pytest
import torch

from rlhf_lab.classroom.clinic.runs import train
from rlhf_lab.experience.invariants import InvariantViolation

torch.set_num_threads(1)
SETS = (new_faults, new_faults_2, new_faults_3, new_faults_4)
FAULTS = [fault for module in SETS for fault in module.FAULTS]
UNSEEN = {
    "one seed",  # tokens of the scored law, only the same random numbers in every iteration
    "first prompts",  # which prompts are asked is nowhere declared
    "one value a row",  # a critic may be as bad as it likes: a baseline biases nothing
}
ITERATIONS = 10


def named(fault):
    """The checks that fire in ten iterations."""
    if fault.parts is not None:
        return list(train(fault.parts, 0, ITERATIONS).fired)
    fault = dataclasses.replace(fault, config=dict(fault.config) | {"check_invariants": True})
    try:
        new_faults.run(fault, fault.config, ITERATIONS, 0)
    except InvariantViolation as violation:
        return [violation.name]
    return []


def test_forty_faults_with_names_of_their_own():
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) == 40


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_is_named_or_known_to_be_unseen(fault):
    assert bool(named(fault)) != (fault.name in UNSEEN)
