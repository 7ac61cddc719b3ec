"""Decide how the target is read, and learn its classes or its scale."""

import numpy as np
import pandas as pd
import pyarrow as pa
from pandas.api import types as dtypes

from pipeline.core.errors import UserError
from pipeline.core.settings import Data, Scalar, Task
from pipeline.stages.prepare.number_formats import Choice
from pipeline.stages.prepare.texts import (
    LARGEST_EXACT,
    Found,
    Texts,
    are_truth_values,
    doubtful,
    how_written,
    nearly,
    sampled,
    shown,
    two_readings,
    why_codes,
)
from pipeline.tables import numbers, reading
from pipeline.tables.reading import Reading
from pipeline.tables.schema import Target
from pipeline.tables.values import as_plain, canonical, canonical_value

MIN_ROWS_A_LABEL = 2  # with fewer rows per class on average, the target is an id or a measurement


def infer_target(
    values: pd.Series, nested: str | None, texts: Texts | None, choice: Choice | None, data: Data
) -> Found:
    """Decide how the target is read; raises `UserError` if it does not fit the task."""
    name = data.target
    named = data.named_missing(name)
    if nested:
        raise UserError(f"data.target: {name!r} holds {nested} values")
    if data.task == "regression":
        return _measured(values, texts, choice, data)
    if texts is None:
        if dtypes.is_bool_dtype(values.dtype):
            return Found("categorical", "true or false", Reading(type="boolean"))
        exact = reading.is_number(values) and not (values[values % 1 == 0].abs() >= LARGEST_EXACT).any()
        return Found("categorical", "classes", Reading(type="number" if exact else "text", missing=named))
    texts = Texts(values, named)
    words, notes = texts.words, [] if named else [doubtful(name, texts)]
    if texts.n_padded:
        notes.append(f"{name}: spaces around {texts.n_padded:,} labels removed")
    folded = texts.present.str.lower()
    if folded.has_duplicates:
        variants = texts.present[folded == folded[folded.duplicated()][0]]
        notes.append(f"{name}: the classes {' and '.join(map(repr, variants))} differ only in capital letters")
    if are_truth_values(texts.present) and len(texts.present) == 2:
        rule = Reading(type="boolean", missing=named)
    elif (
        len(texts.present)
        and numbers.matches(pa.array(texts.present), numbers.PLAIN).all()
        and not why_codes("", texts.present, texts.n_rows[~texts.is_word])
    ):
        rule = Reading(type="number", missing=named)
    else:
        rule = Reading(missing=named)
    return Found("categorical", "classes", rule, words, "\n".join(filter(None, notes)))


def _measured(values: pd.Series, texts: Texts | None, choice: Choice | None, data: Data) -> Found:
    name = data.target
    if texts is None and reading.is_number(values):
        return Found("numeric", "numbers", Reading(type="number", missing=data.named_missing(name)))
    if texts is not None and not len(texts.present):
        return Found("numeric", "numbers", Reading(type="number", missing=data.missing_words(name)), texts.words)
    if texts is not None and choice is not None and texts.written is not None:
        if choice.other is not None:
            raise UserError(two_readings(name, choice, texts))
        if not texts.written.words and not texts.written.bounds:
            rule = Reading(type="number", numbers=choice.numbers, missing=data.missing_words(name))
            reason = "; ".join(filter(None, ("numbers", how_written(texts.written, choice))))
            return Found("numeric", reason, rule, texts.words)
        other = (*texts.written.words, *(f"numbers with {bound}" for bound in texts.written.bounds))
        raise UserError(
            f"data.target: {name!r} must hold numbers, got {', '.join(map(repr, other))} too: see data.missing"
        )
    if texts is not None and (almost := nearly(texts)):
        raise UserError(f"data.target: {name!r}: {almost}")
    cells = texts.present if texts is not None else canonical(values.dropna())
    raise UserError(f"data.task is regression, but {name!r} holds {sampled(pd.Series(cells))}: binary or multiclass?")


def learn_target(values: pd.Series, found: Found, task: Task) -> Target:
    """Learn classes, or mean and standard deviation, from the cells of rows in which the target is not missing."""
    name, where = str(values.name), f"data.target: {str(values.name)!r}"
    cells = reading.read(values, found.reading).values
    n_values = cells.nunique()
    if n_values == 0:
        raise UserError(f"{where} has no value in any row")
    numeric = reading.is_number(cells)
    floats = cells.to_numpy(np.float64) if numeric else np.zeros(0)
    if not np.isfinite(floats).all():
        raise UserError(f"{where} is infinite in row {values.index[int(np.argmin(np.isfinite(floats)))] + 1}")
    if task == "regression":
        if n_values == 1:
            raise UserError(f"{where} is {shown(floats[0])} in every row; there is nothing to learn")
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            mean, std = float(floats.mean()), float(floats.std())
        if not 0 < std < np.inf:
            raise UserError(f"{where} has a standard deviation of {std:g}: scale the column")
        return Target(name=name, task=task, reading=found.reading, mean=mean, std=std)
    if n_values == 1:
        raise UserError(
            f"{where} has one class, {canonical_value(cells.iloc[0])!r}, in every row; there is nothing to learn"
        )
    if task == "binary" and n_values != 2:
        if found.note:
            raise UserError(f"data.task is binary, but {name!r} has {n_values} classes; {found.note.splitlines()[0]}")
        raise UserError(
            f"data.task is binary, but {name!r} has {n_values} classes ({sampled(canonical(cells))}): multiclass?"
        )
    if len(values) < MIN_ROWS_A_LABEL * n_values:
        hint = "regression?" if numeric else "is it an id?"
        raise UserError(f"data.task is {task}, but {name!r} has {n_values} values in {len(values)} rows: {hint}")
    return Target(name=name, task=task, reading=found.reading, classes=_labels(values, cells))


def _labels(values: pd.Series, cells: pd.Series) -> tuple[Scalar, ...]:
    """Sort the classes: numbers as numbers, true and false as the table writes them, text as text."""
    if reading.is_number(cells):
        return tuple(int(value) if value % 1 == 0 else float(value) for value in sorted(cells.unique()))
    if dtypes.is_bool_dtype(as_plain(values)[0].dtype):
        return (False, True)
    written = pd.Series(pd.Index(canonical(as_plain(values)[0])).str.strip(), values.index)
    return tuple(str(written[cells == cell].iloc[0]) for cell in sorted(cells.unique()))
