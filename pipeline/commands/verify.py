"""Every stage rebuilt from nothing in a temporary clone, and its outputs held against `dvc.lock`, byte for byte."""

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
from pipeline.tracking import identity

LOCK = Path("dvc.lock")
TORN = f"{LOCK} is torn: run git checkout {LOCK}, then dvc repro"
SOURCES = Path("data/source")
COMMAND = "its command"
FOREIGN = ("DVC_", "GIT_", "MLFLOW_", "PYTHON")  # variables that would lead the clone back to the project
Entry = Mapping[str, Any]  # of a stage in dvc.lock
Lock = Mapping[str, Entry]


@dataclass(frozen=True)
class Verdict:
    """What became of a stage: `lines` are empty if it repeats, else (file, how it differs), or what was in the way."""

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


def verify(only: str | None = None) -> list[Verdict]:
    """Rebuild all stages, or `only` one from inputs as `dvc.lock` has them; a verdict a stage, in the order they ran."""
    lock, gone = split(load_lock(), known())
    if gone:
        print(f"no longer in dvc.yaml, and not run: {printable(', '.join(gone))}", flush=True)
    chosen = select(lock, only)
    with clone() as folder:
        old = stale(lock, changes(folder))
        verdicts: list[Verdict] = []
        with console.progress("verify", len(chosen)) as advance:
            for stage in chosen:
                begun = time.monotonic()
                verdict = Verdict(stage, 0, [("", old[stage])]) if stage in old else _rebuild(stage, lock, folder, only)
                verdicts.append(verdict)
                advance(f"{stage}: {verdict.text}, {time.monotonic() - begun:.0f} s")
        missing = [] if only else sorted(set(old) - set(lock))
        return verdicts + [Verdict(stage, 0, [("", old[stage])]) for stage in missing]


# ------------------------------------------------------------------------------------------------ what dvc.lock says


def load_lock(path: Path = LOCK) -> Lock:
    """The stages of `dvc.lock`."""
    if not path.exists():
        raise UserError(f"{path} is missing: run dvc repro in the folder of the project")
    try:
        stages: dict[str, Entry] = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))["stages"]
        whole = all(
            entry["cmd"] and one["path"] and objects.is_sum(one["md5"])
            for entry in stages.values()
            for one in [*entry.get("deps", []), *entry["outs"]]
        ) and all(objects.is_inside(out["path"]) for entry in stages.values() for out in entry["outs"])
    except (YAMLError, KeyError, TypeError, AttributeError, ValueError):
        whole = False
    if not whole:
        raise UserError(TORN) from None
    return stages


def known() -> set[str]:
    """The stages that `dvc.yaml` has."""
    said = _call(Path(), sys.executable, "-m", "dvc", "stage", "list", "--name-only", "--fail")
    return {line.strip() for line in said.splitlines()}


def split(lock: Lock, stages: Collection[str]) -> tuple[Lock, list[str]]:
    """Those of `stages`, each before those that need it; and the others, which DVC keeps in the lock for ever.

    Raises `UserError` if they need each other.
    """
    kept = {stage: entry for stage, entry in lock.items() if stage in stages}
    makers = {out["path"]: stage for stage, entry in kept.items() for out in entry["outs"]}
    needs = {
        stage: [makers[dep["path"]] for dep in entry.get("deps", []) if dep["path"] in makers]
        for stage, entry in kept.items()
    }
    try:
        order = list(TopologicalSorter(needs).static_order())
    except CycleError:
        raise UserError(TORN) from None
    return {stage: kept[stage] for stage in order}, sorted(str(stage) for stage in lock.keys() - kept.keys())


def select(lock: Lock, only: str | None) -> list[str]:
    """The stages to verify; `evaluate` stands for `evaluate@train` and its like."""
    chosen = [stage for stage in lock if only in (None, stage, stage.partition("@")[0])]
    if not chosen:
        raise UserError(f"--stage must be one of {', '.join(lock)}, got {only}")
    return chosen


def stale(lock: Lock, changed: Mapping[str, Iterable[str]]) -> dict[str, str]:
    """Why a stage need not repeat what `dvc.lock` says, for those of which it is so: it, or what it needs, has changed since.

    `changed` holds what DVC finds changed of a stage; stages that DVC knows and `dvc.lock` does not are stale as well.
    """
    outs = {out["path"]: out for entry in lock.values() for out in entry["outs"]}
    makers = {out["path"]: stage for stage, entry in lock.items() for out in entry["outs"]}
    found: dict[str, str] = {}
    for stage, entry in lock.items():
        inputs = [dep for dep in entry.get("deps", []) if dep["path"] in outs]
        why = [name for name in changed.get(stage, ()) if name == COMMAND or name not in outs]
        why += [dep["path"] for dep in inputs if dep["md5"] != outs[dep["path"]]["md5"]]
        after = [makers[dep["path"]] for dep in inputs if makers[dep["path"]] in found]
        if why:
            shown = ", ".join(sorted(why)[:3]) + (", …" if len(why) > 3 else "")
            found[stage] = f"stale: {shown} changed since; run dvc repro"
        elif after:
            found[stage] = f"stale: needs {after[0]}, which is stale"
    return found | {stage: "stale: never ran; run dvc repro" for stage in changed if stage not in lock}


