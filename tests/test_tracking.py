"""Runs, their tags and their database."""

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from pipeline import config, delivery, tracking, versions
from pipeline import spool as spools
from pipeline.errors import UserError
from pipeline.settings import Tracking
from pipeline.spool import SPOOLS

IRIS = {"data.source": "sklearn:iris", "data.target": "target", "data.task": "multiclass"}


def here() -> MlflowClient:
    return MlflowClient(delivery.tracking_uri(config.load().tracking))


def all_runs() -> list[Run]:
    experiment = here().get_experiment_by_name("nycflights")
    assert experiment is not None
    return list(here().search_runs([experiment.experiment_id]))


def only_run() -> Run:
    (run,) = all_runs()
    return run


def curve(run: Run, name: str = "val/loss") -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in here().get_metric_history(run.info.run_id, name)]


def spooled() -> list[Path]:
    return sorted(path.parent for path in Path(".state/runs").glob("*/events.jsonl"))


def test_the_variable_wins_over_the_parameter_and_the_parameter_over_the_project(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("DVC_ROOT", "/repo")
    assert delivery.tracking_uri(Tracking()) == "sqlite:////repo/mlflow.db"
    named = Tracking(uri="http://127.0.0.1:9")
    assert delivery.tracking_uri(named) == "http://127.0.0.1:9"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////other.db")
    assert delivery.tracking_uri(named) == "sqlite:////other.db"


def test_a_run_has_the_stage_its_key_and_its_parameters(
    project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    project(IRIS)
    monkeypatch.setenv("DVC_EXP_NAME", "brave-fox")
    with tracking.stage_run("fetch", config.load(), tags={"more": 1}) as run:
        run.log_metrics({"test.accuracy": 0.5})
        run.log_epochs([{"epoch": 1, "train_loss": 2.0, "lr": 0.1}, {"epoch": 2, "train_loss": 1.0, "lr": 0.1}])
    found = only_run()
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "fetch"
    assert found.data.tags["stage"] == "fetch"
    assert found.data.tags["dvc.exp"] == "brave-fox"
    assert found.data.tags["more"] == "1"
    assert found.data.tags["stage.key"] == versions.stage_key(versions.stage_entry("fetch"))
    assert found.data.params["data.source"] == "sklearn:iris"
    assert found.data.metrics == {"test/accuracy": 0.5, "train/loss": 1.0, "lr": 0.1}


def test_more_than_a_call_takes_is_logged_in_several(project: Callable[..., Path]) -> None:
    project(IRIS)
    with tracking.stage_run("fetch", config.load()) as run:
        run.log_params({f"p{k}": k for k in range(250)} | {"long": "x" * 7000})
        run.log_epochs([{"epoch": k, "train_loss": 1.0} for k in range(1, 1501)])
    found = only_run()
    assert found.data.params["p249"] == "249"
    assert len(found.data.params["long"]) == 6000
    client = MlflowClient(delivery.tracking_uri(config.load().tracking))
    assert len(client.get_metric_history(found.info.run_id, "train/loss")) == 1500


def test_the_key_changes_with_params_and_content_and_with_nothing_else(project: Callable[..., Path]) -> None:
    folder = project(IRIS)
    key = versions.stage_key(versions.stage_entry("fetch"))
    os.utime(folder / "constraints.txt", (0, 0))
    assert versions.stage_key(versions.stage_entry("fetch")) == key
    (folder / "data/source/new.csv").write_text("a,b\n1,2\n")
    with_file = versions.stage_key(versions.stage_entry("fetch"))
    assert with_file != key
    (folder / "params.yaml").write_text((folder / "params.yaml").read_text().replace("sklearn:iris", "sklearn:wine"))
    assert versions.stage_key(versions.stage_entry("fetch")) != with_file


def test_a_stage_that_fails_leaves_a_failed_run(project: Callable[..., Path]) -> None:
    project(IRIS)
    with pytest.raises(UserError), tracking.stage_run("fetch", config.load()):
        raise UserError("no")
    assert only_run().info.status == "FAILED"


def test_a_terminated_stage_leaves_a_killed_run(project: Callable[..., Path]) -> None:
    folder = project(IRIS)
    code = """
import time
from pipeline import config, console, delivery, tracking, versions
def main():
    with tracking.stage_run("fetch", config.load()):
        print("running", flush=True)
        time.sleep(60)
console.run(main)
"""
    with subprocess.Popen([sys.executable, "-c", code], cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "running\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 128 + signal.SIGTERM
    assert only_run().info.status == "KILLED"


def _make(path: str) -> None:
    delivery.make_database(Path(path))


def test_several_processes_make_one_whole_database(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_make, args=(str(path),)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    assert MlflowClient(f"sqlite:///{path}").search_experiments()
    assert not path.with_suffix(".new").exists()


# ------------------------------------------------------------------------------------- one run, whatever happens to it


def rows(*epochs: int) -> list[dict[str, float]]:
    return [{"epoch": epoch, "val_loss": 1 / epoch} for epoch in epochs]


def interrupted(*epochs: int, trials: int = 0, error: type[BaseException] = KeyboardInterrupt) -> None:
    def stage() -> None:
        with tracking.stage_run("fetch", config.load()) as run:
            run.log_epochs(rows(*epochs))
            for number in range(trials):
                run.log_trial(number, {"train.lr": 0.1}, "complete", rows(1, 2))
            raise error

    with pytest.raises(error):
        stage()


def test_what_is_sent_and_finished_leaves_no_spool(project: Callable[..., Path]) -> None:
    project(IRIS)
    with tracking.stage_run("fetch", config.load()):
        pass
    assert spooled() == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interrupted_run_is_gone_on_with_and_has_each_step_and_trial_once(
    project: Callable[..., Path], error: type[BaseException]
) -> None:
    project(IRIS)
    interrupted(1, 2, 3, trials=2, error=error)
    first = next(run for run in all_runs() if run.info.run_name == "fetch")
    assert first.info.status == ("KILLED" if error is KeyboardInterrupt else "FAILED")
    with tracking.stage_run("fetch", config.load()) as run:
        run.log_epochs(rows(2, 3, 4))
        for number in range(3):
            run.log_trial(number, {"train.lr": 0.1}, "complete", rows(1, 2))
    runs = {run.info.run_name: run for run in all_runs()}
    assert set(runs) == {"fetch", "trial 0", "trial 1", "trial 2"}
    assert len(all_runs()) == 4
    assert runs["fetch"].info.run_id == first.info.run_id
    assert runs["fetch"].info.status == "FINISHED"
    assert curve(runs["fetch"]) == [(epoch, 1 / epoch) for epoch in (1, 2, 3, 4)]
    assert curve(runs["trial 0"]) == [(1, 1.0), (2, 0.5)]
    assert spooled() == []


def test_other_parameters_begin_another_run(project: Callable[..., Path]) -> None:
    folder = project(IRIS)
    interrupted(1)
    (folder / "params.yaml").write_text((folder / "params.yaml").read_text().replace("sklearn:iris", "sklearn:wine"))
    with tracking.stage_run("fetch", config.load()) as run:
        run.log_epochs(rows(1))
    assert sorted(run.info.status for run in all_runs()) == ["FINISHED", "KILLED"]


def test_events_sent_again_make_no_doubles(project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a kill between sending and noting that it is sent, at each event."""
    project(IRIS)
    write = tracking.Spool.sent.fset
    assert write is not None
    monkeypatch.setattr(tracking.Spool, "remove", lambda spool: None)
    monkeypatch.setattr(tracking.Spool, "sent", tracking.Spool.sent.setter(lambda spool, end: None))
    with tracking.stage_run("fetch", config.load()) as run:
        run.log_epochs(rows(1, 2))
        run.set_tags({"a": "b"})
        run.log_trial(0, {"train.lr": 0.1}, "complete", rows(1))
        run.log_files(Path("params.yaml"))
    before = {run.info.run_id: (run.data, curve(run)) for run in all_runs()}
    assert len(before) == 2
    for _ in range(2):
        writer = delivery.Writer(config.load().tracking, None)
        assert writer.close() is None
        assert writer.n_replayed == 1
    assert {run.info.run_id: curve(run) for run in all_runs()} == {run: points for run, (_, points) in before.items()}
    assert {run.info.status for run in all_runs()} == {"FINISHED"}


def test_of_runs_that_a_hanging_server_made_twice_one_stays(project: Callable[..., Path]) -> None:
    project(IRIS)
    interrupted(1, trials=1)
    first, trial = sorted(all_runs(), key=lambda run: str(run.info.run_name))
    for run in (first, trial):
        here().create_run(run.info.experiment_id, run.info.start_time + 1, run.data.tags, run.info.run_name)
    assert len(all_runs()) == 4
    with tracking.stage_run("fetch", config.load()) as run:
        run.log_epochs(rows(1, 2))
    assert len(all_runs()) == 2
    assert curve(next(run for run in all_runs() if run.info.run_name == "fetch")) == [(1, 1.0), (2, 0.5)]


def test_a_new_database_gets_what_the_old_one_had(project: Callable[..., Path], database: Path) -> None:
    folder = project(IRIS)
    interrupted(1, 2)
    (folder / "other.db").write_bytes(database.read_bytes())
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder / 'other.db'}"
    try:
        with tracking.stage_run("fetch", config.load()) as run:
            run.log_epochs(rows(3))
        assert curve(only_run()) == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    finally:
        del os.environ["MLFLOW_TRACKING_URI"]


def test_what_mlflow_refuses_is_told_and_the_rest_goes_on(
    project: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    project(IRIS)
    with tracking.stage_run("fetch", config.load()) as run:
        run.log_params({"seed": 1})
        run.log_params({"seed": 2})
        run.log_metrics({"rows": 3})
    assert only_run().data.metrics == {"rows": 3.0}
    assert capsys.readouterr().out.count("tracking: MLflow refuses params") == 1


def test_a_model_and_its_version_are_made_once_whatever_is_sent_again(
    project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = project(IRIS)
    (folder / "bundle").mkdir()
    (folder / "bundle/model.json").write_text("{}")
    monkeypatch.setattr(tracking.Spool, "remove", lambda spool: None)
    monkeypatch.setattr(tracking.Spool, "sent", tracking.Spool.sent.setter(lambda spool, end: None))
    upload = MlflowClient.log_model_artifacts
    monkeypatch.setattr(
        MlflowClient, "log_model_artifacts", lambda *_: (_ for _ in ()).throw(OSError("as the disk is full"))
    )
    with tracking.stage_run("fetch", config.load()) as run:
        run.log_model(folder / "bundle")
        run.register("iris", folder / "bundle", {"model": "train"})
    (folder / "bundle/model.json").unlink()
    (folder / "bundle/model.json").write_text("what comes later")
    monkeypatch.setattr(MlflowClient, "log_model_artifacts", upload)
    for _ in range(2):
        assert delivery.Writer(config.load().tracking, None).close() is None
    (model,) = here().search_logged_models([only_run().info.experiment_id])
    assert model.status == "READY"
    (version,) = here().search_model_versions("name = 'iris'")
    assert model.model_id in version.source
    assert here().get_model_version_by_alias("iris", "champion").version == version.version
    assert only_run().data.tags["version"] == "1"
    (kept,) = (folder / "mlruns").rglob("model.json")
    assert kept.read_text() == "{}"


# ---------------------------------------------------------------------------------------------------------- the thread


class Slow:
    """Stands in for what brings events to MLflow."""

    def __init__(self, seconds: float, error: Exception | None = None) -> None:
        self.seconds, self.error = seconds, error

    def __call__(self, *_: Any) -> "Slow":
        return self

    def send(self) -> None:
        time.sleep(self.seconds)
        if self.error is not None:
            raise self.error


def test_logging_waits_for_no_server_and_the_end_only_so_long(
    project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project(IRIS)
    monkeypatch.setattr(delivery, "PATIENCE", 0.5)
    monkeypatch.setattr(delivery, "Delivery", Slow(3))
    start = time.monotonic()
    with tracking.stage_run("fetch", config.load()) as run:
        run.log_epochs(rows(*range(1, 100)))
        logged = time.monotonic()
    assert time.monotonic() - logged < 2.5
    assert logged - start < 2.5  # each of what was logged did not wait for the one before
    assert re.search(r"does not answer \(waited \d s\); 4 events wait in \.state/runs", capsys.readouterr().out)


def test_a_server_that_gets_on_slowly_is_not_waited_for_longer(
    project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project(IRIS)
    monkeypatch.setattr(delivery, "SERVER_SECONDS", 1.0)
    monkeypatch.setattr(delivery, "Delivery", Slow(0))

    def in_steps(sender: delivery.Writer) -> None:
        for _ in range(100):
            sender._progress.made()
            time.sleep(0.05)

    monkeypatch.setattr(delivery.Writer, "_send", in_steps)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with tracking.stage_run("fetch", config.load()):
        ended = time.monotonic()
    assert time.monotonic() - ended < 3
    assert "does not answer (waited 1 s)" in capsys.readouterr().out


def test_one_spool_that_cannot_be_sent_does_not_hold_up_the_others(
    project: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = project(IRIS)
    root = folder / SPOOLS
    for key in "ab":
        spool = spools.begin(root, "fetch", key)
        spool.append("run", name=f"fetch {key}", experiment="nycflights", tags={"stage": "fetch"})
        if key == "a":
            spool.append("params", lost="the rest")
        spool.append("end", status="FINISHED")
        spool.lock.release()
    spools.begin(root, "fetch", "c").lock.release()  # killed before its first event
    assert delivery.Writer(config.load().tracking, None).close(60.0) is None
    assert "fetch-a" in capsys.readouterr().out
    assert [run.info.run_name for run in all_runs() if run.info.status == "FINISHED"] == ["fetch b"]
    assert not list(root.glob("fetch-c-*"))


def test_columns_of_any_name_are_among_the_parameters(project: Callable[..., Path]) -> None:
    project(IRIS | {"data.kinds": {"petal length (cm)": "drop", "price (€)": "drop"}})
    with tracking.stage_run("prepare", config.load()):
        pass
    params = only_run().data.params
    assert json.loads(params["data.kinds"]) == {"petal length (cm)": "drop", "price (€)": "drop"}
    assert params["data.target"] == "target"


def test_a_server_that_comes_back_gets_all_of_it(
    project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project(IRIS)
    real = delivery.Delivery
    monkeypatch.setattr(delivery, "Delivery", Slow(0, MlflowException("gone")))
    monkeypatch.setattr(delivery, "SECONDS_BETWEEN_WRITES", 0.05)
    with tracking.stage_run("fetch", config.load()) as run:
        run.log_epochs(rows(1))
        time.sleep(0.5)
        monkeypatch.setattr(delivery, "Delivery", real)
        run.log_epochs(rows(2))
    assert curve(only_run()) == [(1, 1.0), (2, 0.5)]
    assert "tracking" not in capsys.readouterr().out


def test_a_stage_that_ends_while_the_rest_is_being_sent_is_sent_to_its_end(
    project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    project(IRIS)
    send, sent, ended = delivery.Delivery.send, threading.Event(), threading.Event()

    def send_then_wait(sender: delivery.Delivery) -> None:
        send(sender)
        sent.set()
        ended.wait(5)

    end = tracking.Run.end
    monkeypatch.setattr(delivery.Delivery, "send", send_then_wait)
    monkeypatch.setattr(tracking.Run, "end", lambda run, status: (end(run, status), ended.set()))
    with tracking.stage_run("fetch", config.load()):
        assert sent.wait(30)
    assert only_run().info.status == "FINISHED"


def test_what_is_logged_quickly_is_sent_at_most_once_in_a_while(
    project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    project(IRIS)
    calls = []
    log_batch = MlflowClient.log_batch
    monkeypatch.setattr(delivery, "SECONDS_BETWEEN_WRITES", 0.4)
    monkeypatch.setattr(MlflowClient, "log_batch", lambda *a, **k: (calls.append(a), log_batch(*a, **k)))
    with tracking.stage_run("fetch", config.load()) as run:
        for epoch in range(1, 101):
            run.log_epochs(rows(epoch))
            time.sleep(0.01)
    assert len(curve(only_run())) == 100
    assert len(calls) <= 30  # of 100


def test_no_secret_of_a_url_reaches_the_spool_or_the_screen(
    project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project(IRIS)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")
    start = time.monotonic()
    with tracking.stage_run("fetch", config.load(), tags={"url": "s3://key:secret@bucket/x"}) as run:
        run.log_params({"data.source": "https://user:secret@host/t.csv?token=secret"})
    assert time.monotonic() - start < 5
    said = capsys.readouterr().out
    assert said.startswith("tracking: http://127.0.0.1:9 does not answer (")
    assert said.count("\n") == 1
    (folder,) = spooled()
    assert "secret" not in said + "".join(path.read_text() for path in folder.rglob("*") if path.is_file())
