"""Labels have codes, and a schema reads back from JSON unchanged."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.tables import schema as schemas
from pipeline.tables.schema import Target
from pipeline.tables.values import canonical_value
from tests.support.schemas import CATEGORICAL, DAYS, DROP, MISSING_ONE, NUMERIC, TARGET, N, learn, learn_target, objects


def test_widths_count_parts_of_dates_and_missing_indicators():
    table = pd.DataFrame({
        "n": np.linspace(0, 1, N),
        "m": pd.Series(np.linspace(0, 1, N)).where(MISSING_ONE),
        "day": DAYS,
        "moment": pd.Series(DAYS).where(MISSING_ONE) + pd.Timedelta("1h"),
        "c": objects(*"abc"),
    })  # fmt: skip
    learned = learn(table)
    # two numbers; the 5 numbers of a date; the 5 of a date and the 3 of a time; an indicator of m and of moment
    assert learned.d_num == 2 + 5 + 8 + 2
    assert learned.cardinalities == (5,)


@pytest.mark.parametrize(
    ("values", "classes"),
    [
        (["no", "yes", "no"], ("no", "yes")),
        ([10, 9, 10], (9, 10)),
        ([0.5, -1.5, 0.5], (-1.5, 0.5)),
        ([2.0, 10.0, 2.0], (2, 10)),
        ([True, False, True], (False, True)),
        (["10", "9", "10"], (9, 10)),
        (["010", "9", "010"], ("010", "9")),
        (["FALSE", "TRUE", "FALSE"], ("FALSE", "TRUE")),
        (pd.Categorical(["b", "a", "b"], categories=["z", "b", "a"]), ("a", "b")),
        (pd.Categorical([2, 1, 2]), (1, 2)),
        (pd.Series([2, 1, 2], dtype="Int64"), (1, 2)),
        (pd.Series([True, False, True], dtype="boolean"), (False, True)),
        (pd.Series([True, "a", True], dtype=object), ("a", "true")),
        (pd.to_datetime(["2020-01-02", "2020-01-01", "2020-01-02"]), None),
    ],
)
def test_labels_come_back_as_they_were(values, classes):
    values = pd.Series(values, name="y")
    target = learn_target(pd.concat([values] * 2, ignore_index=True), "binary")
    if classes is not None:
        assert target.classes == classes
        assert [type(label) for label in target.classes] == [type(label) for label in classes]
    codes = target.encode(values)
    assert codes[0] == codes[2] != codes[1]
    assert sorted(set(codes)) == [0, 1]
    labels = target.labels(codes)
    if classes is not None:
        assert labels.astype(object).map(canonical_value).tolist() == values.astype(object).map(
            canonical_value
        ).tolist() or (labels.tolist() == values.astype(float).tolist())
    again = Target.model_validate_json(json.dumps(target.model_dump(mode="json")))
    assert again == target
    assert [type(label) for label in again.classes] == [type(label) for label in target.classes]


@given(
    st.lists(
        st.integers(-(10**9), 10**9) | st.text("abc/é😀", min_size=1, max_size=3), min_size=2, max_size=9, unique_by=str
    )
)
@settings(max_examples=60, database=None, deadline=None)
def test_every_class_has_its_code_and_others_have_none(labels):
    values = pd.Series(labels * 3, dtype=object, name="y")
    target = learn_target(values, "multiclass")
    assert target.labels(target.encode(values)).map(str).tolist() == values.map(str).tolist()
    assert sorted(set(target.encode(values))) == list(range(len(labels)))
    assert target.encode(pd.Series(["another label", None])).tolist() == [-1, -1]
    assert target.n_outputs == len(labels)


def test_regression_target_is_standardised_as_numpy_does():
    values = pd.Series([1.0, 2.0, 4.0, 9.0], name="y")
    target = learn_target(values, "regression")
    assert (target.mean, target.std) == (np.mean(values), np.std(values))
    encoded = target.encode(values)
    assert encoded.dtype == np.float32
    np.testing.assert_allclose(encoded * target.std + target.mean, values, rtol=1e-6)
    assert target.n_outputs == 1


def test_schema_comes_back_from_json(tmp_path):
    table = pd.DataFrame({name: pd.Series(values) for name, values in (NUMERIC | CATEGORICAL | DROP).items()})
    table["day é/😀"] = DAYS.strftime("%d.%m.%Y")
    learned = learn(table).model_copy(update={"rows": {"read": N}, "notes": ("a note",), "transfer_target": TARGET})
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(learned.model_dump(mode="json"), ensure_ascii=False), encoding="utf-8")
    assert schemas.load_schema(path) == learned
