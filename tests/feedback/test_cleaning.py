"""Cleaning: each rule on hand-made cases, on honest simulated raters (false alarms) and on careless ones (misses).

The statistical tests simulate with fixed seeds, so they give the same answer every time; how often they would fail for
another seed, with the code as it is, stands beside each.
"""

import itertools
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy.stats import binom

from rlhf_lab.feedback import careless
from rlhf_lab.feedback.cleaning import (
    RULES,
    Cleaned,
    clean,
    contradictions,
    duplicates,
    failed_checks,
    hostile,
    position_bias,
    spam,
    straight_lining,
    too_fast,
)
from rlhf_lab.feedback.events import read_records
from rlhf_lab.feedback.questions import CommentOn, Compare, EditReply, Rank, Rate
from rlhf_lab.feedback.screening import ordering, words_shown
from rlhf_lab.records import (
    Choice,
    Comment,
    Comparison,
    Demonstration,
    Edit,
    Event,
    Mark,
    Ranking,
    Rating,
    Segment,
    SegmentChoice,
    Skip,
)
from rlhf_lab.worlds.town.people import COLLEAGUES

SESSION = Path(__file__).parents[2] / "data/sessions/whole_story.jsonl"
REPLIES = ("By the river.", "In the old town.", "I do not know.", "Go away!")
SEGMENT = Segment("CartPole-v1", ((0.0,), (1.0,)), ((1.0,),))


def event(record, number=0, **fields):
    return Event(f"e{number}", record, **fields)


def events_of(records, **fields):
    return [event(record, i, **fields) for i, record in enumerate(records)]


def reasons(cleaned):
    return [reason for _, reason in cleaned.dropped]


def names(cleaned):
    return {event.rater for event, _ in cleaned.dropped}


# ---- simulated raters ----------------------------------------------------------------------------------------


def honest_choices(rng, rater, count, noise=1.0, ties=0.05, start=0):
    """A rater who prefers the better reply by a logistic law, on a screen that shuffles."""
    made = []
    for i in range(count):
        left_is_better = rng.random() < 1 / (1 + math.exp(-rng.normal(0, 2) / noise))
        outcome = 0 if rng.random() < ties else (1 if left_is_better else -1)
        shown = (0, 1) if rng.random() < 0.5 else (1, 0)
        record = Choice(f"question {start + i}", "left", "right", outcome, rater=rater)
        made.append(Event(f"{rater}-c{start + i}", record, shown=shown, study="s", question=f"q{start + i}"))
    return made


def honest_rankings(rng, rater, count, size=4):
    made = []
    for i in range(count):
        order = tuple(np.argsort(-rng.gumbel(size=size) - np.arange(size)[::-1]).tolist())  # the first is often best
        record = Ranking(f"question {i}", REPLIES[:size], tuple((j,) for j in order), rater=rater)
        shown = tuple(rng.permutation(size).tolist())
        made.append(Event(f"{rater}-r{i}", record, shown=shown, study="s", question=f"r{i}"))
    return made


def honest_ratings(rng, rater, count, law):
    scores = rng.choice(len(law), size=count, p=law) + 1
    return [
        Event(f"{rater}-s{i}", Rating(f"question {i}", "reply", float(score), 1, len(law), rater=rater), study="s")
        for i, score in enumerate(scores)
    ]


def with_side(events, side, rng, share):
    """The same rater, who in a share of the judgements takes what stands on one side of the screen."""
    made = []
    for e in events:
        if rng.random() < share:
            best = (e.shown or (0, 1))[side]
            record = Choice(e.record.prompt, "left", "right", 1 if best == 0 else -1, rater=e.rater)
            e = Event(e.id, record, shown=e.shown, study=e.study, question=e.question)
        made.append(e)
    return made


# ---- what every rule keeps to --------------------------------------------------------------------------------

