"""The thread that sends what a stage logs, and what earlier stages left, while the stage goes on."""

import importlib
import math
import threading
import time
from typing import TYPE_CHECKING

from pipeline.core.settings import Tracking
from pipeline.tracking import journal as spools
from pipeline.tracking import store
from pipeline.tracking.identity import project_root
from pipeline.tracking.journal import SPOOLS, Spool
from pipeline.tracking.progress import Progress

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from pipeline.tracking.delivery import Delivery

SECONDS_BETWEEN_WRITES, MAX_PAUSE = 1.0, 30.0  # the pause grows while the server does not answer
PATIENCE = 3.5  # seconds that the end of a stage waits for what halts
HALT = 0.5  # seconds without progress, after which it halts
SERVER_SECONDS = 4.5  # that the end of a stage waits for a server, however slowly it gets on


class Writer:
    """Sends what waits in the spools, then what the stage logs, from a thread of its own, at most once a second.

    Nothing waits for it but `close`, and that only as long as it gets on.
    """

    def __init__(self, tracking: Tracking, spool: Spool | None) -> None:
        self._tracking, self._spool, self._root = tracking, spool, project_root() / SPOOLS
        self._progress, self._closing, self._given_up = Progress(), threading.Event(), threading.Event()
        self._done = threading.Event()  # a thread says that it has ended where the wait for it is interrupted
        self._client: MlflowClient | None = None
        self._delivery: Delivery | None = None
        self._failure: Exception | None = None
        self.n_replayed = 0
        self._thread = threading.Thread(target=self._run, name="tracking", daemon=True)
        self._thread.start()

    def close(self, patience: float | None = None) -> str | None:
        """Wait until everything is sent, or sending stands still; returns what to tell about what is left."""
        ends_stage, patience = patience is None, PATIENCE if patience is None else patience
        is_file = store.tracking_uri(self._tracking).startswith("sqlite:")
        longest = SERVER_SECONDS if ends_stage and not is_file else math.inf
        self._progress.made()
        self._closing.set()
        stood, waited, seen = 0.0, 0.0, time.monotonic()
        try:
            while not self._done.is_set() and stood < patience and waited < longest:
                self._done.wait(0.05)
                before, seen = seen, time.monotonic()
                waited += 0.0 if self._progress.is_at_work else seen - before
                # All halts count together: what gets on a little and halts again would hold a stage for long.
                stood += seen - before if self._progress.standing > HALT else 0.0
        except KeyboardInterrupt:  # the work of the stage is done, so that only the waiting ends
            if not ends_stage:
                raise
        self._given_up.set()
        if self._done.is_set() and self._failure is None:
            return None
        why = store.reason(self._failure) if self._failure is not None else f"waited {waited:.0f} s"
        return (
            f"{store.no_answer(self._tracking)} ({why}); "
            f"{spools.n_waiting(self._root)} events wait in {SPOOLS}, sent by the next stage or python -m pipeline sync"
        )

    def _run(self) -> None:
        pause, spool = SECONDS_BETWEEN_WRITES, self._spool
        try:
            while not self._given_up.is_set():
                last = self._closing.is_set()  # asked before: what was logged until then is sent below
                try:
                    self._send()
                    pause, self._failure = SECONDS_BETWEEN_WRITES, None
                except Exception as error:  # told by `close`
                    pause, self._failure = min(2 * pause, MAX_PAUSE), error
                    self._client = self._delivery = None
                if last:
                    return
                self._closing.wait(pause)
        finally:
            if spool is not None:
                spool.lock.release()
            self._done.set()

    def _send(self) -> None:
        if self._client is None:
            with self._progress.at_work():  # MLflow takes seconds to import
                importlib.import_module("pipeline.tracking.delivery")
            store.make_own_database(self._tracking, self._progress.at_work)
            with self._progress.at_work():
                if not store.tracking_uri(self._tracking).startswith("http"):
                    # MLflow imports it when it is first used, which takes seconds on a busy machine.
                    importlib.import_module("mlflow.store.tracking.sqlalchemy_store")
            client = store.connect(store.tracking_uri(self._tracking))
            client.search_experiments(max_results=1)  # what answers nothing is no fault of a spool
            self._progress.made()
            self._replay(client)
            self._client = client
        from pipeline.tracking import delivery

        if self._spool is not None:
            if self._delivery is None and self._spool.first is not None:
                self._delivery = delivery.Delivery(self._client, self._spool, self._progress, is_live=True)
            if self._delivery is not None:
                self._delivery.send()
                if self._delivery.ended == "FINISHED":
                    self._spool.remove()
                    self._spool, self._delivery = None, None

    def _replay(self, client: "MlflowClient") -> None:
        """What others left. One that cannot be sent, as a file of it is lost, does not stand in the way of the rest."""
        from pipeline.tracking import delivery

        waiting = spools.waiting(self._root)
        try:
            for spool in waiting:
                if self._given_up.is_set():
                    return
                try:
                    delivery.Delivery(client, spool, self._progress).send()
                except Exception as error:
                    if delivery.passes(error):
                        raise
                    spool.put_aside(store.reason(error))
                    continue
                self.n_replayed += 1
                if spool.status == "FINISHED":
                    spool.remove()
        finally:
            for spool in waiting:
                spool.lock.release()
