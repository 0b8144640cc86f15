"""run.py: what it decides before it installs, how it passes work on, and that the pins are complete."""

import ast
import importlib.metadata
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
FIRST = str(ROOT / "notebooks" / "00_the_whole_story.ipynb")
SOURCE = (ROOT / "run.py").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def module_from(path):
    """A fresh copy of a module, so that a test may replace its functions."""
    spec = importlib.util.spec_from_file_location(f"{path.stem}_under_test", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run():
    return module_from(ROOT / "run.py")


# ---- which Python ------------------------------------------------------------------------------------------


def test_an_old_python_gets_a_sentence():
    ast.parse(SOURCE, feature_version=(3, 8))
    pretend = "import sys, runpy; sys.version_info = (3, 10, 2); sys.argv = ['run.py', 'demo']; "
    done = subprocess.run(
        [sys.executable, "-c", pretend + "runpy.run_path('run.py')"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.startswith("rlhf_lab needs Python 3.11 or newer")
    assert "Traceback" not in done.stderr


def test_only_the_standard_library_is_imported():
    trees = [node for node in ast.walk(ast.parse(SOURCE)) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.name for node in trees if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in trees if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in names} <= sys.stdlib_module_names


def test_a_python_without_venv_or_pip_is_named(run, monkeypatch):
    monkeypatch.setattr(run.importlib.util, "find_spec", lambda name: None if name == "ensurepip" else name)
    with pytest.raises(SystemExit, match="apt install python3-venv"):
        run.make_venv()


# ---- the pins ----------------------------------------------------------------------------------------------


def pins():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


def requirements(*extras):
    texts = list(PROJECT["project"]["dependencies"])
    for extra in extras:
        texts += PROJECT["project"]["optional-dependencies"][extra]
    return [Requirement(text) for text in texts]


def closure(wanted):
    """Every distribution that the requirements bring in here, by the metadata of what is installed."""
    seen, queue = set(), list(wanted)
    while queue:
        need = queue.pop()
        key = canonicalize_name(need.name), frozenset(need.extras)
        if key in seen or (need.marker and not need.marker.evaluate({"extra": ""})):
            continue
        seen.add(key)
        for text in importlib.metadata.requires(need.name) or ():
            below = Requirement(text)
            chosen = [""] if below.marker is None else ["", *need.extras]
            if below.marker is None or any(below.marker.evaluate({"extra": extra}) for extra in chosen):
                below.marker = None
                queue.append(below)
    return {name for name, _ in seen}


def test_every_requirement_is_pinned_within_its_bounds():
    pinned = pins()
    for need in requirements("test", "bench"):
        assert pinned[canonicalize_name(need.name)] in need.specifier, need


def test_pins_have_no_local_tag():
    assert [version for version in pins().values() if not re.fullmatch(r"[0-9][0-9a-z.]*", version)] == []


def test_everything_that_is_brought_in_is_pinned():
    # torch's own CUDA packages are pinned by torch, build by build
    needed = closure(requirements("test"))
    assert {"sympy", "tornado", "coverage"} <= needed  # two steps away: the walk does go on
    missing = {name for name in needed - set(pins()) if "nvidia" not in name}
    assert missing - {"triton", "cuda-bindings", "cuda-toolkit", "cuda-pathfinder"} == set()


def test_packages_are_listed():
    """setuptools takes an explicit list because data/ is one of them; here is what keeps it complete."""
    folders = {p.parent.relative_to(ROOT) for p in (ROOT / "rlhf_lab").rglob("*.py")}
    names = {".".join(folder.parts) for folder in folders} | {"rlhf_lab.data"}
    assert names <= set(PROJECT["tool"]["setuptools"]["packages"])


# ---- which torch -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ({"there": "2.13.0+cpu"}, []),
        ({"there": "2.13.0"}, []),
        ({"wheel": True}, ["--no-index"]),
        ({"index": True}, ["--no-index", "--index-url"]),
        ({}, ["--no-index", "about 3 GB"]),
        ({"index": True, "index_fails": True}, ["--no-index", "--index-url", "about 3 GB"]),
        ({"gpu": True, "wheel": True}, []),
        ({"platform": "darwin", "wheel": True}, []),
        ({"platform": "win32", "gpu": True}, ["There is an NVIDIA GPU"]),
    ],
    ids=str,
)
def test_torch_is_taken_from_the_nearest_place(run, monkeypatch, case, expected):
    """The steps in order: satisfied pin, local wheel, CPU index, and last the default build with a word."""
    steps = []

    def pip(*arguments, quiet=False):
        assert arguments[-1] == "torch==2.13.0"
        steps.append(next(a for a in arguments if a in ("--no-index", "--index-url")))
        works = case.get("wheel") if steps[-1] == "--no-index" else not case.get("index_fails")
        return int(not works), ""

    monkeypatch.setattr(run, "pinned", lambda name: "2.13.0")
    monkeypatch.setattr(run, "pip", pip)
    monkeypatch.setattr(run, "say", steps.append)
    monkeypatch.setattr(run, "installed_torch", lambda: case.get("there", ""))
    monkeypatch.setattr(run, "has_nvidia_gpu", lambda: case.get("gpu", False))
    monkeypatch.setattr(run, "reachable", lambda address: case.get("index", False))
    monkeypatch.setattr(run.sys, "platform", case.get("platform", "linux"))
    run.install_torch()
    told = [step for step in steps if "local wheel" not in step]
    assert len(told) == len(expected)
    assert all(part in step for part, step in zip(expected, told, strict=True))


# ---- the stamp ---------------------------------------------------------------------------------------------


@pytest.fixture
def empty(run, monkeypatch, tmp_path):
    """run.py on a folder without an environment; what pip would be told is kept in `.asked`."""
    run.asked, run.answer = [], (0, "")
    run.VENV, run.PYTHON, run.STAMP = tmp_path, tmp_path / "python", tmp_path / "stamp.json"

    def pip(*arguments, quiet=False):
        run.asked.append(arguments[-1])
        return run.answer

    monkeypatch.setattr(run, "pip", pip)
    monkeypatch.setattr(run, "make_venv", lambda: run.PYTHON.touch())
    monkeypatch.setattr(run, "install_torch", lambda: None)
    return run


def test_the_second_call_installs_nothing(empty):
    empty.ensure_environment("test")
    assert empty.asked == ["setuptools", f"{ROOT}[test]"]
    empty.ensure_environment("test")
    empty.ensure_environment(None)
    assert len(empty.asked) == 2
    empty.ensure_environment("bench")
    assert empty.asked[-1] == f"{ROOT}[bench,test]"


def test_what_installs_more_later_is_said(empty, capsys):
    empty.ensure_environment(None)
    later = "`test`, `notebooks`, `bench`, `real`"
    assert f"takes no time (the first use of {later} installs a little more)." in said(capsys)
    empty.ensure_environment("test")
    assert "(the first use of `bench`, `real` installs" in said(capsys)
    empty.ensure_environment("bench")
    assert "(the first use of `real` installs" in said(capsys)
    empty.ensure_environment("real")
    assert "takes no time.\n" in said(capsys)


def said(capsys):
    return capsys.readouterr().out


@pytest.mark.parametrize("change", ["requirements", "no python", "damaged stamp"])
def test_what_makes_it_install_again(empty, monkeypatch, change):
    empty.ensure_environment(None)
    if change == "requirements":
        monkeypatch.setattr(empty, "requirement_hash", lambda: "another")
    elif change == "no python":
        empty.PYTHON.unlink()
    else:
        empty.STAMP.write_text("{", encoding="utf-8")
    empty.ensure_environment(None)
    assert len(empty.asked) == 4


@pytest.mark.parametrize("how", ["moved", "linked", "requirements", "by hand"])
def test_an_environment_of_another_folder_is_made_again(empty, monkeypatch, tmp_path, capsys, how):
    """Its programs name the old folder. One that other folders share by a link, or without our stamp, stays."""
    made = []
    monkeypatch.setattr(empty, "make_venv", lambda: made.append(empty.ROOT))
    empty.PYTHON.touch()
    if how == "linked":
        empty.VENV = tmp_path.parent / f"{tmp_path.name}-link"
        empty.VENV.symlink_to(tmp_path)
    if how != "by hand":
        empty.ensure_environment(None)
    new = tmp_path / "new"
    new.mkdir()
    for name in ("pyproject.toml", "constraints.txt"):
        (new / name).write_bytes((ROOT / name).read_bytes())
    if how == "requirements":
        monkeypatch.setattr(empty, "requirement_hash", lambda: "another")
    else:
        empty.ROOT = new
    said(capsys)
    empty.ensure_environment(None)
    assert made == ([new] if how == "moved" else [])
    assert empty.asked[-1] == str(empty.ROOT)
    assert (f"was made for {ROOT}, and works only there" in said(capsys)) == (how == "moved")
    empty.ensure_environment(None)
    assert made == ([new] if how == "moved" else [])


@pytest.mark.parametrize(
    ("config", "cleared"),
    [
        (None, False),
        ("home = /usr/bin", False),
        ("command = /usr/bin/python3 -m venv --clear {here}/.venv", False),
        ("command = /usr/bin/python3 -m venv /the old/place/.venv", True),
    ],
)
def test_a_stamp_without_a_folder_clears_only_what_is_known_to_be_moved(empty, monkeypatch, config, cleared):
    """Stamps of earlier versions name no folder, and new requirements are no reason to lose an environment."""
    made = []
    monkeypatch.setattr(empty, "make_venv", lambda: made.append(True))
    empty.PYTHON.touch()
    empty.STAMP.write_text('{"hash": "of other requirements", "extras": ["test"]}', encoding="utf-8")
    if config:
        (empty.VENV / "pyvenv.cfg").write_text(config.format(here=ROOT), encoding="utf-8")
    empty.ensure_environment(None)
    assert made == [True] * cleared
    assert empty.asked[-1] == str(ROOT)


def test_a_folder_that_is_no_environment_is_not_cleared(run, monkeypatch, tmp_path):
    commands = []
    done = SimpleNamespace(returncode=0)
    monkeypatch.setattr(run.subprocess, "run", lambda command, **options: commands.append(command) or done)
    run.VENV = tmp_path / ".venv"
    run.make_venv()
    run.VENV.mkdir()
    run.make_venv()
    (run.VENV / "pyvenv.cfg").touch()
    run.make_venv()
    (run.VENV / "pyvenv.cfg").rename(run.VENV / "mine.txt")
    with pytest.raises(SystemExit, match="Move it away"):
        run.make_venv()
    assert len(commands) == 3


@pytest.mark.parametrize(
    ("tail", "advice"),
    [
        ("NewConnectionError: Name or service not known\nERROR: No matching distribution", "network"),
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left", "The disk is full"),
        ("SSLError(SSLCertVerificationError)", "PIP_CERT"),
        ("ERROR: No matching distribution found for torch==2.13.0", "no build for this Python"),
        ("python: No module named pip", "Delete the .venv folder"),
        ("something else", "The lines above say why"),
    ],
)
def test_a_failed_installation_says_why_and_leaves_no_stamp(empty, tail, advice):
    empty.answer = (1, tail)
    with pytest.raises(SystemExit, match=advice) as caught:
        empty.ensure_environment(None)
    assert tail in str(caught.value)
    assert not empty.STAMP.exists()


# ---- passing work on ---------------------------------------------------------------------------------------


def test_exit_codes_and_variables_pass_through(run):
    run.PYTHON = Path(sys.executable)
    code = "import os, sys; sys.exit(7 if os.environ['X'] == '1' and os.path.exists('run.py') else 1)"
    assert run.call(["-c", code], X="1") == 7
    assert run.call(["-c", "import os; os.abort()"]) != 0


@pytest.mark.skipif(sys.platform == "win32", reason="signals of a process group")
def test_an_interrupt_lets_the_child_finish(tmp_path):
    child = "import signal\ntry:\n    print('ready', flush=True)\n    signal.pause()\n"
    child += "except KeyboardInterrupt:\n    print('saved', flush=True)\n    raise SystemExit(3)\n"
    parent = "import importlib.util, sys; s = importlib.util.spec_from_file_location('run', 'run.py')\n"
    parent += "run = importlib.util.module_from_spec(s); s.loader.exec_module(run)\n"
    parent += f"run.PYTHON = run.Path(sys.executable); sys.exit(run.call(['-c', {child!r}]))"
    with subprocess.Popen(
        [sys.executable, "-c", parent], cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout.readline() == "ready\n"
        os.killpg(process.pid, signal.SIGINT)  # as the terminal does
        assert process.stdout.read() == "saved\n"
    assert process.returncode == 3


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_killed_child_gives_the_shell_code(run):
    run.PYTHON = Path(sys.executable)
    assert run.call(["-c", "import os, signal; os.kill(os.getpid(), signal.SIGTERM)"]) == 128 + signal.SIGTERM


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["demo", "--seed", "1"], ["-m", "rlhf_lab", "demo", "--seed", "1"]),
        (["release"], ["-m", "rlhf_lab", "release"]),
        (["doctor"], ["-m", "rlhf_lab", "doctor"]),
        (["lab", "--port", "9"], ["-m", "jupyterlab", "--port", "9", FIRST]),
        (["lab", "--allow-root", "--ip=0.0.0.0"], ["-m", "jupyterlab", "--allow-root", "--ip=0.0.0.0", FIRST]),
        (["lab", "--ServerApp.port", "9"], ["-m", "jupyterlab", "--ServerApp.port", "9", FIRST]),
        (["lab"], ["-m", "jupyterlab", FIRST]),
        (["lab", "--allow-root", "data"], ["-m", "jupyterlab", "--allow-root", "data"]),
        (["lab", "my.ipynb", "--no-browser"], ["-m", "jupyterlab", "my.ipynb", "--no-browser"]),
        (["lab", "path"], ["-m", "jupyterlab", "path"]),
        (["lab", "--notebook-dir", "data"], ["-m", "jupyterlab", "--notebook-dir", "data"]),
        (
            ["notebooks", "--write", "notebooks/03_values.ipynb"],
            ["-m", "rlhf_lab.classroom.course", "notebooks/03_values.ipynb"],
        ),
    ],
    ids=str,
)
def test_commands_pass_their_arguments_on(run, monkeypatch, tmp_path, arguments, expected):
    calls = []
    monkeypatch.setattr(run, "NEWS", tmp_path / "news.json", raising=False)
    monkeypatch.setattr(run, "ensure_environment", lambda extra: None)
    monkeypatch.setattr(run, "call", lambda passed, **variables: calls.append(passed) or 4)
    assert run.main(arguments) == 4
    assert calls == [expected]


