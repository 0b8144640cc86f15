"""Mutation testing of layers 0 and 1: would the tests notice if the mathematics were a little wrong?

    python run.py bench mutation                  every module that data/results/mutation.csv does not hold yet
    python run.py bench mutation --modules kl     that module, whether the file holds it or not

mutmut changes one operator, argument, number or name at a time and runs the tests that reach the function; a mutant
that no test notices survives. Left out, because no test should hold their wording: what stands in a `raise`, and the
defaults in the head of a function. Each row carries a key of the module's code, and a row with another key is computed
again. An interrupted module goes on where it stopped (build/mutation). A few minutes in all.

Each survivor stands in mutation_survivors.csv with the reason why it may live; that column is written by hand and is
kept from run to run as long as the mutant is the same.
"""

import argparse
import ast
import hashlib
import inspect
import operator
import os
import shutil
import subprocess
import sys
from pathlib import Path

from rows import RESULTS as FOLDER, put_rows, read_rows, write_rows
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
RESULTS, SURVIVORS = FOLDER / "mutation.csv", FOLDER / "mutation_survivors.csv"
MODULES = ("tensors", "mdp", "exact", "returns", "kl", "objectives", "preferences")
NOTICED = ("killed", "timeout", "segfault", "caught by type check")
IDENTITY = ("module", "function", "was", "becomes")
LEFT_OUT = "  # not mutated"
NO_GRAD = "@torch.no_grad()"
SETTINGS = f"""
[tool.pytest.ini_options]
filterwarnings = ["error"]
markers = ["browser", "slow"]

[tool.mutmut]
source_paths = ["rlhf_lab"]
only_mutate = ["rlhf_lab/maths/{{module}}.py"]
do_not_mutate_patterns = ["{LEFT_OUT}$"]
on_dependency_change = "ignore"
timeout_constant = 2.0
timeout_multiplier = 5.0
"""


def tests() -> list[Path]:
    """The tests that may notice a mutant: those of the modules, each of any module."""
    return [ROOT / "tests" / "maths" / f"test_{module}.py" for module in MODULES]


class Mathematics(ast.NodeTransformer):
    """Leaves out of a module what is not mutated: imports, docstrings and what is raised."""

    def visit_Import(self, node: ast.Import) -> None:
        return None

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        return None

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        return None if isinstance(node.value, ast.Constant) else self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        return ast.Pass()


def key_of(*parts: object) -> str:
    """A short hash: files by their bytes, everything else by its repr."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.read_bytes() if isinstance(part, Path) else repr(part).encode())
    return digest.hexdigest()[:16]


def key(module: str) -> str:
    """What the result of a module depends on, as a short hash: its code, without imports, words and comments."""
    tree = ast.parse((ROOT / "rlhf_lab" / "maths" / f"{module}.py").read_text())
    return key_of(ast.dump(Mathematics().visit(tree)), inspect.getsource(mutable))


# -- what is mutated ----------------------------------------------------------------------------------------------
def mutable(source: str) -> str:
    """The same module, so written that mutmut changes all of the mathematics and none of the messages.

    Lines of a `raise` and of a function's head get a comment that the settings look for. mutmut passes over decorated
    functions, so `@torch.no_grad()` becomes a call at the end of the module.
    """
    lines, at_the_end = source.splitlines(), []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Raise):
            left_out = range(node.lineno, node.end_lineno + 1)
        elif isinstance(node, ast.FunctionDef):
            left_out = range(node.lineno, node.body[0].lineno)
            above = [lines[each.lineno - 1] for each in node.decorator_list]
            if above == [NO_GRAD]:
                lines[node.decorator_list[0].lineno - 1] = ""
                at_the_end.append(f"{node.name} = torch.no_grad()({node.name})")
        else:
            continue
        for number in left_out:
            lines[number - 1] = lines[number - 1].removesuffix(LEFT_OUT) + LEFT_OUT
    return "\n".join([*lines, *at_the_end, ""])


def prepare(module: str) -> Path:
    """A folder with the library, its tests and mutmut's settings; the one of an interrupted run, if it is there."""
    code = [ROOT / "rlhf_lab" / "maths" / f"{module}.py", ROOT / "tests" / "conftest.py", *tests()]
    folder = ROOT / "build" / "mutation" / f"{module}-{key_of(*code, SETTINGS)}"
    if folder.exists():
        return folder
    partial = folder.with_suffix(".tmp")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(ROOT / "rlhf_lab", partial / "rlhf_lab", ignore=shutil.ignore_patterns("__pycache__"))
    target = partial / "rlhf_lab" / "maths" / f"{module}.py"
    target.write_text(mutable(target.read_text()))
    (partial / "tests").mkdir()
    for path in (ROOT / "tests" / "conftest.py", *tests()):
        shutil.copy(path, partial / "tests")
    (partial / "pyproject.toml").write_text(SETTINGS.format(module=module))
    return partial.rename(folder)


