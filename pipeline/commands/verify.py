"""Rebuild every stage in a temporary clone and compare its outputs with `dvc.lock`, byte for byte."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.commands import objects
from pipeline.commands.comparison import difference
from pipeline.core.errors import UserError, printable
from pipeline.runtime import console
from pipeline.tracking import identity, store

LOCK = Path("dvc.lock")
DAMAGED = f"{LOCK} is damaged: run git checkout {LOCK}, then dvc repro"
SOURCES = Path("data/source")
COMMAND = "its command"
FOREIGN = ("DVC_", "GIT_", "MLFLOW_", "PYTHON")  # variables that would direct the clone to the project's own files
Entry = Mapping[str, Any]  # of a stage in dvc.lock
Lock = Mapping[str, Entry]


@dataclass(frozen=True)
class Verdict:
    """The result of a stage: `lines` has (file, difference) or ("", reason); it is empty if identical."""

    stage: str
    n_files: int
    lines: Sequence[tuple[str, str]] = ()

    @property
    def identical(self) -> bool:
        return not self.lines

    @property
    def text(self) -> str:
        if self.identical:
            return f"identical, {self.n_files} file{'s' * (self.n_files != 1)}"
        return "; ".join(f"{file}: {how}" if file else how for file, how in self.lines)


def _prevented(stage: str, why: str) -> Verdict:
    return Verdict(stage, 0, [("", why)])


def report(only: str | None) -> None:
    """Verify and print a table of each stage's differences; exits with status 1 unless all are identical."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    verdicts = verify(only)
    table = Table("stage", "file", "difference")
    for verdict in verdicts:
        for row, (file, how) in enumerate(verdict.lines or [("", verdict.text)]):
            table.add_row(*map(Text, ("" if row else verdict.stage, file, how)))
    Console().print(table)
    n_identical = sum(verdict.identical for verdict in verdicts)
    print(f"{n_identical} of {len(verdicts)} stages identical")
    if n_identical < len(verdicts):
        raise SystemExit(1)


def verify(only: str | None = None) -> list[Verdict]:
    """Rebuild all stages, or `only` one from its inputs in `dvc.lock`; returns a verdict per stage, in build order."""
    root = git_root()
    locked = load_lock()
    listed = _call(Path(), sys.executable, "-m", "dvc", "stage", "list", "--name-only", "--fail")
    lock, removed = split(locked, [line.strip() for line in listed.splitlines()])
    if removed:
        print(f"skipped, no longer in dvc.yaml: {printable(', '.join(removed))}", flush=True)
    chosen = select(lock, only)
    with clone(root) as folder:
        reasons = stale(lock, changes(folder))
        verdicts: list[Verdict] = []
        with console.progress("verify", len(chosen)) as advance:
            for stage in chosen:
                start = time.monotonic()
                why = reasons.get(stage)
                verdicts.append(_prevented(stage, why) if why else _rebuild(stage, lock, folder, only))
                advance(f"{stage}: {verdicts[-1].text}, {time.monotonic() - start:.0f} s")
    never_ran = [] if only else sorted(set(reasons) - set(lock))
    return verdicts + [_prevented(stage, reasons[stage]) for stage in never_ran]


def load_lock(path: Path = LOCK) -> Lock:
    """Read the stages of `dvc.lock`."""
    if not path.exists():
        raise UserError(f"{path} is missing: run dvc repro in the project folder")
    try:
        stages: dict[str, Entry] = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))["stages"]
        is_valid = all(
            entry["cmd"] and one["path"] and objects.is_checksum(one["md5"])
            for entry in stages.values()
            for one in [*entry.get("deps", []), *entry["outs"]]
        ) and all(objects.is_inside(out["path"]) for entry in stages.values() for out in entry["outs"])
    except (YAMLError, KeyError, TypeError, AttributeError, ValueError):
        is_valid = False
    if not is_valid:
        raise UserError(DAMAGED) from None
    return stages


def _makers(lock: Lock) -> dict[str, str]:
    return {out["path"]: stage for stage, entry in lock.items() for out in entry["outs"]}


def split(lock: Lock, stages: Collection[str]) -> tuple[Lock, list[str]]:
    """Return the entries of `stages` in build order, and the names of obsolete entries, which DVC keeps."""
    kept = {stage: entry for stage, entry in lock.items() if stage in stages}
    makers = _makers(kept)
    needs = {
        stage: [makers[dep["path"]] for dep in entry.get("deps", []) if dep["path"] in makers]
        for stage, entry in kept.items()
    }
    try:
        order = list(TopologicalSorter(needs).static_order())
    except CycleError:
        raise UserError(DAMAGED) from None
    return {stage: kept[stage] for stage in order}, sorted(str(stage) for stage in lock.keys() - kept.keys())


def select(lock: Lock, only: str | None) -> list[str]:
    """The stages to verify; `evaluate` selects `evaluate@train` and the others of its matrix."""
    chosen = [stage for stage in lock if only in (None, stage, stage.partition("@")[0])]
    if not chosen:
        raise UserError(f"--stage must be one of {', '.join(lock)}, got {only}")
    return chosen


def stale(lock: Lock, changed: Mapping[str, Iterable[str]]) -> dict[str, str]:
    """Return why each stale stage may differ from `dvc.lock`: an input changed, or it never ran.

    `changed` holds what DVC reports as changed, by stage.
    """
    outs = {out["path"]: out["md5"] for entry in lock.values() for out in entry["outs"]}
    makers = _makers(lock)
    found: dict[str, str] = {}
    for stage, entry in lock.items():
        inputs = {dep["path"]: dep["md5"] for dep in entry.get("deps", []) if dep["path"] in outs}
        why = [name for name in changed.get(stage, ()) if name == COMMAND or name not in outs]
        why += [path for path, md5 in inputs.items() if md5 != outs[path]]
        after = [makers[path] for path in inputs if makers[path] in found]
        if why:
            shown = ", ".join(sorted(why)[:3]) + (", …" if len(why) > 3 else "")
            found[stage] = f"stale: {shown} changed; run dvc repro"
        elif after:
            found[stage] = f"stale: depends on {after[0]}, which is stale"
    return found | {stage: "stale: never ran; run dvc repro" for stage in changed if stage not in lock}


