"""The chat in JupyterLab, in a real browser: what is typed and clicked reaches the models and the store.

One JupyterLab for all of them, and a cell for each test. RLHF_LAB_SCREENSHOTS names a folder for pictures.
"""

import os
import signal
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import widget_pictures
from lab_pages import (
    Notebook,
    browser_page,
    jupyterlab,
    new_page,
    open_widget,
    serious_faults,
    wait_for,
    write_notebook,
)

from rlhf_lab.feedback.store import Store
from rlhf_lab.records import Choice, Comment, Edit, Mark, Message, Ranking, Rating

pytestmark = pytest.mark.browser

HOSTILE = (
    "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'> $x^2$ 🐘 \u202eback\u202c </div> \0"
)
SETUP = f"""
import os, time
from dataclasses import replace
from pathlib import Path
Path("kernel.pid").write_text(str(os.getpid()))
import torch
from rlhf_lab import load_language_model
from rlhf_lab.classroom.widgets import dialogue
from rlhf_lab.classroom.widgets.chat import Chat
from rlhf_lab.classroom.widgets.plain_chat import PlainChat

base, sft = load_language_model("tiny"), load_language_model("tiny")
with torch.no_grad():
    for parameter in sft.model.parameters():
        parameter += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
write = dialogue.write_reply

def sometimes_hostile(lm, prompt, **options):
    reply = write(lm, prompt, **options)
    if "slowly" in prompt[-1].content:
        Path("writing").touch()
        end = time.monotonic() + 60
        while time.monotonic() < end:
            time.sleep(0.02)
    if "hostile" in prompt[-1].content:
        text = {HOSTILE!r}
        return replace(reply, text=text, pieces=(text, *[""] * (len(reply.pieces) - 1)))
    return reply

dialogue.write_reply = sometimes_hostile
two = {{"base": base, "SFT": sft}}
"""
CELLS = [
    SETUP,
    "Chat(two, reference=base, store=True, study='talk')",
    "Chat({'secret one': base, 'secret two': sft, 'secret three': base}, blind=True, store=True, study='blind')",
    "PlainChat(dialogue.Dialogue(two, store=True, study='plain'))",
    "Chat(two, reference=base, store=True, study='keys', max_new_tokens=24)",
    "Chat(two, reference=base, show_oracle=True, study='pictures')",
    "Chat(two, store=True, study='slow', max_new_tokens=16)",
    "Chat(base, store=True, study='locked', max_new_tokens=16)",
    "Chat(two, store=True, study='kill', max_new_tokens=16)",
]
SLOW, LOCKED, KILLED = 6, 7, 8  # of the cells
KINDS = {  # of elements that can have the focus, by the button that opens where they are
    "Numbers: base, turn 1": [".rlhf-chat-panel [tabindex]"],
    "Mark words: base, turn 1": [".rlhf-chat-word", ".rlhf-chat-score", "button[aria-expanded=true]"],
    "Edit: SFT, turn 1": [".rlhf-chat-panel textarea", "textarea[data-place=input]", ".rlhf-yes"],
    "Rank all 2": [".rlhf-chat-panel select", ".rlhf-chat-bar button", ".rlhf-chat-bar [aria-disabled=true]", "select"],
}
CLIPPED = """(root) => {
  const all = root.getBoundingClientRect();
  const seen = root.querySelectorAll("button, select, .rlhf-text, .rlhf-chat-reply, td");
  return [...seen].filter((n) => n.offsetParent).filter((n) => {
    const box = n.getBoundingClientRect();
    return box.right > all.right + 1 || box.left < all.left - 1 || (n.clientWidth && n.scrollWidth > n.clientWidth + 1);
  }).map((n) => n.outerHTML.slice(0, 200));
}"""
LIBRARY = "When does the library close?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("lab")


@pytest.fixture(scope="module")
def notebook(folder, chromium):
    write_notebook(folder / "chat.ipynb", CELLS)
    store = {"RLHF_LAB_STORE": str(folder / "feedback.db")}
    with jupyterlab(folder, **store) as url, browser_page(chromium) as page:
        page.trouble = []
        page.on("pageerror", lambda error: page.trouble.append(str(error)))
        notebook = Notebook(page, url.format("chat.ipynb"))
        notebook.view(1).wait_for()
        yield notebook
        assert page.trouble == []
        assert page.strangers == []


@pytest.fixture
def page(notebook):
    return notebook.page


def records(folder, study):
    with Store(folder / "feedback.db") as store:
        return [event.record for event in store.standing(study)]


