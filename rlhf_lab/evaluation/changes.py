"""What got better and what got worse between two models: every quantity with an interval, paired wherever it can be.

One mean hides what it is made of: a policy whose true reward rises may state more that is false. So each part stands
apart, overall and by skill, with the direction that is good. With many rows some leave 0 out by chance:
`expected_by_chance` says how many, and Holm's procedure which rows stand when all are looked at together.
Left out: intervals over seeds. Two models are two models, and what another seed would give these rows do not say.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import ndtr

from rlhf_lab.evaluation.evidence import OF_REPLIES, Evidence
from rlhf_lab.evaluation.text import exponential
from rlhf_lab.maths.intervals import Interval, Ratio, paired_difference, ratio_of_means_bootstrap
from rlhf_lab.maths.power import holm
from rlhf_lab.training.configs import require

GOOD = {  # quantity -> the direction that is good; the others are good in neither
    **dict.fromkeys(("true_reward", "helpful", "truthful", "harmless", "form"), "higher"),
    **dict.fromkeys(("well_formed", "ended", "polite"), "higher"),
    **dict.fromkeys(("over_refusal", "rude", "perplexity"), "lower"),
}
SHARES = GOOD.keys() - {"true_reward", "perplexity"}  # of each reply in [0, 1], so that no mean moves by more than 1
FEWEST_DIFFERENT = 6  # of fewer pairs that differ, all in one direction, a sign test says 2 / 2^5 = 0.06 or more
LEVEL = 0.95


@dataclass(frozen=True)
class Change:
    """How one quantity differs between two models.

    Attributes:
        quantity: of `OF_REPLIES`, or "perplexity", "perplexity_bad".
        skill: the skill it is about, "" for all prompts.
        before, after: the means, over the same rows where `paired`.
        interval: after - before, for a perplexity the ratio after / before; 95 %.
        paired: whether it is from differences row by row.
        different: pairs with a difference that is not 0; None where it is not paired.
        stands: whether it leaves out no difference also after Holm's procedure over all rows of the comparison.
    """

    quantity: str
    skill: str
    before: float
    after: float
    interval: Interval
    paired: bool = True
    different: int | None = None
    stands: bool = False

    @property
    def good(self) -> str:
        """The direction that is good: 'higher', 'lower' or 'neither'."""
        return GOOD.get(self.quantity, "neither")

    @property
    def direction(self) -> str:
        """'higher' or 'lower' if the interval leaves out no difference, else ''. See `FEWEST_DIFFERENT`."""
        if self.different is not None and self.different < FEWEST_DIFFERENT:
            return ""
        return {"a": "higher", "b": "lower"}.get(self.interval.verdict[0], "")  # above, below, INCONCLUSIVE

    @property
    def verdict(self) -> str:
        """'better', 'worse', 'changed' (a quantity that is good in neither direction) or 'INCONCLUSIVE'."""
        if not self.direction:
            return "INCONCLUSIVE"
        if self.good == "neither":
            return "changed"
        return "better" if self.direction == self.good else "worse"

    @property
    def p_value(self) -> float:
        """Two-sided p-value of no difference, from the interval, so that both say the same at 0.05.

        From the distance of the neutral value in half-widths, in the law that the interval is from: Student's for a
        mean, normal for a ratio (in logarithms) and for what is not paired. 1 where the verdict cannot be anything but
        INCONCLUSIVE.
        """
        x = self.interval
        if not self.direction and (self.different or FEWEST_DIFFERENT) < FEWEST_DIFFERENT:
            return 1.0
        mean, low, high, neutral = x.mean, x.low, x.high, float(x.neutral)
        if isinstance(x, Ratio):
            mean, low, high, neutral = map(_log, (mean, low, high, neutral))
        half = mean - low if mean > neutral else high - mean
        if mean == neutral or not math.isfinite(half):
            return 1.0
        if half == 0:
            return 0.0
        far = abs(mean - neutral) / half
        if isinstance(x, Ratio) or not self.paired:
            return float(2 * ndtr(-1.959964 * far))
        from scipy.stats import t  # costs a second that only this needs

        return float(2 * t.sf(far * t.ppf((1 + LEVEL) / 2, x.count - 1), x.count - 1))


def paired_changes(evidence: Evidence, after: str, before: str) -> list[Change]:
    """Every quantity that both models have, then the true reward skill by skill, then the perplexities; `standing`.

    Args:
        evidence: of both models.
        after, before: names of models in it.

    Raises:
        ValueError: the evidence has no such model.

    Example:
        >>> from rlhf_lab.records import as_conversation
        >>> prompts, texts = [as_conversation(f"{i}?") for i in range(8)], ["a"] * 8
        >>> lengths = {"old": {"length": [3.0] * 8}, "new": {"length": [4.0, 5.0] * 4}}
        >>> evidence = Evidence(prompts, [""] * 8, {"old": texts, "new": texts}, lengths)
        >>> [(row.quantity, row.interval.mean, row.verdict) for row in paired_changes(evidence, "new", "old")]
        [('length', 1.5, 'changed')]

    Chapter 11.
    """
    for name in (after, before):
        require(name in evidence.replies, "model", name, f"one of {list(evidence.replies)}")
    new, old = evidence.values[after], evidence.values[before]
    rows = [paired_change(q, new[q], old[q]) for q in OF_REPLIES if q in new and q in old]
    if "true_reward" in new and "true_reward" in old:
        for skill in sorted(set(evidence.skills) - {""}):
            own = [row for row, name in enumerate(evidence.skills) if name == skill]
            new_ones, old_ones = ([values["true_reward"][row] for row in own] for values in (new, old))
            rows.append(paired_change("true_reward", new_ones, old_ones, skill))
    known = (perplexity_change(evidence, kind, after, before) for kind in evidence.documents)
    return standing([row for row in (*rows, *known) if row is not None])


def paired_change(
    quantity: str, after: Sequence[float | None], before: Sequence[float | None], skill: str = ""
) -> Change | None:
    """`paired_difference` as a Change, for a share cut at -1 and 1; None where no row has both values.

    Args:
        after, before: [N] values of the same rows.
    """
    pairs = [(a, b) for a, b in zip(after, before, strict=True) if a is not None and b is not None]
    if not pairs:
        return None
    new, old = zip(*pairs, strict=True)
    different = sum(a != b for a, b in pairs)
    found = paired_difference(new, old)
    if quantity in SHARES:
        found = replace(found, low=max(found.low, -1.0), high=min(found.high, 1.0))
    return Change(quantity, skill, _mean(old), _mean(new), found, True, different)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def perplexity_change(evidence: Evidence, kind: str, after: str, before: str) -> Change | None:
    """The ratio of two perplexities on the same documents; None where a model has none.

        ratio = exp(sum over documents of (nats after - nats before) / sum of tokens)

    The interval is from resampling documents, each with its two likelihoods, so that what makes a document hard for
    both models cancels. Both models must cut texts into the same tokens.
    """
    some = evidence.documents[kind]
    if after not in some.nats or before not in some.nats:
        return None
    tokens = np.array(some.tokens, float)
    new, old = (np.array(some.nats[name], float) for name in (after, before))
    ratio = exponential(ratio_of_means_bootstrap(new - old, tokens, resamples=2000))
    was, now = (math.exp(nats.sum() / tokens.sum()) for nats in (old, new))
    return Change(kind, "", was, now, ratio, True, int((new != old).sum()))


def unpaired_change(quantity: str, after: Interval, before: Interval, skill: str = "") -> Change:
    """The difference of two means that share no rows, from their intervals alone; for a perplexity the ratio.

        low  = (a - b) - sqrt((a - low(a))^2 + (high(b) - b)^2)
        high = (a - b) + sqrt((high(a) - a)^2 + (b - low(b))^2)

    Exact for normal means with known variances; for shares it is Newcombe's hybrid of two score intervals. Perplexities
    are compared in logarithms. Wider than a paired interval where rows are alike.

    Source: Newcombe 1998, Interval estimation for the difference between independent proportions, method 10; Zou and
    Donner 2008, Construction of confidence limits about effect measures. Chapter 11.

    Example:
        >>> row = unpaired_change("rude", Interval(0.1, 0.07, 0.13, 400), Interval(0.2, 0.16, 0.24, 400))
        >>> round(row.interval.low, 2), round(row.interval.high, 2), row.verdict
        (-0.15, -0.05, 'better')
    """
    ratio = quantity.startswith("perplexity")
    (a, a_low, a_high), (b, b_low, b_high) = (
        tuple(_log(value) if ratio else value for value in (x.mean, x.low, x.high)) for x in (after, before)
    )
    low = (a - b) - math.hypot(a - a_low, b_high - b)
    high = (a - b) + math.hypot(a_high - a, b - b_low)
    found = Interval(a - b, low, high, min(after.count, before.count))
    return Change(quantity, skill, before.mean, after.mean, exponential(found) if ratio else found, paired=False)


def standing(changes: Sequence[Change]) -> list[Change]:
    """The same rows, each with whether it stands among them by Holm's procedure at family level 0.05."""
    adjusted = holm({str(row): change.p_value for row, change in enumerate(changes)}).values()
    rows = zip(changes, adjusted, strict=True)
    return [replace(change, stands=bool(change.direction) and p <= 1 - LEVEL) for change, p in rows]


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf


def expected_by_chance(changes: Sequence[Change]) -> float:
    """How many rows would leave out no difference if there were none anywhere: 5 % of them."""
    return (1 - LEVEL) * len(changes)


def by_verdict(changes: Sequence[Change], verdict: str) -> Iterator[Change]:
    """The rows with that verdict, in their order."""
    return (change for change in changes if change.verdict == verdict)
