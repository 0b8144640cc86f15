"""Feedback to numbers: each against its definition, an exact solution or another library.

The statistical tests simulate with fixed seeds; how often they would fail for another seed, with the code as it is,
stands beside each.
"""

import itertools
import math
from dataclasses import replace

import choix
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from scipy import stats

from conftest import with_format
from rlhf_lab.feedback.targets import (
    edit_changes,
    edit_to_demonstration,
    edit_to_mark,
    edit_to_unit,
    listwise_ranking_loss,
    pairwise_ranking_loss,
    pool_raters,
    rankings_to_scores,
    rating_to_unit,
    ratings_to_scores,
    ratings_to_unit,
    to_comparisons,
    z_scores,
)
from rlhf_lab.feedback.token_targets import marks_to_token_rewards
from rlhf_lab.feedback.turn_rewards import (
    delayed_rewards,
    ratings_to_turn_scores,
    shaped,
    shaping_rewards,
    sparse_rewards,
    turn_returns,
)
from rlhf_lab.maths.intervals import mean_interval
from rlhf_lab.maths.mdp import TabularMDP, chain, dialogue, expected_return, policy_evaluation, value_iteration
from rlhf_lab.models.tokens import encode_responses
from rlhf_lab.records import (
    Choice,
    Comparison,
    Demonstration,
    Edit,
    Mark,
    Message,
    Ranking,
    Rating,
    as_conversation,
)

torch.set_num_threads(1)
HI = as_conversation("Hi")


# ---- ratings -------------------------------------------------------------------------------------------------


def test_ratings_by_their_scale():
    for low, high, score, unit in ((1, 5, 1, 0), (1, 5, 5, 1), (1, 7, 4, 0.5), (-10, 10, 5, 0.75), (0, 1, 0.3, 0.3)):
        assert rating_to_unit(Rating("Hi", "a", score, low, high)) == pytest.approx(unit)
    assert ratings_to_unit([]).shape == (0,)


def test_z_scores_are_scipys():
    values = np.random.default_rng(0).normal(size=20)
    assert z_scores(values) == pytest.approx(stats.zscore(values))
    assert z_scores([0.1] * 3).tolist() == [0.0] * 3
    assert z_scores([0.7]).tolist() == [0.0]


def test_normalised_ratings_do_not_depend_on_how_a_rater_uses_the_scale():
    mild = [Rating("Hi", str(i), s, rater="ann") for i, s in enumerate((3, 4, 5))]
    stern = [Rating("Hi", str(i), s, rater="bob") for i, s in enumerate((1, 2, 3))]
    wide = [Rating("Hi", str(i), s, 0, 100, rater="ann", simulated=True) for i, s in enumerate((10, 50, 90))]
    units = ratings_to_unit(mild + stern + wide, z_scores)
    expected = stats.norm.cdf([-math.sqrt(1.5), 0, math.sqrt(1.5)])
    assert units == pytest.approx(np.tile(expected, 3))
    assert ratings_to_unit(mild + stern)[:3] == pytest.approx([0.5, 0.75, 1.0])
    assert ratings_to_unit(mild, lambda own: own * 0).tolist() == [0.5] * 3  # any other law of a rater


# ---- rankings ------------------------------------------------------------------------------------------------


def test_pairs_of_every_form():
    def pairs(record):
        return [(c.prompt, c.chosen, c.rejected, c.rater, c.simulated) for c in to_comparisons(record)]

    ranking = Ranking("Hi", ("a", "b", "c", "b"), ((2,), (0, 1), (3,)), rater="ann", simulated=True)
    said = [("c", "a"), ("c", "b"), ("c", "b"), ("a", "b")]  # of the two equal replies in different tiers, none
    assert pairs(ranking) == [(HI, *pair, "ann", True) for pair in said]
    assert pairs(Ranking("Hi", ("a", "b"), (), "all_bad")) == []
    outcomes = [pairs(Choice("Hi", "a", "b", outcome, rater="bob")) for outcome in (1, 0, -1)]
    assert outcomes == [[(HI, "a", "b", "bob", False)], [], [(HI, "b", "a", "bob", False)]]
    assert pairs(Choice("Hi", "a", "a", 1)) == []
    assert pairs(Edit("Hi", "a", "b", rater="cy")) == [(HI, "b", "a", "cy", False)]
    assert pairs(Edit("Hi", "a", "a")) == []
    assert to_comparisons(Comparison("Hi", "a", "b")) == [Comparison("Hi", "a", "b")]


