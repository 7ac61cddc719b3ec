"""Scaling equals scikit-learn's, codes and dates equal hand-computed ones, and only training rows are fitted."""

import datetime
import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn.preprocessing import QuantileTransformer, RobustScaler, StandardScaler

from pipeline.tables import preprocessing
from pipeline.tables.preprocessing import FIRST, LIMIT, MISSING, UNSEEN
from pipeline.tables.schema import Column, Schema
from tests.support.schemas import MOMENT, NUMBER, TARGET

SCALINGS = ["standard", "robust", "quantile"]


def schema_of(*columns: Column) -> Schema:
    return Schema(columns=columns, target=TARGET)


def numeric(name: str, missing: int = 0) -> Column:
    return Column(name=name, kind="numeric", reason="numbers", reading=NUMBER, missing=missing)


def moment(name: str, *parts, missing: int = 0) -> Column:
    return Column(name=name, kind="datetime", reason="dates", reading=MOMENT, parts=parts, missing=missing)


def category(name: str, *categories: str) -> Column:
    return Column(name=name, kind="categorical", reason="text", categories=categories)


def sklearn_scaler(scaling: str, n: int):
    quantile = QuantileTransformer(n_quantiles=min(1000, n), output_distribution="normal", subsample=None)
    return {"standard": StandardScaler(), "robust": RobustScaler(), "quantile": quantile}[scaling]


@pytest.fixture(scope="module")
def numbers() -> pd.DataFrame:
    """3,000 rows: a normal column, a skewed one with missing values, one of few values, a constant, a nearly empty one."""
    rng = np.random.default_rng(0)
    return pd.DataFrame({
        "normal": rng.normal(3, 2, 3000),
        "skewed": np.where(rng.random(3000) < 0.1, np.nan, rng.lognormal(size=3000)),
        "few": rng.integers(0, 12, 3000).astype(float),
        "constant": np.full(3000, 7.0),
        "rare": np.where(rng.random(3000) < 0.99, np.nan, rng.normal(size=3000)),
    })  # fmt: skip


