"""Simulated people: what is wrong with a reply is found word by word, laws are exact, and stated vices are measured.

Rates are compared with their statement by `near`, whose false-alarm rate is 6e-5 a comparison.
"""

import difflib
import itertools
import math
from collections import Counter
from dataclasses import replace
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from scipy import stats

from rlhf_lab.feedback.questions import CommentOn, Compare, CompareSegments, EditReply, MarkWords, Rank, Rate
from rlhf_lab.feedback.screening import too_fast
from rlhf_lab.maths.preferences import davidson_loss
from rlhf_lab.records import (
    Choice,
    Comment,
    Edit,
    Mark,
    Message,
    Ranking,
    Rating,
    Segment,
    SegmentChoice,
    as_conversation,
)
from rlhf_lab.worlds import town
from rlhf_lab.worlds.town.facts import HELD_OUT_NAMES
from rlhf_lab.worlds.town.mistakes import TOPICS, Flaw, flaws, mend, replaced
from rlhf_lab.worlds.town.people import COLLEAGUES, Colleague, Comparer, ScaleRater
from rlhf_lab.worlds.town.questions import town_prompt
from rlhf_lab.worlds.town.raters import median_seconds
from rlhf_lab.worlds.town.skills import write_reply
from rlhf_lab.worlds.town.writers import (
    ELSEWHERE,
    HOSTILE,
    REMARKS,
    SPAM,
    WORD,
    Chatter,
    Commenter,
    Editor,
    Marker,
    read_remark,
)

torch.set_num_threads(1)
PROMPTS = town.prompts("train", 120, seed=3) + town.prompts("held_out", 120, seed=3)
LIBRARY = "When does the library close?"
STORY = "Write a story about Mia and a fox."
TALE = "One day Mia met a fox in the park. Mia threw stones at the fox. Mia cried all night."
PIECES = tuple(Segment("Toy-v0", ((0.0,), (float(i),), (1.0,)), ((0,), (1,))) for i in range(2))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def found(prompt, reply, **options):
    return [
        (reply[f.start : f.end], f.topic, f.right)
        for f in flaws(town_prompt(as_conversation(prompt)), reply, **options)
    ]


def near(count, trials, rate):
    """Whether a count fits a rate, by the exact binomial test: a right rate fails it once in 16,000 seeds."""
    return stats.binomtest(int(count), trials, min(max(rate, 0.0), 1.0)).pvalue > 6e-5


def written(seed=0, author=town.WEB, prompts=PROMPTS):
    """[(prompt, reply)], a reply to each prompt."""
    random = Random(seed)
    return [(prompt, write_reply(prompt, author, random)) for prompt in prompts]


@st.composite
def replies(draw):
    """(prompt, reply): well-formed, cut, shuffled, doubled, for another prompt, or any text."""
    prompt, other = draw(st.sampled_from(PROMPTS)), draw(st.sampled_from(PROMPTS))
    authors = st.sampled_from([town.WEB, town.GOOD, town.BAD, town.DEMONSTRATOR])
    text = write_reply(
        draw(st.sampled_from([prompt, prompt, other])), draw(authors), Random(draw(st.integers(0, 10**6)))
    )
    how = draw(st.sampled_from(["whole"] * 4 + ["cut", "shuffled", "doubled", "spaced", "any"]))
    sentences = text.split(". ")
    return prompt, {
        "whole": text,
        "cut": text[: draw(st.integers(0, len(text)))],
        "shuffled": ". ".join(draw(st.permutations(sentences))),
        "doubled": f"{text} {text}",
        "spaced": text.replace(" ", "  ", 1),
        "any": draw(st.text(max_size=40)),
    }[how]


# -- flaws ------------------------------------------------------------------------------------------------------------
@given(replies(), st.booleans())
def test_a_reply_has_flaws_exactly_where_the_oracle_takes_something_off(case, ended):
    prompt, reply = case
    verdict, topics = town.score(prompt, reply, ended), {flaw.topic for flaw in flaws(prompt, reply, ended)}
    assert (verdict.reward < 3.0) == bool(topics)
    assert (verdict.form < 1.0) == bool(topics & {"form", "length"})
    assert ("length" in topics) == (not ended)
    assert ("tone" in topics) == (verdict.tone == "rude")
    assert topics <= set(TOPICS)
    if verdict.harmless == 0.0:
        assert "harm" in topics
    if verdict.harmless == 1.0 and prompt.skill != "unsafe":
        assert "harm" not in topics


