"""From many judgements to one score for each reply, with error bars.

Choices, comparisons and rankings of replies to the same prompt become the choices of `maths.choices`: Bradley-Terry
with Davidson's ties, and Plackett-Luce where more than two are ranked. Scores are in the logits of a rater of inverse
temperature 1. Only differences are identified, so intervals are of contrasts; the level of a score means nothing.
Left out: judgements in which two prompts meet, and raters who differ in taste rather than in care. Chapter 08.
"""

import html
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

from rlhf_lab.maths.choices import Blocks, ChoiceModel, Parameters, TierChoices
from rlhf_lab.maths.intervals import Interval, check_level
from rlhf_lab.maths.posterior import Posterior, contrast_marginals, fit_posterior, only_group
from rlhf_lab.records import (
    Choice,
    Comparison,
    Conversation,
    Event,
    PromptLike,
    Ranking,
    Record,
    Segment,
    SegmentChoice,
    Skip,
    as_conversation,
)

SHOWN_PROMPTS, SHOWN_LETTERS = 5, 60  # of the table of a notebook
Item = str | Segment
Tiers = list[list[Item]]


def records_of(judgements: Iterable[Event | Record]) -> list[Record]:
    """The records of events or records, in their order; an event that takes another back holds none.

    What was taken back is not sorted out here: give the events as `feedback.events.standing` returns them.
    """
    records = (item.record if isinstance(item, Event) else item for item in judgements)
    return [record for record in records if record is not None]


def tiers_of(record: Record) -> Tiers:
    """What was judged, best tier first; empty where a record orders nothing.

    Of equal replies in one ranking the best placed stands for all: to rank a text against itself means nothing.

    Example:
        >>> tiers_of(Choice("Hi", "a", "b", outcome=-1)), tiers_of(Choice("Hi", "a", "b", outcome=0))
        ([['b'], ['a']], [['a', 'b']])
    """
    if isinstance(record, Comparison):
        tiers: Tiers = [[record.chosen], [record.rejected]]
    elif isinstance(record, Choice | SegmentChoice):
        tiers = [[record.left, record.right]] if record.outcome == 0 else [[record.left], [record.right]]
        tiers = tiers[::-1] if record.outcome < 0 else tiers
    elif isinstance(record, Ranking):
        tiers = [[record.replies[i] for i in tier] for tier in record.tiers]
    else:
        return []
    places: dict[Item, int] = {}
    for place, tier in enumerate(tiers):
        for item in tier:
            places.setdefault(item, place)
    kept = [[item for item, there in places.items() if there == place] for place in range(len(tiers))]
    return [tier for tier in kept if tier] if len(places) > 1 else []