ALL_RULES = [*RULES, contradictions, partial(failed_checks, answers={})]
SOME_RECORDS = st.one_of(
    st.builds(Choice, st.just("Hi"), st.sampled_from(REPLIES), st.sampled_from(REPLIES), st.sampled_from((-1, 0, 1)),
              rater=st.sampled_from(("", "ann", "bob"))),
    st.builds(Rating, st.just("Hi"), st.sampled_from(REPLIES), st.integers(1, 5), rater=st.sampled_from(("", "ann"))),
    st.builds(Comment, st.just("Hi"), st.sampled_from(REPLIES), st.text(max_size=12), rater=st.sampled_from(("ann",))),
    st.builds(Edit, st.just("Hi"), st.sampled_from(REPLIES), st.text(max_size=5), rater=st.sampled_from(("ann",))),
    st.permutations(range(4)).map(lambda o: Ranking("Hi", REPLIES, tuple((i,) for i in o), rater="ann")),
    st.sampled_from([
        Ranking("Hi", REPLIES, (), status="all_bad", rater="bob"), Ranking("Hi", REPLIES, (), status="skipped"),
        Skip("Hi", "rate", ("a",), rater="bob"), Demonstration("Hi", "Hello."), Mark("Hi", "Hello.", ((0, 2),)),
        SegmentChoice("Which?", SEGMENT, SEGMENT, 0, rater="ann"), Comparison("Hi", "a", "b", rater="bob"),
    ]),
)  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(SOME_RECORDS, st.floats(0, 20), st.sampled_from(("", "q1", "q2"))), max_size=25))
def test_every_rule_accounts_for_every_judgement(made):
    events = [Event(str(i), r, duration=t, question=q) for i, (r, t, q) in enumerate(made)]
    place = {e.id: i for i, e in enumerate(events)}
    for rule in ALL_RULES:
        cleaned = rule(events)
        kept, dropped = ([place[e.id] for e in part] for part in (cleaned.kept, [e for e, _ in cleaned.dropped]))
        assert sorted(kept + dropped) == list(range(len(events)))
        assert kept == sorted(kept)
        assert dropped == sorted(dropped)
        assert all(any(char.isalpha() for char in reason) for reason in reasons(cleaned))
    report = clean(events)
    assert len(report.kept) + len(report.dropped) == len(events)
    assert {e.id for e in report.kept} | {e.id for e, _, _ in report.dropped} == place.keys()


@pytest.mark.parametrize("rule", ALL_RULES, ids=lambda rule: getattr(rule, "__name__", "failed_checks"))
def test_only_what_stands_is_judged(rule):
    first = Event("a", Rating("Hi", "Hello.", 3))
    for other in (Event("b", None, target="a"), Event("b", Rating("Hi", "Hello.", 4), target="a")):
        with pytest.raises(ValueError, match=r"events holds 'b', which .*feedback\.events\.standing first"):
            rule([first, other])
    # What replaces an event that is not among them any more is an ordinary judgement.
    assert rule([Event("b", Rating("Hi", "Hello.", 4), target="a")]).dropped == ()
    assert rule([]) == Cleaned((), (), rule([]).note)


def test_settings_that_make_no_sense():
    for bad in (
        lambda: too_fast([], words_per_minute=0),
        lambda: too_fast([], at_least=-1),
        lambda: contradictions([], gap=1.5),
        lambda: straight_lining([], share=1),
        lambda: position_bias([], alpha=0),
        lambda: failed_checks([], {}, slip=float("nan")),
    ):
        with pytest.raises(ValueError, match="expected"):
            bad()


# ---- too fast ------------------------------------------------------------------------------------------------


def test_words_shown_by_form():
    words = [
        (Ranking("Where?", REPLIES, ((0,), (1,), (2,), (3,))), 3 + 4 + 4 + 2),
        (Ranking("Where?", REPLIES, (), status="all_bad"), 13),
        (Ranking("Where?", REPLIES, (), status="skipped"), 0),
        (Choice("Where?", "a b", "c", 0), 3),
        (Comparison("Where?", "a b", "c"), 3),
        (Rating("Where?", "a b c d", 3), 4),
        (Edit("Where?", "a b", "c d e f g"), 2),
        (Comment("Where?", "a b", "much more to say"), 2),
        (Mark("Where?", "a b", ()), 2),
        (Skip("Where?", "rate", ("a b",)), 0),
        (SegmentChoice("Which?", SEGMENT, SEGMENT, 0), 0),
        (Demonstration("Where?", "a b"), 0),
    ]
    assert [words_shown(record) for record, _ in words] == [count for _, count in words]


def test_the_floor_grows_with_the_words():
    long = " ".join(["word"] * 70)  # 6 s at 700 words a minute
    at = {t: event(Rating("Hi", long, 3), duration=t) for t in (0.0, 0.01, 6.29, 6.31)}
    assert [bool(too_fast([e]).dropped) for e in at.values()] == [False, True, True, False]
    assert "1 judgements have no measured time" in too_fast([at[0.0]]).note
    assert [bool(too_fast([e], at_least=0.0).dropped) for e in at.values()] == [False, True, False, False]
    book = event(Rating("Hi", "word " * 100_000, 3), duration=27.0)  # nobody reads it whole: 300 words are 25.7 s
    assert not too_fast([book]).dropped
    assert too_fast([event(Rating("Hi", "word " * 100_000, 3), duration=25.0)]).dropped


