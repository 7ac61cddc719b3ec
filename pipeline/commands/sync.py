"""MLflow brought in line with DVC: a run for each stage of dvc.lock that has none, rebuilt from its versioned outputs."""

import copy
import csv
import json
import re
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet
from filelock import Timeout

from pipeline.commands import objects
from pipeline.core import config
from pipeline.core.errors import UserError, printable
from pipeline.core.secrets import without_secret
from pipeline.core.settings import Config, Tracking
from pipeline.tracking import identity, runs, store
from pipeline.tracking import journal as spools
from pipeline.tracking.writer import Writer

PATIENCE = 300.0  # seconds: nothing waits for a sync, and what does not answer ends it earlier
Outputs = Mapping[str, Path]  # files by their name below an output or a dependency
# What reading a file of another format ends in.
STRANGE = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
    csv.Error,
    pyarrow.ArrowException,
)


@dataclass(frozen=True)
class Entry:
    """A stage in dvc.lock: its parameters, and the sums of what it read and wrote."""

    params: Mapping[str, Any]
    flat: Mapping[str, Any]
    deps: Mapping[str, str]
    outs: Mapping[str, str]
    key: str  # as the stage computes it when it runs


@dataclass(frozen=True)
class Version:
    """The stages that dvc.lock has, and the parameters beside it: in the working tree, or in a commit."""

    name: str
    entries: Mapping[str, Entry]
    params: Mapping[str, Any]
    tags: Mapping[str, str]

    @classmethod
    def of(cls, name: str, lock: bytes, params: bytes, tags: Mapping[str, str]) -> "Version":
        """From the content of the two files; raises `UserError` where they are torn."""
        try:
            # With its bounds: a commit of somebody else's may be made to take for ever.
            stages, values = (config.yaml_values(Path(name), content.decode()) for content in (lock, params))
            entries = {stage: _entry(stage, locked) for stage, locked in stages["stages"].items()}
        except STRANGE:
            raise UserError(f"dvc.lock or params.yaml of {name} is torn: git checkout it, or run dvc repro") from None
        return cls(name, entries, values, tags)


def _entry(stage: str, locked: Mapping[str, Any]) -> Entry:
    if not re.fullmatch(r"\w+(@\w+)?", stage):
        raise ValueError(stage)  # it becomes part of a path
    given = (locked.get("params") or {}).get("params.yaml") or {}
    deps, outs = ({one["path"]: one["md5"] for one in locked.get(part, [])} for part in ("deps", "outs"))
    flat = {name: value for name, at in given.items() for name, value in config.flatten({name: at}).items()}
    return Entry(given, flat, deps, outs, identity.stage_key({"params": flat, "deps": deps}))


class MissingError(Exception):
    """A versioned file is neither in the working tree nor in DVC's cache."""


def sync(all_commits: bool = False) -> None:
    """Send what waits, then rebuild the runs that are missing.

    Raises `UserError` if MLflow does not answer, or does not take what it is sent.
    """
    root = identity.project_root() / spools.SPOOLS
    try:
        _sync(root, all_commits)
    except Timeout:
        raise UserError(f"another process is busy in {root}: run this again in a moment") from None
    aside = spools.n_refused(root)
    if aside:
        raise UserError(f"{aside} runs are not in MLflow, which did not take them: {spools.remedy(spools.REFUSED)}")


def _sync(root: Path, all_commits: bool) -> None:
    settings = config.load().tracking
    spools.close_interrupted(root)
    _send(root, settings, "sent: {} that waited")

    here = _working_tree()
    current = {entry.key for entry in here.entries.values()}
    missing, built, left_out, seen = list[str](), 0, 0, set[str]()
    for version in [*(_commits() if all_commits else []), here]:
        for stage, entry in version.entries.items():
            if entry.key in seen:
                continue
            seen.add(entry.key)
            if spools.on_its_way(root, stage, entry.key) or store.is_tracked(settings, entry.key):
                continue
            try:
                with spools.built(root, stage, entry.key) as spool:
                    run = runs.Run(spool)
                    run.start(stage, entry.key, settings, {**version.tags, "restored": "true"})
                    _rebuild(run, stage, entry, version, is_current=entry.key in current)
                    run.end("FINISHED")
                    if not run.works:
                        raise UserError(f"{root} cannot be written: free some space, or see who owns it")
                built += 1
            except MissingError as error:
                missing.append(f"{stage} of {version.name}: {error}")
            except UserError:
                raise
            except STRANGE as error:
                left_out += 1
                why = printable(without_secret(str(error)))[:160]
                print(f"{stage} of {version.name} is not as this version writes it ({why}), and left out")
    _send(root, settings, "restored: {}")
    if missing:
        remedy = "dvc fetch --all-commits (and dvc exp pull)" if all_commits else "dvc pull"
        more = ", …" if len(missing) > 3 else ""
        print(f"{len(missing)} runs lack objects ({'; '.join(missing[:3])}{more}): run {remedy}, then this again")
    elif not built:
        print(f"all {len(seen) - left_out} stages that can be rebuilt have their run")


def _send(root: Path, settings: Tracking, said: str) -> None:
    writer = Writer(settings, None)
    left = writer.close(PATIENCE)
    if left is not None:
        raise UserError(left)
    if writer.n_replayed:
        print(said.format(f"{writer.n_replayed} runs"), flush=True)


# ----------------------------------------------------------------------------------------------------------- versions


def _working_tree() -> Version:
    lock = Path("dvc.lock")
    if not lock.exists():
        raise UserError("dvc.lock is missing: run dvc repro")
    locked, params = (path.read_bytes() for path in (lock, config.PATH))
    return Version.of("the working tree", locked, params, identity.origin())


