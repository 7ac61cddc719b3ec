"""Numbers as people write them: thousands separators, decimal commas, units, currencies, brackets, `<5` and `90+`."""

from typing import Annotated, Literal, Self

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from pipeline.core.settings import Section

PLAIN = r"^[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?$"
INTEGER = r"^[+-]?[0-9]+$"
EXPONENT = r"[eE][+-]?[0-9]+"
NO_CENTS = r"([0-9])[.,]--?( *[^0-9]*)$"  # such as 12.- or 5,-- for a price without cents
INFINITE = r"^[+-]?inf(?:inity)?$"
CHUNK = 2**20  # cells parsed at a time
AFFIX = 12  # longest unit or currency
BELOW, ABOVE = "<", ">"  # flags of numbers that are only a bound
_ESCAPED = {"": "", ".": r"\.", ",": ",", " ": " ", "'": "'"}
_SPELLINGS = {"\u2212": "-", "\u2013": "-", "\u00a0": " ", "\u202f": " ", "\u2009": " ", "\u2019": "'"}

Affix = Annotated[str, Field(max_length=AFFIX)]


class Numbers(Section):
    """How the numbers of a column are written; a unit or currency may be left out."""

    decimal: Literal[".", ","] = "."
    thousands: Literal["", ".", ",", " ", "'"] = ""
    prefix: Affix = ""
    suffix: Affix = ""

    @model_validator(mode="after")
    def _marks_differ(self) -> Self:
        if self.decimal == self.thousands:
            raise ValueError("decimal and thousands must differ")
        return self

    @property
    def has_points(self) -> bool:
        """False where a point is a separator: in a column with decimal commas or with points between thousands."""
        return self.decimal == "." and self.thousands != "."

    @property
    def other_mark(self) -> Literal[".", ","]:
        return "," if self.decimal == "." else "."

    def body(self) -> str:
        """Return the regular expression of an unsigned number without its affixes."""
        mark, separator = _ESCAPED[self.decimal], _ESCAPED[self.thousands]
        groups = "{2,3}" if separator == "," else "{3}"  # in India, commas are between pairs of digits
        grouped = f"[1-9][0-9]{{0,2}}(?:{separator}[0-9]{groups})*{separator}[0-9]{{3}}|" if separator else ""
        if not separator:  # in a later file, larger numbers may have separators; with decimals they are certain
            other = _ESCAPED[self.other_mark]
            return rf"(?:[0-9]+(?:{mark}[0-9]*)?|{mark}[0-9]+|[1-9][0-9]{{0,2}}(?:{other}[0-9]{{3}})+{mark}[0-9]+)"
        return rf"(?:(?:{grouped}[0-9]+)(?:{mark}[0-9]*)?|{mark}[0-9]+)"

    def shown(self) -> str:
        """Describe the format for people, or return an empty string for plain numbers."""
        parts = [f"thousands separator {self.thousands!r}"] if self.thousands else []
        parts += ["decimal comma"] if self.decimal == "," else []
        return ", ".join(parts + [f"unit {affix!r}" for affix in (self.prefix, self.suffix) if affix])


def normalized(cells: pd.Index) -> pa.Array:
    """Trim texts, and replace typographic minus signs, spaces and apostrophes by plain ones."""
    texts = pc.utf8_trim_whitespace(_as_arrow(cells))
    if not pc.all(pc.string_is_ascii(texts)).as_py():
        for typographic, plain in _SPELLINGS.items():
            texts = pc.replace_substring(texts, typographic, plain)
    if pc.any(pc.match_substring_regex(texts, NO_CENTS)).as_py():
        texts = pc.replace_substring_regex(texts, NO_CENTS, r"\1\2")
    return texts


def matches(texts: pa.Array, pattern: str) -> np.ndarray:
    found: np.ndarray = pc.match_substring_regex(texts, pattern).to_numpy(zero_copy_only=False).astype(bool)
    return found


