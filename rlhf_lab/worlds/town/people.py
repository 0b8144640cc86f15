"""Simulated people who rate and compare, and colleagues who answer every form of question, each with stated vices.

All of them go by the utility of a `Rater`, which is the true reward and what he likes beside it. Ties follow Davidson's
law exactly and, without ties, choices follow Bradley-Terry, so what a model can learn from them is known. Everything
comes back as an `Event` whose record is marked as simulated. Left out on purpose: people who change over time.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from rlhf_lab.feedback.questions import (
    CommentOn,
    Compare,
    CompareSegments,
    EditReply,
    MarkWords,
    Question,
    Rank,
    Rate,
    question_ids,
)
from rlhf_lab.records import Choice, Event, PromptLike, Rating, Segment, SegmentChoice, as_conversation
from rlhf_lab.training.configs import from_zero, require, whole_number
from rlhf_lab.worlds.town.oracle import score
from rlhf_lab.worlds.town.questions import town_prompt
from rlhf_lab.worlds.town.raters import (
    CAREFUL,
    HURRIED,
    INATTENTIVE,
    MALICIOUS,
    READING,
    SPAMMER,
    Rater,
    event_id,
    median_seconds,
    simulated_event,
    words_in,
)
from rlhf_lab.worlds.town.writers import Commenter, Editor, Marker

WATCHING = 10.0  # steps of a segment that are watched in a second at the speed READING
WORST, BEST = -3.0, 3.0  # true reward


@dataclass(frozen=True)
class ScaleRater:
    """A simulated person who gives a reply a number, on a scale of his own.

        x = 1 + (points - 1) (utility + 3) / 6          the scale that all should use, for rewards from -3 to 3
        score = round(middle + stretch (x - middle) + bias + noise z), from 1 to points,    z standard normal

    Attributes:
        judge: whose name, utility, attention and speed these are; where he does not read he gives `usual`, so that an
            attention of 0 is a straight-liner. His `noise` and `left` are of other forms.
        points: the highest score, 5 or 7 as a rule; the lowest is 1.
        bias: points that he gives too many.
        stretch: below 1 he keeps to the middle of the scale (central tendency), above 1 to its ends; at least 0.
        noise: standard deviation of his mood, in points, at least 0.
        usual: the score that he gives unread.

    Raises:
        ValueError: a number that cannot be.

    Chapter 08.
    """

    judge: Rater = CAREFUL
    points: int = 5
    bias: float = 0.0
    stretch: float = 1.0
    noise: float = 0.5
    usual: int = 4

    def __post_init__(self) -> None:
        from_zero(self, "stretch", "noise")
        require(math.isfinite(self.bias), "bias", self.bias, "points, a finite number")
        whole_number("points", self.points, least=2)
        whole_number("usual", self.usual, least=1)
        require(self.usual <= self.points, "usual", self.usual, f"a score, from 1 to {self.points}")

    def mean(self, utility: float) -> float:
        """The score before noise and rounding."""
        middle = (1 + self.points) / 2
        fair = 1 + (self.points - 1) * (utility - WORST) / (BEST - WORST)
        return middle + self.stretch * (fair - middle) + self.bias

    def rate(self, prompt: PromptLike, reply: str, generator: torch.Generator, start: float = 0.0) -> Event:
        """A score of the reply.

        Args:
            prompt: of the town.
            reply: any text.
            generator: of what is drawn: whether he reads, and his mood.
            start: when the question was seen first, in seconds by his clock.

        Returns:
            An Event whose record is a Rating from 1 to `points`.

        Raises:
            ValueError: the prompt is not the town's.

        Example:
            >>> ScaleRater(noise=0.0).rate("Where is the zoo?", "Go away.", torch.Generator()).record.score
            2.0
        """
        asked = town_prompt(as_conversation(prompt))
        name = event_id(self, (asked.conversation, reply), generator)
        reads = bool(torch.rand((), generator=generator) < self.judge.attention)
        mood = self.noise * float(torch.randn((), generator=generator, dtype=torch.float64))
        number = self.mean(self.judge.utility(score(asked, reply), reply)) + mood if reads else self.usual
        given = min(max(math.floor(number + 0.5), 1), self.points)
        record = Rating(asked.conversation, reply, given, 1, self.points, self.judge.name, True)
        seconds = median_seconds(self.judge.speed, reads * words_in(asked.conversation, [reply]))
        return simulated_event(name, record, seconds, start=start)


@dataclass(frozen=True)
class Comparer:
    """A simulated person who says which of two is better, or that neither is.

        P(left) : P(tie) : P(right) = exp(d / 2) : nu : exp(-d / 2),    d = (u_left - u_right) / noise

    (Davidson 1970). Where he does not attend, d is 0. With nu = 0 there are no ties and this is Bradley-Terry.

    Attributes:
        judge: whose name, utility, noise, attention and speed these are; `left` is the utility of standing on the left
            of the screen. For segments the noise is in units of their return.
        nu: how easily he calls a tie, at least 0; of two that are worth the same he calls it with nu / (nu + 2).

    Raises:
        ValueError: nu is no finite number from 0 on.

    Chapter 08.
    """

    judge: Rater = CAREFUL
    nu: float = 0.5

    def __post_init__(self) -> None:
        from_zero(self, "nu")

    def law(self, difference: float) -> tuple[float, float, float]:
        """Probabilities of outcome 1 (left is better), 0 and -1, for the utility of left less that of right.

        The sides of the screen are drawn; left and right are those of the record.

        Example:
            >>> [round(p, 3) for p in Comparer(Rater(noise=1.0), nu=1.0).law(0.0)]
            [0.333, 0.333, 0.333]
        """
        sides = (difference + self.judge.left, difference - self.judge.left)
        laws = [self._seen(side) for side in sides]
        attentive = self.judge.attention
        weights = [(attentive / 2, laws[0]), (attentive / 2, laws[1]), (1 - attentive, self._seen(0.0))]
        left, tie, right = (sum(weight * law[i] for weight, law in weights) for i in range(3))
        return left, tie, right

    def _seen(self, difference: float) -> tuple[float, float, float]:
        """The law for a known order on the screen. Divided by its largest term, lest it overflows."""
        half = abs(difference) / self.judge.noise / 2
        better, tie, worse = 1.0, self.nu * math.exp(-half), math.exp(-2 * half)
        total = better + tie + worse
        law = (better / total, tie / total, worse / total)
        return law if difference >= 0 else law[::-1]

    def compare(
        self,
        prompt: PromptLike,
        left: str,
        right: str,
        generator: torch.Generator,
        start: float = 0.0,
        sources: tuple[str, str] = ("", ""),
    ) -> Event:
        """Which of two replies is better.

        Args:
            prompt: of the town.
            left, right: two texts, the sides of the record; those of the screen are drawn.
            generator: of what is drawn: sides, attention, outcome.
            start: when the question was seen first, in seconds by his clock.
            sources: who wrote left and right; kept in the record.

        Returns:
            An Event whose record is a Choice.

        Raises:
            ValueError: the prompt is not the town's.

        Example:
            >>> good, bad = "The zoo is on Church Street.", "Now go away."
            >>> Comparer().compare("Where is the zoo?", good, bad, torch.Generator()).record.outcome
            1
        """
        asked = town_prompt(as_conversation(prompt))
        worth = [self.judge.utility(score(asked, reply), reply) for reply in (left, right)]
        looking = words_in(asked.conversation, [left, right]) / READING
        what = (asked.conversation, left, right, sources)
        name, outcome, shown, seconds = self._choose(worth[0] - worth[1], what, looking, generator)
        record = Choice(asked.conversation, left, right, outcome, *sources, self.judge.name, True)
        return simulated_event(name, record, seconds, start=start, shown=shown)

    def compare_segments(
        self,
        prompt: PromptLike,
        left: Segment,
        right: Segment,
        returns: tuple[float, float],
        generator: torch.Generator,
        start: float = 0.0,
    ) -> Event:
        """Which of two pieces of behaviour is better, by returns that he feels and is not told.

        Args:
            prompt: what is asked, for example "Which one balances?".
            left, right: the sides of the record.
            returns: of left and right, undiscounted; `experience.segments` keeps them beside the segments.
            generator, start: as in `compare`.

        Returns:
            An Event whose record is a SegmentChoice.

        Source: Christiano et al. 2017, section 2.2.3, with nu = 0 and an attention of 0.9.
        """
        difference = (-1 if self.judge.malicious else 1) * (returns[0] - returns[1])
        conversation, steps = as_conversation(prompt), len(left.actions) + len(right.actions)
        what = (conversation, left, right)
        name, outcome, shown, seconds = self._choose(difference, what, steps / WATCHING, generator)
        record = SegmentChoice(conversation, left, right, outcome, self.judge.name, True)
        return simulated_event(name, record, seconds, start=start, shown=shown)

    def _choose(
        self, difference: float, what: object, looking: float, generator: torch.Generator
    ) -> tuple[str, int, tuple[int, ...], float]:
        """(id of the event, outcome, order on the screen, median of the seconds); `looking` in seconds, at READING."""
        name = event_id(self, what, generator)
        shown = tuple(torch.randperm(2, generator=generator).tolist())
        attends = bool(torch.rand((), generator=generator) < self.judge.attention)
        side = self.judge.left if shown[0] == 0 else -self.judge.left
        left, tie, _ = self._seen(difference + side if attends else 0.0)
        draw = float(torch.rand((), generator=generator, dtype=torch.float64))
        outcome = 1 if draw < left else 0 if draw < left + tie else -1
        return name, outcome, shown, median_seconds(self.judge.speed, acting=attends * looking)


@dataclass(frozen=True)
class Colleague:
    """A simulated person who answers every form of question.

    Attributes:
        vice: what is to be known of him, one sentence.
        ranks, rates, compares, segments, edits, marks, comments: how he does it; all have his name.

    Raises:
        ValueError: parts with different names.

    Chapter 08.
    """

    vice: str
    ranks: Rater
    rates: ScaleRater = field(default_factory=ScaleRater)
    compares: Comparer = field(default_factory=Comparer)
    segments: Comparer = field(default_factory=Comparer)
    edits: Editor = field(default_factory=Editor)
    marks: Marker = field(default_factory=Marker)
    comments: Commenter = field(default_factory=Commenter)

    def __post_init__(self) -> None:
        judges = (self.ranks, self.rates.judge, self.compares.judge, self.segments.judge)
        names = {person.name for person in (*judges, self.edits, self.marks, self.comments)}
        require(len(names) == 1, "name", sorted(names), "the same in all parts")

    @property
    def name(self) -> str:
        """Who it is, as in the records."""
        return self.ranks.name

    def answer(
        self,
        question: Question,
        generator: torch.Generator,
        start: float = 0.0,
        returns: Mapping[Segment, float] | None = None,
    ) -> Event:
        """What this person says to one question.

        Args:
            question: of any form, about the town; or about segments.
            generator: of what is drawn.
            start: when it was seen first, in seconds by the person's clock.
            returns: of every segment that is asked about.

        Raises:
            ValueError: a prompt that is not the town's, a segment without a return, or no question.

        Example:
            >>> question = MarkWords("Where is the zoo?", "The zoo is on Oak Street.")
            >>> COLLEAGUES[0].answer(question, torch.Generator()).record.spans
            ((14, 24),)
        """
        prompt = getattr(question, "prompt", ())
        match question:
            case Rank(replies=replies):
                asked = town_prompt(prompt)
                verdicts = [score(asked, reply) for reply in replies]
                return self.ranks.rank(prompt, replies, verdicts, generator, start)
            case Rate(reply=reply, high=high):
                usual = min(self.rates.usual, high)
                return replace(self.rates, points=high, usual=usual).rate(prompt, reply, generator, start)
            case EditReply(reply=reply):
                return self.edits.edit(prompt, reply, generator, start)
            case MarkWords(reply=reply):
                return self.marks.mark(prompt, reply, generator, start)
            case CommentOn(reply=reply):
                return self.comments.comment(prompt, reply, generator, start)
            case Compare(left=left, right=right):
                sources = (question.left_source, question.right_source)
                return self.compares.compare(prompt, left, right, generator, start, sources)
            case CompareSegments(left=left, right=right):
                known = returns or {}
                if not {left, right} <= known.keys():
                    raise ValueError(f"returns holds {len(known)} segments, not both; expected each with its return")
                both = (known[left], known[right])
                return self.segments.compare_segments(prompt, left, right, both, generator, start)
        raise ValueError(f"question is {question!r:.60}; expected one of feedback.questions")

    def answer_all(
        self,
        questions: Sequence[Question],
        generator: torch.Generator,
        study: str = "",
        start: float = 0.0,
        returns: Mapping[Segment, float] | None = None,
    ) -> list[Event]:
        """The questions of a study one after the other, each seen when the one before it was answered.

        Args:
            questions, generator, start, returns: as in `answer`.
            study: put into each event, beside the id of the question in it.

        Example:
            >>> questions = [CommentOn("Where is the zoo?", "Now go away."), Rate("Where is the zoo?", "Now go away.")]
            >>> events = COLLEAGUES[0].answer_all(questions, torch.Generator(), study="08")
            >>> [event.study for event in events], events[1].time > events[0].time
            (['08', '08'], True)
        """
        events: list[Event] = []
        for question, name in zip(questions, question_ids(questions), strict=True):
            event = self.answer(question, generator, events[-1].time if events else start, returns)
            events.append(replace(event, study=study, question=name))
        return events


def _colleague(vice: str, judge: Rater, *, scale: dict, edits: dict, marks: dict, comments: dict) -> Colleague:
    """One whose parts share a judge; the spammer reads nothing, but for the place on the screen."""
    who = {"name": judge.name, "speed": judge.speed}
    unread = replace(judge, attention=0.0) if judge.left else judge
    return Colleague(
        vice,
        ranks=judge,
        rates=ScaleRater(unread, **scale),
        compares=Comparer(judge),
        segments=Comparer(judge, nu=0.0),
        edits=Editor(**who | edits),
        marks=Marker(**who | marks),
        comments=Commenter(**who | comments),
    )


COLLEAGUES = (
    Colleague("reads everything and goes by the true reward, with little noise", CAREFUL),
    _colleague(
        "is three times as fast, is noisy, keeps to the middle of the scale and misses half of the flaws",
        HURRIED,
        scale={"stretch": 0.5, "noise": 1.0},
        edits={"effort": 0.5},
        marks={"finds": 0.5, "whole_sentences": True},
        comments={"notices": 0.5},
    ),
    _colleague(
        "does not read two questions of five, and then answers at random or as always",
        INATTENTIVE,
        scale={"usual": 4},
        edits={"effort": 0.6},
        marks={"finds": 0.6, "false_marks": 0.05},
        comments={"notices": 0.6},
    ),
    _colleague(
        "takes what stands on the left, gives the highest score, changes and marks nothing and writes spam",
        SPAMMER,
        scale={"usual": 5},
        edits={"effort": 0.0},
        marks={"finds": 0.0},
        comments={"spam": 1.0},
    ),
    _colleague(
        "prefers what is worse, makes replies worse, marks right words and writes insults",
        MALICIOUS,
        scale={},
        edits={"vandal": 1.0},
        marks={"finds": 0.0, "false_marks": 0.3},
        comments={"hostile": 1.0},
    ),
    _colleague(
        "likes long replies, gives half a point too many and edits nothing but the manner",
        Rater("length-lover", taste="longer", taste_weight=3.0),
        scale={"bias": 0.5},
        edits={"style_only": True},
        marks={},
        comments={},
    ),
)
