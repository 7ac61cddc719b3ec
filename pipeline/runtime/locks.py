"""Locks that prevent two processes from running one stage in the same folder."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from pipeline.core.errors import UserError

FOLDER = Path(".state/locks")  # relative: each DVC experiment has a folder of its own
SECONDS = 1.0  # enough for the holder to write its process id, and for `held` to release a lock


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock, possibly on another machine that shares the folder."""

    pid: str
    host: str

    @property
    def place(self) -> str:
        machine = "here" if self.host == socket.gethostname() else f"on {self.host or 'another machine'}"
        return f"{machine} as process {self.pid}"

    @property
    def end(self) -> str:
        return f"with kill {self.pid}" if self.host == socket.gethostname() else "there"


@contextmanager
def only_one(stage: str) -> Iterator[None]:
    """Hold the lock of a stage; raises `UserError` naming the process that holds it, such as a stage left by a killed `dvc`."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{stage}.lock"
    lock = FileLock(path)
    try:
        lock.acquire(timeout=SECONDS)
    except Timeout:
        first = _holder(path)
        remedy = f"wait for it, or end it {first.end}; then run dvc repro"
        raise UserError(f"stage {stage} is still running {first.place}: {remedy}") from None
    try:
        path.write_text(f"{os.getpid()} {socket.gethostname()}", encoding="utf-8")
        yield
    finally:
        lock.release()


def held() -> dict[str, Holder]:
    """Return the stages that are running in this folder, and their processes."""
    running = {}
    for path in sorted(FOLDER.glob("*.lock")):
        try:
            with FileLock(path, timeout=0):
                pass
        except Timeout:
            running[path.stem] = _holder(path)
    return running


def _holder(path: Path) -> Holder:
    pid, _, host = path.read_text(encoding="utf-8").partition(" ")
    return Holder(pid, host)
