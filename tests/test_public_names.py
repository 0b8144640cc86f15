"""The public names of `rlhf_lab`: what they load, that they resolve in any order, and that no name means two things."""

import ast
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import rlhf_lab

PACKAGE = Path(rlhf_lab.__file__).parent
HEAVY = ("torch", "transformers", "matplotlib", "ipywidgets", "gymnasium")


def loaded_by(code):
    """Which heavy libraries, and which of our modules, a fresh process has after this code."""
    asked = "import sys; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{asked}"], capture_output=True, text=True, check=True)
    modules = set(done.stdout.split())
    return modules & set(HEAVY), {name for name in modules if name.startswith("rlhf_lab")}


@pytest.mark.parametrize(
    ("code", "heavy"),
    [
        ("import rlhf_lab", set()),
        ("from rlhf_lab import as_conversation", set()),
        ("from rlhf_lab import gae, kl, mdp", {"torch"}),
        ("from rlhf_lab import load_language_model", {"torch", "transformers"}),
        ("from rlhf_lab import town", {"torch"}),
        ("from rlhf_lab import plots", {"torch", "transformers", "matplotlib"}),
    ],
)
def test_a_name_loads_what_it_needs_and_no_more(code, heavy):
    assert loaded_by(code)[0] == heavy


def test_the_package_alone_loads_nothing_of_its_own():
    assert loaded_by("import rlhf_lab")[1] == {"rlhf_lab"}


def test_every_public_name_resolves():
    assert rlhf_lab.__all__ == sorted(set(rlhf_lab.__all__))
    for name in rlhf_lab.__all__:
        assert getattr(rlhf_lab, name) is not None
    assert set(rlhf_lab.__all__) <= set(dir(rlhf_lab))
    with pytest.raises(AttributeError, match=r"no attribute 'fine_tune'; the public names are in rlhf_lab\.__all__"):
        rlhf_lab.fine_tune  # noqa: B018


def test_a_name_means_the_same_whatever_was_imported_before():
    """In fresh processes: each exported module and each train_ function, after all modules were imported one by one."""
    modules = [
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.stem not in ("__main__", "__init__")
    ]
    check = "\n".join(
        [
            "import importlib, types, rlhf_lab",
            *(f"importlib.import_module({name!r})" for name in modules),
            "kinds = {n: type(getattr(rlhf_lab, n)) for n in rlhf_lab.__all__}",
            "print([n for n in rlhf_lab._MODULES if kinds[n] is not types.ModuleType])",
            "print([n for n in rlhf_lab._HOME if kinds[n] is types.ModuleType])",
        ]
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]", "[]"]


def defined(path):
    """Functions and classes at the top of a module."""
    kinds = ast.FunctionDef | ast.ClassDef
    return [node.name for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, kinds)]


def beside(folder):
    """Names of the modules and folders in a folder."""
    return {path.stem for path in folder.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}


FOLDERS = sorted({path.parent for path in PACKAGE.rglob("*.py")})


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: str(folder.relative_to(PACKAGE.parent)))
def test_no_function_or_class_shares_a_name_with_a_module_beside_it(folder):
    names = {name: path.name for path in folder.glob("*.py") for name in defined(path)}
    assert {name: file for name, file in names.items() if name in beside(folder)} == {}


def test_no_public_name_is_also_a_folder_or_a_file_of_the_house():
    assert set(rlhf_lab.__all__) & beside(PACKAGE) == set()


def test_functions_that_train_say_so_and_end_in_a_result():
    recipes = {name: path for path in (PACKAGE / "recipes").glob("*.py") for name in defined(path)}
    trainers = {name for name in recipes if name.startswith("train_") and name != "train_tokenizer"}
    assert trainers <= set(rlhf_lab.__all__)
    others = {"__init__", "reward_data", "reward_losses", "best_of_n"}  # two parts of `reward`, and one trains nothing
    files = {path.stem for path in (PACKAGE / "recipes").glob("*.py")} - others
    assert {recipes[name].stem for name in trainers} == files
    for name in recipes:
        if name.endswith("Result"):
            module = __import__(f"rlhf_lab.recipes.{recipes[name].stem}", fromlist=[name])
            assert issubclass(getattr(module, name), rlhf_lab.Result)


def test_public_functions_and_classes_live_once():
    counts = Counter(name for names in rlhf_lab._NAMES.values() for name in names.split())
    assert [name for name, count in counts.items() if count > 1] == []
