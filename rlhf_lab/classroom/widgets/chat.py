"""The widget of a dialogue: talk to models side by side, and judge every reply where it stands. Chapters 00, 08, 10.

`conversation_content` and `conversation_state` say what is on the screen; chat.js draws it. While models are hidden,
neither holds their names.
"""

import json
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from rlhf_lab.classroom.widgets.bridge import FOLDER, LOOKS, Bridge, in_main_thread, script, style
from rlhf_lab.classroom.widgets.dialogue import Dialogue, Place, Turn
from rlhf_lab.classroom.widgets.state import displayable
from rlhf_lab.classroom.widgets.writing import KL_BORDERS, LOG_PROB_BORDERS, Reply, level
from rlhf_lab.experience.rollouts import TEMPERATURE
from rlhf_lab.feedback.store import Store
from rlhf_lab.models.language_model import LanguageModel
from rlhf_lab.records import Choice, Demonstration, Event, Ranking
from rlhf_lab.training.printing import printable
from rlhf_lab.worlds.town import Verdict

ALT = (
    f"{LOOKS}a question, under it the replies of two models side by side, and under each of them buttons to ask for "
    "another reply, to rate it from 1 to 5, to edit it, to mark its wrong words and to comment on it; then buttons to "
    "compare the two replies, and a field for the next message."
)
SAMPLES = ("say", "again")  # operations that take long enough to say "writing" first
LEGENDS = {
    "log-prob": ("0.9 or more", "0.5 to 0.9", "0.1 to 0.5", "0.01 to 0.1", "below 0.01"),
    "kl": ("below 0.01 nats", "0.01 to 0.1", "0.1 to 0.5", "0.5 to 2", "2 nats or more"),
}


