"""Rules of cleaning about what people write: spam, and hostility.

Both are heuristics over short lists of our own: they miss things, they err, and they know English only. What they drop
comes with what they found, so that somebody can look. Rude words about a *reply* are an opinion on it and stay; what a
comment quotes from the reply it is about counts as the reply's.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import groupby

from rlhf_lab.feedback.lines import short
from rlhf_lab.feedback.screening import Cleaned, check_standing, divided
from rlhf_lab.records import Comment, Demonstration, Edit, Event, Record

HEURISTIC = "a heuristic, look at it"
LINK = re.compile(
    r"https?://\S+|\bwww\.\S+|\b[\w-]+\.(?:com|net|org|info|biz|ru|xyz|top|shop|click)(?:/\S*)?(?!\w)", re.I
)
ADVERT = re.compile(
    r"\b(?:my|our) (?:shop|store|channel|web ?site|web ?page)\b|\bclick (?:here|below)\b|\bbuy (?:now|today)\b"
)
KEYS = ("qwertyuiop", "asdfghjkl", "zxcvbnm", "1234567890")
LONG = 6  # words from which a text is long
TEMPLATE = {True: 0.5, False: 0.75}  # long or short: share of a rater's comments above which a text is a template
OFTEN = 5  # different replies that a template was written about, at least
SAME_LETTERS, SAME_WORDS = 6, 4
READ = 4000  # characters of a text that are looked at; a text of a megabyte is searched as fast as a short one

INSULTS = {
    "arsehole", "asshole", "bastard", "bitch", "cretin", "dickhead", "dimwit", "dipshit", "dumbass", "fool", "fuckwit",
    "idiot", "imbecile", "jackass", "moron", "prick", "scum", "scumbag", "shithead", "twat", "wanker",
}  # fmt: skip
MEAN = r"(?:stupid|dumb|useless|worthless|pathetic|disgusting|ugly|brainless)"
YOU = r"(?:you|u|ya|ye)"
HOSTILE = (
    ("an attack", re.compile(rf"\bfuck (?:off|{YOU})\b|\bscrew {YOU}\b|\bgo to hell\b|\bshut up\b|\bpiss off\b")),
    ("a threat", re.compile(rf"\b(?:i|we)(?: will|'?ll|(?: a|')?m going to) (?:\w+ )?(?:kill|hurt|find|beat) {YOU}\b")),
    ("a wish to harm", re.compile(rf"\bkill yourself\b|\bkys\b|\bhope (?:they|{YOU}) (?:all )?(?:die|suffer)\b")),
    ("an attack", re.compile(r"\b(?:i |we )?(?:hate|despise) (?:you|u|all of you|those people)\b")),
    ("an attack", re.compile(rf"\b{YOU}(?: guys| people| all)?(?: are| re|'re| r)(?: \w+)? {MEAN}\b")),
    ("an attack", re.compile(rf"\b{YOU} {MEAN}\b|\bso are you\b|\b{MEAN} (?:machine|bot|robot|computer)\b")),
)  # fmt: skip
LOOKALIKES = str.maketrans("013457@$’", "oieastas'")


def _written(record: Record | None) -> tuple[str, str, bool] | None:
    """(what a person wrote, what it is about, whether it is a remark rather than a reply); None of other records."""
    if isinstance(record, Comment):
        return record.text, record.reply, True
    if isinstance(record, Edit):
        return record.edited, record.reply, False
    return (record.response, "", False) if isinstance(record, Demonstration) else None


def _plain(text: str) -> str:
    """Lower case and single spaces, of the beginning of a text."""
    return " ".join(text[:READ].casefold().split())


# ---- spam ----------------------------------------------------------------------------------------------------


def spam(events: Sequence[Event]) -> Cleaned:
    """Drop *judgements* whose text says nothing: comments, edits and demonstrations.

    An empty text, letters or words over and over, or a link that the reply does not hold. A comment also if it is one
    letter (a Chinese word may have one), a row of keys, an advertisement, or a copy of the reply or the prompt; and a
    text that one rater wrote about 5 or more replies, in more than half of his comments, or three quarters where it is
    shorter than 6 words: "too long" is said of many replies. An edit may leave the reply as it was.

    Args:
        events: judgements that stand.

    Raises:
        ValueError: events that do not stand.

    Example:
        >>> texts = ("It does not say where.", "aaaaaaaaaa", "see www.cheap-pills.shop")
        >>> said = [Event(t, Comment("Where is the zoo?", "In the town.", t)) for t in texts]
        >>> [reason for _, reason in spam(said).dropped]
        ["repeats 'a' 10 times in a row (a heuristic, look at it)",
         "holds the link 'www.cheap-pills.shop', which is not in the reply (a heuristic, look at it)"]

    Chapter 08.
    """
    events = check_standing(events)
    templates = _templates(events)
    reasons = {}
    for place, event in enumerate(events):
        written = _written(event.record)
        if written is None:
            continue
        text, about, is_remark = written
        found = _empty(text) or _repeats(text) or _link(text, about)
        if is_remark and not found:
            prompt = event.record.prompt[-1].content  # type: ignore[union-attr]  # a comment stands here
            found = _one_letter(text) or _keys(text) or _advert(text, about)
            found = found or _copy(text, about, "reply") or _copy(text, prompt, "prompt")
            found = found or templates.get((event.rater, _plain(text)), "")
        if found:
            reasons[place] = f"{found} ({HEURISTIC})"
    return divided(events, reasons)


def _templates(events: Sequence[Event]) -> dict[tuple[str, str], str]:
    """{(rater, text): what is to be said of it} of the texts that raters write about everything."""
    about: dict[tuple[str, str], set[tuple]] = defaultdict(set)
    totals: Counter[str] = Counter()
    for event in events:
        record = event.record
        if isinstance(record, Comment) and event.rater:
            about[event.rater, _plain(record.text)].add((record.prompt, record.reply))
            totals[event.rater] += 1
    return {
        (
            rater,
            text,
        ): f"is word for word what this rater wrote about {len(replies)} replies, in {totals[rater]} comments"
        for (rater, text), replies in about.items()
        if len(replies) >= max(OFTEN, TEMPLATE[text.count(" ") >= LONG - 1] * totals[rater])
    }


def _empty(text: str) -> str:
    return "" if any(char.isprintable() and not char.isspace() for char in text) else "is empty"


def _one_letter(text: str) -> str:
    signs = [char for char in text if char.isprintable() and not char.isspace()]
    # isalpha without a case: a syllable or a word of its own, as in Chinese and Japanese
    is_word = len(signs) == 1 and signs[0].isalpha() and signs[0].lower() == signs[0].upper()
    return f"is one sign, {short(text.strip())}" if len(set(signs)) == 1 and not is_word else ""


def _repeats(text: str) -> str:
    for char, run in groupby(text[:READ]):
        if char.isalpha() and (length := len(list(run))) >= SAME_LETTERS:
            return f"repeats {char!r} {length} times in a row"
    words = _plain(text).split()
    if len(words) >= SAME_WORDS and len(set(words)) == 1:
        return f"is {short(words[0])} {len(words)} times"
    if len(words) >= LONG:
        word, count = Counter(words).most_common(1)[0]
        if count > len(words) / 2:
            return f"consists for {count} of {len(words)} words of {short(word)}"
        if (times := len(words) / len(set(words))) >= OFTEN:
            return f"uses each of its {len(set(words))} words {times:.3g} times"
    return ""


def _keys(text: str) -> str:
    typed = _plain(text)
    return f"is a row of keys, {short(typed)}" if len(typed) >= 4 and any(typed in keys for keys in KEYS) else ""


def _advert(text: str, about: str) -> str:
    found = ADVERT.search(_plain(text))
    return f"holds an advertisement, {short(found[0])}" if found and found[0] not in _plain(about) else ""


def _link(text: str, about: str) -> str:
    for found in LINK.findall(text[:READ]):
        if found not in about:
            return f"holds the link {short(found)}, which is not in the reply"
    return ""


def _copy(text: str, other: str, name: str) -> str:
    said, original = _plain(text), _plain(other)
    words = said.count(" ") + 1
    if said == original and words > 1:
        return f"is a copy of the {name}"
    return f"is a piece of the {name}, {words} words long" if words >= LONG and said in original else ""


# ---- hostility -----------------------------------------------------------------------------------------------


def hostile(events: Sequence[Event]) -> Cleaned:
    """Drop *judgements* whose text attacks somebody: comments, edits and demonstrations.

    Insulting nouns from a list, and forms such as a threat, a curse, or "you are" with a mean word; digits that stand
    for letters are read as those. What also stands in the reply is a quotation and does not count, nor does what stands
    in double quotes. A rude word for the reply ("a stupid answer") is an opinion and does not count either.

    Args:
        events: judgements that stand.

    Raises:
        ValueError: events that do not stand.

    Example:
        >>> texts = ("You are a moron.", "It calls the user a moron.", "A stupid answer.")
        >>> said = [Event(t, Comment("Where is the zoo?", "Go away, you moron!", t)) for t in texts[1:]]
        >>> said += [Event(texts[0], Comment("Where is the zoo?", "In the town.", texts[0]))]
        >>> [reason for _, reason in hostile(said).dropped]
        ["holds the insult 'moron' (a heuristic, look at it)"]

    Chapter 08.
    """
    events = check_standing(events)
    reasons = {}
    for place, event in enumerate(events):
        written = _written(event.record)
        if written and (found := _hostility(written[0], written[1])):
            reasons[place] = f"{found} ({HEURISTIC})"
    return divided(events, reasons)


def _hostility(text: str, about: str) -> str:
    unquoted = re.sub(r"[\"“”«»][^\"“”«»]*[\"“”«»]", " ", text[:READ])
    said, reply = _letters(unquoted), _letters(about)
    quoted = set(reply.split())
    for word in said.split():
        stem = word if word in INSULTS else word.removesuffix("s")
        if stem in INSULTS and not {word, stem} & quoted:
            return f"holds the insult {stem!r}"
    for kind, form in HOSTILE:
        if (found := form.search(said)) and found[0] not in reply:
            return f"holds {kind}, {short(found[0])}"
    return ""


def _letters(text: str) -> str:
    """The words of a text, with the letters that signs stand for."""
    inside = re.sub(r"(?<=\w)!(?=\w)", "i", text[:READ])  # at the end of a word it is only an exclamation
    return _plain(re.sub(r"[^\w\s']", " ", inside.translate(LOOKALIKES)))
