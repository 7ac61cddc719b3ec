"""Events of a journal to MLflow: the one module that calls MLflow for a run."""

import itertools
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from requests import HTTPError, RequestException

from pipeline.tracking.journal import Event, Spool, Status
from pipeline.tracking.progress import Progress
from pipeline.tracking.store import experiment_id, quiet, reason

MAX_METRICS, MAX_PARAMS = 800, 100  # what MLflow takes in a call (1,000 in all)
SINCE = "champion.since"  # a version's tag: when its stage made it the champion, in ms
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


class Delivery:
    """Brings the events of a spool to MLflow, in order. What is brought a second time makes no double there:

    a run is known by its tag `execution`, a trial by its number, a model by its sum, and a metric by its time.
    """

    def __init__(self, client: MlflowClient, spool: Spool, progress: Progress, is_live: bool = False) -> None:
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
                    print(f"tracking: MLflow refuses {kind}: {reason(error)}", flush=True)
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
            with self._progress.at_work(), quiet():
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


def _metrics(event: Event) -> list[Metric]:
    return [Metric(name, value, event["time"], step) for name, value, step in event["metrics"]]


def passes(error: Exception) -> bool:
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
