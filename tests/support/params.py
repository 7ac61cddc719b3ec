"""The shipped params.yaml, made small."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from pipeline.core import config
from tests.support.imports import ROOT

IRIS = {"data.source": "sklearn:iris", "data.target": "target", "data.task": "multiclass"}
SMALL = {
    "train.epochs": 3,
    "train.batch_size": 32,
    "finetune.epochs": 2,
    "search.n_trials": 2,
    "search.epochs": 1,
    "data.transfer": None,
    "data.min_count": 1,
    "register.minimum": 0.0,
}


def write_params(folder: Path, changes: Mapping[str, Any]) -> None:
    """The shipped params.yaml, made small, with some `section.key` changed."""
    yaml = YAML(typ="safe", pure=True)
    values = yaml.load((ROOT / "params.yaml").read_text())
    for name, value in {**SMALL, **changes}.items():
        section, _, key = name.partition(".")
        values[section][key] = value
    (folder / "params.yaml").write_text(config.dump_yaml(values, yaml))
