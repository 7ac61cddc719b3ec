"""Train stacks of trials in worker processes.

Each has its own pipe. The processes of `concurrent.futures` share one, and if one is killed while it writes a result, the
pipe stays open in the others and the reader waits forever.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import Any, TypeAlias

import torch

from pipeline.core.errors import UserError
from pipeline.stages.search.halving import Runner, Stacks
from pipeline.stages.search.trials import Contender, Work

FORK = multiprocessing.get_context("fork")
Link: TypeAlias = "Connection[Any, Any]"


@contextmanager
def workers(work: Work, n: int | None) -> Iterator[Runner]:
    """Yield a runner that trains stacks in `n` processes of one thread each; None is one per core.

    With one process, or on a GPU, the stacks are trained in this process. Enter before starting threads: the processes are
    forks, which share the data of `work`; they end with this process, even if it is killed. The runner raises what `work`
    raises, and `UserError` if a worker is killed.
    """
    # sched_getaffinity, where it exists, counts only the cores that this process may use.
    n = n or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    if n == 1 or work.train.y.is_cuda:
        yield partial(_run_here, work)
        return
    links: list[Link] = []
    processes = []
    try:
        for _ in range(n):
            here, there = FORK.Pipe()
            with there:  # closed in this process, so that the pipe closes when the worker ends
                processes.append(FORK.Process(target=_serve, args=(there, work, os.getpid()), daemon=True))
                processes[-1].start()
            links.append(here)
        yield partial(_run_in_workers, links)
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.join()


def _run_here(work: Work, stacks: Stacks, until: int) -> Iterator[list[Contender]]:
    """Train in this process, on one thread as in a worker; the number of threads is restored afterwards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for stack in stacks:
            yield work(stack, until)
    finally:
        torch.set_num_threads(threads)


def _run_in_workers(links: Sequence[Link], stacks: Stacks, until: int) -> Iterator[list[Contender]]:
    # The longest last, to be popped first: started late, it would run alone at the end.
    costs = [len(stack) * sum(stack[0].config.model.hidden) for stack in stacks]
    left = sorted(range(len(stacks)), key=lambda place: (costs[place], -place))
    idle, busy = list(links), dict[Link, int]()
    ended: dict[int, list[Contender]] = {}
    due = 0
    while left or busy:
        while left and idle:
            link, place = idle.pop(), left.pop()
            _raise_if_killed(link.send, (stacks[place], until))
            busy[link] = place
        ready: list[Any] = wait(list(busy))
        for link in ready:
            result = _raise_if_killed(link.recv)
            if isinstance(result, Exception):
                raise result
            idle.append(link)
            ended[busy.pop(link)] = result
            while due in ended:
                yield ended.pop(due)
                due += 1


def _raise_if_killed(transfer: Callable[..., Any], *task: object) -> Any:
    try:
        return transfer(*task)
    except (EOFError, OSError):
        raise UserError("search: a worker process was killed; if memory ran out, lower search.workers") from None


def _serve(link: Link, work: Work, parent: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the parent gets it too, and kills its workers
    threading.Thread(target=_exit_with, args=(parent,), daemon=True).start()
    torch.set_num_threads(1)
    while True:
        task = link.recv()
        try:
            result: list[Contender] | Exception = work(*task)
        except Exception as error:  # raised in the parent
            result = error
        link.send(result)


def _exit_with(parent: int) -> None:
    # The pipe does not close when the parent is killed: other workers inherited its end, and its locks.
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)
