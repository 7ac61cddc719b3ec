"""Events of a spool go to MLflow: the only module that imports it."""

import importlib
import itertools
import logging
import math
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

# Before mlflow is imported: a dead server is known in seconds, not in minutes, and nothing is sent elsewhere.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # `Writer` tries again, without doubles
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")

import mlflow
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from requests import HTTPError, RequestException

from pipeline.core.errors import UserError
from pipeline.core.secrets import without_secret
from pipeline.core.settings import Tracking
from pipeline.tracking import journal as spools
from pipeline.tracking.identity import project_root
from pipeline.tracking.journal import SPOOLS, Event, Spool, Status

MAX_METRICS, MAX_PARAMS = 800, 100  # what MLflow takes in a call (1,000 in all)
SECONDS_BETWEEN_WRITES, MAX_PAUSE = 1.0, 30.0  # the pause grows while the server does not answer
PATIENCE = 3.5  # seconds that the end of a stage waits for what halts
HALT = 0.5  # seconds without progress, after which it halts
SERVER_SECONDS = 4.5  # that the end of a stage waits for a server, however slowly it gets on
DATABASE_SECONDS = 20.0  # in which another process has made the database
SINCE = "champion.since"  # a version's tag: when its stage made it the champion, in ms
Working = Callable[[], AbstractContextManager[None]]
# What MLflow says of one event, and would say again.
REFUSALS = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "INVALID_STATE"}
# What it says, whatever it is sent, until somebody sees to it: also where a password is missing.
PASSING = {
    "INTERNAL_ERROR",
    "TEMPORARILY_UNAVAILABLE",
    "DEADLINE_EXCEEDED",
    "REQUEST_LIMIT_EXCEEDED",
    "RESOURCE_EXHAUSTED",
    "CANCELLED",
    "ABORTED",
    "RESOURCE_CONFLICT",
    "CUSTOMER_UNAUTHORIZED",
    "UNAUTHENTICATED",
    "PERMISSION_DENIED",
}
logging.getLogger("mlflow").setLevel(logging.CRITICAL)  # it shows the traceback of what it raises
logging.getLogger("alembic").setLevel(logging.ERROR)


def tracking_uri(tracking: Tracking) -> str:
    """The variable MLFLOW_TRACKING_URI, else the parameter, else a database in the project."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or tracking.uri
    return uri or f"sqlite:///{project_root() / 'mlflow.db'}"


def connect(tracking: Tracking) -> MlflowClient:
    """MLflow's client for the database or server that runs go to."""
    return MlflowClient(tracking_uri(tracking))


def make_own_database(tracking: Tracking, working: Working = nullcontext) -> None:
    """Where runs go to the project's own database: see that there is one."""
    own = project_root() / "mlflow.db"
    if tracking_uri(tracking) == f"sqlite:///{own}":
        make_database(own, working)


def experiment_id(client: MlflowClient, name: str) -> str:
    """The experiment of this name, made if it is missing."""
    found = client.get_experiment_by_name(name)
    if found is None:
        # A bare sqlite URI would put artifacts under whatever folder the process runs in.
        location = (project_root() / "mlruns").as_uri() if client.tracking_uri.startswith("sqlite:") else None
        try:
            return str(client.create_experiment(name, artifact_location=location))
        except MlflowException:
            found = client.get_experiment_by_name(name)
            if found is None:  # else another stage was faster
                raise
    return str(found.experiment_id)