class Chat(Bridge):
    """Talk to one or several models side by side, and judge what they reply.

    Arguments are those of `Dialogue`, except for its clock. It is shown as the last expression of a cell and never
    waits for the reader.

    Attributes:
        dialogue: what was said and judged; call `refresh` after changing it in Python.

    Example:
        >>> from rlhf_lab import load_language_model
        >>> lm = load_language_model("tiny")
        >>> chat = Chat({"base": lm, "SFT": lm}, max_new_tokens=8)
        >>> chat
        Chat(base, SFT)
        >>> chat.receive({"id": "a-1", "op": "say", "args": ["Where is the zoo?"]})
        >>> [len(turn["replies"]) for turn in chat.content["turns"]], len(chat.transcript())
        ([2], 1)

    Chapters 00, 08 and 10.
    """

    _esm = script("chat.js")
    _css = style() + (FOLDER / "chat.css").read_text(encoding="utf-8")
    operations = (
        "say", "again", "leaf", "go_on", "restart", "reveal", "colour_by", "show_oracle",
        "rate", "edit", "mark", "comment", "compare", "rank", "all_bad", "undo", "save",
    )  # fmt: skip

    def __init__(
        self,
        models: LanguageModel | Mapping[str, LanguageModel],
        *,
        reference: LanguageModel | None = None,
        store: Store | str | Path | bool | None = None,
        study: str = "chat",
        rater: str = "you",
        blind: bool = False,
        show_oracle: bool = False,
        temperature: float = TEMPERATURE,
        max_new_tokens: int = 64,
        seed: int = 0,
    ) -> None:
        self.dialogue = Dialogue(
            models,
            reference=reference,
            store=store,
            study=study,
            rater=rater,
            blind=blind,
            show_oracle=show_oracle,
            temperature=temperature,
            max_new_tokens=max_new_tokens,
            seed=seed,
        )
        super().__init__(self.dialogue)

    def describe(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What is on the screen."""
        return conversation_state(self.dialogue), conversation_content(self.dialogue)

    def perform(self, op: str, args: list[Any]) -> None:
        """Carry out an operation; models say first that they write, and an interrupt of theirs changes nothing."""
        if op not in SAMPLES:
            return super().perform(op, args)
        self.refresh(writing=True)
        try:
            return in_main_thread(partial(super().perform, op, args))
        except KeyboardInterrupt:
            raise ValueError("Interrupted; the conversation is as it was before. Send it again to go on") from None

    @property
    def picture(self) -> tuple[str, str]:
        """That of a chat."""
        return "chat", ALT

    def transcript(self) -> list[Demonstration]:
        """For each turn the prompt, and the reply with which the conversation went on."""
        return self.dialogue.transcript()

    def events(self) -> list[Event]:
        """The judgements of this dialogue that count."""
        return self.dialogue.events()

    def __repr__(self) -> str:
        return f"Chat({', '.join(printable(name)[:40] for name in self.dialogue.models)})"


# ---- the texts -------------------------------------------------------------------------------------------------


def conversation_content(dialogue: Dialogue) -> dict[str, Any]:
    """What was said and what is known of it, as JSON values; verdicts and numbers only where they are shown.

    Example:
        >>> from rlhf_lab import load_language_model
        >>> dialogue = Dialogue(load_language_model("tiny"), max_new_tokens=8)
        >>> dialogue.say("Where is the zoo?")
        >>> conversation_content(dialogue)["turns"][0]["text"]
        'Where is the zoo?'

    Chapter 08.
    """
    return {
        "columns": [displayable(dialogue.label(column)) for column in range(len(dialogue.models))],
        "turns": [_turn(dialogue, number, turn) for number, turn in enumerate(dialogue.turns)],
        "legend": legend(dialogue),
        "with_kl": dialogue.reference is not None and not dialogue.blind,
    }


def _turn(dialogue: Dialogue, number: int, turn: Turn) -> dict[str, Any]:
    columns = [[(column, i) for i in range(len(replies))] for column, replies in enumerate(turn.replies)]
    return {
        "text": displayable(turn.text),
        "forgotten": displayable(dialogue.forgotten(number)),
        "warning": displayable(turn.warning),
        "replies": [[_reply(dialogue, number, turn, place) for place in places] for places in columns],
    }


def _reply(dialogue: Dialogue, number: int, turn: Turn, place: Place) -> dict[str, Any]:
    reply = turn.replies[place[0]][place[1]]
    kl = dialogue.kl(number, *place) if dialogue.colour == "kl" else None
    return {
        "text": displayable(reply.text),
        "note": "" if reply.ended else f"cut off at the limit of {dialogue.max_new_tokens} tokens",
        "tokens": token_rows(reply, kl) if dialogue.colour != "none" else None,
        "sums": _sums(reply, kl) if dialogue.colour != "none" else "",
        "verdict": verdict_text(dialogue.verdict(number, *place)) if dialogue.oracle else "",
    }


def token_rows(reply: Reply, kl: tuple[float, ...] | None = None) -> list[dict[str, Any]]:
    """For each token its text, its name, the numbers in words, and the level of its colour: of KL where it is given."""
    values, borders = (kl, KL_BORDERS) if kl else (reply.log_probs, LOG_PROB_BORDERS)
    rows = []
    for i, (piece, name, log_prob) in enumerate(zip(reply.pieces, reply.names, reply.log_probs, strict=True)):
        numbers = [_number(log_prob), f"{math.exp(log_prob):.3f}", *([f"{kl[i]:.3f}"] if kl else [])]
        row = {"text": displayable(piece), "name": displayable(name), "numbers": numbers}
        rows.append(row | {"level": level(values[i], borders)})
    return rows


def _sums(reply: Reply, kl: tuple[float, ...] | None) -> str:
    count = len(reply.log_probs)
    text = f"{count} token{'' if count == 1 else 's'}, the end included; log-prob {_number(sum(reply.log_probs))} nats"
    return text + (f"; KL to the reference {sum(kl):.2f} nats" if kl else "")


def _number(value: float) -> str:
    """Two digits, with a minus sign in front of what is not 0 in them."""
    return f"{round(value, 2) + 0.0:.2f}".replace("-", "−")


def legend(dialogue: Dialogue) -> dict[str, Any] | None:
    """What the colours mean, with units; None without colours."""
    if dialogue.colour == "none":
        return None
    law = f"softmax(logits / {dialogue.temperature:g})" if dialogue.temperature else "softmax(logits), greedy choice"
    title = {
        "log-prob": f"Probability of each token under {law}; the log-probs below are in nats",
        "kl": f"KL to the reference at each token, in nats, both under {law}",
    }
    return {"kind": dialogue.colour, "title": title[dialogue.colour], "rows": list(LEGENDS[dialogue.colour])}


def verdict_text(verdict: Verdict | None) -> str:
    """A verdict of the oracle in words.

    >>> verdict_text(None)
    'Oracle: not known, for this prompt is not one of the town.'
    """
    if verdict is None:
        return "Oracle: not known, for this prompt is not one of the town."
    parts = [f"{part} {getattr(verdict, part):.2g}" for part in ("helpful", "truthful", "harmless", "form")]
    reward = f"{verdict.reward:+.1f}".replace("-", "−")
    return f"Oracle: {reward} (from −3 to 3): {', '.join(parts)}, each from 0 to 1."


def kept_text(dialogue: Dialogue) -> str:
    """What became of the conversations before this one, in words; "" where nothing of them was kept.

    >>> from rlhf_lab import load_language_model
    >>> kept_text(Dialogue(load_language_model("tiny")))
    ''

    Chapter 08.
    """
    opinions = dialogue.opinions
    if opinions.store is None or not opinions.earlier:
        return opinions.unread
    number = "1 judgement from before is" if opinions.earlier == 1 else f"{opinions.earlier} judgements from before are"
    kept = f"{number} kept in {opinions.store.path}, with the prompts and replies that were judged."
    return f"{kept} What was not judged is not kept: this is a new conversation."


# ---- all the rest ----------------------------------------------------------------------------------------------


def conversation_state(dialogue: Dialogue) -> dict[str, Any]:
    """What is chosen, judged and offered, as JSON values.

    Example:
        >>> from rlhf_lab import load_language_model
        >>> conversation_state(Dialogue(load_language_model("tiny")))["stored"]
        0

    Chapter 08.
    """
    opinions, store = dialogue.opinions, dialogue.store
    return {
        "blind": dialogue.blind,
        "colour": dialogue.colour,
        "oracle": dialogue.oracle,
        "writing": False,
        "leaves": [list(turn.leaves) for turn in dialogue.turns],
        "goes_on": [list(turn.goes_on) for turn in dialogue.turns],
        "judged": [_judged(dialogue, number, turn) for number, turn in enumerate(dialogue.turns)],
        "offers": dialogue.offers(),
        "says": displayable(dialogue.says),
        "undoes": displayable(opinions.undoes),
        "kept": displayable(kept_text(dialogue)),
        "earlier": opinions.earlier or 0,
        "owner": displayable(json.dumps([dialogue.study, dialogue.rater])),
        "stored": opinions.stored,
        "unsaved": opinions.unsaved,
        "where": "" if store is None else displayable(str(store.path)),
        "count": len(dialogue.events()),
        "error": displayable(opinions.error),
    }


def _judged(dialogue: Dialogue, number: int, turn: Turn) -> dict[str, Any]:
    """What counts of the judgements of a turn, and of its replies in the order of the screen."""

    def of(form: str, place: Place) -> Any:
        return dialogue.judgement(form, number, place)

    def one(place: Place) -> dict[str, Any]:
        rating, edit, marks, comment = (of(form, place) for form in ("rate", "edit", "mark", "comment"))
        return {
            "score": None if rating is None else int(rating.score),
            "edited": None if edit is None else displayable(edit.edited),
            "spans": None if marks is None else [list(span) for span in marks.spans],
            "comment": None if comment is None else displayable(comment.text),
        }

    ranking = dialogue.judgement("rank", number)
    if not isinstance(ranking, Ranking) or len(ranking.replies) < len(turn.places):
        ranking = None  # a reply came after it
    tiers = ranking.tiers if ranking else ()
    ranks = {turn.places[i]: rank for rank, tier in enumerate(tiers, 1) for i in tier}
    columns = [[(column, i) for i in range(len(replies))] for column, replies in enumerate(turn.replies)]
    return {
        "replies": [[one(place) for place in places] for places in columns],
        "ranks": [[ranks.get(place) for place in places] for places in columns],
        "all_bad": ranking is not None and ranking.status == "all_bad",
        "choices": _choices(dialogue, number, turn),
    }


def _choices(dialogue: Dialogue, number: int, turn: Turn) -> list[dict[str, Any]]:
    """The comparisons of a turn that count, each of two replies in the order of the screen."""
    found = []
    for i, one in enumerate(turn.places):
        for other in turn.places[i + 1 :]:
            choice = dialogue.judgement("compare", number, one, other)
            if isinstance(choice, Choice):
                found.append({"left": list(one), "right": list(other), "outcome": choice.outcome})
    return found