@dataclass(frozen=True, eq=False, repr=False)
class Consensus:
    """Scores of the replies to each prompt, as the raters together see them.

    Attributes:
        prompts: those with at least one judgement that orders something.
        replies: of each prompt, in the order of the records; segments where segments were compared.
        scores: of each prompt [replies], the mode of the posterior. Only differences within a prompt mean something.
        covariances: of each prompt [replies, replies], of a normal law around the mode.
        counts: judgements of each prompt.
        log_nu: how easily a tie is called; minus infinity where nobody called one.
        raters: {name: inverse temperature}, about 1 for one who answers by the scores, 0 for one who draws lots,
            negative for one who ranks upside down. Empty where all raters were taken to be at 1.
        skipped: questions that were passed over.
        all_bad: rankings in which no reply was good enough: how those compare is not known, so they move no score.
        unused: other records that order nothing, such as ratings and comments, or a ranking of equal texts.
        posterior: what the intervals are computed from.
    """

    prompts: tuple[Conversation, ...]
    replies: tuple[tuple[Item, ...], ...]
    scores: tuple[np.ndarray, ...]
    covariances: tuple[np.ndarray, ...]
    counts: tuple[int, ...]
    log_nu: float
    raters: dict[str, Interval]
    skipped: int
    all_bad: int
    unused: int
    posterior: Posterior

    def contrast(
        self, a: Item | int, b: Item | int, prompt: PromptLike | int | None = None, level: float = 0.95
    ) -> Interval:
        """Score of one reply minus that of another to the same prompt, with its equal-tailed posterior interval.

        It keeps its level whatever the rule by which labelling was stopped, if scores come from the prior and labels
        from the model. Its `count` is of all judgements of the prompt, as third replies tell of these two as well.

        Args:
            a, b: the replies, or their places in `replies`.
            prompt: a prompt, or its place in `prompts`; may be left out where there is one.
            level: probability that the interval holds the true difference.

        Raises:
            ValueError: no such prompt or reply, the same reply twice, or an impossible level.
        """
        group = self.place(prompt)
        return self._interval(group, self.weights(a, b, group), level)

    def against_mean(self, prompt: PromptLike | int | None = None, level: float = 0.95) -> list[Interval]:
        """Each reply's score minus the mean score of the replies to its prompt: the error bars of a figure."""
        group = self.place(prompt)
        size = len(self.replies[group])
        return [self._interval(group, row, level) for row in np.eye(size) - 1 / size]

    def place(self, prompt: PromptLike | int | None) -> int:
        """Where a prompt is in `prompts`."""
        if prompt is None and len(self.prompts) != 1:
            raise ValueError(f"there are {len(self.prompts)} prompts; give the one that is meant, or its place")
        if prompt is None or isinstance(prompt, int):
            return range(len(self.prompts))[prompt or 0]
        wanted = as_conversation(prompt)
        if wanted not in self.prompts:
            raise ValueError(f"nothing was judged of the prompt {wanted[-1].content!r:.60}; see `prompts`")
        return self.prompts.index(wanted)

    def weights(self, a: Item | int, b: Item | int, group: int) -> np.ndarray:
        """[replies] 1 for one reply, -1 for another, else 0."""
        replies = self.replies[group]
        for reply in (a, b):
            if not (reply in range(len(replies)) if isinstance(reply, int) else reply in replies):
                raise ValueError(f"no reply {reply!r:.60} was judged there; expected one of {len(replies)} replies")
        first, second = (reply if isinstance(reply, int) else replies.index(reply) for reply in (a, b))
        if first == second:
            raise ValueError(f"a and b are the same reply {a!r:.60}; expected two")
        along = np.zeros(len(replies))
        along[first], along[second] = 1, -1
        return along

    def model_of(self, group: int) -> tuple[ChoiceModel, Parameters]:
        """The choices of one prompt with what prompts share held fixed, and the mode of its scores."""
        at = self.posterior.at
        return only_group(self.posterior.model, group), Parameters(self.scores[group], at.log_nu, at.temperatures)

    def widening(self, group: int, along: np.ndarray) -> float:
        """How much wider a contrast is for the spread of what prompts share; 1 where they share nothing."""
        fixed = self.posterior.conditional[_bucket(self.posterior.model.blocks, group)[1]]
        return float(np.sqrt(along @ self.covariances[group] @ along / (along @ fixed @ along)))

    def _interval(self, group: int, along: np.ndarray, level: float) -> Interval:
        check_level(level)
        density = contrast_marginals(*self.model_of(group), along)
        mean, wider = float(density.means()[0]), self.widening(group, along)
        low, high = (mean + wider * (float(density.quantiles(p)[0]) - mean) for p in ((1 - level) / 2, (1 + level) / 2))
        return Interval(mean, low, high, self.counts[group])

    def __repr__(self) -> str:
        return f"Consensus of {self._says()}"

    def _says(self) -> str:
        size = sum(map(len, self.replies))
        text = f"{size} replies to {len(self.prompts)} prompts from {sum(self.counts)} judgements"
        others = {"skipped": self.skipped, "all bad": self.all_bad, "that order nothing": self.unused}
        left = ", ".join(f"{count} {name}" for name, count in others.items() if count)
        return f"{text}; left out: {left}" if left else text

    def _repr_html_(self) -> str:
        """Tables for a notebook; texts come from models and people, so they are escaped."""
        parts = [f"<p>Consensus of {self._says()}.</p>"]
        for group in range(min(len(self.prompts), SHOWN_PROMPTS)):
            bars = zip(self.replies[group], self.against_mean(group), strict=True)
            rows = [(_shown(reply), *_numbers(bar)) for reply, bar in sorted(bars, key=lambda row: -row[1].mean)]
            head = (_shown(self.prompts[group][-1].content), "score - mean", "low", "high")
            parts.append(_html_table([head, *rows]))
        if len(self.prompts) > SHOWN_PROMPTS:
            parts.append(f"<p>and {len(self.prompts) - SHOWN_PROMPTS} more prompts</p>")
        if self.raters:
            rows = [(_shown(name), *_numbers(bar)) for name, bar in self.raters.items()]
            parts.append(_html_table([("rater", "inverse temperature", "low", "high"), *rows]))
        return "".join(parts)


