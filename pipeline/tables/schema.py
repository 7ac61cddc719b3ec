"""What a table is: each column's kind, its categories, the target; and the check of any table against it."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import pandas as pd
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.core import files
from pipeline.core.errors import UserError
from pipeline.core.settings import Scalar, Task
from pipeline.tables.values import as_plain, canonical, canonical_value

Kind = Literal["numeric", "categorical", "datetime", "drop"]
Part = Literal["date", "time"]

# What the network is told of a date and of a time of day.
PART_FEATURES: dict[Part, tuple[str, ...]] = {
    "date": ("days", "year.sin", "year.cos", "week.sin", "week.cos"),
    "time": ("hours", "day.sin", "day.cos"),
}

# What a column of text must match from its first row to its last to be read as dates or times.
DATE_FORMATS: dict[str, tuple[Part, ...]] = {
    "ISO8601": ("date", "time"),
    "%Y/%m/%d": ("date",),
    "%Y/%m/%d %H:%M:%S": ("date", "time"),
    "%d.%m.%Y": ("date",),
    "%d.%m.%Y %H:%M": ("date", "time"),
    "%d.%m.%Y %H:%M:%S": ("date", "time"),
    "%m/%d/%Y": ("date",),
    "%m/%d/%Y %H:%M": ("date", "time"),
    "%m/%d/%Y %H:%M:%S": ("date", "time"),
    "%d/%m/%Y": ("date",),
    "%d/%m/%Y %H:%M": ("date", "time"),
    "%d/%m/%Y %H:%M:%S": ("date", "time"),
    "%H:%M": ("time",),
    "%H:%M:%S": ("time",),
}


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(set(values)) < len(values):
        raise ValueError("must be distinct")
    return values


class Column(_Frozen):
    """One column of the table; `reason` says why it has its kind."""

    name: str
    kind: Kind
    reason: str
    missing: Annotated[int, Field(ge=0)] = 0  # missing values among the training rows
    categories: Annotated[
        tuple[str, ...], Field(max_length=30_000), AfterValidator(_distinct)
    ] = ()  # most frequent first
    format: str | None = None  # of dates and times held as text
    parts: Annotated[tuple[Part, ...], AfterValidator(_distinct)] = ()  # what a datetime column says
    missing_texts: tuple[str, ...] = ()  # words among the numbers, such as "unknown", that mean missing

    @model_validator(mode="after")
    def _of_its_kind(self) -> Self:
        if self.format is not None and self.format not in DATE_FORMATS:
            raise ValueError(f"format must be one of {', '.join(DATE_FORMATS)}")
        if bool(self.parts) != (self.kind == "datetime"):
            raise ValueError("parts belong to a datetime column")
        return self


class Target(_Frozen):
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
            raise ValueError(f"{self.task} cannot have {n} classes")
        if len({canonical_value(label) for label in self.classes}) < n:
            raise ValueError("classes must be distinct")
        return self

    @property
    def n_outputs(self) -> int:
        """Numbers the network gives a row: one logit for binary, one value for regression, a logit a class else."""
        return len(self.classes) if self.task == "multiclass" else 1

    def encode(self, values: pd.Series) -> np.ndarray:
        """[n] int64 class codes, -1 for a class not in `classes`; or [n] float32, standardised."""
        if self.task == "regression":
            return ((as_plain(values)[0].to_numpy(np.float64) - self.mean) / self.std).astype(np.float32)
        return pd.Index([canonical_value(label) for label in self.classes]).get_indexer(pd.Index(canonical(values)))

    def labels(self, codes: np.ndarray) -> pd.Series:
        """Class codes back to labels of the type they had in the table."""
        return pd.Series(list(self.classes)).iloc[codes].reset_index(drop=True)


class Schema(_Frozen):
    """All that was learned of the table from its training rows."""

    columns: tuple[Column, ...]
    target: Target
    transfer_target: Target | None = None  # None: the transfer domain has no rows of its own
    rows: dict[str, int] = {}  # how many were read, set aside, and went to each split
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
    def d_num(self) -> int:
        """Width of x_num: the scaled features, then an indicator for each column with missing values."""
        timed = self.of_kind("datetime")
        parts = sum(len(PART_FEATURES[part]) for column in timed for part in column.parts)
        numeric = self.of_kind("numeric")
        return len(numeric) + parts + sum(column.missing > 0 for column in numeric + timed)

    @property
    def cardinalities(self) -> tuple[int, ...]:
        """Codes of each categorical column: its categories, one for missing and one for unseen."""
        return tuple(len(column.categories) + 2 for column in self.of_kind("categorical"))


def load_schema(path: Path) -> Schema:
    """Raises `UserError` for a file that is no schema, or one that contradicts itself."""
    if not path.is_file():
        raise UserError(f"{path} is missing: run dvc repro prepare")
    try:
        return Schema.model_validate_json(files.json_bytes(path))
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{path} is no schema: {'.'.join(map(str, first['loc']))}: {first['msg']}"[:300]) from None
