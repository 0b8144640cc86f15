"""The rules of the house: imports go down one ordered list, recipes stand alone, rooms and functions stay small.

Each rule is a function from a source tree to a list of violations, so that planted violations can show that it fires.
The real tree is checked once a rule.
"""

import ast
import io
import statistics
import sys
import tokenize
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "rlhf_lab"

OF_MODELS = ("pretrain", "sft", "reward", "rlhf", "direct", "group", "best_of_n", "distil")
RECIPES = (*OF_MODELS, "reinforce", "ppo", "q_learning", "dqn", "irl", "segment_reward")
CHECKS = ("whole_story", "decisions", "planning", "policy_gradient", "values", "advantage", "ppo", "rlhf")
# The house from bottom to top: its folders, and in each the files. A file may import those before it and no others;
# the files of a tuple stand side by side and know nothing of each other. An __init__ that is not named here imports
# nothing of the house.
ORDER = [
    ("", ["records"]),
    ("maths", ["tensors", "returns", "kl", "objectives", "preferences", "mdp", "exact", "intervals", "power"]),
    ("maths", ["agreement", "choices", "posterior", "acquisition", "soft", "landscapes"]),
    ("training", ["printing", "configs", "files", "folders", "history", "randomness", "optimisers", "steps", "memory"]),
    ("models", ["architectures", "foreign", "language_model", "tokens", "scoring", "reward_model", "ensemble"]),
    ("models", ["public_model", "linear_reward", "policies"]),
    ("feedback", ["lines", "dialogue", "fields", "formats", "fitting", "events", "store", "questions"]),
    ("feedback", ["screening", ("careless", "junk"), "cleaning", "aggregation", ("reliability", "planning")]),
    ("feedback", ["targets", "preference_lint", ("token_targets", "turn_rewards", "comments"), "exports", "merging"]),
    ("feedback", ["choice", "selection"]),
    ("worlds.town", ["facts", "sentences", "questions", "skills", "corpus", "oracle", "raters", "mistakes"]),
    ("worlds.town", ["writers", "people", "__init__"]),
    ("worlds", ["envs", "puck", "probe_checks", "token_probes", "probes"]),
    ("experience", ["rollouts", "episodes", "collect", "segments", "scenes"]),
    ("experience.invariants", ["violation", ("replies", "rewards", "losses", "sampled_law"), "__init__"]),
    ("experience", ["rewards", "inputs", "updates", "live"]),
    ("evaluation", ["text", "policies", "reward_models", "reward_biases", "irl", "comparisons", "evidence", "changes"]),
    ("recipes", ["reward_data", "reward_losses", RECIPES, ("reward_ensemble", "few_labels")]),
    ("classroom", ["plots", "drawing", ("flows", "mdp_plots"), "diagrams"]),
    ("classroom.explorables", ["draggable", ("control", "laws", "feedback", "next_token", "evaluation")]),
    ("classroom", ["explore", "summary", "metrics", "svg", "figures", "explorer", "report", "course"]),
    ("classroom.widgets", ["ordering", "judgements", "saving", "session", "retrospect", "state"]),
    ("classroom.widgets", ["bridge", "view", "plain_forms", "plain"]),
    ("classroom.widgets", ["writing", "opinions", "dialogue", "chat", "plain_chat"]),
    ("classroom.checks", ["comparing", "clipped_losses", "dawid_skene", (*CHECKS, "human_feedback", "reward_models")]),
    ("classroom.checks", ["gpt2", "transformer", "sampling", "judging", ("decoding", "batches", "evaluation")]),
    ("classroom.checks", [("draws", "log_ratios", "group_loop"), "beyond"]),
    ("classroom.clinic", ["songs", "parts", "oracles", "faults", "cases"]),
    ("classroom.clinic", [("experience_cases", "update_cases", "scoring_cases"), "watch", "runs", "ward", "charts"]),
    ("classroom.clinic", ["grading", "agent", "agent_checks", "exercises", "__init__"]),
    ("demo", ["settings", "task", "output", "first_words", "card", "compare", "__init__"]),
    ("", ["doctor", "feedback_command", "__main__"]),
]
PUBLIC = "__init__"  # of the package itself: the roof, which names everything and loads nothing
LIGHT = ("records", "maths", "training")  # these load nothing that is
HEAVY = {"transformers", "matplotlib", "ipywidgets", "gymnasium"}
LONGEST_MODULE = 300  # lines of code
LONGEST_BODY, BODY_AT_90_PERCENT, MEDIAN_BODY = 60, 35, 12


