"""Notebooks as course material: run them, store outputs that stay the same, make the student copy.

The notebooks in `notebooks/` hold their solutions between `### BEGIN SOLUTION` and `### END SOLUTION`.
Students get a copy in which those lines raise NotImplementedError and nothing has been run. Left out:
grading, which is nbgrader's work (the cell metadata are its own).

    python run.py notebooks --write [FILES]      execute and store
    python run.py release                        write the student copies
"""

import re
import sys
from copy import deepcopy
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

from rlhf_lab.training.files import write_text_atomic

KERNEL = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
KEPT_CELL_METADATA = ("tags", "nbgrader", "jupyter", "editable", "deletable")
WIDGET_TYPE = "application/vnd.jupyter.widget-view+json"
SOLUTION = re.compile(r"^\s*### (BEGIN|END) SOLUTION\s*$")
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

    Args:
        path: the notebook file; it is replaced.
        timeout: seconds that one cell may take.

    Returns:
        The notebook as stored.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell raised; the file is as it was.
        ValueError: a cell wrote to stderr, so a reader would meet a warning; the file is as it was.
    """
    path = Path(path)
    book = nbformat.read(path, as_version=4)
    folder = {"metadata": {"path": str(path.resolve().parent)}}
    NotebookClient(book, timeout=timeout, kernel_name="python3", resources=folder).execute()
    for position, cell in enumerate(book.cells):
        errors = [o.text for o in cell.get("outputs", ()) if o.output_type == "stream" and o.name == "stderr"]
        if errors:
            raise ValueError(f"{path.name}, cell {position} wrote to stderr: {''.join(errors).strip()[:400]}")
    book = normalise(book)
    write_notebook(path, book)
    return book


def write_notebook(path: str | Path, notebook: NotebookNode) -> None:
    """Validate a notebook and write it atomically, with one space of indentation and a newline at the end."""
    nbformat.validate(notebook)
    write_text_atomic(Path(path), _text(notebook))


def _text(notebook: NotebookNode) -> str:
    return nbformat.writes(notebook, version=nbformat.NO_CONVERT) + "\n"


# ---- the student copy --------------------------------------------------------------------------------------


def student_release(notebook: NotebookNode) -> NotebookNode:
    """Return the copy for students: solutions replaced by NotImplementedError, outputs cleared.

    Raises:
        ValueError: a solution mark without its partner; the message names the cell.

    Example:
        >>> source = "def f(x):\\n    ### BEGIN SOLUTION\\n    return 2 * x\\n    ### END SOLUTION"
        >>> cell = nbformat.v4.new_code_cell(source, execution_count=1)
        >>> print(student_release(nbformat.v4.new_notebook(cells=[cell])).cells[0].source)
        def f(x):
            raise NotImplementedError("your code here")
    """
    book = normalise(notebook)
    for position, cell in enumerate(book.cells):
        if cell.cell_type == "code":
            cell.source = _without_solution(cell.source, position)
            cell.outputs, cell.execution_count = [], None
    return book


def _without_solution(source: str, position: int) -> str:
    kept, inside = [], False
    for line in source.split("\n"):
        mark = SOLUTION.match(line)
        if mark is None:
            kept += [] if inside else [line]
        elif (mark[1] == "BEGIN") == inside:
            raise ValueError(f"cell {position}: ### {mark[1]} SOLUTION without its partner in\n{source}")
        else:
            inside = not inside
            if inside:
                kept.append(line[: line.index("###")] + 'raise NotImplementedError("your code here")')
    if inside:
        raise ValueError(f"cell {position}: ### BEGIN SOLUTION is never closed in\n{source}")
    return "\n".join(kept)


def release(source: str | Path, target: str | Path, force: bool = False) -> list[Path]:
    """Write the student copy of every notebook of one folder into another, and lose nobody's work.

    Args:
        source: folder of the notebooks with solutions.
        target: folder for the copies; made when missing. The chapters read `../data`, seen from there.
        force: replace copies that differ from what is written now.

    Returns:
        The paths written, in the order of the chapters; a copy that is there already is left alone.

    Raises:
        ValueError: no notebook in the source, a target that is the source, an unclosed solution, or without
            `force` a copy that differs. Nothing has been written then.
    """
    source, target = Path(source), Path(target)
    books = sorted(source.glob("*.ipynb"))
    if not books:
        raise ValueError(f"no notebook (*.ipynb) in {source}; pass the folder that holds the chapters")
    if source.resolve() == target.resolve():
        raise ValueError(f"the copies would replace the notebooks in {source}; choose another target folder")
    copies = {target / book.name: student_release(nbformat.read(book, as_version=4)) for book in books}
    there = {path for path in copies if path.exists()}
    same = {path for path in there if path.read_text(encoding="utf-8", errors="replace") == _text(copies[path])}
    if there - same and not force:
        raise ValueError(
            f"nothing was written, since this would replace {', '.join(map(str, sorted(there - same)))}: what is "
            "there was worked on, or comes from another version of the course. Name another folder with --out, or "
            "add --force to lose it"
        )
    target.mkdir(parents=True, exist_ok=True)
    written = [path for path in copies if path not in same]
    for path in written:
        write_notebook(path, copies[path])
    return written


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(f"executing {name}", flush=True)
        execute(name)
