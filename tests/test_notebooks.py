"""The form of every chapter: what is stored, how long its cells are, what it promises to check.

A rule is a function from a notebook to a list of violations. Planted violations show that each rule fires;
the rules then hold for every file in notebooks/. What the cells compute is compared by nbval, which
`python run.py test` runs.
"""

import ast
import re
import statistics
from pathlib import Path

import nbformat
import pytest

from rlhf_lab.classroom.course import KERNEL, WIDGET_TYPE, normalise, student_release

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
LONGEST_CELL, MEDIAN_CELL = 30, 8  # lines of code
MOST_IGNORED = 8  # cells a chapter whose output nbval does not compare
SHORTEST_ALT = 5  # words
LARGEST_FILE = 1_000_000  # bytes
LEAKS = re.compile(
    r"(?<![\w.:/-])/(?:home|root|Users|tmp|work|opt|usr|var|mnt)/\w|\b[A-Z]:\\+\w|site-packages|0x[0-9a-f]{8,}"
)
IGNORE_TAGS = {"nbval-ignore-output", "nbval_ignore_output"}
SKIP_TAGS = {"nbval-skip", "nbval_skip"}


def code_cells(book):
    """(position, cell) of the code cells that hold anything."""
    return [(i, c) for i, c in enumerate(book.cells) if c.cell_type == "code" and c.source.strip()]


def tags(cell):
    comments = re.findall(r"(?m)^\s*#\s*(NBVAL_\w+|PYTEST_VALIDATE_IGNORE_OUTPUT)\s*$", cell.source)
    renamed = [c.replace("PYTEST_VALIDATE", "NBVAL").lower().replace("_", "-") for c in comments]
    return {*cell.metadata.get("tags", ()), *renamed}


def lines(cell):
    return [line for line in cell.source.split("\n") if line.strip()]


def has_assert(cell):
    source = "\n".join("pass" if line.lstrip().startswith(("%", "!")) else line for line in lines(cell))
    return any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(source)))


def text_of(output):
    if output.output_type == "stream":
        return output.text
    if output.output_type == "error":
        return "\n".join([output.evalue, *output.traceback])
    return "\n".join(v for k, v in output.data.items() if k.startswith("text/") and isinstance(v, str))


# ---- the rules ---------------------------------------------------------------------------------------------


def executed(book):
    return [f"cell {i} was not executed" for i, cell in code_cells(book) if cell.execution_count is None]


def one_kernel(book):
    return [] if book.metadata == KERNEL else [f"notebook metadata is {dict(book.metadata)}, expected {KERNEL}"]


def no_errors_or_warnings(book):
    found = []
    for i, cell in code_cells(book):
        for output in cell.outputs:
            if output.output_type == "stream" and output.name == "stderr":
                found.append(f"cell {i} stores stderr: {output.text[:80]}")
            if output.output_type == "error" and "raises-exception" not in tags(cell):
                found.append(f"cell {i} stores an error and is not tagged raises-exception")
    return found


def no_stale_views(book):
    found = []
    for i, cell in code_cells(book):
        kinds = {kind for output in cell.outputs for kind in output.get("data", ())}
        found += [f"cell {i} stores {kind}" for kind in sorted(kinds & {WIDGET_TYPE, "image/svg+xml"})]
    return found


def pictures_have_words(book):
    """Every image carries a text for readers without it: `plots.show(alt)` puts it there."""
    found = []
    for i, cell in code_cells(book):
        for output in cell.outputs:
            alt = output.get("metadata", {}).get("image/png", {}).get("alt", "")
            if "image/png" in output.get("data", {}) and len(alt.split()) < SHORTEST_ALT:
                found.append(f"cell {i} stores an image with the text {alt!r}: plots.show(alt) with a sentence")
    return found


def normal_form(book):
    return [] if normalise(book) == book else ["not as rlhf_lab.classroom.course stores it: run.py notebooks --write"]


def no_leaks(book):
    found = []
    for i, cell in enumerate(book.cells):
        text = "\n".join([cell.source, *map(text_of, cell.get("outputs", ()))])
        found += [f"cell {i} holds a path or an address: {leak}" for leak in LEAKS.findall(text)]
    return found


