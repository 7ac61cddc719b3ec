"""Hyperparameter search with Optuna: search space, samplers, trials."""

import itertools
import json
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
import pandas as pd
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from pipeline.core.config import flatten, replaced
from pipeline.core.errors import UserError
from pipeline.core.scores import lower_is_better, task_metrics
from pipeline.core.settings import Config, Space, is_whole
from pipeline.stages.search.halving import Runner, halving, rungs
from pipeline.stages.search.trials import Contender, Trial

FANOVA_TREES = 16  # Optuna's default of 64 takes longer than a search of small networks
TPE_ROUND = 8  # trials that TPE draws before it receives their scores
_STATES = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}


@dataclass(frozen=True)
class SearchResult:
    """All trials by number, and the best of them."""

    trials: list[Trial]
    metric: str
    best: Trial
    importances: dict[str, float]

    def table(self) -> pd.DataFrame:
        """Return a row per trial: number, state, score, best epoch, and a column per parameter."""
        rows = [
            {"trial": t.number, "state": t.state, self.metric: t.score, "best_epoch": t.best_epoch}
            | {name: json.dumps(value) if isinstance(value, list) else value for name, value in t.params.items()}
            for t in self.trials
        ]
        return pd.DataFrame(rows).astype({"best_epoch": "Int64"})

    def best_so_far(self) -> pd.Series:
        """Return the best score of the complete trials up to each trial; NaN before the first complete one."""
        table = self.table()
        scores = table[self.metric].where(table["state"] == "complete")
        return (scores.cummin() if lower_is_better(self.metric) else scores.cummax()).ffill()


def search(
    config: Config,
    run: Runner,
    on_trial: Callable[[Trial], object] = lambda trial: None,
    sized: Callable[[Config], Config] = lambda config: config,
) -> SearchResult:
    """Run the trials of `config.search` with successive halving, trained by `run`.

    The score of a trial is the task's first metric on validation rows, at its best epoch. Trial 0 has the values of
    params.yaml, if they are in the space and the sampler is not `grid`. The parameters of trial n depend only on the seed
    and n, for `tpe` also on the scores of earlier rounds. `sized` replaces `auto` in a trial's configuration. Raises
    `UserError` if all trials diverge.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    metric = f"val_{task_metrics(config.data.task)[0]}"
    sign = 1 if lower_is_better(metric) else -1
    spaces, n_trials = config.search.space, config.search.n_trials
    distributions = {name: _distribution(space, whole=is_whole(name)) for name, space in spaces.items()}
    study = optuna.create_study(direction="minimize" if sign > 0 else "maximize", pruner=optuna.pruners.NopPruner())
    if config.search.sampler == "grid":
        axes = [_grid(space, distributions[name]) for name, space in spaces.items()]
        points = list(itertools.islice(itertools.product(*axes), n_trials))
        for point in points:
            study.enqueue_trial(dict(zip(spaces, point, strict=True)))
        n_trials = len(points)
    elif (current := _current_point(config, sized)) is not None:
        study.enqueue_trial(current)
    n_round = TPE_ROUND if config.search.sampler == "tpe" else n_trials
    trials: list[Trial] = []
    for start in range(0, n_trials, n_round):
        asked, params = {}, {}
        for number in range(start, min(start + n_round, n_trials)):
            study.sampler = _sampler(config, number)
            asked[number] = study.ask(distributions)
            drawn = asked[number].params
            params[number] = {n: drawn[n] if s.choices is None else s.choices[drawn[n]] for n, s in spaces.items()}
        contenders = [Contender(n, sized(replaced(config, own | {"model.ensemble": 1}))) for n, own in params.items()]
        ended = {}
        for contender, state in halving(contenders, config, run, metric):
            number, history = contender.number, contender.history
            best_epoch = contender.progress["best_epoch"] if state != "failed" else None
            score = history[best_epoch - 1][metric] if best_epoch else None
            ended[number] = Trial(number, params[number], state, score, best_epoch, tuple(history))
            on_trial(ended[number])
        for number, trial in sorted(ended.items()):  # in a fixed order, whichever ended first
            if trial.score is not None:
                asked[number].report(trial.score, len(trial.history))
            study.tell(asked[number], trial.score if trial.state == "complete" else None, _STATES[trial.state])
            trials.append(trial)
    # If all trials of the last rung diverged, the best pruned trial wins.
    ranked = [t for t in trials if t.state == "complete"] or [t for t in trials if t.score is not None]
    if not ranked:
        raise UserError(f"search: all {len(trials)} trials diverged: lower the upper end of train.lr in search.space")
    best = min(ranked, key=lambda trial: sign * (trial.score or 0.0))  # the first of equals
    return SearchResult(trials, metric, best, _importances(study, trials, metric, config))


def _current_point(config: Config, sized: Callable[[Config], Config]) -> dict[str, Any] | None:
    """Return the searched parameters of params.yaml in Optuna's terms; None if a value is outside of the space."""

    def leaves(config: Config) -> dict[str, Any]:
        return flatten(sized(config).model_dump(mode="json", include={"model", "train"}))

    values, point = leaves(config), {}
    for name, space in config.search.space.items():
        value = values[name]
        # A choice may be a word for a value: `auto` or `preset`.
        equal = [
            n for n, choice in enumerate(space.choices or ()) if leaves(replaced(config, {name: choice}))[name] == value
        ]
        if equal:
            point[name] = equal[0]
        elif space.choices is None and value is not None and space.ends[0] <= value <= space.ends[1]:
            point[name] = value
        else:
            return None
    return point


