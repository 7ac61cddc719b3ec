"""Schemas learnt from made-up columns."""

import decimal

import numpy as np
import pandas as pd

from pipeline.core.settings import Data, Task
from pipeline.stages.prepare import columns, inference, targets
from pipeline.tables.reading import Reading
from pipeline.tables.schema import Column, Schema, Target

N = 100
DAYS = pd.date_range("2019-12-20", periods=N)
MISSING_ONE = np.arange(N) != 3
NUMBER, MOMENT = Reading(type="number"), Reading(type="moment")
TARGET = Target(name="y", task="binary", reading=NUMBER, classes=(0, 1))


def learn(table: pd.DataFrame, train: np.ndarray | None = None, **data) -> Schema:
    settings = Data(source="s", target="y", task="binary", **data)
    rows = np.arange(len(table)) if train is None else train
    found = inference.infer(table, settings)
    return Schema(columns=columns.learn_columns(table.copy(), found, rows, settings)[0], target=TARGET)


def learn_one(values, **data) -> Column:
    return learn(pd.DataFrame({"x": values}), **data).columns[0]


def learn_target(values: pd.Series, task: Task, **data) -> Target:
    """Learn a target from the values that are not missing."""
    found = inference.infer(values.to_frame(), Data(source="s", target=str(values.name), task=task, **data))
    return targets.learn_target(values.dropna(), found[str(values.name)], task)


def objects(*values) -> pd.Series:
    return pd.Series([values[i % len(values)] for i in range(N)], dtype=object)


# Columns of each kind, by what is in them.
NUMERIC = {
    "float": np.linspace(-1, 1, N),
    "float of two values": np.repeat([0.5, 1.5], N // 2),
    "int": np.arange(N),
    "int of eleven values": np.arange(N) % 11,
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
CATEGORICAL = {
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
DROP = {
    "one value": ["a"] * N,
    "one number": [1.5] * N,
    "one date": [DAYS[0]] * N,
    "all None": [None] * N,
    "all NaN": [np.nan] * N,
    "all NaT": pd.Series([pd.NaT] * N),
    "empty category": pd.Categorical([None] * N, categories=[]),
    "ids": [f"id-{i}" for i in range(N)],
    "numbers of 19 digits": np.arange(N, dtype=np.uint64) + 2**63,
    "lists": objects([1, 2], [3]),
    "dicts": objects({"a": 1}, {}),
    "bytes": objects(b"a", b"b"),
    "arrays": objects(np.array([1]), np.array([2])),
    "complex": np.arange(N) * 1j,
}