def test_honest_readers_are_seldom_too_fast():
    """Readers at 238 words a minute on average, log-normal between people and between questions: 0.1 % are dropped.

    For the expected share 0.0005 of 20,000 a count above 40 has probability below 1e-10.
    """
    rng = np.random.default_rng(5)
    records = [Rating("Hi", " ".join(["word"] * n), 3) for n in rng.integers(5, 80, 400)]
    made = []
    for reader in range(50):
        speed = 238 * math.exp(rng.normal(0, 0.25))
        for record in records:
            seconds = 60 * words_shown(record) / speed * math.exp(rng.normal(0, 0.2)) + rng.exponential(0.7)
            made.append(Event(f"{reader}-{len(made)}", record, duration=seconds))
    dropped = len(too_fast(made).dropped)
    assert dropped <= 40, dropped
    clicking = [Event(str(i), r, duration=rng.exponential(0.7)) for i, r in enumerate(records)]
    assert len(too_fast(clicking).dropped) > 0.9 * len(records)


# ---- duplicates ----------------------------------------------------------------------------------------------


def test_a_planned_repetition_is_no_duplicate():
    said = Choice("Hi", "a", "b", 1, rater="ann")
    other = Choice("Hi", "a", "b", -1, rater="ann")
    made = [
        event(said, 0, study="s", question="q1"),
        event(said, 1, study="s", question="q1", duration=3.0, time=9.0, shown=(1, 0)),  # again, however it was shown
        event(said, 2, study="s", question="q7"),  # planned
        event(said, 3, study="t", question="q1"),  # another study
        event(other, 4, study="s", question="q1"),  # another judgement: no duplicate, but a contradiction
        event(Choice("Hi", "a", "b", 1, rater="bob"), 5, study="s", question="q1"),
        event(Choice("Hi", "a", "b", 1, rater="ann", simulated=True), 6, study="s", question="q1"),
    ]
    cleaned = duplicates(made)
    assert [(e.id, reason) for e, reason in cleaned.dropped] == [
        ("e1", "the same judgement of question 'q1' was already given, in event 'e0'")
    ]
    assert [e.id for e in cleaned.kept] == ["e0", "e2", "e3", "e4", "e5", "e6"]


# ---- contradictions ------------------------------------------------------------------------------------------


def pair(left, right, outcome=1, rater="ann", prompt="Hi"):
    return Choice(prompt, left, right, outcome, rater=rater)


def ranked(*order, replies=REPLIES):
    return Ranking("Hi", replies, tuple((i,) for i in order), rater="ann")


CONTRADICTIONS = {
    "repeated": ([pair("a", "b"), pair("a", "b", -1)], {0, 1}),
    "swapped": ([pair("a", "b"), pair("b", "a")], {0, 1}),
    "two to one": ([pair("a", "b"), pair("a", "b"), pair("b", "a"), pair("b", "c")], {0, 1, 2}),
    "swapped and the same": ([pair("a", "b"), pair("b", "a", -1)], set()),
    "a tie": ([pair("a", "b"), pair("a", "b", 0)], set()),
    "another rater": ([pair("a", "b"), pair("b", "a", rater="bob")], set()),
    "another prompt": ([pair("a", "b"), pair("b", "a", prompt="Bye")], set()),
    "no rater": ([pair("a", "b", rater=""), pair("b", "a", rater="")], set()),
    "equal replies": ([pair("a", "a"), pair("a", "a", -1)], set()),
    "circle of three": ([pair("a", "b"), pair("b", "c"), pair("c", "a"), pair("a", "d")], {0, 1, 2}),
    "no circle": ([pair("a", "b"), pair("b", "c"), pair("a", "c")], set()),
    "mixed forms": ([pair("a", "b"), Comparison("Hi", "b", "a", rater="ann")], {0, 1}),
    "ranking turned round": ([ranked(0, 1, 2, 3), ranked(3, 2, 1, 0)], {0, 1}),
    "ranking, 4 of 6 pairs": ([ranked(0, 1, 2, 3), ranked(2, 3, 1, 0)], {0, 1}),  # 5 of 6
    "ranking, 3 of 6 pairs": ([ranked(0, 1, 2, 3), ranked(1, 2, 3, 0)], set()),
    "a pair against a ranking": ([ranked(0, 1, 2, 3), pair(REPLIES[3], REPLIES[0])], {1}),
    "ratings far apart": ([Rating("Hi", "a", s, rater="ann") for s in (1, 4)] + [Rating("Hi", "b", 1)], {0, 1}),
    "ratings half apart": ([Rating("Hi", "a", s, rater="ann") for s in (1, 3)], set()),
    "scales": ([Rating("Hi", "a", 5, 1, 5, rater="ann"), Rating("Hi", "a", 7, 1, 7, rater="ann")], set()),
    "segments": ([SegmentChoice("Which?", SEGMENT, Segment("CartPole-v1", ((1.0,), (1.0,)), ((1.0,),)), o, rater="ann")
                  for o in (1, -1)], {0, 1}),
}  # fmt: skip