def say(view, text, turn):
    """Write a message and wait for the replies."""
    field = view.get_by_label("Your message")
    field.fill(text)
    field.press("Enter")
    view.get_by_label(f"Turn {turn}", exact=True).wait_for()
    wait_for(lambda: field.input_value() == "")


def press(view, name):
    view.get_by_role("button", name=name, exact=True).click()


def focused(page):
    return page.evaluate("document.activeElement.getAttribute('data-place')")


def test_talking_and_judging(notebook, page, folder):
    view = notebook.view(1)
    say(view, LIBRARY, 1)
    assert focused(page) == "input"
    [base, sft] = [view.get_by_role("group", name=f"Reply of {name}, turn 1", exact=True) for name in ("base", "SFT")]
    text = base.locator(".rlhf-text").inner_text()
    other = sft.locator(".rlhf-text").inner_text()
    assert text
    announced = view.locator("[aria-live=polite]")
    assert text in announced.inner_text()

    press(view, "Rate base 4 of 5")
    view.get_by_text("1 judgement, saved in").wait_for()
    assert records(folder, "talk") == [Rating(LIBRARY, text, 4, 1, 5, "you")]
    assert focused(page) == "0.0.0.rate.4"
    press(view, "Edit: base, turn 1")
    field = view.get_by_label("How the reply should have been")
    assert field.input_value() == text
    field.fill("The library closes at six.")
    press(view, "Save the edit")
    view.get_by_text("2 judgements, saved in").wait_for()
    assert focused(page) == "0.0.0.edit"  # its panel is closed, and the focus stays with its button
    press(view, "Mark words: base, turn 1")
    view.locator(".rlhf-chat-word").nth(1).click()
    press(view, "Save the marks")
    press(view, "Comment: base, turn 1")
    view.get_by_label("What is good or bad about it").fill("Fine, I think.")
    press(view, "Save the comment")
    press(view, "SFT is better")
    press(view, "Rank all 2")
    for name, rank in (("base", "1"), ("SFT", "1")):
        view.get_by_label(f"Rank of {name}, turn 1").select_option(rank)
    press(view, "Save the order")
    view.get_by_text("6 judgements, saved in").wait_for()
    first, second = text.split()[:2]
    word = (len(first) + 1, len(first) + 1 + len(second))
    assert records(folder, "talk") == [
        Rating(LIBRARY, text, 4, 1, 5, "you"),
        Edit(LIBRARY, text, "The library closes at six.", "you"),
        Mark(LIBRARY, text, (word,), "you"),
        Comment(LIBRARY, text, "Fine, I think.", "you"),
        Choice(LIBRARY, text, other, -1, "base", "SFT", "you"),
        Ranking(LIBRARY, (text, other), ((0, 1),), "done", "you"),
    ]
    press(view, "Undo: the order of turn 1")
    view.get_by_text("5 judgements, saved in").wait_for()
    assert "Took back: the order of turn 1." in announced.inner_text()
    assert len(records(folder, "talk")) == 5

    press(view, "Another reply of SFT, turn 1")
    view.get_by_text("2 of 2", exact=True).wait_for()
    press(view, "Previous reply of SFT, turn 1")
    view.get_by_text("1 of 2", exact=True).wait_for()
    press(view, "Go on with the reply of SFT")
    say(view, "And who runs it?", 2)
    press(
        view,
        "Rate SFT 2 of 5" if view.get_by_role("button", name="Rate SFT 2 of 5").count() == 1 else "Rate base 1 of 5",
    )
    view.get_by_text("6 judgements, saved in").wait_for()
    prompt = records(folder, "talk")[-1].prompt
    assert prompt == (Message("user", LIBRARY), Message("assistant", other), Message("user", "And who runs it?"))


def test_hostile_texts_are_shown_as_text(notebook, page, folder):
    view = notebook.view(1)
    before = view.locator("section").count()
    say(view, f"hostile {HOSTILE}", before + 1)
    turn = view.get_by_label(f"Turn {before + 1}", exact=True)
    shown = [box.text_content() for box in turn.locator(".rlhf-text").all()]
    assert len(shown) == 3
    assert all(HOSTILE.partition("\u202e")[0] in text for text in shown)  # signs that act are shown as signs
    view.get_by_label("Colour tokens by").select_option("kl")
    turn.locator(".rlhf-chat-kl").first.wait_for()
    turn.get_by_role("button", name="Mark words").first.click()
    elephant = turn.locator(".rlhf-chat-word", has_text="🐘")
    elephant.click()
    press(turn, "Save the marks")
    wait_for(lambda: isinstance(records(folder, "talk")[-1], Mark) and records(folder, "talk")[-1].reply == HOSTILE)
    start = HOSTILE.index("🐘")  # counted in characters, of which JavaScript's strings have two here
    assert records(folder, "talk")[-1].spans == ((start, start + 1),)
    assert view.locator("script, img, b, mjx-container").count() == 0
    assert page.evaluate("window.hacked") is None
    view.get_by_label("Colour tokens by").select_option("none")


