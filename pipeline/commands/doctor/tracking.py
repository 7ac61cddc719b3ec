"""Check the MLflow database or server, and the folder `.state`."""

import shlex
import sqlite3
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from pipeline.commands.doctor.finding import Finding, free

SECONDS = 5.0  # the longest wait for a database or a server


def state() -> Iterator[Finding]:
    """Find running stages, stale checkpoints, and runs that MLflow lacks."""
    from pipeline.runtime import locks
    from pipeline.tracking import identity, journal
    from pipeline.training.checkpoints import STALE_DAYS

    running = locks.held()
    for stage, holder in running.items():
        yield Finding(f"stage {stage} is running {holder.place}", f"wait for it, or end it {holder.end}")
    for folder in sorted(Path(".state/checkpoints").glob("*/*/")):
        if time.time() - folder.stat().st_mtime > STALE_DAYS * 86_400:  # a stage may resume from younger ones
            yield Finding(f"{folder} is stale: not used for {STALE_DAYS} days", f"rm -r {shlex.quote(str(folder))}")
    root = identity.project_root() / journal.JOURNALS
    if (n_waiting := journal.n_waiting(root)) and not running:
        yield Finding(f"events not yet sent to MLflow: {n_waiting}", "python -m pipeline sync")
    if n_refused := journal.n_refused(root):
        yield Finding(f"runs refused by MLflow: {n_refused}", journal.remedy(journal.REFUSED / "*"))


def database() -> Iterator[Finding]:
    from pipeline.core import config
    from pipeline.core.secrets import without_secret
    from pipeline.tracking import store

    uri = store.tracking_uri(config.load().tracking)
    if uri.startswith(("http://", "https://")):
        parts, public = urllib.parse.urlsplit(uri), without_secret(uri)
        host = parts.netloc.rpartition("@")[2]  # /health needs no login, and urllib accepts no user
        try:
            with urllib.request.urlopen(f"{parts.scheme}://{host}{parts.path.rstrip('/')}/health", timeout=SECONDS):
                pass
        except urllib.error.HTTPError as error:
            yield Finding(f"{public} answers {error.code} {error.reason}", "see the log of that server")
        except OSError as error:
            why = getattr(error, "reason", error)
            yield Finding(
                f"{public} does not answer within {SECONDS:g} s: {why}",
                "start the server, then run python -m pipeline sync to send the runs that wait in .state/runs",
            )
    elif (path := store.database_path(uri)) and path.exists():
        yield from _sqlite(path, uri)


def _sqlite(path: Path, uri: str) -> Iterator[Finding]:
    quoted = shlex.quote(str(path))
    replace = f"mv {quoted} {free(Path(f'{path}.broken'))} && python -m pipeline sync --all-commits"
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=SECONDS)) as connection:
            (result,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            if result != "ok":
                yield Finding(f"{path} is damaged: {result}", replace)
                return
            connection.execute("BEGIN IMMEDIATE")  # acquires the lock of a writer without writing
            connection.rollback()
            revisions = [row[0] for row in connection.execute("SELECT version_num FROM alembic_version")]
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            yield Finding(f"{path} has been locked by another process for {SECONDS:g} s", f"fuser -v {quoted}")
        elif "no such table" in str(error):
            yield Finding(f"{path} is not an MLflow database", replace)
        else:
            yield Finding(f"{path} cannot be opened: {error}", f"ls -l {quoted}")
    except sqlite3.DatabaseError as error:
        yield Finding(f"{path} is damaged: {error}", replace)
    else:
        if revisions != [_newest_revision()]:
            yield Finding(f"{path} was created by another version of MLflow", f"mlflow db upgrade {shlex.quote(uri)}")


def _newest_revision() -> str | None:
    """The revision of the tables that the installed version of MLflow creates."""
    from alembic.config import Config
    from alembic.script import ScriptDirectory
    from mlflow.store import db_migrations

    settings = Config()
    settings.set_main_option("script_location", str(Path(db_migrations.__path__[0])))
    return ScriptDirectory.from_config(settings).get_current_head()
