"""The rules of the house: imports go down, recipes stand alone, functions stay short, the whole is readable.

Each rule is a function from a source tree to a list of violations, so that planted violations can show that
it fires. The real tree is checked once a rule.
"""

import ast
import io
import statistics
import tokenize
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "rlhf_lab"

# Module or family -> layer; the longest name that fits counts. Whoever imports feedback.records runs
# feedback/__init__.py too, so that one must sit as low as its lowest module.
LAYERS = {
    "__init__": 0,
    "tensors": 0,
    "mdp": 1,
    "exact": 1,
    "returns": 1,
    "kl": 1,
    "objectives": 1,
    "preferences": 1,
    "policies": 2,
    "language_model": 2,
    "reward_model": 2,
    "checkpoints": 2,
    "feedback.__init__": 2,
    "feedback.records": 2,
    "rollouts": 3,
    "episodes": 3,
    "invariants": 3,
    "town": 3,
    "envs": 3,
    "feedback": 3,
    "judges": 3,
    "evaluation": 3,
    "recipes": 4,
    "plots": 5,
    "widgets": 5,
    "checks": 5,
    "course": 5,
    "report": 5,
    "demo": 5,
    "__main__": 5,
}
# Imports between two places of one layer. Inside one of the FAMILIES modules may import each other.
SAME_LAYER = {
    ("exact", "kl"),
    ("language_model", "feedback.records"),
    ("language_model", "checkpoints"),
    ("reward_model", "feedback.records"),
    ("reward_model", "language_model"),
    ("reward_model", "checkpoints"),
    ("envs", "town"),
    ("invariants", "rollouts"),
    ("judges", "feedback"),
    ("evaluation", "rollouts"),
    ("evaluation", "town"),
    ("report", "plots"),
    ("demo", "plots"),
    ("demo", "report"),
    ("__main__", "course"),
    ("__main__", "demo"),
    ("__main__", "report"),
}
FAMILIES = ("town", "feedback", "widgets", "checks")
HEAVY = {"transformers", "matplotlib", "ipywidgets", "gymnasium"}  # not in the maths: layers 0 and 1
LONGEST_BODY, BODY_AT_90_PERCENT, MEDIAN_BODY = 60, 35, 12
CODE_LINES = 6300


# ---- reading a tree ----------------------------------------------------------------------------------------


def modules(package):
    """{dotted name below the package: path}; a package's __init__ keeps that name."""
    return {".".join(p.relative_to(package).with_suffix("").parts): p for p in sorted(package.rglob("*.py"))}


