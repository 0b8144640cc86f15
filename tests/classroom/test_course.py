"""Storing and releasing notebooks: normal form, a real kernel, strict nbval on what was stored."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError

from rlhf_lab.classroom import course

ROOT = Path(__file__).resolve().parents[2]
new_output = nbformat.v4.new_output


def notebook(*cells, **metadata):
    return nbformat.v4.new_notebook(cells=list(cells), metadata=metadata)


def code(source, outputs=(), count=1, **metadata):
    return nbformat.v4.new_code_cell(source, outputs=list(outputs), execution_count=count, metadata=metadata)


def outputs_of(*outputs):
    return course.normalise(notebook(code("x", outputs))).cells[0].outputs


# ---- normalise ---------------------------------------------------------------------------------------------


def test_metadata_is_one_kernelspec():
    book = course.normalise(notebook(widgets={"state": {}}, kernelspec={"name": "mine", "display_name": "x"}, colab={}))
    assert book.metadata == course.KERNEL


def test_cell_metadata_keeps_what_means_something():
    grading = {"grade": True, "solution": False}
    cell = code("x", tags=["nbval-ignore-output"], nbgrader=grading, execution={"iopub": "12:01"}, scrolled=True)
    kept = course.normalise(notebook(cell)).cells[0].metadata
    assert kept == {"tags": ["nbval-ignore-output"], "nbgrader": grading}


def test_counts_run_from_one_over_executed_cells():
    result = new_output("execute_result", data={"text/plain": "3"}, execution_count=12)
    book = notebook(code("a", count=7), code("b", count=None), code("c", [result], count=12))
    cells = course.normalise(book).cells
    assert [cell.execution_count for cell in cells] == [1, None, 2]
    assert cells[2].outputs[0].execution_count == 2


def test_streams_are_merged_and_stderr_goes():
    out = [new_output("stream", name=n, text=t) for n, t in (("stdout", "a  \n"), ("stderr", "!"), ("stdout", "b"))]
    assert [(o.name, o.text) for o in outputs_of(*out)] == [("stdout", "a\nb")]


def test_overwritten_characters_go():
    assert outputs_of(new_output("stream", text="step 1\rstep 2\nend"))[0].text == "step 2\nend"


@pytest.mark.parametrize(
    ("shown", "stored"),
    [
        ("PPO:  40%|####      | 4/10 [00:01<00:02, 3.1it/s, kl=0.2]", "PPO: 100%|██████████| 10"),
        ("  0%|          | 0/1.50k [00:00<?, ?it/s]", " 100%|██████████| 1.50k"),
        ("accuracy 80% | chance 50%", "accuracy 80% | chance 50%"),
    ],
)
def test_progress_bars_lose_their_clock(shown, stored):
    bar = new_output("display_data", data={"text/plain": shown, course.WIDGET_TYPE: {"model_id": "1"}})
    assert outputs_of(bar)[0].data == {"text/plain": stored}


def test_normal_form_is_stable_and_leaves_its_argument_alone():
    book = notebook(code("x", [new_output("stream", name="stderr", text="!")], count=5), widgets={})
    before = nbformat.writes(book)
    once = course.normalise(book)
    assert nbformat.writes(book) == before
    assert course.normalise(once) == once


# ---- the student copy --------------------------------------------------------------------------------------

EXERCISE = """def gain(x):
    y = x
    if y:
        ### BEGIN SOLUTION
        y = 2 * y

        y += 1
        ### END SOLUTION
    return y
### BEGIN SOLUTION
z = 1
### END SOLUTION"""


