"""`params.yaml` as frozen, strict types: the only reader of parameters."""

import difflib
import json
import math
import re
import typing
import warnings
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo
from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError, YAMLWarning
from ruamel.yaml.representer import RoundTripRepresenter

from pipeline import files
from pipeline.errors import UserError

PATH = Path("params.yaml")

Fraction = Annotated[float, Field(gt=0, lt=1)]
Probability = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Scalar = bool | int | float | str
Task = Literal["binary", "multiclass", "regression"]
MetricName = Literal[
    "val.accuracy", "val.f1", "val.auroc", "val.loss", "val.rmse", "val.mae", "val.r2",
    "transfer.val.accuracy", "transfer.val.f1", "transfer.val.auroc", "transfer.val.loss",
    "transfer.val.rmse", "transfer.val.mae", "transfer.val.r2",
]  # fmt: skip


# A trial has search.epochs, no early stopping, one member, and is judged by its headline metric.
NOT_SEARCHED = (
    "train.preset",
    "train.epochs",
    "train.patience",
    "train.overfit",
    "train.calibration",
    "model.ensemble",
)


# What the word preset stands for with `train.preset: strong`; with `textbook`, what a first course teaches, for the defaults
# of the sections below.
PRESET = "preset"
STRONG: dict[str, Any] = {
    "data.scaling": "quantile",
    "model.numeric": "ple",
    "model.ensemble": "auto",
    "model.dropout": 0.0,
    "train.optimizer": "adamw",
    "train.lr": 0.003,
    "train.weight_decay": 0.01,
    "train.schedule": "onecycle",
    "train.warmup": 0.3,
    "train.batch_size": "auto",
    "train.epochs": "auto",
    "train.patience": None,
    "train.calibration": "temperature",
}


AUTO_BATCH = (16, 512)  # the least and the most rows of a step
SMALL_ROWS, SMALL_ENSEMBLE, LARGE_ENSEMBLE = 20_000, 8, 2
AUTO_STEPS, AUTO_EPOCHS = 2000, 20  # at least


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


class Csv(Section):
    encoding: str = "utf-8"
    separator: Literal["auto", ",", ";", "\t", "|"] = "auto"
    decimal: Literal[".", ","] = "."

    @model_validator(mode="after")
    def _known_encoding(self) -> Self:
        try:
            "".encode(self.encoding)
        except LookupError:
            raise ValueError(
                f"encoding must be one that Python knows, such as utf-8 or latin-1, got {self.encoding!r}"
            ) from None
        return self


class Split(Section):
    train: Fraction = 0.8
    val: Fraction = 0.1
    test: Fraction = 0.1
    by: Annotated[str, Field(pattern=r"^(random|(time|group):.+)$")] = "random"

    @model_validator(mode="after")
    def _sums_to_one(self) -> Self:
        total = self.train + self.val + self.test
        if abs(total - 1) > 1e-6:
            raise ValueError(f"train + val + test must be 1, got {total:g}")
        return self


class Transfer(Section):
    column: str | None = None
    values: tuple[Scalar, ...] = ()
    source: str | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.source is None) == (self.column is None):
            raise ValueError("must name either column and values, or source")
        if self.column is not None and not self.values:
            raise ValueError("values must list at least one value of column")
        if self.source is not None and self.values:
            raise ValueError("values belongs to column, not to source")
        return self


class Data(Section):
    source: Annotated[str, Field(min_length=1)]
    target: Annotated[str, Field(min_length=1)]
    task: Task
    drop: tuple[str, ...] = ()
    kinds: dict[str, Literal["numeric", "categorical", "drop"]] = {}
    split: Split = Split()
    transfer: Transfer | None = None
    csv: Csv = Csv()
    scaling: Literal["standard", "quantile", "robust"] = "standard"
    max_categories: Annotated[int, Field(ge=1, le=30_000)] = 250
    min_count: Count = 1
    duplicates: Literal["keep", "drop"] = "keep"

    @model_validator(mode="after")
    def _target_stays(self) -> Self:
        if self.target in self.drop or self.target in self.kinds:
            raise ValueError(f"target {self.target!r} can stand neither in drop nor in kinds")
        return self


