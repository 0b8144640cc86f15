"""The view of a ranking session made of standard buttons and text fields, for wherever ipywidgets are shown.

What people and models wrote is shown in text fields only: they take it as it is, while an HTML widget would run it.
A Label takes text too, but what stands between dollar signs is typeset in it, which ours ask not to do: they may name a
file. Everything can be reached with the Tab key.
Chapters 00 and 08.
"""

from collections.abc import Callable
from typing import Any

import ipywidgets as widgets

from rlhf_lab.classroom.widgets.session import RankingSession
from rlhf_lab.feedback.events import NotSaved

LINE_LENGTH, MOST_LINES = 64, 12  # characters a line is taken to hold; longer texts scroll
# The only HTML in this view, and constant. Without it all is still there, only paler.
STYLE = """<style>
.rlhf-ranking { max-width: 880px; }
.rlhf-ranking .rlhf-title { font-weight: 600; }
.rlhf-ranking .rlhf-quiet { color: var(--jp-ui-font-color2, #555); }
.rlhf-ranking textarea { opacity: 1 !important; color: inherit; -webkit-text-fill-color: currentColor;
  field-sizing: content; min-height: 2.3em; max-height: 20em; resize: none; unicode-bidi: plaintext;
  line-height: 1.45; padding: 6px 10px; border-radius: 6px; font-family: var(--jp-ui-font-family, sans-serif); }
.rlhf-ranking .rlhf-row { margin: 4px 0; gap: 8px; }
.rlhf-ranking .rlhf-acts { margin: 14px 0 6px 68px; gap: 4px; }
.rlhf-ranking .rlhf-acts button { width: 96px; }
.rlhf-ranking .rlhf-last { margin-left: 68px; font-weight: 600; }
</style>"""


