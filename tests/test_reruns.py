"""A stage reruns when something changes that its outputs follow, and for nothing else: asked of DVC itself."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from pipeline.core.config import dump_yaml, flatten
from tests.support.clones import call, clone

# What each parameter is for, said once more and apart from dvc.yaml: the stages whose outputs follow it. `data` goes to
# prepare and register as a whole, since its keys may be left out of params.yaml.
FITTING = {"train", "finetune", "search"}
FOLLOWS = {
    "seed": FITTING | {"prepare", "baseline", "register"},
    "device": FITTING,
    "threads": FITTING | {"baseline", "evaluate"},
    "portable": FITTING | {"prepare", "baseline", "evaluate"},
    "data": {"prepare", "register"},
    "data.source": {"fetch", "prepare", "register"},
    "data.csv": {"fetch", "prepare", "register"},
    "data.transfer": {"fetch", "prepare", "register"},
    "data.task": {"prepare", "register", "search"},
    "model": {"train", "search"},
    "train": FITTING,
    "train.preset": FITTING | {"prepare"},
    "finetune": {"finetune"},
    "search": {"search"},
    "register": {"register"},
    "tracking": set[str](),
}
# The stages that a room's code decides the outputs of: an edit in it reruns these, and no other.
READ_BY = {
    "core": {"fetch", "prepare", "baseline", "train", "finetune", "search", "evaluate", "register"},
    "tables": {"fetch", "prepare", "baseline", "train", "finetune", "search", "evaluate", "register"},
    "sources": {"fetch"},
    "networks": {"baseline", "train", "finetune", "search", "evaluate", "register"},
    "training": {"train", "finetune", "search"},
    "evaluation": {"baseline", "evaluate"},
    "stages/fetch": {"fetch"},
    "stages/prepare": {"prepare"},
    "stages/baseline": {"baseline"},
    "stages/train": {"train"},
    "stages/finetune": {"finetune"},
    "stages/search": {"search"},
    "stages/evaluate": {"evaluate"},
    "stages/register": {"register"},
    "stages": set[str](),  # what starts a stage
    "tracking": set[str](),  # what is logged, and how it gets to MLflow
    "runtime": set[str](),  # console, locks, launch
    "commands": set[str](),  # doctor, sync, verify, predict, ui
    "": set[str](),
}
# Makes each edit on standard input in turn, and prints the stages for which DVC finds a dependency changed.
ASK = """
import json, sys
from functools import cache
from pathlib import Path
from dvc.dependency import param
from dvc.repo import Repo

load_path = param.load_path
parsed = cache(lambda path, text: load_path(path, repo.fs))
param.load_path = lambda path, fs: parsed(path, Path(path).read_text())  # once an edit, not once a stage
with Repo() as repo, repo.lock:
    deps = [(stage.addressing, Path(dep.fs_path), dep) for stage in repo.index.stages for dep in stage.deps]
    for name, text in json.load(sys.stdin):
        path = Path(name).resolve()
        before = path.read_text() if path.exists() else None
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        found = [stage for stage, place, dep in deps if place in (path, *path.parents) and dep.workspace_status()]
        print(json.dumps(found))
        path.unlink() if before is None else path.write_text(before)
"""
STAGES = {"fetch", "prepare", "baseline", "train", "finetune", "search", "evaluate", "register"}


def reruns(folder: Path, edits: list[tuple[str, str]]) -> list[set[str]]:
    """The stages, without what stands behind @, that each edit of a file would rerun."""
    done = subprocess.run(
        [sys.executable, "-c", ASK], cwd=folder, input=json.dumps(edits), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return [{stage.partition("@")[0] for stage in json.loads(line)} for line in done.stdout.splitlines()]


def other(value: Any) -> Any:
    """Another value: DVC compares them and asks for no sense."""
    match value:
        case bool():
            return not value
        case int() | float():
            return value + 1
        case str():
            return value + "x"
        case list():
            return [*value, 1]
    return {"x": 1} if isinstance(value, dict) else 1


@pytest.mark.slow
def test_a_stage_reruns_for_what_its_outputs_follow_and_for_nothing_else(tmp_path: Path) -> None:
    folder = clone(tmp_path / "clone", {})
    yaml = YAML(typ="safe", pure=True)
    for stage in yaml.load((folder / "dvc.yaml").read_text())["stages"].values():
        for out in stage["outs"]:
            for model in stage.get("matrix", {"model": [""]})["model"]:
                path = folder / out.replace("${item.model}", model)
                path.mkdir(parents=True, exist_ok=True)
                (path / "made").write_text("once")
    call(folder, "dvc", "commit", "--force")  # as if all stages had run

    params = (folder / "params.yaml").read_text()
    edits: list[tuple[str, str]] = []
    expected: list[set[str]] = []

    def expect(path: str, text: str, stages: set[str]) -> None:
        edits.append((path, text))
        expected.append(stages)

    leaves = flatten(yaml.load(params))
    for name, value in leaves.items():
        changed = yaml.load(params)
        section = changed
        *sections, key = _keys(name, changed)
        for part in sections:
            section = section[part]
        section[key] = other(value)
        nearest = max((known for known in FOLLOWS if f"{name}.".startswith(f"{known}.")), key=len)
        expect("params.yaml", dump_yaml(changed, YAML(typ="safe", pure=True)), FOLLOWS[nearest])
    expect("params.yaml", "# a remark\n" + params, set())
    expect("README.md", "changed", set())
    expect("tests/tables/test_raw.py", "changed", set())
    expect("notes.txt", "new", set())
    expect("data/source/more.csv", "a\n1\n", {"fetch"})

    pins = (folder / "constraints.txt").read_text()
    for pin in re.findall("^.+==.+$", pins, re.MULTILINE):
        expect("constraints.txt", pins.replace(pin, f"{pin}.1", 1), STAGES)
    for path in sorted((folder / "pipeline").rglob("*.py")):
        expect(str(path.relative_to(folder)), path.read_text() + "\n# changed", READ_BY[_room(path, folder)])
    for room, stages in READ_BY.items():  # a new module is a change too; what Python and editors leave is none
        if (folder / "pipeline" / room).is_dir():
            expect(f"pipeline/{room}/new.py", "", stages)
            expect(f"pipeline/{room}/__pycache__/old.cpython-311.pyc", "", set())
            expect(f"pipeline/{room}/.stage.py.swp", "", set())

    found = reruns(folder, edits)
    assert "up to date" in call(folder, "dvc", "status")  # each edit was taken back, and DVC looks at nothing else
    assert len(found) == len(edits) > 150
    wrong = [
        (edit[0], edit[1][-60:], got, wanted)
        for edit, got, wanted in zip(edits, found, expected, strict=True)
        if got != wanted
    ]
    assert not wrong


def _room(path: Path, folder: Path) -> str:
    """The longest key of READ_BY that the folder of a module lies in."""
    inside = path.relative_to(folder / "pipeline").parent.as_posix().removeprefix(".")
    return max((room for room in READ_BY if f"{inside}/".startswith(f"{room}/" if room else "")), key=len)


def _keys(name: str, values: Any) -> list[str]:
    """A dotted name to the keys on its way: those of search.space hold dots themselves."""
    if not name:
        return []
    for key in values:
        if name == key or name.startswith(f"{key}."):
            return [key, *_keys(name[len(key) + 1 :], values[key])]
    raise KeyError(name)
