"""What is wrong here, and what to type against it. Looks, and changes nothing.

What a check needs is imported inside it, so that half an installation is enough to hear what the other half lacks.
"""

import itertools
import json
import shlex
import shutil
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import UserError

if TYPE_CHECKING:
    from dvc.output import Output
    from dvc.repo import Repo
    from dvc_data.hashfile.db import HashFileDB

INSTALL = "python -m pip install --constraint constraints.txt"
LISTING = "its listing"  # of names or sums that DVC never writes
GIGABYTES = 1.0  # that a run may need
SECONDS = 5.0  # that a database or a server may take
BROKEN = Path(".state/broken")  # where a remedy puts what may be the only copy


@dataclass(frozen=True)
class Finding:
    """What is wrong, and the remedy: a command, where there is one."""

    what: str
    remedy: str


def examine() -> Iterator[tuple[str, list[Finding]]]:
    """Each check by its name, with what it found; nothing where all is well."""
    for name, check in CHECKS.items():
        findings = []
        try:
            for finding in check():
                findings.append(finding)  # one by one: what was found stays, if the next look fails
        except ImportError as error:
            findings.append(Finding(f"cannot be checked: {error}", f'{INSTALL} --editable ".[test]"'))
        except Exception as error:  # the other checks go on
            line = (str(error).strip() or "no message").splitlines()[0]
            said = line if isinstance(error, UserError) else f"{type(error).__name__}: {line}"
            findings.append(Finding(f"cannot be checked: {said}", "mend what else is wrong, then look again"))
        yield name, findings


# ------------------------------------------------------------------------------------------------------- installation


def programs() -> Iterator[Finding]:
    if sys.version_info < (3, 11):  # noqa: UP036  # pip would refuse it, a PYTHONPATH does not
        yield Finding(f"this is Python {sys.version.split()[0]}, 3.11 is needed", "make PYTHON=python3.11")
    for name in ("git", "dvc"):
        if shutil.which(name) is None:
            yield Finding(f"{name} is not found", "source .venv/bin/activate" if name == "dvc" else "install git")
    prefix = _said("python", "-c", "import sys; print(sys.prefix)") if shutil.which("python") else None
    if prefix != sys.prefix:
        yield Finding(
            f"stages would run in the Python of {prefix}, not in that of {sys.prefix}", "source .venv/bin/activate"
        )


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
            wrong[name] = "missing"
    for pin in Path("constraints.txt").read_text(encoding="utf-8").split():
        package, _, pinned = pin.partition("==")
        try:
            found = version(package)
        except PackageNotFoundError:
            continue  # said above, if it is needed
        if found.partition("+")[0] != pinned:  # torch calls its wheel for the CPU 2.13.0+cpu
            wrong[canonicalize_name(package)] = f"{found}, not {pinned}"
    if wrong:
        said = "; ".join(f"{name} is {how}" for name, how in wrong.items())
        yield Finding(said, f"{INSTALL} {' '.join(wrong)}")


def torch_works() -> Iterator[Finding]:
    import torch

    found = (torch.ones(2, 3) @ torch.ones(3, 2)).sum().item()
    if found != 12.0:
        yield Finding(f"torch computes {found}, not 12", f"{INSTALL} --force-reinstall --no-deps torch")


def repository() -> Iterator[Finding]:
    if _said("git", "rev-parse", "--is-inside-work-tree") != "true":
        yield Finding("this folder is in no git repository", "git init")
    if not Path(".dvc/config").is_file():
        yield Finding("this folder is no DVC repository", "dvc init")


def params() -> Iterator[Finding]:
    from pipeline.core import config

    try:
        config.load()
    except UserError as error:
        yield Finding(str(error), "mend that line, or: git checkout -- params.yaml")


def disk() -> Iterator[Finding]:
    free = shutil.disk_usage(".").free / 1e9
    if free < GIGABYTES:
        yield Finding(
            f"{free:.2f} GB are left on this disk, a run needs about {GIGABYTES:g}",
            "dvc gc --all-commits --all-experiments",
        )


# ----------------------------------------------------------------------------------------------------------- tracking


