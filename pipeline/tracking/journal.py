"""Keep what stages log on disk until MLflow has it: a folder per execution, a line of JSON per event.

A stage calls `begin`, a sender calls `waiting`. A journal belongs to the process that holds its lock; the system
releases the locks of a process that dies. The lock of `root` is held only while journals are listed.
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
JOURNALS, REFUSED = Path(".state/runs"), Path(".state/refused")  # in the project
LOCK_SECONDS = 3.0  # the longest wait for another process that lists journals
STALE_DAYS = 7  # after which the journal of an unfinished execution is removed, if all of it is sent
_JOURNAL = re.compile(r".+-\w+-([0-9a-f]{12}|restored\w+)")
_TEMPORARY = re.compile(r"\.[0-9a-f]{12}")  # being built or removed
Status = Literal["FINISHED", "FAILED", "KILLED"]
Event = Mapping[str, Any]


class Journal:
    """The events of one execution of a stage, for use by the holder of its lock."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.execution = folder.name.rpartition("-")[2]
        self.is_restored = self.execution.startswith("restored")  # by `sync`; other clones may send the same run
        # The stage's thread acquires it, the sending thread releases it.
        self.lock = FileLock(folder / LOCK, thread_local=False, blocking=False)
        self._points: set[tuple[str, int]] = set()
        self._trials: set[int] = set()
        self._has_times = True

    def append(self, kind: str, **fields: Any) -> None:
        """Add an event at the current time or that in `fields`; skip metrics and trials logged before a resume."""
        if kind == "metrics":
            fields["metrics"] = [m for m in fields["metrics"] if (m[0], m[2]) not in self._points]
            if not fields["metrics"]:
                return
        if kind == "trial" and fields["number"] in self._trials:
            return
        now = int(time.time() * 1000) if self._has_times else 0
        text = json.dumps({"kind": kind, "time": now, **fields}, ensure_ascii=False) + "\n"
        line = text.encode("utf-8", "surrogatepass")
        with (self.folder / EVENTS).open("ab", buffering=0) as file:
            start, written = file.tell(), 0
            try:
                while written < len(line):  # a full disk takes only part of it
                    written += file.write(line[written:])
            finally:
                if os.fstat(file.fileno()).st_size < start + len(line):  # events after a partial one would be lost
                    os.ftruncate(file.fileno(), start)

    def keep(self, files: Mapping[str, Path], name: str = "files") -> str:
        """Keep named files, which later stages may replace; returns their folder, relative to `folder`."""
        place = Path(FILES) / uuid.uuid4().hex[:12] / name
        for relative, file in files.items():
            target = self.folder / place / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            _link(file, target)
        return place.as_posix()

    def events(self, start: int = 0) -> list[tuple[Event, int]]:
        """The events from byte `start` up to the first damaged one, each with the byte at which it ends."""
        with (self.folder / EVENTS).open("rb") as file:
            file.seek(start)
            content = file.read()
        found, end = [], start
        for line in content.splitlines(keepends=True):
            if (event := _parsed(line)) is None:
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
        """How the execution ended; None if it has not ended, or was resumed."""
        statuses = [event.get("status") for event, _ in self.events() if event["kind"] in ("run", "end")]
        return statuses[-1] if statuses else None

    @property
    def sent(self) -> int:
        """The byte up to which MLflow has the events."""
        try:
            return min(int((self.folder / SENT).read_text()), (self.folder / EVENTS).stat().st_size)
        except (FileNotFoundError, ValueError):
            return 0  # sending twice loses nothing and makes no duplicates

    @sent.setter
    def sent(self, end: int) -> None:
        temporary = self.folder / f"{SENT}.new"
        temporary.write_text(str(end))
        temporary.replace(self.folder / SENT)

    @property
    def n_waiting(self) -> int:
        return len(self.events(self.sent))

    def flush(self) -> None:
        """Flush the events to disk, so that they survive a power loss."""
        with (self.folder / EVENTS).open("rb") as file:
            os.fsync(file.fileno())

    def cut(self) -> None:
        """Move damaged bytes at the end, left by a kill or a power loss, to another file."""
        found, path = self.events(), self.folder / EVENTS
        whole = found[-1][1] if found else 0
        if path.stat().st_size == whole:  # then the modification time, the age of the journal, must stay
            return
        with path.open("rb") as file:
            file.seek(whole)
            tail = file.read()
        if found or b"\n" in tail:  # else the process died while writing its first event
            with (self.folder / CUT).open("ab") as kept:
                kept.write(tail)
            print(f"tracking: {path}: moved {len(tail):,} damaged bytes from its end to {CUT}", flush=True)
        self.sent = min(self.sent, whole)  # an event can be sent before it is on disk
        os.truncate(path, whole)

    def resume(self) -> None:
        """Remember the logged metrics and trials, so that they are not appended again."""
        logged = [event for event, _ in self.events()]
        self._points = {(m[0], m[2]) for event in logged if event["kind"] == "metrics" for m in event["metrics"]}
        self._trials = {event["number"] for event in logged if event["kind"] == "trial"}

    def quarantine(self, reason: str) -> None:
        """Move the journal to `REFUSED`, where it does not hold up the others."""
        refused = self.folder.parent.with_name(REFUSED.name)
        target = refused / self.folder.name
        refused.mkdir(exist_ok=True)
        shutil.rmtree(target, ignore_errors=True)  # the same run, quarantined before
        self.folder.rename(target)
        print(f"tracking: {self.folder.name} cannot be sent ({reason}), quarantined: {remedy(target)}", flush=True)

    def remove(self) -> None:
        gone = _temporary(self.folder.parent)  # a half-removed folder is never taken for a journal
        self.folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def _temporary(root: Path) -> Path:
    return root / f".{uuid.uuid4().hex[:12]}"