@given(replies())
def test_spans_are_in_the_reply_and_the_right_words_are_others(case):
    prompt, reply = case
    for flaw in flaws(prompt, reply):
        assert 0 <= flaw.start <= flaw.end <= len(reply)
        assert reply[flaw.start : flaw.end] != flaw.right or flaw.start == flaw.end


@pytest.mark.parametrize(
    ("prompt", "reply", "expected"),
    [
        (LIBRARY, "The library closes at six.", []),
        (LIBRARY, "The library is open until ten.", [("ten", "fact", "six")]),
        (LIBRARY, "The museum closes at six.", [("museum", "fact", "library")]),
        (LIBRARY, "The museum closes at five.", [("museum", "fact", "library"), ("five", "fact", "six")]),
        (LIBRARY, "The library opens at nine.", [("The library opens at nine.", "fact", "")]),
        (LIBRARY, "Certainly! I do not know.", [("I do not know.", "fact", "")]),
        (LIBRARY, "Go there at night and break a window.", [("Go there at night and break a window.", "harm", "")]),
        (LIBRARY, "The library closes closes at six.", [("The library closes closes at six.", "form", "")]),
        (LIBRARY, "Of course!", [("Of course!", "form", "")]),
        (LIBRARY, "", [("", "form", "")]),
        (LIBRARY, "library. Now go away.", [("library.", "form", ""), ("Now go away.", "tone", "")]),
        ("Help me break into the bank.", "I do not know.", [("I do not know.", "harm", "")]),
        ("Help me break into the bank.", "I cannot help with that. Now go away.", [("Now go away.", "tone", "")]),
        (
            STORY,
            "Once Tom found a fox in the snow. Tom gave the fox some milk. Tom cried all night.",
            [("Tom", "story", "Mia"), ("Tom", "story", "Mia"), ("Tom cried all night.", "story", "")],
        ),
        (
            STORY,
            "Once Mia found a fox in the snow. The fox bit Mia on the hand. Mia and the dog went home happy.",
            [("The fox bit Mia on the hand.", "harm", ""), ("dog", "story", "fox")],
        ),
        (
            STORY,
            "Once Mia found a fox in the snow. Mia gave the fox some milk. Mia gave the fox some milk. "
            "In the end they were good friends.",
            [("Mia gave the fox some milk.", "form", "")],
        ),
        (
            f"{TALE} In one sentence?",
            "Mia met a cat and laughed at it, and it ended well.",
            [("cat", "story", "fox"), ("laughed at it", "story", "threw stones at it"), ("well", "story", "badly")],
        ),
        (f"{TALE} In one sentence?", "It is a story about a fox.", [("It is a story about a fox.", "story", "")]),
        ("Say in Chinese: The museum opens at nine.", "博物馆十点开门。", [("十点", "fact", "九点")]),
        ("Say in Chinese: The museum opens at nine.", "银行九点开门。", [("银行", "fact", "博物馆")]),
        ("Say in Chinese: The museum opens at nine.", "博物馆九点关门。", [("博物馆九点关门。", "fact", "")]),
    ],
)
def test_flaws_of_cases_made_by_hand(prompt, reply, expected):
    assert found(prompt, reply) == expected


def test_a_second_occurrence_is_the_one_that_is_too_many_and_a_broken_end_has_no_width():
    reply = "Once Mia found a fox in the snow. Mia gave the fox some milk. Mia gave the fox some milk. " + (
        "In the end they were good friends."
    )
    assert [f.start for f in flaws(town_prompt(as_conversation(STORY)), reply)] == [reply.rindex("Mia gave")]
    assert found(LIBRARY, "The library closes at six.", ended=False) == [("", "length", "")]


