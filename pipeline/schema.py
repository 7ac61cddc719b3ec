"""What a table is: each column's kind, its categories, the target; and the check of any table against it."""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import pandas as pd
from pandas.api import types as dtypes
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline import files
from pipeline.errors import UserError
from pipeline.settings import Data, Scalar, Task

Kind = Literal["numeric", "categorical", "datetime", "drop"]
Part = Literal["date", "time"]

MAX_INTEGER_CATEGORIES = 10  # a whole-number column with at most this many values is a set of categories
MAX_WORDS = 5  # texts that a column of numbers may hold for missing values
MIN_ROWS_A_LABEL = 2  # fewer rows a class on average, and a target is an id or a measurement

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
            return ((_plain(values)[0].to_numpy(np.float64) - self.mean) / self.std).astype(np.float32)
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


# ---------------------------------------------------------------------------------------------------- values as text


def canonical(values: pd.Series) -> pd.Series:
    """Values as text, alike however the file stored them: 3, 3.0 and "3" are one category; missing stays missing."""
    if dtypes.is_string_dtype(values.dtype) and not dtypes.is_object_dtype(values.dtype):
        return values
    if isinstance(values.dtype, pd.CategoricalDtype):
        names = canonical(pd.Series(values.cat.categories))
        # Two categories, such as 1 and "1", may become one: through codes, not through a renamed dtype.
        return names.reindex(values.cat.codes).set_axis(values.index).astype("str")
    try:
        unique = pd.unique(values.dropna())
    except TypeError:  # nested values of Parquet have no hash
        return values.map(canonical_value, na_action="ignore").astype("str").where(values.notna())
    spelled = {value: canonical_value(value) for value in unique}
    return values.map(spelled).astype("str").where(values.notna())


def canonical_value(value: Any) -> str:
    if isinstance(value, np.timedelta64):  # which NumPy counts among the integers
        return str(pd.Timedelta(value))
    if isinstance(value, bool | np.bool_):
        return str(bool(value))
    if isinstance(value, int | np.integer):
        return str(int(value))
    if isinstance(value, np.datetime64):
        return str(pd.Timestamp(value))
    if isinstance(value, float | np.floating):
        return str(int(value)) if float(value).is_integer() else repr(float(value))
    return str(value)


# ------------------------------------------------------------------------------------------------------- the target


def check_names(table: pd.DataFrame, data: Data) -> None:
    """The columns that `data` names exist; the nearest names are offered where one does not."""
    for key, names in {
        "data.target": (data.target,),
        "data.drop": data.drop,
        "data.kinds": tuple(data.kinds),
        "data.split.by": () if data.split.by == "random" else (data.split.by.split(":", 1)[1],),
    }.items():
        for name in names:
            if name not in table.columns:
                raise UserError(f"{key}: the table has no column {name!r}{_nearest(name, list(table.columns))}")
    if data.split.by in (f"time:{data.target}", f"group:{data.target}"):
        raise UserError(f"data.split.by must name another column than the target, got {data.split.by}")


def learn_target(values: pd.Series, task: Task) -> Target:
    """Classes, or mean and standard deviation, of the target without its missing rows.

    Raises `UserError` where the values and the task are at odds.
    """
    name = str(values.name)
    values, nested = _plain(values)
    if nested:
        raise UserError(f"data.target: {name!r} holds {nested} values")
    n_values = values.nunique()
    numeric = dtypes.is_numeric_dtype(values.dtype) and not dtypes.is_bool_dtype(values.dtype)
    if n_values == 0:
        raise UserError(f"data.target: {name!r} has no value in any row")
    if numeric and not np.isfinite(values.to_numpy(np.float64)).all():
        row = int(np.argmin(np.isfinite(values.to_numpy(np.float64))))
        raise UserError(f"data.target: {name!r} is infinite in row {values.index[row] + 1}")
    if task == "regression":
        if not numeric:
            raise UserError(f"data.task is regression, but {name!r} holds {_sample(values)}: binary or multiclass?")
        if n_values == 1:
            raise UserError(f"data.target: {name!r} is {values.iloc[0]} in every row; there is nothing to learn")
        numbers = values.to_numpy(np.float64)
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            mean, std = float(numbers.mean()), float(numbers.std())
        if not 0 < std < np.inf:
            raise UserError(f"data.target: {name!r} has a standard deviation of {std:g}: scale the column")
        return Target(name=name, task=task, mean=mean, std=std)
    if n_values == 1:
        raise UserError(
            f"data.target: {name!r} has one class, {canonical_value(values.iloc[0])!r}, in every row; there is nothing to learn"
        )
    if task == "binary" and n_values != 2:
        raise UserError(f"data.task is binary, but {name!r} has {n_values} classes ({_sample(values)}): multiclass?")
    if len(values) < MIN_ROWS_A_LABEL * n_values:
        kind = "regression?" if numeric else "is it an id?"
        raise UserError(
            f"data.task is {task}, but {name!r} has {n_values} different values in {len(values)} rows: {kind}"
        )
    return Target(name=name, task=task, classes=_labels(values))


