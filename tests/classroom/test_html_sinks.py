"""No text of a model or a person can become HTML: nothing in the package writes HTML but from constants.

In a browser a text is shown by `textContent`, or goes into a text field. The sources are searched for every other way.
"""

import ast
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from rlhf_lab.classroom.clinic.charts import Folded
from rlhf_lab.feedback.aggregation import consensus
from rlhf_lab.feedback.cleaning import clean
from rlhf_lab.records import Event, Ranking, as_conversation
from rlhf_lab.training.history import History, Result

PACKAGE = Path(__file__).resolve().parents[2] / "rlhf_lab"
SINKS = {  # in a script: what reads a text as HTML, as a script, or as an address that may hold one
    "HTML": r"\b((inner|outer)HTML|insertAdjacentHTML|setHTML(Unsafe)?|createContextualFragment|DOMParser)\b",
    "document.write": r"\bdocument\s*\.\s*write(ln)?\b|\bdocument\s*\[",
    "eval": r"\beval\s*\(|\bnew\s+Function\b|\bFunction\s*\(|\bimport\s*\(|\bset(Timeout|Interval)\s*\(\s*[\"'`]",
    "a frame": r"\bsrcdoc\b|createElement\(\s*[\"'`](script|iframe|object|embed|base|link|style)\b",
    "an address": r"\.href\b|[\"'`](href|formaction|xlink:href)[\"'`]|\bjavascript:",
    "a handler": r"[\"'`]on\w+[\"'`]|\.on(click|error|load|key\w*)\s*=",
    "the network": r"\bfetch\s*\(|\bXMLHttpRequest\b|\bWebSocket\b|\bsendBeacon\b|https?://(?!www\.w3\.org/)",
}
HTML_MAKERS = {"HTML", "HTMLMath", "Javascript", "SVG", "Latex", "Markdown"}  # of ipywidgets and IPython.display
# HTML that is made of escaped texts by jinja2, whose environment escapes by itself.
TEMPLATES = {"classroom/report.py"}
HOSTILE = "</td></pre></summary><script>hacked()</script><img src=x onerror='hacked()'>\"'<b \u202e"


def tables():
    """{module: objects that make HTML of their own, full of hostile texts}; a new module needs an entry here."""
    record = Ranking(as_conversation(HOSTILE), (HOSTILE, HOSTILE + "2"), ((0,), (1,)), rater=HOSTILE)
    events = [Event(str(i), record, study=HOSTILE, duration=0.01, shown=(0, 1)) for i in range(30)]
    history = History()
    history.add(1, {HOSTILE: 0.5})
    return {
        "classroom/clinic/charts.py": [Folded(HOSTILE, HOSTILE)],
        "feedback/aggregation.py": [consensus([record] * 3)],
        "feedback/cleaning.py": [clean(events)],
        "training/history.py": [history, Result(None, history, False)],
    }


def sinks_of_script(text):
    """Names of the sinks in a script; comments do not count."""
    code = re.sub(r"/\*.*?\*/", "", text, flags=re.S)
    code = "\n".join(re.sub(r"(^|\s)//.*$", "", line) for line in code.split("\n"))
    return [f"{name}: {found.group()}" for name, rule in SINKS.items() for found in re.finditer(rule, code)]


def sinks_of_module(text):
    """Calls in a Python module that show HTML which is no constant, and methods that make some."""
    found = []
    tree = ast.parse(text)
    constants = {
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and re.fullmatch(
            r"_repr_(html|javascript|svg|markdown|latex)_", node.name
        ):
            found.append(f"line {node.lineno}: {node.name}")
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        given = [*node.args, *(keyword.value for keyword in node.keywords if keyword.arg in ("value", "data"))]
        fixed = [isinstance(a, ast.Constant) or (isinstance(a, ast.Name) and a.id in constants) for a in given]
        if name in HTML_MAKERS and not all(fixed):
            found.append(f"line {node.lineno}: {name} of what is no constant")
        raw = any(isinstance(a, ast.Constant) and a.value == "text/html" for a in ast.walk(node))
        if name in ("display", "publish_display_data") and raw:
            found.append(f"line {node.lineno}: {name} of text/html")
    # A widget that is made empty can be given its HTML later, and a description may be HTML too.
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg == "description_allow_html":
            found.append(f"line {node.value.lineno}: description_allow_html")
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.js")), ids=lambda path: path.name)
def test_scripts(path):
    assert sinks_of_script(path.read_text(encoding="utf-8")) == []


def test_modules():
    found = {
        name: sinks
        for path in sorted(PACKAGE.rglob("*.py"))
        if (name := path.relative_to(PACKAGE).as_posix()) not in TEMPLATES
        and (sinks := sinks_of_module(path.read_text(encoding="utf-8")))
    }
    own = {name: [sink for sink in sinks if "_repr_html_" not in sink] for name, sinks in found.items()}
    assert own == {name: [] for name in tables()}


class Tags(HTMLParser):
    """The tags of a text and their attributes."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, tuple(name for name, _ in attributes)))


def test_tables_escape_texts():
    for name, things in tables().items():
        for thing in things:
            html = thing._repr_html_()
            tags = set(Tags(html).found)
            allowed = {"table", "thead", "tbody", "tr", "th", "td", "p", "b", "code", "details", "summary", "pre"}
            assert {tag for tag, _ in tags} <= allowed, name
            assert not any(attributes for _, attributes in tags), name
            assert "script" in html, name  # the hostile text is there, as text


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.css")), ids=lambda path: path.name)
def test_style_sheets_load_nothing(path):
    assert re.findall(r"@import|url\(|expression\(", path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "line",
    [
        "node.innerHTML = text",
        "node.outerHTML = text",
        "node.insertAdjacentHTML('beforeend', text)",
        "document.write(text)",
        "document['write'](text)",
        "eval(text)",
        "new Function(text)()",
        "setTimeout(`run(${text})`, 3)",
        "document.createElement('script')",
        'element(row, "a", { "href": text })',
        "link.href = text",
        "node.onclick = run",
        "range.createContextualFragment(text)",
        "await import(text)",
        "fetch(text)",
        "const where = 'https://example.org/x.js'",
    ],
)
def test_planted_in_a_script(line):
    assert sinks_of_script(f"function f(node, text) {{\n  {line};\n}}")


@pytest.mark.parametrize(
    "line",
    [
        "widgets.HTML(text)",
        "HTML(value=f'<b>{text}</b>')",
        "display(HTML('<b>' + text))",
        "Markdown(text)",
        "display({'text/html': text}, raw=True)",
        "Button(description=text, description_allow_html=True)",
    ],
)
def test_planted_in_a_module(line):
    assert sinks_of_module(line)
    assert sinks_of_module(f"class A:\n    def f(self, text):\n        return {line}")
    assert sinks_of_module("class A:\n    def _repr_html_(self):\n        return self.text")


def test_constants_are_allowed():
    assert sinks_of_module("STYLE = '<style></style>'\nwidgets.HTML(STYLE)\nwidgets.HTML('<b>fixed</b>')") == []
    assert sinks_of_script("// node.innerHTML would run it\nnode.textContent = text;") == []
