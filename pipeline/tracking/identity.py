"""What a stage stands on: its key, the sums of its inputs, the commit, and where in the project state is kept."""

import hashlib
import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pathspec import GitIgnoreSpec
from ruamel.yaml import YAML

from pipeline.core.config import flatten


def project_root() -> Path:
    """The folder of the repository, also from the temporary copy in which a queued DVC experiment runs."""
    return Path(os.environ.get("DVC_ROOT") or Path.cwd()).resolve()


def stage_entry(stage: str) -> dict[str, Any]:
    """What DVC looks at to decide whether the stage is up to date: its params and its deps, with their content.

    Shape: {"params": {dotted name: value}, "deps": {path: md5}}, as dvc.lock has it.
    """
    name, _, item = stage.partition("@")
    declared = YAML(typ="safe", pure=True).load(Path("dvc.yaml").read_text(encoding="utf-8"))["stages"][name]
    params = YAML(typ="safe", pure=True).load(Path("params.yaml").read_text(encoding="utf-8"))
    flat: dict[str, Any] = {}
    for wanted in declared.get("params", []):
        value = params
        for key in wanted.split("."):
            value = value[key]
        flat |= flatten({wanted: value})
    deps = [str(dep).replace("${item.model}", item) for dep in declared.get("deps", [])]
    return {"params": flat, "deps": {dep: content(Path(dep)) for dep in deps}}


def state(stage: str) -> tuple[Path, str, str]:
    """Where checkpoints are kept, and the name and key that those of a stage stand under."""
    return project_root() / ".state/checkpoints", stage, stage_key(stage_entry(stage))


def stage_key(entry: Mapping[str, Any]) -> str:
    """A hash of what `stage_entry` found: the same key, the same work."""
    return hashlib.sha256(json.dumps(entry, sort_keys=True, default=str).encode()).hexdigest()[:32]


def content(path: Path) -> str:
    """The sum that dvc.lock has for a file, or for a folder (of the sums of its files)."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "md5").hexdigest()
    ignored = _dvcignore()
    files = (file for file in path.rglob("*") if file.is_file() and not ignored.match_file(file))
    found = sorted((file.relative_to(path).as_posix(), file) for file in files)
    listing = [{"md5": content(file), "relpath": name} for name, file in found]
    return hashlib.md5(json.dumps(listing, sort_keys=True).encode()).hexdigest() + ".dir"


def _dvcignore() -> GitIgnoreSpec:
    """What DVC leaves out of a folder: a path matches relative to the project, as all deps are given."""
    path = Path(".dvcignore")
    return GitIgnoreSpec.from_lines(path.read_text(encoding="utf-8").splitlines() if path.exists() else [])


def origin() -> dict[str, str]:
    """The commit, whether files differ from it, and the DVC experiment if there is one."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    tags = {
        "git.commit": git("rev-parse", "HEAD"),
        "git.dirty": str(bool(git("status", "--porcelain", "-uno"))).lower(),
    }
    tags["dvc.exp"] = os.environ.get("DVC_EXP_NAME", "")
    return {name: value for name, value in tags.items() if value}
