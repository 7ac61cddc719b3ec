"""Clones of the repository, to run commands in as a user does."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from ruamel.yaml import YAML

from pipeline.core import config
from tests.support.imports import ROOT
from tests.support.params import write_params


def environment() -> dict[str, str]:
    """This environment with its programs first, and nothing that would lead elsewhere than to the clone."""
    here = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    return {k: v for k, v in here.items() if k not in {"DVC_ROOT", "DVC_STAGE", "MLFLOW_TRACKING_URI"}}


def call(folder: Path, *command: str, status: int = 0) -> str:
    """Run a command in the clone with this environment's programs; its output."""
    done = subprocess.run(
        command, cwd=folder, env=environment(), capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def clone(folder: Path, changes: Mapping[str, object]) -> Path:
    """A clone of what is committed, with the working tree's files over it, small parameters, and a commit of its own."""
    call(folder.parent, "git", "clone", "--quiet", str(ROOT), str(folder))
    tracked = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in tracked.stdout.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    write_params(folder, changes)
    (folder / "dvc.lock").unlink(missing_ok=True)
    call(folder, "git", "config", "user.name", "test")
    call(folder, "git", "config", "user.email", "test@example.org")
    call(folder, "git", "add", "--all")
    call(folder, "git", "commit", "--quiet", "--message", "a project of its own")
    return folder


def keep_stages(folder: Path, *names: str) -> None:
    """Leave only these stages in dvc.yaml."""
    path = folder / "dvc.yaml"
    stages = YAML(typ="safe", pure=True).load(path.read_text())["stages"]
    path.write_text(config.dump_yaml({"stages": {name: stages[name] for name in names}}))
