"""Cleaning feedback: rules that drop judgements with a reason, one after the other, and a report of what each did.

    report = clean(standing(events))
    report.kept                     # the judgements that go on
    report.dropped                  # (event, name of the rule, reason) of each of the others

Rules about a judgement: `duplicates`, `too_fast`, `contradictions`, `spam`, `hostile`. Rules about a rater, of whom
everything goes: `straight_lining`, `position_bias`, `failed_checks`. Give other settings with functools.partial. Left
out: any rule that drops whom the majority disagrees with.
"""

import html
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rlhf_lab.feedback.careless import (
    failed_checks as failed_checks,
    position_bias as position_bias,
    straight_lining as straight_lining,
)
from rlhf_lab.feedback.junk import hostile as hostile, spam as spam
from rlhf_lab.feedback.screening import (
    Cleaned as Cleaned,
    Rule,
    check_standing,
    contradictions as contradictions,
    duplicates as duplicates,
    too_fast as too_fast,
)
from rlhf_lab.records import Event

# First what is about the log, then raters as a whole, then what is left of the others. Not among them: `failed_checks`,
# which needs the right answers, and `contradictions`, which takes close pairs from the most honest rater too.
RULES: tuple[Rule, ...] = (duplicates, straight_lining, position_bias, too_fast, spam, hostile)
SHOWN = 20  # dropped judgements in a printed report


@dataclass(frozen=True, repr=False)
class Report:
    """What the rules of a cleaning did; shown as a table.

    Attributes:
        steps: (name of the rule, what it made of what the rules before it had kept), in order.
        total: how many judgements there were.

    Chapter 08.
    """

    steps: tuple[tuple[str, Cleaned], ...]
    total: int
    kept: tuple[Event, ...]

    @property
    def dropped(self) -> list[tuple[Event, str, str]]:
        """(event, rule, reason) of everything that was dropped, rule by rule."""
        return [(event, name, reason) for name, cleaned in self.steps for event, reason in cleaned.dropped]

    def _summary(self) -> list[list[str]]:
        rows = [["rule", "dropped", "kept", "raters concerned", "note"]]
        for name, cleaned in self.steps:
            raters = len({(event.rater, event.simulated) for event, _ in cleaned.dropped if event.rater})
            rows.append([name, str(len(cleaned.dropped)), str(len(cleaned.kept)), str(raters), cleaned.note])
        return [[visible(cell) for cell in row] for row in rows]

    def _reasons(self) -> list[list[str]]:
        """Rule by rule and rater by rater how many, and the reason of the first."""
        first: dict[tuple[str, str, bool], str] = {}
        counts: Counter[tuple[str, str, bool]] = Counter()
        for event, name, reason in self.dropped:
            counts[name, event.rater, event.simulated] += 1
            first.setdefault((name, event.rater, event.simulated), reason)
        rows = [[str(count), key[0], visible(key[1]), visible(first[key])] for key, count in counts.most_common(SHOWN)]
        if len(counts) > SHOWN:
            rows.append(["...", "", "", f"and {len(counts) - SHOWN} more, in .dropped"])
        return [["dropped", "by the rule", "of the rater", "for example because"], *rows]

    def __repr__(self) -> str:
        head = f"kept {len(self.kept)} of {self.total} judgements"
        tables = [self._summary(), self._reasons()] if self.dropped else [self._summary()]
        return "\n\n".join([head, *map(_text_table, tables)])

    def _repr_html_(self) -> str:
        """The same for a notebook; names and texts come from people, so they are escaped."""
        tables = [self._summary(), self._reasons()] if self.dropped else [self._summary()]
        return f"<p>kept {len(self.kept)} of {self.total} judgements</p>" + "".join(map(_html_table, tables))


def clean(events: Sequence[Event], rules: Sequence[Rule] = RULES) -> Report:
    """Let each rule take its part of what the rules before it kept.

    The rules about raters are tests, each of which loses anybody honest in at most a share alpha of all studies (0.01
    unless given), so a chain of several does in at most the sum of their alphas.

    Args:
        events: judgements that stand, see `feedback.events.standing`.
        rules: functions of events that return a `Cleaned`.

    Raises:
        ValueError: events that do not stand, or a rule that loses one or drops one without a reason.

    Example:
        >>> from functools import partial
        >>> from rlhf_lab.records import Choice
        >>> judged = [Event(n, Choice("Hi", "Hello to you.", "Go away from me.", 1), duration=t)
        ...           for n, t in (("a", 0.5), ("b", 5.0))]
        >>> report = clean(judged, [partial(too_fast, words_per_minute=600)])
        >>> [event.id for event in report.kept], report.dropped[0][1]
        (['b'], 'too_fast')

    Chapter 08.
    """
    events = check_standing(events)
    steps, kept = [], tuple(events)
    for rule in rules:
        name = _name(rule)
        cleaned = rule(kept)
        _check_complete(name, kept, cleaned)
        steps.append((name, cleaned))
        kept = cleaned.kept
    return Report(tuple(steps), len(events), kept)


def _name(rule: Rule) -> str:
    inner = getattr(rule, "func", rule)  # of a partial
    return str(getattr(inner, "__name__", type(inner).__name__))


def _check_complete(name: str, given: Sequence[Event], cleaned: Cleaned) -> None:
    """Nothing gets lost, and nothing is dropped without its reason."""
    ids = [event.id for event in given]
    back = Counter(event.id for event in cleaned.kept) + Counter(event.id for event, _ in cleaned.dropped)
    if back != Counter(ids):
        count = len(cleaned.kept) + len(cleaned.dropped)
        raise ValueError(f"rule {name} got {len(ids)} judgements and gave back {count}, or others; expected them all")
    if not all(reason.strip() for _, reason in cleaned.dropped):
        raise ValueError(f"rule {name} drops a judgement without a reason; expected a sentence for each")


def visible(text: str) -> str:
    r"""A text with everything that cannot be seen written out, such as control signs and halves of characters.

    Example:
        >>> visible("red \x1b[31m é")
        'red \\x1b[31m é'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _text_table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def _html_table(rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    head, *body = rows
    return f"<table><thead>{line(head, 'th')}</thead><tbody>{''.join(line(row, 'td') for row in body)}</tbody></table>"
