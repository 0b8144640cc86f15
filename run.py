#!/usr/bin/env python3
"""Set up rlhf_lab and run it, with nothing but Python 3.11 or newer.

    python run.py lab          open JupyterLab on the first chapter, or on a file or folder that follows
    python run.py demo         base model -> SFT -> reward model -> RLHF, about four minutes, with a report
    python run.py compare      finished runs of the demo side by side: python run.py compare RUN RUN
    python run.py test         lint, types, unit tests, doctests, notebooks and browser tests, on all cores
    python run.py notebooks    compare every notebook with its stored outputs; --write stores new ones
    python run.py bench NAME   run benchmarks/NAME.py
    python run.py release      write the notebooks without solutions and outputs to student/
    python run.py feedback     your judgements: show, export, import, merge a class
    python run.py real         write a public model to runs/real, for demo --model runs/real (93 MB from the index)
    python run.py pretrain | doctor    the other commands of `python -m rlhf_lab`

What follows the command is passed on: `python run.py demo --seed 1`, `python run.py test -k gae`. The first
call makes .venv beside this file and installs the versions of constraints.txt in it. Later calls start at
once.

Only the standard library is used here, and the file parses under older versions of Python so that those get a
sentence instead of a syntax error.
"""

import sys

if sys.version_info < (3, 11):
    sys.exit(
        f"rlhf_lab needs Python 3.11 or newer, and this is {sys.version.split()[0]} ({sys.executable}).\n"
        "Install a newer one (python.org, or your system's packages) and name it: "
        f"python3.12 run.py {' '.join(sys.argv[1:])}"
    )

import contextlib
import hashlib
import importlib.util
import json
import os
import re
import shutil
import signal
import ssl
import subprocess
import tempfile
import time
import tomllib
import urllib.request
import xml.etree.ElementTree as ElementTree
from collections import Counter, deque
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
STAMP = VENV / "rlhf_lab.json"
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
EXTRAS = {"test": "test", "notebooks": "test", "bench": "bench", "real": "real"}  # beyond the core
ADVICE = (  # what pip prints, and what it means
    (
        r"No space left|Errno 28",
        "The disk is full: the environment needs about 2 GB (6 GB with CUDA). Make room and run again.",
    ),
    (
        r"SSLError|CERTIFICATE_VERIFY",
        "A certificate was refused. Behind a company proxy set PIP_CERT to its certificate file.",
    ),
    (
        r"NewConnectionError|Max retries|name resolution|ProxyError|ConnectTimeout|timed out|getaddrinfo",
        "The package index could not be reached. Check the network or the proxy, then run the same command\n"
        "again: it goes on from here. Without a network, point PIP_FIND_LINKS at a folder of wheels.",
    ),
    (
        r"No matching distribution|Could not find a version",
        "A tested version has no build for this Python or this machine. Try 64-bit Python 3.11 to 3.13.",
    ),
    (
        r"No module named pip",
        "Delete the .venv folder and run again; on Debian or Ubuntu first: apt install python3-venv.",
    ),
)


def say(text):
    print(text, flush=True)


# ---- the environment ---------------------------------------------------------------------------------------