def _commits() -> Iterator[Version]:
    """Each commit of a branch, a tag or a DVC experiment that changed dvc.lock, the oldest first."""
    experiments = dict[str, str]()
    for line in (
        _git("for-each-ref", "refs/exps", "--format=%(objectname) %(refname)").decode(errors="replace").splitlines()
    ):
        commit, _, name = line.partition(" ")
        # refs/exps/ab/cdef…/name; others are of DVC's own doings
        if len(name.split("/")) == 5 and len(name.split("/")[2]) == 2:
            experiments[commit] = name.rpartition("/")[2]
    starts = ("--branches", "--tags", "--remotes", *experiments)
    for commit in _git("rev-list", "--reverse", "--topo-order", *starts, "--", "dvc.lock").decode().split():
        name, tags = commit[:7], {"git.commit": commit, "git.dirty": "false"}
        if commit in experiments:
            name = tags["dvc.exp"] = experiments[commit]
        try:
            locked, params = (_git("show", f"{commit}:./{file}") for file in ("dvc.lock", "params.yaml"))
            yield Version.of(name, locked, params, tags)
        except UserError as error:
            print(f"left out: {error}")


def _git(*arguments: str) -> bytes:
    done = subprocess.run(["git", *arguments], capture_output=True, check=False)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip() or "no message"
        raise UserError(f"git {arguments[0]} failed: {said.splitlines()[-1]}")
    return done.stdout


def _committed() -> int:
    """When the results in the working tree were committed, in ms; 0 if nobody knows."""
    with suppress(UserError, ValueError):
        return 1000 * int(_git("log", "-1", "--format=%ct", "--", "dvc.lock"))
    return 0


# --------------------------------------------------------------------------------------------------------------- runs


def _rebuild(run: runs.Run, stage: str, entry: Entry, version: Version, is_current: bool) -> None:
    """Log what the stage logged, as far as its outputs tell."""
    name, _, model = stage.partition("@")
    outs = {name: file for path, md5 in entry.outs.items() for name, file in _files(path, md5).items()}

    def dep(path: str) -> Outputs:
        return _files(path, entry.deps[path])

    settings = _settings(version.params, entry)
    if name in ("train", "search") and settings is not None:
        settings = settings.sized(_json(outs["model.json"])["schema"]["rows"]["source_train"])
    run.log_params(entry.flat if settings is None else runs.in_force(settings, entry.flat))
    match name:
        case "fetch":
            for file_name, file in outs.items():
                found, table = pyarrow.parquet.read_metadata(file), Path(file_name).stem
                run.log_metrics({f"{table}.rows": found.num_rows, f"{table}.columns": found.num_columns})
        case "prepare":
            run.log_metrics({f"rows.{name}": n for name, n in _json(outs["schema.json"])["rows"].items()})
            run.log_kept({"schema.json": outs["schema.json"]})
        case "baseline" | "evaluate":
            if model:
                run.set_tags({"model": model})
                run.log_params(_json(dep(f"models/{model}")["model.json"])["params"])
            run.log_metrics(_json(outs["metrics.json"]))
            run.log_kept(outs)
        case "finetune" if not _json(outs["transfer.json"]):
            pass  # there was no transfer domain
        case "train" | "finetune" | "search":
            body = _json(outs["model.json"])
            run.log_epochs(_rows(outs["history.csv"]))
            run.log_metrics({"temperature": body["temperature"]})
            if "overfit.csv" in outs:
                run.log_epochs(_rows(outs["overfit.csv"]), prefix="overfit/")
            if "transfer.json" in outs:
                run.log_metrics({f"transfer.{name}": score for name, score in _json(outs["transfer.json"]).items()})
            if "trials.csv" in outs:
                _trials(run, outs["trials.csv"])
            bundle = {"model.json", "model.safetensors", "history.csv", "transfer.json"}
            run.log_kept({name: file for name, file in outs.items() if name not in bundle})
            run.log_kept_model(outs)
        case "register":
            same = outs["model.json"].read_bytes()
            models = {
                name: dep(f"models/{name}")["model.json"].read_bytes() for name in ("train", "search", "finetune")
            }
            chosen = next((name for name, content in models.items() if content == same), None)
            if chosen is None:
                raise ValueError("the champion is none of the models")
            run.log_params(_json(outs["model.json"])["params"])
            run.log_metrics(_json(dep(f"reports/{chosen}")["metrics.json"]))
            run.set_tags({"model": chosen})
            # The champion is the working tree's, not that of any commit; and a later one of somebody else's stays.
            at = _committed()
            run.register_kept(entry.flat["register.name"], outs, {"model": chosen}, champion=is_current, time=at)
        case _:
            raise KeyError(f"no such stage: {stage}")


def _files(path: str, md5: str) -> Outputs:
    """The files of an output, or of a dependency that is another stage's output. Raises `MissingError`."""
    files = objects.locked_files(Path(path), md5)
    if files is None:
        raise MissingError(path)
    return {name or Path(path).name: file for name, file in files.items()}


def _settings(params: Mapping[str, Any], entry: Entry) -> Config | None:
    """The parameters as they were when the stage ran; None if this version knows them no more."""
    tree = copy.deepcopy(dict(params))
    for given, value in entry.params.items():
        *sections, key = given.split(".")
        place = tree
        for section in sections:
            place = place.setdefault(section, {})
        place[key] = value
    try:
        return config.from_mapping(tree)
    except UserError:
        return None


def _trials(run: runs.Run, path: Path) -> None:
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            number, state, (metric, score), best, *drawn = row["trial"], row["state"], *list(row.items())[2:]
            history = [{"epoch": float(best[1]), metric: float(score)}] if score and best[1] else []
            run.log_trial(int(number), dict(drawn), state, history)


def _rows(path: Path) -> list[dict[str, float]]:
    with path.open(encoding="utf-8", newline="") as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
