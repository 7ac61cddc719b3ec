"""Accuracy compared with other libraries on the same rows: tables, and `benchmarks/quality.json`. See docs/benchmarks.md."""

import json
import math
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.model_selection import RepeatedKFold, RepeatedStratifiedKFold, train_test_split
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from benchmarks import competitors
from benchmarks.tables import Table, configured, flights, made_ready
from pipeline.core import files
from pipeline.core.settings import Config, Csv
from pipeline.sources import readers
from pipeline.training.loop import evaluate, fit, new_members

HERE = Path(__file__).parent
SEEDS = 5
TABM_MINUTES = 10.0
SLOW = ("MLPClassifier", "TabM")  # one seed takes them ten minutes
BEST = {"model__ensemble": 4, "train__epochs": 30}
STRONG_TREES = {"max_iter": 300, "max_leaf_nodes": 63, "learning_rate": 0.1}
Row = dict[str, Any]


def ours(table: Table, settings: Config) -> dict[str, float]:
    """Train as the stage train does; scores on the test rows."""
    train, val = table.splits["train"], table.splits["val"]
    members = new_members(settings, train, table.schema)
    fit(members, train, val, table.schema.target)
    return evaluate([member.fitted for member in members], table.splits["test"], table.schema.target)


def on_flights() -> Iterator[Row]:
    """Five random splits; what learns until its validation rows say so has those of the split."""
    contestants: dict[str, Callable[[int, Table], float]] = {
        "ours, default": lambda seed, table: ours(table, table.config)["accuracy"],
        "ours, ensemble of 4, 30 epochs": lambda seed, table: ours(table, flights(seed, **BEST).config)["accuracy"],
        "ours, preset textbook": lambda seed, table: textbook_preset(seed),
        "HistGradientBoosting": trees,
        "HistGradientBoosting, 300 x 63 leaves": lambda seed, table: trees(seed, table, **STRONG_TREES),
        "MLPClassifier": sklearn_network,
        f"TabM, {TABM_MINUTES:g} minutes": lambda seed, table: competitors.tabm(table, seed, TABM_MINUTES)["accuracy"],
    }
    for name, contestant in contestants.items():
        seeds = range(1 if name.startswith(SLOW) else SEEDS)
        scores, seconds = [], []
        for seed in seeds:
            table = flights(seed)
            start = time.perf_counter()
            scores.append(contestant(seed, table))
            seconds.append(time.perf_counter() - start)
        row: Row = {
            "name": name,
            "accuracy": statistics.mean(scores),
            "sd": statistics.stdev(scores) if len(scores) > 1 else 0.0,
            "seconds": statistics.median(seconds),
            "scores": scores,
        }
        print("| {name} | {accuracy:.4f} | {sd:.4f} | {seconds:.0f} |".format(**row), len(scores), flush=True)
        yield row


def textbook_preset(seed: int) -> float:
    table = flights(seed, train__preset="textbook")
    return ours(table, table.config)["accuracy"]


def raw(table: Table, split: str) -> tuple[pd.DataFrame, np.ndarray]:
    return table.features[split], table.splits[split].y.numpy()


def trees(seed: int, table: Table, **settings: Any) -> float:
    model = HistGradientBoostingClassifier(categorical_features="from_dtype", random_state=seed, **settings)
    (x, y), (x_test, y_test) = raw(table, "train"), raw(table, "test")
    kinds = {name: x[name].astype("category").dtype for name in text_columns(x)}
    return float(model.fit(x.astype(kinds), y).score(x_test.astype(kinds), y_test))


def sklearn_network(seed: int, table: Table) -> float:
    (x, y), (x_test, y_test) = raw(table, "train"), raw(table, "test")
    encoder = make_column_transformer(
        (OneHotEncoder(handle_unknown="ignore"), text_columns(x)), remainder=StandardScaler(), sparse_threshold=0
    )
    model = make_pipeline(encoder, MLPClassifier(random_state=seed))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(model.fit(x, y).score(x_test, y_test))


