import copy

import pytest
import torch
from torch import nn

from pipeline.networks.build import freeze
from pipeline.networks.device import generator
from pipeline.networks.gradients import look_up_gradient
from pipeline.networks.modules import CategoryEmbedding, PiecewiseLinear
from pipeline.networks.stack import Stack, predict
from pipeline.tables.tensors import TabularData
from pipeline.training.loop import Member, fit
from tests import samples

SHAPES = pytest.mark.parametrize(
    "model",
    [
        {"numeric": numeric, "categories": categories, "hidden": hidden}
        for numeric in ("plain", "ple", "plr")
        for categories in ("onehot", "embedding")
        for hidden in ((), (7, 5))
    ],
    ids=lambda model: f"{model['numeric']}-{model['categories']}-{len(model['hidden'])}",
)
ACTIVATIONS = ("relu", "leaky_relu", "sigmoid", "tanh", "selu")


def double(data):
    return TabularData(data.x_num.double(), data.x_cat, data.y if data.y.dtype == torch.int64 else data.y.double())


def members_of(of, kinds, model, dtype=torch.float64):
    """A member for each of `kinds`: a seed, a dropout, and settings that members of a stack may differ in."""
    members = []
    for seed, dropout, own in kinds:
        built = samples.network(of, seed, **{"hidden": (7, 5), "bins": 8, **model, "dropout": dropout}).to(dtype)
        settings = samples.settings(**{"epochs": 4, "lr": 0.05, **own})
        members.append(Member(built, settings, seed))
    return members


KINDS = [
    (3, 0.0, {"lr": 0.05}),
    (3, 0.3, {"lr": 0.01, "momentum": 0.5, "weight_decay": 0.1}),
    (8, 0.6, {"lr": 0.02, "momentum": 0.0, "label_smoothing": 0.2}),
    (9, 0.1, {"lr": 0.08, "patience": 1, "weight_decay": 0.01}),
]


def trained_alone_and_together(of, model, train, kinds=KINDS, dtype=torch.float64):
    cast = double if dtype == torch.float64 else lambda data: data
    rows, val = cast(of.train), cast(of.val)
    if of.target.task == "regression":
        kinds = [
            (seed, dropout, {k: v for k, v in own.items() if k != "label_smoothing"}) for seed, dropout, own in kinds
        ]
    alone, together = (
        members_of(of, [(s, d, {**train, **own}) for s, d, own in kinds], model, dtype) for _ in range(2)
    )
    for member in alone:
        fit([member], rows, val, of.target)
    fit(together, rows, val, of.target)
    return alone, together


def largest_difference(alone, together):
    return max(
        float((one - other).abs().max())
        for a, b in zip(alone, together, strict=True)
        for one, other in zip(a.network.state_dict().values(), b.network.state_dict().values(), strict=True)
        if one.numel()
    )


def same_course(alone, together, rel):
    for one, other in zip(alone, together, strict=True):
        assert one.best_epoch == other.best_epoch
        assert [pytest.approx(row, rel=rel, abs=rel) for row in one.history] == other.history


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


@SHAPES
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_members_trained_together_equal_the_same_trained_alone(model, optimizer):
    alone, together = trained_alone_and_together(samples.sample("mixed"), model, {"optimizer": optimizer})
    assert largest_difference(alone, together) < 1e-9
    same_course(alone, together, 1e-9)


@pytest.mark.parametrize("name", ["wine", "breast_cancer", "diabetes"])
@pytest.mark.parametrize(
    "train",
    [
        {"schedule": "cosine", "warmup": 0.2},
        {"schedule": "onecycle", "warmup": 0.3},
        {"clip": 0.1},
        {"augment": {"noise": 0.1, "swap": 0.1, "mixup": 0.4}},
        {"patience": 1, "epochs": 12},
    ],
    ids=lambda train: next(iter(train)) + str(next(iter(train.values())))[:8],
)
def test_whatever_members_do_in_training_they_do_as_if_alone(name, train):
    of = samples.sample(name)
    alone, together = trained_alone_and_together(of, {}, train)
    assert largest_difference(alone, together) < 1e-9
    same_course(alone, together, 1e-9)


