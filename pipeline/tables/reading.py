"""How the cells of a column become values: a rule chosen from the training table, and kept with the model.

The value of a cell depends on the cell and the rule alone, never on other cells of its file.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
from pandas.api import types as dtypes
from pydantic import Field

from pipeline.core.settings import ISO, MomentFormat, Section, Words
from pipeline.tables import moments
from pipeline.tables.numbers import Numbers, parse, plain_numbers
from pipeline.tables.values import as_plain, canonical, canonical_value

Type = Literal["number", "moment", "boolean", "text"]

SAMPLE = 10_000  # cells that show whether the texts of a column repeat

# Words of truth values; each pair is one way of writing them.
PAIRS = (("true", "false"), ("yes", "no"), ("y", "n"), ("t", "f"), ("on", "off"), ("1", "0"))
# Pairs that may be mixed in one column; 1 and 0 may be among each of them.
FAMILIES = tuple((*family, ("1", "0")) for family in ((PAIRS[0], PAIRS[3]), (PAIRS[1], PAIRS[2]), (PAIRS[4],)))
TRUTH = {word: value for pair in PAIRS for word, value in zip(pair, ("true", "false"), strict=True)}


class Reading(Section):
    """The rule of a column: what its cells hold, how that is written, and the words that mean missing.

    `flags` are texts that a column of numbers keeps apart: a word, or `<` or `>` for a number that is only a bound.
    A number with such a flag is the bound, and missing for a word.
    """

    type: Type = "text"
    numbers: Numbers = Numbers()
    format: MomentFormat = ISO
    missing: Words = ()
    flags: Annotated[tuple[str, ...], Field(max_length=10)] = ()
    verbatim: bool = False  # text keeps the spaces around it

    def rule(self) -> str:
        """Say what a cell must be, for an error message."""
        if self.type == "number":
            written = self.numbers.shown()
            return f"a number ({written})" if written else "a number"
        return {"moment": f"a date or time as {self.format}", "boolean": "true or false", "text": "text"}[self.type]


@dataclass(frozen=True)
class Cells:
    """Values [n] of a column, float64, datetime64 in UTC or text; the cells that do not fit; the cells with a flag."""

    values: pd.Series
    wrong: np.ndarray
    flags: dict[str, np.ndarray] = field(default_factory=dict)


def read(values: pd.Series, reading: Reading) -> Cells:
    """Read the cells of a column as text, or as the types of Parquet or JSON, by its rule."""
    plain, _ = as_plain(values)
    fits = np.zeros(len(plain), bool)
    absent_numbers = [number for word in reading.missing if (number := _number(word)) is not None]
    if reading.type == "number" and isinstance(plain.dtype, pd.StringDtype) and reading.numbers.has_points:
        found = plain_numbers(plain)  # far sooner than by the rule, with the same result
        plain = plain if found is None else pd.Series(found, plain.index, name=plain.name)
    if reading.type == "number" and (is_number(plain) or dtypes.is_bool_dtype(plain.dtype)):
        floats = plain.astype("float64")
        floats = floats.mask(floats.isin(absent_numbers)) if absent_numbers else floats
        return Cells(floats, fits, dict.fromkeys(reading.flags, fits))
    if reading.type == "moment" and dtypes.is_datetime64_any_dtype(plain.dtype):
        return Cells(pd.to_datetime(plain, utc=True).astype("datetime64[us, UTC]"), fits)
    if reading.type == "text" and not is_text(plain):
        named = canonical(plain)
        return Cells(named.mask(is_missing(pd.Index(named), reading.missing)) if reading.missing else named, fits)
    if reading.type == "number" and dtypes.is_object_dtype(plain.dtype):
        plain = plain.map(lambda value: _number_written(value, reading.numbers.decimal), na_action="ignore").astype(
            "str"
        )
    codes, texts = distinct(plain)
    if not reading.verbatim:
        texts = texts.str.strip()
    texts = texts.fillna("")
    if reading.type == "boolean" or (reading.type == "moment" and "." not in reading.format):
        texts = texts.str.replace(r"^(\d+)\.0+$", r"\1", regex=True)  # whole numbers of a column with gaps
    absent = np.asarray(texts == "") | is_missing(texts, reading.missing)
    flagged = {flag: np.zeros(len(texts), bool) for flag in reading.flags}
    match reading.type:
        case "number":
            numbers, bound = np.full(len(texts), np.nan), np.zeros(len(texts), np.int8)
            numbers[~absent], bound[~absent] = parse(texts[~absent], reading.numbers)
            absent |= np.isin(numbers, absent_numbers)
            flagged = {flag: np.asarray(texts.str.lower() == flag.lower()) for flag in reading.flags}
            flagged |= {flag: bound == side for flag, side in (("<", -1), (">", 1)) if flag in flagged}
            # A bound is a number only in a column that had bounds in training.
            unknown = np.isnan(numbers) | np.logical_or.reduce(
                [(bound == -1) & ("<" not in flagged), (bound == 1) & (">" not in flagged)]
            )
            parsed: pd.Series = pd.Series(np.where(unknown | absent, np.nan, numbers))
            wrong = unknown & ~np.logical_or.reduce([absent, *flagged.values()])
        case "moment":
            parsed = moments.parse(texts, reading.format)
            wrong = parsed.isna().to_numpy() & ~absent
        case "boolean":
            parsed = pd.Series([TRUTH.get(text.lower()) for text in texts], dtype="str")
            wrong = parsed.isna().to_numpy() & ~absent
        case "text":
            parsed, wrong = pd.Series(texts).mask(absent), absent & False
    if absent.any():
        parsed = parsed.mask(absent)
    if codes is not None:
        parsed = pd.concat([parsed, pd.Series([None], dtype=parsed.dtype)], ignore_index=True).take(codes)  # code -1
        wrong, *flags = (np.append(cells, False)[codes] for cells in (wrong, *flagged.values()))
        flagged = dict(zip(flagged, flags, strict=True))
    return Cells(pd.Series(parsed.array, values.index, name=values.name), wrong, flagged)


def is_number(values: pd.Series) -> bool:
    return dtypes.is_numeric_dtype(values.dtype) and not dtypes.is_bool_dtype(values.dtype)


def is_text(values: pd.Series) -> bool:
    return (
        dtypes.is_string_dtype(values.dtype)
        or dtypes.is_object_dtype(values.dtype)
        or isinstance(values.dtype, pd.CategoricalDtype)
    )


def distinct(values: pd.Series) -> tuple[np.ndarray | None, pd.Index]:
    """Return the distinct texts of a column, and for each cell [n] the place of its text, -1 if missing.

    If most cells differ, their texts [n] are returned as they are, with None for the places.
    """
    if dtypes.is_object_dtype(values.dtype) or not is_text(values):
        values = canonical(values)
    if isinstance(values.dtype, pd.CategoricalDtype):
        used = np.bincount(values.cat.codes + 1, minlength=len(values.cat.categories) + 1)[1:] > 0
        places = np.append(np.cumsum(used) - 1, -1)
        return places[values.cat.codes], canonical(pd.Series(values.cat.categories[used])).pipe(pd.Index)
    if hardly_repeats(values):
        return None, pd.Index(values)
    codes, texts = pd.factorize(values)
    return codes, pd.Index(texts, dtype="str")


def hardly_repeats(texts: pd.Series) -> bool:
    """True if most of a sample of SAMPLE cells differ; False for a column of fewer."""
    step = len(texts) // SAMPLE
    return step > 0 and int(texts.iloc[::step].nunique()) > len(texts) // step // 2


def is_missing(texts: pd.Index, words: tuple[str, ...]) -> np.ndarray:
    """Return which texts [n] are one of the words, in any case."""
    return (
        np.asarray(texts.str.lower().isin([word.strip().lower() for word in words]))
        if words
        else np.zeros(len(texts), bool)
    )


def _number_written(value: object, decimal: str) -> str:
    """Write a number of JSON with the decimal mark of its column; text stays as it is."""
    if isinstance(value, bool | np.bool_):
        return "1" if value else "0"
    text = canonical_value(value)
    return text if isinstance(value, str) else text.replace(".", decimal)


def known(texts: pd.Series, categories: Sequence[str], cells: pd.Series) -> pd.Series:
    """Replace a text that is no category by the category that means the same, if there is exactly one.

    That is another spelling of true or false, or, for a cell that is a number, the same number, such as 7 for "007".
    """
    foreign = texts.notna() & ~texts.isin(list(categories))
    if not foreign.any():
        return texts
    others = [str(text) for text in texts[foreign].unique()]
    truths = _single((name.lower(), name) for name in categories if name.lower() in ("true", "false"))
    if same := {text: truths[text.lower()] for text in others if text.lower() in truths}:
        texts = texts.replace(same)
    if not is_text(cells) or dtypes.is_object_dtype(cells.dtype):
        numbers = _single((_number(name), name) for name in categories)
        if same := {text: numbers[number] for text in others if (number := _number(text)) in numbers}:
            is_number = cells.map(lambda value: not isinstance(value, str)).to_numpy(bool)
            texts = texts.mask(foreign & is_number, texts.replace(same))
    return texts


def _single(pairs: Iterable[tuple[Any, str]]) -> dict[Any, str]:
    """Return the names by what they mean, without those of which several mean the same."""
    names: dict[Any, list[str]] = {}
    for meaning, name in pairs:
        names.setdefault(meaning, []).append(name)
    return {meaning: found[0] for meaning, found in names.items() if len(found) == 1 and meaning is not None}


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
