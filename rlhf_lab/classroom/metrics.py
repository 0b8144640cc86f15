"""metrics.json: what a run found as strict JSON, and the schema that says what each field means."""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf_lab.classroom.summary import MODEL_NAMES, ROWS, RunSummary
from rlhf_lab.evaluation.policies import ModelReport, evaluate_replies
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
RUN = {
    "models": _object("by stage", {name: {"$ref": "#/$defs/model"} for name in MODEL_NAMES}),
    "differences": {
        "type": "object",
        "description": "paired differences of true rewards, row by row on the same prompts",
        "additionalProperties": INTERVAL,
    },
    "reward_model": _or_null(_object("on held-out pairs", REWARD_MODEL)),
    "opening": {"type": "string", "description": "what the report opens with, from judgements alone"},
    "config": {"type": "object", "description": "every choice of the run"},
    "seconds": {"type": "object", "description": "stage -> seconds", "additionalProperties": NUMBER},
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
"""JSON Schema (draft 2020-12) of metrics.json: models, differences, reward_model, opening, config,
seconds.

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
    models = {name: summary.reports.get(name, ModelReport()) for name in MODEL_NAMES}
    run = {"models": models, "differences": summary.differences, "reward_model": numbers}
    return plain(run | {"opening": summary.opening, "config": summary.config, "seconds": summary.seconds})


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
