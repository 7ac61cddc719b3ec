"""The checks of the doctor, in order."""

from collections.abc import Callable, Iterator

from pipeline.commands.doctor import dvc_state, installation, project, storage, tracking
from pipeline.commands.doctor.finding import INSTALL, Finding
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
    "locks of DVC": dvc_state.dvc_locks,
    "cache": storage.cache,
    "outputs": storage.outputs,
    "remotes": storage.remotes,
    "bundles": project.bundles,
    ".state": project.state,
}


def examine() -> Iterator[tuple[str, list[Finding]]]:
    """Each check by its name, with what it found; nothing where all is well."""
    for name, check in CHECKS.items():
        findings = []
        try:
            for finding in check():
                findings.append(finding)  # one by one: what was found stays, if the next look fails
        except ImportError as error:
            findings.append(Finding(f"cannot be checked: {error}", f'{INSTALL} --editable ".[test]"'))
        except Exception as error:  # the other checks go on
            line = (str(error).strip() or "no message").splitlines()[0]
            reason = line if isinstance(error, UserError) else f"{type(error).__name__}: {line}"
            remedy = "fix the other problems first, then run the doctor again"
            findings.append(Finding(f"cannot be checked: {reason}", remedy))
        yield name, findings
