"""How configs and arguments are checked.

The checks of a config also put Python's own number in the place of numpy's, which a checkpoint could not give back.
"""

import math

import numpy as np


def require(condition: bool, name: str, got: object, expected: str) -> None:
    """Raise the house's ValueError unless `condition`."""
    if not condition:
        raise ValueError(f"{name} is {got!r}; expected {expected}")


def real_number(name: str, got: object) -> int | float:
    """The number as Python's own; ValueError for a text, a truth value, a tensor, None."""
    number = got.item() if isinstance(got, np.generic) else got
    require(isinstance(number, int | float) and not isinstance(number, bool), name, number, "a number")
    return number  # type: ignore[return-value]


def whole_number(name: str, got: object, least: float = -math.inf) -> int:
    """The number as Python's own; ValueError for 1.5 and 2.0, for what `real_number` refuses, and below `least`.

    >>> whole_number("steps", np.int64(3), least=1)
    3
    """
    number = got.item() if isinstance(got, np.generic) else got
    require(isinstance(number, int) and not isinstance(number, bool), name, number, "a whole number")
    require(number >= least, name, number, f"at least {least}")  # type: ignore[operator]
    return number  # type: ignore[return-value]


def whole(config: object, *names: str, least: float = -math.inf) -> None:
    """Refuse a config with one of these fields that is not a whole number, or below `least`; a seed, a count."""
    for name in names:
        object.__setattr__(config, name, whole_number(name, getattr(config, name), least))


def at_least_one(config: object, *names: str) -> None:
    """Refuse a config with one of these fields that is not a whole number from 1 on."""
    whole(config, *names, least=1)


def above_zero(config: object, *names: str, or_infinite: bool = False) -> None:
    """Refuse a config with one of these fields that is not a finite number above 0; infinity where it is allowed."""
    for name in names:
        number = _real(config, name)
        fits = 0 < number < math.inf or (or_infinite and number == math.inf)
        require(fits, name, number, f"a number above 0{', or infinity' if or_infinite else ''}")


def from_zero(config: object, *names: str) -> None:
    """Refuse a config with one of these fields that is not a finite number from 0 on."""
    for name in names:
        number = _real(config, name)
        require(0 <= number < math.inf, name, number, "a number from 0 on")


def shares(config: object, *names: str) -> None:
    """Refuse a config with one of these fields outside [0, 1]."""
    for name in names:
        number = _real(config, name)
        require(0 <= number <= 1, name, number, "in [0, 1]")


def flags(config: object, *names: str) -> None:
    """Refuse a config with one of these fields that is not True or False: the text "no" would count as True."""
    for name in names:
        got = getattr(config, name)
        require(isinstance(got, bool | np.bool_), name, got, "True or False")
        object.__setattr__(config, name, bool(got))


def _real(config: object, name: str) -> int | float:
    number = real_number(name, getattr(config, name))
    object.__setattr__(config, name, number)
    return number
