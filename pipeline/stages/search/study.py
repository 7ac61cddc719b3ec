"""Optuna: the space, the samplers, the trials, which train in stacks and worker processes."""

import itertools
import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
import pandas as pd
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import TrialState

from pipeline.core.config import flatten, replaced
from pipeline.core.errors import UserError
from pipeline.core.scores import lower_is_better, task_metrics
from pipeline.core.settings import Config, Space, is_whole
from pipeline.stages.search.halving import Runner, halving, rungs
from pipeline.stages.search.trials import Contender, Trial

FANOVA_TREES = 16  # a quarter of Optuna's default, which takes longer than a search of small networks
TPE_ROUND = 8  # trials that TPE draws before it hears how they went
_STATES = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}


@dataclass(frozen=True)
class SearchResult:
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
        """The best score of the complete trials up to each trial; NaN before the first complete one."""
        table = self.table()
        scores = table[self.metric].where(table["state"] == "complete")
        return (scores.cummin() if lower_is_better(self.metric) else scores.cummax()).ffill()


def search(config: Config, run: Runner, on_trial: Callable[[Trial], object] = lambda trial: None) -> SearchResult:
    """The trials of `config.search`, trained by `run`, those that lose dropped between the rungs of `rungs`.

    The score of a trial is the task's first metric on validation rows, at its best epoch. Trial 0 is what params.yaml has
    now, where the space holds it and the sampler is not `grid`. What trial n draws is a function of the seed and n, for
    `tpe` also of the scores of the rounds before. A trial that diverges is marked failed; raises `UserError` if all do.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    metric = f"val_{task_metrics(config.data.task)[0]}"
    sign = 1 if lower_is_better(metric) else -1
    space = {name: distribution(item, whole=is_whole(name)) for name, item in config.search.space.items()}
    study = optuna.create_study(
        direction=StudyDirection.MINIMIZE if sign > 0 else StudyDirection.MAXIMIZE, pruner=optuna.pruners.NopPruner()
    )
    n_trials = config.search.n_trials
    if config.search.sampler == "grid":
        axes = [grid(item, space[name]) for name, item in config.search.space.items()]
        points = list(itertools.islice(itertools.product(*axes), n_trials))
        for point in points:
            study.enqueue_trial(dict(zip(space, point, strict=True)))
        n_trials = len(points)
    elif (now := _as_it_is(config)) is not None:
        study.enqueue_trial(now)
    trials: list[Trial] = []
    for start in range(0, n_trials, n_round := TPE_ROUND if config.search.sampler == "tpe" else n_trials):
        asked, drawn = {}, {}
        for number in range(start, min(start + n_round, n_trials)):
            study.sampler = _sampler(config, number)
            asked[number] = study.ask(space)
            drawn[number] = {
                name: _value(item, asked[number].params[name]) for name, item in config.search.space.items()
            }
        ended = []
        for contender, state in halving(
            [Contender(n, replaced(config, drawn[n] | {"model.ensemble": 1})) for n in drawn], config, run, metric
        ):
            best_epoch = contender.progress["best_epoch"] if state != "failed" else None
            score = contender.history[best_epoch - 1][metric] if best_epoch else None
            trial = Trial(contender.number, drawn[contender.number], state, score, best_epoch, tuple(contender.history))
            ended.append(trial)
            on_trial(trial)
        for trial in sorted(ended, key=lambda trial: trial.number):  # in an order that no worker decides
            if trial.score is not None:
                asked[trial.number].report(trial.score, len(trial.history))
            study.tell(asked[trial.number], trial.score if trial.state == "complete" else None, _STATES[trial.state])
            trials.append(trial)
    # Where all that were kept diverged later on, the best of those that were dropped.
    ranked = [t for t in trials if t.state == "complete"] or [t for t in trials if t.score is not None]
    if not ranked:
        raise UserError(
            f"search: the loss diverged in each of the {len(trials)} trials: lower the upper end of train.lr in search.space"
        )
    best = min(ranked, key=lambda trial: sign * (trial.score or 0.0))  # the first of equals
    return SearchResult(trials, metric, best, _importances(trials, metric, space, config))


def _as_it_is(config: Config) -> dict[str, Any] | None:
    """What params.yaml has now for the parameters that are searched, as Optuna has it; None if a value lies outside."""
    values = flatten(config.model_dump(mode="json", include={"model", "train"}))
    now = {}
    for name, space in config.search.space.items():
        value = values[name]
        if space.choices is not None:
            choices = json.loads(json.dumps(space.choices))
            if value not in choices:
                return None
            now[name] = choices.index(value)
        else:
            low, high = space.ends
            if value is None or not low <= value <= high:
                return None
            now[name] = value
    return now


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


def _importances(
    trials: Sequence[Trial], metric: str, space: Mapping[str, BaseDistribution], config: Config
) -> dict[str, float]:
    """Share of the scores' variance that each parameter explains (Hutter et al. 2014); empty where there is none.

    The scores are those after the first rung, the last epoch that all trials have had.
    """
    rung = rungs(config.search.epochs, config.search.reduction)[0]
    sign = 1 if lower_is_better(metric) else -1
    study = optuna.create_study()
    for trial in trials:
        if trial.score is None:
            continue
        places = {
            name: value if (choices := config.search.space[name].choices) is None else choices.index(value)
            for name, value in trial.params.items()
        }
        score = min(sign * row[metric] for row in trial.history[:rung])
        study.add_trial(optuna.create_trial(params=places, distributions=dict(space), value=score))
    scores = [trial.value or 0.0 for trial in study.trials]
    if len(scores) < 4 or math.isclose(min(scores), max(scores)):
        return {}
    found: Mapping[str, float] = optuna.importance.get_param_importances(
        study, evaluator=optuna.importance.FanovaImportanceEvaluator(n_trees=FANOVA_TREES, seed=config.seed)
    )
    return dict(found)