def text_columns(x: pd.DataFrame) -> list[str]:
    return [name for name in x.columns if not pd.api.types.is_numeric_dtype(x[name].dtype)]


SMALL = {"breast_cancer": "binary", "wine": "multiclass", "digits": "multiclass", "diabetes": "regression"}


def on_small_tables() -> Iterator[Row]:
    """Repeated stratified 5-fold cross-validation; of the training rows ours keeps a tenth to validate on."""
    for name, task in SMALL.items():
        table = readers.read(f"sklearn:{name}", Csv())
        y = table["target"]
        regression = task == "regression"
        folds = (RepeatedKFold if regression else RepeatedStratifiedKFold)(n_splits=5, n_repeats=2, random_state=0)
        scores: dict[str, list[float]] = {"ours, default": [], "MLP": [], "HistGradientBoosting": []}
        for train, test in folds.split(table, y):
            seed = len(scores["MLP"])
            scores["ours, default"].append(ours_on_fold(table, f"sklearn:{name}", task, train, test, seed))
            x, goal = table.drop(columns="target"), y
            network = (MLPRegressor if regression else MLPClassifier)(random_state=seed)
            boosted = (HistGradientBoostingRegressor if regression else HistGradientBoostingClassifier)(
                random_state=seed
            )
            for label, model in (("MLP", make_pipeline(StandardScaler(), network)), ("HistGradientBoosting", boosted)):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    score = model.fit(x.iloc[train], goal.iloc[train]).score(x.iloc[test], goal.iloc[test])
                scores[label].append(float(score))
        best = max(statistics.mean(scores[label]) for label in ("MLP", "HistGradientBoosting"))
        error = statistics.stdev(scores["ours, default"]) / math.sqrt(len(scores["MLP"]))
        behind = (best - statistics.mean(scores["ours, default"])) / error
        row = {"name": name, "metric": "R²" if regression else "accuracy", "behind": behind, "scores": scores}
        shown = " | ".join(
            f"{statistics.mean(s):.4f} ± {statistics.stdev(s) / math.sqrt(len(s)):.4f}" for s in scores.values()
        )
        print(f"| {name} | {row['metric']} | {shown} | {behind:+.1f} |", flush=True)
        yield row


def ours_on_fold(table: pd.DataFrame, source: str, task: str, train: np.ndarray, test: np.ndarray, seed: int) -> float:
    """The fold as a column that splits the rows in time, and that is no feature."""
    stratify = None if task == "regression" else table["target"].iloc[train]
    kept, val = train_test_split(train, test_size=0.1, random_state=seed, stratify=stratify)
    fold = pd.Series(0, table.index)
    fold.iloc[val], fold.iloc[test] = 1, 2
    shares = [len(kept) / len(table), len(val) / len(table)]
    split = {"train": shares[0], "val": shares[1], "test": 1 - sum(shares), "by": "time:fold"}
    settings = configured(source, "target", task, seed, data__split=split, data__drop=["fold"])
    ready = made_ready(table.assign(fold=fold), settings)
    assert len(ready.splits["test"]) == len(test)
    scores = ours(ready, ready.config)
    return scores["r2"] if task == "regression" else scores["accuracy"]


def main() -> None:
    path = HERE / "quality.json"
    parts: dict[str, Callable[[], Iterator[Row]]] = {"small": on_small_tables, "flights": on_flights}
    results = json.loads(path.read_text()) if path.exists() and sys.argv[1:] else {}
    for name in sys.argv[1:] or parts:
        results[name] = []
        torch.set_num_threads(1 if name == "small" else 2)
        for row in parts[name]():
            results[name].append(row)
            files.write_json(
                path, json.loads(json.dumps(results), parse_float=lambda text: float(f"{float(text):.5g}"))
            )


if __name__ == "__main__":
    main()
