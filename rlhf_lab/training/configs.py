"""How configs and arguments are checked."""

import math


def require(condition: bool, name: str, got: object, expected: str) -> None:
    """Raise the house's ValueError unless `condition`."""
    if not condition:
        raise ValueError(f"{name} is {got!r}; expected {expected}")


def at_least_one(config: object, *names: str) -> None:
    """Refuse a config with one of these fields below 1."""
    for name in names:
        require(getattr(config, name) >= 1, name, getattr(config, name), "at least 1")


def above_zero(config: object, *names: str) -> None:
    """Refuse a config with one of these fields that is not a finite number above 0."""
    for name in names:
        require(0 < getattr(config, name) < math.inf, name, getattr(config, name), "a number above 0")


def from_zero(config: object, *names: str) -> None:
    """Refuse a config with one of these fields that is not a finite number from 0 on."""
    for name in names:
        require(0 <= getattr(config, name) < math.inf, name, getattr(config, name), "a number from 0 on")


def shares(config: object, *names: str) -> None:
    """Refuse a config with one of these fields outside [0, 1]."""
    for name in names:
        require(0 <= getattr(config, name) <= 1, name, getattr(config, name), "in [0, 1]")
