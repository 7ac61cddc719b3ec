"""What is wrong is named with its remedy, and looking changes nothing; the faults of DVC's files are in tests/faults."""

import http.server
import os
import re
import resource
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline import doctor, locks, spool, versions
from pipeline.doctor import Finding
from tests.clones import call, clone, environment

IRIS = {"data.source": "sklearn:iris", "data.target": "target", "data.task": "multiclass"}


def found(check: str) -> list[Finding]:
    return list(doctor.CHECKS[check]())


def tree(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Every file with its inode, size and time of change.

    But for git's index, which git refreshes itself, and its objects, which a clone shares with where it comes from.
    """
    not_ours = (".git/index", ".git/objects/", "__pycache__")
    stats = {str(path): path.lstat() for path in folder.rglob("*")}
    return {
        name: (stat.st_ino, stat.st_size, stat.st_mtime_ns)
        for name, stat in stats.items()
        if not any(part in name for part in not_ours)
    }


def test_a_clone_is_looked_at_quickly_and_nothing_in_it_changes(tmp_path: Path) -> None:
    folder = clone(tmp_path / "clone", IRIS)
    call(folder, "dvc", "repro", "fetch")
    before = tree(folder)
    begun = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    said = call(folder, sys.executable, "-m", "pipeline", "doctor", status=1)
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - begun < 20
    assert tree(folder) == before
    assert "ok    packages\n" in said
    assert "\033" not in said
    assert "wrong dvc.lock\n      dvc.lock does not have the outputs of prepare, baseline," in said
    assert "      remedy: dvc repro\n" in said
    assert said.count("remedy: ") == 1
    assert said.endswith("to be mended: 1\n")


@pytest.mark.parametrize(
    "lacking", [["torch", "mlflow"], ["dvc"], ["pandas", "pydantic", "ruamel", "sklearn", "psutil"]]
)
def test_half_an_installation_is_enough_to_hear_what_is_missing(
    project: Callable[..., Path], lacking: list[str]
) -> None:
    project(IRIS)
    code = f"import sys; sys.modules.update(dict.fromkeys({lacking})); sys.argv[1:] = ['doctor']; from pipeline import cli; cli.main()"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    for module in lacking:
        if module not in ("sklearn", "ruamel"):
            assert re.search(rf"cannot be checked: .*\b{module}\b", done.stdout)
    assert "ok    disk" in done.stdout
    assert 'remedy: python -m pip install --constraint constraints.txt --editable ".[test]"' in done.stdout


def test_a_check_that_fails_is_named_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def halfway() -> Iterator[Finding]:
        yield Finding("one thing", "mend it")
        raise RuntimeError("a bug\nof ours")

    def well() -> Iterator[Finding]:
        yield from ()

    monkeypatch.setattr(doctor, "CHECKS", {"first": halfway, "second": well})
    (first, (one, cannot)), second = doctor.examine()
    assert (first, one.what, second) == ("first", "one thing", ("second", []))
    assert cannot.what == "cannot be checked: RuntimeError: a bug"


# ------------------------------------------------------------------------------------------------------- installation


def test_a_package_at_another_version_or_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pyproject.toml").write_text(
        '[project]\ndependencies = ["torch>=2", "no-such-thing>=1; python_version > \'3\'"]\n'
    )
    Path("constraints.txt").write_text("torch==2.0.1\nno-such-thing==1.0\npandas==3.1.1\nnor-this==2\n")
    (finding,) = found("packages")
    assert "no-such-thing is missing" in finding.what
    assert "not 2.0.1" in finding.what
    assert finding.remedy == "python -m pip install --constraint constraints.txt no-such-thing torch"


def test_programs_that_are_not_found_and_another_python_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    findings = found("programs")
    assert [finding.what for finding in findings][:2] == ["git is not found", "dvc is not found"]
    assert "stages would run in the Python of None" in findings[2].what


def test_a_folder_without_git_and_dvc_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert [finding.remedy for finding in found("repository")] == ["git init", "dvc init"]
    for finding in found("repository"):
        call(tmp_path, "bash", "-c", finding.remedy)
    assert found("repository") == []


def test_a_mistake_in_the_parameters_is_told_as_a_stage_tells_it(project: Callable[..., Path]) -> None:
    folder = project(IRIS)
    assert found("params.yaml") == []
    (folder / "params.yaml").write_text("seed: [\n")
    (finding,) = found("params.yaml")
    assert "params.yaml, line" in finding.what


def test_a_disk_without_room_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert found("disk") == []
    monkeypatch.setattr(doctor, "GIGABYTES", 1e9)
    (finding,) = found("disk")
    assert "GB are left on this disk" in finding.what


# ----------------------------------------------------------------------------------------------------------- tracking


def test_a_database_is_well_or_told_to_be_damaged_locked_or_of_another_version(
    project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = project(IRIS) / "mlflow.db"
    assert found("MLflow") == []
    whole = path.read_bytes()

    for name, content in {
        "zeros": whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2),
        "cut": whole[: len(whole) // 2],
        "no database": b"this is no database, but long enough to be taken for one" * 100,
        "empty": b"",
    }.items():
        path.write_bytes(content)
        (finding,) = found("MLflow")
        assert "mlflow.db" in finding.what, name
        assert finding.remedy.startswith(f"mv {path} "), name
    path.write_bytes(whole)

    monkeypatch.setattr(doctor, "SECONDS", 0.5)
    with sqlite3.connect(path) as writer:
        writer.execute("BEGIN IMMEDIATE")
        (finding,) = found("MLflow")
        assert "locked for 0.5 s" in finding.what
    writer.close()

    with sqlite3.connect(path) as older:
        older.execute("UPDATE alembic_version SET version_num = '451aebb31d03'")
    older.close()
    (finding,) = found("MLflow")
    assert "another version of MLflow" in finding.what
    assert finding.remedy == f"mlflow db upgrade sqlite:///{path}"

    path.unlink()
    assert found("MLflow") == []  # the first stage makes one


@contextmanager
def server(answer: Callable[[http.server.BaseHTTPRequestHandler], object]) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        listening.daemon_threads = True
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{listening.server_port}"
        listening.shutdown()


def test_a_server_is_well_or_told_to_be_down_broken_or_hanging(
    project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    project(IRIS)
    monkeypatch.setattr(doctor, "SECONDS", 0.5)

    def well(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()

    def told() -> str:
        (finding,) = found("MLflow")
        return finding.what

    with server(well) as uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        assert found("MLflow") == []
    assert "does not answer" in told()
    with server(lambda handler: handler.send_error(500)) as uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        assert "answers 500" in told()
    with server(lambda handler: time.sleep(2)) as uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        assert "does not answer within 0.5 s" in told()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")
    assert "secret" not in told()


# ------------------------------------------------------------------------------------------------ what this project keeps


def test_what_runs_what_waits_and_what_is_of_no_use_is_told(project: Callable[..., Path]) -> None:
    folder = project(IRIS)
    assert found(".state") == []
    current, stale = (
        folder / ".state/checkpoints/fetch" / versions.state("fetch")[2],
        folder / ".state/checkpoints/fetch/0",
    )
    for path in (current, stale, folder / ".state/checkpoints/fetch/1"):
        path.mkdir(parents=True)
    os.utime(stale, (0, 0))
    (finding,) = found(".state")
    assert finding.remedy == "rm -r .state/checkpoints/fetch/0"
    call(folder, "bash", "-c", finding.remedy)
    assert found(".state") == []
    root = folder / spool.SPOOLS
    spool.begin(root, "fetch", "0").append("run", status=None)
    (finding,) = found(".state")
    assert finding.remedy == "python -m pipeline sync"
    with locks.only_one("train"):
        (finding,) = found(".state")
        assert finding.what == f"stage train is running here as process {os.getpid()}"
