"""Explorables in JupyterLab, in a real browser: dragged with the mouse and moved with the keys.

One notebook and one JupyterLab for all of them, since starting it takes most of the time. What stands on the page is
compared with what Python says for the same setting. With `pytest -s` the time from each drag to its picture is printed.
"""

import os
import re
from pathlib import Path

import pytest
from explorable_names import NAMES
from lab_pages import PATIENCE, Notebook, browser_page, jupyterlab, wait_for, write_notebook

from rlhf_lab.classroom import explore

HOSTILE = """
from rlhf_lab.classroom.explorables.draggable import Axis, Dial, Explorable, Panel, Plan, Scene, Text
bad = "<img src='nowhere' onerror='window.hacked = 1'><em>loud</em> $x^2$"
axis = Axis(bad, 0, 1, [0], [bad])
dial = Dial("x", bad, [0, 1], 0, "d")
Explorable(Plan(bad, bad + "{x}", [dial], lambda x: Scene([Panel(bad, axis, axis, [Text(0, x, bad, bad)])], bad)))
"""

# Notes for each explorable when it was redrawn, and how long after the last move of the mouse.
WATCH = """() => document.querySelectorAll(".rlhf-explore").forEach((root) => {
  let moved = null;
  Object.assign(root, { redrawn: 0, delays: [] });
  root.addEventListener("pointermove", () => (moved = performance.now()), true);
  new MutationObserver(() => {
    root.redrawn += 1;
    if (moved !== null) root.delays.push(performance.now() - moved);
    moved = null;
  }).observe(root.querySelector("svg"), { attributes: true, attributeFilter: ["aria-label"] });
})"""

HASTY = "(node, xs) => xs.forEach((x) => node.dispatchEvent(new PointerEvent('pointermove', { clientX: x })))"


@pytest.fixture(scope="module")
def page(chromium, tmp_path_factory):
    """A notebook with a cell for each explorable, all of them run."""
    folder = tmp_path_factory.mktemp("lab")
    sources = ["from rlhf_lab import explore", *(f"explore.{name}()" for name in NAMES), HOSTILE]
    write_notebook(folder / "explore.ipynb", sources)
    with jupyterlab(folder) as url, browser_page(chromium) as page:
        Notebook(page, url.format("explore.ipynb"))
        page.set_default_timeout(PATIENCE * 1000)
        wait_for(lambda: page.locator(".rlhf-explore").count() == len(NAMES) + 1)
        page.evaluate(WATCH)
        yield page


class Figure:
    """An explorable on the page, and the plan that it should follow."""

    def __init__(self, page, name):
        self.page, self.plan = page, getattr(explore, name)().plan
        self.root = page.locator(".rlhf-explore").nth(NAMES.index(name))
        self.root.locator("svg").scroll_into_view_if_needed()
        self.reset()

    def slider(self, dial):
        return self.root.get_by_role("slider", name=dial.label, exact=True)

    def setting(self):
        """What the numbers in the sentence say."""
        found = {}
        for dial in self.plan.dials:
            value = float(self.slider(dial).get_attribute("aria-valuenow"))
            assert self.slider(dial).inner_text() == dial.text(dial.values[list(map(float, dial.values)).index(value)])
            found[dial.name] = min(dial.values, key=lambda known, value=value: abs(known - value))
        return found

    def follows(self):
        """Whether numbers and marks on the page are those of Python for the setting on the page."""
        scene = self.plan.scene(**self.setting())
        says = self.root.locator(".rlhf-says").inner_text() == scene.says
        texts = [mark.text for panel in scene.panels for mark in panel.marks if mark.kind == "text"]
        drawn = self.root.locator("svg text").all_text_contents()
        count = sum(len(m.x) for panel in scene.panels for m in panel.marks if m.kind == "points")
        return says and set(texts) <= set(drawn) and self.root.locator("svg circle").count() == count

    def reset(self):
        """Every dial to its first value, by a key."""
        for dial in self.plan.dials:
            self.slider(dial).press("Home")
        wait_for(self.follows)

    def redrawn(self):
        """How often so far."""
        return self.root.evaluate("root => root.redrawn")

    def picture(self):
        return self.root.locator("svg").inner_html()


def geometry(picture):
    """The picture without the names of its clip paths, which are new every time."""
    return re.sub(r"rlhf-clip-\w+", "", picture)


@pytest.fixture(params=NAMES)
def figure(request, page):
    yield Figure(page, request.param)
    page.mouse.up()  # a test that failed while it held a number does not hold it in the next one