def place(name):
    """The entry of LAYERS that a module belongs to, or None."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        if ".".join(parts[:end]) in LAYERS:
            return ".".join(parts[:end])
    return None


def imported(name, path, package):
    """Every dotted name that a module imports, wherever in the file, relative imports resolved."""
    here = [package.name, *name.split(".")][:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else []
            stem = ".".join(base + ([node.module] if node.module else []))
            yield from (f"{stem}.{alias.name}" for alias in node.names)


def house_edges(package):
    """(importer, imported) for the imports inside the house; a name in a module counts as the module."""
    known = modules(package)
    for name, path in known.items():
        for target in imported(name, path, package):
            parts = target.split(".")[1:]
            if target.split(".")[0] != package.name:
                continue
            stems = [".".join(parts[:end]) for end in range(len(parts), 0, -1)]
            names = [found for stem in stems for found in (stem, f"{stem}.__init__") if found in known]
            yield name, names[0] if names else "__init__"


# ---- the rules ---------------------------------------------------------------------------------------------


def unplaced(package):
    return [f"{name} has no layer: add it to LAYERS" for name in modules(package) if place(name) is None]


def upward_imports(package):
    found = []
    for name, target in house_edges(package):
        own, other = place(name), place(target)
        if own and other and LAYERS[other] > LAYERS[own]:
            found.append(f"{name} (layer {LAYERS[own]}) imports {target} (layer {LAYERS[other]})")
    return found


def sideways_imports(package):
    found = []
    for name, target in house_edges(package):
        own, other = place(name), place(target)
        if not own or not other or name == target or LAYERS[own] != LAYERS[other] or other == "__init__":
            continue
        families = own.split(".")[0], other.split(".")[0]
        if families[0] == families[1] and families[0] in FAMILIES:
            continue
        if name == "recipes.__init__":  # gathers the recipes for `from rlhf_lab.recipes import ...`
            continue
        if (own, other) not in SAME_LAYER:
            found.append(f"{name} imports {target} of its own layer: not listed in SAME_LAYER")
    return found


def circles(package):
    edges = {}
    for name, target in house_edges(package):
        edges.setdefault(name, set()).add(target)

    def walk(name, trail):
        if name in trail:
            return [" -> ".join([*trail[trail.index(name) :], name])]
        if name in done:
            return []
        found = [circle for target in sorted(edges.get(name, ())) for circle in walk(target, [*trail, name])]
        done.add(name)
        return found

    done = set()
    return [circle for name in sorted(edges) for circle in walk(name, [])]


def heavy_maths(package):
    return [
        f"{name} (layer {LAYERS[place(name)]}) imports {target}"
        for name, path in modules(package).items()
        if place(name) and LAYERS[place(name)] <= 1
        for target in imported(name, path, package)
        if target.split(".")[0] in HEAVY
    ]


def is_docstring(statement):
    if not isinstance(statement, ast.Expr) or not isinstance(statement.value, ast.Constant):
        return False
    return isinstance(statement.value.value, str)


def body_lengths(package):
    """{module.function:line: lines of its body}, from the first statement after the docstring to the end."""
    lengths = {}
    for name, path in modules(package).items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = node.body[is_docstring(node.body[0]) :]
                length = body[-1].end_lineno - body[0].lineno + 1 if body else 0
                lengths[f"{name}.{node.name}:{node.lineno}"] = length
    return lengths


def long_bodies(package):
    lengths = body_lengths(package)
    found = [f"{name}: {length} lines" for name, length in lengths.items() if length > LONGEST_BODY]
    if lengths:
        over = sorted(name for name, length in lengths.items() if length > BODY_AT_90_PERCENT)
        if len(over) > 0.1 * len(lengths):
            found.append(f"{len(over)} of {len(lengths)} bodies above {BODY_AT_90_PERCENT} lines: {over}")
        if statistics.median(lengths.values()) > MEDIAN_BODY:
            found.append(f"median body above {MEDIAN_BODY} lines")
    return found


def code_lines(path):
    """Lines that hold code: no docstring, no comment, no blank line."""
    text = path.read_text(encoding="utf-8")
    silent = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in (*silent, tokenize.ENDMARKER):
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if is_docstring(node):
            lines.difference_update(range(node.lineno, node.end_lineno + 1))
    return len(lines)


def over_budget(package, budget=CODE_LINES):
    counts = {n: code_lines(p) for n, p in modules(package).items() if not n.startswith("checks.")}
    total = sum(counts.values())
    largest = sorted(counts, key=counts.get, reverse=True)[:8]
    summary = ", ".join(f"{name} {counts[name]}" for name in largest)
    return [f"{total} lines of code, the house allows {budget}; largest: {summary}"] if total > budget else []


RULES = [unplaced, upward_imports, sideways_imports, circles, heavy_maths, long_bodies, over_budget]


# ---- the tests ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_house(rule):
    assert rule(PACKAGE) == []


def plant(folder, files):
    package = folder / "rlhf_lab"
    for name, text in {"__init__.py": "", **files}.items():
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return package


def test_clean_tree_passes(tmp_path):
    package = plant(
        tmp_path,
        {
            "tensors.py": '"""Doc."""\nimport torch\n',
            "kl.py": "from rlhf_lab.tensors import length_mask\n",
            "exact.py": "from rlhf_lab import kl\nfrom .tensors import length_mask\n",
            "feedback/__init__.py": "",
            "feedback/records.py": "import dataclasses\n",
            "feedback/jsonl.py": "from rlhf_lab.feedback.records import Ranking\nfrom . import store\n",
            "feedback/store.py": "import transformers\n",
            "language_model.py": "from rlhf_lab.feedback import records\n",
            "recipes/__init__.py": "from rlhf_lab.recipes.sft import fine_tune\n",
            "recipes/sft.py": "from rlhf_lab import language_model\n",
            "checks/rlhf.py": "x = 1\n" * (CODE_LINES + 1),
        },
    )
    assert [violation for rule in RULES for violation in rule(package)] == []


PLANTED = {
    "unknown module": (unplaced, {"trainer.py": ""}, "trainer has no layer"),
    "unknown family": (unplaced, {"models/gpt.py": ""}, "models.gpt has no layer"),
    "upward": (
        upward_imports,
        {"kl.py": "from rlhf_lab.plots import draw\n", "plots.py": ""},
        "kl (layer 1)",
    ),
    "upward, import statement": (
        upward_imports,
        {"returns.py": "import rlhf_lab.rollouts as r\n", "rollouts.py": ""},
        "imports rollouts (layer 3)",
    ),
    "upward, relative": (upward_imports, {"kl.py": "from . import plots\n", "plots.py": ""}, "imports plots"),
    "upward, two dots": (
        upward_imports,
        {"town/oracle.py": "from ..recipes.rlhf import train\n", "recipes/rlhf.py": ""},
        "town.oracle (layer 3) imports recipes.rlhf (layer 4)",
    ),
    "upward, inside a function": (
        upward_imports,
        {"kl.py": "def f():\n    from rlhf_lab import rollouts\n", "rollouts.py": ""},
        "kl (layer 1) imports rollouts",
    ),
    "upward through a package's __init__": (
        upward_imports,
        {"feedback/__init__.py": "from rlhf_lab.feedback.store import S\n", "feedback/store.py": ""},
        "feedback.__init__ (layer 2) imports feedback.store (layer 3)",
    ),
    "records above their layer": (
        upward_imports,
        {"feedback/records.py": "from .store import S\n", "feedback/store.py": ""},
        "feedback.records (layer 2) imports feedback.store",
    ),
    "sideways": (
        sideways_imports,
        {"returns.py": "from rlhf_lab import kl\n", "kl.py": ""},
        "returns imports kl",
    ),
    "recipe in recipe": (
        sideways_imports,
        {"recipes/rlhf.py": "from rlhf_lab.recipes.sft import fine_tune\n", "recipes/sft.py": ""},
        "recipes.rlhf imports recipes.sft",
    ),
    "recipe in recipe, relative": (
        sideways_imports,
        {"recipes/rlhf.py": "from . import sft\n", "recipes/sft.py": ""},
        "recipes.rlhf imports recipes.sft",
    ),
    "recipe in recipe, through the package": (
        sideways_imports,
        {"recipes/rlhf.py": "from rlhf_lab.recipes import fine_tune\n", "recipes/__init__.py": ""},
        "recipes.rlhf imports recipes.__init__",
    ),
    "circle": (
        circles,
        {"town/a.py": "from rlhf_lab.town import b\n", "town/b.py": "from rlhf_lab.town import a\n"},
        "town.a -> town.b -> town.a",
    ),
    "circle through the package": (
        circles,
        {"town/__init__.py": "from rlhf_lab.town.a import x\n", "town/a.py": "from rlhf_lab.town import y\n"},
        "town.__init__ -> town.a -> town.__init__",
    ),
    "heavy maths": (
        heavy_maths,
        {"kl.py": "import transformers.models\n"},
        "kl (layer 1) imports transformers",
    ),
    "heavy base": (heavy_maths, {"tensors.py": "from matplotlib import pyplot\n"}, "matplotlib.pyplot"),
    "long function": (long_bodies, {"kl.py": "def f():\n" + "    x = 1\n" * 61}, "kl.f:1: 61 lines"),
    "long method": (long_bodies, {"kl.py": "class A:\n  def f(self):\n" + "    x = 1\n" * 61}, "61 lines"),
    "long tail": (
        long_bodies,
        {"kl.py": "def f():\n" + "    x = 1\n" * 36 + "def g(): pass\n" * 8},
        "1 of 9 bodies above 35 lines",
    ),
    "long median": (long_bodies, {"kl.py": ("def f():\n" + "    x = 1\n" * 13) * 5}, "median body above 12"),
    "budget": (
        over_budget,
        {"kl.py": "x = 1\n" * CODE_LINES, "town/b.py": "x = 1\n" * 1},
        f"{CODE_LINES + 1} lines of code",
    ),
}


@pytest.mark.parametrize("case", PLANTED)
def test_planted_violation_is_found(case, tmp_path):
    rule, files, expected = PLANTED[case]
    found = rule(plant(tmp_path, files))
    assert any(expected in violation for violation in found), found


def test_code_lines_leave_out_text(tmp_path):
    path = tmp_path / "kl.py"
    path.write_text(
        '"""Module.\n\nText.\n"""\n\nimport os  # counts\n\n# a comment\n\n\nclass A:\n    """Doc."""\n\n'
        '    def f(self):\n        """Doc\n        string."""\n        text = """two\n        lines"""\n'
        "        return text\n",
        encoding="utf-8",
    )
    assert code_lines(path) == 6  # import, class, def, two of the string that is data, return


def test_body_length_leaves_out_the_docstring(tmp_path):
    text = 'def f():\n    """One\n    two."""\n    x = 1\n    # why\n    return x\n\n\n'
    text += 'def g():\n    """Only."""\n'
    assert body_lengths(plant(tmp_path, {"kl.py": text})) == {"kl.f:1": 3, "kl.g:9": 0}
