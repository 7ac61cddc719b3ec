"""Read a source as a DataFrame, without cleaning or renaming anything."""

import bz2
import difflib
import gzip
import io
import lzma
import os
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.core.errors import UserError
from pipeline.core.secrets import with_variables, without_secret
from pipeline.core.settings import Csv
from pipeline.sources import text
from pipeline.sources.named import nycflights13, openml, sklearn
from pipeline.tables.raw import EXPANSION, read_parquet, unpacked_limit

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
    if Path(name).suffix in (".xlsx", ".xls", ".ods"):
        raise UserError(f"{shown} is a workbook: save the sheet with the table as .csv or .parquet")
    if Path(name).suffix not in _SUFFIXES:
        raise UserError(f"{shown} must end in {', '.join(_SUFFIXES)}, also with .gz, .bz2, .xz or .zip")
    if name.endswith(".parquet"):
        table = read_parquet(shown, content)
    else:
        table = text.read(shown, content, options, tabs=name.endswith(".tsv"))
    if table.empty:
        raise UserError(f"{shown} has a header but no rows" if len(table.columns) else f"{shown} is empty")
    return table


def _local(source: str) -> Path:
    path = next((path for path in (Path(source), SOURCE_FOLDER / source) if path.exists()), None)
    if path is None:
        project = os.environ.get("DVC_ROOT")
        if project and (Path(project) / source).exists():  # a temporary copy has only what git and DVC track
            raise UserError(
                f"data.source {source!r} is tracked neither by git nor by DVC, so an experiment does not have it:"
                f" dvc add {source}, and git add {source}.dvc"
            )
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
