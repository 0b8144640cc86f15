"""What a view is given to draw: JSON values alone, Markdown as a tree of few tags, and what is told afterwards."""

import json
import time

import pytest
from hypothesis import given, settings, strategies as st
from markdown_it import MarkdownIt

from rlhf_lab.classroom.widgets import state as state_module
from rlhf_lab.classroom.widgets.retrospect import ENOUGH, afterwards, first_wins, own_agreement, position_bias
from rlhf_lab.classroom.widgets.session import FeedbackSession
from rlhf_lab.classroom.widgets.state import LONGEST_MARKDOWN, TAGS, displayable, markdown_nodes, view_state
from rlhf_lab.feedback.events import new_event
from rlhf_lab.feedback.questions import (
    CommentOn,
    Compare,
    CompareSegments,
    EditReply,
    MarkWords,
    Rank,
    Rate,
)
from rlhf_lab.maths.intervals import proportion_interval
from rlhf_lab.records import (
    Choice,
    Comment,
    Edit,
    Mark,
    Ranking,
    Rating,
    Segment,
    SegmentChoice,
    Skip,
    as_conversation,
)

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)> \0 \u202e \ud800 \x1b[31m =1+1"
PROMPT = as_conversation("Where is the zoo?")
PIECES = [Segment("CartPole-v1", ((0.0, 0.0, 0.0, 0.0),) * 3, ((1,), (0,))) for _ in range(2)]
FORMS = [
    Rank(PROMPT, ("It is in Mill Street.", "Go away, I say!", "I do not know.")),
    Rate(PROMPT, "In Mill Street.", high=7),
    EditReply(PROMPT, "In Mill St."),
    MarkWords(PROMPT, "In Mill Street."),
    CommentOn(PROMPT, "Go away."),
    Compare(PROMPT, "It is in Mill Street.", "Go away, I say!", "sft", "base"),
    CompareSegments("Which one balances?", *PIECES),
]
KEYS = {
    *("study", "rater", "index", "total", "goal", "judged", "skipped", "unsaved", "seconds_left", "form", "ask"),
    *("prompt", "replies", "status", "saved", "where", "stored", "error", "notice", "says", "can_undo", "undo_asks"),
    *("answer", "unsent", "scale", "segments", "auto_advance", "afterwards", "finished"),
}


def plain(value):
    """Whether a value is one that JSON has, and holds no half of a surrogate pair."""
    json.dumps(value, allow_nan=False).encode("ascii")
    json.dumps(value, ensure_ascii=False).encode("utf-8")
    return True


# ---- the state ---------------------------------------------------------------------------------------------


def test_the_state_of_every_form(tmp_path):
    session = FeedbackSession(FORMS, tmp_path / "x.db", study="s", goal=3)
    expected = [None, None, None, None, None, None, None]
    answered = [None, 6, "In Mill Street.", [[3, 7]], "Rude.", 1, -1]
    work = [
        lambda: session.rank([[2], [0, 1]]),
        lambda: session.rate(6),
        lambda: session.edit("In Mill Street."),
        lambda: session.mark(((3, 7),)),
        lambda: session.comment("Rude."),
        lambda: session.compare(1),
        lambda: session.compare(-1),
    ]
    for index, form in enumerate(["rank", "rate", "edit", "mark", "comment", "compare", "segments"]):
        session.go(index)
        state = view_state(session)
        assert set(state) == KEYS
        assert plain(state)
        assert (state["form"], state["answer"], state["status"]) == (form, expected[index], "open")
        assert (state["stored"], state["judged"], state["finished"]) == (index, index, index >= 3)
        assert state["scale"] == ([1, 7] if form == "rate" else None)
        assert (state["segments"] is None) == (form != "segments")
        for piece in state["segments"] or ():
            assert len(piece["frames"]) == 3
            assert all(frame.startswith("data:image/png;base64,iVBOR") for frame in piece["frames"])
            assert piece["alt"].startswith("2 steps")
        work[index]()
        state = view_state(session)
        assert (state["answer"], state["status"], state["saved"]) == (answered[index], "done", True)
        assert state["where"] == str(tmp_path / "x.db")
        assert plain(state)
    session.go(0)
    state = view_state(session)
    assert [(reply["letter"], reply["rank"]) for reply in state["replies"]] == [("A", 2), ("B", 2), ("C", 1)]
    assert [reply["text"] for reply in state["replies"]] == session.replies
    assert state["prompt"] == [{"role": "user", "text": "Where is the zoo?", "nodes": None}]
    assert (state["goal"], state["total"], state["seconds_left"] is None) == (3, 7, False)
    session.store.close()


def test_who_wrote_the_replies_is_never_in_the_state():
    session = FeedbackSession([Compare(PROMPT, "one two three", "four five six", "SECRET-1", "SECRET-2")])
    for work in (lambda: None, lambda: session.compare(1)):
        work()
        assert "SECRET" not in json.dumps(view_state(session))


def test_looking_at_a_question_starts_its_clock(monkeypatch):
    now = [50.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    session = FeedbackSession(FORMS)
    view_state(session, seen=False)
    now[0] = 60.0
    view_state(session)
    now[0] = 63.0
    view_state(session)
    session.all_bad()
    assert session.events()[0].duration == 3.0


def test_hostile_texts_and_names_reach_the_view_as_text(tmp_path):
    items = [Rank([{"role": "system", "content": HOSTILE}, {"role": "user", "content": HOSTILE}], [HOSTILE, "b"])]
    items += [EditReply(HOSTILE, HOSTILE)]
    session = FeedbackSession(items, tmp_path / "x.db", study=HOSTILE, rater=HOSTILE, markdown=True)
    shown = displayable(HOSTILE)
    assert shown == HOSTILE.replace("\ud800", "\ufffd")
    for _ in range(2):
        state = view_state(session)
        assert plain(state)
        assert (state["study"], state["rater"], state["prompt"][0]["text"]) == (shown, shown, shown)
        assert shown in [reply["text"] for reply in state["replies"]]
        session.next()
    session.edit(HOSTILE)
    state = view_state(session)
    assert (state["answer"], plain(state)) == (shown, True)
    session.store.close()


def test_what_is_wrong_is_in_the_state(tmp_path):
    session = FeedbackSession(FORMS, tmp_path)  # a folder
    with pytest.raises(OSError):
        session.skip()
    state = view_state(session)
    assert (state["saved"], state["unsaved"], state["stored"]) == (False, 1, 0)
    assert state["error"] == session.error
    assert "is no file" in state["error"]
    assert state["says"].startswith("Skipped. NOT saved")
    session.store.close()
    state = view_state(FeedbackSession(FORMS))
    assert (state["where"], state["stored"], state["error"]) == ("", 0, "")


def test_undo_asks_in_the_state():
    session = FeedbackSession(FORMS, auto_advance=True)
    session.skip()
    state = view_state(session)
    assert (state["can_undo"], state["index"], state["auto_advance"]) == (True, 1, True)
    assert state["undo_asks"] == "Undo takes back skipped of question 1. Do it?"


# ---- Markdown ----------------------------------------------------------------------------------------------


def flat(nodes):
    """A tree as one text, for reading: tags in brackets."""
    return "".join(n["text"] if "text" in n else f"[{n['tag']} {flat(n['children'])}]" for n in nodes)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a *b* **c** `d`", "[p a [em b] [strong c] [code d]]"),
        ("# T\n\n## U", "[h1 T][h2 U]"),
        ("- a\n- b", "[ul [li [p a]][li [p b]]]"),
        ("3. a", "[ol [li [p a]]]"),
        ("> q", "[blockquote [p q]]"),
        ("```py\nx < 1\n```", "[pre [code x < 1\n]]"),
        ("    y", "[pre [code y\n]]"),
        ("a\nb  \nc", "[p a\nb[br ]c]"),
        ("---", "[hr ]"),
        ("[text](http://x.org)", "[p text (http://x.org)]"),
        ("[a *b*](javascript:alert(1))", "[p [a [em b]](javascript:alert(1))]"),
        ("<http://x.org>", "[p http://x.org]"),
        ("![a picture](http://x.org/y.png)", "[p a picture]"),
        ("<b>x</b>", "[p <b>x</b>]"),
        ("<script>alert(1)</script>", "[p <script>alert(1)</script>]"),
        ("&lt;b&gt; \\*x\\*", "[p <b> *x*]"),
        ("", ""),
        ("a\ud800", "[p a\ufffd]"),
    ],
)
def test_markdown(text, expected):
    assert flat(markdown_nodes(text)) == expected


