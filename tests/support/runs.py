"""Read the runs of a project from MLflow, remove them, and send what waits."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run

from pipeline.core import config
from pipeline.tracking import store
from tests.support.imports import ROOT

# The part of a model.json that MLflow is told of.
DESCRIPTION = {"schema": {"columns": [{"name": "x", "kind": "numeric", "examples": [["1,5", "1.5"]]}]}}


def describe_model(folder: Path, **more: object) -> str:
    """Write a model.json as far as tracking reads it, and return its text."""
    text = json.dumps(DESCRIPTION | more)
    (folder / "model.json").write_text(text)
    return text


def all_runs() -> list[Run]:
    client = MlflowClient(store.tracking_uri(config.load().tracking))
    experiment = client.get_experiment_by_name("nycflights")
    return [] if experiment is None else list(client.search_runs([experiment.experiment_id]))


def runs() -> dict[str, Run]:
    found = all_runs()
    assert len({run.info.run_name for run in found}) == len(found)
    return {str(run.info.run_name): run for run in found}


def forget(folder: Path, database: Path) -> None:
    shutil.copy(database, folder / "mlflow.db")
    shutil.rmtree(folder / "mlruns", ignore_errors=True)


def environment(uri: str | None) -> dict[str, str]:
    found = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    found.pop("MLFLOW_TRACKING_URI", None)
    return found | ({"MLFLOW_TRACKING_URI": uri} if uri else {})


def replay(folder: Path, uri: str | None = None) -> None:
    code = "from pipeline.core import config; from pipeline.tracking import store, writer; print(writer.Writer(config.load().tracking, None).close(300.0))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment(uri), capture_output=True, text=True, check=True
    )
    assert done.stdout == "None\n", done.stdout


def own(folder: Path) -> str:
    return f"sqlite:///{folder / 'mlflow.db'}"
