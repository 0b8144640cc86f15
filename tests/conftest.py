"""What all tests share: one thread, no hub, and a browser that CI must have."""

import os
import shutil

import pytest

# Before torch is imported: for tiny tensors more threads only wait, and results depend on their number.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def require_chromium():
    """The path of a chromium; skips the test where there is none, and fails it under CI=true."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None and os.environ.get("CI") == "true":
        pytest.fail("there is no chromium, and CI must run the browser tests (see .ci/run)")
    if found is None:
        pytest.skip("there is no chromium on the path")
    return found


@pytest.fixture(scope="session")
def chromium():
    """The browser for tests marked `browser`: pass it to playwright as executable_path."""
    return require_chromium()
