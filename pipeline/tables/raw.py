"""`data/raw/`: source tables as read, stored as Parquet."""

import re
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from pipeline.core import files
from pipeline.core.errors import UserError
from pipeline.tables.reading import hardly_repeats
from pipeline.tables.values import canonical

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow import parquet

RAW_TABLE = Path("data/raw/table.parquet")
RAW_TRANSFER = Path("data/raw/transfer.parquet")
MAX_COLUMNS = 20_000
_TOTAL = re.compile(
    r"(grand |sub)?totals?|sum|overall|gesamt(summe)?|summe|insgesamt|total g[ée]n[ée]ral|somme|totale", re.IGNORECASE
)
EXACT = 2**53  # the whole numbers below it are exact as float64
EXPANSION, FREE_BYTES = 100, 2**24  # a file may unpack to this many times its size plus this many bytes


def save_raw(table: pd.DataFrame, path: Path) -> None:
    """Write a source table as Parquet; columns of mixed types, which Parquet cannot hold, become text."""
    import pyarrow

    # A dictionary of texts of which hardly any repeats takes time and memory, here and where it is read.
    repeating = [name for name in table.columns if not _is_str(table[name]) or not hardly_repeats(table[name])]
    dictionary = True if len(repeating) == len(table.columns) else repeating
    with files.replacing(path) as temporary:
        try:
            table.to_parquet(temporary, index=False, use_dictionary=dictionary)
        except (pyarrow.ArrowException, TypeError, OverflowError):
            mixed = [name for name in table.columns if table[name].dtype == object]
            table.assign(**{name: canonical(table[name]) for name in mixed}).to_parquet(temporary, index=False)


def load_raw(domain: str = "source", *, with_total: bool = False) -> pd.DataFrame:
    """Read the raw table of a domain; both share one table unless `data.transfer.source` is set.

    A last row that is a total is left out, unless `with_total`.
    """
    from pyarrow import memory_map

    path = RAW_TRANSFER if domain == "transfer" and RAW_TRANSFER.exists() else RAW_TABLE
    if not path.exists():
        raise UserError(f"{path} is missing: run dvc repro fetch")
    with memory_map(str(path)) as file:  # the file's bytes are not copied
        table = read_parquet(str(path), file.read_buffer(), text_as_categories=True)
    return table if with_total or not ends_in_total(table) else table.iloc[:-1]


def ends_in_total(table: pd.DataFrame) -> bool:
    """True if the text of the last row says that it is a total, as no other row does."""
    for name in table.columns:
        cell = table[name].iloc[-1] if len(table) else None
        if isinstance(cell, str) and _TOTAL.fullmatch(cell.strip().rstrip(":.")):
            return int((table[name] == cell).sum()) == 1
    return False


def unpacked_limit(size: int) -> int:
    return FREE_BYTES + EXPANSION * size


def read_parquet(source: str, content: "bytes | pa.Buffer", *, text_as_categories: bool = False) -> pd.DataFrame:
    """Parse the content of a Parquet file; raises `UserError` naming `source` if it is damaged or unpacks to too much.

    With `text_as_categories`, a text that repeats is held, and read by its rule, once.
    """
    import pyarrow as pa
    from pyarrow import parquet

    try:
        metadata = parquet.read_metadata(pa.BufferReader(content))
        # Checked before reading: a constant column takes no space in the file, however many rows it has.
        fits = 8 * metadata.num_rows * metadata.num_columns <= unpacked_limit(len(content))
        fields = parquet.read_schema(pa.BufferReader(content)) if fits and text_as_categories else []
        text = [field.name for field in fields if _is_text(field.type)]
        text = [name for name in text if name in _with_dictionary(metadata)]
        read = partial(parquet.read_table, pa.BufferReader(content), read_dictionary=text)
        table: pd.DataFrame | None = _exact(read()).to_pandas(self_destruct=True, split_blocks=True) if fits else None
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError, AttributeError, NotImplementedError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{source} is not a Parquet file: {reason}") from None
    if table is None:
        raise UserError(f"{source} unpacks to more than {EXPANSION} times its size: write it as CSV, if you trust it")
    if any(name is not None for name in table.index.names):
        table = table.reset_index()
    table.columns = [str(column) for column in table.columns]
    check_names(source, list(table.columns))
    return table.reset_index(drop=True)


def _exact(table: "pa.Table") -> "pa.Table":
    """Turn whole numbers that a float64 cannot hold into text, where missing values would make them floats."""
    import pyarrow as pa
    import pyarrow.compute as pc
    from pyarrow import types

    before = table
    for place, field in enumerate(table.schema):
        column = table.column(place)
        whole = types.is_decimal(field.type) and field.type.scale == 0
        if whole or (types.is_int64(field.type) and column.null_count):
            ends = [end for end in pc.min_max(column).as_py().values() if end is not None]
            if any(abs(end) >= EXACT for end in ends):
                table = table.set_column(place, field.name, column.cast(pa.string()))
    return table if table is before else table.replace_schema_metadata()  # which has the types from before


def _is_str(values: pd.Series) -> bool:
    return isinstance(values.dtype, pd.StringDtype)


def _with_dictionary(metadata: "parquet.FileMetaData") -> set[str]:
    """Return the names of the columns that a file holds with a dictionary of their values."""
    groups = [metadata.row_group(k) for k in range(metadata.num_row_groups)]
    chunks = [group.column(k) for group in groups for k in range(group.num_columns)]
    without = {chunk.path_in_schema for chunk in chunks if not chunk.has_dictionary_page}
    return {chunk.path_in_schema for chunk in chunks} - without


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_string(kind) or types.is_large_string(kind))


def check_names(source: str, names: list[str]) -> None:
    """Raise `UserError` for too many columns or a repeated column name."""
    if len(names) > MAX_COLUMNS:
        raise UserError(f"{source} must have at most {MAX_COLUMNS:,} columns, got {len(names):,}")
    for name, times in Counter(names).items():
        if times > 1:
            raise UserError(f"{source}: column names must be unique, got {name!r} {times} times")
