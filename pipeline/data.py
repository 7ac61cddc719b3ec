"""`TabularData`, the tensors a network learns from; how rows are split, stored, and drawn in batches."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save
from torch import Tensor

from pipeline import files
from pipeline.errors import UserError
from pipeline.schema import Schema, canonical, known_date_format, load_schema
from pipeline.settings import Split

PREPARED = Path("data/prepared")
SPLITS = ("train", "val", "test")
PICKED_BATCHES = 16


@dataclass(frozen=True)
class TabularData:
    """Rows as tensors: x_num [n, d_num] float32, x_cat [n, d_cat] integer codes, y [n] class codes or float32.

    Batches of the members of a stack have a dimension more, in front: [members, B, d_num] and so on.
    """

    x_num: Tensor
    x_cat: Tensor
    y: Tensor

    def __len__(self) -> int:
        return self.y.shape[-1]

    def take(self, rows: Tensor) -> "TabularData":
        return TabularData(self.x_num[rows], self.x_cat[rows], self.y[rows])

    def to(self, device: torch.device) -> "TabularData":
        return TabularData(self.x_num.to(device), self.x_cat.to(device), self.y.to(device))


def batches(data: TabularData, order: Tensor, size: int) -> Iterator[TabularData]:
    """Rows in the order [K or 1, n], `size` at a time: picked for many batches at once, since few large picks are faster."""
    for chosen in order.split(PICKED_BATCHES * size, 1):
        picked = data.take(chosen)
        for start in range(0, len(picked), size):
            part = slice(start, start + size)
            yield TabularData(picked.x_num[:, part], picked.x_cat[:, part], picked.y[:, part])


def generator(*key: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Random numbers that are a function of `key` alone, such as (seed, epoch)."""
    seed = int(np.random.SeedSequence((len(key), *key)).generate_state(1, np.uint64)[0] >> np.uint64(1))
    return torch.Generator(device=device).manual_seed(seed)


# --------------------------------------------------------------------------------------------------------- storage


def save_split(folder: Path, split: str, data: TabularData, rows: np.ndarray) -> None:
    """One split of a domain; `rows` [n] are the row numbers in the raw table."""
    tensors = {"x_num": data.x_num, "x_cat": data.x_cat, "y": data.y, "rows": torch.from_numpy(rows)}
    content = save({name: tensor.contiguous() for name, tensor in tensors.items()})
    files.write_bytes(folder / f"{split}.safetensors", content)


def load_split(domain: str, split: str, prepared: Path = PREPARED) -> TabularData:
    """`domain` is source or transfer; raises `UserError` if prepare has not run."""
    path = _stored(prepared, domain, split)
    tensors, learned = files.read_tensors(path), load_schema(prepared / "schema.json")
    target = learned.transfer_target if domain == "transfer" else learned.target
    if set(tensors) != {"x_num", "x_cat", "y", "rows"} or target is None:
        raise UserError(f"{path} is not what prepare writes")
    data = TabularData(tensors["x_num"], tensors["x_cat"], tensors["y"])
    check_fit(data, learned, str(path))
    if target.task == "regression":
        fits = data.y.dtype == torch.float32 and bool(data.y.isfinite().all())
    else:
        fits = data.y.dtype == torch.int64 and bool(((data.y >= 0) & (data.y < len(target.classes))).all())
    if not fits:
        raise UserError(f"{path} holds a target that its schema does not know")
    return data


def check_fit(data: TabularData, learned: Schema, where: str) -> None:
    """Raises `UserError` unless the rows have the columns of a schema, and no other category codes."""
    n, limits = len(data.y) if data.y.dim() == 1 else -1, torch.tensor(learned.cardinalities)
    shaped = data.x_num.shape == (n, learned.d_num) and data.x_cat.shape == (n, len(limits))
    typed = data.x_num.dtype == torch.float32 and data.x_cat.dtype in (torch.uint8, torch.int16)
    if not shaped or not typed:
        raise UserError(f"{where} does not have the columns of the schema: run dvc repro")
    codes_fit = not data.x_cat.numel() or bool(
        (data.x_cat.amin(0).cpu() >= 0).all() and (data.x_cat.amax(0).cpu() < limits).all()
    )
    # One sum tells of a NaN or an infinity anywhere, without a copy of the table.
    if not codes_fit or not bool(data.x_num.sum().isfinite()):
        raise UserError(f"{where} holds values that prepare does not write")


