"""Errors that the user can fix, and how they are printed."""

MAX_LINE = 1000  # characters: a column name in a message may be of any length


class UserError(ValueError):
    """An error in the user's input, printed as one line with exit status 1 instead of a traceback.

    The message names the place, the rule and the value.
    """

    def __init__(self, message: str) -> None:
        line = printable(" ".join(message.split()))  # values and library messages may contain line breaks
        super().__init__(line if len(line) <= MAX_LINE else line[: MAX_LINE - 1] + "…")


def printable(text: str) -> str:
    """Escape control characters, so that a terminal shows them instead of obeying them."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class DivergedError(UserError):
    """The loss became NaN or infinite."""
