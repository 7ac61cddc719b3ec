"""Rows go to one split each."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.errors import UserError
from pipeline.core.settings import Data, Split
from pipeline.stages.prepare import inference
from pipeline.stages.prepare.splits import split_rows
from pipeline.tables import reading
from pipeline.tables.prepared import SPLITS
from tests.support.refusals import refusal


def table(n: int, **columns) -> pd.DataFrame:
    return pd.DataFrame({"row": np.arange(n), **columns})


def split(frame: pd.DataFrame, codes=None, seed: int = 0, **options) -> dict[str, np.ndarray]:
    by = Split(**options).by.partition(":")[2]
    found = inference.infer(frame, Data(source="s", target="y", task="regression", split=Split(**options)))
    column = reading.read(frame[by], found[by].reading).values if by else None
    return split_rows(len(frame), column, codes, Split(**options), seed)


def complete(splits: dict[str, np.ndarray], n: int) -> None:
    """Check that every row is in one split, in ascending order."""
    assert tuple(splits) == SPLITS
    np.testing.assert_array_equal(np.sort(np.concatenate(list(splits.values()))), np.arange(n))
    assert all((np.diff(rows) > 0).all() for rows in splits.values())


# ----------------------------------------------------------------------------------------------------------- random


def test_each_class_is_split_by_the_fractions():
    codes = np.repeat([0, 1, 2], [1000, 230, 17])
    splits = split(table(len(codes)), codes, train=0.6, val=0.15, test=0.25)
    complete(splits, len(codes))
    for code, n in enumerate([1000, 230, 17]):
        for name, share in (("train", 0.6), ("val", 0.15), ("test", 0.25)):
            assert abs((codes[splits[name]] == code).sum() - n * share) <= 1


@pytest.mark.parametrize("n_rare", [3, 4, 5])
@pytest.mark.parametrize("seed", range(4))
def test_class_of_three_rows_has_one_in_each_split(n_rare, seed):
    codes = np.repeat([0, 1], [100, n_rare])
    splits = split(table(len(codes)), codes, seed)
    assert all((codes[rows] == 1).any() for rows in splits.values())


@pytest.mark.parametrize("n_rare", [1, 2])
@pytest.mark.parametrize("options", [{}, {"train": 0.2, "val": 0.4, "test": 0.4}])
def test_class_of_fewer_rows_goes_to_training_first(n_rare, options):
    codes = np.repeat([0, 1], [100, n_rare])
    assert (codes[split(table(len(codes)), codes, **options)["train"]] == 1).any()


def test_random_split_is_a_function_of_the_seed():
    frame, codes = table(200), np.arange(200) % 3
    first, again, other = (split(frame, codes, seed) for seed in (0, 0, 1))
    assert all((first[name] == again[name]).all() for name in SPLITS)
    assert any((first[name] != other[name]).any() for name in SPLITS)


def test_random_split_is_drawn_over_the_whole_table():
    places = [np.mean(split(table(1000), seed=seed)["test"]) for seed in range(20)]
    assert abs(np.mean(places) - 499.5) < 40  # six standard errors of the mean of 20 × 100 uniform rows


@given(
    codes=st.lists(st.integers(0, 4), min_size=3, max_size=60),
    cut=st.tuples(st.floats(0.05, 0.9), st.floats(0.05, 0.95)),
    how=st.sampled_from(["random", "time:when", "group:who"]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=150, database=None, deadline=None)
def test_splits_are_disjoint_complete_and_not_empty(codes, cut, how, seed):
    train = cut[0]
    val = (1 - train) * cut[1]
    codes = np.array(codes)
    frame = table(len(codes), when=codes[::-1], who=codes * 7 % 5)
    try:
        splits = split(frame, codes, seed, train=train, val=val, test=1 - train - val, by=how)
    except UserError as error:
        refused = str(error)
        assert refused.startswith("data.split")
        return
    complete(splits, len(codes))
    assert all(len(rows) >= 1 for rows in splits.values())
    if how == "random":
        assert set(codes[splits["train"]]) == set(codes)
    if how == "group:who":
        assert all(not set(frame["who"].iloc[splits[a]]) & set(frame["who"].iloc[splits[b]])
                   for a, b in (("train", "val"), ("train", "test"), ("val", "test")))  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- time


moments = pd.date_range("2020-01-01", periods=100, freq="7h")


@pytest.mark.parametrize(
    "values",
    [
        np.arange(100),
        np.arange(100) * 0.5,
        moments,
        moments.tz_localize("UTC"),
        moments.strftime("%Y-%m-%d %H:%M"),
        moments.strftime("%d.%m.%Y %H:%M"),
        pd.Series(moments.to_pydatetime(), dtype=object),
    ],
)
def test_the_past_trains_and_the_future_tests(values):
    order = np.random.default_rng(0).permutation(100)
    splits = split(table(100, when=pd.Series(values).iloc[order].to_numpy()), by="time:when")
    complete(splits, 100)
    assert [sorted(order[splits[name]]) for name in SPLITS] == [
        list(range(80)), list(range(80, 90)), list(range(90, 100))
    ]  # fmt: skip


@given(st.lists(st.integers(0, 12), min_size=20, max_size=80))
@settings(max_examples=60, database=None, deadline=None)
def test_one_moment_is_never_in_two_splits(when):
    frame = table(len(when), when=when)
    try:
        splits = split(frame, train=0.5, val=0.25, test=0.25, by="time:when")
    except UserError:
        assert max(np.bincount(when)) >= len(when) / 8  # only moments that share many rows can empty a split
        return
    train, val, test = (frame["when"].iloc[splits[name]] for name in SPLITS)
    assert train.max() < val.min() <= val.max() < test.min()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([*range(9), None], "'when' is missing in 1 rows"),
        (["a"] * 10, "'when' must hold times or numbers"),
        ([[1]] * 10, "'when' must hold times or numbers"),
        ([5] * 10, "data.split leaves 0 of 10 rows for val"),
        ([True, False] * 5, "data.split"),
        (["2020-01-01"] * 9 + ["2020-13-01"], "'when' must hold times or numbers"),
    ],
)
def test_column_without_times_is_refused(values, said):
    assert said in refusal(split, table(10, when=pd.Series(values)), by="time:when")


def test_days_written_day_first_are_ordered_by_year_month_and_day():
    days = pd.date_range("2020-01-01", periods=100)
    splits = split(table(100, when=days.strftime("%d.%m.%Y")), by="time:when")
    np.testing.assert_array_equal(splits["train"], np.arange(80))


# ------------------------------------------------------------------------------------------------------------ group


@pytest.mark.parametrize("kind", ["int", "str", "category", "float"])
def test_groups_stay_whole_and_splits_have_about_their_share(kind):
    groups = np.random.default_rng(0).integers(0, 60, 3000)
    frame = table(3000, who=pd.Series(groups).astype(kind))
    splits = split(frame, seed=3, by="group:who", train=0.7, val=0.2, test=0.1)
    complete(splits, 3000)
    names = {name: set(groups[rows]) for name, rows in splits.items()}
    assert sum(map(len, names.values())) == 60
    for name, share in (("train", 0.7), ("val", 0.2), ("test", 0.1)):
        assert abs(len(splits[name]) / 3000 - share) < 0.03


def test_rows_without_a_group_are_one_group():
    who = pd.Series(["a", "b", "c", None] * 25)
    splits = split(table(100, who=who), by="group:who")
    assert sum(who.iloc[rows].isna().any() for rows in splits.values()) == 1


def test_group_split_depends_on_the_seed_and_not_on_the_type_of_the_column():
    groups = np.arange(300) % 30
    first = split(table(300, who=groups), seed=1, by="group:who")
    as_text = split(table(300, who=groups.astype(str)), seed=1, by="group:who")
    other = split(table(300, who=groups), seed=2, by="group:who")
    assert all((first[name] == as_text[name]).all() for name in SPLITS)
    assert set(first["test"]) != set(other["test"])


def test_fewer_groups_than_splits_are_refused():
    assert "'who' must have at least 3 groups, got 2" in refusal(split, table(10, who=[1, 2] * 5), by="group:who")


def test_split_that_would_be_empty_is_refused():
    assert "data.split leaves 0 of 4 rows for val" in refusal(split, table(4), np.arange(4))
    assert "data.split leaves" in refusal(split, table(2))
    assert "for train" in refusal(split, table(3), np.array([0, 0, 0]))
