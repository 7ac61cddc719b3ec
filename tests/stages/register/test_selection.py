import re

import pytest

from pipeline.core.errors import UserError
from pipeline.core.settings import Register
from pipeline.stages.register.selection import choose

SCORES = {
    "train": {"val.accuracy": 0.7, "val.loss": 0.4, "test.accuracy": 0.9},
    "search": {"val.accuracy": 0.8, "val.loss": 0.5, "test.accuracy": 0.6},
    "finetune": {"transfer.val.accuracy": 0.95, "transfer.accuracy": 0.9},
}


def register(metric="val.accuracy", minimum=0.5):
    return Register(name="model", metric=metric, minimum=minimum)


@pytest.mark.parametrize(
    ("metric", "minimum", "name", "score"),
    [
        ("val.accuracy", 0.5, "search", 0.8),
        ("val.accuracy", 0.8, "search", 0.8),
        ("val.loss", 0.5, "train", 0.4),
        ("val.loss", 0.4, "train", 0.4),
        ("transfer.val.accuracy", 0.5, "finetune", 0.95),
    ],
)
def test_the_best_on_validation_rows_is_chosen(metric, minimum, name, score):
    choice = choose(SCORES, register(metric, minimum), "multiclass")
    assert (choice.name, choice.metric, choice.score) == (name, metric, score)
    assert sum("(champion)" in line for line in choice.lines) == 1
    assert any(line.startswith(f"{name}: {metric} {score:.4f} (champion)") for line in choice.lines)


def test_the_first_of_equals_is_chosen():
    for metric in ("val.accuracy", "val.loss"):
        equal = {"train": {metric: 0.6}, "search": {metric: 0.6}}
        assert choose(equal, register(metric, 0.6), "binary").name == "train"


@pytest.mark.parametrize(
    ("metric", "minimum", "says"),
    [
        ("val.accuracy", 0.9, r"the best val\.accuracy, 0\.8000 of search, is below register\.minimum 0\.9"),
        ("val.loss", 0.3, r"the best val\.loss, 0\.4000 of train, is above register\.minimum 0\.3"),
    ],
)
def test_a_best_below_the_minimum_is_chosen_but_not_to_be_registered(metric, minimum, says):
    choice = choose(SCORES, register(metric, minimum), "multiclass")
    assert re.match(says, choice.weak)
    assert f"{choice.name}: {metric} {choice.score:.4f} (champion)" in choice.lines


def test_a_metric_of_another_task_is_replaced_by_the_headline_metric_with_a_note():
    scores = {"train": {"val.rmse": 50.0}, "search": {"val.rmse": 40.0}}
    choice = choose(scores, register("val.accuracy", 0.6), "regression")
    assert (choice.name, choice.metric, choice.score) == ("search", "val.rmse", 40.0)
    assert "val.accuracy" in choice.lines[0]
    assert "val.rmse" in choice.lines[0]
    assert choose(SCORES, register("val.rmse", 0.0), "binary").name == "search"


def test_an_unknown_metric_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match=r"must be a score of a model, got transfer\.val\.loss: .*val\.accuracy"):
        choose(SCORES, register("transfer.val.loss"), "multiclass")


def test_a_model_without_scores_is_not_a_candidate():
    choice = choose(SCORES | {"finetune": {}}, register(), "multiclass")
    assert choice == choose({name: SCORES[name] for name in ("train", "search")}, register(), "multiclass")
    assert (choice.name, choice.candidates) == ("search", ("train", "search"))
