"""What happens in a stage, as MLflow will show it. Stages log to a spool; `delivery` takes it from there."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.core.config import flatten
from pipeline.core.secrets import without_secret
from pipeline.core.settings import Config, Tracking
from pipeline.runtime import console
from pipeline.tracking import journal as spools
from pipeline.tracking.identity import origin, project_root, stage_entry, stage_key
from pipeline.tracking.journal import SPOOLS, Spool, Status
from pipeline.tracking.writer import Writer

MAX_VALUE = 6000  # characters that MLflow takes in a param


class Run:
    """An execution of a stage, as MLflow will show it. What is logged goes to the spool, and waits for no server.

    Where the spool cannot be written, nothing is logged: that is said once, and the stage goes on.
    """

    def __init__(self, spool: Spool | None) -> None:
        self._spool = spool

    @property
    def works(self) -> bool:
        return self._spool is not None

    def start(self, stage: str, key: str, tracking: Tracking, tags: Mapping[str, Any]) -> None:
        known = {"stage": stage.partition("@")[0], "stage.key": key, **tags}
        self._append("run", name=stage, experiment=tracking.experiment, tags=_texts(known))

    def log_params(self, params: Mapping[str, Any]) -> None:
        self._append("params", params=_param_texts(params))

    def log_metrics(self, scores: Mapping[str, float], step: int = 0) -> None:
        """Final numbers: `test.accuracy` becomes `test/accuracy`."""
        self._append(
            "metrics", metrics=[(name.replace(".", "/"), float(value), step) for name, value in scores.items()]
        )

    def log_epochs(self, history: Sequence[Mapping[str, float]], prefix: str = "") -> None:
        """Rows of a history.csv: `val_loss` becomes `val/loss`, with the epoch as its step."""
        self._append("metrics", metrics=_curves(history, prefix))

    @contextmanager
    def epochs(self, label: str, total: int) -> Iterator[Callable[[Mapping[str, float]], None]]:
        """Yield an `on_epoch` that logs each epoch and shows it."""
        with console.progress(label, total) as advance:

            def on_epoch(row: Mapping[str, float]) -> None:
                self.log_epochs([row])
                advance("  ".join(f"{name} {value:.4g}" for name, value in row.items() if name != "epoch"))

            yield on_epoch

    def log_files(self, *paths: Path) -> None:
        """Each file, or the files of a folder, under their names."""
        self.log_kept({name: file for path in paths for name, file in files_of(path).items()})

    def log_kept(self, files: Mapping[str, Path]) -> None:
        """Files by the name that they are to have."""
        self._append("files", {"files": files})

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        self._append("tags", tags=_texts(tags))

    def log_model(self, bundle: Path) -> None:
        """Version a bundle as an MLflow model that takes raw columns. No pickle: code and files."""
        self.log_kept_model(files_of(bundle))

    def log_kept_model(self, bundle: Mapping[str, Path]) -> None:
        self._append("model", _with_code(bundle), **_about(bundle))

    def register(self, name: str, bundle: Path, tags: Mapping[str, Any]) -> None:
        """Give the bundle a version under `name`, with the alias `champion`; the same bundle keeps the version it has."""
        self.register_kept(name, files_of(bundle), tags)

    def register_kept(
        self, name: str, bundle: Mapping[str, Path], tags: Mapping[str, Any], champion: bool = True, **at: int
    ) -> None:
        about = _about(bundle) | at
        self._append("version", _with_code(bundle), name=name, tags=_texts(tags), champion=champion, **about)

    def log_trial(
        self, number: int, params: Mapping[str, Any], state: str, history: Sequence[Mapping[str, float]]
    ) -> None:
        """A trial of a search as a child run, with its parameters and curves."""
        self._append("trial", number=number, params=_param_texts(params), state=state, metrics=_curves(history))

    def end(self, status: Status) -> None:
        self._append("end", status=status)

    def _append(self, kind: str, kept: Mapping[str, Mapping[str, Path]] = {}, /, **fields: Any) -> None:
        """Note an event; `kept` are files that it speaks of, by their name under the name of a folder."""
        if self._spool is None:
            return
        try:
            places = {folder: self._spool.keep(files, folder) for folder, files in kept.items()}
            self._spool.append(kind, **places, **fields)
        except OSError as error:
            self._spool = None
            print(f"tracking: nothing more is noted: {error.filename or SPOOLS}: {error.strerror or error}", flush=True)


def files_of(path: Path) -> dict[str, Path]:
    """The files of a folder, or a file, by their name in it."""
    assert path.exists(), path
    if path.is_file():
        return {path.name: path}
    return {file.relative_to(path).as_posix(): file for file in sorted(path.rglob("*")) if file.is_file()}


def _with_code(bundle: Mapping[str, Path]) -> dict[str, Mapping[str, Path]]:
    """What an MLflow model is made of: a bundle, and the code that it is used with."""
    code = {name: file for name, file in files_of(Path(__file__).parents[1]).items() if file.suffix == ".py"}
    return {"bundle": bundle, "pipeline": code}


def _about(bundle: Mapping[str, Path]) -> dict[str, Any]:
    with bundle["model.json"].open("rb") as file:
        return {"digest": hashlib.file_digest(file, "sha256").hexdigest(), "requirements": _requirements()}


def _curves(history: Sequence[Mapping[str, float]], prefix: str = "") -> list[tuple[str, float, int]]:
    return [
        (prefix + re.sub("^(train|val)_", r"\1/", name), float(value), int(row["epoch"]))
        for row in history
        for name, value in row.items()
        if name != "epoch"
    ]


def _param_texts(params: Mapping[str, Any]) -> dict[str, str]:
    return {name: without_secret(_text(value))[:MAX_VALUE] for name, value in params.items()}


@contextmanager
def stage_run(stage: str, config: Config, tags: Mapping[str, Any] = {}) -> Iterator[Run]:
    """One run of a stage, such as `train` or `evaluate@train`, with its parameters and where it came from.

    A stage that fails, is interrupted or terminated leaves its run marked so; run again, it goes on with that run.
    """
    entry = stage_entry(stage)
    key = stage_key(entry)
    spool = _begin(stage, key)
    run, writer = Run(spool), None if spool is None else Writer(config.tracking, spool)
    status: Status = "FINISHED"
    try:
        run.start(stage, key, config.tracking, origin() | _texts(tags))
        run.log_params(in_force(config, entry["params"]))
        yield run
    except Exception:
        status = "FAILED"
        raise
    except BaseException:  # Ctrl-C or SIGTERM
        status = "KILLED"
        raise
    finally:
        run.end(status)
        left = writer.close() if writer is not None else None
        if left is not None:
            print(left, flush=True)


def _begin(stage: str, key: str) -> Spool | None:
    try:
        return spools.begin(project_root() / SPOOLS, stage, key)
    except OSError as error:
        print(f"tracking: off, {error.filename or SPOOLS} cannot be written: {error.strerror or error}", flush=True)
        return None


def in_force(config: Config, watched: Mapping[str, Any]) -> dict[str, Any]:
    """The watched parameters with their values, also those that a preset gives or params.yaml leaves out."""
    values = flatten(config.model_dump(mode="json", by_alias=True))
    # As one value: columns have names that MLflow takes for no parameter's.
    values = {name: value for name, value in values.items() if not name.startswith("data.kinds.")}
    values["data.kinds"] = config.data.kinds
    sections = {name.rpartition(".")[0] for name in watched if "." in name}
    return {name: value for name, value in values.items() if name in watched or name.rpartition(".")[0] in sections}


def _requirements() -> list[str]:
    """What the model needs where it is served, at the versions of this project."""
    needed = ("mlflow", "torch", "torchmetrics", "pandas", "pydantic", "ruamel.yaml", "safetensors", "scikit-learn")
    pins = Path("constraints.txt").read_text(encoding="utf-8").split()
    return [pin for pin in pins if pin.partition("==")[0].lower() in needed]


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    return {name: without_secret(str(value)) for name, value in values.items()}


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, list | dict | tuple) else str(value)
