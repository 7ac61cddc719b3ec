"""Look up objects of DVC: the files of an output as in dvc.lock, each verified by checksum."""

import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

from pipeline.tracking.identity import checksum
from pipeline.tracking.runs import files_of

MD5 = re.compile(r"[0-9a-f]{32}(\.dir)?")
LISTING = "the listing of its files"


def is_checksum(md5: object) -> bool:
    """True for a checksum as DVC writes it: it becomes part of a path, and dvc.lock is untrusted."""
    return isinstance(md5, str) and MD5.fullmatch(md5) is not None


def is_inside(name: object) -> bool:
    """True for a relative path that does not leave its folder."""
    path = Path(name) if isinstance(name, str) else Path()
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def read_listing(listing: Path, md5: str) -> dict[str, str] | None:
    """The checksums of a folder's files by name; None if the listing is missing, damaged or not written by DVC."""
    if not listing.is_file() or checksum(listing) + ".dir" != md5:
        return None
    try:
        found = {row["relpath"]: row["md5"] for row in json.loads(listing.read_bytes())}
    except (ValueError, KeyError, TypeError):
        return None
    return found if all(is_inside(name) and is_checksum(one) for name, one in found.items()) else None


def checksums(path: Path) -> dict[str, str]:
    """The checksum of each file of a folder by relative name, or of a single file under the empty name."""
    if path.is_file():
        return {"": checksum(path)}
    return {name: checksum(file) for name, file in files_of(path).items()}


def stored(md5: str, store: Path) -> Path:
    """The path of an object in a store: DVC's cache, or a remote that is a folder."""
    return store / md5[:2] / md5[2:]


def stored_checksums(md5: str, store: Path) -> dict[str, str]:
    """The checksums of an output's objects by file name; the empty name is the output itself."""
    return {"": md5} | (read_listing(stored(md5, store), md5) or {})


def unsound(md5: str, store: Path) -> tuple[dict[str, Path], bool]:
    """Hash each object of an output in a store; returns the damaged ones by name, and True if any is missing."""
    damaged, lacks_any = {}, False
    for name, one in stored_checksums(md5, store).items():
        path = stored(one, store)
        if not path.exists():
            lacks_any = True
        elif checksum(path) != one.removesuffix(".dir"):
            damaged[name or "the object itself"] = path
        elif one.endswith(".dir") and read_listing(path, one) is None:
            damaged[LISTING] = path
    return damaged, lacks_any


def damaged_objects(store: Path) -> list[Path]:
    """The objects of a store whose content differs from their names."""
    named = {path: path.parent.name + path.name for path in sorted(store.glob("[0-9a-f][0-9a-f]/*"))}
    return [path for path, md5 in named.items() if is_checksum(md5) and checksum(path) != md5.removesuffix(".dir")]


def differs(path: Path, md5: str) -> bool:
    """True if `path` exists with another content than dvc.lock has."""
    return path.exists() and checksum(path) != md5


def locked_checksums(path: Path, md5: str) -> dict[str, str] | None:
    """The checksums, as in `checksums`, of the output `path` when it had the checksum `md5`; None if unknown."""
    if not is_checksum(md5):
        return None
    if not md5.endswith(".dir"):
        return {"": md5}
    found = read_listing(_cached(md5), md5)
    return checksums(path) if found is None and path.is_dir() and checksum(path) == md5 else found


def locked_file(path: Path, md5: str) -> Path | None:
    """A file with the checksum `md5`, in the cache or at `path`; None if neither has it."""
    return next((place for place in (_cached(md5), path) if place.is_file() and checksum(place) == md5), None)


def locked_files(path: Path, md5: str) -> dict[str, Path] | None:
    """The files of an output when it had the checksum `md5`, by name as in `checksums`; None if any is missing."""
    files = {name: locked_file(path / name, one) for name, one in (locked_checksums(path, md5) or {}).items()}
    found = {name: file for name, file in files.items() if file is not None}
    return found if found and len(found) == len(files) else None


def _cached(md5: str) -> Path:
    return stored(md5, cache_folder(Path.cwd()))


@cache
def cache_folder(project: Path) -> Path:
    """The folder of the objects in DVC's cache, by `.dvc/config` and the user's own configuration."""
    command = (sys.executable, "-m", "dvc", "cache", "dir")
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    return project / (done.stdout.strip() or ".dvc/cache") / "files/md5"
