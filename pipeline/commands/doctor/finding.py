"""A finding, and the words and commands that findings are made of."""

import itertools
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

INSTALL = "python -m pip install --constraint constraints.txt"
BROKEN = Path(".state/broken")  # where a remedy puts what may be the only copy


@dataclass(frozen=True)
class Finding:
    """What is wrong, and the remedy: a command, where there is one."""

    what: str
    remedy: str


def output_of(*command: str) -> str | None:
    """What a command prints; None if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def shown(path: Path) -> str:
    """A path as it can be typed here."""
    here = Path.cwd()
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))


def some(names: dict[str, Any]) -> str:
    return ", ".join(list(names)[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def free(path: Path) -> str:
    """A name for what is moved aside, so that nothing is written over."""
    tries = itertools.chain([path], (Path(f"{path}.{n}") for n in itertools.count(2)))
    return shlex.quote(str(next(file for file in tries if not file.exists())))
