"""The view of a session of feedback made of standard widgets, for wherever ipywidgets are shown.

Every form of question can be answered here, with the Tab key and Enter alone. What people and models wrote is shown in
text fields and labels only. Chapters 00 and 08.
"""

from typing import Any

import ipywidgets as widgets

from rlhf_lab.classroom.widgets.plain_forms import PANELS, Panel, TextView, button, plain_label, row, shown_if
from rlhf_lab.classroom.widgets.session import FeedbackSession
from rlhf_lab.classroom.widgets.state import view_state
from rlhf_lab.feedback.store import NotSaved

WIDGET = "plain 2"  # the name and version that events carry
# The only HTML in this view, and constant. Without it all is still there, only paler.
STYLE = """<style>
.rlhf-plain { max-width: 880px; }
.rlhf-plain .rlhf-title { font-weight: 600; }
.rlhf-plain .rlhf-quiet { color: var(--jp-ui-font-color2, #555); }
.rlhf-plain .widget-label { white-space: normal; overflow-wrap: anywhere; height: auto; line-height: 1.45; }
.rlhf-plain textarea { opacity: 1 !important; color: inherit; -webkit-text-fill-color: currentColor;
  field-sizing: content; min-height: 2.3em; max-height: 20em; unicode-bidi: plaintext;
  line-height: 1.45; padding: 6px 10px; border-radius: 6px; font-family: var(--jp-ui-font-family, sans-serif); }
.rlhf-plain .rlhf-row { margin: 4px 0; gap: 8px; }
.rlhf-plain .rlhf-last .widget-label { font-weight: 600; }
</style>"""
STATUS = {"done": "answered", "skipped": "skipped", "all_bad": "all bad"}
MOST_SENTENCES = 8  # of what is told afterwards


