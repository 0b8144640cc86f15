"""The Binder folder, checked with repo2docker as far as that goes without Docker and without a network."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.skipif(sys.platform == "win32", reason="repo2docker does not run on Windows")
def test_repo2docker_understands_the_folder(tmp_path):
    """Only the files that decide the image are copied: the check is about them, and .venv may be 1 GB."""
    (tmp_path / "course" / "binder").mkdir(parents=True)
    for name in ("runtime.txt", "requirements.txt", "postBuild"):
        (tmp_path / "course" / "binder" / name).write_bytes((ROOT / "binder" / name).read_bytes())
    (tmp_path / "course" / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    command = [sys.executable, "-m", "repo2docker", "--no-build", "--debug", "course"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    dockerfile = done.stdout + done.stderr
    assert done.returncode == 0, dockerfile
    assert "python=3.11" in dockerfile
    assert 'pip install --no-cache-dir -r "binder/requirements.txt"' in dockerfile
    assert "RUN ./binder/postBuild" in dockerfile
    # -c and -e point outside binder/, so the whole repository must be there before pip runs
    assert dockerfile.index("COPY --chown=0:0 src/ ") < dockerfile.index("/bin/pip install")


def test_requirements_name_the_tested_cpu_torch():
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    wanted = (ROOT / "binder" / "requirements.txt").read_text(encoding="utf-8").splitlines()
    torch = next(line for line in pins if line.startswith("torch=="))
    assert torch + "+cpu" in wanted
    assert {"-c ../constraints.txt", "-e ."} <= set(wanted)


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps no executable bit")
@pytest.mark.parametrize("name", ["binder/postBuild", ".ci/run"])
def test_scripts_are_executable_and_parse(name):
    assert os.access(ROOT / name, os.X_OK)
    subprocess.run(["bash", "-n", str(ROOT / name)], check=True)