@pytest.mark.parametrize("name", ["wine", "breast_cancer"])
def test_members_with_balanced_classes_train_as_if_alone(name):
    alone, together = trained_alone_and_together(samples.sample(name), {}, {"class_weights": "balanced"})
    assert largest_difference(alone, together) < 1e-9
    same_course(alone, together, 1e-9)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("seeds", [(3, 3, 3, 3), (1, 2, 3, 4)])
def test_members_of_one_seed_and_of_several_train_as_if_alone(activation, seeds):
    kinds = [(seed, dropout, own) for seed, (_, dropout, own) in zip(seeds, KINDS, strict=True)]
    alone, together = trained_alone_and_together(samples.sample("mixed"), {"activation": activation}, {}, kinds)
    assert largest_difference(alone, together) < 1e-9


@pytest.mark.parametrize("name", ["mixed", "wine", "diabetes"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("schedule", ["constant", "cosine", "onecycle"])
def test_in_float32_the_metrics_agree_to_a_thousandth(name, optimizer, schedule):
    train = {"optimizer": optimizer, "schedule": schedule, "warmup": 0.0 if schedule == "constant" else 0.3}
    alone, together = trained_alone_and_together(samples.sample(name), {}, train, dtype=torch.float32)
    for one, other in zip(alone, together, strict=True):
        assert {"train_loss", "val_loss", "lr", "grad_norm"} < one.history[-1].keys()
        assert one.history[-1] == pytest.approx(other.history[-1], rel=1e-3, abs=1e-3)


def test_early_stopping_is_each_members_own_and_restores_its_own_best_weights():
    alone, together = trained_alone_and_together(samples.sample("mixed"), {}, {"patience": 2, "epochs": 25, "lr": 0.3})
    lengths = [len(member.history) for member in together]
    assert len(set(lengths)) > 1
    assert lengths == [len(member.history) for member in alone]
    for member in together:
        for name, tensor in member.network.state_dict().items():
            assert torch.equal(tensor, member.best_weights[name])


def test_the_order_in_a_stack_changes_no_member():
    of = samples.sample("mixed")
    one, other = members_of(of, KINDS, {}), members_of(of, KINDS[::-1], {})
    for members in (one, other):
        fit(members, double(of.train), double(of.val), of.target)
    assert largest_difference(one, other[::-1]) < 1e-9


def test_a_member_that_diverges_leaves_the_others_as_they_are():
    of = samples.sample("wine")
    kinds = [(1, 0.0, {"lr": 0.05}), (1, 0.0, {"lr": 1e9, "weight_decay": 1e9}), (2, 0.0, {"lr": 0.02})]
    together, alone = members_of(of, kinds, {}), members_of(of, [kinds[0], kinds[2]], {})
    fit(together, double(of.train), double(of.val), of.target)
    for member in alone:
        fit([member], double(of.train), double(of.val), of.target)
    assert [member.diverged is None for member in together] == [True, False, True]
    assert largest_difference(alone, [together[0], together[2]]) < 1e-9


def test_training_that_pauses_between_epochs_ends_as_if_it_had_not():
    of = samples.sample("mixed")
    for optimizer in ("sgd", "adamw"):
        kinds = [(s, d, {**own, "optimizer": optimizer, "schedule": "onecycle", "warmup": 0.3}) for s, d, own in KINDS]
        at_once, paused = members_of(of, kinds, {}), members_of(of, kinds, {})
        fit(at_once, double(of.train), double(of.val), of.target)
        for until in (1, 3):
            fit(paused, double(of.train), double(of.val), of.target, until=until)
            assert all(len(member.history) <= until for member in paused)
        fit(paused[:2], double(of.train), double(of.val), of.target)
        fit(paused[2:], double(of.train), double(of.val), of.target)
        assert largest_difference(at_once, paused) < 1e-9
        same_course(at_once, paused, 1e-9)


def test_frozen_layers_of_a_stack_stay_as_they_are_with_what_feeds_them():
    of = samples.sample("mixed")
    for model in ({"numeric": "plr"}, {"categories": "embedding"}, {"numeric": "ple"}):
        members = members_of(of, KINDS[:2], model)
        before = [copy.deepcopy(member.network.state_dict()) for member in members]
        frozen = [freeze(member.network, 1) for member in members]
        fit(members, double(of.train), double(of.val), of.target)
        for member, state, names in zip(members, before, frozen, strict=True):
            for name, tensor in member.network.named_parameters():
                assert torch.equal(tensor, state[name]) == (name in names or not tensor.numel()), name
            first = [
                name for name, layer in member.network.named_children() if name == "0" and list(layer.parameters())
            ]
            assert all(any(frozen_name.startswith(f"{name}.") for frozen_name in names) for name in first)


# ------------------------------------------------------------------------------------------------------------ layers


@pytest.mark.parametrize(("n_rows", "n_codes", "width"), [(6, 40, 3), (1, 5, 1), (50, 8, 9)])
def test_the_gradient_of_a_look_up_is_that_of_embedding_bag(n_rows, n_codes, width):
    table = torch.randn(n_rows, 4, dtype=torch.float64, generator=generator(1), requires_grad=True)
    codes = torch.randint(n_rows, (n_codes, width), generator=generator(2))
    weights = torch.randn(n_codes, 4, dtype=torch.float64, generator=generator(3))
    looked_up = nn.functional.embedding_bag(codes, table, mode="sum")
    (expected,) = torch.autograd.grad((looked_up * weights).sum(), table)
    torch.testing.assert_close(look_up_gradient(codes, weights, table.detach().unsqueeze(0))[0], expected)


def test_piecewise_linear_is_the_formula_of_the_paper():
    edges = (torch.tensor([0.0, 1.0, 3.0]), torch.tensor([-1.0, 1.0]))
    x = torch.tensor([[-1.0, 0.0], [0.5, -1.0], [2.0, 1.0], [5.0, 3.0]])
    expected = torch.tensor([[-1.0, 0.0, 0.5], [0.5, 0.0, 0.0], [1.0, 0.5, 1.0], [1.0, 2.0, 2.0]])
    assert torch.equal(PiecewiseLinear(edges).encode(x), torch.cat([x, expected], 1))


def test_category_embedding_puts_each_categorys_vector_beside_the_numbers():
    layer = CategoryEmbedding((2, 3), 4)
    nn.init.normal_(layer.table, generator=generator(0))
    x, none = layer((torch.ones(2, 1), torch.tensor([[1, 0], [0, 2]])))
    assert torch.equal(x[0], torch.cat([torch.ones(1), layer.table[1], layer.table[2]]))
    assert torch.equal(x[1], torch.cat([torch.ones(1), layer.table[0], layer.table[4]]))
    assert none.shape == (2, 0)


# ----------------------------------------------------------------------------------------------------------- dropout


def masks(chances, n_rows=2000, width=101, seeds=(0,)):
    """[K, n_rows, width] what a stack of ones becomes."""
    layer = nn.utils.skip_init(nn.Linear, 1, width)
    networks = [nn.Sequential(layer, nn.Dropout(p)) for p in chances]
    stack = Stack(networks)
    words = stack.dropout_words(n_rows, [generator(seed) for seed in seeds])
    return stack._layers["1"].mask(words, n_rows)


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
    words = stack.dropout_words(n_rows, [generator(0)])
    dropped = []
    for place in range(words.shape[1]):
        one_low = torch.full_like(words, 2**15 - 1).index_fill(1, torch.tensor([place]), -(2**15))
        found = [stack._layers[name].mask(one_low, n_rows) == 0 for name in ("1", "3", "5")]
        dropped.append(torch.cat([mask.flatten() for mask in found]))
    each = torch.stack(dropped)
    assert each.shape[1] == n_rows * (wide + wide + narrow)
    assert (each.sum(0) == 1).all()
    assert (each.sum(1) <= 1).all()


def test_dropout_layers_of_one_width_drop_other_numbers():
    layers = [nn.Linear(1, 64), nn.Dropout(0.5), nn.Linear(64, 64), nn.Dropout(0.5)]
    stack = Stack([nn.Sequential(*layers) for _ in range(2)])
    words = stack.dropout_words(500, [generator(seed) for seed in (0, 1)])
    one, other = (stack._layers[name].mask(words, 500) == 0 for name in ("1", "3"))
    both = (one & other).float().mean((1, 2))
    assert both.tolist() == pytest.approx([0.25, 0.25], abs=0.012)  # five standard deviations


def test_a_stack_draws_no_words_where_nothing_is_dropped():
    assert Stack([nn.Sequential(nn.Linear(1, 2), nn.Dropout(0.0))]).dropout_words(5, [generator(0)]) is None
