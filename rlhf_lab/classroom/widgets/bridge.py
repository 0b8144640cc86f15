"""Between a widget in the browser and the Python object that it shows: requests one way, states the other.

    browser -> Python   a message {"id", "op", "args"}; `op` is one of the names in `operations`, args a list
    Python -> browser   the traits `content` (what is long and seldom changes) and `state` (all the rest, with "ack",
                        the id of the last request)

Nothing else that comes from a browser has an effect. An operation that fails is answered as well: the reason stands in
state["error"]. The scripts need no build step: those of a widget are joined as text. A stored notebook shows a picture
of a widget, drawn by tests/classroom/widget_pictures.py. Chapters 00 and 08.
"""

import base64
import signal
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import anywidget
import traitlets
from IPython import get_ipython

FOLDER = Path(__file__).parent
PICTURES = FOLDER / "pictures"
LOOKS = "The widget as it looks in a notebook: "  # begins what is said of each picture


def script(*names: str) -> str:
    """The script of a widget: shared.js, whose functions all of them use, and after it its own files."""
    return "\n".join((FOLDER / name).read_text(encoding="utf-8") for name in ("shared.js", *names))


def style() -> str:
    """The style sheet that all widgets share."""
    return (FOLDER / "widgets.css").read_text(encoding="utf-8")


@cache
def picture_of(name: str) -> str:
    """A picture of a widget, PNG in base64; "" where there is none."""
    path: Path = PICTURES / f"{name}.png"
    return base64.b64encode(path.read_bytes()).decode("ascii") if path.exists() else ""


def in_main_thread(work: Callable[[], None]) -> None:
    """Do what takes seconds where an interrupt of the kernel reaches it: in the main thread, as soon as that is free.

    A kernel may handle the requests of widgets in a thread of their own (a "subshell" of ipykernel 7), in which Python
    delivers no signal, and while no cell runs the main thread ignores them. Without a kernel it is done at once.

    Raises:
        BaseException: what `work` raises; KeyboardInterrupt where it was interrupted.

    >>> in_main_thread(lambda: print("done"))
    done

    Chapter 08.
    """
    loop = getattr(getattr(get_ipython(), "kernel", None), "io_loop", None)
    if loop is None or threading.current_thread() is threading.main_thread():
        work()
        return
    done: Future[None] = Future()

    def run() -> None:
        try:
            before = signal.signal(signal.SIGINT, signal.default_int_handler)
            try:
                work()
            finally:
                signal.signal(signal.SIGINT, before)
        except BaseException as error:  # it belongs to who waits, and would end the loop of the kernel
            done.set_exception(error)
        else:
            done.set_result(None)

    loop.add_callback(run)
    done.result()


class Bridge(anywidget.AnyWidget):
    """A widget that shows a Python object and lets the reader work on it.

    A subclass gives `_esm`, `_css`, `operations` and `describe`, and `perform` where an operation is no method of
    `subject`.

    Attributes:
        subject: what is shown and worked on.
        operations: names of the methods of `subject` that a browser may call.

    Example:
        >>> class Counter:
        ...     value = 0
        ...     def add(self, number):
        ...         if number < 0:
        ...             raise ValueError(f"number is {number}; expected at least 0. Give another")
        ...         self.value += number
        >>> class CounterView(Bridge):
        ...     _esm = "export default {}"
        ...     operations = ("add",)
        ...     def describe(self):
        ...         return {"value": self.subject.value}, {}
        >>> view = CounterView(Counter())
        >>> view.receive({"id": "a-1", "op": "add", "args": [2]})
        >>> view.state
        {'value': 2, 'error': '', 'ack': 'a-1'}
        >>> view.receive({"id": "a-2", "op": "add", "args": [-1]})
        >>> view.state["value"], view.state["error"]
        (2, 'number is -1; expected at least 0. Give another')

    Chapters 00 and 08.
    """

    operations: ClassVar[tuple[str, ...]] = ()
    state = traitlets.Dict().tag(sync=True)
    content = traitlets.Dict().tag(sync=True)

    def __init__(self, subject: Any, **traits: Any) -> None:
        self.subject, self._ack, self._problem = subject, "", ""
        super().__init__(**traits)
        self.refresh()
        self.on_msg(lambda _, message, buffers: self.receive(message))

    def describe(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """State and content as JSON values; content is what is long and seldom changes, such as texts to read."""
        raise NotImplementedError

    def perform(self, op: str, args: list[Any]) -> None:
        """Carry out one of `operations`. One that takes seconds calls `refresh` first, to say that it was heard."""
        getattr(self.subject, op)(*args)

    def receive(self, message: Mapping[str, Any]) -> None:
        """Carry out a request and answer it; "look" asks for the state alone.

        Raises:
            Exception: what an operation raises beside ValueError and OSError, after the answer.
        """
        self._ack, self._problem = str(message.get("id", "")), ""
        op, args = message.get("op"), message.get("args") or []
        try:
            if op in self.operations:
                self.perform(op, list(args))
            elif op != "look":
                self._problem = f"the widget asked for {op!r:.40}, which is none of its operations. Run this cell again"
        except (ValueError, OSError) as error:
            self._problem = str(error)
        finally:  # an interrupt too leaves what stands in Python on the screen
            self.refresh()

    def refresh(self, **more: Any) -> None:
        """Show the subject as it is now; call it after changing it by other means. `more` is added to the state."""
        state, content = self.describe()
        error = state.get("error") or self._problem
        with self.hold_sync():  # one message: text and state that belong together arrive together
            self.content = content
            self.state = state | more | {"error": error, "ack": self._ack}

    @property
    def picture(self) -> tuple[str, str]:
        """Name of its picture and what is said of it to who does not see it; empty for none."""
        return "", ""

    def _repr_mimebundle_(self, **options: Any) -> Any:
        """The widget; beside it its picture, for a notebook that was stored without widgets."""
        found = super()._repr_mimebundle_(**options)
        name, words = self.picture
        picture = picture_of(name)
        if not found or not picture:
            return found
        data, metadata = found if isinstance(found, tuple) else (found, {})
        data["image/png"] = picture
        return data, metadata | {"image/png": {"alt": words}}

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"
