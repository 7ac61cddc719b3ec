"""Run the checks of the doctor, in order."""

import os
import sys
from collections.abc import Callable, Iterator

from pipeline.commands.doctor import dvc_state, installation, storage, tracking
from pipeline.commands.doctor.finding import INSTALL, Finding, first_line
from pipeline.core.errors import UserError

CHECKS: dict[str, Callable[[], Iterator[Finding]]] = {
    "programs": installation.programs,
    "packages": installation.packages,
    "torch": installation.torch_works,
    "repository": installation.repository,
    "params.yaml": installation.params,
    "disk": installation.disk,
    "MLflow": tracking.database,
    "dvc.lock": dvc_state.dvc_files,
    "DVC locks": dvc_state.dvc_locks,
    "cache": storage.cache,
    "outputs": storage.outputs,
    "remotes": storage.remotes,
    "bundles": storage.bundles,
    ".state": tracking.state,
}
# DVC refuses to run where `repository` has a finding.
NEED_REPOSITORY = {"dvc.lock", "DVC locks", "cache", "outputs", "remotes", "bundles"}


def doctor() -> None:
    """Print a line per check, followed by its problems and their remedies; exits with status 1 if there are any."""
    is_coloured = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    green, red, plain = ("\033[32m", "\033[31m", "\033[0m") if is_coloured else ("", "", "")
    n_problems = 0
    for name, findings in examine():
        verdict = "skip " if findings is None else f"{red}wrong{plain}" if findings else f"{green}ok{plain}   "
        print(verdict, name, flush=True)
        for finding in findings or ():
            print(f"      {finding.what}\n      remedy: {finding.remedy}", flush=True)
        n_problems += len(findings or ())
    if n_problems:
        print(f"{n_problems} problem{'s' * (n_problems != 1)} found")
        raise SystemExit(1)
    print("all checks passed")


def examine() -> Iterator[tuple[str, list[Finding] | None]]:
    """Run each check; yields its name and its findings, or None if it needs a repository and there is none."""
    has_repository = True
    for name, check in CHECKS.items():
        if not has_repository and name in NEED_REPOSITORY:
            yield name, None
            continue
        findings = []
        try:
            for finding in check():
                findings.append(finding)  # unlike `extend`, keeps the findings before an error
        except ImportError as error:
            findings.append(Finding(f"cannot be checked: {error}", f'{INSTALL} --editable ".[test]"'))
        except Exception as error:  # the other checks have to run
            reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {first_line(error)}"
            remedy = "fix the other problems first, then run the doctor again"
            findings.append(Finding(f"cannot be checked: {reason}", remedy))
        if name == "repository":
            has_repository = not findings
        yield name, findings
