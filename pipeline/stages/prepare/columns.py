"""Learn from the training rows which columns vary, their categories and missing values."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from pandas.api import types as dtypes

from pipeline.core.settings import Data
from pipeline.stages.prepare.texts import Found
from pipeline.tables import moments, numbers, reading
from pipeline.tables.schema import Column, Kind
from pipeline.tables.values import as_plain, canonical, canonical_value


def learn_columns(table: pd.DataFrame, found: Mapping[str, Found], train: np.ndarray, data: Data) -> tuple[Column, ...]:
    """Learn from the rows `train` which columns vary, their categories and missing values."""
    return tuple(
        _learn_column(table[name], found[str(name)], train, data) for name in table.columns if name != data.target
    )


def _learn_column(whole: pd.Series, found: Found, train: np.ndarray, data: Data) -> Column:
    name = str(whole.name)

    def column(kind: Kind, reason: str, **rest: Any) -> Column:
        words = dict(found.words or {})
        return Column(name=name, kind=kind, reason=reason, reading=found.reading, words=words, **rest)

    if found.kind == "drop":
        return column("drop", found.reason)
    if data.split.by == f"group:{name}":
        return column("drop", "the group of the split: new rows have other groups")
    cells = reading.read(whole, found.reading)
    values = cells.values.iloc[train]
    present, missing = values.dropna(), int(values.isna().sum())
    if name not in data.kinds and name not in data.formats:
        if present.empty and not any(flags[train].any() for flags in cells.flags.values()):
            return column("drop", "missing in every training row", missing=missing)
        if present.nunique() == 1 and not missing and not cells.flags:
            return column(
                "drop", f"constant in the training rows: {canonical_value(present.iloc[0])[:40]}", missing=missing
            )
    rest: dict[str, Any] = {"missing": missing, "examples": _examples(whole.iloc[train], values, found)}
    if found.kind == "categorical":
        rest["categories"] = _categories(values, data)
    if found.kind == "datetime":
        has_date, has_time = moments.holds(found.reading.format)
        plain, _ = as_plain(whole)
        moment = (plain if dtypes.is_datetime64_any_dtype(plain.dtype) else cells.values).dropna()
        midnight = not has_time or bool((moment.dt.normalize() == moment).all())
        rest["parts"] = ("date",) * has_date + ("time",) * (not midnight or not has_date)
    return column(found.kind, found.reason, **rest)


def _categories(values: pd.Series, data: Data) -> tuple[str, ...]:
    counts = canonical(values.dropna()).value_counts(sort=False)
    ordered = sorted(((-int(times), str(value)) for value, times in counts.items() if times >= data.min_count))
    return tuple(value for _, value in ordered[: data.max_categories])


def _examples(cells: pd.Series, values: pd.Series, found: Found) -> tuple[tuple[str, str], ...]:
    """Show two cells, and what they were read as where that is not the text itself."""
    rows = np.flatnonzero(values.notna().to_numpy())
    shown: dict[str, str] = {}
    for row in rows[:: max(1, len(rows) // 50)][:50]:
        before = canonical_value(cells.iloc[row])[:40]
        after = values.iloc[row]
        text = canonical_value(after)
        if found.reading.type == "number" and numbers.matches(pa.array([before]), numbers.PLAIN)[0]:
            text = before
        if isinstance(after, pd.Timestamp):
            text = after.strftime("%Y-%m-%d %H:%M:%S" if moments.holds(found.reading.format)[0] else "%H:%M:%S")
        shown[before] = text[:40]
    different = {before: after for before, after in shown.items() if before.lower() != after}
    if found.reading.type == "moment":
        different = {before: after.removesuffix(" 00:00:00") for before, after in shown.items()}
    return tuple((different or shown).items())[:2]
