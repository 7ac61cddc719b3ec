"""Find the format of dates and times from all cells of a column."""

import re
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from pipeline.core.settings import EPOCHS, ISO, QUARTER
from pipeline.tables import moments

MOST = 0.9  # share of cells that make the others a mistake
EXAMPLES = 200  # cells that must fit a format before all are parsed
_UNITS = {"s": "secs", "ms": "millis", "us": "micros", "ns": "nanos"}
_SLASHED = r"\d{2}/\d{2}/\d{4}"
_MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
_ISO = r"(?:0001|1[5-9]\d\d|2[01]\d\d|9999)-\d{2}(-\d{2})?([T ]\d{2}:?\d{2}.*)?|\d{8}T\d{4,6}.*"
_WEEKDAY = re.compile(r"^(mon|tues?|wed(?:nes)?|thu(?:rs)?|fri|sat(?:ur)?|sun)(day)?\b", re.IGNORECASE)
_CLOCK = re.compile(
    r"(?<!\d)(\d{1,2})([:.h])(\d{2})(?:([:.])(\d{2})([.,]\d{1,6})?)?(\s?[ap]\.?m(?:\.|\b))?", re.IGNORECASE
)
_HOUR = re.compile(r"(?<!\d)\d{1,2}(\s?)([ap]\.?m(?:\.|\b))", re.IGNORECASE)
_COLONS = re.compile(r"\d{4}:\d{2}:\d{2}(?!\d)")  # the date of a photograph
_INNER_OFFSET = re.compile(r"(?<=\d) [+-]\d{4}(?= \d{4}$)")
_OFFSET = re.compile(r"(?<![A-Z])\s?[+-]\d{2}:?\d{2}$")
_ZONE = re.compile(r" ([A-Za-z]+/[A-Za-z_/]+|[A-Z]{1,5}|(?:GMT|UTC)[+-]\d{1,2}(?::?\d{2})?)$")


def find(texts: pd.Index) -> list[str]:
    """Return the formats that fit every distinct cell; several if nothing proves the order of day and month."""
    texts = texts.str.strip()
    first = texts[:EXAMPLES]
    if first.str.fullmatch(_ISO).all() and _fits(texts, ISO):
        return [ISO]
    if _fits(first, QUARTER) and _fits(texts, QUARTER):
        return [QUARTER]
    for example in (min(first, key=len), max(first, key=len)):
        for formats in _candidates(example):
            fitting = [name for name in formats if _fits(first, name) and _fits(texts, name)]
            if fitting:
                return [year_first] if (year_first := _year_first(texts, fitting)) else fitting
    return []


def in_two_orders(texts: pd.Index) -> bool:
    """True if each cell is a date with the day or the month first, and neither order fits all."""
    texts = texts.str.strip()
    if not texts[:EXAMPLES].str.fullmatch(_SLASHED).all() or not texts.str.fullmatch(_SLASHED).all():
        return False
    day_first = moments.parse(texts, "%d/%m/%Y").notna()
    return bool((day_first | moments.parse(texts, "%m/%d/%Y").notna()).all())


def almost(texts: pd.Index) -> tuple[str, str] | None:
    """Return a format that fits nine of ten distinct cells, and the first that it does not fit."""
    first = texts.str.strip()[:EXAMPLES]
    candidates = [[ISO]] if first.str.fullmatch(_ISO).mean() >= MOST else _candidates(first.to_series().mode()[0])
    for name in (name for formats in candidates for name in formats):
        wrong = np.asarray(moments.parse(texts, name).isna())
        if 0 < wrong.sum() <= (1 - MOST) * len(texts):
            return name, str(texts[wrong][0])
    return None


def _year_first(texts: pd.Index, fitting: list[str]) -> str | None:
    """Return the format with the year first if it fits too and the first numbers vary less than the last ones."""
    found = re.fullmatch(r"%[dm]([/.-])%[dm][/.-]%y(.*)", fitting[0])
    if found is None:
        return None
    parts = texts.str.extract(r"^(\d+)\D+\d+\D+(\d+)")
    name = f"%y{found[1]}%m{found[1]}%d{found[2]}"
    return name if parts[0].nunique() < parts[1].nunique() and _fits(texts, name) else None


def of_integers(values: np.ndarray, name: str, n_rows: int = 0) -> str | None:
    """Return the format of whole numbers that are dates: 20180102 with or without a time, or counts since 1970.

    `values` are the distinct ones of `n_rows`.
    """
    smallest, largest = values.min(), values.max()
    is_month = re.search(r"(?i)(month|period|date|(^|_)y+_?m+)($|[\W_])", name)
    months = [("%Y%m", 6)] if is_month else []  # other numbers of six digits are too common
    for compact, digits in (*months, ("%Y%m%d", 8), ("%Y%m%d%H%M", 12), ("%Y%m%d%H%M%S", 14)):
        unit = 10 ** (digits - 4)
        if smallest >= 1900 * unit and largest < 2101 * unit:
            texts = pd.Index(pd.unique(values).astype(np.int64).astype(str))
            if _fits(texts, compact):
                return compact
    named = re.search(
        r"(^|[\W_]|[a-z](?=[A-Z]))(?i:(date)?time|date|epoch|unix|timestamp|ts|at|when|created|updated|modified)([\W_\d]|ms$|$)",
        name,
    )
    distinct = len(values) > 0.9 * n_rows
    for epoch, unit in EPOCHS.items():
        telling = named or re.search(rf"_({unit}|{_UNITS[unit]})$", name)
        # Without a telling name, only milliseconds of a few decades, of which hardly any repeats, are taken for dates:
        # other numbers and codes have as many digits.
        scale = {"s": 1, "ms": 1e3, "us": 1e6, "ns": 1e9}[unit]
        years = (1980, 2100) if telling else (2000, 2040)
        low, high = (pd.Timestamp(year=year, month=1, day=1).timestamp() * scale for year in years)
        if low <= smallest and largest < high and (telling or (unit == "ms" and distinct)):
            return epoch
    return None