def load_rows(domain: str, split: str, prepared: Path = PREPARED) -> np.ndarray:
    """[n] row numbers of a split in the raw table."""
    path = _stored(prepared, domain, split)
    rows = files.read_tensors(path).get("rows")
    if rows is None or rows.dtype != torch.int64 or rows.dim() != 1 or bool((rows < 0).any()):
        raise UserError(f"{path} is not what prepare writes")
    return rows.numpy()


def domains(prepared: Path = PREPARED) -> list[str]:
    """The domains that have rows: source, and transfer where there is one."""
    return [name for name in ("source", "transfer") if (prepared / name).is_dir()]


def _stored(prepared: Path, domain: str, split: str) -> Path:
    path = prepared / domain / f"{split}.safetensors"
    if not path.exists():
        raise UserError(f"{path} is missing: run dvc repro prepare")
    return path


# ---------------------------------------------------------------------------------------------------------- splits


def split_rows(table: pd.DataFrame, codes: np.ndarray | None, split: Split, seed: int) -> dict[str, np.ndarray]:
    """Positions of the train, val and test rows of `table`, each in ascending order.

    `codes` [n] are class codes to stratify a random split by, or None. A class of three rows or more has a row in each
    split; a rarer one goes to training first. Raises `UserError` if a split is left empty.
    """
    how, _, column = split.by.partition(":")
    rng = np.random.default_rng(seed)
    if how == "time":
        parts = _by_time(table[column], split)
    elif how == "group":
        parts = _by_group(table[column], split, rng)
    else:
        parts = _at_random(np.zeros(len(table), np.int64) if codes is None else codes, split, rng)
    for name in SPLITS:
        need = 2 if name == "train" else 1
        if (parts == name).sum() < need:
            raise UserError(
                f"data.split leaves {(parts == name).sum()} of {len(table)} rows for {name}, which needs {need}"
            )
    return {name: np.flatnonzero(parts == name) for name in SPLITS}


def _at_random(codes: np.ndarray, split: Split, rng: np.random.Generator) -> np.ndarray:
    parts = np.full(len(codes), "train", dtype="<U5")
    for code in np.unique(codes):
        rows = rng.permutation(np.flatnonzero(codes == code))
        at_least = 1 if len(rows) >= 3 else 0
        # Training keeps a row of every class, and validation one of a class that has three.
        n_test = max(0, min(max(at_least, round(len(rows) * split.test)), len(rows) - 1 - at_least))
        n_val = min(max(at_least, round(len(rows) * split.val)), len(rows) - 1 - n_test)
        parts[rows[:n_test]] = "test"
        parts[rows[n_test : n_test + n_val]] = "val"
    return parts


def _by_time(moments: pd.Series, split: Split) -> np.ndarray:
    """The past trains, the future tests; rows of one moment stay together."""
    if moments.isna().any():
        raise UserError(f"data.split.by: {str(moments.name)!r} is missing in {int(moments.isna().sum())} rows")
    if not pd.api.types.is_numeric_dtype(moments.dtype) and not pd.api.types.is_datetime64_any_dtype(moments.dtype):
        text = canonical(moments)
        date_format = known_date_format(text)
        if date_format is None:
            raise UserError(f"data.split.by: {str(moments.name)!r} holds neither times nor numbers")
        moments = pd.to_datetime(text, utc=True, format=date_format)
    # A row's place in time is the share of rows at or before the first row of its moment.
    place = moments.rank(method="min", pct=False).sub(1).div(len(moments)).to_numpy()
    return np.select([place < split.train, place < split.train + split.val], ["train", "val"], "test")


def _by_group(groups: pd.Series, split: Split, rng: np.random.Generator) -> np.ndarray:
    """Whole groups to a split, until it has its share of the rows; rows without a group are one group."""
    codes, names = pd.factorize(canonical(groups), sort=True, use_na_sentinel=False)
    if len(names) < len(SPLITS):
        raise UserError(f"data.split.by: {str(groups.name)!r} has {len(names)} groups; three splits need at least 3")
    sizes = np.bincount(codes)
    wanted = {name: getattr(split, name) * len(groups) for name in SPLITS}
    part = np.empty(len(names), dtype="<U5")
    order = rng.permutation(len(names))
    for left, group in zip(range(len(names), 0, -1), order[np.argsort(-sizes[order], kind="stable")], strict=True):
        # The largest first, each where most rows are lacking; the last ones where a split would stay empty.
        empty = [name for name in SPLITS if name not in part]
        name = max(empty if left <= len(empty) else SPLITS, key=lambda name: wanted[name])
        part[group] = name
        wanted[name] -= sizes[group]
    return part[codes]
