"""Schemas learnt from made-up columns."""

import numpy as np
import pandas as pd

from pipeline.core.settings import Data
from pipeline.stages.prepare import inference
from pipeline.tables.schema import Column, Schema, Target

N = 100
TARGET = Target(name="y", task="binary", classes=(0, 1))


def learn(table: pd.DataFrame, train: np.ndarray | None = None, **data) -> Schema:
    settings = Data(source="s", target="y", task="binary", **data)
    rows = np.arange(len(table)) if train is None else train
    return Schema(columns=inference.learn_columns(table, rows, settings), target=TARGET)


def learn_one(values, **data) -> Column:
    return learn(pd.DataFrame({"x": values}), **data).columns[0]


def objects(*values) -> pd.Series:
    return pd.Series([values[i % len(values)] for i in range(N)], dtype=object)
