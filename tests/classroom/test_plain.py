"""The plain view: every form is answered through the traits of standard widgets, and no text of people becomes HTML."""

import ipywidgets as widgets
import pytest

from rlhf_lab.classroom.widgets import plain
from rlhf_lab.classroom.widgets.plain import STYLE, WIDGET, PlainView
from rlhf_lab.classroom.widgets.plain_forms import MOST_FRAMES, MOST_LINES, MOST_WORDS
from rlhf_lab.classroom.widgets.session import FeedbackSession
from rlhf_lab.feedback.questions import (
    CommentOn,
    Compare,
    CompareSegments,
    EditReply,
    MarkWords,
    Rank,
    Rate,
)
from rlhf_lab.feedback.store import NotSaved, Store
from rlhf_lab.records import Ranking, Segment, as_conversation

THREE = Rank("Where is the zoo?", ("a b c d", "e f g h", "i j k l"))
PIECES = [Segment("CartPole-v1", ((0.0, 0.0, x, 0.0),) * 9, ((1.0,),) * 8) for x in (0.0, 0.1)]
FORMS = [
    THREE,
    Rank("When?", ("m n o p", "q r s t")),
    Rate("Hi", "Hello there!"),
    Rate("Hi", "Hello there!", high=7),
    EditReply("Hi", "Hello there!"),
    MarkWords("Hi", "the zoo is in the park"),
    CommentOn("Hi", "Hello there!"),
    Compare("Hi", "Hello there, you!", "Go away, I say!", "sft", "base"),
    CompareSegments("Which one balances?", *PIECES),
]
RANK, RATE, EDIT, MARK, COMMENT, COMPARE, SEGMENTS = 0, 2, 4, 5, 6, 7, 8
HOSTILE = [
    "<script>alert(1)</script><img src=x onerror=alert(2)>",
    "$x^2$ \u202eevil\u202c \0",
    "long " * 900,
    "a \ud800 b",
]


@pytest.fixture
def view(tmp_path):
    with Store(tmp_path / "x.db") as store:
        yield PlainView(FeedbackSession(FORMS, store, study="s"))


def at(view, index):
    """The part of the view for a question, after going there."""
    view.session.go(index)
    view.refresh()
    return view.panel


def is_shown(widget):
    return widget.layout.display != "none"


def names(buttons):
    return [button.description for button in buttons if is_shown(button)]


def everything(widget):
    yield widget
    for child in getattr(widget, "children", ()):
        yield from everything(child)


def stored(view):
    with Store(view.session.store.path) as store:
        return [event.record for event in store.standing("s")]


# ---- the forms ---------------------------------------------------------------------------------------------


def test_clicking_ranks_ties_moves_and_saves(view):
    panel = view.panel
    assert view.title.value == "Question 1 of 9   ·   0 of 9 judged"
    assert (view.ask.value, view.status.value) == ("Put the replies in order, the best first.", "Not judged")
    assert [is_shown(row) for row in panel.rows] == [True] * 3
    assert (names(panel.place), names(panel.tie)) == (["Rank 1"] * 3, [])
    panel.place[2].click()
    assert names(panel.place) == ["Rank 2", "Rank 2", "✓ Rank 1"]
    assert names(panel.tie) == ["Also rank 1"] * 2
    assert panel.place[2].tooltip == "Reply C: take its rank 1 back"
    assert view.status.value == "1 of 3 replies ranked; saved when all are"
    panel.tie[0].click()
    panel.place[1].click()
    assert (view.session.ranks, names(panel.tie)) == ([1, 2, 1], [])
    assert view.status.value == f"Saved: answered, in {view.session.store.path}"
    assert view.title.value == "Question 1 of 9   ·   1 of 9 judged"
    panel.higher[0].click()  # out of the tie, before it
    assert view.session.ranks == [1, 3, 2]
    panel.higher[1].click()
    assert view.session.ranks == [1, 2, 3]
    panel.lower[0].click()
    assert view.session.ranks == [2, 1, 3]
    assert (panel.higher[1].disabled, panel.lower[2].disabled, panel.higher[0].disabled) == (True, True, False)
    assert stored(view)[0].tiers == tuple((view.session.shown[p],) for p in (1, 0, 2))
    panel.place[0].click()  # take a rank back
    assert (view.session.ranks, stored(view)) == ([None, 1, 2], [])