def changes(folder: Path) -> dict[str, list[str]]:
    """What DVC finds changed of each stage in `folder`, outputs left aside: params, deps and commands by name."""
    done = _call(folder, sys.executable, "-m", "dvc", "status", "--json")
    found = {}
    for stage, reports in json.loads(done).items():
        names: list[str] = []
        for report in reports:
            if isinstance(report, str):  # "changed command"
                names.append(COMMAND)
                continue
            for name, what in report.get("changed deps", {}).items():
                names += [f"{key} in {name}" for key in what] if isinstance(what, dict) else [name]
        found[stage] = names
    return {stage: names for stage, names in found.items() if names}


# ---------------------------------------------------------------------------------------------------- the clone


@contextmanager
def clone() -> Iterator[Path]:
    """Yield a temporary clone with the files of the working tree, and no outputs, cache or runs of the project."""
    with tempfile.TemporaryDirectory(prefix="verify-") as temporary:
        folder = Path(temporary).resolve() / "clone"
        _call(Path(), "git", "clone", "--quiet", "--no-checkout", ".", str(folder))
        for name in _call(Path(), "git", "ls-files", "-z", "-co", "--exclude-standard").split("\0"):
            if name and Path(name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(name, folder / name)
        if SOURCES.is_dir():  # tables that git ignores are there too
            shutil.copytree(SOURCES, folder / SOURCES, dirs_exist_ok=True)
        # Whatever the user's own configuration of DVC says about a shared cache.
        (folder / ".dvc/config.local").write_text("[cache]\n    dir = cache\n", encoding="utf-8")
        yield folder


def _rebuild(stage: str, lock: Lock, folder: Path, only: str | None) -> Verdict:
    entry = lock[stage]
    if only:
        _place_inputs(stage, lock, folder)
    elif missing := [dep["path"] for dep in entry.get("deps", []) if not (folder / dep["path"]).exists()]:
        return Verdict(stage, 0, [("", f"not rebuilt: {missing[0]} was not made")])
    failure = _run(entry["cmd"], folder)  # as dvc.yaml has it: a stage whose command differs there is stale
    if failure:
        return Verdict(stage, 0, [("", f"failed: {failure}")])
    n_files = 0
    lines: list[tuple[str, str]] = []
    for out in entry["outs"]:
        n, found = compare(out, folder)
        n_files, lines = n_files + n, lines + found
    return Verdict(stage, n_files, lines)


def _run(command: str, folder: Path) -> str:
    """Run a stage as DVC does, in a session of its own that ends with this one; what it said last if it failed."""
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
        said = [line.strip() for line in output if line.strip()]
    return "" if status == 0 else (said[-1] if said else f"exit status {status}")


def _environment(folder: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    return kept | {"PATH": programs, "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}"}


def _call(folder: Path, *command: str) -> str:
    """A program's output; raises `UserError` with its last line if it fails."""
    done = subprocess.run(
        command, cwd=folder, env=_environment(folder), capture_output=True, text=True, check=False,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise UserError(f"{' '.join(Path(part).name for part in command[:4])} failed: {said[-1]}")
    return done.stdout


# -------------------------------------------------------------------------------------- outputs, by their sums


def compare(out: Entry, folder: Path) -> tuple[int, list[tuple[str, str]]]:
    """How many files an output has in `folder`, and each one that is not what `dvc.lock` says, with the difference."""
    path = Path(out["path"])
    if not (folder / path).exists():
        return 0, [(str(path), "was not made")]
    now = objects.sums(folder / path)
    if identity.content(folder / path) == out["md5"]:
        return len(now), []
    before = objects.locked_sums(path, out["md5"])
    if before is None:
        return len(now), [
            (str(path), f"its sum is {identity.content(folder / path)}, was {out['md5']}; no original to compare with")
        ]
    lines = []
    for name in sorted(before.keys() | now.keys()):
        file = str(path / name)
        if name not in now or name not in before:
            lines.append((file, "was not made" if name in before else "is new"))
        elif now[name] != before[name]:
            original = objects.locked_file(path / name, before[name])
            lines.append(
                (file, f"its sum is {now[name]}, was {before[name]}; no original to compare with")
                if original is None
                else (file, difference(name, original.read_bytes(), (folder / path / name).read_bytes()))
            )
    return len(now), lines


def _place_inputs(stage: str, lock: Lock, folder: Path) -> None:
    """Copy what other stages made for this one into the clone, as `dvc.lock` has it."""
    made = {out["path"] for entry in lock.values() for out in entry["outs"]}
    for dep in lock[stage].get("deps", []):
        path = Path(dep["path"])
        if dep["path"] not in made or (folder / path).exists():
            continue
        files = objects.locked_files(path, dep["md5"])
        if files is None:
            raise UserError(f"{path} is not here as dvc.lock has it: run dvc checkout {path}, or dvc pull {path}")
        for name, file in files.items():
            (folder / path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, folder / path / name)
