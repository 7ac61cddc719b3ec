import copy
import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch import nn

from pipeline.core.errors import DivergedError
from pipeline.core.settings import Overfit
from pipeline.evaluation import metrics
from pipeline.networks import losses
from pipeline.networks.build import freeze
from pipeline.networks.device import generator
from pipeline.networks.losses import predictions
from pipeline.networks.stack import predict
from pipeline.stages.baseline.trees import constant_outputs
from pipeline.stages.train.overfit import overfit_check
from pipeline.tables.tensors import TabularData
from pipeline.training.loop import class_weights, evaluate
from tests.support.members import equal, numpy_state, state, trained
from tests.support.samples import network, sample, settings

TASKS = pytest.mark.parametrize("name", ["wine", "breast_cancer", "diabetes", "mixed"])
ALL_AT_ONCE = 10_000  # a batch size that makes an epoch one step


def finite(built):
    return all(parameter.isfinite().all() for parameter in built.parameters())


# -------------------------------------------------------------------------------------------------------- learning


@TASKS
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_fit_beats_the_constant_on_rows_it_has_not_seen(name, optimizer):
    of = sample(name)
    built = network(of, hidden=(16,))
    lr = 0.05 if optimizer == "sgd" else 0.01
    fitted = trained(of, built, optimizer=optimizer, lr=lr, epochs=15, schedule="cosine")
    constant = losses.loss(constant_outputs(of.train.y, len(of.test), of.target), of.test.y, of.target.task)
    assert evaluate([built], of.test, of.target)["loss"] < 0.8 * float(constant)
    assert fitted.history[-1]["train_loss"] < 0.8 * fitted.history[0]["train_loss"]


@TASKS
@pytest.mark.parametrize(
    ("optimizer", "reference"),
    [
        ("sgd", lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.8, weight_decay=0.01, foreach=False)),
        ("adam", lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.01, foreach=False)),
        ("adamw", lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.01, foreach=False)),
    ],
)
def test_two_epochs_equal_those_of_torch_optim_on_the_same_batches(name, optimizer, reference):
    of, seed = sample(name), 5
    built = network(of, hidden=(6,), dropout=0.0, activation="tanh")
    by_hand = copy.deepcopy(built)
    lr, batch_size = 0.1, 50
    fitted = trained(
        of, built, seed=seed, optimizer=optimizer, lr=lr, momentum=0.8, weight_decay=0.01, batch_size=50, epochs=2
    )

    objective = {
        "multiclass": nn.functional.cross_entropy,
        "binary": lambda out, y: nn.functional.binary_cross_entropy_with_logits(out[:, 0], y.float()),
        "regression": lambda out, y: nn.functional.mse_loss(out[:, 0], y),
    }[of.target.task]
    steps = reference(by_hand.parameters())
    states, losses = [], []
    for epoch in (1, 2):
        total = 0.0
        for rows in torch.randperm(len(of.train), generator=generator(seed, epoch)).split(batch_size):
            steps.zero_grad()
            loss = objective(by_hand((of.train.x_num[rows], of.train.x_cat[rows])), of.train.y[rows])
            loss.backward()
            steps.step()
            total += float(loss.detach()) * len(rows)
        states.append(state(by_hand))
        losses.append(total / len(of.train))
    for key, tensor in built.state_dict().items():
        torch.testing.assert_close(tensor, states[fitted.best_epoch - 1][key], rtol=1e-4, atol=1e-5)
    assert [row["train_loss"] for row in fitted.history] == pytest.approx(losses, rel=1e-4)


def test_history_has_a_row_an_epoch_with_what_it_measured():
    of = sample("iris")
    seen: list[Any] = []
    fitted = trained(of, network(of), epochs=3, on_epoch=seen.append)
    assert fitted.history == seen
    assert [row["epoch"] for row in fitted.history] == [1, 2, 3]
    columns = ["epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr"]
    assert all(list(row)[:6] == columns and all(map(math.isfinite, row.values())) for row in fitted.history)
    rmse = trained(sample("diabetes"), network(sample("diabetes")), epochs=1).best["train_rmse"]
    assert 20 < rmse < 200  # of the target, whose standard deviation is 77: its own units


# -------------------------------------------------------------------------------------------- stopping and restoring


def test_early_stopping_ends_after_patience_and_restores_the_best_weights_exactly():
    of = sample("breast_cancer")
    against = TabularData(of.val.x_num, of.val.x_cat, 1 - of.val.y)  # the better on train, the worse here
    built, states = network(of, hidden=(8,)), []
    fitted = trained(
        of, built, val=against, epochs=30, patience=4, lr=0.01, on_epoch=lambda row: states.append(state(built))
    )
    losses = [row["val_loss"] for row in fitted.history]
    assert fitted.best_epoch == 1 + int(np.argmin(losses))
    assert len(fitted.history) == fitted.best_epoch + 4 < 30
    assert equal(built.state_dict(), states[fitted.best_epoch - 1])
    assert not equal(built.state_dict(), states[-1])
    assert evaluate([built], against, of.target)["loss"] == fitted.best["val_loss"] == min(losses)