TIERS = [((0,), (1,), (2,), (3,)), ((3, 1), (0,), (2,)), ((2,), (0, 1, 3)), ((0, 1, 2, 3),), ((0, 2), (1, 3)), ()]


def by_definition(scores, tiers):
    """(pairwise, listwise) in the words of the definition."""
    pairs = [(i, j) for n, tier in enumerate(tiers) for lower in tiers[n + 1 :] for i in tier for j in lower]
    pairwise = [math.log(1 + math.exp(scores[j] - scores[i])) for i, j in pairs]
    listwise = []
    for order in itertools.permutations(range(len(scores))):
        places = [next(n for n, tier in enumerate(tiers) if i in tier) for i in order] if tiers else [1, 0]
        if places == sorted(places):
            chosen = [math.exp(scores[i]) / sum(math.exp(scores[j]) for j in order[n:]) for n, i in enumerate(order)]
            listwise.append(-math.log(math.prod(chosen)))
    return [sum(losses) / len(losses) if losses else 0.0 for losses in (pairwise, listwise)]


@pytest.mark.parametrize("tiers", TIERS)
def test_ranking_losses_by_definition(tiers):
    ranking = Ranking("Hi", ("a", "b", "c", "d"), tiers, "done" if tiers else "all_bad")
    scores = torch.randn(4, generator=torch.Generator().manual_seed(2), dtype=torch.float64, requires_grad=True)
    losses = [pairwise_ranking_loss(scores, ranking), listwise_ranking_loss(scores, ranking)]
    assert [loss.item() for loss in losses] == pytest.approx(by_definition(scores.tolist(), tiers))
    for loss in (pairwise_ranking_loss, listwise_ranking_loss):
        assert torch.autograd.gradcheck(lambda s, loss=loss: loss(s, ranking), scores)
        assert loss(scores, ranking).item() == pytest.approx(loss(scores + 7, ranking).item())


def test_ranking_losses_refuse():
    many = Ranking("Hi", tuple(map(str, range(9))), (tuple(range(9)),))
    with pytest.raises(ValueError, match="ties that 362880 orders fit; expected 40320 or fewer"):
        listwise_ranking_loss(torch.zeros(9), many)
    for loss in (pairwise_ranking_loss, listwise_ranking_loss):
        with pytest.raises(ValueError, match=r"scores has shape \[2\]; expected \[9\]"):
            loss(torch.zeros(2), many)
    for bad in ({"loss": "hinge"}, {"ridge": 0.0}):
        with pytest.raises(ValueError, match="expected one of"):
            rankings_to_scores([many], **bad)


def random_rankings(count, size=5, seed=3):
    rng = np.random.default_rng(seed)
    truth, replies = np.linspace(2, 0, size), tuple("abcdefgh"[:size])
    orders = [np.argsort(-(truth + rng.gumbel(size=size))).tolist() for _ in range(count)]
    return replies, orders


def test_scores_are_choix_s():
    """Plackett-Luce and Bradley-Terry with the same ridge, by the other library's optimiser."""
    replies, orders = random_rankings(30)
    rankings = [Ranking("Hi", replies, tuple((i,) for i in order), rater=f"r{n}") for n, order in enumerate(orders)]
    listwise = rankings_to_scores(rankings, "listwise", ridge=0.05)
    assert list(listwise) == [(HI, reply) for reply in replies]
    assert list(listwise.values()) == pytest.approx(choix.opt_rankings(5, orders, alpha=0.05), abs=1e-5)
    pairs = [(order[i], order[j]) for order in orders for i, j in itertools.combinations(range(5), 2)]
    pairwise = rankings_to_scores(rankings, "pairwise", ridge=0.05)
    theirs = choix.opt_pairwise(5, pairs, alpha=0.05 * 10)  # they sum the 10 pairs of a ranking, we take the mean
    assert list(pairwise.values()) == pytest.approx(theirs, abs=1e-5)
    assert sum(listwise.values()) == pytest.approx(0, abs=1e-6)


