"""Kinds and targets are inferred from the columns."""

import datetime

import numpy as np
import pandas as pd
import pytest

from pipeline.core.settings import Data, Split
from pipeline.stages.prepare import inference
from pipeline.tables import validation
from tests.support.refusals import refusal
from tests.support.schemas import (
    CATEGORICAL,
    DAYS,
    DROP,
    MISSING_ONE,
    NUMERIC,
    N,
    learn,
    learn_one,
    learn_target,
    objects,
)

# ------------------------------------------------------------------------------------------------------------ kinds


@pytest.mark.parametrize(
    ("kind", "values"),
    [pytest.param(kind, values, id=name) for kind, cases in
     {"numeric": NUMERIC, "categorical": CATEGORICAL, "drop": DROP}.items() for name, values in cases.items()],
)  # fmt: skip
def test_kind_is_inferred(kind, values):
    column = learn_one(values)
    assert column.kind == kind, column.reason
    assert column.reason
    if kind == "drop":
        return
    table = pd.DataFrame({"x": values})
    checked = validation.check(table, learn(table), "t")["x"]
    assert len(checked) == N
    known = checked.dropna()
    if kind == "numeric":
        assert checked.dtype == np.float64
        assert len(known) == N - pd.Series(values).isna().sum() - sum(column.words.values())
    else:
        assert column.missing == pd.Series(values).isna().sum() == checked.isna().sum()
        assert column.categories == tuple(sorted(set(known), key=lambda v: (-(known == v).sum(), v)))


@pytest.mark.parametrize(
    ("shown", "date_format", "parts"),
    [
        ("%Y-%m-%d", "ISO8601", ("date",)),
        ("%Y-%m-%dT%H:%M:%S", "ISO8601", ("date", "time")),
        ("%Y-%m-%d %H:%M:%S.%f", "ISO8601", ("date", "time")),
        ("%Y-%m-%dT%H:%M:%SZ", "ISO8601", ("date", "time")),
        ("%Y-%m-%d %H:%M:%S+02:00", "ISO8601", ("date", "time")),
        ("%Y/%m/%d", "%Y/%m/%d", ("date",)),
        ("%d.%m.%Y", "%d.%m.%Y", ("date",)),
        ("%d.%m.%Y %H:%M", "%d.%m.%Y %H:%M", ("date", "time")),
        ("%m/%d/%Y", "%m/%d/%Y", ("date",)),
        ("%d/%m/%Y", "%d/%m/%Y", ("date",)),
        ("%d/%m/%Y %H:%M:%S", "%d/%m/%Y %H:%M:%S", ("date", "time")),
        ("%H:%M", "%H:%M", ("time",)),
        ("%H:%M:%S", "%H:%M:%S", ("time",)),
    ],
)
@pytest.mark.parametrize("missing", [False, True])
def test_dates_and_times_in_text_are_read(shown, date_format, parts, missing):
    moments = pd.date_range("2020-02-10 05:06:07", periods=N, freq="25h1min3s")
    values = pd.Series(moments.strftime(shown)).where(~np.full(N, missing) | MISSING_ONE)
    column = learn_one(values)
    assert (column.kind, column.reading.format, column.parts, column.missing) == (
        "datetime",
        date_format,
        parts,
        int(missing),
    )
    table = pd.DataFrame({"x": values})
    checked = validation.check(table, learn(table), "t")["x"]
    expected = pd.Series([
        None if pd.isna(value) else datetime.datetime.strptime(value, shown.replace("+02:00", "%z").replace("Z", "%z"))
        for value in values
    ])  # fmt: skip
    pd.testing.assert_series_equal(checked, pd.to_datetime(expected, utc=True), check_names=False, check_dtype=False)


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        (DAYS, ("date",)),
        (DAYS + pd.Timedelta("90min"), ("date", "time")),
        (DAYS.to_series().where(MISSING_ONE), ("date",)),
        (DAYS.tz_localize("Asia/Tokyo"), ("date",)),
        (pd.Categorical(DAYS), ("date",)),
        (pd.Series(DAYS.date, dtype=object), ("date",)),
        (pd.Series(DAYS.time, dtype=object).where(DAYS.day > 9, datetime.time(9, 30)), ("time",)),
        (pd.Series(np.array(["0001-01-01", "9999-12-31"] * 50, dtype="datetime64[s]")), ("date",)),
    ],
)
def test_date_types_of_parquet_are_dates(values, parts):
    column = learn_one(values)
    assert (column.kind, column.parts) == ("datetime", parts)


def test_words_among_numbers_are_missing_values():
    table = pd.DataFrame({"x": ["unknown", *map(str, range(N - 2)), "N/A"]})
    learned = learn(table)
    assert learned.columns[0].words == {"unknown": 1, "N/A": 1}
    assert learned.columns[0].missing == 2
    checked = validation.check(table, learned, "t")["x"]
    np.testing.assert_array_equal(checked, [np.nan, *range(N - 2), np.nan])


