"""Infer a schema from rows: the kind of each column, and the classes or scale of the target."""

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

MAX_INTEGER_CATEGORIES = 10  # an integer column with at most this many values is categorical
MAX_WORDS = 5  # words for missing values in a column of numbers
MIN_ROWS_A_LABEL = 2  # with fewer rows per class on average, the target is an id or a measurement


def check_names(table: pd.DataFrame, data: Data) -> None:
    """Check that the columns named in `data` exist; raises `UserError` with the nearest names."""
    _, _, by = data.split.by.partition(":")
    named = [("data.target", data.target), *(("data.drop", name) for name in data.drop)]
    named += [("data.kinds", name) for name in data.kinds] + [("data.split.by", by)] * bool(by)
    for key, name in named:
        if name not in table.columns:
            raise UserError(f"{key}: the table has no column {name!r}{nearest(name, table.columns)}")
    if by == data.target:
        raise UserError(f"data.split.by must not name the target, got {data.split.by}")


def learn_target(values: pd.Series, task: Task) -> Target:
    """Learn classes, or mean and standard deviation, from values without missing ones that must fit the task."""
    name, where = str(values.name), f"data.target: {str(values.name)!r}"
    values, nested = as_plain(values)
    if nested:
        raise UserError(f"{where} holds {nested} values")
    n_values = values.nunique()
    numeric = dtypes.is_numeric_dtype(values.dtype) and not dtypes.is_bool_dtype(values.dtype)
    numbers = values.to_numpy(np.float64) if numeric else np.zeros(0)
    if n_values == 0:
        raise UserError(f"{where} has no value in any row")
    if not np.isfinite(numbers).all():
        raise UserError(f"{where} is infinite in row {values.index[int(np.argmin(np.isfinite(numbers)))] + 1}")
    if task == "regression":
        if not numeric:
            raise UserError(f"data.task is regression, but {name!r} holds {_sample(values)}: binary or multiclass?")
        if n_values == 1:
            raise UserError(f"{where} is {values.iloc[0]} in every row; there is nothing to learn")
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            mean, std = float(numbers.mean()), float(numbers.std())
        if not 0 < std < np.inf:
            raise UserError(f"{where} has a standard deviation of {std:g}: scale the column")
        return Target(name=name, task=task, mean=mean, std=std)
    if n_values == 1:
        label = canonical_value(values.iloc[0])
        raise UserError(f"{where} has one class, {label!r}, in every row; there is nothing to learn")
    if task == "binary" and n_values != 2:
        raise UserError(f"data.task is binary, but {name!r} has {n_values} classes ({_sample(values)}): multiclass?")
    if len(values) < MIN_ROWS_A_LABEL * n_values:
        hint = "regression?" if numeric else "is it an id?"
        raise UserError(f"data.task is {task}, but {name!r} has {n_values} values in {len(values)} rows: {hint}")
    return Target(name=name, task=task, classes=_labels(values))


def _labels(values: pd.Series) -> tuple[Scalar, ...]:
    """Sort the classes, as values that JSON can hold."""
    first: dict[str, Scalar] = {}
    for value in pd.unique(values):
        plain = value.item() if isinstance(value, np.generic) else value
        first.setdefault(canonical_value(plain), plain if isinstance(plain, bool | int | float | str) else str(plain))
    numeric = all(isinstance(label, int | float) for label in first.values())
    return tuple(sorted(first.values(), key=float if numeric else canonical_value))


def _sample(values: pd.Series) -> str:
    seen = [repr(str(value)) for value in pd.unique(values)[:4]]
    return ", ".join(seen[:3]) + (", …" if len(seen) > 3 else "")


def learn_columns(table: pd.DataFrame, train: np.ndarray, data: Data) -> tuple[Column, ...]:
    """Learn the kind of each feature: storage type and date format from all rows, values from the rows `train` only."""
    return tuple(_learn_column(table[name], train, data) for name in table.columns if name != data.target)