def test_messages_that_cannot_be_sent_are_kept(notebook, page):
    view = notebook.view(1)
    field = view.get_by_label("Your message")
    before = view.locator("section").count()
    field.press("Enter")
    view.get_by_text("the message is empty; write something first").wait_for()
    field.fill("one")
    field.press("Shift+Enter")
    page.keyboard.type("two")
    assert field.input_value() == "one\ntwo"
    field.fill("long " * 20_000)
    field.press("Enter")
    view.get_by_text("tokens, and 128 fit: the context less 64 for the reply").wait_for()
    assert len(field.input_value()) == 100_000
    assert focused(page) == "input"
    assert view.locator("section").count() == before
    field.fill("")


def test_hidden_models_have_letters_until_they_are_revealed(notebook, page, folder):
    view = notebook.view(2)
    view.locator(".rlhf-chat-offers button").first.click()
    view.get_by_label("Turn 1", exact=True).wait_for()
    assert [box.inner_text() for box in view.locator(".rlhf-chat-head .rlhf-chat-who").all()] == ["A", "B", "C"]
    assert view.get_by_label("Colour tokens by").locator("option[value=kl]").is_disabled()
    view.get_by_label("First reply to compare, turn 1").select_option(label="C")
    press(view, "C is better")
    view.get_by_text("1 judgement, saved in").wait_for()
    [choice] = records(folder, "blind")
    assert choice.outcome in (1, -1)
    assert "secret" not in view.evaluate("node => node.outerHTML")
    press(view, "Reveal the models")
    view.get_by_text("secret one", exact=True).first.wait_for()
    names = [box.inner_text() for box in view.locator(".rlhf-chat-head .rlhf-chat-who").all()]
    assert sorted(names) == ["secret one", "secret three", "secret two"]
    better = choice.left_source if choice.outcome == 1 else choice.right_source
    assert better == names[2]


def test_no_key_reaches_the_notebook(notebook, page):
    view = notebook.view(4)
    say(view, LIBRARY, 1)
    view.get_by_label("Colour tokens by").select_option("log-prob")
    before = notebook.cells()
    for opener, kinds in KINDS.items():
        press(view, opener)
        able = view.locator("button, select, textarea, input, a, summary, [tabindex]")
        assert all(able.evaluate_all("all => all.map((n) => n.hasAttribute('data-lm-suppress-shortcuts'))"))
        for kind in kinds:
            node = view.locator(f"{kind}:visible").first
            for key in ("x", "m", "a", "b", "j", "k", "z", "d", "d", "ArrowUp", "ArrowDown", "Control+s"):
                node.focus()
                page.keyboard.press(key)
            assert page.evaluate("document.activeElement.closest('.rlhf-chat') !== null")
            assert notebook.cells() == before, kind
    view.locator(".rlhf-chat-word").first.press("Escape")
    assert focused(page) == "0.0.0.mark"
    assert view.locator(".rlhf-chat-word").count() == 0
    view.get_by_label("Your message").fill("")
    view.get_by_label("Colour tokens by").select_option("none")


def test_the_task_by_keyboard_alone(notebook, page, folder):
    view = notebook.view(4)
    before = view.locator("section").count()
    view.get_by_label("Your message").focus()
    page.keyboard.type("Where is the zoo?")
    page.keyboard.press("Enter")
    view.get_by_label(f"Turn {before + 1}", exact=True).wait_for()
    for _ in range(60):  # back from the field to the first score of the last reply
        page.keyboard.press("Shift+Tab")
        if (focused(page) or "").startswith(f"{before}.1.0.rate."):
            break
    score = int(focused(page).rpartition(".")[2])
    page.keyboard.press("Space")
    wait_for(lambda: [r for r in records(folder, "keys") if isinstance(r, Rating)])
    assert records(folder, "keys")[-1].score == score
    wait_for(lambda: (focused(page) or "").startswith(f"{before}.1.0.rate."))
    while focused(page) != f"{before}.1.0.comment":
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert focused(page) == f"{before}.1.0.comment.first"
    page.keyboard.type("Good.")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    wait_for(lambda: isinstance(records(folder, "keys")[-1], Comment))
    assert records(folder, "keys")[-1].text == "Good."
    wait_for(lambda: focused(page) == f"{before}.1.0.comment")


