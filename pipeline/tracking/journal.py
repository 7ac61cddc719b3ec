"""What stages tell MLflow, kept on disk until it is sent: a folder an execution, in it a line of JSON an event.

`begin` is called by a stage, `waiting` by whoever sends. A spool belongs to the process that holds its lock, which the system
takes from a process that dies; the lock of `root` is held only while spools are looked for.
"""

import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

EVENTS, SENT, LOCK, FILES, CUT = "events.jsonl", "sent", "lock", "files", "events.cut"
SPOOLS, REFUSED = Path(".state/runs"), Path(".state/refused")  # in the project
LOCK_SECONDS = 3.0  # that looking for spools takes others, at most
STALE_DAYS = 7  # after which an execution that did not finish is forgotten, if all of it is sent
_SPOOL = re.compile(r".+-\w+-([0-9a-f]{12}|restored\w+)")
_NO_SPOOL = re.compile(r"\.[0-9a-f]{12}")  # yet, or no more
Status = Literal["FINISHED", "FAILED", "KILLED"]
Event = Mapping[str, Any]


class Spool:
    """The events of one execution of a stage. To be used by the holder of its lock."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Taken by the thread of a stage, released by the one that sends.
        self.lock = FileLock(folder / LOCK, thread_local=False, blocking=False)
        self._points: set[tuple[str, int]] = set()
        self._trials: set[int] = set()
        self._has_times = True

    @property
    def execution(self) -> str:
        return self.folder.name.rpartition("-")[2]

    @property
    def is_rebuilt(self) -> bool:
        """Whether others may send the same run at the same time."""
        return self.execution.startswith("restored")

    def append(self, kind: str, **fields: Any) -> None:
        """Add an event, with the time of now (none in a run that is rebuilt) if the fields have no other.

        A number or a trial of a former execution is not added again.
        """
        if kind == "metrics":
            fields["metrics"] = [m for m in fields["metrics"] if (m[0], m[2]) not in self._points]
            if not fields["metrics"]:
                return
        if kind == "trial" and fields["number"] in self._trials:
            return
        now = int(time.time() * 1000) if self._has_times else 0
        line = (json.dumps({"kind": kind, "time": now, **fields}, ensure_ascii=False) + "\n").encode(
            "utf-8", "surrogatepass"
        )
        with (self.folder / EVENTS).open("ab", buffering=0) as file:
            begun, written = file.tell(), 0
            try:
                while written < len(line):  # a full disk takes a part
                    written += file.write(line[written:])
            except BaseException:
                if os.fstat(file.fileno()).st_size < begun + len(line):  # what comes later would be lost behind it
                    os.ftruncate(file.fileno(), begun)
                raise

    def keep(self, files: Mapping[str, Path], name: str = "files") -> str:
        """Keep files as they are now, each under a name: later stages replace them. Returns their folder, as in `path`."""
        place = Path(FILES) / uuid.uuid4().hex[:12] / name
        for relative, file in files.items():
            target = self.folder / place / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            _link(file, target)
        return place.as_posix()

    def path(self, kept: str) -> Path:
        return self.folder / kept

    def events(self, start: int = 0) -> list[tuple[Event, int]]:
        """The whole events from byte `start` on, each with the byte it ends at; nothing after one that is damaged."""
        with (self.folder / EVENTS).open("rb") as file:
            file.seek(start)
            content = file.read()
        found, end = [], start
        for line in content.splitlines(keepends=True):
            event = _parsed(line)
            if event is None:
                break
            end += len(line)
            found.append((event, end))
        return found

    @property
    def first(self) -> Event | None:
        with (self.folder / EVENTS).open("rb") as file:
            return _parsed(file.readline())

    @property
    def status(self) -> Status | None:
        """How the execution ended; None if it has not, or goes on."""
        ended: Status | None = None
        for event, _ in self.events():
            if event["kind"] in ("run", "end"):  # the first begins it, or goes on with it
                ended = event.get("status")
        return ended

    @property
    def sent(self) -> int:
        """The byte up to which MLflow has the events."""
        try:
            return min(int((self.folder / SENT).read_text()), (self.folder / EVENTS).stat().st_size)
        except (FileNotFoundError, ValueError):
            return 0  # nothing is lost by sending it again

    @sent.setter
    def sent(self, end: int) -> None:
        temporary = self.folder / f"{SENT}.new"
        temporary.write_text(str(end))
        temporary.replace(self.folder / SENT)

    @property
    def n_waiting(self) -> int:
        return len(self.events(self.sent))

    def flush(self) -> None:
        """Bring the events to the disk, so that they outlast a power loss."""
        with (self.folder / EVENTS).open("rb") as file:
            os.fsync(file.fileno())

    def cut(self) -> None:
        """Leave out what a kill in the middle of a line, or a power loss, has damaged."""
        found, path = self.events(), self.folder / EVENTS
        whole = found[-1][1] if found else 0
        if path.stat().st_size == whole:  # and keeps its date
            return
        with path.open("rb") as file:
            file.seek(whole)
            tail = file.read()
        if found or b"\n" in tail:  # else of a process that died before it could say what its run is
            with (self.folder / CUT).open("ab") as kept:
                kept.write(tail)
            print(f"tracking: {path}: its last {len(tail):,} bytes are damaged, and now in {CUT} beside it", flush=True)
        self.sent = min(self.sent, whole)  # an event can be sent before it is on the disk
        os.truncate(path, whole)

    def resume(self) -> None:
        """Go on with an execution that did not finish: what it has is not appended again."""
        for event, _ in self.events():
            if event["kind"] == "metrics":
                self._points |= {(name, step) for name, _, step in event["metrics"]}
            elif event["kind"] == "trial":
                self._trials.add(event["number"])

    def put_aside(self, reason: str) -> None:
        """Out of the way of the others, for a person to look at."""
        refused = self.folder.parent.with_name(REFUSED.name)
        target = refused / self.folder.name
        refused.mkdir(exist_ok=True)
        if target.exists():  # the same run, from another time
            shutil.rmtree(target)
        self.folder.rename(target)
        print(f"tracking: {self.folder.name} cannot be sent ({reason}): {remedy(target)}", flush=True)

    def remove(self) -> None:
        # Another name makes it no spool at once: what a kill, or somebody who looks for spools, leaves of it goes later.
        gone = self.folder.with_name(f".{uuid.uuid4().hex[:12]}")
        self.folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def remedy(refused: Path) -> str:
    return f"it lies in {refused}; mend it, move it back to {SPOOLS} and run python -m pipeline sync, or remove it"


def n_refused(root: Path) -> int:
    """How many spools were put aside, and lie there still."""
    return len(list(root.with_name(REFUSED.name).glob(f"*/{EVENTS}")))


def begin(root: Path, stage: str, key: str) -> Spool:
    """A spool for an execution of `stage`, locked: a new one, or that of an execution with this key that did not finish.

    Executions whose process died are closed as KILLED.
    """
    root.mkdir(parents=True, exist_ok=True)
    resumed: Spool | None = None
    with FileLock(root / LOCK, timeout=LOCK_SECONDS):
        for spool in _free(root):
            same = spool.folder.name.rpartition("-")[0] == f"{stage}-{key}"
            if resumed is None and same and spool.status != "FINISHED":
                resumed = spool
                continue
            if spool.status is None:
                spool.append("end", status="KILLED")
            age = time.time() - (spool.folder / EVENTS).stat().st_mtime
            if not spool.n_waiting and (spool.status == "FINISHED" or age > STALE_DAYS * 86_400):
                spool.remove()
            spool.lock.release()
        if resumed is not None:
            resumed.resume()
            return resumed
        spool = Spool(root / f"{stage}-{key}-{uuid.uuid4().hex[:12]}")
        spool.folder.mkdir()
        spool.lock.acquire()
        (spool.folder / EVENTS).touch()
        return spool


@contextmanager
def built(root: Path, stage: str, key: str) -> Iterator[Spool]:
    """A spool for a run that is rebuilt: there is one a key, and it is there whole or not at all.

    Its events have no times, so that those of others who rebuild it are the same.
    """
    root.mkdir(parents=True, exist_ok=True)
    folder = root / f"{stage}-{key}-restored{key}"
    temporary = Spool(root / f".{uuid.uuid4().hex[:12]}")
    temporary._has_times = False
    with FileLock(root / LOCK, timeout=LOCK_SECONDS):
        temporary.folder.mkdir()
        temporary.lock.acquire()
    try:
        yield temporary
        with FileLock(root / LOCK, timeout=LOCK_SECONDS):
            if not folder.exists():
                temporary.folder.rename(folder)
    finally:
        if temporary.folder.exists():
            shutil.rmtree(temporary.folder)
        temporary.lock.release()


def waiting(root: Path) -> list[Spool]:
    """Spools of ended executions that hold events which MLflow lacks, locked, the oldest first."""
    if not root.is_dir():
        return []
    found = []
    with FileLock(root / LOCK, timeout=LOCK_SECONDS):
        for spool in _free(root):
            if spool.status is not None and spool.n_waiting:
                found.append(spool)
            else:
                spool.lock.release()
    return sorted(found, key=_began)


def n_waiting(root: Path) -> int:
    """How many events MLflow lacks, those of living processes too."""
    found = 0
    for events in root.glob(f"*/{EVENTS}"):
        if _SPOOL.fullmatch(events.parent.name):
            with suppress(FileNotFoundError):  # sent just now
                found += Spool(events.parent).n_waiting
    return found


def on_its_way(root: Path, stage: str, key: str) -> bool:
    """Whether the run of the stage with this key is being logged, or is whole and waits to be sent."""
    for events in root.glob(f"{stage}-{key}-*/{EVENTS}"):
        spool = Spool(events.parent)
        try:
            with spool.lock:
                if spool.status == "FINISHED":
                    return True
        except Timeout:
            return True
        except FileNotFoundError:  # sent just now
            continue
    return False


def close_interrupted(root: Path) -> None:
    """Close the executions whose process died as KILLED."""
    if not root.is_dir():
        return
    with FileLock(root / LOCK, timeout=LOCK_SECONDS):
        for spool in _free(root):
            if spool.status is None:
                spool.append("end", status="KILLED")
            spool.lock.release()


def _free(root: Path) -> Iterator[Spool]:
    """The whole spools that no living process holds, locked; what is none yet, or no more, is removed."""
    for folder in sorted(root.iterdir()):
        begun = bool(_SPOOL.fullmatch(folder.name))
        if not begun and not _NO_SPOOL.fullmatch(folder.name):
            continue
        if folder.is_symlink() or not folder.is_dir():
            continue
        spool = Spool(folder)
        try:
            spool.lock.acquire()
            if begun:
                spool.cut()
                begun = spool.first is not None
                if not begun and (folder / CUT).exists():
                    spool.put_aside("its first event is damaged")
        except Timeout:
            continue
        except FileNotFoundError:  # removed by who had it until now
            begun = False
        except OSError as error:
            print(f"tracking: {folder} is left alone: {error.strerror}", flush=True)
            spool.lock.release()
            continue
        if begun:
            yield spool
        else:  # of a process that died before it could say what its run is
            shutil.rmtree(folder, ignore_errors=True)
            spool.lock.release()


def _began(spool: Spool) -> float:
    """When; a version to come may say it in another way."""
    time = (spool.first or {}).get("time")
    return float(time) if isinstance(time, int | float) else 0.0


def _parsed(line: bytes) -> Event | None:
    """The event of a line; None of a torn or damaged one."""
    if not line.endswith(b"\n"):
        return None
    try:
        event = json.loads(line.decode("utf-8", "surrogatepass"))
    except ValueError:
        return None
    return event if isinstance(event, dict) and "kind" in event else None


def _link(source: Path, target: Path) -> None:
    if source.suffix == ".py":  # which people change in place
        shutil.copyfile(source, target)
        return
    try:
        target.hardlink_to(source.resolve())
    except OSError:  # another disk, or one without links
        shutil.copyfile(source, target)
