"""Check a table against a schema, for training and for prediction alike."""

import difflib
from collections.abc import Iterable

import numpy as np
import pandas as pd

from pipeline.core.errors import UserError
from pipeline.tables.reading import Cells, known, read
from pipeline.tables.schema import Column, Schema
from pipeline.tables.values import canonical


def check(table: pd.DataFrame, schema: Schema, where: str) -> pd.DataFrame:
    """Return the features of `table`: numbers as float64 and their flags, dates in UTC, categories as text.

    Raises `UserError` naming `where`, the row (counted from 1, without the header) and the column of the first value
    that does not fit.
    """
    names = [column.name for column in schema.features]
    absent = [name for name in names if name not in table.columns]
    if absent:
        more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
        raise UserError(f"{where} lacks the column {absent[0]!r}{more}{nearest(absent[0], table.columns)}")
    features: dict[str, pd.Series] = {}
    for column in schema.features:
        values = table[column.name].reset_index(drop=True)
        features |= features_of(values, read(values, column.reading), column, where)
    return pd.DataFrame(features, index=pd.RangeIndex(len(table)))


def features_of(values: pd.Series, cells: Cells, column: Column, where: str) -> dict[str, pd.Series]:
    """Return what `check` returns for one column: its values, and flags by their names. `cells` are the `values` read."""
    raise_first(cells.wrong, values, column.reading.rule(), where)
    match column.kind:
        case "categorical":
            return {column.name: known(canonical(cells.values), column.categories, values)}
        case "numeric":
            raise_first(np.isinf(cells.values.to_numpy()), values, "finite", where)
            flags = zip(column.flags, column.reading.flags, strict=True)
            return {column.name: cells.values} | {name: pd.Series(cells.flags[flag]) for name, flag in flags}
    return {column.name: cells.values}


def raise_first(wrong: np.ndarray, values: pd.Series, rule: str, where: str) -> None:
    """Raise `UserError` for the first of the values that are wrong [n], a mask, because of a rule."""
    if wrong.any():
        row = int(np.argmax(wrong))
        value = str(values.iloc[row])[:80]
        raise UserError(f"{where}, row {row + 1}: {str(values.name)!r} must be {rule}, got {value!r}")


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
