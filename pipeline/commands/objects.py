"""Files as dvc.lock has them, in DVC's cache or in the working tree; never one that differs from its sum."""

import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

from pipeline.tracking.identity import content

SUM = re.compile(r"[0-9a-f]{32}(\.dir)?")


def is_sum(md5: object) -> bool:
    """Whether DVC could have written it: a sum becomes part of a path, and dvc.lock may be somebody else's."""
    return isinstance(md5, str) and SUM.fullmatch(md5) is not None


def is_inside(name: object) -> bool:
    """Whether a name stays in the folder that it is said to be in."""
    path = Path(name) if isinstance(name, str) else Path()
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def listed(listing: Path, md5: str) -> dict[str, str] | None:
    """The sums of the files of a folder, by the object that lists them; None if that is missing, damaged or not DVC's."""
    if not listing.is_file() or content(listing) + ".dir" != md5:
        return None
    try:
        found = {row["relpath"]: row["md5"] for row in json.loads(listing.read_bytes())}
    except (ValueError, KeyError, TypeError):
        return None
    # A commit of somebody else's may list what DVC would not.
    return found if all(is_inside(name) and is_sum(one) for name, one in found.items()) else None


def sums(path: Path) -> dict[str, str]:
    """The MD5 of each file of a folder by its name in it; of a file, under the empty name."""
    if path.is_file():
        return {"": content(path)}
    return {file.relative_to(path).as_posix(): content(file) for file in sorted(path.rglob("*")) if file.is_file()}


def locked_sums(path: Path, md5: str) -> dict[str, str] | None:
    """As `sums`, of the output at `path` as it was when it had the sum `md5`; None if nobody knows any more."""
    if not is_sum(md5):
        return None
    if not md5.endswith(".dir"):
        return {"": md5}
    found = listed(_cached(md5), md5)
    return sums(path) if found is None and path.is_dir() and content(path) == md5 else found


def locked_file(path: Path, md5: str) -> Path | None:
    """Where the file is that stood at `path` and has the sum `md5`; None if it is nowhere."""
    return next((place for place in (_cached(md5), path) if place.is_file() and content(place) == md5), None)


def locked_files(path: Path, md5: str) -> dict[str, Path] | None:
    """The files of an output as it was, by name as in `sums`; None if one of them is nowhere."""
    files = {name: locked_file(path / name, one) for name, one in (locked_sums(path, md5) or {}).items()}
    found = {name: file for name, file in files.items() if file is not None}
    return found if found and len(found) == len(files) else None


def _cached(md5: str) -> Path:
    return _cache_folder(Path.cwd()) / "files/md5" / md5[:2] / md5[2:]


@cache
def _cache_folder(project: Path) -> Path:
    """Where `.dvc/config` and the user's own configuration put the cache of a project."""
    command = (sys.executable, "-m", "dvc", "cache", "dir")
    said = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    return project / (said.stdout.strip() or ".dvc/cache")