def test_out_of_a_tie_downwards(view):
    view.session.rank([[0, 1], [2]])
    view.refresh()
    assert not view.panel.higher[0].disabled
    view.panel.lower[0].click()
    assert view.session.ranks == [2, 1, 3]


@pytest.mark.parametrize(("index", "high"), [(RATE, 5), (RATE + 1, 7)])
def test_rating(index, high, view):
    panel = at(view, index)
    assert names(panel.scores) == [str(i) for i in range(1, high + 1)]
    panel.scores[3].click()
    assert names(panel.scores)[3] == "✓ 4"
    assert (stored(view)[0].score, stored(view)[0].high) == (4, high)
    panel.scores[0].click()
    assert [record.score for record in stored(view)] == [1]


@pytest.mark.parametrize(("index", "start", "field"), [(EDIT, "Hello there!", "edited"), (COMMENT, "", "text")])
def test_writing(index, start, field, view):
    panel = at(view, index)
    assert panel.field.value == start
    panel.field.value = "Half"
    assert (view.session.answer, view.session.unsent, stored(view)) == ("Half", True, [])
    assert view.status.value == "Not handed in yet"
    view.next.click()
    view.previous.click()
    assert panel.field.value == "Half"
    panel.hand_in.click()
    assert [getattr(record, field) for record in stored(view)] == ["Half"]
    panel.field.value = "Half and half"
    assert view.status.value.endswith("What you changed is not handed in")
    panel.field.value = "  "
    panel.hand_in.click()
    assert "is empty; expected words" in view.status.value
    assert len(stored(view)) == 1


def test_marking_by_choosing_and_by_typing(view):
    panel = at(view, MARK)
    assert [name for name, _ in panel.words.options] == ["1  the", "2  zoo", "3  is", "4  in", "5  the", "6  park"]
    panel.hand_in.click()
    assert view.status.value == "no words are chosen or typed; choose some, or click Nothing wrong"
    panel.words.value = (1, 5)
    panel.hand_in.click()
    assert stored(view)[0].spans == ((4, 7), (18, 22))
    assert panel.words.value == (1, 5)
    panel.words.value = ()
    panel.typed.value = "the\n is in \n\n"
    panel.hand_in.click()
    assert stored(view)[0].spans == ((0, 3), (8, 13), (14, 17))
    assert panel.words.value == (0, 2, 3, 4)
    panel.typed.value = "castle"
    panel.hand_in.click()
    assert view.status.value == "“castle” is not in the reply; type its words as they stand there"
    panel.nothing.click()
    assert [record.spans for record in stored(view)] == [()]


def test_a_long_reply_is_marked_by_typing():
    view = PlainView(FeedbackSession([MarkWords("Hi", "word " * MOST_WORDS + "wrong")]))
    assert not is_shown(view.panel.words)
    view.panel.typed.value = "wrong"
    view.panel.hand_in.click()
    assert view.session.judgement.spans == ((5 * MOST_WORDS, 5 * MOST_WORDS + 5),)


@pytest.mark.parametrize("index", [COMPARE, SEGMENTS])
def test_comparing(index, view):
    panel = at(view, index)
    assert names(panel.choose.values()) == ["A is better", "Equal", "B is better"]
    for outcome, text in ((1, "✓ A is better"), (-1, "✓ B is better"), (0, "✓ Equal")):
        panel.choose[outcome].click()
        assert view.session.answer == outcome
        assert [name for name in names(panel.choose.values()) if name.startswith("✓")] == [text]
    assert len(stored(view)) == 1
    pictures = [child for strip in panel.strips for child in strip.children]
    assert [is_shown(text) for text in panel.texts] == [index == COMPARE] * 2
    if index == COMPARE:
        assert [text.value for text in panel.texts] == view.session.replies
        assert not any("sft" in str(getattr(widget, "value", "")) for widget in everything(view))
    else:
        assert len(pictures) == 2 * MOST_FRAMES
        assert all(bytes(picture.value).startswith(b"\x89PNG") for picture in pictures)
        assert panel.labels[0].value.startswith("A: 8 steps")
        panel.choose[1].click()
        assert [child for strip in panel.strips for child in strip.children] == pictures  # not made again


