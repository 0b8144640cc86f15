"""Rules of cleaning about raters: one answer for everything, one place on the screen, failed attention checks.

The evidence is about a rater, so all his judgements go. Each rule is a test of "this rater is honest" with the exact
binomial law, and what an honest rater may do is an argument. With R tests in a study each is made at alpha / R, so at
most a share alpha of the studies with honest raters alone lose anybody to the rule (Bonferroni). Three rules at 1 %
lose somebody in at most 3 % of them. Left out: models of raters who are careless now and then, and any test of a rater
who judged too little to be told from an honest one.
"""

from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from math import factorial

from scipy.special import bdtrc

from rlhf_lab.feedback.lines import short
from rlhf_lab.feedback.screening import Cleaned, Person, by_person, check_standing, divided, nameless, ordering
from rlhf_lab.records import Comparison, Event, Ranking, Rating, Record

Found = tuple[Person, float, str]  # of one test: whom it is about, its p-value, and what was seen


def tail(count: int, trials: int, share: float) -> float:
    """P(at least `count` successes in `trials` independent ones of probability `share`).

    Example:
        >>> tail(2, 2, 0.5)
        0.25
    """
    return 1.0 if count <= 0 else float(bdtrc(count - 1, trials, share))


def _without(events: Sequence[Event], tests: Sequence[Found], alpha: float, notes: Sequence[str]) -> Cleaned:
    """Drop what the raters judged whose p-value is below alpha / number of tests."""
    limit = alpha / max(1, len(tests))
    reasons: dict[int, str] = {}
    people = by_person(events)
    for person, p_value, seen in sorted(tests, key=lambda test: -test[1]):  # the strongest evidence stays
        if p_value < limit:
            sentence = (
                f"rater {short(person[0])} {seen} (p = {p_value:.1g}, below {alpha:.2g} / {len(tests)} tests); "
                "all judgements of this rater go"
            )
            reasons |= dict.fromkeys(people[person], sentence)
    return divided(events, reasons, "; ".join(filter(None, [*notes, nameless(events)])))


def _check_shares(**shares: float) -> None:
    for name, share in shares.items():
        if not 0 < share < 1:
            raise ValueError(f"{name} is {share}; expected a number between 0 and 1")


# ---- the screen ----------------------------------------------------------------------------------------------


def _on_screen(event: Event) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """(order shown, positions on the screen from the best to the worst, up to the first tie); None: not known."""
    ordered = ordering(event.record)
    # A comparison that was not shown by a widget holds the chosen reply first: that is no place on a screen.
    if ordered is None or (not event.shown and isinstance(event.record, Comparison)):
        return None
    things, tiers = ordered
    shown = event.shown or tuple(range(len(things)))
    ranks = []
    for tier in tiers:
        if len(tier) > 1:
            break
        ranks.append(shown.index(tier[0]))
    return shown, tuple(ranks)


def _shuffled(events: Sequence[Event], places: Sequence[int]) -> tuple[dict[int, list[tuple[int, ...]]], int]:
    """{K: best-to-worst positions of each judgement of K}, and how many judgements were shown in one order only.

    Where the order on the screen never changes, a position is always the same reply's (or the same model's), and a
    preference for it may be a preference for that.
    """
    shown: dict[tuple[str, int], list[tuple[tuple[int, ...], tuple[int, ...]]]] = defaultdict(list)
    for place in places:
        if found := _on_screen(events[place]):
            shown[events[place].study, len(found[0])].append(found)
    positions: dict[int, list[tuple[int, ...]]] = defaultdict(list)
    fixed = 0
    for (_, size), found_here in shown.items():
        if len({order for order, _ in found_here}) > 1:
            positions[size] += [ranks for _, ranks in found_here]
        else:
            fixed += len(found_here)
    return dict(positions), fixed


def _fixed_note(fixed: int) -> str:
    return f"{fixed} judgements were shown in one order only, which says nothing of positions" if fixed else ""


