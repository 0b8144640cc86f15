"""Files of feedback: every form of preference, every kind of damage, and lossless round trips."""

import contextlib
import csv
import gzip
import json
import re

import pytest
from hypothesis import given, settings, strategies as st

from rlhf_lab.feedback import formats as jsonl
from rlhf_lab.feedback.events import Withdrawal, event_line, read_event_lines, read_events, write_events
from rlhf_lab.feedback.formats import read_preferences, write_csv, write_preferences, write_unpaired
from rlhf_lab.feedback.lines import FeedbackError
from rlhf_lab.records import Comment, Comparison, Demonstration, Edit, Message, Ranking, Rating, as_conversation
from rlhf_lab.training.files import SaveError

GOOD = {"prompt": "Hi", "chosen": "Hello.", "rejected": "Go away."}
USER = {"role": "user", "content": "Hi"}
BAD_REPLY = {"role": "assistant", "content": "Go away."}
GOOD_REPLY = {"role": "assistant", "content": "Hello."}


def saved(folder, *lines, name="mine.jsonl"):
    path = folder / name
    path.write_bytes(
        b"".join(
            x if isinstance(x, bytes) else (json.dumps(x) if not isinstance(x, str) else x).encode() + b"\n"
            for x in lines
        )
    )
    return path


def read_one(folder, record):
    [comparison] = read_preferences(saved(folder, record))
    return comparison


# ---- the forms of preferences ------------------------------------------------------------------------------