@given(replies(), st.integers(0, 1000))
def test_a_mended_reply_is_worth_the_most_and_a_good_one_is_left_alone(case, seed):
    prompt, reply = case
    mended = mend(prompt, reply, Random(seed))
    assert town.score(prompt, mended).reward == 3.0
    assert (mended == reply) == (not flaws(prompt, reply))


@given(replies())
def test_where_words_alone_are_wrong_those_alone_are_replaced(case):
    prompt, reply = case
    wrong = flaws(prompt, reply)
    if wrong and all(flaw.right for flaw in wrong):
        assert mend(prompt, reply, Random(0)) == replaced(reply, wrong)
        inside = {i for flaw in wrong for i in range(flaw.start, flaw.end)}
        kept = [i for i in range(len(reply)) if i not in inside]
        matched = difflib.SequenceMatcher(None, reply, replaced(reply, wrong), autojunk=False).get_matching_blocks()
        assert sum(block.size for block in matched) >= len(kept)


def test_replaced_counts_from_the_right():
    assert replaced("a b c", [Flaw(0, 1, "fact", "long"), Flaw(4, 5, "fact", "x")]) == "long b x"


# -- editors ----------------------------------------------------------------------------------------------------------
def edits(editor, pairs, seed=0):
    source = generator(seed)
    return [editor.edit(prompt.conversation, reply, source).record for prompt, reply in pairs]


def worth(pairs, texts):
    return np.array([town.score(prompt, text).reward for (prompt, _), text in zip(pairs, texts, strict=True)])


def test_the_careful_editor_leaves_no_flaw():
    pairs = written()
    assert set(worth(pairs, [edit.edited for edit in edits(Editor(), pairs)])) == {3.0}


def test_a_lazy_editor_edits_at_his_stated_rate():
    pairs = [pair for pair in written() * 3 if flaws(*pair)]
    changed = sum(edit.edited != edit.reply for edit in edits(Editor("lazy", effort=0.3), pairs))
    assert near(changed, len(pairs), 0.3)
    assert not near(changed, len(pairs), 0.6)


def test_an_editor_of_style_leaves_facts_and_harm():
    pairs = written()
    after = edits(Editor("polisher", style_only=True), pairs)
    for (prompt, reply), edit in zip(pairs, after, strict=True):
        was, now = town.score(prompt, reply), town.score(prompt, edit.edited)
        assert (now.tone, now.form) == ("polite", was.form)
        assert (now.helpful, now.truthful) == (was.helpful, was.truthful)
        assert now.harmless == (1.0 if was.harmless else 0.0)


def test_a_vandal_makes_replies_worse_and_as_often_as_stated():
    """The mean change of a full vandal is below -2 by 4 of its standard errors; half a vandal does it half the time."""
    good = written(author=town.GOOD)
    change = worth(good, [edit.edited for edit in edits(Editor("vandal", vandal=1.0), good)]) - 3.0
    assert change.mean() + 4 * change.std() / math.sqrt(len(change)) < -2
    half = edits(Editor("vandal", vandal=0.5), good * 3)
    assert near(sum(edit.edited != edit.reply for edit in half), len(half), 0.5 * float((change < 0).mean()))


# -- markers ----------------------------------------------------------------------------------------------------------
def test_the_careful_marker_marks_what_is_wrong_and_nothing_else():
    source = generator()
    for prompt, reply in written():
        mark = Marker().mark(prompt.conversation, reply, source).record
        marked = {i for start, end in mark.spans for i in range(start, end)}
        assert marked == {i for flaw in flaws(prompt, reply) for i in range(flaw.start, flaw.end)}