def test_solutions_are_replaced_and_outputs_cleared():
    book = notebook(code(EXERCISE, [new_output("stream", text="42")]), nbformat.v4.new_markdown_cell("text"))
    cell, text = course.student_release(book).cells
    assert cell.source.split("\n") == [
        "def gain(x):",
        "    y = x",
        "    if y:",
        '        raise NotImplementedError("your code here")',
        "    return y",
        'raise NotImplementedError("your code here")',
    ]
    assert (cell.outputs, cell.execution_count, text.source) == ([], None, "text")
    assert book.cells[0].source == EXERCISE


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("### BEGIN SOLUTION\nx = 1", "cell 0: ### BEGIN SOLUTION is never closed"),
        ("x = 1\n### END SOLUTION", "cell 0: ### END SOLUTION without its partner"),
        (
            "### BEGIN SOLUTION\n### BEGIN SOLUTION\n### END SOLUTION",
            "### BEGIN SOLUTION without its partner",
        ),
    ],
)
def test_a_mark_without_its_partner_is_an_error(source, message):
    with pytest.raises(ValueError, match=message):
        course.student_release(notebook(code(source)))


def solution_cell(new_cell, source, **more):
    """A cell that nbgrader takes for a solution; what `more` adds is part of its metadata."""
    grading = {"solution": True, "grade": True, "grade_id": "a", "points": 1, "schema_version": 3, **more}
    return new_cell(source, metadata={"nbgrader": grading})


def released(*cells):
    return course.student_release(notebook(*cells)).cells


@pytest.mark.parametrize(
    ("new_cell", "stub"),
    [
        (nbformat.v4.new_code_cell, 'raise NotImplementedError("your code here")'),
        (nbformat.v4.new_markdown_cell, "Your answer here."),
        (nbformat.v4.new_raw_cell, "Your answer here."),
    ],
)
def test_a_cell_of_any_kind_loses_its_solution(new_cell, stub):
    marked = "Why?\n### BEGIN SOLUTION\nanswer = 42\n### END SOLUTION\nGo on."
    assert released(new_cell(marked))[0].source == f"Why?\n{stub}\nGo on."
    whole, partly = released(solution_cell(new_cell, "answer = 42", checksum="x"), solution_cell(new_cell, marked))
    assert whole.source == stub
    assert "checksum" not in whole.metadata.nbgrader
    assert partly.source == f"Why?\n{stub}\nGo on."
    only_tests = "answer = 42\n### BEGIN HIDDEN TESTS\nassert answer\n### END HIDDEN TESTS"
    assert released(solution_cell(new_cell, only_tests))[0].source == stub


@pytest.mark.parametrize("kind", ["HIDDEN TESTS", "MARK SCHEME"])
def test_what_only_teachers_see_goes(kind):
    source = f"assert answer\n### BEGIN {kind}\nassert answer == 42\n### END {kind}"
    assert [c.source for c in released(code(source), nbformat.v4.new_markdown_cell(source))] == ["assert answer"] * 2
    with pytest.raises(ValueError, match=f"cell 0: ### BEGIN {kind} is never closed"):
        released(code(f"### BEGIN {kind}"))
    with pytest.raises(ValueError, match="cell 0: ### END SOLUTION without its partner"):
        released(code(f"### BEGIN {kind}\n### END SOLUTION"))


@pytest.mark.parametrize("mark", ["# {} solution", "###{} SOLUTION", "<!-- {} Solution -->", "#### {}  SOLUTION ####"])
def test_marks_in_other_dress_are_marks(mark):
    source = f"if x:\n    {mark.format('BEGIN')}\n    y = 42\n    {mark.format('END')}"
    assert released(code(source))[0].source == 'if x:\n    raise NotImplementedError("your code here")'