def test_the_plain_view(notebook, page, folder):
    view = notebook.view(3, ".jp-OutputArea-output")
    view.get_by_placeholder("Write to the models").fill("hostile, please")
    press(view, "Send")
    text = view.locator("textarea:visible").nth(1)
    wait_for(lambda: HOSTILE.replace("\0", "") in text.input_value().replace("\0", "").replace("\ufffd", ""))
    view.get_by_role("button", name="3", exact=True).first.click()
    wait_for(lambda: records(folder, "plain"))
    assert records(folder, "plain")[0].score == 3
    assert view.locator("script, img, mjx-container").count() == 0
    assert page.evaluate("window.hacked") is None


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [480, 800, 1200])
def test_nothing_is_clipped_and_axe_finds_nothing_serious(notebook, page, width, dark):
    view = notebook.view(5)
    if not view.locator("section").count():
        say(view, LIBRARY, 1)
        view.get_by_label("Colour tokens by").select_option("kl")
        press(view, "Numbers: SFT, turn 1")
        press(view, "Mark words: base, turn 1")
        press(view, "Rank all 2")
        view.locator("table").wait_for()
    page.set_viewport_size({"width": width, "height": 2000})
    notebook.theme(dark)
    view.scroll_into_view_if_needed()
    page.wait_for_timeout(300)
    if folder := os.environ.get("RLHF_LAB_SCREENSHOTS"):
        view.screenshot(path=Path(folder) / f"chat-{width}-{'dark' if dark else 'light'}.png")
    try:
        clipped = view.evaluate(CLIPPED)
        assert clipped == []
        assert serious_faults(view) == []
        tops = view.locator(".rlhf-chat-reply").evaluate_all("all => all.map((n) => n.getBoundingClientRect().top)")
        if width != 800:
            assert len(set(tops)) == {480: 2, 1200: 1}[width]  # one below the other where there is little room
    finally:
        page.set_viewport_size({"width": 1200, "height": 1000})
        notebook.theme(False)


# ---- on a page of its own ----------------------------------------------------------------------------------------


@pytest.fixture
def alone(page):
    """Show a chat without JupyterLab."""
    pages = []

    def show(chat, **options):
        pages.append(new_page(page.context.browser, **options))
        return open_widget(pages[-1], chat)

    yield show
    for made in pages:
        made.close()


def test_keys_of_the_panels(alone):
    chat = widget_pictures.chat()
    reply = chat.dialogue.turns[0].replies[1][0].text
    view = alone(chat)
    press(view, "Comment: SFT, turn 1")
    view.page.keyboard.type("Good.\n")
    view.page.keyboard.press("Control+Enter")
    wait_for(lambda: isinstance(chat.events()[-1].record, Comment))
    wait_for(lambda: focused(view.page) == "0.1.0.comment")
    press(view, "Mark words: SFT, turn 1")
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft", "Space", "Control+Enter"):
        view.page.keyboard.press(key)
    wait_for(lambda: isinstance(chat.events()[-1].record, Mark))
    [(start, end)] = chat.events()[-1].record.spans
    assert reply[start:end] == reply.split()[1]
    assert view.locator(".rlhf-chat-panel").count() == 0


def test_an_error_is_in_view_from_the_first_turn_of_a_long_chat(alone):
    view = alone(widget_pictures.chat(), viewport={"width": 600, "height": 300})
    view.get_by_label("Your message").press("Enter")
    told = view.get_by_role("alert")
    told.wait_for()
    view.page.evaluate("scrollTo(0, 0)")
    box = told.bounding_box()
    assert 0 <= box["y"] <= 300 - box["height"]


@pytest.mark.parametrize("forced", ["none", "active"])
def test_levels_of_tokens_differ_in_their_lines(alone, forced):
    view = alone(widget_pictures.chat(), forced_colors=forced)
    view.get_by_label("Colour tokens by").select_option("log-prob")
    levels = view.locator(".rlhf-chat-legend [class^=rlhf-level]")
    levels.first.wait_for()
    looks = "all => all.map((n) => getComputedStyle(n).borderBottom)"
    assert len(set(levels.evaluate_all(looks))) == 5