def requirement_hash():
    """A hash of what decides the installation: the requirements, the pins, this Python and this folder."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    needs = [project["project"][key] for key in ("dependencies", "optional-dependencies")]
    parts = [needs, project["build-system"], project["tool"]["setuptools"], pins, str(ROOT)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def read_stamp():
    """(hash, extras, the folder that the environment was made in); None, none and None without a stamp."""
    try:
        stamp = json.loads(STAMP.read_text(encoding="utf-8"))
        return stamp["hash"], set(stamp["extras"]), stamp.get("folder") or folder_of_venv()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None, set(), None


def folder_of_venv():
    """The folder that pyvenv.cfg says the environment was made in, for a stamp that does not; None if unknown."""
    try:
        made = re.search(r"(?m)^command = .* -m venv (?:--clear )?(.+)$", (VENV / "pyvenv.cfg").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return str(Path(made[1]).parent.resolve()) if made else None


def write_stamp(digest, extras):
    partial = STAMP.with_suffix(".tmp")
    stamp = {"hash": digest, "extras": sorted(extras), "folder": str(ROOT)}
    partial.write_text(json.dumps(stamp), encoding="utf-8")
    os.replace(partial, STAMP)


def make_venv():
    if VENV.is_dir() and any(VENV.iterdir()) and not (VENV / "pyvenv.cfg").exists():
        sys.exit(f"The environment goes to {VENV}, and what is there is none. Move it away, then run this again.")
    if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
        sys.exit(
            f"This Python ({sys.executable}) has no venv module, or no pip to put into a new environment.\n"
            "On Debian or Ubuntu: sudo apt install python3-venv. Elsewhere: the installer of python.org."
        )
    say(f"Making the environment {VENV}")
    base = getattr(sys, "_base_executable", sys.executable)  # this Python may be the one that is cleared
    command = [base, "-m", "venv", "--clear", str(VENV)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(
            f"The environment could not be made; Python said:\n{done.stdout}{done.stderr}\n"
            "Is the folder read-only, the disk full, or a package missing (apt install python3-venv)?"
        )


def pip(*arguments, quiet=False):
    """Run pip in the environment, show what it downloads, and return (exit status, its last lines)."""
    command = [str(PYTHON), "-m", "pip", "--disable-pip-version-check", "install", "--progress-bar=off"]
    tail = deque(maxlen=20)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "encoding": "utf-8"}
    streams["errors"] = "replace"
    with subprocess.Popen([*command, *arguments], cwd=ROOT, env=environment(), **streams) as process:
        for line in process.stdout:
            tail.append(line.rstrip())
            if not quiet:
                progress(line)
    return process.returncode, "\n".join(tail)


def progress(line):
    """Show what matters to somebody who waits: the larger downloads and the unpacking."""
    download = re.match(r"\s+Downloading (\S+) \((\d[\d.]* MB)\)", line)
    if download:
        say(f"  {download[1].rsplit('/', 1)[-1].split('-cp')[0].split('-py')[0]} ({download[2]})")
    elif line.startswith("Installing collected"):
        say(f"  unpacking {line.count(',') + 1} packages, which takes a minute or two")


def pinned(name):
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    return re.search(rf"(?m)^{re.escape(name)}==(\S+)", pins)[1]


def has_nvidia_gpu():
    program = shutil.which("nvidia-smi")
    if program is None:
        return False
    try:
        return "GPU" in subprocess.run([program, "-L"], capture_output=True, text=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return False


def reachable(address, seconds=5):
    context = ssl.create_default_context(cafile=os.environ.get("PIP_CERT") or None)
    try:
        with urllib.request.urlopen(address, timeout=seconds, context=context):
            return True
    except (OSError, ValueError):
        return False


def installed_torch():
    code = "import importlib.metadata as m; print(m.version('torch'))"
    return subprocess.run([str(PYTHON), "-c", code], capture_output=True, text=True).stdout.strip()


def install_torch():
    """Take the CPU build on Linux without an NVIDIA GPU: 200 MB, where the default build needs 3 GB.

    macOS and Windows get the CPU build from the default index anyway. What is not settled here is left to the
    installation of the whole, which takes the default build.
    """
    pin = pinned("torch")
    if installed_torch().split("+")[0] == pin:
        return
    gpu = has_nvidia_gpu()
    if sys.platform == "win32" and gpu:
        say("There is an NVIDIA GPU; the default build for Windows does not use it (pytorch.org has one).")
    if sys.platform != "linux" or gpu:
        return
    wanted = "torch==" + pin
    if pip("--no-index", "--no-deps", wanted, quiet=True)[0] == 0:
        say(f"  torch {installed_torch()} from a local wheel")
        return
    from_index = ("--no-deps", "--index-url", TORCH_CPU_INDEX, wanted)
    if not reachable(TORCH_CPU_INDEX + "/torch/") or pip(*from_index)[0]:
        say("PyTorch's CPU builds are out of reach. Taking the default build, about 3 GB with CUDA.")


def ensure_environment(extra):
    """Install what a command needs, once. Returns in milliseconds when the stamp says that it is there."""
    digest, (stamped, extras, folder) = requirement_hash(), read_stamp()
    wanted = {extra} - {None}
    if PYTHON.exists() and stamped == digest and wanted <= extras:
        return
    start = time.monotonic()
    # The programs in an environment name the folder that they were installed in. A link means that it is elsewhere.
    # Only a stamp that names another folder is a reason to clear it: without a name nobody knows.
    moved = folder is not None and folder != str(ROOT) and not VENV.is_symlink()
    if moved:
        say(f"The environment was made for {folder}, and works only there; making it again.")
    if moved or not PYTHON.exists():
        make_venv()
    if stamped is None or moved:
        say("Installing the tested versions: some 500 MB to download, which takes a few minutes, once.")
    else:
        say("Bringing the environment up to date with constraints.txt and pyproject.toml.")
    wanted |= extras if stamped == digest else set()
    install_torch()
    target = f"{ROOT}[{','.join(sorted(wanted))}]" if wanted else str(ROOT)
    pins = ("-c", str(ROOT / "constraints.txt"))
    # setuptools first and no build isolation: the build then needs no second download
    status, tail = pip(*pins, "setuptools", quiet=True)
    if status == 0:
        status, tail = pip(*pins, "--no-build-isolation", "-e", target)
    if status:
        advice = next((text for sign, text in ADVICE if re.search(sign, tail)), "The lines above say why.")
        sys.exit(f"{tail}\n\nThe installation did not finish (pip returned {status}).\n{advice}")
    write_stamp(digest, wanted)
    later = [f"`{name}`" for name, need in EXTRAS.items() if need not in wanted]
    more = f" (the first use of {', '.join(later)} installs a little more)" if later else ""
    say(f"Ready after {time.monotonic() - start:.0f} s; from now on this step takes no time{more}.\n")


# ---- running -----------------------------------------------------------------------------------------------


def environment(**extra):
    """The variables of every child: this environment first on the path, same hash seed, few threads.

    The models are small, so more than four threads cost more in waiting than they save. Those that wait spin for a
    moment and then sleep, as `rlhf_lab/__init__.py` says why.
    """
    env = dict(os.environ)
    env.pop("PYTHONHOME", None)
    env["VIRTUAL_ENV"] = str(VENV)
    env["PATH"] = str(PYTHON.parent) + os.pathsep + env.get("PATH", "")
    env["PYTHONUTF8"] = "1"
    env["PYTHONHASHSEED"] = "0"
    if "PYTHONIOENCODING" in env:  # what it cannot show is written as an escape
        env["PYTHONIOENCODING"] = env["PYTHONIOENCODING"].split(":")[0] + ":backslashreplace"
    env.setdefault("OMP_NUM_THREADS", str(min(4, os.cpu_count() or 1)))
    if "OMP_WAIT_POLICY" not in env:
        env.setdefault("GOMP_SPINCOUNT", "1000")
    env.update(extra)
    return env


interrupts = []  # the signals that arrived while a child ran


def call(arguments, **extra):
    """Run the environment's Python and return its exit code; an interrupt is the child's to handle."""
    # Ctrl-C reaches the child too, which saves what it has; this process waits for that. A handler that
    # only takes a note, because the child would inherit SIG_IGN.
    interrupt = signal.signal(signal.SIGINT, lambda number, frame: interrupts.append(number))
    process = subprocess.Popen([str(PYTHON), *arguments], cwd=ROOT, env=environment(**extra))
    terminate = signal.signal(signal.SIGTERM, lambda number, frame: (interrupts.append(number), process.terminate()))
    try:
        status = process.wait()
    finally:
        signal.signal(signal.SIGINT, interrupt)
        signal.signal(signal.SIGTERM, terminate)
    return 128 - status if status < 0 else status


TEST_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
}
UNIT, NOTEBOOKS = "unit tests and doctests", "notebooks"
CHECKS = {"lint": ("ruff", "check", "."), "types": ("mypy",)}
# One process of pytest a core, a file at a time: the cells of a notebook share a kernel.
BY_FILE = ("--dist=loadfile", "--no-loadscope-reorder", "-ptests.slowest_first")
MOST_WORKERS = 8  # each holds PyTorch, 0.8 GB; and more would wait for the longest file
ONE_PROCESS = ("-n", "--numprocesses", "--dist", "--pdb", "--trace", "-s", "--capture=no")  # the user's own wish


def workers():
    """The cores that this process may use, at most eight."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MOST_WORKERS)


