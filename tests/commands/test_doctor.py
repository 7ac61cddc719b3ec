"""Each problem is reported with its remedy, and a diagnosis changes nothing; tests/faults has the faults of DVC's files."""

import http.server
import json
import os
import re
import resource
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.commands.doctor import checks, installation, tracking
from pipeline.commands.doctor.finding import Finding
from pipeline.runtime import locks
from pipeline.tracking import identity, journal
from tests.support.clones import call, clone, environment
from tests.support.params import IRIS
from tests.support.projects import in_cache, tiny
from tests.support.shared import once


def found(check: str) -> list[Finding]:
    return list(checks.CHECKS[check]())


def tree(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Every file with its inode, size and time of change, except git's index, which git refreshes, and shared objects."""
    not_ours = (".git/index", ".git/objects/", "__pycache__")
    stats = {str(path): path.lstat() for path in folder.rglob("*")}
    return {
        name: (stat.st_ino, stat.st_size, stat.st_mtime_ns)
        for name, stat in stats.items()
        if not any(part in name for part in not_ours)
    }


@pytest.mark.slow
def test_the_doctor_is_quick_and_changes_nothing(tmp_path: Path) -> None:
    folder = clone(tmp_path / "clone", IRIS)
    call(folder, "dvc", "repro", "fetch")
    before = tree(folder)
    begun = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    said = call(folder, sys.executable, "-B", "-m", "pipeline", "doctor", status=1)  # -B: writes no bytecode
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - begun < 20
    assert tree(folder) == before
    assert "ok    packages\n" in said
    assert "\033" not in said
    assert "wrong dvc.lock\n      dvc.lock lacks the outputs of prepare, baseline," in said
    assert "      remedy: dvc repro\n" in said
    assert said.count("remedy: ") == 1
    assert said.endswith("1 problem found\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    "lacking", [["torch", "mlflow"], ["dvc"], ["pandas", "pydantic", "ruamel", "sklearn", "psutil"]]
)
def test_the_doctor_runs_without_some_packages_and_names_them(project: Callable[..., Path], lacking: list[str]) -> None:
    call(project(IRIS), "git", "init", "--quiet")
    Path(".dvc").mkdir()
    Path(".dvc/config").touch()
    code = f"import sys; sys.modules.update(dict.fromkeys({lacking})); sys.argv[1:] = ['doctor']; from pipeline.commands import cli; cli.main()"
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


def test_a_check_that_raises_is_reported_and_the_others_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def halfway() -> Iterator[Finding]:
        yield Finding("one thing", "mend it")
        raise RuntimeError("a bug\nof ours")

    def well() -> Iterator[Finding]:
        yield from ()

    monkeypatch.setattr(checks, "CHECKS", {"first": halfway, "second": well})
    (first, findings), second = checks.examine()
    assert findings is not None
    one, cannot = findings
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
    assert "torch must be 2.0.1, got " in finding.what
    assert finding.remedy == "python -m pip install --constraint constraints.txt no-such-thing torch"


def test_programs_that_are_not_found_and_another_python_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    findings = found("programs")
    assert [finding.what for finding in findings][:2] == ["git is not on the PATH", "dvc is not on the PATH"]
    assert findings[2].what.startswith("the python on the PATH, which runs the stages, must be in ")
    assert findings[2].what.endswith(", got None")


def test_a_folder_without_git_or_dvc_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert [finding.remedy for finding in found("repository")] == ["git init", "dvc init"]
    for finding in found("repository"):
        call(tmp_path, "bash", "-c", finding.remedy)
    assert found("repository") == []


def test_invalid_parameters_are_reported(project: Callable[..., Path]) -> None:
    folder = project(IRIS)
    assert found("params.yaml") == []
    (folder / "params.yaml").write_text("seed: [\n")
    (finding,) = found("params.yaml")
    assert "params.yaml, line" in finding.what


def test_a_full_disk_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    assert found("disk") == []
    monkeypatch.setattr(installation, "GIGABYTES", 1e9)
    (finding,) = found("disk")
    assert "free disk space must be at least 1e+09 GB, got " in finding.what


# ----------------------------------------------------------------------------------------------------------- tracking


def test_a_damaged_locked_or_outdated_database_is_reported(
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
    (path.parent / "mlflow.db.broken").write_bytes(b"another one")
    (finding,) = found("MLflow")
    assert finding.remedy == f"mv {path} {path}.broken.2 && python -m pipeline sync --all-commits"
    path.write_bytes(whole)

    monkeypatch.setattr(tracking, "SECONDS", 0.5)
    with sqlite3.connect(path) as writer:
        writer.execute("BEGIN IMMEDIATE")
        (finding,) = found("MLflow")
        assert "locked by another process for 0.5 s" in finding.what
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


def test_a_server_that_is_down_broken_or_hanging_is_reported(
    project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    project(IRIS)
    monkeypatch.setattr(tracking, "SECONDS", 0.5)

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


# ---------------------------------------------------------------------------------------------------------------- DVC


@pytest.fixture
def built(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of one stage, which writes {} to models/train/model.json."""
    monkeypatch.setenv("PATH", environment()["PATH"])
    shutil.copytree(once(tmp_path_factory, "tiny", tiny), tmp_path / "project", symlinks=True)
    monkeypatch.chdir(tmp_path / "project")
    return Path.cwd()


def objects() -> list[Path]:
    """The list of the folder's files, and the file, in the cache."""
    return sorted(Path(".dvc/cache/files/md5").glob("*/*"), key=lambda path: path.suffix, reverse=True)


def written(path: Path, content: bytes) -> None:
    path.chmod(0o644)  # DVC's cache is read-only
    path.write_bytes(content)


def test_without_a_repository_only_that_is_reported(built: Path) -> None:
    shutil.rmtree(".git")
    (Path("dvc.lock")).write_text("{")  # whatever it holds
    examined = dict(checks.examine())
    assert examined["repository"] == [Finding("this folder is not in a git repository", "git init")]
    assert {name for name, findings in examined.items() if findings is None} == checks.NEED_REPOSITORY
    said = call(built, sys.executable, "-m", "pipeline", "doctor", status=1)
    assert "skip  dvc.lock\n" in said
    assert "rm dvc.lock" not in said


def test_a_whole_lock_that_dvc_refuses_is_not_called_damaged(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "CHECKS", {"dvc.lock": checks.CHECKS["dvc.lock"]})
    Path(".gitignore").write_text("dvc.lock\n")
    ((_, findings),) = checks.examine()
    assert findings is not None
    (finding,) = findings
    assert finding.what == f"cannot be checked: FileIsGitIgnored: '{built / 'dvc.lock'}' is git-ignored."
    assert finding.remedy == "fix the other problems first, then run the doctor again"


TORN = "dvc.lock", "cache", "outputs", "remotes", "bundles"


@pytest.mark.parametrize(
    "sum_of_all",
    [
        "ab/../../../../../../victim",
        pytest.param("ab/../../../../../../victim.dir", marks=pytest.mark.slow),
        pytest.param("AB" * 16, marks=pytest.mark.slow),
    ],
)
def test_an_invalid_checksum_never_becomes_a_path(built: Path, sum_of_all: str) -> None:
    lock, victim = Path("dvc.lock"), built.parent / "victim"
    victim.write_text("x")
    lock.write_text(re.sub(r"(?<=md5: )\w{32}\.dir", sum_of_all, lock.read_text()))
    findings = {name: found(name) for name in TORN}
    assert not any("victim" in finding.remedy for some in findings.values() for finding in some)
    (finding,) = findings["dvc.lock"]
    said = f"the checksum of models/train must be an MD5, got '{sum_of_all}'"
    assert finding == Finding(f"dvc.lock is damaged: {said}", "rm dvc.lock && dvc repro")
    call(built, "bash", "-c", finding.remedy)
    assert found("dvc.lock") == found("cache") == found("outputs") == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "row",
    [
        {"md5": "ab/../../../../../../victim", "relpath": "a"},
        {"md5": "0" * 32, "relpath": "../../victim"},
        {"relpath": "a"},
    ],
)
def test_an_invalid_listing_is_reported_and_not_followed(built: Path, row: dict[str, str]) -> None:
    (built.parent / "victim").write_text("x")
    md5 = in_cache(Path(".dvc/cache"), json.dumps([row]).encode())
    lock = Path("dvc.lock")
    lock.write_text(re.sub(r"(?<=md5: )\w{32}\.dir", md5, lock.read_text()))
    listing = f".dvc/cache/files/md5/{md5[:2]}/{md5[2:]}"
    (damaged,) = found("cache")
    assert damaged == Finding("models/train: damaged in DVC's cache: the listing of its files", f"rm -f {listing}")
    (differs,) = found("outputs")
    for finding in (damaged, differs):
        call(built, "bash", "-c", finding.remedy)
    assert found("dvc.lock") == found("cache") == found("outputs") == []


@pytest.mark.slow
def test_an_output_that_the_cache_lacks_is_moved_aside_and_never_removed(built: Path) -> None:
    model, mine = Path("models/train/model.json"), b'{"mine": 1}'
    from_cache = "rm -r models/train && dvc checkout models/train"
    aside = "mkdir -p .state/broken && mv models/train .state/broken/models-train{} && dvc repro"
    assert [finding.remedy for finding in found("bundles")] == [from_cache]  # {} is no model
    written(model, mine)
    assert [finding.remedy for finding in found("outputs") + found("bundles")] == [from_cache] * 2

    listing, file = objects()
    for n, harm in enumerate(
        [lambda: written(file, b"{]\n"), file.unlink, lambda: written(listing, b"[]"), listing.unlink], start=1
    ):
        harm()
        wanted = aside.format("" if n == 1 else f".{n}")
        assert not any("repro" in finding.remedy for finding in found("cache"))  # it would remove the folder
        (finding,) = found("outputs")
        assert [finding.remedy, *(other.remedy for other in found("bundles"))] == [wanted] * 2
        for each in [*found("cache"), finding]:
            call(built, "bash", "-c", each.remedy)
        assert (model.read_bytes(), found("cache"), found("outputs")) == (b"{}\n", [], [])
        written(model, mine)
    kept = sorted(Path(".state/broken").glob("*/model.json"))
    assert [path.read_bytes() for path in kept] == [mine] * 4

    Path("dvc.lock").unlink()
    assert [finding.remedy for finding in found("bundles")] == [aside.format(".5")]


def test_a_dvc_lock_is_removed_only_if_no_running_dvc_may_hold_it(built: Path) -> None:
    rwlock = Path(".dvc/tmp/rwlock")
    elsewhere = "if machines share this folder, first check that none of them runs dvc"
    sleep = shutil.which("sleep")
    # One that is called dvc, and one that is not.
    with subprocess.Popen(["dvc", "60"], executable=sleep) as dvc, subprocess.Popen(["sleep", "60"]) as other:
        readers = [{"pid": other.pid, "cmd": "dvc repro"}, {"pid": dvc.pid, "cmd": "dvc repro"}]
        rwlock.write_text(json.dumps({"write": {}, "read": {"/x": readers}}))
        assert found("DVC locks") == []
        rwlock.write_text("{")
        (finding,) = found("DVC locks")
        assert finding.remedy == f"wait until dvc, process {dvc.pid}, has ended; then run the doctor again"
        call(built, "dvc", "config", "core.hardlink_lock", "true")
        rwlock.write_text("{}")
        rwlock.with_name("lock").write_text("/x/0.lock")  # as DVC writes it: nobody's name
        assert found("DVC locks") == []
        dvc.kill()
        dvc.wait()

        said = f".dvc/tmp/lock was left by a dvc process that has ended; {elsewhere}"
        assert Finding(said, "rm .dvc/tmp/lock") in found("DVC locks")
        call(built, "bash", "-c", "rm .dvc/tmp/*lock && dvc config --unset core.hardlink_lock")
        rwlock.write_text(json.dumps({"write": {}, "read": {"/x": readers}}))
        said = f".dvc/tmp/rwlock names process {other.pid}, which is not dvc; {elsewhere}"
        assert found("DVC locks") == [Finding(said, "rm .dvc/tmp/rwlock")]
        other.kill()
    rwlock.write_text("{")
    (finding,) = found("DVC locks")
    assert finding == Finding(f".dvc/tmp/rwlock is damaged, and DVC refuses to run; {elsewhere}", "rm .dvc/tmp/rwlock")


# ------------------------------------------------------------------------------------------------ what this project keeps


def test_running_stages_unsent_runs_and_stale_checkpoints_are_reported(
    project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, host = project(IRIS), socket.gethostname()
    assert found(".state") == []
    current, stale = (
        folder / ".state/checkpoints/fetch" / identity.state("fetch")[2],
        folder / ".state/checkpoints/fetch/0",
    )
    for path in (current, stale, folder / ".state/checkpoints/fetch/1"):
        path.mkdir(parents=True)
    os.utime(stale, (0, 0))
    (finding,) = found(".state")
    assert finding.remedy == "rm -r .state/checkpoints/fetch/0"
    call(folder, "bash", "-c", finding.remedy)
    assert found(".state") == []
    root = folder / journal.JOURNALS
    refused = journal.begin(root, "fetch", "0")
    refused.append("run", status=None)
    refused.quarantine("a reason")
    (finding,) = found(".state")
    assert finding.what == "runs refused by MLflow: 1"
    assert finding.remedy.startswith("repair .state/refused/*, move it back to .state/runs and run ")
    shutil.rmtree(folder / journal.REFUSED)
    journal.begin(root, "fetch", "0").append("run", status=None)
    (finding,) = found(".state")
    assert finding.remedy == "python -m pipeline sync"
    with locks.only_one("train"):
        (finding,) = found(".state")
        assert finding.what == f"stage train is running here as process {os.getpid()}"
        assert finding.remedy == f"wait for it, or end it with kill {os.getpid()}"
        monkeypatch.setattr(socket, "gethostname", lambda: "another")
        (finding,) = found(".state")
        assert finding.what == f"stage train is running on {host} as process {os.getpid()}"
        assert finding.remedy == "wait for it, or end it there"