class Plr(Section):
    frequencies: Count = 16
    sigma: Positive = 0.1
    width: Count = 8


class Model(Section):
    hidden: tuple[Count, ...] = (128, 64)
    activation: Literal["relu", "leaky_relu", "sigmoid", "tanh", "selu"] = "relu"
    slope: NotNegative = 0.01
    dropout: Probability = 0.1
    init: Literal["default", "uniform", "xavier", "kaiming", "zeros"] = "default"
    numeric: Literal["plain", "ple", "plr"] = "plain"
    bins: Annotated[int, Field(ge=2)] = 32
    plr: Plr = Plr()
    categories: Literal["onehot", "embedding"] = "onehot"
    embedding: Count = 16
    ensemble: Count | Literal["auto"] = 1

    @property
    def n_members(self) -> int:
        """`ensemble` of settings that are `sized`."""
        assert isinstance(self.ensemble, int)
        return self.ensemble

    def sized(self, n_rows: int) -> "Model":
        """These settings for so many training rows: many members where they cost little."""
        about = SMALL_ENSEMBLE if n_rows < SMALL_ROWS else LARGE_ENSEMBLE
        return self.model_copy(update={"ensemble": about if self.ensemble == "auto" else self.ensemble})


class Augment(Section):
    noise: NotNegative = 0.0
    swap: Probability = 0.0
    mixup: NotNegative = 0.0


class Overfit(Section):
    rows: Annotated[int, Field(ge=2)] = 32
    steps: Count = 1000


class Train(Section):
    preset: Literal["textbook", "strong"] = "strong"
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: Positive = 0.05
    momentum: Probability = 0.9
    weight_decay: NotNegative = 1e-5
    batch_size: Count | Literal["auto"] = 512
    epochs: Count | Literal["auto"] = 10
    patience: Count | None = 3
    schedule: Literal["constant", "cosine", "onecycle"] = "constant"
    warmup: Probability = 0.0
    clip: Positive | None = None
    label_smoothing: Probability = 0.0
    class_weights: Literal["balanced"] | None = None
    augment: Augment = Augment()
    overfit: Overfit | None = Overfit()
    calibration: Literal["temperature"] | None = None

    @property
    def rows_a_step(self) -> int:
        """`batch_size` of settings that are `sized`."""
        assert isinstance(self.batch_size, int)
        return self.batch_size

    @property
    def n_epochs(self) -> int:
        """`epochs` of settings that are `sized`."""
        assert isinstance(self.epochs, int)
        return self.epochs

    def sized(self, n_rows: int) -> "Train":
        """These settings for so many training rows, with a number where they say auto.

        A batch is about a hundredth of the rows, as a power of two; there are as many epochs as make AUTO_STEPS steps.
        """
        low, high = AUTO_BATCH
        about = min(max(2 ** int(math.log2(max(n_rows, 100) / 100)), low), high)
        batch_size = about if self.batch_size == "auto" else self.batch_size
        enough = max(AUTO_EPOCHS, math.ceil(AUTO_STEPS / math.ceil(n_rows / batch_size)))
        return self.model_copy(
            update={"batch_size": batch_size, "epochs": enough if self.epochs == "auto" else self.epochs}
        )


class Finetune(Section):
    lr: Positive = 0.005
    epochs: Count = 5
    patience: Count | None = 3
    freeze: Annotated[int, Field(ge=0)] | tuple[str, ...] = 1


class Space(Section):
    low: float | None = None
    high: float | None = None
    log: bool = False
    steps: Annotated[int, Field(ge=2)] | None = None
    choices: tuple[Any, ...] | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.choices is not None:
            if not self.choices or self.low is not None or self.high is not None or self.log or self.steps:
                raise ValueError("choices must be a list of at least one value, and stand alone")
        elif self.low is None or self.high is None:
            raise ValueError("must give low and high, or choices")
        elif self.low >= self.high:
            raise ValueError(f"low must be less than high, got {self.low:g} and {self.high:g}")
        elif self.log and self.low <= 0:
            raise ValueError(f"low must be greater than 0 on a log scale, got {self.low:g}")
        return self

    @property
    def ends(self) -> tuple[Any, ...]:
        return self.choices if self.choices is not None else (self.low, self.high)


