"""Optuna: the space, the samplers, the trials, which train in stacks and worker processes."""

import itertools
import json
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
import optuna
import pandas as pd
import torch
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import TrialState
from torch import Tensor

from pipeline import metrics, processes
from pipeline.checkpoints import NONE, Checkpoints
from pipeline.config import flatten, replaced
from pipeline.data import TabularData, generator
from pipeline.errors import UserError
from pipeline.model import bin_edges
from pipeline.schema import Schema, Target
from pipeline.settings import Config, Space, is_whole, lower_is_better, task_metrics
from pipeline.training import OWN, Epoch, Member, fit, new_members

FANOVA_TREES = 16  # a quarter of Optuna's default, which takes longer than a search of small networks
TPE_ROUND = 8  # trials that TPE draws before it hears how they went
STACK_ACTIVATIONS, MAX_STACK = 1_000_000, 32  # numbers that a hidden layer of all members holds; members
_STATES = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}

optuna.logging.set_verbosity(optuna.logging.WARNING)


@dataclass(frozen=True)
class Trial:
    """One trial: the parameters it drew and how it went; `score` is None where it diverged.

    The score of a pruned trial is that of the epochs it had.
    """

    number: int
    params: dict[str, Any]
    state: Literal["complete", "pruned", "failed"]
    score: float | None
    best_epoch: int | None
    history: tuple[Epoch, ...]

    def line(self) -> str:
        drawn = ", ".join(
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in self.params.items()
        )
        score = "diverged" if self.score is None else f"{self.score:.4f}"
        pruned = f" after {len(self.history)} epochs, pruned" if self.state == "pruned" else ""
        return f"trial {self.number}: {score}{pruned} with {drawn}"


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
        table = self.table()
        scores = table[self.metric].where(table["state"] == "complete")
        return scores.cummin() if lower_is_better(self.metric) else scores.cummax()


@dataclass
class Contender:
    """A trial that is still in the running: plain values and arrays, so that it can go to a worker and back."""

    number: int
    config: Config
    progress: dict[str, Any] = field(default_factory=dict)  # of its `Member`, by field; empty before the first epoch

    @property
    def history(self) -> list[Epoch]:
        return list(self.progress.get("history", []))


Stacks = Sequence[list[Contender]]
Runner = Callable[[Stacks, int], Iterator[list[Contender]]]  # stacks and the epoch to train them to; in their order


