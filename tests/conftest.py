"""A project of its own for a test: parameters, a folder for sources, and its own MLflow database."""

import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from pipeline.tracking import store
from tests.support.chain import lock, run_chain
from tests.support.imports import ROOT
from tests.support.params import IRIS, write_params
from tests.support.servers import serving
from tests.support.shared import copied, once

LONGEST = {"test_docs.py", "test_end_to_end.py"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the tests that take minutes, so that no worker is left alone with one at the end."""
    items.sort(key=lambda item: not (item.path.name in LONGEST and item.get_closest_marker("slow")))


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database, made once: making one takes seconds."""
    return once(tmp_path_factory, "mlflow", lambda folder: store.make_database(folder / "mlflow.db")) / "mlflow.db"


@pytest.fixture(scope="session")
def built_once(tmp_path_factory: pytest.TempPathFactory, database: Path) -> Callable[..., Path]:
    """`built_once(name, changes, *stages)`: a project in which these stages have run, or all; to be copied, not changed."""

    def build(name: str, changes: Mapping[str, Any], *stages: str, source: Callable[[], object] | None = None) -> Path:
        def make(folder: Path) -> None:
            with pytest.MonkeyPatch.context() as patch:
                _without_places(patch)
                _enter(folder, database, changes, patch)
                if source is not None:
                    source()
                run_chain(*stages)
                _wait_for_tracking()
                lock(*stages)

        return once(tmp_path_factory, name, make)

    return build


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, database: Path) -> Iterator[Callable[..., Path]]:
    """`project({"data.source": …})` enters an empty project with these parameters and returns its folder."""
    _without_places(monkeypatch)
    yield lambda changes: _enter(tmp_path, database, changes, monkeypatch)
    _wait_for_tracking()  # while the folder and what the test has patched are still in force


@pytest.fixture
def finished(project: Callable[..., Path], built_once: Callable[..., Path]) -> Path:
    """A small project on iris in which every stage has run, with its dvc.lock and its runs; a copy, and entered."""
    return copied(built_once("finished", IRIS), project(IRIS))


def _enter(folder: Path, database: Path, changes: Mapping[str, Any], patch: pytest.MonkeyPatch) -> Path:
    (folder / "data/source").mkdir(parents=True, exist_ok=True)
    for name in ("dvc.yaml", "constraints.txt"):
        shutil.copy(ROOT / name, folder / name)
    if not (folder / "pipeline").exists():
        (folder / "pipeline").symlink_to(ROOT / "pipeline")
    shutil.copy(database, folder / "mlflow.db")
    write_params(folder, changes)
    patch.chdir(folder)
    return folder


def _without_places(patch: pytest.MonkeyPatch) -> None:
    """Forget what would lead elsewhere than to the project."""
    for variable in ("DVC_ROOT", "MLFLOW_TRACKING_URI"):
        patch.delenv(variable, raising=False)


def _wait_for_tracking(seconds: float = 60.0) -> None:
    """Join the threads that send runs: one that outlived its test would send into the project of the next one."""
    until = time.monotonic() + seconds
    for thread in threading.enumerate():
        if thread.name == "tracking":
            thread.join(max(0.0, until - time.monotonic()))
            if thread.is_alive():
                pytest.fail(f"a tracking thread is still alive {seconds:g} s after its test")


@pytest.fixture(autouse=True)
def _forget_database() -> None:
    """Reset the address that `store.connect` told MLflow for the whole process, before the test sets its own."""
    if "mlflow" in sys.modules:
        sys.modules["mlflow"].set_tracking_uri(None)


@pytest.fixture
def server() -> Iterator[tuple[str, dict[str, bytes]]]:
    """A server on 127.0.0.1: its address, and the answers it gives, by path."""
    with serving() as found:
        yield found
