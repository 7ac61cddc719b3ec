"""Turn a validated table into tensors, with a scaler fitted on training rows."""

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
from pipeline.tables.schema import PART_FEATURES, Part, Schema

Scaling = Literal["standard", "quantile", "robust"]

LIMIT = 1e6  # scaled values are clipped here, so that float32 cannot overflow in the network
LARGEST = 1e100  # raw numbers are clipped here, so that their squares fit into float64
MISSING, UNSEEN, FIRST = 0, 1, 2  # category codes; FIRST: the most frequent category
CHUNK = 65_536  # rows scaled at a time, as scikit-learn copies them

# Fitted arrays, [d] or [quantiles, d], that restore each scikit-learn scaler.
_FITTED: dict[Scaling, tuple[str, ...]] = {
    "standard": ("mean_", "scale_"),
    "robust": ("center_", "scale_"),
    "quantile": ("quantiles_", "references_"),
}


@dataclass(frozen=True)
class Preprocessor:
    """A fitted scaler as plain arrays, without code or pickle."""

    scaling: Scaling
    numbers: dict[str, Tensor]

    def transform(self, table: pd.DataFrame, schema: Schema) -> tuple[Tensor, Tensor]:
        """Turn a table from `validation.check` into x_num [n, d_num] float32 and x_cat [n, d_cat] codes.

        x_num holds the scaled numbers, zero where missing, and then an indicator for each column that had missing
        values in training.
        """
        raw = numeric_features(table, schema)
        scaler = self._scaler()
        missing = indicators(table, schema)
        x_num = np.empty((len(raw), raw.shape[1] + missing.shape[1]), np.float32)
        for start in range(0, len(raw), CHUNK):
            rows = slice(start, start + CHUNK)
            scaled = scaler.transform(raw[rows]) if raw.shape[1] else raw[rows]
            x_num[rows, : raw.shape[1]] = np.nan_to_num(np.clip(scaled, -LIMIT, LIMIT), nan=0.0)
        x_num[:, raw.shape[1] :] = missing
        return torch.from_numpy(x_num), torch.from_numpy(category_codes(table, schema))

    def _scaler(self) -> Any:
        scaler = _new_scaler(self.scaling, n_rows=1)
        if not self.numbers:
            return scaler
        for name, tensor in self.numbers.items():
            setattr(scaler, name, tensor.numpy())
        if self.scaling == "quantile":
            scaler.n_quantiles_ = len(scaler.references_)
        return scaler


def fit(table: pd.DataFrame, schema: Schema, scaling: Scaling) -> Preprocessor:
    """Fit on validated training rows."""
    raw = numeric_features(table, schema)
    if raw.shape[1] == 0:
        return Preprocessor(scaling, {})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a column without values gets scale 1
        scaler = _new_scaler(scaling, len(raw)).fit(raw)
    fitted = {
        name: np.nan_to_num(np.asarray(getattr(scaler, name), np.float64), nan=float(name == "scale_"))
        for name in _FITTED[scaling]
    }
    return Preprocessor(
        scaling, {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in fitted.items()}
    )


def _new_scaler(scaling: Scaling, n_rows: int) -> Any:
    from sklearn.preprocessing import QuantileTransformer, RobustScaler, StandardScaler

    match scaling:
        case "standard":
            return StandardScaler()
        case "robust":
            return RobustScaler()
        case "quantile":
            quantiles = min(1000, n_rows)
            return QuantileTransformer(n_quantiles=quantiles, output_distribution="normal", subsample=None)


def save_preprocessor(path: Path, preprocessor: Preprocessor) -> None:
    files.write_bytes(path, save(preprocessor.numbers, {"preprocessor": json.dumps(preprocessor.scaling)}))


def load_preprocessor(path: Path, schema: Schema) -> Preprocessor:
    """Read a preprocessor; raises `UserError` if it does not match `schema`."""
    with path.open("rb") as file:
        said = files.tensors_header(path, file.read(8 + files.MAX_HEADER)).get("__metadata__")
    scaling = str(said.get("preprocessor")).strip('"') if isinstance(said, dict) else None
    return checked(path, scaling, files.read_tensors(path), schema)


def checked(path: Path, scaling: Any, numbers: dict[str, Tensor], schema: Schema) -> Preprocessor:
    """Build a preprocessor from untrusted arrays; raises `UserError` if they do not match `schema`."""
    if scaling not in _FITTED:
        raise UserError(f"{path} is not a preprocessor: its scaling is {str(scaling)[:40]!r}")
    d = n_numeric(schema)
    n_quantiles = len(numbers["references_"]) if "references_" in numbers and numbers["references_"].dim() else 0
    shapes = {"quantiles_": (n_quantiles, d), "references_": (n_quantiles,)}
    expected = {name: shapes.get(name, (d,)) for name in _FITTED[scaling]} if d else {}
    found = {name: tuple(tensor.shape) for name, tensor in numbers.items()}
    if found != expected or any(
        tensor.dtype != torch.float64 or not tensor.isfinite().all() for tensor in numbers.values()
    ):
        raise UserError(f"{path} is not a preprocessor for the columns of its schema")
    return Preprocessor(scaling, numbers)


def n_numeric(schema: Schema) -> int:
    """Number of scaled columns."""
    parts = (part for column in schema.of_kind("datetime") for part in column.parts)
    return len(schema.of_kind("numeric")) + sum(len(PART_FEATURES[part]) for part in parts)


def numeric_features(table: pd.DataFrame, schema: Schema) -> np.ndarray:
    """Unscaled features [n, d] float64: numbers, then features of dates and times; NaN for missing."""
    columns = [table[column.name].to_numpy(np.float64) for column in schema.of_kind("numeric")]
    for column in schema.of_kind("datetime"):
        columns += [feature for part in column.parts for feature in _moment_features(table[column.name], part)]
    return np.clip(np.column_stack(columns), -LARGEST, LARGEST) if columns else np.empty((len(table), 0))


def _moment_features(moments: pd.Series, part: Part) -> list[np.ndarray]:
    """The features in `PART_FEATURES`: time as a number, and sine and cosine of its position in year, week or day."""
    days = (moments - pd.Timestamp("1970-01-01", tz="UTC")).dt.total_seconds().to_numpy(np.float64) / 86_400

    def circle(length: float) -> list[np.ndarray]:
        angle = 2 * np.pi * (days / length % 1)
        return [np.sin(angle), np.cos(angle)]

    if part == "date":
        return [np.floor(days), *circle(365.2425), *circle(7)]
    return [days % 1 * 24, *circle(1)]


def indicators(table: pd.DataFrame, schema: Schema) -> np.ndarray:
    """Missing indicators [n, d] for the numbers and dates with missing values in training."""
    known = [c.name for kind in ("numeric", "datetime") for c in schema.of_kind(kind) if c.missing]
    return table[known].isna().to_numpy(np.float32)


def category_codes(table: pd.DataFrame, schema: Schema) -> np.ndarray:
    """Category codes [n, d], uint8 if it suffices, else int16."""
    dtype = np.uint8 if max(schema.cardinalities, default=0) <= 256 else np.int16
    codes = np.empty((len(table), len(schema.cardinalities)), dtype)
    for place, column in enumerate(schema.of_kind("categorical")):
        values = table[column.name]
        found = pd.Index(list(column.categories), dtype="str").get_indexer(pd.Index(values)) + FIRST
        found[found < FIRST] = UNSEEN
        codes[:, place] = np.where(values.isna(), MISSING, found)
    return codes
