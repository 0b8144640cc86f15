"""Records and events of every kind with any texts, for hypothesis."""

from dataclasses import replace

from feedback_files import conversations
from hypothesis import strategies as st

from rlhf_lab.records import (
    Choice,
    Comment,
    Comparison,
    Demonstration,
    Edit,
    Event,
    Mark,
    Ranking,
    Rating,
    Segment,
    SegmentChoice,
    Skip,
)

any_text = st.text(st.characters(exclude_categories=()), max_size=12)  # half surrogates too
prompts = conversations(any_text)
who = {"rater": any_text, "simulated": st.booleans()}
outcomes = st.sampled_from([-1, 0, 1])
numbers = st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def rankings(draw):
    replies = tuple(draw(st.lists(any_text, min_size=2, max_size=5)))
    order = draw(st.permutations(range(len(replies))))
    status = draw(st.sampled_from(["done", "skipped", "all_bad"]))
    cuts = sorted(draw(st.sets(st.integers(1, len(replies) - 1))))
    tiers = tuple(tuple(order[a:b]) for a, b in zip([0, *cuts], [*cuts, len(replies)], strict=True))
    return Ranking(
        draw(prompts), replies, tiers if status == "done" else (), status, draw(any_text), draw(st.booleans())
    )


@st.composite
def marks(draw):
    reply = draw(any_text)
    cuts = sorted(draw(st.sets(st.integers(0, len(reply)), max_size=6)))
    spans = tuple(zip(cuts[::2], cuts[1::2], strict=False))
    return Mark(draw(prompts), reply, spans, draw(any_text), draw(st.booleans()))


@st.composite
def segments(draw):
    steps, size = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    vectors = [tuple(draw(st.lists(numbers, min_size=size, max_size=size))) for _ in range(2 * steps + 1)]
    return Segment(draw(any_text), tuple(vectors[: steps + 1]), tuple(vectors[steps + 1 :]))


records = st.one_of(
    rankings(),
    marks(),
    st.builds(Rating, prompts, any_text, st.floats(0, 10), st.just(0.0), st.just(10.0), **who),
    st.builds(Edit, prompts, any_text, any_text, **who),
    st.builds(Comment, prompts, any_text, any_text, **who),
    st.builds(Demonstration, prompts, any_text),
    st.builds(Comparison, prompts, any_text.map("a{}".format), any_text.map("b{}".format), **who),
    st.builds(Choice, prompts, any_text, any_text, outcomes, any_text, any_text, **who),
    st.builds(SegmentChoice, prompts, segments(), segments(), outcomes, **who),
    st.builds(Skip, prompts, any_text, st.lists(any_text, max_size=3).map(tuple), **who),
)
ids = st.text(st.characters(exclude_categories=()), min_size=1, max_size=6)
seconds = st.floats(0, 1e12)


@st.composite
def logs(draw):
    """Events with different ids, some of which replace or take back others."""
    names = draw(st.lists(ids, min_size=1, max_size=6, unique=True))
    events = []
    for name in names:
        target = draw(st.sampled_from(["", *(other for other in names if other != name)]))
        record = draw(records) if draw(st.booleans()) or not target else None
        texts = {field: draw(any_text) for field in ("study", "question", "widget")}
        events.append(Event(name, record, target, draw(seconds), draw(seconds), **texts))
    first = events[0]
    return (
        [replace(first, shown=tuple(range(len(first.record.replies))))] + events[1:]
        if isinstance(first.record, Ranking)
        else events
    )
