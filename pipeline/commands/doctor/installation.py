"""Check programs, packages, parameters and disk space."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from pipeline.commands.doctor.finding import INSTALL, Finding, output_of
from pipeline.core.errors import UserError

GIGABYTES = 1.0  # that a run may need


def programs() -> Iterator[Finding]:
    activate = "source .venv/bin/activate"
    if sys.version_info < (3, 11):  # noqa: UP036  # pip would refuse it, a PYTHONPATH does not
        yield Finding(f"Python must be 3.11 or newer, got {sys.version.split()[0]}", "make PYTHON=python3.11")
    for name in ("git", "dvc"):
        if shutil.which(name) is None:
            yield Finding(f"{name} is not on the PATH", activate if name == "dvc" else "install git")
    prefix = output_of("python", "-c", "import sys; print(sys.prefix)") if shutil.which("python") else None
    if prefix != sys.prefix:
        yield Finding(f"the python on the PATH, which runs the stages, must be in {sys.prefix}, got {prefix}", activate)


def packages() -> Iterator[Finding]:
    import tomllib
    from importlib.metadata import PackageNotFoundError, requires, version

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    needed: set[str] = set()
    todo = list(tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"])
    wrong = {}
    while todo:
        requirement = Requirement(todo.pop())
        name = canonicalize_name(requirement.name)
        if name in needed or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        needed.add(name)
        try:
            todo += requires(name) or []
        except PackageNotFoundError:
            wrong[name] = f"{name} is missing"
    for pin in Path("constraints.txt").read_text(encoding="utf-8").split():
        package, _, pinned = pin.partition("==")
        try:
            found = version(package)
        except PackageNotFoundError:
            continue  # reported above if it is needed
        if found.partition("+")[0] != pinned:  # the version of torch's CPU wheel is 2.13.0+cpu
            name = canonicalize_name(package)
            wrong[name] = f"{name} must be {pinned}, got {found}"
    if wrong:
        yield Finding("; ".join(wrong.values()), f"{INSTALL} {' '.join(wrong)}")


def torch_works() -> Iterator[Finding]:
    import torch

    found = (torch.ones(2, 3) @ torch.ones(3, 2)).sum().item()
    if found != 12.0:
        remedy = f"{INSTALL} --force-reinstall --no-deps torch"
        yield Finding(f"a matrix product in torch must be 12, got {found}", remedy)


def repository() -> Iterator[Finding]:
    if output_of("git", "rev-parse", "--is-inside-work-tree") != "true":
        yield Finding("this folder is not in a git repository", "git init")
    if not Path(".dvc/config").is_file():
        yield Finding("this folder is not a DVC repository", "dvc init")


def params() -> Iterator[Finding]:
    from pipeline.core import config

    try:
        config.load()
    except UserError as error:
        yield Finding(str(error), "edit that line, or discard your changes with git checkout -- params.yaml")


def disk() -> Iterator[Finding]:
    free = shutil.disk_usage(".").free / 1e9
    if free < GIGABYTES:
        message = f"free disk space must be at least {GIGABYTES:g} GB, got {free:.2f} GB"
        yield Finding(message, "dvc gc --all-commits --all-experiments")
