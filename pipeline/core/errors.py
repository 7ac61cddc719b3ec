"""Errors that the user can fix, and their format."""

MAX_LINE = 1000  # characters; a column name may be longer


class UserError(ValueError):
    """A mistake of the user: place, rule and value in one line. Ends in exit status 1, without a traceback."""

    def __init__(self, message: str) -> None:
        # Names from tables and messages of libraries may hold line breaks.
        line = printable(" ".join(message.split()))
        super().__init__(line if len(line) <= MAX_LINE else line[: MAX_LINE - 1] + "…")


def printable(text: str) -> str:
    """Text with control characters escaped, so that a terminal does not obey them."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class DivergedError(UserError):
    """The loss became NaN or infinite."""