@pytest.mark.parametrize("scaling", SCALINGS)
def test_scaling_equals_that_of_scikit_learn_on_each_column(numbers, scaling):
    train, rest = numbers.iloc[:2000], numbers.iloc[2000:]
    learned = schema_of(*(numeric(name) for name in numbers))
    fitted = preprocessing.fit(train, learned, scaling)
    for rows in (train, rest):
        x_num, x_cat = fitted.transform(rows, learned)
        assert x_num.dtype == torch.float32
        assert x_cat.shape == (len(rows), 0)
        for place, name in enumerate(numbers):
            expected = sklearn_scaler(scaling, 2000).fit(train[[name]].to_numpy()).transform(rows[[name]].to_numpy())
            np.testing.assert_allclose(x_num[:, place], np.nan_to_num(expected[:, 0], nan=0.0), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("scaling", SCALINGS)
def test_missing_is_zero_with_an_indicator(scaling):
    table = pd.DataFrame({
        "a": [5.0, np.nan, 7.0, 9.0],
        "b": [1.0, 2.0, 3.0, 4.0],
        "day": pd.to_datetime(["2020-01-01", "2020-01-02", None, "2020-01-05"], utc=True),
    })  # fmt: skip
    learned = schema_of(numeric("a", missing=1), numeric("b"), moment("day", "date", missing=1))
    x_num, _ = preprocessing.fit(table, learned, scaling).transform(table, learned)
    assert x_num.shape == (4, learned.d_num)
    assert x_num[1, 0] == 0
    assert x_num[2, 2:7].tolist() == [0] * 5
    assert x_num[:, -2:].tolist() == [[0, 0], [1, 0], [0, 1], [0, 0]]
    # A column without missing values in training has no indicator; its missing values become zero.
    later = table.assign(b=np.nan)
    assert preprocessing.fit(table, learned, scaling).transform(later, learned)[0][:, 1].tolist() == [0] * 4


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("fill", [np.nan, 3.5, 0.0, 1e300])
def test_column_of_one_value_or_none_is_finite(scaling, fill):
    table = pd.DataFrame({"a": np.full(50, fill), "b": np.arange(50.0)})
    learned = schema_of(numeric("a", missing=50), numeric("b"))
    fitted = preprocessing.fit(table, learned, scaling)
    x_num, _ = fitted.transform(pd.concat([table, table.assign(a=[-1.0] * 50)]), learned)
    assert torch.isfinite(x_num).all()
    assert np.isfinite(np.concatenate([tensor.numpy().ravel() for tensor in fitted.numbers.values()])).all()


@pytest.mark.parametrize("scaling", SCALINGS)
@given(
    train=arrays.arrays(
        np.float64, st.tuples(st.integers(2, 30), st.just(2)), elements=st.floats(allow_infinity=False)
    ),
    later=arrays.arrays(np.float64, st.tuples(st.integers(1, 8), st.just(2)), elements=st.floats(allow_infinity=False)),
)
@settings(max_examples=40, database=None, deadline=None)
def test_huge_values_stay_finite(scaling, train, later):
    learned = schema_of(numeric("a", missing=1), numeric("b"))
    fitted = preprocessing.fit(pd.DataFrame(train, columns=["a", "b"]), learned, scaling)
    x_num, _ = fitted.transform(pd.DataFrame(later, columns=["a", "b"]), learned)
    assert torch.isfinite(x_num).all()
    assert x_num.abs().max() <= LIMIT


def test_codes_distinguish_missing_unseen_and_each_category():
    table = pd.DataFrame({
        "a": pd.Series(["x", None, "new", "y", "é/ "], dtype="str"),
        "b": pd.Series(["1", "1", None, "2", "3"], dtype="str"),
    })  # fmt: skip
    learned = schema_of(category("a", "x", "y", "é/ "), category("b", "2", "1"))
    x_num, x_cat = preprocessing.fit(table, learned, "standard").transform(table, learned)
    assert x_num.shape == (5, 0)
    assert x_cat.tolist() == [
        [FIRST, FIRST + 1], [MISSING, FIRST + 1], [UNSEEN, MISSING], [FIRST + 1, FIRST], [FIRST + 2, UNSEEN]
    ]  # fmt: skip
    assert (MISSING, UNSEEN, FIRST) == (0, 1, 2)


@pytest.mark.parametrize(("n", "dtype"), [(254, torch.uint8), (255, torch.int16), (30_000, torch.int16)])
def test_codes_fit_their_type_however_many_categories(n, dtype):
    names = [str(i) for i in range(n)]
    learned = schema_of(category("a", *names))
    codes = torch.from_numpy(preprocessing.category_codes(pd.DataFrame({"a": names}), learned))
    assert codes.dtype == dtype
    assert codes[:, 0].tolist() == list(range(FIRST, n + FIRST))
    assert max(learned.cardinalities) == n + FIRST


def test_column_without_any_category_is_all_unseen_or_missing():
    learned = schema_of(category("a"))
    codes = preprocessing.category_codes(pd.DataFrame({"a": pd.Series(["x", None], dtype="str")}), learned)
    assert codes[:, 0].tolist() == [UNSEEN, MISSING]


def circle(share: float) -> list[float]:
    return [math.sin(2 * math.pi * share), math.cos(2 * math.pi * share)]


@pytest.mark.parametrize(
    "when",
    [
        datetime.datetime(1970, 1, 1),
        datetime.datetime(2013, 7, 4, 17, 30),
        datetime.datetime(1969, 12, 31, 23, 59, 59),
        datetime.datetime(2024, 2, 29, 6),
        datetime.datetime(1600, 3, 1, 12),
        datetime.datetime(9999, 12, 31, 18),
    ],
)
@pytest.mark.parametrize("unit", ["s", "us"])
def test_date_and_time_are_numbers_computed_by_hand(when, unit):
    days = (when - datetime.datetime(1970, 1, 1)) // datetime.timedelta(days=1)
    hours = when.hour + when.minute / 60 + when.second / 3600
    table = pd.DataFrame({"t": pd.Series([when]).astype(np.dtype(f"datetime64[{unit}]")).dt.tz_localize("UTC")})
    found = preprocessing.numeric_features(table, schema_of(moment("t", "date", "time")))
    exact = days + hours / 24
    expected = [days, *circle(exact / 365.2425 % 1), *circle(exact / 7 % 1), hours, *circle(hours / 24)]
    np.testing.assert_allclose(found[0], expected, atol=1e-6)
    assert preprocessing.numeric_features(table, schema_of(moment("t", "date"))).shape == (1, 5)
    np.testing.assert_allclose(
        preprocessing.numeric_features(table, schema_of(moment("t", "time")))[0], expected[5:], atol=1e-6
    )


def test_week_and_day_are_cyclic():
    hours = pd.DataFrame({"t": pd.date_range("2020-01-01", periods=24 * 15, freq="h", tz="UTC")})
    found = preprocessing.numeric_features(hours, schema_of(moment("t", "date", "time")))
    np.testing.assert_allclose(found[24 * 7 :, 3:5], found[: -24 * 7, 3:5], atol=1e-9)
    np.testing.assert_allclose(found[24:, 5:8], found[:-24, 5:8], atol=1e-9)


@pytest.mark.parametrize("scaling", SCALINGS)
def test_saved_preprocessor_gives_the_same_bits(numbers, scaling, tmp_path):
    learned = schema_of(*(numeric(name, missing=3) for name in numbers))
    fitted = preprocessing.fit(numbers.iloc[:1500], learned, scaling)
    for name in ("a", "b"):
        preprocessing.save_preprocessor(tmp_path / name, fitted)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    loaded = preprocessing.load_preprocessor(tmp_path / "a", learned)
    assert loaded.scaling == scaling
    for ours, theirs in zip(fitted.transform(numbers, learned), loaded.transform(numbers, learned), strict=True):
        assert ours.numpy().tobytes() == theirs.numpy().tobytes()


@pytest.mark.parametrize("scaling", SCALINGS)
def test_preprocessor_without_numbers_is_saved_and_loaded(scaling, tmp_path):
    learned, table = schema_of(category("a", "x")), pd.DataFrame({"a": ["x", "y"]})
    preprocessing.save_preprocessor(tmp_path / "p", preprocessing.fit(table, learned, scaling))
    x_num, x_cat = preprocessing.load_preprocessor(tmp_path / "p", learned).transform(table, learned)
    assert (x_num.shape, x_cat.tolist()) == ((2, 0), [[FIRST], [UNSEEN]])


@pytest.mark.parametrize("scaling", SCALINGS)
def test_rows_are_transformed_alike_alone_and_together(numbers, scaling, monkeypatch):
    learned = schema_of(*(numeric(name, missing=3) for name in numbers))
    fitted = preprocessing.fit(numbers, learned, scaling)
    together, _ = fitted.transform(numbers, learned)
    alone, _ = fitted.transform(numbers.iloc[[17]], learned)
    assert torch.equal(alone[0], together[17])
    monkeypatch.setattr(preprocessing, "CHUNK", 7)
    assert torch.equal(fitted.transform(numbers, learned)[0], together)
    assert fitted.transform(numbers.head(0), learned)[0].shape == (0, learned.d_num)


@pytest.mark.parametrize("scaling", SCALINGS)
def test_transform_does_not_change_what_was_fitted(numbers, scaling):
    learned = schema_of(numeric("normal"))
    fitted = preprocessing.fit(numbers, learned, scaling)
    before = {name: tensor.clone() for name, tensor in fitted.numbers.items()}
    fitted.transform(numbers * 1000, learned)
    assert before
    assert all(torch.equal(tensor, fitted.numbers[name]) for name, tensor in before.items())
