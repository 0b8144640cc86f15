"""A conversation with one or several models, and what the reader thinks of their replies; no widgets, no screen.

All models answer the same prompt, so that their replies can be compared. The reader picks the reply with which the
conversation goes on; until he does it is the one that stands first. What he judges becomes an event in the store at
once. Left out: editing what was said, system messages, other sampling than that of the rollouts. Chapter 08.
"""

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rlhf_lab.classroom.widgets.opinions import Opinions, open_store
from rlhf_lab.classroom.widgets.ordering import letter
from rlhf_lab.classroom.widgets.writing import (
    Pair,
    Reply,
    fit_prompt,
    misread,
    named_models,
    token_kls,
    write_reply,
)
from rlhf_lab.experience.rollouts import TEMPERATURE
from rlhf_lab.feedback.lines import short
from rlhf_lab.feedback.questions import CommentOn, Compare, EditReply, MarkWords, Question, Rank, Rate
from rlhf_lab.feedback.store import Store
from rlhf_lab.models.language_model import LanguageModel, check_same_tokens
from rlhf_lab.records import Conversation, Demonstration, Event, Message, Record
from rlhf_lab.training.randomness import generator_for
from rlhf_lab.worlds import town
from rlhf_lab.worlds.town.questions import FOLLOW_UPS, OTHER_PLACE

VERSION = "chat 1"  # in the events, so that the data of a faulty version can be found
COLOURS = ("none", "log-prob", "kl")
OFFERED = ("ask", "story", "unsafe", "translate")  # skills whose prompts are one short message
Place = tuple[int, int]  # of a reply in its turn: column on the screen and alternative, both from 0


@dataclass(frozen=True)
class Turn:
    """One message of the reader and what was replied.

    Attributes:
        text: the message.
        prompt: what all models were given: the conversation so far, without the turns that no longer fit.
        dropped: how many of the oldest turns are not in the prompt.
        replies: for each column its alternatives, in the order in which they were written.
        leaves: for each column the alternative on the screen.
        column: the column with whose reply the conversation goes on.
        taken: the reply with which it went on; None in the last turn.
        warning: what the reader should know about the message.
    """

    text: str
    prompt: Conversation
    dropped: int
    replies: tuple[tuple[Reply, ...], ...]
    leaves: tuple[int, ...]
    column: int = 0
    taken: Place | None = None
    warning: str = ""

    @property
    def goes_on(self) -> Place:
        """The reply that is, or will be, in the prompts of the later turns."""
        return self.taken or (self.column, self.leaves[self.column])

    @property
    def places(self) -> list[Place]:
        """All replies, column by column."""
        return [(column, i) for column, replies in enumerate(self.replies) for i in range(len(replies))]


