import itertools
import json
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
import pytest
import torch
from optuna.trial import TrialState
from scipy.stats import qmc

from pipeline.core.config import replaced
from pipeline.core.errors import UserError
from pipeline.networks.device import generator
from pipeline.stages.search import figures
from pipeline.stages.search.halving import pack, rungs, stack_width
from pipeline.stages.search.study import search
from pipeline.stages.search.trials import Contender, Work
from pipeline.stages.search.workers import workers
from tests import samples
from tests.imports import ROOT

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


def runner(score=score_of, diverge=(), asked=None, metric="val_accuracy"):
    """Stands in for training: every epoch of a trial has the score of its configuration, the later the better."""

    def run(stacks, until):
        for stack in stacks:
            for contender in stack:
                if asked is not None:
                    asked[contender.number] = contender.config
                rows = [{"epoch": e, metric: score(contender.config) * e / until} for e in range(1, until + 1)]
                diverged = "the loss is no longer finite" if contender.number in diverge else None
                contender.progress = {"history": rows, "best_epoch": until, "diverged": diverged}
            yield stack

    return run


made_up = runner()


def drawn(found):
    return [trial.params for trial in found.trials]


@SAMPLERS
def test_each_sampler_gives_as_many_trials_as_asked_for_inside_the_space_and_repeats(sampler):
    asked = {}
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
    studies, heard, create = [], {}, optuna.create_study
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
    for trial, told in zip(found.trials, studies[0].trials, strict=True):
        assert told.state == states[trial.state]
        assert told.params == trial.params
        if trial.state == "failed":
            assert told.values is None
        else:
            assert told.value == trial.score  # which Optuna takes from what was reported where a trial was pruned
            assert told.intermediate_values == {len(trial.history): trial.score}


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
def test_a_trial_that_diverges_is_marked_failed_and_the_search_goes_on(sampler):
    told = []
    found = search(configured(sampler, 6), runner(diverge={0, 3}), told.append)
    assert sorted(told, key=lambda trial: trial.number) == found.trials
    told = found.trials
    assert [trial.state for trial in told] == ["failed", "complete", "complete", "failed", "complete", "complete"]
    assert [trial.score is None for trial in told] == [True, False, False, True, False, False]
    assert "diverged" in told[3].line()
    assert found.table()["val_accuracy"].isna().tolist() == [True, False, False, True, False, False]


def test_a_search_in_which_every_trial_diverges_is_refused():
    with pytest.raises(UserError, match="diverged in each of the 3 trials"):
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
def test_of_equal_scores_the_lower_number_goes_on_in_whatever_order_stacks_end(order):
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
                    contender.progress["diverged"] = "the loss is no longer finite"
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
    with pytest.raises(UserError, match="diverged in each of the 9 trials"):
        search(configured(n_trials=9, search__epochs=3), diverging_after(0))


# ------------------------------------------------------------------------------------------------- halving and stacks


def real(config, of, n_workers=1, search=search):
    with workers(Work.of(of.train, of.val, of.schema, config), n_workers) as run:
        return search(config, run)


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


@pytest.mark.parametrize(
    ("epochs", "reduction", "expected"),
    [(1, 3, [1]), (3, 3, [1, 3]), (6, 3, [1, 3, 6]), (6, 2, [1, 2, 4, 6]), (9, 3, [1, 3, 9]), (5, None, [5])],
)
def test_rungs_grow_by_the_reduction_up_to_the_last_epoch(epochs, reduction, expected):
    assert rungs(epochs, reduction) == expected


def test_after_each_rung_the_best_third_goes_on_and_the_rest_is_pruned():
    found = search(configured(n_trials=20, search__epochs=6, search__reduction=3), made_up)
    epochs = {trial.number: len(trial.history) for trial in found.trials}
    assert sorted(epochs.values()) == [1] * 13 + [3] * 4 + [6] * 3
    scores = {trial.number: score_of(replaced(configured(), trial.params)) for trial in found.trials}
    ranked = sorted(scores, key=scores.get, reverse=True)
    assert {n for n in epochs if epochs[n] == 6} == set(ranked[:3])
    assert {n for n in epochs if epochs[n] == 3} == set(ranked[3:7])
    assert {t.state for t in found.trials if len(t.history) == 6} == {"complete"}
    assert {t.state for t in found.trials if len(t.history) < 6} == {"pruned"}
    assert found.best.number == ranked[0]
    assert "after 1 epochs, pruned" in next(t.line() for t in found.trials if len(t.history) == 1)


