"""Prepare a raw table for training: domains, splits, schema, preprocessor, tensors."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from pipeline.core import files
from pipeline.core.errors import UserError, printable
from pipeline.core.settings import Data, Transfer
from pipeline.stages.prepare import inference
from pipeline.stages.prepare.columns import learn_columns, stand_ins
from pipeline.stages.prepare.splits import split_rows
from pipeline.stages.prepare.targets import learn_target
from pipeline.stages.prepare.texts import Found
from pipeline.tables import numbers, preprocessing, reading, validation
from pipeline.tables.prepared import PREPARED, save_split
from pipeline.tables.preprocessing import Preprocessor
from pipeline.tables.raw import ends_in_total
from pipeline.tables.schema import Column, Kind, Schema, Target
from pipeline.tables.tensors import TabularData
from pipeline.tables.values import canonical, canonical_value

MAX_LINES, MAX_NOTES, MAX_WIDTH = 40, 10, 240  # of what is printed
KINDS: tuple[Kind, ...] = ("numeric", "categorical", "datetime", "drop")


@dataclass(frozen=True)
class Domain:
    """Checked features and target of a whole raw table, and the row numbers of each split of a domain.

    `others` are the columns that are no features, the target among them, as the table holds them.
    """

    features: pd.DataFrame
    others: pd.DataFrame
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
    n_read = len(table)
    table, second, totals = _without_totals(table, second)
    table = table.reset_index(drop=True)  # a copy that shares its cells: columns are removed from it below
    found = inference.infer(table, data)
    usable, counts = _usable(table, found[data.target], data)
    in_transfer, notes = _transfer_rows(table, data.transfer)
    source_rows = np.flatnonzero(usable & ~in_transfer)
    if not len(source_rows):
        raise UserError("data.transfer takes every row with a target: leave some for the source domain")
    target = learn_target(table[data.target].iloc[source_rows], found[data.target], data.task)
    splits = _split(table, found, source_rows, target, data, seed)
    target = _of_training_rows(table, splits, found[data.target], target)

    transfer_table, transfer_target, transfer_splits = table, None, dict[str, np.ndarray]()
    if second is not None:
        if data.target not in second.columns:
            raise UserError(f"data.transfer.source has no column {data.target!r}, the target")
        transfer_table, in_transfer = second, np.ones(len(second), bool)
        usable, transfer_counts = _usable(second, found[data.target], data)
        counts |= {f"transfer_{name}": n for name, n in transfer_counts.items()}
    transfer_rows = np.flatnonzero(usable & in_transfer)
    if in_transfer.any() and not len(transfer_rows):
        raise UserError(f"data.transfer: the target {data.target!r} is missing in every row of the transfer domain")
    if len(transfer_rows):
        _, _, by = data.split.by.partition(":")
        if by and by not in transfer_table.columns:
            raise UserError(f"data.split.by: data.transfer.source lacks the column {by!r}")
        try:
            transfer_target = _transfer_target(transfer_table[data.target].iloc[transfer_rows], target, found, data)
            transfer_splits = _split(transfer_table, found, transfer_rows, transfer_target, data, seed)
        except UserError as error:
            raise UserError(f"in the transfer domain: {error}") from None

    for name, parts in {"source": splits, "transfer": transfer_splits}.items():
        counts |= {f"{name}_{split}": len(rows) for split, rows in parts.items()}
    notes += inference.notes(table, found, target)
    columns, features = learn_columns(table, found, splits["train"], data)
    notes += [*stand_ins(features, columns), *totals]
    counts |= {"read": n_read} | ({"totals": len(totals)} if totals else {})
    _check_flags(columns)
    schema = Schema(columns=columns, target=target, transfer_target=transfer_target, rows=counts, notes=tuple(notes))
    if not schema.features:
        reasons = "; ".join(f"{c.name!r}: {c.reason}" for c in columns[:5])
        raise UserError(f"no column is left to learn from: {reasons or 'the table holds only the target'}")

    preprocessor = preprocessing.fit(features.iloc[splits["train"]], schema, data.scaling)
    domains = {"source": Domain(features, table, target.encode(table[data.target]), splits)}
    if transfer_target is not None:
        if second is not None:
            features = validation.check(second, schema, "data.transfer.source")
        y = transfer_target.encode(transfer_table[data.target])
        domains["transfer"] = Domain(features, transfer_table, y, transfer_splits)
    return Prepared(schema, preprocessor, domains)


def _without_totals(
    table: pd.DataFrame, second: pd.DataFrame | None
) -> tuple[pd.DataFrame, pd.DataFrame | None, list[str]]:
    """Leave out the last row of each table if it is a total, with a note."""
    notes = []
    if ends_in_total(table):
        notes.append(f"the last row, {len(table):,}, is left out as a total")
        table = table.iloc[:-1]
    if second is not None and ends_in_total(second):
        notes.append(f"the last row of data.transfer.source, {len(second):,}, is left out as a total")
        second = second.iloc[:-1]
    return table, second, notes


def _check_flags(columns: tuple[Column, ...]) -> None:
    names = [column.name for column in columns] + [flag for column in columns for flag in column.flags]
    for name, times in Counter(names).items():
        if times > 1:
            raise UserError(f"the column {name!r} has the name of an indicator: rename it")


def _usable(table: pd.DataFrame, found: Found, data: Data) -> tuple[np.ndarray, dict[str, int]]:
    """Return which rows to keep [n] bool, and counts of the rows read, without a target, and repeated."""
    cells = reading.read(table[data.target], found.reading)
    missing = cells.values.isna().to_numpy() & ~cells.wrong
    repeated = _repeated(table)
    counts = {"read": len(table), "target_missing": int(missing.sum()), "duplicates": int(repeated.sum())}
    keep = ~missing & ~(repeated & (data.duplicates == "drop"))
    return keep, counts


def _repeated(table: pd.DataFrame) -> np.ndarray:
    """Return which rows [n] of a table are those of an earlier row."""
    # As text, since nested values of Parquet cannot be compared.
    nested = {name: table[name].map(str, na_action="ignore") for name in table.columns if table[name].dtype == object}
    plain = table.assign(**nested)
    # Rows that differ in some columns need not be compared in all. Text that hardly repeats takes the most time.
    texts = [name for name in plain.columns if isinstance(plain[name].dtype, pd.StringDtype)]
    others = plain.drop(columns=texts)
    rows = np.arange(len(table))
    if len(others.columns):
        rows = rows[pd.util.hash_pandas_object(others, index=False).duplicated(keep=False).to_numpy()]
    for name in texts:
        cells = plain[name].iloc[rows]
        as_numbers = numbers.plain_numbers(cells)  # equal texts are equal numbers, which take less time to compare
        cells = cells if as_numbers is None else pd.Series(as_numbers)
        rows = rows[cells.duplicated(keep=False).to_numpy()]
    repeated = np.zeros(len(table), bool)
    repeated[rows] = plain.iloc[rows].duplicated()
    return repeated


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


def _split(
    table: pd.DataFrame, found: dict[str, Found], rows: np.ndarray, target: Target, data: Data, seed: int
) -> dict[str, np.ndarray]:
    codes = target.encode(table[data.target].iloc[rows]) if data.task != "regression" else None
    _, _, by = data.split.by.partition(":")
    column = reading.read(table[by].iloc[rows], found[by].reading).values if by else None
    return {name: rows[places] for name, places in split_rows(len(rows), column, codes, data.split, seed).items()}


def _of_training_rows(table: pd.DataFrame, splits: dict[str, np.ndarray], found: Found, target: Target) -> Target:
    """Learn mean and standard deviation from the training rows only, or check that they have every class."""
    values = table[target.name].iloc[splits["train"]]
    if target.task == "regression":
        return learn_target(values, found, target.task)
    absent = np.setdiff1d(np.arange(len(target.classes)), target.encode(values))
    if len(absent):
        label = target.classes[absent[0]]
        n = int((target.encode(table[target.name]) == absent[0]).sum())
        raise UserError(f"data.split: class {label!r} ({n} rows) is missing from training: split by random or drop it")
    return target


def _transfer_target(values: pd.Series, target: Target, found: dict[str, Found], data: Data) -> Target:
    """Return the target of the source domain if it has the classes of these values; otherwise one with their classes."""
    if target.task == "regression":
        cells = reading.read(values, target.reading)
        if cells.wrong.any():
            value = values.iloc[int(np.argmax(cells.wrong))]
            raise UserError(f"{target.name!r} must be {target.reading.rule()}, got {str(value)!r}")
        learn_target(values, found[target.name], target.task)  # raises if there is nothing to learn
        return target
    if (target.encode(values) >= 0).all():
        return target
    own = inference.infer(values.to_frame(), data.model_copy(update={"drop": (), "kinds": {}, "formats": {}}))
    return learn_target(values, own[target.name], target.task)


def describe(learned: Schema) -> str:
    """Summarise a schema for the terminal, in at most MAX_LINES lines."""
    lines = [f"rows: {', '.join(f'{name} {n:,}' for name, n in learned.rows.items())}"]
    lines += [f"note: {note}" for note in learned.notes[:MAX_NOTES]]
    if len(learned.notes) > MAX_NOTES:
        lines.append(f"note: {len(learned.notes) - MAX_NOTES} more in data/prepared/schema.json")
    of = "mean {0.mean:g}, standard deviation {0.std:g}" if learned.target.task == "regression" else "{0.classes}"
    lines.append(f"target: {learned.target.name}, {of.format(learned.target)}"[:MAX_WIDTH])
    # Columns about which there is something to say come first, then the others in their order.
    shown = sorted(learned.columns, key=_is_plain)[: MAX_LINES - len(lines) - 1]
    chosen = [column for column in learned.columns if any(column is each for each in shown)]
    lines += [_line(column) for column in chosen]
    more = len(learned.columns) - len(chosen)
    counts = ", ".join(f"{len(learned.of_kind(kind))} {'set aside' if kind == 'drop' else kind}" for kind in KINDS)
    rest = f"; {more} more in data/prepared/schema.json" if more else ""
    lines.append(f"columns: {counts}{rest}; see reports/data.html; data.kinds overrides")
    return "\n".join(map(printable, lines))


def _is_plain(column: Column) -> bool:
    differs = any(before != after for before, after in column.examples)
    return not (column.kind == "drop" or column.words or column.reading.flags or differs)


def _line(column: Column) -> str:
    kind = "set aside" if column.kind == "drop" else column.kind
    said = [column.reason]
    if column.words:
        words = ", ".join(f"{word!r} {n:,}" for word, n in list(column.words.items())[:3])
        said.append(f"missing: {words}{', …' if len(column.words) > 3 else ''}")
    shown = [f"{before} = {after}" for before, after in column.examples if before != after]
    if shown:
        said.append(f"such as {', '.join(shown)}")
    return f"{column.name[:30]}: {kind}: {'; '.join(said)}"[:MAX_WIDTH]
