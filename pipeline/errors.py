"""Mistakes that are the user's to mend."""


class UserError(ValueError):
    """Names the place, the rule and the value in one line; ends in exit status 1, never in a traceback."""


class DivergedError(UserError):
    """The loss left the numbers: it became NaN or infinite."""