def parse(texts: pd.Index, numbers: Numbers) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers [n] float64, NaN for a text that is not one, and [n] int8: -1 below the number, 1 above, 0."""
    parts = [_parse(texts[start : start + CHUNK], numbers) for start in range(0, len(texts) or 1, CHUNK)]
    values, bounds = zip(*parts, strict=True)
    return np.concatenate(values), np.concatenate(bounds)


def plain_numbers(texts: pd.Index | pd.Series) -> np.ndarray | None:
    """Return the numbers [n] float64 if each text is missing or matches PLAIN, and none is infinite; None otherwise."""
    values = np.empty(len(texts))
    for start in range(0, len(texts), CHUNK):
        part = _as_arrow(texts[start : start + CHUNK])
        try:
            found = pc.cast(part, pa.float64())
        except pa.ArrowInvalid:
            return None
        if not pc.all(pc.is_finite(found)).as_py():
            return None
        values[start : start + CHUNK] = found.to_numpy(zero_copy_only=False)
    return values


def _as_arrow(texts: pd.Index | pd.Series) -> pa.Array:
    array = pa.array(texts, pa.large_string())
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array


def _parse(cells: pd.Index, numbers: Numbers) -> tuple[np.ndarray, np.ndarray]:
    texts = normalized(cells)
    values, bound = np.full(len(texts), np.nan), np.zeros(len(texts), np.int8)
    plain = matches(texts, PLAIN if numbers.has_points else INTEGER)
    values[plain] = _floats(texts.filter(pa.array(plain)))
    infinite = matches(pc.utf8_lower(texts), INFINITE) if not plain.all() else plain
    rest = np.flatnonzero(~plain)
    if not len(rest):
        return values, bound
    found = pc.extract_regex(texts.take(pa.array(rest)), cell(numbers.body(), _optional(numbers)))
    rest, found = rest[found.is_valid().to_numpy(zero_copy_only=False)], found.drop_null()
    part = {
        name: pc.struct_field(found, name) for name in ("below", "open", "sign", "inner", "body", "exponent", "end")
    }
    body = pc.replace_substring(part["body"], numbers.thousands or numbers.other_mark, "")
    body = pc.replace_substring(body, numbers.decimal, ".")
    numbers_found = _floats(pc.binary_join_element_wise(body, part["exponent"], pa.scalar("", pa.large_string())))
    opened, end = _equal(part["open"], "("), part["end"].to_numpy(zero_copy_only=False).astype(str)
    minus = [_equal(part["sign"], "-"), _equal(part["inner"], "-"), end == "-", opened]
    fits = (opened == (end == ")")) & (sum(sign.astype(int) for sign in minus) <= 1)
    values[rest[fits]] = np.where(sum(minus), -numbers_found, numbers_found)[fits]
    below = part["below"].to_numpy(zero_copy_only=False).astype(str)
    lower = np.isin(np.char.array(below).strip().astype(str), ["<", "<=", "≤"])
    upper = np.isin(np.char.array(below).strip().astype(str), [">", ">=", "≥"]) | (end == "+")
    bound[rest[fits]] = (upper.astype(np.int8) - lower.astype(np.int8))[fits]
    if infinite.any():
        values[infinite] = [float(text) for text in texts.filter(pa.array(infinite)).to_pylist()]
    return values, bound


def cell(body: str, affixes: tuple[str, str]) -> str:
    """Return the regular expression of a cell that holds a number, with named groups."""
    prefix, suffix = affixes
    return (
        rf"^(?P<below>(?:[<>]=?|[≤≥])? *)(?P<open>\(?)(?P<sign>[+-]?) *(?P<prefix>{prefix}) *(?P<inner>[+-]?)"
        rf"(?P<body>{body})(?P<exponent>(?:{EXPONENT})?) *(?P<suffix>{suffix})(?P<end>[)+-]?)$"
    )


def _optional(numbers: Numbers) -> tuple[str, str]:
    def either(affix: str) -> str:
        return f"(?:{_quoted(affix)})?" if affix else ""

    return either(numbers.prefix), either(numbers.suffix)


def _quoted(text: str) -> str:
    return "".join(character if character.isalnum() else f"\\x{{{ord(character):x}}}" for character in text)


def _equal(texts: pa.Array, character: str) -> np.ndarray:
    found: np.ndarray = pc.equal(texts, character).to_numpy(zero_copy_only=False)
    return found


def _floats(texts: pa.Array) -> np.ndarray:
    floats: np.ndarray = pc.cast(texts, pa.float64()).to_numpy(zero_copy_only=False)
    return floats
