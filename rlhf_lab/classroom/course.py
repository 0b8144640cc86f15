"""Notebooks as course material: run them, store outputs that stay the same, make the student copy.

The notebooks in `notebooks/` hold their solutions between `### BEGIN SOLUTION` and `### END SOLUTION`.
Students get a copy in which those lines raise NotImplementedError and nothing has been run. As in nbgrader, whose
metadata the cells carry, HIDDEN TESTS and MARK SCHEME between the same marks go too, and a cell with the metadata
`solution` that holds no mark is a solution as a whole. Left out: grading, which is nbgrader's work.

    python run.py notebooks --write [FILES]      execute and store
    python run.py release                        write the student copies
"""

import argparse
import os
import re
import sys
import tempfile
from copy import deepcopy
from difflib import get_close_matches
from pathlib import Path
from urllib.parse import unquote

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode
from nbformat.validator import iter_validate

from rlhf_lab.feedback.store import PLACE
from rlhf_lab.training.files import write_text_atomic

KERNEL = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
KEPT_CELL_METADATA = ("tags", "nbgrader", "jupyter", "editable", "deletable")
WIDGET_TYPE = "application/vnd.jupyter.widget-view+json"
CODE_STUB, TEXT_STUB = 'raise NotImplementedError("your code here")', "Your answer here."
MARK = re.compile(r"(\s*)[\W_]*(BEGIN|END)\s+(SOLUTION|HIDDEN\s+TESTS|MARK\s+SCHEME)[\W_]*", re.IGNORECASE)
MARKS = [f"{end}{kind}" for end in ("BEGIN", "END") for kind in ("SOLUTION", "HIDDENTESTS", "MARKSCHEME")]
_HIDDEN = r"(SOLUTION|HIDDEN[\s_-]*TEST|MARK[\s_-]*SCHEME)"
# In a comment in any spelling, and in capitals anywhere: what people write who mean a mark.
NEARLY_A_MARK = re.compile(
    rf"(?i:(#|//|<!--).*(?<![a-z])(BEGIN|START|END|STOP)[\s_-]*(OF\b|THE\b|\s)*{_HIDDEN})"
    rf"|\b(BEGIN|END)\s+{_HIDDEN}|^[^'\"]*#\s*SOLUTION\b"
)
STUDENT_COPY = "student copy"  # in the metadata of what `release` writes, so that it replaces nothing else
PROGRESS_BAR = re.compile(r"\s*\d+%\|[^|]*\|\s*(?:\d+/)?(\d+\S*) \[.*")


# ---- stored outputs ----------------------------------------------------------------------------------------


def normalise(notebook: NotebookNode) -> NotebookNode:
    """Return a copy of an executed notebook whose stored form depends on nothing but what it computes.

    One kernelspec and no other notebook metadata (widget state goes), execution counts from 1, cell ids by
    position where there are none; in the outputs no stderr, no widget views (their text stays), no times in
    progress bars, no overwritten or trailing characters.

    Args:
        notebook: a version 4 notebook.

    Returns:
        A new notebook; the argument stays as it was.

    Example:
        >>> book = nbformat.v4.new_notebook(metadata={"widgets": {"state": {}}})
        >>> sorted(normalise(book).metadata)
        ['kernelspec', 'language_info']
    """
    book = deepcopy(notebook)
    book.metadata = nbformat.from_dict(KERNEL)
    book.nbformat, book.nbformat_minor = 4, 5
    count = 0
    for position, cell in enumerate(book.cells):
        cell.setdefault("id", f"cell-{position}")
        cell.metadata = NotebookNode({k: v for k, v in cell.metadata.items() if k in KEPT_CELL_METADATA})
        if cell.cell_type == "code" and cell.execution_count is not None:
            count += 1
            cell.execution_count = count
            cell.outputs = _normalise_outputs(cell.outputs, count)
    return book


def _normalise_outputs(outputs: list[NotebookNode], count: int) -> list[NotebookNode]:
    kept: list[NotebookNode] = []
    for output in outputs:
        if output.output_type == "stream":
            if output.name == "stderr":
                continue
            if kept and kept[-1].output_type == "stream":
                kept[-1].text += output.text
                continue
        elif output.output_type == "execute_result":
            output.execution_count = count
        kept.append(output)
    for output in kept:
        _normalise_output(output)
    return kept


def _normalise_output(output: NotebookNode) -> None:
    if output.output_type == "stream":
        output.text = _clean_text(output.text)
    elif "data" in output:
        output.data.pop(WIDGET_TYPE, None)
        if "text/plain" in output.data:
            output.data["text/plain"] = _clean_text(output.data["text/plain"])


