"""Files written whole or not at all, and sums to check them by."""

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # parameters are read before pandas may load: see `processor`
    import pandas as pd


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success flush it to disk and rename it over `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays: writers such as matplotlib and pandas choose the format by it.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".writing-") as folder:
        temporary = Path(folder) / path.name
        try:
            yield temporary
        except OSError as error:
            # Libraries name the temporary file or none: a person looks for this one.
            if error.errno != errno.ENOENT:  # of a file that was to be read
                error.filename = str(path)
            raise
        # Not the private mode that some writers choose: what a project shares, its group can read.
        umask = os.umask(0)
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
    """The one way this project spells a value in JSON: the same value, the same bytes."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_csv(path: Path, table: "pd.DataFrame") -> None:
    with replacing(path) as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n")


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def copy(source: Path, path: Path) -> None:
    with replacing(path) as temporary:
        shutil.copyfile(source, temporary)
