"""What is wrong with a file of preferences before anything is trained on it: rules that count, and name the rows.

    findings = lint(preferences, lm)
    findings[0]                         # 12 of 400 pairs: equal once they are cut at 64 tokens. Leave them out, ...

Each rule is a function of comparisons that returns a `Finding`. `feedback.cleaning` judges people, this judges data.
Left out: what the replies mean.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from rlhf_lab.feedback.targets import to_comparisons
from rlhf_lab.maths.intervals import Interval, Share, proportion_interval
from rlhf_lab.models.language_model import LanguageModel
from rlhf_lab.models.tokens import encode_responses
from rlhf_lab.records import Choice, Comparison, Edit, Ranking

SHOWN = 5  # rows named in a line of text
Preference = Comparison | Ranking | Choice | Edit


@dataclass(frozen=True, repr=False)
class Finding:
    """What one rule found.

    Attributes:
        rule: its name.
        what: in words, after "N of M pairs: ".
        remedy: what to do about it.
        rows: places in the list of preferences, in order.
        count: pairs that the rule looked at.
        share: where the rule estimates a share, with its interval; None where it counts.
    """

    rule: str
    what: str
    remedy: str
    rows: tuple[int, ...]
    count: int
    share: Interval | None = None

    def __repr__(self) -> str:
        share = "" if self.share is None else f" ({self.share.mean:.0%} [{self.share.low:.0%}, {self.share.high:.0%}])"
        named = ", ".join(map(str, self.rows[:SHOWN])) + (", ..." if len(self.rows) > SHOWN else "")
        where = f" Rows {named}." if self.rows else ""
        return f"{len(self.rows)} of {self.count} pairs: {self.what}{share}. {self.remedy}.{where}"


def as_pairs(preferences: Sequence[Preference]) -> list[tuple[int, Comparison]]:
    """(place of the record, pair) of everything that prefers one reply to another.

    As `to_comparisons`, but a ranking keeps its pairs of equal texts, which are a finding.

    Example:
        >>> as_pairs([Ranking("Hi", ("a", "b", "c"), ((1,), (0, 2)))])[0][1].chosen
        'b'
    """
    found = []
    for row, record in enumerate(preferences):
        if isinstance(record, Ranking):
            texts = record.replies
            found += [(row, Comparison(record.prompt, texts[b], texts[w])) for b, w in record.pairs()]
        else:
            found += [(row, pair) for pair in to_comparisons(record)]
    return found


def lint(
    preferences: Sequence[Preference],
    lm: LanguageModel | None = None,
    *,
    max_new_tokens: int = 64,
    held_out: Sequence[Preference] = (),
) -> list[Finding]:
    """What the rules find in preferences; only rules that find something are in the list.

    Args:
        preferences: to train on. A ranking counts as its pairs; a tie and an edit that left the reply are none.
        lm: whose tokenizer cuts replies; None leaves out the rule about the cut.
        max_new_tokens: where they are cut.
        held_out: preferences that are kept for testing; None of their prompts should be in the others.

    Example:
        >>> pairs = [Comparison("Hi", "Hello to you too.", "Go."), Comparison("Hi", "Go.", "Hello to you too.")]
        >>> [finding.rule for finding in lint(pairs)]
        ['contradicted']

    Chapter 09.
    """
    pairs = as_pairs(preferences)
    findings = [empty(pairs), alike(pairs), repeated(pairs), contradicted(pairs), longer(pairs)]
    if lm is not None:
        findings.append(equal_once_cut(pairs, lm, max_new_tokens))
    if held_out:
        findings.append(leaked(pairs, held_out))
    return [finding for finding in findings if finding.rows]


def empty(pairs: Sequence[tuple[int, Comparison]]) -> Finding:
    """Pairs in which a reply holds nothing but white space."""
    rows = [row for row, pair in pairs if not (pair.chosen.strip() and pair.rejected.strip())]
    return Finding("empty", "a reply is empty", "Leave them out, unless silence is an answer", _once(rows), len(pairs))


def alike(pairs: Sequence[tuple[int, Comparison]]) -> Finding:
    """Pairs whose replies differ in nothing but case and white space; such a preference is about neither."""
    rows = [row for row, pair in pairs if _plain(pair.chosen) == _plain(pair.rejected)]
    what = "the replies differ in case and white space only"
    return Finding("alike", what, "Leave them out: they teach a taste that nobody meant", _once(rows), len(pairs))


def repeated(pairs: Sequence[tuple[int, Comparison]]) -> Finding:
    """Pairs that were there before, word for word, the better one included."""
    seen, rows = set(), []
    for row, pair in pairs:
        key = pair.prompt, pair.chosen, pair.rejected
        if key in seen:
            rows.append(row)
        seen.add(key)
    remedy = "Keep one of each, or count them as one prompt when a test set is split off"
    return Finding("repeated", "the same pair came before", remedy, _once(rows), len(pairs))


def contradicted(pairs: Sequence[tuple[int, Comparison]]) -> Finding:
    """Pairs that also stand the other way round; honest raters produce some, and they tell how noisy labels are."""
    said = {(pair.prompt, pair.chosen, pair.rejected) for _, pair in pairs}
    rows = [row for row, pair in pairs if (pair.prompt, pair.rejected, pair.chosen) in said]
    remedy = "Keep both: leaving out one side is a judgement of your own"
    return Finding("contradicted", "the opposite stands there too", remedy, _once(rows), len(pairs))


def longer(pairs: Sequence[tuple[int, Comparison]], least: float = 0.6) -> Finding:
    """Whether length alone predicts the choice: the share of pairs whose chosen reply has more characters.

    One pair a prompt is counted, the first, so that pairs of one ranking do not pass for independent ones. Reported
    where the share's interval lies above one half and the share is at least `least`, or the mirror image of it. A
    finding is a question, not a verdict: long replies may be better.
    """
    firsts: dict[object, tuple[int, Comparison]] = {}
    for row, pair in pairs:
        if len(pair.chosen) != len(pair.rejected):
            firsts.setdefault(pair.prompt, (row, pair))
    won = [row for row, pair in firsts.values() if len(pair.chosen) > len(pair.rejected)]
    lost = [row for row, pair in firsts.values() if len(pair.chosen) < len(pair.rejected)]
    share = proportion_interval(len(won), len(firsts)) if firsts else Share(0.5, 0.0, 1.0, 0)
    above, below = share.low > 0.5 and share.mean >= least, share.high < 0.5 and share.mean <= 1 - least
    rows, word = (won, "longer") if above else (lost, "shorter") if below else ([], "longer")
    if below:
        share = Share(1 - share.mean, 1 - share.high, 1 - share.low, share.count)
    remedy = f"Compare replies of one length, or see whether a reward model likes {word} ones for their length alone"
    return Finding("longer", f"the {word} reply was chosen", remedy, _once(rows), len(firsts), share)


def equal_once_cut(pairs: Sequence[tuple[int, Comparison]], lm: LanguageModel, max_new_tokens: int = 64) -> Finding:
    """Pairs whose replies are the same tokens once they are cut: the label is then noise.

    Raises:
        ValueError: max_new_tokens does not fit the model.
    """
    chosen = encode_responses(lm, [pair.chosen for _, pair in pairs], max_new_tokens)
    rejected = encode_responses(lm, [pair.rejected for _, pair in pairs], max_new_tokens)
    rows = [row for (row, _), a, b in zip(pairs, chosen, rejected, strict=True) if a == b]
    what = f"equal once they are cut at {max_new_tokens} tokens"
    return Finding("equal_once_cut", what, "Raise max_new_tokens, or leave them out", _once(rows), len(pairs))


def leaked(pairs: Sequence[tuple[int, Comparison]], held_out: Sequence[Preference]) -> Finding:
    """Pairs whose prompt is in the held-out feedback too."""
    kept = {record.prompt for record in held_out}
    rows = [row for row, pair in pairs if pair.prompt in kept]
    remedy = "Split by prompt, or the accuracy on what is held out is too good"
    return Finding("leaked", "the prompt is held out for testing too", remedy, _once(rows), len(pairs))


def prompts_by_pairs(preferences: Sequence[Preference]) -> dict[int, int]:
    """{pairs on a prompt: prompts with so many}; a few prompts with most pairs are few data.

    Example:
        >>> prompts_by_pairs([Comparison("Hi", "a", "b"), Comparison("Hi", "a", "c"), Comparison("Bye", "a", "b")])
        {2: 1, 1: 1}
    """
    counts: defaultdict[object, int] = defaultdict(int)
    for _, pair in as_pairs(preferences):
        counts[pair.prompt] += 1
    return dict(sorted(Counter(counts.values()).items(), reverse=True))


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _once(rows: Sequence[int]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(rows))
