"""How configs and arguments are checked."""


def require(condition: bool, name: str, got: object, expected: str) -> None:
    """Raise the house's ValueError unless `condition`."""
    if not condition:
        raise ValueError(f"{name} is {got!r}; expected {expected}")
