"""Describe in one HTML page what was read from the table."""

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup

from pipeline.core.errors import printable
from pipeline.core.secrets import without_secret
from pipeline.core.settings import Data
from pipeline.stages.prepare.preparation import KINDS, Domain, Prepared
from pipeline.tables import moments, reading
from pipeline.tables.numbers import ABOVE, BELOW
from pipeline.tables.prepared import SPLITS
from pipeline.tables.schema import Column, Target

DATA_CARD = Path("reports/data.html")
MAX_COLUMNS, MAX_CLASSES, MAX_CATEGORIES, MAX_WORDS, MAX_NOTES, N_BARS = 200, 20, 10, 10, 100, 20
MAX_TEXT = 240  # characters of any text on the page
MAX_CELL = 60  # characters of a name, a cell or a category
DAY = 86_400_000_000  # microseconds

KIND_NAMES = {"datetime": "date or time", "drop": "set aside"}
ROW_NAMES = {
    "read": "read",
    "target_missing": "without a target",
    "duplicates": "repeat another row",
    "totals": "total at the end",
}


@dataclass(frozen=True)
class Bar:
    """A count with its share of all rows; `width` is the percentage of the largest bar beside it."""

    label: str
    n: int
    share: str
    width: float


@dataclass(frozen=True)
class Bars:
    """The most frequent values, and how many others there are, in how many rows."""

    bars: Sequence[Bar]
    n_others: int = 0
    n_other_rows: int = 0


@dataclass(frozen=True)
class Histogram:
    """At most N_BARS bars between two values; `outside` is how many values beyond them the outer bars include."""

    bars: Sequence[Bar]
    low: str
    high: str
    outside: int = 0


@dataclass(frozen=True)
class Picture:
    """The distribution of values: named figures, such as the median, and a histogram or bars."""

    figures: Sequence[tuple[str, str]] = ()
    histogram: Histogram | None = None
    top: Bars | None = None


@dataclass(frozen=True)
class Entry:
    """What the page tells about a column."""

    column: Column
    kind: str
    n_missing: int
    missing: str  # share of the rows
    flags: Sequence[tuple[str, str, int]]  # text, meaning, rows
    converted: bool
    picture: Picture


def render(prepared: Prepared, data: Data) -> str:
    """Format the data card as a self-contained HTML page; the same input gives the same text.

    Distributions are of the rows in a split; those of columns are of the first table alone.
    """
    schema, source = prepared.schema, prepared.domains["source"]
    shared = [domain for domain in prepared.domains.values() if domain.features is source.features]
    rows = np.sort(np.concatenate([part for domain in shared for part in domain.splits.values()]))
    shown = _most_interesting(schema.columns)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True, undefined=jinja2.StrictUndefined, finalize=_plain, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"cell": lambda text: _cut(text, MAX_CELL), "count": lambda n: f"{n:,}"}
    return environment.get_template("data_card.html").render(
        schema=schema,
        task=_task(schema.target),
        source=PurePosixPath(without_secret(data.source).rstrip("/")).name,
        kinds=[(KIND_NAMES.get(kind, kind), n) for kind in KINDS if (n := len(schema.of_kind(kind)))],
        rows=_row_counts(schema.rows, len(rows), data),
        domains=[_splits(name, schema.rows) for name in prepared.domains],
        targets=[_target(name, prepared) for name in prepared.domains],
        n_rows=len(rows),
        entries=[_entry(column, source, rows) for column in shown],
        n_columns=len(schema.columns),
        notes=schema.notes[:MAX_NOTES],
        n_more_notes=max(0, len(schema.notes) - MAX_NOTES),
        has_second=len(shared) < len(prepared.domains),
        max_words=MAX_WORDS,
    )


def _task(target: Target) -> str:
    named = {"binary": "binary classification", "multiclass": f"classification with {len(target.classes):,} classes"}
    return named.get(target.task, target.task)


def _plain(value: Any) -> Any:
    """Make text from a table safe to show: without control characters, and cut. Escaping is left to jinja2."""
    return _cut(value, MAX_TEXT) if isinstance(value, str) and not isinstance(value, Markup) else value


def _cut(text: str, most: int) -> str:
    text = printable(text[: most + 1])
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _most_interesting(columns: Sequence[Column]) -> list[Column]:
    """Choose at most MAX_COLUMNS columns, in their order: first those set aside, then with missing words, then converted."""

    def rank(place: int) -> int:
        column = columns[place]
        remarkable = (
            column.kind == "drop",
            bool(column.words),
            _is_converted(column) or bool(column.reading.flags),
            True,
        )
        return remarkable.index(True)

    return [columns[place] for place in sorted(sorted(range(len(columns)), key=rank)[:MAX_COLUMNS])]


