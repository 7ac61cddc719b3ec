"""Log a stage as an MLflow run. Events go to a journal on disk, from which `delivery` sends them."""

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
from pipeline.tracking import journal as journals
from pipeline.tracking.identity import origin, project_root, stage_entry, stage_key
from pipeline.tracking.journal import JOURNALS, Journal, Status
from pipeline.tracking.writer import Writer

MAX_VALUE = 6000  # characters that MLflow accepts in a parameter
SERVED_WITH = ("mlflow", "torch", "torchmetrics", "pandas", "pydantic", "ruamel.yaml", "safetensors", "scikit-learn")
Files = Path | Mapping[str, Path]  # a file, a folder, or files by the name to log them under


class Run:
    """The MLflow run of a stage execution. Logging writes to `journal`, which becomes None if it cannot be written."""

    def __init__(self, journal: Journal | None) -> None:
        self.journal = journal

    def start(self, stage: str, key: str, tracking: Tracking, tags: Mapping[str, Any], **time: int) -> None:
        """Begin the run; `time` in ms, if not now."""
        known = {"stage": stage.partition("@")[0], "stage.key": key, **tags}
        self._append("run", name=stage, experiment=tracking.experiment, tags=_texts(known), **time)

    def log_params(self, params: Mapping[str, Any]) -> None:
        self._append("params", params=_param_texts(params))

    def log_metrics(self, scores: Mapping[str, float], step: int = 0) -> None:
        """Log final scores: `test.accuracy` becomes `test/accuracy`."""
        metrics = [(name.replace(".", "/"), float(value), step) for name, value in scores.items()]
        self._append("metrics", metrics=metrics)

    def log_epochs(self, history: Sequence[Mapping[str, float]], prefix: str = "") -> None:
        """Log rows of a history.csv: `val_loss` becomes `val/loss`, with the epoch as step."""
        self._append("metrics", metrics=_curves(history, prefix))

    @contextmanager
    def epochs(self, label: str, total: int) -> Iterator[Callable[[Mapping[str, float]], None]]:
        """Yield an `on_epoch` callback that logs and shows each epoch."""
        with console.progress(label, total) as advance:

            def on_epoch(row: Mapping[str, float]) -> None:
                self.log_epochs([row])
                advance("  ".join(f"{name} {value:.4g}" for name, value in row.items() if name != "epoch"))

            yield on_epoch

    def log_files(self, *paths: Files) -> None:
        self._append("files", {"files": {name: file for path in paths for name, file in files_of(path).items()}})

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        self._append("tags", tags=_texts(tags))

    def log_model(self, bundle: Files) -> None:
        """Log a bundle as an MLflow model that takes raw columns. It consists of code and files, without a pickle."""
        self._append_bundle("model", bundle)

    def register(self, name: str, bundle: Files, tags: Mapping[str, Any], champion: bool = True, **time: int) -> None:
        """Register a bundle as a version of the model `name`; a bundle registered before keeps its version.

        It gets the alias `challenger`. champion: also give it the alias `champion`. time: when it became the champion, in ms, if not now.
        """
        self._append_bundle("version", bundle, name=name, tags=_texts(tags), champion=champion, **time)

    def log_trial(
        self, number: int, params: Mapping[str, Any], state: str, history: Sequence[Mapping[str, float]]
    ) -> None:
        """Log a trial of a search as a child run, with its parameters and curves."""
        self._append("trial", number=number, params=_param_texts(params), state=state, metrics=_curves(history))

    def end(self, status: Status) -> None:
        self._append("end", status=status)

    def _append_bundle(self, kind: str, bundle: Files, **fields: Any) -> None:
        """Append an event with what an MLflow model consists of: the bundle, the code to load it, its requirements."""
        files = files_of(bundle)
        code = {name: file for name, file in files_of(Path(__file__).parents[1]).items() if file.suffix == ".py"}
        with files["model.json"].open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        pins = Path("constraints.txt").read_text(encoding="utf-8").split()
        requirements = [pin for pin in pins if pin.partition("==")[0].lower() in SERVED_WITH]
        self._append(kind, {"bundle": files, "pipeline": code}, **fields, digest=digest, requirements=requirements)

    def _append(self, kind: str, kept: Mapping[str, Mapping[str, Path]] = {}, /, **fields: Any) -> None:
        """Append an event; `kept` are the files that belong to it, by folder and name."""
        if self.journal is None:
            return
        try:
            places = {folder: self.journal.keep(files, folder) for folder, files in kept.items()}
            self.journal.append(kind, **places, **fields)
        except OSError as error:
            self.journal = None
            _print_disabled(error)


def files_of(path: Files) -> dict[str, Path]:
    """The files of a folder by their relative names, or a single file by its own."""
    if not isinstance(path, Path):
        return dict(path)
    assert path.exists(), path
    if path.is_file():
        return {path.name: path}
    return {file.relative_to(path).as_posix(): file for file in sorted(path.rglob("*")) if file.is_file()}


def _curves(history: Sequence[Mapping[str, float]], prefix: str = "") -> list[tuple[str, float, int]]:
    return [
        (prefix + re.sub("^(train|val)_", r"\1/", name), float(value), int(row["epoch"]))
        for row in history
        for name, value in row.items()
        if name != "epoch"
    ]


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    return {name: without_secret(str(value)) for name, value in values.items()}


def _param_texts(params: Mapping[str, Any]) -> dict[str, str]:
    texts = {
        name: json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, list | dict | tuple) else value
        for name, value in params.items()
    }
    return {name: text[:MAX_VALUE] for name, text in _texts(texts).items()}


@contextmanager
def stage_run(stage: str, config: Config, tags: Mapping[str, Any] = {}) -> Iterator[Run]:
    """Log a stage, such as `train` or `evaluate@train`, as one run with its parameters and origin.

    A stage that fails is marked FAILED, one that is interrupted or terminated KILLED; a repeat resumes the same run.
    """
    entry = stage_entry(stage)
    key = stage_key(entry)
    journal = _begin(stage, key)
    run, writer = Run(journal), None if journal is None else Writer(config.tracking, journal)
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
        if writer is not None and (unsent := writer.close()) is not None:
            print(unsent, flush=True)


def _begin(stage: str, key: str) -> Journal | None:
    try:
        return journals.begin(project_root() / JOURNALS, stage, key)
    except OSError as error:
        _print_disabled(error)
        return None


def _print_disabled(error: OSError) -> None:
    place, why = error.filename or JOURNALS, error.strerror or error
    print(f"tracking: logging disabled, {place} cannot be written: {why}", flush=True)


def in_force(config: Config, watched: Mapping[str, Any]) -> dict[str, Any]:
    """The values of the watched parameters, including those that a preset sets or params.yaml omits."""
    values = flatten(config.model_dump(mode="json", by_alias=True))
    # Logged as one value: MLflow does not accept every column name as the name of a parameter.
    values = {name: value for name, value in values.items() if not name.startswith("data.kinds.")}
    values["data.kinds"] = config.data.kinds
    sections = {name.rpartition(".")[0] for name in watched if "." in name}
    return {name: value for name, value in values.items() if name in watched or name.rpartition(".")[0] in sections}