FORMS = {
    "texts": GOOD,
    "lists": {"prompt": [USER], "chosen": [GOOD_REPLY], "rejected": [BAD_REPLY]},
    "text prompt, lists": {"prompt": "Hi", "chosen": [GOOD_REPLY], "rejected": [BAD_REPLY]},
    "list prompt, texts": {"prompt": [USER], "chosen": "Hello.", "rejected": "Go away."},
    "lists that repeat the prompt": {
        "prompt": "Hi",
        "chosen": [USER, GOOD_REPLY],
        "rejected": [USER, BAD_REPLY],
    },
    "implicit lists": {"chosen": [USER, GOOD_REPLY], "rejected": [USER, BAD_REPLY]},
    "implicit texts": {"chosen": "Hi Hello.", "rejected": "Hi Go away."},
    "implicit turns": {
        "chosen": "\n\nHuman: Hi\n\nAssistant: Hello.",
        "rejected": "\n\nHuman: Hi\n\nAssistant: Go away.",
    },
    "marked prompt": {"prompt": "\n\nHuman: Hi\n\nAssistant:", "chosen": " Hello.", "rejected": " Go away."},
    "other fields": GOOD | {"id": 7, "score_chosen": 0.5, "rater": None, "nested": {"a": [1]}},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_comparison(form, tmp_path):
    assert read_one(tmp_path, FORMS[form]) == Comparison(as_conversation("Hi"), "Hello.", "Go away.")


def test_turns_of_a_dialogue_become_messages(tmp_path):
    start = "\n\nHuman: When does it open?\n\nAssistant: At ten.\n\nHuman: And close?\n\nAssistant:"
    [c] = read_preferences(saved(tmp_path, {"chosen": start + " At six.\n\nNo later.", "rejected": start + " No."}))
    roles = [(m.role, m.content) for m in c.prompt]
    assert roles == [("user", "When does it open?"), ("assistant", "At ten."), ("user", "And close?")]
    assert (c.chosen, c.rejected) == ("At six.\n\nNo later.", "No.")


def test_a_system_message_stays(tmp_path):
    system = {"role": "system", "content": "Be brief."}
    c = read_one(tmp_path, {"chosen": [system, USER, GOOD_REPLY], "rejected": [system, USER, BAD_REPLY]})
    assert c.prompt == (Message("system", "Be brief."), Message("user", "Hi"))


@pytest.mark.parametrize(
    ("chosen", "rejected", "expected"),
    [
        ("The sky is blue.", "The sky is green.", ("The sky is", "blue.", "green.")),
        ("The sky is blue.", "The sky is blueish.", ("The sky is", "blue.", "blueish.")),  # no word is split
        ("Say yes", "Say yes yes", ("Say", "yes", "yes yes")),
        ("Q: Hi\nA: yes", "Q: Hi\nA: no", ("Q: Hi\nA:", "yes", "no")),
        ("a  b", "a c", ("a", "b", "c")),
        ("  你好 甲 ", "你好 乙", None),
        ("你好 甲", "你好 乙", ("你好", "甲", "乙")),
    ],
)
def test_texts_are_cut_at_the_last_shared_whitespace(chosen, rejected, expected, tmp_path):
    c = read_one(tmp_path, {"chosen": chosen, "rejected": rejected})
    assert (c.prompt[0].content, c.chosen, c.rejected) == (expected or ("你好", "甲", "乙"))


words = st.text("ab \n\t", max_size=12)


@given(words, words)
def test_cut_against_its_definition(chosen, rejected):
    """Slow spec: of all whitespace positions that both share, the last one that leaves a prompt before it."""
    chosen, rejected = chosen.strip(), rejected.strip()
    cuts = [
        i
        for i in range(min(len(chosen), len(rejected)))
        if chosen[: i + 1] == rejected[: i + 1] and chosen[i].isspace() and chosen[:i].strip()
    ]
    try:
        prompt, *replies = jsonl._cut(chosen, rejected)
    except jsonl.BadLine:
        assert chosen == rejected or not cuts
    else:
        assert prompt[0].content == chosen[: cuts[-1]].strip()
        assert replies == [chosen[cuts[-1] :].strip(), rejected[cuts[-1] :].strip()]
        assert all(replies)


def test_explicit_texts_are_kept_as_they_stand(tmp_path):
    c = read_one(tmp_path, {"prompt": " Hi \n", "chosen": " Hello.\n", "rejected": ""})
    assert (c.prompt[0].content, c.chosen, c.rejected) == (" Hi \n", " Hello.\n", "")


def test_rater_and_simulated_are_read(tmp_path):
    c = read_one(tmp_path, GOOD | {"rater": 3, "simulated": True})
    assert (c.rater, c.simulated) == ("3", True)


# ---- the file as a whole -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (json.dumps(GOOD).encode(), "mine.jsonl"),  # no line end
        (json.dumps(GOOD).encode() + b"\r\n\r\n  \n", "mine.jsonl"),
        (b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\n", "mine.txt"),
        (b"\xef\xbb\xbf\n" + json.dumps(GOOD).encode(), "mine.txt"),
        (gzip.compress(json.dumps(GOOD).encode()), "mine.jsonl"),  # told by the content, not by the name
        (json.dumps(GOOD).encode(), "mine.jsonl.gz"),
        (gzip.compress(json.dumps(GOOD).encode() + b"\n") + gzip.compress(b"\n"), "two_parts.gz"),
    ],
    ids=["no line end", "CRLF", "mark", "mark and line", "gzip by content", "gzip by name only", "two parts"],
)
def test_harmless_wrapping(content, name, tmp_path):
    (tmp_path / name).write_bytes(content)
    assert list(read_preferences(tmp_path / name)) == [Comparison(as_conversation("Hi"), "Hello.", "Go away.")]


def test_line_separators_inside_texts_do_not_end_a_line(tmp_path):
    text = "one\u2028two\x85three\x0cfour"
    [c] = read_preferences(saved(tmp_path, json.dumps(GOOD | {"chosen": text}, ensure_ascii=False)))
    assert c.chosen == text.replace("\n", "")


def whole(folder, content=None):
    path = folder / "mine.jsonl"
    if content is not None:
        path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda d: whole(d), "cannot be read (No such file"),
        (lambda d: d, "is a folder; expected a file"),
        (lambda d: whole(d, b""), "holds no line of feedback. Write one object a line"),
        (lambda d: whole(d, b"\n \r\n"), "holds no line of feedback"),
        (lambda d: whole(d, gzip.compress(b"")), "holds no line of feedback"),
        (lambda d: whole(d, json.dumps(GOOD).encode("utf-16")), "is UTF-16; expected UTF-8. Save it again"),
        (lambda d: whole(d, gzip.compress(json.dumps(GOOD).encode() * 2)[:-20]), "breaks off here"),
        (lambda d: whole(d, gzip.compress(json.dumps(GOOD).encode())[:-1] + b"?"), "breaks off here"),
        (lambda d: whole(d, b"\x1f\x8bnot gzip at all"), "breaks off here"),
        (lambda d: whole(d, b"PAR1\x15\x04\xff\x15 parquet"), "line 1, line: byte 7 (0xff) is not UTF-8"),
    ],
)
def test_a_useless_file_is_one_line_of_reason_and_remedy(make, expected, tmp_path):
    with pytest.raises(FeedbackError) as caught:
        read_preferences(make(tmp_path))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


