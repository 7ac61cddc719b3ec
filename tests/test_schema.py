"""Kinds are read off the columns, and any table is checked against them."""

import datetime
import decimal
import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.errors import UserError
from pipeline.core.settings import Data
from pipeline.stages.prepare import inference
from pipeline.tables import schema as schemas
from pipeline.tables import validation
from pipeline.tables.schema import Column, Schema, Target
from pipeline.tables.values import canonical

N = 100
DAYS = pd.date_range("2019-12-20", periods=N)
MISSING_ONE = np.arange(N) != 3
TARGET = Target(name="y", task="binary", classes=(0, 1))


def learn(table: pd.DataFrame, train: np.ndarray | None = None, **data) -> Schema:
    settings = Data(source="s", target="y", task="binary", **data)
    rows = np.arange(len(table)) if train is None else train
    return Schema(columns=inference.learn_columns(table, rows, settings), target=TARGET)


def learn_one(values, **data) -> Column:
    return learn(pd.DataFrame({"x": values}), **data).columns[0]


def objects(*values) -> pd.Series:
    return pd.Series([values[i % len(values)] for i in range(N)], dtype=object)


def refusal(call, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments)
    message = str(caught.value)
    assert len(message.splitlines()) == 1, message
    assert "np." not in message, message
    return message


# ------------------------------------------------------------------------------------------------------------ kinds

