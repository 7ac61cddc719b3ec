"""What happens goes to MLflow: the only module that imports it."""

import hashlib
import json
import logging
import os
import queue
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Before mlflow is imported: a dead server is given up in seconds, not in minutes, and nothing is sent elsewhere.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

import mlflow
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from ruamel.yaml import YAML

from pipeline import console
from pipeline.config import flatten
from pipeline.errors import UserError
from pipeline.settings import Config, Tracking, without_secret

MAX_METRICS, MAX_PARAMS, MAX_VALUE = 1000, 100, 6000  # what MLflow takes in a call, and in a param
SECONDS_BETWEEN_WRITES = 1.0
logging.getLogger("mlflow").setLevel(logging.ERROR)
logging.getLogger("alembic").setLevel(logging.ERROR)


class Writer:
    """Sends what training logs from a thread of its own, at most once a second, so that training waits for no server."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Callable[[], None] | tuple[str, list[Metric]] | None] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def metrics(self, run_id: str, metrics: list[Metric]) -> None:
        self._queue.put((run_id, metrics))

    def call(self, work: Callable[[], None]) -> None:
        self._queue.put(work)

    def close(self) -> None:
        """Wait until everything is sent. Raises the first error that sending met."""
        self._closing.set()
        self._queue.put(None)
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        last = False
        while not last:
            items = [self._queue.get()]
            while not self._queue.empty():
                items.append(self._queue.get())
            last = None in items
            if self._failure is None:
                try:
                    self._send(items)
                except Exception as error:  # told by `close`, on the thread that can end the stage
                    self._failure = error
            self._closing.wait(SECONDS_BETWEEN_WRITES)

    @staticmethod
    def _send(items: Sequence[Callable[[], None] | tuple[str, list[Metric]] | None]) -> None:
        gathered: dict[str, list[Metric]] = {}
        for item in items:
            if callable(item):
                item()
            elif item is not None:
                gathered.setdefault(item[0], []).extend(item[1])
        for run_id, metrics in gathered.items():
            for start in range(0, len(metrics), MAX_METRICS):
                MlflowClient().log_batch(run_id, metrics=metrics[start : start + MAX_METRICS])


class Run:
    """An open MLflow run."""

    def __init__(self, client: MlflowClient, run_id: str, experiment_id: str, writer: Writer) -> None:
        self._client, self.id, self._experiment, self._writer = client, run_id, experiment_id, writer

    def log_params(self, params: Mapping[str, Any]) -> None:
        items = _params(params)
        for start in range(0, len(items), MAX_PARAMS):
            self._client.log_batch(self.id, params=items[start : start + MAX_PARAMS])

    def log_metrics(self, scores: Mapping[str, float], step: int = 0) -> None:
        """Final numbers: `test.accuracy` becomes `test/accuracy`."""
        self._writer.metrics(
            self.id, [Metric(name.replace(".", "/"), float(value), _now(), step) for name, value in scores.items()]
        )

    def log_epochs(self, history: Sequence[Mapping[str, float]], prefix: str = "") -> None:
        """Rows of a history.csv: `val_loss` becomes `val/loss`, with the epoch as its step."""
        self._writer.metrics(self.id, _curves(history, prefix))

    @contextmanager
    def epochs(self, label: str, total: int) -> Iterator[Callable[[Mapping[str, float]], None]]:
        """Yield an `on_epoch` that logs each epoch and shows it."""
        with console.progress(label, total) as advance:

            def on_epoch(row: Mapping[str, float]) -> None:
                self.log_epochs([row])
                advance("  ".join(f"{name} {value:.4g}" for name, value in row.items() if name != "epoch"))

            yield on_epoch

    def log_files(self, *paths: Path) -> None:
        """Each file, or the files of a folder, under their names."""
        for path in paths:
            (self._client.log_artifacts if path.is_dir() else self._client.log_artifact)(self.id, str(path))

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        for name, value in tags.items():
            self._client.set_tag(self.id, name, str(value))

    def log_model(self, bundle: Path) -> str:
        """Version a bundle as an MLflow model that takes raw columns; returns its URI. No pickle: code and files."""
        here = Path(__file__).parent
        with _quiet():
            info = mlflow.pyfunc.log_model(
                name="model",
                python_model=str(here / "serving.py"),
                artifacts={"bundle": str(bundle)},
                code_paths=[str(here)],
                pip_requirements=_requirements(),
            )
        return str(info.model_uri)

    def log_trial(
        self, number: int, params: Mapping[str, Any], state: str, history: Sequence[Mapping[str, float]]
    ) -> None:
        """A trial of a search as a child run, with its parameters and curves."""
        tags = _texts({"stage": "search", "trial": number, "trial.state": state, "mlflow.parentRunId": self.id})
        metrics, now = _curves(history), _now()

        def write() -> None:
            child = self._client.create_run(self._experiment, now, tags, f"trial {number}").info.run_id
            self._client.log_batch(child, metrics[:MAX_METRICS], _params(params))
            for start in range(MAX_METRICS, len(metrics), MAX_METRICS):
                self._client.log_batch(child, metrics[start : start + MAX_METRICS])
            self._client.set_terminated(child, "FAILED" if state == "failed" else "FINISHED")

        self._writer.call(write)


def _curves(history: Sequence[Mapping[str, float]], prefix: str = "") -> list[Metric]:
    return [
        Metric(prefix + re.sub("^(train|val)_", r"\1/", name), float(value), _now(), int(row["epoch"]))
        for row in history
        for name, value in row.items()
        if name != "epoch"
    ]


def _params(params: Mapping[str, Any]) -> list[Param]:
    return [Param(name, without_secret(_text(value))[:MAX_VALUE]) for name, value in params.items()]


@contextmanager
def stage_run(stage: str, config: Config, tags: Mapping[str, Any] = {}) -> Iterator[Run]:
    """One run of a stage, such as `train` or `evaluate@train`, with its parameters and where it came from.

    A stage that fails, is interrupted or terminated leaves its run marked so.
    """
    connect(config.tracking)
    entry = stage_entry(stage)
    known = {"stage": stage.partition("@")[0], "stage.key": stage_key(entry), **_origin(), **tags}
    with mlflow.start_run(run_name=stage, tags=_texts(known)) as active:
        writer = Writer()
        try:
            run = Run(MlflowClient(), active.info.run_id, active.info.experiment_id, writer)
            run.log_params(_in_force(config, entry["params"]))
            yield run
        finally:
            writer.close()


def _in_force(config: Config, watched: Mapping[str, Any]) -> dict[str, Any]:
    """The watched parameters with their values, also those that a preset gives or params.yaml leaves out."""
    values = flatten(config.model_dump(mode="json", by_alias=True))
    sections = {name.rpartition(".")[0] for name in watched if "." in name}
    return {name: value for name, value in values.items() if name in watched or name.rpartition(".")[0] in sections}


# --------------------------------------------------------------------------------------------------- where runs go


def project_root() -> Path:
    """The folder of the repository, also from the temporary copy in which a queued DVC experiment runs."""
    return Path(os.environ.get("DVC_ROOT") or Path.cwd()).resolve()


def tracking_uri(tracking: Tracking) -> str:
    """The variable MLFLOW_TRACKING_URI, else the parameter, else a database in the project."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or tracking.uri
    return uri or f"sqlite:///{project_root() / 'mlflow.db'}"