def consensus(
    judgements: Iterable[Event | Record],
    *,
    prior_std: float = 1.0,
    log_nu: float | None = None,
    reliability: bool = False,
) -> Consensus:
    """Scores of replies from what several raters said of them.

        P(T is the best tier of what is left) ~ exp(b_rater * mean of s over T + (|T| - 1) log nu),    s ~ N(0, std^2)

    The mode of the posterior, by Newton's method; with a flat prior it is the maximum of the likelihood. Judgements
    count as independent, also those of the same question by the same rater: clean repeated ones out first.

    Every tier that could have been chosen is counted, up to 2^n - 1 among n replies. On one core 10,000 rankings of 8
    replies take about 2 s, with ties of any size or none; with `reliability` 10 s without ties and 25 s with them, and
    10,000 choices between two replies 1 s.

    Args:
        judgements: events as `standing` returns them, or records. Comparisons, choices, rankings (with tiers, of any
            of a prompt's replies) and choices of segments are used. A tie may be called in choices and in rankings if
            somebody called one there, in rankings up to the largest that was called; never in a comparison.
        prior_std: standard deviation of a score before any label, above 0. At 1 two replies differ by 1.1 logits on
            average, and a rater of inverse temperature 1 is right about 73 % of such pairs.
        log_nu: how easily a tie is called, P(tie) = nu / (nu + 2) between equals; None learns it from all prompts.
        reliability: learn an inverse temperature for each rater. Needs raters who judged the same replies; if
            most rank upside down, it believes them.

    Raises:
        ValueError: prior_std is not above 0, or a tie is too large to list the choices.

    Example:
        >>> found = consensus([Comparison("Hi", "Hello!", "Go away", rater) for rater in ("me", "you")])
        >>> difference = found.contrast("Hello!", "Go away")
        >>> round(difference.mean, 2), round(difference.low, 2), round(difference.high, 2)
        (1.14, -0.94, 3.39)

    Source: Bradley and Terry 1952; Davidson 1970; Plackett 1975; tiers as in Turner et al. 2020. Chapter 08.
    """
    if not prior_std > 0:
        raise ValueError(f"prior_std is {prior_std}; expected a number above 0. A large one is a flat prior")
    records = records_of(judgements)
    collected = _Collected(records)
    choices, largest = collected.choices(reliability, ties=log_nu is not None)
    learn_nu = log_nu is None and largest > 1
    start = 0.0 if learn_nu else -np.inf if log_nu is None else float(log_nu)
    names = list(collected.raters) if reliability else [""]
    model = ChoiceModel(choices, Blocks([len(items) for items in collected.items.values()]), prior_std, learn_nu)
    posterior = fit_posterior(model, np.ones(len(names)), reliability, start)
    blocks = posterior.model.blocks
    split = [_bucket(blocks, group) for group in range(len(blocks.sizes))]
    return Consensus(
        prompts=tuple(collected.items),
        replies=tuple(map(tuple, collected.items.values())),
        scores=tuple(posterior.at.scores[items] for items, _ in split),
        covariances=tuple(posterior.covariance[cells] for _, cells in split),
        counts=tuple(collected.counts[prompt] for prompt in collected.items),
        log_nu=posterior.at.log_nu,
        raters=_temperatures(names, posterior, Counter(rater for *_, rater in collected.rows)) if reliability else {},
        skipped=sum(isinstance(r, Skip) or getattr(r, "status", "") == "skipped" for r in records),
        all_bad=sum(getattr(r, "status", "") == "all_bad" for r in records),
        unused=collected.unused,
        posterior=posterior,
    )


