"""The thread: nobody waits for it but the end of a run, and that only for as long as calls succeed."""

import logging
import threading
import time
from types import SimpleNamespace

import pytest

from kd.tracking import mirror as mirrors
from kd.tracking.mirror import Mirror, NullRun
from tests.tracking.test_delivery import Failing, expected, shown


class Store:
    """A store whose client is in memory, and is there once `there` is set."""

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


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    monkeypatch.setattr(mirrors, "PATIENCE", 0.5)
    monkeypatch.setattr(mirrors, "AGAIN", 0.01)


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.INFO)
    return lambda level: [record.getMessage() for record in caplog.records if record.levelno == level]


@pytest.fixture
def scene():
    """A run that is shown to a store, epoch by epoch."""
    return SimpleNamespace(epochs=0, store=Store())


def begin(scene) -> Mirror:
    return Mirror(lambda: shown(scene.epochs), scene.store, "me", "`kd sync here`")


def show(scene, mirror: Mirror, epochs: int) -> None:
    scene.epochs = epochs
    mirror.refresh()


def test_what_is_shown_is_in_the_store_when_the_run_is_over(scene, said):
    mirror = begin(scene)
    assert mirror.run_id == "run0"
    for epochs in range(1, 5):
        show(scene, mirror, epochs)
    mirror.finish("FINISHED")
    assert scene.store.client.points() == expected(shown(4))
    assert scene.store.client.run.status == "FINISHED"
    assert said(logging.WARNING) == said(logging.INFO) == []


def test_a_store_that_comes_back_gets_everything_and_its_loss_is_told_once(scene, said):
    scene.store.there = False
    mirror = begin(scene)
    assert mirror.run_id is None
    for epochs in (1, 2):
        show(scene, mirror, epochs)
    while scene.store.opened < 2:
        time.sleep(0.01)
    scene.store.there = True
    mirror.finish("FINISHED")
    assert scene.store.client.points() == expected(shown(2))
    (warning,) = said(logging.WARNING)
    assert warning == (
        "MLflow at http://***@host does not take everything (ConnectionError: http://***@host refused); the run goes "
        "on, and what is missing at its end is delivered by `kd sync here`"
    )
    assert said(logging.INFO) == ["MLflow at http://***@host has everything now"]


def test_a_store_that_stays_away_is_told_once_and_does_not_hold_up_the_end(scene, said):
    scene.store.there = False
    mirror = begin(scene)
    show(scene, mirror, 1)
    mirror.finish("FINISHED")
    assert len(said(logging.WARNING)) == 1
    assert said(logging.INFO) == []


def test_a_call_that_hangs_holds_up_the_end_only_for_a_while(scene, said):
    hang = threading.Event()
    scene.store.open = lambda: hang.wait() and None
    mirror = begin(scene)
    show(scene, mirror, 1)
    started = time.monotonic()
    mirror.finish("FINISHED")
    assert 0.5 <= time.monotonic() - started < 10
    (warning,) = said(logging.WARNING)
    assert "no answer" in warning
    hang.set()


def test_the_end_waits_as_long_as_calls_succeed(scene, said, monkeypatch):
    """Each call takes less than the patience, all of them together much more."""
    slow = Failing.do_get_metric_history

    def get_metric_history(self, run_id, name):
        time.sleep(0.2)
        return slow(self, run_id, name)

    monkeypatch.setattr(Failing, "do_get_metric_history", get_metric_history)
    scene.store.client.do_create_run("0", tags={"kd.run": "me"})
    many = {(f"m{number}", 0): (1.0, 1) for number in range(8)}
    scene.store.client.do_log_batch(
        "run0", metrics=[SimpleNamespace(key=name, step=0, value=1.0, timestamp=1) for name, _ in many]
    )
    mirror = begin(scene)
    show(scene, mirror, 2)
    mirror.finish("FINISHED")
    assert scene.store.client.run.status == "FINISHED"
    assert said(logging.WARNING) == []


def test_a_single_failure_at_the_end_is_tried_again(scene, said):
    mirror = begin(scene)
    assert mirror.run_id
    show(scene, mirror, 1)
    while not scene.store.client.run.points:
        time.sleep(0.01)
    scene.store.client.plan = iter(["before"])
    scene.epochs = 2
    mirror.finish("KILLED")
    assert scene.store.client.points() == expected(shown(2))
    assert scene.store.client.run.status == "KILLED"


def test_a_folder_that_cannot_be_read_is_told_and_costs_nothing_else(scene, said):
    def source():
        raise FileNotFoundError("run.json")

    mirror = Mirror(source, scene.store, "me", "`kd sync here`")
    assert mirror.run_id is None
    mirror.finish("FAILED")
    assert len(said(logging.WARNING)) == 1


def test_a_mirror_that_shows_nothing_has_no_run(said):
    mirror = NullRun()
    mirror.refresh()
    mirror.finish("FINISHED")
    assert mirror.run_id is None
