"""Changes between two models: by hand, by simulation with a known truth, and the files that they are computed from."""

import json
import math
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rlhf_lab.evaluation.changes import (
    GOOD,
    Change,
    expected_by_chance,
    paired_change,
    paired_changes,
    standing,
    unpaired_change,
)
from rlhf_lab.evaluation.evidence import (
    OF_REPLIES,
    Documents,
    Evidence,
    EvidenceError,
    collect_evidence,
    read_evidence,
    write_documents,
    write_replies,
)
from rlhf_lab.evaluation.text import document_nll, document_perplexity, perplexity
from rlhf_lab.maths.intervals import Interval, Ratio, mean_interval, paired_difference, proportion_interval
from rlhf_lab.maths.power import p_value
from rlhf_lab.records import as_conversation
from rlhf_lab.worlds import town

HOSTILE = 'half \ud800, \u202e, \u2028 and "quotes"\n\n<b>'


def evidence(old, new, skills=None, documents=None):
    """Two models; `old` and `new` are quantity -> values."""
    count = len(next(iter(old.values())))
    texts = [f"reply {i}" for i in range(count)]
    prompts = [as_conversation(f"{i}?") for i in range(count)]
    replies = {"old": texts, "new": texts}
    return Evidence(prompts, skills or [""] * count, replies, {"old": old, "new": new}, documents or {})


# ---- one change --------------------------------------------------------------------------------------------


def test_the_bad_news_stands_beside_the_good_news():
    """The true reward rises because harmless rises, and hides that truthful falls: the reason for this module."""
    harmless, truthful = [0.0] * 20 + [1.0] * 20, [1.0] * 40
    old = {"true_reward": [2 * h + t for h, t in zip(harmless, truthful, strict=True)]}
    old |= {"truthful": truthful, "harmless": harmless}
    fallen = [0.0] * 12 + [1.0] * 28
    new = {"true_reward": [2 + t for t in fallen], "truthful": fallen, "harmless": [1.0] * 40}
    rows = {row.quantity: row for row in paired_changes(evidence(old, new), "new", "old")}
    assert {name: row.verdict for name, row in rows.items()} == {
        "true_reward": "better", "truthful": "worse", "harmless": "better",
    }  # fmt: skip
    assert rows["truthful"].interval == paired_difference(fallen, truthful)
    assert (rows["truthful"].before, rows["truthful"].after, rows["truthful"].different) == (1.0, 0.7, 12)
    assert rows["true_reward"].interval.mean == pytest.approx(0.7)


@pytest.mark.parametrize("quantity", [*OF_REPLIES, "perplexity", "perplexity_bad", "kl"])
def test_a_verdict_is_a_direction_and_what_is_good(quantity):
    neutral = 1 if quantity.startswith("perplexity") else 0
    kind = Ratio if neutral else Interval
    for shift, direction in ((0.5, "higher"), (-0.5, "lower"), (0.0, "")):
        mean = neutral + shift
        row = Change(quantity, "", 0, 0, kind(mean, mean - 0.1, mean + 0.1, 50))
        assert row.direction == direction
        good = GOOD.get(quantity)
        expected = "INCONCLUSIVE" if not direction else "changed" if good is None else "better"
        assert row.verdict == ("worse" if expected == "better" and direction != good else expected)


def test_what_a_town_wants_is_not_turned_round():
    assert [GOOD[q] for q in ("true_reward", "truthful", "ended", "polite")] == ["higher"] * 4
    assert [GOOD[q] for q in ("over_refusal", "rude", "perplexity")] == ["lower"] * 3
    assert not {"length", "reward_score", "kl", "perplexity_bad"} & set(GOOD)


@pytest.mark.parametrize(("different", "verdict"), [(5, "INCONCLUSIVE"), (6, "better")])
def test_few_pairs_that_differ_say_nothing(different, verdict):
    """Student's interval leaves 0 out from 4 differing pairs of many on; a sign test needs 6."""
    after = [1.0] * different + [0.0] * (400 - different)
    row = paired_change("helpful", after, [0.0] * 400)
    assert row.interval.low > 0
    assert row.verdict == verdict
    assert (row.p_value == 1.0) == (verdict == "INCONCLUSIVE")


def test_rows_without_a_value_on_a_side_are_left_out_of_both_means():
    row = paired_change("over_refusal", [1.0, None, 0.0, 1.0], [0.0, 1.0, None, 1.0])
    assert (row.before, row.after, row.interval.count) == (0.5, 1.0, 2)
    assert paired_change("over_refusal", [None, 1.0], [0.0, None]) is None


def test_order_and_skills():
    old = {"length": [3.0] * 6, "true_reward": [0.0] * 6, "reward_score": [0.0] * 6}
    new = {"length": [4.0] * 6, "true_reward": [1.0, 1, 1, 2, 2, None], "rude": [0.0] * 6}
    rows = paired_changes(evidence(old, new, ["b", "b", "b", "a", "a", ""]), "new", "old")
    assert [(row.quantity, row.skill) for row in rows] == [
        ("true_reward", ""), ("length", ""), ("true_reward", "a"), ("true_reward", "b"),
    ]  # fmt: skip
    assert [row.interval.mean for row in rows] == pytest.approx([1.4, 1.0, 2.0, 1.0])
    with pytest.raises(ValueError, match=r"model is 'none'; expected one of \['old', 'new'\]"):
        paired_changes(evidence(old, new), "none", "old")


