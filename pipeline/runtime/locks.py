"""A stage runs once at a time in a folder: whoever comes second is told who was first."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from pipeline.core.errors import UserError

FOLDER = Path(".state/locks")  # of the current folder: an experiment of DVC has one of its own
SECONDS = 1.0  # in which a first one has written its process id, and `held` has let go of what it tried


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock. Machines may share a folder: what a number means, only its own one knows."""

    pid: str
    host: str

    @property
    def is_here(self) -> bool:
        return self.host == socket.gethostname()

    @property
    def place(self) -> str:
        place = "here" if self.is_here else f"on {self.host or 'another machine'}"
        return f"{place} as process {self.pid}"

    @property
    def end(self) -> str:
        return f"with kill {self.pid}" if self.is_here else "there"


@contextmanager
def only_one(stage: str) -> Iterator[None]:
    """Hold the lock of a stage, which ends with this process however that ends.

    Raises `UserError` naming the process that holds it. DVC killed alone leaves its stage running: with a second one
    beside it, the files of both would be mixed.
    """
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{stage}.lock"
    lock = FileLock(path)
    try:
        lock.acquire(timeout=SECONDS)
    except Timeout:
        first = _holder(path)
        raise UserError(
            f"stage {stage} is still running {first.place}: wait for it, or end it {first.end}; then dvc repro"
        ) from None
    try:
        path.write_text(f"{os.getpid()} {socket.gethostname()}", encoding="utf-8")
        yield
    finally:
        lock.release()


def held() -> dict[str, Holder]:
    """The stages that run in this folder, with their processes."""
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
