"""Restore the MLflow runs that are missing for stages in dvc.lock, from their versioned outputs."""

import copy
import csv
import json
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import pyarrow.parquet
from filelock import Timeout

from pipeline.commands import objects
from pipeline.core import config
from pipeline.core.errors import UserError, printable
from pipeline.core.scores import lower_is_better
from pipeline.core.secrets import without_secret
from pipeline.core.settings import Config, Tracking
from pipeline.tracking import identity, runs, store
from pipeline.tracking import journal as journals
from pipeline.tracking.writer import Writer

PATIENCE = 300.0  # stalled seconds before giving up; an error of the server ends a sync at once
Outputs = Mapping[str, Path]  # files by their name in an output or a dependency
# Errors from reading a file in another format.
UNREADABLE = (
    ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError,
    csv.Error, pyarrow.ArrowException,
)  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """A stage in dvc.lock: its parameters, and the checksums of what it read and wrote."""

    params: Mapping[str, Any]
    flat: Mapping[str, Any]
    deps: Mapping[str, str]
    outs: Mapping[str, str]
    key: str  # as the stage computes it when it runs


@dataclass(frozen=True)
class Version:
    """The stages in dvc.lock and the parameters in params.yaml, of the working tree or of a commit."""

    name: str
    entries: Mapping[str, Entry]
    params: Mapping[str, Any]
    tags: Mapping[str, str]

    @classmethod
    def of(cls, name: str, lock: bytes, params: bytes, tags: Mapping[str, str]) -> "Version":
        """Parse the content of the two files; raises `UserError` if they are damaged."""
        try:
            # With limits on size and depth, as a commit may come from anybody.
            stages, values = (config.yaml_values(Path(name), content.decode()) for content in (lock, params))
            entries = {stage: _entry(stage, locked) for stage, locked in stages["stages"].items()}
        except UNREADABLE:
            message = f"dvc.lock or params.yaml of {name} is damaged: run git checkout on it, or dvc repro"
            raise UserError(message) from None
        return cls(name, entries, values, tags)


def _entry(stage: str, locked: Mapping[str, Any]) -> Entry:
    if not re.fullmatch(r"\w+(@\w+)?", stage):  # it becomes part of a path
        raise ValueError(stage)
    params = (locked.get("params") or {}).get("params.yaml") or {}
    deps, outs = ({one["path"]: one["md5"] for one in locked.get(part, [])} for part in ("deps", "outs"))
    flat = config.flatten(params)
    return Entry(params, flat, deps, outs, identity.stage_key({"params": flat, "deps": deps}))


class MissingError(Exception):
    """A versioned file is neither in the working tree nor in DVC's cache."""


def sync(all_commits: bool = False) -> None:
    """Send waiting runs and restore missing ones; raises `UserError` if MLflow does not answer or refuses a run."""
    root = identity.project_root() / journals.JOURNALS
    try:
        _sync(root, all_commits)
    except Timeout:
        raise UserError(f"{root} is in use by another process: run sync again in a moment") from None
    if n_refused := journals.n_refused(root):
        raise UserError(f"runs refused by MLflow: {n_refused}; {journals.remedy(journals.REFUSED / '*')}")


def _sync(root: Path, all_commits: bool) -> None:
    tracking = config.load().tracking
    journals.close_interrupted(root)
    _send(root, tracking, "waiting runs sent")

    lock = Path("dvc.lock")
    if not lock.exists():
        raise UserError("dvc.lock is missing: run dvc repro")
    here = Version.of("the working tree", lock.read_bytes(), config.PATH.read_bytes(), identity.origin())
    current = {entry.key for entry in here.entries.values()}
    missing, n_restored, n_skipped, seen = list[str](), 0, 0, set[str]()
    for version in [*(_commits() if all_commits else []), here]:
        for stage, entry in version.entries.items():
            if entry.key in seen:
                continue
            seen.add(entry.key)
            if journals.on_its_way(root, stage, entry.key) or store.is_tracked(tracking, entry.key):
                continue
            try:
                with journals.restored(root, stage, entry.key) as journal:
                    run = runs.Run(journal)
                    time = _committed(version.tags.get("git.commit", "HEAD"))
                    run.start(stage, entry.key, tracking, {**version.tags, "restored": "true"}, time=time)
                    _restore(run, stage, entry, version, is_current=entry.key in current)
                    run.end("FINISHED")
                    if run.journal is None:
                        raise UserError(f"{root} cannot be written: check the free disk space and who owns it")
                n_restored += 1
            except MissingError as error:
                missing.append(f"{stage} of {version.name}: {error}")
            except UserError:
                raise
            except UNREADABLE as error:
                n_skipped += 1
                why = printable(without_secret(str(error)))[:160]
                print(f"skipped {stage} of {version.name}: written by another version ({why})")
    _send(root, tracking, "runs restored")
    if missing:
        remedy = "dvc fetch --all-commits (and dvc exp pull)" if all_commits else "dvc pull"
        examples = "; ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        print(f"runs that lack objects: {len(missing)} ({examples}); run {remedy}, then sync again")
    elif not n_restored:
        print(f"nothing to restore: {len(seen) - n_skipped} of {len(seen)} stages have a run")


def _send(root: Path, tracking: Tracking, label: str) -> None:
    writer = Writer(tracking, None)
    if (unsent := writer.close(PATIENCE)) is not None:
        raise UserError(unsent)
    if writer.n_replayed:
        print(f"{label}: {writer.n_replayed}", flush=True)