def test_scores_join_rankings_of_different_replies():
    rankings = [
        Ranking("Hi", ("a", "b"), ((0,), (1,))),
        Ranking("Hi", ("c", "b"), ((1,), (0,))),
        Ranking("Bye", ("b", "a"), ((0,), (1,))),
        Ranking("Bye", ("b", "a"), (), "skipped"),
    ]
    for loss in ("pairwise", "listwise"):
        scores = rankings_to_scores(rankings, loss)
        assert scores[HI, "a"] > scores[HI, "b"] > scores[HI, "c"]
        assert scores[HI, "b"] == pytest.approx(0, abs=1e-5)  # a over b over c is symmetric
        assert scores[as_conversation("Bye"), "b"] > scores[as_conversation("Bye"), "a"]
    tied = rankings_to_scores([Ranking("Hi", ("a", "b", "c"), ((0, 1), (2,)))])
    assert tied[HI, "a"] == pytest.approx(tied[HI, "b"], abs=1e-5)
    assert rankings_to_scores([]) == {}


# ---- edits ---------------------------------------------------------------------------------------------------

WORDS = st.lists(st.sampled_from(("a", "b", "c", "d", "e")), max_size=14)
GAPS = st.sampled_from((" ", "  ", "\n", "\t"))


@settings(deadline=None, max_examples=200)
@given(WORDS, WORDS, GAPS)
def test_edits_can_be_applied(old, new, gap):
    """The changes, carried out from the end, give the edited words; what is kept is a common subsequence."""
    edit = Edit("Hi", gap.join(old), gap.join(new))
    changes = edit_changes(edit)
    text = edit.reply
    for start, end, put in reversed(changes.changes):
        assert not text[start:end] or (text[start:end] == text[start:end].strip())
        text = f"{text[:start]} {put} {text[end:]}"
    assert text.split() == new
    removed = sum(len(edit.reply[start:end].split()) for start, end, _ in changes.changes)
    added = sum(len(put.split()) for _, _, put in changes.changes)
    assert len(old) - removed == len(new) - added
    assert changes.kept == pytest.approx((len(old) - removed) / len(old) if old else 1.0)
    total = len(old) + len(new)
    assert changes.similarity == pytest.approx(2 * (len(old) - removed) / total if total else 1.0)


def test_edits_by_hand():
    changed = Edit("Hi", "The zoo is in town.", "Sorry, the zoo is in the old town.", rater="ann", simulated=True)
    found = edit_changes(changed)
    assert found.changes == ((0, 3, "Sorry, the"), (14, 14, "the old"))
    assert (found.kept, found.similarity) == (0.8, 2 * 4 / 13)
    assert edit_to_unit(changed) == found.similarity
    assert edit_to_mark(changed) == Mark("Hi", changed.reply, ((0, 3),), "ann", True)  # what was put in marks nothing
    assert edit_to_demonstration(changed) == Demonstration("Hi", changed.edited)
    for edited, kept in (
        ("The zoo is in town.", 1),
        ("", 0),
        ("The zoo  is in town.", 1),
        ("town. in is zoo The", 0.2),
    ):
        assert edit_changes(Edit("Hi", "The zoo is in town.", edited)).kept == kept, edited
    assert edit_to_unit(Edit("Hi", "", "")) == 1
    assert edit_to_unit(Edit("Hi", "", "Hello.")) == 0


def test_long_edits_are_bounded():
    reply = " ".join(str(i) for i in range(100_000))
    one = edit_changes(Edit("Hi", reply, reply.replace(" 5000 ", " five ")))
    assert one.changes == ((reply.index(" 5000 ") + 1, reply.index(" 5000 ") + 5, "five"),)
    assert one.kept == pytest.approx(1 - 1e-5)
    backwards = edit_changes(Edit("Hi", reply, " ".join(reversed(reply.split()))))  # one change, not an hour
    assert len(backwards.changes) == 1


