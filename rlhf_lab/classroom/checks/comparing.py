"""How a check compares the reader's answer with the definition, and names the usual mistake behind a wrong one."""

import traceback
from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import wraps
from numbers import Real
from operator import eq
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from rlhf_lab.maths.intervals import Interval

IN_PLACE = "an argument is changed in place, and the caller still needs it: work on a copy"
RAISED = "your function raised this; the traceback above names the line"
ASKED = "what is asked"

Inputs = ParamSpec("Inputs")
Got = TypeVar("Got")
Expected = TypeVar("Expected")


class NotAttempted(NotImplementedError):
    """An exercise has not been started. A notebook shows the message alone: there is nothing to look for yet."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]  # what IPython shows in place of the traceback


def not_begun(error: NotImplementedError) -> bool:
    """Whether an exercise's own `raise` is behind the error, and not a library that lacks something."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    raised = not last.line or last.line.startswith("raise NotImplementedError")  # the text of a line may be unknown
    return raised and "site-packages" not in last.filename


def exercise(check: Callable[Inputs, None]) -> Callable[Inputs, None]:
    """The check, whose failure shows the message and, of a function that raised, its traceback.

    The lines of the check itself are left out of it: they hold the answer. An exercise that has not been started
    gets one line.
    """

    @wraps(check)
    def quiet(*arguments: Inputs.args, **options: Inputs.kwargs) -> None:
        try:
            check(*arguments, **options)
        except NotImplementedError as error:
            if not not_begun(error):
                raise
            name = traceback.extract_tb(error.__traceback__)[-1].name
            what = f" ({error})" if str(error) else ""
            raise NotAttempted(f"not attempted yet: write the body of {name}{what}, then run this cell again") from None
        except AssertionError as error:
            raise AssertionError(*error.args) from (error.__cause__ or error.__context__)

    return quiet


def compare(
    name: str,
    case: str,
    call: Callable[..., Got],
    expected: Expected,
    faults: Mapping[str, Callable[[], Expected]],
    hint: str,
    *,
    same: Callable[[Got, Expected], bool],
    odd: Callable[[Got, Expected], str | None] = lambda got, expected: None,
    inputs: tuple = (),
) -> Got:
    """Run the reader's function; if the answer is another one, name every fault that would give it.

    Args:
        name, case: of the exercise and of the inputs, for the message.
        call: the reader's function.
        expected: the right answer.
        faults: cause -> what a function with this fault gives on the same inputs.
        hint: what is asked, said where no fault gives the same answer.
        same: whether two answers agree.
        odd: a cause that shows in (answer, expected) alone, such as None for an answer; it goes before the faults.
        inputs: what to call it with. It gets copies, and tensors and lists among them must come back unchanged.

    Returns:
        The answer.

    Raises:
        AssertionError: the answer differs, an input was changed, or the function raised.
        NotImplementedError: the exercise has not been started.
    """
    given = deepcopy(inputs)
    try:
        got = call(*given)
    except Exception as error:  # the reader's code may raise anything
        if isinstance(error, NotImplementedError) and not_begun(error):
            raise
        slip = isinstance(error, NameError | AttributeError | ImportError)
        happened = IN_PLACE if "in-place" in str(error) else RAISED if slip else f"{RAISED}\n  {ASKED}: {hint}"
        fail(name, case, f"{type(error).__name__}: {error}", expected, happened, "what happened")
    if not same(got, expected):
        alike = (cause for cause, fault in faults.items() if same(got, fault()))
        if cause := odd(got, expected) or "\n  or           ".join(alike):
            fail(name, case, got, expected, cause)
        fail(name, case, got, expected, _other_shape(got, expected) + hint, ASKED)
    for number, (before, after) in enumerate(zip(inputs, given, strict=True), start=1):
        if changed(before, after):
            fail(name, f"{case}, argument {number} after the call", after, before, IN_PLACE)
    return got


