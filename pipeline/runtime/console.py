"""What a person sees: progress, and a mistake in one line."""

import errno
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from pipeline.core.errors import UserError

# What torch says; it has a class for it on a GPU alone.
_OUT_OF_MEMORY = re.compile("DefaultCPUAllocator|not enough memory|CUDA out of memory|std::bad_alloc")
_OUTSIDE_CAUSES = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EFBIG}


def run(entry_point: Callable[[], None]) -> None:
    """Call `entry_point`; a user's mistake, a full disk or a signal ends in one line on stderr and an exit status."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        entry_point()
    except UserError as error:
        _fail(str(error), status=1)
    except KeyboardInterrupt:
        _fail("interrupted", status=130)
    except MemoryError as error:
        _fail(f"not enough memory: {error}", status=1)
    except RuntimeError as error:
        if not _OUT_OF_MEMORY.search(str(error)):
            raise
        asked = re.search(r"allocate ([\d.]+ \w+)", str(error))
        _fail(
            f"not enough memory{f' for {asked[1]}' if asked else ''}: lower model.hidden or what else makes the network"
            " wide, model.ensemble or train.batch_size",
            status=1,
        )
    except OSError as error:
        if error.errno not in _OUTSIDE_CAUSES:
            raise
        _fail(f"{error.filename or 'a file'} cannot be written or read: {error.strerror}", status=1)


def _terminate(*_: object) -> NoReturn:
    raise SystemExit(128 + signal.SIGTERM)


def _fail(message: str, status: int) -> NoReturn:
    sys.stdout.flush()
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(status)


@contextmanager
def progress(label: str, total: int) -> Iterator[Callable[[str], None]]:
    """Yield `advance(text)`, called once a step: a line a step, and on a terminal a bar below them."""
    done = 0
    if not sys.stdout.isatty():

        def advance(text: str) -> None:
            nonlocal done
            done += 1
            print(f"{label} {done}/{total}  {text}".rstrip(), flush=True)

        yield advance
        return

    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    with Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()) as bar:
        task = bar.add_task(label, total=total)

        def advance_bar(text: str) -> None:
            nonlocal done
            done += 1
            bar.advance(task)
            if text:
                bar.console.print(f"{done}: {text}", markup=False, highlight=False)

        yield advance_bar
