"""Runs, their tags and their database."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric, Run
from mlflow.exceptions import MlflowException

from pipeline import config, tracking
from pipeline.errors import UserError
from pipeline.settings import Tracking

IRIS = {"data.source": "sklearn:iris", "data.target": "target", "data.task": "multiclass"}


def only_run() -> Run:
    client = MlflowClient(tracking.tracking_uri(config.load().tracking))
    experiment = client.get_experiment_by_name("nycflights")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    return run


def test_the_variable_wins_over_the_parameter_and_the_parameter_over_the_project(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("DVC_ROOT", "/repo")
    assert tracking.tracking_uri(Tracking()) == "sqlite:////repo/mlflow.db"
    named = Tracking(uri="http://127.0.0.1:9")
    assert tracking.tracking_uri(named) == "http://127.0.0.1:9"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////other.db")
    assert tracking.tracking_uri(named) == "sqlite:////other.db"


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
    assert found.data.tags["stage.key"] == tracking.stage_key(tracking.stage_entry("fetch"))
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
    client = MlflowClient(tracking.tracking_uri(config.load().tracking))
    assert len(client.get_metric_history(found.info.run_id, "train/loss")) == 1500


def test_the_key_changes_with_params_and_content_and_with_nothing_else(project: Callable[..., Path]) -> None:
    folder = project(IRIS)
    key = tracking.stage_key(tracking.stage_entry("fetch"))
    os.utime(folder / "constraints.txt", (0, 0))
    assert tracking.stage_key(tracking.stage_entry("fetch")) == key
    (folder / "data/source/new.csv").write_text("a,b\n1,2\n")
    with_file = tracking.stage_key(tracking.stage_entry("fetch"))
    assert with_file != key
    (folder / "params.yaml").write_text((folder / "params.yaml").read_text().replace("sklearn:iris", "sklearn:wine"))
    assert tracking.stage_key(tracking.stage_entry("fetch")) != with_file


def test_a_stage_that_fails_leaves_a_failed_run(project: Callable[..., Path]) -> None:
    project(IRIS)
    with pytest.raises(UserError), tracking.stage_run("fetch", config.load()):
        raise UserError("no")
    assert only_run().info.status == "FAILED"


def test_a_terminated_stage_leaves_a_failed_run(project: Callable[..., Path]) -> None:
    folder = project(IRIS)
    code = """
import time
from pipeline import config, console, tracking
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
    assert only_run().info.status == "FAILED"


def _make(path: str) -> None:
    tracking.make_database(Path(path))


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


def test_a_dead_server_is_named_within_seconds_and_without_its_password(
    project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    project(IRIS)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")
    started = time.monotonic()
    with pytest.raises(UserError, match="does not answer") as caught, tracking.stage_run("fetch", config.load()):
        pass
    assert time.monotonic() - started < 60
    assert "127.0.0.1:9" in str(caught.value)
    assert "secret" not in str(caught.value)


# ------------------------------------------------------------------------------------------------------------ writer


class Client:
    """Stands in for MLflow's: keeps what it is sent, and when."""

    sent: ClassVar[list[tuple[float, str, int]]] = []

    def log_batch(self, run_id: str, metrics: list[Metric]) -> None:
        self.sent.append((time.monotonic(), run_id, len(metrics)))


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> type[Client]:
    monkeypatch.setattr(Client, "sent", [])
    monkeypatch.setattr(tracking, "MlflowClient", Client)
    return Client


def numbers(n: int) -> list[Metric]:
    return [Metric("val/loss", 0.5, 0, step) for step in range(n)]


def test_what_is_logged_quickly_is_sent_at_most_once_in_a_while_and_all_of_it(
    client: type[Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "SECONDS_BETWEEN_WRITES", 0.2)
    writer = tracking.Writer()
    start = time.monotonic()
    for _ in range(50):
        writer.metrics("run", numbers(3))
        time.sleep(0.01)
    took = time.monotonic() - start
    assert len(client.sent) <= 1 + took / 0.2 + 1
    writer.close()
    assert sum(n for _, _, n in client.sent) == 150


def test_logging_waits_for_no_server_and_closing_does(client: type[Client], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Client, "log_batch", lambda *_, **__: time.sleep(0.5))
    writer, start = tracking.Writer(), time.monotonic()
    writer.metrics("run", numbers(1))
    assert time.monotonic() - start < 0.2
    writer.close()
    assert time.monotonic() - start > 0.4


def test_a_call_takes_no_more_metrics_than_mlflow_does(client: type[Client]) -> None:
    writer = tracking.Writer()
    writer.metrics("one", numbers(2500))
    writer.metrics("two", numbers(1))
    writer.close()
    assert sum(n for _, run, n in client.sent if run == "one") == 2500
    assert max(n for _, _, n in client.sent) <= tracking.MAX_METRICS
    assert ("two", 1) in [(run, n) for _, run, n in client.sent]


def test_an_error_of_the_writer_is_raised_when_it_is_closed() -> None:
    def broken() -> None:
        raise MlflowException("the database is gone")

    writer = tracking.Writer()
    writer.call(broken)
    with pytest.raises(MlflowException, match="the database is gone"):
        writer.close()