class _Collected:
    """Judgements that order something, with numbers in the place of prompts, replies and raters."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.items: dict[Conversation, dict[Item, int]] = {}
        self.counts: Counter[Conversation] = Counter()
        self.raters: dict[str, int] = {}
        self.rows: list[tuple[type, Conversation, list[list[int]], str]] = []
        self.unused = 0
        for record in records:
            tiers = tiers_of(record)
            if tiers:
                known = self.items.setdefault(record.prompt, {})
                for reply in getattr(record, "replies", ()):  # in the order of the record, not of the judgement
                    known.setdefault(reply, len(known))
                numbers = [[known.setdefault(item, len(known)) for item in tier] for tier in tiers]
                rater = record.rater  # type: ignore[union-attr]  # all that have tiers have one
                self.raters.setdefault(rater, len(self.raters))
                self.counts[record.prompt] += 1
                self.rows.append((type(record), record.prompt, numbers, rater))
            else:
                passed = isinstance(record, Skip) or getattr(record, "status", "done") != "done"
                self.unused += not passed

    def choices(self, by_rater: bool, ties: bool) -> tuple[list[TierChoices], int]:
        """The choices that the judgements are made of, equal ones counted, and the largest tie of all."""
        largest = {Comparison: 1} | dict.fromkeys((Choice, SegmentChoice, Ranking), 1 + ties)
        for kind, _, tiers, _ in self.rows:
            largest[kind] = max(largest[kind], *map(len, tiers))
        sizes = [len(items) for items in self.items.values()]
        starts = dict(zip(self.items, np.cumsum([0, *sizes])[:-1].tolist(), strict=True))
        found: defaultdict[tuple[int, int, int], Counter[tuple[int, ...]]] = defaultdict(Counter)
        for kind, prompt, tiers, rater in self.rows:
            first = starts[prompt]
            left = sorted(first + item for tier in tiers for item in tier)
            for tier in tiers:
                chosen = sorted(first + item for item in tier)
                rest = [item for item in left if item not in chosen]
                if len(left) > 1:
                    shape = len(left), len(chosen), min(largest[kind], len(left))
                    found[shape][(*chosen, *rest, self.raters[rater] * by_rater)] += 1
                left = rest
        return [_as_choices(shape, counts) for shape, counts in found.items()], max(largest.values())


def _as_choices(shape: tuple[int, int, int], counts: Counter[tuple[int, ...]]) -> TierChoices:
    rows = np.array(list(counts))
    return TierChoices(rows[:, :-1], *shape[1:], np.array(list(counts.values()), dtype=float), rows[:, -1])


def _bucket(blocks: Blocks, group: int) -> tuple[np.ndarray, np.ndarray]:
    """The items [k] and the cells [k, k] of a group."""
    size = blocks.sizes[group]
    cells = blocks.cell_starts[group] + np.arange(size * size).reshape(size, size)
    return blocks.starts[group] + np.arange(size), cells


def _temperatures(
    names: Sequence[str], posterior: Posterior, counts: Counter[str], level: float = 0.95
) -> dict[str, Interval]:
    """The normal interval of each rater's inverse temperature."""
    half = float(ndtri((1 + level) / 2)) * np.sqrt(np.diag(posterior.shared)[-len(names) :])
    means = posterior.at.temperatures
    return {
        name: Interval(float(m), float(m - h), float(m + h), counts[name])
        for name, m, h in zip(names, means, half, strict=True)
    }


def _shown(item: Item) -> str:
    """A text for a table: escaped, short, and of characters that a notebook can store."""
    if isinstance(item, Segment):
        return html.escape(f"{item.environment}, {len(item.actions)} steps")
    text = item if len(item) <= SHOWN_LETTERS else item[:SHOWN_LETTERS] + "..."
    return html.escape(text.replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8"))


def _numbers(bar: Interval) -> tuple[str, ...]:
    return tuple(f"{value:.2f}" for value in (bar.mean, bar.low, bar.high))


def _html_table(rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are escaped already; the first row is its head."""
    line = lambda cells, tag: "".join(f"<{tag}>{cell}</{tag}>" for cell in cells)  # noqa: E731
    body = "".join(f"<tr>{line(row, 'td')}</tr>" for row in rows[1:])
    return f"<table><thead><tr>{line(rows[0], 'th')}</tr></thead><tbody>{body}</tbody></table>"