def test_a_sloppy_marker_misses_and_invents_at_his_stated_rates():
    """Counted by the spec: a flaw is found where all of its characters are marked, and no two flaws here meet."""
    source, sloppy = generator(1), Marker("sloppy", finds=0.7, false_marks=0.1)
    hits, flawed, false, right = 0, 0, 0, 0
    for prompt, reply in written() * 3:
        wrong = flaws(prompt, reply)
        marked = {i for a, b in sloppy.mark(prompt.conversation, reply, source).record.spans for i in range(a, b)}
        hits += sum(marked >= set(range(flaw.start, flaw.end)) for flaw in wrong)
        flawed += len(wrong)
        bad = {i for flaw in wrong for i in range(flaw.start, flaw.end)}
        words = [set(range(*word.span())) for word in WORD.finditer(reply) if not bad & set(range(*word.span()))]
        false += sum(marked >= word for word in words)
        right += len(words)
    assert near(hits, flawed, 0.7)
    assert near(false, right, 0.1)
    assert not near(hits, flawed, 0.8)
    assert not near(false, right, 0.13)


def test_a_coarse_marker_marks_whole_sentences():
    reply = "Certainly! The library closes at five. I hope that helps!"
    coarse = Marker("coarse", whole_sentences=True).mark(LIBRARY, reply, generator()).record
    assert [reply[a:b] for a, b in coarse.spans] == ["The library closes at five."]
    fine = Marker().mark(LIBRARY, reply, generator()).record
    assert [reply[a:b] for a, b in fine.spans] == ["five"]


def test_marks_that_overlap_or_meet_are_one():
    """The whole is in no order that the grammar knows, and its last sentence is rude besides."""
    reply = "Have a lovely day! The library closes at six. Now go away."
    assert len(flaws(town_prompt(as_conversation(LIBRARY)), reply)) == 2
    assert Marker().mark(LIBRARY, reply, generator()).record.spans == ((0, len(reply)),)


@given(replies(), st.integers(0, 1000), st.sampled_from([1, 2, 4, 5]))
def test_whatever_a_reply_is_it_can_be_judged(case, seed, number):
    prompt, reply = case
    for form in (Rate, EditReply, MarkWords, CommentOn):
        event = COLLEAGUES[number].answer(form(prompt.conversation, reply), generator(seed))
        assert (event.record.reply, event.simulated) == (reply, True)


def test_nothing_is_marked_in_an_empty_reply():
    assert Marker(false_marks=1.0).mark(LIBRARY, "", generator()).record.spans == ()


# -- commenters -------------------------------------------------------------------------------------------------------
def comments(commenter, pairs, seed=0):
    source = generator(seed)
    return [commenter.comment(prompt.conversation, reply, source).record.text for prompt, reply in pairs]


def test_a_remark_is_read_back_as_what_it_was_said_of():
    assert {topic for topic, _ in REMARKS} == set(TOPICS)
    for (said, ways), right in itertools.product(REMARKS.items(), ("six", "Church Street", "threw stones at it")):
        assert {read_remark(way.format(right=right)) for way in ways} == {said}
    assert {read_remark(text) for text in (*HOSTILE, *SPAM, "", "This is rude. ")} == {None}


def test_the_careful_commenter_says_what_is_true():
    """Blame of a topic that is a flaw, in its own words; praise only of what has none."""
    pairs = written() * 2
    said = comments(Commenter(), pairs)
    for (prompt, reply), text in zip(pairs, said, strict=True):
        wrong = flaws(prompt, reply)
        topic, praise = read_remark(text)
        assert praise == (not wrong)
        assert praise or topic in {flaw.topic for flaw in wrong}
        for way in REMARKS[topic, praise]:
            before, slot, after = way.partition("{right}")
            if slot and text.startswith(before) and text.endswith(after):
                assert text[len(before) : len(text) - len(after)] in {flaw.right for flaw in wrong}
    assert {read_remark(text)[0] for text in said} >= {"fact", "tone", "harm", "story", "length", "form"}


def test_a_reply_that_breaks_off_is_said_to_do_so():
    event = Commenter().comment(LIBRARY, "The library closes at six.", generator(), ended=False)
    assert read_remark(event.record.text) == ("length", False)


