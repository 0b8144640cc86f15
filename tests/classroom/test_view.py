"""The Python side of the widgets, without a browser: what may be asked, what is answered, what is stored."""

import base64
import json
import queue
import re
import signal
import threading
from types import SimpleNamespace

import nbformat
import pytest
import widget_pictures
from IPython.core.formatters import DisplayFormatter

from rlhf_lab.classroom import course
from rlhf_lab.classroom.widgets import bridge, chat as chats, view as views
from rlhf_lab.classroom.widgets.bridge import picture_of
from rlhf_lab.classroom.widgets.session import FeedbackSession
from rlhf_lab.classroom.widgets.view import ALT, FeedbackView
from rlhf_lab.feedback import store as stores
from rlhf_lab.feedback.questions import Compare, EditReply, MarkWords, Rank, Rate
from rlhf_lab.feedback.store import Store

REPLIES = (
    "In Mill Street.",
    "Near the old bridge, next to the river.",
    "Go away, I do not care.",
    "Ask at the town hall.",
)


def ranking(**options):
    return FeedbackView(FeedbackSession([Rank("Where is the zoo?", REPLIES), Rate("When?", "At ten.")], **options))


def ask(view, op, *args, id_="1"):
    view.receive({"id": id_, "op": op, "args": list(args)})
    return view.state


@pytest.fixture
def sent(monkeypatch):
    """What goes to the browser, a list of the names of traits a message."""
    messages = []
    monkeypatch.setattr(FeedbackView, "send_state", lambda self, key=None: messages.append(sorted(key or ())))
    return messages


def test_operations_reach_the_session(tmp_path):
    view = ranking(store=tmp_path / "feedback.db", study="s")
    session = view.subject
    for position in (2, 0, 1):
        ask(view, "toggle", position)
    assert session.answer == ((2,), (0,), (1,))
    assert ask(view, "toggle", 0)["ranks"] == [None, 2, 1, None]
    ask(view, "arrange", [[1, 2]])
    assert session.answer == ((1, 2),)
    assert ask(view, "arrange", [[1, 2], [0, 3]])["status"] == "done"
    assert "Saved in feedback.db" in view.state["says"]
    [event] = Store(tmp_path / "feedback.db").standing()
    assert [sorted(event.record.replies[i] for i in tier) for tier in event.record.tiers] == [
        sorted(session.replies[i] for i in tier) for tier in ((1, 2), (0, 3))
    ]
    assert event.widget == views.VERSION
    ask(view, "next")
    assert ask(view, "rate", 4)["answer"] == 4
    assert ask(view, "undo")["status"] == "open"
    # Undo that reaches into another question says so, and does it when confirmed.
    assert view.state["undo_asks"] != ""
    ask(view, "undo")
    assert session.index == 1
    assert ask(view, "undo", True)["index"] == 0


def test_only_operations_are_called(tmp_path):
    view = ranking()
    for op in ("records", "_set", "__init__", "refresh", "store", "close", None, 3, ["place"]):
        state = ask(view, op)
        assert "none of its operations" in state["error"], op
        assert state["ranks"] == [None] * 4
    assert ask(view, "look")["error"] == ""


def test_each_request_is_answered():
    view = ranking()
    assert view.state["ack"] == ""
    for number, (op, args) in enumerate([("place", [0]), ("place", [9]), ("arrange", [[["a"]]]), ("nothing", [])]):
        view.receive({"id": f"a-{number}", "op": op, "args": args})
        assert view.state["ack"] == f"a-{number}"
        assert (view.state["error"] != "") == (number > 0)
    with pytest.raises(TypeError):  # of which the log of the kernel tells; the browser is answered all the same
        view.receive({"id": "last", "op": "place", "args": [0, 1, 2]})
    assert view.state["ack"] == "last"


