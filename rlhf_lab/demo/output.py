"""The folder of a demo run: opened, gone on with, and taken back."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from rlhf_lab.demo.task import DemoConfig
from rlhf_lab.models.language_model import LanguageModel
from rlhf_lab.training.files import fingerprint, write_text_atomic
from rlhf_lab.training.folders import OutputError, RunFolder, checksum, newest_folder, next_folder, read_mark

KIND = "demo"  # of folder
ELSEWHERE = "what the run was made from is not known any more, so name another folder with --out"


def open_output(out: str | Path | None, config: DemoConfig, resume: bool) -> RunFolder:
    """The folder of this run, with the config in it; nothing that this run did not write is ever overwritten.

    Args:
        out: the folder; None takes the next free runs/demo-N, or with `resume` the newest one.
        config: kept as config.json; `--resume` refuses another one.
        resume: go on with what is there.

    Raises:
        OutputError: another run or foreign files are there, or there is nothing to resume.
    """
    if resume:
        return _resumed(newest_folder(KIND) if out is None else Path(out), config)
    folder = next_folder(KIND) if out is None else RunFolder(out, KIND)
    if not folder.made:
        raise OutputError(
            f"{out} holds an earlier run; add --resume to go on with it, or name another folder with --out"
        )
    with taken_back_if_it_fails(folder), folder.writing("config.json") as path:
        write_text_atomic(path, _as_json(config))
    return folder


def _as_json(config: DemoConfig) -> str:
    return json.dumps(asdict(config), indent=2) + "\n"


def _resumed(out: Path, config: DemoConfig) -> RunFolder:
    if read_mark(out) is None:
        raise OutputError(f"{out} holds no run to resume; leave out --resume, or name the folder with --out")
    folder = RunFolder(out, KIND)
    if folder.files.get("config.json") is None:
        raise OutputError(f"{out} is a run that never began; delete it, and leave out --resume")
    if not folder.has("config.json", ELSEWHERE):
        raise OutputError(f"{out} lacks its config.json; {ELSEWHERE}")
    there, here = json.loads((out / "config.json").read_text()), json.loads(_as_json(config))
    if there != here:
        raise OutputError(
            f"{out} is a run with other options ({_first_difference(there, here)}); give the same, or another --out"
        )
    return folder


def _first_difference(there: dict, here: dict, before: str = "") -> str:
    name = next(name for name in there | here if there.get(name) != here.get(name))
    old, new = there.get(name), here.get(name)
    if isinstance(old, dict) and isinstance(new, dict):
        return _first_difference(old, new, f"{before}{name}.")
    return f"{before}{name}: {old!r} there, {new!r} here"


def check_inputs(folder: RunFolder, config: DemoConfig, base: LanguageModel) -> None:
    """Note what the run is made from besides the config, or refuse to go on with something else.

    Raises:
        OutputError: the feedback file, the model or the precision is another one than at the beginning.
    """
    vocabulary = sorted(base.tokenizer.get_vocab().items()), base.tokenizer.chat_template
    here = {
        "the feedback file": None if config.feedback is None else checksum(Path(config.feedback)),
        "the model": fingerprint(base.model),
        "the tokenizer": fingerprint(vocabulary),
        "the precision": str(base.precision),
    }
    if folder.files.get("inputs.json") is None:
        with folder.writing("inputs.json") as path:
            write_text_atomic(path, json.dumps(here, indent=2) + "\n")
    if not folder.has("inputs.json", ELSEWHERE):
        raise OutputError(f"{folder.path} lacks its inputs.json; {ELSEWHERE}")
    there = json.loads((folder.path / "inputs.json").read_text())
    if different := [name for name in here if there[name] != here[name]]:
        raise OutputError(
            f"{folder.path} was begun with other inputs: {' and '.join(different)} changed; "
            "give the same as then, or another --out"
        )


@contextmanager
def taken_back_if_it_fails(folder: RunFolder) -> Iterator[None]:
    """Take a new folder away when the run fails before its first stage: no later `--resume` takes it for a run."""
    try:
        yield
    except BaseException:
        if folder.made:
            folder.take_back()
        raise
