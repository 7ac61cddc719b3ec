"""Infer the kind of each column, and the classes or the scale of the target."""

import re
from typing import Any

import numpy as np
import pandas as pd
from pandas.api import types as dtypes

from pipeline.core.errors import UserError
from pipeline.core.settings import Data, Scalar, Task
from pipeline.tables.schema import DATE_FORMATS, Column, Kind, Target
from pipeline.tables.validation import nearest
from pipeline.tables.values import as_plain, canonical, canonical_value

MAX_INTEGER_CATEGORIES = 10  # distinct values up to which a whole-number column is categorical
MAX_WORDS = 5  # distinct texts that a column of numbers may hold for missing values
MIN_ROWS_PER_CLASS = 2  # on average; with fewer the target is an id or a measurement


def check_names(table: pd.DataFrame, data: Data) -> None:
    """Raise `UserError`, with the nearest names, if the table lacks a column that `data` names."""
    for key, names in {
        "data.target": (data.target,),
        "data.drop": data.drop,
        "data.kinds": tuple(data.kinds),
        "data.split.by": () if data.split.by == "random" else (data.split.by.split(":", 1)[1],),
    }.items():
        for name in names:
            if name not in table.columns:
                raise UserError(f"{key}: the table has no column {name!r}{nearest(name, list(table.columns))}")
    if data.split.by in (f"time:{data.target}", f"group:{data.target}"):
        raise UserError(f"data.split.by must not name the target, got {data.split.by}")


def learn_target(values: pd.Series, task: Task) -> Target:
    """Learn the classes, or mean and standard deviation, of a target without missing values.

    Raises `UserError` if the values do not suit the task.
    """
    name = str(values.name)
    values, nested = as_plain(values)
    if nested:
        raise UserError(f"data.target: {name!r} must not hold {nested} values")
    n_values = values.nunique()
    numeric = dtypes.is_numeric_dtype(values.dtype) and not dtypes.is_bool_dtype(values.dtype)
    if n_values == 0:
        raise UserError(f"data.target: {name!r} is missing in every row")
    if numeric and not np.isfinite(values.to_numpy(np.float64)).all():
        row = int(np.argmin(np.isfinite(values.to_numpy(np.float64))))
        raise UserError(f"data.target: {name!r} must be finite, got infinity in row {values.index[row] + 1}")
    if task == "regression":
        if not numeric:
            raise UserError(f"data.task is regression, but {name!r} holds {_sample(values)}: binary or multiclass?")
        if n_values == 1:
            raise UserError(f"data.target: {name!r} must vary, got {values.iloc[0]} in every row")
        numbers = values.to_numpy(np.float64)
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            mean, std = float(numbers.mean()), float(numbers.std())
        if not 0 < std < np.inf:
            raise UserError(f"data.target: {name!r} has a standard deviation of {std:g}: scale the column")
        return Target(name=name, task=task, mean=mean, std=std)
    if n_values == 1:
        raise UserError(
            f"data.target: {name!r} must have at least two classes, got {canonical_value(values.iloc[0])!r} in every row"
        )
    if task == "binary" and n_values != 2:
        raise UserError(f"data.task is binary, but {name!r} has {n_values} classes ({_sample(values)}): multiclass?")
    if len(values) < MIN_ROWS_PER_CLASS * n_values:
        kind = "regression?" if numeric else "is it an id?"
        raise UserError(
            f"data.task is {task}, but {name!r} has {n_values} different values in {len(values)} rows: {kind}"
        )
    return Target(name=name, task=task, classes=_labels(values))


def _labels(values: pd.Series) -> tuple[Scalar, ...]:
    """The distinct values in order, as JSON holds them."""
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


def learn_columns(table: pd.DataFrame, train: np.ndarray, data: Data) -> tuple[Column, ...]:
    """Infer the kind of each column except the target.

    Type and date format are inferred from the whole table, categories and missing values from the rows `train` only.
    """
    return tuple(_learn_column(table[name], train, data) for name in table.columns if name != data.target)


def _learn_column(whole: pd.Series, train: np.ndarray, data: Data) -> Column:
    name = str(whole.name)
    whole, nested = as_plain(whole)
    values = whole.iloc[train]

    def column(kind: Kind, reason: str, **rest: Any) -> Column:
        return Column(name=name, kind=kind, reason=reason, missing=int(values.isna().sum()), **rest)

    if name in data.drop:
        return column("drop", "named in data.drop")
    wanted = data.kinds.get(name)
    if wanted == "drop":
        return column("drop", "named in data.kinds")
    if data.split.by == f"group:{name}":
        return column("drop", "the group of the split, which is new for every new row")
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
        return column("drop", f"constant in the training rows: {str(present.iloc[0])[:40]}")
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
        return column("numeric", f"text that parses as numbers{beside}", missing_texts=words)
    date_format = known_date_format(unique)
    if date_format:
        parts = DATE_FORMATS[date_format]
        if date_format == "ISO8601":
            moments = pd.to_datetime(unique, format=date_format, utc=True)
            parts = ("date",) if (moments.dt.normalize() == moments).all() else parts
        return column("datetime", f"text that parses as {date_format}", format=date_format, parts=parts)
    if n_values > 50 and n_values > 0.9 * len(present):
        return column("drop", f"text with {n_values} different values in {len(present)} rows: an id or free text")
    return column("categorical", f"text with {n_values} values", categories=_categories(values, data))


def _stored_whole(values: pd.Series) -> bool:
    """True for whole numbers, also in a column that missing values have turned into floats."""
    if dtypes.is_integer_dtype(values.dtype):
        return True
    present = values.dropna()
    return len(present) < len(values) and bool((present % 1 == 0).all())


def _categories(values: pd.Series, data: Data) -> tuple[str, ...]:
    counts = canonical(values.dropna()).value_counts(sort=False)
    ordered = sorted(((-int(times), str(value)) for value, times in counts.items() if times >= data.min_count))
    return tuple(value for _, value in ordered[: data.max_categories])


def _words_among_numbers(unique: pd.Series) -> tuple[str, ...] | None:
    """The few texts in a column of numbers, to be read as missing; None if the column is not one of numbers."""
    words = unique[pd.to_numeric(unique, errors="coerce").isna()]
    few = len(words) <= min(MAX_WORDS, 0.1 * len(unique))
    return tuple(sorted(words)) if few and len(unique) > 2 * MAX_INTEGER_CATEGORIES else None


def known_date_format(unique: pd.Series) -> str | None:
    """The first known format that every value matches."""
    first = unique.head(100).tolist()
    for date_format, parts in DATE_FORMATS.items():
        shape = r"\d{4}-\d{2}-\d{2}([T ].*)?" if date_format == "ISO8601" else r"\d{1,4}[-/.:]\d{1,2}([-/.: ].*)?"
        if not all(re.fullmatch(shape, value) for value in first):
            continue
        if not pd.to_datetime(unique, format=date_format, errors="coerce", utc="date" in parts).isna().any():
            return date_format
    return None
