"""K networks of one shape computed side by side: one `baddbmm` a layer, whatever K is."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pipeline.networks.gradients import (
    Activation,
    Batch,
    Bins,
    Dropout,
    Embedding,
    Layer,
    Linear,
    Mixup,
    Waves,
    Weights,
)
from pipeline.networks.modules import CategoryEmbedding, Periodic, PiecewiseLinear, TableLinear
from pipeline.tables.tensors import TabularData


class Stack:
    """K members of one shape, as one network with weights [K, in, out].

    The members' parameters are copied in; `write` copies them back. What trains lies in `blocks`, each [K, P] and
    contiguous, so that an optimiser's step is a few operations for all layers of all members; `weights` are views of them.
    Look-up tables have blocks of their own, since `embedding_bag` wants its rows together.
    """

    @torch.no_grad()
    def __init__(self, members: Sequence[nn.Sequential]) -> None:
        self.size = len(members)
        own = [dict(member.named_parameters()) for member in members]
        stacked = {name: torch.stack([_turned(name, each[name]) for each in own]) for name in own[0]}
        learning = [name for name, parameter in own[0].items() if parameter.requires_grad and parameter.numel()]
        tables = [name for name in learning if name.endswith("table")]
        self._groups = [group for group in ([n for n in learning if n not in tables], *([n] for n in tables)) if group]
        self.weights: Weights = {n: tensor for n, tensor in stacked.items() if n not in learning}
        self.blocks: list[Tensor] = []
        for group in self._groups:
            self.blocks.append(torch.cat([stacked[name].flatten(1) for name in group], 1))
            widths = [stacked[name][0].numel() for name in group]
            for name, part in zip(group, self.blocks[-1].split(widths, 1), strict=True):
                self.weights[name] = part.view(stacked[name].shape)
        self._layers, self._dropped, self.width = self._built(members)
        self._first = next((name for name in self._layers if any(n.startswith(f"{name}.") for n in learning)), "")

    def _built(self, members: Sequence[nn.Sequential]) -> tuple[dict[str, Layer], int, int]:
        """The layers by name, how many numbers of a row they drop or keep at random, and the most that one of them holds."""
        layers: dict[str, Layer] = {}
        width, dropped, widest = 0, 0, 1
        for name, layer in members[0].named_children():
            weights = {n.removeprefix(f"{name}."): w for n, w in self.weights.items() if n.startswith(f"{name}.")}
            match layer:
                case PiecewiseLinear():
                    layers[name] = Bins(layer)
                    widest = len(layer.edges)
                case Periodic():
                    layers[name] = Waves(weights)
                    widest = self.size * layer.mix[..., 0].numel()
                case CategoryEmbedding():
                    layers[name] = Embedding(layer, weights)
                case TableLinear() | nn.Linear():
                    layers[name] = Linear(layer, weights)
                    width = len(layer.bias)
                    widest = max(widest, self.size * max(layer.weight.shape))
                case nn.Dropout():
                    same = [member.get_submodule(name) for member in members]
                    chances = [each.p for each in same if isinstance(each, nn.Dropout)]
                    if any(chances):
                        layers[name] = Dropout(chances, dropped, width, next(members[0].parameters()))
                        dropped += width
                case _:
                    layers[name] = Activation(layer)
        return layers, dropped, widest

    @torch.no_grad()
    def __call__(self, x_num: Tensor, x_cat: Tensor, words: Tensor | None = None, mixup: Mixup | None = None) -> Tensor:
        """Outputs [K, B, n_outputs] for x_num [K or 1, B, d_num] and x_cat [K or 1, B, d_cat].

        `words` [K or 1, n] are the random bits of `dropout_words`, None where nothing is dropped.
        """
        batch, hidden = Batch(x_cat, words, mixup), x_num
        for layer in self._layers.values():
            hidden = layer.forward(hidden, batch)
        return hidden

    @torch.no_grad()
    def gradients(self, gradient: Tensor) -> list[Tensor]:
        """What learns has for gradients, in the form of `blocks`, for that of the outputs of the last call."""
        found: Weights = {}
        for name, layer in reversed(self._layers.items()):
            found |= {f"{name}.{own}": each for own, each in layer.gradients(gradient).items()}
            if name == self._first:
                break
            gradient = layer.through(gradient)
        flat = [[found[name].flatten(1) for name in group] for group in self._groups]
        return [torch.cat(parts, 1) if len(parts) > 1 else parts[0] for parts in flat]

    def dropout_words(self, n_rows: int, generators: Sequence[torch.Generator]) -> Tensor | None:
        """[generators, n] random int16 for the masks of a batch: 16 bits a number cost a quarter of what `bernoulli_` takes."""
        if not self._dropped:
            return None
        width = n_rows * self._dropped // 4 + 1
        words = torch.empty(len(generators), width, dtype=torch.int64, device=generators[0].device)
        for row, generator in zip(words, generators, strict=True):
            row.random_(-(2**63), None, generator=generator)
        return words.view(torch.int16)

    @torch.no_grad()
    def write(self, members: Sequence[nn.Sequential]) -> None:
        """Copy the weights back into the networks that they came from."""
        for k, member in enumerate(members):
            for name, parameter in member.named_parameters():
                parameter.copy_(_turned(name, self.weights[name][k]))


def _turned(name: str, weight: Tensor) -> Tensor:
    """A linear layer has its weight as [out, in], a stack as [in, out]."""
    return weight.mT if name.endswith("weight") else weight


PREDICT_NUMBERS, PREDICT_ROWS = 16_000_000, 8192  # that a layer holds while rows are predicted; rows at once, at most


def predict(networks: Sequence[nn.Sequential], data: TabularData) -> Tensor:
    """Raw outputs [K, n, n_outputs] of networks of one shape for the rows of `data`."""
    return outputs_of(Stack(networks), data)


def outputs_of(stack: Stack, data: TabularData) -> Tensor:
    rows = min(max(PREDICT_NUMBERS // stack.width, 1), PREDICT_ROWS)
    chunks = zip(data.x_num.split(rows), data.x_cat.split(rows), strict=True)
    return torch.cat([stack(x_num.unsqueeze(0), x_cat.unsqueeze(0)) for x_num, x_cat in chunks], 1)