def _is_converted(column: Column) -> bool:
    return any(before != after for before, after in column.examples)


def _row_counts(rows: dict[str, int], n_used: int, data: Data) -> list[tuple[str, str, str]]:
    """List the counts of rows, each with its name and a remark; those of a second table last."""
    remarks = {
        "target_missing": "left out",
        "duplicates": "left out" if data.duplicates == "drop" else "kept",
        "totals": "left out",
    }
    found = []
    for before, label in (("", ""), ("transfer_", "second table: ")):
        if f"{before}read" not in rows:
            continue
        for name, what in ROW_NAMES.items():
            if (n := rows.get(before + name)) is not None:
                found.append((label + what, f"{n:,}", remarks.get(name, "") if n else ""))
        n = sum(rows[f"transfer_{split}"] for split in SPLITS if f"transfer_{split}" in rows) if before else n_used
        found.append((f"{label}used", f"{n:,}", ""))
    return found


def _splits(domain: str, rows: dict[str, int]) -> tuple[str, list[Bar]]:
    names = {"train": "training", "val": "validation", "test": "test"}
    return domain, _bars({names[split]: rows[f"{domain}_{split}"] for split in SPLITS})


def _bars(counts: dict[str, int], n_rows: int | None = None) -> list[Bar]:
    n_rows = sum(counts.values()) if n_rows is None else n_rows
    largest = max(counts.values(), default=0)
    return [Bar(label, n, _share(n, n_rows), round(100 * n / largest, 1) if n else 0) for label, n in counts.items()]


def _share(n: int, n_rows: int) -> str:
    if n in (0, n_rows) or not n_rows:
        return "0%" if n == 0 else "100%"
    percent = 100 * n / n_rows
    if percent < 0.1:
        return "<0.1%"
    return f"{percent:.1f}%" if percent < 99.9 else ">99.9%"


def _target(name: str, prepared: Prepared) -> tuple[str, Target, Picture]:
    """Show classes, or the values of a regression target, in the rows of a domain."""
    schema, domain = prepared.schema, prepared.domains[name]
    target = (schema.transfer_target if name == "transfer" else None) or schema.target
    rows = np.concatenate(list(domain.splits.values()))
    if target.task == "regression":
        values = reading.read(domain.others[target.name].iloc[rows], target.reading).values
        return name, target, _numbers(values.to_numpy(np.float64))
    n_rows = np.bincount(domain.y[rows], minlength=len(target.classes))
    shown = sorted(np.argsort(-n_rows, kind="stable")[:MAX_CLASSES])
    bars = _bars({str(target.classes[code]): int(n_rows[code]) for code in shown}, len(rows))
    n_others = len(target.classes) - len(shown)
    return name, target, Picture(top=Bars(bars, n_others, len(rows) - sum(bar.n for bar in bars)))


def _entry(column: Column, source: Domain, rows: np.ndarray) -> Entry:
    features = source.features
    flagged = [features[name].to_numpy()[rows] for name in column.flags]
    if column.kind == "drop":
        absent, picture = _absent(source.others[column.name], column)[rows], Picture()
    else:
        values = features[column.name]
        values = values if len(rows) == len(values) else values.iloc[rows]
        absent = values.isna().to_numpy()
        for cells in flagged:  # a word that is kept apart is not missing
            absent = absent & ~cells
        picture = _picture(column, values.dropna(), len(rows))
    meanings = {BELOW: "at most the number", ABOVE: "at least the number"}
    flags = [
        (flag, meanings.get(flag, ""), int(cells.sum()))
        for flag, cells in zip(column.reading.flags, flagged, strict=False)
    ]
    n = int(absent.sum())
    kind = KIND_NAMES.get(column.kind, column.kind)
    return Entry(column, kind, n, _share(n, len(rows)), flags, _is_converted(column), picture)


def _absent(values: pd.Series, column: Column) -> np.ndarray:
    """Return which cells [n] of a column that was set aside are missing: empty, blank, or one of its words."""
    missing: np.ndarray = values.isna().to_numpy()
    if not reading.is_text(values) or values.dtype == object:  # objects may be nested
        return missing
    codes, texts = reading.distinct(values)
    texts = texts.str.strip()
    texts = texts.fillna("")
    absent = np.asarray(texts == "") | reading.is_missing(texts, tuple(column.words))
    found: np.ndarray = missing | (absent if codes is None else np.append(absent, True)[codes])
    return found


def _picture(column: Column, values: pd.Series, n_rows: int) -> Picture:
    match column.kind:
        case "numeric":
            return _numbers(values.to_numpy(np.float64))
        case "datetime":
            return _moments(values, column)
    return Picture(top=_top(values.value_counts(sort=False), n_rows))