def test_one_form_at_a_time_is_shown(view):
    for index, question in enumerate(FORMS):
        panel = at(view, index)
        assert [shown for shown in view.panels if is_shown(shown)] == [panel]
        assert question.form in panel.forms
        assert is_shown(view.all_bad) == (question.form == "rank")


# ---- around the answer -------------------------------------------------------------------------------------


def test_the_other_buttons(view):
    assert (view.undo.disabled, view.previous.disabled, view.next.disabled) == (True, True, False)
    view.skip.click()
    assert view.status.value.startswith("Saved: skipped, in ")
    assert view.title.value == "Question 1 of 9   ·   0 of 9 judged, 1 skipped"
    view.undo.click()
    assert view.status.value == "Not judged"
    view.all_bad.click()
    assert view.status.value.startswith("Saved: all bad")
    view.next.click()
    assert [is_shown(row) for row in view.panel.rows] == [True, True, False]
    view.session.go(8)
    view.refresh()
    assert view.next.disabled


def test_undo_asks_before_it_reaches_into_another_question(view):
    view.skip.click()
    view.next.click()
    assert not is_shown(view._question)
    view.undo.click()
    assert (view.asks.value, is_shown(view._question)) == ("Undo takes back skipped of question 1. Do it?", True)
    assert (view.session.index, len(stored(view))) == (1, 1)
    view.no.click()
    assert (is_shown(view._question), len(stored(view)), view.session.index) == (False, 1, 1)
    view.undo.click()
    view.yes.click()
    assert (view.session.index, stored(view), is_shown(view._question)) == (0, [], False)


