"""Storing and releasing notebooks: normal form, a real kernel, strict nbval on what was stored."""

import os
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
    copy.write_text("mine", encoding="utf-8")
    assert commands.main(["release"]) == 1
    assert "00_a.ipynb" in capsys.readouterr().err
    assert copy.read_text(encoding="utf-8") == "mine"
    assert commands.main(["release", "--force"]) == 0
    assert copy.read_text(encoding="utf-8") != "mine"


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
