"""What a user reads when something is refused."""

from collections.abc import Callable
from typing import Any

import pytest

from pipeline.core.errors import UserError


def refusal(call: Callable[..., Any], *arguments: Any, **named: Any) -> str:
    """The message of the `UserError` that the call raises: one line, without the types of NumPy in it."""
    with pytest.raises(UserError) as caught:
        call(*arguments, **named)
    message = str(caught.value)
    assert len(message.splitlines()) == 1, message
    assert "np." not in message, message
    return message
