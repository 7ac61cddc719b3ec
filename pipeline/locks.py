"""A stage runs once at a time in a folder: whoever comes second is told who was first."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from pipeline.errors import UserError

FOLDER = Path(".state/locks")  # of the current folder: an experiment of DVC has one of its own
SECONDS = 1.0  # in which a first one has written its process id, and `held` has let go of what it tried


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
        pid = path.read_text(encoding="utf-8")
        raise UserError(
            f"stage {stage} is still running here as process {pid}: wait for it, or end it with kill {pid}; then dvc repro"
        ) from None
    try:
        path.write_text(str(os.getpid()), encoding="utf-8")
        yield
    finally:
        lock.release()


def held() -> dict[str, str]:
    """The stages that run here, with their process ids."""
    running = {}
    for path in sorted(FOLDER.glob("*.lock")):
        try:
            with FileLock(path, timeout=0):
                pass
        except Timeout:
            running[path.stem] = path.read_text(encoding="utf-8")
    return running
