"""Stages killed, interrupted and terminated at random moments, and then run again: the bytes are those of a run undisturbed."""

import importlib
import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from pipeline import config, files
from tests.faults.conftest import Tally
from tests.faults.stages import OUTPUT, content, ended, finished, killed, running_here, started
from tests.test_stages import CHAIN

WORK = {
    "data.source": "sklearn:breast_cancer",
    "data.target": "target",
    "data.task": "binary",
    "data.transfer": {"column": "mean texture", "values": [14.23, 14.36, 15.39, 16.85, 18.05, 18.9, 19.83, 20.52]},
    "model.ensemble": 2,
    "train.epochs": 25,
    "train.overfit": None,
    "finetune.epochs": 15,
    "search.n_trials": 8,
    "search.epochs": 9,
    "search.workers": 2,
}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("template") / "project"


@pytest.fixture
def ready(project: Callable[..., Path], template: Path) -> Path:
    """A small project in which all stages have run once."""
    folder = project(WORK)
    if not template.exists():
        for stage in CHAIN:
            importlib.import_module(f"pipeline.stages.{stage.partition('@')[0]}")  # here, so that each fork has it
            finished(stage)
        shutil.copytree(folder, template, ignore=shutil.ignore_patterns("pipeline"))
    shutil.copytree(template, folder, dirs_exist_ok=True)
    return folder


def again(stage: str) -> dict[str, bytes]:
    finished(stage)
    return content(OUTPUT[stage])


@pytest.mark.parametrize("stage", ["prepare", "train", "finetune", "search", "register"])
def test_a_stage_killed_at_any_moment_and_run_again_writes_the_same_bytes(ready: Path, tally: Tally, stage: str):
    whole, draws = finished(stage), random.Random(stage)
    undisturbed = content(OUTPUT[stage])
    for _ in range(tally.times(quick=2, torture=50)):
        with tally.trial(f"SIGKILL of {stage}"):
            for _ in range(draws.choice((1, 1, 2))):  # now and then twice
                while killed(stage, draws.uniform(0, whole)) != -signal.SIGKILL:
                    whole *= 0.9  # it was over by then, and the next one begins anew
            assert again(stage) == undisturbed
            assert not list(Path(".state/checkpoints").glob("*/*"))


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stage_told_to_end_ends_soon_with_its_workers_and_goes_on_later(
    ready: Path, tally: Tally, number: signal.Signals, status: int
):
    name = {signal.SIGINT: "Ctrl-C to the group", signal.SIGTERM: "SIGTERM"}[number]
    for stage in ("train", "search"):
        whole, draws = finished(stage), random.Random(stage)
        undisturbed = content(OUTPUT[stage])
        for _ in range(tally.times(quick=1, torture=15)):
            with tally.trial(f"{name} of {stage}"):
                begun = time.monotonic()
                moment = draws.uniform(0.2, 0.8) * whole
                found = killed(stage, moment, number, group=number == signal.SIGINT)
                assert found in (status, 0)
                assert time.monotonic() - begun < moment + 10
                left = time.monotonic() + 3
                while running_here(ready) and time.monotonic() < left:
                    time.sleep(0.05)
                assert not running_here(ready)
                assert again(stage) == undisturbed


class Dying:
    """Kills this process at the n-th of the steps in which files called `name` are written.

    These are before and after flushing, where half of it is there, and before and after renaming.
    """

    def __init__(self, name: str, step: int) -> None:
        self.name, self.left = name, step

    def __call__(self) -> None:
        flush, replace = files._flush, Path.replace

        def counted(work: Callable[..., object]) -> Callable[..., object]:
            def step(path: Path, *arguments: object) -> object:
                self._step(path, half=work is flush)
                done = work(path, *arguments)
                self._step(path)
                return done

            return step

        files._flush, Path.replace = counted(flush), counted(replace)  # type: ignore[assignment, method-assign]

    def _step(self, path: Path, half: bool = False) -> None:
        self.left -= path.name == self.name
        if self.left <= 0:
            if half:
                os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("what", "name", "quick", "all_of_them"),
    [
        ("checkpoint", "network.safetensors", [2, 17], range(1, 65)),
        ("bundle", "model.safetensors", [1], range(1, 5)),
        ("bundle", "model.json", [2], range(1, 5)),
        ("bundle", "history.csv", [], range(1, 5)),
    ],
)
def test_a_stage_killed_at_any_step_of_writing_a_file_goes_on(
    ready: Path, tally: Tally, what: str, name: str, quick: list[int], all_of_them: range
):
    undisturbed = content(OUTPUT["train"])
    for step in quick if tally.times(0, 1) == 0 else all_of_them:
        with tally.trial(f"SIGKILL inside the write of a {what}"):
            assert ended(started("train", Dying(name, step))) == -signal.SIGKILL
            assert again("train") == undisturbed