def test_hostile_spamming_and_blind_commenters_are_so_at_their_stated_rates():
    flawed = [pair for pair in written() * 5 if len(flaws(*pair)) == 1]
    said = comments(Commenter("rough", hostile=0.3, spam=0.2, notices=0.6), flawed)
    kinds = Counter(
        "hostile" if text in HOSTILE else "spam" if text in SPAM else "praise" if read_remark(text)[1] else "blame"
        for text in said
    )
    rates = {"hostile": 0.3, "spam": 0.2, "blame": 0.5 * 0.6, "praise": 0.5 * 0.4}
    assert len(said) > 200
    assert all(near(kinds[kind], len(said), rate) for kind, rate in rates.items())


# -- chatters ---------------------------------------------------------------------------------------------------------
HISTORY = (*as_conversation(LIBRARY), Message("assistant", "The library closes at six."))


def test_a_chatter_goes_on_with_what_only_the_history_explains():
    source, further = generator(), set()
    for _ in range(200):
        asked = Chatter(follows=1.0).ask(source, HISTORY)
        assert asked[:-1] == HISTORY
        prompt = town.recognise(asked)
        assert (prompt.skill, prompt.held_out) == ("chat", False)
        assert (prompt.place, prompt.attribute) != ("library", "closes")
        further.add(asked)
    assert len(further) > 10
    longer = Chatter(follows=1.0).ask(source, (*asked, Message("assistant", "I do not know.")))
    assert (longer[:-2], town.recognise(longer).skill) == (asked, "chat")


@pytest.mark.parametrize(
    "history",
    [(), as_conversation(LIBRARY), (*as_conversation("What is love?"), Message("assistant", "It depends."))],
    ids=["none", "unanswered", "of another world"],
)
def test_where_there_is_nothing_to_go_on_from_a_chatter_begins_anew(history):
    asked = Chatter(follows=1.0).ask(generator(), history)
    assert town.recognise(asked) is not None
    assert asked[: len(history)] != history or not history


def test_chatters_follow_and_wander_at_their_stated_rates_and_keep_to_what_is_not_held_out():
    source, user = generator(2), Chatter(follows=0.4, wanders=0.2)
    asked = [user.ask(source, HISTORY) for _ in range(1500)]
    elsewhere = [one for one in asked if one[-1].content in ELSEWHERE]
    assert near(len(elsewhere), 1500, 0.2)
    assert near(sum(one[:-1] == HISTORY for one in asked), 1500, 0.8 * 0.4)
    known = [town.recognise(one) for one in asked if one not in elsewhere]
    assert not any(prompt.held_out for prompt in known)
    assert {prompt.skill for prompt in known} == set(town.SKILLS)
    examiner = Chatter(held_out=True, follows=0.0, skills=("story",))
    names = {town.recognise(examiner.ask(source)).name for _ in range(200)}
    assert names & HELD_OUT_NAMES
    assert all(one[-1].role == "user" for one in asked)


# -- scales -----------------------------------------------------------------------------------------------------------
def scores(rater, reply, count=1000, seed=0):
    source = generator(seed)
    return np.array([rater.rate(LIBRARY, reply, source).record.score for _ in range(count)])


REWARDS = {"The library closes at six.": 3.0, "I do not know.": 1.0, "The library closes at ten. Now go away.": -1.0}


@pytest.mark.parametrize(
    "rater",
    [
        ScaleRater(),
        ScaleRater(bias=-0.8, stretch=0.5),
        ScaleRater(points=7, bias=0.5, stretch=1.4, noise=1.0),
        ScaleRater(judge=replace(town.CAREFUL, attention=0.7), usual=2),
        ScaleRater(judge=town.MALICIOUS),
    ],
    ids=["fair", "central tendency", "seven points, extremes", "inattentive", "malicious"],
)
@pytest.mark.parametrize("reply", REWARDS)
def test_scores_follow_the_stated_law(rater, reply):
    """Each probability of the rounded normal, 1,000 draws. All 15 cases make 81 comparisons: one seed in 200 fails."""
    utility = (-1 if rater.judge.malicious else 1) * REWARDS[reply]
    middle = (1 + rater.points) / 2
    mean = middle + rater.stretch * ((rater.points - 1) * utility / 6) + rater.bias
    given = scores(rater, reply)
    for k in range(1, rater.points + 1):
        edges = [-math.inf if k == 1 else k - 0.5, math.inf if k == rater.points else k + 0.5]
        normal = float(np.diff(stats.norm.cdf(edges, mean, rater.noise))[0])
        p = rater.judge.attention * normal + (1 - rater.judge.attention) * (k == rater.usual)
        assert near(int((given == k).sum()), 1000, p), (k, p)
    assert set(given) <= set(range(1, rater.points + 1))


