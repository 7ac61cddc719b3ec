"""`data/raw/`: source tables as read, stored as Parquet."""

import io
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.core import files
from pipeline.core.errors import UserError
from pipeline.tables.values import canonical

RAW_TABLE = Path("data/raw/table.parquet")
RAW_TRANSFER = Path("data/raw/transfer.parquet")
MAX_COLUMNS = 20_000
EXPANSION, FREE_BYTES = 100, 2**24  # a file may unpack to this many times its size plus this many bytes


def save_raw(table: pd.DataFrame, path: Path) -> None:
    """Write a source table as Parquet; columns of mixed types, which Parquet cannot hold, become text."""
    import pyarrow

    with files.replacing(path) as temporary:
        try:
            table.to_parquet(temporary, index=False)
        except (pyarrow.ArrowException, TypeError, OverflowError):
            mixed = [name for name in table.columns if table[name].dtype == object]
            table.assign(**{name: canonical(table[name]) for name in mixed}).to_parquet(temporary, index=False)


def load_raw(domain: str = "source") -> pd.DataFrame:
    """Read the raw table of a domain; both share one table unless `data.transfer.source` is set."""
    path = RAW_TRANSFER if domain == "transfer" and RAW_TRANSFER.exists() else RAW_TABLE
    if not path.exists():
        raise UserError(f"{path} is missing: run dvc repro fetch")
    return read_parquet(str(path), path.read_bytes(), text_as_categories=True)


def unpacked_limit(size: int) -> int:
    return FREE_BYTES + EXPANSION * size


def read_parquet(source: str, content: bytes, *, text_as_categories: bool = False) -> pd.DataFrame:
    """Parse the content of a Parquet file; raises `UserError` naming `source` if it is damaged or unpacks to too much.

    With `text_as_categories`, a text that repeats is held, and read by its rule, once.
    """
    import pyarrow as pa
    from pyarrow import parquet

    try:
        metadata = parquet.read_metadata(io.BytesIO(content))
        # Checked before reading: a constant column takes no space in the file, however many rows it has.
        fits = 8 * metadata.num_rows * metadata.num_columns <= unpacked_limit(len(content))
        fields = parquet.read_schema(io.BytesIO(content)) if fits and text_as_categories else []
        text = [field.name for field in fields if _is_text(field.type)]
        read = partial(parquet.read_table, io.BytesIO(content), read_dictionary=text)
        table: pd.DataFrame | None = read().to_pandas() if fits else None
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
