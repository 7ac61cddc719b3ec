"""Worker processes, of which one that is killed leaves nobody waiting."""

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import Any, TypeAlias, TypeVar

from pipeline.core.errors import UserError

FORK = multiprocessing.get_context("fork")
Link: TypeAlias = "Connection[Any, Any]"
Result = TypeVar("Result")


@contextmanager
def workers(
    work: Callable[..., Result], n: int, begin: Callable[[], object]
) -> Iterator[Callable[[Sequence[tuple[Any, ...]]], Iterator[tuple[int, Result]]]]:
    """Yield `run(tasks)`, which calls `work` with the arguments of each task in one of `n` processes, and yields the place of
    the task and its result as each one ends.

    To be entered before other threads start: the processes are forks, which share what `work` holds with this one, and call
    `begin` first. What ends this process early ends them. Raises what `work` raises, and `UserError` if one is killed.

    `concurrent.futures` would wait for ever for the rest of a result that a killed process has begun to write: all of its
    processes write to one pipe, which the others keep open.
    """
    links: list[Link] = []
    processes = []
    try:
        for _ in range(n):
            here, there = FORK.Pipe()
            with there:  # in this process, so that its end is that of the one that holds it
                processes.append(FORK.Process(target=_serve, args=(there, work, begin, os.getpid()), daemon=True))
                processes[-1].start()
            links.append(here)
        yield partial(_run, links)
    finally:
        for process in processes:
            process.kill()  # what it still does is for nobody
        for process in processes:
            process.join()


def _run(links: Sequence[Link], tasks: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
    idle, left, at_work = list(links), deque(enumerate(tasks)), dict[Link, int]()
    while left or at_work:
        while left and idle:
            link = idle.pop()
            at_work[link], task = left.popleft()
            with _killed_told():
                link.send(task)
        ready: list[Any] = wait(list(at_work))
        for link in ready:
            with _killed_told():
                result = link.recv()
            if isinstance(result, Exception):
                raise result
            idle.append(link)
            yield at_work.pop(link), result


@contextmanager
def _killed_told() -> Iterator[None]:
    try:
        yield
    except (EOFError, OSError):
        raise UserError("search: a worker process was killed; if memory was short, lower search.workers") from None


def _serve(link: Link, work: Callable[..., object], begin: Callable[[], object], parent: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the parent is told too, and kills its workers
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    begin()
    while True:
        task = link.recv()
        try:
            result = work(*task)
        except Exception as error:  # raised by the parent
            result = error
        link.send(result)


def _end_with(parent: int) -> None:
    """A worker whose parent was killed would wait for ever: others hold its end of the pipe too, and all hold its locks."""
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)