def tags(nodes):
    for node in nodes:
        assert set(node) in ({"text"}, {"tag", "children"})
        if "tag" in node:
            yield node["tag"]
            yield from tags(node["children"])
        else:
            assert isinstance(node["text"], str)


pieces = st.sampled_from([*"*_`#>-[]()!<&\\\n 1.a~|:", "<b>", "](x)", "```", "javascript:", "\0", "\ud800", "    "])


@settings(max_examples=300, deadline=None)
@given(st.lists(pieces, max_size=30).map("".join))
def test_any_markdown_is_a_tree_of_known_tags(text):
    nodes = markdown_nodes(text)
    assert set(tags(nodes)) <= TAGS
    assert plain(nodes)


def test_a_tag_that_is_not_listed_becomes_what_is_in_it(monkeypatch):
    more = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
    monkeypatch.setattr(state_module, "_parser", lambda: more)
    assert flat(markdown_nodes("~~struck *out*~~")) == "[p struck [em out]]"
    assert flat(markdown_nodes("| a1 |\n|----|\n| b1 |")) == "a1b1"


def test_a_long_text_is_not_parsed_and_none_takes_long():
    assert markdown_nodes("x" * (LONGEST_MARKDOWN + 1)) is None
    for part in ("*", "[", "`", "> ", "- ", "![", "*a ", "_a_", "<", "\\", "&", "[](", "**a *b ", "1. "):
        start = time.process_time()
        nodes = markdown_nodes((part * LONGEST_MARKDOWN)[:LONGEST_MARKDOWN])
        assert plain(nodes)  # not too deep for JSON either
        assert time.process_time() - start < 20
    state = view_state(FeedbackSession([Rank("p", ["x" * 2**20, "*b* c d e f g"])], markdown=True))
    assert {reply["nodes"] is None for reply in state["replies"]} == {True, False}


