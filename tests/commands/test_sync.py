"""Restored runs hold what the runs of the stages held."""

import hashlib
import json
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from filelock import FileLock
from mlflow import MlflowClient

from pipeline.commands import objects
from pipeline.commands.sync import sync
from pipeline.core import config
from pipeline.core.errors import UserError
from pipeline.core.files import write_text
from pipeline.tracking import delivery, identity, store, writer
from pipeline.tracking import journal as journals
from pipeline.tracking.runs import files_of
from pipeline.tracking.store import Progress
from tests.support.chain import lock, run_chain
from tests.support.params import IRIS, write_params
from tests.support.runs import all_runs, forget, runs

# What no output tells: scores of the best epoch and of the overfit check but its losses, and how many parameters all members have.
UNTOLD = ("best/", "parameters/", "overfit/")


def git(*arguments: str) -> None:
    who = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    subprocess.run(["git", *who, *arguments], check=True, capture_output=True)


def to_cache(folder: Path, name: str) -> None:
    """Move an output from the working tree into DVC's cache."""
    cache = folder / ".dvc/cache/files/md5"
    md5 = identity.checksum(Path(name))
    listing = []
    for relative, file in files_of(Path(name)).items():
        one = identity.checksum(file)
        listing.append({"md5": one, "relpath": relative})
        (cache / one[:2]).mkdir(parents=True, exist_ok=True)
        shutil.copy(file, cache / one[:2] / one[2:])
    (cache / md5[:2]).mkdir(parents=True, exist_ok=True)
    (cache / md5[:2] / md5[2:]).write_text(json.dumps(sorted(listing, key=lambda one: one["relpath"])))
    shutil.rmtree(name)


