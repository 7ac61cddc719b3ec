"""Prepare a raw table for training: domains, splits, schema, preprocessor, tensors."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from pipeline.core import files
from pipeline.core.errors import UserError, printable
from pipeline.core.settings import Data, Transfer
from pipeline.stages.prepare import inference
from pipeline.stages.prepare.splits import split_rows
from pipeline.tables import preprocessing, validation
from pipeline.tables.prepared import PREPARED, save_split
from pipeline.tables.preprocessing import Preprocessor
from pipeline.tables.schema import Schema, Target
from pipeline.tables.tensors import TabularData
from pipeline.tables.values import canonical, canonical_value

MAX_SHOWN = 30  # printed columns per kind


@dataclass(frozen=True)
class Domain:
    """Checked features and target of a whole raw table, and the row numbers of each split of a domain."""

    features: pd.DataFrame
    y: np.ndarray
    splits: dict[str, np.ndarray]


@dataclass(frozen=True)
class Prepared:
    """Schema, preprocessor and the domains source and, if there is one, transfer."""

    schema: Schema
    preprocessor: Preprocessor
    domains: dict[str, Domain]

    def save(self, folder: Path = PREPARED) -> None:
        for name, domain in self.domains.items():
            for split, rows in domain.splits.items():
                x_num, x_cat = self.preprocessor.transform(domain.features.iloc[rows], self.schema)
                data = TabularData(x_num, x_cat, torch.from_numpy(domain.y[rows]))
                save_split(folder / name, split, data, rows)
        preprocessing.save_preprocessor(folder / "preprocessor.safetensors", self.preprocessor)
        files.write_json(folder / "schema.json", self.schema.model_dump(mode="json"))


def prepare(table: pd.DataFrame, second: pd.DataFrame | None, data: Data, seed: int) -> Prepared:
    """Split the rows of each domain, then learn schema and preprocessor from the training rows of the source domain.

    `second` is the table of `data.transfer.source`, if set. Raises `UserError` if a table does not fit `data`.
    """
    inference.check_names(table, data)
    usable, counts = _usable(table, data)
    in_transfer, notes = _transfer_rows(table, data.transfer)
    source_rows = np.flatnonzero(usable & ~in_transfer)
    if not len(source_rows):
        raise UserError("data.transfer takes every row with a target: leave some for the source domain")
    target = inference.learn_target(table[data.target].iloc[source_rows], data.task)
    splits = _split(table, source_rows, target, data, seed)
    target = _of_training_rows(table, splits, target)

    transfer_table, transfer_target, transfer_splits = table, None, dict[str, np.ndarray]()
    if second is not None:
        if data.target not in second.columns:
            raise UserError(f"data.transfer.source has no column {data.target!r}, the target")
        transfer_table, in_transfer = second, np.ones(len(second), bool)
        usable, transfer_counts = _usable(second, data)
        counts |= {f"transfer_{name}": n for name, n in transfer_counts.items()}
    transfer_rows = np.flatnonzero(usable & in_transfer)
    if in_transfer.any() and not len(transfer_rows):
        raise UserError(f"data.transfer: the target {data.target!r} is missing in every row of the transfer domain")
    if len(transfer_rows):
        _, _, by = data.split.by.partition(":")
        if by and by not in transfer_table.columns:
            raise UserError(f"data.split.by: data.transfer.source lacks the column {by!r}")
        try:
            transfer_target = _transfer_target(transfer_table[data.target].iloc[transfer_rows], target)
            transfer_splits = _split(transfer_table, transfer_rows, transfer_target, data, seed)
        except UserError as error:
            raise UserError(f"in the transfer domain: {error}") from None

    for name, found in {"source": splits, "transfer": transfer_splits}.items():
        counts |= {f"{name}_{split}": len(rows) for split, rows in found.items()}
    columns = inference.learn_columns(table, splits["train"], data)
    schema = Schema(columns=columns, target=target, transfer_target=transfer_target, rows=counts, notes=tuple(notes))
    if not schema.features:
        reasons = "; ".join(f"{c.name!r} is {c.reason}" for c in columns[:5])
        raise UserError(f"no column is left to learn from: {reasons}")

    features = validation.check(table, schema, "data.source")
    preprocessor = preprocessing.fit(features.iloc[splits["train"]], schema, data.scaling)
    domains = {"source": Domain(features, target.encode(table[data.target]), splits)}
    if transfer_target is not None:
        if second is not None:
            features = validation.check(second, schema, "data.transfer.source")
        y = transfer_target.encode(transfer_table[data.target])
        domains["transfer"] = Domain(features, y, transfer_splits)
    return Prepared(schema, preprocessor, domains)


def _usable(table: pd.DataFrame, data: Data) -> tuple[np.ndarray, dict[str, int]]:
    """Return which rows to keep [n] bool, and counts of the rows read, without a target, and repeated."""
    missing = table[data.target].isna().to_numpy()
    # As text, since nested values of Parquet cannot be compared.
    plain = table.apply(lambda values: values.map(str, na_action="ignore") if values.dtype == object else values)
    repeated = plain.duplicated().to_numpy()
    counts = {"read": len(table), "target_missing": int(missing.sum()), "duplicates": int(repeated.sum())}
    return ~missing & ~(repeated & (data.duplicates == "drop")), counts


def _transfer_rows(table: pd.DataFrame, transfer: Transfer | None) -> tuple[np.ndarray, list[str]]:
    """Return which rows [n] bool belong to the transfer domain, and a note if the table has no column for it."""
    if transfer is None or transfer.column is None:
        return np.zeros(len(table), bool), []
    if transfer.column not in table.columns:
        note = f"data.transfer.column {transfer.column!r} is not a column of this table: there is no transfer domain"
        return np.zeros(len(table), bool), [note]
    found = canonical(table[transfer.column]).isin([canonical_value(value) for value in transfer.values]).to_numpy()
    if not found.any():
        raise UserError(f"data.transfer: no row has {transfer.column!r} in {list(transfer.values)}")
    return found, []


def _split(table: pd.DataFrame, rows: np.ndarray, target: Target, data: Data, seed: int) -> dict[str, np.ndarray]:
    domain = table.iloc[rows]
    codes = target.encode(domain[data.target]) if data.task != "regression" else None
    return {name: rows[places] for name, places in split_rows(domain, codes, data.split, seed).items()}


def _of_training_rows(table: pd.DataFrame, splits: dict[str, np.ndarray], target: Target) -> Target:
    """Learn mean and standard deviation from the training rows only, or check that they have every class."""
    values = table[target.name].iloc[splits["train"]]
    if target.task == "regression":
        return inference.learn_target(values, target.task)
    absent = np.setdiff1d(np.arange(len(target.classes)), target.encode(values))
    if len(absent):
        label = target.classes[absent[0]]
        n = int((canonical(table[target.name]) == canonical_value(label)).sum())
        raise UserError(f"data.split: class {label!r} ({n} rows) is missing from training: split by random or drop it")
    return target


def _transfer_target(values: pd.Series, target: Target) -> Target:
    """Return the target of the source domain if it has the classes of these values; otherwise one with their classes."""
    if target.task == "regression":
        inference.learn_target(values, target.task)  # raises if they are not numbers
        return target
    return target if (target.encode(values) >= 0).all() else inference.learn_target(values, target.task)


def describe(learned: Schema) -> str:
    """Summarise a schema for the terminal."""
    kinds = {kind: learned.of_kind(kind) for kind in ("numeric", "categorical", "datetime", "drop")}
    lines = [f"rows: {', '.join(f'{name} {n:,}' for name, n in learned.rows.items())}"]
    lines += [f"note: {note}" for note in learned.notes]
    for kind, columns in kinds.items():
        shown = [f"{c.name} ({c.reason})" if kind == "drop" else c.name for c in columns[:MAX_SHOWN]]
        more = f" and {len(columns) - MAX_SHOWN} more" if len(columns) > MAX_SHOWN else ""
        if columns:
            lines.append(f"{'dropped' if kind == 'drop' else kind}: {', '.join(shown)}{more}")
    of = "mean {0.mean:g}, standard deviation {0.std:g}" if learned.target.task == "regression" else "{0.classes}"
    lines.append(f"target: {learned.target.name}, {of.format(learned.target)}")
    lines.append("the reason for each kind is in data/prepared/schema.json; data.kinds overrides it")
    return "\n".join(map(printable, lines))
