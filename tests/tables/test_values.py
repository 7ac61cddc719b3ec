"""A value has the same text in columns of any type."""

import numpy as np
import pandas as pd
import pytest

from pipeline.tables.values import canonical
from tests.support.schemas import DAYS


@pytest.mark.parametrize(
    "values",
    [
        pd.Series([3, -4]),
        pd.Series([3.0, -4.0]),
        pd.Series([3.0, -4.0], dtype="float32"),
        pd.Series(["3", "-4"]),
        pd.Series(["3", "-4"], dtype="string"),
        pd.Series([3, "-4"], dtype=object),
        pd.Series(["3", -4.0], dtype=object),
        pd.Series([3, -4], dtype="Int64"),
        pd.Series([3, -4], dtype="Int8"),
        pd.Series(pd.Categorical([3, -4])),
        pd.Series(pd.Categorical([3.0, -4.0])),
        pd.Series(pd.Categorical(["3", "-4"])),
    ],
)
def test_canonical_text_does_not_depend_on_the_type(values):
    assert canonical(values).tolist() == ["3", "-4"]
    with_missing = canonical(values.reindex([0, 1, 2]))
    assert with_missing.iloc[:2].tolist() == ["3", "-4"]
    assert with_missing.isna().tolist() == [False, False, True]


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([True, False], ["true", "false"]),
        ([0.1, 2.5], ["0.1", "2.5"]),
        ([-0.0, 0.0], ["0", "0"]),
        (pd.Categorical([1, "1"]), ["1", "1"]),
        ([" a ", ""], [" a ", ""]),
        (pd.to_timedelta([1, 26], unit="h"), ["0 days 01:00:00", "1 days 02:00:00"]),
        (pd.Series([[1], [2]], dtype=object), ["[1]", "[2]"]),
    ],
)
def test_canonical_text(values, texts):
    assert canonical(pd.Series(values)).tolist() == texts


def test_canonical_text_of_dates_does_not_depend_on_their_unit():
    texts = [canonical(pd.Series(DAYS).astype(np.dtype(f"datetime64[{unit}]"))).tolist() for unit in ("s", "us", "ns")]
    assert texts[0] == texts[1] == texts[2]


def test_canonical_of_a_category_without_categories_is_missing():
    assert canonical(pd.Series(pd.Categorical([None, None], categories=[]))).isna().all()
