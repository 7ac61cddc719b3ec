import copy
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.core.errors import UserError
from pipeline.core.settings import Model
from pipeline.networks.build import build_network, describe, freeze, linear_layers, parameters, replace_output
from pipeline.networks.device import generator
from tests.support.members import numpy_state
from tests.support.samples import network, sample


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("relu", nn.ReLU()),
        ("leaky_relu", nn.LeakyReLU(0.2)),
        ("sigmoid", nn.Sigmoid()),
        ("tanh", nn.Tanh()),
        ("selu", nn.SELU()),
    ],
)
def test_activation_is_the_one_of_torch(name, reference):
    built = network(sample("iris"), hidden=(5,), activation=name, slope=0.2)
    x = torch.linspace(-4, 4, 101)
    assert torch.equal(built[1](x), reference(x))


def expected_bound(init, activation, slope, fan_in, fan_out):
    """The bound that torch.nn.init draws between, for a weight of these fans."""
    match init:
        case "default":
            return 1 / fan_in**0.5  # nn.Linear.reset_parameters
        case "uniform":
            return 0.05
        case "xavier":
            return (6 / (fan_in + fan_out)) ** 0.5
        case "kaiming":
            named: Any = activation if activation in ("relu", "leaky_relu") else "linear"
            return nn.init.calculate_gain(named, slope) * (3 / fan_in) ** 0.5
        case "zeros":
            return 0.0


@pytest.mark.parametrize("init", ["default", "uniform", "xavier", "kaiming", "zeros"])
@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "sigmoid", "tanh", "selu"])
def test_initial_weights_fill_the_range_of_torch_init(init, activation):
    of = sample("mixed")
    built = network(of, hidden=(500, 300), activation=activation, slope=0.3, init=init)
    layers: list[Any] = list(linear_layers(built).values())
    first, second, last = layers
    active = of.schema.d_num + len(of.schema.cardinalities)
    for weight, fan_in, fan_out in [
        (first.weight, active, 500),
        (first.table, active, 500),
        (second.weight, 500, 300),
        (last.weight, 300, 1),
    ]:
        bound = expected_bound(init, activation, 0.3, fan_in, fan_out)
        assert weight.abs().max() <= bound * (1 + 1e-6)
        assert weight.max() >= 0.95 * bound
        assert weight.min() <= -0.95 * bound
        if weight.numel() > 1000:
            assert float(weight.detach().std()) == pytest.approx(bound / 3**0.5, rel=0.05)
    for layer, fan_in in ((first, active), (second, 500), (last, 300)):
        bound = fan_in**-0.5 if init == "default" else 0.0
        assert layer.bias.abs().max() <= bound
        assert init != "default" or layer is last or layer.bias.abs().max() > 0.9 * bound


@pytest.mark.parametrize(("init", "call"), [("xavier", nn.init.xavier_uniform_), ("kaiming", nn.init.kaiming_uniform_)])
def test_initial_weights_have_the_spread_that_torch_init_gives(init, call):
    second = linear_layers(network(sample("iris"), hidden=(400, 300), init=init))["3"].weight.detach()
    options = {"nonlinearity": "relu"} if init == "kaiming" else {}
    reference = call(torch.empty(300, 400), generator=generator(9), **options)
    assert float(second.max()) == pytest.approx(float(reference.max()), rel=1e-3)
    assert float(second.std()) == pytest.approx(float(reference.std()), rel=0.01)


