"""Successive halving: group trials into stacks, and drop the worst after each rung."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

from pipeline.core.scores import lower_is_better
from pipeline.core.settings import Config
from pipeline.stages.search.trials import Contender, State
from pipeline.training.loop import OWN

STACK_ACTIVATIONS, MAX_STACK = 1_000_000, 32  # at most, per stack: hidden values of a batch, and members
Stacks = Sequence[list[Contender]]
Runner = Callable[[Stacks, int], Iterator[list[Contender]]]  # trains stacks up to an epoch; yields them in order


def rungs(epochs: int, reduction: int | None) -> list[int]:
    """Return the epochs after which trials are compared, and the last epoch: 1, 3, 9, … with reduction 3."""
    powers = (reduction**k for k in itertools.count()) if reduction else ()
    return [*itertools.takewhile(lambda epoch: epoch < epochs, powers), epochs]


def halving(contenders: list[Contender], config: Config, run: Runner, metric: str) -> Iterator[tuple[Contender, State]]:
    """Keep the best 1 / reduction of the trials after each rung (Jamieson & Talwalkar 2016); yield each as it ends."""
    sign = 1 if lower_is_better(metric) else -1
    for rung in rungs(config.search.epochs, config.search.reduction):
        trained: list[Contender] = []
        for stack in run(pack(contenders, config.search.stack), rung):
            yield from ((contender, "failed") for contender in stack if contender.progress["diverged"])
            trained += [contender for contender in stack if not contender.progress["diverged"]]
        if rung == config.search.epochs:
            yield from ((contender, "complete") for contender in trained)
            return
        trained.sort(key=lambda c: (sign * c.history[c.progress["best_epoch"] - 1][metric], c.number))
        n_kept = math.ceil(len(trained) / (config.search.reduction or 1))
        yield from ((contender, "pruned") for contender in trained[n_kept:])
        contenders = sorted(trained[:n_kept], key=lambda contender: contender.number)


def pack(contenders: Sequence[Contender], width: int | None = None) -> list[list[Contender]]:
    """Group contenders of one shape into stacks of `width` members, by default `stack_width`."""
    shapes: dict[str, list[Contender]] = {}
    for contender in contenders:
        shape = contender.config.model_dump_json(
            include={"model": True, "train": True}, exclude={"model": {"dropout", "init"}, "train": OWN}
        )
        shapes.setdefault(shape, []).append(contender)
    stacks = []
    for alike in shapes.values():
        # At least two stacks, since a single one would use only one core.
        size = width or min(stack_width(alike[0].config), math.ceil(len(contenders) / 2))
        stacks += [alike[start : start + size] for start in range(0, len(alike), size)]
    return stacks


def stack_width(config: Config) -> int:
    """Return how many networks to train side by side: enough to outweigh the cost of a call, few enough for the cache.

    Computed from the shapes, since a measurement would make the bytes depend on the machine; see `make bench`.
    """
    activations = config.train.rows_a_step * sum(config.model.hidden)
    return int(2 ** math.floor(math.log2(min(max(STACK_ACTIVATIONS / max(activations, 1), 1), MAX_STACK))))
