"""A stage ends in time with the same bytes when tracking is down, dies, fails or hangs; MLflow gets each event once."""

import http.server
import os
import random
import shutil
import signal
import socket
import socketserver
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipeline.tracking import store
from pipeline.tracking.journal import Journal
from tests.support.params import IRIS
from tests.support.runs import environment, forget, own, replay, runs
from tests.support.tally import TORTURE, Tally

EPOCHS, TRIALS = 30, 3
# A stage that logs as training does; it prints how long its end took.
STAGE = f"""
import sys, time
from pathlib import Path
from pipeline.core import config, files
from pipeline.runtime import console
from pipeline.tracking import delivery, runs  # delivery: before the clock starts, else the sending thread imports it
SLOW = float(sys.argv[1])
def main():
    with runs.stage_run("fetch", config.load()) as run:
        print("running", flush=True)
        for epoch in range(1, {EPOCHS} + 1):
            run.log_epochs([{{"epoch": epoch, "val_loss": 1 / epoch}}])
            if epoch <= {TRIALS}:
                run.log_trial(epoch, {{"train.lr": 0.1}}, "complete", [{{"epoch": 1, "val_loss": 1.0}}])
            time.sleep(SLOW)
        files.write_text(Path("out.txt"), "the same bytes")
        run.log_files(Path("out.txt"))
        ended = time.monotonic()
    print("end took", time.monotonic() - ended, flush=True)
console.run(main)
"""
SYNC = "from pipeline.commands.sync import sync; print('running', flush=True); sync()"
START = "import sys, time; from pipeline.tracking import runs, store; store.make_database(__import__('pathlib').Path(sys.argv[1]))"


