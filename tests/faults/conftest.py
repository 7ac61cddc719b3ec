"""Faults are injected a few times in `make test` and many times in `make torture`, which prints how often each was survived."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.tally import Tally


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Iterator[Tally]:
    counted = Tally()
    yield counted
    for fault, (tried, survived) in counted.counts.items():
        request.node.user_properties.append(("fault", (fault, tried, survived)))
    if counted.first_loss is not None:
        raise counted.first_loss


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder `faults`; pytest hands this hook the tests of all folders."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.faults)


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
