"""JupyterLab in a real browser, for the tests of what is shown there: a server, a notebook, and what one asks of it.

The page has `window.jupyterapp`, so that a test runs cells, changes themes and reads the notebook as JupyterLab has it.
Nothing but this machine can be reached, and what was tried is in `Notebook.strangers`.
"""

import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import axe_playwright_python
import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
AXE = Path(axe_playwright_python.__file__).with_name("axe.min.js")  # the accessibility checker, offline
PATIENCE = 120  # seconds; a busy machine may need most of them to start everything
CHROMIUM_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PANEL = "window.jupyterapp.shell.currentWidget"
PAGE = "<!doctype html><html lang=en><head><title>widget</title></head><body data-jp-theme-light=true><main id=here>"
MODEL = """
window.mount = async ([source, state, content]) => {
  const module = await import(URL.createObjectURL(new Blob([source], { type: "text/javascript" })));
  const data = { state, content }, on = {};
  const model = {
    get: (name) => data[name],
    on: (name, call) => (on[name] ||= []).push(call),
    off() {},
    async send(message) {
      const answer = JSON.parse(await window.toPython(JSON.stringify(message)));
      if (JSON.stringify(answer.content) !== JSON.stringify(data.content)) data.content = answer.content;
      data.state = answer.state;
      for (const call of on["change:state"] || []) call();
    },
  };
  module.default.render({ model, el: document.getElementById("here") });
};
"""


def wait_for(condition, patience=PATIENCE, pause=0.05):
    """Poll until `condition()` holds, and return it."""
    end = time.monotonic() + patience
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(pause)
    return found


def write_notebook(path, sources):
    """A notebook with a code cell for each source."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, path)


@contextmanager
def jupyterlab(folder, **variables):
    """A server whose notebooks are in `folder`; gives the address to which the name of one is added."""
    environment = os.environ | {f"JUPYTER_{n}_DIR": str(folder / n) for n in ("CONFIG", "DATA", "RUNTIME")}
    environment |= {"PYTHONPATH": str(ROOT), "IPYTHONDIR": str(folder / "ipython"), **variables}
    options = ["--no-browser", "--allow-root", "--port=0", "--ip=127.0.0.1", "--LabApp.expose_app_in_browser=True"]
    command = [sys.executable, "-m", "jupyterlab", *options, "--IdentityProvider.token=test"]
    with open(folder / "lab.log", "w") as log:
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
        try:
            info = wait_for(lambda: list((folder / "RUNTIME").glob("jpserver-*.json")))[0]
            url = wait_for(lambda: info.read_text() and json.loads(info.read_text())["url"])
            yield f"{url}lab/tree/{{}}?token=test&reset"
        finally:
            server.terminate()
            server.wait(PATIENCE)


@contextmanager
def launched(chromium):
    """A headless browser; one a module, since playwright does not start twice."""
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_FLAGS)
        yield browser
        browser.close()


def new_page(browser, **options):
    """A page that reaches nothing but this machine; what else it asked for is in `strangers`."""
    page = browser.new_page(**{"viewport": {"width": 1200, "height": 1000}} | options)
    page.set_default_timeout(20_000)
    page.strangers = []
    page.route("**/*", lambda route: _only_here(page, route))
    return page


def serious_faults(root):
    """What axe-core finds serious within an element; it fails where the checker had next to nothing to check."""
    root.page.evaluate(AXE.read_text(encoding="utf-8") + "; null")
    found = root.evaluate("root => axe.run(root)")
    assert len(found["passes"]) >= 10  # rules that apply and are kept
    bad = [fault for fault in found["violations"] if fault["impact"] in ("serious", "critical")]
    return [(fault["id"], fault["nodes"][0]["html"][:150]) for fault in bad]


@contextmanager
def browser_page(chromium, **options):
    """The one page of a browser."""
    with launched(chromium) as browser:
        yield new_page(browser, **options)


def _only_here(page, route):
    if urlsplit(route.request.url).hostname in ("127.0.0.1", "localhost", None):
        return route.continue_()
    page.strangers.append(route.request.url)
    return route.abort()


class Notebook:
    """A notebook on the page, all of whose cells were run."""

    def __init__(self, page, url):
        self.page = page
        page.set_default_timeout(PATIENCE * 1000)
        page.goto(url)
        page.locator(".jp-Notebook .jp-CodeCell").first.wait_for()
        page.add_style_tag(content=".Toastify { display: none }")  # news of JupyterLab, over the page
        self.wait_until_idle()
        self.hide_sidebar()
        self.run_all()
        page.set_default_timeout(20_000)

    def ask(self, script, argument=None):
        """What a script says of the panel of the notebook, `p`."""
        return self.page.evaluate(f"async (x) => {{ const p = {PANEL}, app = window.jupyterapp; {script} }}", argument)

    def wait_until_idle(self):
        """Until there is a kernel that has answered and does nothing."""
        ready = (
            "const k = p?.sessionContext?.session?.kernel; return k?.status === 'idle' && !!k.info && !!(await k.info)"
        )
        wait_for(lambda: self.ask(ready), pause=0.2)

    def hide_sidebar(self):
        """Leave the page to the notebook."""
        self.ask("if (!app.shell.leftCollapsed) await app.commands.execute('application:toggle-left-area')")

    def run_all(self):
        """Run all cells and wait for the last one."""
        self.ask("await app.commands.execute('notebook:run-all-cells')")
        self.wait_until_idle()

    def run(self, index):
        """Run one cell."""
        self.ask("p.content.activeCellIndex = x; await app.commands.execute('notebook:run-cell')", index)

    def theme(self, dark):
        """Change to the dark or the light theme."""
        name = "JupyterLab Dark" if dark else "JupyterLab Light"
        self.ask("await app.commands.execute('apputils:change-theme', { theme: x })", name)
        light = str(not dark).lower()
        wait_for(lambda: self.page.evaluate("document.body.dataset.jpThemeLight") == light)
        self.page.wait_for_timeout(300)  # the style sheet comes a little later

    def cells(self):
        """The cells as JupyterLab has them: type and source; and which one is active."""
        cells = self.ask("return p.content.model.toJSON().cells.map((cell) => [cell.cell_type, cell.source])")
        return cells, self.ask("return p.content.widgets.length")

    def view(self, index, name=".rlhf-widget"):
        """The widget under the cell `index`."""
        cell = self.page.locator(".jp-Notebook .jp-Cell").nth(index)
        found = cell.locator(name)
        found.scroll_into_view_if_needed()
        return found


# ---- a widget without JupyterLab -----------------------------------------------------------------------------------


def open_widget(page, view):
    """Show a view on an empty page: what it sends goes to the real object, and the answers come back."""

    def answer(text):
        view.receive(json.loads(text))
        return json.dumps({"state": view.state, "content": view.content})

    page.expose_function("toPython", answer)
    page.set_content(PAGE)
    page.add_style_tag(content=view._css)
    page.add_script_tag(content=MODEL)
    page.evaluate("all => window.mount(all)", [view._esm, view.state, view.content])
    return page.locator(".rlhf-widget")
