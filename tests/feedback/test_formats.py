"""Files of preferences: every form, every kind of bad record, and lossless round trips."""

import csv
import gzip
import json

import pytest
from feedback_files import GOOD, any_text, conversations, saved
from hypothesis import given, settings, strategies as st

from rlhf_lab.feedback import formats
from rlhf_lab.feedback.formats import (
    as_demonstrations,
    as_preferences,
    read_preferences,
    write_csv,
    write_preferences,
    write_unpaired,
)
from rlhf_lab.feedback.lines import BadLine, FeedbackError
from rlhf_lab.records import Comparison, Demonstration, Message, Ranking, as_conversation

USER = {"role": "user", "content": "Hi"}
BAD_REPLY = {"role": "assistant", "content": "Go away."}
GOOD_REPLY = {"role": "assistant", "content": "Hello."}


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
        prompt, *replies = formats._cut(chosen, rejected)
    except BadLine:
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


def test_skipping_reports_what_was_skipped(tmp_path):
    good = read_preferences(saved(tmp_path, "oops", GOOD, GOOD | {"chosen": None}), skip_bad=True)
    assert len(good) == 1
    assert [(bad.number, bad.field) for bad in good.skipped] == [(1, "line"), (3, "chosen")]


def test_with_no_good_line_there_is_nothing_to_skip_to(tmp_path):
    with pytest.raises(FeedbackError, match="line 1, line: not JSON"):
        read_preferences(saved(tmp_path, "oops"), skip_bad=True)


# ---- writing -----------------------------------------------------------------------------------------------

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


# ---- rows in memory ------------------------------------------------------------------------------------------


def test_rows_and_records_may_be_mixed():
    ranking = Ranking("Hi", ("a", "b"), ((0,), (1,)), (0, 1))
    rows = [ranking, {"chosen": "The sky is blue.", "rejected": "The sky is green."}]
    first, second = as_preferences(rows)
    assert first is ranking
    assert (second.chosen, second.rejected) == ("blue.", "green.")
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    whole = Demonstration("Hi", "Hello.")
    forms = [
        whole,
        {"messages": talk},
        {"prompt": talk[:1], "completion": talk[1:]},
        {"prompt": "Hi", "completion": "Hello."},
    ]
    assert as_demonstrations(forms) == [whole] * 4


@pytest.mark.parametrize(
    ("take", "row", "message"),
    [
        (as_preferences, {"chosen": "a", "rejected": "a"}, r"row 0, rejected: the same as chosen"),
        (as_preferences, {"prompt": 3, "chosen": "a", "rejected": "b"}, "row 0, prompt"),
        (as_demonstrations, {"prompt": "Hi"}, "row 0, completion: the field is missing; found"),
        (as_demonstrations, {"messages": [{"role": "user", "content": "Hi"}]}, "row 0"),
        (as_demonstrations, {"prompt": "Hi", "completion": 3}, "row 0, completion"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(take, row, message):
    with pytest.raises(ValueError, match=message) as error:
        take([row])
    assert "\n" not in str(error.value)
