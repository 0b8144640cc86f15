"""How a check compares the reader's answer with the definition, and names the usual mistake behind a wrong one."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from rlhf_lab.evaluation import Interval


def compare(
    name: str,
    case: str,
    call: Callable[[], object],
    expected: object,
    faults: Mapping[str, Callable[[], object]],
    hint: str,
    *,
    same: Callable[[object, object], bool],
    odd: Callable[[object, object], str | None] = lambda got, expected: None,
) -> None:
    """Run the reader's function; if the answer is another one, say what usually causes it.

    Args:
        name, case: of the exercise and of the inputs, for the message.
        call: the reader's function on these inputs.
        expected: the right answer.
        faults: cause -> what a function with this fault gives on the same inputs.
        hint: the cause to name where no fault gives the same answer.
        same: whether two answers agree.
        odd: a cause that shows in (answer, expected) alone, such as None for an answer; it goes before the faults.

    Raises:
        AssertionError: the answer differs, or the function raised.
        NotImplementedError: the exercise has not been started.
    """
    try:
        got = call()
    except NotImplementedError:
        raise
    except Exception as error:  # the reader's code may raise anything
        fail(name, case, f"{type(error).__name__}: {error}", expected, hint)
    if not same(got, expected):
        alike = (cause for cause, fault in faults.items() if same(got, fault()))
        fail(name, case, got, expected, odd(got, expected) or next(alike, hint))


def same_tensors(got: object, expected: Tensor, tolerance: float = 1e-6) -> bool:
    """Whether the answer is a tensor of the same shape and, up to rounding, the same numbers; of any precision."""
    return (
        isinstance(got, Tensor)
        and got.shape == expected.shape
        and torch.allclose(got.detach().double(), expected.double(), rtol=1e-5, atol=tolerance)
    )


def odd_tensors(got: object, expected: Tensor, shape: str = "", not_finite: str = "") -> str | None:
    """A cause that shows in the answer alone: no tensor or, where these are given, another shape, NaN or infinity."""
    if not isinstance(got, Tensor):
        return f"it returned {type(got).__name__} and not a tensor; is there a `return`?"
    if got.shape != expected.shape:
        return shape or None
    return (not_finite or None) if not torch.isfinite(got).all() else None


def fail(name: str, case: str, got: object, expected: object, cause: str) -> None:
    """Raise the AssertionError of a check: inputs, got, expected and what usually causes it."""
    raise AssertionError(
        f"{name}, {case}:\n  got       {_show(got)}\n  expected  {_show(expected)}\n  usual cause: {cause}"
    )


def _show(value: object) -> str:
    if isinstance(value, Tensor):
        numbers = [round(x, 4) for x in value.detach().flatten().tolist()]
        return f"{numbers[:12]} of shape {list(value.shape)}"
    if isinstance(value, Interval):
        return f"mean {value.mean:.3f} in [{value.low:.3f}, {value.high:.3f}], count {value.count}"
    return repr(value)