@pytest.mark.parametrize(("records", "places"), CONTRADICTIONS.values(), ids=CONTRADICTIONS.keys())
def test_contradictions_by_hand(records, places):
    cleaned = contradictions([event(r, i, question=f"q{i}") for i, r in enumerate(records)])
    assert {int(e.id[1:]) for e, _ in cleaned.dropped} == places


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)).filter(lambda e: e[0] != e[1]), max_size=9))
def test_pairs_on_a_circle_by_definition(edges):
    """By the definition: there is a path from the worse reply back to the better one."""
    reached = {a: {b for c, b in edges if c == a} for a in range(5)}
    for _ in range(5):
        reached = {a: reached[a] | {c for b in reached[a] for c in reached[b]} for a in reached}
    dropped = contradictions([event(pair(str(a), str(b)), i) for i, (a, b) in enumerate(edges)]).dropped
    assert {int(e.id[1:]) for e, _ in dropped} == {i for i, (a, b) in enumerate(edges) if a in reached[b]}


def test_contradictions_of_honest_raters_follow_the_stated_law():
    """2 p (1 - p) of 2000 repetitions; the interval of 4 standard errors misses with probability 6e-5."""
    rng = np.random.default_rng(0)
    for p in (0.6, 0.95):
        made = [
            event(pair("a", "b", 1 if rng.random() < p else -1, prompt=f"q{i}"), f"{i}-{j}")
            for i in range(2000)
            for j in range(2)
        ]
        share, expected = len(contradictions(made).dropped) / 4000, 2 * p * (1 - p)
        assert abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / 2000)


# ---- straight-lining -----------------------------------------------------------------------------------------


def test_the_bounds_are_those_of_the_definition():
    """Exhaustive: of every law over three answers with none above q, no p-value is below its own probability."""
    trials, q = 7, 0.6
    for law in ((0.6, 0.4, 0.0), (0.6, 0.2, 0.2), (0.5, 0.5, 0.0), (1 / 3, 1 / 3, 1 / 3), (0.55, 0.25, 0.2)):
        often, runs = np.zeros(trials + 1), np.zeros(trials + 1)
        for answers in itertools.product(range(3), repeat=trials):
            weight = math.prod(law[a] for a in answers)
            often[max(answers.count(a) for a in range(3))] += weight
            runs[max(len(list(g)) for _, g in itertools.groupby(answers))] += weight
        for count in range(1, trials + 1):
            assert often[count:].sum() <= careless._often(count, trials, q) + 1e-12
            assert runs[count:].sum() <= careless._in_a_row(count, trials, q) + 1e-12
    assert careless._often(7, 7, q) == pytest.approx(q**6)
    assert careless._in_a_row(7, 7, q) == pytest.approx(q**6)
    assert careless.tail(3, 10, 0.2) == pytest.approx(binom.sf(2, 10, 0.2))


def test_straight_lining_by_hand():
    rng = np.random.default_rng(1)
    honest = honest_ratings(rng, "ann", 40, [0.1, 0.2, 0.4, 0.2, 0.1])
    lazy = [event(Rating("Hi", f"r{i}", 5, rater="bob"), f"b{i}") for i in range(40)]
    cleaned = straight_lining(honest + lazy)
    assert names(cleaned) == {"bob"}
    assert len(cleaned.dropped) == 40
    assert "gave the score 5 in 40 of 40 answers, and one answer 40 times in a row" in reasons(cleaned)[0]
    tired = [event(Rating("Hi", f"r{i}", 1 + i % 5 if i < 60 else 3, rater="cy"), f"c{i}") for i in range(100)]
    assert "40 times in a row" in reasons(straight_lining(tired))[0]
    assert straight_lining(lazy[:6]).dropped == ()  # six equal scores happen to honest people
    assert straight_lining([Event(e.id, Rating("Hi", "a", 5)) for e in lazy]).note.startswith("40 judgements name no")