def test_a_lost_database_is_restored_from_dvc(
    finished: Path, database: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = finished
    git("init", "--quiet")
    git("add", "dvc.lock", "params.yaml", "dvc.yaml")
    git("commit", "--quiet", "--message", "results")
    before = runs()
    sync()
    assert runs().keys() == before.keys()
    assert "nothing to restore: 10 of 10 stages have a run" in capsys.readouterr().out
    assert {run.info.run_id for run in runs().values()} == {run.info.run_id for run in before.values()}

    forget(folder, database)
    to_cache(folder, "models/train")
    sync(all_commits=True)  # the commit has the same stages as the working tree, whose champion is the champion
    assert "runs restored: 10\n" in capsys.readouterr().out
    after = runs()
    assert set(after) == set(before)
    shown = subprocess.run(["git", "log", "-1", "--format=%ct"], check=True, capture_output=True, text=True)
    committed = 1000 * int(shown.stdout)
    client = MlflowClient(store.tracking_uri(config.load().tracking))
    for name, was in before.items():
        found = after[name]
        assert found.info.status == "FINISHED"
        if name.startswith("trial"):
            assert found.data.params == was.data.params
            assert "val/accuracy" in found.data.metrics
            assert found.data.tags["mlflow.parentRunId"] == after["search"].info.run_id
            continue
        assert found.data.tags["restored"] == "true"
        assert found.data.tags["stage.key"] == was.data.tags["stage.key"]
        assert len(found.data.tags["git.commit"]) == 40
        assert found.info.start_time == found.info.end_time == committed
        assert found.data.params == was.data.params, name
        told = {metric: value for metric, value in was.data.metrics.items() if not metric.startswith(UNTOLD)}
        assert {metric: found.data.metrics[metric] for metric in told} == pytest.approx(told, rel=1e-5), name
    for loss in ("overfit/train/loss", "overfit/val/loss"):
        assert after["train"].data.metrics[loss] == pytest.approx(before["train"].data.metrics[loss], rel=1e-5)
    history = client.get_metric_history(after["train"].info.run_id, "val/loss")
    assert [point.step for point in history] == [1, 2, 3]
    assert client.get_model_version_by_alias("nycflights-arrival", "champion").version == 1

    sync()
    assert "nothing to restore: 10 of 10 stages have a run" in capsys.readouterr().out
    assert {run.info.run_id for run in runs().values()} == {run.info.run_id for run in after.values()}


@pytest.mark.parametrize(
    "kept",
    [
        None,
        pytest.param("refs/tags/v1", marks=pytest.mark.slow),
        pytest.param("refs/exps/ab/cdef0123456789/ashen-wine", marks=pytest.mark.slow),
    ],
)
def test_runs_of_branches_tags_and_experiments_are_restored(
    project: Callable[..., Path], database: Path, capsys: pytest.CaptureFixture[str], kept: str | None
) -> None:
    folder = project(IRIS)
    git("init", "--quiet")
    git("checkout", "--quiet", "-b", "iris")
    git("add", "params.yaml", "dvc.yaml")
    git("commit", "--quiet", "--message", "before any result")
    git("checkout", "--quiet", "-b", "wine")
    write_params(folder, IRIS | {"data.source": "sklearn:wine"})
    run_chain("fetch")
    lock("fetch")
    to_cache(folder, "data/raw")
    git("add", "dvc.lock")
    git("commit", "--quiet", "--all", "--message", "wine")
    commit = subprocess.run(["git", "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    git("checkout", "--quiet", "iris")
    if kept is not None:
        git("update-ref", kept, commit)
        git("branch", "--quiet", "-D", "wine")
    run_chain("fetch")
    lock("fetch")
    forget(folder, database)
    sync()
    (iris,) = runs().values()
    assert iris.data.params["data.source"] == "sklearn:iris"

    (folder / ".dvc").rename(folder / "elsewhere")
    capsys.readouterr()
    sync(all_commits=True)
    name = "ashen-wine" if "exps" in (kept or "") else commit[:7]
    assert f"runs that lack objects: 1 (fetch of {name}: data/raw); run dvc fetch" in capsys.readouterr().out
    (folder / "elsewhere").rename(folder / ".dvc")
    sync(all_commits=True)
    assert "runs restored: 1\n" in capsys.readouterr().out
    (wine,) = (run for run in all_runs() if run.info.run_id != iris.info.run_id)
    assert wine.data.params["data.source"] == "sklearn:wine"
    assert wine.data.metrics == {"table/rows": 178.0, "table/columns": 14.0}
    assert wine.data.tags["git.commit"] == commit
    assert wine.data.tags.get("dvc.exp") == ("ashen-wine" if "exps" in (kept or "") else None)


def test_a_commit_with_a_damaged_lock_is_skipped(
    project: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    project(IRIS)
    git("init", "--quiet")
    Path("dvc.lock").write_text("<<<<<<< HEAD\n")
    git("add", "params.yaml", "dvc.lock")
    git("commit", "--quiet", "--message", "a conflict")
    run_chain("fetch")
    lock("fetch")
    sync(all_commits=True)
    said = capsys.readouterr().out
    assert "skipped: dvc.lock or params.yaml of " in said
    assert "1 of 1 stages have a run" in said


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("params.yaml", b"data: \xff\n"),
        ("dvc.lock", b"stages: " + b"[" * 1000),
        ("dvc.lock", b"stages: {train@../../x: {}}"),
        ("dvc.lock", b"stages: {fetch: {params: [1]}}"),
    ],
)
def test_a_commit_in_another_format_is_skipped(
    project: Callable[..., Path], capsys: pytest.CaptureFixture[str], file: str, content: bytes
) -> None:
    folder = project(IRIS)
    git("init", "--quiet")
    run_chain("fetch")
    lock("fetch")
    before = {name: (folder / name).read_bytes() for name in ("params.yaml", "dvc.lock")}
    Path(file).write_bytes(content)
    git("add", "params.yaml", "dvc.lock")
    git("commit", "--quiet", "--message", "of another time")
    for name, was in before.items():
        Path(name).write_bytes(was)
    sync(all_commits=True)
    said = capsys.readouterr().out
    assert "skipped: dvc.lock or params.yaml of " in said
    assert "1 of 1 stages have a run" in said


def test_a_stage_with_files_in_another_format_is_skipped_and_not_counted(
    project: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    project(IRIS)
    run_chain("fetch")
    Path("data/prepared").mkdir()
    write_text(Path("reports/data.html"), "<!DOCTYPE html>")
    for content in ("[1]", '"text"', "\xff", "{}", "[" * 100_000):
        Path("data/prepared/schema.json").write_text(content, encoding="latin-1")
        lock("fetch", "prepare")
        sync()
        said = capsys.readouterr().out
        assert "skipped prepare of the working tree: written by another version (" in said, content[:9]
        assert "1 of 2 stages have a run" in said, content[:9]
    assert set(runs()) == {"fetch"}


def test_a_commit_whose_parameters_have_an_empty_section_is_skipped(
    project: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = project(IRIS)
    git("init", "--quiet")
    run_chain("fetch")
    lock("fetch")
    whole = (folder / "params.yaml").read_text()
    locked = json.loads(Path("dvc.lock").read_text())
    locked["stages"]["fetch"]["params"]["params.yaml"] = {"data.source": "sklearn:wine"}
    now = Path("dvc.lock").read_text()
    Path("dvc.lock").write_text(json.dumps(locked))
    Path("params.yaml").write_text("data: null\n")
    git("add", "params.yaml", "dvc.lock")
    git("commit", "--quiet", "--message", "of another time")
    Path("params.yaml").write_text(whole)
    Path("dvc.lock").write_text(now)
    sync(all_commits=True)
    said = capsys.readouterr().out
    assert ": written by another version (" in said
    assert "1 of 2 stages have a run" in said


def test_a_run_that_was_deleted_alone_is_restored_with_each_trial_once(finished: Path) -> None:
    before = runs()
    client = MlflowClient(store.tracking_uri(config.load().tracking))
    client.delete_run(before["search"].info.run_id)
    sync()
    after = runs()  # each name once
    assert set(after) == set(before)
    trials = [run for name, run in after.items() if name.startswith("trial")]
    assert {run.data.tags["mlflow.parentRunId"] for run in trials} == {after["search"].info.run_id}


def test_runs_of_a_deleted_experiment_wait_until_it_is_restored(
    finished: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = runs()
    client = MlflowClient(store.tracking_uri(config.load().tracking))
    experiment = next(iter(before.values())).info.experiment_id
    client.delete_experiment(experiment)
    run_chain("baseline", "search")
    remedy = (
        f"was deleted: mlflow experiments restore -x {experiment} brings it back, or set another tracking.experiment"
    )
    assert remedy in capfd.readouterr().out
    with pytest.raises(UserError, match="mlflow experiments restore"):
        sync()
    assert not (finished / journals.REFUSED).exists()
    client.restore_experiment(experiment)
    sync()
    names = [run.info.run_name for run in all_runs()]
    repeated = {"baseline", "search", *(name for name in before if name.startswith("trial"))}
    assert sorted(names) == sorted([*before, *repeated])


def test_artifacts_of_a_moved_project_are_found_and_written_where_it_is(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = finished.with_name("moved, with spaces and ö")
    finished.rename(folder)
    monkeypatch.chdir(folder)
    run_chain("register")
    client = MlflowClient(store.tracking_uri(config.load().tracking))
    for run in all_runs():
        assert run.info.artifact_uri.startswith(folder.as_uri())
    version = client.get_model_version_by_alias("nycflights-arrival", "champion")
    model = mlflow.pyfunc.load_model(f"models:/{version.name}/{version.version}")
    assert len(model.predict(pd.read_parquet("data/raw/table.parquet").head(3))) == 3
    trained = next(run for run in all_runs() if run.info.run_name == "train")
    artifacts = [Path(file.path).name for file in client.list_artifacts(trained.info.run_id)]
    assert "parameters.csv" in artifacts


def test_a_refused_run_is_quarantined_and_sync_ends_with_an_error(
    project: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = project(IRIS)
    run_chain("fetch")
    lock("fetch")
    journal = journals.begin(folder / journals.JOURNALS, "fetch", "key")
    journal.append("run", name="fetch", experiment="nycflights", tags={})
    journal.append("shiny")
    journal.append("end", status="FINISHED")
    journal.lock.release()
    for said in ("unknown event shiny, written by another version", "1 of 1 stages have a run"):
        with pytest.raises(
            UserError, match=r"runs refused by MLflow: 1; repair \.state/refused/\*, move it back to \.state/runs"
        ):
            sync()
        assert said in capsys.readouterr().out
    shutil.rmtree(folder / journals.REFUSED)
    sync()


def test_journals_locked_by_another_process_end_sync_with_an_error(
    project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = project(IRIS)
    (folder / journals.JOURNALS).mkdir(parents=True)
    monkeypatch.setattr(journals, "LOCK_SECONDS", 0.1)
    with FileLock(folder / journals.JOURNALS / "lock"), pytest.raises(UserError, match="is in use by another process"):
        sync()


def send_at_once(deliveries: list[delivery.Delivery]) -> list[Exception]:
    errors, together = list[Exception](), threading.Barrier(len(deliveries), timeout=60)

    def send(one: delivery.Delivery) -> None:
        try:
            together.wait()
            one.send()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=send, args=(one,)) for one in deliveries]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


@pytest.mark.slow
def test_two_clones_that_restore_the_same_run_make_one_run_with_each_point_once(
    finished: Path, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = finished
    before = set(runs())
    forget(folder, database)

    def twice(writer: writer.Writer, client: MlflowClient) -> None:
        """Send each journal from two processes at once, before either finds a run."""
        for journal in journals.waiting(writer._root):
            shutil.copytree(journal.folder, folder / "clone" / journal.folder.name)
            both = journal, journals.Journal(folder / "clone" / journal.folder.name)
            errors = send_at_once([delivery.Delivery(client, one, Progress()) for one in both])
            for error in errors:  # what both wrote at the same moment
                assert delivery.is_transient(error), error
            for one in both if errors else ():
                delivery.Delivery(client, one, Progress()).send()
            journal.remove()
            journal.lock.release()

    monkeypatch.setattr(writer.Writer, "_replay", twice)
    sync()
    after = runs()
    client = MlflowClient(store.tracking_uri(config.load().tracking))
    assert set(after) == before
    assert {run.info.status for run in after.values()} == {"FINISHED"}
    for run in after.values():
        for metric in run.data.metrics:
            steps = [point.step for point in client.get_metric_history(run.info.run_id, metric)]
            assert len(steps) == len(set(steps)), (run.info.run_name, metric)
    assert [version.version for version in client.search_model_versions()] == [1]


def test_names_that_lead_out_of_an_output_are_not_followed(project: Callable[..., Path]) -> None:
    folder = project(IRIS)
    listing = json.dumps([{"md5": "0" * 32, "relpath": "../../../x"}]).encode()
    md5 = hashlib.md5(listing).hexdigest()
    place = folder / f".dvc/cache/files/md5/{md5[:2]}/{md5[2:]}.dir"
    place.parent.mkdir(parents=True)
    place.write_bytes(listing)
    assert objects.locked_checksums(Path("data/raw"), f"{md5}.dir") is None


def test_a_cached_object_that_differs_from_its_checksum_is_not_used(
    project: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = project(IRIS)
    Path("data/raw").mkdir()
    Path("data/raw/table.parquet").write_bytes(b"x")
    md5 = identity.checksum(Path("data/raw"))
    to_cache(folder, "data/raw")
    next(path for path in folder.glob(".dvc/cache/files/md5/*/*") if path.read_bytes() == b"x").write_bytes(b"y")
    stage = {"deps": [], "params": {"params.yaml": {"seed": 1}}, "outs": [{"path": "data/raw", "md5": md5}]}
    Path("dvc.lock").write_text(json.dumps({"stages": {"fetch": stage}}))
    sync()
    assert "runs that lack objects: 1 (fetch of the working tree: data/raw); run dvc pull" in capsys.readouterr().out
    assert runs() == {}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "run dvc repro"),
        ("stages: [", "of the working tree is damaged"),
        ("stages: 3", "is damaged"),
        ("", "is damaged"),
    ],
)
def test_a_missing_or_damaged_lock_is_reported(project: Callable[..., Path], text: str | None, says: str) -> None:
    project(IRIS)
    if text is not None:
        Path("dvc.lock").write_text(text)
    with pytest.raises(UserError, match=says):
        sync()


def test_a_server_that_does_not_answer_is_named(project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    project(IRIS)
    Path("dvc.lock").write_text(json.dumps({"stages": {"fetch": {"params": {"params.yaml": {"seed": 1}}}}}))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"127\.0\.0\.1:9 does not answer"):
        sync()