def short_cells(book):
    sizes = {i: len(lines(cell)) for i, cell in code_cells(book)}
    found = [f"cell {i} has {n} lines, at most {LONGEST_CELL}" for i, n in sizes.items() if n > LONGEST_CELL]
    if sizes and statistics.median(sizes.values()) > MEDIAN_CELL:
        found.append(f"median code cell has {statistics.median(sizes.values())} lines, at most {MEDIAN_CELL}")
    return found


def asserts_something(book):
    return [] if any(has_assert(cell) for _, cell in code_cells(book)) else ["no cell asserts anything"]


def few_ignored(book):
    ignored = [(i, cell) for i, cell in code_cells(book) if tags(cell) & IGNORE_TAGS]
    found = [f"cell {i} is not compared and asserts nothing" for i, cell in ignored if not has_assert(cell)]
    found += [f"cell {i} is skipped by nbval" for i, cell in code_cells(book) if tags(cell) & SKIP_TAGS]
    if len(ignored) > MOST_IGNORED:
        found.append(f"{len(ignored)} cells are not compared, at most {MOST_IGNORED}")
    return found


def plain_words(book):
    found = []
    for i, cell in enumerate(book.cells):
        if cell.cell_type == "markdown":
            words = re.findall(r"(?i)\b(simply|obviously|just)\b", re.sub(r"`[^`]*`", "", cell.source))
            found += [f"cell {i} says {word!r}" for word in words]
    return found


def solutions_come_out(book):
    try:
        copy = student_release(book)
    except ValueError as error:
        return [str(error)]
    marked = [cell.source for cell in copy.cells if cell.cell_type == "code" and "SOLUTION" in cell.source]
    return [f"the student copy still holds a solution mark: {source[:80]}" for source in marked]


RULES = [
    executed,
    one_kernel,
    no_errors_or_warnings,
    no_stale_views,
    pictures_have_words,
    normal_form,
    no_leaks,
    short_cells,
    asserts_something,
    few_ignored,
    plain_words,
    solutions_come_out,
]


# ---- the chapters ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_chapters(rule):
    books = {path.name: nbformat.read(path, as_version=4) for path in sorted(FOLDER.glob("*.ipynb"))}
    assert {name: rule(book) for name, book in books.items() if rule(book)} == {}


def test_chapter_files():
    for path in FOLDER.glob("*.ipynb"):
        assert re.fullmatch(r"\d\d_[a-z_]+\.ipynb", path.name), f"{path.name}: chapters are named NN_name.ipynb"
        assert path.stat().st_size < LARGEST_FILE, f"{path.name} has {path.stat().st_size} bytes"


# ---- the rules fire ----------------------------------------------------------------------------------------


def stream(text, name="stdout"):
    return nbformat.v4.new_output("stream", name=name, text=text)


def code(source="assert 1 + 1 == 2", outputs=(), count=1, cell_tags=()):
    metadata = {"tags": list(cell_tags)} if cell_tags else {}
    return nbformat.v4.new_code_cell(source, outputs=list(outputs), execution_count=count, metadata=metadata)


def chapter(*cells, metadata=KERNEL):
    opening = nbformat.v4.new_markdown_cell("# A question")
    return nbformat.v4.new_notebook(cells=[opening, *(cells or [code()])], metadata=metadata)


def test_a_good_chapter_passes():
    printed = code(outputs=[stream("0.5 and /usr in words, see https://example.org/home/x\n")])
    trained = code("print(loss)\nassert loss < 1", cell_tags=["nbval-ignore-output"], count=2)
    shell = code("%matplotlib inline", count=3)
    picture = display("Two lines rise, one of them faster", **{"image/png": "iVBO"})
    picture.execution_count = 4
    book = chapter(printed, trained, shell, picture)
    assert {rule.__name__: rule(book) for rule in RULES if rule(book)} == {}


def display(alt=None, **data):
    metadata = {"image/png": {"alt": alt}} if alt else {}
    return code(outputs=[nbformat.v4.new_output("display_data", data=data, metadata=metadata)])


