"""Each rule finds what was planted, names its rows, and leaves clean preferences alone."""

import random

import pytest
from toy_models import word_model

from rlhf_lab.feedback.preference_lint import Finding, as_pairs, lint, longer
from rlhf_lab.records import Choice, Comparison, Edit, Ranking, as_conversation


def clean(count, seed=0, longer_wins=0.5):
    """Comparisons of one prompt each, the longer reply chosen with a given probability."""
    rng = random.Random(seed)
    found = []
    for number in range(count):
        short, long = f"reply {number}", f"reply {number} and more"
        pair = (long, short) if rng.random() < longer_wins else (short, long)
        found.append(Comparison(as_conversation(f"prompt {number}"), *pair))
    return found


def rows(findings, rule):
    return [finding.rows for finding in findings if finding.rule == rule]


def test_clean_preferences_have_no_findings():
    assert lint(clean(200), word_model(), max_new_tokens=8, held_out=[Comparison("Hi", "a", "b")]) == []
    assert lint([]) == []


@pytest.mark.parametrize(
    ("rule", "planted"),
    [
        ("empty", [Comparison("Hi", "Hello", " \n")]),
        ("alike", [Comparison("Hi", "Hello  there", "hello there ")]),
        ("repeated", [Comparison("Hi", "Hello", "Hallo"), Comparison("Hi", "Hello", "Hallo")]),
        ("contradicted", [Comparison("Hi", "Hello", "Hallo"), Comparison("Hi", "Hallo", "Hello")]),
    ],
)
def test_what_is_planted_is_found_and_named(rule, planted):
    findings = lint([*clean(50), *planted])
    expected = {"repeated": (51,), "contradicted": (50, 51)}.get(rule, (50,))
    assert rows(findings, rule) == [expected]
    assert {finding.rule for finding in findings} == {rule}
    assert f"of {50 + len(planted)} pairs" in repr(findings[0])


def test_replies_that_become_equal_at_the_cut():
    lm = word_model()
    pair = Comparison(as_conversation("a b"), "a b c d", "a b c c")
    assert lint([pair], lm, max_new_tokens=8) == []
    [finding] = lint([pair], lm, max_new_tokens=3)
    assert (finding.rule, finding.rows) == ("equal_once_cut", (0,))
    assert "equal once they are cut at 3 tokens. Raise max_new_tokens" in repr(finding)


def test_prompts_that_leak_into_the_test():
    pairs = clean(20)
    [finding] = lint(pairs, held_out=[pairs[7], Comparison("Hi", "a", "b")])
    assert (finding.rule, finding.rows) == ("leaked", (7,))


@pytest.mark.parametrize(("share", "word"), [(0.9, "longer"), (0.1, "shorter")])
def test_length_that_predicts_the_choice(share, word):
    [finding] = lint(clean(300, longer_wins=share))
    assert finding.rule == "longer"
    assert f"the {word} reply was chosen" in repr(finding)
    assert finding.share.low < 0.9 < finding.share.high
    assert len(finding.rows) == round(finding.share.mean * 300)


def test_without_a_preference_for_length_it_is_rarely_claimed():
    """A share of one half among 300 pairs reaches 60 % once in 3,000 studies; 100 studies allow one."""
    assert sum(bool(longer(as_pairs(clean(300, seed))).rows) for seed in range(100)) <= 1


def test_pairs_of_one_ranking_count_once():
    ranking = Ranking(as_conversation("Hi"), ("aaaa", "aaa", "aa", "a"), ((0,), (1,), (2,), (3,)))
    assert longer(as_pairs([ranking] * 30)).rows == ()  # one prompt says nothing, however often
    assert len(as_pairs([ranking])) == 6


def test_many_rows_are_not_all_written_out():
    assert "Rows 0, 1, 2, 3, 4, ...." in repr(Finding("x", "what", "Do", tuple(range(9)), 9))


def test_choices_and_edits_are_preferences_too():
    said = [
        Choice("Hi", "Hello.", " ", 1),
        Choice("Hi", "a", "b", 0),
        Edit("Bye", "", "See you."),
        Edit("Bye", "x", "x"),
    ]
    assert rows(lint([*said, *clean(10)]), "empty") == [(0, 2)]