def position_bias(events: Sequence[Event], alpha: float = 0.01, least: float = 0.2) -> Cleaned:
    """Drop *raters* who put the reply at one place of the screen first too often.

    The screen shuffles, so whatever an honest rater prefers, each of K positions is first in a share 1 / K. With c
    of n first places at the commonest position

        p = K P(Bin(n, 1/K) >= c),     followed = (c/n - 1/K) / (1 - 1/K)

    A rater goes if p < alpha / tests and he followed the position, not the reply, in at least `least` of his
    judgements: of a smaller bias the rest is worth more than it costs. Only judgements with one best reply count.

    Args:
        events: judgements that stand; the order on the screen is `Event.shown`.
        alpha: share of studies with honest raters alone that lose somebody, at most; in (0, 1).
        least: in (0, 1).

    Raises:
        ValueError: an impossible share, or events that do not stand.

    Chapter 08.
    """
    _check_shares(alpha=alpha, least=least)
    events = check_standing(events)
    tests: list[Found] = []
    fixed = 0
    for person, places in by_person(events).items():
        positions, here = _shuffled(events, places)
        fixed += here
        for size, ranks in positions.items():
            if not (firsts := [ranking[0] for ranking in ranks if ranking]):
                continue
            (position, count), trials = Counter(firsts).most_common(1)[0], len(firsts)
            followed = (count / trials - 1 / size) / (1 - 1 / size)
            p_value = min(1.0, size * tail(count, trials, 1 / size)) if followed >= least else 1.0
            seen = f"put position {position + 1} of {size} on the screen first in {count} of {trials} judgements, "
            seen += f"{count / trials:.0%} where a shuffled screen gives {1 / size:.0%}"
            tests.append((person, p_value, seen))
    return _without(events, tests, alpha, [_fixed_note(fixed)])


# ---- straight-lining -----------------------------------------------------------------------------------------


def straight_lining(events: Sequence[Event], share: float = 0.75, alpha: float = 0.01) -> Cleaned:
    """Drop *raters* who give the same answer again and again.

    Two kinds of evidence. (1) The same score, tie or "all bad" c times in n answers of a form, r of them in a row.
    An honest rater gives no answer with a probability above `share`, or above the share q that the other raters give
    it where that is larger, and answers questions independently. Then over all possible answers

        p = 2 min( P(Bin(n, q) >= c) / q,  q^(r-1) (1 + (n - r)(1 - q)) )

    (2) Replies in the same order of the *screen*, more than a share `share` of n times: the screen shuffles K replies,
    so of every honest rater each order has the share 1 / K!, and  p = K! P(Bin(n, 1/K!) >= c). For two replies this is
    one side of the screen.

    Args:
        events: judgements that stand.
        share: of an honest rater's commonest answer, at most; in (0, 1). Where all replies are excellent it is large.
        alpha: share of studies with honest raters alone that lose somebody, at most; in (0, 1).

    Raises:
        ValueError: an impossible share, or events that do not stand.

    Source: the longest run as a sign of carelessness is the "long string" of Johnson 2005, Ascertaining the validity
    of individual protocols; the bounds are ours. Chapter 08.
    """
    _check_shares(share=share, alpha=alpha)
    events = check_standing(events)
    people = by_person(events)
    answers = {person: _answers(events, places) for person, places in people.items()}
    totals: dict[Hashable, Counter] = defaultdict(Counter)
    for forms in answers.values():
        for form, given in forms.items():
            totals[form].update(given)
    tests: list[Found] = []
    fixed = 0
    for person, places in people.items():
        for form, given in answers[person].items():
            tests += _same_answer(person, given, totals[form] - Counter(given), share)
        positions, here = _shuffled(events, places)
        fixed += here
        tests += [_same_order(person, size, ranks, share) for size, ranks in positions.items()]
    return _without(events, tests, alpha, [_fixed_note(fixed)])


def _answers(events: Sequence[Event], places: Sequence[int]) -> dict[Hashable, list[str]]:
    """{form: answers in order}; "" is an answer that is like no other, such as a preference."""
    forms: dict[Hashable, list[str]] = defaultdict(list)
    for place in places:
        record = events[place].record
        if isinstance(record, Rating):
            forms["rating", record.low, record.high].append(f"the score {record.score:g}")
        elif isinstance(record, Ranking) and record.status != "skipped":
            tied = len(record.tiers) == 1
            forms["ranking"].append('"all bad"' if record.status == "all_bad" else "a tie of all" if tied else "")
        elif (ordered := ordering(record)) and not isinstance(record, Comparison | Ranking):
            forms[type(record).__name__].append("a tie" if len(ordered[1]) == 1 else "")
    return dict(forms)


def _same_answer(person: Person, given: Sequence[str], others: Counter, share: float) -> list[Found]:
    counts = Counter(answer for answer in given if answer)
    if not counts:
        return []
    (answer, count), trials = counts.most_common(1)[0], len(given)
    run = max(_longest_run(given, one) for one in counts)
    elsewhere = max(others[one] for one in counts) / others.total() if others.total() else 0.0
    usual = max(share, elsewhere)
    p_value = min(1.0, 2 * min(_often(count, trials, usual), _in_a_row(run, trials, usual)))
    seen = f"gave {answer} in {count} of {trials} answers, and one answer {run} times in a row, "
    return [(person, p_value, seen + f"where an honest rater gives it in at most {usual:.0%}")]