def _commits() -> Iterator[Version]:
    """Each commit of a branch, a tag or a DVC experiment that changed dvc.lock, oldest first."""
    experiments = dict[str, str]()
    refs = _git("for-each-ref", "refs/exps", "--format=%(objectname) %(refname)")
    for line in refs.decode(errors="replace").splitlines():
        commit, _, ref = line.partition(" ")
        # An experiment is refs/exps/ab/cdef…/name; DVC keeps other refs there too.
        if len(ref.split("/")) == 5 and len(ref.split("/")[2]) == 2:
            experiments[commit] = ref.rpartition("/")[2]
    starts = ("--branches", "--tags", "--remotes", *experiments)
    for commit in _git("rev-list", "--reverse", "--topo-order", *starts, "--", "dvc.lock").decode().split():
        name, tags = commit[:7], {"git.commit": commit, "git.dirty": "false"}
        if commit in experiments:
            name = tags["dvc.exp"] = experiments[commit]
        try:
            locked, params = (_git("show", f"{commit}:./{file}") for file in ("dvc.lock", "params.yaml"))
            yield Version.of(name, locked, params, tags)
        except UserError as error:
            print(f"skipped: {error}")


def _git(*arguments: str) -> bytes:
    done = subprocess.run(["git", *arguments], capture_output=True, check=False)
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
        raise UserError(f"git {arguments[0]} failed: {lines[-1]}")
    return done.stdout


def _committed(commit: str = "HEAD") -> int:
    """When the results in a commit, or in the working tree, were committed, in ms; 0 if unknown."""
    with suppress(UserError, ValueError):
        return 1000 * int(_git("log", "-1", "--format=%ct", commit, "--", "dvc.lock"))
    return 0


def _restore(run: runs.Run, stage: str, entry: Entry, version: Version, is_current: bool) -> None:
    name, _, model = stage.partition("@")
    outs = {name: file for path, md5 in entry.outs.items() for name, file in _files(path, md5).items()}

    def dep(path: str, file: str) -> Path:
        return _files(path, entry.deps[path])[file]

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
            # Earlier versions wrote no data card.
            run.log_files({name: outs[name] for name in ("schema.json", "data.html") if name in outs})
        case "baseline" | "evaluate":
            scores = _json(outs["metrics.json"])  # empty if there was no transfer domain
            if model:
                run.set_tags({"model": model})
                run.log_params(_json(dep(f"models/{model}", "model.json"))["params"] if scores else {})
            run.log_metrics(scores)
            run.log_files(outs)
        case "finetune" if not _json(outs["transfer.json"]):
            pass  # there was no transfer domain
        case "train" | "finetune" | "search":
            run.log_epochs(_history(outs["history.csv"]))
            run.log_metrics({"temperature": _json(outs["model.json"])["temperature"]})
            if "overfit.csv" in outs:
                run.log_epochs(_history(outs["overfit.csv"]), prefix="overfit/")
            if "transfer.json" in outs:
                run.log_metrics({f"transfer.{name}": score for name, score in _json(outs["transfer.json"]).items()})
            if "trials.csv" in outs:
                for row in _rows(outs["trials.csv"]):
                    number, state, (metric, score), best, *drawn = row["trial"], row["state"], *list(row.items())[2:]
                    history = [{"epoch": float(best[1]), metric: float(score)}] if score and best[1] else []
                    run.log_trial(int(number), dict(drawn), state, history)
            bundle = {"model.json", "model.safetensors", "history.csv", "transfer.json"}
            run.log_files({name: file for name, file in outs.items() if name not in bundle})
            run.log_model(outs)
        case "register":
            _restore_register(run, outs, dep, entry, is_current)
        case _:
            raise KeyError(f"no such stage: {stage}")


def _restore_register(
    run: runs.Run, outs: Outputs, dep: Callable[[str, str], Path], entry: Entry, is_current: bool
) -> None:
    champion = outs["model.json"].read_bytes()
    models = {name: dep(f"models/{name}", "model.json") for name in ("train", "search", "finetune")}
    chosen = next((name for name, file in models.items() if file.read_bytes() == champion), None)
    if chosen is None:
        raise ValueError("the champion is none of the models")
    run.log_params(_json(outs["model.json"])["params"])
    scores = _json(dep(f"reports/{chosen}", "metrics.json"))
    run.log_metrics(scores)
    is_weak = _is_weak(scores, entry.flat)
    run.set_tags({"model": chosen, "registered": not is_weak})
    if is_weak:
        return
    # Only the working tree's model can become the champion, and only if no later one is.
    time = _committed()
    run.register(entry.flat["register.name"], outs, {"model": chosen}, champion=is_current, time=time)


def _is_weak(scores: Mapping[str, float], params: Mapping[str, Any]) -> bool:
    """True if a model was not registered, because of register.minimum."""
    metric, minimum = params["register.metric"], params["register.minimum"]
    if metric not in scores:  # it is one of another task, and the minimum does not hold
        return False
    sign = 1 if lower_is_better(metric) else -1
    return bool(sign * scores[metric] > sign * minimum)


def _files(path: str, md5: str) -> Outputs:
    files = objects.locked_files(Path(path), md5)
    if files is None:
        raise MissingError(path)
    return {name or Path(path).name: file for name, file in files.items()}


def _settings(params: Mapping[str, Any], entry: Entry) -> Config | None:
    """The configuration with which the stage ran; None if this version does not accept it."""
    tree = copy.deepcopy(dict(params))
    for name, value in entry.params.items():
        *sections, key = name.split(".")
        reduce(lambda place, section: place.setdefault(section, {}), sections, tree)[key] = value
    try:
        return config.from_mapping(tree)
    except UserError:
        return None


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _history(path: Path) -> list[dict[str, float]]:
    return [{name: float(value) for name, value in row.items() if value} for row in _rows(path)]


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
