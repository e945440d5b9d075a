"""A background thread that keeps a run in MLflow as its folder is, so that a store that is away costs the run nothing.

The thread is woken after every epoch and makes up for whatever was missed before. It is a daemon: a call that hangs
does not keep the process alive.
"""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

from kd.tracking.delivery import Delivery
from kd.tracking.shown import Shown
from kd.tracking.store import OPENING_SECONDS, Store, brief

PATIENCE = 10.0  # seconds without a call that succeeds, after which the end of a run waits no longer
AGAIN = 0.5  # seconds to a second try at the end

log = logging.getLogger(__name__)


class NullRun:
    """A mirror that shows nothing."""

    @property
    def run_id(self) -> str | None:
        """The run's id in MLflow; None where it has none."""
        return None

    def refresh(self) -> None:
        """Say that there is more to show."""

    def finish(self, status: str) -> None:
        """Say that the run is over, and wait until all of it is delivered, as long as the store takes it."""


class Mirror(NullRun):
    """A run in MLflow that follows `source`; `remedy` completes the sentence that says what is to do if it cannot.

    `identity`, `known`, `noted`, `alone` and `shared` are as for a `Delivery`.
    """

    def __init__(
        self,
        source: Callable[[], Shown],
        store: Store,
        identity: str,
        remedy: str,
        known: str | None = None,
        noted: Callable[[str], None] = lambda run_id: None,
        alone: Callable[[], AbstractContextManager[Any]] = nullcontext,
        shared: bool = False,
    ) -> None:
        self._source, self._store, self._remedy, self._note = source, store, remedy, noted
        self._delivery = Delivery(identity, store.open, known, self._noted, self._heard, alone, shared)
        self._wake, self._answered, self._over = threading.Event(), threading.Event(), threading.Event()
        self._status: str | None = None
        self._warned = self._failed = False
        self._deadline = 0.0
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()
        self.refresh()

    @property
    def run_id(self) -> str | None:
        """The run's id; waits for the store's first answer, or its failure, and is None where there is none yet."""
        self._answered.wait(OPENING_SECONDS)
        return self._delivery.run_id

    def refresh(self) -> None:
        self._wake.set()

    def finish(self, status: str) -> None:
        self._heard(0 if self._answered.is_set() or not self._store.is_local else OPENING_SECONDS)
        self._status = status
        self._wake.set()
        while not self._over.is_set() and (left := self._deadline - time.monotonic()) > 0:
            self._over.wait(left)
        if not self._over.is_set():
            self._warn(f"no answer for {PATIENCE:.0f} s")
        elif self._warned and not self._failed:
            log.info("MLflow at %s has everything now", self._store)

    def _noted(self, run_id: str) -> None:
        self._note(run_id)
        self._answered.set()

    def _heard(self, seconds: float) -> None:
        self._deadline = time.monotonic() + PATIENCE + seconds

    def _work(self) -> None:
        ending = False
        while not ending:
            self._wake.wait()
            self._wake.clear()
            ending = self._status is not None
            self._try()
            if ending and self._failed:
                time.sleep(AGAIN)
                self._try()
        self._over.set()

    def _try(self) -> None:
        try:
            shown = self._source()
            self._delivery.update(replace(shown, status=self._status or shown.status))
            self._failed = False
        except Exception as error:  # every transport and store has errors of its own
            self._failed = True
            self._warn(brief(error))
        self._answered.set()

    def _warn(self, reason: str) -> None:
        if not self._warned:
            self._warned = True
            log.warning(
                "MLflow at %s does not take everything (%s); the run goes on, and what is missing at its end is "
                "delivered by %s", self._store, reason, self._remedy,
            )  # fmt: skip