# ---- afterwards --------------------------------------------------------------------------------------------

TEXTS = ("It is in Mill Street.", "Go away, I say!", "I do not know.")


def test_nothing_is_told_before_the_judgement():
    recorded = [Ranking(PROMPT, TEXTS, ((0,), (1,), (2,)), rater="Ann")]
    session = FeedbackSession(FORMS, recorded=recorded)
    assert afterwards(session) == view_state(session)["afterwards"] == []
    session.place(0)
    assert afterwards(session) == []
    session.skip()
    assert afterwards(session) == []
    session.all_bad()
    assert len(afterwards(session)) == 1
    session.undo()
    assert afterwards(session) == []


def test_what_others_said_of_a_ranking():
    recorded = [
        Ranking(PROMPT, TEXTS, ((0,), (1,), (2,)), rater="Ann"),
        Ranking(PROMPT, TEXTS, ((2,), (0, 1)), rater="careful", simulated=True),
        Ranking(PROMPT, TEXTS, (), "all_bad", "Bob"),
        Ranking(PROMPT, TEXTS, (), "skipped"),
        Ranking(PROMPT, TEXTS[::-1], ((0,), (1,), (2,)), rater="of other replies"),
        Rating(PROMPT, "Go away, I say!", 1),
    ]
    session = FeedbackSession(FORMS, recorded=recorded, seed=1)
    shown = session.shown
    session.rank([[shown.index(0)], [shown.index(1)], [shown.index(2)]])
    name = {reply: "ABC"[position] for position, reply in enumerate(shown)}
    tied = " = ".join(sorted((name[0], name[1])))
    assert afterwards(session) == [
        f"Ann put them in the same order: {name[0]}, then {name[1]}, then {name[2]}. You agree on 3 of 3 pairs.",
        f"careful (simulated) put them in another order: {name[2]}, then {tied}. You agree on 0 of 3 pairs.",
        "Bob found all of them bad.",
        "The recorded rater skipped it.",
    ]
    session.all_bad()
    assert afterwards(session)[0] == f"Ann put them in this order: {name[0]}, then {name[1]}, then {name[2]}."


