"""Searches with made-up scores, or with workers that take their time."""

import time

import numpy as np

from pipeline.stages.search.study import search
from pipeline.stages.search.trials import Work
from pipeline.stages.search.workers import workers
from tests.support import samples

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
    """Score of a made-up training: best at lr 0.01, a little better with momentum."""
    return 1 / (1 + abs(np.log10(config.train.lr) + 2)) + 0.01 * config.train.momentum


def runner(score=score_of, diverge=(), asked=None, metric="val_accuracy"):
    """A runner without training: the score of a trial follows from its configuration and rises with each epoch."""

    def run(stacks, until):
        for stack in stacks:
            for contender in stack:
                if asked is not None:
                    asked[contender.number] = contender.config
                rows = [{"epoch": e, metric: score(contender.config) * e / until} for e in range(1, until + 1)]
                diverged = "the loss became NaN or infinite" if contender.number in diverge else None
                contender.progress = {"history": rows, "best_epoch": until, "diverged": diverged}
            yield stack

    return run


made_up = runner()


def real(config, of, n_workers=1, search=search):
    with workers(Work.of(of.train, of.val, of.schema, config), n_workers) as run:
        return search(config, run)


class Slow(Work):
    """Half a second for each stack; trial 1 diverges, so that it ends while others wait."""

    def __call__(self, stack, until):
        time.sleep(0.5)
        for contender in stack:
            diverged = "became NaN or infinite" if contender.number == 1 else None
            rows = [{"epoch": 1, "val_accuracy": 0.5}]
            contender.progress = {"history": rows, "best_epoch": 1, "diverged": diverged}
        return stack


ONE_SHAPE = {"train.lr": {"low": 1e-4, "high": 1e-1, "log": True}}
LONG = configured(n_trials=80, space=ONE_SHAPE, search__stack=1)  # 20 seconds with two workers
