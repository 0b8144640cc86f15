"""The view of a feedback session in the browser: cards to read, keys, dragging, and a place for every form.

Rules and state are the session's; view.js draws what `view_state` says, with a function for each form in forms.js and
ranking.js. Where custom widgets are not shown, `plain` is a view of the same session. Chapters 00 and 08.
"""

from typing import Any

from rlhf_lab.classroom.widgets.bridge import LOOKS, Bridge, script, style
from rlhf_lab.classroom.widgets.session import FeedbackSession
from rlhf_lab.classroom.widgets.state import view_state

VERSION = "FeedbackView 1"  # in each event; a new number for whatever may change how people judge
READ = ("prompt", "segments")  # what is long and changes with the question only
ALT = {  # of the pictures
    "rank": f"{LOOKS}a prompt, four replies on cards, and the order given so far, with the keys 1 to 4 to rank, "
    "u to undo, s to skip, b for all bad and Enter for the next question.",
    "rate": f"{LOOKS}a prompt, a reply on a card, and a score from 1 to 5 to give it.",
    "edit": f"{LOOKS}a prompt, a reply on a card, and a field to write a better one.",
    "mark": f"{LOOKS}a prompt and a reply, some of whose words are marked as wrong.",
    "comment": f"{LOOKS}a prompt, a reply on a card, and a field for a comment.",
    "compare": f"{LOOKS}a prompt and two replies side by side, of which one is chosen.",
    "segments": f"{LOOKS}two animations of a task side by side, of which one is chosen.",
}
RANKING = ("toggle", "place", "tie", "move", "remove", "arrange", "all_bad")
ANSWERS = ("rate", "edit", "mark", "comment", "compare", "draft", "skip")


class FeedbackView(Bridge):
    """Judge by mouse, by touch or by keys alone; `?` shows the keys.

    Args:
        session: what is shown and judged.

    Example:
        >>> view = FeedbackView(FeedbackSession([("Where is the zoo?", ["In Mill Street.", "Go away."])]))
        >>> view.receive({"id": "1", "op": "place", "args": [1]})
        >>> view.state["ranks"], view.state["answer"]
        ([None, 1], None)
        >>> view
        FeedbackView(1 question)

    Chapters 00 and 08.
    """

    _esm = script("ranking.js", "forms.js", "view.js")
    _css = style()
    operations = (*RANKING, *ANSWERS, "undo", "next", "previous", "go", "save")

    def __init__(self, session: FeedbackSession) -> None:
        self._seen = False  # the time of a question runs from when it is on the screen, not from "run all"
        session.widget = VERSION
        super().__init__(session)

    def describe(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What changes with each click, and what is there to read."""
        state = view_state(self.subject, seen=self._seen)
        replies = state.pop("replies")
        content = {name: state.pop(name) for name in READ} | {
            "replies": [{name: reply[name] for name in ("letter", "text", "nodes")} for reply in replies],
            "question": [state["study"], state["index"], state["form"]],
        }
        return state | {"ranks": [reply["rank"] for reply in replies]}, content

    def receive(self, message: Any) -> None:
        """Carry out a request of the browser; the first one says that the widget is on the screen."""
        self._seen = True
        super().receive(message)

    @property
    def picture(self) -> tuple[str, str]:
        """That of the form of the question."""
        form = self.subject.question.form
        return form, ALT[form]

    def __repr__(self) -> str:
        number = len(self.subject.questions)
        return f"FeedbackView({number} question{'' if number == 1 else 's'})"
