"""What `params.yaml` may say: every parameter with its type, default and rule, and what the presets stand for."""

import math
import re
import typing
from typing import Annotated, Any, Literal, Self
from urllib.parse import unquote

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic.fields import FieldInfo

from pipeline.core.secrets import secret_in

Fraction = Annotated[float, Field(gt=0, lt=1)]
Probability = Annotated[float, Field(ge=0, lt=1)]

# What is larger can only be a mistake, and would end in no memory, no end or no number.
Positive = Annotated[float, Field(gt=0, le=1e9)]
NotNegative = Annotated[float, Field(ge=0, le=1e9)]
Count = Annotated[int, Field(ge=1, le=10**9)]
Epochs = Annotated[int, Field(ge=1, le=10**6)]
Width = Annotated[int, Field(ge=1, le=2**16)]
Workers = Annotated[int, Field(ge=1, le=1024)]
Scalar = bool | int | float | str


def _source_without_secret(url: str) -> str:
    if part := secret_in(url):
        raise ValueError(
            f"{part} may be a secret, and dvc.lock would keep it: write a variable such as ${{TOKEN}} instead"
        )
    return url


def _server_without_secret(url: str) -> str:
    if part := secret_in(url):
        raise ValueError(
            f"{part} may be a secret, and dvc.lock would keep it: set MLFLOW_TRACKING_USERNAME and"
            " MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_URI"
        )
    return url


def _in_project(url: str) -> str:
    written = re.sub(r"[\x00-\x20]", "", url)  # which urllib overlooks
    scheme, found, rest = written.partition(":")
    match scheme.lower().partition("+")[0] if found else "file":
        case "sqlite":
            path = rest.removeprefix("///")
        case "file":
            path = unquote(rest if found else written)
        case _:
            return url  # a server
    if path.startswith("/") or ":" in path or ".." in re.split(r"[/\\]", path):
        raise ValueError(
            "must be a server or stay in the project, as sqlite:///mlflow.db does:"
            f" set the variable MLFLOW_TRACKING_URI for a database elsewhere, got {url!r}"
        )
    return url


Source = Annotated[str, Field(min_length=1), AfterValidator(_source_without_secret)]
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
    source: Source | None = None

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
    source: Source
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
    frequencies: Width = 16
    sigma: Positive = 0.1
    width: Width = 8


class Model(Section):
    hidden: Annotated[tuple[Width, ...], Field(max_length=100)] = (128, 64)
    activation: Literal["relu", "leaky_relu", "sigmoid", "tanh", "selu"] = "relu"
    slope: NotNegative = 0.01
    dropout: Probability = 0.1
    init: Literal["default", "uniform", "xavier", "kaiming", "zeros"] = "default"
    numeric: Literal["plain", "ple", "plr"] = "plain"
    bins: Annotated[int, Field(ge=2, le=2**16)] = 32
    plr: Plr = Plr()
    categories: Literal["onehot", "embedding"] = "onehot"
    embedding: Width = 16
    ensemble: Annotated[int, Field(ge=1, le=1000)] | Literal["auto"] = 1

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
    rows: Annotated[int, Field(ge=2, le=10**9)] = 32
    steps: Epochs = 1000


class Train(Section):
    preset: Literal["textbook", "strong"] = "strong"
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: Positive = 0.05
    momentum: Probability = 0.9
    weight_decay: NotNegative = 1e-5
    batch_size: Count | Literal["auto"] = 512
    epochs: Epochs | Literal["auto"] = 10
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
    lr: Positive = 0.003
    epochs: Epochs = 10
    patience: Count | None = 3
    freeze: Annotated[int, Field(ge=0)] | tuple[str, ...] = 0


class Space(Section):
    low: float | None = None
    high: float | None = None
    log: bool = False
    steps: Annotated[int, Field(ge=2, le=100_000)] | None = None
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
    n_trials: Annotated[int, Field(ge=1, le=100_000)] = 32
    epochs: Epochs = 3
    rows: Annotated[int, Field(ge=2, le=10**9)] | None = None
    reduction: Annotated[int, Field(ge=2, le=10**9)] | None = 3
    workers: Workers | None = None
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
    name: Annotated[
        str, Field(pattern=r"^[^/:'\"`\\\pC]+$", max_length=200)
    ]  # MLflow's search and the model card quote it
    metric: MetricName
    minimum: float


class Tracking(Section):
    uri: Annotated[str, AfterValidator(_server_without_secret), AfterValidator(_in_project)] | None = None
    experiment: Annotated[str, Field(min_length=1)] = "default"


class Config(Section):
    """All of `params.yaml`."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Workers = 1
    portable: bool = False
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


def is_whole(name: str) -> bool:
    """Whether a dotted parameter takes whole numbers only."""
    *sections, key = name.split(".")
    types = _types(fields_at(tuple(sections))[key].annotation)
    return int in types and float not in types


def fields_at(location: tuple[str | int, ...]) -> dict[str, FieldInfo]:
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
