"""Start a DVC stage in this process."""

import importlib
from collections.abc import Sequence
from pathlib import Path

from pipeline.core import portable
from pipeline.core.errors import UserError
from pipeline.runtime import console, locks

STAGES = Path(__file__).parents[1] / "stages"


def main(arguments: Sequence[str]) -> None:
    """Run the stage named by the arguments, such as `train` or `evaluate@train`; exit with status 1 on an error."""
    console.run(lambda: run(" ".join(arguments)))


def run(name: str) -> None:
    """Run a stage by name; raises `UserError` if there is no such stage, or if it is running in this folder."""
    stage, _, item = name.partition("@")
    if not name.replace("@", "", 1).isidentifier() or not (STAGES / stage / "stage.py").is_file():
        known = ", ".join(sorted(path.parent.name for path in STAGES.glob("*/stage.py")))
        raise UserError(f"stage must be one of {known}, got {name!r}")
    with locks.only_one(name):
        portable.pin()  # before the stage imports torch and NumPy
        entry_point = importlib.import_module(f"pipeline.stages.{stage}.stage")
        entry_point.main(*([item] if item else []))
