"""A pickle that does something where it is loaded."""

import os
from pathlib import Path
from typing import Any


class Payload:
    """A pickle of this runs a command where it is loaded."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.place}",)