def database() -> Iterator[Finding]:
    from pipeline.core import config
    from pipeline.core.secrets import without_secret
    from pipeline.tracking import store

    uri = store.tracking_uri(config.load().tracking)
    if uri.startswith(("http://", "https://")):
        parts = urllib.parse.urlsplit(uri)
        host = parts.netloc.rpartition("@")[2]  # MLflow answers this to everybody, and urllib takes no user
        try:
            with urllib.request.urlopen(f"{parts.scheme}://{host}{parts.path.rstrip('/')}/health", timeout=SECONDS):
                pass
        except urllib.error.HTTPError as error:
            yield Finding(f"{without_secret(uri)} answers {error.code} {error.reason}", "see the log of that server")
        except OSError as error:
            why = getattr(error, "reason", error)
            yield Finding(
                f"{without_secret(uri)} does not answer within {SECONDS:g} s: {why}",
                "start it; until then runs wait in .state/, and python -m pipeline sync sends them",
            )
    elif uri.startswith("sqlite:///") and (path := Path(uri.removeprefix("sqlite:///"))).exists():
        yield from _sqlite(path, uri)


def _sqlite(path: Path, uri: str) -> Iterator[Finding]:
    from mlflow.store.db.utils import _get_latest_schema_revision

    aside = f"mv {shlex.quote(str(path))} {_free(Path(f'{path}.broken'))} && python -m pipeline sync --all-commits"
    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=SECONDS)
        try:
            (said,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            if said != "ok":
                yield Finding(f"{path} is damaged: {said}", aside)
                return
            connection.execute("BEGIN IMMEDIATE")  # takes the lock of a writer, and writes nothing
            connection.rollback()
            found = [row[0] for row in connection.execute("SELECT version_num FROM alembic_version")]
        finally:
            connection.close()
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            yield Finding(
                f"another process has had {path} locked for {SECONDS:g} s", f"fuser -v {shlex.quote(str(path))}"
            )
        elif "no such table" in str(error):
            yield Finding(f"{path} is no MLflow database", aside)
        else:
            yield Finding(f"{path} cannot be opened: {error}", f"ls -l {shlex.quote(str(path))}")
    except sqlite3.DatabaseError as error:
        yield Finding(f"{path} is damaged: {error}", aside)
    else:
        if found != [_get_latest_schema_revision()]:
            yield Finding(f"{path} was made by another version of MLflow", f"mlflow db upgrade {shlex.quote(uri)}")


# ---------------------------------------------------------------------------------------------------------------- DVC


def dvc_files() -> Iterator[Finding]:
    """dvc.yaml and dvc.lock by DVC's own readers: it writes the lock in place, so that a kill can tear it."""
    from dvc.dvcfile import Lockfile
    from dvc.exceptions import DvcException

    from pipeline.commands import objects

    if not Path("dvc.lock").exists():
        yield Finding("dvc.lock is missing: nothing has been built", "dvc repro")
        return
    undo = "git checkout -- dvc.lock" if _said("git", "ls-files", "dvc.lock") else "rm dvc.lock"
    try:
        Lockfile(_repo(), str(Path("dvc.lock").absolute())).load()
    except DvcException as error:
        yield Finding(f"dvc.lock is torn: {_first_line(error)}", f"{undo} && dvc repro")
        return
    if not Path("dvc.lock").read_bytes().endswith(b"\n"):
        yield Finding("dvc.lock is torn: it ends within a line", f"{undo} && dvc repro")
        return
    outs = [(name, out) for name, some in _stages().items() for out in some]
    if unbuilt := [name for name, out in outs if not out.hash_info]:
        yield Finding(f"dvc.lock does not have the outputs of {', '.join(unbuilt)}", "dvc repro")
    # The number of files is the last that DVC writes about a folder.
    if torn := [name for name, out in outs if out.hash_info and out.hash_info.isdir and not out.meta.nfiles]:
        yield Finding(f"dvc.lock is torn: it does not have all about the output of {torn[0]}", f"{undo} && dvc repro")
    for _, out in outs:
        if out.hash_info and out.use_cache and not objects.is_sum(out.hash_info.value):
            said = f"the sum of {out.def_path} is {out.hash_info.value!r}, which DVC never writes"
            yield Finding(f"dvc.lock is torn: {said}", f"{undo} && dvc repro")


def dvc_locks() -> Iterator[Finding]:
    """What a killed `dvc` leaves in .dvc/tmp; the lock of the kernel on .dvc/tmp/lock ends with its process."""
    import psutil
    from dvc.rwlock import RWLOCK_FILE, RWLOCK_LOCK, SCHEMA
    from voluptuous import Invalid

    repo = _repo()
    path = Path(str(repo.tmp_dir)) / RWLOCK_FILE
    elsewhere = "in a shared folder, see first that no dvc runs on the other machines"
    running = [pid for pid in psutil.pids() if _runs_dvc(pid, Path(repo.root_dir).resolve())]
    if path.exists():
        try:
            entries = SCHEMA(json.loads(path.read_bytes()))
        except (ValueError, Invalid):
            if running:  # it may be writing it
                yield Finding(f"{_shown(path)} is torn", f"wait for process {running[0]}, a dvc, then look again")
            else:
                yield Finding(f"{_shown(path)} is torn, and DVC refuses to run; {elsewhere}", f"rm {_shown(path)}")
        else:
            readers = [reader for some in entries["read"].values() for reader in some]
            pids = sorted({entry["pid"] for entry in [*entries["write"].values(), *readers]})
            # DVC drops those that have ended itself. One that still runs would lose its lock with the file.
            if (others := [pid for pid in pids if psutil.pid_exists(pid)]) and not any(map(_runs_dvc, others)):
                said = f"{_shown(path)} names process {others[0]}, which is not DVC's here"
                yield Finding(f"{said}; {elsewhere}", f"rm {_shown(path)}")
    if running or not repo.config["core"].get("hardlink_lock"):
        return
    for lock in (path.with_name("lock"), path.with_name(RWLOCK_LOCK)):  # here the file locks, and names nobody
        if lock.exists():
            yield Finding(f"{_shown(lock)} was left by a dvc that has ended; {elsewhere}", f"rm {_shown(lock)}")


def _runs_dvc(pid: int, root: Path | None = None) -> bool:
    """Whether a process of this machine runs DVC, in `root` if one is given; also if it does not tell."""
    import psutil

    named = root is None
    try:
        process = psutil.Process(pid)
        ends = [Path(part).parts[-2:] for part in process.cmdline()]
        named = any(end[-1:] == ("dvc",) or end == ("dvc", "__main__.py") for end in ends)
        return named and (root is None or Path(process.cwd()).is_relative_to(root))
    except psutil.AccessDenied:
        return named
    except psutil.Error:  # it has ended
        return False


def cache() -> Iterator[Finding]:
    """DVC checks out a damaged object of its cache, and calls the result clean."""
    repo, missing, told = _repo(), [], set[Path]()
    fetch = "dvc fetch" if repo.config["core"].get("remote") else ""
    for path, out in _outputs():
        damaged, absent = _unsound(out, out.cache)
        # Then `outputs` moves it aside, before dvc repro would remove it.
        kept = bool(damaged or absent) and _differs(path, out)
        if damaged:
            told |= set(damaged.values())
            remedy = f"rm -f {' '.join(map(_shown, damaged.values()))}"
            # From a remote the listing would come back as it was.
            remedy += f"; {fetch}" if fetch and LISTING not in damaged else ""
            remedy += "" if kept else "; dvc repro"
            yield Finding(f"{path}: {_some(damaged)} in DVC's cache is damaged", remedy)
        if absent and not kept:
            missing.append(path)
    if others := [file for file in _damaged(repo.cache.local) if file not in told]:
        yield Finding(
            f"{len(others)} of the files that DVC's cache has for other commits are not what their names say",
            f"rm -f {' '.join(map(_shown, others))}{'; dvc fetch --all-commits' if fetch else ''}",
        )
    if missing:
        yield Finding(f"DVC's cache lacks files of {', '.join(missing)}", "dvc pull" if fetch else "dvc repro")


def outputs() -> Iterator[Finding]:
    """Hashed anew: DVC remembers sums by time and size, and may call a file clean that is not."""
    from pipeline.commands import objects

    missing = []
    for path, out in _outputs():
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
                f"{path} is not what dvc.lock says, changed by hand or stale (dvc status){said}",
                _anew(path, out),
            )
    if missing:
        paths = " ".join(shlex.quote(path) for path in missing)
        yield Finding(f"{', '.join(missing)}: not here", f"dvc checkout {paths}")