def test_what_others_said_in_the_other_forms():
    recorded = [
        Rating(PROMPT, "In Mill Street.", 6, 1, 7, "Ann"),
        Edit(PROMPT, "In Mill St.", "In Mill\nStreet.", "Ann"),
        Edit(PROMPT, "In Mill St.", "In Mill St.", "Bob"),
        Mark(PROMPT, "In Mill Street.", ((3, 7), (8, 14)), "Ann"),
        Mark(PROMPT, "In Mill Street.", (), "Bob"),
        Comment(PROMPT, "Go away.", "x" * 500, "Ann"),
        Choice(PROMPT, "It is in Mill Street.", "Go away, I say!", 1, rater="Ann"),
        SegmentChoice("Which one balances?", *PIECES, 0, "Ann"),
        Skip(PROMPT, "rate", ("In Mill Street.",), "Bob"),
    ]
    for seed in range(6):
        session = FeedbackSession(FORMS, recorded=recorded, seed=seed)
        told = []
        works = ("rate", 1), ("edit", "x"), ("mark", []), ("comment", "x"), ("compare", 0), ("compare", 0)
        for index, (name, answer) in enumerate(works, start=1):
            session.go(index)
            getattr(session, name)(answer)
            told += [sentence for sentence in afterwards(session) if not sentence.startswith("Asked again")]
        session.go(5)
        side = "left" if session.replies[0] == "It is in Mill Street." else "right"
        assert told == [
            "Ann gave 6 of 7.",
            "Ann wrote: “In Mill Street.”",
            "Bob left it as it is.",
            "Ann marked “Mill”, “Street”.",
            "Bob marked nothing.",
            f"Ann said: “{'x' * 199}…”",
            f"Ann found the {side} one better.",
            "Ann found them equal.",
        ]


def test_of_many_others_some_are_told():
    recorded = [Rating(PROMPT, "In Mill Street.", 6, 1, 7, f"r{i}") for i in range(9)]
    session = FeedbackSession(FORMS, recorded=recorded)
    session.go(1)
    session.rate(6)
    assert afterwards(session)[-1] == "4 more judged it."
    assert len(afterwards(session)) == 6


def event(record, shown=(), question=""):
    return new_event(record, shown=shown, question=question)


def test_own_agreement_by_hand():
    def ranked(tiers, shown, question):
        return event(Ranking(PROMPT, TEXTS, tiers), shown, question)

    first = ranked(((0,), (1,), (2,)), (0, 1, 2), "q-1")
    same_order = ranked(((0,), (2,), (1,)), (0, 1, 2), "q-2")
    other_order = ranked(((2,), (1,), (0,)), (2, 1, 0), "q-3")
    assert own_agreement([first]) == []
    assert own_agreement([first, same_order]) == ["Asked again, you decided 2 of 3 alike in the same order."]
    assert own_agreement([first, same_order, other_order]) == [
        # in another order: 0 of 3 against the first, and 1 of 3 against the second
        "Asked again, you decided 2 of 3 alike in the same order and 1 of 6 alike in another order."
    ]
    swapped = [event(Choice(PROMPT, "a", "b", 1), (0, 1), "x-1"), event(Choice(PROMPT, "b", "a", -1), (0, 1), "y-1")]
    assert own_agreement(swapped) == ["Asked again, you decided 1 of 1 alike in another order."]
    scores = [event(Rating(PROMPT, "a", score), (), f"r-{i}") for i, score in enumerate((3, 3, 4))]
    assert own_agreement(scores) == ["Asked again, you decided 1 of 3 alike in the same order."]
    twice = [event(Rating(PROMPT, "a", 3), (), "r-1"), event(Rating(PROMPT, "a", 3), (), "r-1")]
    assert own_agreement(twice) == []  # one question in two windows was not asked again
    assert own_agreement([event(Comment(PROMPT, "a", "b")), event(Comment(PROMPT, "a", "b"))]) == []
    assert (
        own_agreement([event(Rating(PROMPT, "a", 3, 1, 5), (), "1"), event(Rating(PROMPT, "a", 3, 1, 7), (), "2")])
        == []
    )


