"""Find, create and open the MLflow database or server. MLflow takes seconds to import, so only functions import it."""

import itertools
import logging
import os
import re
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from filelock import FileLock

from pipeline.core.errors import UserError
from pipeline.core.secrets import without_secret
from pipeline.core.settings import Tracking
from pipeline.tracking.identity import project_root

if TYPE_CHECKING:
    from mlflow import MlflowClient

# Columns of MLflow's tables that hold addresses of artifacts.
_ADDRESSES = (
    ("experiments", "artifact_location"), ("runs", "artifact_uri"), ("logged_models", "artifact_location"),
    ("model_versions", "source"), ("model_versions", "storage_location"),
)  # fmt: skip
DATABASE_SECONDS = 20.0  # the longest wait for another process that creates the database
Working = Callable[[], AbstractContextManager[None]]
# Fail within seconds, since `Writer` retries without duplicates. Send no telemetry.
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


def tracking_uri(tracking: Tracking) -> str:
    """The variable MLFLOW_TRACKING_URI, else the parameter, else a database in the project; paths are absolute."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or tracking.uri or "sqlite:///mlflow.db"
    path = database_path(uri)
    if path is not None:  # of the project, also where a stage runs in a temporary copy of it
        return uri if path.is_absolute() else database_uri(project_root() / path)
    scheme, _, folder = uri.rpartition(":") if uri.startswith("file:") else ("", "", uri)
    is_folder = bool(scheme) or not re.match(r"\w+(\+\w+)?:", uri)
    return (project_root() / unquote(folder)).as_uri() if is_folder and not uri.startswith("file://") else uri


def database_uri(path: Path) -> str:
    """The address of a SQLite database, with the characters quoted that would end or change its path.

    MLflow creates the parent folder of what follows `sqlite:///`, unquoted; naming the driver prevents that.
    """
    quoted = str(path).replace("%", "%25").replace("?", "%3F")
    return f"{'sqlite' if quoted == str(path) else 'sqlite+pysqlite'}:///{quoted}"


def database_path(uri: str) -> Path | None:
    """The file of a SQLite database, as SQLAlchemy reads its address; None if `uri` is a server or a folder."""
    scheme, _, rest = uri.partition(":///")
    return Path(unquote(rest.partition("?")[0])) if scheme.partition("+")[0] == "sqlite" else None


def connect(uri: str) -> "MlflowClient":
    """An MLflow client for a database or server, with the settings of `ENVIRONMENT`."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import mlflow
    from mlflow import MlflowClient

    # MLflow looks up the source of a model version with a client of its own, for the address that is set globally.
    variable = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    os.environ.pop("MLFLOW_TRACKING_URI", None)  # which MLflow sets too
    if variable is not None:
        os.environ["MLFLOW_TRACKING_URI"] = variable
    logging.getLogger("mlflow").setLevel(logging.CRITICAL)  # it logs the traceback of each error that it raises
    logging.getLogger("alembic").setLevel(logging.ERROR)
    return MlflowClient(uri)


class DeletedError(RuntimeError):
    """The experiment was deleted in MLflow, which keeps it until it is purged."""


def make_own_database(tracking: Tracking, working: Working = nullcontext) -> None:
    """Create the database if runs go to a file that is missing; in the project, its artifacts are in the project too."""
    path = database_path(tracking_uri(tracking))
    if path is None or not path.parent.is_dir():
        return
    make_database(path, working)
    if path.is_relative_to(project_root()):
        _claim_artifacts(path)


def _claim_artifacts(database: Path) -> None:
    """Replace the addresses of artifacts, which MLflow stores whole, in the database of a moved or copied project."""
    own = (project_root() / "mlruns").as_uri()
    with closing(sqlite3.connect(database)) as connection, connection:
        query = "SELECT artifact_location FROM experiments WHERE artifact_location LIKE 'file://%/mlruns'"
        for (location,) in connection.execute(query).fetchall():
            for table, column in _ADDRESSES if location != own else ():
                # Compared without LIKE, since % and _ are letters of an address and wildcards of a pattern.
                n = len(location)
                connection.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) IN (?, ?)",
                    (own, n + 1, n + 1, location, f"{location}/"),
                )


