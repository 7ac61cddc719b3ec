"""Split rows into training, validation and test."""

import numpy as np
import pandas as pd

from pipeline.core.errors import UserError
from pipeline.core.settings import Split
from pipeline.tables.prepared import SPLITS
from pipeline.tables.values import canonical


def split_rows(
    n_rows: int, column: pd.Series | None, codes: np.ndarray | None, split: Split, seed: int
) -> dict[str, np.ndarray]:
    """Return the positions of the train, val and test rows, in ascending order.

    `column` [n] are the values that `split.by` names, if any; `codes` [n] are class codes that stratify a random split, or None. A class of at least three rows has a row in each
    split; a rarer one goes to training first. Raises `UserError` if a split would be empty.
    """
    how, _, _ = split.by.partition(":")
    rng = np.random.default_rng(seed)
    if how == "time" and column is not None:
        parts = _by_time(column, split)
    elif how == "group" and column is not None:
        parts = _by_group(column, split, rng)
    else:
        parts = _at_random(np.zeros(n_rows, np.int64) if codes is None else codes, split, rng)
    splits = {name: np.flatnonzero(parts == name) for name in SPLITS}
    for name, rows in splits.items():
        need = 2 if name == "train" else 1
        if len(rows) < need:
            raise UserError(f"data.split leaves {len(rows)} of {n_rows} rows for {name}, which needs {need}")
    return splits


def _at_random(codes: np.ndarray, split: Split, rng: np.random.Generator) -> np.ndarray:
    parts = np.full(len(codes), "train", dtype="<U5")
    for code in np.unique(codes):
        rows = rng.permutation(np.flatnonzero(codes == code))
        at_least = 1 if len(rows) >= 3 else 0
        # Training keeps a row of every class, and validation a row of each class of at least three.
        n_test = max(0, min(max(at_least, round(len(rows) * split.test)), len(rows) - 1 - at_least))
        n_val = min(max(at_least, round(len(rows) * split.val)), len(rows) - 1 - n_test)
        parts[rows[:n_test]] = "test"
        parts[rows[n_test : n_test + n_val]] = "val"
    return parts


def _by_time(moments: pd.Series, split: Split) -> np.ndarray:
    """Train on the past and test on the future; rows of one moment stay together."""
    if moments.isna().any():
        raise UserError(f"data.split.by: {str(moments.name)!r} is missing in {int(moments.isna().sum())} rows")
    if not pd.api.types.is_numeric_dtype(moments.dtype) and not pd.api.types.is_datetime64_any_dtype(moments.dtype):
        raise UserError(f"data.split.by: {str(moments.name)!r} must hold times or numbers; see data.formats")
    # A row's place is the share of rows before its moment.
    place = moments.rank(method="min", pct=False).sub(1).div(len(moments)).to_numpy()
    return np.select([place < split.train, place < split.train + split.val], ["train", "val"], "test")


def _by_group(groups: pd.Series, split: Split, rng: np.random.Generator) -> np.ndarray:
    """Assign whole groups to splits by their share of the rows; rows without a group are one group."""
    codes, names = pd.factorize(canonical(groups), sort=True, use_na_sentinel=False)
    if len(names) < len(SPLITS):
        raise UserError(f"data.split.by: {str(groups.name)!r} must have at least 3 groups, got {len(names)}")
    sizes = np.bincount(codes)
    wanted = {name: getattr(split, name) * len(groups) for name in SPLITS}
    part = np.empty(len(names), dtype="<U5")
    order = rng.permutation(len(names))
    for left, group in zip(range(len(names), 0, -1), order[np.argsort(-sizes[order], kind="stable")], strict=True):
        # Largest group first, to the split that lacks the most rows; the last groups go to splits that are still empty.
        empty = [name for name in SPLITS if name not in part]
        name = max(empty if left <= len(empty) else SPLITS, key=lambda name: wanted[name])
        part[group] = name
        wanted[name] -= sizes[group]
    return part[codes]
