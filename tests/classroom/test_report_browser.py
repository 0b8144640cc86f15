"""report.html in a real browser: accessible in three widths and two themes, filtered by hand, and on paper.

One page for all. The screenshots are written where RLHF_LAB_SCREENSHOTS names a folder.
"""

import os
from dataclasses import replace
from pathlib import Path

import pytest
from lab_pages import browser_page, serious_faults
from report_parts import HTML, summary_of

from rlhf_lab.classroom.report import write_report
from rlhf_lab.worlds import town

pytestmark = pytest.mark.browser
WIDTHS = (320, 390, 1400)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The summary, with hostile texts among the replies, and the folder of its report."""
    folder = tmp_path_factory.mktemp("report")
    summary = summary_of([prompt.conversation for prompt in town.prompts("held_out", 12, seed=0)])
    texts = {name: [HTML, *texts[1:]] for name, texts in summary.evidence.replies.items()}
    summary = replace(summary, evidence=replace(summary.evidence, replies=texts), opening="Warning: " + "long " * 30)
    (folder / "metrics.json").write_text("{}")
    write_report(folder / "report.html", summary)
    return summary, folder


@pytest.fixture(scope="module")
def page(chromium, written):
    with browser_page(chromium) as page:
        page.asked = []
        page.on("request", lambda request: page.asked.append(request.url))
        page.goto((written[1] / "report.html").as_uri())
        yield page


@pytest.fixture
def fresh(page):
    """The page as it is opened: details closed, first choices taken, wide and light."""
    page.set_viewport_size({"width": 1200, "height": 1000})
    page.emulate_media(media="screen", color_scheme="light")
    page.evaluate(
        "() => { document.querySelectorAll('details').forEach((d) => (d.open = false));"
        "document.querySelectorAll('fieldset').forEach((f) => (f.querySelector('input').checked = true)); }"
    )
    return page


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_nothing_serious_in_any_width(fresh, theme):
    """With every section open and all replies shown, so that all of the page is looked at."""
    fresh.emulate_media(color_scheme=theme)
    fresh.evaluate("document.querySelectorAll('details').forEach((d) => (d.open = true))")
    fresh.locator("#show-1").check()
    for width in WIDTHS:
        fresh.set_viewport_size({"width": width, "height": 900})
        assert serious_faults(fresh.locator("html")) == [], width
        assert fresh.evaluate("document.documentElement.scrollWidth") <= width
        if folder := os.environ.get("RLHF_LAB_SCREENSHOTS"):
            fresh.screenshot(path=Path(folder) / f"report_{width}_{theme}.png", full_page=True)


def test_nothing_is_asked_for_and_nothing_runs(fresh):
    assert fresh.asked == [fresh.url]
    assert fresh.strangers == []
    assert fresh.locator("script, img, iframe").count() == 0
    assert "<script>alert(1)</script>" in fresh.locator(".row").first.inner_text()


def test_choices_filter_and_the_keys_move_them(fresh):
    rows = lambda: sum(row.is_visible() for row in fresh.locator(".row").all())  # noqa: E731
    assert rows() == 8
    for label in fresh.locator("fieldset:first-of-type label").all():
        label.locator("input").check()
        assert rows() == int(label.locator(".soft").inner_text())
    fresh.locator("#show-1").check()
    fresh.keyboard.press("ArrowLeft")
    assert fresh.locator("#show-0").is_checked()
    fresh.locator("#skill-1").check()
    assert rows() < 8
    count = fresh.evaluate("getComputedStyle(document.querySelector('.rows'), '::after').content")
    assert "shown" in count


def test_marks_have_a_title_under_the_mouse_and_colours_follow_the_theme(fresh):
    strip = fresh.locator("#training .strip").nth(1)
    strip.scroll_into_view_if_needed()
    box = strip.bounding_box()
    under = "([x, y]) => document.elementFromPoint(x, y).querySelector('title').textContent"
    assert "iteration 2" in fresh.evaluate(under, [box["x"] + box["width"] / 2, box["y"] + box["height"] / 2])
    colour = "getComputedStyle(document.querySelector('.line.reward')).stroke"
    light = fresh.evaluate(colour)
    fresh.emulate_media(color_scheme="dark")
    assert fresh.evaluate(colour) != light


def test_links_lead_to_sections_and_files(fresh, written):
    for link in fresh.locator("nav a").all():
        assert fresh.locator(link.get_attribute("href")).count() == 1
    (file,) = fresh.locator("#run a").all()
    assert Path(file.evaluate("a => a.href").removeprefix("file://")) == written[1] / "metrics.json"


def test_on_paper(fresh):
    """No choices, dark on white also from a dark theme, nothing wider than the paper, and a PDF comes out."""
    fresh.emulate_media(media="print", color_scheme="dark")
    fresh.set_viewport_size({"width": 680, "height": 960})  # A4 without margins
    assert not fresh.locator("nav").is_visible()
    assert not fresh.locator(".choices").is_visible()
    assert sum(row.is_visible() for row in fresh.locator(".row").all()) == 8
    assert fresh.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert fresh.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    assert fresh.evaluate("document.documentElement.scrollWidth") <= 680
    assert fresh.pdf(format="A4").startswith(b"%PDF")
