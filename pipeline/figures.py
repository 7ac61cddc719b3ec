"""The plots of reports and searches, as PNG."""

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline import files

matplotlib.rcdefaults()  # not what a person has set for plots of their own: the same table, the same bytes
matplotlib.use("Agg")
MAX_CURVES = 8  # classes drawn by name; more would not be told apart
MAX_CELLS = 20  # classes whose counts are written into the confusion matrix


def save(path: Path, draw: Callable[[Axes], None]) -> None:
    figure = Figure(figsize=(5.5, 4.5), layout="constrained")
    draw(figure.add_subplot())
    _write(path, figure)


def _write(path: Path, figure: Figure) -> None:
    with files.replacing(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # drawn as a box
        # No version of the library in the file: the same plot, the same bytes.
        figure.savefig(temporary, dpi=100, metadata={"Software": None})


def save_report(folder: Path, tables: Mapping[str, pd.DataFrame]) -> None:
    """A PNG for each table of an evaluation that has a plot."""
    plots: dict[str, Callable[..., None]] = {
        "confusion": confusion,
        "roc": partial(curves, title="ROC", xlabel="false positive rate", ylabel="true positive rate"),
        "pr": partial(curves, title="Precision and recall", xlabel="recall", ylabel="precision"),
        "calibration": calibration,
        "residuals": residuals,
    }
    for name, table in tables.items():
        draw = plots.get(name.removeprefix("transfer_"))
        if draw is not None:
            save(folder / f"{name}.png", partial(draw, table=table))


def _text(label: object) -> str:
    """A label as plain text: matplotlib would read $ as mathematics."""
    text = " ".join(str(label).split())
    text = text if len(text) <= 24 else text[:23] + "…"
    # A leading underscore would hide the label from the legend.
    return (" " + text if text.startswith("_") else text).replace("$", r"\$")


def confusion(axes: Axes, table: pd.DataFrame) -> None:
    labels = [_text(label) for label in pd.unique(table["actual"])]
    counts = table["rows"].to_numpy().reshape(len(labels), len(labels))
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted", ylabel="actual", title="Confusion (colour: share of the actual class)")
    if len(labels) <= MAX_CELLS:
        axes.set_xticks(range(len(labels)), labels, rotation=45 if len(labels) > 5 else 0)
        axes.set_yticks(range(len(labels)), labels)
        for (row, column), count in np.ndenumerate(counts):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(
                column, row, f"{count:,}", ha="center", va="center", color=colour, fontsize=9 if len(labels) < 8 else 6
            )


def curves(axes: Axes, table: pd.DataFrame, title: str, xlabel: str, ylabel: str) -> None:
    x, mean, *classes = table.columns
    for name in classes[:MAX_CURVES]:
        axes.plot(table[x], table[name], lw=1, label=_text(name.split(".", 1)[1]))
    axes.plot(table[x], table[mean], lw=2, color="black", label="mean of classes")
    axes.set(title=title, xlabel=xlabel, ylabel=ylabel, xlim=(0, 1), ylim=(0, 1.02))
    axes.legend(fontsize=8)


def calibration(axes: Axes, table: pd.DataFrame) -> None:
    axes.plot([0, 1], [0, 1], ls="--", color="grey", lw=1, label="as sure as right")
    axes.plot(table["confidence"], table["accuracy"], marker="o", label="the model")
    axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02), title="Calibration")
    axes.legend(fontsize=8)


def residuals(axes: Axes, table: pd.DataFrame) -> None:
    axes.scatter(table["predicted"], table["residual"], s=6, alpha=0.5)
    axes.axhline(0, color="black", lw=1)
    axes.set(xlabel="predicted", ylabel="actual - predicted", title="Residuals")


def save_search(
    folder: Path, trials: pd.DataFrame, best_so_far: pd.Series, importances: Mapping[str, float], log: set[str]
) -> None:
    """`history.png`, `importance.png` and `slice.png` of a search.

    `trials` has the columns trial, state, the score, best_epoch, and then the searched parameters; those in `log` are
    drawn on a logarithmic axis.
    """
    _, _, metric, _, *names = trials.columns
    save(folder / "history.png", partial(_search_history, trials=trials, metric=metric, best_so_far=best_so_far))
    save(folder / "importance.png", partial(_importance, importances=importances))
    _save_slices(folder / "slice.png", trials, names, metric, log)


def _search_history(axes: Axes, trials: pd.DataFrame, metric: str, best_so_far: pd.Series) -> None:
    axes.scatter(trials["trial"], trials[metric], s=14, label="a trial")
    axes.plot(trials["trial"], best_so_far, color="black", lw=1, label="best so far")
    axes.set(xlabel="trial", ylabel=metric, title="Search history")
    axes.legend(fontsize=8)


def _importance(axes: Axes, importances: Mapping[str, float]) -> None:
    names = list(importances)[::-1]
    axes.barh([_text(name) for name in names], [importances[name] for name in names])
    axes.set(xlabel="share of the variance between trials", title="Parameter importance (fANOVA)")


def _save_slices(path: Path, trials: pd.DataFrame, names: list[str], metric: str, log: set[str]) -> None:
    """The score of each trial against each searched parameter, a panel a parameter."""
    figure = Figure(figsize=(3.2 * len(names) + 1, 3.6), layout="constrained")
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axes, name in zip(panels, names, strict=True):
        values = trials[name]
        if not pd.api.types.is_numeric_dtype(values.dtype):
            values = values.map(_text)
        axes.scatter(values, trials[metric], c=trials["trial"], cmap="viridis", s=16)
        axes.set_xlabel(name)
        if name in log:
            axes.set_xscale("log")
    panels[0].set_ylabel(metric)
    _write(path, figure)
