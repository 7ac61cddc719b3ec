"""A clone of the repository in an empty folder, real `dvc repro`, for all three tasks."""

import json
import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient
from ruamel.yaml import YAML

from pipeline.tracking.identity import stage_key
from tests.support.clones import call, clone

STAGES = 10
TASKS = [
    ("sklearn:iris", "multiclass", "accuracy"),
    ("sklearn:breast_cancer", "binary", "accuracy"),
    ("sklearn:diabetes", "regression", "rmse"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("source", "task", "headline"), TASKS)
def test_a_clone_runs_once_then_nothing_and_rebuilt_elsewhere_changes_no_byte(
    tmp_path: Path, source: str, task: str, headline: str
) -> None:
    folder = clone(tmp_path / "clone", {"data.source": source, "data.target": "target", "data.task": task})
    assert call(folder, "dvc", "repro").count("Running stage") == STAGES
    lock = (folder / "dvc.lock").read_text()

    again = call(folder, "dvc", "repro")
    assert "Running stage" not in again
    assert "up to date" in again

    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("nycflights")
    assert experiment is not None
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    locked = YAML(typ="safe", pure=True).load(lock)["stages"]
    assert set(locked) <= set(runs)
    for stage, entry in locked.items():
        # The key of a run can be had from dvc.lock alone: that is how runs and versions are brought together.
        params = _flat(entry["params"]["params.yaml"])
        deps = {dep["path"]: dep["md5"] for dep in entry["deps"]}
        assert runs[stage].data.tags["stage.key"] == stage_key({"params": params, "deps": deps}), stage
        assert runs[stage].info.status == "FINISHED"
    found = json.loads((folder / "reports/train/metrics.json").read_text())
    assert runs["evaluate@train"].data.metrics[f"test/{headline}"] == pytest.approx(found[f"test.{headline}"], rel=1e-6)
    assert client.get_model_version_by_alias("nycflights-arrival", "champion").version == 1

    if task == "binary":
        assert f"{STAGES} of {STAGES} stages identical" in call(folder, "python", "-m", "pipeline", "verify")
        assert (folder / "dvc.lock").read_text() == lock
    if task == "multiclass":
        show_and_experiment(folder)


def show_and_experiment(folder: Path) -> None:
    """What a team does with the project from day to day."""
    call(folder, "git", "add", "dvc.lock")
    call(folder, "git", "commit", "--quiet", "--message", "results")
    assert "test.accuracy" in call(folder, "dvc", "metrics", "show")

    changed = call(folder, "dvc", "exp", "run", "--name", "faster", "--set-param", "train.lr=0.02")
    ran = {line.split("'")[1] for line in changed.splitlines() if line.startswith("Running stage")}
    assert ran >= {"train", "finetune", "search", "evaluate@train"}
    assert not ran & {"fetch", "prepare", "baseline"}
    assert "train.lr" in call(folder, "dvc", "params", "diff")
    shown = call(folder, "dvc", "exp", "show", "--csv", "--only-changed")
    assert "faster" in shown
    assert "train.lr" in shown
    call(folder, "dvc", "plots", "diff", "HEAD", "--out", "plots")
    page = (folder / "plots/index.html").read_text()
    assert "val_loss" in page
    assert "tpr" in page

    remote = folder.parent / "remote"
    call(folder, "dvc", "remote", "add", "--default", "folder", str(remote))
    call(folder, "dvc", "push")
    shutil.rmtree(folder / ".dvc/cache")
    shutil.rmtree(folder / "models/champion")
    call(folder, "dvc", "pull")
    assert (folder / "models/champion/model.safetensors").exists()


def _flat(values: dict[str, object]) -> dict[str, object]:
    from pipeline.core.config import flatten

    flat: dict[str, object] = {}
    for name, value in values.items():
        flat |= flatten({name: value})
    return flat
