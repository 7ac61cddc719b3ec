"""Mistakes that are the user's to mend, and how they are shown."""

MAX_LINE = 1000  # characters: a column's name may be as long as a book


class UserError(ValueError):
    """Names the place, the rule and the value in one line; ends in exit status 1, never in a traceback."""

    def __init__(self, message: str) -> None:
        # What a person or a library put into the message may hold line breaks.
        line = printable(" ".join(message.split()))
        super().__init__(line if len(line) <= MAX_LINE else line[: MAX_LINE - 1] + "…")


def printable(text: str) -> str:
    """Text that a terminal shows and does not obey: control characters are spelled out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class DivergedError(UserError):
    """The loss left the numbers: it became NaN or infinite."""
