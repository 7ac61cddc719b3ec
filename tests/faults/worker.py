"""Run hostile inputs in a process of their own, with limits on the CPU time and the extra memory of each case.

A case that waits is ended after six times the limit in real time.

`python -m tests.faults.worker MODULE FIRST END` calls `MODULE.case(n, folder)` for each n and prints a line of JSON per case.
"""

import faulthandler
import importlib
import io
import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import warnings
from contextlib import redirect_stderr
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.runtime import console
from tests.support.imports import ROOT

SECONDS, BYTES = 10, 2**30
A_PROCESS = 250  # cases per process, which bounds memory that cases leak


def main(module: str, first: int, end: int) -> None:
    cases = importlib.import_module(f"tests.faults.{module}")
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGPROF, _too_long)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + BYTES, resource.RLIM_INFINITY))
    with tempfile.TemporaryDirectory() as folder:
        for number in range(first, end):
            print(json.dumps(_tried(cases, number, Path(folder))), flush=True)


def _tried(cases: Any, number: int, folder: Path) -> dict[str, Any]:
    lost, told = "", io.StringIO()
    faulthandler.dump_traceback_later(6 * SECONDS, exit=True)  # for code that ignores signals, or waits
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        with redirect_stderr(told):
            console.run(partial(cases.case, number, folder))
    except SystemExit:
        if not re.fullmatch("error: .{10,1500}\n", told.getvalue()) or not told.getvalue()[:-1].isprintable():
            lost = f"unclear: {told.getvalue()[:300]!r}"
    except BaseException as error:  # of any type: it is reported as the loss
        lost = f"{type(error).__name__}: {error}"[:300] + _where(error)
    signal.setitimer(signal.ITIMER_PROF, 0)
    faulthandler.cancel_dump_traceback_later()
    return {"number": number, "said": told.getvalue(), "lost": lost}


def _where(error: BaseException) -> str:
    trace, places = error.__traceback__, []
    while trace is not None:
        places.append(f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}")
        trace = trace.tb_next
    return " at " + " ".join(places[-6:])


def _too_long(*_: object) -> None:
    raise TimeoutError(f"more than {SECONDS} s")


def tried(module: str, first: int, end: int) -> list[dict[str, Any]]:
    """Return the result of each case; if a case ends the process, another process continues with the next case."""
    found: list[dict[str, Any]] = []
    one_thread = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    # By default Arrow allocates a gigabyte at once, the whole limit, and freed memory stays with the process.
    one_thread |= {"ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_MMAP_THRESHOLD_": "1000000"}
    while len(found) < end - first:
        here = first + len(found)
        done = subprocess.run(
            [sys.executable, "-m", "tests.faults.worker", module, str(here), str(min(here + A_PROCESS, end))],
            cwd=ROOT, env=one_thread, capture_output=True, text=True, check=False,
        )  # fmt: skip
        rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        found += rows
        if done.returncode or not rows:
            lost = f"status {done.returncode}: {done.stderr[-300:]}"
            found.append({"number": first + len(found), "said": "", "lost": lost})
    return found


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
