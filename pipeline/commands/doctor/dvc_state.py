"""Checks of `dvc.yaml`, `dvc.lock` and the locks of DVC."""

import json
from collections.abc import Iterator
from pathlib import Path

from pipeline.commands.doctor.finding import Finding, first_line, output_of, shown
from pipeline.commands.doctor.storage import open_repo, stages


def dvc_files() -> Iterator[Finding]:
    """dvc.yaml and dvc.lock by DVC's own readers: it writes the lock in place, so that a kill can tear it."""
    from dvc.dvcfile import Lockfile
    from dvc.exceptions import DvcException

    from pipeline.commands import objects

    if not Path("dvc.lock").exists():
        yield Finding("dvc.lock is missing: nothing has been built", "dvc repro")
        return
    undo = "git checkout -- dvc.lock" if output_of("git", "ls-files", "dvc.lock") else "rm dvc.lock"
    try:
        Lockfile(open_repo(), str(Path("dvc.lock").absolute())).load()
    except DvcException as error:
        yield Finding(f"dvc.lock is torn: {first_line(error)}", f"{undo} && dvc repro")
        return
    if not Path("dvc.lock").read_bytes().endswith(b"\n"):
        yield Finding("dvc.lock is torn: it ends within a line", f"{undo} && dvc repro")
        return
    outs = [(name, out) for name, some in stages().items() for out in some]
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

    repo = open_repo()
    path = Path(str(repo.tmp_dir)) / RWLOCK_FILE
    elsewhere = "in a shared folder, see first that no dvc runs on the other machines"
    running = [pid for pid in psutil.pids() if _runs_dvc(pid, Path(repo.root_dir).resolve())]
    if path.exists():
        try:
            entries = SCHEMA(json.loads(path.read_bytes()))
        except (ValueError, Invalid):
            if running:  # it may be writing it
                yield Finding(f"{shown(path)} is torn", f"wait for process {running[0]}, a dvc, then look again")
            else:
                yield Finding(f"{shown(path)} is torn, and DVC refuses to run; {elsewhere}", f"rm {shown(path)}")
        else:
            readers = [reader for some in entries["read"].values() for reader in some]
            pids = sorted({entry["pid"] for entry in [*entries["write"].values(), *readers]})
            # DVC drops those that have ended itself. One that still runs would lose its lock with the file.
            if (others := [pid for pid in pids if psutil.pid_exists(pid)]) and not any(map(_runs_dvc, others)):
                said = f"{shown(path)} names process {others[0]}, which is not DVC's here"
                yield Finding(f"{said}; {elsewhere}", f"rm {shown(path)}")
    if running or not repo.config["core"].get("hardlink_lock"):
        return
    for lock in (path.with_name("lock"), path.with_name(RWLOCK_LOCK)):  # here the file locks, and names nobody
        if lock.exists():
            yield Finding(f"{shown(lock)} was left by a dvc that has ended; {elsewhere}", f"rm {shown(lock)}")


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
