"""An output folder that cannot be written: one line, and nothing torn."""

import multiprocessing
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.core.errors import UserError
from pipeline.networks.bundle import load_bundle
from pipeline.runtime import console
from pipeline.stages.fetch import stage as fetch_stage
from pipeline.stages.prepare import stage as prepare_stage
from pipeline.stages.train import stage as train_stage
from tests.faults import disks
from tests.support.tally import Tally

OUTPUT = Path("models/train")


@pytest.fixture
def prepared(project: Callable[..., Path]) -> Path:
    folder = project({"data.source": "sklearn:iris", "data.target": "target", "data.task": "multiclass"})
    fetch_stage.main()
    prepare_stage.main()
    return folder


def trained(before: Callable[[], object]) -> tuple[int | None, list[str], dict[str, bytes]]:
    """Train in a process of its own: its status, its errors, and what it wrote, which it alone may see."""

    def work() -> None:
        with Path("log.txt").open("w", buffering=1) as log:
            sys.stdout = sys.stderr = log
            before()
            try:
                console.run(train_stage.main)
            finally:
                shutil.rmtree("after", ignore_errors=True)
                shutil.copytree(OUTPUT, "after")

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(120)
    errors = [line for line in Path("log.txt").read_text().splitlines() if line.startswith(("error: ", "Traceback"))]
    files = [file for file in Path("after").rglob("*") if file.is_file()]
    return process.exitcode, errors, {str(file.relative_to("after")): file.read_bytes() for file in files}


def test_a_full_or_read_only_output_ends_in_one_line_and_leaves_nothing_torn(prepared: Path, tally: Tally) -> None:
    status, errors, whole = trained(lambda: None)
    assert (status, errors) == (0, [])
    total = sum(len(content) for content in whole.values())
    rng = random.Random(0)
    trials: list[tuple[str, Callable[[], object]]] = [("read-only output", lambda: disks.read_only(OUTPUT))]
    for _ in range(tally.times(2, 50)):
        size = rng.randrange(4096, total)
        trials.append(("full disk at an output", lambda size=size: disks.small(OUTPUT, size)))  # type: ignore[misc]
    for fault, spoil in trials:
        shutil.rmtree(OUTPUT, ignore_errors=True)
        with tally.trial(fault):
            status, errors, after = trained(spoil)
            assert status == 1
            (error,) = errors
            assert error.startswith(f"error: {OUTPUT}")
            assert " cannot be written or read: " in error
            assert after.items() <= whole.items()
            with pytest.raises(UserError, match="is not a bundle"):
                load_bundle(Path("after"))
    shutil.rmtree(OUTPUT)
    assert trained(lambda: None) == (0, [], whole)
