"""The view of a feedback session in JupyterLab, in a real browser: what is done by hand arrives in the store.

One JupyterLab for all; the screenshots are written where RLHF_LAB_SCREENSHOTS names a folder.
"""

import os
import signal
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from lab_pages import Notebook, jupyterlab, launched, new_page, open_widget, serious_faults, wait_for, write_notebook

from rlhf_lab.classroom.widgets.session import FeedbackSession
from rlhf_lab.classroom.widgets.view import FeedbackView
from rlhf_lab.feedback.questions import Compare, MarkWords, Rank, Rate
from rlhf_lab.feedback.store import Store

REPLIES = [
    "The zoo is in Mill Street.",
    "I think that it is near the old bridge. You can walk there from the station in ten minutes, or take the bus.",
    "Go away. I do not care about your question.",
    "You will find it next to the river; it opens at ten.",
]
HOSTILE = [
    "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>",
    "NUL \0, escape \x1b[31m, \u202eturned around\u202c, مرحبا بالعالم 🐘, half of a pair \ud800, =1+1, $x^2$",
    "The museum is in Park Road. " * 37_000,
    "# Title\n\n* [a link](javascript:window.hacked=3)\n* `code`\n\n<iframe srcdoc='<script>parent.hacked=4</script>'>",
]
SETUP = f"""
import os
open("kernel.pid", "w").write(str(os.getpid()))
from rlhf_lab.classroom.widgets.session import FeedbackSession
from rlhf_lab.classroom.widgets.view import FeedbackView
from rlhf_lab.feedback.questions import *
from rlhf_lab.records import Segment
replies, hostile = {REPLIES!r}, {HOSTILE!r}
zoo, long = "Where is the zoo?", "The opening times are on the door. " * 6000
def view(study, *questions, **options):
    return FeedbackView(FeedbackSession(questions, "feedback.db", study=study, **options))
def segment(sign):
    states = tuple((0.02 * t * sign, 0.0, 0.01 * t * sign, 0.0) for t in range(21))
    return Segment("CartPole-v1", states, ((1,),) * 20)
"""
CELLS = {
    "rank": 'view("rank", *(Rank(q, tuple(replies)) for q in (zoo, "And the museum?", "When?")), goal=2)',
    "rate": 'view("rate", Rate(zoo, replies[1]), Rate(zoo, long, high=7))',
    "edit": 'view("edit", EditReply(zoo, replies[2]))',
    "mark": 'view("mark", MarkWords(zoo, "🐘 " + replies[1]))',
    "comment": 'view("comment", CommentOn(zoo, replies[2]))',
    "compare": 'view("compare", Compare(zoo, replies[0], replies[2], "sft", "base"))',
    "segments": 'view("segments", CompareSegments("Which one balances?", segment(1), segment(-1)))',
    "hostile": 'view("<b>hostile</b>", Rank(hostile[0], tuple(hostile)), markdown=True)',
    "hands": 'view("hands", Rank(zoo, tuple(replies)), Rate(zoo, replies[1]), EditReply(zoo, replies[2]), '
    "MarkWords(zoo, replies[0]), CommentOn(zoo, replies[2]), Compare(zoo, replies[0], replies[2]))",
}


