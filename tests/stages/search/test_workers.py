import multiprocessing
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from pipeline.core.config import replaced
from pipeline.core.errors import UserError
from pipeline.stages.search.study import search
from pipeline.stages.search.trials import Contender, Work
from pipeline.stages.search.workers import workers
from tests.support import samples
from tests.support.imports import ROOT
from tests.support.searches import LONG, Slow, configured, real


def test_neither_workers_nor_the_width_of_stacks_decide_a_result():
    of = samples.sample("wine")
    config = configured(n_trials=9, search__epochs=3)
    one, three = (real(config, of, n) for n in (1, 3))
    pd.testing.assert_frame_equal(one.table(), three.table(), check_exact=True)
    assert one.trials == three.trials
    for width in (1, 2, 9):
        other = real(replaced(config, {"search.stack": width}), of)
        assert [t.state for t in other.trials] == [t.state for t in one.trials]
        for trial, same in zip(other.trials, one.trials, strict=True):
            assert list(trial.history) == [pytest.approx(row, rel=1e-4) for row in same.history]


class Asked(Work):
    """Records the number of threads and the process of each trial in its progress."""

    def __call__(self, stack, until):
        super().__call__(stack, until)
        for contender in stack:
            contender.progress["asked"] = (torch.get_num_threads(), os.getpid())
        return stack


@pytest.mark.parametrize("n", [1, 2])
def test_trials_take_one_thread_and_what_follows_has_its_threads_again(n):
    of = samples.sample("iris")
    seen: list[Any] = []
    torch.set_num_threads(2)
    try:
        with workers(Asked(of.train, of.val, of.schema), n) as run:

            def listening(stacks, until):
                for stack in run(stacks, until):
                    seen.extend(contender.progress["asked"] for contender in stack)
                    yield stack

            search(configured(n_trials=4), listening)
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert [threads for threads, _ in seen] == [1] * 4
    assert all((process == os.getpid()) == (n == 1) for _, process in seen)


class Deadly(Work):
    def __call__(self, stack, until):
        os.kill(os.getpid(), signal.SIGKILL)


class DeadlyInTheMiddle(Work):
    """Killed when it has written half of its result."""

    def __call__(self, stack, until):
        def half(link, content):
            os.write(link.fileno(), bytes(content)[: len(content) // 2])
            os.kill(os.getpid(), signal.SIGKILL)

        setattr(Connection, "_send", half)  # noqa: B010
        return stack


@pytest.mark.parametrize("kind", [Deadly, DeadlyInTheMiddle])
def test_a_worker_that_is_killed_ends_the_search_in_one_line(kind):
    of = samples.sample("iris")
    with (
        pytest.raises(UserError, match="a worker process was killed"),
        workers(kind(of.train, of.val, of.schema), 2) as run,
    ):
        search(configured(), run)


class Failing(Slow):
    def __call__(self, stack, until):
        return fail() if stack[0].number == 1 else super().__call__(stack, until)


def fail(*_):
    raise UserError(f"failed at {time.monotonic()}")  # of a clock that all processes share


AT_ONCE = 12  # seconds at most: half of one on an idle computer, and less than the search would take


def alive(process):
    """True if the process exists and is not a zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def all_gone(processes):
    """True once all processes have ended; waits up to AT_ONCE, since a process closes its pipes before it ends."""
    begun = time.monotonic()
    while (left := any(map(alive, processes))) and time.monotonic() - begun < AT_ONCE:
        time.sleep(0.01)
    return not left


def fails_at_once(kind, train):
    """Call `train` with a runner of two workers; it must raise at once, and the workers must end."""
    of = samples.sample("iris")
    before, processes = set(multiprocessing.active_children()), list[Any]()

    def long():
        with workers(kind(of.train, of.val, of.schema), 2) as run:
            processes.extend(child.pid for child in set(multiprocessing.active_children()) - before)
            train(run)

    with pytest.raises(UserError, match="failed at") as raised:
        long()
    assert time.monotonic() - float(str(raised.value).split()[-1]) < AT_ONCE
    assert len(processes) == 2
    assert all_gone(processes)


@pytest.mark.parametrize(("kind", "on_trial"), [(Failing, print), (Slow, fail)], ids=["a worker", "the search"])
def test_an_exception_in_a_worker_or_in_the_search_ends_it_at_once_with_its_workers(kind, on_trial):
    fails_at_once(kind, lambda run: search(LONG, run, on_trial))


def test_an_exception_in_a_worker_does_not_wait_for_stacks_that_come_before():
    narrow, wide = configured(model__hidden=[4]), configured(model__hidden=[8])  # the widest are trained first
    stacks = [[Contender(n, wide if n else narrow)] for n in range(60)]
    fails_at_once(Failing, lambda run: list(run(stacks, 1)))


SCRIPT = """
import multiprocessing, signal
from pipeline.runtime import console
from pipeline.stages.search.study import search
from pipeline.stages.search.workers import workers
from tests.support import samples
from tests.support.searches import LONG, Slow

def main():
    of = samples.sample("iris")
    with workers(Slow(of.train, of.val, of.schema), 2) as run:
        print(*(child.pid for child in multiprocessing.active_children()), flush=True)
        search(LONG, run, lambda trial: print("one has ended", flush=True))

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have had it ignored
console.run(main)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("send", "number", "status", "error"),
    [
        (os.killpg, signal.SIGINT, 130, "error: interrupted\n"),  # as from a terminal
        (os.kill, signal.SIGTERM, 128 + signal.SIGTERM, ""),
        (os.kill, signal.SIGKILL, -signal.SIGKILL, ""),
    ],
    ids=["ctrl-c", "terminated", "killed"],
)
def test_a_signal_ends_a_search_at_once_and_its_workers_with_it(send, number, status, error):
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        try:
            processes = [int(each) for each in process.stdout.readline().split()]
            assert len(processes) == 2
            assert process.stdout.readline() == "one has ended\n"
            assert all(map(alive, processes))
            send(process.pid, number)
            _, said = process.communicate(timeout=AT_ONCE)  # until all writers have ended
            assert all_gone(processes)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert (process.returncode, said) == (status, error)
