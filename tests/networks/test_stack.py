import copy
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.networks.device import generator
from pipeline.networks.stack import Stack, predict
from tests.support import samples
from tests.support.members import ACTIVATIONS, SHAPES, double


@SHAPES
@pytest.mark.parametrize("name", ["mixed", "wine", "diabetes"])
def test_a_stack_gives_what_its_networks_give(name, model):
    of = samples.sample(name)
    networks = [samples.network(of, seed, **model).eval() for seed in range(3)]
    outputs = predict(networks, of.val)
    for network, found in zip(networks, outputs, strict=True):
        torch.testing.assert_close(found, network((of.val.x_num, of.val.x_cat)))


@SHAPES
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_gradients_of_a_stack_are_what_autograd_finds_for_its_networks(activation, model):
    of = samples.sample("mixed")
    rows = double(of.val)
    networks = [samples.network(of, seed, activation=activation, **model).double().eval() for seed in range(3)]
    stack = Stack(networks)
    outputs = stack(rows.x_num.unsqueeze(0), rows.x_cat.unsqueeze(0))
    pulls = torch.randn(outputs.shape, dtype=torch.float64, generator=generator(5))
    for block, gradient in zip(stack.blocks, stack.gradients(pulls), strict=True):
        block.copy_(gradient)
    copies = copy.deepcopy(networks)  # which hold the gradients, by the names that parameters have
    stack.write(copies)
    for network, of_gradients, pull in zip(networks, copies, pulls, strict=True):
        learning = {name: parameter for name, parameter in network.named_parameters() if parameter.numel()}
        expected = torch.autograd.grad((network((rows.x_num, rows.x_cat)) * pull).sum(), list(learning.values()))
        for name, gradient in zip(learning, expected, strict=True):
            torch.testing.assert_close(of_gradients.get_parameter(name).detach(), gradient, rtol=1e-9, atol=1e-9)


# ----------------------------------------------------------------------------------------------------------- dropout


def layer_of(stack, name) -> Any:
    return stack._layers[name]


def masks(chances, n_rows=2000, width=101, seeds=(0,)):
    """[K, n_rows, width] what a stack of ones becomes."""
    layer = nn.utils.skip_init(nn.Linear, 1, width)
    networks = [nn.Sequential(layer, nn.Dropout(p)) for p in chances]
    stack = Stack(networks)
    bits = stack.dropout_bits(n_rows, [generator(seed) for seed in seeds])
    return layer_of(stack, "1").mask(bits, n_rows)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9, 0.999999])
def test_dropout_drops_its_share_and_scales_the_rest(p):
    mask = masks([p, 0.25])[0]
    kept, n = float((mask != 0).float().mean()), mask.numel()
    assert abs(kept - (1 - p)) < 5 * (p * (1 - p) / n) ** 0.5 + 2**-16
    if kept:
        scale = mask[mask != 0].unique()
        assert len(scale) == 1
        assert scale.item() == pytest.approx(1 / (1 - p), rel=2**-16 / (1 - p))


def test_dropout_drops_places_independently_and_nothing_for_p_zero():
    zero, some = masks([0.0, 0.3])
    assert (zero == 1).all()
    dropped = (some == 0).float()
    for shift in range(1, 9):  # four neighbours share one random word
        together = float((dropped[:, shift:] * dropped[:, :-shift]).mean())
        assert together == pytest.approx(0.09, abs=0.006)


def test_dropout_masks_are_each_seeds_own_repeat_and_leave_the_global_generator():
    before = torch.get_rng_state()
    one, again, other = (masks([0.5], seeds=(seed,)) for seed in (3, 3, 4))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    both = masks([0.5, 0.5], seeds=(3, 4))
    assert torch.equal(both, torch.cat([one, other]))
    assert torch.equal(torch.get_rng_state(), before)


def test_each_number_that_may_be_dropped_has_random_bits_of_its_own_in_every_layer():
    """One word is low at a time: it drops one number of one layer, and each number has one that does."""
    n_rows, wide, narrow = 3, 5, 4
    layers = [nn.Linear(2, wide), nn.Dropout(0.5), nn.Linear(wide, wide), nn.Dropout(0.3), nn.Linear(wide, narrow)]
    stack = Stack([nn.Sequential(*layers, nn.Dropout(0.4))])
    bits = stack.dropout_bits(n_rows, [generator(0)])
    dropped = []
    for place in range(bits.shape[1]):
        one_low = torch.full_like(bits, 2**15 - 1).index_fill(1, torch.tensor([place]), -(2**15))
        found = [layer_of(stack, name).mask(one_low, n_rows) == 0 for name in ("1", "3", "5")]
        dropped.append(torch.cat([mask.flatten() for mask in found]))
    each = torch.stack(dropped)
    assert each.shape[1] == n_rows * (wide + wide + narrow)
    assert (each.sum(0) == 1).all()
    assert (each.sum(1) <= 1).all()


def test_dropout_layers_of_one_width_drop_other_numbers():
    layers = [nn.Linear(1, 64), nn.Dropout(0.5), nn.Linear(64, 64), nn.Dropout(0.5)]
    stack = Stack([nn.Sequential(*layers) for _ in range(2)])
    bits = stack.dropout_bits(500, [generator(seed) for seed in (0, 1)])
    one, other = (layer_of(stack, name).mask(bits, 500) == 0 for name in ("1", "3"))
    both = (one & other).float().mean((1, 2))
    assert both.tolist() == pytest.approx([0.25, 0.25], abs=0.012)  # five standard deviations


def test_a_stack_draws_no_bits_where_nothing_is_dropped():
    assert Stack([nn.Sequential(nn.Linear(1, 2), nn.Dropout(0.0))]).dropout_bits(5, [generator(0)]) is None


@pytest.mark.parametrize("n", [0, 1, 20_000])
def test_predict_gives_an_output_a_row_however_many_there_are(n):
    of = samples.sample("mixed")
    built, rows = samples.network(of), torch.arange(n) % len(of.val)
    outputs = predict([built], of.val.take(rows))[0]
    assert outputs.shape == (n, 1)
    torch.testing.assert_close(outputs, predict([built], of.val)[0][rows])
