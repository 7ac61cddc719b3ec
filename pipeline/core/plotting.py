"""Write figures as PNG; the same data give the same bytes."""

import warnings
from collections.abc import Callable
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.core import files


def save(path: Path, draw: Callable[[Axes], None]) -> None:
    """Write a figure with one panel, which `draw` fills."""
    save_figure(path, (5.5, 4.5), lambda figure: draw(figure.add_subplot()))


def save_figure(path: Path, size: tuple[float, float], draw: Callable[[Figure], None]) -> None:
    """Write a figure of `size` in inches, which `draw` fills."""
    with matplotlib.rc_context(), warnings.catch_warnings(), files.replacing(path) as temporary:
        matplotlib.rcdefaults()  # the user's style would change the bytes
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # drawn as a box
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        figure.savefig(temporary, dpi=100, metadata={"Software": None})  # by default the version of matplotlib


def plain_label(label: object) -> str:
    """Shorten a label to 24 characters and escape what matplotlib would interpret."""
    text = " ".join(str(label).split())
    text = text if len(text) <= 24 else text[:23] + "…"
    # A leading underscore hides a label from the legend; $ starts a formula.
    return (" " + text if text.startswith("_") else text).replace("$", r"\$")
