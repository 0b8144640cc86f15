"""How a check compares the reader's answer with the definition, and names the usual mistake behind a wrong one.

Fair means: any precision is right up to `TOLERANCE`, so is an array in place of a tensor and a whole or Python number
in place of a number; what a check does with the inputs is said in its message; and of several mistakes that would give
the same answer the one is named that also gives the answers to the other cases.
"""

import io
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout, suppress
from contextvars import ContextVar
from copy import deepcopy
from functools import wraps
from numbers import Real
from operator import eq
from pathlib import Path
from typing import NoReturn, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor

from rlhf_lab.maths.intervals import Interval

IN_PLACE = "an argument is changed in place, and the caller still needs it: work on a copy"
RAISED = "your function raised this; the traceback above names the line"
ASKED = "what is asked"
NO_RETURN = "it returned None; is there a `return`?"
AT_PADDING = "now with NaN and infinity at padding"
PADDING = (
    "padding counts. Here it holds NaN and infinity, which x * mask keeps, since NaN * 0 is NaN; "
    "leave it out with torch.where(mask, x, 0.0) or x[mask]"
)
TOLERANCE = 1e-5  # absolute, and relative to the expected number: float32 holds seven digits, and sums lose one or two
CLASSROOM = Path(__file__).parents[1]

Inputs = ParamSpec("Inputs")
Got = TypeVar("Got")
Expected = TypeVar("Expected")


class Ambiguous(AssertionError):
    """Several mistakes would give the answer to this case."""

    def __init__(self, about: tuple[str, str, object, object], causes: Sequence[str]) -> None:
        super().__init__(_message(*about, "\n  or           ".join(causes)))
        self.about, self.causes = about, causes  # what `fail` takes, but for the cause; the mistakes


SUSPECTS: ContextVar[dict[str, int] | None] = ContextVar("SUSPECTS", default=None)  # cause -> answers it would give


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
            said = _one_cause(error, check, *arguments, **options) if isinstance(error, Ambiguous) else error.args[0]
            raise AssertionError(said) from (error.__cause__ or error.__context__)

    return quiet


def _one_cause(
    error: Ambiguous, check: Callable[Inputs, None], *arguments: Inputs.args, **options: Inputs.kwargs
) -> str:
    """The message with those causes that would give the most of the reader's answers, over all cases of the check."""
    suspects = dict.fromkeys(error.causes, 0)
    token = SUSPECTS.set(suspects)
    try:
        with suppress(Exception), redirect_stdout(io.StringIO()):  # the reader has seen both already
            check(*arguments, **options)
    finally:
        SUSPECTS.reset(token)
    best = [cause for cause, count in suspects.items() if count == max(suspects.values())]
    return str(Ambiguous(error.about, best))


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
    spoiled: tuple | None = None,
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
        spoiled: the same inputs after `spoil`, where padding never counts: they must give the same answer.

    Returns:
        The answer.

    Raises:
        AssertionError: the answer differs, an input was changed, padding counted, or the function raised.
        NotImplementedError: the exercise has not been started.
    """
    given = deepcopy(inputs)
    if (suspects := SUSPECTS.get()) is not None:
        got = call(*given)
        for cause in suspects.keys() & faults.keys():
            suspects[cause] += same(got, faults[cause]())
        return got
    got = _answer(name, case, call, given, expected, hint)
    if not same(got, expected):
        if obvious := odd(got, expected):
            fail(name, case, got, expected, obvious)
        alike = [cause for cause, fault in faults.items() if same(got, fault())]
        if len(alike) > 1:
            raise Ambiguous((name, case, got, expected), alike)
        if alike:
            fail(name, case, got, expected, alike[0])
        fail(name, case, got, expected, _other_shape(got, expected) + hint, ASKED)
    for number, (before, after) in enumerate(zip(inputs, given, strict=True), start=1):
        if changed(before, after):
            fail(name, f"{case}, argument {number} after the call", after, before, IN_PLACE)
    if spoiled is not None:
        again = _answer(name, f"{case}, {AT_PADDING}", call, deepcopy(spoiled), expected, hint)
        if not same(again, expected):
            fail(name, f"{case}, {AT_PADDING}", again, expected, PADDING)
    return got


def _answer(name: str, case: str, call: Callable[..., Got], given: tuple, expected: object, hint: str) -> Got:
    """What the reader's function gives. What it raises fails the check; a complaint of the check is no fault of it."""
    try:
        return call(*given)
    except Exception as error:  # the reader's code may raise anything
        if isinstance(error, NotImplementedError) and not_begun(error):
            raise
        said = f"{type(error).__name__}: {error}"
        if "in-place" in str(error):
            fail(name, case, said, expected, IN_PLACE, "what happened")
        if Path(traceback.extract_tb(error.__traceback__)[-1].filename).is_relative_to(CLASSROOM):
            fail(name, case, said, expected, hint, ASKED)
        slip = isinstance(error, NameError | AttributeError | ImportError)
        fail(name, case, said, expected, RAISED if slip else f"{RAISED}\n  {ASKED}: {hint}", "what happened")


