"""The plots of a search."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.core.plotting import plain_label, save, save_figure


def save_search(
    folder: Path, trials: pd.DataFrame, best_so_far: pd.Series, importances: Mapping[str, float], log: set[str]
) -> None:
    """Draw `history.png`, `importance.png` and `slice.png` of a `SearchResult`; `log` names the logarithmic axes."""
    _, _, metric, _, *names = trials.columns
    save(folder / "history.png", partial(_history, trials=trials, metric=metric, best_so_far=best_so_far))
    save(folder / "importance.png", partial(_importance, importances=importances))
    slices = partial(_slices, trials=trials, names=names, metric=metric, log=log)
    save_figure(folder / "slice.png", (3.2 * len(names) + 1, 3.6), slices)


def _history(axes: Axes, trials: pd.DataFrame, metric: str, best_so_far: pd.Series) -> None:
    axes.scatter(trials["trial"], trials[metric], s=14, label="trial")
    axes.plot(trials["trial"], best_so_far, color="black", lw=1, drawstyle="steps-post", label="best so far")
    axes.set(xlabel="trial", ylabel=metric, title="Search history")
    axes.legend(fontsize=8)


def _importance(axes: Axes, importances: Mapping[str, float]) -> None:
    names = list(importances)[::-1]
    axes.barh([plain_label(name) for name in names], [importances[name] for name in names])
    axes.set(xlabel="share of the score variance", title="Parameter importance (fANOVA)")


def _slices(figure: Figure, trials: pd.DataFrame, names: list[str], metric: str, log: set[str]) -> None:
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axes, name in zip(panels, names, strict=True):
        values = trials[name]
        if not pd.api.types.is_numeric_dtype(values.dtype):
            values = values.map(plain_label)
        axes.scatter(values, trials[metric], c=trials["trial"], cmap="viridis", s=16)
        axes.set_xlabel(name)
        if name in log:
            axes.set_xscale("log")
    panels[0].set_ylabel(metric)
