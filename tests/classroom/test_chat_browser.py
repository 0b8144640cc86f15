"""The chat in JupyterLab, in a real browser: what is typed and clicked reaches the models and the store.

One JupyterLab for all of them, and a cell for each test. RLHF_LAB_SCREENSHOTS names a folder for pictures.
"""

import os
from pathlib import Path

import pytest
from lab_pages import Notebook, browser_page, jupyterlab, serious_faults, wait_for, write_notebook

from rlhf_lab.feedback.store import Store
from rlhf_lab.records import Choice, Comment, Edit, Mark, Message, Ranking, Rating

pytestmark = pytest.mark.browser

HOSTILE = (
    "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'> $x^2$ 🐘 \u202eback\u202c </div> \0"
)
SETUP = f"""
from dataclasses import replace
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
]
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
