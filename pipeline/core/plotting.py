"""Figures written as PNG: the same data give the same bytes."""

import warnings
from collections.abc import Callable
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.core import files


def save(path: Path, draw: Callable[[Axes], None]) -> None:
    """Write a figure of one panel, which `draw` fills."""
    save_figure(path, (5.5, 4.5), lambda figure: draw(figure.add_subplot()))


def save_figure(path: Path, size: tuple[float, float], draw: Callable[[Figure], None]) -> None:
    """Write a figure of `size` in inches, which `draw` fills."""
    with matplotlib.rc_context(), warnings.catch_warnings(), files.replacing(path) as temporary:
        matplotlib.rcdefaults()  # a user's own style would change the bytes
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # drawn as a box
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        # Without the version of matplotlib in the file.
        figure.savefig(temporary, dpi=100, metadata={"Software": None})


def plain_label(label: object) -> str:
    """A label as plain text of at most 24 characters; matplotlib would read $ as mathematics."""
    text = " ".join(str(label).split())
    text = text if len(text) <= 24 else text[:23] + "…"
    # A leading underscore would hide the label from the legend.
    return (" " + text if text.startswith("_") else text).replace("$", r"\$")
