"""Input layers for tables: numbers as bins or waves, categories as look-ups."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

ROWS_PER_BIN = 16  # at least: fewer rows per bin fit noise


class TableLinear(nn.Module):
    """Linear layer over numbers and one-hot categories; each category is a look-up in `table` [all categories, d_out].

    Shape: (x_num [B, d_num] float32, x_cat [B, d_cat] integer codes) to [B, d_out].
    """

    offsets: Tensor

    def __init__(self, d_num: int, cardinalities: Sequence[int], d_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(d_out, d_num))
        self.table = nn.Parameter(torch.empty(sum(cardinalities), d_out))
        self.bias = nn.Parameter(torch.empty(d_out))
        self.register_buffer("offsets", offsets_of(cardinalities), persistent=False)

    @property
    def fan_in(self) -> int:
        """Number of nonzero inputs: each one-hot column has one."""
        return self.weight.shape[1] + len(self.offsets)

    def forward(self, x: tuple[Tensor, Tensor]) -> Tensor:
        x_num, x_cat = x
        out = nn.functional.linear(x_num, self.weight, self.bias)
        if len(self.offsets):
            out = out + nn.functional.embedding_bag(x_cat + self.offsets, self.table, mode="sum")
        return out


class PiecewiseLinear(nn.Module):
    """Encode each number as its progress through the bins of its column (Gorishniy et al. 2022, section 3.2).

    Unlike in the paper, the numbers themselves are kept in front of their bins, which helps on small tables. `edges` are
    the ascending bin edges of each column. Shape: x [..., d_num] to [..., d_num + n_bins of all columns].
    """

    edges: Tensor
    counts: Tensor

    def __init__(self, edges: Sequence[Tensor]) -> None:
        super().__init__()
        self.register_buffer("edges", torch.cat(list(edges)))
        self.register_buffer("counts", torch.tensor([len(each) for each in edges]))
        bins = [len(each) - 1 for each in edges]
        column = torch.arange(len(edges)).repeat_interleave(torch.tensor(bins))
        # The first and the last bin are unbounded, as in the paper.
        floor = torch.cat([torch.tensor([-torch.inf] + [0.0] * (n - 1)) for n in bins])
        ceiling = torch.cat([torch.tensor([1.0] * (n - 1) + [torch.inf]) for n in bins])
        low = torch.cat([each[:-1] for each in edges])
        width = torch.cat([each.diff() for each in edges])
        self.register_buffer("column", column, persistent=False)
        for name, values in {"low": low, "width": width, "floor": floor, "ceiling": ceiling}.items():
            self.register_buffer(name, values.unsqueeze(1), persistent=False)

    def encode(self, x_num: Tensor) -> Tensor:
        # Transposed, since copying whole rows is much faster than picking columns from each row.
        columns = x_num.mT.index_select(-2, self.get_buffer("column"))
        share = columns.sub_(self.get_buffer("low")).div_(self.get_buffer("width"))
        torch.maximum(share, self.get_buffer("floor"), out=share)
        torch.minimum(share, self.get_buffer("ceiling"), out=share)
        return torch.cat([x_num.mT, share], -2).mT

    def forward(self, x: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return self.encode(x[0]), x[1]


class Periodic(nn.Module):
    """Encode numbers by sines and cosines, a linear layer per column and ReLU (Gorishniy et al. 2022, section 3.3).
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
    """Replace each category by a learned vector, appended to the numbers.

    Shape: (x_num [B, d_num], x_cat [B, d_cat]) to (x [B, d_num + d_cat * d_embedding], no categories [B, 0]).
    """

    offsets: Tensor

    def __init__(self, cardinalities: Sequence[int], d_embedding: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(sum(cardinalities), d_embedding))
        self.register_buffer("offsets", offsets_of(cardinalities), persistent=False)

    def forward(self, x: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        x_num, x_cat = x
        vectors = nn.functional.embedding(x_cat + self.offsets, self.table).flatten(1)
        return torch.cat([x_num, vectors], 1), x_cat[:, :0]


def bin_edges(x_num: Tensor, n_bins: int) -> tuple[Tensor, ...]:
    """Return the edges of at most `n_bins` bins of equally many training rows x_num [n, d_num], for each column."""
    if not x_num.shape[1]:
        return ()
    n_bins = max(min(n_bins, len(x_num) // ROWS_PER_BIN), 1)
    shares = np.linspace(0, 1, n_bins + 1)
    edges = []
    for column in x_num.cpu().numpy().T:  # one by one: NumPy would copy the whole table
        distinct = torch.from_numpy(np.unique(np.quantile(column, shares).astype(np.float32)))
        # A constant column has one bin, of width 1.
        edges.append(distinct if len(distinct) > 1 else torch.stack([distinct[0], distinct[0] + 1]))
    return tuple(edges)


def offsets_of(cardinalities: Sequence[int]) -> Tensor:
    """Return [d_cat]: the first row of each column in the joint table of all categories."""
    return torch.tensor([0, *cardinalities[:-1]] if cardinalities else [], dtype=torch.int64).cumsum(0)
