"""Every test and every notebook under nbval sees an empty store of feedback, never the one of who runs them."""

import os
import tempfile
from pathlib import Path

import pytest

_EMPTY = tempfile.TemporaryDirectory(prefix="rlhf_lab_tests_")
os.environ["RLHF_LAB_STORE"] = str(Path(_EMPTY.name) / "feedback.db")


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove it, with what a test may have judged."""
    _EMPTY.cleanup()