# ---- marks ---------------------------------------------------------------------------------------------------

TRICKY = st.text(st.sampled_from("ab ,\n.éß中文😀👩‍👧\u0301\u200b\ud83d<|>"), min_size=1, max_size=25)


@st.composite
def marked(draw):
    text = draw(TRICKY)
    cuts = draw(st.lists(st.integers(0, len(text)), max_size=6, unique=True).map(sorted))
    return Mark("Hi", text, tuple(zip(cuts[::2], cuts[1::2], strict=False)))


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(marked(), min_size=1, max_size=3), st.floats(-3, 3).filter(lambda t: abs(t) > 1e-3))
def test_the_rewards_of_a_marked_reply_sum_to_the_total(tiny_lm, marks, total):
    rewards, mask = marks_to_token_rewards(tiny_lm, marks, total)
    for b, mark in enumerate(marks):
        assert rewards[b].sum().item() == pytest.approx(total if mark.spans else 0.0, abs=1e-5)
        assert not rewards[b][~mask[b]].any()
        assert (rewards[b] * total >= 0).all()
    clean = [mark.reply.encode("utf-8", "replace").decode() for mark in marks]
    assert mask.sum(1).tolist() == [len(row) for row in encode_responses(tiny_lm, clean)] or any(
        "\ud83d" in mark.reply for mark in marks
    )


def test_each_word_gets_its_share_whatever_the_tokenizer(tiny_gpt2, tiny_llama):
    text = "Mia met 😀 and a fox in the wood."
    spans = tuple((text.index(word), text.index(word) + len(word)) for word in ("Mia", "😀", "wood"))
    for lm in (tiny_gpt2, tiny_llama):
        rewards, _ = marks_to_token_rewards(lm, [Mark("Hi", text, spans)], total=-8.0)
        offsets = lm.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        shares = [
            sum(r for r, (start, end) in zip(rewards[0].tolist(), offsets, strict=False) if start < b and end > a)
            for a, b in spans
        ]
        assert shares == pytest.approx([-3.0, -1.0, -4.0], abs=1e-5)  # 3, 1 and 4 characters of 8
        assert rewards[0].sum().item() == pytest.approx(-8.0, abs=1e-5)
        assert rewards[0, -1] == 0  # the end token
    emoji = tiny_gpt2.tokenizer("😀", add_special_tokens=False)["input_ids"]
    assert len(emoji) == 4  # so a character of several tokens was tested


def test_marks_by_slow_definition(tiny_lm):
    """Character by character, each gives its share to the tokens that hold it."""
    text = "When does the museum close? é"
    mark = Mark("Hi", text, ((5, 12), (20, 21), (28, 29)))
    rewards, _ = marks_to_token_rewards(tiny_lm, [mark], total=-1.0)
    offsets = tiny_lm.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    expected = [0.0] * (len(offsets) + 1)
    characters = [c for start, end in mark.spans for c in range(start, end)]
    for c in characters:
        holders = [t for t, (start, end) in enumerate(offsets) if start <= c < end]
        for t in holders or [next((t for t, (start, _) in enumerate(offsets) if start >= c), len(offsets))]:
            expected[t] -= 1 / len(characters) / max(1, len(holders))
    assert rewards[0].tolist() == pytest.approx(expected, abs=1e-6)