def test_an_interrupt_leaves_an_answer(monkeypatch):
    view = ranking()

    def interrupted(position):
        raise KeyboardInterrupt

    monkeypatch.setattr(view.subject, "place", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ask(view, "place", 0, id_="k")
    assert view.state["ack"] == "k"


def test_an_interrupt_reaches_what_another_thread_was_asked_for(monkeypatch):
    """As in JupyterLab: requests come in a thread without signals, and the idle main thread ignores them."""
    calls, ends, place = queue.Queue(), queue.Queue(), []
    kernel = SimpleNamespace(io_loop=SimpleNamespace(add_callback=calls.put))
    monkeypatch.setattr(bridge, "get_ipython", lambda: SimpleNamespace(kernel=kernel))

    def ask_for(work):
        try:
            ends.put(bridge.in_main_thread(work))
        except BaseException as error:
            ends.put(type(error))

    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        for work, end in [
            (lambda: place.append(threading.current_thread()), None),
            (lambda: signal.raise_signal(signal.SIGINT), KeyboardInterrupt),
            (lambda: place.index("nowhere"), ValueError),
        ]:
            thread = threading.Thread(target=ask_for, args=[work])
            thread.start()
            calls.get(timeout=60)()
            assert ends.get(timeout=60) is end
            thread.join()
            assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert place == [threading.main_thread()]


def test_a_store_answers_before_the_reader_is_told_that_nobody_does():
    [patience] = re.findall(r"const PATIENCE = (\d+);", bridge.script())
    assert int(patience) > 1000 * stores.PATIENCE + 1000


def test_errors_say_the_remedy(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    view = ranking(store=folder)  # a folder is no file
    ask(view, "all_bad")
    assert view.state["error"]
    assert view.state["unsaved"] == 1
    assert not view.state["saved"]


def test_long_texts_are_sent_once(sent):
    view = FeedbackView(FeedbackSession([Rank("Where?", ("a " * 500_000, "b " * 500_000)), Rate("When?", "At ten.")]))
    sent.clear()
    ask(view, "toggle", 0)
    assert sent == [["state"]]
    assert len(json.dumps(view.state)) < 5_000
    sent.clear()
    ask(view, "next")
    assert sent == [["content", "state"]]  # in one message: they belong together


def test_time_runs_from_the_first_look():
    view = ranking()
    assert view.subject._since == {}
    ask(view, "look")
    assert list(view.subject._since) == [0]


def test_state_is_json():
    questions = [MarkWords("Hi \ud800", "a\ud800b"), EditReply("Hi", "\0"), Compare("Hi", "a", "b"), Rate("Hi", "a")]
    view = FeedbackView(FeedbackSession(questions, markdown=True))
    for _ in questions:
        json.dumps([view.state, view.content], allow_nan=False).encode()
        assert "\ud800" not in str(view.content)
        ask(view, "next")


def test_scripts_are_joined_without_a_build():
    script = FeedbackView._esm
    assert script == bridge.script("ranking.js", "forms.js", "view.js")
    assert script.count("export default") == 1
    assert "import " not in script.replace("// ", "")
    for op in FeedbackView.operations:
        assert f'"{op}"' in script or op in ("place", "go", "rate", "edit", "comment"), op


def test_stored_notebook_shows_a_picture(tmp_path):
    view = ranking()
    data, metadata = DisplayFormatter().format(view)
    assert data["text/plain"] == "FeedbackView(2 questions)"
    assert "application/vnd.jupyter.widget-view+json" in data
    assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG")
    assert len(metadata["image/png"]["alt"].split()) > 10
    output = nbformat.v4.new_output("execute_result", data=data, metadata=metadata, execution_count=1)
    cell = nbformat.v4.new_code_cell("FeedbackView(session)", outputs=[output], execution_count=1)
    stored = course.normalise(nbformat.v4.new_notebook(cells=[cell]))
    [kept] = stored.cells[0].outputs
    assert set(kept.data) == {"text/plain", "image/png"}
    assert kept.metadata["image/png"]["alt"] == ALT["rank"]


def test_each_widget_has_a_picture():
    words = ALT | {"chat": chats.ALT}
    assert set(widget_pictures.views()) == set(words)
    for name, text in words.items():
        assert 5_000 < len(base64.b64decode(picture_of(name))) < 40_000, name
        assert text.endswith(".")
    assert picture_of("no form") == ""
    data, metadata = DisplayFormatter().format(widget_pictures.chat())
    assert data["image/png"] == picture_of("chat")
    assert metadata["image/png"]["alt"] == chats.ALT


def test_pictures_show_the_widgets_as_they_are():
    drawn = json.loads(widget_pictures.SOURCES.read_text(encoding="utf-8"))
    shown = {name: widget_pictures.digest(make()) for name, make in widget_pictures.views().items()}
    stale = [name for name in shown | drawn if drawn.get(name) != shown.get(name)]
    assert not stale, (
        f"scripts, styles or texts of {', '.join(stale)} changed: run `{widget_pictures.COMMAND}`, and look"
    )


def test_a_picture_is_stale_when_what_it_shows_changes(monkeypatch):
    view = widget_pictures.session_view("rate")
    before = widget_pictures.digest(view)
    assert widget_pictures.digest(widget_pictures.session_view("rate")) == before
    ask(view, "rate", 5)
    assert widget_pictures.digest(view) != before
    again = widget_pictures.session_view("rate")
    again._css += ".rlhf-card { color: red; }"
    assert widget_pictures.digest(again) != before