@pytest.mark.parametrize("reduction", [None, 3])
def test_no_trial_is_stopped_early_by_the_patience_of_train(reduction):
    of = samples.sample("wine")
    space = {"train.lr": {"low": 1.0, "high": 3.0}}
    config = configured(n_trials=4, space=space, search__epochs=9, search__reduction=reduction, train__patience=1)
    complete = [trial for trial in real(config, of).trials if trial.state == "complete"]
    assert len(complete) == (4 if reduction is None else 1)
    for trial in complete:
        assert [row["epoch"] for row in trial.history] == list(range(1, 10))
        asked = replaced(config, {**trial.params, "train.epochs": 9})
        by_hand = samples.network(of, config.seed, **asked.model.model_dump())
        assert len(samples.train(by_hand, of, asked.train, config.seed).history) < 9  # with patience it would be


def test_halving_leaves_the_survivors_as_they_would_be_without_it():
    of = samples.sample("wine")
    space = {"train.lr": {"low": 1e-2, "high": 1e-1, "log": True}, "model.dropout": {"low": 0.0, "high": 0.4}}
    config = configured(n_trials=7, space=space, search__epochs=4)
    halved = real(config, of).trials
    whole = real(replaced(config, {"search.reduction": None}), of).trials
    assert {trial.state for trial in halved} == {"pruned", "complete"}
    for trial, alone in zip(halved, whole, strict=True):
        assert trial.params == alone.params
        rows = alone.history[: len(trial.history)]
        assert list(trial.history) == [pytest.approx(row, rel=1e-4) for row in rows]


def test_neither_workers_nor_the_width_of_stacks_decide_a_result():
    of = samples.sample("wine")
    config = configured(n_trials=9, search__epochs=3)
    one, three = (real(config, of, n) for n in (1, 3))
    pd.testing.assert_frame_equal(one.table(), three.table(), check_exact=True)
    assert one.trials == three.trials
    for width in (1, 2, 9):
        other = real(replaced(config, {"search.stack": width}), of)
        assert [t.state for t in other.trials] == [t.state for t in one.trials]
        for trial, same in zip(other.trials, one.trials, strict=True):
            assert list(trial.history) == [pytest.approx(row, rel=1e-4) for row in same.history]


def test_stacks_hold_one_shape_each_and_no_more_than_the_width():
    config = configured()
    drawn = [{"model.hidden": [4 + n % 2], "train.lr": 0.01 * (n + 1)} for n in range(10)]
    stacks = pack([Contender(n, replaced(config, params)) for n, params in enumerate(drawn)], 3)
    assert [[c.number for c in stack] for stack in stacks] == [[0, 2, 4], [6, 8], [1, 3, 5], [7, 9]]


@pytest.mark.parametrize(
    ("batch_size", "hidden", "width"), [(64, [32, 16], 32), (512, [128, 64], 8), (512, [2048, 2048], 1), (32, [], 32)]
)
def test_stacks_are_the_narrower_the_larger_a_network_is(batch_size, hidden, width):
    assert stack_width(configured(train__batch_size=batch_size, model__hidden=hidden)) == width


class Asked(Work):
    """Leaves with each trial how many threads it had, where the search's own process sees it."""

    def __call__(self, stack, until):
        super().__call__(stack, until)
        for contender in stack:
            contender.progress["asked"] = (torch.get_num_threads(), os.getpid())
        return stack


@pytest.mark.parametrize("n", [1, 2])
def test_trials_take_one_thread_and_what_follows_has_its_threads_again(n):
    of = samples.sample("iris")
    seen = []
    torch.set_num_threads(2)
    try:
        with workers(Asked(of.train, of.val, of.schema), n) as run:

            def listening(stacks, until):
                for stack in run(stacks, until):
                    seen.extend(contender.progress["asked"] for contender in stack)
                    yield stack

            search(configured(n_trials=4), listening)
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert [threads for threads, _ in seen] == [1] * 4
    assert all((process == os.getpid()) == (n == 1) for _, process in seen)


class Deadly(Work):
    def __call__(self, stack, until):
        os.kill(os.getpid(), signal.SIGKILL)


