"""Read a source into a DataFrame, without cleaning or renaming."""

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
from collections import Counter
from pathlib import Path
from typing import IO

import pandas as pd

from pipeline.core.errors import UserError
from pipeline.core.secrets import with_variables, without_secret
from pipeline.core.settings import Csv
from pipeline.sources.named import nycflights13, openml, sklearn
from pipeline.tables.raw import EXPANSION, check_names, read_parquet, unpacked_limit

SOURCE_FOLDER = Path("data/source")
_SUFFIXES = (".csv", ".tsv", ".txt", ".parquet")
_DELIMITERS = ",;\t|"


def read(source: str, options: Csv) -> pd.DataFrame:
    """Read the table of a source: `nycflights13`, `sklearn:<name>`, `openml:<name>`, a path or a URL.

    Raises `UserError` for a source that cannot be found or a file that is no table.
    """
    if source == "nycflights13":
        return nycflights13()
    if source.startswith("sklearn:"):
        return sklearn(source.removeprefix("sklearn:"))
    if source.startswith("openml:"):
        return openml(source.removeprefix("openml:"))
    return read_file(source, options)


def read_file(source: str, options: Csv) -> pd.DataFrame:
    """Read a .csv, .tsv or .parquet file, also compressed as .gz, .bz2, .xz or .zip, from a path or a URL."""
    path = source.removeprefix("file://")
    try:
        content = _fetch(source) if "://" in path else _local(path).read_bytes()
    except ValueError as error:  # such as a name with a NUL
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
    path = Path(source)
    if not path.exists() and (SOURCE_FOLDER / source).exists():
        path = SOURCE_FOLDER / source
    if not path.exists():
        near = difflib.get_close_matches(path.name, [file.name for file in SOURCE_FOLDER.glob("*")], n=1)
        hint = f"; did you mean {SOURCE_FOLDER / near[0]}?" if near else f"; put the file under {SOURCE_FOLDER}/"
        raise UserError(f"data.source {source!r} does not exist{hint}")
    if path.is_dir():
        raise UserError(f"data.source {source!r} is a folder: name a file in it")
    if not path.is_file():  # a device or a pipe could be endless
        raise UserError(f"data.source {source!r} is not a file")
    return path


def _fetch(url: str) -> bytes:
    import fsspec

    try:
        with fsspec.open(with_variables(url, os.environ), "rb") as file:
            return bytes(file.read())
    except KeyError as error:
        raise UserError(
            f"data.source {without_secret(url)} needs the variable {error.args[0]}, which is not set"
        ) from None
    except Exception as error:  # every file system of fsspec raises errors of its own
        # The message may repeat the URL with its secrets.
        raise UserError(f"data.source {without_secret(url)} cannot be read: {type(error).__name__}") from None


def _unpacked(source: str, content: bytes) -> tuple[str, bytes]:
    """The lower-case name without its compression suffix, and the decompressed bytes."""
    name = source.lower()
    try:
        match Path(name).suffix:
            case ".gz":
                return name.removesuffix(".gz"), _bounded(source, gzip.open(io.BytesIO(content)), len(content))
            case ".bz2":
                return name.removesuffix(".bz2"), _bounded(source, bz2.open(io.BytesIO(content)), len(content))
            case ".xz":
                return name.removesuffix(".xz"), _bounded(source, lzma.open(io.BytesIO(content)), len(content))
            case ".zip":
                with zipfile.ZipFile(io.BytesIO(content)) as archive:
                    members = [
                        m for m in archive.namelist() if Path(m.lower()).suffix in _SUFFIXES and "__MACOSX" not in m
                    ]
                    if len(members) != 1:
                        raise UserError(
                            f"{source} must hold one table, found {len(members)}: {', '.join(members[:5]) or 'none'}"
                        )
                    with archive.open(members[0]) as member:
                        return members[0].lower(), _bounded(source, member, len(content))
    except UserError:
        raise
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, lzma.LZMAError, RuntimeError, zlib.error) as error:
        raise UserError(f"{source} is not a whole {Path(name).suffix} file: {error}") from None
    return name, content


def _bounded(source: str, packed: IO[bytes] | io.BufferedIOBase, size: int) -> bytes:
    """Decompress `size` bytes; raises `UserError` for a decompression bomb."""
    limit = unpacked_limit(size)
    unpacked = packed.read(limit + 1)
    if len(unpacked) > limit:
        raise UserError(
            f"{source} unpacks to more than {EXPANSION} times its size: unpack it yourself, if you trust it"
        )
    return unpacked


def _csv(source: str, name: str, content: bytes, options: Csv) -> pd.DataFrame:
    encoding = "utf-8-sig" if options.encoding.lower().replace("_", "-") in ("utf-8", "utf8") else options.encoding
    try:
        text = content.decode(encoding)
        if encoding != "utf-8-sig":
            content = text.encode("utf-8")  # not every encoding can be read line by line
    except (UnicodeError, ValueError) as error:
        where = f" (byte {error.start})" if isinstance(error, UnicodeDecodeError) else ""
        raise UserError(
            f"{source} is not {options.encoding} text{where}: name its encoding in data.csv.encoding, such as latin-1"
        ) from None
    if not text or text.isspace():
        raise UserError(f"{source} is empty")
    if "\0" in text:
        raise UserError(f"{source} is not text, as it holds a NUL: is it UTF-16, or another kind of file?")
    sniffed = "\t" if name.endswith(".tsv") else _sniff(text)
    delimiter = sniffed if options.separator == "auto" else options.separator
    del text  # up to four bytes per character

    csv.field_size_limit(2**31 - 1)  # a long text is a legitimate cell

    def lines() -> IO[str]:
        return io.TextIOWrapper(io.BytesIO(content), encoding="utf-8-sig", newline="")

    _check_shape(source, lines(), delimiter)
    try:
        return pd.read_csv(lines(), sep=delimiter, decimal=options.decimal, index_col=False, low_memory=False)
    except (ValueError, OverflowError) as error:
        raise UserError(f"{source} is not a table: {str(error).splitlines()[0]}") from None


def _sniff(text: str) -> str:
    """The delimiter that splits the first lines into most columns, equally many in each."""
    lines = list(itertools.islice(io.StringIO(text[:100_000], newline=""), 50))

    def columns(delimiter: str) -> int:
        try:
            widths = Counter(
                len(row) for row in csv.reader(lines[: max(1, len(lines) - 1)], delimiter=delimiter) if row
            )
        except csv.Error:
            return 0
        # Half of the lines suffice, so that a ragged row does not hide the delimiter.
        header = next((len(row) for row in csv.reader(lines, delimiter=delimiter) if row), 0)
        return header if 2 * widths[header] >= widths.total() else 0

    return max(_DELIMITERS, key=columns)


def _check_shape(source: str, lines: IO[str], delimiter: str) -> None:
    """Raise `UserError` for a ragged row, which pandas would silently fill with missing values."""
    reader = csv.reader(lines, delimiter=delimiter)
    try:
        header = next(row for row in reader if row)
        check_names(source, header)
        for row in reader:
            if len(row) != len(header) and row:
                raise UserError(f"{source}, line {reader.line_num}: {len(row)} cells, but the header has {len(header)}")
    except csv.Error as error:
        raise UserError(f"{source}, line {reader.line_num}: {error}") from None
