"""Progress and one-line errors on the console."""

import errno
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from pipeline.core.errors import UserError

# torch raises a plain RuntimeError if it runs out of CPU memory.
_OUT_OF_MEMORY = re.compile("DefaultCPUAllocator|not enough memory|CUDA out of memory|std::bad_alloc")
_EXTERNAL_CAUSES = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EFBIG}


def run(entry_point: Callable[[], None]) -> None:
    """Call `entry_point`; report a `UserError`, a full disk or a signal in one line on stderr, and exit."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        entry_point()
    except UserError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        _fail("interrupted", status=130)
    except MemoryError as error:
        _fail(f"not enough memory: {error}")
    except RuntimeError as error:
        if not _OUT_OF_MEMORY.search(str(error)):
            raise
        size = re.search(r"allocate ([\d.]+ \w+)", str(error))
        needed = f" for {size[1]}" if size else ""
        _fail(f"not enough memory{needed}: lower model.hidden, other widths, model.ensemble or train.batch_size")
    except OSError as error:
        if error.errno not in _EXTERNAL_CAUSES:
            raise
        _fail(f"{error.filename or 'a file'} cannot be written or read: {error.strerror}")


def _fail(message: str, status: int = 1) -> NoReturn:
    sys.stdout.flush()
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(status)


@contextmanager
def progress(label: str, total: int) -> Iterator[Callable[[str], None]]:
    """Yield `advance(text)`, to be called once per step: prints a line, and on a terminal moves a progress bar."""
    done = 0

    def advance(text: str) -> None:
        nonlocal done
        done += 1
        if bar is None:
            print(f"{label} {done}/{total}  {text}".rstrip(), flush=True)
            return
        bar.advance(task)
        if text:
            bar.console.print(f"{done}: {text}", markup=False, highlight=False)

    if not sys.stdout.isatty():
        bar = None
        yield advance
        return

    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    with Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()) as bar:
        task = bar.add_task(label, total=total)
        yield advance