def _labels(values: pd.Series) -> tuple[Scalar, ...]:
    """The classes in order, as JSON can hold them."""
    first: dict[str, Scalar] = {}
    for value in pd.unique(values):
        plain = value.item() if isinstance(value, np.generic) else value
        first.setdefault(canonical_value(plain), plain if isinstance(plain, bool | int | float | str) else str(plain))
    labels = list(first.values())
    if all(isinstance(label, int | float) for label in labels):
        return tuple(sorted(labels, key=float))
    return tuple(sorted(labels, key=canonical_value))


def _sample(values: pd.Series) -> str:
    seen = [repr(str(value)) for value in pd.unique(values)[:4]]
    return ", ".join(seen[:3]) + (", …" if len(seen) > 3 else "")


# ------------------------------------------------------------------------------------------------------ the columns


def learn_columns(table: pd.DataFrame, train: np.ndarray, data: Data) -> tuple[Column, ...]:
    """The kind of each column but the target.

    How a column is written (its type, its date format) is read from the whole table; what its values are, from the rows
    `train` alone.
    """
    return tuple(_learn_column(table[name], train, data) for name in table.columns if name != data.target)


def _learn_column(whole: pd.Series, train: np.ndarray, data: Data) -> Column:
    name = str(whole.name)
    whole, nested = _plain(whole)
    values = whole.iloc[train]

    def column(kind: Kind, reason: str, **rest: Any) -> Column:
        return Column(name=name, kind=kind, reason=reason, missing=int(values.isna().sum()), **rest)

    if name in data.drop:
        return column("drop", "named in data.drop")
    wanted = data.kinds.get(name)
    if wanted == "drop":
        return column("drop", "named in data.kinds")
    if data.split.by == f"group:{name}":
        return column("drop", "the group of the split: known groups say nothing of new ones")
    if nested:
        return column("drop", f"holds {nested} values")
    if wanted == "numeric":
        return column("numeric", "named in data.kinds")
    if wanted == "categorical":
        return column("categorical", "named in data.kinds", categories=_categories(values, data))
    present = values.dropna()
    if present.empty:
        return column("drop", "missing in every training row")
    n_values = int(present.nunique())
    if n_values == 1 and len(present) == len(values):
        return column("drop", f"the same value in every training row: {str(present.iloc[0])[:40]}")
    if dtypes.is_datetime64_any_dtype(values.dtype):
        midnight = (present.dt.normalize() == present).all()
        return column("datetime", "dates", parts=("date",) if midnight else ("date", "time"))
    if dtypes.is_bool_dtype(present.dtype) or (
        present.dtype == object and all(isinstance(value, bool) for value in present)
    ):
        return column("categorical", "true or false", categories=_categories(values, data))
    if dtypes.is_numeric_dtype(values.dtype):
        if n_values <= MAX_INTEGER_CATEGORIES and _stored_whole(whole):
            reason = f"whole numbers with only {n_values} values"
            return column("categorical", reason, categories=_categories(values, data))
        return column("numeric", "numbers")
    unique = pd.Series(pd.unique(canonical(whole.dropna())))
    words = _words_among_numbers(unique)
    if words is not None:
        values = values.mask(values.isin(words))
        beside = f"; {', '.join(map(repr, words))} read as missing" if words else ""
        return column("numeric", f"text that reads as numbers{beside}", missing_texts=words)
    date_format = known_date_format(unique)
    if date_format:
        parts = DATE_FORMATS[date_format]
        if date_format == "ISO8601":
            moments = pd.to_datetime(unique, format=date_format, utc=True)
            parts = ("date",) if (moments.dt.normalize() == moments).all() else parts
        return column("datetime", f"text that reads as {date_format}", format=date_format, parts=parts)
    if n_values > 50 and n_values > 0.9 * len(present):
        return column("drop", f"text with {n_values} different values in {len(present)} rows: an id or free text")
    return column("categorical", f"text with {n_values} values", categories=_categories(values, data))


