"""Draws the pictures that stored notebooks show in place of a widget: `python tests/classroom/widget_pictures.py`.

A widget runs in a page of its own, without JupyterLab: what it sends goes to a real session, and the answers come back.
Run it after each change of what is shown, which test_view.py notices, and look at the pictures.
"""

import hashlib
import io
import json
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from lab_pages import launched, new_page, open_widget
from PIL import Image

from rlhf_lab.classroom.widgets import dialogue
from rlhf_lab.classroom.widgets.bridge import PICTURES
from rlhf_lab.classroom.widgets.chat import Chat
from rlhf_lab.classroom.widgets.session import FeedbackSession
from rlhf_lab.classroom.widgets.view import FeedbackView
from rlhf_lab.classroom.widgets.writing import Reply
from rlhf_lab.feedback import questions as q
from rlhf_lab.models.language_model import load_language_model
from rlhf_lab.models.tokens import make_batch
from rlhf_lab.records import Segment

COMMAND = "python tests/classroom/widget_pictures.py"
SOURCES = PICTURES / "sources.json"  # {name of a picture: digest of what it shows}
WIDTH, COLOURS = 780, 96
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


def session_view(form):
    """A view of a session with a question of this form in front."""
    question, judge = examples()[form]
    session = FeedbackSession([question, *(q.Rate(f"{ZOO} {i}", REPLIES[1]) for i in range(3))], study="pictures")
    session.go(session.questions.index(question))
    judge(session)
    return FeedbackView(session)


def chat():
    """A chat of one turn with two models; what they reply is written down here, so that it is the same everywhere."""
    lm = load_language_model("tiny")
    replies = iter(REPLIES[2:])

    def write(*_, **__):
        text = next(replies)
        return Reply(text, (text,), (text,), (-1.0,), True, make_batch([[5]], [[8]], lm.pad_id))

    sampled, dialogue.write_reply = dialogue.write_reply, write
    try:
        made = Chat({"base": lm, "SFT": lm})
        made.dialogue.say(ZOO)
    finally:
        dialogue.write_reply = sampled
    made.dialogue.rate(0, 1, 0, 4)
    made.dialogue.compare(0, (0, 0), (1, 0), -1)
    made.dialogue.go_on(1)
    made.refresh()
    return made


def views():
    """{name of a picture: function that makes the widget in it}."""
    return {form: lambda form=form: session_view(form) for form in examples()} | {"chat": chat}


def digest(view):
    """Of what a picture shows: scripts, styles and what they are given; not of the frames of an animation."""
    content = json.dumps([view.state, view.content], sort_keys=True, default=str)
    for segment in view.content.get("segments") or ():
        for frame in segment["frames"]:
            content = content.replace(frame, "")
    return hashlib.sha256("\0".join([view._esm, view._css, content]).encode()).hexdigest()[:16]


def draw(browser, name, view, folder):
    """Make one picture."""
    page = new_page(browser, viewport={"width": WIDTH, "height": 900}, reduced_motion="reduce")
    root = open_widget(page, view)
    page.wait_for_timeout(300)
    if name == "segments":
        page.locator("input[type=range]").fill("12")
        page.locator("input[type=range]").blur()
    png = root.screenshot()
    page.close()
    small = Image.open(io.BytesIO(png)).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    small.save(folder / f"{name}.png", optimize=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    PICTURES.mkdir(exist_ok=True)
    with launched(shutil.which("chromium")) as browser:
        found = {}
        for name, make in views().items():
            found[name] = digest(make())
            draw(browser, name, make(), PICTURES)
            print(name, (PICTURES / f"{name}.png").stat().st_size, "bytes")
    SOURCES.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