def remotes() -> Iterator[Finding]:
    repo = _repo()
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
        for path, out in _outputs():
            damaged, _ = _unsound(out, store)
            if damaged:
                told |= set(damaged.values())
                # With the list of the folder gone too, DVC looks for each file of it.
                files = [*damaged.values(), Path(store.oid_to_path(out.hash_info.value))]
                yield Finding(
                    f"{path}: {_some(damaged)} in the remote {name} is damaged",
                    f"rm -f {' '.join(dict.fromkeys(map(_shown, files)))}; dvc push --remote {name}",
                )
        if others := [file for file in _damaged(store) if file not in told]:
            yield Finding(
                f"{len(others)} of the files that the remote {name} has for other commits are not what their names say",
                f"rm -f {' '.join(map(_shown, others))}; dvc push --all-commits --remote {name}",
            )


def _repo() -> "Repo":
    from dvc.repo import Repo

    return Repo()


def _stages() -> "dict[str, list[Output]]":
    return {stage.addressing: stage.outs for stage in _repo().index.stages}


def _outputs() -> "list[tuple[str, Output]]":
    """What dvc.lock has a sum for, by path; not what is torn, which `dvc_files` says."""
    from dvc.exceptions import DvcException

    from pipeline.commands import objects

    try:
        stages = _stages()
    except DvcException:
        return []
    found = {out.def_path: out for outs in stages.values() for out in outs if out.hash_info and out.use_cache}
    return sorted((path, out) for path, out in found.items() if objects.is_sum(out.hash_info.value))


