"""Identify a stage execution: its key, the checksums of its dependencies, its commit and the project folder."""

import hashlib
import json
import os
import subprocess
from collections.abc import Mapping
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

from pathspec import GitIgnoreSpec
from ruamel.yaml import YAML

from pipeline.core.config import flatten


def project_root() -> Path:
    """The root of the repository, also from the temporary copy in which a queued DVC experiment runs."""
    return Path(os.environ.get("DVC_ROOT") or Path.cwd()).resolve()


def stage_entry(stage: str) -> dict[str, Any]:
    """Collect what DVC compares to decide if a stage is stale: its parameters and the checksums of its dependencies.

    Shape: {"params": {dotted name: value}, "deps": {path: md5}}, as in dvc.lock.
    """
    name, _, item = stage.partition("@")
    declared, params = (
        YAML(typ="safe", pure=True).load(Path(file).read_text(encoding="utf-8")) for file in ("dvc.yaml", "params.yaml")
    )
    declared = declared["stages"][name]
    watched = {key: reduce(getitem, key.split("."), params) for key in declared.get("params", [])}
    deps = [str(dep).replace("${item.model}", item) for dep in declared.get("deps", [])]
    return {"params": flatten(watched), "deps": {dep: checksum(Path(dep)) for dep in deps}}


def state(stage: str) -> tuple[Path, str, str]:
    """The folder of all checkpoints, and the stage and key that identify those of one stage in it."""
    return project_root() / ".state/checkpoints", stage, stage_key(stage_entry(stage))


def stage_key(entry: Mapping[str, Any]) -> str:
    """Hash a stage entry: equal keys mean equal work."""
    return hashlib.sha256(json.dumps(entry, sort_keys=True, default=str).encode()).hexdigest()[:32]


def checksum(path: Path) -> str:
    """The checksum that dvc.lock has for a file, or for a folder (computed from the checksums of its files)."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "md5").hexdigest()
    dvcignore = Path(".dvcignore")  # its patterns are relative to the project, as are all dependencies
    lines = dvcignore.read_text(encoding="utf-8").splitlines() if dvcignore.exists() else []
    ignored = GitIgnoreSpec.from_lines(lines)
    files = (file for file in path.rglob("*") if file.is_file() and not ignored.match_file(file))
    found = sorted((file.relative_to(path).as_posix(), file) for file in files)
    listing = [{"md5": checksum(file), "relpath": name} for name, file in found]
    return hashlib.md5(json.dumps(listing, sort_keys=True).encode()).hexdigest() + ".dir"


def experiment() -> str:
    """The name of the DVC experiment that runs; empty if none does."""
    return os.environ.get("DVC_EXP_NAME", "")


def origin() -> dict[str, str]:
    """Tags for the commit, uncommitted changes, and the DVC experiment if there is one."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    # DVC rewrites dvc.lock between stages: only the user's edits count, and only in this project.
    dirty = str(bool(git("status", "--porcelain", "-uno", "--", ".", ":(exclude)dvc.lock"))).lower()
    tags = {"git.commit": git("rev-parse", "HEAD"), "git.dirty": dirty, "dvc.exp": experiment()}
    return {name: value for name, value in tags.items() if value}
