"""Find how the numbers of a table are written, from all cells of each column."""

import re
import unicodedata
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.core.settings import Csv
from pipeline.tables import numbers
from pipeline.tables.numbers import ABOVE, AFFIX, BELOW, Numbers

MONTHS, CLOCKS = r"^(0[1-9]|1[0-2])\.(19|20)\d\d$", r"^([01]\d|2[0-3])\.[0-5]\d$"  # such as 01.2018 and 07.45
MAX_WORDS = 5  # words beside the numbers of a column
SAMPLE = 1000  # cells that decide whether all of them need be looked at
MIN_NUMBERS = 20  # with fewer distinct numbers, a column with such words holds categories

_CURRENCY = (
    r"(?:[A-Z]{0,3}\p{Sc}|USD|EUR|GBP|CHF|JPY|CNY|INR|AUD|CAD|BRL|RUB|SEK|NOK|DKK|PLN|CZK|HUF|Fr\.?|kr\.?|Rs\.?)"
)
_UNIT = r"[^0-9.,'\s()<>≤≥+-](?:[^0-9.,'()<>≤≥+-]*[^0-9.,'\s()<>≤≥+-][23]?)?"
_BODY = r"[.,]?[0-9]+(?:[.,' ][0-9]+)*[.,]?"
_PATTERN = numbers.cell(_BODY, (f"(?:{_CURRENCY})?", f"(?:{_CURRENCY}|{_UNIT})?"))


@dataclass(frozen=True)
class Written:
    """How the numbers of a column can be read, and the words and bounds beside them.

    Each of `formats` fits every cell; with several of them, `example` is a number that they read differently.
    """

    formats: tuple[Numbers, ...]
    shows_mark: bool = False  # a cell has a point or a comma
    words: tuple[str, ...] = ()
    bounds: tuple[str, ...] = ()
    example: str = ""


def find(texts: pd.Index, *, with_words: bool = True) -> Written | None:
    """Find the formats of a column from its distinct cells; None if they are not numbers.

    A few words without a digit may stand beside many numbers, unless `with_words` is False.
    """
    if not _could_be_numbers(numbers.normalized(texts[:SAMPLE])):
        return None
    if _all_match(texts, MONTHS) or (_all_match(texts, CLOCKS) and texts.str.match(r"0\d").any()):
        return None
    if numbers.plain_numbers(texts) is not None or _all_match(texts, numbers.PLAIN):
        pointed = any(_has(numbers.normalized(cells), ".") for cells in (texts[:SAMPLE], texts))
        grouped = pointed and _all_match(texts, f"^[+-]?{Numbers(decimal=',', thousands='.').body()}$")
        both = (Numbers(), Numbers(decimal=",", thousands="."))
        example = _example(numbers.normalized(texts)) if grouped else ""
        return Written(both if grouped else both[:1], shows_mark=pointed, example=example)
    cells = numbers.normalized(texts)
    found = pc.extract_regex(cells, _PATTERN)
    valid = found.is_valid().to_numpy(zero_copy_only=False)
    words = texts[~valid & ~numbers.matches(pc.utf8_lower(cells), numbers.INFINITE)].unique()
    few = with_words and len(words) <= MAX_WORDS and valid.sum() >= MIN_NUMBERS
    # Letters beside numbers are names, such as chromosomes 1 to 22, X, Y.
    few = few and not words.str.fullmatch("[A-Za-z]").any()
    if len(words) and (not few or words.str.contains(r"\d").any()):
        return None
    found = found.drop_null()
    part = {name: pc.struct_field(found, name).to_pandas() for name in ("below", "prefix", "body", "suffix", "end")}
    prefix, suffix = (_shared(part[name].str.strip(), part["body"]) for name in ("prefix", "suffix"))
    if prefix is None or suffix is None:
        return None
    bodies = pa.array(part["body"].unique())
    candidates = [Numbers(decimal=d, thousands=t, prefix=prefix, suffix=suffix) for d, t in _marks(bodies)]
    formats = tuple(each for each in candidates if numbers.matches(bodies, f"^{each.body()}$").all())
    if not formats:
        return None
    bounds = [BELOW] * bool(part["below"].str.contains("[<≤]").any())
    bounds += [ABOVE] * bool(part["below"].str.contains("[>≥]").any() or (part["end"] == "+").any())
    example = _example(bodies) if len(formats) > 1 else ""
    return Written(formats, _has(bodies, ".") or _has(bodies, ","), tuple(sorted(words)), tuple(bounds), example)