def remedy(quarantined: Path) -> str:
    return f"repair {quarantined}, move it back to {JOURNALS} and run python -m pipeline sync, or delete it"


def n_refused(root: Path) -> int:
    return len(list(root.with_name(REFUSED.name).glob(f"*/{EVENTS}")))


def begin(root: Path, stage: str, key: str) -> Journal:
    """Lock and return the journal of an unfinished execution of `stage` with this key, or a new one."""
    root.mkdir(parents=True, exist_ok=True)
    resumed: Journal | None = None
    with FileLock(root / LOCK, timeout=LOCK_SECONDS):
        for journal in _free(root):
            same = journal.folder.name.rpartition("-")[0] == f"{stage}-{key}"
            if resumed is None and same and journal.status != "FINISHED":
                resumed = journal
                continue
            if journal.status is None:  # its process died
                journal.append("end", status="KILLED")
            age = time.time() - (journal.folder / EVENTS).stat().st_mtime
            if not journal.n_waiting and (journal.status == "FINISHED" or age > STALE_DAYS * 86_400):
                journal.remove()
            journal.lock.release()
        if resumed is not None:
            resumed.resume()
            return resumed
        journal = Journal(root / f"{stage}-{key}-{uuid.uuid4().hex[:12]}")
        journal.folder.mkdir()
        journal.lock.acquire()
        (journal.folder / EVENTS).touch()
        return journal


@contextmanager
def restored(root: Path, stage: str, key: str) -> Iterator[Journal]:
    """Yield a journal for a restored run, put in place only once it is complete; there is one per key."""
    root.mkdir(parents=True, exist_ok=True)
    folder = root / f"{stage}-{key}-restored{key}"
    temporary = Journal(_temporary(root))
    temporary._has_times = False  # so that all clones that restore the run write the same events
    with FileLock(root / LOCK, timeout=LOCK_SECONDS):
        temporary.folder.mkdir()
        temporary.lock.acquire()
    try:
        yield temporary
        with FileLock(root / LOCK, timeout=LOCK_SECONDS):
            if not folder.exists():
                temporary.folder.rename(folder)
    finally:
        shutil.rmtree(temporary.folder, ignore_errors=True)
        temporary.lock.release()


def waiting(root: Path) -> list[Journal]:
    """Lock and return the journals of ended executions with unsent events, oldest first."""
    if not root.is_dir():
        return []
    found = []
    with FileLock(root / LOCK, timeout=LOCK_SECONDS):
        for journal in _free(root):
            if journal.status is not None and journal.n_waiting:
                found.append(journal)
            else:
                journal.lock.release()
    return sorted(found, key=_started)


def n_waiting(root: Path) -> int:
    """The number of unsent events, including those of running stages."""
    found = 0
    for events in root.glob(f"*/{EVENTS}"):
        if _JOURNAL.fullmatch(events.parent.name):
            with suppress(FileNotFoundError):  # sent and removed just now
                found += Journal(events.parent).n_waiting
    return found


def on_its_way(root: Path, stage: str, key: str) -> bool:
    """True if the run of this stage and key is being logged, or is finished and waits to be sent."""
    for events in root.glob(f"{stage}-{key}-*/{EVENTS}"):
        journal = Journal(events.parent)
        try:
            with journal.lock:
                if journal.status == "FINISHED":
                    return True
        except Timeout:
            return True
        except FileNotFoundError:  # sent and removed just now
            continue
    return False


def close_interrupted(root: Path) -> None:
    if not root.is_dir():
        return
    with FileLock(root / LOCK, timeout=LOCK_SECONDS):
        for journal in _free(root):
            if journal.status is None:
                journal.append("end", status="KILLED")
            journal.lock.release()


def _free(root: Path) -> Iterator[Journal]:
    """Lock and yield the journals that no living process holds; remove those without an event or half removed."""
    for folder in sorted(root.iterdir()):
        begun = bool(_JOURNAL.fullmatch(folder.name))
        is_ours = begun or _TEMPORARY.fullmatch(folder.name)
        if not is_ours or folder.is_symlink() or not folder.is_dir():
            continue
        journal = Journal(folder)
        try:
            journal.lock.acquire()
            if begun:
                journal.cut()
                begun = journal.first is not None
                if not begun and (folder / CUT).exists():
                    journal.quarantine("its first event is damaged")
        except Timeout:
            continue
        except FileNotFoundError:  # removed by its former owner
            begun = False
        except OSError as error:
            print(f"tracking: skipped {folder}: {error.strerror}", flush=True)
            journal.lock.release()
            continue
        if begun:
            yield journal
        else:
            shutil.rmtree(folder, ignore_errors=True)
            journal.lock.release()


def _started(journal: Journal) -> float:
    """Start time in ms; 0 where another version wrote something else."""
    time = (journal.first or {}).get("time")
    return float(time) if isinstance(time, int | float) else 0.0


def _parsed(line: bytes) -> Event | None:
    """The event in a line; None if the line is damaged or incomplete."""
    if not line.endswith(b"\n"):
        return None
    try:
        event = json.loads(line.decode("utf-8", "surrogatepass"))
    except ValueError:
        return None
    return event if isinstance(event, dict) and "kind" in event else None


def _link(source: Path, target: Path) -> None:
    if source.suffix != ".py":  # editors change code in place
        with suppress(OSError):  # on another disk, or on one without hard links
            target.hardlink_to(source.resolve())
            return
    shutil.copyfile(source, target)