class Search(Section):
    sampler: Literal["random", "grid", "qmc", "tpe"] = "random"
    n_trials: Count = 32
    epochs: Count = 3
    rows: Annotated[int, Field(ge=2)] | None = None
    reduction: Annotated[int, Field(ge=2)] | None = 3
    workers: Count | None = None
    stack: Count | None = None
    space: dict[str, Space]

    @model_validator(mode="after")
    def _grid_is_finite(self) -> Self:
        if not self.space:
            raise ValueError("space must name at least one parameter")
        if self.sampler == "grid":
            for name, space in self.space.items():
                if space.choices is None and space.steps is None:
                    raise ValueError(f"space.{name} must give choices or steps for sampler grid")
        return self


class Register(Section):
    name: Annotated[str, Field(pattern=r"^[^/:]+$")]
    metric: MetricName
    minimum: float


class Tracking(Section):
    uri: str | None = None
    experiment: Annotated[str, Field(min_length=1)] = "default"


class Config(Section):
    """All of `params.yaml`."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Count = 1
    data: Data
    model: Model = Model()
    train: Train = Train()
    finetune: Finetune = Finetune()
    search: Search
    register_: Annotated[Register, Field(alias="register")]  # BaseModel has a method of that name
    tracking: Tracking = Tracking()

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        freeze, layers = self.finetune.freeze, len(self.model.hidden) + 1
        if isinstance(freeze, int) and freeze >= layers:
            raise ValueError(f"finetune.freeze must be less than the {layers} layers of model.hidden, got {freeze}")
        if self.data.task == "regression":
            for name, used in {
                "train.label_smoothing": self.train.label_smoothing > 0,
                "train.class_weights": self.train.class_weights is not None,
            }.items():
                if used:
                    raise ValueError(f"{name} has no meaning for data.task regression")
        return self

    def sized(self, n_rows: int) -> "Config":
        """This configuration for so many training rows: see `Model.sized` and `Train.sized`."""
        return self.model_copy(update={"model": self.model.sized(n_rows), "train": self.train.sized(n_rows)})

    def replace(self, values: Mapping[str, Any]) -> "Config":
        """This configuration with some dotted parameters at other values, checked again."""
        return from_mapping(_patched(self.model_dump(mode="json", by_alias=True), values))


def task_metrics(task: Task) -> tuple[str, ...]:
    """Names of what is measured for a task; the first is the one a person looks at."""
    return ("rmse", "mae", "r2", "loss") if task == "regression" else ("accuracy", "f1", "auroc", "loss")


def lower_is_better(metric: str) -> bool:
    """Whether a score such as `val.loss` or `val_rmse` is the better the smaller it is."""
    return re.split("[._]", metric)[-1] in ("loss", "rmse", "mae", "ece", "uncalibrated")


def is_whole(name: str) -> bool:
    """Whether a dotted parameter takes whole numbers only."""
    *sections, key = name.split(".")
    types = _types(_fields_at(tuple(sections))[key].annotation)
    return int in types and float not in types


def without_secret(url: str) -> str:
    """A source as it may be shown: without user, password and query."""
    if "://" not in url:
        return url
    scheme, rest = url.split("://", 1)
    host, slash, path = rest.partition("?")[0].partition("#")[0].partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def load(path: Path = PATH) -> Config:
    """Read and check `params.yaml`; every mistake comes back as file, line, dotted name, rule and value."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run this in the folder of the project") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start})") from None
    try:
        # YAML 1.2, as DVC reads it: there 1e-3 is a number.
        values = _read(text, "safe")
    except DuplicateKeyError as error:
        key = str(error.problem).split('"')[1] if '"' in str(error.problem) else "a key"
        raise UserError(f"{path}, line {error.problem_mark.line + 1}: {key} stands twice in its section") from None
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise UserError(f"{path}, line {mark.line + 1 if mark else '?'}: not YAML: {error.problem}") from None
    except (YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not YAML: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold sections such as data and train, got {type(values).__name__}")
    try:
        return _parse(values)
    except _RefusedError as error:
        raise UserError(f"{path}{_line(text, error.location)}: {error}") from None


def _read(text: str, kind: Literal["safe", "rt"]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", YAMLWarning)  # such as of an anchor used twice, which YAML allows
        return YAML(typ=kind, pure=True).load(text)


def from_mapping(values: Mapping[str, Any]) -> Config:
    """A configuration from plain values; raises `UserError` as `load` does."""
    try:
        return _parse(values)
    except _RefusedError as error:
        raise UserError(str(error)) from None


def adopt(patch: Mapping[str, Any], path: Path = PATH) -> dict[str, tuple[Any, Any]]:
    """Write the leaves of `patch` into `params.yaml`, keeping its comments; returns old and new value by dotted name."""
    leaves = flatten(patch)
    load(path).replace(leaves)
    yaml = YAML()
    yaml.Representer = _Representer
    yaml.preserve_quotes = True
    yaml.width = 4096
    tree = yaml.load(path.read_text(encoding="utf-8"))
    changes = {name: (_put(tree, name, value), value) for name, value in leaves.items()}
    files.write_text(path, dump_yaml(tree, yaml))
    return changes


class _Representer(RoundTripRepresenter):
    """Writes null as a word: an empty place is easily taken for a forgotten value."""


_Representer.add_representer(
    type(None), lambda representer, _: representer.represent_scalar("tag:yaml.org,2002:null", "null")
)


def dump_yaml(values: Any, yaml: YAML | None = None) -> str:
    buffer = StringIO()
    (yaml or YAML()).dump(values, buffer)
    return buffer.getvalue()


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections to dotted names; an empty section is a leaf."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def nest(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    return _patched({}, leaves)


def _patched(values: Mapping[str, Any], leaves: Mapping[str, Any]) -> dict[str, Any]:
    patched = json.loads(json.dumps(values))
    for name, value in leaves.items():
        _put(patched, name, value)
    return dict(patched)


def _put(tree: dict[str, Any], name: str, value: Any) -> Any:
    """Set a dotted name in nested sections, made where they are missing; returns the value it had."""
    *sections, key = name.split(".")
    for section in sections:
        if not isinstance(tree.get(section), dict):
            tree[section] = {}
        tree = tree[section]
    old = tree.get(key)
    tree[key] = value
    return old


class _RefusedError(Exception):
    """A value that the rules refuse, and where it stands."""

    def __init__(self, location: tuple[str | int, ...], message: str) -> None:
        self.location = location
        super().__init__(message)


def _parse(values: Mapping[str, Any]) -> Config:
    config = _validated(_with_preset(values))
    _check_space(config)
    return config


def _with_preset(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The values, with those of `train.preset` where they are missing or say preset."""
    train = values.get("train", {})
    strong = not isinstance(train, Mapping) or train.get("preset", "strong") == "strong"
    filled = dict(values)
    for name, value in STRONG.items():
        section, key = name.split(".")
        written = filled.get(section, {})
        if not isinstance(written, Mapping) or written.get(key, PRESET) != PRESET:
            continue
        rest = {name: other for name, other in written.items() if name != key}
        filled[section] = rest | ({key: value} if strong else {})
    return filled


def _validated(values: Mapping[str, Any]) -> Config:
    try:
        # By way of JSON: pydantic's strict mode takes a JSON array as a tuple, but not a Python list.
        return Config.model_validate_json(json.dumps(values, default=str))
    except ValidationError as error:
        first, *others = error.errors()
        # A value that may be of several types is refused once for each of them.
        rules = [_rule(other) for other in others if _keys(other["loc"]) == _keys(first["loc"])]
        raise _RefusedError(first["loc"], _message(first, rules)) from None
    except (TypeError, ValueError, RecursionError) as error:
        raise _RefusedError((), f"must hold plain values under names: {error}") from None


def _check_space(config: Config) -> None:
    """Every searched parameter exists, and each end of its range would be accepted in `params.yaml`."""
    plain = config.model_dump(mode="json", by_alias=True)
    known = [name for name in flatten(plain) if name.startswith(("model.", "train."))]
    for name, space in config.search.space.items():
        here = ("search", "space", name)
        if name.startswith(NOT_SEARCHED):
            raise _RefusedError(here, f"search.space.{name} has no effect on a trial")
        if name not in known:
            raise _RefusedError(
                here, f"search.space.{name} is not a parameter of model or train{_nearest(name, known)}"
            )
        for value in space.ends:
            try:
                _validated(_patched(plain, {name: _whole(value)}))
            except _RefusedError as error:
                raise _RefusedError(here, f"search.space.{name}: {error}") from None


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _message(error: Any, more_rules: Sequence[str] = ()) -> str:
    """One pydantic error as `name rule, got value`."""
    name = ".".join(_keys(error["loc"]))
    match error["type"]:
        case "extra_forbidden":
            known = list(_fields_at(error["loc"][:-1]))
            return f"{name} is not a known key{_nearest(error['loc'][-1], known)}"
        case "json_invalid":
            return "holds text that is not Unicode"
        case "missing":
            return f"{name} is missing"
        case "value_error":
            text = str(error["ctx"]["error"])
            return f"{name}: {text}" if name else text
        case "string_pattern_mismatch" if name == "data.split.by":
            return f"{name} must be random, time:<column> or group:<column>, got {_shown(error)}"
        case _:
            return f"{name} {' or '.join([_rule(error), *more_rules])}, got {_shown(error)}"


def _rule(error: Any) -> str:
    return str(error["msg"]).replace("Input should", "must").replace("String should", "must")


def _shown(error: Any) -> str:
    value = repr(error["input"])
    return value if len(value) <= 80 else value[:79] + "…"


# Where several types are allowed pydantic adds the name of the branch it tried, which is no key of the file.
_UNIONS: dict[tuple[str, ...], int] = {
    ("finetune", "freeze"): 2,
    ("model", "ensemble"): 2,
    ("train", "batch_size"): 2,
    ("train", "epochs"): 2,
    ("data", "transfer", "values"): 4,
}


def _keys(location: tuple[str | int, ...]) -> list[str]:
    for union, depth in _UNIONS.items():
        if location[: len(union)] == union:
            location = location[:depth]
    return [str(key) for key in location]


def _fields_at(location: tuple[str | int, ...]) -> dict[str, FieldInfo]:
    """The fields of the section at `location`, by the names they have in the file."""
    fields = _fields(Config)
    for key in location:
        # A key of one's own choice, such as a parameter in search.space, leaves the section as it is.
        if str(key) in fields:
            sections = [kind for kind in _types(fields[str(key)].annotation) if issubclass(kind, Section)]
            fields = _fields(sections[0]) if sections else {}
    return fields


def _fields(section: type[Section]) -> dict[str, FieldInfo]:
    return {field.alias or name: field for name, field in section.model_fields.items()}


def _types(annotation: Any) -> set[type]:
    """The classes that an annotation such as `dict[str, Space] | None` is made of."""
    parts = typing.get_args(annotation)
    found = {annotation} if isinstance(annotation, type) and not parts else set()
    return found.union(*(_types(part) for part in parts))


def _nearest(name: object, known: list[str]) -> str:
    near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def _line(text: str, location: tuple[str | int, ...]) -> str:
    """`, line N` for the deepest part of `location` that stands in the file."""
    node, line = _read(text, "rt"), None
    for key in location:
        try:
            line = (node.lc.item(key) if isinstance(key, int) else node.lc.key(key))[0] + 1
            node = node[key]
        except (AttributeError, KeyError, TypeError, IndexError):
            continue
    return f", line {line}" if line else ""
