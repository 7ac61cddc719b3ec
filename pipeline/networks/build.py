"""Networks from config: layers, initial weights, freezing, parameter counts."""

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from pipeline.core.errors import UserError
from pipeline.core.settings import Model
from pipeline.networks.modules import CategoryEmbedding, Periodic, PiecewiseLinear, TableLinear
from pipeline.tables.schema import Schema

UNIFORM_RANGE = 0.05  # init: uniform draws weights from [-0.05, 0.05]


def build_network(
    model: Model, schema: Schema, n_outputs: int, generator: torch.Generator, edges: Sequence[Tensor] = ()
) -> nn.Sequential:
    """`hidden` layers of Linear, activation and dropout, then a Linear to `n_outputs`; weights drawn from `generator`.

    Before them stand what `model.numeric` and `model.categories` make of the columns; `edges` are those of `bin_edges`,
    for `ple`.
    """
    layers: list[nn.Module] = []
    d_in, cardinalities = schema.d_num, schema.cardinalities
    if model.numeric == "ple" and d_in:
        layers.append(PiecewiseLinear(edges))
        d_in += sum(len(each) - 1 for each in edges)
    elif model.numeric == "plr" and d_in:
        layers.append(Periodic(d_in, model.plr.frequencies, model.plr.width))
        d_in *= model.plr.width
    if model.categories == "embedding" and cardinalities:
        layers.append(CategoryEmbedding(cardinalities, model.embedding))
        d_in, cardinalities = d_in + len(cardinalities) * model.embedding, ()
    widths = [*model.hidden, n_outputs]
    for place, d_out in enumerate(widths):
        if place == 0:
            layers.append(TableLinear(d_in, cardinalities, d_out))
        else:
            # Without the constructor's own draw, which would come from the global generator.
            layers.append(nn.utils.skip_init(nn.Linear, widths[place - 1], d_out))
        if place < len(model.hidden):
            layers += [_activation(model), nn.Dropout(model.dropout)]
    network = nn.Sequential(*layers)
    for layer in network:
        if isinstance(layer, Periodic | CategoryEmbedding):
            _initialise_embedding(layer, model, generator)
        elif isinstance(layer, TableLinear | nn.Linear):
            _initialise(layer, model, generator)
    return network


def n_parameters(model: Model, schema: Schema, n_outputs: int, n_bins: int) -> int:
    """Numbers that `build_network` would draw, counted before any of them takes memory; `n_bins` are those of `ple`."""
    d_in, n_codes, before = schema.d_num, sum(schema.cardinalities), 0
    if model.numeric == "ple":
        d_in += n_bins
    elif model.numeric == "plr":
        plr = model.plr
        before += d_in * (plr.frequencies + 2 * plr.frequencies * plr.width + plr.width)
        d_in *= plr.width
    if model.categories == "embedding":
        before += n_codes * model.embedding
        d_in, n_codes = d_in + len(schema.cardinalities) * model.embedding, 0
    widths = [d_in + n_codes, *model.hidden, n_outputs]
    return before + sum((above + 1) * below for above, below in pairwise(widths))


def edges_of(network: nn.Sequential) -> tuple[Tensor, ...]:
    """What a network of `model.numeric: ple` was built with; nothing for another."""
    layers = (layer for layer in network if isinstance(layer, PiecewiseLinear))
    return next((layer.edges.split(layer.counts.tolist()) for layer in layers), ())


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
def _initialise_embedding(layer: Periodic | CategoryEmbedding, model: Model, generator: torch.Generator) -> None:
    """As in the paper: frequencies from N(0, sigma), and the rest as torch has it for layers of that kind."""
    if isinstance(layer, CategoryEmbedding):
        layer.table.normal_(generator=generator)
        return
    layer.frequency.normal_(0, model.plr.sigma, generator=generator)
    bound = layer.mix.shape[1] ** -0.5
    layer.mix.uniform_(-bound, bound, generator=generator)
    layer.bias.uniform_(-bound, bound, generator=generator)


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
        # With what stands before them: an embedding belongs to the layer it feeds.
        children = list(dict(network.named_children()))
        last = children.index(list(linear_layers(network))[layers - 1]) if layers else -1
        frozen = [name for name in names if children.index(name.split(".")[0]) <= last]
    else:
        for pattern in layers:
            if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
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
