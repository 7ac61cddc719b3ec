"""Stages as processes of their own, to be killed: forks of this one, which has imported all they need."""

import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from pipeline.runtime import launch
from pipeline.training import checkpoints

OUTPUT = {
    "prepare": Path("data/prepared"),
    "train": Path("models/train"),
    "finetune": Path("models/finetune"),
    "search": Path("models/search"),
    "register": Path("models/champion"),
}
FORK = multiprocessing.get_context("fork")


def started(stage: str, before: Callable[[], object] = lambda: None) -> multiprocessing.process.BaseProcess:
    """`stage` in the current folder as DVC starts it: its output is gone, its process leads a group of its own."""
    if stage in OUTPUT:
        shutil.rmtree(OUTPUT[stage], ignore_errors=True)

    def work() -> None:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have had it ignored
        sys.stdout = sys.stderr = Path("log.txt").open("a", buffering=1)  # noqa: SIM115
        checkpoints.SECONDS, checkpoints.SHARE = 0.0, 1e9  # at the end of each epoch, since these are short
        before()
        launch.main([stage])

    process = FORK.Process(target=work)
    process.start()
    return process


def ended(process: multiprocessing.process.BaseProcess, within: float = 120.0) -> int:
    """The status of the process, which has to end by itself."""
    process.join(within)
    assert process.exitcode is not None, f"still running after {within:g} s"
    return process.exitcode


def finished(stage: str, before: Callable[[], object] = lambda: None) -> float:
    """Run `stage` to its end; the seconds it took."""
    begun = time.monotonic()
    status = ended(started(stage, before))
    assert status == 0, Path("log.txt").read_text()[-2000:]
    return time.monotonic() - begun


def killed(stage: str, seconds: float, number: signal.Signals = signal.SIGKILL, group: bool = False) -> int:
    """Start `stage`, send it a signal after so many seconds, and wait for its end; its status."""
    process = started(stage)
    process.join(seconds)
    if process.exitcode is None:
        assert process.pid is not None
        (os.killpg if group else os.kill)(process.pid, number)
    return ended(process, 30.0)


def checkpoints_of(stage: str) -> list[Path]:
    return list(Path(".state/checkpoints", stage).glob("*/*.safetensors"))


def killed_at_a_checkpoint(stage: str, seconds: float = 0.0) -> None:
    """Start `stage`, and kill it so many seconds after its first checkpoint."""
    process = started(stage)
    while not checkpoints_of(stage):
        assert process.exitcode is None, "ended without a checkpoint"
        time.sleep(0.002)
    time.sleep(seconds)
    process.kill()
    assert ended(process, 30.0) == -signal.SIGKILL


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def running_here(folder: Path) -> list[int]:
    """Processes other than this one whose current folder is `folder`."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").resolve() == folder.resolve() and int(process.name) != os.getpid():
                found.append(int(process.name))
        except OSError:
            continue  # it has ended
    return found