def serve(tracking: Tracking, port: int) -> None:
    """The MLflow UI on the project's runs, on loopback only, until it is interrupted.

    Raises `UserError` if the runs are on a server, which has a UI of its own.
    """
    uri = tracking_uri(tracking)
    if uri.startswith(("http://", "https://")):
        raise UserError(f"the runs of this project are on a server: open {without_secret(uri)}")
    make_own_database(tracking)
    print(f"MLflow UI: http://127.0.0.1:{port} in some 20 seconds (Ctrl-C ends it)", flush=True)
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    os.environ["MLFLOW_BACKEND_STORE_URI"] = uri  # not on the command line, where everybody could read its password
    command = [
        "mlflow",
        "server",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    os.execv(sys.executable, [sys.executable, "-m", *command])


def make_database(path: Path, working: Working = nullcontext) -> None:
    """A whole database or none: made under another name, behind a lock, then renamed."""
    if path.exists():
        return
    with FileLock(path.with_suffix(".lock"), timeout=DATABASE_SECONDS), working():
        if path.exists():
            return
        temporary = path.with_suffix(".new")
        temporary.unlink(missing_ok=True)
        for database, left in itertools.product((temporary, path), ("-journal", "-wal", "-shm")):
            database.with_name(database.name + left).unlink(
                missing_ok=True
            )  # SQLite would play it back into the new one
        with _quiet():
            MlflowClient(f"sqlite:///{temporary}").search_experiments(max_results=1)
        temporary.replace(path)


class Delivery:
    """Brings the events of a spool to MLflow, in order. What is brought a second time makes no double there:

    a run is known by its tag `execution`, a trial by its number, a model by its sum, and a metric by its time.
    """

    def __init__(self, client: MlflowClient, spool: Spool, progress: "Progress", is_live: bool = False) -> None:
        self._client, self._spool, self._progress, self._is_live = client, spool, progress, is_live
        self.ended: Status | None = None  # how, if the end is sent
        first = spool.first
        assert first is not None
        self._experiment = experiment_id(client, first["experiment"])
        progress.made()
        self._run, self._trials = "", dict[int, str]()
        self._find()
        # A database that was removed, or another server, has nothing of it yet; what others rebuild may be less than that.
        self._at = spool.sent if self._run and not spool.is_rebuilt else 0

    def send(self) -> None:
        """All events that wait."""
        waiting = self._spool.events(self._at)
        self._spool.flush()  # what is sent must not be lost here, or it would be sent again under another time
        for kind, group in itertools.groupby(waiting, key=lambda pair: pair[0]["kind"]):
            events, ends = zip(*group, strict=True)
            # Numbers are many and small, and go together.
            parts = (
                [(events, ends[-1])]
                if kind == "metrics"
                else [((e,), end) for e, end in zip(events, ends, strict=True)]
            )
            for part, end in parts:
                try:
                    self._bring(kind, part)
                except MlflowException as error:
                    if kind == "run" or error.error_code not in REFUSALS:
                        raise
                    print(f"tracking: MLflow refuses {kind}: {_reason(error)}", flush=True)
                self._spool.sent = self._at = end
                self._progress.made()

    def _bring(self, kind: str, events: Sequence[Event]) -> None:
        event = events[0]
        match kind:
            case "run":
                self._start(event)
            case "params":
                self._log(self._run, params=event["params"])
            case "metrics":
                self._log(self._run, metrics=[metric for event in events for metric in _metrics(event)])
            case "tags":
                self._log(self._run, tags=event["tags"])
            case "files":
                self._client.log_artifacts(self._run, str(self._spool.path(event["files"])))
            case "trial":
                self._trial(event)
            case "model":
                self._model(event)
            case "version":
                self._version(event)
            case "end":
                self._end(event)
            case _:
                raise ValueError(f"it tells of {kind}, which this version of the project does not know")

    def _start(self, event: Event) -> None:
        tags = event["tags"] | {"execution": self._spool.execution}
        self.ended = None
        if not self._run:
            self._run = self._created(event["time"], tags, event["name"])
            if self._spool.is_rebuilt:
                self._find()
            return
        self._client.update_run(self._run, "RUNNING")
        self._log(self._run, tags=tags)

    def _end(self, event: Event) -> None:
        """Doubles go: of a server that hung, and was late to make a run; of somebody else who rebuilt the same."""
        before = self._run, self._trials
        self._find()
        if self._spool.is_rebuilt and before != (self._run, self._trials):
            self._at = 0  # the one that stays may lack something
            self.send()
            return
        self._client.set_terminated(self._run, event["status"], event["time"])
        self.ended = event["status"]

    def _trial(self, event: Event) -> None:
        number = event["number"]
        tags = {"stage": "search", "trial": str(number), "trial.state": event["state"], "mlflow.parentRunId": self._run}
        if number not in self._trials:
            self._trials[number] = self._created(event["time"], tags, f"trial {number}")
        self._log(self._trials[number], _metrics(event), event["params"])
        status = "FAILED" if event["state"] == "failed" else "FINISHED"
        self._client.set_terminated(self._trials[number], status, event["time"])

    def _created(self, begun: int, tags: Mapping[str, str], name: str) -> str:
        return str(self._client.create_run(self._experiment, begun, dict(tags), name).info.run_id)

    def _log(
        self, run: str, metrics: Sequence[Metric] = (), params: Mapping[str, str] = {}, tags: Mapping[str, str] = {}
    ) -> None:
        """In as few calls as it takes."""
        parts = (
            _chunks(metrics, MAX_METRICS),
            _chunks([Param(*item) for item in params.items()], MAX_PARAMS),
            _chunks([RunTag(*item) for item in tags.items()], MAX_PARAMS),
        )
        for few in itertools.zip_longest(*parts, fillvalue=()):
            self._client.log_batch(run, *few)

    def _model(self, event: Event) -> LoggedModel:
        """The model of this run with this sum: the one that is there, else made from the files that were kept."""
        of_run = self._client.search_logged_models([self._experiment], f"source_run_id = '{self._run}'")
        known = [model for model in of_run if model.tags.get("bundle.sha256") == event["digest"]]
        whole = next((model for model in known if model.status == LoggedModelStatus.READY), None)
        if whole is not None:
            return whole
        for torn in known:
            self._client.delete_logged_model(torn.model_id)
        run, tags = self._client.get_run(self._run), {"bundle.sha256": event["digest"]}
        model = self._client.create_logged_model(self._experiment, "model", self._run, tags, run.data.params)
        with tempfile.TemporaryDirectory() as folder:
            with self._progress.at_work(), _quiet():
                mlflow.pyfunc.save_model(
                    f"{folder}/model",
                    python_model=str(self._spool.path(event["pipeline"]) / "commands/mlflow_model.py"),
                    artifacts={"bundle": str(self._spool.path(event["bundle"]))},
                    code_paths=[str(self._spool.path(event["pipeline"]))],
                    pip_requirements=event["requirements"],
                    mlflow_model=mlflow.models.Model(
                        artifact_path=model.artifact_location,
                        run_id=self._run,
                        model_uuid=model.model_id,
                        model_id=model.model_id,
                    ),
                )
            self._client.log_model_artifacts(model.model_id, f"{folder}/model")
        self._client.log_outputs(self._run, [LoggedModelOutput(model.model_id, step=0)])
        return self._client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)

    def _version(self, event: Event) -> None:
        name, sum_ = event["name"], {"bundle.sha256": event["digest"]}
        try:
            self._client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

        def known() -> list[int]:
            versions = self._client.search_model_versions(f"name = '{name}'")
            return sorted(int(one.version) for one in versions if one.tags.get("bundle.sha256") == event["digest"])

        if not known():
            model = self._model(event)
            tags = sum_ | event["tags"]
            source = f"models:/{model.model_id}"
            made = self._client.create_model_version(name, source, self._run, tags, model_id=model.model_id)
            if int(made.version) != known()[0]:  # somebody else registered it at the same time
                self._client.delete_model_version(name, made.version)
        version = str(known()[0])
        if event["champion"] and (self._is_live or self._is_newer(name, event["time"])):
            self._client.set_model_version_tag(name, version, SINCE, str(event["time"]))
            self._client.set_registered_model_alias(name, "champion", version)
        self._log(self._run, tags={"version": version})

    def _is_newer(self, name: str, time: int) -> bool:
        """Whether there is no champion, or one of before this time."""
        found = self._client.get_registered_model(name).aliases.get("champion")
        if found is None:
            return True
        there = self._client.get_model_version(name, str(found))
        return int(there.tags.get(SINCE, there.creation_timestamp)) <= time

    def _find(self) -> None:
        """The run and its trials, if MLflow has them. Of doubles, one stays."""
        found = self._only(f"tags.execution = '{self._spool.execution}'", lambda run: "")
        if found:
            if self._run not in ("", found[""]):
                self._delete(self._run)  # what has come to it since it was deleted, as a double
            self._run = found[""]
            trials = self._only(f"tags.mlflow.parentRunId = '{self._run}'", lambda run: run.data.tags["trial"])
            self._trials = {int(number): run for number, run in trials.items()}

    def _only(self, which: str, of: Callable[[mlflow.entities.Run], str]) -> dict[str, str]:
        """Of the runs that are the same, the one that holds most; of those that others fill too, the first, as for them."""
        found: dict[str, str] = {}
        runs = _all_runs(self._client, self._experiment, which)
        if not self._spool.is_rebuilt:
            runs.sort(key=lambda run: -len(run.data.metrics) - len(run.data.params))
        for run in runs:
            if found.setdefault(of(run), run.info.run_id) != run.info.run_id:
                self._delete(run.info.run_id)
        return found

    def _delete(self, run: str) -> None:
        """A run with its trials."""
        for trial in _all_runs(self._client, self._experiment, f"tags.mlflow.parentRunId = '{run}'"):
            self._client.delete_run(trial.info.run_id)
        self._client.delete_run(run)