def _clean_text(text: str) -> str:
    lines = [line.rsplit("\r", 1)[-1] for line in text.replace("\r\n", "\n").split("\n")]
    return "\n".join(PROGRESS_BAR.sub(r" 100%|██████████| \1", line).rstrip(" \t") for line in lines)


def execute(path: str | Path, timeout: float = 300.0) -> NotebookNode:
    """Run a notebook in its own folder and store it with normalised outputs, whole or not at all.

    It sees an empty store of feedback: what one reader judged does not belong in a stored notebook.

    Args:
        path: the notebook file; it is replaced.
        timeout: seconds that one cell may take.

    Returns:
        The notebook as stored.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell raised; the file is as it was.
        ValueError: no notebook, or a cell wrote to stderr, so a reader would meet a warning; the file is as it was.
    """
    path = Path(path)
    book = read_notebook(path)
    folder = {"metadata": {"path": str(path.resolve().parent)}}
    with tempfile.TemporaryDirectory() as empty:
        env = os.environ | {PLACE: str(Path(empty) / "feedback.db")}
        NotebookClient(book, timeout=timeout, kernel_name="python3", resources=folder).execute(env=env)
    for position, cell in enumerate(book.cells):
        errors = [o.text for o in cell.get("outputs", ()) if o.output_type == "stream" and o.name == "stderr"]
        if errors:
            raise ValueError(f"{path.name}, cell {position} wrote to stderr: {''.join(errors).strip()[:400]}")
    book = normalise(book)
    write_notebook(path, book)
    return book


def read_notebook(path: str | Path) -> NotebookNode:
    """Read a notebook file as version 4.

    Raises:
        ValueError: a missing file, a folder, or no notebook; the message names the file and the reason.
    """
    try:
        book = nbformat.read(path, as_version=4)
        reason = next((error.message for error in iter_validate(book)), "")
    except OSError as error:
        reason = error.strerror or "it cannot be read"
    except (ValueError, AttributeError, KeyError, TypeError, nbformat.ValidationError) as error:
        reason = str(error)  # nbformat raises whatever the first missing part makes of it
    if reason:
        why = reason.splitlines()[0][:200]
        raise ValueError(f"cannot read {path} as a notebook: {why}; give a file *.ipynb that Jupyter wrote")
    return book


def write_notebook(path: str | Path, notebook: NotebookNode) -> None:
    """Validate a notebook and write it atomically, with one space of indentation and a newline at the end."""
    nbformat.validate(notebook)
    write_text_atomic(Path(path), _text(notebook))


def _text(notebook: NotebookNode) -> str:
    return nbformat.writes(notebook, version=nbformat.NO_CONVERT) + "\n"


# ---- the student copy --------------------------------------------------------------------------------------


def student_release(notebook: NotebookNode) -> NotebookNode:
    """Return the copy for students: no solutions, hidden tests and mark schemes, and no outputs.

    A solution is what stands between its marks in a cell of any kind, or the whole of a cell with the metadata of an
    nbgrader solution and without marks. In its place code raises NotImplementedError, and text asks for an answer.

    Raises:
        ValueError: a mark without its partner, or a line that is nearly a mark; the message names the cell.

    Example:
        >>> source = "def f(x):\\n    ### BEGIN SOLUTION\\n    return 2 * x\\n    ### END SOLUTION"
        >>> cell = nbformat.v4.new_code_cell(source, execution_count=1)
        >>> print(student_release(nbformat.v4.new_notebook(cells=[cell])).cells[0].source)
        def f(x):
            raise NotImplementedError("your code here")
    """
    book = normalise(notebook)
    book.metadata["rlhf_lab"] = STUDENT_COPY
    for position, cell in enumerate(book.cells):
        _hide_solution(cell, position)
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return book


def _hide_solution(cell: NotebookNode, position: int) -> None:
    stub = CODE_STUB if cell.cell_type == "code" else TEXT_STUB
    source, hidden = _without_regions(cell.source, stub, position)
    grading = cell.metadata.get("nbgrader")
    if isinstance(grading, dict):
        grading.pop("checksum", None)  # of the teacher's cell
        if grading.get("solution") and "SOLUTION" not in hidden:
            source = stub
    cell.source = source
    if "attachments" in cell:
        shown = {name: data for name, data in cell.attachments.items() if name in unquote(source)}
        cell.attachments = NotebookNode(shown)


