"""Infer from the training table what each column holds, and how its cells are read."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd
import pyarrow as pa
from pandas.api import types as dtypes

from pipeline.core.errors import UserError
from pipeline.core.settings import EPOCHS, ISO, Data
from pipeline.stages.prepare import date_formats, number_formats
from pipeline.stages.prepare.number_formats import SAMPLE, Choice
from pipeline.stages.prepare.targets import infer_target
from pipeline.stages.prepare.texts import (
    CODE,
    ID_SHARE,
    LARGEST_EXACT,
    LONG_CODES,
    MIN_DIGITS,
    SOME,
    Found,
    Texts,
    are_truth_values,
    doubtful,
    how_written,
    moment_format,
    nearly,
    two_readings,
    why_codes,
)
from pipeline.tables import moments, numbers, reading
from pipeline.tables.numbers import ABOVE, BELOW, Numbers
from pipeline.tables.reading import Reading
from pipeline.tables.schema import Target
from pipeline.tables.validation import nearest
from pipeline.tables.values import as_plain

MAX_INTEGER_CATEGORIES = 10  # an integer column with at most this many values is categorical
MIN_COUNTED = 10  # rows from which a column can be recognised as a row number

_ID = re.compile(
    r"(?i:^(unnamed: \d+|index|idx|#|no\.?|nr\.?|pk|s\. ?no\.?|sno|lfd\.? ?nr\.?|serial([ _]?(no|number))?"
    r"|(row|record|obs|observation|case)([ _.]?(id|no|nr|num|number|index))?|(.*[\W_])?(id|uid|ids)|id[\W_].*)$)|[a-z]I[dD]$"
)
_NAMELESS = re.compile(r"Unnamed: \d+")


def check_names(table: pd.DataFrame, data: Data) -> None:
    """Check that the columns named in `data` exist; raises `UserError` with the nearest names."""
    _, _, by = data.split.by.partition(":")
    named = [("data.target", data.target), *(("data.drop", name) for name in data.drop)]
    named += [("data.kinds", name) for name in data.kinds] + [("data.formats", name) for name in data.formats]
    named += [("data.missing", name) for name in data.missing] if isinstance(data.missing, dict) else []
    named += [("data.split.by", by)] * bool(by)
    for key, name in named:
        if name not in table.columns:
            raise UserError(f"{key}: the table has no column {name!r}{nearest(name, table.columns)}")
    if by == data.target:
        raise UserError(f"data.split.by must not name the target, got {data.split.by}")


def infer(table: pd.DataFrame, data: Data) -> dict[str, Found]:
    """Decide for each column, the target included, what it holds and how its cells are read."""
    plain = {str(name): as_plain(table[name]) for name in table.columns}
    texts = {
        name: Texts(values, data.missing_words(name))
        for name, (values, nested) in plain.items()
        if not nested and reading.is_text(values)
    }
    written = {name: column.written for name, column in texts.items() if column.written is not None}
    choices = number_formats.choose(
        written, data.csv, {name for name in written if _may_prove(name, texts[name], data)}
    )
    _, _, by = data.split.by.partition(":")
    found: dict[str, Found] = {}
    for name, (values, nested) in plain.items():
        if name == data.target:
            found[name] = infer_target(values, nested, texts.get(name), choices.get(name), data)
            continue
        named = _named(name, values, nested, texts.get(name), choices.get(name), data)
        if named is None or (named.kind == "drop" and name == by and not nested):
            column = texts.get(name)
            found[name] = (
                _of_type(name, values, data)
                if column is None
                else _of_text(name, values, column, choices.get(name), data)
            )
            named = named and replace(found[name], kind="drop", reason=named.reason, note="")
        found[name] = named or found[name]
    return found


def _may_prove(name: str, texts: Texts, data: Data) -> bool:
    """True if the numbers of a column are numbers to the user too, and so show how numbers are written."""
    is_number = name not in data.drop and data.kinds.get(name, "numeric") == "numeric" and name not in data.formats
    return is_number and why_codes(name, texts.present, texts.n_rows[~texts.is_word]) is None


def notes(table: pd.DataFrame, found: Mapping[str, Found], target: Target) -> list[str]:
    """List what the user should know about the table, besides the kinds of its columns."""
    said = [line for column in found.values() for line in column.note.split("\n") if line]
    read = found[target.name]
    words = [f"missing: {', '.join(f'{word!r} {n:,}' for word, n in read.words.items())}"] if read.words else []
    if words or read.reason not in ("numbers", "classes", "true or false"):
        said.append(f"{target.name}: {'; '.join([read.reason, *words])}")
    flagged = [table[name] for name, column in found.items() if column.reading.flags]
    first = {str(cells.name): cells.iloc[0] for cells in flagged if (cells == cells.iloc[0]).sum() == 1}
    units = [f"{cell!r} ({name})" for name, cell in first.items() if str(cell).strip() in found[name].reading.flags]
    if units:
        said.append(f"row 1 holds {', '.join(units[:5])} among numbers: if it names units, remove it from the table")
    counters = [name for name, column in found.items() if column.counts_rows]
    if counters and target.classes:
        codes = target.encode(table[target.name])
        codes = codes[codes >= 0]
        if np.count_nonzero(np.diff(codes)) == len(target.classes) - 1:
            said.append(
                f"the rows are sorted by class: {counters[0]!r}, which counts them, alone separates the classes"
            )
    return said


def _named(
    name: str, values: pd.Series, nested: str | None, texts: Texts | None, choice: Choice | None, data: Data
) -> Found | None:
    """Return what `data` says of a column, or what excludes it; None if it is to be inferred."""
    wanted = data.kinds.get(name, "datetime" if name in data.formats else None)
    if name in data.drop or wanted == "drop":
        return Found("drop", "named in data.drop" if name in data.drop else "named in data.kinds")
    if nested:
        return Found("drop", f"holds {nested} values")
    reason, words = "named in data.kinds", texts.words if texts else {}
    missing = data.missing_words(name)
    match wanted:
        case "numeric":
            if texts is None or texts.written is None or choice is None:
                return Found("numeric", reason, Reading(type="number", missing=missing), words)
            if choice.other:
                raise UserError(two_readings(name, choice, texts))
            found = Reading(type="number", numbers=choice.numbers, missing=missing, flags=texts.written.bounds)
            return Found("numeric", "; ".join(filter(None, (reason, how_written(texts.written, choice)))), found, words)
        case "categorical" | "text-as-category":
            named = data.named_missing(name)
            found = Reading(missing=named, verbatim=wanted == "text-as-category")
            return Found("categorical", reason, found, words if named else {})
        case "boolean":
            return Found("categorical", reason, Reading(type="boolean", missing=missing), words)
        case "datetime":
            reason = "named in data.formats" if name in data.formats else reason
            moment = data.formats.get(name) or _moment_format(name, values, texts)
            if moment is None:
                example = texts.present[0] if texts and len(texts.present) else ""
                raise UserError(
                    f"data.kinds: {name!r} is datetime, but {example!r} has no known format: set data.formats"
                )
            return Found(
                "datetime", f"{reason}; {moment}", Reading(type="moment", format=moment, missing=missing), words
            )
    return None


def _moment_format(name: str, values: pd.Series, texts: Texts | None) -> str | None:
    """Return the format of a column that data.kinds calls datetime; None if it is unknown."""
    if texts is None:
        whole = values.dropna().to_numpy(np.float64) if reading.is_number(values) else np.zeros(0)
        is_count = len(whole) and bool((whole % 1 == 0).all())
        return date_formats.of_integers(whole, f"{name} time") if is_count else ISO
    if not len(texts.present):
        return ISO
    if numbers.matches(pa.array(texts.present), numbers.INTEGER).all():
        return date_formats.of_integers(texts.present.to_numpy(np.float64), f"{name} time")
    return moment_format(name, texts)


def _of_text(name: str, values: pd.Series, texts: Texts, choice: Choice | None, data: Data) -> Found:
    """Infer what a column of text holds."""
    words, missing = texts.words, data.missing_words(name)
    if not len(texts.present):
        return _words(texts, data, name)
    if are_truth_values(texts.present):
        return Found("categorical", "true or false", Reading(type="boolean", missing=missing), words)
    if choice is not None and texts.written is not None:
        flags = texts.written.words + texts.written.bounds
        rule = Reading(type="number", numbers=choice.numbers, missing=missing, flags=flags)
        values_found = _numbers_of_text(values, texts, rule)
        reason = why_codes(name, texts.present, texts.n_rows[~texts.is_word])
        if reason and not (reason == LONG_CODES and date_formats.of_integers(values_found.distinct, name)):
            if texts.are_ids and not CODE.search(name):
                return Found("drop", f"{reason}, with a value of its own in almost every row: an id")
            return _words(texts, data, name, reason)
        if choice.other is not None:
            raise UserError(two_readings(name, choice, texts))
        found = _of_numbers(name, values_found, rule)
        reason = "; ".join(filter(None, (found.reason, how_written(texts.written, choice), _flagged(flags))))
        return replace(found, reason=reason, words=words)
    if moment := moment_format(name, texts):
        what = "dates" if moments.holds(moment)[0] else "times"
        return Found("datetime", f"{what} as {moment}", Reading(type="moment", format=moment, missing=missing), words)
    if texts.are_ids:
        n_values, n = texts.all.nunique(), int(texts.n_rows.sum())
        reason, almost = f"text with {n_values} different values in {n} rows: an id or free text", nearly(texts)
        return Found("drop", reason, note=f"{name}: {almost}" if almost else "")
    return _words(texts, data, name)


def _words(texts: Texts, data: Data, name: str, reason: str | None = None) -> Found:
    """Return a column of words, in which only an empty cell is missing unless data.missing names the column."""
    named = data.named_missing(name)
    rule = Reading(missing=named)
    found = reason or "text"
    if texts.n_padded:
        found += f"; spaces around the text of {texts.n_padded} cells removed"
    notes = [] if named else [doubtful(name, texts)]
    if reason is None and len(texts.all) > number_formats.MIN_NUMBERS and (almost := nearly(texts)):
        notes.append(f"{name}: {almost}")
    quoted = texts.all.str.fullmatch("'.*'")
    if quoted.any() and quoted.all():
        notes.append(f"{name}: all cells are in quotes, such as {texts.all[0]}: set data.csv.quote")
    return Found("categorical", found, rule, texts.words if named else {}, "\n".join(filter(None, notes)))


def _flagged(flags: tuple[str, ...]) -> str:
    names = {BELOW: "'<' (at most)", ABOVE: "'>' or '+' (at least)"}
    return f"{', '.join(names.get(flag, repr(flag)) for flag in flags)} kept apart by a flag" if flags else ""


def _of_type(name: str, values: pd.Series, data: Data) -> Found:
    """Infer what a column holds that is not text, from its type and values."""
    if dtypes.is_datetime64_any_dtype(values.dtype):
        return Found("datetime", "dates", Reading(type="moment"))
    if dtypes.is_bool_dtype(values.dtype):
        return Found("categorical", "true or false", Reading(type="boolean"))
    if not reading.is_number(values):
        return Found("categorical", f"{values.dtype} values", Reading(missing=data.named_missing(name)))
    rule = Reading(type="number", missing=data.missing_words(name))
    present = reading.read(values, rule).values.dropna().to_numpy(np.float64)
    found = Values(
        some=lambda: present,
        rows=lambda: present,
        n=len(present),
        complete=len(present) == len(values),
        as_integers=dtypes.is_integer_dtype(values.dtype),
    )
    if found.are_whole:
        long = np.mean(np.abs(present) >= LARGEST_EXACT) > SOME
        long = long and not date_formats.of_integers(found.distinct, name)
        if long or (CODE.search(name) and np.mean(present >= 10 ** (MIN_DIGITS - 1)) > 0.5):
            reason = LONG_CODES if long else "codes by their name"
            n_values = values.nunique()
            if n_values > 50 and n_values > ID_SHARE * found.n and not CODE.search(name):
                return Found("drop", f"{reason}, with a value of its own in almost every row: an id")
            return Found("categorical", reason, Reading(missing=data.named_missing(name)))
    return _of_numbers(name, found, rule)


@dataclass(frozen=True)
class Values:
    """The numbers in the `n` rows of a column that hold one."""

    some: Callable[[], np.ndarray]  # each distinct number, at least once
    rows: Callable[[], np.ndarray]  # all, in the order of the rows
    n: int
    complete: bool  # no row lacks one
    as_integers: bool  # written without a decimal mark, or of such a type

    @cached_property
    def distinct(self) -> np.ndarray:
        return pd.unique(self.some())

    @cached_property
    def are_whole(self) -> bool:
        """True if they are integers, also where missing ones made them a float column."""
        if not self.as_integers and self.complete:
            return False
        found = self.some()
        return bool(len(found) and np.isfinite(found).all() and (found % 1 == 0).all())

    @cached_property
    def counts_rows(self) -> bool:
        """True if each is one more than that of the row before."""
        return self.n >= MIN_COUNTED and len(self.distinct) == self.n and bool((np.diff(self.rows()) == 1).all())

    @property
    def ascend(self) -> bool:
        return bool((np.diff(self.rows()) >= 0).all())

    @property
    def descend(self) -> bool:
        return bool((np.diff(self.rows()) <= 0).all())


def _numbers_of_text(values: pd.Series, texts: Texts, rule: Reading) -> Values:
    marked = any(cells.str.contains(r"[.,eE]").any() for cells in (texts.present[:SAMPLE], texts.present))
    n = int(texts.n_rows.sum()) - sum(texts.words.values())
    return Values(
        some=lambda: reading.read(pd.Series(texts.present), rule).values.to_numpy(np.float64),
        rows=lambda: reading.read(values, rule).values.dropna().to_numpy(np.float64),
        n=n,
        complete=n == len(values),
        as_integers=not marked,
    )


def _of_numbers(name: str, found: Values, rule: Reading) -> Found:
    """Distinguish dates, categories and row numbers from other numbers."""
    if rule.flags:
        return Found("numeric", "numbers", rule)
    if reason := _row_number(name, found):
        return Found("drop", reason, rule, counts_rows=found.counts_rows)
    if not found.are_whole:
        return Found("numeric", "numbers", rule)
    plain = rule.numbers == Numbers(decimal=rule.numbers.decimal)
    if plain and (moment := date_formats.of_integers(found.distinct, name, found.n)):
        what = f"{moment} since 1970" if moment in EPOCHS else f"dates as {moment}"
        return Found("datetime", what, Reading(type="moment", format=moment, missing=rule.missing))
    n_values = len(found.distinct)
    if plain and n_values == 2 and set(found.distinct) == {0.0, 1.0}:
        return Found("categorical", "true or false, as 1 and 0", Reading(type="boolean", missing=rule.missing))
    if n_values <= MAX_INTEGER_CATEGORIES:
        return Found("categorical", f"whole numbers with only {n_values} values", rule)
    return Found("numeric", "numbers", rule, counts_rows=found.counts_rows)


def _row_number(name: str, found: Values) -> str:
    """Say why a column without information is one: it is nameless, or named like an id, and numbers the rows."""
    if found.n < MIN_COUNTED or not found.complete or not _ID.search(name) or len(found.distinct) < found.n:
        return ""
    if not np.isfinite(found.distinct).all() or (found.distinct % 1 != 0).any():
        return ""
    kind = "a nameless column" if _NAMELESS.fullmatch(name) else "an id by its name"
    if found.counts_rows:
        return f"{kind} that counts the rows"
    if found.ascend or found.descend:
        return f"{kind}, with sorted values that never repeat"
    return f"{kind}, with a value of its own in every row" if kind.startswith("an id") else ""