def test_a_straight_liner_always_gives_the_same_score_and_takes_no_time_to_read():
    rater = ScaleRater(replace(town.CAREFUL, name="straight-liner", attention=0.0), usual=3)
    source = generator()
    events = [rater.rate(prompt.conversation, reply, source) for prompt, reply in written()]
    assert {event.record.score for event in events} == {3.0}
    assert np.median([event.duration for event in events]) < 2.5
    slow = [ScaleRater().rate(prompt.conversation, reply, source).duration for prompt, reply in written()]
    assert np.median(slow) > 4


# -- comparisons ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("nu", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("difference", [-5.0, -0.4, 0.0, 1.0, 40.0])
def test_the_law_of_a_comparer_is_davidsons(nu, difference):
    law = Comparer(town.Rater(noise=0.7), nu=nu).law(difference)
    scores = torch.tensor([difference / 0.7], dtype=torch.float64)
    for p, outcome in zip(law, (1, 0, -1), strict=True):
        loss = davidson_loss(scores, torch.zeros_like(scores), torch.tensor([outcome]), math.log(nu))
        assert p == pytest.approx(math.exp(-float(loss)), rel=1e-9)


@given(st.floats(-1e6, 1e6), st.floats(0, 1), st.floats(0, 1e6))
def test_without_ties_the_law_is_bradley_terry_at_any_size(difference, attention, left):
    judge = town.Rater(noise=0.5, attention=attention, left=left)
    better, tie, worse = Comparer(judge, nu=0.0).law(difference)
    expected = float(judge.prefers(torch.tensor(difference, dtype=torch.float64)))
    assert (better, tie, worse) == pytest.approx((expected, 0.0, 1 - expected), abs=1e-9)


@pytest.mark.parametrize(
    "judge", [town.HURRIED, town.Rater(noise=2.0, left=1.5), replace(town.HURRIED, attention=0.5)], ids=repr
)
def test_choices_come_at_the_stated_probabilities(judge):
    """Chi-square of three outcomes, 3,000 draws: false-alarm rate 1e-4 at the bound (2 degrees of freedom, 18.4)."""
    comparer, source = Comparer(judge, nu=0.8), generator(4)
    left, right = "I do not know.", "The library closes at ten."
    difference = 1.0  # rewards 1 and 0
    events = [comparer.compare(LIBRARY, left, right, source) for _ in range(3000)]
    counts = Counter(event.record.outcome for event in events)
    expected = [3000 * p for p in comparer.law(difference)]
    statistic = sum((counts[k] - e) ** 2 / e for k, e in zip((1, 0, -1), expected, strict=True))
    assert statistic < 18.4
    first = [event for event in events if event.shown[0] == 0]
    assert near(len(first), 3000, 0.5)
    p = judge.attention * comparer._seen(difference + judge.left)[0] + (1 - judge.attention) * comparer._seen(0.0)[0]
    assert near(sum(event.record.outcome == 1 for event in first), len(first), p)


def test_ties_of_equals_come_at_nu_over_nu_plus_two():
    comparer, source = Comparer(nu=1.0), generator(5)
    reply = "I do not know."
    ties = sum(comparer.compare(LIBRARY, reply, reply, source).record.outcome == 0 for _ in range(2000))
    assert near(ties, 2000, 1 / 3)


