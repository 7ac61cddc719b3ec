"""Dates and times as people write them."""

import re
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np
import pandas as pd

from pipeline.core.settings import EPOCHS, ISO, QUARTER

ZONE = " %Z"  # at the end of a format: the name of a time zone, which pandas cannot parse

YEAR_9000 = 2.2e17  # in microseconds since 1970
_DATE, _TIME = re.compile(r"%[Yymdbj]"), re.compile(r"%[HI]")
_QUARTER = (
    r"^(?:(?P<year>\d{4})[ /-]?[Qq](?P<quarter>[1-4])"
    r"|(?:[Qq](?P<quarter2>[1-4])|(?P<quarter3>[1-4])[Qq])[ /'-]?(?P<year2>\d{4}|\d{2}))$"
)

# Hours from UTC of the abbreviations in RFC 822 and of those in Europe.
_ZONES = {
    "UTC": 0, "GMT": 0, "UT": 0, "Z": 0, "EST": -5, "EDT": -4, "CST": -6, "CDT": -5, "MST": -7, "MDT": -6, "PST": -8,
    "PDT": -7, "WET": 0, "WEST": 1, "BST": 1, "CET": 1, "CEST": 2, "MEZ": 1, "MESZ": 2, "EET": 2, "EEST": 3, "MSK": 3,
}  # fmt: skip


def holds(moment_format: str) -> tuple[bool, bool]:
    """Return whether a format holds a date, and whether it may hold a time of day."""
    if moment_format in (ISO, *EPOCHS):
        return True, True
    if moment_format == QUARTER:
        return True, False
    return bool(_DATE.search(moment_format)), bool(_TIME.search(moment_format))


def parse(texts: pd.Index, moment_format: str) -> pd.Series:
    """Parse dates and times as UTC; NaT for a text of another format. Two-digit years are 1969 to 2068."""
    cells = pd.Series(texts, dtype="str").reset_index(drop=True).str.strip()
    if moment_format in EPOCHS:
        counts = pd.to_numeric(cells, errors="coerce").to_numpy(np.float64)
        microseconds = counts * {"s": 1e6, "ms": 1e3, "us": 1, "ns": 1e-3}[EPOCHS[moment_format]]
        known = np.abs(microseconds) < YEAR_9000
        whole = np.where(known, microseconds.round(), 0).astype(np.int64).astype("datetime64[us]")
        return pd.Series(whole).where(known).dt.tz_localize("UTC")
    if moment_format == QUARTER:
        found = cells.str.extract(_QUARTER)
        quarter = found["quarter"].fillna(found["quarter2"]).fillna(found["quarter3"])
        year = found["year"].fillna(found["year2"].where(found["year2"].str.len() != 2, _century(found["year2"])))
        month = (pd.to_numeric(quarter) * 3 - 2).astype("Int64").astype("str")
        return _utc(pd.to_datetime(year + "-" + month, format="%Y-%m", errors="coerce", utc=True))
    if moment_format == ISO:
        return _utc(pd.to_datetime(cells, format=ISO, errors="coerce", utc=True))
    if "%b" in moment_format or "%B" in moment_format:
        cells = cells.str.replace(r"(?i)\bsept\b", "Sep", regex=True)
        cells = cells.str.replace(r"(?i)(?<=\d)(?:st|[nr]d|th)\b", "", regex=True)
    if "%p" in moment_format:
        cells = cells.str.replace(r"(?i)\b([ap])\.m\.", r"\1m", regex=True)
    if not moment_format.endswith(ZONE):
        return _utc(_strptime(cells, moment_format))
    parts = cells.str.rsplit(" ", n=1, expand=True).reindex(columns=[0, 1])
    naive = _strptime(parts[0], moment_format.removesuffix(ZONE)).dt.tz_localize(None)
    moments = pd.Series(pd.NaT, cells.index, dtype="datetime64[us, UTC]")
    for name in parts[1].dropna().unique():
        rows = parts[1] == name
        if (zone := time_zone(name)) is not None:
            local = naive[rows].dt.tz_localize(zone, ambiguous="NaT", nonexistent="NaT")
            moments[rows] = _utc(local.dt.tz_convert("UTC"))
    return moments


def time_zone(name: str) -> ZoneInfo | str | None:
    """Return the zone of an abbreviation, such as CET, or of a name, such as Europe/Berlin; None if unknown."""
    if name.upper() in _ZONES:
        return f"{_ZONES[name.upper()]:+03d}:00"
    if found := re.fullmatch(r"(?:GMT|UTC)([+-])(\d{1,2})(?::?(\d{2}))?", name, re.IGNORECASE):
        return f"{found[1]}{int(found[2]):02}:{found[3] or '00'}"
    try:
        return ZoneInfo(name) if "/" in name else None
    except (ZoneInfoNotFoundError, ValueError):
        return None


def _century(years: pd.Series) -> pd.Series:
    """Return two-digit years with four digits."""
    return (pd.to_numeric(years).add(31) % 100 + 1969).astype("Int64").astype("str")


def _strptime(cells: pd.Series, moment_format: str) -> pd.Series:
    parsed: pd.Series = pd.to_datetime(cells, format=moment_format, errors="coerce", utc=True)
    return parsed


def _utc(moments: pd.Series) -> pd.Series:
    """Return moments with the resolution and the zone that all dates of a table have."""
    return moments.astype("datetime64[us, UTC]")