def test_excellent_replies_make_nobody_a_straight_liner():
    made = [event(Rating("Hi", f"r{i}", 5, rater=r), f"{r}{i}") for r in ("ann", "bob", "cy") for i in range(60)]
    assert straight_lining(made).dropped == ()


def test_straight_lining_in_other_forms():
    ties = [event(pair("a", "b", 0, "bob", f"q{i}"), f"b{i}") for i in range(40)]
    bad = [event(Ranking(f"q{i}", REPLIES, (), "all_bad", "cy"), f"c{i}") for i in range(40)]
    rng = np.random.default_rng(2)
    shown = [tuple(rng.permutation(4).tolist()) for _ in range(12)]
    down = [
        event(Ranking(f"q{i}", REPLIES, tuple((j,) for j in order), rater="dan"), f"d{i}", shown=order)
        for i, order in enumerate(shown)
    ]
    cleaned = straight_lining(ties + bad + down)
    assert names(cleaned) == {"bob", "cy", "dan"}
    assert any("ordered the screen's positions 1, 2, 3, 4 in 12 of 12" in reason for reason in reasons(cleaned))
    # The same rankings on a screen that never shuffles may be those of an honest man.
    fixed = [event(Ranking(f"q{i}", REPLIES, ((0,), (1,), (2,), (3,)), rater="dan"), f"d{i}") for i in range(12)]
    assert straight_lining(fixed).dropped == ()
    assert "12 judgements were shown in one order only" in straight_lining(fixed).note
    always_left_model = [event(pair("a", "b", 1, "eve", f"q{i}"), f"e{i}") for i in range(60)]
    assert straight_lining(always_left_model).dropped == ()


# ---- position bias -------------------------------------------------------------------------------------------


def test_position_bias_finds_the_side():
    rng = np.random.default_rng(3)
    honest = [e for rater in ("ann", "bob") for e in honest_choices(rng, rater, 80)]
    biased = with_side(honest_choices(rng, "cy", 80), 0, rng, 0.7)
    cleaned = position_bias(honest + biased)
    assert names(cleaned) == {"cy"}
    assert "put position 1 of 2 on the screen first in" in reasons(cleaned)[0]
    last = with_side(honest_choices(rng, "dan", 80), 1, rng, 0.7)
    assert names(position_bias(honest + last)) == {"dan"}
    assert names(position_bias(honest + last, least=0.95)) == set()  # a bias, but less than was asked for


def test_position_bias_of_rankings_and_what_it_cannot_tell():
    rng = np.random.default_rng(4)
    first = []
    for i in range(30):
        shown = tuple(rng.permutation(3).tolist())
        first.append(event(Ranking(f"q{i}", REPLIES[:3], (shown[:1], shown[1:]), rater="ann"), i, shown=shown))
    assert "position 1 of 3 on the screen first in 30 of 30" in reasons(position_bias(first))[0]
    imported = [event(Comparison(f"q{i}", "a", "b", rater="ann"), i) for i in range(60)]  # chosen stands first
    assert position_bias(imported).dropped == ()
    fixed = [event(pair("a", "b", 1, prompt=f"q{i}"), i) for i in range(60)]  # the left model may be the better one
    assert position_bias(fixed).dropped == ()
    assert "60 judgements were shown in one order only" in position_bias(fixed).note


def test_position_bias_is_the_exact_test():
    made = [event(pair("a", "b", 1, prompt=f"q{i}"), i, shown=(0, 1) if i < 17 else (1, 0)) for i in range(20)]
    p = 2 * binom.sf(16, 20, 0.5)  # two-sided: 0.0026
    assert position_bias(made, alpha=p * 1.001).dropped
    assert not position_bias(made, alpha=p * 0.999).dropped


# ---- false alarms --------------------------------------------------------------------------------------------


def honest_study(rng):
    """10 honest raters who like, dislike, waver and differ in how they use the scale: 3 forms, 60 judgements each."""
    events = []
    for number in range(10):
        rater = f"r{number}"
        events += honest_choices(rng, rater, 30, noise=rng.uniform(0.3, 3), ties=rng.uniform(0, 0.5))
        events += honest_rankings(rng, rater, 10)
        law = rng.dirichlet([0.8] * 5)
        events += honest_ratings(rng, rater, 20, law if law.max() <= 0.75 else [0.0, 0.05, 0.1, 0.1, 0.75])
    return events


