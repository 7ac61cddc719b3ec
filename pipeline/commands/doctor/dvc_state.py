"""Check `dvc.yaml`, `dvc.lock` and the locks of DVC."""

import json
from collections.abc import Iterator
from pathlib import Path

from pipeline.commands.doctor.finding import Finding, first_line, output_of, shown
from pipeline.commands.doctor.storage import open_repo, stages


def dvc_files() -> Iterator[Finding]:
    """Read dvc.yaml and dvc.lock as DVC does: it writes the lock in place, so that a kill can leave part of it."""
    from dvc.dvcfile import Lockfile
    from dvc.utils.serialize import ParseError
    from dvc.utils.strictyaml import YAMLValidationError

    from pipeline.commands import objects

    if not Path("dvc.lock").exists():
        yield Finding("dvc.lock is missing: nothing has been built", "dvc repro")
        return
    undo = "git checkout -- dvc.lock" if output_of("git", "ls-files", "dvc.lock") else "rm dvc.lock"

    def damaged(how: str) -> Finding:
        return Finding(f"dvc.lock is damaged: {how}", f"{undo} && dvc repro")

    try:
        Lockfile(open_repo(), str(Path("dvc.lock").absolute())).load()
    except (ParseError, YAMLValidationError) as error:  # another error says nothing about the lock
        yield damaged(first_line(error))
        return
    if not Path("dvc.lock").read_bytes().endswith(b"\n"):
        yield damaged("its last line is incomplete")
        return
    outs = [(name, out) for name, written in stages().items() for out in written]
    if unbuilt := [name for name, out in outs if not out.hash_info]:
        yield Finding(f"dvc.lock lacks the outputs of {', '.join(dict.fromkeys(unbuilt))}", "dvc repro")
    # DVC writes the number of files last.
    if partial := [name for name, out in outs if out.hash_info and out.hash_info.isdir and not out.meta.nfiles]:
        yield damaged(f"the entry of {partial[0]} is incomplete")
    for _, out in outs:
        if out.hash_info and out.use_cache and not objects.is_checksum(out.hash_info.value):
            yield damaged(f"the checksum of {out.def_path} must be an MD5, got {out.hash_info.value!r}")


def dvc_locks() -> Iterator[Finding]:
    """Find what a killed `dvc` leaves in .dvc/tmp. The system itself releases the lock on .dvc/tmp/lock."""
    import psutil
    from dvc.rwlock import RWLOCK_FILE, RWLOCK_LOCK, SCHEMA
    from voluptuous import Invalid

    repo = open_repo()
    path = Path(str(repo.tmp_dir)) / RWLOCK_FILE

    def removable(lock: Path, how: str) -> Finding:
        caution = "if machines share this folder, first check that none of them runs dvc"
        return Finding(f"{shown(lock)} {how}; {caution}", f"rm {shown(lock)}")

    running = [pid for pid in psutil.pids() if _runs_dvc(pid, Path(repo.root_dir).resolve())]
    if path.exists():
        try:
            entries = SCHEMA(json.loads(path.read_bytes()))
        except (ValueError, Invalid):
            if running:  # it may be writing the file
                remedy = f"wait until dvc, process {running[0]}, has ended; then run the doctor again"
                yield Finding(f"{shown(path)} is damaged", remedy)
            else:
                yield removable(path, "is damaged, and DVC refuses to run")
        else:
            readers = [reader for some in entries["read"].values() for reader in some]
            pids = sorted({entry["pid"] for entry in [*entries["write"].values(), *readers]})
            # DVC drops ended processes itself. A running one would lose its lock with the file.
            if (others := [pid for pid in pids if psutil.pid_exists(pid)]) and not any(map(_runs_dvc, others)):
                yield removable(path, f"names process {others[0]}, which is not dvc")
    if running or not repo.config["core"].get("hardlink_lock"):
        return
    for lock in (path.with_name("lock"), path.with_name(RWLOCK_LOCK)):  # with hard links, the file itself is the lock
        if lock.exists():
            yield removable(lock, "was left by a dvc process that has ended")


def _runs_dvc(pid: int, root: Path | None = None) -> bool:
    """True if the process runs DVC, in `root` if given; also if its folder is not readable."""
    import psutil

    is_dvc = root is None
    try:
        process = psutil.Process(pid)
        ends = [Path(part).parts[-2:] for part in process.cmdline()]
        is_dvc = any(end[-1:] == ("dvc",) or end == ("dvc", "__main__.py") for end in ends)
        return is_dvc and (root is None or Path(process.cwd()).is_relative_to(root))
    except psutil.AccessDenied:
        return is_dvc
    except psutil.Error:  # it has ended
        return False
