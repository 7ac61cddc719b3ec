"""Send what a stage logs, and what earlier stages left unsent, from a thread beside the stage."""

import importlib
import math
import threading
import time
from typing import TYPE_CHECKING

from pipeline.core.settings import Tracking
from pipeline.tracking import journal as journals
from pipeline.tracking import store
from pipeline.tracking.identity import project_root
from pipeline.tracking.journal import JOURNALS, Journal
from pipeline.tracking.store import Progress

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from pipeline.tracking.delivery import Delivery

SECONDS_BETWEEN_WRITES, MAX_PAUSE = 1.0, 30.0  # the pause grows while the server does not answer
PATIENCE = 3.5  # total stalled seconds after which the end of a stage stops waiting
STALL = 0.5  # seconds without progress that count as a stall
SERVER_SECONDS = 4.5  # limit on that wait for a server, even one that makes progress


class Writer:
    """A thread that sends the waiting journals, then what the stage logs, at most once a second."""

    def __init__(self, tracking: Tracking, journal: Journal | None) -> None:
        self._tracking, self._journal, self._root = tracking, journal, project_root() / JOURNALS
        self._progress, self._closing, self._given_up = Progress(), threading.Event(), threading.Event()
        self._done = threading.Event()  # unlike `Thread.join`, still reliable after an interrupted wait
        self._client: MlflowClient | None = None
        self._delivery: Delivery | None = None
        self._failure: Exception | None = None
        self.n_replayed = 0
        threading.Thread(target=self._run, name="tracking", daemon=True).start()

    def close(self, patience: float | None = None) -> str | None:
        """Wait until everything is sent or sending stalls; returns a message about unsent events, if any.

        `patience`: the stalled seconds to wait. Without it, as at the end of a stage, an interrupt only ends the wait.
        """
        ends_stage, patience = patience is None, PATIENCE if patience is None else patience
        is_file = store.database_path(store.tracking_uri(self._tracking)) is not None
        longest = SERVER_SECONDS if ends_stage and not is_file else math.inf
        self._progress.made()
        self._closing.set()
        stalled, waited, now = 0.0, 0.0, time.monotonic()
        try:
            while not self._done.is_set() and stalled < patience and waited < longest:
                self._done.wait(0.05)
                before, now = now, time.monotonic()
                waited += 0.0 if self._progress.is_working else now - before
                # Summed over all stalls: many short ones would otherwise hold up a stage for long.
                stalled += now - before if self._progress.stalled > STALL else 0.0
        except KeyboardInterrupt:  # the work of the stage is done, so that only the wait ends
            if not ends_stage:
                raise
        self._given_up.set()
        if self._done.is_set() and self._failure is None:
            return None
        why = self._failure or f"waited {waited:.0f} s"
        n_events = journals.n_waiting(self._root)
        left = f"{n_events} events wait in {JOURNALS}: the next stage or python -m pipeline sync sends them"
        return f"{store.no_answer(self._tracking, why)}; {left}"

    def _run(self) -> None:
        pause, journal = SECONDS_BETWEEN_WRITES, self._journal
        try:
            while not self._given_up.is_set():
                last = self._closing.is_set()  # read first: all that was logged until then is sent below
                try:
                    self._send()
                    pause, self._failure = SECONDS_BETWEEN_WRITES, None
                except Exception as error:  # reported by `close`
                    pause, self._failure = min(2 * pause, MAX_PAUSE), error
                    self._client = self._delivery = None
                if last:
                    return
                self._closing.wait(pause)
        finally:
            if journal is not None:
                journal.lock.release()
            self._done.set()

    def _send(self) -> None:
        if self._client is None:
            self._client = self._connect()
        from pipeline.tracking import delivery

        if self._journal is not None:
            if self._delivery is None and self._journal.first is not None:
                self._delivery = delivery.Delivery(self._client, self._journal, self._progress, is_live=True)
            if self._delivery is not None:
                self._delivery.send()
                if self._delivery.ended == "FINISHED":
                    self._journal.remove()
                    self._journal, self._delivery = None, None

    def _connect(self) -> "MlflowClient":
        """Import MLflow, connect, and send the journals that other executions left."""
        uri = store.tracking_uri(self._tracking)
        with self._progress.working():  # imports take seconds on a busy machine
            importlib.import_module("pipeline.tracking.delivery")
            if not uri.startswith("http"):
                importlib.import_module("mlflow.store.tracking.sqlalchemy_store")
        store.make_own_database(self._tracking, self._progress.working)
        client = store.connect(uri)
        client.search_experiments(max_results=1)  # fails here, not in a journal, if the server does not answer
        self._progress.made()
        self._replay(client)
        return client

    def _replay(self, client: "MlflowClient") -> None:
        """Send all waiting journals; quarantine one that cannot be sent, such as one that lost a file."""
        from pipeline.tracking import delivery

        waiting = journals.waiting(self._root)
        try:
            for journal in waiting:
                if self._given_up.is_set():
                    return
                try:
                    delivery.Delivery(client, journal, self._progress).send()
                except Exception as error:
                    if delivery.is_transient(error):
                        raise
                    journal.quarantine(store.reason(error))
                    continue
                self.n_replayed += 1
                if journal.status == "FINISHED":
                    journal.remove()
        finally:
            for journal in waiting:
                journal.lock.release()
