import copy
import math
import random

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch import nn

from pipeline.core.errors import DivergedError, UserError
from pipeline.core.settings import Overfit
from pipeline.evaluation import metrics
from pipeline.networks import losses
from pipeline.networks.build import freeze
from pipeline.networks.device import generator, use
from pipeline.networks.losses import predictions
from pipeline.networks.stack import Stack, predict
from pipeline.stages.baseline.trees import constant_outputs
from pipeline.stages.train.overfit import gap, overfit_check
from pipeline.tables.tensors import TabularData
from pipeline.training.loop import class_weights, evaluate
from pipeline.training.schedule import lr_factor
from tests import samples
from tests.samples import network, sample, settings

TASKS = pytest.mark.parametrize("name", ["wine", "breast_cancer", "diabetes", "mixed"])
ALL_AT_ONCE = 10_000  # a batch size that makes an epoch one step


def trained(of, built, seed=0, on_epoch=lambda row: None, train=None, val=None, **train_settings):
    return samples.train(built, of, settings(**train_settings), seed, on_epoch=on_epoch, rows=train, val=val)


def state(built):
    return copy.deepcopy(built.state_dict())


def equal(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


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
    seen = []
    fitted = trained(of, network(of), epochs=3, on_epoch=seen.append)
    assert fitted.history == seen
    assert [row["epoch"] for row in fitted.history] == [1, 2, 3]
    columns = ["epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr"]
    assert all(list(row)[:6] == columns and all(map(math.isfinite, row.values())) for row in fitted.history)
    rmse = trained(sample("diabetes"), network(sample("diabetes")), epochs=1).best["train_rmse"]
    assert 20 < rmse < 200  # of the target, whose standard deviation is 77: its own units


# ------------------------------------------------------------------------------------------------------- schedules


def test_cosine_schedule_equals_that_of_torch_at_every_step():
    of, built, epochs = sample("iris"), network(sample("iris"), hidden=()), 12
    fitted = trained(of, built, lr=0.3, epochs=epochs, schedule="cosine", batch_size=ALL_AT_ONCE)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs)
    assert [row["lr"] for row in fitted.history] == pytest.approx(torch_lrs(optimizer, scheduler, epochs))


@pytest.mark.parametrize("warmup", [0.2, 0.3, 0.55, 0.9, 0.95])
@pytest.mark.parametrize("steps", [10, 40, 101])
def test_onecycle_schedule_equals_that_of_torch_at_every_step(warmup, steps):
    train = settings(lr=0.3, schedule="onecycle", warmup=warmup)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.3, total_steps=steps, pct_start=warmup, cycle_momentum=False
    )
    found = [train.lr * lr_factor(step, steps, train) for step in range(steps)]
    assert found == pytest.approx(torch_lrs(optimizer, scheduler, steps), rel=1e-6)


def torch_lrs(optimizer, scheduler, steps):
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(found) < steps:
            scheduler.step()
    return found


@pytest.mark.parametrize("schedule", ["constant", "cosine", "onecycle"])
@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.999])
@pytest.mark.parametrize("steps", [1, 2, 3, 50])
def test_learning_rate_stays_between_zero_and_its_peak(schedule, warmup, steps):
    train = settings(schedule=schedule, warmup=warmup)
    factors = [lr_factor(step, steps, train) for step in range(steps)]
    assert all(0 < factor <= 1 for factor in factors)
    assert warmup > 0.9 or max(factors) == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_warmup_rises_in_even_steps_over_its_share_and_then_the_schedule_begins(schedule):
    train = settings(schedule=schedule, warmup=0.2)
    factors = np.array([lr_factor(step, 50, train) for step in range(50)])
    assert np.diff(factors[:11]) == pytest.approx([1 / 11] * 10)
    assert factors[10] == 1
    after = settings(schedule=schedule)
    assert factors[10:] == pytest.approx([lr_factor(step, 40, after) for step in range(40)])


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


def test_training_without_patience_runs_to_the_end_and_a_true_answer_ends_it():
    of = sample("iris")
    assert len(trained(of, network(of), epochs=6, lr=1e-6, patience=None).history) == 6
    assert len(trained(of, network(of), epochs=6, on_epoch=lambda row: row["epoch"] == 2).history) == 2


