"""Learn from the training rows which columns vary, their categories and missing values."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from pandas.api import types as dtypes

from pipeline.core.settings import Data
from pipeline.stages.prepare.texts import Found, in_yaml
from pipeline.tables import moments, numbers, reading
from pipeline.tables.reading import Cells
from pipeline.tables.schema import Column, Kind
from pipeline.tables.validation import features_of, raise_first
from pipeline.tables.values import as_plain, canonical, canonical_value


def learn_columns(
    table: pd.DataFrame, found: Mapping[str, Found], train: np.ndarray, data: Data
) -> tuple[tuple[Column, ...], pd.DataFrame]:
    """Learn from the rows `train` of a table about its columns; also return its features, as `validation.check` does.

    A feature is removed from `table` once it is read, since text takes much more memory than numbers.
    """
    columns: list[Column] = []
    features: dict[str, pd.Series] = {}
    for name in [str(name) for name in table.columns if name != data.target]:
        cells = Cells(table[name], np.zeros(0, bool))
        if found[name].kind != "drop" and data.split.by != f"group:{name}":
            cells = reading.read(table[name], found[name].reading)
            raise_first(cells.wrong, table[name], found[name].reading.rule(), "data.source")
        columns.append(_learn_column(table[name], cells, found[name], train, data))
        if columns[-1].kind != "drop":
            features |= features_of(table.pop(name), cells, columns[-1], "data.source")
    return tuple(columns), pd.DataFrame(features, index=table.index)


def stand_ins(features: pd.DataFrame, columns: Sequence[Column]) -> list[str]:
    """Name the numbers that may stand for a missing value: nines, such as -999, far from every other number."""
    said = []
    for column in columns:
        if column.kind != "numeric":
            continue
        values = features[column.name].dropna().to_numpy()
        for number in (values.min(), values.max()) if len(values) else ():
            if not re.fullmatch("-?9{2,}", f"{number:.15g}"):
                continue
            others = values[values != number]
            n = len(values) - len(others)
            if n > 1 and len(others) and np.abs(others - number).min() > np.ptp(others):
                said.append(
                    f"{column.name}: {number:g} in {n:,} rows, far from every other number; if it means missing,"
                    f" set data.missing: {{{in_yaml(column.name)}: ['{number:g}']}}"
                )
    return said


def _learn_column(whole: pd.Series, cells: Cells, found: Found, train: np.ndarray, data: Data) -> Column:
    name = str(whole.name)

    def column(kind: Kind, reason: str, **rest: Any) -> Column:
        words = dict(found.words or {})
        return Column(name=name, kind=kind, reason=reason, reading=found.reading, words=words, **rest)

    if found.kind == "drop":
        return column("drop", found.reason)
    if data.split.by == f"group:{name}":
        return column("drop", "the group of the split: new rows have other groups")
    values = cells.values.iloc[train]
    present, missing = values.dropna(), int(values.isna().sum())
    if name not in data.kinds and name not in data.formats:
        if present.empty and not any(flags[train].any() for flags in cells.flags.values()):
            return column("drop", "missing in every training row", missing=missing)
        if not missing and not cells.flags and bool((present == present.iloc[0]).all()):
            return column(
                "drop", f"constant in the training rows: {canonical_value(present.iloc[0])[:40]}", missing=missing
            )
    rest: dict[str, Any] = {"missing": missing, "examples": _examples(whole, cells.values, train, found)}
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


def _examples(cells: pd.Series, values: pd.Series, train: np.ndarray, found: Found) -> tuple[tuple[str, str], ...]:
    """Show two cells, and what they were read as where that is not the text itself."""
    rows = train[values.notna().to_numpy()[train]]
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
