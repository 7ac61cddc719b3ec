"""Checks of outputs, of DVC's cache and of its remotes, object by object."""

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.commands.doctor.finding import BROKEN, Finding, free, shown, some

if TYPE_CHECKING:
    from dvc.output import Output
    from dvc.repo import Repo
    from dvc_data.hashfile.db import HashFileDB

LISTING = "its listing"  # of names or sums that DVC never writes


def cache() -> Iterator[Finding]:
    """DVC checks out a damaged object of its cache, and calls the result clean."""
    repo, missing, told = open_repo(), [], set[Path]()
    fetch = "dvc fetch" if repo.config["core"].get("remote") else ""
    for path, out in locked_outputs():
        damaged, absent = _unsound(out, out.cache)
        # Then `outputs` moves it aside, before dvc repro would remove it.
        kept = bool(damaged or absent) and _differs(path, out)
        if damaged:
            told |= set(damaged.values())
            remedy = f"rm -f {' '.join(map(shown, damaged.values()))}"
            # From a remote the listing would come back as it was.
            remedy += f"; {fetch}" if fetch and LISTING not in damaged else ""
            remedy += "" if kept else "; dvc repro"
            yield Finding(f"{path}: {some(damaged)} in DVC's cache is damaged", remedy)
        if absent and not kept:
            missing.append(path)
    if others := [file for file in _damaged(repo.cache.local) if file not in told]:
        yield Finding(
            f"{len(others)} of the files that DVC's cache has for other commits are not what their names say",
            f"rm -f {' '.join(map(shown, others))}{'; dvc fetch --all-commits' if fetch else ''}",
        )
    if missing:
        yield Finding(f"DVC's cache lacks files of {', '.join(missing)}", "dvc pull" if fetch else "dvc repro")


def outputs() -> Iterator[Finding]:
    """Hashed anew: DVC remembers sums by time and size, and may call a file clean that is not."""
    from pipeline.commands import objects

    missing = []
    for path, out in locked_outputs():
        here = Path(out.fs_path)
        if not here.exists():
            if not any(_unsound(out, out.cache)):  # else `cache` says it
                missing.append(path)
        elif _differs(path, out):
            found = objects.sums(here)
            wanted = {name: oid for name, oid, _ in _objects(out, out.cache)}
            differ = sorted(name for name in {*wanted, *found} - {""} if wanted.get(name) != found.get(name))
            said = f": {', '.join(differ[:3])}{', …' if differ[3:] else ''}" if len(wanted) > 1 else ""
            yield Finding(
                f"{path} is not what dvc.lock says, changed by hand or stale (dvc status){said}", rebuild(path, out)
            )
    if missing:
        paths = " ".join(shlex.quote(path) for path in missing)
        yield Finding(f"{', '.join(missing)}: not here", f"dvc checkout {paths}")


def remotes() -> Iterator[Finding]:
    repo = open_repo()
    for name, settings in repo.config["remote"].items():
        if "://" in settings["url"]:
            if not settings.get("verify"):
                yield Finding(
                    f"what comes from the remote {name} is taken for whole", f"dvc remote modify {name} verify true"
                )
            continue
        if not Path(settings["url"]).is_dir():
            yield Finding(f"the remote {name} has no folder {settings['url']}", f"dvc push --remote {name}")
            continue
        store, told = repo.cloud.get_remote_odb(name), set[Path]()
        for path, out in locked_outputs():
            damaged, _ = _unsound(out, store)
            if damaged:
                told |= set(damaged.values())
                # With the list of the folder gone too, DVC looks for each file of it.
                files = [*damaged.values(), Path(store.oid_to_path(out.hash_info.value))]
                yield Finding(
                    f"{path}: {some(damaged)} in the remote {name} is damaged",
                    f"rm -f {' '.join(dict.fromkeys(map(shown, files)))}; dvc push --remote {name}",
                )
        if others := [file for file in _damaged(store) if file not in told]:
            yield Finding(
                f"{len(others)} of the files that the remote {name} has for other commits are not what their names say",
                f"rm -f {' '.join(map(shown, others))}; dvc push --all-commits --remote {name}",
            )


def open_repo() -> "Repo":
    from dvc.repo import Repo

    return Repo()


def stages() -> "dict[str, list[Output]]":
    return {stage.addressing: stage.outs for stage in open_repo().index.stages}


def locked_outputs() -> "list[tuple[str, Output]]":
    """What dvc.lock has a sum for, by path; not what is torn, which `dvc_files` says."""
    from dvc.exceptions import DvcException

    from pipeline.commands import objects

    try:
        found_stages = stages()
    except DvcException:
        return []
    found = {out.def_path: out for outs in found_stages.values() for out in outs if out.hash_info and out.use_cache}
    return sorted((path, out) for path, out in found.items() if objects.is_sum(out.hash_info.value))


def _differs(path: str, out: "Output") -> bool:
    """Whether an output is here, and is not what dvc.lock says."""
    from pipeline.tracking import identity

    return Path(path).exists() and identity.content(Path(path)) != out.hash_info.value


def rebuild(path: str, out: "Output | None") -> str:
    """The commands that put an output in the place of what is there: from the cache if that has it whole, else rebuilt."""
    here = shlex.quote(path)
    if out is not None and not any(_unsound(out, out.cache)):
        return f"rm -r {here} && dvc checkout {here}"
    return f"mkdir -p {BROKEN} && mv {here} {free(BROKEN / path.replace('/', '-'))} && dvc repro"


def _objects(out: "Output", store: "HashFileDB") -> list[tuple[str, str, Path]]:
    """Name, sum and place of each object of an output: "" for itself, and for a folder those of its files."""
    from pipeline.commands import objects

    oid = str(out.hash_info.value)
    path = Path(store.oid_to_path(oid))
    listed = (objects.listed(path, oid) or {}) if oid.endswith(".dir") else {}
    return [("", oid, path), *((name, md5, Path(store.oid_to_path(md5))) for name, md5 in listed.items())]


def _unsound(out: "Output", store: "HashFileDB") -> tuple[dict[str, Path], list[str]]:
    """The objects of an output that are not what their names say, or not DVC's, and those that are missing."""
    from pipeline.commands import objects
    from pipeline.tracking import identity

    damaged, absent = {}, []
    for name, oid, path in _objects(out, store):
        if not path.exists():
            absent.append(name)
        elif identity.content(path) != oid.removesuffix(".dir"):
            damaged[name or "itself"] = path
        elif oid.endswith(".dir") and objects.listed(path, oid) is None:
            damaged[LISTING] = path
    return damaged, absent


def _damaged(store: "HashFileDB") -> Iterator[Path]:
    """The objects of a cache, or of a remote that is a folder, that are not what their names say."""
    from pipeline.commands import objects
    from pipeline.tracking import identity

    for path in sorted(Path(store.path).glob("[0-9a-f][0-9a-f]/*")):
        name = path.parent.name + path.name
        if objects.is_sum(name) and identity.content(path) != name.removesuffix(".dir"):
            yield path
