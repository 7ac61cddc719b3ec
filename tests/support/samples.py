"""Small real tables, made ready as the stage prepare does."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from pipeline.core import config
from pipeline.core.settings import Config, Csv, Data, Model, Task, Train
from pipeline.networks.build import build_network
from pipeline.networks.bundle import Bundle
from pipeline.networks.device import generator
from pipeline.networks.modules import bin_edges
from pipeline.sources import readers
from pipeline.stages.prepare.preparation import Prepared, prepare
from pipeline.tables.preprocessing import Preprocessor
from pipeline.tables.schema import Schema, Target
from pipeline.tables.tensors import TabularData
from pipeline.training.loop import Member, OnEpoch, fit

torch.set_num_threads(1)

SOURCES: dict[str, Task] = {
    "iris": "multiclass",
    "wine": "multiclass",
    "breast_cancer": "binary",
    "diabetes": "regression",
}


@dataclass(frozen=True)
class Sample:
    """A prepared table: checked features, and the tensors of each split."""

    data: Data
    raw: pd.DataFrame
    features: pd.DataFrame
    schema: Schema
    preprocessor: Preprocessor
    splits: dict[str, TabularData]
    rows: dict[str, np.ndarray]

    @property
    def target(self) -> Target:
        return self.schema.target

    @property
    def train(self) -> TabularData:
        return self.splits["train"]

    @property
    def val(self) -> TabularData:
        return self.splits["val"]

    @property
    def test(self) -> TabularData:
        return self.splits["test"]


def make(table: pd.DataFrame, data: Data, seed: int = 0) -> Sample:
    return sampled(prepare(table, None, data, seed), data, table)


def sampled(prepared: Prepared, data: Data, table: pd.DataFrame) -> Sample:
    domain = prepared.domains["source"]
    splits = {}
    for name, rows in domain.splits.items():
        x_num, x_cat = prepared.preprocessor.transform(domain.features.iloc[rows], prepared.schema)
        splits[name] = TabularData(x_num, x_cat, torch.from_numpy(domain.y[rows]))
    return Sample(data, table, domain.features, prepared.schema, prepared.preprocessor, splits, domain.splits)


@cache
def sample(name: str) -> Sample:
    """iris, wine, breast_cancer or diabetes of scikit-learn; or `mixed`, with both kinds of columns."""
    if name == "mixed":
        return make(mixed(), Data(source="mixed", target="sold", task="binary"))
    source = f"sklearn:{name}"
    return make(readers.read(source, Csv()), Data(source=source, target="target", task=SOURCES[name]))


def mixed() -> pd.DataFrame:
    """200 rows of two numbers (one with missing values), two categories and a text label that depends on them."""
    rng = np.random.default_rng(0)
    size, colour, shop = rng.normal(size=200), rng.choice(["red", "green", "blue"], 200), rng.choice(list("abcd"), 200)
    sold = np.where(size + (colour == "red") + 0.3 * rng.normal(size=200) > 0.5, "yes", "no")
    weight = np.where(rng.random(200) < 0.1, np.nan, rng.normal(70, 9, 200))
    return pd.DataFrame({"size": size, "weight": weight, "colour": colour, "shop": shop, "sold": sold})


def hostile_table(n: int, rng: np.random.Generator) -> pd.DataFrame:
    """Every kind of column that a person may have, and a label that the first number decides."""
    number = rng.normal(size=n)
    return pd.DataFrame(
        {
            "a number": np.where(rng.random(n) < 0.1, np.nan, number),
            "wörd/with slash": rng.choice(["red", "green", None], n),
            "whole": rng.integers(0, 4, n),
            "flag": rng.random(n) < 0.5,
            "day": pd.date_range("2024-01-01", periods=n, freq="7h").strftime("%Y-%m-%d"),
            "moment": pd.date_range("2024-01-01", periods=n, freq="7h").strftime("%d.%m.%Y %H:%M"),
            "clock": pd.date_range("2024-01-01", periods=n, freq="7h").strftime("%H:%M"),
            "constant": 1,
            "empty": np.nan,
            "id": [f"customer {k}" for k in range(n)],
            "many": rng.choice([f"kind {k}" for k in range(60)], n),
            "{braces} <b>$x$": rng.random(n),
            "=1+1": rng.random(n) * 1e12,
            "label": np.where(number > 1, "=high|<i>", np.where(number > -1, "mid $", "low")),
        }
    )


def network(of: Sample, seed: int = 0, **model: Any) -> nn.Sequential:
    settings = Model(**model)
    edges = bin_edges(of.train.x_num, settings.bins) if settings.numeric == "ple" else ()
    return build_network(settings, of.schema, of.target.n_outputs, generator(seed), edges)


def train(
    built: nn.Sequential,
    of: Sample,
    settings: Train,
    seed: int = 0,
    *,
    on_epoch: OnEpoch = lambda row: None,
    rows: TabularData | None = None,
    val: TabularData | None = None,
) -> Member:
    """One network trained in place, a stack of one."""
    member = Member(built, settings, seed)
    fit([member], rows or of.train, val or of.val, of.target, on_epoch=on_epoch)
    assert member.fitted is built
    return member


def bundle(of: Sample, seed: int = 0, **model: Any) -> Bundle:
    params = {"seed": seed, "train.lr": 0.05, "model.hidden": [8]}
    settings = Model(**{"hidden": (8,), **model})
    members = tuple(network(of, seed + k, **settings.model_dump()).eval() for k in range(settings.n_members))
    return Bundle(members, settings, of.schema, of.target, of.preprocessor, params)


def settings(**train: Any) -> Train:
    """Few plain steps: constant learning rate, no decay, no check."""
    plain = {"batch_size": 32, "epochs": 3, "patience": None, "weight_decay": 0.0, "overfit": None}
    return Train(**{**plain, **train})


def put(tree: dict[str, Any], place: list[str], value: Any) -> None:
    """Set the value at `place`, section by section, in a tree of sections."""
    *sections, key = place
    for section in sections:
        tree = tree.setdefault(section, {})
    tree[key] = value


def configuration(task: Task = "multiclass", **leaves: Any) -> Config:
    """A whole configuration; `leaves` are dotted names with `__` for the dot."""
    values = {
        "data": {"source": "sklearn:iris", "target": "target", "task": task},
        "model": {"hidden": [4], "dropout": 0.0},
        "train": {"preset": "textbook", "batch_size": 32, "epochs": 1},
        "finetune": {"freeze": 0},
        "search": {"n_trials": 4, "epochs": 1, "space": {"train.lr": {"low": 1e-3, "high": 1e-1, "log": True}}},
        "register": {"name": "model", "metric": "val.accuracy", "minimum": 0.5},
    }
    for name, value in leaves.items():
        put(values, name.split("__"), value)
    return config.from_mapping(values)
