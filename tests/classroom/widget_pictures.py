"""Draws the pictures that stored notebooks show in place of the widget: `python tests/classroom/widget_pictures.py`.

The widget runs in a page of its own, without JupyterLab: what it sends goes to a real session, and the answers
come back. Run it after each change of how the widget looks, and look at the pictures.
"""

import io
import json
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from lab_pages import browser_page
from PIL import Image

from rlhf_lab.classroom.widgets.session import FeedbackSession
from rlhf_lab.classroom.widgets.view import PICTURES, FeedbackView
from rlhf_lab.feedback import questions as q
from rlhf_lab.records import Segment

WIDTH, COLOURS = 780, 96
PAGE = "<!doctype html><html lang=en><head><title>widget</title></head><body data-jp-theme-light=true><main id=here>"
MODEL = """
window.mount = async ([source, state, content]) => {
  const module = await import(URL.createObjectURL(new Blob([source], { type: "text/javascript" })));
  const data = { state, content }, on = {};
  const model = {
    get: (name) => data[name],
    on: (name, call) => (on[name] ||= []).push(call),
    off() {},
    async send(message) {
      const answer = JSON.parse(await window.toPython(JSON.stringify(message)));
      if (JSON.stringify(answer.content) !== JSON.stringify(data.content)) data.content = answer.content;
      data.state = answer.state;
      for (const call of on["change:state"] || []) call();
    },
  };
  module.default.render({ model, el: document.getElementById("here") });
};
"""
ZOO = "Where is the zoo?"
REPLIES = (
    "The zoo is in Mill Street.",
    "I think that it is near the old bridge. You can walk there from the station in ten minutes, or take the bus.",
    "Go away. I do not care about your question.",
    "You will find the zoo in Mill Street, next to the river; it opens at ten.",
)


def swing(sign):
    """A pole that falls to one side."""
    states = tuple((0.02 * t * sign, 0.0, 0.008 * t * sign, 0.0) for t in range(21))
    return Segment("CartPole-v1", states, ((1,),) * 20)


def examples():
    """{form: (question, what is done before the picture is taken)}."""
    return {
        "rank": (
            q.Rank(ZOO, REPLIES),
            lambda s: (s.place(s.replies.index(REPLIES[3])), s.place(s.replies.index(REPLIES[0]))),
        ),
        "rate": (q.Rate(ZOO, REPLIES[1]), lambda s: s.rate(4)),
        "edit": (
            q.EditReply(ZOO, REPLIES[2]),
            lambda s: s.draft("I am sorry, I do not know. The town hall can tell you."),
        ),
        "mark": (q.MarkWords(ZOO, REPLIES[1]), lambda s: s.draft([(27, 39), (76, 87)])),
        "comment": (q.CommentOn(ZOO, REPLIES[2]), lambda s: s.draft("Not polite, and no answer.")),
        "compare": (
            q.Compare(ZOO, REPLIES[1], REPLIES[2]),
            lambda s: s.compare(1 if s.replies[0] == REPLIES[1] else -1),
        ),
        "segments": (q.CompareSegments("Which one balances?", swing(1), swing(-0.2)), lambda s: None),
    }


def open_widget(page, view):
    """Show a view on an empty page."""
    page.expose_function("toPython", lambda text: answer(view, text))
    page.set_content(PAGE)
    page.add_style_tag(content=FeedbackView._css)
    page.add_script_tag(content=MODEL)
    page.evaluate("all => window.mount(all)", [FeedbackView._esm, view.state, view.content])
    return page.locator(".rlhf-widget")


def answer(view, text):
    view.receive(json.loads(text))
    return json.dumps({"state": view.state, "content": view.content})


def draw(form, folder):
    """The picture of one form."""
    question, judge = examples()[form]
    session = FeedbackSession([question, *(q.Rate(f"{ZOO} {i}", REPLIES[1]) for i in range(3))], study="pictures")
    session.go(session.questions.index(question))
    judge(session)
    options = {"viewport": {"width": WIDTH, "height": 900}, "reduced_motion": "reduce"}
    with browser_page(shutil.which("chromium"), **options) as page:
        root = open_widget(page, FeedbackView(session))
        page.wait_for_timeout(300)
        if form == "segments":
            page.locator("input[type=range]").fill("12")
        png = root.screenshot()
    small = Image.open(io.BytesIO(png)).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    small.save(folder / f"{form}.png", optimize=True)


if __name__ == "__main__":
    PICTURES.mkdir(exist_ok=True)
    for name in examples():
        draw(name, PICTURES)
        print(name, (PICTURES / f"{name}.png").stat().st_size, "bytes")