@TASKS
def test_divergence_is_told_with_epoch_and_learning_rate(name):
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
        before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
        built = network(of, dropout=0.3)
        trained(of, built, **LIVELY)
        overfit_check(built, of.train, settings(overfit=Overfit(rows=4)), of.target, seed=0)
        assert torch.equal(torch.get_rng_state(), before[0])
        assert (np.random.get_state()[1].tolist(), random.getstate()) == before[1:]
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
    fitted = trained(of, built, lr=1.0, momentum=0.0, clip=clip, epochs=1, batch_size=ALL_AT_ONCE)
    moved = math.sqrt(sum(float((tensor - before[key]).square().sum()) for key, tensor in built.state_dict().items()))
    assert moved == pytest.approx(min(clip, fitted.history[0]["grad_norm"]), rel=1e-3)


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


@pytest.mark.parametrize("name", ["breast_cancer", "diabetes", "wine"])
def test_mixup_equals_training_on_mixed_inputs(name):
    of, seed = sample(name), 7
    built = network(of, hidden=(6,), dropout=0.0)
    by_hand = copy.deepcopy(built)
    trained(of, built, seed=seed, lr=0.1, epochs=1, batch_size=ALL_AT_ONCE, augment={"mixup": 0.4})

    share = float(np.random.default_rng((seed, 1, 2)).beta(0.4, 0.4, 1)[0])
    order = torch.randperm(len(of.train), generator=generator(seed, 1))
    partner = torch.randperm(len(of.train), generator=generator(seed, 1, 1))
    x, y = of.train.x_num[order], of.train.y[order]
    outputs = by_hand((share * x + (1 - share) * x[partner], of.train.x_cat))
    parts = [losses.loss(outputs, goal, of.target.task) for goal in (y, y[partner])]
    (share * parts[0] + (1 - share) * parts[1]).backward()
    torch.optim.SGD(by_hand.parameters(), lr=0.1).step()
    for mine, reference in zip(built.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(mine, reference)


@pytest.fixture
def seen_in_training(monkeypatch):
    """What a stack is given in training, and the rows as they are."""
    seen, forward = [], Stack.__call__

    def recording(stack, x_num, x_cat, *rest):
        if not seen:  # and not the validation rows after them
            seen.append((x_num[0], x_cat[0]))
        return forward(stack, x_num, x_cat, *rest)

    monkeypatch.setattr(Stack, "__call__", recording)

    def run(of, **augment):
        trained(of, network(of), seed=1, epochs=1, batch_size=ALL_AT_ONCE, augment=augment)
        order = torch.randperm(len(of.train), generator=generator(1, 1))
        return of.train.take(order), *seen

    return run


def test_swapped_cells_come_from_the_same_column_and_are_about_the_share_asked_for(seen_in_training):
    given, (x_num, x_cat) = seen_in_training(sample("mixed"), swap=0.3)
    for before, after in ((given.x_num, x_num), (given.x_cat, x_cat)):
        assert before.dtype == after.dtype
        for column in range(before.shape[1]):
            assert torch.isin(after[:, column], before[:, column]).all()
    changed = float((given.x_num[:, :2] != x_num[:, :2]).float().mean())  # numbers, which seldom repeat
    assert changed == pytest.approx(0.3, abs=0.08)


def test_noise_has_the_standard_deviation_asked_for_and_leaves_categories_alone(seen_in_training):
    given, (x_num, x_cat) = seen_in_training(sample("mixed"), noise=0.2)
    assert float((x_num - given.x_num).std()) == pytest.approx(0.2, rel=0.1)
    assert float((x_num - given.x_num).mean()) == pytest.approx(0, abs=0.03)
    assert torch.equal(x_cat, given.x_cat)


def test_without_augmentation_the_network_sees_the_rows_as_they_are(seen_in_training):
    given, (x_num, x_cat) = seen_in_training(sample("mixed"))
    assert torch.equal(x_num, given.x_num)
    assert torch.equal(x_cat, given.x_cat)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_frozen_parameters_stay_bit_for_bit(optimizer):
    of = sample("mixed")
    built = network(of, hidden=(8, 6))
    frozen, before = freeze(built, 2), state(built)
    trained(of, built, optimizer=optimizer, weight_decay=0.1, **LIVELY)
    for key, tensor in built.state_dict().items():
        assert torch.equal(tensor, before[key]) == (key in frozen), key


# ---------------------------------------------------------------------------------------------------- learnt by heart


@TASKS
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_one_batch_of_real_rows_is_learnt_by_heart_and_the_network_stays_as_it_was(name, optimizer):
    of = sample(name)
    built = network(of, dropout=0.4)
    before = state(built)
    lr = 0.05 if optimizer == "sgd" else 0.01
    asked = settings(optimizer=optimizer, lr=lr, label_smoothing=0.1, weight_decay=0.1, overfit=Overfit(), **LIVELY)
    history = overfit_check(built, of.train, asked, of.target, seed=0)
    last = history[-1]
    assert last["val_accuracy"] == 1.0 if of.target.task != "regression" else last["val_loss"] < 0.02
    assert equal(built.state_dict(), before)
    assert built[2].p == 0.4
    # Nothing that holds the network back has a part in it.
    free = settings(optimizer=optimizer, lr=lr, overfit=Overfit())
    assert history == overfit_check(network(of, dropout=0.0), of.train, free, of.target, seed=0)


@TASKS
@pytest.mark.parametrize("change", [{"lr": 1e-9}, {"init": "zeros"}])
def test_a_network_that_cannot_learn_by_heart_is_refused(name, change):
    of = sample(name)
    built = network(of, init=change.get("init", "default"))
    asked = settings(lr=change.get("lr", 0.05), overfit=Overfit(rows=32, steps=60))
    with pytest.raises(UserError, match=r"overfit check: 60 steps on one batch of \d+ rows reached .* wanted"):
        overfit_check(built, of.train, asked, of.target, seed=0)


@TASKS
def test_rows_that_repeat_with_other_labels_do_not_fail_the_check(name):
    of = sample(name)
    few = of.train.take(torch.arange(0, len(of.train), 2))
    other = few.y.flip(0) if of.target.task == "regression" else (few.y + 1) % len(of.target.classes)
    both = TabularData(few.x_num.repeat(2, 1), few.x_cat.repeat(2, 1), torch.cat([few.y, other]))
    asked = settings(lr=0.05, overfit=Overfit(rows=16))
    assert overfit_check(network(of), both, asked, of.target, seed=0)


def test_no_check_where_it_is_turned_off_or_all_targets_are_equal():
    of = sample("diabetes")
    assert overfit_check(network(of), of.train, settings(overfit=None), of.target, seed=0) == []
    flat = TabularData(of.train.x_num, of.train.x_cat, torch.zeros(len(of.train)))
    assert overfit_check(network(of), flat, settings(overfit=Overfit()), of.target, seed=0) == []


# ------------------------------------------------------------------------------------------------------ the outcome


@TASKS
def test_evaluate_is_loss_and_scores_of_the_network_without_dropout(name):
    of = sample(name)
    built = network(of, dropout=0.5)
    outputs = predict([built.train()], of.val)[0]
    assert not outputs.requires_grad
    torch.testing.assert_close(outputs, built.eval()((of.val.x_num, of.val.x_cat)))
    predicted = predictions(outputs, of.target.task)
    expected = metrics.score(predicted, of.val.y, of.target.task, of.target.std)
    expected["loss"] = float(losses.loss(outputs, of.val.y, of.target.task))
    assert evaluate([built], of.val, of.target) == expected


@pytest.mark.parametrize("n", [0, 1, 20_000])
def test_predict_gives_an_output_a_row_however_many_there_are(n):
    of = sample("mixed")
    built, rows = network(of), torch.arange(n) % len(of.val)
    outputs = predict([built], of.val.take(rows))[0]
    assert outputs.shape == (n, 1)
    torch.testing.assert_close(outputs, predict([built], of.val)[0][rows])


@pytest.mark.parametrize(("train", "val", "named"), [(0.2, 0.5, True), (0.48, 0.5, False), (0.6, 0.5, False)])
def test_gap_is_named_where_it_means_overfitting(train, val, named):
    says = gap({"loss": train}, {"loss": val})
    assert ("overfitting" in says) == named
    assert f"{train:.4f}" in says
    assert f"gap {val - train:+.4f}" in says


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_use_names_the_missing_gpu_and_falls_back_to_the_processor():
    assert use("auto", 1) == use("cpu", 1) == torch.device("cpu")
    assert torch.get_num_threads() == 1
    with pytest.raises(UserError, match="device is cuda, but torch finds no GPU"):
        use("cuda", 1)
