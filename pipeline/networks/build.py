"""Build networks from config: layers, initial weights, frozen parameters, parameter counts."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from itertools import pairwise

import pandas as pd
import torch
from torch import Tensor, nn

from pipeline.core.errors import UserError
from pipeline.core.settings import Model
from pipeline.networks.modules import CategoryEmbedding, Periodic, PiecewiseLinear, TableLinear
from pipeline.tables.schema import Schema

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU, "leaky_relu": nn.LeakyReLU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "selu": nn.SELU
}  # fmt: skip
UNIFORM_RANGE = 0.05  # `init: uniform` draws from [-0.05, 0.05]


def build_network(
    model: Model, schema: Schema, n_outputs: int, generator: torch.Generator, edges: Sequence[Tensor] = ()
) -> nn.Sequential:
    """Stack the column encoders, the hidden layers (Linear, activation, dropout) and a Linear to `n_outputs`.

    All weights are drawn from `generator`. `edges` are the result of `bin_edges`, needed for `model.numeric: ple`.
    """
    layers: list[nn.Module] = []
    d_in, cardinalities = schema.d_num, schema.cardinalities
    if model.numeric == "ple" and d_in:
        layers.append(PiecewiseLinear(edges))
        d_in += sum(len(column) - 1 for column in edges)
    elif model.numeric == "plr" and d_in:
        layers.append(Periodic(d_in, model.plr.frequencies, model.plr.width))
        d_in *= model.plr.width
    if model.categories == "embedding" and cardinalities:
        layers.append(CategoryEmbedding(cardinalities, model.embedding))
        d_in, cardinalities = d_in + len(cardinalities) * model.embedding, ()
    widths = [*model.hidden, n_outputs]
    layers.append(TableLinear(d_in, cardinalities, widths[0]))
    for width, d_out in pairwise(widths):
        # skip_init: the constructor would draw weights from the global generator.
        linear = nn.utils.skip_init(nn.Linear, width, d_out)
        slope = {"negative_slope": model.slope} if model.activation == "leaky_relu" else {}
        layers += [ACTIVATIONS[model.activation](**slope), nn.Dropout(model.dropout), linear]
    for layer in layers:
        _initialise(layer, model, generator)
    return nn.Sequential(*layers)


def n_parameters(model: Model, schema: Schema, n_outputs: int, n_bins: int) -> int:
    """Count the parameters of `build_network` without allocating them; `n_bins` is the number of all bins of `ple`."""
    d_in, n_codes, encoders = schema.d_num, sum(schema.cardinalities), 0
    if model.numeric == "ple":
        d_in += n_bins
    elif model.numeric == "plr":
        plr = model.plr
        encoders += d_in * (plr.frequencies + 2 * plr.frequencies * plr.width + plr.width)
        d_in *= plr.width
    if model.categories == "embedding":
        encoders += n_codes * model.embedding
        d_in, n_codes = d_in + len(schema.cardinalities) * model.embedding, 0
    widths = [d_in + n_codes, *model.hidden, n_outputs]
    return encoders + sum((d_in + 1) * d_out for d_in, d_out in pairwise(widths))


def edges_of(network: nn.Sequential) -> tuple[Tensor, ...]:
    """Return the bin edges that the network was built with; empty without `model.numeric: ple`."""
    layers = (layer for layer in network if isinstance(layer, PiecewiseLinear))
    return next((layer.edges.split(layer.counts.tolist()) for layer in layers), ())


def linear_layers(network: nn.Sequential) -> dict[str, TableLinear | nn.Linear]:
    """Return the linear layers by name, in order."""
    return {name: layer for name, layer in network.named_children() if isinstance(layer, TableLinear | nn.Linear)}


@torch.no_grad()
def _initialise(layer: nn.Module, model: Model, generator: torch.Generator) -> None:
    match layer:
        case CategoryEmbedding():
            layer.table.normal_(generator=generator)
        case Periodic():  # Gorishniy et al. 2022, section 3.3; mix and bias as in torch's Linear
            layer.frequency.normal_(0, model.plr.sigma, generator=generator)
            bound = layer.mix.shape[1] ** -0.5
            layer.mix.uniform_(-bound, bound, generator=generator)
            layer.bias.uniform_(-bound, bound, generator=generator)
        case TableLinear():
            _initialise_linear([layer.weight, layer.table], layer.bias, layer.fan_in, model, generator)
        case nn.Linear():
            _initialise_linear([layer.weight], layer.bias, layer.in_features, model, generator)


def _initialise_linear(
    weights: Sequence[Tensor], bias: Tensor, fan_in: int, model: Model, generator: torch.Generator
) -> None:
    match model.init:
        case "default":  # as in torch's Linear
            bound = fan_in**-0.5 if fan_in else 0.0
        case "uniform":
            bound = UNIFORM_RANGE
        case "xavier":  # Glorot & Bengio 2010, eq. 16
            bound = (6 / (fan_in + len(bias))) ** 0.5
        case "kaiming":  # He et al. 2015, eq. 10 and 15; other activations count as linear
            slope = {"relu": 0.0, "leaky_relu": model.slope}.get(model.activation, 1.0)
            bound = (6 / ((1 + slope**2) * fan_in)) ** 0.5 if fan_in else 0.0
        case "zeros":
            bound = 0.0
    for weight in weights:
        weight.uniform_(-bound, bound, generator=generator)
    bias.zero_()
    if model.init == "default":
        bias.uniform_(-bound, bound, generator=generator)


def replace_output(network: nn.Sequential, n_outputs: int, model: Model, generator: torch.Generator) -> None:
    """Replace the last layer by a new one with `n_outputs`; raises `UserError` for a network without hidden layers."""
    name, last = list(linear_layers(network).items())[-1]
    if isinstance(last, TableLinear):
        raise UserError(
            "data.transfer has other classes than the source rows, and a network without hidden layers has nothing to"
            " transfer: add a layer to model.hidden"
        )
    layer = nn.utils.skip_init(nn.Linear, last.in_features, n_outputs)
    _initialise(layer, model, generator)
    setattr(network, name, layer)


def freeze(network: nn.Sequential, layers: int | tuple[str, ...]) -> list[str]:
    """Freeze the first `layers` layers, or the parameters whose names match the patterns; return the frozen names.

    Raises `UserError` for a pattern without a match, and if no parameter is left to train.
    """
    names = [name for name, _ in network.named_parameters()]
    if isinstance(layers, int):
        # The encoders are frozen together with the first linear layer.
        children = list(dict(network.named_children()))
        last = children.index(list(linear_layers(network))[layers - 1]) if layers else -1
        frozen = [name for name in names if children.index(name.split(".")[0]) <= last]
    else:
        for pattern in layers:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise UserError(f"finetune.freeze: no parameter matches {pattern!r}; choose from {', '.join(names)}")
        frozen = [name for name in names if any(fnmatchcase(name, pattern) for pattern in layers)]
    if len(frozen) == len(names):
        raise UserError(f"finetune.freeze must leave at least one parameter to train, got {layers!r}")
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name not in frozen)
    return frozen


@torch.no_grad()
def parameters(network: nn.Sequential) -> pd.DataFrame:
    """Return a row per parameter tensor: name, total, trainable (0 if frozen), and its range from low to high."""
    rows = []
    for name, tensor in network.named_parameters():
        low, high = (float(tensor.min()), float(tensor.max())) if tensor.numel() else (0.0, 0.0)
        rows.append((name, tensor.numel(), tensor.requires_grad * tensor.numel(), low, high))
    return pd.DataFrame(rows, columns=["name", "total", "trainable", "low", "high"])


def describe(network: nn.Sequential) -> str:
    """Format the parameter counts and weight ranges, one line per tensor."""
    found = parameters(network)
    lines = [f"parameters: {found['total'].sum():,}, {found['trainable'].sum():,} trainable"]
    for name, total, trainable, low, high in found[found["total"] > 0].itertuples(index=False):
        lines.append(f"  {name}: {total:,} in [{low:.3g}, {high:.3g}]{'' if trainable else ', frozen'}")
    return "\n".join(lines)