class Dialogue:
    """A conversation with one or several models, side by side.

    Methods that name a reply take `turn`, `column` (as on the screen) and `alternative`, all counted from 0. What
    cannot be done raises a ValueError and changes nothing. A judgement that cannot be stored is kept in memory;
    `opinions.error` says why, and `save` tries again.

    Args:
        models: one model, or {name: model} in the order on the screen.
        reference: what KL is measured to; with the tokens of every model.
        store: where judgements go: a Store, the path of one, True for that of the reader, None for memory only.
        study: name of the study in the events.
        rater: who judges.
        blind: show letters in a shuffled order until `reveal`.
        temperature: of the sampling, at least 0.
        max_new_tokens: limit of a reply in tokens.
        seed: of all sampling and of the order. A reply depends on the seed, its prompt, the number of its turn, its
            model and the number of the alternative, and on nothing else.
        clock: seconds, from which durations are taken.

    Attributes:
        turns: what was said so far.
        blind: whether names are hidden now.
        colour: by what tokens are coloured, one of `COLOURS`.
        oracle: whether verdicts are shown.
        says: what happened last.
        opinions: what was judged; its `error` says why something is not on the disk.

    Raises:
        ValueError: no model, something else than models or names, a reference with other tokens, a limit that leaves
            no room for a prompt, an impossible temperature.

    Example:
        >>> from rlhf_lab import load_language_model
        >>> dialogue = Dialogue(load_language_model("tiny"), max_new_tokens=8)
        >>> dialogue.say("Where is the zoo?")
        >>> dialogue.rate(0, 0, 0, 4)
        >>> [event.record.score for event in dialogue.events()], len(dialogue.conversation())
        ([4.0], 2)

    Chapter 08.
    """

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
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.models = named_models(models)
        _check_settings(self.models, reference, temperature, max_new_tokens, study, rater)
        self.reference, self.store = reference, open_store(store)
        self.study, self.rater, self.temperature, self.max_new_tokens = study, rater, temperature, max_new_tokens
        self.oracle, self.colour, self.says = bool(show_oracle), "none", ""
        self._seed, self._clock, self._start_blind = seed, clock, bool(blind)
        self.opinions, self._round = Opinions(self.store, study, VERSION, rater), -1
        self.restart()
        self.says = ""

    # ---- talking -----------------------------------------------------------------------------------------------

    def restart(self) -> None:
        """Begin a new conversation; blind models are shuffled anew. Judgements stay."""
        self._round += 1
        order = list(range(len(self.models)))
        if self._start_blind:
            random.Random(f"{self._seed}/blind/{self._round}").shuffle(order)
        self._order, self.blind = tuple(order), self._start_blind
        self.turns: tuple[Turn, ...] = ()
        self._kls: dict[tuple[int, Place], tuple[float, ...]] = {}
        self.opinions.settle()
        self.colour = "none" if self.blind and self.colour == "kl" else self.colour
        self.says = "A new conversation."

    def say(self, text: str) -> None:
        """Write to the models; each replies once. Where the context is full the oldest turns are dropped.

        Raises:
            ValueError: the message is empty, or too long to fit even alone.
        """
        models = list(self.models.values())
        dropped = self.turns[-1].dropped if self.turns else 0
        prompt, dropped = fit_prompt(models, self._pairs(), text, self.max_new_tokens, dropped)
        number = len(self.turns)
        replies = [self._write(number, column, 0, prompt) for column in range(len(models))]
        shown = tuple((replace(reply, made=self._clock()),) for reply in replies)
        before = self.turns
        if before:
            before = (*before[:-1], replace(before[-1], taken=before[-1].goes_on))
        self.turns = (*before, Turn(text, prompt, dropped, shown, (0,) * len(models), warning=misread(models, text)))
        self.says = self._replied(number, range(len(models)))

    def again(self, turn: int, column: int) -> None:
        """Let a model reply once more; the earlier replies stay as alternatives."""
        there = self._turn(turn)
        _index("column", column, len(there.replies))
        count = len(there.replies[column])
        reply = replace(self._write(turn, column, count, there.prompt), made=self._clock())
        replies = _with(there.replies, column, (*there.replies[column], reply))
        self._change(turn, replace(there, replies=replies, leaves=_with(there.leaves, column, count)))
        self.says = self._replied(turn, [column])

    def leaf(self, turn: int, column: int, alternative: int) -> None:
        """Put another alternative of a column on the screen."""
        there, _ = self._reply(turn, column, alternative)
        self._change(turn, replace(there, leaves=_with(there.leaves, column, alternative)))
        count = len(there.replies[column])
        self.says = f"{self.label(column)}: reply {alternative + 1} of {count}. {self._text(turn, column)}"

    def go_on(self, column: int) -> None:
        """Let the conversation go on with what a column of the last turn shows.

        Raises:
            ValueError: nothing was said yet, or there is no such column.
        """
        if not self.turns:
            raise ValueError("nothing was said yet; write a message first")
        last = self.turns[-1]
        self._change(len(self.turns) - 1, replace(last, column=_index("column", column, len(last.replies))))
        self.says = f"The conversation goes on with the reply of {self.label(column)}."

    def reveal(self) -> None:
        """Show which model is which, for the rest of this conversation."""
        self.blind = False
        self.says = "; ".join(f"{letter(i)} is {name}" for i, name in enumerate(self._names)) + "."

    # ---- what is known of a reply ------------------------------------------------------------------------------

    @property
    def _names(self) -> list[str]:
        """Of the models, in the order on the screen."""
        names = list(self.models)
        return [names[i] for i in self._order]

    def label(self, column: int) -> str:
        """What a column is called on the screen: a letter while blind, else the name of its model."""
        return letter(column) if self.blind else self._names[column]

    def verdict(self, turn: int, column: int, alternative: int) -> town.Verdict | None:
        """What the oracle says of a reply; None where the prompt is not the town's, because there nobody knows."""
        there, reply = self._reply(turn, column, alternative)
        return town.score_replies([there.prompt], [reply.text], [reply.ended])[0]

    def colour_by(self, colour: str) -> None:
        """Choose by what tokens are coloured.

        Raises:
            ValueError: no such colour; KL without a reference; KL while blind, for it is 0 for the reference itself
                and would name it.
        """
        if colour not in COLOURS:
            raise ValueError(f"colour is {short(colour)}; expected one of {COLOURS}")
        if colour == "kl" and self.reference is None:
            raise ValueError("there is no reference, so there is no KL; give one: Chat(..., reference=sft)")
        if colour == "kl" and self.blind:
            raise ValueError("KL is shown after revealing the models: that of the reference to itself is 0")
        self.colour = colour
        self.says = {"none": "Tokens without colour.", "log-prob": "Tokens by log-prob.", "kl": "Tokens by KL."}[colour]

    def show_oracle(self, shown: bool) -> None:
        """Show or hide what the oracle says of each reply."""
        self.oracle = bool(shown)
        self.says = f"The oracle's verdicts are {'shown' if shown else 'hidden'}."

    def kl(self, turn: int, column: int, alternative: int) -> tuple[float, ...]:
        """Exact KL to the reference of each token of a reply, in nats; see `token_kls`.

        Raises:
            ValueError: there is no reference.
        """
        if self.reference is None:
            raise ValueError("there is no reference, so there is no KL; give one: Chat(..., reference=sft)")
        _, reply = self._reply(turn, column, alternative)
        key = (turn, (column, alternative))
        if key not in self._kls:
            lm = self.models[self._names[column]]
            self._kls[key] = token_kls(lm, self.reference, reply.batch, self.temperature)
        return self._kls[key]

    def forgotten(self, turn: int) -> str:
        """Which turns the models no longer see from this one on, in words; "" where none was dropped here."""
        before = self.turns[turn - 1].dropped if turn else 0
        gone = range(before, self._turn(turn).dropped)
        if not gone:
            return ""
        named = " and ".join(f"turn {i + 1} (“{_clip(self.turns[i].text)}”)" for i in gone)
        return f"The context is full. From here on the models no longer see {named}, nor what was replied to it."

    def offers(self) -> list[str]:
        """Messages to try: prompts of the town at the start, follow-ups where the town knows some, else nothing."""
        if not self.turns:
            drawn = town.prompts("train", len(OFFERED), self._seed_number(), OFFERED)
            return [prompt.conversation[0].content for prompt in drawn]
        last = town.recognise(self.turns[-1].prompt)
        if last is None or not last.attribute or last.skill == "translate":
            return []
        others = [text for attribute, text in FOLLOW_UPS.items() if attribute != last.attribute]
        place = next(place for place in ("museum", "library") if place != last.place)
        return [*others[:2], OTHER_PLACE.format(place=place)]

    # ---- judging -----------------------------------------------------------------------------------------------

    def rate(self, turn: int, column: int, alternative: int, score: int) -> None:
        """Give a reply a whole number from 1 to 5."""
        self._judge_reply(turn, column, alternative, Rate, score, f"{score} of 5")

    def edit(self, turn: int, column: int, alternative: int, text: str) -> None:
        """Say how a reply should have been."""
        self._judge_reply(turn, column, alternative, EditReply, text, "the better text")

    def mark(self, turn: int, column: int, alternative: int, spans: Sequence[Sequence[int]]) -> None:
        """Mark the wrong words of a reply, as (start, end) in characters; none of them: nothing is wrong."""
        self._judge_reply(turn, column, alternative, MarkWords, spans, "the marks")

    def comment(self, turn: int, column: int, alternative: int, text: str) -> None:
        """Say something about a reply in words."""
        self._judge_reply(turn, column, alternative, CommentOn, text, "the comment")

    def compare(self, turn: int, left: Sequence[int], right: Sequence[int], outcome: int) -> None:
        """Say which of two replies of a turn is better, each given as (column, alternative): 1 left, 0 a tie, -1 right.

        In the record the left one is the one that stands further left, or was written earlier, and it says which model
        wrote which.
        """
        there = self._turn(turn)
        given = [self._place(there, place) for place in (left, right)]
        places = sorted(given)
        if places[0] == places[1]:
            raise ValueError("left and right are the same reply; choose two")
        texts = [there.replies[column][i].text for column, i in places]
        question = Compare(there.prompt, *texts, *(self._names[column] for column, _ in places))
        answer = question.check(outcome)
        answer = -answer if answer and places != given else answer
        what = f"{self._called(*places[0 if answer == 1 else 1])} is better" if answer else "a tie"
        self._judge(question, answer, ("compare", turn, *places), places, what)

    def rank(self, turn: int, tiers: Sequence[Sequence[Sequence[int]]]) -> None:
        """Put all replies of a turn in order: tiers of (column, alternative), the best first; one of several is a tie.

        Raises:
            ValueError: a reply without a place, or with two.
        """
        there = self._turn(turn)
        chosen = [[self._place(there, place) for place in tier] for tier in tiers]
        if sorted(place for tier in chosen for place in tier) != there.places:
            raise ValueError(f"the order must hold each of the {len(there.places)} replies once; give each a rank")
        order = [[there.places.index(place) for place in tier] for tier in chosen]
        self._judge(self._ranked(there), order, ("rank", turn), there.places, f"the order of turn {turn + 1}")

    def all_bad(self, turn: int) -> None:
        """Say that no reply of a turn is acceptable."""
        there = self._turn(turn)
        question = self._ranked(there)
        record = question.all_bad(self.rater)
        self._add(record, ("rank", turn), there.places, f"all replies of turn {turn + 1} are bad")

    def undo(self) -> None:
        """Take the last judgement of this conversation back; what it had replaced counts again.

        Raises:
            ValueError: there is none.
        """
        self.says = f"Took back: {self.opinions.undo()}."

    def save(self) -> None:
        """Store what is not on the disk yet; `opinions.error` says why it cannot be."""
        self.opinions.save()

    def judgement(self, form: str, turn: int, *places: Place) -> Record | None:
        """What counts of a form ("rate", "edit", "mark", "comment" of one reply, "compare" of two, "rank" of all)."""
        return self.opinions.latest((form, turn, *sorted(places)))

    # ---- reading -----------------------------------------------------------------------------------------------

    def events(self) -> list[Event]:
        """The judgements of this dialogue that count."""
        return self.opinions.standing()

    def conversation(self) -> Conversation:
        """What was said, with the replies with which it went on; the dropped turns too."""
        return tuple(m for user, reply in self._pairs() for m in (Message("user", user), Message("assistant", reply)))

    def transcript(self) -> list[Demonstration]:
        """For each turn what the models were given, and the reply with which the conversation went on."""
        pairs = zip(self.turns, self._pairs(), strict=True)
        return [Demonstration(turn.prompt, reply) for turn, (_, reply) in pairs]

    def __repr__(self) -> str:
        return f"Dialogue({', '.join(self.models)}; {len(self.turns)} turns)"

    # ---- inside ------------------------------------------------------------------------------------------------

    def _pairs(self) -> list[Pair]:
        return [(turn.text, turn.replies[turn.goes_on[0]][turn.goes_on[1]].text) for turn in self.turns]

    def _write(self, turn: int, column: int, alternative: int, prompt: Conversation) -> Reply:
        model = self._order[column]
        stream = generator_for(self._seed, "chat", self._round, turn, model, alternative)
        lm = list(self.models.values())[model]
        return write_reply(
            lm, prompt, max_new_tokens=self.max_new_tokens, temperature=self.temperature, generator=stream
        )

    def _judge_reply(self, turn: int, column: int, alternative: int, form: type, answer: object, what: str) -> None:
        there, reply = self._reply(turn, column, alternative)
        question = form(there.prompt, reply.text)
        place = (column, alternative)
        self._judge(question, answer, (question.form, turn, place), [place], f"{what} for {self._called(*place)}")

    def _judge(self, question: Question, answer: object, key: tuple, places: Sequence[Place], what: str) -> None:
        record = question.record(answer, self.rater)
        if record is None:
            raise ValueError("there is no answer yet; give one")
        self._add(record, key, places, what)

    def _add(self, record: Record, key: tuple, places: Sequence[Place], what: str) -> None:
        """Put a judgement in place of the earlier one about the same, and store it."""
        turn = self.turns[key[1]]
        names = "+".join(f"{self._names[c]}{f'.{i + 1}' if len(turn.replies[c]) > 1 else ''}" for c, i in places)
        seen = max(turn.replies[column][i].made for column, i in places)
        self.opinions.add(
            record,
            key,
            what,
            question=f"chat/{names}/{key[1] + 1}",
            duration=max(0.0, self._clock() - seen),
            shown=range(len(places)),
            note="blind" if self.blind else "",
        )
        self.says = f"Judged: {what}."

    def _ranked(self, turn: Turn) -> Rank:
        if len(turn.places) < 2:
            raise ValueError("there is one reply only; ask for another one to compare it with")
        return Rank(turn.prompt, tuple(turn.replies[column][i].text for column, i in turn.places))

    def _turn(self, turn: int) -> Turn:
        return self.turns[_index("turn", turn, len(self.turns))]

    def _reply(self, turn: int, column: int, alternative: int) -> tuple[Turn, Reply]:
        there = self._turn(turn)
        column, alternative = self._place(there, (column, alternative))
        return there, there.replies[column][alternative]

    def _place(self, turn: Turn, place: Sequence[int]) -> Place:
        if isinstance(place, str) or not isinstance(place, Sequence) or len(place) != 2:
            raise ValueError(f"place is {short(place)}; expected (column, alternative)")
        column = _index("column", place[0], len(turn.replies))
        return column, _index("alternative", place[1], len(turn.replies[column]))

    def _change(self, number: int, turn: Turn) -> None:
        self.turns = _with(self.turns, number, turn)

    def _text(self, turn: int, column: int) -> str:
        there = self.turns[turn]
        return there.replies[column][there.leaves[column]].text or "(an empty reply)"

    def _replied(self, turn: int, columns: Sequence[int]) -> str:
        return " ".join(f"{self.label(column)} wrote: {self._text(turn, column)}" for column in columns)

    def _called(self, column: int, alternative: int) -> str:
        """A reply in the words of the screen."""
        several = any(len(turn.replies[column]) > 1 for turn in self.turns)
        return f"{self.label(column)}, reply {alternative + 1}" if several else self.label(column)

    def _seed_number(self) -> int:
        return int(self._seed) + self._round


# ---- checks ----------------------------------------------------------------------------------------------------


def _check_settings(
    models: dict[str, LanguageModel],
    reference: LanguageModel | None,
    temperature: float,
    max_new_tokens: int,
    study: str,
    rater: str,
) -> None:
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature is {temperature}; expected a number >= 0 (0 is greedy)")
    room = min(lm.max_length for lm in models.values())
    if not 1 <= max_new_tokens < room:
        raise ValueError(
            f"max_new_tokens is {max_new_tokens}; expected at least 1, and less than the context of {room} tokens"
        )
    for name, text in (("study", study), ("rater", rater)):
        if not isinstance(text, str):
            raise ValueError(f"{name} is {type(text).__name__}; expected text")
    if reference is not None:
        for name, lm in models.items():
            remedy = "give a reference with its tokenizer, or none"
            check_same_tokens(lm.tokenizer, reference.tokenizer, f"the reference (beside {name!r:.40})", remedy)


def _index(name: str, value: object, count: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < count:
        raise ValueError(f"{name} is {short(value)}; expected a whole number from 0 to {count - 1}")
    return value


def _with(values: tuple, index: int, value: object) -> tuple:
    return (*values[:index], value, *values[index + 1 :])


def _clip(text: str, most: int = 40) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
