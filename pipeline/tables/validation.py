"""Check a table against a schema, for training and for prediction alike."""

import difflib
from collections.abc import Iterable

import numpy as np
import pandas as pd
from pandas.api import types as dtypes

from pipeline.core.errors import UserError
from pipeline.tables.schema import Column, Schema
from pipeline.tables.values import as_plain, canonical


def check(table: pd.DataFrame, schema: Schema, where: str) -> pd.DataFrame:
    """Return the features of `table`: numeric columns as float64, datetime columns in UTC, categorical ones as text.

    Raises `UserError` naming `where`, the row (counted from 1, without the header) and the column of the first value
    that does not fit.
    """
    names = [column.name for column in schema.features]
    absent = [name for name in names if name not in table.columns]
    if absent:
        more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
        raise UserError(f"{where} lacks the column {absent[0]!r}{more}{nearest(absent[0], table.columns)}")
    raw = table[names].reset_index(drop=True)
    parsed = {column.name: _parsed(raw[column.name], column, where) for column in schema.features}
    features = pd.DataFrame(parsed, index=raw.index)
    numeric = [column.name for column in schema.of_kind("numeric")]
    numbers = features[numeric].to_numpy(np.float64)
    for row, place in np.argwhere(np.isinf(numbers))[:1]:
        raise UserError(f"{where}, row {row + 1}: {numeric[place]!r} must be finite, got {numbers[row, place]}")
    return features


def _parsed(values: pd.Series, column: Column, where: str) -> pd.Series:
    if column.kind == "categorical":
        return canonical(values)
    plain, _ = as_plain(values)
    is_time = dtypes.is_datetime64_any_dtype(plain.dtype)
    if column.kind == "datetime":
        rule = f"a date or time as {column.format or 'ISO8601'}"
        text = plain if is_time else canonical(plain)
        parsed: pd.Series = pd.to_datetime(text, errors="coerce", utc=True, format=column.format or "ISO8601")
    else:
        rule = "a number"
        plain = plain.mask(plain.isin(list(column.missing_texts))) if column.missing_texts else plain
        parsed = pd.Series(np.nan, plain.index) if is_time else pd.to_numeric(plain, errors="coerce").astype("float64")
    bad = parsed.isna() & plain.notna()
    if bad.any() or (is_time and column.kind == "numeric"):
        row = int(np.argmax(bad.to_numpy()))
        value = str(values.iloc[row])[:80]
        raise UserError(f"{where}, row {row + 1}: {column.name!r} must be {rule}, got {value!r}")
    return parsed


def unseen(table: pd.DataFrame, schema: Schema) -> dict[str, pd.Series]:
    """Count the values of each categorical column of a checked `table` that training never saw."""
    found = {}
    for column in schema.of_kind("categorical"):
        values = table[column.name].dropna()
        counts = values[~values.isin(list(column.categories))].value_counts()
        if len(counts):
            found[column.name] = counts
    return found


def nearest(name: str, known: Iterable[object]) -> str:
    """Suggest the names in `known` that resemble `name`, or list the first of them."""
    names = [str(column) for column in known]
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
    if near:
        return f"; did you mean {' or '.join(map(repr, near))}?"
    return f"; it has {', '.join(map(repr, names[:8]))}"