def _differs(path: str, out: "Output") -> bool:
    """Whether an output is here, and is not what dvc.lock says."""
    from pipeline.tracking import identity

    return Path(path).exists() and identity.content(Path(path)) != out.hash_info.value


def _anew(path: str, out: "Output | None") -> str:
    """The commands that put an output in the place of what is there: from the cache if that has it whole, else rebuilt."""
    here = shlex.quote(path)
    if out is not None and not any(_unsound(out, out.cache)):
        return f"rm -r {here} && dvc checkout {here}"
    return f"mkdir -p {BROKEN} && mv {here} {_free(BROKEN / path.replace('/', '-'))} && dvc repro"


def _free(path: Path) -> str:
    """A name for what is moved aside, so that nothing is written over."""
    tries = itertools.chain([path], (Path(f"{path}.{n}") for n in itertools.count(2)))
    return shlex.quote(str(next(file for file in tries if not file.exists())))


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


# ------------------------------------------------------------------------------------------------ what this project keeps


def state() -> Iterator[Finding]:
    from pipeline.runtime import locks
    from pipeline.tracking import identity, journal
    from pipeline.training import checkpoints

    running = locks.held()
    for stage, holder in running.items():
        yield Finding(f"stage {stage} is running {holder.place}", f"wait for it, or end it {holder.end}")
    for folder in sorted(Path(".state/checkpoints").glob("*/*/")):
        # Younger ones may be gone on with, when the parameters are what they were.
        if time.time() - folder.stat().st_mtime > checkpoints.STALE_DAYS * 86_400:
            yield Finding(f"{folder} has not been gone on with for days", f"rm -r {shlex.quote(str(folder))}")
    root = identity.project_root() / journal.SPOOLS
    waiting = journal.n_waiting(root)
    if waiting and not running:
        yield Finding(f"{waiting} events of stages wait to be sent to MLflow", "python -m pipeline sync")
    if refused := journal.n_refused(root):
        yield Finding(f"{refused} runs were not taken by MLflow", journal.remedy(journal.REFUSED))


def bundles() -> Iterator[Finding]:
    from pipeline.networks.bundle import load_bundle

    for folder in sorted({path.parent for path in Path("models").glob("*/model.*")}):
        try:
            load_bundle(folder)
        except UserError as error:
            yield Finding(str(error), _anew(str(folder), dict(_outputs()).get(str(folder))))


CHECKS: dict[str, Callable[[], Iterator[Finding]]] = {
    "programs": programs,
    "packages": packages,
    "torch": torch_works,
    "repository": repository,
    "params.yaml": params,
    "disk": disk,
    "MLflow": database,
    "dvc.lock": dvc_files,
    "locks of DVC": dvc_locks,
    "cache": cache,
    "outputs": outputs,
    "remotes": remotes,
    "bundles": bundles,
    ".state": state,
}


def _said(*command: str) -> str | None:
    """What a command prints; None if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _shown(path: Path) -> str:
    """A path as it can be typed here."""
    here = Path.cwd()
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))


def _some(names: dict[str, Any]) -> str:
    return ", ".join(list(names)[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