def _often(count: int, trials: int, share: float) -> float:
    """Bound on P(some answer comes `count` times), whatever the answers' probabilities, each at most `share`.

    P(Bin(n, p) >= c) / p grows with p up to (c - 1) / (n - 1), and the probabilities sum to 1.
    """
    return tail(count, trials, share) / share if count > 1 and share < (count - 1) / max(1, trials - 1) else 1.0


def _in_a_row(run: int, trials: int, share: float) -> float:
    """The same bound for a run: one begins at the first answer, or after another answer.

    For fewer in a row than 1 / (1 - share) it does not hold, and tells nothing.
    """
    return share ** (run - 1) * (1 + (trials - run) * (1 - share)) if run * (1 - share) >= 1 else 1.0


def _longest_run(given: Sequence[str], answer: str) -> int:
    longest = run = 0
    for one in given:
        run = run + 1 if one == answer else 0
        longest = max(longest, run)
    return longest


def _same_order(person: Person, size: int, ranks: Sequence[tuple[int, ...]], share: float) -> Found:
    orders = Counter(ranking for ranking in ranks if len(ranking) == size)
    if not orders:
        return person, 1.0, ""
    (order, count), trials = orders.most_common(1)[0], orders.total()
    p_value = min(1.0, factorial(size) * tail(count, trials, 1 / factorial(size))) if count > share * trials else 1.0
    named = ", ".join(str(position + 1) for position in order)
    return person, p_value, f"ordered the screen's positions {named} in {count} of {trials} judgements"


# ---- attention checks ----------------------------------------------------------------------------------------


def failed_checks(
    events: Sequence[Event], answers: Mapping[str, str], slip: float = 0.1, alpha: float = 0.01
) -> Cleaned:
    """Drop wrong *judgements* of planted questions, and *raters* who fail more of them than one may by a slip.

    A check is passed where the acceptable reply is in the best tier and not everything is tied; "all bad" fails, a skip
    is no answer. With f of n checks failed  p = P(Bin(n, slip) >= f): with slip 0.1 and one rater two of two are not
    enough at 1 %, three of three are.

    Args:
        events: judgements that stand.
        answers: {question id: the reply that is best}. Ask it in a form that orders replies.
        slip: an honest rater's probability of failing a check; in (0, 1).
        alpha: share of studies with honest raters alone that lose a rater, at most; in (0, 1).

    Raises:
        ValueError: an impossible share, a planted question whose reply was not shown or that orders nothing, or events
            that do not stand.

    Example:
        >>> wrong = Event("a", Comparison("2 + 2?", "Fish", "4", rater="ann"), question="check 1")
        >>> failed_checks([wrong], {"check 1": "4"}).dropped[0][1]
        "failed the planted question 'check 1': the best reply is '4'"

    Chapter 08.
    """
    _check_shares(slip=slip, alpha=alpha)
    events = check_standing(events)
    results = {place: _passed(event.record, answers[event.question]) for place, event in enumerate(events)
               if event.question in answers and not _skipped(event.record)}  # fmt: skip
    tests: list[Found] = []
    for person, places in by_person(events).items():
        if checks := [results[place] for place in places if place in results]:
            failed = checks.count(False)
            seen = f"failed {failed} of {len(checks)} planted questions, where slips account for {slip:.0%}"
            tests.append((person, tail(failed, len(checks), slip), seen))
    raters = _without(events, tests, alpha, [])
    reasons = {
        place: f"failed the planted question {short(events[place].question)}: the best reply is "
        f"{short(answers[events[place].question])}"
        for place, passed in results.items() if not passed
    }  # fmt: skip
    gone = {event.id: reason for event, reason in raters.dropped}
    reasons |= {place: gone[event.id] for place, event in enumerate(events) if event.id in gone}
    missing = len(set(answers) - {event.question for event in events})
    unasked = f"{missing} planted questions were answered by nobody" if missing else ""
    return divided(events, reasons, "; ".join(filter(None, [unasked, raters.note])))


def _skipped(record: Record | None) -> bool:
    return type(record).__name__ == "Skip" or (isinstance(record, Ranking) and record.status == "skipped")


def _passed(record: Record | None, best: str) -> bool:
    if isinstance(record, Ranking) and record.status == "all_bad":
        return False
    ordered = ordering(record)
    if ordered is None or best not in ordered[0]:
        kind = f"a {type(record).__name__}, which orders nothing" if ordered is None else f"without {short(best)}"
        raise ValueError(f"answers names a planted question that is {kind}; expected a judgement that orders the reply")
    things, tiers = ordered
    return len(tiers) > 1 and any(things[index] == best for index in tiers[0])
