"""Consensus scores: what records mean, the same as choix, who is reliable, and hostile texts shown as text."""

import json
from functools import cache

import choix
import numpy as np
import pytest
from judged import VICES, errors, judged

from rlhf_lab.feedback.aggregation import Consensus, consensus, tiers_of
from rlhf_lab.feedback.events import new_event
from rlhf_lab.maths.intervals import Interval, mean_interval
from rlhf_lab.records import (
    Choice,
    Comment,
    Comparison,
    Ranking,
    Rating,
    Segment,
    SegmentChoice,
    Skip,
    as_conversation,
)

HI = as_conversation("Hi")


def ranking(tiers, replies="abcd", status="done", rater="me"):
    return Ranking(HI, tuple(replies), tiers, status, rater)


# -- what records say -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("record", "tiers"),
    [
        (Comparison(HI, "a", "b"), [["a"], ["b"]]),
        (Choice(HI, "a", "b", 1), [["a"], ["b"]]),
        (Choice(HI, "a", "b", 0), [["a", "b"]]),
        (Choice(HI, "a", "b", -1), [["b"], ["a"]]),
        (Choice(HI, "a", "a", 1), []),
        (ranking(((2,), (0, 1), (3,))), [["c"], ["a", "b"], ["d"]]),
        (ranking(((2,), (0, 1), (3,)), "abaa"), [["a"], ["b"]]),  # the best placed of equal texts
        (ranking(((0,), (1,)), "aa"), []),
        (ranking((), status="skipped"), []),
        (ranking((), status="all_bad"), []),
        (Rating(HI, "a", 3), []),
    ],
)
def test_tiers_of_every_record(record, tiers):
    assert tiers_of(record) == tiers


def test_what_moves_no_score_is_counted():
    comparison = Comparison(HI, "a", "b", "me")
    others = [
        ranking((), status="skipped"), Skip(HI, "compare", ("a", "b")), ranking((), status="all_bad"),
        Rating(HI, "a", 3), Comment(HI, "a", "fine"), ranking(((0,), (1,)), "aa"),
    ]  # fmt: skip
    found = consensus([comparison, *others])
    assert (found.skipped, found.all_bad, found.unused, found.counts) == (2, 1, 3, (1,))
    assert "2 skipped, 1 all bad, 3 that order nothing" in repr(found)
    assert found.contrast("a", "b") == consensus([comparison]).contrast("a", "b")


def test_events_and_records_say_the_same():
    records = [Choice(HI, "a", "b", 1), Choice(HI, "b", "a", 1), Choice(HI, "a", "b", 1)]
    events = [new_event(record) for record in records] + [new_event(target="somebody's")]
    assert consensus(events).contrast("a", "b") == consensus(records).contrast("a", "b")


def test_without_judgements_there_is_nothing_and_no_error():
    found = consensus([ranking((), status="skipped")])
    assert (found.prompts, found.skipped) == ((), 1)
    assert "0 replies to 0 prompts" in found._repr_html_()
    assert consensus([], reliability=True).raters == {}


def test_segments_are_compared_like_replies():
    left, right = (Segment("CartPole-v1", ((x,), (x,)), ((0,),)) for x in (0.0, 1.0))
    found = consensus([SegmentChoice("Which one balances?", left, right, -1)] * 3)
    assert found.contrast(right, left).mean > 0
    assert "CartPole-v1, 1 steps" in found._repr_html_()


# -- scores -----------------------------------------------------------------------------------------------------------
def test_flat_prior_gives_the_maximum_likelihood_of_choix_prompt_by_prompt():
    rankings, _ = judged(0, prompts=5, raters={str(i): 1.0 for i in range(12)})
    found = consensus(rankings, prior_std=1e4)
    for i in range(5):
        replies = list(found.replies[i])
        orders = [
            [replies.index(record.replies[k]) for (k,) in record.tiers]
            for record in rankings
            if record.prompt == found.prompts[i]
        ]
        expected = choix.opt_rankings(4, orders, alpha=0, method="Newton-CG", tol=1e-10)
        scores = found.scores[i]
        assert scores - scores.mean() == pytest.approx(expected - expected.mean(), abs=1e-5)