def heights(order):
    """{module: how high it stands}; the files of a tuple stand equally high."""
    shelves = [(place, shelf) for place, files in order for shelf in files]
    return {
        f"{place}.{file}".lstrip("."): height
        for height, (place, shelf) in enumerate(shelves)
        for file in ((shelf,) if isinstance(shelf, str) else shelf)
    }


HEIGHTS = heights(ORDER)


# ---- reading a tree ----------------------------------------------------------------------------------------


def modules(package):
    """{dotted name below the package: path}; a package's __init__ keeps that name."""
    return {".".join(p.relative_to(package).with_suffix("").parts): p for p in sorted(package.rglob("*.py"))}


def height(name):
    """How high a module stands; None where the list does not say."""
    if name.endswith("__init__") and name not in HEIGHTS:
        return len(HEIGHTS) if name == PUBLIC else -1
    return HEIGHTS.get(name)


@cache
def parsed(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def is_skipped_at_import(node):
    """Whether what stands inside of it does not run when the module is imported."""
    if isinstance(node, ast.If):
        return ast.unparse(node.test).rpartition(".")[2] == "TYPE_CHECKING"
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)


def nodes_at_import(node):
    for child in ast.iter_child_nodes(node):
        yield child
        if not is_skipped_at_import(child):
            yield from nodes_at_import(child)


def imported(name, nodes, package):
    """Every dotted name that the nodes of a module import, relative imports resolved."""
    here = [package.name, *name.split(".")][:-1]
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else []
            stem = ".".join(base + ([node.module] if node.module else []))
            yield from (f"{stem}.{alias.name}" for alias in node.names)


def module_of(target, known):
    """The module of the house that an imported dotted name is in; the version belongs to none."""
    parts = target.split(".")[1:]
    stems = [".".join(parts[:end]) for end in range(len(parts), 0, -1)]
    names = [found for stem in stems for found in (stem, f"{stem}.__init__") if found in known]
    return None if parts == ["__version__"] else [*names, PUBLIC][0]


@cache
def house_edges(package):
    """{(importer, imported)} inside the house, wherever in the file. The roof is no importer: it is lazy."""
    known = modules(package)
    found = {
        (name, module_of(target, known))
        for name, path in known.items()
        for target in imported(name, ast.walk(parsed(path)), package)
        if target.split(".")[0] == package.name and name != PUBLIC
    }
    return sorted((name, target) for name, target in found if target not in (None, name))


# ---- the rules of the list ---------------------------------------------------------------------------------


def unlisted(package):
    names = [name for name in modules(package) if height(name) is None]
    return [f"{name} is not in ORDER: give it a place above what it imports" for name in names]


def missing(package):
    return [
        f"{name} is in ORDER, but there is no such file" for name in sorted(HEIGHTS.keys() - modules(package).keys())
    ]


def placed_edges(package):
    """The edges between modules that the list knows; `unlisted` names the others."""
    return [edge for edge in house_edges(package) if None not in map(height, edge)]


def upward_imports(package):
    edges = placed_edges(package)
    return [
        f"{name} imports {target}, which stands above it" for name, target in edges if height(name) < height(target)
    ]


def sideways_imports(package):
    edges = placed_edges(package)
    return [
        f"{name} imports {target}, which stands beside it" for name, target in edges if height(name) == height(target)
    ]


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


def eager_public_names(package):
    """`import rlhf_lab` must load nothing: the public names import their modules when they are used."""
    nodes = nodes_at_import(parsed(package / "__init__.py"))
    names = imported(PUBLIC, nodes, package)
    return [f"__init__ imports {name} at once" for name in names if name.split(".")[0] not in sys.stdlib_module_names]


def heavy_imports(package):
    return [
        f"{name} imports {target}"
        for name, path in modules(package).items()
        if name.split(".")[0] in LIGHT
        for target in imported(name, ast.walk(parsed(path)), package)
        if target.split(".")[0] in HEAVY
    ]


# ---- the rules of size -------------------------------------------------------------------------------------


