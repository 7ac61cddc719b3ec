"""Infer from the training table what each column holds, and learn the classes or the scale of the target."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from pandas.api import types as dtypes

from pipeline.core.errors import UserError
from pipeline.core.settings import EPOCHS, ISO, MISSING, Data, Scalar, Task
from pipeline.stages.prepare import date_formats, number_formats
from pipeline.stages.prepare.number_formats import Choice, Written
from pipeline.tables import moments, numbers, reading
from pipeline.tables.numbers import ABOVE, BELOW, Numbers
from pipeline.tables.reading import FAMILIES, PAIRS, TRUTH, Reading
from pipeline.tables.schema import Column, Kind, Target
from pipeline.tables.validation import nearest
from pipeline.tables.values import as_plain, canonical, canonical_value

MAX_INTEGER_CATEGORIES = 10  # an integer column with at most this many values is categorical
MAX_VERSIONS = 50  # numbers with digits after the point that vary, such as 1.9 and 1.10, are categories up to this many
MIN_ROWS_A_LABEL = 2  # with fewer rows per class on average, the target is an id or a measurement
LARGEST_EXACT = 1e15  # integers of 16 digits and more lose digits as float64
MIN_DIGITS = 4  # of most codes that are known by their name
MIN_COUNTED = 10  # rows from which a column can be recognised as a row number

_CODE_NAME = (
    r"zip|zip_?codes?|postal_?codes?|post_?codes?|plz|cep|phones?|tel|telephones?|mobile|fax|ssn|iban|isbn|ean|upc|imei"
    r"|siret|siren|insee|fips"
)
_CODE = re.compile(
    rf"(?i:(^|[\W_])({_CODE_NAME})([\W_]|$))|[a-z](Zip|ZipCode|PostalCode|PostCode|Phone|PhoneNumber|Fax)$"
)
_ID = re.compile(
    r"(?i:^(unnamed: \d+|index|idx|#|no\.?|nr\.?|pk|s\. ?no\.?|sno|lfd\.? ?nr\.?|serial([ _]?(no|number))?"
    r"|(row|record|obs|observation|case)([ _.]?(id|no|nr|num|number|index))?|(.*[\W_])?(id|uid|ids)|id[\W_].*)$)|[a-z]I[dD]$"
)
_NAMELESS = re.compile(r"Unnamed: \d+")

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
    """The distinct texts of a column, trimmed and not empty, with the number of rows of each."""

    def __init__(self, values: pd.Series, words: tuple[str, ...]) -> None:
        codes, texts = reading.distinct(values)
        rows = np.bincount(codes[codes >= 0], minlength=len(texts))
        trimmed = texts.str.strip()
        self.n_padded = int(rows[np.asarray(trimmed != texts) & np.asarray(trimmed != "")].sum())
        counts = pd.Series(rows, trimmed).drop("", errors="ignore")
        self.counts = counts if trimmed.is_unique else counts.groupby(level=0, sort=False).sum()
        self.is_word = reading.is_missing(pd.Index(self.counts.index), words)

    @property
    def all(self) -> pd.Index:
        return self.counts.index

    @cached_property
    def present(self) -> pd.Index:
        """The texts that are no word for a missing value."""
        return self.counts[~self.is_word].index

    @property
    def words(self) -> dict[str, int]:
        return {str(text): int(n) for text, n in self.counts[self.is_word].items()}

    @cached_property
    def written(self) -> Written | None:
        return number_formats.find(self.present) if len(self.present) else None


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
    choices = number_formats.choose(written, data.csv)
    _, _, by = data.split.by.partition(":")
    found: dict[str, Found] = {}
    for name, (values, nested) in plain.items():
        if name == data.target:
            found[name] = _target(values, nested, texts.get(name), choices.get(name), data)
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


def notes(table: pd.DataFrame, found: Mapping[str, Found], target: Target) -> list[str]:
    """List what the user should know about the table, besides the kinds of its columns."""
    said = [line for column in found.values() for line in column.note.split("\n") if line]
    read = found[target.name]
    words = [f"missing: {', '.join(f'{word!r} {n:,}' for word, n in read.words.items())}"] if read.words else []
    if words or read.reason not in ("numbers", "classes", "true or false"):
        said.append(f"{target.name}: {'; '.join([read.reason, *words])}")
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
                raise UserError(_two_numbers(name, choice, texts))
            found = Reading(type="number", numbers=choice.numbers, missing=missing, flags=texts.written.bounds)
            return Found("numeric", "; ".join(filter(None, (reason, _how(texts.written, choice)))), found, words)
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
        whole = _whole(values) if reading.is_number(values) else None
        return ISO if whole is None else date_formats.of_integers(whole, f"{name} time")
    if not len(texts.present):
        return ISO
    if numbers.matches(pa.array(texts.present), numbers.INTEGER).all():
        return date_formats.of_integers(texts.present.to_numpy(np.float64), f"{name} time")
    return _one_format(name, texts)


def _of_text(name: str, values: pd.Series, texts: Texts, choice: Choice | None, data: Data) -> Found:
    """Infer what a column of text holds."""
    words, missing = texts.words, data.missing_words(name)
    if not len(texts.present):
        return _words(texts, data, name)
    if _are_truth_values(texts.present):
        return Found("categorical", "true or false", Reading(type="boolean", missing=missing), words)
    if choice is not None and texts.written is not None:
        if reason := _codes(name, texts.present):
            if _is_id(len(texts.all), int(texts.counts.sum())) and not _CODE.search(name):
                return Found("drop", f"{reason}, with a value of its own in almost every row: an id")
            return _words(texts, data, name, reason)
        if choice.other is not None:
            raise UserError(_two_numbers(name, choice, texts))
        flags = texts.written.words + texts.written.bounds
        rule = Reading(type="number", numbers=choice.numbers, missing=missing, flags=flags)
        cells = reading.read(values, rule).values
        whole = None if flags else _whole(cells, written=texts.present)
        found = _of_numbers(name, cells, whole, rule)
        reason = "; ".join(filter(None, (found.reason, _how(texts.written, choice), _flagged(flags))))
        return replace(found, reason=reason, words=words)
    if moment := _one_format(name, texts):
        what = "dates" if moments.holds(moment)[0] else "times"
        return Found("datetime", f"{what} as {moment}", Reading(type="moment", format=moment, missing=missing), words)
    n_values, n = len(texts.all), int(texts.counts.sum())
    if _is_id(n_values, n):
        reason, almost = f"text with {n_values} different values in {n} rows: an id or free text", _almost(texts)
        return Found("drop", reason, note=f"{name}: {almost}" if almost else "")
    return _words(texts, data, name)


def _is_id(n_values: int, n: int) -> bool:
    return n_values > 50 and n_values > 0.9 * n


def _words(texts: Texts, data: Data, name: str, reason: str | None = None) -> Found:
    """Return a column of words, in which only an empty cell is missing unless data.missing names the column."""
    named = data.named_missing(name)
    rule = Reading(missing=named)
    found = reason or "text"
    if texts.n_padded:
        found += f"; spaces around the text of {texts.n_padded} cells removed"
    notes = [] if named else [_doubtful(name, texts)]
    if reason is None and len(texts.all) > number_formats.MIN_NUMBERS and (almost := _almost(texts)):
        notes.append(f"{name}: {almost}")
    quoted = texts.all.str.fullmatch("'.*'")
    if quoted.any() and quoted.all():
        notes.append(f"{name}: all cells are in quotes, such as {texts.all[0]}: set data.csv.quote")
    return Found("categorical", found, rule, texts.words if named else {}, "\n".join(filter(None, notes)))


def _doubtful(name: str, texts: Texts) -> str:
    """Name the words of a column that could mean missing."""
    doubtful = {text: int(texts.counts[text]) for text in texts.all[reading.is_missing(texts.all, MISSING)]}
    if not doubtful:
        return ""
    shown = ", ".join(f"{text!r} in {n:,} rows" for text, n in list(doubtful.items())[:3])
    listed = ", ".join(map(_in_yaml, doubtful))
    return f"{name}: {shown} read as text; if it means missing, set data.missing: {{{_in_yaml(name)}: [{listed}]}}"


def _in_yaml(text: str) -> str:
    """Write a name or a word so that it can be pasted into params.yaml."""
    plain = re.fullmatch(r"[A-Za-z]\w*", text) and text.lower() not in {*TRUTH, "null", "none"}
    return text if plain else "'" + text.replace("'", "''") + "'"


def _almost(texts: Texts) -> str:
    """Say which few cells keep a column of numbers or dates from being one."""
    cells = numbers.normalized(pa.array(texts.present))
    for pattern in (numbers.PLAIN, r"^[+-]?[0-9]+(,[0-9]+)?$"):
        other = texts.present[~numbers.matches(cells, pattern)]
        if 0 < len(other) <= 0.1 * len(texts.present):
            named = "" if re.search(r"\d", other[0]) else ", or name the word in data.missing"
            return f"{other[0]!r} keeps the column from being numbers: correct the cell{named}"
    if dates := date_formats.almost(texts.present):
        named = "" if re.search(r"\d", dates[1]) else ", or name the word in data.missing"
        return f"{dates[1]!r} keeps the column from being dates as {dates[0]}: correct the cell{named}"
    return ""


def _how(written: Written, choice: Choice) -> str:
    """Describe how the numbers of a column are written, as far as its cells show it, and why they are read so."""
    shown = choice.numbers if written.shows_mark else choice.numbers.model_copy(update={"decimal": "."})
    return "; ".join(filter(None, (shown.shown(), choice.reason)))


def _flagged(flags: tuple[str, ...]) -> str:
    names = {BELOW: "'<' (at most)", ABOVE: "'>' or '+' (at least)"}
    return f"{', '.join(names.get(flag, repr(flag)) for flag in flags)} kept apart by a flag" if flags else ""


def _two_numbers(name: str, choice: Choice, texts: Texts | None) -> str:
    example = texts.written.example if texts and texts.written else ""
    assert choice.other is not None
    first, second = (_shown(numbers.parse(pa.array([example]), each)[0][0]) for each in (choice.numbers, choice.other))
    return f"{name!r}: {example!r} can be {first} or {second}, and no cell proves which: set data.csv.decimal to '.' or ','"


def _one_format(name: str, texts: Texts) -> str | None:
    """Return the one format of dates that fits a column; raises `UserError` if several do."""
    fitting = date_formats.find(texts.present)
    if len(fitting) > 1 and len({tuple(moments.parse(texts.present, each)) for each in fitting}) > 1:
        example = texts.present[0]
        options = " or ".join(f'"{each}"' for each in fitting)
        raise UserError(
            f'{name!r}: {example!r} and all other cells fit {options}: set data.formats: {{{_in_yaml(name)}: "{fitting[0]}"}}'
        )
    return fitting[0] if fitting else None


def _are_truth_values(texts: pd.Index) -> bool:
    """True if the texts are words for true and false, with both words of a pair, other than 1 and 0 alone."""
    words = set(texts.str.lower())
    alike = any(words <= set().union(*family) for family in FAMILIES)
    return alike and not words <= {"1", "0"} and any(words >= set(pair) for pair in PAIRS)


def _codes(name: str, texts: pd.Index) -> str | None:
    """Say why numbers are codes, whose text matters; None for numbers."""
    padded = texts.str.fullmatch(r"0\d+[^\d.,]*")
    if padded.any():
        example = texts[padded][0]
        return f"codes, such as {example!r} with its leading zero"
    if texts.str.fullmatch(r"[+-]?\d{16,}").mean() > 0.5:
        return "codes of 16 digits and more"
    if texts.str.fullmatch(r"\+\d{7,}").all():
        return "phone numbers"
    if (
        _CODE.search(name)
        and not texts.str.contains(r"[.,]").any()
        and (texts.str.count(r"\d") >= MIN_DIGITS).mean() > 0.5
    ):
        return "codes by their name"
    if len(texts) <= MAX_VERSIONS and texts.str.fullmatch(r"\d+\.\d+").all():
        digits = texts.str.extract(r"\.(\d+)$", expand=False)
        padded = digits.str.endswith("0") & (digits.str.len() > 1)
        repeated = len(pd.unique(texts.to_numpy(np.float64))) < len(texts)
        counted = bool((texts[padded].str.extract(r"\.(\d+)$", expand=False) == "10").any()) if padded.any() else False
        if padded.any() and digits.str.len().nunique() > 1 and (repeated or counted):
            return f"versions, such as {texts[padded][0]!r} with its last zero"
    return None


def _of_type(name: str, values: pd.Series, data: Data) -> Found:
    """Infer what a column holds that is not text, from its type and values."""
    if dtypes.is_datetime64_any_dtype(values.dtype):
        return Found("datetime", "dates", Reading(type="moment"))
    if dtypes.is_bool_dtype(values.dtype):
        return Found("categorical", "true or false", Reading(type="boolean"))
    if not reading.is_number(values):
        return Found("categorical", f"{values.dtype} values")
    cells = values.astype("float64")
    whole = _whole(values)
    if whole is not None and len(whole):
        long = np.mean(np.abs(whole) >= LARGEST_EXACT) > 0.5
        if long or (_CODE.search(name) and np.mean(whole >= 10 ** (MIN_DIGITS - 1)) > 0.5):
            reason = "codes of 16 digits and more" if long else "codes by their name"
            if _is_id(values.nunique(), len(whole)) and not _CODE.search(name):
                return Found("drop", f"{reason}, with a value of its own in almost every row: an id")
            return Found("categorical", reason)
    rule = Reading(type="number", missing=data.missing_words(name))
    return _of_numbers(name, reading.read(cells, rule).values, whole, rule)


def _whole(values: pd.Series, written: pd.Index | None = None) -> np.ndarray | None:
    """Return the values that are not missing if they are integers, also if missing ones made them a float column."""
    present = values.dropna()
    as_integers = (
        not written.str.contains(r"[.,eE]").any() if written is not None else dtypes.is_integer_dtype(values.dtype)
    )
    if not as_integers and len(present) == len(values):
        return None
    floats: np.ndarray = present.to_numpy(np.float64)
    return floats if as_integers or bool(len(floats) and (floats % 1 == 0).all()) else None


def _of_numbers(name: str, values: pd.Series, whole: np.ndarray | None, rule: Reading) -> Found:
    """Distinguish dates, categories and row numbers from other numbers; `whole` are the values if they are integers."""
    if whole is None or not len(whole):
        floats = values.to_numpy(np.float64)
        if (
            len(floats)
            and np.isfinite(floats).all()
            and (floats % 1 == 0).all()
            and (reason := _row_number(name, floats, complete=True))
        ):
            return Found("drop", reason, rule)
        return Found("numeric", "numbers", rule)
    if reason := _row_number(name, whole, complete=len(whole) == len(values)):
        return Found("drop", reason, rule, counts_rows=_counts_rows(whole))
    plain = rule.numbers == Numbers(decimal=rule.numbers.decimal)
    if plain and (moment := date_formats.of_integers(whole, name)):
        what = f"{moment} since 1970" if moment in EPOCHS else f"dates as {moment}"
        return Found("datetime", what, Reading(type="moment", format=moment, missing=rule.missing))
    found = pd.unique(whole)
    n_values = len(found)
    if plain and n_values == 2 and set(found) == {0.0, 1.0} and not rule.flags:
        return Found("categorical", "true or false, as 1 and 0", Reading(type="boolean", missing=rule.missing))
    if n_values <= MAX_INTEGER_CATEGORIES:
        return Found("categorical", f"whole numbers with only {n_values} values", rule)
    return Found("numeric", "numbers", rule, counts_rows=_counts_rows(whole))


def _counts_rows(whole: np.ndarray) -> bool:
    return len(whole) >= MIN_COUNTED and bool((np.diff(whole) == 1).all())


def _row_number(name: str, whole: np.ndarray, *, complete: bool) -> str:
    """Say why a column without information is one: it is nameless, or named like an id, and numbers the rows."""
    if not complete or len(whole) < MIN_COUNTED or not _ID.search(name):
        return ""
    kind = "a nameless column" if _NAMELESS.fullmatch(name) else "an id by its name"
    if _counts_rows(whole):
        return f"{kind} that counts the rows"
    n_values = len(pd.unique(whole))
    if n_values < len(whole):
        return ""
    if bool((np.diff(whole) > 0).all() or (np.diff(whole) < 0).all()):
        return f"{kind}, with sorted values that never repeat"
    return f"{kind}, with a value of its own in every row" if kind.startswith("an id") else ""


def _target(values: pd.Series, nested: str | None, texts: Texts | None, choice: Choice | None, data: Data) -> Found:
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
        whole = _whole(values) if reading.is_number(values) else None
        long = whole is not None and len(whole) and np.abs(whole).max() >= LARGEST_EXACT
        return Found(
            "categorical", "classes", Reading(type="number" if reading.is_number(values) and not long else "text")
        )
    texts = Texts(values, named)
    words, notes = texts.words, [] if named else [_doubtful(name, texts)]
    if texts.n_padded:
        notes.append(f"{name}: spaces around {texts.n_padded:,} labels removed")
    folded = texts.present.str.lower()
    if folded.has_duplicates:
        variants = texts.present[folded == folded[folded.duplicated()][0]]
        notes.append(f"{name}: the classes {' and '.join(map(repr, variants))} differ only in capital letters")
    if _are_truth_values(texts.present) and len(texts.present) == 2:
        rule = Reading(type="boolean", missing=named)
    elif (
        len(texts.present)
        and numbers.matches(pa.array(texts.present), numbers.PLAIN).all()
        and not _codes("", texts.present)
    ):
        rule = Reading(type="number", missing=named)
    else:
        rule = Reading(missing=named)
    return Found("categorical", "classes", rule, words, "\n".join(filter(None, notes)))


def _measured(values: pd.Series, texts: Texts | None, choice: Choice | None, data: Data) -> Found:
    name = data.target
    if texts is None and reading.is_number(values):
        return Found("numeric", "numbers", Reading(type="number"))
    if texts is not None and not len(texts.present):
        return Found("numeric", "numbers", Reading(type="number", missing=data.missing_words(name)), texts.words)
    if texts is not None and choice is not None and texts.written is not None:
        if choice.other is not None:
            raise UserError(_two_numbers(name, choice, texts))
        if not texts.written.words and not texts.written.bounds:
            rule = Reading(type="number", numbers=choice.numbers, missing=data.missing_words(name))
            reason = "; ".join(filter(None, ("numbers", _how(texts.written, choice))))
            return Found("numeric", reason, rule, texts.words)
        other = (*texts.written.words, *(f"numbers with {bound}" for bound in texts.written.bounds))
        raise UserError(
            f"data.target: {name!r} must hold numbers, got {', '.join(map(repr, other))} too: see data.missing"
        )
    if texts is not None and (almost := _almost(texts)):
        raise UserError(f"data.target: {name!r}: {almost}")
    sample = texts.present if texts is not None else canonical(values.dropna())
    raise UserError(f"data.task is regression, but {name!r} holds {_sample(pd.Series(sample))}: binary or multiclass?")


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
            raise UserError(f"{where} is {_shown(floats[0])} in every row; there is nothing to learn")
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
            f"data.task is binary, but {name!r} has {n_values} classes ({_sample(canonical(cells))}): multiclass?"
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


def _sample(values: pd.Series) -> str:
    seen = [repr(str(value)) for value in pd.unique(values)[:4]]
    return ", ".join(seen[:3]) + (", …" if len(seen) > 3 else "")


def _shown(number: float) -> str:
    return str(int(number)) if number % 1 == 0 and abs(number) < LARGEST_EXACT else repr(float(number))


def learn_columns(table: pd.DataFrame, found: Mapping[str, Found], train: np.ndarray, data: Data) -> tuple[Column, ...]:
    """Learn from the rows `train` which columns vary, their categories and missing values."""
    return tuple(
        _learn_column(table[name], found[str(name)], train, data) for name in table.columns if name != data.target
    )


def _learn_column(whole: pd.Series, found: Found, train: np.ndarray, data: Data) -> Column:
    name = str(whole.name)

    def column(kind: Kind, reason: str, **rest: Any) -> Column:
        words = dict(found.words or {})
        return Column(name=name, kind=kind, reason=reason, reading=found.reading, words=words, **rest)

    if found.kind == "drop":
        return column("drop", found.reason)
    if data.split.by == f"group:{name}":
        return column("drop", "the group of the split: new rows have other groups")
    cells = reading.read(whole, found.reading)
    values = cells.values.iloc[train]
    present, missing = values.dropna(), int(values.isna().sum())
    if name not in data.kinds and name not in data.formats:
        if present.empty and not any(flags[train].any() for flags in cells.flags.values()):
            return column("drop", "missing in every training row", missing=missing)
        if present.nunique() == 1 and not missing and not cells.flags:
            return column(
                "drop", f"constant in the training rows: {canonical_value(present.iloc[0])[:40]}", missing=missing
            )
    rest: dict[str, Any] = {"missing": missing, "examples": _examples(whole.iloc[train], values, found)}
    if found.kind == "categorical":
        rest["categories"] = _categories(values, data)
    if found.kind == "datetime":
        has_date, has_time = moments.holds(found.reading.format)
        plain, _ = as_plain(whole)
        moment = (plain if dtypes.is_datetime64_any_dtype(plain.dtype) else cells.values).dropna()
        midnight = not has_time or bool((moment.dt.normalize() == moment).all())
        rest["parts"] = ("date",) * has_date + ("time",) * (not midnight or not has_date)
    return column(found.kind, found.reason, **rest)


def _categories(values: pd.Series, data: Data) -> tuple[str, ...]:
    counts = canonical(values.dropna()).value_counts(sort=False)
    ordered = sorted(((-int(times), str(value)) for value, times in counts.items() if times >= data.min_count))
    return tuple(value for _, value in ordered[: data.max_categories])


def _examples(cells: pd.Series, values: pd.Series, found: Found) -> tuple[tuple[str, str], ...]:
    """Show two cells, and what they were read as where that is not the text itself."""
    rows = np.flatnonzero(values.notna().to_numpy())
    shown: dict[str, str] = {}
    for row in rows[:: max(1, len(rows) // 50)][:50]:
        before = canonical_value(cells.iloc[row])[:40]
        after = values.iloc[row]
        text = canonical_value(after)
        if found.reading.type == "number" and numbers.matches(pa.array([before]), numbers.PLAIN)[0]:
            text = before
        if isinstance(after, pd.Timestamp):
            text = after.strftime("%Y-%m-%d %H:%M:%S" if moments.holds(found.reading.format)[0] else "%H:%M:%S")
        shown[before] = text[:40]
    different = {before: after for before, after in shown.items() if before.lower() != after}
    if found.reading.type == "moment":
        different = {before: after.removesuffix(" 00:00:00") for before, after in shown.items()}
    return tuple((different or shown).items())[:2]
