"""K networks of one shape computed side by side: one `baddbmm` a layer, whatever K is."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.model import CategoryEmbedding, Periodic, PiecewiseLinear, TableLinear

Mix = Callable[[Tensor], Tensor]  # [K, B, H] to the same shape


class Stack:
    """K members of one shape, as one network with weights [K, in, out].

    The members' parameters are copied in; `write` copies them back. What trains lies in `blocks`, each [K, P] and
    contiguous, so that an optimiser's step is a few operations for all layers of all members; `weights` are views of them.
    Look-up tables have blocks of their own, since `embedding_bag` wants its rows together.
    """

    def __init__(self, members: Sequence[nn.Sequential]) -> None:
        self.layers, self.size = members[0], len(members)
        self._dropouts = {
            name: _Threshold(chances, next(members[0].parameters()))
            for name, chances in _chances(members).items()
            if any(chances)
        }
        own = [dict(member.named_parameters()) for member in members]
        stacked = {name: torch.stack([_turned(name, each[name].detach()) for each in own]) for name in own[0]}
        learning = [name for name, parameter in own[0].items() if parameter.requires_grad and parameter.numel()]
        tables = [name for name in learning if name.endswith("table")]
        self._groups = [group for group in ([n for n in learning if n not in tables], *([n] for n in tables)) if group]
        self.weights: dict[str, Tensor] = {n: tensor for n, tensor in stacked.items() if n not in learning}
        self.blocks: list[Tensor] = []
        for group in self._groups:
            block = torch.cat([stacked[name].flatten(1) for name in group], 1)
            self.blocks.append(block)
            widths = [stacked[name][0].numel() for name in group]
            for name, part in zip(group, block.split(widths, 1), strict=True):
                self.weights[name] = part.view(stacked[name].shape).detach().requires_grad_()

        # [K, 1, d_cat] where each column's categories begin in the members' tables, laid one below the other.
        self._starts = {
            name: layer.offsets + len(layer.table) * torch.arange(self.size, device=layer.table.device).view(-1, 1, 1)
            for name, layer in self.layers.named_children()
            if isinstance(layer, TableLinear | CategoryEmbedding) and len(layer.offsets)
        }

    def __call__(
        self, x_num: Tensor, x_cat: Tensor, words: Tensor | None = None, mix: Mix = lambda hidden: hidden
    ) -> Tensor:
        """Outputs [K, B, n_outputs] for x_num [K or 1, B, d_num] and x_cat [K or 1, B, d_cat].

        `words` [K or 1, n] are the random bits of `dropout_words`, None where nothing is dropped. `mix` is applied to what
        comes out of the first linear layer.
        """
        hidden, used = x_num, 0
        for name, layer in self.layers.named_children():
            match layer:
                case PiecewiseLinear():
                    hidden = layer.encode(hidden)
                case Periodic():
                    frequency, weight, bias = (self.weights[f"{name}.{part}"] for part in ("frequency", "mix", "bias"))
                    hidden = layer.encode(hidden, frequency.unsqueeze(1), weight, bias.unsqueeze(1))
                case CategoryEmbedding():
                    codes = x_cat + self._starts[name]
                    found = _look_up(self.weights[f"{name}.table"].flatten(0, 1), codes.view(-1, 1))
                    hidden = torch.cat([hidden.expand(self.size, -1, -1), found.view(*codes.shape[:2], -1)], 2)
                case TableLinear():
                    hidden = self._linear(name, hidden)
                    if name in self._starts:
                        hidden = hidden + self._look_up(x_cat, name)
                    hidden = mix(hidden)
                case nn.Linear():
                    hidden = self._linear(name, hidden)
                case nn.Dropout():
                    if words is not None and name in self._dropouts:
                        width = hidden.shape[1] * hidden.shape[2]
                        mask = self._dropouts[name].mask(words[:, used : used + width].view(-1, *hidden.shape[1:]))
                        hidden, used = hidden * mask, used + width
                case _:
                    hidden = layer(hidden)
        return hidden

    def _linear(self, name: str, x: Tensor) -> Tensor:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return torch.baddbmm(bias.unsqueeze(1), x.expand(self.size, -1, -1), weight)  # (K, B, in) @ (K, in, out)

    def _look_up(self, x_cat: Tensor, name: str) -> Tensor:
        codes = x_cat + self._starts[name]
        found = _look_up(self.weights[f"{name}.table"].flatten(0, 1), codes.flatten(0, 1))
        return found.view(self.size, -1, found.shape[1])

    def dropout_words(self, n_rows: int, generators: Sequence[torch.Generator]) -> Tensor | None:
        """[generators, n] random int16 for the masks of a batch: 16 bits a number cost a quarter of what `bernoulli_` takes."""
        if not self._dropouts:
            return None
        width = n_rows * sum(_width(self.layers, name) for name in self._dropouts)
        words = torch.empty(len(generators), width // 4 + 1, dtype=torch.int64, device=generators[0].device)
        for row, generator in zip(words, generators, strict=True):
            row.random_(-(2**63), None, generator=generator)
        return words.view(torch.int16)

    def gradients(self, loss: Tensor) -> list[Tensor]:
        """What `loss`, a sum over members, has for gradients, in the form of `blocks`."""
        names = [name for group in self._groups for name in group]
        found = dict(zip(names, torch.autograd.grad(loss, [self.weights[name] for name in names]), strict=True))
        flat = [[found[name].flatten(1) for name in group] for group in self._groups]
        return [torch.cat(parts, 1) if len(parts) > 1 else parts[0] for parts in flat]

    @torch.no_grad()
    def write(self, members: Sequence[nn.Sequential]) -> None:
        """Copy the weights back into the networks that they came from."""
        for k, member in enumerate(members):
            for name, parameter in member.named_parameters():
                parameter.copy_(_turned(name, self.weights[name][k]))


class _LookUp(torch.autograd.Function):
    """Sums of rows of `table` [V, H] by codes [n, C]: [n, H].

    The gradient of a row is the sum of what came back for the places where it was looked up, so it is a look-up too:
    two to three times faster than the backward pass of `embedding_bag`, and of one order of summation.
    """

    @staticmethod
    def forward(ctx: Any, table: Tensor, codes: Tensor) -> Tensor:
        ctx.save_for_backward(codes)
        ctx.n_rows = len(table)
        return F.embedding_bag(codes, table, mode="sum")

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (codes,) = ctx.saved_tensors
        flat = codes.flatten()
        counts = torch.bincount(flat, minlength=ctx.n_rows)
        places = _order(flat, ctx.n_rows) // codes.shape[1]
        return F.embedding_bag(places, gradient.contiguous(), counts.cumsum(0) - counts, mode="sum"), None


def _order(codes: Tensor, n_rows: int) -> Tensor:
    """Places of `codes` by code, and where codes are equal in their order."""
    if codes.is_cuda or n_rows > 2**16:
        return torch.argsort(codes, stable=True)
    # NumPy sorts 16 bits by radix, in a third of the time or less.
    return torch.from_numpy(np.argsort(codes.numpy().astype(np.uint16), kind="stable"))


class _Threshold:
    """Inverted dropout: a number is kept where its 16 random bits reach the member's threshold, which meets p to 1/65,536."""

    def __init__(self, chances: Sequence[float], like: Tensor) -> None:
        cut = (torch.tensor(chances, dtype=torch.float64) * 2**16).round().clamp(max=2**16 - 1).view(-1, 1, 1)
        self._cut = (cut - 2**15).to(like.device, torch.int16)
        self._scale = (2**16 / (2**16 - cut)).to(like)

    def mask(self, words: Tensor) -> Tensor:
        # Compared into numbers: torch compares into booleans, and converts them, at a tenth of the speed.
        kept = torch.ge(words, self._cut, out=torch.empty(0, dtype=self._scale.dtype, device=words.device))
        return kept.mul_(self._scale)


def _chances(members: Sequence[nn.Sequential]) -> dict[str, list[float]]:
    """By the name of each dropout layer, what it drops in each member."""
    places = zip(*(member.named_children() for member in members), strict=True)
    return {
        same[0][0]: [layer.p for _, layer in same if isinstance(layer, nn.Dropout)]
        for same in places
        if isinstance(same[0][1], nn.Dropout)
    }


def _look_up(table: Tensor, codes: Tensor) -> Tensor:
    found: Tensor = _LookUp.apply(table, codes)  # type: ignore[no-untyped-call]
    return found


def _turned(name: str, weight: Tensor) -> Tensor:
    """A linear layer has its weight as [out, in], a stack as [in, out]."""
    return weight.mT if name.endswith("weight") else weight


def _width(layers: nn.Sequential, name: str) -> int:
    """How many numbers a row has at the layer `name`: what the last linear layer before it gives."""
    width = 0
    for other, layer in layers.named_children():
        if other == name:
            break
        if isinstance(layer, TableLinear | nn.Linear):
            width = len(layer.bias)
    return width