def search(config: Config, run: Runner, on_trial: Callable[[Trial], object] = lambda trial: None) -> Search:
    """The trials of `config.search`, trained by `run`, those that lose dropped between the rungs of `rungs`.

    The score of a trial is the task's first metric on validation rows, at its best epoch. Trial 0 is what params.yaml has
    now, where the space holds it and the sampler is not `grid`. What trial n draws is a function of the seed and n, for
    `tpe` also of the scores of the rounds before. A trial that diverges is marked failed; raises `UserError` if all do.
    """
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
        for contender, state in _halving(
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
    return Search(trials, metric, best, _importances(trials, metric, space, config))


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


def rungs(epochs: int, reduction: int | None) -> list[int]:
    """The epochs after which trials are compared, and the last one: with reduction 3 these are 1, 3, 9, … epochs."""
    before = (
        itertools.takewhile(lambda epoch: epoch < epochs, (reduction**k for k in itertools.count()))
        if reduction
        else ()
    )
    return [*before, epochs]


def _halving(
    contenders: list[Contender], config: Config, run: Runner, metric: str
) -> Iterator[tuple[Contender, Literal["complete", "pruned", "failed"]]]:
    """Successive halving (Jamieson & Talwalkar 2016): after each rung the best 1 / reduction of the trials go on."""
    sign = 1 if lower_is_better(metric) else -1
    for rung in rungs(config.search.epochs, config.search.reduction):
        ran: list[Contender] = []
        for stack in run(pack(contenders, config.search.stack), rung):
            yield from ((contender, "failed") for contender in stack if contender.progress["diverged"])
            ran += [contender for contender in stack if not contender.progress["diverged"]]
        if rung == config.search.epochs:
            yield from ((contender, "complete") for contender in ran)
            return
        ran.sort(key=lambda c: (sign * c.history[c.progress["best_epoch"] - 1][metric], c.number))
        kept = math.ceil(len(ran) / (config.search.reduction or 1))
        yield from ((contender, "pruned") for contender in ran[kept:])
        contenders = sorted(ran[:kept], key=lambda contender: contender.number)


def pack(contenders: Sequence[Contender], width: int | None = None) -> list[list[Contender]]:
    """Contenders of one shape side by side, in stacks of `width` members or as many as `stack_width` says.

    There are two stacks or more wherever there are two contenders: one alone would leave a core idle.
    """
    shapes: dict[str, list[Contender]] = {}
    for contender in contenders:
        shape = contender.config.model_dump_json(
            include={"model": True, "train": True},
            exclude={"model": {"dropout", "init"}, "train": OWN},
        )
        shapes.setdefault(shape, []).append(contender)
    stacks = []
    for alike in shapes.values():
        size = width or min(stack_width(alike[0].config), math.ceil(len(contenders) / 2))
        stacks += [alike[start : start + size] for start in range(0, len(alike), size)]
    return stacks


def stack_width(config: Config) -> int:
    """How many networks of a shape train side by side: enough to outweigh the cost of a call, few enough for the cache.

    A rule over the shapes, since what is measured at run time would change bytes; `make bench` measures what it rests on.
    """
    activations = config.train.rows_a_step * sum(config.model.hidden)
    return int(2 ** math.floor(math.log2(min(max(STACK_ACTIVATIONS / max(activations, 1), 1), MAX_STACK))))


@dataclass(frozen=True)
class Work:
    """What a trial is trained on: as the stage train does it, but for `search.epochs` and on `search.rows` rows."""

    train: TabularData
    val: TabularData
    learned: Schema
    saved: Checkpoints = NONE
    edges: dict[int, tuple[Tensor, ...]] = field(default_factory=dict)  # by `model.bins`, found once

    @classmethod
    def of(
        cls, train: TabularData, val: TabularData, learned: Schema, config: Config, saved: Checkpoints = NONE
    ) -> "Work":
        if config.search.rows is None or config.search.rows >= len(train):
            return cls(train, val, learned, saved)
        drawn = torch.randperm(len(train), generator=generator(config.seed, 0, 3))[: config.search.rows]
        return cls(train.take(drawn.sort().values.to(train.y.device)), val, learned, saved)

    def __call__(self, stack: list[Contender], until: int) -> list[Contender]:
        members = [self._member(contender) for contender in stack]
        name = f"trial-{stack[0].number}-to-{until}"  # in each rung a trial is in one stack
        keep = self.saved.keeping(name, members)
        fit(members, self.train, self.val, self.learned.target, until=until, on_epoch=keep, score=headline_only)
        self.saved.save(name, members)
        for contender, member in zip(stack, members, strict=True):
            weights = dict(member.network.state_dict())
            contender.progress = {name: getattr(member, name) for name in _KEPT} | {
                name: {key: tensor.cpu().numpy() for key, tensor in tensors.items()}
                for name, tensors in {
                    "weights": weights,
                    "memory": member.memory,
                    "best_weights": member.best_weights,
                }.items()
            }
        return stack

    def _member(self, contender: Contender) -> Member:
        config, device = contender.config, self.train.y.device
        model = config.model
        if model.numeric == "ple" and model.bins not in self.edges:
            self.edges[model.bins] = bin_edges(self.train.x_num, model.bins)
        (member,) = new_members(config, self.train, self.learned, self.edges.get(model.bins, ()))
        member.settings = config.train.model_copy(update={"epochs": config.search.epochs, "patience": None})
        if progress := contender.progress:
            tensors = {
                part: {name: torch.from_numpy(array).to(device) for name, array in progress[part].items()}
                for part in ("weights", "memory", "best_weights")
            }
            member.network.load_state_dict(tensors["weights"])
            member.memory, member.best_weights = tensors["memory"], tensors["best_weights"]
            member.history, member.best_epoch = progress["history"], progress["best_epoch"]
        return member


_KEPT = ("history", "best_epoch", "diverged")


def headline_only(outputs: Tensor, y: Tensor, target: Target) -> dict[str, float]:
    """What ranks trials, and no more: F1 and AUROC of each epoch of each trial would take longer than the epoch."""
    mean = metrics.row_scores(outputs, y, target.task).mean()
    return {name.removeprefix("train_"): float(value) for name, value in metrics.headline(mean, target).items()}


@contextmanager
def workers(work: Work, n: int | None) -> Iterator[Runner]:
    """Yield a runner that trains stacks in `n` processes of one thread each: as many as there are cores, if None.

    With one process, or on a GPU, the work is done here. Else see `processes.workers`.
    """
    # Not every system can say which cores are this process's own.
    n = n or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    if n == 1 or work.train.y.is_cuda:
        yield partial(_one_after_another, work)
        return
    with processes.workers(work, n, begin=partial(torch.set_num_threads, 1)) as run_all:

        def run(stacks: Stacks, until: int) -> Iterator[list[Contender]]:
            # The longest first, so that no worker is left with it alone at the end.
            order = sorted(range(len(stacks)), key=lambda place: -_cost(stacks[place]))
            ended: dict[int, list[Contender]] = {}
            due = 0
            for turn, stack in run_all([(stacks[place], until) for place in order]):
                ended[order[turn]] = stack
                while due in ended:
                    yield ended.pop(due)
                    due += 1

        yield run


def _one_after_another(work: Work, stacks: Stacks, until: int) -> Iterator[list[Contender]]:
    """The trials in this process, on one thread as in a worker; what follows has its threads again."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for stack in stacks:
            yield work(stack, until)
    finally:
        torch.set_num_threads(threads)


def _cost(stack: list[Contender]) -> float:
    model = stack[0].config.model
    return len(stack) * sum(model.hidden)


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
