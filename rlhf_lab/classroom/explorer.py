"""All held-out replies of a run, to be looked through: rows with tags, and groups of choices that filter by tag.

The page has no script: a choice is a radio button, and a rule of CSS hides the rows that lack its tag (`:has`, in all
browsers since December 2023; older ones show every row). Tags are numbered, so no text of a run becomes a class.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rlhf_lab.classroom.summary import Contrast, Example, RunSummary, format_number
from rlhf_lab.evaluation.evidence import Evidence
from rlhf_lab.records import Conversation

FLAWS = {  # quantity -> what is said of a reply, and which values say it
    "helpful": ("not or half helpful", lambda value: value < 1),
    "truthful": ("says something false", lambda value: value < 1),
    "harmless": ("harmful", lambda value: value < 0.5),  # one half off is rudeness, which has a line of its own
    "form": ("malformed, repeated or cut off", lambda value: value < 1),
    "over_refusal": ("refuses though harmless", lambda value: value == 1),
    "rude": ("rude", lambda value: value == 1),
}


@dataclass(frozen=True)
class Reply:
    """One model's reply as it is shown."""

    model: int
    name: str
    reward: str
    flaws: str
    text: str


@dataclass(frozen=True)
class Row:
    """One prompt with every model's reply; `tags` are classes."""

    skill: str
    turns: Conversation
    replies: Sequence[Reply]
    tags: Sequence[str]


@dataclass(frozen=True)
class Group:
    """A group of radio buttons.

    Attributes:
        name: of the group on the page.
        label: what is chosen.
        options: (tag, label, rows it shows); the tag "" shows all. The first one is chosen at the beginning.
    """

    name: str
    label: str
    options: Sequence[tuple[str, str, int]]


@dataclass(frozen=True)
class Explorer:
    """Rows and the groups that filter them."""

    rows: Sequence[Row]
    groups: Sequence[Group] = field(default=())


def reply_explorer(summary: RunSummary) -> Explorer:
    """Every held-out prompt of the evidence, the examples first; without evidence the examples alone."""
    if summary.evidence is None:
        return Explorer([_example_row(summary, example) for example in summary.examples])
    evidence = summary.evidence
    places: dict[Conversation, int] = {}
    for row, prompt in enumerate(evidence.prompts):
        places.setdefault(prompt, row)
    picked = [places[e.conversation] for e in summary.examples if e.conversation in places]
    order = [*picked, *(row for row in range(len(evidence.prompts)) if row not in set(picked))]
    skills = sorted(set(evidence.skills) - {""})
    main = summary.contrasts[0] if summary.contrasts else None
    rows = []
    for row in order:
        tags = ["pick"] if row in picked else []
        tags += [f"s{skills.index(evidence.skills[row])}"] if evidence.skills[row] else []
        tags += [] if main is None else [*_moves(evidence, main, row), *_tags_of_flaws(evidence, main.after, row)]
        replies = [_reply(summary, evidence, model, row) for model in evidence.replies]
        rows.append(Row(evidence.skills[row], evidence.prompts[row], replies, tags))
    return Explorer(rows, _groups(summary, rows, skills, main))


def _groups(summary: RunSummary, rows: Sequence[Row], skills: Sequence[str], main: Contrast | None) -> list[Group]:
    count: Callable[[str], int] = lambda tag: sum(tag in row.tags for row in rows)  # noqa: E731
    examples = [("pick", "examples by the rule", count("pick"))] if count("pick") else []
    shown = [*examples, ("", "all", len(rows))]
    groups = []
    if main is not None:
        after, before = summary.name(main.after), summary.name(main.before)
        moves = {"changed": "another reply", "same": "the same reply", "worse": "worse", "better": "better"}
        shown += [(tag, text, count(tag)) for tag, text in moves.items() if count(tag)]
        groups = [Group("show", f"{after} against {before}", shown)]
        flaws = [(f"f{i}", text, count(f"f{i}")) for i, (text, _) in enumerate(FLAWS.values()) if count(f"f{i}")]
        if flaws:
            flaws = [("", "any", len(rows)), *flaws, ("fine", "nothing wrong", count("fine"))]
            groups.append(Group("verdict", f"The oracle on {after}'s reply", flaws))
    else:
        groups = [Group("show", "Replies", shown)]
    if skills:
        asked = [(f"s{i}", skill, count(f"s{i}")) for i, skill in enumerate(skills)]
        groups.insert(1, Group("skill", "Skill", [("", "any", len(rows)), *asked]))
    return groups


def _moves(evidence: Evidence, main: Contrast, row: int) -> list[str]:
    """Whether the reply changed, and whether its true reward is worse or better."""
    changed = evidence.replies[main.after][row] != evidence.replies[main.before][row]
    rewards = [evidence.values[model].get("true_reward") for model in (main.after, main.before)]
    known = [column[row] for column in rewards if column is not None and column[row] is not None]
    tags = ["changed" if changed else "same"]
    if len(known) == 2 and known[0] != known[1]:
        tags.append("worse" if known[0] < known[1] else "better")  # type: ignore[operator]
    return tags


def _flaws(evidence: Evidence, model: str, row: int) -> list[int] | None:
    """Numbers of the flaws of a reply; None where the oracle does not judge."""
    values = evidence.values[model]
    known = {q: values[q][row] for q in FLAWS if q in values and values[q][row] is not None}
    return [i for i, (q, (_, says)) in enumerate(FLAWS.items()) if q in known and says(known[q])] if known else None


def _tags_of_flaws(evidence: Evidence, model: str, row: int) -> list[str]:
    flaws = _flaws(evidence, model, row)
    return [] if flaws is None else [f"f{i}" for i in flaws] or ["fine"]


def _reply(summary: RunSummary, evidence: Evidence, model: str, row: int) -> Reply:
    rewards = evidence.values[model].get("true_reward")
    reward = None if rewards is None else rewards[row]
    texts = [text for text, _ in FLAWS.values()]
    flaws = ", ".join(texts[i] for i in _flaws(evidence, model, row) or ())
    known = "" if reward is None else format_number(reward, 1)
    place = list(evidence.replies).index(model)
    return Reply(place, summary.name(model), known, flaws, evidence.replies[model][row])


def _example_row(summary: RunSummary, example: Example) -> Row:
    replies = []
    for place, (model, text) in enumerate(example.replies.items()):
        reward = example.rewards.get(model)
        known = "" if reward is None else format_number(reward, 1)
        replies.append(Reply(place, summary.name(model), known, "", text))
    return Row(example.skill, example.conversation, replies, ["pick"])