def make_database(path: Path, working: Working = nullcontext) -> None:
    """Create the database atomically: under a lock and another name, then renamed."""
    if path.exists():
        return
    with FileLock(path.with_suffix(".lock"), timeout=DATABASE_SECONDS), working():
        if path.exists():
            return
        temporary = path.with_suffix(".new")
        temporary.unlink(missing_ok=True)
        for database, suffix in itertools.product((temporary, path), ("-journal", "-wal", "-shm")):
            Path(f"{database}{suffix}").unlink(missing_ok=True)  # or SQLite would replay it into the new database
        with quiet():
            connect(database_uri(temporary)).search_experiments(max_results=1)
        temporary.replace(path)


def experiment_id(client: "MlflowClient", name: str) -> str:
    """The id of an experiment, created if it is missing."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        # A bare sqlite URI would put artifacts under the folder in which the process runs.
        location = (project_root() / "mlruns").as_uri() if database_path(client.tracking_uri) else None
        try:
            return str(client.create_experiment(name, artifact_location=location))
        except MlflowException:
            found = client.get_experiment_by_name(name)
            if found is None:  # else another stage created it first
                raise
    if found.lifecycle_stage == "deleted":
        raise DeletedError(
            f"the experiment {name!r} was deleted: mlflow experiments restore -x {found.experiment_id}"
            " brings it back, or set another tracking.experiment"
        )
    return str(found.experiment_id)


def is_tracked(tracking: Tracking, key: str) -> bool:
    """True if MLflow has a finished run with this `stage.key`; raises `UserError` if it does not answer."""
    from mlflow.exceptions import MlflowException

    query = f"tags.`stage.key` = '{key}' and attributes.status = 'FINISHED'"
    try:
        client = connect(tracking_uri(tracking))
        return bool(client.search_runs([experiment_id(client, tracking.experiment)], query, max_results=1))
    except (MlflowException, DeletedError) as error:
        raise UserError(no_answer(tracking, error)) from None


def no_answer(tracking: Tracking, error: Exception | str) -> str:
    """Say why nothing can be sent."""
    if isinstance(error, DeletedError):
        return f"tracking: {error}"
    why = error if isinstance(error, str) else reason(error)
    return f"tracking: {without_secret(tracking_uri(tracking))} does not answer ({why})"


def reason(error: Exception) -> str:
    """The first line of an error's message, shortened and without secrets."""
    message = f"{error} is missing" if isinstance(error, KeyError) else str(error)
    return without_secret(next(iter(message.splitlines()), type(error).__name__))[:160]


def serve(tracking: Tracking, port: int) -> None:
    """Replace this process by the MLflow UI, on loopback only; raises `UserError` if the runs are on a server."""
    uri = tracking_uri(tracking)
    if uri.startswith(("http://", "https://")):
        raise UserError(f"the runs of this project are on a server: open {without_secret(uri)}")
    make_own_database(tracking)
    print(f"MLflow UI: http://127.0.0.1:{port}, ready in about 20 seconds; stop it with Ctrl-C", flush=True)
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    os.environ["MLFLOW_BACKEND_STORE_URI"] = uri  # on the command line, every user could read its password
    command = ["mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    os.execv(sys.executable, [sys.executable, "-m", *command])


@contextmanager
def quiet() -> Iterator[None]:
    """Hide MLflow's messages about database migrations and model versions."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


class Progress:
    """The time since sending last made progress."""

    def __init__(self) -> None:
        self._last, self.is_working = time.monotonic(), False

    def made(self) -> None:
        self._last = time.monotonic()

    @contextmanager
    def working(self) -> Iterator[None]:
        """Run slow local work, which counts as progress: it waits for no server."""
        self.is_working = True
        try:
            yield
        finally:
            self.is_working = False
            self.made()

    @property
    def stalled(self) -> float:
        """Seconds without progress."""
        return 0.0 if self.is_working else time.monotonic() - self._last
