"""Mistakes that are the user's to mend."""


class UserError(ValueError):
    """Names the place, the rule and the value in one line; ends in exit status 1, never in a traceback."""

    def __init__(self, message: str) -> None:
        # What a person or a library put into the message may hold line breaks.
        super().__init__(" ".join(message.split()))


class DivergedError(UserError):
    """The loss left the numbers: it became NaN or infinite."""
