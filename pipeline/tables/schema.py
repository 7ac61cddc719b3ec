"""`Schema`: the kind and categories of each column, and the target, as learned from the training rows."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import pandas as pd
from pydantic import AfterValidator, Field, ValidationError, model_validator

from pipeline.core import files
from pipeline.core.errors import UserError
from pipeline.core.settings import Scalar, Section, Task
from pipeline.tables.values import as_plain, canonical, canonical_value

Kind = Literal["numeric", "categorical", "datetime", "drop"]
Part = Literal["date", "time"]

# The numbers that encode a date and a time of day.
PART_FEATURES: dict[Part, tuple[str, ...]] = {
    "date": ("days", "year.sin", "year.cos", "week.sin", "week.cos"),
    "time": ("hours", "day.sin", "day.cos"),
}

# Formats of dates and times as text, in the order in which they are tried, and the parts that each holds.
DATE_FORMATS: dict[str, tuple[Part, ...]] = {
    "ISO8601": ("date", "time"), "%Y/%m/%d": ("date",), "%Y/%m/%d %H:%M:%S": ("date", "time"),
    "%d.%m.%Y": ("date",), "%d.%m.%Y %H:%M": ("date", "time"), "%d.%m.%Y %H:%M:%S": ("date", "time"),
    "%m/%d/%Y": ("date",), "%m/%d/%Y %H:%M": ("date", "time"), "%m/%d/%Y %H:%M:%S": ("date", "time"),
    "%d/%m/%Y": ("date",), "%d/%m/%Y %H:%M": ("date", "time"), "%d/%m/%Y %H:%M:%S": ("date", "time"),
    "%H:%M": ("time",), "%H:%M:%S": ("time",),
}  # fmt: skip


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(set(values)) < len(values):
        raise ValueError("must be distinct")
    return values


class Column(Section):
    """A column of the table, with the reason for its kind; its categories are ordered by frequency."""

    name: str
    kind: Kind
    reason: str
    missing: Annotated[int, Field(ge=0)] = 0  # number of missing values among the training rows
    categories: Annotated[tuple[str, ...], Field(max_length=30_000), AfterValidator(_distinct)] = ()
    format: str | None = None  # of dates and times stored as text
    parts: Annotated[tuple[Part, ...], AfterValidator(_distinct)] = ()  # of a datetime column
    missing_texts: tuple[str, ...] = ()  # words in a numeric column that mean missing, such as "unknown"

    @model_validator(mode="after")
    def _of_its_kind(self) -> Self:
        if self.format is not None and self.format not in DATE_FORMATS:
            raise ValueError(f"format must be one of {', '.join(DATE_FORMATS)}")
        if bool(self.parts) != (self.kind == "datetime"):
            raise ValueError("parts must be set for datetime columns, and for no other")
        return self


class Target(Section):
    """The column to predict. `classes` are in code order; `mean` and `std` standardise a regression target."""

    name: str
    task: Task
    classes: tuple[Scalar, ...] = ()
    mean: float = 0.0
    std: Annotated[float, Field(gt=0)] = 1.0

    @model_validator(mode="after")
    def _classes_of_its_task(self) -> Self:
        n = len(self.classes)
        if not {"regression": n == 0, "binary": n == 2, "multiclass": n >= 2}[self.task]:
            raise ValueError(f"{self.task} must not have {n} classes")
        if len({canonical_value(label) for label in self.classes}) < n:
            raise ValueError("classes must be distinct")
        return self

    @property
    def n_outputs(self) -> int:
        """Outputs of the network for a row: a value for regression, a logit for binary, a logit per class otherwise."""
        return len(self.classes) if self.task == "multiclass" else 1

    def encode(self, values: pd.Series) -> np.ndarray:
        """Return class codes [n] int64, -1 for a class not in `classes`; or standardised values [n] float32."""
        if self.task == "regression":
            return ((as_plain(values)[0].to_numpy(np.float64) - self.mean) / self.std).astype(np.float32)
        return pd.Index([canonical_value(label) for label in self.classes]).get_indexer(pd.Index(canonical(values)))

    def labels(self, codes: np.ndarray) -> pd.Series:
        """Convert class codes to labels of the type that the table holds."""
        return pd.Series(list(self.classes)).iloc[codes].reset_index(drop=True)


class Schema(Section):
    """Everything learned about the table from its training rows."""

    columns: tuple[Column, ...]
    target: Target
    transfer_target: Target | None = None  # None without a transfer domain
    rows: dict[str, int] = Field(default_factory=dict)  # number of rows read, left out, and in each split
    notes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        _distinct((self.target.name, *(column.name for column in self.columns)))
        return self

    def of_kind(self, kind: Kind) -> tuple[Column, ...]:
        return tuple(column for column in self.columns if column.kind == kind)

    @property
    def features(self) -> tuple[Column, ...]:
        return tuple(column for column in self.columns if column.kind != "drop")

    @property
    def n_scaled(self) -> int:
        """Numbers to scale: numeric columns, and the numbers that encode dates and times."""
        parts = sum(len(PART_FEATURES[part]) for column in self.of_kind("datetime") for part in column.parts)
        return len(self.of_kind("numeric")) + parts

    @property
    def with_indicator(self) -> list[str]:
        """Numeric and datetime columns with missing values in training."""
        return [c.name for c in (*self.of_kind("numeric"), *self.of_kind("datetime")) if c.missing > 0]

    @property
    def d_num(self) -> int:
        """Width of x_num: the scaled numbers, then the indicators of missing values."""
        return self.n_scaled + len(self.with_indicator)

    @property
    def cardinalities(self) -> tuple[int, ...]:
        """Number of codes of each categorical column: one per category, one for missing, one for unseen."""
        return tuple(len(column.categories) + 2 for column in self.of_kind("categorical"))


def load_schema(path: Path) -> Schema:
    """Read `schema.json`; raises `UserError` if it is not a schema or contradicts itself."""
    if not path.is_file():
        raise UserError(f"{path} is missing: run dvc repro prepare")
    try:
        return Schema.model_validate_json(files.json_bytes(path))
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{path} is not a schema: {'.'.join(map(str, first['loc']))}: {first['msg']}"[:300]) from None
