import pytest

from pipeline.core.config import replaced
from pipeline.stages.search.halving import pack, rungs, stack_width
from pipeline.stages.search.study import search
from pipeline.stages.search.trials import Contender
from tests.support import samples
from tests.support.searches import configured, made_up, real, score_of


def drawn(found):
    return [trial.params for trial in found.trials]


@pytest.mark.parametrize(
    ("epochs", "reduction", "expected"),
    [(1, 3, [1]), (3, 3, [1, 3]), (6, 3, [1, 3, 6]), (6, 2, [1, 2, 4, 6]), (9, 3, [1, 3, 9]), (5, None, [5])],
)
def test_rungs_grow_by_the_reduction_up_to_the_last_epoch(epochs, reduction, expected):
    assert rungs(epochs, reduction) == expected


def test_after_each_rung_the_best_third_is_kept_and_the_rest_is_pruned():
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
    assert "pruned after 1 epochs" in next(t.line() for t in found.trials if len(t.history) == 1)


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
