"""`data/prepared/`: schema, preprocessor and splits on disk."""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from pipeline.core import files
from pipeline.core.errors import UserError
from pipeline.tables.preprocessing import Preprocessor, load_preprocessor
from pipeline.tables.schema import Schema, load_schema
from pipeline.tables.tensors import TabularData, check_fit

PREPARED = Path("data/prepared")
SPLITS = ("train", "val", "test")


def save_split(folder: Path, split: str, data: TabularData, rows: np.ndarray) -> None:
    """Write one split of a domain; `rows` [n] are its row numbers in the raw table."""
    tensors = {"x_num": data.x_num, "x_cat": data.x_cat, "y": data.y, "rows": torch.from_numpy(rows)}
    content = save({name: tensor.contiguous() for name, tensor in tensors.items()})
    files.write_bytes(folder / f"{split}.safetensors", content)


def load_split(domain: str, split: str, prepared: Path = PREPARED) -> TabularData:
    """Read a split of the domain source or transfer; raises `UserError` if it is missing or contradicts the schema."""
    path, tensors = _tensors(prepared, domain, split)
    learned = load_schema(prepared / "schema.json")
    target = learned.transfer_target if domain == "transfer" else learned.target
    if set(tensors) != {"x_num", "x_cat", "y", "rows"} or target is None:
        raise UserError(f"{path} was not written by prepare: run dvc repro")
    data = TabularData(tensors["x_num"], tensors["x_cat"], tensors["y"])
    check_fit(data, learned, str(path))
    if target.task == "regression":
        fits = data.y.dtype == torch.float32 and bool(data.y.isfinite().all())
    else:
        fits = data.y.dtype == torch.int64 and bool(((data.y >= 0) & (data.y < len(target.classes))).all())
    if not fits:
        raise UserError(f"{path} holds target values that are not in its schema: run dvc repro")
    return data


def load_rows(domain: str, split: str, prepared: Path = PREPARED) -> np.ndarray:
    """Read the row numbers [n] of a split in the raw table."""
    path, tensors = _tensors(prepared, domain, split)
    rows = tensors.get("rows")
    if rows is None or rows.dtype != torch.int64 or rows.dim() != 1 or bool((rows < 0).any()):
        raise UserError(f"{path} was not written by prepare: run dvc repro")
    return rows.numpy()


def domains(prepared: Path = PREPARED) -> list[str]:
    """List the domains that have rows: source, and transfer if there is one."""
    return [name for name in ("source", "transfer") if (prepared / name).is_dir()]


def _tensors(prepared: Path, domain: str, split: str) -> tuple[Path, dict[str, Tensor]]:
    path = prepared / domain / f"{split}.safetensors"
    if not path.exists():
        raise UserError(f"{path} is missing: run dvc repro prepare")
    return path, files.read_tensors(path)


def load_prepared(folder: Path = PREPARED) -> tuple[Schema, Preprocessor]:
    schema = load_schema(folder / "schema.json")
    return schema, load_preprocessor(folder / "preprocessor.safetensors", schema)