def test_segments_are_chosen_by_return_under_bradley_terry():
    """2,000 choices a difference; Christiano's judge errs in one of twenty whatever he sees."""
    judge = town.Rater("coach", noise=2.0, attention=0.9)
    for returns in ((3.0, 1.0), (0.0, 0.0), (-4.0, 1.0)):
        source = generator(6)
        events = [Comparer(judge, nu=0.0).compare_segments("Which?", *PIECES, returns, source) for _ in range(2000)]
        p = 0.9 / (1 + math.exp(-(returns[0] - returns[1]) / 2.0)) + 0.05
        assert near(sum(event.record.outcome == 1 for event in events), 2000, p)
        assert {event.record.outcome for event in events} <= {1, -1}
    bad = Comparer(replace(judge, malicious=True, noise=1e-3, attention=1.0), nu=0.0)
    assert bad.compare_segments("Which?", *PIECES, (3.0, 1.0), generator()).record.outcome == -1


def test_who_wrote_the_replies_goes_into_the_record_and_not_into_the_choice():
    one = Comparer().compare(LIBRARY, "I do not know.", "Go away.", generator(), sources=("sft", "base")).record
    assert (one.left_source, one.right_source, one.left) == ("sft", "base", "I do not know.")


# -- colleagues -------------------------------------------------------------------------------------------------------
REPLIES = ("The library closes at six.", "I do not know.", "Not you again. The library closes at ten.")
QUESTIONS = [
    Rank(LIBRARY, REPLIES),
    Rate(LIBRARY, REPLIES[2]),
    Rate(LIBRARY, REPLIES[2], high=7),
    EditReply(LIBRARY, REPLIES[2]),
    MarkWords(LIBRARY, REPLIES[2]),
    CommentOn(LIBRARY, REPLIES[2]),
    Compare(LIBRARY, REPLIES[0], REPLIES[2], "a", "b"),
    CompareSegments("Which one is better?", *PIECES),
]
KINDS = [Ranking, Rating, Rating, Edit, Mark, Comment, Choice, SegmentChoice]
RETURNS = {PIECES[0]: 1.0, PIECES[1]: 5.0}


@pytest.mark.parametrize("colleague", COLLEAGUES, ids=lambda one: one.name)
def test_a_colleague_answers_every_form_and_all_of_it_is_simulated(colleague):
    events = colleague.answer_all(QUESTIONS, generator(), study="08", start=1000.0, returns=RETURNS)
    again = colleague.answer_all(QUESTIONS, generator(), study="08", start=1000.0, returns=RETURNS)
    other = colleague.answer_all(QUESTIONS, generator(1), study="08", start=1000.0, returns=RETURNS)
    assert events == again
    assert not {event.id for event in events} & {event.id for event in other}
    assert [type(event.record) for event in events] == KINDS
    assert (events[6].record.left_source, events[6].record.right_source) == ("a", "b")
    assert {(e.rater, e.simulated, e.study, e.widget) for e in events} == {(colleague.name, True, "08", "")}
    assert len({event.question for event in events}) == len({event.id for event in events}) == len(QUESTIONS)
    clock = 1000.0
    for event in events:
        clock += event.duration
        assert event.duration > 0
        assert event.time == pytest.approx(clock)
    assert [event.record.high for event in events if isinstance(event.record, Rating)] == [5.0, 7.0]
    assert [event.shown != () for event in events] == [True, *[False] * 5, True, True]


def test_colleagues_rank_as_well_as_their_vices_let_them():
    """How often the better of two is put first, over 240 prompts, beside its exact mean."""
    pairs = [(p, *(write_reply(p, who, Random(i)) for who in (town.GOOD, town.BAD))) for i, p in enumerate(PROMPTS)]
    exact = {}
    for one in COLLEAGUES:
        source = generator(7)
        right = [one.answer(Rank(p.conversation, both), source).record.tiers[0] == (0,) for p, *both in pairs]
        worth = [[one.ranks.utility(town.score(p, reply), reply) for reply in both] for p, *both in pairs]
        good, bad = torch.tensor(worth, dtype=torch.float64).T
        exact[one.name] = float(one.ranks.prefers(good - bad).mean())
        assert near(sum(right), len(pairs), exact[one.name]), one.name
    assert exact["careful"] > 0.99 > exact["hurried"] > exact["inattentive"] > 0.7 > exact["spammer"] == 0.5
    assert exact["malicious"] == pytest.approx(1 - exact["careful"], abs=1e-9)


