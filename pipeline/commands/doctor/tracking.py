"""The check of the MLflow database or server."""

import shlex
import sqlite3
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from pipeline.commands.doctor.finding import Finding, free

SECONDS = 5.0  # that a database or a server may take


def database() -> Iterator[Finding]:
    from pipeline.core import config
    from pipeline.core.secrets import without_secret
    from pipeline.tracking import store

    uri = store.tracking_uri(config.load().tracking)
    if uri.startswith(("http://", "https://")):
        parts = urllib.parse.urlsplit(uri)
        host = parts.netloc.rpartition("@")[2]  # MLflow answers this to everybody, and urllib takes no user
        try:
            with urllib.request.urlopen(f"{parts.scheme}://{host}{parts.path.rstrip('/')}/health", timeout=SECONDS):
                pass
        except urllib.error.HTTPError as error:
            yield Finding(f"{without_secret(uri)} answers {error.code} {error.reason}", "see the log of that server")
        except OSError as error:
            why = getattr(error, "reason", error)
            yield Finding(
                f"{without_secret(uri)} does not answer within {SECONDS:g} s: {why}",
                "start it; until then runs wait in .state/, and python -m pipeline sync sends them",
            )
    elif uri.startswith("sqlite:///") and (path := Path(uri.removeprefix("sqlite:///"))).exists():
        yield from _sqlite(path, uri)


def _sqlite(path: Path, uri: str) -> Iterator[Finding]:
    aside = f"mv {shlex.quote(str(path))} {free(Path(f'{path}.broken'))} && python -m pipeline sync --all-commits"
    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=SECONDS)
        try:
            (said,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            if said != "ok":
                yield Finding(f"{path} is damaged: {said}", aside)
                return
            connection.execute("BEGIN IMMEDIATE")  # takes the lock of a writer, and writes nothing
            connection.rollback()
            found = [row[0] for row in connection.execute("SELECT version_num FROM alembic_version")]
        finally:
            connection.close()
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            yield Finding(
                f"another process has had {path} locked for {SECONDS:g} s", f"fuser -v {shlex.quote(str(path))}"
            )
        elif "no such table" in str(error):
            yield Finding(f"{path} is no MLflow database", aside)
        else:
            yield Finding(f"{path} cannot be opened: {error}", f"ls -l {shlex.quote(str(path))}")
    except sqlite3.DatabaseError as error:
        yield Finding(f"{path} is damaged: {error}", aside)
    else:
        if found != [_newest_revision()]:
            yield Finding(f"{path} was made by another version of MLflow", f"mlflow db upgrade {shlex.quote(uri)}")


def _newest_revision() -> str | None:
    """The revision of the tables that the installed version of MLflow creates."""
    from alembic.config import Config
    from alembic.script import ScriptDirectory
    from mlflow.store import db_migrations

    settings = Config()
    settings.set_main_option("script_location", str(Path(db_migrations.__path__[0])))
    return ScriptDirectory.from_config(settings).get_current_head()