def test_a_notebook_that_is_missing_is_named_and_nothing_runs(run, monkeypatch, capsys):
    monkeypatch.setattr(run, "call", lambda passed, **variables: pytest.fail("it ran something"))
    for more in ([], ["--write"]):
        assert run.command_notebooks([*more, "notebooks/99_no.ipynb", "notebooks/03_values.ipynb"]) == 2
        assert "There is no notebooks/99_no.ipynb (seen from" in said(capsys)


def test_jupyter_asks_nothing_about_news(run, monkeypatch, tmp_path):
    """The default lies in the environment; what somebody else put there stays."""
    monkeypatch.setattr(run, "call", lambda passed, **variables: 0)
    monkeypatch.setattr(run, "NEWS", tmp_path / "labconfig" / "overrides.json", raising=False)
    run.command_lab([])
    assert run.NEWS.exists()
    assert json.loads(run.NEWS.read_text()) == {"@jupyterlab/apputils-extension:notification": {"fetchNews": "false"}}
    run.NEWS.write_text("{}")
    run.command_lab([])
    assert run.NEWS.read_text() == "{}"


def test_an_ascii_terminal_gets_escapes(run, monkeypatch):
    run.PYTHON = Path(sys.executable)
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    assert run.call(["-c", "print('policy \u2192 reply')"]) == 0
    code = "import runpy, sys; sys.argv = ['run.py', '\u2192']; runpy.run_path('run.py', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "")
    assert "There is no command" in done.stdout