def spoil(mask: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Put NaN and infinity, in turn, where the mask is False.

    Args:
        mask: [B, T], True where data exist, padded on the right.
        tensors: [B, T] each; of one with a column more, such as values, the column after the last real one stays.

    Returns:
        Copies that require grad where the originals do.

    Example:
        >>> spoil(torch.tensor([[True, True], [True, False]]), torch.ones(2, 2), torch.ones(2, 3))
        (tensor([[1., 1.],
                [1., nan]]), tensor([[1., 1., 1.],
                [1., 1., inf]]))
    """
    rows, width = mask.shape
    place = torch.arange(rows)[:, None] + torch.arange(width + 1)
    junk = torch.where(place % 2 == 0, torch.nan, torch.inf)
    longer = torch.cat([torch.ones(rows, 1, dtype=torch.bool), mask], dim=1)
    result = []
    for x in tensors:
        real = mask if x.shape[1] == width else longer
        result.append(torch.where(real, x.detach(), junk[:, : x.shape[1]].to(x)).requires_grad_(x.requires_grad))
    return tuple(result)


def expect_data(name: str, case: str, call: Callable[..., Tensor], inputs: tuple, cause: str) -> None:
    """The answer must not require grad, although some of the inputs do."""
    answers = {True: "a tensor that requires grad", False: "data: a tensor that does not require grad"}
    state = lambda *given: answers[getattr(call(*given), "requires_grad", False)]  # noqa: E731
    compare(name, case, state, answers[False], {}, cause, same=eq, inputs=inputs)


def changed(before: object, after: object) -> bool:
    """Whether a tensor or a list holds other things than before; NaN counts as equal to NaN."""
    if isinstance(before, Tensor) and isinstance(after, Tensor):
        return not torch.equal(before.detach().nan_to_num(), after.detach().nan_to_num())
    return isinstance(before, list) and before != after


def same_tensors(got: object, expected: Tensor | float, tolerance: float = TOLERANCE) -> bool:
    """Whether the answer has the same shape and, up to rounding in float32, the same numbers; of any precision."""
    got, expected = as_tensor(got), torch.as_tensor(expected, dtype=torch.float64)
    return (
        isinstance(got, Tensor)
        and got.shape == expected.shape
        and torch.allclose(got.detach().double(), expected, rtol=TOLERANCE, atol=tolerance)
    )


def odd_tensors(got: object, expected: Tensor | float, shape: str = "", not_finite: str = "") -> str | None:
    """A cause that shows in the answer alone: no tensor or, where these are given, another shape, NaN or infinity."""
    kind, got, expected = type(got).__name__, as_tensor(got), torch.as_tensor(expected)
    if not isinstance(got, Tensor):
        return (
            NO_RETURN if got is None else f"it returned {kind} and not {'a tensor' if expected.dim() else 'a number'}"
        )
    if got.shape != expected.shape:
        return shape or None
    return (not_finite or None) if not torch.isfinite(got).all() else None


def as_tensor(got: object) -> object:
    """An array or a number of any kind as a tensor; anything else as it came.

    Example:
        >>> as_tensor(np.float32(0.5)), as_tensor(3), as_tensor("3")
        (tensor(0.5000), tensor(3., dtype=torch.float64), '3')
    """
    if isinstance(got, np.ndarray | np.generic):
        return torch.as_tensor(got) if got.dtype.kind in "biuf" else got
    return torch.tensor(float(got), dtype=torch.float64) if isinstance(got, Real) else got


def _other_shape(got: object, expected: object) -> str:
    got, expected = as_tensor(got), as_tensor(expected)
    if isinstance(got, Tensor) and isinstance(expected, Tensor) and got.shape != expected.shape:
        return f"the shape, {list(got.shape)}; "
    return ""


def fail(name: str, case: str, got: object, expected: object, cause: str, label: str = "usual cause") -> NoReturn:
    """Raise the AssertionError of a check: inputs, got, expected and what usually causes it."""
    raise AssertionError(_message(name, case, got, expected, cause, label))


def _message(name: str, case: str, got: object, expected: object, cause: str, label: str = "usual cause") -> str:
    got, expected = (as_tensor(x) if isinstance(x, np.ndarray) else x for x in (got, expected))
    first = _first_difference(got, expected)
    return f"{name}, {case}:\n  got       {_show(got, first)}\n  expected  {_show(expected, first)}\n  {label}: {cause}"


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
