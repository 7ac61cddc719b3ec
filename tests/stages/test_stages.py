"""All stages in one process, on tables of all kinds; unusable tables end in one clear line."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from ruamel.yaml import YAML

from pipeline.commands.promote import promote
from pipeline.core import config
from pipeline.core.errors import UserError
from pipeline.core.scores import task_metrics
from pipeline.core.settings import Section
from pipeline.networks.bundle import load_bundle
from pipeline.tracking import identity, runs, store
from tests.support.chain import CHAIN, run, run_chain
from tests.support.imports import ROOT
from tests.support.params import IRIS, write_params
from tests.support.samples import hostile_table


def scores(model: str) -> dict[str, float]:
    found: dict[str, float] = json.loads(Path(f"reports/{model}/metrics.json").read_text())
    return found


@pytest.mark.slow
def test_a_hostile_table_passes_every_stage(project: Callable[..., Path]) -> None:
    folder = project({"data.source": "data/source/t.csv", "data.target": "label", "data.task": "multiclass"})
    table = hostile_table(400, np.random.default_rng(0))
    table.loc[5:9, "label"] = None
    pd.concat([table, table.iloc[:20]]).to_csv(folder / "data/source/t.csv", sep=";", index=False)
    run_chain()
    schema = json.loads(Path("data/prepared/schema.json").read_text())
    kinds = {column["name"]: column["kind"] for column in schema["columns"]}
    assert kinds["a number"] == "numeric"
    assert kinds["wörd/with slash"] == kinds["whole"] == kinds["flag"] == kinds["many"] == "categorical"
    assert kinds["day"] == kinds["moment"] == kinds["clock"] == "datetime"
    assert kinds["constant"] == kinds["empty"] == kinds["id"] == "drop"
    assert schema["rows"]["target_missing"] == 10  # five rows, and their copies among the repeated rows
    assert schema["rows"]["duplicates"] == 20
    assert load_bundle(Path("models/champion")).predict(table.drop(columns="label")).shape == (400, 4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "target", "task"),
    [("sklearn:breast_cancer", "target", "binary"), ("sklearn:diabetes", "target", "regression")],
)
def test_only_source_target_and_task_need_to_be_named(
    project: Callable[..., Path], source: str, target: str, task: str
) -> None:
    project(
        {
            "data.source": source,
            "data.target": target,
            "data.task": task,
            "data.transfer": {"column": "origin", "values": ["LGA"]},
        }
    )
    run_chain()
    headline = task_metrics(task)[0]  # type: ignore[arg-type]
    for model in ("baseline", "train", "search"):
        assert {f"test.{headline}", "test.loss", f"val.{headline}"} <= set(scores(model))
    assert scores("finetune") == {}  # there is no transfer domain
    history = pd.read_csv("models/train/history.csv")
    first = ["epoch", "train_loss", f"train_{headline}", "val_loss", f"val_{headline}", "lr"]
    assert list(history.columns) == first
    notes = json.loads(Path("data/prepared/schema.json").read_text())["notes"]
    assert "no transfer domain" in notes[0]
    assert Path("models/champion/README.md").exists()


@pytest.mark.slow
def test_a_transfer_domain_with_other_classes_gets_a_new_last_layer(project: Callable[..., Path]) -> None:
    folder = project(
        {
            "data.source": "a.csv",
            "data.target": "label",
            "data.task": "multiclass",
            "data.transfer": {"source": "b.csv"},
        }
    )
    table = hostile_table(300, np.random.default_rng(1))
    table.to_csv(folder / "data/source/a.csv", index=False)
    table.replace({"label": {"low": "poor", "mid $": "fair"}}).to_csv(folder / "data/source/b.csv", index=False)
    run_chain()
    assert load_bundle(Path("models/finetune")).target.classes == ("=high|<i>", "fair", "poor")
    compared = json.loads(Path("models/finetune/transfer.json").read_text())
    assert {"finetuned.accuracy", "scratch.accuracy"} <= set(compared)
    assert "untouched.accuracy" not in compared  # the untouched network has other classes
    assert "transfer.accuracy" in scores("finetune")
    assert "test.accuracy" not in scores("finetune")
    assert "transfer.accuracy" not in scores("train")


@pytest.mark.slow
def test_finetuning_is_compared_with_no_tuning_and_training_from_scratch(project: Callable[..., Path]) -> None:
    wine = {
        "data.source": "sklearn:wine",
        "data.target": "target",
        "data.task": "multiclass",
        "finetune.freeze": ["1.*"],
    }
    project(wine)
    run_chain("fetch")
    table = pd.read_parquet("data/raw/table.parquet")
    table.assign(place=np.where(np.arange(len(table)) % 3 == 0, "b", "a")).to_parquet("data/raw/table.parquet")
    write_params(Path(), wine | {"data.transfer": {"column": "place", "values": ["b"]}})
    run_chain("prepare", "train", "finetune", "evaluate@train", "evaluate@finetune")
    compared = json.loads(Path("models/finetune/transfer.json").read_text())
    assert compared["untouched.accuracy"] == scores("train")["transfer.accuracy"]
    assert compared["finetuned.accuracy"] == scores("finetune")["transfer.accuracy"]
    assert "scratch.accuracy" in compared


@pytest.mark.slow
@pytest.mark.usefixtures("finished")
def test_the_same_params_give_the_same_bytes() -> None:
    def outputs() -> dict[str, bytes]:
        folders = (Path("data"), Path("models"), Path("reports"))
        return {str(path): path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()}

    first = outputs()
    assert len(first) > 40
    for name in first:
        if name.startswith(("models/", "reports/", "data/raw", "data/prepared")):
            Path(name).unlink()
    run_chain()
    assert outputs() == first


@pytest.mark.usefixtures("finished")
def test_runs_hold_parameters_curves_metrics_and_origin(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(store.tracking_uri(config.load().tracking))
    experiment = client.get_experiment_by_name("nycflights")
    assert experiment is not None
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(CHAIN) | {"trial 0", "trial 1"} == set(runs)
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    train = runs["train"]
    assert train.data.params["train.lr"] == "0.003"
    assert train.data.params["seed"] == "42"
    assert train.data.tags["stage"] == "train"
    assert train.data.tags["stage.key"] == identity.stage_key(identity.stage_entry("train"))
    curve = client.get_metric_history(train.info.run_id, "val/loss")
    history = pd.read_csv("models/train/history.csv")
    assert [point.step for point in curve] == history["epoch"].tolist()
    assert [point.value for point in curve] == pytest.approx(history["val_loss"].tolist())
    assert {"train/loss", "train/accuracy", "val/accuracy", "lr", "overfit/train/loss"} <= set(train.data.metrics)
    evaluated = runs["evaluate@search"]
    assert evaluated.data.metrics["test/accuracy"] == pytest.approx(scores("search")["test.accuracy"], abs=1e-6)
    assert evaluated.data.tags["stage"] == "evaluate"
    children = client.search_runs(
        [experiment.experiment_id], f"tags.mlflow.parentRunId = '{runs['search'].info.run_id}'"
    )
    assert len(children) == 2
    assert all("train.lr" in child.data.params and "val/accuracy" in child.data.metrics for child in children)
    assert client.get_model_version_by_alias("nycflights-arrival", "champion").version == 1

    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.tracking_uri(config.load().tracking))
    model = mlflow.pyfunc.load_model("models:/nycflights-arrival@champion")
    raw = pd.read_parquet("data/raw/table.parquet").head(7)
    expected = load_bundle(Path("models/champion")).predict(raw)
    pd.testing.assert_frame_equal(model.predict(raw), expected)
    run("register")
    assert len(client.search_model_versions("name = 'nycflights-arrival'")) == 1  # the same bundle, the same version


@pytest.mark.slow
def test_stages_read_only_parameters_that_dvc_watches(
    project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    project(IRIS)
    read: set[str] = set()

    class Recorder:
        def __init__(self, section: Section, prefix: str = "") -> None:
            self._section, self._prefix = section, prefix

        def __getattr__(self, name: str) -> Any:
            value = getattr(self._section, name)
            if name not in type(self._section).model_fields:
                read.add(self._prefix.rstrip("."))
                return value
            dotted = self._prefix + name.rstrip("_")
            if isinstance(value, Section):
                return Recorder(value, dotted + ".")
            read.add(dotted)
            return value

    monkeypatch.setattr(runs, "in_force", lambda config, watched: watched)  # log only watched parameters
    load = config.load
    declared = YAML(typ="safe", pure=True).load((ROOT / "dvc.yaml").read_text())["stages"]
    for stage in CHAIN:
        read.clear()
        if stage not in ("search", "train", "finetune"):  # they pass on whole sections, which are watched as a whole
            monkeypatch.setattr(config, "load", lambda: Recorder(load()))
        else:
            monkeypatch.setattr(config, "load", load)
        run(stage)
        watched = tuple(declared[stage.partition("@")[0]]["params"])
        unwatched = [
            name
            for name in read
            if not any(name == w or name.startswith(w + ".") for w in watched) and "tracking" not in name
        ]
        assert not unwatched, stage


# ------------------------------------------------------------------------------------------------------- bad input


def bad(changes: dict[str, Any], *stages: str) -> str:
    """Run stages that must fail, and return their one-line message."""
    write_params(Path(), IRIS | changes)
    *before, last = stages
    for stage in before:
        run(stage)
    with pytest.raises(UserError) as caught:
        run(last)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("stages", "changes", "says"),
    [
        ("prepare", {"data.target": "targt"}, "did you mean 'target'"),
        ("prepare", {"data.task": "binary"}, "3 classes"),
        ("prepare", {"data.drop": ["petal widht (cm)"]}, "did you mean 'petal width (cm)'"),
        ("prepare", {"data.split": {"train": 0.998, "val": 0.001, "test": 0.001, "by": "time:petal width (cm)"}}, "leaves 0 of 150 rows for val"),
        ("prepare", {"data.split": {"train": 0.3, "val": 0.3, "test": 0.4, "by": "time:petal length (cm)"}}, "class 1 (50 rows) is missing from training"),
        ("prepare", {"data.transfer": {"column": "target", "values": [9]}}, "no row has 'target' in [9]"),
        ("fetch", {"data.source": "sklearn:irs"}, "iris"),
        ("fetch", {"data.source": "nowhere.csv"}, "does not exist"),
        ("train", {"model.init": "zeros", "train.overfit": {"rows": 32, "steps": 50}}, "overfit check"),
        ("train", {"train.lr": 1e9, "train.overfit": None}, "became NaN or infinite in epoch"),
        ("prepare train finetune", {"finetune.freeze": ["9.*"], "data.transfer": {"column": "sepal width (cm)", "values": [3.0, 2.8, 3.2]}}, "no parameter matches '9.*'"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("finished")
def test_bad_input_ends_in_one_line_that_names_place_and_rule(stages: str, changes: dict[str, Any], says: str) -> None:
    assert says in bad(changes, *stages.split())


@pytest.mark.usefixtures("finished")
def test_a_weak_model_is_recorded_but_not_registered(capfd: pytest.CaptureFixture[str]) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(store.tracking_uri(config.load().tracking))
    before = {(one.name, one.version) for one in client.search_model_versions()}
    write_params(Path(), IRIS | {"register.minimum": 1.1})
    run("register")
    assert "below register.minimum 1.1: the model is recorded, but not registered" in capfd.readouterr().out
    assert Path("models/champion/model.json").exists()
    assert {(one.name, one.version) for one in client.search_model_versions()} == before
    experiment = client.get_experiment_by_name(config.load().tracking.experiment)
    assert experiment is not None
    newest = client.search_runs([experiment.experiment_id], "tags.stage = 'register'")[0]
    assert newest.data.tags["registered"] == "False"
    assert newest.data.metrics["val/accuracy"] > 0


@pytest.mark.usefixtures("finished")
def test_an_experiment_does_not_replace_the_champion_and_a_user_does(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(store.tracking_uri(config.load().tracking))
    client.delete_registered_model_alias("nycflights-arrival", "champion")
    with monkeypatch.context() as patch:
        patch.setenv("DVC_EXP_NAME", "bold-try")
        run("register")
    assert "models/champion is models:/nycflights-arrival@challenger" in capfd.readouterr().out
    aliases = client.get_registered_model("nycflights-arrival").aliases
    assert {alias: int(version) for alias, version in aliases.items()} == {"challenger": 1}
    with pytest.raises(UserError, match="nycflights-arrival has no version 7"):
        promote(7)
    promote(1)
    assert capfd.readouterr().out == "models:/nycflights-arrival@champion is version 1\n"
    assert client.get_model_version_by_alias("nycflights-arrival", "champion").version == 1


@pytest.mark.usefixtures("finished")
def test_a_diverged_run_is_marked_failed() -> None:
    bad({"train.lr": 1e9, "train.overfit": None}, "train")
    from mlflow import MlflowClient

    client = MlflowClient(store.tracking_uri(config.load().tracking))
    runs = client.search_runs([client.get_experiment_by_name("nycflights").experiment_id], "tags.stage = 'train'")
    assert sorted(run.info.status for run in runs) == ["FAILED", "FINISHED"]


FULL = """
import resource, sys
from pathlib import Path
import numpy as np, pandas as pd, torch
from pipeline.core import files
from pipeline.runtime import console
from pipeline.tables import prepared, raw, tensors
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # like a full disk
zeros = torch.zeros(100_000, 3)
writers = {
    "train.safetensors": lambda: prepared.save_split(Path(), "train", tensors.TabularData(zeros, zeros.byte(), zeros[:, 0].clone()), np.arange(9)),
    "table.parquet": lambda: raw.save_raw(pd.DataFrame({"a": np.random.rand(100_000)}), Path("table.parquet")),
    "table.csv": lambda: files.write_csv(Path("table.csv"), pd.DataFrame({"a": np.random.rand(100_000)})),
}
console.run(writers[sys.argv[1]])
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train.safetensors", "table.parquet", "table.csv"])
def test_a_full_disk_is_one_line_with_the_file_and_loses_nothing(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("as it was")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", FULL, name], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {name} cannot be written")
    assert done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "as it was"
