"""Runs, their tags, their database, and the thread that sends them."""

import _thread
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.protos import databricks_pb2

from pipeline.core import config
from pipeline.core.errors import UserError
from pipeline.core.settings import Tracking
from pipeline.tracking import delivery, identity, runs, store, writer
from pipeline.tracking import journal as journals
from pipeline.tracking.journal import JOURNALS
from pipeline.tracking.runs import stage_run
from tests.support.params import IRIS
from tests.support.runs import describe_model


def here() -> MlflowClient:
    return MlflowClient(store.tracking_uri(config.load().tracking))


def all_runs() -> list[Run]:
    experiment = here().get_experiment_by_name("nycflights")
    assert experiment is not None
    return list(here().search_runs([experiment.experiment_id]))


def only_run() -> Run:
    (run,) = all_runs()
    return run


def curve(run: Run, name: str = "val/loss") -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in here().get_metric_history(run.info.run_id, name)]


def journal_folders() -> list[Path]:
    return sorted(path.parent for path in Path(".state/runs").glob("*/events.jsonl"))


def test_the_variable_overrides_the_parameter_and_the_parameter_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("DVC_ROOT", "/repo")
    assert store.tracking_uri(Tracking()) == "sqlite:////repo/mlflow.db"
    named = Tracking(uri="http://127.0.0.1:9")
    assert store.tracking_uri(named) == "http://127.0.0.1:9"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////other.db")
    assert store.tracking_uri(named) == "sqlite:////other.db"


