"""Errors that the user can fix, and how they are printed."""

MAX_LINE = 1000  # characters: a column name in a message may be of any length


class UserError(ValueError):
    """A mistake in the user's input: place, rule and value in one line, which ends in exit status 1, not in a traceback."""

    def __init__(self, message: str) -> None:
        line = printable(" ".join(message.split()))  # values and library messages may contain line breaks
        super().__init__(line if len(line) <= MAX_LINE else line[: MAX_LINE - 1] + "…")


def printable(text: str) -> str:
    """Escape control characters, so that a terminal shows them instead of obeying them."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class DivergedError(UserError):
    """The loss became NaN or infinite."""