def test_building_draws_from_its_generator_alone():
    of, before, numpy_before = sample("mixed"), torch.get_rng_state(), numpy_state()
    one, same, other = (network(of, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(numpy_state(), numpy_before)
    for a, b, c in zip(one.parameters(), same.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


@pytest.mark.parametrize(("name", "n_outputs"), [("iris", 3), ("breast_cancer", 1), ("diabetes", 1), ("mixed", 1)])
@pytest.mark.parametrize("hidden", [(), (7,), (7, 5)])
def test_network_has_the_sizes_of_the_schema(name, n_outputs, hidden):
    of = sample(name)
    built = network(of, hidden=hidden)
    widths = [layer.bias.numel() for layer in linear_layers(built).values()]
    assert widths == [*hidden, n_outputs]
    assert built((of.test.x_num, of.test.x_cat)).shape == (len(of.test), n_outputs)
    assert len(built) == 1 + 3 * len(hidden)
    # Every entry of the one-hot row has a weight.
    d_in = of.schema.d_num + sum(of.schema.cardinalities)
    sizes = [d_in, *hidden, n_outputs]
    expected = sum((a + 1) * b for a, b in pairwise(sizes))
    assert parameters(built)["total"].sum() == expected == sum(p.numel() for p in built.parameters())


@pytest.mark.parametrize(
    ("layers", "frozen"),
    [
        (0, []),
        (1, ["0.weight", "0.table", "0.bias"]),
        (2, ["0.weight", "0.table", "0.bias", "3.weight", "3.bias"]),
        (("0.*",), ["0.weight", "0.table", "0.bias"]),
        (("*.bias", "3.weight"), ["0.bias", "3.weight", "3.bias", "6.bias"]),
    ],
)
def test_freeze_keeps_the_first_layers_or_the_named_parameters(layers, frozen):
    built = network(sample("mixed"), hidden=(6, 5))
    assert freeze(built, layers) == frozen
    assert [name for name, parameter in built.named_parameters() if not parameter.requires_grad] == frozen
    assert parameters(built).query("trainable == 0")["name"].tolist() == frozen
    assert describe(built).count("frozen") == len(frozen)


def test_freeze_sets_free_what_an_earlier_call_froze():
    built = network(sample("mixed"), hidden=(6,))
    freeze(built, 1)
    assert freeze(built, ("*.bias",)) == ["0.bias", "3.bias"]
    assert built[0].weight.requires_grad


@pytest.mark.parametrize(
    ("layers", "said"),
    [(("9.*",), "9.*"), (("0.*", "0.wieght"), "0.wieght"), (3, "at least one"), (("*",), "at least one")],
)
def test_freeze_refuses_patterns_without_a_match_and_to_freeze_all(layers, said):
    built = network(sample("mixed"), hidden=(6, 5))
    with pytest.raises(UserError, match=r"finetune\.freeze") as caught:
        freeze(built, layers)
    assert said in str(caught.value)
    assert all(parameter.requires_grad for parameter in built.parameters())


def test_description_gives_counts_and_ranges():
    built = network(sample("iris"), hidden=(5,))
    freeze(built, 1)
    text = describe(built)
    assert "parameters: 43, 18 trainable" in text
    for found in parameters(built).itertuples():
        tensor = built.get_parameter(str(found.name))
        assert (found.low, found.high) == ((tensor.min(), tensor.max()) if tensor.numel() else (0, 0))


def test_replaced_output_is_new_and_the_other_layers_stay():
    model = Model(hidden=(6, 5))
    built = build_network(model, sample("mixed").schema, 3, generator(0))
    before = copy.deepcopy(built.state_dict())
    random_state = torch.get_rng_state()
    replace_output(built, 4, model, generator(1))
    assert torch.equal(torch.get_rng_state(), random_state)
    after = built.state_dict()
    assert list(after) == list(before)
    assert after["6.weight"].shape == (4, 5)
    assert after["6.bias"].shape == (4,)
    assert 0 < float(after["6.weight"].abs().max()) <= 5**-0.5
    assert all(torch.equal(after[name], before[name]) for name in before if not name.startswith("6."))


def test_output_of_a_network_without_hidden_layers_cannot_be_replaced():
    model = Model(hidden=())
    built = build_network(model, sample("mixed").schema, 3, generator(0))
    with pytest.raises(UserError, match="without hidden layers"):
        replace_output(built, 4, model, generator(1))
