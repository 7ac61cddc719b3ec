"""A project of one stage, and DVC's cache."""

import hashlib
import shutil
from pathlib import Path

from ruamel.yaml import YAML

from pipeline.core import config
from tests.support.clones import call
from tests.support.imports import ROOT

YML = YAML(typ="safe", pure=True)


def in_cache(cache: Path, listing: bytes) -> str:
    """Put the listing of a folder into a cache; returns its checksum."""
    md5 = hashlib.md5(listing).hexdigest() + ".dir"
    place = cache / "files/md5" / md5[:2] / md5[2:]
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(listing)
    return md5


def tiny(folder: Path) -> Path:
    """A project of one stage, which writes a file of models/train without a model in it; reproduced."""
    folder.mkdir(exist_ok=True)
    call(folder, "git", "init", "--quiet")
    call(folder, "dvc", "init", "--quiet")
    shutil.copy(ROOT / ".dvc/config", folder / ".dvc/config")  # or dvc leaves a process that sends statistics
    stage = {"cmd": "mkdir -p models/train && echo {} > models/train/model.json", "outs": ["models/train"]}
    (folder / "dvc.yaml").write_text(config.dump_yaml({"stages": {"train": stage}}, YML))
    call(folder, "dvc", "repro")
    return folder
