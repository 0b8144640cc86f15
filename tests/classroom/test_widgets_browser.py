"""The plain view in JupyterLab, in a real browser: what is clicked arrives in the log, texts stay texts."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from rlhf_lab.feedback.events import read_events

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
REPLIES = [
    "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'> $x^2$",
    "The zoo is in Mill Street. 🐘 \u202eright to left\u202c مرحبا بالعالم",
    "Go on, then. " * 150,
    "You will find it next to the river; it opens at ten.",
]
LOG = "$x^2$ log.jsonl"
CODE = f"""
from rlhf_lab.classroom.widgets.plain import RankingView
from rlhf_lab.classroom.widgets.session import RankingSession
items = [("Where is the <b>zoo</b>?", {REPLIES!r}), ("When?", ["At ten.", "No."])]
RankingView(RankingSession(items, {LOG!r}))
"""
PATIENCE = 90  # seconds; a busy machine may need most of a minute to start everything


def wait_for(condition):
    """Poll until `condition()` holds, and return it."""
    end = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)
    return found


@pytest.fixture
def lab(tmp_path):
    """The address of a JupyterLab with one notebook, in a folder of its own."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CODE)])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, tmp_path / "ranking.ipynb")
    environment = os.environ | {f"JUPYTER_{n}_DIR": str(tmp_path / n) for n in ("CONFIG", "DATA", "RUNTIME")}
    environment |= {"PYTHONPATH": str(ROOT), "IPYTHONDIR": str(tmp_path / "ipython")}
    options = ["--no-browser", "--allow-root", "--port=0", "--ip=127.0.0.1"]
    command = [sys.executable, "-m", "jupyterlab", *options, "--IdentityProvider.token=test"]
    with open(tmp_path / "lab.log", "w") as log:
        server = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log)
        try:
            info = wait_for(lambda: list((tmp_path / "RUNTIME").glob("jpserver-*.json")))[0]
            url = wait_for(lambda: info.read_text() and json.loads(info.read_text())["url"])
            yield f"{url}lab/tree/ranking.ipynb?token=test"
        finally:
            server.terminate()
            server.wait(PATIENCE)


@pytest.fixture
def page(chromium):
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_FLAGS)
        page = browser.new_page(viewport={"width": 1200, "height": 1100})
        page.set_default_timeout(PATIENCE * 1000)
        yield page
        browser.close()


def run_all(page, url):
    """Open the notebook and run its cell."""
    page.goto(url)
    cell = page.locator(".jp-Notebook .jp-CodeCell").first
    cell.wait_for()
    page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]").first.wait_for()
    page.wait_for_timeout(1500)  # idle comes before the kernel takes messages for widgets
    if (select := page.locator(".jp-Dialog button.jp-mod-accept")).count():
        select.first.click()

    def runs():  # a busy machine connects to the kernel late, and what was asked before is dropped
        cell.locator(".cm-content").first.click()
        page.keyboard.press("Shift+Enter")
        page.wait_for_timeout(3000)
        return re.search(r"[*\d]", cell.locator(".jp-InputPrompt").inner_text())

    wait_for(runs)
    page.locator(".rlhf-ranking").wait_for()


@pytest.mark.browser
def test_ranking_in_jupyterlab(page, lab, tmp_path):
    run_all(page, lab)
    view = page.locator(".rlhf-ranking")

    def status(text):
        view.get_by_text(text, exact=True).wait_for()

    status("Not judged")
    shown = [area.input_value() for area in view.locator("textarea").all()]
    assert shown[0] == "Where is the <b>zoo</b>?"
    assert sorted(shown[1:]) == sorted(REPLIES)
    assert page.evaluate("window.hacked") is None
    assert view.locator("img, script, b, mjx-container").count() == 0

    def rank(text, button):
        row = view.locator(".widget-hbox", has=page.locator("textarea")).nth(shown[1:].index(text))
        row.get_by_role("button", name=button, exact=True).click()

    rank(REPLIES[3], "Rank 1")
    rank(REPLIES[1], "Also rank 1")
    status("2 of 4 replies ranked; saved when all are")
    if folder := os.environ.get("RLHF_LAB_SCREENSHOTS"):
        view.screenshot(path=Path(folder) / "ranking.png")
    rank(REPLIES[2], "Rank 2")
    rank(REPLIES[0], "Rank 3")
    status("Saved: ranked")
    [ranking] = read_events(tmp_path / LOG)
    assert (ranking.replies, ranking.tiers) == (tuple(REPLIES), ((1, 3), (2,), (0,)))
    assert [ranking.replies[i] for i in ranking.shown] == shown[1:]

    # The rest by keys alone: Tab goes to each button, and the notebook does not take the keys for its own.
    view.get_by_role("button", name="Undo", exact=True).focus()
    page.keyboard.press("Enter")
    status("3 of 4 replies ranked; saved when all are")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip"
    page.keyboard.press("Space")
    status("Saved: skipped")
    assert page.evaluate("document.activeElement.textContent") == "Skip"  # the focus stays
    for _ in range(2):
        page.keyboard.press("Tab")  # All bad; Previous is disabled
    page.keyboard.press("Enter")
    status("2 of 2   ·   1 judged")
    assert [r.status for r in read_events(tmp_path / LOG)] == ["skipped"]

    # What scrolls can be reached with Tab, and typing does not change it.
    view.get_by_role("button", name="Previous", exact=True).click()
    long = view.locator("textarea:not([disabled])")
    long.press("x")
    wait_for(lambda: long.input_value() == REPLIES[2])

    # What cannot be saved is said as text, with a name that would be a formula.
    with open(tmp_path / LOG, "ab") as log:
        log.write(b"\n")
    view.get_by_role("button", name="All bad", exact=True).click()
    view.get_by_text(f"NOT SAVED, kept in memory: {LOG} was changed by another session").wait_for()
    assert view.locator("mjx-container").count() == 0
