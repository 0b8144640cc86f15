"""What a failed check says: where the answers differ, whose traceback it is, and nothing of the check's own code."""

import traceback
from types import SimpleNamespace

import pytest
import torch

from rlhf_lab.classroom.checks.comparing import compare, exercise, same_tensors


@exercise
def check_double(function):
    """Check `double(x)`."""
    secret = 2.0 * torch.arange(30.0)
    faults = {"tripled": lambda: 3.0 * torch.arange(30.0)}
    compare("double", "0 to 29", function, secret, faults, "twice x", same=same_tensors, inputs=(torch.arange(30.0),))


def said(function):
    with pytest.raises(AssertionError) as caught:
        check_double(function)
    return str(caught.value), "".join(traceback.format_exception(caught.value))


def test_a_known_mistake_is_named_and_an_unknown_one_gets_what_is_asked():
    assert said(lambda x: 3 * x)[0].endswith("usual cause: tripled")
    assert said(lambda x: 5 * x)[0].endswith("what is asked: twice x")


def test_the_entries_around_the_first_difference_are_shown():
    message, _ = said(lambda x: torch.where(x == 20, 7.0, 2 * x))
    assert "got       [24.0, 26.0, 28.0, 30.0, 32.0, 34.0, 36.0, 38.0, 7.0," in message
    assert "(entries 12 to 23) of shape [30]" in message
    last, _ = said(lambda x: torch.where(x == 29, torch.nan, 2 * x))
    assert "[48.0, 50.0, 52.0, 54.0, 56.0, nan] (entries 24 to 29)" in last


def test_a_function_that_raises_keeps_its_traceback():
    def typo(x):
        return torch.dobule(x)

    message, trace = said(typo)
    assert "AttributeError" in message
    assert message.endswith("what happened: your function raised this; the traceback above names the line")
    assert "torch.dobule(x)" in trace
    message, _ = said(lambda x: x @ torch.ones(3))
    assert "RuntimeError" in message
    assert "what is asked: twice x" in message


@pytest.mark.parametrize("wrong", [lambda x: 5 * x, lambda x: x[99], lambda x: x.mul_(2)])
def test_the_code_of_the_check_is_not_shown(wrong):
    assert "secret" not in said(wrong)[1]


def test_what_was_not_begun_says_so():
    def double(x):
        raise NotImplementedError("write double first")

    with pytest.raises(NotImplementedError, match="write double first"):
        check_double(double)


def shown_by_a_notebook(function):
    """What IPython prints for the error of a check."""
    from IPython.core.interactiveshell import InteractiveShell

    with pytest.raises(NotImplementedError) as caught:
        check_double(function)
    shown = []
    shell = SimpleNamespace(
        _get_exc_info=lambda *_: (caught.type, caught.value, caught.tb),
        _showtraceback=lambda kind, value, lines: shown.extend(lines),
        InteractiveTB=SimpleNamespace(structured_traceback=lambda *_, **__: ["a traceback", "of frames"]),
        call_pdb=False,
    )
    InteractiveShell.showtraceback(shell)
    return shown


def test_what_was_not_begun_gets_one_line_and_no_traceback():
    """The name is that of the function that is missing, which the one under test may call."""

    def helper(x):
        raise NotImplementedError("your code here")

    lines = ["not attempted yet: write the body of helper (your code here), then run this cell again"]
    assert shown_by_a_notebook(helper) == lines
    assert shown_by_a_notebook(lambda x: 2 * helper(x)) == lines


def test_what_a_library_lacks_is_an_error_of_the_answer():
    message, trace = said(lambda x: torch.nn.Module()(x))
    assert "NotImplementedError: Module [Module] is missing" in message
    assert "traceback above" in message
    assert "torch.nn.Module()(x)" in trace
    assert "NotImplementedError" in said(lambda x: torch.empty(1, device="meta").cpu())[0]