class DeadlyInTheMiddle(Work):
    """Killed when it has written half of its result."""

    def __call__(self, stack, until):
        def half(link, content):
            os.write(link.fileno(), bytes(content)[: len(content) // 2])
            os.kill(os.getpid(), signal.SIGKILL)

        Connection._send = half
        return stack


@pytest.mark.parametrize("kind", [Deadly, DeadlyInTheMiddle])
def test_a_worker_that_is_killed_ends_the_search_in_one_line(kind):
    of = samples.sample("iris")
    with (
        pytest.raises(UserError, match="a worker process was killed"),
        workers(kind(of.train, of.val, of.schema), 2) as run,
    ):
        search(configured(), run)


class Slow(Work):
    """Half a second for each stack; trial 1 diverges, so that it ends while others wait."""

    def __call__(self, stack, until):
        time.sleep(0.5)
        for contender in stack:
            diverged = "no longer finite" if contender.number == 1 else None
            rows = [{"epoch": 1, "val_accuracy": 0.5}]
            contender.progress = {"history": rows, "best_epoch": 1, "diverged": diverged}
        return stack


class Failing(Slow):
    def __call__(self, stack, until):
        return fail() if stack[0].number == 1 else super().__call__(stack, until)


def fail(*_):
    raise UserError(f"failed at {time.monotonic()}")  # of a clock that all processes share


ONE_SHAPE = {"train.lr": {"low": 1e-4, "high": 1e-1, "log": True}}
LONG = configured(n_trials=80, space=ONE_SHAPE, search__stack=1)  # 20 seconds with two workers
AT_ONCE = 5  # seconds at most: half of one, on a computer that has nothing else to do


def alive(process):
    """Whether there is such a process, and more of it than a status that nobody has asked for."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def all_gone(processes):
    """Whether none is left, or will be in a moment: a process closes what it writes to before it ends."""
    begun = time.monotonic()
    while (left := any(map(alive, processes))) and time.monotonic() - begun < AT_ONCE:
        time.sleep(0.01)
    return not left


def fails_at_once(kind, train):
    """What `train` does with a runner of two workers has to end as soon as one thing fails, and the workers with it."""
    of = samples.sample("iris")
    before, processes = set(multiprocessing.active_children()), []

    def long():
        with workers(kind(of.train, of.val, of.schema), 2) as run:
            processes.extend(child.pid for child in set(multiprocessing.active_children()) - before)
            train(run)

    with pytest.raises(UserError, match="failed at") as raised:
        long()
    assert time.monotonic() - float(str(raised.value).split()[-1]) < AT_ONCE
    assert len(processes) == 2
    assert all_gone(processes)


@pytest.mark.parametrize(("kind", "on_trial"), [(Failing, print), (Slow, fail)], ids=["a worker", "the search"])
def test_an_exception_in_a_worker_or_in_the_search_ends_it_at_once_with_its_workers(kind, on_trial):
    fails_at_once(kind, lambda run: search(LONG, run, on_trial))


def test_an_exception_in_a_worker_does_not_wait_for_stacks_that_come_before():
    narrow, wide = configured(model__hidden=[4]), configured(model__hidden=[8])  # the widest are trained first
    stacks = [[Contender(n, wide if n else narrow)] for n in range(60)]
    fails_at_once(Failing, lambda run: list(run(stacks, 1)))


SCRIPT = """
import multiprocessing, signal
from pipeline.runtime import console
from pipeline.stages.search.study import search
from pipeline.stages.search.workers import workers
from tests import samples
from tests.test_search import LONG, Slow

def main():
    of = samples.sample("iris")
    with workers(Slow(of.train, of.val, of.schema), 2) as run:
        print(*(child.pid for child in multiprocessing.active_children()), flush=True)
        search(LONG, run, lambda trial: print("one has ended", flush=True))

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have had it ignored
console.run(main)
"""


@pytest.mark.parametrize(
    ("send", "number", "status", "error"),
    [
        (os.killpg, signal.SIGINT, 130, "error: interrupted\n"),  # a terminal tells all of its processes
        (os.kill, signal.SIGTERM, 128 + signal.SIGTERM, ""),
        (os.kill, signal.SIGKILL, -signal.SIGKILL, ""),
    ],
    ids=["ctrl-c", "terminated", "killed"],
)
def test_a_signal_ends_a_search_at_once_and_its_workers_with_it(send, number, status, error):
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        try:
            processes = [int(each) for each in process.stdout.readline().split()]
            assert len(processes) == 2
            assert process.stdout.readline() == "one has ended\n"
            assert all(map(alive, processes))
            send(process.pid, number)
            _, said = process.communicate(timeout=AT_ONCE)  # until nobody is left who could write
            assert all_gone(processes)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert (process.returncode, said) == (status, error)


def test_plots_of_a_search_are_drawn_and_repeat(tmp_path):
    found = search(configured(n_trials=6), runner(diverge={2}))
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
