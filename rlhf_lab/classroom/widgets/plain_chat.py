"""The view of a dialogue made of standard buttons and text fields, for wherever ipywidgets are shown.

What was said so far stands in one field; the replies of the last turn have their buttons. What people and models wrote
is shown in text fields only, which take it as it is. Left out: the colours, whose numbers stand in a table. Chapter 08.
"""

from collections.abc import Callable, Sequence
from functools import partial

import ipywidgets as widgets

from rlhf_lab.classroom.widgets.bridge import in_main_thread
from rlhf_lab.classroom.widgets.chat import kept_text, legend, token_rows, verdict_text
from rlhf_lab.classroom.widgets.dialogue import COLOURS, Dialogue
from rlhf_lab.classroom.widgets.plain_forms import TextView, button, plain_label, shown_if
from rlhf_lab.classroom.widgets.state import displayable

Acts = dict[str, Callable[[], None]]  # what is done, by the name of its button


def row(parts: Sequence[widgets.Widget]) -> widgets.HBox:
    """Widgets side by side, in several lines where there is little room."""
    return widgets.HBox(list(parts), layout=widgets.Layout(flex_flow="row wrap"))


def spans_of(text: str, words: str) -> list[tuple[int, int]]:
    """Where the words, one a line, first stand in a text, each after the one before.

    Raises:
        ValueError: one of them does not.

    >>> spans_of("The zoo is in Mill Street.", "zoo\\nMill Street")
    [(4, 7), (14, 25)]
    """
    found, end = [], 0
    for word in filter(None, (line.strip() for line in words.split("\n"))):
        start = text.find(word, end)
        if start < 0:
            raise ValueError(f"{word!r:.60} is not in the rest of the reply; write wrong words as they stand, in order")
        end = start + len(word)
        found.append((start, end))
    return found


class _Column(widgets.VBox):
    """The reply of one model in the last turn, and what can be said of it."""

    def __init__(self, view: "PlainChat", column: int) -> None:
        self.view, self.column = view, column
        self.reply, self.verdict, self.numbers = TextView(), plain_label(), TextView(description="Numbers")
        self.written = widgets.Textarea(placeholder="A better reply, a comment, or wrong words, one a line", rows=2)
        talk: Acts = {
            "Another reply": lambda: view.dialogue.again(self.turn, column),
            "Next reply": self._leaf,
            "Go on with this": lambda: view.dialogue.go_on(column),
        }
        rates: Acts = {str(score): partial(self._rate, score) for score in range(1, 6)}
        texts: Acts = {
            "Save as edit": lambda: view.dialogue.edit(*self.place, self.written.value),
            "Save as comment": lambda: view.dialogue.comment(*self.place, self.written.value),
            "Save as wrong words": self._mark,
        }
        self.buttons = view.made(talk | rates | texts)
        rows = [row([self.buttons[name] for name in acts]) for acts in (talk, rates, texts)]
        parts = [self.reply, self.verdict, rows[0], plain_label("Rate, 5 is best"), rows[1], self.written, rows[2]]
        super().__init__([*parts, self.numbers])

    @property
    def turn(self) -> int:
        """The last one."""
        return len(self.view.dialogue.turns) - 1

    @property
    def place(self) -> tuple[int, int, int]:
        """Of the reply that is shown."""
        return self.turn, self.column, self.view.dialogue.turns[-1].leaves[self.column]

    def _rate(self, score: int) -> None:
        self.view.dialogue.rate(*self.place, score)

    def _leaf(self) -> None:
        turn, column, alternative = self.place
        count = len(self.view.dialogue.turns[turn].replies[column])
        self.view.dialogue.leaf(turn, column, (alternative + 1) % count)

    def _mark(self) -> None:
        turn, column, alternative = self.place
        reply = self.view.dialogue.turns[turn].replies[column][alternative]
        self.view.dialogue.mark(turn, column, alternative, spans_of(reply.text, self.written.value))

    def show(self) -> None:
        """Show what stands in the dialogue now."""
        dialogue = self.view.dialogue
        turn, column, alternative = self.place
        here = dialogue.turns[turn]
        reply = here.replies[column][alternative]
        goes_on = "✓ " if here.goes_on == (column, alternative) else ""
        self.reply.description = f"{goes_on}{displayable(dialogue.label(column))[:20]} {alternative + 1}"
        self.reply.show(displayable(reply.text))
        self.verdict.value = verdict_text(dialogue.verdict(*self.place)) if dialogue.oracle else ""
        coloured = dialogue.colour != "none"
        kl = dialogue.kl(*self.place) if dialogue.colour == "kl" else None
        rows = [" | ".join([row["text"] or row["name"], *row["numbers"]]) for row in token_rows(reply, kl)]
        head = "token | log-prob (nats) | probability" + (" | KL (nats)" if kl else "")
        self.numbers.show("\n".join([head, *rows]) if coloured else "")
        shown_if(self.numbers, coloured)