# ---- perplexities ------------------------------------------------------------------------------------------


def test_perplexities_are_compared_document_by_document():
    rng = np.random.default_rng(0)
    tokens = rng.integers(5, 60, 40)
    nats = tokens * rng.gamma(3, 0.3, 40)  # documents differ a lot
    documents = {"perplexity": Documents(["x"] * 40, tokens.tolist(), {"old": nats, "new": nats + 0.02 * tokens})}
    (row,) = paired_changes(_bare(documents), "new", "old")
    assert row.interval.mean == pytest.approx(math.exp(0.02))
    assert row.interval.low == pytest.approx(row.interval.high)  # what makes a document hard cancels
    assert (row.verdict, row.different) == ("worse", 40)
    apart = unpaired_change("perplexity", *(document_perplexity(x, tokens) for x in (nats + 0.02 * tokens, nats)))
    assert apart.interval.mean == pytest.approx(row.interval.mean)
    assert apart.verdict == "INCONCLUSIVE"
    assert row.p_value < 1e-6 < apart.p_value


def _bare(documents):
    return Evidence([], [], {"old": [], "new": []}, {"old": {}, "new": {}}, documents)


def test_document_perplexity_is_that_of_the_text(tiny_gpt2):
    texts = ["When does the library close?", "It closes at six.", "Go away."]
    assert document_perplexity(*document_nll(tiny_gpt2, texts)) == perplexity(tiny_gpt2, texts)


# ---- chance ------------------------------------------------------------------------------------------------


def test_p_values_are_those_of_the_intervals():
    rng = np.random.default_rng(1)
    for shift in (0.0, 0.1, 0.3, 0.6):
        after, before = rng.normal(shift, 1, 60), rng.normal(0, 1, 60)
        row = paired_change("length", after.tolist(), before.tolist())
        assert row.p_value == pytest.approx(p_value(partial(paired_difference, after, before)), rel=1e-4, abs=1e-9)
        assert (row.p_value < 0.05) == (row.direction != "")


def test_without_a_difference_one_row_in_twenty_leaves_0_out_and_after_holm_one_evaluation_in_twenty():
    """300 evaluations of 20 quantities, normal and yes-or-no, paired. With a fixed seed there is no false alarm; with
    another one 6,000 rows would leave the bounds in less than one case in a thousand (5 % +- 3.5 standard errors)."""
    rng = np.random.default_rng(2)
    alarms, families = 0, 0
    for _ in range(300):
        normal = rng.normal(0, 1, (10, 2, 80))
        shares = (rng.random((10, 2, 80)) < 0.4).astype(float)
        rows = [paired_change("length", *pair.tolist()) for pair in (*normal, *shares)]
        rows = standing(rows)
        alarms += sum(row.direction != "" for row in rows)
        families += any(row.stands for row in rows)
    assert expected_by_chance(rows) == pytest.approx(1.0)
    assert 0.04 <= alarms / 6000 <= 0.06
    assert families / 300 <= 0.09  # 5 % and three standard errors


def test_holm_takes_back_what_stands_alone():
    edge = Change("helpful", "", 0.5, 0.6, Interval(0.1, 0.01, 0.19, 400))
    nothing = [Change("form", "", 1.0, 1.0, Interval(0.0, -0.1, 0.1, 400)) for _ in range(19)]
    assert [row.stands for row in standing([edge])] == [True]
    assert not any(row.stands for row in standing([edge, *nothing]))
    sure = replace(edge, interval=Interval(0.1, 0.08, 0.12, 400))
    assert [row.stands for row in standing([sure, *nothing])] == [True] + [False] * 19


def test_unpaired_intervals_cover():
    """Two shares of 60 rows each, 2,000 times: 95 % +- 1.7 (3.5 standard errors), as the method's source says."""
    rng, held = np.random.default_rng(3), 0
    for _ in range(2000):
        a, b = (proportion_interval(int(rng.binomial(60, p)), 60) for p in (0.9, 0.75))
        found = unpaired_change("helpful", a, b).interval
        held += found.low <= 0.15 <= found.high
    assert 0.933 <= held / 2000 <= 0.967


def test_unpaired_normal_means_by_hand():
    a, b = mean_interval([3.0, 5.0, 4.0]), mean_interval([1.0, 2.0, 1.5])
    row = unpaired_change("length", a, b)
    half = ((a.high - a.mean) ** 2 + (b.high - b.mean) ** 2) ** 0.5
    assert (row.interval.low, row.interval.high) == pytest.approx((2.5 - half, 2.5 + half))
    assert not row.paired


# ---- evidence and its files --------------------------------------------------------------------------------


def rollout(conversations, texts):
    lengths = torch.tensor([len(text) for text in texts])
    batch = SimpleNamespace(response_lengths=lengths)
    ended = torch.ones(len(texts), dtype=torch.bool)
    return SimpleNamespace(conversations=tuple(conversations), texts=tuple(texts), batch=batch, ended=ended)


