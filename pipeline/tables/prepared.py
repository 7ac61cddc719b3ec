"""`data/prepared/`: schema, preprocessor and splits on disk."""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save

from pipeline.core import files
from pipeline.core.errors import UserError
from pipeline.tables import preprocessing
from pipeline.tables import schema as schemas
from pipeline.tables.preprocessing import Preprocessor
from pipeline.tables.schema import Schema, load_schema
from pipeline.tables.tensors import TabularData, check_fit

PREPARED = Path("data/prepared")
SPLITS = ("train", "val", "test")


def save_split(folder: Path, split: str, data: TabularData, rows: np.ndarray) -> None:
    """Write one split of a domain; `rows` [n] are row numbers of the raw table."""
    tensors = {"x_num": data.x_num, "x_cat": data.x_cat, "y": data.y, "rows": torch.from_numpy(rows)}
    content = save({name: tensor.contiguous() for name, tensor in tensors.items()})
    files.write_bytes(folder / f"{split}.safetensors", content)


def load_split(domain: str, split: str, prepared: Path = PREPARED) -> TabularData:
    """Read a split of domain `source` or `transfer`; raises `UserError` if prepare has not run."""
    path = _stored(prepared, domain, split)
    tensors, learned = files.read_tensors(path), load_schema(prepared / "schema.json")
    target = learned.transfer_target if domain == "transfer" else learned.target
    if set(tensors) != {"x_num", "x_cat", "y", "rows"} or target is None:
        raise UserError(f"{path} was not written by prepare: run dvc repro prepare")
    data = TabularData(tensors["x_num"], tensors["x_cat"], tensors["y"])
    check_fit(data, learned, str(path))
    if target.task == "regression":
        fits = data.y.dtype == torch.float32 and bool(data.y.isfinite().all())
    else:
        fits = data.y.dtype == torch.int64 and bool(((data.y >= 0) & (data.y < len(target.classes))).all())
    if not fits:
        raise UserError(f"{path} holds targets outside its schema: run dvc repro prepare")
    return data


def load_rows(domain: str, split: str, prepared: Path = PREPARED) -> np.ndarray:
    """Row numbers [n] of a split in the raw table."""
    path = _stored(prepared, domain, split)
    rows = files.read_tensors(path).get("rows")
    if rows is None or rows.dtype != torch.int64 or rows.dim() != 1 or bool((rows < 0).any()):
        raise UserError(f"{path} was not written by prepare: run dvc repro prepare")
    return rows.numpy()


def domains(prepared: Path = PREPARED) -> list[str]:
    """The domains that have rows."""
    return [name for name in ("source", "transfer") if (prepared / name).is_dir()]


def _stored(prepared: Path, domain: str, split: str) -> Path:
    path = prepared / domain / f"{split}.safetensors"
    if not path.exists():
        raise UserError(f"{path} is missing: run dvc repro prepare")
    return path


def load_prepared(folder: Path = PREPARED) -> tuple[Schema, Preprocessor]:
    schema = schemas.load_schema(folder / "schema.json")
    return schema, preprocessing.load_preprocessor(folder / "preprocessor.safetensors", schema)
