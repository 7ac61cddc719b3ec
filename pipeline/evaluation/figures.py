"""Plot the tables of a report."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from pipeline.core.plotting import plain_label

MAX_CURVES = 8  # classes with a curve of their own
MAX_CELLS = 20  # classes up to which the confusion matrix shows counts


def confusion(axes: Axes, table: pd.DataFrame) -> None:
    labels = [plain_label(label) for label in pd.unique(table["actual"])]
    counts = table["rows"].to_numpy().reshape(len(labels), len(labels))
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted", ylabel="actual", title="Confusion matrix (colour: share of the actual class)")
    if len(labels) <= MAX_CELLS:
        axes.set_xticks(range(len(labels)), labels, rotation=45 if len(labels) > 5 else 0)
        axes.set_yticks(range(len(labels)), labels)
        for (row, column), count in np.ndenumerate(counts):
            colour, size = "white" if shares[row, column] > 0.5 else "black", 9 if len(labels) < 8 else 6
            axes.text(column, row, f"{count:,}", ha="center", va="center", color=colour, fontsize=size)


def curves(axes: Axes, table: pd.DataFrame, title: str, xlabel: str, ylabel: str) -> None:
    x, mean, *classes = table.columns
    for name in classes[:MAX_CURVES]:
        axes.plot(table[x], table[name], lw=1, label=plain_label(name.split(".", 1)[1]))
    axes.plot(table[x], table[mean], lw=2, color="black", label="mean of classes")
    axes.set(title=title, xlabel=xlabel, ylabel=ylabel, xlim=(0, 1), ylim=(0, 1.02))
    axes.legend(fontsize=8)


def calibration(axes: Axes, table: pd.DataFrame) -> None:
    axes.plot([0, 1], [0, 1], ls="--", color="grey", lw=1, label="perfectly calibrated")
    axes.plot(table["confidence"], table["accuracy"], marker="o", label="model")
    axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02), title="Calibration")
    axes.legend(fontsize=8)


def residuals(axes: Axes, table: pd.DataFrame) -> None:
    axes.scatter(table["predicted"], table["residual"], s=6, alpha=0.5)
    axes.axhline(0, color="black", lw=1)
    axes.set(xlabel="predicted", ylabel="actual - predicted", title="Residuals")


PLOTS: dict[str, Callable[..., None]] = {
    "confusion": confusion,
    "roc": partial(curves, title="ROC", xlabel="false positive rate", ylabel="true positive rate"),
    "pr": partial(curves, title="Precision and recall", xlabel="recall", ylabel="precision"),
    "calibration": calibration,
    "residuals": residuals,
}