def test_marks_line_up_with_the_responses(tiny_lm):
    end = tiny_lm.tokenizer.decode([tiny_lm.end_id])
    replies = ["At six.", "", f"By the river.{end}", "You are very kind, thank you!"]
    spans = [((0, 2),), (), ((3, 6),), ()]
    marks = [Mark("Hi", reply, span) for reply, span in zip(replies, spans, strict=True)]
    rewards, mask = marks_to_token_rewards(tiny_lm, marks, total=[-1, -2, -3, -4])
    rows = encode_responses(tiny_lm, replies)
    assert mask.sum(1).tolist() == list(map(len, rows))
    assert rewards.sum(1).tolist() == pytest.approx([-1, 0, -3, 0], abs=1e-6)
    bare, _ = marks_to_token_rewards(tiny_lm, [Mark("Hi", "By the river.", ((3, 6),))], total=-3.0)
    assert rewards[2, : bare.shape[1]].tolist() == pytest.approx(bare[0].tolist())
    written = Mark("Hi", f"Hi{end}", ((2, 2 + len(end)),))  # the end token itself was marked
    rewards, _ = marks_to_token_rewards(tiny_lm, [written])
    assert rewards[0].tolist()[-1] == pytest.approx(-1)


def test_marks_that_cannot_be_used(tiny_gpt2):
    one = Mark("Hi", "a", ((0, 1),))
    for marks, total in (([], -1.0), ([one], [-1.0, -2.0]), ([one], math.nan)):
        with pytest.raises(ValueError, match="expected as many, finite, at least 1"):
            marks_to_token_rewards(tiny_gpt2, marks, total)
    slow = with_format(tiny_gpt2)

    class Slow(type(slow.tokenizer)):
        is_fast = False

    slow.tokenizer.__class__ = Slow
    with pytest.raises(ValueError, match=r"the tokenizer is a Slow, .* expected a fast one"):
        marks_to_token_rewards(slow, [one])


# ---- several raters ------------------------------------------------------------------------------------------


def test_pooled_means():
    scores = [0.1, 0.5, 0.4, 0.9]
    assert pool_raters(scores) == mean_interval(scores)
    equal, plain = pool_raters(scores, reliability=[2, 2, 2, 2]), mean_interval(scores)
    assert (equal.mean, equal.low, equal.high) == pytest.approx((plain.mean, plain.low, plain.high))
    assert pool_raters([0.3], reliability=[5.0]).low == -math.inf
    assert pool_raters([0, 1], reliability=[1, 3]).mean == 0.75
    for bad in ({"how": "mode"}, {"how": "median", "reliability": [1] * 4}):
        with pytest.raises(ValueError, match="expected 'mean', or 'median' without reliability"):
            pool_raters(scores, **bad)
    for weights in ([1, 2], [1, 1, 1, 0]):
        with pytest.raises(ValueError, match="expected 4 positive weights"):
            pool_raters(scores, reliability=weights)


def test_the_weighted_interval_is_that_of_weighted_least_squares():
    """A weighted regression on a constant, solved by an ordinary one on scaled rows."""
    rng = np.random.default_rng(4)
    scores, weights = rng.normal(size=7), rng.uniform(0.2, 4, 7)
    design, target = np.sqrt(weights)[:, None], np.sqrt(weights) * scores
    solution, (squares,), *_ = np.linalg.lstsq(design, target, rcond=None)
    half = stats.t.ppf(0.95, 6) * math.sqrt(squares / 6 / (design.T @ design).item())
    pooled = pool_raters(scores, reliability=weights, level=0.9)
    assert (pooled.mean, pooled.high - pooled.mean) == pytest.approx((solution[0], half))


def test_the_weighted_interval_covers():
    """Normal errors with variance 1 / w: exact, so of 4000 studies 95 % +- 4 standard errors (missed: 6e-5)."""
    rng = np.random.default_rng(5)
    weights = np.array([0.2, 1.0, 5.0, 5.0])
    pooled = [pool_raters(rng.normal(size=4) / np.sqrt(weights), reliability=weights) for _ in range(4000)]
    covered = np.mean([p.low <= 0 <= p.high for p in pooled])
    assert abs(covered - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 4000), covered


