"""notation.md: one row for a symbol, one for a word, Chinese beside it, and the chapters keep to it.

A test cannot read for sense. It can see that a term stands in the chapter that is said to define it, that names of the
library exist, and that phrases in which a word had another sense do not come back.
"""

import json
import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "notation.md").read_text(encoding="utf-8")
COLUMNS = ["symbol", "word", "中文", "meaning", "in code", "chapter"]
NONE = "–"
FORBIDDEN = {  # phrase -> what to say
    r"score function(?!s? (?:for it|of))": "grad log pi",
    r"scores? of (?:log pi|an? (?:cut |chosen )?action|a token|a step)": "grad log pi",
    r"mean (?:of the )?scores? (?:is|are|has mean) (?:0|zero)": "grad log pi has mean 0 (EGLP lemma)",
    r"(?:reward|return|advantage)s? times (?:the )?scores?\b": "grad log pi",
    r"squared scores?\b": "squared grad log pi",
    r"scores? of a run is": "return",
    r"\btrue scores?\b": "true reward",
    r"KL\(reference ?\|\| ?policy\) (?:leash|penalty)": "KL(policy || reference)",
}
EXPLAINED = "grad log pi"  # a cell that says what statisticians call it may use their word


def tables(text):
    """The rows of each table, a list of {column: cell}; a cell keeps its escaped bars."""
    found, rows = [], []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
        elif rows:
            names, rule, *cells = rows
            assert set("".join(rule)) <= set("-:"), f"no rule below {names}"
            assert all(len(row) == len(names) for row in cells), names
            found.append([dict(zip(names, row, strict=True)) for row in cells])
            rows = []
    return found


def terms(text=TEXT):
    return [row for table in tables(text) if list(table[0]) == COLUMNS for row in table]


def twice(rows, column):
    counts = Counter(row[column].lower() if column == "word" else row[column] for row in rows)
    return [name for name, count in counts.items() if count > 1 and name != NONE]


@cache
def prose():
    """{number of a chapter: its markdown cells}"""
    books = {path.name[:2]: json.loads(path.read_text(encoding="utf-8")) for path in ROOT.glob("notebooks/*.ipynb")}
    return {
        number: ["".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == "markdown"]
        for number, book in sorted(books.items())
    }


def misused(cells):
    """What a chapter says in a sense that is kept for another word."""
    found = []
    for cell in cells:
        words = re.sub(r"`[^`]*`|<[^>]*>", "", cell)
        for phrase, instead in FORBIDDEN.items():
            hits = re.findall(f"(?i)\\b{phrase}", words)
            if hits and not (phrase.startswith("score function") and EXPLAINED in words):
                found += [f"{hit!r}: say {instead}" for hit in hits]
    return found


def test_the_file_is_made_of_tables():
    assert len(terms()) > 80
    assert next(table for table in tables(TEXT) if list(table[0]) != COLUMNS)[0]["word"] == "score"
    assert all(row["word"] and row["meaning"] for row in terms())


@pytest.mark.parametrize("column", ["symbol", "word"])
def test_nothing_has_two_rows(column):
    assert twice(terms(), column) == []


def test_every_row_has_its_chinese_term():
    assert [row["word"] for table in tables(TEXT) for row in table if not re.search("[一-鿿]", row["中文"])] == []


def test_names_of_the_library_exist():
    library = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "rlhf_lab").rglob("*.py"))
    names = {name for row in terms() for name in re.findall(r"`~?(\w+)`", row["in code"])}
    assert {name for name in names if not re.search(rf"\b{name}\b", library)} == set()


def names_of(row):
    """What a chapter may call it by: the word (other endings count), its symbol, its name in code."""
    word = row["word"].lower()
    symbols = [part.strip(" $") for part in row["symbol"].replace("\\,", "").split(",") if part != NONE]
    return [word.removesuffix("y").removesuffix("e"), *symbols, *re.findall(r"`~?(\w+)`", row["in code"])]


def test_a_term_stands_in_the_chapter_that_defines_it():
    missing = []
    for row in terms():
        assert re.fullmatch(r"0\d|1[0-6]", row["chapter"]), row
        if cells := prose().get(row["chapter"]):
            text = re.sub(r"\s+", " ", " ".join(cells)).replace("\\,", "")
            if not any(name in text or name in text.lower() for name in names_of(row)):
                missing.append(f"{row['chapter']}: {row['word']}")
    assert missing == []


@pytest.mark.parametrize("chapter", sorted(prose()))
def test_the_chapters_keep_to_it(chapter):
    assert misused(prose()[chapter]) == []


@pytest.mark.parametrize(
    "sentence",
    [
        "The score function points upwards.",
        "The score of a cut action has no mean.",
        "The gradient is the mean of reward times score.",
        "weights returns by squared scores",
        "The score of a run is its true mean return.",
        "Here the true score rises.",
    ],
)
def test_another_sense_is_found(sentence):
    assert misused([sentence])


@pytest.mark.parametrize(
    "sentence",
    [
        "The reward model's score rises, and the scores of three replies are 0, 1 and 2.",
        "Statisticians call it the **score function**. We write *grad log pi* for it.",
        "`score_function(logits, actions)` has a name of its own.",
    ],
)
def test_the_right_sense_passes(sentence):
    assert misused([sentence]) == []


def test_planted_rows_are_found():
    head = "| " + " | ".join(COLUMNS) + " |\n|---|---|---|---|---|---|\n"
    rows = terms(head + "| $x$ | prompt | 提示 | a | – | 00 |\n| $x$ | Prompt | 提示 | b | – | 00 |\n")
    assert (twice(rows, "symbol"), twice(rows, "word")) == (["$x$"], ["prompt"])
