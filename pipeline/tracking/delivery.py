"""Send the events of a journal to MLflow."""

import itertools
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus, Metric, Param, RunTag, ViewType
from mlflow.exceptions import MlflowException
from mlflow.types import ColSpec, Schema
from mlflow.types.schema import AnyType
from requests import HTTPError, RequestException

from pipeline.tracking.journal import Event, Journal, Status
from pipeline.tracking.store import Progress, experiment_id, quiet, reason

MAX_METRICS, MAX_PARAMS = 800, 100  # that MLflow accepts per call (1,000 in all)
SINCE = "champion.since"  # tag of a version: when its stage made it the champion, in ms
# Errors about one event, which a retry would repeat.
REFUSALS = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "INVALID_STATE"}
# Errors about the server or the login, whatever event is sent.
TRANSIENT = {
    "INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "DEADLINE_EXCEEDED", "REQUEST_LIMIT_EXCEEDED", "RESOURCE_EXHAUSTED",
    "CANCELLED", "ABORTED", "RESOURCE_CONFLICT", "CUSTOMER_UNAUTHORIZED", "UNAUTHENTICATED", "PERMISSION_DENIED",
}  # fmt: skip


class Delivery:
    """Sends the events of a journal to MLflow in order; sending an event twice makes no duplicate.

    A run is identified by its tag `execution`, a trial by its number, a model by its checksum, a metric by its time.
    """

    def __init__(self, client: MlflowClient, journal: Journal, progress: Progress, is_live: bool = False) -> None:
        self._client, self._journal, self._progress, self._is_live = client, journal, progress, is_live
        self.ended: Status | None = None  # set once the end is sent
        first = journal.first
        assert first is not None
        self._began = int(first["time"])  # of a restored run: when it was committed; its other events have no time
        self._experiment = experiment_id(client, first["experiment"])
        progress.made()
        self._run, self._trials = "", dict[int, str]()
        self._find()
        # A new database or another server has none of the events yet; a run that another clone restores may lack some.
        self._at = journal.sent if self._run and not journal.is_restored else 0

    def send(self) -> None:
        """Send all waiting events."""

        def batch(pair: tuple[Event, int]) -> tuple[str, int | None]:
            kind, end = pair[0]["kind"], pair[1]
            return kind, None if kind == "metrics" else end  # metrics are many and small, and are sent together

        waiting = self._journal.events(self._at)
        self._journal.flush()  # an event lost here after it was sent would be logged again with another time
        for (kind, _), group in itertools.groupby(waiting, batch):
            events, ends = zip(*group, strict=True)
            try:
                self._send(kind, events)
            except MlflowException as error:
                if kind == "run" or error.error_code not in REFUSALS:
                    raise
                print(f"tracking: MLflow refuses {kind}: {reason(error)}", flush=True)
            self._journal.sent = self._at = ends[-1]
            self._progress.made()

    def _send(self, kind: str, events: Sequence[Event]) -> None:
        event = events[0]
        match kind:
            case "run":
                self._start(event)
            case "params" | "tags":
                self._log(self._run, **{kind: event[kind]})
            case "metrics":
                self._log(self._run, metrics=[metric for event in events for metric in _metrics(event)])
            case "files":
                self._client.log_artifacts(self._run, str(self._journal.folder / event["files"]))
            case "trial":
                self._trial(event)
            case "model":
                self._model(event)
            case "version":
                self._version(event)
            case "end":
                self._end(event)
            case _:
                raise ValueError(f"unknown event {kind}, written by another version of this project")

    def _start(self, event: Event) -> None:
        tags = event["tags"] | {"execution": self._journal.execution}
        self.ended = None
        if self._run:
            self._client.update_run(self._run, "RUNNING")
            self._log(self._run, tags=tags)
            return
        if self._journal.is_restored:
            self._delete_orphans(event["tags"]["stage.key"])
        self._run = self._create(event["time"], tags, event["name"])
        if self._journal.is_restored:
            self._find()

    def _delete_orphans(self, key: str) -> None:
        """Delete the trials of a deleted run that is restored with its trials."""
        for run in self._runs(f"tags.`stage.key` = '{key}'", ViewType.DELETED_ONLY):
            for trial in self._runs(f"tags.mlflow.parentRunId = '{run.info.run_id}'"):
                self._client.delete_run(trial.info.run_id)

    def _end(self, event: Event) -> None:
        """End the run, after deleting duplicates made by a server that answered late or by another clone's sync."""
        before = self._run, self._trials
        self._find()
        if self._journal.is_restored and before != (self._run, self._trials):
            self._at = 0  # the run that remains may lack events
            self.send()
            return
        self._client.set_terminated(self._run, event["status"], event["time"] or self._began)
        self.ended = event["status"]

    def _trial(self, event: Event) -> None:
        number = event["number"]
        tags = {"stage": "search", "trial": str(number), "trial.state": event["state"], "mlflow.parentRunId": self._run}
        if number not in self._trials:
            self._trials[number] = self._create(event["time"] or self._began, tags, f"trial {number}")
        self._log(self._trials[number], _metrics(event), event["params"])
        status = "FAILED" if event["state"] == "failed" else "FINISHED"
        self._client.set_terminated(self._trials[number], status, event["time"] or self._began)

    def _create(self, start: int, tags: Mapping[str, str], name: str) -> str:
        return str(self._client.create_run(self._experiment, start, dict(tags), name).info.run_id)

    def _log(
        self, run: str, metrics: Sequence[Metric] = (), params: Mapping[str, str] = {}, tags: Mapping[str, str] = {}
    ) -> None:
        chunks = (
            _chunks(metrics, MAX_METRICS),
            _chunks([Param(*item) for item in params.items()], MAX_PARAMS),
            _chunks([RunTag(*item) for item in tags.items()], MAX_PARAMS),
        )
        for batch in itertools.zip_longest(*chunks, fillvalue=()):
            self._client.log_batch(run, *batch)

    def _model(self, event: Event) -> LoggedModel:
        """The run's logged model with this checksum, created from the kept files if it is missing or incomplete."""
        logged = self._client.search_logged_models([self._experiment], f"source_run_id = '{self._run}'")
        same = [model for model in logged if model.tags.get("bundle.sha256") == event["digest"]]
        for model in same:
            if model.status == LoggedModelStatus.READY:
                return model
        for model in same:
            self._client.delete_logged_model(model.model_id)
        run, tags = self._client.get_run(self._run), {"bundle.sha256": event["digest"]}
        model = self._client.create_logged_model(self._experiment, "model", self._run, tags, run.data.params)
        new = model.model_id
        code, bundle = (self._journal.folder / event[kept] for kept in ("pipeline", "bundle"))
        signature, example = _columns(bundle / "model.json")
        with tempfile.TemporaryDirectory() as folder:
            with self._progress.working(), quiet():
                mlflow.pyfunc.save_model(
                    f"{folder}/model",
                    python_model=f"{code}/commands/mlflow_model.py",
                    artifacts={"bundle": bundle.as_uri()},  # MLflow would unquote a path
                    code_paths=[str(code)],
                    pip_requirements=event["requirements"],
                    signature=signature,
                    input_example=example,
                    mlflow_model=mlflow.models.Model(model.artifact_location, self._run, model_uuid=new, model_id=new),
                )
            self._client.log_model_artifacts(new, f"{folder}/model")
        self._client.log_outputs(self._run, [LoggedModelOutput(new, step=0)])
        return self._client.finalize_logged_model(new, LoggedModelStatus.READY)

    def _version(self, event: Event) -> None:
        """Register the bundle, unless a version has its checksum, as the challenger.

        Where the event says so, it also becomes the champion, unless that is newer.
        """
        name = event["name"]
        try:
            self._client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

        def same() -> list[int]:
            versions = self._client.search_model_versions(f"name = '{name}'")
            return sorted(int(one.version) for one in versions if one.tags.get("bundle.sha256") == event["digest"])

        if not same():
            model, tags = self._model(event), {"bundle.sha256": event["digest"]} | event["tags"]
            source = f"models:/{model.model_id}"
            created = self._client.create_model_version(name, source, self._run, tags, model_id=model.model_id)
            if int(created.version) != same()[0]:  # another process registered it at the same time
                self._client.delete_model_version(name, created.version)
        version = str(same()[0])
        if not self._journal.is_restored:
            self._client.set_registered_model_alias(name, "challenger", version)
        if event["champion"] and (self._is_live or self._is_newer(name, event["time"])):
            self._client.set_model_version_tag(name, version, SINCE, str(event["time"]))
            self._client.set_registered_model_alias(name, "champion", version)
        self._log(self._run, tags={"version": version})

    def _is_newer(self, name: str, time: int) -> bool:
        """True if there is no champion, or one from before this time."""
        champion = self._client.get_registered_model(name).aliases.get("champion")
        if champion is None:
            return True
        version = self._client.get_model_version(name, str(champion))
        return int(version.tags.get(SINCE, version.creation_timestamp)) <= time

    def _find(self) -> None:
        found = self._unique(f"tags.execution = '{self._journal.execution}'", lambda run: "")
        if found:
            if self._run not in ("", found[""]):
                self._delete(self._run)  # with trials added after another clone deleted it as a duplicate
            self._run = found[""]
            trials = self._unique(f"tags.mlflow.parentRunId = '{self._run}'", lambda run: run.data.tags["trial"])
            self._trials = {int(number): run for number, run in trials.items()}

    def _unique(self, query: str, key: Callable[[mlflow.entities.Run], str]) -> dict[str, str]:
        """Keep one run per key, the one with the most data, and delete the others; returns the ids."""
        found: dict[str, str] = {}
        runs = self._runs(query)
        if not self._journal.is_restored:  # else the oldest stays, as all clones that send the run have to agree
            runs.sort(key=lambda run: -len(run.data.metrics) - len(run.data.params))
        for run in runs:
            if found.setdefault(key(run), run.info.run_id) != run.info.run_id:
                self._delete(run.info.run_id)
        return found

    def _delete(self, run: str) -> None:
        for trial in self._runs(f"tags.mlflow.parentRunId = '{run}'"):
            self._client.delete_run(trial.info.run_id)
        self._client.delete_run(run)

    def _runs(self, query: str, view: int = ViewType.ACTIVE_ONLY) -> list[mlflow.entities.Run]:
        found: list[mlflow.entities.Run] = []
        order, token = ["attributes.start_time ASC"], None
        while True:
            page = self._client.search_runs([self._experiment], query, view, order_by=order, page_token=token)
            found += page
            if not (token := page.token):
                return found


