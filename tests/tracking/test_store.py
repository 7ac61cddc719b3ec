"""The address of a project's own database, and the folder that its runs go to."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient
from sqlalchemy import make_url

from pipeline.commands.doctor import tracking
from pipeline.core import config
from pipeline.tracking import store
from pipeline.tracking.runs import stage_run
from tests.support.params import IRIS
from tests.support.runs import describe_model

NAMES = ["a%20b", "a?b", "a b#c", "a%3Fb%", "ü&=+@:[c]"]


@pytest.mark.parametrize("name", NAMES)
def test_sqlalchemy_reads_the_path_of_a_database_as_it_was(name: str) -> None:
    path = Path("/folder") / name / "mlflow.db"
    uri = store.database_uri(path)
    assert make_url(uri).database == str(path)
    assert store.database_path(uri) == path
    assert store.database_path("http://127.0.0.1:5000") is store.database_path("file:///runs") is None


@pytest.mark.parametrize("name", [NAMES[0], *(pytest.param(name, marks=pytest.mark.slow) for name in NAMES[1:])])
def test_runs_stay_in_the_folder_of_the_project_whatever_its_name(
    project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    template = project(IRIS)
    folder = template / "around" / name
    folder.mkdir(parents=True)
    for file in ("dvc.yaml", "params.yaml", "constraints.txt"):
        shutil.copy(template / file, folder)
    (folder / "pipeline").symlink_to(template / "pipeline")
    (bundle := folder / "bundle").mkdir()
    describe_model(bundle)
    monkeypatch.chdir(folder)
    with stage_run("fetch", config.load()) as run:
        run.log_metrics({"rows": 3})
        run.log_files(folder / "params.yaml")
        run.log_model(bundle)

    client = MlflowClient(store.tracking_uri(config.load().tracking))
    experiment = client.get_experiment_by_name("nycflights")
    assert experiment is not None
    (logged,) = client.search_runs([experiment.experiment_id])
    assert (logged.info.status, logged.data.metrics) == ("FINISHED", {"rows": 3.0})
    assert [file.path for file in client.list_artifacts(logged.info.run_id)] == ["params.yaml"]
    (model,) = client.search_logged_models([experiment.experiment_id])
    assert model.status == "READY"
    assert (folder / "mlflow.db").is_file()
    assert list((folder / "mlruns").rglob("artifacts/bundle/model.json"))
    assert list((folder / "mlruns").rglob("params.yaml"))
    assert list((template / "around").iterdir()) == [folder]  # nothing is written beside it
    assert list(tracking.database()) == []
    (folder / "mlflow.db").write_bytes(b"no database")
    (finding,) = tracking.database()
    assert finding.what.startswith(f"{folder / 'mlflow.db'} is damaged")
