"""The modules that read tables: numbers as bins or waves, categories as look-ups."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

ROWS_A_BIN = 16


class TableLinear(nn.Module):
    """A linear layer over numbers and one-hot categories, without ever building the one-hot matrix.

    The product of a one-hot row and a weight matrix is one row of that matrix, so each category is a look-up in `table`.

    Shape: (x_num [B, d_num] float32, x_cat [B, d_cat] integer codes) to [B, d_out].
    """

    offsets: Tensor

    def __init__(self, d_num: int, cardinalities: Sequence[int], d_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(d_out, d_num))
        self.table = nn.Parameter(torch.empty(sum(cardinalities), d_out))  # (all categories of all columns, d_out)
        self.bias = nn.Parameter(torch.empty(d_out))
        self.register_buffer("offsets", starts(cardinalities), persistent=False)

    @property
    def fan_in(self) -> int:
        """Inputs that are not zero: what keeps the scale of the outputs is not the width of the one-hot row."""
        return self.weight.shape[1] + len(self.offsets)

    def forward(self, x: tuple[Tensor, Tensor]) -> Tensor:
        x_num, x_cat = x
        out = nn.functional.linear(x_num, self.weight, self.bias)
        if len(self.offsets):
            out = out + nn.functional.embedding_bag(x_cat + self.offsets, self.table, mode="sum")
        return out


class PiecewiseLinear(nn.Module):
    """Numbers as how far they have come through the bins of their column (Gorishniy et al. 2022, section 3.2).

    The numbers themselves stand before their bins, unlike in the paper: small tables gain by it. `edges` are the bins'
    borders, a tensor a column, in ascending order. Shape: x [..., d_num] to [..., d_num + n_bins of all].
    """

    edges: Tensor
    counts: Tensor

    def __init__(self, edges: Sequence[Tensor]) -> None:
        super().__init__()
        self.register_buffer("edges", torch.cat(list(edges)))
        self.register_buffer("counts", torch.tensor([len(each) for each in edges]))
        bins = [len(each) - 1 for each in edges]
        column = torch.arange(len(edges)).repeat_interleave(torch.tensor(bins))
        # Beyond the outermost edges the first and the last bin go on, as in the paper.
        floor = torch.cat([torch.tensor([-torch.inf] + [0.0] * (n - 1)) for n in bins])
        ceiling = torch.cat([torch.tensor([1.0] * (n - 1) + [torch.inf]) for n in bins])
        low = torch.cat([each[:-1] for each in edges])
        width = torch.cat([each.diff() for each in edges])
        for name, values in {"column": column, "low": low, "width": width, "floor": floor, "ceiling": ceiling}.items():
            self.register_buffer(name, values.unsqueeze(1) if name != "column" else values, persistent=False)

    def encode(self, x_num: Tensor) -> Tensor:
        # Columns as rows: those are copied whole, where picking from each row would take as long as the layer that follows.
        columns = x_num.mT.index_select(-2, self.get_buffer("column"))
        share = columns.sub_(self.get_buffer("low")).div_(self.get_buffer("width"))
        torch.maximum(share, self.get_buffer("floor"), out=share)
        torch.minimum(share, self.get_buffer("ceiling"), out=share)
        return torch.cat([x_num.mT, share], -2).mT

    def forward(self, x: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return self.encode(x[0]), x[1]


class Periodic(nn.Module):
    """Numbers as sines and cosines of learnt frequencies, then a linear layer a column and ReLU (ibid., section 3.3).

    Shape: x [..., B, d_num] to [..., B, d_num * d_embedding].
    """

    def __init__(self, d_num: int, n_frequencies: int, d_embedding: int) -> None:
        super().__init__()
        self.frequency = nn.Parameter(torch.empty(d_num, n_frequencies))
        self.mix = nn.Parameter(torch.empty(d_num, 2 * n_frequencies, d_embedding))
        self.bias = nn.Parameter(torch.empty(d_num, d_embedding))

    @staticmethod
    def encode(x_num: Tensor, frequency: Tensor, mix: Tensor, bias: Tensor) -> Tensor:
        angles = 2 * torch.pi * frequency * x_num.unsqueeze(-1)
        waves = torch.cat([angles.cos(), angles.sin()], -1)
        return torch.relu(torch.einsum("...bdf,...dfe->...bde", waves, mix) + bias).flatten(-2)

    def forward(self, x: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return self.encode(x[0], self.frequency, self.mix, self.bias), x[1]


class CategoryEmbedding(nn.Module):
    """Each category as a learnt vector, beside the numbers.

    Shape: (x_num [B, d_num], x_cat [B, d_cat]) to (x [B, d_num + d_cat * d_embedding], no categories [B, 0]).
    """

    offsets: Tensor

    def __init__(self, cardinalities: Sequence[int], d_embedding: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(sum(cardinalities), d_embedding))
        self.register_buffer("offsets", starts(cardinalities), persistent=False)

    def forward(self, x: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        x_num, x_cat = x
        found = nn.functional.embedding(x_cat + self.offsets, self.table).flatten(1)
        return torch.cat([x_num, found], 1), x_cat[:, :0]


def bin_edges(x_num: Tensor, n_bins: int) -> tuple[Tensor, ...]:
    """The borders of at most `n_bins` bins with equally many of the training rows x_num [n, d_num], for each column.

    A bin has ROWS_A_BIN rows or more: what is learnt of fewer is their noise.
    """
    if not x_num.shape[1]:
        return ()
    n_bins = max(min(n_bins, len(x_num) // ROWS_A_BIN), 1)
    shares = np.linspace(0, 1, n_bins + 1)
    edges = []
    for column in x_num.cpu().numpy().T:  # one by one: of all together NumPy would make copies
        distinct = torch.from_numpy(np.unique(np.quantile(column, shares).astype(np.float32)))
        # A column that never varied in training has one bin, of width 1.
        edges.append(distinct if len(distinct) > 1 else torch.stack([distinct[0], distinct[0] + 1]))
    return tuple(edges)


def starts(cardinalities: Sequence[int]) -> Tensor:
    """[d_cat] where the categories of each column begin in a table of all."""
    return torch.tensor([0, *cardinalities[:-1]] if cardinalities else [], dtype=torch.int64).cumsum(0)
