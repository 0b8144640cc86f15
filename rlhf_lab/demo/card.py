"""What one must know to judge a run, and to repeat it: gathered when it ends."""

import platform
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

import torch
import transformers

from rlhf_lab import __version__
from rlhf_lab.classroom.summary import RunCard
from rlhf_lab.demo.task import DemoConfig

ROOT = Path(__file__).parents[2]
NOT_REPEATED = ("out", "resume")  # where it was written, and that it was stopped


def commit_of(folder: Path) -> str | None:
    """The commit of a checkout, read from its files; None where there is none or the files are of another kind.

    No program is started, so it works without git, and it says nothing of changes that were not committed.
    """
    try:
        place = folder / ".git"
        if place.is_file():  # a second working tree: the file names the folder
            place = folder / place.read_text(encoding="utf-8").removeprefix("gitdir:").strip()
        head = (place / "HEAD").read_text(encoding="utf-8").strip()
        if not head.startswith("ref:"):
            return _hash(head)
        name = head.removeprefix("ref:").strip()
        common = (
            place / (place / "commondir").read_text(encoding="utf-8").strip() if _has(place, "commondir") else place
        )
        for home in (place, common):
            if _has(home, name):
                return _hash((home / name).read_text(encoding="utf-8").strip())
        packed = (common / "packed-refs").read_text(encoding="utf-8").splitlines()
        return next((_hash(line.split()[0]) for line in packed if line.endswith(f" {name}")), None)
    except (OSError, ValueError, IndexError):
        return None


def _has(folder: Path, name: str) -> bool:
    return (folder / name).is_file()


def _hash(text: str) -> str | None:
    return text if len(text) in (40, 64) and set(text) <= set("0123456789abcdef") else None


def repeated(command: str, given: Mapping[str, object], defaults: Mapping[str, object]) -> str:
    """The command line that makes the same run again, from the options that are not the defaults.

    Example:
        >>> repeated("demo", {"seed": 3, "skip_bad": True, "out": "x"}, {"seed": 0, "skip_bad": False, "out": None})
        'python run.py demo --seed 3 --skip-bad'
    """
    words = ["python run.py", command]
    for name, value in given.items():
        if name not in NOT_REPEATED and value != defaults.get(name):
            words.append(f"--{name.replace('_', '-')}")
            if value is not True:
                words.append(_quoted(str(value)))
    return " ".join(words)


def _quoted(text: str) -> str:
    plain = text and all(c.isalnum() or c in "-_./:@%+=,\\" for c in text)
    return text if plain else '"' + text.replace('"', '\\"') + '"'


def run_card(
    config: DemoConfig, labels: int, prompts: int, device: str, precision: torch.dtype, command: str
) -> RunCard:
    """The card of a run that ends now.

    Args:
        config: of the run.
        labels: records that the reward model learned from.
        prompts: held-out prompts that the models were compared on.
        device, precision: where and in what arithmetic the models ran.
        command: that repeats it, "" where there is none.
    """
    threads = torch.get_num_threads()
    return RunCard(
        date=datetime.now().astimezone().isoformat(timespec="seconds"),
        version=__version__,
        commit=commit_of(ROOT),
        software=(
            f"Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}"
        ),
        device=f"{device}, {str(precision).removeprefix('torch.')}, {threads} thread{'s' * (threads != 1)}",
        seed=config.seed,
        model=str(config.model),
        labels=labels,
        prompts=prompts,
        command=command,
    )
