"""How a check compares the reader's answer with the definition, and names the usual mistake behind a wrong one.

Fair means: any precision is right up to `TOLERANCE`, so is an array in place of a tensor and a whole or Python number
in place of a number; what a check does with the inputs is said in its message; and of several mistakes that would give
the same answer the one is named that also gives the answers to the other cases.
"""

import dis
import io
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout, suppress
from contextvars import ContextVar
from copy import deepcopy
from functools import wraps
from numbers import Real
from operator import eq
from pathlib import Path
from typing import NoReturn, ParamSpec, TypeGuard, TypeVar

import numpy as np
import torch
from torch import Tensor

from rlhf_lab.maths.intervals import Interval

IN_PLACE = "an argument is changed in place, and the caller still needs it: work on a copy"
RAISED = "your function raised this; the traceback above names the line"
ASKED = "what is asked"
PERHAPS = "perhaps, though it would not give most of your other answers"
NO_RETURN = "it returned None; is there a `return`?"
SQUEEZED = (
    "an axis of length 1 is gone: squeeze() drops them all, also that of a batch of one; name the axis, squeeze(1)"
)
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


class Suspected(AssertionError):
    """One or several mistakes would give the answer to this case."""

    def __init__(self, about: tuple[str, str, object, object], causes: Sequence[str], hint: str) -> None:
        self.about, self.causes, self.hint = about, causes, hint  # what `fail` takes; the mistakes; what is asked
        super().__init__(self.naming(causes))

    def naming(self, causes: Sequence[str], *, sure: bool = True) -> str:
        said = "\n  or           ".join(causes)
        if sure:
            return _message(*self.about, said)
        return f"{_message(*self.about, said, PERHAPS)}\n  {ASKED}: {self.hint}"


# cause -> answers it would give, and cases that know of it
SUSPECTS: ContextVar[dict[str, list[int]] | None] = ContextVar("SUSPECTS", default=None)


class NotAttempted(NotImplementedError):
    """An exercise has not been started. A notebook shows the message alone: there is nothing to look for yet."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]  # what IPython shows in place of the traceback


def _not_attempted(name: str) -> NotAttempted:
    return NotAttempted(f"not attempted yet: write the body of {name}, then run this cell again")


def not_begun(error: NotImplementedError) -> bool:
    """Whether an exercise's own `raise` is behind the error, and not a library that lacks something."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    raised = not last.line or "raise NotImplementedError" in last.line  # the text of a line may be unknown
    return raised and "site-packages" not in last.filename


def _is_empty(function: object) -> bool:
    """Whether it is a `def` with nothing in it: a docstring, `pass`, `...` or `return None`."""
    code = getattr(function, "__code__", None)
    if code is None or code.co_name == "<lambda>":
        return False
    constant = {"NOP", "POP_TOP", "LOAD_CONST", "RETURN_CONST", "RETURN_VALUE"}
    steps = [step for step in dis.get_instructions(code) if step.opname != "RESUME"]
    return all(step.opname in constant and step.argval in (None, ...) for step in steps)


def exercise(check: Callable[Inputs, Got]) -> Callable[Inputs, Got]:
    """The check, whose failure shows the message and, of a function that raised, its traceback.

    The lines of the check itself are left out of it: they hold the answer. An exercise that has not been started
    gets one line. Where the chapter itself looks at the answer, `exercise(function)(...)` is the reader's function,
    which gets that line too.
    """

    @wraps(check)
    def quiet(*arguments: Inputs.args, **options: Inputs.kwargs) -> Got:
        try:
            return check(*arguments, **options)
        except NotImplementedError as error:
            if not not_begun(error):
                raise
            what = f" ({error})" if str(error) else ""
            raise _not_attempted(traceback.extract_tb(error.__traceback__)[-1].name + what) from None
        except AssertionError as error:
            if empty := next(filter(_is_empty, arguments), None):  # which may be right: only after a failure
                raise _not_attempted(getattr(empty, "__name__", "it")) from None
            said = _one_cause(error, check, *arguments, **options) if isinstance(error, Suspected) else str(error)
            raise AssertionError(said) from (error.__cause__ or error.__context__)

    return quiet


def _one_cause(
    error: Suspected, check: Callable[Inputs, Got], *arguments: Inputs.args, **options: Inputs.kwargs
) -> str:
    """The message with those causes that would give the most of the reader's answers, over all cases of the check.

    A cause that would give less than half of them met the answer to one case by chance, or there are other mistakes.
    """
    suspects = {cause: [0, 0] for cause in error.causes}
    token = SUSPECTS.set(suspects)
    try:
        with suppress(Exception), redirect_stdout(io.StringIO()):  # the reader has seen both already
            check(*arguments, **options)
    finally:
        SUSPECTS.reset(token)
    most = max(given for given, _ in suspects.values())
    best = [cause for cause, (given, _) in suspects.items() if given == most]
    return error.naming(best, sure=any(2 * given >= cases for given, cases in suspects.values() if given == most))


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
        inputs: what to call it with. It gets copies; tensors, lists and dictionaries must come back unchanged.
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
            suspects[cause][0] += same(got, faults[cause]())
            suspects[cause][1] += 1
        return got
    got = _answer(name, case, call, given, expected, hint)
    if not same(got, expected):
        if obvious := odd(got, expected):
            fail(name, case, got, expected, obvious)
        alike = [cause for cause, fault in faults.items() if same(got, fault())]
        if alike:
            raise Suspected((name, case, got, expected), alike, hint)
        _expect_unchanged(name, case, inputs, given)
        fail(name, case, got, expected, _other_shape(got, expected) + hint, ASKED)
    _expect_unchanged(name, case, inputs, given)
    if spoiled is not None:
        again = _answer(name, f"{case}, {AT_PADDING}", call, deepcopy(spoiled), expected, hint)
        if not same(again, expected):
            fail(name, f"{case}, {AT_PADDING}", again, expected, PADDING)
    return got


