"""What is checked is named, with what was got and what was expected."""

from types import SimpleNamespace

import pytest

from rlhf_lab.training.configs import above_zero, at_least_one, from_zero, require, shares


def test_require():
    require(True, "x", 1, "2")
    with pytest.raises(ValueError, match="x is 1; expected 2"):
        require(False, "x", 1, "2")


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        (at_least_one, [1, 7], [0, -1]),
        (above_zero, [1e-9, 5], [0, -1.0, float("inf"), float("nan")]),
        (from_zero, [0, 0.5], [-1e-9, float("inf"), float("nan")]),
        (shares, [0, 0.5, 1], [-0.1, 1.1, float("nan")]),
    ],
)
def test_fields_are_checked_one_by_one(check, good, bad):
    for number in good:
        check(SimpleNamespace(a=number, b=number), "a", "b")
    for number in bad:
        with pytest.raises(ValueError, match=r"b is .*; expected"):
            check(SimpleNamespace(a=good[0], b=number), "a", "b")
