"""What is installed and what works, for somebody who asks why something does not."""

import platform
import re
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import torch
import transformers

from rlhf_lab import __version__
from rlhf_lab.models.language_model import load_language_model

PACKAGE = Path(__file__).resolve().parent
PROGRAMS = ("jupyter-lab", "jupyter", "pip")


def findings() -> list[str]:
    """Lines that say which versions run here, on what, and that the shipped model loads; then every problem.

    Raises:
        ModelError: it does not load; the message says why.
    """
    threads = torch.get_num_threads()
    lm = load_language_model("tiny")
    return [
        f"rlhf_lab {__version__}, Python {platform.python_version()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}",
        f"{threads} thread{'s' * (threads != 1)}; CUDA {'' if torch.cuda.is_available() else 'not '}available",
        f"rlhf_lab is read from {PACKAGE}, the environment is {sys.prefix}",
        f"the shipped model loads: {lm.model.num_parameters():,} parameters",
        *(f"problem: {problem}" for problem in problems()),
    ]


def problems() -> list[str]:
    """What is wrong although everything loads, each with a remedy; empty where all is well."""
    found = (other_checkout(), moved_environment())
    return [problem for problem in found if problem]


def other_checkout() -> str:
    """A notebook, which does not start in this folder, may import another rlhf_lab than this one, or none."""
    ask = "import importlib.util as u; spec = u.find_spec('rlhf_lab'); print(spec.origin if spec else '')"
    with tempfile.TemporaryDirectory() as elsewhere:
        done = subprocess.run([sys.executable, "-c", ask], cwd=elsewhere, capture_output=True, text=True)
    where = done.stdout.strip()
    if where and Path(where).resolve().parent == PACKAGE:
        return ""
    seen = f"find the rlhf_lab of {Path(where).parent}" if where else "find no rlhf_lab"
    return (
        f"notebooks {seen}, and this one is {PACKAGE}; install it: {sys.executable} -m pip install -e {PACKAGE.parent}"
    )


def moved_environment() -> str:
    """The programs of an environment name its Python by a full path, which stays the old one when it is moved."""
    scripts = Path(sysconfig.get_path("scripts"))
    if sys.prefix == sys.base_prefix:
        return ""  # no environment, so nothing that was moved
    for program in filter(Path.is_file, (scripts / name for name in PROGRAMS)):
        named = re.search(rb"(/[^\r\n'\"]*)/python[\d.]*", program.read_bytes()[:500])
        if named and Path(named[1].decode(errors="replace")).resolve() != scripts.resolve():
            return (
                f"the environment {sys.prefix} was moved or copied: {program.name} runs {named[0].decode()}; "
                "delete the folder of the environment and make it again, as python run.py does"
            )
    return ""
