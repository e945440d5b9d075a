"""The background thread: only the end of a run waits for it, and only for as long as calls succeed."""

import logging
import threading
from types import SimpleNamespace

import pytest
from waiting import LIMIT, until

from kd.tracking import mirror as mirrors
from kd.tracking.delivery import Target
from kd.tracking.mirror import Mirror, NullRun
from tests.tracking.test_delivery import Failing, expected, shown


class Store:
    """A store whose client is in memory, and which can be reached while `there` is set."""

    uri = "http://127.0.0.1:9"
    is_local = False

    def __init__(self, plan=(), there=True):
        self.client, self.there, self.opened = Failing(plan), there, 0

    def __str__(self):
        return "http://***@host"

    def open(self):
        self.opened += 1
        if not self.there:
            raise ConnectionError("http://me:s3cret@host refused")
        return self.client, "0"


class Clock:
    """A clock that moves only when a test sets it."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """No run is given up because the machine is slow."""
    monkeypatch.setattr(mirrors, "PATIENCE", LIMIT)
    monkeypatch.setattr(mirrors, "RETRY_DELAY", 0.01)


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.setattr(mirrors, "time", Clock())
    return mirrors.time


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.INFO)
    return lambda level: [record.getMessage() for record in caplog.records if record.levelno == level]


@pytest.fixture
def scene():
    """A run that is shown to a store, epoch by epoch."""
    return SimpleNamespace(epochs=0, store=Store())


def begin(scene) -> Mirror:
    return Mirror(lambda: shown(scene.epochs), scene.store, Target("me"), "`kd sync here`")


def show(scene, mirror: Mirror, epochs: int) -> None:
    scene.epochs = epochs
    mirror.refresh()


def test_what_is_shown_is_in_the_store_when_the_run_ends(scene, said):
    mirror = begin(scene)
    assert mirror.run_id == "run0"
    for epochs in range(1, 5):
        show(scene, mirror, epochs)
    mirror.finish("FINISHED")
    assert scene.store.client.points() == expected(shown(4))
    assert scene.store.client.run.status == "FINISHED"
    assert said(logging.WARNING) == said(logging.INFO) == []


def test_a_store_that_comes_back_gets_everything_and_its_outage_is_reported_once(scene, said):
    scene.store.there = False
    mirror = begin(scene)
    assert mirror.run_id is None
    for epochs in (1, 2):
        show(scene, mirror, epochs)
    until(lambda: scene.store.opened >= 2)
    scene.store.there = True
    mirror.finish("FINISHED")
    assert scene.store.client.points() == expected(shown(2))
    (warning,) = said(logging.WARNING)
    assert warning == (
        "MLflow at http://***@host cannot store everything (ConnectionError: http://***@host refused); the run "
        "continues, and what is missing at its end is delivered by `kd sync here`"
    )
    assert said(logging.INFO) == ["MLflow at http://***@host has everything now"]


def test_a_store_that_stays_away_is_reported_once_and_does_not_hold_up_the_end(scene, said):
    scene.store.there = False
    mirror = begin(scene)
    show(scene, mirror, 1)
    mirror.finish("FINISHED")
    assert len(said(logging.WARNING)) == 1
    assert said(logging.INFO) == []


def test_a_call_that_hangs_holds_up_no_epoch(scene, said):
    """Nothing ends the call before both epochs have been shown."""
    hang = threading.Event()
    scene.store.open = lambda: hang.wait() and (scene.store.client, "0")
    mirror = begin(scene)
    for epochs in (1, 2):
        show(scene, mirror, epochs)
    assert scene.store.client.calls == []
    hang.set()
    mirror.finish("FINISHED")
    assert scene.store.client.points() == expected(shown(2))
    assert said(logging.WARNING) == []


def test_a_call_that_hangs_holds_up_the_end_for_the_patience_only(scene, said, clock):
    hang, waits = threading.Event(), []

    def wait(seconds):
        waits.append(seconds)
        clock.now += seconds

    scene.store.open = lambda: hang.wait() and None
    mirror = begin(scene)
    mirror._over = SimpleNamespace(wait=wait, is_set=lambda: False, set=lambda: None)
    show(scene, mirror, 1)
    mirror.finish("FINISHED")
    assert sum(waits) == mirrors.PATIENCE
    (warning,) = said(logging.WARNING)
    assert "no response" in warning
    hang.set()


class Stepwise:
    """The event that a mirror is over; each wait for it lets one slow call succeed, and takes half of the patience."""

    def __init__(self, clock):
        self.clock, self.over = clock, threading.Event()
        self.next_call, self.moved = threading.Semaphore(0), threading.Semaphore(0)

    def call(self) -> None:
        """A slow call, in the mirror's thread."""
        assert self.next_call.acquire(timeout=LIMIT)

    def responded(self) -> None:
        self.moved.release()

    def wait(self, _) -> None:
        self.clock.now += mirrors.PATIENCE / 2
        self.next_call.release()
        assert self.moved.acquire(timeout=LIMIT)

    def set(self) -> None:
        self.over.set()
        self.moved.release()

    def is_set(self) -> bool:
        return self.over.is_set()


def test_the_end_waits_as_long_as_calls_succeed(scene, said, monkeypatch, clock):
    """Each call takes less than the patience, all of them together much more."""
    quick, stepwise = Failing.do_get_metric_history, Stepwise(clock)
    extend = Mirror._extend_deadline

    def get_metric_history(self, run_id, name):
        stepwise.call()
        return quick(self, run_id, name)

    def extend_deadline(mirror, seconds):
        extend(mirror, seconds)
        if threading.current_thread() is mirror._thread and scene.store.client.calls[-1:] == ["get_metric_history"]:
            stepwise.responded()

    monkeypatch.setattr(Failing, "do_get_metric_history", get_metric_history)
    monkeypatch.setattr(Mirror, "_extend_deadline", extend_deadline)
    scene.store.client.do_create_run("0", tags={"kd.run": "me"})
    points = [SimpleNamespace(key=f"m{number}", step=0, value=1.0, timestamp=1) for number in range(8)]
    scene.store.client.do_log_batch("run0", metrics=points)
    mirror = begin(scene)
    mirror._over = stepwise
    until(lambda: "get_metric_history" in scene.store.client.calls)
    scene.epochs = 2
    mirror.finish("FINISHED")
    assert clock.now >= 4 * mirrors.PATIENCE
    assert scene.store.client.run.status == "FINISHED"
    assert said(logging.WARNING) == []


def test_a_single_failure_at_the_end_is_retried(scene, said):
    mirror = begin(scene)
    assert mirror.run_id
    show(scene, mirror, 1)
    until(lambda: scene.store.client.run.points)
    scene.store.client.plan = iter(["before"])
    scene.epochs = 2
    mirror.finish("KILLED")
    assert scene.store.client.points() == expected(shown(2))
    assert scene.store.client.run.status == "KILLED"


def test_a_folder_that_cannot_be_read_is_reported_and_costs_nothing_else(scene, said):
    def source():
        raise FileNotFoundError("run.json")

    mirror = Mirror(source, scene.store, Target("me"), "`kd sync here`")
    assert mirror.run_id is None
    mirror.finish("FAILED")
    assert len(said(logging.WARNING)) == 1


def test_a_null_run_has_no_id():
    mirror = NullRun()
    mirror.refresh()
    mirror.finish("FINISHED")
    assert mirror.run_id is None