def changes(folder: Path) -> dict[str, list[str]]:
    """The changed parameters, dependencies and commands that DVC reports in `folder`, by stage."""
    found = {}
    for stage, reports in json.loads(_call(folder, sys.executable, "-m", "dvc", "status", "--json")).items():
        names: list[str] = []
        for part in reports:
            if isinstance(part, str):  # "changed command"
                names.append(COMMAND)
                continue
            for name, what in part.get("changed deps", {}).items():
                names += [f"{key} in {name}" for key in what] if isinstance(what, dict) else [name]
        if names:
            found[stage] = names
    return found


def git_root() -> Path:
    """The root of the git repository: this folder, or one above it."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / ".git").exists():
            return folder
    raise UserError(f"{here} is not in a git repository, which verify has to clone: run git init")


@contextmanager
def clone(root: Path) -> Iterator[Path]:
    """Yield a temporary clone of the repository `root` with the files of this folder, but no outputs, cache or runs.

    The files are in the root of the clone, also if this folder is below the root of the repository.
    """
    with tempfile.TemporaryDirectory(prefix="verify-") as temporary:
        folder = Path(temporary).resolve() / "clone"
        _call(Path(), "git", "clone", "--quiet", "--no-checkout", str(root), str(folder))
        for name in _call(Path(), "git", "ls-files", "-z", "-co", "--exclude-standard").split("\0"):
            if name and Path(name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(name, folder / name)
        if SOURCES.is_dir():  # it also holds tables that git ignores
            shutil.copytree(SOURCES, folder / SOURCES, dirs_exist_ok=True)
        # The user's own configuration of DVC may name a shared cache.
        (folder / ".dvc/config.local").write_text("[cache]\n    dir = cache\n", encoding="utf-8")
        yield folder


def _rebuild(stage: str, lock: Lock, folder: Path, only: str | None) -> Verdict:
    entry = lock[stage]
    if only:
        _place_inputs(stage, lock, folder)
    elif missing := [dep["path"] for dep in entry.get("deps", []) if not (folder / dep["path"]).exists()]:
        return _prevented(stage, f"not rebuilt: {missing[0]} is missing")
    failure = _run(entry["cmd"], folder)  # the same as in dvc.yaml: a stage with another command is stale
    if failure:
        return _prevented(stage, f"failed: {failure}")
    compared = [compare(out, folder) for out in entry["outs"]]
    return Verdict(stage, sum(n for n, _ in compared), [line for _, lines in compared for line in lines])


def _run(command: str, folder: Path) -> str:
    """Run a stage as DVC does, in a session that ends with this one; returns its last line if it failed, else ""."""
    with (folder.parent / "output").open("w+", encoding="utf-8", errors="replace") as output:
        process = subprocess.Popen(
            command, shell=True, cwd=folder, env=_environment(folder), stdin=subprocess.DEVNULL,
            stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            status = process.wait()
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
        output.seek(0)
        lines = [line.strip() for line in output if line.strip()]
    return "" if status == 0 else (lines[-1] if lines else f"exit status {status}")


def _environment(folder: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    return kept | {"PATH": programs, "MLFLOW_TRACKING_URI": store.database_uri(folder / "mlflow.db")}


def _call(folder: Path, *command: str) -> str:
    done = subprocess.run(
        command, cwd=folder, env=_environment(folder), capture_output=True, text=True, check=False,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise UserError(f"{' '.join(Path(part).name for part in command[:4])} failed: {lines[-1]}")
    return done.stdout


def compare(out: Entry, folder: Path) -> tuple[int, list[tuple[str, str]]]:
    """Compare an output in `folder` with `dvc.lock`; returns its number of files, and each difference by file."""
    path, rebuilt = Path(out["path"]), folder / out["path"]
    if not rebuilt.exists():
        return 0, [(str(path), "is missing")]
    new, checksum = objects.checksums(rebuilt), identity.checksum(rebuilt)
    if checksum == out["md5"]:
        return len(new), []
    old = objects.locked_checksums(path, out["md5"])
    if old is None:
        return len(new), [(str(path), _without_original(checksum, out["md5"]))]
    lines = []
    for name in sorted(old.keys() | new.keys()):
        if name not in old:
            how = "is new"
        elif name not in new:
            how = "is missing"
        elif new[name] == old[name]:
            continue
        elif (original := objects.locked_file(path / name, old[name])) is None:
            how = _without_original(new[name], old[name])
        else:
            how = difference(name, original.read_bytes(), (rebuilt / name).read_bytes())
        lines.append((str(path / name), how))
    return len(new), lines


def _without_original(new: str, old: str) -> str:
    return f"checksum {new}, was {old}; no original to compare with"


def _place_inputs(stage: str, lock: Lock, folder: Path) -> None:
    makers = _makers(lock)
    for dep in lock[stage].get("deps", []):
        path = Path(dep["path"])
        if dep["path"] not in makers or (folder / path).exists():
            continue
        files = objects.locked_files(path, dep["md5"])
        if files is None:
            raise UserError(f"{path} differs from dvc.lock: run dvc checkout {path}, or dvc pull {path}")
        for name, file in files.items():
            (folder / path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, folder / path / name)
