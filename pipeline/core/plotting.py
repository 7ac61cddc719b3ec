"""Figures written as PNG, the same bytes for the same table."""

import warnings
from collections.abc import Callable
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.core import files

matplotlib.rcdefaults()  # not what a person has set for plots of their own: the same table, the same bytes
matplotlib.use("Agg")


def save(path: Path, draw: Callable[[Axes], None]) -> None:
    figure = Figure(figsize=(5.5, 4.5), layout="constrained")
    draw(figure.add_subplot())
    write(path, figure)


def write(path: Path, figure: Figure) -> None:
    with files.replacing(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # drawn as a box
        # No version of the library in the file: the same plot, the same bytes.
        figure.savefig(temporary, dpi=100, metadata={"Software": None})


def plain_label(label: object) -> str:
    """A label as plain text: matplotlib would read $ as mathematics."""
    text = " ".join(str(label).split())
    text = text if len(text) <= 24 else text[:23] + "…"
    # A leading underscore would hide the label from the legend.
    return (" " + text if text.startswith("_") else text).replace("$", r"\$")