def test_the_median_interval():
    """P(the median lies between order statistics k and n + 1 - k) = 1 - 2 P(Bin(n, 1/2) < k), whatever the law."""
    for count in range(1, 40):
        pooled = pool_raters(np.arange(count, dtype=float), "median")
        k = int(pooled.low) + 1 if pooled.low > -math.inf else 0
        covers = [1 - 2 * stats.binom.cdf(j - 1, count, 0.5) for j in (k, k + 1)]
        assert covers[0] >= 0.95 > covers[1] or (k == 0 and covers[1] < 0.95)
        assert pooled.mean == np.median(np.arange(count))
        assert (k == 0) == (count < 6)
        if k:
            assert pooled.high == count - k
    rng = np.random.default_rng(6)  # a skewed law: at least 95 % of 2000, less 4 standard errors (missed: 3e-5)
    hits = [
        p.low <= math.log(2) <= p.high for p in (pool_raters(rng.exponential(size=9), "median") for _ in range(2000))
    ]
    assert np.mean(hits) > 0.95 - 4 * math.sqrt(0.95 * 0.05 / 2000)


def test_ratings_to_scores():
    given = [
        Rating("Hi", "a", 5, rater="ann"),
        Rating("Hi", "a", 3, rater="ann"),  # once more: one opinion, 0.75
        Rating("Hi", "a", 2, rater="bob"),
        Rating("Hi", "b", 1, rater="bob"),
        Rating("Bye", "a", 7, 1, 7, rater="bob"),
    ]
    scores = ratings_to_scores(given)
    assert {(prompt[0].content, reply): (s.mean, s.count) for (prompt, reply), s in scores.items()} == {
        ("Hi", "a"): (0.5, 2),
        ("Hi", "b"): (0.0, 1),
        ("Bye", "a"): (1.0, 1),
    }
    assert ratings_to_scores(given, reliability={"ann": 3, "bob": 1})[HI, "a"].mean == pytest.approx(0.625)
    with pytest.raises(ValueError, match=r"no weight for \['bob'\]"):
        ratings_to_scores(given, reliability={"ann": 1})


# ---- dialogues -----------------------------------------------------------------------------------------------

SCORES = st.lists(st.floats(-5, 5), min_size=1, max_size=8)


@given(SCORES, st.floats(0.5, 1))
def test_late_rewards_pay_as_much(scores, gamma):
    """The return of the whole dialogue is the same: with gamma 1 for the plain sum at the end, else a scaled one."""
    every, late = turn_returns(scores), turn_returns(delayed_rewards(scores))
    assert late[0].item() == pytest.approx(every[0].item(), abs=1e-9)
    assert late.tolist() == pytest.approx([sum(scores)] * len(scores), abs=1e-9)
    every, late = turn_returns(scores, gamma), turn_returns(delayed_rewards(scores, gamma), gamma)
    assert late[0].item() == pytest.approx(every[0].item(), rel=1e-9, abs=1e-9)
    naive = [sum(gamma ** (i - t) * s for i, s in enumerate(scores) if i >= t) for t in range(len(scores))]
    assert every.tolist() == pytest.approx(naive, abs=1e-9)


def test_plain_lateness_costs_under_a_discount():
    assert turn_returns([1.0, 0.0, 0.0], 0.9)[0].item() == 1
    assert turn_returns(delayed_rewards([1.0, 0.0, 0.0]), 0.9)[0].item() == pytest.approx(0.81)
    assert turn_returns(sparse_rewards(2.0, 3), 0.5).tolist() == [0.5, 1.0, 2.0]


def test_turn_scores_follow_the_dialogue():
    first = Rating("Hi", "Hello.", 5)
    said = (*first.prompt, Message("assistant", "Hello."), Message("user", "Where?"))
    second = Rating(said, "In town.", 2)
    third = Rating((*said, Message("assistant", "In town."), Message("user", "Thanks.")), "Bye.", 3)
    assert ratings_to_turn_scores([third, first, second]).tolist() == [1.0, 0.25, 0.5]
    for wrong in ([first, third], [first, replace(second, reply="Elsewhere."), third], [first, first]):
        with pytest.raises(ValueError, match="does not continue the turn"):
            ratings_to_turn_scores(wrong)