def _fits(texts: pd.Index, name: str) -> bool:
    try:
        return not moments.parse(texts, name).isna().any()
    except ValueError:  # a format in which two parts contradict each other
        return False


def _candidates(example: str) -> Iterator[list[str]]:
    """Yield groups of formats with the shape of an example; a later group matters only if no earlier one fits."""
    text, before = re.sub(r"(?i)\bsept\b", "Sep", example), ""
    if found := _INNER_OFFSET.search(text):  # as git and Java write it
        for formats in _candidates(text[: found.start()] + text[found.end() :]):
            yield [name.replace(" %Y", " %z %Y") for name in formats]
        return
    if re.search("[A-Za-z]{3}", text):
        text = re.sub(r"(?i)(?<=\d)(?:st|[nr]d|th)\b", "", text)
    if found := _WEEKDAY.match(text):
        before = "%A" if found[2] else "%a"
        text = text[found.end() :]
    zone = ""
    if ":" in text and (found := _OFFSET.search(text)):
        zone, text = (" %z" if found[0].startswith(" ") else "%z"), text[: found.start()]
    elif (found := _ZONE.search(text)) and moments.time_zone(found[1]) is not None:
        zone, text = moments.ZONE, text[: found.start()]
    clocks = [("", "", text)]
    date_end = found.end() if (found := _COLONS.match(text)) else 0
    if (found := _HOUR.search(text)) and not _CLOCK.search(text):
        clocks.append((text[: found.start()], f"%I{found[1]}%p", text[found.end() :]))
    for found in _CLOCK.finditer(text, date_end):
        if found[2] == "." and found.end() - found.start() < len(text) and ":" in text:
            continue
        clock = ("%I" if found[7] else "%H") + found[2] + "%M" + (f"{found[4]}%S" if found[4] else "")
        clock += (f"{found[6][0]}%f" if found[6] else "") + (
            re.sub(r"[apAP]\.?[mM]\.?", "%p", found[7]) if found[7] else ""
        )
        clocks.append((text[: found.start()], clock, text[found.end() :]))
        if found[2] == ":":
            clocks = clocks[-1:]
            break
    first: list[str] = []
    rest: list[str] = []
    for head, clock, tail in clocks:
        if clock and not head.strip() and not tail.strip():
            first.append(before + head + clock + tail + zone)
            continue
        for sure, day in _days(head + "\0" * bool(clock) + tail):
            (first if sure else rest).append(before + day.replace("\0", clock) + zone)
    yield first
    yield rest


def _days(text: str) -> Iterator[tuple[bool, str]]:
    """Yield formats of the date in a text, with whether the order of its parts is a usual one."""
    tokens = re.findall(r"\d+|[A-Za-z]+|[^\dA-Za-z]+", text)
    places = [
        k for k, token in enumerate(tokens) if token.isdigit() or (token[:3].lower() in _MONTHS and token.isalpha())
    ]
    parts = [tokens[k] for k in places]
    if any(token.isalpha() and k not in places and token not in ("T", "UTC", "GMT") for k, token in enumerate(tokens)):
        return
    for sure, order in _orders(parts, tokens):
        written = list(tokens)
        for k, directive in zip(places, order, strict=True):
            written[k] = directive
        yield sure, "".join(written)


def _orders(parts: list[str], tokens: list[str]) -> Sequence[tuple[bool, tuple[str, ...]]]:
    """List the directives for the parts of a date; with points, the day comes before the month."""
    dotted = "." in tokens
    sizes = ["b" if part.isalpha() else "Y" if len(part) == 4 else "n" if len(part) <= 2 else "" for part in parts]
    names = [("%b", "%B") if len(part) == 3 else ("%B",) for part in parts if part.isalpha()]
    match "".join(sizes):
        case "nnY":
            usual, other = [("%d", "%m", "%Y")], [("%m", "%d", "%Y")]
            return [(True, o) for o in usual] + [(not dotted, o) for o in other]
        case "Ynn":
            return [(True, ("%Y", "%m", "%d"))]
        case "nnn":
            return [(True, ("%d", "%m", "%y")), (not dotted, ("%m", "%d", "%y")), (False, ("%y", "%m", "%d"))]
        case "nY":
            return [(True, ("%m", "%Y"))]
        case "Yn":
            return [(True, ("%Y", "%m"))]
        case "bn" if " " in tokens and int(parts[1]) <= 31:
            return []  # January the tenth, or January 2010
        case "bnY" | "nbY" | "Ybn" | "bY" | "Yb" | "nbn" | "bnn" | "bn" as shape:
            years = {"nbn": ("%d", "b", "%y"), "bnn": ("b", "%d", "%y"), "bn": ("b", "%y")}
            plain = years.get(shape) or tuple({"b": "b", "n": "%d", "Y": "%Y"}[size] for size in shape)
            return [(True, tuple(month if part == "b" else part for part in plain)) for month in names[0]]
    return []
