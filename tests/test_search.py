import itertools
import json
import logging

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline import figures
from pipeline.data import generator
from pipeline.errors import DivergedError, UserError
from pipeline.search import evaluator, search
from pipeline.training import Fit, fit
from tests import samples

SAMPLERS = pytest.mark.parametrize("sampler", ["random", "qmc", "tpe", "grid"])
SPACE = {
    "train.lr": {"low": 1e-4, "high": 1e-1, "log": True, "steps": 4},
    "train.momentum": {"low": 0.5, "high": 0.9, "steps": 3},
    "train.batch_size": {"low": 8, "high": 64, "log": True, "steps": 3},
    "model.hidden": {"choices": [[4], [6, 3]]},
    "model.dropout": {"choices": [0.0, 0.2]},
}


def configured(sampler="random", n_trials=6, space=None, **leaves):
    return samples.configuration(
        search__sampler=sampler, search__n_trials=n_trials, search__space=space or SPACE, **leaves
    )


def score_of(config):
    """What a made-up training scores: best at lr 0.01, a little better with momentum."""
    return 1 / (1 + abs(np.log10(config.train.lr) + 2)) + 0.01 * config.train.momentum


def made_up(config, metric="val_accuracy"):
    return Fit([{"epoch": 1, metric: 0.0}, {"epoch": 2, metric: score_of(config)}], best_epoch=2)


def drawn(found):
    return [trial.params for trial in found.trials]


@SAMPLERS
def test_each_sampler_gives_as_many_trials_as_asked_for_inside_the_space_and_repeats(sampler):
    asked = []
    found = search(configured(sampler, 12), lambda config: asked.append(config) or made_up(config))
    assert [trial.number for trial in found.trials] == list(range(12))
    for trial, config in zip(found.trials, asked, strict=True):
        assert config == configured(sampler, 12).replace(trial.params)
        assert 1e-4 <= config.train.lr <= 1e-1
        assert 0.5 <= config.train.momentum <= 0.9
        assert config.train.batch_size in range(8, 65)
        assert type(trial.params["train.batch_size"]) is int
        assert config.model.hidden in ((4,), (6, 3))
        assert config.model.dropout in (0.0, 0.2)
    assert drawn(search(configured(sampler, 12), made_up)) == drawn(found)
    if sampler != "grid":
        assert drawn(search(configured(sampler, 12, seed=1), made_up)) != drawn(found)


@pytest.mark.parametrize("sampler", ["random", "qmc", "tpe"])
def test_each_sampler_tries_each_choice_and_both_halves_of_each_range(sampler):
    params = drawn(search(configured(sampler, 16), made_up))
    assert {tuple(p["model.hidden"]) for p in params} == {(4,), (6, 3)}
    assert {p["model.dropout"] for p in params} == {0.0, 0.2}
    lrs = np.log10([p["train.lr"] for p in params])
    assert lrs.min() < -2.5 < lrs.max()
    assert len(set(lrs)) == 16


@SAMPLERS
def test_no_sampler_writes_warnings_for_its_user(sampler, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("optuna"), "propagate", True)
    logging.getLogger("optuna").warning("heard")
    search(configured(sampler), made_up)
    assert set(caplog.messages) == {"heard"}


def test_what_a_random_trial_draws_is_a_function_of_seed_and_number():
    short, long = (drawn(search(configured("random", n), made_up)) for n in (3, 6))
    assert short == long[:3]
    diverging = drawn(search(configured("random", 6), diverges_at(0, 1)))
    assert diverging == long


def test_random_draws_a_logarithmic_range_evenly_in_its_logarithm():
    space = {"train.lr": {"low": 1e-4, "high": 1e-1, "log": True}}
    lrs = np.log10([p["train.lr"] for p in drawn(search(configured("random", 200, space), made_up))])
    counts = np.histogram(lrs, bins=[-4, -3, -2, -1])[0]
    assert counts.sum() == 200
    assert counts.min() > 45


def test_a_grid_holds_every_point_once_and_powers_of_ten_exactly():
    found = search(configured("grid", 1000), made_up)
    lrs, momenta, sizes = [1e-4, 1e-3, 1e-2, 1e-1], [0.5, 0.7, 0.9], [8, 23, 64]
    points = itertools.product(lrs, momenta, sizes, [[4], [6, 3]], [0.0, 0.2])
    assert [list(p.values()) for p in drawn(found)] == [list(point) for point in points]
    lrs = drawn(
        search(configured("grid", 9, {"train.lr": {"low": 1e-9, "high": 1e-1, "log": True, "steps": 9}}), made_up)
    )
    assert [p["train.lr"] for p in lrs] == [10**-k for k in range(9, 0, -1)]


def test_a_whole_number_parameter_is_searched_in_whole_numbers_even_where_it_is_null_by_default():
    space = {"train.patience": {"low": 1, "high": 9}}
    found = search(configured("random", 5, space, train__patience=None), made_up)
    assert all(type(p["train.patience"]) is int and 1 <= p["train.patience"] <= 9 for p in drawn(found))