def _plain(values: pd.Series) -> tuple[pd.Series, str | None]:
    """Objects and rare types of Parquet as dates, numbers or text; the second part names what cannot be."""
    if isinstance(values.dtype, pd.CategoricalDtype):
        dtype: Any = values.cat.categories.dtype
        if values.isna().any() and (dtypes.is_integer_dtype(dtype) or dtypes.is_bool_dtype(dtype)):
            dtype = "float64" if dtypes.is_integer_dtype(dtype) else "boolean"
        values = values.astype(dtype)
    if dtypes.is_timedelta64_dtype(values.dtype):
        return values.dt.total_seconds(), None
    if dtypes.is_complex_dtype(values.dtype):
        return values, "complex"
    if not dtypes.is_object_dtype(values.dtype):
        return values, None
    kinds = {type(value).__name__ for value in values.dropna()}
    if kinds <= {"date", "datetime", "Timestamp"} and kinds:
        return pd.to_datetime(values), None
    if kinds <= {"Decimal", "int", "float"} and kinds:
        return pd.to_numeric(values), None
    nested = kinds & {"dict", "list", "ndarray", "tuple", "set", "bytes", "bytearray"}
    return values, ", ".join(sorted(nested)) or None


def _stored_whole(values: pd.Series) -> bool:
    """Whole numbers in an integer column, or in one that a missing value has turned into floats."""
    if dtypes.is_integer_dtype(values.dtype):
        return True
    present = values.dropna()
    return len(present) < len(values) and bool((present % 1 == 0).all())


def _categories(values: pd.Series, data: Data) -> tuple[str, ...]:
    counts = canonical(values.dropna()).value_counts(sort=False)
    ordered = sorted(((-int(times), str(value)) for value, times in counts.items() if times >= data.min_count))
    return tuple(value for _, value in ordered[: data.max_categories])


def _words_among_numbers(unique: pd.Series) -> tuple[str, ...] | None:
    """The few texts, or none, in a column that otherwise holds numbers; None where it does not."""
    words = unique[pd.to_numeric(unique, errors="coerce").isna()]
    few = len(words) <= min(MAX_WORDS, 0.1 * len(unique))
    return tuple(sorted(words)) if few and len(unique) > 2 * MAX_INTEGER_CATEGORIES else None


def known_date_format(unique: pd.Series) -> str | None:
    """The first known format that every value has."""
    first = unique.head(100).tolist()
    for date_format, parts in DATE_FORMATS.items():
        shape = r"\d{4}-\d{2}-\d{2}([T ].*)?" if date_format == "ISO8601" else r"\d{1,4}[-/.:]\d{1,2}([-/.: ].*)?"
        if not all(re.fullmatch(shape, value) for value in first):
            continue
        if not pd.to_datetime(unique, format=date_format, errors="coerce", utc="date" in parts).isna().any():
            return date_format
    return None


# ------------------------------------------------------------------------------------------------------- the check