def _learn_column(whole: pd.Series, train: np.ndarray, data: Data) -> Column:
    name = str(whole.name)
    whole, nested = as_plain(whole)
    values = whole.iloc[train]

    def column(kind: Kind, reason: str, **rest: Any) -> Column:
        categories = _categories(values, data) if kind == "categorical" else ()
        missing = int(values.isna().sum())
        return Column(name=name, kind=kind, reason=reason, missing=missing, categories=categories, **rest)

    wanted = data.kinds.get(name)
    if name in data.drop or wanted == "drop":
        return column("drop", "named in data.drop" if name in data.drop else "named in data.kinds")
    if data.split.by == f"group:{name}":
        return column("drop", "the group of the split: new rows have other groups")
    if nested:
        return column("drop", f"holds {nested} values")
    if wanted is not None:
        return column(wanted, "named in data.kinds")
    present = values.dropna()
    if present.empty:
        return column("drop", "missing in every training row")
    n_values = int(present.nunique())
    if n_values == 1 and len(present) == len(values):
        return column("drop", f"constant in the training rows: {str(present.iloc[0])[:40]}")
    if dtypes.is_datetime64_any_dtype(values.dtype):
        midnight = (present.dt.normalize() == present).all()
        return column("datetime", "dates", parts=("date",) if midnight else ("date", "time"))
    bools = present.dtype == object and all(isinstance(value, bool) for value in present)
    if dtypes.is_bool_dtype(present.dtype) or bools:
        return column("categorical", "true or false")
    if dtypes.is_numeric_dtype(values.dtype):
        if n_values <= MAX_INTEGER_CATEGORIES and _holds_integers(whole):
            return column("categorical", f"whole numbers with only {n_values} values")
        return column("numeric", "numbers")
    unique = pd.Series(pd.unique(canonical(whole.dropna())))
    if (words := _words_among_numbers(unique)) is not None:
        values = values.mask(values.isin(words))
        beside = f"; {', '.join(map(repr, words))} read as missing" if words else ""
        return column("numeric", f"text that parses as numbers{beside}", missing_texts=words)
    if date_format := known_date_format(unique):
        parts = DATE_FORMATS[date_format]
        if date_format == "ISO8601":
            moments = pd.to_datetime(unique, format=date_format, utc=True)
            parts = ("date",) if (moments.dt.normalize() == moments).all() else parts
        return column("datetime", f"text that parses as {date_format}", format=date_format, parts=parts)
    if n_values > 50 and n_values > 0.9 * len(present):
        return column("drop", f"text with {n_values} different values in {len(present)} rows: an id or free text")
    return column("categorical", f"text with {n_values} values")


def _holds_integers(values: pd.Series) -> bool:
    """True for an integer column, also if its missing values made it a float column."""
    present = values.dropna()
    whole = len(present) < len(values) and bool((present % 1 == 0).all())
    return whole or dtypes.is_integer_dtype(values.dtype)


def _categories(values: pd.Series, data: Data) -> tuple[str, ...]:
    counts = canonical(values.dropna()).value_counts(sort=False)
    ordered = sorted(((-int(times), str(value)) for value, times in counts.items() if times >= data.min_count))
    return tuple(value for _, value in ordered[: data.max_categories])


def _words_among_numbers(unique: pd.Series) -> tuple[str, ...] | None:
    """Return the few words in a column of numbers, possibly none; None for other columns."""
    words = unique[pd.to_numeric(unique, errors="coerce").isna()]
    few = len(words) <= min(MAX_WORDS, 0.1 * len(unique))
    return tuple(sorted(words)) if few and len(unique) > 2 * MAX_INTEGER_CATEGORIES else None


def known_date_format(unique: pd.Series) -> str | None:
    """Return the first format of `DATE_FORMATS` that every value has."""
    first = unique.head(100).tolist()
    for date_format, parts in DATE_FORMATS.items():
        shape = r"\d{4}-\d{2}-\d{2}([T ].*)?" if date_format == "ISO8601" else r"\d{1,4}[-/.:]\d{1,2}([-/.: ].*)?"
        if all(re.fullmatch(shape, value) for value in first):
            moments = pd.to_datetime(unique, format=date_format, errors="coerce", utc="date" in parts)
            if not moments.isna().any():
                return date_format
    return None
