"""Faults around DVC: two at once, one killed, torn files, flipped bytes; the remedies of the doctor repair them."""

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.commands.doctor import checks
from pipeline.commands.doctor.finding import Finding
from pipeline.core.errors import UserError
from pipeline.networks.bundle import load_bundle
from pipeline.runtime import locks
from tests.support.clones import call, clone, environment, keep_stages
from tests.support.params import IRIS
from tests.support.shared import once
from tests.support.tally import Tally

STAGES = ("fetch", "prepare", "train")
OUTPUTS = ("data/raw", "data/prepared", "models/train")
ABOUT_DVC = ("dvc.lock", "DVC locks", "cache", "outputs", "remotes", "bundles")


@pytest.fixture(scope="session")
def reproduced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone with the first stages only, built and committed: one for all workers of pytest."""

    def make(folder: Path) -> None:
        clone(folder, IRIS)
        keep_stages(folder, *STAGES)
        call(folder, "dvc", "repro")
        call(folder, "git", "add", "--all")
        call(folder, "git", "commit", "--quiet", "--message", "built")

    return once(tmp_path_factory, "reproduced", make)


@pytest.fixture
def copy(reproduced: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Path]:
    """Enters another copy of the built clone each time, and returns its folder."""
    numbers = iter(range(1000))
    monkeypatch.setenv("PATH", environment()["PATH"])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def another() -> Path:
        folder = tmp_path / str(next(numbers))
        subprocess.run(["cp", "--archive", str(reproduced), str(folder)], check=True)
        monkeypatch.chdir(folder)
        return folder

    return another


def content(folder: Path) -> dict[str, bytes]:
    """dvc.lock and all that its stages wrote."""
    files = [file for path in OUTPUTS for file in (folder / path).rglob("*") if file.is_file()]
    return {str(file.relative_to(folder)): file.read_bytes() for file in [*files, folder / "dvc.lock"]}


def found() -> list[Finding]:
    return [finding for name in ABOUT_DVC for finding in checks.CHECKS[name]()]


def mended(folder: Path, like: Path) -> None:
    """Run every remedy; then no problem is found, and no stage is stale."""
    for finding in found():
        call(folder, "bash", "-c", finding.remedy)
    assert found() == []
    assert "up to date" in call(folder, "dvc", "status")
    assert content(folder) == content(like)


def flip(path: Path, rng: random.Random) -> None:
    mode = path.stat().st_mode
    path.chmod(0o644)
    whole = bytearray(path.read_bytes())
    whole[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
    path.write_bytes(whole)
    path.chmod(mode)  # DVC trusts what is read-only in its cache


def test_all_checks_pass_in_a_sound_project(copy: Callable[[], Path]) -> None:
    assert call(copy(), "python", "-m", "pipeline", "doctor").endswith("\nall checks passed\n")


# ---------------------------------------------------------------------------------------------------- two at once


@contextmanager
def training(folder: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """`dvc repro` that trains from nothing, halted in the middle of its stage; the process of DVC, and of the stage."""
    shutil.rmtree(folder / ".dvc/cache/runs")  # or DVC would have the result from there,
    lock = (folder / "dvc.lock").read_text()
    (folder / "dvc.lock").write_text(lock[: lock.index("\n  train:\n") + 1])  # or from its cache
    shutil.rmtree(folder / "models/train")
    with subprocess.Popen(["dvc", "repro"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as dvc:
        limit = time.monotonic() + 60
        while not (held := locks.held()):
            assert dvc.poll() is None, dvc.communicate()
            assert time.monotonic() < limit
            time.sleep(0.05)
        stage = int(held["train"].pid)
        os.kill(stage, signal.SIGSTOP)
        try:
            yield dvc, stage
        finally:
            if locks.held():
                os.kill(stage, signal.SIGCONT)


def test_a_second_repro_is_refused_and_the_first_ends_unchanged(
    copy: Callable[[], Path], reproduced: Path, tally: Tally
) -> None:
    for _ in range(tally.times(1, 10)):
        folder = copy()
        with tally.trial("two repros"):
            with training(folder) as (dvc, stage):
                said = call(folder, "dvc", "repro", status=255)
                (error,) = (line for line in said.splitlines() if line.startswith("ERROR: "))
                assert error.endswith(" is busy, it is being blocked by:")  # DVC's own words, and in the next line:
                assert f"(PID {dvc.pid}): " in said
                assert "Traceback" not in said
                os.kill(stage, signal.SIGCONT)
                assert dvc.wait(120) == 0
            assert content(folder) == content(reproduced)


def test_a_stage_whose_dvc_was_killed_blocks_the_next_repro(
    copy: Callable[[], Path], reproduced: Path, tally: Tally
) -> None:
    for _ in range(tally.times(1, 10)):
        folder = copy()
        with tally.trial("SIGKILL of dvc alone"):
            with training(folder) as (dvc, stage):
                dvc.kill()
                dvc.wait()
                said = call(folder, "dvc", "repro", status=255).splitlines()
                errors = [line for line in said if line.startswith("error: ")]
                assert errors == [
                    f"error: stage train is still running here as process {stage}: "
                    f"wait for it, or end it with kill {stage}; then run dvc repro"
                ]
                assert "Traceback" not in "".join(said)
                os.kill(stage, signal.SIGCONT)
            limit = time.monotonic() + 60
            while locks.held():
                assert time.monotonic() < limit, "the stage went on for ever"
                time.sleep(0.05)
            call(folder, "dvc", "repro")
            assert content(folder) == content(reproduced)


# ---------------------------------------------------------------------------------------------------- torn files


def test_a_torn_rwlock_is_named_and_removed(copy: Callable[[], Path], reproduced: Path, tally: Tally) -> None:
    folder = copy()
    path = folder / ".dvc/tmp/rwlock"
    whole = '{"write": {"/x/models/train": {"pid": 4194304, "cmd": "dvc repro"}}, "read": {}}'
    rng = random.Random(0)
    for cut in [rng.randrange(len(whole)) for _ in range(tally.times(1, 15))]:
        path.write_text(whole[:cut])
        with tally.trial("torn rwlock"):
            assert "rwlock" in call(folder, "dvc", "repro", status=255)
            assert [finding.remedy for finding in found()] == ["rm .dvc/tmp/rwlock"]
            mended(folder, reproduced)
        path.unlink(missing_ok=True)


def test_an_rwlock_with_a_reused_process_id_is_removed(
    copy: Callable[[], Path], reproduced: Path, tally: Tally
) -> None:
    folder = copy()
    with subprocess.Popen(["sleep", "600"]) as other:
        text = '{"write": {"%s/models/train": {"pid": %d, "cmd": "dvc repro"}}, "read": {}}'
        (folder / ".dvc/tmp/rwlock").write_text(text % (folder, other.pid))
        with tally.trial("torn rwlock"):
            call(folder, "dvc", "repro", "--force", "--single-item", "train", status=255)
            assert [finding.remedy for finding in found()] == ["rm .dvc/tmp/rwlock"]
            mended(folder, reproduced)
        other.kill()


def test_the_content_of_the_dvc_lock_does_not_matter(copy: Callable[[], Path], tally: Tally) -> None:
    folder = copy()
    for text in ("", "\0" * 100):
        (folder / ".dvc/tmp/lock").write_text(text)
        with tally.trial("torn tmp/lock"):
            assert found() == []
            assert "up to date" in call(folder, "dvc", "status")


def test_a_hard_linked_lock_of_a_dvc_that_has_ended_is_named_and_removed(
    copy: Callable[[], Path], reproduced: Path, tally: Tally
) -> None:
    folder = copy()
    call(folder, "dvc", "config", "core.hardlink_lock", "true")
    for text in ("", "/x/.dvc/tmp/lock|host|4194304|123"):
        (folder / ".dvc/tmp/lock").write_text(text)
        with tally.trial("torn tmp/lock"):
            assert "Unable to acquire lock" in call(folder, "dvc", "status", status=255)
            assert "rm .dvc/tmp/lock" in [finding.remedy for finding in found()]
            mended(folder, reproduced)


def test_a_torn_dvc_lock_is_found_and_restored(copy: Callable[[], Path], reproduced: Path, tally: Tally) -> None:
    folder = copy()
    path = folder / "dvc.lock"
    whole = path.read_bytes()
    lines = [place + 1 for place, byte in enumerate(whole) if byte == ord("\n")]
    rng = random.Random(1)
    cuts = [0, lines[-2], rng.choice(lines[:-2])]
    cuts += [rng.randrange(len(whole)) for _ in range(tally.times(0, 15))]
    for cut in cuts:
        path.write_bytes(whole[:cut])
        with tally.trial("torn dvc.lock"):
            assert found()
            mended(folder, reproduced)
        path.write_bytes(whole)


# -------------------------------------------------------------------------------------------------- flipped bytes


def test_a_flipped_byte_in_a_bundle_is_refused_by_name(
    copy: Callable[[], Path], reproduced: Path, tally: Tally
) -> None:
    folder = copy()
    rng = random.Random(2)
    for trial in range(tally.times(100, 3000)):
        path = Path("models/train") / ("model.safetensors", "model.json", "history.csv")[trial % 3]
        whole = path.read_bytes()
        flip(path, rng)
        with tally.trial("flipped byte in a bundle"), pytest.raises(UserError, match=rf"^{path.parent}"):
            load_bundle(path.parent)
        path.write_bytes(whole)
    flip(path, rng)
    with tally.trial("flipped byte in a bundle"):
        assert any(str(path) in finding.what for finding in found())
        mended(folder, reproduced)


def objects(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob("files/md5/*/*") if file.stat().st_size)


def test_a_flipped_byte_in_the_cache_is_found_although_dvc_reports_none(
    copy: Callable[[], Path], reproduced: Path, tally: Tally
) -> None:
    folder = copy()
    rng = random.Random(3)
    for trial in range(tally.times(1, 15)):
        path = rng.choice(objects(folder / ".dvc/cache"))
        flip(path, rng)
        with tally.trial("flipped byte in DVC's cache"):
            if trial % 2 == 0 and path.suffix != ".dir":  # and what came from it into the working folder
                shutil.rmtree(folder / "models/train")
                shutil.rmtree(folder / "data")
                call(folder, "git", "checkout", "--", "data")
                call(folder, "dvc", "checkout")
            if path.suffix != ".dir":  # from a damaged list DVC may hear of a change, or end in a KeyError
                assert "up to date" in call(folder, "dvc", "status")
            assert any(str(path.relative_to(folder)) in finding.remedy for finding in found())
            mended(folder, reproduced)


def test_a_flipped_byte_in_a_remote_is_found_and_pushed_again(
    copy: Callable[[], Path], reproduced: Path, tmp_path: Path, tally: Tally
) -> None:
    folder, remote = copy(), tmp_path / "remote"
    call(folder, "dvc", "remote", "add", "--default", "team", str(remote))
    call(folder, "dvc", "push")
    before = {path: path.read_bytes() for path in objects(remote)}
    rng = random.Random(4)
    for _ in range(tally.times(1, 15)):
        path = rng.choice(objects(remote))
        flip(path, rng)
        with tally.trial("flipped byte in a remote"):
            (finding,) = found()
            assert "in the remote team" in finding.what
            mended(folder, reproduced)
            assert {path: path.read_bytes() for path in objects(remote)} == before
    shutil.rmtree(remote)
    with tally.trial("a remote whose folder is gone"):
        (finding,) = found()
        mended(folder, reproduced)
        assert {path: path.read_bytes() for path in objects(remote)} == before