def _all_runs(client: MlflowClient, experiment: str, which: str) -> list[mlflow.entities.Run]:
    found: list[mlflow.entities.Run] = []
    token = None
    while True:
        page = client.search_runs([experiment], which, order_by=["attributes.start_time ASC"], page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def _chunks(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def is_tracked(tracking: Tracking, key: str) -> bool:
    """Whether MLflow has a finished run with this `stage.key`. Raises `UserError` if it does not answer."""
    which = f"tags.`stage.key` = '{key}' and attributes.status = 'FINISHED'"
    try:
        client = connect(tracking)
        return bool(client.search_runs([experiment_id(client, tracking.experiment)], which, max_results=1))
    except MlflowException as error:
        raise UserError(f"{_no_answer(tracking)} ({_reason(error)})") from None


def _no_answer(tracking: Tracking) -> str:
    return f"tracking: {without_secret(tracking_uri(tracking))} does not answer"


def _metrics(event: Event) -> list[Metric]:
    return [Metric(name, value, event["time"], step) for name, value, step in event["metrics"]]


def _passes(error: Exception) -> bool:
    """Whether it may be of a server, a network or a disk, and not of what was sent."""
    if isinstance(error, MlflowException):
        # The database says the last where somebody else adds the same at this moment.
        return error.error_code in PASSING or "IntegrityError" in str(error)
    if isinstance(error, HTTPError) and error.response is not None:  # of files
        return error.response.status_code in (401, 403, 408, 429) or error.response.status_code >= 500
    if isinstance(error, RequestException):
        return True
    events = (AssertionError, AttributeError, LookupError, TypeError, ValueError)
    return not isinstance(error, (*events, FileNotFoundError, NotADirectoryError))


def _reason(error: Exception) -> str:
    said = f"{error} is missing" if isinstance(error, KeyError) else str(error)
    return without_secret(next(iter(said.splitlines()), type(error).__name__))[:160]


class Progress:
    """Since when sending has stood still."""

    def __init__(self) -> None:
        self._last, self.is_at_work = time.monotonic(), False

    def made(self) -> None:
        self._last = time.monotonic()

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """What is done here takes its time, but waits for nobody."""
        self.is_at_work = True
        try:
            yield
        finally:
            self.is_at_work = False
            self.made()

    @property
    def standing(self) -> float:
        return 0.0 if self.is_at_work else time.monotonic() - self._last


class Writer:
    """Sends what waits in the spools, then what the stage logs, from a thread of its own, at most once a second.

    Nothing waits for it but `close`, and that only as long as it gets on.
    """

    def __init__(self, tracking: Tracking, spool: Spool | None) -> None:
        self._tracking, self._spool, self._root = tracking, spool, project_root() / SPOOLS
        self._progress, self._closing, self._given_up = Progress(), threading.Event(), threading.Event()
        self._done = threading.Event()  # a thread says that it has ended where the wait for it is interrupted
        self._client: MlflowClient | None = None
        self._delivery: Delivery | None = None
        self._failure: Exception | None = None
        self.n_replayed = 0
        self._thread = threading.Thread(target=self._run, name="tracking", daemon=True)
        self._thread.start()

    def close(self, patience: float | None = None) -> str | None:
        """Wait until everything is sent, or sending stands still; returns what to tell about what is left."""
        ends_stage, patience = patience is None, PATIENCE if patience is None else patience
        is_file = tracking_uri(self._tracking).startswith("sqlite:")
        longest = SERVER_SECONDS if ends_stage and not is_file else math.inf
        self._progress.made()
        self._closing.set()
        stood, waited, seen = 0.0, 0.0, time.monotonic()
        try:
            while not self._done.is_set() and stood < patience and waited < longest:
                self._done.wait(0.05)
                before, seen = seen, time.monotonic()
                waited += 0.0 if self._progress.is_at_work else seen - before
                # All halts count together: what gets on a little and halts again would hold a stage for long.
                stood += seen - before if self._progress.standing > HALT else 0.0
        except KeyboardInterrupt:  # the work of the stage is done, so that only the waiting ends
            if not ends_stage:
                raise
        self._given_up.set()
        if self._done.is_set() and self._failure is None:
            return None
        why = _reason(self._failure) if self._failure is not None else f"waited {waited:.0f} s"
        return (
            f"{_no_answer(self._tracking)} ({why}); "
            f"{spools.n_waiting(self._root)} events wait in {SPOOLS}, sent by the next stage or python -m pipeline sync"
        )

    def _run(self) -> None:
        pause, spool = SECONDS_BETWEEN_WRITES, self._spool
        try:
            while not self._given_up.is_set():
                last = self._closing.is_set()  # asked before: what was logged until then is sent below
                try:
                    self._send()
                    pause, self._failure = SECONDS_BETWEEN_WRITES, None
                except Exception as error:  # told by `close`
                    pause, self._failure = min(2 * pause, MAX_PAUSE), error
                    self._client = self._delivery = None
                if last:
                    return
                self._closing.wait(pause)
        finally:
            if spool is not None:
                spool.lock.release()
            self._done.set()

    def _send(self) -> None:
        if self._client is None:
            make_own_database(self._tracking, self._progress.at_work)
            with self._progress.at_work():
                if not tracking_uri(self._tracking).startswith("http"):
                    # MLflow imports it when it is first used, which takes seconds on a busy machine.
                    importlib.import_module("mlflow.store.tracking.sqlalchemy_store")
            client = connect(self._tracking)
            client.search_experiments(max_results=1)  # what answers nothing is no fault of a spool
            self._progress.made()
            self._replay(client)
            self._client = client
        if self._spool is not None:
            if self._delivery is None and self._spool.first is not None:
                self._delivery = Delivery(self._client, self._spool, self._progress, is_live=True)
            if self._delivery is not None:
                self._delivery.send()
                if self._delivery.ended == "FINISHED":
                    self._spool.remove()
                    self._spool, self._delivery = None, None

    def _replay(self, client: MlflowClient) -> None:
        """What others left. One that cannot be sent, as a file of it is lost, does not stand in the way of the rest."""
        waiting = spools.waiting(self._root)
        try:
            for spool in waiting:
                if self._given_up.is_set():
                    return
                try:
                    Delivery(client, spool, self._progress).send()
                except Exception as error:
                    if _passes(error):
                        raise
                    spool.put_aside(_reason(error))
                    continue
                self.n_replayed += 1
                if spool.status == "FINISHED":
                    spool.remove()
        finally:
            for spool in waiting:
                spool.lock.release()


@contextmanager
def _quiet() -> Iterator[None]:
    """MLflow announces every database migration and model version."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
