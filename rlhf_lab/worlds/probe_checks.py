"""What a probe found: a symptom for each check, a table of them, and the planted faults whose symptoms are the same.

A check has a band in which a healthy agent's number lies. Where the number lies instead is the symptom:

    .  within the band         -  below it          +  above it
    ~  near what it was before training, so nothing was learned: where such a place is known
    !  not a number            ?  not checked, because the agent has no value

The symptoms of all checks are a pattern. Those of planted faults were measured (`python run.py bench probes`) in small
agents made for it, with other networks and rates than yours; a fault fits if every symptom of the agent was seen with
it. So a name is where to look first. Several faults may have one pattern, and a fault that was never planted has none.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Patterns = Mapping[str, Mapping[str, Sequence[str]]]  # fault -> probe -> the symptoms seen with it


@dataclass(frozen=True)
class Check:
    """One number of a trained agent, and where it should be.

    Attributes:
        what: the number in words.
        got: as measured; None where the agent does not have it.
        low, high: ends of the band of a healthy agent.
        unlearned: numbers from here up to `low` are those of an agent that learned nothing; None: no such place.

    Example:
        >>> [Check("P(better action)", p, 0.8, 1.0, unlearned=0.2).symptom for p in (0.9, 0.5, 0.1, None)]
        ['.', '~', '-', '?']
    """

    what: str
    got: float | None
    low: float
    high: float = math.inf
    unlearned: float | None = None

    @property
    def symptom(self) -> str:
        """One character; see the module."""
        if self.got is None:
            return "?"
        if not math.isfinite(self.got):
            return "!"
        if self.got > self.high:
            return "+"
        if self.got >= self.low:
            return "."
        return "~" if self.unlearned is not None and self.got >= self.unlearned else "-"

    @property
    def band(self) -> str:
        """The band in words."""
        if math.isinf(self.high):
            return f"at least {self.low:.2f}"
        return f"at most {self.high:.2f}" if math.isinf(self.low) else f"{self.low:.2f} to {self.high:.2f}"


@dataclass(frozen=True, repr=False)
class Report:
    """What all probes found; it prints as a table.

    Attributes:
        checks: the checks of each probe, by its name.
        patterns: of planted faults, to compare with.
    """

    checks: Mapping[str, Sequence[Check]]
    patterns: Patterns

    @property
    def symptoms(self) -> dict[str, str]:
        """{probe: one character for each of its checks}."""
        return {probe: "".join(check.symptom for check in checks) for probe, checks in self.checks.items()}

    @property
    def passed(self) -> bool:
        """Whether no check failed; what was not checked has not failed."""
        return not self.failed

    @property
    def failed(self) -> list[str]:
        """The probes of which a check failed."""
        return [probe for probe, seen in self.symptoms.items() if set(seen) - {".", "?"}]

    @property
    def faults(self) -> list[str]:
        """The planted faults that fit; none where all is well.

        A probe that was not run, or a value that was not there, excludes no fault, but some probe must have failed.
        """
        return fitting(self.symptoms, self.patterns) if self.failed else []

    def __str__(self) -> str:
        rows = [("probe", "check", "expected", "got", "verdict")]
        for probe, checks in self.checks.items():
            for check in checks:
                got = "-" if check.got is None else f"{check.got:.2f}"
                rows.append((probe, check.what, check.band, got, VERDICTS[check.symptom]))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(n) for cell, n in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([*lines, "", self.conclusion])

    __repr__ = __str__

    @property
    def conclusion(self) -> str:
        """In a sentence, what the pattern says."""
        if self.passed:
            missing = any("?" in seen for seen in self.symptoms.values())
            return "Every probe passes." + (" What has no value was not checked for one." if missing else "")
        found = self.faults
        if not found:
            return "None of the planted faults fits this pattern."
        return "Planted faults with this pattern: " + "; ".join(found) + "."


VERDICTS = {
    ".": "pass",
    "-": "FAIL: too low",
    "+": "FAIL: too high",
    "~": "FAIL: not learned",
    "!": "FAIL: no number",
    "?": "not checked",
}


def patterns_of(probes: Sequence[str], table: str) -> dict[str, dict[str, list[str]]]:
    """Patterns of a table: a fault a line, then what was seen on each probe, the most frequent first.

    Example:
        >>> patterns_of(["constant", "delay"], "gamma is forgotten  .  +.|+-")
        {'gamma is forgotten': {'constant': ['.'], 'delay': ['+.', '+-']}}
    """
    rows = [re.split(r"\s{2,}", line.strip()) for line in table.strip().splitlines()]
    cells = {fault: [cell.split("|") for cell in row] for fault, *row in rows}
    return {fault: dict(zip(probes, row, strict=True)) for fault, row in cells.items()}


def fitting(symptoms: Mapping[str, str], patterns: Patterns) -> list[str]:
    """The faults with which every one of the symptoms was seen, on every one of the probes; '?' is any.

    Example:
        >>> patterns = {"sign": {"action": ["-"]}, "untrained": {"action": ["~", "-"]}}
        >>> fitting({"action": "~"}, patterns), fitting({"action": "-"}, patterns)
        (['untrained'], ['sign', 'untrained'])
    """

    def same(seen: str, known: str) -> bool:
        return len(seen) == len(known) and all(a in ("?", b) for a, b in zip(seen, known, strict=True))

    return [
        fault
        for fault, probes in patterns.items()
        if all(any(same(seen, known) for known in probes.get(name, ())) for name, seen in symptoms.items())
    ]