def small_files(size: int) -> Callable[[], None]:
    """Files cannot grow beyond `size` bytes: what a full disk does, where it is known."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_a_disk_too_full_for_checkpoints_changes_no_byte(ready: Path, tally: Tally):
    bundle = content(OUTPUT["train"])
    largest = max(len(each) for each in bundle.values())
    for _ in range(tally.times(quick=1, torture=20)):
        with tally.trial("disk full at the checkpoint"):
            # A checkpoint holds weights, the best ones and the optimiser's memory; a database grows by pages.
            Path("log.txt").write_text("")
            finished("train", small_files(max(largest + 1, Path("mlflow.db").stat().st_size + 2**20)))
            assert "no checkpoints from here on" in Path("log.txt").read_text()
            assert content(OUTPUT["train"]) == bundle


def test_a_disk_too_full_for_the_bundle_ends_in_one_line_and_leaves_nothing_torn(ready: Path, tally: Tally):
    undisturbed = content(OUTPUT["train"])
    weights = len(undisturbed["model.safetensors"])
    for k in range(tally.times(quick=1, torture=20)):
        with tally.trial("disk full at the bundle"):
            Path("log.txt").write_text("")
            assert ended(started("train", small_files(weights - 1 - 97 * k))) == 1
            errors = [line for line in Path("log.txt").read_text().splitlines() if line.startswith("error")]
            assert len(errors) == 1, errors
            assert "model.safetensors" in errors[0]
            assert "model.safetensors" not in content(OUTPUT["train"])
            assert again("train") == undisturbed


def test_other_parameters_do_not_go_on_from_what_was_interrupted(ready: Path, tally: Tally):
    config.adopt({"train": {"lr": 0.002}})
    whole = finished("train")
    other = content(OUTPUT["train"])
    for k in range(tally.times(quick=1, torture=20)):
        with tally.trial("resume refused when params changed"):
            config.adopt({"train": {"lr": 0.003}})
            killed("train", whole * (0.4 + 0.02 * k))
            config.adopt({"train": {"lr": 0.002}})
            assert again("train") == other


def test_other_data_do_not_go_on_from_what_was_interrupted(ready: Path, tally: Tally):
    path = Path("data/prepared/source/train.safetensors")
    here, changed = path.read_bytes(), path.with_name("test.safetensors").read_bytes()
    path.write_bytes(changed)
    whole = finished("train")
    other = content(OUTPUT["train"])
    for k in range(tally.times(quick=1, torture=20)):
        with tally.trial("resume refused when data changed"):
            path.write_bytes(here)
            killed("train", whole * (0.4 + 0.02 * k))
            path.write_bytes(changed)
            assert again("train") == other


def test_a_loss_that_leaves_the_numbers_ends_in_one_line_each_time(ready: Path, tally: Tally):
    yaml = YAML()
    values = yaml.load(Path("params.yaml").read_text())
    values["train"] |= {"lr": 1e30, "optimizer": "sgd", "schedule": "constant"}
    Path("params.yaml").write_text(config.dump_yaml(values, yaml))
    for _ in range(tally.times(quick=2, torture=20)):  # the second finds what the first left
        with tally.trial("NaN loss"):
            Path("log.txt").write_text("")
            assert ended(started("train")) == 1
            (line,) = [line for line in Path("log.txt").read_text().splitlines() if line.startswith("error")]
            assert "no longer finite" in line
            assert not (OUTPUT["train"] / "model.json").exists()