class PlainView(widgets.VBox):
    """Answer the questions of a session by clicking and typing.

    Example:
        >>> view = PlainView(FeedbackSession([("Where is the zoo?", ["In Mill Street.", "Go away."])]))
        >>> view.panel.place[1].click()
        >>> [made.description for made in view.panel.place], view
        (['Rank 2', '✓ Rank 1'], PlainView(1 question))

    Chapter 08.
    """

    def __init__(self, session: FeedbackSession) -> None:
        most = max((len(question.replies) for question in session.questions), default=0)
        session.widget = WIDGET
        self.session, self._problem = session, ""
        self.title, self.ask, self.status = (
            plain_label(name="rlhf-title"),
            plain_label(name="rlhf-quiet"),
            plain_label(),
        )
        self.notice, self.asks = plain_label(name="rlhf-quiet"), plain_label()
        self.prompt = TextView(description="Prompt")
        self.panels: list[Panel] = [panel(self._do, most) for panel in PANELS]
        self.undo = button("Undo", lambda: self._do("undo"), "Take back the last step")
        self.skip = button("Skip", lambda: self._do("skip"), "Pass no judgement on this one")
        self.all_bad = button("All bad", lambda: self._do("all_bad"), "None of the replies is acceptable")
        self.previous = button("Previous", lambda: self._do("previous"))
        self.next = button("Next", lambda: self._do("next"))
        self.again = button("Try to save again", lambda: self._do("save"), style="warning")
        self.yes = button("Take it back", lambda: self._do("undo", True), style="warning")
        self.no = button("Leave it", lambda: self._do("go", session.index))
        self.sentences = [plain_label(name="rlhf-quiet") for _ in range(MOST_SENTENCES)]
        super().__init__(self._layout())
        self.add_class("rlhf-plain")
        self.refresh()

    def _layout(self) -> list[widgets.Widget]:
        self._question = row(self.asks, self.yes, self.no)
        last = row(self.status, self.again)
        last.add_class("rlhf-last")
        acts = row(self.undo, self.skip, self.all_bad, self.previous, self.next)
        for made in acts.children:
            made.layout.width = "96px"
        above = [widgets.HTML(STYLE), self.title, self.prompt, self.ask, *self.panels]
        return [*above, acts, self._question, last, self.notice, *self.sentences]

    @property
    def panel(self) -> Any:
        """The part of the view that answers the question on the screen."""
        form = self.session.question.form
        return next(panel for panel in self.panels if form in panel.forms)

    def _do(self, operation: str, *arguments: Any) -> None:
        """Let the session do something, and show how it is afterwards; a refusal becomes the line below."""
        self._problem, asked = "", operation == "undo" and not arguments and bool(self.session.undo_asks)
        self.status.value = "Working"  # where the reader interrupts, what stood here before may be wrong
        try:
            if operation == "complain":
                raise ValueError(arguments[0])
            getattr(self.session, operation)(*arguments)
        except NotSaved:
            pass  # the session keeps the judgement and the reason
        except (ValueError, OSError) as error:
            self._problem = str(error)
        finally:
            if operation != "draft" or self._problem:
                self.refresh(asked)
            else:
                self._show_status(view_state(self.session))

    def refresh(self, asked: bool = False) -> None:
        """Show the session as it is now; call it after changing the session by other means.

        Args:
            asked: whether undo was clicked and waits for a yes.
        """
        state = view_state(self.session)
        left = "" if state["seconds_left"] is None else f"   ·   about {_minutes(state['seconds_left'])} left"
        judged = f"{state['judged']} of {state['goal']} judged"
        skipped = f", {state['skipped']} skipped" if state["skipped"] else ""
        self.title.value = f"Question {state['index'] + 1} of {state['total']}   ·   {judged}{skipped}{left}"
        several = len(state["prompt"]) > 1
        turns = [f"{m['role'].capitalize()}: {m['text']}" if several else m["text"] for m in state["prompt"]]
        self.prompt.show("\n\n".join(turns))
        self.ask.value = state["ask"]
        for panel in self.panels:
            shown_if(panel, panel is self.panel)
        self.panel.show(state)
        self.undo.disabled = not state["can_undo"]
        self.previous.disabled, self.next.disabled = state["index"] == 0, state["index"] + 1 == state["total"]
        shown_if(self.all_bad, state["form"] == "rank")
        self.asks.value = state["undo_asks"] if asked else ""
        shown_if(self._question, bool(self.asks.value))
        self._show_status(state)

    def _show_status(self, state: dict[str, Any]) -> None:
        refused = self._problem and not (state["error"] and state["unsaved"])
        self.status.value = self._problem if refused else _state_line(state)
        shown_if(self.again, bool(state["error"]))
        for label, text in ((self.notice, state["notice"]), *zip(self.sentences, _padded(state), strict=True)):
            label.value = text
            shown_if(label, bool(text))

    def __repr__(self) -> str:
        number = len(self.session.questions)
        return f"PlainView({number} question{'' if number == 1 else 's'})"


def _padded(state: dict[str, Any]) -> list[str]:
    told = state["afterwards"][:MOST_SENTENCES]
    return told + [""] * (MOST_SENTENCES - len(told))


def _minutes(seconds: float) -> str:
    return "1 minute" if seconds < 90 else f"{round(seconds / 60)} minutes"


def _state_line(state: dict[str, Any]) -> str:
    """Whether the question is answered, and whether that is on the disk."""
    if state["error"]:
        return f"NOT SAVED, kept in memory: {state['error']}" if state["unsaved"] else state["error"]
    if state["status"] == "open":
        ranks = [reply["rank"] for reply in state["replies"]]
        placed = sum(rank is not None for rank in ranks)
        half = f"{placed} of {len(ranks)} replies ranked; saved when all are" if placed else "Not handed in yet"
        return half if state["unsent"] else "Not judged"
    done = STATUS[state["status"]]
    if not state["where"]:
        return f"NOT SAVED, kept in memory: {done}. The session has no store"
    changed = ". What you changed is not handed in" if state["unsent"] else ""
    return f"Saved: {done}, in {state['where']}{changed}"