def test_help_and_unknown_commands(run, capsys):
    assert run.main([]) == 2
    assert run.main(["--help"]) == 0
    assert "python run.py demo" in capsys.readouterr().out
    assert run.main(["train"]) == 2
    assert "no command 'train'. Choose one of: lab, test" in capsys.readouterr().out


# ---- run.py test -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "unit", "books"),
    [
        ([], ["tests", "rlhf_lab"], ["--nbval", "notebooks"]),
        (
            ["-k", "gae", "-x"],
            ["-k", "gae", "-x", "tests", "rlhf_lab"],
            ["-k", "gae", "-x", "--nbval", "notebooks"],
        ),
        (["tests/test_run.py::f", "-x"], ["-x", "tests/test_run.py::f"], None),
        (["notebooks/"], None, ["--nbval", "notebooks/"]),
        (["notebooks/00_a.ipynb", "tests"], ["tests"], ["--nbval", "notebooks/00_a.ipynb"]),
    ],
    ids=str,
)
def test_stages(run, tmp_path, arguments, unit, books):
    run.ROOT = tmp_path
    for name in ("tests/test_run.py", "notebooks/00_a.ipynb"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    expected = {run.UNIT: unit, run.NOTEBOOKS: books}
    assert run.pytest_stages(arguments) == {stage: args for stage, args in expected.items() if args}


def test_no_notebooks_is_no_stage(run, tmp_path):
    run.ROOT = tmp_path
    assert list(run.pytest_stages([])) == [run.UNIT]


@pytest.mark.parametrize(
    ("statuses", "code"), [([0, 0], 0), ([0, 5], 0), ([5, 5], 5), ([0, 1], 1), ([2, 1], 2), ([], 0)]
)
def test_overall_exit_code(run, statuses, code):
    assert run.overall(statuses) == code


@pytest.mark.parametrize(
    ("failing", "status", "code", "closing"),
    [
        ("", 0, 0, " 7 passed, 2 skipped in "),
        ("ruff", 0, 1, " 1 failed, 7 passed, 2 skipped in "),
        ("mypy", 0, 1, " 1 failed, 7 passed, 2 skipped in "),
        ("ruff mypy", 0, 1, " 2 failed, 7 passed, 2 skipped in "),
        ("", 1, 1, " 1 failed, 6 passed, 2 skipped in "),
    ],
)
def test_the_closing_line_counts_everything(run, monkeypatch, capsys, failing, status, code, closing):
    def call(arguments, **variables):
        if arguments[1] in ("ruff", "mypy"):
            return int(arguments[1] in failing)
        report = next(a.partition("=")[2] for a in arguments if a.startswith("--junit-xml="))
        suite = f'<testsuite errors="0" failures="{status}" skipped="2" tests="9"/>'
        Path(report).write_text(f"<testsuites>{suite}</testsuites>", encoding="utf-8")
        assert variables["HF_HUB_OFFLINE"] == "1"
        return status

    monkeypatch.setattr(run, "call", call)
    assert run.command_test(["tests"]) == code
    lines = capsys.readouterr().out.splitlines()
    assert closing in lines[-1]
    assert f"{'types':26} {'FAILED (exit code 1)' if 'mypy' in failing else 'ok'}" in lines


# ---- several processes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [["-n4"], ["-n", "0"], ["--numprocesses=2"], ["--pdb"], ["-p", "no:xdist"], ["-pno:xdist"], ["-s"]],
    ids=" ".join,
)
def test_what_the_user_says_of_processes_holds(run, monkeypatch, arguments):
    monkeypatch.setattr(run, "workers", lambda: 2)
    assert run.in_parallel([*arguments, "tests"]) == []