@pytest.fixture
def found():
    prompts = [as_conversation("When does the library close?"), as_conversation("What is love?")]
    old = rollout(prompts, ["The library closes at six.", "A feeling."])
    new = rollout(prompts, ["I do not know. Now go away.", HOSTILE])
    documents = {"perplexity": Documents(["a b", HOSTILE], [1, 2], {"old": [0.5, 1.0], "new": [0.25, 2.0]})}
    return collect_evidence({"old": old, "new": new}, {"old": [0.5, 1.5], "new": [1.0, 2.0]}, documents)


def test_what_a_reply_is_worth(found):
    old, new = found.values["old"], found.values["new"]
    assert list(old) == list(OF_REPLIES)
    assert found.skills == ["ask", ""]
    verdict = town.score_replies(found.prompts[:1], ["The library closes at six."], [True])[0]
    assert old["true_reward"] == [verdict.reward, None]
    assert (old["rude"], new["rude"]) == ([0.0, None], [1.0, None])
    assert old["over_refusal"] == [0.0, None]
    assert old["reward_score"] == [0.5, 1.5]
    assert new["length"] == [27.0, float(len(HOSTILE))]
    with pytest.raises(ValueError, match="other prompts"):
        collect_evidence({"a": rollout(found.prompts, ["x", "y"]), "b": rollout(found.prompts[::-1], ["x", "y"])})


def test_what_is_written_is_read(found, tmp_path):
    write_replies(tmp_path / "replies.jsonl", found)
    write_documents(tmp_path / "documents.jsonl", found)
    again = read_evidence(tmp_path / "replies.jsonl", tmp_path / "documents.jsonl")
    assert list(again.prompts) == list(found.prompts)
    assert {name: list(texts) for name, texts in again.replies.items()} == {
        name: list(texts) for name, texts in found.replies.items()
    }
    assert again.values == found.values
    assert again.documents == found.documents
    assert (tmp_path / "replies.jsonl").read_text().isascii()
    assert read_evidence(tmp_path / "replies.jsonl").documents == {}
    assert paired_changes(again, "new", "old") == paired_changes(found, "new", "old")


def _without(line, *path):
    row = json.loads(line)
    inner = row
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    return json.dumps(row)


@pytest.mark.parametrize(
    "damage",
    [
        lambda line: line[:-3],
        lambda line: "[]",
        lambda line: line.replace("1.5", "NaN"),
        lambda line: line.replace("1.5", '"1.5"'),
        lambda line: _without(line, "prompt"),
        lambda line: _without(line, "models", "new"),
        lambda line: _without(line, "models", "new", "rude"),
        lambda line: _without(line, "models", "new", "reply"),
    ],
)
def test_a_damaged_line_is_named(damage, found, tmp_path):
    write_replies(tmp_path / "replies.jsonl", found)
    first, second = (tmp_path / "replies.jsonl").read_text().splitlines()
    (tmp_path / "replies.jsonl").write_text(f"{first}\n{damage(second)}\n")
    with pytest.raises(EvidenceError, match=r"replies\.jsonl, line 2: .*run the demo again"):
        read_evidence(tmp_path / "replies.jsonl")


def test_damaged_documents_and_a_missing_file(found, tmp_path):
    write_replies(tmp_path / "replies.jsonl", found)
    write_documents(tmp_path / "documents.jsonl", found)
    first, second = (tmp_path / "documents.jsonl").read_text().splitlines()
    for bad in (second.replace('"tokens": 2', '"tokens": 0'), _without(second, "nats", "new")):
        (tmp_path / "documents.jsonl").write_text(f"{first}\n{bad}\n")
        with pytest.raises(EvidenceError, match=r"documents\.jsonl"):
            read_evidence(tmp_path / "replies.jsonl", tmp_path / "documents.jsonl")
    with pytest.raises(EvidenceError, match="cannot be read"):
        read_evidence(tmp_path / "nowhere.jsonl")


def test_columns_of_other_lengths_are_refused():
    prompts = [as_conversation("a?")]
    with pytest.raises(ValueError, match=r"values of new\.length is 2; expected 1"):
        Evidence(prompts, [""], {"new": ["x"]}, {"new": {"length": [1.0, 2.0]}})
    with pytest.raises(ValueError, match=r"values of new is 1; expected 2"):
        Documents(["a", "b"], [1, 2], {"new": [1.0]})


def test_a_share_cannot_change_by_more_than_all_of_it():
    """Seven replies of which six more end: Student's interval alone goes beyond 100 points."""
    change = paired_change("ended", [1.0] * 7, [1.0] + [0.0] * 6)
    assert paired_difference([1.0] * 7, [1.0] + [0.0] * 6).high > 1
    assert (change.interval.high, change.verdict) == (1.0, "better")
    fallen = paired_change("ended", [1.0] + [0.0] * 6, [1.0] * 7)
    assert (fallen.interval.low, fallen.interval.high) == (-1.0, -change.interval.low)
    assert paired_change("length", [9.0, 2.0], [1.0, 1.0]).interval.high > 10
