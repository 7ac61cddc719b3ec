"""What takes seconds to make is made once for all workers of a test session, and copied."""

import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

# Where MLflow's database holds absolute paths.
PLACES = {
    "experiments": ("artifact_location",),
    "runs": ("artifact_uri",),
    "logged_models": ("artifact_location",),
    "model_versions": ("source", "storage_location"),
}


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """The folder that `make` filled, called by the first worker that asks; the others wait. Copy it to change it."""
    root = factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    folder, done = root / name, root / f"{name}.done"
    with FileLock(root / f"{name}.lock"):
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a worker that failed
            folder.mkdir()
            make(folder)
            done.touch()
    return folder


def copied(source: Path, folder: Path) -> Path:
    """Copy a finished project into the project of a test; its MLflow database then names the artifacts of the copy."""
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("pipeline"), dirs_exist_ok=True)
    with sqlite3.connect(folder / "mlflow.db") as database:
        for table, columns in PLACES.items():
            for column in columns:
                database.execute(f"UPDATE {table} SET {column} = replace({column}, ?, ?)", (str(source), str(folder)))
    database.close()
    return folder