def test_a_run_has_the_stage_its_key_and_its_parameters(
    project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    project(IRIS)
    monkeypatch.setenv("DVC_EXP_NAME", "brave-fox")
    with stage_run("fetch", config.load(), tags={"more": 1}) as run:
        run.log_metrics({"test.accuracy": 0.5})
        run.log_epochs([{"epoch": 1, "train_loss": 2.0, "lr": 0.1}, {"epoch": 2, "train_loss": 1.0, "lr": 0.1}])
    found = only_run()
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "fetch"
    assert found.data.tags["stage"] == "fetch"
    assert found.data.tags["dvc.exp"] == "brave-fox"
    assert found.data.tags["more"] == "1"
    assert found.data.tags["stage.key"] == identity.stage_key(identity.stage_entry("fetch"))
    assert found.data.params["data.source"] == "sklearn:iris"
    assert found.data.metrics == {"test/accuracy": 0.5, "train/loss": 1.0, "lr": 0.1}


def test_large_batches_are_split_into_several_calls(project: Callable[..., Path]) -> None:
    project(IRIS)
    with stage_run("fetch", config.load()) as run:
        run.log_params({f"p{k}": k for k in range(250)} | {"long": "x" * 7000})
        run.log_epochs([{"epoch": k, "train_loss": 1.0} for k in range(1, 1501)])
    found = only_run()
    assert found.data.params["p249"] == "249"
    assert len(found.data.params["long"]) == 6000
    client = MlflowClient(store.tracking_uri(config.load().tracking))
    assert len(client.get_metric_history(found.info.run_id, "train/loss")) == 1500


def test_the_key_depends_on_params_and_content_only(project: Callable[..., Path]) -> None:
    folder = project(IRIS)
    key = identity.stage_key(identity.stage_entry("fetch"))
    os.utime(folder / "constraints.txt", (0, 0))
    assert identity.stage_key(identity.stage_entry("fetch")) == key
    (folder / "data/source/new.csv").write_text("a,b\n1,2\n")
    with_file = identity.stage_key(identity.stage_entry("fetch"))
    assert with_file != key
    (folder / "params.yaml").write_text((folder / "params.yaml").read_text().replace("sklearn:iris", "sklearn:wine"))
    assert identity.stage_key(identity.stage_entry("fetch")) != with_file


def test_a_stage_that_fails_leaves_a_failed_run(project: Callable[..., Path]) -> None:
    project(IRIS)
    with pytest.raises(UserError), stage_run("fetch", config.load()):
        raise UserError("no")
    assert only_run().info.status == "FAILED"


@pytest.mark.slow
def test_a_terminated_stage_leaves_a_killed_run(project: Callable[..., Path]) -> None:
    folder = project(IRIS)
    code = """
import time
from pipeline.core import config
from pipeline.runtime import console
from pipeline.tracking import runs
def main():
    with runs.stage_run("fetch", config.load()):
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
    store.make_database(Path(path))


@pytest.mark.slow
def test_several_processes_create_one_complete_database(tmp_path: Path) -> None:
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
        with stage_run("fetch", config.load()) as run:
            run.log_epochs(rows(*epochs))
            for number in range(trials):
                run.log_trial(number, {"train.lr": 0.1}, "complete", rows(1, 2))
            raise error

    with pytest.raises(error):
        stage()


def test_a_sent_and_finished_run_leaves_no_journal(project: Callable[..., Path]) -> None:
    project(IRIS)
    with stage_run("fetch", config.load()):
        pass
    assert journal_folders() == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interrupted_run_is_resumed_with_each_step_and_trial_once(
    project: Callable[..., Path], error: type[BaseException]
) -> None:
    project(IRIS)
    interrupted(1, 2, 3, trials=2, error=error)
    first = next(run for run in all_runs() if run.info.run_name == "fetch")
    assert first.info.status == ("KILLED" if error is KeyboardInterrupt else "FAILED")
    with stage_run("fetch", config.load()) as run:
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
    assert journal_folders() == []


def test_other_parameters_begin_another_run(project: Callable[..., Path]) -> None:
    folder = project(IRIS)
    interrupted(1)
    (folder / "params.yaml").write_text((folder / "params.yaml").read_text().replace("sklearn:iris", "sklearn:wine"))
    with stage_run("fetch", config.load()) as run:
        run.log_epochs(rows(1))
    assert sorted(run.info.status for run in all_runs()) == ["FINISHED", "KILLED"]


def forget_what_was_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if each process were killed after it sent, and before it noted that."""
    sent: property = vars(journals.Journal)["sent"]
    monkeypatch.setattr(journals.Journal, "remove", lambda spool: None)
    monkeypatch.setattr(journals.Journal, "sent", sent.setter(lambda spool, end: None))


def test_events_sent_twice_make_no_duplicates(project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a kill between sending and noting that it is sent, at each event."""
    project(IRIS)
    forget_what_was_sent(monkeypatch)
    with stage_run("fetch", config.load()) as run:
        run.log_epochs(rows(1, 2))
        run.set_tags({"a": "b"})
        run.log_trial(0, {"train.lr": 0.1}, "complete", rows(1))
        run.log_files(Path("params.yaml"))
    before = {run.info.run_id: (run.data, curve(run)) for run in all_runs()}
    assert len(before) == 2
    for _ in range(2):
        sender = writer.Writer(config.load().tracking, None)
        assert sender.close() is None
        assert sender.n_replayed == 1
    assert {run.info.run_id: curve(run) for run in all_runs()} == {run: points for run, (_, points) in before.items()}
    assert {run.info.status for run in all_runs()} == {"FINISHED"}


def test_duplicate_runs_of_a_hanging_server_are_deleted_but_one(project: Callable[..., Path]) -> None:
    project(IRIS)
    interrupted(1, trials=1)
    first, trial = sorted(all_runs(), key=lambda run: str(run.info.run_name))
    for run in (first, trial):
        here().create_run(run.info.experiment_id, run.info.start_time + 1, run.data.tags, run.info.run_name)
    assert len(all_runs()) == 4
    with stage_run("fetch", config.load()) as resumed:
        resumed.log_epochs(rows(1, 2))
    assert len(all_runs()) == 2
    assert curve(next(run for run in all_runs() if run.info.run_name == "fetch")) == [(1, 1.0), (2, 0.5)]


def test_a_new_database_gets_what_the_old_one_had(project: Callable[..., Path], database: Path) -> None:
    folder = project(IRIS)
    interrupted(1, 2)
    (folder / "other.db").write_bytes(database.read_bytes())
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder / 'other.db'}"
    try:
        with stage_run("fetch", config.load()) as run:
            run.log_epochs(rows(3))
        assert curve(only_run()) == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    finally:
        del os.environ["MLFLOW_TRACKING_URI"]


def test_a_refused_event_is_reported_and_the_others_are_sent(
    project: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    project(IRIS)
    with stage_run("fetch", config.load()) as run:
        run.log_params({"seed": 1})
        run.log_params({"seed": 2})
        run.log_metrics({"rows": 3})
    assert only_run().data.metrics == {"rows": 3.0}
    assert capsys.readouterr().out.count("tracking: MLflow refuses params") == 1


def test_a_model_and_its_version_are_created_once_even_if_sent_twice(
    project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = project(IRIS)
    (folder / "bundle").mkdir()
    described = describe_model(folder / "bundle")
    forget_what_was_sent(monkeypatch)
    upload = MlflowClient.log_model_artifacts
    monkeypatch.setattr(
        MlflowClient, "log_model_artifacts", lambda *_: (_ for _ in ()).throw(OSError("as the disk is full"))
    )
    with stage_run("fetch", config.load()) as run:
        run.log_model(folder / "bundle")
        run.register("iris", folder / "bundle", {"model": "train"})
    (folder / "bundle/model.json").unlink()
    (folder / "bundle/model.json").write_text("what comes later")
    monkeypatch.setattr(MlflowClient, "log_model_artifacts", upload)
    for _ in range(2):
        assert writer.Writer(config.load().tracking, None).close() is None
    (model,) = here().search_logged_models([only_run().info.experiment_id])
    assert model.status == "READY"
    (version,) = here().search_model_versions("name = 'iris'")
    assert model.model_id in version.source
    assert here().get_model_version_by_alias("iris", "champion").version == version.version
    assert only_run().data.tags["version"] == "1"
    (kept,) = (folder / "mlruns").rglob("model.json")
    assert kept.read_text() == described


# ---------------------------------------------------------------------------------------------------------- the thread


class Slow:
    """Replaces `Delivery`: takes its time, then may raise."""

    def __init__(self, seconds: float, error: Exception | None = None) -> None:
        self.seconds, self.error, self.ended = seconds, error, None
        self.released, self.n_sent = threading.Event(), 0

    def __call__(self, *_: Any, **__: Any) -> "Slow":
        return self

    def send(self) -> None:
        self.n_sent += 1
        self.released.wait(self.seconds)
        if self.error is not None:
            raise self.error


def is_sending() -> bool:
    """Whether a thread of a stage still sends."""
    return any(thread.name == "tracking" for thread in threading.enumerate())


def test_logging_never_waits_for_a_server_and_the_end_waits_for_limited_time(
    project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project(IRIS)
    monkeypatch.setattr(writer, "PATIENCE", 0.5)
    hanging = Slow(60)
    monkeypatch.setattr(delivery, "Delivery", hanging)
    with stage_run("fetch", config.load()) as run:
        run.log_epochs(rows(*range(1, 100)))
    assert is_sending()  # neither logging nor the end has waited for it
    assert hanging.n_sent <= 1
    hanging.released.set()
    assert re.search(r"does not answer \(waited \d s\); 4 events wait in \.state/runs", capsys.readouterr().out)


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "postgresql://127.0.0.1:9/runs"])
def test_the_wait_for_a_slow_server_is_limited(
    project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], uri: str
) -> None:
    project(IRIS)
    monkeypatch.setattr(writer, "SERVER_SECONDS", 1.0)
    monkeypatch.setattr(delivery, "Delivery", Slow(0))

    ended = threading.Event()

    def in_steps(sender: writer.Writer) -> None:
        for _ in range(1000):
            sender._progress.made()
            if ended.wait(0.05):
                return

    monkeypatch.setattr(writer.Writer, "_send", in_steps)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with stage_run("fetch", config.load()):
        pass
    assert is_sending()
    ended.set()
    assert "does not answer (waited 1 s)" in capsys.readouterr().out


def test_the_wait_for_a_database_that_another_process_creates_is_limited(
    project: Callable[..., Path], database: Path
) -> None:
    folder = project(IRIS)
    (folder / "mlflow.db").unlink()
    with FileLock(folder / "mlflow.lock"):
        with stage_run("fetch", config.load()):
            pass
        assert is_sending()
        shutil.copy(database, folder / "mlflow.db")


def test_an_interrupt_during_the_final_wait_ends_the_wait_and_not_the_stage(
    project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project(IRIS)
    hanging, close = Slow(60), writer.Writer.close

    def interrupted_close(sender: writer.Writer) -> str | None:
        threading.Timer(0.5, _thread.interrupt_main).start()
        return close(sender)

    monkeypatch.setattr(delivery, "Delivery", hanging)
    monkeypatch.setattr(writer, "PATIENCE", 60.0)
    monkeypatch.setattr(writer.Writer, "close", interrupted_close)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have had it ignored
    try:
        with stage_run("fetch", config.load()):
            pass
    except KeyboardInterrupt:
        pytest.fail("the stage is interrupted, whose work is done")
    finally:
        signal.signal(signal.SIGINT, before)
    assert is_sending()
    hanging.released.set()
    assert "wait in .state/runs" in capsys.readouterr().out


def left_run(key: str, *events: dict[str, Any], stage: str = "fetch") -> None:
    """Write the journal of a stage that ended while MLflow did not answer."""
    journal = journals.begin(Path.cwd() / JOURNALS, stage, key)
    journal.append("run", name=f"{stage} {key}", experiment="nycflights", tags={"stage": stage})
    for event in events:
        journal.append(**event)
    journal.append("end", status="FINISHED")
    journal.lock.release()


@pytest.mark.parametrize(
    "event", [{"kind": "params", "lost": "the rest"}, {"kind": "shiny"}, {"kind": "tags", "tags": None}]
)
def test_a_journal_that_cannot_be_sent_is_quarantined_and_the_others_are_sent(
    project: Callable[..., Path], capsys: pytest.CaptureFixture[str], event: dict[str, Any]
) -> None:
    root = project(IRIS) / JOURNALS
    left_run("a", event)
    left_run("b")
    journals.begin(root, "fetch", "c").lock.release()  # killed before its first event
    for _ in range(2):
        assert writer.Writer(config.load().tracking, None).close(60.0) is None
    assert capsys.readouterr().out.count("tracking: fetch-a-") == 1
    assert [run.info.run_name for run in all_runs() if run.info.status == "FINISHED"] == ["fetch b"]
    assert not list(root.glob("fetch-*"))
    assert journals.n_refused(root) == 1


@pytest.mark.parametrize(
    "error",
    [
        MlflowException("gone"),
        MlflowException("locked", databricks_pb2.TEMPORARILY_UNAVAILABLE),
        MlflowException("no password", databricks_pb2.UNAUTHENTICATED),
        ConnectionError("refused"),
        OSError(28, "No space left on device"),
    ],
)
def test_a_transient_error_is_retried(
    project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    root, real = project(IRIS) / JOURNALS, delivery.Delivery
    left_run("a")
    monkeypatch.setattr(delivery, "Delivery", Slow(0, error))
    assert "1 events" not in str(writer.Writer(config.load().tracking, None).close(60.0))
    assert journals.n_refused(root) == 0
    monkeypatch.setattr(delivery, "Delivery", real)
    assert writer.Writer(config.load().tracking, None).close(60.0) is None
    assert only_run().info.status == "FINISHED"


@pytest.mark.slow
def test_a_late_version_does_not_replace_a_later_champion_but_a_new_one_does(
    project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = project(IRIS)

    def register(model: str) -> None:
        (folder / model).mkdir(exist_ok=True)
        describe_model(folder / model, of=model)
        with stage_run("register", config.load()) as run:
            run.register("iris", folder / model, {"model": model})

    def champion() -> str:
        return str(here().get_model_version_by_alias("iris", "champion").tags["model"])

    def without_server(model: str) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        register(model)
        monkeypatch.delenv("MLFLOW_TRACKING_URI")

    for name in ("models/train", "models/search", "models/finetune", "reports"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    without_server("first")
    held = journals.waiting(folder / JOURNALS)  # as in another clone, which is not there when the others send
    register("second")
    assert champion() == "second"
    for journal in held:
        journal.lock.release()
    assert writer.Writer(config.load().tracking, None).close(60.0) is None
    assert champion() == "second"
    assert len(here().search_model_versions("name = 'iris'")) == 2
    without_server("third")
    without_server("fourth")  # made when the server has the third not yet
    assert writer.Writer(config.load().tracking, None).close(60.0) is None
    assert champion() == "fourth"
    register("first")
    assert champion() == "first"


def test_a_model_registered_twice_at_once_has_one_version(
    project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = project(IRIS)
    (folder / "bundle").mkdir()
    describe_model(folder / "bundle")
    create = MlflowClient.create_model_version

    def after_another(*request: Any, **more: Any) -> Any:
        create(*request, **more)
        return create(*request, **more)

    monkeypatch.setattr(MlflowClient, "create_model_version", after_another)
    with stage_run("fetch", config.load()) as run:
        run.register("iris", folder / "bundle", {"model": "train"})
    assert [version.version for version in here().search_model_versions()] == [1]
    assert here().get_model_version_by_alias("iris", "champion").version == 1


def test_a_run_that_the_server_creates_late_is_no_duplicate(
    project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    project(IRIS)
    left_run("a", {"kind": "metrics", "metrics": [("val/loss", 0.5, 1)]})
    create = MlflowClient.create_run

    def without_answer(*_: Any) -> Run:
        raise MlflowException("timeout")

    def with_the_late_one(*request: Any) -> Run:
        create(*request)
        return create(*request)

    monkeypatch.setattr(MlflowClient, "create_run", without_answer)
    assert "timeout" in str(writer.Writer(config.load().tracking, None).close(60.0))
    monkeypatch.setattr(MlflowClient, "create_run", with_the_late_one)
    assert writer.Writer(config.load().tracking, None).close(60.0) is None
    assert curve(only_run()) == [(1, 0.5)]


def test_a_journal_is_read_from_the_last_sent_byte(
    project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    project(IRIS)
    events, starts = journals.Journal.events, list[int]()
    monkeypatch.setattr(writer, "SECONDS_BETWEEN_WRITES", 0.05)
    monkeypatch.setattr(
        journals.Journal, "events", lambda spool, start=0: (starts.append(start), events(spool, start))[1]
    )
    with stage_run("fetch", config.load()) as run:
        for epoch in range(1, 21):
            run.log_epochs(rows(epoch))
            time.sleep(0.05)
    assert len(curve(only_run())) == 20
    assert starts.count(0) == 1
    assert len(starts) > 5


def test_column_kinds_are_logged_whatever_the_column_names(project: Callable[..., Path]) -> None:
    project(IRIS | {"data.kinds": {"petal length (cm)": "drop", "price (€)": "drop"}})
    with stage_run("prepare", config.load()):
        pass
    params = only_run().data.params
    assert json.loads(params["data.kinds"]) == {"petal length (cm)": "drop", "price (€)": "drop"}
    assert params["data.target"] == "target"


def test_a_server_that_comes_back_gets_all_events(
    project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project(IRIS)
    real = delivery.Delivery
    monkeypatch.setattr(delivery, "Delivery", Slow(0, MlflowException("gone")))
    monkeypatch.setattr(writer, "SECONDS_BETWEEN_WRITES", 0.05)
    with stage_run("fetch", config.load()) as run:
        run.log_epochs(rows(1))
        time.sleep(0.5)
        monkeypatch.setattr(delivery, "Delivery", real)
        run.log_epochs(rows(2))
    assert curve(only_run()) == [(1, 1.0), (2, 0.5)]
    assert "tracking" not in capsys.readouterr().out


def test_a_stage_that_ends_during_sending_is_sent_completely(
    project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    project(IRIS)
    send, sent, ended = delivery.Delivery.send, threading.Event(), threading.Event()

    def send_then_wait(sender: delivery.Delivery) -> None:
        send(sender)
        sent.set()
        ended.wait(5)

    end = runs.Run.end
    monkeypatch.setattr(delivery.Delivery, "send", send_then_wait)
    monkeypatch.setattr(runs.Run, "end", lambda run, status: (end(run, status), ended.set()))
    with stage_run("fetch", config.load()):
        assert sent.wait(30)
    assert only_run().info.status == "FINISHED"


def test_frequent_events_are_sent_in_few_calls(project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    project(IRIS)
    calls = []
    log_batch = MlflowClient.log_batch
    monkeypatch.setattr(writer, "SECONDS_BETWEEN_WRITES", 0.4)
    monkeypatch.setattr(MlflowClient, "log_batch", lambda *a, **k: (calls.append(a), log_batch(*a, **k)))
    with stage_run("fetch", config.load()) as run:
        for epoch in range(1, 101):
            run.log_epochs(rows(epoch))
            time.sleep(0.01)
    assert len(curve(only_run())) == 100
    assert len(calls) <= 30  # of 100


def test_no_secret_of_a_url_reaches_the_journal_or_the_screen(
    project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project(IRIS)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")
    with stage_run("fetch", config.load(), tags={"url": "s3://key:secret@bucket/x"}) as run:
        run.log_params({"data.source": "https://user:secret@host/t.csv?token=secret"})
    said = capsys.readouterr().out
    assert said.startswith("tracking: http://127.0.0.1:9 does not answer (")
    assert said.count("\n") == 1
    (folder,) = journal_folders()
    assert "secret" not in said + "".join(path.read_text() for path in folder.rglob("*") if path.is_file())