def is_docstring(statement):
    if not isinstance(statement, ast.Expr) or not isinstance(statement.value, ast.Constant):
        return False
    return isinstance(statement.value.value, str)


def body_lengths(package):
    """{module.function:line: lines of its body}, from the first statement after the docstring to the end."""
    lengths = {}
    for name, path in modules(package).items():
        for node in ast.walk(parsed(path)):
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
    for node in ast.walk(parsed(path)):
        if is_docstring(node):
            lines.difference_update(range(node.lineno, node.end_lineno + 1))
    return len(lines)


def long_modules(package):
    counts = {name: code_lines(path) for name, path in modules(package).items()}
    return [f"{name}: {count} lines of code" for name, count in counts.items() if count > LONGEST_MODULE]


LIST_RULES = [unlisted, missing, upward_imports, sideways_imports, circles, eager_public_names, heavy_imports]
RULES = [*LIST_RULES, long_bodies, long_modules]


# ---- the tests ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_house(rule):
    assert rule(PACKAGE) == []


def test_the_list_names_each_file_once():
    shelves = [shelf for _, files in ORDER for shelf in files]
    assert len(HEIGHTS) == sum(1 if isinstance(shelf, str) else len(shelf) for shelf in shelves)


def plant(folder, files):
    """A tree that holds every file of the list, empty but for those given; None takes a file away."""
    package = folder / "rlhf_lab"
    listed = {f"{name.replace('.', '/')}.py": "" for name in [PUBLIC, *HEIGHTS]}
    for name, text in (listed | files).items():
        if text is not None:
            path = package / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    return package


def test_clean_tree_passes(tmp_path):
    lazy = "import importlib\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from rlhf_lab.demo import f\n"
    lazy += "def __getattr__(name):\n    from rlhf_lab import demo\n    return getattr(demo, name)\n"
    package = plant(
        tmp_path,
        {
            "__init__.py": lazy,
            "maths/__init__.py": '"""Doc."""\n',
            "maths/tensors.py": '"""Doc."""\nimport torch\n',
            "maths/kl.py": "from rlhf_lab.maths.tensors import length_mask\nfrom ..records import Message\n",
            "maths/exact.py": "from rlhf_lab.maths import kl\nfrom .tensors import length_mask\n",
            "models/language_model.py": "import transformers\nfrom rlhf_lab import records\n",
            "worlds/town/__init__.py": "from rlhf_lab.worlds.town.oracle import score\n",
            "recipes/sft.py": "from rlhf_lab.models import language_model\nfrom rlhf_lab.worlds import town\n",
            "__main__.py": "from rlhf_lab import __version__, demo\nfrom rlhf_lab.recipes import rlhf, sft\n",
            "classroom/checks/rlhf.py": "x = 1\n" * LONGEST_MODULE,
        },
    )
    assert [violation for rule in RULES for violation in rule(package)] == []