def test_the_status_line_says_what_is_not_saved(view, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(
            Store, "add", lambda *_: (_ for _ in ()).throw(NotSaved("x.db cannot be written (full). Free some"))
        )
        view.skip.click()
        assert view.status.value == "NOT SAVED, kept in memory: x.db cannot be written (full). Free some"
        assert is_shown(view.again)
        view._do("tie", 0)  # a refused click does not hide it
        assert view.status.value.startswith("NOT SAVED, kept in memory: ")
    view.again.click()
    assert view.status.value.startswith("Saved: skipped")
    assert not is_shown(view.again)
    view._do("tie", 0)
    assert view.status.value.startswith("tie: no other reply has a rank yet")
    view.next.click()
    assert view.status.value == "Not judged"
    assert capsys.readouterr() == ("", "")


def test_a_store_that_cannot_be_read_is_said_from_the_start(tmp_path):
    (tmp_path / "x.db").write_text("my notes " * 1000)
    with Store(tmp_path / "x.db") as store:
        view = PlainView(FeedbackSession(FORMS, store))
    assert view.status.value.startswith("The judgements in the store cannot be read: x.db")
    assert is_shown(view.again)


def test_without_a_store_nothing_is_called_saved():
    view = PlainView(FeedbackSession(FORMS))
    view.skip.click()
    assert view.status.value == "NOT SAVED, kept in memory: skipped. The session has no store"


def test_what_is_told_afterwards_and_the_notice(tmp_path):
    recorded = [Ranking(as_conversation("Where is the zoo?"), THREE.replies, ((0,), (1,), (2,)), rater="Ann")]
    with Store(tmp_path / "x.db") as store, Store(tmp_path / "x.db") as other:
        view = PlainView(FeedbackSession(FORMS, store, recorded=recorded))
        second = FeedbackSession(FORMS, other)
        assert not any(map(is_shown, view.sentences))
        view.all_bad.click()
        assert view.sentences[0].value.startswith("Ann put them in this order: ")
        assert [is_shown(label) for label in view.sentences] == [True] + [False] * 7
        second.skip()
        view.next.click()
        assert view.notice.value.startswith("Question 1 was judged more than once")
        assert is_shown(view.notice)
        assert not is_shown(view.sentences[0])


def test_events_name_the_view_and_are_timed(view):
    view.skip.click()
    [event] = view.session.events()
    assert (event.widget, event.duration > 0) == (WIDGET, True)


def test_an_interrupt_leaves_no_false_word(view, monkeypatch):
    monkeypatch.setattr(Store, "add", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        view.skip.click()
    assert view.status.value == "NOT SAVED, kept in memory: saving was broken off. Save again"
    monkeypatch.setattr(plain, "view_state", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        view.next.click()
    assert view.status.value == "Working"


def test_the_time_left():
    view = PlainView(FeedbackSession(FORMS, goal=4))
    for index in range(3):
        view.session._since[index] = view.session._since.get(index, 0)  # seen long ago, by a clock from its start
        view.session.go(index)
        view.session.all_bad() if index < 2 else view.session.rate(3)
    view.refresh()
    assert view.title.value.startswith("Question 3 of 9   ·   3 of 4 judged   ·   about ")
    assert view.title.value.endswith("minutes left") or view.title.value.endswith("1 minute left")


# ---- texts -------------------------------------------------------------------------------------------------


def test_texts_are_shown_as_they_are_and_cannot_be_changed():
    prompt = [{"role": "system", "content": "<b>"}, {"role": "user", "content": "$1"}]
    view = PlainView(FeedbackSession([Rank(prompt, HOSTILE)]))
    assert view.prompt.value == "System: <b>\n\nUser: $1"
    shown = [text.value for text in view.panel.texts]
    assert sorted(shown) == sorted(text.replace("\ud800", "\ufffd") for text in HOSTILE)
    for text in view.panel.texts:
        assert text.disabled == (len(text.value) < 1000)  # what scrolls can have the focus
        assert text.rows <= MOST_LINES
        text.value = "typed by the reader"
    assert [text.value for text in view.panel.texts] == shown


def test_no_text_of_people_or_models_goes_into_html():
    word = "<img src=x onerror=alert(2)> MINE"
    forms = [Rank(word, (word, word + "2 3 4")), Rate(word, word), EditReply(word, word), MarkWords(word, word)]
    forms += [CommentOn(word, word), Compare(word, word, word + "2 3 4")]
    recorded = [Ranking(as_conversation(word), (word, word + "2 3 4"), ((0,), (1,)), rater=word)]
    view = PlainView(FeedbackSession(forms, study=word, rater=word, recorded=recorded))
    for index in range(len(forms)):
        at(view, index)
        view.skip.click()
    at(view, 0)
    view.all_bad.click()
    found = [widget for widget in everything(view) if isinstance(widget, widgets.HTML | widgets.HTMLMath)]
    assert [widget.value for widget in found] == [STYLE]
    for widget in everything(view):
        if isinstance(widget, widgets.Label):
            assert {"mathjax_ignore", "tex2jax_ignore"} <= set(widget._dom_classes)
        if isinstance(widget, widgets.Button):
            assert "MINE" not in widget.description + str(widget.tooltip)
    assert any("MINE" in label.value for label in view.sentences)


def test_only_standard_widgets_are_used(view):
    assert {type(widget).__module__.split(".")[0] for widget in everything(view)} <= {"ipywidgets", "rlhf_lab"}
    for widget in everything(view):
        assert widget._model_module in ("@jupyter-widgets/controls", "@jupyter-widgets/base")


def test_the_picture_in_a_stored_notebook_is_short():
    assert repr(PlainView(FeedbackSession([THREE] * 361))) == "PlainView(361 questions)"
