"""A project of its own for a test: parameters, a folder for sources, and its own MLflow database."""

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.tracking import store
from tests.support.imports import ROOT
from tests.support.params import write_params
from tests.support.servers import serving


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database, made once: making one takes seconds."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    store.make_database(path)
    return path


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, database: Path) -> Iterator[Callable[..., Path]]:
    """`project({"data.source": …})` enters an empty project with these parameters and returns its folder."""

    def enter(changes: dict[str, Any]) -> Path:
        (tmp_path / "data/source").mkdir(parents=True, exist_ok=True)
        for name in ("dvc.yaml", "constraints.txt"):
            shutil.copy(ROOT / name, tmp_path / name)
        if not (tmp_path / "pipeline").exists():
            (tmp_path / "pipeline").symlink_to(ROOT / "pipeline")
        shutil.copy(database, tmp_path / "mlflow.db")
        write_params(tmp_path, changes)
        monkeypatch.chdir(tmp_path)
        return tmp_path

    for variable in ("DVC_ROOT", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(variable, raising=False)
    yield enter
    _wait_for_tracking()  # while the folder and what the test has patched are still in force


def _wait_for_tracking(seconds: float = 60.0) -> None:
    """Join the threads that send runs: one that outlived its test would send into the project of the next one."""
    until = time.monotonic() + seconds
    for thread in threading.enumerate():
        if thread.name == "tracking":
            thread.join(max(0.0, until - time.monotonic()))
            if thread.is_alive():
                pytest.fail(f"a tracking thread is still alive {seconds:g} s after its test")


@pytest.fixture
def server() -> Iterator[tuple[str, dict[str, bytes]]]:
    """A server on 127.0.0.1: its address, and the answers it gives, by path."""
    with serving() as found:
        yield found
