import pytest
import torch

from pipeline.core.errors import UserError
from pipeline.core.settings import Overfit
from pipeline.stages.train.overfit import describe_gap, overfit_check
from pipeline.tables.tensors import TabularData
from tests.support.members import equal, state
from tests.support.samples import network, sample, settings

TASKS = pytest.mark.parametrize("name", ["wine", "breast_cancer", "diabetes", "mixed"])


AUGMENTED = {"augment": {"noise": 0.1, "swap": 0.1, "mixup": 0.4}}


@TASKS
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_one_batch_of_real_rows_is_overfitted_and_the_network_is_unchanged(name, optimizer):
    of = sample(name)
    built = network(of, dropout=0.4)
    before = state(built)
    lr = 0.05 if optimizer == "sgd" else 0.01
    asked = settings(optimizer=optimizer, lr=lr, label_smoothing=0.1, weight_decay=0.1, overfit=Overfit(), **AUGMENTED)
    history = overfit_check(built, of.train, asked, of.target, seed=0)
    last = history[-1]
    assert last["val_accuracy"] == 1.0 if of.target.task != "regression" else last["val_loss"] < 0.02
    assert equal(built.state_dict(), before)
    assert built[2].p == 0.4
    # Regularisation and augmentation have no effect.
    free = settings(optimizer=optimizer, lr=lr, overfit=Overfit())
    assert history == overfit_check(network(of, dropout=0.0), of.train, free, of.target, seed=0)


@TASKS
@pytest.mark.parametrize("change", [{"lr": 1e-9}, {"init": "zeros"}])
def test_a_network_that_cannot_overfit_is_refused(name, change):
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


@pytest.mark.parametrize(("train", "val", "named"), [(0.2, 0.5, True), (0.48, 0.5, False), (0.6, 0.5, False)])
def test_gap_is_named_where_it_means_overfitting(train, val, named):
    said = describe_gap({"loss": train}, {"loss": val})
    assert ("overfitting" in said) == named
    assert f"{train:.4f}" in said
    assert f"gap {val - train:+.4f}" in said