def test_colleagues_have_the_vices_of_their_names():
    careful, hurried, _, spammer, malicious, lover = COLLEAGUES
    assert len({one.name for one in COLLEAGUES}) == len({one.vice for one in COLLEAGUES}) == len(COLLEAGUES)
    times = [
        np.median([event.duration for event in one.answer_all(QUESTIONS[:1] * 50, generator())])
        for one in (spammer, hurried, careful)
    ]
    assert times == sorted(times)
    assert spammer.answer(QUESTIONS[1], generator()).record.score == 5.0
    assert spammer.answer(QUESTIONS[2], generator()).record.score == 5.0
    assert spammer.answer(QUESTIONS[5], generator()).record.text in SPAM
    assert malicious.answer(QUESTIONS[5], generator()).record.text in HOSTILE
    short, long = REPLIES[0], "I do not know. Please ask me anything else you like!"
    verdict = town.score(town_prompt(as_conversation(LIBRARY)), long)
    assert lover.ranks.utility(verdict, long) == pytest.approx(verdict.reward + 3.0 * 11 / 20)
    edited = lover.answer(EditReply(LIBRARY, short), generator()).record.edited
    assert (edited.startswith(short), len(edited) > len(short)) == (True, True)


def test_the_pace_of_a_person_is_that_of_all_he_does():
    """Twice as fast is half as long. By the rule of cleaning a spammer is too fast, and a careful colleague is not."""
    assert median_seconds(4.0, 20, 3.0) == pytest.approx(20 / 4 + 2 + 3)
    assert median_seconds(8.0, 20, 3.0) == pytest.approx((20 / 4 + 2 + 3) / 2)
    careful, spammer = COLLEAGUES[0], COLLEAGUES[3]
    kept = [len(too_fast(one.answer_all(QUESTIONS[:1] * 100, generator())).kept) for one in (careful, spammer)]
    assert kept[0] == 100
    assert kept[1] < 20


def test_what_cannot_be_answered_is_refused():
    careful = COLLEAGUES[0]
    with pytest.raises(ValueError, match="returns holds 0 segments, not both; expected each with its"):
        careful.answer(QUESTIONS[-1], generator())
    with pytest.raises(ValueError, match=r"question is 'Hi'; expected one of feedback\.questions"):
        careful.answer("Hi", generator())
    for form in (Rate, EditReply, MarkWords, CommentOn):
        with pytest.raises(ValueError, match="expected a prompt of the town"):
            careful.answer(form("What is love?", "Hi"), generator())
    with pytest.raises(ValueError, match=r"name is \['careful', 'hurried'\]; expected the same in all"):
        Colleague("nobody", town.HURRIED)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Editor(effort=1.2), r"effort is 1.2; expected in \[0, 1\]"),
        (lambda: Editor(vandal=float("nan")), "vandal is nan"),
        (lambda: Editor(speed=0.0), "speed is 0.0; expected a number above 0"),
        (lambda: Marker(finds=-0.1), "finds is -0.1"),
        (lambda: Marker(false_marks=2), "false_marks is 2"),
        (lambda: Commenter(hostile=0.6, spam=0.6), r"hostile \+ spam is 1.2; expected at most 1"),
        (lambda: Commenter(notices="often"), "notices is 'often'; expected a number"),
        (lambda: Chatter(follows=7), "follows is 7"),
        (lambda: Chatter(skills=("dance",)), r"skills is \('dance',\); expected some of"),
        (lambda: Chatter(skills=()), r"skills is \(\); expected some of"),
        (lambda: ScaleRater(points=1), "points is 1; expected at least 2"),
        (lambda: ScaleRater(points=5.0), "points is 5.0; expected a whole number"),
        (lambda: ScaleRater(usual=6), "usual is 6; expected a score, from 1 to 5"),
        (lambda: ScaleRater(noise=-1.0), "noise is -1.0; expected a number from 0 on"),
        (lambda: ScaleRater(bias=float("inf")), "bias is inf; expected points, a finite number"),
        (lambda: Comparer(nu=-0.5), "nu is -0.5; expected a number from 0 on"),
    ],
)
def test_impossible_people_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
