"""Evaluate a model on validation and test rows: scores, and the tables behind the plots."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from torch import Tensor
from torchmetrics.functional import classification

from pipeline.core import files, plotting
from pipeline.core.scores import shown, significant
from pipeline.evaluation import metrics
from pipeline.evaluation.figures import PLOTS
from pipeline.networks import losses
from pipeline.tables.prepared import load_split
from pipeline.tables.schema import Schema, Target

MAX_POINTS = 10_000  # rows of the tables of predictions and residuals
GRID = np.linspace(0, 1, 101)  # points at which ROC and PR curves are sampled


@dataclass(frozen=True)
class Report:
    """Scores and tables by name."""

    scores: dict[str, float]
    tables: dict[str, pd.DataFrame]


def report(outputs: Tensor, y: Tensor, target: Target, temperature: float | None = None) -> Report:
    """Score raw outputs [n, n_outputs] against `y` [n]; with a `temperature`, report `ece` with and without it."""
    uncalibrated, outputs = outputs, outputs / (temperature or 1.0)
    predicted = losses.predictions(outputs, target.task)
    scores = {"loss": float(losses.loss(outputs, y, target.task))}
    scores |= metrics.score(predicted, y, target.task, target.std)
    if target.task == "regression":
        return Report(scores, {"residuals": _residuals(predicted, y, target)})
    scores["ece"] = metrics.calibration_error(predicted, y)
    if temperature is not None:
        scores["ece_uncalibrated"] = metrics.calibration_error(losses.predictions(uncalibrated, target.task), y)
    tables = {"predictions": _predictions(predicted, y, target), "confusion": _confusion(predicted, y, target)}
    tables["roc"], tables["pr"] = _curves(predicted, y, target)
    return Report(scores, tables | {"calibration": _calibration(predicted, y)})


def evaluate(
    outputs: Callable[[str, str], Tensor], target: Target, learned: Schema, temperature: float | None = None
) -> Report:
    """Evaluate a model on the validation and test rows of each domain that has the model's target.

    `outputs(domain, split)` returns the model's outputs. Scores are named `val.accuracy` and `test.accuracy` for the source
    domain, `transfer.val.accuracy` and `transfer.accuracy` for the transfer domain. Tables, of test rows, are prefixed
    with `transfer_` for the transfer domain.
    """
    scores: dict[str, float] = {}
    tables: dict[str, pd.DataFrame] = {}
    for domain, prefix, goal in (("source", "", learned.target), ("transfer", "transfer.", learned.transfer_target)):
        if goal != target:
            continue
        val = report(outputs(domain, "val"), load_split(domain, "val").y, target, temperature)
        test = report(outputs(domain, "test"), load_split(domain, "test").y, target, temperature)
        scores |= {f"{prefix}val.{name}": score for name, score in val.scores.items()}
        scores |= {f"{prefix or 'test.'}{name}": score for name, score in test.scores.items()}
        tables |= {f"{prefix.replace('.', '_')}{name}": table for name, table in test.tables.items()}
    return Report(scores, tables)


def save(folder: Path, result: Report) -> None:
    """Write `metrics.json`, a CSV per table, and the plots."""
    files.write_json(folder / "metrics.json", {name: significant(score) for name, score in result.scores.items()})
    for name, table in result.tables.items():
        files.write_csv(folder / f"{name}.csv", table)
        if plot := PLOTS.get(name.removeprefix("transfer_")):
            plotting.save(folder / f"{name}.png", partial(plot, table=table))


def _sampled_rows(n: int) -> np.ndarray:
    return np.unique(np.linspace(0, n - 1, min(n, MAX_POINTS)).round().astype(int))


def _predictions(predicted: Tensor, y: Tensor, target: Target) -> pd.DataFrame:
    rows = _sampled_rows(len(y))
    actual, codes = y.numpy()[rows], predicted.argmax(1).numpy()[rows]
    return pd.DataFrame({"actual": target.labels(actual), "predicted": target.labels(codes)})


def _residuals(predicted: Tensor, y: Tensor, target: Target) -> pd.DataFrame:
    rows = _sampled_rows(len(y))
    actual, guess = (part.numpy().astype(np.float64)[rows] * target.std + target.mean for part in (y, predicted))
    return pd.DataFrame({"actual": actual, "predicted": guess, "residual": actual - guess}).map(significant)


def _confusion(predicted: Tensor, y: Tensor, target: Target) -> pd.DataFrame:
    """Count the rows of each pair of actual and predicted class."""
    n = len(target.classes)
    counts = classification.multiclass_confusion_matrix(predicted.argmax(1), y, num_classes=n).numpy()
    actual, guess = np.divmod(np.arange(n * n), n)
    return pd.DataFrame({"actual": target.labels(actual), "predicted": target.labels(guess), "rows": counts.ravel()})


def _curves(predicted: Tensor, y: Tensor, target: Target) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Sample ROC (tpr at each fpr) and PR (precision at each recall): the mean over classes, and a column per class."""
    roc, pr = {}, {}
    for code, name in enumerate(target.classes):
        truth = (y == code).long()
        if not 0 < int(truth.sum()) < len(y):
            continue  # a class of no row or of every row has no curve
        fpr, tpr, _ = classification.binary_roc(predicted[:, code], truth)
        roc[f"tpr.{name}"] = np.interp(GRID, fpr.numpy(), tpr.numpy())
        precision, recall, _ = classification.binary_precision_recall_curve(predicted[:, code], truth)
        # The best precision at this recall or a higher one; recall descends from 1 to 0.
        best = np.maximum.accumulate(precision.numpy())[::-1]
        tolerance = 1e-6  # of recalls in float32
        pr[f"precision.{name}"] = best[np.searchsorted(recall.numpy()[::-1], GRID - tolerance)]
    means = [np.mean(list(curves.values()), axis=0) if curves else np.full(len(GRID), np.nan) for curves in (roc, pr)]
    return (
        pd.DataFrame({"fpr": GRID, "tpr": means[0], **roc}).round(6),
        pd.DataFrame({"recall": GRID, "precision": means[1], **pr}).round(6),
    )


def _calibration(predicted: Tensor, y: Tensor) -> pd.DataFrame:
    """Bin the rows by confidence: mean confidence, accuracy and number of rows of each bin."""
    confidence, codes = predicted.double().max(1)
    table = pd.DataFrame({"confidence": confidence.numpy(), "accuracy": (codes == y).double().numpy()})
    bins = np.minimum((table["confidence"] * metrics.CALIBRATION_BINS).astype(int), metrics.CALIBRATION_BINS - 1)
    means = table.groupby(bins)[["confidence", "accuracy"]].mean().round(6)
    return means.assign(rows=table.groupby(bins).size()).reset_index(drop=True)


def summary(name: str, scores: Mapping[str, float]) -> str:
    """Format the test scores of a model in one line."""
    tested = [key for key in scores if key.startswith(("test.", "transfer.")) and ".val." not in key]
    return f"{name}: " + "  ".join(f"{key} {shown(scores[key])}" for key in tested)
