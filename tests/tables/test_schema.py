"""Kinds are read off the columns, and any table is checked against them."""

import decimal
import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.stages.prepare import inference
from pipeline.tables import schema as schemas
from pipeline.tables.schema import Target
from tests.support.schemas import TARGET, N, learn, objects

DAYS = pd.date_range("2019-12-20", periods=N)
MISSING_ONE = np.arange(N) != 3


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


# ------------------------------------------------------------------------------------------------------------- JSON


def test_schema_comes_back_from_json(tmp_path):
    table = pd.DataFrame({name: pd.Series(values) for name, values in (numeric | categorical | drop).items()})
    table["day é/😀"] = DAYS.strftime("%d.%m.%Y")
    learned = learn(table).model_copy(update={"rows": {"read": N}, "notes": ("a note",), "transfer_target": TARGET})
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(learned.model_dump(mode="json"), ensure_ascii=False), encoding="utf-8")
    assert schemas.load_schema(path) == learned