def test_a_missing_value_word_outside_of_the_training_rows_is_read_as_missing():
    table = pd.DataFrame({"x": [*map(str, range(N - 1)), "unknown"]})
    learned = learn(table, np.arange(N // 2))
    assert (learned.columns[0].kind, learned.columns[0].missing) == ("numeric", 0)
    assert np.isnan(validation.check(table, learned, "t")["x"].iloc[-1])


def test_categories_come_from_training_rows_by_frequency():
    values = ["b"] * 3 + ["a"] * 3 + ["c"] * 5 + ["d"] + ["later"] * 50
    table, train = pd.DataFrame({"x": values}), np.arange(12)
    assert learn(table, train).columns[0].categories == ("c", "a", "b", "d")
    assert learn(table, train, min_count=2).columns[0].categories == ("c", "a", "b")
    assert learn(table, train, max_categories=2).columns[0].categories == ("c", "a")
    assert learn(table, train, max_categories=2).cardinalities == (4,)


@pytest.mark.parametrize(
    ("values", "wanted", "said"),
    [
        (np.linspace(0, 1, N), "categorical", "data.kinds"),
        (np.arange(N) % 3, "numeric", "data.kinds"),
        ([f"id-{i}" for i in range(N)], "categorical", "data.kinds"),
        ([str(i) for i in range(N)], "numeric", "data.kinds"),
        (objects(True, False, None), "numeric", "data.kinds"),
        (DAYS, "categorical", "data.kinds"),
        (pd.to_timedelta(np.arange(N) % 3, unit="h"), "categorical", "data.kinds"),
        (DAYS, "drop", "data.kinds"),
        ([1.0] * N, "numeric", "data.kinds"),
    ],
)
def test_kinds_override_what_is_inferred(values, wanted, said):
    column = learn_one(values, kinds={"x": wanted})
    assert column.kind == wanted
    assert said in column.reason
    table = pd.DataFrame({"x": values})
    assert len(validation.check(table, learn(table, kinds={"x": wanted}), "t")) == N


def test_dropped_columns_and_the_split_group_are_not_features():
    table = pd.DataFrame({"a": np.arange(N), "b": np.arange(N), "c": np.arange(N), "y": np.arange(N) % 2})
    learned = learn(table, drop=("a",), split={"by": "group:b"})
    assert [(c.name, c.kind) for c in learned.columns] == [("a", "drop"), ("b", "drop"), ("c", "numeric")]
    assert [c.name for c in learned.features] == ["c"]


# ----------------------------------------------------------------------------------------------------------- target


@pytest.mark.parametrize(
    ("values", "task", "said"),
    [
        ([None, None], "binary", "no value"),
        ([np.nan, np.nan], "regression", "no value"),
        (["a", "a"], "binary", "one class, 'a'"),
        (["a", "a"], "multiclass", "one class, 'a'"),
        ([7, 7], "multiclass", "one class"),
        ([1.5, 1.5], "regression", "1.5 in every row"),
        (list("abc") * 4, "binary", "3 classes"),
        (["a", "b"] * 4, "regression", "binary or multiclass?"),
        ([True, False] * 4, "regression", "binary or multiclass?"),
        (np.linspace(0, 1, N), "multiclass", "regression?"),
        ([f"id-{i}" for i in range(N)], "multiclass", "is it an id?"),
        ([1.0, np.inf, 2.0], "regression", "infinite in row 2"),
        ([1e300, -1e300, 3.0], "regression", "scale"),
        ([0.0, 1e-200], "regression", "scale"),
        ([1.0, 2.0, -np.inf] * 4, "multiclass", "infinite in row 3"),
        (pd.to_datetime(["2020-01-01", "2020-01-02"] * 4), "regression", "binary or multiclass?"),
        (pd.Series([[1], [2]] * 4, dtype=object), "binary", "list"),
    ],
)
def test_target_that_does_not_fit_the_task_is_refused(values, task, said):
    message = refusal(learn_target, pd.Series(values, name="y"), task)
    assert said in message
    assert "'y'" in message


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"target": "yy"}, "data.target"),
        ({"drop": ("yy",)}, "data.drop"),
        ({"kinds": {"yy": "drop"}}, "data.kinds"),
        ({"split": {"by": "time:yy"}}, "data.split.by"),
        ({"split": {"by": "group:yy"}}, "data.split.by"),
    ],
)
def test_missing_named_column_is_refused_with_the_nearest_name(data, said):
    settings = Data(**{"source": "s", "target": "y_", "task": "binary", **data})
    message = refusal(inference.check_names, pd.DataFrame({"y_": [1], "a": [2]}), settings)
    assert said in message
    assert "'yy'" in message
    assert "'y_'" in message


@pytest.mark.parametrize("by", ["time:y", "group:y"])
def test_rows_cannot_be_split_by_the_target(by):
    settings = Data(source="s", target="y", task="binary", split=Split(by=by))
    assert by in refusal(inference.check_names, pd.DataFrame({"y": [1]}), settings)