def connect(tracking: Tracking) -> None:
    """Point MLflow at the database or server, made if it is the project's own; select the experiment."""
    uri = tracking_uri(tracking)
    root = project_root()
    if uri == f"sqlite:///{root / 'mlflow.db'}":
        make_database(root / "mlflow.db")
    mlflow.set_tracking_uri(uri)
    try:
        if mlflow.get_experiment_by_name(tracking.experiment) is None:
            # A bare sqlite URI would put artifacts under whatever folder the process runs in.
            location = (root / "mlruns").as_uri() if uri.startswith("sqlite:") else None
            try:
                mlflow.create_experiment(tracking.experiment, artifact_location=location)
            except MlflowException:
                if mlflow.get_experiment_by_name(tracking.experiment) is None:  # else another stage was faster
                    raise
        mlflow.set_experiment(tracking.experiment)
    except MlflowException as error:
        why = str(error).splitlines()[0]
        raise UserError(_without_secret(f"tracking: {uri} does not answer: {why}")[:300]) from None


def serve(tracking: Tracking, port: int) -> None:
    """The MLflow UI on the project's runs, on loopback only, until it is interrupted.

    Raises `UserError` if the runs are on a server, which has a UI of its own.
    """
    uri = tracking_uri(tracking)
    if uri.startswith(("http://", "https://")):
        raise UserError(f"the runs of this project are on a server: open {_without_secret(uri)}")
    connect(tracking)
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


