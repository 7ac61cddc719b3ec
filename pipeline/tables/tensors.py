"""`TabularData`: rows as tensors, and batches of them."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.core.errors import UserError
from pipeline.tables.schema import Schema

PICKED_BATCHES = 16  # batches gathered at once, since few large gathers are faster


@dataclass(frozen=True)
class TabularData:
    """Rows as tensors: x_num [n, d_num] float32, x_cat [n, d_cat] integer codes, y [n] class codes or float32.

    Batches for a stack of members have one more dimension in front: [members, B, d_num] and so on.
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
    """Yield batches of `size` rows in the given order [K or 1, n]."""
    for chosen in order.split(PICKED_BATCHES * size, 1):
        picked = data.take(chosen)
        for start in range(0, len(picked), size):
            part = slice(start, start + size)
            yield TabularData(picked.x_num[:, part], picked.x_cat[:, part], picked.y[:, part])


def check_fit(data: TabularData, learned: Schema, where: str) -> None:
    """Raise `UserError` unless the rows match the widths, types and category codes of a schema."""
    n, limits = len(data.y) if data.y.dim() == 1 else -1, torch.tensor(learned.cardinalities)
    shaped = data.x_num.shape == (n, learned.d_num) and data.x_cat.shape == (n, len(limits))
    typed = data.x_num.dtype == torch.float32 and data.x_cat.dtype in (torch.uint8, torch.int16)
    if not shaped or not typed:
        raise UserError(f"{where} must have the columns of the schema: run dvc repro")
    codes = data.x_cat
    known = not codes.numel() or bool((codes.amin(0).cpu() >= 0).all() and (codes.amax(0).cpu() < limits).all())
    # A sum finds a NaN or an infinity without a copy of the table.
    if not known or not bool(data.x_num.sum().isfinite()):
        raise UserError(f"{where} holds codes outside of the schema, NaN or infinity: run dvc repro")
