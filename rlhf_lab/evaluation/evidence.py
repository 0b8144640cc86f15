"""What models are compared by, value by value: replies to the same prompts, and the likelihood of the same documents.

A table of means cannot be paired, neither between two models nor between two runs; these values can. `changes` makes
intervals of them. The files are JSON Lines, ASCII-escaped: replies.jsonl has a line a prompt, documents.jsonl a line a
held-out document.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf_lab.evaluation.policies import ORACLE_PARTS, rollout_verdicts
from rlhf_lab.models.tokens import Rollout
from rlhf_lab.records import Conversation, as_conversation
from rlhf_lab.training.configs import real_number, require, whole_number
from rlhf_lab.training.files import write_text_atomic
from rlhf_lab.worlds.town.oracle import Verdict
from rlhf_lab.worlds.town.questions import recognise

Values = Mapping[str, Sequence[float | None]]  # quantity -> [N] values, None where it is not known
COUNTED = ("well_formed", "over_refusal", "rude", "polite")  # yes or no
OF_REPLIES = ("true_reward", *ORACLE_PARTS, "reward_score", "length", "ended", *COUNTED)


class EvidenceError(ValueError):
    """A file of evidence cannot be used; the message says why and what to do."""


@dataclass(frozen=True)
class Documents:
    """Held-out documents and how likely each model finds them.

    Attributes:
        texts: [D] the documents.
        tokens: [D] tokens that the likelihood is over.
        nats: model -> [D] negative log-likelihood of each document.
    """

    texts: Sequence[str]
    tokens: Sequence[int]
    nats: Mapping[str, Sequence[float]]

    def __post_init__(self) -> None:
        for name, column in {"tokens": self.tokens, **self.nats}.items():
            _one_each(name, column, len(self.texts))


@dataclass(frozen=True)
class Evidence:
    """What some models replied to the same prompts, and what each reply is worth.

    Attributes:
        prompts: [N] the prompts.
        skills: [N] the town's name for what is asked, "" for a prompt that is not the town's.
        replies: model -> [N] texts.
        values: model -> quantity (of `OF_REPLIES`) -> [N] values; shares as 0 and 1.
        documents: name of a perplexity ("perplexity", "perplexity_bad") -> documents.
    """

    prompts: Sequence[Conversation]
    skills: Sequence[str]
    replies: Mapping[str, Sequence[str]]
    values: Mapping[str, Values]
    documents: Mapping[str, Documents] = field(default_factory=dict)

    def __post_init__(self) -> None:
        columns: dict[str, Sequence] = {"skills": self.skills, **self.replies}
        columns |= {f"{model}.{name}": c for model, values in self.values.items() for name, c in values.items()}
        for name, column in columns.items():
            _one_each(name, column, len(self.prompts))
        require(set(self.values) == set(self.replies), "values", sorted(self.values), f"of {sorted(self.replies)}")


def _one_each(name: str, column: Sequence, count: int) -> None:
    require(len(column) == count, f"the number of values of {name}", len(column), f"{count}, one for each")


def reply_values(rollout: Rollout, scores: Sequence[float] | None = None) -> dict[str, list[float | None]]:
    """What each reply is worth: quantity of `OF_REPLIES` -> [N]; without scores there is no reward_score.

    Args:
        rollout: one reply to each prompt.
        scores: [N] of a reward model.
    """
    verdicts = rollout_verdicts(rollout)
    parts = {part: [None if v is None else float(getattr(v, part)) for v in verdicts] for part in ORACLE_PARTS}
    values: dict[str, list[float | None]] = {"true_reward": [None if v is None else v.reward for v in verdicts]}
    values |= parts
    if scores is not None:
        values["reward_score"] = [float(score) for score in scores]
    values["length"] = [float(count) for count in rollout.batch.response_lengths.tolist()]
    values["ended"] = [float(ended) for ended in rollout.ended.tolist()]
    return values | {name: [_counted(v, name) for v in verdicts] for name in COUNTED}


def _counted(verdict: Verdict | None, name: str) -> float | None:
    if verdict is None:
        return None
    found = verdict.tone == name if name in ("rude", "polite") else getattr(verdict, name)
    return None if found is None else float(found)


def collect_evidence(
    rollouts: Mapping[str, Rollout],
    scores: Mapping[str, Sequence[float]] | None = None,
    documents: Mapping[str, Documents] | None = None,
) -> Evidence:
    """The evidence of several models' replies to the same prompts in the same order.

    Args:
        rollouts: model -> its replies.
        scores: model -> [N] scores of a reward model.
        documents: as in `Evidence`.

    Raises:
        ValueError: no rollouts, or rollouts to other prompts.
    """
    prompts = tuple(next(iter(rollouts.values())).conversations) if rollouts else ()
    other = [name for name, rollout in rollouts.items() if tuple(rollout.conversations) != prompts]
    require(bool(rollouts) and not other, "rollouts", f"other prompts for {other}", "replies to the same prompts")
    skills = [found.skill if (found := recognise(prompt)) else "" for prompt in prompts]
    replies = {name: tuple(rollout.texts) for name, rollout in rollouts.items()}
    values = {name: reply_values(rollout, (scores or {}).get(name)) for name, rollout in rollouts.items()}
    return Evidence(prompts, skills, replies, values, documents or {})


# -- files ----------------------------------------------------------------------------------------------------------
def write_replies(path: str | Path, evidence: Evidence) -> None:
    """replies.jsonl at `path`, atomically: a line a prompt with every model's reply and what it is worth."""
    lines = []
    for row, prompt in enumerate(evidence.prompts):
        models = {
            name: {"reply": texts[row]} | {q: column[row] for q, column in evidence.values[name].items()}
            for name, texts in evidence.replies.items()
        }
        turns = [{"role": turn.role, "content": turn.content} for turn in prompt]
        lines.append({"prompt": turns, "skill": evidence.skills[row], "models": models})
    _write(path, lines)


