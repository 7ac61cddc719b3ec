"""What the texts of a column show: its words for a missing value, how its numbers and dates are written, codes."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from pipeline.core.errors import UserError
from pipeline.core.settings import MISSING
from pipeline.stages.prepare import date_formats, number_formats
from pipeline.stages.prepare.number_formats import SAMPLE, Choice, Written
from pipeline.tables import numbers, reading
from pipeline.tables.reading import FAMILIES, PAIRS, TRUTH, Reading
from pipeline.tables.schema import Kind

MOST_TRUTH_VALUES = 50  # spellings of true and false in one column
MAX_VERSIONS = 50  # numbers with digits after the point that vary, such as 1.9 and 1.10, are categories up to this many
LARGEST_EXACT = 1e15  # integers of 16 digits and more lose digits as float64
SOME = 0.1  # share of rows whose long numbers make codes of the column
LONG_CODES = "codes of 16 digits and more"
ID_SHARE = 0.9  # of different texts among the rows of a column of ids
MIN_DIGITS = 4  # of most codes that are known by their name

_CODE_NAME = (
    r"zip\d?|zip_?codes?|postal_?codes?|post_?codes?|codes?_postal|code postal|plz|postleitzahl|npa|cep|cap|eircode|pin_?code"
    r"|phones?|tel|telephones?|telefon\w*|mobile?|handy|fax|ssn|npi|iban|isbn|ean|upc|imei|siret|siren|insee|fips"
)
CODE = re.compile(
    rf"(?i:(^|[\W_])({_CODE_NAME})([\W_]|$))|[a-z](Zip|ZipCode|PostalCode|PostCode|Phone|PhoneNumber|Fax)$"
)

TEXT = Reading()


@dataclass(frozen=True)
class Found:
    """What a column holds, as decided from all rows of the training table."""

    kind: Kind
    reason: str
    reading: Reading = TEXT
    words: Mapping[str, int] | None = None  # texts read as missing, and in how many rows
    note: str = ""  # something that the user should know
    counts_rows: bool = False


class Texts:
    """The texts of a column, trimmed and not empty, with the number of rows of each.

    They are distinct, unless most of them are anyway: then each has one row.
    """

    def __init__(self, values: pd.Series, words: tuple[str, ...]) -> None:
        codes, texts = reading.distinct(values)
        if codes is None:
            texts = texts.dropna() if texts.hasnans else texts
            n_rows = np.broadcast_to(1, len(texts))
        else:
            n_rows = np.bincount(codes[codes >= 0], minlength=len(texts))
        trimmed = texts.str.strip()
        self.all: pd.Index = texts
        padded, kept = np.asarray(trimmed != texts), np.asarray(trimmed != "")
        self.n_padded = int(n_rows[padded & kept].sum())
        # The texts as they are share the memory of the table.
        changed = padded.any() or not kept.all()
        self.all, self.n_rows = (trimmed[kept], n_rows[kept]) if changed else (self.all, n_rows)
        if codes is not None and not self.all.is_unique:
            places, self.all = pd.factorize(self.all)
            self.n_rows = np.bincount(places, self.n_rows).astype(int)
        self.is_word = reading.is_missing(self.all, words)

    @cached_property
    def present(self) -> pd.Index:
        """The texts that are no word for a missing value."""
        return self.all[~self.is_word] if self.is_word.any() else self.all

    @property
    def words(self) -> dict[str, int]:
        return self.count(self.is_word)

    def count(self, chosen: np.ndarray) -> dict[str, int]:
        """Return the number of rows of each of the chosen texts, a mask."""
        rows = pd.Series(self.n_rows[chosen], self.all[chosen]).groupby(level=0, sort=False).sum()
        return {str(text): int(n) for text, n in rows.items()}

    @cached_property
    def are_ids(self) -> bool:
        """True if almost every row has a text of its own."""
        n, n_rows = len(self.all), int(self.n_rows.sum())
        return n > 50 and n > ID_SHARE * n_rows and self.all.nunique() > ID_SHARE * n_rows

    @cached_property
    def written(self) -> Written | None:
        return number_formats.find(self.present) if len(self.present) else None


def doubtful(name: str, texts: Texts) -> str:
    """Name the words of a column that could mean missing."""
    words = texts.count(reading.is_missing(texts.all, MISSING))
    if not words:
        return ""
    seen = ", ".join(f"{text!r} in {n:,} rows" for text, n in list(words.items())[:3])
    listed = ", ".join(map(in_yaml, words))
    return f"{name}: {seen} read as text; if it means missing, set data.missing: {{{in_yaml(name)}: [{listed}]}}"


def in_yaml(text: str) -> str:
    """Write a name or a word so that it can be pasted into params.yaml."""
    plain = re.fullmatch(r"[A-Za-z]\w*", text) and text.lower() not in {*TRUTH, "null", "none"}
    return text if plain else "'" + text.replace("'", "''") + "'"


def nearly(texts: Texts) -> str:
    """Say what keeps a column of numbers or dates from being one: several units, or a few cells."""
    if units := number_formats.units(texts.present):
        return f"numbers in different units, {' and '.join(map(repr, units))}, are read as text: use one unit"
    cells = numbers.normalized(texts.present)
    for pattern in (numbers.PLAIN, r"^[+-]?[0-9]+(,[0-9]+)?$"):
        other = texts.present[~numbers.matches(cells, pattern)]
        if 0 < len(other) <= 0.1 * len(texts.present):
            named = "" if re.search(r"\d", other[0]) else ", or name the word in data.missing"
            return f"{other[0]!r} keeps the column from being numbers: correct the cell{named}"
    if date_formats.in_two_orders(texts.present):
        return "dates with the day first and others with the month first are read as text: use one order"
    if dates := date_formats.almost(texts.present):
        named = "" if re.search(r"\d", dates[1]) else ", or name the word in data.missing"
        return f"{dates[1]!r} keeps the column from being dates as {dates[0]}: correct the cell{named}"
    return ""


def how_written(written: Written, choice: Choice) -> str:
    """Describe how the numbers of a column are written, as far as its cells show it, and why they are read so."""
    format_ = choice.numbers if written.shows_mark else choice.numbers.model_copy(update={"decimal": "."})
    return "; ".join(filter(None, (format_.shown(), choice.reason)))


def two_readings(name: str, choice: Choice, texts: Texts | None) -> str:
    example = texts.written.example if texts and texts.written else ""
    assert choice.other is not None
    first, second = (shown(numbers.parse(pd.Index([example]), each)[0][0]) for each in (choice.numbers, choice.other))
    return f"{name!r}: {example!r} can be {first} or {second}, and no cell proves which: set data.csv.decimal to '.' or ','"


def moment_format(name: str, texts: Texts) -> str | None:
    """Return the one format of dates that fits a column; raises `UserError` if several do."""
    fitting = date_formats.find(texts.present)
    if len(fitting) > 1:
        example = texts.present[0]
        options = " or ".join(f'"{each}"' for each in fitting)
        raise UserError(
            f'{name!r}: {example!r} and all other cells fit {options}: set data.formats: {{{in_yaml(name)}: "{fitting[0]}"}}'
        )
    return fitting[0] if fitting else None


def are_truth_values(texts: pd.Index) -> bool:
    """True if the texts are words for true and false, with both words of a pair, other than 1 and 0 alone."""
    words = set(texts[:MOST_TRUTH_VALUES].str.lower())
    alike = any(words <= set().union(*family) for family in FAMILIES)
    few = len(texts) < MOST_TRUTH_VALUES
    return few and alike and not words <= {"1", "0"} and any(words >= set(pair) for pair in PAIRS)


def why_codes(name: str, texts: pd.Index, n_rows: np.ndarray) -> str | None:
    """Say why numbers are codes, whose text matters; None for numbers. `n_rows` have each of the texts."""
    padded = texts[texts.str.startswith("0")]
    padded = padded[padded.str.fullmatch(r"0\d+[^\d.,]*")]
    if len(padded):
        return f"codes, such as {padded[0]!r} with its leading zero"
    first = texts[:SAMPLE]
    if first.str.fullmatch(r"[+-]?\d{16,}").any() and _share(texts.str.fullmatch(r"[+-]?\d{16,}"), n_rows) > SOME:
        return LONG_CODES
    if first.str.fullmatch(r"\+\d{7,}").all() and texts.str.fullmatch(r"\+\d{7,}").all():
        return "phone numbers"
    if (
        CODE.search(name)
        and not texts.str.contains(r"[.,]").any()
        and _share(texts.str.count(r"\d") >= MIN_DIGITS, n_rows) > 0.5
    ):
        return "codes by their name"
    if len(texts) <= MAX_VERSIONS and texts.str.fullmatch(r"\d+\.\d+").all():
        digits = texts.str.extract(r"\.(\d+)$", expand=False)
        trailing = digits.str.endswith("0") & (digits.str.len() > 1)
        repeated = len(pd.unique(texts.to_numpy(np.float64))) < len(texts)
        counted = (
            bool((texts[trailing].str.extract(r"\.(\d+)$", expand=False) == "10").any()) if trailing.any() else False
        )
        if trailing.any() and digits.str.len().nunique() > 1 and (repeated or counted):
            return f"versions, such as {texts[trailing][0]!r} with its last zero"
    return None


def _share(chosen: np.ndarray, n_rows: np.ndarray) -> float:
    return float(n_rows[np.asarray(chosen, bool)].sum() / n_rows.sum())


def sampled(values: pd.Series) -> str:
    seen = [repr(str(value)) for value in pd.unique(values)[:4]]
    return ", ".join(seen[:3]) + (", …" if len(seen) > 3 else "")


def shown(number: float) -> str:
    return str(int(number)) if number % 1 == 0 and abs(number) < LARGEST_EXACT else repr(float(number))
