"""Each patient of the clinic is named by the live check that the list promised, and healthy runs by none."""

import pytest
import torch
from named_alarms import FIRST, NEW, UNSEEN

from rlhf_lab.classroom.clinic.parts import Parts
from rlhf_lab.classroom.clinic.runs import train
from rlhf_lab.classroom.clinic.ward import CASES

torch.set_num_threads(1)
NEW_NAMES = dict(zip("QRSTUV", NEW.values(), strict=True))


def test_the_list_holds_every_patient():
    assert CASES.keys() == FIRST.keys() | NEW_NAMES.keys()
    assert len(set(FIRST) - set(UNSEEN)) >= 14


@pytest.mark.parametrize("name", sorted(CASES))
def test_the_patient_is_named(name):
    fired = train(CASES[name].parts(), seed=0, iterations=3).fired
    assert {**FIRST, **NEW_NAMES}[name] in fired, fired


@pytest.mark.parametrize("name", ["none", *sorted(CASES)])
def test_with_the_cure_nothing_fires(name):
    """The statistical checks err once in 1,000 runs; these are 24."""
    parts = Parts() if name == "none" else CASES[name].parts(CASES[name].cure)
    assert train(parts, seed=1, iterations=3).fired == {}