class TextView(widgets.Textarea):
    """A text to read. A long one can be focused, so that keys scroll it; what is typed there is put back."""

    text = ""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.observe(lambda change: setattr(self, "value", self.text), "value")

    def show(self, text: str) -> None:
        """Show `text` as it stands."""
        self.text = text
        lines = sum(1 + len(line) // LINE_LENGTH for line in text.split("\n"))
        self.value, self.rows, self.disabled = text, min(lines, MOST_LINES), lines <= MOST_LINES


def _label() -> widgets.Label:
    """One line of text that is shown as it stands; the classes are those that MathJax passes over."""
    label = widgets.Label()
    for name in ("mathjax_ignore", "tex2jax_ignore"):
        label.add_class(name)
    return label


class RankingView(widgets.VBox):
    """Rank by clicking the replies in order, best first.

    Example:
        >>> view = RankingView(RankingSession([("Where is the zoo?", ["In Mill Street.", "Go away."])]))
        >>> view.place[1].click()
        >>> [button.description for button in view.place]
        ['Rank 2', '✓ Rank 1']
    """

    def __init__(self, session: RankingSession) -> None:
        most = max(len(replies) for _, replies in session.items)
        self.session, self._problem = session, ""
        self.title, self.status, self.notice = _label(), _label(), _label()
        self.prompt = TextView(description="Prompt")
        self.texts = [TextView(description=f"Reply {chr(65 + i)}") for i in range(most)]
        self.place = [self._button("", lambda i=i: self._place(i)) for i in range(most)]
        self.tie = [self._button("", lambda i=i: session.tie(i)) for i in range(most)]
        self.undo = self._button("Undo", session.undo, "Take back the last step")
        self.skip = self._button("Skip", session.skip, "Pass no judgement on this one")
        self.all_bad = self._button("All bad", session.all_bad, "None of the replies is acceptable")
        self.previous = self._button("Previous", session.previous)
        self.next = self._button("Next", session.next)
        self.again = self._button("Try to save again", session.save, style="warning")
        super().__init__(self._layout())
        self.add_class("rlhf-ranking")
        self.refresh()

    def _button(self, text: str, operation: Callable, tooltip: str = "", style: str = "") -> widgets.Button:
        button = widgets.Button(description=text, tooltip=tooltip or text, button_style=style)
        button.on_click(lambda _: self._do(operation))
        return button

    def _layout(self) -> list[widgets.Widget]:
        for text in (self.prompt, *self.texts):
            text.layout = widgets.Layout(flex="1 1 auto", width="auto")
            text.style.description_width = "60px"
        self.rows = []
        for text, place, tie in zip(self.texts, self.place, self.tie, strict=True):
            place.layout.width = tie.layout.width = "110px"
            buttons = widgets.HBox([place, tie], layout=widgets.Layout(flex="0 0 auto"))
            self.rows.append(widgets.HBox([text, buttons], layout=widgets.Layout(align_items="center")))
            self.rows[-1].add_class("rlhf-row")
        how = widgets.Label("Click the replies in order, the best first. Click a rank again to take it back.")
        acts = widgets.HBox([self.undo, self.skip, self.all_bad, self.previous, self.next])
        self.title.add_class("rlhf-title")
        how.add_class("rlhf-quiet")
        self.notice.add_class("rlhf-quiet")
        last = widgets.HBox([self.status, self.again])
        acts.add_class("rlhf-acts")
        last.add_class("rlhf-last")
        return [widgets.HTML(STYLE), self.title, self.prompt, how, *self.rows, acts, last, self.notice]

    def _place(self, position: int) -> None:
        placed = self.session.ranks[position] is not None
        (self.session.remove if placed else self.session.place)(position)

    def _do(self, operation: Callable[[], None]) -> None:
        self._problem = ""
        self.status.value = "Working"  # where the reader interrupts, what stood here before may be wrong
        try:
            operation()
        except NotSaved:
            pass  # the session keeps the judgement and the reason
        except (ValueError, OSError) as error:
            self._problem = str(error)
        finally:
            self.refresh()

    def refresh(self) -> None:
        """Show the session as it is now; call it after changing the session by other means."""
        session = self.session
        progress, ranks = session.progress, session.ranks
        self.title.value = f"{session.index + 1} of {progress.total}   ·   {progress.judged} judged"
        several = len(session.prompt) > 1
        turns = [f"{m.role.capitalize()}: {m.content}" if several else m.content for m in session.prompt]
        self.prompt.show("\n\n".join(turns))
        for i, row in enumerate(self.rows):
            row.layout.display = None if i < len(ranks) else "none"
        for i, (text, rank) in enumerate(zip(session.replies, ranks, strict=True)):
            self.texts[i].show(text)
            self._show_rank(i, rank, max((r for r in ranks if r), default=0))
        self.undo.disabled = not session.can_undo
        self.previous.disabled, self.next.disabled = session.index == 0, session.index + 1 == progress.total
        self.notice.value = session.notice
        self.notice.layout.display = None if session.notice else "none"
        self.status.value = self._problem if self._problem and not session.error else self._state()
        self.again.layout.display = None if session.error else "none"

    def _show_rank(self, i: int, rank: int | None, last: int) -> None:
        name, place, tie = self.texts[i].description, self.place[i], self.tie[i]
        place.description = f"Rank {last + 1}" if rank is None else f"✓ Rank {rank}"
        place.tooltip = f"{name}: give it rank {last + 1}" if rank is None else f"{name}: take its rank back"
        place.button_style = "" if rank is None else "success"
        tie.description, tie.tooltip = f"Also rank {last}", f"{name}: as good as the one before"
        tie.layout.visibility = "visible" if rank is None and last else "hidden"

    def _state(self) -> str:
        session, ranks = self.session, self.session.ranks
        if session.error:
            return f"NOT SAVED, kept in memory: {session.error}"
        if session.status == "open":
            placed = sum(rank is not None for rank in ranks)
            return f"{placed} of {len(ranks)} replies ranked; saved when all are" if placed else "Not judged"
        what = {"done": "ranked", "skipped": "skipped", "all_bad": "all bad"}[session.status]
        return f"Saved: {what}" if session.saved else f"NOT SAVED, kept in memory: {what}. The session has no log file"

    def __repr__(self) -> str:
        return f"RankingView({len(self.session.items)} items)"