def make_database(path: Path) -> None:
    """A whole database or none: made under another name, behind a lock, then renamed."""
    with FileLock(path.with_suffix(".lock")):
        if path.exists():
            return
        temporary = path.with_suffix(".new")
        temporary.unlink(missing_ok=True)
        with _quiet():
            MlflowClient(f"sqlite:///{temporary}").search_experiments(max_results=1)
        temporary.replace(path)


# --------------------------------------------------------------------------------------------- what a stage stands on


def stage_entry(stage: str) -> dict[str, Any]:
    """What DVC looks at to decide whether the stage is up to date: its params and its deps, with their content.

    Shape: {"params": {dotted name: value}, "deps": {path: md5}}, as dvc.lock has it.
    """
    name, _, item = stage.partition("@")
    declared = YAML(typ="safe", pure=True).load(Path("dvc.yaml").read_text(encoding="utf-8"))["stages"][name]
    params = YAML(typ="safe", pure=True).load(Path("params.yaml").read_text(encoding="utf-8"))
    flat: dict[str, Any] = {}
    for wanted in declared.get("params", []):
        value = params
        for key in wanted.split("."):
            value = value[key]
        flat |= flatten({wanted: value})
    deps = [str(dep).replace("${item.model}", item) for dep in declared.get("deps", [])]
    return {"params": flat, "deps": {dep: _content(Path(dep)) for dep in deps}}


def state(stage: str) -> tuple[Path, str, str]:
    """Where checkpoints are kept, and the name and key that those of a stage stand under."""
    return project_root() / ".state/checkpoints", stage, stage_key(stage_entry(stage))


def stage_key(entry: Mapping[str, Any]) -> str:
    """A hash of what `stage_entry` found: the same key, the same work."""
    return hashlib.sha256(json.dumps(entry, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _content(path: Path) -> str:
    """The sum that dvc.lock has for a file, or for a folder (of the sums of its files)."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "md5").hexdigest()
    found = sorted((file.relative_to(path).as_posix(), file) for file in path.rglob("*") if file.is_file())
    listing = [{"md5": _content(file), "relpath": name} for name, file in found]
    return hashlib.md5(json.dumps(listing, sort_keys=True).encode()).hexdigest() + ".dir"


def _origin() -> dict[str, str]:
    """The commit, whether files differ from it, and the DVC experiment if there is one."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    tags = {
        "git.commit": git("rev-parse", "HEAD"),
        "git.dirty": str(bool(git("status", "--porcelain", "-uno"))).lower(),
    }
    tags["dvc.exp"] = os.environ.get("DVC_EXP_NAME", "")
    return {name: value for name, value in tags.items() if value}


# ------------------------------------------------------------------------------------------------------ the registry


def register(name: str, bundle: Path, digest: str, tags: Mapping[str, Any], run: Run) -> int:
    """Give the bundle a version under `name` with the alias `champion`; the same bundle keeps the version it has."""
    client = MlflowClient()
    version = next(
        (v.version for v in client.search_model_versions(f"name = '{name}'") if v.tags.get("bundle.sha256") == digest),
        None,
    )
    if version is None:
        uri = run.log_model(bundle)
        with _quiet():
            version = mlflow.register_model(uri, name, tags=_texts({"bundle.sha256": digest, **tags})).version
    client.set_registered_model_alias(name, "champion", version)
    return int(version)


def _requirements() -> list[str]:
    """What the model needs where it is served, at the versions of this project."""
    needed = (
        "mlflow",
        "torch",
        "torchmetrics",
        "pandas",
        "pandera",
        "pydantic",
        "ruamel.yaml",
        "safetensors",
        "scikit-learn",
    )
    pins = Path("constraints.txt").read_text(encoding="utf-8").split()
    return [pin for pin in pins if pin.partition("==")[0].lower() in needed]


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in values.items()}


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, list | dict | tuple) else str(value)


def _now() -> int:
    return int(time.time() * 1000)


def _without_secret(text: str) -> str:
    """Text with the user and password of any URL in it left out."""
    return re.sub(r"//[^/@\s]*@", "//", text)


@contextmanager
def _quiet() -> Iterator[None]:
    """MLflow announces every database migration and model version."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
