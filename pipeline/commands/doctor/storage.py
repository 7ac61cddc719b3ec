"""Check outputs, bundles, DVC's cache and its remotes, object by object."""

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.commands.doctor.finding import BROKEN, Finding, free, shown, some
from pipeline.core.errors import UserError

if TYPE_CHECKING:
    from dvc.output import Output
    from dvc.repo import Repo


def cache() -> Iterator[Finding]:
    """Hash the cache: DVC checks out a damaged object and calls the result clean."""
    from pipeline.commands import objects

    missing, reported, store = [], set[Path](), objects.cache_folder(Path.cwd())
    fetch = ["dvc fetch"] if open_repo().config["core"].get("remote") else []
    for path, md5 in _locked_outputs().items():
        damaged, lacks_any = objects.unsound(md5, store)
        # `outputs` moves an edited output aside; dvc repro would delete it.
        is_edited = bool(damaged or lacks_any) and objects.differs(Path(path), md5)
        if damaged:
            reported |= set(damaged.values())
            steps = [f"rm -f {shown(*damaged.values())}"]
            steps += fetch if objects.LISTING not in damaged else []  # the remote has the same listing
            steps += [] if is_edited else ["dvc repro"]
            yield Finding(f"{path}: damaged in DVC's cache: {some(damaged)}", "; ".join(steps))
        if lacks_any and not is_edited:
            missing.append(path)
    if others := [file for file in objects.damaged_objects(store) if file not in reported]:
        remedy = f"rm -f {shown(*others)}{'; dvc fetch --all-commits' if fetch else ''}"
        yield Finding(f"objects of other commits damaged in DVC's cache: {len(others)}", remedy)
    if missing:
        yield Finding(f"DVC's cache lacks files of {', '.join(missing)}", "dvc pull" if fetch else "dvc repro")


def outputs() -> Iterator[Finding]:
    """Hash the outputs: DVC reuses checksums of files with the same time and size, and may miss a change."""
    from pipeline.commands import objects

    missing, store = [], objects.cache_folder(Path.cwd())
    for path, md5 in _locked_outputs().items():
        if not Path(path).exists():
            if not any(objects.unsound(md5, store)):  # else `cache` reports it
                missing.append(path)
        elif objects.differs(Path(path), md5):
            new, old = objects.checksums(Path(path)), objects.stored_checksums(md5, store)
            changed = sorted(name for name in {*old, *new} - {""} if old.get(name) != new.get(name))
            names = f": {some(changed)}" if len(old) > 1 else ""
            yield Finding(f"{path} differs from dvc.lock, edited or stale (see dvc status){names}", _rebuild(path, md5))
    if missing:
        yield Finding(f"missing outputs: {', '.join(missing)}", f"dvc checkout {shlex.join(missing)}")


def remotes() -> Iterator[Finding]:
    from pipeline.commands import objects

    repo = open_repo()
    for name, settings in repo.config["remote"].items():
        if "://" in settings["url"]:
            if not settings.get("verify"):
                remedy = f"dvc remote modify {name} verify true"
                yield Finding(f"downloads from the remote {name} are not verified", remedy)
            continue
        if not Path(settings["url"]).is_dir():
            yield Finding(f"the folder of the remote {name} is missing: {settings['url']}", f"dvc push --remote {name}")
            continue
        store, reported = Path(repo.cloud.get_remote_odb(name).path), set[Path]()
        for path, md5 in _locked_outputs().items():
            damaged, _ = objects.unsound(md5, store)
            if damaged:
                reported |= set(damaged.values())
                # Without the folder's listing, DVC checks each of its files when it pushes.
                files = dict.fromkeys([*damaged.values(), objects.stored(md5, store)])
                remedy = f"rm -f {shown(*files)}; dvc push --remote {name}"
                yield Finding(f"{path}: damaged in the remote {name}: {some(damaged)}", remedy)
        if others := [file for file in objects.damaged_objects(store) if file not in reported]:
            remedy = f"rm -f {shown(*others)}; dvc push --all-commits --remote {name}"
            yield Finding(f"objects of other commits damaged in the remote {name}: {len(others)}", remedy)


def bundles() -> Iterator[Finding]:
    from pipeline.networks.bundle import load_bundle

    for folder in sorted({path.parent for path in Path("models").glob("*/model.*")}):
        try:
            load_bundle(folder)
        except UserError as error:
            yield Finding(str(error), _rebuild(str(folder), _locked_outputs().get(str(folder))))


def open_repo() -> "Repo":
    from dvc.repo import Repo

    return Repo()


def stages() -> "dict[str, list[Output]]":
    return {stage.addressing: stage.outs for stage in open_repo().index.stages}


def _locked_outputs() -> dict[str, str]:
    """The checksums of the outputs in dvc.lock, by path; none if the lock is damaged, which `dvc_files` reports."""
    from dvc.exceptions import DvcException

    from pipeline.commands import objects

    try:
        outs = [out for outs in stages().values() for out in outs if out.hash_info and out.use_cache]
    except DvcException:
        return {}
    found = {out.def_path: out.hash_info.value for out in outs if objects.is_checksum(out.hash_info.value)}
    return dict(sorted(found.items()))


def _rebuild(path: str, md5: str | None) -> str:
    """The commands that replace an output: from the cache if that is sound, else by moving it aside and building it."""
    from pipeline.commands import objects

    quoted = shlex.quote(path)
    if md5 is not None and not any(objects.unsound(md5, objects.cache_folder(Path.cwd()))):
        return f"rm -r {quoted} && dvc checkout {quoted}"
    return f"mkdir -p {BROKEN} && mv {quoted} {free(BROKEN / path.replace('/', '-'))} && dvc repro"