def in_parallel(arguments):
    """The options that share the files between the cores; none on one core, and none against what the user wants."""
    refused = any(text.startswith(ONE_PROCESS) or text.endswith("no:xdist") for text in arguments)
    return [] if refused or workers() == 1 else [f"-n{workers()}", *BY_FILE]


def pytest_stages(arguments):
    """The pytest runs that the arguments ask for. Paths choose the stage, options go to both."""

    def is_path(text):
        return not text.startswith("-") and (ROOT / text.split("::")[0]).exists()

    paths = [text for text in arguments if is_path(text)]
    options = [text for text in arguments if not is_path(text)]
    books = [path for path in paths if ".ipynb" in path or path.strip("/\\.") == "notebooks"]
    others = [path for path in paths if path not in books]
    if not paths:
        books, others = ["notebooks"], ["tests", "rlhf_lab"]
    stages = {}
    if others:
        stages[UNIT] = options + others
    if books and any((ROOT / "notebooks").glob("*.ipynb")):
        stages[NOTEBOOKS] = options + ["--nbval"] + books
    return stages


def count_outcomes(report):
    """Passed, failed, ... from a JUnit file of pytest; all zero when it is missing."""
    counts = Counter()
    try:
        suites = list(ElementTree.parse(report).getroot().iter("testsuite"))
    except (OSError, ElementTree.ParseError):
        return counts
    for suite in suites:
        failed, errors, skipped = (int(suite.get(name)) for name in ("failures", "errors", "skipped"))
        counts += Counter(failed=failed, errors=errors, skipped=skipped)
        counts += Counter(passed=int(suite.get("tests")) - failed - errors - skipped)
    return counts