@pytest.mark.browser
def test_drag(figure, request):
    page = figure.page
    for dial in figure.plan.dials:
        figure.reset()
        before, box = geometry(figure.picture()), figure.slider(dial).bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        page.mouse.move(x, y)
        page.mouse.down()
        page.mouse.move(x + 60, y)
        wait_for(figure.follows)
        setting = figure.setting()
        assert setting[dial.name] > dial.values[0]
        assert {**setting, dial.name: 0} == {d.name: d.values[0] for d in figure.plan.dials} | {dial.name: 0}
        assert geometry(figure.picture()) != before
        # A hasty hand, all in one moment: the first place is asked for at once, the last one after the answer.
        redrawn, places = figure.redrawn(), [x + 10 * k for k in range(30, 1, -1)]
        figure.slider(dial).evaluate(HASTY, places)
        wait_for(lambda redrawn=redrawn: figure.redrawn() - redrawn >= 2)  # it follows after the first one as well
        wait_for(figure.follows)
        assert figure.redrawn() - redrawn == 2
        assert dial.values[0] < figure.setting()[dial.name] < setting[dial.name]
        page.mouse.up()
        end = figure.setting()
        page.mouse.move(x + 200, y)  # not held any more
        page.wait_for_timeout(300)
        assert figure.setting() == end
        assert figure.slider(dial).evaluate("node => node === document.activeElement")
    print(f"\n{request.node.callspec.id}: {drag_times(figure)}")


def drag_times(figure):
    """Milliseconds from single moves of the first dial to their pictures."""
    page, dial = figure.page, figure.plan.dials[0]
    figure.reset()
    box = figure.slider(dial).bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    figure.root.evaluate("root => { root.delays = []; }")
    for step in range(1, 13):
        page.mouse.move(x + 25 * step, y)
        wait_for(figure.follows)
    page.mouse.up()
    delays = sorted(figure.root.evaluate("root => root.delays"))
    return f"median {delays[len(delays) // 2]:.0f} ms, most {delays[-1]:.0f} ms of {len(delays)} moves"


@pytest.mark.browser
def test_keys(figure):
    page, dials = figure.page, figure.plan.dials
    cells = page.locator(".jp-Notebook .jp-Cell")
    count, active = cells.count(), page.locator(".jp-Notebook .jp-mod-active").count()
    sources = [cell.inner_text() for cell in page.locator(".jp-Notebook .jp-CodeCell .cm-content").all()]
    figure.slider(dials[0]).focus()
    for dial in dials:
        slider = figure.slider(dial)
        if dial is not dials[0]:
            page.keyboard.press("Tab")  # from one number to the next
        assert slider.evaluate("node => node === document.activeElement")
        at, last = 0, len(dial.values) - 1
        page_step = max(2, round(last / 10))
        presses = [("ArrowRight", 1), ("ArrowUp", 1), ("ArrowLeft", -1), ("PageUp", page_step), ("ArrowDown", -1)]
        for key, step in presses:
            page.keyboard.press(key)
            at = min(max(at + step, 0), last)
            assert figure.setting()[dial.name] == dial.values[at], key
        for key, at in (("End", last), ("ArrowRight", last), ("Home", 0), ("PageDown", 0)):
            page.keyboard.press(key)
            assert figure.setting()[dial.name] == dial.values[at], key
        wait_for(figure.follows)
    live = figure.root.locator("[aria-live=polite]")
    page.keyboard.press("ArrowRight")
    wait_for(lambda: figure.follows() and live.text_content() == figure.root.locator(".rlhf-says").inner_text())
    # To JupyterLab these mean: insert cells, delete them, next cell, a command palette, run.
    for key in ["a", "b", "x", "d", "d", "j", "k", "m", "Enter", "Shift+Enter"]:
        page.keyboard.press(key)
    page.wait_for_timeout(300)
    assert (cells.count(), page.locator(".jp-Notebook .jp-mod-active").count()) == (count, active)
    assert [cell.inner_text() for cell in page.locator(".jp-Notebook .jp-CodeCell .cm-content").all()] == sources
    assert figure.slider(dials[-1]).evaluate("node => node === document.activeElement")


@pytest.mark.browser
def test_words_stay_words(page):
    hostile = page.locator(".rlhf-explore").nth(len(NAMES))
    hostile.get_by_role("slider").press("End")
    wait_for(lambda: hostile.get_by_role("slider").inner_text() == "1")
    page.wait_for_timeout(500)
    assert page.evaluate("window.hacked") is None
    assert hostile.locator("img, em, script, mjx-container").count() == 0
    assert "<em>loud</em> $x^2$" in hostile.locator(".rlhf-sentence").inner_text()


@pytest.mark.browser
def test_screenshots(page):
    if not (folder := os.environ.get("RLHF_LAB_SCREENSHOTS")):
        pytest.skip("set RLHF_LAB_SCREENSHOTS to a folder to get them")
    for name in NAMES:
        Figure(page, name).root.screenshot(path=Path(folder) / f"{name}.png")
