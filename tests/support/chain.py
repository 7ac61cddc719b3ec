"""Run the stages in this process, and write the dvc.lock that DVC would write after them."""

import importlib
import json
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from pipeline.tracking import identity

CHAIN = (
    "fetch", "prepare", "baseline", "train", "finetune", "search",
    "evaluate@train", "evaluate@finetune", "evaluate@search", "register",
)  # fmt: skip


def run(stage: str) -> None:
    name, _, item = stage.partition("@")
    importlib.import_module(f"pipeline.stages.{name}.stage").main(*([item] if item else []))


def run_chain(*stages: str) -> None:
    for stage in stages or CHAIN:
        run(stage)


OUTS = {
    "fetch": ["data/raw"],
    "prepare": ["data/prepared", "reports/data.html"],
    "baseline": ["reports/baseline"],
    "register": ["models/champion"],
}


def lock(*chain: str) -> None:
    """dvc.lock as DVC writes it after the chain."""
    stages: dict[str, Any] = {}
    declared, params = (YAML(typ="safe", pure=True).load(Path(name)) for name in ("dvc.yaml", "params.yaml"))
    for stage in chain or CHAIN:
        entry = identity.stage_entry(stage)
        name, _, model = stage.partition("@")
        given = {watched: reduce(getitem, watched.split("."), params) for watched in declared["stages"][name]["params"]}
        outs = OUTS.get(stage) or [f"reports/{model}" if model else f"models/{name}"]
        stages[stage] = {
            "cmd": "",
            "deps": [{"path": path, "hash": "md5", "md5": md5} for path, md5 in entry["deps"].items()],
            "params": {"params.yaml": given},
            "outs": [{"path": out, "hash": "md5", "md5": identity.checksum(Path(out))} for out in outs],
        }
    Path("dvc.lock").write_text(json.dumps({"schema": "2.0", "stages": stages}))
