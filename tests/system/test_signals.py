"""A signal stops a process at once, or, if deferred, at the next safe point."""

import os
import pickle
import signal
import threading

import pytest

from kd.system import signals


@pytest.fixture(autouse=True)
def default_handlers():
    """Default signal handlers, since nohup and & make tests start with some signals ignored."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in signals.SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", signals.SIGNALS)
def test_outside_training_a_signal_interrupts_at_once(number):
    with signals.listen(), pytest.raises(signals.Interrupted) as caught:
        os.kill(os.getpid(), number)
    assert caught.value.exit_code == 128 + number


@pytest.mark.parametrize("number", signals.SIGNALS)
def test_during_training_a_signal_is_deferred(number):
    with signals.listen() as stop, stop.later():
        stop.now()
        os.kill(os.getpid(), number)
        assert stop.asked
        with pytest.raises(signals.Interrupted) as caught:
            stop.now()
    assert caught.value.exit_code == 128 + number


def test_a_second_signal_interrupts_at_once():
    with signals.listen() as stop, stop.later():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(signals.Interrupted):
            os.kill(os.getpid(), signal.SIGINT)


def test_after_training_a_signal_interrupts_at_once():
    with signals.listen() as stop:
        with stop.later():
            pass
        with pytest.raises(signals.Interrupted):
            os.kill(os.getpid(), signal.SIGTERM)


def test_previous_handlers_are_restored():
    before = {number: signal.getsignal(number) for number in signals.SIGNALS}
    with signals.listen(), signals.listen():
        assert all(signal.getsignal(number) != handler for number, handler in before.items())
    assert {number: signal.getsignal(number) for number in signals.SIGNALS} == before


def test_a_signal_ignored_by_nohup_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.listen():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_listening_in_a_thread_does_nothing():
    heard = []

    def run() -> None:
        with signals.listen() as stop:
            heard.append(stop.asked)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert heard == [False]


@pytest.mark.parametrize("number", signals.SIGNALS)
def test_an_interrupt_can_be_pickled(number):
    there = pickle.loads(pickle.dumps(signals.Interrupted(number)))
    assert (str(there), there.exit_code) == (str(signals.Interrupted(number)), 128 + number)


def test_an_interrupt_is_not_an_exception():
    assert issubclass(signals.Interrupted, KeyboardInterrupt)
    assert not issubclass(signals.Interrupted, Exception)


def test_a_signal_in_another_process_interrupts_this_one():
    with pytest.raises(signals.Interrupted) as ended:
        signals.Stop().now(lambda own: max(own, signal.SIGTERM))
    assert ended.value.exit_code == 128 + signal.SIGTERM
    signals.Stop().now(lambda own: own)