def units(texts: pd.Index) -> list[str]:
    """Return the units of a column of numbers that have several; an empty list for another column."""
    found = pc.extract_regex(numbers.normalized(texts), _PATTERN)
    if not len(texts) or found.null_count:
        return []
    parts = (pc.struct_field(found, name).to_pandas().str.strip() for name in ("prefix", "suffix"))
    named = sorted({unit for part in parts for unit in part.unique() if unit})
    return named if 1 < len(named) <= MAX_WORDS else []


def _could_be_numbers(cells: pa.Array) -> bool:
    """False if a sample has more words than may be beside numbers."""
    is_word = ~numbers.matches(cells, "[0-9]") & ~numbers.matches(pc.utf8_lower(cells), numbers.INFINITE)
    return len(cells.filter(pa.array(is_word)).unique()) <= MAX_WORDS


def _all_match(texts: pd.Index, pattern: str) -> bool:
    """True if all texts match; most columns differ in the sample already."""
    return all(numbers.matches(numbers.normalized(cells), pattern).all() for cells in (texts[:SAMPLE], texts))


def _has(texts: pa.Array, mark: str) -> bool:
    return bool(pc.any(pc.match_substring(texts, mark)).as_py())


def _example(texts: pa.Array) -> str:
    return str(texts.filter(pc.match_substring_regex(texts, "[.,]"))[0])


def _marks(bodies: pa.Array) -> list[tuple[Any, Any]]:
    """List the pairs of decimal mark and thousands separator that account for the marks in the numbers."""
    spaced = [mark for mark in " '" if _has(bodies, mark)]
    match _has(bodies, "."), _has(bodies, ","), spaced:
        case (_, True, [separator]):
            return [(",", separator)]
        case (_, _, [separator]):
            return [(".", separator)]
        case True, False, []:
            return [(".", ""), (",", ".")]
        case False, True, []:
            return [(",", ""), (".", ",")]
        case True, True, []:
            return [(".", ","), (",", ".")]
        case _, _, []:
            return [(".", "")]
    return []


def _shared(affixes: pd.Series, bodies: pd.Series) -> str | None:
    """Return the affix of all numbers, or no affix; None if they differ. Only a currency may be left out, and the affix of a zero."""
    named = affixes[affixes != ""].unique()
    if not len(named):
        return ""
    is_currency = re.fullmatch("[A-Z]{3}", named[0]) or any(unicodedata.category(c) == "Sc" for c in named[0])
    missing = bodies[affixes == ""]
    if len(named) > 1 or len(named[0]) > AFFIX or not (is_currency or missing.str.fullmatch("[0.,]+").all()):
        return None
    return str(named[0])


@dataclass(frozen=True)
class Choice:
    """The format of a column, and why it was chosen among several; `other` is a reading that nothing excludes."""

    numbers: Numbers
    reason: str = ""
    other: Numbers | None = None


def choose(columns: Mapping[str, Written], csv: Csv, may_prove: Collection[str]) -> dict[str, Choice]:
    """Choose a format for each column: the one that data.csv asks for, else the one that columns of `may_prove` prove."""
    proven = {
        written.formats[0].decimal: name
        for name, written in columns.items()
        if written.shows_mark and len(written.formats) == 1 and name in may_prove
    }
    proof = csv.decimal if csv.decimal != "auto" else next(iter(proven)) if len(proven) == 1 else None
    thousands = {"auto": None, "none": ""}.get(csv.thousands, csv.thousands)
    chosen = {}
    for name, written in columns.items():
        fitting = [each for each in written.formats if thousands in (None, each.thousands)] or list(written.formats)
        asked = [each for each in fitting if proof in (None, each.decimal)] or fitting
        reason = ""
        if len(asked) < len(written.formats):
            by = (
                "data.csv"
                if csv.decimal != "auto" or thousands is not None
                else f"other columns, such as {proven.get(proof or '.')!r}, which prove the decimal {proof!r}"
            )
            reason = f"{written.example!r} read by {by}"
        numbers_ = asked[0]
        if written.shows_mark and csv.decimal not in ("auto", numbers_.decimal):
            reason = f"the only reading that fits, although data.csv.decimal is {csv.decimal!r}"
        if not written.shows_mark and proof and numbers_.thousands != proof:
            numbers_ = numbers_.model_copy(update={"decimal": proof})
        chosen[name] = Choice(numbers_, reason, asked[1] if len(asked) > 1 else None)
    return chosen