# ---- what goes wrong ---------------------------------------------------------------------------------------------


def texts(view):
    return view.locator(".rlhf-chat-turn .rlhf-text").all_inner_texts()


def let_it_write_slowly(field, folder):
    """Send a message at which a model writes for a minute, and wait until it does."""
    (folder / "writing").unlink(missing_ok=True)
    field.fill("Write slowly")
    field.press("Enter")
    wait_for((folder / "writing").exists)


def test_an_interrupt_while_a_model_writes_keeps_what_was_said(notebook, page, folder):
    view = notebook.view(SLOW)
    say(view, LIBRARY, 1)
    press(view, "Rate SFT 2 of 5")
    view.get_by_text("1 judgement, saved in").wait_for()
    before = texts(view)
    field = view.get_by_label("Your message")
    let_it_write_slowly(field, folder)
    view.get_by_text("The models are writing").first.wait_for()
    notebook.ask("await app.commands.execute('notebook:interrupt-kernel')")
    told = view.get_by_role("alert")
    told.wait_for()
    assert "Interrupted; the conversation is as it was before" in told.inner_text()
    assert texts(view) == before
    assert field.input_value() == "Write slowly"
    assert view.get_attribute("aria-busy") == "false"
    press(view, "Rate SFT 4 of 5")  # and it goes on: a judgement, another reply, a message
    wait_for(lambda: [r.score for r in records(folder, "slow")] == [4])
    press(view, "Another reply of SFT, turn 1")
    view.get_by_text("2 of 2", exact=True).wait_for()
    assert view.get_by_role("alert").all_inner_texts() == []
    say(view, "And who runs it?", 2)
    assert texts(view)[:2] == before[:2]


def test_what_a_locked_store_refused_is_saved_once_on_request(notebook, folder):
    view = notebook.view(LOCKED)
    say(view, LIBRARY, 1)
    with closing(sqlite3.connect(folder / "feedback.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        press(view, "Rate model 4 of 5")
        told = view.get_by_role("alert")
        told.wait_for()
        assert "Another program is writing to it; wait for it or close it, and save again" in told.inner_text()
        view.get_by_text("1 judgement, 1 not saved yet").wait_for()
        assert records(folder, "locked") == []
    press(view, "Try to save again")
    view.get_by_text("1 judgement, saved in").wait_for()
    assert view.get_by_role("alert").count() == 0
    assert view.get_by_role("button", name="Try to save again").count() == 0
    assert view.evaluate("root => root.contains(document.activeElement)")
    with Store(folder / "feedback.db") as store:
        [event] = store.events("locked")
    assert event.record.score == 4


def test_kernel_killed(notebook, page, folder):
    """It dies while a model writes, after a judgement: the reader is told what is kept and where, and begins anew."""
    view = notebook.view(KILLED)
    say(view, LIBRARY, 1)
    reply = texts(view)[1]
    press(view, "Rate base 4 of 5")
    view.get_by_text("1 judgement, saved in").wait_for()
    before = records(folder, "kill")
    assert before == [Rating(LIBRARY, reply, 4, 1, 5, "you")]
    field = view.get_by_label("Your message")
    let_it_write_slowly(field, folder)
    os.kill(int((folder / "kernel.pid").read_text()), signal.SIGKILL)
    told = view.get_by_role("alert")
    told.wait_for()
    assert "run this cell again; 1 judgement is in" in told.inner_text()
    assert str(folder / "feedback.db") in told.inner_text()
    assert texts(view)[:2] == [LIBRARY, reply]  # it stays to be read and copied
    dialog = page.locator(".jp-Dialog button.jp-mod-accept")
    wait_for(lambda: dialog.count() and (dialog.first.click() or True), patience=30)
    notebook.wait_until_idle()
    notebook.run_all()
    view = notebook.view(KILLED)
    view.get_by_text("1 judgement from before is kept in").wait_for()
    assert str(folder / "feedback.db") in view.locator(".rlhf-chat-log").inner_text()
    assert view.get_by_label("Your message").input_value() == "Write slowly"  # what was not answered is not lost
    assert view.get_by_role("alert").count() == 0
    assert records(folder, "kill") == before
    say(view, LIBRARY, 1)
    press(view, "Rate SFT 1 of 5")
    view.get_by_text("1 judgement, saved in").wait_for()
    assert "1 more from before" in view.locator(".rlhf-chat-bar").last.inner_text()
    assert [r.score for r in records(folder, "kill")] == [4, 1]
