"""Stages killed, interrupted and terminated at random moments, then run again: the bytes equal those of an undisturbed run."""

import importlib
import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from ruamel.yaml import YAML
from safetensors.numpy import load, save

from pipeline.core import config, files
from tests.faults.stages import (
    OUTPUT,
    checkpoints_of,
    content,
    ended,
    finished,
    killed,
    killed_at_a_checkpoint,
    running_here,
    started,
)
from tests.support.chain import CHAIN
from tests.support.runs import own, replay
from tests.support.tally import Tally

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


RESUMED = ("train", "finetune", "search")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("template") / "project"


@pytest.fixture
def ready(project: Callable[..., Path], template: Path) -> Path:
    """A small project in which all stages have run once."""
    folder = project(WORK)
    if not template.exists():
        for stage in CHAIN:
            importlib.import_module(
                f"pipeline.stages.{stage.partition('@')[0]}.stage"
            )  # here, so that each fork has it
            finished(stage)
        shutil.copytree(folder, template, ignore=shutil.ignore_patterns("pipeline"))
    shutil.copytree(template, folder, dirs_exist_ok=True)
    return folder


def again(stage: str) -> dict[str, bytes]:
    """Run the stage again and return its output; it must resume if and only if it has checkpoints."""
    are_there = bool(checkpoints_of(stage))
    Path("log.txt").write_text("")
    finished(stage)
    assert ("resumes after epoch" in Path("log.txt").read_text()) == are_there
    assert not list(Path(".state/checkpoints").glob("*/*"))
    return content(OUTPUT[stage])


def runs_are_whole(folder: Path, stage: str, n: int) -> None:
    """MLflow has `n` runs of the stage or more, each finished, with each step and each trial once."""
    replay(folder)
    client = MlflowClient(own(folder))
    experiment = client.get_experiment_by_name("nycflights")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id], max_results=50_000)
    executions = [run for run in found if run.info.run_name == stage]
    assert len(executions) >= n
    for run in executions:
        assert run.info.status == "FINISHED"
        if stage in RESUMED:
            steps = [point.step for point in client.get_metric_history(run.info.run_id, "val/loss")]
            assert steps == list(range(1, len(steps) + 1))
            assert len(steps) == len((OUTPUT[stage] / "history.csv").read_text().splitlines()) - 1
        if stage == "search":
            trials = [each for each in found if each.data.tags.get("mlflow.parentRunId") == run.info.run_id]
            assert sorted(int(each.data.tags["trial"]) for each in trials) == list(range(8))


@pytest.mark.parametrize("stage", ["prepare", "train", "finetune", "search", "register"])
def test_a_stage_killed_at_any_moment_and_run_again_writes_the_same_bytes(ready: Path, tally: Tally, stage: str):
    whole, draws = finished(stage), random.Random(stage)
    undisturbed = content(OUTPUT[stage])
    times = tally.times(quick=2, torture=50)
    for k in range(times):
        with tally.trial(f"SIGKILL of {stage}"):
            if k == 0 and stage in RESUMED:
                killed_at_a_checkpoint(stage)
            for _ in range(draws.choice((1, 1, 2))):  # now and then twice
                while killed(stage, draws.uniform(0, whole)) != -signal.SIGKILL:
                    whole *= 0.9  # it had ended by then: try earlier
            assert again(stage) == undisturbed
    runs_are_whole(ready, stage, times + 1)


@pytest.mark.parametrize(
    ("name", "number", "group", "status"),
    [
        ("Ctrl-C to the group", signal.SIGINT, True, 130),
        ("SIGTERM", signal.SIGTERM, False, 143),
        ("SIGTERM to the group", signal.SIGTERM, True, 143),
    ],
)
def test_a_terminated_stage_ends_soon_with_its_workers_and_resumes_later(
    ready: Path, tally: Tally, name: str, number: signal.Signals, group: bool, status: int
):
    for stage in ("train", "search"):
        whole, draws = finished(stage), random.Random(stage)
        undisturbed = content(OUTPUT[stage])
        for _ in range(tally.times(quick=1, torture=15)):
            with tally.trial(f"{name} of {stage}"):
                begun, moment = time.monotonic(), draws.uniform(0.2, 0.8) * whole
                while (found := killed(stage, moment, number, group)) == 0:  # it was over by then
                    whole *= 0.9
                    begun, moment = time.monotonic(), draws.uniform(0.2, 0.8) * whole
                assert found == status
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
def test_a_stage_killed_at_any_step_of_writing_a_file_resumes(
    ready: Path, tally: Tally, what: str, name: str, quick: list[int], all_of_them: range
):
    undisturbed = content(OUTPUT["train"])
    for step in quick if tally.times(0, 1) == 0 else all_of_them:
        with tally.trial(f"SIGKILL inside the write of a {what}"):
            assert ended(started("train", Dying(name, step))) == -signal.SIGKILL
            assert again("train") == undisturbed


def run_beside_others(stage: str) -> dict[str, bytes]:
    """Run the stage beside checkpoints of another key, which it must not use, and return its output."""
    assert checkpoints_of(stage)
    Path("log.txt").write_text("")
    finished(stage)
    assert "resumes after" not in Path("log.txt").read_text()
    assert checkpoints_of(stage)  # whose params or data may come back
    shutil.rmtree(Path(".state/checkpoints"))
    return content(OUTPUT[stage])


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
            assert "checkpoints disabled" in Path("log.txt").read_text()
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


def test_other_parameters_do_not_resume(ready: Path, tally: Tally):
    config.adopt({"train": {"lr": 0.002}})
    finished("train")
    other = content(OUTPUT["train"])
    for k in range(tally.times(quick=1, torture=20)):
        with tally.trial("resume refused when params changed"):
            config.adopt({"train": {"lr": 0.003}})
            killed_at_a_checkpoint("train", 0.01 * k)
            config.adopt({"train": {"lr": 0.002}})
            assert run_beside_others("train") == other


def test_other_data_do_not_resume(ready: Path, tally: Tally):
    path = Path("data/prepared/source/train.safetensors")
    here, table = path.read_bytes(), load(path.read_bytes())
    changed = save(table | {"y": np.roll(table["y"], 1)})  # of the same shape: a wrong checkpoint would fit
    path.write_bytes(changed)
    finished("train")
    other = content(OUTPUT["train"])
    for k in range(tally.times(quick=1, torture=20)):
        with tally.trial("resume refused when data changed"):
            path.write_bytes(here)
            killed_at_a_checkpoint("train", 0.01 * k)
            path.write_bytes(changed)
            assert run_beside_others("train") == other


def test_a_diverged_loss_ends_in_one_line_each_time(ready: Path, tally: Tally):
    yaml = YAML()
    values = yaml.load(Path("params.yaml").read_text())
    values["train"] |= {"lr": 1e9, "optimizer": "sgd", "schedule": "constant"}
    Path("params.yaml").write_text(config.dump_yaml(values, yaml))
    for _ in range(tally.times(quick=2, torture=20)):  # the second finds what the first left
        with tally.trial("NaN loss"):
            Path("log.txt").write_text("")
            assert ended(started("train")) == 1
            (line,) = [line for line in Path("log.txt").read_text().splitlines() if line.startswith("error")]
            assert "became NaN or infinite" in line
            assert not (OUTPUT["train"] / "model.json").exists()