def _chunks(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _metrics(event: Event) -> list[Metric]:
    return [Metric(name, value, event["time"], step) for name, value, step in event["metrics"]]


def is_transient(error: Exception) -> bool:
    """True if a server, a network or a disk may have caused the error, and not the event: a retry may succeed."""
    if isinstance(error, MlflowException):
        # The database raises IntegrityError where another process adds the same row at this moment.
        return error.error_code in TRANSIENT or "IntegrityError" in str(error)
    if isinstance(error, HTTPError) and error.response is not None:  # from the transfer of files
        return error.response.status_code in (401, 403, 408, 429) or error.response.status_code >= 500
    if isinstance(error, RequestException):
        return True
    about_event = (AssertionError, AttributeError, LookupError, TypeError, ValueError)
    return not isinstance(error, (*about_event, FileNotFoundError, NotADirectoryError))


def _columns(description: Path) -> tuple[mlflow.models.ModelSignature, pd.DataFrame]:
    """Name the columns that a model takes, with a row of examples.

    Their types are left open: the model reads each value by its schema.
    """
    columns = json.loads(description.read_bytes())["schema"]["columns"]
    examples = {c["name"]: c["examples"][0][0] if c["examples"] else "" for c in columns if c["kind"] != "drop"}
    inputs = Schema([ColSpec(AnyType(), name, required=False) for name in examples])
    return mlflow.models.ModelSignature(inputs), pd.DataFrame([examples])
