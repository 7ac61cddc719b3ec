import copy

import pytest
import torch

from pipeline.networks.build import freeze
from pipeline.training.loop import fit
from tests.support import samples
from tests.support.members import ACTIVATIONS, KINDS, SHAPES, double, largest_difference, members_of


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


def same_course(alone, together, rel):
    for one, other in zip(alone, together, strict=True):
        assert one.best_epoch == other.best_epoch
        assert [pytest.approx(row, rel=rel, abs=rel) for row in one.history] == other.history


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


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mixed", "wine", "diabetes"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("schedule", ["constant", "cosine", "onecycle"])
def test_in_float32_the_metrics_agree_to_a_thousandth(name, optimizer, schedule):
    train = {"optimizer": optimizer, "schedule": schedule, "warmup": 0.0 if schedule == "constant" else 0.3}
    alone, together = trained_alone_and_together(samples.sample(name), {}, train, dtype=torch.float32)
    for one, other in zip(alone, together, strict=True):
        metric = "rmse" if name == "diabetes" else "accuracy"
        assert list(one.history[-1]) == ["epoch", "train_loss", f"train_{metric}", "val_loss", f"val_{metric}", "lr"]
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
