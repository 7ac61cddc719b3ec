"""How often each fault was tried and survived."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

TORTURE = bool(os.environ.get("TORTURE"))


class Tally:
    """How often a fault was tried and survived; the test fails at its end if it was not each time."""

    def __init__(self) -> None:
        self.counts: dict[str, list[int]] = {}
        self.first_loss: BaseException | None = None

    @staticmethod
    def times(quick: int, torture: int) -> int:
        return torture if TORTURE else quick

    @contextmanager
    def trial(self, fault: str) -> Iterator[None]:
        """One injection of `fault`; lost if what follows it raises."""
        count = self.counts.setdefault(fault, [0, 0])
        count[0] += 1
        try:
            yield
        except Exception as error:  # told when the test ends, after the other trials
            self.first_loss = self.first_loss or error
        else:
            count[1] += 1