def test_the_files_are_shared_between_the_cores(run, monkeypatch):
    calls = []
    monkeypatch.setattr(run, "call", lambda arguments, **variables: calls.append(arguments) or 0)
    for cores in (1, 3, 64):
        monkeypatch.setattr(run.os, "sched_getaffinity", lambda process, cores=cores: range(cores), raising=False)
        run.run_pytest({run.UNIT: ["-k", "gae"]})
    options = [[text for text in arguments if text.startswith(("-n", "--dist"))] for arguments in calls]
    assert options == [[], ["-n3", "--dist=loadfile"], ["-n8", "--dist=loadfile"]]


def test_the_slowest_files_come_first():
    names = ["tests/test_a.py::a", "notebooks/b.ipynb::Cell 0", "tests/test_slow.py::a", "tests/test_slow.py::b"]
    items = [SimpleNamespace(nodeid=name) for name in names]
    plugin = module_from(ROOT / "tests" / "slowest_first.py")
    plugin.SLOWEST_FIRST = ("tests/test_slow.py", "notebooks/b.ipynb")
    plugin.pytest_collection_modifyitems(items)
    assert [item.nodeid for item in items] == [*names[2:], names[1], names[0]]


def test_the_slowest_files_are_there():
    names = module_from(ROOT / "tests" / "slowest_first.py").SLOWEST_FIRST
    assert [name for name in names if not (ROOT / name).exists()] == []


