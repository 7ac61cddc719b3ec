"""Whatever params.yaml holds: parameters, or one line."""

import pytest

from tests.faults import worker
from tests.faults.conftest import Tally

PARTS = 2


@pytest.mark.parametrize("part", range(PARTS))
def test_any_params_file_loads_or_is_refused_in_one_line(part: int, tally: Tally) -> None:
    n = tally.times(quick=50, torture=1000)
    rows = worker.tried("params_cases", part * n, (part + 1) * n)
    for row in rows:
        with tally.trial("hostile params.yaml: a line within 10 s and 1 GB"):
            assert not row["lost"], row
    refused = [row for row in rows if row["said"]]
    assert n == len(rows) > len(refused) > n / 4  # both happen
