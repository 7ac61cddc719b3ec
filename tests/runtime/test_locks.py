"""A stage runs once at a time in a folder."""

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.core.errors import UserError
from pipeline.runtime import locks

HOLD = """
import time
from pipeline.runtime import console, locks

def main():
    with locks.only_one("train"):
        print("running", flush=True)
        time.sleep(60)

console.run(main)
"""

# A search whose one trial takes a minute, in two real workers.
SEARCH = """
import time, types
import torch
from pipeline.runtime import console, locks
from pipeline.stages.search import workers

class Work:
    train = types.SimpleNamespace(y=torch.zeros(1))
    def __call__(self, stack, until):
        print("running", flush=True)
        time.sleep(60)

def main():
    trial = types.SimpleNamespace(config=types.SimpleNamespace(model=types.SimpleNamespace(hidden=[1])))
    with locks.only_one("search"), workers.workers(Work(), 2) as run:
        list(run([[trial]], 1))

console.run(main)
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def started(code: str) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "running\n"
    return process


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_the_second_is_refused_in_one_line_that_names_the_first() -> None:
    with started(HOLD) as first:
        assert locks.held() == {"train": locks.Holder(str(first.pid), socket.gethostname())}
        second = subprocess.run([sys.executable, "-c", HOLD], capture_output=True, text=True, check=False)
        assert second.returncode == 1
        assert second.stdout == ""
        pid = first.pid
        assert second.stderr == (
            f"error: stage train is still running here as process {pid}: wait for it, or end it with kill {pid}; "
            "then run dvc repro\n"
        )
        first.terminate()
    with locks.only_one("train"):
        assert locks.held()["train"].pid == str(os.getpid())
    assert locks.held() == {}


def test_the_second_is_not_advised_to_kill_a_process_of_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    host = socket.gethostname()
    with locks.only_one("train"):
        monkeypatch.setattr(socket, "gethostname", lambda: "another")
        said = f"stage train is still running on {host} as process {os.getpid()}: wait for it, or end it there; then run dvc repro"
        with pytest.raises(UserError, match=f"^{re.escape(said)}$"), locks.only_one("train"):
            pass


def test_stages_and_folders_do_not_wait_for_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with locks.only_one("evaluate@train"):
        with locks.only_one("evaluate@search"):
            assert set(locks.held()) == {"evaluate@train", "evaluate@search"}
        with pytest.raises(UserError, match="stage evaluate@train is still running"), locks.only_one("evaluate@train"):
            pass
        (tmp_path / "experiment").mkdir()
        monkeypatch.chdir(tmp_path / "experiment")
        with locks.only_one("evaluate@train"):
            assert set(locks.held()) == {"evaluate@train"}


def test_the_lock_ends_with_its_process_and_is_kept_by_no_worker_of_a_search() -> None:
    with started(SEARCH) as process:
        workers = children(process.pid)
        assert workers
        process.kill()
        process.wait()
        begun = time.monotonic()
        with locks.only_one("search"):
            assert time.monotonic() - begun < 10  # nothing is waited for
        while any(Path(f"/proc/{worker}/cwd").exists() for worker in workers):
            assert time.monotonic() - begun < 30, "workers outlive the search"
            time.sleep(0.05)
