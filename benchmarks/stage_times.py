"""Runs a stage and prints, as its last line, the seconds it spent on imports, on tracking, and on its work.

Of the stage search also those from its first trial until all is tracked; with `untracked` its trials have no runs.
"""

import importlib
import json
import sys
import time
from collections.abc import Callable
from typing import Any


def main() -> None:
    name, *untracked = sys.argv[1:]
    stage, _, item = name.partition("@")
    start = time.perf_counter()
    module = importlib.import_module(f"pipeline.stages.{stage}.stage")
    # What stages import only when they use it belongs to imports too.
    importlib.import_module("pipeline.tracking.runs")
    imported = time.perf_counter()
    from pipeline.tracking import runs, writer

    spent, depth, searched = 0.0, 0, 0.0

    def counted(work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **named: Any) -> Any:
            nonlocal spent, depth
            depth += 1
            begun = time.perf_counter()
            try:
                return work(*arguments, **named)
            finally:
                depth -= 1
                if not depth:
                    spent += time.perf_counter() - begun

        return run

    def timed(work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **named: Any) -> Any:
            nonlocal searched
            begun = time.perf_counter()
            try:
                return work(*arguments, **named)
            finally:
                searched += time.perf_counter() - begun

        return run

    for owner, names in (
        (runs.Run, ("_append",)),
        (writer.Writer, ("close",)),
        (runs, ("stage_entry", "origin", "_begin")),
    ):
        for name in names:
            setattr(owner, name, counted(getattr(owner, name)))
    if untracked:
        runs.Run.log_trial = lambda *arguments: None  # type: ignore[method-assign]
    for owner, part in ((module, "search"), (writer.Writer, "close")) if stage == "search" else ():
        setattr(owner, part, timed(getattr(owner, part)))
    module.main(*([item] if item else []))
    total = time.perf_counter() - imported
    print(json.dumps({"imports": imported - start, "tracking": spent, "compute": total - spent, "search": searched}))


if __name__ == "__main__":
    main()
