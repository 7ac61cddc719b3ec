"""`Schema`: the kind and categories of each column, and the target, as learned from the training rows."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import pandas as pd
from pydantic import AfterValidator, Field, ValidationError, model_validator

from pipeline.core import files
from pipeline.core.errors import UserError
from pipeline.core.settings import Scalar, Section, Task
from pipeline.tables.reading import TRUTH, Reading, known, read
from pipeline.tables.values import canonical, canonical_value

Kind = Literal["numeric", "categorical", "datetime", "drop"]
Part = Literal["date", "time"]

# The numbers that encode a date and a time of day.
PART_FEATURES: dict[Part, tuple[str, ...]] = {
    "date": ("days", "year.sin", "year.cos", "week.sin", "week.cos"),
    "time": ("hours", "day.sin", "day.cos"),
}


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(set(values)) < len(values):
        raise ValueError("must be distinct")
    return values


class Column(Section):
    """A column of the table, with the reason for its kind; its categories are ordered by frequency."""

    name: str
    kind: Kind
    reason: str
    reading: Reading = Reading()
    missing: Annotated[int, Field(ge=0)] = 0  # number of missing values among the training rows
    categories: Annotated[tuple[str, ...], Field(max_length=30_000), AfterValidator(_distinct)] = ()
    parts: Annotated[tuple[Part, ...], AfterValidator(_distinct)] = ()  # of a datetime column
    words: dict[str, int] = Field(default_factory=dict)  # texts read as missing, and in how many rows of the table
    examples: tuple[tuple[str, str], ...] = ()  # cells, and the values that they were read as

    @model_validator(mode="after")
    def _of_its_kind(self) -> Self:
        if bool(self.parts) != (self.kind == "datetime"):
            raise ValueError("parts must be set for datetime columns, and for no other")
        types = {"numeric": ("number",), "datetime": ("moment",), "categorical": ("text", "boolean", "number")}
        if self.reading.type not in types.get(self.kind, (self.reading.type,)):
            raise ValueError(f"a {self.kind} column must not be read as {self.reading.type}")
        return self

    @property
    def flags(self) -> tuple[str, ...]:
        """Names of the flags of a numeric column in a checked table."""
        return tuple(f"{self.name} {flag}" for flag in self.reading.flags) if self.kind == "numeric" else ()


class Target(Section):
    """The column to predict. `classes` are in code order; `mean` and `std` standardise a regression target."""

    name: str
    task: Task
    reading: Reading = Reading()
    classes: tuple[Scalar, ...] = ()
    mean: float = 0.0
    std: Annotated[float, Field(gt=0)] = 1.0

    @model_validator(mode="after")
    def _classes_of_its_task(self) -> Self:
        n = len(self.classes)
        if not {"regression": n == 0, "binary": n == 2, "multiclass": n >= 2}[self.task]:
            raise ValueError(f"{self.task} must not have {n} classes")
        if len(set(self.keys)) < n:
            raise ValueError("classes must be distinct")
        return self

    @property
    def n_outputs(self) -> int:
        """Outputs of the network for a row: a value for regression, a logit for binary, a logit per class otherwise."""
        return len(self.classes) if self.task == "multiclass" else 1

    @property
    def keys(self) -> list[str]:
        """The classes as text, as `read` returns them."""
        keys = [canonical_value(label) for label in self.classes]
        return [TRUTH.get(key.lower(), key) for key in keys] if self.reading.type == "boolean" else keys

    def encode(self, values: pd.Series) -> np.ndarray:
        """Return class codes [n] int64, -1 for a class not in `classes`; or standardised values [n] float32."""
        found = read(values, self.reading).values
        if self.task == "regression":
            return ((found.to_numpy(np.float64) - self.mean) / self.std).astype(np.float32)
        return pd.Index(self.keys).get_indexer(pd.Index(known(canonical(found), self.keys, values)))

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
        _distinct((self.target.name, *(column.name for column in self.columns), *self.flags))
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
    def flags(self) -> list[str]:
        """Columns of a checked table that hold the flags of numeric columns."""
        return [flag for column in self.of_kind("numeric") for flag in column.flags]

    @property
    def d_num(self) -> int:
        """Width of x_num: the scaled numbers, then the indicators of missing values, then the flags."""
        return self.n_scaled + len(self.with_indicator) + len(self.flags)

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