def _distribution(space: Space, whole: bool) -> BaseDistribution:
    if space.choices is not None:
        return CategoricalDistribution(range(len(space.choices)))  # indices, since Optuna's choices cannot be lists
    low, high = space.ends
    if whole:
        return IntDistribution(int(low), int(high), log=space.log)
    return FloatDistribution(low, high, log=space.log)


def _grid(space: Space, distribution: BaseDistribution) -> list[Any]:
    """Return the grid points of a parameter: its choices, or `steps` even values from low to high."""
    if space.choices is not None:
        return list(range(len(space.choices)))
    assert space.steps is not None
    low, high = space.ends
    points = (np.geomspace if space.log else np.linspace)(low, high, space.steps)
    if isinstance(distribution, IntDistribution):
        return sorted({round(float(point)) for point in points})
    # geomspace is inexact in the last digits; the ends must stay inside the range.
    return [min(max(float(f"{point:.12g}"), low), high) for point in points]


def _sampler(config: Config, number: int) -> optuna.samplers.BaseSampler:
    """Return a sampler for one trial, so that its draws do not depend on the order in which others end."""
    seed = int(np.random.SeedSequence((config.seed, number)).generate_state(1)[0])
    match config.search.sampler:
        case "random" | "grid":  # the points of a grid are enqueued: this sampler draws nothing for them
            return optuna.samplers.RandomSampler(seed=seed)
        case "tpe":
            return optuna.samplers.TPESampler(seed=seed)
        case "qmc":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                # One sequence for the whole study, which stores the position in it.
                return optuna.samplers.QMCSampler(seed=config.seed, scramble=True)


def _importances(study: optuna.Study, trials: Sequence[Trial], metric: str, config: Config) -> dict[str, float]:
    """Return each parameter's share of the score variance after the first rung (Hutter et al. 2014), if there is any."""
    rung = rungs(config.search.epochs, config.search.reduction)[0]
    sign = 1 if lower_is_better(metric) else -1
    first_rung, scores = optuna.create_study(), []
    for trial, asked in zip(trials, study.trials, strict=True):
        if trial.score is not None:
            scores.append(min(sign * row[metric] for row in trial.history[:rung]))
            params, space = asked.params, asked.distributions
            first_rung.add_trial(optuna.create_trial(params=params, distributions=space, value=scores[-1]))
    if len(scores) < 4 or math.isclose(min(scores), max(scores)):
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(n_trees=FANOVA_TREES, seed=config.seed)
    return dict(optuna.importance.get_param_importances(first_rung, evaluator=evaluator))