@pytest.mark.parametrize(
    "line",
    ["# BEGIN SOLTUION", "### begin_solution", "y = 42  # END SOLUTION", "### BEGIN SOLUTIONS", "## START OF SOLUTION",
     "### BEGIN HIDDEN TEST", "# SOLUTION", "y = 42  # SOLUTION NO PROMPT", "### BEGIN SOLUTION of part 2"],
)  # fmt: skip
def test_what_is_nearly_a_mark_is_refused(line):
    with pytest.raises(ValueError, match=r"cell 1: .* is nearly a mark. Write ### BEGIN SOLUTION") as caught:
        released(code("x"), code(f"{line}\ny = 42"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "line", ["end_solution = 3", "# the solution of (I - gamma P) v = r", "# Find the solution", "x = '# SOLUTION'"]
)
def test_words_that_are_no_marks_stay(line):
    assert released(code(line))[0].source == line


def test_pictures_of_a_solution_go_with_it():
    source = "![a](attachment:my%20map.png)\n### BEGIN SOLUTION\n![b](attachment:b.png)\n### END SOLUTION"
    data = {"my map.png": {"image/png": "a"}, "b.png": {"image/png": "b"}}
    cell = nbformat.v4.new_markdown_cell(source, attachments=data)
    assert set(released(cell)[0].attachments) == {"my map.png"}
    assert set(cell.attachments) == set(data)


def test_release_writes_every_chapter(tmp_path):
    source, target = tmp_path / "notebooks", tmp_path / "runs" / "student"
    source.mkdir()
    for name in ("01_b.ipynb", "00_a.ipynb"):
        course.write_notebook(source / name, notebook(code(EXERCISE)))
    assert course.release(source, target) == [target / "00_a.ipynb", target / "01_b.ipynb"]
    assert "y += 1" not in (target / "00_a.ipynb").read_text(encoding="utf-8")
    assert "y += 1" in (source / "00_a.ipynb").read_text(encoding="utf-8")


def test_release_refuses_to_overwrite_and_to_write_half(tmp_path):
    with pytest.raises(ValueError, match="no notebook"):
        course.release(tmp_path, tmp_path / "out")
    course.write_notebook(tmp_path / "00_a.ipynb", notebook(code("x = 1")))
    with pytest.raises(ValueError, match="would replace the notebooks"):
        course.release(tmp_path, tmp_path / "." / "")
    course.write_notebook(tmp_path / "01_b.ipynb", notebook(code("### BEGIN SOLUTION")))
    with pytest.raises(ValueError, match="never closed"):
        course.release(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_release_keeps_a_students_work(tmp_path):
    """A changed copy stops the whole release; --force replaces it, and equal copies are left alone."""
    source, target = tmp_path / "notebooks", tmp_path / "student"
    source.mkdir()
    for name in ("00_a.ipynb", "01_b.ipynb"):
        course.write_notebook(source / name, notebook(code(EXERCISE)))
    first, second = course.release(source, target)
    fresh = {path: path.read_bytes() for path in (first, second)}
    assert course.release(source, target) == []
    work = first.read_text(encoding="utf-8").replace("your code here", "mine")
    first.write_text(work, encoding="utf-8")
    second.unlink()
    with pytest.raises(ValueError, match=r"would replace .*00_a.ipynb: .*worked on.*another version.*--out.*--force"):
        course.release(source, target)
    assert first.read_text(encoding="utf-8") == work
    assert not second.exists()
    second.write_bytes(fresh[second])
    inode = second.stat().st_ino
    assert course.release(source, target, force=True) == [first]
    assert first.read_bytes() == fresh[first]
    assert second.stat().st_ino == inode


@pytest.fixture
def course_of_one(tmp_path):
    """(folder of one chapter, place of its copy)."""
    course.write_notebook(tmp_path / "notebooks" / "00_a.ipynb", notebook(code(EXERCISE)))
    (tmp_path / "student").mkdir()
    return tmp_path / "notebooks", tmp_path / "student" / "00_a.ipynb"


@pytest.mark.parametrize("what", ["text", "another notebook", "folder", "link", "dangling link"])
def test_release_replaces_nothing_that_it_did_not_write(course_of_one, what):
    source, copy = course_of_one
    mine = copy.with_name("mine.ipynb")
    work = course.student_release(notebook(code("mine"))) if what == "link" else notebook(code("mine"))
    course.write_notebook(mine, work)
    if what == "folder":
        copy.mkdir()
    elif what == "text":
        copy.write_text("mine", encoding="utf-8")
    elif "link" in what:
        copy.symlink_to(mine if what == "link" else "nowhere")
    else:
        copy.write_bytes(mine.read_bytes())
    before = (copy.lstat().st_ino, copy.lstat().st_mtime_ns)
    with pytest.raises(ValueError, match=r"00_a.ipynb was not written by `release`.*Move it away.*--out"):
        course.release(source, copy.parent, force=True)
    assert (copy.lstat().st_ino, copy.lstat().st_mtime_ns) == before
    assert sorted(path.name for path in copy.parent.iterdir()) == ["00_a.ipynb", "mine.ipynb"]


def test_a_copy_that_a_student_saved_is_still_known(course_of_one):
    """Jupyter adds to the metadata of a notebook and keeps what is there."""
    source, copy = course_of_one
    course.release(source, copy.parent)
    fresh = copy.read_bytes()
    work = nbformat.read(copy, as_version=4)
    work.metadata.language_info["version"] = "3.11"
    work.cells[0].source = "mine"
    nbformat.write(work, copy)
    assert course.release(source, copy.parent, force=True) == [copy]
    assert copy.read_bytes() == fresh


def test_release_into_a_file_or_below_one_changes_nothing(course_of_one, tmp_path):
    source, _ = course_of_one
    taken = tmp_path / "notes.txt"
    taken.write_text("mine", encoding="utf-8")
    with pytest.raises(ValueError, match=r"notes.txt is a file, and the copies need a folder; .*--out"):
        course.release(source, taken, force=True)
    with pytest.raises(OSError, match=r"cannot write .*Not a directory.*choose a folder"):
        course.release(source, taken / "student")
    assert taken.read_text(encoding="utf-8") == "mine"


def test_release_names_the_chapter_that_is_wrong(course_of_one):
    source, copy = course_of_one
    course.write_notebook(source / "01_b.ipynb", notebook(code("### BEGIN SOLUTION")))
    with pytest.raises(ValueError, match=r"01_b.ipynb, cell 0: ### BEGIN SOLUTION is never closed"):
        course.release(source, copy.parent)
    (source / "01_b.ipynb").write_text("[]", encoding="utf-8")
    with pytest.raises(ValueError, match=r"cannot read .*01_b.ipynb as a notebook"):
        course.release(source, copy.parent)
    assert list(copy.parent.iterdir()) == []


def test_the_command_releases_to_where_the_data_are_found(tmp_path, monkeypatch, capsys):
    """The default sits beside notebooks/, so ../data is the same folder; elsewhere there is a warning."""
    from rlhf_lab import __main__ as commands

    (tmp_path / "data").mkdir()
    (tmp_path / "notebooks").mkdir()
    course.write_notebook(tmp_path / "notebooks" / "00_a.ipynb", notebook(code(EXERCISE)))
    monkeypatch.setattr(commands, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    assert commands.main(["release"]) == 0
    copy = tmp_path / "student" / "00_a.ipynb"
    assert copy.exists()
    said = capsys.readouterr()
    assert said.out == "wrote 1 notebooks without solutions to student\n"
    assert said.err == ""
    assert commands.main(["release"]) == 0
    assert "1 were there already" in capsys.readouterr().out
    assert commands.main(["release", "--out", "runs/student"]) == 0
    assert f"there is no {tmp_path / 'runs' / 'data'}" in capsys.readouterr().err
    fresh = copy.read_text(encoding="utf-8")
    copy.write_text(fresh.replace("your code here", "mine"), encoding="utf-8")
    assert commands.main(["release"]) == 1
    assert "00_a.ipynb" in capsys.readouterr().err
    assert copy.read_text(encoding="utf-8") != fresh
    assert commands.main(["release", "--force"]) == 0
    assert copy.read_text(encoding="utf-8") == fresh


def test_copies_in_student_find_the_data_and_stay_out_of_the_repository():
    from rlhf_lab.__main__ import _parser

    student = ROOT / _parser().parse_args(["release"]).out
    assert (student.parent / "data" / "results").is_dir()
    assert f"{student.name}/" in (ROOT / ".gitignore").read_text(encoding="utf-8").split()


# ---- a real kernel -----------------------------------------------------------------------------------------

CHAPTER = [
    "from pathlib import Path\nfrom tqdm.auto import tqdm\nimport ipywidgets\nPath('beside').read_text()",
    "total = 0\nfor i in tqdm(range(40), desc='PPO'):\n    total += i\nprint('a line  ')\ntotal",
    "button = ipywidgets.Button(description='better')\nbutton",
    "print('number', 3)",
]


def test_execute_stores_what_strict_nbval_accepts(tmp_path):
    """nbval passes on the stored chapter (bar, widget, folder) and fails on a number that was changed."""
    path = tmp_path / "00_a.ipynb"
    (tmp_path / "beside").write_text("found", encoding="utf-8")
    book = notebook(*[nbformat.v4.new_code_cell(source) for source in CHAPTER])
    nbformat.write(book, path)
    stored = course.execute(path)
    assert [cell.execution_count for cell in stored.cells] == [1, 2, 3, 4]
    assert stored.cells[1].outputs[0].data == {"text/plain": "PPO: 100%|██████████| 40"}
    text = path.read_text(encoding="utf-8")
    assert "widget-view" not in text
    path.write_text(text.replace("number 3", "number 4"), encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-c",
        str(ROOT / "pyproject.toml"),
    ]
    report = subprocess.run(
        [*command, "--nbval", str(path)], capture_output=True, text=True, cwd=ROOT, env=os.environ
    ).stdout
    assert "1 failed, 3 passed" in report, report
    assert "number 4" in report


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ("1 / 0", CellExecutionError, "ZeroDivisionError"),
        ("import warnings\nwarnings.warn('old')", ValueError, "00_a.ipynb, cell 0 wrote to stderr: .*old"),
    ],
)
def test_a_chapter_that_fails_or_warns_is_not_stored(tmp_path, source, error, message):
    path = tmp_path / "00_a.ipynb"
    nbformat.write(notebook(nbformat.v4.new_code_cell(source)), path)
    before = path.read_bytes()
    with pytest.raises(error, match=message):
        course.execute(path)
    assert path.read_bytes() == before


# ---- python run.py notebooks --write -------------------------------------------------------------------------------


@pytest.fixture
def write(monkeypatch, capsys):
    """Run the command on paths; gives its exit code, stdout and stderr."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["course.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(course.__file__, run_name="__main__")
        return ended.value.code, *capsys.readouterr()

    return run


@pytest.mark.parametrize("second", ["missing.ipynb", "text.ipynb", "folder.ipynb", "list.ipynb", "--force"])
def test_write_looks_at_all_arguments_before_it_runs_the_first(tmp_path, write, second):
    path = tmp_path / "00_a.ipynb"
    nbformat.write(notebook(nbformat.v4.new_code_cell("print(1)")), path)
    before = path.read_bytes()
    (tmp_path / "text.ipynb").write_text("mine", encoding="utf-8")
    (tmp_path / "list.ipynb").write_text("[]", encoding="utf-8")
    (tmp_path / "folder.ipynb").mkdir()
    status, out, err = write(path, second if second.startswith("-") else tmp_path / second)
    assert path.read_bytes() == before
    assert (status, out) == (2 if second.startswith("-") else 1, "")
    assert second in err.splitlines()[-1]


def test_write_shows_the_cell_that_failed(tmp_path, write):
    path = tmp_path / "00_a.ipynb"
    nbformat.write(notebook(nbformat.v4.new_code_cell("1 / 0")), path)
    status, _, err = write(path)
    assert status == 1
    assert f"{path} is as it was, since a cell raised:" in err
    assert "ZeroDivisionError" in err


WHERE_IT_IS = """
from rlhf_lab.feedback.store import default_path
print(default_path().exists(), str(default_path()) != {!r})
"""


def test_a_stored_notebook_sees_an_empty_store(tmp_path, monkeypatch):
    mine = tmp_path / "mine.db"
    mine.write_bytes(b"")
    monkeypatch.setenv("RLHF_LAB_STORE", str(mine))
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(WHERE_IT_IS.format(str(mine)))])
    nbformat.write(book, tmp_path / "book.ipynb")
    assert course.execute(tmp_path / "book.ipynb").cells[0].outputs[0].text == "False True\n"


def test_tests_see_an_empty_store():
    from rlhf_lab.feedback.store import default_path

    assert not default_path().is_relative_to(Path.home())
    assert not default_path().exists()
