"""Successive halving: which trials train side by side, and which go on."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from pipeline.core.scores import lower_is_better
from pipeline.core.settings import Config
from pipeline.stages.search.trials import Contender
from pipeline.training.loop import OWN

STACK_ACTIVATIONS, MAX_STACK = 1_000_000, 32  # numbers that a hidden layer of all members holds; members
Stacks = Sequence[list[Contender]]
Runner = Callable[[Stacks, int], Iterator[list[Contender]]]  # stacks and the epoch to train them to; in their order


def rungs(epochs: int, reduction: int | None) -> list[int]:
    """The epochs after which trials are compared, and the last one: with reduction 3 these are 1, 3, 9, … epochs."""
    before = (
        itertools.takewhile(lambda epoch: epoch < epochs, (reduction**k for k in itertools.count()))
        if reduction
        else ()
    )
    return [*before, epochs]


def halving(
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
            include={"model": True, "train": True}, exclude={"model": {"dropout", "init"}, "train": OWN}
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