# -- running mutmut and reading what it found ---------------------------------------------------------------------
def mutmut(folder: Path, *arguments: str) -> str:
    """Run mutmut in the folder, in one thread a process, and return what it says."""
    program = Path(sys.executable).parent / "mutmut"
    # In CI hypothesis draws the same cases every time.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CI": "true"}
    done = subprocess.run([program, *arguments], cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"mutmut {' '.join(arguments)} failed in {folder}:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return done.stdout


def statuses(folder: Path) -> dict[str, str]:
    """Name of each mutant -> what became of it."""
    lines = mutmut(folder, "results", "--all", "true").splitlines()
    return dict(line.strip().rsplit(": ", 1) for line in lines if ": " in line)


def survivor(folder: Path, module: str, name: str) -> dict[str, str]:
    """A mutant that nobody noticed: the lines that it changes."""
    lines = mutmut(folder, "show", name).splitlines()
    changed = [line for line in lines if line[:1] in ("+", "-") and line[:3] not in ("+++", "---")]
    was, becomes = (" ".join(line[1:].strip() for line in changed if line[0] == sign) for sign in "-+")
    function = name.rpartition(".")[2].rpartition("__mutmut_")[0].removeprefix("x_").replace("xǁ", "").replace("ǁ", ".")
    return dict(zip(IDENTITY, (module, function, was, becomes), strict=True))


def put_survivors(path: Path, module: str, rows: list[dict[str, str]]) -> None:
    """Replace the survivors of a module; the same mutant keeps its reason, a new one has none yet."""
    name = operator.itemgetter(*IDENTITY)
    before = read_rows(path)
    reasons = {name(row): row["reason"] for row in before}
    rows = [row | {"reason": reasons.get(name(row), "")} for row in rows]
    others = [row for row in before if row["module"] != module]
    write_rows(path, [*IDENTITY, "reason"], sorted([*others, *rows], key=name))


def measure(module: str) -> None:
    """Mutate one module, and put its numbers and its survivors into the results."""
    folder = prepare(module)
    mutmut(folder, "run")
    found = statuses(folder)
    lived = [name for name, status in found.items() if status not in NOTICED]
    put_survivors(SURVIVORS, module, [survivor(folder, module, name) for name in tqdm(lived, module, leave=False)])
    share = 1 - len(lived) / len(found)
    row = {"key": key(module), "module": module, "mutants": len(found), "survived": len(lived), "noticed": share}
    put_rows(RESULTS, [row], ("module",))
    print(f"{module}: {len(found) - len(lived)} of {len(found)} mutants noticed ({share:.0%})", flush=True)


def main() -> None:
    """Compute what is missing, one module after the other, and name the survivors without a reason."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--modules", choices=MODULES, nargs="+")
    options = parser.parse_args()
    for module in options.modules or MODULES:
        known = any((row["module"], row["key"]) == (module, key(module)) for row in read_rows(RESULTS))
        if known and not options.modules:
            print(f"{module}: there already", file=sys.stderr)
        else:
            measure(module)
    for row in read_rows(SURVIVORS):
        if not row["reason"]:
            print("\nNo reason yet in {}, {}:\n  - {}\n  + {}".format(*(row[name] for name in IDENTITY)))


if __name__ == "__main__":
    main()
