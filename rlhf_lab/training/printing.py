"""Foreign text for a terminal or a message."""


def printable(text: str) -> str:
    """Text of a model, a person or a file: control characters are shown and not obeyed.

    >>> printable("red: \\x1b[31m")
    'red: \\\\x1b[31m'
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