def write_documents(path: str | Path, evidence: Evidence) -> None:
    """documents.jsonl at `path`, atomically: a line a document with its nats under every model."""
    lines = [
        {"kind": kind, "text": text, "tokens": int(some.tokens[row])}
        | {"nats": {name: float(column[row]) for name, column in some.nats.items()}}
        for kind, some in evidence.documents.items()
        for row, text in enumerate(some.texts)
    ]
    _write(path, lines)


def _write(path: str | Path, lines: Sequence[dict]) -> None:
    write_text_atomic(path, "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines))


def read_evidence(replies: str | Path, documents: str | Path | None = None) -> Evidence:
    """The inverse of `write_replies` and, where a file is named, of `write_documents`.

    Raises:
        EvidenceError: a file cannot be read, or a line is not as it was written; names the line.
    """
    rows = _lines(replies, _reply_row)
    known = _lines(documents, _document_row) if documents is not None else []
    names = list(rows[0][2]) if rows else []
    quantities = {name: [q for q in rows[0][2][name] if q != "reply"] for name in names}
    for number, row in enumerate(rows, 1):
        if {name: [q for q in of if q != "reply"] for name, of in row[2].items()} != quantities:
            raise EvidenceError(f"{replies}, line {number}: other models or quantities than in line 1; {REMEDY}")
    if any(list(row["nats"]) != list(known[0]["nats"]) for row in known):
        raise EvidenceError(f"{documents}: not every line has the same models; {REMEDY}")
    kinds = dict.fromkeys(row["kind"] for row in known)
    return Evidence(
        [prompt for prompt, _, _ in rows],
        [skill for _, skill, _ in rows],
        {name: [models[name]["reply"] for _, _, models in rows] for name in names},
        {name: {q: [models[name][q] for _, _, models in rows] for q in quantities[name]} for name in names},
        {kind: _documents([row for row in known if row["kind"] == kind]) for kind in kinds},
    )


REMEDY = "it was changed, or is of another version; run the demo again"


def _lines(path: str | Path, parse: Any) -> list:
    number = 0
    try:
        rows = []
        for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):  # noqa: B007
            rows.append(parse(json.loads(line)))
    except OSError as error:
        raise EvidenceError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise EvidenceError(f"{path}, line {number}: not as this program writes it ({error}); {REMEDY}") from error
    return rows


def _reply_row(line: dict) -> tuple[Conversation, str, dict[str, dict]]:
    models = {}
    for name, found in line["models"].items():
        require(isinstance(found["reply"], str), f"{name}.reply", found["reply"], "a text")
        for quantity, value in found.items():
            if quantity != "reply" and value is not None:
                _finite(f"{name}.{quantity}", value)
        models[name] = dict(found)
    require(isinstance(line["skill"], str), "skill", line["skill"], "a text")
    return as_conversation(line["prompt"]), line["skill"], models


def _document_row(line: dict) -> dict:
    for name in ("kind", "text"):
        require(isinstance(line[name], str), name, line[name], "a text")
    whole_number("tokens", line["tokens"], least=1)
    for name, nats in line["nats"].items():
        _finite(name, nats)
    return line


def _finite(name: str, value: object) -> None:
    require(math.isfinite(real_number(name, value)), name, value, "a finite number")


def _documents(rows: Sequence[dict]) -> Documents:
    nats = {name: [row["nats"][name] for row in rows] for name in rows[0]["nats"]}
    return Documents([row["text"] for row in rows], [row["tokens"] for row in rows], nats)
