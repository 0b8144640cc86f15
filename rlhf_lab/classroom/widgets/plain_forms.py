"""The parts of the plain view: a text to read, and for each form of question the buttons and fields of its answer.

What people and models wrote is shown in text fields, options of a list and labels that typeset nothing: they take it
as it is, while an HTML widget would run it. Chapter 08.
"""

import base64
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import ipywidgets as widgets

LINE_LENGTH, MOST_LINES = 64, 12  # characters a line is taken to hold; longer texts scroll
MOST_WORDS = 500  # to choose from in a list; in a longer text the wrong words are typed
MOST_FRAMES = 5  # of an animation, side by side
State = dict[str, Any]
Ask = Callable[
    ..., None
]  # with the name of an operation of the session and its arguments: does it and shows the result


class TextView(widgets.Textarea):
    """A text to read. A long one can be focused, so that keys scroll it; what is typed there is put back."""

    text = ""

    def __init__(self, **options: Any) -> None:
        super().__init__(layout=widgets.Layout(flex="1 1 auto", width="auto"), **options)
        self.style.description_width = "60px"
        self.observe(lambda change: setattr(self, "value", self.text), "value")

    def show(self, text: str) -> None:
        """Show `text` as it stands."""
        self.text = text
        lines = sum(1 + len(line) // LINE_LENGTH for line in text.split("\n"))
        self.value, self.rows, self.disabled = text, min(lines, MOST_LINES), lines <= MOST_LINES


def plain_label(text: str = "", name: str = "") -> widgets.Label:
    """One line of text that is shown as it stands; two of the classes are those that MathJax passes over."""
    label = widgets.Label(text)
    for word in filter(None, ("mathjax_ignore", "tex2jax_ignore", name)):
        label.add_class(word)
    return label


def shown_if(widget: widgets.Widget, wanted: bool) -> None:
    """Show a widget or leave it out."""
    widget.layout.display = None if wanted else "none"


def button(text: str, work: Callable[[], None], tooltip: str = "", style: str = "") -> widgets.Button:
    """A button that does `work`."""
    made = widgets.Button(description=text, tooltip=tooltip or text, button_style=style)
    made.on_click(lambda _: work())
    return made


def row(*children: widgets.Widget) -> widgets.HBox:
    """Widgets side by side, in several lines where there is no room."""
    box = widgets.HBox(children, layout=widgets.Layout(flex_flow="row wrap", align_items="center"))
    box.add_class("rlhf-row")
    return box


class Panel(widgets.VBox):
    """The answer to one form of question."""

    forms: tuple[str, ...] = ()

    def show(self, state: State) -> None:
        """Show the state of a session, as `view_state` describes it."""
        raise NotImplementedError


class RankPanel(Panel):
    """Replies with buttons: the next rank, the same rank as the last, higher and lower. A rank is taken back by it."""

    forms = ("rank",)

    def __init__(self, ask: Ask, most: int) -> None:
        self.texts = [TextView() for _ in range(most)]
        self._ranks: list[int | None] = []
        self.place = [button("", partial(ask, "toggle", i)) for i in range(most)]
        self.tie = [button("", partial(ask, "tie", i)) for i in range(most)]
        self.higher = [button("Higher", partial(self._move, ask, i, -1)) for i in range(most)]
        self.lower = [button("Lower", partial(self._move, ask, i, 1)) for i in range(most)]
        groups = zip(self.texts, self.place, self.tie, self.higher, self.lower, strict=True)
        self.rows = [row(text, widgets.HBox(buttons)) for text, *buttons in groups]
        for made in (*self.place, *self.tie, *self.higher, *self.lower):
            made.layout.width = "96px" if made.description == "" else "72px"
        super().__init__(self.rows)

    def show(self, state: State) -> None:
        """Show the replies and their ranks."""
        self._ranks = [reply["rank"] for reply in state["replies"]]
        for i, line in enumerate(self.rows):
            shown_if(line, i < len(self._ranks))
        for i, reply in enumerate(state["replies"]):
            self.texts[i].description = name = f"Reply {reply['letter']}"
            self.texts[i].show(reply["text"])
            self._show_rank(i, name, reply["rank"], max((r for r in self._ranks if r), default=0))

    def _show_rank(self, i: int, name: str, rank: int | None, last: int) -> None:
        place, tie = self.place[i], self.tie[i]
        place.description = f"Rank {last + 1}" if rank is None else f"✓ Rank {rank}"
        place.tooltip = f"{name}: give it rank {last + 1}" if rank is None else f"{name}: take its rank {rank} back"
        place.button_style = "" if rank is None else "success"
        tie.description, tie.tooltip = f"Also rank {last}", f"{name}: as good as the one before"
        shown_if(tie, rank is None and last > 0)
        for move, word in ((self.higher[i], "higher"), (self.lower[i], "lower")):
            move.tooltip = f"{name}: one rank {word}"
            shown_if(move, rank is not None)
        alone = rank is None or self._ranks.count(rank) == 1
        self.higher[i].disabled, self.lower[i].disabled = rank == 1 and alone, rank == last and alone

    def _move(self, ask: Ask, i: int, by: int) -> None:
        """Out of a tie it moves to a rank of its own, otherwise past the next rank."""
        rank = self._ranks[i] or 1
        tied = self._ranks.count(rank) > 1
        ask("move", i, (rank - 1 if by < 0 else rank) if tied else rank - 1 + by)


class RatePanel(Panel):
    """A reply and a button for each score."""

    forms = ("rate",)

    def __init__(self, ask: Ask, most: int) -> None:
        self.text = TextView(description="Reply")
        self.scores = [button(str(i), partial(ask, "rate", i)) for i in range(1, 11)]
        for made in self.scores:
            made.layout.width = "48px"
        super().__init__([self.text, row(plain_label("bad"), *self.scores, plain_label("good"))])

    def show(self, state: State) -> None:
        """Show the reply and its score."""
        self.text.show(state["replies"][0]["text"])
        low, high = state["scale"]
        for score, made in enumerate(self.scores, start=1):
            shown_if(made, low <= score <= high)
            chosen = score == state["answer"]
            made.description, made.button_style = f"✓ {score}" if chosen else str(score), "success" if chosen else ""
            made.tooltip = f"Score {score} of {high}"


class WritePanel(Panel):
    """A reply and a field for a text: the reply as it should be, or a comment."""

    forms = ("edit", "comment")

    def __init__(self, ask: Ask, most: int) -> None:
        self._form, self._showing = "", False
        self.text = TextView(description="Reply")
        self.field = widgets.Textarea(layout=widgets.Layout(width="auto"), continuous_update=False, rows=5)
        self.field.style.description_width = "60px"
        self.field.observe(lambda change: None if self._showing else ask("draft", change["new"]), "value")
        self.hand_in = button("Hand in", lambda: ask(self._form, self.field.value), "Save what you wrote")
        super().__init__([self.text, self.field, row(self.hand_in)])

    def show(self, state: State) -> None:
        """Show the reply and what was written so far."""
        reply, self._form = state["replies"][0]["text"], state["form"]
        self.text.show(reply)
        written = state["answer"]
        self._showing = True
        try:
            self.field.description = "Better" if self._form == "edit" else "Comment"
            self.field.value = written if written is not None else reply if self._form == "edit" else ""
        finally:
            self._showing = False


class MarkPanel(Panel):
    """A reply, its words to choose from, and a field for words that are typed."""

    forms = ("mark",)

    def __init__(self, ask: Ask, most: int) -> None:
        self._reply = ""
        self._spans: list[tuple[int, int]] = []
        self.text = TextView(description="Reply")
        self.words = widgets.SelectMultiple(description="Words", layout=widgets.Layout(width="auto"))
        self.typed = widgets.Textarea(
            description="or type", rows=2, placeholder="wrong words, one piece a line", layout={"width": "auto"}
        )
        self.words.style.description_width = self.typed.style.description_width = "60px"
        self.hand_in = button("Hand in", lambda: self._hand_in(ask), "Save the words that are chosen or typed as wrong")
        self.nothing = button("Nothing wrong", lambda: ask("mark", []), "Save that no word is wrong")
        super().__init__([self.text, self.words, self.typed, row(self.hand_in, self.nothing)])

    def show(self, state: State) -> None:
        """Show the reply and which of its words are marked."""
        reply, marked = state["replies"][0]["text"], state["answer"] or []
        self.text.show(reply)
        if reply != self._reply:
            self.typed.value = ""
        self._reply, spans = reply, [match.span() for match in re.finditer(r"\S+", reply)]
        self._spans = spans if len(spans) <= MOST_WORDS else []
        self.words.options = [(f"{i + 1}  {reply[a:b]}", i) for i, (a, b) in enumerate(self._spans)]
        self.words.rows = min(max(len(self._spans), 1), 8)
        shown_if(self.words, bool(self._spans))
        chosen = [i for i, (a, b) in enumerate(self._spans) if any(a < end and start < b for start, end in marked)]
        self.words.value = tuple(chosen)

    def _hand_in(self, ask: Ask) -> None:
        spans = [self._spans[i] for i in self.words.value]
        for words in filter(None, (line.strip() for line in self.typed.value.split("\n"))):
            found = [match.span() for match in re.finditer(re.escape(words), self._reply)]
            if not found:
                ask("complain", f"“{words:.60}” is not in the reply; type its words as they stand there")
                return
            spans += found
        if not spans:
            ask("complain", "no words are chosen or typed; choose some, or click Nothing wrong")
            return
        ask("mark", sorted(spans))


class ComparePanel(Panel):
    """Two replies, or two pieces of behaviour as pictures, and three buttons."""

    forms = ("compare", "segments")

    def __init__(self, ask: Ask, most: int) -> None:
        self.texts = [TextView(description=f"Reply {name}") for name in "AB"]
        self.strips = [widgets.HBox(layout=widgets.Layout(flex_flow="row wrap")) for _ in "AB"]
        self.labels = [plain_label() for _ in "AB"]
        self.choose = {
            outcome: button(text, partial(ask, "compare", outcome))
            for outcome, text in ((1, "A is better"), (0, "Equal"), (-1, "B is better"))
        }
        self._drawn: dict[str, list[str]] = {}
        pairs = zip(self.texts, self.labels, self.strips, strict=True)
        super().__init__([child for group in pairs for child in group] + [row(*self.choose.values())])

    def show(self, state: State) -> None:
        """Show the two and which was chosen."""
        segments = state["segments"]
        for i, (text, label, strip) in enumerate(zip(self.texts, self.labels, self.strips, strict=True)):
            for widget in (label, strip):
                shown_if(widget, segments is not None)
            shown_if(text, segments is None)
            if segments is None:
                text.show(state["replies"][i]["text"])
            else:
                label.value = f"{'AB'[i]}: {segments[i]['alt']}"
                self._draw(strip, segments[i]["frames"])
        for outcome, made in self.choose.items():
            chosen = state["answer"] == outcome
            made.description = made.description.removeprefix("✓ ")
            made.description = f"✓ {made.description}" if chosen else made.description
            made.button_style = "success" if chosen else ""

    def _draw(self, strip: widgets.HBox, frames: list[str]) -> None:
        """New pictures where the frames are other ones; a widget for a picture is kept for good."""
        if self._drawn.get(strip.model_id) is not frames:
            self._drawn[strip.model_id] = frames
            strip.children = tuple(_pictures(frames))


def _pictures(frames: list[str]) -> list[widgets.Image]:
    """Some frames of an animation, evenly spaced, the first and the last among them."""
    last = len(frames) - 1
    count = min(len(frames), MOST_FRAMES)
    picked = [frames[round(i * last / max(count - 1, 1))] for i in range(count)]
    layout = widgets.Layout(width="120px", margin="2px")
    return [
        widgets.Image(value=base64.b64decode(frame.partition(",")[2]), format="png", layout=layout) for frame in picked
    ]


PANELS: tuple[type[Any], ...] = (RankPanel, RatePanel, WritePanel, MarkPanel, ComparePanel)