def closing_line(counts, seconds):
    names = ("failed", "passed", "skipped", "errors")
    outcome = ", ".join(f"{counts[name]} {name}" for name in names if counts[name]) or "no tests ran"
    return f" {outcome} in {seconds:.2f}s ".center(100, "=")


def run_pytest(stages):
    """Run the stages; returns their exit codes and the counts over all of them."""
    statuses, counts = {}, Counter()
    for stage, arguments in stages.items():
        arguments = [*in_parallel(arguments), *arguments]
        say(f"\n---- {stage}: pytest {' '.join(arguments)}")
        # Figures of the unit tests need no window; a notebook's kernel has a backend of its own.
        backend = {"MPLBACKEND": "agg"} if stage == UNIT else {}
        with tempfile.TemporaryDirectory() as folder:
            report = os.path.join(folder, "report.xml")
            arguments = ["-m", "pytest", "-q", "--junit-xml=" + report, *arguments]
            statuses[stage] = call(arguments, **TEST_ENVIRONMENT, **backend)
            counts += count_outcomes(report)
        if interrupts:  # not by the exit code: pytest -x gives the same in several processes
            break
    return statuses, counts


def overall(statuses):
    """One exit code: 5 (nothing collected) counts only when every stage collected nothing."""
    bad = [status for status in statuses if status not in (0, 5)]
    if bad:
        return bad[0]
    return 0 if 0 in statuses or not statuses else 5


