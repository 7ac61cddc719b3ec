"""Stacks of trials trained in worker processes."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch

from pipeline.stages.search import processes
from pipeline.stages.search.halving import Runner, Stacks
from pipeline.stages.search.trials import Contender, Work


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