RLHF, SFT = "recipes/rlhf.py", "recipes.rlhf imports recipes.sft, which stands beside it"
PLANTED = {
    "unknown file": (unlisted, {"trainer.py": ""}, "trainer is not in ORDER"),
    "unknown folder": (unlisted, {"agents/gpt.py": ""}, "agents.gpt is not in ORDER"),
    "missing file": (missing, {"maths/kl.py": None}, "maths.kl is in ORDER, but there is no such file"),
    "upward": (
        upward_imports,
        {"maths/kl.py": "from rlhf_lab.classroom.plots import draw\n"},
        "maths.kl imports classroom.plots, which stands above it",
    ),
    "upward, in its own folder": (
        upward_imports,
        {"maths/tensors.py": "from rlhf_lab.maths.kl import kl_k1\n"},
        "maths.tensors imports maths.kl",
    ),
    "upward, import statement": (
        upward_imports,
        {"maths/returns.py": "import rlhf_lab.experience.rollouts as r\n"},
        "imports experience.rollouts",
    ),
    "upward, relative": (upward_imports, {"maths/kl.py": "from . import exact\n"}, "maths.kl imports maths.exact"),
    "upward, two dots": (
        upward_imports,
        {"feedback/lines.py": "from ..recipes.rlhf import train\n"},
        "feedback.lines imports recipes.rlhf",
    ),
    "upward, three dots": (
        upward_imports,
        {"worlds/town/oracle.py": "from ...recipes.rlhf import train\n"},
        "worlds.town.oracle imports recipes.rlhf",
    ),
    "upward, inside a function": (
        upward_imports,
        {"maths/kl.py": "def f():\n    from rlhf_lab.experience import rollouts\n"},
        "maths.kl imports experience.rollouts",
    ),
    "upward, for the type checker": (
        upward_imports,
        {"maths/kl.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from rlhf_lab.demo import A\n"},
        "maths.kl imports demo",
    ),
    "upward, to a folder that gathers": (
        upward_imports,
        {"worlds/town/facts.py": "from rlhf_lab.worlds.town import score\n"},
        "worlds.town.facts imports worlds.town.__init__",
    ),
    "upward, through the public names": (
        upward_imports,
        {"maths/kl.py": "from rlhf_lab import train_rlhf\n"},
        "maths.kl imports __init__",
    ),
    "an __init__ that gathers and is not listed": (
        upward_imports,
        {"maths/__init__.py": "from rlhf_lab.maths.kl import kl_k1\n"},
        "maths.__init__ imports maths.kl",
    ),
    "recipe in recipe": (sideways_imports, {RLHF: "from rlhf_lab.recipes.sft import train_sft\n"}, SFT),
    "recipe in recipe, relative": (sideways_imports, {RLHF: "from . import sft\n"}, SFT),
    "recipe in recipe, in a function": (
        sideways_imports,
        {RLHF: "def f():\n    import rlhf_lab.recipes.sft\n"},
        SFT,
    ),
    "recipe in recipe, through the folder": (
        upward_imports,
        {"recipes/__init__.py": "from rlhf_lab.recipes.sft import train_sft\n"},
        "recipes.__init__ imports recipes.sft",
    ),
    "check in check": (
        sideways_imports,
        {"classroom/checks/values.py": "from rlhf_lab.classroom.checks.decisions import check\n"},
        "classroom.checks.values imports classroom.checks.decisions",
    ),
    "circle": (
        circles,
        {"maths/kl.py": "from rlhf_lab.maths import mdp\n", "maths/mdp.py": "from rlhf_lab.maths import kl\n"},
        "maths.kl -> maths.mdp -> maths.kl",
    ),
    "circle through a folder": (
        circles,
        {
            "worlds/town/__init__.py": "from rlhf_lab.worlds.town.facts import x\n",
            "worlds/town/facts.py": "from rlhf_lab.worlds.town import y\n",
        },
        "worlds.town.__init__ -> worlds.town.facts -> worlds.town.__init__",
    ),
    "eager public names": (eager_public_names, {"__init__.py": "from .maths.kl import kl_k1\n"}, "maths.kl.kl_k1"),
    "eager public names, in a try": (
        eager_public_names,
        {"__init__.py": "try:\n    import torch\nexcept ImportError:\n    pass\n"},
        "__init__ imports torch at once",
    ),
    "heavy maths": (
        heavy_imports,
        {"maths/kl.py": "def f():\n    import transformers.models\n"},
        "maths.kl imports transformers",
    ),
    "heavy training": (heavy_imports, {"training/steps.py": "from matplotlib import pyplot\n"}, "matplotlib.pyplot"),
    "heavy records": (heavy_imports, {"records.py": "import gymnasium\n"}, "records imports gymnasium"),
    "long function": (long_bodies, {"maths/kl.py": "def f():\n" + "    x = 1\n" * 61}, "maths.kl.f:1: 61 lines"),
    "long method": (
        long_bodies,
        {"maths/kl.py": "class A:\n  def f(self):\n" + "    x = 1\n" * 61},
        "61 lines",
    ),
    "long tail": (
        long_bodies,
        {"maths/kl.py": "def f():\n" + "    x = 1\n" * 36 + "def g(): pass\n" * 8},
        "1 of 9 bodies above 35 lines",
    ),
    "long median": (long_bodies, {"maths/kl.py": ("def f():\n" + "    x = 1\n" * 13) * 5}, "median body above 12"),
    "long module": (
        long_modules,
        {"classroom/checks/ppo.py": "x = 1\n" * (LONGEST_MODULE + 1)},
        "classroom.checks.ppo: 301 lines of code",
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
    assert body_lengths(plant(tmp_path, {"maths/kl.py": text})) == {"maths.kl.f:1": 3, "maths.kl.g:9": 0}