def diverges_at(*numbers):
    count = itertools.count()

    def evaluate(config):
        if next(count) in numbers:
            raise DivergedError("the loss is no longer finite")
        return made_up(config)

    return evaluate


@SAMPLERS
def test_a_trial_that_diverges_is_marked_failed_and_the_search_goes_on(sampler):
    told = []
    found = search(configured(sampler, 6), diverges_at(0, 3), told.append)
    assert told == found.trials
    assert [trial.state for trial in told] == ["failed", "complete", "complete", "failed", "complete", "complete"]
    assert [trial.score is None for trial in told] == [True, False, False, True, False, False]
    assert "diverged" in told[3].line()
    assert found.table()["val_accuracy"].isna().tolist() == [True, False, False, True, False, False]


def test_a_search_in_which_every_trial_diverges_is_refused():
    with pytest.raises(UserError, match="diverged in each of the 3 trials"):
        search(configured("random", 3), diverges_at(0, 1, 2))


def test_a_training_that_fails_otherwise_ends_the_search():
    def broken(config):
        raise UserError("something else")

    with pytest.raises(UserError, match="something else"):
        search(configured(), broken)


@pytest.mark.parametrize(("task", "metric", "best"), [("multiclass", "accuracy", max), ("regression", "rmse", min)])
def test_best_is_the_best_of_the_complete_trials_by_the_first_metric_of_the_task(task, metric, best):
    metric = f"val_{metric}"
    found = search(configured(n_trials=8, data__task=task), lambda config: made_up(config, metric))
    scores = [trial.score for trial in found.trials]
    assert found.metric == metric
    assert found.best.score == best(scores)
    assert found.best.number == scores.index(best(scores))
    assert found.best.best_epoch == 2
    running = [best(scores[: n + 1]) for n in range(8)]
    assert found.best_so_far().tolist() == running


def test_best_is_the_first_of_equals():
    found = search(configured(), lambda config: Fit([{"epoch": 1, "val_accuracy": 0.5}], best_epoch=1))
    assert found.best.number == 0
    assert found.importances == {}


def test_the_table_has_a_row_a_trial_and_a_column_a_parameter():
    found = search(configured(n_trials=6), diverges_at(2))
    table = found.table()
    assert list(table.columns) == ["trial", "state", "val_accuracy", "best_epoch", *SPACE]
    assert [json.loads(text) for text in table["model.hidden"]] == [t.params["model.hidden"] for t in found.trials]
    assert table["train.lr"].tolist() == [t.params["train.lr"] for t in found.trials]
    assert table["best_epoch"].isna().sum() == 1


def test_importances_sum_to_one_and_name_the_parameter_that_matters():
    found = search(configured(n_trials=60), made_up)
    assert set(found.importances) == set(SPACE)
    assert sum(found.importances.values()) == pytest.approx(1)
    assert max(found.importances, key=found.importances.get) == "train.lr"
    assert search(configured(n_trials=60), made_up).importances == found.importances


def test_a_trial_is_trained_as_the_stage_train_would_on_the_rows_of_the_search():
    of = samples.sample("iris")
    space = {"train.lr": {"low": 1e-3, "high": 1e-1, "log": True}}
    config = configured(n_trials=3, space=space, search__epochs=2, search__rows=40)
    found = search(config, evaluator(of.train, of.val, of.schema))
    for trial in found.trials:
        asked = config.replace(trial.params)
        rows = torch.randperm(len(of.train), generator=generator(config.seed, 3))[:40].sort().values
        by_hand = samples.network(of, config.seed, **asked.model.model_dump())
        train = asked.train.model_copy(update={"epochs": 2, "patience": None})
        expected = fit(by_hand, of.train.take(rows), of.val, train, of.target, seed=config.seed)
        assert trial.history == tuple(expected.history)
        assert trial.score == expected.best["val_accuracy"]


def test_plots_of_a_search_are_drawn_and_repeat(tmp_path):
    found = search(configured(n_trials=6), diverges_at(2))
    for folder in (tmp_path / "one", tmp_path / "two"):
        figures.save_search(folder, found.table(), found.best_so_far(), found.importances, {"train.lr"})
    names = ["history.png", "importance.png", "slice.png"]
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == names
    assert all((tmp_path / "one" / n).read_bytes() == (tmp_path / "two" / n).read_bytes() for n in names)


def test_plots_of_a_search_without_importances_are_drawn(tmp_path):
    found = search(configured(n_trials=2, space={"model.activation": {"choices": ["relu", "tanh"]}}), made_up)
    assert found.importances == {}
    figures.save_search(tmp_path, found.table(), found.best_so_far(), found.importances, set())
    assert isinstance(found.best_so_far(), pd.Series)
