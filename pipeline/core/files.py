"""Write files atomically, compute their checksums, and read them back within limits, since anyone may have edited them."""

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import UserError

if TYPE_CHECKING:  # `portable` has to read the parameters before pandas and torch are imported
    import pandas as pd
    from torch import Tensor

# Limits on reading: bytes and values of a JSON file, bytes of the header of a safetensors file.
MAX_JSON, MAX_VALUES, MAX_HEADER = 2**26, 2_000_000, 2**20
_FORMULA = "=+-@\t\r'＝＋－＠"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success flush it to disk and rename it over `path`.

    A relative path names an output: raises `UserError` if it leads out of the project through a link.
    """
    if not path.is_absolute() and not path.parent.resolve().is_relative_to(Path.cwd().resolve()):
        raise UserError(f"{path} must be in the project, but is a link to {path.parent.resolve()}: remove the link")
    path.parent.mkdir(parents=True, exist_ok=True)
    # The name keeps its suffix, by which matplotlib and pandas choose the format.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".writing-") as folder:
        temporary = Path(folder) / path.name
        try:
            yield temporary
        except OSError as error:
            # Report `path`, not the temporary file. ENOENT is about an input file and keeps its name.
            if error.errno != errno.ENOENT:
                error.filename = str(path)
            raise
        # Some writers create private files; outputs get the mode of the umask, for groups that share a project.
        umask = os.umask(0o077)  # reading the umask sets it, for all threads: meanwhile no other user has access
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        _flush(temporary)
        temporary.replace(path)
    _flush(path.parent)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, value: Any) -> None:
    write_text(path, dump_json(value))


def dump_json(value: Any) -> str:
    """Format a value as JSON; the same value gives the same bytes."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_csv(path: Path, table: "pd.DataFrame") -> None:
    """Write CSV, with an apostrophe before text that a spreadsheet would run as a formula or that starts with one."""
    import pandas as pd

    plain = table.rename(columns=_without_formula)
    texts = [place for place, dtype in enumerate(table.dtypes) if not pd.api.types.is_numeric_dtype(dtype)]
    for place in texts:
        plain.isetitem(place, plain.iloc[:, place].map(_without_formula).array)
    # pandas quotes cells with a line feed, but not those with a carriage return, which other readers take for a row's end.
    returns = any("\r" in str(name) for name in plain.columns) or any(
        isinstance(value, str) and "\r" in value for place in texts for value in pd.unique(plain.iloc[:, place])
    )
    with replacing(path) as temporary:
        plain.to_csv(temporary, index=False, lineterminator="\n", quoting=2 if returns else 0)  # csv.QUOTE_NONNUMERIC


def _without_formula(value: Any) -> Any:
    if not isinstance(value, str) or not value.lstrip(" ").startswith(tuple(_FORMULA)):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value  # a negative number is not a formula


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is not a JSON value")


def json_bytes(path: Path) -> bytes:
    """Read a JSON file; raises `UserError` if it is larger than any file of the pipeline."""
    with path.open("rb") as file:
        return _limited(path, file.read(MAX_JSON + 1))


def _limited(path: Path, content: bytes) -> bytes:
    if len(content) > MAX_JSON or sum(map(content.count, (b",", b"[", b"{"))) > MAX_VALUES:
        raise UserError(f"{path} is too large for a pipeline file: over {MAX_JSON >> 20} MiB or {MAX_VALUES:,} values")
    return content


def read_json(path: Path) -> Any:
    """Read and parse a JSON file; raises `UserError` for NaN, infinity, and anything else that `write_json` refuses."""
    return parse_json(path, json_bytes(path))


def parse_json(path: Path, content: bytes) -> Any:
    try:
        return json.loads(_limited(path, content).decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}") from None


def read_tensors(path: Path) -> "dict[str, Tensor]":
    """Read a safetensors file, which holds tensors and cannot hold code."""
    from safetensors.torch import load_file

    with path.open("rb") as file:
        tensors_header(path, file.read(8 + MAX_HEADER))
    return _tensors(path, lambda: load_file(path))


def parse_tensors(path: Path, content: bytes) -> "dict[str, Tensor]":
    """Parse the content of a safetensors file, so that the bytes loaded are those whose checksum was verified."""
    from safetensors.torch import load

    tensors_header(path, content[: 8 + MAX_HEADER])
    return _tensors(path, lambda: load(content))


def _tensors(path: Path, load: "Callable[[], dict[str, Tensor]]") -> "dict[str, Tensor]":
    from safetensors import SafetensorError

    try:
        return load()
    except (SafetensorError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a safetensors file: {str(error).splitlines()[0]}") from None


def tensors_header(path: Path, start: bytes) -> dict[str, Any]:
    """Parse the header at the start of a safetensors file; the writer's own entries are under "__metadata__"."""
    length = int.from_bytes(start[:8], "little")
    fits = 2 <= length <= min(MAX_HEADER, len(start) - 8)
    header = parse_json(path, start[8 : 8 + length]) if fits else None
    if not isinstance(header, dict):
        raise UserError(f"{path} is not a safetensors file")
    return header


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def copy(source: Path, path: Path) -> None:
    with replacing(path) as temporary:
        shutil.copyfile(source, temporary)
