"""What is checked is named, with what was got and what was expected."""

import pytest

from rlhf_lab.training.configs import require


def test_require():
    require(True, "x", 1, "2")
    with pytest.raises(ValueError, match="x is 1; expected 2"):
        require(False, "x", 1, "2")