def command_test(arguments):
    start, checks = time.monotonic(), {}
    for name, command in CHECKS.items():
        say(f"---- {name}: {' '.join(command)}")
        checks[name] = call(["-m", *command])
        if interrupts:
            return 130
    statuses, counts = run_pytest(pytest_stages(arguments))
    say("")
    for stage, status in [*checks.items(), *statuses.items()]:
        word = {0: "ok", 5: "nothing selected"}.get(status, f"FAILED (exit code {status})")
        say(f"{stage:26} {word}")
    # a check counts as a test only when it fails, so that the line never says all is well when it is not
    failed = Counter(failed=sum(status != 0 for status in checks.values()))
    say(closing_line(counts + failed, time.monotonic() - start))
    return overall(list(statuses.values())) or max(checks.values())


def command_notebooks(arguments):
    names = [text for text in arguments if text != "--write"]
    missing = [name for name in names if name.endswith(".ipynb") and not (ROOT / name).exists()]
    if missing:
        say(f"There is no {', '.join(missing)} (seen from {ROOT}).")
        return 2
    if "--write" in arguments:
        books = names or sorted(str(path) for path in (ROOT / "notebooks").glob("*.ipynb"))
        return call(["-m", "rlhf_lab.classroom.course", *books], OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")
    start = time.monotonic()
    stages = pytest_stages(names if any(".ipynb" in name for name in names) else ["notebooks", *names])
    statuses, counts = run_pytest(stages)
    say(closing_line(counts, time.monotonic() - start))
    return overall(list(statuses.values()))


def command_bench(arguments):
    names = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py") if path.stem != "rows")
    if not arguments or arguments[0] not in names:
        say(f"usage: python run.py bench NAME [options]\nNAME is one of: {', '.join(names) or '(none yet)'}")
        return 2
    return call([str(ROOT / "benchmarks" / (arguments[0] + ".py")), *arguments[1:]])


NEWS = VENV / "etc" / "jupyter" / "labconfig" / "default_setting_overrides.json"
WITH_VALUE = re.compile(  # options of JupyterLab whose value may follow as an argument of its own
    r"--(\w+\.\w+|log-level|config|ip|port|port-retries|sock|sock-mode|transport|keyfile|certfile|client-ca"
    r"|notebook-dir|preferred-dir|browser|pylab|gateway-url|app-dir)"
)


def silence_news():
    """A default of this environment against JupyterLab's question about news; what a user sets is stronger."""
    if not NEWS.exists():
        with contextlib.suppress(OSError):  # an environment that is shared and read-only
            NEWS.parent.mkdir(parents=True, exist_ok=True)
            setting = {"@jupyterlab/apputils-extension:notification": {"fetchNews": "false"}}
            NEWS.write_text(json.dumps(setting), encoding="utf-8")


def command_lab(arguments):
    first = ROOT / "notebooks" / "00_the_whole_story.ipynb"
    silence_news()
    pairs = zip(["", *arguments], arguments, strict=False)
    named = [text for before, text in pairs if not text.startswith("-") and not WITH_VALUE.fullmatch(before)]
    elsewhere = any(text.startswith(("--notebook-dir", "--ServerApp.root_dir")) for text in arguments)
    chosen = [] if named or elsewhere else [str(first if first.exists() else ROOT / "notebooks")]
    return call(["-m", "jupyterlab", *arguments, *chosen])


def passed_on(command):
    return lambda arguments: call(["-m", "rlhf_lab", command, *arguments])


COMMANDS = {"lab": command_lab, "test": command_test, "notebooks": command_notebooks, "bench": command_bench}
COMMANDS.update(
    (name, passed_on(name)) for name in ("demo", "compare", "real", "release", "feedback", "pretrain", "doctor")
)


def main(arguments):
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        say(__doc__)
        return 0 if arguments else 2
    command, rest = arguments[0], arguments[1:]
    if command not in COMMANDS:
        say(f"There is no command {command!r}. Choose one of: {', '.join(COMMANDS)} (or --help)")
        return 2
    try:
        ensure_environment(EXTRAS.get(command))
    except OSError as error:
        sys.exit(f"The set-up failed: {error}\nIs the folder {ROOT} writable, with room on the disk?")
    return COMMANDS[command](rest)


if __name__ == "__main__":
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a path may hold what the terminal cannot show
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
