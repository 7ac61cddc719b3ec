"""Faults are injected a few times in `make test` and many times in `make torture`, which prints how often each was survived."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

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


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Iterator[Tally]:
    counted = Tally()
    yield counted
    for fault, (tried, survived) in counted.counts.items():
        request.node.user_properties.append(("fault", (fault, tried, survived)))
    if counted.first_loss is not None:
        raise counted.first_loss


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    total: dict[str, list[int]] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", "") == "teardown":
                for name, value in report.user_properties:
                    if name == "fault":
                        fault, tried, survived = value
                        count = total.setdefault(fault, [0, 0])
                        count[0] += tried
                        count[1] += survived
    if total:
        terminalreporter.write_line("| fault | tried | survived | lost |\n| --- | --- | --- | --- |")
        for fault, (tried, survived) in sorted(total.items()):
            terminalreporter.write_line(f"| {fault} | {tried:,} | {survived:,} | {tried - survived:,} |")