def test_rewards_of_a_dialogue_refuse():
    for bad in (
        lambda: ratings_to_turn_scores([]),
        lambda: delayed_rewards([]),
        lambda: delayed_rewards([math.nan]),
        lambda: delayed_rewards([1.0], gamma=0),
        lambda: sparse_rewards(1.0, 0),
        lambda: sparse_rewards(math.inf, 2),
        lambda: shaping_rewards([1.0]),
        lambda: shaping_rewards([0.0, 1.0]),
        lambda: shaped(chain(2), [0.0, 1.0]),
        lambda: shaped(chain(2), [0.0, 1.0, 0.5]),
        lambda: shaped(replace(chain(2), horizon=3), [0.0, 1.0, 0.0]),
    ):
        with pytest.raises(ValueError, match="expected"):
            bad()


# ---- shaping -------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=8), st.floats(0.1, 1))
def test_shaping_pays_the_same_for_every_way(potentials, gamma):
    bonus = shaping_rewards([*potentials, 0.0], gamma)
    assert turn_returns(bonus, gamma)[0].item() == pytest.approx(-potentials[0], abs=1e-9)


def random_mdp(seed, states=6, actions=3, gamma=0.9):
    """The last state is absorbing, and every action may lead to it."""
    rng = np.random.default_rng(seed)
    moves = rng.dirichlet([0.5] * states, (states, actions)) * 0.95
    moves[..., -1] += 0.05
    rewards = rng.normal(size=(states, actions))
    moves[-1], moves[-1, :, -1], rewards[-1] = 0, 1, 0
    potential = torch.tensor([*rng.normal(0, 3, states - 1), 0.0])
    return TabularMDP(moves, rewards, np.full(states, 1 / states), gamma), potential


@pytest.mark.parametrize("gamma", [0.5, 0.9, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_shaping_moves_values_by_the_potential_and_no_policy(seed, gamma):
    mdp, potential = random_mdp(seed, gamma=gamma)
    other = shaped(mdp, potential)
    policy = torch.tensor(np.random.default_rng(seed).dirichlet([1.0] * 3, 6))
    difference = policy_evaluation(other, policy) - policy_evaluation(mdp, policy)
    assert torch.allclose(difference, -potential, atol=1e-9)
    (values, best), (other_values, other_best) = value_iteration(mdp), value_iteration(other)
    assert torch.allclose(other.q_values(other_values), mdp.q_values(values) - potential[:, None], atol=1e-8)
    assert torch.equal(best, other_best)


@pytest.mark.parametrize("timing", ["immediate", "delayed", "sparse"])
def test_shaping_a_real_dialogue(timing):
    """Any potential leaves the best replies; a bonus for asking, which no potential gives, changes them."""
    mdp = dialogue(timing)
    values, best = value_iteration(mdp)
    rng = np.random.default_rng(0)
    potential = torch.tensor(np.where(mdp.absorbing, 0, rng.normal(0, 5, len(mdp.start))))
    _, other_best = value_iteration(shaped(mdp, potential))
    assert expected_return(mdp, other_best) == pytest.approx(expected_return(mdp, best).item(), abs=1e-9)
    assert torch.allclose(value_iteration(shaped(mdp, values))[0], torch.zeros_like(values), atol=1e-9)
    lure = torch.zeros_like(mdp.rewards)
    lure[~mdp.absorbing, 3] = 10.0  # "I do not know."
    _, lured = value_iteration(replace(mdp, rewards=mdp.rewards + lure))
    assert expected_return(mdp, lured) < expected_return(mdp, best) - 0.5


def test_a_potential_at_the_end_would_change_the_best_policy():
    """Why it must be 0 there: paid for the end itself, the agent hurries to it."""
    mdp = chain(3, gamma=0.9)
    moves = mdp.transitions.clone()
    moves[:, 0] = 0
    moves[:, 0, -1] = 1  # "left" now ends the episode at once, for nothing
    mdp = replace(mdp, transitions=moves)
    potential = torch.tensor([0.0, 0.0, 0.0, 10.0], dtype=torch.float64)
    bonus = mdp.gamma * (mdp.transitions @ potential) - potential[:, None]
    bonus[-1] = 0  # an absorbing state pays nothing
    before, after = (value_iteration(m)[1] for m in (mdp, replace(mdp, rewards=mdp.rewards + bonus)))
    assert not torch.equal(before, after)
