"""Turn a checked table into tensors, with a preprocessor fitted on the training rows only."""

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save
from torch import Tensor

from pipeline.core import files
from pipeline.core.errors import UserError
from pipeline.tables.schema import Part, Schema

Scaling = Literal["standard", "quantile", "robust"]

LIMIT = 1e6  # scaled values are clipped here, so that no finite input overflows float32 in the network
LARGEST = 1e100  # raw numbers are clipped here: the square is still a float64
MISSING, UNSEEN, FIRST = 0, 1, 2  # category codes; FIRST is the code of the most frequent category
CHUNK = 65_536  # rows scaled at a time, to keep scikit-learn's copies small

# The fitted attributes of each scikit-learn scaler, [d] or [quantiles, d], which are enough to rebuild it.
_FITTED: dict[Scaling, tuple[str, ...]] = {
    "standard": ("mean_", "scale_"),
    "robust": ("center_", "scale_"),
    "quantile": ("quantiles_", "references_"),
}


@dataclass(frozen=True)
class Preprocessor:
    """A fitted scaler as plain tensors, without pickle."""

    scaling: Scaling
    numbers: dict[str, Tensor]

    def transform(self, table: pd.DataFrame, schema: Schema) -> tuple[Tensor, Tensor]:
        """Turn a table from `validation.check` into x_num [n, d_num] float32 and x_cat [n, d_cat] codes.

        x_num holds scaled numbers, zero where missing, then an indicator per column with missing values in training,
        then the flags of numeric columns.
        """
        raw = numeric_features(table, schema)
        scaler = _new_scaler(self.scaling, n_rows=1)
        for name, tensor in self.numbers.items():
            setattr(scaler, name, tensor.numpy())
        if "references_" in self.numbers:
            scaler.n_quantiles_ = len(scaler.references_)
        x_num = np.empty((len(raw), schema.d_num), np.float32)
        for start in range(0, len(raw), CHUNK):
            rows = slice(start, start + CHUNK)
            scaled = scaler.transform(raw[rows]) if raw.shape[1] else raw[rows]
            x_num[rows, : raw.shape[1]] = np.nan_to_num(np.clip(scaled, -LIMIT, LIMIT), nan=0.0)
        n, n_flags = raw.shape[1], len(schema.flags)
        x_num[:, n : schema.d_num - n_flags] = table[schema.with_indicator].isna().to_numpy(np.float32)
        x_num[:, schema.d_num - n_flags :] = table[schema.flags].to_numpy(np.float32)
        return torch.from_numpy(x_num), torch.from_numpy(category_codes(table, schema))


def fit(table: pd.DataFrame, schema: Schema, scaling: Scaling) -> Preprocessor:
    """Fit a preprocessor on checked training rows."""
    raw = numeric_features(table, schema)
    if raw.shape[1] == 0:
        return Preprocessor(scaling, {})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # for a column without values, whose scale becomes 1
        scaler = _new_scaler(scaling, len(raw)).fit(raw)
    fitted = {}
    for name in _FITTED[scaling]:
        values = np.nan_to_num(np.asarray(getattr(scaler, name), np.float64), nan=float(name == "scale_"))
        fitted[name] = torch.from_numpy(np.ascontiguousarray(values))
    return Preprocessor(scaling, fitted)


def _new_scaler(scaling: Scaling, n_rows: int) -> Any:
    from sklearn.preprocessing import QuantileTransformer, RobustScaler, StandardScaler

    if scaling == "quantile":
        return QuantileTransformer(n_quantiles=min(1000, n_rows), output_distribution="normal", subsample=None)
    return StandardScaler() if scaling == "standard" else RobustScaler()


def save_preprocessor(path: Path, preprocessor: Preprocessor) -> None:
    files.write_bytes(path, save(preprocessor.numbers, {"preprocessor": json.dumps(preprocessor.scaling)}))


def load_preprocessor(path: Path, schema: Schema) -> Preprocessor:
    """Read a preprocessor; raises `UserError` if the file does not hold one for the columns of `schema`."""
    with path.open("rb") as file:
        metadata = files.tensors_header(path, file.read(8 + files.MAX_HEADER)).get("__metadata__")
    scaling = str(metadata.get("preprocessor")).strip('"') if isinstance(metadata, dict) else None
    return checked(path, scaling, files.read_tensors(path), schema)


def checked(path: Path, scaling: Any, numbers: dict[str, Tensor], schema: Schema) -> Preprocessor:
    """Build a preprocessor from a file's content; raises `UserError` unless names, shapes and types fit the schema."""
    if scaling not in _FITTED:
        raise UserError(f"{path} holds no preprocessor: its scaling is {str(scaling)[:40]!r}")
    d = schema.n_scaled
    references = numbers.get("references_")
    n_quantiles = len(references) if references is not None and references.dim() else 0
    shapes = {"quantiles_": (n_quantiles, d), "references_": (n_quantiles,)}
    expected = {name: shapes.get(name, (d,)) for name in _FITTED[scaling]} if d else {}
    typed = all(tensor.dtype == torch.float64 and tensor.isfinite().all() for tensor in numbers.values())
    if {name: tuple(tensor.shape) for name, tensor in numbers.items()} != expected or not typed:
        raise UserError(f"{path} holds no preprocessor for the columns of its schema")
    return Preprocessor(scaling, numbers)


def numeric_features(table: pd.DataFrame, schema: Schema) -> np.ndarray:
    """Return numeric columns, and dates and times encoded as numbers, [n, d] float64 with NaN for missing values."""
    columns = [table[column.name].to_numpy(np.float64) for column in schema.of_kind("numeric")]
    for column in schema.of_kind("datetime"):
        columns += [feature for part in column.parts for feature in _moment_features(table[column.name], part)]
    return np.clip(np.column_stack(columns), -LARGEST, LARGEST) if columns else np.empty((len(table), 0))


def _moment_features(moments: pd.Series, part: Part) -> list[np.ndarray]:
    """Encode moments as the numbers in `schema.PART_FEATURES`: days or hours, and sines and cosines of their cycles."""
    days = (moments - pd.Timestamp("1970-01-01", tz="UTC")).dt.total_seconds().to_numpy(np.float64) / 86_400

    def cycle(length: float) -> list[np.ndarray]:
        angle = 2 * np.pi * (days / length % 1)
        return [np.sin(angle), np.cos(angle)]

    if part == "date":
        return [np.floor(days), *cycle(365.2425), *cycle(7)]
    return [days % 1 * 24, *cycle(1)]


def category_codes(table: pd.DataFrame, schema: Schema) -> np.ndarray:
    """Return codes [n, d]: MISSING, UNSEEN, then the categories; uint8 if that holds them, else int16."""
    dtype = np.uint8 if max(schema.cardinalities, default=0) <= 256 else np.int16
    codes = np.empty((len(table), len(schema.cardinalities)), dtype)
    for place, column in enumerate(schema.of_kind("categorical")):
        values = table[column.name]
        found = pd.Index(list(column.categories), dtype="str").get_indexer(pd.Index(values)) + FIRST
        found[found < FIRST] = UNSEEN
        codes[:, place] = np.where(values.isna(), MISSING, found)
    return codes
