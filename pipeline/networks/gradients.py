"""The layers of a stack: what each gives for K networks at once, and its derivative.

Derivatives are written out: recording each operation for `torch.autograd` takes as long as the operations themselves
where networks are small. Weights are [K, ...], by their names in the layer that they come from; hidden values and their
gradients are [K, B, width], or [1, B, width] before the first weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.networks.modules import CategoryEmbedding, Periodic, PiecewiseLinear, TableLinear

Weights = dict[str, Tensor]
aten = torch.ops.aten  # torch's own derivatives of activations
SELU_ALPHA, SELU_SCALE = 1.6732632423543772, 1.0507009873554805  # Klambauer et al. 2017, section 2


@dataclass(frozen=True)
class Mixup:
    """Each row mixed with its partner, by mixup (Zhang et al. 2018, eq. 1).

    The first layer is linear: mixing what comes out of it mixes the rows that go in. `partner` [K or 1, B] is a
    permutation; `share` [K or 1] is how much of a row is itself.
    """

    partner: Tensor
    share: Tensor

    def apply(self, hidden: Tensor) -> Tensor:
        return torch.lerp(_rows(hidden, self.partner), hidden, self.share.view(-1, 1, 1))

    def through(self, gradient: Tensor) -> Tensor:
        return torch.lerp(_rows(gradient, self.partner.argsort(1)), gradient, self.share.view(-1, 1, 1))


@dataclass(frozen=True)
class Batch:
    """What a layer may need besides what comes from the layer before: category codes [K or 1, B, d_cat], dropout's random
    bits [K or 1, n] (None where nothing is dropped), and how rows are mixed (None where they are not)."""

    x_cat: Tensor
    words: Tensor | None = None
    mixup: Mixup | None = None


class Layer:
    """A layer keeps from `forward` what its derivative needs, until the next `forward`."""

    def forward(self, hidden: Tensor, batch: Batch) -> Tensor:
        raise NotImplementedError

    def gradients(self, gradient: Tensor) -> Weights:
        """Those of its weights, for the gradient of what it gave."""
        return {}

    def through(self, gradient: Tensor) -> Tensor:
        """The gradient of what it was given."""
        raise NotImplementedError


class Bins(Layer):
    """`PiecewiseLinear`, which has nothing to learn."""

    def __init__(self, layer: PiecewiseLinear) -> None:
        self._layer = layer

    def forward(self, hidden: Tensor, batch: Batch) -> Tensor:
        return self._layer.encode(hidden)


class Waves(Layer):
    """`Periodic`: the one layer left to `torch.autograd`."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights

    def forward(self, hidden: Tensor, batch: Batch) -> Tensor:
        with torch.enable_grad():
            self._leaves = {name: weight.detach().requires_grad_() for name, weight in self._weights.items()}
            frequency, mix, bias = (self._leaves[name] for name in ("frequency", "mix", "bias"))
            self._outputs = Periodic.encode(hidden, frequency.unsqueeze(1), mix, bias.unsqueeze(1))
        return self._outputs.detach()

    def gradients(self, gradient: Tensor) -> Weights:
        found = torch.autograd.grad(self._outputs, list(self._leaves.values()), gradient)
        return dict(zip(self._leaves, found, strict=True))


class Embedding(Layer):
    """`CategoryEmbedding`: the numbers, and a row of the table for each category."""

    def __init__(self, layer: CategoryEmbedding, weights: Weights) -> None:
        self._table, self._starts = weights["table"], table_starts(layer, len(weights["table"]))

    def forward(self, hidden: Tensor, batch: Batch) -> Tensor:
        self._codes, self._d_num = (batch.x_cat + self._starts).view(-1, 1), hidden.shape[2]
        found = F.embedding_bag(self._codes, self._table.flatten(0, 1), mode="sum")
        size, n_rows = len(self._table), hidden.shape[1]
        return torch.cat([hidden.expand(size, -1, -1), found.view(size, n_rows, -1)], 2)

    def gradients(self, gradient: Tensor) -> Weights:
        found = gradient[..., self._d_num :].reshape(len(self._codes), -1)
        return {"table": look_up_gradient(self._codes, found, self._table)}

    def through(self, gradient: Tensor) -> Tensor:
        return gradient[..., : self._d_num]


class Linear(Layer):
    """`nn.Linear`, or `TableLinear` with its look-up; the first of a network also mixes rows."""

    def __init__(self, layer: nn.Module, weights: Weights) -> None:
        self._weight, self._bias = weights["weight"], weights["bias"]
        self._first = isinstance(layer, TableLinear)
        self._table = weights["table"] if isinstance(layer, TableLinear) and len(layer.offsets) else None
        if isinstance(layer, TableLinear):
            self._starts = table_starts(layer, len(self._weight))

    def forward(self, hidden: Tensor, batch: Batch) -> Tensor:
        self._hidden = hidden.expand(len(self._weight), -1, -1)
        outputs = torch.baddbmm(self._bias.unsqueeze(1), self._hidden, self._weight)  # (K, B, in) @ (K, in, out)
        if self._table is not None:
            self._codes = (batch.x_cat + self._starts).flatten(0, 1)
            outputs += F.embedding_bag(self._codes, self._table.flatten(0, 1), mode="sum").view_as(outputs)
        self._mixup = batch.mixup if self._first else None
        return outputs if self._mixup is None else self._mixup.apply(outputs)

    def gradients(self, gradient: Tensor) -> Weights:
        if self._mixup is not None:
            gradient = self._mixup.through(gradient)
        found = {"weight": self._hidden.mT.bmm(gradient), "bias": gradient.sum(1)}
        if self._table is not None:
            found["table"] = look_up_gradient(self._codes, gradient.flatten(0, 1), self._table)
        return found

    def through(self, gradient: Tensor) -> Tensor:
        if self._mixup is not None:
            gradient = self._mixup.through(gradient)
        return gradient.bmm(self._weight.mT)


