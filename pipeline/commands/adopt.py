"""`python -m pipeline adopt`."""

from pathlib import Path

from pipeline.core.errors import UserError


def adopt(patch: Path) -> None:
    """Write the parameters in `patch` to params.yaml and print each with its old and new value."""
    from pipeline.core import config

    if not patch.exists():
        raise UserError(f"{patch} is missing: run dvc repro search")
    for name, (old, new) in config.adopt(config.read_yaml(patch)).items():
        print(f"{name}: {old} -> {new}" if old != new else f"{name}: {old} (unchanged)")
