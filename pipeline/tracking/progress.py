"""Whether sending makes progress."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Progress:
    """Since when sending has stood still."""

    def __init__(self) -> None:
        self._last, self.is_at_work = time.monotonic(), False

    def made(self) -> None:
        self._last = time.monotonic()

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """What is done here takes its time, but waits for nobody."""
        self.is_at_work = True
        try:
            yield
        finally:
            self.is_at_work = False
            self.made()

    @property
    def standing(self) -> float:
        return 0.0 if self.is_at_work else time.monotonic() - self._last
