import itertools
import json
import logging
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from optuna.trial import TrialState
from scipy.stats import qmc

from pipeline.core.config import replaced
from pipeline.core.errors import UserError
from pipeline.core.settings import Config
from pipeline.networks.device import generator
from pipeline.stages.search.study import search
from tests.support import samples
from tests.support.searches import SPACE, configured, made_up, real, runner

SAMPLERS = pytest.mark.parametrize("sampler", ["random", "qmc", "tpe", "grid"])


def drawn(found):
    return [trial.params for trial in found.trials]


@SAMPLERS
def test_each_sampler_gives_as_many_trials_as_asked_for_inside_the_space_and_repeats(sampler):
    asked: dict[int, Config] = {}
    found = search(configured(sampler, 12), runner(asked=asked))
    assert [trial.number for trial in found.trials] == list(range(12))
    for trial in found.trials:
        config = asked[trial.number]
        assert config == replaced(configured(sampler, 12), trial.params)
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
    diverging = drawn(search(configured("random", 6), runner(diverge={0, 1})))
    assert diverging == long


def test_random_draws_a_logarithmic_range_evenly_in_its_logarithm():
    space = {"train.lr": {"low": 1e-4, "high": 1e-1, "log": True}}
    lrs = np.log10([p["train.lr"] for p in drawn(search(configured("random", 200, space), made_up))])
    counts = np.histogram(lrs, bins=[-4, -3, -2, -1])[0]
    assert counts.sum() == 200
    assert counts.min() > 45


def near_a_hundredth(config):
    """A smooth score with its top, 1, at lr 0.01, and 0.1 less for a third of a decade."""
    return 1 - 0.3 * abs(np.log10(config.train.lr) + 2)


# No sampler begins with what params.yaml has now: it lies outside.
SMOOTH = {"train.lr": {"low": 1e-4, "high": 1e-1, "log": True}, "model.dropout": {"low": 0.0, "high": 0.5}}
OUTSIDE = {"train__lr": 0.5}


@pytest.mark.parametrize("seed", [0, 1])
def test_tpe_draws_where_scores_were_good(seed):
    means = {}
    for sampler in ("tpe", "random"):
        found = search(configured(sampler, 48, SMOOTH, seed=seed, **OUTSIDE), runner(score=near_a_hundredth))
        means[sampler] = np.mean([trial.score for trial in found.trials[16:]])
    assert 0.65 < means["random"] < 0.8  # 0.75 is what an even draw has
    assert means["tpe"] > 0.82


def test_tpe_minimises_where_lower_is_better():
    config = configured("tpe", 48, SMOOTH, data__task="regression", **OUTSIDE)
    found = search(config, runner(score=lambda config: 1 - near_a_hundredth(config), metric="val_rmse"))
    assert np.mean([trial.score for trial in found.trials[16:]]) < 0.18


@pytest.mark.parametrize("seed", [0, 1])
def test_qmc_covers_a_space_more_evenly_than_random_draws_do(seed):
    unevenness = {}
    for sampler in ("qmc", "random"):
        params = drawn(search(configured(sampler, 64, SMOOTH, seed=seed, **OUTSIDE), made_up))
        points = [((np.log10(p["train.lr"]) + 4) / 3, p["model.dropout"] / 0.5) for p in params]
        unevenness[sampler] = qmc.discrepancy(points)
    assert unevenness["random"] > 0.002
    assert unevenness["qmc"] < 0.001


