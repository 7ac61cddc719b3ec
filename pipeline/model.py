"""Networks from config: layers, initial weights, freezing, parameter counts."""

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.config import Model
from pipeline.errors import UserError
from pipeline.schema import Schema

UNIFORM_RANGE = 0.05  # init: uniform draws weights from [-0.05, 0.05]


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
        starts = torch.tensor([0, *cardinalities[:-1]] if cardinalities else [], dtype=torch.int64).cumsum(0)
        self.register_buffer("offsets", starts, persistent=False)

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


class Dropout(nn.Module):
    """Inverted dropout that draws its masks from `generator`, which `fit` sets for each epoch.

    `p` is met to 1/65,536: a mask costs 16 random bits a number, a quarter of what `bernoulli_` takes.
    """

    generator: torch.Generator | None = None

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        dropped = min(round(self.p * 2**16), 2**16 - 1)
        if not self.training or dropped == 0:
            return x
        words = torch.empty(x.numel() // 4 + 1, dtype=torch.int64, device=x.device)
        words.random_(-(2**63), None, generator=self.generator)
        keep = words.view(torch.int16)[: x.numel()].view_as(x) >= dropped - 2**15
        return x * keep.to(x.dtype).mul_(2**16 / (2**16 - dropped))


def build_network(model: Model, schema: Schema, n_outputs: int, generator: torch.Generator) -> nn.Sequential:
    """`hidden` layers of Linear, activation and dropout, then a Linear to `n_outputs`; weights drawn from `generator`."""
    layers: list[nn.Module] = []
    widths = [*model.hidden, n_outputs]
    for place, d_out in enumerate(widths):
        if place == 0:
            layers.append(TableLinear(schema.d_num, schema.cardinalities, d_out))
        else:
            # Without the constructor's own draw, which would come from the global generator.
            layers.append(nn.utils.skip_init(nn.Linear, widths[place - 1], d_out))
        if place < len(model.hidden):
            layers += [_activation(model), Dropout(model.dropout)]
    network = nn.Sequential(*layers)
    for layer in linear_layers(network).values():
        _initialise(layer, model, generator)
    return network


def _activation(model: Model) -> nn.Module:
    match model.activation:
        case "relu":
            return nn.ReLU()
        case "leaky_relu":
            return nn.LeakyReLU(model.slope)
        case "sigmoid":
            return nn.Sigmoid()
        case "tanh":
            return nn.Tanh()
        case "selu":
            return nn.SELU()


def linear_layers(network: nn.Sequential) -> dict[str, TableLinear | nn.Linear]:
    """The layers that hold weights, by name, from the input on."""
    return {name: layer for name, layer in network.named_children() if isinstance(layer, TableLinear | nn.Linear)}


@torch.no_grad()
def _initialise(layer: TableLinear | nn.Linear, model: Model, generator: torch.Generator) -> None:
    weights = [layer.weight, layer.table] if isinstance(layer, TableLinear) else [layer.weight]
    fan_in = layer.fan_in if isinstance(layer, TableLinear) else layer.in_features
    fan_out = len(layer.bias)
    match model.init:
        case "default":  # torch's own for Linear, with the fan-in of this layer
            bound = fan_in**-0.5 if fan_in else 0.0
        case "uniform":
            bound = UNIFORM_RANGE
        case "xavier":  # Glorot & Bengio 2010, eq. 16
            bound = (6 / (fan_in + fan_out)) ** 0.5
        case "kaiming":  # He et al. 2015, eq. 10 and 15; for other activations as for a linear one
            slope = {"relu": 0.0, "leaky_relu": model.slope}.get(model.activation, 1.0)
            bound = (6 / ((1 + slope**2) * fan_in)) ** 0.5 if fan_in else 0.0
        case "zeros":
            bound = 0.0
    for weight in weights:
        weight.uniform_(-bound, bound, generator=generator)
    layer.bias.zero_()
    if model.init == "default":
        layer.bias.uniform_(-bound, bound, generator=generator)


def replace_output(network: nn.Sequential, n_outputs: int, model: Model, generator: torch.Generator) -> None:
    """Give the network a new last layer for other classes."""
    name, last = list(linear_layers(network).items())[-1]
    if isinstance(last, TableLinear):
        raise UserError("data.transfer has other classes, and a network without hidden layers keeps nothing for them")
    layer = nn.utils.skip_init(nn.Linear, last.in_features, n_outputs)
    _initialise(layer, model, generator)
    setattr(network, name, layer)


def freeze(network: nn.Sequential, layers: int | tuple[str, ...]) -> list[str]:
    """Keep the first `layers` layers, or the parameters whose names match the patterns, as they are; returns their names.

    Raises `UserError` for a pattern without a match, and if nothing is left to train.
    """
    names = [name for name, _ in network.named_parameters()]
    if isinstance(layers, int):
        kept = tuple(list(linear_layers(network))[:layers])
        frozen = [name for name in names if name.split(".")[0] in kept]
    else:
        for pattern in layers:
            if not fnmatch.filter(names, pattern):
                raise UserError(f"finetune.freeze: no parameter matches {pattern!r}; there are {', '.join(names)}")
        frozen = [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in layers)]
    if len(frozen) == len(names):
        raise UserError(f"finetune.freeze leaves nothing to train, got {layers!r}")
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name not in frozen)
    return frozen


@dataclass(frozen=True)
class Parameters:
    """One parameter tensor: how many numbers, how many of them train, and their range."""

    name: str
    total: int
    trainable: int
    low: float
    high: float


def parameters(network: nn.Sequential) -> list[Parameters]:
    found = []
    for name, parameter in network.named_parameters():
        values = parameter.detach()
        low, high = (float(values.min()), float(values.max())) if values.numel() else (0.0, 0.0)
        found.append(Parameters(name, values.numel(), values.numel() if parameter.requires_grad else 0, low, high))
    return found


def describe(network: nn.Sequential) -> str:
    """Counts and weight ranges, for a person to read."""
    found = parameters(network)
    total, trainable = sum(p.total for p in found), sum(p.trainable for p in found)
    lines = [
        f"{p.name}: {p.total:,} in [{p.low:.3g}, {p.high:.3g}]{'' if p.trainable else ', frozen'}"
        for p in found
        if p.total
    ]
    return "\n".join([f"parameters: {total:,}, of which {trainable:,} train", *("  " + line for line in lines)])
