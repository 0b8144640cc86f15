"""metrics.json: what a run found as strict JSON, and the schema that says what each field means."""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf_lab.classroom.summary import ROWS, RunCard, RunSummary
from rlhf_lab.evaluation.changes import Change
from rlhf_lab.evaluation.policies import evaluate_replies
from rlhf_lab.maths.intervals import Ratio
from rlhf_lab.training.files import write_text_atomic


def _object(description: str, properties: dict[str, Any]) -> dict[str, Any]:
    """Schema of an object that holds all of `properties` and nothing else."""
    schema = {"type": "object", "description": description, "properties": properties}
    return schema | {"required": list(properties), "additionalProperties": False}


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}


NUMBER = {"type": "number"}
NUMBER_OR_NULL = {"type": ["number", "null"]}
COUNT = {"type": "integer", "minimum": 1}
INTERVAL = {"$ref": "#/$defs/interval"}
QUANTITIES = {
    name: _or_null(INTERVAL) | {"description": f"{label}; unit: {'share in [0, 1]' if unit == '%' else unit or 1}"}
    for name, (label, unit, _, _) in ROWS.items()
}
ORACLE = tuple(evaluate_replies([]))
SKILL = _object("one skill", {name: QUANTITIES[name] for name in ORACLE})
MODEL = QUANTITIES | {"by_skill": {"type": "object", "additionalProperties": SKILL}}
REWARD_MODEL = {
    "accuracy": NUMBER | {"description": "share of held-out labels it agrees with"},
    "accuracy_interval": INTERVAL,
    "expected_accuracy": NUMBER_OR_NULL | {"description": "E[p(rater agrees with its choice)]"},
    "rater_agreement": NUMBER_OR_NULL | {"description": "E[p^2 + (1 - p)^2]; two raters on the same pair"},
    "ceiling": NUMBER_OR_NULL | {"description": "E[max(p, 1 - p)]; null where the raters' p is unknown"},
    "pairs": COUNT,
}
TEXT = {"type": "string"}
CHANGE = {
    "quantity": TEXT | {"description": "one of a model's"},
    "skill": TEXT | {"description": "the skill it is about; empty for all prompts"},
    "before": NUMBER,
    "after": NUMBER,
    "interval": INTERVAL,
    "ratio": {"type": "boolean", "description": "after / before, as for perplexities, and not after - before"},
    "good": {"enum": ["higher", "lower", "neither"]},
    "verdict": {"enum": ["better", "worse", "changed", "INCONCLUSIVE"]},
    "stands": {"type": "boolean", "description": "also after Holm's procedure over all rows of the comparison"},
}
CARD = {f.name: TEXT for f in dataclasses.fields(RunCard)} | {"commit": {"type": ["string", "null"]}}
CARD |= {"seed": {"type": "integer"}, "labels": {"type": "integer"}, "prompts": {"type": "integer"}}
VERSION = 2
RUN = {
    "schema": {
        "const": VERSION,
        "description": "of this file; 1 lacked schema, names, changes, run, megabytes",
    },
    "models": {
        "type": "object",
        "description": "by name, in the order in which they were made",
        "additionalProperties": {"$ref": "#/$defs/model"},
    },
    "names": {"type": "object", "description": "model -> what it is called", "additionalProperties": TEXT},
    "differences": {
        "type": "object",
        "description": "paired differences of true rewards, row by row on the same prompts",
        "additionalProperties": INTERVAL,
    },
    "changes": {
        "type": "object",
        "description": "by label as in differences: every quantity, paired row by row (perplexities by document)",
        "additionalProperties": {"type": "array", "items": _object("one quantity", CHANGE)},
    },
    "reward_model": _or_null(_object("on held-out pairs", REWARD_MODEL)),
    "opening": {"type": "string", "description": "what the report opens with, from judgements alone"},
    "run": _or_null(_object("what one must know to judge the run, and to repeat it", CARD)),
    "config": {"type": "object", "description": "every choice of the run"},
    "seconds": {"type": "object", "description": "stage -> seconds", "additionalProperties": NUMBER},
    "megabytes": {
        "type": "object",
        "description": "stage -> peak memory in MB, of the GPU where it ran on one; null: not known",
        "additionalProperties": NUMBER_OR_NULL,
    },
}
METRICS_SCHEMA = _object("What a run of python run.py demo measured.", RUN) | {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "$defs": {
        "interval": _object(
            "95 % interval; low and high are null where the data say nothing about the spread",
            {"mean": NUMBER, "low": NUMBER_OR_NULL, "high": NUMBER_OR_NULL, "count": COUNT},
        ),
        "model": _object("one model on held-out prompts; null: not known (no town prompt, no text)", MODEL),
    },
}
"""JSON Schema (draft 2020-12) of metrics.json: schema, models, names, differences, changes, reward_model, opening, run,
config, seconds, megabytes.

Every quantity of a model is an interval `{"mean", "low", "high", "count"}` or null; shares are in [0, 1],
lengths in tokens, KL in nats per reply. Each field carries its description.
"""


def metrics_dict(summary: RunSummary) -> dict:
    """The run as strict JSON data, as `METRICS_SCHEMA` says: what is not finite or not known is None."""
    quality = summary.reward_model
    numbers = quality and {
        "accuracy": quality.accuracy.mean,
        "accuracy_interval": quality.accuracy,
        "expected_accuracy": quality.expected_accuracy,
        "rater_agreement": quality.rater_agreement,
        "ceiling": quality.ceiling,
        "pairs": len(quality.agreed),
    }
    changes = {summary.label(contrast): list(map(_change, contrast.changes)) for contrast in summary.contrasts}
    names = {model: summary.name(model) for model in summary.reports}
    run = {"schema": VERSION, "models": summary.reports, "names": names}
    run |= {"differences": summary.differences, "changes": changes, "reward_model": numbers}
    run |= {"opening": summary.opening, "run": summary.card}
    return plain(run | {"config": summary.config, "seconds": summary.seconds, "megabytes": summary.megabytes})


def _change(change: Change) -> dict[str, Any]:
    ratio = isinstance(change.interval, Ratio)
    known = {name: getattr(change, name) for name in CHANGE if name != "ratio"}
    return known | {"ratio": ratio}


def write_metrics(path: str | Path, summary: RunSummary) -> None:
    """metrics.json at `path`, atomically."""
    write_text_atomic(path, json.dumps(metrics_dict(summary), indent=2, allow_nan=False) + "\n")


def plain(value: Any) -> Any:
    """The same with nothing but JSON's types: what is not finite becomes None, what JSON does not know its text."""
    if dataclasses.is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return str(value)
