"""Checks of what the project keeps: bundles and `.state`."""

import shlex
import time
from collections.abc import Iterator
from pathlib import Path

from pipeline.commands.doctor.finding import Finding
from pipeline.commands.doctor.storage import locked_outputs, rebuild
from pipeline.core.errors import UserError


def state() -> Iterator[Finding]:
    from pipeline.runtime import locks
    from pipeline.tracking import identity, journal
    from pipeline.training import checkpoints

    running = locks.held()
    for stage, holder in running.items():
        yield Finding(f"stage {stage} is running {holder.place}", f"wait for it, or end it {holder.end}")
    for folder in sorted(Path(".state/checkpoints").glob("*/*/")):
        # Younger ones may be gone on with, when the parameters are what they were.
        if time.time() - folder.stat().st_mtime > checkpoints.STALE_DAYS * 86_400:
            yield Finding(f"{folder} has not been gone on with for days", f"rm -r {shlex.quote(str(folder))}")
    root = identity.project_root() / journal.SPOOLS
    waiting = journal.n_waiting(root)
    if waiting and not running:
        yield Finding(f"{waiting} events of stages wait to be sent to MLflow", "python -m pipeline sync")
    if refused := journal.n_refused(root):
        yield Finding(f"{refused} runs were not taken by MLflow", journal.remedy(journal.REFUSED))


def bundles() -> Iterator[Finding]:
    from pipeline.networks.bundle import load_bundle

    for folder in sorted({path.parent for path in Path("models").glob("*/model.*")}):
        try:
            load_bundle(folder)
        except UserError as error:
            yield Finding(str(error), rebuild(str(folder), dict(locked_outputs()).get(str(folder))))