# ---- bad lines ---------------------------------------------------------------------------------------------

BAD = {
    "not JSON": ("{'prompt': 1}", "line", "not JSON (Expecting property name"),
    "cut off": ('{"prompt": "Hi", "cho', "line", "not JSON (Unterminated string"),
    "two objects": (json.dumps(GOOD) * 2, "line", "not JSON (Extra data"),
    "a list": ([GOOD], "line", "expected an object. Write one object a line"),
    "a number": ("3", "line", "got 3; expected an object"),
    "null": ("null", "line", "got null; expected an object"),
    "NaN": ('{"prompt": "Hi", "chosen": "a", "rejected": "b", "score": NaN}', "line", "NaN is not JSON"),
    "Infinity": ('{"prompt": "Hi", "chosen": -Infinity, "rejected": "b"}', "line", "-Infinity is not JSON"),
    "twice": ('{"prompt": "Hi", "chosen": "a", "chosen": "c", "rejected": "b"}', "chosen", "appears twice"),
    "too deep": ("[" * 100_000, "line", "nested too deeply"),
    "a huge number": ('{"chosen": ' + "9" * 5000 + "}", "line", "not JSON"),
    "not UTF-8": (b'{"prompt": "caf\xe9"}\n', "line", "byte 16 (0xe9) is not UTF-8. Save the file again"),
    "empty object": ({}, "chosen", "the field is missing; the object is empty"),
    "no chosen": ({"prompt": "Hi", "rejected": "b"}, "chosen", "is missing; found ['prompt', 'rejected']"),
    "no rejected": ({"prompt": "Hi", "chosen": "b"}, "rejected", "the field is missing"),
    "unpaired": ({"prompt": "Hi", "completion": "b", "label": True}, "chosen", "the field is missing"),
    "prompt null": (GOOD | {"prompt": None}, "prompt", "got null; expected text or a list of messages"),
    "prompt a number": (GOOD | {"prompt": 3}, "prompt", "got 3; expected text"),
    "prompt empty": (GOOD | {"prompt": " "}, "prompt", "ends with ' ' of user; expected the user's"),
    "prompt empty list": (GOOD | {"prompt": []}, "prompt", "got []; expected text"),
    "prompt ends with a reply": (
        GOOD | {"prompt": [USER, GOOD_REPLY]},
        "prompt",
        "of assistant; expected the user's",
    ),
    "unknown role": (
        GOOD | {"prompt": [USER | {"role": "human"}]},
        "prompt",
        "role is 'human'; expected one of",
    ),
    "role a list": (GOOD | {"prompt": [USER | {"role": []}]}, "prompt", "role is []; expected one of"),
    "other keys": (
        GOOD | {"prompt": [{"from": "human", "value": "Hi"}]},
        "prompt",
        'expected a message. Write {"role"',
    ),
    "content null": (
        GOOD | {"chosen": [GOOD_REPLY | {"content": None}]},
        "chosen",
        "content is NoneType; expected text",
    ),
    "chosen null": (GOOD | {"chosen": None}, "chosen", "got null; expected text"),
    "rejected a number": (GOOD | {"rejected": 0.5}, "rejected", "got 0.5; expected text"),
    "reply by the user": (
        GOOD | {"chosen": [USER | {"content": "x"}]},
        "chosen",
        "come messages of ['user']; expected",
    ),
    "two replies": (
        GOOD | {"chosen": [GOOD_REPLY] * 2},
        "chosen",
        "['assistant', 'assistant']; expected one",
    ),
    "the same": (GOOD | {"rejected": "Hello."}, "rejected", "the same as chosen: 'Hello.'. Remove the line"),
    "the same, implicit": ({"chosen": "Hi Ho", "rejected": "Hi Ho"}, "rejected", "the same as chosen"),
    "the same but for spaces": ({"chosen": "Hi  Ho", "rejected": "Hi Ho"}, "rejected", "the same as chosen"),
    "the same lists": (
        {"chosen": [USER, GOOD_REPLY], "rejected": [USER, GOOD_REPLY]},
        "rejected",
        "the same as",
    ),
    "nothing shared": (
        {"chosen": "Hello.", "rejected": "Hell."},
        "prompt",
        "share no first word. Add a prompt",
    ),
    "nothing shared, lists": (
        {"chosen": [GOOD_REPLY], "rejected": [BAD_REPLY]},
        "prompt",
        "the prompt is empty",
    ),
    "mixed forms": ({"chosen": "Hi Ho", "rejected": [USER, BAD_REPLY]}, "chosen", "must be of the same form"),
    "one goes on": (
        {"chosen": [USER, GOOD_REPLY, USER], "rejected": [USER, BAD_REPLY]},
        "chosen",
        "expected one of",
    ),
    "half a character": (
        '{"prompt": "Hi", "chosen": "\\ud83d", "rejected": "b"}',
        "chosen",
        "half of a surrogate pair",
    ),
    "half in the prompt": (
        '{"prompt": "\\udc00", "chosen": "a", "rejected": "b"}',
        "prompt",
        "half of a surrogate pair",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_line_is_named(case, tmp_path):
    line, field, expected = BAD[case]
    path = saved(tmp_path, GOOD, "", line, GOOD)
    with pytest.raises(FeedbackError) as caught:
        read_preferences(path)
    [bad] = caught.value.bad
    assert (bad.number, bad.field) == (3, field)
    assert str(caught.value).startswith(f"mine.jsonl, line 3, {field}: ")
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 320
    assert len(read_preferences(path, skip_bad=True)) == 2


def test_an_endless_line_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonl, "MAX_LINE_BYTES", 1000)
    path = saved(tmp_path, GOOD | {"chosen": "x" * 5000}, GOOD)
    with pytest.raises(FeedbackError, match=r"line 1, line: the line is longer than 1000 bytes. Write one"):
        read_preferences(path)
    assert len(read_preferences(path, skip_bad=True)) == 1


def test_all_bad_lines_are_collected_and_ten_are_shown(tmp_path):
    path = saved(tmp_path, GOOD, *[GOOD | {"chosen": i} for i in range(25)], GOOD)
    with pytest.raises(FeedbackError, match=re.escape("mine.jsonl: 25 of 27 lines cannot be used")) as caught:
        read_preferences(path)
    message = str(caught.value).splitlines()
    assert [bad.number for bad in caught.value.bad] == list(range(2, 27))
    assert len(message) == 12
    assert message[1].startswith("  line 2, chosen: got 0; expected text")
    assert message[-1] == "  and 15 more"


def test_skipping_reports_what_was_skipped(tmp_path):
    good = read_preferences(saved(tmp_path, "oops", GOOD, GOOD | {"chosen": None}), skip_bad=True)
    assert len(good) == 1
    assert [(bad.number, bad.field) for bad in good.skipped] == [(1, "line"), (3, "chosen")]


def test_damage_after_good_lines_is_reported_when_skipping(tmp_path):
    many = b"".join(json.dumps(GOOD | {"chosen": f"reply {i * i}"}).encode() + b"\n" for i in range(5000))
    path = whole(tmp_path, gzip.compress(many)[:-2000])
    with pytest.raises(FeedbackError, match="breaks off here"):
        read_preferences(path)
    good = read_preferences(path, skip_bad=True)
    assert 0 < len(good) < 5000
    assert "breaks off here" in str(good.skipped[-1])


def test_with_no_good_line_there_is_nothing_to_skip_to(tmp_path):
    with pytest.raises(FeedbackError, match="line 1, line: not JSON"):
        read_preferences(saved(tmp_path, "oops"), skip_bad=True)


def test_thousands_of_lines(tmp_path):
    path = saved(tmp_path, *[GOOD | {"chosen": f"reply {i}"} for i in range(5_000)])
    comparisons = read_preferences(path)
    assert [comparisons[0].chosen, comparisons[-1].chosen] == ["reply 0", "reply 4999"]


@given(st.binary(max_size=80))
def test_no_bytes_raise_anything_else(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_bytes(data)
    for read in (read_preferences, read_events):
        with contextlib.suppress(FeedbackError):
            read(path)


# ---- writing -----------------------------------------------------------------------------------------------

any_text = st.text(max_size=20)
raters = {"rater": st.text(st.characters(exclude_categories=()), max_size=9), "simulated": st.booleans()}


def conversations(text):
    roles = st.sampled_from(["system", "user", "assistant"])
    start = st.lists(st.builds(Message, roles, text), max_size=2)
    return st.builds(lambda messages, last: (*messages, Message("user", last)), start, text)


@st.composite
def rankings(draw):
    replies = tuple(draw(st.lists(any_text, min_size=2, max_size=5)))
    order, shown = (draw(st.permutations(range(len(replies)))) for _ in range(2))
    status = draw(st.sampled_from(["done", "skipped", "all_bad"]))
    cuts = sorted(draw(st.sets(st.integers(1, len(replies) - 1))))
    tiers = tuple(tuple(order[a:b]) for a, b in zip([0, *cuts], [*cuts, len(replies)], strict=True))
    tiers = tiers if status == "done" else ()
    rater, simulated = draw(any_text), draw(st.booleans())
    return Ranking(draw(conversations(any_text)), replies, tiers, tuple(shown), status, rater, simulated)


prompts, finite = conversations(any_text), st.floats(0, 10)
events = st.one_of(
    rankings(),
    st.builds(Rating, prompts, any_text, finite, st.just(0.0), st.just(10.0), **raters),
    st.builds(Edit, prompts, any_text, any_text, **raters),
    st.builds(Comment, prompts, any_text, any_text, **raters),
    st.builds(Demonstration, prompts, any_text),
    st.builds(Comparison, prompts, any_text.map("a{}".format), any_text.map("b{}".format), **raters),
)


@settings(max_examples=60)
@given(st.lists(events, max_size=4))
def test_events_come_back_equal(tmp_path_factory, records):
    path = tmp_path_factory.getbasetemp() / "events.jsonl"
    write_events(path, records)
    assert read_events(path) == records
    assert path.read_bytes().isascii()


filled = conversations(any_text.map("x{}".format))
comparisons = st.builds(
    Comparison, filled, any_text.map("a{}".format), any_text.map("b{}".format), any_text, st.booleans()
)


@settings(max_examples=60)
@given(st.lists(comparisons, min_size=1, max_size=4), st.sampled_from(["x.jsonl", "x.jsonl.gz"]))
def test_preferences_come_back_equal(tmp_path_factory, records, name):
    path = tmp_path_factory.getbasetemp() / name
    write_preferences(path, records)
    assert list(read_preferences(path)) == records
    raw = path.read_bytes()
    assert (gzip.decompress(raw) if name.endswith("gz") else raw).isascii()


def test_unpaired_rows(tmp_path):
    prompt = as_conversation("Hi")
    records = [
        Comparison(prompt, "a", "b"),
        Comparison(prompt, "a", "c"),
        Comparison(prompt, "c", "b", simulated=True),
    ]
    write_unpaired(tmp_path / "u.jsonl", records)
    rows = [json.loads(line) for line in (tmp_path / "u.jsonl").read_text().splitlines()]
    assert rows[0] == {
        "prompt": [{"role": "user", "content": "Hi"}],
        "completion": [{"role": "assistant", "content": "a"}],
        "label": True,
    }
    found = [(row["completion"][0]["content"], row["label"]) for row in rows]
    assert found == [("a", True), ("b", False), ("c", False), ("c", True)]


FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "  =1", "\n=1", "＝1", "=cmd|' /C calc'!A0"]


@pytest.mark.parametrize("formula", FORMULAS)
def test_no_cell_of_the_table_is_a_formula(formula, tmp_path):
    write_csv(tmp_path / "t.csv", [Comparison(as_conversation(formula), formula, "No, = is fine here", formula)])
    text = (tmp_path / "t.csv").read_bytes().decode("utf-8-sig")
    head, row = csv.reader(text.splitlines(keepends=True))
    assert head == ["prompt", "chosen", "rejected", "rater", "simulated"]
    assert [row[0], row[1], row[3]] == [f"'{formula}"] * 3
    assert row[2] == "No, = is fine here"


def test_table_of_a_dialogue_with_odd_characters(tmp_path):
    prompt = (Message("system", "Be kind."), Message("user", '你好, "friend"\nHi'))
    write_csv(tmp_path / "t.csv", [Comparison(prompt, "😀", "b", "\ud800", simulated=True)])
    text = (tmp_path / "t.csv").read_bytes().decode("utf-8-sig")
    rows = list(csv.reader(text.splitlines(keepends=True)))
    assert rows[1:] == [['system: Be kind.\n\nuser: 你好, "friend"\nHi', "😀", "b", "\\ud800", "true"]]


@pytest.mark.parametrize("write", [write_events, write_preferences, write_unpaired, write_csv])
def test_nothing_half_written(write, tmp_path):
    path = saved(tmp_path, "what was there")

    def broken():
        yield from ()
        raise RuntimeError("the source of the records failed")

    with pytest.raises(RuntimeError):
        write(path, broken())
    assert path.read_text() == "what was there\n"
    with pytest.raises(SaveError, match="Free some space or choose a folder"):
        write(path / "below_a_file.jsonl", [])
    assert [p.name for p in tmp_path.iterdir()] == ["mine.jsonl"]


# ---- event logs --------------------------------------------------------------------------------------------

COMMENT = Comment(as_conversation("Hi"), "Hello.", "Friendly.")
LINE = event_line(COMMENT)


def test_withdrawn_events_do_not_count(tmp_path):
    path = saved(tmp_path, LINE, event_line(Demonstration(as_conversation("Hi"), "Ho")), event_line(Withdrawal(1)))
    assert read_events(path) == [Demonstration(as_conversation("Hi"), "Ho")]
    assert list(read_event_lines(path).standing) == [2]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([GOOD], "type: got null; expected one of"),
        ([{"type": "order"}], "type: got 'order'"),
        ([{"type": ["ranking"]}], "type: got ['ranking']"),
        ([{"type": "comment", "prompt": "Hi"}], "not a Comment"),
        ([json.loads(LINE) | {"text": None}], "not a Comment (text is NoneType; expected text)"),
        ([json.loads(LINE) | {"mood": 1}], "not a Comment"),
        ([json.loads(LINE) | {"prompt": 3}], "not a Comment (prompt is 3"),
        ([{"type": "ranking", "prompt": "Hi", "replies": 3, "tiers": [], "shown": []}], "not a Ranking"),
        ([LINE, event_line(Withdrawal(2))], "withdraws line 2, where no event stands"),
        ([LINE, event_line(Withdrawal(1)), event_line(Withdrawal(1))], "line 3, line: withdraws line 1"),
        ([LINE, event_line(Withdrawal(-1))], "withdraws line -1"),
        ([LINE, LINE[:30] + "\n" + LINE], "line 2, line: not JSON"),
    ],
)
def test_bad_events_are_named(lines, expected, tmp_path):
    with pytest.raises(FeedbackError) as caught:
        read_events(saved(tmp_path, *lines))
    assert expected in str(caught.value)


@pytest.mark.parametrize("length", [1, 9, 12, 40, len(LINE) - 1])
def test_a_torn_end_is_told_from_damage(length, tmp_path):
    path = saved(tmp_path, LINE, LINE[:length].encode())
    log = read_event_lines(path)
    assert (list(log.standing.values()), log.lines, log.size, log.torn) == (
        [COMMENT],
        1,
        len(LINE) + 1,
        length,
    )
    with pytest.raises(FeedbackError, match=r"line 2, line: the line is incomplete\. Open the log with RankingSession"):
        read_events(path)


def test_an_event_without_line_end_is_whole(tmp_path):
    log = read_event_lines(saved(tmp_path, LINE.encode()))
    assert (len(log.standing), log.lines, log.size, log.torn) == (1, 1, len(LINE), 0)


def test_a_file_of_another_kind_is_not_torn(tmp_path):
    with pytest.raises(FeedbackError, match="not JSON"):
        read_event_lines(saved(tmp_path, b"my notes"))


def test_an_empty_log_has_no_events(tmp_path):
    assert read_events(saved(tmp_path)) == []
