"""A finding of the doctor, and functions to word it."""

import itertools
import shlex
import subprocess
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

INSTALL = "python -m pip install --constraint constraints.txt"
BROKEN = Path(".state/broken")  # where a remedy moves what may be the only copy


@dataclass(frozen=True)
class Finding:
    """A problem, and its remedy: a command, where there is one."""

    what: str
    remedy: str


def output_of(*command: str) -> str | None:
    """The output of a command; None if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def first_line(error: Exception) -> str:
    return (str(error).strip() or "no message").splitlines()[0]


def shown(*paths: Path) -> str:
    """Paths as arguments of a shell command in the current folder."""
    here = Path.cwd()
    return shlex.join(str(path.relative_to(here) if path.is_relative_to(here) else path) for path in paths)


def some(names: Collection[str]) -> str:
    return ", ".join(list(names)[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def free(path: Path) -> str:
    """An unused name to move a file to, so that nothing is overwritten."""
    tries = itertools.chain([path], (Path(f"{path}.{n}") for n in itertools.count(2)))
    return shlex.quote(str(next(file for file in tries if not file.exists())))