def test_optuna_hears_how_every_trial_went_pruned_ones_too_before_it_draws_the_next_round(monkeypatch):
    studies, heard, create = list[Any](), dict[int, Any](), optuna.create_study
    monkeypatch.setattr(optuna, "create_study", lambda **asked: studies.append(create(**asked)) or studies[-1])
    plain = runner(score=near_a_hundredth, diverge={3})

    def run(stacks, until):
        stacks = list(stacks)
        first = min(contender.number for stack in stacks for contender in stack)
        heard.setdefault(first // 8, sum(trial.state.is_finished() for trial in studies[0].trials))
        yield from plain(stacks, until)

    found = search(configured("tpe", 20, SMOOTH, search__epochs=3, **OUTSIDE), run)
    assert heard == {0: 0, 1: 8, 2: 16}
    assert {trial.state for trial in found.trials} == {"complete", "pruned", "failed"}
    states = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
    for trial, reported in zip(found.trials, studies[0].trials, strict=True):
        assert reported.state == states[trial.state]
        assert reported.params == trial.params
        if trial.state == "failed":
            assert reported.values is None
        else:
            assert reported.value == trial.score  # which Optuna takes from what was reported where a trial was pruned
            assert reported.intermediate_values == {len(trial.history): trial.score}


NOW = {"train.lr": 0.05, "train.momentum": 0.7, "train.batch_size": 32, "model.hidden": [6, 3], "model.dropout": 0.2}


def with_now(sampler, **leaves):
    return configured(sampler, 6, **{name.replace(".", "__"): value for name, value in NOW.items()}, **leaves)


@pytest.mark.parametrize("sampler", ["random", "qmc", "tpe"])
def test_trial_0_has_what_params_yaml_has_now_where_the_space_holds_all_of_it(sampler):
    found = drawn(search(with_now(sampler), made_up))
    assert found[0] == NOW
    assert [type(value) for value in found[0].values()] == [type(value) for value in NOW.values()]
    assert NOW not in found[1:]
    elsewhere = drawn(search(replaced(with_now(sampler), {"train.lr": 0.02}), made_up))
    assert elsewhere[0] == NOW | {"train.lr": 0.02}
    if sampler == "random":
        assert found[1:] == elsewhere[1:]


@pytest.mark.parametrize("sampler", ["random", "qmc", "tpe"])
@pytest.mark.parametrize(
    "outside",
    [{"train.lr": 0.5}, {"train.momentum": 0.4}, {"train.batch_size": 65}, {"model.hidden": [5]}],
    ids=lambda outside: next(iter(outside)),
)
def test_trial_0_is_drawn_as_any_other_where_one_value_of_params_yaml_lies_outside_the_space(sampler, outside):
    (first, *_), (same, *_) = (
        drawn(search(replaced(with_now(sampler), outside | rest), made_up))
        for rest in ({}, {"model.dropout": 0.0, "model.hidden": [5]})
    )
    assert first == same  # whatever the other values are
    assert first["train.lr"] != 0.05
    assert first["train.momentum"] != 0.7


def test_auto_is_a_choice_that_becomes_a_number_in_its_trial_and_stays_a_word_in_the_result():
    space = {"train.batch_size": {"choices": [64, 32, "auto"]}}
    asked: dict[int, Config] = {}
    config = configured("random", 12, space, train__batch_size="auto", train__epochs="auto")
    found = search(config, runner(asked=asked), sized=lambda config: config.sized(120))
    assert {trial.params["train.batch_size"] for trial in found.trials} == {64, 32, "auto"}
    for number, trial in enumerate(found.trials):
        chosen = trial.params["train.batch_size"]
        assert asked[number].train.rows_a_step == (16 if chosen == "auto" else chosen)
        assert asked[number] == replaced(config, trial.params | {"model.ensemble": 1}).sized(120)
    assert drawn(found)[0] == {"train.batch_size": "auto"}


def test_trial_0_has_the_value_of_params_yaml_where_a_choice_is_a_word_for_it():
    space = {"train.lr": {"choices": [0.5, "preset"]}, "train.batch_size": {"low": 8, "high": 64}}
    config = configured("random", 2, space, train__preset="strong", train__lr="preset", train__batch_size="auto")
    found = search(config, made_up, sized=lambda config: config.sized(120))
    assert drawn(found)[0] == {"train.lr": "preset", "train.batch_size": 16}


def test_a_grid_begins_at_its_first_point_whatever_params_yaml_has():
    assert drawn(search(with_now("grid"), made_up)) == drawn(search(configured("grid", 6), made_up))
    assert list(drawn(search(with_now("grid"), made_up))[0].values()) == [1e-4, 0.5, 8, [4], 0.0]


def test_a_grid_holds_every_point_once_and_powers_of_ten_exactly():
    found = search(configured("grid", 1000), made_up)
    lrs, momenta, sizes = [1e-4, 1e-3, 1e-2, 1e-1], [0.5, 0.7, 0.9], [8, 23, 64]
    points = itertools.product(lrs, momenta, sizes, [[4], [6, 3]], [0.0, 0.2])
    assert [list(p.values()) for p in drawn(found)] == [list(point) for point in points]
    lrs = drawn(
        search(configured("grid", 9, {"train.lr": {"low": 1e-9, "high": 1e-1, "log": True, "steps": 9}}), made_up)
    )
    assert [p["train.lr"] for p in lrs] == [10**-k for k in range(9, 0, -1)]


def test_a_whole_number_parameter_is_searched_in_whole_numbers():
    space = {"model.bins": {"low": 2, "high": 9}}
    found = search(configured("random", 5, space), made_up)
    assert all(type(p["model.bins"]) is int and 2 <= p["model.bins"] <= 9 for p in drawn(found))


@SAMPLERS
def test_a_trial_that_diverges_is_marked_failed_and_the_search_continues(sampler):
    told: list[Any] = []
    found = search(configured(sampler, 6), runner(diverge={0, 3}), told.append)
    assert sorted(told, key=lambda trial: trial.number) == found.trials
    told = found.trials
    assert [trial.state for trial in told] == ["failed", "complete", "complete", "failed", "complete", "complete"]
    assert [trial.score is None for trial in told] == [True, False, False, True, False, False]
    assert "diverged" in told[3].line()
    assert found.table()["val_accuracy"].isna().tolist() == [True, False, False, True, False, False]


def test_a_search_in_which_every_trial_diverges_is_refused():
    with pytest.raises(UserError, match="all 3 trials diverged"):
        search(configured("random", 3), runner(diverge={0, 1, 2}))


def test_a_training_that_fails_otherwise_ends_the_search():
    def broken(stacks, until):
        raise UserError("something else")

    with pytest.raises(UserError, match="something else"):
        search(configured(), broken)


@pytest.mark.parametrize(("task", "metric", "best"), [("multiclass", "accuracy", max), ("regression", "rmse", min)])
def test_best_is_the_best_of_the_complete_trials_by_the_first_metric_of_the_task(task, metric, best):
    metric = f"val_{metric}"
    found = search(
        configured(n_trials=8, data__task=task, search__epochs=2, search__reduction=None), runner(metric=metric)
    )
    scores = [trial.score for trial in found.trials]
    assert found.metric == metric
    assert found.best.score == best(scores)
    assert found.best.number == scores.index(best(scores))
    assert found.best.best_epoch == 2
    running = [best(scores[: n + 1]) for n in range(8)]
    assert found.best_so_far().tolist() == running


def test_best_is_the_first_of_equals():
    found = search(configured(), runner(score=lambda config: 0.5))
    assert found.best.number == 0
    assert found.importances == {}


def test_the_table_has_a_row_a_trial_and_a_column_a_parameter():
    found = search(configured(n_trials=6), runner(diverge={2}))
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


@pytest.mark.parametrize(
    "order",
    [list, lambda stacks: stacks[::-1], lambda stacks: stacks[1::2] + stacks[::2]],
    ids=["as asked", "backwards", "odd first"],
)
def test_of_equal_scores_the_lower_number_is_kept_in_any_order_of_stacks(order):
    plain = runner(score=lambda config: 0.5)

    def run(stacks, until):
        yield from order([[contender] for stack in plain(stacks, until) for contender in stack])

    found = search(configured(n_trials=10, search__epochs=4), run)
    assert [len(trial.history) for trial in found.trials] == [4] * 2 + [3] * 2 + [1] * 6
    assert [trial.state for trial in found.trials] == ["complete"] * 2 + ["pruned"] * 8
    assert found.best.number == 0


def diverging_after(epochs, but=()):
    """As `made_up`, but what trains for more epochs than these diverges."""

    def run(stacks, until):
        for stack in made_up(stacks, until):
            for contender in stack:
                if until > epochs and contender.number not in but:
                    contender.progress["diverged"] = "the loss became NaN or infinite"
            yield stack

    return run


@SAMPLERS
def test_where_all_that_were_kept_diverge_later_the_best_pruned_trial_wins(sampler):
    found = search(configured(sampler, 9, search__epochs=3), diverging_after(1))
    assert {trial.state for trial in found.trials} == {"failed", "pruned"}
    scores = {trial.number: trial.score for trial in found.trials if trial.state == "pruned"}
    assert found.best.number == max(scores, key=scores.get)
    assert found.best.state == "pruned"
    assert found.table().shape == (9, 4 + len(SPACE))
    assert found.best_so_far().isna().all()


def test_a_complete_trial_wins_over_pruned_ones_of_an_earlier_rung():
    whole = search(configured(n_trials=9, search__epochs=3), made_up)
    kept = [trial.number for trial in whole.trials if trial.state == "complete"]
    last = min(kept, key=lambda number: whole.trials[number].score)
    worse = diverging_after(1, but={last})

    def run(stacks, until):
        for stack in worse(stacks, until):
            for contender in stack:
                if until > 1:
                    contender.progress["history"] = [row | {"val_accuracy": 0.01} for row in contender.history]
            yield stack

    assert search(configured(n_trials=9, search__epochs=3), run).best.number == last


def test_a_halved_search_in_which_every_trial_diverges_at_once_is_refused():
    with pytest.raises(UserError, match="all 9 trials diverged"):
        search(configured(n_trials=9, search__epochs=3), diverging_after(0))


# ------------------------------------------------------------------------------------------------- halving and stacks


def test_a_trial_is_trained_as_the_stage_train_would_on_the_rows_of_the_search():
    of = samples.sample("iris")
    space = {"train.lr": {"low": 1e-3, "high": 1e-1, "log": True}}
    config = configured(n_trials=3, space=space, search__epochs=2, search__rows=40, search__reduction=None)
    for trial in real(config, of).trials:
        asked = replaced(config, trial.params)
        rows = torch.randperm(len(of.train), generator=generator(config.seed, 0, 3))[:40].sort().values
        by_hand = samples.network(of, config.seed, **asked.model.model_dump())
        train = asked.train.model_copy(update={"epochs": 2, "patience": None})
        alone = samples.train(by_hand, of, train, config.seed, rows=of.train.take(rows))
        expected = [{name: row[name] for name in trial.history[0]} for row in alone.history]
        assert list(trial.history) == [pytest.approx(row, rel=1e-5) for row in expected]
        assert trial.score == pytest.approx(alone.best["val_accuracy"])
