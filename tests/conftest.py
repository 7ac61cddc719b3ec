"""A project of its own for a test: parameters, a folder for sources, and its own MLflow database."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from pipeline.core import config
from pipeline.tracking import delivery
from tests.imports import ROOT

SMALL = {
    "train.epochs": 3,
    "train.batch_size": 32,
    "finetune.epochs": 2,
    "search.n_trials": 2,
    "search.epochs": 1,
    "data.transfer": None,
    "data.min_count": 1,
    "register.minimum": 0.0,
}


def write_params(folder: Path, changes: dict[str, Any]) -> None:
    """The shipped params.yaml, made small, with some `section.key` changed."""
    yaml = YAML(typ="safe", pure=True)
    values = yaml.load((ROOT / "params.yaml").read_text())
    for name, value in (SMALL | changes).items():
        section, _, key = name.partition(".")
        values[section][key] = value
    (folder / "params.yaml").write_text(config.dump_yaml(values, yaml))


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database, made once: making one takes seconds."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    delivery.make_database(path)
    return path


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, database: Path) -> Callable[..., Path]:
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
    return enter