class PlainChat(widgets.VBox):
    """A dialogue by standard buttons and fields.

    Example:
        >>> from rlhf_lab import load_language_model
        >>> view = PlainChat(Dialogue(load_language_model("tiny"), max_new_tokens=8))
        >>> view.message.value = "Where is the zoo?"
        >>> view.buttons["Send"].click()
        >>> len(view.dialogue.turns), view.columns[0].reply.value == view.dialogue.turns[0].replies[0][0].text
        (1, True)

    Chapter 08.
    """

    def __init__(self, dialogue: Dialogue) -> None:
        self.dialogue = dialogue
        self.said, self.status, self.problem, self.legend = TextView(), plain_label(), TextView(), plain_label()
        self.message = widgets.Textarea(placeholder="Write to the models", rows=2)
        self.columns = [_Column(self, column) for column in range(len(dialogue.models))]
        self.offers = [button("", partial(self._offer, i)) for i in range(4)]
        self.replies = widgets.VBox(self.columns)
        pairs = {"First is better": 1, "Tie": 0, "Second is better": -1}
        looks: Acts = {f"Colour: {colour}": partial(dialogue.colour_by, colour) for colour in COLOURS}
        looks["Oracle"] = lambda: dialogue.show_oracle(not dialogue.oracle)
        choices: Acts = {text: partial(self._compare, outcome) for text, outcome in pairs.items()}
        talk: Acts = {"Send": self._send, "Reveal": dialogue.reveal, "New conversation": dialogue.restart}
        ends: Acts = {"Undo": dialogue.undo, "Save again": dialogue.save}
        self.buttons = self.made(looks | choices | talk | ends)
        top, self.pair, middle, last = (
            row([self.buttons[name] for name in acts]) for acts in (looks, choices, talk, ends)
        )
        above = [top, self.legend, self.said, self.replies, self.pair, row(self.offers)]
        super().__init__([*above, self.message, middle, last, self.status, self.problem])
        self._show(kept_text(dialogue))

    def made(self, acts: Acts) -> dict[str, widgets.Button]:
        """Buttons by their names; each does its work and shows what came of it."""
        return {text: button(text, partial(self._do, work)) for text, work in acts.items()}

    def _do(self, work: Callable[[], None]) -> None:
        self.status.value = "Writing …"
        try:
            in_main_thread(work)
        except (ValueError, OSError) as error:
            self._show(str(error))
        except KeyboardInterrupt:
            self._show("Interrupted; the conversation is as it was before.")
        else:
            self._show("")

    def _send(self) -> None:
        self.dialogue.say(self.message.value)
        self.message.value = ""

    def _offer(self, number: int) -> None:
        self.message.value = self.dialogue.offers()[number]
        self._do(self._send)

    def _compare(self, outcome: int) -> None:
        """Of the first two columns, or of the last two replies of the only one."""
        if not self.dialogue.turns:
            raise ValueError("nothing was said yet; write a message first")
        turn = self.dialogue.turns[-1]
        shown = list(enumerate(turn.leaves))[:2] if len(turn.leaves) > 1 else turn.places[-2:]
        if len(shown) < 2:
            raise ValueError("there is one reply only; ask for another one to compare it with")
        self.dialogue.compare(len(self.dialogue.turns) - 1, shown[0], shown[1], outcome)

    def _show(self, problem: str) -> None:
        dialogue, turns = self.dialogue, self.dialogue.turns
        lines = [f"{message.role}: {message.content}" for message in dialogue.conversation()]
        self.said.show(displayable("\n".join(lines)))
        shown_if(self.said, bool(turns))
        shown_if(self.replies, bool(turns))
        shown_if(self.pair, bool(turns))
        for column in self.columns if turns else ():
            column.show()
        offers = dialogue.offers()
        for i, made in enumerate(self.offers):
            made.description = offers[i] if i < len(offers) else ""
            shown_if(made, i < len(offers))
        shown_if(self.buttons["Reveal"], dialogue.blind)
        title = legend(dialogue)
        self.legend.value = title["title"] if title else ""
        forgotten = dialogue.forgotten(len(turns) - 1) if turns else ""
        warning = turns[-1].warning if turns else ""
        problem = problem or dialogue.opinions.error or " ".join(filter(None, (forgotten, warning)))
        self.problem.show(displayable(problem))
        shown_if(self.problem, bool(problem))
        self.status.value = displayable(dialogue.says if len(dialogue.says) < 100 else "The models replied.")

    def __repr__(self) -> str:
        return f"PlainChat({', '.join(self.dialogue.models)})"
