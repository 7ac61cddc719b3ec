"""Write files atomically, and read files from untrusted sources."""

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

if TYPE_CHECKING:  # parameters are read before pandas and torch may be imported: see `portable`
    import pandas as pd
    from torch import Tensor

# Limits on reading: bytes of JSON, values in it, bytes of a safetensors header.
MAX_JSON, MAX_VALUES, MAX_HEADER = 2**26, 2_000_000, 2**20
_FORMULA = "=+-@\t\r'＝＋－＠"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success flush it to disk and rename it over `path`.

    Raises `UserError` for a relative path, which names an output, if a link in it leads out of the project.
    """
    if not path.is_absolute() and not path.parent.resolve().is_relative_to(Path.cwd().resolve()):
        raise UserError(f"{path} would be written to {path.parent.resolve()}, outside the project: remove the link")
    path.parent.mkdir(parents=True, exist_ok=True)
    # matplotlib and pandas choose the format by the suffix.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".writing-") as folder:
        temporary = Path(folder) / path.name
        try:
            yield temporary
        except OSError as error:
            # Libraries name the temporary file, or none.
            if error.errno != errno.ENOENT:  # which means a missing input
                error.filename = str(path)
            raise
        # Some writers choose a private mode; a shared project needs the usual one.
        umask = os.umask(0o077)  # the only way to read it also sets it, for all threads
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
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_bytes(path: Path, content: bytes) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, value: Any) -> None:
    write_text(path, dump_json(value))


def dump_json(value: Any) -> str:
    """The project's only JSON format: equal values give equal bytes."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_csv(path: Path, table: "pd.DataFrame") -> None:
    """Write CSV. Text that a spreadsheet would run as a formula, or that begins with an apostrophe, gets an apostrophe."""
    import pandas as pd

    plain = table.rename(columns=_inert)
    texts = [place for place, dtype in enumerate(table.dtypes) if not pd.api.types.is_numeric_dtype(dtype)]
    for place in texts:
        plain.isetitem(place, plain.iloc[:, place].map(_inert).array)
    # pandas quotes cells with a line feed by itself, those with a carriage return only on request.
    returns = any("\r" in str(name) for name in plain.columns) or any(
        isinstance(value, str) and "\r" in value for place in texts for value in pd.unique(plain.iloc[:, place])
    )
    with replacing(path) as temporary:
        plain.to_csv(temporary, index=False, lineterminator="\n", quoting=2 if returns else 0)  # csv.QUOTE_NONNUMERIC


def _inert(value: Any) -> Any:
    if not isinstance(value, str) or not value.lstrip(" ").startswith(tuple(_FORMULA)):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value  # a negative number is not a formula


def _not_json(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def json_bytes(path: Path) -> bytes:
    """The bytes of a JSON file; raises `UserError` above the limits."""
    with path.open("rb") as file:
        content = file.read(MAX_JSON + 1)
    return _few(path, content)


def _few(path: Path, content: bytes) -> bytes:
    if len(content) > MAX_JSON or sum(map(content.count, (b",", b"[", b"{"))) > MAX_VALUES:
        raise UserError(
            f"{path} holds more than {MAX_JSON >> 20} MiB or {MAX_VALUES:,} values: too large to be a pipeline file"
        )
    return content


def read_json(path: Path) -> Any:
    """Read a JSON value; raises `UserError` if the file is not JSON or too large."""
    return parse_json(path, json_bytes(path))


def parse_json(path: Path, content: bytes) -> Any:
    try:
        return json.loads(_few(path, content).decode("utf-8"), parse_constant=_not_json)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}") from None


def read_tensors(path: Path) -> "dict[str, Tensor]":
    """Read the tensors of a safetensors file, a format that cannot hold code."""
    from safetensors.torch import load_file

    with path.open("rb") as file:
        tensors_header(path, file.read(8 + MAX_HEADER))
    return _tensors(path, lambda: load_file(path))


def parse_tensors(path: Path, content: bytes) -> "dict[str, Tensor]":
    """As `read_tensors`, from the bytes of `path`, so that the bytes that were hashed are loaded."""
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
    """The header of a safetensors file from its first bytes, with metadata under "__metadata__"."""
    length = int.from_bytes(start[:8], "little")
    if not 2 <= length <= min(MAX_HEADER, len(start) - 8):
        raise UserError(f"{path} is not a safetensors file")
    header = parse_json(path, start[8 : 8 + length])
    if not isinstance(header, dict):
        raise UserError(f"{path} is not a safetensors file")
    return header


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def copy(source: Path, path: Path) -> None:
    with replacing(path) as temporary:
        shutil.copyfile(source, temporary)