@pytest.mark.slow
def test_honest_raters_are_left_alone():
    """At alpha 0.05 a rule drops somebody in at most 5 % of studies: more than 12 of 100 would be a chance of 0.1 %."""
    rng = np.random.default_rng(11)
    counts = {rule.__name__: 0 for rule in (straight_lining, position_bias)}
    for _ in range(100):
        events = honest_study(rng)
        for rule in (straight_lining, position_bias):
            counts[rule.__name__] += bool(rule(events, alpha=0.05).dropped)
    assert max(counts.values()) <= 12, counts


def test_a_screen_without_ties_uses_its_whole_alpha():
    """One rater, 50 choices: the exact test drops 0.0328 of honest ones at alpha 0.05 (17 and less, on either side).

    Of 1000 studies 33 are expected; outside of 4 standard errors: 6e-5.
    """
    p = 2 * binom.cdf(17, 50, 0.5)
    study = partial(honest_choices, rater="ann", count=50, ties=0.0)
    rng = np.random.default_rng(12)
    count = sum(bool(position_bias(study(rng), alpha=0.05).dropped) for _ in range(1000))
    assert 0.03 < p < 0.05
    assert abs(count - 1000 * p) < 4 * math.sqrt(1000 * p * (1 - p))


def test_attention_checks_spare_slips():
    """20 raters, 8 checks each, who slip at the allowed 10 %: at most 5 % of 400 studies lose one.

    More than 38 would be a chance of 1e-4.
    """

    def study(rng):
        outcomes = np.where(rng.random((20, 8)) > 0.1, 1, -1).tolist()
        return [
            event(pair("right", "wrong", outcome, f"r{r}"), f"{r}-{i}", question=f"k{i}")
            for r, row in enumerate(outcomes)
            for i, outcome in enumerate(row)
        ]

    rule = partial(failed_checks, answers={f"k{i}": "right" for i in range(8)}, alpha=0.05)
    rng = np.random.default_rng(13)
    lost = sum(any("all judgements of this rater" in r for r in reasons(rule(study(rng)))) for _ in range(400))
    assert lost <= 38, lost


# ---- attention checks ----------------------------------------------------------------------------------------


def test_failed_checks():
    answers = {"k1": "By the river.", "k2": "yes", "k3": "yes"}
    passes = [
        ranked(0, 1, 2, 3),
        Ranking("Hi", REPLIES, ((1, 0), (2, 3)), rater="ann"),  # shares the first place
        Comparison("Hi", "By the river.", "Go away!"),
        Choice("Hi", "Go away!", "By the river.", -1),
        Ranking("Hi", REPLIES, (), "skipped"),  # no answer
        Skip("Hi", "compare", REPLIES[:2]),
    ]
    fails = [
        ranked(1, 0, 2, 3),
        Ranking("Hi", REPLIES, ((0, 1, 2, 3),), rater="ann"),
        Ranking("Hi", REPLIES, (), "all_bad"),
        Comparison("Hi", "Go away!", "By the river."),
        Choice("Hi", "Go away!", "By the river.", 0),
    ]
    for records, dropped in ((passes, False), (fails, True)):
        for record in records:
            assert bool(failed_checks([event(record, question="k1")], answers).dropped) == dropped, record
    assert (
        failed_checks([event(passes[0], question="k1")], answers).note == "2 planted questions were answered by nobody"
    )
    with pytest.raises(ValueError, match="a Rating, which orders nothing"):
        failed_checks([event(Rating("Hi", "a", 3), question="k1")], answers)
    with pytest.raises(ValueError, match=r"without 'yes'"):
        failed_checks([event(ranked(0, 1, 2, 3), question="k2")], answers)


def test_who_fails_all_checks_goes_whole():
    def asked(rater, wrong):
        checks = [pair("yes", "no", -1 if i < wrong else 1, rater) for i in range(4)]
        made = [event(record, f"{rater}k{i}", question=f"k{i}") for i, record in enumerate(checks)]
        return [*made, event(pair("a", "b", 1, rater), f"{rater}x", question="x")]

    answers = {f"k{i}": "yes" for i in range(4)}
    cleaned = failed_checks(asked("ann", 1) + asked("bob", 4), answers)
    assert [e.id for e, _ in cleaned.dropped] == ["eannk0", *(f"ebobk{i}" for i in range(4)), "ebobx"]
    assert "failed 4 of 4 planted questions, where slips account for 10% (p = 0.0001" in reasons(cleaned)[-1]


# ---- what people write ---------------------------------------------------------------------------------------