def expect_data(name: str, case: str, call: Callable[..., Tensor], inputs: tuple, cause: str) -> None:
    """The answer must not require grad, although some of the inputs do."""
    answers = {True: "a tensor that requires grad", False: "data: a tensor that does not require grad"}
    state = lambda *given: answers[call(*given).requires_grad]  # noqa: E731
    compare(name, case, state, answers[False], {}, cause, same=eq, inputs=inputs)


def changed(before: object, after: object) -> bool:
    """Whether a tensor or a list holds other things than before; NaN counts as equal to NaN."""
    if isinstance(before, Tensor) and isinstance(after, Tensor):
        return not torch.equal(before.detach().nan_to_num(), after.detach().nan_to_num())
    return isinstance(before, list) and before != after


def same_tensors(got: object, expected: Tensor | float, tolerance: float = 1e-5) -> bool:
    """Whether the answer has the same shape and, up to rounding in float32, the same numbers; of any precision."""
    got, expected = _tensors(got, expected)
    return (
        isinstance(got, Tensor)
        and got.shape == expected.shape
        and torch.allclose(got.detach().double(), expected.double(), rtol=1e-5, atol=tolerance)
    )


def odd_tensors(got: object, expected: Tensor | float, shape: str = "", not_finite: str = "") -> str | None:
    """A cause that shows in the answer alone: no tensor or, where these are given, another shape, NaN or infinity."""
    got, expected = _tensors(got, expected)
    if not isinstance(got, Tensor):
        wanted = "a tensor" if expected.dim() else "a number"
        return f"it returned {type(got).__name__} and not {wanted}; is there a `return`?"
    if got.shape != expected.shape:
        return shape or None
    return (not_finite or None) if not torch.isfinite(got).all() else None


def _tensors(got: object, expected: Tensor | float) -> tuple[object, Tensor]:
    """Where one number is asked for, a Python number is as good an answer as a tensor without axes."""
    tensor = lambda x: torch.as_tensor(x, dtype=torch.float64)  # noqa: E731
    return (tensor(got) if isinstance(got, Real) and not torch.as_tensor(expected).dim() else got), tensor(expected)


def _other_shape(got: object, expected: object) -> str:
    if isinstance(got, Tensor) and isinstance(expected, Tensor) and got.shape != expected.shape:
        return f"the shape, {list(got.shape)}; "
    return ""


def fail(name: str, case: str, got: object, expected: object, cause: str, label: str = "usual cause") -> None:
    """Raise the AssertionError of a check: inputs, got, expected and what usually causes it."""
    first = _first_difference(got, expected)
    raise AssertionError(
        f"{name}, {case}:\n  got       {_show(got, first)}\n  expected  {_show(expected, first)}\n  {label}: {cause}"
    )


SHOWN = 12  # entries of a tensor in a message


def _first_difference(got: object, expected: object) -> int:
    """Number of the first entry that differs, of those of a tensor in a row; 0 where that has no meaning."""
    if not (isinstance(got, Tensor) and isinstance(expected, Tensor) and got.shape == expected.shape):
        return 0
    apart = (got.detach().double() - expected.detach().double()).abs().flatten()
    return int((~(apart < 1e-5)).int().argmax()) if len(apart) else 0  # NaN differs too


def _show(value: object, first: int = 0) -> str:
    if isinstance(value, Tensor):
        numbers = [round(x, 4) for x in value.detach().flatten().tolist()]
        begin = first - first % SHOWN
        shown, end = numbers[begin : begin + SHOWN], begin + SHOWN
        place = f" (entries {begin} to {min(end, len(numbers)) - 1})" if len(numbers) > SHOWN else ""
        return f"{shown}{place} of shape {list(value.shape)}"
    if isinstance(value, Interval):
        return f"mean {value.mean:.3f} in [{value.low:.3f}, {value.high:.3f}], count {value.count}"
    return repr(value)