def _expect_unchanged(name: str, case: str, inputs: tuple, given: tuple) -> None:
    for number, (before, after) in enumerate(zip(inputs, given, strict=True), start=1):
        for place, old, new in changes(before, after):
            fail(name, f"{case}, argument {number}{place} after the call", new, old, IN_PLACE)


def _answer(name: str, case: str, call: Callable[..., Got], given: tuple, expected: object, hint: str) -> Got:
    """What the reader's function gives. What it raises fails the check; a complaint of the check is no fault of it."""
    try:
        return call(*given)
    except Exception as error:  # the reader's code may raise anything
        if isinstance(error, NotImplementedError) and not_begun(error):
            raise
        if isinstance(error, AssertionError) and _of_a_check(error):
            raise
        said = f"{type(error).__name__}: {error}"
        if "in-place" in str(error):
            fail(name, case, said, expected, IN_PLACE, "what happened")
        if _of_a_check(error):
            fail(name, case, said, expected, hint, ASKED)
        slip = isinstance(error, NameError | AttributeError | ImportError)
        fail(name, case, said, expected, RAISED if slip else f"{RAISED}\n  {ASKED}: {hint}", "what happened")


def _of_a_check(error: Exception) -> bool:
    return Path(traceback.extract_tb(error.__traceback__)[-1].filename).is_relative_to(CLASSROOM)


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
    faults = {cause: lambda: answers[True]}
    compare(name, case, state, answers[False], faults, "data: no gradient", same=eq, inputs=inputs)


def numbers(name: str, got: object, count: int, asked: str) -> list[float]:
    """The numbers of an answer by hand: of any kind, in a tuple, a list, an array or a tensor.

    Raises:
        AssertionError: these are not as many numbers; the message says what is asked.
    """
    found = [as_tensor(x) for x in got] if isinstance(got, Iterable) and getattr(got, "ndim", 1) != 0 else []
    singles = [float(x) for x in found if isinstance(x, Tensor) and x.numel() == 1]
    if len(singles) != count or len(found) != count:
        fail(name, "what it returned", got, f"{count} numbers", f"a `return` with: {asked}", ASKED)
    return singles


def changed(before: object, after: object) -> bool:
    """Whether a tensor, a list or a dictionary holds other things than before; NaN counts as equal to NaN."""
    return any(True for _ in changes(before, after))


def changes(before: object, after: object, place: str = "") -> Iterator[tuple[str, object, object]]:
    """(place, before, after) of each part that holds other things than before, down to the tensors of a dictionary.

    Example:
        >>> list(changes({"a": [torch.ones(1)]}, {"a": [torch.zeros(1)]}))
        [("['a'][0]", tensor([1.]), tensor([0.]))]
    """
    if isinstance(before, Tensor) and isinstance(after, Tensor):
        if not torch.equal(before.detach().nan_to_num(), after.detach().nan_to_num()):
            yield place, before, after
    elif isinstance(before, dict) and isinstance(after, dict) and before.keys() == after.keys():
        for key in before:
            yield from changes(before[key], after[key], f"{place}[{key!r}]")
    elif _nested(before) and _nested(after) and len(before) == len(after):
        for number, parts in enumerate(zip(before, after, strict=True)):
            yield from changes(*parts, f"{place}[{number}]")
    else:
        other = type(before) is not type(after) or isinstance(before, dict) or _nested(before)
        if other or (isinstance(before, list) and before != after):
            yield place, before, after


def _nested(x: object) -> TypeGuard[list | tuple]:
    return isinstance(x, list | tuple) and any(isinstance(part, Tensor | dict | list | tuple) for part in x)


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
        remedy = "; torch.tensor or torch.stack makes one of it" if isinstance(got, list | tuple) else ""
        asked = f"a tensor{remedy}" if expected.dim() else "a number"
        return NO_RETURN if got is None else f"it returned {kind} and not {asked}"
    if got.shape != expected.shape:
        squeezed = got.dim() < expected.dim() and got.squeeze().shape == expected.squeeze().shape
        return SQUEEZED if squeezed else shape or None
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
LONGEST = 400  # characters of anything else


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
    said = repr(value)
    return said if len(said) <= LONGEST else f"{said[:LONGEST]} ..."
