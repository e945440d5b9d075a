"""A background thread that mirrors a run folder to MLflow, so that an unreachable store never holds up the run.

The thread wakes after every epoch and also sends whatever failed before. It is a daemon: a call that hangs does not
keep the process alive.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from kd.tracking.delivery import Delivery, Target
from kd.tracking.shown import RUNNING, Shown
from kd.tracking.store import OPENING_SECONDS, Store, brief

PATIENCE = 10.0  # seconds without a successful call after which the end of a run stops waiting
RETRY_DELAY = 0.5  # seconds before the retry at the end

log = logging.getLogger(__name__)


class NullRun:
    """A mirror that sends nothing."""

    @property
    def run_id(self) -> str | None:
        """The run's id in MLflow; None if it has none."""
        return None

    def refresh(self) -> None:
        """Signal that there is more to send."""

    def finish(self, status: str) -> None:
        """End the run, and wait until everything is delivered, as long as the store responds."""


class Mirror(NullRun):
    """A run in MLflow that is kept equal to what `source` returns.

    `remedy` completes the warning of a failed delivery: "... is delivered by <remedy>".
    """

    def __init__(self, source: Callable[[], Shown], store: Store, target: Target, remedy: str) -> None:
        self._source, self._store, self._remedy = source, store, remedy
        self._on_found = target.on_found
        self._delivery = Delivery(replace(target, on_found=self._found), store.open, self._extend_deadline)
        self._wake, self._responded, self._over = threading.Event(), threading.Event(), threading.Event()
        self._status: str | None = None
        self._warned = self._failed = False
        self._deadline = 0.0
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()
        self.refresh()

    @property
    def run_id(self) -> str | None:
        """The run's id; waits for the store's first response or failure, and is None if there is still no run."""
        self._responded.wait(OPENING_SECONDS)
        return self._delivery.run_id

    def refresh(self) -> None:
        self._wake.set()

    def finish(self, status: str) -> None:
        self._extend_deadline(0 if self._responded.is_set() or not self._store.is_local else OPENING_SECONDS)
        self._status = status
        self._wake.set()
        while not self._over.is_set() and (left := self._deadline - time.monotonic()) > 0:
            self._over.wait(left)
        if not self._over.is_set():
            self._warn(f"no response for {PATIENCE:.0f} s")
        elif self._warned and not self._failed:
            log.info("MLflow at %s has everything now", self._store)

    def _found(self, run_id: str) -> None:
        self._on_found(run_id)
        self._responded.set()

    def _extend_deadline(self, seconds: float) -> None:
        self._deadline = time.monotonic() + PATIENCE + seconds

    def _work(self) -> None:
        ending = False
        while not ending:
            self._wake.wait()
            self._wake.clear()
            ending = self._status is not None
            self._deliver()
            if ending and self._failed:
                time.sleep(RETRY_DELAY)
                self._deliver()
        self._over.set()

    def _deliver(self) -> None:
        try:
            shown = self._source()
            if self._status and shown.status == RUNNING:  # a study's run, or run.json could not be written
                shown = replace(shown, status=self._status)
            self._delivery.update(shown)
            self._failed = False
        except Exception as error:  # each transport and store raises its own kinds
            self._failed = True
            self._warn(brief(error, self._store.uri))
        self._responded.set()

    def _warn(self, reason: str) -> None:
        if not self._warned:
            self._warned = True
            log.warning(
                "MLflow at %s cannot store everything (%s); the run continues, and what is missing at its end is "
                "delivered by %s", self._store, reason, self._remedy,
            )  # fmt: skip