PLANTED = {
    "not executed": (executed, chapter(code(count=None)), "cell 1 was not executed"),
    "widget state": (one_kernel, chapter(metadata={**KERNEL, "widgets": {"state": {}}}), "widgets"),
    "other kernel": (
        one_kernel,
        chapter(metadata={"kernelspec": {"name": "my-env", "display_name": "x"}}),
        "my-env",
    ),
    "stderr": (no_errors_or_warnings, chapter(code(outputs=[stream("UserWarning", "stderr")])), "stderr"),
    "error": (
        no_errors_or_warnings,
        chapter(code(outputs=[nbformat.v4.new_output("error", ename="E", evalue="e", traceback=[])])),
        "stores an error",
    ),
    "widget view": (no_stale_views, chapter(display(**{WIDGET_TYPE: {"model_id": "1"}})), "widget-view"),
    "svg": (no_stale_views, chapter(display(**{"image/svg+xml": "<svg/>"})), "image/svg+xml"),
    "no words": (pictures_have_words, chapter(display(**{"image/png": "iVBO"})), "an image with the text ''"),
    "trailing spaces": (normal_form, chapter(code(outputs=[stream("a  \n")])), "not as rlhf_lab.classroom.course"),
    "execution order": (normal_form, chapter(code(count=7)), "not as rlhf_lab.classroom.course"),
    "wall clock": (
        normal_form,
        chapter(display(**{"text/plain": "PPO:  50%|#####     | 5/10 [00:01<00:01, 3.1it/s]"})),
        "not as rlhf_lab.classroom.course",
    ),
    "path": (no_leaks, chapter(code(outputs=[stream("saved to /home/ada/runs/model\n")])), "/home/a"),
    "path in code": (no_leaks, chapter(code("load('/root/model')")), "/root/m"),
    "Windows path": (no_leaks, chapter(code(outputs=[stream("C:\\Users\\ada\n")])), "C:\\U"),
    "address": (no_leaks, chapter(code(outputs=[stream("<Model at 0x7f3a2b1c9d10>\n")])), "0x7f3a"),
    "traceback": (
        no_leaks,
        chapter(code(outputs=[nbformat.v4.new_output("error", evalue="e", traceback=["/usr/lib/x.py"])])),
        "/usr/l",
    ),
    "long cell": (short_cells, chapter(code("x = 1\n" * 31), code(), code()), "cell 1 has 31 lines"),
    "long median": (short_cells, chapter(code("x = 1\n" * 9)), "median code cell has 9 lines"),
    "no assert": (asserts_something, chapter(code("assert_close = 1  # assert")), "no cell asserts"),
    "ignored without assert": (
        few_ignored,
        chapter(code("print(loss)", cell_tags=["nbval-ignore-output"])),
        "cell 1 is not compared and asserts nothing",
    ),
    "ignored by comment": (few_ignored, chapter(code("# NBVAL_IGNORE_OUTPUT\nprint(1)")), "asserts nothing"),
    "many ignored": (
        few_ignored,
        chapter(*[code(cell_tags=["nbval-ignore-output"]) for _ in range(MOST_IGNORED + 1)]),
        "9 cells are not compared",
    ),
    "skipped": (few_ignored, chapter(code("# NBVAL_SKIP\nassert False")), "skipped by nbval"),
    "condescension": (plain_words, chapter(nbformat.v4.new_markdown_cell("We simply divide.")), "'simply'"),
    "open solution": (solutions_come_out, chapter(code("### BEGIN SOLUTION\nx = 1")), "never closed"),
    "misspelt mark": (
        solutions_come_out,
        chapter(code("### BEGIN SOLUTION\nx = 1\n### END SOLUTION\n## END SOLTUION")),
        "is nearly a mark",
    ),
    "mark in a text": (solutions_come_out, chapter(code("print('MY SOLUTION')")), "still holds a solution mark"),
}


@pytest.mark.parametrize("case", PLANTED)
def test_planted_violation_is_found(case):
    rule, book, expected = PLANTED[case]
    found = rule(book)
    assert any(expected in violation for violation in found), found
