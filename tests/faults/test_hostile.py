"""Hostile tables and params.yaml end in a prepared table and a trained network, or in one line.

Every fourth usable table is trained on; each accepted params.yaml trains on a small table.
"""

import pytest

from tests.faults import worker
from tests.support.tally import Tally

PARTS = 2  # equal parts, for two processes of pytest


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize(
    ("cases", "fault"), [("table_cases", "hostile table"), ("params_cases", "hostile params.yaml")]
)
def test_hostile_input_is_used_or_refused_in_one_line(cases: str, fault: str, part: int, tally: Tally) -> None:
    n = tally.times(quick=50, torture=1000)
    rows = worker.tried(cases, part * n, (part + 1) * n)
    for row in rows:
        with tally.trial(f"{fault}: a result or a line within 10 s of CPU and 1 GB"):
            assert not row["lost"], row
            # Parameters may describe a network that exceeds the memory; a table must not.
            assert cases == "params_cases" or "not enough memory" not in row["said"], row
    refused = [row for row in rows if row["said"]]
    assert n == len(rows) > len(refused) > n / 4  # enough cases are used, and enough refused