def test_the_order_of_judgements_does_not_matter():
    rankings, _ = judged(1, prompts=3)
    one, other = consensus(rankings, reliability=True), consensus(rankings[::-1], reliability=True)
    for prompt in one.prompts:
        a, b = one.contrast("reply 0", "reply 1", prompt), other.contrast("reply 0", "reply 1", prompt)
        assert (a.mean, a.low, a.high) == pytest.approx((b.mean, b.low, b.high), abs=0.1)


def test_contrasts_turn_round_and_add_up():
    found = consensus([ranking(((0,), (1, 2), (3,))), ranking(((1,), (0,), (2, 3)))])
    there, back = found.contrast("a", "d"), found.contrast("d", "a")
    assert (there.mean, there.low, there.high) == pytest.approx((-back.mean, -back.high, -back.low), abs=1e-6)
    steps = [found.contrast(x, y).mean for x, y in ("ab", "bc", "cd")]
    assert sum(steps) == pytest.approx(there.mean, abs=0.02)
    assert found.contrast(0, 3) == found.contrast(found.replies[0][0], found.replies[0][3])
    assert sum(bar.mean for bar in found.against_mean()) == pytest.approx(0, abs=0.02)
    wide, narrow = found.contrast("a", "d", level=0.99), found.contrast("a", "d", level=0.5)
    assert wide.low < narrow.low < narrow.high < wide.high
    assert (found.counts, there.count) == ((2,), 2)


def test_a_tie_pulls_two_together_and_a_comparison_cannot_be_one():
    wins = [Choice(HI, "a", "b", 1)] * 4
    ties = [Choice(HI, "a", "b", 0)] * 4
    assert consensus(wins + ties).contrast("a", "b").mean < consensus(wins).contrast("a", "b").mean
    assert np.isfinite(consensus(wins + ties).log_nu)
    assert consensus(wins).log_nu == -np.inf
    # With log nu given a choice without a tie says that none was called, a comparison does not.
    given = {"log_nu": 2.0}
    won = [Comparison(HI, "a", "b")] * 4
    assert consensus(won, **given).contrast("a", "b").mean < consensus(wins, **given).contrast("a", "b").mean
    assert consensus(won, **given).contrast("a", "b").mean == consensus(won).contrast("a", "b").mean


def test_log_nu_is_that_of_the_raters():
    """Estimated from 2000 choices between equals, P(tie) = nu / (nu + 2) = 1/3: within 4 sd of 0.07."""
    outcomes = np.random.default_rng(0).integers(-1, 2, size=2000)
    choices = [Choice(f"prompt {i % 500}", "a", "b", int(o)) for i, o in enumerate(outcomes)]
    assert consensus(choices, prior_std=0.01).log_nu == pytest.approx(0, abs=0.28)


def test_what_prompts_share_widens_the_intervals():
    choices = [Choice(HI, "a", "b", o) for o in (1, 1, 1, 1, 1, 1, 0, 0, 0, 0)]
    learned = consensus(choices)
    known = consensus(choices, log_nu=learned.log_nu)
    widths = [interval.high - interval.low for interval in (x.contrast("a", "b") for x in (learned, known))]
    assert widths[0] > 1.05 * widths[1]
    assert known.scores[0] == pytest.approx(learned.scores[0], abs=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda found: found.contrast("a", "z"), "no reply 'z' was judged"),
        (lambda found: found.contrast("a", 7), "no reply 7 was judged"),
        (lambda found: found.contrast("a", "a"), "a and b are the same reply"),
        (lambda found: found.contrast("a", "b", "Who are you?"), "nothing was judged of the prompt 'Who are you"),
        (lambda found: found.contrast("a", "b", level=1.0), "level must be a probability"),
        (lambda found: consensus([], prior_std=0.0), "prior_std is 0.0"),
        (lambda found: consensus([ranking((tuple(range(26)),), [chr(97 + i) for i in range(26)])]), "Rank fewer"),
        (lambda found: consensus([Comparison(p, "a", "b") for p in "xy"]).contrast("a", "b"), "there are 2 prompts"),
    ],
)
def test_what_cannot_be_answered_says_so(call, message):
    with pytest.raises(ValueError, match=message):
        call(consensus([ranking(((0,), (1, 2), (3,)))]))