def test_a_failure_under_x_in_several_processes_is_no_interrupt(run, monkeypatch):
    """pytest -x gives the exit code of an interrupt then; the notebooks are compared all the same."""
    monkeypatch.setattr(run, "call", lambda arguments, **variables: 2)
    statuses, _ = run.run_pytest({run.UNIT: ["-x"], run.NOTEBOOKS: ["-x"]})
    assert statuses == {run.UNIT: 2, run.NOTEBOOKS: 2}
    assert run.overall(list(statuses.values())) == 2


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("stage", ["lint", "pytest"])
def test_a_signal_ends_the_whole_run(run, monkeypatch, number, stage):
    run.PYTHON, started, call = Path(sys.executable), [], run.call

    def interrupted(arguments, **variables):
        started.append(arguments[1])
        if stage == "lint" or arguments[1] == "pytest":
            return call(["-c", f"import os, sys; os.kill(os.getppid(), {int(number)}); sys.exit(2)"])
        return 0

    monkeypatch.setattr(run, "call", interrupted)
    assert run.command_test([]) != 0
    assert started == (["ruff"] if stage == "lint" else ["ruff", "mypy", "pytest"])


# ---- the browser -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ci", "outcome"), [("true", pytest.fail.Exception), ("", pytest.skip.Exception)])
def test_a_missing_browser_fails_only_under_ci(monkeypatch, ci, outcome):
    conftest = module_from(ROOT / "tests" / "conftest.py")
    monkeypatch.setenv("CI", ci)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(outcome, match="no chromium"):
        conftest.require_chromium()


@pytest.mark.parametrize(
    ("given", "spins"), [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)]
)
def test_threads_that_wait_do_not_hold_their_core(run, monkeypatch, given, spins):
    """In a child of run.py, and in a program that imports the library before torch."""
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert run.environment().get("GOMP_SPINCOUNT") == spins
    code = "import os, rlhf_lab; print(os.environ.get('GOMP_SPINCOUNT'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == str(spins)
