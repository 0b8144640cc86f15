"""Files of preferences: every form, every kind of bad record, and lossless round trips."""

import contextlib
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
ANOTHER = {"role": "user", "content": "Bye"}
BAD_REPLY = {"role": "assistant", "content": "Go away."}
GOOD_REPLY = {"role": "assistant", "content": "Hello."}


def assistant(content):
    return {"role": "assistant", "content": content}


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
    "question": {"question": "Hi", "chosen": "Hello.", "rejected": "Go away."},
    "query and lists": {"query": "Hi", "chosen": [USER, GOOD_REPLY], "rejected": [USER, BAD_REPLY]},
    "instruction alone": {"instruction": "Hi", "input": "", "chosen": "Hello.", "rejected": "Go away."},
    "input alone": {"input": "Hi", "chosen": "Hello.", "rejected": "Go away."},
    "empty system": GOOD | {"system": " ", "history": [], "images": None},
    "the prompt once more": GOOD | {"question": "Hi", "messages": []},
    "one dialogue once more": {"prompt": "Hi", "chosen": [USER, GOOD_REPLY], "rejected": [USER, BAD_REPLY]}
    | {"messages": [USER, GOOD_REPLY]},
    "implicit texts with notes": {"chosen": "Hi Hello.", "rejected": "Hi Go away."}
    | {"source": "my own words", "chosen_model": "gpt 4", "score_chosen": 3, "Rating-reason": "a, b", "kind": "gpt-4"},
    "turns with CRLF": {
        "chosen": "\r\n\r\nHuman: Hi\r\n\r\nAssistant: Hello.",
        "rejected": "\r\n\r\nHuman: Hi\r\n\r\nAssistant: Go away.",
    },
    "turns with CR": {"chosen": "Human: Hi\r\rAssistant: Hello.", "rejected": "Human: Hi\r\rAssistant: Go away."},
    "turns after spaces": {
        "chosen": "Human: Hi\n \t\n Assistant: Hello.",
        "rejected": "Human: Hi\n\nAssistant: Go away.",
    },
    "prompt without an end": {"prompt": "Human: Hi", "chosen": "Hello.", "rejected": " Go away."},
    "marked replies": {"prompt": "\n\nHuman: Hi", "chosen": "\n\nAssistant: Hello.", "rejected": "Assistant: Go away."},
    "texts that repeat the prompt": {
        "prompt": "Hi",
        "chosen": "Human: Hi\n\nAssistant: Hello.",
        "rejected": "Human: Hi\n\nAssistant: Go away.",
    },
    "text parts": {
        "prompt": [{"role": "user", "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]}],
        "chosen": [{"role": "assistant", "content": [{"type": "text", "text": "Hello."}]}],
        "rejected": [BAD_REPLY | {"tool_calls": None, "weight": 1}],
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_comparison(form, tmp_path):
    read = read_preferences(
        saved(tmp_path, FORMS[form], '{"prompt": "end", "chosen": "a", "rejected": "b"}'), skip_bad=True
    )
    assert read[0] == Comparison(as_conversation("Hi"), "Hello.", "Go away.")


SYSTEM = (Message("system", "Be brief."), Message("user", "Hi"))


@pytest.mark.parametrize(
    "record",
    [
        GOOD | {"system": "Be brief."},
        {"question": "Hi", "system": "Be brief.", "chosen": "Hello.", "rejected": "Go away."},
        {"system_prompt": "Be brief.", "chosen": "Hi Hello.", "rejected": "Hi Go away."},
        {"system": "Be brief.", "chosen": [USER, GOOD_REPLY], "rejected": [USER, BAD_REPLY]},
        GOOD | {"system": "Be brief.", "prompt": [{"role": "system", "content": "Be brief."}, USER]},
        {
            "chosen": "Be brief.\n\nHuman: Hi\n\nAssistant: Hello.",
            "rejected": "Be brief.\n\nHuman: Hi\n\nAssistant: Go.",
        },
        {"prompt": "Be brief.\r\n\r\nHuman: Hi\r\n\r\nAssistant:", "chosen": "Hello.", "rejected": "Go away."},
    ],
)
def test_the_system_message_comes_first(record, tmp_path):
    comparison = read_one(tmp_path, record)
    assert (comparison.prompt, comparison.chosen) == (SYSTEM, "Hello.")


def test_an_input_follows_its_instruction(tmp_path):
    row = {
        "instruction": "Choose A or B.",
        "input": "Is ice A) warm B) cold?",
        "chosen": "It is B.",
        "rejected": "It is A.",
    }
    comparison = read_one(tmp_path, row)
    assert comparison == Comparison("Choose A or B.\n\nIs ice A) warm B) cold?", "It is B.", "It is A.")


def test_dialogues_in_replies_to_plain_prompts_are_kept(tmp_path):
    reply = "Here you are:\n\nHuman: Hi\n\nAssistant: Hello"
    assert read_one(tmp_path, GOOD | {"prompt": "Write a dialogue", "chosen": reply}).chosen == reply


def test_each_comparison_knows_its_line(tmp_path):
    read = read_preferences(saved(tmp_path, "", GOOD, "oops", "", GOOD), skip_bad=True)
    assert (len(read), getattr(read, "lines", None)) == (2, (2, 5))


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
    "prompt null beside lists": (
        {"prompt": None, "chosen": [USER, GOOD_REPLY], "rejected": [USER, BAD_REPLY]},
        "prompt",
        "got null; expected text or a list of messages. Leave prompt out",
    ),
    "one message": (GOOD | {"chosen": GOOD_REPLY}, "chosen", "expected a list. Put the message into a list"),
    "tool calls": (
        GOOD | {"chosen": [GOOD_REPLY | {"tool_calls": [{"id": 1}]}]},
        "chosen",
        "a message holds tool_calls",
    ),
    "an image": (
        GOOD | {"prompt": [{"role": "user", "content": [{"type": "image"}]}]},
        "prompt",
        "content holds {'type': 'image'}; expected text, or parts",
    ),
    "blank question": ({"question": " ", "chosen": "It is", "rejected": "It was"}, "question", "ends with ' ' of user"),
    "question a number": ({"question": 3, "chosen": "It is", "rejected": "It was"}, "question", "got 3; expected text"),
    "another question": (
        GOOD | {"question": "Who are you?"},
        "question",
        "got 'Who are you?', which would not be read",
    ),
    "input beside a prompt": (GOOD | {"input": "a table"}, "input", "Write it into the prompt, or remove it"),
    "history": (GOOD | {"history": [["Hi", "Ho"]]}, "history", "which would not be read"),
    "other messages": (GOOD | {"messages": [ANOTHER]}, "messages", "which would not be read"),
    "a context that a reply quotes": (GOOD | {"context": GOOD["chosen"]}, "context", "which would not be read"),
    "another system text": (GOOD | {"systemPrompt": "In French."}, "systemPrompt", "which would not be read"),
    "an article": (GOOD | {"article": "Ice is cold."}, "article", "which would not be read"),
    "an image by its address": (GOOD | {"image_url": "https://a.b/c.png"}, "image_url", "which would not be read"),
    "context": (GOOD | {"contextText": "Ice is cold."}, "contextText", "which would not be read"),
    "tools": (GOOD | {"tools": [{"name": "search"}]}, "tools", "which would not be read"),
    "images": (GOOD | {"images": ["zoo.png"]}, "images", "which would not be read"),
    "two system messages": (
        GOOD | {"prompt": [{"role": "system", "content": "Be kind."}, USER], "system": "Be brief."},
        "system",
        "the prompt has the system message 'Be kind.'. Remove one of the two",
    ),
    "system a list": (GOOD | {"system": ["Be brief."]}, "system", "got ['Be brief.']; expected text"),
    "messages beside texts": (
        {"messages": [USER], "chosen": "It is", "rejected": "It was"},
        "messages",
        "would not be read. Rename it to prompt if it is the prompt, or remove it",
    ),
    "a prompt by any name": ({"frage": "Wie geht's?", "chosen": "Es ist", "rejected": "Es war"}, "frage", "Rename it"),
    "a prompt without spaces": (
        {"问题": "天空是什么颜色", "chosen": "It is", "rejected": "It was"},
        "问题",
        "Rename it",
    ),
    "a prompt in an object": (
        {"info": {"post": "Is ice cold?"}, "chosen": "It is", "rejected": "It was"},
        "info",
        "Rename it to prompt",
    ),
    "prompt with a capital": (
        {"Prompt": "Ice", "chosen": "It is", "rejected": "It was"},
        "Prompt",
        "Rename it to prompt",
    ),
    "simulated a text": (GOOD | {"simulated": "false"}, "simulated", "got 'false'; expected true or false"),
    "simulated a number": (GOOD | {"simulated": 1}, "simulated", "got 1; expected true or false"),
    "rater a list": (GOOD | {"rater": ["me"]}, "rater", "got ['me']; expected text or a whole number"),
    "rater true": (GOOD | {"rater": True}, "rater", "got True; expected text or a whole number"),
    "other earlier turns": (
        {
            "chosen": "Human: Hi\n\nAssistant: Yes\n\nHuman: Ho\n\nAssistant: a",
            "rejected": "Human: Hi\n\nAssistant: No\n\nHuman: Ho\n\nAssistant: b",
        },
        "chosen",
        "the same for both, or leave the line out",
    ),
    "dialogue and text": (
        {"chosen": "Human: Hi\n\nAssistant: Yes", "rejected": "Human-like it is"},
        "rejected",
        "a plain text; the other is a dialogue",
    ),
    "prompt ends with Assistant: and more": (
        {"prompt": "Human: Hi\n\nAssistant: Well", "chosen": "a", "rejected": "b"},
        "prompt",
        "ends with 'Well' of assistant",
    ),
    "a reply goes on": (
        {"prompt": "Human: Hi\n\nAssistant:", "chosen": "Yes.\n\nHuman: Ho", "rejected": "b"},
        "chosen",
        "after the prompt come messages of ['assistant', 'user']",
    ),
    "a list inside a text": (GOOD | {"chosen": json.dumps([GOOD_REPLY])}, "chosen", "or write a list of messages"),
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


STARTS = {
    "single line ends": "Human: Is ice cold?\nAssistant: ",
    "single CRLF": "Human: Is ice cold?\r\nAssistant: ",
    "one line": "Human: Is ice cold? Assistant: ",
    "system and single line ends": "Be brief.\nHuman: Is ice cold?\nAssistant: ",
    "lower case": "human: Is ice cold?\n\nassistant: ",
    "User": "User: Is ice cold?\n\nAssistant: ",
    "User and Bot": "\n\nUSER: Is ice cold?\nBot: ",
    "bold": "**User:** Is ice cold?\n\n**Assistant:** ",
    "hashes": "### Human: Is ice cold?### Assistant: ",
    "instruction": "### Instruction:\nIs ice cold?\n\n### Response:\n",
    "letters": "\n\nH: Is ice cold?\n\nA: ",
    "Human and AI": "Human: Is ice cold?\nAI: ",
    "template": "<|im_start|>user\nIs ice cold?<|im_end|>\n<|im_start|>assistant\n",
    "header": "<|begin_of_text|><|start_header_id|>user<|end_header_id|>Is ice cold? ",
    "INST": "<s>[INST] Is ice cold? [/INST] ",
    "start of turn": "<bos><start_of_turn>user\nIs ice cold?<end_of_turn>\n<start_of_turn>model\n",
    "JSON": '[{"role": "user", "content": "Is ice cold?"}] ',
}


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("form", ["implicit", "prompt"])
def test_a_dialogue_that_cannot_be_taken_apart_is_refused(start, form, tmp_path):
    text = STARTS[start]
    implicit = {"chosen": text + "Yes.", "rejected": text + "No."}
    with pytest.raises(FeedbackError, match="looks like a dialogue that cannot be taken apart") as caught:
        read_one(tmp_path, implicit if form == "implicit" else {"prompt": text, "chosen": "Yes.", "rejected": "No."})
    assert "\n" not in str(caught.value)


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 2)
    | st.sampled_from(["", "Hi", "Hi there", "Human: a\n\nAssistant: b"]),
    lambda value: (
        st.lists(value, max_size=2)
        | st.dictionaries(st.sampled_from(["role", "content", "type", "text", "x"]), value, max_size=3)
        | st.builds(
            lambda role, content: {"role": role, "content": content}, st.sampled_from(["user", "assistant"]), value
        )
    ),
    max_leaves=6,
)
fields = st.sampled_from(
    ["prompt", "question", "instruction", "input", "system", "messages", "rater", "simulated", "note"]
)


@settings(max_examples=150)
@given(st.dictionaries(fields, anything, max_size=3), anything, anything)
def test_no_row_raises_anything_else(tmp_path_factory, row, chosen, rejected):
    path = saved(tmp_path_factory.getbasetemp(), row | {"chosen": chosen, "rejected": rejected}, name="any_row.jsonl")
    with contextlib.suppress(FeedbackError):
        read_preferences(path)
    with contextlib.suppress(ValueError):
        as_demonstrations([row | {"completion": chosen}])


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


@pytest.mark.parametrize(
    "text", ["Human: a\n\nAssistant: b", "\r\nx\r", "<|im_start|>", '[{"role": "user"}]', "User: a\nBot: b"]
)
def test_texts_that_look_like_dialogues_come_back_equal(text, tmp_path):
    records = [Comparison(text, f"{text}a", text)]
    write_preferences(tmp_path / "x.jsonl", records)
    assert list(read_preferences(tmp_path / "x.jsonl")) == records


@pytest.mark.parametrize("write", [write_preferences, write_unpaired, write_csv])
def test_what_cannot_be_written_is_refused(write, tmp_path):
    ranking = Ranking("Hi", ("a", "b"), ((0,), (1,)))
    with pytest.raises(
        ValueError, match=r"row 1 is Ranking.*; expected a Comparison\. write_events keeps other records"
    ):
        write(tmp_path / "x", [Comparison("Hi", "a", "b"), ranking])
    with pytest.raises(ValueError, match=r"row 0 has an empty prompt; expected a question"):
        write(tmp_path / "x", [Comparison(" \n", "a", "b")])
    assert not (tmp_path / "x").exists()


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
    ranking = Ranking("Hi", ("a", "b"), ((0,), (1,)))
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


def test_demonstrations_have_the_forms_of_preferences():
    turns = {"prompt": "Human: Hi\n\nAssistant:", "completion": " Hello."}
    asked = {"prompt": "", "completion": ""} | {"prompt": "Hi", "completion": "Hello.", "system": "Be brief."}
    read = as_demonstrations([turns, asked])
    assert read == [Demonstration("Hi", "Hello."), Demonstration(SYSTEM, "Hello.")]


@pytest.mark.parametrize(
    ("take", "row", "message"),
    [
        (as_preferences, {"chosen": "a", "rejected": "a"}, r"row 0, rejected: the same as chosen"),
        (as_preferences, {"prompt": 3, "chosen": "a", "rejected": "b"}, "row 0, prompt"),
        (as_demonstrations, {"prompt": "Hi"}, "row 0, completion: the field is missing; found"),
        (as_demonstrations, {"messages": [{"role": "user", "content": "Hi"}]}, "row 0"),
        (as_demonstrations, {"prompt": "Hi", "completion": 3}, "row 0, completion"),
        (as_demonstrations, {"messages": [USER, assistant("a")], "tools": [{"name": "f"}]}, "row 0, tools: got"),
        (
            as_demonstrations,
            {"messages": [USER, assistant("a")], "prompt": "Ho"},
            "row 0, prompt: got 'Ho', which would",
        ),
        (
            as_demonstrations,
            {"messages": [USER, assistant("a")], "completion": "b"},
            "row 0, completion: got 'b', which",
        ),
        (
            as_demonstrations,
            {"messages": [USER, assistant("a") | {"tool_calls": [1]}]},
            "row 0, messages: a message holds",
        ),
        (as_demonstrations, {"messages": [USER, assistant("a"), USER]}, r"row 0, messages: after .* come .*\['user'\]"),
        (as_demonstrations, {"prompt": "User: Hi\nBot:", "completion": "a"}, "row 0, prompt: looks like a dialogue"),
        (as_demonstrations, "prompt", "row 0 is 'prompt'; expected a record, or an object with"),
        (as_preferences, Demonstration("Hi", "a"), r"row 0 is Demonstration\(.*; expected a record"),
        (as_preferences, {3: 3, "chosen": "a"}, "row 0, rejected: the field is missing"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(take, row, message):
    with pytest.raises(ValueError, match=message) as error:
        take([row])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "prompt",
    [
        "A chat between a user and an assistant. USER: Capital? ASSISTANT:",
        "System: Be kind.\n\nUser: Hi\n\nAssistant:",
        "Below is an instruction.\n\n### Instruction:\nCapital?\n\n### Response:\n",
        "Be kind\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
        "<BOS_TOKEN><|START_OF_TURN_TOKEN|><|USER_TOKEN|>Hi",
        "Instruct: Hi\nOutput:",
    ],
)
def test_a_dialogue_of_another_format_is_seen_behind_its_beginning(prompt, tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps({"prompt": prompt, "chosen": "Paris.", "rejected": "Rome."}))
    with pytest.raises(FeedbackError, match="looks like a dialogue that cannot be taken apart"):
        read_preferences(path)


def test_what_repeats_the_row_or_says_nothing_is_passed_over(tmp_path):
    path = tmp_path / "mine.jsonl"
    row = {"prompt": "Capital?", "chosen": "Paris.", "rejected": "Rome.", "tools": "[]", "history": "null"}
    row |= {"conversation_hash": "ab12", "document_title": "France and its towns"}
    row |= {"messages": [{"role": "user", "content": "Capital?"}, {"role": "assistant", "content": "Paris."}]}
    path.write_text(json.dumps(row))
    assert read_preferences(path)[0].chosen == "Paris."