numeric = {
    "float": np.linspace(-1, 1, N),
    "float of two values": np.repeat([0.5, 1.5], N // 2),
    "int": np.arange(N),
    "int of eleven values": np.arange(N) % 11,
    "uint64": np.arange(N, dtype=np.uint64) + 2**63,
    "Int64 with missing": pd.Series([*range(N - 1), None], dtype="Int64"),
    "Float64 with missing": pd.Series([*np.linspace(0, 1, N - 1), None], dtype="Float64"),
    "Decimal": pd.Series([decimal.Decimal(i) / 4 for i in range(N)], dtype=object),
    "Decimal with missing": pd.Series([None, *(decimal.Decimal(i) / 4 for i in range(N - 1))], dtype=object),
    "timedelta": pd.to_timedelta(np.arange(N), unit="h"),
    "timedelta with missing": pd.Series(pd.to_timedelta(np.arange(N), unit="h")).where(MISSING_ONE),
    "categories of numbers": pd.Categorical(np.arange(N) * 1.5),
    "categories of whole numbers with missing": pd.Categorical([*range(N - 1), None]),
    "numbers and words": [str(i) for i in range(N - 2)] + ["unknown", "-"],
}
categorical = {
    "bool": np.arange(N) % 2 == 0,
    "bool with missing": objects(True, False, None),
    "boolean with missing": pd.Series(objects(True, False, None), dtype="boolean"),
    "categories of bool with missing": pd.Categorical(objects(True, False, None)),
    "text": objects(*"abcd").astype("str"),
    "text with missing": objects(*"abc", None),
    "one text and missing": objects("a", None),
    "int of ten values": np.arange(N) % 10,
    "int of four values with missing": pd.Series(np.arange(N) % 4).where(MISSING_ONE),
    "Int64 of two values with missing": pd.Series(objects(1, 2, None), dtype="Int64"),
    "mixed objects": objects(1, "a", 2.5),
    "category": pd.Categorical(list("abcd") * 25),
    "category with missing": pd.Categorical(objects("a", "b", None)),
    "category of whole numbers with missing": pd.Categorical(objects(1, 2, None, 3)),
    "digits as text": objects("1", "2").astype("str"),
    "no dates": objects("2020-13-01", "2020-01-01").astype("str"),
    "beyond 24 hours": [f"{i % 60:02}:{i % 60:02}" for i in range(N)],
}
drop = {
    "one value": ["a"] * N,
    "one number": [1.5] * N,
    "one date": [DAYS[0]] * N,
    "all None": [None] * N,
    "all NaN": [np.nan] * N,
    "all NaT": pd.Series([pd.NaT] * N),
    "empty category": pd.Categorical([None] * N, categories=[]),
    "ids": [f"id-{i}" for i in range(N)],
    "lists": objects([1, 2], [3]),
    "dicts": objects({"a": 1}, {}),
    "bytes": objects(b"a", b"b"),
    "arrays": objects(np.array([1]), np.array([2])),
    "complex": np.arange(N) * 1j,
}


@pytest.mark.parametrize(
    ("kind", "values"),
    [pytest.param(kind, values, id=name) for kind, cases in
     {"numeric": numeric, "categorical": categorical, "drop": drop}.items() for name, values in cases.items()],
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
        assert len(known) == N - pd.Series(values).isna().sum() - len(column.missing_texts)
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
    assert (column.kind, column.format, column.parts, column.missing) == ("datetime", date_format, parts, int(missing))
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
    table = pd.DataFrame({"x": ["unknown", *map(str, range(N - 2)), "n/a?"]})
    learned = learn(table)
    assert learned.columns[0].missing_texts == ("n/a?", "unknown")
    assert learned.columns[0].missing == 2
    checked = validation.check(table, learned, "t")["x"]
    np.testing.assert_array_equal(checked, [np.nan, *range(N - 2), np.nan])


def test_a_word_that_training_rows_lack_is_still_no_number_there():
    table = pd.DataFrame({"x": [*map(str, range(N - 1)), "unknown"]})
    learned = learn(table, np.arange(N // 2))
    assert (learned.columns[0].kind, learned.columns[0].missing) == ("numeric", 0)
    assert np.isnan(validation.check(table, learned, "t")["x"].iloc[-1])


def test_categories_are_those_of_training_rows_the_most_frequent_first():
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


def test_dropped_columns_and_the_group_of_the_split_are_no_features():
    table = pd.DataFrame({"a": np.arange(N), "b": np.arange(N), "c": np.arange(N), "y": np.arange(N) % 2})
    learned = learn(table, drop=("a",), split={"by": "group:b"})
    assert [(c.name, c.kind) for c in learned.columns] == [("a", "drop"), ("b", "drop"), ("c", "numeric")]
    assert [c.name for c in learned.features] == ["c"]


def test_widths_count_parts_of_dates_and_missing_indicators():
    table = pd.DataFrame({
        "n": np.linspace(0, 1, N),
        "m": pd.Series(np.linspace(0, 1, N)).where(MISSING_ONE),
        "day": DAYS,
        "moment": DAYS.to_series(index=range(N)).where(MISSING_ONE) + pd.Timedelta("1h"),
        "c": objects(*"abc"),
    })  # fmt: skip
    learned = learn(table)
    # two numbers; the 5 numbers of a date; the 5 of a date and the 3 of a time; an indicator of m and of moment
    assert learned.d_num == 2 + 5 + 8 + 2
    assert learned.cardinalities == (5,)


# ---------------------------------------------------------------------------------------------------- values as text


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
        ([True, False], ["True", "False"]),
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
    texts = [canonical(pd.Series(DAYS).astype(f"datetime64[{unit}]")).tolist() for unit in ("s", "us", "ns")]
    assert texts[0] == texts[1] == texts[2]


def test_canonical_of_a_category_without_categories_is_missing():
    assert canonical(pd.Series(pd.Categorical([None, None], categories=[]))).isna().all()


# ------------------------------------------------------------------------------------------------------------ check


@pytest.fixture
def known():
    table = pd.DataFrame({
        "length": np.linspace(0, 1, N), "colour": objects(*"rgb"), "day": DAYS.strftime("%d.%m.%Y"),
        "when": DAYS, "id": [f"id-{i}" for i in range(N)],
    })  # fmt: skip
    return table, learn(table)


def test_checked_table_has_the_features_alone_in_their_order(known):
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
        ("length", "", "a number"),
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


def test_numbers_in_a_column_of_dates_are_no_dates(known):
    table, learned = known
    assert "'when' must be a date" in refusal(validation.check, table.assign(when=range(N)), learned, "t")


def test_numbers_stay_numbers_when_checked(known):
    table, learned = known
    values = [None, "2.5", 3, True, decimal.Decimal("1.25"), " 7 "]
    few = table.head(6).assign(length=pd.Series(values, dtype=object))
    np.testing.assert_array_equal(validation.check(few, learned, "t")["length"], [np.nan, 2.5, 3, 1, 1.25, 7])


def test_checking_changes_neither_the_table_nor_needs_rows(known):
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


# ----------------------------------------------------------------------------------------------------------- target


@pytest.mark.parametrize(
    ("values", "classes"),
    [
        (["no", "yes", "no"], ("no", "yes")),
        ([10, 9, 10], (9, 10)),
        ([0.5, -1.5, 0.5], (-1.5, 0.5)),
        ([2.0, 10.0, 2.0], (2.0, 10.0)),
        ([True, False, True], (False, True)),
        (["10", "9", "10"], ("10", "9")),
        (pd.Categorical(["b", "a", "b"], categories=["z", "b", "a"]), ("a", "b")),
        (pd.Categorical([2, 1, 2]), (1, 2)),
        (pd.Series([2, 1, 2], dtype="Int64"), (1, 2)),
        (pd.Series([True, False, True], dtype="boolean"), (False, True)),
        (pd.Series([True, "a", True], dtype=object), (True, "a")),
        (pd.to_datetime(["2020-01-02", "2020-01-01", "2020-01-02"]), None),
    ],
)
def test_labels_come_back_as_they_were(values, classes):
    values = pd.Series(values, name="y")
    target = inference.learn_target(pd.concat([values] * 2, ignore_index=True), "binary")
    if classes is not None:
        assert target.classes == classes
        assert [type(label) for label in target.classes] == [type(label) for label in classes]
    codes = target.encode(values)
    assert codes[0] == codes[2] != codes[1]
    assert sorted(set(codes)) == [0, 1]
    labels = target.labels(codes)
    if classes is not None:
        assert labels.tolist() == values.tolist()
    again = Target.model_validate_json(json.dumps(target.model_dump(mode="json")))
    assert again == target
    assert [type(label) for label in again.classes] == [type(label) for label in target.classes]


@given(st.lists(st.integers(-(10**9), 10**9) | st.text(max_size=3), min_size=2, max_size=9, unique_by=str))
@settings(max_examples=60, database=None, deadline=None)
def test_every_class_has_its_code_and_others_have_none(labels):
    values = pd.Series(labels * 3, dtype=object, name="y")
    target = inference.learn_target(values, "multiclass")
    assert target.labels(target.encode(values)).map(str).tolist() == values.map(str).tolist()
    assert sorted(set(target.encode(values))) == list(range(len(labels)))
    assert target.encode(pd.Series(["another label", None])).tolist() == [-1, -1]
    assert target.n_outputs == len(labels)


def test_regression_target_is_standardised_as_numpy_does():
    values = pd.Series([1.0, 2.0, 4.0, 9.0], name="y")
    target = inference.learn_target(values, "regression")
    assert (target.mean, target.std) == (np.mean(values), np.std(values))
    encoded = target.encode(values)
    assert encoded.dtype == np.float32
    np.testing.assert_allclose(encoded * target.std + target.mean, values, rtol=1e-6)
    assert target.n_outputs == 1


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
def test_target_at_odds_with_the_task_is_refused(values, task, said):
    message = refusal(inference.learn_target, pd.Series(values, name="y").dropna(), task)
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
def test_named_column_that_the_table_lacks_is_told_with_the_nearest(data, said):
    settings = Data(**{"source": "s", "target": "y_", "task": "binary", **data})
    message = refusal(inference.check_names, pd.DataFrame({"y_": [1], "a": [2]}), settings)
    assert said in message
    assert "'yy'" in message
    assert "'y_'" in message


@pytest.mark.parametrize("by", ["time:y", "group:y"])
def test_target_cannot_be_what_rows_are_split_by(by):
    settings = Data(source="s", target="y", task="binary", split={"by": by})
    assert by in refusal(inference.check_names, pd.DataFrame({"y": [1]}), settings)


# ------------------------------------------------------------------------------------------------------------- JSON


def test_schema_comes_back_from_json(tmp_path):
    table = pd.DataFrame({name: pd.Series(values) for name, values in (numeric | categorical | drop).items()})
    table["day é/😀"] = DAYS.strftime("%d.%m.%Y")
    learned = learn(table).model_copy(update={"rows": {"read": N}, "notes": ("a note",), "transfer_target": TARGET})
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(learned.model_dump(mode="json"), ensure_ascii=False), encoding="utf-8")
    assert schemas.load_schema(path) == learned