REPLY = "The library closes at six in the evening, except on Sundays."
HONEST = [
    "too long", "Wrong place.", "It does not say where the zoo is.", "好", "👍 good", "ok", "No!", "Sooo helpful",
    "The closing time is wrong; it is five, not six.", "why 'except on Sundays'?", "rude to the user", "10/10",
    "A stupid answer: it ignores the question.", "The reply is useless to me.", "It is dumb to send her to the bank.",
    "It said at six in the evening, but the museum says five.", "I hate the tone.", "Fox is kind, Mia is kind too.",
    "Shows no care for the user, who may be hurt.", "You could add the street.", "kill the last sentence",
    "Does it find you the way? No.", "no no no", "very very good", "The bus to Scunthorpe leaves at noon.",
    'It should not say "you idiot" to a child.', "I do not know if it is right e.g. on holidays.", "1st sentence ok",
    "It does not say where to buy cheap books.", "no way to click on the link", "the shop is open", "12", "were",
]  # fmt: skip
SPAM = [
    "", "   ", "\u200b\n", "x", "?", "!!!!", "aaaaaaaaaaaa", "good good good good good good good",
    "buy cheap pills at https://pills.example/now", "visit www.win-a-phone.top", "cheap-watches.shop has it",
    REPLY, REPLY.upper(), "at six in the evening, except on Sundays.", "Where is the library?", "yes no " * 20,
    "asdf", "12345", "good good good good", "Buy cheap watches at my shop!", "Click here",
]  # fmt: skip
HOSTILE_TEXTS = [
    "You idiot.", "only m0r0ns write this", "whoever wrote this is a complete a$$hole", "fuck off", "Shut up!",
    "go to hell", "I will find you", "I'm going to kill you", "kill yourself", "hope you die", "I hate you all",
    "you're so dumb", "You are all useless", "U r pathetic", "you stupid machine", "what a bunch of 1diots",
    "This is garbage, and so are you.", "I hate this stupid machine.",
]  # fmt: skip


def said(text, number=0, reply=REPLY, rater="ann"):
    return event(Comment("Where is the library?", reply, text, rater=rater), number)


@pytest.mark.parametrize("rule", [spam, hostile])
def test_honest_comments_stay(rule):
    assert [(e.record.text, reason) for e, reason in rule([said(t, i) for i, t in enumerate(HONEST)]).dropped] == []


@pytest.mark.parametrize(("rule", "texts"), [(spam, SPAM), (hostile, HOSTILE_TEXTS)])
def test_what_the_lists_know_is_found(rule, texts):
    assert [e.record.text for e in rule([said(t, i) for i, t in enumerate(texts)]).kept] == []


def test_quotations_of_the_reply_are_the_replys():
    reply = "Shut up, you idiots! See www.town.org/zoo."
    for text in ("It calls people idiots.", "It says shut up to a child.", "the link www.town.org/zoo. is dead"):
        assert hostile([said(text, reply=reply)]).dropped == ()
        assert spam([said(text, reply=reply)]).dropped == ()


def test_edits_and_demonstrations():
    edits = {"": True, REPLY: False, "6": False, REPLY + " See www.pills.top": True, "You moron.": False}
    for text, is_spam in edits.items():
        assert bool(spam([event(Edit("Hi", REPLY, text))]).dropped) == is_spam, text
    assert hostile([event(Edit("Hi", REPLY, "You moron."))]).dropped
    assert hostile([event(Demonstration("Hi", "You moron."))]).dropped
    assert spam([event(Demonstration("Hi", " "))]).dropped


def test_a_template_is_what_one_rater_writes_about_everything():
    about = [f"reply number {i}" for i in range(20)]
    template, short_text = "this one is really very good indeed", "too long"
    same = [said(template, i, reply) for i, reply in enumerate(about)]
    other = [said(f"remark {i}", f"o{i}", reply) for i, reply in enumerate(about)]
    assert len(spam(same[:5]).dropped) == 5
    assert "wrote about 5 replies, in 5 comments" in reasons(spam(same[:5]))[0]
    assert spam(same[:4]).dropped == ()
    assert len(spam(same[:10] + other[:10]).dropped) == 10
    assert spam(same[:10] + other[:11]).dropped == ()  # a favourite remark
    assert spam([said(template, i, "the same reply") for i in range(9)]).dropped == ()
    assert spam([said(template, i, r, rater=f"r{i}") for i, r in enumerate(about)]).dropped == ()
    brief = [said(short_text, i, r) for i, r in enumerate(about)]
    assert spam(brief[:14] + other[:6]).dropped == ()
    assert len(spam(brief[:16] + other[:4]).dropped) == 16


