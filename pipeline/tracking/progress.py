"""Measure how long sending to MLflow has stalled."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Progress:
    """The time since sending last made progress."""

    def __init__(self) -> None:
        self._last, self.is_working = time.monotonic(), False

    def made(self) -> None:
        self._last = time.monotonic()

    @contextmanager
    def working(self) -> Iterator[None]:
        """Run slow local work, which counts as progress: it waits for no server."""
        self.is_working = True
        try:
            yield
        finally:
            self.is_working = False
            self.made()

    @property
    def stalled(self) -> float:
        """Seconds without progress."""
        return 0.0 if self.is_working else time.monotonic() - self._last
