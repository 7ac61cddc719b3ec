"""Optuna: the space, the samplers, the trials."""

import itertools
import json
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import optuna
import pandas as pd
import torch
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import TrialState

from pipeline.config import Config, Space, is_whole, lower_is_better, task_metrics
from pipeline.data import TabularData, generator
from pipeline.errors import DivergedError, UserError
from pipeline.model import build_network
from pipeline.schema import Schema
from pipeline.training import Epoch, Fit, fit

optuna.logging.set_verbosity(optuna.logging.WARNING)


@dataclass(frozen=True)
class Trial:
    """One trial: the parameters it drew and how it went; `score` is None where it diverged."""

    number: int
    params: dict[str, Any]
    state: Literal["complete", "failed"]
    score: float | None
    best_epoch: int | None
    history: tuple[Epoch, ...]

    def line(self) -> str:
        drawn = ", ".join(
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in self.params.items()
        )
        return f"trial {self.number}: {'diverged' if self.score is None else f'{self.score:.4f}'} with {drawn}"


@dataclass(frozen=True)
class Search:
    """All trials in the order they were asked for, and the best of them."""

    trials: list[Trial]
    metric: str
    best: Trial
    importances: dict[str, float]

    def table(self) -> pd.DataFrame:
        """A row a trial: number, state, score, best epoch, and a column a parameter."""
        rows = [
            {"trial": t.number, "state": t.state, self.metric: t.score, "best_epoch": t.best_epoch}
            | {name: json.dumps(value) if isinstance(value, list) else value for name, value in t.params.items()}
            for t in self.trials
        ]
        return pd.DataFrame(rows).astype({"best_epoch": "Int64"})

    def best_so_far(self) -> pd.Series:
        scores = self.table()[self.metric]
        return scores.cummin() if lower_is_better(self.metric) else scores.cummax()


def search(
    config: Config, evaluate: Callable[[Config], Fit], on_trial: Callable[[Trial], object] = lambda trial: None
) -> Search:
    """Run the trials of `config.search`; `evaluate` trains one configuration and returns how it went.

    The score of a trial is the task's first metric on validation rows, at its best epoch. What trial n draws is a
    function of the seed, n and the scores of the trials before it. A trial that diverges is marked failed; raises
    `UserError` if all do.
    """
    metric = f"val_{task_metrics(config.data.task)[0]}"
    space = {name: distribution(item, whole=is_whole(name)) for name, item in config.search.space.items()}
    direction = StudyDirection.MINIMIZE if lower_is_better(metric) else StudyDirection.MAXIMIZE
    study = optuna.create_study(direction=direction, pruner=optuna.pruners.NopPruner())
    n_trials = config.search.n_trials
    if config.search.sampler == "grid":
        points = list(itertools.product(*(grid(item, space[name]) for name, item in config.search.space.items())))
        for point in points:
            study.enqueue_trial(dict(zip(space, point, strict=True)))
        n_trials = min(n_trials, len(points))
    trials: list[Trial] = []
    for number in range(n_trials):
        study.sampler = _sampler(config, number)
        asked = study.ask(space)
        params = {name: _value(config.search.space[name], asked.params[name]) for name in space}
        try:
            outcome = evaluate(config.replace(params))
        except DivergedError:
            study.tell(asked, state=TrialState.FAIL)
            trial = Trial(number, params, "failed", None, None, ())
        else:
            score = outcome.best[metric]
            study.tell(asked, score)
            trial = Trial(number, params, "complete", score, outcome.best_epoch, tuple(outcome.history))
        trials.append(trial)
        on_trial(trial)
    complete = [trial for trial in trials if trial.score is not None]
    if not complete:
        raise UserError(
            f"search: the loss diverged in each of the {len(trials)} trials: lower the upper end of train.lr in search.space"
        )
    sign = 1 if lower_is_better(metric) else -1
    best = min(complete, key=lambda trial: sign * (trial.score or 0.0))  # the first of equals
    return Search(trials, metric, best, _importances(study, config.seed))


def evaluator(train: TabularData, val: TabularData, learned: Schema) -> Callable[[Config], Fit]:
    """How a trial is trained: as the stage train does it, but for `search.epochs` and on `search.rows` rows."""

    def evaluate(config: Config) -> Fit:
        target, device = learned.target, train.y.device
        rows = torch.randperm(len(train), generator=generator(config.seed, 3))[: config.search.rows].sort().values
        network = build_network(config.model, learned, target.n_outputs, generator(config.seed)).to(device)
        settings = config.train.model_copy(update={"epochs": config.search.epochs, "patience": None})
        return fit(network, train.take(rows.to(device)), val, settings, target, seed=config.seed)

    return evaluate


def distribution(space: Space, whole: bool) -> BaseDistribution:
    if space.choices is not None:
        return CategoricalDistribution(range(len(space.choices)))  # places: Optuna's choices cannot be lists
    low, high = space.ends
    if whole:
        return IntDistribution(int(low), int(high), log=space.log)
    return FloatDistribution(low, high, log=space.log)


def grid(space: Space, dist: BaseDistribution) -> list[Any]:
    """The points of a parameter: its choices, or `steps` values evenly from low to high."""
    if space.choices is not None:
        return list(range(len(space.choices)))
    assert space.steps is not None  # as config checks
    low, high = space.ends
    points = (np.geomspace if space.log else np.linspace)(low, high, space.steps)
    if isinstance(dist, IntDistribution):
        return sorted({round(float(point)) for point in points})
    # Rounded, since 10**-k by way of logarithms is off in its last digits; the ends stay inside the range.
    return [min(max(float(f"{point:.12g}"), low), high) for point in points]


def _value(space: Space, drawn: Any) -> Any:
    return space.choices[drawn] if space.choices is not None else drawn


def _sampler(config: Config, number: int) -> optuna.samplers.BaseSampler:
    """A sampler of its own for each trial: what it draws depends on no trial's duration and on no restart."""
    seed = int(np.random.SeedSequence((config.seed, number)).generate_state(1)[0])
    match config.search.sampler:
        case "random" | "grid":  # a grid's points are in the queue; nothing is left to sample
            return optuna.samplers.RandomSampler(seed=seed)
        case "tpe":
            return optuna.samplers.TPESampler(seed=seed)
        case "qmc":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                # One sequence for the whole study: its place in it is kept in the study.
                return optuna.samplers.QMCSampler(seed=config.seed, scramble=True)


def _importances(study: optuna.Study, seed: int) -> dict[str, float]:
    """Share of the scores' variance that each parameter explains (Hutter et al. 2014); empty where there is none."""
    scores = [trial.value for trial in study.trials if trial.value is not None]
    if len(scores) < 4 or math.isclose(min(scores), max(scores)):
        return {}
    found: Mapping[str, float] = optuna.importance.get_param_importances(
        study, evaluator=optuna.importance.FanovaImportanceEvaluator(seed=seed)
    )
    return dict(found)