@contextmanager
def running(folder: Path, code: str, *arguments: str, uri: str | None = None) -> Iterator["subprocess.Popen[str]"]:
    """Yield a process once it has printed that it is running."""
    command = [sys.executable, "-c", code, *arguments]
    process = subprocess.Popen(
        command, cwd=folder, env=environment(uri), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        while (line := process.stdout.readline()).startswith("tracking: "):
            pass  # of what a former one left
        assert line == "running\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def stage(folder: Path, uri: str | None = None, slow: float = 0.0) -> AbstractContextManager["subprocess.Popen[str]"]:
    return running(folder, STAGE, str(slow), uri=uri)


def ends_well(folder: Path, process: "subprocess.Popen[str]", waits: bool = True) -> None:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, out + err
    assert (folder / "out.txt").read_text() == "the same bytes"
    (took,) = (float(line.split()[-1]) for line in out.splitlines() if line.startswith("end took"))
    assert took < 5, out
    assert out.count("tracking: ") == waits, out
    assert not err, err
    (folder / "out.txt").unlink()


def run_stage(folder: Path, uri: str | None = None, waits: bool = True) -> None:
    with stage(folder, uri, slow=0.1) as process:  # long enough for MLflow to be imported beside it
        ends_well(folder, process, waits)


def holds_once(uri: str, n_runs: int = 1) -> None:
    """Assert that MLflow holds each run, trial and step once."""
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("nycflights")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id])
    parents = [run for run in found if "trial" not in run.data.tags]
    assert len(parents) == n_runs
    for run in parents:
        assert run.info.status == "FINISHED"
        points = client.get_metric_history(run.info.run_id, "val/loss")
        assert [(point.step, point.value) for point in points] == [(k, 1 / k) for k in range(1, EPOCHS + 1)]
        children = [child for child in found if child.data.tags.get("mlflow.parentRunId") == run.info.run_id]
        assert sorted(child.data.tags["trial"] for child in children) == [str(k + 1) for k in range(TRIALS)]
        assert all(len(client.get_metric_history(child.info.run_id, "val/loss")) == 1 for child in children)
        assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["out.txt"]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def answering(seconds: float) -> Iterator[str]:
    """A server that answers 500 after some seconds."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self) -> None:
            if not stopped.wait(seconds):
                self.send_response(500)
                self.end_headers()

        do_GET = do_POST = do_PUT = do_PATCH = answer  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """Ignore clients that have given up."""

    stopped = threading.Event()
    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        stopped.set()
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    ("fault", "seconds"), [("tracking down", None), ("tracking answers 500", 0.0), ("tracking hangs 30 s", 30.0)]
)
def test_a_server_that_is_down_broken_or_hanging(
    project: Callable[..., Path], tally: Tally, fault: str, seconds: float | None
) -> None:
    folder = project(IRIS)
    for trial in range(tally.times(1, 10)):
        with tally.trial(fault):
            if seconds is None:
                run_stage(folder, f"http://127.0.0.1:{free_port()}")
            else:
                with answering(seconds) as uri:
                    run_stage(folder, uri)
            replay(folder)
            replay(folder)
            holds_once(own(folder), trial + 1)


@contextmanager
def server(folder: Path, port: int) -> Iterator["subprocess.Popen[bytes]"]:
    """An MLflow server, with its workers in a process group of their own."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    places = [
        "--backend-store-uri",
        own(folder),
        "--no-serve-artifacts",
        "--default-artifact-root",
        str(folder / "artifacts"),
    ]
    process = subprocess.Popen(
        [*command, *places],
        cwd=folder,
        env=environment(None) | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        for _ in range(600):
            with socket.socket() as tried:
                if tried.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None
            time.sleep(0.2)
        yield process
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture
def home(tmp_path_factory: pytest.TempPathFactory, database: Path) -> Path:
    """The folder of a server, with an empty database."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(database, folder / "mlflow.db")
    return folder


def test_a_server_that_dies_in_the_middle_and_comes_back(
    project: Callable[..., Path], tally: Tally, home: Path
) -> None:
    folder, port, rng = project(IRIS), free_port(), random.Random(0)
    for trial in range(tally.times(1, 10)):
        with tally.trial("tracking dies in the middle"):
            uri = f"http://127.0.0.1:{port}"
            with server(home, port) as process, stage(folder, uri, slow=0.2) as logging:
                time.sleep(rng.uniform(0, 0.2 * EPOCHS * 0.7))
                os.killpg(process.pid, signal.SIGKILL)
                ends_well(folder, logging)
            # The same database, without the wait for another start.
            if not TORTURE:
                replay(folder, own(home))
            else:
                with server(home, port):
                    replay(folder, uri)
            holds_once(own(home), trial + 1)


def test_a_server_that_hangs_and_answers_late(project: Callable[..., Path], tally: Tally, home: Path) -> None:
    folder, port, rng = project(IRIS), free_port(), random.Random(5)
    uri = f"http://127.0.0.1:{port}"
    with server(home, port) as process:
        for trial in range(tally.times(1, 10)):
            with tally.trial("tracking hangs, then answers late"):
                with stage(folder, uri, slow=0.2) as logging:
                    time.sleep(rng.uniform(0, 0.2 * EPOCHS * 0.7))
                    os.killpg(process.pid, signal.SIGSTOP)
                    try:
                        ends_well(folder, logging)
                    finally:
                        os.killpg(process.pid, signal.SIGCONT)
                replay(folder, uri)
                holds_once(own(home), trial + 1)


@pytest.mark.parametrize("how", ["EXCLUSIVE", "IMMEDIATE"])
def test_a_locked_database(project: Callable[..., Path], tally: Tally, how: str) -> None:
    folder = project(IRIS)
    for trial in range(tally.times(1, 10)):
        with tally.trial("database locked"):
            other = sqlite3.connect(folder / "mlflow.db", isolation_level=None)
            try:
                other.execute(f"BEGIN {how}")
                run_stage(folder)
            finally:
                other.close()
            replay(folder)
            holds_once(own(folder), trial + 1)


def ran(folder: Path, code: str) -> "subprocess.CompletedProcess[str]":
    """A stage on the project's own database, to its end."""
    command = [sys.executable, "-c", code, "0"]
    return subprocess.run(command, cwd=folder, env=environment(None), capture_output=True, text=True, check=False)


def test_a_full_disk_under_the_database(project: Callable[..., Path], tally: Tally) -> None:
    folder = project(IRIS)
    page = sqlite3.connect(folder / "mlflow.db", isolation_level=None)
    with_limit = STAGE.replace(
        "def main():",
        "import resource; size = Path('mlflow.db').stat().st_size // 2\n"  # what it has is beyond, and cannot change
        "resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))\ndef main():",
    )
    page.execute("VACUUM")  # no room left within
    page.close()
    for trial in range(tally.times(1, 10)):
        with tally.trial("database on a full disk"):
            done = ran(folder, with_limit)
            assert done.returncode == 0, done.stderr
            assert "events wait in .state/runs" in done.stdout
            assert (folder / "out.txt").read_text() == "the same bytes"
            replay(folder)
            holds_once(own(folder), trial + 1)


def test_a_journal_that_cannot_be_written(project: Callable[..., Path], tally: Tally) -> None:
    folder = project(IRIS)
    (folder / ".state").mkdir()
    for _ in range(tally.times(1, 10)):
        with tally.trial("journal unwritable"):
            (folder / ".state/runs").unlink(missing_ok=True)
            (folder / ".state/runs").write_text("a file in its place")
            done = ran(folder, STAGE)
            assert done.returncode == 0, done.stderr
            assert done.stdout.count("tracking: logging disabled, ") == 1
            assert not done.stderr


def killed_while_it_logs(folder: Path, slow: float, rng: random.Random) -> None:
    """Start a stage whose epochs take `slow` seconds each, and kill it during one of them."""
    with stage(folder, slow=slow) as process:
        time.sleep(rng.uniform(0, slow * EPOCHS))
        process.kill()


def test_a_killed_stage_run_again_is_one_run_without_gaps_or_duplicates(
    project: Callable[..., Path], tally: Tally
) -> None:
    folder = project(IRIS)
    rng = random.Random(1)
    for trial in range(tally.times(2, 25)):
        with tally.trial("SIGKILL of a stage that logs"):
            killed_while_it_logs(folder, 0.1, rng)
            with stage(folder) as process:
                assert process.wait(120) == 0
            replay(folder)  # a busy machine may have sent none of it in time
            holds_once(own(folder), trial + 1)
            assert not list((folder / ".state/runs").glob("*/events.jsonl"))


def test_a_journal_with_a_torn_tail_loses_nothing(project: Callable[..., Path], tally: Tally) -> None:
    folder = project(IRIS)
    rng = random.Random(3)
    for trial in range(tally.times(1, 25)):
        with tally.trial("torn tail of the journal"):
            killed_while_it_logs(folder, 0.05, rng)
            for journal in (folder / ".state/runs").glob("*/events.jsonl"):
                sent = Journal(journal.parent).sent  # which is on the disk
                os.truncate(journal, max(journal.stat().st_size - rng.randrange(300), sent))
            with stage(folder) as process:
                assert process.wait(120) == 0
            replay(folder)
            holds_once(own(folder), trial + 1)


def test_several_stages_at_once_without_a_database(project: Callable[..., Path], tally: Tally) -> None:
    folder = project(IRIS)
    for _ in range(tally.times(1, 10)):
        with tally.trial("4 processes on a fresh database"):
            (folder / "mlflow.db").unlink()
            processes = [
                subprocess.Popen(
                    [sys.executable, "-c", STAGE, "0"],
                    cwd=folder,
                    env=environment(None),
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
                for _ in range(4)
            ]
            for process in processes:
                _, err = process.communicate(timeout=240)
                assert process.returncode == 0, err
            replay(folder)
            holds_once(own(folder), 4)


def test_two_processes_that_send_at_once(project: Callable[..., Path], tally: Tally) -> None:
    folder = project(IRIS)
    for trial in range(tally.times(1, 10)):
        with tally.trial("two replay at once"):
            run_stage(folder, f"http://127.0.0.1:{free_port()}")
            threads = [threading.Thread(target=replay, args=(folder,)) for _ in range(2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            replay(folder)
            holds_once(own(folder), trial + 1)


def synced(folder: Path, seconds: float = 120.0) -> tuple[int, float]:
    """Run a sync, and kill it if it takes longer than this; its status, and the seconds it took."""
    with running(folder, SYNC) as process:
        begun = time.monotonic()
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
        return process.wait(), time.monotonic() - begun


def test_a_sync_killed_and_repeated_leaves_each_run_once(finished: Path, database: Path, tally: Tally) -> None:
    folder = finished
    before = runs()
    forget(folder, database)
    (status, whole), rng = synced(folder), random.Random(4)
    assert status == 0
    for _ in range(tally.times(1, 20)):
        with tally.trial("SIGKILL of sync"):
            forget(folder, database)
            while synced(folder, rng.uniform(0, whole))[0] != -signal.SIGKILL:
                whole *= 0.9  # it was over by then, and all begins anew
                forget(folder, database)
            assert synced(folder)[0] == 0
            after = runs()
            assert after.keys() == before.keys()
            assert all(run.info.status == "FINISHED" for run in after.values())
            assert {name: run.data.params for name, run in after.items()} == {
                name: run.data.params for name, run in before.items()
            }
            client = MlflowClient(own(folder))
            assert [version.version for version in client.search_model_versions()] == [1]
            assert len(client.get_metric_history(after["train"].info.run_id, "val/loss")) == 3


def test_a_kill_during_the_creation_of_the_database_leaves_it_usable(tmp_path: Path, tally: Tally) -> None:
    rng = random.Random(2)
    for trial in range(tally.times(1, 25)):
        path = tmp_path / str(trial) / "mlflow.db"  # MLflow makes a database of one name once a process
        path.parent.mkdir()
        with tally.trial("SIGKILL while the database is made"):
            process = subprocess.Popen([sys.executable, "-c", START, str(path)], env=environment(None))
            while not path.with_suffix(".new").exists():
                assert process.poll() is None
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 1.0))
            process.kill()
            process.wait()
            store.make_database(path)
            assert MlflowClient(f"sqlite:///{path}").search_experiments()