class Activation(Layer):
    """In place, since no layer needs what came before it: each derivative here is one of what came out."""

    def __init__(self, layer: nn.Module) -> None:
        self._layer = layer

    def forward(self, hidden: Tensor, batch: Batch) -> Tensor:
        match self._layer:
            case nn.ReLU():
                self._outputs = hidden.clamp_min_(0)
            case nn.LeakyReLU(negative_slope=slope):
                self._outputs = F.leaky_relu_(hidden, slope)
            case nn.Sigmoid():
                self._outputs = hidden.sigmoid_()
            case nn.Tanh():
                self._outputs = hidden.tanh_()
            case nn.SELU():
                self._outputs = torch.selu_(hidden)
        return self._outputs

    def through(self, gradient: Tensor) -> Tensor:
        outputs = self._outputs
        found: Tensor
        match self._layer:
            case nn.ReLU():
                found = aten.threshold_backward(gradient, outputs, 0)
            case nn.LeakyReLU(negative_slope=slope):
                found = aten.leaky_relu_backward(gradient, outputs, slope, True)
            case nn.Sigmoid():
                found = aten.sigmoid_backward(gradient, outputs)
            case nn.Tanh():
                found = aten.tanh_backward(gradient, outputs)
            case nn.SELU():
                found = aten.elu_backward(gradient, SELU_ALPHA, SELU_SCALE, 1, True, outputs)
        return found


class Dropout(Layer):
    """Inverted dropout: a number is kept where its 16 random bits reach the member's threshold, which meets p to 1/65,536.

    Of the words of a batch its own begin after those of the `before` numbers a row that are dropped before it.
    """

    def __init__(self, chances: Sequence[float], before: int, width: int, like: Tensor) -> None:
        cut = (torch.tensor(chances, dtype=torch.float64) * 2**16).round().clamp(max=2**16 - 1).view(-1, 1, 1)
        self._cut = (cut - 2**15).to(like.device, torch.int16)
        self._scale = (2**16 / (2**16 - cut)).to(like)
        self._before, self._width = before, width

    def forward(self, hidden: Tensor, batch: Batch) -> Tensor:
        self._mask = self.mask(batch.words, hidden.shape[1]) if batch.words is not None else None
        return hidden if self._mask is None else hidden * self._mask

    def through(self, gradient: Tensor) -> Tensor:
        return gradient if self._mask is None else gradient.mul_(self._mask)

    def mask(self, words: Tensor, n_rows: int) -> Tensor:
        """[K, n_rows, width]: 0 where a number is dropped, else 1 / (1 - p)."""
        own = words[:, n_rows * self._before : n_rows * (self._before + self._width)].view(-1, n_rows, self._width)
        # Compared into numbers: torch compares into booleans, and converts them, at a tenth of the speed.
        kept = torch.ge(own, self._cut, out=torch.empty(0, dtype=self._scale.dtype, device=words.device))
        return kept.mul_(self._scale)


def table_starts(layer: TableLinear | CategoryEmbedding, size: int) -> Tensor:
    """[K, 1, d_cat] where each column's categories begin in the members' tables, laid one below the other."""
    return layer.offsets + len(layer.table) * torch.arange(size, device=layer.table.device).view(-1, 1, 1)


def look_up_gradient(codes: Tensor, gradient: Tensor, table: Tensor) -> Tensor:
    """The gradient of `table` [K, V, H] for that [n, H] of the sums of its rows by codes [n, C].

    The gradient of a row is the sum of what came back for the places where it was looked up, so it is a look-up too:
    two to three times faster than the backward pass of `embedding_bag`, and of one order of summation.
    """
    flat, n_rows = codes.flatten(), table.shape[0] * table.shape[1]
    places = _order(flat, n_rows)
    begins = torch.searchsorted(flat[places], torch.arange(n_rows, device=flat.device, dtype=flat.dtype))
    return F.embedding_bag(places // codes.shape[1], gradient.contiguous(), begins, mode="sum").view_as(table)


def _order(codes: Tensor, n_rows: int) -> Tensor:
    """Places of `codes` by code, and where codes are equal in their order."""
    if codes.is_cuda or n_rows > 2**16:
        return torch.argsort(codes, stable=True)
    # NumPy sorts 16 bits by radix, in a third of the time or less.
    return torch.from_numpy(np.argsort(codes.numpy().astype(np.uint16), kind="stable"))


def _rows(hidden: Tensor, rows: Tensor) -> Tensor:
    """hidden [K, B, H] with its rows in the order [K or 1, B]."""
    return hidden.gather(1, rows.expand(len(hidden), -1).unsqueeze(2).expand_as(hidden))
