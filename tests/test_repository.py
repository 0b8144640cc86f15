"""What git carries stays small, since a reader downloads all of it; what is declared is what is imported."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LARGEST_FILE, ALL_FILES = 10_000_000, 45_000_000  # bytes


def tracked_files():
    """{path: bytes} of what git tracks and is there."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("this is no git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    paths = [ROOT / name for name in listed.split("\0") if name]
    return {path.relative_to(ROOT).as_posix(): path.stat().st_size for path in paths if path.is_file()}


def too_large(sizes):
    found = [f"{name} has {size:,} bytes" for name, size in sizes.items() if size > LARGEST_FILE]
    total = sum(sizes.values())
    return found + ([f"all tracked files together have {total:,} bytes"] if total > ALL_FILES else [])


def test_tracked_files_are_small():
    sizes = tracked_files()
    assert "run.py" in sizes
    assert too_large(sizes) == []


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ({"a": LARGEST_FILE, "b": LARGEST_FILE}, []),
        ({"a": LARGEST_FILE + 1, "b": 5}, ["a has 10,000,001 bytes"]),
        ({str(i): LARGEST_FILE - 1 for i in range(5)}, ["all tracked files together have 49,999,995 bytes"]),
    ],
    ids=["both bounds kept", "one file", "together"],
)
def test_a_large_file_is_found(sizes, expected):
    assert too_large(sizes) == expected


def test_what_the_library_imports_is_declared_and_nothing_else():
    imported = set()
    for path in (ROOT / "rlhf_lab").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.split(".")[0])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {re.split("[<>=]", need)[0].replace("-", "_") for need in project["dependencies"]}
    named = {"ipython": "IPython", "markdown_it_py": "markdown_it", "scikit_learn": "sklearn"}
    declared = {named.get(name, name) for name in declared}
    assert declared - {"jupyterlab"} == imported - set(sys.stdlib_module_names) - {"rlhf_lab"}
