"""Compute K networks of one shape side by side, with one `baddbmm` per layer."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pipeline.networks import gradients
from pipeline.networks.gradients import Batch, Layer, Mixup, Weights
from pipeline.networks.modules import CategoryEmbedding, Periodic, PiecewiseLinear, TableLinear
from pipeline.tables.tensors import TabularData

PREDICT_VALUES, PREDICT_ROWS = 16_000_000, 8192  # at most, in a layer and in a chunk of predicted rows


class Stack:
    """K members of one shape as one network with weights [K, in, out].

    The members' parameters are copied in; `write` copies them back. Trainable weights lie in `blocks`, each [K, P] and
    contiguous, so that an optimiser step takes a few operations for all layers of all members; `weights` are views of
    them. Each look-up table is a block of its own, since `embedding_bag` needs its rows contiguous.
    """

    @torch.no_grad()
    def __init__(self, members: Sequence[nn.Sequential]) -> None:
        self.size = len(members)
        own = [dict(member.named_parameters()) for member in members]
        stacked = {name: torch.stack([_transposed(name, each[name]) for each in own]) for name in own[0]}
        trainable = [name for name, parameter in own[0].items() if parameter.requires_grad and parameter.numel()]
        tables = [name for name in trainable if name.endswith("table")]
        others = [name for name in trainable if name not in tables]
        self._groups = [group for group in (others, *([name] for name in tables)) if group]
        self.weights: Weights = {name: tensor for name, tensor in stacked.items() if name not in trainable}
        self.blocks: list[Tensor] = []
        for group in self._groups:
            self.blocks.append(torch.cat([stacked[name].flatten(1) for name in group], 1))
            widths = [stacked[name][0].numel() for name in group]
            for name, part in zip(group, self.blocks[-1].split(widths, 1), strict=True):
                self.weights[name] = part.view(stacked[name].shape)
        self._layers: dict[str, Layer] = {}
        self._n_dropped, self.width = 0, 1  # values per row under dropout; values per row in the widest layer
        self._build_layers(members)
        self._first_trainable = trainable[0].partition(".")[0] if trainable else ""

    def _build_layers(self, members: Sequence[nn.Sequential]) -> None:
        d_out = 0
        for name, layer in members[0].named_children():
            weights = {n.removeprefix(f"{name}."): w for n, w in self.weights.items() if n.startswith(f"{name}.")}
            match layer:
                case PiecewiseLinear():
                    self._layers[name] = gradients.Bins(layer)
                    self.width = len(layer.edges)
                case Periodic():
                    self._layers[name] = gradients.Waves(weights)
                    self.width = self.size * layer.mix[..., 0].numel()
                case CategoryEmbedding():
                    self._layers[name] = gradients.Embedding(layer, weights)
                case TableLinear() | nn.Linear():
                    self._layers[name] = gradients.Linear(layer, weights)
                    d_out = len(layer.bias)
                    self.width = max(self.width, self.size * max(layer.weight.shape))
                case nn.Dropout():
                    layers = [member.get_submodule(name) for member in members]
                    rates = [each.p for each in layers if isinstance(each, nn.Dropout)]
                    if any(rates):
                        like = next(members[0].parameters())
                        self._layers[name] = gradients.Dropout(rates, self._n_dropped, d_out, like)
                        self._n_dropped += d_out
                case _:
                    self._layers[name] = gradients.Activation(layer)

    @torch.no_grad()
    def __call__(self, x_num: Tensor, x_cat: Tensor, bits: Tensor | None = None, mixup: Mixup | None = None) -> Tensor:
        """Compute outputs [K, B, n_outputs] from x_num [K or 1, B, d_num], x_cat [K or 1, B, d_cat] and `dropout_bits`."""
        batch, hidden = Batch(x_cat, bits, mixup), x_num
        for layer in self._layers.values():
            hidden = layer.forward(hidden, batch)
        return hidden

    @torch.no_grad()
    def gradients(self, gradient: Tensor) -> list[Tensor]:
        """Compute the gradients of `blocks` from the gradient of the outputs of the last call."""
        found: Weights = {}
        for name, layer in reversed(self._layers.items()):
            found |= {f"{name}.{own}": each for own, each in layer.gradients(gradient).items()}
            if name == self._first_trainable:
                break
            gradient = layer.backward(gradient)
        flat = [[found[name].flatten(1) for name in group] for group in self._groups]
        return [torch.cat(parts, 1) if len(parts) > 1 else parts[0] for parts in flat]

    def dropout_bits(self, n_rows: int, generators: Sequence[torch.Generator]) -> Tensor | None:
        """Draw int16 [generators, n] for the masks of a batch; 16 bits per value take a quarter of `bernoulli_`'s time."""
        if not self._n_dropped:
            return None
        width = n_rows * self._n_dropped // 4 + 1
        bits = torch.empty(len(generators), width, dtype=torch.int64, device=generators[0].device)
        for row, generator in zip(bits, generators, strict=True):
            row.random_(-(2**63), None, generator=generator)
        return bits.view(torch.int16)

    @torch.no_grad()
    def write(self, members: Sequence[nn.Sequential]) -> None:
        """Copy the weights back into the networks that they came from."""
        for k, member in enumerate(members):
            for name, parameter in member.named_parameters():
                parameter.copy_(_transposed(name, self.weights[name][k]))

    def predict(self, data: TabularData) -> Tensor:
        """Compute raw outputs [K, n, n_outputs] for the rows of `data`, in chunks."""
        rows = min(max(PREDICT_VALUES // self.width, 1), PREDICT_ROWS)
        chunks = zip(data.x_num.split(rows), data.x_cat.split(rows), strict=True)
        return torch.cat([self(x_num.unsqueeze(0), x_cat.unsqueeze(0)) for x_num, x_cat in chunks], 1)


def _transposed(name: str, weight: Tensor) -> Tensor:
    return weight.mT if name.endswith("weight") else weight  # [out, in] in a linear layer, [in, out] in a stack


def predict(networks: Sequence[nn.Sequential], data: TabularData) -> Tensor:
    """Compute raw outputs [K, n, n_outputs] of networks of one shape for the rows of `data`."""
    return Stack(networks).predict(data)