def check(table: pd.DataFrame, schema: Schema, where: str) -> pd.DataFrame:
    """The features of `table`, each column as its kind says: the only way in, for training and for prediction.

    Numeric columns come back as float64, datetime columns as datetime64 in UTC, categorical ones as text. Raises
    `UserError` naming `where`, the row (counted from 1, without the header) and the column of the first value that
    does not fit.
    """
    import pandera.pandas as pandera
    from pandera.errors import SchemaErrors

    names = [column.name for column in schema.features]
    absent = [name for name in names if name not in table.columns]
    if absent:
        more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
        raise UserError(
            f"{where} lacks the column {absent[0]!r}{more}{_nearest(absent[0], [str(c) for c in table.columns])}"
        )
    numeric = [column.name for column in schema.of_kind("numeric")]

    def parse(raw: pd.DataFrame) -> pd.DataFrame:
        values = {column.name: _parser(column)(raw[column.name]) for column in schema.features}
        return pd.DataFrame(values, index=raw.index)

    def finite(parsed: pd.DataFrame) -> pd.Series:
        return pd.Series(~np.isinf(parsed[numeric].to_numpy()).any(axis=1), index=parsed.index)

    # One rule for the table: a rule a column takes milliseconds for each, and there may be thousands.
    rule = pandera.DataFrameSchema(
        parsers=pandera.Parser(parse),
        checks=pandera.Check(finite, name="infinite"),
    )
    features = table[names].reset_index(drop=True)
    try:
        return rule.validate(features, lazy=True)
    except _UnreadableError as error:
        raise UserError(
            f"{where}, row {error.row + 1}: {error.column!r} must be {error.rule}, got {error.value!r}"
        ) from None
    except SchemaErrors as error:
        row = int(error.failure_cases["index"].min())
        values = parse(features.iloc[[row]])[numeric].iloc[0]
        column = values.index[np.isinf(values)][0]
        raise UserError(f"{where}, row {row + 1}: {column!r} must be finite, got {values[column]}") from None


class _UnreadableError(Exception):
    def __init__(self, values: pd.Series, bad: pd.Series, rule: str) -> None:
        self.row = int(np.argmax(bad.to_numpy()))
        self.column, self.value, self.rule = str(values.name), str(values.iloc[self.row])[:80], rule
        super().__init__(rule)


def _parser(column: Column) -> Any:
    match column.kind:
        case "numeric":
            return lambda values: _numbers(values, column.missing_texts)
        case "datetime":
            return lambda values: _moments(values, column.format)
        case _:
            return canonical


def _numbers(values: pd.Series, missing_texts: tuple[str, ...]) -> pd.Series:
    plain, _ = _plain(values)
    if missing_texts:
        plain = plain.mask(plain.isin(list(missing_texts)))
    if dtypes.is_datetime64_any_dtype(plain.dtype):
        raise _UnreadableError(values, plain.notna(), "a number")
    if dtypes.is_bool_dtype(plain.dtype):
        return plain.astype("float64")
    numbers = pd.to_numeric(plain, errors="coerce").astype("float64")
    bad = numbers.isna() & plain.notna()
    if bad.any():
        raise _UnreadableError(values, bad, "a number")
    return numbers


def _moments(values: pd.Series, date_format: str | None) -> pd.Series:
    plain, _ = _plain(values)
    text = plain if dtypes.is_datetime64_any_dtype(plain.dtype) else canonical(plain)
    moments: pd.Series = pd.to_datetime(text, errors="coerce", utc=True, format=date_format or "ISO8601")
    bad = moments.isna() & plain.notna()
    if bad.any():
        raise _UnreadableError(values, bad, f"a date or time as {date_format or 'ISO8601'}")
    return moments


def unseen(table: pd.DataFrame, schema: Schema) -> dict[str, pd.Series]:
    """By categorical column, how often each value stands in a checked `table` that training never saw."""
    found = {}
    for column in schema.of_kind("categorical"):
        values = table[column.name].dropna()
        counts = values[~values.isin(list(column.categories))].value_counts()
        if len(counts):
            found[column.name] = counts
    return found


def _nearest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, [str(column) for column in known], n=3, cutoff=0.4)
    return (
        f"; did you mean {' or '.join(map(repr, near))}?"
        if near
        else f"; it has {', '.join(map(repr, list(known)[:8]))}"
    )
