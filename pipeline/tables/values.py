"""Convert values to text, dates or numbers, independently of the type that the file stored them in."""

from typing import Any

import numpy as np
import pandas as pd
from pandas.api import types as dtypes


def canonical(values: pd.Series) -> pd.Series:
    """Convert values to text: 3, 3.0 and "3" become one category; missing values stay missing."""
    if dtypes.is_string_dtype(values.dtype) and not dtypes.is_object_dtype(values.dtype):
        return values
    if isinstance(values.dtype, pd.CategoricalDtype):
        names = canonical(pd.Series(values.cat.categories))
        # Via codes, since two categories, such as 1 and "1", may become one, which a renamed dtype cannot hold.
        return names.reindex(values.cat.codes).set_axis(values.index).astype("str")
    if dtypes.is_object_dtype(values.dtype):  # one by one, since True and 1 are the same key of a dictionary
        return values.map(canonical_value, na_action="ignore").astype("str").where(values.notna())
    unique = pd.unique(values.dropna())
    texts = {value: canonical_value(value) for value in unique}
    return values.map(texts).astype("str").where(values.notna())


def canonical_value(value: Any) -> str:
    match value:
        case bool() | np.bool_():
            return "true" if value else "false"
        case np.timedelta64():
            return str(pd.Timedelta(value))
        case np.datetime64():
            return str(pd.Timestamp(value))
        case float() | np.floating():
            return str(int(value)) if float(value).is_integer() else repr(float(value))
    return str(value)


def as_plain(values: pd.Series) -> tuple[pd.Series, str | None]:
    """Convert objects and rare types of Parquet to dates, numbers or text; also return the type that cannot be."""
    if isinstance(values.dtype, pd.CategoricalDtype):
        dtype: Any = values.cat.categories.dtype
        if dtypes.is_string_dtype(dtype):
            return values, None  # text of a raw table, which is kept as categories to save memory
        if values.isna().any() and (dtypes.is_integer_dtype(dtype) or dtypes.is_bool_dtype(dtype)):
            dtype = "float64" if dtypes.is_integer_dtype(dtype) else "boolean"
        values = values.astype(dtype)
    if dtypes.is_timedelta64_dtype(values.dtype):
        return values.dt.total_seconds(), None
    if not dtypes.is_object_dtype(values.dtype):
        return values, "complex" if dtypes.is_complex_dtype(values.dtype) else None
    kinds = {type(value).__name__ for value in values.dropna()}
    if kinds <= {"date", "datetime", "Timestamp"} and kinds:
        return pd.to_datetime(values), None
    if kinds <= {"Decimal", "int", "float"} and kinds:
        return pd.to_numeric(values), None
    nested = kinds & {"dict", "list", "ndarray", "tuple", "set", "bytes", "bytearray"}
    return values, ", ".join(sorted(nested)) or None