# -- raters -----------------------------------------------------------------------------------------------------------
@cache
def fitted(seed):
    """Consensus with and without weights of the raters, and the truth."""
    rankings, truth = judged(seed)
    return consensus(rankings, reliability=True), consensus(rankings), truth


def test_planted_vices_are_found():
    """In each of 8 studies the raters come in their order, and the spammer is taken for neither good nor bad.

    The gaps between neighbours are 2 standard deviations or more of a single study (0.13 for the spammer at 0, 0.25 for
    the noisy at 0.5), so that a study in some 30 may swap two; of 8, two are allowed.
    """
    found = [fitted(seed)[0].raters for seed in range(8)]
    ordered = [sorted(raters, key=lambda name: -raters[name].mean) == list(VICES) for raters in found]
    assert sum(ordered) >= 6
    assert all(raters["malicious"].verdict == "below 0" for raters in found)
    assert all(raters["careful"].verdict == "above 0" for raters in found)
    for name, true in VICES.items():
        means = mean_interval([raters[name].mean for raters in found], 0.999)
        assert means.low < true < means.high
    assert all(raters[name].count == 30 for raters in found for name in VICES)


def test_intervals_of_inverse_temperatures_cover():
    """Of 4 x 12 intervals at 95 %, 40 or more: a false alarm in 2,000 if they are independent."""
    found = [fitted(seed)[0].raters for seed in range(12)]
    covered = sum(raters[name].low < true < raters[name].high for raters in found for name, true in VICES.items())
    assert covered >= 40


def test_with_reliability_the_consensus_is_nearer_to_the_truth():
    """The mean gain over 8 seeds is above 0 at 99.9 %."""
    gains = []
    for seed in range(8):
        weighed, equal, truth = fitted(seed)
        gains.append(errors(equal, truth) - errors(weighed, truth))
    assert mean_interval(gains, 0.999).verdict == "above 0"


def test_where_most_rank_upside_down_they_are_believed():
    rankings, truth = judged(0, raters={"one": 2.0, "two": -2.0, "three": -2.0, "four": -2.0})
    found = consensus(rankings, reliability=True)
    assert found.raters["two"].mean > 0 > found.raters["one"].mean
    assert errors(found, -truth) < errors(found, truth)


# -- tables -----------------------------------------------------------------------------------------------------------
HOSTILE = ["<script>alert(1)</script>", "</td><img src=x onerror=alert(1)>", "\ud800 half", "\0", "\u202eright to left"]


def test_hostile_texts_are_shown_as_text():
    replies = tuple(HOSTILE)
    found = consensus(
        [
            Ranking("<b>Hi</b>", replies, tuple((i,) for i in range(5)), rater="<i>me</i>"),
            Comparison("x", "a", "b", "you"),
        ],
        reliability=True,
    )
    table = found._repr_html_()
    json.dumps(table).encode("utf-8")
    table.encode("utf-8")
    assert "\0" not in table
    for tag in ("<script", "<img", "<b>", "<i>"):
        assert tag not in table
    assert "&lt;script&gt;" in table
    assert "&lt;i&gt;me&lt;/i&gt;" in table
    assert found.contrast(HOSTILE[0], HOSTILE[4], 0).mean > 0
    assert isinstance(found, Consensus)
    assert isinstance(found.raters["<i>me</i>"], Interval)


def test_long_tables_are_cut_and_say_so():
    found = consensus([Comparison(f"prompt {i}", "a" * 1_000_000, "b") for i in range(8)])
    table = found._repr_html_()
    assert "and 3 more prompts" in table
    assert len(table) < 3000
    assert len(repr(found)) < 200
