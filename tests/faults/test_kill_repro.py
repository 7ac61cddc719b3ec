"""`dvc repro` and its stage killed together, as by a power cut, or interrupted by Ctrl-C, then run again."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.clones import call, clone, environment
from tests.support.tally import Tally

SLOW = {
    "data.source": "sklearn:breast_cancer",
    "data.target": "target",
    "data.task": "binary",
    "model.ensemble": 1,
    "train.epochs": 300,
    "train.overfit": None,
}
REPRO = ("dvc", "repro", "--no-run-cache", "train")  # whose cache would give back the output without training


def repro_until_a_checkpoint(folder: Path, more: float, number: signal.Signals) -> None:
    """Start `dvc repro train`; send the signal to it and its children `more` seconds after their first checkpoint."""
    command = ["env", "--default-signal=INT", *REPRO]  # a shell may have had it ignored
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=environment(), stdout=log, stderr=log, start_new_session=True
        )
        until = time.monotonic() + 120
        while not list(folder.glob(".state/checkpoints/train/*/network.safetensors")):
            assert process.poll() is None, (folder / "log.txt").read_text()
            assert time.monotonic() < until
            time.sleep(0.05)
        time.sleep(more)
        os.killpg(process.pid, number)
        assert process.wait(30) != 0


@pytest.mark.parametrize(
    ("fault", "number"),
    [("SIGKILL of dvc repro and its stage", signal.SIGKILL), ("Ctrl-C at dvc repro", signal.SIGINT)],
)
def test_repro_ended_in_training_resumes_from_its_checkpoint_to_the_same_lock(
    tmp_path: Path, tally: Tally, fault: str, number: signal.Signals
):
    folder = clone(tmp_path / "clone", SLOW)
    call(folder, *REPRO)
    lock = (folder / "dvc.lock").read_text()
    for k in range(tally.times(quick=1, torture=10)):
        with tally.trial(fault):
            (folder / "dvc.lock").unlink()
            repro_until_a_checkpoint(folder, 0.1 * k, number)
            said = call(folder, *REPRO)
            assert "resumes after epoch" in said
            assert (folder / "dvc.lock").read_text() == lock
            assert not list(folder.glob(".state/checkpoints/train/*"))