def test_texts_of_a_megabyte_are_read_fast():
    """Bounded work, not a time: only the beginning of a text is searched."""
    huge = ["a" * 10**6, "you " * 250_000, "\ud800" * 10**6, "www." * 250_000, "\x00" * 10**6]
    made = [said(text, i, reply=text[::-1]) for i, text in enumerate(huge)]
    for rule in (spam, hostile):
        cleaned = rule(made)
        assert len(cleaned.kept) + len(cleaned.dropped) == len(huge)
        assert all(len(reason) < 200 for reason in reasons(cleaned))


# ---- simulated colleagues of known vice ------------------------------------------------------------------------


@pytest.mark.slow
def test_the_towns_colleagues():
    """Who reads everything keeps everything; who takes the left and writes spam goes whole; the hostile is found.

    One fixed draw. The careful one reads at 238 words a minute with a log-normal spread of 0.25, so that a judgement
    of his is too fast with probability 1e-5 or less.
    """
    rankings = [record for record in read_records(SESSION) if len(set(record.replies)) > 1][:40]
    questions = []
    for r in rankings:
        questions += [Compare(r.prompt, *r.replies[:2]), Rank(r.prompt, r.replies), Rate(r.prompt, r.replies[0])]
        questions += [CommentOn(r.prompt, r.replies[1]), EditReply(r.prompt, r.replies[1])]
    drawn = torch.Generator().manual_seed(0)
    events = [e for colleague in COLLEAGUES for e in colleague.answer_all(questions, drawn, study="s")]
    report = clean(events)
    dropped = {(e.rater, name) for e, name, _ in report.dropped}
    kept = {c.name: sum(e.rater == c.name for e in report.kept) for c in COLLEAGUES}
    assert kept["careful"] == kept["length-lover"] == len(questions)
    assert kept["spammer"] == 0
    assert dropped - {("hurried", "too_fast")} == {
        ("spammer", "straight_lining"),
        ("malicious", "hostile"),
        ("inattentive", "too_fast"),
    }
    assert not any(e.rater == "malicious" and isinstance(e.record, Comment) for e in report.kept)
    assert kept["inattentive"] < 0.95 * len(questions)


# ---- the chain and its report --------------------------------------------------------------------------------


def test_each_rule_sees_what_the_others_left():
    seen = []

    def first(events):
        return Cleaned(tuple(events[1:]), ((events[0], "1 is enough"),))

    def second(events):
        seen.extend(events)
        return Cleaned(tuple(events), ())

    made = events_of([Rating("Hi", "a", 1), Rating("Hi", "b", 2)])
    report = clean(made, [first, second])
    assert seen == made[1:]
    assert report.kept == tuple(made[1:])
    assert report.dropped == [(made[0], "first", "1 is enough")]


def test_a_rule_that_loses_something_is_found_out():
    made = events_of([Rating("Hi", "a", 1), Rating("Hi", "b", 2)])
    losers = {
        "loses": lambda events: Cleaned(tuple(events[1:]), ()),
        "doubles": lambda events: Cleaned((*events, events[0]), ()),
        "silent": lambda events: Cleaned(tuple(events[1:]), ((events[0], " "),)),
    }
    for rule in losers.values():
        with pytest.raises(ValueError, match=r"expected them all|without a reason"):
            clean(made, [rule])


def test_the_report_shows_texts_as_texts():
    nasty = "<script>alert(1)</script>\x1b[31m\u202e\ud800"
    made = [said("", i, rater=nasty) for i in range(3)] + [said(f"see www.{'<b>'}x.top", 9, rater=nasty)]
    report = clean(made, [partial(spam)])
    page = report._repr_html_()
    page.encode("utf-8")
    assert "kept 0 of 4 judgements" in page
    assert "<script" not in page
    assert "<b>" not in page
    assert not {"\x1b", "\u202e", "\ud800"} & set(page)
    assert not {"\x1b", "\u202e", "\ud800"} & set(repr(report))
    assert "spam" in repr(report)
    assert "3" in repr(report)
    many = [said(f"{'x' * (i + 6)}", i, rater=f"r{i}") for i in range(40)]
    assert "20 more, in .dropped" in repr(clean(many, [spam]))


def test_ordering_of_what_orders_nothing():
    assert ordering(None) is None
    assert ordering(Rating("Hi", "a", 3)) is None
    assert ordering(Choice("Hi", "a", "b", 0)) == (("a", "b"), ((0, 1),))
