"""Validate a table against a schema, for training and for prediction."""

import difflib
from collections.abc import Sequence

import numpy as np
import pandas as pd
from pandas.api import types as dtypes

from pipeline.core.errors import UserError
from pipeline.tables.schema import Column, Schema
from pipeline.tables.values import as_plain, canonical


def check(table: pd.DataFrame, schema: Schema, where: str) -> pd.DataFrame:
    """Convert the features of `table`: numbers to float64, dates and times to datetime64 in UTC, categories to text.

    Raises `UserError` with `where`, row (from 1, without the header) and column of the first value that does not fit.
    """
    names = [column.name for column in schema.features]
    absent = [name for name in names if name not in table.columns]
    if absent:
        more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
        raise UserError(
            f"{where} lacks the column {absent[0]!r}{more}{nearest(absent[0], [str(c) for c in table.columns])}"
        )
    raw = table[names].reset_index(drop=True)
    try:
        parsed = {column.name: _parsed(raw[column.name], column) for column in schema.features}
        features = pd.DataFrame(parsed, index=raw.index)
    except _UnreadableError as error:
        raise UserError(
            f"{where}, row {error.row + 1}: {error.column!r} must be {error.rule}, got {error.value!r}"
        ) from None
    numeric = [column.name for column in schema.of_kind("numeric")]
    numbers = features[numeric].to_numpy(np.float64)
    for row, place in np.argwhere(np.isinf(numbers))[:1]:
        raise UserError(f"{where}, row {row + 1}: {numeric[place]!r} must be finite, got {numbers[row, place]}")
    return features


class _UnreadableError(Exception):
    def __init__(self, values: pd.Series, bad: pd.Series, rule: str) -> None:
        self.row = int(np.argmax(bad.to_numpy()))
        self.column, self.value, self.rule = str(values.name), str(values.iloc[self.row])[:80], rule
        super().__init__(rule)


def _parsed(values: pd.Series, column: Column) -> pd.Series:
    match column.kind:
        case "numeric":
            return _numbers(values, column.missing_texts)
        case "datetime":
            return _moments(values, column.format)
        case _:
            return canonical(values)


def _numbers(values: pd.Series, missing_texts: tuple[str, ...]) -> pd.Series:
    plain, _ = as_plain(values)
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
    plain, _ = as_plain(values)
    text = plain if dtypes.is_datetime64_any_dtype(plain.dtype) else canonical(plain)
    moments: pd.Series = pd.to_datetime(text, errors="coerce", utc=True, format=date_format or "ISO8601")
    bad = moments.isna() & plain.notna()
    if bad.any():
        raise _UnreadableError(values, bad, f"a date or time as {date_format or 'ISO8601'}")
    return moments


def unseen(table: pd.DataFrame, schema: Schema) -> dict[str, pd.Series]:
    """Values that training did not see and their counts, by categorical column of a validated table."""
    found = {}
    for column in schema.of_kind("categorical"):
        values = table[column.name].dropna()
        counts = values[~values.isin(list(column.categories))].value_counts()
        if len(counts):
            found[column.name] = counts
    return found


def nearest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, [str(column) for column in known], n=3, cutoff=0.4)
    return (
        f"; did you mean {' or '.join(map(repr, near))}?"
        if near
        else f"; it has {', '.join(map(repr, list(known)[:8]))}"
    )
