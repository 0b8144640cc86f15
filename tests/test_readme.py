"""The README does what it says: its Python runs (small), its files exist, its commands are known."""

import re
from pathlib import Path

from rlhf_lab.__main__ import _parser

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_python_of_the_readme_runs_small():
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL).group(1)
    for large, small in {
        "600)": "24)",
        "4000)": "32)",
        ").model\nreward": ", SFTConfig(steps=2)).model\nreward",
    }.items():
        assert large in code
        code = code.replace(large, small)
    code = code.replace(
        "reward_model)\n", "reward_model, RLHFConfig(iterations=1, prompts_per_iteration=8, minibatch_rows=8))\n"
    )
    names = {}
    exec("from rlhf_lab import RLHFConfig, SFTConfig\n" + code, names)
    assert names["result"].history.last("length") > 0
    assert names["result"].model is not names["sft"]
    assert -3 < names["true_reward"](names["sft"]).mean < 3


def test_every_file_of_the_readme_exists():
    for target in re.findall(r"\]\(([\w/.]+)\)", README):
        assert (ROOT / target).exists(), target


def test_the_tree_of_the_readme_is_the_tree():
    """Top folders, those of the library, and below each of these its files; every folder of the library is there."""
    tree, package, folder, named = README.split("## The house")[1].split("```")[1], ROOT / "rlhf_lab", None, set()
    for line in filter(str.strip, tree.splitlines()):
        depth, names = len(line) - len(line.lstrip()), line.strip().split("   ")[0].replace(",", "").split()
        if depth == 2:
            folder = package / names[0]
            named |= {name.strip("/") for name in names}
        for name in names[: None if depth == 4 or names[-1].endswith(".py") else 1]:
            place = {0: ROOT, 2: package, 4: folder}[depth] / name
            assert place.exists() or place.with_suffix(".py").exists(), line
    assert {path.name for path in package.iterdir() if (path / "__init__.py").exists()} <= named


def test_the_readme_names_every_chapter_that_the_chapters_cite():
    """By number, written or being written, so that a reader who follows a citation finds what it is."""
    section = README.split("## Notebooks")[1].split("## The house")[0]
    books = sorted((ROOT / "notebooks").glob("*.ipynb"))
    named = set(re.findall(r"\b(\d\d) [a-zA-Z|]", section))
    cited = {
        number for book in books for number in re.findall(r"[Cc]hapters? (\d\d)", book.read_text(encoding="utf-8"))
    }
    assert {book.name[:2] for book in books} | cited <= named
    assert {"07", "15"} <= named


def test_every_option_of_the_readme_is_known():
    for line in re.findall(r"python run.py demo (--[^#\n]+)", README):
        _parser().parse_args(["demo", *line.split()])