def _top(counts: pd.Series, n_rows: int) -> Bars:
    """Choose the most frequent values; of equally frequent ones, the first by the alphabet."""
    times = counts.to_numpy(np.int64)
    if len(times) > MAX_CATEGORIES:  # before any text is compared, since there may be a million
        counts = counts[times >= np.partition(times, -MAX_CATEGORIES)[-MAX_CATEGORIES]]
    ranked = heapq.nsmallest(MAX_CATEGORIES, ((-int(n), str(value)) for value, n in counts.items()))
    bars = _bars({value: -n for n, value in ranked}, n_rows)
    return Bars(bars, len(times) - len(bars), int(times.sum()) - sum(bar.n for bar in bars))


def _numbers(values: np.ndarray) -> Picture:
    values = np.sort(values)
    if not len(values):
        return Picture()
    names = ("minimum", "lower quartile", "median", "upper quartile", "maximum")
    figures = [(name, _number(_quantile(values, k / 4))) for k, name in enumerate(names)]
    return Picture(figures, _histogram(values, 1.0, _number))


def _moments(values: pd.Series, column: Column) -> Picture:
    moment = np.sort(values.astype("datetime64[us, UTC]").astype("int64").to_numpy()).astype(np.float64)
    if not len(moment):
        return Picture()
    shown_as = " ".join({"date": "%Y-%m-%d", "time": "%H:%M:%S"}[part] for part in column.parts)

    def shown(value: float) -> str:
        return pd.Timestamp(int(value), unit="us").strftime(shown_as)

    has_time = "time" in column.parts
    first, last = ("first", "last") if moments.holds(column.reading.format)[0] else ("earliest", "latest")
    return Picture(
        [(first, shown(moment[0])), (last, shown(moment[-1]))], _histogram(moment, 0.0 if has_time else DAY, shown)
    )


def _quantile(values: np.ndarray, share: float) -> float:
    """Interpolate linearly in sorted values, as `numpy.quantile` does after sorting them again."""
    place = share * (len(values) - 1)
    low, high = float(values[math.floor(place)]), float(values[math.ceil(place)])
    return low if low == high else low * (1 - place % 1) + high * (place % 1)


def _histogram(values: np.ndarray, unit: float, shown: Callable[[float], str]) -> Histogram:
    """Count sorted values in at most N_BARS bars of one width, which is a multiple of `unit` if all values are.

    If a percent of the values would leave the others in a corner, the outer bars include that percent.
    """
    low, high = float(values[0]), float(values[-1])
    inner_low, inner_high = _quantile(values, 0.005), _quantile(values, 0.995)
    if 0 < inner_high - inner_low < (high - low) / 4:
        low, high = inner_low, inner_high
    whole = unit > 0 and high - low < 2**53 * unit and bool((values % unit == 0).all())
    if whole:
        low, high = math.floor(low / unit) * unit, math.ceil(high / unit) * unit
        width = math.ceil(((high - low) / unit + 1) / N_BARS) * unit
        n_bars = math.ceil(((high - low) / unit + 1) / (width / unit))
        edges = low + width * np.arange(n_bars + 1)
    elif low == high:
        edges = np.array([low, low])
    else:
        edges = low * (1 - np.arange(N_BARS + 1) / N_BARS) + high * (np.arange(N_BARS + 1) / N_BARS)
    # [low, high): the last bar, and with values beyond the edges the first, are open.
    places = np.searchsorted(values, edges[1:-1], side="left")
    n_values = np.diff([0, *places, len(values)])
    last = unit if whole else 0.0  # whole numbers from 0 to 4 are fewer than 5
    ends = np.minimum(edges[1:] - last, high)
    labels = [
        shown(a) if a == b else f"{shown(a)} to {shown(b)}"
        for a, b in zip(edges[:-1].tolist(), ends.tolist(), strict=True)
    ]
    n_outside = int(
        np.searchsorted(values, low, side="left") + len(values) - np.searchsorted(values, high, side="right")
    )
    largest, n = int(n_values.max()), len(values)
    bars = [
        Bar(label, int(k), _share(int(k), n), round(100 * int(k) / largest, 1))
        for label, k in zip(labels, n_values, strict=True)
    ]
    return Histogram(bars, shown(low), shown(high), n_outside)


def _number(value: float) -> str:
    """Format a number with five significant digits; whole ones with all of theirs."""
    if value == 0:
        return "0"
    size = math.floor(math.log10(abs(value)))
    if size >= 15 or size < -5:
        return f"{value:.4g}"
    separator = "," if size >= 4 else ""  # none in 2024, which may be a year
    if value % 1 == 0:
        return f"{int(value):{separator}}"
    text = f"{value:{separator}.{max(0, 4 - size)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
