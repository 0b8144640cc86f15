"""What a view draws, as a dict of JSON values: everything about a session that is on the screen.

Markdown is parsed here, into a tree of tags from a short list and texts, so that a view makes elements one by one and
never reads HTML. Chapter 08.
"""

import base64
import re
from functools import lru_cache
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.tree import SyntaxTreeNode

from rlhf_lab.classroom.widgets.ordering import letter
from rlhf_lab.classroom.widgets.retrospect import afterwards
from rlhf_lab.classroom.widgets.session import FeedbackSession
from rlhf_lab.feedback.questions import CompareSegments, Rate
from rlhf_lab.records import Segment

LONGEST_MARKDOWN = 20_000  # characters; a longer text is shown plain
TAGS = {"p", "strong", "em", "code", "pre", "ul", "ol", "li", "blockquote", "br", "hr", *(f"h{i}" for i in range(1, 7))}
SURROGATES = re.compile("[\ud800-\udfff]")
Node = dict[str, Any]


def displayable(text: str) -> str:
    """The text with U+FFFD for each half of a surrogate pair, which no browser can be sent.

    >>> displayable("a\\ud800b") == "a\\ufffdb"
    True
    """
    return SURROGATES.sub("\ufffd", text)


@lru_cache(maxsize=1)
def _parser() -> MarkdownIt:
    return MarkdownIt("commonmark", {"html": False})


@lru_cache(maxsize=256)
def _parsed(text: str) -> tuple[Node, ...]:
    return tuple(_nodes(SyntaxTreeNode(_parser().parse(text))))


def markdown_nodes(text: str) -> list[Node] | None:
    """Markdown as nested {"tag", "children"} and {"text"}; None where the text is too long to be parsed.

    A link becomes its text and, after it, its address as text; an image its description. Raw HTML is text.

    Example:
        >>> markdown_nodes("a *b*")
        [{'tag': 'p', 'children': [{'text': 'a '}, {'tag': 'em', 'children': [{'text': 'b'}]}]}]

    Source: https://spec.commonmark.org/0.31.2/. Chapter 08.
    """
    return None if len(text) > LONGEST_MARKDOWN else list(_parsed(displayable(text)))


def _nodes(parent: SyntaxTreeNode) -> list[Node]:
    return [node for child in parent.children for node in _node(child)]


def _node(node: SyntaxTreeNode) -> list[Node]:
    """One node of the tree: none, one, or for a link several."""
    match node.type:
        case "text" | "text_special":
            return [{"text": node.content}]
        case "softbreak":
            return [{"text": "\n"}]
        case "code_inline":
            return [{"tag": "code", "children": [{"text": node.content}]}]
        case "code_block" | "fence":
            return [{"tag": "pre", "children": [{"tag": "code", "children": [{"text": node.content}]}]}]
        case "inline":
            return _nodes(node)
        case "link":
            address = str(node.attrs.get("href", ""))
            inside = _nodes(node)
            return inside if _plain(inside) == address else [*inside, {"text": f" ({address})"}]
        case "image":
            return [{"text": node.content}]
    if node.tag in TAGS:
        return [{"tag": node.tag, "children": _nodes(node)}]
    return _nodes(node) if node.children else [{"text": node.content}]


def _plain(nodes: list[Node]) -> str:
    return "".join(node["text"] if "text" in node else _plain(node["children"]) for node in nodes)


def view_state(session: FeedbackSession, *, seen: bool = True) -> dict[str, Any]:
    """All that a view shows, in values that JSON has.

    Args:
        session: of which.
        seen: whether the reader has the question before his eyes now; the time is measured from its first view on.

    Returns:
        A dict, as its keys say. "replies" hold "letter", "text", "nodes" (a Markdown tree, or None) and "rank";
        "answer" is that of the form: a score, a text, spans in characters of the text, 1 where the left one is
        better, or None; "undo_asks" is what to ask before undo is called with confirmed=True.

    Example:
        >>> state = view_state(FeedbackSession([("Where is the zoo?", ["In Mill Street.", "Go away."])]))
        >>> state["form"], [reply["rank"] for reply in state["replies"]], state["goal"]
        ('rank', [None, None], 1)

    Chapter 08.
    """
    if seen:
        session.viewed()
    question, progress = session.question, session.progress
    texts = zip(session.replies, session.ranks, strict=True)
    stored = {event.id for event in session.events()} - {event.id for event in session.pending}
    return {
        "study": displayable(session.study),
        "rater": displayable(session.rater),
        "index": session.index,
        "total": progress.total,
        "goal": progress.goal,
        "judged": progress.judged,
        "skipped": progress.skipped,
        "unsaved": progress.unsaved,
        "seconds_left": progress.seconds_left,
        "form": question.form,
        "ask": question.ask,
        "prompt": [{"role": m.role, **_shown(session, m.content)} for m in session.prompt],
        "replies": [
            {"letter": letter(i), **_shown(session, text), "rank": rank} for i, (text, rank) in enumerate(texts)
        ],
        "status": session.status,
        "saved": session.saved,
        "where": "" if session.store is None else displayable(str(session.store.path)),
        "stored": len(stored) if session.store is not None else 0,
        "error": displayable(session.error),
        "notice": displayable(session.notice),
        "says": displayable(session.says),
        "can_undo": session.can_undo,
        "undo_asks": displayable(session.undo_asks),
        "answer": _answer(session),
        "unsent": session.unsent,
        "scale": [1, question.high] if isinstance(question, Rate) else None,
        "segments": _segments(session),
        "auto_advance": session.auto_advance,
        "afterwards": [displayable(sentence) for sentence in afterwards(session)],
        "finished": progress.finished,
    }


def _shown(session: FeedbackSession, text: str) -> dict[str, Any]:
    return {"text": displayable(text), "nodes": markdown_nodes(text) if session.markdown else None}


def _answer(session: FeedbackSession) -> Any:
    answer = session.answer
    if isinstance(answer, str):
        return displayable(answer)
    return None if session.question.form == "rank" else [*map(list, answer)] if isinstance(answer, tuple) else answer


def _segments(session: FeedbackSession) -> list[dict[str, Any]] | None:
    """The two pieces of behaviour in the order on the screen, as pictures."""
    question = session.question
    if not isinstance(question, CompareSegments):
        return None
    both = (question.left, question.right)
    return [_pictures(both[i]) for i in session.shown]


@lru_cache(maxsize=64)
def _pictures(segment: Segment) -> dict[str, Any]:
    from rlhf_lab.experience.scenes import describe, frames  # gymnasium costs a second that only segments need

    pictures = [f"data:image/png;base64,{base64.b64encode(frame).decode('ascii')}" for frame in frames(segment)]
    return {"frames": pictures, "alt": describe(segment)}
