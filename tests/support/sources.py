"""A small table as sources hold it, and how a test reads one."""

from typing import Any

import numpy as np
import pandas as pd

from pipeline.core.settings import Csv
from pipeline.sources import readers
from tests.support import refusals

TABLE = pd.DataFrame({"id": [1, 2, 3], "word": ["x", "é y", "z"], "size": [1.5, np.nan, -2.25]})


def text(separator: str = ",") -> str:
    return TABLE.to_csv(index=False, sep=separator)


def read(name: str, **options: Any) -> pd.DataFrame:
    return readers.read(name, Csv(**options))


def refusal(name: str, **options: Any) -> str:
    return refusals.refusal(read, name, **options)


# The cells of TABLE as they stand in a text file.
CELLS = pd.DataFrame({"id": ["1", "2", "3"], "word": ["x", "é y", "z"], "size": ["1.5", None, "-2.25"]}, dtype="str")


def same(table: pd.DataFrame, expected: pd.DataFrame = TABLE) -> None:
    pd.testing.assert_frame_equal(table, expected)