LOOKED_AT = [name for name in CELLS if name != "hands"]  # which shows the forms that the others show
DOOMED = {  # whose kernel is killed
    "kill": 'view("kill", *(Rank(f"{zoo} {i}", tuple(replies)) for i in range(4)))',
    "text": 'view("text", EditReply(zoo, replies[2]))',
}
PLAIN = """
from rlhf_lab.classroom.widgets.plain import PlainView
questions = Rank(zoo, tuple(hostile[:2])), Rate(zoo, hostile[0]), EditReply(zoo, replies[2])
PlainView(FeedbackSession(questions, "feedback.db", study="plain"))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab")
    write_notebook(folder / "judge.ipynb", [SETUP, *CELLS.values(), PLAIN, *DOOMED.values()])
    return folder


@pytest.fixture(scope="module")
def lab(folder):
    with jupyterlab(folder) as url:
        yield url


@pytest.fixture(scope="module")
def browser(chromium):
    with launched(chromium) as browser:
        yield browser


@pytest.fixture(scope="module")
def notebook(browser, lab):
    page = new_page(browser, reduced_motion="reduce")
    yield Notebook(page, lab.format("judge.ipynb"))
    assert page.strangers == []  # nothing outside of this machine was asked for
    page.close()


class View:
    """A widget on the page."""

    def __init__(self, page, root, notebook=None):
        self.page, self.root, self.notebook = page, root, notebook

    def says(self, text):
        """Wait until it says so."""
        wait_for(lambda: text in self.root.locator(".rlhf-line").inner_text(), patience=60)

    def card(self, text):
        return self.root.locator(".rlhf-card", has_text=text)

    def order(self):
        """The letters in its order, a text for each rank."""
        rows = self.root.locator(".rlhf-tier").all()
        return ["".join(sorted(row.locator(".rlhf-letter").all_inner_texts())) for row in rows]

    def becomes(self, *order):
        wait_for(lambda: self.order() == list(order), patience=60)

    def letters(self):
        """{letter: text} of the replies."""
        cards = self.root.locator(".rlhf-card").all()
        return {c.locator(".rlhf-letter").inner_text(): c.locator(".rlhf-text").inner_text() for c in cards}

    def press(self, keys):
        for key in keys.split():
            self.page.keyboard.press(key)

    def click(self, name):
        self.root.get_by_role("button", name=name, exact=True).click()

    def inside(self):
        """Whether the focus is in the widget."""
        return self.root.evaluate("root => root.contains(document.activeElement)")


@pytest.fixture
def see(notebook):
    names = [*CELLS, "plain", *DOOMED]
    return lambda name: View(notebook.page, notebook.view(1 + names.index(name)), notebook)


@pytest.fixture(scope="module")
def judged(folder):
    """The standing records of a study."""
    store = Store(folder / "feedback.db")
    yield lambda study: [event.record for event in store.standing(study)]
    store.close()


@pytest.fixture
def alone(browser):
    """Show a session on a page of its own, without JupyterLab."""
    pages = []

    def show(session, **options):
        pages.append(new_page(browser, **{"reduced_motion": "reduce"} | options))
        return View(pages[-1], open_widget(pages[-1], FeedbackView(session)))

    yield show
    for page in pages:
        page.close()


def grab(view, grip, x, y):
    """Take `grip` and bring it to a place of the page, still held."""
    box = grip.bounding_box()
    view.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    view.page.mouse.down()
    view.page.mouse.move(x - 30, y - 10, steps=4)
    view.page.mouse.move(x, y, steps=4)


@pytest.mark.browser
def test_ranking_by_hand(see, judged):
    view = see("rank")
    letters = view.letters()
    assert sorted(letters.values()) == sorted(REPLIES)
    cards = view.root.locator(".rlhf-card .rlhf-edge")
    ladder = view.root.locator(".rlhf-ladder")

    def row(i, part):
        box = view.root.locator(".rlhf-tier").nth(i).bounding_box()
        return box["x"] + box["width"] / 3, box["y"] + part * box["height"]

    def drag(grip, place):
        grab(view, grip, *place)
        view.page.mouse.up()

    box = ladder.bounding_box()
    drag(cards.nth(2), (box["x"] + 60, box["y"] + 50))
    view.becomes("C")
    drag(cards.nth(3), row(0, 0.05))  # above it
    view.becomes("D", "C")
    drag(cards.nth(0), row(0, 0.95))  # between the two
    view.becomes("D", "A", "C")
    drag(cards.nth(1), row(1, 0.5))  # onto the middle one: a tie; and all have a rank
    view.becomes("D", "AB", "C")
    view.says("Judged")
    drag(view.root.locator(".rlhf-chip .rlhf-grip").nth(0), (box["x"] - 300, box["y"] + 20))  # out of it
    view.becomes("AB", "C")
    view.says("Not judged")
    assert judged("rank") == []
    drag(cards.nth(3), row(1, 0.5))
    view.becomes("AB", "CD")
    view.says("feedback.db")
    [record] = judged("rank")
    tiers = [sorted(record.replies[i] for i in tier) for tier in record.tiers]
    assert tiers == [sorted(letters[c] for c in tier) for tier in ("AB", "CD")]
    assert view.page.evaluate("getSelection().toString()") == ""
    # By buttons, and what undo took back.
    view.click("Down: reply A, rank 1")
    view.becomes("B", "A", "CD")
    view.click("Reply D, rank 3")
    view.becomes("B", "A", "C")
    view.click("Reply D, also rank 3")
    view.becomes("B", "A", "CD")
    view.click("Undo")
    view.says("Took back")
    view.becomes("B", "A", "C")
    view.click("All bad")
    view.says("All bad. Saved in feedback.db.")
    assert view.root.locator(".rlhf-bad").all_inner_texts() == ["✕ Bad"] * 4
    assert [r.status for r in judged("rank")] == ["all_bad"]
    view.click("Next")
    view.says("Question 2")
    view.click("Skip")
    view.says("Skipped")
    assert "1 of 2 judged · 1 skipped" in view.root.locator(".rlhf-progress").inner_text()
    # Undo asks before it reaches into the question before, and keeps it where it is told so.
    view.click("Undo")
    view.says("Took back")
    view.click("Undo")
    asked = view.root.get_by_role("group", name="Undo?")
    assert "question 1" in asked.inner_text()
    view.click("Keep it")
    assert asked.count() == 0
    assert view.inside()
    view.click("Undo")
    view.click("Take it back")
    view.says("Question 1")
    assert judged("rank") == []


@pytest.mark.browser
def test_other_forms_by_hand(see, judged):
    rate = see("rate")
    rate.root.get_by_role("radio", name="Score 4 of 5").click()
    rate.says("Saved in feedback.db")
    rate.click("Next")
    rate.says("Question 2")
    rate.press("7")
    rate.says("Score 7")
    assert [(r.score, r.high) for r in judged("rate")] == [(4, 5), (7, 7)]

    edit = see("edit")
    text = edit.root.get_by_role("textbox")
    text.fill("The zoo is in Mill Street.\n")
    edit.click("Save")
    edit.says("Saved in feedback.db")
    assert [r.edited for r in judged("edit")] == ["The zoo is in Mill Street.\n"]

    mark = see("mark")
    mark.root.get_by_role("button", name="bridge.", exact=True).click()
    mark.root.get_by_role("button", name="ten", exact=True).click()
    mark.root.get_by_role("button", name="bus.", exact=True).click(modifiers=["Shift"])
    mark.press("Control+Enter")
    mark.says("2 marks. Saved")
    [record] = judged("mark")
    assert [record.reply[a:b] for a, b in record.spans] == ["bridge.", "ten minutes, or take the bus."]

    comment = see("comment")
    comment.root.get_by_role("textbox").fill("Not polite, x m a.")
    comment.press("Control+Enter")
    comment.says("Saved in feedback.db")
    assert [r.text for r in judged("comment")] == ["Not polite, x m a."]

    for name in ("compare", "segments"):
        view = see(name)
        view.root.get_by_role("radio", name="Right is better").click()
        view.says("Right is better. Saved")
        view.press("1")
        view.says("Left is better. Saved")
        view.press("=")
        view.says("Saved in feedback.db")
        wait_for(lambda name=name: [r.outcome for r in judged(name)] == [0], patience=60)
        view.press("2")
        view.says("Right is better. Saved")
        [record] = judged(name)
        if name == "compare":
            better = record.left if record.outcome == 1 else record.right
            assert better == view.root.locator(".rlhf-card .rlhf-text").nth(1).inner_text()


@pytest.mark.browser
def test_whole_task_by_keys(see, judged):
    """From the first Tab into the widget to the last judgement, with keys alone."""
    view = see("hands")
    cells = view.notebook.cells()
    view.root.get_by_role("button", name="Undo").focus()

    def tab_to(selector):
        for _ in range(20):
            if view.page.evaluate(f"document.activeElement.matches({selector!r})"):
                return
            view.press("Tab")
        raise AssertionError(f"Tab does not reach {selector}")

    tab_to(".rlhf-card")
    view.press("3 = 1 4 2 Enter")  # a ranking with a tie, and on: six keys
    view.says("Question 2")
    view.press("5 Enter")
    view.says("Question 3")
    tab_to("textarea")
    view.page.keyboard.press("Control+A")
    view.page.keyboard.type("In Mill Street, u s b ? = 1.")
    view.press("Control+Enter")
    view.says("Saved")
    view.press("Enter")
    view.says("Question 4")
    tab_to(".rlhf-word")
    view.press("ArrowRight Shift+ArrowRight Control+Enter")
    view.says("1 mark. Saved")
    for _ in range(2):
        view.press("Shift+Tab")  # from the words to the card, past the button of the mark
        if view.page.evaluate("document.activeElement.matches('.rlhf-card')"):
            break
    view.press("Enter")
    view.says("Question 5")
    tab_to("textarea")
    view.page.keyboard.type("Rude.")
    view.press("Escape Enter")  # what was typed is handed in on the way to the next question
    view.says("Question 6")
    view.press("2")
    view.says("Right is better. Saved")
    ranking, rating, edit, mark, comment, choice = judged("hands")
    assert [len(tier) for tier in ranking.tiers] == [2, 1, 1]
    assert (rating.score, edit.edited, comment.text) == (5, "In Mill Street, u s b ? = 1.", "Rude.")
    assert [mark.reply[a:b] for a, b in mark.spans] == ["zoo is"]
    assert choice.outcome in (1, -1)
    # Moves: Alt and an arrow, with the focus on what is moved all the time.
    for number in range(5, 0, -1):
        view.root.get_by_role("button", name="Previous").focus()
        view.press("Enter")
        view.says(f"Question {number}")
    view.root.locator(".rlhf-card").nth(1).focus()
    view.becomes("AC", "D", "B")
    for key, order in [
        ("Alt+ArrowUp", ("AC", "B", "D")),
        ("Alt+ArrowUp", ("B", "AC", "D")),
        ("Alt+ArrowDown", ("AC", "B", "D")),
    ]:
        view.press(key)
        view.becomes(*order)
        assert view.page.evaluate("document.activeElement.dataset.position") == "1"
    assert view.root.locator(".rlhf-card").nth(1).get_attribute("aria-label") == "Reply B, rank 2"
    assert view.root.get_by_role("button", name="Reply B, rank 2", exact=True).count() == 1
    wait_for(lambda: "Reply B, rank 2" in view.root.locator("[aria-live]").inner_text(), patience=60)
    assert view.notebook.cells() == cells


PRESSED = [
    *"xmajzddkhloycvwt019=sbu??",
    *("Escape", "Enter", "Space", "ArrowUp", "ArrowDown", "ArrowLeft", "ArrowRight", "Home", "Delete", "Backspace"),
    *("Alt+ArrowUp", "Alt+ArrowDown", "Shift+ArrowDown", "Shift+M", "Control+Z", "Control+Enter", "Shift+Enter"),
    *("Alt+Enter", "Control+Shift+-", "Control+S"),
]
KINDS = {  # of what can have the focus; "" is the widget itself
    "rank": [".rlhf-card", ".rlhf-acts button"],
    "rank, the frame": [".rlhf-bar button", ".rlhf-square", ""],
    "rank, the order": [".rlhf-chip button"],
    "rate": [".rlhf-choices button", ".rlhf-long", ".rlhf-more"],
    "edit": ["textarea", ".rlhf-field button"],
    "mark": [".rlhf-word", ".rlhf-acts button"],
    "comment": ["textarea"],
    "compare": [".rlhf-choices button", ".rlhf-card"],
    "segments": [".rlhf-player button", ".rlhf-player input"],
}
# Where the focus is after a key; then it is put on what is tested.
AGAIN = """(root, kind) => {
  const inside = root.contains(document.activeElement), node = kind ? root.querySelector(kind) : root;
  node?.focus();
  return [inside, node !== null && node === document.activeElement];
}"""


@pytest.mark.browser
@pytest.mark.parametrize("case", KINDS)
def test_no_key_reaches_the_notebook(see, case):
    name = case.split(",")[0]
    view, back = see(name), {"rank": "1 2", "rate": "Enter"}.get(name, "")  # keys that bring back what a key took away
    cells = view.notebook.cells()
    every = (
        "[...root.querySelectorAll('button, textarea, input, [tabindex]')].filter(n => !n.dataset.lmSuppressShortcuts)"
    )
    assert view.root.evaluate(f"root => {every}.length") == 0
    for kind in KINDS[case]:
        view.root.focus()
        for key in PRESSED:
            inside, there = view.root.evaluate(AGAIN, kind)
            assert inside, (kind, "before", key)
            if not there:
                view.press(back)
                view.root.locator(kind).first.wait_for()
                assert view.root.evaluate(AGAIN, kind)[1], kind
            view.page.keyboard.press(key)
        view.press("Escape")
        view.page.wait_for_timeout(150)
        assert view.inside()
        assert view.notebook.cells() == cells, kind
    if name == "edit":
        assert "xmajzddk" in view.root.locator("textarea").input_value()


SIZES = "root => [...root.querySelectorAll('.rlhf-text')].map(n => parseFloat(getComputedStyle(n).fontSize))"
CLIPPED = """root => [...root.querySelectorAll("*")].filter((n) => n.offsetParent !== null).filter((n) => {
  const style = getComputedStyle(n), box = n.getBoundingClientRect(), all = root.getBoundingClientRect();
  if (n.closest(".rlhf-unseen") || n.matches(".rlhf-snippet") || style.visibility === "hidden") return false;
  const wide = n.scrollWidth > n.clientWidth + 1 && style.display !== "inline" && n.tagName !== "INPUT";
  const high = n.scrollHeight > n.clientHeight + 1 && style.overflowY === "hidden" && n.tagName !== "TEXTAREA";
  return wide || high || box.left < all.left - 1 || box.right > all.right + 1;
}).map((n) => n.outerHTML.slice(0, 120))"""
PALE = """root => {
  const numbers = (colour) => {
    const found = colour.match(/[\\d.]+/g).map(Number), most = colour.startsWith("color(") ? 255 : 1;
    return [...found.slice(0, 3).map((x) => most * x), found[3] ?? 1];
  };
  const over = (top, below) => [0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3])).concat(1);
  const ground = (n) => {
    const here = numbers(getComputedStyle(n).backgroundColor);
    if (here[3] === 1) return here;
    return over(here, n.parentElement ? ground(n.parentElement) : [255, 255, 255, 1]);
  };
  const light = ([r, g, b]) => [r, g, b].map((x) => ((x /= 255) <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4))
    .reduce((sum, x, i) => sum + x * [0.2126, 0.7152, 0.0722][i], 0);
  const found = [];
  for (const n of root.querySelectorAll("*")) {
    const texts = [...n.childNodes].filter((c) => c.nodeType === 3).map((c) => c.data);
    const words = n.tagName === "TEXTAREA" ? n.value : texts.join("");
    if (!words.trim() || n.offsetParent === null || getComputedStyle(n).visibility === "hidden") continue;
    const below = ground(n), ink = over(numbers(getComputedStyle(n).color), below);
    const [a, b] = [light(ink), light(below)].sort((x, y) => y - x), ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) found.push([ratio.toFixed(2), n.className, words.slice(0, 30)]);
  }
  return found;
}"""


@pytest.mark.browser
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_looks(see, notebook, dark):
    """Nothing is clipped, invisible or pale, at every width and in both themes."""
    folder, problems = os.environ.get("RLHF_LAB_SCREENSHOTS"), {}
    notebook.theme(dark)
    try:
        for width in (320, 480, 800, 1400):
            notebook.page.set_viewport_size({"width": width, "height": 1000})
            notebook.page.wait_for_timeout(300)
            for name in LOOKED_AT:
                view = see(name)
                if name == "rank" and not view.order():
                    view.root.locator(".rlhf-card").first.focus()
                    view.press("2 1 ?")
                    view.root.locator(".rlhf-chip").first.wait_for()
                for kind, script in (("clipped", CLIPPED), ("pale", PALE)):
                    if found := view.root.evaluate(script):
                        problems[width, name, kind] = found
                assert min(view.root.evaluate(SIZES)) >= 15
                if folder:
                    view.root.screenshot(path=Path(folder) / f"{name}-{width}-{'dark' if dark else 'light'}.png")
    finally:
        notebook.page.set_viewport_size({"width": 1200, "height": 1000})
        notebook.theme(False)
    assert problems == {}


@pytest.mark.browser
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_accessibility(see, notebook, dark):
    """axe-core finds nothing serious."""
    notebook.theme(dark)
    problems = {}
    try:
        for name in LOOKED_AT[:: 3 if dark else 1]:  # the other theme differs in its colours only, see test_looks
            view = see(name)
            view.root.locator(".rlhf-card").first.focus()
            view.press("?")
            if faults := serious_faults(view.root):
                problems[name] = faults
            view.press("?")
    finally:
        notebook.theme(False)
    assert problems == {}


@pytest.mark.browser
def test_hostile_texts_stay_texts(see, notebook):
    view = see("hostile")
    page = notebook.page
    assert view.root.locator("img, iframe, a, b, mjx-container").count() == 0
    assert view.root.locator("script").count() == 0
    shown = view.root.locator(".rlhf-card .rlhf-text").all_inner_texts()
    assert any(HOSTILE[0] in text for text in shown)
    [signs] = [text for text in shown if text.startswith("NUL")]
    assert "[U+202E]turned around" in signs
    assert "[U+001B][31m" in signs
    assert "\ufffd, =1+1, $x^2$" in signs
    assert view.root.locator(".rlhf-markdown code").all_inner_texts() == ["code"]
    # A megabyte is shown in parts.
    [long] = [c for c in view.root.locator(".rlhf-card").all() if "Park Road" in c.inner_text()]
    assert len(long.locator(".rlhf-text").inner_text()) < 10_000
    more = long.get_by_role("button", name="Show more")
    more.focus()
    page.keyboard.press("Enter")
    wait_for(lambda: len(long.locator(".rlhf-text").inner_text()) > 20_000, patience=60)
    assert view.inside()
    size = "root => { const t = performance.now(); root.getBoundingClientRect(); return performance.now() - t }"
    assert view.root.evaluate(size) < 1000
    view.root.locator(".rlhf-card").first.focus()
    view.press("1 2 3 4")
    view.says("Saved in feedback.db")
    page.wait_for_timeout(300)
    assert page.evaluate("window.hacked") is None


@pytest.mark.browser
def test_it_goes_on_by_itself(alone):
    questions = [*(Rank(f"Where is the zoo? {i}", tuple(REPLIES[:2])) for i in range(2)), Rate("When?", REPLIES[3])]
    session = FeedbackSession([*questions, MarkWords("When?", REPLIES[3])], auto_advance=True)
    view = alone(session)
    view.root.locator(".rlhf-card").first.focus()
    clock = view.page.clock
    clock.install()
    clock.pause_at(datetime.now() + timedelta(hours=1))  # a busy machine may need longer than the hurry lasts
    view.press("1 2 Enter")  # Enter, out of habit, does not pass over the next question
    wait_for(lambda: "Question 2" in view.root.inner_text(), patience=60)
    view.press("Enter")
    view.says("It goes on by itself")
    assert "Question 2" in view.root.inner_text()
    assert view.inside()
    clock.run_for(700)  # but after a look at it, it does
    view.press("Enter")
    view.says("Question 3")
    view.root.get_by_role("button", name="Previous").click()
    view.says("Question 2")
    view.press("2 1")
    view.says("Now question 3")
    view.root.get_by_role("radio", name="Score 4 of 5").click()
    view.says("Now question 4")
    assert session.progress.judged == 3
    assert view.root.evaluate("root => document.activeElement === root || root.contains(document.activeElement)")
    view.press("u")  # which reaches into the question before, and so it asks
    assert "question 3" in view.root.get_by_role("group", name="Undo?").inner_text()
    view.press("Escape")
    assert session.progress.judged == 3


@pytest.mark.browser
def test_a_full_disk_is_said_and_nothing_is_lost(alone, tmp_path):
    store = Store(tmp_path / "feedback.db")
    questions = [Rank("Where is the zoo?", tuple(REPLIES[:2])), Rate("When?", REPLIES[3]), Rate("Where?", REPLIES[0])]
    session = FeedbackSession(questions, store, study="full")
    session.rate(2) if session.question.form == "rate" else session.rank([[0], [1]])
    [pages] = store._connection().execute("PRAGMA page_count").fetchone()
    store._connection().execute(f"PRAGMA max_page_count = {pages}")
    view = alone(session, viewport={"width": 360, "height": 900})
    told = view.root.get_by_role("alert")
    for number, score in ((2, 4), (3, 5)):
        view.click("Next")
        view.says(f"Question {number}")
        view.root.get_by_role("radio", name=f"Score {score} of 5").click()
        for _ in range(200):  # until the file is full: a change of mind is an event too
            if told.count():
                break
            view.root.get_by_role("radio", name="Score 3 of 5").click()
            view.root.get_by_role("radio", name=f"Score {score} of 5").click()
        told.wait_for()
    text = told.inner_text()
    assert f"{store.path} cannot be written (database or disk is full)" in text
    assert "Free some space, or name a file in a folder you may write to: set RLHF_LAB_STORE" in text
    assert view.root.evaluate(CLIPPED) == []
    assert "NOT saved in feedback.db" in view.root.locator(".rlhf-line").inner_text()
    stored = [event.record.score for event in store.standing("full") if hasattr(event.record, "score")]
    assert 5 not in stored
    view.click("Try to save again")
    store._connection().execute("PRAGMA max_page_count = 100000")
    view.click("Try to save again")
    told.wait_for(state="detached")
    assert view.inside()
    view.says("Saved in feedback.db")
    assert [event.record.score for event in store.standing("full")[1:]] == [4, 5]
    assert session.progress.unsaved == 0
    store.close()


def touch(view, *points):
    """Put a finger down, move it over the points, and lift it."""
    finger = view.page.context.new_cdp_session(view.page)
    for kind, at in [("touchStart", points[0]), *(("touchMove", point) for point in points[1:]), ("touchEnd", None)]:
        finger.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": at[0], "y": at[1]}] if at else []})


@pytest.mark.browser
def test_touch(alone):
    session = FeedbackSession([Rank("Where is the zoo?", tuple(REPLIES)), Rate("When?", REPLIES[3])])
    view = alone(session, viewport={"width": 420, "height": 1300}, has_touch=True)

    def tap(name):
        view.root.get_by_role("button", name=name, exact=True).tap()

    def middle(node):
        box = node.bounding_box()
        return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    def drag(grip, place):
        (x, y), (a, b) = middle(grip), place
        touch(view, (x, y), *((x + (a - x) * part / 6, y + (b - y) * part / 6) for part in range(1, 7)))

    tap("Reply C, give rank 1")
    view.becomes("C")
    tap("Reply A, also rank 1")
    view.becomes("AC")
    assert view.root.locator(".rlhf-tier").get_by_text("tie", exact=True).count() == 1
    tap("Reply B, give rank 2")
    tap("Up: reply B, rank 2")
    view.becomes("B", "AC")
    box = view.root.locator(".rlhf-tier").first.bounding_box()
    drag(view.root.locator(".rlhf-card .rlhf-edge").nth(3), (box["x"] + 100, box["y"] + 2))
    view.becomes("D", "B", "AC")
    assert session.status == "done"
    drag(view.root.locator(".rlhf-chip .rlhf-grip").first, middle(view.root.locator(".rlhf-tier").nth(1)))
    view.becomes("BD", "AC")
    tap("Undo")
    view.becomes("D", "B", "AC")
    tap("Remove reply D, rank 1")
    view.becomes("B", "AC")
    # A finger on the text of a card scrolls the page.
    view.page.set_viewport_size({"width": 420, "height": 400})
    x, y = middle(view.root.locator(".rlhf-card .rlhf-text").first)
    touch(view, *((x, min(y, 350) - 25 * step) for step in range(10)))
    wait_for(lambda: view.page.evaluate("scrollY") > 50)
    assert view.order() == ["B", "AC"]
    tap("Skip")
    tap("Next")
    view.says("Question 2")
    view.root.get_by_role("radio", name="Score 2 of 5").tap()
    view.says("Score 2")


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_forced_colours_hide_no_state(alone, scheme):
    """Tints and shadows are not drawn: whatever they say looks different by other means too."""

    def looks(node):
        box = node.bounding_box()
        clip = {"x": box["x"] - 5, "y": box["y"] - 5, "width": box["width"] + 10, "height": box["height"] + 10}
        return view.page.screenshot(clip=clip, animations="disabled", caret="hide")

    def changes(node, step, *says):
        before = looks(node)
        step()
        for text in says:
            view.says(text)
        return looks(node) != before

    questions = [Rank("Where is the zoo?", tuple(REPLIES)), Compare("When?", REPLIES[0], REPLIES[2], "sft", "base")]
    session = FeedbackSession(questions)
    view = alone(session, forced_colors="active", color_scheme=scheme)
    cards = view.root.locator(".rlhf-card")
    card, other, track, tag = (*cards.all()[:2], *map(view.root.locator, (".rlhf-track", ".rlhf-line")))
    cards.nth(2).focus()
    view.press("Shift+Tab Tab")
    assert changes(cards.nth(2), lambda: view.press("Shift+Tab"))  # the focus ring
    edge = card.locator(".rlhf-edge")
    assert changes(card, lambda: view.press("1"), "Reply A, rank 1")
    assert looks(edge) == looks(edge)  # the same looks the same, so what differs above is the state
    view.press("=")
    view.says("Tie: the next reply")
    view.press("2")
    view.becomes("AB")
    assert view.root.locator(".rlhf-badge").count() == 1
    ink = "n => ['borderTopColor', 'backgroundColor', 'borderTopWidth'].map((name) => getComputedStyle(n)[name])"
    line, ground, width = view.root.locator(".rlhf-badge").evaluate(ink)
    assert line != ground
    assert float(width.removesuffix("px")) >= 2
    assert changes(track, lambda: view.press("3 4"), "Judged")
    for key, word in (("b", "All bad"), ("s", "Skipped")):
        assert changes(tag, lambda key=key: view.press(key), word)
        assert changes(other, lambda: view.press("u"), "Took back")
    view.click("Next")
    view.says("Question 2")
    cards.first.focus()
    assert changes(cards.nth(1), lambda: view.press("2"), "Right is better")


@pytest.mark.browser
def test_the_plain_view_of_the_same_session(notebook, judged):
    """Where custom widgets do not load: standard buttons, by mouse and by keys, and texts stay texts."""
    root = notebook.view(1 + len(CELLS), ".rlhf-plain")
    shown = [area.input_value() for area in root.locator("textarea:visible").all()]
    assert HOSTILE[0] in shown
    for name in ("Rank 1", "Rank 2"):
        root.get_by_role("button", name=name, exact=True).first.click()
    wait_for(lambda: len(judged("plain")) == 1)
    root.get_by_role("button", name="Next", exact=True).focus()
    notebook.page.keyboard.press("Enter")
    root.get_by_role("button", name="4", exact=True).click()
    wait_for(lambda: len(judged("plain")) == 2)
    ranking, rating = judged("plain")
    assert (sorted(ranking.replies), rating.score) == (sorted(HOSTILE[:2]), 4)
    assert notebook.page.evaluate("window.hacked") is None
    assert root.locator("img, script, iframe").count() == 0
    if folder := os.environ.get("RLHF_LAB_SCREENSHOTS"):
        root.screenshot(path=Path(folder) / "plain.png")


@pytest.mark.browser
def test_kernel_killed(see, notebook, folder, judged):
    """It dies in the middle of a ranking: the reader is told, and goes on where he was when the cell is run again."""
    text = see("text").root.get_by_role("textbox")
    text.fill("Kept by the kernel.")
    view = see("kill")
    view.root.locator(".rlhf-card").first.focus()
    view.press("2 1 4 3 Enter 3 1")  # as fast as it goes: the last two are for the second question
    view.becomes("C", "A")
    before = judged("kill")
    assert len(before) == 1
    os.kill(int((folder / "kernel.pid").read_text()), signal.SIGKILL)
    view.press("4")
    told = view.root.get_by_role("alert")
    told.wait_for()
    wait_for(lambda: "run this cell again; 1 judgement is in" in told.inner_text(), patience=60)
    assert str(folder / "feedback.db") in told.inner_text()
    assert "Your last step is not saved" in told.inner_text()
    assert view.order() == ["C", "A"]
    text.fill("Kept by the page.")
    dialog = notebook.page.locator(".jp-Dialog button.jp-mod-accept")
    wait_for(lambda: dialog.count() and (dialog.first.click() or True), patience=30)
    notebook.wait_until_idle()
    notebook.run_all()
    view = see("kill")
    view.becomes("C", "A", "D")  # and the step without an answer was asked for again
    assert "Question 2" in view.root.inner_text()
    assert view.root.get_by_role("alert").count() == 0
    assert judged("kill") == before
    view.root.locator(".rlhf-card").first.focus()
    view.press("2")
    view.says("Judged")
    assert len(judged("kill")) == 2
    assert judged("kill")[0] == before[0]
    view = see("text")
    assert view.root.get_by_role("textbox").input_value() == "Kept by the page."
    assert judged("text") == []
    view.click("Save")
    view.says("Saved in feedback.db")
    assert [record.edited for record in judged("text")] == ["Kept by the page."]
