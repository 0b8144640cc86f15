"""What is installed and what works, for somebody who asks why something does not."""

import platform

import torch
import transformers

from rlhf_lab import __version__
from rlhf_lab.models.language_model import load_language_model


def findings() -> list[str]:
    """Lines that say which versions run here, on what, and that the shipped model loads.

    Raises:
        ModelError: it does not load; the message says why.
    """
    threads = torch.get_num_threads()
    lm = load_language_model("tiny")
    return [
        f"rlhf_lab {__version__}, Python {platform.python_version()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}",
        f"{threads} thread{'s' * (threads != 1)}; CUDA {'' if torch.cuda.is_available() else 'not '}available",
        f"the shipped model loads: {lm.model.num_parameters():,} parameters",
    ]
