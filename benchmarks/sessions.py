"""The recorded session that chapter 08 starts from: six simulated colleagues answer the questions of one study.

    python run.py bench sessions                   write data/sessions/human_feedback.jsonl, the same in every run

Questions of all seven forms about twelve prompts of the town, in one order for everybody. Some are asked twice: ratings
as they were, comparisons with the two replies exchanged. Replies are by the authors `WEB` and
`DEMONSTRATOR`, so they are of any quality. Nobody was asked: each record says that it is simulated.
"""

from collections.abc import Mapping
from pathlib import Path
from random import Random

import gymnasium

from rlhf_lab.feedback.events import write_events
from rlhf_lab.feedback.questions import (
    CommentOn,
    Compare,
    CompareSegments,
    EditReply,
    MarkWords,
    Question,
    Rank,
    Rate,
)
from rlhf_lab.records import Event, Segment
from rlhf_lab.training.randomness import generator_for
from rlhf_lab.worlds.town.oracle import score
from rlhf_lab.worlds.town.people import COLLEAGUES
from rlhf_lab.worlds.town.questions import Prompt, prompts
from rlhf_lab.worlds.town.skills import DEMONSTRATOR, WEB, write_reply

STUDY = "human_feedback"
RECORDED = Path(__file__).resolve().parents[1] / "data" / "sessions" / f"{STUDY}.jsonl"
SKILLS = ("story", "unsafe", "summarise", "ask")  # what a reader can judge without Chinese
PROMPTS, REPLIES = 12, 4
STEPS = 24  # of a segment that does not fall
ASKED = "Which one keeps the pole up?"


def replies_to(prompt: Prompt, random: Random) -> tuple[str, ...]:
    """Four different replies by two authors in turn, not all of the same true reward."""
    found: dict[str, float] = {}
    while len(found) < REPLIES or len(set(found.values())) < 2:
        reply = write_reply(prompt, (WEB, DEMONSTRATOR)[len(found) % 2], random)
        found[reply] = score(prompt, reply).reward
        if len(found) > REPLIES:
            found.pop(next(iter(found)))
    return tuple(random.sample(list(found), REPLIES))


def balance(gain: float, seed: int) -> Segment:
    """CartPole, pushed to the side to which the pole leans and turns; with a gain of 0 always to the right."""
    env = gymnasium.make("CartPole-v1")
    state, _ = env.reset(seed=seed)
    seen, done, over = [state], [], False
    while len(done) < STEPS and not over:
        done.append(int(gain == 0 or state[2] + gain * state[3] > 0))
        state, _, over, _, _ = env.step(done[-1])
        seen.append(state)
    env.close()
    rows = [tuple(round(float(x), 3) for x in row) for row in seen]
    return Segment("CartPole-v1", tuple(rows), tuple((action,) for action in done))


def segments() -> dict[Segment, float]:
    """Four pieces of behaviour and what they earned, one reward a step."""
    pieces = [balance(1.0, 0), balance(0.0, 1), balance(-0.02, 0), balance(1.0, 3)]
    return {piece: float(len(piece.actions)) for piece in pieces}


def questions() -> list[Question]:
    """All questions in the order of the session; the first dozen shows every form."""
    random = Random("chapter 08")
    asked = [p for p in prompts("train", 60, seed=8, skills=SKILLS) if not p.held_out]
    chosen = list({p.conversation: p for p in asked}.values())[:PROMPTS]
    some = [(p.conversation, replies_to(p, random)) for p in chosen]
    rank: list[Question] = [Rank(x, ys) for x, ys in some]
    compare: list[Question] = [Compare(x, ys[i], ys[i + 1]) for i in (0, 2) for x, ys in some][:18]
    swapped: list[Question] = [Compare(q.prompt, q.right, q.left) for q in compare[:6] if isinstance(q, Compare)]
    rate: list[Question] = [Rate(x, ys[i]) for i in (1, 3) for x, ys in some][:20]
    mark: list[Question] = [MarkWords(x, ys[2]) for x, ys in some[:4]]
    edit: list[Question] = [EditReply(x, ys[2]) for x, ys in some[4:8]]
    comment: list[Question] = [CommentOn(x, ys[0]) for x, ys in some[:8]]
    first, second, third, fourth = segments()
    watch: list[Question] = [CompareSegments(ASKED, first, second), CompareSegments(ASKED, third, fourth)]
    opening = [rank[1], rate[0], compare[2], mark[0], edit[0], comment[1], watch[0], rank[4], compare[5]]
    opening += [swapped[2], rate[1], rate[0]]
    rest = rank + rate + rate[:4] + compare + swapped + mark + edit + comment + watch
    for question in opening:
        rest.remove(question)
    random.shuffle(rest)
    return opening + rest


def record(asked: list[Question], returns: Mapping[Segment, float]) -> list[Event]:
    """What the colleagues say, one after the other."""
    events: list[Event] = []
    for colleague in COLLEAGUES:
        events += colleague.answer_all(asked, generator_for(8, f"session of {colleague.name}"), STUDY, 0.0, returns)
    return events


if __name__ == "__main__":
    write_events(RECORDED, record(questions(), segments()))
    print(f"{RECORDED.stat().st_size / 1000:.0f} kB in {RECORDED.name}")