def test_position_bias_by_hand():
    def chose(outcome, shown):
        return event(Choice(PROMPT, "a", "b", outcome), shown)

    assert [first_wins(chose(1, (0, 1))), first_wins(chose(1, (1, 0))), first_wins(chose(0, (1, 0)))] == [1, 0, 0.5]
    assert first_wins(event(Ranking(PROMPT, TEXTS, ((1,), (0, 2))), (1, 2, 0))) == pytest.approx(2.5 / 3)
    assert first_wins(event(Ranking(PROMPT, ("a", "a"), ((1,), (0,))), (0, 1))) is None
    assert first_wins(event(Ranking(PROMPT, TEXTS, (), "all_bad"), (0, 1, 2))) is None
    assert first_wins(event(Rating(PROMPT, "score", 3))) is None
    bits = [chose(1, (0, 1))] * 10 + [chose(1, (1, 0))] * 2
    interval = proportion_interval(10, 12)
    [sentence] = position_bias(bits)
    assert sentence == (
        "You preferred what stood first in 83% of the pairs in 12 judgements "
        f"(95 % interval {interval.low:.0%} to {interval.high:.0%}): a bias to what stands first."
    )
    assert position_bias(bits[: ENOUGH - 1]) == []
    assert position_bias([chose(-1, (0, 1))] * 20)[0].endswith("a bias to what stands last.")
    assert position_bias([chose(0, (0, 1))] * 20)[0].endswith("no position bias is shown.")


def test_an_honest_reader_has_no_position_bias_and_one_who_clicks_the_first_has():
    questions = [Compare(f"q {i}", f"a {i} b c d", f"e {i} f g h") for i in range(60)]
    honest, lazy = FeedbackSession(questions, seed=2), FeedbackSession(questions, seed=2)
    for index in range(60):
        honest.go(index)
        honest.compare(1 if honest.replies[0].startswith("a") else -1)
        lazy.go(index)
        lazy.compare(1)
    # A fair order of 60 shows a bias in about 5 of 100 seeds; this one does not.
    assert afterwards(honest)[-1].endswith("no position bias is shown.")
    assert "in 100% of the pairs in 60 judgements" in afterwards(lazy)[-1]


def test_a_state_of_ten_thousand_judgements_is_quick():
    questions = [Rank(f"q {i}", [f"{i} {j} {i * j + 1} {j} b" for j in range(4)]) for i in range(10_000)]
    session = FeedbackSession(questions)
    with_answers = [
        event(Ranking(q.prompt, q.replies, ((0,), (1,), (2,), (3,)), rater="you"), (1, 0, 2, 3), name)
        for q, name in zip(session.questions, session.names, strict=True)
    ]
    session._work = session._work.merged(with_answers, "you", session.names, session.questions)
    view_state(session)
    start = time.process_time()
    state = view_state(session)
    assert state["judged"] == 10_000
    assert "in 10000 judgements" in state["afterwards"][0]
    assert time.process_time() - start < 1  # 0.1 s here: what is told of each judgement is worked out once