def test_training_without_patience_runs_to_the_end_whatever_on_epoch_returns():
    of = sample("iris")
    seen: list[Any] = []
    fitted = trained(of, network(of), epochs=6, lr=1e-6, patience=None, on_epoch=lambda row: seen.append(row) or True)
    assert len(fitted.history) == 6
    assert seen == fitted.history


@TASKS
def test_divergence_is_reported_with_epoch_and_learning_rate(name):
    of = sample(name)
    with pytest.raises(DivergedError, match=r"epoch [12] .*lr 1e\+09"):
        trained(of, network(of), lr=1e9)


# ----------------------------------------------------------------------------------------------------- randomness


LIVELY = {"augment": {"noise": 0.1, "swap": 0.1, "mixup": 0.4}}


@TASKS
def test_same_seed_gives_the_same_weights_bit_for_bit_and_another_seed_others(name):
    of, states = sample(name), []
    for seed in (3, 3, 4):
        built = network(of, dropout=0.3)
        trained(of, built, seed=seed, **LIVELY)
        states.append(state(built))
    assert equal(states[0], states[1])
    assert not equal(states[0], states[2])


def test_fit_leaves_the_global_random_numbers_alone_and_does_not_depend_on_them():
    of, states = sample("mixed"), []
    for seed in (0, 1):
        torch.manual_seed(seed)
        np.random.seed(seed)
        before = torch.get_rng_state(), numpy_state().tolist(), random.getstate()
        built = network(of, dropout=0.3)
        trained(of, built, **LIVELY)
        overfit_check(built, of.train, settings(overfit=Overfit(rows=4)), of.target, seed=0)
        assert torch.equal(torch.get_rng_state(), before[0])
        assert (numpy_state().tolist(), random.getstate()) == before[1:]
        states.append(state(built))
    assert equal(*states)


def test_what_an_epoch_draws_depends_on_seed_and_epoch_alone():
    of, histories = sample("mixed"), []
    for epochs in (2, 4):
        histories.append(trained(of, network(of, dropout=0.3), epochs=epochs, **LIVELY).history)
    assert histories[0] == histories[1][:2]


# -------------------------------------------------------------------------------- what holds the network back, or in


@pytest.mark.parametrize("clip", [1e-3, 0.1, 1e6])
def test_clip_bounds_the_norm_of_the_gradient(clip):
    of = sample("wine")
    built = network(of, dropout=0.0)
    before = state(built)

    def moved(clip):
        built.load_state_dict(before)
        trained(of, built, lr=1.0, momentum=0.0, clip=clip, epochs=1, batch_size=ALL_AT_ONCE)
        return math.sqrt(sum(float((built.state_dict()[key] - old).square().sum()) for key, old in before.items()))

    assert moved(clip) == pytest.approx(min(clip, moved(None)), rel=1e-3)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        (name, change)
        for name in ("wine", "breast_cancer", "diabetes", "mixed")
        for change in (
            {"label_smoothing": 0.2},
            {"class_weights": "balanced"},
            {"augment": {"noise": 0.2}},
            {"augment": {"swap": 0.2}},
            {"augment": {"mixup": 0.4}},
            {"clip": 0.05},
            {"weight_decay": 0.1},
        )
        if name != "diabetes" or not {"label_smoothing", "class_weights"} & change.keys()
    ],
)
def test_each_regularisation_changes_training_and_keeps_it_finite(name, change):
    of = sample(name)
    plain, changed = network(of, hidden=(8,)), network(of, hidden=(8,))
    trained(of, plain)
    fitted = trained(of, changed, **change)
    assert not equal(state(plain), state(changed))
    assert finite(changed)
    assert fitted.history[-1]["train_loss"] < fitted.history[0]["train_loss"]


def test_class_weights_are_those_of_scikit_learn():
    for name, n_outputs in (("wine", 3), ("breast_cancer", 1)):
        y = sample(name).train.y
        expected = compute_class_weight("balanced", classes=np.unique(y), y=y.numpy())
        assert class_weights(y, n_outputs).numpy() == pytest.approx(expected, rel=1e-6)
    assert class_weights(torch.tensor([0, 0, 2]), 3).isfinite().all()


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_frozen_parameters_stay_bit_for_bit(optimizer):
    of = sample("mixed")
    built = network(of, hidden=(8, 6))
    frozen, before = freeze(built, 2), state(built)
    trained(of, built, optimizer=optimizer, weight_decay=0.1, **LIVELY)
    for key, tensor in built.state_dict().items():
        assert torch.equal(tensor, before[key]) == (key in frozen), key


# ------------------------------------------------------------------------------------------------------ the outcome


@TASKS
def test_evaluate_is_loss_and_headline_metric_of_the_network_without_dropout(name):
    of = sample(name)
    built = network(of, dropout=0.5)
    outputs = predict([built.train()], of.val)[0]
    assert not outputs.requires_grad
    torch.testing.assert_close(outputs, built.eval()((of.val.x_num, of.val.x_cat)))
    predicted = predictions(outputs, of.target.task)
    expected = metrics.score(predicted, of.val.y, of.target.task, of.target.std)
    headline = "rmse" if of.target.task == "regression" else "accuracy"
    found = evaluate([built], of.val, of.target)
    assert found["loss"] == float(losses.loss(outputs, of.val.y, of.target.task))
    assert found == {"loss": found["loss"], headline: pytest.approx(expected[headline], rel=1e-6)}
