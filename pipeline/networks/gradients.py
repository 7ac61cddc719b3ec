"""Forward and backward passes of each layer for K networks at once.

The derivatives are written out: for small networks, recording operations for `torch.autograd` takes as long as the
operations themselves. Weights are [K, ...], named as in the original layer; hidden values and their gradients are
[K, B, width], or [1, B, width] before the first weights.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.networks.modules import CategoryEmbedding, Periodic, PiecewiseLinear, TableLinear

Weights = dict[str, Tensor]
aten = torch.ops.aten  # torch's derivatives of activations
SELU_ALPHA, SELU_SCALE = 1.6732632423543772, 1.0507009873554805  # Klambauer et al. 2017, section 2
# Forward pass of (layer, inputs), in place, and gradient of the inputs from (layer, gradient, outputs).
ACTIVATIONS: dict[type[nn.Module], tuple[Callable[[Any, Tensor], Tensor], Callable[[Any, Tensor, Tensor], Tensor]]] = {
    nn.ReLU: (lambda _, x: x.clamp_min_(0), lambda _, grad, out: aten.threshold_backward(grad, out, 0)),
    nn.LeakyReLU: (
        lambda layer, x: F.leaky_relu_(x, layer.negative_slope),
        lambda layer, grad, out: aten.leaky_relu_backward(grad, out, layer.negative_slope, True),
    ),
    nn.Sigmoid: (lambda _, x: x.sigmoid_(), lambda _, grad, out: aten.sigmoid_backward(grad, out)),
    nn.Tanh: (lambda _, x: x.tanh_(), lambda _, grad, out: aten.tanh_backward(grad, out)),
    nn.SELU: (
        lambda _, x: torch.selu_(x),
        lambda _, grad, out: aten.elu_backward(grad, SELU_ALPHA, SELU_SCALE, 1, True, out),
    ),
}


@dataclass(frozen=True)
class Mixup:
    """Mix each row with a partner row (Zhang et al. 2018, eq. 1).

    Applied to the outputs of the first layer, which is linear, so mixing its outputs equals mixing its inputs.
    `partner` [K or 1, B] is a permutation; `share` [K or 1] is the weight of the row itself.
    """

    partner: Tensor
    share: Tensor

    def forward(self, hidden: Tensor) -> Tensor:
        return self._mix(hidden, self.partner)

    def backward(self, gradient: Tensor) -> Tensor:
        return self._mix(gradient, self.partner.argsort(1))

    def _mix(self, hidden: Tensor, partner: Tensor) -> Tensor:
        partners = hidden.gather(1, partner.expand(len(hidden), -1).unsqueeze(2).expand_as(hidden))
        return torch.lerp(partners, hidden, self.share.view(-1, 1, 1))


@dataclass(frozen=True)
class Batch:
    """Inputs of a layer besides hidden values: category codes [K or 1, B, d_cat], the random bits [K or 1, n] of
    dropout (None without dropout), and mixup."""

    x_cat: Tensor
    bits: Tensor | None = None
    mixup: Mixup | None = None


class Layer:
    """One layer of K networks; `forward` stores the values that `gradients` and `backward` need."""

    def forward(self, hidden: Tensor, batch: Batch) -> Tensor:
        raise NotImplementedError

    def gradients(self, gradient: Tensor) -> Weights:
        """Gradients of the weights, given the gradient of the outputs."""
        return {}

    def backward(self, gradient: Tensor) -> Tensor:
        """Gradient of the inputs, given the gradient of the outputs."""
        raise NotImplementedError


class Bins(Layer):
    """`PiecewiseLinear`, without weights to train."""

    def __init__(self, layer: PiecewiseLinear) -> None:
        self._layer = layer

    def forward(self, hidden: Tensor, batch: Batch) -> Tensor:
        return self._layer.encode(hidden)


class Waves(Layer):
    """`Periodic`, differentiated by `torch.autograd`."""

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
    """`CategoryEmbedding`: the numbers, then a table row for each category."""

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

    def backward(self, gradient: Tensor) -> Tensor:
        return gradient[..., : self._d_num]


class Linear(Layer):
    """`nn.Linear`, or `TableLinear` with its look-up and mixup."""

    def __init__(self, layer: nn.Module, weights: Weights) -> None:
        self._weight, self._bias = weights["weight"], weights["bias"]
        self._is_first = isinstance(layer, TableLinear)
        self._table = None
        if isinstance(layer, TableLinear) and len(layer.offsets):
            self._table, self._starts = weights["table"], table_starts(layer, len(self._weight))

    def forward(self, hidden: Tensor, batch: Batch) -> Tensor:
        self._hidden = hidden.expand(len(self._weight), -1, -1)
        outputs = torch.baddbmm(self._bias.unsqueeze(1), self._hidden, self._weight)  # (K, B, in) @ (K, in, out)
        if self._table is not None:
            self._codes = (batch.x_cat + self._starts).flatten(0, 1)
            outputs += F.embedding_bag(self._codes, self._table.flatten(0, 1), mode="sum").view_as(outputs)
        self._mixup = batch.mixup if self._is_first else None
        return outputs if self._mixup is None else self._mixup.forward(outputs)

    def gradients(self, gradient: Tensor) -> Weights:
        if self._mixup is not None:
            gradient = self._mixup.backward(gradient)
        found = {"weight": self._hidden.mT.bmm(gradient), "bias": gradient.sum(1)}
        if self._table is not None:
            found["table"] = look_up_gradient(self._codes, gradient.flatten(0, 1), self._table)
        return found

    def backward(self, gradient: Tensor) -> Tensor:
        if self._mixup is not None:
            gradient = self._mixup.backward(gradient)
        return gradient.bmm(self._weight.mT)


class Activation(Layer):
    """Computed in place, since the derivative of each activation follows from its output."""

    def __init__(self, layer: nn.Module) -> None:
        self._layer = layer
        self._activate, self._derive = ACTIVATIONS[type(layer)]

    def forward(self, hidden: Tensor, batch: Batch) -> Tensor:
        self._outputs = self._activate(self._layer, hidden)
        return self._outputs

    def backward(self, gradient: Tensor) -> Tensor:
        return self._derive(self._layer, gradient, self._outputs)


class Dropout(Layer):
    """Inverted dropout: a value is kept where its 16 random bits reach a threshold, which fits p to 1/65,536.

    Earlier dropout layers use the random bits of `before` values per row.
    """

    def __init__(self, rates: Sequence[float], before: int, width: int, like: Tensor) -> None:
        cut = (torch.tensor(rates, dtype=torch.float64) * 2**16).round().clamp(max=2**16 - 1).view(-1, 1, 1)
        self._cut = (cut - 2**15).to(like.device, torch.int16)
        self._scale = (2**16 / (2**16 - cut)).to(like)
        self._before, self._width = before, width

    def forward(self, hidden: Tensor, batch: Batch) -> Tensor:
        self._mask = self.mask(batch.bits, hidden.shape[1]) if batch.bits is not None else None
        return hidden if self._mask is None else hidden * self._mask

    def backward(self, gradient: Tensor) -> Tensor:
        return gradient if self._mask is None else gradient.mul_(self._mask)

    def mask(self, bits: Tensor, n_rows: int) -> Tensor:
        """Return [K, n_rows, width]: 0 where a value is dropped, else 1 / (1 - p)."""
        own = bits[:, n_rows * self._before : n_rows * (self._before + self._width)].view(-1, n_rows, self._width)
        # With out=: comparing into booleans and converting them is ten times slower.
        kept = torch.ge(own, self._cut, out=torch.empty(0, dtype=self._scale.dtype, device=bits.device))
        return kept.mul_(self._scale)


def table_starts(layer: TableLinear | CategoryEmbedding, size: int) -> Tensor:
    """Return [K, 1, d_cat]: the first row of each column in the concatenated tables of K members."""
    return layer.offsets + len(layer.table) * torch.arange(size, device=layer.table.device).view(-1, 1, 1)


def look_up_gradient(codes: Tensor, gradient: Tensor, table: Tensor) -> Tensor:
    """Compute the gradient of `table` [K, V, H] from `gradient` [n, H] of the sums of its rows at `codes` [n, C].

    The gradient of a table row is the sum over its look-ups, so it is computed as a look-up too: two to three times
    faster than the backward pass of `embedding_bag`, and in a fixed order of summation.
    """
    flat, n_rows = codes.flatten(), table.shape[0] * table.shape[1]
    if flat.is_cuda or n_rows > 2**16:
        places = torch.argsort(flat, stable=True)
    else:  # NumPy sorts 16 bits by radix, at least three times faster
        places = torch.from_numpy(np.argsort(flat.numpy().astype(np.uint16), kind="stable"))
    begins = torch.searchsorted(flat[places], torch.arange(n_rows, device=flat.device, dtype=flat.dtype))
    return F.embedding_bag(places // codes.shape[1], gradient.contiguous(), begins, mode="sum").view_as(table)