def _without_regions(source: str, stub: str, position: int) -> tuple[str, set[str]]:
    """The lines outside of the marks, with the stub for a solution; and which kinds of region there were."""
    kept, hidden, region = [], set(), ""
    for line in source.split("\n"):
        mark = MARK.fullmatch(line)
        if mark is None:
            _refuse_nearly_a_mark(line, position)
            kept += [] if region else [line]
            continue
        kind = " ".join(mark[3].upper().split())
        if region != ("" if mark[2].upper() == "BEGIN" else kind):
            raise ValueError(f"cell {position}: ### {mark[2].upper()} {kind} without its partner")
        region = "" if region else kind
        if region == "SOLUTION":
            kept.append(mark[1] + stub)
        hidden.add(kind)
    if region:
        raise ValueError(f"cell {position}: ### BEGIN {region} is never closed")
    return "\n".join(kept), hidden


def _refuse_nearly_a_mark(line: str, position: int) -> None:
    """Something like `## BEGIN SOLTUION` would leave the solution in the copy."""
    letters = re.sub("[^A-Z]", "", line.upper())
    comment = line.lstrip().startswith(("#", "//", "<!--"))
    if NEARLY_A_MARK.search(line) or (comment and get_close_matches(letters, MARKS, cutoff=0.9)):
        raise ValueError(
            f"cell {position}: {line.strip()!r} is nearly a mark. Write ### BEGIN SOLUTION, ### END SOLUTION, or the "
            "same with HIDDEN TESTS or MARK SCHEME, alone on the line; or say it in other words"
        )


def release(source: str | Path, target: str | Path, force: bool = False) -> list[Path]:
    """Write the student copy of every notebook of one folder into another, and lose nobody's work.

    Args:
        source: folder of the notebooks with solutions.
        target: folder for the copies; made when missing. The chapters read `../data`, seen from there.
        force: replace copies that differ from what is written now. What is no student copy is never replaced.

    Returns:
        The paths written, in the order of the chapters; a copy that is there already is left alone.

    Raises:
        ValueError: no notebook in the source, a target that is a file or the source, an unclosed solution, something
            else in the place of a copy, or without `force` a copy that differs. Nothing has been written then.
        SaveError: a copy could not be written.
    """
    source, target = Path(source), Path(target)
    books = sorted(source.glob("*.ipynb"))
    if not books:
        raise ValueError(f"no notebook (*.ipynb) in {source}; pass the folder that holds the chapters")
    if target.exists() and not target.is_dir():
        raise ValueError(f"{target} is a file, and the copies need a folder; name another one with --out")
    if source.resolve() == target.resolve():
        raise ValueError(f"the copies would replace the notebooks in {source}; choose another target folder")
    copies = {target / book.name: _copy_of(book) for book in books}
    there = {path for path in copies if os.path.lexists(path)}
    same = {path for path in there if path.is_file() and _read(path) == _text(copies[path])}
    if foreign := sorted(path for path in there - same if not _is_student_copy(path)):
        raise ValueError(
            f"nothing was written, since {', '.join(map(str, foreign))} was not written by `release`, which replaces "
            "nothing else, not even with --force. Move it away, or name another folder with --out"
        )
    if there - same and not force:
        raise ValueError(
            f"nothing was written, since this would replace {', '.join(map(str, sorted(there - same)))}: what is "
            "there was worked on, or comes from another version of the course. Name another folder with --out, or "
            "add --force to lose it"
        )
    written = [path for path in copies if path not in same]
    for path in written:
        write_notebook(path, copies[path])
    return written


def _copy_of(path: Path) -> NotebookNode:
    try:
        return student_release(read_notebook(path))
    except ValueError as error:
        raise ValueError(f"{path.name}, {error}" if path.name not in str(error) else str(error)) from error


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def _is_student_copy(path: Path) -> bool:
    """Whether `release` wrote it; Jupyter keeps the metadata when a student saves the notebook."""
    if path.is_symlink():
        return False
    try:
        return read_notebook(path).metadata.get("rlhf_lab") == STUDENT_COPY
    except ValueError:
        return False


# ---- the command -------------------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> int:
    """Execute and store the notebooks that are named; all of them are read before the first is run."""
    parser = argparse.ArgumentParser(
        prog="run.py notebooks --write", description="Execute notebooks and store them with their outputs."
    )
    parser.add_argument("notebooks", metavar="FILE", nargs="+", help="a notebook, which is replaced")
    paths = parser.parse_args(arguments).notebooks
    try:
        for path in paths:
            read_notebook(path)
        for path in paths:
            print(f"executing {path}", flush=True)
            execute(path)
    except KeyboardInterrupt:
        return 130
    except CellExecutionError as error:  # its text is the cell and its traceback
        print(f"{path} is as it was, since a cell raised:\n{error}", file=sys.stderr)
        return 1
    except (ValueError, OSError, RuntimeError) as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
