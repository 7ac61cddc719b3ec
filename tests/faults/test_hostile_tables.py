"""Whatever a file of data holds: a prepared table and a trained network, or one line."""

import pytest

from tests.faults import worker
from tests.faults.conftest import Tally

PARTS = 2


@pytest.mark.parametrize("part", range(PARTS))
def test_any_table_is_prepared_or_is_refused_in_one_line(part: int, tally: Tally) -> None:
    n = tally.times(quick=50, torture=1000)
    rows = worker.tried("table_cases", part * n, (part + 1) * n)
    for row in rows:
        with tally.trial("hostile table: a line within 10 s and 1 GB"):
            assert not row["lost"], row
    refused = [row for row in rows if row["said"]]
    assert n == len(rows) > len(refused) > n / 4  # both happen
