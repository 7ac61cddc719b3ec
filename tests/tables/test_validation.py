"""Tables are checked against the schema."""

import decimal

import numpy as np
import pandas as pd
import pytest

from pipeline.tables import validation
from tests.support.refusals import refusal
from tests.support.schemas import DAYS, N, learn, objects


@pytest.fixture
def known():
    table = pd.DataFrame({
        "length": np.linspace(0, 1, N), "colour": objects(*"rgb"), "day": DAYS.strftime("%d.%m.%Y"),
        "when": DAYS, "id": [f"id-{i}" for i in range(N)],
    })  # fmt: skip
    return table, learn(table)


def test_checked_table_has_only_the_features_in_order(known):
    table, learned = known
    checked = validation.check(table, learned, "t")
    assert list(checked.columns) == ["length", "colour", "day", "when"]
    shuffled = table.assign(extra=1)[["extra", "when", "id", "colour", "day", "length"]].drop(columns="id")
    pd.testing.assert_frame_equal(validation.check(shuffled, learned, "t"), checked)
    pd.testing.assert_frame_equal(validation.check(table.set_index(np.arange(N)[::-1]), learned, "t"), checked)


def test_types_of_another_file_give_the_same_features(known):
    table, learned = known
    checked = validation.check(table, learned, "t")
    other = table.assign(
        length=table["length"].map(repr).astype(object),
        colour=pd.Categorical(table["colour"]),
        day=DAYS,
        when=DAYS.strftime("%Y-%m-%d"),
    )
    pd.testing.assert_frame_equal(validation.check(other, learned, "t"), checked, check_dtype=False)


def test_missing_column_is_named_with_the_nearest(known):
    table, learned = known
    message = refusal(validation.check, table.rename(columns={"colour": "color"}), learned, "new.csv")
    assert "new.csv" in message
    assert "'colour'" in message
    assert "'color'" in message
    assert "1 more" in refusal(validation.check, table.drop(columns=["colour", "day"]), learned, "new.csv")


@pytest.mark.parametrize(
    ("column", "value", "rule"),
    [
        ("length", "long", "a number"),
        ("length", np.inf, "finite"),
        ("length", -np.inf, "finite"),
        ("length", "inf", "finite"),
        ("length", "1e999", "finite"),
        ("length", [1], "a number"),
        ("day", "2020-01-05", "%d.%m.%Y"),
        ("day", "32.01.2020", "%d.%m.%Y"),
        ("day", 5, "%d.%m.%Y"),
        ("when", "yesterday", "a date"),
        ("when", 7, "a date"),
    ],
)
@pytest.mark.parametrize("row", [1, 7])
def test_value_that_does_not_fit_is_named_with_row_and_column(known, column, value, rule, row):
    table, learned = known
    table[column] = table[column].astype(object)
    table.at[row - 1, column] = value
    message = refusal(validation.check, table, learned, "new.csv")
    assert f"new.csv, row {row}: {column!r} must be" in message
    assert rule in message
    assert str(value).replace("e999", "") in message or "inf" in message


def test_numbers_in_a_column_of_dates_are_refused(known):
    table, learned = known
    assert "'when' must be a date" in refusal(validation.check, table.assign(when=range(N)), learned, "t")


def test_numbers_stay_numbers_when_checked(known):
    table, learned = known
    values = [None, "2.5", 3, True, decimal.Decimal("1.25"), " 7 "]
    few = table.head(6).assign(length=pd.Series(values, dtype=object))
    np.testing.assert_array_equal(validation.check(few, learned, "t")["length"], [np.nan, 2.5, 3, 1, 1.25, 7])


def test_checking_keeps_the_table_and_accepts_no_rows(known):
    table, learned = known
    before = table.copy(deep=True)
    validation.check(table, learned, "t")
    pd.testing.assert_frame_equal(table, before)
    assert len(validation.check(table.head(0), learned, "t")) == 0


def test_unseen_values_are_counted(known):
    table, learned = known
    assert validation.unseen(validation.check(table, learned, "t"), learned) == {}
    changed = table.assign(colour=["x"] * 5 + ["y"] * 2 + [None] * 3 + ["r"] * (N - 10))
    found = validation.unseen(validation.check(changed, learned, "t"), learned)
    assert {name: counts.to_dict() for name, counts in found.items()} == {"colour": {"x": 5, "y": 2}}
